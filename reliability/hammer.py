"""R19: many tenants send through one gateway to engines that misbehave in every way we know, and no tenant is given another's answer.

Each request carries a marker of its own, and each answer of the engine (`hostile_engine`) contains the marker of the request that it
answers. Whatever a client receives on its connection may contain the markers of that client's own request only. Requests share the
engine's connections: well-behaved ones follow misbehaviour on the same pool.
"""

import asyncio
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from reliability.hostile_apis import APIS
from reliability.hostile_engine import BEHAVIOURS, Counts, hostile_engine
from reliability.platforms import Platform, list_models, supervised
from reliability.processes import WAIT_SECONDS
from reliability.records import Line, record
from tollway.wire import sse

TENANTS = 12
CONNECTIONS = 4
"""Connections of each tenant."""
TOGETHER_MAX = 3
"""Requests that are sent in one write."""
SILENCE_SECONDS_MAX = 60.0
"""An answer of which nothing comes for longer hangs. How long all of it takes says nothing: an engine that sends two hundred pieces, each
in a turn of its loop, takes a minute where it gets a twentieth of a processor."""
ENVIRONMENT = {"TOLLWAY__GATEWAY__QUEUE__CONCURRENCY_MIN": "10000"}
"""The engine is sent whatever is asked, however late it is: a busy machine must not be taken for a busy engine."""
MARKER = re.compile(rb"t\d{2}-\d{6}")
RIGHT = "answer"
"""Behaviour of half of all requests of a group: they are the ones that would be given what others left behind."""


@dataclass(slots=True)
class Tally:
    """Observations of all clients."""

    answers: Counter[str] = field(default_factory=Counter)
    """Answers by behaviour and status; status 0 stands for a connection that was closed."""
    foreign: list[str] = field(default_factory=list)
    """Answers that contain the marker of another request."""
    wrong: list[str] = field(default_factory=list)
    """Whatever else must not be: hangs, whole answers that lack their content, answers that are no HTTP."""
    left: int = 0
    not_retried: int = 0
    """Requests whose first attempt failed as they asked, and that the gateway did not try again."""
    seconds_max: float = 0.0
    """The longest that an answer took, to its last byte."""


@dataclass(frozen=True, slots=True)
class Order:
    """One request: its marker, the behaviour that it asks for, in which API, and what is special about the client's."""

    marker: str
    behaviour: str
    api: str
    group: str
    is_stream: bool
    padding: int
    leaves_after_bytes: int | None

    def message(self, host: str, key: str) -> bytes:
        """The request as bytes."""
        text = f"[[{self.marker}]] {self.behaviour} {'sw'[not self.is_stream]} "
        content_type, body = APIS[self.api].write(self.group, text, self.is_stream, self.padding)
        head = f"POST /v1/{self.api} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\ncontent-type: {content_type}\r\n"
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def measure(requests: int, seed: int) -> list[Line]:
    """Take the figure and keep it."""
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="tollway-hammer-") as scratch:
        tally, counts = run(Path(scratch), requests, seed)
    print("\n".join([*tally.foreign[:20], *tally.wrong[:20]]), flush=True)
    statuses: Counter[str] = Counter()
    for name, count in tally.answers.items():
        statuses[name.rpartition(" ")[2]] += count
    return [
        record(
            "R19",
            of="requests",
            n=requests,
            failures=len(tally.foreign) + len(tally.wrong),
            began=began,
            seed=seed,
            also={"requests that reached the engine": counts.requests.value, "on connections that had another": counts.reused.value},
            detail={
                "behaviours": len(BEHAVIOURS),
                "apis": len(APIS),
                "tenants": TENANTS,
                "foreign markers": len(tally.foreign),
                "statuses": dict(sorted(statuses.items())),
                "left in the middle": tally.left,
                "not tried again": tally.not_retried,
                "longest answer s": round(tally.seconds_max, 1),
            },
        )
    ]


def run(scratch: Path, requests: int, seed: int) -> tuple[Tally, Counts]:
    """Send so many requests; return what the clients and the engine counted."""
    with hostile_engine(seed) as (url, counts), supervised(scratch, environment=ENVIRONMENT) as (platform, _):
        keys = _seed(platform, url)
        tally = asyncio.run(_send_all(platform.gateway_url, keys, requests, random.Random(seed)))
    return tally, counts


def _seed(platform: Platform, url: str) -> list[str]:
    """Make a model with two deployments for each group of behaviours, and tenants; return a key of each tenant."""
    headers = {"authorization": f"Bearer {platform.platform_key}"}
    keys = []
    with httpx2.Client(base_url=f"{platform.control_url}/v1", headers=headers, timeout=WAIT_SECONDS, trust_env=False) as http:

        def post(path: str, body: Mapping[str, object] | None = None) -> dict[str, str]:
            answer = http.post(path, json=body)
            assert answer.status_code == 200, f"{path}: {answer.text}"
            return dict(answer.json())

        for group in sorted({row.group for row in BEHAVIOURS.values()}):
            post("/platform/models", {"name": group, "endpoints": sorted(APIS)})
            post("/platform/prices", {"model": group, "currency": "EUR", "input": "1", "output": "1"})
            post(f"/platform/models/{group}/publish")
            for number in range(2):
                deployment = {"model": group, "base_url": url, "engine": "sim", "upstream_model": f"{group}-{number}"}
                post("/platform/deployments", deployment)
        for number in range(TENANTS):
            organization = post("/platform/organizations", {"name": f"tenant {number}", "currency": "EUR"})["id"]
            http.headers["openai-organization"] = organization
            project = post("/organization/projects", {"name": "hammer"})["id"]
            keys.append(post(f"/organization/projects/{project}/api_keys", {"name": "hammer"})["value"])
    deadline = time.monotonic() + WAIT_SECONDS
    while any(list_models(platform.gateway_url, key) != 200 for key in keys):
        assert time.monotonic() < deadline, "the gateway does not know the keys"
        time.sleep(0.05)
    return keys


