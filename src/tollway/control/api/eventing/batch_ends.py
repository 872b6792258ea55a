"""Ends of batches, as gateways report them to control."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from tollway.control.api import routes
from tollway.control.api.routes import Node, Plane
from tollway.control.api.schemas import In, Out, Second
from tollway.control.eventing.batch_ends import append_ends
from tollway.control.identity import access
from tollway.domain.batches import ENDS_REPORTED_MAX, BatchEnd, BatchStatus

link_router = routes.router(tags=["link"])

LINES_MAX = 10_000_000
"""Lines of a batch that a report can name: far above what any gateway takes."""

Lines = Annotated[int, Field(ge=0, le=LINES_MAX)]


class BatchEndIn(In):
    """A batch that has ended."""

    id: Annotated[str, StringConstraints(pattern=r"^(batch|msgbatch)_[0-9a-f]{32}$")]
    organization_id: Annotated[str, StringConstraints(pattern=r"^org_[0-9a-f]{32}$")]
    project_id: Annotated[str, StringConstraints(pattern=r"^proj_[0-9a-f]{32}$")]
    status: Literal["completed", "failed", "expired", "cancelled"]
    ended_at: Second
    succeeded: Annotated[Lines, Field(description="Lines that were answered, 0 or more.", examples=[98])]
    failed: Annotated[Lines, Field(description="All other lines, 0 or more.", examples=[2])]

    def end(self) -> BatchEnd:
        """Return the end as the domain has it."""
        return BatchEnd(**self.model_dump() | {"status": BatchStatus(self.status)})


class BatchEndsIn(In):
    """Batches that have ended at the calling gateway, or at one that shares its directory."""

    batches: Annotated[list[BatchEndIn], Field(max_length=ENDS_REPORTED_MAX, description="The batches, at most 100.", examples=[[]])]


class BatchEndsOut(Out):
    """The number of batches in a report that was taken."""

    received: int


@link_router.post("/v1/link/batch_ends/{node_id}")
def report_batch_ends(caller: Node, plane: Plane, node_id: str, body: BatchEndsIn) -> BatchEndsOut:
    """Tell of batches that have ended. Telling again changes nothing."""
    access.require_own(caller, node_id)
    with plane.database.platform() as tx:
        append_ends(tx, [each.end() for each in body.batches])
    return BatchEndsOut(received=len(body.batches))
