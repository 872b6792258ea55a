"""Credits of organizations: operators grant and void them, and hold requests to them; tenants see what is left and what was booked."""

from typing import Annotated, Literal

from fastapi import Depends, Query
from pydantic import Field

from tollway.control import publish
from tollway.control.api import routes
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import (
    Currency,
    Deleted,
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
from tollway.control.money import budgets, credits
from tollway.control.money.credits import GrantStanding, WantedGrant
from tollway.domain import ids, money
from tollway.domain.credits import (
    COOLOFF_SECONDS_MAX,
    COOLOFF_SECONDS_MIN,
    PRIORITY_MAX,
    CreditMove,
    CreditTransaction,
    GrantCategory,
    Topup,
    TopupInterval,
    TopupRule,
)
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.keys import Operator
from tollway.domain.roles import Permission

router = routes.router(tags=["credits"])

Reader = Annotated[Tenant, Depends(may(Permission.COSTS_READ))]
OperatorWriter = Annotated[Operator, Depends(may(Permission.PLATFORM_ACCOUNTS_WRITE))]
OperatorReader = Annotated[Operator, Depends(may(Permission.PLATFORM_ACCOUNTS_READ))]


class CreditGrantCreate(In):
    """Credit for an organization."""

    category: Annotated[
        GrantCategory, Field(strict=False, description="The reason: `paid`, `promotional` or `goodwill`.", examples=["paid"])
    ]
    amount: Annotated[Sum, Field(description="How much, above zero, as a decimal string in the organization's currency.", examples=["100"])]
    currency: Annotated[
        Currency | None,
        Field(description="The organization's currency; any other one is refused. Null for the organization's.", examples=["EUR"]),
    ] = None
    cost_basis_percent: Annotated[
        int | None,
        Field(
            ge=0,
            le=100,
            description="What is paid for it, in percent of the amount. Null: 100 if `paid`, else 0.",
            examples=[100],
        ),
    ] = None
    priority: Annotated[
        int, Field(ge=0, le=PRIORITY_MAX, description="The order in which grants burn, the lowest number first.", examples=[0])
    ] = 0
    effective_at: Annotated[
        Second | None,
        Field(description="When it begins, in Unix seconds (UTC), a whole minute; null for now.", examples=[1790000040]),
    ] = None
    expires_at: Annotated[
        Second | None,
        Field(description="When it expires, exclusive, in Unix seconds (UTC), a whole minute; null for never.", examples=[1821536040]),
    ] = None
    project_id: Annotated[
        str | None, Field(max_length=64, description="The project whose requests alone use it; null for all.", examples=["proj_0"])
    ] = None
    model: Annotated[
        ModelName | None,
        Field(description="The model, or the group of models (`group:large`), whose requests alone use it; null for all.", examples=[None]),
    ] = None
    reference: Annotated[
        Name | None,
        Field(description="The payment or the decision behind it, in your words; the organization reads it.", examples=["Order 4711"]),
    ] = None

    topup_id: Annotated[
        str | None, Field(max_length=64, description="The top-up that it answers, which is answered once; null for none.", examples=[None])
    ] = None

    def wanted(self) -> WantedGrant:
        """Return what is asked for, for the operation."""
        return WantedGrant(
            category=self.category,
            amount_pico=money.parse_sum(self.amount),
            currency=self.currency,
            cost_basis_bp=None if self.cost_basis_percent is None else 100 * self.cost_basis_percent,
            priority=self.priority,
            effective_at=None if self.effective_at is None else self.effective_at * 1_000_000,
            expires_at=None if self.expires_at is None else self.expires_at * 1_000_000,
            reference=self.reference or "",
            project_id=self.project_id,
            model=self.model or "",
            topup_id=self.topup_id,
        )


class CreditGrantOut(Identified):
    """Credit of an organization, and what is left of it."""

    object: Literal["organization.credit_grant"] = "organization.credit_grant"
    category: Annotated[GrantCategory, Field(description="Why it was granted.", examples=["paid"])]
    amount: Annotated[str, Field(description="How much was granted, as a decimal string.", examples=["100"])]
    currency: str
    used: Annotated[str, Field(description="What usage has burned of it, provisional for open billing periods.", examples=["12.5"])]
    left: Annotated[str, Field(description="What is left of it, as a decimal string.", examples=["87.5"])]
    cost_basis_percent: Annotated[int, Field(description="What was paid for it, 0 to 100 percent of the amount.", examples=[100])]
    priority: Annotated[int, Field(description="The order in which grants burn, 0 to 1000, the lowest number first.", examples=[0])]
    effective_at: Annotated[int, Field(description="When it can be used from, in Unix seconds (UTC).", examples=[1790000040])]
    expires_at: Annotated[int | None, Field(description="When it expires, in Unix seconds (UTC); null for never.", examples=[1821536040])]
    voided_at: Annotated[int | None, Field(description="When it ended before its time, in Unix seconds (UTC).", examples=[None])]
    project_id: Annotated[str | None, Field(description="The project whose requests alone use it; null for all.", examples=[None])]
    model: Annotated[str | None, Field(description="The model or group of models whose requests alone use it.", examples=[None])]
    models: Annotated[list[str], Field(description="The models that `model` meant when it was granted; empty for all.", examples=[[]])]
    reference: Annotated[str, Field(description="The payment or the decision behind it.", examples=["Order 4711"])]
    created_at: int


class TopupRuleWrite(In):
    """The rule by which more credit is asked for."""

    threshold: Annotated[
        Sum | None,
        Field(description="Ask once less than this is usable, above zero, as a decimal string; null for no threshold.", examples=["10"]),
    ] = None
    every: Annotated[
        TopupInterval | None,
        Field(
            strict=False,
            description="Ask once in each calendar `week` or `month` of the organization, from the next one on; null for neither.",
            examples=["month"],
        ),
    ] = None
    amount: Annotated[Sum, Field(description="How much to ask for, above zero, as a decimal string.", examples=["100"])]
    cooloff_seconds: Annotated[
        int,
        Field(
            ge=COOLOFF_SECONDS_MIN,
            le=COOLOFF_SECONDS_MAX,
            description="Least time from any top-up to one that is asked for by the threshold, in seconds.",
            examples=[86_400],
        ),
    ] = 86_400

    def rule(self) -> TopupRule:
        """Return what is asked for, for the operation."""
        if self.threshold is not None and money.parse_sum(self.threshold) <= 0:
            raise Fault(PARAMETER_INVALID, param="threshold", message="'threshold' must be more than zero; null is for no threshold.")
        threshold_pico = 0 if self.threshold is None else money.parse_sum(self.threshold)
        return TopupRule(threshold_pico, money.parse_sum(self.amount), self.cooloff_seconds, self.every)


class TopupRuleOut(Out):
    """The rule by which more credit is asked for."""

    object: Literal["organization.credit_topup_rule"] = "organization.credit_topup_rule"
    threshold: Annotated[
        str | None,
        Field(description="More is asked for once less than this is usable, as a decimal string; null for no threshold.", examples=["10"]),
    ]
    every: Annotated[
        TopupInterval | None,
        Field(description="The calendar period in each of which it is asked for; null if none.", examples=["month"]),
    ]
    next_at: Annotated[
        int | None,
        Field(description="The start of the next period for which more is asked for, in Unix seconds (UTC).", examples=[1790812800]),
    ]
    amount: Annotated[str, Field(description="How much is asked for, as a decimal string.", examples=["100"])]
    cooloff_seconds: Annotated[
        int, Field(description="Least time from any top-up to one by the threshold, 60 to 2678400 seconds.", examples=[86_400])
    ]


class TopupOut(Identified):
    """Credit that a rule asks for."""

    object: Literal["platform.credit_topup"] = "platform.credit_topup"
    organization_id: str
    amount: Annotated[str, Field(description="How much is asked for, as a decimal string.", examples=["100"])]
    usable: Annotated[str, Field(description="What was usable then, as a decimal string.", examples=["9.5"])]
    requested_at: Annotated[int, Field(description="When it was asked for, in Unix seconds (UTC).", examples=[1790000000])]
    period_start_time: Annotated[
        int | None,
        Field(
            description="The start of the week or month for which it was asked, in Unix seconds (UTC); null if by the threshold.",
            examples=[None],
        ),
    ]
    grant_id: Annotated[str | None, Field(description="The grant that answered it; null while none has.", examples=[None])]


class CreditsOut(Out):
    """The credit of an organization, in the order in which it burns."""

    object: Literal["organization.credits"] = "organization.credits"
    currency: Annotated[str, Field(description="The organization's currency.", examples=["eur"])]
    usable: Annotated[
        str, Field(description="What any request can use now: grants in force, but for those of one project or model.", examples=["87.5"])
    ]
    is_prepaid: Annotated[bool, Field(description="Whether requests are refused once nothing is usable.", examples=[True])]
    budget_id: Annotated[str | None, Field(description="The budget that does so; null if none.", examples=["bud_0"])]
    topup_rule: Annotated[
        TopupRuleOut | None, Field(description="The rule by which more credit is asked for; null for none.", examples=[None])
    ]
    data: Annotated[list[CreditGrantOut], Field(description="Grants of which something may be left.")]


class CreditTransactionOut(Identified):
    """A transaction of a grant."""

    object: Literal["organization.credit_transaction"] = "organization.credit_transaction"
    grant_id: Annotated[str, Field(description="The grant.", examples=["grant_0"])]
    move: Annotated[CreditMove, Field(description="`grant`, `burn` by a closed period, `expire` or `void`.", examples=["burn"])]
    amount: Annotated[
        str, Field(description="What it adds to the grant, as a decimal string; below zero what it takes from it.", examples=["-12.5"])
    ]
    period_start_time: Annotated[
        int | None,
        Field(description="The start of the period that caused it, in Unix seconds (UTC); null for `grant`.", examples=[None]),
    ]
    booked_at: Annotated[int, Field(description="When it was booked, in Unix seconds (UTC).", examples=[1790812800])]


class PrepaymentWrite(In):
    """The choice whether an organization's requests are held to its credit."""

    is_prepaid: Annotated[bool, Field(description="True: requests are refused once no credit is usable.", examples=[True])]


class PrepaymentOut(Out):
    """The choice whether an organization's requests are held to its credit."""

    object: Literal["platform.prepayment"] = "platform.prepayment"
    organization_id: str
    is_prepaid: Annotated[bool, Field(description="Whether requests are refused once no credit is usable.", examples=[True])]
    budget_id: Annotated[str | None, Field(description="The budget that does so; null if none.", examples=["bud_0"])]
    pending_nodes: list[str]


def grant_out(standing: GrantStanding) -> CreditGrantOut:
    """Return a grant as the API shows it."""
    grant = standing.grant
    return CreditGrantOut(
        id=grant.id,
        category=grant.category,
        amount=money.format_amount(grant.amount_pico),
        currency=grant.currency.lower(),
        used=money.format_amount(grant.amount_pico - standing.left_pico),
        left=money.format_amount(standing.left_pico),
        cost_basis_percent=grant.cost_basis_bp // 100,
        priority=grant.priority,
        effective_at=seconds(grant.effective_at),
        expires_at=find_seconds(grant.expires_at),
        voided_at=find_seconds(grant.voided_at),
        project_id=grant.project_id,
        model=grant.model or None,
        models=list(grant.models),
        reference=grant.reference,
        created_at=seconds(grant.created_at),
    )


def transaction_out(transaction: CreditTransaction) -> CreditTransactionOut:
    """Return what was booked on a grant as the API shows it."""
    sign = 1 if transaction.move is CreditMove.GRANT else -1
    return CreditTransactionOut(
        id=transaction.id,
        grant_id=transaction.grant_id,
        move=transaction.move,
        amount=money.format_amount(sign * transaction.amount_pico),
        period_start_time=find_seconds(transaction.period_at),
        booked_at=seconds(transaction.booked_at),
    )


def rule_out(rule: TopupRule) -> TopupRuleOut:
    """Return a rule as the API shows it."""
    return TopupRuleOut(
        threshold=money.format_amount(rule.threshold_pico) if rule.threshold_pico else None,
        every=rule.every,
        next_at=find_seconds(rule.next_at),
        amount=money.format_amount(rule.amount_pico),
        cooloff_seconds=rule.cooloff_seconds,
    )


def topup_out(topup: Topup) -> TopupOut:
    """Return a top-up as the API shows it."""
    return TopupOut(
        id=topup.id,
        organization_id=topup.organization_id,
        amount=money.format_amount(topup.amount_pico),
        usable=money.format_amount(topup.usable_pico),
        requested_at=seconds(topup.requested_at),
        period_start_time=find_seconds(topup.period_at),
        grant_id=topup.grant_id,
    )


# ---- For tenants --------------------------------------------------------------------------------------------------------


@router.get("/v1/organization/credits")
def retrieve_credits(caller: Reader, plane: Plane) -> CreditsOut:
    """The organization's credit and what is left of it, in the order in which it burns."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        currency = budgets.get_currency(tx)
        usable = credits.find_usable_credit(tx, caller.organization_id, plane.now())
        held = budgets.find_prepaid(tx)
        standings = credits.list_standings(tx, caller.organization_id)
        rule = credits.find_topup_rule(tx, caller.organization_id)
    return CreditsOut(
        currency=currency.lower(),
        usable=money.format_amount(usable.pico),
        is_prepaid=held is not None,
        budget_id=None if held is None else held.id,
        topup_rule=None if rule is None else rule_out(rule),
        data=[grant_out(each) for each in standings],
    )


@router.get("/v1/organization/credits/statement")
def list_credit_transactions(caller: Reader, plane: Plane, query: Annotated[PageQuery, Query()]) -> ListOut[CreditTransactionOut]:
    """Transactions of the organization's grants: granted, burned by closed billing periods, expired and voided.

    They stand by the instant of the grant or the start of the period that caused them. What a close books may stand before the rest."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        page = credits.list_transactions(tx, caller.organization_id, query.window())
    return list_out(page, transaction_out)


# ---- For operators ------------------------------------------------------------------------------------------------------


@router.post("/v1/platform/organizations/{organization_id}/credit_grants")
def create_credit_grant(_caller: OperatorWriter, plane: Plane, organization_id: str, body: CreditGrantCreate) -> CreditGrantOut:
    """Grant credit to an organization. It pays what is used from now on."""
    wanted = body.wanted()
    with plane.database.platform() as tx:
        grant = budgets.create_credit(tx, routes.organization(organization_id), wanted, id=plane.new_id(ids.CREDIT_GRANT), now=plane.now())
    return grant_out(GrantStanding(grant, grant.amount_pico))


@router.post("/v1/platform/organizations/{organization_id}/credit_grants/{grant_id}/void")
def void_credit_grant(_caller: OperatorWriter, plane: Plane, organization_id: str, grant_id: str) -> CreditGrantOut:
    """End a grant: no request uses more of it. What was burned of it stays burned."""
    now = plane.now()
    with plane.database.platform() as tx:
        standing = budgets.void_credit(tx, routes.organization(organization_id), grant_id, now)
    return grant_out(standing)


@router.put("/v1/platform/organizations/{organization_id}/credit_topup_rule")
def put_topup_rule(_caller: OperatorWriter, plane: Plane, organization_id: str, body: TopupRuleWrite) -> TopupRuleOut:
    """Ask for more credit of an organization whenever less than a threshold is usable, but not before the cool-off has passed; or once in
    each week or month; or both."""
    rule = body.rule()
    with plane.database.platform() as tx:
        made = credits.put_topup_rule(tx, routes.organization(organization_id), rule, plane.now())
    return rule_out(made)


@router.delete("/v1/platform/organizations/{organization_id}/credit_topup_rule")
def delete_topup_rule(_caller: OperatorWriter, plane: Plane, organization_id: str) -> Deleted:
    """Ask for no more credit of an organization."""
    with plane.database.platform() as tx:
        credits.delete_topup_rule(tx, routes.organization(organization_id))
    return Deleted(object="organization.credit_topup_rule.deleted", id=organization_id, pending_nodes=[])


@router.get("/v1/platform/credit_topups")
def list_topups(
    _caller: OperatorReader,
    plane: Plane,
    query: Annotated[PageQuery, Query()],
    only_open: Annotated[bool, Query(description="Return only those that no grant has answered.")] = False,
) -> ListOut[TopupOut]:
    """Credit that rules asked for, of all organizations."""
    with plane.database.platform(write=False) as tx:
        page = credits.list_topups(tx, query.window(), only_open=only_open)
    return list_out(page, topup_out)


@router.put("/v1/platform/organizations/{organization_id}/prepayment")
def put_prepayment(_caller: OperatorWriter, plane: Plane, organization_id: str, body: PrepaymentWrite) -> PrepaymentOut:
    """Hold an organization's requests to its credit, or not any more. While they are held, they are refused with 429 `insufficient_quota`
    once they could cost more than what is usable."""
    now = plane.now()
    with plane.database.tenant(routes.organization(organization_id)) as tx:
        held = budgets.set_prepaid(tx, is_prepaid=body.is_prepaid, id=plane.new_id(ids.BUDGET), now=now)
    pending = publish.confirm(plane.database, plane.publications, tx.published_version, now) if tx.published_version else []
    return PrepaymentOut(
        organization_id=organization_id,
        is_prepaid=held is not None,
        budget_id=None if held is None else held.id,
        pending_nodes=pending,
    )