async def _send_all(url: str, keys: Sequence[str], requests: int, dice: random.Random) -> Tally:
    tally = Tally()
    shares = [requests // (TENANTS * CONNECTIONS)] * (TENANTS * CONNECTIONS)
    for number in range(requests - sum(shares)):
        shares[number] += 1
    place = urlsplit(url)
    async with asyncio.TaskGroup() as group:
        for number, share in enumerate(shares):
            tenant = number % TENANTS
            client = Client(place.hostname or "", place.port or 0, keys[tenant], tally)
            group.create_task(client.send(_orders(tenant, number // TENANTS, share, random.Random(dice.random()))))
    return tally


def _orders(tenant: int, connection: int, count: int, dice: random.Random) -> list[Order]:
    names = list(BEHAVIOURS)
    orders = []
    for number in range(count):
        name = dice.choice(names)
        group = BEHAVIOURS[name].group
        api = dice.choice(list(APIS))
        orders.append(
            Order(
                f"t{tenant:02d}-{connection * 100_000 + number:06d}",
                dice.choice((name, RIGHT)),
                api,
                group,
                is_stream=dice.random() < 0.5 and APIS[api].events is not None,
                padding=dice.randint(70_000, 300_000) if dice.random() < 0.04 else dice.randint(0, 200),
                leaves_after_bytes=dice.randint(0, 2_000) if dice.random() < 0.06 else None,
            )
        )
    return orders


class Client:
    """One client, with one connection at a time."""

    def __init__(self, host: str, port: int, key: str, tally: Tally) -> None:
        self._host, self._port, self._key, self._tally = host, port, key, tally

    async def send(self, orders: Sequence[Order]) -> None:
        """Send all orders and check what comes back."""
        position = 0
        while position < len(orders):
            reader, writer = await asyncio.open_connection(self._host, self._port, limit=1 << 24)
            try:
                position = await self._use(reader, writer, orders, position)
            finally:
                writer.transport.abort()

    async def _use(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, orders: Sequence[Order], position: int) -> int:
        """Send orders from `position` on until the connection is closed. Return the position of the next one."""
        while position < len(orders):
            together = 1 + (orders[position].padding % TOGETHER_MAX if orders[position].padding % 11 == 0 else 0)
            sent = orders[position : position + together]
            writer.write(b"".join(order.message(self._host, self._key) for order in sent))
            for order in sent:
                position += 1
                if order.leaves_after_bytes is not None:
                    await self._leave(reader, order, sent)
                    return position
                began = time.monotonic()
                try:
                    async with asyncio.timeout(SILENCE_SECONDS_MAX) as silence:
                        goes_on = await self._read(reader, order, silence)
                except TimeoutError:
                    self._tally.wrong.append(f"silent for {SILENCE_SECONDS_MAX:.0f} s, {time.monotonic() - began:.0f} s after {order}")
                    return position
                self._tally.seconds_max = max(self._tally.seconds_max, time.monotonic() - began)
                if not goes_on:
                    return position
        return position

    async def _leave(self, reader: asyncio.StreamReader, order: Order, sent: Sequence[Order]) -> None:
        """Read some of the answer, and no more."""
        self._tally.left += 1
        try:
            async with asyncio.timeout((order.leaves_after_bytes or 0) / 100_000):
                data = await reader.read(order.leaves_after_bytes or 1)
            self._check(data, order, *sent)
        except (TimeoutError, OSError):
            pass

    async def _read(self, reader: asyncio.StreamReader, order: Order, silence: asyncio.Timeout) -> bool:
        """Read one answer, and move the deadline of `silence` with each part of it. Return whether the connection can be used further."""
        loop = asyncio.get_running_loop()
        status, body, is_whole = 0, b"", False
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            silence.reschedule(loop.time() + SILENCE_SECONDS_MAX)
            body += head
            status = int(head[9:12])
            if length := re.search(rb"content-length: (\d+)", head):
                body += await reader.readexactly(int(length[1]))
            else:
                while size := int(await reader.readuntil(b"\r\n"), 16):
                    data = (await reader.readexactly(size + 2))[:-2]
                    body += data
                    if data != sse.HEARTBEAT:
                        silence.reschedule(loop.time() + SILENCE_SECONDS_MAX)
                await reader.readexactly(2)
            is_whole = True
            goes_on = b"connection: close" not in head
            if not goes_on:
                body += await reader.read(65536)  # nothing may follow
        except (asyncio.IncompleteReadError, OSError) as error:
            body += getattr(error, "partial", b"")
            goes_on = False
        except (ValueError, asyncio.LimitOverrunError):
            self._tally.wrong.append(f"no HTTP: {order}: {body[:500]!r}")
            return False
        self._check(body, order)
        self._tally.answers[f"{order.behaviour} {status}"] += 1
        if is_whole and BEHAVIOURS[order.behaviour].is_served:
            is_served = status == 200 and order.marker.encode() in body and (not order.is_stream or APIS[order.api].terminator in body)
            if BEHAVIOURS[order.behaviour].needs_retry and status == 502:
                self._tally.not_retried += 1
            elif order.group == "steady" and not is_served:
                self._tally.wrong.append(f"not served: {order}: {body[-600:]!r}")
        return goes_on

    def _check(self, data: bytes, *orders: Order) -> None:
        """Note every marker in `data` that is of none of `orders`."""
        own = {order.marker.encode() for order in orders}
        if foreign := set(MARKER.findall(data)) - own:
            self._tally.foreign.append(f"{sorted(foreign)} in the answer to {orders[0]}")
