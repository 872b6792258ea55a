"""ResponseReader: an engine's answer, however it is cut, framed or broken; and never the next one's bytes."""

import itertools

import pytest

from tollway.wire.http import ResponseReader

BODY = b'{"a":1}'
ANSWERS = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n" + BODY,
    "chunked": b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{"a\r\n4\r\n":1}\r\n0\r\nX: y\r\n\r\n',
    "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 X\r\nLink: y\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n" + BODY,
    "last": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 7\r\n\r\n" + BODY,
    "http-1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\n" + BODY,
}


def read(data: bytes, cuts: list[int] | None = None, *, closed: bool = False, rests: bool = False) -> ResponseReader:
    reader = ResponseReader()
    for start, end in itertools.pairwise([0, *(cuts or []), len(data)]):
        if start < end:
            reader.feed(data[start:end])
        if rests:
            reader.release_parser()
    if closed:
        reader.eof()
    return reader


def essence(reader: ResponseReader) -> tuple[object, ...]:
    return reader.status, b"".join(reader.body), reader.complete, reader.broken, reader.keep_alive


@pytest.mark.parametrize("case", ANSWERS)
def test_cut_anywhere_the_answer_is_the_same(case: str) -> None:
    data = ANSWERS[case]
    expected = (200, BODY, True, False, case not in ("last", "http-1.0"))
    assert essence(read(data)) == expected
    for cut in range(1, len(data)):
        assert essence(read(data, [cut])) == expected, cut
    assert essence(read(data, list(range(1, len(data))))) == expected


CHUNKS = b"HTTP/1.1 200 OK\r\n%bTransfer-Encoding: chunked\r\n\r\n" + b'3\r\n{"a\r\n' * 3


ENDS = [
    b'4\r\n":1}\r\n0\r\nX: y\r\n\r\n',
    b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"0\r\n\r\nx",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"4;x=",
    b"y\r\n",
]


@pytest.mark.parametrize("head", [b"", b"Connection: close\r\n"])
@pytest.mark.parametrize("end", ENDS)
def test_a_reader_that_rested_between_chunks_reads_on_as_if_it_had_not(head: bytes, end: bytes) -> None:
    data = CHUNKS % head
    at = len(data) - 8
    for cuts in ([len(data)], [at, len(data)], list(range(1, len(data) + len(end))), [at, at + 3, len(data) + 2]):
        expected, rested = read(data + end, cuts), read(data + end, cuts, rests=True)
        assert essence(rested) == essence(expected)
        assert rested.between_chunks == expected.between_chunks


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_cut_short_is_not_complete(case: str) -> None:
    data = ANSWERS[case]
    for end in range(len(data) - 1):
        reader = read(data[:end], closed=True)
        assert not reader.complete, end


def test_an_answer_without_framing_ends_with_the_connection() -> None:
    data = b"HTTP/1.1 200 OK\r\n\r\n" + BODY
    assert not read(data).complete
    assert essence(read(data, closed=True)) == (200, BODY, True, False, False)


@pytest.mark.parametrize("rest", [b"x", b"\r\n", ANSWERS["length"], ANSWERS["length"][:-3], b"HTTP/1.1 500 X\r\nContent-Length: 1\r\n\r\n"])
@pytest.mark.parametrize("same_read", [True, False])
@pytest.mark.parametrize("case", ["length", "chunked"])
def test_what_follows_an_answer_never_becomes_part_of_it(case: str, same_read: bool, rest: bytes) -> None:
    data = ANSWERS[case]
    reader = read(data + rest, [] if same_read else [len(data)])
    assert (reader.status, b"".join(reader.body), reader.complete) == (200, BODY, True)
    assert reader.broken or (same_read and rest == b"\r\n"), "its connection cannot be used again"


