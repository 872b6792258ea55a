"""Keys at rest: never the secret, only its digest under a pepper that is elsewhere.

A revoked key keeps its row, because usage names it, and is otherwise as if it had never been.
"""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa

from tollway.domain.catalog import Endpoint
from tollway.domain.events import EventType, new_event
from tollway.domain.keys import Key, KeyOrigin, KeyType, PreviousSecret, Rotation, SecretUse, shorten_digest
from tollway.domain.pages import Page, PageWindow
from tollway.domain.roles import Grant, find_built_in
from tollway.domain.rotation_schedules import RotationSchedule
from tollway.domain.tenants import ServiceAccount, Status
from tollway.storage import outbox
from tollway.storage.database import PlatformTx, TenantTx
from tollway.storage.limits import delete_model_limits, read_limits
from tollway.storage.operators import KEY_ISSUER
from tollway.storage.pages import fetch_page, split_ids
from tollway.storage.roles import ROLE_COLUMNS, names_role, read_role
from tollway.storage.schema import api_keys, join_tokens, organizations, projects, service_accounts
from tollway.storage.schema_people import custom_roles, invites
from tollway.storage.schema_sign_in import operators
from tollway.storage.schema_tokens import certificate_rules, federation_rules


@dataclass(frozen=True, slots=True)
class Digest:
    """Stored digest of a secret: HMAC under the pepper of that version."""

    pepper_version: int
    value: bytes = field(repr=False)


def insert_key(tx: TenantTx, key: Key, digest: Digest) -> None:
    """Store a new key of the organization."""
    tx.connection.execute(api_keys.insert().values(organization_id=tx.organization_id, **_columns(key, digest)))
    said = {"id": key.id, "project_id": key.project_id}
    outbox.append(tx, [new_event(EventType.API_KEY_CREATED, tx.organization_id, at=key.created_at, data=said)])


def find_project_key(tx: TenantTx, project_id: str, key_id: str) -> Key | None:
    """A key of a project that was not revoked."""
    query = _live_keys(tx).where(api_keys.c.project_id == project_id, api_keys.c.id == key_id)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else _key(row)


def list_project_keys(tx: TenantTx, project_id: str, window: PageWindow) -> Page[Key]:
    """The keys of a project that were not revoked."""
    return fetch_page(tx, _live_keys(tx).where(api_keys.c.project_id == project_id), api_keys.c.id, window, _key)


def find_admin_key(tx: TenantTx, key_id: str) -> Key | None:
    """An admin key of the organization that was not revoked."""
    query = _live_keys(tx).where(api_keys.c.type == KeyType.ADMIN, api_keys.c.id == key_id)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else _key(row)


def has_inference_key(tx: TenantTx, key_id: str) -> bool:
    """Return whether the organization has a key with this id, for requests at gateways, that was not revoked."""
    query = _live_keys(tx).where(api_keys.c.project_id.is_not(None), api_keys.c.type != KeyType.ADMIN, api_keys.c.id == key_id)
    return tx.connection.execute(query).one_or_none() is not None


def list_admin_keys(tx: TenantTx, window: PageWindow) -> Page[Key]:
    """The admin keys of the organization that were not revoked."""
    return fetch_page(tx, _live_keys(tx).where(api_keys.c.type == KeyType.ADMIN), api_keys.c.id, window, _key)


def lock_key(tx: TenantTx, key_id: str) -> None:
    """Let those who change this key take turns until the transaction ends."""
    own = api_keys.c.organization_id == tx.organization_id
    tx.connection.execute(sa.select(api_keys.c.id).where(own, api_keys.c.id == key_id).with_for_update()).all()


def update_key(tx: TenantTx, key: Key) -> None:
    """Store the name, the bounds and the expiry of a key, and that of its secret before the latest rotation."""
    own = sa.and_(api_keys.c.organization_id == tx.organization_id, api_keys.c.id == key.id)
    values = {**_bounds(key), "name": key.name, "expires_at": key.expires_at}
    if key.rotation is not None and key.rotation.previous is not None:
        values["previous_expires_at"] = key.rotation.previous.expires_at
    tx.connection.execute(api_keys.update().where(own).values(values))


