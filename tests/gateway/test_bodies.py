"""Attacks in bodies: whatever the bytes, a valid error in OpenAI's shape, nothing admitted; and what goes up is what was validated."""

import json
import random
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from tests.fakes import Upstream
from tests.gateway.harness import (
    CHAT,
    COMPLETIONS,
    DONE,
    EMBEDDINGS,
    END,
    KEY,
    NARROW_KEY,
    NOWHERE,
    ORGANIZATION,
    OTHER_KEY,
    PEPPER,
    STREAM_HEAD,
    Answer,
    Memory,
    Served,
    chat,
    chunk,
    completion,
    event,
    gateway,
    healthy,
    message,
    part,
    plane,
    post,
    split_answers,
    streamed,
    whole,
)
from tests.gateway.test_framing import check_refusal, sink_of
from tollway.domain import keys
from tollway.domain.catalog import Endpoint, Engine, UnknownParameters
from tollway.domain.keys import KeyType
from tollway.domain.prices import PriceTerms
from tollway.domain.snapshot import Change, Entry, KeyEntry, OrganizationEntry, ProjectEntry
from tollway.gateway.dialects.table import DIALECTS
from tollway.gateway.edge.paths import ROUTES
from tollway.gateway.request import translate_body
from tollway.wire import bodies

FORWARDING = {policy.value: Served([NOWHERE], unknown_parameters=policy) for policy in UnknownParameters}


@pytest.fixture
async def memory() -> AsyncIterator[Memory]:
    with plane(FORWARDING | {"capped": Served([NOWHERE], output_tokens_max=100), "other": Served([NOWHERE])}) as (made, _, log):
        yield Memory(made)
        log.close()
        assert b"internal_error" not in log.text


async def ask(memory: Memory, body: Any, path: str = CHAT, **headers: str) -> Answer:
    """The answer to a body; the connection must survive it."""
    connection = await memory.exchange(message(body, path, **headers) + b"GET /livez HTTP/1.1\r\nhost: gateway\r\n\r\n")
    answer, after = split_answers(connection.written)
    assert after.status == 200
    return answer


def chat_with(member: str) -> bytes:
    """A chat body with one more member, as text."""
    return b'{"model":"m","messages":[{"role":"user","content":"hi"}],' + member.encode("utf-8", "surrogatepass") + b"}"


TYPES = {
    "missing": "",
    "text": "text/plain",
    "form": "application/x-www-form-urlencoded",
    "multipart": "multipart/form-data; boundary=x",
    "utf-16": "application/json; charset=utf-16",
    "problem": "application/problem+json",
    "twice": "application/json, text/plain",
    "two charsets": "application/json; charset=utf-8; charset=utf-16",
    "other charset behind a parameter": "application/json; profile=x; charset=latin-1",
    "no parameter": "application/json; charset",
    "open quotes": 'application/json; charset="utf-8',
    "longer name": "application/json5",
}


@pytest.mark.parametrize("kind", TYPES)
async def test_21_other_media_types(kind: str, memory: Memory) -> None:
    data = message(chat(), content_type=TYPES[kind]).replace(b"content-type: \r\n", b"")
    (answer,) = split_answers((await memory.exchange(data)).written)
    check_refusal(answer, 415, "unsupported_media_type")
    assert not sink_of(memory).admits


WITH_BODIES = [
    route.endpoint for target, route in ROUTES.items() if route.endpoint is not None and target == DIALECTS[route.endpoint].target
]


@pytest.mark.parametrize("endpoint", WITH_BODIES)
async def test_155_body_that_no_api_takes_is_refused_in_its_own_shape(endpoint: Endpoint, memory: Memory) -> None:
    dialect = DIALECTS[endpoint]
    is_form, shape = dialect.form_kinds is not None, "type" if dialect.forwarded_headers else "code"
    type = "multipart/form-data; boundary=b" if is_form else "application/json"
    other = "application/json" if is_form else "multipart/form-data; boundary=b"
    cases: list[tuple[Any, dict[str, str], set[int]]] = [
        (b"{}", {"content_type": other}, {415}),
        (b"{}", {"content_type": "text/plain"}, {415}),
        (b"{", {"content_type": type}, {400}),
        (b"--b\r\n", {"content_type": type}, {400}),
        (b"", {"content_type": type}, {400}),
        (b'{"model":"m","model":"m"}', {"content_type": type}, {400}),
        (b"{}", {"content_type": type, "content_encoding": "gzip"}, {415}),
        (b"[" * 10_000, {"content_type": type}, {400}),
    ]
    for body, headers, statuses in cases:
        answer = await ask(memory, body, dialect.target.decode(), **headers)
        assert answer.status in statuses, (body[:20], headers, answer.body)
        error = answer.json()["error"]
        assert error[shape] and error["message"], answer.body
        assert "code" in error if shape == "code" else answer.json()["type"] == "error"
    assert not sink_of(memory).admits


