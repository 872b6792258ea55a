"""The pages of the console by their paths: the table that the walk in a browser, and the tests of access, go through."""

import re
from collections import defaultdict
from collections.abc import Mapping
from string import Formatter

from tests.control.browsing import Browser
from tests.control.harness import Running, TenantSetup, answered

TENANT_PAGES = (
    "",
    "/projects",
    "/projects/{project_id}",
    "/projects/{project_id}/keys/{key_id}",
    "/projects/{project_id}/settings",
    "/projects/{project_id}/content",
    "/projects/{project_id}/content/{request_id}",
    "/projects/{project_id}/service-accounts",
    "/projects/{project_id}/service-accounts/{service_account_id}",
    "/usage",
    "/requests",
    "/requests/{request_id}",
    "/models",
    "/playground",
    "/budgets",
    "/budgets/{budget_id}",
    "/limits",
    "/invoices",
    "/billing-account",
    "/credits",
    "/periods",
    "/periods/{period_id}",
    "/contracts",
    "/contracts/{contract_id}",
    "/members",
    "/members/{user_id}",
    "/groups",
    "/groups/{group_id}",
    "/roles",
    "/sign-in",
    "/sign-in/{connection_id}",
    "/admin-keys",
    "/admin-keys/{admin_key_id}",
    "/workloads",
    "/workloads/{identity_provider_id}",
    "/certificates",
    "/certificates/{certificate_id}",
    "/settings",
    "/webhooks",
    "/webhooks/{webhook_endpoint_id}",
    "/telemetry",
    "/telemetry/{telemetry_export_id}",
    "/audit",
)
"""Pages of an organization, below its root."""

INVOICE_PAGES = ("/invoices/{invoice_id}",)
"""Pages of an issued invoice, which takes a closed month: tests/control/invoicing opens them."""

TENANT_FILES = (
    "/usage.csv",
    "/requests/{request_id}/proof",
    "/requests/live",
    "/invoices/{invoice_id}/files/{format}",
    "/invoices/{invoice_id}/focus",
)
"""Files that pages of an organization offer, below its root."""

PLATFORM_PAGES = (
    "",
    "/start",
    "/fleet",
    "/prices",
    "/prices/books/{book_id}",
    "/prices/drafts/{draft_id}",
    "/plans",
    "/plans/{plan_id}",
    "/periods",
    "/periods/{period_id}",
    "/periods/{period_id}/invoices",
    "/invoices",
    "/payments",
    "/bank",
    "/direct-debits",
    "/credit-transfers",
    "/sellers",
    "/sellers/{entity_id}",
    "/margins",
    "/reconciliation",
    "/anomalies",
    "/audit",
)
"""Pages of the platform, below `/console/platform`."""

PAGES_ELSEWHERE = (
    "/console/platform/invoices/{invoice_id}",
    "/console/platform/invoices/{invoice_id}/files/{format}",
    "/console/platform/margins.csv",
    *(f"/console/platform/direct-debits/{{debit_file_id}}{part}" for part in ("", "/file")),
    *(f"/console/platform/credit-transfers/{{transfer_file_id}}{part}" for part in ("", "/file")),
)
"""Pages and files that need an invoice or a closed month: the tests of the money of a month open them (test_money_pages)."""

COLLECTIONS = {
    "period_id": "periods",
    "book_id": "price_books",
    "draft_id": "price_drafts",
    "plan_id": "plans",
    "entity_id": "legal_entities",
}
"""Collections of the REST API whose first entry stands for an id of a page of the platform."""


def root_of(tenant: TenantSetup) -> str:
    """Return the path below which the pages of an organization are."""
    return f"/console/organizations/{tenant.organization_id}"


def fill_in(path: str, tenant: TenantSetup, known: Mapping[str, str] = defaultdict(lambda: "none_" + "0" * 32)) -> str:
    """Return the path of a page of an organization, with the ids of what the organization has. `known`: the others by their names in paths;
    left out, they are ids of nothing."""
    names = [name for _, name, _, _ in Formatter().parse(path) if name]
    own = {"project_id": tenant.project_id, "key_id": tenant.key_id}
    return root_of(tenant) + path.format(**{name: own.get(name) or known[name] for name in names})


def fill_in_platform(path: str, control: Running, tenant: TenantSetup) -> str:
    """Return the path of a page of the platform, with the ids of what the organization has."""
    ids = {}
    for name, collection in COLLECTIONS.items():
        if f"{{{name}}}" in path:
            params = {"organization_id": tenant.organization_id} if collection == "periods" else {}
            found = answered(control.operator().get(f"/v1/platform/{collection}", params=params))["data"]
            ids[name] = found[-1 if name == "period_id" else 0]["id"]  # of the periods the one that has not ended
    return "/console/platform" + path.format(**ids)


def find_token(browser: Browser) -> str:
    """Return the token of the forms of the page that a browser shows."""
    found = re.search(r'name="form_token" value="([0-9a-f]{64})"', browser.page.text)
    assert found is not None
    return found.group(1)
