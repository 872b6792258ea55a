"""Previews over history that was really ingested: what was previewed is what the same usage costs once the draft is published."""

import itertools
import json
import random
from typing import Any

import pytest

from tests.control.harness import Running, answered, make_tenant
from tests.control.test_routes import refused
from tests.link.samples import NODE, admit, final, frames
from tests.storage.stored_events import read_events
from tollway.control.catalog import preview
from tollway.control.catalog.preview import PreviewPosition
from tollway.control.metering import collect
from tollway.domain import ids
from tollway.domain.billing_classes import Quantities
from tollway.domain.preview import Preview
from tollway.domain.price_books import compile_units
from tollway.domain.usage import Outcome, Record, ServiceTier, billed

DRAFTS, PRICES = "/v1/platform/price_drafts", "/v1/platform/prices"
DAY = 86_400
START = 2_000_000_000 // DAY * DAY
"""Seconds: a midnight in 2033, long after every price of these tests has become valid."""
OUTCOMES = list(Outcome)
_epochs = itertools.count(START)


class Scene:
    """A control plane with two models, a book that is nobody's default, and tenants: one by the default book, one by it at 10 %, one by
    the other book."""

    def __init__(self, control: Running) -> None:
        self.control, self.operator = control, control.operator()
        for model in ("small", "large"):
            answered(self.operator.post("/v1/platform/models", json={"name": model, "endpoints": ["chat/completions"]}))
        self.prices: dict[tuple[str, str, str], str] = {}
        self.other = answered(self.operator.post("/v1/platform/price_books", json={"name": "other", "currency": "EUR"}))["id"]
        self.default = self.price("small", "0.1", "0.333333")
        self.price("large", "2.5", "10")
        self.price("large", "1.25", "5", tier="flex")
        self.price("small", "0.2", "0.4", book_id=self.other)
        self.tenants = {name: make_tenant(control, name) for name in ("plain", "tenth", "else")}
        self.terms("tenth", discount_bp=1_000)
        self.terms("else", book_id=self.other)

    def price(self, model: str, input: str, output: str, **fields: Any) -> str:
        body = {"model": model, "currency": "EUR", "input": input, "output": output, "request": "0.000001", **fields}
        made: dict[str, str] = answered(self.operator.post(PRICES, json=body))
        self.prices[made["list"], model, made["tier"]] = made["id"]
        return made["list"]

    def terms(self, name: str, **fields: Any) -> None:
        answered(self.operator.post(f"/v1/platform/organizations/{self.tenants[name].organization_id}/price_terms", json=fields))

    def use(self, name: str, count: int, *, at: int, seed: int, models: tuple[tuple[str, str], ...]) -> None:
        """Ingest `count` requests of a tenant, one every 50 ms from second `at` on, in models and tiers by turns; the same for a seed."""
        chance = random.Random(seed)
        self.control.prove_prices()
        tenant = self.tenants[name]
        terms = answered(self.operator.get(f"/v1/platform/organizations/{tenant.organization_id}/price_terms"))["data"]
        discount_bp, book = terms[-1]["discount_bp"], terms[-1]["book_id"]
        records: list[Record] = []
        for number in range(count):
            model, tier = models[number % len(models)]
            price = self.prices[book, model, tier] + (f"-{discount_bp}" if discount_bp else "")
            admitted_at = at * 1_000_000 + number * 50_000 + chance.randrange(1000)
            of = admit(
                number,
                request_id=ids.new_id(ids.REQUEST, admitted_at, chance.getrandbits(74)),
                organization_id=tenant.organization_id,
                project_id=tenant.project_id,
                key_id=tenant.key_id,
                model=model,
                service_tier=ServiceTier(tier),
                price_version=price,
                admitted_at=admitted_at,
            )
            tokens = Quantities(*(chance.randrange(5_000) for _ in range(3)), chance.choice([0, 7]))
            used = chance.choice([tokens, Quantities(tokens.input), tokens])
            records += [of, final(of, used=used, outcome=chance.choice(OUTCOMES), ended_at=admitted_at + 9, error=None)]
        epoch, plane = next(_epochs), self.control.plane
        body, later = b"".join(frames(records, epoch=epoch)), (START + 400 * DAY) * 1_000_000
        collect.ingest(plane.database, plane.archive, node_id=NODE, epoch=epoch, first_seq=1, body=body, now=later)

    def draft(self, *lines: dict[str, Any], book_id: str | None = None, **fields: Any) -> str:
        body = {"book_id": book_id or self.default, "lines": list(lines), **fields}
        made: str = answered(self.operator.post(DRAFTS, json=body))["id"]
        return made

    def preview(self, draft: str, start: int, end: int, **fields: Any) -> dict[str, Any]:
        response = self.operator.post(f"{DRAFTS}/{draft}/preview", json={"from": start, "to": end, **fields})
        assert response.status_code == 200, response.text
        *progress, result = [json.loads(text) for text in response.text.splitlines()]
        assert all(each["object"] == "platform.price_preview.progress" for each in progress)
        assert result["object"] == "platform.price_preview"
        names = {tenant.organization_id: name for name, tenant in self.tenants.items()}
        result["organizations"] = {names[each["organization_id"]]: each for each in result["organizations"]}
        return dict(result)

    def cost(self, name: str, start: int, end: int) -> int:
        """Return what was billed, as the tenant's own API says."""
        query = {"start_time": start // 86_400 * 86_400, "end_time": end, "limit": 180}
        page = answered(self.control.client(self.tenants[name].admin_key).get("/v1/organization/costs", params=query))
        return sum(int(each["amount"]["value_pico"]) for bucket in page["data"] for each in bucket["results"])


BOTH = (("small", "standard"), ("large", "standard"), ("large", "flex"))


@pytest.fixture
def scene(fresh_control: Running) -> Scene:
    return Scene(fresh_control)


@pytest.fixture
def used(scene: Scene) -> Scene:
    for seed, name in enumerate(("plain", "tenth")):
        scene.use(name, 60, at=START + 10, seed=seed, models=BOTH)
    scene.use("else", 20, at=START + 11, seed=9, models=(("small", "standard"),))
    return scene


def test_what_was_previewed_is_what_the_same_usage_costs_once_published(used: Scene) -> None:
    later = START + 40 * DAY
    draft = used.draft(
        {"model": "small", "input": "0.123457", "output": "0.3", "cached_input": "0.01", "request": "0.0000017"},
        {"model": "large", "input": "2", "output": "10.000001", "reasoning": "12"},
        {"model": "large", "input": "1", "output": "6", "tier": "flex"},
    )
    found = used.preview(draft, START, START + DAY)
    assert set(found["organizations"]) == {"plain", "tenth"}
    assert found["organizations"]["tenth"]["discount_bp"] == 1_000
    for name in ("plain", "tenth"):
        assert int(found["organizations"][name]["current_pico"]) == used.cost(name, START, START + DAY) > 0
        assert found["organizations"][name]["unpriced_events"] == 0
    published = answered(used.operator.post(f"{DRAFTS}/{draft}/publish", json={"accept_warnings": True}))
    for each in answered(used.operator.get(PRICES, params={"list": used.default, "limit": 100}))["data"]:
        if each["valid_from"] == published["valid_from"]:
            used.prices[each["list"], each["model"], each["tier"]] = each["id"]
    for seed, name in enumerate(("plain", "tenth")):
        used.use(name, 60, at=later, seed=seed, models=BOTH)
        assert int(found["organizations"][name]["draft_pico"]) == used.cost(name, later, later + DAY)
    total = found["total"]
    assert int(total["draft_pico"]) == sum(int(each["draft_pico"]) for each in found["organizations"].values())
    assert int(total["difference_pico"]) == int(total["draft_pico"]) - int(total["current_pico"])
    refused(used.operator.post(f"{DRAFTS}/{draft}/preview", json={}), 409, "conflict")


def test_the_books_own_prices_change_nothing(used: Scene) -> None:
    for fields in ({}, {"from_book_id": used.default}):
        found = used.preview(used.draft(**fields), START, START + DAY)
        assert set(found["organizations"]) == {"plain", "tenth"}
        assert {each["difference_pico"] for each in (*found["organizations"].values(), found["total"])} == {"0"}
        assert found["total"]["unpriced_events"] == 0


def test_everybody_means_those_of_other_books_too(used: Scene) -> None:
    draft = used.draft({"model": "small", "input": "0.2", "output": "0.4", "request": "0.000001"})
    found = used.preview(draft, START, START + DAY, everybody=True)["organizations"]
    assert found["else"]["difference_pico"] == "0"
    assert found["else"]["events"] == 20
    assert int(found["plain"]["difference_pico"]) > 0


def test_what_the_draft_cannot_price_is_counted_and_never_zero(used: Scene) -> None:
    """The other book has one model. Who pays by the default book uses a second one, which would be closed."""
    draft = used.draft({"model": "small", "input": "0.1", "output": "0.333333", "request": "0.000001"}, book_id=used.other)
    found = used.preview(draft, START, START + DAY, everybody=True)["organizations"]["plain"]
    assert found["unpriced_events"] == 40
    assert int(found["unpriced_pico"]) > 0
    assert found["difference_pico"] == "0"
    assert int(found["current_pico"]) == int(found["draft_pico"]) + int(found["unpriced_pico"])


def test_only_the_span_that_is_asked_for_counts(used: Scene) -> None:
    draft = used.draft()
    whole = used.preview(draft, START, START + DAY)["total"]
    parts = [used.preview(draft, START + second, START + second + 1)["total"] for second in range(9, 15)]
    assert [each["events"] for each in parts] == [0, 40, 40, 40, 0, 0]
    assert sum(int(each["current_pico"]) for each in parts) == int(whole["current_pico"])
    refused(used.operator.post(f"{DRAFTS}/{draft}/preview", json={"from": 10, "to": 10}), 400, "invalid_value", "to")
    refused(used.operator.post(f"{DRAFTS}/draft_{'0' * 32}/preview", json={}), 404, "not_found")
    assert used.operator.post(f"{DRAFTS}/{draft}/preview", json={}).text.endswith("}\n")


@pytest.mark.parametrize("page_events", [1, 7, 139, 140, 1000])
def test_pages_of_any_size_come_to_the_same(used: Scene, page_events: int) -> None:
    draft = used.draft({"model": "large", "input": "3", "output": "9"})
    database = used.control.plane.database
    from_at, to_at = START * 1_000_000, (START + DAY) * 1_000_000
    with database.platform(write=False) as tx:
        scope = preview.find_scope(tx, draft, from_at=from_at, to_at=to_at, everybody=True, now=from_at)
    *progress, found = preview.preview(database, scope, page_events)
    assert isinstance(found, Preview)
    assert found.events == 140
    assert len(progress) == -(-140 // page_events)
    assert all(isinstance(each, PreviewPosition) for each in progress)
    *_, whole = preview.preview(database, scope)
    assert isinstance(whole, Preview)
    assert found.organizations == whole.organizations


def test_each_request_costs_what_the_book_asks_at_its_instant(used: Scene) -> None:
    """Prices that change in the middle of the span, and a draft of some lines only: held against rating every event by itself."""
    for second in (11, 12):
        used.price("small", f"0.{second}", "0.5", valid_from=START + second)
    draft = used.draft({"model": "large", "input": "3", "output": "9"})
    database, from_at, to_at = used.control.plane.database, START * 1_000_000, (START + DAY) * 1_000_000
    with database.platform(write=False) as tx:
        scope = preview.find_scope(tx, draft, from_at=from_at, to_at=to_at, everybody=True, now=from_at)
        events = read_events(tx)
    expected: dict[str, int] = {}
    for event in events:
        of = event.final.admit
        price = scope.tariff.find((of.model, of.service_tier), of.admitted_at)
        assert price is not None
        pico = billed(event.final).times(compile_units(price, scope.discounts[of.organization_id])).total
        expected[of.organization_id] = expected.get(of.organization_id, 0) + pico
    *_, found = preview.preview(database, scope, 50)
    assert isinstance(found, Preview)
    assert {id: each.draft_pico for id, each in found.organizations.items()} == expected
    assert scope.tariff.list_changes(from_at, to_at) == [(START + second) * 1_000_000 for second in (11, 12)]


def test_amounts_beyond_64_bits_are_summed_exactly(scene: Scene) -> None:
    scene.price("large", "1000000", "1000000", tier="priority")
    scene.use("plain", 40, at=START, seed=1, models=(("large", "priority"),))
    found = scene.preview(scene.draft(), START, START + DAY)["organizations"]["plain"]
    assert int(found["current_pico"]) == scene.cost("plain", START, START + DAY) > 2**63 // 10**3
    assert found["difference_pico"] == "0"


def test_a_preview_is_the_operators(used: Scene, fresh_control: Running) -> None:
    tenant = fresh_control.client(used.tenants["plain"].admin_key)
    refused(tenant.post(f"{DRAFTS}/{used.draft()}/preview", json={}), 403, "insufficient_scope")
