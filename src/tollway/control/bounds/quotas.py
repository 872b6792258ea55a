"""Quotas at control: checked in the transaction that creates, by counts that nobody else can change before it ends."""

from tollway.domain.faults import QUOTA_EXCEEDED, Fault
from tollway.domain.quotas import QUOTAS, Quota, QuotaSizes, QuotaStanding, describe_excess
from tollway.storage import quotas as storage
from tollway.storage.database import TenantTx


def require(tx: TenantTx, sizes: QuotaSizes, quota: Quota, now: int) -> None:
    """Raise QUOTA_EXCEEDED unless the organization may have one more of what `quota` counts. Call it after `publish.lock`, with which
    creations of all processes take turns, and before the new thing is stored."""
    assert tx.publication_locked, "publish.lock comes first: two creations at once must not both count what was there before"
    standing = QuotaStanding(quota, storage.count(tx, quota, now), sizes[quota])
    if standing.used >= standing.size:
        raise Fault(QUOTA_EXCEEDED, message=describe_excess(standing))


def require_creation(tx: TenantTx, sizes: QuotaSizes, quota: Quota, now: int) -> None:
    """As `require`, for what has an id of its own and leaves a row indefinitely: it counts among the creations of a day as well."""
    require(tx, sizes, quota, now)
    require(tx, sizes, Quota.CREATIONS_PER_DAY, now)


def list_standings(tx: TenantTx, sizes: QuotaSizes, now: int) -> list[QuotaStanding]:
    """Return how each quota of the organization stands."""
    counts = storage.count_all(tx, tuple(QUOTAS), now)
    return [QuotaStanding(quota, used, sizes[quota]) for quota, used in counts.items()]
