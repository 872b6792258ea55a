"""Types that a request passes through: RequestHead > Request > Caller > Call > Permit. Each phase needs the type made by the one before.

Values only. The two live ends of a request are elsewhere: the client's (`ports.Client`) and the engine's
(`upstreams.connection.UpstreamConnection`).
"""

from collections.abc import Collection, Mapping, Sequence
from math import inf
from typing import Any, Final

import msgspec

from tollway.domain.budgets import EACH_END_USER, BudgetMode, name_end_user_budget
from tollway.domain.catalog import CacheIsolation, Deployment, Endpoint
from tollway.domain.faults import Fault
from tollway.domain.prices import PriceVersion
from tollway.domain.snapshot import BudgetEntry, ModelEntry
from tollway.domain.usage import Ended, ServiceTier
from tollway.engines.table import ENGINES, is_translated
from tollway.gateway.answer_recorder import AnswerRecorder
from tollway.gateway.counters import Bound, EndUserLimits
from tollway.gateway.dialects.answers import AnswerContext, Measure
from tollway.gateway.dialects.conversation import Conversation
from tollway.gateway.dialects.dialect import Dialect, Translation
from tollway.gateway.memory_counters import MemoryBound
from tollway.gateway.ports import AnswerStore, ChecksAnswer, KeepsResponse, OutputHold
from tollway.gateway.prefix_routing import Charge
from tollway.gateway.principal import Principal
from tollway.gateway.request_traces import RequestTrace
from tollway.gateway.uploads import Upload
from tollway.wire import bodies, forms
from tollway.wire.http import NO_HEADERS

PRIORITY_ENDPOINTS = frozenset({Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS, Endpoint.RESPONSES})
"""Endpoints at which engines that schedule by priority read it."""

INFINITE: Final = inf
"""Timeout of a request whose client named none."""

_PROMPT: Final = CacheIsolation.PROMPT  # a member of an enumeration costs a call in the interpreter each time it is looked up


class RequestHead:
    """The parsed head of a request, read once for all requests of a connection that have the same.

    `trace_id`, `client_request_id`: the client's own; empty if it sent none that can be used. `parent_id`: its span in that trace.
    `trace_flags`: two hexadecimal digits, the parent's decision on sampling; `tracestate`: its list of vendors, empty without a trace (W3C
    Trace Context, sections 3.2 and 3.3).
    `max_cost`, `idempotency_key`: as the client wrote them, None without. `shows_cost`: a whole answer says what the request cost.
    `timeout_seconds`: from the receipt of a request until the client stops waiting (`deadlines`), infinite if it said nothing;
    `bounds_whole_answer`: that is the time of the whole answer, otherwise of its begin.
    `digest`: of the credential, once a caller was found by it; it saves the work of making it again, 24 thousand instructions a request
    (7 %), and nothing else: each request looks its caller up.
    `answer_store`: of the answer to the line of a batch, where the line has an idempotency key; None for the gateway's own.
    `body_beginning`: what bodies begin with in place of their first brace, where the path names the model; empty where the body does.
    `certificate`: of the client (DER), which proves who sends the request if no secret does; empty without one.
    `address`: the client's, behind trusted proxies; empty if it is not known. `admitted`: the caller whose ranges the address was found in.
    """

    __slots__ = (
        "address",
        "admitted",
        "answer_store",
        "body_beginning",
        "bounds_whole_answer",
        "certificate",
        "client_request_id",
        "digest",
        "endpoint",
        "headers",
        "idempotency_key",
        "max_cost",
        "parent_id",
        "shows_cost",
        "timeout_seconds",
        "trace_flags",
        "trace_id",
        "tracestate",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        headers: dict[bytes, bytes],
        trace_id: str = "",
        client_request_id: str = "",
        trace_flags: str = "00",
        tracestate: bytes = b"",
        address: str = "",
        parent_id: str = "",
    ) -> None:
        self.endpoint = endpoint
        self.headers = headers
        self.trace_id = trace_id
        self.parent_id = parent_id
        self.trace_flags = trace_flags
        self.tracestate = tracestate
        self.client_request_id = client_request_id
        self.certificate = b""
        self.max_cost: bytes | None = headers.get(b"x-max-cost")
        self.shows_cost = headers.get(b"x-show-cost") == b"true"
        self.idempotency_key: bytes | None = headers.get(b"idempotency-key")
        self.timeout_seconds = INFINITE
        self.bounds_whole_answer = False
        self.digest: bytes | None = None
        self.address = address
        self.admitted: Caller | None = None
        self.answer_store: AnswerStore | None = None
        self.body_beginning = b""


