"""JSON answers, refusals, and the routes beside inference."""

import base64
import struct
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.simulator.running import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MESSAGES,
    Running,
    chat,
    connect,
    get,
    post,
    send,
)


async def test_a_chat_answer_has_vllms_fields(sim: Running) -> None:
    whole = (await post(sim, CHAT, chat(3), "abc")).json()
    assert (whole["id"], whole["object"], whole["model"]) == ("chatcmpl-abc", "chat.completion", "sim-small")
    message = whole["choices"][0]["message"]
    assert message["role"] == "assistant"
    assert len(message["content"]) == 12
    assert {name for name, value in message.items() if value is None} == {
        "refusal", "annotations", "audio", "function_call", "reasoning",
    }  # fmt: skip
    assert whole["usage"]["completion_tokens"] == 3


async def test_a_messages_answer_is_anthropics(sim: Running) -> None:
    body = {"model": "sim-small", "messages": [{"role": "user", "content": "Hi"}], "system": "Brief.", "max_tokens": 3}
    whole = (await post(sim, MESSAGES, body)).json()
    assert (whole["type"], whole["role"], whole["stop_reason"]) == ("message", "assistant", "max_tokens")
    assert whole["content"][0]["type"] == "text"
    assert whole["usage"]["output_tokens"] == 3
    counted = (await post(sim, MESSAGES + "/count_tokens", body)).json()
    assert counted["input_tokens"] == whole["usage"]["input_tokens"]


async def test_without_an_id_the_answer_gets_one_and_the_log_knows_it(sim: Running) -> None:
    async with connect(sim) as client:
        client.send("POST", CHAT, b'{"model":"sim-small","messages":[{"role":"user","content":"x"}]}')
        whole = (await client.receive()).json()
    assert (await sim.record(whole["id"].removeprefix("chatcmpl-"))).ended == "completed"


@pytest.mark.parametrize("asked", ["hello", ["hello", "world, hello"], [1, 2, 3], [[1, 2, 3], [4]]])
async def test_both_embedding_encodings_are_the_same_numbers(sim: Running, asked: Any) -> None:
    body = {"model": "sim-small", "input": asked, "dimensions": 7}
    floats = (await post(sim, EMBEDDINGS, body, "f")).json()
    coded = (await post(sim, EMBEDDINGS, body | {"encoding_format": "base64"}, "b")).json()
    vectors = [item["embedding"] for item in floats["data"]]
    assert [list(struct.unpack("<7f", base64.b64decode(item["embedding"]))) for item in coded["data"]] == vectors
    assert len(vectors) == (len(asked) if isinstance(asked, list) and not isinstance(asked[0], int) else 1)
    record = await sim.record("f")
    assert floats["usage"]["prompt_tokens"] == record.prompt_tokens
    assert (record.ended, record.completion_tokens, record.terminator_sent) == ("completed", 0, True)


async def test_token_arrays_cost_their_length(sim: Running) -> None:
    for body in ({"input": [5, 6, 7]}, {"input": [[5, 6], [7]]}):
        whole = (await post(sim, EMBEDDINGS, {"model": "sim-small"} | body)).json()
        assert whole["usage"]["prompt_tokens"] == 3
    whole = (await post(sim, COMPLETIONS, {"model": "sim-small", "prompt": [5, 6, 7], "max_tokens": 1})).json()
    assert whole["usage"]["prompt_tokens"] == 3


# Refusals


