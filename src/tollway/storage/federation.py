"""Identity providers, their rules, and the assertions that were used, at rest."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import msgspec
import sqlalchemy as sa

from tollway.domain.catalog import Endpoint
from tollway.domain.federation import IdentityProvider, ProviderRule
from tollway.domain.pages import Page, PageWindow
from tollway.domain.tokens import Jwk
from tollway.storage.database import PlatformTx, TenantTx, Transaction
from tollway.storage.pages import fetch_page
from tollway.storage.schema_tokens import federation_rules, identity_providers, used_assertions

USED_REMOVED_MAX = 100
"""Expired assertions that one exchange removes: more than it adds, and few enough to be quick."""


def put_provider(tx: TenantTx, provider: IdentityProvider, fetch_due_at: int | None, *, is_new: bool) -> None:
    """Store an identity provider. `fetch_due_at`: when its keys are to be fetched next; None for uploaded ones."""
    values = asdict(provider) | {"keys": msgspec.json.encode(provider.keys).decode(), "fetch_due_at": fetch_due_at}
    if is_new:
        tx.connection.execute(identity_providers.insert().values(values))
    else:
        tx.connection.execute(identity_providers.update().where(_own(tx, provider.id)).values(values))


def find_provider(tx: TenantTx, provider_id: str) -> IdentityProvider | None:
    """Return an identity provider of the organization."""
    row = tx.connection.execute(sa.select(identity_providers).where(_own(tx, provider_id))).one_or_none()
    return None if row is None else _provider(row)


def has_provider(tx: TenantTx, issuer: str, audience: str, but: str) -> bool:
    """Return whether another provider than `but` has this issuer and audience."""
    columns = identity_providers.c
    query = sa.select(columns.id).where(
        columns.organization_id == tx.organization_id, columns.issuer == issuer, columns.audience == audience, columns.id != but
    )
    return tx.connection.execute(query).first() is not None


def find_provider_organization(tx: PlatformTx, provider_id: str) -> str | None:
    """Return the organization that has an identity provider."""
    organization_id: str | None = tx.connection.execute(
        sa.select(identity_providers.c.organization_id).where(identity_providers.c.id == provider_id)
    ).scalar_one_or_none()
    return organization_id


def list_providers(tx: TenantTx, window: PageWindow) -> Page[IdentityProvider]:
    """Return the identity providers of the organization."""
    query = sa.select(identity_providers).where(identity_providers.c.organization_id == tx.organization_id)
    return fetch_page(tx, query, identity_providers.c.id, window, _provider)


def count_providers(tx: TenantTx) -> int:
    """Return how many identity providers the organization has."""
    query = sa.select(sa.func.count()).where(identity_providers.c.organization_id == tx.organization_id)
    count: int = tx.connection.execute(query).scalar_one()
    return count


def delete_provider(tx: TenantTx, provider_id: str) -> None:
    """Delete an identity provider that has no rules."""
    tx.connection.execute(identity_providers.delete().where(_own(tx, provider_id)))


def list_due(tx: PlatformTx, now: int, count_max: int) -> list[IdentityProvider]:
    """Return identity providers whose keys are to be fetched at `now`, those that wait longest first."""
    columns = identity_providers.c
    query = sa.select(identity_providers).where(columns.fetch_due_at <= now, columns.is_enabled).order_by(columns.fetch_due_at)
    return [_provider(row) for row in tx.connection.execute(query.limit(count_max))]


def put_keys(tx: TenantTx, provider_id: str, keys: Sequence[Jwk], fetched_at: int | None, fetch_due_at: int) -> None:
    """Store the keys of an issuer, and when they are fetched again."""
    values: dict[str, Any] = {"keys": msgspec.json.encode(keys).decode(), "fetch_due_at": fetch_due_at}
    if fetched_at is not None:
        values["fetched_at"] = fetched_at
    tx.connection.execute(identity_providers.update().where(_own(tx, provider_id)).values(values))


def hasten_fetch(tx: TenantTx, provider_id: str, due_at: int) -> None:
    """Let the keys of an issuer be fetched at `due_at` at the latest."""
    due = identity_providers.c.fetch_due_at
    tx.connection.execute(identity_providers.update().where(_own(tx, provider_id), due > due_at).values(fetch_due_at=due_at))


def _own(tx: TenantTx, provider_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(identity_providers.c.organization_id == tx.organization_id, identity_providers.c.id == provider_id)


def _provider(row: Any) -> IdentityProvider:
    fields = {name: getattr(row, name) for name in IdentityProvider.__dataclass_fields__ if name != "keys"}
    return IdentityProvider(**fields, keys=msgspec.json.decode(row.keys, type=tuple[Jwk, ...]))


# ---- Rules --------------------------------------------------------------------------------------------------------------


def put_rule(tx: TenantTx, rule: ProviderRule, *, is_new: bool) -> None:
    """Store a rule."""
    values = asdict(rule) | {
        "matchers": json.dumps(dict(rule.matchers)),
        "endpoints": None if rule.endpoints is None else json.dumps(rule.endpoints),
        "organization_id": tx.organization_id,
    }
    if is_new:
        tx.connection.execute(federation_rules.insert().values(values))
    else:
        tx.connection.execute(federation_rules.update().where(_own_rule(tx, rule.id)).values(values))


def find_rule(tx: TenantTx, rule_id: str) -> ProviderRule | None:
    """Return a rule of the organization."""
    row = tx.connection.execute(sa.select(federation_rules).where(_own_rule(tx, rule_id))).one_or_none()
    return None if row is None else _rule(row)


def list_rules(tx: TenantTx, provider_id: str, service_account_id: str | None, window: PageWindow) -> Page[ProviderRule]:
    """Return the rules of a provider: those of a service account, or all of them."""
    columns = federation_rules.c
    query = sa.select(federation_rules).where(columns.organization_id == tx.organization_id, columns.provider_id == provider_id)
    if service_account_id is not None:
        query = query.where(columns.service_account_id == service_account_id)
    return fetch_page(tx, query, columns.id, window, _rule)


def list_all_rules(tx: Transaction, provider_ids: Sequence[str]) -> Mapping[str, list[ProviderRule]]:
    """Return the enabled rules of identity providers, by provider, in the order in which they were made."""
    columns = federation_rules.c
    query = sa.select(federation_rules).where(columns.provider_id.in_(provider_ids), columns.is_enabled).order_by(columns.id)
    found: dict[str, list[ProviderRule]] = {}
    for row in tx.connection.execute(query):
        found.setdefault(row.provider_id, []).append(_rule(row))
    return found


def delete_rule(tx: TenantTx, rule_id: str) -> None:
    """Delete a rule."""
    tx.connection.execute(federation_rules.delete().where(_own_rule(tx, rule_id)))


def _own_rule(tx: TenantTx, rule_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(federation_rules.c.organization_id == tx.organization_id, federation_rules.c.id == rule_id)


def _rule(row: Any) -> ProviderRule:
    fields = {name: getattr(row, name) for name in ProviderRule.__dataclass_fields__ if name not in ("matchers", "endpoints")}
    endpoints = None if row.endpoints is None else tuple(map(Endpoint, json.loads(row.endpoints)))
    return ProviderRule(**fields, matchers=json.loads(row.matchers), endpoints=endpoints)


# ---- Assertions ---------------------------------------------------------------------------------------------------------


def use_assertion(tx: Transaction, digest: bytes, *, now: int, expires_at: int) -> bool:
    """Store that an assertion was used. Return False if it was used before. Some that have expired are removed."""
    columns = used_assertions.c
    expired = sa.select(columns.digest).where(columns.expires_at <= now).order_by(columns.expires_at).limit(USED_REMOVED_MAX)
    tx.connection.execute(used_assertions.delete().where(columns.digest.in_(expired)))
    insert = tx.insert(used_assertions).values(digest=digest, expires_at=expires_at).on_conflict_do_nothing().returning(columns.digest)
    return tx.connection.execute(insert).one_or_none() is not None
