"""Usage of one organization in OTLP: a span for each request, and sums of requests, tokens and costs (opentelemetry-proto 1.x).

What an organization gets here it can read by the API too. There are no addresses and names of upstreams, only the ids of deployments, as in
the request log. Names are those of the semantic conventions v1.41.0, and `tollway.*`.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_DELTA, Metric, NumberDataPoint, ScopeMetrics
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span, Status

from tollway.domain.billing_classes import BILLING_CLASSES, BillingClass, Direction
from tollway.domain.usage import Outcome
from tollway.telemetry import OPERATIONS

Row = Mapping[str, Any]
"""A usage event with the columns of `usage_hours`."""

SERVICE = "tollway"
"""`service.name` of the resource."""

INTEGER_MAX = 2**63 - 1
"""Largest integer that a message has. Sums of costs in a currency of small units can be above it: they are sent as doubles."""

SERVER_FAILURES = frozenset({Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT, Outcome.GATEWAY_CRASH})
"""Outcomes that are errors of a span."""

_SCOPE = InstrumentationScope(name="tollway")
_TOKENS = {direction: [row.billing_class for row in BILLING_CLASSES if row.direction is direction] for direction in Direction}


def encode_traces(organization_id: str, rows: Sequence[Row]) -> bytes:
    """Return a request of the trace service with a span for each usage event. Ids follow from the id of the request, so that a span that is
    sent twice is the same one."""
    spans = ScopeSpans(scope=_SCOPE, spans=[_make_span(row) for row in rows])
    request = ExportTraceServiceRequest()
    request.resource_spans.add(resource=_make_resource(organization_id), scope_spans=[spans])
    encoded: bytes = request.SerializeToString()
    return encoded


def encode_metrics(organization_id: str, rows: Sequence[Row], since: int, until: int) -> bytes:
    """Return a request of the metrics service with the sums of these usage events, as deltas of the time in which they were exported (UTC
    microseconds): so the times of two requests never overlap, whenever gateways handed in their records."""
    requests: Counter[tuple[tuple[str, str], ...]] = Counter()
    tokens: Counter[tuple[tuple[str, str], ...]] = Counter()
    costs: Counter[tuple[tuple[str, str], ...]] = Counter()
    for row in rows:
        place = (("gen_ai.request.model", row["model"]), ("tollway.project.id", row["project_id"]))
        requests[(*place, ("tollway.outcome", row["outcome"]))] += 1
        for direction in Direction:
            tokens[(*place, ("gen_ai.token.type", direction.value))] += _count_tokens(row, direction)
        costs[(*place, ("tollway.currency", row["currency"]))] += _sum_cost(row)
    request = ExportMetricsServiceRequest()
    scope = ScopeMetrics(
        scope=_SCOPE,
        metrics=[
            _make_sum("tollway.requests", "{request}", requests, since, until),
            _make_sum("tollway.tokens", "{token}", tokens, since, until),
            _make_sum("tollway.cost_pico", "p{currency}", costs, since, until),
        ],
    )
    request.resource_metrics.add(resource=_make_resource(organization_id), scope_metrics=[scope])
    encoded: bytes = request.SerializeToString()
    return encoded


def _make_resource(organization_id: str) -> Resource:
    return Resource(attributes=[_attribute("service.name", SERVICE), _attribute("tollway.organization.id", organization_id)])


def _make_span(row: Row) -> Span:
    digest = hashlib.sha256(row["event_id"].encode()).digest()
    operation = OPERATIONS.get(row["endpoint"], row["endpoint"])
    attributes: dict[str, str | int | bool | None] = {
        "gen_ai.operation.name": operation,
        "gen_ai.request.model": row["model"],
        "gen_ai.request.stream": row["stream"],
        "gen_ai.usage.input_tokens": _count_tokens(row, Direction.INPUT),
        "gen_ai.usage.output_tokens": _count_tokens(row, Direction.OUTPUT),
        "gen_ai.usage.cache_read.input_tokens": row[BillingClass.CACHED_INPUT],
        "gen_ai.usage.reasoning.output_tokens": row[BillingClass.REASONING],
        "tollway.request.id": row["event_id"],
        "tollway.project.id": row["project_id"],
        "tollway.key.id": row["key_id"],
        "tollway.deployment.id": row["deployment_id"],
        "tollway.service_tier": row["service_tier"],
        "tollway.attempts": row["attempts"],
        "tollway.test": row["test"],
        "tollway.outcome": row["outcome"],
        "tollway.cost_pico": _sum_cost(row),
        "tollway.currency": row["currency"],
    }
    is_failed = row["outcome"] in SERVER_FAILURES
    if row["error"] is not None:
        attributes["error.type" if is_failed else "tollway.error_code"] = row["error"]
    shown = [_attribute(name, value) for name, value in attributes.items() if value is not None]
    if row["first_token_at"] is not None:
        seconds = AnyValue(double_value=(row["first_token_at"] - row["admitted_at"]) / 1_000_000)
        shown.append(KeyValue(key="gen_ai.response.time_to_first_chunk", value=seconds))
    return Span(
        trace_id=digest[:16],
        span_id=digest[16:24],
        name=f"{operation} {row['model']}",
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=row["admitted_at"] * 1000,
        end_time_unix_nano=row["ended_at"] * 1000,
        attributes=shown,
        status=Status(code=Status.STATUS_CODE_ERROR) if is_failed else None,
    )


def _make_sum(name: str, unit: str, values: Mapping[tuple[tuple[str, str], ...], int], since: int, until: int) -> Metric:
    metric = Metric(name=name, unit=unit)
    metric.sum.aggregation_temporality = AGGREGATION_TEMPORALITY_DELTA
    metric.sum.is_monotonic = True
    metric.sum.data_points.extend(
        NumberDataPoint(
            attributes=[_attribute(*each) for each in key],
            start_time_unix_nano=since * 1000,
            time_unix_nano=until * 1000,
            **({"as_int": value} if value <= INTEGER_MAX else {"as_double": float(value)}),
        )
        for key, value in values.items()
    )
    return metric


def _attribute(name: str, value: str | int | bool) -> KeyValue:
    if isinstance(value, bool):
        return KeyValue(key=name, value=AnyValue(bool_value=value))
    if isinstance(value, int):
        return KeyValue(key=name, value=AnyValue(int_value=value) if value <= INTEGER_MAX else AnyValue(double_value=float(value)))
    return KeyValue(key=name, value=AnyValue(string_value=value))


def _count_tokens(row: Row, direction: Direction) -> int:
    return sum(row[each] or 0 for each in _TOKENS[direction])


def _sum_cost(row: Row) -> int:
    return sum(row[f"{each}_pico"] or 0 for each in BillingClass)
