"""Erasures: the personal data of a person, or all data of an organization, is destroyed once two operators agree."""

from dataclasses import dataclass, field
from enum import StrEnum

from tollway.domain.keys import Operator


class ErasureState(StrEnum):
    """State of an erasure."""

    PENDING = "pending"
    """It waits for a second person."""
    APPROVED = "approved"
    """It is being carried out."""
    DONE = "done"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """An erasure of a person of an organization, or of the whole organization where `user_id` is None. `approver`: who decided, None until
    somebody did. `are_rows_erased`: all is erased but for records of the audit trail. `records_erased`: of the audit trail;
    `erased_until`: its records up to this number were looked at. `addresses`: that the person had, until it is done. Instants are UTC
    microseconds."""

    id: str
    organization_id: str
    user_id: str | None
    reason: str
    state: ErasureState
    actor: Operator
    requested_at: int
    approver: Operator | None = None
    decided_at: int | None = None
    are_rows_erased: bool = False
    records_erased: int = 0
    finished_at: int | None = None
    addresses: tuple[str, ...] = field(default=(), repr=False)
    erased_until: int = 0
