"""Run docs/tutorial.md as a newcomer follows it with other ports and a month that ends at once."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reliability.processes import ENVIRONMENT, WAIT_SECONDS, Start

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / "tutorial.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
LATER = {"PYTHONPATH": f"{ROOT / 'src'}:{Path(__file__).parent / 'clock_ahead'}", "CLOCK_AHEAD_SECONDS": str(40 * 86_400)}
PORTS = ("--listen", "127.0.0.1:0", "--internal", "127.0.0.1:0", "--control-listen", "127.0.0.1:0", "--link", "127.0.0.1:0")


def find_url(path: Path) -> str:
    """Return the address in the ready line that a process has printed to a file, or nothing."""
    found = re.search(r"http://127\.0\.0\.1:\d+", path.read_text())
    return found.group() if found else ""


def test_tutorial_blocks_run_as_printed_until_the_first_closed_month(start: Start, tmp_path: Path) -> None:
    """One test, because each block builds on the one before it."""
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    (tmp_path / "verifier").symlink_to(ROOT / "verifier")
    setup, simulate, serve, *blocks = BLOCKS
    assert serve == "tollway serve\n" and simulate.startswith("tollway simulate ")
    engine_output = tmp_path / "engine.txt"
    with engine_output.open("wb") as output:
        command = [sys.executable, "-m", *simulate.split()]
        engine = subprocess.Popen([each.replace(":8000", ":0") for each in command], stdout=output, env=ENVIRONMENT)
    try:
        running = start("serve", *PORTS, directory=tmp_path / "tutorial-data")
        running.wait_for_file("addresses.json")
        running.wait_until(lambda: find_url(engine_output))

        def run(code: str, *, again: bool = False, later: bool = False) -> str:
            """Run a block in a shell of its own; returns what it printed. `again`: until it succeeds."""
            addresses = running.wait_for_file("addresses.json")
            there = {"http://127.0.0.1:8000": find_url(engine_output), "http://127.0.0.1:8080": addresses["gateway_url"]}
            for printed, actual in there.items():
                code = code.replace(printed, actual)
            deadline = time.monotonic() + WAIT_SECONDS
            while True:
                ran = subprocess.run(
                    ["bash", "-euo", "pipefail", "-c", setup + code],
                    cwd=tmp_path,
                    env=bare() | (LATER if later else {}),
                    capture_output=True,
                    text=True,
                    timeout=5 * WAIT_SECONDS,
                )
                if ran.returncode == 0 or not again or time.monotonic() > deadline:
                    assert ran.returncode == 0, (code, ran.stdout, ran.stderr)
                    return ran.stdout
                time.sleep(0.5)

        describe, give_key, ask, look, this_month, close, correct, audit = blocks
        assert "acme" in run(describe)
        run(give_key)
        assert "chat.completion" in run(ask, again=True)  # until the gateway has heard of the key
        assert "echo" in run(look, again=True)
        assert "everything agrees" in run(this_month)

        assert running.stop() == 0
        running = start("serve", *PORTS, directory=tmp_path / "tutorial-data", env=LATER)
        running.wait_for_file("addresses.json")
        closed = run(close, again=True, later=True)  # until the new run of the gateway has reported
        assert "hash" in closed and "1 events" in closed
        corrected = run(correct, later=True)
        assert "0.000001" in corrected and "everything agrees" in corrected
        assert run(audit, later=True)
    finally:
        engine.terminate()
        engine.wait(WAIT_SECONDS)


def bare() -> dict[str, str]:
    """Return the environment of a newcomer, who has set nothing."""
    return {name: value for name, value in ENVIRONMENT.items() if not name.startswith(("OPENAI_", "TOLLWAY_"))}
