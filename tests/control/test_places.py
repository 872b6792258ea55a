"""Bounds on the part of a control process that one organization takes: its rate, its share of places, its turns at the work."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.control.harness import Running, TenantSetup, answered
from tests.control.test_routes import refused
from tollway.control.api import places
from tollway.control.api.places import (
    HELD_SECONDS_MAX,
    ORGANIZATION_WORK_MAX,
    REFUSAL_SECONDS_MAX,
    REFUSALS_PER_SECOND,
    REST_SECONDS_MAX,
    SHARED_SECONDS,
    SHARED_WORK_MAX,
    Place,
    Places,
)
from tollway.domain.faults import Fault

PROJECTS = "/v1/organization/projects"


class Clock:
    """A clock in seconds that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_71_organization_beyond_its_rate_is_told_when_to_come_back() -> None:
    clock = Clock()
    bounded = Places(32, 60, clock)
    for _ in range(60):
        bounded.charge("org_a", is_revocation=False)
    with pytest.raises(Fault, match="rate_limit_exceeded") as refusal:
        bounded.charge("org_a", is_revocation=False)
    assert refusal.value.retry_after_seconds == 1.0
    bounded.charge("org_b", is_revocation=False)
    bounded.charge("org_a", is_revocation=True)
    clock.now = 1.0
    bounded.charge("org_a", is_revocation=False)
    with pytest.raises(Fault):
        bounded.charge("org_a", is_revocation=False)


async def test_71_recognized_credential_of_an_exhausted_organization_is_refused_before_it_is_looked_up() -> None:
    bounded = Places(32, 2, Clock())
    for _ in range(2):
        place = Place(bounded)
        await place.recognize(b"secret")
        place.charge("org_a", b"secret")
        place.release()
    with pytest.raises(Fault, match="rate_limit_exceeded"):
        await Place(bounded).recognize(b"secret")
    await Place(bounded).recognize(b"another")
    await Place(bounded, is_revocation=True).recognize(b"secret")


async def test_94_recognized_credential_takes_share_and_turn_before_it_is_looked_up() -> None:
    bounded = Places(ORGANIZATION_WORK_MAX + 1, 60)
    known = Place(bounded)
    known.charge("org_a", b"secret")
    held = [Place(bounded) for _ in range(ORGANIZATION_WORK_MAX)]
    for place in held:
        await place.recognize(b"secret")
    waiting = Place(bounded)
    turn = asyncio.ensure_future(waiting.recognize(b"secret"))
    await asyncio.sleep(0)
    assert not turn.done()
    with pytest.raises(Fault, match="rate_limit_exceeded"):
        await Place(bounded).recognize(b"secret")
    held[0].give_back()  # its body is awaited
    await turn
    for place in (*held, waiting):
        place.release()
    assert not bounded.working and not bounded.by_caller


async def test_94_credential_that_many_present_at_once_is_looked_up_for_a_few_of_them() -> None:
    bounded = Places(32, 60)
    first = [Place(bounded) for _ in range(ORGANIZATION_WORK_MAX)]
    for place in first:
        await place.recognize(b"new")
    another = Place(bounded)
    waiting = asyncio.ensure_future(another.recognize(b"new"))
    await Place(bounded).recognize(b"of another")
    await asyncio.sleep(0)
    assert not waiting.done()
    for place in first[:-1]:
        place.release()
    first[-1].charge("org_a", b"new")
    first[-1].count("org_a")
    await first[-1].take_turn("org_a")
    await waiting
    assert bounded.by_caller == {"org_a": 2}, "it was recognized when its turn came"
    for place in (first[-1], another):
        place.release()
    assert not bounded.by_caller


async def test_94_credential_that_is_none_any_more_takes_no_share() -> None:
    bounded = Places(1, 60)
    place = Place(bounded)
    place.charge("org_a", b"leaked")
    place.forget(b"leaked")
    for _ in range(2):
        await Place(bounded).recognize(b"leaked")
    assert not bounded.by_caller


async def test_94_request_that_is_another_s_than_recognized_counts_there() -> None:
    bounded = Places(32, 60)
    place = Place(bounded)
    place.charge("org_a", b"secret")
    await place.recognize(b"secret")
    place.count("org_b")
    await place.take_turn("org_b")
    assert dict(bounded.by_caller) == {"org_b": 1} and dict(bounded.working) == {"org_b": 1}
    place.release()
    assert not bounded.by_caller and not bounded.working


