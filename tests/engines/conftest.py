"""The data plane runs on uvloop, so it does here; and each real engine runs once for all its tests."""

import asyncio
from collections.abc import Callable, Iterator, Mapping

import pytest
import uvloop

from tests.engines.engine_processes import RUN, RealEngine


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="module", params=RUN)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngine]:
    """Each real engine in turn."""
    with RUN[request.param](tmp_path_factory.mktemp(request.param)) as running:
        yield running
