"""A strict reader of HTTP/1.1 requests (RFC 9112), written from the RFC alone and sharing no code with what it checks.

It takes a whole connection's bytes and tells how many requests begin in them, which are complete, and where reading had to stop. It is
slow and plain on purpose. Where the RFC lets a server choose, it takes what our server takes, and the place says so; where our server
is stricter (bounds, header names with underscores), a request that is refused still counts as one that was found.
"""

import re
from dataclasses import dataclass, field

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# Section 3 allows several spaces between the parts of a request line; the target is validated by the server, not by framing. llhttp
# knows the other protocols whose requests look like HTTP's, and frames them as HTTP.
REQUEST_LINE = re.compile(rb"(%b) +([\x21-\x7e]+) +(?:HTTP|RTSP|ICE)/(1\.[01])" % TOKEN)
FIELD_LINE = re.compile(rb"(%b):[ \t]*((?:[\x21-\x7e\x80-\xff](?:[ \t\x21-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*" % TOKEN)
CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]+)((?:;[\t\x20-\x7e\x80-\xff]*)?)")
HOST = re.compile(rb"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
SIZE_MAX = 2**64 - 1


class Malformed(Exception):
    """Bytes that are no request; nothing after it may be interpreted."""


class Incomplete(Exception):
    """The bytes end inside a request."""


@dataclass
class Found:
    """One complete request."""

    method: bytes
    target: bytes
    body: bytes


@dataclass
class Reading:
    """Content of a connection's bytes. `begun`: whether a further request, complete or not, well formed or not, begins after them."""

    requests: list[Found] = field(default_factory=list)
    begun: bool = False
    malformed: bool = False

    @property
    def answers_max(self) -> int:
        """Most answers that may be given to these bytes: one for each request, and one for what could not be read."""
        return len(self.requests) + int(self.begun)


def read(data: bytes) -> Reading:
    """Read a connection from its first byte to its last."""
    reading = Reading()
    at = 0
    while True:
        while data[at : at + 1] in (b"\r", b"\n"):  # empty lines before a request line (section 2.2), however they are ended
            at += 1
        if at == len(data):
            return reading
        try:
            found, at, is_last = _read_request(data, at)
        except (Malformed, Incomplete) as error:
            reading.begun = True
            reading.malformed = isinstance(error, Malformed)
            return reading
        reading.requests.append(found)
        if is_last:
            return reading  # bytes after a last request are nobody's


def _read_request(data: bytes, at: int) -> tuple[Found, int, bool]:
    line, at = _read_line(data, at)
    match = REQUEST_LINE.fullmatch(line)
    if match is None:
        raise Malformed
    method, target, version = match.groups()
    fields, at = _read_fields(data, at)
    hosts, lengths = fields.get(b"host", []), fields.get(b"content-length", [])
    codings, connection = fields.get(b"transfer-encoding", []), b",".join(fields.get(b"connection", [])).lower()
    if len(hosts) > 1 or (not hosts and version == b"1.1") or (hosts and HOST.fullmatch(hosts[0]) is None):
        raise Malformed  # section 3.2
    if codings and (lengths or version == b"1.0" or len(codings) > 1 or codings[0].lower() != b"chunked"):
        raise Malformed  # section 6.3: both framings, or a coding that is not understood
    if len(lengths) > 1 or (lengths and (not lengths[0].isdigit() or int(lengths[0]) > SIZE_MAX)):
        raise Malformed
    options = [option.strip(b" \t") for option in connection.split(b",")]
    is_last = b"close" in options or (version == b"1.0" and b"keep-alive" not in options)
    if method == b"CONNECT":
        raise Malformed  # what follows would be another protocol, which is not spoken here
    if b"upgrade" in options and b"upgrade" in fields:
        if method != b"GET" or [each.lower() for each in fields[b"upgrade"]] != [b"websocket"] or codings or lengths:
            raise Malformed  # no other protocol is spoken here
        return Found(method, target, b""), at, True
    if codings:
        body, at = _read_chunks(data, at)
    else:
        size = int(lengths[0]) if lengths else 0
        if at + size > len(data):
            raise Incomplete
        body, at = data[at : at + size], at + size
    return Found(method, target, body), at, is_last


def _read_line(data: bytes, at: int) -> tuple[bytes, int]:
    """The line that begins at `at`, without its CR LF, and where the next one begins. A bare CR or LF is malformed (section 2.2)."""
    end = data.find(b"\r\n", at)
    line = data[at:end] if end >= 0 else data[at:]
    if b"\n" in line or b"\r" in line[: -1 if end < 0 else None]:
        raise Malformed
    if end < 0:
        raise Incomplete
    return line, end + 2


def _read_fields(data: bytes, at: int) -> tuple[dict[bytes, list[bytes]], int]:
    fields: dict[bytes, list[bytes]] = {}
    while True:
        line, at = _read_line(data, at)
        if not line:
            return fields, at
        match = FIELD_LINE.fullmatch(line)
        if match is None:
            raise Malformed
        fields.setdefault(match.group(1).lower(), []).append(match.group(2))


def _read_chunks(data: bytes, at: int) -> tuple[bytes, int]:
    body = b""
    while True:
        line, at = _read_line(data, at)
        match = CHUNK_LINE.fullmatch(line)
        if match is None or int(match.group(1), 16) > SIZE_MAX:
            raise Malformed
        size = int(match.group(1), 16)
        if size == 0:
            _, at = _read_fields(data, at)
            return body, at
        if at + size > len(data):
            raise Incomplete
        body += data[at : at + size]
        end = data[at + size : at + size + 2]
        if end != b"\r\n"[: len(end)]:
            raise Malformed
        if len(end) < 2:
            raise Incomplete
        at += size + 2
