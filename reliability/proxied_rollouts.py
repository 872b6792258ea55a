"""R26: two gateways behind a proxy are replaced in turn under load, each drained and started again, and nobody notices."""

import asyncio
import itertools
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from reliability import load, rollouts
from reliability.bill_checks import find_wrong, read_bills, read_truth, wait_until_idle
from reliability.clusters import wait_until_ready
from reliability.load import Sent
from reliability.platforms import PRICES, Part, Platform, apart, prepared_gateway, wait_until_served
from reliability.processes import NO_TLS, tollway
from reliability.proxies import PROXIES, Address, Proxy, running, settings_behind
from reliability.records import Line, record

PER_SECOND = 20.0
KEPT = 4
"""Connections to the proxy that are kept and used again."""
BACK_SECONDS = 5.0
"""Pause after a gateway is ready again, until the next one is replaced. nginx counts its 2 s in whole seconds and waits until they are
exceeded, so it sends requests again up to 4 s after the last that was refused."""


@dataclass(frozen=True, slots=True)
class Gateways:
    """A platform with two gateways, each at addresses that it keeps."""

    platform: Platform
    parts: Sequence[Part]
    addresses: Sequence[Address]

    def stop(self) -> list[int]:
        """End each in order; return the exit codes."""
        return [part.end(signal.SIGTERM) for part in self.parts]


@dataclass(slots=True)
class Replacements:
    """Result of replacing gateways. `seen_red`: how many of them answered `/readyz` with 503 before they ended."""

    count: int = 0
    seen_red: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a run. `wrong` is empty, or the promise is broken."""

    replacements: Replacements
    sent: Sent
    streams: int
    kept: int
    bills: dict[str, int]
    wrong: list[str]


@contextmanager
def two_gateways(scratch: Path, proxy: Proxy) -> Iterator[Gateways]:
    """Run control, an engine, a tenant and two gateways that believe the proxy."""
    environment = settings_behind(proxy)
    with (
        apart(scratch, gateway_environment=environment) as (platform, parts),
        prepared_gateway(platform, parts, scratch, 2, environment) as (second, url),
    ):
        second.start()
        wait_until_served(url, platform.tenant.api_key)
        both = (parts.gateway, second)
        yield Gateways(platform, both, [Address(_option(part, "--listen"), _option(part, "--internal")) for part in both])


def _option(part: Part, name: str) -> str:
    return part.arguments[part.arguments.index(name) + 1]


def measure(name: str, rounds: int, seed: int) -> list[Line]:
    """Take the figure for a proxy and keep it; what went wrong is printed."""
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="tollway-proxied-") as scratch:
        outcome = run(Path(scratch), PROXIES[name], rounds, seed)
    print("\n".join(outcome.wrong[:20]), flush=True)
    return [
        record(
            "R26",
            case=name,
            of="replaced gateways",
            n=outcome.replacements.count,
            failures=len(outcome.wrong),
            also={"requests": len(outcome.sent.heard), "streams": outcome.streams, "requests on kept connections": outcome.kept},
            seed=seed,
            began=began,
            detail={
                "offered_per_second": PER_SECOND,
                "reached_per_second": round(len(outcome.sent.heard) / outcome.sent.seconds, 1),
                "seen_draining": outcome.replacements.seen_red,
                "clients": dict(Counter(each.ended for each in outcome.sent.heard)),
                "bills": outcome.bills,
            },
        )
    ]


def run(scratch: Path, proxy: Proxy, rounds: int, seed: int) -> Outcome:
    """Replace both gateways so many times in the directory `scratch`, which must be empty, and check all bills."""
    with two_gateways(scratch, proxy) as gateways, running(proxy, gateways.addresses, scratch) as (url, _):
        replacements, sent, kept, wrong = use(gateways, url, rounds, seed)
        wait_until_idle(gateways.platform.truth_log)
        codes = gateways.stop()
        wrong += [f"a gateway ended with {code}" for code in codes if code]
        attempts = read_truth(gateways.platform.truth_log)
        bills = read_bills(gateways.platform.database_url)
        faults, billed = find_wrong(attempts, bills, sent.heard, PRICES)
        wrong += faults
        if billed != Counter(completed=len(sent.heard)):
            wrong.append(f"{len(sent.heard)} requests, but bills of {dict(billed)}")
        verified = tollway("verify", "--data-dir", str(gateways.platform.directory))
        if verified.returncode != 0:
            wrong.append(f"verify: {verified.stdout}{verified.stderr}")
    streams = sum(each.model == rollouts.STREAMED for each in sent.heard)
    return Outcome(replacements, sent, streams, kept, dict(billed), wrong)


def use(gateways: Gateways, url: str, rounds: int, seed: int) -> tuple[Replacements, Sent, int, list[str]]:
    """Send requests to the proxy at `url` until each gateway was replaced `rounds` times. Return what was replaced, what clients heard,
    how many requests kept connections made, and what went wrong."""
    replacements = Replacements()
    sent, kept, wrong = asyncio.run(_use(gateways, url, rounds, seed, replacements))
    wrong += [*replacements.wrong, *sent.wrong]
    wrong += [f"a request failed: {each}" for each in sent.heard if each.ended != "complete"]
    if not replacements.seen_red:
        wrong.append("no gateway answered 503 at /readyz before it ended")
    return replacements, sent, kept, wrong


async def _use(gateways: Gateways, url: str, rounds: int, seed: int, replacements: Replacements) -> tuple[Sent, int, list[str]]:
    rolling = asyncio.create_task(asyncio.to_thread(_roll, gateways, rounds, replacements))
    key = gateways.platform.tenant.api_key
    kept = [asyncio.create_task(rollouts.use_kept(rolling, url, key, random.Random(seed + number))) for number in range(KEPT)]
    asks = itertools.cycle(list(rollouts.make_asks(seed)))
    sent = await load.send_until(rolling, asks, url, key, per_second=PER_SECOND)
    counted = await asyncio.gather(*kept, return_exceptions=True)
    wrong = [f"on a kept connection: {each!r}" for each in counted if isinstance(each, BaseException)]
    return sent, sum(each for each in counted if isinstance(each, int)), wrong


def _roll(gateways: Gateways, rounds: int, replacements: Replacements) -> None:
    for _ in range(rounds):
        for part, address in zip(gateways.parts, gateways.addresses, strict=True):
            _replace(part, f"http://{address.internal}/readyz", replacements)


def _replace(part: Part, readyz: str, replacements: Replacements) -> None:
    """Drain a gateway, wait for its end, start it again, and wait until the proxy knows it."""
    process = part.process
    assert process is not None
    process.send_signal(signal.SIGTERM)
    is_red = False
    while process.poll() is None:
        is_red = is_red or _status_of(readyz) == 503
        time.sleep(0.05)
    replacements.seen_red += is_red
    if process.returncode != 0:
        replacements.wrong.append(f"a gateway ended with {process.returncode}: {part.out.read_text()[-500:]}")
    part.start()
    wait_until_ready(readyz)
    replacements.count += 1
    time.sleep(BACK_SECONDS)


def _status_of(url: str) -> int:
    """Return the status of an answer; 0 without one."""
    try:
        return httpx2.get(url, timeout=2.0, trust_env=False, verify=NO_TLS).status_code
    except httpx2.HTTPError:
        return 0
