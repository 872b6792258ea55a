"""Erasures at rest, and what they erase in the tables: personal data of one person, or all that is said of an organization.

Usage, ledger and periods keep ids and amounts, and lose nothing: the names that the ids stand for are erased instead.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from tollway.domain.erasures import Erasure, ErasureState
from tollway.domain.keys import KeyOrigin, Operator
from tollway.domain.pages import Page, PageWindow
from tollway.domain.tenants import Status
from tollway.storage.database import PlatformTx, TenantTx, Transaction
from tollway.storage.pages import fetch_page
from tollway.storage.schema import api_keys, data_keys, organizations, projects, service_accounts
from tollway.storage.schema_budgets import budgets
from tollway.storage.schema_credits import credit_grants
from tollway.storage.schema_data_protection import erasures, leaked_keys
from tollway.storage.schema_events import telemetry_exports, webhook_endpoints
from tollway.storage.schema_people import custom_roles, invites, scim_groups, scim_users, user_groups, users
from tollway.storage.schema_sign_in import sign_in_connections, sign_in_links, user_credentials, user_identities, user_sessions
from tollway.storage.schema_tokens import certificate_rules, client_certificates, federation_rules, identity_providers

PERSONAL_FIELDS: Mapping[str, tuple[str, ...]] = {
    "user": ("email", "name"),
    "invite": ("email",),
    "session": ("address", "agent"),
    "scim_user": ("user_name", "folded_user_name", "external_id", "attributes"),
    "user_identity": ("subject",),
    "api_key": ("name",),
}
"""Fields of changes in the audit trail that say something about a person, by the kind of resource."""

DELETED = (
    user_sessions,
    sign_in_links,
    user_credentials,
    user_identities,
    scim_users,
    scim_groups,
    sign_in_connections,
    webhook_endpoints,  # with their deliveries
    telemetry_exports,
    invites,
    leaked_keys,
    certificate_rules,
    client_certificates,
)
"""Tables whose rows of an organization are deleted, each before those that it names."""

RENAMED: Mapping[sa.Table, Mapping[str, str | None]] = {
    organizations: {"name": "id"},
    projects: {"name": "id"},
    service_accounts: {"name": "id"},
    api_keys: {"name": "id", "tags": None, "addresses": None},
    users: {"name": "", "email": "id"},  # of those who were not removed, no two have the same address
    user_groups: {"name": "id"},
    custom_roles: {"name": "id", "description": ""},
    budgets: {"name": "id"},
    identity_providers: {"name": "id", "description": None},
    federation_rules: {"name": None, "description": None, "matchers": "{}"},
}
"""Columns of an organization's rows that are written over: with the row's `id`, a text, or nothing."""


def insert_erasure(tx: PlatformTx, erasure: Erasure) -> None:
    """Store an erasure that somebody asked for."""
    tx.connection.execute(
        erasures.insert().values(
            id=erasure.id,
            organization_id=erasure.organization_id,
            user_id=erasure.user_id,
            reason=erasure.reason,
            state=erasure.state,
            actor=erasure.actor.key_id,
            actor_origin=erasure.actor.origin,
            requested_at=erasure.requested_at,
            are_rows_erased=False,
            records_erased=0,
            addresses="[]",
            erased_until=0,
        )
    )


def find_erasure(tx: PlatformTx, erasure_id: str, *, lock: bool = False) -> Erasure | None:
    """Return an erasure. `lock`: nobody else decides on it before the transaction ends."""
    query = sa.select(erasures).where(erasures.c.id == erasure_id)
    row = tx.connection.execute(query.with_for_update() if lock else query).one_or_none()
    return None if row is None else _erasure(row)


def find_open(tx: PlatformTx, organization_id: str, user_id: str | None) -> Erasure | None:
    """Return an erasure of the same person or organization that waits, is being carried out or is done."""
    columns = erasures.c
    same_person = columns.user_id.is_(None) if user_id is None else columns.user_id == user_id
    query = sa.select(erasures).where(columns.organization_id == organization_id, same_person, columns.state != ErasureState.REJECTED)
    row = tx.connection.execute(query.limit(1)).one_or_none()
    return None if row is None else _erasure(row)


def lock_organization(tx: PlatformTx, organization_id: str) -> None:
    """Let whoever asks for an erasure of an organization or its people take turns until the transaction ends."""
    tx.connection.execute(sa.select(organizations.c.id).where(organizations.c.id == organization_id).with_for_update())


def list_erasures(tx: PlatformTx, window: PageWindow) -> Page[Erasure]:
    """Return the erasures in the order in which they were asked for."""
    return fetch_page(tx, sa.select(erasures), erasures.c.id, window, _erasure)


def find_approved(tx: PlatformTx, after: str) -> Erasure | None:
    """Return the first erasure after the one with the id `after` that is to be carried out."""
    query = sa.select(erasures).where(erasures.c.state == ErasureState.APPROVED, erasures.c.id > after)
    row = tx.connection.execute(query.order_by(erasures.c.id).limit(1)).one_or_none()
    return None if row is None else _erasure(row)


def is_ready(tx: Transaction, organization_id: str, user_id: str | None) -> bool:
    """Return whether a person is removed, or an organization archived."""
    if user_id is None:
        query = sa.select(organizations.c.id).where(organizations.c.id == organization_id, organizations.c.status == Status.ARCHIVED)
    else:
        own = sa.and_(users.c.organization_id == organization_id, users.c.id == user_id)
        query = sa.select(users.c.id).where(own, users.c.removed_at.is_not(None))
    return tx.connection.execute(query).first() is not None


def decide(tx: PlatformTx, erasure_id: str, state: ErasureState, approver: Operator, now: int) -> None:
    """Store what a second person decided."""
    values = {"state": state, "approver": approver.key_id, "approver_origin": approver.origin, "decided_at": now}
    tx.connection.execute(erasures.update().where(erasures.c.id == erasure_id).values(values))


def end_unready(tx: PlatformTx, erasure_id: str) -> None:
    """Store that an approved erasure is not carried out, because the person or the organization is there again."""
    tx.connection.execute(erasures.update().where(erasures.c.id == erasure_id).values(state=ErasureState.REJECTED))


def note_rows_erased(tx: PlatformTx, erasure_id: str, addresses: Sequence[str]) -> None:
    """Store that all is erased but for records of the audit trail, in which the person may be named by `addresses`."""
    values = {"are_rows_erased": True, "addresses": json.dumps(list(addresses))}
    tx.connection.execute(erasures.update().where(erasures.c.id == erasure_id).values(values))


def note_records_erased(tx: PlatformTx, erasure_id: str, count: int, until: int, *, finished_at: int | None) -> None:
    """Store that so many more records of the audit trail are erased, of those up to `until`. `finished_at`: when that was all."""
    values: dict[str, Any] = {"records_erased": erasures.c.records_erased + count, "erased_until": until}
    if finished_at is not None:
        values |= {"state": ErasureState.DONE, "finished_at": finished_at, "addresses": "[]"}
    tx.connection.execute(erasures.update().where(erasures.c.id == erasure_id).values(values))


# ---- What is erased -----------------------------------------------------------------------------------------------------


def list_pseudonyms(tx: TenantTx, user_id: str) -> list[str]:
    """Return the ids under which the audit trail names a person: their own, those of their admin keys, and of the invitations that they
    accepted."""
    keys = sa.select(api_keys.c.id).where(api_keys.c.organization_id == tx.organization_id, api_keys.c.user_id == user_id)
    accepted = sa.select(invites.c.id).where(invites.c.organization_id == tx.organization_id, invites.c.user_id == user_id)
    return [user_id, *tx.connection.execute(keys).scalars(), *tx.connection.execute(accepted).scalars()]


def list_addresses(tx: TenantTx, user_id: str) -> list[str]:
    """Return the addresses of a person that are not erased yet: of their account, and of the invitations that they accepted."""
    own = sa.select(users.c.email).where(users.c.organization_id == tx.organization_id, users.c.id == user_id)
    accepted = sa.select(invites.c.email).where(invites.c.organization_id == tx.organization_id, invites.c.user_id == user_id)
    return [email for query in (own, accepted) for email in tx.connection.execute(query).scalars() if email]


def erase_person(tx: TenantTx, user_id: str, addresses: Sequence[str]) -> None:
    """Erase what rows say about a person who was removed: their account, how they signed in, the names of their keys, and the invitations
    that they accepted or that went to `addresses`."""
    organization = tx.organization_id
    tx.connection.execute(users.update().where(users.c.organization_id == organization, users.c.id == user_id).values(email="", name=""))
    keys = api_keys.update().where(api_keys.c.organization_id == organization, api_keys.c.user_id == user_id)
    tx.connection.execute(keys.values(name=api_keys.c.id))
    for table in (user_sessions, sign_in_links, user_credentials, user_identities, scim_users):
        tx.connection.execute(table.delete().where(table.c.organization_id == organization, table.c.user_id == user_id))
    theirs = sa.or_(invites.c.user_id == user_id, invites.c.email.in_(addresses))
    tx.connection.execute(invites.update().where(invites.c.organization_id == organization, theirs).values(email=""))


def erase_organization(tx: TenantTx) -> None:
    """Erase what rows say about the organization and its people: names are written over, and what only describes them is deleted."""
    for table in DELETED:
        tx.connection.execute(table.delete().where(table.c.organization_id == tx.organization_id))
    for table, columns in RENAMED.items():
        owner = table.c.id if table is organizations else table.c.organization_id
        values = {name: table.c.id if text == "id" else text for name, text in columns.items()}
        tx.connection.execute(table.update().where(owner == tx.organization_id).values(values))
    with tx.as_platform() as platform:
        references = credit_grants.update().where(credit_grants.c.organization_id == tx.organization_id)
        platform.connection.execute(references.values(reference=credit_grants.c.id))
        own = data_keys.update().where(data_keys.c.organization_id == tx.organization_id)
        platform.connection.execute(own.values(wrapped=None))


def _erasure(row: Any) -> Erasure:
    decided = None if row.approver is None else Operator(row.approver, KeyOrigin(row.approver_origin))
    return Erasure(
        id=row.id,
        organization_id=row.organization_id,
        user_id=row.user_id,
        reason=row.reason,
        state=ErasureState(row.state),
        actor=Operator(row.actor, KeyOrigin(row.actor_origin)),
        requested_at=row.requested_at,
        approver=decided,
        decided_at=row.decided_at,
        are_rows_erased=row.are_rows_erased,
        records_erased=row.records_erased,
        finished_at=row.finished_at,
        addresses=tuple(json.loads(row.addresses)),
        erased_until=row.erased_until,
    )
