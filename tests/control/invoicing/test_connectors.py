"""Invoices that Stripe collects: copied, compared, finalised, paid; events that come twice, wrongly signed or about something else."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.control.harness import Running, answered, wait_until
from tests.control.invoicing.parties import BUYER, add_parties
from tests.control.invoicing.stripe_api import KEY, PAID_AT, WEBHOOK_SECRET, StripeApi, sign, stripe_api
from tests.control.invoicing.test_documents import credit, document_of, draft, issue, refused
from tests.control.invoicing.test_payments import (
    DAY_US,
    DUE_AT,
    GROSS,
    dun,
    entry,
    is_restricted,
    next_id,
    open_and_balance,
    pay,
    statement,
)
from tests.control.metering.test_collect import take
from tests.control.money.test_periods import NOW, SEPTEMBER, close
from tests.control.test_routes import refused as refused_by_api
from tests.link.samples import ORGANIZATION, admit, final, frames
from tests.storage.databases import fill
from tollway.cli.app import run as run_command
from tollway.control.auditing import audit
from tollway.control.auditing.audit import AuditFilter
from tollway.control.invoicing import connectors, payments, stripe_events
from tollway.control.invoicing.connectors import ConnectorRefused
from tollway.control.invoicing.stripe import STRIPE_VERSION, StripeConnector, list_lines
from tollway.control.verification.verify import verify
from tollway.domain.billing_classes import Quantities
from tollway.domain.billing_parties import BillingAccount, Language, find_account_problem
from tollway.domain.connectors import ATTEMPTS_MAX, Connector, InvoiceSync, SyncState
from tollway.domain.faults import Fault
from tollway.domain.invoices import LineKind, Totals
from tollway.domain.money import CENT_PICO, round_half_up
from tollway.domain.pages import PageWindow
from tollway.domain.payments import PaymentKind, PaymentOrigin
from tollway.domain.usage import Tick
from tollway.storage import invoice_syncs
from tollway.storage import payments as stored_payments
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive

STRIPE_BUYER = msgspec.structs.replace(BUYER, connector=Connector.STRIPE, connector_customer="cus_1")
HOUR_US = 3_600_000_000


@pytest.fixture
def stripe() -> Iterator[StripeApi]:
    with stripe_api() as api:
        yield api


def fill_september(database: Database, archive: Archive, buyer: BillingAccount = STRIPE_BUYER) -> str:
    """Draft the invoice of a month, and return its id."""
    large = final(admit(1), used=Quantities(2_000_000_000))
    take(database, archive, frames([large.admit, large, Tick(at=SEPTEMBER.end_at)]))
    close(database, SEPTEMBER.start_at)
    add_parties(database, buyer)
    (made,) = draft(database)
    return made.id


def run(database: Database, stripe: StripeApi | None, at: int = NOW) -> list[dict[str, object]]:
    lines: list[dict[str, object]] = []
    linked = {} if stripe is None else {Connector.STRIPE: StripeConnector(stripe.url, KEY)}
    connectors.run(
        database,
        linked,
        new_id=lambda: next_id("pay"),
        now=lambda: at,
        is_stopping=lambda: False,
        log=lambda line: lines.append(dict(line)),
    )
    return lines


def sync_of(database: Database, invoice_id: str) -> InvoiceSync:
    with database.platform(write=False) as tx:
        found = invoice_syncs.find_sync(tx, invoice_id)
    assert found is not None
    return found


def tell(database: Database, kind: str, found: dict[str, Any], version: str = STRIPE_VERSION) -> str:
    with database.platform() as tx:
        event = {"id": "evt_1", "type": kind, "api_version": version, "created": PAID_AT + 86_400, "data": {"object": found}}
        return stripe_events.handle(tx, event, new_id=lambda: next_id("pay"), now=NOW).outcome


def test_an_invoice_waits_for_its_connector_is_copied_collected_and_settled_once(
    database: Database, archive: Archive, stripe: StripeApi
) -> None:
    invoice_id = fill_september(database, archive)
    with refused("waits for stripe"):
        issue(database, invoice_id)
    assert run(database, None)[0]["event"] == "invoice_not_synced", "without a key nothing is asked, and the draft goes on waiting"
    run(database, stripe, NOW + HOUR_US)
    assert sync_of(database, invoice_id).state is SyncState.DRAFT_READY
    issued = issue(database, invoice_id)
    stripe.fails = [500]
    assert run(database, stripe, NOW + HOUR_US)[0]["detail"] == "Stripe answered 500 (planted)"
    stripe.fails = [0]  # the line is there, its answer was lost: as if control were killed
    for hours in (2, 3):
        run(database, stripe, NOW + hours * HOUR_US)
    stripe.answered.clear()
    (sync,) = (sync_of(database, invoice_id),)
    assert (sync.state, sync.problem, list(stripe.invoices)) == (SyncState.PAYMENT_PENDING, "", ["in_1"])
    assert stripe.invoices["in_1"]["status"] == "open" and stripe.invoices["in_1"]["total"] == GROSS
    assert len(stripe.lines["in_1"]) == len(document_of(issued).lines), "no line is there twice"
    assert open_and_balance(database) == ([GROSS], 0)

    assert tell(database, "invoice.paid", stripe.invoices["in_1"]) == "ignored", "it is not paid"
    paid = stripe.pay("in_1")
    assert [tell(database, "invoice.paid", paid) for _ in range(3)] == ["recorded", "known", "known"]
    assert (open_and_balance(database), sync_of(database, invoice_id).state) == (([], 0), SyncState.SETTLED)
    assert run(database, stripe, NOW + 99 * HOUR_US) == []
    assert tell(database, "invoice.paid", {**paid, "id": "in_9"}) == "ignored"

    with refused("API version"):
        tell(database, "invoice.paid", paid, "2025-03-31.basil")
    assert tell(database, "invoice.paid", paid | {"payment_intent": None}) == "known", "it is the same payment under another id"

    dispute = {"id": "dp_1", "payment_intent": "pi_in_1", "amount": GROSS, "currency": "eur", "status": "needs_response"}
    with refused("not recorded yet"):
        tell(database, "charge.dispute.funds_reinstated", dispute)
    assert [tell(database, "charge.dispute.created", dispute) for _ in range(2)] == ["recorded", "known"]
    assert tell(database, "charge.dispute.funds_withdrawn", dispute | {"amount": 1}) == "ignored", "a part is left to a person"
    assert [tell(database, "charge.dispute.funds_withdrawn", dispute) for _ in range(2)] == ["recorded", "known"]
    with database.platform(write=False) as tx:
        assert stored_payments.find_hold(tx, invoice_id) == "disputed at Stripe (dp_1)"
    assert open_and_balance(database) == ([GROSS], 0)
    reinstated = "charge.dispute.funds_reinstated"
    assert tell(database, reinstated, dispute | {"amount": 1}) == "ignored", "nothing was taken back for a dispute about a part"
    assert tell(database, reinstated, dispute | {"id": "dp_2"}) == "ignored"
    assert [tell(database, reinstated, dispute) for _ in range(2)] == ["recorded", "known"]
    assert open_and_balance(database) == ([], 0)
    refund = {"id": "re_1", "payment_intent": "pi_in_1", "amount": 1_190, "currency": "eur", "status": "succeeded"}
    with refused("More cannot be paid back"):
        tell(database, "refund.created", refund)
    issue(database, credit(database, invoice_id, 1_000 * CENT_PICO).id)
    assert tell(database, "refund.created", refund | {"status": "pending"}) == "ignored"
    assert [tell(database, "refund.updated", refund) for _ in range(2)] == ["recorded", "known"]
    assert open_and_balance(database) == ([], 0)
    with database.platform(write=False) as tx:
        made = stored_payments.list_payments(tx, PageWindow(), organization_id=None).items
    assert [each.kind for each in made] == [PaymentKind.PAYMENT, PaymentKind.RETURN, PaymentKind.PAYMENT, PaymentKind.REFUND]
    assert {each.origin for each in made} == {PaymentOrigin.STRIPE}
    assert [each.value_on for each in made] == ["2026-12-02", *["2026-12-03"] * 3], "days of Stripe, not those on which events came"
    assert verify(database, archive).differences == []


def has_come(database: Database, stripe: StripeApi, at: int) -> tuple[SyncState, str, str, int]:
    """Return the state after a run, the problem, and Stripe's state of the invoice with what it still collects."""
    run(database, stripe, at)
    (invoice_id,) = (each.invoice_id for each in list_syncs(database))
    sync = sync_of(database, invoice_id)
    stripe.answer("GET", "/v1/invoices/in_1", {})
    return sync.state, sync.problem, stripe.invoices["in_1"]["status"], stripe.invoices["in_1"]["amount_remaining"]


