"""All pages of the console."""

from collections.abc import Sequence

from fastapi import APIRouter

from tollway.control.console import assets, home
from tollway.control.console.platform import (
    audit,
    bank,
    bank_files,
    fleet,
    invoices,
    margins,
    organizations,
    payments,
    periods,
    plans,
    prices,
    reconciliation,
    sellers,
    start,
)
from tollway.control.console.tenant import (
    admin_keys,
    billing_account,
    budgets,
    certificates,
    content,
    contracts,
    credits,
    keys,
    limits,
    members,
    overview,
    playground,
    project_settings,
    projects,
    requests,
    service_accounts,
    settings,
    sign_in,
    telemetry,
    usage,
    webhooks,
    workloads,
)
from tollway.control.console.tenant import audit as own_audit
from tollway.control.console.tenant import invoices as own_invoices
from tollway.control.console.tenant import periods as own_periods
from tollway.control.console.tenant import prices as own_prices

ROUTERS: Sequence[APIRouter] = (
    assets.router,
    overview.router,
    projects.router,
    project_settings.router,
    content.router,
    service_accounts.router,
    keys.router,
    usage.router,
    requests.router,
    own_prices.router,
    playground.router,
    budgets.router,
    limits.router,
    own_invoices.router,
    billing_account.router,
    credits.router,
    own_periods.router,
    contracts.router,
    members.router,
    sign_in.router,
    admin_keys.router,
    settings.router,
    workloads.router,
    certificates.router,
    webhooks.router,
    telemetry.router,
    own_audit.router,
    organizations.router,
    start.router,
    fleet.router,
    plans.router,
    prices.router,
    invoices.router,
    payments.router,
    bank.router,
    bank_files.router,
    sellers.router,
    periods.router,
    margins.router,
    reconciliation.router,
    audit.router,
    home.router,  # last, because it answers for every other address
)
