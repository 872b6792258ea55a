"""Phase 2: check permissions and the request body. The body is parsed strictly once; what is checked here is what goes to the engine."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final

import msgspec

from tollway.domain import faults
from tollway.domain.budgets import TAG_KEY_CHARACTERS_MAX, TAG_VALUE_CHARACTERS_MAX, TAGS_MAX, format_tag
from tollway.domain.catalog import UnknownParameters
from tollway.domain.faults import Fault
from tollway.domain.prices import PriceVersion
from tollway.domain.usage import ServiceTier
from tollway.gateway.dialects.answers import Measure
from tollway.gateway.dialects.dialect import Dialect
from tollway.gateway.dialects.engine_fields import ENGINE_FIELDS, NOT_OFFERED
from tollway.gateway.dialects.fields import NEVER_FORWARDED, PROMPTS_MAX, is_plain
from tollway.gateway.dialects.image_generations import check_size
from tollway.gateway.dialects.table import DIALECTS
from tollway.gateway.directory import Directory
from tollway.gateway.media.admission import check_items, check_messages
from tollway.gateway.media.bounds import MediaBounds
from tollway.gateway.request import Call, Caller, ModelGrant, Request, TranslatedBody, translate_body
from tollway.wire import bodies, forms

_STANDARD: Final = ServiceTier.STANDARD


def authorize(caller: Caller, request: Request, directory: Directory, media: MediaBounds) -> Call:
    """The call that this request is.

    Raises Fault: 400 for a body, field or value that is not the dialect's, for what its messages must not bring along (413 for too much
    of it: `media`), or a service tier that the model is not offered in, 404
    model_not_found for a model that does not exist, is not allowed to this key, or has no price on the organization's price list (all
    three look the same to the caller).
    """
    dialect = DIALECTS[request.endpoint]
    if dialect.form_kinds is None:
        content = request.body if request.upload is None else request.read_body()
        reader = dialect.plain_reader
        if reader is not None:
            plain = reader.read(content)
            if plain is not None:
                return authorize_body(caller, request, plain, (), directory, media, lacks_arrays=True)
        return authorize_body(caller, request, bodies.read(content), (), directory, media)
    asked, parts = read_body(request, request.read_body())
    return authorize_body(caller, request, asked, parts, directory, media)


def read_body(request: Request, content: bytes) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the fields of a request's body, and of a form the name of the field of each of its parts, whose places `request` gets. Raises
    Fault."""
    kinds = DIALECTS[request.endpoint].form_kinds
    if kinds is None:
        return bodies.read(content), ()
    boundary = forms.find_boundary(request.headers.get(b"content-type", b""))
    if boundary is None:
        raise Fault(faults.FORM_EXPECTED)
    parts = forms.read_parts(content, boundary)
    request.spans = forms.list_spans(parts)
    return forms.read_fields(content, parts, kinds)


def with_model(request: Request, model: str) -> bytes:
    """Return the body of a request with another model, as its client could have sent it. A large body holds the event loop meanwhile."""
    content, name = request.read_body(), msgspec.json.encode(model)
    if DIALECTS[request.endpoint].form_kinds is None:
        return bodies.edit(content, ("model",), bodies.InjectedFields({"model": name}), ())
    _, parts = read_body(request, content)
    boundary = forms.find_boundary(request.headers[b"content-type"]) or b""
    return b"".join(forms.edit_pieces((content,), parts, request.spans, {"model": name}, (), boundary))


