"""Reranking, scoring, classification and moderation: texts are read, nothing is generated, and the input is all that is billed."""

from typing import Any

import msgspec
import openai
import pytest

from tests.fakes import Upstream
from tests.gateway.harness import KEY, NOWHERE, Served, gateway, post, whole
from tests.gateway.test_request_quantities import admit_of
from tollway.domain.billing_classes import Quantities
from tollway.domain.catalog import Endpoint, Engine
from tollway.domain.usage import Outcome, UsageSource, billed

ASKED: dict[str, dict[str, Any]] = {
    "rerank": {"model": "m", "query": "toll", "documents": ["a road", {"text": "a bridge"}], "top_n": 1},
    "score": {"model": "m", "text_1": "toll", "text_2": ["a road", "a bridge"]},
    "classify": {"model": "m", "input": ["a road", "a bridge"], "use_activation": True},
    "moderations": {"model": "m", "input": ["a road", "a bridge"]},
}
ANSWERS: dict[str, dict[str, Any]] = {
    "rerank": {"id": "r", "model": "own", "results": [{"index": 1, "relevance_score": 0.9, "document": {"text": "a bridge"}}]},
    "score": {"id": "s", "object": "list", "model": "own", "data": [{"index": 0, "object": "score", "score": 0.5}]},
    "classify": {"id": "c", "object": "list", "model": "own", "data": [{"index": 0, "label": "x", "probs": [1.0], "num_classes": 1}]},
    "moderations": {"id": "m", "model": "own", "results": [{"flagged": False, "categories": {}, "category_scores": {}}]},
}
USAGES: list[tuple[Any, Quantities, str | None]] = [
    ({"prompt_tokens": 11, "total_tokens": 11}, Quantities(11), None),
    ({"total_tokens": 11}, Quantities(11), None),
    ({"prompt_tokens": 10**9, "total_tokens": 1}, Quantities(0), "usage_inflated"),
]


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize(("usage", "billed", "anomaly"), USAGES)
async def test_answer_is_relayed_under_the_public_name_and_bills_its_input(
    path: str, usage: Any, billed: Quantities, anomaly: str | None
) -> None:
    upstream = Upstream([whole(ANSWERS[path] | {"usage": usage})])
    async with upstream.listening(), gateway({"m": Served([upstream.url], upstream_model="own")}) as made:
        answer = await post(made.port, ASKED[path], f"/v1/{path}")
        final = await made.sink.settled()
        anomalies = made.plane.metrics.anomalies
    assert answer.json() == ANSWERS[path] | {"model": "m", "usage": usage}
    assert msgspec.json.decode(upstream.asked[0].body) == ASKED[path] | {"model": "own", "cache_salt": _salt_of(upstream)}
    assert (final.outcome, final.admit.endpoint) == (Outcome.COMPLETED, path)
    assert anomalies == ({} if anomaly is None else {anomaly: 1})
    if anomaly is None:
        assert final.used == billed
    else:
        assert 0 < final.used.input < 1000  # what the request can contain


async def test_moderation_without_usage_bills_the_request_alone_and_is_no_anomaly() -> None:
    async with Upstream([whole(ANSWERS["moderations"])]).listening() as upstream, gateway({"m": Served([upstream.url])}) as made:
        async with openai.AsyncOpenAI(base_url=made.url + "/v1", api_key=KEY, max_retries=0) as client:
            answer = await client.moderations.create(model="m", input="a road")
        final = await made.sink.settled()
        assert made.plane.metrics.anomalies == {}
    assert answer.results[0].flagged is False
    assert (final.used, billed(final), final.source) == (Quantities(), Quantities(request=1), UsageSource.ENGINE_FINAL)


@pytest.mark.parametrize(("engine", "path"), [(Engine.VLLM, b"/base/classify"), (Engine.SGLANG, b"/base/v1/classify")])
async def test_classification_is_asked_at_the_path_of_the_engine(engine: Engine, path: bytes) -> None:
    upstream = Upstream([whole(ANSWERS["classify"])])
    async with upstream.listening(), gateway({"m": Served([upstream.url + "/base"], engine=engine)}) as made:
        asked = {"model": "m", "input": "a road"}
        assert (await post(made.port, asked, "/v1/classify")).status == 200
    assert upstream.asked[0].head.split(b" ")[1] == path


def _salt_of(upstream: Upstream) -> Any:
    return msgspec.json.decode(upstream.asked[0].body)["cache_salt"]


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("body", [{"error": {"message": "x", "code": 500}}, {"model": "m"}, [{"score": 1, "index": 0}]])
async def test_answer_without_results_is_a_fault_of_the_engine(path: str, body: Any) -> None:
    async with Upstream([whole(body)]).listening() as upstream, gateway({"m": Served([upstream.url])}) as made:
        assert (await post(made.port, ASKED[path], f"/v1/{path}")).status == 502


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("rerank", {"documents": []}, "documents"),
    ("rerank", {"documents": [{"image_url": "http://10.0.0.1/"}]}, "documents"),
    ("rerank", {"documents": ["x"] * 2049}, "documents"),
    ("rerank", {"query": ["x"]}, "query"),
    ("rerank", {"top_n": 0}, "top_n"),
    ("score", {"text_1": [1]}, "text_1"),
    ("score", {"text_2": []}, "text_2"),
    ("classify", {"input": []}, "input"),
    ("classify", {"use_activation": 1}, "use_activation"),
    ("moderations", {"input": []}, "input"),
    ("moderations", {"input": [[1]]}, "input"),
    ("moderations", {"input": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}}]}, "input"),
]


@pytest.mark.parametrize(("path", "more", "param"), WRONG)
async def test_wrong_value_is_refused_by_name(path: str, more: dict[str, Any], param: str) -> None:
    async with gateway({"m": Served([NOWHERE])}) as made:
        answer = await post(made.port, ASKED[path] | more, f"/v1/{path}")
    assert (answer.status, answer.error["param"]) == (400, param)


def test_query_counts_once_for_each_document_in_the_bound_of_the_input() -> None:
    def bound(query: str, documents: list[str]) -> int:
        call = admit_of({"m": Served([NOWHERE])}, Endpoint.RERANK, {"model": "m", "query": query, "documents": documents})
        return int(call.input_tokens_max)

    assert bound("é" * 100, ["a"] * 10) - bound("é" * 100, ["a"]) >= 9 * 200
