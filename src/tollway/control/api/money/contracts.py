"""Contracts of organizations: operators agree on them, end them and preview bills; tenants read their own, and what a period comes to."""

from typing import Annotated, Literal

from fastapi import Depends, Query
from pydantic import Field

from tollway.control.api import routes
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import (
    Currency,
    Identified,
    In,
    ListOut,
    ModelName,
    Name,
    Out,
    PageQuery,
    Second,
    Sum,
    find_seconds,
    list_out,
    seconds,
)
from tollway.control.identity.access import Tenant
from tollway.control.invoicing import parties
from tollway.control.money import contracts, periods
from tollway.control.money.contracts import BillPreview, WantedContract
from tollway.domain import ids, money
from tollway.domain.billing_classes import BILLING_CLASSES, BillingClass, format_unit_price, parse_unit_price
from tollway.domain.contracts import (
    ENTRIES_MAX,
    SEATS_MAX,
    SERVICE_LEVELS_MAX,
    TIERS_MAX,
    WHOLE_BP,
    Commitment,
    Contract,
    ContractTerms,
    Fee,
    FreeUnits,
    LineKind,
    Objective,
    Schedule,
    ServiceLevel,
    Tier,
    TieredPrice,
)
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, Fault
from tollway.domain.keys import Operator
from tollway.domain.periods import Period
from tollway.domain.roles import Permission
from tollway.domain.usage import ServiceTier

router = routes.router(tags=["contracts"])

OperatorReader = Annotated[Operator, Depends(may(Permission.PLATFORM_PRICES_READ))]
OperatorWriter = Annotated[Operator, Depends(may(Permission.PLATFORM_PRICES_WRITE))]
Reader = Annotated[Tenant, Depends(may(Permission.COSTS_READ))]

Quantity = Annotated[int, Field(ge=1, le=2**53 - 1)]
_UNITS = {row.billing_class: row.unit for row in BILLING_CLASSES}

BasisPoints = Annotated[int, Field(ge=0, le=WHOLE_BP)]


class TierFields(In):
    """Price of the units of a class up to a number of them in a period."""

    up_to: Annotated[
        Quantity | None,
        Field(description="The last unit of the tier; null for the last tier.", examples=[1_000_000_000]),
    ]
    price: Annotated[
        str,
        Field(
            max_length=32,
            description="As in price lists: per 1,000,000 tokens, characters or pixels, otherwise per unit.",
            examples=["0.20"],
        ),
    ]


class SkuFields(In):
    """A billing class of a model in a service tier."""

    model: ModelName
    service_tier: Annotated[ServiceTier, Field(strict=False, description="The service tier.", examples=["standard"])] = ServiceTier.STANDARD
    billing_class: Annotated[BillingClass, Field(strict=False, description="The billing class.", examples=["output"])]


class TieredPriceFields(SkuFields):
    """Price of what a class of a model comes to in a period, in place of that of the price list."""

    schedule: Annotated[
        Schedule,
        Field(
            strict=False,
            description="`graduated`: each unit at the price of its tier. `volume`: all at that of the tier that the quantity reaches.",
            examples=["graduated"],
        ),
    ]
    tiers: Annotated[list[TierFields], Field(min_length=1, max_length=TIERS_MAX, description="Tiers in the order of their ends.")]


class FreeUnitsFields(SkuFields):
    """Units of a class of a model that cost nothing in each period."""

    quantity: Annotated[Quantity, Field(description="Units of the class, 1 or more.", examples=[5_000_000])]


class FeeFields(In):
    """Fee of a whole period."""

    name: Annotated[Name, Field(description="Its name, which stands on invoices.", examples=["Platform"])]
    amount: Annotated[Sum, Field(description="Of a whole period, as a decimal string.", examples=["500"])]
    per_seat: Annotated[bool, Field(description="Whether it is due for each seat.", examples=[False])] = False


class CommitmentFields(In):
    """Amount that the organization commits to use while the contract lasts."""

    amount: Annotated[Sum, Field(description="As a decimal string.", examples=["120000"])]
    prepaid: Annotated[
        bool,
        Field(
            description="True: billed in the first period, and usage draws on it. False: what is missing is billed in the last one.",
            examples=[True],
        ),
    ] = False


class ServiceLevelFields(In):
    """Share of requests that must meet an objective, and what is credited in a period in which it is missed."""

    objective: Annotated[
        Objective,
        Field(strict=False, description="`availability` or `first_token`.", examples=["first_token"]),
    ]
    target_bp: Annotated[BasisPoints, Field(description="Share of requests that must meet it, in basis points.", examples=[9_900])]
    credit_bp: Annotated[BasisPoints, Field(description="Share of the period's usage that is credited, in basis points.", examples=[1_000])]
    within_ms: Annotated[
        int, Field(ge=0, le=3_600_000, description="Time to the first token, in milliseconds; 0 for availability.", examples=[800])
    ] = 0


