"""Renders docs/metrics.md: every metric of gateways and control, from their table: `python scripts/metrics_page.py`."""

from pathlib import Path

from tollway.metric_table import CONTROL_METRICS, GATEWAY_METRICS, Kind, MetricRow

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"

_BEGIN = """# Metrics

Prometheus metrics of every process, in the text format. Rendered by `make docs` from `src/tollway/metric_table.py`.

- A gateway shows its own at `GET /metrics` of `gateway.internal` (default `127.0.0.1:9090`), in
  OpenMetrics with exemplars where that is accepted.
- Control shows its own at `GET /metrics` of the listener for gateways (`control.link`).
- Both can also send them to a collector ([observability.md](observability.md)).

Labels are bounded: endpoints, statuses, error codes, background tasks, published models and deployments; never tenants, keys or anything
that a client chooses. With `control.metrics_organizations_max`, metrics of control name the organizations that use most, and
only those. `gen_ai_*` names follow the OpenTelemetry semantic conventions for generative AI, version 1.41.0. Counters begin at
0 with each process. Bills come from usage records, never from metrics.

[deploy/alerts.yaml](../deploy/alerts.yaml) has rules for alerts over them; [runbooks.md](runbooks.md) says what to do about each alert.
"""


def render() -> str:
    """The page."""
    parts = [_BEGIN]
    for title, rows in (("Gateways", GATEWAY_METRICS), ("Control", CONTROL_METRICS)):
        parts.append(f"\n## {title}\n\n| Metric | Kind | Unit | Labels | Meaning |\n| --- | --- | --- | --- | --- |\n")
        parts += [_line(row) for row in rows]
    return "".join(parts)


def _line(row: MetricRow) -> str:
    labels = ", ".join(f"`{label}`" for label in row.labels)
    suffix = " (`_bucket`, `_sum`, `_count`)" if row.kind is Kind.HISTOGRAM else ""
    return f"| `{row.exposed_name}`{suffix} | {row.kind} | {row.unit} | {labels} | {row.text} |\n"


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
