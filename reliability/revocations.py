"""R22: how long a revoked key is still taken. A key is revoked while clients ask every gateway with it without a pause, and while a stream
of it is open at each; once as usual, and once with the streams of changes cut, so that gateways poll.

The time runs from the moment at which the revocation is sent to the first refusal at each gateway, so it includes the work of control."""

import asyncio
import json
import signal
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from reliability import load
from reliability.load import Ask
from reliability.platforms import Part, Platform, apart, make_join_token, reserved_ports, wait_until_served
from reliability.processes import WAIT_SECONDS
from reliability.records import Line, record

P99_SECONDS_MAX, CUT_SECONDS_MAX, STREAM_SECONDS_MAX = 1.0, 5.0, 5.0
"""Promises of SECURITY.md: with the stream of changes, without it, and for streams that are open."""

STREAM_EVERY = 5
"""One revocation of so many also ends a stream at each gateway."""

TOKENS = 60_000
"""Length of a stream, which would take minutes."""


@dataclass(slots=True)
class Times:
    """Seconds from the revocation to the first refusal of each gateway, to the answer of control, and to the end of open streams.
    `wrong`: what a client must never see."""

    refused: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    unconfirmed: int = 0
    wrong: list[str] = field(default_factory=list)


def measure(revocations: int, seed: int) -> list[Line]:
    """Take the figure with one gateway and with four, with streams of changes and without; what went wrong is printed."""
    lines = []
    for gateways in (1, 4):
        for is_cut in (False, True):
            began = time.time()
            with tempfile.TemporaryDirectory(prefix="tollway-revocations-") as scratch:
                times = run(Path(scratch), gateways, revocations, is_cut=is_cut)
            wrong = check(times, is_cut=is_cut)
            print("\n".join(wrong[:20]), flush=True)
            lines.append(
                record(
                    "R22",
                    case=f"{gateways} gateway{'s' * (gateways > 1)}, {'streams of changes cut' if is_cut else 'streams of changes'}",
                    of="revocations at a gateway",
                    n=len(times.refused),
                    failures=len(wrong),
                    also={"streams open at a revocation": len(times.ended)},
                    seed=seed,
                    began=began,
                    detail={
                        "refused_after_ms": describe(times.refused),
                        "answered_after_ms": describe(times.answered),
                        "streams_ended_after_ms": describe(times.ended),
                        "answers_that_named_gateways": times.unconfirmed,
                    },
                )
            )
    return lines


def check(times: Times, *, is_cut: bool) -> list[str]:
    """Return what is wrong with the times."""
    wrong = list(times.wrong)
    bound = CUT_SECONDS_MAX if is_cut else P99_SECONDS_MAX
    for what, seconds, most in (("refused", times.refused, bound), ("ended a stream", times.ended, STREAM_SECONDS_MAX)):
        if seconds and (late := find_quantile(seconds, 0.99)) > most:
            wrong.append(f"99 % of gateways {what} within {late:.2f} s, not {most:g}")
    return wrong


def run(scratch: Path, gateways: int, revocations: int, *, is_cut: bool) -> Times:
    """Revoke so many keys, one after the other, at a platform with so many gateways."""
    times = Times()
    with platform_of(scratch, gateways, is_cut=is_cut) as (platform, urls):
        for number in range(revocations):
            secret, path = _make_key(platform, number)
            for url in urls:
                wait_until_served(url, secret)
            asyncio.run(_revoke(platform, urls, secret, path, times, has_streams=number % STREAM_EVERY == 0))
    return times


@contextmanager
def platform_of(scratch: Path, gateways: int, *, is_cut: bool) -> Iterator[tuple[Platform, list[str]]]:
    """Run a platform with so many gateways, linked to control through a proxy; yield it with their addresses. `is_cut`: the proxy
    ends each connection that follows the stream of changes."""
    with apart(scratch) as (platform, parts), ThreadPoolExecutor(1) as background, ExitStack() as others:
        assert parts.gateway.end(signal.SIGTERM) == 0  # its link has no proxy
        link = parts.control.arguments[parts.control.arguments.index("--link") + 1]
        (proxied,) = others.enter_context(reserved_ports(1))
        stop = threading.Event()
        background.submit(asyncio.run, _proxy(proxied, link, stop, is_cut=is_cut))
        others.callback(stop.set)
        kept = json.loads((platform.directory / "secrets.json").read_bytes())
        own = {"TOLLWAY_PEPPER": kept["peppers"]["1"], "TOLLWAY_VAULT_KEY": kept["vault_key"]}
        own["TOLLWAY__GATEWAY__LIMITS__PER_GATEWAY"] = "true"
        started: list[Part] = []
        urls: list[str] = []
        for number in range(gateways):
            public, internal = others.enter_context(reserved_ports(2))
            where = ("--listen", f"127.0.0.1:{public}", "--internal", f"127.0.0.1:{internal}")
            place = ("--data-dir", str(scratch / f"gateway-{number}" / "data"), "--control-link-url", f"http://127.0.0.1:{proxied}")
            joining = {**own, "TOLLWAY_JOIN_TOKEN": make_join_token(platform)}
            gateway = Part(("-m", "tollway", "gateway", *place, *where), scratch / f"gateway-{number}", joining)
            others.callback(gateway.discard)
            started.append(gateway)
            urls.append(f"http://127.0.0.1:{public}")
        with ThreadPoolExecutor() as pool:
            list(pool.map(Part.start, started))
        for url in urls:
            wait_until_served(url, platform.tenant.api_key)
        yield platform, urls


