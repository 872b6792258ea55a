"""A preview of prices: exact, additive, and silent about nothing."""

import random
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.domain.billing_classes import Quantities, UnitPrices, complete_prices
from tollway.domain.preview import Preview, PreviewComparison, Tariff, UsageSum, last_month
from tollway.domain.price_books import BookPrice, DraftLine, compile_price
from tollway.domain.usage import Outcome, ServiceTier

BOOK = "book_" + "1" * 32
PICO, TOKENS = st.integers(0, 10**12), st.integers(0, 10**7)
MODELS, TIERS = st.sampled_from(["a", "b", "c"]), st.sampled_from(list(ServiceTier))
UNITS = st.fixed_dictionaries(dict.fromkeys(("input", "cached_input", "output", "reasoning", "request"), PICO))


def book_price(model: str, valid_from: int, units: dict[str, int], tier: ServiceTier = ServiceTier.STANDARD) -> BookPrice:
    return BookPrice(
        id=f"price_{model}_{tier}_{valid_from}", book_id=BOOK, model=model, tier=tier, valid_from=valid_from, carried_from=0,
        published_at=0, unit_prices=complete_prices(UnitPrices(**units), 1),
    )  # fmt: skip


BOOKS = st.dictionaries(
    st.tuples(MODELS, TIERS), st.lists(st.tuples(st.integers(0, 90), UNITS), min_size=1, max_size=3, unique_by=lambda each: each[0])
).map(
    lambda found: [
        book_price(model, valid_from, units, tier)
        for (model, tier), series in found.items()
        for valid_from, units in sorted(series, key=lambda each: each[0])
    ]
)
DRAFTS = st.dictionaries(st.tuples(MODELS, TIERS), UNITS).map(
    lambda found: [DraftLine(model=model, tier=tier, unit_prices=UnitPrices(**units)) for (model, tier), units in found.items()]
)
SUMS = st.builds(
    UsageSum,
    organization_id=st.sampled_from(["org_1", "org_2", "org_3"]),
    model=MODELS,
    endpoint=st.just("chat/completions"),
    tier=TIERS,
    at=st.integers(0, 100),
    outcome_policy=st.just(1),
    outcome=st.sampled_from(list(Outcome)),
    delivered=st.booleans(),
    events=st.integers(1, 1000),
    used=st.builds(Quantities, TOKENS, TOKENS, TOKENS, TOKENS),
    cost_pico=st.integers(0, 10**20),
)
DISCOUNTS = st.dictionaries(st.sampled_from(["org_1", "org_2"]), st.integers(0, 10_000))


def compared(
    lines: list[DraftLine], book: list[BookPrice], discounts: dict[str, int], *parts: list[UsageSum]
) -> dict[str, PreviewComparison]:
    preview = Preview(Tariff(lines, book), discounts)
    for part in parts:
        preview.add(part)
    return preview.organizations


@given(DRAFTS, BOOKS, DISCOUNTS, st.lists(SUMS, max_size=12), st.randoms(use_true_random=False))
def test_neither_order_nor_pages_matter(
    lines: list[DraftLine], book: list[BookPrice], discounts: dict[str, int], sums: list[UsageSum], chance: random.Random
) -> None:
    whole = compared(lines, book, discounts, sums)
    shuffled = list(sums)
    chance.shuffle(shuffled)
    cut = chance.randint(0, len(sums))
    assert compared(lines, book, discounts, shuffled[:cut], shuffled[cut:]) == whole
    assert set(whole) == {each.organization_id for each in sums} & set(discounts)


@given(DRAFTS, BOOKS, DISCOUNTS, st.lists(SUMS, max_size=12))
def test_every_request_is_in_it_once_priced_or_said_not_to_be(
    lines: list[DraftLine], book: list[BookPrice], discounts: dict[str, int], sums: list[UsageSum]
) -> None:
    drafted = {line.series for line in lines}
    opened = {
        (price.model, price.tier): min(p.valid_from for p in book if (p.model, p.tier) == (price.model, price.tier)) for price in book
    }
    for organization_id, found in compared(lines, book, discounts, sums).items():
        of = [each for each in sums if each.organization_id == organization_id]
        closed = [each for each in of if (each.model, each.tier) not in drafted and opened.get((each.model, each.tier), 101) > each.at]
        assert found.events == sum(each.events for each in of)
        assert found.current_pico == sum(each.cost_pico for each in of)
        assert found.unpriced_events == sum(each.events for each in closed)
        assert found.unpriced_pico == sum(each.cost_pico for each in closed)
        assert found.difference_pico == found.draft_pico - found.current_pico + found.unpriced_pico


