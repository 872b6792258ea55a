"""Rate limits: the generic cell rate algorithm (GCRA; ITU-T I.371) in integer nanoseconds, and what a limit is.

A bucket is one integer, the theoretical arrival time (TAT): the instant at which it would be empty again. A request of cost c moves
it by c emission intervals and is admitted if it then stands at most one burst ahead of now. No timer, no window edge where twice
the limit passes, and an idle bucket is one that can be forgotten.
"""

import msgspec

MINUTE_NS = 60_000_000_000

REQUESTS_PER_MINUTE_MAX = 1_000_000
"""Above this the rounding of the emission interval (one nanosecond) would reach 0.002 %."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a key, project or organization may take. None: not limited at this level.

    `requests_per_minute` admits bursts of up to one minute's worth; `concurrent_requests` counts from admission to the last byte.
    """

    requests_per_minute: int | None = None
    concurrent_requests: int | None = None


UNLIMITED = Limits()


Rate = tuple[str, int, int, int]
"""(bucket, limit per minute, emission interval, burst; both in nanoseconds): a limit as `gcra` sees it, worked out once."""


def rate(bucket: str, per_minute: int) -> Rate:
    """The rate of `per_minute` (1 to REQUESTS_PER_MINUTE_MAX) requests for a bucket."""
    interval_ns = -(-MINUTE_NS // per_minute)
    return bucket, per_minute, interval_ns, interval_ns * per_minute


class Decision(msgspec.Struct, frozen=True):
    """What GCRA says of one request: the TAT to store from here on, what is left, and when to come back if refused."""

    admitted: bool
    tat_ns: int
    remaining: int
    retry_after_ns: int


def gcra(tat_ns: int, now_ns: int, per_minute: int, cost: int = 1) -> Decision:
    """Decide a request of `cost` against a bucket of `per_minute` (1 to REQUESTS_PER_MINUTE_MAX) that stands at `tat_ns`.

    Over any window of T minutes at most per_minute x (1 + T) are admitted: the interval is rounded up, never down. A refusal
    changes nothing. `remaining` is how many more of cost 1 would be admitted now.
    """
    interval_ns = -(-MINUTE_NS // per_minute)
    burst_ns = interval_ns * per_minute
    start_ns = tat_ns if tat_ns > now_ns else now_ns
    ahead_ns = start_ns - now_ns + interval_ns * cost
    if ahead_ns > burst_ns:
        return Decision(False, tat_ns, (burst_ns - (start_ns - now_ns)) // interval_ns, ahead_ns - burst_ns)
    return Decision(True, now_ns + ahead_ns, (burst_ns - ahead_ns) // interval_ns, 0)
