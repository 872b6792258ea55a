"""The page of metrics of a control process."""

import subprocess
from types import SimpleNamespace
from typing import cast

from prometheus_client.parser import text_string_to_metric_families

from tests.control.harness import Running
from tests.control.metering.test_collect import take
from tests.link.samples import EPOCH, ORGANIZATION, OTHER_ORGANIZATION, OTHER_PRICE, exchanges, frames
from tollway.control.api.database_figures import DatabaseFigures
from tollway.control.plane import ControlPlane
from tollway.metric_table import CONTROL_METRICS
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive


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


def test_organizations_are_named_up_to_the_setting_and_the_rest_is_one(database: Database, archive: Archive) -> None:
    hour = EPOCH - EPOCH % 3_600_000_000
    theirs = {"organization_id": OTHER_ORGANIZATION, "price_version": OTHER_PRICE.id}
    take(database, archive, frames([*exchanges([1, 2]), *exchanges([3], **theirs), *exchanges([4], test=True)]))

    def read(count_max: int, now: int) -> dict[tuple[str, str], float]:
        parts = SimpleNamespace(database=database, close_after_days=None, metrics_organizations_max=count_max, now=lambda: now)
        families = list(DatabaseFigures(cast(ControlPlane, parts)).collect())
        return {
            (family.name.rsplit("_", 1)[1], sample.labels["organization"]): sample.value
            for family in families
            if family.name.startswith("tollway_control_organization_")
            for sample in family.samples
        }

    assert read(1, hour + 3_700_000_000) == {
        ("requests", ORGANIZATION): 2, ("requests", "other"): 1, ("tokens", ORGANIZATION): 308, ("tokens", "other"): 154,
    }  # fmt: skip
    assert read(2, hour + 3_700_000_000)["requests", OTHER_ORGANIZATION] == 1
    assert read(2, hour + 7_300_000_000) == {("requests", "other"): 0, ("tokens", "other"): 0}, "an hour later"
    assert read(0, hour + 3_700_000_000) == {}
