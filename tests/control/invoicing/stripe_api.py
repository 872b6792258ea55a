"""A stand-in for Stripe's API on loopback: the wire that the connector speaks, after https://docs.stripe.com/api."""

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

KEY, WEBHOOK_SECRET = "sk_test_" + "4" * 24, "whsec_" + "5" * 32

PAID_AT = 1_796_169_600
"""2026-12-02."""


@dataclass
class StripeApi:
    """Customers and invoices as Stripe holds them. `credited`: sums of credit notes by invoice. `answered`: bodies by idempotency key,
    which are given again. `fails`: statuses with which the next requests are refused; 0 closes the connection before an answer, after the
    request was carried out. `surplus_minor`: what Stripe adds to each total, of which it should add nothing."""

    customers: set[str] = field(default_factory=lambda: {"cus_1"})
    invoices: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    credited: dict[str, int] = field(default_factory=dict)
    answered: dict[str, dict[str, Any]] = field(default_factory=dict)
    fails: list[int] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    surplus_minor: int = 0
    url: str = ""

    def answer(self, method: str, path: str, fields: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """Carry a request out. Returns the status and the body."""
        match method, *path.removeprefix("/v1/").split("/"):
            case "GET", "customers", id:
                return (200, {"id": id}) if id in self.customers else (404, {"error": {"code": "resource_missing", "param": "customer"}})
            case "POST", "invoices":
                assert (fields["auto_advance"], fields["pending_invoice_items_behavior"]) == ("false", "exclude")
                id = f"in_{len(self.invoices) + 1}"
                self.lines[id] = []
                self.invoices[id] = {"id": id, "object": "invoice", "status": "draft", "currency": fields["currency"]}
                return 200, self._sum(id)
            case "POST", "invoices", id, ("add_lines" | "remove_lines") if self.invoices[id]["status"] != "draft":
                return 400, {"error": {"code": "invoice_not_editable"}}
            case "POST", "invoices", id, "remove_lines":
                self.lines[id] = [each for each in self.lines[id] if each["id"] != fields["lines[0][id]"]]
                return 200, self._sum(id)
            case "POST", "invoices", id, "add_lines":
                tax = fields.get("lines[0][tax_amounts][0][amount]", "0")
                number = int(self.lines[id][-1]["id"][3:]) + 1 if self.lines[id] else 0
                line = {"id": f"il_{number}", "amount": int(fields["lines[0][amount]"]), "tax": int(tax)}
                self.lines[id].append({**line, "metadata": {"tollway_line": fields["lines[0][metadata][tollway_line]"]}})
                return 200, self._sum(id)
            case "POST", "invoices", id, ("finalize" | "void") as verb:
                if self.invoices[id]["status"] not in {"finalize": ["draft"], "void": ["open", "uncollectible"]}[verb]:
                    return 400, {"error": {"code": "invoice_status"}}
                self.invoices[id]["status"] = "void" if verb == "void" else "open" if self._sum(id)["total"] else "paid"
                return 200, self._sum(id)
            case "POST", ("credit_notes"):
                id, amount = fields["invoice"], int(fields["amount"])
                if self.invoices[id]["status"] != "open" or amount > self._sum(id)["amount_remaining"]:
                    return 400, {"error": {"code": "credit_note_amount"}}
                self.credited[id] = self.credited.get(id, 0) + amount
                return 200, {"id": f"cn_{id}_{self.credited[id]}", "object": "credit_note", "amount": amount}
            case "GET", "invoices", id:
                return 200, self._sum(id)
            case "GET", "invoices", id, "lines":
                after = fields.get("starting_after", "il_-1")
                rest = [each for each in self.lines[id] if int(each["id"][3:]) > int(after[3:])]
                return 200, {"object": "list", "data": rest[:2], "has_more": len(rest) > 2}
        return 404, {"error": {"code": "unknown"}}

    def pay(self, id: str) -> dict[str, Any]:
        """Collect an invoice, and return it."""
        invoice = self._sum(id)
        invoice |= {"status": "paid", "amount_paid": invoice["amount_remaining"], "amount_remaining": 0, "payment_intent": f"pi_{id}"}
        invoice |= {"status_transitions": {"paid_at": PAID_AT}}
        return invoice

    def _sum(self, id: str) -> dict[str, Any]:
        subtotal, tax = (sum(each[name] for each in self.lines[id]) for name in ("amount", "tax"))
        invoice = self.invoices[id]
        invoice |= {"subtotal": subtotal, "total_tax_amounts": [{"amount": tax}], "total": subtotal + tax + self.surplus_minor}
        paid = invoice.get("amount_paid", 0)
        invoice |= {"amount_paid": paid, "amount_remaining": max(invoice["total"] - self.credited.get(id, 0) - paid, 0)}
        return invoice


def sign(body: bytes, at: int, secret: str = WEBHOOK_SECRET) -> str:
    """Return the header with which Stripe signs an event at an instant (Unix seconds)."""
    return f"t={at},v1={hmac.new(secret.encode(), f'{at}.'.encode() + body, hashlib.sha256).hexdigest()},v0=old"


@contextmanager
def stripe_api() -> Iterator[StripeApi]:
    """Serve the stand-in for the length of the block."""
    api = StripeApi()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._serve(dict(parse_qsl(urlsplit(self.path).query)))

        def do_POST(self) -> None:
            self._serve(dict(parse_qsl(self.rfile.read(int(self.headers["content-length"] or 0)).decode())))

        def _serve(self, fields: dict[str, str]) -> None:
            path, key = urlsplit(self.path).path, self.headers.get("idempotency-key")
            api.requests.append((self.command, path))
            assert self.headers["authorization"] == f"Bearer {KEY}" and self.headers["stripe-version"]
            failure = api.fails.pop(0) if api.fails else None
            if failure:
                return self._send(failure, {"error": {"code": "planted", "message": "words of Stripe"}})
            if key is not None and key in api.answered:
                return self._send(200, api.answered[key])
            status, body = api.answer(self.command, path, fields)
            if key is not None and status == 200:
                api.answered[key] = dict(body)
            if failure is None:
                self._send(status, body)

        def _send(self, status: int, body: dict[str, Any]) -> None:
            encoded = json.dumps(body).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("location", api.url + "/v1/customers/cus_1")
            self.send_header("content-length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        api.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield api
        finally:
            server.shutdown()
            thread.join()
