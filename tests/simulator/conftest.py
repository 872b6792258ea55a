"""Simulators for tests: one to share where nothing but the request matters, and a factory for special ones."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.simulator.running import Running, simulator


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts a simulator with the given settings; it is drained and checked at the end of the test."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(simulator(tmp_path / "truth.jsonl", **settings))


@pytest.fixture
def sim(start: Callable[..., Running]) -> Running:
    """A healthy, fast simulator."""
    return start()
