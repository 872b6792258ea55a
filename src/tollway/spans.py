"""Spans of traces as they are made, before any exporter knows of them, and the decision which traces are kept.

A trace is sampled by its beginning: by the flag of the parent (W3C Trace Context), or by a share of those without one. Others are kept by
their end, if they failed or were slow. Both together are bounded for each second, because a client can ask for sampling as often as it
likes. Spans never hold content, and no secrets.
"""

import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from enum import IntEnum
from typing import ClassVar, Final

import msgspec

SpanAttribute = str | int | float | bool

TRACEPARENT: Final = re.compile(rb"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
"""A valid `traceparent` (W3C Trace Context, section 3.2): trace, parent span and flags."""


class SpanKind(IntEnum):
    """Kinds of spans, by their numbers in OTLP (opentelemetry/proto/trace/v1/trace.proto)."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3


class Span(msgspec.Struct, array_like=True, gc=False):
    """A span that has ended. `trace_id`: 32 hexadecimal digits; `span_id`, `parent_id`: 16, no parent: empty. `start_us`, `end_us`: UTC
    microseconds. `error`: the kind of error that ended it (`error.type`), or empty. `events`: name and UTC microseconds of each."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: int
    start_us: int
    end_us: int
    error: str
    attributes: Mapping[str, SpanAttribute]
    events: tuple[tuple[str, int], ...] = ()


class TraceBounds(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on the traces that are kept. `sample_ratio`: share of requests without a parent that are sampled, 0 to 1. `slow_seconds`:
    requests that take longer are kept in any case, as failed ones are. `traces_per_second_max`: most traces that one process keeps each
    second."""

    sample_ratio: float = 0.01
    slow_seconds: float = 30.0
    traces_per_second_max: int = 100


SAMPLED_DIGITS: Final = 13
"""Digits at the end of a trace id that decide: they are random in every id that this product makes."""


class Sampler:
    """The decision which traces one process keeps. `threshold`: a trace without a parent is sampled if its last SAMPLED_DIGITS come before
    it. `suppressed`: traces that were not kept because there were too many in their second."""

    def __init__(self, bounds: TraceBounds) -> None:
        self.suppressed = 0
        self.slow_seconds = bounds.slow_seconds
        self._per_second_max = bounds.traces_per_second_max
        share = int(bounds.sample_ratio * 16**SAMPLED_DIGITS)
        self.threshold = f"{share:0{SAMPLED_DIGITS}x}" if bounds.sample_ratio < 1 else "g"  # behind each digit
        self._second = -1
        self._left = 0

    def samples(self, trace_id: str, parent_flags: str, now: float) -> bool:
        """Return whether a trace that begins is sampled. `parent_flags`: two hexadecimal digits, empty without a parent. `now`: seconds of
        the monotonic clock."""
        is_asked = parent_flags[1] in "13579bdf" if parent_flags else trace_id[-SAMPLED_DIGITS:] < self.threshold
        return is_asked and self.spend(now)

    def keeps(self, *, is_failed: bool, seconds: float, now: float) -> bool:
        """Return whether a trace is kept that was not sampled, by its end."""
        return (is_failed or seconds >= self.slow_seconds) and self.spend(now)

    def spend(self, now: float) -> bool:
        """Return whether one trace more may be kept in this second of the monotonic clock, and count it."""
        second = int(now)
        if second != self._second:
            self._second = second
            self._left = self._per_second_max
        if self._left <= 0:
            self.suppressed += 1
            return False
        self._left -= 1
        return True


class OpenTrace:
    """The trace of an operation that runs, for the spans below its own. May be used by the worker threads of the operation, one at a time.

    `new_span_id`: a fresh id for each span; `now_us`: UTC microseconds."""

    SPANS_MAX: ClassVar = 256
    """Spans below that of the operation; a loop over many statements shows its first ones. Further ones are counted in `left_out`."""

    __slots__ = ("is_sampled", "left_out", "new_span_id", "now_us", "parent_id", "span_id", "spans", "start_us", "trace_id")

    def __init__(
        self, trace_id: str, parent_id: str, *, is_sampled: bool, new_span_id: Callable[[], str], now_us: Callable[[], int]
    ) -> None:
        self.trace_id = trace_id
        self.parent_id = parent_id
        self.is_sampled = is_sampled
        self.new_span_id = new_span_id
        self.now_us = now_us
        self.span_id = new_span_id()
        self.start_us = now_us()
        self.spans: list[Span] = []
        self.left_out = 0

    def add(self, name: str, kind: SpanKind, start_us: int, error: str, attributes: Mapping[str, SpanAttribute]) -> None:
        """Add a span that ends now, below that of the operation."""
        if len(self.spans) >= self.SPANS_MAX:
            self.left_out += 1
            return
        self.spans.append(
            Span(self.trace_id, self.new_span_id(), self.span_id, name, kind, start_us, max(start_us, self.now_us()), error, attributes)
        )

    def end(self, name: str, kind: SpanKind, error: str, attributes: Mapping[str, SpanAttribute]) -> list[Span]:
        """Return all spans of the operation, which ends now, its own first."""
        if self.left_out:
            attributes = {**attributes, "tollway.spans_left_out": self.left_out}
        end_us = max(self.start_us, self.now_us())
        return [Span(self.trace_id, self.span_id, self.parent_id, name, kind, self.start_us, end_us, error, attributes), *self.spans]


CURRENT_TRACE: Final[ContextVar[OpenTrace | None]] = ContextVar("current_trace", default=None)
"""The trace of the operation that the current task or thread works for; None where it has none."""
