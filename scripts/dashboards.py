"""Renders deploy/dashboards/*.json, dashboards of Grafana over the metrics of gateways and control: `python scripts/dashboards.py`.

A panel is a row of a table here, because thousands of lines of a dashboard's JSON cannot be reviewed. The files are in the format that
Grafana imports and provisions from a directory (schema version 39, Grafana 11 and later).
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

DIRECTORY = Path(__file__).parents[1] / "deploy" / "dashboards"

SCHEMA_VERSION = 39
PANELS_IN_A_ROW = 3
GRID_WIDTH = 24
PANEL_HEIGHT = 8


class Query(NamedTuple):
    """An expression of PromQL, and the text of its lines in the legend, in which `{{label}}` is a label's value."""

    expression: str
    legend: str


class Panel(NamedTuple):
    """A graph over time. `unit`: an id of Grafana's units. `text`: what to look for."""

    title: str
    unit: str
    text: str
    queries: tuple[Query, ...]


class Variable(NamedTuple):
    """A choice above the panels: `$name` is a regular expression of the chosen values of `label` of `metric`."""

    name: str
    metric: str
    label: str


class Dashboard(NamedTuple):
    """A page of panels. `name`: its file, and its id in Grafana behind `tollway-`."""

    name: str
    title: str
    variables: tuple[Variable, ...]
    panels: tuple[Panel, ...]


def _panel(title: str, unit: str, text: str, *queries: tuple[str, str]) -> Panel:
    return Panel(title, unit, text, tuple(Query(expression, legend) for expression, legend in queries))


def _quantiles(metric: str, by: str, condition: str = "") -> tuple[tuple[str, str], ...]:
    """The median and the 95th and 99th percentile of a histogram."""
    return tuple(
        (f"histogram_quantile({quantile}, sum by ({by}) (rate({metric}_bucket{condition}[$__rate_interval])))", f"p{percent}")
        for quantile, percent in ((0.5, 50), (0.95, 95), (0.99, 99))
    )


def _rate_or_zero(metric: str, by: str, condition: str = "") -> str:
    """The rate of a counter whose samples appear with its first event: 0 until then, so that the panel never looks broken."""
    return f"sum by ({by}) (rate({metric}{condition}[$__rate_interval])) or vector(0)"


_OF_MODEL = '{model=~"$model"}'
_OF_MODEL_GEN_AI = '{gen_ai_request_model=~"$model"}'
_OF_DEPLOYMENT = '{deployment=~"$deployment"}'
_STATUS_429 = '{code=~"rate_limit_exceeded|insufficient_quota|too_many_failed_authentications"}'
_OF_GATEWAY = '{instance=~"$gateway"}'

MODELS = Dashboard(
    "models",
    "Tollway: models",
    (Variable("model", "tollway_requests_total", "model"),),
    (
        _panel(
            "Requests",
            "reqps",
            "Admitted requests that ended, by model.",
            (f"sum by (model) (rate(tollway_requests_total{_OF_MODEL}[$__rate_interval]))", "{{model}}"),
        ),
        _panel(
            "Answers by status",
            "reqps",
            "Statuses of 5xx are errors of the platform; 499 is a client that left.",
            (f"sum by (status) (rate(tollway_requests_total{_OF_MODEL}[$__rate_interval]))", "{{status}}"),
        ),
        _panel(
            "Requests that fail",
            "percentunit",
            "Part of admitted requests with a status of 5xx. The objective is 0.1 %.",
            (f"tollway:request_errors:ratio_rate5m{_OF_MODEL} or 0 * tollway:requests:rate5m{_OF_MODEL}", "{{model}}"),
        ),
        _panel(
            "Time to the first token",
            "s",
            "From the arrival of a request to its first token, queue and retries included.",
            *_quantiles("gen_ai_server_time_to_first_token_seconds", "le", _OF_MODEL_GEN_AI),
        ),
        _panel(
            "Time per output token",
            "s",
            "After the first token, of streams of two tokens or more.",
            *_quantiles("gen_ai_server_time_per_output_token_seconds", "le", _OF_MODEL_GEN_AI),
        ),
        _panel(
            "Duration of requests",
            "s",
            "From the arrival of a request to its last byte.",
            *_quantiles("gen_ai_server_request_duration_seconds", "le", _OF_MODEL_GEN_AI),
        ),
        _panel(
            "Tokens",
            "short",
            "Quantities per second by billing class, as they are billed.",
            (f"sum by (class) (rate(tollway_tokens_total{_OF_MODEL}[$__rate_interval]))", "{{class}}"),
        ),
        _panel(
            "Outcomes",
            "reqps",
            "How requests ended: docs/outcomes.md says what each means for the bill.",
            ("sum by (outcome) (rate(tollway_outcomes_total[$__rate_interval]))", "{{outcome}}"),
        ),
        _panel(
            "Usage reports that could not be believed",
            "short",
            "Per second, by kind of anomaly. Each is an engine whose counts are wrong.",
            (_rate_or_zero("tollway_usage_anomalies_total", "kind"), "{{kind}}"),
        ),
    ),
)

