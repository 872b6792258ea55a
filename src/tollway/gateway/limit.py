"""Phase 3: apply the limits of all levels, in one decision that admits the request everywhere or changes nothing.

Requests count when they are admitted, and as running until the last byte. Tokens are reserved at admission, by an estimate of the input
and the bound on the output, and settled on what the usage record says when the request ends; a request that ends in any other way settles
on nothing. The headers of the answer and the text of a refusal come from the same decision."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

from tollway.domain.catalog import covers_model, find_group
from tollway.domain.faults import CONCURRENCY_EXCEEDED, REQUESTS_EXCEEDED, TOKENS_EXCEEDED, Fault
from tollway.domain.limits import LevelLimits, LimitLevel, Quantity, Standing, find_binding
from tollway.domain.usage import UsageSource
from tollway.gateway.counters import (
    AUDIO_SECONDS,
    HEADER_KINDS,
    IMAGES,
    INPUT_TOKENS,
    ONE_REQUEST,
    OUTPUT_TOKENS,
    REQUESTS,
    TOKENS,
    UNLIMITED,
    Counters,
    EndUserLimits,
    Hold,
    Refusal,
    Remainder,
    Units,
)
from tollway.gateway.dialects.answers import Measure
from tollway.gateway.memory_counters import MemoryBound, MemoryCounters, MemoryHold
from tollway.gateway.request import Call, Caller, Permit
from tollway.telemetry import Metrics, timestamp

OUTPUT_TOKENS_ASSUMED: Final = 4096
"""Output that is reserved for each sequence where neither the request nor its model bounds it, as far as the limits allow it at all."""

MEDIA_SHARE = 16
"""Media are reserved as this part of the most tokens that a model can read them as (2,048 for a picture), which is what they usually
are."""

TEXT_BYTES_BESIDE_MEDIA = 65_536
"""Bytes of a body with media that are taken for text: the rest is the media's own data, which say nothing of tokens."""

DENSITY_BYTES_MIN: Final = 512
"""Bodies from this size on teach how many tokens a KiB has: in smaller ones the chat template outweighs the text."""

CONCURRENCY_SECONDS_MIN, CONCURRENCY_SECONDS_MAX = 0.05, 30.0
"""Bounds of the `retry-after` of a client that met a concurrency limit."""

_LEVEL_WORDS = {
    LimitLevel.END_USER: "end user",
    LimitLevel.API_KEY: "API key",
    LimitLevel.SERVICE_ACCOUNT: "service account",
    LimitLevel.PROJECT: "project",
    LimitLevel.ORGANIZATION: "organization",
}


_REMEDIES = {IMAGES: "ask for fewer images at a time", AUDIO_SECONDS: "send a shorter sound"}
"""Advice for a request that is larger than a limit, by quantity, where that is no limit on tokens."""


def limit(call: Call, counters: Counters, clock: Callable[[], int], metrics: Metrics) -> "Permit | Undecided":
    """Return a permit for this call, to be held to the last byte (`with`). `clock`: monotonic nanoseconds.

    Raises Fault rate_limit_exceeded (429) that names the limit, with the time after which to try again.
    """
    now_ns = clock()
    grant = call.grant
    bound = grant.bound
    if bound is None:
        bound = grant.bound = counters.bind(call.caller.organization.id, _list_limits(call), now_ns)
        grant.end_user_limits = _find_end_user_limits(call)
    if call.end_user is not None and grant.end_user_limits is not None:
        bound = counters.bind_end_user(bound, grant.end_user_limits, call.end_user, now_ns)
    if bound.is_held:
        hold = counters.reserve(bound, _estimate(call, bound.output_size_min, bound.tokens_size_min), now_ns)
        if hold.is_decided:
            return _conclude(call, hold, clock, now_ns, metrics)
        return Undecided(call, hold, clock, metrics)
    if bound.is_empty:
        return Permit(call, b"", None)
    assert isinstance(bound, MemoryBound)  # shared counters hold whatever they bind
    left = bound.enter(now_ns)
    if left is None:
        raise _refuse_hold(call, counters.reserve(bound, ONE_REQUEST, now_ns), now_ns, metrics)
    if call.dialect.limit_prefix:
        return Permit(call, _headers(call, bound.find_tightest(now_ns)), bound)
    return Permit(call, _request_headers(left[0], left[1]) if left[0] != UNLIMITED else b"", bound)


