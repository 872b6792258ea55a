"""Large request bodies are read in processes of their own, because reading one holds the interpreter for tens of milliseconds. What an
engine is sent in place of a body that is translated, or whose prompt is salted, is made there as well.

A gateway has a few reader processes (`body_reader_process`), started when the first large body comes. A body waits for one of them in the
queue of its organization; the queues take turns. A reader that fails or exceeds its time is ended and replaced; the request whose body it
read fails, and no other. Where no process can be started, the gateway reads the body itself, with an alarm.

Objects of many bodies leave holes in a reader's memory that no allocator returns (15 MiB after an attack by large bodies). Once nothing
has been read for REST_SECONDS, a reader that has read much is replaced by a fresh one.
"""

import asyncio
import os
import socket
import sys
from asyncio import LimitOverrunError, StreamReader, StreamWriter
from asyncio.subprocess import DEVNULL, Process
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from tollway.domain import faults
from tollway.domain.catalog import Deployment
from tollway.domain.faults import Fault
from tollway.gateway import continuation
from tollway.gateway.authorize import authorize
from tollway.gateway.body_reader_messages import (
    ANSWER_BYTES_MAX,
    LENGTH,
    Body,
    Composed,
    Composition,
    Continuation,
    Continued,
    Examined,
    Inquiry,
    Lookup,
    Offer,
    Refused,
    Reply,
    Translated,
    Wished,
    decode_answer,
    encode_frame,
)
from tollway.gateway.continuation import WholeConversation, Wish
from tollway.gateway.dialects.dialect import Translation
from tollway.gateway.dialects.image_generations import check_size
from tollway.gateway.dialects.table import DIALECTS
from tollway.gateway.directory import Directory
from tollway.gateway.media.bounds import MediaBounds
from tollway.gateway.request import Call, Caller, ModelGrant, Request, TranslatedBody
from tollway.wire import bodies

READ_SECONDS_MAX = 10.0
"""For a reader to read one body: the longest takes it 0.2 s where it has a processor to itself."""
PIECE_BYTES = 256 * 1024
"""Part of a body that is handed to a reader at a time: a tenth of a millisecond."""
WAIT_SECONDS_MAX = 30.0
"""For a body to wait for a reader."""
REST_SECONDS = 20.0
"""Without a large body before a reader is replaced that has read more than WORN_BYTES."""
WORN_BYTES = 32 * 1024 * 1024
ENVIRONMENT = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "SYSTEMROOT")
"""Variables that a reader is given. Secrets of the gateway are among the others."""

_T = TypeVar("_T")

Alarm = Callable[[str, dict[str, object]], None]


