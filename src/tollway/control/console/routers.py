"""All pages of the console."""

from collections.abc import Sequence

from fastapi import APIRouter

from tollway.control.console import assets, home
from tollway.control.console.platform import audit, fleet, organizations, periods, reconciliation
from tollway.control.console.tenant import audit as own_audit
from tollway.control.console.tenant import budgets, invoices, keys, limits, members, overview, prices, projects, requests, sign_in, usage

ROUTERS: Sequence[APIRouter] = (
    assets.router,
    overview.router,
    projects.router,
    keys.router,
    usage.router,
    requests.router,
    prices.router,
    budgets.router,
    limits.router,
    invoices.router,
    members.router,
    sign_in.router,
    own_audit.router,
    organizations.router,
    fleet.router,
    periods.router,
    reconciliation.router,
    audit.router,
    home.router,  # last, because it answers for every other address
)
