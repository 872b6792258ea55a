"""A gateway is replaced under load, and nobody notices: no connection refused or reset, no request failed, no bill missing.

CI replaces it ROLLOUTS times. To see a hundred: `TOLLWAY_TEST_ROLLOUTS=100 pytest -s tests/system/test_rollout.py -k replaced`."""

import asyncio
import itertools
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from reliability import load
from reliability.judging import Heard, judge, lines_of_log, read_bills, read_truth, wait_until_idle
from reliability.load import Ask
from reliability.platforms import PRICES, Platform, serve
from reliability.running import WAIT_SECONDS, Running, Start, is_alive

pytestmark = pytest.mark.system

ROLLOUTS = int(os.environ.get("TOLLWAY_TEST_ROLLOUTS", "5"))
PER_SECOND = 40
KEPT = 4
"""Connections that are kept open and used again and again, as SDKs do; they end only where the gateway says so."""
KEPT_PAUSE_SECONDS = 0.3
"""Between two requests on one of them, at most: what rests for longer than a second may be closed by a gateway that leaves."""


def make_asks(seed: int) -> list[Ask]:
    """The usual mix; every third is a stream, and those take a second or two, longer than it takes to replace a gateway. Nobody
    leaves early."""
    asks = [replace(ask, leaves_after=None) for ask in load.make_asks(600, seed)]
    return [replace(ask, model="slow") if ask.stream else ask for ask in asks]


def roll(running: Running) -> None:
    """Replace the gateway ROLLOUTS times; each time the one before must have gone."""
    for done in range(ROLLOUTS):
        running.process.send_signal(signal.SIGHUP)
        running.wait_until(lambda done=done: len(list_replaced(running)) > done)  # type: ignore[misc]
        old = list_replaced(running)[-1]["old_pid"]
        running.wait_until(lambda old=old: not is_alive(old))  # type: ignore[misc]


def list_replaced(running: Running) -> list[dict[str, int]]:
    return [line for line in lines_of_log(running.stdout) if line.get("event") == "replaced"]


async def use_while(rolling: "asyncio.Task[None]", platform: Platform) -> tuple[list[Heard], int]:
    """A request every fortieth of a second, each on a connection of its own, and kept connections beside them, until the gateway has
    been replaced often enough. What they heard, and how many requests the kept ones made."""
    loop = asyncio.get_running_loop()
    kept = [asyncio.create_task(use_kept(rolling, platform, seed)) for seed in range(KEPT)]
    sending = []
    began = loop.time()
    for number, ask in enumerate(itertools.cycle(make_asks(7)), 1):
        if rolling.done():
            break
        sending.append(asyncio.create_task(load.send(ask, platform.gateway_url, platform.tenant.api_key)))
        await asyncio.sleep(max(0.0, began + number / PER_SECOND - loop.time()))
    await rolling
    async with asyncio.timeout(WAIT_SECONDS):
        return await asyncio.gather(*sending), sum(await asyncio.gather(*kept))


async def use_kept(rolling: "asyncio.Task[None]", platform: Platform, seed: int) -> int:
    """GET /v1/models over and over. Raises whatever goes wrong with a connection that the gateway did not say it would close."""
    dice = random.Random(seed)
    place = urlsplit(platform.gateway_url)
    assert place.port
    ask = f"GET /v1/models HTTP/1.1\r\nhost: {place.netloc}\r\nauthorization: Bearer {platform.tenant.api_key}\r\n\r\n".encode()
    count = 0
    while not rolling.done():
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        is_open = True
        while is_open and not rolling.done():
            writer.write(ask)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 200 ")
            await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            count += 1
            is_open = b"\r\nconnection: close\r\n" not in head
            if is_open:
                await asyncio.sleep(dice.random() * KEPT_PAUSE_SECONDS)
        writer.close()
        await writer.wait_closed()
    return count


def settle(platform: Platform, running: Running, heard: list[Heard]) -> dict[str, int]:
    """End in order; every request of the engine's truth log has exactly its bill. Bills by outcome."""
    attempts = read_truth(platform.truth_log)
    assert running.stop() == 0, running.stderr.read_text()
    platform.check_all_is_shipped()
    bills = read_bills(platform.database_url)
    assert bills.keys() == attempts.keys()
    return judge(attempts, bills, heard, PRICES)


def test_a_gateway_is_replaced_under_load_and_nothing_fails(start: Start, tmp_path: Path) -> None:
    with serve(start, tmp_path) as (platform, running):

        async def go() -> tuple[list[Heard], int]:
            return await use_while(asyncio.create_task(asyncio.to_thread(roll, running)), platform)

        began = time.monotonic()
        heard, kept = asyncio.run(go())
        print(f"{ROLLOUTS} replaced in {time.monotonic() - began:.0f} s: {len(heard)} requests, {kept} more on kept connections")
        assert len({line["pid"] for line in list_replaced(running)}) == ROLLOUTS
        failed = [each for each in heard if each.ended != "complete"]
        assert not failed, f"{len(failed)} of {len(heard)}: {failed[:3]}"
        wait_until_idle(platform.truth_log)
        platform.wait_until_billed(len(heard))
        assert settle(platform, running, heard) == {"completed": len(heard)}


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
