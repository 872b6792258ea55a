"""Protocols that the data plane needs from outside. Implemented in `link` and `storage`, handed in by `serve`.

A Protocol stands here only where two implementations exist: the real one and the one of the tests (`tests/fakes.py`).
"""

from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Protocol

from tollway.domain.answers import StoredAnswer
from tollway.domain.batches import Batch, LineResult
from tollway.domain.billing_classes import Quantities
from tollway.domain.content_logs import Content, ContentRecord
from tollway.domain.faults import Fault
from tollway.domain.files import FileOwner, StoredFile
from tollway.domain.limits import LevelLimits
from tollway.domain.shared_limits import PreparedLimits, StoreAnswer

TokenEndpoint = Callable[[bytes, bytes, bytes | None], Coroutine[Any, Any, tuple[int, bytes]]]
"""Ask control for an access token: the body, `content-type` and `authorization` of a request in, status and body of its answer out."""


AskGuardrail = Callable[[bytes], Coroutine[Any, Any, bytes | None]]
"""Ask the guardrail: a document in, the body of its answer out; None if there was none in time."""


class OutputHold(Protocol):
    """The reservation that budgets hold for the output of a stream: its first `covered_tokens`, which is all that may be relayed."""

    covered_tokens: int

    def extend(self, tokens: int, decided: Callable[[bool], None]) -> bool:
        """Return whether the first `tokens` are covered now. Where they are not, `decided` is called later, from a callback of the loop,
        with whether they are then."""
        ...

    def abandon(self) -> None:
        """Let no `decided` be called any more."""
        ...


class UsageSink(Protocol):
    """The destination of usage records: the spool.

    Contract: after `admit` returns, the request survives the death of the process; after `final` called `done`, its end
    survives the loss of power. Between them `progress` is plain memory that survives the process: a store to it costs no system
    call, so what was delivered is always known, to the chunk.
    """

    progress: memoryview
    """Format "Q", in the layout of `wire.progress_slots`. The caller stores the tokens so far in its slot, always before it hands the bytes
    that carry them to the client."""

    def admit(self, admit: bytes) -> int:
        """Write ADMIT, encoded, and return the request's slot, zeroed. Raises Fault SPOOL_UNAVAILABLE (disk full or failing) or OVERLOADED
        (no slot free); then nothing was written and no FINAL is owed."""
        ...

    def checkpoint(self, request_id: str, used: Quantities, retries: int) -> None:
        """Write PROGRESS with the next group commit; `retries` as in the record. Never blocks, never fails the request."""
        ...

    def final(self, slot: int, final: bytes, done: Callable[[Fault | None], None]) -> None:
        """Write FINAL, encoded; `done(None)` is called when it is durable, `done` with Fault SPOOL_UNAVAILABLE if that can never be.
        Call it exactly once for each `admit`; the slot is given back."""
        ...

    def is_writable(self) -> bool:
        """Return whether new requests can be metered; a gateway that cannot meter is not ready."""
        ...


class CounterStore(Protocol):
    """Counters of limits that several gateways share. Nothing here waits: answers arrive in callbacks of the event loop, never in a task.

    An owner is one run of one gateway. What it holds is bound to its lease in the organization, which every call that changes something
    renews. When the lease ends, its concurrent requests no longer count, and the units that it held are charged in full.
    """

    @property
    def is_available(self) -> bool:
        """Return whether it is worth asking."""
        ...

    def prepare(self, organization_id: str, limits: Sequence[LevelLimits]) -> PreparedLimits:
        """Return these limits of one organization in the store's form, innermost level first."""
        ...

    def reserve(self, prepared: PreparedLimits, owner: str, units: tuple[int, ...], done: Callable[[StoreAnswer | None], None]) -> None:
        """Admit a request for `units` (`memory_counters.Units`) at all levels, or change nothing.

        Requests are charged, everything else is held. `done(None)` if there is no answer within the deadline; an answer that arrives
        afterwards is handed to `done` as well.
        """
        ...

    def read(self, prepared: PreparedLimits, done: Callable[[StoreAnswer | None], None]) -> None:
        """Return the states of counters as they stand now, as a refusal that changes nothing."""
        ...

    def settle(self, prepared: PreparedLimits, owner: str, moves: Sequence[int], previous: str = "") -> None:
        """Change what `owner` holds. `moves`: for each counter the units that are no longer held (negative: held in addition), then the
        units to charge. If the store no longer knows the owner's holds, because they were charged when its lease ended, only what exceeds
        them is charged. `previous`: an earlier owner whose holds end without a charge."""
        ...

    def renew(self, organization_id: str, owner: str, done: Callable[[bool], None]) -> None:
        """Renew the lease of an owner in an organization. `done` receives whether the store knew it, if it answers."""
        ...


class Vault(Protocol):
    """Opens what was sealed for this node."""

    def unseal(self, sealed: bytes) -> str:
        """The secret inside. Raises ValueError if it was not sealed for this node or was altered."""
        ...


