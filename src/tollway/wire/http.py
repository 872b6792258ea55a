"""HTTP/1.1 framing (RFC 9112) without I/O: bytes in, requests and answers out.

llhttp (through httptools) finds the messages; what it lets pass and an exposed server must not is refused here: a missing or second
Host, any Transfer-Encoding but `chunked`, both framings at once, HTTP/0.9 and HTTP/1.x other than 0 and 1, upgrades to anything but
WebSocket, trailers as headers, header names with underscores (twins of dashed ones behind CGI-like proxies), and everything beyond the
bounds. After a fault no later byte of the connection is interpreted, so the two ends can never disagree about where a request begins.

Clients that keep a connection repeat themselves: their next head is the last one, but for the number in Content-Length. From a
connection's second request on, the reader keeps the two ends around that number. Bytes that are these ends around a number, followed by
exactly so many bytes of body, are the request that llhttp would find, and llhttp, which stands between two messages before and after,
need not see them. Such requests share one dict of headers: whoever made something of it knows it again by its identity. Without this a
request costs 73 thousand instructions more (21 %), 24 of them for what is known again.

Only headers in WANTED are kept; the rest is checked by llhttp for form and forgotten. Names are resolved through a bounded table of
spellings already seen, so that the eighteen headers an SDK sends cost one dict lookup each and no allocation.
"""

import re

import httptools
import msgspec

from tollway.domain import faults
from tollway.domain.faults import FaultKind
from tollway.wire.web_sockets import is_asked_for

WANTED = frozenset(
    {
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"content-type",
        b"content-encoding",
        b"expect",
        b"upgrade",
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"sec-websocket-protocol",
        b"authorization",
        b"x-api-key",
        b"api-key",
        b"traceparent",
        b"tracestate",
        b"x-client-request-id",
        b"x-max-cost",
        b"x-show-cost",
        b"x-request-timeout",
        b"x-envoy-expected-rq-timeout-ms",
        b"x-stainless-read-timeout",
        b"x-stainless-timeout",
        b"x-session-id",
        b"idempotency-key",
        b"inference-header-content-length",
        b"cache-control",
        b"x-forwarded-for",
        b"anthropic-version",
        b"anthropic-beta",
        b"origin",
        b"openai-organization",
        b"client-cert",
        b"x-forwarded-client-cert",
    }
)
"""Headers the data plane looks at. Each may stand once; a second one would leave two readings, except where LISTS says otherwise."""

_LISTS = frozenset(
    {b"anthropic-beta", b"cache-control", b"sec-websocket-protocol", b"tracestate", b"x-forwarded-for", b"x-forwarded-client-cert"}
)
"""Wanted headers that are lists by their definition: several lines are joined by a comma (RFC 9110 section 5.3)."""

CREDENTIALS = frozenset({b"authorization", b"x-api-key", b"api-key"})
"""Headers that carry a secret."""
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
WHOLE_BYTES_MAX = 64 * 1024
"""Longest body that is one piece of memory. A copy of it is 10 microseconds; one of 30 MB is a pause of 20 ms for every other request."""
PIECE_BYTES_MIN = 16 * 1024
"""Length from which a piece of a longer body grows no more: 2,000 pieces at most, and each read is copied once at most."""
_SPELLINGS_MAX = 4096
_REPEATED_BYTES_MAX = 2048
"""Longest head that is kept to be compared with the next one: SDKs send half of it; it is held while a connection is open."""
_NUMBER_BYTES_MAX = 9
_OVERHEAD_BYTES_MAX = 64 * 1024
"""Bytes of chunk framing that a body may have beyond a quarter of its own. Each chunk costs as much as a kilobyte of body, and clients that
stream send chunks of hundreds of bytes."""
_UNSEEN = b"?"
_wanted_names: dict[bytes, bytes | None] = {}
"""Names that spellings of request headers stand for; shared by all connections, bounded by _SPELLINGS_MAX."""
_answer_names: dict[bytes, bytes | None] = {}
"""The same for headers of answers."""
_REFUSED = b"_"


