"""Deployments that follow the sources of a fleet, and those that an operator drains."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.control.catalog.test_catalog import make_model
from tests.control.harness import Running
from tollway.cli.app import run


def test_fleet_follows_its_source_keeps_what_an_operator_drained_and_survives_a_source_that_breaks(
    control: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def do(*arguments: str, code: int = 0) -> list[Any]:
        assert run([*arguments, "--control-url", control.url, "--key", control.platform_key]) == code, capsys.readouterr()
        return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]

    def discover(targets: str, code: int = 0) -> list[tuple[str, str]]:
        path.write_text(targets)
        return [
            (line["event"], line["level"]) for line in do("deployments", "discover", "-f", str(fleet), "--once", "-o", "json", code=code)
        ]

    def list_deployments() -> dict[str, tuple[int, str | None]]:
        rows = control.operator().get("/v1/platform/deployments", params={"model": "discovered", "limit": 100}).json()["data"]
        ids.update({row["base_url"]: row["id"] for row in rows})
        return {row["base_url"]: (row["weight"], row["region"]) for row in rows}

    ids: dict[str, str] = {}
    path, fleet = tmp_path / "targets.json", tmp_path / "fleet.yaml"
    make_model(control, "discovered")
    fleet.write_text(f"discovered: [{{engine: vllm, upstream_model: u, region: eu, weight: 3, file: {path}}}]")
    added = discover('[{"targets": ["10.0.0.1:80", "10.0.0.2:80"]}]')
    assert added == [("deployment_added", "info")] * 2
    assert list_deployments() == {"http://10.0.0.1:80": (3, "eu"), "http://10.0.0.2:80": (3, "eu")}
    do("deployments", "drain", ids["http://10.0.0.2:80"])
    assert discover('[{"targets": ["10.0.0.3:80", "10.0.0.2:80"]}]') == [("deployment_added", "info"), ("deployment_archived", "info")]
    assert list_deployments() == {"http://10.0.0.2:80": (0, "eu"), "http://10.0.0.3:80": (3, "eu")}
    for wrong in ("", "[]", '[{"targets": ["10.0.0.2:80", "169.254.169.254:80"]}]', '[{"targets": ["10.0.0.2:80", "1.1.1.1:80"]}]'):
        assert discover(wrong, code=1) == [("fleet_kept", "error")]
        assert len(list_deployments()) == 2
    do("deployments", "undrain", ids["http://10.0.0.2:80"], "--weight", "5")
    assert list_deployments()["http://10.0.0.2:80"] == (5, "eu")
    fleet.write_text(f"nowhere: [{{engine: vllm, upstream_model: u, file: {path}}}]")
    assert discover('[{"targets": ["10.0.0.1:80"]}]', code=1) == [("fleet_kept", "error")]
    fleet.write_text("discovered: [{engine: warp, upstream_model: u, file: x}]")
    assert run(["deployments", "discover", "-f", str(fleet), "--once"]) == 2
    assert "warp" in capsys.readouterr().err
