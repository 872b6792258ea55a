"""A gateway is replaced under load, and nobody notices (figure R10 takes the same a hundred times); what a drain does."""

import asyncio
import signal
from pathlib import Path

import pytest

from reliability import load, rollouts
from reliability.bill_checks import Heard, check_bills, read_bills, read_truth, wait_until_idle
from reliability.load import Ask
from reliability.platforms import PRICES, Platform, serve
from reliability.processes import WAIT_SECONDS, Running, Start

pytestmark = pytest.mark.system

ROLLOUTS = 5


def settle(platform: Platform, running: Running, heard: list[Heard]) -> dict[str, int]:
    """End in order; every request of the engine's truth log has exactly its bill. Bills by outcome."""
    attempts = read_truth(platform.truth_log)
    assert running.stop() == 0, running.stderr.read_text()
    platform.check_all_is_shipped()
    bills = read_bills(platform.database_url)
    assert bills.keys() == attempts.keys()
    return check_bills(attempts, bills, heard, PRICES)


def test_a_gateway_is_replaced_under_load_and_nothing_fails(tmp_path: Path) -> None:
    outcome = rollouts.run(tmp_path, ROLLOUTS, seed=7)
    assert not outcome.wrong, f"{len(outcome.wrong)} wrong: {outcome.wrong[:3]}"
    assert outcome.streams and outcome.kept and outcome.bills["completed"] == len(outcome.sent.heard)


def test_a_drain_lets_streams_finish_tells_the_rest_and_hands_everything_in(start: Start, tmp_path: Path) -> None:
    words = " ".join(load.WORDS)
    short = [Ask("slow", "chat/completions", f"{words} {number}", stream=True) for number in range(12)]
    long = [Ask("slow", "chat/completions", f"{' '.join([words] * 40)} {number}", stream=True) for number in range(3)]
    with serve(start, tmp_path, environment={"TOLLWAY__GATEWAY__DRAIN_SECONDS": "4"}) as (platform, running):

        async def go() -> list[Heard]:
            asked = [asyncio.create_task(load.send(ask, platform.gateway_url, platform.tenant.api_key)) for ask in short + long]
            async with asyncio.timeout(WAIT_SECONDS):
                while len(read_truth(platform.truth_log)) < len(asked):
                    await asyncio.sleep(0.02)
                running.process.send_signal(signal.SIGTERM)
                return await asyncio.gather(*asked)

        heard = asyncio.run(go())
        assert [each.ended for each in heard[: len(short)]] == ["complete"] * len(short)
        assert [(each.status, each.ended, each.code) for each in heard[len(short) :]] == [(200, "error", "draining")] * len(long)
        assert running.process.wait(WAIT_SECONDS) == 0
        wait_until_idle(platform.truth_log)
        assert settle(platform, running, heard) == {"completed": len(short), "upstream_error": len(long)}
