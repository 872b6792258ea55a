"""What every test may rely on: how properties are searched, and which tests need a PostgreSQL."""

import os

import pytest
from hypothesis import HealthCheck, settings

# No timed assertion, not even Hypothesis' own: a busy machine must not fail a test. A failure prints what replays it.
settings.register_profile("tollway", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tollway")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `postgres` where `make test` (or the caller) offers no server to run it on."""
    if "TOLLWAY_TEST_POSTGRES" in os.environ:
        return
    for item in items:
        if item.get_closest_marker("postgres"):
            item.add_marker(pytest.mark.skip(reason="TOLLWAY_TEST_POSTGRES is not set; `make test` starts a PostgreSQL"))
