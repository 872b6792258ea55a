"""Limit counters in this process' memory: exact for one gateway. All levels of a request pass or none is charged."""

from tollway.domain.limits import Decision, gcra

Limit = tuple[str, int]
"""(bucket, limit): the id of the key, project or organization that the limit belongs to, and its value."""


class Counters:
    """Requests per minute (GCRA) and requests running now, by bucket."""

    def __init__(self) -> None:
        self._tat_ns: dict[str, int] = {}
        self._running: dict[str, int] = {}

    def take_requests(self, limits: tuple[Limit, ...], now_ns: int) -> tuple[Decision, int]:
        """Charge one request to every bucket, or to none if one refuses.

        Returns the deciding level's decision and its limit: the refusal, or the admission that leaves least.
        """
        tats_ns = self._tat_ns
        taken = []
        tightest, tightest_limit = None, 0
        for bucket, per_minute in limits:
            decision = gcra(tats_ns.get(bucket, 0), now_ns, per_minute)
            if not decision.admitted:
                return decision, per_minute
            taken.append((bucket, decision.tat_ns))
            if tightest is None or decision.remaining < tightest.remaining:
                tightest, tightest_limit = decision, per_minute
        tats_ns.update(taken)
        assert tightest is not None, "asked without a limit"
        return tightest, tightest_limit

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
