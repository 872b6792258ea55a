"""Every metric of gateways and control: its name, kind, labels and meaning, in one table that exposition, docs/metrics.md and tests read.

Names follow Prometheus: base units in the name, and counters without the `_total` that the exposition adds. Labels are bounded: endpoints,
statuses, fault codes, background tasks, published models and deployments; never tenants, keys or anything a client chooses.
"""

from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """Behaviour of the values of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class MetricRow(NamedTuple):
    """A metric as operators see it. `unit`: what one unit of the value is. `labels`: names of its labels, in order."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    text: str

    @property
    def exposed_name(self) -> str:
        """The name of its samples on the page of metrics; those of a histogram have `_bucket`, `_sum` and `_count` behind it."""
        return f"{self.name}_total" if self.kind is Kind.COUNTER else self.name


def _counter(name: str, unit: str, labels: tuple[str, ...], text: str) -> MetricRow:
    return MetricRow(name, Kind.COUNTER, unit, labels, text)


def _gauge(name: str, unit: str, text: str, labels: tuple[str, ...] = ()) -> MetricRow:
    return MetricRow(name, Kind.GAUGE, unit, labels, text)


def _histogram(name: str, labels: tuple[str, ...], text: str) -> MetricRow:
    return MetricRow(name, Kind.HISTOGRAM, "seconds", labels, text)


_MODEL_LABELS = ("gen_ai_operation_name", "gen_ai_request_model")

