"""Client certificates that an organization trusts, and for which service accounts they stand.

A certificate counts where it is active: in the organization, or in single projects. Each rule has an API key of its own whose secret nobody
knows, as rules of identity providers have.
"""

from collections.abc import Sequence
from dataclasses import replace

from tollway.control import publish
from tollway.control.authentication.federation import KeyMaking
from tollway.control.identity import keys as api_keys
from tollway.control.identity.keys import WantedKey
from tollway.control.tenancy import tenants
from tollway.domain import ids
from tollway.domain.certificates import CERTIFICATES_MAX, RULES_MAX, CertificateRule, ClientCertificate, find_matchers_error
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.keys import KeyType
from tollway.domain.pages import Page, PageWindow
from tollway.domain.snapshot import CertificateEntry, KeyEntry
from tollway.storage import certificates as storage
from tollway.storage import keys as stored_keys
from tollway.storage.database import PlatformTx, TenantTx
from tollway.wire.client_certificates import CertificateInvalid, read_pem

EXPIRING_SECONDS = 14 * 86_400
"""Time before its expiry at which a certificate is counted as one that expires."""


def count_expiring(tx: PlatformTx, now: int) -> int:
    """Return how many active certificates of all organizations expire within EXPIRING_SECONDS."""
    return storage.count_expiring(tx, now, now + EXPIRING_SECONDS * 1_000_000)


def upload_certificate(tx: TenantTx, content: str, *, id: str, name: str | None, now: int) -> ClientCertificate:
    """Store a certificate (PEM), which is active nowhere yet. Raises PARAMETER_INVALID for one that cannot be trusted, STATE_CONFLICT if
    the organization has it already, has too many, or is archived."""
    try:
        read = read_pem(content)
    except CertificateInvalid as invalid:
        raise _invalid(str(invalid)) from None
    if read.expires_at <= now:
        raise _invalid("it has expired")
    if not read.is_authority and not read.is_for_clients:
        raise _invalid("it is neither an authority's nor a client's")
    publish.lock(tx)  # takes turns with other creations
    tenants.require_active_organization(tx)
    if storage.has_fingerprint(tx, read.fingerprint):
        raise Fault(STATE_CONFLICT, param="certificate", message="The organization has this certificate already.")
    if len(storage.list_certificates(tx, PageWindow(limit=CERTIFICATES_MAX)).items) >= CERTIFICATES_MAX:
        raise Fault(STATE_CONFLICT, message=f"An organization has at most {CERTIFICATES_MAX} certificates.")
    certificate = ClientCertificate(
        id=id,
        organization_id=tx.organization_id,
        name=name,
        content=content,
        fingerprint=read.fingerprint,
        is_authority=read.is_authority,
        valid_from=read.valid_from,
        expires_at=read.expires_at,
        is_active=False,
        project_ids=frozenset(),
        created_at=now,
    )
    storage.put_certificate(tx, certificate, is_new=True)
    return certificate


def get_certificate(tx: TenantTx, certificate_id: str) -> ClientCertificate:
    """Return a certificate. Raises RESOURCE_UNKNOWN."""
    found = storage.find_certificate(tx, certificate_id) if ids.is_id(ids.CERTIFICATE, certificate_id) else None
    if found is None:
        raise Fault(RESOURCE_UNKNOWN)
    return found


def list_certificates(tx: TenantTx, window: PageWindow) -> Page[ClientCertificate]:
    """Return the certificates of the organization."""
    return storage.list_certificates(tx, window)


def list_project_certificates(tx: TenantTx, project_id: str, window: PageWindow) -> Page[ClientCertificate]:
    """Return the certificates of the organization, which each project may activate. Raises RESOURCE_UNKNOWN without such a project."""
    tenants.get_project(tx, project_id)
    return storage.list_certificates(tx, window)


def rename_certificate(tx: TenantTx, certificate_id: str, name: str | None) -> ClientCertificate:
    """Give a certificate another name. Raises RESOURCE_UNKNOWN."""
    publish.lock(tx)
    changed = replace(get_certificate(tx, certificate_id), name=name)
    storage.put_certificate(tx, changed, is_new=False)
    return changed


