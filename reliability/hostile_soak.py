"""R20: honest tenants beside one that attacks, in the form of R5. The attacker takes memory, descriptors, places and CPU in every way that
R18 tries one by one, all at once, for the whole time. Two honest organizations are served as before, and afterwards nothing is left of it.

The attackers are processes of low priority: their own CPU is not the gateway's, and on a small machine it would be measured as if it were.
"""

import asyncio
import itertools
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reliability import attacks, load, neighbours, priorities
from reliability.attacks import ATTACKS, Target
from reliability.load import Ask
from reliability.platforms import Platform, Tenant, add_tenant, supervised, wait_until_served
from reliability.processes import list_descendants
from reliability.records import Line, record

HONEST_PER_SECOND = 5.0
"""Requests of each honest organization."""
P99_FACTOR_MAX = 1.5
MEMORY_FACTOR_MAX = 1.1
DESCRIPTORS_MORE_MAX = 16
"""Connections to engines that honest requests leave in the pool."""
SETTLE_SECONDS = 60.0
IDLE_CONNECTIONS = 500
SLOW_BODIES = 200

MEMORY = ("60 unfinished bodies of 31 MB", "240 aborted uploads of 26 MB", "60 abandoned answers of 50 MB")
PARSING = (
    "490,000 keys, one request a minute",
    "23,900 keys",
    "6,000 keys in less than 64 KiB",
    "39,900 empty arrays",
    "10,000 messages",
    "4 MB of text",
)
FRAMING = ("chunks of one byte", "chunks with extensions", "3,000 connections", "3,000 unknown keys")
"""Attacks of R18 that one process repeats, one after the other."""


@dataclass(frozen=True, slots=True)
class Held:
    """Resources of the gateway and its readers of bodies at one moment."""

    mib: float
    descriptors: int


@dataclass(frozen=True, slots=True)
class Soak:
    """One run: what is wrong, what the honest ones heard alone and beside the attacker, and what the gateway held before, at
    most and after."""

    wrong: list[str]
    alone: load.Sent
    beside: load.Sent
    before: Held
    most: Held
    after: Held


def measure(seconds: float, seed: int) -> list[Line]:
    """Take the figure and keep it; what went wrong is printed."""
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="tollway-soak-") as scratch:
        soak = run(Path(scratch), seconds, SETTLE_SECONDS)
    factor = neighbours.find_p99(soak.beside.heard) / neighbours.find_p99(soak.alone.heard)
    wrong = list(soak.wrong)
    if factor > P99_FACTOR_MAX:
        wrong.append(f"the p99 of the honest ones is {factor:.2f} times what it is alone")
    if soak.after.mib > soak.before.mib * MEMORY_FACTOR_MAX:
        wrong.append(f"the gateway has {soak.after.mib:.0f} MiB a minute later, and had {soak.before.mib:.0f}")
    print("\n".join(wrong[:20]), flush=True)
    detail = {
        "honest_alone_ms": neighbours.describe(soak.alone.heard),
        "honest_beside_ms": neighbours.describe(soak.beside.heard),
        "p99_factor": round(factor, 2),
        "mib_before_most_after": [round(each.mib) for each in (soak.before, soak.most, soak.after)],
        "descriptors_before_most_after": [each.descriptors for each in (soak.before, soak.most, soak.after)],
    }
    n = len(soak.alone.heard) + len(soak.beside.heard)
    return [record("R20", of="honest requests", n=n, failures=len(wrong), seed=seed, began=began, detail=detail)]


