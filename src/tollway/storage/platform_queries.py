"""Queries across tenants. The only ones: whoever imports this module must be named in the architecture's contract.

What gateways must know is read here, by one query per kind. The same query makes a full snapshot and, narrowed to some ids, each
change, so that the two cannot come to differ.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import sqlalchemy as sa

from tollway.domain.budgets import BudgetLevel, BudgetMode
from tollway.domain.certificates import CertificateMapping
from tollway.domain.keys import USE_SECONDS, KeyOrigin, KeyType, SecretUse, shorten_digest
from tollway.domain.limits import DIMENSIONS, UNLIMITED, LimitLevel
from tollway.domain.plans import ALL_MODELS
from tollway.domain.price_books import carried
from tollway.domain.roles import Grant
from tollway.domain.snapshot import (
    BudgetEntry,
    CertificateEntry,
    DeploymentEntry,
    Entry,
    IssuerEntry,
    KeyEntry,
    ModelEntry,
    OrganizationEntry,
    ProjectEntry,
    SigningKeyEntry,
)
from tollway.domain.tenants import Status
from tollway.domain.tokens import FederationRule, Jwk
from tollway.storage import catalog, certificates, credits, federation, keys, limits, plans, prices, roles, tenants
from tollway.storage.budgets import CONCERNS_GATEWAYS
from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.roles import ROLE_COLUMNS, names_role
from tollway.storage.schema import END_USER_PREFIX, api_keys, deployments, models, organizations, projects, service_accounts
from tollway.storage.schema_budgets import budgets
from tollway.storage.schema_data_protection import erasures
from tollway.storage.schema_people import custom_roles
from tollway.storage.schema_tokens import client_certificates, identity_providers, token_signing_keys
from tollway.wire.client_certificates import read_pem
from tollway.wire.json_web_tokens import make_edwards_key

ENTRY_KINDS: tuple[type[Entry], ...] = (
    OrganizationEntry,
    ProjectEntry,
    ModelEntry,
    DeploymentEntry,
    KeyEntry,
    BudgetEntry,
    SigningKeyEntry,
    IssuerEntry,
    CertificateEntry,
)
"""In the order of a snapshot: what an entry refers to comes before it."""

FETCH_ROWS = 1000
"""Rows taken from the driver at a time, so that a large snapshot is not in memory twice."""

IDS_MAX = 500
"""Ids named in one query. SQLite allows 32,766 parameters; plans stay sensible far below."""


@dataclass(frozen=True, slots=True)
class ActiveKey:
    """A key that may act now, and for whom: `organization_id` is None for keys of the platform and of nodes, `node_id` for all but those of
    nodes, `origin` for all but those of operators, `grants` (its roles) is empty for all but those of admins and operators. `expires_at`:
    None for a key that does not expire. `use`: the secret that was presented, used now; None if its use was noted already less than
    USE_SECONDS ago. `digest`: of the secret that was presented."""

    id: str
    type: KeyType
    organization_id: str | None
    node_id: str | None
    origin: KeyOrigin | None
    expires_at: int | None = None
    use: SecretUse | None = None
    grants: tuple[Grant, ...] = ()
    digest: bytes = field(default=b"", repr=False)


def find_active_key(tx: PlatformTx, digests: Sequence[bytes], now: int) -> ActiveKey | None:
    """The key with one of `digests` that may act at instant `now`: neither revoked nor expired, its organization not archived."""
    query = (
        sa.select(api_keys, *ROLE_COLUMNS)
        .outerjoin(custom_roles, names_role(api_keys.c.organization_id, api_keys.c.role_id))
        .outerjoin(organizations, organizations.c.id == api_keys.c.organization_id)
        .where(
            sa.or_(
                api_keys.c.digest.in_(digests),
                sa.and_(api_keys.c.previous_digest.in_(digests), api_keys.c.previous_expires_at > now),
            ),
            api_keys.c.revoked_at.is_(None),
            sa.or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now),
            sa.or_(organizations.c.id.is_(None), organizations.c.status == Status.ACTIVE),
        )
    )
    row = tx.connection.execute(query).one_or_none()
    if row is None:
        return None
    origin = None if row.origin is None else KeyOrigin(row.origin)
    is_new = row.digest in digests
    noted_at = row.last_used_at if is_new else row.previous_last_used_at
    use = None
    digest = bytes(row.digest if is_new else row.previous_digest)
    if noted_at is None or noted_at <= now - USE_SECONDS * 1_000_000:
        use = SecretUse(row.id, shorten_digest(digest), now)
    grants = _read_grants(tx, row)
    return ActiveKey(row.id, KeyType(row.type), row.organization_id, row.node_id, origin, row.expires_at, use, grants, digest)


def _read_grants(tx: PlatformTx, row: Any) -> tuple[Grant, ...]:
    """Return what the key of a row holds: its own role, or those of the person whose key it is."""
    if row.user_id is not None:
        return tuple(roles.list_user_grants(tx, row.organization_id, row.user_id))
    grant = keys.read_grant(row)
    return () if grant is None else (grant,)


def has_organization(tx: PlatformTx, organization_id: str) -> bool:
    """Return whether there is such an organization, archived or not."""
    query = sa.select(organizations.c.id).where(organizations.c.id == organization_id)
    return tx.connection.execute(query).first() is not None


# ---- What gateways must know ------------------------------------------------------------------------------------------


def list_entries(tx: Transaction, kind: type[Entry], ids: Sequence[str]) -> dict[str, Entry]:
    """By id, those of `ids` that gateways must know of now."""
    found: dict[str, Entry] = {}
    for start in range(0, len(ids), IDS_MAX):
        found.update((entry.id, entry) for entry in _read_entries(tx, kind, ids[start : start + IDS_MAX]))
    return found


def iterate_entries(tx: Transaction) -> Iterator[Entry]:
    """All that gateways must know, each entry after those that it refers to."""
    for kind in ENTRY_KINDS:
        yield from _read_entries(tx, kind, None)


def _read_entries(tx: Transaction, kind: type[Entry], ids: Sequence[str] | None) -> Iterator[Entry]:
    if kind is ModelEntry:
        yield from _read_models(tx, ids)
        return
    if kind is OrganizationEntry:
        yield from _read_organizations(tx, ids)
        return
    query, id, read = _ROWS[kind]
    query = query.order_by(id)
    if ids is not None:
        query = query.where(id.in_(ids))
    for rows in tx.connection.execute(query.execution_options(yield_per=FETCH_ROWS)).partitions():
        yield from read(tx, rows)


def _read_organizations(tx: Transaction, ids: Sequence[str] | None) -> Iterator[Entry]:
    yield from _read_erased_organizations(tx, ids)
    query = sa.select(organizations).where(organizations.c.status == Status.ACTIVE).order_by(organizations.c.id)
    if ids is not None:
        query = query.where(organizations.c.id.in_(ids))
    for rows in tx.connection.execute(query.execution_options(yield_per=FETCH_ROWS)).partitions():
        terms = prices.read_terms(tx, [row.id for row in rows])
        said = plans.list_organization_limits(tx, rows)
        for row in rows:
            of_row = terms[row.id]
            by_model = said[row.id].resolve()
            yield OrganizationEntry(
                id=row.id,
                currency=row.currency,
                terms=carried(of_row.default_list, of_row.stored),
                limits=by_model.pop(ALL_MODELS, UNLIMITED),
                model_limits=by_model,
                queue_weight=row.queue_weight,
                response_retention_seconds=row.response_retention_seconds,
            )


def _read_erased_organizations(tx: Transaction, ids: Sequence[str] | None) -> Iterator[Entry]:
    """Yield the organizations of which nothing is left but what an erasure leaves."""
    query = (
        sa.select(organizations.c.id, organizations.c.currency)
        .join(erasures, erasures.c.organization_id == organizations.c.id)
        .where(organizations.c.status == Status.ARCHIVED, erasures.c.user_id.is_(None), erasures.c.are_rows_erased)
        .order_by(organizations.c.id)
    )
    if ids is not None:
        query = query.where(organizations.c.id.in_(ids))
    for row in tx.connection.execute(query):
        yield OrganizationEntry(id=row.id, currency=row.currency, is_erased=True)


def _read_models(tx: Transaction, ids: Sequence[str] | None) -> Iterator[Entry]:
    query = sa.select(models).where(models.c.status == Status.ACTIVE, models.c.published).order_by(models.c.name)
    if ids is not None:
        query = query.where(models.c.name.in_(ids))
    rows = tx.connection.execute(query).all()
    versions = prices.list_carried(tx, ids)
    for model in map(catalog.read_model, rows):
        yield ModelEntry(
            id=model.name,
            endpoints=model.endpoints,
            created_at=model.created_at,
            prices=versions[model.name],
            output_tokens_max=model.output_tokens_max,
            context_length=model.context_length,
            unknown_parameters=model.unknown_parameters,
            retry_started=model.retry_started,
            share_cache=model.share_cache,
            groups=model.groups,
            fallbacks=model.fallbacks,
            hedge_after_ms=model.hedge_after_ms,
            hedge_percent=model.hedge_percent,
            latency_goal_ms=model.latency_goal_ms,
            response_cache_seconds=model.response_cache_seconds,
            guardrail=model.guardrail,
            guardrail_stages=model.guardrail_stages,
        )


def _projects(tx: Transaction, rows: Sequence[Any]) -> Iterator[Entry]:
    by_model = limits.list_model_limits(tx, LimitLevel.PROJECT, [row.id for row in rows])
    of_end_users = limits.list_model_limits(tx, LimitLevel.END_USER, [row.id for row in rows])
    for row in rows:
        said = tenants.read_model_permissions(row)
        yield ProjectEntry(
            id=row.id,
            organization_id=row.organization_id,
            limits=limits.read_limits(row),
            model_limits=by_model.get(row.id, {}),
            end_user_limits=limits.read_limits(row, END_USER_PREFIX),
            end_user_model_limits=of_end_users.get(row.id, {}),
            residency=tenants.read_residency(row),
            models=None if said is None else said.allowed,
            denied_models=() if said is None else said.denied,
            service_tiers=tenants.read_service_tiers(row),
            logs_content=row.content_retention_seconds is not None,
        )


def _keys(tx: Transaction, rows: Sequence[Any]) -> Iterator[Entry]:
    by_model = limits.list_model_limits(tx, LimitLevel.API_KEY, [row.id for row in rows])
    accounts = sorted({row.service_account_id for row in rows if row.service_account_id is not None})
    accounts_by_model = limits.list_model_limits(tx, LimitLevel.SERVICE_ACCOUNT, accounts)
    for row in rows:
        has_account = row.service_account_id is not None
        yield KeyEntry(
            id=row.id,
            digest=row.digest,
            type=KeyType(row.type),
            project_id=row.project_id,
            limits=limits.read_limits(row),
            models=None if row.models is None else tuple(json.loads(row.models)),
            expires_at=row.expires_at,
            model_limits=by_model.get(row.id, {}),
            service_account_id=row.service_account_id,
            service_account_limits=limits.read_limits(row, _ACCOUNT) if has_account else UNLIMITED,
            service_account_model_limits=accounts_by_model.get(row.service_account_id, {}),
            previous_digest=row.previous_digest or b"",
            previous_expires_at=row.previous_expires_at,
            endpoints=keys.read_endpoints(row),
            addresses=None if row.addresses is None else tuple(json.loads(row.addresses)),
            output_tokens_max=row.output_tokens_max,
        )


def _deployments(_tx: Transaction, rows: Sequence[Any]) -> Iterator[Entry]:
    for row in rows:
        yield DeploymentEntry(id=row.id, deployment=catalog.read_deployment(row))


def _budgets(tx: Transaction, rows: Sequence[Any]) -> Iterator[Entry]:
    prepaid = {row.organization_id for row in rows if row.is_prepaid}
    scopes = credits.list_scopes(tx, prepaid) if prepaid else {}
    for row in rows:
        yield BudgetEntry(
            id=row.id,
            organization_id=row.organization_id,
            level=BudgetLevel(row.level),
            subject_id=row.subject_id,
            mode=BudgetMode(row.mode),
            model=row.model or "",
            tag=row.tag or "",
            fallback_model=row.fallback_model or "",
            end_user=row.end_user or "",
            throttle_requests_per_minute=row.throttle_requests_per_minute or 0,
            scopes=scopes.get(row.organization_id, ()) if row.is_prepaid else (),
        )


def _signing_keys(_tx: Transaction, rows: Sequence[Any]) -> Iterator[Entry]:
    for row in rows:
        yield SigningKeyEntry(id=row.id, issuer=row.issuer, key=make_edwards_key(row.id, bytes(row.public_key)))


def _issuers(tx: Transaction, rows: Sequence[Any]) -> Iterator[Entry]:
    rules = federation.list_all_rules(tx, [row.id for row in rows])
    for row in rows:
        yield IssuerEntry(
            id=row.id,
            organization_id=row.organization_id,
            issuer=row.issuer,
            audience=row.audience,
            keys=msgspec.json.decode(row.keys, type=tuple[Jwk, ...]),
            rules=tuple(FederationRule(rule.key_id, dict(rule.matchers)) for rule in rules.get(row.id, ())),
        )


def _certificates(tx: Transaction, rows: Sequence[Any]) -> Iterator[Entry]:
    """Yield the certificates that are active where a rule of theirs counts."""
    rules = certificates.list_all_rules(tx, [row.id for row in rows])
    for row in rows:
        certificate = certificates.read_certificate(row)
        in_force = [rule for rule in rules.get(row.id, ()) if certificate.is_active_in(rule.project_id)]
        if in_force:
            yield CertificateEntry(
                id=row.id,
                organization_id=row.organization_id,
                certificate=read_pem(row.content).der,
                rules=tuple(CertificateMapping(rule.key_id, dict(rule.matchers)) for rule in in_force),
            )


_ACCOUNT = "account_"
"""Prefix of the columns of a key's service account."""

