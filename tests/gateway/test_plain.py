"""Plain bodies, which are validated in one call: nothing is plain that the checks of its fields would refuse, and nearly everything is."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.gateway.dialects.fields import is_plain, list_plain_fields
from tollway.gateway.dialects.table import DIALECTS
from tollway.gateway.media.admission import check_messages
from tollway.gateway.media.bounds import MediaBounds
from tollway.wire import bodies

JSON = [endpoint for endpoint in Endpoint if DIALECTS[endpoint].form_kinds is None]
"""Endpoints whose bodies are JSON: a form has a file, which nothing in JSON is."""
PRIVATE = "http://169.254.169.254/latest"
SCALARS = [
    b"null",
    b"true",
    b"1",
    b"0",
    b"-1",
    b"1.0",
    b"0.5",
    b"1e400",
    b"1" + b"0" * 400,
    b"2147483648",
    b"9223372036854775808",
    b'""',
    b'"a"',
]
SCALARS += [b'"auto"', b'"float"', b'"flex"', msgspec.json.encode(PRIVATE)]
VALUES = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: b"[" + b",".join(items) + b"]"),
        st.dictionaries(st.sampled_from(["role", "content", "image_url", "url", "x"]), inner, max_size=3).map(bodies.join),
    ),
    max_leaves=6,
)
GOOD: dict[str, bytes] = {
    "model": b'"m"',
    "messages": b'[{"role":"user","content":"x"}]',
    "prompt": b'"x"',
    "input": b'"x"',
    "query": b'"x"',
    "voice": b'"x"',
    "speed": b"1.5",
    "documents": b'["x","y"]',
    "text_1": b'"x"',
    "text_2": b'["x","y"]',
    "max_tokens": b"5",
    "tokens": b"[1,2]",
    "inputs": b'[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]',
}
GOOD |= {"temperature": b"0.7", "stream": b"true", "stop": b'["a"]', "stream_options": b'{"include_usage":true}', "n": b"2", "seed": b"-3"}


@st.composite
def requests(draw: st.DrawFn) -> tuple[Endpoint, dict[str, Any]]:
    """Bodies that are good but for some of their members, most of them with all that is required."""
    endpoint = draw(st.sampled_from(JSON))
    dialect = DIALECTS[endpoint]
    names = draw(st.sets(st.sampled_from([*dialect.fields, "x", "priority"]), max_size=4)) | set(dialect.required)
    bent = draw(st.sets(st.sampled_from(sorted(names)), max_size=2))
    members = {name: draw(VALUES) if name in bent or name not in GOOD else GOOD[name] for name in sorted(names)}
    if draw(st.integers(0, 9)) == 0:
        del members[draw(st.sampled_from(sorted(members)))]
    return endpoint, bodies.read(bodies.join(members))


@given(requests())
def test_whatever_is_plain_passes_every_check(request: tuple[Endpoint, dict[str, Any]]) -> None:
    endpoint, asked = request
    dialect = DIALECTS[endpoint]
    if not is_plain(asked, dialect.plain):
        return
    bodies.check_finite(asked)
    assert set(dialect.required) <= set(asked) <= set(dialect.fields)
    assert all(dialect.fields[name].allows(value) for name, value in asked.items())
    check_messages(asked.get("messages"), asked.get("system"), MediaBounds(parts_max=0))


PLAIN = [
    (Endpoint.CHAT_COMPLETIONS, ["model", "messages", "temperature", "max_tokens", "stream", "stream_options", "n", "seed", "stop"]),
    (Endpoint.COMPLETIONS, ["model", "prompt", "temperature", "max_tokens", "stream", "stream_options", "n", "seed", "stop"]),
    (Endpoint.EMBEDDINGS, ["model", "input"]),
    (Endpoint.MESSAGES, ["model", "messages", "max_tokens", "temperature", "stream"]),
    (Endpoint.COUNT_TOKENS, ["model", "messages"]),
    (Endpoint.RESPONSES, ["model", "input", "temperature", "stream"]),
    (Endpoint.INPUT_TOKENS, ["model", "input"]),
    (Endpoint.COMPACT, ["model", "input"]),
    (Endpoint.RERANK, ["model", "query", "documents"]),
    (Endpoint.SCORE, ["model", "text_1", "text_2"]),
    (Endpoint.CLASSIFY, ["model", "input"]),
    (Endpoint.IMAGE_GENERATIONS, ["model", "prompt", "n"]),
    (Endpoint.AUDIO_SPEECH, ["model", "input", "voice", "speed"]),
    (Endpoint.MODERATIONS, ["model", "input"]),
    (Endpoint.TOKENIZE, ["model", "prompt", "messages"]),
    (Endpoint.DETOKENIZE, ["model", "tokens"]),
]


@pytest.mark.parametrize(("endpoint", "names"), PLAIN)
def test_what_most_clients_ask_is_plain(endpoint: Endpoint, names: list[str]) -> None:
    dialect = DIALECTS[endpoint]
    for count in range(len(dialect.required), len(names) + 1):
        chosen = {*dialect.required, *names[:count]}
        assert is_plain(bodies.read(bodies.join({name: GOOD[name] for name in names if name in chosen})), dialect.plain)


@pytest.mark.parametrize("endpoint", JSON)
@pytest.mark.parametrize("value", SCALARS)
def test_every_field_is_plain_only_with_what_its_check_allows(endpoint: Endpoint, value: bytes) -> None:
    dialect = DIALECTS[endpoint]
    good = {name: GOOD[name] for name in dialect.required}
    for name, check in dialect.fields.items():
        asked = bodies.read(bodies.join(good | {name: value}))
        if is_plain(asked, dialect.plain):
            assert check.allows(asked[name])
            bodies.check_finite(asked)
        elif check.plain is not None and not isinstance(asked[name], float):
            assert not check.allows(asked[name]), name


READ_NATIVELY = [
    (Endpoint.CHAT_COMPLETIONS, ["model", "messages", "temperature", "max_tokens", "stream", "stream_options", "n", "seed"]),
    (Endpoint.COMPLETIONS, ["model", "prompt", "temperature", "max_tokens", "stream", "stream_options", "n", "seed"]),
    (Endpoint.MESSAGES, ["model", "messages", "max_tokens", "temperature", "stream"]),
    (Endpoint.RESPONSES, ["model", "input", "temperature", "stream"]),
    (Endpoint.EMBEDDINGS, ["model", "input"]),
]
TEXTS = [
    b'"x"', b'""', b'"a\\nb"', b'"\\u00e9"', b'"\\ud83d\\ude00"', b'"\\ud83d"', b'"\\x"', b'"\\u12"', b'"a\nb"', b'"\x7f"', b'"\x00"',
    '"é"'.encode(), '"日本 😀"'.encode(), b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'"' + b"x" * 40 + b'"', b'"' + b"x" * 1025 + b'"',
]  # fmt: skip
NUMBERS = [
    b"0",
    b"-0",
    b"-0.0",
    b"00",
    b"01",
    b"1.",
    b".5",
    b"-",
    b"+1",
    b"1e1",
    b"0.7",
    b"2.0",
    b"2.0000000000000001",
    b"0.1234567890123456",
]
NUMBERS += [
    b"123456789012345678",
    b"1234567890123456789",
    b"0.30000000000000004",
    b"1.9999999999999999",
    b"9007199254740993.0",
    b"truex",
    b"nul",
]
LISTS = [
    b"[]",
    b"[{}]",
    b"[{},]",
    b'[{"a":1,"a":2}]',
    b'[{"a":{}}]',
    b'[{"a":1.5}]',
    b"[1]",
    b'[{"a":null},{"b":true}]',
    b"[{}",
    b"[{]}",
    b"{",
]
LISTS += [b'[{"role":"user","content":%b}]' % text for text in TEXTS]
OBJECTS = [
    b"{}",
    b'{"a":1}',
    b'{"a":"\\n"}',
    b'{"a":1,"a":1}',
    b'{"a":[1]}',
    b'{"\\u0061":1}',
    b'{"a":1,}',
    b"{" + b",".join(b'"%d":0' % n for n in range(17)) + b"}",
]
BLANKS = st.sampled_from([b"", b"", b"", b" ", b"\r\n\t", b"\x0b", b"\xa0", b"\x00"])


@st.composite
def texts_of_bodies(draw: st.DrawFn) -> tuple[Endpoint, bytes]:
    """Bodies as they are sent, most of them good but for one of their members, for blanks, or for a byte or two."""
    endpoint = draw(st.sampled_from(JSON))
    dialect = DIALECTS[endpoint]
    names = [*dialect.required, *draw(st.lists(st.sampled_from([*dialect.fields, "x"]), max_size=3))]
    bent = draw(st.sampled_from(names))
    odd = st.one_of(*map(st.sampled_from, (SCALARS, TEXTS, NUMBERS, LISTS, OBJECTS)), VALUES)
    members = []
    for name in names:
        value = draw(odd) if name == bent or name not in GOOD else GOOD[name]
        members.append(b'%b"%b"%b:%b%b' % (draw(BLANKS), name.encode(), draw(BLANKS), draw(BLANKS), value))
    body = draw(BLANKS) + b"{" + b",".join(members) + draw(BLANKS) + b"}" + draw(BLANKS)
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(st.binary(max_size=2)) + body[at + draw(st.integers(0, 2)) :]
    return endpoint, body


@given(texts_of_bodies())
def test_native_reader_reads_plain_bodies_alone_and_as_they_are(native: Any, sent: tuple[Endpoint, bytes]) -> None:
    endpoint, body = sent
    dialect = DIALECTS[endpoint]
    fields = list_plain_fields(dialect.fields, dialect.required)
    found = native.PlainReader(fields).read(body) if fields else None
    if found is None:
        return
    try:
        asked = bodies.read(body)
    except Fault:
        pytest.fail(f"it is not strict JSON: {body!r}")
    assert is_plain(asked, dialect.plain)
    assert repr(found) == repr({name: () if type(value) is list else value for name, value in asked.items()})


@pytest.mark.parametrize(("endpoint", "names"), READ_NATIVELY)
def test_native_reader_reads_what_most_clients_ask(native: Any, endpoint: Endpoint, names: list[str]) -> None:
    dialect = DIALECTS[endpoint]
    reader = native.PlainReader(list_plain_fields(dialect.fields, dialect.required))
    for count in range(len(dialect.required), len(names) + 1):
        chosen = {*dialect.required, *names[:count]}
        body = bodies.join({name: GOOD[name] for name in names if name in chosen})
        assert reader.read(body).keys() == chosen
        assert reader.read(body.replace(b",", b" ,\r\n\t").replace(b":", b" : ") + b"\n").keys() == chosen


@pytest.mark.parametrize("text", TEXTS)
def test_native_reader_reads_texts_of_messages_with_escapes_and_other_characters(native: Any, text: bytes) -> None:
    dialect = DIALECTS[Endpoint.CHAT_COMPLETIONS]
    reader = native.PlainReader(list_plain_fields(dialect.fields, dialect.required))
    body = b'{"model":"m","messages":[{"role":"user","content":%b}]}' % text
    try:
        bodies.read(body)
    except Fault:
        assert reader.read(body) is None
    else:
        assert (reader.read(body) is None) == (b"\\ud83d" in text), "but for halves of characters, it reads what is strict JSON"


@pytest.mark.parametrize("fields", [[], ((),), (("a",),), (("a", 1, 0, 0, 0.0, 0.0, 0, 0, False),) * 65])
def test_native_reader_of_no_fields_raises(native: Any, fields: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        native.PlainReader(fields)
    with pytest.raises(TypeError):
        native.PlainReader(()).read("{}")
