"""Costs of deployments and the gross margin, for operators alone."""

import csv
import io
from collections.abc import Iterable
from typing import Annotated, Literal

from fastapi import Depends, Query, Request
from pydantic import Field, StringConstraints
from starlette.responses import Response

from tollway.control.api import routes
from tollway.control.api.class_schemas import UnitPricesOut, UnitPricesWrite, unit_prices_of, unit_prices_out
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Currency, Identified, In, ListOut, ModelName, Out, PageQuery, Second, Sum, list_out, seconds
from tollway.control.catalog import catalog
from tollway.control.money import serving_costs
from tollway.domain import ids, money
from tollway.domain.billing_classes import NOTHING
from tollway.domain.csv_cells import escape_text
from tollway.domain.keys import Operator
from tollway.domain.roles import Permission
from tollway.domain.serving_costs import DeploymentCost, Margin, MarginGroup, MarginKey

router = routes.router(tags=["margins"])

Reader = Annotated[Operator, Depends(may(Permission.PLATFORM_PRICES_READ))]
Writer = Annotated[Operator, Depends(may(Permission.PLATFORM_PRICES_WRITE))]

Month = Annotated[str, StringConstraints(pattern=r"^20[0-9]{2}-(0[1-9]|1[0-2])$")]


class DeploymentCostCreate(In):
    """Cost of a deployment for whoever runs it, from an instant until the next cost that is stated."""

    currency: Annotated[Currency, Field(description="ISO 4217 code of the currency in which it is paid.", examples=["EUR"])]
    valid_from: Annotated[
        Second | None,
        Field(description="From when, in Unix seconds (UTC); null for now. Not in time for which costs are booked.", examples=[1790000000]),
    ] = None
    per_hour: Annotated[Sum, Field(description="Cost of each hour, used or not, as a decimal string.", examples=["2.50"])] = "0"
    unit_costs: Annotated[
        UnitPricesWrite | None,
        Field(
            description="Cost of each unit that the engine counts, stated as prices are; null for none.",
            examples=[{"input": "0.10", "output": "0.40"}],
        ),
    ] = None


class DeploymentCostOut(Identified):
    """Cost of a deployment from an instant until the next cost. Costs never change."""

    object: Literal["platform.deployment_cost"] = "platform.deployment_cost"
    deployment_id: str
    currency: str
    valid_from: Annotated[int, Field(description="From when, in Unix seconds (UTC).", examples=[1790000000])]
    created_at: int
    per_hour: Annotated[str, Field(description="Cost of each hour, as an exact decimal string.", examples=["2.5"])]
    unit_costs: Annotated[UnitPricesOut, Field(description="Cost of each unit that the engine counts.", examples=[{"input": "0.10"}])]


class MarginOut(Out):
    """Revenue of closed billing periods, and what serving it cost. Amounts are exact decimal strings in `currency`. Fields by which the
    report does not group are null."""

    object: Literal["platform.margin"] = "platform.margin"
    month: Annotated[str | None, Field(description="The calendar month.", examples=["2026-11"])]
    organization_id: Annotated[
        str | None, Field(description="The organization; empty for the time of deployments that served nobody.", examples=["org_0"])
    ]
    model: Annotated[
        str | None, Field(description="The model; empty for what contracts add to a whole period.", examples=["llama-3.3-70b"])
    ]
    currency: str
    revenue: Annotated[str, Field(description="Usage as it was rated, with corrections and contracts.", examples=["120"])]
    unit_cost: Annotated[str, Field(description="Cost of what engines counted.", examples=["30.5"])]
    time_cost: Annotated[str, Field(description="Cost of the time of deployments.", examples=["60"])]
    margin: Annotated[str, Field(description="Revenue less both costs.", examples=["29.5"])]
    margin_bp: Annotated[
        int | None,
        Field(description="The margin in basis points of revenue, rounded down, at most 10000; null without revenue.", examples=[2458]),
    ]


class MarginsOut(Out):
    """Gross margin of some months, a row for each group and currency."""

    object: Literal["platform.margins"] = "platform.margins"
    from_month: Annotated[str, Field(description="The first month.", examples=["2026-11"])]
    until_month: Annotated[str, Field(description="The last month.", examples=["2026-11"])]
    open_periods: Annotated[
        int, Field(description="Billing periods of these months that are not closed, 0 or more: they are missing.", examples=[0])
    ]
    data: Annotated[list[MarginOut], Field(description="The rows, in order of month, organization, model and currency.", examples=[[]])]


