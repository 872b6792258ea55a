"""R6: several gateways race for the same limits. With the server of shared counters they admit exactly the limit; without it, at most the
bound that docs/limits.md publishes.

Limits per day are used, because next to nothing of them returns during a run: what is admitted can be counted."""

import asyncio
import random
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from reliability.platforms import Platform, apart, prepared_gateway, start_gateways
from reliability.records import Line, record
from tests.storage.counter_servers import CounterServer, counter_server, find_servers

GATEWAYS = 4
DECISION_SECONDS = 2.0
"""Deadline of a decision. The default is 5 ms; a busy machine must not be taken for a slow server here."""
CLIENTS_PER_GATEWAY = 8
UNDER_ADMISSION_MAX = 0.01
OUTPUT_TOKENS = 20


@dataclass(frozen=True, slots=True)
class Race:
    """One race: `limit` of `dimension`, of which each request takes `units` at most. `admitted`: requests. `used`: units."""

    case: str
    dimension: str
    limit: int
    sent: int
    admitted: int
    used: int
    seconds: float
    wrong: tuple[str, ...]


def measure(limit: int, seed: int) -> list[Line]:
    """Take the figure with every server that is installed and keep it; what went wrong is printed."""
    lines = []
    for name in find_servers():
        began = time.time()
        with tempfile.TemporaryDirectory(prefix="tollway-limits-") as scratch, counter_server(name) as server:
            races = run(Path(scratch), server, limit, seed)
        wrong = [complaint for race in races for complaint in race.wrong]
        print("\n".join(wrong), flush=True)
        lines.append(
            record(
                "R6",
                case=name,
                of="requests that raced for a limit",
                n=sum(race.sent for race in races),
                failures=len(wrong),
                seed=seed,
                began=began,
                detail={
                    race.case: f"{race.admitted:,} of {race.sent:,} requests admitted, {race.used:,} of {race.limit:,} {race.dimension}"
                    for race in races
                },
            )
        )
    return lines


def run(scratch: Path, server: CounterServer, limit: int, seed: int) -> list[Race]:
    """Race with the server, while it is stopped in the middle, and without it."""
    dice = random.Random(seed)
    races = []
    with gateways(scratch, server) as (platform, urls):
        races.append(_race("server up", platform, urls, "requests_per_day", limit, dice))
        races.append(_race("server up, tokens", platform, urls, "output_tokens_per_day", limit * OUTPUT_TOKENS, dice))
        races.append(_race("server stopped in the middle", platform, urls, "requests_per_day", limit, dice, server))
    return races


@contextmanager
def gateways(scratch: Path, server: CounterServer) -> Iterator[tuple[Platform, list[str]]]:
    """Run a platform with GATEWAYS gateways, each a process and a node of its own, that share counters; yield their addresses too."""
    environment = {
        "TOLLWAY__GATEWAY__LIMITS__REDIS_URL": server.url,
        "TOLLWAY__GATEWAY__LIMITS__DECISION_SECONDS": str(DECISION_SECONDS),
    }
    with apart(scratch, gateway_environment=environment) as (platform, parts), ExitStack() as others:
        joined = [others.enter_context(prepared_gateway(platform, parts, scratch, n, environment)) for n in range(1, GATEWAYS)]
        start_gateways(platform, joined)
        yield platform, [platform.gateway_url, *(url for _, url in joined)]


def _race(
    case: str,
    platform: Platform,
    urls: Sequence[str],
    dimension: str,
    limit: int,
    dice: random.Random,
    stopped: CounterServer | None = None,
) -> Race:
    """Send three times what the limit admits, in a random order over all gateways, and check what was admitted. `stopped`: the server,
    which is frozen after a third of the requests."""
    key = _make_limited_key(platform, dimension, limit)
    per_request = OUTPUT_TOKENS if dimension.startswith("output") else 1
    sent = 3 * limit // per_request
    order = [url for url in urls for _ in range(sent // len(urls))]
    dice.shuffle(order)
    began = time.monotonic()
    statuses, used = asyncio.run(_send_all(order, key, stopped))
    seconds = time.monotonic() - began
    admitted = statuses.count(200)
    units = used if per_request > 1 else admitted
    refilled = int(limit * seconds / 86_400) + 1
    wrong = [f"{case}: answered {status}" for status in sorted(set(statuses) - {200, 429})]
    most = limit + refilled if stopped is None else 2 * limit + refilled
    if units > most:
        wrong.append(f"{case}: {units} of {limit} admitted")
    if stopped is None and units < limit * (1 - UNDER_ADMISSION_MAX) - per_request:
        wrong.append(f"{case}: only {units} of {limit} admitted")
    return Race(case, dimension, limit, len(order), admitted, units, seconds, tuple(wrong))


def _make_limited_key(platform: Platform, dimension: str, limit: int) -> str:
    with platform.admin() as http:
        project = http.post("/v1/organization/projects", json={"name": f"race {time.monotonic_ns()}"}).json()
        path = f"/v1/organization/projects/{project['id']}"
        answer = http.put(f"{path}/limits", json={dimension: limit})
        assert answer.status_code == 200, answer.text
        key = http.post(f"{path}/api_keys", json={"name": "race"}).json()
    return str(key["value"])


async def _send_all(order: Sequence[str], key: str, stopped: CounterServer | None) -> tuple[list[int], int]:
    """Send a request to each address of `order`, some at a time. Return the statuses, and the output tokens that were used."""
    statuses: list[int] = []
    used = 0
    waiting = iter(order)
    limits = httpx2.Limits(max_connections=CLIENTS_PER_GATEWAY * GATEWAYS)
    headers = {"authorization": f"Bearer {key}"}
    body = {"model": "echo", "messages": [{"role": "user", "content": "a " * 12}], "max_completion_tokens": OUTPUT_TOKENS}
    try:
        async with httpx2.AsyncClient(headers=headers, limits=limits, timeout=90.0, trust_env=False) as http:

            async def client() -> None:
                nonlocal used
                for url in waiting:
                    if stopped is not None and len(statuses) == len(order) // 3:
                        stopped.signal(signal.SIGSTOP)
                    answer = await http.post(f"{url}/v1/chat/completions", json=body)
                    while answer.status_code == 401:  # this gateway has not heard of the key yet
                        await asyncio.sleep(0.05)
                        answer = await http.post(f"{url}/v1/chat/completions", json=body)
                    statuses.append(answer.status_code)
                    if answer.status_code == 200:
                        used += answer.json()["usage"]["completion_tokens"]

            await asyncio.gather(*(client() for _ in range(CLIENTS_PER_GATEWAY * GATEWAYS)))
            while statuses[-1] == 200:  # what was reserved and not used has returned
                waiting = iter(order[:1])
                await client()
    finally:
        if stopped is not None:
            stopped.signal(signal.SIGCONT)
    return statuses, used
