"""Counters out of pages of metrics: the right sums of what engines write, and no number out of what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, generate_latest

from tollway.simulator import metrics
from tollway.wire.exposition import COUNT_MAX, SERIES_MAX, sum_counters

NAMES = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")


def read(page: bytes) -> list[int]:
    return sum_counters(page, NAMES, "vllm:")


def test_series_are_summed_and_neighbours_left_alone() -> None:
    page = b"""# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="m{}\\" }"} 1.5e+06
vllm:prompt_tokens_total{engine="1",model_name="m"} 2
vllm:prompt_tokens_total_created{engine="1"} 1.7e9
vllm:prompt_tokens_by_source_total{source="local_compute"} 77
vllm:generation_tokens_total 3.0 1790000000000
python_gc_objects_collected_total{generation="0"} 99
"""
    assert read(page) == [1_500_002, 3]


def test_what_the_simulator_and_the_common_library_write_can_be_read() -> None:
    counters = metrics.Counters()
    counters.prompt(123_456, 400)
    page = metrics.render(counters, model='a"b\\c', running=0, waiting=0, cache_usage=0.0, blocks=1, block_tokens=1)
    assert read(page) == [123_456, 0]
    registry = CollectorRegistry()
    Counter("vllm:prompt_tokens", "Tokens.", ["model_name"], registry=registry).labels('x"}y\n').inc(2**40 + 1)
    assert read(generate_latest(registry)) == [2**40 + 1, 0]


def test_a_counter_that_has_not_counted_yet_is_zero_and_a_page_of_something_else_is_an_error() -> None:
    assert read(b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 0\n") == [0, 0]
    assert read(b"# TYPE vllm:prompt_tokens_total counter\n") == [0, 0]
    for page in (b"", b"sglang:prompt_tokens_total 5\n", b"<html>vllm:prompt_tokens_total 5</html>", b"{}", b"\xff\xfe\x00"):
        with pytest.raises(ValueError, match="without vllm"):
            read(page)


@pytest.mark.parametrize(
    "value", ["NaN", "+Inf", "-1", "-0.5", "1_0", "0x10", "", "1e400", str(COUNT_MAX * 2), "5 5 5", "five", "1.2.3", "1e", '{a="b" 5']
)
def test_what_no_counter_can_say_is_an_error(value: str) -> None:
    with pytest.raises(ValueError, match="vllm:prompt_tokens_total"):
        read(f"vllm:prompt_tokens_total {value}\n".encode())


def test_a_series_that_stands_twice_or_too_many_of_them_are_errors() -> None:
    with pytest.raises(ValueError, match="twice"):
        read(b'vllm:prompt_tokens_total{a="1"} 1\nvllm:prompt_tokens_total{a="1"} 1\n')
    page = b"".join(b'vllm:prompt_tokens_total{a="%d"} 1\n' % number for number in range(SERIES_MAX + 1))
    with pytest.raises(ValueError, match="out of range"):
        read(page)


@given(st.binary(max_size=400))
def test_no_bytes_make_it_fail_in_another_way(noise: bytes) -> None:
    for page in (noise, b"vllm:prompt_tokens_total" + noise, b'vllm:prompt_tokens_total{a="' + noise):
        try:
            assert all(value >= 0 for value in read(page))
        except ValueError:
            pass
