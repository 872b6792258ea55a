"""Costs of the most expensive inputs: memory as a multiple of their bytes, CPU as a multiple of what sending them costs the client.

The line is Envoy's: a request that costs a hundred times the memory that its bound allows, or a hundred times the client's CPU, is a
security defect. Inputs are made to be as bad as we know; the size is one at which fixed costs no longer count.
"""

import socket
import threading
import time
import tracemalloc
from collections.abc import Callable

from tollway.wire import bodies, segments
from tollway.wire.http import RequestReader, ResponseReader
from tollway.wire.sse import EventReader

SIZE = 256 * 1024
_ROUNDS = 5


def _fill(piece: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    return before + piece * ((SIZE - len(before) - len(after)) // len(piece)) + after


def _list(piece: bytes) -> bytes:
    return _fill(piece + b",", b'{"a":[', b"0]}")


_POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
_OK = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
_WORST: dict[str, tuple[Callable[[bytes], object], list[bytes]]] = {
    "request-head": (
        lambda data: RequestReader().feed(data),
        [_fill(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), _fill(b"1\r\nx\r\n", _POST), _fill(b"a:\r\n", b"GET / HTTP/1.1\r\n")],
    ),
    "request-body": (
        bodies.parse,
        [
            _list(b"[]"),
            _list(b"{}"),
            _list(b"[[[[]]]]"),
            _list(b'{"a":0}'),
            _list(b"1e9"),
            _list(b'""'),
            _fill(b"\\u0041", b'{"a":"', b'"}'),
            b"{" + b",".join(b'"%x":0' % number for number in range(SIZE // 9)) + b"}",
        ],
    ),
    "answer-head": (lambda data: ResponseReader().feed(data), [_fill(b"2\r\nxy\r\n", _OK), _fill(b"1\r\nx\r\n", _OK)]),
    "events": (lambda data: EventReader().feed(data), [_fill(b"a\n\n"), _fill(b"a\r\r"), _fill(b"\n"), _fill(b"\r\n")]),
    "spool-segment": (
        lambda data: list(segments.Reader(1, bytes(16)).read(data)),
        [_fill(b"\x01" + bytes(7)), _fill(b"\1\0\0\0"), bytes(SIZE)],
    ),
}


def worst(parser: str) -> tuple[float | None, float | None]:
    """(peak of memory / bytes of the input, CPU / CPU of sending it) of the worst input known; None for parsers of small things."""
    if parser not in _WORST:
        return None, None
    read, inputs = _WORST[parser]
    return round(max(memory_times_input(read, data) for data in inputs), 1), round(max(_cpu(read, data) for data in inputs), 1)


def memory_times_input(read: Callable[[bytes], object], data: bytes) -> float:
    """Peak of the memory that reading takes, as a multiple of the input."""
    tracemalloc.start()
    try:
        kept = _attempt(read, data)
        _, peak = tracemalloc.get_traced_memory()
        del kept
    finally:
        tracemalloc.stop()
    return peak / len(data)


def worst_inputs() -> dict[str, tuple[Callable[[bytes], object], list[bytes]]]:
    """The reading and the worst inputs known, by parser."""
    return _WORST


def _attempt(read: Callable[[bytes], object], data: bytes) -> object:
    try:
        return read(data)
    except Exception as fault:  # a refusal costs what it costs
        return fault


def _cpu(read: Callable[[bytes], object], data: bytes) -> float:
    reading = min(_time_reading(read, data) for _ in range(_ROUNDS))
    return reading / min(_time_sending(data) for _ in range(_ROUNDS))


def _time_reading(read: Callable[[bytes], object], data: bytes) -> float:
    began = time.thread_time()
    _attempt(read, data)
    return time.thread_time() - began


def _time_sending(data: bytes) -> float:
    """CPU seconds of a client that has the bytes ready and sends them over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        taker, _ = server.accept()
        with client, taker:
            drain = threading.Thread(target=_drain, args=(taker,))
            drain.start()
            began = time.thread_time()
            client.sendall(data)
            spent = time.thread_time() - began
            client.shutdown(socket.SHUT_WR)
            drain.join()
    return spent


def _drain(taker: socket.socket) -> None:
    while taker.recv(1 << 16):
        pass