class ClaimedAnswer(Protocol):
    """The place of the answer to one request with an idempotency key, held until `release`. `answer`: the one that is stored there; None
    for a request that is to be served."""

    @property
    def answer(self) -> StoredAnswer | None: ...

    def keep(self, answer: StoredAnswer | None) -> None:
        """Store the answer durably; None for one that is longer than `AnswerStore.answer_bytes_max`. Blocks. Raises Fault
        metering_unavailable."""
        ...

    def release(self) -> None:
        """Let others claim the request; where nothing was kept it is as if it had never been sent. Does not block."""
        ...

    def clean_up(self) -> None:
        """Remove what an unanswered request left on the disk, after `release`. Blocks."""
        ...


class AnswerStore(Protocol):
    """Answers to requests with an idempotency key."""

    answer_bytes_max: int
    """Longest body that is stored."""

    @property
    def executor(self) -> Executor | None:
        """Threads in which its functions are called; None for asyncio's."""
        ...

    @property
    def decides_on_usage(self) -> bool:
        """Return whether recovery asks the store if an answer was stored, before it bills what its request has noted."""
        ...

    def claim(self, organization_id: str, digest: bytes, body_digest: bytes, request_id: str) -> ClaimedAnswer:
        """Return the place of the answer to a request, held by the caller. `request_id`: of its record. Blocks.

        Raises Fault idempotency_in_progress, idempotency_key_reused or idempotency_unanswered; rate_limit_exceeded or overloaded if
        there is no space for another answer; metering_unavailable if the disk fails.
        """
        ...


class KeepsResponse(Protocol):
    """Stores the response of one request (`conversations.ResponseKeeper`)."""

    async def keep_body(self, body: bytes) -> bytes:
        """Store a whole answer. Return what to send in its place."""
        ...

    async def keep_stream(self, terminator: bytes) -> bytes:
        """Store the response that the last bytes of a stream hold. Return what to send in their place."""
        ...


class ChecksAnswer(Protocol):
    """Has the answer to one call checked before it is stored or sent (`guardrails.Guard`). `checked_ms`: time that this took."""

    checked_ms: float

    @property
    def has_sent_nothing(self) -> bool:
        """Return whether all of the answer was held back so far."""
        ...

    async def check_body(self, content_type: bytes, body: bytes) -> None:
        """Return if a whole answer may be sent. `content_type`: empty for JSON. Raises Fault."""
        ...

    async def check_rest(self, terminator: bytes) -> None:
        """Return once what is left of a stream may be sent, its last bytes included, and all before these was. Raises Fault."""
        ...


class ResponseStore(Protocol):
    """Responses that projects have stored, opened and sealed on the way. Nothing here waits for longer than a few seconds."""

    async def keep(self, organization_id: str, project_id: str, id: str, content: bytes) -> bool:
        """Store a response; return False if it could not be stored."""
        ...

    async def find(self, organization_id: str, project_id: str, id: str) -> bytes | None:
        """Return a stored response; None if the project has none of this id. Raises Fault stored_responses_unavailable."""
        ...

    async def delete(self, organization_id: str, project_id: str, id: str) -> bool:
        """Delete a stored response; return False if the project has none of this id. Raises as `find` does."""
        ...


class ContentLog(Protocol):
    """The log of what requests of projects said and were answered, where these want it."""

    def add(self, record: ContentRecord, content: Content) -> None:
        """Take the content of a request that has ended. Neither blocks nor raises: what cannot be kept is lost, and counted."""
        ...


class FileStore(Protocol):
    """Files of tenants. All functions block, and raise Fault files_unavailable where the store fails."""

    def add(self, owner: FileOwner, file: StoredFile, pieces: Iterable[bytes]) -> None:
        """Store a file durably, in place of one with its id. Raises Fault quota_exceeded as well."""
        ...

    def list_files(self, owner: FileOwner) -> list[StoredFile]:
        """Return the files of a project, oldest first."""
        ...

    def find(self, owner: FileOwner, id: str) -> StoredFile | None:
        """Return a file, None if the project has none with this id."""
        ...

    def read_pieces(self, owner: FileOwner, id: str) -> Iterator[bytes]:
        """Yield the content of a file."""
        ...

    def delete(self, owner: FileOwner, id: str) -> bool:
        """Delete a file. Return whether the project had it."""
        ...

    def remove_organization(self, organization_id: str) -> None:
        """Remove every file of an organization, which was erased. Raises OSError."""
        ...

    def remove_expired(self) -> None:
        """Remove files that have expired. Raises OSError."""
        ...