FLEET = Dashboard(
    "fleet",
    "Tollway: deployments",
    (Variable("deployment", "tollway_upstream_running", "deployment"),),
    (
        _panel(
            "Requests in flight",
            "short",
            "Requests that a deployment was sent and has not ended, over all gateways.",
            (f"sum by (deployment) (tollway_upstream_running{_OF_DEPLOYMENT})", "{{deployment}}"),
        ),
        _panel(
            "Saturation",
            "percentunit",
            "Requests in flight of the most that the deployment is sent at a time. At 100 % requests wait in the queue.",
            (
                f"sum by (deployment) (tollway_upstream_running{_OF_DEPLOYMENT})"
                f" / sum by (deployment) (tollway_upstream_limit{_OF_DEPLOYMENT})",
                "{{deployment}}",
            ),
        ),
        _panel(
            "Prompt tokens that wait at engines",
            "short",
            "Estimate from the engines' own reports and what was sent since.",
            (f"max by (deployment) (tollway_upstream_queued_tokens{_OF_DEPLOYMENT})", "{{deployment}}"),
        ),
        _panel(
            "Attempts by result",
            "reqps",
            "`ok`, or the code of the fault.",
            (f"sum by (result) (rate(tollway_upstream_attempts_total{_OF_DEPLOYMENT}[$__rate_interval]))", "{{result}}"),
        ),
        _panel(
            "Failed attempts by deployment",
            "reqps",
            "Faults of clients do not count here.",
            (
                _rate_or_zero("tollway_upstream_attempts_total", "deployment", '{deployment=~"$deployment", result!="ok"}'),
                "{{deployment}}",
            ),
        ),
        _panel(
            "Retries",
            "reqps",
            "Attempts after the first of a request, over all gateways.",
            ("sum(rate(tollway_upstream_retries_total[$__rate_interval]))", "retries"),
        ),
        _panel(
            "Ejections",
            "short",
            "Per second, by deployment and reason. `misconfigured` does not end by itself.",
            (_rate_or_zero("tollway_upstream_ejections_total", "deployment, reason", _OF_DEPLOYMENT), "{{deployment}} {{reason}}"),
        ),
        _panel(
            "Chosen as",
            "reqps",
            "Why a deployment was chosen among equal ones: docs/routing.md explains the kinds.",
            (_rate_or_zero("tollway_upstream_chosen_total", "candidate", _OF_DEPLOYMENT), "{{candidate}}"),
        ),
        _panel(
            "Engines that take no requests by their own word",
            "short",
            "Changes per second, by deployment.",
            (_rate_or_zero("tollway_upstream_not_ready_total", "deployment", _OF_DEPLOYMENT), "{{deployment}}"),
        ),
        _panel(
            "Queue before full deployments",
            "short",
            "Requests that wait at gateways now.",
            ("sum(tollway_queue_waiting)", "requests"),
        ),
        _panel(
            "Wait in the queue",
            "s",
            "Of requests that had to wait.",
            *((f"({expression}) or vector(0)", legend) for expression, legend in _quantiles("tollway_queue_seconds", "le")),
        ),
        _panel(
            "What became of waiting requests",
            "reqps",
            "By result.",
            (_rate_or_zero("tollway_queue_requests_total", "result"), "{{result}}"),
        ),
    ),
)

