"""The alert rules of `deploy/` name metrics that exist, and do what their own tests say."""

import re
import subprocess
from pathlib import Path

import yaml

from tollway.metric_table import CONTROL_METRICS, GATEWAY_METRICS, Kind

ROOT = Path(__file__).parents[1]
RULES = ROOT / "deploy" / "alerts.yaml"


def read_rules() -> list[dict[str, str]]:
    """The recording and alert rules."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_rules_name_metrics_that_exist() -> None:
    samples = {row.exposed_name for row in (*GATEWAY_METRICS, *CONTROL_METRICS)}
    samples |= {f"{row.name}_bucket" for row in GATEWAY_METRICS if row.kind is Kind.HISTOGRAM}
    rules = read_rules()
    named = {metric for rule in rules for metric in re.findall(r"\b(?:tollway|gen_ai_server)_\w+", rule["expr"])}
    assert named and not named - samples
    recorded = {rule["record"] for rule in rules if "record" in rule}
    assert not {name for rule in rules for name in re.findall(r"\btollway:[\w:]+", rule["expr"])} - recorded


def test_every_alert_has_a_runbook_whose_commands_exist() -> None:
    page = (ROOT / "docs" / "runbooks.md").read_text()
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == [rule["alert"] for rule in read_rules() if "alert" in rule]
    commands = (ROOT / "docs" / "cli.md").read_text()
    for command in re.findall(r"`tollway ([a-z -]+[a-z])", page):
        words = command.split(" --")[0]
        assert f"**`tollway {words} " in commands or f"**`tollway {words}`" in commands, command


def test_alerts_fire_as_their_tests_say(promtool: str) -> None:
    done = subprocess.run([promtool, "test", "rules", "alerts.test.yaml"], cwd=RULES.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
