"""Usage, costs and receipts, for tenants: OpenAI's shapes, with exact amounts beside its floats.

`input_tokens` includes cached tokens here, as OpenAI counts; inside, the classes are disjoint. The one float in all of money is
made here, from the exact decimal string that stands beside it.
"""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import Depends, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tollway.control.api import routes
from tollway.control.api.class_schemas import openai_tokens, other_quantities
from tollway.control.api.routes import Plane, may, plane_of
from tollway.control.api.schemas import SECONDS_MAX, Out, find_seconds, seconds
from tollway.control.identity.access import Tenant
from tollway.control.metering import usage
from tollway.control.metering.usage import Buckets, Cost, Receipt, UsageBucket
from tollway.control.plane import ControlPlane
from tollway.control.tenancy import tenants
from tollway.domain import ids, money
from tollway.domain.billing_classes import BILLING_CLASSES, BillingClass, Direction
from tollway.domain.catalog import IMAGES, NOT_GENERATING, SPEECH, TRANSCRIPTS, Endpoint
from tollway.domain.corrections import Adjustment
from tollway.domain.csv_cells import escape_text
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, Fault
from tollway.domain.roles import Permission
from tollway.domain.rollups import Ranking, UsageGroup, UsageQuery, WantedSums
from tollway.domain.snapshot import SNAPSHOT_AGE_SECONDS_MAX
from tollway.domain.usage import OUTCOME_POLICIES, OUTCOME_POLICY_CURRENT, find_unbilled_reason

router = routes.router(tags=["usage"])

Reader = Annotated[Tenant, Depends(may(Permission.USAGE_READ))]
CostReader = Annotated[Tenant, Depends(may(Permission.COSTS_READ))]

WIDTHS_SECONDS = {"1m": 60, "1h": 3_600, "1d": 86_400}
BUCKETS = {"1m": (60, 1440), "1h": (24, 168), "1d": (7, 31)}
"""Buckets of a page by default and at most, by bucket width: OpenAI's numbers."""

COLUMNS = {"project_id": "project_id", "api_key_id": "key_id", "model": "model"}
"""Fields by which usage can be grouped, with their columns."""

_BILLED = [each for each in Endpoint if each not in OUTCOME_POLICIES[OUTCOME_POLICY_CURRENT].unbilled_endpoints]
EMBEDDINGS = tuple(each for each in _BILLED if each in NOT_GENERATING and each not in IMAGES | SPEECH | TRANSCRIPTS)
COMPLETIONS = tuple(each for each in _BILLED if each not in NOT_GENERATING)

Text = Annotated[str, StringConstraints(max_length=160, pattern=r"^[\x20-\x7e]+$")]
Texts = Annotated[list[Text], Field(max_length=100)]
Instant = Annotated[int, Field(ge=0, le=SECONDS_MAX)]
PageCursor = Annotated[str, StringConstraints(pattern=r"^page_[0-9]{1,12}$")]


class UsageParameters(BaseModel):
    """The usage to return: times in Unix seconds, `start_time` inclusive and `end_time` (default: now) exclusive."""

    model_config = ConfigDict(extra="forbid")

    start_time: Instant
    end_time: Instant | None = None
    bucket_width: Literal["1m", "1h", "1d"] = "1d"
    group_by: list[Literal["project_id", "api_key_id", "model"]] = Field(default=[], max_length=3)
    project_ids: Texts = []
    api_key_ids: Texts = []
    models: Texts = []
    limit: Annotated[int, Field(ge=1, le=1440)] | None = None
    page: PageCursor | None = None
    test: bool = False

    def query(self, endpoints: Sequence[str], now: int) -> tuple[UsageQuery, int]:
        """The same for storage, and how many buckets."""
        default, most = BUCKETS[self.bucket_width]
        if self.limit is not None and self.limit > most:
            raise Fault(PARAMETER_INVALID, param="limit", message=f"With this bucket_width, limit is at most {most}.")
        query = UsageQuery(
            width_seconds=WIDTHS_SECONDS[self.bucket_width],
            start_at=_first(self.start_time, self.page),
            end_at=now if self.end_time is None else self.end_time * 1_000_000,
            group_by=tuple(dict.fromkeys(COLUMNS[name] for name in self.group_by)),
            endpoints=tuple(endpoints),
            project_ids=tuple(self.project_ids),
            key_ids=tuple(self.api_key_ids),
            models=tuple(self.models),
            test=self.test,
            wanted=WantedSums.QUANTITIES,
        )
        return query, self.limit or default