_BARE_HEADS = {endpoint: RequestHead(endpoint, NO_HEADERS) for endpoint in Endpoint}
"""Heads without headers that replace released ones. Shared, never written to."""


class Request:
    """One request as it reached its route. Times: `started` is monotonic seconds, `received_at` UTC microseconds. `trace_id`: the client's
    or its own. `peer`: the client's address, for the log; empty unless that is wanted. `body_bytes`: length of the body, which is in
    `upload` if that is not None, else in `body`. `spans`: of a form alone, once it was read: where its parts begin and end
    (`forms.list_spans`). `sends_media`: what is being sent is no stream of events, so that no fault can be written in it. `waited_ms`: time
    in the queue of its model. `asked_for`: the request that it serves with a fallback;
    None for one of a client's own. `conversation`: that of a response that is stored or continues a stored one; None for all others.
    `cache_tag`: by which engines name it in the events of their caches (`held_prefixes`); empty unless these are followed. `trace`: what it
    notes for its trace, None for nothing."""

    __slots__ = (
        "asked_for",
        "body",
        "body_bytes",
        "cache_tag",
        "conversation",
        "endpoint",
        "head",
        "headers",
        "id",
        "peer",
        "received_at",
        "sends_media",
        "spans",
        "started",
        "trace",
        "trace_id",
        "traceparent",
        "upload",
        "waited_ms",
    )

    spans: tuple[int, ...]

    def __init__(
        self,
        id: str,
        head: RequestHead,
        body: bytes,
        started: float,
        received_at: int,
        endpoint: Endpoint,
        headers: dict[bytes, bytes],
        trace_id: str,
        traceparent: str,
        peer: str,
    ) -> None:
        self.id = id
        self.head = head
        self.body = body
        self.body_bytes = len(body)
        self.started = started
        self.received_at = received_at
        self.endpoint = endpoint
        self.headers = headers
        self.trace_id = trace_id
        self.traceparent = traceparent
        self.peer = peer
        self.upload: Upload | None = None
        self.waited_ms = 0.0
        self.asked_for: AskedFor | None = None
        self.sends_media = False
        self.conversation: Conversation | None = None
        self.cache_tag = b""
        self.trace: RequestTrace | None = None

    def note_trace(self) -> RequestTrace:
        """Return what the request notes for its trace, from now on if it did not before."""
        trace = self.trace
        if trace is None:
            trace = self.trace = RequestTrace(self.head.parent_id, False, self.started, self.received_at)
        return trace

    def replace_body(self, body: bytes) -> None:
        """Go on with another body, which is not large, than the one that was sent. An upload stays accounted for by its connection."""
        self.upload = None
        self.body = body
        self.body_bytes = len(body)

    def take_upload(self, upload: Upload, pieces: tuple[bytes, ...]) -> None:
        """The body is in `pieces`, and `upload` accounts for it."""
        upload.pieces = pieces
        self.upload = upload
        self.body = b""
        self.body_bytes = sum(map(len, pieces))

    def read_body(self) -> bytes:
        """Return the whole body. For a large one it holds the event loop."""
        return self.body if self.upload is None else b"".join(self.upload.pieces)

    def list_pieces(self) -> tuple[bytes, ...]:
        """Return the body in the pieces that it is held in."""
        return (self.body,) if self.upload is None else self.upload.pieces

    def find_form_boundary(self) -> bytes:
        """Return the boundary of the form that an engine is sent: one that the client could not know when it sent its own."""
        return b"tollway-%b" % self.id.encode()

    def read_prefix(self, size: int) -> bytes:
        """Return the first `size` bytes of the body, or all of a shorter one."""
        return self.body[:size] if self.upload is None else bodies.cut(self.upload.pieces, 0, size)


