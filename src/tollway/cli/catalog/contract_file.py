"""Contracts in the platform file: their terms, checked as the API checks them, and what must happen so that an organization has them.

The terms of a contract never change, so a file that states others than the ones agreed is refused, with the fields that differ: another
plan is another contract, under another name. A contract can be made, and it can end earlier.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from tollway.domain.billing_classes import ROWS, BillingClass, parse_unit_price
from tollway.domain.contracts import (
    Commitment,
    ContractTerms,
    Fee,
    FreeUnits,
    Objective,
    Schedule,
    ServiceLevel,
    Tier,
    TieredPrice,
    find_problem,
)
from tollway.domain.money import parse_sum
from tollway.domain.periods import INSTANT_MAX
from tollway.domain.usage import ServiceTier
from tollway.settings import OperatorError


class TierFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Price of units up to `up_to` of them in a period; null for the last tier. As in price lists: per 1,000,000 tokens, or per unit."""

    up_to: int | None
    price: str


class TieredPriceFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Price of what a class of a model comes to in a period, in place of that of the price list."""

    model: str
    billing_class: BillingClass
    schedule: Schedule
    tiers: list[TierFile]
    service_tier: ServiceTier = ServiceTier.STANDARD


class FreeUnitsFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Units of a class of a model that cost nothing in each period."""

    model: str
    billing_class: BillingClass
    quantity: int
    service_tier: ServiceTier = ServiceTier.STANDARD


class FeeFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Fee of a whole period, of the organization or of each seat."""

    name: str
    amount: str
    per_seat: bool = False


class CommitmentFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Amount that the organization commits to use while the contract lasts."""

    amount: str
    prepaid: bool = False


class ServiceLevelFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Share of requests that must meet an objective, and what is credited where it is missed, both in basis points."""

    objective: Objective
    target_bp: int
    credit_bp: int
    within_ms: int = 0


class ContractFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A contract of an organization, by its name or id (docs/contracts.md). Its terms never change; `valid_until` can become earlier.
    Instants are Unix seconds; a new contract needs `valid_from`. Amounts are exact decimals."""

    valid_from: int | UnsetType = UNSET
    valid_until: int | UnsetType | None = UNSET
    currency: str | UnsetType = UNSET
    discount_bp: int = 0
    tiered_prices: list[TieredPriceFile] = []
    free_units: list[FreeUnitsFile] = []
    fees: list[FeeFile] = []
    seats: int = 0
    minimum: str | None = None
    commitment: CommitmentFile | None = None
    service_levels: list[ServiceLevelFile] = []

    def terms(self, name: str, currency: str) -> ContractTerms:
        """Return the terms that it states. Raises ValueError for an amount or a price that is none."""
        return ContractTerms(
            name=name,
            currency=currency if self.currency is UNSET else self.currency,
            discount_bp=self.discount_bp,
            tiered_prices=tuple(
                TieredPrice(
                    model=each.model,
                    service_tier=each.service_tier,
                    billing_class=each.billing_class,
                    schedule=each.schedule,
                    tiers=tuple(Tier(up_to=tier.up_to, unit_price_pico=_read_price(each, tier)) for tier in each.tiers),
                )
                for each in self.tiered_prices
            ),
            free_units=tuple(
                FreeUnits(model=each.model, service_tier=each.service_tier, billing_class=each.billing_class, quantity=each.quantity)
                for each in self.free_units
            ),
            fees=tuple(Fee(name=each.name, amount_pico=parse_sum(each.amount), is_per_seat=each.per_seat) for each in self.fees),
            seats=self.seats,
            minimum_pico=0 if self.minimum is None else parse_sum(self.minimum),
            commitment=None
            if self.commitment is None
            else Commitment(amount_pico=parse_sum(self.commitment.amount), is_prepaid=self.commitment.prepaid),
            service_levels=tuple(
                ServiceLevel(objective=each.objective, target_bp=each.target_bp, credit_bp=each.credit_bp, within_ms=each.within_ms)
                for each in self.service_levels
            ),
        )


def _read_price(price: TieredPriceFile, tier: TierFile) -> int:
    return parse_unit_price(ROWS[price.billing_class].unit, tier.price)


