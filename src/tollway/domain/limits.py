"""Rate limits: what can be limited and at which levels, and the rule that decides: the generic cell rate algorithm (GCRA; ITU-T I.371).

A limit is a size for one dimension (`DIMENSIONS`). A rate is a bucket that holds `size` units and drains `size` units per window, evenly:
the burst is one window's worth, there is no window edge at which twice the limit passes, and an idle bucket needs no storage. Its state is
one integer, the theoretical arrival time (TAT): the instant at which it will be empty.

All arithmetic is exact. Time runs in `size / gcd` ticks per nanosecond and a unit costs `window / gcd` ticks (gcd: of the size and the
window), so neither a tick nor a unit is ever rounded, whatever the size.

Units whose number is known only later, such as the tokens of an answer, are held from admission until they are settled. A hold takes up
space in the bucket and does not drain; what was used is charged when it is settled. So `debt + held <= burst` after every admission, and
over any window of time the admitted work is at most `burst + rate x window` (docs/limits.md).
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from math import gcd
from typing import NamedTuple

import msgspec

SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS
DAY_NS = 86_400 * SECOND_NS

REQUESTS_PER_MINUTE_MAX = 1_000_000
TOKENS_PER_MINUTE_MAX = 1_000_000_000
IMAGES_PER_MINUTE_MAX = 1_000_000
AUDIO_SECONDS_PER_MINUTE_MAX = 1_000_000_000
CONCURRENT_REQUESTS_MAX = 1_000_000
MINUTES_PER_DAY = 1440


class LimitLevel(StrEnum):
    """The kind of thing that a limit belongs to, innermost first. A request counts at every level that it has. An end user is a person or
    program behind a tenant's application; each one of a project has the limits that the project sets for all of them."""

    END_USER = "end_user"
    API_KEY = "api_key"
    SERVICE_ACCOUNT = "service_account"
    PROJECT = "project"
    ORGANIZATION = "organization"


class Quantity(StrEnum):
    """The unit that a limit counts. Tokens are input and output together, images those that are made, seconds those of sound that is
    transcribed or translated."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    INPUT_TOKENS = "input_tokens"
    OUTPUT_TOKENS = "output_tokens"
    IMAGES = "images"
    AUDIO_SECONDS = "audio_seconds"


_PER_MINUTE_MAX: dict[Quantity, int] = {
    Quantity.REQUESTS: REQUESTS_PER_MINUTE_MAX,
    Quantity.TOKENS: TOKENS_PER_MINUTE_MAX,
    Quantity.INPUT_TOKENS: TOKENS_PER_MINUTE_MAX,
    Quantity.OUTPUT_TOKENS: TOKENS_PER_MINUTE_MAX,
    Quantity.IMAGES: IMAGES_PER_MINUTE_MAX,
    Quantity.AUDIO_SECONDS: AUDIO_SECONDS_PER_MINUTE_MAX,
}


class Dimension(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that can be limited. `name`: the field of `Limits`. `window_ns`: of a rate; 0 for a number of requests that run at the
    same time. `size_max`: larger limits are refused as mistakes. `words`: for messages ("tokens per minute")."""

    name: str
    quantity: Quantity
    window_ns: int
    size_max: int

    @property
    def words(self) -> str:
        """The dimension as a person says it."""
        return self.name.replace("_", " ")


def _rates(window: str, window_ns: int, factor: int) -> tuple[Dimension, ...]:
    return tuple(
        Dimension(
            name=f"{quantity}_per_{window}",
            quantity=quantity,
            window_ns=window_ns,
            size_max=factor * _PER_MINUTE_MAX[quantity],
        )
        for quantity in Quantity
    )


CONCURRENT_REQUESTS = Dimension(name="concurrent_requests", quantity=Quantity.REQUESTS, window_ns=0, size_max=CONCURRENT_REQUESTS_MAX)

DIMENSIONS: tuple[Dimension, ...] = (
    *_rates("minute", MINUTE_NS, 1),
    *_rates("day", DAY_NS, MINUTES_PER_DAY),
    CONCURRENT_REQUESTS,
)
"""Everything that can be limited. Database columns, API fields, command options and the file's keys have these names."""

BY_NAME: dict[str, Dimension] = {dimension.name: dimension for dimension in DIMENSIONS}


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The limits of one level. None: not limited there.

    A rate admits bursts of up to one window's worth. `concurrent_requests` counts from admission to the last byte of the answer.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None
    images_per_minute: int | None = None
    audio_seconds_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_day: int | None = None
    input_tokens_per_day: int | None = None
    output_tokens_per_day: int | None = None
    images_per_day: int | None = None
    audio_seconds_per_day: int | None = None
    concurrent_requests: int | None = None

    def get(self, dimension: Dimension) -> int | None:
        """Return the limit of one dimension."""
        size: int | None = getattr(self, dimension.name)
        return size

    def to_dict(self) -> dict[str, int | None]:
        """Return the limit of every dimension by name, None where there is none."""
        return {dimension.name: self.get(dimension) for dimension in DIMENSIONS}


UNLIMITED = Limits()


