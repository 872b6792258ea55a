"""Usage as tenants and operators read it: through the official client, to the last pico, and never another tenant's."""

import csv
import io
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from openai import OpenAI

from tests.control.harness import Running, TenantSetup, answered
from tests.link.samples import EPOCH, NODE, admit, final, frames, request_id
from tollway.domain.billing_classes import Quantities
from tollway.domain.usage import OUTCOME_POLICY_CURRENT, Outcome, Record

DAY = 86_400
START = (EPOCH // 1_000_000 // DAY + 1) * DAY
"""Midnight of the day of the samples."""

INPUT, CACHED, OUTPUT, REASONING, REQUEST = 270_000, 27_000, 1_100_000, 1_100_000, 1_000_000_000
COST = 100 * INPUT + 20 * CACHED + 30 * OUTPUT + 4 * REASONING + REQUEST


@pytest.fixture(scope="module")
def used(control: Running, alice: TenantSetup, bob: TenantSetup) -> TenantSetup:
    """Alice used two models over three days with two keys; bob once. Ingested through the route of the link."""
    operator = control.operator()
    price_ids = {}
    for model in ("echo", "embed"):
        answered(
            operator.post(
                "/v1/platform/models", json={"name": model, "endpoints": ["chat/completions" if model == "echo" else "embeddings"]}
            )
        )
        price = {"model": model, "currency": "EUR", "input": "0.27", "cached_input": "0.027", "output": "1.1", "request": "0.001"}
        with control.clock.set_to(START * 1_000_000):
            price_ids[model] = answered(operator.post("/v1/platform/prices", json=price))["id"]
    control.prove_prices()
    records: list[Record] = []

    def add(
        number: int,
        tenant: TenantSetup,
        at: int,
        model: str = "echo",
        key_id: str | None = None,
        endpoint: str = "",
        test: bool = False,
        **end: Any,
    ) -> None:
        of = admit(
            number,
            organization_id=tenant.organization_id,
            project_id=tenant.project_id,
            key_id=key_id or tenant.key_id,
            model=model,
            endpoint=endpoint or ("chat/completions" if model == "echo" else "embeddings"),
            price_version=price_ids[model],
            admitted_at=at * 1_000_000,
            outcome_policy=OUTCOME_POLICY_CURRENT,
            test=test,
        )
        records.extend([of, final(of, ended_at=at * 1_000_000 + 500_000, **end)])

    for number in range(10):
        add(number, alice, START + 30 + number)
    add(10, alice, START + DAY + 3_600, key_id="key_second")
    add(11, alice, START + 2 * DAY, model="embed", used=Quantities(50))
    add(12, alice, START + 90, outcome=Outcome.UPSTREAM_ERROR, used=Quantities(70), error="upstream_cut")
    add(13, bob, START + 60)
    add(14, alice, START + 95, endpoint="messages/count_tokens", used=Quantities())
    add(15, alice, START + 97, key_id="key_test", test=True)
    node = control.node(NODE)
    body = frames(records)
    path = f"/v1/link/records/{NODE}/{EPOCH}"
    assert answered(node.get(path)) == {"next_seq": 1}
    gap = node.put(f"{path}/3", content=b"".join(body[2:]))
    assert (gap.status_code, gap.json()) == (409, {"next_seq": 1})
    assert node.put(f"{path}/1", content=b"".join(body)[:-1]).status_code == 400
    assert answered(node.put(f"{path}/1", content=b"".join(body[:5]))) == {"next_seq": 6}
    assert answered(node.put(f"{path}/4", content=b"".join(body[3:]))) == {"next_seq": 33}
    assert answered(node.put(f"{path}/1", content=b"".join(body))) == {"next_seq": 33}
    assert answered(node.get(path)) == {"next_seq": 33}
    return alice


@pytest.fixture(scope="module")
def client(control: Running, used: TenantSetup) -> Iterator[OpenAI]:
    with OpenAI(api_key="unused", admin_api_key=used.admin_key, base_url=f"{control.url}/v1", max_retries=0) as client:
        yield client


class TestUsage:
    def test_days_hold_what_ended_in_them(self, client: OpenAI, used: TenantSetup) -> None:
        page = client.admin.organization.usage.completions(start_time=START, end_time=START + 3 * DAY)
        assert [bucket.start_time for bucket in page.data] == [START, START + DAY, START + 2 * DAY]
        first, second, third = (bucket.results for bucket in page.data)
        assert third == []
        (day,) = first
        assert day.object == "organization.usage.completions.result"
        assert (day.num_model_requests, day.input_tokens, day.input_cached_tokens) == (11, 10 * 120, 10 * 20)
        assert day.input_uncached_tokens == 10 * 100
        assert day.output_tokens == 10 * 34
        assert second[0].num_model_requests == 1  # type: ignore[union-attr]
        assert not page.has_more
        assert page.next_page is None

    def test_group_by_and_filters(self, client: OpenAI, used: TenantSetup) -> None:
        usage = client.admin.organization.usage
        page = usage.completions(start_time=START, end_time=START + 3 * DAY, group_by=["project_id", "api_key_id", "model"])
        keys = [result.api_key_id for bucket in page.data for result in bucket.results]  # type: ignore[union-attr]
        assert sorted(map(str, keys)) == sorted([used.key_id, "key_second"])
        assert {result.model for bucket in page.data for result in bucket.results} == {"echo"}  # type: ignore[union-attr]
        only = usage.completions(start_time=START, end_time=START + 3 * DAY, api_key_ids=["key_second"])
        assert [len(bucket.results) for bucket in only.data] == [0, 1, 0]
        assert not any(bucket.results for bucket in usage.completions(start_time=START, project_ids=["proj_other"], limit=3).data)
        embedded = usage.embeddings(start_time=START, end_time=START + 3 * DAY)
        assert [result.input_tokens for bucket in embedded.data for result in bucket.results] == [50]  # type: ignore[union-attr]

    def test_minutes_and_hours_page_through_without_a_seam(self, client: OpenAI) -> None:
        usage = client.admin.organization.usage
        for width, seconds in (("1m", 60), ("1h", 3600)):
            starts: list[int] = []
            requests, page = 0, None
            while True:
                extra: dict[str, Any] = {} if page is None else {"page": page}
                found = usage.completions(
                    start_time=START + 7, end_time=START + DAY + 2 * 3600, bucket_width=width, limit=30 if width == "1h" else 1000, **extra
                )
                starts += [bucket.start_time for bucket in found.data]
                requests += sum(result.num_model_requests for bucket in found.data for result in bucket.results)  # type: ignore[union-attr]
                page = found.next_page
                if not found.has_more:
                    break
            assert starts == list(range(START, START + DAY + 2 * 3600, seconds))
            assert requests == 12

    def test_what_makes_no_sense_is_refused(self, control: Running, used: TenantSetup) -> None:
        client = control.client(used.admin_key)
        for query in ("", "start_time=x", "start_time=-1", "start_time=1&limit=32", "start_time=1&limit=0", "start_time=1&bucket_width=1w"):
            assert client.get(f"/v1/organization/usage/completions?{query}").status_code == 400, query
        for query in ("start_time=1&page=7", "start_time=1&group_by=color", "start_time=1&what=1"):
            assert client.get(f"/v1/organization/usage/completions?{query}").status_code == 400, query


class TestCosts:
    def test_requests_that_generate_nothing_are_in_neither_usage_nor_costs(self, control: Running, used: TenantSetup) -> None:
        client = control.client(used.admin_key)
        query = {"start_time": START, "end_time": START + DAY, "group_by": "line_item"}
        (bucket,) = answered(client.get("/v1/organization/costs", params=query))["data"]
        billed_requests = {each["line_item"]: each["amount"]["value_pico"] for each in bucket["results"]}["echo, requests"]
        assert int(billed_requests) == 10 * REQUEST
        receipt = answered(client.get(f"/v1/organization/requests/{request_id(14)}"))
        assert (receipt["outcome"], receipt["lines"], receipt["cost"]["value_pico"]) == ("completed", [], "0")
        assert receipt["unbilled_reason"] == "endpoint"

    def test_requests_of_test_keys_cost_nothing_and_are_shown_apart(self, control: Running, used: TenantSetup) -> None:
        client = control.client(used.admin_key)
        query = {"start_time": START, "end_time": START + DAY, "group_by": "api_key_id"}
        (bucket,) = answered(client.get("/v1/organization/usage/completions", params={**query, "test": True}))["data"]
        assert [(each["api_key_id"], each["num_model_requests"], each["input_tokens"]) for each in bucket["results"]] == [
            ("key_test", 1, 120)
        ]
        for path in ("usage/completions", "costs"):
            (bucket,) = answered(client.get(f"/v1/organization/{path}", params=query))["data"]
            assert [each["api_key_id"] for each in bucket["results"]] == [used.key_id]
        receipt = answered(client.get(f"/v1/organization/requests/{request_id(15)}"))
        assert (receipt["lines"], receipt["cost"]["value_pico"], receipt["unbilled_reason"]) == ([], "0", "test_key")
        assert receipt["usage"]["input_tokens"] == 120
        assert answered(client.get(f"/v1/organization/requests/{request_id(1)}"))["unbilled_reason"] is None
        assert answered(client.get(f"/v1/organization/requests/{request_id(12)}"))["unbilled_reason"] == "outcome"

    def test_are_exact_beside_the_float(self, client: OpenAI) -> None:
        page = client.admin.organization.usage.costs(start_time=START, end_time=START + 3 * DAY)
        amounts = [bucket.results[0].amount for bucket in page.data]  # type: ignore[union-attr]
        picos = [10 * COST, COST, 50 * INPUT + REQUEST]
        assert [int(amount.value_pico) for amount in amounts] == picos  # type: ignore[union-attr]
        for amount, pico in zip(amounts, picos, strict=True):
            assert Decimal(amount.value_decimal) * 10**12 == pico  # type: ignore[union-attr]
            assert amount.value == pytest.approx(pico / 10**12)  # type: ignore[union-attr]
            assert amount.currency == "eur"  # type: ignore[union-attr]

    def test_line_items_add_up_to_the_whole(self, client: OpenAI) -> None:
        costs = client.admin.organization.usage.costs
        page = costs(start_time=START, end_time=START + DAY, group_by=["line_item"])
        items = {result.line_item: result for bucket in page.data for result in bucket.results}  # type: ignore[union-attr]
        assert {name: result.quantity for name, result in items.items()} == {  # type: ignore[union-attr]
            "echo, input_tokens": 1000,
            "echo, cached_input_tokens": 200,
            "echo, output_tokens": 300,
            "echo, reasoning_tokens": 40,
            "echo, requests": None,
        }
        assert sum(int(result.amount.value_pico) for result in items.values()) == 10 * COST  # type: ignore[union-attr]
        one = costs(start_time=START, end_time=START + 3 * DAY, line_items=["echo, output_tokens"])
        found = [int(result.amount.value_pico) for bucket in one.data for result in bucket.results]  # type: ignore[union-attr]
        assert found == [300 * OUTPUT, 30 * OUTPUT]

    def test_usage_costs_receipts_and_ledger_are_one(self, control: Running, client: OpenAI, used: TenantSetup) -> None:
        page = client.admin.organization.usage.costs(start_time=START, end_time=START + 3 * DAY)
        total = sum(int(bucket.results[0].amount.value_pico) for bucket in page.data)  # type: ignore[union-attr]
        admin = control.client(used.admin_key)
        receipts = [answered(admin.get(f"/v1/organization/requests/{admit(number).request_id}")) for number in range(13)]
        assert sum(int(receipt["cost"]["value_pico"]) for receipt in receipts) == total
        owed = answered(control.operator().get("/v1/platform/ledger/balances", params={"owner": used.organization_id}))
        assert [balance["amount_pico"] for balance in owed["data"]] == [str(total)]

    def test_as_a_table(self, control: Running, used: TenantSetup) -> None:
        response = control.client(used.admin_key, accept="text/csv").get(
            f"/v1/organization/costs?start_time={START}&end_time={START + DAY}&group_by[]=line_item&group_by[]=project_id"
        )
        assert response.headers["content-type"] == "text/csv; charset=utf-8"
        rows = list(csv.DictReader(io.StringIO(response.text)))
        assert sum(int(row["amount_pico"]) for row in rows) == 10 * COST
        assert {row["project_id"] for row in rows} == {used.project_id}


class TestReceipts:
    def test_say_what_anyone_can_check(self, control: Running, used: TenantSetup) -> None:
        receipt = answered(control.client(used.admin_key).get(f"/v1/organization/requests/{admit(3).request_id}"))
        assert receipt["outcome"] == "completed"
        assert receipt["usage"] == {
            "input_tokens": 120,
            "input_cached_tokens": 20,
            "output_tokens": 34,
            "output_reasoning_tokens": 4,
        }
        for line in receipt["lines"]:
            assert line["quantity"] * int(line["unit_price_pico"]) == int(line["amount_pico"])
        assert sum(int(line["amount_pico"]) for line in receipt["lines"]) == int(receipt["cost"]["value_pico"]) == COST
        assert receipt["lines"][0]["price_per_million"] == "0.27"
        failed = answered(control.client(used.admin_key).get(f"/v1/organization/requests/{admit(12).request_id}"))
        assert (failed["lines"], failed["cost"]["value_pico"], failed["error"]) == ([], "0", "upstream_cut")

    def test_another_tenants_looks_like_none(self, control: Running, used: TenantSetup, bob: TenantSetup) -> None:
        client = control.client(bob.admin_key)
        foreign = client.get(f"/v1/organization/requests/{admit(3).request_id}")
        unknown = client.get(f"/v1/organization/requests/{admit(4242).request_id}")
        assert (foreign.status_code, foreign.json()) == (unknown.status_code, unknown.json())
        assert foreign.status_code == 404
        assert client.get("/v1/organization/requests/req_x").status_code == 404


class TestApart:
    def test_a_tenant_sees_its_own_alone(self, control: Running, used: TenantSetup, bob: TenantSetup) -> None:
        client = control.client(bob.admin_key)
        window = f"start_time={START}&end_time={START + 3 * DAY}"
        usage = answered(client.get(f"/v1/organization/usage/completions?{window}"))
        assert sum(result["num_model_requests"] for bucket in usage["data"] for result in bucket["results"]) == 1
        narrowed = answered(client.get(f"/v1/organization/usage/completions?{window}&project_ids={used.project_id}"))
        assert not any(bucket["results"] for bucket in narrowed["data"])
        costs = answered(client.get(f"/v1/organization/costs?{window}"))
        assert [result["amount"]["value_pico"] for bucket in costs["data"] for result in bucket["results"]] == [str(COST)]

    @pytest.mark.parametrize("path", ["usage/completions?start_time=1", "costs?start_time=1", f"requests/{admit(3).request_id}"])
    def test_inference_keys_read_none_of_it(self, control: Running, used: TenantSetup, path: str) -> None:
        assert control.client(used.secret).get(f"/v1/organization/{path}").status_code == 403

    @pytest.mark.parametrize("path", ["balances", "transactions"])
    def test_the_ledger_is_the_operators(self, control: Running, used: TenantSetup, path: str) -> None:
        assert control.client(used.admin_key).get(f"/v1/platform/ledger/{path}").status_code == 403
        assert control.client(None).get(f"/v1/platform/ledger/{path}").status_code == 401

    def test_records_are_taken_from_nodes_alone(self, control: Running, used: TenantSetup) -> None:
        for key in (used.admin_key, used.secret, control.platform_key):
            assert control.link(key).put(f"/v1/link/records/{NODE}/1/1", content=b"").status_code == 403
        assert control.node().put("/v1/link/records/..%2f..%2fetc/1/1", content=b"").status_code in (400, 404)
        assert control.node().put("/v1/link/records/nobody/1/1", content=b"").status_code == 403


class TestLedger:
    def test_pages_and_balances_to_zero(self, control: Running, used: TenantSetup) -> None:
        operator = control.operator()
        seen: list[dict[str, Any]] = []
        after: dict[str, str] = {}
        while True:
            page = answered(operator.get("/v1/platform/ledger/balances", params={"limit": "3", **after}))
            seen += page["data"]
            if not page["has_more"]:
                break
            after = {"after": page["last_id"]}
        assert sum(int(balance["amount_pico"]) for balance in seen) == 0
        assert len({balance["id"] for balance in seen}) == len(seen) > 3
        transactions = answered(operator.get("/v1/platform/ledger/transactions", params={"organization_id": used.organization_id}))
        assert sum(transaction["events"] for transaction in transactions["data"]) == 12 + 3
        for transaction in transactions["data"]:
            assert sum(int(entry["amount_pico"]) for entry in transaction["entries"]) == 0
