"""Quarantined records, for operators: list them, rate them after all, or write them off."""

from typing import Annotated, Literal

from fastapi import Depends, Path, Query
from pydantic import StringConstraints

from tollway.control.api import routes
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Identified, In, ListOut, PageQuery, Reason, find_seconds, list_out, seconds
from tollway.control.metering import collect, quarantine
from tollway.domain.keys import Operator
from tollway.domain.quarantine import QuarantinedRecord, QuarantineState
from tollway.domain.roles import Permission

router = routes.router(tags=["quarantine"])

Reader = Annotated[Operator, Depends(may(Permission.PLATFORM_ACCOUNTS_READ))]
Writer = Annotated[Operator, Depends(may(Permission.PLATFORM_ACCOUNTS_WRITE))]

NUMBER_MAX = 2**63 - 1

NodeId = Annotated[str, Path(max_length=64)]
Number = Annotated[int, Path(ge=1, le=NUMBER_MAX)]
OrganizationId = Annotated[str, StringConstraints(max_length=64, pattern=r"^[!-~]+$")]
ReasonCode = Annotated[str, StringConstraints(max_length=64, pattern=r"^[a-z_]+$")]


class ResolutionCreate(In):
    """The reason for rating or writing off a record. It is stored beside the operator's key."""

    reason: Reason


class QuarantinedRecordOut(Identified):
    """A record of a gateway that could not be rated. `reason` is why, when it arrived; `message` says it in words. `request_id`,
    `organization_id` and `served_at` are what it says, null where that cannot be read. `state`: `open` until it is `rated` or
    `written_off`, by `actor` at `resolved_at` for `resolution_reason`; `approver`: the key of the second person, if one had to agree.
    `write_off_requested_by`: the key that asked first to write it off."""

    object: Literal["platform.quarantined_record"] = "platform.quarantined_record"
    node_id: str
    epoch: int
    seq: int
    state: str
    reason: str
    message: str
    request_id: str | None
    organization_id: str | None
    served_at: int | None
    received_at: int
    resolution_reason: str | None
    actor: str | None
    resolved_at: int | None
    approver: str | None
    write_off_requested_by: str | None


class QuarantinedRecordDetailOut(QuarantinedRecordOut):
    """With the obstacle that stands today, null if it can be rated, and the record itself (`payload`, text that a gateway wrote)."""

    obstacle: str | None
    payload: str


@router.get("/v1/platform/quarantine")
def list_records(
    _caller: Reader,
    plane: Plane,
    query: Annotated[PageQuery, Query()],
    state: QuarantineState | None = None,
    organization_id: OrganizationId | None = None,
    reason: ReasonCode | None = None,
) -> ListOut[QuarantinedRecordOut]:
    """Quarantined records by gateway, epoch and number: all, or those in one state, of one organization, for one reason."""
    with plane.database.platform(write=False) as tx:
        page = quarantine.list_records(tx, query.window(), state=state, organization_id=organization_id, reason=reason)
    return list_out(page, _record_out)


@router.get("/v1/platform/quarantine/{node_id}/{epoch}/{seq}")
def retrieve_record(_caller: Reader, plane: Plane, node_id: NodeId, epoch: Number, seq: Number) -> QuarantinedRecordDetailOut:
    """One quarantined record, with what keeps it from being rated today."""
    with plane.database.platform(write=False) as tx:
        record = quarantine.get_record(tx, node_id, epoch, seq)
        obstacle = None if record.state is QuarantineState.RATED else quarantine.find_obstacle(tx, record)
    fields = _record_out(record).model_dump()
    return QuarantinedRecordDetailOut(**fields, obstacle=obstacle, payload=record.payload.decode("utf-8", "replace"))


@router.post("/v1/platform/quarantine/{node_id}/{epoch}/{seq}/rate")
def rate_record(caller: Writer, plane: Plane, node_id: NodeId, epoch: Number, seq: Number, body: ResolutionCreate) -> QuarantinedRecordOut:
    """Rate a record after all, once its organization or price exists: its request is billed. Repeating it changes nothing."""
    record = collect.retry_races(
        plane.database,
        lambda tx: quarantine.rate_record(tx, node_id, epoch, seq, reason=body.reason, actor=caller.key_id, now=plane.now()),
    )
    _log_resolution(plane, caller.key_id, record)
    return _record_out(record)


@router.post("/v1/platform/quarantine/{node_id}/{epoch}/{seq}/write_off")
def write_off_record(
    caller: Writer, plane: Plane, node_id: NodeId, epoch: Number, seq: Number, body: ResolutionCreate
) -> QuarantinedRecordOut:
    """Write a record off: it is never billed, and the reports of its periods say so. Above the limit for corrections, or if what it would
    have cost cannot be known, it stays open until the key of a second person asks for the same. Repeating it changes nothing."""
    limit_pico = plane.approval_above_pico
    with plane.database.platform() as tx:
        record = quarantine.write_off(tx, node_id, epoch, seq, reason=body.reason, actor=caller, limit_pico=limit_pico, now=plane.now())
    _log_resolution(plane, caller.key_id, record)
    return _record_out(record)


def _log_resolution(plane: Plane, key_id: str, record: QuarantinedRecord) -> None:
    plane.log(
        {
            "event": "quarantine_resolved",
            "state": str(record.state),
            "node_id": record.node_id,
            "epoch": record.epoch,
            "seq": record.seq,
            "organization_id": record.organization_id,
            "key_id": key_id,
        }
    )


def _record_out(record: QuarantinedRecord) -> QuarantinedRecordOut:
    resolution = record.resolution
    return QuarantinedRecordOut(
        id=f"{record.node_id}/{record.epoch}/{record.seq}",
        node_id=record.node_id,
        epoch=record.epoch,
        seq=record.seq,
        state=record.state,
        reason=record.reason,
        message=quarantine.OBSTACLES.get(record.reason, ""),
        request_id=record.event_id,
        organization_id=record.organization_id,
        served_at=find_seconds(record.served_at),
        received_at=seconds(record.received_at),
        resolution_reason=None if resolution is None else resolution.reason,
        actor=None if resolution is None else resolution.actor,
        resolved_at=None if resolution is None else seconds(resolution.resolved_at),
        approver=None if resolution is None else resolution.approver,
        write_off_requested_by=record.write_off_requested_by,
    )
