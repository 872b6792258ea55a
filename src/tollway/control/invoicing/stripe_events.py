"""Events that Stripe sends about invoices that it collects: payments, refunds and disputes (https://docs.stripe.com/webhooks).

Nothing of an event is read before its signature is verified. Each effect is known by Stripe's id of the payment, refund or dispute, so an
event that comes again, in any order, changes nothing. Events about what Tollway does not know are ignored and counted. What cannot be done
yet, such as a refund before its credit note is issued, is refused, and Stripe sends it again for three days.
"""

import hashlib
import hmac
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC
from enum import StrEnum
from threading import Lock
from typing import Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from tollway.control.invoicing import connectors, dunning, payments
from tollway.control.invoicing.payments import ExternalPayment, RefundedPayment
from tollway.control.invoicing.stripe import STRIPE_VERSION, read_payment
from tollway.domain.connectors import Connector
from tollway.domain.faults import STATE_CONFLICT, Blame, Fault, FaultKind
from tollway.domain.invoices import day_of
from tollway.domain.payments import Payment, PaymentKind, PaymentOrigin
from tollway.metric_table import find_metric
from tollway.storage import invoice_syncs
from tollway.storage import payments as stored
from tollway.storage.database import PlatformTx

BODY_BYTES_MAX = 512 * 1024
"""Longest event that is read."""

TOLERANCE_SECONDS = 300
"""Difference between the time of a signature and ours, either way: what Stripe's own libraries take."""

SIGNATURES_MAX = 16
"""Signatures of a header that are tried: Stripe sends one for each secret in force, of which there are two while one is replaced."""

ACTOR = "stripe"

SIGNATURE_INVALID = FaultKind(
    code="invalid_signature", status=401, blame=Blame.TENANT, message="The signature of the event is missing, wrong or too old."
)


class EventOutcome(StrEnum):
    """Ways in which an event can end."""

    RECORDED = "recorded"
    KNOWN = "known"
    IGNORED = "ignored"


class EventCounts(Collector):
    """Events of Stripe by result: recorded, known already, ignored, or refused."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = Lock()

    def count(self, result: str) -> None:
        """Count one. From any thread."""
        with self._lock:
            self._counts[result] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield the counts."""
        row = find_metric("tollway_control_stripe_events")
        family = CounterMetricFamily(row.name, row.text, labels=row.labels)
        with self._lock:
            for result, count in self._counts.items():
                family.add_metric([result], count)
        yield family


