"""Counters of engines and bills, of real processes: equal to the token, and apart by exactly what was done behind our back."""

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from reliability import load
from reliability.bill_checks import read_truth, wait_until_idle
from reliability.load import Ask
from reliability.platforms import Platform, serve
from reliability.processes import WAIT_SECONDS, Start

pytestmark = pytest.mark.system

EVERY_SECOND = {"TOLLWAY__CONTROL__RECONCILE__INTERVAL_SECONDS": "1"}


def compare(platform: Platform) -> dict[str, int | None]:
    """Ledger and engine, over all models and hours of the test: it may run across the edge of an hour."""
    with httpx2.Client(base_url=platform.control_url, timeout=WAIT_SECONDS, trust_env=False) as http:
        answer = http.get("/v1/platform/reconciliation", headers={"authorization": f"Bearer {platform.platform_key}"})
    assert answer.status_code == 200, answer.text
    sums: dict[str, int | None] = {"resets": 0}
    for row in answer.json()["data"]:
        sums["resets"] = (sums["resets"] or 0) + sum(line["resets"] for line in row["engines"])
        for side in ("prompt", "output"):
            for name in ("ledger", "engine"):
                value, before = row[side][name], sums.get(f"{side}_{name}")
                sums[f"{side}_{name}"] = before if value is None else (before or 0) + value
    return sums


def wait_for(platform: Platform, condition: Callable[[dict[str, int | None]], bool]) -> dict[str, int | None]:
    """The comparison, once it is as it should be."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition(sums := compare(platform)):
        assert time.monotonic() < deadline, sums
        time.sleep(0.2)
    return sums


def agree(sums: dict[str, int | None]) -> bool:
    return sums["prompt_engine"] == sums["prompt_ledger"] and sums["output_engine"] == sums["output_ledger"]


def test_engine_and_ledger_agree_to_the_token_until_somebody_goes_past_the_gateway(start: Start, tmp_path: Path) -> None:
    with serve(start, tmp_path, environment=EVERY_SECOND) as (platform, running):
        wait_for(platform, lambda sums: sums.get("prompt_engine") is not None)

        def use(seed: int, count: int) -> None:
            asks = [
                Ask(("echo", "thinker")[number % 2], "chat/completions", f"Toll {seed} {number % 5} " * 9, stream=number % 3 > 0)
                for number in range(count)
            ]
            asks += [Ask("echo", "embeddings", f"Where {seed} {number}", stream=False) for number in range(5)]
            heard = asyncio.run(load.send_all(asks, platform.gateway_url, platform.tenant.api_key, per_second=60))
            assert {each.ended for each in heard} == {"complete"}
            wait_until_idle(platform.truth_log)

        use(1, 30)
        platform.wait_until_billed(35)
        sums = wait_for(platform, agree)
        truth = [attempt for attempts in read_truth(platform.truth_log).values() for attempt in attempts]
        assert sums["prompt_ledger"] == sum(attempt.prompt for attempt in truth)
        assert sums["output_ledger"] == sum(attempt.generated or 0 for attempt in truth)
        assert platform.engine.end(signal.SIGTERM) == 0
        platform.engine.start()
        use(2, 10)  # fewer: an engine that did as much again between two readings would look as if it had done nothing
        platform.wait_until_billed(50)
        sums = wait_for(platform, lambda sums: agree(sums) and sums["resets"] == 1)
        asked = {"model": "sim-echo", "messages": [{"role": "user", "content": "Let me pass for nothing"}], "max_tokens": 11}
        answer = httpx2.post(engine_url(platform) + "/v1/chat/completions", json=asked, timeout=WAIT_SECONDS, trust_env=False).json()
        used = answer["usage"]
        after = wait_for(platform, lambda sums: not agree(sums) and sums["output_engine"] != sums["output_ledger"])
        assert (after["prompt_ledger"], after["output_ledger"]) == (sums["prompt_ledger"], sums["output_ledger"])
        assert (after["prompt_engine"] or 0) - (after["prompt_ledger"] or 0) == used["prompt_tokens"]
        assert (after["output_engine"] or 0) - (after["output_ledger"] or 0) == used["completion_tokens"]
        assert running.stop() == 0


def engine_url(platform: Platform) -> str:
    """Address of the engine, for those who go past the gateway."""
    arguments = list(platform.engine.arguments)
    return f"http://{arguments[arguments.index('--listen') + 1]}"
