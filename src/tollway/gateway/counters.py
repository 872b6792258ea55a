"""Limit counters in this process' memory: exact for one gateway. All levels of a request pass or none is charged."""

from tollway.domain.limits import Rate

Limit = tuple[str, int]
"""(bucket, limit): the id of the key, project or organization that the limit belongs to, and its value."""


class Counters:
    """Requests per minute (GCRA) and requests running now, by bucket."""

    def __init__(self) -> None:
        self._tat_ns: dict[str, int] = {}
        self._running: dict[str, int] = {}

    def take_requests(self, rates: tuple[Rate, ...], now_ns: int) -> tuple[int, int, int]:
        """Charge one request to every bucket, or to none if one refuses.

        Decides as `domain.limits.gcra` does (the tests hold them against each other), without its values: this runs for every level of
        every request. Returns what the deciding level says: its limit, what is left of it, and when to come back (0: admitted). It is the
        one that refuses, or else the one that is left with least.
        """
        tats_ns = self._tat_ns
        charged = {}
        least = least_of = -1
        for bucket, per_minute, interval_ns, burst_ns in rates:
            ahead_ns = tats_ns.get(bucket, 0) - now_ns
            ahead_ns = (ahead_ns if ahead_ns > 0 else 0) + interval_ns
            left_ns = burst_ns - ahead_ns
            if left_ns < 0:
                return per_minute, (left_ns + interval_ns) // interval_ns, -left_ns
            charged[bucket] = now_ns + ahead_ns
            remaining = left_ns // interval_ns
            if least < 0 or remaining < least:
                least, least_of = remaining, per_minute
        tats_ns.update(charged)
        return least_of, least, 0

    def enter(self, limits: tuple[Limit, ...]) -> bool:
        """Count one more running request in every bucket, or in none if one is full."""
        running = self._running
        for bucket, most in limits:
            if running.get(bucket, 0) >= most:
                return False
        for bucket, _ in limits:
            running[bucket] = running.get(bucket, 0) + 1
        return True

    def leave(self, limits: tuple[Limit, ...]) -> None:
        """Undo `enter`; an empty bucket is forgotten."""
        running = self._running
        for bucket, _ in limits:
            left = running.get(bucket, 1) - 1
            if left > 0:
                running[bucket] = left
            else:
                running.pop(bucket, None)

    def forget_idle(self, now_ns: int) -> None:
        """Drop buckets that are full again; they say nothing that a missing one does not."""
        for bucket in [bucket for bucket, tat_ns in self._tat_ns.items() if tat_ns <= now_ns]:
            del self._tat_ns[bucket]
