"""Fallback models: a request for a model that cannot serve it becomes one for the next of the model's fallbacks.

It is a request of its own, with the body of the client's that names the fallback, and passes every phase: who asks is authenticated again,
and the key, its project's residency and prices decide on the fallback as if the client had named it. The request before has ended with its
own record by then; what an engine has not completed is not billed, so the client pays once, by the prices of the model that served.

Only the fallbacks of the model that the client named are tried, in their order. The fallbacks of a fallback do not count, so there are no
loops. Once something was sent to the client nothing falls back, and neither does a request that an engine may have begun and that must not
be sent again. A fallback that refuses it is passed over. Where every fallback fails, the client gets the error of the model that it
had named.
"""

import msgspec

from tollway.domain.faults import MODEL_OVERLOADED, REGION_UNSERVED, UPSTREAM_NONE, Blame, Fault
from tollway.gateway.authorize import with_model
from tollway.gateway.blame import may_retry
from tollway.gateway.dialects.table import DIALECTS
from tollway.gateway.plane import Plane
from tollway.gateway.ports import Client
from tollway.gateway.request import AskedFor, Call, Request
from tollway.gateway.request_traces import RequestTrace
from tollway.wire import bodies

_UNSERVED = frozenset({MODEL_OVERLOADED, REGION_UNSERVED, UPSTREAM_NONE})
"""Faults of a model that no engine was asked for."""


def fall_back(request: Request, call: Call | None, fault: Fault, client: Client, plane: Plane, *, has_record: bool) -> Request | None:
    """Return the request that takes the place of one that ended with `fault`; None if it is the last. `has_record`: it was metered, so an
    engine may have received it."""
    if client.committed or client.gone:
        return None
    before = request.asked_for
    may_follow = call is not None and (fault.kind in _UNSERVED or may_retry(fault, call))
    if before is None:
        if call is None or not call.model.fallbacks or not may_follow:
            return None
        sent = request.list_pieces() if request.conversation is None else request.conversation.pieces
        pieces = sent if request.head.idempotency_key is not None else ()
        before = AskedFor(pieces, fault, call.model.fallbacks)
    if not before.left or (has_record and not may_follow and fault.kind.blame is not Blame.CLIENT):
        return None
    name = before.left[0]
    upload = request.upload
    is_form = DIALECTS[request.endpoint].form_kinds is not None
    content = with_model(request, name) if is_form or upload is None else b""
    id = plane.request_ids.new(plane.now_us())
    traceparent = f"00-{request.trace_id}-{id[-16:]}-{request.head.trace_flags}"
    following = Request(
        id,
        request.head,
        content,
        request.started,
        plane.now_us(),
        request.endpoint,
        request.headers,
        request.trace_id,
        traceparent,
        request.peer,
    )
    following.conversation = request.conversation
    if plane.tracer is not None:
        is_sampled = request.trace is not None and request.trace.is_sampled
        following.trace = RequestTrace(request.id[-16:], is_sampled, following.started, following.received_at)
    following.asked_for = AskedFor(before.pieces, before.fault, before.left[1:])
    if upload is not None:
        pieces, spans = upload.pieces, upload.spans
        upload.spans = ()
        if is_form:
            pieces = (content,)
        elif call is not None and spans:
            pieces = tuple(bodies.edit_pieces(pieces, call.names, spans, inject_model(name), ()))
        else:
            following.asked_for.model = name  # a reader process names it, before it reads the body
        following.take_upload(upload, pieces)
    plane.metrics.count(plane.metrics.fallbacks, name)
    return following


def name_model(body: bytes, model: str) -> bytes:
    """Return the body with another model. A large one holds the event loop: `BodyReaders.name_model` does not."""
    return bodies.edit(body, ("model",), inject_model(model), ())


def inject_model(model: str) -> bodies.InjectedFields:
    """Return the field that names a model in place of what a body says."""
    return bodies.InjectedFields({"model": msgspec.json.encode(model)})
