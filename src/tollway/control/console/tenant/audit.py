"""The audit trail of an organization."""

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.auditing import audit_logs
from tollway.control.api.auditing.audit_logs import AuditQuery
from tollway.control.console.forms import write_query
from tollway.control.console.routing import TenantPage
from tollway.control.console.routing import router as new_router

router = new_router()


@router.get("/console/organizations/{organization_id}/audit", include_in_schema=False)
def show_audit(page: TenantPage, query: Annotated[AuditQuery, Query()]) -> Response:
    """The changes and who made them, with each field before and after. Looking at it is recorded in it."""
    records = page.call(audit_logs.list_audit_logs, query=query)
    filters = write_query(query.model_dump(by_alias=True, exclude={"after", "before", "limit"}))
    return page.show("audit.html", records=records, query=query, filters=filters, path=f"{page.root}/audit")
