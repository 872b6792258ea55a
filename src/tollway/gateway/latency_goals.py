"""Latency goals: of equal deployments the cheapest ones serve while they are likely to answer in time.

The time to the first token of a deployment is taken to be a straight line over the prompt tokens that it computes before it: those that
wait there, and the prompt's own. The line is fitted to the streams that this gateway sent there, the latest of which count most, by least
squares. So an idle deployment that was slow while its queue was long is cheap again as soon as the queue is short. If the engine itself
became slow, the line alone would keep every request away from it: one in TRIAL_REQUESTS goes there all the same.
"""

from collections.abc import Sequence

KEPT_PART = 31 / 32
"""Part of the weight that an observation keeps with each further one."""
TRIAL_REQUESTS = 50
"""Requests of which one goes to the cheapest deployments whatever is expected of them."""


class FirstTokenTimes:
    """Times to the first token at one deployment, by the tokens that it computed before. Expects nothing before the first observation."""

    __slots__ = ("_seconds", "_tokens", "_tokens_by_seconds", "_tokens_squared", "_weight")

    def __init__(self) -> None:
        self._weight = 0.0
        self._tokens = 0.0
        self._seconds = 0.0
        self._tokens_squared = 0.0
        self._tokens_by_seconds = 0.0

    def observe(self, tokens: float, seconds: float) -> None:
        """The first token came after so many seconds, in which so many prompt tokens were computed."""
        self._weight = self._weight * KEPT_PART + 1.0
        self._tokens = self._tokens * KEPT_PART + tokens
        self._seconds = self._seconds * KEPT_PART + seconds
        self._tokens_squared = self._tokens_squared * KEPT_PART + tokens * tokens
        self._tokens_by_seconds = self._tokens_by_seconds * KEPT_PART + tokens * seconds

    def expect(self, tokens: float) -> float:
        """Return the seconds to expect where so many prompt tokens are to be computed; 0 if nothing was observed."""
        weight = self._weight
        if not weight:
            return 0.0
        mean_tokens, mean_seconds = self._tokens / weight, self._seconds / weight
        variance = self._tokens_squared / weight - mean_tokens * mean_tokens
        covariance = self._tokens_by_seconds / weight - mean_tokens * mean_seconds
        slope = max(covariance / variance, 0.0) if variance > 1.0 else 0.0
        if mean_tokens > 0.0:
            slope = min(slope, mean_seconds / mean_tokens)  # no prompt is begun before it arrived
        return mean_seconds + slope * (tokens - mean_tokens)


def list_cheapest(costs: Sequence[int], expected_seconds: Sequence[float], goal_seconds: float, *, is_trial: bool) -> list[int]:
    """Return the indices of the deployments among which the load decides: the cheapest of those that are expected to answer in time, or
    all if none is. `is_trial`: the cheapest ones, whatever is expected of them."""
    in_time = [index for index in range(len(costs)) if is_trial or expected_seconds[index] <= goal_seconds]
    if not in_time:
        return list(range(len(costs)))
    least = min(costs[index] for index in in_time)
    return [index for index in in_time if costs[index] == least]
