"""`python -m tollway.gateway.body_reader_process DESCRIPTOR`: a process that reads large request bodies for a gateway (`body_reader_pool`).

Reading JSON holds the interpreter, so a large body is read in another one. The rules are those of the gateway itself: `authorize` runs
here, with what the gateway answers in place of its directory.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from tollway.domain.billing_classes import UnitPrices
from tollway.domain.faults import Fault
from tollway.domain.keys import KeyType
from tollway.domain.periods import INSTANT_MAX
from tollway.domain.prices import PriceVersion
from tollway.domain.snapshot import KeyEntry, OrganizationEntry, ProjectEntry
from tollway.gateway import continuation
from tollway.gateway.authorize import authorize_body, find_tags, read_body
from tollway.gateway.body_reader_messages import (
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
    Translated,
    Wished,
    decode_offer,
    decode_task,
    encode_frame,
)
from tollway.gateway.dialects.table import DIALECTS
from tollway.gateway.directory import Directory
from tollway.gateway.principal import principal_of_key
from tollway.gateway.request import Caller, ModelGrant, RequestHead, TranslatedBody, new_request, salt_body, translate_body
from tollway.wire import bodies
from tollway.wire.bodies import InjectedFields

NICENESS = 5
"""Priority below that of others: where processors are scarce, small requests go first."""

_KEY = KeyEntry(id="", digest=b"", type=KeyType.LIVE, project_id="")
_SENDER = principal_of_key(_KEY, ProjectEntry(id="", organization_id=""), OrganizationEntry(id="", currency="", terms=()))
"""A sender without a name: the gateway alone knows who sends a body."""
_NOTHING_KNOWN = Directory()


def run(connection: socket.socket) -> None:
    """Answer one body after the other, until the gateway closes the connection."""
    with connection, connection.makefile("rb") as incoming:

        def read_frame() -> bytes:
            length = incoming.read(LENGTH.size)
            if len(length) < LENGTH.size:
                raise EOFError
            return incoming.read(LENGTH.unpack(length)[0])

        def look_up(model: str) -> Offer | None:
            connection.sendall(encode_frame(Lookup(model)))
            return decode_offer(read_frame())

        while True:
            try:
                task = decode_task(read_frame())
                content = incoming.read(task.size)
                if len(content) < task.size:
                    return
                if isinstance(task, Body):
                    answer, pieces = examine(task, content, look_up)
                    connection.sendall(encode_frame(answer))
                    for piece in pieces:
                        connection.sendall(piece)
                    del pieces
                elif isinstance(task, Inquiry):
                    connection.sendall(encode_frame(inquire(task, content)))
                elif isinstance(task, Continuation):
                    told, whole = make_whole(task, content)
                    connection.sendall(encode_frame(told))
                    connection.sendall(whole)
                    del whole
                else:
                    composed, repeated = compose(task, content)
                    as_json = None if repeated is None else msgspec.json.encode(repeated)
                    connection.sendall(encode_frame(Composed(len(composed), as_json)))
                    connection.sendall(composed)
                    del composed
                del content
            except (EOFError, OSError):
                return  # the gateway is gone


def examine(body: Body, content: bytes, look_up: Callable[[str], Offer | None]) -> tuple[Examined | Refused, tuple[bytes, ...]]:
    """Return what a body is found to be, and its translation, empty where none may be needed. `look_up` returns what the sender's grant of
    a model says."""
    try:
        headers = {b"content-type": body.content_type}
        request = new_request("", RequestHead(body.endpoint, headers), content, 0.0, 0)
        asked, parts = read_body(request, content)
        caller = Caller(_SENDER, b"")
        model = asked.get("model")
        offer = look_up(model) if type(model) is str else None
        if offer is not None:
            caller.grants[offer.model.id, body.endpoint] = _to_grant(offer)
        call = authorize_body(caller, request, asked, parts, _NOTHING_KNOWN, body.media)
    except Fault as fault:
        fault.forget_frames()
        return Refused.of(fault), ()
    translated = call.translated
    examined = Examined(
        call.price.id,
        call.names,
        tuple(call.dropped),
        call.output_cap,
        call.output_tokens_max,
        call.input_tokens_max,
        call.prompt_bytes,
        call.stream,
        call.prompts,
        call.sequences,
        call.hide_usage,
        call.hide_continuous,
        call.dialect.find_end_user(asked),
        find_tags(asked),
        request.spans if parts else bodies.find_spans(content),
        call.measure,
        None if translated is None else describe_translated(translated),
    )
    return examined, () if translated is None else translated.pieces


def inquire(task: Inquiry, content: bytes) -> Wished | Refused:
    """Return what a body wishes of the store of responses."""
    try:
        return Wished(continuation.read_wish(content, task.endpoint))
    except Fault as fault:
        fault.forget_frames()
        return Refused.of(fault)


def make_whole(task: Continuation, content: bytes) -> tuple[Continued | Refused, bytes]:
    """Return what is said of a whole conversation, and its bytes."""
    size = task.size - (task.found_bytes or 0)
    try:
        whole = continuation.make_whole(content[:size], task.wish, None if task.found_bytes is None else content[size:])
    except Fault as fault:
        fault.forget_frames()
        return Refused.of(fault), b""
    body = b"".join(whole.pieces)
    return Continued(len(body), whole.start, whole.end), body


def describe_translated(translated: TranslatedBody) -> Translated:
    """Return what is said of the translation of a body."""
    (content,) = translated.pieces
    return Translated(len(content), translated.names, bodies.find_spans(content), msgspec.json.encode(translated.repeated))


def compose(task: Composition, content: bytes) -> tuple[bytes, Mapping[str, Any] | None]:
    """Return the body that an engine is sent in place of `content`, and what its answer repeats."""
    dialect = DIALECTS[task.endpoint]
    injected, dropped, repeated = InjectedFields(task.injected), task.dropped, None
    names: tuple[str, ...] = ()
    if task.is_translated and dialect.translation is not None:
        translated = translate_body(dialect.translation, bodies.read(content), dropped)
        (content,), names, repeated = translated.pieces, translated.names, translated.repeated
        dialect, dropped = dialect.translation.target, ()
    return salt_body(bodies.edit(content, names or tuple(bodies.members(content)), injected, dropped), dialect, task.salt), repeated


def _to_grant(offer: Offer) -> ModelGrant:
    """The grant that an offer describes, without the amounts of its prices."""
    prices = {
        tier: PriceVersion(id=id, list="", model=offer.model.id, currency="", valid_from=0, unit_prices=UnitPrices(), tier=tier)
        for tier, id in offer.prices.items()
    }
    return ModelGrant(
        offer.model,
        prices,
        0,
        INSTANT_MAX,
        is_served=offer.is_served,
        is_translated=offer.is_translated,
        known_fields=offer.known_fields,
        cache_salt=b"",
        default_tier=offer.default_tier,
    )


def main() -> None:
    """Run as the process that the module describes. Signals that mean the whole gateway are left to it: it closes the connection."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    run(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