async def test_an_unknown_model_is_404(sim: Running) -> None:
    answer = await post(sim, CHAT, chat(model="nope"))
    assert answer.status == 404
    assert answer.json() == {
        "error": {"message": "The model `nope` does not exist.", "type": "NotFoundError", "param": "model", "code": 404}
    }
    answer = await post(sim, MESSAGES, chat(model="nope"))
    assert answer.status == 404
    assert answer.json() == {
        "type": "error", "error": {"type": "NotFoundError", "message": "The model `nope` does not exist."},
    }  # fmt: skip
    assert sim.records() == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, b"{"),
        (CHAT, b"[]"),
        (CHAT, b"\xff"),
        (CHAT, b'{"model":"sim-small"}'),
        (CHAT, chat(messages=[])),
        (CHAT, chat(0)),
        (CHAT, chat(n=0)),
        (CHAT, chat(n=129)),
        (CHAT, chat(messages="hi")),
        (CHAT, chat(stream_options={"include_usage": True})),
        (CHAT, chat(40_000)),
        (CHAT, chat(model="sim-small!nonsense")),
        (COMPLETIONS, {"model": "sim-small", "prompt": []}),
        (COMPLETIONS, {"model": "sim-small", "prompt": [1, "x"]}),
        (COMPLETIONS, {"model": "sim-small", "prompt": ["x", []]}),
        (EMBEDDINGS, {"model": "sim-small", "input": "x", "dimensions": 0}),
        (EMBEDDINGS, {"model": "sim-small", "input": "x", "encoding_format": "hex"}),
        (MESSAGES, {"model": "sim-small", "messages": [{"role": "user", "content": "x"}]}),
    ],
)
async def test_what_makes_no_sense_is_400_and_never_reaches_the_engine(sim: Running, path: str, body: Any) -> None:
    answer = await post(sim, path, body)
    assert answer.status == 400
    error = answer.json()["error"]
    assert error["message"]
    assert path == MESSAGES or error["code"] == 400
    assert sim.records() == []


async def test_only_json_is_taken(sim: Running) -> None:
    assert (await post(sim, CHAT, chat(), content_type="text/plain")).status == 400


async def test_the_key_guards_v1_and_nothing_else(start: Callable[..., Running]) -> None:
    sim = start(api_key="secret")
    for path in (CHAT, EMBEDDINGS, MESSAGES):
        refused = await post(sim, path, chat(), authorization="Bearer wrong")
        assert (refused.status, refused.json()) == (401, {"error": "Unauthorized"})
    assert (await get(sim, "/v1/models")).status == 401
    assert (await post(sim, CHAT, chat(), authorization="Bearer secret")).status == 200
    assert (await post(sim, "/tokenize", {"prompt": "x"})).status == 200
    assert (await get(sim, "/metrics")).status == 200


async def test_unknown_routes_and_methods(sim: Running) -> None:
    assert (await get(sim, "/nothing")).json() == {"detail": "Not Found"}
    assert (await post(sim, "/nothing", {})).status == 404
    async with connect(sim) as client:
        client.send("DELETE", CHAT)
        assert (await client.receive()).status == 405


