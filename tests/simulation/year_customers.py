"""Customers of the simulated year: who they are, what they agreed on, what they pay and what they send. Data and dice, no database.

Prices are kept here a second time, in plain dictionaries, and amounts are computed from them by the rules of docs/money.md: what the
control plane books is compared with that.
"""

import random
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

from tollway.domain.billing_classes import CLASS_TABLE, OtherClasses, PerClass, Quantities, UnitPrices
from tollway.domain.billing_parties import (
    Address,
    BankAccount,
    BillingAccount,
    Contact,
    DunningAction,
    DunningStep,
    ElectronicAddress,
    Language,
    LegalEntity,
)
from tollway.domain.contracts import (
    Commitment,
    Contract,
    ContractTerms,
    Fee,
    FreeUnits,
    Objective,
    Schedule,
    ServiceLevel,
    Tier,
    TieredPrice,
)
from tollway.domain.price_books import DraftLine
from tollway.domain.tax import VatCheck
from tollway.domain.usage import Outcome, ServiceTier

YEAR = 2026
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Auckland", "Australia/Lord_Howe")
CURRENCIES = ("EUR", "USD", "JPY")
MINOR_UNITS = {"EUR": 2, "USD": 2, "JPY": 0}
SCALES = {"EUR": 1, "USD": 1, "JPY": 150}
"""Units of a currency that prices of 1 euro become there."""

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
PICO = 10**12

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant_of(moment: datetime) -> int:
    """Return a moment in UTC microseconds."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def month_start(zone: str, number: int) -> int:
    """Return the start of month `number` of the year (0: January; 12: January of the next year) in a time zone, in UTC microseconds."""
    moment = datetime(YEAR + number // 12, number % 12 + 1, 1, tzinfo=ZoneInfo(zone))
    return instant_of(moment.astimezone(UTC))


def month_name(zone: str, at: int) -> str:
    """Return the month of an instant in a time zone (YYYY-MM)."""
    return (EPOCH + timedelta(microseconds=at)).astimezone(ZoneInfo(zone)).strftime("%Y-%m")


def day_name(at: int) -> str:
    """Return the day of an instant in UTC (YYYY-MM-DD)."""
    return (EPOCH + timedelta(microseconds=at)).date().isoformat()


# ---- Who sells, and who buys ----------------------------------------------------------------------------------------------

GERMAN_SELLER = "entity_" + "1" * 32
FRENCH_SELLER = "entity_" + "2" * 32

_GERMAN = LegalEntity(
    id=GERMAN_SELLER,
    name="Inferenz & Söhne GmbH",
    address=Address(street="Rechenweg 1", postal_code="10115", city="Berlin", country="DE"),
    vat_id="DE136695976",
    tax_number="12/345/67890",
    registration="HRB 12345 B",
    contact=Contact(name="Accounts", phone="+49 30 123456", email="billing@seller.example"),
    electronic_address=ElectronicAddress(scheme="EM", address="billing@seller.example"),
    bank_account=BankAccount(holder="Inferenz GmbH", iban="DE89370400440532013000", bic="COBADEFFXXX"),
    invoice_series="RE-2026",
    credit_note_series="GS-2026",
    time_zone="Europe/Berlin",
    grace_days=3,
    dunning=(DunningStep(after_days=7, action=DunningAction.REMIND), DunningStep(after_days=30, action=DunningAction.RESTRICT)),
    created_at=0,
)
_FRENCH = msgspec.structs.replace(
    _GERMAN,
    id=FRENCH_SELLER,
    name="Inférence SA",
    address=Address(street="Rue 1", postal_code="75001", city="Paris", country="FR"),
    vat_id="FR40303265045",
    registration="RCS Paris 303 265 045",
    bank_account=BankAccount(holder="Inférence SA", iban="FR1420041010050500013M02606"),
    invoice_series="F-2026",
    credit_note_series="A-2026",
    time_zone="Europe/Paris",
    grace_days=None,
)


def list_sellers(year: int) -> list[LegalEntity]:
    """Return the sellers with the series of a year. The German one issues by itself, the French one wants an approval."""
    return [
        msgspec.structs.replace(
            each,
            invoice_series=each.invoice_series.replace("2026", str(year)),
            credit_note_series=each.credit_note_series.replace("2026", str(year)),
        )
        for each in (_GERMAN, _FRENCH)
    ]


class Buyer(NamedTuple):
    """Facts of a buyer by which its tax is decided, and that tax for each seller in hundredths of a percent."""

    country: str
    is_business: bool
    vat_id: str
    rates: Mapping[str, int]


BUYERS = (
    Buyer("DE", True, "DE129273398", {GERMAN_SELLER: 1900, FRENCH_SELLER: 0}),
    Buyer("FR", True, "FR40303265045", {GERMAN_SELLER: 0, FRENCH_SELLER: 2000}),
    Buyer("FR", False, "", {GERMAN_SELLER: 2000, FRENCH_SELLER: 2000}),
    Buyer("CH", True, "", {GERMAN_SELLER: 0, FRENCH_SELLER: 0}),
    Buyer("US", True, "", {GERMAN_SELLER: 0, FRENCH_SELLER: 0}),
)


# ---- Customers ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Customer:
    """An organization of the year, of whose requests the first can end at `starts_at` and none at `ends_at` or later. `contracts`: as they
    were made."""

    index: int
    id: str
    project_ids: tuple[str, ...]
    key_id: str
    currency: str
    zone: str
    seller_id: str
    buyer: Buyer
    starts_at: int
    ends_at: int
    months: int
    weight: float
    contracts: list[Contract] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Return the smallest amount that can be paid, in pico-currency."""
        return int(10 ** (12 - MINOR_UNITS[self.currency]))

    def amount(self, euros: float) -> int:
        """Return about what so many euros are, whole in the smallest unit of its currency, in pico-currency."""
        return round(euros * SCALES[self.currency] * 10 ** MINOR_UNITS[self.currency]) * self.step

    def account(self) -> BillingAccount:
        """Return its billing account."""
        check = VatCheck(vat_id=self.buyer.vat_id, checked_at=1, source="VIES", consultation_number="WAPIAAAA")
        return BillingAccount(
            organization_id=self.id,
            legal_entity_id=self.seller_id,
            name=f"Customer {self.index} <AG>",
            address=Address(street="Street 2", postal_code="12345", city="Town", country=self.buyer.country),
            is_business=self.buyer.is_business,
            vat_id=self.buyer.vat_id,
            vat_check=check if self.buyer.vat_id else None,
            contact=Contact(name="Purchasing"),
            electronic_address=ElectronicAddress(scheme="EM", address=f"c{self.index}@customer.example"),
            language=Language.GERMAN if self.buyer.country in ("DE", "CH") else Language.ENGLISH,
            payment_days=14,
            buyer_reference=f"REF-{self.index}",
            purchase_order=f"PO-{self.index}" if self.index % 2 else "",
            cost_centre="4711" if self.index % 3 else "",
        )


