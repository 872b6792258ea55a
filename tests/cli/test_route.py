"""`tollway route` against a real gateway."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.gateway.harness import NOWHERE, Served, gateway
from tollway.cli.app import run


async def test_route_explain_prints_rank_and_costs_of_each_deployment(capsys: pytest.CaptureFixture[str]) -> None:
    async with gateway({"m": Served([NOWHERE, NOWHERE])}) as running:
        command = ["route", "explain", "m", "--prompt-tokens", "600", "--internal-url", f"http://127.0.0.1:{running.internal_port}"]
        assert await asyncio.to_thread(run, command) == 0
        shown = capsys.readouterr().out
        assert await asyncio.to_thread(run, [*command, "-o", "json"]) == 0
        rows = json.loads(capsys.readouterr().out)["deployments"]
        assert await asyncio.to_thread(run, [*command[:2], "unknown", *command[3:]]) == 1
        refused = capsys.readouterr().err
    first, second = running.plane.upstreams.of("m")
    assert [line.split()[:2] for line in shown.splitlines()[1:]] == [["1", first.deployment.id], ["2", second.deployment.id]]
    assert [row["cost"] for row in rows] == 2 * [{"home": 300, "other": 600}]
    assert "no deployment serves this model" in refused


async def test_route_explain_finds_the_gateway_of_the_data_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with gateway({"m": Served([NOWHERE])}) as running:
        addresses = {"internal_url": f"http://127.0.0.1:{running.internal_port}"}
        (tmp_path / "addresses.json").write_text(json.dumps(addresses))
        assert await asyncio.to_thread(run, ["route", "explain", "m", "--data-dir", str(tmp_path)]) == 0
    assert running.plane.upstreams.of("m")[0].deployment.id in capsys.readouterr().out


def test_route_explain_without_a_gateway_names_the_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["route", "explain", "m", "--internal-url", NOWHERE]) == 1
    assert NOWHERE in capsys.readouterr().err