class Undecided:
    """A call that counters elsewhere decide on."""

    __slots__ = ("_call", "_clock", "_hold", "_metrics")

    def __init__(self, call: Call, hold: Hold, clock: Callable[[], int], metrics: Metrics) -> None:
        self._call = call
        self._hold = hold
        self._clock = clock
        self._metrics = metrics

    async def wait(self) -> Permit:
        """Return the permit once it is decided. Raises as `limit` does. Where the wait is interrupted, nothing is held."""
        await self._hold.wait()
        return _conclude(self._call, self._hold, self._clock, self._clock(), self._metrics)


def _conclude(call: Call, hold: Hold, clock: Callable[[], int], now_ns: int, metrics: Metrics) -> Permit:
    if not hold.is_admitted:
        raise _refuse_hold(call, hold, now_ns, metrics)
    if hold.is_summarized and not call.dialect.limit_prefix:
        return Reservation(call, _summary_headers(hold), hold, clock)
    return Reservation(call, _headers(call, hold.find_tightest(now_ns)), hold, clock)


_COUNTED_BY_ENGINE: Final = UsageSource.ENGINE_FINAL


def charge_upload(caller: Caller, counters: MemoryCounters, now_ns: int, metrics: Metrics) -> MemoryHold | None:
    """Charge a request whose body is still to be read to the limits of its caller that hold for every model; return None if there are none.
    Raises Fault rate_limit_exceeded."""
    limits = [each for each in caller.principal.limits if not each.model]
    bound = counters.bind(caller.organization.id, limits, now_ns)
    if bound.is_empty:
        return None
    hold = counters.reserve(bound, ONE_REQUEST, now_ns)
    if not hold.is_admitted:
        raise _refuse_hold(None, hold, now_ns, metrics)
    return hold


def _list_limits(call: Call) -> list[LevelLimits]:
    model = call.model
    return [each for each in call.caller.principal.limits if covers_model(each.model, model.id, model.groups)]


def _find_end_user_limits(call: Call) -> EndUserLimits | None:
    """Return the limits of each end user that bind requests for this model; None if there are none."""
    of, model = call.caller.end_user_limits, call.model
    if of is None:
        return None
    limits = tuple(each for each in of.limits if covers_model(each[0], model.id, model.groups))
    return of._replace(limits=limits) if limits else None


class Reservation(Permit):
    """A permit that holds tokens: settled on what was used when the block is left, however it is left."""

    __slots__ = ("_clock", "_hold")

    def __init__(self, call: Call, headers: bytes, hold: Hold, clock: Callable[[], int]) -> None:
        super().__init__(call, headers, None)
        self._hold = hold
        self._clock = clock

    def __exit__(self, type: object, error: object, traceback: object) -> None:
        self._hold.settle(_find_used(self), self._clock())

    def reduce_input(self, input_tokens: int) -> None:
        """Hold no more input than an engine has counted by now (0: it has not): the rest of the estimate returns at once."""
        units = self._hold.units
        if 0 < input_tokens < units[INPUT_TOKENS]:
            self._hold.reduce(_with_input(units, input_tokens))


def _with_input(units: Units, input_tokens: int) -> Units:
    """Return what a request that holds `units` holds once its engine has counted the prompt."""
    return 1, input_tokens + units[OUTPUT_TOKENS], input_tokens, units[OUTPUT_TOKENS], units[IMAGES], units[AUDIO_SECONDS]


def _find_used(permit: Permit) -> Units:
    """Return what the request of a permit used, once it ended, and learn from it."""
    record = permit.record
    final = None if record is None else record.final
    if final is None:
        return ONE_REQUEST
    quantities = final.used
    input_tokens, output_tokens = quantities.input_tokens, quantities.output_tokens
    call = permit.call
    if call.prompt_bytes >= DENSITY_BYTES_MIN and final.source is _COUNTED_BY_ENGINE and final.anomaly is None:
        learn_density(call, input_tokens)
    other = quantities.other
    if other is None:
        return 1, input_tokens + output_tokens, input_tokens, output_tokens, 0, 0
    return 1, input_tokens + output_tokens, input_tokens, output_tokens, other.images, other.seconds


