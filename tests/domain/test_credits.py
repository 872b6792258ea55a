"""Credits: which grant usage burns, in one total order, and never more than there is."""

from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.domain.credits import (
    EVERYWHERE,
    MINUTE_US,
    CreditGrant,
    CreditPlace,
    CreditUsage,
    GrantCategory,
    burn,
    burn_order,
    find_leasable,
    find_problem,
    find_usable,
)
from tollway.domain.periods import INSTANT_MAX

MINUTES = 6


def grant(id: str = "grant_a", amount_pico: int = 100, **terms: object) -> CreditGrant:
    made = CreditGrant(
        id=id,
        organization_id="org_1",
        category=GrantCategory.PAID,
        amount_pico=amount_pico,
        currency="EUR",
        cost_basis_bp=10_000,
        priority=0,
        effective_at=0,
        expires_at=None,
        created_at=0,
    )
    return msgspec.structs.replace(made, **terms)


def use(minute: int, pico: int, project_id: str = "proj_1", model: str = "m") -> dict[CreditUsage, int]:
    return {CreditUsage(minute * MINUTE_US, project_id, model): pico}


def burn_all(grants: list[CreditGrant], usage: Mapping[CreditUsage, int]) -> dict[str, int]:
    return burn(grants, {each.id: each.amount_pico for each in grants}, usage)


_minutes = st.integers(0, MINUTES)


@st.composite
def drawn_grants(draw: st.DrawFn) -> list[CreditGrant]:
    """Up to six grants whose terms meet in all ways."""
    grants = []
    for number in range(draw(st.integers(0, 6))):
        starts, lasts, model = draw(_minutes), draw(st.none() | st.integers(1, MINUTES)), draw(st.sampled_from(["", "m", "n"]))
        terms = {
            "priority": draw(st.integers(0, 2)),
            "effective_at": starts * MINUTE_US,
            "expires_at": None if lasts is None else (starts + lasts) * MINUTE_US,
            "project_id": draw(st.sampled_from([None, "p", "q"])),
            "model": model,
            "models": (model,) if model else (),
            "cost_basis_bp": draw(st.sampled_from([0, 5000, 10_000])),
            "created_at": draw(st.integers(0, 2)),
        }
        grants.append(grant(f"grant_{number}", draw(st.integers(1, 50)), **terms))
    return grants


_grants = drawn_grants()
_usage = st.dictionaries(
    st.builds(CreditUsage, _minutes.map(lambda minute: minute * MINUTE_US), st.sampled_from(["p", "q"]), st.sampled_from(["m", "n"])),
    st.integers(0, 60),
    max_size=12,
)


@given(_grants, _usage, st.randoms(use_true_random=False))
def test_order_in_which_grants_and_usage_come_changes_nothing(
    grants: list[CreditGrant], usage: dict[CreditUsage, int], chance: object
) -> None:
    shuffled, places = list(grants), list(usage)
    chance.shuffle(shuffled)
    chance.shuffle(places)
    assert burn_all(shuffled, {place: usage[place] for place in places}) == burn_all(grants, usage)
    keys = [burn_order(each) for each in grants]
    assert len(set(keys)) == len(keys), "the order is total"


@given(_grants, _usage)
def test_no_grant_is_burned_beyond_its_amount_its_time_or_its_scope(grants: list[CreditGrant], usage: dict[CreditUsage, int]) -> None:
    burned = burn_all(grants, usage)
    assert sum(burned.values()) <= sum(usage.values())
    for each in grants:
        coverable = sum(pico for place, pico in usage.items() if each.covers(place))
        assert 0 <= burned.get(each.id, 0) <= min(each.amount_pico, coverable)


_places = st.sampled_from([EVERYWHERE, *(CreditPlace(project, model) for project in ("p", "q") for model in ("m", "n"))])


@given(_grants, st.lists(st.tuples(_places, st.integers(0, 60)), max_size=12), st.randoms(use_true_random=False))
def test_what_is_leased_by_place_is_covered_in_whatever_order_it_is_used(
    grants: list[CreditGrant], asked: list[tuple[CreditPlace, int]], chance: object
) -> None:
    at = 3 * MINUTE_US
    left = {each.id: each.amount_pico for each in grants}
    leased: dict[CreditPlace, int] = {}
    for place, pico in asked:
        free = find_leasable(grants, left, leased, place, at)
        assert free.pico >= 0 and free.until_at > at
        leased[place] = leased.get(place, 0) + min(pico, free.pico)
    uses = [place for place, pico in leased.items() for _ in range(pico)]
    chance.shuffle(uses)
    for place in uses:
        elsewhere = CreditUsage(at, "r", "o") if place == EVERYWHERE else CreditUsage(at, place.project_id, place.model)
        burned = burn(grants, left, {elsewhere: 1})
        assert burned, "it was leased, and no grant covers it"
        for id, part in burned.items():
            left[id] -= part


