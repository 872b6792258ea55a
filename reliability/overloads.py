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
REFUSED_SECONDS_MAX = 0.05
"""Longest time in which all but a hundredth of the refusals must be told."""

CALM_SECONDS = 10.0
"""Time after an overload from which on answers must begin as they did before it, measured for CALM_SAMPLE_SECONDS."""
CALM_SAMPLE_SECONDS = 10.0
CALM_FACTOR_MAX = 1.5
"""Most by which the p99 of the time to the head of an answer may then differ from that at capacity."""
REFUSALS = (429, 503)


def measure(seconds: float, seed: int) -> list[Line]:
    """Take the figure and keep it; what went wrong is printed."""
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="tollway-overload-") as scratch:
        wrong, capacity, over, after = run(Path(scratch), seconds, seed)
    print("\n".join(wrong[:20]), flush=True)
    refused = [each for each in over.heard if each.ended == "error"]
    waits = _list_waits(refused)
    calm = _list_waits(_list_calm(after))
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
                "refused_late": dict(Counter(f"{each.status} {each.code}" for each in refused if _is_late(each))),
                "refused_after_ms": {"p50": round(statistics.median(waits) * 1000, 1), "p99": round(_find_p99(waits) * 1000, 1)},
                "first_byte_afterwards_ms": {"p50": round(statistics.median(calm) * 1000, 1), "p99": round(_find_p99(calm) * 1000, 1)},
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
        after = asyncio.run(_offer(platform, seed + 2, capacity / 2, CALM_SECONDS + CALM_SAMPLE_SECONDS))
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
    refused_seconds = _find_p99(_list_waits([each for each in over.heard if each.ended == "error"]))
    if refused_seconds > REFUSED_SECONDS_MAX:
        wrong.append(f"a hundredth of the refusals took {refused_seconds * 1000:.1f} ms and more")
    before, calm = _find_p99(_list_waits(base)), _find_p99(_list_waits(_list_calm(after)))
    if calm > CALM_FACTOR_MAX * before:
        wrong.append(
            f"{CALM_SECONDS:.0f} s afterwards answers begin after {calm * 1000:.1f} ms (p99), before it was {before * 1000:.1f} ms"
        )
    return wrong, capacity, over, after


def _list_waits(heard: list[Heard]) -> list[float]:
    """Return the seconds from a request to the head of its answer, the shortest first."""
    return sorted(each.headed - each.began for each in heard if each.headed is not None)


def _is_late(each: Heard) -> bool:
    return each.headed is not None and each.headed - each.began > REFUSED_SECONDS_MAX


def _list_calm(after: load.Sent) -> list[Heard]:
    """Return the requests that began when the overload had been over for CALM_SECONDS."""
    first = min((each.began for each in after.heard), default=0.0)
    return [each for each in after.heard if each.began >= first + CALM_SECONDS]


def _find_p99(sorted_seconds: list[float]) -> float:
    return sorted_seconds[len(sorted_seconds) * 99 // 100] if sorted_seconds else 0.0


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
