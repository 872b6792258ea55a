"""Connections that are opened first: PROXY headers from trusted peers alone, TLS 1.2 and later, both in this order; all of it bounded."""

import asyncio
import ipaddress
import socket
import ssl
import struct
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from tests.fakes import Upstream, until
from tests.gateway import certificates
from tests.gateway.harness import KEY, Gateway, Served, chat, completion, connect, gateway, healthy, message, streamed, whole
from tests.patience import CLIENT_SECONDS
from tollway.gateway.edge.edge import EdgeBounds
from tollway.gateway.edge.edge_policy import EdgePolicy, parse_networks
from tollway.gateway.edge.server import DrainBounds
from tollway.serve.tls import server_context
from tollway.settings import OperatorError

LOOPBACK = parse_networks(["127.0.0.0/8"])
BEHIND = EdgePolicy(trusted=LOOPBACK, proxy_protocol=True, peers_logged=True)
MODELS = f"GET /v1/models HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {KEY}\r\n\r\n".encode()


def header(address: str | None, tlvs: bytes = b"") -> bytes:
    """A PROXY header; None speaks for the proxy itself."""
    if address is None:
        return b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
    source = ipaddress.ip_address(address)
    ports = struct.pack("!HH", 1, 2)
    rest = source.packed + source.packed + ports + tlvs
    return b"\r\n\r\n\0\r\nQUIT\n\x21" + (b"\x11" if source.version == 4 else b"\x21") + struct.pack("!H", len(rest)) + rest


def peers(running: Gateway) -> list[str | None]:
    """Return the requests in the log, once the gateway has ended."""
    return [msgspec.json.decode(line).get("peer") for line in running.log.text.splitlines()]


# The PROXY protocol


async def test_the_address_in_the_header_is_the_clients() -> None:
    upstream = Upstream([whole(completion())])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, rules=BEHIND) as running:
        for address in ("192.0.2.7", "2001:db8::7", None):
            async with connect(running.port) as client:
                client.send(header(address, b"\x04\x00\x02ab" if address else b"") + message(chat()))
                assert (await client.answer()).status == 200
                client.send(message(chat()))
                assert (await client.answer()).status == 200
    assert peers(running) == ["192.0.2.7"] * 2 + ["2001:db8::7"] * 2 + ["127.0.0.1"] * 2