GATEWAY_METRICS = (
    # Requests
    _counter("tollway_requests", "requests", ("endpoint", "model", "status"), "Admitted requests that ended, by the status of the answer."),
    _counter("tollway_refusals", "requests", ("code",), "Requests refused before admission, by error code."),
    _counter("tollway_outcomes", "requests", ("outcome",), "Admitted requests by how they ended."),
    _counter("tollway_tokens", "tokens", ("endpoint", "model", "class"), "Quantities used, by disjoint billing class."),
    _counter("tollway_replayed_answers", "requests", (), "Answers that were given again by idempotency key."),
    _counter("tollway_fallbacks", "requests", ("model",), "Requests that were sent on to a fallback of their model, by the fallback."),
    _counter(
        "tollway_hedges",
        "requests",
        ("model", "result"),
        "Hedged requests: won by the second attempt, lost to the first, failed where neither was answered; over_budget were not hedged.",
    ),
    _gauge("tollway_requests_running", "requests", "Requests between admission and the last byte."),
    _histogram("gen_ai_server_request_duration_seconds", _MODEL_LABELS, "Duration of admitted requests."),
    _histogram("gen_ai_server_time_to_first_token_seconds", _MODEL_LABELS, "Time from a request's arrival to its first token."),
    _histogram(
        "gen_ai_server_time_per_output_token_seconds",
        _MODEL_LABELS,
        "Time per output token after the first, of streams of two tokens or more.",
    ),
    _counter("tollway_usage_anomalies", "reports", ("kind",), "Usage reports of engines that could not be believed."),
    # Engines
    _counter("tollway_upstream_attempts", "attempts", ("deployment", "result"), "Attempts at deployments, by result (ok or a fault code)."),
    _counter("tollway_upstream_retries", "attempts", (), "Attempts after the first of a request."),
    _counter("tollway_upstream_ejections", "ejections", ("deployment", "reason"), "Ejections of deployments from selection."),
    _counter("tollway_upstream_not_ready", "changes", ("deployment",), "Times that an engine ceased to take requests by its own word."),
    _counter(
        "tollway_upstream_unsolicited",
        "connections",
        ("deployment",),
        "Connections on which an engine sent bytes that answer no request.",
    ),
    _counter("tollway_upstream_load_reports_failed", "reports", ("deployment",), "Load reports of engines that were not understood."),
    _counter(
        "tollway_upstream_cache_event_gaps", "gaps", ("deployment",), "Events of an engine's prefix cache that were lost, in a row each."
    ),
    _gauge("tollway_followed_prefixes", "prefixes", "Prefixes of prompts that engines hold by their own word."),
    _gauge(
        "tollway_upstream_info",
        "deployments",
        "Always 1; says which model, engine and region a deployment is of.",
        ("deployment", "model", "engine", "region"),
    ),
    _gauge("tollway_upstream_running", "requests", "Requests that a deployment was sent and has not ended.", ("deployment",)),
    _gauge("tollway_upstream_limit", "requests", "Most requests that a deployment is sent at a time.", ("deployment",)),
    _gauge("tollway_upstream_queued_tokens", "tokens", "Estimate of the prompt tokens that wait at a deployment.", ("deployment",)),
    _counter("tollway_upstream_chosen", "requests", ("deployment", "candidate"), "Choices of a deployment among equal ones, by its kind."),
    _gauge("tollway_upstreams_unsealable", "deployments", "Deployments whose credential this gateway cannot decrypt."),
    # Waiting and shedding
    _counter("tollway_queue_requests", "requests", ("result",), "Requests that met full deployments, by what became of them."),
    _histogram("tollway_queue_seconds", (), "Time that requests waited for a place at a deployment."),
    _gauge("tollway_queue_waiting", "requests", "Requests that wait for a place at a deployment now."),
    _gauge("tollway_queue_waiting_tokens", "tokens", "Tokens reserved by the requests that wait now."),
    _gauge("tollway_queue_oldest_wait_seconds", "seconds", "Time that the oldest waiting request has waited."),
    _gauge("tollway_shedding_part", "ratio", "Part of requests that this gateway refuses because it is overloaded, 0 to 1."),
    _counter("tollway_shedding_refused", "requests", (), "Requests refused because the gateway was overloaded."),
    # The process
    _gauge("tollway_connections", "connections", "Open connections of clients."),
    _counter("tollway_connections_refused", "connections", (), "Connections refused because there were too many."),
    _counter("tollway_connections_shed", "connections", (), "Idle connections that made way for others."),
    _gauge("tollway_internal_connections", "connections", "Open connections at the listener of health and metrics."),
    _gauge("tollway_buffered_bytes", "bytes", "Bytes of bodies and answers that this gateway holds for its clients and engines."),
    _gauge("tollway_event_loop_lag_seconds_max", "seconds", "Longest delay of the event loop since the last scrape."),
    _gauge("tollway_tasks", "tasks", "Tasks of the event loop: a few for the process, more while files, gRPC calls or sessions run."),
    _gauge(
        "tollway_certificate_expires_timestamp_seconds",
        "Unix seconds",
        "When the certificate that this gateway serves with expires, or one of its chain that expires earlier; 0 without TLS.",
    ),
    _counter("tollway_task_restarts", "restarts", ("task",), "Restarts of background tasks that ended: each is a defect."),
    _counter("tollway_callback_failures", "errors", ("place",), "Errors outside of requests and tasks, by place: each is a defect."),
    _counter("tollway_body_reader_failures", "processes", (), "Processes that read large bodies and ended unexpectedly."),
    _counter(
        "tollway_guardrail_verdicts",
        "verdicts",
        ("stage", "result"),
        "What the guardrail was asked: allowed, denied, failed (no verdict in time), too_long (not asked).",
    ),
    _histogram("tollway_guardrail_seconds", (), "Time that verdicts of the guardrail took."),
    _gauge("tollway_grpc_calls", "calls", "Requests for inference by gRPC that run."),
    _gauge("tollway_realtime_sessions", "sessions", "Realtime sessions that run."),
    _counter("tollway_response_cache_hits", "requests", (), "Requests that were answered from the cache of responses."),
    _counter("tollway_response_cache_misses", "requests", (), "Requests that asked for the cache of responses and were not in it."),
    _gauge("tollway_response_cache_bytes", "bytes", "Memory that the cache of responses takes."),
    _counter("tollway_content_log_dropped", "requests", (), "Requests whose content could not be logged."),
    _counter("tollway_stored_response_failures", "requests", (), "Stored responses that could not be stored, read or deleted."),
    _gauge("tollway_batches_running", "batches", "Batches that this gateway runs now."),
    _gauge("tollway_batch_lines_running", "requests", "Lines of batches that this gateway has sent and that have not ended."),
    _counter("tollway_batch_lines", "requests", (), "Lines of batches that were answered."),
    _counter("tollway_log_lines_dropped", "lines", (), "Log lines that were dropped because writing was too slow."),
    _counter("tollway_telemetry_spans_sent", "spans", (), "Spans that the collector of telemetry took."),
    _counter("tollway_telemetry_spans_dropped", "spans", (), "Spans that were dropped because the collector was away or too slow."),
    _counter("tollway_telemetry_traces_suppressed", "traces", (), "Traces that were not sent because there were too many in a second."),
    _counter("tollway_telemetry_pages_failed", "pages", (), "Pages of metrics that the collector did not take."),
    # Limits
    _gauge("tollway_limits_end_users_together", "end users", "End users that share one counter because there are too many to keep apart."),
    _gauge("tollway_limits_store_available", "0 or 1", "Whether the store of shared limit counters answers."),
    _gauge("tollway_limits_gateways", "gateways", "Gateways that divide the limits among themselves while the store is away."),
    _counter("tollway_limits_decided_by_store", "decisions", (), "Decisions over limits that the store took."),
    _counter("tollway_limits_decided_alone", "decisions", (), "Decisions over limits that this gateway took alone, within its share."),
    _counter("tollway_limits_store_losses", "losses", (), "Times that the store had lost its counters."),
    _counter("tollway_limits_store_unanswered", "calls", (), "Calls of the store without an answer in time."),
    _counter("tollway_limits_store_errors", "calls", (), "Calls of the store that it answered with an error."),
    _counter("tollway_limits_store_refused", "calls", (), "Calls of the store that were not made because too many waited."),
    _gauge("tollway_limits_store_seconds_max", "seconds", "Longest call of the store."),
    # Usage records and control
    _gauge("tollway_spool_writable", "0 or 1", "Whether usage can be recorded; requests are refused while it cannot."),
    _counter("tollway_spool_commits", "commits", (), "Commits of usage records to disk."),
    _counter("tollway_spool_records", "records", (), "Usage records written to disk."),
    _counter("tollway_spool_bytes", "bytes", (), "Bytes of usage records written to disk."),
    _gauge("tollway_spool_commit_seconds_max", "seconds", "Longest commit of usage records."),
    _counter("tollway_spool_refused", "records", (), "Records refused because too many waited for the disk."),
    _gauge("tollway_spool_open_requests", "requests", "Admitted requests whose end is not recorded yet."),
    _counter("tollway_shipper_bytes", "bytes", (), "Bytes of usage records that control has acknowledged."),
    _counter("tollway_shipper_attempts_failed", "attempts", (), "Attempts to hand records to control that failed."),
    _gauge("tollway_shipper_epochs_refused", "epochs", "Epochs (runs) of this gateway that control refuses; they are offered again."),
    _gauge("tollway_shipper_records_unshipped", "records", "Usage records of this run that control does not have yet."),
    _gauge("tollway_shipper_epochs_unshipped", "epochs", "Earlier epochs (runs) of this gateway whose records control has not got yet."),
    _counter("tollway_lease_attempts_failed", "attempts", (), "Attempts to obtain or settle leases of budgets that failed."),
    _gauge("tollway_snapshot_version", "version", "Version of the configuration that this gateway serves by."),
    _gauge("tollway_snapshot_age_seconds", "seconds", "Time since control last confirmed that configuration; -1 if it never has."),
)
"""Metrics of one gateway process, at `/metrics` of its internal listener."""

