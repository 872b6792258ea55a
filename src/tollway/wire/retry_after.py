"""The time after which the client of a refused request may try again, and the headers that say it, for both planes alike."""

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


def retry_headers(fault: Fault) -> dict[str, str]:
    """Return the headers of an answer that say when the client may try again, by name; none if the fault has no such time."""
    hint = retry_after(fault)
    return {} if hint is None else {"retry-after": str(hint.seconds), "retry-after-ms": str(hint.milliseconds)}


def retry_header_lines(fault: Fault) -> bytes:
    """Return the lines of `retry_headers` in the head of an answer."""
    hint = retry_after(fault)
    return b"" if hint is None else b"retry-after: %d\r\nretry-after-ms: %d\r\n" % hint
