"""RequestReader: the same requests however the bytes are cut, and never more of them than a strict reading of the RFC finds."""

import itertools
import random
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire import corpus, reference
from tollway.domain import faults
from tollway.wire.http import HttpBounds, HttpRequest, RequestReader

INPUTS = 100_000


def essence(requests: list[HttpRequest]) -> list[tuple[bytes, bytes, bytes]]:
    return [(request.method, request.target, request.body) for request in requests]


def read(data: bytes, cuts: list[int] | None = None, bounds: HttpBounds | None = None) -> tuple[list[HttpRequest], RequestReader]:
    reader = RequestReader(bounds or HttpBounds(pipelined_max=10_000))
    requests: list[HttpRequest] = []
    places = [0, *(cuts or []), len(data)]
    for start, end in itertools.pairwise(places):
        if start < end:
            requests += reader.feed(data[start:end])
    return requests, reader


def code(reader: RequestReader) -> str | None:
    return None if reader.fault is None else reader.fault.code


@pytest.mark.parametrize("seed", corpus.SEEDS, ids=range(len(corpus.SEEDS)))
def test_cut_anywhere_the_requests_are_the_same(seed: bytes) -> None:
    whole, reader = read(seed)
    for cut in range(1, len(seed)):
        again, other = read(seed, [cut])
        assert essence(again) == essence(whole), cut
        assert code(other) == code(reader), cut
    bytewise, other = read(seed, list(range(1, len(seed))))
    assert essence(bytewise) == essence(whole)
    assert code(other) == code(reader)


@given(st.sampled_from(corpus.SEEDS), st.lists(st.integers(0, 400), max_size=6), st.randoms(use_true_random=False))
def test_bent_and_cut_anywhere_the_requests_are_the_same(seed: bytes, cuts: list[int], dice: random.Random) -> None:
    data = corpus.mutate(dice, seed)
    whole, reader = read(data)
    cut, other = read(data, sorted(cut for cut in cuts if cut < len(data)))
    assert essence(cut) == essence(whole)
    assert (other.fault is None) == (reader.fault is None)


def test_no_more_is_read_than_a_strict_reading_finds(tried: Callable[[str, int], None]) -> None:
    read_alike = refused = 0
    for data in corpus.inputs(1, INPUTS):
        requests, reader = read(data)
        expected = reference.read(data)
        found = [(found.method, found.target, found.body) for found in expected.requests]
        assert essence(requests) == found[: len(requests)], data
        if expected.malformed:
            assert reader.fault is not None or len(requests) < len(found) or _waits(reader), data
        if reader.fault is None and not reader.in_message:
            assert len(requests) == len(found), data
        read_alike += 1
        refused += reader.fault is not None
    tried("connections' bytes read as the reference reads them", read_alike)
    assert refused > read_alike // 10, "a mutator that breaks nothing proves nothing"


def _waits(reader: RequestReader) -> bool:
    """Return whether the reader has seen no end of a line or body yet: it may still reject what the reference has rejected already."""
    return reader.in_message


def test_after_a_fault_nothing_is_interpreted() -> None:
    reader = RequestReader()
    assert reader.feed(b"GET / HTTP/1.1\r\n\r\n") == []
    assert reader.fault is faults.MALFORMED_HTTP
    assert reader.feed(corpus.GET) == []


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_what_follows_a_last_request_is_dropped(step: int) -> None:
    last = corpus.GET[:-2] + b"Connection: close\r\n\r\n"
    data = last + corpus.GET + b"junk"
    requests, reader = read(data, list(range(step, len(data), step)))
    assert len(requests) == 1 and not requests[0].keep_alive and reader.fault is None


def test_trailers_change_nothing() -> None:
    trailers = b"Authorization: Bearer x\r\nX-Api-Key: y\r\nHost: b\r\nExpect: x\r\n"
    (request,), reader = read(corpus.CHUNKED[:-2] + trailers + b"\r\n")
    assert reader.fault is None and request.body == corpus.BODY
    assert set(request.headers) == {b"host", b"content-type", b"transfer-encoding"} and request.headers[b"host"] == b"a"


def test_names_are_known_in_any_case_and_lists_are_joined() -> None:
    lines = b"X-API-KEY: k\r\nAnthropic-Beta: a\r\naNTHROPIC-bETA: b\r\nX-Other: c\r\n"
    (request,), _ = read(corpus.GET[:-2] + lines + b"\r\n")
    assert request.headers == {b"host": b"a", b"x-api-key": b"k", b"anthropic-beta": b"a, b"}