def test_94_refusals_of_one_organization_are_spaced_out() -> None:
    clock = Clock()
    bounded = Places(32, 60, clock)
    waits = [bounded.pace_refusal("org_a") for _ in range(200)]
    assert waits[:3] == [0.0, 1 / REFUSALS_PER_SECOND, 2 / REFUSALS_PER_SECOND]
    assert max(waits) == REFUSAL_SECONDS_MAX
    assert bounded.pace_refusal("org_b") == 0.0
    clock.now = 2 * REFUSAL_SECONDS_MAX
    assert bounded.pace_refusal("org_a") == 0.0


def test_71_what_is_remembered_of_credentials_and_rates_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "RECOGNIZED_MAX", 8)
    clock = Clock()
    bounded = Places(32, 60, clock)
    for number in range(100):
        clock.now += 1.0
        Place(bounded).charge(f"org_{number}", b"%d" % number)
    assert len(bounded.recognized) <= 8 and len(bounded.rates) <= 8


async def test_71_requests_of_an_organization_beyond_its_turns_wait_and_others_do_not() -> None:
    bounded, order = Places(32, 60), list[str]()
    first = [Place(bounded) for _ in range(ORGANIZATION_WORK_MAX)]
    for place in first:
        await place.take_turn("org_a")
    revoking = Place(bounded, is_revocation=True)
    await revoking.take_turn("org_a")

    async def work(name: str, organization: str) -> None:
        place = Place(bounded)
        await place.take_turn(organization)
        order.append(name)
        await asyncio.sleep(0)
        place.release()

    waiting = [asyncio.ensure_future(work(name, "org_a")) for name in ("left", "second", "third")]
    await work("other", "org_b")
    assert order == ["other"]
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    revoking.release()
    await asyncio.sleep(0)
    assert order == ["other"]
    first[0].release()
    await asyncio.gather(*waiting[1:])
    assert order == ["other", "second", "third"]
    for place in first[1:]:
        place.release()
    assert not bounded.working and not bounded.waiting


async def test_94_organization_has_one_turn_while_others_ask_and_several_while_none_does() -> None:
    clock, done = Clock(), list[int]()
    bounded = Places(32, 60, clock)

    async def work(number: int, place: Place) -> None:
        place.count("org_a")
        await place.take_turn("org_a")
        done.append(number)

    def ask(numbers: range) -> list[tuple[Place, "asyncio.Task[None]"]]:
        asked = [Place(bounded) for _ in numbers]
        return [(place, asyncio.create_task(work(number, place))) for number, place in zip(numbers, asked, strict=True)]

    asked = ask(range(ORGANIZATION_WORK_MAX + 4))
    await asyncio.sleep(0)
    assert len(done) == ORGANIZATION_WORK_MAX
    operator = Place(bounded)
    operator.count("key_operator")
    for place, _ in asked[:ORGANIZATION_WORK_MAX]:
        place.release()
        await asyncio.sleep(0)
    assert len(done) == ORGANIZATION_WORK_MAX + SHARED_WORK_MAX
    clock.now = SHARED_SECONDS
    asked[ORGANIZATION_WORK_MAX][0].release()
    await asyncio.sleep(0)
    assert len(done) == ORGANIZATION_WORK_MAX + 4, "nobody else has asked for a while"
    for place, task in asked:
        await task
        place.release()
    operator.release()
    assert not bounded.working and not bounded.waiting and not bounded.by_caller


async def test_94_organization_rests_as_long_as_it_worked_while_others_ask() -> None:
    clock, done = Clock(), list[str]()
    bounded = Places(32, 60, clock)

    async def work(organization: str, seconds: float) -> None:
        place = Place(bounded)
        place.count(organization)
        await place.take_turn(organization)
        clock.now += seconds
        done.append(organization)
        place.release()

    await work("org_a", 0.001)
    operator = Place(bounded)
    operator.count("key_operator")
    operator.release()
    await work("org_a", 0.01)
    waiting = [asyncio.ensure_future(work("org_a", 0.01)) for _ in range(2)]
    await asyncio.sleep(0)
    await work("org_b", 0.001)
    assert done == ["org_a", "org_a", "org_b"], "the second of these requests was followed by a rest"
    clock.now += 0.02
    await waiting[0]
    assert not waiting[1].done()
    clock.now += 0.02
    await waiting[1]
    assert not bounded.working and not bounded.waiting and not bounded.by_caller


async def test_94_organization_that_rested_waits_for_an_operator_s_request_a_little_and_no_longer() -> None:
    clock = Clock()
    clock.now = 3600.0
    bounded = Places(32, 60, clock)
    operator, working = Place(bounded), Place(bounded)
    operator.count("key_operator")
    working.count("org_a")
    await working.take_turn("org_a")
    clock.now += 0.01
    operator.prefer()
    working.release()
    clock.now += 0.01 + HELD_SECONDS_MAX / 2  # it has rested
    assert bounded.find_rest("org_a") <= 0 and not bounded.has_turn("org_a") and bounded.has_turn("org_b")
    waiting = asyncio.ensure_future(working.take_turn("org_a"))
    await asyncio.sleep(0)
    assert not waiting.done()
    operator.end_preference()
    await waiting
    working.release()
    operator.prefer()
    clock.now += HELD_SECONDS_MAX + 0.01  # the last turn took no time, so neither did the rest
    assert bounded.has_turn("org_a"), "an operator's long request holds nobody up for longer"
    operator.release()
    assert not bounded.preferred and not bounded.working and not bounded.waiting and not bounded.by_caller


