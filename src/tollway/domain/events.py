"""Events: what happened to resources of an organization or of the platform, for programs outside. One table says which there are.

An event is stored in the transaction of the change that it is about (`storage.outbox`). Its id follows from what happened, so that telling
twice of one change stores one event. Its data are ids, states and instants: whoever wants more reads the resource. It has no secrets, no
content of requests and no names of people.
"""

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from tollway.domain import ids

CATALOG_VERSION = 1
"""Version of the catalogue. A new type or a new field of data keeps it; a field that goes or changes its meaning does not."""

SECONDS_PER_DAY = 86_400

EXPIRING_SECONDS = 7 * SECONDS_PER_DAY
"""Time before its expiry at which an event of a key is written. One that is made for a shorter time is not."""

KEPT_SECONDS = 30 * SECONDS_PER_DAY
"""Time for which events are kept, and with them their deliveries."""


class EventType(StrEnum):
    """Types of events."""

    API_KEY_CREATED = "api_key.created"
    API_KEY_ROTATED = "api_key.rotated"
    API_KEY_REVOKED = "api_key.revoked"
    API_KEY_LEAKED = "api_key.leaked"
    API_KEY_EXPIRING = "api_key.expiring"
    BUDGET_THRESHOLD_REACHED = "budget.threshold_reached"
    LIMIT_UPDATED = "limit.updated"
    CREDIT_GRANTED = "credit.granted"
    CREDIT_VOIDED = "credit.voided"
    CREDIT_EXPIRED = "credit.expired"
    CREDIT_TOPUP_REQUESTED = "credit.topup_requested"
    BILLING_PERIOD_CLOSED = "billing_period.closed"
    INVOICE_DRAFTED = "invoice.drafted"
    INVOICE_ISSUED = "invoice.issued"
    INVOICE_VOIDED = "invoice.voided"
    INVOICE_PAID = "invoice.paid"
    INVOICE_OVERDUE = "invoice.overdue"
    PAYMENT_RECORDED = "payment.recorded"
    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_EXPIRED = "batch.expired"
    BATCH_CANCELLED = "batch.cancelled"
    DEPLOYMENT_CREATED = "deployment.created"
    DEPLOYMENT_UPDATED = "deployment.updated"
    DEPLOYMENT_ARCHIVED = "deployment.archived"
    WEBHOOK_ENDPOINT_DISABLED = "webhook_endpoint.disabled"
    TELEMETRY_EXPORT_DISABLED = "telemetry_export.disabled"


class EventField(NamedTuple):
    """A field of the data of an event. `kind`: its type in JSON Schema. `is_nullable`: it can be null."""

    text: str
    example: object
    kind: str = "string"
    is_nullable: bool = False


class EventKind(NamedTuple):
    """A row of the catalogue. `summary`: when it happens. `fields`: its data. `is_of_platform`: operators alone receive it."""

    summary: str
    fields: Mapping[str, EventField]
    is_of_platform: bool = False


