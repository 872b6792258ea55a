"""Notes of a request for its trace, made while it runs. Spans are made of it at its end (`tracing`), and only if the trace is kept.

One that is sampled notes each attempt. All others note only what is rare and slow anyway, waits, checks and attempts that failed, because
they may be kept by their end; of an attempt that went well the rest is known from the usage record.
"""

from typing import Final

from tollway.domain.catalog import Deployment

QUEUE_SPAN: Final = "queue"
GUARDRAIL_SPAN: Final = "guardrail"
INTERVALS_MAX: Final = 16
"""Waits and checks that a trace shows; of a long stream the guardrail gives thousands of verdicts."""
ATTEMPTS_MAX: Final = 16
"""Attempts that a trace shows: more than retries allow."""


class Attempt:
    """One attempt at a deployment. Times are seconds of the monotonic clock; `began`: 0 if only its end was noted, `ended`: 0 while it
    runs. `error`: how it failed, or empty."""

    __slots__ = ("began", "deployment", "ended", "error", "number")

    def __init__(self, number: int, deployment: Deployment, began: float) -> None:
        self.number = number
        self.deployment = deployment
        self.began = began
        self.ended = 0.0
        self.error = ""


class Interval:
    """A wait in the queue or a check by the guardrail: its span's name, and seconds of the monotonic clock."""

    __slots__ = ("began", "ended", "name")

    def __init__(self, name: str, began: float, ended: float) -> None:
        self.name = name
        self.began = began
        self.ended = ended


class RequestTrace:
    """The trace of one request. `parent_id`: of the client's span, of the request that this one serves as a fallback, or of the realtime
    session; empty without. `is_sampled`: decided at its beginning. `started`: the instant (monotonic seconds) that `started_us` (UTC) is
    the same as. `span_id`: of a response of a realtime session; empty for a request, whose span is the random half of its id."""

    __slots__ = ("attempts", "intervals", "is_sampled", "parent_id", "span_id", "started", "started_us")

    def __init__(self, parent_id: str, is_sampled: bool, started: float, started_us: int, span_id: str = "") -> None:
        self.parent_id = parent_id
        self.span_id = span_id
        self.is_sampled = is_sampled
        self.started = started
        self.started_us = started_us
        self.attempts: list[Attempt] = []
        self.intervals: list[Interval] | None = None

    def begin_attempt(self, number: int, deployment: Deployment, now: float) -> None:
        """Note that an attempt begins. `number`: from 1, in its order."""
        self.attempts.append(Attempt(number, deployment, now))

    def end_attempt(self, number: int, deployment: Deployment, now: float, error: str) -> None:
        """Note that the attempt of this number has ended, by the code of a fault or, empty, as it should."""
        for attempt in self.attempts:
            if attempt.number == number:
                if not attempt.ended:
                    attempt.ended = now
                    attempt.error = error
                return
        if len(self.attempts) < ATTEMPTS_MAX:
            attempt = Attempt(number, deployment, 0.0)
            attempt.ended = now
            attempt.error = error
            self.attempts.append(attempt)

    def add_interval(self, name: str, began: float, ended: float) -> None:
        """Note a wait or a check. Beyond INTERVALS_MAX they are left out."""
        intervals = self.intervals
        if intervals is None:
            self.intervals = [Interval(name, began, ended)]
        elif len(intervals) < INTERVALS_MAX:
            intervals.append(Interval(name, began, ended))


def find_attempt_span(request_id: str, number: int) -> str:
    """Return the id of the span of an attempt. It follows from that of the request, which is the random half of the request's id."""
    return f"{(int(request_id[-16:], 16) + number) & 0xFFFF_FFFF_FFFF_FFFF:016x}"


def find_interval_span(request_id: str, index: int) -> str:
    """Return the id of the span of a wait or a check, counted from 0."""
    return find_attempt_span(request_id, 0x1_0000 + index)


def find_response_span(request_id: str) -> str:
    """Return the id of the span of a response in a realtime session. The first response has the id of the request that asked for the
    session, whose span is the session's."""
    return find_attempt_span(request_id, 0x2_0000)
