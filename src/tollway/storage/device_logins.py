"""Logins of the command line that wait for their person, at rest."""

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from tollway.storage.database import PlatformTx
from tollway.storage.schema_people import users
from tollway.storage.schema_sign_in import device_logins

REMOVED_MAX = 100
"""Expired logins that one transaction removes: more than it adds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLogin:
    """A login that began on a device. `digest`: of the device's code. `address` and `agent`: of the device. `user_id` and `is_approved`:
    who decided and how; None until somebody did. `polled_at`: when the device asked last. Instants are UTC microseconds."""

    digest: bytes = field(repr=False)
    user_code: str
    address: str
    agent: str
    interval_seconds: int
    expires_at: int
    polled_at: int | None = None
    user_id: str | None = None
    is_approved: bool | None = None


def insert_device_login(tx: PlatformTx, login: DeviceLogin, now: int) -> None:
    """Store a login that begins, and remove some that have expired."""
    columns = device_logins.c
    expired = sa.select(columns.digest).where(columns.expires_at <= now).limit(REMOVED_MAX)
    tx.connection.execute(device_logins.delete().where(columns.digest.in_(expired)))
    values = {name: getattr(login, name) for name in DeviceLogin.__dataclass_fields__}
    tx.connection.execute(device_logins.insert().values(values))


def find_pending(tx: PlatformTx, user_code: str, now: int) -> DeviceLogin | None:
    """Return the login with the code of a person, if nobody has decided on it yet."""
    columns = device_logins.c
    query = sa.select(device_logins).where(columns.user_code == user_code, columns.expires_at > now, columns.is_approved.is_(None))
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else _login(row)


def decide(tx: PlatformTx, user_code: str, user_id: str, *, is_approved: bool, now: int) -> bool:
    """Store what a person decides. Return False if the login has expired, or somebody decided before."""
    columns = device_logins.c
    pending = device_logins.update().where(columns.user_code == user_code, columns.expires_at > now, columns.is_approved.is_(None))
    return bool(tx.connection.execute(pending.values(user_id=user_id, is_approved=is_approved)).rowcount)


def lock_device_login(tx: PlatformTx, digest: bytes) -> DeviceLogin | None:
    """Return the login with the code of a device, which nobody else changes before the transaction ends."""
    row = tx.connection.execute(sa.select(device_logins).where(device_logins.c.digest == digest).with_for_update()).one_or_none()
    return None if row is None else _login(row)


def note_poll(tx: PlatformTx, digest: bytes, interval_seconds: int, now: int) -> None:
    """Store that a device asked now, and how long it is to wait from now on."""
    values = {"polled_at": now, "interval_seconds": interval_seconds}
    tx.connection.execute(device_logins.update().where(device_logins.c.digest == digest).values(values))


def delete_device_login(tx: PlatformTx, digest: bytes) -> bool:
    """Remove a login that is over. Return whether it was there."""
    return bool(tx.connection.execute(device_logins.delete().where(device_logins.c.digest == digest)).rowcount)


def delete_user_logins(tx: PlatformTx, user_id: str) -> None:
    """Remove the logins that a person decided on, before their devices ask."""
    tx.connection.execute(device_logins.delete().where(device_logins.c.user_id == user_id))


def find_user_organization(tx: PlatformTx, user_id: str) -> str | None:
    """Return the organization of a person who was not removed."""
    query = sa.select(users.c.organization_id).where(users.c.id == user_id, users.c.removed_at.is_(None))
    found: str | None = tx.connection.execute(query).scalar_one_or_none()
    return found


def _login(row: Any) -> DeviceLogin:
    fields = {name: getattr(row, name) for name in DeviceLogin.__dataclass_fields__ if name != "digest"}
    return DeviceLogin(digest=bytes(row.digest), **fields)
