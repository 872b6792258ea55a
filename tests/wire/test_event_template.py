"""Regular events: the template in Python and its twin in C, one held against the other."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tollway.wire import event_template

BEFORE = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"'
AFTER = b'"},"finish_reason":null}],"usage":{"prompt_tokens":300,"total_tokens":'
KEPT = AFTER.index(b',"usage"')


@pytest.fixture(params=["python", "native"])
def template_type(request: pytest.FixtureRequest) -> Any:
    if request.param == "python":
        return event_template.EventTemplate
    return request.getfixturevalue("native").EventTemplate


def event(text: bytes, total: bytes, output: bytes) -> bytes:
    return BEFORE + text + AFTER + total + b',"completion_tokens":' + output + b"}}\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize("text", [b"", b" a", b"}}", b"{[,", "é日本".encode(), b"x" * 5000])
@pytest.mark.parametrize("hides_usage", [True, False])
def test_relay_regular_events_returns_them_in_chunks(template_type: Any, text: bytes, hides_usage: bool) -> None:
    template = template_type(BEFORE, AFTER, KEPT, 3, 1000, hides_usage)
    sent = [event(text, b"304", b"4"), event(b"b", b"305", b"5")]
    kept = [BEFORE + text + AFTER[:KEPT] + b"}\n\n", BEFORE + b"b" + AFTER[:KEPT] + b"}\n\n"]
    assert template.relay(b"".join(map(chunk, sent))) == b"".join(map(chunk, kept if hides_usage else sent))
    assert (template.output, template.event_bytes) == (5, sum(map(len, sent)))
    last = event(b"x" * (0xA00 - len(event(b"", b"1300", b"1000"))), b"1300", b"1000")
    assert template.relay(chunk(last).replace(chunk(last)[:2], chunk(last)[:2].upper(), 1)) is not None and template.output == 1000


IRREGULAR = {
    "nothing": b"",
    "an escape": chunk(event(b"\\n", b"304", b"4")),
    "a control character": chunk(event(b"\x1f", b"304", b"4")),
    "a delete": chunk(event(b"\x7f", b"304", b"4")),
    "a character that is not printable": chunk(event("\u2028".encode(), b"304", b"4")),
    "an escape after UTF-8": chunk(event("é\\u0041".encode(), b"304", b"4")),
    "broken UTF-8": chunk(event(b"\xc3", b"304", b"4")),
    "fewer tokens": chunk(event(b"a", b"302", b"2")),
    "more tokens than allowed": chunk(event(b"a", b"304", b"1001")),
    "more tokens than the event has bytes": chunk(event(b"a", b"500", b"200")),
    "more digits than a count has": chunk(event(b"a", b"304", b"4" * 40)),
    "more digits than a total has": chunk(event(b"a", b"3" * 40, b"4")),
    "a leading zero": chunk(event(b"a", b"304", b"04")),
    "no count": chunk(event(b"a", b"304", b"")),
    "another model": chunk(event(b"a", b"304", b"4").replace(b'"c"', b'"d"')),
    "an event and a half": chunk(event(b"a", b"304", b"4")) + chunk(event(b"a", b"305", b"5"))[:-1],
    "half an event": chunk(event(b"a", b"304", b"4"))[:-1],
    "two events in a chunk": chunk(event(b"a", b"304", b"4") + event(b"a", b"305", b"5")),
    "a longer chunk": b"fff\r\n" + chunk(event(b"a", b"304", b"4"))[4:],
    "a chunk longer than memory": b"ffffffff\r\n" + chunk(event(b"a", b"304", b"4"))[4:],
    "a size of nine digits": b"000000" + chunk(event(b"a", b"304", b"4")),
    "a chunk extension": chunk(event(b"a", b"304", b"4")).replace(b"\r\n", b";x\r\n", 1),
    "a bare line feed": chunk(event(b"a", b"304", b"4")).replace(b"\r\n", b"\n", 1),
    "the last chunk": b"0\r\n\r\n",
}


@pytest.mark.parametrize("name", IRREGULAR)
def test_relay_anything_else_returns_none_and_changes_nothing(template_type: Any, name: str) -> None:
    template = template_type(BEFORE, AFTER, KEPT, 3, 1000, True)
    assert template.relay(IRREGULAR[name]) is None
    assert (template.output, template.event_bytes) == (3, 0)
    assert template.relay(chunk(event(b"a", b"303", b"3"))) is not None, "as many tokens as before: an event without one"


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [(b"", b'"', 1), (b"a\n", b'"', 1), (b"a", b'"\n', 1), (b"a", b"", 0), (b"a", b"x", 1), (b"a", b'"', 2), (b"a", b'"', -1)],
)
def test_template_of_other_parts_raises_value_error(template_type: Any, before: bytes, after: bytes, kept: int) -> None:
    with pytest.raises(ValueError):
        template_type(before, after, kept, 0, 10, True)


PIECES = st.sampled_from([BEFORE, AFTER, b"a", b'"', b"\\", "é".encode(), b"\xff", b"\n", b"\r\n", b"}}\n\n", b"0", b"4", b"ffffffff"])
TEXTS = st.one_of(st.text(max_size=4).map(lambda text: text.encode("utf-8", "ignore")), st.binary(max_size=4))
NUMBERS = st.one_of(st.integers(0, 1100), st.integers(0, 10**12)).map(lambda number: b"%d" % number)
CHUNKS = st.builds(event, TEXTS, NUMBERS, NUMBERS).map(chunk)
READS = st.one_of(st.lists(CHUNKS, max_size=3), st.lists(st.one_of(CHUNKS, PIECES), max_size=6))


@settings(max_examples=2000, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.booleans(), st.lists(READS, max_size=5), st.data())
def test_native_template_equals_the_one_in_python(native: Any, hides_usage: bool, reads: list[list[bytes]], data: st.DataObject) -> None:
    ours = event_template.EventTemplate(BEFORE, AFTER, KEPT, 0, 1000, hides_usage)
    twin = native.EventTemplate(BEFORE, AFTER, KEPT, 0, 1000, hides_usage)
    for read in map(b"".join, reads):
        if read and data.draw(st.booleans()):
            at = data.draw(st.integers(0, len(read) - 1))
            read = read[:at] + data.draw(st.binary(max_size=2)) + read[at + 1 :]
        assert ours.relay(read) == twin.relay(read)
        assert (ours.output, ours.event_bytes) == (twin.output, twin.event_bytes)
