"""Hosts that organizations name, and what they can do to the process that asks them."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.gateway import certificates
from tollway.control import foreign_hosts
from tollway.control.foreign_hosts import Answer, AnswerInvalid, Host, PeerRefused, exchange
from tollway.control.identity.issuer_keys import DOCUMENT_BYTES_MAX

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
ENDLESS_SECONDS = 20.0
"""Deadline of a host that sends without end: whoever reads on meets it."""


@contextmanager
def answering(first: bytes, more: bytes = b"", context: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[bytes]]]:
    """The port of a host that answers each request with `first`, then with `more` until nobody reads it; and what it was sent."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    accepted = listener.accept()[0]
                    with suppress(OSError), accepted:
                        accepted.settimeout(ENDLESS_SECONDS)
                        connection = accepted if context is None else context.wrap_socket(accepted, server_side=True)
                        with connection:
                            heard.append(connection.recv(65536))
                            connection.sendall(first)
                            while more:
                                connection.sendall(more)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1], heard
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def ask(port: int, *, body_bytes_max: int | None = None, tls_name: str | None = None, **allowed: Callable[[str], bool]) -> Answer:
    async def run() -> Answer:
        async with asyncio.timeout(ENDLESS_SECONDS):
            place = Host("127.0.0.1", port, tls_name)
            headers = {"host": "receiver.example"}
            return await exchange(
                place, "POST", "https://receiver.example/in?a=b", headers, b"{}", body_bytes_max=body_bytes_max, **allowed
            )

    return asyncio.run(run())


@pytest.mark.parametrize("body_bytes_max", [None, DOCUMENT_BYTES_MAX])
@pytest.mark.parametrize(
    ("first", "more"),
    [
        (b"", b"HTTP/1.1 100 \r\n\r\n" * 4_096),
        (b"", b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" * 1_024),
        (HEAD, b"a: b\r\n" * 1_024),
        (HEAD + b"a: ", b"b" * 65_536),
        (b"", b"\r\n" * 32_768),
        (b"", b"no answer\r\n" * 1_024),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", b"x" * 1_024),
    ],
    ids=["continue", "hints", "headers", "header", "lines", "noise", "upgrade"],
)
def test_156_host_that_never_comes_to_its_answer_is_left_after_a_bound(first: bytes, more: bytes, body_bytes_max: int | None) -> None:
    with answering(first, more) as (port, _), pytest.raises(AnswerInvalid):
        ask(port, body_bytes_max=body_bytes_max)


@pytest.mark.parametrize(
    ("first", "more"),
    [
        (CHUNKED, b"1\r\na\r\n" * 8_192),
        (CHUNKED, b"1;" + b"e" * 4_000 + b"\r\na\r\n"),
        (CHUNKED + b"1\r\na\r\n0\r\n", b"a: b\r\n" * 1_024),
    ],
    ids=["chunks", "extensions", "trailers"],
)
def test_156_document_that_is_mostly_framing_is_left_after_a_bound(first: bytes, more: bytes) -> None:
    with answering(first, more) as (port, _):
        with pytest.raises(AnswerInvalid):
            ask(port, body_bytes_max=DOCUMENT_BYTES_MAX)
        assert ask(port).status == 200, "where the status alone is wanted, it is all that is read"


def test_156_document_beyond_its_bound_is_read_no_further() -> None:
    with answering(HEAD + b"content-length: 1000000000000\r\n\r\n", b"x" * 65_536) as (port, _):
        assert len(ask(port, body_bytes_max=DOCUMENT_BYTES_MAX).body) <= DOCUMENT_BYTES_MAX + foreign_hosts.READ_BYTES
        assert ask(port) == Answer(200, b"")


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (HEAD + b"content-length: 2\r\n\r\n{}", b"{}"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"content-length: 2\r\n\r\n{}", b"{}"),
        (CHUNKED + b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", b"{}"),
        (HEAD + b"\r\n{}", b"{}"),
        (b"HTTP/1.0 200 OK\r\n\r\n", b""),
    ],
    ids=["length", "after continue", "chunks", "to the end", "empty"],
)
def test_whole_answer_is_returned_however_it_ends(answer: bytes, body: bytes) -> None:
    with answering(answer) as (port, heard):
        assert ask(port, body_bytes_max=16) == Answer(200, body)
    lines = b"host: receiver.example\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"
    assert heard == [b"POST /in?a=b HTTP/1.1\r\n" + lines]


@pytest.mark.parametrize("answer", [b"", HEAD, HEAD + b"content-length: 3\r\n\r\n{}", CHUNKED + b"2\r\n{}\r\n"])
def test_answer_that_breaks_off_is_none(answer: bytes) -> None:
    with answering(answer) as (port, _), pytest.raises((AnswerInvalid, ConnectionError)):
        ask(port, body_bytes_max=16)


def test_address_that_is_not_allowed_is_not_connected_to() -> None:
    with answering(HEAD + b"\r\n") as (port, heard):
        with pytest.raises(PeerRefused):
            ask(port, is_allowed=lambda address: address != "127.0.0.1")
        assert ask(port, is_allowed=lambda address: address == "127.0.0.1").status == 200
    assert len(heard) == 1


def test_certificate_must_be_of_the_host_and_of_a_known_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = certificates.make(tmp_path, "receiver.example")
    with answering(HEAD + b"content-length: 2\r\n\r\n{}", context=certificates.server_side(files)) as (port, heard):
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(port, tls_name="receiver.example")
        trusting = ssl.create_default_context(cafile=files[0])
        monkeypatch.setattr(foreign_hosts, "_find_context", lambda: trusting)
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(port, tls_name="other.example")
        assert ask(port, tls_name="receiver.example", body_bytes_max=16) == Answer(200, b"{}")
    assert len(heard) == 1


def test_header_that_would_be_two_is_refused() -> None:
    async def run() -> None:
        await exchange(Host("127.0.0.1", 9, None), "GET", "http://a/", {"host": "a\r\nb: c"})

    with pytest.raises(ValueError, match="line end"):
        asyncio.run(run())
