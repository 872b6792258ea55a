"""Budgets at the gateway: what a request reserves, to what it is lowered, when it is refused, and how leases grow and are given back."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes import Do, Script, Upstream, until
from tests.gateway.harness import (
    COMPLETIONS,
    DONE,
    END,
    KEY,
    ORGANIZATION,
    PEPPER,
    PROJECT,
    STREAM_HEAD,
    UNKNOWN_KEY,
    Gateway,
    Served,
    chat,
    chunk,
    completion,
    connect,
    gateway,
    message,
    part,
    post,
    usage,
    usage_chunk,
    whole,
)
from tests.gateway.test_idempotency import open_store
from tests.gateway.test_test_keys import change
from tollway.domain import keys
from tollway.domain.billing_classes import Quantities
from tollway.domain.budgets import BudgetLevel, BudgetMode, LeaseGrant, LeaseRequest, extend_lease, name_end_user_budget, name_place_budget
from tollway.domain.catalog import Engine
from tollway.domain.credits import CreditPlace, CreditScope
from tollway.domain.keys import KeyType
from tollway.domain.limits import Limits
from tollway.domain.money import format_amount
from tollway.domain.periods import INSTANT_MAX
from tollway.domain.prices import PriceTerms
from tollway.domain.snapshot import BudgetEntry, Change, Entry, KeyEntry, OrganizationEntry, ProjectEntry
from tollway.domain.usage import Outcome
from tollway.gateway.budgets import BudgetAccount
from tollway.gateway.directory import Directory
from tollway.gateway.plane import Plane
from tollway.wire.progress_slots import OUTPUT_WORD, SLOT_WORDS

BUDGET = "bud_" + "0" * 32
INPUT_PRICE, OUTPUT_PRICE = 100, 400
"""Prices of a token of the model that the harness serves, in pico."""


def entry(
    level: BudgetLevel = BudgetLevel.PROJECT, subject_id: str = PROJECT, mode: BudgetMode = BudgetMode.HARD, model: str = "", tag: str = ""
) -> BudgetEntry:
    return BudgetEntry(id=BUDGET, organization_id=ORGANIZATION, level=level, subject_id=subject_id, mode=mode, model=model, tag=tag)


class Control:
    """Control's side of the leases of one budget: answers when it is asked to."""

    def __init__(self, plane: Plane, limit_pico: int) -> None:
        self.plane = plane
        self.limit_pico = limit_pico
        self.granted_pico = 0
        self.asked: list[LeaseRequest] = []
        plane.budgets.is_linked = True
        plane.budgets.wake = self.wake
        self._is_due = False

    def wake(self) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self.serve)

    def serve(self) -> None:
        """Take one request of the gateway and answer it."""
        self._is_due = False
        sequence, requests = self.plane.budgets.next_request()
        self.asked += requests
        self.plane.budgets.apply(sequence, [self.grant(each) for each in requests])

    def grant(self, request: LeaseRequest) -> LeaseGrant:
        assert request.current_pico is not None
        self.granted_pico = request.current_pico
        grown = extend_lease(self.limit_pico - self.granted_pico, request.need_pico, request.target_pico, 1)
        self.granted_pico += grown
        return LeaseGrant(
            budget_id=request.budget_id,
            start_at=0,
            end_at=INSTANT_MAX,
            until_at=INSTANT_MAX,
            granted_pico=self.granted_pico,
            limit_pico=self.limit_pico,
            spent_pico=0,
            free_pico=self.limit_pico - self.granted_pico,
        )


def bind(running: Gateway, limit_pico: int, budget: BudgetEntry | None = None) -> Control:
    """Put a budget into the gateway's snapshot, with a control plane that grants leases of it."""
    plane = running.plane
    plane.apply(Change(version=plane.version + 1, kind="budget", id=BUDGET, entry=budget or entry()))
    return Control(plane, limit_pico)


def silence_control(running: Gateway) -> asyncio.Event:
    """Let control be told nothing any more. The event is set when a request asks it."""
    asked = asyncio.Event()
    running.plane.budgets.wake = asked.set
    return asked


def held(plane: Plane) -> tuple[int, int]:
    """Return what requests hold and have used of the budget."""
    (account,) = plane.budgets.list_accounts([entry()])
    return account.lease.held_pico, account.lease.used_pico


