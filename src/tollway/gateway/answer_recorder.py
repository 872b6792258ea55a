"""Answers to requests with an idempotency key: given again from the store, or recorded on their way to the client.

The order is what keeps an answer from being billed twice: `keep_body` and `keep_stream` return once the answer is on disk, and only then
is FINAL written (docs/decisions/0036). Neither is interrupted: a client that leaves meanwhile has got an answer that is billed and stored.
"""

import asyncio
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import ParamSpec, TypeVar

from tollway.domain import faults
from tollway.domain.answers import StoredAnswer
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.gateway.buffers import LARGE_BYTES, BufferHold
from tollway.gateway.driver import ShieldedWaiter
from tollway.gateway.ports import AnswerStore, ClaimedAnswer, Client, Flow

_P = ParamSpec("_P")
_T = TypeVar("_T")

_KEY = re.compile(rb"[\x21-\x7e]{1,255}")
_REPLAYED = b"idempotent-replayed: true\r\n"


class AnswerRecorder:
    """The client of a request with an idempotency key, as whoever answers it sees it: it passes everything on and records the stream.

    `keeps_last`: a whole answer is stored after its usage was noted, and what was noted counts only if the store has the answer
    (`storage.batch_directory`), so that it is billed if and only if it was stored. `chunked` is False, so that a stream arrives as it is,
    without transfer coding. `is_replayed`: the answer came from the store. `claimed`: the place of the answer."""

    chunked = False

    def __init__(
        self,
        client: Client,
        claimed: ClaimedAnswer,
        body_bytes_max: int,
        buffer: BufferHold,
        replay_headers: bytes = _REPLAYED,
        executor: Executor | None = None,
    ) -> None:
        """`buffer`: holds the recorded stream. One that the budget does not suffice for is not stored, as one that is too long.
        `replay_headers`: header lines of an answer that is given again. `executor`: of the store's threads, None for asyncio's."""
        self._executor = executor
        self.keeps_last = False
        self._replay_headers = replay_headers
        self._client = client
        self.claimed = claimed
        self._bytes_max = body_bytes_max
        self._buffer = buffer
        self._next_bytes = LARGE_BYTES
        self._headers = b""
        self._pieces: list[bytes] | None = []
        self._size = 0
        self.is_replayed = False

    @property
    def has_answer(self) -> bool:
        """Return whether the answer is stored already."""
        return self.claimed.answer is not None

    def replay(self, headers: bytes) -> bool:
        """Give the stored answer, with further header lines; return False if there is none."""
        answer = self.claimed.answer
        if answer is None:
            return False
        self.is_replayed = True
        headers = answer.headers + self._replay_headers + headers
        if answer.is_stream:
            self._client.begin_stream(headers)
            self._client.end_stream(answer.body)
        else:
            self._client.answer(200, headers, answer.body)
        return True

    def describe_stream(self, headers: bytes) -> None:
        """Record the header lines that describe the body of a stream."""
        self._headers = headers

    async def keep_body(self, headers: bytes, body: bytes) -> None:
        """Store a whole answer. Await it in a driven coroutine. Raises Fault metering_unavailable."""
        await self._keep(StoredAnswer(headers, body, is_stream=False) if len(body) <= self._bytes_max else None)

    async def keep_stream(self, terminator: bytes) -> None:
        """Store the stream that was recorded, with its last bytes. Await it in a driven coroutine. Raises Fault metering_unavailable."""
        self._record(terminator)
        pieces = self._pieces
        await self._keep(None if pieces is None else StoredAnswer(self._headers, b"".join(pieces), is_stream=True))

    async def _keep(self, answer: StoredAnswer | None) -> None:
        await _in_thread(self._executor, self.claimed.keep, answer)

    def release(self) -> None:
        """Let the key be used again. Without a stored answer the request is a new one then."""
        self._pieces = None
        self._buffer.release()
        self.claimed.release()
        asyncio.get_running_loop().run_in_executor(self._executor, self.claimed.clean_up)

    def _record(self, data: bytes) -> None:
        if self._pieces is None:
            return  # it will not be stored, so nothing more of it is held
        self._size += len(data)
        if self._size > self._bytes_max or (self._size > self._next_bytes and not self._hold_more()):
            self._pieces = None
            self._buffer.release()
        else:
            self._pieces.append(data)

    def _hold_more(self) -> bool:
        """Count more of the recorded stream. Return whether the budget for buffered bytes suffices."""
        self._next_bytes = self._size + LARGE_BYTES
        return self._buffer.grow_to(self._next_bytes) is None

    # The client's end of the exchange (`ports.Client`).

    @property
    def committed(self) -> bool:
        return self._client.committed

    @property
    def gone(self) -> bool:
        return self._client.gone

    def answer(self, status: int, headers: bytes, body: bytes) -> None:
        self._client.answer(status, headers, body)

    def begin_stream(self, headers: bytes) -> None:
        self._client.begin_stream(headers)

    def send(self, data: bytes) -> None:
        self._record(data)
        self._client.send(data)

    def send_chunks(self, data: bytes) -> None:
        raise AssertionError("this client is not chunked")

    def end_stream(self, data: bytes) -> None:
        self._client.end_stream(data)

    def break_off(self) -> None:
        self._client.break_off()

    def throttle(self, fault: Fault, headers: Mapping[bytes, bytes]) -> Fault:
        return self._client.throttle(fault, headers)

    def attend(self, flow: Flow | None) -> None:
        self._client.attend(flow)


async def claim(
    store: AnswerStore,
    client: Client,
    buffer: BufferHold,
    *,
    organization_id: str,
    key_id: str,
    endpoint: Endpoint,
    key: bytes,
    pieces: Sequence[bytes],
    request_id: str,
) -> AnswerRecorder:
    """Return the recorder of a request that came with the idempotency key `key`, of the API key `key_id`. `buffer`: for what is recorded.
    `pieces`: of its body. `request_id`: of its record. Await it in a driven coroutine.

    Raises Fault invalid_value for a key that is empty, longer than 255 characters or not of visible ASCII characters; and as
    `AnswerStore.claim`.
    """
    if _KEY.fullmatch(key) is None:
        message = "The header 'Idempotency-Key' must have 1 to 255 visible ASCII characters."
        raise Fault(faults.PARAMETER_INVALID, param="idempotency-key", message=message)
    digest = hashlib.sha256(b"\0".join((key_id.encode(), endpoint.encode(), key))).digest()
    claimed = await _in_thread(store.executor, _claim, store, organization_id, digest, pieces, request_id)
    recorder = AnswerRecorder(client, claimed, store.answer_bytes_max, buffer, executor=store.executor)
    recorder.keeps_last = store.decides_on_usage
    return recorder


def _claim(store: AnswerStore, organization_id: str, digest: bytes, pieces: Sequence[bytes], request_id: str) -> ClaimedAnswer:
    body = hashlib.sha256()
    for piece in pieces:
        body.update(piece)
    return store.claim(organization_id, digest, body.digest(), request_id)


async def _in_thread(executor: Executor | None, function: Callable[_P, _T], *arguments: _P.args, **keywords: _P.kwargs) -> _T:
    """Return what a function that blocks returns, from a worker thread, whatever interrupts the request meanwhile."""
    future = asyncio.get_running_loop().run_in_executor(executor, partial(function, *arguments, **keywords))
    done = ShieldedWaiter()
    future.add_done_callback(lambda _: done.resume())
    await done
    return future.result()