class ContractFields(In):
    """Terms of a contract."""

    name: Annotated[Name, Field(description="Its name.", examples=["Enterprise 2027"])]
    currency: Annotated[Currency, Field(description="The organization's currency; any other one is refused.", examples=["EUR"])]
    valid_from: Annotated[
        Second | None, Field(description="When it begins, in Unix seconds (UTC); null for now.", examples=[1798761600])
    ] = None
    valid_until: Annotated[
        Second | None, Field(description="When it ends, exclusive, in Unix seconds (UTC); null for no end.", examples=[1830297600])
    ] = None
    discount_bp: Annotated[BasisPoints, Field(description="Discount on all usage, in basis points.", examples=[1_000])] = 0
    tiered_prices: Annotated[
        list[TieredPriceFields],
        Field(max_length=ENTRIES_MAX, description="Prices by quantity of a period.", examples=[[]], default_factory=list),
    ]
    free_units: Annotated[
        list[FreeUnitsFields],
        Field(max_length=ENTRIES_MAX, description="Units that cost nothing in each period.", examples=[[]], default_factory=list),
    ]
    fees: Annotated[list[FeeFields], Field(max_length=ENTRIES_MAX, description="Fees of each period.", examples=[[]], default_factory=list)]
    seats: Annotated[int, Field(ge=0, le=SEATS_MAX, description="Seats that fees per seat are due for.", examples=[25])] = 0
    minimum: Annotated[Sum | None, Field(description="Least cost of usage in a period, as a decimal string.", examples=["1000"])] = None
    commitment: Annotated[CommitmentFields | None, Field(description="Amount committed for the whole time.", examples=[None])] = None
    service_levels: Annotated[
        list[ServiceLevelFields],
        Field(max_length=SERVICE_LEVELS_MAX, description="What is promised of requests.", examples=[[]], default_factory=list),
    ]

    def wanted(self) -> WantedContract:
        """Return what is asked for, for the operation. Raises PARAMETER_INVALID for a price that is none."""
        terms = ContractTerms(
            name=self.name,
            currency=self.currency,
            discount_bp=self.discount_bp,
            tiered_prices=tuple(
                TieredPrice(
                    model=each.model,
                    service_tier=each.service_tier,
                    billing_class=each.billing_class,
                    schedule=each.schedule,
                    tiers=tuple(
                        Tier(up_to=tier.up_to, unit_price_pico=_parse_price(each.billing_class, tier.price)) for tier in each.tiers
                    ),
                )
                for each in self.tiered_prices
            ),
            free_units=tuple(
                FreeUnits(model=each.model, service_tier=each.service_tier, billing_class=each.billing_class, quantity=each.quantity)
                for each in self.free_units
            ),
            fees=tuple(Fee(name=each.name, amount_pico=money.parse_sum(each.amount), is_per_seat=each.per_seat) for each in self.fees),
            seats=self.seats,
            minimum_pico=0 if self.minimum is None else money.parse_sum(self.minimum),
            commitment=None
            if self.commitment is None
            else Commitment(amount_pico=money.parse_sum(self.commitment.amount), is_prepaid=self.commitment.prepaid),
            service_levels=tuple(
                ServiceLevel(objective=each.objective, target_bp=each.target_bp, credit_bp=each.credit_bp, within_ms=each.within_ms)
                for each in self.service_levels
            ),
        )
        return WantedContract(
            valid_from=None if self.valid_from is None else self.valid_from * 1_000_000,
            valid_until=None if self.valid_until is None else self.valid_until * 1_000_000,
            terms=terms,
        )


def _format_price(price: TieredPrice, tier: Tier) -> str:
    return format_unit_price(_UNITS[BillingClass(price.billing_class)], tier.unit_price_pico)


def _parse_price(billing_class: BillingClass, text: str) -> int:
    try:
        return parse_unit_price(_UNITS[billing_class], text)
    except ValueError as error:
        raise Fault(PARAMETER_INVALID, param="tiered_prices", message=f"The price {text!r} of {billing_class} is {error}.") from error


class ContractOut(Identified):
    """A contract of an organization. Its terms never change, and it only ever ends earlier."""

    object: Literal["organization.contract"] = "organization.contract"
    organization_id: str
    valid_from: Annotated[int, Field(description="When it begins, in Unix seconds (UTC).", examples=[1798761600])]
    valid_until: Annotated[int | None, Field(description="When it ends, exclusive, in Unix seconds (UTC).", examples=[1830297600])]
    created_at: int
    terms: Annotated[ContractFields, Field(description="What was agreed.", examples=[{"name": "Enterprise 2027", "currency": "EUR"}])]


