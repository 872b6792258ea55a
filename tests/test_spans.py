"""The choice of the traces that are kept, and the spans of an operation."""

import pytest

from tollway.spans import OpenTrace, Sampler, SpanKind, TraceBounds

LOW, HIGH = "0" * 32, "f" * 32


@pytest.mark.parametrize(
    ("ratio", "trace_id", "flags", "is_sampled"),
    [
        (1.0, HIGH, "", True),
        (0.0, LOW, "", False),
        (0.5, "0" * 19 + "7" + "f" * 12, "", True),
        (0.5, "0" * 19 + "8" + "0" * 12, "", False),
        (0.0, HIGH, "01", True),
        (0.0, HIGH, "03", True),
        (1.0, LOW, "00", False),
        (1.0, LOW, "02", False),
    ],
)
def test_flag_of_the_parent_decides_and_without_one_the_share(ratio: float, trace_id: str, flags: str, is_sampled: bool) -> None:
    assert Sampler(TraceBounds(sample_ratio=ratio)).samples(trace_id, flags, 0.0) is is_sampled


def test_failed_and_slow_traces_are_kept_and_all_together_only_so_many_a_second() -> None:
    sampler = Sampler(TraceBounds(sample_ratio=0.0, slow_seconds=2.0, traces_per_second_max=3))
    assert not sampler.keeps(is_failed=False, seconds=1.9, now=7.0)
    assert sampler.keeps(is_failed=True, seconds=0.0, now=7.0) and sampler.keeps(is_failed=False, seconds=2.0, now=7.1)
    assert sampler.samples(LOW, "01", 7.2) and not sampler.samples(LOW, "01", 7.3) and not sampler.keeps(is_failed=True, seconds=0, now=7.9)
    assert sampler.suppressed == 2
    assert sampler.samples(LOW, "01", 8.0)


def test_an_operation_collects_a_bounded_number_of_spans_below_its_own() -> None:
    ids = iter(f"{number:016x}" for number in range(1, 1000))
    now = iter(range(1_000, 100_000))
    trace = OpenTrace(LOW, "", is_sampled=True, new_span_id=lambda: next(ids), now_us=lambda: next(now))
    for _ in range(OpenTrace.SPANS_MAX + 5):
        trace.add("SELECT keys", SpanKind.CLIENT, 1_001, "", {})
    own, *below = trace.end("GET /v1/models", SpanKind.SERVER, "", {"a": 1})
    assert (own.span_id, own.parent_id, own.attributes) == ("0" * 15 + "1", "", {"a": 1, "tollway.spans_left_out": 5})
    assert len(below) == OpenTrace.SPANS_MAX and {span.parent_id for span in below} == {own.span_id}
    assert all(own.start_us <= span.start_us <= span.end_us <= own.end_us for span in below)
