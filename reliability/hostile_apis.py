"""The APIs through which the hammer sends: a request that names a behaviour, and the right answer to it, in the shape of each."""

import io
import json
import wave
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

EVENTS = 4
"""Events with text of a stream."""
BOUNDARY = "hammer"
SAMPLES_PER_SECOND = 8_000


class Content(NamedTuple):
    """The body of a request."""

    type: str
    body: bytes


class Api(NamedTuple):
    """One API. `write`: a request for a model with a text, as a stream or not, with so many bytes more. `answer`: what the whole answer
    consists of, by the marker and how often it repeats it. `events`: those of a stream, None where the API has none, the last of which
    contains `terminator`."""

    write: Callable[[str, str, bool, int], Content]
    answer: Callable[[str, int], Mapping[str, Any]]
    events: Callable[[str], list[bytes]] | None
    terminator: bytes = b""


def _event(data: Mapping[str, Any]) -> bytes:
    name = f"event: {data['type']}\n" if "type" in data else ""
    return f"{name}data: {json.dumps(data)}\n\n".encode()


def _json(content: Mapping[str, object]) -> Content:
    return Content("application/json", json.dumps(content).encode())


# ---- Chat completions -------------------------------------------------------------------------------------------------


def _write_chat(model: str, text: str, is_stream: bool, padding: int) -> Content:
    return _json({"model": model, "messages": [{"role": "user", "content": text + "x" * padding}], "stream": is_stream})


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": tokens + 9}


def _choice(delta: Mapping[str, str], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish}


def _answer_chat(marker: str, repeats: int) -> Mapping[str, Any]:
    message = {"role": "assistant", "content": f"[[{marker}]] " * repeats}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    head = {"id": f"chatcmpl-{marker}", "object": "chat.completion", "created": 1, "model": "m"}
    return head | {"choices": [choice], "usage": _usage(repeats)}


def _stream_chat(marker: str) -> list[bytes]:
    parts: list[dict[str, Any]] = [{"choices": [_choice(delta={"content": f"[[{marker}]] "})]} for _ in range(EVENTS)]
    parts.append({"choices": [_choice(delta={}, finish="stop")]})
    parts.append({"choices": [], "usage": _usage(EVENTS)})
    head = {"id": f"chatcmpl-{marker}", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return [*(_event(head | part) for part in parts), b"data: [DONE]\n\n"]


# ---- Messages ---------------------------------------------------------------------------------------------------------


def _write_message(model: str, text: str, is_stream: bool, padding: int) -> Content:
    content = [{"role": "user", "content": text + "x" * padding}]
    return _json({"model": model, "max_tokens": 64_000, "messages": content, "stream": is_stream})


def _answer_message(marker: str, repeats: int) -> Mapping[str, Any]:
    head = {"id": f"msg_{marker}", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn"}
    usage = {"input_tokens": 9, "output_tokens": repeats}
    return head | {"content": [{"type": "text", "text": f"[[{marker}]] " * repeats}], "usage": usage}


def _stream_message(marker: str) -> list[bytes]:
    begun = {**_answer_message(marker, 0), "content": [], "stop_reason": None}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": f"[[{marker}]] "}}
    events: Iterable[Mapping[str, Any]] = (
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *[delta] * EVENTS,
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": EVENTS}},
        {"type": "message_stop"},
    )
    return [_event(each) for each in events]


# ---- Transcriptions ---------------------------------------------------------------------------------------------------


def _write_sound(model: str, text: str, is_stream: bool, padding: int) -> Content:
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLES_PER_SECOND)
        file.writeframes(bytes(padding // 2 * 2 + SAMPLES_PER_SECOND))
    fields = {"model": model, "prompt": text, "stream": "true" if is_stream else "false"}
    parts = [f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
    sound = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'.encode() + held.getvalue()
    return Content(f"multipart/form-data; boundary={BOUNDARY}", b"".join(parts) + sound + f"\r\n--{BOUNDARY}--\r\n".encode())


def _answer_sound(marker: str, repeats: int) -> Mapping[str, Any]:
    return {"text": f"[[{marker}]] " * repeats, "usage": {"type": "duration", "seconds": 1}}


def _stream_sound(marker: str) -> list[bytes]:
    delta = {"type": "transcript.text.delta", "delta": f"[[{marker}]] "}
    done = {"type": "transcript.text.done", **_answer_sound(marker, EVENTS)}
    return [_event(each) for each in (*[delta] * EVENTS, done)]


# ---- Reranking --------------------------------------------------------------------------------------------------------


def _write_rerank(model: str, text: str, is_stream: bool, padding: int) -> Content:
    return _json({"model": model, "query": text, "documents": ["one", "x" * (padding + 1)]})


def _answer_rerank(marker: str, repeats: int) -> Mapping[str, Any]:
    results = [{"index": 0, "relevance_score": 0.5, "document": {"text": f"[[{marker}]] " * repeats}}]
    return {"id": f"rerank-{marker}", "model": "m", "results": results, "usage": {"prompt_tokens": 9, "total_tokens": 9}}


APIS: Mapping[str, Api] = {
    "chat/completions": Api(_write_chat, _answer_chat, _stream_chat, b"data: [DONE]"),
    "messages": Api(_write_message, _answer_message, _stream_message, b'"message_stop"'),
    "audio/transcriptions": Api(_write_sound, _answer_sound, _stream_sound, b'"transcript.text.done"'),
    "rerank": Api(_write_rerank, _answer_rerank, None),
}
