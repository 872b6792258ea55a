"""Active probes: an engine that takes no requests is avoided before one fails at it, and used at once when it is back."""

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import msgspec
import pytest

from tests.fakes import PATIENCE_SECONDS, Upstream
from tests.gateway.harness import NOWHERE, Gateway, Served, chat, completion, gateway, post, whole
from tollway.domain import faults
from tollway.domain.catalog import Endpoint, Engine
from tollway.domain.faults import Fault
from tollway.gateway.upstreams import probes
from tollway.gateway.upstreams.health import (
    ALIVE_SECONDS,
    EJECTION_SECONDS,
    SHARE_FIRST,
    SILENT_PROBES_MAX,
    SLOW_START_SECONDS,
    Health,
    Reliability,
)
from tollway.gateway.upstreams.probes import ProbeRequest, ask

CHAT = Endpoint.CHAT_COMPLETIONS


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[tuple[ProbeRequest, list[bytes]]]:
    """A server that answers every request so, or with None not at all; yields how to probe it, and the heads that it got."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        if answer is None:
            with suppress(ConnectionError):
                await reader.read()
        else:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield ProbeRequest("127.0.0.1", port, None, b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n", 5.0), heads
    finally:
        server.close()


ANSWERS: list[tuple[bytes, bool | None]] = [
    (b"HTTP/1.1 200 OK\r\n\r\n", True),
    (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False),
    (b"HTTP/1.1 404 Not Found\r\n\r\n", True),
    (b"HTTP/1.1 401 Unauthorized\r\n\r\n", True),
    (b"", None),
    (b"a" * 10_000, None),
]


@pytest.mark.parametrize(("answer", "found"), ANSWERS)
async def test_only_503_is_the_word_of_an_engine_that_takes_no_requests(answer: bytes, found: bool | None) -> None:
    async with answering(answer) as (request, _):
        assert await ask(request) is found


async def test_engine_may_refuse_by_another_status() -> None:
    async with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as (request, _):
        assert await ask(request) is True
        assert await ask(request._replace(refusals=(b"400",))) is False


async def test_engine_that_cannot_be_connected_to_is_not_ready() -> None:
    async with answering(b"") as (request, _):
        pass
    assert await ask(request) is False


async def test_shortage_of_descriptors_in_this_process_says_nothing_about_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    async def exhausted(*arguments: object, **named: object) -> None:
        asked.append(arguments)
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(asyncio, "open_connection", exhausted)
    async with gateway({"m": Served([NOWHERE])}) as running:
        probing = asyncio.ensure_future(probes.run(running.plane.upstreams.all, 0.01, running.plane.random))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(asked) <= SILENT_PROBES_MAX:
                await asyncio.sleep(0.01)
        (upstream,) = running.plane.upstreams.of("m")
        assert upstream.health.is_ready and not probing.done()
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)


async def test_silence_ends_a_probe_at_its_deadline_and_says_nothing() -> None:
    async with answering(None) as (request, heads):
        assert await ask(request._replace(seconds=0.05)) is None
        assert len(heads) == 1


def test_engine_that_says_no_is_down_until_it_says_otherwise() -> None:
    health = Health()
    assert not health.probed(True, 0.0)
    assert health.probed(False, 1.0) and not health.probed(False, 2.0)
    assert health.reliability(CHAT, 2.0) is Reliability.DOWN and not health.allows(CHAT, 2.0)
    assert health.probed(True, 3.0) and health.allows(CHAT, 3.0)


def test_silence_counts_only_in_a_row_and_not_while_answers_begin() -> None:
    health = Health()
    for _ in range(SILENT_PROBES_MAX - 1):
        assert not health.probed(None, 10.0)
    health.probed(True, 10.0)
    for _ in range(SILENT_PROBES_MAX - 1):
        assert not health.probed(None, 10.0)
    health.begin_answer(CHAT, 10.0)
    assert not health.probed(None, 10.0), "it answers requests"
    assert health.probed(None, 10.0 + ALIVE_SECONDS)


def test_engine_that_came_back_is_tried_at_once_and_one_that_was_never_away_is_not() -> None:
    health = Health()
    health.fail(Fault(faults.UPSTREAM_CONNECT), CHAT, "a", 0.0, has_begun=False)
    assert not health.probed(True, 0.1) and not health.allows(CHAT, 0.1), "some engines say so while each answer fails"
    health.probed(False, 0.2)
    health.probed(True, 0.3)
    assert health.allows(CHAT, 0.3) and EJECTION_SECONDS > 0.3
    health.begin_trial(CHAT, 0.3)
    assert not health.allows(CHAT, 0.35), "by one request"


def test_share_of_an_engine_that_came_back_grows_to_its_weight() -> None:
    health = Health()
    assert health.share(0.0) == 1.0
    health.probed(False, 1.0)
    health.probed(True, 2.0)
    assert health.share(2.0) == SHARE_FIRST
    assert health.share(2.0 + SLOW_START_SECONDS / 2) == pytest.approx(0.5)
    assert health.share(2.0 + SLOW_START_SECONDS) == 1.0


def fail_all(running: Gateway, numbers: range, kind: faults.FaultKind) -> None:
    """Eject these deployments of the model by failures of several organizations."""
    now = asyncio.get_running_loop().time()
    for upstream in running.plane.upstreams.of("m"):
        if int(upstream.deployment.id.rpartition("-")[2]) in numbers:
            for organization in "abc":
                upstream.health.fail(Fault(kind), CHAT, organization, now, has_begun=False)
            assert not upstream.health.allows(CHAT, now)


@pytest.mark.parametrize(("kind", "first"), [(faults.UPSTREAM_FAILED, "0"), (faults.UPSTREAM_CONNECT, "3")])
async def test_doubt_about_most_deployments_is_ignored_and_certainty_is_not(kind: faults.FaultKind, first: str) -> None:
    upstreams = [Upstream([whole(completion(str(number)))]) for number in range(4)]
    async with AsyncExitStack() as stack:
        for upstream in upstreams:
            await stack.enter_async_context(upstream.listening())
        running = await stack.enter_async_context(gateway({"m": Served([upstream.url for upstream in upstreams])}))  # in order of tier
        fail_all(running, range(3), kind)
        answer = await post(running.port, chat())
        assert answer.json()["choices"][0]["message"]["content"] == first


async def wait_for_probes(running: Gateway, *, is_ready: bool) -> None:
    """Wait until the first deployment of the model is known to be ready, or not."""
    (upstream,) = [each for each in running.plane.upstreams.of("m") if each.deployment.tier == 0]
    async with asyncio.timeout(PATIENCE_SECONDS):
        while upstream.health.is_ready is not is_ready:
            await asyncio.sleep(0.01)


async def test_draining_engine_gets_no_request_and_one_that_is_back_gets_the_next() -> None:
    status = 503
    first = Upstream(lambda asked: [whole({}, status) if asked.head.startswith(b"GET /ready ") else whole(completion("first"))])
    second = Upstream([whole(completion("second"))])
    async with first.listening(), second.listening():
        served = Served([first.url, second.url], engine=Engine.SGLANG)
        async with gateway({"m": served}) as running:
            probing = asyncio.ensure_future(probes.run(running.plane.upstreams.all, 0.05, running.plane.random))
            await wait_for_probes(running, is_ready=False)
            for _ in range(5):
                assert b"second" in (await post(running.port, chat())).body
            assert not [asked for asked in first.asked if asked.head.startswith(b"POST")]
            status = 200
            await wait_for_probes(running, is_ready=True)
            assert b"first" in (await post(running.port, chat())).body
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)
            assert b'tollway_upstream_not_ready_total{deployment="dep-m-0"} 1.0' in running.plane.metrics.render()
            log = running.log
    events = [msgspec.json.decode(line)["event"] for line in log.text.splitlines()]
    assert events.index("upstream_not_ready") < events.index("upstream_ready")


async def test_probe_names_the_model_where_the_engine_asks_for_it_and_carries_the_credential() -> None:
    upstream = Upstream(lambda asked: [whole({})])
    async with upstream.listening():
        served = Served([upstream.url + "/base"], engine=Engine.DYNAMO, upstream_model="org/own model", credential=b"secret")
        async with gateway({"m": served}) as running:
            (known,) = running.plane.upstreams.of("m")
            assert known.probe is not None and await ask(known.probe) is True
    head = upstream.asked[0].head
    assert head.startswith(b"GET /base/v1/models/org%2Fown%20model/ready HTTP/1.1\r\n") and b"\r\nauthorization: Bearer secret" in head


async def test_engine_of_which_nothing_is_known_is_not_asked() -> None:
    async with gateway({"m": Served([NOWHERE], engine=Engine.OPENAI)}) as running:
        (known,) = running.plane.upstreams.of("m")
        assert known.probe is None


@pytest.mark.parametrize("host", ["rack..lan", "a" * 64])
async def test_name_that_no_resolver_takes_is_no_engine_and_costs_no_other(host: str) -> None:
    assert await ask(ProbeRequest(host, 80, None, b"GET /health HTTP/1.1\r\n\r\n", PATIENCE_SECONDS)) is False
    async with gateway({"m": Served([f"http://{host}:80"])}) as running:
        answer = await post(running.port, chat())
        await running.sink.settled()
    assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")
