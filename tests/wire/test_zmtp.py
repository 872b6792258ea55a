"""ZMTP as a listening client: a peer's bytes are read the same however they are cut, and one that breaks the protocol is left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.wire import zmtp
from tollway.wire.zmtp import FRAME_BYTES_MAX, FRAMES_MAX, Messages, ZmtpError, frame_message, greet

GREETING, READY = greet(b"PUB")[: zmtp.GREETING_BYTES], greet(b"PUB")[zmtp.GREETING_BYTES :]
LONG = bytes(300)
STREAM = GREETING + READY + frame_message(b"", b"12345678", b"one") + zmtp.ping() + b"\x02" + (300).to_bytes(8, "big") + LONG


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_messages_are_the_same_however_they_are_cut(places: list[int]) -> None:
    reader = Messages()
    found: list[list[bytes]] = []
    begin = 0
    for place in [*sorted(places), len(STREAM)]:
        found += reader.feed(STREAM[begin:place])
        begin = place
    assert found == [[b"", b"12345678", b"one"], [LONG]] and reader.is_ready


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        GREETING[:9] + b"\x00" + GREETING[10:],
        GREETING[:10] + b"\x02" + GREETING[11:],
        GREETING[:12] + b"PLAIN".ljust(20, b"\0") + GREETING[32:],
        GREETING + frame_message(b"a message before the handshake"),
        GREETING + b"\x04\x06\x05ERROR",
        GREETING + b"\x04\x00",
        GREETING + READY + b"\x08\x00",
        GREETING + READY + b"\x02" + (FRAME_BYTES_MAX + 1).to_bytes(8, "big"),
        GREETING + READY + frame_message(*[b"a"] * (FRAMES_MAX + 1)),
    ],
    ids=["http", "signature", "version", "mechanism", "too-early", "error", "empty-command", "flags", "frame-too-large", "too-many-frames"],
)
def test_peer_that_breaks_the_protocol_or_a_bound_is_refused(sent: bytes) -> None:
    with pytest.raises(ZmtpError):
        Messages().feed(sent)
