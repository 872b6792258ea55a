"""Usage: what a gateway writes about a request, what of it is billed, and what the ledger keeps.

A request writes ADMIT before its upstream is called and exactly one FINAL, whatever happens; PROGRESS in between keeps what was
delivered so far; TICK says that a node was alive; CLOSE ends an epoch. FINAL carries its ADMIT, so an event can be built, rated and
verified from one record alone. Which outcome bills what is data with a version (OUTCOME_POLICIES), published, and named on each event.

The structs hold nothing that could lead back to them, so the garbage collector need not look at them (`gc=False`).
"""

import hashlib
from enum import StrEnum

import msgspec

from tollway.domain.billing_classes import NOTHING, Amounts, Quantities
from tollway.domain.catalog import Endpoint

TOKENS_MAX = 2**31 - 1
"""Most tokens that one class of one request may count. A report above it is engine nonsense."""


CHOICES_MAX = 2048
"""Most outputs that one request may ask for, over all of its prompts."""

BUDGETS_MAX = 60
"""Most budgets that one record names: 20 of its key, its project and its organization each (`domain.budgets`)."""


class Outcome(StrEnum):
    """End of an admitted request; exactly one per request."""

    __hash__ = str.__hash__  # the text's own: Enum's is a call into Python, and members are keys on the request path

    COMPLETED = "completed"
    CLIENT_CANCELLED = "client_cancelled"
    UPSTREAM_ERROR = "upstream_error"
    TIMEOUT = "timeout"
    BUDGET_STOPPED = "budget_stopped"
    GATEWAY_CRASH = "gateway_crash"


class UsageSource(StrEnum):
    """Sources of the counts, best first."""

    __hash__ = str.__hash__  # the text's own: Enum's is a call into Python, and members are keys on the request path

    ENGINE_FINAL = "engine_final"  # the engine's own total at the end
    ENGINE_CONTINUOUS = "engine_continuous"  # the engine's running total on the last chunk relayed
    COUNTED = "counted"  # events that carried output, counted as they were relayed
    ESTIMATED = "estimated"  # input estimated from the bytes of the request; output counted or reported
    RECOVERED = "recovered"  # the last checkpoint of a gateway that died
    NONE = "none"  # the engine was never reached, or said nothing


class ServiceTier(StrEnum):
    """Urgency of a request, which decides its price. A model has a tier where its price list has a price for it."""

    STANDARD = "standard"
    FLEX = "flex"  # cheaper, later
    PRIORITY = "priority"  # dearer, sooner
    BATCH = "batch"  # cheapest, within a day


class Anomaly(StrEnum):
    """Faults of an engine's usage report. None of them raises a bill: see `gateway.dialects.answers`."""

    MISSING = "usage_missing"  # a completed request without a report: what was counted on the way is billed
    INVALID = "usage_invalid"  # counts that are negative or no numbers, parts larger than their whole: dropped or capped
    INFLATED = "usage_inflated"  # more input than the request can hold, more output than asked for or delivered: held to that
    SHRINKING = "usage_shrinking"  # a running total that fell: the larger one stands until the final total


class Admit(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="record", tag="admit", omit_defaults=True):
    """A request was admitted: on disk (page cache at least) before an engine hears of it.

    `price_hash`: of its price and of the terms by which its organization paid that price (`domain.proofs.hash_price`). `service_tier` is
    that of its price. `test`: it was sent with a test key, and is not billed. `choices`: how many outputs the engine generates for each
    prompt, 1 to CHOICES_MAX: some engines count a prompt once for each of them. `budgets`: ids of the budgets that count this request and
    not all requests of its key, project or organization, at most BUDGETS_MAX.
    """

    request_id: str
    admitted_at: int
    organization_id: str
    project_id: str
    key_id: str
    model: str
    endpoint: str
    stream: bool
    price_version: str
    price_hash: str
    outcome_policy: int
    service_tier: ServiceTier = ServiceTier.STANDARD
    test: bool = False
    choices: int = 1
    budgets: tuple[str, ...] = ()


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag="progress", omit_defaults=True):
    """The output that a stream had delivered at some point: enough to bill it if the gateway dies.

    `retries`: upstreams that were asked before the one that delivered it. What those used is not the request's.
    """

    request_id: str
    used: Quantities
    retries: int = 0


class Final(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="record", tag="final", omit_defaults=True):
    """The end of a request and what it used. `used` is what was counted; what is billed follows from the outcome policy.

    `deployment_id` and `attempts`: who served it, after how many tries (0: no upstream was reached). `first_token_at`: None if no
    token was seen. `error`: code of the fault that ended it, None if completed or cancelled. `anomaly`: what was
    wrong with the engine's report of usage, None if nothing.
    """

    admit: Admit
    outcome: Outcome
    used: Quantities
    source: UsageSource
    ended_at: int
    deployment_id: str | None = None
    attempts: int = 0
    first_token_at: int | None = None
    error: str | None = None
    anomaly: Anomaly | None = None