async def test_garbage_and_excess_are_refused_and_hung_up(start: Callable[..., Running]) -> None:
    sim = start(body_bytes_max=1000)
    for sent, status in (
        (b"\x16\x03\x01\x02\x00", 400),
        (b"GET / HTTP/1.1\r\nlong: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"POST /tokenize HTTP/1.1\r\ncontent-length: 2000\r\n\r\n" + b"x" * 2000, 413),
    ):
        async with connect(sim) as client:
            client.writer.write(sent)
            answer = await client.receive()
            assert answer.status == status
            assert await client.reader.read() == b""
    assert (await get(sim, "/health")).status == 200


# Beside inference


async def test_the_small_routes(sim: Running) -> None:
    for path in ("/health", "/ping"):
        answer = await get(sim, path)
        assert (answer.status, answer.body) == (200, b"")
    assert (await get(sim, "/version")).json() == {"version": "0.32.0"}
    assert (await get(sim, "/load")).json() == {"server_load": 0}
    models = (await get(sim, "/v1/models")).json()
    assert [model["id"] for model in models["data"]] == ["sim-small", "sim-echo"]
    assert models["data"][0]["max_model_len"] == 32_768
    tokens = (await post(sim, "/tokenize", {"prompt": "hello"})).json()
    assert (tokens["count"], len(tokens["tokens"])) == (2, 2)
    body = {"messages": [{"role": "user", "content": "Say something."}]}
    assert (await post(sim, "/tokenize", body)).json()["count"] == (await post(sim, CHAT, chat())).json()["usage"]["prompt_tokens"]


async def test_metrics_are_vllms_and_add_up(sim: Running) -> None:
    for number in range(3):
        await post(sim, CHAT, streamed_or_not(number), f"r{number}")
    text = (await get(sim, "/metrics")).body.decode()
    samples = {
        (sample.name, sample.labels.get("finished_reason") or sample.labels.get("le") or ""): sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    records = sim.records()
    assert all(sample.labels["engine"] == "0" and sample.labels["model_name"] == "sim-small" for sample in samples.values())
    assert samples["vllm:num_requests_running", ""].value == 0
    assert samples["vllm:num_requests_waiting", ""].value == 0
    assert samples["vllm:kv_cache_usage_perc", ""].value == 0
    assert samples["vllm:generation_tokens_total", ""].value == sum(r.completion_tokens for r in records)
    assert samples["vllm:prompt_tokens_total", ""].value == sum(r.prompt_tokens for r in records)
    assert samples["vllm:prefix_cache_hits_total", ""].value == sum(r.cached_tokens for r in records)
    assert samples["vllm:request_success_total", "length"].value == 3
    for name, count in (("time_to_first_token", 3), ("e2e_request_latency", 3), ("inter_token_latency", 21)):
        assert samples[f"vllm:{name}_seconds_count", ""].value == count
        assert samples[f"vllm:{name}_seconds_bucket", "+Inf"].value == count


def streamed_or_not(number: int) -> dict[str, Any]:
    return chat(8, stream=number % 2 == 0)


# HTTP


async def test_a_connection_serves_many_requests_also_pipelined(sim: Running) -> None:
    async with connect(sim) as client:
        for number in range(5):
            send(client, CHAT, chat(2, stream=number % 2 == 0), f"r{number}")
        for number in range(5):
            answer = await client.receive()
            assert answer.status == 200
            assert f"chatcmpl-r{number}".encode() in answer.body
    assert [record.request_id for record in sim.records()] == [f"r{number}" for number in range(5)]


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not(start: Callable[..., Running]) -> None:
    sim = start(keep_alive_seconds=0.05)
    async with connect(sim) as client:
        send(client, CHAT, chat(10), fault="itl@20")
        assert (await client.receive()).ended == "complete"
        assert await client.reader.read() == b""


async def test_a_client_that_wants_to_be_asked_first_is(sim: Running) -> None:
    async with connect(sim) as client:
        client.writer.write(b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 14\r\nexpect: 100-continue\r\n\r\n")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.writer.write(b'{"prompt":"x"}')
        assert (await client.receive()).status == 200


async def test_an_old_client_gets_its_stream_until_the_end_of_the_connection(sim: Running) -> None:
    async with connect(sim) as client:
        body = b'{"model":"sim-small","messages":[{"role":"user","content":"x"}],"max_tokens":2,"stream":true}'
        client.writer.write(
            b"POST /v1/chat/completions HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        )
        client.writer.write(body)
        everything = await client.reader.read()
    assert b"transfer-encoding" not in everything
    assert everything.endswith(b"data: [DONE]\n\n")


async def test_documents_are_ranked_and_scored_with_the_text_that_they_are_read_with(sim: Running) -> None:
    asked = {"model": "sim-small", "query": "toll", "documents": ["a road", {"text": "a bridge"}, "a tunnel"], "top_n": 2}
    ranked = (await post(sim, "/v1/rerank", asked)).json()
    scores = [result["relevance_score"] for result in ranked["results"]]
    assert len(scores) == 2 and scores == sorted(scores, reverse=True)
    scored = (await post(sim, "/v1/score", {"model": "sim-small", "text_1": "toll", "text_2": ["a road", "a bridge", "a tunnel"]})).json()
    assert max(item["score"] for item in scored["data"]) == scores[0]
    assert ranked["usage"] == scored["usage"] and ranked["usage"]["prompt_tokens"] > 0
