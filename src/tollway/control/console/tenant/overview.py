"""The overview of an organization: what it spent, what was asked, how its budgets stand."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

from starlette.responses import Response

from tollway.control.api.metering import usage
from tollway.control.api.metering.usage import CostParameters, UsageParameters
from tollway.control.api.money import budgets
from tollway.control.api.schemas import PageQuery
from tollway.control.api.tenancy import organizations, projects
from tollway.control.console.charts import SERIES_MAX, BarChart, Series, add_others
from tollway.control.console.routing import Page, TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.console.tenant.projects import name_projects
from tollway.control.identity.access import Tenant
from tollway.control.languages.formats import write_money
from tollway.control.languages.texts import get_texts

router = new_router()

DAYS = 30
DAY_SECONDS = 86_400


@router.get("/console/organizations/{organization_id}", include_in_schema=False)
def show_overview(page: TenantPage) -> Response:
    """Spend and requests of the last 30 days, and budgets. Someone who may see none of it finds their projects."""
    may_read = page.allows(organizations.retrieve_own_organization)
    organization = page.call(organizations.retrieve_own_organization) if may_read else None
    today = page.plane.now() // 1_000_000 // DAY_SECONDS * DAY_SECONDS
    start = today - (DAYS - 1) * DAY_SECONDS
    month = int(datetime.fromtimestamp(today, UTC).replace(day=1).timestamp())
    costs = _read_costs(page, min(start, month)) if organization is not None and page.allows(usage.list_costs) else None
    return page.show(
        "tenant/overview.html",
        organization=organization,
        chart=None if costs is None or organization is None else _draw_costs(page, costs[-DAYS:], organization.currency),
        total=None if costs is None else _sum_costs(costs, start),
        month_total=None if costs is None else _sum_costs(costs, month),
        usage=_sum_usage(page, start) if page.allows(usage.list_completions) else None,
        budgets=page.call(budgets.list_budgets, query=PageQuery(limit=10)).data if page.allows(budgets.list_budgets) else None,
        own_projects=[] if page.allows(projects.list_projects) else _list_own_projects(page),
    )


def _read_costs(page: Page, start: int, project_ids: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the costs of each day from an instant on: of the organization, or of some projects, each by itself."""
    group_by: list[Literal["project_id", "api_key_id", "line_item"]] = ["project_id"] if project_ids else []
    wanted = CostParameters(start_time=start, group_by=group_by, project_ids=list(project_ids), limit=DAYS + 1)
    days: list[dict[str, Any]] = page.read(usage.list_costs, wanted)["data"]
    return days


def _sum_costs(days: Sequence[Mapping[str, Any]], start: int) -> Decimal:
    amounts = (_read_amount(each) for day in days if day["start_time"] >= start for each in day["results"])
    return sum(amounts, Decimal(0))


def _read_amount(result: Mapping[str, Any]) -> Decimal:
    return Decimal(result["amount"]["value_decimal"])


def _draw_costs(page: Page, days: Sequence[Mapping[str, Any]], currency: str) -> BarChart:
    """Draw the costs of days: of the projects that spent most by themselves, of the others together."""
    start, caller = days[0]["start_time"], page.require(usage.list_costs)
    assert isinstance(caller, Tenant), "a page of an organization has such a viewer"
    wanted = CostParameters(start_time=start, group_by=["project_id"])
    drawn = [each.group[0] for each in usage.rank_costs(caller, page.plane, wanted, count=SERIES_MAX).groups]
    amounts = {project_id: [Decimal(0)] * len(days) for project_id in drawn}
    for at, day in enumerate(_read_costs(page, start, drawn) if drawn else []):
        for result in day["results"]:
            amounts[result["project_id"]][at] += _read_amount(result)
    names, texts = name_projects(page, drawn), get_texts(page.look.language)
    rows = [Series(names.get(project, project), values) for project, values in amounts.items()]
    series = add_others(rows, [_sum_costs([day], start) for day in days], texts.gettext("others"))
    write = write_money(page.look.language, currency.upper())
    return BarChart(texts.gettext("Spend per day (UTC)"), [day["start_time"] for day in days], DAY_SECONDS, series, write)


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
