"""Promise of each parser of foreign bytes, as a function that takes bytes and raises AssertionError, or whatever escapes.

A parser may refuse with its documented fault and with nothing else; it reads the same however the bytes are cut; what it accepts is
what an independent reading accepts, where there is one. The first byte of an input is not the parser's: it chooses the cut and the
case, so that a search guided by coverage can choose them too.
"""

import ipaddress
import itertools
import json
import math
import random
from base64 import b64encode
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpx2
import msgspec
from google.protobuf.message import DecodeError

from tests.gateway.harness import KEY, NOWHERE, Served, plane
from tests.wire import reference
from tollway.domain import usage
from tollway.domain.catalog import Endpoint, Engine, UnknownParameters
from tollway.domain.faults import Fault
from tollway.domain.snapshot import Change, Entry
from tollway.domain.usage import TOKENS_MAX
from tollway.engines.table import ENGINES
from tollway.gateway import pipeline
from tollway.gateway.authorize import authorize
from tollway.gateway.dialects.answers import AnswerContext
from tollway.gateway.dialects.dialect import AnswerStream
from tollway.gateway.dialects.engine_errors import read_answer_fault, read_fault
from tollway.gateway.dialects.fields import NEVER_FORWARDED
from tollway.gateway.dialects.table import DIALECTS
from tollway.gateway.held_prefixes import BLOCKS_MAX, EngineCache
from tollway.gateway.media import links
from tollway.gateway.media.pictures import Encoded, PictureInvalid, find_size
from tollway.gateway.plane import Plane
from tollway.gateway.prefix_routing import HeldPrefixes, Load
from tollway.gateway.request import Caller, RequestHead, new_request
from tollway.simulator.open_inference_grpc import load_messages
from tollway.wire import bodies, open_inference, proxy, segments, sse, zmtp
from tollway.wire.cache_events import BlocksRemoved, BlocksStored, read_batch
from tollway.wire.client_certificates import (
    CLIENT_CERT,
    FORWARDED_CLIENT_CERT,
    CertificateInvalid,
    find_forwarded,
    is_issued_by,
    read_der,
)
from tollway.wire.http import HttpBounds, RequestReader, ResponseReader
from tollway.wire.protobuf import MessageInvalid

Check = Callable[[bytes], None]

_HTTP_BOUNDS = HttpBounds(pipelined_max=10_000)
_DEPTH = 100
"""Up to here every reader must agree; ours stops at 200, others elsewhere."""


def _cut(data: bytes) -> tuple[int, bytes, list[bytes]]:
    """The choosing byte, the input, and the input in pieces: whole, byte by byte, in steps, or at places that look random."""
    choice, data = (data[0], data[1:]) if data else (0, b"")
    kind = choice & 3
    if kind == 0 or not data:
        return choice, data, [data]
    if kind == 3:
        dice = random.Random(choice)
        places = sorted(dice.randrange(len(data) + 1) for _ in range(1 + choice % 7))
    else:
        step = 1 if kind == 1 else 2 + (choice >> 2)
        places = list(range(step, len(data), step))
    return choice, data, [data[start:end] for start, end in itertools.pairwise([0, *places, len(data)]) if start < end]


# ---- From clients


def request_head(data: bytes) -> None:
    """RequestReader: never more requests than RFC 9112 finds, the same ones however they are cut, and none after a fault."""
    _, data, pieces = _cut(data)
    whole = RequestReader(_HTTP_BOUNDS)
    found = [(request.method, request.target, request.body) for request in whole.feed(data)]
    expected = reference.read(data)
    begun = [(request.method, request.target, request.body) for request in expected.requests]
    assert found == begun[: len(found)], "another request than the reference finds"
    if whole.fault is None and not whole.in_message:
        assert len(found) == len(begun)
    reader = RequestReader(_HTTP_BOUNDS)
    again = [(request.method, request.target, request.body) for piece in pieces for request in reader.feed(piece)]
    assert again == found and (reader.fault is None) == (whole.fault is None), "cut otherwise, read otherwise"
    if whole.fault is not None:
        assert not whole.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), "interpreted after a fault"


_ENDPOINTS = [endpoint for endpoint in Endpoint if endpoint is not Endpoint.REALTIME]
"""Endpoints that read a body: a realtime session reads messages."""