def verify_signature(header: str, body: bytes, secrets: Sequence[str], now: int) -> None:
    """Return if a `Stripe-Signature` header signs the body with one of the secrets, at most TOLERANCE_SECONDS from `now` (UTC
    microseconds): HMAC-SHA-256 of the timestamp, a point and the body. Raises Fault invalid_signature."""
    pairs = [part.strip().partition("=") for part in header[:4096].split(",")]
    signed_at = next((value for name, _, value in pairs if name == "t"), "")
    given = [value for name, _, value in pairs if name == "v1"][:SIGNATURES_MAX]
    if not (signed_at.isascii() and signed_at.isdigit() and len(signed_at) <= 12):
        raise Fault(SIGNATURE_INVALID)
    signed = signed_at.encode() + b"." + body
    right = [hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() for secret in secrets]
    is_right = any(hmac.compare_digest(each.encode(), value.encode()) for each in right for value in given)
    if not is_right or abs(now // 1_000_000 - int(signed_at)) > TOLERANCE_SECONDS:
        raise Fault(SIGNATURE_INVALID)


class HandledEvent(NamedTuple):
    """Result of an event. `organization_id`: whose payments it changed; None if it changed nothing."""

    outcome: EventOutcome
    organization_id: str | None = None


HANDLED = frozenset(
    {
        "invoice.paid",
        "refund.created",
        "refund.updated",
        "refund.failed",
        "charge.dispute.created",
        "charge.dispute.funds_withdrawn",
        "charge.dispute.funds_reinstated",
    }
)
"""Types of events that have an effect."""


class _Told(NamedTuple):
    """Object that an event is about, the day (UTC) on which it happened, and what its effect is recorded with."""

    found: Mapping[str, Any]
    day: str
    new_id: Callable[[], str]
    now: int


IGNORED, KNOWN = HandledEvent(EventOutcome.IGNORED), HandledEvent(EventOutcome.KNOWN)


def handle(tx: PlatformTx, event: Mapping[str, Any], *, new_id: Callable[[], str], now: int) -> HandledEvent:
    """Do what a verified event tells. Raises Fault where it cannot be done yet."""
    kind, data = event.get("type"), event.get("data")
    found = data.get("object") if isinstance(data, dict) else None
    if not isinstance(found, dict) or kind not in HANDLED:
        return IGNORED
    if event.get("api_version") != STRIPE_VERSION:  # another one calls payments by other ids
        raise Fault(STATE_CONFLICT, message=f"The webhook endpoint must be of API version {STRIPE_VERSION}.")
    created = event.get("created")  # Unix seconds
    at = created * 1_000_000 if isinstance(created, int) and 0 <= created < 1 << 33 else now
    told = _Told(found, day_of(at, UTC), new_id, now)
    match kind:
        case "invoice.paid":
            return _record_paid(tx, told)
        case "refund.created" | "refund.updated" if found.get("status") == "succeeded":
            return _record(tx, told, PaymentKind.REFUND)
        case "refund.failed":
            return _record_failed(tx, told)
        case "charge.dispute.created":
            return _hold(tx, found, now)
        case "charge.dispute.funds_withdrawn":
            return _take_back(tx, told)
        case "charge.dispute.funds_reinstated":
            return _give_back(tx, told)
        case _:
            return IGNORED


def _record_paid(tx: PlatformTx, told: _Told) -> HandledEvent:
    invoice = told.found
    sync = invoice_syncs.find_by_external_id(tx, Connector.STRIPE, _text(invoice, "id"))
    paid = read_payment(invoice)
    if sync is None or paid is None:
        return IGNORED
    payment = connectors.record_collected(tx, sync, paid, _text(invoice, "currency").upper(), new_id=told.new_id, now=told.now)
    return KNOWN if payment is None else HandledEvent(EventOutcome.RECORDED, sync.organization_id)


def _record(tx: PlatformTx, told: _Told, kind: PaymentKind, suffix: str = "") -> HandledEvent:
    """Record a refund, or what came back of one or of a dispute, under Stripe's id of it."""
    found = told.found
    paid, amount = _find_payment(tx, found), found.get("amount")
    if paid is None or not isinstance(amount, int):
        return IGNORED
    moved = ExternalPayment(
        kind=kind,
        external_id=f"{Connector.STRIPE}/{_text(found, 'id')}{suffix}",
        amount_minor=amount,
        currency=_text(found, "currency").upper(),
        value_on=told.day,
        origin=PaymentOrigin.STRIPE,
        reference=paid.external_id,
    )
    sync = invoice_syncs.find_by_external_id(tx, Connector.STRIPE, paid.reference)
    refunded = RefundedPayment(paid.id, sync.invoice_id) if kind is PaymentKind.REFUND and sync is not None else None
    recorded = payments.record_external(tx, paid.organization_id, moved, [], id=told.new_id(), actor=ACTOR, now=told.now, refunded=refunded)
    return KNOWN if recorded is None else HandledEvent(EventOutcome.RECORDED, paid.organization_id)


def _record_failed(tx: PlatformTx, told: _Told) -> HandledEvent:
    """Record that the money of a refund came back, if the refund is recorded."""
    recorded = stored.find_by_external_id(tx, f"{Connector.STRIPE}/{_text(told.found, 'id')}")
    if recorded is None or recorded.kind is not PaymentKind.REFUND:
        return IGNORED
    return _record(tx, told, PaymentKind.PAYMENT, suffix="/failed")


def _give_back(tx: PlatformTx, told: _Told) -> HandledEvent:
    """Record what came back of a dispute, if it was taken for it. Raises STATE_CONFLICT if that is not recorded yet."""
    paid = _find_payment(tx, told.found)
    if paid is None or told.found.get("amount") != paid.amount_minor:
        return IGNORED
    returned = stored.find_return(tx, paid.id)
    if returned is None:
        raise Fault(STATE_CONFLICT, message="It is not recorded yet that the payment was taken back.")
    return _record(tx, told, PaymentKind.PAYMENT) if returned.reference == _text(told.found, "id") else IGNORED


def _hold(tx: PlatformTx, dispute: Mapping[str, Any], now: int) -> HandledEvent:
    """Leave the invoices alone that a disputed payment settled."""
    paid = _find_payment(tx, dispute)
    if paid is None:
        return IGNORED
    settled = {each.target_id for each in stored.list_settlements_by(tx, paid.organization_id, [paid.id])}
    held = [id for id in sorted(settled) if stored.find_payment(tx, id) is None and stored.find_hold(tx, id) is None]
    for invoice_id in held:
        dunning.set_hold(tx, invoice_id, f"disputed at Stripe ({_text(dispute, 'id')})", now)
    return HandledEvent(EventOutcome.RECORDED, paid.organization_id) if held else KNOWN


def _take_back(tx: PlatformTx, told: _Told) -> HandledEvent:
    """Record that a payment was taken back for a dispute about all of it; one about a part is left to a person."""
    paid = _find_payment(tx, told.found)
    if paid is None or told.found.get("amount") != paid.amount_minor:
        return IGNORED
    if stored.find_return(tx, paid.id) is not None:
        return KNOWN
    payments.return_payment(
        tx,
        paid.id,
        id=told.new_id(),
        value_on=told.day,
        reference=_text(told.found, "id"),
        actor=ACTOR,
        now=told.now,
        origin=PaymentOrigin.STRIPE,
    )
    return HandledEvent(EventOutcome.RECORDED, paid.organization_id)


def _find_payment(tx: PlatformTx, found: Mapping[str, Any]) -> Payment | None:
    intent = _text(found, "payment_intent")
    return stored.find_by_external_id(tx, f"{Connector.STRIPE}/{intent}") if intent else None


def _text(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    return value[:128] if isinstance(value, str) else ""
