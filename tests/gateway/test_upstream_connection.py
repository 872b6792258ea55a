"""An upstream connection alone, between a socket in memory and the pool of a real upstream: its states and what moves it between them."""

import asyncio
import ipaddress
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec
import pytest

from tests.fakes import Transport
from tests.gateway.harness import Log
from tests.patience import PATIENCE_SECONDS
from tollway.domain import addresses, faults
from tollway.domain.catalog import Deployment, Engine
from tollway.domain.faults import Fault
from tollway.domain.tenants import Status
from tollway.gateway.buffers import BufferBounds, Buffers
from tollway.gateway.upstreams import probes
from tollway.gateway.upstreams import upstream as upstream_module
from tollway.gateway.upstreams.connection import (
    _TRANSITIONS,
    DRAIN_BYTES_MAX,
    ConnectionState,
    TransitionError,
    UpstreamConnection,
)
from tollway.gateway.upstreams.open_connections import OpenConnections
from tollway.gateway.upstreams.upstream import (
    DRAIN_SECONDS,
    IDLE_CONNECTIONS_MAX,
    IDLE_SECONDS,
    POOLING_PAUSE_SECONDS,
    REST_SECONDS,
    Upstream,
)
from tollway.telemetry import Metrics
from tollway.wire.http import ReceivedAnswer

WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
CLOSING = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n"
LAST_CHUNK = b"0\r\n\r\n"


@dataclass
class Sink:
    """Keeps what it is told."""

    answers: list[ReceivedAnswer] = field(default_factory=list)
    losses: int = 0

    def received(self, answer: ReceivedAnswer) -> None:
        self.answers.append(answer)

    def received_chunk(self, data: bytes) -> bool:
        return False

    def lost(self) -> None:
        self.losses += 1


@dataclass
class Rig:
    metrics: Metrics
    upstream: Upstream
    connection: UpstreamConnection
    transport: Transport
    sink: Sink
    log: Log

    def ask(self) -> None:
        self.connection.ask(b"POST", self.sink)

    def answered(self, answer: bytes = WHOLE, *, now: float = 0.0) -> None:
        self.ask()
        self.transport.feed(answer)
        self.connection.settle(now)


def new_upstream(metrics: Metrics, log: Log) -> Upstream:
    """An upstream of vLLM."""
    deployment = Deployment(
        id="dep_1", model="m", base_url="http://192.0.2.1:9", engine=Engine.VLLM, upstream_model="m", tier=0, weight=1, region=None,
        status=Status.ACTIVE, created_at=0,
    )  # fmt: skip
    return Upstream(deployment, None, metrics, log.writer, OpenConnections(), Buffers(BufferBounds()))


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    metrics, log = Metrics(), Log()
    upstream = new_upstream(metrics, log)
    connection = UpstreamConnection(upstream)
    yield Rig(metrics, upstream, connection, Transport(connection), Sink(), log)
    log.close()


async def test_connection_through_requests_shows_its_state_and_count(rig: Rig) -> None:
    assert repr(rig.connection) == "<UpstreamConnection NEW requests=0>"
    rig.ask()
    assert repr(rig.connection) == "<UpstreamConnection ACTIVE requests=1>"
    rig.transport.feed(WHOLE)
    assert rig.sink.answers[-1].complete and rig.sink.answers[-1].body == [b"{}"]
    rig.connection.settle(0.0)
    assert repr(rig.connection) == "<UpstreamConnection IDLE requests=1>"
    assert rig.upstream.take_idle(0.0) is rig.connection
    rig.answered()
    assert repr(rig.connection) == "<UpstreamConnection IDLE requests=2>"
    rig.transport.close()
    await asyncio.sleep(0)
    assert repr(rig.connection) == "<UpstreamConnection CLOSED requests=2>"
    assert rig.upstream.take_idle(0.0) is None and not rig.sink.losses


@pytest.mark.parametrize("before", ConnectionState)
@pytest.mark.parametrize("after", ConnectionState)
async def test_transition_not_in_the_table_raises_and_changes_nothing(rig: Rig, before: ConnectionState, after: ConnectionState) -> None:
    rig.connection.state = before
    if after in _TRANSITIONS[before]:
        rig.connection._enter(after)
        assert rig.connection.state is after
    else:
        with pytest.raises(TransitionError, match=f"{before}.*{after}"):
            rig.connection._enter(after)
        assert rig.connection.state is before