class AskedFor:
    """The demand of a client whose request a fallback serves. `pieces`: of the body as it was sent, where an idempotency key names it;
    else empty. `fault`: with which the model failed that it names. `left`: the fallbacks that were not tried yet. `model`: the
    fallback that the body of the request is still to name; empty if it does."""

    __slots__ = ("fault", "left", "model", "pieces")

    def __init__(self, pieces: tuple[bytes, ...], fault: Fault, left: tuple[str, ...], model: str = "") -> None:
        self.pieces = pieces
        self.fault = fault
        self.left = left
        self.model = model


def new_request(id: str, head: RequestHead, body: bytes, started: float, received_at: int, peer: str = "") -> Request:
    """The request `id`. Its span in `traceparent` (W3C Trace Context) is the random half of its id."""
    trace_id = head.trace_id or id[4:]
    traceparent = f"00-{trace_id}-{id[-16:]}-{head.trace_flags}"
    return Request(id, head, body, started, received_at, head.endpoint, head.headers, trace_id, traceparent, peer)


class Caller:
    """A principal with everything that follows from it compiled once.

    `organization`, `project`, `expires_at`, `is_test`, `endpoints`, `networks`: those of the principal, held here because each request
    reads them; `residency` is that of its project.
    `grants`: compiled per model and endpoint on first use. `budgets`: those of its key, project and organization, innermost level first.
    `cache_salt`: isolates the organization's prefixes inside an engine's prefix cache. `end_user_limits`: those of each end user of the
    project, None without any.
    `use_due_at`: the instant (UTC microseconds) from which its next use is noted. `digest`: of the secret by which it was found;
    `version`: the snapshot's, of which it is known that the secret stands in it.
    """

    __slots__ = (
        "budgets",
        "cache_salt",
        "digest",
        "end_user_limits",
        "endpoints",
        "expires_at",
        "grants",
        "is_test",
        "networks",
        "organization",
        "principal",
        "project",
        "residency",
        "use_due_at",
        "version",
    )

    def __init__(
        self, principal: Principal, cache_salt: bytes, budgets: tuple[BudgetEntry, ...] = (), digest: bytes = b"", version: int = 0
    ) -> None:
        self.principal = principal
        self.project = principal.project
        self.organization = principal.organization
        self.expires_at = principal.expires_at
        self.is_test = principal.is_test
        self.endpoints = principal.endpoints
        self.networks = principal.networks
        regions = principal.project.residency
        self.residency = None if regions is None else frozenset(regions)
        self.cache_salt = cache_salt
        self.budgets = budgets
        of_each = principal.project.list_end_user_limits()
        self.end_user_limits = EndUserLimits(principal.organization.id, principal.project.id, of_each) if of_each else None
        self.use_due_at = 0
        self.digest = digest
        self.version = version
        self.grants: dict[tuple[str, Endpoint], ModelGrant] = {}


INPUT_DENSITY_FIRST = 256
"""Input tokens per KiB of body before any request was counted: a token for four bytes, as English has."""


