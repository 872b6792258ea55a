"""Reconciliation, for operators: what the ledger says that engines did, against what the engines counted."""

from typing import Annotated, Literal

from fastapi import Depends, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from tollway.control.api import routes
from tollway.control.api.class_schemas import openai_tokens
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import SECONDS_MAX, Identified, ListOut, ModelName, Out, PageQuery, list_out, seconds
from tollway.control.reconciliation import reconcile
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.keys import Operator
from tollway.domain.reconciliation import HOUR_US, ComparisonLine, EngineUsage, HourState, Row, TokenComparison, hour_of
from tollway.domain.roles import Permission
from tollway.domain.usage import Anomaly, UsageEvent

router = routes.router(tags=["reconciliation"])

Reader = Annotated[Operator, Depends(may(Permission.PLATFORM_ACCOUNTS_READ))]

HOURS_MAX = 168
"""Most hours in one answer: a week."""

HOURS_DEFAULT = 24

Instant = Annotated[int, Field(ge=0, le=SECONDS_MAX)]


class AnomalyOut(Identified):
    """A request whose engine reported usage that was not believed, and what was taken instead. `anomaly`: "usage_missing",
    "usage_invalid", "usage_inflated" (held to what was asked for or delivered) or "usage_shrinking"."""

    object: Literal["platform.usage.anomaly"] = "platform.usage.anomaly"
    anomaly: Anomaly
    organization_id: str
    model: str
    endpoint: str
    deployment_id: str | None
    ended_at: int
    outcome: str
    usage_source: str
    input_tokens: int
    input_cached_tokens: int
    output_tokens: int
    output_reasoning_tokens: int


class ReconciliationParameters(BaseModel):
    """The hours to compare: times in Unix seconds. `start_time` (default: a day before the end) and `end_time` (default: now) are widened
    to whole hours; at most a week. `model`: rows that have it."""

    model_config = ConfigDict(extra="forbid")

    start_time: Instant | None = None
    end_time: Instant | None = None
    model: ModelName | None = None

    def hours(self, now: int) -> tuple[int, int]:
        """The first hour and the one after the last, in microseconds. Raises PARAMETER_INVALID."""
        end_at = hour_of((now if self.end_time is None else self.end_time * 1_000_000) + HOUR_US - 1)
        start_at = end_at - HOURS_DEFAULT * HOUR_US if self.start_time is None else hour_of(self.start_time * 1_000_000)
        if not 0 < end_at - start_at <= HOURS_MAX * HOUR_US:
            raise Fault(PARAMETER_INVALID, param="start_time", message=f"Ask for at least one hour and at most {HOURS_MAX}.")
        return start_at, end_at


class TokenComparisonOut(Out):
    """Tokens by the ledger and by the engines' own counters. `drift`: what the engines counted more (less: below zero);
    `drift_percent`: of what they counted. Null where they were not observed."""

    ledger: int
    engine: int | None
    drift: int | None
    drift_percent: float | None


class UsageOut(Out):
    """Counts that explain small differences: of the requests that ended, those that did not complete, those that were tried more than
    once, and those whose usage report failed the checks."""

    requests: int
    incomplete: int
    retried: int
    anomalous: int


class ReconciliationLineOut(Out):
    """Deployments that share their engines' counters. `covered_seconds` of the hour lie between readings; `resets`: starts of an engine
    within it; `failures`: readings that did not work."""

    deployments: list[str]
    addresses: list[str]
    state: HourState
    prompt: TokenComparisonOut
    output: TokenComparisonOut
    requests: UsageOut
    covered_seconds: int
    resets: int
    failures: int


class RowOut(Out):
    """One model (or models that share an engine) in one hour. `state`: "ok", "drift", "partial" (not read all the time, or an engine was
    started anew, so that the difference proves nothing), "not_observed", or "open" (the hour has not ended, or only just).
    `unattributed_tokens`: of requests whose gateway died, so that nobody knows which engine served them."""

    object: Literal["platform.reconciliation.hour"] = "platform.reconciliation.hour"
    start_time: int
    end_time: int
    models: list[str]
    state: HourState
    prompt: TokenComparisonOut
    output: TokenComparisonOut
    requests: UsageOut
    unattributed_tokens: int
    engines: list[ReconciliationLineOut]


