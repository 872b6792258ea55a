"""Attacks on identity: who asks, with what, and what of it may be seen in logs, metrics and headers."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from types import FrameType
from typing import Any

import msgspec
import pytest

from tests.fakes import Clock, Do, Upstream, until
from tests.gateway.harness import (
    ADMIN_KEY,
    DONE,
    END,
    EXPIRED_KEY,
    KEY,
    NARROW_KEY,
    NODE_KEY,
    NOWHERE,
    ORGANIZATION,
    OTHER_KEY,
    PEPPER,
    PLATFORM_KEY,
    PROJECT,
    STREAM_HEAD,
    UNKNOWN_KEY,
    Answer,
    Memory,
    Served,
    chat,
    chunk,
    completion,
    connect,
    gateway,
    message,
    part,
    plane,
    post,
    split_answers,
    streamed,
    whole,
)
from tests.gateway.test_framing import sink_of
from tollway.domain import keys
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import KEY_INVALID, Fault
from tollway.domain.keys import KeyType, digest
from tollway.domain.limits import Limits
from tollway.domain.snapshot import Change, KeyEntry
from tollway.domain.usage import Outcome
from tollway.gateway.authenticate import authenticate
from tollway.gateway.edge.clock import Clock as EdgeClock
from tollway.gateway.edge.edge import EdgeBounds
from tollway.gateway.edge.edge_policy import EdgePolicy, parse_networks
from tollway.gateway.request import RequestHead
from tollway.native import FORM


@pytest.fixture
async def memory() -> AsyncIterator[Memory]:
    with plane({"other": Served([NOWHERE]), "org/name": Served([NOWHERE], context_length=4096)}) as (made, _, log):
        yield Memory(made)
        log.close()
        assert b"internal_error" not in log.text


async def ask(memory: Memory, method_and_path: str, *lines: str, body: Any = None) -> Answer:
    data = b"" if body is None else msgspec.json.encode(body)
    head = "".join(line + "\r\n" for line in (f"{method_and_path} HTTP/1.1", "host: gateway", *lines))
    head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    (answer,) = split_answers((await memory.exchange(head.encode("latin-1") + data)).written)
    return answer


async def ask_chat(memory: Memory, *lines: str) -> Answer:
    return await ask(memory, "POST /v1/chat/completions", *lines, body=chat())


def essence(answer: Answer) -> tuple[Any, ...]:
    """All that an answer says, but for its id."""
    error = answer.error
    headers = {name: value for name, value in answer.headers.items() if name not in ("x-request-id", "content-length")}
    return answer.status, headers, error["message"].partition(" (")[0], error["type"], error["param"], error["code"]


NO_KEYS = {
    "36-none": [],
    "36-empty": ["authorization: Bearer "],
    "36-bad-prefix": ["authorization: Bearer sk-" + KEY[3:]],
    "36-bad-checksum": ["authorization: Bearer " + KEY[:-1] + ("0" if KEY[-1] != "0" else "1")],
    "36-long": ["authorization: Bearer " + KEY + "x" * 8000],
    "38-sql": ["authorization: Bearer ' OR 1=1; --"],
    "38-json": ['authorization: Bearer {"$gt":""}'],
    "38-ldap": ["authorization: Bearer *)(uid=*"],
    "38-space-inside": ["authorization: Bearer " + KEY[:20] + " " + KEY[20:]],
    "38-tab": ["authorization: Bearer\t" + KEY],
    "38-utf-8": ["authorization: Bearer " + "ключ".encode().decode("latin-1")],
    "38-basic": ["authorization: Basic dXNlcjpwYXNz"],
    "38-two-tokens": ["authorization: Bearer " + KEY + ", Bearer " + KEY],
    "38-no-scheme": ["authorization: " + KEY],
    "38-case-changed": ["authorization: Bearer " + KEY.swapcase()],
}


@pytest.mark.parametrize("row", NO_KEYS)
async def test_no_key_at_all(row: str, memory: Memory) -> None:
    answer = await ask_chat(memory, *NO_KEYS[row])
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert not sink_of(memory).admits


async def test_37_unknown_revoked_and_expired_keys_answer_alike(memory: Memory) -> None:
    plane = memory.edge.plane
    plane.apply(Change(version=2, kind="key", id=f"key_{1:032x}", entry=None))
    answers = [await ask_chat(memory, f"authorization: Bearer {key}") for key in (UNKNOWN_KEY, OTHER_KEY, EXPIRED_KEY)]
    assert essence(answers[0]) == essence(answers[1]) == essence(answers[2])
    assert answers[0].status == 401


async def test_37_a_flood_of_unknown_keys_costs_neither_disk_nor_a_log_line_each(memory: Memory) -> None:
    plane = memory.edge.plane
    data = message(chat(), key=UNKNOWN_KEY)
    for _ in range(50):
        assert len(split_answers((await memory.exchange(data * 10)).written)) == 10
    refusals = plane.metrics.refusals
    assert set(refusals) == {"invalid_api_key", "too_many_failed_authentications"} and sum(refusals.values()) == 500
    assert not sink_of(memory).admits
    assert plane.refusal_lines == 0


async def test_37_the_same_lines_run_for_unknown_revoked_expired_and_miswritten_keys(memory: Memory) -> None:
    """Former states of a key show in time only if other code runs for it. A key that expired is forgotten when it is used again."""
    if FORM == "compiled":
        pytest.skip("compiled code has no lines to trace")
    plane = memory.edge.plane
    await ask_chat(memory, f"authorization: Bearer {EXPIRED_KEY}")
    plane.apply(Change(version=2, kind="key", id=f"key_{1:032x}", entry=None))

    def lines_for(key: str) -> list[tuple[str, int]]:
        lines: list[tuple[str, int]] = []

        def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any]:
            if event == "line":
                lines.append((frame.f_code.co_filename, frame.f_lineno))
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            with pytest.raises(Fault) as refused:
                authenticate(
                    RequestHead(Endpoint.CHAT_COMPLETIONS, {b"authorization": b"Bearer " + key.encode()}),
                    plane.directory,
                    plane.digesters,
                    plane.now_us(),
                )
        finally:
            sys.settrace(before)
        assert refused.value.kind is KEY_INVALID
        return [(file, line) for file, line in lines if "tollway" in file]

    miswritten = UNKNOWN_KEY[:-1] + ("1" if UNKNOWN_KEY[-1] == "0" else "0")
    unknown, *others = (lines_for(key) for key in (UNKNOWN_KEY, OTHER_KEY, EXPIRED_KEY, miswritten))
    assert len(unknown) > 10
    assert others == [unknown] * 3


async def test_an_expired_key_stays_expired_until_a_change_prolongs_it(memory: Memory) -> None:
    directory = memory.edge.plane.directory
    digest = keys.digest(PEPPER, KEY.encode())
    caller = directory.find_caller(digest, 0)
    assert caller is not None
    entry = KeyEntry(id=f"key_{0:032x}", digest=digest, type=KeyType.LIVE, project_id=PROJECT, expires_at=1000)
    directory.apply(Change(version=2, kind="key", id=entry.id, entry=entry))
    assert directory.find_caller(digest, 999) is not None
    assert directory.find_caller(digest, 1000) is None
    assert directory.find_caller(digest, 999) is None, "a clock that is set back revives nothing"
    directory.apply(Change(version=3, kind="key", id=entry.id, entry=msgspec.structs.replace(entry, expires_at=2000)))
    assert directory.find_caller(digest, 1000) is not None
    directory.apply(Change(version=4, kind="key", id=entry.id, entry=None))
    assert directory.find_caller(digest, 1000) is None


async def fail(memory: Memory, count: int, *, key: str = UNKNOWN_KEY, peer: str = "192.0.2.1", **headers: str) -> list[Answer]:
    """Send so many requests with this key on one connection from this address."""
    connection = memory.connect(peer)
    for _ in range(count):
        connection.feed(message(chat(), key=key, **headers))
        await memory.settle()
    return split_answers(connection.written)


async def test_a_kept_connection_is_answered_by_what_is_known_at_each_request() -> None:
    """Requests with the same head share what was read of it; whether its key is good, and for what, is asked each time."""
    clock = Clock()
    with plane(clock=clock) as (made, _, _):
        memory = Memory(made)
        connection = memory.connect("192.0.2.1")
        key = KeyEntry(id=f"key_{1:032x}", digest=digest(PEPPER, OTHER_KEY.encode()), type=KeyType.LIVE, project_id=PROJECT)
        expiring = msgspec.structs.replace(key, expires_at=clock.now_us() + 5_000_000)
        narrow = msgspec.structs.replace(key, models=("other",))

        async def ask_again() -> int:
            connection.feed(message(chat(), key=OTHER_KEY))
            await memory.settle()
            return split_answers(connection.written)[-1].status

        def become(entry: KeyEntry | None) -> None:
            made.apply(Change(version=made.version + 1, kind="key", id=key.id, entry=entry))

        assert [await ask_again(), await ask_again()] == [502, 502]
        become(None)
        assert [await ask_again(), await ask_again()] == [401, 401]
        become(expiring)
        assert [await ask_again(), await ask_again()] == [502, 502]
        clock.advance(5)
        assert [await ask_again(), await ask_again()] == [401, 401]
        become(narrow)
        assert [await ask_again(), await ask_again()] == [404, 404]
        become(key)
        assert await ask_again() == 502


@pytest.mark.parametrize("key", [UNKNOWN_KEY, EXPIRED_KEY, ADMIN_KEY, "nonsense"])
async def test_37_an_address_that_fails_too_often_is_told_when_to_come_back(key: str) -> None:
    with plane() as (made, _, _):
        memory = Memory(made, EdgeBounds(failed_authentications_per_minute=3))
        answers = await fail(memory, 5, key=key)
        status = 403 if key == ADMIN_KEY else 401
        assert [answer.status for answer in answers] == [status] * 3 + [429] * 2
        refused = answers[-1]
        assert (refused.error["code"], refused.error["type"]) == ("too_many_failed_authentications", "requests")
        assert 1 <= int(refused.headers["retry-after"]) <= 20 and int(refused.headers["retry-after-ms"]) <= 20_000
        assert made.metrics.refusals["too_many_failed_authentications"] == 2
        assert [answer.status for answer in await fail(memory, 1, key=key, peer="192.0.2.2")] == [status], "another address"


async def test_37_a_good_key_is_served_whatever_failed_from_its_address() -> None:
    with plane() as (made, _, _):
        memory = Memory(made, EdgeBounds(failed_authentications_per_minute=1))
        assert [answer.status for answer in await fail(memory, 2)] == [401, 429]
        assert [answer.status for answer in await fail(memory, 3, key=KEY)] == [502] * 3
        wrong = [answer.error["code"] for answer in await fail(memory, 2, key=NARROW_KEY)]
        assert wrong == ["model_not_found"] * 2, "a key that is known is never counted"


@pytest.mark.parametrize("data", [b"GET /v1/models HTTP/1.1\r\nhost: gateway\r\n\r\n", message(b"", content_length="1000000", key=None)])
async def test_37_it_holds_on_every_route(data: bytes) -> None:
    with plane() as (made, _, _):
        memory = Memory(made, EdgeBounds(failed_authentications_per_minute=1))
        answers = [split_answers((await memory.exchange(data)).written)[0] for _ in range(2)]
        assert [answer.status for answer in answers] == [401, 429]


async def test_37_behind_a_trusted_proxy_the_client_is_counted_not_the_proxy() -> None:
    rules = EdgePolicy(trusted=parse_networks(["10.0.0.0/8"]), forwarded_for=True)
    with plane() as (made, _, _):
        memory = Memory(made, EdgeBounds(failed_authentications_per_minute=1), rules=rules)
        for client in ("198.51.100.1", "198.51.100.2"):
            answers = await fail(memory, 2, peer="10.0.0.1", x_forwarded_for=f"203.0.113.9, {client}")
            assert [answer.status for answer in answers] == [401, 429]
        assert [answer.status for answer in await fail(memory, 3, peer="10.0.0.1")] == [401] * 3, "for whom it asks is not known"
        forged = [await fail(memory, 1, peer="192.0.2.1", x_forwarded_for=f"198.51.100.{number}") for number in range(3, 6)]
        assert [answer.status for (answer,) in forged] == [401, 429, 429], "a forged header makes nobody else of anybody"


CARRIERS = ["authorization: Bearer {}", "Authorization: bearer {}", "authorization:  Bearer  {} ", "x-api-key: {}", "api-key: {}"]


@pytest.mark.parametrize("key", [KEY, NARROW_KEY, EXPIRED_KEY, UNKNOWN_KEY, ADMIN_KEY])
async def test_40_the_way_a_key_is_carried_changes_nothing(key: str, memory: Memory) -> None:
    answers = [await ask_chat(memory, carrier.format(key)) for carrier in CARRIERS]
    assert len({msgspec.json.encode(essence(answer)) for answer in answers}) == 1
    assert len({admit.key_id for admit in sink_of(memory).admits}) <= 1


@pytest.mark.parametrize("second", ["x-api-key: {}", "api-key: {}"])
async def test_40_two_credentials_that_differ_are_refused(second: str, memory: Memory) -> None:
    for other in (OTHER_KEY, "junk"):
        answer = await ask_chat(memory, f"authorization: Bearer {KEY}", second.format(other))
        assert (answer.status, answer.error["code"]) == (400, "ambiguous_credentials")


BEARER = f"authorization: Bearer {KEY}"
SAME = {
    "twice": (BEARER, f"x-api-key: {KEY}"),
    "three times": (BEARER, f"x-api-key: {KEY}", f"api-key: {KEY}"),
    "beside an empty header": (BEARER, "x-api-key: "),
    "beside an empty bearer": ("authorization: Bearer ", f"x-api-key: {KEY}"),
    "beside an empty authorization": ("authorization: ", f"api-key: {KEY}"),
}


@pytest.mark.parametrize("case", SAME)
async def test_40_same_credential_in_several_headers_is_served(case: str, memory: Memory) -> None:
    assert (await ask_chat(memory, *SAME[case])).status == 502, "served, by an engine that is not there"


async def test_40_key_beside_another_authentication_scheme_is_refused(memory: Memory) -> None:
    answer = await ask_chat(memory, "authorization: Basic dTpw", f"x-api-key: {KEY}")
    assert (answer.status, answer.error["code"]) == (400, "ambiguous_credentials")


@pytest.mark.parametrize("key", [ADMIN_KEY, PLATFORM_KEY, NODE_KEY], ids=["admin", "platform", "node"])
async def test_44_keys_of_the_other_plane(key: str, memory: Memory) -> None:
    for path, body in (("POST /v1/chat/completions", chat()), ("GET /v1/models", None)):
        answer = await ask(memory, path, f"authorization: Bearer {key}", body=body)
        assert (answer.status, answer.error["code"]) == (403, "insufficient_scope")


async def test_41_a_revoked_key_stops_with_the_change_that_revokes_it(memory: Memory) -> None:
    plane = memory.edge.plane
    assert (await ask_chat(memory, f"authorization: Bearer {KEY}")).status == 502
    plane.apply(Change(version=2, kind="key", id=f"key_{0:032x}", entry=None))
    assert (await ask_chat(memory, f"authorization: Bearer {KEY}")).status == 401


@pytest.mark.parametrize(
    ("kind", "id"),
    [("key", f"key_{0:032x}"), ("project", PROJECT), ("organization", ORGANIZATION)],
    ids=["revoked", "project-archived", "organization-archived"],
)
async def test_41_open_streams_of_a_revoked_key_end_and_others_go_on(kind: str, id: str) -> None:
    upstream = Upstream([STREAM_HEAD, part(chunk("a")), Do.GATE, part(chunk("b"), DONE), END])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        client.send(message(streamed()))
        await client.reader.readuntil(b'"a"')
        running.plane.apply(Change(version=2, kind="model", id="unrelated", entry=None))
        await asyncio.sleep(2 * EdgeClock.PERIOD_SECONDS)
        assert running.plane.active.exchanges, "an unrelated change ended the stream"
        running.plane.apply(Change(version=3, kind=kind, id=id, entry=None))
        rest = await client.reader.readuntil(b"0\r\n\r\n")
        assert b"invalid_api_key" in rest and b"[DONE]" not in rest
        final = await running.sink.settled()
        assert (final.outcome, final.error) == (Outcome.UPSTREAM_ERROR, "invalid_api_key")


async def test_41_streams_of_a_retired_secret_end_and_those_of_the_new_one_go_on() -> None:
    new = keys.digest(PEPPER, OTHER_KEY.encode())
    entry = KeyEntry(id=f"key_{0:032x}", digest=new, type=KeyType.LIVE, project_id=PROJECT)
    upstream = Upstream([STREAM_HEAD, part(chunk("a")), Do.GATE, part(chunk("b"), DONE), END])
    async with (
        upstream.listening(),
        gateway({"m": Served([upstream.url])}) as running,
        connect(running.port) as old_client,
        connect(running.port) as new_client,
    ):
        rotated = msgspec.structs.replace(entry, previous_digest=keys.digest(PEPPER, KEY.encode()), previous_expires_at=1 << 60)
        running.plane.apply(Change(version=2, kind="key", id=entry.id, entry=rotated))
        for client, secret in ((old_client, KEY), (new_client, OTHER_KEY)):
            client.send(message(streamed(), key=secret))
            await client.reader.readuntil(b'"a"')
        running.plane.apply(Change(version=3, kind="key", id=entry.id, entry=entry))
        assert b"invalid_api_key" in await old_client.reader.readuntil(b"0\r\n\r\n")
        upstream.gate.set()
        await new_client.reader.readuntil(b"[DONE]\n\n")


async def test_models_are_those_that_the_key_may_use(memory: Memory) -> None:
    everything = await ask(memory, "GET /v1/models", f"authorization: Bearer {KEY}")
    narrow = await ask(memory, "GET /v1/models", f"authorization: Bearer {NARROW_KEY}")
    assert [model["id"] for model in everything.json()["data"]] == ["m", "org/name", "other"]
    assert [model["id"] for model in narrow.json()["data"]] == ["other"]
    assert (await ask(memory, "GET /v1/models")).status == 401
    for path in ("/v1/models/org/name", "/v1/models/org%2Fname", "/v1/models/org%2fname"):
        answer = await ask(memory, f"GET {path}", f"authorization: Bearer {KEY}")
        assert answer.json()["id"] == "org/name"
    hidden = await ask(memory, "GET /v1/models/m", f"authorization: Bearer {NARROW_KEY}")
    absent = await ask(memory, "GET /v1/models/absent", f"authorization: Bearer {NARROW_KEY}")
    assert essence(hidden) == essence(absent)
    assert hidden.status == 404


HOSTILE = ["a b", "a" * 10_000, "x\u202e".encode().decode("latin-1"), "${jndi:ldap://x}", "\\x1b[31m", "req_" + "0" * 32]


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
async def test_17_ids_are_ours_whatever_the_client_calls_itself(value: str, memory: Memory) -> None:
    answers = [
        await ask_chat(memory, f"authorization: Bearer {KEY}", f"x-request-id: {value}", f"x-client-request-id: {value}"),
        await ask_chat(memory, f"authorization: Bearer {KEY}", f"traceparent: {value}", "baggage: " + value),
    ]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == 2 and value not in ids
    assert all(answer.headers["x-request-id"] in answer.error["message"] for answer in answers)


async def test_17_trace_goes_on_with_the_sampling_of_a_valid_parent_only() -> None:
    trace = "0123456789abcdef0123456789abcdef"
    async with Upstream([whole(completion())]).listening() as upstream, gateway({"m": Served([upstream.url])}) as running:
        for flags in ("01", "00", "ff"):
            await post(running.port, chat(), traceparent=f"00-{trace}-0123456789abcdef-{flags}", tracestate="vendor=a,other=b")
        await post(running.port, chat(), traceparent=f"00-{'0' * 32}-0123456789abcdef-01", tracestate="vendor=a")
        await post(running.port, chat(), traceparent=f"00-{trace}-0123456789abcdef-01", tracestate="v=" + "x" * 600)
        heads = [asked.head.decode() for asked in upstream.asked]
    parents = [head.partition("traceparent: ")[2].partition("\r\n")[0] for head in heads]
    assert all(parent.startswith(f"00-{trace}-") and "0123456789abcdef-0" not in parent[36:] for parent in (*parents[:3], parents[4]))
    assert [parent[-3:] for parent in parents] == ["-01", "-00", "-03", "-00", "-01"]
    assert "0" * 32 not in parents[3]
    assert ["tracestate: vendor=a,other=b\r\n" in head for head in heads[:3]] == [True] * 3
    assert not any("tracestate" in head for head in heads[3:])


async def test_18_nothing_of_a_client_becomes_a_header_or_is_echoed(memory: Memory) -> None:
    hostile = 'x\r\nset-cookie: a=b\x1b[31m\u202e${jndi:ldap://x}"'
    answer = await ask(
        memory,
        "POST /v1/chat/completions",
        f"authorization: Bearer {KEY}",
        "user-agent: \\x1b[31m${jndi:ldap://x}",
        "x-client-request-id: ok-1",
        body=chat(hostile, user=hostile, metadata={"a": hostile}),
    )
    assert answer.status == 404 and "set-cookie" not in answer.headers and b"jndi" not in answer.body


async def test_18_log_lines_hold_neither_content_nor_secrets() -> None:
    async with Upstream([whole(completion("the answer"))]).listening() as upstream, gateway({"m": Served([upstream.url])}) as running:
        prompt = chat() | {"messages": [{"role": "user", "content": "the \x1b question\r\n"}], "user": "the person"}
        assert (await post(running.port, prompt, x_client_request_id="mine-1")).status == 200
        assert (await post(running.port, chat("no\r\nsuch\u202emodel"), x_client_request_id="a b")).status == 404
    lines = [msgspec.json.decode(line) for line in running.log.text.splitlines()]
    assert [line["status"] for line in lines] == [200, 404]
    assert lines[0]["client_request_id"] == "mine-1" and "client_request_id" not in lines[1]
    for word in (b"question", b"the answer", b"person", b"such", b"tw_live", b"\x1b", b"\\u001b"):
        assert word not in running.log.text


async def test_57_labels_are_those_of_the_catalog() -> None:
    async with Upstream([whole(completion())]).listening() as upstream, gateway({"m": Served([upstream.url])}) as running:
        for number in range(30):
            await post(running.port, chat(f"flood-{number}", user=f"flood-{number}"), f"/v1/chat/completions?flood-{number}")
            await post(running.port, chat(), f"/flood-{number}", user_agent=f"flood-{number}")
        await post(running.port, chat())
        async with connect(running.internal_port) as client:
            client.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
            page = (await client.answer("GET")).body
        assert b"flood" not in page
        assert b'tollway_requests_total{endpoint="chat/completions",model="m",status="200"} 1.0' in page
        assert (await post(running.port, chat(), "/metrics")).status == 404


async def test_limits_are_told_and_concurrency_is_held_to_the_last_byte() -> None:
    limits = Limits(requests_per_minute=3, concurrent_requests=1)
    async with (
        Upstream([Do.GATE, whole(completion())]).listening() as upstream,
        gateway({"m": Served([upstream.url])}, limits=limits) as running,
        connect(running.port) as client,
    ):
        client.send(message(chat()))
        await until(lambda: bool(upstream.asked))
        busy = await post(running.port, chat())
        assert (busy.status, busy.error["code"], busy.error["type"]) == (429, "rate_limit_exceeded", "requests")
        assert int(busy.headers["retry-after"]) >= 1 and int(busy.headers["retry-after-ms"]) >= 1
        upstream.gate.set()
        answer = await client.answer()
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert answer.headers["x-ratelimit-remaining-requests"] == "2"
        assert [(await post(running.port, chat())).status for _ in range(3)] == [200, 200, 429]