_KEY = EventField("Id of the key.", "key_0198c5f2a3b47c11a0b1c2d3e4f50617")
_PROJECT = EventField("Project of the key; null for an admin key.", "proj_0198c5f2a3b47c11a0b1c2d3e4f50617", is_nullable=True)
_GRANT = EventField("Id of the grant.", "grant_0198c5f2a3b47c11a0b1c2d3e4f50617")
_INVOICE = EventField("Id of the document.", "inv_0198c5f2a3b47c11a0b1c2d3e4f50617")
_ORGANIZATION = EventField("The organization that it concerns.", "org_0198c5f2a3b47c11a0b1c2d3e4f50617")
_DEPLOYMENT = EventField("Id of the deployment.", "dep_0198c5f2a3b47c11a0b1c2d3e4f50617")
_MODEL = EventField("Its model.", "llama-3.3-70b")
_BATCH_FIELDS = {
    "id": EventField("Id of the batch.", "batch_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "project_id": EventField("Project of the batch.", "proj_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "succeeded": EventField("Lines that were answered.", 98, "integer"),
    "failed": EventField("All other lines.", 2, "integer"),
}
_DEPLOYMENT_FIELDS = {"id": _DEPLOYMENT, "model": _MODEL}

CATALOG: Mapping[EventType, EventKind] = {
    EventType.API_KEY_CREATED: EventKind("A key was created.", {"id": _KEY, "project_id": _PROJECT}),
    EventType.API_KEY_ROTATED: EventKind(
        "A key got another secret.",
        {
            "id": _KEY,
            "project_id": _PROJECT,
            "old_secret_expires_at": EventField("Until when the secret before is valid, in Unix seconds.", 1790086400, "integer"),
        },
    ),
    EventType.API_KEY_REVOKED: EventKind("A key was revoked, by itself or with its project or its owner.", {"id": _KEY}),
    EventType.API_KEY_LEAKED: EventKind(
        "A secret of a key was reported as found in public, for the first time.",
        {
            "id": EventField("Id of the report.", "leak_0198c5f2a3b47c11a0b1c2d3e4f50617"),
            "key_id": _KEY,
            "action": EventField("What was done: `revoked`, `retired`, `none` or `inactive`.", "revoked"),
        },
    ),
    EventType.API_KEY_EXPIRING: EventKind(
        "A key expires within seven days. Not written for keys that have less than seven days when they are made, when their"
        " expiry is shortened, or when such keys are looked for the first time.",
        {"id": _KEY, "project_id": _PROJECT, "expires_at": EventField("When it expires, in Unix seconds.", 1790604800, "integer")},
    ),
    EventType.BUDGET_THRESHOLD_REACHED: EventKind(
        "Spending reached a threshold of a budget, a spend limit or a spend alert: once in each window for the same amount.",
        {
            "id": EventField("Id of the budget.", "bud_0198c5f2a3b47c11a0b1c2d3e4f50617"),
            "threshold_percent": EventField("The threshold, in percent of the amount.", 80, "integer"),
            "window_start_at": EventField("Start of the window, in Unix seconds.", 1790000000, "integer"),
        },
    ),
    EventType.LIMIT_UPDATED: EventKind(
        "A rate limit was set or removed.",
        {
            "level": EventField("The level: `organization`, `project`, `service_account`, `api_key` or `end_user`.", "project"),
            "id": EventField("Id of what is limited.", "proj_0198c5f2a3b47c11a0b1c2d3e4f50617"),
            "model": EventField("The model or the group of models; null for all together.", "llama-3.3-70b", is_nullable=True),
        },
    ),
    EventType.CREDIT_GRANTED: EventKind("Credit was granted.", {"id": _GRANT}),
    EventType.CREDIT_VOIDED: EventKind("Credit ended before its time.", {"id": _GRANT}),
    EventType.CREDIT_EXPIRED: EventKind("Credit reached its expiry. What was left of it cannot be used any more.", {"id": _GRANT}),
    EventType.CREDIT_TOPUP_REQUESTED: EventKind(
        "Usable credit fell below the threshold of the top-up rule, or a period of the rule began: more credit is asked for.",
        {
            "id": EventField("Id of the top-up.", "topup_0198c5f2a3b47c11a0b1c2d3e4f50617"),
            "is_low": EventField("Whether credit is low; otherwise a period began.", True, "boolean"),
        },
    ),
    EventType.BILLING_PERIOD_CLOSED: EventKind(
        "A billing period was closed: its usage and its amounts do not change any more.",
        {"id": EventField("Id of the period.", "period_0198c5f2a3b47c11a0b1c2d3e4f50617")},
    ),
    EventType.INVOICE_DRAFTED: EventKind(
        "A document was drafted.", {"id": _INVOICE, "organization_id": _ORGANIZATION}, is_of_platform=True
    ),
    EventType.INVOICE_ISSUED: EventKind(
        "An invoice or a credit note was issued.",
        {
            "id": _INVOICE,
            "series": EventField("Its series.", "RE-2026"),
            "number": EventField("Its number in the series.", 17, "integer"),
            "due_on": EventField("When it is due, as a date, if it is an invoice and its total is above zero.", "2026-12-14"),
        },
    ),
    EventType.INVOICE_VOIDED: EventKind("A draft was voided.", {"id": _INVOICE, "organization_id": _ORGANIZATION}, is_of_platform=True),
    EventType.INVOICE_PAID: EventKind(
        "Nothing of an invoice is open any more, or it was issued with a total of zero. A payment that is returned opens it again.",
        {"id": _INVOICE},
    ),
    EventType.INVOICE_OVERDUE: EventKind(
        "A step of dunning was taken for an invoice that is overdue.",
        {
            "id": _INVOICE,
            "step": EventField("The place of the step among those of the seller, from 1.", 1, "integer"),
            "action": EventField("What the step does.", "remind"),
        },
    ),
    EventType.PAYMENT_RECORDED: EventKind(
        "A payment, a refund, a return or a write-off was recorded.",
        {
            "id": EventField("Id of the payment.", "pay_0198c5f2a3b47c11a0b1c2d3e4f50617"),
            "kind": EventField("`payment`, `refund`, `return` or `write_off`.", "payment"),
        },
    ),
    EventType.BATCH_COMPLETED: EventKind("Every line of a batch has been answered or has failed.", _BATCH_FIELDS),
    EventType.BATCH_FAILED: EventKind(
        "A batch failed when it was validated, or its key ended: not all of its lines were sent.", _BATCH_FIELDS
    ),
    EventType.BATCH_EXPIRED: EventKind("A batch was not done within its time. Lines that were answered have answers.", _BATCH_FIELDS),
    EventType.BATCH_CANCELLED: EventKind("A batch was cancelled and has ended.", _BATCH_FIELDS),
    EventType.DEPLOYMENT_CREATED: EventKind("A deployment was added to a model.", _DEPLOYMENT_FIELDS, is_of_platform=True),
    EventType.DEPLOYMENT_UPDATED: EventKind("A deployment was changed, or drained.", _DEPLOYMENT_FIELDS, is_of_platform=True),
    EventType.DEPLOYMENT_ARCHIVED: EventKind("A deployment was archived.", _DEPLOYMENT_FIELDS, is_of_platform=True),
    EventType.WEBHOOK_ENDPOINT_DISABLED: EventKind(
        "An endpoint was disabled, because no delivery had succeeded for three days or it answered 410.",
        {
            "id": EventField("Id of the endpoint.", "hook_0198c5f2a3b47c11a0b1c2d3e4f50617"),
            "reason": EventField("The reason: `failing` or `gone`.", "failing"),
        },
    ),
    EventType.TELEMETRY_EXPORT_DISABLED: EventKind(
        "A telemetry export was disabled, because its receiver had taken nothing for three days or answered 410.",
        {
            "id": EventField("Id of the export.", "telexp_0198c5f2a3b47c11a0b1c2d3e4f50617"),
            "reason": EventField("The reason: `failing` or `gone`.", "failing"),
        },
    ),
}
"""Every type of event."""

TENANT_TYPES = frozenset(each for each, kind in CATALOG.items() if not kind.is_of_platform)
"""Types that organizations receive."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An event. `organization_id`: whose it is; None for the platform's own. `sequence`: its number among those of its organization, dense
    from 1; None until it was given one. `created_at`: UTC microseconds."""

    id: str
    organization_id: str | None
    type: EventType
    created_at: int
    data: Mapping[str, Any]
    sequence: int | None = None


def new_event(type: EventType, organization_id: str | None, *, at: int, data: Mapping[str, Any], key: str = "") -> Event:
    """Return an event of the instant `at` (UTC microseconds). Its id follows from type, organization, `data["id"]`, `key` and instant:
    `key` distinguishes events that have the same resource and instant."""
    named = "\0".join((type, organization_id or "", str(data["id"]), key, str(at)))
    bits = int.from_bytes(hashlib.sha256(named.encode()).digest()[:10], "big")
    return Event(id=ids.new_id(ids.EVENT, at, bits), organization_id=organization_id, type=type, created_at=at, data=data)


def encode(event: Event) -> bytes:
    """Return an event as it is sent and shown: JSON, in the shape of OpenAI's webhook events."""
    return msgspec.json.encode(shape(event))


def shape(event: Event) -> dict[str, Any]:
    """Return an event as it is shown. Instants are in Unix seconds."""
    return {
        "id": event.id,
        "object": "event",
        "type": str(event.type),
        "created_at": event.created_at // 1_000_000,
        "organization_id": event.organization_id,
        "sequence": event.sequence,
        "data": dict(event.data),
    }


def make_example(type: EventType) -> dict[str, Any]:
    """Return example data of a type of events, for tests of endpoints."""
    return {name: field.example for name, field in CATALOG[type].fields.items()}


def make_schema(type: EventType) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a type of events as it is sent."""
    kind = CATALOG[type]
    data = {
        name: {"type": [field.kind, "null"] if field.is_nullable else field.kind, "description": field.text}
        for name, field in kind.fields.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": str(type),
        "description": kind.summary,
        "type": "object",
        "required": ["id", "object", "type", "created_at", "organization_id", "sequence", "data"],
        "properties": {
            "id": {"type": "string", "description": "Id of the event, the same in each delivery."},
            "object": {"const": "event"},
            "type": {"const": str(type)},
            "created_at": {"type": "integer", "description": "When it happened, in Unix seconds."},
            "organization_id": {"type": ["string", "null"], "description": "Whose it is; null for the platform's own."},
            "sequence": {"type": ["integer", "null"], "description": "Its number among the events of the organization; null in a test."},
            "data": {"type": "object", "required": list(data), "properties": data},
        },
    }
