"""Gross margins of closed billing periods: by model, organization or month, with a chart of what each month's revenue went to."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from tollway.control.api.money import margins
from tollway.control.api.money.margins import MarginOut, Month
from tollway.control.api.schemas import PageQuery
from tollway.control.api.tenancy import organizations
from tollway.control.console import rendering
from tollway.control.console.charts import BarChart, Series
from tollway.control.console.forms import write_query
from tollway.control.console.routing import Page, PlatformPage
from tollway.control.console.routing import router as new_router
from tollway.control.languages.formats import write_money
from tollway.control.languages.texts import get_texts, mark
from tollway.domain.faults import Fault
from tollway.domain.serving_costs import MarginGroup

router = new_router()

PATH = "/console/platform/margins"

GROUPS = {"model": mark("model"), "organization": mark("organization"), "month": mark("month"), "none": mark("nothing")}

NAMED_MAX = 100
"""Organizations whose names are looked up; the others are shown by their ids."""

DAY_SECONDS = 86_400


class MarginView(BaseModel):
    """Conditions of the page: the first and the last month, the month before this one if empty, and what rows are cut by."""

    model_config = ConfigDict(extra="forbid")

    from_month: Month | None = None
    until_month: Month | None = None
    group: Literal["model", "organization", "month", "none"] = "model"

    def find_months(self, now: int) -> tuple[str, str]:
        """Return the first and the last month. `now`: UTC microseconds."""
        today = datetime.fromtimestamp(now // 1_000_000, UTC)
        before = f"{today.replace(day=1) - timedelta(days=1):%Y-%m}"
        first = self.from_month or self.until_month or before
        return first, self.until_month or first


View = Annotated[MarginView, Query()]


def _read(page: Page, view: MarginView, *, group: str) -> margins.MarginsOut:
    first, last = view.find_months(page.plane.now())
    wanted = [] if group == "none" else [MarginGroup(group)]
    found = page.call(margins.list_margins, as_table=False, from_month=first, until_month=last, group_by=wanted)
    assert isinstance(found, margins.MarginsOut), "it was not asked for as a table"
    return found


@router.get(PATH, include_in_schema=False)
def show_margins(page: PlatformPage, view: View) -> Response:
    """Margins of some months as a table, and as a chart for each currency."""
    page.require(margins.list_margins)
    first, last = view.find_months(page.plane.now())
    shared: dict[str, Any] = {"view": view, "first": first, "last": last, "groups": GROUPS}
    try:
        found = _read(page, view, group=view.group)
        by_month = _read(page, view, group="month").data
    except Fault as fault:
        return page.show("platform/margins.html", fault=fault, found=None, **shared)
    query = write_query({"from_month": first, "until_month": last, "group": view.group})
    return page.show(
        "platform/margins.html", found=found, charts=_draw(page, by_month), names=_name_organizations(page), query=query, **shared
    )


def _draw(page: Page, rows: Iterable[MarginOut]) -> list[BarChart]:
    """Return a chart for each currency: the costs of each month, and what is left of its revenue above them."""
    texts = get_texts(page.look.language)
    by_currency: dict[str, list[MarginOut]] = {}
    for row in rows:
        by_currency.setdefault(row.currency, []).append(row)
    return [
        BarChart(
            label=texts.gettext("Costs and margin per month") + f" ({currency})",
            starts=[int(datetime.fromisoformat(f"{each.month}-01T00:00:00+00:00").timestamp()) for each in months],
            width_seconds=28 * DAY_SECONDS,
            series=[
                Series(texts.gettext("Cost of units"), [Decimal(each.unit_cost) for each in months]),
                Series(texts.gettext("Cost of time"), [Decimal(each.time_cost) for each in months]),
                Series(texts.gettext("Margin"), [max(Decimal(each.margin), Decimal(0)) for each in months]),
            ],
            write=write_money(page.look.language, currency),
        )
        for currency, months in by_currency.items()
    ]


def _name_organizations(page: Page) -> dict[str, str]:
    if not page.allows(organizations.list_organizations):
        return {}
    found = page.call(organizations.list_organizations, query=PageQuery(limit=NAMED_MAX), include_archived=True)
    return {each.id: each.name for each in found.data}


@router.get(PATH + ".csv", include_in_schema=False)
def download_margins(page: PlatformPage, view: View) -> Response:
    """The table as CSV. Raises as the operation does."""
    found = _read(page, view, group=view.group)
    name = f"margins-{found.from_month}-{found.until_month}.csv"
    headers = {**rendering.HEADERS, "content-disposition": f'attachment; filename="{name}"'}
    return Response(margins.write_csv(found.data), headers=headers, media_type="text/csv")
