"""R21: faults of one deployment of four, all of them real processes. No client sees what another deployment could prevent, no deployment
that is well is ejected, and every request is billed once, as the truth logs of all engines say."""

import asyncio
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2

from reliability import load
from reliability.bill_checks import Attempt, Heard, find_wrong, read_bills, read_truth, wait_until_idle
from reliability.load import PREFIX, Ask
from reliability.platforms import PRICES, Apart, Part, Platform, apart, engine
from reliability.processes import WAIT_SECONDS
from reliability.records import Line, record

ENGINES = 4
PER_SECOND = 15.0
FIRST_TOKEN_SECONDS = 5.0
"""Time after which a silent engine is given up: above what a busy machine takes, below the patience of a test."""
ENVIRONMENT = {
    "TOLLWAY__GATEWAY__RELAY__FIRST_TOKEN_SECONDS": str(FIRST_TOKEN_SECONDS),
    "TOLLWAY__GATEWAY__RELAY__IDLE_SECONDS": str(FIRST_TOKEN_SECONDS),
    "TOLLWAY__GATEWAY__RELAY__HEARTBEAT_SECONDS": "60",
}

ORDERED: Mapping[str, str] = {
    "resets": "drop",
    "closes": "drop:fin",
    "hangs": "hang",
    "begins and hangs": "stall@0",
    "drips": "drip",
    "is slow": "ttft@700",
    "storm of 429": "status@429",
    "storm of 503": "status@503",
    "fails with 500": "status@500",
    "error as first event": "error@0:503",
    "breaks off before the first token": "cut@0",
}
"""Faults that the engine of one deployment has with every request, as the simulator is told them."""

HEDGED = frozenset({"hangs", "begins and hangs", "frozen"})
"""Faults under which a request that is not streamed would wait as long as a whole answer may take: its model hedges."""

DONE: Mapping[str, signal.Signals] = {
    "killed": signal.SIGKILL,
    "frozen": signal.SIGSTOP,
    "drained": signal.SIGTERM,
}
"""Signals that strike an engine in the middle of its requests."""


def measure(requests: int, seed: int) -> list[Line]:
    """Take the figure and keep it; what went wrong is printed."""
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="tollway-fleet-faults-") as scratch:
        wrong, heard, outcomes, seconds = run(Path(scratch), requests)
    print("\n".join(wrong[:20]), flush=True)
    detail = {
        "faults": [*ORDERED, *DONE],
        "clients": dict(Counter(each.ended for each in heard)),
        "bills": dict(outcomes),
        "seconds_of_the_slowest_fault": round(max(seconds.values()), 1),
    }
    also = {"faults of one deployment of four": len(seconds)}
    return [record("R21", of="requests", n=len(heard), failures=len(wrong), also=also, seed=seed, began=began, detail=detail)]


