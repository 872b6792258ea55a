"""Limit counters in this process' memory: exact for one gateway. All levels of a request pass or none is charged.

A bucket is shared by all callers below its key, project or organization. Callers hold the buckets of their limits (`Level`), so that a
request looks none up. That is why buckets are forgotten only when callers are: the directory releases all of them at each change, and
in the same call (`Plane`) idle buckets go, which say nothing that a new one would not.
"""

from collections.abc import Sequence

from tollway.domain.limits import Rate

Limit = tuple[str, int]
"""(bucket, limit): the id of the key, project or organization that the limit belongs to, and its value."""

_UNLIMITED = 2**62


class Bucket:
    """The state of the limits of one key, project or organization: the theoretical arrival time of its requests (GCRA), in
    monotonic nanoseconds, and how many of them are running."""

    __slots__ = ("running", "tat_ns")

    def __init__(self) -> None:
        self.tat_ns = 0
        self.running = 0


Level = tuple[Bucket, int, int, int, int]
"""A bucket and its limits: requests running, requests per minute, and of these the emission interval and the burst in nanoseconds, as in
`limits.Rate`. What is not limited is so many that nobody gets there."""


class Counters:
    """The buckets, by id."""

    FORGET_NS = 1_000_000_000

    def __init__(self) -> None:
        self._buckets: dict[str, Bucket] = {}
        self._forgot_at_ns = 0

    def bind(self, rates: Sequence[Rate], concurrent: Sequence[Limit]) -> tuple[Level, ...]:
        """These limits by level, with their buckets."""
        most = dict(concurrent)
        per_minute = {id: rest for id, *rest in rates}
        return tuple(
            (self._buckets.setdefault(id, Bucket()), most.get(id, _UNLIMITED), *per_minute.get(id, (_UNLIMITED, 0, 0)))
            for id in dict.fromkeys((*per_minute, *most))
        )

    def forget_idle(self, now_ns: int) -> None:
        """Drop buckets that are full again and have nothing running; once a second at most, because it looks at all. Only when no caller is
        held that may ask again: it would count in a bucket of its own."""
        if now_ns < self._forgot_at_ns + self.FORGET_NS:
            return
        self._forgot_at_ns = now_ns
        for id in [id for id, bucket in self._buckets.items() if bucket.tat_ns <= now_ns and not bucket.running]:
            del self._buckets[id]


def enter(levels: tuple[Level, ...], now_ns: int) -> tuple[int, int] | None:
    """Charge one request to every bucket, and count it as running; or None, and nothing is changed, if a level refuses.

    Decides as `domain.limits.gcra` does (the tests hold them against each other), without its values: this runs for every level of
    every request. Returns what the level says that is left with least: its limit per minute, and what is left of it.
    """
    least = least_of = _UNLIMITED
    for bucket, most, per_minute, interval_ns, burst_ns in levels:
        running, tat_ns = bucket.running, bucket.tat_ns
        if tat_ns <= now_ns:  # it was full, as it mostly is of callers who stay within their limits
            tat_ns = now_ns
            remaining = per_minute - 1
        else:
            remaining = (burst_ns + now_ns - tat_ns) // interval_ns - 1 if interval_ns else per_minute
        if remaining < 0 or running >= most:
            for charged, _, _, interval, _ in levels:
                if charged is bucket:
                    return None
                charged.tat_ns -= interval  # back to where it was, or to now, which is the same for whoever comes later
                charged.running -= 1
        bucket.tat_ns = tat_ns + interval_ns
        bucket.running = running + 1
        if remaining < least:
            least, least_of = remaining, per_minute
    return least_of, least


def find_refusal(levels: tuple[Level, ...], now_ns: int) -> int | None:
    """Return why `enter` refused: None if too many are running, else in how many nanoseconds to come back. Concurrency is asked first."""
    if any(bucket.running >= most for bucket, most, _, _, _ in levels):
        return None
    rated = (level for level in levels if level[3])
    waits = (max(bucket.tat_ns, now_ns) + interval_ns - burst_ns - now_ns for bucket, _, _, interval_ns, burst_ns in rated)
    return next(wait for wait in waits if wait > 0)