class Reader:
    """A reader process, and the streams to and from it. `bytes_read`: what it has been sent of bodies."""

    __slots__ = ("_incoming", "_outgoing", "_process", "bytes_read")

    def __init__(self, process: Process, incoming: StreamReader, outgoing: StreamWriter) -> None:
        self._process = process
        self._incoming = incoming
        self._outgoing = outgoing
        self.bytes_read = 0

    @classmethod
    async def start(cls) -> "Reader":
        """Start a reader process. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "tollway.gateway.body_reader_process",
                    str(theirs.fileno()),
                    stdin=DEVNULL,
                    stdout=DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=environment,
                )
            ours.setblocking(False)
            incoming, outgoing = await asyncio.open_unix_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        return cls(process, incoming, outgoing)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def ask(self, frame: bytes, pieces: Sequence[bytes] = (), answer_bytes_max: int = ANSWER_BYTES_MAX) -> Reply:
        """Send a frame and what follows it; return the answer. Raises OSError, EOFError or ValueError for a reader that failed."""
        self._outgoing.write(frame)
        for piece in pieces:
            self.bytes_read += len(piece)
            view = memoryview(piece)  # what the socket does not take is copied, and other requests would wait for that
            for start in range(0, len(piece), PIECE_BYTES):
                self._outgoing.write(view[start : start + PIECE_BYTES])
                await self._outgoing.drain()
        (length,) = LENGTH.unpack(await self._incoming.readexactly(LENGTH.size))
        if length > answer_bytes_max:
            raise ValueError("an answer that is too long")
        return decode_answer(await self._incoming.readexactly(length))

    async def receive(self, size: int) -> list[bytes]:
        """Return the `size` bytes that follow an answer, in pieces. Raises as `ask` does."""
        return [await self._incoming.readexactly(min(PIECE_BYTES, size - start)) for start in range(0, size, PIECE_BYTES)]

    def kill(self) -> None:
        """End the process at once."""
        self._outgoing.transport.abort()
        with suppress(ProcessLookupError):
            self._process.kill()

    async def wait(self) -> None:
        """Wait until the process has ended."""
        await self._process.wait()


class BodyReaders:
    """The reader processes of a gateway, at most `count` of them. Use it from one event loop; call `close` at the end.

    `failures`: how often a reader failed or could not be started.
    """

    def __init__(self, count: int, alarm: Alarm) -> None:
        self._count = count
        self._alarm = alarm
        self._busy = 0
        self._idle: list[Reader] = []
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._running: set[asyncio.Task[Any]] = set()
        self._rest: asyncio.TimerHandle | None = None
        self.failures = 0

    @property
    def pids(self) -> list[int]:
        """The process ids of the readers that wait for a body."""
        return [reader.pid for reader in self._idle]

    async def authorize(self, caller: Caller, request: Request, directory: Directory, media: MediaBounds) -> Call:
        """Return the call that a request is, as `authorize.authorize` does, without reading its body here.

        Raises Fault as that does; overloaded if no reader is free within WAIT_SECONDS_MAX or the body takes it more than
        READ_SECONDS_MAX, internal_error if the reader fails. A caller that is cancelled leaves the reader to finish.
        """
        pieces = request.list_pieces()  # held until they are sent: once the client has left, its upload has none
        return await self._lend(
            caller.organization.id,
            lambda reader: _ask(reader, caller, request, pieces, directory, media),
            lambda: authorize(caller, request, directory, media),
        )

    async def compose(self, call: Call, deployment: Deployment, translation: Translation | None) -> list[bytes]:
        """Return the body of a call with a large one for a deployment, in pieces, as `Call.upstream_body` does. Raises as `authorize`
        does."""
        pieces = call.request.list_pieces()
        return await self._lend(
            call.caller.organization.id,
            lambda reader: _compose(reader, call, pieces, deployment, translation),
            lambda: [call.upstream_body(deployment, translation)],
        )

    async def name_model(self, caller: Caller, request: Request, model: str) -> list[bytes]:
        """Return the large body of a request with another model in it, in pieces, where the places of its members are not known. Raises as
        `authorize` does."""
        pieces = request.list_pieces()
        task = Composition(request.body_bytes, request.endpoint, False, (), {"model": msgspec.json.encode(model)}, b"")
        return await self._lend(
            caller.organization.id,
            lambda reader: _edit(reader, task, pieces),
            lambda: [bodies.edit(b"".join(pieces), ("model",), bodies.InjectedFields(task.injected), ())],
        )

    async def read_wish(self, caller: Caller, request: Request) -> Wish | None:
        """Return what the body of a request wishes of the store of responses (`continuation.read_wish`). Raises as `authorize` does."""
        pieces = request.list_pieces()
        task = Inquiry(request.body_bytes, request.endpoint)
        return await self._lend(
            caller.organization.id,
            lambda reader: _inquire(reader, task, pieces),
            lambda: continuation.read_wish(b"".join(pieces), request.endpoint),
        )

    async def make_whole(self, caller: Caller, request: Request, wish: Wish, found: bytes | None) -> WholeConversation:
        """Return the whole conversation that the body of a request becomes (`continuation.make_whole`). Raises as `authorize` does."""
        pieces = request.list_pieces()
        return await self._lend(
            caller.organization.id,
            lambda reader: _make_whole(reader, pieces, wish, found),
            lambda: continuation.make_whole(b"".join(pieces), wish, found),
        )

    async def _lend(self, organization: str, use: Callable[[Reader], Awaitable[_T]], otherwise: Callable[[], _T]) -> _T:
        """Return what a body is used for: with a reader, or here where none can be started."""
        await self.take(organization)
        return await asyncio.shield(self._start(self._use_reader(use, otherwise)))

    def _start(self, work: Coroutine[Any, Any, _T]) -> "asyncio.Task[_T]":
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._finish)
        return task

    async def close(self) -> None:
        """End all readers and wait until they have ended."""
        self._count = 0
        if self._rest is not None:
            self._rest.cancel()
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        readers, self._idle = self._idle, []
        for reader in readers:
            reader.kill()
            await reader.wait()

    def _finish(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it has it, and if nobody does any more, nobody needs it

    # ---- Turns --------------------------------------------------------------------------------------------------------

    async def take(self, organization: str) -> None:
        """Wait for a reader to be free, in the queue of `organization`. Each call that returns is followed by `give_back`. Raises Fault."""
        if self._busy < self._count:
            self._busy += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._waiting.get(organization)
        if queue is None:
            queue = self._waiting[organization] = deque()
        queue.append(turn)
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.give_back()
            else:
                self._leave(organization, turn)
            if isinstance(error, TimeoutError):
                raise Fault(faults.OVERLOADED, retry_after_seconds=1, detail="no reader for a large body") from None
            raise

    def _leave(self, organization: str, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(organization)
        if queue is not None:
            with suppress(ValueError):
                queue.remove(turn)
            if not queue:
                del self._waiting[organization]

    def give_back(self) -> None:
        """Let the next body be read: of the organization whose turn it is."""
        while self._waiting:
            organization = next(iter(self._waiting))
            queue = self._waiting.pop(organization)
            turn = queue.popleft()
            if queue:
                self._waiting[organization] = queue  # behind the others
            if not turn.done():
                turn.set_result(None)
                return
        self._busy -= 1
        if self._busy == 0 and self._count > 0:
            if self._rest is not None:
                self._rest.cancel()
            self._rest = asyncio.get_running_loop().call_later(REST_SECONDS, self._replace_worn)

    def _replace_worn(self) -> None:
        """Replace the readers that have read much, if none is reading."""
        if self._busy:
            return
        worn = [reader for reader in self._idle if reader.bytes_read > WORN_BYTES]
        for reader in worn:
            self._idle.remove(reader)
            self._busy += 1
            self._start(self._replace(reader))

    async def _replace(self, worn: Reader) -> None:
        try:
            async with asyncio.timeout(READ_SECONDS_MAX):
                self._idle.append(await Reader.start())
        except (OSError, TimeoutError) as error:
            self._note_failure("cannot be started", error)
        finally:
            worn.kill()
            self.give_back()

    # ---- Reading ------------------------------------------------------------------------------------------------------

    async def _use_reader(self, use: Callable[[Reader], Awaitable[_T]], otherwise: Callable[[], _T]) -> _T:
        """Let a reader work; where its process ends meanwhile, as by the kernel for want of memory, another one, once. Raises Fault."""
        try:
            try:
                return await self._try_reader(use, otherwise)
            except (ConnectionError, EOFError):
                pass  # it is noted, and no engine has received the request
            return await self._try_reader(use, otherwise)
        except (ConnectionError, EOFError):
            raise Fault(faults.INTERNAL, detail="the reader of the body failed") from None
        finally:
            self.give_back()

    async def _try_reader(self, use: Callable[[Reader], Awaitable[_T]], otherwise: Callable[[], _T]) -> _T:
        """Let a reader work. Raises ConnectionError or EOFError where its process ends meanwhile, Fault where it fails otherwise."""
        reader: Reader | None = None
        try:
            async with asyncio.timeout(READ_SECONDS_MAX):
                try:
                    reader = self._idle.pop() if self._idle else await Reader.start()
                except OSError as error:
                    self._note_failure("cannot be started", error)
                    return otherwise()
                result = await use(reader)
            self._idle.append(reader)
            reader = None
            return result
        except Fault:
            if reader is not None:
                self._idle.append(reader)
                reader = None
            raise
        except TimeoutError as error:
            self._note_failure("took too long", error)
            raise Fault(faults.OVERLOADED, retry_after_seconds=1, detail="reading the body took too long") from None
        except (ConnectionError, EOFError) as error:
            self._note_failure("failed", error)
            raise
        except (OSError, LimitOverrunError, ValueError, KeyError, msgspec.MsgspecError) as error:
            self._note_failure("failed", error)
            raise Fault(faults.INTERNAL, detail="the reader of the body failed") from None
        finally:
            if reader is not None:
                reader.kill()

    def _note_failure(self, what: str, error: Exception) -> None:
        self.failures += 1
        self._alarm("body_reader_failed", {"what": what, "error": type(error).__name__})


async def _ask(reader: Reader, caller: Caller, request: Request, pieces: Sequence[bytes], directory: Directory, media: MediaBounds) -> Call:
    """Let a reader read the body of a request, which is in `pieces`. Raises Fault for a body that is refused."""
    grant: ModelGrant | None = None
    body = Body(request.body_bytes, request.endpoint, media, request.headers.get(b"content-type", b""))
    answer = await reader.ask(encode_frame(body), pieces)
    if isinstance(answer, Lookup):
        grant = directory.find_grant(caller, answer.model, request.endpoint, request.received_at)
        answer = await reader.ask(encode_frame(None if grant is None else to_offer(grant)))
    if isinstance(answer, Refused):
        raise answer.to_fault()
    if not isinstance(answer, Examined) or grant is None:
        raise ValueError("an answer out of turn")
    price = next(price for price in grant.prices.values() if price.id == answer.price_id)
    call = Call(
        request,
        caller,
        grant,
        grant.model,
        DIALECTS[request.endpoint],
        price,
        answer.names,
        answer.dropped,
        answer.output_cap,
        answer.output_tokens_max,
        answer.input_tokens_max,
        answer.prompt_bytes,
        answer.stream,
        answer.prompts,
        answer.sequences,
        answer.hide_usage,
        answer.hide_continuous,
    )
    if caller.end_user_limits is not None:
        call.end_user = answer.end_user
    if grant.conditional_budgets:
        call.count_in(answer.tags, answer.end_user, directory.end_user_key)
    call.measure = answer.measure
    if call.measure is not None and call.dialect.counts_images:
        check_size(call.measure, price.unit_prices)  # the reader does not know the amounts of prices
    spans = check_spans(answer.names, answer.spans, request.body_bytes)
    if answer.translated is not None:
        call.translated = await _receive_translated(reader, answer.translated, request.body_bytes)
    if call.dialect.form_kinds is not None:
        request.spans = spans
    elif request.upload is not None:
        request.upload.spans = spans
    return call


async def _receive_translated(reader: Reader, told: Translated, size: int) -> TranslatedBody:
    """Return the translation of a body of `size` bytes, which a reader sends. Raises as `Reader.ask` does."""
    if told.size > ANSWER_BYTES_MAX + 2 * size:
        raise ValueError("a translation that is too long")
    spans = check_spans(told.names, told.spans, told.size)
    return TranslatedBody(tuple(await reader.receive(told.size)), told.names, spans, bodies.read(told.repeated))


def check_spans(names: Sequence[str], spans: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Return the places of members that a reader named. Raises ValueError if they cannot be those of a body of `size` bytes."""
    if spans and (len(spans) != 2 * len(names) or list(spans) != sorted(spans) or spans[0] < 1 or spans[-1] >= size):
        raise ValueError("places of members that cannot be")
    return spans


