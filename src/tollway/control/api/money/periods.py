"""Billing periods: for operators, who close them, and for tenants, who can have each one proven and exported."""

from typing import Annotated, Any, Literal

from fastapi import Depends, Query
from pydantic import Field, StringConstraints
from starlette.responses import StreamingResponse

from tollway.control.api import routes
from tollway.control.api.metering.usage import amount_out
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Identified, ListOut, Out, PageQuery, find_seconds, list_out, seconds
from tollway.control.gateways.epochs import Blocker
from tollway.control.identity.access import Tenant
from tollway.control.metering import usage
from tollway.control.money import contracts, exports, periods
from tollway.control.money.periods import Blocked
from tollway.domain import ids, money
from tollway.domain.faults import PERIOD_BLOCKED, RESOURCE_UNKNOWN, Fault
from tollway.domain.keys import Operator
from tollway.domain.periods import Period, PeriodState
from tollway.domain.proofs import encode_leaf
from tollway.domain.roles import Permission

router = routes.router(tags=["billing periods"])

OperatorReader = Annotated[Operator, Depends(may(Permission.PLATFORM_ACCOUNTS_READ))]
OperatorWriter = Annotated[Operator, Depends(may(Permission.PLATFORM_ACCOUNTS_WRITE))]
Reader = Annotated[Tenant, Depends(may(Permission.COSTS_READ))]

OrganizationId = Annotated[str, StringConstraints(max_length=64, pattern=r"^org_[0-9a-f]{32}$")]

NDJSON = "application/x-ndjson"


class PeriodOut(Identified):
    """A billing period. Times in Unix seconds: `start_time` inclusive, `end_time` exclusive. `total` is what it comes to,
    corrections and contracts included: final if `state` is `closed`, so far and without contracts if not. All else from `closed_at` to
    `contracts` is null until it is closed: amounts are exact, by billing class; `corrections` is what corrections booked in it come to, and
    `contracts` what contracts add.
    `period_hash` covers everything about the closed period: publish it."""

    object: Literal["billing_period"] = "billing_period"
    organization_id: str
    currency: str
    start_time: int
    end_time: int
    time_zone: str
    state: str
    closed_at: int | None
    events: int | None
    merkle_root: str | None
    period_hash: str | None
    amounts: dict[str, str] | None
    corrections: str | None
    contracts: str | None
    total: str
    total_pico: str


class PeriodReportOut(PeriodOut):
    """A period with the evidence that no record is missing, once closing has begun: each epoch that overlaps the period, the record up
    to which it was ingested, and how it is covered (`close`, `tick` or `lost`)."""

    frozen_at: int | None
    closed_by: str | None
    watermark_digest: str | None
    adjustments: int | None
    adjustments_digest: str | None
    report: dict[str, Any] | None


class BlockerOut(Identified):
    """An obstacle to closing, by `reason`: records of a gateway's run that have not arrived (`records_missing`), a gateway that has not
    reported at all (`node_silent`, with `epoch` null), a run that cannot have begun when
    it says (`epoch_refused`), or records that could not be rated (`records_quarantined`)."""

    object: Literal["billing_period.blocker"] = "billing_period.blocker"
    reason: str
    node_id: str
    epoch: int | None
    known_until: int | None
    message: str


class PeriodCostOut(Out):
    """A part of a period's costs: that of `line_item` or of `model`, whichever was asked for; the other is null."""

    object: Literal["billing_period.cost"] = "billing_period.cost"
    line_item: str | None
    model: str | None
    amount: dict[str, Any]


class PeriodCostsOut(Out):
    """The costs of a billing period, corrections included: final if `state` is `closed`, so far if not."""

    object: Literal["billing_period.costs"] = "billing_period.costs"
    period_id: str
    start_time: int
    end_time: int
    time_zone: str
    state: str
    data: list[PeriodCostOut]
    total: str
    total_pico: str


class CacheSavingOut(Out):
    """Effect of the prefix cache of the engines on the costs of one model in a billing period."""

    object: Literal["billing_period.cache_saving"] = "billing_period.cache_saving"
    model: str
    cached_input: Annotated[str, Field(description="Tokens that engines read from their caches.", examples=["120000"])]
    saved: Annotated[str, Field(description="What they would have cost more as input, exactly.", examples=["0.09"])]
    cache_write: Annotated[str, Field(description="Tokens that engines wrote to a cache at the client's wish.", examples=["0"])]
    surcharge: Annotated[str, Field(description="What they cost more than input, exactly.", examples=["0"])]


class CacheSavingsOut(Out):
    """Savings by the prefix cache in a billing period: final if `state` is `closed`, so far if not. Costs have it already."""

    object: Literal["billing_period.cache_savings"] = "billing_period.cache_savings"
    period_id: str
    state: str
    currency: str
    data: list[CacheSavingOut]
    total: Annotated[str, Field(description="All that was saved, less surcharges, exactly.", examples=["0.09"])]