def learn_density(call: Call, input_tokens: int) -> None:
    """Note how many tokens a KiB of the body had. A higher density counts at once, a lower one slowly: the estimate is an upper one."""
    grant = call.grant
    density = -(-input_tokens * 1024 // call.prompt_bytes)
    known = grant.input_density
    if density < known:
        density = known - (known - density + 63) // 64
    grant.input_density = density if density < 1024 else 1024


def _estimate(call: Call, output_size_min: int, tokens_size_min: int) -> Units:
    """Return what a request is reserved. Where nothing bounds its output, that is never more than these limits admit at all."""
    if call.measure is not None:
        return _measured(call, call.measure)
    density = call.grant.input_density
    prompt_bytes = call.prompt_bytes
    input_tokens = (prompt_bytes * density >> 10) + 1 if prompt_bytes else _estimate_media(call, density)
    if input_tokens > call.input_tokens_max:
        input_tokens = call.input_tokens_max
    output_tokens = call.output_tokens_max
    if output_tokens is None:
        output_tokens = min(OUTPUT_TOKENS_ASSUMED * call.sequences, output_size_min, max(tokens_size_min - input_tokens, 0))
    images = call.sequences if call.dialect.counts_images else 0
    return 1, input_tokens + output_tokens, input_tokens, output_tokens, images, 0


def _measured(call: Call, measure: Measure) -> Units:
    """Return what a request with media is reserved."""
    text_bytes = min(call.request.body_bytes - measure.file_bytes, TEXT_BYTES_BESIDE_MEDIA)
    input_tokens = min((text_bytes * call.grant.input_density >> 10) + measure.input_tokens + 1, call.input_tokens_max)
    images = call.sequences if call.dialect.counts_images else 0
    return 1, input_tokens + measure.output_tokens, input_tokens, measure.output_tokens, images, measure.seconds


def estimate_tokens(call: Call) -> int:
    """Return how many tokens a request may use, as they would be reserved if no limit were near."""
    return _estimate(call, _UNBOUNDED, _UNBOUNDED)[TOKENS]


def estimate_units(call: Call, standings: Sequence[Standing]) -> Units:
    """Return what a request would reserve where these limits bind it."""
    sizes: dict[Quantity, int] = {}
    for each in standings:
        if each.dimension.window_ns:
            sizes[each.dimension.quantity] = min(each.size, sizes.get(each.dimension.quantity, _UNBOUNDED))
    return _estimate(call, sizes.get(Quantity.OUTPUT_TOKENS, _UNBOUNDED), sizes.get(Quantity.TOKENS, _UNBOUNDED))


_UNBOUNDED = 1 << 62


def _estimate_media(call: Call, density: int) -> int:
    body_bytes = call.request.body_bytes
    media_tokens = call.input_tokens_max - body_bytes - call.prompts * call.dialect.prompt_tokens_added
    return (min(body_bytes, TEXT_BYTES_BESIDE_MEDIA) * density >> 10) + media_tokens // MEDIA_SHARE + 1


def _refuse_hold(call: Call | None, hold: Hold, now_ns: int, metrics: Metrics) -> Fault:
    return _refuse(call, hold.find_refusal(), _headers(call, hold.find_tightest(now_ns)), metrics)


def _refuse(call: Call | None, refusal: Refusal, headers: bytes, metrics: Metrics) -> Fault:
    """Return the fault that says which limit refused a request, and when or whether trying again helps. `headers`: what is left."""
    owner = refusal.owner
    group = find_group(owner.model)
    of_model = "" if not owner.model else f" for model {owner.model}" if group is None else f" for the group of models {group}"
    id = owner.id
    if owner.level is LimitLevel.END_USER:
        project_id, _, digest = id.partition(":")
        id = f"{digest[:12]} of project {project_id}"
    place = f"{_LEVEL_WORDS[owner.level]} {id}{of_model}"
    kind = TOKENS_EXCEEDED if REQUESTS < refusal.quantity < IMAGES else REQUESTS_EXCEEDED
    if refusal.is_permanent:
        message = (
            f"Request too large: it asks for {refusal.requested} {refusal.words}, and the limit of {place} is {refusal.size}. "
            f"Trying again cannot help: {_REMEDIES.get(refusal.quantity, 'shorten the input or lower the bound on the output')}."
        )
        return Fault(kind, message=message, headers=headers + b"x-should-retry: false\r\n")
    seconds = _find_typical_seconds(call, metrics, refusal) if refusal.wait_ns is None else refusal.wait_ns / 1000000000.0
    if refusal.is_concurrency:
        message = f"Too many concurrent requests: {place} may run {refusal.size} at a time. Try again in {format_seconds(seconds)}."
        return Fault(CONCURRENCY_EXCEEDED, message=message, retry_after_seconds=seconds, headers=headers)
    message = (
        f"Rate limit reached for {refusal.words} of {place}: limit {refusal.size}, used {refusal.used}, requested {refusal.requested}. "
        f"Try again in {format_seconds(seconds)}."
    )
    return Fault(kind, message=message, retry_after_seconds=seconds, headers=headers)


def _find_typical_seconds(call: Call | None, metrics: Metrics, refusal: Refusal) -> float:
    """Return when capacity is likely: the mean time that requests of the model take, over the number of those that may end; 1 s if none has
    ended yet, or the model is not known yet."""
    if call is None:
        return 1.0
    duration = metrics.of_model(call.request.endpoint, call.model.id).duration
    ended = sum(duration.counts)
    if not ended:
        return 1.0
    return min(max(duration.sum / ended / refusal.running, CONCURRENCY_SECONDS_MIN), CONCURRENCY_SECONDS_MAX)


def _headers(call: Call | None, tightest: Sequence[Remainder | None]) -> bytes:
    """Return the header lines for the tightest limit of each of HEADER_KINDS. Where the API of the call has names of its own for those on
    requests and tokens, the lines under these names follow, with the instant of the reset (RFC 3339) in place of a duration."""
    lines = b""
    for name, left in zip(HEADER_KINDS, tightest, strict=True):
        if left is not None:
            lines += _LINES % (name, left.size, name, left.remaining, name, _format_reset(left))
    if call is not None and call.dialect.limit_prefix:
        for name, left in zip(HEADER_KINDS[:2], tightest[:2], strict=True):
            if left is not None:
                prefix = call.dialect.limit_prefix + name
                reset = timestamp(call.request.received_at + left.reset_ns // 1000).encode()
                lines += _PREFIXED_LINES % (prefix, left.size, prefix, left.remaining, prefix, reset)
    return lines


def _summary_headers(hold: Hold) -> bytes:
    """Return what `_headers` would, from what the decision found already."""
    per_minute = hold.requests_per_minute
    lines = _request_headers(per_minute, hold.requests_left) if per_minute != UNLIMITED else b""
    if hold.tokens_size == UNLIMITED:
        return lines
    return lines + _TOKEN_LINES % (hold.tokens_size, hold.tokens_left, _reset_tokens(hold.tokens_reset_ms))


_TOKEN_LINES = b"x-ratelimit-limit-tokens: %d\r\nx-ratelimit-remaining-tokens: %d\r\nx-ratelimit-reset-tokens: %b\r\n"


@lru_cache(1024)
def _reset_tokens(milliseconds: int) -> bytes:
    return format_duration(milliseconds)


def describe_limits(standings: Sequence[Standing]) -> list[dict[str, object]]:
    """Return how each limit of a caller stands. `binds`: of the limits on the same thing, this one has the least left."""
    binding = find_binding(standings)
    return [
        {
            "object": "limit",
            "level": each.owner.level,
            "id": each.owner.id,
            "model": each.owner.model or None,
            "dimension": each.dimension.name,
            "limit": each.size,
            "used": each.used,
            "reserved": each.held,
            "remaining": each.remaining,
            "reset_seconds": None if each.reset_ns is None else -(-each.reset_ns // 1_000_000) / 1000,
            "binds": any(each is other for other in binding),
        }
        for each in standings
    ]


_PREFIXED_LINES = b"%b-limit: %d\r\n%b-remaining: %d\r\n%b-reset: %b\r\n"
_LINES = b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\nx-ratelimit-reset-%b: %b\r\n"


def _format_reset(left: Remainder) -> bytes:
    return format_duration(-(-left.reset_ns // 1_000_000))


@lru_cache(1024)
def _request_headers(per_minute: int, remaining: int) -> bytes:
    reset = format_duration(-(-(per_minute - remaining) * 60_000 // per_minute))
    return _LINES % (b"requests", per_minute, b"requests", remaining, b"requests", reset)


def format_duration(milliseconds: int) -> bytes:
    """Return a duration as OpenAI writes it: 12ms, 1.5s, 6m0s, 2h0m0s."""
    if milliseconds < 1000:
        return b"%dms" % milliseconds
    seconds, rest = divmod(milliseconds, 1000)
    fraction = (b".%03d" % rest).rstrip(b"0") if rest else b""
    if seconds < 60:
        return b"%d%bs" % (seconds, fraction)
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return b"%dm%d%bs" % (minutes, seconds, fraction)
    return b"%dh%dm%d%bs" % (minutes // 60, minutes % 60, seconds, fraction)


def format_seconds(seconds: float) -> str:
    """Return a duration for a message, rounded up to a millisecond."""
    return format_duration(max(1, int(-(-seconds * 1000 // 1)))).decode()
