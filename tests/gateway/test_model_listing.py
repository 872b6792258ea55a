"""`/v1/models`: each caller sees the models that it may use, at its own prices and within its own bounds, as they are at that instant."""

from typing import Any

import msgspec
import openai
import pytest

from tests.gateway.harness import KEY, NARROW_KEY, NOWHERE, OTHER_KEY, PEPPER, Answer, Gateway, Served, connect, gateway
from tests.gateway.test_bounded_keys import bound
from tests.gateway.test_test_keys import TEST_KEY, change, mark
from tollway.domain import keys
from tollway.domain.billing_classes import BILLING_CLASSES, UnitPrices
from tollway.domain.catalog import Endpoint, Engine
from tollway.domain.prices import PriceTerms, PriceVersion
from tollway.domain.usage import ServiceTier
from tollway.gateway import model_listing

PRICES = {"input": "0.0001", "cached_input": "0.00001", "output": "0.0004", "reasoning": "0.0004", "request": "0"}
"""Those of the harness, as they are shown."""


async def get(running: Gateway, path: str, key: str) -> Answer:
    async with connect(running.port) as client:
        client.send(f"GET {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\n\r\n".encode())
        return await client.answer()


async def find(running: Gateway, path: str = "/v1/models/m", key: str = KEY) -> Any:
    answer = await get(running, path, key)
    assert answer.status == 200
    return answer.json()


def price(running: Gateway, *versions: PriceVersion) -> None:
    (model,) = (each for each in running.plane.directory.list_models() if each.id == "m")
    change(running, msgspec.structs.replace(model, prices=versions))


def version(price_list: str, valid_from: int, unit: int, tier: ServiceTier = ServiceTier.STANDARD) -> PriceVersion:
    id = f"{price_list} {tier} {valid_from}"
    units = UnitPrices(input=unit, cached_input=unit, output=unit, reasoning=unit, request=5 * 10**9)
    return PriceVersion(id=id, list=price_list, model="m", currency="EUR", valid_from=valid_from, unit_prices=units, tier=tier)


async def test_model_shows_bounds_endpoints_and_the_price_of_each_class() -> None:
    async with gateway({"m": Served(["http://127.0.0.1:9"], output_tokens_max=100, context_length=4096)}) as running:
        assert await find(running) == {
            "id": "m",
            "object": "model",
            "created": 1,
            "owned_by": "tollway",
            "context_length": 4096,
            "output_tokens_max": 100,
            "endpoints": list(Endpoint),
            "prices": [
                {
                    "service_tier": "standard",
                    "price_version": "price_" + "0" * 32,
                    "currency": "eur",
                    "unit_prices": {
                        "input": "0.0001",
                        "cached_input": "0.00001",
                        "output": "0.0004",
                        "reasoning": "0.0004",
                        "cache_write": "0.0001",
                        "audio_input": "0.0001",
                        "image_input": "0.0001",
                        "audio_output": "0.0004",
                        "image_output": "0.0004",
                        "seconds": "0",
                        "characters": "0",
                        "images": "0",
                        "pixels": "0",
                        "request": "0",
                    },
                }
            ],
        }
        assert set((await find(running))["prices"][0]["unit_prices"]) == {row.billing_class for row in BILLING_CLASSES}


async def test_prices_are_those_of_the_organizations_list_at_this_instant() -> None:
    async with gateway({}) as running:
        directory, listings, now = running.plane.directory, running.plane.model_listings, running.plane.now_us()
        price(
            running,
            version("book_1", 0, 1_000_000),
            version("book_2", 0, 3_000_000),
            version("book_1", now + 10, 2_000_000),
            version("book_1", 0, 500_000, ServiceTier.FLEX),
        )
        found = directory.find_caller(keys.digest(PEPPER, KEY.encode()), now)
        assert found is not None
        change(running, msgspec.structs.replace(found.organization, terms=(PriceTerms(0, "book_1"), PriceTerms(now + 20, "book_2"))))

        def list_prices(at: int) -> dict[str, str] | None:
            caller = directory.find_caller(keys.digest(PEPPER, KEY.encode()), at)
            assert caller is not None
            one, listed = listings.find(caller, "m", at), msgspec.json.decode(listings.list_all(caller, at))["data"]
            assert listed == ([] if one is None else [msgspec.json.decode(one)])
            return {each["service_tier"]: each["unit_prices"]["input"] for each in listed[0]["prices"]} if listed else None

        assert list_prices(now) == {"standard": "1", "flex": "0.5"}
        assert list_prices(now + 10) == {"standard": "2", "flex": "0.5"}, "a price changes at its instant, without a change of the snapshot"
        assert list_prices(now + 20) == {"standard": "3"}, "and so do terms"
        assert list_prices(now + 9) == {"standard": "1", "flex": "0.5"}
        price(running, version("book_2", now + 30, 4_000_000))
        assert list_prices(now + 20) is None, "a model without a price is not there"
        assert list_prices(now + 30) == {"standard": "4"}


async def test_bounds_of_a_key_are_shown_to_it_alone() -> None:
    async with gateway({"m": Served([], output_tokens_max=100)}) as running:
        bound(running, output_tokens_max=50, endpoints=(Endpoint.MESSAGES,))
        mine = await find(running, key=OTHER_KEY)
        assert mine["output_tokens_max"] == 50 and mine["endpoints"] == ["messages", "messages/count_tokens"]
        theirs = await find(running)
        assert theirs["output_tokens_max"] == 100 and theirs["endpoints"] == list(Endpoint)
        bound(running, output_tokens_max=200)
        assert (await find(running, key=OTHER_KEY))["output_tokens_max"] == 100, "a change takes effect at once"
        assert [each["id"] for each in (await find(running, "/v1/models", NARROW_KEY))["data"]] == []


async def test_endpoints_are_those_of_the_deployments_that_the_key_reaches() -> None:
    served = Served([NOWHERE, NOWHERE], engine=Engine.OPENAI, translated_endpoints=(Endpoint.MESSAGES,))
    async with gateway({"m": served}) as running:
        change(running, TEST_KEY, mark(running, 1, test=True))
        entry = mark(running, 1, test=True)
        change(running, msgspec.structs.replace(entry, deployment=msgspec.structs.replace(entry.deployment, translated_endpoints=())))
        assert Endpoint.COUNT_TOKENS not in (await find(running))["endpoints"], "the engine has no tokenizer of conversations"
        assert Endpoint.COUNT_TOKENS in (await find(running, key=OTHER_KEY))["endpoints"]


async def test_more_views_than_are_kept_answer_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_listing, "VIEWS_MAX", 1)
    async with gateway({}) as running:
        bound(running, output_tokens_max=50)
        for _ in range(2):
            assert (await find(running, key=OTHER_KEY))["output_tokens_max"] == 50
            assert "output_tokens_max" not in await find(running)
        assert len(running.plane.model_listings._views) == 1


async def test_official_sdk_reads_models_with_prices() -> None:
    async with gateway({}) as running, openai.AsyncOpenAI(base_url=running.url + "/v1", api_key=KEY, max_retries=0) as client:
        listed = [each async for each in client.models.list()]
        one = await client.models.retrieve("m")
    assert [each.to_dict() for each in listed] == [one.to_dict()]
    shown: Any = one.to_dict()
    assert shown["prices"][0]["currency"] == "eur"