def most(body: dict[str, Any], output_tokens: int) -> int:
    """Return the most that a chat request can cost: a token for each byte, the template's, and its output."""
    return (len(msgspec.json.encode(body)) + 4096) * INPUT_PRICE + output_tokens * OUTPUT_PRICE


def least(body: dict[str, Any], output_tokens: int) -> int:
    """Return what a chat request reserves where its budget is short: a token for each byte, a short template's, and its output."""
    return (len(msgspec.json.encode(body)) + 64) * INPUT_PRICE + output_tokens * OUTPUT_PRICE


async def test_request_that_credit_with_a_scope_covers_is_held_to_the_part_of_its_place_and_names_it() -> None:
    prepaid = msgspec.structs.replace(entry(BudgetLevel.ORGANIZATION, ORGANIZATION), scopes=(CreditScope("", ("covered",)),))
    upstream = Upstream([whole(completion(prompt=20, completion=30))])
    async with upstream.listening(), gateway({name: Served([upstream.url]) for name in ("covered", "other")}) as running:
        control = bind(running, 10**9, prepaid)
        for name in ("covered", "other"):
            assert (await post(running.port, chat(max_tokens=50) | {"model": name})).status == 200
        finals = [each.admit.budgets for each in running.sink.finals]
    part = name_place_budget(BUDGET, CreditPlace(PROJECT, "covered"))
    asked = {(each.budget_id, each.project_id, each.model) for each in control.asked if each.need_pico}
    assert asked == {(part, PROJECT, "covered"), (BUDGET, "", "")} and finals == [(part,), ()]


async def test_request_holds_the_most_it_can_cost_and_uses_what_it_costs() -> None:
    upstream = Upstream([Do.GATE, whole(completion(prompt=20, completion=30))])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        control = bind(running, 10**9)
        client.send(message(chat(max_tokens=50)))
        await until(lambda: bool(upstream.asked))
        assert held(running.plane) == (most(chat(max_tokens=50), 50), 0)
        upstream.gate.set()
        assert (await client.answer()).status == 200
        await until(lambda: held(running.plane) == (0, 20 * INPUT_PRICE + 30 * OUTPUT_PRICE))
        assert control.asked[0].need_pico == most(chat(max_tokens=50), 50)


async def test_key_sees_the_budgets_that_bind_it() -> None:
    upstream = Upstream([Do.GATE, whole(completion(prompt=20, completion=30))])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        bind(running, 10**9)
        client.send(message(chat(max_tokens=50)))
        await until(lambda: bool(upstream.asked))
        async with connect(running.port) as other:
            other.send(f"GET /v1/limits HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {KEY}\r\n\r\n".encode())
            (shown,) = (await other.answer("GET")).json()["budgets"]
        assert (shown["id"], shown["level"], shown["limit"], shown["spent"]) == (BUDGET, "project", "0.001", "0")
        assert (shown["left"], shown["window_start_at"], shown["window_end_at"], shown["binds"]) == ("0.001", 0, None, True)
        assert shown["held"] == format_amount(most(chat(max_tokens=50), 50))
        upstream.gate.set()
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("scope", ["m", "group:large"])
async def test_budget_on_a_model_or_a_group_holds_its_requests_alone_and_their_records_name_it(scope: str) -> None:
    upstream = Upstream([whole(completion(prompt=20, completion=30))])
    async with upstream.listening():
        await check_scope(upstream, scope)


async def check_scope(upstream: Upstream, scope: str) -> None:
    models = {"m": Served([upstream.url], groups=("large",)), "other": Served([upstream.url], groups=("small",))}
    async with gateway(models) as running, connect(running.port) as client:
        control = bind(running, 10**9, entry(model=scope))
        for model in ("m", "other"):
            client.send(message(chat(max_tokens=50, model=model)))
            assert (await client.answer()).status == 200
        assert [each.budgets for each in running.sink.admits] == [(BUDGET,), ()]
        assert held(running.plane) == (0, 20 * INPUT_PRICE + 30 * OUTPUT_PRICE)
        control.limit_pico = 0
        give_all_back(control)
        client.send(message(chat(max_tokens=50)))
        refused = await client.answer()
        assert (refused.status, refused.json()["error"]["code"]) == (429, "insufficient_quota")
        client.send(message(chat(max_tokens=50, model="other")))
        assert (await client.answer()).status == 200