def run(scratch: Path, requests: int) -> tuple[list[str], list[Heard], Counter[str], dict[str, float]]:
    """Send so many requests under each fault. Return what is wrong, what the clients heard, the bills, and the seconds of each fault."""
    wrong: list[str] = []
    heard: list[Heard] = []
    seconds: dict[str, float] = {}
    with ExitStack() as held, apart(scratch, gateway_environment=ENVIRONMENT) as (platform, parts):
        engines = [held.enter_context(engine(scratch / f"engine-{number}")) for number in range(ENGINES)]
        urls = [url for _, url in engines]
        prices = {**PRICES}
        for number, name in enumerate([*ORDERED, *DONE]):
            model = f"fleet-{number}"
            prices[model] = PRICES["echo"]
            hedging = {"hedge_after_ms": 1000, "hedge_percent": 50} if name in HEDGED else {}
            healthy = _add_model(platform, model, urls, f"sim-echo!{ORDERED[name]}" if name in ORDERED else "sim-echo", hedging)
            with _broken(engines[0][0], DONE.get(name)) as strike:
                began = time.monotonic()
                asks = [Ask(model, "chat/completions", f"{PREFIX} {name} {each}", stream=each % 2 == 0) for each in range(requests)]
                disturb = [] if strike is None else [(requests // 3, strike)]
                told = asyncio.run(
                    load.send_all(asks, platform.gateway_url, platform.tenant.api_key, per_second=PER_SECOND, disturb=disturb)
                )
                seconds[name] = time.monotonic() - began
            heard += told
            wrong += [f"{name}: {each}" for each in told if each.ended != "complete" and not _was_begun(each, name)]
            ejections = _count_ejections(parts, healthy)
            if ejections:
                wrong.append(f"{name}: deployments that are well were ejected: {ejections}")
        for part, _ in engines[1:]:  # the first one was killed and never said how its requests ended
            wait_until_idle(part.directory / "truth.jsonl")
        platform.wait_until_billed(sum(each.ended == "complete" for each in heard))
        parts.gateway.end(signal.SIGTERM)
        parts.control.end(signal.SIGTERM)
        attempts = _merge([read_truth(part.directory / "truth.jsonl") for part, _ in engines])
        faults, outcomes = find_wrong(attempts, read_bills(platform.database_url), heard, prices)
    return wrong + faults, heard, outcomes, seconds


def _was_begun(each: Heard, fault: str) -> bool:
    """Return whether an engine had begun to answer a stream before it was struck: then nobody else can answer it."""
    return fault in DONE and each.tokens > 0


@contextmanager
def _broken(part: Part, sign: signal.Signals | None) -> Iterator[Callable[[], None] | None]:
    """Yield what strikes an engine with a signal; afterwards it runs again."""
    if sign is None:
        yield None
        return
    process = part.process
    assert process is not None
    yield lambda: process.send_signal(sign)
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        part.end(signal.SIGTERM)
    part.start()


def _add_model(platform: Platform, model: str, urls: Sequence[str], broken: str, hedging: Mapping[str, int]) -> list[str]:
    """Add a model with a deployment at each engine, the first of which is `broken`, and wait until the gateway serves it. Return the ids of
    the others."""
    headers = {"authorization": f"Bearer {platform.platform_key}"}
    ids: list[str] = []
    with httpx2.Client(base_url=f"{platform.control_url}/v1/platform/", headers=headers, timeout=WAIT_SECONDS, trust_env=False) as http:

        def post(path: str, body: Mapping[str, object]) -> dict[str, object]:
            answer = http.post(path, json=body)
            assert answer.status_code == 200, answer.text
            return dict(answer.json())

        post("models", {"name": model, "endpoints": ["chat/completions"], **hedging})
        post("prices", {"model": model, "currency": "EUR", **PRICES["echo"]})
        for number, url in enumerate(urls):
            upstream_model = "sim-echo" if number else broken
            body = {"model": model, "base_url": url, "engine": "sim", "upstream_model": upstream_model}
            ids.append(str(post("deployments", body)["id"]))
        post(f"models/{model}/publish", {})
    headers = {"authorization": f"Bearer {platform.tenant.api_key}"}
    deadline = time.monotonic() + WAIT_SECONDS
    while (
        httpx2.get(f"{platform.gateway_url}/v1/models/{model}", headers=headers, trust_env=False, timeout=WAIT_SECONDS).status_code != 200
    ):
        assert time.monotonic() < deadline, f"the gateway never knew {model}"
        time.sleep(0.02)
    return ids[1:]


def _count_ejections(parts: Apart, deployments: Sequence[str]) -> int:
    """Return how often the gateway ejected these deployments."""
    arguments = parts.gateway.arguments
    page = httpx2.get(f"http://{arguments[arguments.index('--internal') + 1]}/metrics", timeout=WAIT_SECONDS, trust_env=False).text
    rows = re.findall(r'^tollway_upstream_ejections_total\{deployment="([^"]+)"[^}]*\} (\S+)$', page, re.MULTILINE)
    return int(sum(float(count) for deployment, count in rows if deployment in deployments))


def _merge(logs: Sequence[Mapping[str, list[Attempt]]]) -> dict[str, list[Attempt]]:
    """Return the attempts of each request at all engines, in their order."""
    merged: dict[str, list[Attempt]] = {}
    for log in logs:
        for request_id, attempts in log.items():
            merged[request_id] = sorted([*merged.get(request_id, []), *attempts], key=lambda each: each.number)
    return merged