@pytest.mark.parametrize(
    "type",
    [
        "application/json",
        "Application/JSON; Charset=UTF-8",
        'application/json;charset="utf-8"',
        "application/json; profile=x; charset=utf-8",
        'application/json; profile="a;b=\\"c\\""',
        "application/json;",
        "application/json ; charset=utf-8 ; ",
    ],
)
async def test_21_json_in_utf_8_however_it_is_spelt(type: str, memory: Memory) -> None:
    assert (await ask(memory, chat(), content_type=type)).status == 502


async def test_21_compressed_bodies(memory: Memory) -> None:
    check_refusal(await ask(memory, chat(), content_encoding="gzip"), 415, "unsupported_content_encoding")


INVALID = {
    "22-bom": b"\xef\xbb\xbf" + msgspec.json.encode(chat()),
    "22-utf-16": msgspec.json.encode(chat()).decode().encode("utf-16"),
    "22-invalid-utf-8": chat_with('"user":"X"').replace(b"X", b"\xff\xfe"),
    "22-overlong-utf-8": chat_with('"user":"X"').replace(b"X", b"\xc0\xaf"),
    "22-encoded-surrogate": chat_with('"user":"\ud800"'),
    "22-escaped-surrogate": chat_with('"user":"\\ud800"'),
    "22-escaped-surrogate-as-a-key": chat_with('"\\ud800":1'),
    "22-empty": b"",
    "22-null": b"null",
    "22-array": b"[]",
    "22-two-values": b"{}{}",
    "22-trailing-comma": chat_with('"user":"x",'),
    "22-comment": chat_with('/*x*/"user":"x"'),
    "22-control-character": chat_with('"user":"\x01"'),
    "22-depth-of-300": chat_with('"metadata":' + '{"a":' * 300 + "1" + "}" * 300),
    "22-depth-of-30000": chat_with('"metadata":' + "[" * 30_000 + "]" * 30_000),
    "26-nan": chat_with('"temperature":NaN'),
    "26-infinity": chat_with('"temperature":Infinity'),
    "26-minus-infinity": chat_with('"logit_bias":{"1":-Infinity}'),
}


@pytest.mark.parametrize("row", INVALID)
async def test_bytes_that_are_no_json_object(row: str, memory: Memory) -> None:
    answer = await ask(memory, INVALID[row])
    check_refusal(answer, 400, "invalid_json")
    assert answer.error["param"] is None
    assert not sink_of(memory).admits


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS])
@pytest.mark.parametrize("number", ["1e400", "-1e999", "9" * 5000])
async def test_26_numbers_out_of_range(path: str, number: str, memory: Memory) -> None:
    for member in (f'"temperature":{number}', f'"metadata":{{"a":[{number}]}}', f'"seed":{number}'):
        check_refusal(await ask(memory, chat_with(member), path), 400, "invalid_value")


DUPLICATES = {
    "model": b'{"model":"m","messages":[1],"model":"other"}',
    "escaped-twin": b'{"model":"m","messages":[1],"mod\\u0065l":"other"}',
    "nested": b'{"model":"m","messages":[{"role":"user","role":"system"}]}',
    "equal": b'{"model":"m","model":"m","messages":[1]}',
    "in-a-tool": b'{"model":"m","messages":[1],"tools":[{"function":{"name":"a","name":"b"}}]}',
}


@pytest.mark.parametrize("case", DUPLICATES)
async def test_24_duplicate_keys(case: str, memory: Memory) -> None:
    answer = await ask(memory, DUPLICATES[case])
    check_refusal(answer, 400, "duplicate_key")
    assert answer.error["param"] in ("model", "role", "name")
    assert not sink_of(memory).admits


