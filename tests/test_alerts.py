"""The alert rules of `deploy/` name metrics that exist, and do what their own tests say."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
RULES = ROOT / "deploy" / "alerts.yaml"


def test_alerts_name_metrics_that_exist() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "src" / "tollway").rglob("*.py"))
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    named = {metric for rule in rules for metric in re.findall(r"tollway_\w+", rule["expr"])}
    assert named
    missing = {metric for metric in named if f'"{metric.removesuffix("_total")}"' not in source and f'"{metric}"' not in source}
    assert not missing


def test_alerts_fire_as_their_tests_say() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    done = subprocess.run([promtool, "test", "rules", "alerts.test.yaml"], cwd=RULES.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
