"""Fixtures that start real processes on loopback. Every process ends with its tests, and so do its children."""

from collections.abc import Iterator

import pytest

from reliability.processes import Demo, Start, read_demo, starting

SLOWEST = (
    "test_outage.py",
    "test_commands.py",
    "test_crashes.py",
    "test_bad_input.py",
    "test_restore.py",
    "test_demo.py",
    "test_proxies.py",
    "test_background.py",
    "test_bad_disks.py",
    "test_budgets.py",
    "test_rollout.py",
)
"""Files that take most of the time, the longest first. A worker runs whole files: one that began last would keep the others waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the slowest files begin first. The tests of a file keep their order."""
    places = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(SLOWEST)) if item.path.parent.name == "system" else len(SLOWEST))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """`start("serve", "--listen", ..., directory=None, env=None)` runs `tollway serve --data-dir DIRECTORY ...`."""
    with starting(tmp_path_factory.mktemp("processes")) as start:
        yield start


@pytest.fixture(scope="module")
def demo(start: Start) -> Demo:
    """One demo for all tests of a module."""
    return read_demo(start("demo", "--port", "0", "--control-port", "0", "--engine", "sim"))
