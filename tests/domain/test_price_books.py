"""Consequences of published prices: discounts rounded once, what gateways are told, what a check finds."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.domain.billing_classes import NOTHING, BillingClass, Quantities, UnitPrices, with_default_prices
from tollway.domain.currencies import CURRENCIES, get_currency
from tollway.domain.money import UNIT_PRICE_PICO_MAX, divide_half_even
from tollway.domain.price_books import (
    DISCOUNT_BP_MAX,
    BookPrice,
    DraftFinding,
    DraftLine,
    PublishContext,
    Severity,
    StoredTerms,
    carried,
    carried_start,
    check,
    compile_price,
    compile_unit,
    list_id,
    schedule,
    split_list_id,
)
from tollway.domain.prices import PriceTerms, find_list, rate
from tollway.domain.usage import ServiceTier

PICO = st.integers(0, UNIT_PRICE_PICO_MAX)
DISCOUNTS = st.integers(0, DISCOUNT_BP_MAX)
TOKENS = st.integers(0, 4_000_000)
BOOK = "book_" + "1" * 32


def published(model: str = "m", tier: ServiceTier = ServiceTier.STANDARD, valid_from: int = 0, **units: int) -> BookPrice:
    classes = {"input": 300, "cached_input": 30, "output": 900, "reasoning": 900, "request": 0} | units
    return BookPrice(
        id=f"price_{valid_from}",
        book_id=BOOK,
        model=model,
        tier=tier,
        valid_from=valid_from,
        carried_from=0,
        published_at=0,
        unit_prices=with_default_prices({BillingClass(name): pico for name, pico in classes.items()}),
    )


def line(model: str = "m", tier: ServiceTier = ServiceTier.STANDARD, **units: int) -> DraftLine:
    classes = {"input": 300, "cached_input": 30, "output": 900, "reasoning": 900, "request": 0} | units
    return DraftLine(model=model, tier=tier, unit_prices=UnitPrices(**classes))  # completed as prices of the first table are


PRICES = st.builds(lambda *pico: published(**dict(zip(map(str, BillingClass), pico, strict=True))), *(PICO for _ in BillingClass))


class TestADiscount:
    @given(PICO, DISCOUNTS)
    def test_is_rounded_once_and_half_to_even(self, pico: int, discount_bp: int) -> None:
        exact = Fraction(pico * (10_000 - discount_bp), 10_000)
        compiled = compile_unit(pico, discount_bp)
        assert compiled == round(exact)  # a Fraction rounds half to even
        assert abs(compiled - exact) <= Fraction(1, 2)

    @given(st.integers(0, 10**30), st.integers(1, 10**9))
    def test_divides_as_fractions_round(self, numerator: int, denominator: int) -> None:
        assert divide_half_even(numerator, denominator) == round(Fraction(numerator, denominator))

    def test_of_half_a_pico_goes_to_the_even_one(self) -> None:
        assert [compile_unit(pico, 5_000) for pico in (1, 3, 5, 7)] == [0, 2, 2, 4]

    @given(PICO, DISCOUNTS, DISCOUNTS)
    def test_that_is_larger_never_costs_more(self, pico: int, one: int, other: int) -> None:
        assert compile_unit(pico, max(one, other)) <= compile_unit(pico, min(one, other)) <= pico

    @given(PRICES)
    def test_of_nothing_changes_nothing_and_of_all_leaves_nothing(self, price: BookPrice) -> None:
        assert compile_price(price, "EUR", 0).unit_prices == price.unit_prices
        assert compile_price(price, "EUR", DISCOUNT_BP_MAX).unit_prices == NOTHING

    @given(PRICES, DISCOUNTS, st.builds(Quantities, TOKENS, TOKENS, TOKENS, TOKENS), st.integers(0, 1))
    def test_is_in_the_unit_price_so_that_rating_stays_a_product(
        self, price: BookPrice, discount_bp: int, used: Quantities, requests: int
    ) -> None:
        compiled = compile_price(price, "EUR", discount_bp)
        for rated in rate(used + Quantities(request=requests), compiled.unit_prices):
            assert rated.unit_pico == compile_unit(price.unit_prices.get(rated.billing_class), discount_bp)
            assert rated.amount_pico == rated.quantity * rated.unit_pico

    @given(PRICES, DISCOUNTS)
    def test_compiles_to_the_same_bytes_again(self, price: BookPrice, discount_bp: int) -> None:
        compiled = compile_price(price, "EUR", discount_bp)
        assert compiled == compile_price(price, "EUR", discount_bp)
        assert split_list_id(compiled.list) == (BOOK, discount_bp)
        assert compiled.list == list_id(BOOK, discount_bp)
        assert compiled.id.startswith(price.id)


class TestTerms:
    def test_begin_with_the_default_list_and_follow_each_other(self) -> None:
        stored = [StoredTerms(10, "a", 0), StoredTerms(20, "b", 0)]
        assert schedule("d", stored) == (PriceTerms(0, "d"), PriceTerms(10, "a"), PriceTerms(20, "b"))
        assert [find_list(schedule("d", stored), at) for at in (0, 9, 10, 19, 20)] == ["d", "d", "a", "a", "b"]
        assert find_list(schedule(None, stored), 9) is None
        assert find_list(schedule(None, []), 9) is None

    @given(st.lists(st.integers(1, 1000), min_size=1, max_size=8, unique=True).map(sorted), st.data())
    def test_that_gateways_hear_of_answer_for_every_instant_from_the_last_change_on(self, starts: list[int], data: st.DataObject) -> None:
        """Terms set one after the other, each not before the instant at which it is set: from then on, what is carried says the same as
        the whole schedule."""
        stored: list[StoredTerms] = []
        now = 0
        for number, start in enumerate(starts):
            now = data.draw(st.integers(now, start), label="now")
            whole = [each.valid_from for each in schedule("d", stored)]
            stored.append(StoredTerms(start, str(number), carried_start([*whole, start], now)))
            told = carried("d", stored)
            assert {find_list(told, at) == find_list(schedule("d", stored), at) for at in range(now, 1002)} == {True}
        assert set(told) <= set(schedule("d", stored))

    def test_of_long_ago_are_not_carried(self) -> None:
        stored = [StoredTerms(10, "a", 0), StoredTerms(20, "b", 10)]
        assert carried("d", stored) == (PriceTerms(10, "a"), PriceTerms(20, "b"))


def place(*prices: BookPrice, models: frozenset[str] = frozenset({"m"}), valid_from: int = 100, now: int = 100) -> PublishContext:
    by_series: dict[tuple[str, ServiceTier], list[BookPrice]] = {}
    for price in prices:
        by_series.setdefault((price.model, price.tier), []).append(price)
    return PublishContext(now=now, valid_from=valid_from, models=models, published=by_series)


def codes(found: list[DraftFinding]) -> list[tuple[str, str]]:
    return [(finding.severity, finding.code) for finding in found]


class TestACheck:
    def test_finds_nothing_in_what_changes_little(self) -> None:
        flex = line(tier=ServiceTier.FLEX, input=150, cached_input=15, output=450, reasoning=450)
        assert check([line(input=310), flex], place(published())) == []

    @pytest.mark.parametrize(
        ("lines", "at", "code"),
        [
            ([], place(), "empty"),
            ([line("other")], place(), "model_unknown"),
            ([line(tier=ServiceTier.BATCH)], place(), "standard_missing"),
            ([line(tier=ServiceTier.BATCH)], place(published(valid_from=101)), "standard_missing"),
            ([line()], place(published(valid_from=100)), "not_after_last"),
            ([line()], place(published(valid_from=200)), "not_after_last"),
            ([line()], place(valid_from=99), "retroactive"),
        ],
    )
    def test_finds_what_must_not_be_published(self, lines: list[DraftLine], at: PublishContext, code: str) -> None:
        assert (Severity.ERROR, code) in codes(check(lines, at))

    @pytest.mark.parametrize(
        ("changed", "code"),
        [
            (line(input=3_001), "jump"),
            (line(input=29, cached_input=3), "jump"),
            (line(request=1), "jump"),
            (line(cached_input=301), "cached_dearer"),
            (line(input=0, cached_input=0, output=0, reasoning=0), "free"),
            (line(tier=ServiceTier.FLEX, output=901), "tier_dearer"),
            (line(tier=ServiceTier.PRIORITY, output=899), "tier_cheaper"),
        ],
    )
    def test_warns_of_what_is_rarely_meant(self, changed: DraftLine, code: str) -> None:
        found = check([changed], place(published()))
        assert (Severity.WARNING, code) in codes(found)
        assert not any(finding.severity is Severity.ERROR for finding in found)

    def test_takes_ten_times_for_a_decision_and_more_for_a_slip(self) -> None:
        assert check([line(input=3_000)], place(published())) == []
        assert check([line(input=30, cached_input=3)], place(published())) == []

    def test_says_errors_first(self) -> None:
        found = check([line(cached_input=301), line("other")], place(published()))
        assert codes(found)[0][0] == Severity.ERROR
        assert codes(found)[-1][0] == Severity.WARNING


class TestCurrencies:
    def test_have_the_minor_units_of_the_standard(self) -> None:
        assert {code: get_currency(code).minor_units for code in ("EUR", "JPY", "KWD", "CHF", "CLP")} == {
            "EUR": 2,
            "JPY": 0,
            "KWD": 3,
            "CHF": 2,
            "CLP": 0,
        }
        assert all(len(code) == 3 and code.isupper() for code in CURRENCIES)

    @pytest.mark.parametrize("code", ["", "eur", "EURO", "XTS", "XAU", "DEM", "ZZZ"])
    def test_that_nobody_is_billed_in_are_refused(self, code: str) -> None:
        with pytest.raises(ValueError, match="currency"):
            get_currency(code)