class LimitSubject(NamedTuple):
    """A thing that limits belong to. `id`: of the key, service account, project or organization, and of the project for the limits of each
    of its end users; `project_id`: of the project of a key or an account."""

    level: LimitLevel
    id: str
    project_id: str = ""


class LevelLimits(NamedTuple):
    """The limits of one level, for one model or for all. `id`: of the key, service account, project or organization; of an end user, the
    project and a hash. `model`: empty for limits on all models together."""

    level: LimitLevel
    id: str
    limits: Limits
    model: str = ""


class Standing(NamedTuple):
    """The state of one limit: units charged and not yet drained, units held by requests under way (for concurrent requests: those that
    run), units that are left, and when nothing is charged or held any more (None: when requests end)."""

    owner: LevelLimits
    dimension: Dimension
    size: int
    used: int
    held: int
    remaining: int
    reset_ns: int | None


def find_binding(standings: Iterable[Standing]) -> list[Standing]:
    """Return, for each dimension and model, the limit with the least left of all levels; the innermost of equals."""
    least: dict[tuple[str, str], Standing] = {}
    for each in standings:
        key = (each.dimension.name, each.owner.model)
        if key not in least or each.remaining < least[key].remaining:
            least[key] = each
    return list(least.values())


class LimitUse(msgspec.Struct, frozen=True):
    """The use of one limit at one gateway. `subject_id`: of the key, service account, project or organization. `dimension`: its name."""

    subject_id: str
    model: str
    dimension: str
    used: int
    held: int


USES_REPORTED_MAX = 1_000
"""Limits in one report of a gateway. Where more are in use, those with the largest part used."""


class LimitProblem(NamedTuple):
    """A mistake in the limits of one level: the dimension at fault, and a sentence that says what is wrong."""

    dimension: str
    message: str


def find_problem(limits: Limits) -> LimitProblem | None:
    """Return the first mistake in the limits of one level: a value out of range, or one that can never take effect because another limit
    of the same level is always reached first. None if there is none."""
    for dimension in DIMENSIONS:
        size = limits.get(dimension)
        if size is not None and not 1 <= size <= dimension.size_max:
            return LimitProblem(dimension.name, f"'{dimension.name}' must be between 1 and {dimension.size_max}, or null for no limit.")
    for inner, outer in _NESTED:
        narrow, wide = getattr(limits, inner), getattr(limits, outer)
        if narrow is not None and wide is not None and narrow > wide:
            return LimitProblem(inner, f"'{inner}' ({narrow}) can never be reached, because '{outer}' ({wide}) is smaller.")
    return None


def find_model_problem(limits: Limits, by_model: Mapping[str, Limits]) -> LimitProblem | None:
    """Return the first limit on a single model that can never take effect, because the limits of the same level on all models together are
    always reached first. None if there is none. `by_model`: the limits on single models by name."""
    for model, own in by_model.items():
        for inner, outer in (*((dimension.name, dimension.name) for dimension in DIMENSIONS), *_NESTED):
            narrow, wide = getattr(own, inner), getattr(limits, outer)
            if narrow is not None and wide is not None and narrow > wide:
                void = f"'{inner}' of model {model} ({narrow}) can never be reached"
                return LimitProblem(inner, f"{void}, because '{outer}' of all models ({wide}) is smaller.")
    return None


_NESTED: tuple[tuple[str, str], ...] = (
    *((f"{quantity}_per_minute", f"{quantity}_per_day") for quantity in Quantity),
    *((f"{part}_per_{window}", f"tokens_per_{window}") for window in ("minute", "day") for part in ("input_tokens", "output_tokens")),
)
"""Pairs of dimensions of which the first must not be limited to more than the second: what counts in the first counts in the second."""


class Rate(NamedTuple):
    """A rate limit in exact arithmetic: `scale` ticks pass per nanosecond, a unit costs `cost` ticks, `burst` ticks fit in the bucket."""

    size: int
    scale: int
    cost: int
    burst: int


def make_rate(size: int, window_ns: int) -> Rate:
    """Return the rate of `size` (at least 1) units per `window_ns`."""
    divisor = gcd(size, window_ns)
    scale, cost = size // divisor, window_ns // divisor
    return Rate(size, scale, cost, size * cost)


class Decision(NamedTuple):
    """The result of `gcra`: the TAT to store, the units that are left, and how long to wait if refused."""

    admitted: bool
    tat: int
    remaining: int
    retry_after_ns: int


def gcra(tat: int, now_ns: int, rate: Rate, units: int = 1, held: int = 0) -> Decision:
    """Decide a request for `units` against a bucket that stands at `tat` (ticks) with `held` units held.

    A refusal changes nothing. `remaining` is how many units more would be admitted now. `retry_after_ns` holds if nothing else arrives and
    no hold ends; a request for more than `rate.size - held` units is never admitted by waiting alone.
    """
    now = now_ns * rate.scale
    debt = max(tat - now, 0)
    left = rate.burst - debt - held * rate.cost
    need = units * rate.cost
    if need > left:
        return Decision(False, tat, max(left // rate.cost, 0), -((left - need) // rate.scale))
    return Decision(True, now + debt + need, (left - need) // rate.cost, 0)
