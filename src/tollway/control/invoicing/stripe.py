"""Stripe as a connector: issued invoices are copied there and collected (https://docs.stripe.com/api, version STRIPE_VERSION).

An empty draft is made first, without automatic advance and without the customer's pending items; then each line is added, under an
idempotency key that is our id of the line, with its tax as an amount that is ours; then Stripe's totals are compared with those of the
document, and only if all are equal it is finalised. Lines carry our ids in their metadata, so one that is there already is not added again,
however long ago it was added: Stripe forgets idempotency keys after a day or more.

The address is the operator's; it must be HTTPS, or on this host. No redirect is followed; time and size of an answer are bounded. What
Stripe says in words is not repeated: it can name people.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any, NamedTuple

import httpx2

from tollway.control.authorities import read_authorities
from tollway.control.invoicing.connectors import ConnectorRefused, ConnectorUnavailable, SinkPayment
from tollway.control.invoicing.texts import TEXTS, describe_line
from tollway.domain.billing_parties import BillingAccount
from tollway.domain.currencies import get_currency
from tollway.domain.faults import Fault
from tollway.domain.invoices import Document, day_of
from tollway.domain.money import round_half_up
from tollway.wire import bodies

STRIPE_VERSION = "2025-02-24.acacia"
"""Version of the API that requests name, and that the webhook endpoint must be made with."""

REQUEST_SECONDS_MAX = 20
"""Deadline of one request."""

ANSWER_BYTES_MAX = 4 * 1024 * 1024
"""Largest answer that is read: a page of lines has about 200 kB."""

LINES_MAX = 250
"""Lines of an invoice that Stripe takes."""

PAGE = 100
"""Lines that are read at once: as many as Stripe gives."""

OTHER_UNITS = frozenset({"ISK", "MGA", "UGX"})
"""Currencies whose amounts Stripe counts in another unit than ISO 4217 (https://docs.stripe.com/currencies#special-cases). Those of three
decimals it rounds to two."""

_RETRIED = frozenset({401, 403, 409, 429})
"""Statuses that can go away: of keys that are wrong as yet, of requests at once, and of too many."""


class SinkLine(NamedTuple):
    """A line as Stripe gets it. `id`: our id of it. `tax_minor`: its part of the tax."""

    id: str
    text: str
    amount_minor: int
    tax_minor: int


def list_lines(document: Document, open_minor: int) -> list[SinkLine]:
    """Return the lines of a document for a service that knows amounts only: lines, allowances, and what was paid before. Their amounts and
    taxes sum to `open_minor`."""
    texts = TEXTS[document.language]
    amounts = [(str(line.number), describe_line(line, document.language), line.net_minor) for line in document.lines]
    amounts += [
        (f"allowance:{each.kind}", texts[f"allowance_{each.kind}"], -each.net_minor) for each in document.allowances if each.net_minor
    ]
    lines, net_minor, taxed_minor = [], 0, 0
    for id, text, amount_minor in amounts:
        # Each line gets what the tax of all lines so far comes to, less what those before it got: so the parts sum to the whole.
        net_minor += amount_minor
        tax_minor = round_half_up(net_minor * document.tax.rate_bp, 10_000) - taxed_minor
        taxed_minor += tax_minor
        lines.append(SinkLine(f"{document.id}:{id}", text, amount_minor, tax_minor))
    paid_minor = document.totals.gross_minor - open_minor
    if paid_minor:
        lines.append(SinkLine(f"{_paid_prefix(document)}{paid_minor}", texts["paid_before"], -paid_minor, 0))
    return lines


def _paid_prefix(document: Document) -> str:
    """Return how the id of the line of what was paid before begins. The amount follows: it can change while the lines are added."""
    return f"{document.id}:paid:"


@dataclass(frozen=True, slots=True)
class StripeConnector:
    """A Stripe account. `url`: of the API, without a path. `key`: a secret or restricted key (sk_..., rk_...). `webhook_secrets`: those
    with which Stripe signs events (whsec_...), two while one is replaced."""

    url: str
    key: str = field(repr=False)
    webhook_secrets: tuple[str, ...] = field(default=(), repr=False)

    def check(self, account: BillingAccount, document: Document) -> None:
        """Return if Stripe knows the customer, and can collect the document. Raises ConnectorRefused, ConnectorUnavailable."""
        if document.currency in OTHER_UNITS:
            raise ConnectorRefused(f"Stripe counts {document.currency} in another unit")
        if get_currency(document.currency).minor_units > 2:
            raise ConnectorRefused(f"Stripe takes two of the three decimals of {document.currency}")
        if len(document.lines) + len(document.allowances) + 1 > LINES_MAX:
            raise ConnectorRefused(f"Stripe takes {LINES_MAX} lines")
        if self._get(f"customers/{account.connector_customer}").get("deleted"):
            raise ConnectorRefused("Stripe has deleted the customer")

    def open(self, account: BillingAccount, document: Document) -> str:
        """Make an empty draft at Stripe with the number of the document, and return its id. Raises ConnectorRefused,
        ConnectorUnavailable."""
        fields = {
            "customer": account.connector_customer,
            "currency": document.currency.lower(),
            "auto_advance": "false",
            "collection_method": "charge_automatically",
            "pending_invoice_items_behavior": "exclude",
            "number": document.number,
            "metadata[tollway_invoice]": document.id,
        }
        return _get_id(self._post("invoices", fields, f"{document.id}:invoice"))

    def issue(self, external_id: str, account: BillingAccount, document: Document, open_minor: int) -> None:
        """Add the lines, compare the totals, and finalise. Raises ConnectorRefused, ConnectorUnavailable."""
        invoice = self._get(f"invoices/{external_id}")
        if invoice.get("status") == "draft":
            wanted = list_lines(document, open_minor)
            there = {}
            for line_id, id in self._list_line_ids(external_id):
                if id.startswith(_paid_prefix(document)) and id not in {each.id for each in wanted}:
                    stale = {"lines[0][id]": line_id, "lines[0][behavior]": "delete"}
                    self._post(f"invoices/{external_id}/remove_lines", stale, f"{line_id}:remove")
                else:
                    there[id] = line_id
            for line in wanted:
                if line.id not in there:
                    self._post(f"invoices/{external_id}/add_lines", _line_fields(line, document), line.id)
            invoice = self._get(f"invoices/{external_id}")
        is_draft = invoice["status"] == "draft"
        # Once it is finalised its lines stay; what was settled since then is compared when the payment is looked for.
        _compare(invoice, document, open_minor if is_draft else int(invoice["total"]))
        if is_draft:
            # From here on Stripe collects it.
            self._post(f"invoices/{external_id}/finalize", {"auto_advance": "true"}, f"{document.id}:finalize")

    def find_payment(self, external_id: str) -> SinkPayment | None:
        """Return what Stripe collected for an invoice; None if nothing. Raises ConnectorRefused, ConnectorUnavailable."""
        return read_payment(self._get(f"invoices/{external_id}"))

    def adjust(self, external_id: str, open_minor: int) -> None:
        """Credit at Stripe what was settled otherwise since the invoice was finalised. Raises ConnectorRefused where nothing will come any
        more, or less than what is open; ConnectorUnavailable."""
        invoice = self._get(f"invoices/{external_id}")
        if invoice.get("status") != "open":
            raise ConnectorRefused(f"the invoice is {invoice.get('status')} at Stripe, and {open_minor} of it are open")
        theirs = int(invoice["amount_remaining"])
        if theirs < open_minor:
            raise ConnectorRefused(f"Stripe collects {theirs}, and {open_minor} are open")
        if theirs > open_minor:
            fields = {"invoice": external_id, "amount": str(theirs - open_minor)}
            self._post("credit_notes", fields, f"{external_id}:credit:{theirs}:{open_minor}")

    def cancel(self, external_id: str) -> None:
        """Void an invoice at Stripe that was settled otherwise, unless nothing is collected for it anyway. Raises ConnectorRefused,
        ConnectorUnavailable."""
        if self._get(f"invoices/{external_id}").get("status") not in ("void", "paid"):
            self._post(f"invoices/{external_id}/void", {}, f"{external_id}:void")

    def _list_line_ids(self, external_id: str) -> Iterator[tuple[str, str]]:
        """Yield Stripe's id and ours of each line of an invoice."""
        after, has_more = "", True
        while has_more:
            page = self._get(f"invoices/{external_id}/lines", {"limit": str(PAGE)} | ({"starting_after": after} if after else {}))
            lines = page.get("data")
            if not isinstance(lines, list):
                raise ConnectorUnavailable("Stripe answered something else than lines")
            for line in lines:
                after = _get_id(line)
                yield after, str((line.get("metadata") or {}).get("tollway_line", ""))
            has_more = bool(page.get("has_more")) and bool(lines)

    def _get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        return asyncio.run(self._ask("GET", path, query=query))

    def _post(self, path: str, fields: Mapping[str, str], idempotency_key: str) -> dict[str, Any]:
        return asyncio.run(self._ask("POST", path, fields=fields, idempotency_key=idempotency_key))

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {self.key}", "stripe-version": STRIPE_VERSION, "accept-encoding": "identity"}
        if idempotency_key is not None:
            headers["idempotency-key"] = idempotency_key
        body = bytearray()
        try:
            async with (
                asyncio.timeout(REQUEST_SECONDS_MAX),
                httpx2.AsyncClient(
                    follow_redirects=False, trust_env=False, verify=read_authorities(), timeout=REQUEST_SECONDS_MAX
                ) as client,
                client.stream(method, f"{self.url}/v1/{path}", params=query, data=fields, headers=headers) as answer,
            ):
                async for piece in answer.aiter_raw():
                    body += piece
                    if len(body) > ANSWER_BYTES_MAX:
                        raise ConnectorUnavailable("the answer of Stripe is too long")
                status = answer.status_code
            found = bodies.parse(bytes(body))
        except (TimeoutError, httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError):
            raise ConnectorUnavailable("Stripe cannot be reached") from None
        except Fault:
            raise ConnectorUnavailable("Stripe did not answer a JSON object") from None
        if 200 <= status < 300:
            return found
        error = found.get("error")
        words = [str(error.get(each)) for each in ("code", "param") if error.get(each)] if isinstance(error, dict) else []
        said = f"Stripe answered {status}" + (f" ({', '.join(words)[:100]})" if words else "")
        raise (ConnectorUnavailable if status in _RETRIED or not 400 <= status < 500 else ConnectorRefused)(said)


def read_payment(invoice: Mapping[str, Any]) -> SinkPayment | None:
    """Return what was collected for an invoice, as Stripe shows it; None if it is not paid, if nothing was to be paid, or if the money came
    by another way."""
    amount, paid_at = invoice.get("amount_paid"), (invoice.get("status_transitions") or {}).get("paid_at")
    if invoice.get("status") != "paid" or invoice.get("paid_out_of_band") or not isinstance(amount, int) or amount <= 0:
        return None
    if not isinstance(paid_at, int) or not 0 <= paid_at < 1 << 33:
        return None
    intent = invoice.get("payment_intent")
    return SinkPayment(
        id=intent if isinstance(intent, str) else _get_id(invoice),
        amount_minor=amount,
        value_on=day_of(paid_at * 1_000_000, UTC),
    )


def _line_fields(line: SinkLine, document: Document) -> dict[str, str]:
    fields = {
        "lines[0][amount]": str(line.amount_minor),
        "lines[0][description]": line.text,
        "lines[0][discountable]": "false",
        "lines[0][metadata][tollway_line]": line.id,
    }
    if document.totals.tax_minor and not line.id.startswith(_paid_prefix(document)):
        tax = "lines[0][tax_amounts][0]"
        percentage = f"{document.tax.rate_bp // 100}.{document.tax.rate_bp % 100:02d}"
        fields |= {
            f"{tax}[amount]": str(line.tax_minor),
            f"{tax}[taxable_amount]": str(line.amount_minor),
            f"{tax}[tax_rate_data][display_name]": "VAT",
            f"{tax}[tax_rate_data][inclusive]": "false",
            f"{tax}[tax_rate_data][percentage]": percentage,
            f"{tax}[tax_rate_data][country]": document.tax.country,
        }
    return fields


def _compare(invoice: Mapping[str, Any], document: Document, open_minor: int) -> None:
    """Raise ConnectorRefused unless Stripe comes to the same amounts as the document."""
    taxes: Sequence[Mapping[str, Any]] = invoice.get("total_tax_amounts") or ()
    paid_minor = document.totals.gross_minor - open_minor
    pairs = (
        ("currency", invoice.get("currency"), document.currency.lower()),
        ("net sum", invoice.get("subtotal"), document.totals.net_minor - paid_minor),
        ("tax", sum(each.get("amount", 0) for each in taxes), document.totals.tax_minor),
        ("total", invoice.get("total"), open_minor),
    )
    for name, theirs, ours in pairs:
        if theirs != ours:
            shown = f"the {name} of Stripe is {theirs}, that of the invoice {ours}"
            raise ConnectorRefused(shown + f" ({get_currency(document.currency).minor_units} decimals)")


def _get_id(found: Mapping[str, Any]) -> str:
    id = found.get("id")
    if not isinstance(id, str) or not 0 < len(id) <= 128:
        raise ConnectorUnavailable("Stripe answered something without an id")
    return id