SMALL = HttpBounds(head_bytes_max=200, headers_max=4, target_bytes_max=50, body_bytes_max=100, pipelined_max=3)
HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"
OVER = {
    "head": (HEAD + b"X: " + b"y" * 200 + b"\r\n\r\n", faults.HEAD_TOO_LARGE),
    "head-without-end": (HEAD + b"X: " + b"y" * 10_000, faults.HEAD_TOO_LARGE),
    "headers": (HEAD + b"X: y\r\n" * 4 + b"\r\n", faults.HEAD_TOO_LARGE),
    "target": (b"GET /" + b"a" * 50 + b" HTTP/1.1\r\nHost: a\r\n\r\n", faults.TARGET_TOO_LONG),
    "length": (corpus.POST + b"Content-Length: 101\r\n\r\n", faults.BODY_TOO_LARGE),
    "chunks": (corpus.POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"a\r\n0123456789\r\n" * 11, faults.BODY_TOO_LARGE),
    "chunk-overhead": (corpus.POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1;" + b"x" * 2000 + b"\r\n0\r\n", faults.BODY_TOO_LARGE),
    "requests-in-one-read": (corpus.GET * 4, faults.MALFORMED_HTTP),
}


@pytest.mark.parametrize("case", OVER)
@pytest.mark.parametrize("step", [1, 7, 64, 100_000])
def test_every_bound_holds_however_the_bytes_come(case: str, step: int) -> None:
    data, fault = OVER[case]
    requests, reader = read(data, list(range(step, len(data), step)), SMALL)
    if case == "requests-in-one-read":
        assert (len(requests), reader.fault) == ((3, fault) if step > len(data) else (4, None))
    else:
        assert (len(requests), reader.fault) == (0, fault)


@pytest.mark.parametrize("step", [1, 7, 199, 200, 201])
def test_what_is_within_the_bounds_passes_however_the_bytes_come(step: int) -> None:
    body = corpus.POST + b"Content-Length: 100\r\n\r\n" + b"x" * 100
    chunks = corpus.POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 100 + b"0\r\n\r\n"
    head = HEAD + b"X: " + b"y" * (200 - len(HEAD) - 7) + b"\r\n\r\n"
    data = body + chunks + head + body
    requests, reader = read(data, list(range(step, len(data), step)), HttpBounds(**{**_fields(SMALL), "pipelined_max": 10}))
    assert reader.fault is None and [len(request.body) for request in requests] == [100, 100, 0, 100]


def _fields(bounds: HttpBounds) -> dict[str, int]:
    return {name: getattr(bounds, name) for name in bounds.__struct_fields__}


def test_many_small_chunks_cost_no_more_memory_than_their_bytes() -> None:
    reader = RequestReader()
    reader.feed(corpus.POST + b"Transfer-Encoding: chunked\r\n\r\n")
    tracemalloc.start()
    try:
        for _ in range(20):
            assert reader.feed((b"14\r\n" + b"x" * 20 + b"\r\n") * 1_000) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reader.fault is None
    assert peak < 4_000_000, "400 kB of body"


def repeated(body: bytes, *, head: bytes = b"", length: bytes | None = None) -> bytes:
    number = b"%d" % len(body) if length is None else length
    return b"POST /v1/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer a\r\n%bContent-Length: %b\r\nX-A: b\r\n\r\n%b" % (head, number, body)


@pytest.mark.parametrize(
    "second",
    [
        repeated(b"{}"),
        repeated(b"x" * 999),
        repeated(b"{}", length=b"02"),
        repeated(b"{}", length=b"+2"),
        repeated(b"{}", length=b""),
        repeated(b"{}", length=b" 2"),
        repeated(b"{}", length=b"2, 2"),
        repeated(b"{}", length=b"99999999999999999999"),
        repeated(b"{}", head=b"Transfer-Encoding: chunked\r\n"),
        repeated(b"{}", head=b"X-B: c\r\n"),
        repeated(b"{}").replace(b"X-A", b"X_A"),
        repeated(b"{}").replace(b"Bearer a", b"Bearer b"),
        repeated(b"{}") + b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        repeated(b"{}")[:-1],
        repeated(b"{}", length=b"1"),
        repeated(b"y" * 4096),
    ],
)
def test_a_repeated_head_is_read_as_a_first_one(second: bytes) -> None:
    bounds = HttpBounds(body_bytes_max=2048)
    first, again = RequestReader(bounds), RequestReader(bounds)
    for _ in range(2):
        again.feed(repeated(b"{...}"))
    expected, read = first.feed(second), again.feed(second)
    assert [(r.method, r.target, r.headers, r.body, r.keep_alive) for r in read] == [
        (r.method, r.target, r.headers, r.body, r.keep_alive) for r in expected
    ]
    assert (again.fault, again.in_message, again.open_request is None) == (first.fault, first.in_message, first.open_request is None)
    rest = repeated(b"after")
    assert [r.body for r in again.feed(rest)] == [r.body for r in first.feed(rest)]


def test_a_rest_changes_nothing() -> None:
    rested, awake = RequestReader(), RequestReader()
    for data in (
        b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n",
        b"\r\n",
        b"GET /b HT",
        b"TP/1.1\r\nHost: h\r\n\r\n",
        repeated(b"{}")[:-1],
        b"}",
        b"nonsense\r\n\r\n",
    ):
        read = rested.feed(data)
        assert [request.target for request in read] == [request.target for request in awake.feed(data)]
        rested.release_parser()
        rested.release_head()
    assert rested.fault is awake.fault is not None


CHUNKED_HEAD = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "chunk", [b"1\r\nx\r\n", b"1;" + b"e" * 900 + b"\r\nx\r\n", b"000000000001\r\nx\r\n"], ids=["one-byte", "extension", "zeros"]
)
def test_76_chunk_framing_beyond_its_body_is_refused(chunk: bytes) -> None:
    reader = RequestReader(HttpBounds())
    assert reader.feed(CHUNKED_HEAD) == []
    sent = 0
    while reader.fault is None and sent < 1_000_000:
        reader.feed(chunk * 16)
        sent += len(chunk) * 16
    assert reader.fault is faults.BODY_TOO_LARGE
    assert sent < 200_000


def test_76_chunks_of_twenty_bytes_are_read() -> None:
    reader = RequestReader(HttpBounds())
    assert reader.feed(CHUNKED_HEAD) == []
    for _ in range(8_000):
        assert reader.feed(b"14\r\n" + b"x" * 20 + b"\r\n") == []
    (request,) = reader.feed(b"0\r\n\r\n")
    assert b"".join(request.pieces) == b"x" * 160_000
