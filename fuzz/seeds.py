"""Inputs with which the search begins: as the world sends them, for each parser; and a mutator that bends them without any tool."""

import base64
import random
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec

from tests.gateway import authorities, harness, test_links, test_media
from tests.link import samples
from tests.wire import corpus
from tollway.domain import usage
from tollway.domain.keys import KeyType
from tollway.domain.snapshot import Change, Entry, KeyEntry, OrganizationEntry, ProjectEntry
from tollway.wire import segments, zmtp
from tollway.wire.protobuf import encode_bytes

VLLM_CACHE_EVENTS = Path(harness.__file__).with_name("vllm_cache_events.json")
FINDINGS = Path(__file__).parent / "findings"
"""Inputs that once broke a parser, by its name."""

CHOICES = (0, 1, 2, 3, 4, 12, 28, 32, 64, 76, 128)
"""First bytes of seeds: enough that each cut and each case begins somewhere."""

_json = msgspec.json.encode
_MESSAGES = [{"role": "user", "content": "Hé\n"}]
_BODIES = [
    _json({"model": "m", "messages": _MESSAGES}),
    _json({"model": "d", "messages": _MESSAGES, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 5, "n": 2}),
    _json({"model": "f", "messages": _MESSAGES, "tools": [{"type": "function", "function": {"name": "a"}}], "tool_choice": "auto"}),
    _json({"model": "c", "prompt": "x", "best_of": 2, "n": 1, "logprobs": 1, "stop": ["a", "b"], "temperature": 0.5}),
    _json({"model": "m", "input": [[1, 2], [3]], "dimensions": 8, "encoding_format": "base64", "user": "u"}),
    _json({"model": "m", "input": "x"}),
    *(_json({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": parts}]}) for parts in test_media.TAKEN.values()),
    _json({"model": "m", "messages": _MESSAGES, "max_tokens": 9, "system": "s", "thinking": {"type": "enabled"}, "top_k": 1}),
    b'{"model":"m","messages":[{"role":"user","role":"system"}]}',
    b'{"model":"m","mod\\u0065l":"d","messages":[1]}',
    b'{"a":1e400,"b":-0,"c":[1.5E-3,true,null],"d":"\\ud83d\\ude00\\u0000"}',
    b'{"a":' + b"[" * 60 + b"]" * 60 + b"}",
]
_BODY_FRAGMENTS = [
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\0", b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\\ud800",
    b"\\u0065", b"null", b"true", b"NaN", b"Infinity", b"-1", b"1.0", b"1e400", b"9" * 400, b"2147483648", b'"x":', b'"model":"m",',
    b'"n":', b'"max_tokens":', b'"stream":true,', b'"api_base":"x",', b'"cache_salt":"x",', b'{"a":1,"a":2}', b"[[[[[[[[", b"]]]]]]]]",
    b'"image_url":', b'"source":', b'"content":[', b'"input_audio":{', b'"data":', b"data:image/png;base64,", b"data:video/jpeg;base64,",
    b'"stream_options":{"include_usage":1},', b'"best_of":3,', b"//", b"\n", b" ", b"\xe2\x80\xa8",
]  # fmt: skip

_ANSWERS = [
    harness.whole(harness.completion()),
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;a=b\r\nx\r\n0\r\nx-trailer: 1\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 503 X\r\nretry-after: 7\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\ncontent-type: text/html\r\n\r\n<html>",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\n\x1f\x8b\x08",
    b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
]
_ANSWER_FRAGMENTS = [*corpus.FRAGMENTS, b"HTTP/1.1 200 OK\r\n", b"content-length: 3\r\n", b"transfer-encoding: chunked\r\n", b"0\r\n\r\n"]

_EVENTS = [
    b"data: a\n\n",
    b"event: x\r\ndata: {}\r\nid: 1\r\n\r\n",
    b"\r\rdata: a\rdata: b\r\r",
    b": keepalive\n\ndata: [DONE]\n\n",
    b"retry: 1\n\nid\n\n\n\n",
]
_EVENT_FRAGMENTS = [b"\n", b"\r", b"\r\n", b"\n\n", b"data: ", b"data:", b":", b"event: x\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"x" * 100]


def _stream(*events: bytes) -> bytes:
    return b"".join(b"data: " + event + b"\n\n" for event in events)


def _chunk(text: str, *, reason: str | None = None, usage: tuple[int, int] | None = None, **more: object) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    body: dict[str, object] = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "up", "choices": [choice]} | more
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "total_tokens": sum(usage), "completion_tokens": usage[1]}
    return _json(body)


_REPORT = _json({"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}, "reasoning_tokens": 1})
_OPENAI = [
    _stream(_chunk("a"), _chunk("b", reason="stop"), b'{"choices":[],"usage":' + _REPORT + b"}", b"[DONE]"),
    _stream(*(_chunk("a", usage=(5, number)) for number in range(1, 6)), b"[DONE]"),
    _stream(_chunk("a", usage=(5, 1)), _chunk("b", reason="length", usage=(5, 9)), b"[DONE]"),
    _stream(b'{"error":{"message":"busy","code":503}}', b"[DONE]"),
    _stream(_chunk("a"), b'{"message":"x","code":"500"}', b"[DONE]"),
    _stream(_chunk("", choices=[]), _chunk("a", reason="abort")),
]
_OPENAI_FRAGMENTS = [
    *_BODY_FRAGMENTS, *_EVENT_FRAGMENTS, b'"usage":null', b'"usage":{"prompt_tokens":5,"completion_tokens":-1}', b'"choices":null',
    b'"finish_reason":"abort"', b'"error":"x"', b'"model":"up"', b',"usage":{', b"data: [DONE]\n\n", b'"completion_tokens":99999',
]  # fmt: skip

_ANTHROPIC = [
    _stream(
        b'{"type":"message_start","message":{"id":"x","model":"up","usage":{"input_tokens":5,"cache_read_input_tokens":1}}}',
        b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}',
        b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}',
        b'{"type":"message_stop"}',
    ),
    _stream(b'{"type":"ping"}', b'{"type":"error","error":{"type":"overloaded_error","message":"x"}}'),
    b'event: message_start\ndata: {"type":"message_start","message":"x"}\n\n',
]
_ANTHROPIC_FRAGMENTS = [
    *_BODY_FRAGMENTS, *_EVENT_FRAGMENTS, b'"type":"message_start"', b'"type":"message_delta"', b'"type":"message_stop"', b'"message":[]',
    b'"usage":{"output_tokens":-1}', b'"usage":1', b'"delta":null', b'"stop_reason":"abort"',
]  # fmt: skip

_WHOLE = [
    _json(harness.completion()),
    b'{"object":"text_completion","model":"up","choices":[{"text":"a","finish_reason":"stop"}],"usage":' + _REPORT + b"}",
    b'{"object":"list","data":[{"embedding":[0.5],"index":0}],"model":"up","usage":{"prompt_tokens":3,"total_tokens":3}}',
    b'{"type":"message","model":"up","content":[],"stop_reason":"end_turn","usage":{"input_tokens":3,"output_tokens":1}}',
    b'{"input_tokens":3}',
    b'{"error":{"message":"x","type":"y","code":429}}',
    b'{"object":"error","message":"x","code":400}',
    b'{"error":"text"}',
]

_LINKS = [text.encode() for text in (*test_links.PRIVATE.values(), *test_links.PUBLIC)]
_LINK_FRAGMENTS = [
    b"http://", b"https://", b"@", b":", b"/", b"\\", b"?", b"#", b"[", b"]", b"%2e", b"%40", b".", b"..", b"localhost", b"127.0.0.1",
    b"0x7f", b"0177", b"2130706433", b"::ffff:", b"example.com", b"xn--", b"\t", b" ", b"\0", b"\xe3\x80\x82", b"\xef\xbc\x8e", b"-", b"_",
]  # fmt: skip

_PICTURES = [*(data for data, _ in test_media.PICTURES.values()), *(data for data in test_media.BROKEN.values() if len(data) < 2000)]
_PICTURE_FRAGMENTS = [
    b"\x89PNG\r\n\x1a\n", b"IHDR", b"IDAT", b"\0\0\0\x0d", b"\xff\xd8", b"\xff\xc0", b"\xff\xc4", b"\xff\xda", b"\xff\xff",
    b"GIF89a", b"\x21\xfe",
    b"\x2c", b"\0", b"RIFF", b"WEBP", b"VP8 ", b"VP8L", b"VP8X", b"\x9d\x01\x2a", b"\xff\xff\xff\xff",
]  # fmt: skip

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_PROXY = [
    _SIGNATURE + b"\x21\x11\x00\x0c\xc0\x00\x02\x01\x7f\x00\x00\x01\x12\x34\x1f\x90",
    _SIGNATURE + b"\x21\x21\x00\x24" + bytes(range(36)),
    _SIGNATURE + b"\x20\x00\x00\x00",
    _SIGNATURE + b"\x21\x11\x00\x13" + bytes(12) + b"\x03\x00\x04abcd",
    b"PROXY TCP4 192.0.2.1 127.0.0.1 1 2\r\n",
]


def _segment() -> bytes:
    chain, data = segments.first_chain("node", 1), b""
    for seq, payload in enumerate((b"a", b"{}", b"x" * 100, b""), 1):
        chain, frame = segments.extend(chain, seq, payload)
        data += frame
    return data


_RECORDS = [
    usage.encode(samples.admit(1)),
    usage.encode(samples.final(samples.admit(2))),
    b'{"record":"tick","at":1}',
    b'{"record":"close","at":1}',
    b'{"record":"progress","request_id":"req_1","used":[1,2,3,4]}',
]
_PROJECT = ProjectEntry(id="proj_1", organization_id="org_1", models=("m",))
_ENTRIES: list[Entry] = [
    OrganizationEntry(id="org_1", currency="EUR"),
    _PROJECT,
    KeyEntry(id="key_1", digest=b"d" * 32, type=KeyType.LIVE, project_id="proj_1", expires_at=1),
]
_LINES = [*(_json(entry) for entry in _ENTRIES), _json(Change(version=1, kind="project", id="proj_1", entry=_PROJECT))]
_ZMTP = [zmtp.greet(b"PUB") + zmtp.frame_message(b"kv", bytes(8), b"x") + zmtp.ping() + zmtp.frame_message(b""), b"HTTP/1.1 400 no\r\n"]
_CACHE_EVENTS = [
    *map(bytes.fromhex, msgspec.json.decode(VLLM_CACHE_EVENTS.read_bytes())["batches"]),
    msgspec.msgpack.encode(
        [1.5, [{"type": "BlockRemoved", "block_hashes": [1, b"h"]}, {"type": "AllBlocksCleared"}, ["BlockStored", [1]]]]
    ),
]
_TENSOR = encode_bytes(1, b"x") + encode_bytes(2, b"INT32") + encode_bytes(3, b"\x02") + encode_bytes(4, encode_bytes(1, b"p"))
_TENSORS = [
    encode_bytes(1, b"m") + encode_bytes(3, b"7") + encode_bytes(5, _TENSOR + encode_bytes(5, encode_bytes(2, b"\x01\x02"))),
    encode_bytes(1, b"m")
    + encode_bytes(2, b"1")
    + encode_bytes(5, _TENSOR)
    + encode_bytes(6, encode_bytes(1, b"y"))
    + encode_bytes(7, bytes(8)),
    encode_bytes(2, encode_bytes(1, b"m") + encode_bytes(4, encode_bytes(1, b"triton_final_response") + encode_bytes(2, b"\x08\x01"))),
]
_BINARY = [b"\0", b"\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", struct.pack("<Q", 1), struct.pack("<Q", 2), b"\x21", b"\x11"]

_AUTHORITY = authorities.issue("authority", is_authority=True)
_PROGRAM = authorities.issue("program", _AUTHORITY, uri="spiffe://example.com/ci")
_CERTIFICATES = [
    *(each.der for each in (_AUTHORITY, _PROGRAM)),
    b":" + base64.b64encode(_PROGRAM.der) + b":",
    b'Hash=1;Cert="' + quote(_PROGRAM.pem).encode() + b'";Subject="CN=x"',
]

_PLAIN: dict[str, tuple[Sequence[bytes], Sequence[bytes]]] = {
    "request-head": (corpus.SEEDS, corpus.FRAGMENTS),
    "request-body": (_BODIES, _BODY_FRAGMENTS),
    "link": (_LINKS, _LINK_FRAGMENTS),
    "picture": (_PICTURES, _PICTURE_FRAGMENTS),
    "proxy-header": (_PROXY, _BINARY),
    "tensor-message": (_TENSORS, [*_BINARY, b"BYTES", b"\x2a\x08", b"\x3a\x04", b"num_input_tokens", b"UINT32"]),
    "client-certificate": (_CERTIFICATES, [*_BINARY, b'Cert="', b"-----BEGIN%20CERTIFICATE-----", b"\x30\x82", b"\x06\x03\x55\x1d"]),
    "answer-head": (_ANSWERS, _ANSWER_FRAGMENTS),
    "events": (_EVENTS, _EVENT_FRAGMENTS),
    "openai-stream": (_OPENAI, _OPENAI_FRAGMENTS),
    "anthropic-stream": (_ANTHROPIC, _ANTHROPIC_FRAGMENTS),
    "whole-answer": (_WHOLE, _OPENAI_FRAGMENTS),
    "spool-segment": ([_segment(), _segment() + bytes(100), _segment()[:-5]], _BINARY),
    "usage-record": (_RECORDS, _BODY_FRAGMENTS),
    "snapshot-line": (_LINES, _BODY_FRAGMENTS),
    "zmtp-messages": (_ZMTP, [*_BINARY, b"\x05READY", b"NULL"]),
    "cache-events": (_CACHE_EVENTS, [*_BINARY, b"tw1.1.2", b"session_id", b"block_hashes", b"\xc0", b"\x92"]),
}


def seeds(parser: str) -> list[bytes]:
    """The inputs that the search of a parser begins with: all seeds with all choices, and all findings. Raises KeyError."""
    plain, _ = _PLAIN[parser]
    return [bytes([choice]) + seed for seed in plain for choice in CHOICES] + findings(parser)


def findings(parser: str) -> list[bytes]:
    """Return what once broke this parser, and must never again."""
    return [path.read_bytes() for path in sorted((FINDINGS / parser).glob("*"))]


def fragments(parser: str) -> Sequence[bytes]:
    """Pieces that mean something to a parser."""
    return _PLAIN[parser][1]


def inputs(parser: str, seed: int, count: int) -> Iterator[bytes]:
    """Return so many bent inputs, equal for an equal `seed`."""
    dice = random.Random(seed)
    plain, pieces = _PLAIN[parser]
    for _ in range(count):
        yield bytes([dice.randrange(256)]) + corpus.mutate(dice, dice.choice(plain), pieces, plain)
