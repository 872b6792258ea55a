"""The README as a newcomer uses it: every block of code runs as it is printed."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reliability.processes import ENVIRONMENT, WAIT_SECONDS, Demo, Start, read_demo

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
ONLINE = [block for block in BLOCKS if "verify" not in block[1]]
"""Blocks for while the demo runs; the others come after it has stopped."""

FIRST_LINE = ". tollway-data/demo.env"


@pytest.fixture(scope="module")
def readme_demo(start: Start) -> Iterator[Demo]:
    """The demo, whose parent directory looks like a checkout: .venv and tollway-data are where the README expects them."""
    demo = read_demo(start("demo", "--port", "0", "--control-port", "0", "--engine", "sim"))
    checkout = demo.running.directory.parent
    (checkout / "tollway-data").symlink_to(demo.running.directory)
    (checkout / ".venv").symlink_to(Path(sys.executable).parents[1])
    yield demo


def run_block(demo: Demo, language: str, code: str, **variables: str) -> str:
    """Run a block in a shell of its own that has sourced the demo's variables; returns what it printed."""
    lines = f'{FIRST_LINE}; exec .venv/bin/python -c "$CODE"' if language == "python" else code
    bare = {name: value for name, value in ENVIRONMENT.items() if not name.startswith(("OPENAI_", "TOLLWAY_"))}
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", lines],
        cwd=demo.running.directory.parent,
        env={**bare, "CODE": code, **variables},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert ran.returncode == 0, (code, ran.stdout, ran.stderr)
    return ran.stdout


def test_readme_blocks_run_as_printed(readme_demo: Demo) -> None:
    """One test, because each block builds on the one before it."""
    assert [language for language, _ in ONLINE] == ["sh", "python", "sh", "python"]
    (_, curl), (_, sdk), (_, commands), (_, admin) = ONLINE
    assert "data: [DONE]" in run_block(readme_demo, "sh", curl)
    assert run_block(readme_demo, "python", sdk).strip()

    def is_counted() -> bool:
        return re.search(rf"^{readme_demo.model} +2 ", run_block(readme_demo, "sh", commands), re.MULTILINE) is not None

    readme_demo.running.wait_until(is_counted)
    assert "EUR" in run_block(readme_demo, "sh", commands)
    assert "num_model_requests=2" in run_block(readme_demo, "python", admin)

    (variables,) = re.findall(rf"{re.escape(FIRST_LINE)}  # (.*)", README)
    written = (readme_demo.running.directory / "demo.env").read_text()
    assert variables.split(", ") == re.findall(r"^export (\w+)=", written, re.MULTILINE)

    assert readme_demo.running.stop() == 0
    assert not (readme_demo.running.directory / "demo.env").exists()
    for language, offline in BLOCKS[len(ONLINE) :]:
        assert "everything agrees" in run_block(readme_demo, language, offline)


def test_readme_names_only_commands_and_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^ +)make ([a-z-]+)", README, re.MULTILINE)) <= targets
    for command in set(re.findall(r"`tollway ([a-z]+(?: [a-z]+)?)", README)):
        ran = subprocess.run(
            [sys.executable, "-m", "tollway", *command.split(), "--help"], env={**os.environ, **ENVIRONMENT}, capture_output=True
        )
        assert ran.returncode == 0, command
