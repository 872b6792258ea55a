"""Clients of the gateway, many at once, over sockets of their own: they count what reaches them and leave when they
like.

Open loop: a request is sent when it is due, whether or not the ones before it were answered, because a closed loop
waits for the very gateway that is being killed and so spares it."""

import asyncio
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from reliability.bill_checks import Ended, Heard
from reliability.processes import WAIT_SECONDS
from tollway.simulator import tokens

PREFIX = "Tolls were paid in silver at the bridge over the river long before there were roads worth the name. "
"""Beginning of every text, so that the engine's prefix cache has something to find."""

THOUGHT_TOKENS = {"thinker": 6}
"""Made before the echo, by model (see `platforms.MODELS`)."""

_TYPED = ("messages", "responses")
"""Endpoints whose streams are events with names."""

WORDS = ("axle", "barrier", "causeway", "drover", "engine", "ferry", "gate", "horse", "invoice", "journey")


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. The engine echoes `text`. `leaves_after`: the client of a stream goes after so many tokens; another
    one after so many hundredths of a second."""

    model: str
    endpoint: str
    text: str
    stream: bool
    leaves_after: int | None = None

    @property
    def planned_tokens(self) -> int:
        """The length of the whole answer."""
        return 0 if self.endpoint == "embeddings" else THOUGHT_TOKENS.get(self.model, 0) + tokens.count(self.text.encode())

    def body(self) -> bytes:
        """As JSON."""
        fields: dict[str, object] = {"model": self.model}
        if self.endpoint in ("chat/completions", "messages"):
            fields["messages"] = [{"role": "user", "content": self.text}]
        else:
            fields["prompt" if self.endpoint == "completions" else "input"] = self.text
        if self.endpoint in ("completions", "messages"):
            fields["max_tokens"] = 1024  # one API's own default is 16, the other one has none
        if self.stream:
            fields["stream"] = True
        return json.dumps(fields).encode()


def make_asks(count: int, seed: int) -> list[Ask]:
    """A mix: every third a stream, every tenth abandoned, a few completions and embeddings, and some that think."""
    dice = random.Random(seed)
    asks = []
    for number in range(count):
        stream = number % 3 == 0
        text = PREFIX + " ".join(dice.choices(WORDS, k=dice.randint(4, 24))) + f" {number}"
        model, endpoint = dice.choice(("echo", "echo", "thinker")), "chat/completions"
        if not stream and number % 7 == 0:
            model, endpoint = "echo", dice.choice(("completions", "embeddings"))
        leaves_after = dice.randint(1, 20) if dice.random() < 0.1 else None
        asks.append(Ask(model, endpoint, text, stream, leaves_after))
    return asks


async def send_all(
    asks: Sequence[Ask], url: str, key: str, *, per_second: float, disturb: Sequence[tuple[int, Callable[[], None]]] = ()
) -> list[Heard]:
    """Send `asks` at that rate. When as many as the number in `disturb` were sent, its function is called, in a
    thread."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    due = list(disturb)
    disturbing: list[asyncio.Task[None]] = []
    sending: list[asyncio.Task[Heard]] = []
    async with asyncio.timeout(2 * WAIT_SECONDS):
        for number, ask in enumerate(asks):
            while due and number >= due[0][0]:
                disturbing.append(asyncio.create_task(asyncio.to_thread(due.pop(0)[1])))
            sending.append(asyncio.create_task(send(ask, url, key)))
            await asyncio.sleep(max(0.0, began + (number + 1) / per_second - loop.time()))
        await asyncio.gather(*disturbing)
        assert not due
        return await asyncio.gather(*sending)


RUNNING_MAX = 2_000
"""Requests of `send_until` that wait for their end at a time: the open files of a process are bounded."""

HANG_SECONDS = 60.0
"""An answer that takes longer hangs: the slowest honest one takes three."""


def make_endless(seed: int) -> Iterator[Ask]:
    """The mix for crashes: four of five are streams, one of ten takes a second or two, one of twenty is retried elsewhere, one of
    twenty abandoned. Where the model does not think, two of five are responses and messages."""
    dice = random.Random(seed)
    for number in itertools.count():
        stream = dice.random() < 0.8
        text = PREFIX + " ".join(dice.choices(WORDS, k=dice.randint(2, 12))) + f" {number}"
        (model,) = dice.choices(("echo", "thinker", "slow", "flaky"), weights=(65, 20, 10, 5))
        endpoint = "chat/completions"
        if not stream and dice.random() < 0.2:
            model, endpoint = "echo", dice.choice(("completions", "embeddings"))
        elif model != "thinker" and dice.random() < 0.4:
            endpoint = dice.choice(("responses", "messages"))
        yield Ask(model, endpoint, text, stream, dice.randint(1, 20) if dice.random() < 0.05 else None)


@dataclass(frozen=True, slots=True)
class Sent:
    """Result of an open-ended load. `withheld`: requests that were due while RUNNING_MAX others ran. `wrong`: what no answer may
    be: a hang, a clean end without [DONE], another's content."""

    heard: list[Heard]
    seconds: float
    withheld: int
    wrong: list[str]