async def test_second_request_while_active_raises_and_sends_nothing(rig: Rig) -> None:
    rig.ask()
    with pytest.raises(TransitionError):
        rig.connection.ask(b"SECOND", Sink())
    assert rig.transport.written == b"POST"


@pytest.mark.parametrize("answer", [CLOSING, WHOLE + b"x", WHOLE + WHOLE, b"nonsense\r\n\r\n"], ids=["close", "byte", "answer", "no-http"])
async def test_settle_after_an_answer_without_a_certain_end_closes(rig: Rig, answer: bytes) -> None:
    rig.answered(answer)
    assert rig.connection.state is ConnectionState.CLOSED and rig.transport.aborted
    assert rig.upstream.take_idle(0.0) is None


@pytest.mark.parametrize(("status", "state"), [(b"200 OK", "IDLE"), (b"413 Content Too Large", "CLOSED")])
async def test_191_connection_on_which_a_large_body_was_refused_is_closed(rig: Rig, status: bytes, state: str) -> None:
    rig.connection.ask(b"POST", rig.sink, [b"large"])
    rig.transport.feed(WHOLE.replace(b"200 OK", status))
    rig.connection.settle(0.0)
    assert rig.connection.state == state


@pytest.mark.parametrize(("reads", "state"), [(True, "IDLE"), (False, "CLOSED")])
async def test_191_connection_with_a_large_body_that_its_engine_did_not_read_is_closed(rig: Rig, reads: bool, state: str) -> None:
    loop, size = asyncio.get_running_loop(), 200_000
    connection = UpstreamConnection(rig.upstream)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        transport, _ = await loop.create_connection(lambda: connection, *listener.getsockname())
        engine, _ = listener.accept()
        with engine:
            engine.setblocking(False)
            connection.ask(b"POST", rig.sink, [bytes(size)])
            left = size if reads else 1
            while left > 0:
                left -= len(await loop.sock_recv(engine, 1 << 16))
            await loop.sock_sendall(engine, WHOLE)
            while not rig.sink.answers:
                await asyncio.sleep(0.001)
            assert transport.get_write_buffer_size() == 0, "only the kernel holds it"
            connection.settle(0.0)
            assert connection.state == state
            transport.abort()


async def test_settle_with_an_unsent_request_closes(rig: Rig) -> None:
    """An engine that answers before it has read the request would read its rest as the next one."""
    rig.ask()
    rig.transport.feed(WHOLE)
    rig.transport.unsent_bytes = 1
    rig.connection.settle(0.0)
    assert rig.connection.state is ConnectionState.CLOSED and rig.transport.aborted and rig.upstream.take_idle(0.0) is None


@pytest.mark.parametrize("data", [b"x", WHOLE, b"\r\n"], ids=["byte", "answer", "line"])
async def test_68_bytes_on_an_idle_connection_close_it_and_are_counted(rig: Rig, data: bytes) -> None:
    rig.answered()
    rig.transport.feed(data)
    assert rig.connection.state is ConnectionState.CLOSED and rig.transport.aborted
    assert rig.upstream.take_idle(0.0) is None and rig.metrics.unsolicited == {"dep_1": 1}
    assert b'tollway_upstream_unsolicited_total{deployment="dep_1"} 1.0' in rig.metrics.render()


async def test_68_bytes_on_a_new_connection_close_it_and_are_counted(rig: Rig) -> None:
    rig.transport.feed(WHOLE)
    assert rig.connection.state is ConnectionState.CLOSED and rig.metrics.unsolicited == {"dep_1": 1}


