"""Costs of the most expensive inputs: memory as a multiple of their bytes, CPU as a multiple of what sending them costs the client.

The line is Envoy's: a request that costs a hundred times the memory that its bound allows, or a hundred times the client's CPU, is a
security defect. Inputs are made to be as bad as we know; the size is one at which fixed costs no longer count. They are fed in pieces of
the size in which a socket delivers them, until the reader refuses, because a connection is closed then. Where a reader passes the line of
CPU, EXPLAINED says what bounds it outside the reader; R18 measures whole gateways with the same kinds of input.
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
READ_BYTES = 64 * 1024
"""Bytes that a socket delivers at once."""
TIMES_MAX = 100.0
"""Multiple from which on a cost is a defect, unless EXPLAINED has its reader."""
_ROUNDS = 5
_COPIES = 64
"""Copies of an input that are sent to time the client: the clock of a thread's CPU is too coarse for one alone."""


def _fill(piece: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    return before + piece * ((SIZE - len(before) - len(after)) // len(piece)) + after


def _list(piece: bytes) -> bytes:
    return _fill(piece + b",", b'{"a":[', b"0]}")


def _feed_requests(data: bytes) -> object:
    reader, requests = RequestReader(), []
    for start in range(0, len(data), READ_BYTES):
        requests += reader.feed(data[start : start + READ_BYTES])
        if reader.fault is not None:
            break
    return requests


def _feed_answer(data: bytes) -> object:
    reader = ResponseReader()
    for start in range(0, len(data), READ_BYTES):
        reader.feed(data[start : start + READ_BYTES])
    return reader


def _feed_events(data: bytes) -> object:
    reader = EventReader()
    return [reader.feed(data[start : start + READ_BYTES]) for start in range(0, len(data), READ_BYTES)]


_POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
_OK = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
_WORST: dict[str, tuple[Callable[[bytes], object], list[bytes]]] = {
    "request-head": (
        _feed_requests,
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
    "answer-head": (_feed_answer, [_fill(b"2\r\nxy\r\n", _OK), _fill(b"1\r\nx\r\n", _OK)]),
    "events": (_feed_events, [_fill(b"a\n\n"), _fill(b"a\r\r"), _fill(b"\n"), _fill(b"\r\n")]),
    "spool-segment": (
        lambda data: list(segments.Reader(1, bytes(16), is_from_disk=False).read(data)),
        [_fill(b"\x01" + bytes(7)), _fill(b"\1\0\0\0"), bytes(SIZE)],
    ),
}


EXPLAINED = {
    "request-head": "one connection has a bounded number of requests read ahead, and one of bad framing is closed",
    "request-body": "at most 500,000 values; a large body is charged to the rate of its key before it is read, by another process",
    "answer-head": "an engine sends it, not a client; its answer is bounded, and its deployment is ejected for faults",
    "events": "an engine sends them, not a client; its answer is bounded, and each event is relayed to the client who asked",
}
"""The bound on the CPU of each reader whose cost may pass TIMES_MAX."""


def explain(parser: str, cpu_times_client: float | None) -> str | None:
    """Return what bounds a reader that passes TIMES_MAX; None for one that does not, or that nothing explains."""
    return EXPLAINED.get(parser) if cpu_times_client is not None and cpu_times_client > TIMES_MAX else None


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
    return reading / min(_time_sending(data * _COPIES) for _ in range(_ROUNDS)) * _COPIES


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
