"""Phase 2: may they, and what exactly do they ask? The body is read strictly once; what is judged here is what goes up."""

from collections.abc import Sequence
from typing import Any

from tollway.domain import faults
from tollway.domain.catalog import Endpoint, UnknownParameters
from tollway.domain.faults import Fault
from tollway.domain.prices import PriceVersion, find_list, find_price
from tollway.domain.snapshot import ModelEntry
from tollway.domain.usage import ServiceTier
from tollway.gateway.dialects.fields import NEVER_FORWARDED
from tollway.gateway.dialects.media import MediaBounds
from tollway.gateway.dialects.parts import check_messages
from tollway.gateway.dialects.table import DIALECTS, Dialect
from tollway.gateway.directory import Directory
from tollway.gateway.exchange import Call, Caller, Request
from tollway.wire import bodies

_STANDARD = ServiceTier.STANDARD
_WITHOUT_OUTPUT = frozenset({Endpoint.EMBEDDINGS, Endpoint.COUNT_TOKENS})
_MAX_TOKENS = ("max_tokens", "max_completion_tokens")


def authorize(caller: Caller, request: Request, directory: Directory, media: MediaBounds) -> Call:
    """The call that this request is.

    Raises Fault: 400 for a body, field or value that is not the dialect's, for what its messages must not bring along (413 for too much
    of it: `media`), or a service tier that the model is not offered in, 404
    model_not_found for a model that does not exist, is not allowed to this key, or has no price on the organization's price list (all
    three look the same to the caller).
    """
    asked = bodies.parse(request.body)
    endpoint = request.endpoint
    dialect = DIALECTS[endpoint]
    for required in dialect.required:
        if required not in asked:
            raise Fault(faults.PARAMETER_MISSING, param=required, message=f"Missing required parameter: '{required}'.")
    name = asked["model"]
    model = directory.find_model(name) if type(name) is str else None
    if type(name) is not str:
        raise _invalid("model")
    if model is None or (caller.models is not None and name not in caller.models):
        raise Fault(faults.MODEL_UNKNOWN, param="model")
    price = _find_price(asked, caller, model, request, directory)
    if (Endpoint.MESSAGES if endpoint is Endpoint.COUNT_TOKENS else endpoint) not in model.endpoints:
        raise Fault(faults.ENDPOINT_UNSUPPORTED, param="model")
    dropped = _judge_fields(asked, dialect, model, directory.known_fields(name, endpoint))
    messages = asked.get("messages")  # of whatever dialect: a model's policy may let them through anywhere
    if type(messages) is list:
        check_messages(messages, media)
    output_tokens_max, output_cap = _cap_output(asked, endpoint, model)
    stream = asked.get("stream") is True and "stream" in dialect.fields
    hide_usage = hide_continuous = True
    if stream:
        options = asked.get("stream_options") or {}
        hide_usage = options.get("include_usage") is not True
        hide_continuous = hide_usage or options.get("continuous_usage_stats") is not True
    return Call(
        request,
        caller,
        model,
        price,
        tuple(asked),
        dropped,
        output_cap=output_cap,
        output_tokens_max=output_tokens_max,
        stream=stream,
        choices=_choices(asked, dialect),
        hide_usage=hide_usage,
        hide_continuous=hide_continuous,
    )


def _find_price(asked: dict[str, Any], caller: Caller, model: ModelEntry, request: Request, directory: Directory) -> PriceVersion:
    """The price of this instant: by the organization's terms, in the service tier that is asked for (a value that is none, or where the
    dialect has no tiers, is `_judge_fields`'s to refuse)."""
    at = request.received_at
    wish = asked.get("service_tier")
    tier = DIALECTS[request.endpoint].service_tiers.get(wish, _STANDARD) if type(wish) is str else _STANDARD
    price_list = find_list(caller.organization.terms, at)
    price = find_price(directory.list_prices(model, price_list, tier), at)
    if price is None:
        if tier is not _STANDARD and find_price(directory.list_prices(model, price_list, _STANDARD), at) is not None:
            raise Fault(faults.PARAMETER_INVALID, param="service_tier", message=f"This model is not offered in service tier '{tier}'.")
        raise Fault(faults.MODEL_UNKNOWN, param="model", detail="no price on the organization's price list")
    return price


def _judge_fields(asked: dict[str, Any], dialect: Dialect, model: ModelEntry, known: frozenset[str]) -> Sequence[str]:
    """Check every top-level field; returns those that do not go up."""
    checks = dialect.fields
    dropped = () if dialect.not_forwarded.isdisjoint(asked) else [field for field in asked if field in dialect.not_forwarded]
    for field, value in asked.items():
        check = checks.get(field)
        if check is not None:
            if not check(value):
                raise _invalid(field)
        elif field in NEVER_FORWARDED:
            raise _unknown(field)
        elif field not in known:
            if model.unknown_parameters is UnknownParameters.REFUSE and not dialect.lets_unknown_pass:
                raise _unknown(field)
            if model.unknown_parameters is UnknownParameters.DROP:
                dropped = [*dropped, field]
    return dropped


def _cap_output(asked: dict[str, Any], endpoint: Endpoint, model: ModelEntry) -> tuple[int | None, int | None]:
    """Hold the model's cap on output: a larger wish is refused, a missing one is to be set. Returns the most tokens that all choices
    together can have, None if nothing bounds them; and the cap if it is to be set."""
    if endpoint in _WITHOUT_OUTPUT:
        return 0, None
    cap = model.output_tokens_max
    wished = 0
    checks = DIALECTS[endpoint].fields  # a field that is not the dialect's own may have been let through with any value
    for field in _MAX_TOKENS:
        wish = asked.get(field)
        if wish is not None and field in checks:
            if cap is not None and wish > cap:
                raise Fault(faults.PARAMETER_INVALID, param=field, message=f"'{field}' may be at most {cap} for this model.")
            wished = max(wished, wish)
    most = wished or cap
    if most is None:
        return None, None
    tries = asked.get("best_of") if "best_of" in checks else None
    return most * max(_choices(asked, DIALECTS[endpoint]), tries or 1), None if wished else cap


def _choices(asked: dict[str, Any], dialect: Dialect) -> int:
    """How many answers are asked for at once."""
    return (asked.get("n") or 1) if "n" in dialect.fields else 1


def _invalid(field: str) -> Fault:
    return Fault(faults.PARAMETER_INVALID, param=field, message=f"Invalid value for '{field}'.")


def _unknown(field: str) -> Fault:
    shown = field if field.isascii() and field.replace("_", "").isalnum() and len(field) <= 64 else None
    return Fault(faults.PARAMETER_UNKNOWN, param=shown, message=f"Unrecognized request parameter: '{shown}'." if shown else None)