class HttpBounds(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on what is read of a request before it is refused.

    `head_bytes_max`: request line and headers; OpenAI asks clients to stay below 64 KiB, SDKs send 1 KiB. `headers_max`: llhttp has
    no bound of its own. `target_bytes_max`: the API's longest target is below 100 bytes; the rest is space for queries.
    `body_bytes_max`: a long context with images. `pipelined_max`: requests read ahead of the one being answered.
    """

    head_bytes_max: int = 32 * 1024
    headers_max: int = 100
    target_bytes_max: int = 4 * 1024
    body_bytes_max: int = 32 * 1024 * 1024
    pipelined_max: int = 16


DEFAULT_BOUNDS = HttpBounds()


NO_HEADERS: dict[bytes, bytes] = {}
"""In place of headers that were released. Shared, never written to."""


class HttpRequest:
    """One request as framed: `headers` holds WANTED ones by lower-case name, not to be changed. The body is complete only once the request
    was returned by feed; from then on `headers` is without content-length, which says nothing any more. It is in `body`, or in `pieces` if
    it is longer than WHOLE_BYTES_MAX: joining them would hold the event loop."""

    __slots__ = ("body", "headers", "keep_alive", "method", "minor_version", "pieces", "target")

    def __init__(
        self, headers: dict[bytes, bytes], method: bytes = b"", target: bytes = b"", body: bytes = b"", pieces: tuple[bytes, ...] = ()
    ) -> None:
        self.headers = headers
        self.method = method
        self.target = target
        self.body = body
        self.pieces = pieces
        self.minor_version = 1
        self.keep_alive = True


_NO_REQUEST = HttpRequest(NO_HEADERS)
"""Placeholder of a reader that reads no request."""


class RequestReader:
    """Reads the requests of one connection.

    `feed` returns the requests completed by the bytes given. `fault`, once set, says why the connection is over: answer it after the
    requests already returned, then close. What follows a request that asked to be the last is dropped. `open_request` is the request
    whose head is complete and whose body is still arriving; `body_bytes` of it have arrived.
    """

    __slots__ = (
        "_bounds",
        "_complete",
        "_current",
        "_ends",
        "_head_bytes",
        "_headers",
        "_is_over",
        "_is_used",
        "_last",
        "_parser",
        "_piece",
        "_pieces",
        "_raw_bytes",
        "body_bytes",
        "fault",
        "in_message",
        "open_request",
    )

    def __init__(self, bounds: HttpBounds = DEFAULT_BOUNDS) -> None:
        self._bounds = bounds
        self._parser: httptools.HttpRequestParser | None = None
        self._complete: list[HttpRequest] = []
        self._current = _NO_REQUEST
        self._headers = 0
        self._head_bytes = 0
        self._pieces: list[bytes] | None = None
        self._piece: bytes | bytearray = b""
        self.body_bytes = 0
        self._raw_bytes = 0
        self._is_over = False
        self._is_used = False
        self._ends: _Ends | None = None
        self._last = _NO_REQUEST
        self.fault: FaultKind | None = None
        self.open_request: HttpRequest | None = None
        self.in_message = False

    def feed(self, data: bytes) -> list[HttpRequest]:
        """Take the next bytes of the connection; returns the requests that they complete, in order. Never raises."""
        if self.fault is not None or self._is_over:
            return []
        if not self.in_message:
            ends = self._ends
            if ends is not None:
                body_at = ends.find_body(data)
                if body_at and len(data) - body_at <= self._bounds.body_bytes_max:
                    last = self._last
                    if len(data) - body_at > WHOLE_BYTES_MAX:
                        return [HttpRequest(last.headers, last.method, last.target, pieces=(data[body_at:],))]
                    return [HttpRequest(last.headers, last.method, last.target, data[body_at:])]
            requests = self._feed(data)
            if len(requests) == 1:
                if self._is_used:
                    self._keep(data, requests[0])
                self._is_used = True
            return requests
        return self._feed(data)

    def _keep(self, data: bytes, request: HttpRequest) -> None:
        """Keep what the next read is compared with, if `data` was exactly the request and another may follow it."""
        self._ends = None
        if not request.keep_alive or request.minor_version != 1 or b"transfer-encoding" in request.headers or b"expect" in request.headers:
            return
        ends = _find_ends(data, request.body)
        if ends is not None and ends.size + _NUMBER_BYTES_MAX <= self._bounds.head_bytes_max:
            self._ends = ends
            self._last = HttpRequest(request.headers, request.method, request.target)

    def _feed(self, data: bytes) -> list[HttpRequest]:
        if self.open_request is None:
            space = self._bounds.head_bytes_max - self._head_bytes
            if len(data) > space:
                return self._feed_across_bound(data, space)
            self._head_bytes += len(data)
        else:
            self._raw_bytes += len(data)
            complete = self._parse(data)
            # Sizes and extensions of chunks, and trailers, come on top of the body's own bound, which on_body keeps.
            body_bytes = self.body_bytes
            overhead_max = min(_OVERHEAD_BYTES_MAX, 8 * self._bounds.body_bytes_max) + (body_bytes >> 2)
            if self._raw_bytes - body_bytes > overhead_max and self.fault is None:
                self.fault = faults.BODY_TOO_LARGE
            return complete
        return self._parse(data)

    def _feed_across_bound(self, data: bytes, space: int) -> list[HttpRequest]:
        """More bytes than a head may have, in one read: the part within the bound must complete a head."""
        complete: list[HttpRequest] = []
        while data and self.fault is None and not self._is_over:
            part, data = data[:space], data[space:]
            before = len(complete)
            self._head_bytes += len(part)
            complete += self._parse(part)
            if self.open_request is not None:
                return complete + (self._feed(data) if data else [])
            if len(complete) == before and self._head_bytes >= self._bounds.head_bytes_max and data:
                self.fault = faults.HEAD_TOO_LARGE
            space = max(1, self._bounds.head_bytes_max - self._head_bytes)
        return complete

    def close(self) -> None:
        """Read nothing more, and release the parser and what it has read. Parser and reader refer to each other, so without this call the
        body of an unfinished request would stay in memory until the garbage collector runs."""
        self._is_over = True
        self._parser = self.open_request = None
        self._drop_body()
        self._current = self._last = _NO_REQUEST
        self._ends = None

    def release_parser(self) -> None:
        """Release the parser (a kilobyte) between two messages, where it knows nothing that a new one would not."""
        if not self.in_message and not self._head_bytes:
            self._parser = None

    @property
    def target(self) -> bytes:
        """The target of the message that is being read or is at fault, as far as it has arrived; empty between messages."""
        return self._current.target

    @property
    def keeps_head(self) -> bool:
        """Return whether the next head will be compared with the last."""
        return self._ends is not None

    def release_head(self) -> None:
        """Release the last head as well, because nothing is expected for long. The next head is parsed."""
        self._ends = None
        self._last = _NO_REQUEST

    def _parse(self, data: bytes) -> list[HttpRequest]:
        parser = self._parser
        if parser is None:
            parser = self._parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if self.fault is None and not self._is_over:
                self.fault = faults.MALFORMED_HTTP
        complete = self._complete
        if complete:
            self._complete = []
            if len(complete) > self._bounds.pipelined_max:
                del complete[self._bounds.pipelined_max :]
                self.fault = self.fault or faults.MALFORMED_HTTP
        return complete

    # Called by llhttp while it parses. None of them raises: a fault is kept and ends the reading when feed returns.

    def on_message_begin(self) -> None:
        self.in_message = True
        if self.fault is None:  # otherwise the message at fault stays the current one, for the answer
            self._current = HttpRequest({})

    def on_url(self, target: bytes) -> None:
        if self.fault is not None:
            return
        current = self._current
        current.target = current.target + target if current.target else target
        if len(current.target) > self._bounds.target_bytes_max:
            self.fault = faults.TARGET_TOO_LONG

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers = count = self._headers + 1
        wanted = _wanted_names.get(name, _UNSEEN)
        if wanted is _UNSEEN:
            wanted = _remember(_wanted_names, name, _resolve(name))
        if count > self._bounds.headers_max:
            self.fault = self.fault or faults.HEAD_TOO_LARGE
            return
        if wanted is None:
            return
        if wanted is _REFUSED:
            self.fault = self.fault or faults.MALFORMED_HTTP
            return
        if self.open_request is not None:
            return  # a trailer: whatever it says, identity and framing come from the head alone
        headers = self._current.headers
        if wanted in headers:
            if wanted in _LISTS:
                headers[wanted] += b", " + value
            else:
                self.fault = self.fault or (faults.CREDENTIALS_AMBIGUOUS if wanted in CREDENTIALS else faults.MALFORMED_HTTP)
        else:
            headers[wanted] = value

    def on_headers_complete(self) -> None:
        request = self._current
        parser = self._parser
        assert parser is not None
        request.method = parser.get_method()
        version = parser.get_http_version()
        request.keep_alive = parser.should_keep_alive()
        if version != "1.1":
            request.minor_version = 0
            if version != "1.0":
                self.fault = self.fault or faults.MALFORMED_HTTP
        fault = self._check_head(request, parser)
        if fault is not None and self.fault is None:
            self.fault = fault
        self.open_request = request
        self._headers = 0

    def _check_head(self, request: HttpRequest, parser: httptools.HttpRequestParser) -> FaultKind | None:
        headers = request.headers
        host = headers.get(b"host")
        if host is None:
            if request.minor_version == 1:
                return faults.MALFORMED_HTTP
        elif _HOST.fullmatch(host) is None:
            return faults.MALFORMED_HTTP
        coding = headers.get(b"transfer-encoding")
        length = headers.get(b"content-length")
        if coding is not None and (coding.lower() != b"chunked" or length is not None or request.minor_version == 0):
            return faults.MALFORMED_HTTP
        if length is not None:
            if not length.isdigit() or len(length) > 18:
                return faults.MALFORMED_HTTP
            if int(length) > self._bounds.body_bytes_max:
                return faults.BODY_TOO_LARGE
        if b"expect" in headers and headers[b"expect"].lower() != b"100-continue":
            return faults.EXPECTATION_UNSUPPORTED
        if request.method == b"CONNECT":
            return faults.METHOD_UNSUPPORTED
        if b"upgrade" in headers and parser.should_upgrade():
            if not is_asked_for(headers) or request.method != b"GET" or coding is not None or length is not None:
                return faults.MALFORMED_HTTP
            request.keep_alive = False  # nothing may follow before the answer (RFC 6455 section 4.1), and what does is dropped
        return None

    def on_body(self, data: bytes) -> None:
        size = self.body_bytes + len(data)
        if size > self._bounds.body_bytes_max:
            self.fault = self.fault or faults.BODY_TOO_LARGE
            self._drop_body()
            return
        self.body_bytes = size
        piece = self._piece
        if not piece:
            self._piece = data
        elif len(piece) < PIECE_BYTES_MIN:
            # A growing piece: a list of chunks would let a client that sends them two bytes at a time fill memory thirtyfold.
            if type(piece) is bytes:
                piece = self._piece = bytearray(piece)
            piece += data
        else:
            if self._pieces is None:
                self._pieces = []
            self._pieces.append(bytes(piece))
            self._piece = data

    def _drop_body(self) -> None:
        self._pieces = None
        self._piece = b""
        self.body_bytes = 0

    def on_message_complete(self) -> None:
        request = self._current
        self.open_request = None
        self.in_message = False
        self._headers = self._head_bytes = self._raw_bytes = 0
        if self.fault is None:
            self._current = _NO_REQUEST
            piece = bytes(self._piece)
            if self.body_bytes > WHOLE_BYTES_MAX:
                request.pieces = (piece,) if self._pieces is None else (*self._pieces, piece)
            else:
                request.body = piece if self._pieces is None else b"".join((*self._pieces, piece))
            request.headers.pop(b"content-length", None)
            self._complete.append(request)
            self._is_over = not request.keep_alive
        if self.body_bytes:
            self._drop_body()


class _Ends:
    """A head that was read, around the number in its Content-Length. `size`: bytes of both ends; `width`: of the number."""

    __slots__ = ("after", "before", "size", "width")

    def __init__(
        self,
        before: bytes,
        after: bytes,
        size: int,
        width: int,
    ) -> None:
        self.before = before
        self.after = after
        self.size = size
        self.width = width

    def find_body(self, data: bytes) -> int:
        """Return where in `data` the body begins; 0 unless it is this head around the number of bytes that follow it, in plain digits."""
        space, width = len(data) - self.size, self.width
        number = str(space - width)
        if len(number) != width:
            width = len(number)
            number = str(space - width)
        body_at = self.size + width
        return body_at if data[:body_at] == self.before + number.encode() + self.after else 0


_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: ([0-9]{1,9})\r\n", re.IGNORECASE)


def _find_ends(data: bytes, body: bytes) -> _Ends | None:
    """The ends of the head in `data`, if that is a head with a plain Content-Length, and this body."""
    size = data.find(b"\r\n\r\n", 0, _REPEATED_BYTES_MAX) + 4
    head = data[:size]
    match = _CONTENT_LENGTH.search(head)
    if size < 4 or match is None or len(data) - size != len(body) or int(match[1]) != len(body):
        return None
    before, after = head[: match.start(1)], head[match.end(1) :]
    return _Ends(before, after, len(before) + len(after), len(match[1]))


CHUNK_SIZES = tuple(b"%x\r\n" % size for size in range(1024))


def chunk_size(size: int) -> bytes:
    """The line before a chunk of `size` bytes, in the lower case that nearly all write (RFC 9112 section 7.1)."""
    return CHUNK_SIZES[size] if 0 <= size < 1024 else b"%x\r\n" % size


def _remember(names: dict[bytes, bytes | None], name: bytes, meaning: bytes | None) -> bytes | None:
    """Keep what a spelling of a name stands for, as long as there is space."""
    if len(names) < _SPELLINGS_MAX and len(name) <= 64:
        names[name] = meaning
    return meaning


def _resolve(name: bytes) -> bytes | None:
    """Return what a header's name as spelled stands for: the wanted name, None if nobody wants it, _REFUSED if it must not be there."""
    if b"_" in name:
        return _REFUSED
    lower = name.lower()
    return lower if lower in WANTED else None


_ANSWER_HEADERS = frozenset(
    {b"content-type", b"content-length", b"transfer-encoding", b"retry-after", b"content-encoding", b"x-request-id"}
)
_ANSWER_HEADERS_MAX = 200
_BARE_BYTES_MAX = 64 * 1024
"""Bytes that may follow each other after the head of an answer without any of its body: trailers, which the parser keeps until they end,
and sizes and extensions of chunks."""


_TIMED_OUT = 408
IDLE_END = re.compile(rb"HTTP/1\.[01] 408[ \r\n]")
"""Begin of what some servers send before they close an idle connection (RFC 9110, section 15.5.9): the answer to no request."""

_CHUNKED_KEPT = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
_CHUNKED_LAST = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
"""Heads after which a parser stands where one stands between two chunks."""


class ReceivedAnswer:
    """The part of an answer that was read so far.

    `has_head`: its head is complete; `status` is 0 until then. `content_type`: empty without one. `body`: bytes not yet taken, without
    chunk framing; whoever takes them clears the list. `body_bytes`: of all of it so far. `complete`: the message ended by its own
    framing. `broken`: what came is not an HTTP answer, or exceeds a bound.
    """

    __slots__ = (
        "_head_bytes",
        "body",
        "body_bytes",
        "broken",
        "complete",
        "content_type",
        "has_head",
        "request_id",
        "retry_after",
        "status",
    )

    _head_bytes: int
    body: list[bytes]
    body_bytes: int
    broken: bool
    complete: bool
    content_type: bytes
    has_head: bool
    request_id: bytes | None
    retry_after: bytes | None
    status: int

    @property
    def is_untouched(self) -> bool:
        """Return whether not a byte of an answer came."""
        return not self._head_bytes


class ResponseReader(ReceivedAnswer):
    """Reads the answer to one request on an upstream connection; `restart` makes it ready for the next.

    An answer delimited by the end of the connection is complete when `eof` is called.

    An engine repeats itself as a client does: an answer in one read whose head is the last one but for the number in Content-Length
    (engines write a date, so for a second) is known without the parser, which would cost 14 thousand instructions a request more (4 %).

    `between_chunks`: all bytes fed so far end exactly with a chunk. Whoever then finds whole chunks in the next bytes by itself may leave
    them out of `feed`: the parser stands before and after them in the same place.
    """

    __slots__ = (
        "_bare_bytes",
        "_chunk_complete",
        "_chunked",
        "_ends",
        "_head_bytes_max",
        "_headers",
        "_is_over",
        "_parser",
        "_repeated_type",
        "_was_broken",
        "between_chunks",
        "content_length",
        "keep_alive",
    )

    def __init__(self, head_bytes_max: int = 64 * 1024) -> None:
        self._head_bytes_max = head_bytes_max
        self._ends: _Ends | None = None
        self._repeated_type = b""
        self._parser: httptools.HttpResponseParser | None = None
        self.complete = self.keep_alive = self.broken = False
        self.restart()

    def restart(self) -> None:
        """Expect the next answer. The parser goes on only after an answer that ended by its own framing; otherwise its state is not to be
        trusted."""
        if not (self.complete and self.keep_alive) or self.broken:
            self._parser = None
        self._head_bytes = 0
        self._bare_bytes = 0
        self._headers = 0
        self._chunked = False
        self._chunk_complete = False
        self._is_over = False
        self._was_broken = False
        self.between_chunks = False
        self.status = 0
        self.has_head = False
        self.complete = False
        self.broken = False
        self.keep_alive = False
        self.content_type = b""
        self.content_length: int | None = None
        self.retry_after = None
        self.request_id = None
        self.body = []
        self.body_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take bytes from the upstream; never raises. Look at the attributes afterwards."""
        if self._head_bytes:
            self._feed(data)
            return
        ends = self._ends
        body_at = ends.find_body(data) if ends is not None else 0
        if 0 < body_at < len(data):
            self._head_bytes = len(data)
            self.status = 200
            self.content_type = self._repeated_type
            self.body.append(data[body_at:])
            self.content_length = self.body_bytes = len(data) - body_at
            self.has_head = self.complete = self.keep_alive = True
            return
        self._feed(data)
        if self.complete and self.status == 200 and self.keep_alive and not self.broken and not self._chunked and len(self.body) == 1:
            self._ends = _find_ends(data, self.body[0]) if self.retry_after is None and self.request_id is None else None
            self._repeated_type = self.content_type

    def _feed(self, data: bytes) -> None:
        if not self.has_head:
            self._head_bytes += len(data)
        body_bytes = self.body_bytes
        if self.complete:
            if not self.broken and (self._is_over or IDLE_END.match(data)):
                self._end_connection()
            else:
                self.broken = True  # bytes after the answer: whatever they are, nobody asked
            return
        parser = self._parser
        if parser is None:
            parser = self._parser = httptools.HttpResponseParser(self)
            if self.has_head:
                parser.feed_data(_CHUNKED_KEPT if self.keep_alive else _CHUNKED_LAST)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.broken = True
        self.between_chunks = self._chunk_complete and not self.broken and data.endswith(b"\r\n")
        if not self.has_head:
            if self._head_bytes > self._head_bytes_max:
                self.broken = True
        elif self.body_bytes > body_bytes:
            self._bare_bytes = 0
        else:
            self._bare_bytes += len(data)
            if self._bare_bytes > _BARE_BYTES_MAX:
                self.broken = True

    def release_parser(self) -> None:
        """Release the parser (a kilobyte) between two chunks of an answer. It knows nothing there that a new one would not know after the
        shortest head of such an answer."""
        if self.between_chunks and self.status == 200:
            self._parser = None

    def close(self) -> None:
        """Release the parser: it and the reader refer to each other. What was read so far stays."""
        self._parser = None
        self._ends = None

    def eof(self) -> None:
        """The upstream closed. Completes an answer that has no other end; anything else stays incomplete."""
        if self.has_head and not self._chunked and self.content_length is None:
            self.complete = True
            self.keep_alive = False

    def _end_connection(self) -> None:
        """Note that the upstream ends the connection as an idle one, behind its answer: that answer is right, and the last one here."""
        self._is_over = True
        self.broken = self.keep_alive = False

    def on_message_begin(self) -> None:
        if self.complete:
            # Another answer in the same read: nobody asked for it, and it must not overwrite the first.
            self._was_broken = self.broken
            self.broken = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers = count = self._headers + 1
        wanted = _answer_names.get(name, _UNSEEN)
        if wanted is _UNSEEN:
            lower = name.lower()
            wanted = _remember(_answer_names, name, lower if lower in _ANSWER_HEADERS else None)
        if count > _ANSWER_HEADERS_MAX:
            self.broken = True
        if wanted is None or self.has_head:
            return
        if wanted == b"content-type":
            self.content_type = value
        elif wanted == b"content-length":
            self.content_length = int(value) if value.isdigit() and len(value) <= 18 else None
        elif wanted == b"transfer-encoding":
            self._chunked = True
        elif wanted == b"retry-after":
            self.retry_after = value
        elif wanted == b"x-request-id":
            self.request_id = value
        elif value.lower() != b"identity":
            self.broken = True  # nobody asked for a coding; reading it blindly would relay an unmetered answer

    def on_headers_complete(self) -> None:
        parser = self._parser
        if parser is None:
            return
        status = parser.get_status_code()
        if self.complete:
            if status == _TIMED_OUT and not self._was_broken and not self._is_over:
                self._end_connection()
            else:
                self.broken = True
            return
        if status < 200:
            self._headers = 0
            if status == 101:
                self.broken = True
            return
        self.status = status
        self.keep_alive = parser.should_keep_alive()
        self.has_head = True

    def on_body(self, data: bytes) -> None:
        if self.complete:
            return
        self.body_bytes += len(data)
        self.body.append(data)

    def on_chunk_header(self) -> None:
        self._chunk_complete = False

    def on_chunk_complete(self) -> None:
        self._chunk_complete = True

    def on_message_complete(self) -> None:
        self._chunk_complete = False
        if self.has_head:
            if self.complete and not self._is_over:
                self.broken = True
            self.complete = True