GATEWAYS = Dashboard(
    "gateways",
    "Tollway: gateways",
    (Variable("gateway", "tollway_requests_running", "instance"),),
    (
        _panel("Requests running", "short", "By gateway.", (f"tollway_requests_running{_OF_GATEWAY}", "{{instance}}")),
        _panel(
            "Connections of clients",
            "short",
            "Open ones, and those refused or closed per second to make way.",
            (f"tollway_connections{_OF_GATEWAY}", "{{instance}}"),
            (f"rate(tollway_connections_refused_total{_OF_GATEWAY}[$__rate_interval])", "refused {{instance}}"),
            (f"rate(tollway_connections_shed_total{_OF_GATEWAY}[$__rate_interval])", "shed {{instance}}"),
        ),
        _panel("Buffered bytes", "bytes", "Bodies and answers held in memory.", (f"tollway_buffered_bytes{_OF_GATEWAY}", "{{instance}}")),
        _panel(
            "Longest delay of the event loop",
            "s",
            "Between two scrapes. Above 0.05 s every client notices.",
            (f"tollway_event_loop_lag_seconds_max{_OF_GATEWAY}", "{{instance}}"),
        ),
        _panel(
            "Load shedding",
            "percentunit",
            "Part of requests refused because the process is overloaded.",
            (f"tollway_shedding_part{_OF_GATEWAY}", "{{instance}}"),
        ),
        _panel(
            "Age of the configuration",
            "s",
            "Time since control last confirmed it: the longest that a revocation can be missing.",
            (f"tollway_snapshot_age_seconds{_OF_GATEWAY}", "{{instance}}"),
        ),
        _panel(
            "Commits of usage records",
            "s",
            "Longest commit between two scrapes. Each request waits for one.",
            (f"tollway_spool_commit_seconds_max{_OF_GATEWAY}", "{{instance}}"),
        ),
        _panel(
            "Usage records",
            "short",
            "Written per second. A gateway whose disk fails refuses every request.",
            (f"rate(tollway_spool_records_total{_OF_GATEWAY}[$__rate_interval])", "{{instance}}"),
            (f"tollway_spool_writable{_OF_GATEWAY} - 1", "not writable {{instance}}"),
        ),
        _panel(
            "Usage handed to control",
            "Bps",
            "Bytes acknowledged per second, and attempts that failed.",
            (f"rate(tollway_shipper_bytes_total{_OF_GATEWAY}[$__rate_interval])", "{{instance}}"),
            (f"rate(tollway_shipper_attempts_failed_total{_OF_GATEWAY}[$__rate_interval])", "failed {{instance}}"),
        ),
        _panel(
            "Epochs that control has not got",
            "short",
            "Earlier runs of a gateway whose records are missing, and runs that control refuses.",
            (f"tollway_shipper_epochs_unshipped{_OF_GATEWAY}", "unshipped {{instance}}"),
            (f"tollway_shipper_epochs_refused{_OF_GATEWAY}", "refused {{instance}}"),
        ),
        _panel(
            "Defects",
            "short",
            "Restarts of background tasks and errors of callbacks, per second. Each is a defect to report.",
            (_rate_or_zero("tollway_task_restarts_total", "task", _OF_GATEWAY), "task {{task}}"),
            (_rate_or_zero("tollway_callback_failures_total", "place", _OF_GATEWAY), "callback {{place}}"),
        ),
        _panel(
            "Log lines dropped",
            "short",
            "Per second, because writing was too slow.",
            (f"rate(tollway_log_lines_dropped_total{_OF_GATEWAY}[$__rate_interval])", "{{instance}}"),
        ),
    ),
)

LIMITS = Dashboard(
    "limits",
    "Tollway: limits and budgets",
    (),
    (
        _panel(
            "Refusals before admission",
            "reqps",
            "By error code: docs/errors.md has a remedy for each.",
            (_rate_or_zero("tollway_refusals_total", "code"), "{{code}}"),
        ),
        _panel(
            "Refusals with 429",
            "reqps",
            "Rate limits, concurrency, budgets and failed authentications, by error code.",
            (
                _rate_or_zero(
                    "tollway_refusals_total", "code", '{code=~"rate_limit_exceeded|insufficient_quota|too_many_failed_authentications"}'
                ),
                "{{code}}",
            ),
        ),
        _panel(
            "Store of shared counters",
            "short",
            "1: it answers. 0: gateways decide alone, each within its share.",
            ("tollway_limits_store_available", "{{instance}}"),
        ),
        _panel(
            "Decisions over limits",
            "reqps",
            "By the store, and by gateways alone.",
            ("sum(rate(tollway_limits_decided_by_store_total[$__rate_interval]))", "store"),
            ("sum(rate(tollway_limits_decided_alone_total[$__rate_interval]))", "alone"),
        ),
        _panel(
            "Calls of the store that failed",
            "reqps",
            "Unanswered in time, answered with an error, or not made because too many waited.",
            ("sum(rate(tollway_limits_store_unanswered_total[$__rate_interval]))", "unanswered"),
            ("sum(rate(tollway_limits_store_errors_total[$__rate_interval]))", "errors"),
            ("sum(rate(tollway_limits_store_refused_total[$__rate_interval]))", "not made"),
        ),
        _panel("Longest call of the store", "s", "Between two scrapes.", ("tollway_limits_store_seconds_max", "{{instance}}")),
        _panel(
            "Leases of budgets that failed",
            "short",
            "Attempts per second. While they fail, a hard budget allows what its gateway still holds.",
            ("sum by (instance) (rate(tollway_lease_attempts_failed_total[$__rate_interval]))", "{{instance}}"),
        ),
        _panel(
            "End users that share a counter",
            "short",
            "There are too many to keep apart.",
            ("tollway_limits_end_users_together", "{{instance}}"),
        ),
    ),
)

