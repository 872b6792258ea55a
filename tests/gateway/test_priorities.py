"""Service tiers as priorities of engines: of those that schedule by them, each in its own sign, and of no others."""

import msgspec
import pytest

from tests.fakes import Upstream
from tests.gateway.harness import Gateway, Served, chat, completion, gateway, post, whole
from tollway.domain.catalog import Engine
from tollway.domain.snapshot import change
from tollway.domain.usage import ServiceTier
from tollway.engines.table import ENGINES


def offer_tiers(running: Gateway) -> None:
    """Give the model a price in each service tier."""
    entry = running.plane.directory.find_model("m")
    assert entry is not None
    tiers = [msgspec.structs.replace(entry.prices[0], id=f"price_{number:032x}", tier=tier) for number, tier in enumerate(ServiceTier, 1)]
    running.plane.apply(change(running.plane.version + 1, msgspec.structs.replace(entry, prices=tuple(tiers))))


@pytest.mark.parametrize(("engine", "sign"), [(Engine.VLLM, -1), (Engine.SGLANG, 1)])
async def test_engine_that_schedules_by_priority_is_told_that_of_the_service_tier(engine: Engine, sign: int) -> None:
    upstream = Upstream([whole(completion())])
    async with upstream.listening(), gateway({"m": Served([upstream.url], engine=engine, priorities=True)}) as running:
        offer_tiers(running)
        for tier in ("priority", "default", "flex"):
            assert (await post(running.port, chat(service_tier=tier))).status == 200
        told = [msgspec.json.decode(asked.body)["priority"] * sign for asked in upstream.asked]
        assert told[0] > told[1] == 0 > told[2]


async def test_engine_that_does_not_is_told_nothing() -> None:
    upstream = Upstream([whole(completion())])
    async with upstream.listening(), gateway({"m": Served([upstream.url], engine=Engine.VLLM)}) as running:
        offer_tiers(running)
        assert (await post(running.port, chat(service_tier="priority"))).status == 200
        assert "priority" not in msgspec.json.decode(upstream.asked[0].body)


async def test_client_cannot_name_a_priority_of_its_own() -> None:
    upstream = Upstream([whole(completion())])
    async with upstream.listening(), gateway({"m": Served([upstream.url], engine=Engine.VLLM, priorities=True)}) as running:
        refused = await post(running.port, chat(priority=-100))
        assert (refused.status, refused.error["code"]) == (400, "unknown_parameter")
        assert not upstream.asked


def test_engines_that_take_priorities_order_all_tiers() -> None:
    for profile in ENGINES.values():
        if profile.priorities:
            assert set(profile.priorities) == set(ServiceTier)
            assert len(set(profile.priorities.values())) == len(ServiceTier)
