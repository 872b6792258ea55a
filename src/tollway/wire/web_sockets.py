"""WebSocket (RFC 6455) without I/O, for both ends of a connection: handshake, messages, and the end. Frames are wsproto's.

Messages are texts of at most MESSAGE_BYTES_MAX; extensions are not negotiated, so nothing is ever decompressed.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Final

from wsproto import events
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.utilities import LocalProtocolError

MESSAGE_BYTES_MAX: Final = 1024 * 1024
"""Longest message, and so the longest frame: 20 seconds of uncompressed speech, as JSON."""

FRAMES_MAX: Final = 1024
"""Frames of one message: its bytes at a kilobyte each. A frame of one byte, or of none, costs as much as one of a kilobyte."""

EVENTS_MAX: Final = 32
"""Frames of which one call of `feed` takes care, in about a millisecond: a read of 64 KiB can hold thousands."""

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_REASON_BYTES_MAX: Final = 120
"""A control frame has 125 bytes at most, two of them for the code (section 5.5)."""
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,1024}")

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
UNSUPPORTED_DATA: Final = 1003
ABNORMAL: Final = 1006
POLICY: Final = 1008
TOO_BIG: Final = 1009
FAILED: Final = 1011
TRY_AGAIN: Final = 1013
UNAUTHORIZED: Final = 3000
TIMED_OUT: Final = 3008
"""Codes of the end of a connection: section 7.4.1, and IANA's registry for 1013, 3000 and 3008."""


def is_asked_for(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether the headers of a request ask for this protocol (section 4.2.1), whatever its version."""
    return headers.get(b"upgrade", b"").strip().lower() == b"websocket"


def find_accept(headers: Mapping[bytes, bytes]) -> bytes | None:
    """Return the value of `sec-websocket-accept` for the key of a request; None if that is none."""
    key = headers.get(b"sec-websocket-key", b"").strip()
    try:
        if len(base64.b64decode(key, validate=True)) != 16:
            return None
    except (binascii.Error, ValueError):
        return None
    return accept(key)


def accept(key: bytes) -> bytes:
    """Return the answer to the key of a handshake (section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def list_protocols(headers: Mapping[bytes, bytes]) -> list[bytes] | None:
    """Return the subprotocols that a request names; None if the header is no list of tokens."""
    value = headers.get(b"sec-websocket-protocol")
    if value is None:
        return []
    names = [each.strip(b" \t") for each in value.split(b",")]
    return names if all(_TOKEN.fullmatch(name) for name in names) else None


class WebSocket:
    """One end of a connection whose handshake is done. `out`: bytes to send, taken by whoever sends them. `closed`: code and reason of the
    end, once there is one; nothing is read after it. `pongs`: how many answers to our pings came. `frames`: how many frames came."""

    def __init__(self, *, is_client: bool, message_bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self._connection = Connection(ConnectionType.CLIENT if is_client else ConnectionType.SERVER)
        self._message_bytes_max = message_bytes_max
        self._parts: list[str] = []
        self._size = 0
        self._frames = 0
        self._events: Iterator[events.Event] | None = None
        self.out = bytearray()
        self.closed: tuple[int, str] | None = None
        self.pongs = 0
        self.frames = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; return the messages that they complete, in UTF-8. Look at `out`, `closed` and `has_more` afterwards."""
        found: list[bytes] = []
        if self.is_over():
            return found
        self._connection.receive_data(data)
        waiting = self._connection.events() if self._events is None else self._events
        self._events = None
        for count, event in enumerate(waiting, 1):
            self.frames += 1
            if isinstance(event, events.TextMessage):
                self._take(event, found)
            elif isinstance(event, events.Ping):
                self._send(event.response())
            elif isinstance(event, events.Pong):
                self.pongs += 1
            elif isinstance(event, events.BytesMessage):
                self.close(UNSUPPORTED_DATA, "Messages are text.")
            elif isinstance(event, events.CloseConnection):
                self._end(event)
            if self.is_over():
                break
            if count == EVENTS_MAX:
                self._events = waiting
                break
        return found

    @property
    def has_more(self) -> bool:
        """Return whether what was fed may hold more frames, for which to call `feed` again, with more bytes or none."""
        return self._events is not None and self.closed is None

    def is_over(self) -> bool:
        """Return whether nothing more is sent or read."""
        return self.closed is not None

    def _take(self, event: events.TextMessage, found: list[bytes]) -> None:
        if event.data:
            self._size += len(event.data.encode())
            self._parts.append(event.data)
        if event.frame_finished:
            self._frames += 1
        else:  # a part of a frame: it costs whoever sends it a packet
            self.frames -= 1
        if self._size > self._message_bytes_max:
            self.close(TOO_BIG, f"A message has at most {self._message_bytes_max} bytes.")
        elif self._frames > FRAMES_MAX:
            self.close(TOO_BIG, f"A message has at most {FRAMES_MAX} frames.")
        elif event.message_finished:
            found.append("".join(self._parts).encode())
            self._parts, self._size, self._frames = [], 0, 0

    def _end(self, event: events.CloseConnection) -> None:
        self.closed = int(event.code), event.reason or ""
        if self._connection.state is not ConnectionState.CLOSED:
            # wsproto reports a fault of the other end by the same event, with the code to answer with.
            self._send(event.response())

    def send(self, message: bytes) -> None:
        """Send a text, which is UTF-8."""
        if self.closed is None:
            self._send(events.TextMessage(message.decode()))

    def ping(self) -> None:
        """Ask the other end whether it is there."""
        if self.closed is None:
            self._send(events.Ping())

    def close(self, code: int, reason: str = "") -> None:
        """End the connection; what still comes is not read."""
        if self.closed is None:
            self.closed = code, reason
            shown = reason.encode()[:_REASON_BYTES_MAX].decode("utf-8", "ignore")
            self._send(events.CloseConnection(code=code, reason=shown or None))

    def _send(self, event: events.Event) -> None:
        try:
            self.out += self._connection.send(event)
        except LocalProtocolError:  # it has ended already
            return
