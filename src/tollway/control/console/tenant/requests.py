"""Requests of an organization, the latest first; and one request with its times, its price line by line, and its proof."""

import asyncio
from collections.abc import AsyncIterator, Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict, StringConstraints
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from tollway.control.api.identity import api_keys
from tollway.control.api.metering import request_log, usage
from tollway.control.api.metering.request_log import RequestLogQuery, RequestOut
from tollway.control.api.metering.usage import ReceiptLine, ReceiptOut
from tollway.control.api.money import periods
from tollway.control.api.places import Place
from tollway.control.api.tenancy import data_retention
from tollway.control.console import rendering
from tollway.control.console.forms import make_body, write_query
from tollway.control.console.routing import Page, TenantPage, of_tenant
from tollway.control.console.routing import router as new_router
from tollway.control.console.tenant.projects import name_projects, offer_projects
from tollway.control.identity.access import Tenant
from tollway.control.languages.texts import mark
from tollway.domain import money
from tollway.domain.billing_classes import BILLING_CLASSES, PER_MILLION, ROWS, BillingClass, Direction
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.periods import PeriodState
from tollway.domain.usage import Outcome
from tollway.wire.sse import HEARTBEAT

router = new_router()

PATH = "/console/organizations/{organization_id}/requests"
ONE = PATH + "/{request_id}"

REQUESTS = 50
"""Requests of a page."""

FOLLOW_SECONDS_MAX = 900
"""Longest time for which the list is followed: a page that is left open does not keep its session alive indefinitely."""

FOLLOW_PAUSE_SECONDS = 2
"""Pause between two looks for new requests."""

FOLLOW_PAUSE_FACTOR = 20
"""The pause as a multiple of the time that the look before took, if that is longer: a page takes a twentieth of a core at most."""

HEARTBEAT_SECONDS = 15
"""Silence after which a heartbeat is sent: proxies close connections without traffic, mostly after a minute."""

OUTCOMES: dict[str, str] = {
    Outcome.COMPLETED: mark("completed"),
    Outcome.CLIENT_CANCELLED: mark("cancelled by the client"),
    Outcome.UPSTREAM_ERROR: mark("failed at the engine"),
    Outcome.TIMEOUT: mark("timed out"),
    Outcome.BUDGET_STOPPED: mark("stopped by a budget"),
    Outcome.GATEWAY_CRASH: mark("gateway crashed"),
}
"""Names of the outcomes of requests."""

Text = Annotated[str, StringConstraints(max_length=160)]


class RequestFilters(BaseModel):
    """Conditions on the requests of a list: of a project, a key, a model, with an outcome (each empty for all), admitted on a day of UTC
    (empty for the last 24 hours), behind the request `after`."""

    model_config = ConfigDict(extra="forbid")

    project: Text = ""
    key: Text = ""
    model: Text = ""
    outcome: Text = ""
    day: Text = ""
    after: Text = ""

    def query(self) -> RequestLogQuery:
        """Return the same for the operation. Raises the Fault that it would answer."""
        span: dict[str, object] = {}
        if self.day:
            try:
                start = datetime.combine(date.fromisoformat(self.day), datetime.min.time(), UTC)
                span = {"start_time": int(start.timestamp()), "end_time": int((start + timedelta(days=1)).timestamp())}
            except (ValueError, OverflowError):
                raise Fault(PARAMETER_INVALID, param="day", message="A day is a date such as 2026-11-30.") from None
        values = {"project_ids": self.project, "api_key_ids": self.key, "models": self.model, "outcomes": self.outcome}
        lists = {name: [value] for name, value in values.items() if value}
        return make_body(RequestLogQuery, {**lists, **span, "after": self.after, "limit": REQUESTS})

    def address(self) -> str:
        """Return the query of the address of the first page with these filters."""
        return write_query(self.model_dump(exclude={"after"}))


@router.get(PATH, include_in_schema=False)
def show_requests(page: TenantPage, filters: Annotated[RequestFilters, Query()]) -> Response:
    """Requests, the latest first."""
    page.require(request_log.list_requests)
    shared: dict[str, Any] = {"filters": filters, "outcomes": OUTCOMES, "projects": offer_projects(page, filters.project)}
    try:
        found = page.call(request_log.list_requests, query=filters.query())
    except Fault as fault:
        return page.show("tenant/requests.html", fault=fault, requests=None, **shared)
    names = name_projects(page, [each.project_id for each in found.data])
    return page.show("tenant/requests.html", requests=found, names=names, **shared)


# ---- Requests as they end -----------------------------------------------------------------------------------------------


@router.get(PATH + "/live", include_in_schema=False)
async def follow_requests(page: TenantPage, filters: Annotated[RequestFilters, Query()]) -> Response:
    """The list of the last 24 hours as it grows, as server-sent events with rows of its table: `all` at first, `new` from then on, and
    `end`. It ends with the session, and FOLLOW_SECONDS_MAX after its begin at the latest."""
    page.require(request_log.list_requests)
    if filters.day or filters.after:
        raise Fault(PARAMETER_INVALID, param="day" if filters.day else "after", message="Only the latest requests can be followed.")
    query = filters.query()
    page.plane.publications.refuse_if_stopping()
    place: Place = page.request.scope["tollway.place"]
    place.follow()
    return StreamingResponse(_follow(page, query), headers=rendering.HEADERS, media_type="text/event-stream")