CONTROL_METRICS = (
    _counter("tollway_control_requests", "requests", ("app", "method", "route", "status"), "Requests answered, by route."),
    _counter("tollway_control_refusals", "requests", ("app", "code"), "Requests refused, by error code."),
    _gauge(
        "tollway_control_client_certificates_expiring",
        "certificates",
        "Active client certificates and authorities of organizations that expire within 14 days.",
    ),
    _gauge("tollway_control_epochs_lost", "epochs", "Epochs (runs) of gateways whose missing records were declared lost."),
    _gauge(
        "tollway_control_periods_overdue",
        "periods",
        "Billing periods that were due to be closed ten minutes ago: records are missing or in quarantine.",
    ),
    _gauge("tollway_control_records_quarantined", "records", "Records that could not be rated and wait for an operator.", ("reason",)),
    _gauge("tollway_control_records_in_conflict", "records", "Records with the id of another event, ever."),
    _gauge(
        "tollway_control_job_last_success_timestamp_seconds",
        "Unix seconds",
        "Latest success of a periodic job, in any process.",
        ("job",),
    ),
    _counter("tollway_control_job_failures", "runs", ("job",), "Failed runs of a periodic job in this process."),
    _gauge("tollway_control_job_duration_seconds", "seconds", "Duration of the latest run of a periodic job in this process.", ("job",)),
    _counter("tollway_control_webhook_attempts", "attempts", ("result",), "Attempts to deliver to webhooks: succeeded or failed."),
    _gauge(
        "tollway_control_organization_requests",
        "requests",
        "Requests of the latest whole hour, of the organizations with most tokens (control.metrics_organizations_max) and `other`.",
        ("organization",),
    ),
    _gauge(
        "tollway_control_organization_tokens",
        "tokens",
        "Text tokens of the latest whole hour, of the same organizations.",
        ("organization",),
    ),
    _counter(
        "tollway_control_telemetry_export_attempts",
        "attempts",
        ("result",),
        "Attempts to send to receivers of telemetry exports: succeeded or failed.",
    ),
    _counter("tollway_control_sink_records", "records", ("sink", "stream"), "Records that a sink has stored."),
    _counter(
        "tollway_control_sink_records_missed",
        "records",
        ("sink", "stream"),
        "Records that a sink never got, because it was away until they were removed; of usage, batches.",
    ),
    _gauge(
        "tollway_control_sink_waiting",
        "records",
        "Records that a sink has not got, as the latest run in this process left them; of usage, batches.",
        ("sink", "stream"),
    ),
    _counter("tollway_control_sign_ins", "sign-ins", ("method", "result"), "Sign-ins of people: succeeded, refused or throttled."),
    _counter("tollway_control_stripe_events", "events", ("result",), "Events of Stripe: recorded, known already, ignored or refused."),
    _gauge("tollway_control_tasks", "tasks", "Tasks of the event loop: a few for the process, one or two for each request that runs."),
    _counter("tollway_control_telemetry_spans_sent", "spans", (), "Spans that the collector of telemetry took."),
    _counter("tollway_control_telemetry_spans_dropped", "spans", (), "Spans that were dropped because the collector was away or too slow."),
    _counter("tollway_control_telemetry_traces_suppressed", "traces", (), "Traces that were not sent: too many in a second."),
    _counter("tollway_control_telemetry_pages_failed", "pages", (), "Pages of metrics that the collector did not take."),
    _gauge("tollway_reconciliation_models", "models", "Models by the result of the latest compared hour.", ("state",)),
    _gauge(
        "tollway_reconciliation_drift_tokens",
        "tokens",
        "Tokens counted by engines beyond the ledger, in the latest compared hour.",
        ("model", "counter"),
    ),
    _gauge("tollway_reconciliation_drift_ratio", "ratio", "Drift as a share of the tokens counted by engines.", ("model", "counter")),
)
"""Metrics of one control process, at `/metrics` of the listener for gateways."""

_BY_NAME = {row.name: row for row in (*GATEWAY_METRICS, *CONTROL_METRICS)}


def find_metric(name: str) -> MetricRow:
    """Return the row of a metric. Raises KeyError for a name that the table lacks: declare a metric here before it is counted."""
    return _BY_NAME[name]
