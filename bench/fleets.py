"""Real fleets: `python -m bench.fleets`, which prints the table of real processes in docs/routing.md.

Four simulated engines compute one prompt after the other and keep the prefixes of the last ones. In front of them stand 1, 2 and 4
gateways of one platform, or as many processes of another project's router; each request goes to one of them at random. The conversations
are those of Mooncake's trace (bench/traces) with a quarter of the tokens. All subjects are measured in turn, several times, so that
whatever else the machine does strikes all of them; the table has the medians.

TTFT is the client's: from the first byte of the request to the first event with text. The hit rate is the engines' own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx2

from bench.machine import Unavailable
from bench.routing import Arrival, read_trace
from bench.targets import SGLANG_ROUTER_VERSION, VLLM_ROUTER_VERSION, make_environment
from reliability.platforms import Apart, Part, Platform, apart, prepared_gateway, reserved_ports, start_gateways
from reliability.processes import ENVIRONMENT

ENGINES = 4
GATEWAYS = (1, 2, 4)
MODEL = "sim-fleet"
TOKENS_DIVISOR = 4
"""Part of a trace's prompt that is sent. A whole one would be 48 KB on the average, and this machine the limit instead of the engines."""
BLOCK_TOKENS = 512 // TOKENS_DIVISOR
BYTES_PER_TOKEN = 4
SECONDS_PER_TOKEN = 1 / 16_000
CACHE_BLOCKS_MAX = 16_000
"""Blocks of 16 tokens that an engine keeps: a quarter of a million tokens, of the millions that a run sends."""
PER_SECOND = 13.0
"""About 0.7 of what the engines can compute with round robin."""
ANSWER_SECONDS_MAX = 120.0
LIMITED_APART = {"TOLLWAY__GATEWAY__LIMITS__PER_GATEWAY": "true"}
"""Nothing is limited here, so the gateways share no counters."""


class Sample(NamedTuple):
    """Outcome of one run of one subject. Times to the first token in seconds. `failed`: requests without a whole answer."""

    subject: str
    instances: int
    hit_rate: float
    p50: float
    p99: float
    failed: int


class Target(NamedTuple):
    """Somebody to send requests to: its addresses, and the key that it asks for."""

    urls: Sequence[str]
    key: str