class CostParameters(BaseModel):
    """The costs to return; otherwise as for usage."""

    model_config = ConfigDict(extra="forbid")

    start_time: Instant
    end_time: Instant | None = None
    bucket_width: Literal["1m", "1h", "1d"] = "1d"
    group_by: list[Literal["project_id", "api_key_id", "line_item"]] = Field(default=[], max_length=3)
    project_ids: Texts = []
    api_key_ids: Texts = []
    line_items: Texts = []
    limit: Annotated[int, Field(ge=1, le=180)] = 7
    page: PageCursor | None = None


class BucketOut(Out):
    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[dict[str, Any]]


class BucketsOut(Out):
    """A page of buckets. `next_page` is the `page` of the next one."""

    object: Literal["page"] = "page"
    data: list[BucketOut]
    has_more: bool
    next_page: str | None


def _first(start_time: int, page: str | None) -> int:
    """Return where a page begins, in microseconds."""
    return (start_time if page is None else int(page.removeprefix("page_"))) * 1_000_000


# ---- Usage ------------------------------------------------------------------------------------------------------------


@router.get("/v1/organization/usage/completions", response_model=BucketsOut)
def list_completions(caller: Reader, request: Request, parameters: Annotated[UsageParameters, Query()]) -> Response:
    """Tokens and requests of chat, completions, messages and responses, by bucket of time. `Accept: text/csv` gives a table."""
    return _usage(caller.organization_id, request, parameters, list_completions)


@router.get("/v1/organization/usage/embeddings", response_model=BucketsOut)
def list_embeddings(caller: Reader, request: Request, parameters: Annotated[UsageParameters, Query()]) -> Response:
    """Tokens and requests of embeddings, reranking, scoring, classification and moderation, by bucket of time.

    `Accept: text/csv` gives a table.
    """
    return _usage(caller.organization_id, request, parameters, list_embeddings)


@router.get("/v1/organization/usage/images", response_model=BucketsOut)
def list_images(caller: Reader, request: Request, parameters: Annotated[UsageParameters, Query()]) -> Response:
    """Images and requests of their generation, by bucket of time. `Accept: text/csv` gives a table."""
    return _usage(caller.organization_id, request, parameters, list_images)


@router.get("/v1/organization/usage/audio_speeches", response_model=BucketsOut)
def list_speeches(caller: Reader, request: Request, parameters: Annotated[UsageParameters, Query()]) -> Response:
    """Characters that were spoken, by bucket of time. `Accept: text/csv` gives a table."""
    return _usage(caller.organization_id, request, parameters, list_speeches)


@router.get("/v1/organization/usage/audio_transcriptions", response_model=BucketsOut)
def list_transcriptions(caller: Reader, request: Request, parameters: Annotated[UsageParameters, Query()]) -> Response:
    """Seconds of sound that were transcribed or translated, by bucket of time. `Accept: text/csv` gives a table."""
    return _usage(caller.organization_id, request, parameters, list_transcriptions)


class OtherUsageParameters(BaseModel):
    """The usage to return of what is not counted here by itself: every parameter of OpenAI's is taken, and none changes the answer."""

    model_config = ConfigDict(extra="forbid")

    start_time: Instant
    end_time: Instant | None = None
    bucket_width: Literal["1m", "1h", "1d"] = "1d"
    group_by: Texts = []
    project_ids: Texts = []
    user_ids: Texts = []
    api_key_ids: Texts = []
    models: Texts = []
    sizes: Texts = []
    sources: Texts = []
    context_levels: Texts = []
    vector_store_ids: Texts = []
    batch: bool | None = None
    limit: Annotated[int, Field(ge=1, le=1440)] | None = None
    page: PageCursor | None = None


