"""ZMTP 3.0, the protocol of ZeroMQ's TCP connections, as far as a client needs it that listens: sockets of the types SUB and DEALER with
the mechanism NULL (https://rfc.zeromq.org/spec/23/).

Pure: bytes in, messages out. A peer that breaks the protocol, or exceeds a bound, is a ZmtpError and is read no further.
"""

from typing import Final

FRAME_BYTES_MAX: Final = 16 * 1024 * 1024
"""Largest frame. The events of one step of an engine that stores 100,000 tokens have about 1 MiB."""
FRAMES_MAX: Final = 16
"""Most frames of one message."""
GREETING_BYTES: Final = 64

_MORE, _LONG, _COMMAND = 1, 2, 4
_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_GREETING = _SIGNATURE + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


class ZmtpError(ValueError):
    """The peer does not speak ZMTP 3 with the mechanism NULL, or exceeds a bound."""


def greet(socket_type: bytes) -> bytes:
    """Return what a client sends first: its greeting, and that its socket is of this type (`SUB`, `DEALER`)."""
    name = b"Socket-Type"
    body = b"\x05READY" + bytes([len(name)]) + name + len(socket_type).to_bytes(4, "big") + socket_type
    return _GREETING + bytes([_COMMAND, len(body)]) + body


def frame_message(*frames: bytes) -> bytes:
    """Return a message of these frames, each of at most 255 bytes."""
    last = len(frames) - 1
    return b"".join(bytes([_MORE if number < last else 0, len(frame)]) + frame for number, frame in enumerate(frames))


def subscribe(topic: bytes) -> bytes:
    """Return the message by which a SUB socket asks for the messages that begin with `topic`, at most 254 bytes; all if it is empty."""
    return frame_message(b"\x01" + topic)


def ping() -> bytes:
    """Return a command that the peer answers (ZMTP 3.1, which newer peers answer in 3.0 as well; others ignore what they do not know)."""
    body = b"\x04PING\x00\x00"
    return bytes([_COMMAND, len(body)]) + body


class Messages:
    """Reader of what a peer sends: its greeting, its commands, of which nothing is kept, and its messages.

    `is_ready`: the peer has sent the type of its socket, after which it sends messages.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._frames: list[bytes] = []
        self._greeted = False
        self.is_ready = False

    def feed(self, data: bytes) -> list[list[bytes]]:
        """Return the messages that are complete now, each as its frames. Raises ZmtpError."""
        buffer = self._buffer
        buffer += data
        if not self._greeted and not self._read_greeting():
            return []
        messages: list[list[bytes]] = []
        begin, length = 0, len(buffer)
        while length - begin >= 2:
            flags = buffer[begin]
            if flags & ~(_MORE | _LONG | _COMMAND):
                raise ZmtpError("a frame with unknown flags")
            header = 9 if flags & _LONG else 2
            if length - begin < header:
                break
            size = int.from_bytes(buffer[begin + 1 : begin + header], "big")
            if size > FRAME_BYTES_MAX:
                raise ZmtpError("a frame is too large")
            end = begin + header + size
            if end > length:
                break
            frame = bytes(buffer[begin + header : end])
            begin = end
            if flags & _COMMAND:
                self._take_command(frame, is_last=not flags & _MORE)
                continue
            if not self.is_ready:
                raise ZmtpError("a message before the handshake")
            if len(self._frames) >= FRAMES_MAX:
                raise ZmtpError("a message of too many frames")
            self._frames.append(frame)
            if not flags & _MORE:
                messages.append(self._frames)
                self._frames = []
        del buffer[:begin]
        return messages

    def _read_greeting(self) -> bool:
        """Return whether the greeting is complete. Raises ZmtpError for one of another protocol."""
        buffer = self._buffer
        known = min(len(buffer), 10)
        if known and (buffer[0] != 0xFF or (known == 10 and not buffer[9] & 1)):
            raise ZmtpError("not a peer of ZMTP 3")
        if len(buffer) > 10 and buffer[10] < 3:
            raise ZmtpError("a peer of an older ZMTP")
        if len(buffer) < GREETING_BYTES:
            return False
        if bytes(buffer[12:32]).rstrip(b"\0") != b"NULL":
            raise ZmtpError("a peer that wants another mechanism than NULL")
        del buffer[:GREETING_BYTES]
        self._greeted = True
        return True

    def _take_command(self, body: bytes, *, is_last: bool) -> None:
        name = body[1 : 1 + body[0]] if body else b""
        if not is_last or not name:
            raise ZmtpError("a broken command")
        if name == b"READY":
            self.is_ready = True
        elif name == b"ERROR":
            raise ZmtpError("the peer refused the connection")