class ModelGrant:
    """Permission of a caller to use a model at an endpoint, valid from instant `valid_from` until (exclusive) `valid_until`.

    Compiled by the directory so that `authorize` derives nothing per request; dropped with every change of the snapshot.
    `prices`: by service tier, on the organization's price list; `default` is that of requests that ask for no tier. `is_served`: whether
    the model has this endpoint; `is_translated`: a deployment of the model has it by translation only. `known_fields`: request fields that
    every deployment of the model understands.
    `bound`: the limits that apply, with their counters; None before the first request. `end_user_limits`: those of each end user that
    apply, None without any; found with `bound`. `has_running_usage`: every deployment of the model reports usage while it streams.
    `input_density`: input tokens per KiB of body that the caller's requests had lately (`limit`). `terms_valid_from`: the instant from
    which the organization pays by these prices' list. `encoded_admit_suffixes`: the encoded parts that ADMIT records under this grant
    share, by price and streaming; cached by `meter`. `budgets`: those of the caller that bind all requests to this model;
    `named_budgets`: ids of those, or of those that only alert, that all records name; `conditional_budgets`: those on tags and end users.
    `has_fallback`: a budget names a model that serves what it would refuse.
    """

    __slots__ = (
        "_injected",
        "bound",
        "budgets",
        "cache_salt",
        "conditional_budgets",
        "default",
        "default_tier",
        "encoded_admit_suffixes",
        "end_user_limits",
        "has_fallback",
        "has_running_usage",
        "input_density",
        "is_served",
        "is_translated",
        "known_fields",
        "model",
        "named_budgets",
        "prices",
        "terms_valid_from",
        "valid_from",
        "valid_until",
    )

    def __init__(
        self,
        model: ModelEntry,
        prices: Mapping[ServiceTier, PriceVersion],
        valid_from: int,
        valid_until: int,
        *,
        is_served: bool,
        known_fields: frozenset[str],
        cache_salt: bytes,
        terms_valid_from: int = 0,
        has_running_usage: bool = False,
        is_translated: bool = False,
        budgets: tuple[BudgetEntry, ...] = (),
        default_tier: ServiceTier = ServiceTier.STANDARD,
    ) -> None:
        self.model = model
        self.prices = prices
        self.default_tier = default_tier
        self.default = prices.get(default_tier) or prices.get(ServiceTier.STANDARD)
        self.valid_from = valid_from
        self.valid_until = valid_until
        self.is_served = is_served
        self.is_translated = is_translated
        self.has_running_usage = has_running_usage
        self.known_fields = known_fields
        self.cache_salt = cache_salt
        self.terms_valid_from = terms_valid_from
        conditional = tuple(each for each in budgets if each.tag or each.end_user)
        self.conditional_budgets = conditional
        self.has_fallback = any(each.fallback_model for each in budgets)
        always = tuple(each for each in budgets if each not in conditional) if conditional else budgets
        self.budgets = tuple(each for each in always if each.mode is not BudgetMode.ALERT)
        self.named_budgets = tuple(each.id for each in always if each.model)
        self.encoded_admit_suffixes: dict[tuple[str, bool], bytes] = {}
        self.bound: Bound | None = None
        self.end_user_limits: EndUserLimits | None = None
        self.input_density = INPUT_DENSITY_FIRST
        self._injected: dict[tuple[str, bytes | None, int | None], tuple[Deployment, bodies.InjectedFields]] = {}

    def injected_fields(
        self, deployment: Deployment, dialect: Dialect, usage: bytes | None, output_cap: int | None, tier: ServiceTier
    ) -> bodies.InjectedFields:
        """Return the fields that the gateway sets in a body for `deployment`. `usage`: the value of the dialect's usage options. `tier`:
        the service tier, whose priority is sent to an engine."""
        key = (f"{deployment.id} {tier}" if deployment.priorities else deployment.id, usage, output_cap)
        known = self._injected.get(key)
        if known is not None and known[0] is deployment:
            return known[1]
        model = None if deployment.upstream_model == self.model.id else deployment.upstream_model
        fields = dialect.list_injected(output_cap, model, usage)
        if not self.model.share_cache and dialect.form_kinds is None and dialect.endpoint in ENGINES[deployment.engine].salted_endpoints:
            fields["cache_salt"] = self.cache_salt
        if deployment.priorities and dialect.endpoint in PRIORITY_ENDPOINTS:
            fields["priority"] = b"%d" % ENGINES[deployment.engine].priorities.get(tier, 0)
        injected = bodies.InjectedFields(fields)
        if output_cap is None or output_cap == self.model.output_tokens_max:  # a cap that a budget sets is of one request
            self._injected[key] = deployment, injected
        return injected


