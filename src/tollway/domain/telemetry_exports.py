"""Telemetry exports: receivers that an organization is sent its own requests, usage and audit trail at.

An export sends either OTLP, to any receiver of OpenTelemetry, or JSON arrays of records. What is sent is derived from the numbered logs of
the database (`domain.sinks`), and holds what the organization may read anyway: no content, no address of an upstream, nothing of others.
"""

import re
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from tollway.domain.webhooks import DisabledReason

EXPORTS_MAX = 5
"""Exports of one organization."""

HEADERS_MAX = 16
"""Headers of one export."""

HEADER_CHARACTERS_MAX = 4096
"""Characters of the value of a header: tokens of identity providers are long."""

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")  # a token of RFC 9110, section 5.6.2
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")

OWN_HEADERS = frozenset(
    {
        *("host", "content-type", "content-length", "content-encoding", "user-agent", "idempotency-key"),
        *("connection", "keep-alive", "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect"),
    }
)
"""Headers that the sender writes itself, or that belong to the connection."""


class ExportFormat(StrEnum):
    """The form in which an export is sent."""

    OTLP = "otlp"
    """OpenTelemetry Protocol over HTTP, with binary protobuf."""
    JSON = "json"
    """Arrays of records, as sinks of operators get them."""


class Signal(StrEnum):
    """Kinds of telemetry that an export can send."""

    TRACES = "traces"
    """A span for each request."""
    METRICS = "metrics"
    """Requests, tokens and costs since the last export."""
    USAGE = "usage"
    """A usage event for each request."""
    AUDIT = "audit"
    """Records of the audit trail."""


SIGNALS: Mapping[ExportFormat, tuple[Signal, ...]] = {
    ExportFormat.OTLP: (Signal.TRACES, Signal.METRICS),
    ExportFormat.JSON: (Signal.USAGE, Signal.AUDIT),
}
"""Signals of each format."""


class TelemetryExport(msgspec.Struct, frozen=True, kw_only=True):
    """An export. `sealed`: its headers. `header_names`: in lower case, in order. `usage_position`, `audit_position`: numbers of the latest
    batch of usage and of the latest audit record that the receiver has; None while they are not followed. `failures`: in a row.
    `failing_since`: the first of them; kept while it is disabled. `paused_until`: until when nothing is sent, because it failed.
    `waiting_since`: when the first record was stored that it has not got; None if it has all. `missed_at`: when it turned out last that
    records had been removed before they were sent. Instants are UTC microseconds."""

    id: str
    organization_id: str
    name: str
    url: str
    format: ExportFormat
    signals: tuple[Signal, ...]
    header_names: tuple[str, ...]
    sealed: bytes
    created_at: int
    updated_at: int
    usage_position: int | None = None
    audit_position: int | None = None
    failures: int = 0
    failing_since: int | None = None
    paused_until: int = 0
    succeeded_at: int | None = None
    last_error: str | None = None
    waiting_since: int | None = None
    missed_at: int | None = None
    disabled_at: int | None = None
    disabled_reason: DisabledReason | None = None

    @property
    def follows_usage(self) -> bool:
        """Return whether usage is sent, in whatever form, unless it is disabled."""
        return any(each is not Signal.AUDIT for each in self.signals)

    @property
    def follows_audit(self) -> bool:
        """Return whether the audit trail is sent, unless it is disabled."""
        return Signal.AUDIT in self.signals


def read_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers with their names in lower case and in order. Raises ValueError with a text for people; it never has a value."""
    if len(headers) > HEADERS_MAX:
        raise ValueError(f"there are at most {HEADERS_MAX} headers")
    read: dict[str, str] = {}
    for name in sorted(headers):
        folded, value = name.lower(), headers[name]
        if _HEADER_NAME.fullmatch(name) is None:
            raise ValueError("a name has characters that no header has, or too many")
        if folded in OWN_HEADERS:
            raise ValueError(f"{folded} cannot be set")
        if folded in read:
            raise ValueError(f"{folded} is given twice")
        if len(value) > HEADER_CHARACTERS_MAX or _HEADER_VALUE.fullmatch(value) is None:
            raise ValueError(
                f"the value of {folded} must be 1 to {HEADER_CHARACTERS_MAX} printable ASCII characters, without a space at its ends"
            )
        read[folded] = value
    return read


def find_unfit(format: ExportFormat, signals: tuple[Signal, ...]) -> Signal | None:
    """Return a signal that the format does not have; None if there is none."""
    return next((each for each in signals if each not in SIGNALS[format]), None)
