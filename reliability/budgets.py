"""Races for the last money of a hard budget or of prepaid credit: several gateways, many requests at once, and gateways that are killed.

What must hold when all records have arrived: nothing is spent beyond the budget, and so much of it was spent that what is left would not
pay another request.
"""

import asyncio
import json
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from reliability.platforms import Part, Platform, apart, list_models, reserved_ports
from reliability.processes import WAIT_SECONDS
from reliability.records import Line, record
from tests.storage.counter_servers import counter_server, find_servers
from tollway.domain.money import format_amount, parse_sum

MODEL = "thinker"
"""Its output is dear, so that a budget of a few units is spent by a hundred requests."""


ALONE = {"TOLLWAY__GATEWAY__LIMITS__PER_GATEWAY": "true"}
"""Setting with which several gateways run without a store of shared limit counters: budgets need none."""


@dataclass(slots=True)
class Fleet:
    """A platform with several gateways, each with a spool of its own."""

    platform: Platform
    gateways: list[Part]
    urls: list[str]


@contextmanager
def fleet(scratch: Path, count: int, environment: Mapping[str, str] = ALONE) -> Iterator[Fleet]:
    """Control, an engine and `count` gateways, which `environment` tells where limits are counted."""
    with apart(scratch) as (platform, parts), reserved_ports(2 * (count - 1)) as ports:
        secrets = json.loads((platform.directory / "secrets.json").read_bytes())
        own = {
            "TOLLWAY_PEPPER": secrets["peppers"]["1"],
            "TOLLWAY_VAULT_KEY": secrets["vault_key"],
            **environment,
        }
        parts.gateway.environment = {**parts.gateway.environment, **environment}
        link = parts.gateway.arguments[list(parts.gateway.arguments).index("--control-link-url") + 1]
        made = Fleet(platform, [parts.gateway], [platform.gateway_url])
        try:
            for number in range(1, count):
                public, internal = (f"127.0.0.1:{port}" for port in ports[2 * number - 2 : 2 * number])
                where = ("--listen", public, "--internal", internal, "--control-link-url", link)
                part = Part(
                    ("-m", "tollway", "gateway", "--data-dir", str(scratch / f"gateway-{number}-data"), *where),
                    scratch / f"gateway-{number}",
                    own | _register(platform, f"gateway {number}"),
                )
                part.start()
                made.gateways.append(part)
                made.urls.append(f"http://{public}")
            for url in made.urls:
                deadline = time.monotonic() + WAIT_SECONDS
                while list_models(url, platform.tenant.api_key) != 200:
                    assert time.monotonic() < deadline, f"{url} does not serve"
                    time.sleep(0.02)
            yield made
        finally:
            for part in made.gateways[1:]:
                part.discard()


def _register(platform: Platform, name: str) -> dict[str, str]:
    """Register a node; return the variables that make a gateway it."""
    headers = {"authorization": f"Bearer {platform.platform_key}"}
    with httpx2.Client(base_url=platform.control_url, headers=headers, timeout=WAIT_SECONDS, trust_env=False) as operator:
        answer = operator.post("/v1/platform/nodes", json={"name": name})
        assert answer.status_code == 200, answer.text
        made = answer.json()
    return {"TOLLWAY_NODE_ID": made["id"], "TOLLWAY_NODE_KEY": made["key"]["value"]}


@dataclass(slots=True)
class Race:
    """The result of a race. `statuses`: answers by status and code; `spent_pico`: by control when all records had arrived."""

    limit_pico: int
    statuses: Counter[str] = field(default_factory=Counter)
    spent_pico: int = 0
    kills: int = 0
    seconds: float = 0.0

    @property
    def overspent_pico(self) -> int:
        """Return what was spent beyond the budget."""
        return max(self.spent_pico - self.limit_pico, 0)

    @property
    def spent_percent(self) -> float:
        """Return the share of the budget that was spent."""
        return 100 * self.spent_pico / self.limit_pico

    def describe(self) -> str:
        """Return the figures in a line."""
        limit, spent = format_amount(self.limit_pico), format_amount(self.spent_pico)
        return f"limit {limit}, spent {spent} ({self.spent_percent:.3f} %), {self.kills} kills, {dict(self.statuses)}, {self.seconds:.1f} s"


