"""Phase 3: apply the limits. Requests per minute and concurrent requests, at key, project and organization."""

from functools import lru_cache

from tollway.domain.faults import CONCURRENCY_EXCEEDED, REQUESTS_EXCEEDED, Fault
from tollway.gateway.counters import Counters, enter, find_refusal
from tollway.gateway.request import Call, Permit

MINUTE_MS = 60_000


def limit(call: Call, counters: Counters, now_ns: int) -> Permit:
    """A permit for this call, to be held to the last byte (`with`). Raises Fault rate_limit_exceeded (429) with retry-after."""
    caller = call.caller
    levels = caller.levels
    if levels is None:
        levels = caller.levels = counters.bind(caller.per_minute, caller.concurrent)
    if not levels:
        return Permit(call, b"", levels)
    left = enter(levels, now_ns)
    if left is None:
        retry_after_ns = find_refusal(levels, now_ns)
        if retry_after_ns is None:
            raise Fault(CONCURRENCY_EXCEEDED, retry_after_seconds=1)
        raise Fault(REQUESTS_EXCEEDED, retry_after_seconds=retry_after_ns / 1e9)
    return Permit(call, _headers(*left) if caller.per_minute else b"", levels)


@lru_cache(1024)
def _headers(per_minute: int, remaining: int) -> bytes:
    return b"x-ratelimit-limit-requests: %d\r\nx-ratelimit-remaining-requests: %d\r\nx-ratelimit-reset-requests: %dms\r\n" % (
        per_minute,
        remaining,
        (per_minute - remaining) * MINUTE_MS // per_minute,
    )
