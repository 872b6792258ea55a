"""The books of the simulated year, computed again: from what was sent, granted, corrected and paid, and from exports and documents as
customers get them. None of the code that booked them is used for it; the stand-alone verifiers replay each export and each document."""

import hashlib
import importlib.util
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from tests.simulation.year_customers import DAY_US, Customer, day_name, list_sellers, month_name
from tollway.control.invoicing import books, focus_export, payments
from tollway.control.invoicing.dunning import OVERDUE_BUDGET
from tollway.control.money import exports
from tollway.control.verification.verify import verify
from tollway.domain.credits import GrantCategory
from tollway.storage import budgets as stored_budgets
from tollway.storage import invoices as stored_invoices
from tollway.storage import schema_invoices, schema_money, schema_payments, schema_periods
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive

if TYPE_CHECKING:
    from tests.simulation.year import History

VERIFIER = Path(__file__).parents[2] / "verifier" / "tollway_invoice_verifier.py"

FUNDING = {GrantCategory.PAID: "prepayments", GrantCategory.PROMOTIONAL: "promotional_expense", GrantCategory.GOODWILL: "goodwill_expense"}

DUNNED_AFTER_DAYS = 8
RESTRICTED_AFTER_DAYS = 31


class Checked(NamedTuple):
    """Result of a check: what was compared and how often, what does not agree, a digest of all documents and accounts, and the main sums
    by currency."""

    counts: Mapping[str, int]
    differences: list[str]
    digest: str
    statement: Mapping[str, Mapping[str, int]]