class Ended(msgspec.Struct, frozen=True, gc=False, tag_field="record", tag="final", omit_defaults=True):
    """A FINAL around an ADMIT that is encoded already, or not decoded yet: a `Final` to whoever decodes it."""

    admit: msgspec.Raw
    outcome: Outcome
    used: Quantities
    source: UsageSource
    ended_at: int
    deployment_id: str | None = None
    attempts: int = 0
    first_token_at: int | None = None
    error: str | None = None
    anomaly: Anomaly | None = None


class Tick(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag="tick"):
    """The node was alive at `at`: lets a billing period end be proven on a quiet node."""

    at: int


class Close(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag="close"):
    """The last record of an epoch, after a clean stop or a recovery: nothing follows, every ADMIT before it has its FINAL."""

    at: int


Record = Admit | Progress | Final | Tick | Close


class UsageEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A FINAL as the ledger accepted it: its place in the node's dense sequence, what it costs, and the billing period in which it is
    booked (by its start). Immutable."""

    node_id: str
    epoch: int
    seq: int
    final: Final
    content_hash: bytes
    amounts: Amounts
    period_at: int


class RejectedRecord(msgspec.Struct, frozen=True, gc=False):
    """A record that did not become an event, with its bytes as they came.

    `event_id` and `content_hash` are empty if it could not be read. `reason`: "conflict" if its id is that of another event, else why it
    cannot be rated. `organization_id` and `served_at` (the instant at which its request ended) are None where that cannot be known.
    """

    node_id: str
    epoch: int
    seq: int
    event_id: str | None
    payload: bytes
    content_hash: bytes
    reason: str
    organization_id: str | None = None
    served_at: int | None = None


class OutcomePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """The outcomes that bill their tokens always, and those that bill them only once output was delivered. All others bill nothing.

    `bills_request`: the outcomes that bill the request itself too. `unbilled_endpoints`: endpoints whose requests bill nothing at all.
    Requests of test keys bill nothing by any version.
    """

    version: int
    bills: frozenset[Outcome]
    bills_after_first_token: frozenset[Outcome]
    bills_request: frozenset[Outcome]
    unbilled_endpoints: frozenset[str] = frozenset()


OUTCOME_POLICIES: dict[int, OutcomePolicy] = {
    1: OutcomePolicy(
        version=1,
        bills=frozenset({Outcome.COMPLETED, Outcome.CLIENT_CANCELLED, Outcome.BUDGET_STOPPED, Outcome.GATEWAY_CRASH}),
        bills_after_first_token=frozenset({Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT}),
        bills_request=frozenset({Outcome.COMPLETED}),
    ),
    2: OutcomePolicy(
        version=2,
        bills=frozenset({Outcome.COMPLETED, Outcome.CLIENT_CANCELLED, Outcome.BUDGET_STOPPED, Outcome.GATEWAY_CRASH}),
        bills_after_first_token=frozenset({Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT}),
        bills_request=frozenset({Outcome.COMPLETED}),
    ),
    3: OutcomePolicy(
        version=3,
        bills=frozenset({Outcome.COMPLETED, Outcome.CLIENT_CANCELLED, Outcome.BUDGET_STOPPED, Outcome.GATEWAY_CRASH}),
        bills_after_first_token=frozenset({Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT}),
        bills_request=frozenset({Outcome.COMPLETED}),
        unbilled_endpoints=frozenset({Endpoint.COUNT_TOKENS}),
    ),
    4: OutcomePolicy(
        version=4,
        bills=frozenset({Outcome.COMPLETED, Outcome.CLIENT_CANCELLED, Outcome.BUDGET_STOPPED, Outcome.GATEWAY_CRASH}),
        bills_after_first_token=frozenset({Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT}),
        bills_request=frozenset({Outcome.COMPLETED}),
        unbilled_endpoints=frozenset({Endpoint.COUNT_TOKENS, Endpoint.TOKENIZE, Endpoint.DETOKENIZE}),
    ),
    5: OutcomePolicy(
        version=5,
        bills=frozenset({Outcome.COMPLETED, Outcome.CLIENT_CANCELLED, Outcome.BUDGET_STOPPED, Outcome.GATEWAY_CRASH}),
        bills_after_first_token=frozenset({Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT}),
        bills_request=frozenset({Outcome.COMPLETED}),
        unbilled_endpoints=frozenset({Endpoint.COUNT_TOKENS, Endpoint.INPUT_TOKENS, Endpoint.TOKENIZE, Endpoint.DETOKENIZE}),
    ),
}
"""Published policies by version; a version is never edited, only followed by the next.

Version 1: completed requests bill what the engine reported. A client that leaves pays for the input and the tokens generated for
it as far as the engine had reported them. Requests cut by an error of the platform or of the engine pay for what was delivered, and
nothing if no token was. A crash of the gateway bills the last checkpoint, which never exceeds what the engine generated.

Version 2: the same outcomes, with one more quantity. Where an engine reported no input although output was delivered, and the request ended
in one of ESTIMATING, its record carries an estimate of the input, marked by the source ESTIMATED.