@router.get("/v1/organization/usage/code_interpreter_sessions")
@router.get("/v1/organization/usage/decisions")
@router.get("/v1/organization/usage/file_search_calls")
@router.get("/v1/organization/usage/moderations")
@router.get("/v1/organization/usage/vector_stores")
@router.get("/v1/organization/usage/web_search_calls")
def list_other_usage(_caller: Reader, _parameters: Annotated[OtherUsageParameters, Query()]) -> BucketsOut:
    """Always an empty page: nothing is counted by itself under this name. Moderation is part of the usage of embeddings."""
    return BucketsOut(data=[], has_more=False, next_page=None)


def _usage(organization_id: str, request: Request, parameters: UsageParameters, operation: Callable[..., Response]) -> Response:
    plane = plane_of(request)
    endpoints, result = _COUNTED[operation]
    query, limit = parameters.query(endpoints, plane.now())
    with plane.database.tenant(organization_id, write=False) as tx:
        found = usage.list_buckets(tx, query, limit)
    return _answer(request, found, [[result(group) for group in bucket.groups] for bucket in found.buckets])


def _named(group: dict[str, str]) -> dict[str, str | None]:
    return {name: group.get(column) for name, column in COLUMNS.items()}


def _completions_result(group: UsageGroup) -> dict[str, Any]:
    sums = group.sums
    return {
        "object": "organization.usage.completions.result",
        **openai_tokens(sums.billed),
        "input_uncached_tokens": sums.billed.sum_of(Direction.INPUT) - sums.billed.cached_input,
        "input_cache_write_tokens": sums.billed.get(BillingClass.CACHE_WRITE),
        "input_audio_tokens": sums.billed.get(BillingClass.AUDIO_INPUT),
        "input_image_tokens": sums.billed.get(BillingClass.IMAGE_INPUT),
        "output_audio_tokens": sums.billed.get(BillingClass.AUDIO_OUTPUT),
        "output_image_tokens": sums.billed.get(BillingClass.IMAGE_OUTPUT),
        "num_model_requests": sums.requests,
        **_named(group.group),
        "user_id": None,
        "batch": None,
        "service_tier": None,
    }


def _embeddings_result(group: UsageGroup) -> dict[str, Any]:
    return {
        "object": "organization.usage.embeddings.result",
        "input_tokens": group.sums.billed.sum_of(Direction.INPUT),
        "num_model_requests": group.sums.requests,
        **_named(group.group),
        "user_id": None,
    }


def _images_result(group: UsageGroup) -> dict[str, Any]:
    return {
        "object": "organization.usage.images.result",
        "images": group.sums.billed.get(BillingClass.IMAGES),
        "num_model_requests": group.sums.requests,
        **_named(group.group),
        "user_id": None,
        "size": None,
        "source": None,
    }


def _speeches_result(group: UsageGroup) -> dict[str, Any]:
    return {
        "object": "organization.usage.audio_speeches.result",
        "characters": group.sums.billed.get(BillingClass.CHARACTERS),
        "num_model_requests": group.sums.requests,
        **_named(group.group),
        "user_id": None,
    }


def _transcriptions_result(group: UsageGroup) -> dict[str, Any]:
    return {
        "object": "organization.usage.audio_transcriptions.result",
        "seconds": group.sums.billed.get(BillingClass.SECONDS),
        "num_model_requests": group.sums.requests,
        **_named(group.group),
        "user_id": None,
    }


_COUNTED: Mapping[Callable[..., Response], tuple[Sequence[str], Callable[[UsageGroup], dict[str, Any]]]] = {
    list_completions: (COMPLETIONS, _completions_result),
    list_embeddings: (EMBEDDINGS, _embeddings_result),
    list_images: (tuple(sorted(IMAGES)), _images_result),
    list_speeches: (tuple(sorted(SPEECH)), _speeches_result),
    list_transcriptions: (tuple(sorted(TRANSCRIPTS)), _transcriptions_result),
}
"""Operations of usage: the endpoints whose requests each counts, and the result of a group."""


QUANTITIES: Mapping[str, Sequence[str]] = {
    "num_model_requests": ("requests",),
    "input_tokens": [row.billing_class for row in BILLING_CLASSES if row.direction is Direction.INPUT],
    "input_cached_tokens": (BillingClass.CACHED_INPUT,),
    "output_tokens": [row.billing_class for row in BILLING_CLASSES if row.direction is Direction.OUTPUT],
    "images": (BillingClass.IMAGES,),
    "characters": (BillingClass.CHARACTERS,),
    "seconds": (BillingClass.SECONDS,),
}
"""Fields of the results by which pages rank groups, and the columns of the rollups that each adds up."""


