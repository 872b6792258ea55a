"""Tax by its facts, and the table of rates against a published one."""

import eu_vat_rates_data
import msgspec
import pytest

from tollway.domain.tax import STANDARD_RATES, TaxFacts, TaxUndecided, VatCheck, decide_tax, find_rate

BUSINESS = TaxFacts(seller_country="DE", buyer_country="DE", is_business=True, vat_id="", check=None, supplied_on="2026-10-31")
CHECK = VatCheck(vat_id="FR40303265045", checked_at=1, source="VIES")


def facts(**changes: object) -> TaxFacts:
    return msgspec.structs.replace(BUSINESS, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "decided"),
    [
        (facts(), ("S", 1900, "DE")),
        (facts(supplied_on="2020-07-31"), ("S", 1600, "DE")),
        (facts(buyer_country="FR", vat_id=CHECK.vat_id, check=CHECK), ("AE", 0, "")),
        (facts(buyer_country="FR"), ("S", 2000, "FR")),
        (facts(buyer_country="FR", is_business=False), ("S", 2000, "FR")),
        (facts(buyer_country="CH"), ("O", 0, "")),
        (facts(buyer_country="GB", vat_id="GB1"), ("O", 0, "")),
    ],
)
def test_tax_follows_from_the_parties_and_the_day(given: TaxFacts, decided: tuple[str, int, str]) -> None:
    decision = decide_tax(given)
    assert (decision.category, decision.rate_bp, decision.country) == decided and decide_tax(decision.facts) == decision


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (facts(buyer_country="FR", vat_id=CHECK.vat_id), "needs evidence"),
        (facts(buyer_country="FR", vat_id="FR1", check=CHECK), "needs evidence"),
        (facts(buyer_country="FR", vat_id="DE1", check=CHECK), "not one of the buyer's country"),
        (facts(seller_country="US"), "no member state"),
        (facts(supplied_on="1990-01-01"), "not in the table"),
        (facts(supplied_on="soon"), "soon"),
    ],
)
def test_tax_without_enough_facts_is_not_decided(given: TaxFacts, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decide_tax(given)
    assert issubclass(TaxUndecided, ValueError)


def test_rates_are_those_that_are_published() -> None:
    today = "9999-12-31"
    published = {country: round(100 * eu_vat_rates_data.get_standard_rate(country)) for country in STANDARD_RATES}
    assert {country: find_rate(country, today) for country in STANDARD_RATES} == published
    assert all(list(rows) == sorted(rows) for rows in STANDARD_RATES.values()) and len(STANDARD_RATES) == 27