Version 3: endpoints that generate and embed nothing bill nothing, not even the price per request. So usage and costs, neither of which
shows them, speak of the same requests.

Version 4: neither do tokenizing and its reverse.

Version 5: nor does counting the input of a response.
"""
OUTCOME_POLICY_CURRENT = 5

ESTIMATING = frozenset({Outcome.COMPLETED, Outcome.CLIENT_CANCELLED, Outcome.BUDGET_STOPPED})
"""Outcomes of requests whose input a gateway estimates if the engine did not report it. A fault of the platform or of an engine is not
among them: who was not served as promised pays for nothing that nobody counted."""


def bills(policy: OutcomePolicy, endpoint: str, outcome: Outcome, *, delivered: bool) -> tuple[bool, bool]:
    """Return whether requests to an endpoint that ended so bill their tokens, and themselves. `delivered`: some output was."""
    if endpoint in policy.unbilled_endpoints:
        return False, False
    if outcome in policy.bills or (outcome in policy.bills_after_first_token and delivered):
        return True, outcome in policy.bills_request
    return False, False


def _list_bills(policy: OutcomePolicy, *, delivered: bool) -> dict[Outcome, tuple[bool, int]]:
    found = {outcome: bills(policy, "", outcome, delivered=delivered) for outcome in Outcome}
    return {outcome: (tokens, int(request)) for outcome, (tokens, request) in found.items()}


BILLS = {
    (version, delivered): _list_bills(policy, delivered=delivered)
    for version, policy in OUTCOME_POLICIES.items()
    for delivered in (False, True)
}
"""`bills` of every case at endpoints that are billed."""


class UnbilledReason(StrEnum):
    """Reasons why a request bills nothing, whatever it used."""

    TEST_KEY = "test_key"  # it was sent with a test key
    ENDPOINT = "endpoint"  # its endpoint generates nothing
    OUTCOME = "outcome"  # it ended in a way that is not billed


def find_unbilled_reason(final: Final) -> UnbilledReason | None:
    """Return why an event bills nothing; None if it bills what it used."""
    admit = final.admit
    policy, delivered = OUTCOME_POLICIES[admit.outcome_policy], final.used.output_tokens > 0
    if admit.test:
        return UnbilledReason.TEST_KEY
    if admit.endpoint in policy.unbilled_endpoints:
        return UnbilledReason.ENDPOINT
    return None if any(bills(policy, admit.endpoint, final.outcome, delivered=delivered)) else UnbilledReason.OUTCOME


def billed(final: Final) -> Quantities:
    """Return what the event's own outcome policy bills of it; `request` is 1 if the request itself is billed."""
    admit = final.admit
    return NOTHING if admit.test else billed_by(admit.outcome_policy, admit.endpoint, final)


def billed_by(policy_version: int, endpoint: str, final: Final | Ended) -> Quantities:
    """Return what a given version of the outcome policy bills of a FINAL whose request was sent to `endpoint` with a live key."""
    if endpoint in OUTCOME_POLICIES[policy_version].unbilled_endpoints:
        return NOTHING
    used = final.used
    tokens, request = BILLS[policy_version, used.output_tokens > 0][final.outcome]
    return used.with_request(request) if tokens else _REQUEST_ONLY[request]


_REQUEST_ONLY = (NOTHING, Quantities(request=1))


_encoder = msgspec.json.Encoder()
_record_decoder = msgspec.json.Decoder(Record)
_admit_decoder = msgspec.json.Decoder(Admit)
_final_decoder = msgspec.json.Decoder(Final)
_ended_decoder = msgspec.json.Decoder(Ended)

ADMIT_HEAD = b'{"record":"admit",'
FINAL_HEAD = b'{"record":"final",'
"""Beginnings of both records, by which they are recognised without being decoded: the one encoding puts the tag first."""


def encode(record: Record | Ended) -> bytes:
    """The one encoding of a record: JSON with fields in declared order. Its SHA-256 is the event's content hash."""
    return _encoder.encode(record)


def decode(payload: bytes) -> Record:
    """Read a record back. Raises ValueError for anything that is not one, however deep it is."""
    try:
        record: Record = _record_decoder.decode(payload)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return record


def decode_final(payload: bytes) -> Final:
    """As `decode`, for what begins with FINAL_HEAD, at half the price."""
    final: Final = _final_decoder.decode(payload)
    return final


def decode_ended(payload: bytes) -> Ended:
    """Read a FINAL without its ADMIT, which `decode_admit` reads. Raises ValueError for anything that is not one, however deep it is."""
    try:
        ended: Ended = _ended_decoder.decode(payload)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return ended


def decode_admit(payload: bytes) -> Admit:
    """As `decode`, of what is known to be an ADMIT."""
    admit: Admit = _admit_decoder.decode(payload)
    return admit


def content_hash(payload: bytes) -> bytes:
    """SHA-256 of the encoded FINAL: the same id with another hash is a conflict, never a replacement."""
    return hashlib.sha256(payload).digest()