def run(scratch: Path, seconds: float, settle_seconds: float) -> Soak:
    """Let honest tenants be served alone for `seconds`, then beside an attacker for as long; look at the gateway `settle_seconds` later."""
    with supervised(scratch) as (platform, serving), attacks.endless_engine() as url:
        assert serving.process is not None
        honest = [platform.tenant, add_tenant(platform.control_url, platform.platform_key, "honest")]
        hostile = add_tenant(platform.control_url, platform.platform_key, "hostile")
        attacks.serve_large(platform, url)
        pid = attacks.find_gateway(serving.process.pid)
        target = attacks.target_of(platform, hostile, pid)
        for tenant in (honest[1], hostile):
            wait_until_served(platform.gateway_url, tenant.api_key)
        ATTACKS["4 MB of text"](target)  # starts the readers of large bodies, which stay
        alone = asyncio.run(_offer(platform, honest, seconds))
        before = _read_held(pid)
        with _watching(pid) as seen, _attacking(target):
            beside = asyncio.run(_offer(platform, honest, seconds))
        time.sleep(settle_seconds)
        after = _read_held(pid)
        code = serving.end(signal.SIGTERM)
    wrong = [f"the platform ended with {code}"] if code else []
    for sent in (alone, beside):
        wrong += sent.wrong
        wrong += [f"an honest request was not served: {each}" for each in sent.heard if each.ended != "complete"]
    if after.descriptors > before.descriptors + DESCRIPTORS_MORE_MAX:
        wrong.append(f"the gateway has {after.descriptors} descriptors, and had {before.descriptors}")
    most = Held(max(each.mib for each in seen), max(each.descriptors for each in seen))
    return Soak(wrong, alone, beside, before, most, after)


async def _offer(platform: Platform, tenants: Sequence[Tenant], seconds: float) -> load.Sent:
    """Send what the honest tenants ask for `seconds`; return all of it."""

    async def offer(tenant: Tenant) -> load.Sent:
        over = asyncio.create_task(asyncio.sleep(seconds))
        return await load.send_until(over, _asks(), platform.gateway_url, tenant.api_key, per_second=HONEST_PER_SECOND)

    first, *others = await asyncio.gather(*map(offer, tenants))
    for other in others:
        first.heard.extend(other.heard)
        first.wrong.extend(other.wrong)
    return first


def _asks() -> Iterator[Ask]:
    for number in itertools.count():
        yield Ask("echo", "chat/completions", f"toll for number {number}", stream=number % 2 == 0)


# ---- The gateway's resources ------------------------------------------------------------------------------------------


def _read_held(pid: int) -> Held:
    pages = descriptors = 0
    for each in (pid, *list_descendants(pid)):
        with suppress(FileNotFoundError, ProcessLookupError):  # a reader that has just been replaced
            pages += int(Path(f"/proc/{each}/statm").read_text().split()[1])
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    return Held(pages * 4096 / (1 << 20), descriptors)


@contextmanager
def _watching(pid: int) -> Iterator[list[Held]]:
    seen, is_over = [_read_held(pid)], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.2):
            seen.append(_read_held(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


# ---- The attacker -----------------------------------------------------------------------------------------------------


@contextmanager
def _attacking(target: Target) -> Iterator[None]:
    """Attack with a process for each kind while the block runs."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_attack, args=(attack, target), daemon=True) for attack in KINDS.values()]
    for process in processes:
        process.start()
    try:
        yield
        for kind, process in zip(KINDS, processes, strict=True):
            assert process.is_alive(), f"the attack on {kind} ended by itself"
    finally:
        for process in processes:
            process.kill()
            process.join()


def _attack(attack: Callable[[Target], None], target: Target) -> None:
    priorities.lower()
    while True:
        with suppress(OSError):  # the gateway may close what it is attacked with
            attack(target)


def _repeat(names: Sequence[str]) -> Callable[[Target], None]:
    def attack(target: Target) -> None:
        for name in names:
            with suppress(OSError):
                ATTACKS[name](target)

    return attack


def _hold_idle(target: Target) -> None:
    """Hold connections open on which half a head was sent, and replace those that the gateway closes."""
    with ExitStack() as opened:
        for _ in range(IDLE_CONNECTIONS):
            opened.enter_context(target.connect()).sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: g")
        time.sleep(5)


def _send_slowly(target: Target) -> None:
    """Send bodies of one key a byte at a time."""
    with ExitStack() as opened:
        connections: list[socket.socket] = []
        for _ in range(SLOW_BODIES):
            connections.append(opened.enter_context(target.connect()))
            connections[-1].sendall(target.head(100_000) + b"{")
        for _ in range(20):
            for connection in connections:
                with suppress(OSError):
                    connection.send(b" ")
            time.sleep(0.5)


KINDS: Mapping[str, Callable[[Target], Any]] = {
    "memory": _repeat(MEMORY),
    "descriptors": _hold_idle,
    "slow bodies": _send_slowly,
    "framing": _repeat(FRAMING),
    "parsing": _repeat(PARSING),
}
"""Attacks by kind, each in a process of its own."""
