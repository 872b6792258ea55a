"""Traces of what a control process does: operations of its two interfaces and runs of its jobs, with the SQL statements of each."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from tollway.spans import CURRENT_TRACE, TRACEPARENT, OpenTrace, Sampler, Span, SpanAttribute, SpanKind


@dataclass(slots=True)
class TracedOperation:
    """An operation whose trace is open. `name`, `error`, `attributes`: of its span, set before it ends; `error`: empty if it succeeded.
    `is_long`: it may last as long as it likes, so that its length says nothing."""

    name: str
    kind: SpanKind
    error: str = ""
    attributes: Mapping[str, SpanAttribute] | None = None
    is_long: bool = False


@dataclass(frozen=True, slots=True)
class ControlTracer:
    """The traces of one control process. `take` receives the spans of each trace that is kept, and must not wait. `random_bits(n)`: n fresh
    random bits; `now`: UTC microseconds."""

    sampler: Sampler
    take: Callable[[list[Span]], None]
    random_bits: Callable[[int], int]
    now: Callable[[], int]

    @contextmanager
    def operation(self, name: str, kind: SpanKind, traceparent: bytes = b"") -> Iterator[TracedOperation]:
        """Trace what the block does, and what tasks and threads do that it starts. `traceparent`: of the client; one that is none
        begins a new trace."""
        parent = TRACEPARENT.fullmatch(traceparent)
        began = time.monotonic()
        trace_id = f"{self.random_bits(128):032x}" if parent is None else parent[1].decode()
        trace = OpenTrace(
            trace_id,
            "" if parent is None else parent[2].decode(),
            is_sampled=self.sampler.samples(trace_id, "" if parent is None else parent[3].decode(), began),
            new_span_id=self._new_span_id,
            now_us=self.now,
        )
        made = TracedOperation(name, kind)
        token = CURRENT_TRACE.set(trace)
        try:
            yield made
        except BaseException as error:
            made.error = made.error or type(error).__name__
            raise
        finally:
            CURRENT_TRACE.reset(token)
            now = time.monotonic()
            seconds = 0.0 if made.is_long else now - began
            if trace.is_sampled or self.sampler.keeps(is_failed=bool(made.error), seconds=seconds, now=now):
                self.take(trace.end(made.name, kind, made.error, made.attributes or {}))

    def _new_span_id(self) -> str:
        return f"{self.random_bits(64) | 1:016x}"