@cache
def _rig() -> tuple[Plane, Caller]:
    """A data plane in memory with a model of each policy, and a caller who may use them."""
    policies = {"m": UnknownParameters.REFUSE, "d": UnknownParameters.DROP, "f": UnknownParameters.FORWARD}
    models = {name: Served([NOWHERE], unknown_parameters=policy) for name, policy in policies.items()}
    made, _, _ = ExitStack().enter_context(plane(models | {"c": Served([NOWHERE], output_tokens_max=100)}))
    return made, pipeline.identify_sender(RequestHead(Endpoint.CHAT_COMPLETIONS, {b"x-api-key": KEY.encode()}), made)


def request_body(data: bytes) -> None:
    """Check bodies.parse and authorize: a 4xx, or exactly what was validated goes up, and nothing that never may."""
    choice, data, _ = _cut(data)
    endpoint = _ENDPOINTS[(choice >> 2) % len(_ENDPOINTS)]
    _check_json(data)
    made, caller = _rig()
    request = new_request("req_1", RequestHead(endpoint, {}), data, 0.0, made.now_us())
    try:
        call = authorize(caller, request, made.directory, made.media_bounds)
    except Fault as fault:
        assert 400 <= fault.kind.status < 500, "the client's bytes are nobody else's fault"
        DIALECTS[endpoint].render_error(fault, request.id).decode()
        return
    (upstream,) = made.upstreams.of(call.model.id)
    validated = bodies.parse(data)
    sent = bodies.parse(call.upstream_body(upstream.deployment, None))
    ours = {"cache_salt", "stream_options", "max_tokens"} | call.dialect.constants.keys()
    assert all(validated[name] == value for name, value in sent.items() if name not in ours)
    assert not (NEVER_FORWARDED - ours - call.dialect.fields.keys()) & sent.keys()
    assert all(sent[name] == msgspec.json.decode(value) for name, value in call.dialect.constants.items())
    assert sent["cache_salt"] == msgspec.json.decode(caller.cache_salt)
    if call.output_tokens_max is not None and call.dialect.has_output:
        assert call.output_tokens_max > 0 or any(validated.get(field) == 0 for field in call.dialect.output_caps), (
            "0 only where it is asked for"
        )


def _check_json(data: bytes) -> None:
    """Check that what `bodies.parse` takes is exactly what a plain strict reading of RFC 8259 takes, with the same value."""
    try:
        ours = bodies.parse(data)
    except Fault:
        ours = None
    try:
        theirs: Any = json.loads(data.decode(), object_pairs_hook=_pairs, parse_constant=_refuse, parse_float=_finite)
        theirs = theirs if isinstance(theirs, dict) else None
        json.dumps(theirs, ensure_ascii=False).encode()  # a lone surrogate is no text
    except (ValueError, RecursionError):
        theirs = None
    if ours is not None:
        assert ours == theirs, "taken, but not by a plain reading"
    elif theirs is not None:
        assert _depth(theirs) > _DEPTH, "refused, though a plain reading takes it"


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("duplicate key")
    return dict(pairs)


def _refuse(text: str) -> Any:
    raise ValueError(text)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError("infinite")
    return number


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        level = [item for each in level if isinstance(each, dict | list) for item in (each.values() if isinstance(each, dict) else each)]
    return deepest


def link(data: bytes) -> None:
    """Check links.is_public: what passes is read as the same public host by other libraries too."""
    _, data, _ = _cut(data)
    text = data.decode(errors="replace")
    if not links.is_public(text):
        return
    hosts = {urlsplit(text).hostname or "", httpx2.URL(text).raw_host.decode().lower()}
    assert len(hosts) == 1, "two libraries, two hosts"
    (host,) = hosts
    assert (host.isascii() and "." in host.rstrip(".")) or ":" in host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        assert not host.rstrip(".").rpartition(".")[2].isdigit(), "a name that some take for an address"
    else:
        assert address.is_global


def picture(data: bytes) -> None:
    """Check find_size: a size, none, or PictureInvalid, equal for equal bytes wherever they stand; never more steps than are allowed."""
    choice, data, _ = _cut(data)
    found, elsewhere = (_picture(data, skipped) for skipped in (0, choice))
    assert found == elsewhere
    assert not isinstance(found, tuple) or (found[1] > 0 and found[2] > 0)


