"""The time after which the client of a refused request may try again, for the gateway and the control plane alike."""

import math
from typing import NamedTuple

from tollway.domain.faults import Fault

UNAVAILABLE_SECONDS = 1.0
"""The `retry-after` of a 503 without a better one. Most are over by then, and a client that gets no hint retries at once."""


class RetryAfter(NamedTuple):
    """The values of `retry-after` (RFC 9110 section 10.2.3, whole seconds) and of `retry-after-ms`, which OpenAI's SDKs read first."""

    seconds: int
    milliseconds: int


def retry_after(fault: Fault) -> RetryAfter | None:
    """Return when the client may try again, rounded up in both units and at least 1, so that nobody comes back too early. None if the
    fault has no such time."""
    seconds = fault.retry_after_seconds
    if seconds is None:
        if fault.kind.status != 503:
            return None
        seconds = UNAVAILABLE_SECONDS
    milliseconds = max(1, math.ceil(seconds * 1000))
    return RetryAfter(-(-milliseconds // 1000), milliseconds)