async def _proxy(port: int, link: str, stop: threading.Event, *, is_cut: bool) -> None:
    """Hand connections on to the link of control until `stop` is set."""
    host, _, link_port = link.rpartition(":")

    async def hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Cancelled with the proxy: a task of a server that ends so is reported as a failure.
        with suppress(asyncio.CancelledError):
            await relay(reader, writer)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with _connected(host, int(link_port), writer) as (answers, requests):
            ways = [asyncio.create_task(_copy(reader, requests, b"follow=true" if is_cut else None))]
            ways.append(asyncio.create_task(_copy(answers, writer, None)))
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in ways:
                    each.cancel()
                await asyncio.gather(*ways, return_exceptions=True)

    async with await asyncio.start_server(hand_on, "127.0.0.1", port):
        while not stop.is_set():
            await asyncio.sleep(0.1)


@asynccontextmanager
async def _connected(
    host: str, port: int, client: asyncio.StreamWriter
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to control for a client, and end both connections with the block."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        client.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, refused: bytes | None) -> None:
    while data := await reader.read(1 << 16):
        if refused is not None and refused in data:
            return
        writer.write(data)
        await writer.drain()


def _make_key(platform: Platform, number: int) -> tuple[str, str]:
    keys = f"/v1/organization/projects/{platform.tenant.project_id}/api_keys"
    with platform.admin() as http:
        answer = http.post(keys, json={"name": f"revoked {number}"})
    assert answer.status_code == 200, answer.text
    return answer.json()["value"], f"{keys}/{answer.json()['id']}"


async def _revoke(platform: Platform, urls: Sequence[str], secret: str, path: str, times: Times, *, has_streams: bool) -> None:
    """Revoke a key while every gateway is asked with it."""
    streams = []
    if has_streams:
        ask = Ask("echo", "chat/completions", "a " * TOKENS, stream=True)
        streams = [asyncio.create_task(load.send(ask, url, secret)) for url in urls]
        await asyncio.sleep(0.5)  # they have begun
    polls = [asyncio.create_task(_ask_until_refused(url, secret)) for url in urls]
    await asyncio.sleep(0.05)
    sent = time.monotonic()
    with platform.admin() as http:
        answer = await asyncio.to_thread(http.delete, path)
    answered = time.monotonic()
    assert answer.status_code == 200, answer.text
    pending = answer.json()["pending_nodes"]
    times.unconfirmed += bool(pending)
    times.answered.append(answered - sent)
    for last_served, refused in await asyncio.gather(*polls):
        times.refused.append(refused - sent)
        if not pending and last_served > answered:
            times.wrong.append(f"a gateway took the key {last_served - answered:.3f} s after control said that all had confirmed")
    for stream in streams:
        heard = await stream
        times.ended.append(time.monotonic() - sent)
        if (heard.ended, heard.code) != ("error", "invalid_api_key"):
            times.wrong.append(f"an open stream ended as {heard.ended}, {heard.code}")


async def _ask_until_refused(url: str, secret: str) -> tuple[float, float]:
    """Ask a gateway until it refuses the key. Return when the last request that it served began, and when it refused."""
    last_served, deadline = 0.0, time.monotonic() + WAIT_SECONDS
    async with httpx2.AsyncClient(
        base_url=url, headers={"authorization": f"Bearer {secret}"}, trust_env=False, timeout=WAIT_SECONDS
    ) as http:
        while True:
            began = time.monotonic()
            assert began < deadline, f"{url} takes the key still"
            answer = await http.get("/v1/models")
            if answer.status_code == 401:
                return last_served, time.monotonic()
            assert answer.status_code == 200, answer.text
            last_served = began
            await asyncio.sleep(0.002)


def find_quantile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def describe(seconds: Sequence[float]) -> dict[str, float]:
    """Return times in milliseconds."""
    if not seconds:
        return {}
    return {
        "p50": round(find_quantile(seconds, 0.5) * 1000, 1),
        "p99": round(find_quantile(seconds, 0.99) * 1000, 1),
        "max": round(max(seconds) * 1000, 1),
    }