def _picture(data: bytes, skipped: int) -> tuple[str, int, int] | str | None:
    try:
        return find_size(Encoded("=" * skipped + b64encode(data).decode(), skipped))
    except PictureInvalid:
        return "invalid"


def tensor_message(data: bytes) -> None:
    """Check wire.open_inference: what it reads of a request or an answer, or MessageInvalid; another name changes nothing else, and the
    library that engines use finds no other model and no parameter that was not read."""
    _, data, _ = _cut(data)
    for read in (
        lambda message: open_inference.read_answer(message, "num_input_tokens", "n", TOKENS_MAX),
        open_inference.open_stream_answer,
    ):
        with suppress(MessageInvalid):
            read(data)
    try:
        asked = open_inference.read_request(data)
    except MessageInvalid:
        return
    renamed = open_inference.rename(data, asked.spans, "model", "2")
    again = open_inference.read_request(renamed)
    assert (again.model, again.id, again.parameters) == ("model/versions/2", asked.id, asked.parameters)
    assert open_inference.rename(renamed, again.spans, "", "") == open_inference.rename(data, asked.spans, "", "")
    try:
        understood = _tensor_messages()("ModelInferRequest").FromString(data)
    except DecodeError:
        return
    assert asked.model == open_inference.join_model(understood.model_name, understood.model_version)
    assert asked.parameters.issuperset(name for each in (understood, *understood.inputs, *understood.outputs) for name in each.parameters)


@cache
def _tensor_messages() -> Callable[[str], Any]:
    return load_messages()


def proxy_header(data: bytes) -> None:
    """The PROXY header: an address, none, or HeaderInvalid."""
    _, data, _ = _cut(data)
    head, rest = data[: proxy.HEAD_BYTES], data[proxy.HEAD_BYTES :]
    try:
        size = proxy.read_rest_bytes(head)
        assert 0 <= size <= proxy.REST_BYTES_MAX
        source = proxy.find_source(head, rest[:size])
    except proxy.HeaderInvalid:
        return
    assert source is None or source == str(ipaddress.ip_address(source))


# ---- From engines


def answer_head(data: bytes) -> None:
    """ResponseReader: the same answer however it is cut; an answer that is over is never added to."""
    _, data, pieces = _cut(data)
    whole, reader = ResponseReader(), ResponseReader()
    whole.feed(data)
    for piece in pieces:
        reader.feed(piece)
        if reader.broken:
            break
    if not whole.broken and not reader.broken:
        parts = [(each.status, each.complete, each.keep_alive, each.content_type, b"".join(each.body)) for each in (whole, reader)]
        assert parts[0] == parts[1], "cut otherwise, read otherwise"
    # llhttp skips line ends behind an answer that come with it; those that come later are bytes that nobody asked for.
    assert whole.broken == reader.broken or (whole.complete and data.endswith((b"\r", b"\n"))), "broken only if it is cut"
    for each in (whole, reader):
        assert each.body_bytes == sum(map(len, each.body))
        before = each.complete, each.status, list(each.body)
        each.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        if before[0]:
            assert each.broken and (each.status, each.body) == before[1:], "something came behind a complete answer"
        each.eof()
        each.restart()
        each.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        assert (each.status, each.body, each.complete, each.broken) == (200, [b"ok"], True, False), "the next answer suffers"


def events(data: bytes) -> None:
    """EventReader: the same events however the stream is cut, none with a line end of its own kind left in it."""
    _, data, pieces = _cut(data)
    whole = sse.EventReader().feed(data)
    reader = sse.EventReader()
    again = [event for piece in pieces for event in reader.feed(piece)]
    assert again == whole, "cut otherwise, read otherwise"
    for event in whole:
        assert event and b"\r" not in event and b"\n\n" not in event and not event.startswith(b"\n")
        sse.find_data(event)