def set_active(
    tx: TenantTx, certificate_ids: Sequence[str], project_id: str | None, *, is_active: bool, everywhere: bool = False, now: int
) -> tuple[list[ClientCertificate], int]:
    """Activate certificates, or deactivate them: in a project, or in the organization (None); all of them or none. `everywhere`: what is
    deactivated in the organization is so in each project too. Return them with the version of the snapshot that says so. Raises
    RESOURCE_UNKNOWN, PARAMETER_INVALID for an expired one that would be activated."""
    publish.lock(tx)
    if project_id is not None:
        tenants.get_project(tx, project_id)
    changed = []
    for certificate in [get_certificate(tx, each) for each in certificate_ids]:
        if is_active and certificate.expires_at <= now:
            raise Fault(PARAMETER_INVALID, param="certificate_ids", message="Invalid value for certificate_ids: one has expired.")
        if project_id is None:
            kept = frozenset() if everywhere and not is_active else certificate.project_ids
            certificate = replace(certificate, is_active=is_active, project_ids=kept)
        else:
            kept = certificate.project_ids | {project_id} if is_active else certificate.project_ids - {project_id}
            certificate = replace(certificate, project_ids=kept)
        storage.put_certificate(tx, certificate, is_new=False)
        changed.append(certificate)
    return changed, publish.publish(tx, CertificateEntry, [each.id for each in changed], now)


def delete_certificate(tx: TenantTx, certificate_id: str) -> None:
    """Delete a certificate that is active nowhere and has no rules. Raises RESOURCE_UNKNOWN, STATE_CONFLICT."""
    publish.lock(tx)
    certificate = get_certificate(tx, certificate_id)
    if certificate.is_active or certificate.project_ids:
        raise Fault(STATE_CONFLICT, message="The certificate is active. Deactivate it first.")
    if storage.list_rules(tx, certificate_id, PageWindow(limit=1)).items:
        raise Fault(STATE_CONFLICT, message="The certificate has rules. Delete them first.")
    storage.delete_certificate(tx, certificate_id)


# ---- Rules --------------------------------------------------------------------------------------------------------------


def create_rule(tx: TenantTx, rule: CertificateRule, making: KeyMaking, now: int) -> CertificateRule:
    """Store a rule and make its key. Raises RESOURCE_UNKNOWN, STATE_CONFLICT (too many rules, an archived project), PARAMETER_INVALID,
    QUOTA_EXCEEDED."""
    publish.lock(tx)
    certificate = get_certificate(tx, rule.certificate_id)
    error = find_matchers_error(rule.matchers, is_authority=certificate.is_authority)
    if error is not None:
        raise Fault(PARAMETER_INVALID, param="matchers", message=f"Invalid value for matchers: {error}.")
    if len(storage.list_rules(tx, rule.certificate_id, PageWindow(limit=RULES_MAX)).items) >= RULES_MAX:
        raise Fault(STATE_CONFLICT, message=f"A certificate has at most {RULES_MAX} rules.")
    account = tenants.get_service_account(tx, rule.project_id, rule.service_account_id)
    wanted = WantedKey(type=KeyType.LIVE, name=f"Certificate rule {rule.id}", service_account=account, grantor=making.grantor)
    api_keys.create_project_key(tx, rule.project_id, wanted, id=rule.key_id, ingredients=making.ingredients, sizes=making.sizes, now=now)
    storage.insert_rule(tx, rule)
    publish.publish(tx, CertificateEntry, [rule.certificate_id], now)
    return rule


def list_rules(tx: TenantTx, certificate_id: str, window: PageWindow) -> Page[CertificateRule]:
    """Return the rules of a certificate. Raises RESOURCE_UNKNOWN."""
    get_certificate(tx, certificate_id)
    return storage.list_rules(tx, certificate_id, window)


def delete_rule(tx: TenantTx, certificate_id: str, rule_id: str, now: int) -> int:
    """Delete a rule and revoke its key. Return the version that says so. Raises RESOURCE_UNKNOWN."""
    publish.lock(tx)
    get_certificate(tx, certificate_id)
    rule = storage.find_rule(tx, rule_id) if ids.is_id(ids.CERTIFICATE_RULE, rule_id) else None
    if rule is None or rule.certificate_id != certificate_id:
        raise Fault(RESOURCE_UNKNOWN)
    storage.delete_rule(tx, rule_id)
    publish.publish(tx, CertificateEntry, [certificate_id], now)
    return publish.publish(tx, KeyEntry, stored_keys.revoke_key(tx, rule.key_id, now), now)


def _invalid(reason: str) -> Fault:
    return Fault(PARAMETER_INVALID, param="certificate", message=f"Invalid value for certificate: {reason}.")