class ContractCreate(ContractFields):
    """A contract to agree on."""

    replaces: Annotated[
        str | None,
        Field(max_length=64, description="A contract that ends where this one begins; null for none.", examples=["contract_0"]),
    ] = None


class ContractEnd(In):
    """The end of a contract."""

    valid_until: Annotated[
        Second | None, Field(description="When it ends, exclusive, in Unix seconds (UTC); null for now.", examples=[1798761600])
    ] = None


class BillPreviewCreate(In):
    """A bill to look at."""

    period_id: Annotated[str, Field(max_length=64, description="The billing period, open or closed.", examples=["period_0"])]
    contract: Annotated[
        ContractFields | None,
        Field(description="A contract that counts for the whole period in place of those that there are; null for these.", examples=[None]),
    ] = None
    as_change: Annotated[
        bool,
        Field(
            description="Whether the contract counts from its own beginning on, and the present one until then.",
            examples=[True],
        ),
    ] = False


class ContractLineOut(Out):
    """An amount that a contract adds to a period; below zero gives something back."""

    contract_id: Annotated[str, Field(description="The contract.", examples=["contract_0"])]
    kind: Annotated[LineKind, Field(description="What it is for.", examples=["discount"])]
    amount: Annotated[str, Field(description="As an exact decimal string.", examples=["-12.50"])]
    model: Annotated[str, Field(description="The model that it is about; empty for the whole period.", examples=[""])]
    billing_class: Annotated[str, Field(description="The billing class that it is about; empty for all.", examples=[""])]
    quantity: Annotated[str, Field(description="Units, seats or requests that it is about; 0 where it has none.", examples=["0"])]
    name: Annotated[str, Field(description="The name of a fee.", examples=["Platform"])]


class BillOut(Out):
    """Bill of a period before tax, with contracts: final if it is closed, otherwise by what is booked so far. Amounts are exact."""

    object: Literal["organization.bill"] = "organization.bill"
    period_id: str
    currency: str
    is_final: Annotated[bool, Field(description="Whether the period is closed.", examples=[False])]
    usage: Annotated[str, Field(description="Usage at list prices.", examples=["100.5"])]
    corrections: Annotated[str, Field(description="What corrections add.", examples=["0"])]
    credit: Annotated[str, Field(description="What credit has paid.", examples=["10"])]
    contract_lines: Annotated[list[ContractLineOut], Field(description="What contracts add.", examples=[[]])]
    total: Annotated[str, Field(description="What is owed before tax.", examples=["590.5"])]
    present_total: Annotated[
        str | None, Field(description="The total by the contracts that there are; null without a draft.", examples=["600.5"])
    ] = None
    difference: Annotated[
        str | None, Field(description="What the draft adds to it, or below zero takes away; null without a draft.", examples=["-10"])
    ] = None


def contract_out(contract: Contract) -> ContractOut:
    """Return a contract as the API shows it."""
    terms = contract.terms
    return ContractOut(
        id=contract.id,
        organization_id=contract.organization_id,
        valid_from=seconds(contract.valid_from),
        valid_until=find_seconds(contract.valid_until),
        created_at=seconds(contract.created_at),
        terms=ContractFields(
            name=terms.name,
            currency=terms.currency,
            valid_from=seconds(contract.valid_from),
            valid_until=find_seconds(contract.valid_until),
            discount_bp=terms.discount_bp,
            tiered_prices=[
                TieredPriceFields(
                    model=each.model,
                    service_tier=ServiceTier(each.service_tier),
                    billing_class=BillingClass(each.billing_class),
                    schedule=each.schedule,
                    tiers=[TierFields(up_to=tier.up_to, price=_format_price(each, tier)) for tier in each.tiers],
                )
                for each in terms.tiered_prices
            ],
            free_units=[
                FreeUnitsFields(
                    model=each.model,
                    service_tier=ServiceTier(each.service_tier),
                    billing_class=BillingClass(each.billing_class),
                    quantity=each.quantity,
                )
                for each in terms.free_units
            ],
            fees=[
                FeeFields(name=each.name, amount=money.format_amount(each.amount_pico), per_seat=each.is_per_seat) for each in terms.fees
            ],
            seats=terms.seats,
            minimum=money.format_amount(terms.minimum_pico) if terms.minimum_pico else None,
            commitment=None
            if terms.commitment is None
            else CommitmentFields(amount=money.format_amount(terms.commitment.amount_pico), prepaid=terms.commitment.is_prepaid),
            service_levels=[
                ServiceLevelFields(objective=each.objective, target_bp=each.target_bp, credit_bp=each.credit_bp, within_ms=each.within_ms)
                for each in terms.service_levels
            ],
        ),
    )


