"""Checks of records against what this control plane knows by itself: which project and key belong to which organization, and the time.

A node vouches for what its records say, and a node can be broken into. What does not belong together, or lies outside the epoch that
reports it, is quarantined with its own reason: it is billed to nobody and blocks the close until an operator has looked at it.

A project or a key that this database does not have is accepted: after a restore from a backup those that were made since are unknown, and a
record of them bills nobody else. Instants are checked when a record arrives and not again, because the passing of time makes an instant
from the future possible.
"""

from dataclasses import dataclass, field
from operator import attrgetter

from tollway.control.metering.batches import Batch, FinalRecord
from tollway.domain.epochs import CLOCK_ERROR_US_MAX
from tollway.domain.usage import Admit
from tollway.storage import keys as stored_keys
from tollway.storage import tenants as stored_tenants
from tollway.storage.database import PlatformTx

FOREIGN = "not_of_organization"
INSTANT_IMPOSSIBLE = "instant_impossible"

_INSTANTS = (attrgetter("admitted_at"), attrgetter("first_token_at"), attrgetter("ended_at"))


@dataclass(frozen=True, slots=True)
class Owners:
    """The organization of each known project, and the organization and project of each known key, by id."""

    projects: dict[str, str] = field(default_factory=dict)
    keys: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)

    def learn(self, tx: PlatformTx, batch: Batch) -> None:
        """Add what the database says of the projects and keys that the batch names."""
        admits = [group.admit for group in batch.groups if group.is_valid]
        self.projects.update(stored_tenants.find_project_owners(tx, {admit.project_id for admit in admits} - self.projects.keys()))
        self.keys.update(stored_keys.find_key_owners(tx, {admit.key_id for admit in admits} - self.keys.keys()))

    def may_be(self, admit: Admit) -> bool:
        """Return whether nothing that is known contradicts the organization, project and key of an ADMIT."""
        owner = (admit.organization_id, admit.project_id)
        return self.projects.get(admit.project_id, owner[0]) == owner[0] and self.keys.get(admit.key_id, owner) == owner


def reject_foreign(batch: Batch, owners: Owners) -> None:
    """Reject the records whose project or key belongs to another organization or project than they say."""
    foreign = {id(group) for group in batch.groups if group.is_valid and not owners.may_be(group.admit)}
    if foreign:
        batch.reject_finals(lambda record: id(record.group) in foreign, FOREIGN)


def reject_impossible_instants(batch: Batch, now: int) -> None:
    """Reject the records that lie before their epoch or after `now`, by more than CLOCK_ERROR_US_MAX."""
    earliest, latest = batch.epoch - CLOCK_ERROR_US_MAX, now + CLOCK_ERROR_US_MAX

    def is_impossible(record: FinalRecord) -> bool:
        first_at = record.ended_at if record.first_token_at is None else record.first_token_at
        instants = (record.admitted_at, first_at, record.ended_at)
        return min(instants) < earliest or max(instants) > latest

    instants = [at for get in _INSTANTS for at in map(get, batch.finals) if at is not None]
    if instants and (min(instants) < earliest or max(instants) > latest):
        batch.reject_finals(is_impossible, INSTANT_IMPOSSIBLE)
