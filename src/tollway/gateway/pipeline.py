"""A request, top to bottom: authenticate, authorize, limit, route, meter, relay. Read this file first. If its model
cannot serve it, it may pass all phases again with another model (`fallback`).

Each phase needs the type that the one before made, so the type checker proves the order. A fault raised anywhere is answered here, once
(`refusals`); a request ends in `observe`, whatever happened. Before ADMIT nothing is spooled: a refusal is a counter and a
sampled log line, so a flood of 401s costs no disk and no bill.
"""

import re
import time
from collections.abc import Sequence
from typing import Final

from tollway.domain import faults
from tollway.domain.catalog import Endpoint, Guardrail
from tollway.domain.faults import Fault
from tollway.domain.usage import Outcome
from tollway.gateway import background_responses, conversations
from tollway.gateway.answer_recorder import AnswerRecorder, claim
from tollway.gateway.authenticate import authenticate, require_endpoint
from tollway.gateway.authorize import authorize
from tollway.gateway.budget_fallback import FALLBACK_HEADER, reserve_or_fall_back
from tollway.gateway.budgets import BudgetHold, read_max_cost
from tollway.gateway.buffers import BufferHold
from tollway.gateway.content_log import log_content
from tollway.gateway.counters import ONE_REQUEST
from tollway.gateway.deadlines import read_timeout, require_time
from tollway.gateway.driver import CoroutineDriver
from tollway.gateway.fallback import fall_back, name_model
from tollway.gateway.guardrails import Guard
from tollway.gateway.hedging import may_hedge, relay_hedged
from tollway.gateway.limit import Undecided, charge_upload, limit
from tollway.gateway.memory_counters import MemoryHold
from tollway.gateway.meter import UsageRecord, meter
from tollway.gateway.observe import observe
from tollway.gateway.plane import Plane
from tollway.gateway.ports import AnswerStore, Client
from tollway.gateway.refusals import refuse
from tollway.gateway.relay import ComposeBody, relay
from tollway.gateway.request import INFINITE, Call, Caller, ClientGone, Permit, Request, RequestHead
from tollway.gateway.response_cache import MISS, open_cached
from tollway.gateway.route import route
from tollway.gateway.shedding import RETRY_SECONDS, Shedder
from tollway.gateway.uploads import Upload
from tollway.spans import TRACEPARENT
from tollway.telemetry import describe_error

_TRACE_FLAGS = 0x03
"""Flags of a trace that are passed on: sampled, and that its id is random (W3C Trace Context level 2, section 3.2.2.5)."""
_TRACESTATE = re.compile(rb"[\t\x20-\x7e]{1,512}")
_CLIENT_REQUEST_ID = re.compile(rb"[\w.-]{1,64}", re.ASCII)
_JSON = b"content-type: application/json\r\n"
_CONVERSING: Final = frozenset({Endpoint.RESPONSES, Endpoint.INPUT_TOKENS, Endpoint.COMPACT})
"""Endpoints whose requests can continue a stored response."""
_UNGUARDED: Final = Guardrail.OFF


