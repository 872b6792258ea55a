"""Client certificates at control: what can be uploaded, where it counts, and what gateways are told."""

import base64
import datetime
from typing import Any

import httpx2
import msgspec
import pytest
from cryptography.hazmat.primitives import serialization

from tests.control.harness import Running, TenantSetup, answered, make_tenant
from tests.control.test_routes import refused
from tests.gateway.authorities import DAY, Issued, issue
from tollway.control import publish
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.domain.snapshot import Entry, SnapshotHead
from tollway.gateway.authenticate import authenticate
from tollway.gateway.directory import Directory
from tollway.gateway.request import Caller, RequestHead

CERTIFICATES = "/v1/organization/certificates"
ours = issue("our authority", is_authority=True, ends=9 * DAY)
program = issue("ci.example.com", ours, uri="spiffe://example.com/ci/deploy")


@pytest.fixture
def tenant(control: Running, request: pytest.FixtureRequest) -> TenantSetup:
    return make_tenant(control, request.node.name[:100])


@pytest.fixture
def admin(control: Running, tenant: TenantSetup) -> httpx2.Client:
    return control.client(tenant.admin_key)


def upload(admin: httpx2.Client, issued: Issued = ours) -> str:
    made: str = answered(admin.post(CERTIFICATES, json={"certificate": issued.pem, "name": "x"}))["id"]
    return made


def add_rule(admin: httpx2.Client, tenant: TenantSetup, certificate_id: str, **matchers: str) -> dict[str, Any]:
    body = {"project_id": tenant.project_id, "service_account_id": tenant.service_account_id, "matchers": matchers}
    made: dict[str, Any] = answered(admin.post(f"{CERTIFICATES}/{certificate_id}/rules", json=body))
    return made


def find(control: Running, tenant: TenantSetup, issued: Issued = program) -> Caller | None:
    """Return who a gateway with the present snapshot takes a program with this certificate for."""
    with control.plane.database.platform(write=False) as tx:
        lines = b"".join(publish.read_snapshot(tx)).splitlines()
    directory = Directory()
    directory.begin_reset()
    for line in lines[1:]:
        directory.add(msgspec.json.decode(line, type=Entry))
    directory.finish_reset(msgspec.json.decode(lines[0], type=SnapshotHead).version)
    head = RequestHead(Endpoint.CHAT_COMPLETIONS, {b"openai-organization": tenant.organization_id.encode()})
    head.certificate = issued.der
    try:
        return authenticate(head, directory, [], control.plane.now())
    except Fault as fault:
        assert fault.kind.code == "invalid_client_certificate"
        return None


@pytest.mark.parametrize("place", ["organization", "project"])
def test_certificate_counts_where_it_is_active(control: Running, tenant: TenantSetup, admin: httpx2.Client, place: str) -> None:
    certificate = upload(admin)
    rule = add_rule(admin, tenant, certificate, uri="spiffe://example.com/ci/*")
    assert find(control, tenant) is None
    path = CERTIFICATES if place == "organization" else f"/v1/organization/projects/{tenant.project_id}/certificates"
    (active,) = answered(admin.post(f"{path}/activate", json={"certificate_ids": [certificate]}))["data"]
    assert active["active"] is True and active["object"].startswith("organization.")
    caller = find(control, tenant)
    assert caller is not None and caller.principal.id == rule["api_key_id"] and caller.project.id == tenant.project_id
    refused(admin.delete(f"{CERTIFICATES}/{certificate}"), 409, "conflict")
    answered(admin.post(f"{path}/deactivate", json={"certificate_ids": [certificate]}))
    assert find(control, tenant) is None
    refused(admin.delete(f"{CERTIFICATES}/{certificate}"), 409, "conflict")
    answered(admin.delete(f"{CERTIFICATES}/{certificate}/rules/{rule['id']}"))
    answered(admin.delete(f"{CERTIFICATES}/{certificate}"))
    refused(admin.get(f"{CERTIFICATES}/{certificate}"), 404, "not_found")


