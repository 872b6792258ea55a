"""One line of a batch as a request of the gateway: its head without a credential, its client without a socket, and where its answer is
kept."""

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from typing import Any, Final, NamedTuple

from tollway.domain.answers import StoredAnswer
from tollway.domain.batches import Batch, LineResult
from tollway.domain.faults import Fault
from tollway.gateway.batches.lines import Line, write_answer
from tollway.gateway.buffers import LARGE_BYTES, BufferHold
from tollway.gateway.dialects.conversation import Conversation
from tollway.gateway.directory import BACKGROUND_PREFIX, BATCH_PREFIX
from tollway.gateway.driver import CoroutineDriver
from tollway.gateway.plane import Plane
from tollway.gateway.ports import ActiveBatch, Flow
from tollway.gateway.request import Caller, Request, RequestHead, new_request
from tollway.gateway.uploads import Upload

ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
"""Longest answer of a line: what a gateway relays."""
_RETRY_AFTER: Final = re.compile(rb"(?:^|\n)retry-after: ([0-9]{1,9})\r")
_NEVER_AGAIN: Final = b"x-should-retry: false"


def find_batch_caller(batch: Batch, plane: Plane) -> Caller | None:
    """Return the caller as which the lines of a batch are sent; None if its key is not valid any more."""
    return plane.directory.find_caller(_find_digest(batch), plane.now_us())


def _find_digest(batch: Batch) -> bytes:
    """Return what stands for a digest of the key that submitted a batch."""
    return (BACKGROUND_PREFIX if batch.is_response else BATCH_PREFIX) + batch.key_id.encode()


def new_line_request(batch: Batch, line: Line, plane: Plane) -> Request:
    """Return a line as a request that is received now. A large body stays in the request: `hold_body` accounts for it."""
    head = RequestHead(batch.endpoint, {name.encode(): value.encode() for name, value in batch.headers.items()}, address=batch.address)
    head.digest = _find_digest(batch)
    now_us = plane.now_us()
    request = new_request(plane.request_ids.new(now_us), head, bytes(line.body), time.monotonic(), now_us)
    if batch.is_response:
        request.conversation = Conversation(batch.id, batch.previous_response_id, b"", (request.body,), in_background=True)
    return request


def hold_body(request: Request, caller: Caller, plane: Plane) -> Upload | None:
    """Count a large body in the budget for buffered bytes, so that it is read by a process of its own; None for a small one. Raises
    Fault."""
    if request.body_bytes <= LARGE_BYTES:
        return None
    upload = Upload(BufferHold(plane.buffers, plane.buffers.find_key(caller.principal.id)), None)
    upload.expect(request.body_bytes)
    request.take_upload(upload, (request.body,))
    return upload


class LineAnswer(NamedTuple):
    """The answer to a line: its status, the lines of its head, its body."""

    status: int
    headers: bytes
    body: bytes

    @property
    def retry_after_seconds(self) -> float | None:
        """Return when to try again, None where it does not say."""
        found = _RETRY_AFTER.search(self.headers)
        return None if found is None else float(found[1])

    @property
    def is_refused_for_now(self) -> bool:
        """Return whether it was refused for load or a limit that passes, before an engine began it."""
        return self.status in (429, 503) and _NEVER_AGAIN not in self.headers


class LineClient:
    """The client of a line, as `ports.Client`. `answered`: its answer; None if the request ended without one."""

    chunked = False

    def __init__(self) -> None:
        self.committed = False
        self.gone = False
        self.answered: asyncio.Future[LineAnswer | None] = asyncio.get_running_loop().create_future()

    def answer(self, status: int, headers: bytes, body: bytes) -> None:
        self.committed = True
        if not self.answered.done():
            self.answered.set_result(LineAnswer(status, headers, body))

    def begin_stream(self, headers: bytes) -> None:
        raise AssertionError("lines are not streamed")

    def send(self, data: bytes) -> None:
        raise AssertionError("lines are not streamed")

    def send_chunks(self, data: bytes) -> None:
        raise AssertionError("lines are not streamed")

    def end_stream(self, data: bytes) -> None:
        raise AssertionError("lines are not streamed")

    def break_off(self) -> None:
        raise AssertionError("lines are not streamed")

    def throttle(self, fault: Fault, headers: Mapping[bytes, bytes]) -> Fault:
        return fault

    def attend(self, flow: Flow | None) -> None:
        pass

    def start(self, driver: CoroutineDriver, answering: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run what answers this client by `driver`, and note its end."""

        async def to_the_end() -> None:
            try:
                await answering()
            finally:
                if not self.answered.done():
                    self.answered.set_result(None)

        asyncio.get_running_loop().call_soon(driver.start, to_the_end())


class LineStore:
    """The store of the answer to one line: the journal of its batch. Both `ports.AnswerStore` and the `ClaimedAnswer` that it gives.
    `is_kept`: the answer is on the disk. `fault`: with which it could not be appended; the journal is to be opened again then."""

    answer_bytes_max = ANSWER_BYTES_MAX
    decides_on_usage = True

    def __init__(self, active: ActiveBatch, number: int, line: Line, request_id: str, executor: Executor) -> None:
        self.executor = executor
        self.is_kept = False
        self.fault: Fault | None = None
        self.answer: StoredAnswer | None = None
        self._active = active
        self._number = number
        self._line = line
        self._request_id = request_id

    def claim(self, organization_id: str, digest: bytes, body_digest: bytes, request_id: str) -> "LineStore":
        """Return this. Whoever runs the batch owns all of its lines. A line that a fallback serves is another request than it was. Raises
        Fault files_unavailable."""
        self._request_id = request_id
        if self._active.batch.is_response:
            self._active.note_attempt(request_id)
        return self

    def keep(self, answer: StoredAnswer | None) -> None:
        """Append the answer to the journal, durably. Blocks. Raises Fault files_unavailable."""
        if answer is None:
            text, result = self._write(
                500, b'{"error":{"message":"The answer is too long.","type":"server_error","code":"answer_too_large"}}'
            )
        else:
            text, result = self._write(200, answer.body)
        try:
            self._active.append(self._number, result, text, self._request_id, durable=True)
        except Fault as fault:
            self.fault = fault
            raise
        self.is_kept = True

    def keep_error(self, status: int, body: bytes) -> None:
        """Append an answer with another status. It is on the disk with the next one, or at the end of the batch. Blocks."""
        text, result = self._write(status, body)
        self._active.append(self._number, result, text, durable=False)

    def _write(self, status: int, body: bytes) -> tuple[bytes, LineResult]:
        text = write_answer(self._active.batch, self._number, self._line.custom_id, self._request_id, status, body)
        return text, LineResult.COMPLETED if status == 200 else LineResult.ERRORED

    def release(self) -> None:
        """Nothing is held."""

    def clean_up(self) -> None:
        """Nothing is left."""
