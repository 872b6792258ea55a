"""Output of the bytes of one answer: HTTP framing, and the faults that live below the events (`cut-bytes`, `drip`).

Every write may carry three things: the tokens that count as delivered with it, what must happen just before it (the
truth record of an answer that it completes) and what happens right after it (the connection is free, or hangs up).
Dripped, the three wait for the last drop.
"""

from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple, Protocol

from tollway.simulator.engine import Wheel
from tollway.simulator.faults import Plan

_DRIP_SECONDS = 0.001  # one drop per tick of the wheel: each becomes a segment of its own


class Line(Protocol):
    """The connection, as an answer sees it."""

    paused: bool  # the client does not read
    chunked: bool  # HTTP/1.1; an HTTP/1.0 stream ends with the connection

    def write(self, data: bytes) -> None:
        """Hands bytes to the socket."""

    def answered(self, stale_seconds: float | None, *, close: bool) -> None:
        """The answer is complete: on to the next request, or `close`, or close unannounced in so many seconds."""

    def hang_up(self, *, reset: bool) -> None:
        """Ends the connection at once, by RST or by FIN."""


class _Drop(NamedTuple):
    """Bytes of a write that is dripped, with what its last drop carries."""

    data: bytes
    tokens: int = 0
    before: Callable[[], None] | None = None
    after: Callable[[], None] | None = None


class Outlet:
    """The body of one answer on its way to the socket. `framed` for a chunked body. `cut` is called where
    `cut-bytes` strikes.
    """

    __slots__ = ("_clock", "_closed", "_cut", "_drops", "_framed", "_line", "_plan", "_sent_bytes", "_wheel", "delivered_tokens")

    def __init__(self, line: Line, plan: Plan, wheel: Wheel, clock: Callable[[], float], cut: Callable[[], None], *, framed: bool) -> None:
        self._line = line
        self._plan = plan
        self._wheel = wheel
        self._clock = clock
        self._cut = cut
        self._framed = framed
        self._sent_bytes = 0
        self._closed = False
        self._drops: deque[_Drop] = deque()
        self.delivered_tokens = 0

    @property
    def dripping(self) -> bool:
        """There are bytes that have not been handed to the socket."""
        return bool(self._drops)

    def send(self, data: bytes, tokens: int) -> None:
        """Sends a part of a stream's body."""
        limit = self._plan.cut_bytes
        if limit is not None and self._sent_bytes + len(data) >= limit:
            self._send_and_cut(b"", data, limit - self._sent_bytes, tokens)
            return
        self._sent_bytes += len(data)
        self._emit(b"%x\r\n%s\r\n" % (len(data), data) if self._framed else data, tokens)

    def send_last(
        self, data: bytes, tokens: int, before: Callable[[], None], after: Callable[[], None], *, prefix: bytes = b"", kept: int = 1
    ) -> None:
        """Sends the end of the body, with `prefix` (a head) in front. `cut-bytes` never lets the last `kept` bytes
        of it pass.
        """
        if self._plan.cut_bytes is not None:
            self._send_and_cut(prefix, data, min(self._plan.cut_bytes - self._sent_bytes, max(0, len(data) - kept)), tokens)
            return
        if self._framed:
            data = b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        self._emit(prefix + data, tokens, before, after)

    def forget(self) -> None:
        """Drops what has not been sent: the client is gone."""
        self._closed = True
        self._drops.clear()

    def _send_and_cut(self, prefix: bytes, data: bytes, allowed: int, tokens: int) -> None:
        part = data[:allowed]
        if self._framed and part:
            part = b"%x\r\n%s" % (len(data), part)
        self._emit(prefix + part, tokens if allowed == len(data) else 0, None, self._cut)
        self._closed = True

    def _emit(self, data: bytes, tokens: int, before: Callable[[], None] | None = None, after: Callable[[], None] | None = None) -> None:
        if self._closed:
            return
        if self._plan.drip_bytes:
            size = self._plan.drip_bytes
            idle = not self._drops
            drops = [data[i : i + size] for i in range(0, len(data), size)] or [b""]
            self._drops.extend(_Drop(drop) for drop in drops[:-1])
            self._drops.append(_Drop(drops[-1], tokens, before, after))
            if idle:
                self._wheel.at(self._clock() + _DRIP_SECONDS, self._fall)
            return
        self.delivered_tokens += tokens
        if before is not None:
            before()
        self._line.write(data)
        if after is not None:
            after()

    def _fall(self) -> None:
        if not self._drops:
            return  # the client left
        drop, tokens, before, after = self._drops.popleft()
        self.delivered_tokens += tokens
        if before is not None:
            before()
        self._line.write(drop)
        if after is not None:
            after()
        if self._drops:
            self._wheel.at(self._clock() + _DRIP_SECONDS, self._fall)


def head(status: int, fields: bytes, content_length: int | None, now_seconds: int) -> bytes:
    """A status line and headers as uvicorn sends them. `fields` are header lines, each with its CRLF."""
    length = b"" if content_length is None else b"content-length: %d\r\n" % content_length
    return b"HTTP/1.1 %d %s\r\n%s%s%s\r\n" % (status, _phrase(status), _signature(now_seconds), length, fields)


@lru_cache(maxsize=2)  # the second that is, and the one before it
def _signature(now_seconds: int) -> bytes:
    return b"date: %s\r\nserver: uvicorn\r\n" % formatdate(now_seconds, usegmt=True).encode()


def content_type(kind: bytes) -> bytes:
    """The header line, or none for b""."""
    return b"content-type: %s\r\n" % kind if kind else b""


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b"Unknown"