BROKEN = {
    "not-http": b"220 smtp\r\n",
    "switching": b"HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "both-framings": b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nContent-Length: 8\r\n\r\n",
    "bad-length": b"HTTP/1.1 200 OK\r\nContent-Length: 7x\r\n\r\n",
    "bad-chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\n",
    "compressed": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 7\r\n\r\n",
    "endless-head": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
    "many-headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 201 + b"\r\n",
    "endless-interim": b"HTTP/1.1 103 X\r\n\r\n" * 5_000,
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_answer_is_broken(case: str) -> None:
    data = BROKEN[case]
    assert read(data, list(range(1000, len(data), 1000))).broken


def test_after_a_restart_nothing_of_the_last_answer_is_left() -> None:
    reader = read(ANSWERS["chunked"])
    reader.restart()
    assert reader.is_untouched and essence(reader) == (0, b"", False, False, False)
    reader.feed(ANSWERS["length"])
    assert essence(reader) == (200, BODY, True, False, True) and not reader.is_untouched


def whole(body: bytes, *, head: bytes = b"", length: bytes | None = None, status: bytes = b"200 OK") -> bytes:
    number = b"%d" % len(body) if length is None else length
    return b"HTTP/1.1 %b\r\nContent-Type: a/b\r\n%bContent-Length: %b\r\nX-A: b\r\n\r\n%b" % (status, head, number, body)


@pytest.mark.parametrize(
    "second",
    [
        whole(b"{}"),
        whole(b"x" * 70_000),
        whole(b""),
        whole(b"{}", length=b"02"),
        whole(b"{}", length=b"-2"),
        whole(b"{}", length=b""),
        whole(b"{}", length=b"1"),
        whole(b"{}", length=b"3"),
        whole(b"{}", length=b"99999999999999999999"),
        whole(b"{}", status=b"500 No"),
        whole(b"{}", head=b"Connection: close\r\n"),
        whole(b"{}", head=b"Content-Encoding: gzip\r\n"),
        whole(b"{}", head=b"Retry-After: 1\r\n"),
        whole(b"{}") + whole(b"{}"),
        whole(b"{}")[:-1],
        b"HTTP/1.1 100 Continue\r\n\r\n" + whole(b"{}"),
    ],
)
def test_a_repeated_head_is_read_as_a_first_one(second: bytes) -> None:
    first, again = ResponseReader(), ResponseReader()
    again.feed(whole(b"{...}"))
    again.restart()
    for reader in (first, again):
        reader.feed(second)
    assert essence(again) == essence(first)
    assert (again.content_type, again.content_length, again.body_bytes, again.has_head, again.retry_after, again.is_untouched) == (
        first.content_type, first.content_length, first.body_bytes, first.has_head, first.retry_after, first.is_untouched
    )  # fmt: skip
    for reader in (first, again):
        reader.restart()
        reader.feed(whole(b"after"))
    assert essence(again) == essence(first)


@pytest.mark.parametrize("case", ["length", "chunked", "interim"])
@pytest.mark.parametrize("is_same_read", [True, False])
def test_answer_with_a_408_right_behind_it_is_whole_and_the_last_of_its_connection(case: str, is_same_read: bool) -> None:
    answer, end = ANSWERS[case], b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    reader = read(answer + end, [] if is_same_read else [len(answer), len(answer) + 30])
    assert essence(reader) == (200, BODY, True, False, False)


@pytest.mark.parametrize("cut", [None, len(ANSWERS["length"]) + len(b"content-encoding: gzip\r\n")])
def test_answer_that_is_broken_stays_so_with_a_408_right_behind_it(cut: int | None) -> None:
    answer = ANSWERS["length"].replace(b"\r\n", b"\r\ncontent-encoding: gzip\r\n", 1)
    end = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n"
    assert read(answer + end, [cut] if cut else None).broken


@pytest.mark.parametrize("second", [b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", ANSWERS["length"], b"HTTP/1.1 40"])
def test_answer_with_another_one_behind_its_408_is_broken(second: bytes) -> None:
    end = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n"
    reader = read(ANSWERS["length"] + end + second)
    assert reader.broken


@pytest.mark.parametrize("bare", [b"x-much: ", b"1;much="], ids=["in-a-trailer", "in-an-extension"])
def test_131_answer_that_goes_on_without_a_body_is_broken_after_a_bound(bare: bytes) -> None:
    reader = ResponseReader()
    reader.feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n" + (b"0\r\n" if b":" in bare else b"") + bare)
    for _ in range(15):
        reader.feed(b"a" * 4096)
        assert not reader.broken
    reader.feed(b"a" * 8192)
    assert reader.broken
    chatty = ResponseReader()
    chatty.feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(30):  # extensions beside a body are of no harm
        chatty.feed(b"1;" + b"a" * 4096 + b"\r\na\r\n")
    chatty.feed(b"0\r\nx-some: trailer\r\n\r\n")
    assert chatty.complete and not chatty.broken and chatty.body_bytes == 30