class ReconciliationOut(Out):
    """Rows by hour and model. What is beyond `drift_tokens_max` tokens and `drift_percent_max` of what the engine counted is drift."""

    object: Literal["list"] = "list"
    start_time: int
    end_time: int
    drift_percent_max: float
    drift_tokens_max: int
    data: list[RowOut]


@router.get("/v1/platform/reconciliation")
def list_reconciliation(_caller: Reader, plane: Plane, query: Annotated[ReconciliationParameters, Query()]) -> ReconciliationOut:
    """Return what engines counted against what the ledger has, by hour and model."""
    now, tolerance = plane.now(), plane.reconciliation.tolerance
    start_at, end_at = query.hours(now)
    with plane.database.platform(write=False) as tx:
        rows = reconcile.report(tx, start_at, end_at, tolerance, now)
    return ReconciliationOut(
        start_time=seconds(start_at),
        end_time=seconds(end_at),
        drift_percent_max=tolerance.percent,
        drift_tokens_max=tolerance.tokens,
        data=[_row_out(row) for row in rows if query.model is None or query.model in row.models],
    )


def _row_out(row: Row) -> RowOut:
    return RowOut(
        start_time=seconds(row.start_at),
        end_time=seconds(row.start_at + HOUR_US),
        models=list(row.models),
        state=row.state,
        prompt=_comparison_out(row.prompt),
        output=_comparison_out(row.output),
        requests=_usage_out(row.usage),
        unattributed_tokens=row.unattributed,
        engines=[_line_out(line) for line in row.lines],
    )


def _line_out(line: ComparisonLine) -> ReconciliationLineOut:
    return ReconciliationLineOut(
        deployments=list(line.deployment_ids),
        addresses=list(line.addresses),
        state=line.state,
        prompt=_comparison_out(line.prompt),
        output=_comparison_out(line.output),
        requests=_usage_out(line.usage),
        covered_seconds=seconds(line.covered_us),
        resets=line.resets,
        failures=line.failures,
    )


def _comparison_out(comparison: TokenComparison) -> TokenComparisonOut:
    return TokenComparisonOut(
        ledger=comparison.ledger, engine=comparison.engine, drift=comparison.drift, drift_percent=comparison.drift_percent
    )


def _usage_out(usage: EngineUsage) -> UsageOut:
    return UsageOut(requests=usage.requests, incomplete=usage.incomplete, retried=usage.retried, anomalous=usage.anomalous)


@router.get("/v1/platform/anomalies")
def list_anomalies(
    _caller: Reader,
    plane: Plane,
    query: Annotated[PageQuery, Query()],
    kind: Anomaly | None = None,
    deployment_id: Annotated[str, StringConstraints(max_length=64, pattern=r"^[\x21-\x7e]+$")] | None = None,
) -> ListOut[AnomalyOut]:
    """Requests whose engine reported usage that was not believed, of all kinds and deployments or of one."""
    with plane.database.platform(write=False) as tx:
        page = reconcile.list_anomalies(tx, query.window(), kind=kind, deployment_id=deployment_id)
    return list_out(page, _anomaly_out)


def _anomaly_out(event: UsageEvent) -> AnomalyOut:
    final, admit, used = event.final, event.final.admit, event.final.used
    assert final.anomaly is not None
    return AnomalyOut(
        id=admit.request_id,
        anomaly=final.anomaly,
        organization_id=admit.organization_id,
        model=admit.model,
        endpoint=admit.endpoint,
        deployment_id=final.deployment_id,
        ended_at=seconds(final.ended_at),
        outcome=final.outcome,
        usage_source=final.source,
        **openai_tokens(used),
    )
