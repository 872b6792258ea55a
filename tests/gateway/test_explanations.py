"""Explanations of the choice of a deployment, in answers, in metrics and at the internal listener."""

import random
import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tests.fakes import Upstream
from tests.gateway.harness import Served, chat, completion, gateway, healthy, plane, post, whole
from tests.gateway.test_admin_listener import ask, request
from tollway.domain import faults
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.gateway.prefix_routing import HOME_HOLD
from tollway.gateway.route import explain, route

REFUSED = [b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"]

NOWHERES = [f"http://127.0.0.{number}:9" for number in range(1, 5)]
"""Addresses of four engines that do not answer."""


@pytest.mark.parametrize("stream", [False, True])
async def test_answer_names_the_deployment_that_served_it_and_the_attempt(stream: bool) -> None:
    refusing, serving = Upstream(REFUSED), Upstream(healthy("a") if stream else [whole(completion())])
    async with refusing.listening(), serving.listening(), gateway({"m": Served([refusing.url, serving.url])}) as running:
        answer = await post(running.port, chat(stream=stream))
        assert answer.status == 200
        first, second = sorted(running.plane.upstreams.of("m"), key=lambda upstream: upstream.deployment.tier)
        assert answer.headers["x-tollway-model"] == "m"
        assert answer.headers["x-tollway-deployment"] == second.deployment.id != first.deployment.id
        assert answer.headers["x-tollway-attempts"] == "2"
        assert float(answer.headers["x-tollway-overhead-ms"]) >= 0.0
        page = running.plane.metrics.render().decode()
        assert f'tollway_upstream_running{{deployment="{second.deployment.id}"}} 0.0' in page


@pytest.mark.parametrize(
    ("asked", "stream", "shown"),
    [("true", False, "0.0000000013 EUR"), ("false", False, None), ("yes", False, None), ("true", True, None)],
)
async def test_whole_answer_says_what_it_cost_where_its_request_asks(asked: str, stream: bool, shown: str | None) -> None:
    engine = Upstream(healthy("a") if stream else [whole(completion(prompt=5, completion=2))])
    async with engine.listening(), gateway({"m": Served([engine.url])}) as running:
        answer = await post(running.port, chat(stream=stream), x_show_cost=asked)
        assert (answer.status, answer.headers.get("x-tollway-cost")) == (200, shown)
        assert b"x-show-cost" not in engine.asked[0].head, "it is not the engine's business"


async def test_metrics_count_choices_by_the_kind_of_candidate() -> None:
    one, two = Upstream([whole(completion())]), Upstream([whole(completion())])
    async with one.listening(), two.listening(), gateway({"m": Served([one.url, two.url], one_tier=True)}) as running:
        for text in ("short", "long " * 1000):
            assert (await post(running.port, chat(messages=[{"role": "user", "content": text}]))).status == 200
        page = running.plane.metrics.render().decode()
        ids = [upstream.deployment.id for upstream in running.plane.upstreams.of("m")]
        for kind, count in (("other", 1.0), ("home", 1.0), ("owner", 0.0)):
            lines = [f'tollway_upstream_chosen_total{{candidate="{kind}",deployment="{id}"}}' for id in ids]
            assert sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(tuple(lines))) == count


async def test_internal_route_explains_ranks_and_costs() -> None:
    async with gateway({"m": Served(NOWHERES[:3], one_tier=True)}) as running:
        down, busy, idle = running.plane.upstreams.of("m")
        down.health.fail(Fault(faults.UPSTREAM_CONNECT), Endpoint.CHAT_COMPLETIONS, "a", time.monotonic(), has_begun=False)
        busy.load.send(700.0)
        status, headers, body = await ask(running, request("GET", "/route?model=m&prompt_tokens=1000"))
        assert status == 200 and headers["content-type"] == "application/json"
        answer = msgspec.json.decode(body)
        rows = answer["deployments"]
        assert [row["deployment"] for row in rows] == [each.deployment.id for each in (idle, busy, down)]
        assert [row["rank"] for row in rows] == [1, 1, 2] and rows[2]["reliability"] == "down"
        assert rows[1]["cost"] == {"home": 700 + 1000 * (1 - HOME_HOLD), "other": 1700}


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("model=unknown", 404),
        ("", 404),
        ("model=m&prompt_tokens=-1", 400),
        ("model=m&prompt_tokens=" + "9" * 40, 400),
        ("model=m&endpoint=x", 400),
        ("model=m&a=1&b=2&c=3&d=4&e=5", 400),
    ],
)
async def test_internal_route_refuses_what_it_cannot_explain(query: str, status: int) -> None:
    async with gateway({}) as running:
        assert (await ask(running, request("GET", f"/route?{query}")))[0] == status


def test_explanation_changes_nothing_and_lists_a_drained_deployment_last() -> None:
    with plane({"m": Served(NOWHERES[:2], one_tier=True)}) as (made, _, _):
        drained, other = made.upstreams.of("m")
        drained.deployment = msgspec.structs.replace(drained.deployment, weight=0)
        first = explain("m", Endpoint.CHAT_COMPLETIONS, 10, made.upstreams, 0.0, test=False)
        assert first == explain("m", Endpoint.CHAT_COMPLETIONS, 10, made.upstreams, 0.0, test=False)
        assert [(row["deployment"], row["reliability"]) for row in first] == [
            (other.deployment.id, "good"),
            (drained.deployment.id, "drained"),
        ]


def test_ranks_of_the_explanation_are_those_by_which_deployments_are_chosen() -> None:
    """In any state of four deployments the candidates of a request are in the order of the explanation's ranks, from the first one on."""
    request_of_a_model = SimpleNamespace(endpoint=Endpoint.CHAT_COMPLETIONS, body=b"{}", headers={}, upload=None, body_bytes=2)
    call: Any = SimpleNamespace(
        model=SimpleNamespace(id="m", share_cache=True, latency_goal_ms=None),
        caller=SimpleNamespace(is_test=False, residency=None),
        request=request_of_a_model,
        names=frozenset(),
        charge=None,
    )
    dice = random.Random(7)
    seen = set()
    for _ in range(300):
        with plane({"m": Served(NOWHERES, one_tier=True)}) as (made, _, _):
            for upstream in made.upstreams.of("m"):
                tier, weight = dice.choice((0, 0, 1)), dice.choice((0, 1, 1, 2))
                upstream.deployment = msgspec.structs.replace(upstream.deployment, tier=tier, weight=weight)
                upstream.running = upstream.limit if dice.random() < 0.3 else 0
                fault = dice.choice((None, None, faults.UPSTREAM_CONNECT, faults.UPSTREAM_MISCONFIGURED, faults.UPSTREAM_CUT))
                for organization in "abcdefgh" if fault is not None else "":
                    upstream.health.fail(Fault(fault), Endpoint.CHAT_COMPLETIONS, organization, 10.0, has_begun=False)
            rows = explain("m", Endpoint.CHAT_COMPLETIONS, 10, made.upstreams, 10.25, test=False)
            ranks: dict[str, Any] = {str(row["deployment"]): row["rank"] for row in rows}
            seen |= {row["reliability"] for row in rows}
            if not any(ranks.values()):
                continue
            chosen = [ranks[upstream.deployment.id] for upstream in route(call, made.upstreams, 10.25, dice.random)]
            assert chosen == sorted(rank for rank in ranks.values() if rank is not None)
    assert seen == {"good", "doubtful", "down", "drained"}
