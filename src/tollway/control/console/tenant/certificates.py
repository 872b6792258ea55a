"""Client certificates: uploaded, trusted in the organization or in projects, and the rules by which they stand for service accounts."""

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.authentication import certificates
from tollway.control.api.authentication.certificates import (
    CertificateCreate,
    CertificateDeactivate,
    CertificateIds,
    CertificateOut,
    CertificateRuleCreate,
    CertificateUpdate,
)
from tollway.control.api.schemas import PageQuery
from tollway.control.console.forms import Form, form, make_body, require_typed
from tollway.control.console.routing import Page, TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.console.tenant.projects import name_projects, offer_projects
from tollway.control.console.tenant.stand_ins import offer_accounts, read_matchers
from tollway.control.console.tenant.workloads import OfProject
from tollway.domain.certificates import CERTIFICATES_MAX, RULES_MAX
from tollway.domain.faults import RESOURCE_UNKNOWN, Fault

router = new_router()

PATH = "/console/organizations/{organization_id}/certificates"
ONE = PATH + "/{certificate_id}"
RULE = ONE + "/rules/{certificate_rule_id}"


@router.get(PATH, include_in_schema=False)
def show_certificates(page: TenantPage) -> Response:
    """The certificates of the organization."""
    return _show_list(page)


def _list(page: Page) -> list[CertificateOut]:
    """Return all certificates of the organization, each with whether it is trusted in all of it."""
    return page.call(certificates.list_certificates, query=PageQuery(limit=CERTIFICATES_MAX)).data


def _find(page: Page, certificate_id: str) -> CertificateOut:
    """Return one certificate. Raises RESOURCE_UNKNOWN."""
    found = next((each for each in _list(page) if each.id == certificate_id), None)
    if found is None:
        raise Fault(RESOURCE_UNKNOWN)
    return found


def _show_list(page: Page, fault: Fault | None = None) -> Response:
    return page.show(
        "tenant/certificates.html",
        fault=fault,
        certificates=_list(page),
        now=page.plane.now() // 1_000_000,
        may_write=page.allows(certificates.create_certificate),
    )


@router.post(PATH, include_in_schema=False)
def upload_certificate(page: TenantPage, fields: Annotated[Form, form(certificates.create_certificate, "name", "certificate")]) -> Response:
    """Upload a certificate, which nobody trusts before it is activated."""
    try:
        made = page.call(certificates.create_certificate, body=make_body(CertificateCreate, fields))
    except Fault as fault:
        return _show_list(page, fault)
    return page.lead(f"/certificates/{made.id}", "created")


@router.get(ONE, include_in_schema=False)
def show_certificate(page: TenantPage, certificate_id: str, query: Annotated[OfProject, Query()]) -> Response:
    """One certificate: where it is trusted, and its rules."""
    return _show(page, certificate_id, query.project)


def _show(page: Page, certificate_id: str, project_id: str = "", fault: Fault | None = None) -> Response:
    certificate = _find(page, certificate_id)
    try:
        accounts = offer_accounts(page, project_id)
    except Fault as refused:
        accounts, fault = {}, fault or refused
    return page.show(
        "tenant/certificate.html",
        fault=fault,
        certificate=certificate,
        rules=page.call(certificates.list_certificate_rules, certificate_id=certificate_id, query=PageQuery(limit=RULES_MAX)).data,
        trusting=name_projects(page, certificate.project_ids or ()),
        project_id=project_id,
        projects=offer_projects(page, project_id),
        accounts=accounts,
        now=page.plane.now() // 1_000_000,
        may_write=page.allows(certificates.update_certificate),
        may_trust=page.allows(certificates.activate_project_certificates),
    )


