"""All pages of the console."""

from collections.abc import Sequence

from fastapi import APIRouter

from tollway.control.console import assets, home
from tollway.control.console.platform import audit, fleet, invoices, organizations, periods, prices, reconciliation, start
from tollway.control.console.tenant import audit as own_audit
from tollway.control.console.tenant import budgets, keys, limits, members, overview, projects, requests, sign_in, usage
from tollway.control.console.tenant import invoices as own_invoices
from tollway.control.console.tenant import prices as own_prices

ROUTERS: Sequence[APIRouter] = (
    assets.router,
    overview.router,
    projects.router,
    keys.router,
    usage.router,
    requests.router,
    own_prices.router,
    budgets.router,
    limits.router,
    own_invoices.router,
    members.router,
    sign_in.router,
    own_audit.router,
    organizations.router,
    start.router,
    fleet.router,
    prices.router,
    invoices.router,
    periods.router,
    reconciliation.router,
    audit.router,
    home.router,  # last, because it answers for every other address
)