def list_syncs(database: Database) -> list[InvoiceSync]:
    with database.platform(write=False) as tx:
        return list(connectors.list_syncs(tx, PageWindow(), organization_id=None).items)


def fill_pending(database: Database, archive: Archive, stripe: StripeApi) -> str:
    """Return an invoice of a month that Stripe collects."""
    invoice_id = fill_september(database, archive)
    run(database, stripe)
    issue(database, invoice_id)
    assert has_come(database, stripe, NOW) == (SyncState.PAYMENT_PENDING, "", "open", GROSS)
    return invoice_id


def test_stripe_collects_only_what_is_open_at_once_after_each_settlement(database: Database, archive: Archive, stripe: StripeApi) -> None:
    invoice_id = fill_pending(database, archive, stripe)
    issue(database, credit(database, invoice_id, 1_000 * CENT_PICO).id)
    pending = SyncState.PAYMENT_PENDING
    assert has_come(database, stripe, NOW) == (pending, "", "open", GROSS - 1_190), "no poll is waited for"
    part = pay(database, 10_000)
    assert has_come(database, stripe, NOW) == (pending, "", "open", GROSS - 11_190)
    assert has_come(database, stripe, NOW + 7 * HOUR_US) == (pending, "", "open", GROSS - 11_190), "nothing is credited twice"
    with database.platform() as tx:
        payments.return_payment(tx, part.id, id=next_id("pay"), value_on="2026-12-05", reference="", actor="key_1", now=NOW)
    problem = f"Stripe collects {GROSS - 11_190}, and {GROSS - 1_190} are open"
    assert has_come(database, stripe, NOW) == (pending, problem, "open", GROSS - 11_190)
    pay(database, GROSS - 1_190)
    assert has_come(database, stripe, NOW)[::2] == (SyncState.SETTLED, "void"), "the settlement has it asked again"
    assert verify(database, archive).differences == []


