"""R20: honest tenants beside one that attacks, in the form of R5. The attacker takes memory, descriptors, places and CPU in every way that
R18 tries one by one, all at once, for the whole time. Two honest organizations are served as before, and afterwards nothing is left of it.

The attackers, and the engine of endless answers, are processes of low priority. On a small machine that does not suffice: whoever wakes up
waits for some milliseconds until a running process makes way, whatever its priority. So the honest ones are also served beside neutral
processes: one for each hostile one, of the same priority, that takes the same CPU in computing and in the kernel (sending to itself) and
asks the gateway nothing. What is compared with the attack is that time. CPU of the gateway and of its readers of bodies is in neither.
"""

import asyncio
import itertools
import multiprocessing
import os
import resource
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2

from reliability import attacks, load, neighbours, priorities
from reliability.attacks import ATTACKS, Target
from reliability.load import Ask
from reliability.platforms import Platform, Tenant, add_tenant, supervised, wait_until_served
from reliability.processes import WAIT_SECONDS, list_descendants
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
class Spent:
    """CPU of a process, in seconds: in its own code and in the kernel."""

    user_s: float
    system_s: float


@dataclass(frozen=True, slots=True)
class Ran:
    """The gateway during a part of the run: its CPU, the time for which it could run and had to wait for a processor, the longest delay
    of its event loop, and the longest commit of usage records since it began. In seconds."""

    cpu_s: float
    waited_s: float
    lag_s: float
    commit_s: float


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the run: what the honest ones heard, and how the gateway ran."""

    sent: load.Sent
    ran: Ran


@dataclass(frozen=True, slots=True)
class Soak:
    """One run: what is wrong; its parts with the honest ones alone, beside the attacker and beside neutral processes; and what the gateway
    held before the attack, at most and after. `hostile`: CPU of the hostile processes."""

    wrong: list[str]
    alone: Part
    beside: Part
    neutral: Part
    hostile: list[Spent]
    before: Held
    most: Held
    after: Held


def measure(seconds: float, seed: int) -> list[Line]:
    """Take the figure and keep it; what went wrong is printed."""
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="tollway-soak-") as scratch:
        soak = run(Path(scratch), seconds, SETTLE_SECONDS)
    parts = {"alone": soak.alone, "beside_neutral": soak.neutral, "beside": soak.beside}
    p99 = {name: neighbours.find_p99(part.sent.heard) for name, part in parts.items()}
    factor = p99["beside"] / p99["beside_neutral"]
    wrong = list(soak.wrong)
    if factor > P99_FACTOR_MAX:
        wrong.append(f"the p99 of the honest ones is {factor:.2f} times what it is beside neutral processes")
    if soak.after.mib > soak.before.mib * MEMORY_FACTOR_MAX:
        wrong.append(f"the gateway has {soak.after.mib:.0f} MiB a minute later, and had {soak.before.mib:.0f}")
    print("\n".join(wrong[:20]), flush=True)
    detail = {
        **{f"honest_{name}_ms": neighbours.describe(part.sent.heard) for name, part in parts.items()},
        "p99_factor": round(factor, 2),
        "p99_factor_raw": round(p99["beside"] / p99["alone"], 2),
        "hostile_cpu_s": {
            "user": round(sum(each.user_s for each in soak.hostile)),
            "kernel": round(sum(each.system_s for each in soak.hostile)),
        },
        **{f"gateway_{name}": _describe(part.ran) for name, part in parts.items()},
        "mib_before_most_after": [round(each.mib) for each in (soak.before, soak.most, soak.after)],
        "descriptors_before_most_after": [each.descriptors for each in (soak.before, soak.most, soak.after)],
    }
    n = sum(len(part.sent.heard) for part in parts.values())
    return [record("R20", of="honest requests", n=n, failures=len(wrong), seed=seed, began=began, detail=detail)]


def _describe(ran: Ran) -> dict[str, float]:
    return {
        "cpu_s": round(ran.cpu_s, 1),
        "waited_for_cpu_s": round(ran.waited_s, 1),
        "longest_lag_ms": round(ran.lag_s * 1000),
        "longest_commit_ms": round(ran.commit_s * 1000),
    }


def run(scratch: Path, seconds: float, settle_seconds: float) -> Soak:
    """Let honest tenants be served alone for `seconds`, then beside an attacker and beside neutral processes for as long each; look at the
    gateway `settle_seconds` after the attack."""
    with supervised(scratch) as (platform, serving), attacks.endless_engine() as (url, engine_pid):
        assert serving.process is not None
        honest = [platform.tenant, add_tenant(platform.control_url, platform.platform_key, "honest")]
        hostile = add_tenant(platform.control_url, platform.platform_key, "hostile")
        attacks.serve_large(platform, url)
        pid = attacks.find_gateway(serving.process.pid)
        target = attacks.target_of(platform, hostile, pid)
        internal = serving.arguments[serving.arguments.index("--internal") + 1]
        for tenant in (honest[1], hostile):
            wait_until_served(platform.gateway_url, tenant.api_key)
        ATTACKS["4 MB of text"](target)  # starts the readers of large bodies, which stay

        def offer() -> tuple[Part, list[Held]]:
            with _watching(pid) as seen:
                began = _read_ran(pid, internal)
                sent = asyncio.run(_offer(platform, honest, seconds))
                return Part(sent, _read_ran(pid, internal, began)), seen

        alone, _ = offer()
        before, engine = _read_held(pid), _read_spent(engine_pid)
        with _attacking(target) as pids:
            beside, seen = offer()
            spent, ended = list(map(_read_spent, pids)), _read_spent(engine_pid)
        spent.append(Spent(ended.user_s - engine.user_s, ended.system_s - engine.system_s))
        time.sleep(settle_seconds)
        after = _read_held(pid)
        with _spending(spent, seconds):
            neutral, _ = offer()
        code = serving.end(signal.SIGTERM)
    wrong = [f"the platform ended with {code}"] if code else []
    for part in (alone, beside, neutral):
        wrong += part.sent.wrong
        wrong += [f"an honest request was not served: {each}" for each in part.sent.heard if each.ended != "complete"]
    if after.descriptors > before.descriptors + DESCRIPTORS_MORE_MAX:
        wrong.append(f"the gateway has {after.descriptors} descriptors, and had {before.descriptors}")
    most = Held(max(each.mib for each in seen), max(each.descriptors for each in seen))
    return Soak(wrong, alone, beside, neutral, spent, before, most, after)


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


def _read_ran(pid: int, internal: str, since: Ran | None = None) -> Ran:
    """Return how the gateway ran since then, or since it began."""
    cpu_ns, waited_ns, _ = map(int, Path(f"/proc/{pid}/schedstat").read_text().split())
    metrics = httpx2.get(f"http://{internal}/metrics", timeout=WAIT_SECONDS, trust_env=False).text
    lag, commit = (
        float(next(line.split()[1] for line in metrics.splitlines() if line.startswith(f"{name} ")))
        for name in ("tollway_event_loop_lag_seconds_max", "tollway_spool_commit_seconds_max")
    )
    cpu_s, waited_s = cpu_ns / 1e9, waited_ns / 1e9
    return Ran(cpu_s, waited_s, lag, commit) if since is None else Ran(cpu_s - since.cpu_s, waited_s - since.waited_s, lag, commit)


def _read_spent(pid: int) -> Spent:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    per_second = os.sysconf("SC_CLK_TCK")
    return Spent(int(fields[11]) / per_second, int(fields[12]) / per_second)


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
def _attacking(target: Target) -> Iterator[list[int]]:
    """Attack with a process for each kind while the block runs; yield their ids."""
    with _running({kind: partial(_attack, attack, target) for kind, attack in KINDS.items()}) as pids:
        yield pids


@contextmanager
def _running(programs: Mapping[str, Callable[[], None]]) -> Iterator[list[int]]:
    """Run programs, none of which ends by itself, each in a process of low priority, while the block runs; yield their ids."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_run_low, args=(program,), daemon=True) for program in programs.values()]
    for process in processes:
        process.start()
    try:
        yield [process.pid for process in processes if process.pid is not None]
        for name, process in zip(programs, processes, strict=True):
            assert process.is_alive(), f"the process for {name} ended by itself"
    finally:
        for process in processes:
            process.kill()
            process.join()


def _run_low(program: Callable[[], None]) -> None:
    priorities.lower()
    program()


def _attack(attack: Callable[[Target], None], target: Target) -> None:
    while True:
        with suppress(OSError):  # the gateway may close what it is attacked with
            attack(target)


@contextmanager
def _spending(spent: Sequence[Spent], seconds: float) -> Iterator[None]:
    """Take as much CPU as hostile processes did in `seconds`, with as many neutral ones, while the block runs."""
    with _running({f"neutral {number}": partial(_spend, each, seconds) for number, each in enumerate(spent)}):
        yield


def _spend(spent: Spent, seconds: float) -> None:
    """Compute, and send to oneself, as much of the time as a hostile process did."""
    piece, began = bytes(65_536), time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sender:
        receiver, _ = listener.accept()
        with receiver:
            while True:
                share = (time.monotonic() - began) / seconds
                used = resource.getrusage(resource.RUSAGE_SELF)
                if used.ru_stime < spent.system_s * share:
                    sender.sendall(piece)
                    receiver.recv(len(piece), socket.MSG_WAITALL)
                elif used.ru_utime < spent.user_s * share:
                    sum(range(10_000))
                else:
                    time.sleep(0.001)


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