@router.post(f"{ONE}/name", include_in_schema=False)
def rename_certificate(
    page: TenantPage, certificate_id: str, fields: Annotated[Form, form(certificates.update_certificate, "name")]
) -> Response:
    """Give a certificate another name."""
    try:
        page.call(certificates.update_certificate, certificate_id=certificate_id, body=make_body(CertificateUpdate, fields))
    except Fault as fault:
        return _show(page, certificate_id, fault=fault)
    return page.lead(f"/certificates/{certificate_id}", "saved")


@router.post(f"{ONE}/trust", include_in_schema=False)
def trust_certificate(
    page: TenantPage,
    certificate_id: str,
    fields: Annotated[Form, form((certificates.activate_certificates, certificates.activate_project_certificates), "project", "trusted")],
) -> Response:
    """Trust a certificate, or trust it no more: in a project, or in the whole organization where that is empty."""
    project_id, is_trusted = fields["project"], fields["trusted"] == "yes"
    try:
        of_all = CertificateIds(certificate_ids=[certificate_id])
        if project_id:
            in_project = certificates.activate_project_certificates if is_trusted else certificates.deactivate_project_certificates
            page.call(in_project, project_id=project_id, body=of_all)
        elif is_trusted:
            page.call(certificates.activate_certificates, body=of_all)
        else:
            page.call(certificates.deactivate_certificates, body=CertificateDeactivate(certificate_ids=[certificate_id]))
    except Fault as fault:
        return _show(page, certificate_id, fault=fault)
    return page.lead(f"/certificates/{certificate_id}", "saved")


@router.post(f"{ONE}/delete", include_in_schema=False)
def delete_certificate_by_name(
    page: TenantPage, certificate_id: str, fields: Annotated[Form, form(certificates.delete_certificate, "confirmation")]
) -> Response:
    """Delete a certificate, whose name (or id, if it has none) was typed."""
    try:
        require_typed(fields["confirmation"], _find(page, certificate_id).name or certificate_id)
        page.call(certificates.delete_certificate, certificate_id=certificate_id)
    except Fault as fault:
        return _show(page, certificate_id, fault=fault)
    return page.lead("/certificates", "deleted")


# ---- Rules --------------------------------------------------------------------------------------------------------------


@router.post(f"{ONE}/rules", include_in_schema=False)
def add_rule(
    page: TenantPage,
    certificate_id: str,
    fields: Annotated[Form, form(certificates.create_certificate_rule, "project", "service_account_id", "name", "matchers")],
) -> Response:
    """Let certificates that say what a rule asks for stand for a service account."""
    project_id = fields["project"]
    try:
        values = {
            "project_id": project_id,
            "service_account_id": fields["service_account_id"],
            "name": fields["name"],
            "matchers": read_matchers(fields["matchers"]),
        }
        page.call(certificates.create_certificate_rule, certificate_id=certificate_id, body=make_body(CertificateRuleCreate, values))
    except Fault as fault:
        return _show(page, certificate_id, project_id, fault)
    return page.lead(f"/certificates/{certificate_id}", "created")


@router.post(f"{RULE}/delete", include_in_schema=False)
def delete_rule_by_name(
    page: TenantPage,
    certificate_id: str,
    certificate_rule_id: str,
    fields: Annotated[Form, form(certificates.delete_certificate_rule, "confirmation")],
) -> Response:
    """Delete a rule, whose name (or id, if it has none) was typed, and revoke its key."""
    try:
        query = PageQuery(limit=RULES_MAX)
        rules = page.call(certificates.list_certificate_rules, certificate_id=certificate_id, query=query).data
        rule = next((each for each in rules if each.id == certificate_rule_id), None)
        if rule is None:
            raise Fault(RESOURCE_UNKNOWN)
        require_typed(fields["confirmation"], rule.name or rule.id)
        deleted = page.call(certificates.delete_certificate_rule, certificate_id=certificate_id, certificate_rule_id=certificate_rule_id)
    except Fault as fault:
        return _show(page, certificate_id, fault=fault)
    return page.lead(f"/certificates/{certificate_id}", "pending" if deleted.pending_nodes else "deleted")