def check(contract: ContractFile) -> None:
    """Raise ValueError for terms that no contract can have, whatever the currency of its organization."""
    currency = "EUR" if contract.currency is UNSET else contract.currency
    until = None if contract.valid_until is UNSET else contract.valid_until
    problem = find_problem(contract.terms("name", currency), currency, ends=until is not None)
    if problem is not None:
        raise ValueError(f"{problem.field}: {problem.text}")
    if contract.valid_from is not UNSET and until is not None and until <= contract.valid_from:
        raise ValueError("valid_until: a contract ends after it begins")


class ContractStep(msgspec.Struct, frozen=True, kw_only=True):
    """A contract to make, or to end at another instant. `fields`: what changes, old and new."""

    name: str
    creates: bool
    fields: Mapping[str, tuple[Any, Any]]
    body: Mapping[str, Any]


def plan_contracts(
    organization: str, currency: str, there: Mapping[str, ContractFile], wanted: Mapping[str, ContractFile]
) -> Iterator[ContractStep]:
    """Yield what must happen so that an organization has the contracts of the file, those that end first. `there`: every contract that it
    has. Raises OperatorError for another currency, for a new contract that does not say when it begins, for terms that changed, for an end
    that becomes later, and for contracts that overlap."""
    steps = []
    for name, contract in wanted.items():
        where = f"contract {organization} / {name}"
        if contract.currency not in (UNSET, currency):
            raise OperatorError(f"{where} is in {contract.currency}, the organization is billed in {currency}", exit_code=2)
        if name not in there and contract.valid_from is UNSET:
            raise OperatorError(f"{where} is new and does not say when it begins", hint="add `valid_from`, in Unix seconds", exit_code=2)
        if name not in there:
            steps.append(_create(name, currency, contract))
        elif (step := _change(where, name, currency, there[name], contract)) is not None:
            steps.append(step)
    _refuse_overlaps(organization, {**there, **wanted}, there)
    yield from sorted(steps, key=lambda step: step.creates)


def _create(name: str, currency: str, contract: ContractFile) -> ContractStep:
    body = {key: value for key, value in msgspec.to_builtins(contract).items() if value is not None}
    body = {"name": name, **body, "currency": currency}
    return ContractStep(name=name, creates=True, fields={key: (None, value) for key, value in body.items() if key != "name"}, body=body)


def _change(where: str, name: str, currency: str, there: ContractFile, wanted: ContractFile) -> ContractStep | None:
    before, after = there.terms(name, currency), wanted.terms(name, currency)
    changed = [field for field in ContractTerms.__struct_fields__ if getattr(before, field) != getattr(after, field)]
    if wanted.valid_from not in (UNSET, there.valid_from):
        changed.append("valid_from")
    if changed:
        raise OperatorError(
            f"{where} was agreed otherwise and never changes: {', '.join(changed)}",
            hint="let it end (`valid_until`), and state the new terms as a contract of another name that begins then",
            exit_code=2,
        )
    old = None if there.valid_until is UNSET else there.valid_until
    if wanted.valid_until in (UNSET, old):
        return None
    if wanted.valid_until is None or (old is not None and wanted.valid_until > old):
        raise OperatorError(f"{where} ends at {old} and cannot end later", hint="state another contract that begins then", exit_code=2)
    return ContractStep(
        name=name, creates=False, fields={"valid_until": (old, wanted.valid_until)}, body={"valid_until": wanted.valid_until}
    )


def _refuse_overlaps(organization: str, contracts: Mapping[str, ContractFile], there: Mapping[str, ContractFile]) -> None:
    """Raise OperatorError if two contracts are valid at one instant."""
    spans = []
    for name, contract in contracts.items():
        known = there.get(name, ContractFile())
        start = contract.valid_from if contract.valid_from is not UNSET else known.valid_from
        until = contract.valid_until if contract.valid_until is not UNSET else known.valid_until
        assert start is not UNSET, "a contract that there is has begun, and a new one says when"
        spans.append((start, INSTANT_MAX if until is UNSET or until is None else until, name))
    for (_, until, before), (start, _, after) in pairwise(sorted(spans)):
        if start < until:
            raise OperatorError(
                f"contracts {before} and {after} of {organization} overlap: the first one ends at {until}, the second begins at {start}"
                if until != INSTANT_MAX
                else f"contracts {before} and {after} of {organization} overlap: the first one has no end",
                hint="let the first one end where the second begins (`valid_until`)",
                exit_code=2,
            )
