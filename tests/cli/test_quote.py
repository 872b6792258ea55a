"""`tollway quote` against a real gateway."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.gateway.harness import KEY, UNKNOWN_KEY, chat, gateway
from tollway.cli.app import run
from tollway.domain.limits import Limits


async def test_quote_prints_cost_and_what_would_refuse_the_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = tmp_path / "request.json"
    body.write_text(json.dumps(chat(max_tokens=50)))
    async with gateway({}, limits=Limits(output_tokens_per_minute=40)) as running:
        command = ["quote", str(body), "--gateway-url", f"http://127.0.0.1:{running.port}/v1", "--inference-key"]
        assert await asyncio.to_thread(run, [*command, KEY]) == 0
        shown = capsys.readouterr().out
        assert await asyncio.to_thread(run, [*command, KEY, "-o", "json"]) == 0
        quoted = json.loads(capsys.readouterr().out)
        assert await asyncio.to_thread(run, [*command, UNKNOWN_KEY]) == 1
        refused = capsys.readouterr().err
    assert "output: 50 tokens expected, at most 50" in shown
    assert "refused now: The limit of 40 output tokens per minute has 40 left, the request needs 50." in shown
    assert quoted["is_admitted"] is False
    assert "API key" in refused


async def test_quote_takes_address_and_key_from_the_variables_of_the_sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = tmp_path / "request.json"
    body.write_text(json.dumps(chat(max_tokens=50)))
    async with gateway({}) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{running.port}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert await asyncio.to_thread(run, ["quote", str(body)]) == 0


def test_quote_without_an_address_or_a_key_names_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert run(["quote", str(tmp_path / "request.json")]) == 2
    assert "OPENAI_BASE_URL" in capsys.readouterr().err


def test_quote_of_an_endpoint_or_a_file_that_does_not_exist_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["quote", "--gateway-url", "http://127.0.0.1:9", "--inference-key", "x", str(tmp_path / "absent.json")]
    assert run(command) == 2
    assert "cannot read" in capsys.readouterr().err
    assert run([*command, "--endpoint", "images"]) == 2
    assert "there is no endpoint images" in capsys.readouterr().err