class ProofOut(Out):
    """Proof that a request is in a closed period: `tollway_verifier.py --proof` checks it. `leaf` is the text whose hash is proven."""

    object: Literal["billing_period.proof"] = "billing_period.proof"
    period_id: str
    request_id: str
    leaf: str
    leaf_index: int
    tree_size: int
    path: list[str]
    merkle_root: str


# ---- For operators ----------------------------------------------------------------------------------------------------


@router.get("/v1/platform/periods")
def list_periods(
    _caller: OperatorReader,
    plane: Plane,
    query: Annotated[PageQuery, Query()],
    organization_id: OrganizationId | None = None,
    state: PeriodState | None = None,
) -> ListOut[PeriodOut]:
    """Billing periods in order of their start, of everyone or of one organization."""
    with plane.database.platform(write=False) as tx:
        page = periods.list_periods(tx, query.window(), organization_id=organization_id, state=state)
        totals = periods.sum_totals(tx, page.items)
    return list_out(page, lambda period: PeriodOut(**_fields(period, totals[period.id])))


@router.get("/v1/platform/periods/{period_id}")
def retrieve_period(_caller: OperatorReader, plane: Plane, period_id: str) -> PeriodReportOut:
    """One billing period, with its report."""
    with plane.database.platform(write=False) as tx:
        period = periods.get_period(tx, _known(period_id))
        return _report_out(period, periods.sum_totals(tx, [period])[period.id])


@router.get("/v1/platform/periods/{period_id}/blockers")
def list_blockers(_caller: OperatorReader, plane: Plane, period_id: str) -> ListOut[BlockerOut]:
    """Return what keeps a period from being closed. Nothing does if the list is empty; whether it has ended is another question."""
    with plane.database.platform(write=False) as tx:
        data = [_blocker_out(number, blocker) for number, blocker in enumerate(periods.list_blockers(tx, _known(period_id)))]
    return ListOut(data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=False)


@router.post("/v1/platform/periods/{period_id}/close")
def close_period(caller: OperatorWriter, plane: Plane, period_id: str) -> PeriodReportOut:
    """Freeze a period and compute its digests. While the answer's state is `closing` there is more to compute: call again."""
    try:
        period = periods.close(plane.database, _known(period_id), actor=caller.key_id, now=plane.now())
    except Blocked as blocked:
        raise Fault(PERIOD_BLOCKED, message=str(blocked)) from blocked
    if period.state is PeriodState.CLOSED:
        plane.log({"event": "period_closed", "period_id": period.id, "organization_id": period.organization_id, "key_id": caller.key_id})
    with plane.database.platform(write=False) as tx:
        total_pico = periods.sum_totals(tx, [period])[period.id]
    return _report_out(period, total_pico)


# ---- For tenants ------------------------------------------------------------------------------------------------------


@router.get("/v1/organization/periods")
def list_own_periods(caller: Reader, plane: Plane, query: Annotated[PageQuery, Query()]) -> ListOut[PeriodOut]:
    """The organization's billing periods in order of their start."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        page = periods.list_own_periods(tx, query.window())
        totals = periods.sum_totals(tx, page.items)
    return list_out(page, lambda period: PeriodOut(**_fields(period, totals[period.id])))


@router.get("/v1/organization/periods/{period_id}")
def retrieve_own_period(caller: Reader, plane: Plane, period_id: str) -> PeriodReportOut:
    """One of the organization's billing periods, with its report."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        period = periods.get_own_period(tx, _known(period_id))
        return _report_out(period, periods.sum_totals(tx, [period])[period.id])