def test_certificate_that_is_deactivated_everywhere_is_so_in_each_project(
    control: Running, tenant: TenantSetup, admin: httpx2.Client
) -> None:
    certificate = upload(admin)
    add_rule(admin, tenant, certificate, uri="spiffe://example.com/ci/*")
    body = {"certificate_ids": [certificate]}
    of_project = f"/v1/organization/projects/{tenant.project_id}/certificates"
    (active,) = answered(admin.post(f"{of_project}/activate", json=body))["data"]
    assert active["project_ids"] is None
    (left,) = answered(admin.post(f"{CERTIFICATES}/deactivate", json=body))["data"]
    assert (left["active"], left["project_ids"]) == (False, [tenant.project_id]) and find(control, tenant) is not None
    refused(admin.post(f"{of_project}/deactivate", json={**body, "everywhere": True}), 400, "unknown_parameter", "everywhere")
    (left,) = answered(admin.post(f"{CERTIFICATES}/deactivate", json={**body, "everywhere": True}))["data"]
    assert left["project_ids"] == [] and find(control, tenant) is None


def test_deleted_rule_and_archived_project_stand_for_nobody(control: Running, tenant: TenantSetup, admin: httpx2.Client) -> None:
    certificate = upload(admin)
    rule = add_rule(admin, tenant, certificate, common_name="ci.example.com")
    answered(admin.post(f"{CERTIFICATES}/activate", json={"certificate_ids": [certificate]}))
    assert find(control, tenant) is not None
    assert [each["id"] for each in answered(admin.get(f"{CERTIFICATES}/{certificate}/rules"))["data"]] == [rule["id"]]
    keys = answered(admin.get(f"/v1/organization/projects/{tenant.project_id}/api_keys", params={"limit": 100}))["data"]
    assert rule["api_key_id"] in {each["id"] for each in keys}
    answered(admin.post(f"/v1/organization/projects/{tenant.project_id}/archive"))
    assert find(control, tenant) is None


def test_117_same_authority_in_two_organizations(control: Running, tenant: TenantSetup, admin: httpx2.Client) -> None:
    other = make_tenant(control, "who uploads it first")
    other_admin = control.client(other.admin_key)
    for client, setup in ((other_admin, other), (admin, tenant)):
        certificate = upload(client)
        add_rule(client, setup, certificate, dns="ci.example.com")
        answered(client.post(f"{CERTIFICATES}/activate", json={"certificate_ids": [certificate]}))
    mine, theirs = find(control, tenant), find(control, other)
    assert mine is not None and theirs is not None
    assert (mine.organization.id, theirs.organization.id) == (tenant.organization_id, other.organization_id)
    refused(admin.post(f"{CERTIFICATES}/activate", json={"certificate_ids": [certificate, "cert_" + "0" * 32]}), 404, "not_found")


def test_what_cannot_be_trusted_is_refused(admin: httpx2.Client, tenant: TenantSetup) -> None:
    now = datetime.datetime.now(datetime.UTC)
    expired = issue("old", is_authority=True, begins=-3 * DAY, ends=-DAY, now=now)
    key = ours.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    for content in ("", "x", ours.pem + program.pem, ours.pem + key, base64.b64encode(ours.der).decode(), expired.pem, "é"):
        refused(admin.post(CERTIFICATES, json={"certificate": content}), 400, "invalid_value", "certificate")
    certificate = upload(admin)
    refused(admin.post(CERTIFICATES, json={"certificate": ours.pem}), 409, "conflict", "certificate")
    rules = f"{CERTIFICATES}/{certificate}/rules"
    body = {"project_id": tenant.project_id, "service_account_id": tenant.service_account_id}
    for matchers in ({}, {"color": "x"}, {"dns": ""}, {"fingerprint": "AB"}, {"uri": "spiffe://*"}, {"uri": "spiffe://x/a*"}):
        refused(admin.post(rules, json=body | {"matchers": matchers}), 400, "invalid_value", "matchers")
    refused(admin.post(rules, json=body | {"service_account_id": "sa_" + "0" * 32, "matchers": {"dns": "x"}}), 404, "not_found")
    refused(admin.post(f"{CERTIFICATES}/activate", json={"certificate_ids": []}), 400, "invalid_value", "certificate_ids")