async def ask(client: httpx2.AsyncClient, url: str, key: str, number: int, tokens: int) -> str:
    """Send one request, every second one a stream; return its status and, of an error, its code."""
    text = f"toll {number} " + "coin " * (tokens - 3)
    body: dict[str, Any] = {"model": MODEL, "max_tokens": tokens, "messages": [{"role": "user", "content": text}]}
    if number % 2:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    try:
        answer = await client.post(f"{url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
    except httpx2.HTTPError as error:
        return type(error).__name__
    if answer.status_code == 200:
        return "200"
    return f"{answer.status_code} {answer.json()['error']['code']}"


def race(
    fleet: Fleet,
    *,
    limit: str,
    workers: int,
    kills: Sequence[float],
    tokens: int = 60,
    seconds_max: float = 60.0,
    is_prepaid: bool = False,
) -> Race:
    """Spend a new hard budget of the organization of `limit` from all gateways at once, until every gateway has refused for two seconds.

    `kills`: seconds after the begin at which a gateway is killed and started again, in turn. `is_prepaid`: spend credit of `limit` instead,
    and what races before have left of theirs.
    """
    platform = fleet.platform
    headers = {"authorization": f"Bearer {platform.tenant.admin_key}"}
    with httpx2.Client(base_url=platform.control_url, headers=headers, timeout=WAIT_SECONDS, trust_env=False) as admin:
        budget_id = _grant_credit(platform, limit) if is_prepaid else _create_budget(admin, limit)
        time.sleep(1.0)  # every gateway has heard of it
        before = admin.get(f"/v1/organization/budgets/{budget_id}").json()
        result = Race(parse_sum(before["left"]))
        asyncio.run(_spend(fleet, result, workers, kills, tokens, seconds_max))
        for part in fleet.gateways:  # each hands in what it has, and closes its epoch
            assert part.end(signal.SIGTERM) == 0
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            stood = admin.get(f"/v1/organization/budgets/{budget_id}").json()
            if stood["leased"] == "0" or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        assert stood["leased"] == "0", f"leases of ended runs still count: {stood}"
        result.spent_pico = parse_sum(stood["spent"]) - parse_sum(before["spent"])
        if not is_prepaid:  # it would refuse every request of the next race
            ended = admin.delete(f"/v1/organization/budgets/{budget_id}")
            assert ended.status_code == 200, ended.text
    for part in fleet.gateways:
        part.start()
    return result


def _create_budget(admin: httpx2.Client, limit: str) -> str:
    """Create a hard budget of the organization; return its id."""
    made = admin.post("/v1/organization/budgets", json={"name": "race", "amount": limit, "window": "total", "mode": "hard"})
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


def _grant_credit(platform: Platform, amount: str) -> str:
    """Grant credit to the organization and hold it to that; return the id of the prepaid budget."""
    headers = {"authorization": f"Bearer {platform.platform_key}"}
    path = f"/v1/platform/organizations/{platform.tenant.organization_id}"
    with httpx2.Client(base_url=platform.control_url, headers=headers, timeout=WAIT_SECONDS, trust_env=False) as operator:
        made = operator.post(f"{path}/credit_grants", json={"category": "paid", "amount": amount})
        assert made.status_code == 200, made.text
        held = operator.put(f"{path}/prepayment", json={"is_prepaid": True})
        assert held.status_code == 200, held.text
    return str(held.json()["budget_id"])


async def _spend(fleet: Fleet, result: Race, workers: int, kills: Sequence[float], tokens: int, seconds_max: float) -> None:
    began = time.monotonic()
    refused_since: dict[str, float] = {}
    key = fleet.platform.tenant.api_key
    pause_seconds = max(workers / REFUSED_PER_SECOND, 0.05)
    is_killing = True

    def is_over() -> bool:
        now = time.monotonic()
        is_refused = len(refused_since) == len(fleet.urls) and all(now - since > 2 for since in refused_since.values())
        return now - began > seconds_max or (is_refused and not is_killing)

    async def work(client: httpx2.AsyncClient, number: int) -> None:
        while not is_over():
            url = fleet.urls[number % len(fleet.urls)]
            status = await ask(client, url, key, number, tokens)
            number += workers + 1
            result.statuses[status] += 1
            if status == "429 insufficient_quota":
                refused_since.setdefault(url, time.monotonic())
            elif status == "200":
                refused_since.pop(url, None)
            if status != "200":
                await asyncio.sleep(pause_seconds)

    async def kill() -> None:
        nonlocal is_killing
        for number, at in enumerate(kills):
            await asyncio.sleep(max(began + at - time.monotonic(), 0))
            part = fleet.gateways[number % len(fleet.gateways)]
            await asyncio.to_thread(part.end, signal.SIGKILL)
            await asyncio.to_thread(part.start)
            result.kills += 1
        refused_since.clear()  # each is asked again after the last kill
        is_killing = False

    connections = httpx2.Limits(max_connections=workers, max_keepalive_connections=workers)
    async with httpx2.AsyncClient(timeout=WAIT_SECONDS, limits=connections, trust_env=False) as client:
        await asyncio.gather(kill(), *(work(client, worker) for worker in range(workers)))
    result.seconds = time.monotonic() - began


REFUSED_PER_SECOND = 250
"""Requests a second that all clients together send once they are refused, so that a refusal of hundreds is not a load test."""

LIMIT = "2"
"""Budget of one race: some thirty requests of MODEL, of which a hundredth is no more than the cheapest one costs. Hundreds ask at once."""

GATEWAYS = 4
CLIENTS = 500
KILL_SECONDS = (0.5, 2.0)
"""Instants at which gateways are killed, in seconds after the begin of a race."""

SECONDS_MAX = 120.0


def measure(races: int, clients: int, seconds_max: float) -> list[Line]:
    """Take the figure with every server of shared limit counters that is installed and keep it; what went wrong is printed.

    `races`: of each kind with each server. `clients`: that ask at once. `seconds_max`: after so long no race of a kind begins any more.
    """
    lines = []
    for name in find_servers():
        with (
            tempfile.TemporaryDirectory(prefix="tollway-budgets-") as scratch,
            counter_server(name) as server,
            fleet(Path(scratch), GATEWAYS, {"TOLLWAY__GATEWAY__LIMITS__REDIS_URL": server.url}) as running,
        ):
            _limit_project(running.platform)
            for case, of, is_prepaid in ((name, "a hard budget", False), (f"{name}, credit", "prepaid credit", True)):
                began = time.time()
                results: list[Race] = []
                while len(results) < races and (not results or time.time() - began < seconds_max):
                    results.append(
                        race(running, limit=LIMIT, workers=clients, kills=KILL_SECONDS, seconds_max=SECONDS_MAX, is_prepaid=is_prepaid)
                    )
                wrong = [each.describe() for each in results if each.overspent_pico or each.spent_percent < 99]
                print("\n".join(wrong), flush=True)
                lines.append(
                    record(
                        "R7",
                        case=case if clients == CLIENTS else f"{case}, {clients} clients",
                        of=f"races for the last money of {of}",
                        n=len(results),
                        failures=len(wrong),
                        began=began,
                        also={"overspent": sum(1 for each in results if each.overspent_pico)},
                        detail={f"race {number}": each.describe() for number, each in enumerate(results, 1)},
                    )
                )
    return lines


def _limit_project(platform: Platform) -> None:
    """Set limits that no race reaches, so that each request is decided by the server of shared counters too."""
    with platform.admin() as http:
        path = f"/v1/organization/projects/{platform.tenant.project_id}/limits"
        answer = http.put(path, json={"requests_per_minute": 1_000_000, "concurrent_requests": 10 * CLIENTS})
        assert answer.status_code == 200, answer.text