def rank_usage(
    caller: Tenant,
    plane: ControlPlane,
    operation: Callable[..., Response],
    parameters: UsageParameters,
    field: str,
    *,
    count: int,
    before: int | None = None,
) -> Ranking:
    """Return the groups that have most of a field of QUANTITIES in the whole span of an operation of usage, `count` at most. With `before`
    (Unix seconds), what they had in the span from then on is beside it. Pages need this alone, however many groups there are."""
    query, _ = parameters.query(_COUNTED[operation][0], plane.now())
    before_at = None if before is None else before * 1_000_000
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return usage.rank_quantities(tx, query, QUANTITIES[field], count=count, before_at=before_at)


# ---- Costs ------------------------------------------------------------------------------------------------------------


@router.get("/v1/organization/costs", response_model=BucketsOut)
def list_costs(caller: CostReader, request: Request, parameters: Annotated[CostParameters, Query()]) -> Response:
    """Return what was spent, by bucket of time; exact in `value_pico` and `value_decimal`. `Accept: text/csv` gives a table.

    A correction stands in the bucket in which it was booked, as line item "correction, <model>"; below zero it gives back.
    """
    currency, found, costs = _read_costs(caller, plane_of(request), parameters, is_whole=False)
    return _answer(request, found, [[_cost_result(cost, currency) for cost in of_bucket] for of_bucket in costs])


def list_cost_totals(caller: Tenant, plane: ControlPlane, parameters: CostParameters) -> list[Cost]:
    """Return what `list_costs` answers, with its span as one bucket."""
    return _read_costs(caller, plane, parameters, is_whole=True)[2][0]


def rank_costs(caller: Tenant, plane: ControlPlane, parameters: CostParameters, *, count: int, before: int | None = None) -> Ranking:
    """Return the groups that cost most in the whole span of `list_costs`, in pico, as `rank_usage` does. Not by line item."""
    query, before_at = _query_costs(plane, parameters), None if before is None else before * 1_000_000
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return usage.rank_costs(tx, query, count=count, before_at=before_at)


def _query_costs(plane: ControlPlane, parameters: CostParameters) -> UsageQuery:
    """Return what costs are read by."""
    by_line_item = "line_item" in parameters.group_by
    wanted = list(map(usage.parse_line_item, parameters.line_items))
    columns = [COLUMNS[name] for name in parameters.group_by if name != "line_item"]
    return UsageQuery(
        width_seconds=WIDTHS_SECONDS[parameters.bucket_width],
        start_at=_first(parameters.start_time, parameters.page),
        end_at=plane.now() if parameters.end_time is None else parameters.end_time * 1_000_000,
        # Line items name their model, so what is asked for by line item is read by model.
        group_by=tuple(dict.fromkeys([*columns, "model"] if by_line_item or wanted else columns)),
        project_ids=tuple(parameters.project_ids),
        key_ids=tuple(parameters.api_key_ids),
        models=tuple({model for model, _ in wanted}),
        wanted=WantedSums.ALL if by_line_item or wanted else WantedSums.TOTAL,
    )


def _read_costs(
    caller: Tenant, plane: ControlPlane, parameters: CostParameters, *, is_whole: bool
) -> tuple[str, Buckets, list[list[Cost]]]:
    """Return the currency, buckets and the costs of each; with `is_whole` the span as one bucket."""
    by_line_item = "line_item" in parameters.group_by
    wanted = frozenset(map(usage.parse_line_item, parameters.line_items)) or None
    query = _query_costs(plane, parameters)
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        currency = tenants.get_organization(tx).currency
        found = usage.list_total(tx, query) if is_whole else usage.list_buckets(tx, query, parameters.limit)
        corrections = usage.list_corrections(tx, query, found, by_line_item, wanted)
    rows = []
    for bucket, corrected in zip(found.buckets, corrections, strict=True):
        used = [cost for group in bucket.groups for cost in usage.split_costs(group, by_line_item, wanted)]
        rows.append(_merge([*used, *corrected], by_line_item))
    return currency, found, rows


