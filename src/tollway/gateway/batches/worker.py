"""The worker of batches: takes batches that nobody runs, sends their lines while nobody else needs the capacity, and writes their output.

A batch is owned by whoever has claimed it in the store, and by one task here. Whatever fails in that task releases the batch, which is
claimed again after a pause; all that is needed then is in the store. A line is served by `pipeline.answer` like every request. Its answer
is in the journal before it is billed, so a line that has an end there is never sent again (docs/decisions/0078)."""

import asyncio
import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from tollway.domain import faults
from tollway.domain.batches import ERRORS_MAX, Batch, BatchError, BatchStatus, LineCounts, LineResult
from tollway.domain.faults import Blame, Fault
from tollway.domain.files import FilePurpose, StoredFile
from tollway.domain.ids import RESPONSE
from tollway.gateway import pipeline
from tollway.gateway.authorize import authorize
from tollway.gateway.batches.line_requests import LineAnswer, LineClient, LineStore, find_batch_caller, hold_body, new_line_request
from tollway.gateway.batches.lines import (
    UNSENT,
    Line,
    Lines,
    check_lines,
    find_model,
    is_of_messages,
    read_error,
    to_error,
    write_answer,
    write_unsent,
)
from tollway.gateway.batches.pace import Pace
from tollway.gateway.continuation import CONVERSATION_BYTES_MAX, encode_stored
from tollway.gateway.dialects.table import DIALECTS
from tollway.gateway.driver import CoroutineDriver
from tollway.gateway.plane import Plane
from tollway.gateway.ports import ActiveBatch, BatchStore, FileStore
from tollway.gateway.request import Call, Caller, ClientGone, Request
from tollway.gateway.uploads import Upload
from tollway.telemetry import describe_error
from tollway.wire import bodies

BATCHES_MAX: Final = 4
"""Batches that one gateway runs at a time: the lines of each are in its memory."""
ORGANIZATION_BATCHES_MAX: Final = 2
RESPONSES_MAX: Final = 32
ORGANIZATION_RESPONSES_MAX: Final = 8
"""Responses in the background that one gateway runs at a time, in all and of one organization: each has up to 4 MiB in its memory."""
CLAIMS_MAX: Final = 100
"""Batches that one search tries to claim; the next one goes on behind them."""
SEARCH_SECONDS = 1.0
TICK_SECONDS: Final = 0.05
CHECK_SECONDS = 1.0
"""Interval at which a batch looks whether it was cancelled."""
ATTEMPTS_MAX: Final = 3
"""Times that a line is sent whose engines fail."""
DEFERRED_MAX: Final = 1_000
"""Lines of one batch that wait to be sent again before further ones are read."""
BUSY_SECONDS: Final = 0.25
"""Pause of a line whose model has no free place."""
THREADS: Final = 8
CHECK_TURN_SECONDS = 0.001
"""Time for which lines are authorized in one turn of the event loop: about eight short ones, or one of many fields."""
PAUSE_SECONDS_FIRST: Final = 1.0
PAUSE_SECONDS_MAX: Final = 60.0
"""Pause of a line that was refused, or of a batch whose run failed: doubled from the first to the longest."""

_T = TypeVar("_T")
_KEY_ENDED: Final = BatchError("invalid_api_key", "The API key that submitted it is not valid any more.")
_NOT_STORED: Final = BatchError("response_not_stored", "The response was made, but it is too long to be stored, or nothing is.")
_RESPONSE_EXPIRED: Final = BatchError("response_expired", "The response could not be made within 24 hours.")


