"""The engines' own counters against the ledger, by hour, and the requests whose usage cannot be what the engine said."""

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.metering import reconciliation
from tollway.control.api.metering.reconciliation import ReconciliationParameters
from tollway.control.api.schemas import PageQuery
from tollway.control.console.routing import PlatformPage
from tollway.control.console.routing import router as new_router

router = new_router()


@router.get("/console/platform/reconciliation", include_in_schema=False)
def show_reconciliation(page: PlatformPage, query: Annotated[ReconciliationParameters, Query()]) -> Response:
    """Hours with what the ledger and the engines counted."""
    return page.show(
        "platform/reconciliation.html",
        query=query,
        found=page.call(reconciliation.list_reconciliation, query=query),
        may_see_anomalies=page.allows(reconciliation.list_anomalies),
    )


@router.get("/console/platform/anomalies", include_in_schema=False)
def show_anomalies(page: PlatformPage, query: Annotated[PageQuery, Query()]) -> Response:
    """Requests whose usage was held to what can be true."""
    return page.show("platform/anomalies.html", anomalies=page.call(reconciliation.list_anomalies, query=query))
