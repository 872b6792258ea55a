"""The page of metrics of a control process."""

import subprocess

from prometheus_client.parser import text_string_to_metric_families

from tests.control.harness import Running
from tollway.metric_table import CONTROL_METRICS


def test_page_of_control_has_metrics_of_the_table_only_and_prometheus_accepts_it(control: Running, promtool: str) -> None:
    node = control.node()
    node.get("/metrics")
    page = node.get("/metrics").text
    rows = {row.name: row for row in CONTROL_METRICS}
    families = [family for family in text_string_to_metric_families(page) if not family.name.endswith("_created")]
    assert {"tollway_control_requests", "tollway_reconciliation_models"} <= {family.name for family in families}
    for family in families:
        row = rows[family.name]
        assert (family.type, family.documentation) == (row.kind, row.text), family.name
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                assert set(sample.labels) == set(row.labels), family.name
    done = subprocess.run([promtool, "check", "metrics"], input=page.encode(), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
