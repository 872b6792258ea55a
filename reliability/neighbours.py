"""R5: a noisy neighbour. Organization A sends ten times what its limit allows and keeps a thousand idle connections open; organization B
stays at half of its own limit. Everything of B is served, as quickly as when it is alone.

Both have the same limit. B's times without A are taken first, with the same requests, on the same platform."""

import asyncio
import itertools
import math
import resource
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from reliability import load
from reliability.bill_checks import Heard
from reliability.load import Ask
from reliability.platforms import Platform, Tenant, add_tenant, supervised, wait_until_served
from reliability.processes import WAIT_SECONDS
from reliability.records import Line, record

LIMIT_PER_MINUTE = 600
"""Limit of each organization. Its burst is a minute's worth, so A is served more than its rate in a short run."""
NOISE = 10
IDLE_SOCKETS = 1_000
P99_FACTOR_MAX = 1.2
_SPARE_FILES = 1_000


def measure(seconds: float, seed: int) -> list[Line]:
    """Take the figure and keep it; what went wrong is printed."""
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="tollway-neighbour-") as scratch:
        wrong, alone, beside, noise = run(Path(scratch), seconds, IDLE_SOCKETS)
    factor = find_p99(beside) / find_p99(alone)
    if factor > P99_FACTOR_MAX:
        wrong.append(f"the p99 of B is {factor:.2f} times what it is alone")
    print("\n".join(wrong[:20]), flush=True)
    return [
        record(
            "R5",
            of="requests of the quiet organization",
            n=len(alone) + len(beside),
            failures=len(wrong),
            also={"requests of the noisy one": len(noise)},
            seed=seed,
            began=began,
            detail={
                "quiet_alone_ms": describe(alone),
                "quiet_beside_ms": describe(beside),
                "p99_factor": round(factor, 2),
                "noisy": dict(Counter(f"{each.status} {each.code or ''}".strip() for each in noise)),
                "idle_sockets": IDLE_SOCKETS,
            },
        )
    ]


def run(scratch: Path, seconds: float, idle_sockets: int) -> tuple[list[str], list[Heard], list[Heard], list[Heard]]:
    """One run: what is wrong, what B heard alone and beside A, and what A heard."""
    with supervised(scratch) as (platform, serving):
        quiet, noisy = platform.tenant, add_tenant(platform.control_url, platform.platform_key, "noisy")
        with httpx2.Client(base_url=platform.control_url, timeout=WAIT_SECONDS, trust_env=False) as http:
            http.headers["authorization"] = f"Bearer {platform.platform_key}"
            for tenant in (quiet, noisy):
                path = f"/v1/platform/organizations/{tenant.organization_id}/limits"
                answer = http.put(path, json={"requests_per_minute": LIMIT_PER_MINUTE})
                assert answer.status_code == 200, answer.text
        wait_until_served(platform.gateway_url, noisy.api_key)
        alone, beside, noise = asyncio.run(_play(platform, quiet, noisy, seconds, idle_sockets))
        code = serving.end(signal.SIGTERM)
    wrong = [f"the platform ended with {code}"] if code else []
    for sent in (alone, beside, noise):
        wrong += sent.wrong
        wrong += [f"{sent.withheld} requests were not sent in time"] if sent.withheld else []
    wrong += [f"B was not served: {each}" for each in (*alone.heard, *beside.heard) if each.ended != "complete"]
    wrong += [f"A met something else than its limit: {each}" for each in noise.heard if not _is_served_or_limited(each)]
    admitted = sum(each.ended == "complete" for each in noise.heard)
    most = LIMIT_PER_MINUTE * (1 + (noise.seconds + load.HANG_SECONDS) / 60)
    if admitted > most:
        wrong.append(f"A was served {admitted} requests, and its limit allows {most:.0f}")
    return wrong, alone.heard, beside.heard, noise.heard


async def _play(
    platform: Platform, quiet: Tenant, noisy: Tenant, seconds: float, idle_sockets: int
) -> tuple[load.Sent, load.Sent, load.Sent]:
    url, fair = platform.gateway_url, LIMIT_PER_MINUTE / 60
    alone = await _offer(url, quiet, fair / 2, seconds)
    async with _idle_connections(url, idle_sockets):
        beside, noise = await asyncio.gather(_offer(url, quiet, fair / 2, seconds), _offer(url, noisy, NOISE * fair, seconds))
    return alone, beside, noise


async def _offer(url: str, tenant: Tenant, per_second: float, seconds: float) -> load.Sent:
    over = asyncio.create_task(asyncio.sleep(seconds))
    return await load.send_until(over, _asks(), url, tenant.api_key, per_second=per_second)


def _asks() -> Iterator[Ask]:
    for number in itertools.count():
        yield Ask("echo", "chat/completions", f"toll for number {number}", stream=number % 2 == 0)


@asynccontextmanager
async def _idle_connections(url: str, count: int) -> AsyncIterator[None]:
    """Hold so many connections open on which nothing is sent."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, count + _SPARE_FILES), hard), hard))
    place = urlsplit(url)
    writers = [(await asyncio.open_connection(place.hostname, place.port))[1] for _ in range(count)]
    try:
        yield
    finally:
        for writer in writers:
            writer.transport.abort()


def _is_served_or_limited(heard: Heard) -> bool:
    return heard.ended == "complete" or (heard.status == 429 and heard.retry_after is not None)


def find_p99(heard: Sequence[Heard]) -> float:
    """Return the time to the head of an answer that 99 % of these requests did not exceed, in seconds."""
    times = sorted(each.headed - each.began for each in heard if each.headed is not None)
    return times[math.ceil(len(times) * 0.99) - 1]


def describe(heard: Sequence[Heard]) -> dict[str, float]:
    """Return the median and the 99th percentile of the times to the head of an answer, in milliseconds."""
    times = sorted(each.headed - each.began for each in heard if each.headed is not None)
    return {"p50": round(times[len(times) // 2] * 1000, 1), "p99": round(find_p99(heard) * 1000, 1)}