async def test_stream_has_no_turn_while_it_is_read_and_one_while_a_chunk_is_made() -> None:
    clock = Clock()
    bounded = Places(32, 60, clock)
    operator, exporting = Place(bounded), Place(bounded)
    operator.count("key_operator")
    exporting.count("org_a")

    async def make() -> AsyncIterator[bytes]:
        for chunk in (b"first", b"last"):
            assert bounded.working["org_a"] == 1
            yield chunk

    stream = exporting.stream(make(), "org_a")
    assert await anext(stream) == b"first"
    clock.now += 3600  # a slow reader
    operator.count("key_operator")
    assert bounded.has_turn("org_a") and bounded.find_rest("org_a") <= 0
    another = Place(bounded)
    await another.take_turn("org_a")
    last = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    assert not last.done(), "the organization has one turn while others ask"
    another.release()
    assert await last == b"last"
    assert [chunk async for chunk in stream] == []
    for place in (exporting, operator):
        place.release()
    assert not bounded.working and not bounded.waiting and not bounded.by_caller


async def test_rest_after_a_long_turn_is_short() -> None:
    clock = Clock()
    bounded = Places(32, 60, clock)
    long = Place(bounded)
    long.count("org_a")
    await long.take_turn("org_a")
    clock.now += 3600
    operator = Place(bounded)
    operator.count("key_operator")
    long.release()
    assert bounded.find_rest("org_a") == REST_SECONDS_MAX
    operator.release()


async def test_107_unauthenticated_clients_share_by_their_address_and_known_callers_do_not_wait_for_them() -> None:
    bounded = Places(ORGANIZATION_WORK_MAX + 1, 60, shares_addresses=True)
    operator, admin = Place(bounded), Place(bounded)
    operator.remember(b"operator")
    admin.charge("org_a", b"admin")
    unknown = [Place(bounded, address="192.0.2.1") for _ in range(ORGANIZATION_WORK_MAX)]
    for number, place in enumerate(unknown):
        await place.recognize(b"invented %d" % number)
    waiting = Place(bounded, address="192.0.2.1")
    turn = asyncio.ensure_future(waiting.admit_unauthenticated())
    await asyncio.sleep(0)
    assert not turn.done()
    with pytest.raises(Fault, match="rate_limit_exceeded"):
        await Place(bounded, address="192.0.2.1").admit_unauthenticated()
    await Place(bounded, address="192.0.2.1", is_health=True).admit_unauthenticated()
    known = [Place(bounded, address="192.0.2.1") for _ in range(2)]
    await known[0].recognize(b"operator")
    await known[1].recognize(b"admin")
    other = Place(bounded, address="192.0.2.2")
    await other.admit_unauthenticated()
    for place in unknown:
        place.release()
    await turn
    for place in (waiting, other, *known):
        place.release()
    assert not bounded.working and not bounded.waiting and not bounded.by_caller


async def test_71_request_that_waits_too_long_for_its_turn_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "TURN_SECONDS_MAX", 0.01)
    bounded = Places(32, 60)
    held = [Place(bounded) for _ in range(ORGANIZATION_WORK_MAX)]
    for place in held:
        await place.take_turn("org_a")
    with pytest.raises(Fault, match="overloaded"):
        await Place(bounded).take_turn("org_a")
    for place in held:
        place.release()
    assert not bounded.working and not bounded.waiting


def test_71_administration_beyond_its_rate_is_answered_429_and_others_go_on(
    control: Running, alice: TenantSetup, bob: TenantSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def charge(self: Places, organization: str, *, is_revocation: bool, count: int = 1) -> None:
        monkeypatch.setattr(self, "requests_per_minute", 1)
        original(self, organization, is_revocation=is_revocation, count=count)

    original = Places.charge
    admin, operator = control.client(alice.admin_key), control.operator()
    answered(admin.get(PROJECTS))
    monkeypatch.setattr(Places, "charge", charge)
    answers = [admin.get(PROJECTS) for _ in range(3)]
    refused(answers[-1], 429, "rate_limit_exceeded")
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 61
    answered(control.client(bob.admin_key).get(PROJECTS))
    for _ in range(3):
        answered(operator.get("/v1/platform/organizations"))
