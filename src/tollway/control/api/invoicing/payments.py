"""Payments: operators record them and import bank statements, hold invoices from dunning; everybody sees how an organization stands."""

from typing import Annotated, Literal

from fastapi import Query
from pydantic import BaseModel, Field, StringConstraints

from tollway.control.api import routes
from tollway.control.api.invoicing.invoices import OperatorReader, OperatorWriter, Reader, known_invoice
from tollway.control.api.money.periods import OrganizationId
from tollway.control.api.routes import Plane
from tollway.control.api.schemas import Currency, Identified, In, ListOut, Name, Out, PageQuery, Reason, list_out, seconds
from tollway.control.invoicing import dunning, payments
from tollway.control.invoicing.payments import CustomerAccount, ImportedStatement, WantedPayment
from tollway.domain import ids, money
from tollway.domain.billing_parties import DunningAction
from tollway.domain.currencies import get_currency
from tollway.domain.faults import RESOURCE_UNKNOWN, Fault
from tollway.domain.payments import BankEntry, DunningNotice, Payment, PaymentKind

router = routes.router(tags=["payments"])

AmountPaid = Annotated[str, StringConstraints(max_length=32, pattern=r"^(0|[1-9][0-9]{0,14})(\.[0-9]{1,12})?$")]
Day = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}-\d{2}$"), Field(description="Day of the bank.", examples=["2026-12-01"])]


class PaymentCreate(In):
    """A payment that an operator records."""

    kind: Annotated[
        PaymentKind,
        Field(strict=False, description="`payment`, `refund` or `write_off`; a `return` names its payment.", examples=["payment"]),
    ] = PaymentKind.PAYMENT
    amount: Annotated[AmountPaid, Field(description="How much, above zero, as a decimal string.", examples=["119.00"])]
    currency: Annotated[Currency | None, Field(description="The organization's currency; any other one is refused.", examples=["EUR"])] = (
        None
    )
    value_on: Day
    reference: Annotated[Name | None, Field(description="What the payment is known by, in your words.", examples=["transfer"])] = None
    invoice_ids: Annotated[
        list[Annotated[str, StringConstraints(max_length=64)]],
        Field(
            max_length=100,
            description="Invoices that it settles first; a refund takes from them what the balance lacks.",
            examples=[["inv_0"]],
        ),
    ] = Field(default_factory=list)


class PaymentReturn(In):
    """The return of a payment by the bank."""

    value_on: Day
    reference: Annotated[Name | None, Field(description="The reason that the bank gave.", examples=["AM04"])] = None


class PaymentOut(Identified):
    """A movement of money, or the decision that none will come."""

    object: Literal["platform.payment"] = "platform.payment"
    organization_id: str
    kind: Annotated[PaymentKind, Field(description="`payment`, `refund`, `return` or `write_off`.", examples=["payment"])]
    amount: Annotated[str, Field(description="How much, as a decimal string.", examples=["119.00"])]
    currency: str
    value_on: Annotated[str, Field(description="Day of the bank.", examples=["2026-12-01"])]
    origin: Annotated[str, Field(description="`manual`, `bank_statement` or `stripe`.", examples=["manual"])]
    reference: Annotated[str, Field(description="What it is known by.", examples=["transfer"])]
    returns_id: Annotated[str | None, Field(description="Of a return, the payment that was taken back.", examples=[None])]
    created_at: int


class BankStatementImport(In):
    """A bank statement in the format camt.053."""

    content: Annotated[str, Field(description="The file (XML).", examples=["<Document>...</Document>"])]