def make_prompt(arrival: Arrival, run: int) -> str:
    """Return the text of a prompt: what requests of one run share in the trace they share here, and no two runs share anything."""
    pieces: list[str] = []
    for block in arrival.blocks:
        words = random.Random(run << 32 | block)
        pieces.append("".join(f"{words.getrandbits(60):015x} " for _ in range(BLOCK_TOKENS * BYTES_PER_TOKEN // 16)))
    return "".join(pieces)[: arrival.prompt // TOKENS_DIVISOR * BYTES_PER_TOKEN]


async def ask(target: Target, text: str, dice: random.Random) -> float:
    """Send one request and read its stream. Return the seconds to the first event with text. Raises ValueError for a bad answer."""
    host, port = dice.choice(target.urls).removeprefix("http://").split(":")
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 1, "stream": True}
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {target.key}\r\nconnection: close\r\n"
    began = time.monotonic()
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
        answer, first = b"", 0.0
        while part := await reader.read(1 << 16):
            answer += part
            if not first and re.search(rb'"content":\s*"[^"]', answer):
                first = time.monotonic() - began
    finally:
        writer.close()
    if not answer.startswith(b"HTTP/1.1 200") or not first or b"[DONE]" not in answer:
        raise ValueError(answer[:300].decode(errors="replace"))
    return first


async def send_all(target: Target, arrivals: Sequence[Arrival], run: int) -> tuple[list[float], int]:
    """Send the requests when they are due, whether or not earlier ones are answered. Return the times, and how many requests failed."""
    dice = random.Random(run)
    times: list[float] = []
    failures: list[str] = []
    began = time.monotonic()

    async def send(arrival: Arrival, text: str) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                times.append(await ask(target, text, dice))
        except (OSError, ValueError, TimeoutError) as error:
            failures.append(repr(error))

    async with asyncio.TaskGroup() as group:
        for arrival in arrivals:
            text = make_prompt(arrival, run)
            await asyncio.sleep(max(began + arrival.at - time.monotonic(), 0.0))
            group.create_task(send(arrival, text))
    if failures:
        print(f"{len(failures)} failed, such as {failures[0]}", flush=True)
    return times, len(failures)


def count_hits(urls: Sequence[str]) -> tuple[float, float]:
    """Return the prompt tokens that the engines found in their caches, and those that they looked for, since they began."""
    found = {"hits": 0.0, "queries": 0.0}
    for url in urls:
        page = httpx2.get(f"{url}/metrics", timeout=ANSWER_SECONDS_MAX, trust_env=False).text
        for name in found:
            found[name] += sum(map(float, re.findall(rf"^vllm:prefix_cache_{name}_total(?:{{[^}}]*}})? (\S+)$", page, re.MULTILINE)))
    return found["hits"], found["queries"]


def measure(subject: str, target: Target, engines: Sequence[str], arrivals: Sequence[Arrival], run: int) -> Sample:
    """Send the load through one subject. `run`: a number of its own, which no other run has."""
    hits, queries = count_hits(engines)
    times, failed = asyncio.run(send_all(target, arrivals, run))
    hits_after, queries_after = count_hits(engines)
    times.sort()
    rate = (hits_after - hits) / max(queries_after - queries, 1.0)
    sample = Sample(subject, len(target.urls), rate, times[len(times) // 2], times[len(times) * 99 // 100], failed)
    print(sample, flush=True)
    return sample


@contextmanager
def simulated_engines(scratch: Path) -> Iterator[list[str]]:
    """Yield the addresses of the engines."""
    with ExitStack() as held:
        ports = held.enter_context(reserved_ports(ENGINES))
        options = ["--running-max", "1", "--ttft-seconds", "0.005", "--prefill-seconds-per-token", str(SECONDS_PER_TOKEN)]
        options += ["--cache-blocks-max", str(CACHE_BLOCKS_MAX), "--context-tokens-max", "200000", "--model", MODEL]
        for number, port in enumerate(ports):
            part = Part(("-m", "tollway", "simulate", "--listen", f"127.0.0.1:{port}", *options), scratch / f"engine-{number}")
            held.callback(part.discard)
            part.start()
        yield [f"http://127.0.0.1:{port}" for port in ports]


def add_fleet(platform: Platform, engines: Sequence[str]) -> None:
    """Add the model and its deployments."""
    headers = {"authorization": f"Bearer {platform.platform_key}"}
    bodies = [
        ("models", {"name": MODEL, "endpoints": ["chat/completions"]}),
        ("prices", {"model": MODEL, "currency": "EUR", "input": "1", "cached_input": "0.1", "output": "2", "reasoning": "2"}),
        (f"models/{MODEL}/publish", {}),
        *(("deployments", {"model": MODEL, "base_url": url, "engine": "sim", "upstream_model": MODEL}) for url in engines),
    ]
    with httpx2.Client(base_url=f"{platform.control_url}/v1/platform/", headers=headers, trust_env=False) as http:
        for path, body in bodies:
            answer = http.post(path, json=body)
            assert answer.status_code == 200, answer.text


@contextmanager
def routers(scratch: Path, package: str, version: str, policy: str, engines: Sequence[str], count: int) -> Iterator[Target]:
    """Run `count` processes of another project's router. Raises Unavailable."""
    module = package.replace("-", "_")
    imports = ["setproctitle", "fastapi", "uvicorn", "aiohttp", "orjson", "requests", "PyYAML"]
    python = make_environment(f"{package}-fleet-{version}", ["--no-deps", f"{package}=={version}"], imports)
    with ExitStack() as held:
        ports = held.enter_context(reserved_ports(2 * count))
        processes: list[subprocess.Popen[bytes]] = []
        for port, metrics in zip(ports[:count], ports[count:], strict=True):
            command = [str(python), "-m", f"{module}.launch_router", "--host", "127.0.0.1", "--port", str(port), "--policy", policy]
            command += ["--prometheus-port", str(metrics), "--log-level", "error", "--worker-urls", *engines]
            out = held.enter_context((scratch / f"router-{port}").open("wb"))
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=os.environ | ENVIRONMENT)
            processes.append(process)
            held.callback(process.wait)
            held.callback(process.kill)
        target = Target([f"http://127.0.0.1:{port}" for port in ports[:count]], "none")
        deadline = time.monotonic() + 60.0
        for url, process in zip(target.urls, processes, strict=True):
            while not _is_ready(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Unavailable(f"{package} did not start: {next(scratch.glob('router-*')).read_text()[-300:]}")
                time.sleep(0.1)
        yield target


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readiness", timeout=5.0, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


OTHERS: dict[str, tuple[str, str, str]] = {
    "round robin (vllm-router)": ("vllm-router", VLLM_ROUTER_VERSION, "round_robin"),
    "cache_aware (vllm-router)": ("vllm-router", VLLM_ROUTER_VERSION, "cache_aware"),
    "cache_aware (sglang-router)": ("sglang-router", SGLANG_ROUTER_VERSION, "cache_aware"),
}


def run(scratch: Path, requests: int, rounds: int) -> list[Sample]:
    """Measure every subject with each number of gateways, `rounds` times in turn."""
    speed = PER_SECOND * read_trace(0, requests, 1.0)[-1].at / requests
    samples: list[Sample] = []
    numbers = iter(range(1, 1_000_000))
    with simulated_engines(scratch) as engines, apart(scratch, gateway_environment=LIMITED_APART) as (platform, parts), ExitStack() as held:
        add_fleet(platform, engines)
        urls = [platform.gateway_url]
        for count in GATEWAYS:
            _grow(held, platform, parts, scratch, urls, count)
            for seed in range(rounds):
                arrivals = read_trace(seed, requests, speed)
                samples.append(
                    measure("home and cost (Tollway)", Target(urls[:], platform.tenant.api_key), engines, arrivals, next(numbers))
                )
                for subject, (package, version, policy) in OTHERS.items():
                    directory = scratch / f"run-{next(numbers)}"
                    directory.mkdir()
                    try:
                        with routers(directory, package, version, policy, engines, count) as target:
                            samples.append(measure(subject, target, engines, arrivals, next(numbers)))
                    except Unavailable as error:
                        print(f"left out: {subject}: {error}", flush=True)
    return samples


def _grow(held: ExitStack, platform: Platform, parts: Apart, scratch: Path, urls: list[str], count: int) -> None:
    """Start gateways until there are `count`."""
    joined = [held.enter_context(prepared_gateway(platform, parts, scratch, number, LIMITED_APART)) for number in range(len(urls), count)]
    start_gateways(platform, joined)
    urls += [url for _, url in joined]


def render(samples: Sequence[Sample]) -> str:
    """Return the table: medians over the rounds."""
    names = [f"{count} gateway" if count == 1 else f"{count} gateways" for count in GATEWAYS]
    lines = [f"| policy | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for subject in dict.fromkeys(sample.subject for sample in samples):
        by_count = [[sample for sample in samples if (sample.subject, sample.instances) == (subject, count)] for count in GATEWAYS]
        lines.append(f"| {subject} | {' | '.join(map(_render_cell, by_count))} |")
    return "\n".join(lines)


def _render_cell(samples: Sequence[Sample]) -> str:
    if not samples:
        return "-"
    hit_rate, p50, p99 = (statistics.median(values) for values in zip(*(each[2:5] for each in samples), strict=True))
    failed = sum(sample.failed for sample in samples)
    return f"{hit_rate:.3f} / {p50:.2f} / {p99:.1f}" + (f", {failed} failed" if failed else "")


def main() -> None:
    """Print the table: hit rate, median and 99th percentile of the seconds to the first token."""
    parser = argparse.ArgumentParser(prog="python -m bench.fleets", description=main.__doc__)
    parser.add_argument("--requests", type=int, default=600, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tollway-fleets-") as scratch:
        samples = run(Path(scratch), arguments.requests, arguments.rounds)
    print(f"load of the machine: {', '.join(f'{each:.1f}' for each in os.getloadavg())}")
    print(render(samples))


if __name__ == "__main__":
    main()