MONEY = Dashboard(
    "money",
    "Tollway: usage, periods and reconciliation",
    (),
    (
        _panel("Billing periods overdue", "short", "They were due ten minutes ago.", ("max(tollway_control_periods_overdue)", "periods")),
        _panel(
            "Records in quarantine",
            "short",
            "They could not be rated and block the close of their period.",
            ("max by (reason) (tollway_control_records_quarantined) or vector(0)", "{{reason}}"),
        ),
        _panel(
            "Records in conflict, epochs lost",
            "short",
            "Records with the id of another event, and runs of gateways whose missing records were declared lost: both ever.",
            ("max(tollway_control_records_in_conflict)", "in conflict"),
            ("max(tollway_control_epochs_lost)", "epochs lost"),
        ),
        _panel(
            "Drift between engines and ledger",
            "short",
            "Tokens that engines counted beyond the ledger in the latest compared hour.",
            ("max by (model, counter) (tollway_reconciliation_drift_tokens) or vector(0)", "{{model}} {{counter}}"),
        ),
        _panel(
            "Drift as a part",
            "percentunit",
            "Of the tokens that engines counted.",
            ("max by (model, counter) (tollway_reconciliation_drift_ratio) or vector(0)", "{{model}} {{counter}}"),
        ),
        _panel(
            "Models by result of reconciliation",
            "short",
            "Of the latest compared hour.",
            ("max by (state) (tollway_reconciliation_models) or vector(0)", "{{state}}"),
        ),
        _panel(
            "Time since the latest success of jobs",
            "s",
            "Over all processes.",
            ("time() - max by (job) (tollway_control_job_last_success_timestamp_seconds)", "{{job}}"),
        ),
        _panel(
            "Tokens billed",
            "short",
            "Per second by billing class, over all models.",
            ("sum by (class) (rate(tollway_tokens_total[$__rate_interval]))", "{{class}}"),
        ),
    ),
)

CONTROL = Dashboard(
    "control",
    "Tollway: control",
    (),
    (
        _panel(
            "Requests",
            "reqps",
            "By part of the API.",
            ("sum by (app) (rate(tollway_control_requests_total[$__rate_interval]))", "{{app}}"),
        ),
        _panel(
            "Requests by route",
            "reqps",
            "The ten most used.",
            ("topk(10, sum by (method, route) (rate(tollway_control_requests_total[$__rate_interval])))", "{{method}} {{route}}"),
        ),
        _panel(
            "Answers of 5xx",
            "reqps",
            "Each is a defect, or a database that is away.",
            (_rate_or_zero("tollway_control_requests_total", "route", '{status=~"5.."}'), "{{route}}"),
        ),
        _panel("Refusals", "reqps", "By error code.", (_rate_or_zero("tollway_control_refusals_total", "code"), "{{code}}")),
        _panel(
            "Failed runs of jobs",
            "short",
            "Per second.",
            (_rate_or_zero("tollway_control_job_failures_total", "job"), "{{job}}"),
        ),
        _panel(
            "Duration of jobs",
            "s",
            "Of the latest run.",
            ("max by (job) (tollway_control_job_duration_seconds)", "{{job}}"),
        ),
    ),
)

DASHBOARDS = (MODELS, FLEET, GATEWAYS, LIMITS, MONEY, CONTROL)

_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def render(dashboard: Dashboard) -> str:
    """The JSON of a dashboard."""
    width = GRID_WIDTH // PANELS_IN_A_ROW
    panels = [
        {
            "id": number + 1,
            "type": "timeseries",
            "title": panel.title,
            "description": panel.text,
            "datasource": _DATASOURCE,
            "gridPos": {
                "x": number % PANELS_IN_A_ROW * width,
                "y": number // PANELS_IN_A_ROW * PANEL_HEIGHT,
                "w": width,
                "h": PANEL_HEIGHT,
            },
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
            "targets": [
                {"refId": chr(ord("A") + index), "datasource": _DATASOURCE, "expr": query.expression, "legendFormat": query.legend}
                for index, query in enumerate(panel.queries)
            ],
        }
        for number, panel in enumerate(dashboard.panels)
    ]
    page: dict[str, Any] = {
        "uid": f"tollway-{dashboard.name}",
        "title": dashboard.title,
        "tags": ["tollway"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": False,
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": [_datasource_variable(), *(_variable(variable) for variable in dashboard.variables)]},
        "panels": panels,
    }
    return json.dumps(page, indent=1) + "\n"


def _datasource_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variable(variable: Variable) -> dict[str, Any]:
    return {
        "name": variable.name,
        "label": variable.name.capitalize(),
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": f"label_values({variable.metric}, {variable.label})", "refId": variable.name},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


if __name__ == "__main__":
    DIRECTORY.mkdir(exist_ok=True)
    for dashboard in DASHBOARDS:
        (DIRECTORY / f"{dashboard.name}.json").write_text(render(dashboard), "utf-8")
