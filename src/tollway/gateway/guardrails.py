"""Guardrails: requests and answers of a model are checked by a service of the operator's before they go on (docs/guardrails.md).

Theory of operation. A model says in the snapshot whether its traffic is checked, and whether what cannot be checked passes (`open`) or is
refused (`closed`). The service is one per gateway, in its settings. Three stages have a document each: the request, after limits and
budgets and before ADMIT, so that a refusal costs nothing; a whole answer, before it is stored or sent; a stream, window by window.

A stream passes through `GuardedClient`, which stands between the exchange and the client. It holds events back until their window is full
or its time is over, has the window checked, and only then sends it. One window is checked at a time; the engine is read no further while
the next one is full. The head of the stream waits for the first verdict too, so that a denial at the beginning is an answer with an error
and no stream. The last events are checked before FINAL is written. What is denied was generated: it is billed as if the client had left
then.
"""

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

from tollway.domain.catalog import Guardrail, GuardrailStages
from tollway.domain.faults import CONTENT_DENIED, CONTENT_TOO_LONG_TO_CHECK, GUARDRAIL_UNAVAILABLE, Fault
from tollway.gateway.buffers import LARGE_BYTES, BufferHold
from tollway.gateway.driver import CoroutineDriver, Waiter
from tollway.gateway.ports import AskGuardrail, Client, Flow
from tollway.gateway.request import Call
from tollway.gateway.request_traces import GUARDRAIL_SPAN
from tollway.telemetry import FIRST_TOKEN_SECONDS, Histogram
from tollway.wire import sse
from tollway.wire.media_types import is_json

CONTRACT_VERSION: Final = 1
REASON_CHARACTERS_MAX: Final = 300
"""Longest reason that a client is sent; the rest is cut off."""

DOCUMENT_COPIES: Final = 2
"""Copies of a document in memory while it is checked: the document, and what of it the socket has not taken."""

_URL = re.compile(r"https?://[^/?#@\s]+(?:/[^?#\s]*)?")

ALLOWED, DENIED, FAILED, TOO_LONG = "allowed", "denied", "failed", "too_long"


class GuardrailBounds(msgspec.Struct, frozen=True, kw_only=True):
    """The guardrail of a gateway. `url`: None for none. `timeout_seconds`: for one verdict. `document_bytes_max`: of a request or an answer
    that is checked. `window_bytes`: events of a stream that are checked together; `window_seconds`: time after which fewer are."""

    url: str | None = None
    timeout_seconds: float = 2.0
    document_bytes_max: int = 4 * 1024 * 1024
    window_bytes: int = 8 * 1024
    window_seconds: float = 0.5

    def __post_init__(self) -> None:
        if self.url is not None and _URL.fullmatch(self.url) is None:
            raise ValueError("url must be http(s)://host[:port][/path]")


class Verdict(msgspec.Struct, frozen=True):
    """The answer of the guardrail. `reason`: for the client; empty for none."""

    action: Literal["allow", "deny"]
    reason: str = ""


_verdict = msgspec.json.Decoder(Verdict)


class Guardrails:
    """The guardrail of one gateway, and what it has decided. `ask`: None where the gateway has none: then nothing can be checked."""

    def __init__(self, bounds: GuardrailBounds, ask: AskGuardrail | None = None) -> None:
        self.bounds = bounds
        self.verdicts: dict[tuple[str, str], int] = {}
        """Verdicts, by stage and result."""
        self.seconds = Histogram(FIRST_TOKEN_SECONDS)
        self._ask = ask

    async def check(self, stage: str, document: bytes, size: int) -> Verdict | None:
        """Return the verdict on a document with `size` bytes of content; None if there is none."""
        result, verdict = FAILED, None
        if size > self.bounds.document_bytes_max:
            result = TOO_LONG
        elif self._ask is not None:
            began = time.monotonic()
            answer = await self._ask(document)
            self.seconds.observe(time.monotonic() - began)
            try:
                verdict = None if answer is None else _verdict.decode(answer)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                verdict = None
            if verdict is not None:
                result = ALLOWED if verdict.action == "allow" else DENIED
        key = (stage, result)
        self.verdicts[key] = self.verdicts.get(key, 0) + 1
        return verdict

    def find_fault(self, verdict: Verdict | None, mode: Guardrail, *, is_too_long: bool = False) -> Fault | None:
        """Return the fault that follows from a verdict; None if what was checked may go on."""
        if verdict is None:
            if mode is not Guardrail.CLOSED:
                return None
            return Fault(CONTENT_TOO_LONG_TO_CHECK) if is_too_long else Fault(GUARDRAIL_UNAVAILABLE, retry_after_seconds=1)
        if verdict.action == "allow":
            return None
        reason = "".join(each for each in verdict.reason if each.isprintable()).strip()[:REASON_CHARACTERS_MAX]
        return Fault(CONTENT_DENIED, message=f"{CONTENT_DENIED.message} {reason}" if reason else None)


