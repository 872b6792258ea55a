"""Fixtures that start real processes on loopback. Every process ends with its tests, and so do its children."""

from collections.abc import Iterator

import pytest

from reliability.processes import Demo, Start, read_demo, starting


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """`start("serve", "--listen", ..., directory=None, env=None)` runs `tollway serve --data-dir DIRECTORY ...`."""
    with starting(tmp_path_factory.mktemp("processes")) as start:
        yield start


@pytest.fixture(scope="module")
def demo(start: Start) -> Demo:
    """One demo for all tests of a module."""
    return read_demo(start("demo", "--port", "0", "--control-port", "0", "--engine", "sim"))
