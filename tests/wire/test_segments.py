"""Spool records: nothing but what was written is ever read back, whatever happened to the bytes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.wire.segments import HEAD_BYTES, PAYLOAD_BYTES_MAX, Reader, Tail, extend, first_chain, frame, next_chain

PAYLOADS = st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=6)
FIRST = first_chain("node_1", 1)


def written(payloads: list[bytes], chain: bytes = FIRST, seq: int = 1) -> list[bytes]:
    frames = []
    for payload in payloads:
        chain = next_chain(chain, seq, payload)
        frames.append(frame(seq, chain, payload))
        seq += 1
    return frames


def read(data: bytes, chain: bytes = FIRST, seq: int = 1) -> tuple[list[bytes], Tail]:
    reader = Reader(seq, chain)
    return [found.payload for found in reader.read(data)], reader.tail


@given(PAYLOADS, st.integers(0, 100))
def test_what_was_written_is_read_back(payloads: list[bytes], zeros: int) -> None:
    data = b"".join(written(payloads))
    assert read(data + bytes(zeros)) == (payloads, Tail.CLEAN)
    chain, seq, frames = FIRST, 1, []
    for payload in payloads:
        chain, extended = extend(chain, seq, payload)
        frames.append(extended)
        seq += 1
    assert b"".join(frames) == data, "both writers write the same"


@pytest.fixture(scope="session")
def native_extend(native: Any) -> Any:
    """The function of the extension, which processors without carry-less multiplication have not got."""
    return getattr(native, "extend", None) or pytest.skip("this processor has no PCLMULQDQ")


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**64 - 1), st.binary(max_size=2000))
def test_native_extend_equals_the_one_in_python(native_extend: Any, chain: bytes, seq: int, payload: bytes) -> None:
    assert native_extend(chain, seq, payload) == extend(chain, seq, payload)


@pytest.mark.parametrize(
    "arguments", [(FIRST, -1, b""), (FIRST, 2**64, b""), (FIRST[:3], 1, b""), (FIRST, 1, "x"), (FIRST, 1.0, b""), (FIRST, 1)]
)
def test_native_extend_of_anything_else_raises(native_extend: Any, arguments: tuple[object, ...]) -> None:
    with pytest.raises((TypeError, OverflowError)):
        native_extend(*arguments)


@given(PAYLOADS, st.integers(0, 1000), st.binary(max_size=30))
def test_cut_anywhere_and_overwritten_the_whole_records_before_it_are_read(payloads: list[bytes], cut: int, junk: bytes) -> None:
    frames = written(payloads)
    data = b"".join(frames)
    cut = min(cut, len(data))
    found, tail = read(data[:cut] + junk)
    whole = 0
    while whole < len(frames) and len(b"".join(frames[: whole + 1])) <= cut:
        whole += 1
    assert found[:whole] == payloads[:whole]
    assert found == payloads[: len(found)]
    if cut == len(data) and not junk:
        assert tail is Tail.CLEAN


@given(PAYLOADS, st.integers(0, 10_000), st.integers(1, 255))
def test_one_changed_byte_is_never_accepted(payloads: list[bytes], place: int, change: int) -> None:
    frames = written(payloads)
    data = bytearray(b"".join(frames))
    place %= len(data)
    data[place] ^= change
    found, tail = read(bytes(data))
    untouched, at = 0, 0
    while at + len(frames[untouched]) <= place:
        at += len(frames[untouched])
        untouched += 1
    assert found == payloads[:untouched]
    assert tail is (Tail.DAMAGED if untouched + 1 < len(frames) else tail) and tail is not Tail.CLEAN


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=3, max_size=6, unique=True), st.data())
def test_a_record_left_out_swapped_or_replaced_is_damage(payloads: list[bytes], draw: st.DataObject) -> None:
    frames = written(payloads)
    place = draw.draw(st.integers(0, len(frames) - 2))
    without = frames[:place] + frames[place + 1 :]
    swapped = [*frames[:place], frames[place + 1], frames[place], *frames[place + 2 :]]
    other = written([b"other", *payloads])[1:]
    replaced = [*frames[:place], other[place], *frames[place + 1 :]]
    for bad in (without, swapped, replaced):
        found, tail = read(b"".join(bad))
        assert found == payloads[:place] and tail is Tail.DAMAGED


def test_records_of_another_epoch_are_not_this_one_s() -> None:
    data = b"".join(written([b"a", b"b"], first_chain("node_1", 2)))
    assert read(data) == ([], Tail.DAMAGED)
    assert read(b"".join(written([b"a", b"b"])), seq=2) == ([], Tail.DAMAGED)


@pytest.mark.parametrize("length", [PAYLOAD_BYTES_MAX + 1, 2**32 - 1])
def test_a_length_beyond_all_records_is_not_believed(length: int) -> None:
    (good,) = written([b"a"])
    assert read(good + length.to_bytes(4, "little") + bytes(HEAD_BYTES + 100)) == ([b"a"], Tail.TORN)


def test_the_longest_record_is_read() -> None:
    payload = b"x" * PAYLOAD_BYTES_MAX
    assert read(written([payload])[0]) == ([payload], Tail.CLEAN)