@router.post("/v1/platform/deployments/{deployment_id}/costs")
def create_deployment_cost(_caller: Writer, plane: Plane, deployment_id: str, body: DeploymentCostCreate) -> DeploymentCostOut:
    """State what a deployment costs from an instant on. It may lie in the past, but in no time for which costs are booked."""
    now = plane.now()
    cost = DeploymentCost(
        id=plane.new_id(ids.COST),
        deployment_id=deployment_id,
        valid_from=now if body.valid_from is None else body.valid_from * 1_000_000,
        created_at=now,
        currency=body.currency,
        hour_pico=money.parse_sum(body.per_hour),
        unit_costs=NOTHING if body.unit_costs is None else unit_prices_of(body.unit_costs),
    )
    with plane.database.platform() as tx:
        return _cost_out(serving_costs.add_cost(tx, cost, now))


@router.get("/v1/platform/deployments/{deployment_id}/costs")
def list_deployment_costs(
    _caller: Reader, plane: Plane, deployment_id: str, query: Annotated[PageQuery, Query()]
) -> ListOut[DeploymentCostOut]:
    """List the costs of a deployment, past ones too, in the order in which they were stated."""
    with plane.database.platform(write=False) as tx:
        catalog.get_deployment(tx, deployment_id)
        page = serving_costs.list_costs(tx, deployment_id, query.window())
    return list_out(page, _cost_out)


def _asks_for_table(request: Request) -> bool:
    return request.headers.get("accept", "").partition(";")[0].strip().lower() == "text/csv"


@router.get("/v1/platform/margins", response_model=MarginsOut)
def list_margins(
    _caller: Reader,
    plane: Plane,
    as_table: Annotated[bool, Depends(_asks_for_table)],
    from_month: Annotated[Month, Query(description="The first month, as YYYY-MM.")],
    until_month: Annotated[Month | None, Query(description="The last month, as YYYY-MM; the first one if left out.")] = None,
    group_by: Annotated[
        list[MarginGroup] | None, Query(description="Fields by which rows are cut (repeatable); one row for each currency without any.")
    ] = None,
    organization_id: Annotated[str | None, Query(max_length=64, description="Return only rows of this organization.")] = None,
    model: Annotated[ModelName | None, Query(description="Return only rows of this model.")] = None,
) -> MarginsOut | Response:
    """Return the gross margin of closed billing periods. `Accept: text/csv` gives a table."""
    last = until_month or from_month
    with plane.database.platform(write=False) as tx:
        found = serving_costs.report(tx, from_month, last, frozenset(group_by or ()), organization_id=organization_id, model=model)
    rows = [_margin_out(key, margin) for key, margin in found.margins.items()]
    if as_table:
        return Response(write_csv(rows), media_type="text/csv; charset=utf-8")
    return MarginsOut(from_month=from_month, until_month=last, open_periods=found.open_periods, data=rows)


CSV_COLUMNS = ("month", "organization_id", "model", "currency", "revenue", "unit_cost", "time_cost", "margin", "margin_bp")


def write_csv(rows: Iterable[MarginOut]) -> str:
    """Return rows of a report as a table."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_COLUMNS, lineterminator="\r\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows({**row.model_dump(), "model": escape_text(row.model or "")} for row in rows)
    return buffer.getvalue()


def _cost_out(cost: DeploymentCost) -> DeploymentCostOut:
    return DeploymentCostOut(
        id=cost.id,
        deployment_id=cost.deployment_id,
        currency=cost.currency,
        valid_from=seconds(cost.valid_from),
        created_at=seconds(cost.created_at),
        per_hour=money.format_amount(cost.hour_pico),
        unit_costs=UnitPricesOut(**unit_prices_out(cost.unit_costs)),
    )


def _margin_out(key: MarginKey, margin: Margin) -> MarginOut:
    return MarginOut(
        month=key.month,
        organization_id=key.organization_id,
        model=key.model,
        currency=key.currency,
        revenue=money.format_amount(margin.revenue_pico),
        unit_cost=money.format_amount(margin.unit_cost_pico),
        time_cost=money.format_amount(margin.time_cost_pico),
        margin=money.format_amount(margin.margin_pico),
        margin_bp=margin.margin_bp,
    )