class ImportedStatementOut(Out):
    """Outcome of the import of a bank statement."""

    iban: Annotated[str, Field(description="The account.", examples=["DE89370400440532013000"])]
    name: Annotated[str, Field(description="The statement, as the bank calls it.", examples=["2026-12-01"])]
    payments: Annotated[list[PaymentOut], Field(description="Payments of invoices that entries named.")]
    unmatched: Annotated[int, Field(ge=0, description="Credits that name no invoice: match them by hand.", examples=[0])]
    known: Annotated[int, Field(ge=0, description="Credits and returned debits that were imported before.", examples=[0])]
    others: Annotated[
        int, Field(ge=0, description="Other debits, reversals, entries that are not booked, and credits of 0.00.", examples=[0])
    ]
    returned: Annotated[list[PaymentOut], Field(description="Direct debits that came back, with the bank's reason as `reference`.")]
    executed: Annotated[
        int, Field(ge=0, description="Credit transfers of refunds among `others`: the bank has executed them.", examples=[0])
    ]
    unmatched_returns: Annotated[
        int, Field(ge=0, description="Returned debits whose payment has not come: it is taken back when it comes.", examples=[0])
    ]
    is_gap: Annotated[
        bool, Field(description="A statement before it is missing: it does not open with the balance of the last one.", examples=[False])
    ]


class BankImportOut(Out):
    """The statements of an imported file."""

    object: Literal["platform.bank_import"] = "platform.bank_import"
    data: Annotated[list[ImportedStatementOut], Field(description="Its statements.")]


class BankEntryOut(Identified):
    """A credit of a bank statement for which no invoice was found."""

    object: Literal["platform.bank_entry"] = "platform.bank_entry"
    amount: Annotated[str, Field(description="How much, as a decimal string.", examples=["119.00"])]
    currency: str
    value_on: Annotated[str, Field(description="Day of the bank.", examples=["2026-12-01"])]
    debtor: Annotated[str, Field(description="Name of the sender.", examples=["Customer AG"])]
    text: Annotated[str, Field(description="What the sender wrote.", examples=["invoice of november"])]


class BankEntryMatch(In):
    """The invoice that an entry of a bank statement pays."""

    invoice_id: Annotated[str, Field(max_length=64, description="The invoice.", examples=["inv_0"])]


class DunningHoldWrite(In):
    """The choice whether an invoice is dunned."""

    reason: Annotated[Reason | None, Field(description="Why it is not dunned; null: it is.", examples=["disputed"])]


class DunningHoldOut(Out):
    """The choice whether an invoice is dunned."""

    object: Literal["platform.dunning_hold"] = "platform.dunning_hold"
    invoice_id: Annotated[str, Field(description="The invoice.", examples=["inv_0"])]
    reason: Annotated[str | None, Field(description="Why it is not dunned; null: it is.", examples=["disputed"])]


class DunningNoticeOut(Identified):
    """A step of dunning that was taken."""

    object: Literal["platform.dunning_notice"] = "platform.dunning_notice"
    invoice_id: Annotated[str, Field(description="The invoice.", examples=["inv_0"])]
    step: Annotated[int, Field(description="The step of the seller, from 1.", examples=[1])]
    action: Annotated[DunningAction, Field(description="`remind` or `restrict`.", examples=["remind"])]
    noticed_at: Annotated[int, Field(description="When it was taken, in Unix seconds (UTC).", examples=[1790812800])]


class OpenInvoiceOut(Identified):
    """An issued invoice that is not settled."""

    object: Literal["open_invoice"] = "open_invoice"
    number: Annotated[str, Field(description="Its number.", examples=["RE-2026-000001"])]
    due_on: Annotated[str, Field(description="The day on which it is due.", examples=["2026-12-15"])]
    gross: Annotated[str, Field(description="What it came to, as a decimal string.", examples=["119.00"])]
    open: Annotated[str, Field(description="What of it is open, as a decimal string.", examples=["19.00"])]


class OpenInvoicesQuery(BaseModel):
    """A page of open invoices: `after` the id of one of the organization's invoices, at most `limit`, by the day on which they are due."""

    after: Annotated[str, StringConstraints(max_length=64, pattern=r"^[\x21-\x7e]+$")] | None = None
    limit: Annotated[int, Field(ge=1, le=payments.OPEN_MAX)] = 100


