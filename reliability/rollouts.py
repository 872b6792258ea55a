"""R10: a gateway is replaced under load, again and again, and nobody notices: no connection refused or reset, no request failed, no
bill missing."""

import asyncio
import itertools
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from reliability import load
from reliability.bill_checks import find_wrong, lines_of_log, read_bills, read_truth, wait_until_idle
from reliability.load import Ask, Sent
from reliability.platforms import PRICES, Platform, serve
from reliability.processes import Running, is_alive, starting, tollway
from reliability.records import Line, record

PER_SECOND = 40.0
STREAMED = "slow"
"""The model of every stream, and of nothing else."""
KEPT = 4
"""Connections that are kept open and used again and again, as SDKs do; they end only where the gateway says so."""
KEPT_PAUSE_SECONDS = 0.3
"""Seconds between two requests on one connection, at most: what rests for longer than a second may be closed by a gateway that leaves."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a run. `kept`: requests on kept connections. `wrong` is empty, or the promise is broken."""

    wrong: list[str]
    sent: Sent
    streams: int
    kept: int
    replaced: int
    bills: dict[str, int]


def measure(rollouts: int, seed: int) -> list[Line]:
    """Take the figure and keep it; what went wrong is printed."""
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="tollway-rollouts-") as scratch:
        outcome = run(Path(scratch), rollouts, seed)
    print("\n".join(outcome.wrong[:20]), flush=True)
    return [
        record(
            "R10",
            of="rollouts",
            n=outcome.replaced,
            failures=len(outcome.wrong),
            also={"requests": len(outcome.sent.heard), "streams": outcome.streams, "requests on kept connections": outcome.kept},
            seed=seed,
            began=began,
            detail={
                "offered_per_second": PER_SECOND,
                "reached_per_second": round(len(outcome.sent.heard) / outcome.sent.seconds, 1),
                "clients": dict(Counter(each.ended for each in outcome.sent.heard)),
                "bills": outcome.bills,
            },
        )
    ]


def run(scratch: Path, rollouts: int, seed: int) -> Outcome:
    """One run in the directory `scratch`, which must be empty."""
    asks = list(make_asks(seed))
    with starting(scratch) as start, serve(start, scratch) as (platform, running):
        sent, kept, wrong = asyncio.run(_use(platform, running, rollouts, asks, seed))
        replaced = len({line["pid"] for line in list_replaced(running)})
        if replaced != rollouts:
            wrong.append(f"replaced {replaced} times instead of {rollouts}")
        failed = [each for each in sent.heard if each.ended != "complete"]
        wrong += [f"a request failed: {each}" for each in failed]
        wait_until_idle(platform.truth_log)
        attempts = read_truth(platform.truth_log)
        platform.wait_until_billed(len(attempts))
        if (code := running.stop()) != 0:
            wrong.append(f"it ended with {code}: {running.stderr.read_text()}")
        platform.check_all_is_shipped()
        verified = tollway("verify", "--data-dir", str(platform.directory))
        if verified.returncode != 0:
            wrong.append(f"verify: {verified.stdout}{verified.stderr}")
        bills = read_bills(platform.database_url)
        faults, billed = find_wrong(attempts, bills, sent.heard, PRICES)
        wrong += [*sent.wrong, *faults]
        if billed != Counter(completed=len(sent.heard)) and not failed:
            wrong.append(f"{len(sent.heard)} requests, but bills of {dict(billed)}")
    streams = sum(each.model == STREAMED for each in sent.heard)
    return Outcome(wrong, sent, streams, kept, replaced, dict(billed))


def make_asks(seed: int) -> Iterator[Ask]:
    """The usual mix; every third is a stream, and those take a second or two, longer than it takes to replace a gateway. Nobody
    leaves early."""
    for ask in load.make_asks(600, seed):
        yield replace(ask, leaves_after=None, model=STREAMED if ask.stream else ask.model)


def list_replaced(running: Running) -> list[dict[str, int]]:
    """Return what the supervisor said of each replacement, in order. Asked often while the log grows, by the process that is also the
    client: what it does not need, it must not parse."""
    return [line for line in lines_of_log(running.stdout, b'"replaced"') if line.get("event") == "replaced"]


def _roll(running: Running, rollouts: int) -> None:
    """Replace the gateway so many times; each time the one before must have gone."""
    for done in range(rollouts):
        running.process.send_signal(signal.SIGHUP)
        running.wait_until(lambda done=done: len(list_replaced(running)) > done)  # type: ignore[misc]
        old = list_replaced(running)[-1]["old_pid"]
        running.wait_until(lambda old=old: not is_alive(old))  # type: ignore[misc]


async def _use(platform: Platform, running: Running, rollouts: int, asks: list[Ask], seed: int) -> tuple[Sent, int, list[str]]:
    """Requests, each on a connection of its own, and kept connections beside them, until the gateway has been replaced often enough.
    What they heard, how many requests the kept ones made, and what went wrong with those."""
    rolling = asyncio.create_task(asyncio.to_thread(_roll, running, rollouts))
    url, key = platform.gateway_url, platform.tenant.api_key
    kept = [asyncio.create_task(use_kept(rolling, url, key, random.Random(seed + number))) for number in range(KEPT)]
    sent = await load.send_until(rolling, itertools.cycle(asks), url, key, per_second=PER_SECOND)
    counted = await asyncio.gather(*kept, return_exceptions=True)
    wrong = [f"on a kept connection: {each!r}" for each in counted if isinstance(each, BaseException)]
    return sent, sum(each for each in counted if isinstance(each, int)), wrong


async def use_kept(rolling: "asyncio.Task[None]", url: str, key: str, dice: random.Random) -> int:
    """GET /v1/models over and over. Raises whatever goes wrong with a connection that the server did not say it would close."""
    place = urlsplit(url)
    assert place.port
    ask = f"GET /v1/models HTTP/1.1\r\nhost: {place.netloc}\r\nauthorization: Bearer {key}\r\n\r\n".encode()
    count = 0
    while not rolling.done():
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        try:
            is_open = True
            while is_open and not rolling.done():
                writer.write(ask)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                assert head.startswith(b"http/1.1 200 "), head
                await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
                count += 1
                is_open = b"\r\nconnection: close\r\n" not in head
                if is_open:
                    await asyncio.sleep(dice.random() * KEPT_PAUSE_SECONDS)
        finally:
            writer.close()
    return count