class Call:
    """A permitted request: which model, at which price, and what the engine is to be asked.

    `names`: the body's top-level fields. `dropped`: those of them that do not go up. `prompts`: how many the body holds. `sequences`: how
    many outputs the engine generates for all of them, at least one; everything that scales with outputs uses this number. `output_cap`: the
    model's, to be set where the client named no maximum. `output_tokens_max`: most tokens that all sequences together can have, None if
    nothing bounds them. `input_tokens_max`: most tokens that all prompts together can have, as a bound that is never too small.
    `prompt_bytes`: bytes of the body, 0 if it holds media, whose bytes say nothing of tokens. `hide_usage`: the client did not ask for
    usage in its stream, so it is removed again. `output_hold`: where budgets reserve the output of a stream while it runs, else None.
    `end_user`: whom the body names, as it stands there; None if that is not limited. `translated`: the body of the other API, where a
    deployment of the model may need it; `repeated`: fields that a translated answer repeats, once it was used. `charge`: the load that it
    is to a deployment, where there was a choice. `measure`: of a request with media, else None. `answer_recorder`: stores the answer of a
    request with an idempotency key. `response_keeper`: stores a response; None for most requests. `guard`: checks
    the answer; None where nothing does. `budgets`: those that bind it; `named_budgets`: ids of those that its record names.
    """

    __slots__ = (
        "answer_recorder",
        "budgets",
        "caller",
        "charge",
        "dialect",
        "dropped",
        "end_user",
        "grant",
        "guard",
        "hide_continuous",
        "hide_usage",
        "input_tokens_max",
        "measure",
        "model",
        "named_budgets",
        "names",
        "output_cap",
        "output_hold",
        "output_tokens_max",
        "price",
        "prompt_bytes",
        "prompts",
        "repeated",
        "request",
        "response_keeper",
        "sequences",
        "stream",
        "translated",
    )

    def __init__(
        self,
        request: Request,
        caller: Caller,
        grant: ModelGrant,
        model: ModelEntry,
        dialect: Dialect,
        price: PriceVersion,
        names: tuple[str, ...],
        dropped: Sequence[str],
        output_cap: int | None,
        output_tokens_max: int | None,
        input_tokens_max: int,
        prompt_bytes: int,
        stream: bool,
        prompts: int,
        sequences: int,
        hide_usage: bool,
        hide_continuous: bool,
    ) -> None:
        self.request = request
        self.caller = caller
        self.grant = grant
        self.model = model
        self.dialect = dialect
        self.price = price
        self.names = names
        self.dropped = dropped
        self.output_cap = output_cap
        self.output_tokens_max = output_tokens_max
        self.input_tokens_max = input_tokens_max
        self.prompt_bytes = prompt_bytes
        self.stream = stream
        self.prompts = prompts
        self.sequences = sequences
        self.hide_usage = hide_usage
        self.hide_continuous = hide_continuous
        self.budgets = grant.budgets
        self.named_budgets = grant.named_budgets
        self.output_hold: OutputHold | None = None
        self.end_user: str | None = None
        self.repeated: Mapping[str, Any] | None = None
        self.translated: TranslatedBody | None = None
        self.charge: Charge | None = None
        self.answer_recorder: AnswerRecorder | None = None
        self.measure: Measure | None = None
        self.response_keeper: KeepsResponse | None = None
        self.guard: ChecksAnswer | None = None

    def count_in(self, tags: Collection[str], end_user: str | None, key: bytes) -> None:
        """Let budgets on tags and end users count this request, which carries these tags (`domain.budgets.format_tag`) and names this end
        user. `key`: by which budgets of each end user count it.

        A budget that names the end user takes the place of those of each end user of the same key, project or organization."""
        conditional = self.grant.conditional_budgets
        named = {each.subject_id for each in conditional if each.end_user == end_user} if end_user is not None else ()
        found: list[BudgetEntry] = []
        for each in conditional:
            if each.tag and each.tag not in tags:
                continue
            if each.end_user == EACH_END_USER:
                if end_user is not None and each.subject_id not in named:
                    found.append(msgspec.structs.replace(each, id=name_end_user_budget(each.id, end_user, key)))
            elif each.end_user in ("", end_user):
                found.append(each)
        self.budgets = (*self.budgets, *(each for each in found if each.mode is not BudgetMode.ALERT))
        self.named_budgets = (*self.named_budgets, *(each.id for each in found))

    def take_measure(self, measure: Measure, parts: tuple[str, ...]) -> None:
        """Let what a request with media can use bound it, in place of its bytes. `parts`: the fields of the parts of a form, else empty."""
        self.measure = measure
        self.output_tokens_max = measure.output_tokens_max
        if self.dialect.new_media is not None:
            self.stream = True
        if parts:
            self.names = parts
            self.prompt_bytes = 0

    def lower_output(self, tokens: int) -> None:
        """Bound the output of each sequence to `tokens`, in place of what the body says."""
        caps = self.dialect.output_caps
        self.output_cap = tokens
        self.output_tokens_max = tokens * self.sequences
        self.dropped = [*self.dropped, *(field for field in caps[1:] if field in self.names)]

    def list_form_texts(self) -> dict[str, list[str]]:
        """Return the texts of a form by field; files are left out."""
        request = self.request
        texts: dict[str, list[str]] = {}
        for index, name in enumerate(self.names):
            start, end = request.spans[2 * index : 2 * index + 2]
            header, _, content = bodies.cut(request.list_pieces(), start, end).partition(b"\r\n\r\n")
            if b"filename" not in header:
                texts.setdefault(name, []).append(content.decode("utf-8", "replace"))
        return texts

    def release(self) -> None:
        """Release what only another attempt would need: nothing is tried again. A stream may last for minutes."""
        request = self.request
        own_id = request.head.client_request_id
        request.head = RequestHead(request.endpoint, NO_HEADERS, client_request_id=own_id) if own_id else _BARE_HEADS[request.endpoint]
        request.headers = NO_HEADERS
        request.body = b""
        if request.conversation is not None and request.upload is not None:
            request.upload.pieces = ()
        request.traceparent = ""
        self.names = ()
        self.translated = None

    def wants_continuous(self, deployment: Deployment) -> bool:
        """Return whether to ask for running usage. Not where there are several prompts: engines count the input of each by itself then."""
        return self.prompts == 1 and ENGINES[deployment.engine].continuous_usage

    def answer_context(self, deployment: Deployment) -> AnswerContext:
        """Return what is known of this request for whoever reads the answer of `deployment`."""
        engine = ENGINES[deployment.engine]
        return AnswerContext(
            engine,
            deployment.upstream_model,
            self.model.id,
            self.input_tokens_max,
            self.output_tokens_max,
            self.prompts,
            self.sequences,
            self.hide_usage,
            self.hide_continuous,
            not (self.prompts == 1 and engine.continuous_usage),
            self.repeated,
            self.measure,
            self.request.conversation,
        )

    def find_translation(self, deployment: Deployment) -> Translation | None:
        """Return how the request is translated for a deployment; None if that has the API."""
        translation = self.dialect.translation
        return translation if translation is not None and is_translated(deployment, self.dialect.endpoint) else None

    def upstream_body(self, deployment: Deployment, translation: Translation | None) -> bytes:
        """The body for one deployment: the client's values verbatim, or translated, with the fields set that are ours to set. A large body
        holds the event loop meanwhile."""
        request = self.request
        content = request.body if request.upload is None else request.read_body()
        injected = self.find_injected(deployment, translation)
        if self.dialect.form_kinds is not None:
            return b"".join(self._edit_form((content,), injected))
        salt = self.find_prompt_salt(deployment, translation) if deployment.cache_isolation is _PROMPT else b""
        if translation is None:
            if not salt:
                return bodies.edit(content, self.names, injected, self.dropped)
            return salt_body(bodies.edit(content, self.names, injected, self.dropped), self.dialect, salt)
        translated = self.translated or translate_body(translation, bodies.read(content), self.dropped)
        self.repeated = translated.repeated
        return salt_body(bodies.edit(b"".join(translated.pieces), translated.names, injected, ()), translation.target, salt)

    def read_member(self, name: str, size: int) -> bytes:
        """Return the first `size` bytes of a member of the body with its name; the whole body where no places of members are known."""
        upload = self.request.upload
        if upload is None or not upload.spans:
            return self.request.read_body()
        start, end = upload.spans[2 * self.names.index(name) :][:2]
        return bodies.cut(upload.pieces, start, min(end, start + size))

    def edit_upload(self, upload: Upload, deployment: Deployment, translation: Translation | None) -> list[bytes] | None:
        """As `upstream_body`, of a large body and in pieces, without a look at more than its ends. Return None where that does not
        suffice."""
        if self.dialect.form_kinds is not None:
            return self._edit_form(upload.pieces, self.find_injected(deployment, None))
        injected = self.find_injected(deployment, translation)
        if self.find_prompt_salt(deployment, translation):
            return None
        if translation is None:
            return bodies.edit_pieces(upload.pieces, self.names, upload.spans, injected, self.dropped) if upload.spans else None
        translated = self.translated
        if translated is None or not translated.spans:
            return None
        self.repeated = translated.repeated
        return bodies.edit_pieces(translated.pieces, translated.names, translated.spans, injected, ())

    def _edit_form(self, pieces: Sequence[bytes], injected: bodies.InjectedFields) -> list[bytes]:
        request = self.request
        return forms.edit_pieces(pieces, self.names, request.spans, injected.fields, self.dropped, request.find_form_boundary())

    def find_injected(self, deployment: Deployment, translation: Translation | None) -> bodies.InjectedFields:
        """Return the fields that the gateway sets in the body for a deployment."""
        dialect = self.dialect if translation is None else translation.target
        usage, options = None, dialect.usage_options
        if self.stream and options is not None:
            usage = options.continuous if self.wants_continuous(deployment) else options.final
        injected = self.grant.injected_fields(deployment, dialect, usage, self.output_cap, self.price.tier)
        tag = self.request.cache_tag
        if tag:
            source = ENGINES[deployment.engine].cache_events
            if source is not None and dialect.endpoint in source.tag_endpoints:
                return bodies.InjectedFields({**injected.fields, source.tag_field: b'"%b"' % tag})
        return injected

    def find_prompt_salt(self, deployment: Deployment, translation: Translation | None) -> bytes:
        """Return the organization's salt that stands before the prompt, where the deployment is isolated in this way, the API has a system
        prompt and the engine has no salt; else nothing."""
        if deployment.cache_isolation is not _PROMPT or self.model.share_cache:
            return b""
        dialect = self.dialect if translation is None else translation.target
        if dialect.salt_prompt is None or dialect.endpoint in ENGINES[deployment.engine].salted_endpoints:
            return b""
        return self.grant.cache_salt.strip(b'"')


