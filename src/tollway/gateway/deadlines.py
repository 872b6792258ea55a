"""Deadlines of requests: those that clients send with them, and the list of what has deadlines that the clock of the edge checks. Nothing
is begun, and nothing goes on, for a client that has stopped waiting.

`x-request-timeout` (seconds) is Tollway's own header and `x-envoy-expected-rq-timeout-ms` is the one that Envoy sends to whatever is behind
it; both bound the whole answer. The official SDKs send their timeout with each request too, OpenAI's for Python as
`x-stainless-read-timeout`, the others as `x-stainless-timeout`, in seconds. That is the time in which the next bytes must come, so it
bounds the begin of the answer only. Of several headers the shortest time counts.

The time runs from the receipt of the request. `x-request-timeout` goes on to the engine with what is left of it.
"""

import re
from typing import Final, Protocol

from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.gateway.request import INFINITE, Call, Request, RequestHead

HEADER: Final = b"x-request-timeout"
_SECONDS = re.compile(rb"[0-9]{1,6}(?:\.[0-9]{1,6})?")
_MILLISECONDS = re.compile(rb"[0-9]{1,9}")
_WHOLE_ANSWER: Final = b"x-envoy-expected-rq-timeout-ms"
_OF_SDKS: Final = (b"x-stainless-read-timeout", b"x-stainless-timeout")
INVALID: Final = 0.0
"""Time of a head whose `x-request-timeout` is not a number of seconds above zero."""


def read_timeout(head: RequestHead) -> None:
    """Set the timeout of a head from its headers. What a proxy or an SDK sent and cannot be understood counts for nothing; what cannot be
    understood of the client's own header is kept as INVALID, for `require_time` to refuse."""
    headers = head.headers
    seconds = INFINITE
    own = headers.get(HEADER)
    if own is not None:
        seconds = float(own) if _SECONDS.fullmatch(own) else INVALID
    of_proxy = headers.get(_WHOLE_ANSWER)
    if of_proxy is not None and _MILLISECONDS.fullmatch(of_proxy) and int(of_proxy) > 0:
        seconds = min(seconds, int(of_proxy) / 1000.0)
    if seconds < INFINITE:
        head.bounds_whole_answer = True
    for name in _OF_SDKS:
        of_sdk = headers.get(name)
        if of_sdk is not None and _SECONDS.fullmatch(of_sdk) and 0.0 < float(of_sdk) < seconds:
            seconds = float(of_sdk)
            head.bounds_whole_answer = False
    head.timeout_seconds = seconds


def require_time(request: Request, now: float) -> None:
    """Raise Fault unless the client still waits: invalid_value for a timeout that is none, deadline_exceeded once it has passed."""
    seconds = request.head.timeout_seconds
    if now - request.started < seconds:
        return
    if seconds == INVALID:
        message = "The header 'x-request-timeout' must be a number of seconds above zero, such as 30 or 2.5."
        raise Fault(faults.PARAMETER_INVALID, param="x-request-timeout", message=message)
    raise Fault(faults.DEADLINE_EXCEEDED)


class Watched(Protocol):
    """A part of a request that has a deadline."""

    call: Call

    def interrupt(self, fault: Fault) -> None:
        """End the request with a fault."""
        ...

    def tick(self, now: float) -> None:
        """Look at the deadlines."""
        ...


class Active:
    """The attempts under way, whose deadlines the clock of the edge checks about twice a second."""

    def __init__(self) -> None:
        self.exchanges: set[Watched] = set()
