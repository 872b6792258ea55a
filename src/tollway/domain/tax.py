"""Value added tax (VAT) on invoices: which category and rate apply, and by which evidence. Offline, and a pure function of its facts.

Sellers are established in a member state of the European Union, and what is sold are services supplied electronically. The place of supply
follows from the customer (Directive 2006/112/EC, articles 44, 58 and 59): a business in another member state accounts for the tax itself
(article 196), a consumer there pays the rate of their country, and outside the Union no tax of the Union is due. Rates are standard rates,
with the days from which they are valid. Territories with rules of their own (the Canary Islands, Northern Ireland for goods, and so on) are
treated as parts of the countries that they belong to. docs/invoices.md says what a tax adviser has to decide.
"""

from collections.abc import Mapping
from datetime import date
from enum import StrEnum

import msgspec

from tollway.domain.countries import COUNTRIES

RULES_VERSION = 1
"""Version of `decide_tax`. A decision names the version that made it, so that it can be made again after the rules have changed."""


class TaxCategory(StrEnum):
    """Category of VAT (UNTDID 5305, as EN 16931 uses it)."""

    STANDARD = "S"
    REVERSE_CHARGE = "AE"
    OUTSIDE = "O"


STANDARD_RATES: Mapping[str, tuple[tuple[str, int], ...]] = {
    "AT": (("1995-01-01", 2000),),
    "BE": (("1996-01-01", 2100),),
    "BG": (("2007-01-01", 2000),),
    "CY": (("2014-01-13", 1900),),
    "CZ": (("2013-01-01", 2100),),
    "DE": (("2007-01-01", 1900), ("2020-07-01", 1600), ("2021-01-01", 1900)),
    "DK": (("1992-01-01", 2500),),
    "EE": (("2009-07-01", 2000), ("2024-01-01", 2200), ("2025-07-01", 2400)),
    "ES": (("2012-09-01", 2100),),
    "FI": (("2013-01-01", 2400), ("2024-09-01", 2550)),
    "FR": (("2014-01-01", 2000),),
    "GR": (("2016-06-01", 2400),),
    "HR": (("2012-03-01", 2500),),
    "HU": (("2012-01-01", 2700),),
    "IE": (("2012-01-01", 2300), ("2020-09-01", 2100), ("2021-03-01", 2300)),
    "IT": (("2013-10-01", 2200),),
    "LT": (("2009-09-01", 2100),),
    "LU": (("2015-01-01", 1700), ("2023-01-01", 1600), ("2024-01-01", 1700)),
    "LV": (("2012-07-01", 2100),),
    "MT": (("2004-01-01", 1800),),
    "NL": (("2012-10-01", 2100),),
    "PL": (("2011-01-01", 2300),),
    "PT": (("2011-01-01", 2300),),
    "RO": (("2017-01-01", 1900), ("2025-08-01", 2100)),
    "SE": (("1990-07-01", 2500),),
    "SI": (("2013-07-01", 2200),),
    "SK": (("2011-01-01", 2000), ("2025-01-01", 2300)),
}
"""Standard rates of the member states by country (ISO 3166-1), in hundredths of a percent, each with the day from which it is valid."""

VAT_PREFIXES: Mapping[str, str] = {"GR": "EL"}
"""Prefix of the VAT identification numbers of a country where it is not the country's own code."""

EXEMPTIONS: Mapping[TaxCategory, str] = {TaxCategory.REVERSE_CHARGE: "VATEX-EU-AE", TaxCategory.OUTSIDE: "VATEX-EU-O"}
"""Code of the reason why no tax is charged (CEF code list VATEX), by category."""


class CheckResult(StrEnum):
    """Answer of a register about a VAT identification number."""

    VALID = "valid"
    INVALID = "invalid"
    UNCONFIRMED = "unconfirmed"  # it could not say: the check digits of the number are all the evidence


class VatCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Evidence about a VAT identification number: when it was looked up, and what the register answered. `consultation_number`:
    of VIES or of the national register; empty where it gave none.

    `result`: left out where an operator states that the number was valid. `reason`: why the register could not say. `name`, `address`: as
    registered; empty where the register does not give them.
    """

    vat_id: str
    checked_at: int
    source: str
    consultation_number: str = ""
    result: CheckResult | msgspec.UnsetType = msgspec.UNSET
    reason: str | msgspec.UnsetType = msgspec.UNSET
    name: str | msgspec.UnsetType = msgspec.UNSET
    address: str | msgspec.UnsetType = msgspec.UNSET


class TaxFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts by which a tax is decided. `supplied_on`: the last day of the service (YYYY-MM-DD). `vat_id`: of the buyer, empty for none."""

    seller_country: str
    buyer_country: str
    is_business: bool
    vat_id: str
    check: VatCheck | None
    supplied_on: str


class TaxDecision(msgspec.Struct, frozen=True, kw_only=True):
    """The category and rate of an invoice, and the evidence. `country`: whose tax it is; empty where none is due. `rate_bp`: hundredths of
    a percent."""

    rules_version: int
    category: TaxCategory
    rate_bp: int
    country: str
    facts: TaxFacts

    @property
    def reason_code(self) -> str:
        """Return the code of the reason why no tax is charged; empty where it is charged."""
        return EXEMPTIONS.get(self.category, "")


class TaxUndecided(ValueError):
    """The facts are not enough for a decision. The message says which is missing."""


def find_rate(country: str, on: str) -> int | None:
    """Return the standard rate of a member state on a day (YYYY-MM-DD), in hundredths of a percent; None outside the Union or before the
    table begins."""
    rate = None
    for since, rate_bp in STANDARD_RATES.get(country, ()):
        if since <= on:
            rate = rate_bp
    return rate


def is_in_union(country: str) -> bool:
    """Return whether a country is a member state of the European Union."""
    return country in STANDARD_RATES


def name_vat_prefix(country: str) -> str:
    """Return the prefix of the VAT identification numbers of a country."""
    return VAT_PREFIXES.get(country, country)


def needs_vat_check(seller_country: str, buyer_country: str, is_business: bool, vat_id: str) -> bool:
    """Return whether the tax of a buyer depends on its VAT id being valid: that of a business in another member state."""
    return is_business and bool(vat_id) and is_in_union(buyer_country) and buyer_country != seller_country


def decide_tax(facts: TaxFacts) -> TaxDecision:
    """Return the tax of a service by its facts. Raises TaxUndecided where they are not enough."""
    date.fromisoformat(facts.supplied_on)
    if not is_in_union(facts.seller_country):
        raise TaxUndecided(f"the seller's country {facts.seller_country} is no member state of the European Union: there is no rule for it")
    if facts.buyer_country not in COUNTRIES:
        raise TaxUndecided(f"the buyer's country {facts.buyer_country} is none of ISO 3166-1")
    if not is_in_union(facts.buyer_country):
        return _decide(facts, TaxCategory.OUTSIDE, 0, "")
    if needs_vat_check(facts.seller_country, facts.buyer_country, facts.is_business, facts.vat_id):
        if not facts.vat_id.startswith(name_vat_prefix(facts.buyer_country)):
            raise TaxUndecided(f"the VAT id {facts.vat_id} is not one of the buyer's country {facts.buyer_country}")
        if facts.check is None or facts.check.vat_id != facts.vat_id:
            raise TaxUndecided(f"reverse charge needs evidence that the VAT id {facts.vat_id} was checked")
        if facts.check.result is CheckResult.INVALID:
            raise TaxUndecided(f"the register says that the VAT id {facts.vat_id} is not valid")
        return _decide(facts, TaxCategory.REVERSE_CHARGE, 0, "")
    rate_bp = find_rate(facts.buyer_country, facts.supplied_on)
    if rate_bp is None:
        raise TaxUndecided(f"the rate of {facts.buyer_country} on {facts.supplied_on} is not in the table")
    return _decide(facts, TaxCategory.STANDARD, rate_bp, facts.buyer_country)


def _decide(facts: TaxFacts, category: TaxCategory, rate_bp: int, country: str) -> TaxDecision:
    return TaxDecision(rules_version=RULES_VERSION, category=category, rate_bp=rate_bp, country=country, facts=facts)