async def answer(request: Request, client: Client, plane: Plane, driver: CoroutineDriver) -> None:
    """Answer one inference request: the phases in order. `driver` runs this coroutine."""
    caller: Caller | None = None
    call: Call | None = None
    record: UsageRecord | None = None
    fault: Fault | None = None
    hold: BudgetHold | None = None
    recorder: AnswerRecorder | None = None
    following: Request | None = None
    receiver = client
    limit_headers = b""
    is_submitted = False
    plane.metrics.running += 1
    if plane.tracer is not None:
        plane.tracer.begin(request)
    try:
        if plane.directory.obstacle is not None:
            raise Fault(plane.directory.obstacle, retry_after_seconds=1)
        if plane.shedder.steps and request.upload is None:
            _shed(plane.shedder)
        caller = authenticate(request.head, plane.directory, plane.digesters, request.received_at)
        if caller.endpoints is not None:
            require_endpoint(caller, request.endpoint)
        conversing = request.endpoint in _CONVERSING
        if conversing:
            call = await _authorize_conversation(caller, request, plane, driver)
        elif request.upload is None:
            call = authorize(caller, request, plane.directory, plane.media_bounds)
        else:
            call = await _authorize_upload(caller, request, request.upload, plane, driver)
        if conversing and request.conversation is not None:
            if request.conversation.in_background:
                if request.head.answer_store is None:
                    body = await driver.in_task(background_responses.submit(call, plane))
                    client.answer(200, _JSON + call.dialect.identify(request.id), body)
                    is_submitted = True
                    return
            elif request.conversation.response_id and plane.response_store is not None:
                call.response_keeper = conversations.ResponseKeeper(plane.response_store, caller, request.conversation)
        fallback_header = b""
        if call.grant.has_fallback and request.head.idempotency_key is None:  # a stored answer is given whatever budgets have left
            hold = await reserve_or_fall_back(call, plane)
            if hold.call is not call:
                fallback_header = FALLBACK_HEADER % call.model.id.encode()
                hold.call.response_keeper = call.response_keeper
                call = hold.call
        admitted = limit(call, plane.limits, time.monotonic_ns, plane.metrics)
        if isinstance(admitted, Undecided):
            admitted = await admitted.wait()
        with admitted as permit:
            limit_headers = permit.headers
            if request.head.idempotency_key is not None:
                store = request.head.answer_store or plane.answer_store
                if store is not None:
                    receiver = recorder = await _claim_answer(call, request.head.idempotency_key, client, store, plane)
                    call.answer_recorder = recorder
                    if recorder.replay(call.dialect.identify(request.id) + limit_headers):
                        return
            if hold is None and (call.budgets or request.head.max_cost is not None):
                hold = plane.budgets.reserve(call, call.budgets, read_max_cost(request.head))
                await hold.waiter
            if request.head.timeout_seconds < INFINITE:
                require_time(request, time.monotonic())
            if call.model.response_cache_seconds and recorder is None and plane.response_cache is not None:
                recorder = _open_cached(call, client, plane)
                if recorder is not None and recorder.has_answer:
                    permit.record = record = meter(permit, plane.usage_sink, plane.now_us)
                    async with record:
                        await record.finish(Outcome.COMPLETED)
                        recorder.replay(call.dialect.identify(request.id) + fallback_header + limit_headers)
                    return
                if recorder is not None:
                    receiver = call.answer_recorder = recorder
                    permit.headers = MISS + permit.headers
            if caller.project.logs_content and plane.content_log is not None:
                recorder = log_content(plane.content_log, call, client, recorder, _list_sent_pieces(request), plane.buffers)
                receiver = call.answer_recorder = recorder
            if call.model.guardrail is not _UNGUARDED:
                receiver = await _guard(call, receiver, plane, driver)
            candidates = route(call, plane.upstreams, request.started, plane.random)
            if candidates[0].running >= candidates[0].limit:
                candidates = await plane.queues.wait(call, driver)
                _authenticate_again(call, plane)
            permit.record = record = meter(permit, plane.usage_sink, plane.now_us)
            async with record:
                permit.headers = call.dialect.identify(request.id) + fallback_header + permit.headers
                bounds = plane.bounds
                compose = None if request.upload is None or plane.body_readers is None else plane.body_readers.compose
                if call.model.hedge_after_ms is not None and may_hedge(call, candidates):
                    refused = await relay_hedged(
                        permit, candidates, record, receiver, bounds, plane.active, plane.retries, plane.hedges, plane.metrics, driver
                    )
                else:
                    refused = await relay(
                        permit, candidates, record, receiver, bounds, plane.active, plane.retries, plane.metrics, driver, compose
                    )
                if refused is not None:
                    await _relay_later(refused, permit, record, receiver, plane, driver, compose)
    except ClientGone:
        pass
    except Fault as caught:
        caught.forget_frames()
        fault = caught if caller is not None else client.throttle(caught, request.headers)
        following = fall_back(request, call, fault, client, plane, has_record=record is not None)
        if following is None:
            refuse(request, client, fault if request.asked_for is None else request.asked_for.fault, limit_headers)
    except Exception as error:  # a defect in one request becomes a 500 and a log line; its connection and the process go on
        fault = Fault(faults.INTERNAL, detail=describe_error(error))
        refuse(request, client, fault, limit_headers)
    finally:
        plane.metrics.running -= 1
        if recorder is not None:
            recorder.release()
        if hold is not None and (record is None or record.final is not None):  # without FINAL its cost is not known: it stays held
            plane.budgets.settle(hold, None if record is None else record.final)
        if request.conversation is not None and request.upload is not None and following is None:  # of its own, not the connection's
            request.upload.release(time.monotonic_ns())
        observe(request, call, record, fault, plane, is_answered=is_submitted)
    if following is not None:
        await answer(following, client, plane, driver)


