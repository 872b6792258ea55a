"""The link, upward: gateways hand in the records that they wrote; the answer follows the collector's commit."""

from typing import Annotated

from fastapi import Path
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tollway.control.api import routes
from tollway.control.api.routes import Node, Plane, plane_of
from tollway.control.gateways import refused_epochs
from tollway.control.identity import access
from tollway.control.metering import collect
from tollway.control.metering.batches import BatchRefused
from tollway.control.metering.collect import Gap, Ingested
from tollway.control.plane import ControlPlane
from tollway.domain.epochs import CLOCKS_APART_US
from tollway.domain.faults import Blame, Fault, FaultKind

router = routes.router(tags=["link"])

SEQ_MAX = 2**63 - 1

RECORDS_REFUSED = FaultKind(
    code="records_refused",
    status=400,
    blame=Blame.PLATFORM,
    message="These bytes are not the records that follow. Nothing was ingested.",
)

NodeId = Annotated[str, Path(max_length=64)]
EpochNumber = Annotated[int, Path(ge=1, le=SEQ_MAX)]


@router.get("/v1/link/records/{node_id}/{epoch}")
def read_watermark(caller: Node, plane: Plane, node_id: NodeId, epoch: EpochNumber) -> dict[str, int]:
    """Return the record of an epoch of the caller's that is expected next; 1 for an epoch without records."""
    access.require_own(caller, node_id)
    with plane.database.platform(write=False) as tx:
        return {"next_seq": collect.find_next_seq(tx, node_id, epoch)}


@router.put("/v1/link/records/{node_id}/{epoch}/{first_seq}")
async def take_records(
    caller: Node, request: Request, node_id: NodeId, epoch: EpochNumber, first_seq: Annotated[int, Path(ge=1, le=SEQ_MAX)]
) -> Response:
    """Ingest frames of an epoch of the caller's that begin with record `first_seq`. 409 names the record to continue from; 400 means that
    nothing was ingested, 403 `epoch_refused` that the run cannot have begun when it says."""
    access.require_own(caller, node_id)
    plane = plane_of(request)
    if (impossible := refused_epochs.find_reason(node_id, epoch, plane.now())) is not None:
        await run_in_threadpool(refused_epochs.require_accepted, plane.database, node_id, epoch, impossible, plane.now())
    body = await request.body()
    try:
        taken = await run_in_threadpool(_collect, plane, node_id, epoch, first_seq, body)
    except Gap as gap:
        return JSONResponse({"next_seq": gap.next_seq}, 409)
    except BatchRefused as refused:
        raise Fault(RECORDS_REFUSED, detail=f"{node_id}/{epoch}/{first_seq}: {refused}") from refused
    return JSONResponse({"next_seq": taken.next_seq})


def _collect(plane: ControlPlane, node_id: str, epoch: int, first_seq: int, body: bytes) -> Ingested:
    taken = collect.ingest(plane.database, plane.archive, node_id=node_id, epoch=epoch, first_seq=first_seq, body=body, now=plane.now())
    if taken.ahead_us > CLOCKS_APART_US:
        plane.log({"event": "node_clock_ahead", "node_id": node_id, "epoch": epoch, "seconds": taken.ahead_us // 1_000_000})
    if taken.conflicts or taken.quarantined:
        plane.log(
            {
                "event": "records_quarantined",
                "node_id": node_id,
                "epoch": epoch,
                "first_seq": first_seq,
                "conflicts": taken.conflicts,
                "quarantined": taken.quarantined,
                "reasons": ", ".join(taken.reasons),
            }
        )
    return taken