def _dialect_stream(endpoint: Endpoint, data: bytes) -> None:
    choice, data, pieces = _cut(data)
    reader = sse.EventReader()
    streams = [_new_stream(endpoint, choice), _new_stream(endpoint, choice)]
    for piece in pieces:
        for event in reader.feed(piece):
            try:
                relayed = streams[0].read(event)
            except Fault as fault:
                assert fault.kind.status >= 500 or fault.kind.code in ("invalid_request", "context_length_exceeded")
                return
            _check_shortcut(streams[1], event, relayed)
            if relayed is not None:
                _check_relayed(relayed)
            _check_used(streams[0])
    if streams[0].terminated:
        assert streams[0].read(b'data: {"choices":[]}') is None, "something came behind the end"


def _new_stream(endpoint: Endpoint, choice: int) -> AnswerStream:
    return DIALECTS[endpoint].new_stream(_context(choice))


def _context(choice: int) -> AnswerContext:
    return AnswerContext(
        engine=ENGINES[Engine.VLLM],
        upstream_model="up",
        public_model="m" if choice & 32 else "up",
        input_tokens_max=5000,
        output_tokens_max=None if choice & 64 else 1000,
        prompts=1,
        sequences=1 + (choice >> 1 & 1),
        hide_usage=bool(choice & 4),
        hide_continuous=bool(choice & 8) or bool(choice & 4),
        counting=bool(choice & 16),
    )


def _check_shortcut(stream: AnswerStream, event: bytes, relayed: bytes | None) -> None:
    """Check that the fast path reads an event as the slow path does, or leaves it to it."""
    framed = event + b"\n\n"
    short = stream.read_regular(framed, 0, len(framed))
    if short is None:
        stream.read(event)
    else:
        assert relayed is not None and json.loads(short[6:]) == json.loads(relayed[6:])


def _check_relayed(relayed: bytes) -> None:
    relayed.decode()
    assert relayed.endswith(b"\n\n") and b"\r" not in relayed
    lines = relayed[:-2].split(b"\n")
    assert all(line.startswith((b"data: ", b"event: ")) for line in lines) and len(lines) <= 2, "more than one event of one datum"
    json.loads(lines[-1][6:])


def _check_used(stream: AnswerStream) -> None:
    used = stream.used
    if used is not None:
        assert min(used.input, used.cached_input, used.output, used.reasoning) >= 0
        assert max(used.input, used.output, used.reasoning) <= TOKENS_MAX


def openai_stream(data: bytes) -> None:
    """Check openai.Stream: events of the API's shape, or a fault; the short way agrees with the long one; usage that can be."""
    _dialect_stream(Endpoint.CHAT_COMPLETIONS, data)


def anthropic_stream(data: bytes) -> None:
    """Check anthropic.Stream in the same way."""
    _dialect_stream(Endpoint.MESSAGES, data)


def whole_answer(data: bytes) -> None:
    """Check read_answer of every dialect, and the errors of engines: a valid answer under the public name, or a fault."""
    choice, data, _ = _cut(data)
    endpoint = _ENDPOINTS[(choice >> 2) % len(_ENDPOINTS)]
    for status in (200, 400, 429, 503):
        assert read_fault(data, status, ENGINES[Engine.VLLM], first=bool(choice & 1)).kind.status >= 400
        assert read_answer_fault(status, data, ENGINES[Engine.VLLM], data[:40], 0).message.isprintable()
    try:
        answer = DIALECTS[endpoint].read_answer(data, _context(choice >> 2 & 32))
    except Fault as fault:
        assert fault.kind.status >= 400
        return
    json.loads(answer.body)
    names_no_model = endpoint in (Endpoint.COUNT_TOKENS, Endpoint.TOKENIZE, Endpoint.DETOKENIZE)
    assert names_no_model or json.loads(answer.body).get("model") in (json.loads(data).get("model"), "m")
    if answer.used is not None:
        assert 0 <= answer.used.output + answer.used.reasoning <= 1000


# ---- Between our own processes, and from our own disk