async def test_a_restriction_of_the_organization_is_a_budget_of_one_pico_that_refuses_its_requests() -> None:
    async with gateway({"m": Served(["http://127.0.0.1:1"])}) as running:
        bind(running, 1, entry(BudgetLevel.ORGANIZATION, ORGANIZATION))
        refused = await post(running.port, chat(max_tokens=50))
    assert (refused.status, refused.json()["error"]["code"], running.sink.admits) == (429, "insufficient_quota", [])


async def test_budget_on_a_tag_holds_the_requests_that_carry_it_alone() -> None:
    upstream = Upstream([whole(completion(prompt=20, completion=30))])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        control = bind(running, 10**9, entry(tag="team=a=b"))
        carried: list[dict[str, Any]] = [
            {"metadata": {"x": "y", "team": "a=b"}},
            {"metadata": {"team": "a"}},
            {"metadata": {"team": ["a=b"]}},
            {"metadata": {f"key{number}": "" for number in range(16)} | {"team": "a=b"}},
            {"metadata": None},
            {},
        ]
        for more in carried:
            client.send(message(chat(max_tokens=50, **more)))
            assert (await client.answer()).status == 200
        assert [each.budgets for each in running.sink.admits] == [(BUDGET,), (), (), (), (), ()]
        assert held(running.plane) == (0, 20 * INPUT_PRICE + 30 * OUTPUT_PRICE)
        control.limit_pico = 0
        give_all_back(control)
        client.send(message(chat(max_tokens=50, metadata={"team": "a=b"})))
        refused = await client.answer()
        assert (refused.status, refused.json()["error"]["code"]) == (429, "insufficient_quota")
        client.send(message(chat(max_tokens=50, metadata={"team": "other"})))
        assert (await client.answer()).status == 200


class ControlOfEach(Control):
    """Control's side of a budget of each end user: grants `limit_pico` to each, and remembers what each was granted."""

    def __init__(self, plane: Plane, limit_pico: int) -> None:
        super().__init__(plane, limit_pico)
        self.granted: dict[str, int] = {}

    def grant(self, request: LeaseRequest) -> LeaseGrant:
        self.granted_pico = self.granted.get(request.budget_id, 0)
        if request.current_pico is None:
            stated = msgspec.structs.replace(request, current_pico=self.granted_pico, need_pico=0, target_pico=0)
            granted = msgspec.structs.replace(super().grant(stated), is_recalled=True)
        else:
            granted = super().grant(request)
        self.granted[request.budget_id] = granted.granted_pico
        return granted


def bind_each(running: Gateway, limit_pico: int, *more: BudgetEntry) -> ControlOfEach:
    """Put a budget of each end user into the gateway's snapshot, and more budgets."""
    plane = running.plane
    for each in (msgspec.structs.replace(entry(), end_user="*"), *more):
        plane.apply(Change(version=plane.version + 1, kind="budget", id=each.id, entry=each))
    return ControlOfEach(plane, limit_pico)


COST = 20 * INPUT_PRICE + 30 * OUTPUT_PRICE
"""Cost of a request that the upstream answers with 20 tokens for the prompt and 30 of output."""


async def ask(client: Any, **more: Any) -> Any:
    client.send(message(chat(max_tokens=50, **more)))
    return await client.answer()


async def test_each_end_user_has_a_budget_by_itself_and_records_name_it() -> None:
    upstream = Upstream([whole(completion(prompt=20, completion=30))])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        limit_pico = least(chat(max_tokens=50, user="alice"), 50)
        bind_each(running, limit_pico)
        assert (await ask(client, user="alice")).status == 200
        refused = await ask(client, user="alice")
        assert (refused.status, refused.json()["error"]["code"]) == (429, "insufficient_quota")
        assert "alice" not in refused.json()["error"]["message"]
        assert (await ask(client, user="carol")).status == 200
        assert (await ask(client)).status == 200, "a request that names no end user is not counted"
        of_alice, of_carol = (name_end_user_budget(BUDGET, name, running.plane.directory.end_user_key) for name in ("alice", "carol"))
        assert [each.budgets for each in running.sink.admits] == [(of_alice,), (of_carol,), ()]
        running.plane.apply(Change(version=running.plane.version + 1, kind="budget", id=BUDGET, entry=None))
        assert (await ask(client, user="alice")).status == 200, "the budget of each has ended"