class BatchBounds(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of batches. `concurrency`, `organization_concurrency`: lines at a time in one gateway, in all and of one organization.
    `organization_batches_max`: batches of an organization that have not ended. `lines_max`: lines of a batch."""

    concurrency: int = 64
    organization_concurrency: int = 32
    organization_batches_max: int = 100
    lines_max: int = 50_000


class _Stop(Exception):
    """The batch is to end before all of its lines were sent. `status`: the one that it ends in; None where this process ends."""

    def __init__(self, status: BatchStatus | None, error: BatchError | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.error = error


class _Pending:
    """The lines of a batch that are to be sent: those that never were, in their order, and those that are sent again. `tries`: how often
    each was that was sent in vain. `resumes_at`: when a line may be sent again, in monotonic seconds."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = iter(numbers)
        self._deferred: list[tuple[float, int]] = []
        self._is_read = False
        self._first: int | None = None
        self.tries: Counter[int] = Counter()
        self.resumes_at = 0.0

    def take(self, now: float) -> int | None:
        """Return a line that may be sent now; None if there is none at the moment."""
        if now < self.resumes_at:
            return None
        if self._first is not None:
            number, self._first = self._first, None
            return number
        if self._deferred and self._deferred[0][0] <= now:
            return heapq.heappop(self._deferred)[1]
        if len(self._deferred) < DEFERRED_MAX and not self._is_read:
            for number in self._numbers:
                return number
            self._is_read = True
        return None

    def put_back(self, number: int) -> None:
        """Let a line that was taken be the next one."""
        self._first = number

    def defer(self, number: int, until: float) -> None:
        """Send a line later."""
        heapq.heappush(self._deferred, (until, number))

    def has_more(self) -> bool:
        """Return whether a line may have to be sent."""
        return bool(self._deferred) or self._first is not None or not self._is_read


class BatchWorker:
    """The worker of one gateway. `lines_ended`: how many lines it has seen to their end, by result."""

    def __init__(
        self, plane: Plane, store: BatchStore, files: FileStore, bounds: BatchBounds, alarm: Callable[[str, dict[str, object]], None]
    ) -> None:
        self.lines_ended = 0
        self._plane = plane
        self._store = store
        self._files = files
        self._bounds = bounds
        self._alarm = alarm
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="batches")
        self._batches: dict[str, asyncio.Task[None]] = {}
        self._pauses: dict[str, tuple[float, float]] = {}
        self._running: Counter[str] = Counter()
        self._drivers: dict[CoroutineDriver, str] = {}
        self._paces: dict[tuple[str, bool], Pace] = {}
        self._tried = ""
        self._is_stopping = False

    @property
    def batches_running(self) -> int:
        """Return how many batches this gateway runs."""
        return len(self._batches)

    @property
    def lines_running(self) -> int:
        """Return how many lines it has sent that have not ended."""
        return self._running.total()

    async def run(self) -> None:
        """Run batches until cancelled."""
        while not self._is_stopping:
            plane = self._plane
            while plane.directory.obstacle is None and not plane.draining:
                failures: list[tuple[str, Exception]] = []
                active = await self._in_thread(partial(self._claim_next, failures))
                for name, error in failures:
                    self._report_failure(name, error)
                if active is None:
                    break
                self._begin(active)
            await asyncio.sleep(SEARCH_SECONDS)

    async def stop(self, grace_seconds: float) -> None:
        """Send no more lines, let those that run end within `grace_seconds`, interrupt the rest, and release all batches."""
        self._is_stopping = True
        tasks = list(self._batches.values())
        if tasks:
            await asyncio.wait(tasks, timeout=grace_seconds)
        for driver in list(self._drivers):
            driver.interrupt(Fault(faults.DRAINING))
        if tasks:
            await asyncio.wait(tasks)
        self._threads.shutdown(wait=False)

    def _claim_next(self, failures: list[tuple[str, Exception]]) -> ActiveBatch | None:
        """Return a batch that this gateway may run and nobody does. `failures`: takes the names of those that cannot be opened. Blocks."""
        now = time.monotonic()
        may_begin = self._find_space()
        active_names = self._store.list_active()
        for name in self._pauses.keys() - set(active_names):
            self._pauses.pop(name, None)
        names = [
            name for name in active_names if name not in self._batches and self._pauses.get(name, (0.0, 0.0))[0] <= now and may_begin(name)
        ]
        later = names.index(self._tried) + 1 if self._tried in names else 0
        names = (names[later:] + names[:later])[:CLAIMS_MAX]
        for name in names:
            try:
                active = self._store.claim(name)
            except Exception as error:  # one that cannot be opened stops no other
                failures.append((name, error))
                continue
            if active is None:
                continue
            if self._is_stopping:  # whoever waits for it is gone, or will be
                active.release()
                return None
            if active.batch.snapshot_version <= self._plane.version:
                self._tried = ""
                return active
            self._pauses[name] = (now + PAUSE_SECONDS_FIRST, 0.0)  # its key may be one that this gateway does not know yet
            active.release()
        self._tried = names[-1] if len(names) == CLAIMS_MAX else ""
        return None

    def _find_space(self) -> Callable[[str], bool]:
        """Return what says by the name of a batch, or of a response in the background, whether another one may begin."""
        running = Counter(map(_is_response, list(self._batches)))
        of_organization = Counter((name.partition(".")[0], _is_response(name)) for name in list(self._batches))

        def may_begin(name: str) -> bool:
            kind = _is_response(name)
            of_one = of_organization[name.partition(".")[0], kind]
            if kind:
                return running[kind] < RESPONSES_MAX and of_one < ORGANIZATION_RESPONSES_MAX
            return running[kind] < BATCHES_MAX and of_one < ORGANIZATION_BATCHES_MAX

        return may_begin

    def _begin(self, active: ActiveBatch) -> None:
        batch = active.batch
        name = f"{batch.owner.organization_id}.{batch.owner.project_id}.{batch.id}"

        def finish(_: "asyncio.Task[None]") -> None:
            del self._batches[name]

        task = self._batches[name] = asyncio.get_running_loop().create_task(self._keep(active, name), name=f"batch {batch.id}")
        task.add_done_callback(finish)

    async def _keep(self, active: ActiveBatch, name: str) -> None:
        """Run a batch, and release it however that ends."""
        try:
            await self._run(active)
            self._pauses.pop(name, None)
        except Exception as error:  # one batch stops no other
            self._report_failure(name, error)
        finally:
            await self._in_thread(active.release)

    def _report_failure(self, name: str, error: Exception) -> None:
        """Report that a batch could not go on, and try it again after a pause."""
        pause = min(max(2 * self._pauses.get(name, (0.0, 0.0))[1], PAUSE_SECONDS_FIRST), PAUSE_SECONDS_MAX)
        self._pauses[name] = (time.monotonic() + pause, pause)
        reason = error.detail or error.kind.code if isinstance(error, Fault) else describe_error(error)
        self._alarm("batch_failed", {"batch_id": name.rpartition(".")[2], "error": reason, "pause_seconds": pause})

    async def _run(self, active: ActiveBatch) -> None:
        """Take a batch from the state that it is in to its end, unless this process ends before."""
        await self._in_thread(active.open_journal)
        content = await self._in_thread(active.read_lines)
        batch, lines = active.batch, Lines(b"")
        status, errors = batch.outcome, list(batch.errors)
        try:
            if batch.in_progress_at is not None or is_of_messages(batch):  # each of the latter has an end, whatever stops the validation
                lines = await self._in_thread(lambda: Lines(content))
            if batch.is_response and status is None:  # it was checked when it was submitted
                lines = await self._in_thread(lambda: Lines(content))
                if batch.in_progress_at is None:
                    await self._save(active, status=BatchStatus.IN_PROGRESS, in_progress_at=self._now())
            elif batch.in_progress_at is None and status is None:
                found, errors = await self._validate(active, content)
                if errors:
                    raise _Stop(BatchStatus.FAILED)
                lines = found
                await self._save(active, status=BatchStatus.IN_PROGRESS, in_progress_at=self._now(), total=len(lines))
            if status is None:
                await self._send(active, lines)
                status = BatchStatus.COMPLETED
        except _Stop as stop:
            if stop.status is None:
                return
            status = stop.status
            if stop.error is not None:
                errors = [stop.error]
        await self._finish(active, lines, status, errors)

    # ---- Validation ---------------------------------------------------------------------------------------------------

    async def _validate(self, active: ActiveBatch, content: bytes) -> tuple[Lines, list[BatchError]]:
        """Return the lines of a batch, and what is wrong with them. Raises _Stop."""
        batch = active.batch
        lines, errors = await self._in_thread(lambda: check_lines(content, f"/v1/{batch.endpoint}", self._bounds.lines_max))
        if errors:
            return Lines(b""), errors
        checked_at = began = time.monotonic()
        for number in range(len(lines)):
            if time.monotonic() - began >= CHECK_TURN_SECONDS:
                await asyncio.sleep(time.monotonic() - began)  # half of the time at most
                began = time.monotonic()
                if began - checked_at >= CHECK_SECONDS:
                    checked_at = began
                    await self._look_for_stop(active)
            caller = self._find_caller(batch)
            line = lines.read(number)
            fault = await self._find_fault(active, line, caller)
            if fault is not None:
                if is_of_messages(batch):  # one request that is refused does not keep the others from being served
                    text = self._write_refusal(batch, number, line, fault)
                    await self._in_thread(partial(active.append, number, LineResult.ERRORED, text, durable=False))
                    continue
                errors.append(to_error(fault, number))
                if len(errors) == ERRORS_MAX:
                    break
        return lines if not errors else Lines(b""), errors

    async def _find_fault(self, active: ActiveBatch, line: Line, caller: Caller) -> Fault | None:
        """Return the fault with which a line would be refused as a request, None for none. One that passes, as that of a gateway without
        memory or readers, is waited for. Raises _Stop."""
        tries, pause = 0, PAUSE_SECONDS_FIRST
        while True:
            try:
                await self._check_body(active.batch, line, caller)
            except Fault as fault:
                tries += 1
                may_pass = fault.kind.status in (429, 503) or (fault.kind.blame is Blame.PLATFORM and tries < ATTEMPTS_MAX)
                if not may_pass:
                    return fault
            else:
                return None
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS_MAX)
            await self._look_for_stop(active)
            caller = self._find_caller(active.batch)

    def _write_refusal(self, batch: Batch, number: int, line: Line, fault: Fault) -> bytes:
        """Return the text of a line that is refused as it would be as a request."""
        id = self._plane.request_ids.new(self._plane.now_us())
        body = DIALECTS[batch.endpoint].render_error(fault, id)
        return write_answer(batch, number, line.custom_id, id, fault.kind.status, body)

    async def _check_body(self, batch: Batch, line: Line, caller: Caller) -> None:
        """Raise Fault for a line that would be refused as a request."""
        plane = self._plane
        request = new_line_request(batch, line, plane)
        upload = hold_body(request, caller, plane)
        try:
            grant = plane.directory.find_grant(caller, find_model(line), batch.endpoint, request.received_at)
            if grant is not None and grant.default is None:
                raise Fault(faults.ENDPOINT_UNSUPPORTED, param="model", message="This model has no price for batches.")
            call = await self._authorize(caller, request)
            if call.stream:
                raise Fault(faults.PARAMETER_INVALID, param="stream", message="Lines of a batch are not streamed.")
        finally:
            if upload is not None:
                upload.release(time.monotonic_ns())

    async def _authorize(self, caller: Caller, request: Request) -> Call:
        plane = self._plane
        if request.upload is not None and plane.body_readers is not None:
            return await plane.body_readers.authorize(caller, request, plane.directory, plane.media_bounds)
        return authorize(caller, request, plane.directory, plane.media_bounds)

    # ---- Lines --------------------------------------------------------------------------------------------------------

    async def _send(self, active: ActiveBatch, lines: Lines) -> None:
        """Send every line that has not ended. Raises _Stop once no further line is to be sent and those that run have ended."""
        pending = _Pending(number for number in range(len(lines)) if number not in active.ends)
        tasks: set[asyncio.Task[None]] = set()
        checked_at = -CHECK_SECONDS
        try:
            while tasks or pending.has_more():
                now = time.monotonic()
                if now - checked_at >= CHECK_SECONDS:
                    checked_at = now
                    await self._look_for_stop(active)
                self._find_caller(active.batch)
                task = self._send_next(active, lines, pending, now)
                if task is not None:
                    tasks.add(task)
                    continue
                if tasks:
                    pause = CHECK_SECONDS if active.batch.is_response else TICK_SECONDS
                    done, tasks = await asyncio.wait(tasks, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                    for each in done:
                        each.result()
                else:
                    await asyncio.sleep(TICK_SECONDS)
        except _Stop as stop:
            if active.batch.is_response and stop.status is not None:  # nobody wants it any more, or may have it
                self._interrupt(active.batch.id)
            raise
        finally:
            await asyncio.gather(*tasks, return_exceptions=True)

    def _interrupt(self, batch_id: str) -> None:
        """End the requests that run for a batch as if their clients left."""
        for driver, id in list(self._drivers.items()):
            if id == batch_id:
                driver.interrupt(ClientGone())

    def _find_caller(self, batch: Batch) -> Caller:
        """Return the caller of a batch. Raises _Stop where its key is not valid any more, or this process ends."""
        if self._is_stopping or self._plane.draining:
            raise _Stop(None)
        caller = find_batch_caller(batch, self._plane)
        if caller is None:
            raise _Stop(BatchStatus.FAILED, _KEY_ENDED)
        return caller

    async def _look_for_stop(self, active: ActiveBatch) -> None:
        """Raise _Stop for a batch that was cancelled or has expired."""
        if await self._in_thread(active.is_cancelled):
            await self._save(active, status=BatchStatus.CANCELLING, cancelling_at=active.batch.cancelling_at or self._now())
            raise _Stop(BatchStatus.CANCELLED)
        if self._now() >= active.batch.expires_at:
            raise _Stop(BatchStatus.EXPIRED)

    def _send_next(self, active: ActiveBatch, lines: Lines, pending: _Pending, now: float) -> "asyncio.Task[None] | None":
        """Send a line if there is one, and a place for it."""
        organization_id, bounds, is_response = active.batch.owner.organization_id, self._bounds, active.batch.is_response
        is_full = self._running[organization_id] >= bounds.organization_concurrency or self.lines_running >= bounds.concurrency
        if is_full and not is_response:
            return None
        number = pending.take(now)
        if number is None:
            return None
        line = lines.read(number)
        caller = self._find_caller(active.batch)
        model = find_model(line)
        pace = Pace(1) if is_response else self._find_pace(model, is_test=caller.is_test)
        if is_response:  # it waits for a place as every request does, in the fair queue of its model
            pace.running += 1
            self._running[organization_id] += 1
            return asyncio.get_running_loop().create_task(self._serve(active, number, line, caller, pace, pending))
        if pace.is_full:
            pending.put_back(number)
            return None
        if not pace.may_send(now) or not self._has_place(model, is_test=caller.is_test):
            pending.defer(number, now + BUSY_SECONDS)
            return None
        pace.running += 1
        self._running[organization_id] += 1
        return asyncio.get_running_loop().create_task(self._serve(active, number, line, caller, pace, pending))

    def _find_pace(self, model: str, *, is_test: bool) -> Pace:
        pace = self._paces.get((model, is_test))
        if pace is None:
            for idle in [key for key, each in self._paces.items() if not each.running][:-DEFERRED_MAX]:
                del self._paces[idle]
            pace = self._paces[model, is_test] = Pace(self._bounds.concurrency)
        return pace

    def _has_place(self, model: str, *, is_test: bool) -> bool:
        """Return whether a model has capacity that nobody else waits for. A part of it is left free for whoever comes next."""
        plane = self._plane
        if plane.shedder.steps or plane.directory.obstacle is not None or not plane.usage_sink.is_writable():
            return False
        if plane.queues.count_waiting_for(model, test=is_test):
            return False
        known = plane.upstreams.of(model, test=is_test)
        return any(each.deployment.weight > 0 and each.running + each.limit // 8 < each.limit for each in known)

    async def _serve(self, active: ActiveBatch, number: int, line: Line, caller: Caller, pace: Pace, pending: _Pending) -> None:
        """Send one line, and note its end or when it is to be sent again."""
        plane = self._plane
        request = new_line_request(active.batch, line, plane)
        kept = LineStore(active, number, line, request.id, self._threads)
        request.head.answer_store, request.head.idempotency_key = kept, b"%b:%d" % (active.batch.id.encode(), number)
        client, driver = LineClient(), CoroutineDriver(copy_context())
        upload: Upload | None = None
        answered: LineAnswer | None = None
        self._drivers[driver] = active.batch.id
        try:
            upload = hold_body(request, caller, plane)
            client.start(driver, lambda: pipeline.answer(request, client, plane, driver))
            answered = await client.answered
        except Fault:  # there is no memory for its body now
            answered = LineAnswer(503, b"", b"")
        finally:
            self._drivers.pop(driver, None)
            pace.running -= 1
            self._running[active.batch.owner.organization_id] -= 1
            if upload is not None:
                upload.release(time.monotonic_ns())
        await self._note(active, number, answered or LineAnswer(500, b"{}", b"{}"), kept, pace, pending)

    async def _note(self, active: ActiveBatch, number: int, answered: LineAnswer, kept: LineStore, pace: Pace, pending: _Pending) -> None:
        """Note how an attempt at a line ended. Raises Fault where the journal did not take its answer."""
        now = time.monotonic()
        if kept.is_kept:
            pace.succeed()
            self.lines_ended += 1
            return
        if kept.fault is not None:
            raise kept.fault
        if answered.status == 401 or self._is_stopping:
            pending.defer(number, now + BUSY_SECONDS)  # its batch ends, unless the key is valid nevertheless
            return
        if answered.is_refused_for_now:
            pending.tries[number] += 1
            pause = answered.retry_after_seconds or PAUSE_SECONDS_FIRST
            if answered.status == 429:  # a limit of the tenant's
                pending.resumes_at = max(pending.resumes_at, now + min(pause, PAUSE_SECONDS_MAX))
            else:
                pace.refuse(now, pause)
            pending.defer(number, now + min(max(pause, 2.0 ** min(pending.tries[number], 6) / 2), PAUSE_SECONDS_MAX))
            return
        pending.tries[number] += 1
        if answered.status >= 500 and pending.tries[number] < ATTEMPTS_MAX:
            pending.defer(number, now + PAUSE_SECONDS_FIRST)
            return
        await self._in_thread(lambda: kept.keep_error(answered.status, answered.body))
        pending.tries.pop(number, None)
        self.lines_ended += 1

    # ---- The end ------------------------------------------------------------------------------------------------------

    async def _finish(self, active: ActiveBatch, lines: Lines, outcome: BatchStatus, errors: list[BatchError]) -> None:
        """Give every line an end, write the output, and end the batch."""
        await self._save(active, status=BatchStatus.FINALIZING, outcome=outcome, finalizing_at=self._now(), errors=tuple(errors))
        batch = active.batch
        await self._in_thread(lambda: _end_unsent(active, lines, outcome, errors))
        if batch.is_response:
            outcome, errors = await self._end_response(active, lines, outcome, errors)
            batch = msgspec.structs.replace(batch, errors=tuple(errors))
        if batch.has_files:
            await self._in_thread(lambda: self._write_files(active))
        ended = msgspec.structs.replace(batch, status=outcome, ended_at=self._now(), counts=LineCounts(*active.counts))
        await self._in_thread(lambda: active.finish(ended))

    async def _end_response(
        self, active: ActiveBatch, lines: Lines, outcome: BatchStatus, errors: list[BatchError]
    ) -> tuple[BatchStatus, list[BatchError]]:
        """Store a response in the background that was answered, and return how it ends. Raises Fault stored_responses_unavailable where it
        is to be tried again."""
        if outcome is BatchStatus.EXPIRED:
            errors = [_RESPONSE_EXPIRED]
        result = active.ends[0]
        if result not in (LineResult.COMPLETED, LineResult.ERRORED):
            return outcome, errors
        text = b"".join(await self._in_thread(lambda: list(active.read_texts([result]))))
        if result is LineResult.ERRORED:
            return BatchStatus.FAILED, errors or [read_error(text)]
        batch, store = active.batch, self._plane.response_store
        items = bytes(bodies.members(bytes(lines.read(0).body))["input"])
        caller = find_batch_caller(batch, self._plane)
        stores = caller is None or caller.organization.response_retention_seconds is not None
        if not stores or len(text) > CONVERSATION_BYTES_MAX or self._now() >= batch.expires_at:
            return BatchStatus.FAILED, [_NOT_STORED]
        owner, content = batch.owner, encode_stored(text, items)
        if store is None or not await store.keep(owner.organization_id, owner.project_id, batch.id, content):
            raise Fault(faults.RESPONSES_UNAVAILABLE, detail="the response could not be stored")
        if await self._in_thread(active.is_forgotten):  # a run before this one stored it, and then it was deleted
            await store.delete(owner.organization_id, owner.project_id, batch.id)
        return BatchStatus.COMPLETED, []

    def _write_files(self, active: ActiveBatch) -> None:
        batch = active.batch
        errored = [result for result in LineResult if result is not LineResult.COMPLETED]
        for id, name, results in ((batch.output_file_id, "output", [LineResult.COMPLETED]), (batch.error_file_id, "error", errored)):
            size = sum(active.sizes[result] for result in results)
            if size:
                now = self._now()
                file = StoredFile(id, f"{batch.id}_{name}.jsonl", FilePurpose.BATCH_OUTPUT, size, now, now + batch.output_seconds)
                self._files.add(batch.owner, file, active.read_texts(results))

    async def _save(self, active: ActiveBatch, **changes: Any) -> None:
        changed = msgspec.structs.replace(active.batch, **changes)
        await self._in_thread(lambda: active.save(changed))

    def _now(self) -> int:
        return self._plane.now_us() // 1_000_000

    async def _in_thread(self, function: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


def _is_response(name: str) -> bool:
    """Return whether the name of an active batch is that of a response in the background."""
    return name.rpartition(".")[2].startswith(f"{RESPONSE}_")


def _end_unsent(active: ActiveBatch, lines: Lines, outcome: BatchStatus, errors: list[BatchError]) -> None:
    """Give every line an end that has none. Blocks."""
    results = {BatchStatus.EXPIRED: LineResult.EXPIRED, BatchStatus.CANCELLED: LineResult.CANCELLED}
    result = results.get(outcome, LineResult.ERRORED)
    error = UNSENT.get(result) or (errors[0] if errors else _KEY_ENDED)
    for number in range(len(lines)):
        if number not in active.ends:
            text = write_unsent(active.batch, number, lines.read(number).custom_id, result, error)
            active.append(number, result, text, durable=False)
    active.sync()
