"""AuthFailureLimiter: those who could not say who they are, and how often each of them may try.

Asked only after a look-up has failed, so a good key is served from an address whatever else comes from there, and costs nothing here.
A guess has no chance against 256 random bits; what this stops is the noise of it, and clients that repeat a dead key indefinitely. Over
the bound the answer is 429 in place of 401, with the time to come back, alike for unknown, revoked and expired keys.

An address is one of IPv4 or a /64 of IPv6, which is what one customer of a provider has at least. ADDRESSES_MAX of them are
remembered, each until its bucket is full again; when the table is full, all further ones share a bucket.
"""

import ipaddress

from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.domain.limits import MINUTE_NS, gcra, make_rate

ADDRESSES_MAX = 16_384
"""Two megabytes. More addresses than that, failing within a minute, are one attack and are treated as one."""

_NETWORK_BITS = 64
_SHARED = "the rest"


class AuthFailureLimiter:
    """Failed authentications by address: a bucket of `per_minute` each (0: no bound)."""

    def __init__(self, per_minute: int) -> None:
        self._rate = make_rate(per_minute, MINUTE_NS) if per_minute else None
        self._tats: dict[str, int] = {}

    def __len__(self) -> int:
        """Addresses that are remembered."""
        return len(self._tats)

    def throttle(self, fault: Fault, address: str, now_ns: int) -> Fault:
        """Return the fault to answer this address with: `fault`, or that its authentications failed too often. Faults that say
        nothing of a key pass uncounted. `now_ns`: monotonic nanoseconds."""
        rate = self._rate
        if rate is None or not address or fault.kind not in (faults.KEY_INVALID, faults.TOKEN_INVALID, faults.SCOPE_INSUFFICIENT):
            return fault
        tats = self._tats
        bucket = _network(address)
        if bucket not in tats and len(tats) >= ADDRESSES_MAX:
            bucket = _SHARED
        decision = gcra(tats.get(bucket, 0), now_ns, rate)
        if decision.admitted:
            tats[bucket] = decision.tat
            return fault
        return Fault(faults.AUTHENTICATIONS_EXCEEDED, retry_after_seconds=decision.retry_after_ns / 1e9)

    def forget_idle(self, now_ns: int) -> None:
        """Drop buckets that are full again."""
        rate = self._rate
        if rate is not None:
            for bucket in [bucket for bucket, tat in self._tats.items() if tat <= now_ns * rate.scale]:
                del self._tats[bucket]


def _network(address: str) -> str:
    """Return the name of the bucket of `address`. What is no address (a socket that has none) stands for itself."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    return str(parsed.ipv4_mapped or int(parsed) >> _NETWORK_BITS)
