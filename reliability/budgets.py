"""Races for the last money of a hard budget: several gateways, many concurrent requests, and gateways that are killed meanwhile.

What must hold when all records have arrived: nothing is spent beyond the budget, and so much of it was spent that what is left would not
pay another request.
"""

import json
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from reliability.platforms import Part, Platform, apart, list_models, reserved_ports
from reliability.records import Line, record
from reliability.running import WAIT_SECONDS
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
def fleet(scratch: Path, count: int) -> Iterator[Fleet]:
    """Control, an engine and `count` gateways."""
    with apart(scratch) as (platform, parts), reserved_ports(2 * (count - 1)) as ports:
        secrets = json.loads((platform.directory / "secrets.json").read_bytes())
        own = {
            "TOLLWAY_PEPPER": secrets["peppers"]["1"],
            "TOLLWAY_VAULT_KEY": secrets["vault_key"],
            **ALONE,
        }
        parts.gateway.environment = {**parts.gateway.environment, **ALONE}
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


def ask(client: httpx2.Client, url: str, key: str, number: int, tokens: int) -> str:
    """Send one request, every second one a stream; return its status and, of an error, its code."""
    text = f"toll {number} " + "coin " * (tokens - 3)
    body: dict[str, Any] = {"model": MODEL, "max_tokens": tokens, "messages": [{"role": "user", "content": text}]}
    if number % 2:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    try:
        answer = client.post(f"{url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
    except httpx2.HTTPError as error:
        return type(error).__name__
    if answer.status_code == 200:
        return "200"
    return f"{answer.status_code} {answer.json()['error']['code']}"


def race(fleet: Fleet, *, limit: str, workers: int, kills: Sequence[float], tokens: int = 60, seconds_max: float = 60.0) -> Race:
    """Spend a new hard budget of the organization of `limit` from all gateways at once, until every gateway has refused for two seconds.

    `kills`: seconds after the begin at which a gateway is killed and started again, in turn.
    """
    platform = fleet.platform
    headers = {"authorization": f"Bearer {platform.tenant.admin_key}"}
    with httpx2.Client(base_url=platform.control_url, headers=headers, timeout=WAIT_SECONDS, trust_env=False) as admin:
        body = {"name": "race", "amount": limit, "window": "total", "mode": "hard"}
        made = admin.post("/v1/organization/budgets", json=body)
        assert made.status_code == 200, made.text
        budget_id = made.json()["id"]
        time.sleep(1.0)  # every gateway has heard of it
        result = Race(parse_sum(limit))
        _spend(fleet, result, workers, kills, tokens, seconds_max)
        for part in fleet.gateways:  # each hands in what it has, and closes its epoch
            assert part.end(signal.SIGTERM) == 0
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            stood = admin.get(f"/v1/organization/budgets/{budget_id}").json()
            if stood["leased"] == "0" or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        assert stood["leased"] == "0", f"leases of ended runs still count: {stood}"
        result.spent_pico = parse_sum(stood["spent"])
    for part in fleet.gateways:
        part.start()
    return result


def _spend(fleet: Fleet, result: Race, workers: int, kills: Sequence[float], tokens: int, seconds_max: float) -> None:
    began = time.monotonic()
    refused_since: dict[str, float] = {}
    lock = threading.Lock()
    key = fleet.platform.tenant.api_key

    def is_over() -> bool:
        now = time.monotonic()
        with lock:
            done = len(refused_since) == len(fleet.urls) and all(now - since > 2 for since in refused_since.values())
        return now - began > seconds_max or (done and now - began > max([*kills, 0.0]) + 4)

    def work(worker: int) -> None:
        with httpx2.Client(timeout=WAIT_SECONDS, trust_env=False) as client:
            number = worker
            while not is_over():
                url = fleet.urls[number % len(fleet.urls)]
                status = ask(client, url, key, number, tokens)
                number += workers + 1
                with lock:
                    result.statuses[status] += 1
                    if status == "429 insufficient_quota":
                        refused_since.setdefault(url, time.monotonic())
                    elif status == "200":
                        refused_since.pop(url, None)
                if status != "200":
                    time.sleep(0.05)

    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(work, worker) for worker in range(workers)]
        for number, at in enumerate(kills):
            time.sleep(max(began + at - time.monotonic(), 0))
            part = fleet.gateways[number % len(fleet.gateways)]
            part.end(signal.SIGKILL)
            part.start()
            result.kills += 1
        for each in running:
            each.result()
    result.seconds = time.monotonic() - began


LIMIT = "5"
"""Budget of one race: a hundred requests of MODEL."""

GATEWAYS = 3
CLIENTS = 12
KILL_SECONDS = (1.5, 3.0)
"""Instants at which gateways are killed, in seconds after the begin of a race."""


def measure(races: int) -> list[Line]:
    """Take the figure and keep it; what went wrong is printed."""
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="tollway-budgets-") as scratch, fleet(Path(scratch), GATEWAYS) as running:
        results = [race(running, limit=LIMIT, workers=CLIENTS, kills=KILL_SECONDS) for _ in range(races)]
    wrong = [each.describe() for each in results if each.overspent_pico or each.spent_percent < 99]
    print("\n".join(wrong), flush=True)
    return [
        record(
            "R7",
            of="races for the last money of a hard budget",
            n=len(results),
            failures=len(wrong),
            began=began,
            also={"overspent": sum(1 for each in results if each.overspent_pico)},
            detail={f"race {number}": each.describe() for number, each in enumerate(results, 1)},
        )
    ]
