"""Requests of an organization, the latest first; and one request with its times, its price line by line, and its proof."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict, StringConstraints
from starlette.responses import Response

from tollway.control.api.metering import request_log, usage
from tollway.control.api.metering.request_log import RequestLogQuery
from tollway.control.api.metering.usage import ReceiptLine, ReceiptOut
from tollway.control.api.money import periods
from tollway.control.console import rendering
from tollway.control.console.forms import make_body, write_query
from tollway.control.console.routing import TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.console.tenant.projects import name_projects
from tollway.control.console.texts import mark
from tollway.domain import money
from tollway.domain.billing_classes import BILLING_CLASSES, PER_MILLION, ROWS, BillingClass, Direction
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.periods import PeriodState
from tollway.domain.usage import Outcome

router = new_router()

PATH = "/console/organizations/{organization_id}/requests"
ONE = PATH + "/{request_id}"

REQUESTS = 50
"""Requests of a page."""

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
    shared: dict[str, Any] = {"filters": filters, "outcomes": OUTCOMES, "projects": name_projects(page)}
    try:
        found = page.call(request_log.list_requests, query=filters.query())
    except Fault as fault:
        return page.show("tenant/requests.html", fault=fault, requests=None, **shared)
    return page.show("tenant/requests.html", requests=found, **shared)


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
        project=name_projects(page).get(receipt.project_id, receipt.project_id),
        may_prove=may_prove,
    )


@router.get(ONE + "/proof", include_in_schema=False)
def download_proof(page: TenantPage, request_id: str) -> Response:
    """The proof that a request is in its closed period, for `tollway_verifier.py --proof`."""
    receipt = page.call(usage.retrieve_receipt, request_id=request_id)
    proof = page.call(periods.retrieve_proof, period_id=receipt.billing_period.id, request_id=request_id)
    headers = {**rendering.HEADERS, "content-disposition": f'attachment; filename="{proof.request_id}.proof.json"'}
    return Response(proof.model_dump_json(), headers=headers, media_type="application/json")