@given(BOOKS, st.integers(0, 10_000), st.lists(SUMS, max_size=12))
def test_the_books_own_prices_change_nothing_for_anybody(book: list[BookPrice], discount_bp: int, sums: list[UsageSum]) -> None:
    """Whatever was billed by the list of this book, and is compared with an empty draft, or with one of what the book asks throughout."""
    at_last = {(price.model, price.tier): price for price in book}
    priced = []
    for each in sums:
        price = at_last.get((each.model, each.tier))
        if price is None or each.at < price.valid_from:
            continue
        billed = each.outcome in (Outcome.COMPLETED, Outcome.CLIENT_CANCELLED, Outcome.BUDGET_STOPPED, Outcome.GATEWAY_CRASH)
        billed = billed or (each.delivered and each.outcome in (Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT))
        requests = each.events if each.outcome is Outcome.COMPLETED else 0
        units = compile_price(price, "EUR", discount_bp).unit_prices
        pico = (each.used + Quantities(request=requests)).times(units).total if billed else 0
        priced.append(msgspec.structs.replace(each, cost_pico=pico))
    lines = [DraftLine(model=price.model, tier=price.tier, unit_prices=price.unit_prices) for price in at_last.values()]
    discounts = dict.fromkeys(["org_1", "org_2", "org_3"], discount_bp)
    for draft in ([], lines):
        found = compared(draft, book, discounts, priced)
        assert all(each.difference_pico == 0 and each.unpriced_events == 0 for each in found.values())
        assert all(each.difference_bp in (0, None) for each in found.values())


def test_a_line_of_the_draft_counts_at_any_time_and_the_rest_at_its_own() -> None:
    units = {"input": 1, "cached_input": 1, "output": 1, "reasoning": 1}
    book = [book_price("a", 0, units), book_price("a", 50, units | {"input": 2}), book_price("b", 70, units)]
    tariff = Tariff([DraftLine(model="b", tier=ServiceTier.STANDARD, unit_prices=UnitPrices(**units))], book)
    assert tariff.list_changes(0, 100) == [50]
    assert tariff.list_changes(50, 100) == []
    found = [tariff.find(("a", ServiceTier.STANDARD), at) for at in (0, 49, 50)]
    assert [each and each.input for each in found] == [1, 1, 2]
    assert tariff.find(("b", ServiceTier.STANDARD), 0) is not None
    assert tariff.find(("a", ServiceTier.FLEX), 99) is None


@pytest.mark.parametrize(
    ("current", "draft", "unpriced", "basis_points"),
    [(1000, 1100, 0, 1000), (1000, 900, 0, -1000), (3, 4, 0, 3333), (1100, 900, 100, -1000), (0, 5, 0, None), (5, 0, 5, None)],
)
def test_the_difference_is_of_what_can_be_compared(current: int, draft: int, unpriced: int, basis_points: int | None) -> None:
    assert PreviewComparison(1, current, draft, 0, unpriced).difference_bp == basis_points


def at(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> int:
    return int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()) * 1_000_000


@pytest.mark.parametrize(
    ("now", "start", "end"),
    [
        (at(2026, 11, 22, 5), at(2026, 10, 1), at(2026, 11, 1)),
        (at(2027, 1, 1), at(2026, 12, 1), at(2027, 1, 1)),
        (at(2028, 3, 31, 23, 59, 59) + 999_999, at(2028, 2, 1), at(2028, 3, 1)),
    ],
)
def test_the_last_month_is_a_whole_one(now: int, start: int, end: int) -> None:
    assert last_month(now) == (start, end)
