"""The bodies and answers of budgets, and of the leases that gateways are granted of them. Money is a decimal string for tenants and whole
pico-currency on the link."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from tollway.control.api.schemas import Currency, Identified, In, ModelName, Name, Out, Second, Sum, find_seconds, seconds
from tollway.domain import money
from tollway.domain.budgets import (
    END_USER_CHARACTERS_MAX,
    THRESHOLDS_MAX,
    THROTTLE_REQUESTS_MAX,
    Budget,
    BudgetAlert,
    BudgetMode,
    BudgetRaise,
    BudgetStanding,
    BudgetWindow,
    LeaseGrant,
    LeaseRequest,
)

LEASES_MAX = 256
"""Leases of one request: a gateway with more asks several times."""

_Pico = Annotated[int, Field(ge=0)]
_Instant = Annotated[int, Field(ge=0, le=2**63 - 1)]
_Mode = Annotated[BudgetMode, Field(strict=False)]
_Window = Annotated[BudgetWindow, Field(strict=False)]
_Thresholds = Annotated[list[int], Field(max_length=THRESHOLDS_MAX)]


class BudgetCreate(In):
    """A new budget: of a key of a project, of a project, or of the whole organization, which neither names."""

    project_id: Annotated[
        str | None, Field(description="The project whose spending is bounded; null for the organization.", examples=["proj_0"])
    ] = None
    api_key_id: Annotated[
        str | None, Field(description="The key of the project whose spending is bounded; null for all of it.", examples=["key_0"])
    ] = None
    model: Annotated[
        ModelName | None,
        Field(
            description="The model whose requests alone are counted, or `group:` and the name of a group of models; null for all models.",
            examples=["llama-70b"],
        ),
    ] = None
    tag: Annotated[
        str | None,
        Field(
            max_length=600,
            description="A key and its value in the `metadata` of requests, as KEY=VALUE: requests with it alone are counted. Null for all"
            " requests.",
            examples=["team=research"],
        ),
    ] = None
    fallback_model: Annotated[
        ModelName | None,
        Field(
            description="The model that serves a request in place of the one that it asks for, where this budget would refuse it and that"
            " model can be afforded; null to refuse it.",
            examples=["llama-8b"],
        ),
    ] = None
    end_user: Annotated[
        str | None,
        Field(
            max_length=END_USER_CHARACTERS_MAX,
            description="An end user, as requests name it in `safety_identifier` or `user`: its requests alone are counted. `*` gives each"
            " end user the budget by itself, but for those that a budget of the same key, project or organization names. Null for all"
            " requests together.",
            examples=["*"],
        ),
    ] = None
    throttle_requests_per_minute: Annotated[
        int | None,
        Field(
            ge=1,
            le=THROTTLE_REQUESTS_MAX,
            description="Requests that each gateway lets pass in a minute once a soft budget is spent, 1 or more; null to refuse them.",
            examples=[6],
        ),
    ] = None
    name: Annotated[Name, Field(description="Name of the budget, 1 to 256 characters.", examples=["research"])]
    amount: Annotated[
        Sum,
        Field(
            description="What may be spent in one window, above zero, as a decimal string in the organization's currency.", examples=["100"]
        ),
    ]
    currency: Annotated[
        Currency | None,
        Field(description="The organization's currency; any other one is refused. Null for the organization's.", examples=["EUR"]),
    ] = None
    window: Annotated[
        _Window, Field(description="When the budget begins anew, in the organization's time zone; `total` never does.", examples=["month"])
    ]
    mode: Annotated[
        _Mode,
        Field(
            description="`hard` is never overspent; `soft` may be, by what requests under way cost beyond their estimate; `alert` binds no"
            " request, and only raises alerts.",
            examples=["hard"],
        ),
    ] = BudgetMode.HARD
    thresholds: Annotated[
        _Thresholds,
        Field(
            default_factory=list,
            description="Percentages of the limit, in rising order, that raise an alert once in each window for the same limit.",
            examples=[[50, 80, 100]],
        ),
    ]


class BudgetUpdate(In):
    """Changes of a budget; what is left out or null stays."""

    name: Annotated[Name | None, Field(description="Name of the budget, 1 to 256 characters.", examples=["research"])] = None
    amount: Annotated[
        Sum | None, Field(description="What may be spent in one window, above zero, as a decimal string.", examples=["100"])
    ] = None
    mode: Annotated[
        _Mode | None,
        Field(
            description="Whether the budget is `hard` or `soft`; what is of mode `alert` stays so, and nothing becomes so.",
            examples=["hard"],
        ),
    ] = None
    thresholds: Annotated[
        _Thresholds | None, Field(description="Percentages of the limit that raise an alert, in rising order.", examples=[[50, 80, 100]])
    ] = None


class RaiseCreate(In):
    """A temporary raise of a budget."""

    amount: Annotated[
        Sum, Field(description="By how much the limit is higher meanwhile, above zero, as a decimal string.", examples=["100"])
    ]
    starts_at: Annotated[
        Second | None, Field(description="When the raise begins, in Unix seconds (UTC); null for now.", examples=[1790000000])
    ] = None
    ends_at: Annotated[
        Second,
        Field(description="When the raise ends, exclusive, in Unix seconds (UTC); within a year of its begin.", examples=[1790086400]),
    ]


class RaiseOut(Identified):
    """A temporary raise of a budget."""

    object: Literal["organization.budget.raise"] = "organization.budget.raise"
    amount: Annotated[str, Field(description="By how much the limit is higher meanwhile, as a decimal string.", examples=["50"])]
    starts_at: Annotated[int, Field(description="When the raise begins, in Unix seconds (UTC).", examples=[1790000000])]
    ends_at: Annotated[int, Field(description="When the raise ends, exclusive, in Unix seconds (UTC).", examples=[1790086400])]


class BudgetOut(Identified):
    """A budget and how it stands now."""

    object: Literal["organization.budget"] = "organization.budget"
    name: str
    level: Annotated[str, Field(description="The kind of thing whose spending is bounded.", examples=["project"])]
    subject_id: Annotated[str, Field(description="The key, project or organization whose spending is bounded.", examples=["proj_0"])]
    model: Annotated[
        str | None,
        Field(description="The model or group of models (`group:large`) whose requests alone are counted; null for all.", examples=[None]),
    ]
    mode: Annotated[BudgetMode, Field(description="Whether the budget is `hard` or `soft`, or only an `alert`.", examples=["hard"])]
    window: Annotated[BudgetWindow, Field(description="When the budget begins anew.", examples=["month"])]
    tag: Annotated[
        str | None,
        Field(
            description="The tag (`team=research`) of the requests that alone are counted; null for all.",
            examples=[None],
        ),
    ]
    fallback_model: Annotated[
        str | None, Field(description="The model that serves what this budget would refuse; null to refuse it.", examples=[None])
    ]
    end_user: Annotated[
        str | None,
        Field(
            description="The end user whose requests alone are counted, or `*`: each end user has the budget by itself, and `spent` is what"
            " all have spent together. Null for all requests.",
            examples=[None],
        ),
    ]
    throttle_requests_per_minute: Annotated[
        int | None,
        Field(
            description="Requests that each gateway lets pass in a minute once the budget is spent, 1 or more; null for none.",
            examples=[None],
        ),
    ]
    plan_id: Annotated[
        str | None,
        Field(description="The plan by which the organization has it; null for none.", examples=[None]),
    ]
    is_prepaid: Annotated[bool, Field(description="Whether its limit is the organization's credit.", examples=[False])]
    currency: str
    amount: Annotated[str, Field(description="What may be spent in one window, without raises, as a decimal string.", examples=["100"])]
    thresholds: Annotated[list[int], Field(description="Percentages of the limit that raise an alert.", examples=[[50, 80, 100]])]
    managed_by: Annotated[
        Literal["operator", "organization"],
        Field(description="Who may change it: operators alone, or the organization's admins too.", examples=["organization"]),
    ]
    limit: Annotated[str, Field(description="What may be spent in the present window, with raises, as a decimal string.", examples=["150"])]
    spent: Annotated[
        str, Field(description="What was spent in the present window by rated requests, as a decimal string.", examples=["80.25"])
    ]
    leased: Annotated[
        str, Field(description="What gateways may still spend of what they were granted, as a decimal string.", examples=["1.5"])
    ]
    left: Annotated[str, Field(description="What is not spent yet, as a decimal string; 0 if nothing is left.", examples=["69.75"])]
    window_start_at: Annotated[int, Field(description="The start of the present window, in Unix seconds (UTC).", examples=[1788220800])]
    window_end_at: Annotated[
        int | None, Field(description="The end of the present window, in Unix seconds (UTC); null for `total`.", examples=[1790812800])
    ]
    created_at: int
    archived_at: int | None


class BudgetChanged(BudgetOut):
    """A budget that was changed. It binds the gateways that have applied the change."""

    pending_nodes: list[str]


class BindingBudgets(Out):
    """Every budget that binds, innermost level first."""

    object: Literal["list"] = "list"
    data: list[BudgetOut]


class AlertOut(Out):
    """A threshold that spending reached."""

    object: Literal["organization.budget.alert"] = "organization.budget.alert"
    budget_id: Annotated[str, Field(description="The budget.", examples=["bud_0"])]
    window_start_at: Annotated[int, Field(description="The start of the window, in Unix seconds (UTC).", examples=[1790000000])]
    threshold: Annotated[int, Field(description="The percentage of the limit that was reached, 1 to 100.", examples=[80])]
    spent: Annotated[str, Field(description="What was spent in the window by then, as a decimal string.", examples=["80.25"])]
    limit: Annotated[str, Field(description="The limit by then, as a decimal string.", examples=["100"])]
    crossed_at: Annotated[int, Field(description="When it was reached, in Unix seconds (UTC).", examples=[1790000000])]


class AlertList(Out):
    """Alerts of a budget, the latest first."""

    object: Literal["list"] = "list"
    data: list[AlertOut]


class RaiseList(Out):
    """Raises of a budget that have not ended, in the order of their ends."""

    object: Literal["list"] = "list"
    data: list[RaiseOut]


def budget_out(standing: BudgetStanding) -> BudgetOut:
    """Return a budget as the API shows it."""
    return BudgetOut.model_validate(_budget_fields(standing))


def budget_changed(standing: BudgetStanding, pending_nodes: list[str]) -> BudgetChanged:
    """Return a budget that was changed, with the gateways that have not applied it."""
    return BudgetChanged.model_validate({**_budget_fields(standing), "pending_nodes": pending_nodes})


def _budget_fields(standing: BudgetStanding) -> dict[str, object]:
    budget: Budget = standing.budget
    return {
        "id": budget.id,
        "name": budget.name,
        "level": str(budget.level),
        "subject_id": budget.subject_id,
        "model": budget.model or None,
        "tag": budget.tag or None,
        "fallback_model": budget.fallback_model or None,
        "end_user": budget.end_user or None,
        "throttle_requests_per_minute": budget.throttle_requests_per_minute or None,
        "plan_id": budget.plan_id,
        "is_prepaid": budget.is_prepaid,
        "mode": budget.mode,
        "window": budget.window,
        "currency": budget.currency.lower(),
        "amount": money.format_amount(standing.limit.pico if budget.is_prepaid else budget.amount_pico),
        "thresholds": list(budget.thresholds),
        "managed_by": "operator" if budget.is_operators else "organization",
        "limit": money.format_amount(standing.limit.pico),
        "spent": money.format_amount(standing.spent_pico),
        "leased": money.format_amount(standing.leased_pico),
        "left": money.format_amount(standing.left_pico),
        "window_start_at": seconds(standing.window.start_at),
        "window_end_at": None if budget.window is BudgetWindow.TOTAL else seconds(standing.window.end_at),
        "created_at": seconds(budget.created_at),
        "archived_at": find_seconds(budget.archived_at),
    }


def raise_out(more: BudgetRaise) -> RaiseOut:
    """Return a raise as the API shows it."""
    return RaiseOut(
        id=more.id, amount=money.format_amount(more.amount_pico), starts_at=seconds(more.starts_at), ends_at=seconds(more.ends_at)
    )


def alert_out(alert: BudgetAlert) -> AlertOut:
    """Return an alert as the API shows it."""
    return AlertOut(
        budget_id=alert.budget_id,
        window_start_at=seconds(alert.window_start_at),
        threshold=alert.threshold,
        spent=money.format_amount(alert.spent_pico),
        limit=money.format_amount(alert.limit_pico),
        crossed_at=seconds(alert.crossed_at),
    )


# ---- The link -----------------------------------------------------------------------------------------------------------


class LeaseIn(In):
    """Statement of a gateway run about one lease, and its wish (`domain.budgets.LeaseRequest`)."""

    budget_id: Annotated[str, Field(max_length=64)]
    at: Annotated[_Instant, Field(description="An instant of the window, in UTC microseconds.", examples=[1790000000000000])]
    current_pico: Annotated[
        _Pico | None,
        Field(
            description="What the run was granted in all, less what it gave back; null if it has forgotten a lease that was used up.",
            examples=[5000000],
        ),
    ]
    need_pico: Annotated[_Pico, Field(description="More that requests wait for.", examples=[400000])] = 0
    target_pico: Annotated[_Pico, Field(description="More that it would like to have for requests to come.", examples=[800000])] = 0
    project_id: Annotated[
        str, Field(max_length=64, description="The project of a part of a prepaid budget; empty for any other budget.", examples=[""])
    ] = ""
    model: Annotated[
        str, Field(max_length=128, description="The model of a part of a prepaid budget; empty for any other budget.", examples=[""])
    ] = ""


class LeasesIn(In):
    """The leases of a gateway run. `sequence`: number of the request, which grows in each run."""

    sequence: Annotated[int, Field(ge=1, le=2**63 - 1, description="Number of the request, above that of the one before.", examples=[1])]
    leases: Annotated[list[LeaseIn], Field(max_length=LEASES_MAX, description="Leases of the run, at most 256.")]

    def requests(self) -> list[LeaseRequest]:
        """Return the leases as the domain has them."""
        return [LeaseRequest(**each.model_dump()) for each in self.leases]


class LeaseOut(Out):
    """A lease as it was granted (`domain.budgets.LeaseGrant`)."""

    budget_id: str
    start_at: Annotated[int, Field(description="The start of the window, in Unix microseconds (UTC).", examples=[1788220800000000])]
    end_at: Annotated[int, Field(description="The end of the window, exclusive, in Unix microseconds (UTC).", examples=[1790812800000000])]
    until_at: Annotated[int, Field(description="When it must be asked for anew, in Unix microseconds (UTC).", examples=[1790812800000000])]
    granted_pico: Annotated[int, Field(description="What the run is granted in all, in 10^-12 units of the currency.", examples=[5400000])]
    limit_pico: Annotated[
        int, Field(description="What may be spent in the window, in 10^-12 units of the currency.", examples=[100000000000000])
    ]
    spent_pico: Annotated[
        int, Field(description="What was spent in the window, in 10^-12 units of the currency.", examples=[80250000000000])
    ]
    free_pico: Annotated[
        int,
        Field(
            description="What is neither spent nor leased, in 10^-12 units of the currency; negative if the limit fell.", examples=[1000000]
        ),
    ]
    exists: Annotated[bool, Field(description="Whether there is such a budget.", examples=[True])]
    is_recalled: Annotated[
        bool,
        Field(description="Whether this tells a run that has forgotten its lease what it had used, and grants nothing.", examples=[False]),
    ]


class LeasesOut(Out):
    """The leases that were granted; those are left out of which a later request was served before."""

    leases: Annotated[list[LeaseOut], Field(description="Leases that were granted.")]


def leases_out(grants: Sequence[LeaseGrant]) -> LeasesOut:
    """Return leases as the link shows them."""
    return LeasesOut(leases=[LeaseOut.model_validate(each, from_attributes=True) for each in grants])