def _authenticate_again(call: Call, plane: Plane) -> None:
    """Raise Fault if the key of a request that has waited was revoked meanwhile. Its place is the next one's then."""
    try:
        authenticate(call.request.head, plane.directory, plane.digesters, plane.now_us())
    except Fault:
        plane.queues.dispatch(call.model.id, test=call.caller.is_test)
        raise


WAITS_AGAIN_MAX = 2
"""Times that a request waits again which its engines refused for their load."""


async def _relay_later(
    fault: Fault, permit: Permit, record: UsageRecord, client: Client, plane: Plane, driver: CoroutineDriver, compose: ComposeBody | None
) -> None:
    """Answer a request that its upstreams refused with `fault` for their load, once one of them has a place. Raises as `relay` does, and
    `fault` at once where waiting is of no use or the retries are spent."""
    call = permit.call
    refused: Fault | None = fault
    for _ in range(WAITS_AGAIN_MAX):
        if refused is None:
            return
        candidates = await plane.queues.wait_again(call, driver, refused, plane.retries)
        _authenticate_again(call, plane)
        plane.metrics.retries += 1
        refused = await relay(permit, candidates, record, client, plane.bounds, plane.active, plane.retries, plane.metrics, driver, compose)
    if refused is not None:
        raise refused


def read_head(headers: dict[bytes, bytes], endpoint: Endpoint, address: str) -> RequestHead:
    """Return what these headers say. `address`: the client's. The client's trace is continued with its decision on sampling and its
    `tracestate` (W3C Trace Context); without a valid parent both are ours. Its own id of the request is kept for the log if it is one
    that cannot spoil it."""
    id = _CLIENT_REQUEST_ID.fullmatch(headers.get(b"x-client-request-id", b""))
    client_request_id = id.group().decode() if id else ""
    trace = TRACEPARENT.fullmatch(headers.get(b"traceparent", b""))
    if trace is None:
        head = RequestHead(endpoint, headers, "", client_request_id, address=address)
    else:
        state = headers.get(b"tracestate", b"")
        tracestate = state if _TRACESTATE.fullmatch(state) else b""
        flags = f"{int(trace.group(3), 16) & _TRACE_FLAGS:02x}"
        head = RequestHead(
            endpoint, headers, trace.group(1).decode(), client_request_id, flags, tracestate, address, trace.group(2).decode()
        )
    read_timeout(head)
    return head


def new_id(plane: Plane) -> str:
    """An id for an answer to bytes that never became a request."""
    return plane.request_ids.new(plane.now_us())


def identify_sender(head: RequestHead, plane: Plane, *, is_file: bool = False) -> Caller:
    """Return who sends a body that is still arriving: for an endpoint of a model, or a file to be stored. Raises Fault."""
    if plane.shedder.steps:
        _shed(plane.shedder)
    if is_file:
        return identify_file_user(head, plane)
    caller = _identify(head, plane)
    require_endpoint(caller, head.endpoint)
    return caller


def identify_file_user(head: RequestHead, plane: Plane) -> Caller:
    """Return who sends a request about files, which a key for some endpoints alone may not do. Raises Fault."""
    caller = _identify(head, plane)
    if caller.endpoints is not None:
        raise Fault(faults.SCOPE_INSUFFICIENT, message="This key may be used for its endpoints alone, not for files.")
    return caller


def _identify(head: RequestHead, plane: Plane) -> Caller:
    if plane.directory.obstacle is not None:
        raise Fault(plane.directory.obstacle, retry_after_seconds=1)
    return authenticate(head, plane.directory, plane.digesters, plane.now_us())


def _shed(shedder: Shedder) -> None:
    """Raise Fault overloaded for the part of new requests that is refused while the process is overloaded."""
    if shedder.refuses():
        raise Fault(faults.OVERLOADED, retry_after_seconds=RETRY_SECONDS)


