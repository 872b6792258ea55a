"""Secrets that were reported as leaked, and the keys that they are of."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from tollway.domain.events import EventType, new_event
from tollway.domain.keys import KeyType
from tollway.domain.leaked_keys import LeakAction, LeakedKey, LeakSource
from tollway.domain.pages import Page, PageWindow
from tollway.storage import outbox
from tollway.storage.database import PlatformTx, TenantTx, Transaction
from tollway.storage.pages import fetch_page
from tollway.storage.schema import api_keys
from tollway.storage.schema_data_protection import leaked_keys
from tollway.storage.schema_people import group_members, role_assignments, users

_C = leaked_keys.c


class FoundSecret(NamedTuple):
    """A secret that some key has or had. `organization_id`: None for a key of the platform or a gateway. `project_id`: of a key for
    inference. `redacted`: the part of the secret that may be shown. `is_previous`: whether it is the one before the latest rotation.
    `is_valid`: whether it can be used at the instant of the query."""

    key_id: str
    type: KeyType
    organization_id: str | None
    project_id: str | None
    redacted: str
    is_previous: bool
    is_valid: bool


def find_secret(tx: PlatformTx, digests: Sequence[bytes], now: int) -> FoundSecret | None:
    """Return the secret with one of `digests` (of one secret under each pepper), of any key, whether it is valid or not."""
    return _find(tx, sa.true(), digests, now)


def find_own_secret(tx: TenantTx, digests: Sequence[bytes], now: int) -> FoundSecret | None:
    """As `find_secret`, of keys of the organization."""
    return _find(tx, api_keys.c.organization_id == tx.organization_id, digests, now)


def _find(tx: Transaction, own: sa.ColumnElement[bool], digests: Sequence[bytes], now: int) -> FoundSecret | None:
    columns = api_keys.c
    matches = sa.or_(columns.digest.in_(digests), columns.previous_digest.in_(digests))
    row = tx.connection.execute(sa.select(api_keys).where(own, matches)).one_or_none()
    if row is None:
        return None
    is_previous = bytes(row.digest) not in digests
    ends_at = row.previous_expires_at if is_previous else row.expires_at
    return FoundSecret(
        row.id,
        KeyType(row.type),
        row.organization_id,
        row.project_id,
        row.previous_redacted if is_previous else row.redacted,
        is_previous,
        row.revoked_at is None and (ends_at is None or ends_at > now),
    )


def put_leak(tx: TenantTx, leak: LeakedKey) -> bool:
    """Store a report. One of the same secret before stays, but for what was done now. Return whether it is the first."""
    stored = tx.insert(leaked_keys).values(msgspec.structs.asdict(leak)).on_conflict_do_nothing().returning(_C.id)
    if tx.connection.execute(stored).first() is not None:
        said = {"id": leak.id, "key_id": leak.key_id, "action": str(leak.action)}
        outbox.append(tx, [new_event(EventType.API_KEY_LEAKED, tx.organization_id, at=leak.reported_at, data=said)])
        return True
    if leak.action in (LeakAction.REVOKED, LeakAction.RETIRED):
        same = sa.and_(_C.organization_id == tx.organization_id, _C.key_id == leak.key_id, _C.redacted == leak.redacted)
        tx.connection.execute(leaked_keys.update().where(same).values(action=leak.action))
    return False


class DueMail(NamedTuple):
    """A report whose owners are to be written to. `due_at`: when, in UTC microseconds; None: not any more. `attempts`: how often that
    failed. `told`: the ids of those who were written to, while others are left."""

    leak: LeakedKey
    due_at: int | None
    attempts: int = 0
    told: tuple[str, ...] = ()


def put_due_mail(tx: TenantTx, due: DueMail) -> None:
    """Store when the owners of a leaked key are written to again, and who was."""
    leak = due.leak
    same = sa.and_(_C.organization_id == tx.organization_id, _C.key_id == leak.key_id, _C.redacted == leak.redacted)
    values = {"mail_due_at": due.due_at, "mail_attempts": due.attempts, "mail_told": "\n".join(due.told)}
    tx.connection.execute(leaked_keys.update().where(same).values(values))


def find_due_mail(tx: PlatformTx, now: int) -> DueMail | None:
    """Return the report whose owners are the longest due to be written to; None if none is by now."""
    query = sa.select(leaked_keys).where(_C.mail_due_at <= now).order_by(_C.mail_due_at).limit(1)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else DueMail(_leak(row), row.mail_due_at, row.mail_attempts, tuple(row.mail_told.split()))


def list_leaks(tx: TenantTx, window: PageWindow) -> Page[LeakedKey]:
    """Return the reports of the organization, by their ids."""
    return fetch_page(tx, sa.select(leaked_keys).where(_C.organization_id == tx.organization_id), _C.id, window, _leak)


class Recipient(NamedTuple):
    """A person who is written to."""

    user_id: str
    address: str


def list_recipients(tx: TenantTx, role_id: str, count_max: int) -> list[Recipient]:
    """Return the people who hold a role in the whole organization, themselves or by a group."""
    held, members = role_assignments.c, group_members.c
    holders = sa.select(held.holder_id).where(held.organization_id == tx.organization_id, held.project_id == "", held.role_id == role_id)
    by_group = sa.select(members.user_id).where(members.organization_id == tx.organization_id, members.group_id.in_(holders))
    query = sa.select(users.c.id, users.c.email).where(
        users.c.organization_id == tx.organization_id,
        users.c.removed_at.is_(None),
        sa.or_(users.c.id.in_(holders), users.c.id.in_(by_group)),
    )
    return [Recipient(row.id, row.email) for row in tx.connection.execute(query.order_by(users.c.id).limit(count_max))]


def _leak(row: Any) -> LeakedKey:
    return LeakedKey(
        id=row.id,
        organization_id=row.organization_id,
        key_id=row.key_id,
        redacted=row.redacted,
        source=LeakSource(row.source),
        url=row.url,
        action=LeakAction(row.action),
        reported_at=row.reported_at,
    )