def spool_segment(data: bytes) -> None:
    """Check segments.Reader: frames in sequence with the chain they claim, and an end; the same again from any frame on."""
    _, data, _ = _cut(data)
    chain = segments.first_chain("node", 1)
    reader = segments.Reader(1, chain)
    frames = list(reader.read(data))
    start = 0
    for seq, frame in enumerate(frames, 1):
        assert frame.seq == seq and frame.chain == segments.next_chain(chain, seq, frame.payload)
        assert segments.frame(seq, frame.chain, frame.payload) == data[start : frame.end]
        chain, start = frame.chain, frame.end
    if frames:
        rest = segments.Reader(2, frames[0].chain)
        assert list(rest.read(data, frames[0].end)) == frames[1:] and rest.tail is reader.tail


def usage_record(data: bytes) -> None:
    """Check usage.decode: a record with one encoding, or ValueError."""
    _, data, _ = _cut(data)
    try:
        record = usage.decode(data)
    except ValueError:
        return
    again = usage.encode(record)
    assert usage.encode(usage.decode(again)) == again


def snapshot_line(data: bytes) -> None:
    """Lines of a snapshot and of its changes: an entry, or one of the errors that the follower takes for a broken line."""
    _, data, _ = _cut(data)
    for decode in _snapshot_decoders():
        try:
            decode(data)
        except (ValueError, RecursionError):
            continue


@cache
def _snapshot_decoders() -> tuple[Callable[[bytes], Any], ...]:
    return msgspec.json.Decoder(Entry).decode, msgspec.json.Decoder(Change).decode


def zmtp_messages(data: bytes) -> None:
    """Check zmtp.Messages: the same messages however they are cut, or ZmtpError, and no more bytes than were sent."""
    _, data, pieces = _cut(data)
    found: list[tuple[list[list[bytes]], bool]] = []
    for cut in ([data], pieces):
        reader, messages, is_broken = zmtp.Messages(), list[list[bytes]](), False
        try:
            for piece in cut:
                messages += reader.feed(piece)
        except zmtp.ZmtpError:
            is_broken = True
        found.append((messages, is_broken))
    (whole, is_broken), (cut_messages, is_cut_broken) = found
    assert is_broken == is_cut_broken, "cut otherwise, read otherwise"
    assert cut_messages[: len(whole)] == whole and (is_broken or cut_messages == whole)
    assert sum(len(frame) for message in whole for frame in message) <= len(data)


def cache_events(data: bytes) -> None:
    """Check wire.cache_events.read_batch and what an index makes of it: events, or ValueError; and bounds that hold."""
    _, data, _ = _cut(data)
    try:
        events = read_batch(data)
    except ValueError:
        return
    held = HeldPrefixes()
    cache = EngineCache(held, Load("engine"))
    for event in events:
        if isinstance(event, BlocksStored):
            tag = event.session_id or ""
            cache.store(event.block_hashes, event.parent_block_hash, event.block_size, tag, lambda levels: range(1, levels + 1))
        elif isinstance(event, BlocksRemoved):
            cache.remove(event.block_hashes)
    assert len(cache) <= BLOCKS_MAX
    cache.leave()
    assert not len(cache) and not len(held)


def client_certificate(data: bytes) -> None:
    """Check wire.client_certificates: a certificate in DER is read or refused, and a header of a proxy is a certificate or nothing."""
    _, data, _ = _cut(data)
    for name in (CLIENT_CERT, FORWARDED_CLIENT_CERT):
        found = find_forwarded({name: data}, name)
        if found:
            _read_certificate(found)
    _read_certificate(data)


def _read_certificate(der: bytes) -> None:
    try:
        read = read_der(der)
    except CertificateInvalid:
        return
    assert is_issued_by(read, read) and read.names["fingerprint"] == (read.fingerprint,)
    is_issued_by(read, msgspec.structs.replace(read, der=b"", is_authority=True))


PARSERS: dict[str, Check] = {
    "request-head": request_head,
    "request-body": request_body,
    "link": link,
    "picture": picture,
    "proxy-header": proxy_header,
    "tensor-message": tensor_message,
    "client-certificate": client_certificate,
    "answer-head": answer_head,
    "events": events,
    "openai-stream": openai_stream,
    "anthropic-stream": anthropic_stream,
    "whole-answer": whole_answer,
    "spool-segment": spool_segment,
    "usage-record": usage_record,
    "snapshot-line": snapshot_line,
    "zmtp-messages": zmtp_messages,
    "cache-events": cache_events,
}
"""Every parser of foreign bytes in the data plane and on the link."""