@pytest.mark.parametrize("status", ["void", "paid"])
def test_an_invoice_for_which_stripe_collects_nothing_is_settled_without_being_voided_again(
    database: Database, archive: Archive, stripe: StripeApi, status: str
) -> None:
    fill_pending(database, archive, stripe)
    stripe.invoices["in_1"]["status"] = status  # by the request before, of which the answer was lost; or it was paid by another way
    problem = f"the invoice is {status} at Stripe, and {GROSS} of it are open"
    assert has_come(database, stripe, NOW + 7 * HOUR_US)[1] == problem
    pay(database, GROSS)
    assert has_come(database, stripe, NOW + 7 * HOUR_US)[:3] == (SyncState.SETTLED, "", status)


def test_what_was_settled_while_lines_are_added_replaces_the_line_of_it(database: Database, archive: Archive, stripe: StripeApi) -> None:
    invoice_id = fill_september(database, archive)
    run(database, stripe)
    issue(database, invoice_id)
    pay(database, 100)
    stripe.surplus_minor = 1
    assert has_come(database, stripe, NOW)[2:] == ("draft", GROSS - 99)
    stripe.surplus_minor = 0
    pay(database, 200)
    assert has_come(database, stripe, NOW) == (SyncState.PAYMENT_PENDING, "", "open", GROSS - 300)