def bill_out(period: Period, bill: BillPreview, *, is_final: bool, present: BillPreview | None = None) -> BillOut:
    """Return what a period comes to as the API shows it. `present`: by the contracts that there are, to compare it with."""
    return BillOut(
        period_id=period.id,
        currency=period.currency.lower(),
        is_final=is_final,
        usage=money.format_amount(bill.used_pico),
        corrections=money.format_amount(bill.corrected_pico),
        credit=money.format_amount(bill.burned_pico),
        contract_lines=[
            ContractLineOut(
                contract_id=part.contract_id,
                kind=line.kind,
                amount=money.format_amount(line.amount_pico),
                model=line.model,
                billing_class=line.billing_class,
                quantity=str(line.quantity),
                name=line.name,
            )
            for part in bill.parts
            for line in part.lines
            if line.kind is not LineKind.LAPSE
        ],
        total=money.format_amount(bill.total_pico),
        present_total=None if present is None else money.format_amount(present.total_pico),
        difference=None if present is None else money.format_amount(bill.total_pico - present.total_pico),
    )


def _known(contract_id: str) -> str:
    if not ids.is_id(ids.CONTRACT, contract_id):
        raise Fault(RESOURCE_UNKNOWN, message=contracts.UNKNOWN)
    return contract_id


def _known_period(period_id: str) -> str:
    if not ids.is_id(ids.PERIOD, period_id):
        raise Fault(RESOURCE_UNKNOWN, message=periods.UNKNOWN)
    return period_id


# ---- For tenants --------------------------------------------------------------------------------------------------------


@router.get("/v1/organization/contracts")
def list_own_contracts(caller: Reader, plane: Plane, query: Annotated[PageQuery, Query()]) -> ListOut[ContractOut]:
    """The organization's contracts, in the order in which they were made."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        page = contracts.list_contracts(tx, caller.organization_id, query.window())
    return list_out(page, contract_out)


@router.get("/v1/organization/periods/{period_id}/bill")
def retrieve_bill(caller: Reader, plane: Plane, period_id: str) -> BillOut:
    """Return what a billing period comes to before tax, with contracts and credit: so far, if it is not closed."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        period = periods.get_own_period(tx, _known_period(period_id))
        return bill_out(period, contracts.find_bill(tx, period), is_final=period.closed is not None)


# ---- For operators ------------------------------------------------------------------------------------------------------


@router.post("/v1/platform/organizations/{organization_id}/contracts")
def create_contract(_caller: OperatorWriter, plane: Plane, organization_id: str, body: ContractCreate) -> ContractOut:
    """Agree on a contract with an organization. It may begin in a period that is still open. It must not overlap another one, but for the
    one that it replaces."""
    wanted = body.wanted()
    for fee in wanted.terms.fees:
        parties.refuse(parties.find_text_problem("fees", fee.name))  # it stands on invoices
    organization_id = routes.organization(organization_id)
    replaces = None if body.replaces is None else _known(body.replaces)
    with plane.database.platform() as tx:
        made = contracts.create(tx, organization_id, wanted, id=plane.new_id(ids.CONTRACT), now=plane.now(), replaces=replaces)
    return contract_out(made)


@router.post("/v1/platform/organizations/{organization_id}/contracts/{contract_id}/end")
def end_contract(_caller: OperatorWriter, plane: Plane, organization_id: str, contract_id: str, body: ContractEnd) -> ContractOut:
    """End a contract, now or at an instant before its end. What is missing of a commitment is due then."""
    at = None if body.valid_until is None else body.valid_until * 1_000_000
    with plane.database.platform() as tx:
        ended = contracts.end(tx, routes.organization(organization_id), _known(contract_id), at, now=plane.now())
    return contract_out(ended)


@router.post("/v1/platform/organizations/{organization_id}/bill_preview")
def preview_bill(_caller: OperatorReader, plane: Plane, organization_id: str, body: BillPreviewCreate) -> BillOut:
    """Compute what a billing period of an organization comes to before tax, by its contracts or by a draft of one, and the difference
    between both. Nothing is stored."""
    wanted = None if body.contract is None else body.contract.wanted()
    if wanted is None and body.as_change:
        raise Fault(PARAMETER_INVALID, param="as_change", message="A change needs the contract that is to begin.")
    with plane.database.tenant(routes.organization(organization_id), write=False) as tx:
        period = periods.get_own_period(tx, _known_period(body.period_id))
        present = contracts.find_bill(tx, period)
        if wanted is None:
            return bill_out(period, present, is_final=period.closed is not None)
        preview = contracts.preview_change if body.as_change else contracts.preview_draft
        bill = preview(tx, period, wanted, now=plane.now())
    return bill_out(period, bill, is_final=False, present=present)
