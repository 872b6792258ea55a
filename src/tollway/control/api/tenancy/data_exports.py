"""Exports of everything about an organization or a person, for those who answer for the data."""

from typing import Annotated, Any

from fastapi import Depends, Query
from pydantic import StringConstraints
from starlette.responses import StreamingResponse

from tollway.control.api import routes
from tollway.control.api.routes import Plane, may
from tollway.control.identity.access import Tenant
from tollway.control.tenancy import data_exports
from tollway.control.tenancy.content_logs import Vaults
from tollway.domain.roles import Permission

router = routes.router(tags=["data retention"])

Exporter = Annotated[Tenant, Depends(may(Permission.DATA_EXPORT))]
UserId = Annotated[str | None, Query(), StringConstraints(pattern=r"^user_[0-9a-f]{32}$")]


@router.get("/v1/organization/export")
def export_data(caller: Exporter, plane: Plane, user_id: UserId = None) -> StreamingResponse:
    """Everything about the organization as lines of JSON, with logged content and stored responses; or, with `user_id`, everything that
    names one person. Secrets are left out. The export is recorded in the audit trail."""

    def open_tx() -> Any:
        return plane.database.tenant(caller.organization_id, write=False)

    def open_vaults() -> Vaults:
        return Vaults(plane.data_keys.open(caller.organization_id), plane.vault.for_organization(caller.organization_id))

    lines = data_exports.export(open_tx, open_vaults, user_id, plane.now())
    headers = {"content-disposition": f'attachment; filename="{user_id or caller.organization_id}.ndjson"'}
    return StreamingResponse(lines, media_type="application/x-ndjson", headers=headers)
