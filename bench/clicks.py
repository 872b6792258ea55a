"""The data plane while people click through the console: `python -m bench.clicks`.

One `tollway serve` with a simulated engine answers requests at a fixed rate, in turns with and without operators who open pages of the
console, each after a pause to read. What is printed of both: requests that were answered a second, and the median and the 99th percentile
of the time until the whole answer was there. Turns of both kinds lie side by side, so that a neighbour on the machine slows both.
"""

import argparse
import asyncio
import os
import random
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from reliability.platforms import MODELS, Platform, supervised

PATHS = ("", "/projects", "/usage", "/usage?group=model", "/requests", "/models", "/budgets", "/limits", "/members", "/audit")
"""Pages that are clicked, below the root of the organization."""

THINK_SECONDS = 1.0
"""Time for which each person reads a page."""

ANSWER_SECONDS_MAX = 60.0


@dataclass(slots=True)
class Figures:
    """Figures of all turns of one kind. `times`: seconds of each request. `failed`: requests that were not answered with 200."""

    times: list[float] = field(default_factory=list)
    seconds: float = 0.0
    pages: int = 0
    failed: int = 0

    def describe(self) -> str:
        """Return the figures as a line."""
        ordered = sorted(self.times)
        p50, p99 = (1000 * ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99))
        pages = f"; {self.pages / self.seconds:.1f} pages/s" if self.pages else ""
        return f"{len(ordered) / self.seconds:.1f} requests/s, p50 {p50:.2f} ms, p99 {p99:.2f} ms, {self.failed} failed{pages}"


def open_client(platform: Platform, url: str) -> httpx2.AsyncClient:
    """Return a client of the platform that keeps its connections. To be closed."""
    headers = {"authorization": f"Bearer {platform.tenant.api_key}"} if url == platform.gateway_url else {}
    limits = httpx2.Limits(max_connections=256, max_keepalive_connections=256)
    return httpx2.AsyncClient(base_url=url, headers=headers, timeout=ANSWER_SECONDS_MAX, trust_env=False, limits=limits)


async def sign_in(platform: Platform) -> httpx2.AsyncClient:
    """Return the browser of an operator, who has signed in with their key."""
    browser = open_client(platform, platform.control_url)
    page = (await browser.get("/sign-in/operators/key")).text
    hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page))
    headers = {"origin": platform.control_url, "sec-fetch-site": "same-origin"}
    answer = await browser.post("/sign-in/operators/key", data={**hidden, "key": platform.platform_key}, headers=headers)
    assert answer.status_code == 303, answer.text
    return browser


async def click(browser: httpx2.AsyncClient, root: str, chance: random.Random, figures: Figures) -> None:
    """Open pages until it is cancelled."""
    await asyncio.sleep(chance.random() * THINK_SECONDS)
    while True:
        answer = await browser.get(root + chance.choice(PATHS))
        assert answer.status_code == 200, (answer.url, answer.status_code)
        figures.pages += 1
        await asyncio.sleep(THINK_SECONDS)


async def ask(client: httpx2.AsyncClient, figures: Figures) -> None:
    """Send one request."""
    body = {"model": next(iter(MODELS)), "messages": [{"role": "user", "content": "How high is the toll?"}], "max_tokens": 8}
    began = time.perf_counter()
    answer = await client.post("/v1/chat/completions", json=body)
    figures.times.append(time.perf_counter() - began)
    figures.failed += answer.status_code != 200


async def take_turn(
    client: httpx2.AsyncClient, browsers: Sequence[httpx2.AsyncClient], root: str, figures: Figures, *, seconds: float, rate: float
) -> None:
    """Send requests at a rate for so many seconds while `browsers` click, and wait for all answers."""
    clicking = [asyncio.create_task(click(each, root, random.Random(at), figures)) for at, each in enumerate(browsers)]
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(seconds * rate)):
            await asyncio.sleep(max(began + number / rate - time.perf_counter(), 0))
            group.create_task(ask(client, figures))
    figures.seconds += time.perf_counter() - began
    for task in clicking:
        task.cancel()
    for ended in await asyncio.gather(*clicking, return_exceptions=True):
        assert isinstance(ended, asyncio.CancelledError), ended


async def measure(platform: Platform, *, users: int, rounds: int, seconds: float, rate: float) -> None:
    """Take turns, and print the figures of both kinds."""
    async with open_client(platform, platform.gateway_url) as client:
        await ask(client, tried := Figures())
    assert not tried.failed, "the gateway refuses the request"
    browsers = [await sign_in(platform) for _ in range(users)]
    root = f"/console/organizations/{platform.tenant.organization_id}"
    quiet, clicked = Figures(), Figures()
    async with open_client(platform, platform.gateway_url) as client:
        await take_turn(client, browsers, root, Figures(), seconds=seconds, rate=rate)  # connections and plans are made
        for _ in range(rounds):
            await take_turn(client, (), root, quiet, seconds=seconds, rate=rate)
            await take_turn(client, browsers, root, clicked, seconds=seconds, rate=rate)
    for browser in browsers:
        await browser.aclose()
    print(f"load of the machine {os.getloadavg()[0]:.1f}")
    print(f"  nobody clicks: {quiet.describe()}")
    print(f"  {users} people click: {clicked.describe()}")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.clicks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--users", type=int, default=20, help="people who click (default 20)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each kind (default 5)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a turn (default 10)")
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second at the gateway (default 50)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, supervised(Path(scratch)) as (platform, _):
        asyncio.run(measure(platform, users=arguments.users, rounds=arguments.rounds, seconds=arguments.seconds, rate=arguments.rate))


if __name__ == "__main__":
    main()