async def _follow(page: Page, query: RequestLogQuery) -> AsyncIterator[bytes]:
    """Yield the events, and heartbeats between them. What is read is read in turns of the organization, a small part of the time."""
    place: Place = page.request.scope["tollway.place"]
    clock = asyncio.get_running_loop().time
    shown: Set[str] | None = None
    ends, said_at = clock() + FOLLOW_SECONDS_MAX, clock()
    while not page.plane.publications.stopping and clock() < ends:
        began = clock()
        try:
            if page.operator is None:
                await place.take_turn(page.organization_id)
            found = await run_in_threadpool(_read_latest, page, query, shown is not None)
            new = [each for each in found if shown is None or each.id not in shown]
            rows = await run_in_threadpool(_render_rows, page, new) if new else ""
        except Fault:
            break  # the session ended, or lost the permission; or the database is away
        finally:
            place.end_turn()
        took = clock() - began
        if new:
            yield _write_event("all" if shown is None else "new", rows)
        elif clock() - said_at >= HEARTBEAT_SECONDS:
            yield HEARTBEAT
        if new or clock() - said_at >= HEARTBEAT_SECONDS:
            said_at = clock()
        shown = {each.id for each in found}
        await asyncio.sleep(max(FOLLOW_PAUSE_SECONDS, took * FOLLOW_PAUSE_FACTOR))
    yield _write_event("end", "")


def _read_latest(page: Page, query: RequestLogQuery, is_recorded: bool) -> Sequence[RequestOut]:
    """Return the latest requests, for whoever the session of the viewer is of now. Raises Fault where it ended. `is_recorded`: whether the
    audit trail has this read; it has one of each stream, not one of each look."""
    viewer = of_tenant.check(page.plane, page.request)
    assert isinstance(viewer, Tenant), "a page of an organization has such a viewer"
    current = replace(page, tenant=viewer)
    if not is_recorded:
        return current.call(request_log.list_requests, query=query).data
    caller = current.require(request_log.list_requests)
    assert isinstance(caller, Tenant), "the requests are an organization's"
    return request_log.list_requests(caller, page.plane, query).data


def _render_rows(page: Page, requests: Sequence[RequestOut]) -> str:
    values = {"root": page.root, "outcomes": OUTCOMES, "names": name_projects(page, [each.project_id for each in requests])}
    return rendering.fill_in("tenant/request_rows.html", page.look, requests=requests, page=page, **values)


def _write_event(name: str, text: str) -> bytes:
    """Return a server-sent event."""
    lines = "".join(f"data: {line}\n" for line in text.splitlines() or [""])
    return f"event: {name}\n{lines}\n".encode()


# ---- One request --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the time of a request, from `start_ms` to `end_ms` after it was admitted, and what was charged for it (in units of the
    currency): input until the first token, output from then on."""

    title: str
    start_ms: int
    end_ms: int
    cost: Decimal


def split_phases(receipt: ReceiptOut) -> list[Phase]:
    """Return the phases of a request in order of time. Without a first token there is one."""
    total = sum((_read_pico(line) for line in receipt.lines), Decimal(0))
    end = round(receipt.duration_ms)
    if receipt.first_token_ms is None:
        return [Phase(mark("until the end"), 0, end, total)]
    first, output = round(receipt.first_token_ms), sum_lines(receipt.lines, Direction.OUTPUT)
    return [Phase(mark("until the first token"), 0, first, total - output), Phase(mark("generation"), first, max(end, first), output)]


def sum_lines(lines: Sequence[ReceiptLine], direction: Direction) -> Decimal:
    """Return what the lines of classes of one direction come to, in units of the currency."""
    classes = {row.billing_class for row in BILLING_CLASSES if row.direction is direction}
    return sum((_read_pico(line) for line in lines if line.billing_class in classes), Decimal(0))


def show_unit_price(line: ReceiptLine) -> tuple[str, bool]:
    """Return the price of a line as a decimal string, and whether it is that of a million units."""
    if ROWS[BillingClass(line.billing_class)].unit in PER_MILLION:
        return line.price_per_million, True
    return money.format_amount(int(line.unit_price_pico)), False


def _read_pico(line: ReceiptLine) -> Decimal:
    return Decimal(money.format_amount(int(line.amount_pico)))


@router.get(ONE, include_in_schema=False)
def show_request(page: TenantPage, request_id: str) -> Response:
    """One request: its times, what was counted and what it cost."""
    receipt = page.call(usage.retrieve_receipt, request_id=request_id)
    may_prove = receipt.billing_period.state == PeriodState.CLOSED and page.allows(periods.retrieve_proof)
    return page.show(
        "tenant/request.html",
        receipt=receipt,
        phases=split_phases(receipt),
        outcome=OUTCOMES.get(receipt.outcome, receipt.outcome),
        currency=receipt.cost["currency"].upper(),
        amount_of=_read_pico,
        price_of=show_unit_price,
        project=name_projects(page, [receipt.project_id]).get(receipt.project_id, receipt.project_id),
        may_see_key=page.allows(api_keys.retrieve_project_key, receipt.project_id),
        may_prove=may_prove,
        may_read_content=page.allows(data_retention.retrieve_content, receipt.project_id) and logs_content(page, receipt.project_id),
    )


def logs_content(page: Page, project_id: str) -> bool:
    """Return whether a project logs the content of requests, for a viewer who may know."""
    if not page.allows(data_retention.retrieve_project_retention, project_id):
        return False
    return page.call(data_retention.retrieve_project_retention, project_id=project_id).content_retention_seconds is not None


@router.get(ONE + "/proof", include_in_schema=False)
def download_proof(page: TenantPage, request_id: str) -> Response:
    """The proof that a request is in its closed period, for `tollway_verifier.py --proof`."""
    receipt = page.call(usage.retrieve_receipt, request_id=request_id)
    proof = page.call(periods.retrieve_proof, period_id=receipt.billing_period.id, request_id=request_id)
    headers = {**rendering.HEADERS, "content-disposition": f'attachment; filename="{proof.request_id}.proof.json"'}
    return Response(proof.model_dump_json(), headers=headers, media_type="application/json")
