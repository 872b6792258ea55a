"""Pages of the console: who sees which, what a form does, and what is refused."""

import re

import pytest

from tests.control.browsing import Browser, join
from tests.control.harness import Running, TenantSetup


@pytest.fixture(scope="module")
def owner(control: Running, alice: TenantSetup) -> Browser:
    return join(control, control.client(alice.admin_key), "owner@example.com", "owner")


def root_of(tenant: TenantSetup) -> str:
    return f"/console/organizations/{tenant.organization_id}"


def test_console_leads_whoever_signed_in_to_their_organization(owner: Browser, alice: TenantSetup) -> None:
    page = owner.open("/console")
    assert page.status_code == 200 and page.url.path == root_of(alice)
    assert "Spend this month" in page.text and "owner@example.com" in page.text


def test_person_creates_rotates_and_revokes_a_key_with_forms_alone(owner: Browser, alice: TenantSetup) -> None:
    path = f"{root_of(alice)}/projects/{alice.project_id}"
    owner.open(path)
    page = owner.send(f"{path}/keys", name="from the console", type="live", lifetime_days="30")
    secret = re.search(r'<code id="secret" data-copy>(tw_live_\w+)</code>', page.text)
    assert secret is not None
    key = re.search(r"/keys/(key_[0-9a-f]{32})/revoke", page.text)
    assert key is not None
    one = f"{path}/keys/{key.group(1)}"
    assert secret.group(1) not in owner.open(one).text
    rotated = owner.send(f"{one}/rotate", grace_seconds="3600")
    assert "safe to retire" in rotated.text or "still in use" in rotated.text
    refused = owner.send(f"{one}/revoke", 400, confirmation="something else")
    assert "Nothing was changed" in refused.text
    done = owner.send(f"{one}/revoke", confirmation="from the console")
    assert done.url.path == path and "was revoked" in done.text
    assert owner.open(one).status_code == 404
