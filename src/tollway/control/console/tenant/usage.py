"""The usage explorer: one metric over time, by project, key or model, compared with the period before; and the same as CSV.

All filters are in the address. What is shown are the rollups behind the usage and cost operations of the REST API.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, ConfigDict, StringConstraints
from starlette.responses import Response

from tollway.control.api.identity import api_keys
from tollway.control.api.metering import usage
from tollway.control.api.metering.usage import CostParameters, UsageParameters
from tollway.control.api.tenancy import organizations
from tollway.control.console import rendering
from tollway.control.console.charts import BarChart, Series
from tollway.control.console.formats import write_money, write_number
from tollway.control.console.forms import make_body, write_query
from tollway.control.console.routing import Operation, Page, TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.console.tenant.projects import name_projects
from tollway.control.console.texts import get_texts, mark
from tollway.domain.csv_cells import escape_text
from tollway.domain.faults import PARAMETER_INVALID, Fault

router = new_router()

PATH = "/console/organizations/{organization_id}/usage"

DAYS_DEFAULT = 30
BUCKETS_MAX = 168
"""Buckets of a page at most: a week by hour, or 168 days."""

SERIES_MAX = 6
"""Groups that are drawn by themselves; the others are added up."""

ROWS_MAX = 50
"""Groups of the table; the CSV file has all."""

SECONDS = {"hour": 3_600, "day": 86_400}
WIDTHS = {"hour": "1h", "day": "1d"}


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: the operation that counts it, and the field of its results. `field` is empty for money."""

    title: str
    operation: Operation
    field: str = ""


METRICS: Mapping[str, Metric] = {
    "spend": Metric(mark("Spend"), usage.list_costs),
    "requests": Metric(mark("Requests"), usage.list_completions, "num_model_requests"),
    "input_tokens": Metric(mark("Input tokens"), usage.list_completions, "input_tokens"),
    "cached_tokens": Metric(mark("Cached input tokens"), usage.list_completions, "input_cached_tokens"),
    "output_tokens": Metric(mark("Output tokens"), usage.list_completions, "output_tokens"),
    "embedding_tokens": Metric(mark("Tokens of embeddings"), usage.list_embeddings, "input_tokens"),
    "images": Metric(mark("Images"), usage.list_images, "images"),
    "characters": Metric(mark("Characters spoken"), usage.list_speeches, "characters"),
    "seconds": Metric(mark("Seconds transcribed"), usage.list_transcriptions, "seconds"),
}

GROUPS: Mapping[str, str] = {
    "none": mark("nothing"),
    "project": mark("project"),
    "key": mark("key"),
    "model": mark("model"),
}

BUCKETS: Mapping[str, str] = {"day": mark("day"), "hour": mark("hour")}

Day = Annotated[str, StringConstraints(pattern=r"^([0-9]{4}-[0-9]{2}-[0-9]{2})?$")]
Text = Annotated[str, StringConstraints(max_length=160)]


