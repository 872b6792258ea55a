"""The count of realtime sessions, and their bounds."""

from collections import Counter

import msgspec

from tollway.domain.faults import OVERLOADED, SESSIONS_EXCEEDED, Fault
from tollway.wire.web_sockets import MESSAGE_BYTES_MAX

RETRY_SECONDS = 5.0
"""After which a session that was refused may be asked for again: sessions last for minutes."""


class RealtimeBounds(msgspec.Struct, frozen=True, kw_only=True):
    """`sessions_max`, `organization_sessions_max`: sessions at once, in all and of one organization. `message_bytes_max`: of one message,
    either way. `idle_seconds`: without a message of either end. `age_seconds`: of a session. `ping_seconds`: between questions whether an
    end is there; one of which nothing is heard for three times as long is gone. `write_stall_seconds`: a client that does not read."""

    sessions_max: int = 1_000
    organization_sessions_max: int = 100
    message_bytes_max: int = MESSAGE_BYTES_MAX
    idle_seconds: float = 300.0
    age_seconds: float = 3_600.0
    ping_seconds: float = 20.0
    write_stall_seconds: float = 30.0


class RealtimeSessions:
    """The sessions of one gateway, counted by organization."""

    def __init__(self, bounds: RealtimeBounds) -> None:
        self.bounds = bounds
        self._running: Counter[str] = Counter()

    def count(self) -> int:
        """Return how many run."""
        return self._running.total()

    def enter(self, organization_id: str) -> None:
        """Count one more. Raises Fault overloaded or rate_limit_exceeded if that is too many."""
        if self.count() >= self.bounds.sessions_max:
            raise Fault(OVERLOADED, retry_after_seconds=RETRY_SECONDS)
        if self._running[organization_id] >= self.bounds.organization_sessions_max:
            raise Fault(SESSIONS_EXCEEDED, retry_after_seconds=RETRY_SECONDS)
        self._running[organization_id] += 1

    def leave(self, organization_id: str) -> None:
        """One has ended."""
        self._running[organization_id] -= 1
        if not self._running[organization_id]:
            del self._running[organization_id]