class Guard:
    """The guardrail as it stands around one call (`ports.ChecksAnswer`). `checked_ms`: time that its verdicts took."""

    def __init__(self, guardrails: Guardrails, call: Call, client: Client, driver: CoroutineDriver, buffer: BufferHold) -> None:
        """`buffer`: holds large documents while they are checked."""
        self.checked_ms = 0.0
        self._buffer = buffer
        self.guardrails = guardrails
        self.mode = call.model.guardrail
        self.client: GuardedClient | None = None
        self._call = call
        self._driver = driver
        if call.model.guardrail_stages is not GuardrailStages.REQUEST and call.dialect.new_media is None:
            self.client = GuardedClient(self, client, driver)

    @property
    def has_sent_nothing(self) -> bool:
        """Return whether all of the answer was held back so far."""
        return self.client is not None and not self.client.has_begun

    def note_check(self, began: float) -> None:
        """Note that a verdict came, which was asked for at the instant `began` of the monotonic clock."""
        now = time.monotonic()
        self.checked_ms += (now - began) * 1000
        self._call.request.note_trace().add_interval(GUARDRAIL_SPAN, began, now)

    def describe(self, stage: str, members: Mapping[str, Sequence[bytes]]) -> bytes:
        """Return a document. `members`: what is to be checked by name, the pieces of its JSON."""
        call = self._call
        head = {
            "version": CONTRACT_VERSION,
            "stage": stage,
            "request_id": call.request.id,
            "organization_id": call.caller.organization.id,
            "project_id": call.caller.project.id,
            "key_id": call.caller.principal.id,
            "model": call.model.id,
            "endpoint": call.request.endpoint,
        }
        parts = [msgspec.json.encode(head)[:-1]]
        for name, pieces in members.items():
            parts += (b',"%b":' % name.encode(), *pieces)
        return b"".join((*parts, b"}"))

    async def check_request(self) -> None:
        """Raise Fault if the request may not go on. Of a form the texts are checked, not the files."""
        call = self._call
        if call.model.guardrail_stages is GuardrailStages.RESPONSE:
            return
        pieces: Sequence[bytes] = call.request.list_pieces()
        size = sum(map(len, pieces))
        if call.dialect.form_kinds is not None:
            body = msgspec.json.encode(call.list_form_texts())
            pieces, size = (body,), len(body)
        await self._check("request", {"request": pieces}, size, is_request=True)

    async def check_body(self, content_type: bytes, body: bytes) -> None:
        """Raise Fault if a whole answer may not be sent. `content_type`: empty for JSON."""
        if self.client is None:
            return
        shown = body if not content_type or is_json(content_type) else msgspec.json.encode(body.decode("utf-8", "replace"))
        await self._check("response", {"response": (shown,)}, len(shown))

    async def check_rest(self, terminator: bytes) -> None:
        """Return once everything of a stream that was not sent yet is checked, with its last bytes, and sent. Raises Fault."""
        if self.client is not None:
            await self.client.check_rest(terminator)

    async def _check(self, stage: str, members: Mapping[str, Sequence[bytes]], size: int, *, is_request: bool = False) -> None:
        is_too_long = size > self.guardrails.bounds.document_bytes_max
        if size > LARGE_BYTES and not is_too_long:
            kind = self._buffer.grow_to(DOCUMENT_COPIES * size)
            if kind is not None:
                raise Fault(kind, retry_after_seconds=None if kind.status == 413 else 1, detail="budget for buffered bytes")
        began = time.monotonic()
        try:
            document = b"" if is_too_long else self.describe(stage, members)
            verdict = await self._driver.in_task(self.guardrails.check(stage, document, size))
        finally:
            self._buffer.release()
        self.note_check(began)
        fault = self.guardrails.find_fault(verdict, self.mode, is_too_long=is_too_long and is_request)
        if fault is not None:
            raise fault


