"""Real engines that end under load, killed or told to drain: another deployment serves what it can, and nothing cut short is a success."""

import asyncio
import os
import signal
from typing import Any

import pytest

from tests.engines.engine_processes import RUN
from tests.fakes import PATIENCE_SECONDS, Upstream
from tests.gateway.harness import Answer, Served, gateway, healthy, post, streamed
from tollway.domain.usage import Outcome
from tollway.gateway.relay import RelayBounds

pytestmark = pytest.mark.engines

CLIENTS, LATER = 6, 6
BOUNDS = RelayBounds(first_token_seconds=30.0, idle_seconds=10.0)
"""Deadlines short enough for streams of vLLM, which may hang when it is told to end."""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "drained"])
@pytest.mark.parametrize("name", RUN)
async def test_engine_that_ends_under_load_fails_no_request_that_another_one_can_serve(
    name: str, number: signal.Signals, tmp_path_factory: pytest.TempPathFactory
) -> None:
    second = Upstream(healthy("second"))
    body: Any = streamed(max_tokens=150) | {"messages": [{"role": "user", "content": "Count from 1 to 100, in words."}]}
    async with second.listening():
        with RUN[name](tmp_path_factory.mktemp(name)) as engine:
            served = Served([engine.url, second.url], engine=engine.kind, upstream_model=engine.model)
            async with gateway({"m": served}, bounds=BOUNDS) as running:
                ended = asyncio.Event()
                answers: list[Answer] = []

                async def ask() -> None:
                    while not ended.is_set():
                        answers.append(await post(running.port, body))

                clients = [asyncio.ensure_future(ask()) for _ in range(CLIENTS)]
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while not await asyncio.to_thread(engine.count_busy):
                        await asyncio.sleep(0.05)
                if number is signal.SIGKILL:
                    os.killpg(engine.process.pid, number)
                else:
                    engine.process.send_signal(number)
                ended.set()
                for _ in range(LATER):
                    later = await post(running.port, streamed(max_tokens=2))
                    assert later.status == 200 and later.events()[-1] == "[DONE]", later.body
                await asyncio.gather(*clients)
                finals = running.sink.finals
        assert len(finals) == len(answers) + LATER, "each request is billed once"
        whole = [answer for answer in answers if answer.events()[-1:] == ["[DONE]"]]
        assert all(answer.status == 200 and "error" not in answer.events()[-2] for answer in whole)
        assert all("error" in answer.events()[-1] for answer in answers if answer not in whole)
        assert sum(final.outcome is Outcome.COMPLETED for final in finals) == LATER + len(whole)
        if number is signal.SIGKILL:
            assert second.asked, "the other deployment took over"
