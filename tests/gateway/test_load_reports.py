"""Load reports of engines: what they say decides, and what cannot be understood changes nothing."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import PATIENCE_SECONDS, until
from tests.gateway.harness import NOWHERE, Served, gateway
from tests.gateway.test_probes import answering
from tollway.domain.catalog import Engine
from tollway.engines.profile import LoadSource
from tollway.engines.table import ENGINES
from tollway.gateway.prefix_routing import REPORT_SECONDS, Load
from tollway.gateway.upstreams import load_reports
from tollway.gateway.upstreams.load_reports import REPORT_BYTES_MAX, LoadQuery, ask, read_report
from tollway.gateway.upstreams.probes import ProbeRequest
from tollway.simulator.metrics import Counters, render

SGLANG = ENGINES[Engine.SGLANG].load
VLLM = ENGINES[Engine.VLLM].load
TRITON = ENGINES[Engine.TRITON].load
assert SGLANG is not None and VLLM is not None and TRITON is not None


def answer(body: bytes, *, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (status, len(body), body)


def vllm_page(waiting: int) -> bytes:
    return render(Counters(), model="m", running=3, waiting=waiting, cache_usage=0.5, blocks=10, block_tokens=16)


def test_report_of_each_data_parallel_rank_is_added() -> None:
    page = b'{"timestamp":"2026-01-01T00:00:00","loads":[{"dp_rank":0,"num_waiting_uncached_tokens":70},{"num_waiting_uncached_tokens":5}]}'
    assert read_report(page, SGLANG) == 75.0
    ranks = (
        b'# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{engine="0"} 2.0\nvllm:num_requests_waiting{engine="1"} 3.0\n'
    )
    assert read_report(ranks, VLLM) == 5.0


def test_gauge_of_a_longer_name_is_not_taken_for_the_one_asked_for() -> None:
    assert read_report(vllm_page(4), VLLM) == 4.0, "vllm:num_requests_waiting_by_reason counts the same requests again"


def test_gauge_of_triton_counts_the_requests_that_wait_and_no_others() -> None:
    page = b"".join(
        b'nv_trt_llm_request_metrics{model="llm",request_type="%b",version="1"} %d\n' % row
        for row in ((b"waiting", 3), (b"scheduled", 50), (b"max", 512), (b"active", 53))
    )
    assert read_report(page, TRITON) == 3.0
    with pytest.raises(ValueError, match="without"):
        read_report(page.replace(b'"waiting"', b'"context"'), TRITON)


@pytest.mark.parametrize(
    ("body", "source"),
    [
        (b"", VLLM),
        (b"vllm:num_requests_running 1\n", VLLM),
        (b"vllm:num_requests_waiting NaN\n", VLLM),
        (b"vllm:num_requests_waiting -1\n", VLLM),
        (b"vllm:num_requests_waiting 1e300\n", VLLM),
        (b"", SGLANG),
        (b"[]", SGLANG),
        (b'{"loads":[]}', SGLANG),
        (b'{"loads":{}}', SGLANG),
        (b'{"loads":[{"num_waiting_uncached_tokens":true}]}', SGLANG),
        (b'{"loads":[{"num_waiting_uncached_tokens":-1}]}', SGLANG),
        (b'{"loads":[{"num_waiting_uncached_tokens":1e300}]}', SGLANG),
        (b'{"loads":[[1]]}', SGLANG),
        (b'{"loads":' + b"[" * 5000, SGLANG),
    ],
)
def test_report_that_cannot_be_understood_is_refused_and_never_zero(body: bytes, source: LoadSource) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_report(body, source)


@pytest.mark.parametrize(
    ("bytes_sent", "found"),
    [
        (answer(vllm_page(4)), 4.0),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + vllm_page(4), 4.0),
        (answer(vllm_page(4), status=b"404 Not Found"), None),
        (answer(vllm_page(4))[:-10], None),
        (answer(b"a" * (REPORT_BYTES_MAX + 1) + vllm_page(4)), None),
        (b"nothing of HTTP\r\n\r\n", None),
        (b"", None),
        (None, None),
    ],
)
async def test_engine_is_asked_with_bounds_and_a_deadline(bytes_sent: bytes | None, found: float | None) -> None:
    async with answering(bytes_sent) as (request, heads):
        seconds = 0.1 if bytes_sent is None else PATIENCE_SECONDS
        assert await ask(LoadQuery(request._replace(seconds=seconds), VLLM)) == found
        assert len(heads) == 1


async def test_engine_that_cannot_be_connected_to_reports_nothing() -> None:
    async with answering(b"") as (request, _):
        pass
    assert await ask(LoadQuery(request, VLLM)) is None


@pytest.mark.parametrize("host", ["rack..lan", "a" * 64])
async def test_name_that_no_resolver_takes_reports_nothing(host: str) -> None:
    request = ProbeRequest(host, 80, None, b"GET /metrics HTTP/1.1\r\n\r\n", PATIENCE_SECONDS)
    assert await ask(LoadQuery(request, VLLM)) is None


def test_report_replaces_the_estimate_and_what_is_sent_afterwards_is_added() -> None:
    load = Load("dep")
    load.send(800.0)
    load.report_tokens(300.0)
    assert load.queued_tokens == 300.0
    load.send(800.0)
    assert load.queued_tokens == 1100.0
    load.begin_answer(800.0)
    assert load.queued_tokens == 300.0
    load.begin_answer(800.0)
    assert load.queued_tokens == 0.0, "never below nothing"


def test_report_fades_and_the_own_requests_remain() -> None:
    load = Load("dep")
    load.send(100.0)
    load.report_tokens(1100.0)
    load.fade(REPORT_SECONDS)
    assert load.queued_tokens == pytest.approx(100 + 1000 / 2.718281828)
    load.fade(100 * REPORT_SECONDS)
    assert load.queued_tokens == pytest.approx(100.0)


def test_waiting_requests_of_others_count_as_much_as_the_own_ones_did() -> None:
    load = Load("dep")
    for _ in range(1000):
        load.send(4000.0)
        load.begin_answer(4000.0)
    load.send(2000.0)  # 500 of this gateway's own, times 4 gateways
    load.report_requests(3.0, 4)
    assert load.queued_tokens == pytest.approx(500 + 2 * 1000, rel=0.05)
    load.report_requests(0.0, 4)
    assert load.queued_tokens == pytest.approx(500)


@given(st.lists(st.tuples(st.sampled_from(["send", "report", "fade", "begin"]), st.floats(0, 1e9)), max_size=60))
def test_load_is_never_negative_and_nothing_is_left_of_requests_once_reports_have_faded(steps: list[tuple[str, float]]) -> None:
    load, sent = Load("dep"), list[float]()
    for step, amount in steps:
        if step == "send":
            load.send(amount)
            sent.append(amount)
        elif step == "report":
            load.report_tokens(amount)
        elif step == "fade":
            load.fade(amount)
        elif sent:
            load.begin_answer(sent.pop())
        assert load.queued_tokens >= 0.0
    while sent:
        load.begin_answer(sent.pop())
    for _ in range(100):
        load.fade(REPORT_SECONDS)
    assert load.queued_tokens == 0.0


async def test_engine_with_an_alternative_is_asked_and_its_report_counts() -> None:
    async with answering(answer(vllm_page(7))) as (request, heads):
        url = f"http://127.0.0.1:{request.port}"
        async with gateway({"m": Served([url, NOWHERE], one_tier=True), "alone": Served([url])}) as running:
            upstreams = running.plane.upstreams
            asking = asyncio.ensure_future(load_reports.run(upstreams.list_alternatives, lambda: 1, 0.01, running.plane.random))
            one, nowhere = upstreams.of("m")
            (alone,) = upstreams.of("alone")
            one.load.send(100.0)
            one.load.begin_answer(100.0)
            await until(lambda: one.load.queued_tokens > 0 and bool(running.plane.metrics.load_reports_failed.get(nowhere.deployment.id)))
            assert b"GET /metrics HTTP/1.1" in heads[0]
            assert nowhere.load.queued_tokens == 0 and alone.load_at == 0.0
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
