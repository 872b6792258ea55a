"""Webhooks by Standard Webhooks 1.0 (https://www.standardwebhooks.com): how a delivery is signed, and when it is tried again."""

import base64
import hmac
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from tollway.domain.events import SECONDS_PER_DAY, EventType

SECRET_PREFIX = "whsec_"
SECRET_BYTES = 32
"""Random bytes of a secret. The standard asks for 24 to 64."""

ENDPOINTS_MAX = 20
"""Endpoints of one organization, and of the operators together."""

GIVEN_UP_SECONDS = 3 * SECONDS_PER_DAY
"""Time for which a delivery is tried, and for which an endpoint may fail before it is disabled."""

OLD_SECRET_SECONDS = SECONDS_PER_DAY
"""Time for which deliveries are signed with the secret before a rotation too, where that was asked for."""

RETRY_SECONDS = (5, 60, 300, 1800, 7200, 18_000, 36_000)
"""Pauses between the first attempts of a delivery."""

LATER_RETRY_SECONDS = 12 * 3600
"""Pause between all further attempts, until GIVEN_UP_SECONDS are over."""

JITTER = 0.2
"""Part of each pause by which it is longer or shorter at random, so that deliveries that failed together do not come back together."""

PAUSE_SECONDS_MAX = 3600
"""Longest pause of an endpoint whose deliveries fail one after the other."""


class DeliveryState(StrEnum):
    """The state of a delivery."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class DisabledReason(StrEnum):
    """The reason why an endpoint gets no deliveries."""

    FAILING = "failing"
    GONE = "gone"  # it answered 410


class WebhookEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint. `organization_id`: whose it is; None for the operators'. `sealed`, `sealed_before`: its secret and the one before,
    until `before_until`. `failing_since`: the first failure since the last success, or since nothing was left to deliver; kept while it is
    disabled. `failures`: those since then. `paused_until`: until when no process takes its deliveries, because it failed or another process
    has them. Instants are UTC microseconds."""

    id: str
    organization_id: str | None
    name: str
    url: str
    event_types: tuple[EventType, ...]
    sealed: bytes
    secret_hint: str
    created_at: int
    updated_at: int
    sealed_before: bytes | None = None
    before_until: int | None = None
    failures: int = 0
    failing_since: int | None = None
    paused_until: int = 0
    disabled_at: int | None = None
    disabled_reason: DisabledReason | None = None
    told_at: int | None = None


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """The delivery of an event to an endpoint. `since_at`: from when on its attempts count. `next_at`: when it is tried next.
    `status`: of the latest answer; None if there was none, and then `error` says why."""

    endpoint_id: str
    event_id: str
    state: DeliveryState
    attempts: int
    since_at: int
    next_at: int
    attempted_at: int | None = None
    status: int | None = None
    error: str | None = None


def format_secret(key: bytes) -> str:
    """Return a secret as it is shown."""
    return SECRET_PREFIX + base64.b64encode(key).decode()


def sign(secrets: Sequence[str], id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers that sign a body with each of the secrets. `timestamp`: Unix seconds of this attempt."""
    signed = f"{id}.{timestamp}.".encode() + body
    keys = [base64.b64decode(each.removeprefix(SECRET_PREFIX)) for each in secrets]
    signatures = [f"v1,{base64.b64encode(hmac.digest(key, signed, 'sha256')).decode()}" for key in keys]
    return {"webhook-id": id, "webhook-timestamp": str(timestamp), "webhook-signature": " ".join(signatures)}


def find_next_attempt(since_at: int, attempts: int, now: int, random: float) -> int | None:
    """Return when a delivery that failed is tried again, in UTC microseconds; None if it is given up. `attempts`: those made, 1 or more.
    `random`: from 0 to 1."""
    pause = RETRY_SECONDS[attempts - 1] if attempts <= len(RETRY_SECONDS) else LATER_RETRY_SECONDS
    next_at = now + int(_spread(pause, random) * 1_000_000)
    return next_at if next_at <= since_at + GIVEN_UP_SECONDS * 1_000_000 else None


def find_pause_end(failures: int, now: int, random: float) -> int:
    """Return until when an endpoint gets nothing after so many failures in a row, 1 or more."""
    return now + int(_spread(min(2 ** min(failures, 20), PAUSE_SECONDS_MAX), random) * 1_000_000)


def _spread(seconds: float, random: float) -> float:
    return seconds * (1 - JITTER + 2 * JITTER * random)