def test_leases_of_places_that_burn_the_same_grants_count_together_however_many_they_are() -> None:
    grants = [grant("all", 1_000), grant("model", 1_000, model="m", models=("m",)), grant("own", 500, project_id="p")]
    lookups: list[str] = []

    class Left(dict[str, int]):
        def __getitem__(self, id: str) -> int:
            lookups.append(id)
            return super().__getitem__(id)

    left = Left({each.id: each.amount_pico for each in grants})
    for projects in (1, 2, 1_200):
        leased = {CreditPlace(f"q{number}", "m"): 1_200 // projects for number in range(projects)}
        lookups.clear()
        assert find_leasable(grants, left, leased, CreditPlace("p", "m"), MINUTE_US).pico == 650
        assert len(lookups) <= len(grants)


@given(_grants)
def test_all_credit_that_covers_a_place_can_be_leased_there_while_nothing_is_leased_elsewhere(grants: list[CreditGrant]) -> None:
    at, place = 3 * MINUTE_US, CreditPlace("p", "m")
    left = {each.id: each.amount_pico for each in grants}
    covering = sum(each.amount_pico for each in grants if each.covers(CreditUsage(at, "p", "m")))
    assert find_leasable(grants, left, {}, place, at).pico == covering
    assert find_leasable(grants, left, {place: covering}, place, at).pico == 0
    assert find_leasable(grants, left, {place: covering + 7}, place, at).pico == -7
    assert find_leasable(grants, left, {}, EVERYWHERE, at).pico == find_usable(grants, left, at).pico


@given(_grants, _usage)
def test_usage_is_left_uncovered_only_if_no_grant_that_covers_it_has_anything_left(
    grants: list[CreditGrant], usage: dict[CreditUsage, int]
) -> None:
    left = {each.id: each.amount_pico for each in grants}
    for place in sorted(usage):
        part = burn(grants, left, {place: usage[place]})
        for id, pico in part.items():
            left[id] -= pico
        if sum(part.values()) < usage[place]:
            assert not any(left[each.id] for each in grants if each.covers(place))
    assert burn_all(grants, usage) == {each.id: each.amount_pico - left[each.id] for each in grants if left[each.id] < each.amount_pico}


@given(st.lists(st.integers(1, 50), max_size=5), _usage, st.integers(0, 12))
def test_what_arrives_in_parts_burns_as_much_of_grants_without_scope_and_end(
    amounts: list[int], usage: dict[CreditUsage, int], cut: int
) -> None:
    grants = [grant(f"grant_{number}", amount) for number, amount in enumerate(amounts)]
    left = {each.id: each.amount_pico for each in grants}
    places = list(usage)
    for part in (places[cut:], places[:cut]):
        for id, pico in burn(grants, left, {place: usage[place] for place in part}).items():
            left[id] -= pico
    assert {each.id: each.amount_pico - left[each.id] for each in grants if left[each.id] < each.amount_pico} == burn_all(grants, usage)


def test_grants_burn_by_scope_then_priority_then_expiry_then_cost_basis_then_age() -> None:
    ordered = [
        grant("grant_9", project_id="proj_1", priority=5),
        grant("grant_8", expires_at=9 * MINUTE_US),
        grant("grant_7", cost_basis_bp=0),
        grant("grant_6"),
        grant("grant_1", created_at=1),
        grant("grant_2", created_at=1),
        grant("grant_0", priority=1, expires_at=MINUTE_US),
    ]
    mixed = ordered[3:] + ordered[:3]
    assert sorted(mixed, key=burn_order) == ordered


def test_grant_ends_at_its_instant_exactly() -> None:
    ending = grant(effective_at=2 * MINUTE_US, expires_at=4 * MINUTE_US)
    assert [burn_all([ending], use(minute, 1)) for minute in (1, 2, 3, 4)] == [{}, {"grant_a": 1}, {"grant_a": 1}, {}]
    voided = msgspec.structs.replace(ending, voided_at=3 * MINUTE_US)
    assert [burn_all([voided], use(minute, 1)) for minute in (2, 3)] == [{"grant_a": 1}, {}]


def test_usable_credit_has_no_scope_is_in_force_and_says_until_when_it_is_certain() -> None:
    grants = [
        grant("grant_a", 10, expires_at=4 * MINUTE_US),
        grant("grant_b", 20, effective_at=3 * MINUTE_US),
        grant("grant_c", 40, project_id="proj_1"),
        grant("grant_d", 80, voided_at=9 * MINUTE_US),
    ]
    left = {each.id: each.amount_pico for each in grants}
    assert [find_usable(grants, left, minute * MINUTE_US) for minute in (2, 3, 4)] == [
        (10, 3 * MINUTE_US),
        (30, 4 * MINUTE_US),
        (20, INSTANT_MAX),
    ]


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        ({"amount_pico": 0}, "amount"),
        ({"amount_pico": 2**63}, "amount"),
        ({"priority": -1}, "priority"),
        ({"cost_basis_bp": 10_001}, "cost_basis_percent"),
        ({"expires_at": MINUTE_US + 1}, "expires_at"),
        ({"effective_at": MINUTE_US, "expires_at": MINUTE_US}, "expires_at"),
        ({"created_at": 2 * MINUTE_US, "effective_at": MINUTE_US}, "effective_at"),
    ],
)
def test_terms_that_no_grant_can_have_are_named(terms: dict[str, object], field: str) -> None:
    problem = find_problem(grant(**terms))  # type: ignore[arg-type]
    assert problem is not None and problem.field == field
    assert find_problem(grant()) is None
