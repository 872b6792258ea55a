"""Limit counters in this process' memory: exact for one gateway. All levels of a request pass or none is charged.

A bucket is shared by all callers below its key, project or organization. Callers hold the buckets of their limits (`Levels`), so that a
request looks none up. That is why buckets are forgotten only when callers are: the directory lets go of all of them at each change, and
in the same call (`Plane`) idle buckets go, which say nothing that a new one would not.
"""

from tollway.domain.limits import Rate

Limit = tuple[str, int]
"""(bucket, limit): the id of the key, project or organization that the limit belongs to, and its value."""


class Bucket:
    """What counts against the limits of one key, project or organization: the theoretical arrival time of its requests (GCRA), in
    monotonic nanoseconds, and how many of them are running."""

    __slots__ = ("running", "tat_ns")

    def __init__(self) -> None:
        self.tat_ns = 0
        self.running = 0


BucketRate = tuple[Bucket, int, int, int]
"""As `limits.Rate`: (bucket, limit per minute, emission interval, burst)."""


class Levels:
    """The limits of one caller, level by level, each with its bucket."""

    __slots__ = ("concurrent", "rates")

    def __init__(self, rates: tuple[BucketRate, ...], concurrent: tuple[tuple[Bucket, int], ...]) -> None:
        self.rates = rates
        self.concurrent = concurrent


class Counters:
    """The buckets, by id."""

    def __init__(self) -> None:
        self._buckets: dict[str, Bucket] = {}

    def bind(self, rates: tuple[Rate, ...], concurrent: tuple[Limit, ...]) -> Levels:
        """These limits with their buckets."""
        return Levels(
            tuple((self._bucket(id), *rest) for id, *rest in rates),  # type: ignore[misc]
            tuple((self._bucket(id), most) for id, most in concurrent),
        )

    def _bucket(self, id: str) -> Bucket:
        return self._buckets.setdefault(id, Bucket())

    def forget_idle(self, now_ns: int) -> None:
        """Drop buckets that are full again and have nothing running. Only when no caller is held that may ask again: it would count in a
        bucket of its own."""
        for id in [id for id, bucket in self._buckets.items() if bucket.tat_ns <= now_ns and not bucket.running]:
            del self._buckets[id]


def take_requests(rates: tuple[BucketRate, ...], now_ns: int) -> tuple[int, int, int]:
    """Charge one request to every bucket (at least one), or to none if one refuses.

    Decides as `domain.limits.gcra` does (the tests hold them against each other), without its values: this runs for every level of
    every request. Returns what the deciding level says: its limit, what is left of it, and when to come back (0: admitted). It is the
    one that refuses, or else the one that is left with least.
    """
    least = least_of = -1
    for bucket, per_minute, interval_ns, burst_ns in rates:
        tat_ns = bucket.tat_ns
        if tat_ns <= now_ns:  # it was full, as it mostly is of callers who stay within their limits
            bucket.tat_ns = now_ns + interval_ns
            remaining = per_minute - 1
        else:
            left_ns = burst_ns + now_ns - tat_ns - interval_ns
            if left_ns < 0:
                for charged, _, interval, _ in rates[: [rate[0] for rate in rates].index(bucket)]:
                    charged.tat_ns -= interval  # back to where it was, or to now, which is the same for whoever comes later
                return per_minute, (left_ns + interval_ns) // interval_ns, -left_ns
            bucket.tat_ns = tat_ns + interval_ns
            remaining = left_ns // interval_ns
        if least < 0 or remaining < least:
            least, least_of = remaining, per_minute
    return least_of, least, 0
