"""Workload identities: identity providers whose tokens programs exchange for tokens of the platform, and the rules of each."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict, StringConstraints
from starlette.responses import Response

from tollway.control.api.identity import federation
from tollway.control.api.identity.federation import ProviderCreate, ProviderUpdate, RuleCreate, RuleQuery, RuleUpdate
from tollway.control.api.schemas import PageQuery
from tollway.control.console.forms import Form, form, make_body, require_typed, split_list
from tollway.control.console.routing import Page, TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.console.tenant.projects import offer_projects
from tollway.control.console.tenant.stand_ins import offer_accounts, read_matchers
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.federation import RULES_MAX

router = new_router()

PATH = "/console/organizations/{organization_id}/workloads"
ONE = PATH + "/{identity_provider_id}"
RULE = ONE + "/rules/{federation_rule_id}"

CLAIM_DIGITS_MAX = 18

_PROVIDER_FIELDS = ("name", "issuer", "audience", "jwks", "is_direct", "is_single_use")


class OfProject(BaseModel):
    """The project whose service accounts the form of a rule offers."""

    model_config = ConfigDict(extra="forbid")

    project: Annotated[str, StringConstraints(max_length=64)] = ""


@router.get(PATH, include_in_schema=False)
def show_providers(page: TenantPage, query: Annotated[PageQuery, Query()]) -> Response:
    """The identity providers of programs."""
    return _show_list(page, query)


def _show_list(page: Page, query: PageQuery, fault: Fault | None = None) -> Response:
    return page.show(
        "tenant/workloads.html",
        fault=fault,
        providers=page.call(federation.list_providers, query=query),
        may_write=page.allows(federation.create_provider),
    )


def _read_verification(text: str) -> Mapping[str, Any] | None:
    """Return the source of keys that a field with a JSON Web Key Set means; None where it is empty. Raises PARAMETER_INVALID."""
    if not text.strip():
        return None
    try:
        keys = json.loads(text)
    except (ValueError, RecursionError):
        raise Fault(PARAMETER_INVALID, param="jwks", message="The keys are no JSON.") from None
    return {"type": "uploaded_jwks", "jwks": keys}


def _read_flags(fields: Form) -> dict[str, bool]:
    return {name: fields[name] == "yes" for name in ("is_direct", "is_single_use")}


@router.post(PATH, include_in_schema=False)
def add_provider(page: TenantPage, fields: Annotated[Form, form(federation.create_provider, *_PROVIDER_FIELDS)]) -> Response:
    """Let programs use the tokens of an identity provider, by rules."""
    try:
        values = {name: fields[name] for name in ("name", "issuer", "audience")}
        verification = _read_verification(fields["jwks"])
        body = make_body(ProviderCreate, {"type": "oidc", **values, **_read_flags(fields), "verification": verification})
        made = page.call(federation.create_provider, body=body)
    except Fault as fault:
        return _show_list(page, PageQuery(), fault)
    return page.lead(f"/workloads/{made.id}", "created")


@router.get(ONE, include_in_schema=False)
def show_provider(page: TenantPage, identity_provider_id: str, query: Annotated[OfProject, Query()]) -> Response:
    """One identity provider with its rules."""
    return _show(page, identity_provider_id, query.project)


def _show(page: Page, provider_id: str, project_id: str = "", fault: Fault | None = None) -> Response:
    provider = page.call(federation.retrieve_provider, workload_identity_provider_id=provider_id)
    rules = page.call(federation.list_rules, workload_identity_provider_id=provider_id, query=RuleQuery(limit=RULES_MAX)).data
    try:
        accounts = offer_accounts(page, project_id)
    except Fault as refused:
        accounts, fault = {}, fault or refused
    return page.show(
        "tenant/workload.html",
        fault=fault,
        provider=provider,
        rules=[(each, {name: write_claim(value) for name, value in each.attribute_matchers.items()}) for each in rules],
        project_id=project_id,
        projects=offer_projects(page, project_id),
        accounts=accounts,
        may_write=page.allows(federation.update_provider),
    )


@router.post(f"{ONE}/change", include_in_schema=False)
def change_provider(
    page: TenantPage, identity_provider_id: str, fields: Annotated[Form, form(federation.update_provider, *_PROVIDER_FIELDS, "enabled")]
) -> Response:
    """Change an identity provider; the source of its keys stays where that is left empty."""
    try:
        values = {name: fields[name] for name in ("name", "issuer", "audience")}
        changes = {
            **values,
            **_read_flags(fields),
            "enabled": fields["enabled"] == "yes",
            "verification": _read_verification(fields["jwks"]),
        }
        body = make_body(ProviderUpdate, changes)
        page.call(federation.update_provider, workload_identity_provider_id=identity_provider_id, body=body)
    except Fault as fault:
        return _show(page, identity_provider_id, fault=fault)
    return page.lead(f"/workloads/{identity_provider_id}", "saved")


@router.post(f"{ONE}/delete", include_in_schema=False)
def delete_provider_by_name(
    page: TenantPage, identity_provider_id: str, fields: Annotated[Form, form(federation.delete_provider, "confirmation")]
) -> Response:
    """Delete an identity provider, whose name was typed."""
    try:
        named = page.call(federation.retrieve_provider, workload_identity_provider_id=identity_provider_id).name
        require_typed(fields["confirmation"], named)
        deleted = page.call(federation.delete_provider, workload_identity_provider_id=identity_provider_id)
    except Fault as fault:
        return _show(page, identity_provider_id, fault=fault)
    return page.lead("/workloads", "pending" if deleted.pending_nodes else "deleted")


# ---- Rules --------------------------------------------------------------------------------------------------------------


def _read_claim(text: str) -> str | int | bool:
    """Return the value of a claim that a field means: true, false and whole numbers are no text unless they stand in quotes."""
    if text in ("true", "false"):
        return text == "true"
    if text.isascii() and text.isdigit() and len(text) <= CLAIM_DIGITS_MAX:
        return int(text)
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def write_claim(value: str | int | bool) -> str:
    """Return the value of a claim as a field takes it."""
    if isinstance(value, str):
        return value if _read_claim(value) == value else f'"{value}"'
    return str(value).lower()


@router.post(f"{ONE}/rules", include_in_schema=False)
def add_rule(
    page: TenantPage,
    identity_provider_id: str,
    fields: Annotated[Form, form(federation.create_rule, "project", "service_account_id", "name", "matchers", "endpoints")],
) -> Response:
    """Let tokens that say what a rule asks for stand for a service account."""
    project_id = fields["project"]
    try:
        endpoints = split_list(fields["endpoints"])
        values = {
            "project_id": project_id,
            "service_account_id": fields["service_account_id"],
            "name": fields["name"],
            "attribute_matchers": {claim: _read_claim(text) for claim, text in read_matchers(fields["matchers"]).items()},
            "permissions": {"type": "restricted", "scopes": endpoints} if endpoints else None,
        }
        page.call(federation.create_rule, workload_identity_provider_id=identity_provider_id, body=make_body(RuleCreate, values))
    except Fault as fault:
        return _show(page, identity_provider_id, project_id, fault)
    return page.lead(f"/workloads/{identity_provider_id}", "created")


@router.post(f"{RULE}/enable", include_in_schema=False)
def enable_rule(
    page: TenantPage, identity_provider_id: str, federation_rule_id: str, fields: Annotated[Form, form(federation.update_rule, "enabled")]
) -> Response:
    """Enable a rule, or disable it."""
    try:
        page.call(
            federation.update_rule,
            workload_identity_provider_id=identity_provider_id,
            workload_identity_federation_rule_id=federation_rule_id,
            body=make_body(RuleUpdate, {"enabled": fields["enabled"] == "yes"}),
        )
    except Fault as fault:
        return _show(page, identity_provider_id, fault=fault)
    return page.lead(f"/workloads/{identity_provider_id}", "saved")


@router.post(f"{RULE}/delete", include_in_schema=False)
def delete_rule_by_name(
    page: TenantPage,
    identity_provider_id: str,
    federation_rule_id: str,
    fields: Annotated[Form, form(federation.delete_rule, "confirmation")],
) -> Response:
    """Delete a rule, whose name (or id, if it has none) was typed, and revoke its key."""
    ids = {"workload_identity_provider_id": identity_provider_id, "workload_identity_federation_rule_id": federation_rule_id}
    try:
        require_typed(fields["confirmation"], page.call(federation.retrieve_rule, **ids).name or federation_rule_id)
        deleted = page.call(federation.delete_rule, **ids)
    except Fault as fault:
        return _show(page, identity_provider_id, fault=fault)
    return page.lead(f"/workloads/{identity_provider_id}", "pending" if deleted.pending_nodes else "deleted")
