"""The units of `deploy/systemd` are valid, sealed off, and run commands that exist; rules of autoscaling read metrics that exist."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tollway.metric_table import find_metric

UNITS = sorted((Path(__file__).parents[1] / "deploy" / "systemd").glob("*.service"))
EXPOSURE_MAX = 30
"""In tenths, as `systemd-analyze security` counts it: services are 96 without any restriction."""


def command_of(unit: Path) -> list[str]:
    """The words behind `tollway` in the command of a unit."""
    (line,) = re.findall(r"^ExecStart=/opt/tollway/bin/tollway (.+)$", unit.read_text(), re.MULTILINE)
    return str(line).split()


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_unit_runs_a_command_whose_options_exist(unit: Path) -> None:
    words = command_of(unit)
    page = (Path(__file__).parents[1] / "docs" / "cli.md").read_text()
    (section,) = re.findall(rf"^## {words[0]}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert [option for option in words if option.startswith("--") and f"`{option}`" not in section] == []


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_accepts_the_unit_and_finds_it_sealed_off(unit: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not installed")
    fitted = tmp_path / unit.name
    fitted.write_text(unit.read_text().replace("/opt/tollway/bin/tollway", sys.executable))
    verified = subprocess.run([analyze, "verify", "--man=no", str(fitted)], capture_output=True, text=True, timeout=60)
    assert verified.returncode == 0 and unit.name not in verified.stderr, verified.stderr
    command = [analyze, "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", "--no-pager", str(fitted)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_rule_of_autoscaling_reads_metrics_and_labels_that_gateways_have() -> None:
    rule = yaml.safe_load((Path(__file__).parents[1] / "deploy" / "autoscaling" / "keda.yaml").read_text())
    queries = [trigger["metadata"]["query"] for trigger in rule["spec"]["triggers"]]
    assert len(queries) == 2
    for query in queries:
        names = set(re.findall(r"\btollway_\w+", query))
        assert {"deployment"} < {label for name in names for label in find_metric(name).labels} and "tollway_upstream_info" in names
        for label in re.findall(r"\{(\w+)=", query):
            assert label in find_metric("tollway_upstream_info").labels