async def _compose(
    reader: Reader, call: Call, pieces: Sequence[bytes], deployment: Deployment, translation: Translation | None
) -> list[bytes]:
    """Let a reader make the body for a deployment from that of the request, which is in `pieces`."""
    request = call.request
    task = Composition(
        request.body_bytes,
        request.endpoint,
        translation is not None,
        tuple(call.dropped),
        dict(call.find_injected(deployment, translation).fields),
        call.find_prompt_salt(deployment, translation),
    )
    size_max = ANSWER_BYTES_MAX + 2 * request.body_bytes
    answer = await reader.ask(encode_frame(task), pieces, size_max)
    if not isinstance(answer, Composed) or answer.size > size_max:
        raise ValueError("an answer out of turn")
    call.repeated = None if answer.repeated is None else bodies.read(answer.repeated)
    return await reader.receive(answer.size)


async def _edit(reader: Reader, task: Composition, pieces: Sequence[bytes]) -> list[bytes]:
    """Let a reader make another body of one, of which no answer repeats anything."""
    size_max = ANSWER_BYTES_MAX + 2 * task.size
    answer = await reader.ask(encode_frame(task), pieces, size_max)
    if not isinstance(answer, Composed) or answer.size > size_max:
        raise ValueError("an answer out of turn")
    return await reader.receive(answer.size)