class StatementOfAccountOut(Out):
    """Standing of an organization: its open invoices, and what it has paid or was credited and that no invoice took."""

    object: Literal["organization.statement_of_account"] = "organization.statement_of_account"
    currency: str
    open: Annotated[
        list[OpenInvoiceOut],
        Field(description="Open invoices, the one that is due first at the top. The id of the last one is the `after` of the next page."),
    ]
    has_more: Annotated[bool, Field(description="There are open invoices behind these.", examples=[False])]
    total_open: Annotated[str, Field(description="What is open of all of them together, as a decimal string.", examples=["19.00"])]
    balance: Annotated[str, Field(description="What no invoice took, as a decimal string.", examples=["0.00"])]


def _amount(minor: int, currency: str) -> str:
    return money.format_minor(minor, get_currency(currency).minor_units)


def payment_out(payment: Payment) -> PaymentOut:
    """Return a payment as the API shows it."""
    return PaymentOut(
        id=payment.id,
        organization_id=payment.organization_id,
        kind=payment.kind,
        amount=_amount(payment.amount_minor, payment.currency),
        currency=payment.currency.lower(),
        value_on=payment.value_on,
        origin=payment.origin,
        reference=payment.reference,
        returns_id=payment.returns_id,
        created_at=seconds(payment.created_at),
    )


def _imported_out(each: ImportedStatement) -> ImportedStatementOut:
    paid = [payment_out(payment) for payment in each.payments]
    returned = [payment_out(payment) for payment in each.returned]
    return ImportedStatementOut(**{**each._asdict(), "payments": paid, "returned": returned})


def _entry_out(entry: BankEntry) -> BankEntryOut:
    amount = _amount(entry.amount_minor, entry.currency)
    return BankEntryOut(
        id=entry.id, amount=amount, currency=entry.currency.lower(), value_on=entry.value_on, debtor=entry.debtor, text=entry.text
    )


def _notice_out(notice: DunningNotice) -> DunningNoticeOut:
    return DunningNoticeOut(
        id=f"{notice.invoice_id}/{notice.step}",
        invoice_id=notice.invoice_id,
        step=notice.step,
        action=notice.action,
        noticed_at=seconds(notice.noticed_at),
    )


def _account_out(account: CustomerAccount) -> StatementOfAccountOut:
    shown = [
        OpenInvoiceOut(
            id=each.id,
            number=each.document.number,
            due_on=each.document.due_on,
            gross=_amount(each.document.totals.gross_minor, account.currency),
            open=_amount(each.open_minor, account.currency),
        )
        for each in account.open
    ]
    return StatementOfAccountOut(
        currency=account.currency.lower(),
        open=shown,
        has_more=account.has_more,
        total_open=_amount(account.open_minor, account.currency),
        balance=_amount(account.balance_minor, account.currency),
    )


def known_payment(payment_id: str) -> str:
    """Return the id of a payment. Raises RESOURCE_UNKNOWN for what cannot be one."""
    if not ids.is_id(ids.PAYMENT, payment_id):
        raise Fault(RESOURCE_UNKNOWN, message=payments.UNKNOWN)
    return payment_id


@router.post("/v1/platform/organizations/{organization_id}/payments")
def create_payment(caller: OperatorWriter, plane: Plane, organization_id: str, body: PaymentCreate) -> PaymentOut:
    """Record what an organization paid, what was paid back to it, or what is given up; invoices are settled with it."""
    wanted = WantedPayment(
        kind=body.kind,
        amount=body.amount,
        currency=body.currency,
        value_on=body.value_on,
        reference=body.reference or "",
        invoice_ids=tuple(body.invoice_ids),
    )
    with plane.database.platform() as tx:
        payment = payments.record_payment(
            tx, routes.organization(organization_id), wanted, id=plane.new_id(ids.PAYMENT), actor=caller.key_id, now=plane.now()
        )
    dunning.release(plane.database, [payment.organization_id], plane.now(), plane.log)
    return payment_out(payment)


@router.get("/v1/platform/payments")
def list_payments(
    _caller: OperatorReader, plane: Plane, query: Annotated[PageQuery, Query()], organization_id: OrganizationId | None = None
) -> ListOut[PaymentOut]:
    """Payments in the order in which they were recorded, of everyone or of one organization."""
    with plane.database.platform(write=False) as tx:
        page = payments.list_payments(tx, query.window(), organization_id=organization_id)
    return list_out(page, payment_out)


