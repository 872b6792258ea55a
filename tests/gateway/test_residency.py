"""Residency: a project is served in the regions that it allows, and nowhere else, whatever fails there."""

import asyncio

import msgspec

from tests.fakes import Script, Upstream, until
from tests.gateway.harness import (
    KEY,
    NOWHERE,
    ORGANIZATION,
    PROJECT,
    Gateway,
    Served,
    chat,
    connect,
    gateway,
    healthy,
    message,
    post,
    whole,
)
from tests.gateway.test_admin_listener import ask, request
from tests.gateway.test_waiting import HELD, NEIGHBOUR, add_neighbour, until_waiting
from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.domain.snapshot import ProjectEntry, change
from tollway.gateway.waiting import QueueBounds

BUSY: Script = [whole({"error": {"message": "busy", "code": 503}}, 503)]


def restrict(running: Gateway, *regions: str) -> None:
    """Restrict the project of the key to these regions; to any without one."""
    entry = ProjectEntry(id=PROJECT, organization_id=ORGANIZATION, residency=regions or None)
    running.plane.apply(change(running.plane.version + 1, entry))


async def test_104_restricted_project_is_never_served_in_another_region_whatever_fails() -> None:
    failing, abroad, unstated = Upstream(BUSY), Upstream(healthy("abroad")), Upstream(healthy("unstated"))
    async with failing.listening(), abroad.listening(), unstated.listening():
        served = Served([abroad.url, failing.url, unstated.url], regions=["us", "eu", None])
        async with gateway({"m": served}) as running:
            restrict(running, "eu")
            for _ in range(4):
                refused = await post(running.port, chat())
                assert refused.status == 503
            assert failing.asked and not abroad.asked and not unstated.asked
            restrict(running)
            assert (await post(running.port, chat(stream=True))).text == "abroad"


async def test_deployments_of_the_residency_share_its_traffic_and_stand_in_for_each_other() -> None:
    failing, serving, abroad = Upstream(BUSY), Upstream(healthy("here")), Upstream(healthy("abroad"))
    async with failing.listening(), serving.listening(), abroad.listening():
        served = Served([failing.url, serving.url, abroad.url], one_tier=True, regions=["eu-1", "eu-2", "us"])
        async with gateway({"m": served}) as running:
            restrict(running, "eu-1", "eu-2")
            for _ in range(6):
                assert (await post(running.port, chat(stream=True))).text == "here"
            assert not abroad.asked


async def test_model_without_a_deployment_in_the_residency_is_refused_before_it_is_admitted() -> None:
    async with gateway({"m": Served([NOWHERE], regions=["us"])}) as running:
        restrict(running, "eu")
        refused = await post(running.port, chat())
        assert (refused.status, refused.error["code"]) == (403, "region_not_served")
        assert running.sink.admits == []


async def test_explanation_shows_the_deployments_of_a_residency_alone() -> None:
    async with gateway({"m": Served([NOWHERE, NOWHERE, NOWHERE], regions=["eu", "us", None])}) as running:
        _, _, body = await ask(running, request("GET", "/route?model=m&residency=eu,asia"))
        assert [row["region"] for row in msgspec.json.decode(body)["deployments"]] == ["eu"]
        status, _, body = await ask(running, request("GET", "/route?model=m&residency=asia"))
        assert status == 404 and b"region_not_served" in body


async def test_place_that_an_interrupted_request_gives_back_goes_to_one_of_another_residency() -> None:
    upstream = Upstream(HELD)
    async with (
        upstream.listening(),
        gateway({"m": Served([upstream.url], regions=["eu"])}, queue=QueueBounds(concurrency_max=1, wait_seconds=60.0)) as running,
    ):
        add_neighbour(running)
        plane = running.plane
        plane.apply(change(plane.version + 1, ProjectEntry(id="proj_b", organization_id="org_b", residency=("eu",))))
        async with connect(running.port) as first, connect(running.port) as leaving, connect(running.port) as last:
            first.send(message(chat()))
            await until(lambda: len(upstream.asked) == 1)
            for number, (client, key) in enumerate(((leaving, NEIGHBOUR), (last, KEY)), 1):
                client.send(message(chat(), key=key))
                await until_waiting(running, number)
            (restricted,) = [each for each in plane.active.exchanges if each.call.caller.residency]
            given: list[bool] = []

            def interrupt_once_given() -> None:
                given.append(plane.queues.count_waiting() == 1)
                restricted.interrupt(Fault(faults.DRAINING))

            dispatch = plane.queues.dispatch

            def dispatch_and_interrupt(model: str, *, test: bool) -> None:
                dispatch(model, test=test)
                if not given:
                    interrupt_once_given()

            plane.upstreams.on_place = dispatch_and_interrupt
            upstream.gate.set()
            assert [(await client.answer()).status for client in (first, leaving, last)] == [200, 503, 200]
            assert given == [True]


async def test_request_that_waits_for_a_full_region_does_not_hold_up_those_that_another_one_may_serve() -> None:
    here, abroad = Upstream(HELD), Upstream(HELD)
    async with here.listening(), abroad.listening():
        served = Served([here.url, abroad.url], one_tier=True, regions=["eu", "us"])
        async with gateway({"m": served}, queue=QueueBounds(concurrency_max=1, wait_seconds=60.0)) as running:
            add_neighbour(running)
            plane = running.plane
            plane.apply(change(plane.version + 1, ProjectEntry(id="proj_b", organization_id="org_b", residency=("eu",))))
            async with connect(running.port) as first, connect(running.port) as second:
                for number, client in enumerate((first, second)):
                    client.send(message(chat(), key=NEIGHBOUR))
                    await until(lambda: len(here.asked) == 1)
                    await until_waiting(running, number)
                free = [asyncio.create_task(post(running.port, chat()))]
                await until(lambda: len(abroad.asked) == 1)
                free.append(asyncio.create_task(post(running.port, chat())))
                await until_waiting(running, 2)
                abroad.gate.set()
                assert [(await each).status for each in free] == [200, 200]
                assert len(abroad.asked) == 2 and len(here.asked) == 1
                here.gate.set()
                assert [(await client.answer()).status for client in (first, second)] == [200, 200]
                assert len(here.asked) == 2
