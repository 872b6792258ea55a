"""Phase 3: is there room for it? Requests per minute and concurrent requests, at key, project and organization."""

from tollway.domain.faults import CONCURRENCY_EXCEEDED, REQUESTS_EXCEEDED, Fault
from tollway.gateway.counters import Counters
from tollway.gateway.exchange import Call, Permit

MINUTE_MS = 60_000


def limit(call: Call, counters: Counters, now_ns: int) -> Permit:
    """A permit for this call, to be held to the last byte (`with`). Raises Fault rate_limit_exceeded (429) with retry-after.

    Concurrency is asked first: it can be given back, a request taken from a minute cannot.
    """
    caller = call.caller
    concurrent = caller.concurrent
    if concurrent and not counters.enter(concurrent):
        raise Fault(CONCURRENCY_EXCEEDED, retry_after_seconds=1)
    headers = b""
    if caller.per_minute:
        per_minute, remaining, retry_after_ns = counters.take_requests(caller.per_minute, now_ns)
        if retry_after_ns:
            if concurrent:
                counters.leave(concurrent)
            raise Fault(REQUESTS_EXCEEDED, retry_after_seconds=retry_after_ns / 1e9)
        headers = b"x-ratelimit-limit-requests: %d\r\nx-ratelimit-remaining-requests: %d\r\nx-ratelimit-reset-requests: %dms\r\n" % (
            per_minute,
            remaining,
            (per_minute - remaining) * MINUTE_MS // per_minute,
        )
    return Permit(call, headers, counters.leave)
