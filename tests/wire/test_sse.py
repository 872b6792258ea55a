"""EventReader: any split and any line end give the same events."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.wire.sse import EVENT_BYTES_MAX, EventReader, EventTooLong, find_data

LINES = st.sampled_from(
    [b"data: a", b"data:b", b"data: {}", b"data", b": note", b"event: x", b"id: 1", b"retry: 2", "data: é".encode(), b"x"]
)
EVENTS = st.lists(st.lists(LINES, min_size=1, max_size=3).map(b"\n".join), max_size=6)
GAPS = st.sampled_from([b"\n\n", b"\n\n\n", b"\n\n\n\n"])


def read(pieces: list[bytes]) -> list[bytes]:
    reader = EventReader()
    return [event for piece in pieces for event in reader.feed(piece)]


@given(EVENTS, GAPS, st.sampled_from([b"\n", b"\r\n", b"\r"]), st.lists(st.integers(0, 300), max_size=8))
def test_any_split_and_any_line_end_give_the_same_events(events: list[bytes], gap: bytes, end: bytes, cuts: list[int]) -> None:
    data = b"".join(event + gap for event in events).replace(b"\n", end)
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    pieces = [data[start:stop] for start, stop in itertools.pairwise(places)]
    assert read(pieces) == events
    assert read([data[at : at + 1] for at in range(len(data))]) == events


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_is_there_with_the_last_byte_of_its_blank_line(end: bytes) -> None:
    reader = EventReader()
    assert reader.feed(b"data: [DONE]" + end) == []
    assert reader.has_rest
    if end == b"\r\n":
        assert reader.feed(b"\r") == [b"data: [DONE]"], "the LF that follows belongs to it and adds nothing"
    assert reader.feed(end if end != b"\r\n" else b"\n") == ([] if end == b"\r\n" else [b"data: [DONE]"])


def test_an_event_without_its_blank_line_is_none() -> None:
    reader = EventReader()
    assert reader.feed(b"data: a\n\ndata: b\n") == [b"data: a"]
    assert reader.has_rest


@pytest.mark.parametrize("step", [65_536, EVENT_BYTES_MAX * 2])
def test_events_are_bounded(step: int) -> None:
    line = b"data: " + b"x" * EVENT_BYTES_MAX + b"\n\ndata: b\n\n"
    with pytest.raises(EventTooLong):
        read([line[at : at + step] for at in range(0, len(line), step)])
    fits = b"data: " + b"x" * (EVENT_BYTES_MAX - 6) + b"\n\ndata: b\n\n"
    assert len(read([fits[at : at + step] for at in range(0, len(fits), step)])) == 2


def test_data_is_found() -> None:
    assert find_data(b"data: a") == find_data(b"data:a") == find_data(b"id: 1\ndata: a\nevent: x") == b"a"
    assert find_data(b"data: a\ndata:  b") == b"a\n b"
    assert find_data(b": a") is find_data(b"") is find_data(b"event: data: x") is None
