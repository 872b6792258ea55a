"""Fixtures and options of all tests: how properties are searched, which tests need a PostgreSQL, and how much was tried."""

import functools
import os
import shutil
from collections import Counter
from collections.abc import Callable

import httpcore2
import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ("tests.native_build", "tests.storage.fixtures")

# No timed assertion, not even Hypothesis' own: a busy machine must not fail a test. A failure prints what replays it.
settings.register_profile("tollway", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tollway")


# Each HTTP client, those in the SDKs too, would read some 140 authorities that no test needs: 20 to 40 ms of CPU, more than most requests.
httpcore2.default_ssl_context = functools.cache(httpcore2.default_ssl_context)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `postgres` where `make test` (or the caller) offers no server to run it on."""
    if "TOLLWAY_TEST_POSTGRES" in os.environ:
        return
    for item in items:
        if item.get_closest_marker("postgres"):
            item.add_marker(pytest.mark.skip(reason="TOLLWAY_TEST_POSTGRES is not set; `make test` starts a PostgreSQL"))


@pytest.fixture(scope="session")
def promtool() -> str:
    """The path of Prometheus' checker. `make test` installs it; without it the test is skipped."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    return found


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Callable[[str, int], None]:
    """To be told what was tried, and how often; the sum stands at the end of the run, whichever worker tried it."""

    def note(what: str, count: int) -> None:
        request.node.user_properties.append(("tried", (what, count)))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was tried, bad inputs and histories: a promise of "never" is worth the number behind it."""
    told: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                for name, value in report.user_properties:
                    if name == "tried":
                        told[value[0]] += value[1]
    if told:
        terminalreporter.section("what was tried")
        for what, count in sorted(told.items()):
            terminalreporter.write_line(f"{count:>10,} {what}")