async def test_budget_that_names_an_end_user_takes_the_place_of_those_of_each() -> None:
    upstream = Upstream([whole(completion(prompt=20, completion=30))])
    named = BudgetEntry(
        id="bud_" + "1" * 32,
        organization_id=ORGANIZATION,
        level=BudgetLevel.PROJECT,
        subject_id=PROJECT,
        mode=BudgetMode.HARD,
        end_user="alice",
    )
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        control = bind_each(running, 10**9, named)
        assert (await ask(client, safety_identifier="alice", user="bob")).status == 200
        assert [each.budgets for each in running.sink.admits] == [(named.id,)]
        assert set(control.granted) == {named.id}


async def test_108_end_users_beyond_the_bound_take_the_accounts_of_others_which_are_recalled_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tollway.gateway.budgets.END_USER_ACCOUNTS_MAX", 1)
    upstream = Upstream([whole(completion(prompt=20, completion=30))])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        limit_pico = most(chat(max_tokens=50, user="alice"), 50) + COST
        control = bind_each(running, limit_pico)
        of_alice = name_end_user_budget(BUDGET, "alice", running.plane.directory.end_user_key)
        assert (await ask(client, user="alice")).status == 200
        crowded = await ask(client, user="carol")
        assert (crowded.status, crowded.json()["error"]["code"]) == (503, "overloaded"), "something is left in alice's account"
        give_all_back(control)
        assert control.granted[of_alice] == COST
        assert (await ask(client, user="carol")).status == 200
        give_all_back(control)
        asked = len(control.asked)
        assert (await ask(client, user="alice")).status == 200
        assert control.asked[asked].current_pico is None
        give_all_back(control)
        assert control.granted[of_alice] == 2 * COST
        (account,) = running.plane.budgets.list_accounts([msgspec.structs.replace(entry(), id=of_alice)])
        assert account.lease.used_pico == 2 * COST, "what was used before is not forgotten"


async def test_108_organization_with_many_end_users_refuses_none_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tollway.gateway.budgets.END_USER_ACCOUNTS_MAX", 2)
    organization, project = "org_" + "1" * 32, "proj_" + "1" * 32
    key = KeyEntry(id="key_" + "f" * 32, digest=keys.digest(PEPPER, UNKNOWN_KEY.encode()), type=KeyType.LIVE, project_id=project)
    of_other = msgspec.structs.replace(entry(subject_id=project), id="bud_" + "1" * 32, organization_id=organization, end_user="*")
    upstream = Upstream([whole(completion(prompt=20, completion=30))])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        of_organization = OrganizationEntry(id=organization, currency="EUR", terms=(PriceTerms(0, "book_1"),))
        change(running, of_organization, ProjectEntry(id=project, organization_id=organization), key)
        control = bind_each(running, 10**9, of_other)

        async def answer(key: str, user: str) -> int:
            return (await post(running.port, chat(max_tokens=50, user=user), key=key)).status

        assert [await answer(KEY, user) for user in ("alice", "bob", "carol")] == [200, 200, 503]
        assert [await answer(UNKNOWN_KEY, user) for user in ("dave", "erin", "dave")] == [200, 503, 200]
        give_all_back(control)
        assert [await answer(key, "frank") for key in (KEY, UNKNOWN_KEY)] == [200, 200]


