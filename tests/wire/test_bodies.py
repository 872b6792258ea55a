"""Bodies: one reading only. What is refused, what is taken apart, and that both parsers agree on all of it."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tollway.domain.faults import Fault
from tollway.wire import bodies

TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS),
    lambda children: st.one_of(st.lists(children, max_size=4), st.dictionaries(TEXTS, children, max_size=4)),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=5)


def refusal(body: bytes) -> str | None:
    """The code of the refusal, None if the body is taken. Whatever one parser takes, the other must."""
    try:
        value = bodies.parse(body)
    except Fault as fault:
        return fault.kind.code
    members = bodies.members(body)
    assert list(members) == list(value)
    for name, raw in members.items():
        assert _same(msgspec.json.decode(raw), value[name])
    return None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float | int) and isinstance(other, float | int) and not isinstance(one, bool):
        return math.isclose(one, other, rel_tol=1e-12) if abs(one) < 1e300 else True
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[name], other[name]) for name in one)
    return bool(one == other)


@given(OBJECTS)
def test_every_object_is_taken_and_its_members_go_on_verbatim(value: dict[str, Any]) -> None:
    body = msgspec.json.format(msgspec.json.encode(value), indent=1)
    assert refusal(body) is None
    members = bodies.members(body)
    joined = bodies.join(members)
    assert list(bodies.members(joined)) == list(members)
    assert all(bytes(bodies.members(joined)[name]) == bytes(raw) for name, raw in members.items())
    assert all(bytes(raw) in body for raw in members.values())


@given(OBJECTS, st.binary(max_size=3), st.integers(0, 200), st.integers(0, 3))
@example({}, b"\xef\xbb\xbf", 0, 0)
@example({"a": "b"}, b"\xff", 6, 1)
@example({"a": "b"}, b"\\ud800", 6, 1)
def test_no_bytes_raise_anything_but_a_fault(value: dict[str, Any], junk: bytes, at: int, cut: int) -> None:
    body = msgspec.json.encode(value)
    at = min(at, len(body))
    refusal(body[:at] + junk + body[at + cut :])


@given(st.binary(max_size=60))
def test_no_junk_raises_anything_but_a_fault(body: bytes) -> None:
    refusal(body)


DUPLICATES = [
    b'{"a":1,"a":1}',
    b'{"a":1,"b":2,"a":3}',
    b'{"a":1,"\\u0061":2}',
    b'{"x":{"a":1,"a":2}}',
    b'{"x":[[{"a":1,"a":2}]]}',
    b'{"":1,"":2}',
    '{"é":1,"\\u00e9":2}'.encode(),
]


@pytest.mark.parametrize("body", DUPLICATES)
def test_duplicate_keys_are_refused_at_every_depth(body: bytes) -> None:
    assert refusal(body) == "duplicate_key"


def test_a_duplicate_key_is_named_only_if_it_is_a_plain_word() -> None:
    for name, param in (("model", "model"), ("a" * 64, "a" * 64), ("a" * 65, None), ("<b>", None), ("a\\nb", None), ('a\\"', None)):
        with pytest.raises(Fault) as caught:
            bodies.parse(f'{{"{name}":1,"{name}":2}}'.encode())
        assert caught.value.param == param


def deep(levels: int, open: bytes, close: bytes) -> bytes:
    return b'{"a":' + open * levels + b"1" + close * levels + b"}"


@pytest.mark.parametrize(("open", "close"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_depth_is_bounded(open: bytes, close: bytes) -> None:
    assert refusal(deep(150, open, close)) is None
    for levels in (250, 10_000):
        assert refusal(deep(levels, open, close)) == "invalid_json"
    assert refusal(deep(400_000, open, close)) in ("invalid_json", "invalid_value")


@pytest.mark.parametrize("value", [b"[]", b"{}", b"1", b'"a,b"', b"[[[]]]"])
def test_the_number_of_values_is_bounded(value: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "CONTAINERS_MAX", bodies.VALUES_MAX)

    def full(count: int) -> bytes:
        return b'{"a":[' + b",".join([value] * count) + b"]}"

    each = value.count(b"[") + value.count(b"{") + value.count(b",") + 1
    most = (bodies.VALUES_MAX - 1) // each
    assert refusal(full(most)) is None
    assert refusal(full(most + 1)) == "invalid_value"


NUMBERS = {
    "1e400": "invalid_value", "-1e400": "invalid_value", "1e309": "invalid_value", "9" * 5000: "invalid_value",
    "NaN": "invalid_json", "Infinity": "invalid_json", "-Infinity": "invalid_json", "01": "invalid_json", "1.": "invalid_json",
    ".5": "invalid_json", "+1": "invalid_json", "0x1": "invalid_json", "1e": "invalid_json", "-": "invalid_json", "1_0": "invalid_json",
    "1e308": None, "-0": None, "1E+2": None, "1e-999": None, "9" * 300: None,
}  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("place", ['{"a":%s}', '{"a":[1,[%s]]}', '{"a":{"b":{"c":%s}}}', '{"a":[%s,"x",null]}'])
def test_numbers_are_json_s_and_finite(number: str, place: str) -> None:
    assert refusal((place % number).encode()) == NUMBERS[number]


INVALID = [
    b'{"a":"\xff"}',
    b'{"a":"\xc0\xaf"}',
    b'{"a":"\xed\xa0\x80"}',
    b'{"\xff":1}',
    b'{"a":"\\ud800"}',
    b'{"a":"\\ude00\\ud83d"}',
    b'{"\\ud800":1}',
    b'{"a":"\x01"}',
    b'{"a":"\n"}',
    b'{"a":"\\x41"}',
    b"\xef\xbb\xbf{}",
    '{"a":1}'.encode("utf-16"),
    b"\x0b{}",
    b"{}\0",
    b"",
    b"[]",
    b'"a"',
    b"null",
    b'{"a":1}{"a":1}',
    b"{'a':1}",
    b"{a:1}",
]
VALID = [b'{"a":"\\ud83d\\ude00"}', b'{"a":"\\u0000"}', b' \t\r\n{ "a" : 1 }\n', b'{"a":"\x7f"}']


@pytest.mark.parametrize("body", INVALID, ids=ascii)
def test_bytes_that_are_not_a_json_object_in_utf_8(body: bytes) -> None:
    assert refusal(body) == "invalid_json"


@pytest.mark.parametrize("body", VALID, ids=ascii)
def test_bytes_that_are(body: bytes) -> None:
    assert refusal(body) is None


MANY = bodies.KEYS_MAX + 1
TOO_MANY_KEYS = {
    "plain": b"{" + b",".join(b'"k%d":1' % number for number in range(MANY)) + b"}",
    "nested": b'{"a":[' + b",".join(b'{"k":1}' for _ in range(MANY)) + b"]}",
    "blank before the colon": b"{" + b",".join(b'"k%d"  :1' % number for number in range(MANY)) + b"}",
    "line end before the colon": b"{" + b",".join(b'"k%d"\n:1' % number for number in range(MANY)) + b"}",
    "backslash at the end": b"{" + b",".join(b'"k%d\\\\":1' % number for number in range(MANY)) + b"}",
    "backslashes at the end": b"{" + b",".join(b'"k%d' % number + b"\\\\" * 4 + b'":1' for number in range(MANY)) + b"}",
}


@pytest.mark.parametrize("body", TOO_MANY_KEYS.values(), ids=TOO_MANY_KEYS.keys())
def test_76_body_with_too_many_keys_is_refused_before_it_is_parsed(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "read_value", lambda body: pytest.fail("parsed"))
    with pytest.raises(Fault) as caught:
        bodies.read(body)
    assert caught.value.message == "The request body has too many keys."


@pytest.mark.parametrize("value", [b"[]", b"{}", b" []", b"[ ]", b"\n{\n}"])
def test_76_body_with_too_many_containers_is_refused_before_it_is_parsed(value: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(count: int) -> bytes:
        return b'{"a":[' + b",".join([value] * count) + b"]}"

    assert refusal(full(bodies.CONTAINERS_MAX - 2)) is None
    monkeypatch.setattr(bodies, "read_value", lambda body: pytest.fail("parsed"))
    assert refusal(full(bodies.CONTAINERS_MAX + 1)) == "invalid_value"


def test_76_brackets_in_text_are_no_containers() -> None:
    assert refusal(b'{"a":"' + b"x[0]{1}" * bodies.CONTAINERS_MAX + b'"}') is None


def test_76_text_that_holds_json_has_no_keys() -> None:
    text = msgspec.json.encode([{f"k{number}": {"a": ["b"]}} for number in range(MANY)]).decode()
    assert bodies.read(msgspec.json.encode({"messages": [{"role": "tool", "content": text}]})) is not None
    twice = msgspec.json.encode({"messages": msgspec.json.encode({"content": text}).decode()})
    assert bodies.read(twice) is not None


def test_text_is_found_in_a_body_wherever_its_pieces_end() -> None:
    body = b'[{"a":"text","b":1}]'
    for first in range(len(body) + 1):
        for second in range(first, len(body) + 1):
            pieces = (body[:first], body[first:second], body[second:])
            assert bodies.is_within(pieces, b'"text"')
            assert not bodies.is_within(pieces, b'"test"')
            assert not bodies.is_within(pieces[::2], b'"text"') or b'"text"' in pieces[0] + pieces[2]