async def test_a_header_may_come_byte_by_byte() -> None:
    async with gateway({}, rules=BEHIND) as running, connect(running.port) as client:
        for byte in header("192.0.2.7"):
            client.send(bytes((byte,)))
            await asyncio.sleep(0.001)
        client.send(MODELS)
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("first", [MODELS, b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\n" + MODELS, header("192.0.2.7")[:12] + bytes(20)])
async def test_a_trusted_proxy_that_does_not_speak_it_is_closed_without_an_answer(first: bytes) -> None:
    async with gateway({}, rules=BEHIND) as running, connect(running.port) as client:
        client.send(first)
        assert await client.rest() == b""
        assert running.plane.metrics.connections_refused == 1


async def test_a_header_from_somebody_else_is_no_request() -> None:
    rules = EdgePolicy(trusted=parse_networks(["192.0.2.0/24"]), proxy_protocol=True)
    async with gateway({}, rules=rules) as running, connect(running.port) as client, connect(running.port) as plain:
        client.send(header("192.0.2.7") + MODELS)
        assert (await client.answer()).error["code"] == "malformed_http"
        assert await client.rest() == b""
        plain.send(MODELS)
        assert (await plain.answer()).status == 200


async def test_a_header_that_does_not_come_ends_the_connection() -> None:
    async with gateway({}, rules=BEHIND, edge_bounds=EdgeBounds(opening_seconds=0.1)) as running, connect(running.port) as client:
        client.send(header("192.0.2.7")[:10])
        assert await client.rest() == b""


async def test_connections_are_bounded_by_the_address_in_the_header() -> None:
    bounds = EdgeBounds(connections_per_peer_max=1)
    async with gateway({}, rules=BEHIND, edge_bounds=bounds) as running, AsyncExitStack() as clients:
        for address, status in (("192.0.2.7", 200), ("192.0.2.7", 503), ("192.0.2.8", 200)):
            client = await clients.enter_async_context(connect(running.port))
            client.send(header(address) + MODELS)
            assert (await client.answer()).status == status


async def test_more_connections_than_may_open_at_once_are_closed() -> None:
    bounds = EdgeBounds(connections_max=2)
    async with (
        gateway({}, rules=BEHIND, edge_bounds=bounds) as running,
        connect(running.port),
        connect(running.port),
        connect(running.port) as third,
    ):
        assert await third.rest() == b""


# TLS


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate for `gateway` that signs itself, and its key."""
    return certificates.make(tmp_path_factory.mktemp("tls"), "gateway")


def client_context(files: tuple[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=files[0])
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


async def test_answers_and_streams_go_through_tls(files: tuple[str, str]) -> None:
    upstream = Upstream([whole(completion())], healthy())
    async with (
        upstream.listening(),
        gateway({"m": Served([upstream.url])}, tls=server_context(*files)) as running,
        connect(running.port, client_context(files)) as client,
    ):
        spoken = client.writer.get_extra_info("ssl_object")
        assert (spoken.version(), spoken.selected_alpn_protocol()) == ("TLSv1.3", "http/1.1")
        client.send(message(chat()))
        assert (await client.answer()).status == 200
        client.send(message(streamed()))
        assert (await client.answer()).events()[-1] == "[DONE]"
        client.send(b"NONSENSE\r\n\r\n")
        assert (await client.answer()).error["code"] == "malformed_http"
        assert await client.rest() == b""


@pytest.mark.parametrize(("version", "is_spoken"), [(ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_1, False)])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
async def test_tls_before_1_2_is_not_spoken(files: tuple[str, str], version: ssl.TLSVersion, is_spoken: bool) -> None:
    context = client_context(files)
    context.minimum_version = context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    async with gateway({}, tls=server_context(*files)) as running:
        if not is_spoken:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                async with connect(running.port, context):
                    pass
            return
        async with connect(running.port, context) as client:
            client.send(MODELS)
            assert (await client.answer()).status == 200


async def test_plain_bytes_and_silence_at_a_tls_listener_are_closed(files: tuple[str, str]) -> None:
    bounds = EdgeBounds(opening_seconds=0.2, connections_per_peer_max=2)
    async with gateway({}, tls=server_context(*files), edge_bounds=bounds) as running:
        async with connect(running.port) as plain, connect(running.port) as silent:
            async with connect(running.port) as third:
                assert await third.rest() == b"", "a third handshake from one address"
            plain.send(MODELS)
            assert b"HTTP" not in await plain.rest()
            assert b"HTTP" not in await silent.rest()
        async with connect(running.port, client_context(files)) as client:
            client.send(MODELS)
            assert (await client.answer()).status == 200


async def test_a_proxy_header_stands_before_tls(files: tuple[str, str]) -> None:
    upstream = Upstream([whole(completion())])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, rules=BEHIND, tls=server_context(*files)) as running:
        answer = await asyncio.to_thread(_ask_through_proxy, running.port, client_context(files))
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert peers(running) == ["192.0.2.7"]


def _ask_through_proxy(port: int, context: ssl.SSLContext) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=CLIENT_SECONDS) as sock:
        sock.sendall(header("192.0.2.7"))
        with context.wrap_socket(sock, server_hostname="gateway") as wrapped:
            wrapped.sendall(message(chat()))
            return wrapped.recv(65536)


async def test_a_drain_waits_for_connections_that_are_opening_but_not_indefinitely() -> None:
    async with gateway({}, rules=BEHIND, drain=DrainBounds(grace_seconds=0.3)) as running, connect(running.port) as client:
        client.send(header("192.0.2.7")[:5])
        await until(lambda: running.plane.is_ready())
        await asyncio.sleep(0.05)
        running.stop.set()
        await running.done
        assert await client.rest() == b""


def test_files_that_are_no_certificate_with_its_key_are_named(files: tuple[str, str], tmp_path: Path) -> None:
    chain, key = files
    assert server_context(None, None) is None
    for wrong in ((chain, None), (None, key), (chain, str(tmp_path / "none.pem")), (key, chain), (chain, chain)):
        with pytest.raises(OperatorError):
            server_context(*wrong)


def test_a_key_with_a_passphrase_is_refused_and_never_asked_for(files: tuple[str, str]) -> None:
    locked = files[1].replace("key.pem", "locked.pem")
    code = f"from tollway.serve.tls import server_context; server_context({files[0]!r}, {locked!r})"
    ended = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "OperatorError" in ended.stderr
    assert "pass phrase" not in ended.stdout + ended.stderr
