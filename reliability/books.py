"""R16: the same sums from every side. What the usage API, the costs API and the ledger say is held against the events' bills, to the
pico, and the ledger against itself. The bills themselves are checked against the engine's truth log elsewhere (`bill_checks.py`)."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
import sqlalchemy as sa
from pysqlite3 import dbapi2

from reliability.bill_checks import MEDIA, TOKEN_CLASSES, UNIT_CLASSES, Bill
from reliability.platforms import Platform
from reliability.processes import WAIT_SECONDS

LINE_ITEMS = {
    "input_tokens": "input",
    "cached_input_tokens": "cached_input",
    "output_tokens": "output",
    "reasoning_tokens": "reasoning",
    **{name: name for name in UNIT_CLASSES},
    "requests": "request",
}
"""Name of each billing class in the costs API."""

USAGE_NAMES = ("input_tokens", "input_cached_tokens", "output_tokens", "output_reasoning_tokens", "num_model_requests")


@dataclass(frozen=True, slots=True)
class Stated:
    """Answers of the platform about itself while it runs. `usage` by kind and model; `costs` by line item, in pico, and their sum as it
    is told whole; `balances` by account, in pico."""

    usage: Mapping[str, Mapping[str, Counter[str]]]
    costs: Mapping[str, int]
    costs_whole: int
    balances: Mapping[str, int]


def read_stated(platform: Platform) -> Stated:
    """Ask the three APIs until two answers in a row are the same: records may still be on their way."""
    deadline = time.monotonic() + WAIT_SECONDS
    stated = _read_stated(platform)
    while True:
        time.sleep(1.0)
        again = _read_stated(platform)
        if again == stated or time.monotonic() > deadline:
            return again
        stated = again


def _read_stated(platform: Platform) -> Stated:
    # A day before and after: a run that crosses midnight has several buckets.
    query: dict[str, Any] = {"start_time": int(time.time()) - 86_400, "end_time": int(time.time()) + 86_400, "limit": 3}
    with platform.admin() as http:
        usage: dict[str, dict[str, Counter[str]]] = {}
        for kind in ("completions", "embeddings"):
            of_kind = usage.setdefault(kind, {})
            for result in _results(http, f"/v1/organization/usage/{kind}", {**query, "group_by": "model"}):
                of_kind.setdefault(result["model"], Counter()).update({name: result.get(name, 0) for name in USAGE_NAMES})
        costs: Counter[str] = Counter()
        for result in _results(http, "/v1/organization/costs", {**query, "group_by": "line_item"}):
            costs[result["line_item"]] += int(result["amount"]["value_pico"])
        whole = sum(int(result["amount"]["value_pico"]) for result in _results(http, "/v1/organization/costs", query))
    balances: dict[str, int] = {}
    headers = {"authorization": f"Bearer {platform.platform_key}"}
    with httpx2.Client(base_url=platform.control_url, headers=headers, timeout=WAIT_SECONDS, trust_env=False) as http:
        page: dict[str, Any] = {"has_more": True, "last_id": None}
        while page["has_more"]:
            after = {"after": page["last_id"]} if page["last_id"] else {}
            page = http.get("/v1/platform/ledger/balances", params={"limit": 100, **after}).raise_for_status().json()
            balances |= {balance["id"]: int(balance["amount_pico"]) for balance in page["data"]}
    return Stated(usage, dict(costs), whole, balances)


def _results(http: httpx2.Client, path: str, query: Mapping[str, Any]) -> list[dict[str, Any]]:
    page = http.get(path, params=query).raise_for_status().json()
    assert not page["has_more"]
    return [result for bucket in page["data"] for result in bucket["results"]]


def find_differences(platform: Platform, stated: Stated, bills: Mapping[str, Bill]) -> tuple[list[str], dict[str, int]]:
    """Return what does not agree, in words, and how much was compared. The platform has ended."""
    wrong = []
    for what, said, right in (
        ("usage", stated.usage, usage_of(bills)),
        ("costs by line item", stated.costs, costs_of(bills)),
        ("costs", stated.costs_whole, sum(bill.amount_pico for bill in bills.values())),
    ):
        if said != right:
            wrong.append(f"{what}: the API says {said}, the bills {right}")
    transactions, sums = _read_ledger(platform.database_url)
    wrong += [f"transaction {each} does not sum to zero" for each, pico in transactions.items() if pico]
    if sum(sums.values()):
        wrong.append(f"debits and credits differ by {sum(sums.values())}")
    if sums != stated.balances:
        wrong.append(f"balances: the API says {stated.balances}, the entries {sums}")
    booked = _booked_of(bills, platform.tenant.organization_id)
    if sums != booked:
        wrong.append(f"the entries say {sums}, the bills {booked}")
    return wrong, {"line items": len(stated.costs), "accounts": len(sums), "transactions": len(transactions)}


def usage_of(bills: Mapping[str, Bill]) -> dict[str, dict[str, Counter[str]]]:
    """Return what the usage API should say: by kind and model."""
    usage: dict[str, dict[str, Counter[str]]] = {"completions": {}, "embeddings": {}}
    for bill in bills.values():
        if bill.endpoint in MEDIA:  # they have kinds of their own, which count no tokens; their costs are compared
            continue
        kind = "embeddings" if bill.endpoint == "embeddings" else "completions"
        billed = {name: bill.lines[name][0] if name in bill.lines else 0 for name in TOKEN_CLASSES}
        sums = usage[kind].setdefault(bill.model, Counter())
        sums.update({"input_tokens": billed["input"] + billed["cached_input"], "num_model_requests": 1})
        if kind == "completions":  # OpenAI's shape has no such classes for embeddings
            sums.update({"output_tokens": billed["output"] + billed["reasoning"]})
            sums.update({"input_cached_tokens": billed["cached_input"], "output_reasoning_tokens": billed["reasoning"]})
    return usage


def costs_of(bills: Mapping[str, Bill]) -> dict[str, int]:
    """Return what the costs API should say: pico by line item."""
    costs: Counter[str] = Counter()
    for bill in bills.values():
        for item, billing_class in LINE_ITEMS.items():
            if billing_class in bill.lines:
                costs[f"{bill.model}, {item}"] += bill.lines[billing_class][2]
    return dict(costs)


def _booked_of(bills: Mapping[str, Bill], organization_id: str) -> dict[str, int]:
    """Return what must stand on each account: the tenant owes all of it, and each model and class has earned its part."""
    booked: Counter[str] = Counter()
    for bill in bills.values():
        for billing_class, (_, _, amount_pico) in bill.lines.items():
            booked[f"{organization_id}/unbilled/EUR"] += amount_pico
            booked[f"platform/revenue:{bill.model}:{billing_class}/EUR"] -= amount_pico
    return {account: pico for account, pico in booked.items() if pico}


def _read_ledger(database_url: str) -> tuple[dict[str, int], dict[str, int]]:
    """Sums of ledger entries by transaction, which are zero, and by account; with SQL of our own."""
    engine = sa.create_engine(database_url, poolclass=sa.NullPool, **({"module": dbapi2} if database_url.startswith("sqlite") else {}))
    transactions: Counter[str] = Counter()
    accounts: Counter[str] = Counter()
    with engine.connect() as connection:
        for transaction_id, account_id, amount in connection.execute(
            sa.text("SELECT transaction_id, account_id, amount_pico FROM ledger_entries")
        ):
            transactions[transaction_id] += int(amount)
            accounts[account_id] += int(amount)
    return dict(transactions), dict(accounts)
