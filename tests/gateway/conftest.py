"""The data plane runs on uvloop, so its tests do."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

from tollway.gateway.upstreams import upstream


@pytest.fixture(autouse=True)
def known_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are known from the first connection on, so that tests see connections used again at once."""
    monkeypatch.setattr(upstream, "PROOFS", 0)


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}