class UsageView(BaseModel):
    """Conditions of the page: a metric by group and bucket, from the first to the last day (UTC, both included; empty for the last 30
    days), of a project and a model (empty for all)."""

    model_config = ConfigDict(extra="forbid")

    metric: Literal[
        "spend", "requests", "input_tokens", "cached_tokens", "output_tokens", "embedding_tokens", "images", "characters", "seconds"
    ] = "spend"
    group: Literal["none", "project", "key", "model"] = "project"
    bucket: Literal["day", "hour"] = "day"
    start: Day = ""
    end: Day = ""
    project: Text = ""
    model: Text = ""
    compare: bool = False

    def span(self, now: int) -> tuple[int, int]:
        """Return the first instant and the end, in Unix seconds. Raises PARAMETER_INVALID for days that are none, or too many."""
        today = datetime.fromtimestamp(now // 1_000_000, UTC).date()
        try:
            last = date.fromisoformat(self.end) if self.end else today
            first = date.fromisoformat(self.start) if self.start else last - timedelta(days=DAYS_DEFAULT - 1 if self.bucket == "day" else 1)
            start, end = (
                int(datetime(each.year, each.month, each.day, tzinfo=UTC).timestamp()) for each in (first, last + timedelta(days=1))
            )
        except (ValueError, OverflowError):
            raise Fault(PARAMETER_INVALID, param="start", message="A day is a date such as 2026-11-30.") from None
        if not 0 < (end - start) // SECONDS[self.bucket] <= BUCKETS_MAX or start < 0:
            text = f"The first day must not be after the last one, with at most {BUCKETS_MAX} buckets between."
            raise Fault(PARAMETER_INVALID, param="start", message=text)
        return start, end

    def address(self, **changes: str) -> str:
        """Return the query of the address that shows this with some changes."""
        return write_query({**self.model_dump(exclude={"compare"}), "compare": "1" if self.compare else "", **changes})


View = Annotated[UsageView, Query()]


@dataclass(frozen=True, slots=True)
class Group:
    """One group of the results: the project, key and model (or line item) that it is of, as far as it was grouped by them."""

    project_id: str = ""
    key_id: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """Values by group, one a bucket; and the starts of the buckets (Unix seconds). `currency`: of money that was found."""

    starts: list[int]
    values: dict[Group, list[Decimal]]
    currency: str


@dataclass(frozen=True, slots=True)
class Row:
    """One group of the table. `link`: where it leads below the root; empty for nowhere. `before`: its value in the period before."""

    name: str
    value: Decimal
    before: Decimal
    link: str = ""

    @property
    def change(self) -> int | None:
        """Return the change against the period before in percent; None where there was nothing."""
        return int((self.value - self.before) * 100 // self.before) if self.before > 0 else None


# ---- Reading ------------------------------------------------------------------------------------------------------------


def _read(page: Page, view: UsageView, start: int, end: int) -> Found:
    is_money = view.metric == "spend"
    metric = METRICS[view.metric]
    names = {"none": [], "project": ["project_id"], "key": ["project_id", "api_key_id"], "model": ["line_item" if is_money else "model"]}
    values: dict[str, object] = {
        "start_time": start,
        "end_time": end,
        "bucket_width": WIDTHS[view.bucket],
        "group_by": names[view.group],
        "project_ids": [view.project] if view.project else [],
    }
    if is_money:
        if view.model:
            raise Fault(PARAMETER_INVALID, param="model", message="Spend cannot be filtered by model. Group it by model instead.")
        values["limit"] = BUCKETS_MAX
    else:
        values["models"] = [view.model] if view.model else []
    found = Found([], {}, "")
    at, currency = 0, ""
    width = SECONDS[view.bucket]
    count = (end - start) // width
    page_id: str | None = None
    while True:
        shape: type[BaseModel] = CostParameters if is_money else UsageParameters
        answer = page.read(metric.operation, make_body(shape, {**values, "page": page_id}))
        for bucket in answer["data"]:
            found.starts.append(bucket["start_time"])
            for result in bucket["results"]:
                group = Group(result["project_id"] or "", result["api_key_id"] or "", result.get("line_item") or result.get("model") or "")
                if is_money:
                    currency = result["amount"]["currency"].upper()
                amount = Decimal(result["amount"]["value_decimal"]) if is_money else Decimal(result[metric.field])
                found.values.setdefault(group, [Decimal(0)] * count)[at] += amount
            at += 1
        page_id = answer["next_page"]
        if page_id is None:
            return Found(found.starts, found.values, currency)


def _name(page: Page, view: UsageView, groups: Sequence[Group]) -> dict[Group, str]:
    """Return the names of groups, of keys only of the first ones, which are drawn: each is read by itself."""
    if view.group == "project":
        by_id = name_projects(page)
        return {each: by_id.get(each.project_id, each.project_id) for each in groups}
    if view.group == "key":
        named = {each: each.key_id for each in groups}
        for each in groups[:SERIES_MAX]:
            if page.allows(api_keys.retrieve_project_key, each.project_id):
                try:
                    named[each] = page.call(api_keys.retrieve_project_key, project_id=each.project_id, key_id=each.key_id).name
                except Fault:  # a key that was revoked keeps its id
                    continue
        return named
    everything = get_texts(page.look.language).gettext("all")
    return {each: each.model or everything for each in groups}


def _find_currency(page: Page, found: Found) -> str:
    if found.currency or not page.allows(organizations.retrieve_own_organization):
        return found.currency
    return page.call(organizations.retrieve_own_organization).currency.upper()


# ---- Pages --------------------------------------------------------------------------------------------------------------


@router.get(PATH, include_in_schema=False)
def show_usage(page: TenantPage, view: View) -> Response:
    """One metric over time."""
    page.require(METRICS[view.metric].operation)
    texts = get_texts(page.look.language)
    shared: dict[str, Any] = {
        "view": view,
        "metrics": {name: each.title for name, each in METRICS.items() if page.allows(each.operation)},
        "groups": GROUPS,
        "buckets": BUCKETS,
        "projects": name_projects(page),
    }
    try:
        start, end = view.span(page.plane.now())
        found = _read(page, view, start, end)
        before = _read(page, view, start - (end - start), start) if view.compare else None
    except Fault as fault:
        return page.show("tenant/usage.html", fault=fault, chart=None, **shared)
    totals = {group: sum(values, Decimal(0)) for group, values in found.values.items()}
    before_totals = {} if before is None else {group: sum(values, Decimal(0)) for group, values in before.values.items()}
    ordered = sorted({*totals, *before_totals}, key=lambda each: (-totals.get(each, Decimal(0)), each.project_id, each.key_id, each.model))
    names = _name(page, view, ordered)
    is_money = view.metric == "spend"
    currency = _find_currency(page, found) if is_money else ""
    write: Callable[[Decimal | int], str] = write_money(page.look.language, currency) if is_money else write_number(page.look.language)
    series = [Series(names[each], found.values[each]) for each in ordered[:SERIES_MAX] if each in found.values]
    others = [found.values[each] for each in ordered[SERIES_MAX:] if each in found.values]
    if others:
        series.append(Series(texts.gettext("others"), [sum(each, Decimal(0)) for each in zip(*others, strict=True)]))
    unit = currency if is_money else ""
    label = texts.gettext(METRICS[view.metric].title) + (f" ({unit})" if unit else "")
    zero = Decimal(0)
    rows = [Row(names[each], totals.get(each, zero), before_totals.get(each, zero), _link(view, each)) for each in ordered]
    return page.show(
        "tenant/usage.html",
        chart=BarChart(f"{label}, UTC", found.starts, SECONDS[view.bucket], series, write),
        rows=rows[:ROWS_MAX],
        hidden=max(len(rows) - ROWS_MAX, 0),
        total=Row("", sum(totals.values(), zero), sum(before_totals.values(), zero)),
        currency=currency,
        start=start,
        last=end - 86_400,
        **shared,
    )


def _link(view: UsageView, group: Group) -> str:
    if view.group == "project" and group.project_id:
        return "/usage?" + view.address(project=group.project_id, group="key")
    if view.group == "key" and group.key_id:
        return f"/projects/{group.project_id}/keys/{group.key_id}"
    return ""


@router.get(PATH + ".csv", include_in_schema=False)
def download_usage(page: TenantPage, view: View) -> Response:
    """The same as CSV: one line a bucket and group in which there was something. Raises as the operations do."""
    start, end = view.span(page.plane.now())
    found = _read(page, view, start, end)
    by_project = name_projects(page)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    unit = _find_currency(page, found) if view.metric == "spend" else view.metric
    writer.writerow(["start_time", "end_time", "metric", "unit", "project_id", "project", "api_key_id", "model", "value"])
    for line in _list_lines(view, found, unit, by_project):
        writer.writerow([escape_text(each) if isinstance(each, str) else f"{each:f}" for each in line])
    name = f"usage-{view.metric}-{_write_instant(start)[:10]}.csv"
    headers = {**rendering.HEADERS, "content-disposition": f'attachment; filename="{name}"'}
    return Response(text.getvalue(), headers=headers, media_type="text/csv")


def _list_lines(view: UsageView, found: Found, unit: str, names: Mapping[str, str]) -> Iterator[Sequence[str | Decimal]]:
    for at, start in enumerate(found.starts):
        span = (_write_instant(start), _write_instant(start + SECONDS[view.bucket]), view.metric, unit)
        for group, values in found.values.items():
            if values[at]:
                yield [*span, group.project_id, names.get(group.project_id, ""), group.key_id, group.model, values[at]]


def _write_instant(at: int) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