@dataclass(slots=True)
class _Check:
    database: Database
    archive: Archive
    history: "History"
    directory: Path
    now: int
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    expected: Counter[str] = field(default_factory=Counter)
    """Balance of each account as it should be, by owner/kind/currency in pico-currency."""
    exports: dict[str, Path] = field(default_factory=dict)
    served: dict[tuple[str, str], int] = field(default_factory=dict)

    # ---- Reading --------------------------------------------------------------------------------------------------------

    def select(self, query: sa.Select[Any]) -> list[Any]:
        with self.database.platform(write=False) as tx:
            return list(tx.connection.execute(query))

    def post(self, owner: str, account: str, currency: str, pico: int) -> None:
        if pico:
            self.expected[f"{owner}/{account}/{currency}"] += pico

    def differ(self, what: str, found: object, right: object) -> None:
        if found != right:
            self.wrong.append(f"{what} is {found}, and should be {right}")

    # ---- From what was sent and agreed ----------------------------------------------------------------------------------

    def book_usage(self) -> None:
        for each in self.history.requests:
            one = each.customer
            for name, pico in each.amounts.items():
                self.post(one.id, "unbilled", one.currency, pico)
                self.post("platform", f"revenue:{each.series[0]}:{name}", one.currency, -pico)
        for corrected in self.history.corrections:
            one, model = corrected.request.customer, corrected.request.series[0]
            self.post(one.id, "unbilled", one.currency, sum(corrected.by_class.values()) - corrected.credit_pico)
            self.post("platform", f"credits:{model}", one.currency, corrected.credit_pico)
            for name, pico in corrected.by_class.items():
                self.post("platform", f"revenue:{model}:{name}", one.currency, -pico)
        for granted in self.history.grants.values():
            self.post("platform", FUNDING[granted.category], granted.currency, granted.amount_pico)
            self.post(granted.organization_id, f"credit:{granted.id}", granted.currency, -granted.amount_pico)
        for paid in self.history.payments:
            one, pico = paid.customer, paid.minor * paid.customer.step
            self.post("platform", "write_off" if paid.is_loss else "cash", one.currency, pico)
            self.post(one.id, "receivable", one.currency, -pico)

    # ---- From exports ---------------------------------------------------------------------------------------------------

    def book_exports(self) -> None:
        """Export each closed period, and book what its lines of credit and contracts say; the verifier computes these again."""
        periods = schema_periods.billing_periods.c
        by_id = {one.id: one for one in self.history.customers}
        end_of_service = {one.id: one.ends_at for one in self.history.customers}
        billed = Counter[str]()
        rows = self.select(sa.select(periods.id, periods.organization_id, periods.start_at, periods.state).order_by(periods.id))
        for row in rows:
            one = by_id[row.organization_id]
            if row.state != "closed":
                if row.start_at < end_of_service[one.id]:
                    self.wrong.append(f"the period {row.id} of {one.zone} is {row.state}")
                continue
            path = self.directory / f"{row.id}.ndjson"
            open_tx = lambda id=one.id: self.database.tenant(id, write=False)  # noqa: E731
            path.write_bytes(b"".join(exports.export(open_tx, self.archive, row.id, self.now)))
            self.exports[row.id] = path
            with path.open() as file:
                self._book_lines(one, (json.loads(line) for line in file), billed)
            self.counts["periods closed"] += 1
        for granted in self.history.grants.values():
            left = granted.amount_pico - billed[granted.id]
            if left < 0:
                self.wrong.append(f"{granted.id} has paid {-left} more than it was")

    def _book_lines(self, one: Customer, lines: Iterable[Mapping[str, Any]], used: Counter[str]) -> None:
        period: Mapping[str, Any] = {}
        month, events = "", 0
        for line in lines:
            match line["type"]:
                case "period":
                    period, month = line, month_name(one.zone, line["start_at"])
                case "credit":
                    self._book_credit(one, line, used)
                case "contract_charge":
                    for each in (each for part in line["parts"] for each in part["lines"]):
                        self._book_contract(one, each["kind"], int(each["amount_pico"]))
                case "event":
                    events += 1
                    record = json.loads(line["payload"])
                    served = month_name(one.zone, record["ended_at"])
                    is_late = record["ended_at"] < period["start_at"]
                    if (served != month and not is_late) or served > month:
                        self.wrong.append(f"a request that ended in {served} in {one.zone} is booked in {month}")
                    self.counts["late requests"] += is_late
                    self.served[one.id, record["admit"]["request_id"]] = self.served.get((one.id, record["admit"]["request_id"]), 0) + 1
        self.differ(f"the number of events of {period['id']}", period["events"], events)
        self.counts["events in exports"] += events

    def _book_credit(self, one: Customer, line: Mapping[str, Any], used: Counter[str]) -> None:
        pico, granted = int(line["amount_pico"]), self.history.grants[line["grant_id"]]
        used[granted.id] += pico
        self.counts[f"grants, {line['move']}"] += 1
        self.post(one.id, f"credit:{granted.id}", one.currency, pico)
        if line["move"] == "burn":
            self.post(one.id, "unbilled", one.currency, -pico)
        else:
            self.post("platform", "breakage" if line["move"] == "expire" else FUNDING[granted.category], one.currency, -pico)

    def _book_contract(self, one: Customer, kind: str, pico: int) -> None:
        self.counts[f"contract lines, {kind}"] += 1
        if kind == "lapse":
            self.post("platform", "deferred_revenue", one.currency, pico)
            self.post("platform", "breakage", one.currency, -pico)
            return
        self.post(one.id, "unbilled", one.currency, pico)
        account = "deferred_revenue" if kind in ("prepayment", "drawdown") else f"contract_revenue:{kind}"
        self.post("platform", account, one.currency, -pico)

    # ---- From documents -------------------------------------------------------------------------------------------------

    def book_documents(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Book each issued document by its own amounts, and check its tax and its number."""
        table = schema_invoices.invoices.c
        query = sa.select(table.id, table.document, table.series, table.number, table.legal_entity_id, table.digest)
        by_id = {one.id: one for one in self.history.customers}
        numbers: dict[tuple[str, str], list[int]] = {}
        for row in self.select(query.where(table.state == "issued").order_by(table.issued_at, table.series, table.number)):
            document = json.loads(row.document)
            one = by_id[document["organization_id"]]
            sign = -1 if document["kind"] == "credit_note" else 1
            totals, tax, step = document["totals"], document["tax"], one.step
            self.differ(f"the digest of {document['number']}", row.digest, hashlib.sha256(row.document.encode()).hexdigest())
            self.differ(f"the rate of {document['number']}", tax["rate_bp"], one.buyer.rates[document["legal_entity_id"]])
            against = Counter({line["account"]: 0 for line in document["lines"]})
            for line in document["lines"]:
                against[line["account"]] += sign * int(line["amount_pico"])
            against["unbilled"] -= sign * sum(int(each["amount_pico"]) for each in document["allowances"])
            for account, pico in against.items():
                self.post(one.id if account == "unbilled" else "platform", account, one.currency, -pico)
            self.post(one.id, "receivable", one.currency, sign * totals["gross_minor"] * step)
            self.post("platform", f"vat_payable:{tax['country']}", one.currency, -sign * totals["tax_minor"] * step)
            self.post("platform", "rounding", one.currency, sum(against.values()) - sign * totals["net_minor"] * step)
            numbers.setdefault((row.legal_entity_id, row.series), []).append(row.number)
            self.counts[f"documents, {document['kind']}"] += 1
            yield row.document, document
        left = self.select(sa.select(table.id).where(table.state == "draft"))
        self.differ("the number of drafts that were not issued", len(left), 0)
        for (entity_id, series), found in numbers.items():
            self.differ(f"the numbers of {series} of {entity_id}, in the order of their issue", found, list(range(1, len(found) + 1)))
            self.counts[f"numbers in {series}"] = len(found)

    def verify_documents(self, documents: Iterable[tuple[str, dict[str, Any]]]) -> str:
        """Replay each document from the export of its period with the stand-alone verifier. Returns the digest of all of them."""
        spec = importlib.util.spec_from_file_location("tollway_invoice_verifier", VERIFIER)
        assert spec is not None and spec.loader is not None
        verifier = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(verifier)
        digest, path = hashlib.sha256(), self.directory / "invoice.json"
        unbilled_periods = dict(self.exports)
        for text, document in documents:
            digest.update(text.encode() + b"\n")
            period = document["period"]
            path.write_text(text)
            try:
                if period is None:
                    verifier.Invoice(text).check_sums()
                else:
                    verifier.verify(str(self.exports[period["id"]]), str(path), hashlib.sha256(text.encode()).hexdigest())
                    unbilled_periods.pop(period["id"], None)
            except (verifier.Difference, verifier.Unreadable) as error:
                self.wrong.append(f"{document['number']}: {error}")
            self.counts["documents that the stand-alone verifier replayed"] += 1
        for export in unbilled_periods.values():
            try:
                verifier.verifier.verify_export(str(export))
            except (verifier.Difference, verifier.Unreadable) as error:
                self.wrong.append(f"{export.name}: {error}")
        return digest.hexdigest()

    # ---- What must agree ------------------------------------------------------------------------------------------------

    def compare_ledger(self) -> dict[str, int]:
        """Compare entries and balances of each account with what they should be. Returns the balances."""
        entries, balances = Counter[str](), {}
        transactions = Counter[str]()
        table = schema_money.ledger_entries.c
        for row in self.select(sa.select(table.transaction_id, table.account_id, table.amount_pico)):
            entries[row.account_id] += int(row.amount_pico)
            transactions[row.transaction_id] += int(row.amount_pico)
        for row in self.select(sa.select(schema_money.balances.c.account_id, schema_money.balances.c.posted_pico)):
            balances[row.account_id] = int(row.posted_pico)
        for account in sorted({*entries, *balances, *self.expected}):
            self.differ(f"the ledger on {account}", entries.get(account, 0), self.expected.get(account, 0))
            self.differ(f"the balance of {account}", balances.get(account, 0), entries.get(account, 0))
        self.differ("the sum of transactions that do not balance", sum(abs(pico) for pico in transactions.values()), 0)
        for one in self.history.customers:
            self.differ(f"what is unbilled of {one.id}", balances.get(f"{one.id}/unbilled/{one.currency}", 0), 0)
        self.counts["accounts"], self.counts["transactions"] = len(entries), len(transactions)
        return balances

    def compare_customers(self, balances: Mapping[str, int]) -> None:
        """Compare how each customer stands with the ledger; each invoice that is open was dunned, or is held."""
        notices, holds = schema_payments.dunning_notices.c, schema_payments.dunning_holds.c
        dunned = {row.invoice_id for row in self.select(sa.select(notices.invoice_id))}
        held = {row.invoice_id for row in self.select(sa.select(holds.invoice_id))}
        self.counts["invoices that were dunned"] = len(dunned)
        with self.database.platform(write=False) as tx:
            for one in self.history.customers:
                account = payments.get_account(tx, one.id)
                owed = sum(each.open_minor for each in account.open) - account.balance_minor
                self.differ(f"what {one.id} owes", owed * one.step, balances.get(f"{one.id}/receivable/{one.currency}", 0))
                must_restrict = False
                for each in account.open:
                    overdue = (date.fromisoformat(day_name(self.now)) - date.fromisoformat(each.document.due_on)).days
                    if overdue >= DUNNED_AFTER_DAYS and each.id not in dunned | held:
                        self.wrong.append(f"{each.document.number} is {overdue} days overdue, and nobody was told")
                    must_restrict |= overdue >= RESTRICTED_AFTER_DAYS and each.id not in held
                self.counts["invoices that are open"] += len(account.open)
                restricted = one.id in stored_budgets.list_restricted(tx, OVERDUE_BUDGET)
                if must_restrict and not restricted:
                    self.wrong.append(f"{one.id} is not restricted")
                if restricted and not account.open:
                    self.wrong.append(f"{one.id} is restricted, though nothing is open")

    def compare_exports_of_documents(self) -> None:
        """FOCUS: what is billed by the rows of each document is what is to be paid. Books: each document is what the ledger has."""
        with self.database.platform(write=False) as tx:
            for invoice in stored_invoices.iterate_invoices(tx):
                if invoice.state == "issued":
                    rows = "".join(focus_export.write(tx, invoice, is_daily=False))
                    self.counts["FOCUS files"] += bool(rows)
            months = {month_name("UTC", at) for at in range(self.now - 500 * DAY_US, self.now, 20 * DAY_US)}
            for seller in list_sellers(0):
                for month in sorted(months):
                    self.counts["books of a month"] += bool(books.export(tx, seller.id, month))

    def state(self, balances: Mapping[str, int]) -> dict[str, dict[str, int]]:
        """Return the main sums by currency, debits above zero."""
        groups = {
            "revenue": ("revenue:", "contract_revenue:", "credits:", "revenue_deductions"),
            "tax": ("vat_payable:",),
            "receivables": ("receivable",),
            "deferred revenue": ("deferred_revenue",),
            "credit": ("credit:",),
            "breakage": ("breakage",),
            "cash": ("cash",),
            "write-off": ("write_off",),
            "rounding": ("rounding",),
        }
        found: dict[str, dict[str, int]] = {}
        for account, pico in balances.items():
            _, kind, currency = account.split("/")
            for name, prefixes in groups.items():
                if kind.startswith(prefixes):
                    sums = found.setdefault(currency, dict.fromkeys(groups, 0))
                    sums[name] += pico
        return found


def check(database: Database, archive: Archive, history: "History", directory: Path, now: int) -> Checked:
    """Compute the books of a year again and compare them with those of the control plane."""
    found = _Check(database, archive, history, directory, now)
    found.book_usage()
    found.book_exports()
    found.differ("how often requests are billed that were not sent once", _count_odd(found, history), 0)
    digest = hashlib.sha256(found.verify_documents(found.book_documents()).encode())
    balances = found.compare_ledger()
    found.compare_customers(balances)
    found.compare_exports_of_documents()
    digest.update(json.dumps(dict(sorted(balances.items()))).encode())
    report = verify(database, archive)
    found.wrong += [f"tollway verify: {each}" for each in report.differences]
    found.counts["differences that tollway verify found"] = len(report.differences)
    return Checked(dict(sorted(found.counts.items())), found.wrong, digest.hexdigest(), found.state(balances))


def _count_odd(found: _Check, history: "History") -> int:
    """Return how many requests are not in exactly one export."""
    sent = {(each.customer.id, each.id) for each in history.requests}
    return sum(found.served.get(each, 0) != 1 for each in sent) + len(found.served.keys() - sent)