async def send_until(done: "asyncio.Task[None]", asks: Iterator[Ask], url: str, key: str, *, per_second: float) -> Sent:
    """Send `asks` at that rate until `done`, then wait for those on their way. Raises what `done` raises, after that."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    heard: list[Heard] = []
    wrong: list[str] = []
    running: set[asyncio.Task[None]] = set()
    withheld = 0

    async def one(ask: Ask) -> None:
        try:
            async with asyncio.timeout(HANG_SECONDS):
                heard.append(await send(ask, url, key))
        except (TimeoutError, AssertionError, ValueError, KeyError) as error:
            wrong.append(f"{ask}: {error!r}"[:500])

    for number, ask in enumerate(asks, 1):
        if done.done():
            break
        if len(running) < RUNNING_MAX:
            task = asyncio.create_task(one(ask))
            running.add(task)
            task.add_done_callback(running.discard)
        else:
            withheld += 1
        await asyncio.sleep(max(0.0, began + number / per_second - loop.time()))
    seconds = loop.time() - began
    if running:
        await asyncio.wait(running)
    await done
    return Sent(heard, seconds, withheld, wrong)


async def send(ask: Ask, url: str, key: str) -> Heard:
    """Send one request and read what comes, as far as this client does. AssertionError: the answer cannot be one."""
    place = urlsplit(url)
    assert place.hostname and place.port
    body = ask.body()
    began = time.monotonic()
    head = (
        f"POST /v1/{ask.endpoint} HTTP/1.1\r\nhost: {place.netloc}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    answer = _Answer(ask, began)
    try:
        reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=1 << 20)
    except OSError:
        return answer.heard("refused")
    try:
        writer.write(head.encode() + body)
        if ask.leaves_after is not None and not ask.stream:
            async with asyncio.timeout(ask.leaves_after / 100):
                await answer.read(reader)
        else:
            await answer.read(reader)
    except (asyncio.IncompleteReadError, OSError) as error:
        if not isinstance(error, TimeoutError):
            return answer.heard("broken")
    finally:
        writer.transport.abort()
        try:
            await writer.wait_closed()
        except OSError:
            pass
    if answer.code is not None:
        return answer.heard("error")
    return answer.heard("complete" if answer.is_whole else "left")


class _Answer:
    """An answer as it comes in."""

    def __init__(self, ask: Ask, began: float) -> None:
        self._ask = ask
        self._began = began
        self._headed: float | None = None
        self._retry_after: str | None = None
        self.request_id: str | None = None
        self.status: int | None = None
        self.code: str | None = None
        self.tokens = 0
        self.is_whole = False
        self._content: list[str] = []

    def heard(self, ended: Ended) -> Heard:
        ask = self._ask
        return Heard(
            ask.model,
            ask.planned_tokens,
            self.request_id,
            self.status,
            self.tokens,
            ended,
            self.code,
            began=self._began,
            headed=self._headed,
            retry_after=self._retry_after,
        )

    async def read(self, reader: asyncio.StreamReader) -> None:
        """Read to the end, or until the client leaves. Raises what a broken connection raises."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        self._headed = time.monotonic()
        self.status = int(head.split(" ", 2)[1])
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        self.request_id, self._retry_after = headers.get("x-request-id"), headers.get("retry-after")
        if "content-length" in headers:
            self._take_whole(await reader.readexactly(int(headers["content-length"])))
            return
        rest = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            rest += (await reader.readexactly(size + 2))[:-2]
            *events, rest = rest.split(b"\n\n")
            for event in events:
                self._take_event(event)
                if self._ask.leaves_after is not None and self.tokens >= self._ask.leaves_after:
                    return
        assert self.is_whole or self.code is not None, "a stream ended cleanly without [DONE] and without an error"
        if self.is_whole:
            self._check_content()

    def _take_whole(self, body: bytes) -> None:
        answer = json.loads(body)
        if self.status != 200:
            self.code = answer["error"].get("code") or answer["error"]["type"]
            return
        if self._ask.endpoint in _TYPED:
            content = answer["output"][0]["content"] if self._ask.endpoint == "responses" else answer["content"]
            self._content.append(content[0]["text"])
            self.tokens = answer["usage"]["output_tokens"]
            self._check_content()
        elif self._ask.endpoint != "embeddings":
            choice = answer["choices"][0]
            self._content.append(choice["message"]["content"] if "message" in choice else choice["text"])
            self.tokens = answer["usage"]["completion_tokens"]
            self._check_content()
        self.is_whole = True

    def _take_event(self, event: bytes) -> None:
        assert not self.is_whole, "an event after [DONE]"
        if event == b"data: [DONE]":
            self.is_whole = True
            return
        if event.startswith(b"event: "):
            self._take_typed(json.loads(event.partition(b"\ndata: ")[2]))
            return
        assert event.startswith(b"data: "), event
        chunk = json.loads(event[6:])
        if "error" in chunk:
            self.code = chunk["error"]["code"]
            return
        for content, thought in _texts(chunk):
            self.tokens += bool(content) or bool(thought)
            self._content.append(content)

    def _take_typed(self, event: dict[str, Any]) -> None:
        """Read an event of a response or a message."""
        kind = event["type"]
        if kind == "error":
            error = event["error"]
            self.code = error.get("code") or error["type"]
        elif kind in ("response.completed", "message_stop"):
            self.is_whole = True
        elif kind in ("response.output_text.delta", "content_block_delta"):
            delta = event["delta"] if kind.startswith("response") else event["delta"]["text"]
            self.tokens += bool(delta)
            self._content.append(delta)

    def _check_content(self) -> None:
        """An answer that is whole is the echo: nothing was left out, doubled or mixed up with another's."""
        content = "".join(self._content)
        assert content.strip() == self._ask.text.strip(), (self._ask, content)


def _texts(chunk: dict[str, object]) -> Iterator[tuple[str, str]]:
    for choice in chunk["choices"]:  # type: ignore[attr-defined]
        delta = choice.get("delta", {})
        yield choice.get("text") or delta.get("content") or "", delta.get("reasoning") or delta.get("reasoning_content") or ""