def rotate_key(tx: TenantTx, key: Key, previous: PreviousSecret, digest: Digest, now: int) -> None:
    """Store the expiry and the redacted value of `key`, whose secret has `digest` from now on. The one that it had becomes `previous`, and
    the one before that is forgotten."""
    columns = api_keys.c
    tx.connection.execute(
        api_keys.update()
        .where(columns.organization_id == tx.organization_id, columns.id == key.id)
        .values(
            previous_pepper_version=columns.pepper_version,
            previous_digest=columns.digest,
            previous_redacted=columns.redacted,
            previous_expires_at=previous.expires_at,
            previous_last_used_at=columns.last_used_at,
            pepper_version=digest.pepper_version,
            digest=digest.value,
            redacted=key.redacted,
            expires_at=key.expires_at,
            last_used_at=None,
            rotated_at=now,
            uncollected_secret=None,
            rotation_notice=None,
        )
    )
    said = {"id": key.id, "project_id": key.project_id, "old_secret_expires_at": previous.expires_at // 1_000_000}
    outbox.append(tx, [new_event(EventType.API_KEY_ROTATED, tx.organization_id, at=now, data=said)])


def keep_uncollected(tx: TenantTx, key_id: str, sealed: bytes | None) -> None:
    """Store the sealed secret of a key, which nobody has collected yet; None once somebody has."""
    own = sa.and_(api_keys.c.organization_id == tx.organization_id, api_keys.c.id == key_id)
    tx.connection.execute(api_keys.update().where(own).values(uncollected_secret=sealed))


def find_uncollected(tx: TenantTx, key_id: str) -> bytes | None:
    """Return the sealed secret of a key that nobody has collected yet."""
    own = sa.and_(api_keys.c.organization_id == tx.organization_id, api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
    sealed: bytes | None = tx.connection.execute(sa.select(api_keys.c.uncollected_secret).where(own)).scalar_one_or_none()
    return sealed


def note_rotation(tx: TenantTx, key_id: str, notice: str) -> None:
    """Store which notice was given of the latest rotation of a key."""
    own = sa.and_(api_keys.c.organization_id == tx.organization_id, api_keys.c.id == key_id)
    tx.connection.execute(api_keys.update().where(own).values(rotation_notice=notice))


def find_rotation_notice(tx: TenantTx, key_id: str) -> str | None:
    """Return the latest notice of the latest rotation of a key."""
    own = sa.and_(api_keys.c.organization_id == tx.organization_id, api_keys.c.id == key_id)
    notice: str | None = tx.connection.execute(sa.select(api_keys.c.rotation_notice).where(own)).scalar_one_or_none()
    return notice


class KeyPlace(NamedTuple):
    """Place of a key."""

    organization_id: str
    project_id: str
    key_id: str


_PLACE = (api_keys.c.organization_id, api_keys.c.project_id, api_keys.c.id)


def list_due_rotations(tx: PlatformTx, now: int, count_max: int, *, without: Collection[str] = ()) -> list[KeyPlace]:
    """Return keys of projects that their own schedule, or that of their organization, wants to be rotated by `now`. `without`:
    organizations whose keys are left out."""
    key, organization = api_keys.c, organizations.c
    since = sa.func.coalesce(key.rotated_at, key.created_at)
    live = sa.and_(
        key.revoked_at.is_(None),
        sa.or_(key.expires_at.is_(None), key.expires_at > now),
        sa.or_(key.previous_expires_at.is_(None), key.previous_expires_at <= now),
        key.project_id.is_not(None),
        key.organization_id.not_in(sorted(without)),
        key.uncollected_secret.is_(None),
        projects.c.status == Status.ACTIVE,
        ~sa.exists().where(federation_rules.c.key_id == key.id),  # whose secret nobody knows
        ~sa.exists().where(certificate_rules.c.key_id == key.id),
    )
    by_key = sa.and_(key.rotation_interval_seconds.is_not(None), since + key.rotation_interval_seconds * 1_000_000 <= now)
    by_organization = sa.and_(
        organization.rotation_interval_seconds.is_not(None), since + organization.rotation_interval_seconds * 1_000_000 <= now
    )
    of_project = sa.and_(projects.c.organization_id == key.organization_id, projects.c.id == key.project_id)
    found: dict[KeyPlace, None] = {}
    for due in (by_key, by_organization):
        query = sa.select(*_PLACE).select_from(api_keys).join(projects, of_project)
        if due is by_organization:
            query = query.join(organizations, organization.id == key.organization_id)
        rows = tx.connection.execute(query.where(live, due).order_by(key.id).limit(count_max)).all()
        found.update((KeyPlace(*row), None) for row in rows)
    return list(found)[:count_max]


def list_open_rotations(tx: PlatformTx, now: int, after: str, count_max: int) -> list[KeyPlace]:
    """Return keys of projects with a valid secret before their latest rotation, by id after `after`."""
    key = api_keys.c
    query = sa.select(*_PLACE).where(key.previous_expires_at > now, key.revoked_at.is_(None), key.project_id.is_not(None), key.id > after)
    return [KeyPlace(*row) for row in tx.connection.execute(query.order_by(key.id).limit(count_max))]


def retire_previous_secret(tx: TenantTx, key_id: str) -> None:
    """Forget the secret that a key had before its rotation."""
    tx.connection.execute(
        api_keys.update()
        .where(api_keys.c.organization_id == tx.organization_id, api_keys.c.id == key_id)
        .values(
            previous_pepper_version=None,
            previous_digest=None,
            previous_redacted=None,
            previous_expires_at=None,
            previous_last_used_at=None,
        )
    )


def note_uses(tx: PlatformTx, uses: Iterable[SecretUse]) -> None:
    """Store the latest uses of secrets. Uses of keys and secrets that do not exist (any more) are left out."""
    previous_last_used_at = api_keys.c.previous_last_used_at
    latest: dict[tuple[str, str], int] = {}
    for use in uses:
        latest[use.key_id, use.digest] = max(use.used_at, latest.get((use.key_id, use.digest), 0))
    for part in split_ids({key_id for key_id, _ in latest}):
        for digest, last_used_at in ((api_keys.c.digest, api_keys.c.last_used_at), (api_keys.c.previous_digest, previous_last_used_at)):
            query = sa.select(api_keys.c.id, digest).where(api_keys.c.id.in_(part), digest.is_not(None))
            for key_id, stored in tx.connection.execute(query).all():
                used_at = latest.get((key_id, shorten_digest(stored)))
                if used_at is not None:
                    is_later = sa.or_(last_used_at.is_(None), last_used_at < used_at)
                    own = api_keys.update().where(api_keys.c.id == key_id, digest == stored, is_later)
                    tx.connection.execute(own.values({last_used_at: used_at}))


def revoke_key(tx: TenantTx, key_id: str, now: int) -> list[str]:
    """Revoke one key. Returns its id, or nothing if it was revoked before."""
    return _revoke(tx, api_keys.c.id == key_id, now)


def revoke_project_keys(tx: TenantTx, project_id: str, now: int) -> list[str]:
    """Revoke all keys of a project. Returns those that were not revoked before."""
    return _revoke(tx, api_keys.c.project_id == project_id, now)


def revoke_service_account_keys(tx: TenantTx, account_id: str, now: int) -> list[str]:
    """Revoke all keys of a service account. Returns those that were not revoked before."""
    return _revoke(tx, api_keys.c.service_account_id == account_id, now)


def revoke_user_keys(tx: TenantTx, user_id: str, now: int) -> list[str]:
    """Revoke all keys of a person. Returns those that were not revoked before."""
    return _revoke(tx, api_keys.c.user_id == user_id, now)


def list_service_account_keys(tx: TenantTx, account_id: str) -> list[str]:
    """Return the ids of the keys of a service account that were not revoked."""
    own = api_keys.c.organization_id == tx.organization_id
    query = sa.select(api_keys.c.id).where(own, api_keys.c.service_account_id == account_id, api_keys.c.revoked_at.is_(None))
    return list(tx.connection.execute(query.order_by(api_keys.c.id)).scalars())


def revoke_organization_keys(tx: TenantTx, now: int) -> list[str]:
    """Revoke all keys of the organization. Returns the inference keys among those that were not revoked before."""
    inference = _revoke(tx, api_keys.c.project_id.is_not(None), now)
    _revoke(tx, api_keys.c.project_id.is_(None), now)
    return inference


def put_platform_key(tx: PlatformTx, key: Key, digest: Digest) -> Key | None:
    """Store a key of the platform, unless this very key is stored already. Returns what is stored; None if it is revoked."""
    insert = tx.insert(api_keys).values(organization_id=None, **_columns(key, digest))
    tx.connection.execute(insert.on_conflict_do_nothing(index_elements=["digest"]))
    row = tx.connection.execute(sa.select(api_keys).where(api_keys.c.digest == digest.value)).one()
    return _platform_key(row) if row.revoked_at is None else None


def list_makers(tx: PlatformTx, key_id: str) -> set[str]:
    """Return a key of an operator, the key or the operator with whom it was made, and so on up to a key of the settings or an operator who
    signed in with a provider. `key_id`: may be the id of an operator, whom nobody made, but who may have signed in with a key."""
    made, signed_in = api_keys.c, operators.c
    steps = sa.union_all(
        sa.select(made.id, made.created_by.label("maker")).where(made.organization_id.is_(None), made.created_by.is_not(None)),
        sa.select(signed_in.id, signed_in.subject.label("maker")).where(signed_in.issuer == KEY_ISSUER),
    ).subquery()
    chain = sa.select(sa.literal(key_id, sa.String(64)).label("id")).cte("makers", recursive=True)
    chain = chain.union(sa.select(steps.c.maker).join(chain, steps.c.id == chain.c.id))
    return set(tx.connection.execute(sa.select(chain.c.id)).scalars())


def lock_origin(tx: PlatformTx, origin: KeyOrigin) -> None:
    """Let operators whose keys have this origin take turns until the transaction ends."""
    query = sa.select(api_keys.c.id).where(api_keys.c.organization_id.is_(None), api_keys.c.origin == origin)
    tx.connection.execute(query.order_by(api_keys.c.id).with_for_update()).all()


def put_node_key(tx: PlatformTx, key: Key, digest: Digest, node_id: str) -> None:
    """Store a key of a node, unless this very key is stored already."""
    insert = tx.insert(api_keys).values(organization_id=None, node_id=node_id, **_columns(key, digest))
    tx.connection.execute(insert.on_conflict_do_nothing(index_elements=["digest"]))


def move_digest(tx: PlatformTx, old: bytes, new: Digest) -> None:
    """Store another digest of the secret whose digest is `old`, whichever key has it, revoked or not. Does nothing if none has."""
    values = {"pepper_version": new.pepper_version, "digest": new.value}
    tx.connection.execute(api_keys.update().where(api_keys.c.digest == old).values(values))
    previous = {f"previous_{name}": value for name, value in values.items()}
    tx.connection.execute(api_keys.update().where(api_keys.c.previous_digest == old).values(previous))


class PepperUse(NamedTuple):
    """Live secrets whose digests were made with one pepper. `keys`: how many keys have one; `tokens`: join tokens that can be used;
    `invites`: invitations that can be accepted; `key_ids`: of the first keys by id."""

    keys: int
    tokens: int
    invites: int
    key_ids: list[str]


def find_pepper_use(tx: PlatformTx, version: int, now: int, ids_max: int) -> PepperUse:
    """Return what would end if the pepper `version` were gone at `now`; at most `ids_max` ids of keys."""
    key, token = api_keys.c, join_tokens.c
    under = sa.or_(key.pepper_version == version, sa.and_(key.previous_pepper_version == version, key.previous_expires_at > now))
    live = sa.and_(under, key.revoked_at.is_(None), sa.or_(key.expires_at.is_(None), key.expires_at > now))
    keys = tx.connection.execute(sa.select(sa.func.count()).select_from(api_keys).where(live)).scalar_one()
    key_ids = tx.connection.execute(sa.select(key.id).where(live).order_by(key.id).limit(ids_max)).scalars()
    usable = sa.and_(token.pepper_version == version, token.used_at.is_(None), token.expires_at > now)
    tokens = tx.connection.execute(sa.select(sa.func.count()).select_from(join_tokens).where(usable)).scalar_one()
    invite = invites.c
    pending = sa.and_(invite.pepper_version == version, invite.accepted_at.is_(None), invite.deleted_at.is_(None), invite.expires_at > now)
    promised = tx.connection.execute(sa.select(sa.func.count()).select_from(invites).where(pending)).scalar_one()
    return PepperUse(keys, tokens, promised, list(key_ids))


def list_pepper_versions(tx: PlatformTx) -> set[int]:
    """Return the versions of all peppers with which digests of keys were made."""
    versions = sa.union(*(sa.select(table.c.pepper_version) for table in (api_keys, join_tokens, invites)))
    return set(tx.connection.execute(versions).scalars())


def list_platform_keys(tx: PlatformTx, window: PageWindow, type: KeyType) -> Page[Key]:
    """The keys of the platform of `type` that are valid."""
    return fetch_page(tx, _platform_keys(type), api_keys.c.id, window, _platform_key)


def find_platform_key(tx: PlatformTx, type: KeyType, key_id: str) -> Key | None:
    """A key of the platform of `type` that is valid."""
    row = tx.connection.execute(_platform_keys(type).where(api_keys.c.id == key_id)).one_or_none()
    return None if row is None else _platform_key(row)


def revoke_platform_key(tx: PlatformTx, key_id: str, now: int) -> None:
    """Revoke a key of the platform."""
    own = sa.and_(api_keys.c.organization_id.is_(None), api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
    tx.connection.execute(api_keys.update().where(own).values(revoked_at=now))


def _platform_keys(type: KeyType) -> sa.Select[Any]:
    return sa.select(api_keys).where(api_keys.c.organization_id.is_(None), api_keys.c.type == type, api_keys.c.revoked_at.is_(None))


def _platform_key(row: Any) -> Key:
    return Key(
        id=row.id,
        type=KeyType(row.type),
        project_id=None,
        name=row.name,
        redacted=row.redacted,
        created_at=row.created_at,
        expires_at=row.expires_at,
        created_by=row.created_by,
        origin=None if row.origin is None else KeyOrigin(row.origin),
        last_used_at=row.last_used_at,
        grant=_platform_grant(row),
    )


def _platform_grant(row: Any) -> Grant | None:
    role = None if row.role_id is None else find_built_in(row.role_id)
    return None if role is None else Grant(role)


def revoke_other_platform_keys(tx: PlatformTx, type: KeyType, digest: Digest | None, now: int, *, name: str) -> None:
    """Revoke every key of the platform of `type` and `name` but the one with `digest`, if one is given."""
    tx.connection.execute(
        api_keys.update()
        .where(
            api_keys.c.organization_id.is_(None),
            api_keys.c.type == type,
            api_keys.c.name == name,
            sa.true() if digest is None else api_keys.c.digest != digest.value,
            api_keys.c.revoked_at.is_(None),
        )
        .values(revoked_at=now)
    )


def _revoke(tx: TenantTx, which: sa.ColumnElement[bool], now: int) -> list[str]:
    revoked = (
        api_keys.update()
        .where(api_keys.c.organization_id == tx.organization_id, which, api_keys.c.revoked_at.is_(None))
        .values(revoked_at=now, uncollected_secret=None)
        .returning(api_keys.c.id)
    )
    ids = sorted(tx.connection.execute(revoked).scalars())
    delete_model_limits(tx, ids)
    outbox.append(tx, [new_event(EventType.API_KEY_REVOKED, tx.organization_id, at=now, data={"id": each}) for each in ids])
    return ids


def _columns(key: Key, digest: Digest) -> dict[str, Any]:
    return {
        "id": key.id,
        "type": key.type,
        "project_id": key.project_id,
        "service_account_id": key.service_account.id if key.service_account else None,
        "name": key.name,
        "pepper_version": digest.pepper_version,
        "digest": digest.value,
        "redacted": key.redacted,
        **_bounds(key),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "created_by": key.created_by,
        "origin": key.origin,
        "role_id": None if key.grant is None else key.grant.role.id,
        "role_project_id": None if key.grant is None else key.grant.project_id,
        "user_id": key.user_id,
        **key.limits.to_dict(),
    }


def _bounds(key: Key) -> dict[str, Any]:
    return {
        "models": None if key.models is None else json.dumps(key.models),
        "endpoints": None if key.endpoints is None else json.dumps(key.endpoints),
        "addresses": None if key.addresses is None else json.dumps(key.addresses),
        "output_tokens_max": key.output_tokens_max,
        "tags": json.dumps(dict(key.tags)) if key.tags else None,
        "rotation_interval_seconds": None if key.schedule is None else key.schedule.interval_seconds,
        "rotation_grace_seconds": None if key.schedule is None else key.schedule.grace_seconds,
    }


def _live_keys(tx: TenantTx) -> sa.Select[Any]:
    account = service_accounts.c
    return (
        sa.select(
            api_keys,
            account.name.label("account_name"),
            account.role.label("account_role"),
            account.created_at.label("account_created_at"),
            organizations.c.rotation_interval_seconds.label("inherited_interval_seconds"),
            organizations.c.rotation_grace_seconds.label("inherited_grace_seconds"),
            *ROLE_COLUMNS,
        )
        .join(organizations, organizations.c.id == api_keys.c.organization_id)
        .outerjoin(service_accounts, account.id == api_keys.c.service_account_id)
        .outerjoin(custom_roles, names_role(api_keys.c.organization_id, api_keys.c.role_id))
        .where(api_keys.c.organization_id == tx.organization_id, api_keys.c.revoked_at.is_(None))
    )


def _key(row: Any) -> Key:
    account = None
    if row.service_account_id is not None:
        account = ServiceAccount(
            id=row.service_account_id,
            organization_id=row.organization_id,
            project_id=row.project_id,
            name=row.account_name,
            role=row.account_role,
            created_at=row.account_created_at,
        )
    return Key(
        id=row.id,
        type=KeyType(row.type),
        project_id=row.project_id,
        name=row.name,
        redacted=row.redacted,
        created_at=row.created_at,
        expires_at=row.expires_at,
        models=None if row.models is None else tuple(json.loads(row.models)),
        limits=read_limits(row),
        service_account=account,
        created_by=row.created_by,
        last_used_at=max((at for at in (row.last_used_at, row.previous_last_used_at) if at is not None), default=None),
        rotation=_rotation(row),
        endpoints=read_endpoints(row),
        addresses=None if row.addresses is None else tuple(json.loads(row.addresses)),
        output_tokens_max=row.output_tokens_max,
        tags={} if row.tags is None else json.loads(row.tags),
        grant=read_grant(row),
        user_id=row.user_id,
        schedule=_schedule(row.rotation_interval_seconds, row.rotation_grace_seconds),
        inherited_schedule=_schedule(row.inherited_interval_seconds, row.inherited_grace_seconds),
        has_uncollected_secret=row.uncollected_secret is not None,
    )


def _schedule(interval_seconds: int | None, grace_seconds: int | None) -> RotationSchedule | None:
    return None if interval_seconds is None or grace_seconds is None else RotationSchedule(interval_seconds, grace_seconds)


def read_grant(row: Any) -> Grant | None:
    """Return the role that the key of a row, joined with its role, holds; None for a key without one, or of a role that does not exist."""
    role = read_role(row)
    return None if role is None else Grant(role, row.role_project_id)


def read_endpoints(row: Any) -> tuple[Endpoint, ...] | None:
    """Return the endpoints that the key of a row may call; None for all."""
    return None if row.endpoints is None else tuple(map(Endpoint, json.loads(row.endpoints)))


def _rotation(row: Any) -> Rotation | None:
    if row.rotated_at is None:
        return None
    previous = None
    if row.previous_redacted is not None:
        previous = PreviousSecret(row.previous_redacted, row.previous_expires_at, row.previous_last_used_at)
    return Rotation(row.rotated_at, row.last_used_at, previous)


def find_key_owners(tx: PlatformTx, key_ids: Iterable[str]) -> dict[str, tuple[str | None, str | None]]:
    """Return the organization and the project of each of the keys that exist, revoked or not."""
    found: dict[str, tuple[str | None, str | None]] = {}
    for part in split_ids(key_ids):
        query = sa.select(api_keys.c.id, api_keys.c.organization_id, api_keys.c.project_id).where(api_keys.c.id.in_(part))
        found.update((row.id, (row.organization_id, row.project_id)) for row in tx.connection.execute(query))
    return found