class GuardedClient:
    """The client of a stream, as the exchange sees it: what it is sent leaves once it was checked. It is also the flow that the client's
    connection reports back-pressure (`ports.Flow`). `has_begun`: something was sent."""

    chunked = False

    def __init__(self, guard: Guard, client: Client, driver: CoroutineDriver) -> None:
        self.has_begun = False
        self._guard = guard
        self._client = client
        self._driver = driver
        self._flow: Flow | None = None
        self._headers: bytes | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._windows = 0
        self._before: list[msgspec.Raw] = []
        self._checking: asyncio.Task[Verdict | None] | None = None
        self._sent_next: list[bytes] = []
        self._began = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._is_client_slow = False
        self._is_paused = False
        self._is_last = False
        self._rest: Waiter | None = None

    # What the exchange does (`ports.Client`).

    @property
    def committed(self) -> bool:
        return self._headers is not None or self._client.committed

    @property
    def gone(self) -> bool:
        return self._client.gone

    def answer(self, status: int, headers: bytes, body: bytes) -> None:
        self._client.answer(status, headers, body)

    def begin_stream(self, headers: bytes) -> None:
        self._headers = headers

    def send(self, data: bytes) -> None:
        if data == sse.HEARTBEAT:
            if self.has_begun:
                self._client.send(data)
            return
        self._held.append(data)
        self._held_bytes += len(data)
        bounds = self._guard.guardrails.bounds
        is_full = self._held_bytes >= bounds.window_bytes
        if self._checking is not None:
            if is_full:
                self._pause()
        elif is_full:
            self._check_window()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(bounds.window_seconds, self._check_window)

    def send_chunks(self, data: bytes) -> None:
        raise AssertionError("this client is not chunked")

    def end_stream(self, data: bytes) -> None:
        self._client.end_stream(data)

    def break_off(self) -> None:
        self._client.break_off()

    def throttle(self, fault: Fault, headers: Mapping[bytes, bytes]) -> Fault:
        return self._client.throttle(fault, headers)

    def attend(self, flow: Flow | None) -> None:
        """Tell `flow` of back-pressure. None: the exchange is over, and nothing more is checked."""
        self._flow = flow
        if flow is None:
            self._stop()
            self._client.attend(None)
        else:
            self._client.attend(self)

    # Events of the client's connection (`ports.Flow`).

    def pause(self) -> None:
        self._is_client_slow = True
        if self._flow is not None and not self._is_paused:
            self._flow.pause()

    def resume(self) -> None:
        self._is_client_slow = False
        if self._flow is not None and not self._is_paused:
            self._flow.resume()

    # The windows.

    async def check_rest(self, terminator: bytes) -> None:
        """Return once all events are checked and sent. `terminator`: the last bytes, which are checked here and sent by others."""
        self._is_last = True
        if self._checking is None:
            self._check_last(terminator)
        else:
            self._rest = Waiter()
            await self._rest
            self._check_last(terminator)
        if self._checking is not None:
            self._rest = Waiter()
            await self._rest
        self._begin()

    def _check_last(self, terminator: bytes) -> None:
        events, self._held, self._held_bytes = self._held, [], 0
        if events or list_events(terminator):
            self._ask(events, [*events, terminator])

    def _check_window(self) -> None:
        """Have what is held checked. Nothing else is under way."""
        events, self._held, self._held_bytes = self._held, [], 0
        if events:
            self._ask(events, events)

    def _ask(self, sent_next: list[bytes], events: list[bytes]) -> None:
        self._stop_timer()
        checked = list_events(b"".join(events))
        before, self._before = self._before, checked
        members = {
            "window": (b"%d" % self._windows,),
            "is_last": (b"true" if self._is_last else b"false",),
            "events": (msgspec.json.encode(checked),),
            "previous_events": (msgspec.json.encode(before),),
        }
        self._windows += 1
        self._sent_next = sent_next
        self._began = time.monotonic()
        guard = self._guard
        size = sum(map(len, events))
        self._checking = asyncio.get_running_loop().create_task(guard.guardrails.check("stream", guard.describe("stream", members), size))
        self._checking.add_done_callback(self._decided)

    def _decided(self, task: "asyncio.Task[Verdict | None]") -> None:
        """Send the window that was checked, or end the request."""
        if task is not self._checking:
            return
        self._checking = None
        guard = self._guard
        guard.note_check(self._began)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            asyncio.get_running_loop().call_exception_handler({"message": "a check of a window failed", "exception": error})
        verdict = None if task.cancelled() or error is not None else task.result()
        fault = guard.guardrails.find_fault(verdict, guard.mode)
        if fault is not None:
            self._driver.interrupt(fault)
            return
        sent_next, self._sent_next = self._sent_next, []
        self._begin()
        for data in sent_next:
            self._client.send(data)
        rest, self._rest = self._rest, None
        if rest is not None:
            rest.resume()
        elif self._held_bytes >= guard.guardrails.bounds.window_bytes:
            self._check_window()
        elif self._held:
            self._timer = asyncio.get_running_loop().call_later(guard.guardrails.bounds.window_seconds, self._check_window)
        self._unpause()

    def _begin(self) -> None:
        if not self.has_begun and self._headers is not None:
            self.has_begun = True
            self._client.begin_stream(self._headers)

    def _pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            if self._flow is not None and not self._is_client_slow:
                self._flow.pause()

    def _unpause(self) -> None:
        if self._is_paused:
            self._is_paused = False
            if self._flow is not None and not self._is_client_slow:
                self._flow.resume()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop(self) -> None:
        self._stop_timer()
        task, self._checking = self._checking, None
        if task is not None:
            task.cancel()
        self._held, self._held_bytes, self._sent_next, self._before = [], 0, [], []
        self._is_paused = False


def list_events(data: bytes) -> list[msgspec.Raw]:
    """Return the data of whole events, as they are relayed, as far as it is JSON."""
    found: list[msgspec.Raw] = []
    for event in data.split(b"\n\n"):
        text = sse.find_data(event) if event else None
        if text is None:
            continue
        try:
            msgspec.json.decode(text, type=msgspec.Raw)
        except msgspec.DecodeError:
            continue
        found.append(msgspec.Raw(text))
    return found
