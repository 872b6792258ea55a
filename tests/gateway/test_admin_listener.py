"""The internal listener: it answers probes, and a client that is slow, silent, greedy or many cannot hold anything for long."""

import asyncio

import pytest

from tests.gateway.harness import Gateway, connect, gateway, split_answers
from tests.link.link_server import until
from tollway.gateway.edge.edge import EdgeBounds

HASTE = EdgeBounds(head_seconds=0.2, write_stall_seconds=0.2, linger_seconds=0.2, internal_connections_max=3)


async def ask(running: Gateway, data: bytes, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    async with connect(running.internal_port) as client:
        client.send(data)
        (answer,) = split_answers(await client.rest(), [method])
        return answer.status, answer.headers, answer.body


def request(method: str, target: str, more: str = "") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nhost: x\r\n{more}\r\n".encode()


async def test_probes_and_metrics_are_answered_and_the_connection_closes() -> None:
    async with gateway({}) as running:
        assert (await ask(running, request("GET", "/livez")))[::2] == (200, b"ok\n")
        assert (await ask(running, request("GET", "/readyz?verbose")))[::2] == (200, b"ok\n")
        status, headers, body = await ask(running, request("GET", "/metrics"))
        assert status == 200 and headers["connection"] == "close" and b"tollway_requests_running 0.0" in body
        status, headers, body = await ask(running, request("HEAD", "/metrics"), "HEAD")
        assert status == 200 and int(headers["content-length"]) > 100 and body == b""
        running.plane.draining = True
        assert (await ask(running, request("GET", "/readyz")))[0] == 503
        running.plane.draining = False


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("GET", "/"), 404),
        (request("POST", "/metrics"), 405),
        (request("POST", "/metrics", "content-length: 9\r\n"), 405),
        (request("GET", "/metrics", "transfer-encoding: chunked\r\n"), 405),
        (request("PUT", "/elsewhere", "content-length: 1000000\r\n"), 404),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
    ],
    ids=["unknown", "method", "body", "chunked", "unknown-body", "no-http", "no-host"],
)
async def test_everything_else_is_refused_by_its_head(data: bytes, status: int) -> None:
    async with gateway({}, edge_bounds=HASTE) as running:
        assert (await ask(running, data))[0] == status


async def test_12_silent_and_trickling_clients_of_the_internal_listener_are_closed_in_time() -> None:
    async with gateway({}, edge_bounds=HASTE) as running, connect(running.internal_port) as silent, connect(running.internal_port) as slow:
        slow.send(b"GET /metr")
        assert await silent.rest() == b""
        (answer,) = split_answers(await slow.rest())
        assert answer.status == 408


async def test_13_client_of_the_internal_listener_that_does_not_read_is_closed() -> None:
    async with gateway({}, edge_bounds=HASTE) as running:
        running.plane.metrics.refusals.update({f"code_{number}": number for number in range(100_000)})
        _, writer = await asyncio.open_connection("127.0.0.1", running.internal_port, limit=1)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(request("GET", "/metrics"))
        await until(lambda: _open(running) == 1)
        await until(lambda: _open(running) == 0)
        writer.transport.abort()


def _open(running: Gateway) -> int:
    return int(running.plane.metrics.read("tollway_internal_connections"))


async def test_14_internal_connections_beyond_the_bound_are_closed_and_counted() -> None:
    bounds = EdgeBounds(internal_connections_max=2)
    async with (
        gateway({}, edge_bounds=bounds) as running,
        connect(running.internal_port),
        connect(running.internal_port) as second,
        connect(running.internal_port) as third,
    ):
        assert await third.rest() == b""
        assert running.plane.metrics.connections_refused == 1
        second.vanish()
        await until(lambda: _open(running) == 1)
        assert (await ask(running, request("GET", "/livez")))[0] == 200
