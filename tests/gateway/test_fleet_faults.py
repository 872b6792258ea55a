"""Four deployments of one tier of which some fail: no client sees what another deployment could prevent, and all is billed once."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import msgspec
import pytest

from tests.fakes import Asked, Do, Script, Upstream, until
from tests.gateway.harness import STREAM_HEAD, Served, chat, completion, gateway, healthy, part, post, streamed, whole
from tests.patience import PATIENCE_SECONDS
from tollway.domain.catalog import Endpoint
from tollway.domain.snapshot import change
from tollway.domain.usage import Outcome
from tollway.gateway.relay import RelayBounds

FAULTS: dict[str, Script] = {
    "resets": [Do.RST],
    "closes at once": [Do.FIN],
    "hangs": [Do.HOLD],
    "begins and hangs": [STREAM_HEAD, Do.HOLD],
    "is overloaded": [whole({"error": {"message": "busy", "code": 503}}, 503)],
    "refuses for its rate": [whole({"error": {"message": "slow down"}}, 429, b"retry-after: 7\r\n")],
    "fails": [whole({"error": {"message": "broken"}}, 500)],
    "drains": [whole({"error": {"message": "cannot schedule new futures after shutdown", "code": 500}}, 500)],
    "sends garbage": [b"\x00\x01garbage\r\n\r\n", Do.FIN],
    "tells an error inside a stream": [STREAM_HEAD, part({"error": {"message": "died", "code": 503}}), Do.FIN],
    "has not got the model": [whole({"error": {"message": "no such model", "type": "NotFoundError", "code": 404}}, 404)],
}
REQUESTS = 24
BOUNDS = RelayBounds(probe_seconds=0.0, load_seconds=0.0)
IMPATIENT = RelayBounds(first_token_seconds=0.3, probe_seconds=0.0, load_seconds=0.0)
"""An engine that hangs is given up soon: the others answer at once, if the machine is not busy."""


def failing_when(is_broken: Callable[[], bool], script: Script, text: str) -> Callable[[Asked], Script]:
    return lambda asked: script if is_broken() else healthy(text)


@pytest.mark.parametrize("fault", FAULTS)
async def test_faults_of_one_deployment_of_four_fail_no_request_and_it_is_used_again_afterwards(fault: str) -> None:
    broken = True
    first = Upstream(failing_when(lambda: broken, FAULTS[fault], "returned"))
    others = [Upstream(healthy("other")) for _ in range(3)]
    async with AsyncExitStack() as stack:
        for upstream in (first, *others):
            await stack.enter_async_context(upstream.listening())
        served = Served([first.url, *(other.url for other in others)], one_tier=True)
        running = await stack.enter_async_context(gateway({"m": served}, bounds=IMPATIENT if "hangs" in fault else BOUNDS))
        for _ in range(REQUESTS // 4):
            answers = await asyncio.gather(*(post(running.port, streamed()) for _ in range(4)))
            assert [(answer.status, answer.text) for answer in answers] == [(200, "other")] * 4
        ejections = sum(running.plane.metrics.ejections.values())
        assert ejections <= len(first.asked)
        healths = {upstream.deployment.base_url: upstream.health for upstream in running.plane.upstreams.all()}
        for other in others if "hangs" not in fault else ():  # a busy machine may be silent everywhere
            assert healths[other.url].allows(Endpoint.CHAT_COMPLETIONS, 0.0), "a deployment that is well was ejected"
        assert [final.outcome for final in running.sink.finals] == [Outcome.COMPLETED] * REQUESTS
        broken = False
        if fault == "has not got the model":
            return  # an operator has to act, so it is tried again after seconds
        seen: list[str] = []

        async def is_used() -> bool:
            seen.append((await post(running.port, streamed())).text)
            return seen[-1] == "returned"

        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await is_used():
                pass
        assert set(seen) <= {"other", "returned"}


@pytest.mark.parametrize(
    ("fault", "stream"), [("is overloaded", False), ("refuses for its rate", True), ("tells an error inside a stream", True)]
)
async def test_deployment_of_two_that_refuses_everything_costs_no_request_more_than_may_be_retried(fault: str, stream: bool) -> None:
    """Half of the first attempts would go there, and a fifth of the requests may be retried."""
    first = Upstream(FAULTS[fault])
    second = Upstream(healthy("other") if stream else [whole(completion("other"))])
    async with (
        first.listening(),
        second.listening(),
        gateway({"m": Served([first.url, second.url], one_tier=True)}, bounds=BOUNDS) as running,
    ):
        answers = [await post(running.port, chat(stream=stream)) for _ in range(80)]
        assert {answer.status for answer in answers} == {200}
        assert [id for id, _ in running.plane.metrics.ejections] == ["dep-m-0"]


async def test_busy_moment_at_all_four_deployments_ejects_none_of_them() -> None:
    busy = True
    storm = FAULTS["is overloaded"]
    upstreams = [Upstream(failing_when(lambda: busy, storm, "calm")) for _ in range(4)]
    async with AsyncExitStack() as stack:
        for upstream in upstreams:
            await stack.enter_async_context(upstream.listening())
        served = Served([upstream.url for upstream in upstreams], one_tier=True)
        running = await stack.enter_async_context(gateway({"m": served}, bounds=BOUNDS))
        assert {(await post(running.port, streamed())).status for _ in range(8)} == {503}
        busy = False
        assert (await post(running.port, streamed())).text == "calm"
        assert not running.plane.metrics.ejections


async def test_deployment_that_was_killed_is_avoided_and_used_again_once_it_listens() -> None:
    others = [Upstream(healthy("other")) for _ in range(3)]
    first = Upstream(healthy("first"))
    async with AsyncExitStack() as stack:
        async with first.listening():
            port = int(first.url.rsplit(":", 1)[1])
        for other in others:
            await stack.enter_async_context(other.listening())
        served = Served([first.url, *(other.url for other in others)], one_tier=True)
        running = await stack.enter_async_context(gateway({"m": served}, bounds=BOUNDS))
        for _ in range(12):
            assert (await post(running.port, streamed())).text == "other"
        async with first.listening(port=port), asyncio.timeout(PATIENCE_SECONDS):
            while (await post(running.port, streamed())).text != "first":
                pass
        await until(lambda: not running.plane.active.exchanges)
        assert msgspec.json.decode(first.asked[0].body)["messages"] == chat()["messages"]
        assert {final.outcome for final in running.sink.finals} == {Outcome.COMPLETED}


async def test_model_whose_deployments_all_have_weight_zero_is_served_by_none_and_told_so_at_once() -> None:
    upstreams = [Upstream(healthy("drained")) for _ in range(2)]
    async with AsyncExitStack() as stack:
        for upstream in upstreams:
            await stack.enter_async_context(upstream.listening())
        served = Served([upstream.url for upstream in upstreams], one_tier=True)
        running = await stack.enter_async_context(gateway({"m": served}, bounds=BOUNDS))
        plane = running.plane
        for entry in list(plane.directory.list_deployments()):
            drained = msgspec.structs.replace(entry, deployment=msgspec.structs.replace(entry.deployment, weight=0))
            plane.apply(change(plane.version + 1, drained))
        refused = await post(running.port, chat())
        assert (refused.status, refused.error["code"]) == (503, "no_upstream") and int(refused.headers["retry-after"]) >= 1
        assert not running.sink.admits and not any(upstream.asked for upstream in upstreams)