@router.get("/v1/organization/periods/{period_id}/cache_savings")
def list_cache_savings(caller: Reader, plane: Plane, period_id: str) -> CacheSavingsOut:
    """Return what the prefix cache of the engines saved in a billing period, by model: cached input at the price of input, less what it
    cost, each request at its own price. It is computed from the events of the period, while these are kept."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        period = periods.get_own_period(tx, _known(period_id))
        savings = usage.list_cache_savings(tx, period)
    return CacheSavingsOut(
        period_id=period.id,
        state=period.state,
        currency=period.currency.lower(),
        data=[
            CacheSavingOut(
                model=each.model,
                cached_input=str(each.read_tokens),
                saved=money.format_amount(each.saved_pico),
                cache_write=str(each.written_tokens),
                surcharge=money.format_amount(each.surcharge_pico),
            )
            for each in savings
        ],
        total=money.format_amount(sum(each.saved_pico - each.surcharge_pico for each in savings)),
    )


@router.get("/v1/organization/periods/{period_id}/costs")
def list_period_costs(
    caller: Reader, plane: Plane, period_id: str, group_by: Literal["line_item", "model"] = "line_item"
) -> PeriodCostsOut:
    """Return what is booked in a billing period, by line item or by model: exactly what it is or will be closed with. A closed period never
    changes; the costs of an open one are those so far."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        period = periods.get_own_period(tx, _known(period_id))
        costs = usage.list_period_costs(tx, period)
        charged = contracts.sum_charged(tx, period)
    sums: dict[str, int] = {}
    for line_item, pico in costs.items():
        name = usage.name_line_item(line_item) if group_by == "line_item" else line_item[0]
        sums[name] = sums.get(name, 0) + pico
    for kind, pico in charged.items():
        name = f"contract, {kind}" if group_by == "line_item" else "contract"
        sums[name] = sums.get(name, 0) + pico
    total_pico = sum(sums.values())
    return PeriodCostsOut(
        period_id=period.id,
        start_time=seconds(period.start_at),
        end_time=seconds(period.end_at),
        time_zone=period.time_zone,
        state=period.state,
        data=[
            PeriodCostOut(
                line_item=name if group_by == "line_item" else None,
                model=name if group_by == "model" else None,
                amount=amount_out(pico, period.currency),
            )
            for name, pico in sorted(sums.items())
        ],
        total=money.format_amount(total_pico),
        total_pico=str(total_pico),
    )


@router.get("/v1/organization/periods/{period_id}/proofs/{request_id}")
def retrieve_proof(caller: Reader, plane: Plane, period_id: str, request_id: str) -> ProofOut:
    """The proof that a request is in a closed period, as the receipt says it."""
    if not ids.is_id(ids.REQUEST, request_id):
        raise Fault(RESOURCE_UNKNOWN)
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        proof = periods.prove(tx, _known(period_id), request_id)
    return ProofOut(
        period_id=period_id,
        request_id=request_id,
        leaf=encode_leaf(proof.leaf).decode(),
        leaf_index=proof.index,
        tree_size=proof.tree_size,
        path=[node.hex() for node in proof.path],
        merkle_root=proof.root.hex(),
    )


@router.get("/v1/organization/periods/{period_id}/export", response_class=StreamingResponse)
def export_period(caller: Reader, plane: Plane, period_id: str) -> StreamingResponse:
    """All of a closed period as lines of JSON, for `tollway_verifier.py`: records, prices, corrections, transactions."""

    def open_tx() -> Any:
        return plane.database.tenant(caller.organization_id, write=False)

    lines = exports.export(open_tx, plane.archive, _known(period_id), plane.now())
    headers = {"content-disposition": f'attachment; filename="{period_id}.ndjson"'}
    return StreamingResponse(lines, media_type=NDJSON, headers=headers)


# ---- Shapes -----------------------------------------------------------------------------------------------------------


def _known(period_id: str) -> str:
    if not ids.is_id(ids.PERIOD, period_id):
        raise Fault(RESOURCE_UNKNOWN, message=periods.UNKNOWN)
    return period_id


def _fields(period: Period, total_pico: int) -> dict[str, Any]:
    closed = period.closed
    return {
        "id": period.id,
        "organization_id": period.organization_id,
        "currency": period.currency,
        "start_time": seconds(period.start_at),
        "end_time": seconds(period.end_at),
        "time_zone": period.time_zone,
        "state": period.state,
        "closed_at": None if closed is None else seconds(closed.closed_at),
        "events": None if closed is None else closed.events,
        "merkle_root": None if closed is None else closed.merkle_root.hex(),
        "period_hash": None if closed is None or closed.period_hash is None else closed.period_hash.hex(),
        "amounts": None if closed is None else {name: money.format_amount(pico) for name, pico in closed.amounts.items()},
        "corrections": None if closed is None else money.format_amount(closed.adjustments_pico),
        "contracts": None if closed is None else money.format_amount(closed.contracts_pico),
        "total": money.format_amount(total_pico),
        "total_pico": str(total_pico),
    }


def _report_out(period: Period, total_pico: int) -> PeriodReportOut:
    closing, closed = period.closing, period.closed
    return PeriodReportOut(
        **_fields(period, total_pico),
        frozen_at=None if closing is None else seconds(closing.frozen_at),
        closed_by=None if closing is None else closing.closed_by,
        watermark_digest=None if closing is None else closing.watermark_digest.hex(),
        adjustments=None if closed is None else closed.adjustments,
        adjustments_digest=None if closed is None else closed.adjustments_digest.hex(),
        report=None if closing is None else dict(closing.report),
    )


def _blocker_out(number: int, blocker: Blocker) -> BlockerOut:
    return BlockerOut(
        id=f"{blocker.node_id}/{blocker.epoch or 0}/{number}",
        reason=blocker.kind,
        node_id=blocker.node_id,
        epoch=blocker.epoch,
        known_until=find_seconds(blocker.known_until),
        message=blocker.text,
    )