_ROWS: dict[type[Entry], tuple[sa.Select[Any], sa.Column[str], Callable[[Transaction, Sequence[Any]], Iterator[Entry]]]] = {
    ProjectEntry: (sa.select(projects).where(projects.c.status == Status.ACTIVE), projects.c.id, _projects),
    DeploymentEntry: (sa.select(deployments).where(deployments.c.status == Status.ACTIVE), deployments.c.id, _deployments),
    KeyEntry: (
        sa.select(api_keys, *(service_accounts.c[each.name].label(_ACCOUNT + each.name) for each in DIMENSIONS))
        .outerjoin(service_accounts, service_accounts.c.id == api_keys.c.service_account_id)
        .where(api_keys.c.type.in_([KeyType.LIVE, KeyType.TEST]), api_keys.c.revoked_at.is_(None)),
        api_keys.c.id,
        _keys,
    ),
    BudgetEntry: (sa.select(budgets).where(CONCERNS_GATEWAYS), budgets.c.id, _budgets),
    SigningKeyEntry: (sa.select(token_signing_keys), token_signing_keys.c.id, _signing_keys),
    IssuerEntry: (
        sa.select(identity_providers).where(identity_providers.c.is_enabled, identity_providers.c.is_direct),
        identity_providers.c.id,
        _issuers,
    ),
    CertificateEntry: (sa.select(client_certificates), client_certificates.c.id, _certificates),
}