def authorize_body(
    caller: Caller,
    request: Request,
    asked: dict[str, Any],
    parts: tuple[str, ...],
    directory: Directory,
    media: MediaBounds,
    *,
    lacks_arrays: bool = False,
) -> Call:
    """The call that a request is whose body was read as `asked`. `parts`: the fields of the parts of a form, else empty. `lacks_arrays`:
    the dialect's reader of plain bodies has read it. Raises as `authorize` does."""
    endpoint = request.endpoint
    dialect = DIALECTS[endpoint]
    plain = lacks_arrays or is_plain(asked, dialect.plain)
    if not plain:
        bodies.check_finite(asked)
        for required in dialect.required:
            if required not in asked:
                raise Fault(faults.PARAMETER_MISSING, param=required, message=f"Missing required parameter: '{required}'.")
        if type(asked["model"]) is not str:
            raise _invalid("model")
    grant = directory.find_grant(caller, asked["model"], endpoint, request.received_at)
    if grant is None:
        raise refuse_model(None)
    price = grant.default if "service_tier" not in asked else _find_price(asked["service_tier"], grant, dialect)
    if price is None or not grant.is_served:
        raise refuse_model(grant, price)
    dropped: Sequence[str] = ()
    media_tokens = 0
    if not dialect.not_forwarded.isdisjoint(asked):
        dropped = [field for field in asked if field in dialect.not_forwarded]
    if not plain:
        dropped = _check_fields(asked, dialect, grant, dropped)
        if "messages" in asked or "system" in asked:  # of whatever dialect: a model's policy may let them through anywhere
            media_tokens = check_messages(asked.get("messages"), asked.get("system"), media)
        if dialect.items_field:
            media_tokens += check_items(asked[dialect.items_field], dialect.items_field, media)
    translated: TranslatedBody | None = None
    if grant.is_translated and dialect.translation is not None:
        whole = bodies.read(request.read_body()) if lacks_arrays else asked
        translated = translate_body(dialect.translation, whole, dropped)
    prompts = 1
    if dialect.prompts_field:
        value = asked[dialect.prompts_field]
        prompts = len(value) if type(value) is list and type(value[0]) is not int else 1
    shared_bytes = (prompts - 1) * len(asked[dialect.shared_field].encode()) if dialect.shared_field and prompts > 1 else 0
    sequences = prompts
    if "n" in asked or "best_of" in asked:
        sequences *= _count_choices(asked, dialect)
        if sequences > PROMPTS_MAX:
            raise Fault(faults.PARAMETER_INVALID, param="n", message=f"A request may ask for at most {PROMPTS_MAX} outputs.")
    input_tokens_max = request.body_bytes + shared_bytes + prompts * dialect.prompt_tokens_added + media_tokens
    measure: Measure | None = None
    if dialect.measure is not None:
        measure = dialect.measure(asked, media)
        input_tokens_max += measure.input_tokens_max - measure.file_bytes
    context_length = grant.model.context_length
    if context_length is not None and prompts * context_length < input_tokens_max:
        input_tokens_max = prompts * context_length
    output_tokens_max, output_cap = _cap_output(asked, dialect, grant.model.output_tokens_max, sequences)
    stream = "stream" in asked and asked["stream"] is True and "stream" in dialect.fields
    hide_usage = hide_continuous = True
    if stream and dialect.usage_options is not None:
        hide_usage, hide_continuous = dialect.usage_options.find_hidden(asked)
    call = Call(
        request,
        caller,
        grant,
        grant.model,
        dialect,
        price,
        tuple(asked),
        dropped,
        output_cap,
        output_tokens_max,
        input_tokens_max,
        0 if media_tokens else request.body_bytes,
        stream,
        prompts,
        sequences,
        hide_usage,
        hide_continuous,
    )
    if translated is not None:
        call.translated = translated
    if measure is not None:
        if dialect.counts_images:
            check_size(measure, price.unit_prices)
        call.take_measure(measure, parts)
    if caller.end_user_limits is not None:
        call.end_user = dialect.find_end_user(asked)
    if grant.conditional_budgets:
        call.count_in(find_tags(asked), dialect.find_end_user(asked), directory.end_user_key)
    return call


def refuse_model(grant: ModelGrant | None, price: PriceVersion | None = None) -> Fault:
    """Return the fault of a request for a model that its caller may not use (None), that has no `price` for the caller, or that is not
    offered at the endpoint."""
    if grant is None:
        return Fault(faults.MODEL_UNKNOWN, param="model")
    if price is None:
        return Fault(faults.MODEL_UNKNOWN, param="model", detail="no price on the organization's price list")
    return Fault(faults.ENDPOINT_UNSUPPORTED, param="model")