class TranslatedBody(msgspec.Struct, frozen=True):
    """A body of another API, before the fields are set that are ours to set. `names`: of its top level; `spans`: the places of those where
    it is large (`bodies.find_spans`), else empty. `repeated`: the fields of the client's body that an answer repeats."""

    pieces: tuple[bytes, ...]
    names: tuple[str, ...]
    spans: tuple[int, ...]
    repeated: Mapping[str, Any]


def translate_body(translation: Translation, asked: Mapping[str, Any], dropped: Collection[str]) -> TranslatedBody:
    """Return the body that a checked one becomes in the other API. `dropped`: the fields that do not go up. Raises Fault for what that API
    cannot express."""
    translated = translation.translate(asked, frozenset(dropped))
    repeated = {name: asked[name] for name in translation.repeated_fields if name in asked}
    return TranslatedBody((msgspec.json.encode(translated),), tuple(translated), (), repeated)


def salt_body(body: bytes, dialect: Dialect, salt: bytes) -> bytes:
    """Return a body with a salt before its prompt; itself where the salt is empty or the API has no prompt to put it before."""
    if not salt or dialect.salt_prompt is None:
        return body
    members: dict[str, Any] = dict(bodies.members(body))
    dialect.salt_prompt(members, salt)
    return bodies.join(members)


class Ending:
    """The end of a metered request, as phases see it that do not meter. `final`: None until it ended."""

    __slots__ = ("final",)

    def __init__(self) -> None:
        self.final: Ended | None = None


class Permit:
    """A call that passed its limits. Counts as running in `bound` until the block is left. `headers`: lines for the head of the answer.
    `record`: the usage record, once the call is metered."""

    __slots__ = ("bound", "call", "headers", "record")

    def __init__(
        self,
        call: Call,
        headers: bytes,
        bound: MemoryBound | None,
    ) -> None:
        self.call = call
        self.headers = headers
        self.bound = bound
        self.record: Ending | None = None

    def __enter__(self) -> "Permit":
        return self

    def __exit__(self, type: object, error: object, traceback: object) -> None:
        if self.bound is not None:
            self.bound.leave()

    def reduce_input(self, input_tokens: int) -> None:
        """Hold no more input than an engine has counted by now (0: it has not). This permit holds no tokens."""


class ClientGone(Exception):
    """The client closed its connection before its answer was complete."""
