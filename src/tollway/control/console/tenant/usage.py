"""The usage explorer: one metric over time, by project, key or model, compared with the period before; and the same as CSV.

All filters are in the address. What is shown are the rollups behind the usage and cost operations of the REST API.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from tollway.control.console.charts import SERIES_MAX, BarChart, Series, add_others
from tollway.control.console.forms import make_body, write_query
from tollway.control.console.routing import Operation, Page, TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.console.tenant.projects import name_projects, offer_projects
from tollway.control.identity.access import Tenant
from tollway.control.languages.formats import write_money, write_number
from tollway.control.languages.texts import get_texts, mark
from tollway.domain.csv_cells import escape_text
from tollway.domain.faults import PARAMETER_INVALID, Fault

router = new_router()

PATH = "/console/organizations/{organization_id}/usage"

DAYS_DEFAULT = 30
BUCKETS_MAX = 168
"""Buckets of a page at most: a week by hour, or 168 days."""

ROWS_MAX = 50
"""Groups of the table; the CSV file has all."""

PROJECTS_OF_KEYS = 50
"""Projects, those with most, whose keys are shown if no project is chosen: an organization has tens of thousands of keys. The keys of the
others are one row."""

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


@dataclass(frozen=True, slots=True, order=True)
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

GROUP_BY: Mapping[str, Sequence[str]] = {"none": (), "project": ("project_id",), "key": ("project_id", "api_key_id"), "model": ("model",)}
GROUP_FIELDS: Mapping[str, Sequence[str]] = {**GROUP_BY, "key": ("project_id", "key_id")}
"""Names by which operations group, and the same fields of `Group`."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Part of a view that is read: the groups in a span (Unix seconds): of some projects and keys, or of those of the view."""

    view: UsageView
    group: str
    start: int
    end: int
    project_ids: Sequence[str] = ()
    key_ids: Sequence[str] = ()

    @property
    def is_money(self) -> bool:
        """Return whether the metric is an amount."""
        return self.view.metric == "spend"

    def parameters(self, page_id: str | None = None) -> Any:
        """Return the parameters of the operation of the metric. Raises the Fault that it would answer."""
        view = self.view
        values: dict[str, object] = {
            "start_time": self.start,
            "end_time": self.end,
            "bucket_width": WIDTHS[view.bucket],
            "group_by": ["line_item" if self.is_money and each == "model" else each for each in GROUP_BY[self.group]],
            "project_ids": [*self.project_ids] or ([view.project] if view.project else []),
            "api_key_ids": [*self.key_ids],
            "page": page_id,
        }
        if not self.is_money:
            return make_body(UsageParameters, {**values, "models": [view.model] if view.model else []})
        if view.model:
            raise Fault(PARAMETER_INVALID, param="model", message="Spend cannot be filtered by model. Group it by model instead.")
        return make_body(CostParameters, {**values, "limit": BUCKETS_MAX})

    @property
    def start_before(self) -> int:
        """Return the start of the span before."""
        return self.start - (self.end - self.start)

    def read_whole(self, value: int) -> Decimal:
        """Return a value of a ranking in units of the metric."""
        return Decimal(value).scaleb(-12) if self.is_money else Decimal(value)

    def read(self, result: Mapping[str, Any]) -> tuple[Group, Decimal]:
        """Return group and value of a result."""
        group = Group(result["project_id"] or "", result["api_key_id"] or "", result.get("line_item") or result.get("model") or "")
        return group, Decimal(result["amount"]["value_decimal"] if self.is_money else result[METRICS[self.view.metric].field])


def _read(page: Page, wanted: Wanted) -> Found:
    """Return the values of each bucket."""
    found = Found([], {}, "")
    at, currency = 0, ""
    count = (wanted.end - wanted.start) // SECONDS[wanted.view.bucket]
    page_id: str | None = None
    while True:
        answer = page.read(METRICS[wanted.view.metric].operation, wanted.parameters(page_id))
        for bucket in answer["data"]:
            found.starts.append(bucket["start_time"])
            for result in bucket["results"]:
                if wanted.is_money:
                    currency = result["amount"]["currency"].upper()
                group, value = wanted.read(result)
                found.values.setdefault(group, [Decimal(0)] * count)[at] += value
            at += 1
        page_id = answer["next_page"]
        if page_id is None:
            return Found(found.starts, found.values, currency)


@dataclass(frozen=True, slots=True)
class Ranked:
    """The groups of a span that have most, the largest first: their values, and those in the span before where it is compared. `count`: how
    many groups there are."""

    values: dict[Group, Decimal]
    before: dict[Group, Decimal]
    count: int


