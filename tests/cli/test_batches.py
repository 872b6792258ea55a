"""`tollway batches` against a real gateway."""

import asyncio
import json
from pathlib import Path

import httpx2
import pytest

from tests.gateway.harness import KEY, UNKNOWN_KEY
from tests.gateway.test_batches import echo, line, quick_worker, serving, text, working
from tests.patience import CLIENT_SECONDS
from tollway.cli.app import run
from tollway.cli.metering import batches as commands
from tollway.settings import OperatorError

__all__ = ["quick_worker"]


async def test_batch_is_submitted_waited_for_listed_and_its_output_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(commands, "WAIT_SECONDS", 0.01)
    lines = tmp_path / "lines.jsonl"
    lines.write_bytes(text(line(0), line(1)))
    async with serving(tmp_path / "files", echo) as site, working(site):
        monkeypatch.setenv("OPENAI_BASE_URL", f"{site.running.url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)

        async def command(*arguments: str) -> tuple[int, str]:
            code = await asyncio.to_thread(run, ["batches", *arguments])
            shown = capsysbinary.readouterr()
            return code, (shown.out + shown.err).decode()

        code, shown = await command("submit", str(lines), "--wait", "-o", "json")
        submitted, shown = shown[shown.index("submitted") :], shown[: shown.index("submitted")]
        batch = json.loads(shown)
        assert submitted == f"submitted {batch['id']}\n"
        assert (code, batch["status"], batch["request_counts"]["completed"]) == (0, "completed", 2)
        code, shown = await command("output", batch["id"])
        assert code == 0 and {json.loads(each)["custom_id"] for each in shown.splitlines()} == {"c-0", "c-1"}
        code, shown = await command("list")
        assert code == 0 and batch["id"] in shown and "completed" in shown
        code, shown = await command("output", batch["id"], "--errors")
        assert code == 1 and "the batch has no errors" in shown
        code, shown = await command("cancel", batch["id"])
        assert code == 1 and "cannot be cancelled" in shown
        lines.write_bytes(text(line(0, model="absent")))
        code, shown = await command("submit", str(lines), "--wait")
        assert code == 0 and "line 1: The model does not exist" in shown
        assert (await command("show", batch["id"], "--inference-key", UNKNOWN_KEY))[0] == 1
        assert (await command("submit", str(tmp_path / "absent")))[0] == 2


def test_poll_that_fails_is_repeated_and_the_last_failure_names_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[dict[str, str] | None] = [None, None, {"id": "batch_1", "status": "completed"}]

    def ask(*_arguments: object) -> dict[str, str]:
        answer = answers.pop(0)
        if answer is None:
            raise OperatorError("cannot talk to the gateway")
        return answer

    monkeypatch.setattr(commands, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(commands, "ask_gateway", ask)
    with httpx2.Client(timeout=CLIENT_SECONDS) as gateway:
        assert commands._wait(gateway, {"id": "batch_1", "status": "validating"})["status"] == "completed"
        answers += [None] * commands.ASKED_MAX
        with pytest.raises(OperatorError) as caught:
            commands._wait(gateway, {"id": "batch_1", "status": "validating"})
    assert "batch_1" in str(caught.value.hint)
