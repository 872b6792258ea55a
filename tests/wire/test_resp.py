"""Replies of Redis, however their bytes are split, and bytes that are no replies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.wire.resp import BULK_BYTES_MAX, LINE_BYTES_MAX, Reply, ReplyError, ReplyReader, encode_command

REPLIES: tuple[tuple[bytes, Reply], ...] = (
    (b"+OK\r\n", b"OK"),
    (b":-12\r\n", -12),
    (b"$-1\r\n", None),
    (b"$0\r\n\r\n", b""),
    (b"$6\r\na\r\nb\r\n\r\n", b"a\r\nb\r\n"),
    (b"-OOM command not allowed\r\n", ReplyError("OOM", "OOM command not allowed")),
)


@given(st.lists(st.sampled_from(REPLIES), max_size=6), st.data())
def test_replies_split_anywhere_are_read_whole(expected: list[tuple[bytes, Reply]], data: st.DataObject) -> None:
    stream = b"".join(encoded for encoded, _ in expected)
    reader, found, at = ReplyReader(), list[Reply](), 0
    while at < len(stream):
        size = data.draw(st.integers(1, len(stream) - at))
        found += reader.feed(stream[at : at + size])
        at += size
    assert found == [reply for _, reply in expected]


@pytest.mark.parametrize(
    "data",
    [
        b"?1\r\n",
        b"*1\r\n:1\r\n",
        b":one\r\n",
        b"$x\r\n",
        b"$-2\r\n",
        b"$%d\r\n" % (BULK_BYTES_MAX + 1),
        b"$1\r\nabc",
        b"+" + b"a" * (LINE_BYTES_MAX + 1),
    ],
)
def test_bytes_of_another_protocol_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        ReplyReader().feed(data)


def test_command_is_encoded_as_strings_with_their_sizes() -> None:
    assert encode_command([b"SET", b"k\r\n", b""]) == b"*3\r\n$3\r\nSET\r\n$3\r\nk\r\n\r\n$0\r\n\r\n"