async def test_68_upstream_that_spoke_unasked_keeps_no_connection_for_a_time(rig: Rig) -> None:
    kept = UpstreamConnection(rig.upstream)
    Rig(rig.metrics, rig.upstream, kept, Transport(kept), Sink(), rig.log).answered(now=time.monotonic())
    assert kept.state is ConnectionState.IDLE
    rig.answered(now=time.monotonic())
    rig.transport.feed(WHOLE)
    assert kept.state is ConnectionState.CLOSED, "what was kept before is not used either"
    late = UpstreamConnection(rig.upstream)
    Rig(rig.metrics, rig.upstream, late, Transport(late), Sink(), rig.log).answered(now=time.monotonic())
    assert late.state is ConnectionState.CLOSED
    after = UpstreamConnection(rig.upstream)
    Rig(rig.metrics, rig.upstream, after, Transport(after), Sink(), rig.log).answered(now=time.monotonic() + POOLING_PAUSE_SECONDS)
    assert after.state is ConnectionState.IDLE
    again = UpstreamConnection(rig.upstream)
    Transport(again).feed(WHOLE)
    rig.log.close()
    lines = [msgspec.json.decode(line) for line in rig.log.text.splitlines()]
    assert [(line["event"], line["level"], line["upstream"]) for line in lines] == [("upstream_unsolicited", "error", "dep_1")]
    assert rig.metrics.unsolicited == {"dep_1": 2}


def _make(rig: Rig) -> Rig:
    """Another connection of the same upstream."""
    connection = UpstreamConnection(rig.upstream)
    return Rig(rig.metrics, rig.upstream, connection, Transport(connection), Sink(), rig.log)


async def test_93_connections_of_an_unknown_engine_rest_before_they_are_used_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "PROOFS", 2)
    upstream = rig.upstream = rig.connection.upstream = new_upstream(rig.metrics, rig.log)
    others = [_make(rig) for _ in range(3)]
    for number, each in enumerate(others):
        each.answered(now=float(number))
    assert upstream.take_idle(REST_SECONDS / 2) is None
    assert upstream.take_idle(REST_SECONDS) is others[0].connection
    assert upstream.take_idle(REST_SECONDS) is None
    assert upstream.take_idle(1 + REST_SECONDS) is others[1].connection
    assert upstream.take_idle(2.0) is others[2].connection, "two have rested in silence"
    others[0].connection.close()
    others[1].answered(now=2.0)
    Transport(others[1].connection).feed(WHOLE)
    assert rig.metrics.unsolicited == {"dep_1": 1}
    again = _make(rig)
    again.answered(now=time.monotonic() + POOLING_PAUSE_SECONDS)
    assert upstream.take_idle(time.monotonic() + POOLING_PAUSE_SECONDS) is None, "it has to be known anew"


async def test_93_connection_that_rested_for_too_long_is_closed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "PROOFS", 2)
    rig.upstream = rig.connection.upstream = new_upstream(rig.metrics, rig.log)
    rig.answered(now=0.0)
    assert rig.upstream.take_idle(IDLE_SECONDS) is None
    assert rig.connection.state is ConnectionState.CLOSED


async def test_68_deployment_without_pooling_uses_each_connection_once(rig: Rig) -> None:
    rig.upstream.deployment = msgspec.structs.replace(rig.upstream.deployment, pooling=False)
    rig.answered(now=time.monotonic())
    assert rig.connection.state is ConnectionState.CLOSED and rig.upstream.take_idle(time.monotonic()) is None


