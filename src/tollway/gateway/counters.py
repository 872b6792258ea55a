"""The counters that the limits of calls are kept in: the port of the phase `limit`, and the values that both of its implementations share.

`memory_counters` decides at once, for one gateway; `shared_counters` asks a store that several gateways share, and decides later. The
assembly chooses (`Plane.limits`), and the phase asks it through these classes. They are abstract classes and not protocols because compiled
code calls a method of a class through a table, and one of a protocol by its name.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from tollway.domain.limits import LevelLimits, LimitLevel, Limits, Quantity, Standing

UNLIMITED: Final = 2**62
"""The size of what is not limited: more than any traffic reaches."""

QUANTITIES = tuple(Quantity)
"""The order of the numbers in `Units`."""
REQUESTS, TOKENS, INPUT_TOKENS, OUTPUT_TOKENS, IMAGES, AUDIO_SECONDS = range(6)

Units = tuple[int, ...]
"""Requests, tokens, input tokens, output tokens, images and seconds of sound of one request: six numbers. Compiled, a tuple of fixed length
would be made anew for each index. A request without images or sound is never refused for a limit on them, also where that is overdrawn."""

NO_UNITS: Final[Units] = (0, 0, 0, 0, 0, 0)
ONE_REQUEST: Final[Units] = (1, 0, 0, 0, 0, 0)

HEADER_KINDS = (b"requests", b"tokens", b"images", b"audio-seconds")
"""The quantities of which answers say what is left, as their headers name them: input and output tokens count as tokens."""

HEADER_KINDS_OF = (0, 1, 1, 1, 2, 3)
"""For each of QUANTITIES its place in HEADER_KINDS."""

END_USERS_MAX = 10_000
"""End users of one organization that a gateway counts one by one: about 10 MB of memory."""


class EndUserLimits(NamedTuple):
    """The limits of each end user of a project that bind requests for one model: `limits` on all models together, on the model and on its
    groups, each with what it is on (empty for all models)."""

    organization_id: str
    project_id: str
    limits: tuple[tuple[str, Limits], ...]

    def list_levels(self, id: str) -> list[LevelLimits]:
        """Return the limits of the end user that is counted under `id`."""
        return [LevelLimits(LimitLevel.END_USER, id, limits, model) for model, limits in self.limits]


def identify_end_user(project_id: str, name: str, key: bytes) -> str:
    """Return the id under which an end user is counted: its project, and a keyed hash (BLAKE2b, RFC 7693) of how requests name it."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16, key=key)
    return f"{project_id}:{digest.hexdigest()}"


def identify_other_end_users(project_id: str) -> str:
    """Return the id under which the end users of a project are counted that have no counters of their own."""
    return f"{project_id}:others"


class Remainder(NamedTuple):
    """The rest of one limit: the units that would be admitted now, and the time until all of it is free again."""

    size: int
    remaining: int
    reset_ns: int


def note_remainder(tightest: list[Remainder | None], quantity: int, left: Remainder) -> None:
    """Put what is left of a limit into `tightest` (by HEADER_KINDS) if that is the least so far. `quantity`: its place in QUANTITIES."""
    kind = HEADER_KINDS_OF[quantity]
    least = tightest[kind]
    if least is None or left.remaining < least.remaining:
        tightest[kind] = left


class Refusal(NamedTuple):
    """The limit that refused a request. `used`: units that are charged or held there. `wait_ns`: after how long the units will be free;
    None if that depends on when other requests end, of which there are `running`."""

    owner: LevelLimits
    words: str
    quantity: int
    size: int
    used: int
    requested: int
    wait_ns: int | None
    running: int
    is_concurrency: bool
    is_permanent: bool


def find_later(one: Refusal | None, other: Refusal) -> Refusal:
    """Return the refusal that holds longer; the first of equals."""
    return other if one is None or _weight(other) > _weight(one) else one


def _weight(refusal: Refusal) -> tuple[bool, bool, int]:
    return refusal.is_permanent, refusal.wait_ns is None, refusal.wait_ns or 0