@router.post("/v1/platform/payments/{payment_id}/return")
def return_payment(caller: OperatorWriter, plane: Plane, payment_id: str, body: PaymentReturn) -> PaymentOut:
    """Record that the bank took a payment back: what it settled is open again."""
    with plane.database.platform() as tx:
        returned = payments.return_payment(
            tx,
            known_payment(payment_id),
            id=plane.new_id(ids.PAYMENT),
            value_on=body.value_on,
            reference=body.reference or "",
            actor=caller.key_id,
            now=plane.now(),
        )
    return payment_out(returned)


@router.post("/v1/platform/bank_statements")
def import_bank_statement(caller: OperatorWriter, plane: Plane, body: BankStatementImport) -> BankImportOut:
    """Import a bank statement: credits that name the number of an invoice pay it. A file that comes twice changes nothing."""
    with plane.database.platform() as tx:
        found = payments.import_statements(tx, body.content, new_id=plane.new_id, actor=caller.key_id, now=plane.now())
    paid = sorted({payment.organization_id for each in found for payment in each.payments})
    dunning.release(plane.database, paid, plane.now(), plane.log)
    return BankImportOut(data=[_imported_out(each) for each in found])


@router.get("/v1/platform/bank_entries")
def list_bank_entries(_caller: OperatorReader, plane: Plane, query: Annotated[PageQuery, Query()]) -> ListOut[BankEntryOut]:
    """Credits of bank statements for which no invoice was found."""
    with plane.database.platform(write=False) as tx:
        page = payments.list_entries(tx, query.window())
    return list_out(page, _entry_out)


@router.post("/v1/platform/bank_entries/{entry_id}/match")
def match_bank_entry(caller: OperatorWriter, plane: Plane, entry_id: str, body: BankEntryMatch) -> PaymentOut:
    """Record a credit of a bank statement as the payment of an invoice."""
    with plane.database.platform() as tx:
        payment = payments.match_entry(tx, entry_id, body.invoice_id, new_id=plane.new_id, actor=caller.key_id, now=plane.now())
    dunning.release(plane.database, [payment.organization_id], plane.now(), plane.log)
    return payment_out(payment)


@router.put("/v1/platform/invoices/{invoice_id}/dunning_hold")
def put_dunning_hold(_caller: OperatorWriter, plane: Plane, invoice_id: str, body: DunningHoldWrite) -> DunningHoldOut:
    """Leave an invoice alone, such as while it is disputed, or dun it again."""
    with plane.database.platform() as tx:
        held = dunning.set_hold(tx, known_invoice(invoice_id), body.reason, plane.now())
    dunning.release(plane.database, [held.organization_id], plane.now(), plane.log)
    return DunningHoldOut(invoice_id=invoice_id, reason=body.reason)


@router.get("/v1/platform/dunning_notices")
def list_dunning_notices(
    _caller: OperatorReader, plane: Plane, query: Annotated[PageQuery, Query()], organization_id: OrganizationId | None = None
) -> ListOut[DunningNoticeOut]:
    """Steps of dunning that were taken for invoices that are still open, of everyone or of one organization, by invoice."""
    with plane.database.platform(write=False) as tx:
        page = dunning.list_open_notices(tx, query.window(), organization_id)
    return list_out(page, _notice_out)


@router.get("/v1/platform/organizations/{organization_id}/statement_of_account")
def retrieve_statement_of_account(
    _caller: OperatorReader, plane: Plane, organization_id: str, query: Annotated[OpenInvoicesQuery, Query()]
) -> StatementOfAccountOut:
    """Return how an organization stands: open invoices, and its balance."""
    with plane.database.platform(write=False) as tx:
        return _account_out(payments.get_account(tx, routes.organization(organization_id), after=query.after, limit=query.limit))


@router.get("/v1/organization/statement_of_account")
def retrieve_own_statement_of_account(caller: Reader, plane: Plane, query: Annotated[OpenInvoicesQuery, Query()]) -> StatementOfAccountOut:
    """Return how the organization stands: open invoices, and its balance."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return _account_out(payments.get_account(tx, caller.organization_id, after=query.after, limit=query.limit))
