"""The overview of an organization: what it spent, what was asked, how its budgets stand."""

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal

from starlette.responses import Response

from tollway.control.api.metering import usage
from tollway.control.api.metering.usage import CostParameters, UsageParameters
from tollway.control.api.money import budgets
from tollway.control.api.schemas import PageQuery
from tollway.control.api.tenancy import organizations, projects
from tollway.control.console.charts import BarChart, Series
from tollway.control.console.formats import write_money
from tollway.control.console.routing import Page, TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.console.tenant.projects import name_projects
from tollway.control.console.texts import get_texts
from tollway.control.identity.access import Tenant

router = new_router()

DAYS = 30
DAY_SECONDS = 86_400
SERIES_MAX = 6
"""Projects that are drawn by themselves; the others are added up."""


@router.get("/console/organizations/{organization_id}", include_in_schema=False)
def show_overview(page: TenantPage) -> Response:
    """Spend and requests of the last 30 days, and budgets. Someone who may see none of it finds their projects."""
    may_read = page.allows(organizations.retrieve_own_organization)
    organization = page.call(organizations.retrieve_own_organization) if may_read else None
    today = page.plane.now() // 1_000_000 // DAY_SECONDS * DAY_SECONDS
    start = today - (DAYS - 1) * DAY_SECONDS
    chart = _draw_costs(page, start) if organization is not None and page.allows(usage.list_costs) else None
    month = datetime.fromtimestamp(today, UTC).replace(day=1)
    return page.show(
        "tenant/overview.html",
        organization=organization,
        chart=chart,
        total=None if chart is None else sum((Decimal(value) for each in chart.series for value in each.values), Decimal(0)),
        month_total=None if chart is None else _sum_costs(page, int(month.timestamp())),
        usage=_sum_usage(page, start) if page.allows(usage.list_completions) else None,
        budgets=page.call(budgets.list_budgets, query=PageQuery(limit=10)).data if page.allows(budgets.list_budgets) else None,
        own_projects=[] if page.allows(projects.list_projects) else _list_own_projects(page),
    )


def _draw_costs(page: Page, start: int) -> BarChart:
    answer = page.read(usage.list_costs, CostParameters(start_time=start, group_by=["project_id"], limit=DAYS))
    names = name_projects(page)
    amounts: dict[str, list[Decimal]] = {}
    currency = ""
    for at, bucket in enumerate(answer["data"]):
        for result in bucket["results"]:
            currency = result["amount"]["currency"].upper()
            name = names.get(result["project_id"], result["project_id"] or "")
            amounts.setdefault(name, [Decimal(0)] * len(answer["data"]))[at] += Decimal(result["amount"]["value_decimal"])
    ordered = sorted(amounts.items(), key=lambda each: (-sum(each[1]), each[0]))
    series = [Series(name, values) for name, values in ordered[:SERIES_MAX]]
    others = [values for _, values in ordered[SERIES_MAX:]]
    texts = get_texts(page.look.language)
    if others:
        series.append(Series(texts.gettext("others"), [sum(day, Decimal(0)) for day in zip(*others, strict=True)]))
    starts = [bucket["start_time"] for bucket in answer["data"]]
    label = texts.gettext("Spend per day (UTC)")
    return BarChart(label, starts, DAY_SECONDS, series, write_money(page.look.language, currency or "EUR"))


def _sum_costs(page: Page, start: int) -> Decimal:
    answer = page.read(usage.list_costs, CostParameters(start_time=start, limit=DAYS + 1))
    amounts = (Decimal(result["amount"]["value_decimal"]) for bucket in answer["data"] for result in bucket["results"])
    return sum(amounts, Decimal(0))


def _sum_usage(page: Page, start: int) -> dict[str, int]:
    answer = page.read(usage.list_completions, UsageParameters(start_time=start, limit=DAYS))
    results = [result for bucket in answer["data"] for result in bucket["results"]]
    return {name: sum(each[name] for each in results) for name in ("num_model_requests", "input_tokens", "output_tokens")}


def _list_own_projects(page: Page) -> Sequence[object]:
    """Return the projects in which somebody without a role in the organization has one."""
    assert isinstance(page.tenant, Tenant)
    own = {grant.project_id for grant in page.tenant.grants if grant.project_id is not None}
    found = [each for each in sorted(own) if page.allows(projects.retrieve_project, each)]
    return [page.call(projects.retrieve_project, project_id=each) for each in found]
