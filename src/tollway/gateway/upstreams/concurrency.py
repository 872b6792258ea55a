"""Bound on the requests that one deployment is sent at a time, learned from what it says and from its time to first token.

The bound begins at its maximum. It shrinks when the engine refuses a request for its load, to one less than ran there, and by an eighth
when first tokens come late. It grows by one with each answer of a deployment that was full, so it doubles in the time of an answer, but not
within PAUSE_SECONDS of a shrinkage. The whole time of an answer says nothing: it follows the length of the output.

A first token is late if it took four times as long as is usual for prompts of its size (to a factor of two), and more than
LATE_SECONDS_MIN. The usual time follows a shorter one at once and a longer one slowly.
"""

import msgspec

PAUSE_SECONDS = 2.0
LATE_SECONDS_MIN = 1.0
LATE_FACTOR = 4
LATE_SAMPLES = 8
"""Late first tokens beyond the punctual ones since the last shrinkage, after which the bound shrinks: one alone says nothing."""
_LEARNED_PART = 128
"""Part by which the usual time follows a longer one."""


class ConcurrencyBounds(msgspec.Struct, frozen=True, kw_only=True):
    """Least and most requests that one deployment is sent at a time; equal values fix the number."""

    concurrency_min: int = 1
    concurrency_max: int = 10_000


class ConcurrencyLimit:
    """The bound of one deployment, `limit`. Times are seconds of the monotonic clock."""

    __slots__ = ("_bounds", "_late", "_paused_until", "_usual", "limit")

    def __init__(self, bounds: ConcurrencyBounds) -> None:
        self._bounds = bounds
        self.limit = bounds.concurrency_max
        self._paused_until = 0.0
        self._late = 0
        self._usual: dict[int, float] = {}

    def refused(self, running: int, now: float) -> None:
        """The engine refused one of `running` requests, that one included, because of its load."""
        self._shrink(running - 1, now)

    def answered(self, now: float) -> None:
        """A request ended as it should at a deployment that was full."""
        if now >= self._paused_until and self.limit < self._bounds.concurrency_max:
            self.limit += 1

    def observe_first_token(self, seconds: float, prompt_bytes: int, running: int, now: float) -> None:
        """A stream's first token came after so many seconds, while `running` requests ran."""
        size = prompt_bytes.bit_length()
        usual = self._usual.get(size)
        if usual is None or seconds < usual:
            self._usual[size] = seconds
            return
        self._usual[size] = usual + (seconds - usual) / _LEARNED_PART
        if seconds < LATE_SECONDS_MIN or seconds < LATE_FACTOR * usual:
            if self._late:
                self._late -= 1
            return
        self._late += 1
        if self._late >= LATE_SAMPLES:
            self._shrink(running * 7 // 8, now)

    def _shrink(self, limit: int, now: float) -> None:
        self.limit = min(self.limit, max(limit, self._bounds.concurrency_min))
        self._paused_until = now + PAUSE_SECONDS
        self._late = 0