def _merge(costs: Iterable[Cost], by_line_item: bool) -> list[Cost]:
    """Costs as they are to be shown: where they were read by model only to be filtered, the models are added up again."""
    if by_line_item:
        return list(costs)
    merged: dict[tuple[tuple[str, str], ...], Cost] = {}
    for cost in costs:
        group = {column: value for column, value in cost.group.items() if column != "model"}
        key = tuple(sorted(group.items()))
        before = merged.get(key)
        amount_pico = cost.amount_pico + (before.amount_pico if before else 0)
        merged[key] = Cost(group, None, None, amount_pico)
    return list(merged.values())


def amount_out(pico: int, currency: str) -> dict[str, Any]:
    """An amount in OpenAI's shape, with the exact value beside the float."""
    decimal = money.format_amount(pico)
    return {"value": float(decimal), "currency": currency.lower(), "value_decimal": decimal, "value_pico": str(pico)}


def _cost_result(cost: Cost, currency: str) -> dict[str, Any]:
    is_tokens = cost.quantity is not None
    return {
        "object": "organization.costs.result",
        "amount": amount_out(cost.amount_pico, currency),
        "line_item": cost.line_item,
        "quantity": cost.quantity,
        "quantity_unit": "tokens" if is_tokens else None,
        "project_id": cost.group.get("project_id"),
        "api_key_id": cost.group.get("key_id"),
    }


# ---- Shapes -----------------------------------------------------------------------------------------------------------


def _answer(request: Request, found: Buckets, results: Sequence[Sequence[dict[str, Any]]]) -> Response:
    next_page = None if found.next_at is None else f"page_{seconds(found.next_at)}"
    if request.headers.get("accept", "").partition(";")[0].strip().lower() == "text/csv":
        headers = {} if next_page is None else {"x-next-page": next_page}
        return Response(_csv(found.buckets, results), 200, headers, "text/csv; charset=utf-8")
    data = [
        {
            "object": "bucket",
            "start_time": seconds(bucket.start_at),
            "end_time": seconds(bucket.end_at),
            "results": list(of_bucket),
        }
        for bucket, of_bucket in zip(found.buckets, results, strict=True)
    ]
    return JSONResponse({"object": "page", "data": data, "has_more": next_page is not None, "next_page": next_page})


