"""Records for the operator's own systems: what is sent to a sink, such as a topic of Kafka, and in which form.

Each of the streams is a log that the database has anyway, with numbers that are given after the commit and have no gap. A sink follows
them; it is derived from them, and nothing is ever read back from it.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from tollway.domain.audit import PLATFORM_CHAIN, AuditRecord
from tollway.domain.events import Event, encode


class Stream(StrEnum):
    """Streams of records."""

    EVENTS = "events"
    """Events as webhooks get them (`domain.events`)."""
    AUDIT = "audit"
    """Records of the audit trail."""
    USAGE = "usage"
    """Usage events, as they are billed."""


class SinkMessage(msgspec.Struct, frozen=True, gc=False):
    """A record as it is sent. `organization_id`: whose it is; None for the platform's own. `id`: of the record, the same each time that it
    is sent. `body`: JSON, an object."""

    stream: Stream
    organization_id: str | None
    id: str
    body: bytes

    @property
    def owner(self) -> str:
        """The owner, whose records stay in order: the organization, or "platform"."""
        return self.organization_id or PLATFORM_CHAIN


def of_event(event: Event) -> SinkMessage:
    """Return an event as webhooks receive it."""
    return SinkMessage(Stream.EVENTS, event.organization_id, event.id, encode(event))


def of_audit_record(record: AuditRecord) -> SinkMessage:
    """Return a record of the audit trail. `recorded_at` is in Unix seconds."""
    organization_id = None if record.chain == PLATFORM_CHAIN else record.chain
    shown = {
        "id": record.id,
        "object": "audit_record",
        "organization_id": organization_id,
        "sequence": record.sequence,
        "recorded_at": record.recorded_at // 1_000_000,
        "event": record.event,
        "operation": record.operation,
        "actor": record.actor,
        "target": record.target,
        "changes": msgspec.Raw(record.changes.encode()),
        "omitted": record.omitted,
        "hash": record.hash.hex(),
    }
    return SinkMessage(Stream.AUDIT, organization_id, record.id, msgspec.json.encode(shown))


def of_usage(row: Mapping[str, Any]) -> SinkMessage:
    """Return a usage event from its columns, as hours of usage have them: instants in UTC microseconds, amounts in pico-currency. What is
    none is left out."""
    shown = {"id": row["event_id"], "object": "usage_event"}
    shown |= {name: value for name, value in row.items() if value is not None and name != "event_id"}
    return SinkMessage(Stream.USAGE, row["organization_id"], row["event_id"], msgspec.json.encode(shown))


def count_fitting(messages: Sequence[SinkMessage], records_max: int, bytes_max: int) -> int:
    """Return how many of the first messages make one body: `records_max` at most, of `bytes_max` bytes together. The first one always
    does."""
    count, size = 0, 0
    for each in messages[:records_max]:
        size += len(each.body) + 1  # with the comma
        if count and size > bytes_max:
            break
        count += 1
    return count