async def _inquire(reader: Reader, task: Inquiry, pieces: Sequence[bytes]) -> Wish | None:
    """Let a reader say what a body wishes."""
    answer = await reader.ask(encode_frame(task), pieces)
    if isinstance(answer, Refused):
        raise answer.to_fault()
    if not isinstance(answer, Wished):
        raise ValueError("an answer out of turn")
    return answer.wish


async def _make_whole(reader: Reader, pieces: Sequence[bytes], wish: Wish, found: bytes | None) -> WholeConversation:
    """Let a reader make a whole conversation."""
    sent = pieces if found is None else (*pieces, found)
    size = sum(map(len, sent))
    answer = await reader.ask(encode_frame(Continuation(size, None if found is None else len(found), wish)), sent)
    if isinstance(answer, Refused):
        raise answer.to_fault()
    if not isinstance(answer, Continued) or answer.size > ANSWER_BYTES_MAX + size or not 0 <= answer.start <= answer.end <= answer.size:
        raise ValueError("an answer out of turn")
    return WholeConversation(tuple(await reader.receive(answer.size)), answer.start, answer.end)


def to_offer(grant: ModelGrant) -> Offer:
    """Return the part of a grant that a reader needs."""
    model = msgspec.structs.replace(grant.model, prices=())
    prices = {tier: price.id for tier, price in grant.prices.items()}
    return Offer(model, prices, grant.is_served, grant.is_translated, grant.known_fields, grant.default_tier)
