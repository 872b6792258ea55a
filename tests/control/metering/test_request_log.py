"""The list of an organization's requests: the latest first, filtered, in pages that examine a bounded number, never another tenant's."""

from typing import Any

import pytest

from tests.control.harness import Running, TenantSetup, answered
from tests.control.metering.test_collect import take
from tests.control.money.test_periods import OCTOBER, SEPTEMBER
from tests.link.samples import EPOCH, NODE, ORGANIZATION, admit, final, frames
from tollway.domain import ids
from tollway.domain.request_filters import RequestFilter
from tollway.domain.usage import OUTCOME_POLICY_CURRENT, Close, Final, Outcome, Record
from tollway.storage import usage_events
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive

REQUESTS = "/v1/organization/requests"
DAY = 86_400
START = (EPOCH // 1_000_000 // DAY + 1) * DAY
SPAN = {"start_time": START, "end_time": START + 2 * DAY}


def request_id(number: int) -> str:
    return ids.new_id(ids.REQUEST, (START + number) * 1_000_000, number)


@pytest.fixture(scope="module")
def used(control: Running, alice: TenantSetup, bob: TenantSetup) -> TenantSetup:
    """Alice sent nine requests, one a second: every third with a second key, one failed; Bob sent one."""
    operator = control.operator()
    answered(operator.post("/v1/platform/models", json={"name": "echo", "endpoints": ["chat/completions"]}))
    with control.clock.set_to(START * 1_000_000):
        price = {"model": "echo", "currency": "EUR", "input": "1", "output": "2"}
        price_id = answered(operator.post("/v1/platform/prices", json=price))["id"]
    control.prove_prices()
    records: list[Record] = []

    def add(number: int, tenant: TenantSetup, key_id: str, **end: Any) -> None:
        of = admit(
            number,
            request_id=request_id(number),
            admitted_at=(START + number) * 1_000_000,
            organization_id=tenant.organization_id,
            project_id=tenant.project_id,
            key_id=key_id,
            price_version=price_id,
            outcome_policy=OUTCOME_POLICY_CURRENT,
        )
        records.extend([of, final(of, ended_at=of.admitted_at + 500_000, **end)])

    for number in range(9):
        failed = {"outcome": Outcome.UPSTREAM_ERROR, "error": "upstream_cut"} if number == 4 else {}
        add(number, alice, alice.key_id if number % 3 else "key_second", **failed)
    add(9, bob, bob.key_id)
    node = control.node(NODE)
    answered(node.put(f"/v1/link/records/{NODE}/{EPOCH}/1", content=b"".join(frames(records))))
    return alice


def test_requests_are_listed_the_latest_first_with_what_they_cost(control: Running, used: TenantSetup) -> None:
    listed = answered(control.client(used.admin_key).get(REQUESTS, params=SPAN))
    assert [each["id"] for each in listed["data"]] == [request_id(number) for number in range(8, -1, -1)]
    assert not listed["has_more"]
    latest, failed = listed["data"][0], listed["data"][4]
    assert (latest["outcome"], latest["duration_ms"], latest["model"]) == ("completed", 500.0, "echo")
    assert (failed["outcome"], failed["error"]) == ("upstream_error", "upstream_cut")
    for each in (latest, failed):
        receipt = answered(control.client(used.admin_key).get(f"{REQUESTS}/{each['id']}"))
        assert (each["cost"], each["usage"]) == (receipt["cost"], receipt["usage"])


def test_pages_follow_each_other_whatever_few_requests_each_examines(
    control: Running, used: TenantSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = control.client(used.admin_key)

    def read(**query: Any) -> tuple[list[str], int]:
        found, pages, after = list[str](), 0, None
        while True:
            page = answered(client.get(REQUESTS, params={**SPAN, **query, **({} if after is None else {"after": after})}))
            found, pages, after = found + [each["id"] for each in page["data"]], pages + 1, page["last_id"]
            if not page["has_more"]:
                return found, pages

    everything = [request_id(number) for number in range(8, -1, -1)]
    rare = [request_id(number) for number in (6, 3, 0)]
    assert read(limit=2)[0] == everything
    assert read(limit=2, api_key_ids="key_second") == (rare, 2)
    monkeypatch.setattr(usage_events, "EXAMINED_MAX", 2)
    assert read(limit=5)[0] == everything
    found, pages = read(limit=5, api_key_ids="key_second")
    assert found == rare and pages >= 5, "a page that examined all it may says where to go on, though it holds nothing"


def test_pages_go_on_in_the_period_before(database: Database, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six requests, three of each of two months; the first of each month is of another key."""
    records: list[Record] = []
    starts = (SEPTEMBER.start_at, OCTOBER.start_at)
    for number in range(6):
        at = max(starts[number // 3], EPOCH) + number * 1_000_000
        of = admit(
            number, request_id=ids.new_id(ids.REQUEST, at, number), admitted_at=at, **({} if number % 3 else {"key_id": "key_second"})
        )
        records += [of, final(of)]
    take(database, archive, [*frames([*records, Close(at=OCTOBER.start_at + 9_000_000)])])
    everything = [each.admit.request_id for each in records if isinstance(each, Final)][::-1]

    def read(key_ids: tuple[str, ...], limit: int) -> tuple[list[str], int]:
        wanted = RequestFilter(since=SEPTEMBER.start_at, until=OCTOBER.end_at, key_ids=key_ids)
        found, pages, after = list[str](), 0, None
        while True:
            with database.tenant(ORGANIZATION, write=False) as tx:
                page = usage_events.list_events(tx, starts, wanted, after=after, limit=limit)
            found, pages, after = found + [each.final.admit.request_id for each in page.events], pages + 1, page.next_after
            if after is None:
                return found, pages

    assert read((), 4) == (everything, 2) and read((), 6) == (everything, 1)
    assert read(("key_second",), 1) == ([everything[2], everything[5]], 2)
    monkeypatch.setattr(usage_events, "EXAMINED_MAX", 2)
    assert read(("key_second",), 5) == ([everything[2], everything[5]], 4)


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ({"outcomes": "upstream_error"}, [4]),
        ({"outcomes": ["upstream_error", "completed"], "limit": 1}, [8]),
        ({"models": "embed"}, []),
        ({"request_endpoints": "embeddings"}, []),
        ({"start_time": START + 7}, [8, 7]),
        ({"end_time": START + 2}, [1, 0]),
    ],
    ids=["outcome", "outcomes", "model", "endpoint", "since", "until"],
)
def test_requests_are_filtered(control: Running, used: TenantSetup, query: dict[str, Any], numbers: list[int]) -> None:
    listed = answered(control.client(used.admin_key).get(REQUESTS, params={**SPAN, **query}))
    assert [each["id"] for each in listed["data"]] == [request_id(number) for number in numbers]


def test_another_organization_sees_its_own_requests_alone(control: Running, used: TenantSetup, bob: TenantSetup) -> None:
    client = control.client(bob.admin_key)
    assert [each["id"] for each in answered(client.get(REQUESTS, params=SPAN))["data"]] == [request_id(9)]
    foreign = {"project_ids": used.project_id, "api_key_ids": used.key_id}
    assert answered(client.get(REQUESTS, params={**SPAN, **foreign}))["data"] == []
    behind = answered(client.get(REQUESTS, params={**SPAN, "after": request_id(8)}))["data"]
    assert behind == [], "a cursor of another tenant is an instant and nothing more"


@pytest.mark.parametrize(
    "query",
    [
        {"start_time": 2, "end_time": 2},
        {"start_time": 2, "end_time": 1},
        {"start_time": 0, "end_time": 32 * DAY},
        {"start_time": START + 10**8},
        {"limit": 101},
        {"limit": 0},
        {"after": "key_1"},
        {"outcomes": "lost"},
        {"request_endpoints": "chat"},
        {"what": 1},
    ],
    ids=str,
)
def test_a_list_that_cannot_be_is_refused(control: Running, used: TenantSetup, query: dict[str, Any]) -> None:
    assert control.client(used.admin_key).get(REQUESTS, params=query).status_code == 400