def _csv(buckets: Sequence[UsageBucket], results: Sequence[Sequence[dict[str, Any]]]) -> str:
    """One row a result, amounts spread over columns. Empty if there is nothing."""
    rows = [
        {"start_time": seconds(bucket.start_at), "end_time": seconds(bucket.end_at), **_flat(result)}
        for bucket, of_bucket in zip(buckets, results, strict=True)
        for result in of_bucket
    ]
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def _flat(result: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in result.items():
        if name == "amount":
            flat["amount"], flat["amount_pico"], flat["currency"] = value["value_decimal"], value["value_pico"], value["currency"]
        elif name != "object":
            flat[name] = escape_text(value) if isinstance(value, str) else value
    return flat


# ---- Receipts ---------------------------------------------------------------------------------------------------------


class ReceiptLine(Out):
    """One class: quantity x unit_price_pico = amount_pico."""

    billing_class: str
    quantity: int
    unit_price_pico: str
    price_per_million: str
    amount_pico: str


class ReceiptPeriod(Out):
    """The billing period of a receipt: booked in it, served in it or, if `late`, from `service_start_time` to `service_end_time`."""

    id: str
    start_time: int
    end_time: int
    state: str
    late: bool
    service_start_time: int
    service_end_time: int


class ReceiptAdjustment(Out):
    """A correction that was applied. `quantities`: what is billed instead, by class, if they were replaced."""

    id: str
    kind: str
    reason: str
    amount: dict[str, Any]
    quantities: dict[str, int] | None
    created_at: int


class ReceiptPrice(Out):
    """The price of a receipt and when gateways could charge it: a gateway prices by what it knew for at most `snapshot_age_seconds_max`,
    so a price holds on every gateway at `holds_by`, and the next one `followed_at` holds on every gateway at `charged_until`."""

    list: str
    valid_from: int
    holds_by: int
    followed_at: int | None
    charged_until: int | None
    snapshot_age_seconds_max: int


class ReceiptOut(Out):
    """Outcome and cost of a request. Times in Unix seconds, spans in milliseconds. `cost` is what was billed first,
    `net_cost` includes all corrections."""

    object: Literal["organization.request"] = "organization.request"
    id: str
    project_id: str
    api_key_id: str
    model: str
    endpoint: str
    stream: bool
    outcome: str
    usage_source: str
    admitted_at: int
    ended_at: int
    duration_ms: float
    first_token_ms: float | None
    attempts: int
    error: str | None
    usage: dict[str, int]
    lines: list[ReceiptLine]
    cost: dict[str, Any]
    net_cost: dict[str, Any]
    adjustments: list[ReceiptAdjustment]
    billing_period: ReceiptPeriod
    price_version: str
    price: ReceiptPrice
    service_tier: str
    outcome_policy: int
    unbilled_reason: str | None
    event_hash: str


@router.get("/v1/organization/requests/{request_id}")
def retrieve_receipt(caller: CostReader, plane: Plane, request_id: str) -> ReceiptOut:
    """The receipt of one request: what was counted, what of it is billed, at which price. It appears about a second after the end."""
    if not ids.is_id(ids.REQUEST, request_id):
        raise Fault(RESOURCE_UNKNOWN)
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return _receipt_out(usage.get_receipt(tx, request_id))


def _receipt_out(receipt: Receipt) -> ReceiptOut:
    final = receipt.event.final
    admit, used = final.admit, final.used
    cost_pico = sum(line.amount_pico for line in receipt.lines)
    return ReceiptOut(
        id=admit.request_id,
        project_id=admit.project_id,
        api_key_id=admit.key_id,
        model=admit.model,
        endpoint=admit.endpoint,
        stream=admit.stream,
        outcome=final.outcome,
        usage_source=final.source,
        admitted_at=seconds(admit.admitted_at),
        ended_at=seconds(final.ended_at),
        duration_ms=(final.ended_at - admit.admitted_at) / 1000,
        first_token_ms=None if final.first_token_at is None else (final.first_token_at - admit.admitted_at) / 1000,
        attempts=final.attempts,
        error=final.error,
        usage={**openai_tokens(used), **other_quantities(used)},
        lines=[
            ReceiptLine(
                billing_class=line.billing_class,
                quantity=line.quantity,
                unit_price_pico=str(line.unit_pico),
                price_per_million=money.format_price_per_million(line.unit_pico),
                amount_pico=str(line.amount_pico),
            )
            for line in receipt.lines
        ],
        cost=amount_out(cost_pico, receipt.currency),
        net_cost=amount_out(cost_pico + sum(each.amount_pico for each in receipt.adjustments), receipt.currency),
        adjustments=[
            ReceiptAdjustment(
                id=each.id,
                kind=each.kind,
                reason=each.reason,
                amount=amount_out(each.amount_pico, receipt.currency),
                quantities=_replaced(each),
                created_at=seconds(each.created_at),
            )
            for each in receipt.adjustments
        ],
        billing_period=ReceiptPeriod(
            id=receipt.period.id,
            start_time=seconds(receipt.period.start_at),
            end_time=seconds(receipt.period.end_at),
            state=receipt.period.state,
            late=receipt.served.start_at != receipt.period.start_at,
            service_start_time=seconds(receipt.served.start_at),
            service_end_time=seconds(receipt.served.end_at),
        ),
        price_version=admit.price_version,
        price=ReceiptPrice(
            list=receipt.validity.list,
            valid_from=seconds(receipt.validity.valid_from),
            holds_by=seconds(receipt.validity.holds_by),
            followed_at=find_seconds(receipt.validity.followed_at),
            charged_until=find_seconds(receipt.validity.charged_until),
            snapshot_age_seconds_max=SNAPSHOT_AGE_SECONDS_MAX,
        ),
        service_tier=admit.service_tier,
        outcome_policy=admit.outcome_policy,
        unbilled_reason=find_unbilled_reason(final),
        event_hash=receipt.event.content_hash.hex(),
    )


def _replaced(adjustment: Adjustment) -> dict[str, int] | None:
    new = adjustment.replacement
    return None if new is None else dict(zip(BillingClass, new.values(), strict=True))