def _rank(page: Page, wanted: Wanted, count: int) -> Ranked:
    """Return the groups with most in the whole span, which is of whole days, `count` at most."""
    wanted = replace(wanted, view=wanted.view.model_copy(update={"bucket": "day"}))
    if wanted.is_money and wanted.group == "model":
        return _rank_line_items(page, wanted, count)
    metric = METRICS[wanted.view.metric]
    caller = page.require(metric.operation)
    assert isinstance(caller, Tenant), "a page of an organization has such a viewer"
    parameters, before = wanted.parameters(), wanted.start_before if wanted.view.compare else None
    if wanted.is_money:
        found = usage.rank_costs(caller, page.plane, parameters, count=count, before=before)
    else:
        found = usage.rank_usage(caller, page.plane, metric.operation, parameters, metric.field, count=count, before=before)
    values, values_before = dict[Group, Decimal](), dict[Group, Decimal]()
    for each in found.groups:
        group = Group(**dict(zip(GROUP_FIELDS[wanted.group], each.group, strict=True)))
        values[group], values_before[group] = wanted.read_whole(each.value), wanted.read_whole(each.before)
    return Ranked(values, values_before, found.count)


def _rank_line_items(page: Page, wanted: Wanted, count: int) -> Ranked:
    """Return the line items that cost most: they are few, because models are."""
    values = _sum_line_items(page, wanted)
    before = _sum_line_items(page, replace(wanted, start=wanted.start_before, end=wanted.start)) if wanted.view.compare else {}
    ordered = sorted({*values, *before}, key=lambda each: (-values.get(each, Decimal(0)), each))
    first = ordered[:count]
    zero = Decimal(0)
    return Ranked({each: values.get(each, zero) for each in first}, {each: before.get(each, zero) for each in first}, len(ordered))


def _sum_line_items(page: Page, wanted: Wanted) -> dict[Group, Decimal]:
    caller = page.require(usage.list_costs)
    assert isinstance(caller, Tenant), "a page of an organization has such a viewer"
    costs = usage.list_cost_totals(caller, page.plane, wanted.parameters())
    return {Group(model=each.line_item or ""): wanted.read_whole(each.amount_pico) for each in costs}


OTHER_KEYS = Group(key_id="others")
"""Stands for the keys of projects beyond PROJECTS_OF_KEYS."""


@dataclass(frozen=True, slots=True)
class Survey:
    """Content of the page: the groups with most, in the order of their values in the span, with those in the span before; how many groups
    there are; the totals of everything in both spans, and in each bucket; and the values of the first groups, which are drawn."""

    ranked: Ranked
    total: Decimal
    total_before: Decimal
    everything: list[Decimal]
    drawn: Found


def _survey(page: Page, view: UsageView, start: int, end: int) -> Survey:
    """Read what a page shows: the groups with most, and the buckets of a few, however many groups there are."""
    span = Wanted(view, view.group, start, end)
    whole = _read(page, replace(span, group="none"))
    everything = whole.values.get(Group(), [Decimal(0)] * len(whole.starts))
    total = sum(everything, Decimal(0))
    total_before = sum(_rank(page, replace(span, group="none"), 1).before.values(), Decimal(0)) if view.compare else Decimal(0)
    if view.group == "key" and not view.project:
        ranked = _rank_keys_of_most(page, span, total, total_before)
    else:
        ranked = _rank(page, span, ROWS_MAX)
    # What was only in the span before has nothing to draw.
    first = [each for each, value in ranked.values.items() if each != OTHER_KEYS and (value or not view.compare)][:SERIES_MAX]
    drawn = Found(whole.starts, {}, whole.currency)
    if first:
        of_projects = sorted({each.project_id for each in first if each.project_id})
        of_keys = [each.key_id for each in first if each.key_id]
        drawn = _read(page, replace(span, project_ids=of_projects, key_ids=of_keys))
    values = {each: drawn.values.get(each, [Decimal(0)] * len(whole.starts)) for each in first}
    return Survey(ranked, total, total_before, everything, Found(whole.starts, values, drawn.currency))


