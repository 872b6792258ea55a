"""R4: more is asked for than the engine can do. It keeps being used to the full, the excess is told so at once, and every request that
was served is billed, none that was refused.

The engine has a fixed number of slots and answers take a fixed time, so that its capacity is known and costs the machine almost
nothing: what is tried is the gateway's conduct, not its speed."""

import asyncio
import itertools
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from reliability import load
from reliability.bill_checks import Bill, Heard, find_wrong, read_bills, read_truth, wait_until_idle
from reliability.load import Ask
from reliability.platforms import PRICES, Platform, supervised
from reliability.records import Line, record

SLOTS, QUEUED = 8, 8
"""Limits of the engine: what runs there at once, and what waits; vLLM answers 503 to the rest."""
BASE_SECONDS = 6.0
"""For the closed loop that finds the capacity."""
GOODPUT_MIN = 0.9
REFUSALS = (429, 503)


def measure(seconds: float, seed: int) -> list[Line]:
    """Take the figure and keep it; what went wrong is printed."""
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="tollway-overload-") as scratch:
        wrong, capacity, over, after = run(Path(scratch), seconds, seed)
    print("\n".join(wrong[:20]), flush=True)
    refused = [each for each in over.heard if each.ended == "error"]
    waits = sorted(each.headed - each.began for each in refused if each.headed is not None)
    return [
        record(
            "R4",
            of="requests at three times the capacity",
            n=len(over.heard),
            failures=len(wrong),
            also={"refusals": len(refused)},
            seed=seed,
            began=began,
            detail={
                "capacity_per_second": round(capacity, 1),
                "offered_per_second": round(3 * capacity, 1),
                "served_per_second": round(_count(over.heard) / over.seconds, 1),
                "refusals": dict(Counter(f"{each.status} {each.code}" for each in refused)),
                "refused_after_ms": {
                    "p50": round(statistics.median(waits) * 1000, 1),
                    "p99": round(waits[len(waits) * 99 // 100] * 1000, 1),
                },
                "afterwards_at_half": dict(Counter(each.ended for each in after.heard)),
            },
        )
    ]


def run(scratch: Path, seconds: float, seed: int) -> tuple[list[str], float, load.Sent, load.Sent]:
    """One run: what is wrong, the capacity in requests a second, what was heard at three times and then at half of it."""
    options = ("--running-max", str(SLOTS), "--queued-max", str(QUEUED))
    with supervised(scratch, engine_options=options) as (platform, serving):
        base, base_seconds = asyncio.run(_loop(platform, seed))
        capacity = len(base) / base_seconds
        over = asyncio.run(_offer(platform, seed + 1, 3 * capacity, seconds))
        after = asyncio.run(_offer(platform, seed + 2, capacity / 2, BASE_SECONDS))
        wait_until_idle(platform.truth_log)
        attempts = {name: each for name, each in read_truth(platform.truth_log).items() if each[-1].ended != "rejected"}
        platform.wait_until_billed(len(attempts))
        code = serving.end(signal.SIGTERM)
        bills = read_bills(platform.database_url)
    heard = [*base, *over.heard, *after.heard]
    wrong = [*over.wrong, *after.wrong]
    if code != 0:
        wrong.append(f"it ended with {code}")
    faults, _ = find_wrong(read_truth(platform.truth_log), bills, heard, PRICES)
    wrong += [fault for fault in faults if not fault.endswith(", and not billed")]
    wrong += [f"{name} was served and is not billed" for name in attempts.keys() - bills.keys()]
    wrong += [f"refused and billed: {each}" for each in over.heard if each.ended == "error" and _costs(bills, each)]
    wrong += [f"before or after it, too: {each}" for each in (*base, *after.heard) if each.ended != "complete"]
    for each in over.heard:
        is_refusal = each.ended == "error" and each.status in REFUSALS and each.retry_after is not None
        if each.ended != "complete" and not is_refusal:
            wrong.append(f"neither served nor told when to come back: {each}")
    if (served := _count(over.heard) / over.seconds) < GOODPUT_MIN * capacity:
        wrong.append(f"{served:.1f} served a second of {capacity:.1f}")
    return wrong, capacity, over, after


def _count(heard: list[Heard]) -> int:
    return sum(each.ended == "complete" for each in heard)


def _costs(bills: Mapping[str, Bill], each: Heard) -> bool:
    bill = bills.get(each.request_id or "")
    return bill is not None and bill.amount_pico > 0


def _asks(seed: int) -> Iterator[Ask]:
    """Requests of ten words each, four of five as streams: half a second of the engine's time."""
    dice = random.Random(seed)
    for number in itertools.count():
        yield Ask("slow", "chat/completions", f"{' '.join(dice.sample(load.WORDS, 9))} {number}", stream=number % 5 != 0)


async def _loop(platform: Platform, seed: int) -> tuple[list[Heard], float]:
    """SLOTS clients that ask again at once: as much as the engine can do."""
    asks, ends, began = _asks(seed), time.monotonic() + BASE_SECONDS, time.monotonic()
    heard: list[Heard] = []

    async def client() -> None:
        while time.monotonic() < ends:
            heard.append(await load.send(next(asks), platform.gateway_url, platform.tenant.api_key))

    async with asyncio.timeout(4 * load.HANG_SECONDS):
        await asyncio.gather(*(client() for _ in range(SLOTS)))
    return heard, time.monotonic() - began


async def _offer(platform: Platform, seed: int, per_second: float, seconds: float) -> load.Sent:
    over = asyncio.create_task(asyncio.sleep(seconds))
    return await load.send_until(over, _asks(seed), platform.gateway_url, platform.tenant.api_key, per_second=per_second)