def test_an_answer_that_cannot_be_read_holds_up_no_other_invoice(
    database: Database, archive: Archive, stripe: StripeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_pending(database, archive, stripe)
    pay(database, 1)
    monkeypatch.setattr(stripe, "_sum", lambda id: {"id": id, "status": "open", "amount_remaining": None})
    (line,) = run(database, stripe)
    assert (line["event"], line["detail"]) == ("invoice_not_synced", "the answer of stripe cannot be read (TypeError)")


def test_a_refund_takes_back_what_the_balance_settled_and_one_that_fails_gives_it_again(
    database: Database, archive: Archive, stripe: StripeApi
) -> None:
    invoice_id = fill_pending(database, archive, stripe)
    assert tell(database, "invoice.paid", stripe.pay("in_1")) == "recorded"
    refund = {"id": "re_1", "payment_intent": "pi_in_1", "amount": GROSS, "currency": "eur", "status": "succeeded"}
    with refused("More cannot be paid back"):
        tell(database, "refund.created", refund)
    issue(database, credit(database, invoice_id, None).id)
    (again,) = draft(database)
    run(database, stripe)
    issue(database, again.id)
    assert open_and_balance(database) == ([], 0), "the credit note has settled the next invoice"
    assert tell(database, "refund.failed", refund) == "ignored"
    assert [tell(database, "refund.created", refund) for _ in range(2)] == ["recorded", "known"]
    assert open_and_balance(database) == ([GROSS], 0)
    assert [tell(database, "refund.failed", refund) for _ in range(2)] == ["recorded", "known"]
    assert open_and_balance(database) == ([], 0)
    with refused("More cannot be paid back"):
        pay(database, 100, PaymentKind.REFUND)
    pay(database, 100, PaymentKind.REFUND, again.id)
    assert open_and_balance(database) == ([100], 0)
    assert verify(database, archive).differences == []


def test_what_is_refused_or_unequal_is_parked_until_an_operator_has_it_tried_again(
    database: Database, archive: Archive, stripe: StripeApi
) -> None:
    invoice_id = fill_september(database, archive)
    stripe.customers.clear()
    (line,) = run(database, stripe)
    assert (line["event"], line["detail"]) == ("invoice_parked", "Stripe answered 404 (resource_missing, customer)")
    assert sync_of(database, invoice_id).is_parked and run(database, stripe, NOW + 99 * HOUR_US) == []
    stripe.customers.add("cus_1")
    stripe.fails = [302]
    with database.platform() as tx:
        connectors.retry(tx, invoice_id, NOW)
    assert run(database, stripe)[0]["detail"] == "Stripe answered 302 (planted)", "no redirect is followed"
    for attempt in range(ATTEMPTS_MAX):
        stripe.fails = [503]
        run(database, stripe, NOW + (attempt + 1) * 7 * HOUR_US)
    assert sync_of(database, invoice_id).is_parked, "it is not asked indefinitely"
    stripe.fails.clear()
    with database.platform() as tx:
        connectors.retry(tx, invoice_id, NOW)
    run(database, stripe)
    with refused("Nothing is to be asked"), database.platform() as tx:
        connectors.retry(tx, invoice_id, NOW)
    issue(database, invoice_id)
    stripe.surplus_minor = 1
    (line,) = run(database, stripe)
    assert line["detail"] == f"the total of Stripe is {GROSS + 1}, that of the invoice {GROSS} (2 decimals)"
    assert stripe.invoices["in_1"]["status"] == "draft", "what is not equal is never collected"
    stripe.surplus_minor = 0
    with database.platform() as tx:
        connectors.retry(tx, invoice_id, NOW)
    run(database, stripe)
    assert sync_of(database, invoice_id).state is SyncState.PAYMENT_PENDING
    stripe.pay("in_1")
    run(database, stripe, NOW + 7 * HOUR_US)
    assert (open_and_balance(database), sync_of(database, invoice_id).state) == (([], 0), SyncState.SETTLED), "found without an event"


@given(
    nets=st.lists(st.integers(-(10**9), 10**12), min_size=1, max_size=20),
    allowance=st.integers(0, 10**9),
    rate_bp=st.sampled_from([0, 700, 1900, 2100, 2550]),
    paid=st.integers(0, 10**6),
)
def test_lines_and_taxes_for_a_service_sum_to_the_net_amount_the_tax_and_what_is_open(
    nets: list[int], allowance: int, rate_bp: int, paid: int
) -> None:
    net = sum(nets) - allowance
    tax = round_half_up(net * rate_bp, 10_000)
    totals = Totals(lines_minor=sum(nets), allowances_minor=allowance, net_minor=net, tax_minor=tax, gross_minor=net + tax)
    line = msgspec.defstruct("Line", ["number", "kind", "description", "billing_class", "net_minor"])
    lines = [line(at, LineKind.CONTRACT, "seat_fee: Seats", "", each) for at, each in enumerate(nets, 1)]
    allowances = [msgspec.defstruct("Allowed", ["kind", "net_minor"])("service_credit", allowance)]
    fields = {"id": "inv_1", "language": Language.ENGLISH, "lines": lines, "allowances": allowances, "totals": totals}
    document: Any = msgspec.defstruct("Doc", [*fields, "tax"])(*fields.values(), msgspec.defstruct("Tax", ["rate_bp"])(rate_bp))
    made = list_lines(document, totals.gross_minor - paid)
    assert sum(each.tax_minor for each in made) == tax
    assert sum(each.amount_minor + each.tax_minor for each in made) == totals.gross_minor - paid
    assert len({each.id for each in made}) == len(made)
    assert {each.text for each in made} <= {"Fee per seat: Seats", "Service level credit", "Paid before"}, "what the document says"


@pytest.mark.parametrize("currency", ["ISK", "MGA", "UGX", "BHD", "KWD", "TND"])
def test_currencies_that_stripe_counts_otherwise_are_refused_before_the_issue(currency: str) -> None:
    document: Any = msgspec.defstruct("Doc", ["currency", "lines", "allowances"])(currency, [], [])
    with pytest.raises(ConnectorRefused, match=currency):
        StripeConnector("http://127.0.0.1:9", KEY).check(STRIPE_BUYER, document)


BODY = b'{"type": "ping"}'


@pytest.mark.parametrize(
    ("header", "is_right"),
    [
        (sign(BODY, 1_000), True),
        (sign(BODY, 1_000 - 300), True),
        (sign(BODY, 1_000 + 300), True),
        (sign(BODY, 1_000 - 301), False),
        (sign(BODY, 1_000 + 301), False),
        (sign(BODY + b" ", 1_000), False),
        (sign(BODY, 1_000, "whsec_other"), False),
        (sign(BODY, 1_000).replace("v1=", "v0="), False),
        (sign(BODY, 1_000).replace("t=1000", "t=1001"), False),
        ("t=,v1=", False),
        ("t=-1,v1=a", False),
        ("t=\u00b2,v1=\u00e4", False),
        ("v1=a", False),
        ("", False),
        ("," * 5_000, False),
    ],
)
def test_165_only_a_fresh_signature_over_the_whole_event_is_taken(header: str, is_right: bool) -> None:
    secrets = ("whsec_next", WEBHOOK_SECRET)
    if is_right:
        stripe_events.verify_signature(header, BODY, secrets, 1_000_000_000)
        return
    with pytest.raises(Fault, match="signature"):
        stripe_events.verify_signature(header, BODY, secrets, 1_000_000_000)


def test_an_account_names_its_customer_at_stripe_and_no_other_account_does() -> None:
    assert find_account_problem(STRIPE_BUYER) is None
    for wrong in ("", "cus_", "cus_1/../x", "acct_1", "cus_" + "1" * 60):
        problem = find_account_problem(msgspec.structs.replace(STRIPE_BUYER, connector_customer=wrong))
        assert problem is not None and problem.field == "connector_customer"
    assert find_account_problem(msgspec.structs.replace(BUYER, connector_customer="cus_1")) is not None


def test_165_signed_events_pay_through_the_api_and_operators_see_what_waits(
    fresh_control: Running,
    stripe: StripeApi,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    control = fresh_control
    fill(control.plane.database)
    client = control.client(None)
    refused_by_api(client.post("/v1/stripe/events", content=BODY), 404, "not_found")
    connector = StripeConnector(stripe.url, KEY, (WEBHOOK_SECRET,))
    object.__setattr__(control.plane, "stripe", connector)
    with control.clock.set_to(NOW):
        invoice_id = fill_september(control.plane.database, control.plane.archive)
        run_to(SyncState.DRAFT_READY, control, stripe, invoice_id)
        issue(control.plane.database, invoice_id)
        run_to(SyncState.PAYMENT_PENDING, control, stripe, invoice_id)
        (shown,) = answered(control.operator().get("/v1/platform/invoice_syncs"))["data"]
        assert (shown["id"], shown["state"], shown["external_id"]) == (invoice_id, "payment_processing.pending", "in_1")
        assert answered(control.operator().post(f"/v1/platform/invoices/{invoice_id}/sync"))["is_parked"] is False
        body = json.dumps(
            {"id": "evt_1", "type": "invoice.paid", "api_version": STRIPE_VERSION, "data": {"object": stripe.pay("in_1")}}
        ).encode()

        def send(header: str) -> Any:
            return client.post("/v1/stripe/events", content=body, headers={"stripe-signature": header, "content-type": "application/json"})

        refused_by_api(send(sign(body, NOW // 1_000_000 - 3_600)), 401, "invalid_signature")
        refused_by_api(send(sign(b"{}", NOW // 1_000_000)), 401, "invalid_signature")
        assert open_and_balance(control.plane.database) == ([GROSS], 0)
        for _ in range(2):
            dun(control.plane.database, DUE_AT + 40 * DAY_US)
        assert is_restricted(control.plane.database)
        outcomes = [answered(send(sign(body, NOW // 1_000_000)))["outcome"] for _ in range(2)]
        assert outcomes == ["recorded", "known"] and open_and_balance(control.plane.database) == ([], 0)
        assert not is_restricted(control.plane.database)
        with control.plane.database.tenant(ORGANIZATION, write=False) as tx:
            (told,) = audit.list_records(tx, AuditFilter(events=("invoice.dunned",), actor_ids=("stripe",))).items
        assert told.target.id.startswith("bud_"), "the trail tells of the restriction that was lifted"
        use_the_command_line(control, invoice_id, tmp_path, capsys, monkeypatch)
        body = b'{"type": "customer.created"}'
        assert answered(send(sign(body, NOW // 1_000_000)))["outcome"] == "ignored"
    counted = "tollway_control_stripe_events_total"
    page = control.link(None).get("/metrics").text
    for result, times in {"refused": 2, "recorded": 1, "known": 1, "ignored": 1}.items():
        assert f'{counted}{{result="{result}"}} {times}.0' in page


def run_to(state: SyncState, control: Running, stripe: StripeApi, invoice_id: str) -> None:
    """Have Stripe asked until the invoice is in a state: control's own job, which began without a key, may have asked first."""

    def has_come() -> bool:
        run(control.plane.database, stripe, NOW + HOUR_US)
        return sync_of(control.plane.database, invoice_id).state is state

    wait_until(has_come)


def use_the_command_line(
    control: Running, invoice_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Look at payments and record others, as a finance person does."""
    monkeypatch.setenv("TOLLWAY_CONTROL_URL", str(control.operator().base_url))
    monkeypatch.setenv("TOLLWAY_KEY", control.platform_key)

    def called(*arguments: str, code: int = 0) -> str:
        assert run_command(["payments", *arguments]) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    assert "settled" in called("connectors", "--organization", ORGANIZATION)
    assert "Nothing is to be asked" in called("retry", invoice_id, code=1)
    (first,) = json.loads(called("list", "-o", "json"))
    assert (first["origin"], first["amount"]) == ("stripe", "642.60")
    made = json.loads(called("record", ORGANIZATION, "10.00", "--value-on", "2026-12-02", "-o", "json"))
    called("return", made["id"], "--reference", "AM04")
    (tmp_path / "statement.xml").write_text(statement(entry("5.00", "no number", "A1")))
    imported = called("import", str(tmp_path / "statement.xml"))
    assert "1 without an invoice" in imported and "tollway payments match" in imported
    assert "tollway payments match" not in called("import", str(tmp_path / "statement.xml")), "what is known waits no longer than before"
    assert "02.12.2026 is no day: write it as 2026-12-01" in called("record", ORGANIZATION, "10.00", "--value-on", "02.12.2026", code=2)
    assert "is no id of an invoice" in called("record", ORGANIZATION, "10.00", "--invoice", "RE-2026-000001", code=2)
    for wrong in ("5,00", "1.000,00", "1e3"):
        assert f"{wrong} is no amount: write it as 1234.56" in called("record", ORGANIZATION, wrong, code=2)
    (unmatched,) = json.loads(called("unmatched", "-o", "json"))
    assert "payment of 5.00 EUR" in called("match", unmatched["id"], invoice_id)
    assert "is not dunned: disputed" in called("hold", invoice_id, "--reason", "disputed")
    assert called("dunning", "-o", "json") == "[]\n"
    assert "balance 5.00 EUR" in called("account", "--own", "--organization", ORGANIZATION)
