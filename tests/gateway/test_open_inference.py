"""The Open Inference Protocol by REST: tensors in and out, the model in the path, and what a request costs."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from tests.fakes import Upstream
from tests.gateway.harness import KEY, NARROW_KEY, NOWHERE, OTHER_KEY, UNKNOWN_KEY, Answer, Gateway, Served, connect, gateway, post, whole
from tests.gateway.test_bounded_keys import bound
from tests.simulator.running import Running, simulator
from tollway.domain.billing_classes import Quantities
from tollway.domain.catalog import Endpoint, Engine
from tollway.domain.limits import Limits
from tollway.domain.usage import Outcome, UsageSource, billed
from tollway.gateway.dialects import infer
from tollway.gateway.relay import RelayBounds

INFER = "/v2/models/m/infer"
NUMBERS: dict[str, Any] = {"inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [[1.5, 2], [3, 4]]}]}
ANSWER: dict[str, Any] = {
    "id": "7", "model_name": "own", "model_version": "1",
    "outputs": [{"name": "y", "shape": [1], "datatype": "FP32", "data": [1e-05]}],
}  # fmt: skip


def text(words: str, **values: Any) -> dict[str, Any]:
    inputs = [{"name": "text_input", "shape": [1], "datatype": "BYTES", "data": [words]}]
    for name, value in values.items():
        inputs.append({"name": name, "shape": [1], "datatype": "BOOL" if value is True else "INT32", "data": [value]})
    return {"id": "a", "inputs": inputs}


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with simulator(tmp_path_factory.mktemp("simulator") / "truth.jsonl") as running:
        yield running


@asynccontextmanager
async def serving(answer: Any, **more: Any) -> AsyncIterator[tuple[Gateway, Upstream]]:
    """A gateway before an engine of the protocol that answers so."""
    upstream = Upstream([whole(answer)])
    async with upstream.listening():
        served = Served([upstream.url], engine=Engine.KSERVE, upstream_model="own")
        async with gateway({"m": served, "n/versions/2": served}, **more) as running:
            yield running, upstream


async def get(running: Gateway, path: str, key: str | None = KEY) -> Answer:
    async with connect(running.port) as client:
        line = f"authorization: Bearer {key}\r\n" if key else ""
        client.send(f"GET {path} HTTP/1.1\r\nhost: gateway\r\n{line}\r\n".encode())
        return await client.answer()


async def test_tensors_are_relayed_as_they_are_and_the_request_is_billed_by_itself() -> None:
    asked = NUMBERS | {"id": "7", "parameters": {"top_k": 2}, "outputs": [{"name": "y", "parameters": {"binary_data": False}}]}
    async with serving(msgspec.json.encode(ANSWER).replace(b"0.00001", b"1e-05")) as (running, upstream):
        answer = await post(running.port, asked, INFER)
        final = await running.sink.settled()
        assert running.plane.metrics.anomalies == {}
    assert answer.json() == ANSWER | {"model_name": "m"}
    assert b"1e-05" in answer.body, "numbers go on as they were written"
    assert upstream.asked[0].head.split(b" ")[1] == b"/v2/models/own/infer"
    assert msgspec.json.decode(upstream.asked[0].body) == asked
    assert (final.outcome, final.admit.endpoint, final.admit.model, final.used) == (Outcome.COMPLETED, "infer", "m", Quantities())
    assert billed(final) == Quantities(request=1)


COUNTS = [
    ([{"name": "num_input_tokens", "data": [5]}, {"name": "num_output_tokens", "data": [[2, 3]]}], None, Quantities(5, 0, 5), {}),
    ([], {"num_input_tokens": 4, "num_output_tokens": 6}, Quantities(4, 0, 6), {}),
    ([{"name": "num_output_tokens", "data": ["a"]}], None, Quantities(), {}),
    ([{"name": "num_input_tokens", "data": [10**9]}], None, None, {"usage_inflated": 1}),
]


@pytest.mark.parametrize(("outputs", "parameters", "used", "anomalies"), COUNTS)
async def test_tokens_are_billed_where_outputs_count_them(outputs: Any, parameters: Any, used: Quantities | None, anomalies: Any) -> None:
    answer = ANSWER | {"outputs": [{"shape": [1], "datatype": "UINT32", **each} for each in outputs], "parameters": parameters}
    async with serving(answer) as (running, _):
        assert (await post(running.port, NUMBERS, INFER)).status == 200
        final = await running.sink.settled()
        assert running.plane.metrics.anomalies == anomalies
    assert final.used == used if used is not None else 0 < final.used.input < 1000
    assert final.source is UsageSource.ENGINE_FINAL


async def test_version_of_a_model_is_a_model_of_its_own() -> None:
    async with serving(ANSWER) as (running, upstream):
        assert (await post(running.port, NUMBERS, "/v2/models/n/versions/2/infer")).status == 200
        assert (await post(running.port, NUMBERS, "/v2/models/n%2Fversions%2F2/infer")).status == 200
        for path in ("/v2/models/n/infer", "/v2/models/n/versions/3/infer", "/v2/models/m/versions/1/infer"):
            refused = await post(running.port, NUMBERS, path)
            assert (refused.status, refused.json()["code"]) == (404, "model_not_found")
    assert len(upstream.asked) == 2


TENSOR = NUMBERS["inputs"][0]
WRONG: list[tuple[Any, int, str]] = [
    ({}, 400, "inputs"),
    ({"inputs": []}, 400, "inputs"),
    ({"inputs": [TENSOR | {"shape": [3, 2]}]}, 400, "inputs"),
    ({"inputs": [TENSOR | {"shape": [-1]}]}, 400, "inputs"),
    ({"inputs": [TENSOR | {"shape": [2**62, 2**62]}]}, 400, "inputs"),
    ({"inputs": [TENSOR | {"datatype": "OBJECT"}]}, 400, "inputs"),
    ({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4}}]}, 400, "inputs"),
    ({"inputs": [TENSOR | {"parameters": {"shared_memory_region": "r"}}]}, 400, "inputs"),
    (NUMBERS | {"outputs": [{"name": "y", "parameters": {"binary_data": True}}]}, 400, "outputs"),
    (NUMBERS | {"parameters": {"binary_data_output": True}}, 400, "parameters"),
    (NUMBERS | {"parameters": {"sequence_id": 7, "sequence_start": True}}, 400, "parameters"),
    (NUMBERS | {"parameters": {"priority": 1}}, 400, "parameters"),
    (NUMBERS | {"model": "other"}, 400, "model"),
    (NUMBERS | {"model_name": "other"}, 400, "model_name"),
    (NUMBERS | {"stream": True}, 400, "stream"),
]


@pytest.mark.parametrize(("asked", "status", "param"), WRONG)
async def test_wrong_value_is_refused_by_name_in_the_shape_of_the_protocol(asked: Any, status: int, param: str) -> None:
    async with gateway({"m": Served([NOWHERE], engine=Engine.KSERVE)}) as running:
        answer = await post(running.port, asked, INFER)
    assert (answer.status, answer.json()["param"]) == (status, param), answer.body
    assert isinstance(answer.json()["error"], str)


BODIES = [(b"[]", 400), (b"", 400), (b"{", 400), (b' {"inputs": [}', 400), (b"\xff{}", 400)]


@pytest.mark.parametrize(("body", "status"), BODIES)
async def test_body_that_is_no_object_is_refused(body: bytes, status: int) -> None:
    async with gateway({"m": Served([NOWHERE], engine=Engine.KSERVE)}) as running:
        answer = await post(running.port, body, INFER)
    assert (answer.status, answer.json()["code"]) == (status, "invalid_json")


async def test_binary_data_and_unknown_paths_are_refused_and_json_needs_no_content_type() -> None:
    async with serving(ANSWER) as (running, upstream):
        binary = await post(running.port, NUMBERS, INFER, inference_header_content_length="10")
        assert (binary.status, "gRPC" in binary.json()["error"]) == (415, True)
        for path in (
            "/v2/models/m/generate",
            "/v2/repository/index",
            "/v2/models/m/infer/x",
            "/v2/systemsharedmemory/status",
            "/v2/logging",
        ):
            assert (await post(running.port, NUMBERS, path)).status in (404, 405), path
        assert (await post(running.port, NUMBERS, "/v2/models/%2e%2e/infer")).status == 400
        async with connect(running.port) as client:
            data = msgspec.json.encode(NUMBERS)
            head = f"POST {INFER} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(data)}\r\n\r\n"
            for _ in range(2):
                client.send(head.encode() + data)
                assert (await client.answer()).status == 200
    assert len(upstream.asked) == 2


async def test_large_body_gets_its_model_too() -> None:
    count = 40_000
    large = {"inputs": [{"name": "x", "shape": [count], "datatype": "INT32", "data": [7] * count}]}
    async with serving(ANSWER) as (running, upstream):
        assert (await post(running.port, large, INFER)).status == 200
    assert msgspec.json.decode(upstream.asked[0].body) == large


async def test_server_and_models_are_described_to_those_who_may_use_them() -> None:
    described = {"name": "own", "versions": ["1"], "platform": "p", "inputs": [], "outputs": [], "path": "/models/own"}
    async with serving(described, limits=Limits(requests_per_minute=3)) as (running, upstream):
        assert (await get(running, "/v2", None)).json()["name"] == "tollway"
        assert (await get(running, "/v2/health/live", None)).json() == {"live": True}
        assert (await get(running, "/v2/health/ready", None)).json() == {"ready": True}
        for path in ("/v2/models/m", "/v2/models/m/ready"):
            assert (await get(running, path, UNKNOWN_KEY)).status == 401
            assert (await get(running, path, NARROW_KEY)).json()["code"] == "model_not_found"
        assert (await get(running, "/v2/models/m/ready")).json() == {"name": "m", "ready": True}
        found = await get(running, "/v2/models/m")
        assert found.json() == {"name": "m", "versions": ["1"], "platform": "p", "inputs": [], "outputs": []}
        assert upstream.asked[0].head.split(b" ")[1] == b"/v2/models/own"
        statuses = [(await get(running, "/v2/models/m")).status for _ in range(4)]
        assert statuses[-1] == 429, "a description counts as a request"


async def test_key_for_other_endpoints_and_model_without_the_protocol_are_refused() -> None:
    async with gateway({"m": Served([NOWHERE], engine=Engine.KSERVE)}) as running:
        bound(running, endpoints=(Endpoint.CHAT_COMPLETIONS,))
        assert (await post(running.port, NUMBERS, INFER, key=OTHER_KEY)).status == 403
        assert (await get(running, "/v2/models/m", OTHER_KEY)).status == 403


FAULTS = [("", 200, Outcome.COMPLETED), ("!status@400", 400, Outcome.UPSTREAM_ERROR), ("!cut@1", 502, Outcome.UPSTREAM_ERROR)]


@pytest.mark.parametrize(("fault", "status", "outcome"), FAULTS)
async def test_simulated_engine_answers_counts_and_fails(fault: str, status: int, outcome: Outcome, sim: Running) -> None:
    served = Served([sim.url], engine=Engine.KSERVE, upstream_model="sim-echo" + fault)
    async with gateway({"m": served}, bounds=RelayBounds(first_token_seconds=5.0)) as running:
        asked = text("a toll road", max_tokens=5, return_num_input_tokens=True, return_num_output_tokens=True)
        answer = await post(running.port, asked, INFER)
        final = await running.sink.settled()
    assert (answer.status, final.outcome) == (status, outcome), answer.body
    if status == 200:
        outputs = {each["name"]: each["data"][0] for each in answer.json()["outputs"]}
        assert outputs["text_output"] and (outputs["num_input_tokens"], outputs["num_output_tokens"]) == (
            final.used.input,
            final.used.output,
        )
    else:
        assert final.used == Quantities() and billed(final) == Quantities()


def test_body_begins_with_the_model_whatever_its_first_bytes() -> None:
    beginning = infer.begin_body(b"/v2/models/a%20b/infer")
    assert beginning == b'{"model":"a b",'
    for body, named in ((b"{}", b'{"model":"a b"}'), (b' \n{ "a":1}', b'{"model":"a b","a":1}'), (b"x{}", b"x{}"), (b"", b"")):
        assert infer.name_model(body, beginning) == named