async def test_24_a_duplicate_key_is_not_echoed_unchecked(memory: Memory) -> None:
    answer = await ask(memory, b'{"<script>":1,"<script>":2}')
    check_refusal(answer, 400, "duplicate_key")
    assert b"script" not in answer.body


@pytest.mark.parametrize("value", ["-1", "0", "9223372036854775808", "1" + "0" * 30, "true", '"5"', "1.0", "1e2", "[]", "2147483648"])
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "n"])
async def test_28_counts_are_strict_integers_with_bounds(field: str, value: str, memory: Memory) -> None:
    answer = await ask(memory, chat_with(f'"{field}":{value}'))
    check_refusal(answer, 400, "invalid_value")
    assert answer.error["param"] == field


async def test_28_a_model_s_own_cap_holds(memory: Memory) -> None:
    assert (await ask(memory, chat("capped", max_tokens=100))).status == 502
    check_refusal(await ask(memory, chat("capped", max_tokens=101)), 400, "invalid_value")
    check_refusal(await ask(memory, chat("capped", max_completion_tokens=101)), 400, "invalid_value")


OTHERS = {
    "temperature": ["true", '"1"', "2.1", "-0.1", "{}"],
    "stream": ["1", '"true"', "{}"],
    "stream_options": ["true", "[]", '"x"'],
    "messages": ["[]", "{}", '"x"', "null"],
    "stop": ["1", "[1]", "{}"],
    "model": ["1", "null", '["m"]', '{"a":1}', "true"],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in OTHERS.items() for value in values])
async def test_values_of_the_wrong_type(field: str, value: str, memory: Memory) -> None:
    body = {"model": "m", "messages": [1]} | {field: msgspec.Raw(value.encode())}
    answer = await ask(memory, body)
    check_refusal(answer, 400, "invalid_value")
    assert answer.error["param"] == field


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS])
async def test_missing_fields_are_named(path: str, memory: Memory) -> None:
    assert (await ask(memory, {}, path)).error["param"] == "model"
    answer = await ask(memory, {"model": "m"}, path)
    check_refusal(answer, 400, "missing_required_parameter")
    assert answer.error["param"] in ("messages", "prompt", "input")


NEVER = [
    "image_data", "mm_hashes", "uuid",
    "api_base", "base_url", "api_key", "extra_headers", "custom_llm_provider", "callbacks", "mock_response", "cache_salt", "priority",
    "kv_transfer_params", "data_parallel_rank", "bootstrap_host", "nvext", "organization", "request_id",
]  # fmt: skip


@pytest.mark.parametrize("model", ["m", *FORWARDING])
@pytest.mark.parametrize("field", NEVER)
async def test_29_fields_that_change_identity_order_or_destination(field: str, model: str, memory: Memory) -> None:
    answer = await ask(memory, chat(model, **{field: "http://evil"}))
    check_refusal(answer, 400, "unknown_parameter")
    assert answer.error["param"] == field
    assert not sink_of(memory).admits


IDENTITIES = {
    "user_api_key_alias": "root",
    "user_api_key_team_id": "t",
    "user_api_key_user_id": "u",
    "user_id": "p",
    "api_base": "http://evil",
}


@pytest.mark.parametrize("policy", FORWARDING)
async def test_29_identities_in_metadata_are_accepted_and_never_forwarded(policy: str) -> None:
    async with Upstream([whole(completion())]).listening() as upstream:
        served = Served([upstream.url], unknown_parameters=UnknownParameters(policy))
        async with gateway({"m": served}) as running:
            body = chat(metadata=IDENTITIES, user="p", safety_identifier="p", store=True)
            assert (await post(running.port, body)).status == 200
            (admit,) = running.sink.admits
        (asked,) = upstream.asked
        assert set(msgspec.json.decode(asked.body)) == {"model", "messages", "cache_salt"}
        assert admit.organization_id == ORGANIZATION and b"root" not in running.log.text


@pytest.mark.parametrize("wrapped", ["extra_body", "extra_headers", "extra_query", "nvext", "vllm_xargs", "session_params"])
async def test_29_identities_do_not_go_up_inside_another_field(wrapped: str, memory: Memory) -> None:
    for model in FORWARDING:
        answer = await ask(memory, chat(model, **{wrapped: IDENTITIES}))
        check_refusal(answer, 400, "unknown_parameter")