@pytest.mark.parametrize("answer", [b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\r\n", b"HTTP/1.0 408 X\r\n\r\n"])
async def test_408_on_an_idle_connection_is_its_end_and_nothing_more(rig: Rig, answer: bytes) -> None:
    rig.answered(now=time.monotonic())
    rig.transport.feed(answer)
    assert rig.connection.state is ConnectionState.CLOSED and rig.metrics.unsolicited == {}
    next_connection = UpstreamConnection(rig.upstream)
    Rig(rig.metrics, rig.upstream, next_connection, Transport(next_connection), Sink(), rig.log).answered(now=time.monotonic())
    assert next_connection.state is ConnectionState.IDLE


async def test_draining_connection_that_ends_its_message_becomes_idle(rig: Rig) -> None:
    rig.answered(CHUNKED)
    assert repr(rig.connection) == "<UpstreamConnection DRAINING requests=1>" and rig.upstream.take_idle(0.0) is None
    rig.transport.feed(LAST_CHUNK)
    assert rig.connection.state is ConnectionState.IDLE and rig.upstream.take_idle(0.0) is rig.connection
    rig.answered()
    assert rig.connection.state is ConnectionState.IDLE and rig.sink.answers[-1].body == [b"{}"], "nothing of the last answer is left"


async def test_draining_connection_with_too_many_bytes_or_another_answer_closes(rig: Rig) -> None:
    rig.answered(CHUNKED)
    chunk = b"1000\r\n" + bytes(4096) + b"\r\n"
    for _ in range(DRAIN_BYTES_MAX // 4096):
        rig.transport.feed(chunk)
        assert rig.connection.state is ConnectionState.DRAINING
    rig.transport.feed(chunk)
    assert rig.connection.state is ConnectionState.CLOSED and rig.transport.aborted


async def test_idle_and_draining_connections_past_their_time_close(rig: Rig) -> None:
    rig.answered(now=10.0)
    rig.upstream.close_idle(10.0 + IDLE_SECONDS / 2)
    assert rig.connection.state is ConnectionState.IDLE
    rig.upstream.close_idle(10.0 + IDLE_SECONDS)
    assert rig.connection.state is ConnectionState.CLOSED
    other = UpstreamConnection(rig.upstream)
    transport = Transport(other)
    other.ask(b"POST", rig.sink)
    transport.feed(CHUNKED)
    other.settle(10.0)
    rig.upstream.close_idle(10.0 + DRAIN_SECONDS / 2)
    assert other.state is ConnectionState.DRAINING
    rig.upstream.close_idle(10.0 + DRAIN_SECONDS)
    assert other.state is ConnectionState.CLOSED and transport.aborted


async def test_idle_connection_older_than_the_engines_keep_alive_is_not_taken(rig: Rig) -> None:
    rig.answered(now=10.0)
    assert rig.upstream.take_idle(10.0 + IDLE_SECONDS) is None and rig.connection.state is ConnectionState.CLOSED


async def test_full_pool_closes_what_it_is_given(rig: Rig) -> None:
    rig.upstream._idle += [UpstreamConnection(rig.upstream)] * IDLE_CONNECTIONS_MAX
    rig.answered()
    assert rig.connection.state is ConnectionState.CLOSED and len(rig.upstream._idle) == IDLE_CONNECTIONS_MAX


async def test_connection_lost_while_active_tells_the_sink_once(rig: Rig) -> None:
    rig.ask()
    rig.transport.close()
    await asyncio.sleep(0)
    assert (rig.sink.losses, rig.connection.state) == (1, ConnectionState.CLOSED)
    rig.connection.settle(0.0)
    rig.connection.close()
    assert (rig.sink.losses, rig.connection.state) == (1, ConnectionState.CLOSED)


async def test_close_while_active_tells_no_sink_and_takes_no_more_bytes(rig: Rig) -> None:
    rig.ask()
    rig.connection.close()
    rig.connection.data_received(WHOLE)
    await asyncio.sleep(0)
    assert not rig.sink.answers and not rig.sink.losses and rig.transport.aborted


async def test_request_on_a_connection_that_the_engine_closed_at_once_is_retried_elsewhere(rig: Rig) -> None:
    rig.transport.close()
    await asyncio.sleep(0)
    with pytest.raises(Fault) as caught:
        rig.ask()
    assert caught.value.kind is faults.UPSTREAM_CONNECT and caught.value.kind.retry is faults.Retry.SAFE


@pytest.mark.parametrize("probed", [False, True])
async def test_79_name_that_resolves_to_a_forbidden_address_gets_no_byte(monkeypatch: pytest.MonkeyPatch, *, probed: bool) -> None:
    received: list[bytes] = []
    ended = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            received.append(await reader.read(100))
        writer.close()
        ended.set()

    monkeypatch.setattr(addresses, "_METADATA", (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")))
    listening = await asyncio.start_server(listen, "127.0.0.1", 0)
    deployment = Deployment(
        id="dep_1", model="m", base_url=f"http://localhost:{listening.sockets[0].getsockname()[1]}", engine=Engine.VLLM, upstream_model="m",
        tier=0, weight=1, region=None, status=Status.ACTIVE, created_at=0,
    )  # fmt: skip
    async with listening:
        upstream = Upstream(deployment, "secret", Metrics(), Log().writer, OpenConnections(), Buffers(BufferBounds()))
        if probed:
            assert upstream.probe is not None
            assert await probes.ask(upstream.probe) is False
        else:
            with pytest.raises(Fault, match="upstream_unreachable"):
                await upstream.connect(2.0)
        await asyncio.wait_for(ended.wait(), PATIENCE_SECONDS)
        assert b"".join(received) == b""
