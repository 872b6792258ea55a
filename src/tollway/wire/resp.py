"""The protocol of Redis and Valkey (RESP2) without I/O: commands out, replies in.

Only what counters need: commands of byte strings, replies that are not nested.
https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from collections.abc import Sequence
from typing import NamedTuple

LINE_BYTES_MAX = 64 * 1024
"""A line is a number or an error message; a longer one is not of this protocol."""

BULK_BYTES_MAX = 1 << 20
"""The state of the counters of one request has a few hundred bytes."""


class ReplyError(NamedTuple):
    """An error reply. `code`: its first word, such as NOSCRIPT, OOM or READONLY."""

    code: str
    text: str


Reply = bytes | int | None | ReplyError
"""A string, an integer, nil or an error."""


def encode_command(parts: Sequence[bytes]) -> bytes:
    """Return a command as its bytes on the connection."""
    return b"*%d\r\n%b" % (len(parts), encode_arguments(parts))


def encode_arguments(parts: Sequence[bytes]) -> bytes:
    """Return some of the parts of a command as their bytes on the connection."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


class ReplyReader:
    """Splits the bytes of a connection into replies."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Reply]:
        """Return the replies that `data` completes, in their order. Raises ValueError for bytes that are not of this protocol; the
        connection cannot be used afterwards."""
        data = self._rest + data
        at, replies = 0, []
        while True:
            end = data.find(b"\r\n", at)
            if end < 0:
                if len(data) - at > LINE_BYTES_MAX:
                    raise ValueError("a line that is too long")
                break
            kind, line = data[at : at + 1], data[at + 1 : end]
            after = end + 2
            reply: Reply
            if kind == b"$":
                size = int(line)
                if size > BULK_BYTES_MAX or size < -1:
                    raise ValueError("a string of an impossible size")
                if size < 0:
                    reply = None
                else:
                    if len(data) < after + size + 2:
                        break
                    reply = data[after : after + size]
                    after += size + 2
                    if data[after - 2 : after] != b"\r\n":
                        raise ValueError("a string without its end")
            elif kind == b":":
                reply = int(line)
            elif kind == b"+":
                reply = line
            elif kind == b"-":
                text = line.decode("utf-8", "replace")
                reply = ReplyError(text.partition(" ")[0], text)
            else:
                raise ValueError("a reply of an unknown type")
            replies.append(reply)
            at = after
        self._rest = data[at:]
        return replies