class ActiveBatch(Protocol):
    """A batch that its caller runs, until `release`. See `storage.batch_directory`."""

    batch: Batch
    ends: dict[int, LineResult]
    """Ends of the lines that have ended, by number from 0."""
    counts: list[int]
    """Number of these, by result."""
    sizes: list[int]
    """Bytes of their texts, by result."""

    def open_journal(self) -> None:
        """Read which lines have ended. Call it before the other functions."""
        ...

    def save(self, batch: Batch) -> None:
        """Replace the description durably."""
        ...

    def read_lines(self) -> bytes:
        """Return the lines."""
        ...

    def is_cancelled(self) -> bool:
        """Return whether somebody has cancelled the batch."""
        ...

    def is_forgotten(self) -> bool:
        """Return whether somebody has deleted the response in the background that this is."""
        ...

    def note_attempt(self, request_id: str) -> None:
        """Note durably that a request is made of this response in the background."""
        ...

    def append(self, line: int, result: LineResult, text: bytes, request_id: str = "", *, durable: bool) -> None:
        """Append how a line ended, and the request that was answered; once `durable` it is on the disk."""
        ...

    def sync(self) -> None:
        """Have what was appended on the disk."""
        ...

    def read_texts(self, results: Collection[LineResult]) -> Iterator[bytes]:
        """Yield the texts of the lines that ended so."""
        ...

    def finish(self, batch: Batch) -> None:
        """Save a batch that has ended: nobody runs it any more."""
        ...

    def release(self) -> None:
        """Let others run the batch."""
        ...


class BatchStore(Protocol):
    """Batches of tenants. All functions block, and raise Fault files_unavailable where the store fails."""

    def create(self, batch: Batch, lines: Iterable[bytes], size: int) -> None:
        """Store a batch durably with its lines, of `size` bytes. Raises Fault quota_exceeded."""
        ...

    def find(self, owner: FileOwner, id: str) -> Batch | None:
        """Return a batch as it stands, None if the project has none with this id."""
        ...

    def list_page(self, owner: FileOwner, kind: str, after: str, before: str, limit: int) -> tuple[list[Batch], bool]:
        """Return the newest batches of a kind (the prefix of their ids) between two ids, and whether there are more."""
        ...

    def cancel(self, owner: FileOwner, id: str) -> Batch | None:
        """Have no further line of a batch sent, and return it; None if there is none. Raises Fault conflict for one that has ended."""
        ...

    def forget(self, owner: FileOwner, id: str) -> bool:
        """Note durably that a response in the background is deleted that was stored and has not ended. Return whether there is one."""
        ...

    def delete(self, owner: FileOwner, id: str) -> bool:
        """Delete a batch. Return whether the project had it. Raises Fault conflict for one that has not ended."""
        ...

    def read_results(self, owner: FileOwner, id: str) -> Iterator[bytes]:
        """Yield the texts of all lines of a batch that has ended and has no files."""
        ...

    def list_active(self) -> list[str]:
        """Return the names of the batches that have not ended, for `claim`: `<organization>.<project>.<id>`, first submitted first."""
        ...

    def claim(self, name: str) -> ActiveBatch | None:
        """Return an active batch, owned by the caller; None if somebody else has it, or it has ended."""
        ...


class Client(Protocol):
    """The client's end of one exchange: where an answer is written. Implemented by `server.ClientConnection` and by the tests' recorder.

    Nothing is awaited: a slow reader is signalled by `set_flow`, and whoever writes stops its own source.
    """

    @property
    def committed(self) -> bool:
        """True once the status line was sent: from then on nothing can be retried and a fault is an event of the stream."""
        ...

    @property
    def chunked(self) -> bool:
        """True if the stream that began is sent in chunks."""
        ...

    @property
    def gone(self) -> bool:
        """True once the client closed its connection."""
        ...

    def answer(self, status: int, headers: bytes, body: bytes) -> None:
        """A whole answer. `headers`: lines ending in CR LF, without content-length."""
        ...

    def begin_stream(self, headers: bytes) -> None:
        """Status 200 and the head of a stream."""
        ...

    def send(self, data: bytes) -> None:
        """The next bytes of the stream (without transfer coding)."""
        ...

    def send_chunks(self, data: bytes) -> None:
        """The next bytes of a stream that is `chunked`, as whole chunks."""
        ...

    def end_stream(self, data: bytes) -> None:
        """The last bytes of the stream and its clean end. Only after the upstream's own terminator, or an error event."""
        ...

    def break_off(self) -> None:
        """End a stream in which no fault can be reported, so that the client sees that it is not whole: its connection is reset."""
        ...

    def throttle(self, fault: Fault, headers: Mapping[bytes, bytes]) -> Fault:
        """Count a failed authentication against the address that the request (of these headers) is from; returns the fault to answer."""
        ...

    def attend(self, flow: "Flow | None") -> None:
        """Tell `flow` of back-pressure until another or None is set."""
        ...


class Flow(Protocol):
    """A listener for back-pressure and departure of the client."""

    def pause(self) -> None:
        """The client reads slower than it is sent: send nothing more until `resume`."""
        ...

    def resume(self) -> None:
        """The client caught up."""
        ...