def make_customers(count: int, months: int, chance: random.Random) -> list[Customer]:
    """Return so many customers over all time zones, currencies, sellers and kinds of buyers."""
    found = []
    for index in range(count):
        zone, currency = ZONES[index % len(ZONES)], CURRENCIES[(index + index // len(ZONES)) % len(CURRENCIES)]
        seller_id = FRENCH_SELLER if currency == "USD" else GERMAN_SELLER
        found.append(
            Customer(
                index=index,
                id=f"org_{index + 1:032x}",
                project_ids=tuple(f"proj_{2 * index + part + 1:032x}" for part in range(2)),
                key_id=f"key_{index + 1:032x}",
                currency=currency,
                zone=zone,
                seller_id=seller_id,
                buyer=BUYERS[(index + index // 5) % len(BUYERS)],
                starts_at=month_start(zone, 0),
                ends_at=month_start(zone, months),
                months=months,
                weight=chance.choice((0.5, 1.0, 1.5, 3.0)),
            )
        )
    return found


# ---- Contracts ------------------------------------------------------------------------------------------------------------


class Agreement(NamedTuple):
    """A contract that a customer makes. `agreed_at`: on which day the operator enters it. The one before ends where it begins."""

    agreed_at: int
    valid_from: int
    valid_until: int
    terms: ContractTerms


def list_agreements(customer: Customer) -> list[Agreement]:
    """Return the contracts of a customer's year, in order: eight kinds, four of which change their plan at once or at the bound of a
    period."""
    start, end, before = customer.starts_at, customer.ends_at, customer.starts_at - DAY_US
    middle = month_start(customer.zone, customer.months // 2)
    at_once = (middle + 12 * DAY_US + 13 * 3600 * SECOND_US + 37 * SECOND_US) // SECOND_US * SECOND_US
    make = lambda name, **fields: ContractTerms(name=name, currency=customer.currency, **fields)  # noqa: E731
    fee = Fee(name="Platform", amount_pico=customer.amount(49) + 1, is_per_seat=False)
    seats = Fee(name="Seat", amount_pico=customer.amount(7.5), is_per_seat=True)
    scale = SCALES[customer.currency]

    def tiers(billing_class: str, schedule: Schedule, edge: int, *units: int) -> TieredPrice:
        steps = (Tier(up_to=edge, unit_price_pico=units[0] * scale), Tier(up_to=None, unit_price_pico=units[1] * scale))
        return TieredPrice(model="llama", service_tier="standard", billing_class=billing_class, schedule=schedule, tiers=steps)

    discounted = make("Discount", discount_bp=1_000, fees=(fee,))
    match customer.index % 8:
        case 1:
            dearer = make("Larger", discount_bp=1_750, fees=(fee, seats), seats=3)
            return [Agreement(before, start, end, discounted), Agreement(at_once - DAY_US, at_once, end, dearer)]
        case 2:
            graduated = make(
                "Tiers",
                tiered_prices=(tiers("output", Schedule.GRADUATED, 3_000_000, 1_100_000, 800_000),),
                free_units=(FreeUnits(model="llama", service_tier="standard", billing_class="input", quantity=2_000_000),),
            )
            return [Agreement(before, start, end, graduated), Agreement(middle - 3 * DAY_US, middle, end, discounted)]
        case 3:
            volume = make(
                "Volume",
                tiered_prices=(tiers("input", Schedule.VOLUME, 5_000_000, 300_000, 200_000),),
                minimum_pico=customer.amount(60),
            )
            return [Agreement(before, start, end, volume)]
        case 4:
            prepaid = make("Prepaid", commitment=Commitment(amount_pico=customer.amount(150), is_prepaid=True), discount_bp=500)
            return [Agreement(before, start, end, prepaid)]
        case 5:
            committed = make("Committed", commitment=Commitment(amount_pico=customer.amount(2_000), is_prepaid=False))
            return [Agreement(before, start, middle, committed), Agreement(middle - DAY_US, middle, end, discounted)]
        case 6:
            levels = (
                ServiceLevel(objective=Objective.AVAILABILITY, target_bp=9_990, credit_bp=700),
                ServiceLevel(objective=Objective.FIRST_TOKEN, target_bp=9_500, credit_bp=300, within_ms=400),
            )
            promised = make("Promised", service_levels=levels, fees=(seats,), seats=25)
            return [Agreement(before, start, end, promised)]
        case _:
            return []


# ---- Prices ---------------------------------------------------------------------------------------------------------------

Series = tuple[str, ServiceTier]
"""A model in a service tier."""

BASE_UNITS: Mapping[Series, Mapping[str, int]] = {
    ("llama", ServiceTier.STANDARD): {"input": 270_000, "cached_input": 27_000, "output": 1_100_000, "reasoning": 1_100_000},
    ("llama", ServiceTier.BATCH): {"input": 135_000, "cached_input": 13_500, "output": 550_000, "reasoning": 550_000},
    ("whisper", ServiceTier.STANDARD): {"seconds": 100_000_001},
    ("flux", ServiceTier.STANDARD): {"images": 40_000_000_003, "pixels": 7_001},
    ("embed", ServiceTier.STANDARD): {"input": 20_001, "request": 5},
}
"""Prices of January in euros: pico-currency of one unit, by billing class."""

MODELS = tuple(dict.fromkeys(model for model, _ in BASE_UNITS))
MAIN_CLASSES = ("input", "cached_input", "output", "reasoning", "request")


class PriceChange(NamedTuple):
    """Prices that are published. `at`: the day on which it is done. Whole units become `units x percent / 100 + odd`."""

    at: int
    valid_from: int
    percent: int
    odd: int


def list_price_changes(months: int) -> list[PriceChange]:
    """Return the price changes of the year after those of January: in the middle of a month, at the start of one, and in summer."""
    second, middle, last = (month_start("UTC", number) for number in (min(1, months - 1), months // 2, max(months - 2, 1)))
    return [
        PriceChange(second - 5 * DAY_US, second + 9 * DAY_US + 12_345_678, 90, 1),
        PriceChange(middle - 20 * DAY_US, middle, 110, 3),
        PriceChange(last - DAY_US, last + 15 * DAY_US, 95, 7),
    ][: max(1, months // 3)]


def make_per_class(values: Mapping[str, int]) -> dict[str, Any]:
    """Return the fields of quantities or unit prices."""
    other = {name: value for name, value in values.items() if name not in MAIN_CLASSES}
    main = {name: value for name, value in values.items() if name in MAIN_CLASSES}
    return main | {"other": OtherClasses(**other)} if other else main


def make_line(series: Series, units: Mapping[str, int]) -> DraftLine:
    """Return a price as it is published."""
    return DraftLine(model=series[0], tier=series[1], unit_prices=UnitPrices(**make_per_class(units)), class_table=CLASS_TABLE)


class Offer(NamedTuple):
    """Price of a request: the version that its record names, the instant of the terms, and what each unit costs in pico-currency."""

    version_id: str
    terms_valid_from: int
    units: Mapping[str, int]


class _Version(NamedTuple):
    valid_from: int
    id: str
    units: Mapping[str, int]


class _Terms(NamedTuple):
    valid_from: int
    book_id: str
    discount_bp: int


class Tariffs:
    """All prices and terms, by instant."""

    def __init__(self) -> None:
        self._versions: dict[tuple[str, Series], list[_Version]] = {}
        self._terms: dict[str, list[_Terms]] = {}

    def publish(self, book_id: str, series: Series, valid_from: int, version_id: str, units: Mapping[str, int]) -> None:
        """Note a price of a book."""
        self._versions.setdefault((book_id, series), []).append(_Version(valid_from, version_id, units))

    def agree(self, organization_id: str, book_id: str, discount_bp: int, valid_from: int) -> None:
        """Note the book and the discount by which an organization pays from an instant on."""
        self._terms.setdefault(organization_id, []).append(_Terms(valid_from, book_id, discount_bp))

    def list_last(self, book_id: str) -> dict[Series, Mapping[str, int]]:
        """Return the latest unit prices of a book."""
        return {series: versions[-1].units for (book, series), versions in self._versions.items() if book == book_id}

    def find(self, organization_id: str, series: Series, at: int) -> Offer:
        """Return the price of a request that was admitted at an instant."""
        terms = self._terms[organization_id]
        paid_by = terms[bisect_right(terms, at, key=lambda each: each.valid_from) - 1]
        versions = self._versions[paid_by.book_id, series]
        version = versions[bisect_right(versions, at, key=lambda each: each.valid_from) - 1]
        if not paid_by.discount_bp:
            return Offer(version.id, paid_by.valid_from, version.units)
        kept = Fraction(10_000 - paid_by.discount_bp, 10_000)
        units = {name: round(unit * kept) for name, unit in version.units.items()}  # of a Fraction: half to even
        return Offer(f"{version.id}-{paid_by.discount_bp}", paid_by.valid_from, units)


# ---- Requests -------------------------------------------------------------------------------------------------------------


class Request(NamedTuple):
    """A request that was sent. `amounts`: what each class of it costs by the rules of outcomes, in pico-currency."""

    id: str
    customer: Customer
    project_id: str
    series: Series
    offer: Offer
    admitted_at: int
    ended_at: int
    first_token_at: int | None
    outcome: Outcome
    is_test: bool
    quantities: Mapping[str, int]
    amounts: Mapping[str, int]

    @property
    def used(self) -> PerClass:
        """Return its quantities as a record states them."""
        return Quantities(**make_per_class(self.quantities))


ALWAYS_BILLED = {Outcome.COMPLETED, Outcome.CLIENT_CANCELLED, Outcome.BUDGET_STOPPED, Outcome.GATEWAY_CRASH}
GENERATED = ("output", "reasoning", "audio_output", "image_output")


def find_amounts(outcome: Outcome, quantities: Mapping[str, int], units: Mapping[str, int], *, is_test: bool = False) -> dict[str, int]:
    """Return what a request costs by class (docs/outcomes.md): a failed one is billed only where something was delivered, the request
    itself only where it completed, and nothing of a test key."""
    if is_test or not (outcome in ALWAYS_BILLED or any(quantities.get(name) for name in GENERATED)):
        return {}
    billed = {**quantities, "request": int(outcome is Outcome.COMPLETED)}
    return {name: count * units.get(name, 0) for name, count in billed.items() if count * units.get(name, 0)}


OUTCOMES = (*[Outcome.COMPLETED] * 30, Outcome.CLIENT_CANCELLED, Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT, Outcome.GATEWAY_CRASH)


def make_quantities(model: str, chance: random.Random) -> dict[str, int]:
    """Return what a request uses."""
    match model:
        case "whisper":
            return {"seconds": chance.randrange(1, 7_200)}
        case "flux":
            images = chance.randrange(1, 40)
            return {"images": images, "pixels": images * chance.choice((512 * 512, 1024 * 1024, 1536 * 1024))}
        case "embed":
            return {"input": chance.randrange(1, 9_000_000)}
        case _:
            output = chance.choice((0, chance.randrange(1, 900_000)))
            return {
                "input": chance.randrange(1, 4_000_000),
                "cached_input": chance.choice((0, chance.randrange(1, 2_000_000))),
                "output": output,
                "reasoning": chance.randrange(output // 3 + 1),
            }


def list_ends(customer: Customer, day_at: int, chance: random.Random) -> Iterator[int]:
    """Yield the instants at which requests of a customer end on a day of UTC: some at random, two at the bound of each of its months, and
    two while its clocks are changed."""
    until = day_at + DAY_US
    wanted = [day_at + chance.randrange(DAY_US) for _ in range(int(customer.weight * chance.random() * 2 + 0.5))]
    for number in range(customer.months + 1):
        bound = month_start(customer.zone, number)
        wanted += [at for at in (bound - 1, bound) if day_at <= at < until]
    zone = ZoneInfo(customer.zone)
    hours = [EPOCH + timedelta(microseconds=day_at, hours=hour) for hour in range(25)]
    offsets = [hour.astimezone(zone).utcoffset() for hour in hours]
    for hour, (before, after) in enumerate(pairwise(offsets)):
        if before != after:
            wanted += [day_at + hour * 3600 * SECOND_US + chance.randrange(3600 * SECOND_US) for _ in range(2)]
    yield from (at for at in wanted if customer.starts_at <= at < customer.ends_at)


def make_request(number: int, customer: Customer, ended_at: int, tariffs: Tariffs, chance: random.Random) -> Request:
    """Return a request that ends at an instant. `number`: by which it is named."""
    series = chance.choice((*[("llama", ServiceTier.STANDARD)] * 4, *list(BASE_UNITS)[1:]))
    admitted_at = max(ended_at - chance.choice((250_000, 30 * SECOND_US, 1800 * SECOND_US)), customer.starts_at - 3600 * SECOND_US)
    offer = tariffs.find(customer.id, series, admitted_at)
    outcome, is_test = chance.choice(OUTCOMES), chance.random() < 0.02
    quantities = make_quantities(series[0], chance)
    first_token_at = None if outcome is Outcome.UPSTREAM_ERROR else min(admitted_at + chance.randrange(50, 600) * 1000, ended_at)
    return Request(
        id=f"req_{number:032x}",
        customer=customer,
        project_id=chance.choice(customer.project_ids),
        series=series,
        offer=offer,
        admitted_at=admitted_at,
        ended_at=ended_at,
        first_token_at=first_token_at,
        outcome=outcome,
        is_test=is_test,
        quantities=quantities,
        amounts=find_amounts(outcome, quantities, offer.units, is_test=is_test),
    )