class Bound:
    """The counters that bind one caller's requests to one model, innermost level first.

    `is_empty`: nothing limits them. `is_held`: requests hold units while they run (`Counters.reserve`). Counters of which neither is true
    are of this process and need no hold: `MemoryBound.enter` and `leave` count their requests.
    `output_size_min`, `tokens_size_min`: the smallest limit on output tokens, and on input and output together.
    """

    __slots__ = ("is_empty", "is_held", "output_size_min", "tokens_size_min")

    def __init__(self, is_empty: bool, is_held: bool, output_size_min: int, tokens_size_min: int) -> None:
        self.is_empty = is_empty
        self.is_held = is_held
        self.output_size_min = output_size_min
        self.tokens_size_min = tokens_size_min


class Hold(ABC):
    """The decision on one request since `started_ns`, and the `units` that the request holds if it was admitted.

    `is_decided`: False until `wait` has returned. `is_charged`: the rates per minute were charged in full, because it is a minute old.
    `is_summarized`: the decision found on its way what the headers of the answer say: of the limits on requests per minute the one with
    the least left (`requests_per_minute`, `requests_left`; UNLIMITED: there is none), and of the rates on tokens (`tokens_size`,
    `tokens_left`, and `tokens_reset_ms` until all of it is free; UNLIMITED: there is none). Else `find_tightest` finds it.
    """

    __slots__ = (
        "is_admitted",
        "is_charged",
        "is_decided",
        "is_summarized",
        "requests_left",
        "requests_per_minute",
        "started_ns",
        "tokens_left",
        "tokens_reset_ms",
        "tokens_size",
        "units",
    )

    def __init__(self, units: Units, started_ns: int) -> None:
        self.units = units
        self.started_ns = started_ns
        self.is_admitted = False
        self.is_charged = False
        self.is_decided = True
        self.is_summarized = False
        self.requests_per_minute = self.requests_left = UNLIMITED
        self.tokens_size = self.tokens_left = UNLIMITED
        self.tokens_reset_ms = 0

    @abstractmethod
    async def wait(self) -> None:
        """Return once it is decided. Where the wait is interrupted, nothing is held."""

    @abstractmethod
    def find_tightest(self, now_ns: int) -> list[Remainder | None]:
        """Return for each of HEADER_KINDS what is left of the limit that has the least left; None where there is none."""

    @abstractmethod
    def find_refusal(self) -> Refusal:
        """Return the limit that keeps a request waiting longest that was not admitted."""

    @abstractmethod
    def reduce(self, units: Units) -> None:
        """Hold no more than `units`, none of which is more than this holds. What was charged already stays charged."""

    @abstractmethod
    def settle(self, used: Units, now_ns: int) -> None:
        """End it: nothing of it is held or runs any more, and what was `used` is charged, however much that is. Call it exactly once for
        each that was admitted."""


class Counters(ABC):
    """All counters of the limits that one gateway applies. `now_ns`: monotonic nanoseconds. `end_users_together`: requests that were
    counted together with those of other end users."""

    __slots__ = ("end_users_together",)

    def __init__(self) -> None:
        self.end_users_together = 0

    @abstractmethod
    def bind(self, organization_id: str, limits: Sequence[LevelLimits], now_ns: int) -> Bound:
        """Return the counters of these limits of one organization, innermost level first."""

    @abstractmethod
    def bind_end_user(self, bound: Bound, of: EndUserLimits, end_user: str, now_ns: int) -> Bound:
        """Return the counters of `bound` with those of an end user, `end_user` as the request names it, before them.

        END_USERS_MAX end users of an organization are counted one by one. Beyond them those give way whose counters are empty, or that
        were not seen for the longest window of their limits; if there are none, the end users that are not known yet are counted together,
        as one.
        """

    @abstractmethod
    def reserve(self, bound: Bound, units: Units, now_ns: int) -> Hold:
        """Admit a request for `units` at all levels and hold them there, or change nothing."""

    @abstractmethod
    def read_standings(
        self, organization_id: str, limits: Sequence[LevelLimits], now_ns: int, done: Callable[[list[Standing]], None]
    ) -> None:
        """Call `done`, at once or later, with how each of these limits stands."""

    @abstractmethod
    def forget_idle(self, now_ns: int) -> None:
        """Drop counters of this process that stand as new ones would. Call it only when no caller is held: it would go on to count in
        counters that others no longer share."""