async def test_29_other_unknown_fields_follow_the_model_s_policy(memory: Memory) -> None:
    answer = await ask(memory, chat("refuse", anything=1))
    check_refusal(answer, 400, "unknown_parameter")
    assert answer.error["param"] == "anything"
    assert (await ask(memory, chat("drop", anything=1))).status == 502
    assert (await ask(memory, chat("forward", anything=1))).status == 502


async def test_29_an_unknown_name_is_not_echoed_unchecked(memory: Memory) -> None:
    answer = await ask(memory, chat() | {"<b>\u202e": 1})
    check_refusal(answer, 400, "unknown_parameter")
    assert answer.error["param"] is None and b"<b>" not in answer.body


NAMES = ["\u043c", "\uff4d", "m\u200b", "m\u2011", "m\0", "M", "m ", " m", "", "m/", "../m", "{7*7}", "m" * 10_000, "\u202em"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
async def test_30_names_that_only_look_like_a_model(name: str, memory: Memory) -> None:
    unknown = await ask(memory, chat("absent"))
    answer = await ask(memory, chat(name))
    check_refusal(answer, 404, "model_not_found")
    assert {**answer.error, "message": ""} == {**unknown.error, "message": ""}


async def test_30_a_model_that_is_not_allowed_looks_like_one_that_does_not_exist(memory: Memory) -> None:
    def of(answer: Answer) -> tuple[Any, ...]:
        error = answer.error
        return answer.status, error["message"].partition(" (")[0], error["type"], error["param"], error["code"]

    data = message(chat("m"), key=NARROW_KEY) + message(chat("absent"), key=NARROW_KEY) + message(chat("other"), key=NARROW_KEY)
    hidden, absent, allowed = split_answers((await memory.exchange(data)).written)
    assert of(hidden) == of(absent)
    assert allowed.status == 502


async def test_what_goes_up_is_what_was_validated_and_nothing_of_the_head() -> None:
    body = b'{ "model" : "m", "messages":[ {"role":"user","content":"\\u00e9\\n" , "x":1.50}],"seed":-0,"temperature":1.0E-2, "user":"me"}'
    async with Upstream([whole(completion())]).listening() as upstream, gateway({"m": Served([upstream.url])}) as running:
        answer = await post(running.port, body, openai_organization="evil", cookie="a=b", x_vllm_priority="0", traceparent="junk")
        assert answer.status == 200
        (asked,) = upstream.asked
        sent = msgspec.json.decode(asked.body, type=dict[str, msgspec.Raw])
        assert bytes(sent["messages"]) == b'[ {"role":"user","content":"\\u00e9\\n" , "x":1.50}]'
        assert bytes(sent["seed"]) == b"-0" and bytes(sent["temperature"]) == b"1.0E-2"
        assert set(sent) == {"model", "messages", "seed", "temperature", "cache_salt"}
        names = {line.partition(b":")[0] for line in asked.head.split(b"\r\n")[1:] if line}
        assert names == {
            b"host", b"content-type", b"accept", b"accept-encoding", b"x-request-id", b"traceparent", b"content-length",
        }  # fmt: skip
        assert b"tw_live" not in asked.head + asked.body and b"evil" not in asked.head


async def test_a_model_is_asked_for_by_its_upstream_s_name_and_answers_by_its_own() -> None:
    names = ("up/stream", "up/stream", "up/stream-2026")  # the compact spelling, a spaced one, and a name that was never asked for
    compact, *others = (event(chunk("a", model=name)) for name in names)
    spaced = [other.replace(b'":', b'" : ') for other in others]
    stream = [STREAM_HEAD, part(compact), *(part(other) for other in spaced), part(DONE), END]
    async with Upstream([whole(completion(model="up/stream"))], stream).listening() as upstream:
        served = Served([upstream.url], Engine.VLLM, "up/stream", credential=b"sk-secret")
        async with gateway({"m": served}) as running:
            answer = await post(running.port, chat())
            assert answer.json()["model"] == "m"
            assert msgspec.json.decode(upstream.asked[0].body)["model"] == "up/stream"
            assert b"authorization: Bearer sk-secret\r\n" in upstream.asked[0].head
            *events, _ = (await post(running.port, streamed())).events()
            assert [event["model"] for event in events] == ["m", "m", "m"]


async def test_usage_is_always_asked_for_and_the_tenant_s_cache_is_its_own() -> None:
    async with Upstream(healthy("a")).listening() as upstream, gateway({"m": Served([upstream.url])}) as running:
        await post(running.port, streamed(stream_options={"include_usage": False}))
        sent = msgspec.json.decode(upstream.asked[0].body)
        assert sent["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
        assert len(sent["cache_salt"]) == 32


async def test_56_the_caches_of_two_tenants_are_kept_apart_inside_an_engine() -> None:
    async with Upstream([whole(completion())]).listening() as upstream, gateway({"m": Served([upstream.url])}) as running:
        directory = running.plane.directory
        other, project = "org_" + "1" * 32, "proj_" + "1" * 32
        entries: list[tuple[str, Entry]] = [
            ("organization", OrganizationEntry(id=other, currency="EUR", terms=(PriceTerms(0, "book_1"),))),
            ("project", ProjectEntry(id=project, organization_id=other)),
            ("key", KeyEntry(id=f"key_{1:032x}", digest=keys.digest(PEPPER, OTHER_KEY.encode()), type=KeyType.LIVE, project_id=project)),
        ]
        for version, (kind, entry) in enumerate(entries, directory.version + 1):
            running.plane.apply(Change(version=version, kind=kind, id=entry.id, entry=entry))
        for key in (KEY, KEY, OTHER_KEY):
            assert (await post(running.port, chat(), key=key)).status == 200
        salts = [msgspec.json.decode(asked.body)["cache_salt"] for asked in upstream.asked]
    assert salts[0] == salts[1] != salts[2]
    assert ORGANIZATION[4:] not in salts[0], "a salt tells nothing of whose it is"


class Ordered(list[str]):
    """Names that must not be looked through once for each field of a body."""

    def __contains__(self, name: object) -> bool:
        raise AssertionError("a look through all names for one field")


@pytest.mark.parametrize("translated", [False, True])
def test_92_fields_that_are_left_out_are_not_looked_through_for_each_field(translated: bool) -> None:
    dropped = Ordered(f"unknown_{number}" for number in range(100))
    body = msgspec.json.encode(chat(max_tokens=1) | dict.fromkeys(dropped))
    dialect = DIALECTS[Endpoint.MESSAGES if translated else Endpoint.CHAT_COMPLETIONS]
    ours = bodies.InjectedFields({"cache_salt": b'"s"'})
    if dialect.translation is None:
        sent = bodies.edit(body, tuple(bodies.members(body)), ours, dropped)
    else:
        made = translate_body(dialect.translation, bodies.read(body), dropped)
        sent = bodies.edit(made.pieces[0], made.names, ours, ())
    assert not msgspec.json.decode(sent).keys() & set(iter(dropped))


NAMES = ("model", 'a"b', "stream", "m\\", "x", "", "é", "messages", "stream_options")
VALUES = (1, 'a,}"', [1, {"a": "}"}], {"k": []}, None, 1.5e3)


def test_78_body_in_pieces_is_edited_as_a_whole_one() -> None:
    dice = random.Random(7)

    def space() -> str:
        return dice.choice(["", "", " ", "\n\t"])

    def write_name(name: str) -> str:
        return json.dumps(name) if dice.random() < 0.7 else '"' + "".join(f"\\u{ord(char):04x}" for char in name) + '"'

    for _ in range(3_000):
        names = dice.sample(NAMES, dice.randint(1, len(NAMES)))
        members = [f"{space()}{write_name(each)}{space()}:{space()}{json.dumps(dice.choice(VALUES))}{space()}" for each in names]
        body = f"{space()}{{{','.join(members)}}}{space()}".encode()
        ours = bodies.InjectedFields(dict.fromkeys(dice.sample(["model", "cache_salt", "stream_options"], dice.randint(0, 3)), b'"ours"'))
        dropped = dice.sample(names, dice.randint(0, len(names)))
        size = dice.randint(1, 9)
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        sent = b"".join(bodies.edit_pieces(pieces, names, bodies.find_spans(body), ours, dropped))
        assert json.loads(sent) == json.loads(bodies.edit(body, names, ours, dropped)), body