async def test_spent_budget_lets_requests_pass_at_its_rate() -> None:
    upstream = Upstream([whole(completion(prompt=20, completion=30))])
    slow = msgspec.structs.replace(entry(mode=BudgetMode.SOFT), throttle_requests_per_minute=2)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        bind(running, 0, slow)
        assert (await ask(client)).status == 200
        refused = await ask(client)
        assert (refused.status, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 0 < int(refused.headers["retry-after"]) <= 30
        assert BUDGET in refused.json()["error"]["message"]
        (account,) = running.plane.budgets.list_accounts([slow])
        now_us = account.throttled_until - 1
        assert account.find_throttle_wait(now_us) == 1 and account.find_throttle_wait(now_us + 1) == 0


def test_throttled_requests_of_any_interval_are_at_most_the_rate_and_one_more() -> None:
    account = BudgetAccount(msgspec.structs.replace(entry(mode=BudgetMode.SOFT), throttle_requests_per_minute=7), 0)
    passed = []
    for now_us in range(0, 300_000_000, 100_003):
        if account.find_throttle_wait(now_us) == 0:
            account.pass_throttled(now_us)
            passed.append(now_us)
    for first, start_us in enumerate(passed):
        assert sum(1 for each in passed[first:] if each < start_us + 60_000_000) <= 8
    assert len(passed) >= 34


@pytest.mark.parametrize(
    ("fallback", "limit_pico", "status", "served"),
    [
        ("cheap", 0, 200, "cheap"),
        ("cheap", 10**9, 200, "m"),
        ("m", 0, 429, None),
        ("nowhere", 0, 429, None),
        ("", 0, 429, None),
    ],
)
async def test_request_that_a_budget_would_refuse_is_served_by_its_fallback_model(
    fallback: str, limit_pico: int, status: int, served: str | None
) -> None:
    upstream = Upstream([whole(completion(prompt=20, completion=30))])
    budget = BudgetEntry(
        id=BUDGET,
        organization_id=ORGANIZATION,
        level=BudgetLevel.PROJECT,
        subject_id=PROJECT,
        mode=BudgetMode.HARD,
        model="m",
        fallback_model=fallback,
    )
    async with upstream.listening():
        models = {name: Served([upstream.url]) for name in ("m", "cheap")}
        async with gateway(models, limits=Limits(requests_per_minute=10)) as running, connect(running.port) as client:
            bind(running, limit_pico, budget)
            client.send(message(chat(max_tokens=50, temperature=0.5)))
            answer = await client.answer()
            assert answer.status == status
            assert [(each.model, each.budgets) for each in running.sink.admits] == (
                [] if served is None else [(served, (BUDGET,) if served == "m" else ())]
            )
            assert answer.headers.get("x-tollway-budget-fallback-from") == ("m" if served == "cheap" else None)
            if served is None:
                assert answer.json()["error"]["code"] == "insufficient_quota"
            else:
                asked = json_of(upstream)
                assert (asked["model"], asked["temperature"], answer.headers["x-tollway-model"]) == (served, 0.5, served)
                assert answer.headers["x-ratelimit-remaining-requests"] == "9", "it counts once"


async def test_stored_answer_is_given_again_though_a_budget_with_a_fallback_model_is_spent(tmp_path: Path) -> None:
    upstream = Upstream([whole(completion(prompt=20, completion=30))])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        running.plane.answer_store = open_store(tmp_path, running)
        control = bind(running, 10**9, msgspec.structs.replace(entry(), fallback_model="cheap"))
        first = await post(running.port, chat(max_tokens=50), idempotency_key="k")
        control.limit_pico = 0
        give_all_back(control)
        assert (await post(running.port, chat(max_tokens=50))).status == 429
        again = await post(running.port, chat(max_tokens=50), idempotency_key="k")
        assert (first.status, again.status, again.body) == (200, 200, first.body)


async def test_fallback_model_of_a_spent_budget_must_be_affordable_too() -> None:
    upstream = Upstream([whole(completion(prompt=20, completion=30))])
    async with upstream.listening():
        models = {name: Served([upstream.url]) for name in ("m", "cheap")}
        async with gateway(models) as running, connect(running.port) as client:
            bind(running, 0, msgspec.structs.replace(entry(), fallback_model="cheap"))
            client.send(message(chat(max_tokens=50)))
            assert (await client.answer()).status == 429
            assert upstream.asked == [] and held(running.plane) == (0, 0)


async def test_budget_on_a_model_that_only_alerts_is_named_in_records_and_holds_nothing() -> None:
    upstream = Upstream([whole(completion(prompt=20, completion=30))])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        bind(running, 0, entry(model="m", mode=BudgetMode.ALERT))
        client.send(message(chat(max_tokens=50)))
        assert (await client.answer()).status == 200
        assert [each.budgets for each in running.sink.admits] == [(BUDGET,)]
        assert running.plane.budgets.list_accounts([entry()]) == []


async def test_output_is_lowered_to_what_the_budget_buys() -> None:
    upstream = Upstream([whole(completion(prompt=20, completion=30))])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        bind(running, least(chat(max_tokens=1000), 40))
        client.send(message(chat(max_tokens=1000)))
        assert (await client.answer()).status == 200
        assert json_of(upstream)["max_tokens"] == 40


def give_all_back(control: Control) -> None:
    """Let the gateway be idle until nothing that was held counts any more."""
    for _ in range(64):
        control.plane.budgets._decayed_at = 0
        control.serve()


def json_of(upstream: Upstream) -> dict[str, Any]:
    """Return the body of the latest request to the engine."""
    body: dict[str, Any] = msgspec.json.decode(upstream.asked[-1].body)
    return body


async def test_request_that_cannot_be_paid_is_refused_with_budget_and_shortfall() -> None:
    async with gateway({}) as running, connect(running.port) as client:
        bind(running, least(chat(max_tokens=1000), 15))
        client.send(message(chat(max_tokens=1000)))
        answer = await client.answer()
        assert answer.status == 429
        error = answer.json()["error"]
        assert (error["code"], error["type"]) == ("insufficient_quota", "insufficient_quota")
        assert BUDGET in error["message"] and f"project {PROJECT}" in error["message"]
        assert answer.headers["x-should-retry"] == "false"
        assert held(running.plane) == (0, 0)


async def test_hard_budget_without_control_spends_its_lease_and_then_refuses() -> None:
    upstream = Upstream(*[[whole(completion(prompt=20, completion=5))]] * 2)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        control = bind(running, 10**9)
        client.send(message(chat(max_tokens=10)))
        assert (await client.answer()).status == 200
        control.plane.budgets.wake = lambda: None
        control.plane.budgets.fail(control.plane.budgets.next_request()[0])
        client.send(message(chat(max_tokens=12)))
        assert (await client.answer()).status == 200, "it is leased"
        give_all_back(control)
        control.plane.budgets.fail(control.plane.budgets.next_request()[0])
        client.send(message(chat(max_tokens=12)))
        answer = await client.answer()
        assert (answer.status, answer.json()["error"]["code"]) == (503, "budget_unavailable")
        assert "retry-after" in answer.headers


async def test_soft_budget_without_control_admits() -> None:
    upstream = Upstream([whole(completion(prompt=20, completion=30))])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        bind(running, 0, entry(mode=BudgetMode.SOFT))
        running.plane.budgets.is_linked = False
        client.send(message(chat(max_tokens=50)))
        assert (await client.answer()).status == 200


async def test_idle_gateway_gives_its_lease_back() -> None:
    upstream = Upstream([whole(completion(prompt=20, completion=30))])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        control = bind(running, 10**12)
        client.send(message(chat(max_tokens=50)))
        assert (await client.answer()).status == 200
        cost = 20 * INPUT_PRICE + 30 * OUTPUT_PRICE
        give_all_back(control)
        assert control.granted_pico == cost


async def test_client_that_leaves_while_it_waits_holds_nothing() -> None:
    async with gateway({}) as running:
        bind(running, 10**9)
        asked = silence_control(running)
        async with connect(running.port) as client:
            client.send(message(chat(max_tokens=50)))
            await asked.wait()
        await until(lambda: not running.plane.metrics.running)
        assert not [each for each in running.plane.budgets.next_request()[1] if each.need_pico]
        assert held(running.plane) == (0, 0)


@pytest.mark.parametrize(("header", "status"), [("0.000001", 200), ("0.0000004", 400), ("free", 400), ("-1", 400)])
async def test_max_cost_of_a_request_lowers_it_or_refuses_it(header: str, status: int) -> None:
    upstream = Upstream([whole(completion(prompt=20, completion=30))])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        body = chat(max_tokens=10**6)
        client.send(message(body, x_max_cost=header))
        answer = await client.answer()
        assert answer.status == status
        if status == 200:
            assert most(body, json_of(upstream)["max_tokens"]) <= 10**6


# Streams


PROMPT = 20
"""Tokens of input of the streams below, by their engine's report."""


def long_stream(**more: Any) -> dict[str, Any]:
    return chat(stream=True, max_tokens=1000, **more)


def counted(output: int, **more: Any) -> bytes:
    """Return a part of a stream that brings its output to `output` tokens."""
    return part(chunk(f"up to {output} ", usage=usage(PROMPT, output), **more))


def stream(*outputs: int) -> Script:
    """Return a stream whose events bring its output to these totals, one after the other."""
    return [
        STREAM_HEAD,
        *(counted(each) for each in outputs),
        part(chunk(finish="stop", usage=usage(PROMPT, outputs[-1]))),
        part(usage_chunk(PROMPT, outputs[-1])),
        part(DONE),
        END,
    ]


async def test_stream_holds_its_first_tokens_and_then_more_as_it_runs() -> None:
    upstream = Upstream([STREAM_HEAD, counted(100), Do.GATE, *(counted(each) for each in (200, 300)), Do.HOLD])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        bind(running, 10**9)
        client.send(message(long_stream()))
        await client.reader.readuntil(b"up to 100 ")
        assert held(running.plane) == (most(long_stream(), 256), 0)
        upstream.gate.set()
        await client.reader.readuntil(b"up to 300 ")
        assert held(running.plane) == (most(long_stream(), 300 + 256), 0)
    await until(lambda: held(running.plane) == (0, PROMPT * INPUT_PRICE + 300 * OUTPUT_PRICE))


async def test_stream_that_holds_enough_ends_as_its_engine_ends_it() -> None:
    upstream = Upstream(stream(*range(50, 1001, 50)))
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        bind(running, 10**9)
        answer = await post(running.port, long_stream())
        final = await running.sink.settled()
    assert answer.events()[-2]["choices"][0]["finish_reason"] == "stop"
    assert (final.outcome, final.used) == (Outcome.COMPLETED, Quantities(PROMPT, 0, 1000))


@pytest.mark.parametrize("is_usage_asked", [False, True])
async def test_stream_without_more_money_is_cut_as_if_its_length_were_reached(is_usage_asked: bool) -> None:
    body = long_stream(stream_options={"include_usage": True}) if is_usage_asked else long_stream()
    upstream = Upstream([*stream(*range(50, 1001, 50))[:-1], Do.HOLD])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        bind(running, least(body, 620))
        answer = await post(running.port, body)
        final = await running.sink.settled()
        assert held(running.plane) == (0, PROMPT * INPUT_PRICE + 600 * OUTPUT_PRICE)
    events = answer.events()
    assert answer.text.endswith("up to 600 ") and events[-1] == "[DONE]"
    (finish,) = [each for each in events[:-1] if each["choices"] and each["choices"][0]["finish_reason"]]
    assert finish == chunk(finish="length")
    reports = [each["usage"] for each in events[:-1] if "usage" in each]
    assert reports == ([usage(PROMPT, 600)] if is_usage_asked else [])
    assert (final.outcome, final.used) == (Outcome.BUDGET_STOPPED, Quantities(PROMPT, 0, 600))


async def test_cut_stream_of_completions_ends_with_an_empty_text() -> None:
    def text(output: int) -> bytes:
        made = {"id": "c", "object": "text_completion", "created": 1, "model": "m"}
        return part(made | {"choices": [{"index": 0, "text": "a", "finish_reason": None}], "usage": usage(PROMPT, output)})

    body = {"model": "m", "prompt": "hello", "max_tokens": 1000, "stream": True}
    upstream = Upstream([STREAM_HEAD, text(100), text(200), text(300), Do.HOLD])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        bind(running, least(body, 250))
        answer = await post(running.port, body, COMPLETIONS)
    *_, finish, done = answer.events()
    assert (finish["object"], finish["choices"]) == ("text_completion", [{"index": 0, "finish_reason": "length", "text": ""}])
    assert done == "[DONE]"


async def test_tokens_are_reserved_before_they_are_relayed() -> None:
    upstream = Upstream([STREAM_HEAD, counted(200), Do.GATE, counted(300), counted(310), Do.HOLD])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        control = bind(running, most(long_stream(), 256))
        client.send(message(long_stream()))
        await client.reader.readuntil(b"up to 200 ")
        asked = silence_control(running)
        upstream.gate.set()
        await asked.wait()
        (slot,) = running.sink._taken
        assert running.sink.progress[slot * SLOT_WORDS + OUTPUT_WORD] == 200
        assert client.reader.at_eof() is False and b"up to 300 " not in client.reader._buffer  # type: ignore[attr-defined]
        control.limit_pico = 10**9
        control.serve()
        await client.reader.readuntil(b"up to 310 ")
        assert held(running.plane)[0] == most(long_stream(), 300 + 256)


async def test_client_that_leaves_while_its_stream_waits_holds_nothing() -> None:
    upstream = Upstream([STREAM_HEAD, counted(200), Do.GATE, counted(300), Do.HOLD])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        bind(running, most(long_stream(), 256))
        async with connect(running.port) as client:
            client.send(message(long_stream()))
            await client.reader.readuntil(b"up to 200 ")
            asked = silence_control(running)
            upstream.gate.set()
            await asked.wait()
        final = await running.sink.settled()
        assert (final.outcome, final.used.output) == (Outcome.CLIENT_CANCELLED, 200)
        assert held(running.plane) == (0, PROMPT * INPUT_PRICE + 200 * OUTPUT_PRICE)


async def test_stream_without_control_is_cut_at_the_end_of_its_lease() -> None:
    upstream = Upstream([STREAM_HEAD, counted(200), Do.GATE, counted(300), Do.HOLD])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        control = bind(running, most(long_stream(), 256))
        client.send(message(long_stream()))
        await client.reader.readuntil(b"up to 200 ")
        control.plane.budgets.fail(control.plane.budgets.next_request()[0])
        upstream.gate.set()
        await client.reader.readuntil(b'"length"')
        assert (await running.sink.settled()).outcome is Outcome.BUDGET_STOPPED


async def test_engine_that_is_lost_while_its_stream_waits_is_a_fault() -> None:
    upstream = Upstream([STREAM_HEAD, counted(200), counted(300), Do.GATE, Do.RST])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        control = bind(running, most(long_stream(), 256))
        asked = silence_control(running)
        client.send(message(long_stream()))
        await asked.wait()
        asked = silence_control(running)
        control.wake()
        await client.reader.readuntil(b"up to 200 ")
        await asked.wait()
        upstream.gate.set()
        control.limit_pico = 10**9
        control.serve()
        final = await running.sink.settled()
    assert (final.outcome, final.used.output) == (Outcome.UPSTREAM_ERROR, 300)


async def test_stream_of_an_engine_without_running_usage_holds_all_it_can_cost() -> None:
    upstream = Upstream([STREAM_HEAD, part(chunk("a")), Do.HOLD])
    async with upstream.listening(), gateway({"m": Served([upstream.url], engine=Engine.LLAMACPP)}) as running:
        bind(running, 10**9)
        async with connect(running.port) as client:
            client.send(message(long_stream()))
            await client.reader.readuntil(b'"content":"a"')
            assert held(running.plane) == (most(long_stream(), 1000), 0)


async def test_input_beyond_what_a_short_budget_reserved_is_not_billed_and_is_learned() -> None:
    upstream = Upstream(*[[whole(completion(prompt=700, completion=20))]] * 2)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        body = chat(max_tokens=20)
        bound = len(msgspec.json.encode(body)) + 64
        control = bind(running, least(body, 20))
        await post(running.port, body)
        assert held(running.plane) == (0, bound * INPUT_PRICE + 20 * OUTPUT_PRICE)
        control.limit_pico += 10**6
        await post(running.port, body)
        used = held(running.plane)[1]
        control.limit_pico = used + least(body, 20)
        give_all_back(control)
        answer = await post(running.port, body)
    assert answer.status == 429, "the template of the model is known by now to be longer"


def test_budgets_of_a_caller_follow_what_is_added_and_archived() -> None:
    def entry(number: int, level: BudgetLevel, subject_id: str) -> BudgetEntry:
        return BudgetEntry(id=f"budget_{number}", organization_id="org_1", level=level, subject_id=subject_id, mode=BudgetMode.HARD)

    known = Directory()
    known.begin_reset()
    entries: tuple[Entry, ...] = (
        OrganizationEntry(id="org_1", currency="EUR"),
        ProjectEntry(id="proj_1", organization_id="org_1"),
        KeyEntry(id="key_1", digest=b"k" * 32, type=KeyType.LIVE, project_id="proj_1"),
        entry(1, BudgetLevel.ORGANIZATION, "org_1"),
        entry(2, BudgetLevel.ORGANIZATION, "org_2"),
    )
    for each in entries:
        known.add(each)
    known.finish_reset(1)

    def binding() -> list[str]:
        caller = known.find_caller(b"k" * 32, 0)
        assert caller is not None
        return [budget.id for budget in caller.budgets]

    assert binding() == ["budget_1"]
    for version, (number, level, subject_id) in enumerate(
        [(3, BudgetLevel.PROJECT, "proj_1"), (4, BudgetLevel.API_KEY, "key_1"), (5, BudgetLevel.API_KEY, "key_1")], 2
    ):
        known.apply(Change(version=version, kind="budget", id=f"budget_{number}", entry=entry(number, level, subject_id)))
    assert binding() == ["budget_4", "budget_5", "budget_3", "budget_1"]
    for version, number in enumerate([4, 1, 1], 5):
        known.apply(Change(version=version, kind="budget", id=f"budget_{number}", entry=None))
    assert binding() == ["budget_5", "budget_3"]
