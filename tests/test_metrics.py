"""The table of metrics is what gateways and control show, no more and no less."""

import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tollway.metric_table import CONTROL_METRICS, GATEWAY_METRICS, Kind, find_metric
from tollway.telemetry import Metrics, UpstreamState

ROOT = Path(__file__).parents[1]
DATABASE_ROLES = {"tollway_owner", "tollway_platform", "tollway_tenant"}
"""Names in pages that are no metrics."""
TABLE = ROOT / "src" / "tollway" / "metric_table.py"


def full_metrics() -> Metrics:
    """Metrics of a gateway with a sample in every metric that is not read at scrape, and 1 in each that is."""
    metrics = Metrics()
    found = metrics.of_model("chat/completions", "m")
    found.statuses[200] = 1
    for histogram in (found.duration, found.first_token, found.output_token, metrics.queue_seconds):
        histogram.observe(0.02)
    for table in (
        metrics.refusals,
        metrics.outcomes,
        metrics.anomalies,
        metrics.unsolicited,
        metrics.not_ready,
        metrics.load_reports_failed,
    ):
        metrics.count(table, "x")
    for table in (metrics.load_reports_failed, metrics.task_restarts, metrics.callback_failures, metrics.queue_results):
        metrics.count(table, "x")
    metrics.attempted("dep_1", "ok")
    metrics.count_ejection("dep_1", "timeout")
    metrics.list_upstreams = lambda: [UpstreamState("dep_1", "m", "vllm", "eu", 1, 2, 3.0, [("home", 1)])]
    shown = {family.name for family in text_string_to_metric_families(metrics.render().decode())}
    for row in GATEWAY_METRICS:
        if row.name not in shown:
            metrics.expose(row.name, lambda: 1.0)
    return metrics


def test_every_metric_of_the_table_is_counted_somewhere() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "src" / "tollway").rglob("*.py") if path != TABLE)
    assert [row.name for row in (*GATEWAY_METRICS, *CONTROL_METRICS) if f'"{row.name}"' not in source] == []


def test_page_of_a_gateway_has_kind_text_and_labels_of_the_table() -> None:
    families = {family.name: family for family in text_string_to_metric_families(full_metrics().render().decode())}
    assert set(families) == {row.name for row in GATEWAY_METRICS}
    for row in GATEWAY_METRICS:
        family = families[row.name]
        assert (family.type, family.documentation) == (row.kind, row.text), row.name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(row.labels), row.name


def test_metric_that_the_table_lacks_cannot_be_shown() -> None:
    with pytest.raises(KeyError):
        Metrics().expose("tollway_unknown", lambda: 0.0)


def test_names_end_as_their_kind_demands() -> None:
    rows = (*GATEWAY_METRICS, *CONTROL_METRICS)
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert find_metric(row.name) is row
        assert re.fullmatch(r"(tollway|gen_ai_server)_[a-z_]+[a-z]", row.name) and not row.name.endswith("_total"), row.name
        assert row.text.endswith("."), row.name
        if row.kind is Kind.HISTOGRAM:
            assert row.name.endswith("_seconds")


def test_pages_name_metrics_as_they_are_shown() -> None:
    rows = (*GATEWAY_METRICS, *CONTROL_METRICS)
    shown = {row.exposed_name for row in rows} | {f"{row.name}_bucket" for row in rows if row.kind is Kind.HISTOGRAM}
    for page in (ROOT / "docs").glob("*.md"):
        named = set(re.findall(r"`(tollway_\w+)`", page.read_text()))
        assert named - DATABASE_ROLES <= shown, page.name


def test_prometheus_finds_nothing_to_complain_about(promtool: str) -> None:
    done = subprocess.run([promtool, "check", "metrics"], input=full_metrics().render(), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
