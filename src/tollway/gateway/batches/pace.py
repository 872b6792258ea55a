"""The number of lines that are sent to a model at a time: as many as its engines take beside other traffic.

It grows by one each time that as many lines succeeded as run at a time, and is halved when one is refused for load, at most once in
HALVING_SECONDS: additive increase, multiplicative decrease (Chiu and Jain, 1989). A refusal also says when to try again.
"""

from typing import Final

FIRST: Final = 4.0
HALVING_SECONDS: Final = 1.0
"""Lines that were sent together are refused together; they count as one refusal."""
PAUSE_SECONDS_MAX: Final = 30.0


class Pace:
    """The pace of one model in one gateway. Times are monotonic seconds. `running`: lines that were sent and have not ended."""

    def __init__(self, most: int) -> None:
        """`most`: lines at a time, however many succeed."""
        self.running = 0
        self._most = float(most)
        self._limit = min(FIRST, self._most)
        self._resumes_at = 0.0
        self._halved_at = -HALVING_SECONDS

    @property
    def is_full(self) -> bool:
        """Return whether as many lines run as may."""
        return self.running + 1 > self._limit

    def may_send(self, now: float) -> bool:
        """Return whether another line may be sent."""
        return not self.is_full and now >= self._resumes_at

    def succeed(self) -> None:
        """A line was answered."""
        self._limit = min(self._limit + 1.0 / self._limit, self._most)

    def refuse(self, now: float, pause_seconds: float) -> None:
        """A line was refused for load, until `pause_seconds` have passed."""
        if now - self._halved_at >= HALVING_SECONDS:
            self._halved_at = now
            self._limit = max(self._limit / 2, 1.0)
        self._resumes_at = max(self._resumes_at, now + min(pause_seconds, PAUSE_SECONDS_MAX))
