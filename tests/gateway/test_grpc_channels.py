"""Channels to the gRPC ports of engines: what they carry ends by itself, and whom they trust."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.fakes import PATIENCE_SECONDS
from tests.gateway.authorities import issue
from tollway.gateway.open_inference import channels
from tollway.gateway.open_inference.calls import STREAM, UNARY
from tollway.gateway.open_inference.channels import Channels, find_place
from tollway.gateway.open_inference.server import SERVICE, make_credentials


def upstream(port: int, scheme: str = "http") -> Any:
    return SimpleNamespace(grpc_target=f"localhost:{port}", deployment=SimpleNamespace(base_url=f"{scheme}://localhost:1"))


async def start(handlers: dict[str, Any], credentials: grpc.ServerCredentials | None = None) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_secure_port("127.0.0.1:0", credentials) if credentials else server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port


async def test_calls_go_on_when_their_channel_is_left_and_it_is_closed_after_the_last() -> None:
    release = asyncio.Event()
    begun = asyncio.Semaphore(0)

    async def infer(message: bytes, context: Any) -> bytes:
        begun.release()
        await release.wait()
        return b"answer"

    async def stream(messages: Any, context: Any) -> None:
        await context.write(b"first")
        await infer(b"", context)
        await context.write(b"last")

    handlers = {UNARY: grpc.unary_unary_rpc_method_handler(infer), STREAM: grpc.stream_stream_rpc_method_handler(stream)}
    server, port = await start(handlers)
    made = Channels(1 << 20, PATIENCE_SECONDS)
    engine = upstream(port)
    asking = asyncio.ensure_future(made.ask(engine, UNARY, b"", (), PATIENCE_SECONDS))
    call = await made.open_stream(engine, STREAM, b"", (), PATIENCE_SECONDS)
    assert await call.read() == b"first"
    for _ in range(2):
        await asyncio.wait_for(begun.acquire(), PATIENCE_SECONDS)
    (line,) = made._lines.values()
    made.keep_only(())
    again = asyncio.ensure_future(made.ask(engine, UNARY, b"", (), PATIENCE_SECONDS))
    await asyncio.wait_for(begun.acquire(), PATIENCE_SECONDS)
    made.forget(engine)
    release.set()
    assert (await asking, await again, await call.read(), await call.read()) == (b"answer", b"answer", b"last", grpc.aio.EOF)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while line.channel.get_state() is not grpc.ChannelConnectivity.SHUTDOWN:
            await asyncio.sleep(0)
    assert not made._left and not made._lines
    await made.close()
    await server.stop(None)


async def test_engine_with_tls_is_held_to_what_this_system_trusts_and_is_asked_without_a_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def infer(message: bytes, context: Any) -> bytes:
        return b"answer"

    handlers = {UNARY: grpc.unary_unary_rpc_method_handler(infer)}
    issued = issue("localhost", use=ExtendedKeyUsageOID.SERVER_AUTH)
    certificate, key = (Path(each) for each in issued.write(tmp_path, "engine"))
    secure, secure_port = await start(handlers, make_credentials(key.read_bytes(), certificate.read_bytes()))
    plain, port = await start(handlers)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    made = Channels(1 << 20, PATIENCE_SECONDS)
    assert await made.ask(upstream(port), UNARY, b"", (), PATIENCE_SECONDS) == b"answer"
    assert await made.ask(upstream(secure_port, "https"), UNARY, b"", (), PATIENCE_SECONDS) == b"answer"
    monkeypatch.setenv("SSL_CERT_FILE", str(Path(issue("localhost").write(tmp_path, "other")[0])))
    made.forget(upstream(secure_port, "https"))
    with pytest.raises(grpc.aio.AioRpcError):
        await made.ask(upstream(secure_port, "https"), UNARY, b"", (), PATIENCE_SECONDS)
    assert find_place(upstream(port)) != find_place(upstream(port, "https"))
    await made.close()
    await secure.stop(None)
    await plain.stop(None)


def test_certificates_are_read_from_the_file_and_the_directory_of_openssl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert channels.read_roots() is None
    for name, text in (("0a1b2c3d.0", "one"), ("0a1b2c3d.1", "two"), ("notes.txt", "other")):
        (tmp_path / name).write_text(text)
    assert channels.read_roots() == b"one\ntwo"