def _rank_keys_of_most(page: Page, span: Wanted, total: Decimal, total_before: Decimal) -> Ranked:
    """Return the keys with most of the PROJECTS_OF_KEYS projects with most; and the keys of all other projects as OTHER_KEYS."""
    projects = _rank(page, replace(span, group="project"), PROJECTS_OF_KEYS)
    if not projects.values:
        return projects
    keys = _rank(page, replace(span, project_ids=[each.project_id for each in projects.values]), ROWS_MAX)
    rest = total - sum(projects.values.values(), Decimal(0))
    if not rest:
        return keys
    values = keys.values | {OTHER_KEYS: rest}
    before = keys.before | {OTHER_KEYS: total_before - sum(projects.before.values(), Decimal(0))}
    first = sorted(values, key=lambda each: (-values[each], each))[:ROWS_MAX]
    return Ranked({each: values[each] for each in first}, {each: before[each] for each in first}, keys.count + 1)


def _name(page: Page, view: UsageView, groups: Sequence[Group]) -> dict[Group, str]:
    """Return the names of groups, of keys only of the first ones, which are drawn: each is read by itself."""
    texts = get_texts(page.look.language)
    if view.group == "project":
        by_id = name_projects(page, [each.project_id for each in groups])
        return {each: by_id.get(each.project_id, each.project_id) for each in groups}
    if view.group == "key":
        named = {each: texts.gettext("keys of other projects") if each == OTHER_KEYS else each.key_id for each in groups}
        for each in groups[: SERIES_MAX + 1]:
            if each != OTHER_KEYS and page.allows(api_keys.retrieve_project_key, each.project_id):
                try:
                    named[each] = page.call(api_keys.retrieve_project_key, project_id=each.project_id, key_id=each.key_id).name
                except Fault:  # a key that was revoked keeps its id
                    continue
        return named
    return {each: each.model or texts.gettext("all") for each in groups}


def _find_currency(page: Page, found: Found) -> str:
    if found.currency or not page.allows(organizations.retrieve_own_organization):
        return found.currency
    return page.call(organizations.retrieve_own_organization).currency.upper()


# ---- Pages --------------------------------------------------------------------------------------------------------------


@router.get(PATH, include_in_schema=False)
def show_usage(page: TenantPage, view: View) -> Response:
    """One metric over time: if none is named, the first that the viewer may see."""
    allowed = {name: each.title for name, each in METRICS.items() if page.allows(each.operation)}
    if "metric" not in view.model_fields_set and allowed and view.metric not in allowed:
        view = view.model_copy(update={"metric": next(iter(allowed))})
    page.require(METRICS[view.metric].operation)
    texts = get_texts(page.look.language)
    shared: dict[str, Any] = {
        "view": view,
        "metrics": allowed,
        "groups": GROUPS,
        "buckets": BUCKETS,
        "projects": offer_projects(page, view.project),
    }
    try:
        start, end = view.span(page.plane.now())
        found = _survey(page, view, start, end)
    except Fault as fault:
        return page.show("tenant/usage.html", fault=fault, chart=None, **shared)
    ranked = found.ranked
    names = _name(page, view, list(ranked.values))
    is_money = view.metric == "spend"
    currency = _find_currency(page, found.drawn) if is_money else ""
    write: Callable[[Decimal | int], str] = write_money(page.look.language, currency) if is_money else write_number(page.look.language)
    series = [Series(names.get(each, each.key_id), values) for each, values in found.drawn.values.items()]
    unit = currency if is_money else ""
    label = texts.gettext(METRICS[view.metric].title) + (f" ({unit})" if unit else "")
    rows = [Row(names[each], value, ranked.before[each], _link(view, each)) for each, value in ranked.values.items()]
    series = add_others(series, found.everything, texts.gettext("others"))
    return page.show(
        "tenant/usage.html",
        chart=BarChart(f"{label}, UTC", found.drawn.starts, SECONDS[view.bucket], series, write),
        rows=rows,
        hidden=ranked.count - len(rows),
        total=Row("", found.total, found.total_before),
        currency=currency,
        start=start,
        last=end - 86_400,
        **shared,
    )


def _link(view: UsageView, group: Group) -> str:
    if view.group == "project" and group.project_id:
        return "/usage?" + view.address(project=group.project_id, group="key")
    if view.group == "key" and group.project_id:
        return f"/projects/{group.project_id}/keys/{group.key_id}"
    return ""


@router.get(PATH + ".csv", include_in_schema=False)
def download_usage(page: TenantPage, view: View) -> Response:
    """The same as CSV: one line a bucket and group in which there was something. Raises as the operations do."""
    start, end = view.span(page.plane.now())
    found = _read(page, Wanted(view, view.group, start, end))
    by_project = name_projects(page, [each.project_id for each in found.values])
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
