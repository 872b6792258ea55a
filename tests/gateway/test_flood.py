"""Bent bytes by the thousand: through real sockets, and bodies through the phase that validates them.

Whatever a client sends: no 5xx, no crash, no hang, no error that is not JSON in the API's shape, and no more answers than there were
requests. And what is sent to an engine is what was validated.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from tests.fakes import PATIENCE_SECONDS
from tests.gateway.harness import KEY, NOWHERE, Answer, Served, chat, connect, gateway, plane, split_answers
from tests.wire import corpus, reference
from tollway.domain.catalog import Endpoint, UnknownParameters
from tollway.domain.faults import Fault
from tollway.gateway import pipeline
from tollway.gateway.authorize import authorize
from tollway.gateway.dialects.fields import NEVER_FORWARDED
from tollway.gateway.dialects.table import DIALECTS
from tollway.gateway.edge.edge import EdgeBounds
from tollway.gateway.request import RequestHead, new_request
from tollway.wire import bodies

CONNECTIONS = int(os.environ.get("TOLLWAY_TEST_CONNECTIONS", "3000"))
"""A hundred thousand on demand: `TOLLWAY_TEST_CONNECTIONS=100000 pytest tests/gateway/test_flood.py`."""
AT_ONCE = 300
BODIES = 20_000
HURRY = EdgeBounds(head_seconds=0.2, body_grace_seconds=0.2, keep_alive_seconds=0.2, linger_seconds=0.2)
"""The server ends every connection by itself, so that a client can wait for all that it has to say."""


def answers(data: bytes) -> list[Answer]:
    """Return what a client that knows nothing of its own requests makes of `data`: the answer to HEAD is one without a body."""
    found = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        if head == b"HTTP/1.1 100 Continue":
            data = rest
            continue
        is_head = rest.startswith(b"HTTP/1.1 ") or not rest
        (answer,) = split_answers(head + b"\r\n\r\n", ["HEAD"])
        size = 0 if is_head else int(answer.headers["content-length"])
        found.append(Answer(answer.status, answer.headers, rest[:size]))
        assert len(rest) >= size
        data = rest[size:]
    return found


async def test_bent_connections(tried: Callable[[str, int], None]) -> None:
    statuses: Counter[int] = Counter()
    async with gateway({}, edge_bounds=HURRY) as running:

        async def attack(data: bytes) -> None:
            async with connect(running.port) as client:
                client.send(data)
                received = await client.rest()
            found = answers(received)
            assert len(found) <= reference.read(data).answers_max, data
            for answer in found:
                assert answer.status < 500, data
                statuses[answer.status] += 1
                if answer.status >= 400 and answer.body:
                    assert answer.headers["content-type"] == "application/json" and answer.error["code"], data

        batch = list(corpus.inputs(2, CONNECTIONS))
        for start in range(0, len(batch), AT_ONCE):
            async with asyncio.timeout(PATIENCE_SECONDS):
                await asyncio.gather(*(attack(data) for data in batch[start : start + AT_ONCE]))
        assert not running.sink.admits
        async with connect(running.port) as client:
            client.send(corpus.GET)
            assert (await client.answer("GET")).status == 200
    tried(f"connections through sockets, answered {dict(sorted(statuses.items()))}", len(batch))
    assert {200, 400, 401, 404, 408} <= statuses.keys()


ODD: list[bytes] = [
    b"null",
    b"true",
    b"0",
    b"-1",
    b"1",
    b"1.0",
    b"1e5",
    b"1e400",
    b"9" * 400,
    b"NaN",
    b'""',
    b'"x"',
    b'"\\ud800"',
    b'"\\u0000"',
    b"[]",
    b"[null]",
    b"[[]]",
    b"[1,-1]",
    b"[1.5]",
    b'["a",1]',
    b"{}",
    b'{"a":1,"a":2}',
    b'{"include_usage":true}',
    b'{"include_usage":1}',
    b"[" * 300 + b"]" * 300,
    b"\xff",
    b"",
    b"2147483648",
]
NAMES = sorted(
    {
        "x",
        "<b>",
        "usage",
        "é",
        "",
        *NEVER_FORWARDED,
        "n",
        "best_of",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "seed",
        "top_k",
        "echo",
        "user",
        "model",
    }
)


def bent_bodies(seed: int, count: int) -> Iterator[tuple[Endpoint, bytes]]:
    """Bodies of the three endpoints with a few odd members, some of them bent as bytes too."""
    dice = random.Random(seed)
    plain: list[tuple[Endpoint, dict[str, Any]]] = [
        (Endpoint.CHAT_COMPLETIONS, chat()),
        (Endpoint.CHAT_COMPLETIONS, chat(stream=True, stream_options={"include_usage": True}, tools=[{"type": "function"}], max_tokens=5)),
        (Endpoint.COMPLETIONS, {"model": "m", "prompt": "x", "best_of": 2, "n": 1, "logprobs": 1}),
        (Endpoint.EMBEDDINGS, {"model": "m", "input": [[1, 2], [3]], "dimensions": 8}),
    ]
    for _ in range(count):
        endpoint, body = dice.choice(plain)
        members = [
            (msgspec.json.encode(name), msgspec.json.encode(value)) for name, value in (body | {"model": dice.choice("mdf")}).items()
        ]
        for _ in range(dice.choice((0, 1, 1, 2, 3))):
            place = dice.randrange(len(members))
            if dice.random() < 0.5:
                members[place] = (members[place][0], dice.choice(ODD))
            else:
                members.insert(place, (msgspec.json.encode(dice.choice(NAMES)), dice.choice(ODD)))
        data = b"{" + b",".join(name + b":" + value for name, value in members) + b"}"
        if dice.random() < 0.3:
            at = dice.randrange(len(data) + 1)
            data = (
                data[:at]
                + dice.choice((b"", b'"', b"\\", b"{", b"}", b",", b"\0", b"\xff", b"\n", b" "))
                + data[at + dice.choice((0, 1, 5)) :]
            )
        yield endpoint, data


def test_bent_bodies_are_refused_or_sent_as_they_were_validated(tried: Callable[[str, int], None]) -> None:
    policies = {"m": UnknownParameters.REFUSE, "d": UnknownParameters.DROP, "f": UnknownParameters.FORWARD}
    models = {name: Served([NOWHERE], unknown_parameters=policy) for name, policy in policies.items()}
    verdicts: Counter[str] = Counter()
    with plane(models) as (made, _, _):
        now_us = made.now_us()
        caller = pipeline.identify_sender(RequestHead(Endpoint.CHAT_COMPLETIONS, {b"x-api-key": KEY.encode()}), made)
        for endpoint, data in bent_bodies(3, BODIES):
            request = new_request("req_1", RequestHead(endpoint, {}), data, 0.0, now_us)
            try:
                call = authorize(caller, request, made.directory, made.media_bounds)
            except Fault as fault:
                assert 400 <= fault.kind.status < 500, data
                verdicts[fault.kind.code] += 1
                continue
            verdicts["sent"] += 1
            (upstream,) = made.upstreams.of(call.model.id)
            validated = bodies.parse(data)
            sent = bodies.parse(call.upstream_body(upstream.deployment, None))
            ours = {"cache_salt", "stream_options"}
            assert {name: value for name, value in sent.items() if name not in ours} == {
                name: value for name, value in validated.items() if name in sent and name not in ours
            }, data
            assert not (NEVER_FORWARDED - ours - DIALECTS[endpoint].fields.keys()) & sent.keys(), data
            assert sent["cache_salt"] == msgspec.json.decode(caller.cache_salt)
            assert call.stream is (sent.get("stream") is True and endpoint is not Endpoint.EMBEDDINGS), data
            if call.stream:
                assert sent["stream_options"]["include_usage"] is True
            if call.output_tokens_max is not None and endpoint is not Endpoint.EMBEDDINGS:
                assert call.output_tokens_max >= (0 if endpoint is Endpoint.COMPLETIONS else 1)  # completions may be none at all
    tried(f"bodies, validated {dict(verdicts)}", BODIES)
    assert {"sent", "invalid_json", "duplicate_key", "invalid_value", "unknown_parameter"} <= verdicts.keys()
