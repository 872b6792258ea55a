"""Client certificates that organizations trust, and their rules, at rest."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from tollway.domain.certificates import CertificateRule, ClientCertificate
from tollway.domain.pages import Page, PageWindow
from tollway.storage.database import PlatformTx, TenantTx, Transaction
from tollway.storage.pages import fetch_page
from tollway.storage.schema_tokens import certificate_rules, client_certificates


def put_certificate(tx: TenantTx, certificate: ClientCertificate, *, is_new: bool) -> None:
    """Store a certificate."""
    values = {name: getattr(certificate, name) for name in ClientCertificate.__dataclass_fields__}
    values["project_ids"] = json.dumps(sorted(certificate.project_ids))
    if is_new:
        tx.connection.execute(client_certificates.insert().values(values))
    else:
        tx.connection.execute(client_certificates.update().where(_own(tx, certificate.id)).values(values))


def find_certificate(tx: TenantTx, certificate_id: str) -> ClientCertificate | None:
    """Return a certificate of the organization."""
    row = tx.connection.execute(sa.select(client_certificates).where(_own(tx, certificate_id))).one_or_none()
    return None if row is None else read_certificate(row)


def has_fingerprint(tx: TenantTx, fingerprint: str) -> bool:
    """Return whether the organization has this very certificate."""
    columns = client_certificates.c
    query = sa.select(columns.id).where(columns.organization_id == tx.organization_id, columns.fingerprint == fingerprint)
    return tx.connection.execute(query).first() is not None


def list_certificates(tx: TenantTx, window: PageWindow) -> Page[ClientCertificate]:
    """Return the certificates of the organization."""
    query = sa.select(client_certificates).where(client_certificates.c.organization_id == tx.organization_id)
    return fetch_page(tx, query, client_certificates.c.id, window, read_certificate)


def delete_certificate(tx: TenantTx, certificate_id: str) -> None:
    """Delete a certificate that has no rules."""
    tx.connection.execute(client_certificates.delete().where(_own(tx, certificate_id)))


def count_expiring(tx: PlatformTx, since: int, until: int) -> int:
    """Return how many certificates of all organizations, active somewhere, expire from one instant to before another."""
    columns = client_certificates.c
    is_active = sa.or_(columns.is_active, columns.project_ids != "[]")
    query = sa.select(sa.func.count()).where(is_active, columns.expires_at >= since, columns.expires_at < until)
    return int(tx.connection.execute(query).scalar_one())


def read_certificate(row: Any) -> ClientCertificate:
    """Return the certificate of a row."""
    fields = {name: getattr(row, name) for name in ClientCertificate.__dataclass_fields__ if name != "project_ids"}
    return ClientCertificate(**fields, project_ids=frozenset(json.loads(row.project_ids)))


def _own(tx: TenantTx, certificate_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(client_certificates.c.organization_id == tx.organization_id, client_certificates.c.id == certificate_id)


# ---- Rules --------------------------------------------------------------------------------------------------------------


def insert_rule(tx: TenantTx, rule: CertificateRule) -> None:
    """Store a new rule."""
    values = {name: getattr(rule, name) for name in CertificateRule.__dataclass_fields__}
    tx.connection.execute(
        certificate_rules.insert().values({**values, "matchers": json.dumps(dict(rule.matchers)), "organization_id": tx.organization_id})
    )


def find_rule(tx: TenantTx, rule_id: str) -> CertificateRule | None:
    """Return a rule of the organization."""
    row = tx.connection.execute(sa.select(certificate_rules).where(_own_rule(tx, rule_id))).one_or_none()
    return None if row is None else _rule(row)


def list_rules(tx: TenantTx, certificate_id: str, window: PageWindow) -> Page[CertificateRule]:
    """Return the rules of a certificate."""
    columns = certificate_rules.c
    query = sa.select(certificate_rules).where(columns.organization_id == tx.organization_id, columns.certificate_id == certificate_id)
    return fetch_page(tx, query, columns.id, window, _rule)


def list_all_rules(tx: Transaction, certificate_ids: Sequence[str]) -> Mapping[str, list[CertificateRule]]:
    """Return the rules of certificates, by certificate, in the order in which they were made."""
    columns = certificate_rules.c
    query = sa.select(certificate_rules).where(columns.certificate_id.in_(certificate_ids)).order_by(columns.id)
    found: dict[str, list[CertificateRule]] = {}
    for row in tx.connection.execute(query):
        found.setdefault(row.certificate_id, []).append(_rule(row))
    return found


def delete_rule(tx: TenantTx, rule_id: str) -> None:
    """Delete a rule."""
    tx.connection.execute(certificate_rules.delete().where(_own_rule(tx, rule_id)))


def _own_rule(tx: TenantTx, rule_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(certificate_rules.c.organization_id == tx.organization_id, certificate_rules.c.id == rule_id)


def _rule(row: Any) -> CertificateRule:
    fields = {name: getattr(row, name) for name in CertificateRule.__dataclass_fields__ if name != "matchers"}
    return CertificateRule(**fields, matchers=json.loads(row.matchers))
