"""The bodies and answers of spend limits and spend alerts, in the shapes of OpenAI's admin API. Amounts are whole hundredths of a unit of
the organization's currency."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from tollway.control.api.schemas import Currency, Identified, In, Out
from tollway.control.money.spend_limits import AlertWindow, SpendAmount
from tollway.domain.budgets import Budget, BudgetLevel
from tollway.domain.money import AMOUNT_PICO_MAX, CENT_PICO

_ADDRESSES_MAX = 1000
"""Bound on a list that is refused unless it is empty."""


def _nobody(recipients: list[str]) -> list[str]:
    if recipients:
        raise ValueError("no e-mail is sent: leave it empty, and read what was reached at /v1/organization/budgets/{id}/alerts")
    return recipients


def _no_prefix(prefix: str | None) -> str | None:
    if prefix is not None:
        raise ValueError("no e-mail is sent: leave it out")
    return prefix


_ShownCurrency = Annotated[str, Field(description="The organization's currency, a code of ISO 4217.", examples=["USD"])]
_ShownAmount = Annotated[
    int, Field(description="What may be spent in a month, in hundredths of the currency unit, 1 or more.", examples=[10000])
]
_ShownMonth = Annotated[Literal["month"], Field(description="A calendar month in the organization's time zone.", examples=["month"])]
_Ident = Annotated[str, StringConstraints(max_length=128, pattern=r"^[\x21-\x7e]+$")]


class SpendLimitWrite(In):
    """A hard limit on what may be spent in a calendar month."""

    threshold_amount: Annotated[
        int,
        Field(
            ge=1, le=AMOUNT_PICO_MAX // CENT_PICO, description="What may be spent, in hundredths of the currency unit.", examples=[10000]
        ),
    ]
    currency: Annotated[Currency, Field(description="The organization's currency; any other one is refused.", examples=["USD"])]
    interval: Annotated[Literal["month"], Field(description="A calendar month in the organization's time zone.", examples=["month"])]

    def amount(self) -> SpendAmount:
        """Return the amount as the operations have it."""
        return SpendAmount(self.threshold_amount * CENT_PICO, self.currency)


class Enforcement(Out):
    """The state of a spend limit."""

    status: Annotated[
        Literal["enforcing"], Field(description="Always `enforcing`: a limit binds from its creation to its end.", examples=["enforcing"])
    ] = "enforcing"


class SpendLimitOut(Out):
    """The spend limit of an organization or a project."""

    object: Literal["organization.spend_limit", "project.spend_limit"]
    threshold_amount: _ShownAmount
    currency: _ShownCurrency
    interval: _ShownMonth = "month"
    enforcement: Annotated[Enforcement, Field(description="The state of the limit.", examples=[{"status": "enforcing"}])] = Enforcement()
    budget_id: Annotated[str, Field(description="The budget that it is: spending and alerts stand there.", examples=["bud_0"])]


class SpendLimitChanged(SpendLimitOut):
    """A spend limit that was changed. It binds the gateways that have applied the change."""

    pending_nodes: list[str]


class SpendLimitDeleted(Out):
    """A spend limit is gone. `pending_nodes`: gateways that were alive and have not confirmed within a second."""

    object: Literal["organization.spend_limit.deleted", "project.spend_limit.deleted"]
    deleted: Literal[True] = True
    pending_nodes: list[str]


class NotificationChannelIn(In):
    """A way in which a spend alert reaches people. No e-mail is sent, so none can be asked for."""

    type: Annotated[Literal["email"], Field(description="The kind of channel.", examples=["email"])]
    recipients: Annotated[
        list[str],
        Field(max_length=_ADDRESSES_MAX, description="Must be empty, because no e-mail is sent.", examples=[[]]),
        AfterValidator(_nobody),
    ]
    subject_prefix: Annotated[
        str | None, Field(description="Must be null, because no e-mail is sent.", examples=[None]), AfterValidator(_no_prefix)
    ] = None


class SpendAlertWrite(SpendLimitWrite):
    """An amount that raises an alert when spending in a calendar month reaches it. It refuses no request."""

    notification_channel: Annotated[
        NotificationChannelIn,
        Field(description="A channel without recipients: no e-mail is sent.", examples=[{"type": "email", "recipients": []}]),
    ]


class NotificationChannelOut(Out):
    """The channel of a spend alert, which has no recipients."""

    type: Annotated[Literal["email"], Field(description="The kind of channel.", examples=["email"])] = "email"
    recipients: Annotated[list[str], Field(default_factory=list, description="Always empty: no e-mail is sent.", examples=[[]])]
    subject_prefix: Annotated[None, Field(description="Always null: no e-mail is sent.")] = None


class SpendAlertOut(Identified):
    """A spend alert of an organization or a project. Its id is that of the budget that it is: spending and alerts stand there."""

    object: Literal["organization.spend_alert", "project.spend_alert"]
    threshold_amount: Annotated[
        int,
        Field(description="The spending of a month that raises an alert, in hundredths of the currency unit, 1 or more.", examples=[5000]),
    ]
    currency: _ShownCurrency
    interval: _ShownMonth = "month"
    notification_channel: Annotated[
        NotificationChannelOut, Field(description="A channel without recipients.", examples=[{"type": "email", "recipients": []}])
    ] = NotificationChannelOut(recipients=[])


class SpendAlertQuery(BaseModel):
    """One page of spend alerts: at most `limit` after an id or before one, by time of creation."""

    after: _Ident | None = None
    before: Annotated[_Ident | None, Field(description="Return the items that precede this id.", examples=["bud_0"])] = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "asc"

    def window(self) -> AlertWindow:
        """Return the same for the operations."""
        return AlertWindow(self.after, self.before, self.limit, self.order == "desc")


def spend_limit_out(budget: Budget) -> SpendLimitOut:
    """Return the spend limit that a budget is."""
    return SpendLimitOut.model_validate(_limit_fields(budget))


def spend_limit_changed(budget: Budget, pending_nodes: list[str]) -> SpendLimitChanged:
    """Return the spend limit that a budget has become, with the gateways that have not applied it."""
    return SpendLimitChanged.model_validate({**_limit_fields(budget), "pending_nodes": pending_nodes})


def _limit_fields(budget: Budget) -> dict[str, object]:
    return {
        "object": "organization.spend_limit" if budget.level is BudgetLevel.ORGANIZATION else "project.spend_limit",
        "threshold_amount": budget.amount_pico // CENT_PICO,
        "currency": budget.currency,
        "budget_id": budget.id,
    }


def spend_alert_out(budget: Budget) -> SpendAlertOut:
    """Return the spend alert that a budget is."""
    return SpendAlertOut(
        id=budget.id,
        object="organization.spend_alert" if budget.level is BudgetLevel.ORGANIZATION else "project.spend_alert",
        threshold_amount=budget.amount_pico // CENT_PICO,
        currency=budget.currency,
    )