def admit_upload(caller: Caller, length: int, plane: Plane) -> Upload:
    """Return the upload of a large body of `length` bytes (0: not known yet), before it is read. Raises Fault if the limits of the caller
    or the budget for buffered bytes do not allow it."""
    buffer = BufferHold(plane.buffers, plane.buffers.find_key(caller.principal.id))
    now_ns = time.monotonic_ns()
    upload = Upload(buffer, charge_upload(caller, plane.counters, now_ns, plane.metrics))
    try:
        upload.expect(length)
    except Fault:
        upload.refund(now_ns)
        raise
    return upload


async def _claim_answer(call: Call, key: bytes, client: Client, store: AnswerStore, plane: Plane) -> AnswerRecorder:
    """Return the recorder of a request with an idempotency key. Raises Fault as `answer_recorder.claim` does."""
    caller, request = call.caller, call.request
    return await claim(
        store,
        client,
        BufferHold(plane.buffers, plane.buffers.find_key(caller.principal.id)),
        organization_id=caller.organization.id,
        key_id=caller.principal.id,
        endpoint=request.endpoint,
        key=key,
        pieces=_list_sent_pieces(request),
        request_id=request.id,
    )


async def _guard(call: Call, client: Client, plane: Plane, driver: CoroutineDriver) -> Client:
    """Have a request checked. Return the client to which its answer goes once that is checked too. Raises Fault."""
    buffer = BufferHold(plane.buffers, plane.buffers.find_key(call.caller.principal.id))
    guard = Guard(plane.guardrails, call, client, driver, buffer)
    call.guard = guard
    await guard.check_request()
    return client if guard.client is None else guard.client


def _open_cached(call: Call, client: Client, plane: Plane) -> AnswerRecorder | None:
    """Return the recorder of a call that the cache of responses answers, or whose answer it stores; None for one that does not ask."""
    assert plane.response_cache is not None
    buffer = BufferHold(plane.buffers, plane.buffers.find_key(call.caller.principal.id))
    return open_cached(plane.response_cache, call, client, buffer, plane.directory, time.monotonic())


def _list_sent_pieces(request: Request) -> Sequence[bytes]:
    """Return the body that the client sent, whatever it has become."""
    if request.asked_for is not None:
        return request.asked_for.pieces
    return request.list_pieces() if request.conversation is None else request.conversation.pieces


async def _authorize_conversation(caller: Caller, request: Request, plane: Plane, driver: CoroutineDriver) -> Call:
    """Return the call that a request is once its body is the whole conversation. Raises Fault as `conversations.prepare`, `limit` and
    `authorize` do.

    A request that may ask control for a stored response is charged first, as a large body is when it begins, so that limits bound what is
    asked. Both are given back where `limit` charges them again; what becomes no call has used its request."""
    upload = request.upload
    hold: MemoryHold | None = None
    if conversations.may_continue(caller, request, plane):
        hold = charge_upload(caller, plane.counters, time.monotonic_ns(), plane.metrics)
    try:
        await conversations.prepare(caller, request, plane, driver)
        if request.upload is not None:
            call = await _authorize_upload(caller, request, request.upload, plane, driver)
        else:
            call = authorize(caller, request, plane.directory, plane.media_bounds)
        if upload is not None:
            upload.refund(time.monotonic_ns())
    except BaseException:
        if hold is not None:
            hold.settle(ONE_REQUEST, time.monotonic_ns())
        raise
    if hold is not None:
        hold.refund(time.monotonic_ns())
    return call


async def _authorize_upload(caller: Caller, request: Request, upload: Upload, plane: Plane, driver: CoroutineDriver) -> Call:
    """Return the call that a request with a large body is, whose upload was charged as a request. Raises Fault as `authorize` does."""
    fallback = "" if request.asked_for is None else request.asked_for.model
    if plane.body_readers is None:
        if fallback:
            request.take_upload(upload, (name_model(request.read_body(), fallback),))
        call = authorize(caller, request, plane.directory, plane.media_bounds)
    else:
        if fallback:
            request.take_upload(upload, tuple(await driver.in_task(plane.body_readers.name_model(caller, request, fallback))))
        call = await driver.in_task(plane.body_readers.authorize(caller, request, plane.directory, plane.media_bounds))
    if call.translated is not None:
        upload.expect_more(sum(map(len, call.translated.pieces)))
    upload.refund(time.monotonic_ns())
    return call
