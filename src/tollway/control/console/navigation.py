"""The navigation: which pages there are, and the operation without which each is not offered."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tollway.control.api.auditing import audit_logs
from tollway.control.api.authentication import certificates, sign_in_connections
from tollway.control.api.bounds import limits
from tollway.control.api.catalog import deployments, price_books, prices
from tollway.control.api.eventing import telemetry_exports, webhooks
from tollway.control.api.gateways import nodes
from tollway.control.api.identity import api_keys, federation, groups, roles, users
from tollway.control.api.invoicing import credit_transfers, direct_debits, invoices, payments
from tollway.control.api.metering import reconciliation, request_log, usage
from tollway.control.api.money import budgets, contracts, credits, margins, periods
from tollway.control.api.tenancy import organizations, plans, projects
from tollway.control.languages.texts import mark


@dataclass(frozen=True, slots=True)
class Entry:
    """A page that is offered to whoever may call `operation`, or to everybody where that is None. `path`: below the root."""

    title: str
    path: str
    operation: Callable[..., Any] | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """Entries under one heading."""

    title: str
    entries: tuple[Entry, ...]


TENANT: tuple[Section, ...] = (
    Section("", (Entry(mark("Overview"), ""),)),
    Section(
        mark("Use"),
        (
            Entry(mark("Usage"), "/usage", usage.list_completions),
            Entry(mark("Requests"), "/requests", request_log.list_requests),
            Entry(mark("Models and prices"), "/models", prices.list_own_prices),
            Entry(mark("Playground"), "/playground"),
        ),
    ),
    Section(
        mark("Money"),
        (
            Entry(mark("Budgets"), "/budgets", budgets.list_budgets),
            Entry(mark("Limits"), "/limits", limits.list_binding_limits),
            Entry(mark("Invoices"), "/invoices", invoices.list_own_invoices),
            Entry(mark("Billing account"), "/billing-account", invoices.retrieve_own_billing_account),
            Entry(mark("Credits"), "/credits", credits.retrieve_credits),
            Entry(mark("Billing periods"), "/periods", periods.list_own_periods),
            Entry(mark("Contracts"), "/contracts", contracts.list_own_contracts),
        ),
    ),
    Section(
        mark("Access"),
        (
            Entry(mark("Projects"), "/projects", projects.list_projects),
            Entry(mark("Members"), "/members", users.list_users),
            Entry(mark("Groups"), "/groups", groups.list_groups),
            Entry(mark("Roles"), "/roles", roles.list_roles),
            Entry(mark("Sign-in"), "/sign-in", sign_in_connections.list_connections),
            Entry(mark("Admin keys"), "/admin-keys", api_keys.list_admin_keys),
            Entry(mark("Workload identities"), "/workloads", federation.list_providers),
            Entry(mark("Client certificates"), "/certificates", certificates.list_certificates),
            Entry(mark("Settings"), "/settings", organizations.retrieve_own_organization),
        ),
    ),
    Section(
        mark("Integrations"),
        (
            Entry(mark("Webhooks"), "/webhooks", webhooks.list_webhook_endpoints),
            Entry(mark("Telemetry exports"), "/telemetry", telemetry_exports.list_telemetry_exports),
            Entry(mark("Audit trail"), "/audit", audit_logs.list_audit_logs),
        ),
    ),
)

PLATFORM: tuple[Section, ...] = (
    Section(
        "",
        (
            Entry(mark("Organizations"), "", organizations.list_organizations),
            Entry(mark("Fleet"), "/fleet", nodes.list_nodes),
            Entry(mark("First steps"), "/start", deployments.create_deployment),
        ),
    ),
    Section(
        mark("Money"),
        (
            Entry(mark("Prices"), "/prices", price_books.list_books),
            Entry(mark("Plans"), "/plans", plans.list_plans),
            Entry(mark("Billing periods"), "/periods", periods.list_periods),
            Entry(mark("Invoices"), "/invoices", invoices.list_invoices),
            Entry(mark("Payments"), "/payments", payments.list_payments),
            Entry(mark("Bank statements"), "/bank", payments.list_bank_entries),
            Entry(mark("Direct debits"), "/direct-debits", direct_debits.list_direct_debit_files),
            Entry(mark("Credit transfers"), "/credit-transfers", credit_transfers.list_credit_transfer_files),
            Entry(mark("Sellers"), "/sellers", invoices.list_legal_entities),
            Entry(mark("Margins"), "/margins", margins.list_margins),
            Entry(mark("Reconciliation"), "/reconciliation", reconciliation.list_reconciliation),
        ),
    ),
    Section(mark("Records"), (Entry(mark("Audit trail"), "/audit", audit_logs.list_platform_audit_logs),)),
)


def list_sections(sections: Iterable[Section], allows: Callable[[Callable[..., Any]], bool]) -> list[Section]:
    """Return what of a navigation a viewer may open. `allows`: whether they may call an operation."""
    shown = []
    for section in sections:
        entries = tuple(each for each in section.entries if each.operation is None or allows(each.operation))
        if entries:
            shown.append(Section(section.title, entries))
    return shown
