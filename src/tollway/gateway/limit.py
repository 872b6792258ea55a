"""Phase 3: is there room for it? Requests per minute and concurrent requests, at key, project and organization."""

from functools import lru_cache

from tollway.domain.faults import CONCURRENCY_EXCEEDED, REQUESTS_EXCEEDED, Fault
from tollway.gateway.counters import Counters, take_requests
from tollway.gateway.exchange import Call, Permit

MINUTE_MS = 60_000


def limit(call: Call, counters: Counters, now_ns: int) -> Permit:
    """A permit for this call, to be held to the last byte (`with`). Raises Fault rate_limit_exceeded (429) with retry-after.

    Concurrency is asked first: where it refuses, no request is taken from a minute.
    """
    caller = call.caller
    levels = caller.levels
    if levels is None:
        levels = caller.levels = counters.bind(caller.per_minute, caller.concurrent)
    for bucket, most in levels.concurrent:
        if bucket.running >= most:
            raise Fault(CONCURRENCY_EXCEEDED, retry_after_seconds=1)
    headers = b""
    if levels.rates:
        per_minute, remaining, retry_after_ns = take_requests(levels.rates, now_ns)
        if retry_after_ns:
            raise Fault(REQUESTS_EXCEEDED, retry_after_seconds=retry_after_ns / 1e9)
        headers = _headers(per_minute, remaining)
    for bucket, _ in levels.concurrent:
        bucket.running += 1
    return Permit(call, headers, levels.concurrent)


@lru_cache(1024)
def _headers(per_minute: int, remaining: int) -> bytes:
    return b"x-ratelimit-limit-requests: %d\r\nx-ratelimit-remaining-requests: %d\r\nx-ratelimit-reset-requests: %dms\r\n" % (
        per_minute,
        remaining,
        (per_minute - remaining) * MINUTE_MS // per_minute,
    )