def find_tags(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the tags that a body carries in `metadata`, as budgets name them: of its first TAGS_MAX pairs those that are tags."""
    metadata = body.get("metadata")
    pairs = islice(metadata.items(), TAGS_MAX) if isinstance(metadata, dict) else ()
    return tuple(
        format_tag(key, value)
        for key, value in pairs
        if isinstance(value, str) and len(key) <= TAG_KEY_CHARACTERS_MAX and len(value) <= TAG_VALUE_CHARACTERS_MAX
    )


def _find_price(wish: object, grant: ModelGrant, dialect: Dialect) -> PriceVersion | None:
    """The price in the service tier that is asked for (a value that is none, or where the dialect has no tiers, is `_check_fields`'s to
    refuse)."""
    if type(wish) is not str or wish == "auto":
        return grant.default
    tier = dialect.service_tiers.get(wish, _STANDARD)
    price = grant.prices.get(tier)
    if price is None and grant.default is not None:
        raise Fault(faults.PARAMETER_INVALID, param="service_tier", message=f"This model is not offered in service tier '{tier}'.")
    return price


def _check_fields(asked: dict[str, Any], dialect: Dialect, grant: ModelGrant, dropped: Sequence[str]) -> Sequence[str]:
    """Check every top-level field; returns those that do not go up: `dropped`, and what the model's policy adds to it."""
    checks = dialect.fields
    policy = grant.model.unknown_parameters
    dropped = [*dropped]
    for field, value in asked.items():
        check = checks.get(field)
        if check is None:
            if field in NEVER_FORWARDED:
                raise _unknown(field)
            check = ENGINE_FIELDS.get(field)
            if field not in grant.known_fields:
                is_engine_field = check is not None or field in NOT_OFFERED
                if policy is UnknownParameters.REFUSE and (is_engine_field or not dialect.allows_unknown_fields):
                    raise _unknown(field)
                if policy is UnknownParameters.DROP:
                    dropped.append(field)
                    continue
        if check is not None and not check.allows(value):
            raise _invalid(field, check.advice)
    return dropped


def _count_choices(asked: dict[str, Any], dialect: Dialect) -> int:
    """Return how many outputs the engine generates for one prompt: of `best_of` candidates it returns `n`."""
    most = 1
    for field in ("n", "best_of"):
        if field in asked and field in dialect.fields:
            wished = asked[field]
            if wished and wished > most:
                most = wished
    return most


def _cap_output(asked: dict[str, Any], dialect: Dialect, cap: int | None, sequences: int) -> tuple[int | None, int | None]:
    """Apply the model's cap on the output of one sequence: a larger wish is refused (Fault invalid_value), a missing one is to be set.

    Return the most tokens that all sequences together can have, None if nothing bounds them; and the cap if it is to be set.
    """
    if not dialect.has_output:
        return 0, None
    wished: int | None = None
    for field in dialect.output_caps:
        wish = asked.get(field)
        if wish is not None:
            if cap is not None and wish > cap:
                raise Fault(faults.PARAMETER_INVALID, param=field, message=f"'{field}' may be at most {cap} for this model.")
            if wished is None or wish > wished:
                wished = wish
    most = cap if wished is None else wished
    return None if most is None else most * sequences, cap if wished is None else None


def _invalid(field: str, advice: str = "") -> Fault:
    message = f"Invalid value for '{field}'."
    return Fault(faults.PARAMETER_INVALID, param=field, message=f"{message} {advice}" if advice else message)


def _unknown(field: str) -> Fault:
    shown = field if field.isascii() and field.replace("_", "").isalnum() and len(field) <= 64 else None
    return Fault(faults.PARAMETER_UNKNOWN, param=shown, message=f"Unrecognized request parameter: '{shown}'." if shown else None)
