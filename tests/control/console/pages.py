"""The pages of the console by their paths: the table that the walk in a browser, and the tests of access, go through."""

from collections import defaultdict
from collections.abc import Mapping
from string import Formatter

from tests.control.harness import Running, TenantSetup, answered

TENANT_PAGES = (
    "",
    "/projects",
    "/projects/{project_id}",
    "/projects/{project_id}/keys/{key_id}",
    "/usage",
    "/requests",
    "/requests/{request_id}",
    "/models",
    "/budgets",
    "/budgets/{budget_id}",
    "/limits",
    "/invoices",
    "/credits",
    "/members",
    "/members/{user_id}",
    "/groups",
    "/groups/{group_id}",
    "/roles",
    "/sign-in",
    "/sign-in/{connection_id}",
    "/audit",
)
"""Pages of an organization, below its root."""

INVOICE_PAGES = ("/invoices/{invoice_id}",)
"""Pages of an issued invoice, which takes a closed month: tests/control/invoicing opens them."""

TENANT_FILES = (
    "/usage.csv",
    "/requests/{request_id}/proof",
    "/invoices/{invoice_id}/files/{format}",
    "/invoices/{invoice_id}/focus",
)
"""Files that pages of an organization offer, below its root."""

PLATFORM_PAGES = ("", "/fleet", "/periods", "/periods/{period_id}", "/reconciliation", "/anomalies", "/audit")
"""Pages of the platform, below `/console/platform`."""


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
    listed = answered(control.operator().get("/v1/platform/periods", params={"organization_id": tenant.organization_id}))["data"]
    return "/console/platform" + path.format(period_id=listed[0]["id"])
