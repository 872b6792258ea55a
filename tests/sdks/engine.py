"""An engine for the official SDKs: it answers by what it is asked for, in the shapes that OpenAI's and Anthropic's APIs have."""

import base64
import struct
from typing import Any

import msgspec

from tests.fakes import Asked, Do, Script, Step
from tests.gateway.harness import DONE, END, STREAM_HEAD, chunk, completion, part, usage, usage_chunk, whole

SOUND_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ntransfer-encoding: chunked\r\n\r\n"
VECTOR = [0.5, -1.0, 0.25]
_CALL = {"id": "call_1", "type": "function", "function": {"name": "toll", "arguments": '{"road":"A1"}'}}


class SdkEngine:
    """Answers one conversation after another; refuses the first request that says `busy`. `has_chat_only`: it
    has neither responses nor messages."""

    def __init__(self, *, has_chat_only: bool = False) -> None:
        self._has_chat_only = has_chat_only
        self.bodies: list[dict[str, Any]] = []
        self._was_busy = False

    def __call__(self, asked: Asked) -> Script:
        path = asked.head.split(b" ", 2)[1]
        if b"multipart/form-data" in asked.head:
            self.bodies.append({})
            return _forms(path, asked.body)
        body: dict[str, Any] = msgspec.json.decode(asked.body)
        self.bodies.append(body)
        if path.endswith(b"/speech"):
            return [SOUND_HEAD, b"5\r\nsound\r\n", END]
        text = asked.body.decode()
        if "busy" in text and not self._was_busy:
            self._was_busy = True
            return [whole({"error": {"message": "full", "code": 503}}, 503)]
        if self._has_chat_only and path.endswith((b"/messages", b"/count_tokens", b"/responses")):
            return [whole({"detail": "Not Found"}, 404)]
        if path.endswith(b"/generations"):
            return [whole({"created": 1, "data": [{"b64_json": "aGVsbG8="}] * body.get("n", 1)})]
        if path.endswith(b"/moderations"):
            result = {"flagged": False, "categories": {}, "category_scores": {}, "category_applied_input_types": {}}
            return [whole({"id": "modr-1", "model": "m", "results": [result]})]
        if path.endswith(b"/embeddings"):
            return [whole(_embeddings(body))]
        if path.endswith(b"/count_tokens"):
            return [whole({"input_tokens": 7})]
        if path.endswith(b"/tokenize"):
            return [whole({"count": 7, "max_model_len": 4096, "tokens": [1, 2, 3, 4, 5, 6, 7]})]
        if path.endswith(b"/messages"):
            return _messages(body)
        if path.endswith(b"/responses"):
            return _responses(body)
        if path.endswith(b"/completions") and not path.endswith(b"/chat/completions"):
            choice = {"index": 0, "text": "Hello", "finish_reason": "stop", "logprobs": None}
            return [whole({"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": [choice], "usage": usage(3, 1)})]
        return _chat(body, "slow" in text)


class AgentEngine:
    """Answers Claude Code, which always sends tools: has it read a file once, says what it read, and "Hello" to anything else."""

    def __init__(self, note: str) -> None:
        """`note`: path of the file to read, asked for by a message that has its name."""
        self.bodies: list[dict[str, Any]] = []
        self._note = note

    def __call__(self, asked: Asked) -> Script:
        body: dict[str, Any] = msgspec.json.decode(asked.body)
        self.bodies.append(body)
        results = [str(block) for message in body["messages"] for block in message["content"] if "tool_result" in str(block)]
        if results:
            text = "The road is A1" if "A1" in results[-1] else f"no road in {results[-1]}"
        elif self._note not in str(body["messages"]):
            text = "Hello"
        else:
            content = {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {}}
            arguments = msgspec.json.encode({"file_path": self._note}).decode()
            return stream_message(content, [{"type": "input_json_delta", "partial_json": arguments}])
        return stream_message({"type": "text", "text": text}, [{"type": "text_delta", "text": text}])


class CodexEngine:
    """Answers Codex, which always sends tools: has it read a file once by its shell, says what it read, and "Hello" to anything else."""

    def __init__(self, note: str) -> None:
        """`note`: path of the file to read, asked for by a message that has its name."""
        self.bodies: list[dict[str, Any]] = []
        self._note = note

    def __call__(self, asked: Asked) -> Script:
        body: dict[str, Any] = msgspec.json.decode(asked.body)
        self.bodies.append(body)
        results = [str(item["output"]) for item in body["input"] if item.get("type") == "function_call_output"]
        if results:
            return _responses(body, "The road is A1" if "A1" in results[-1] else f"no road in {results[-1]}")
        if self._note not in str(body["input"]):
            return _responses(body, "Hello")
        return _responses(body, call=("exec_command", msgspec.json.encode({"cmd": f"cat {self._note}"}).decode()))


def _forms(path: bytes, body: bytes) -> Script:
    if path.endswith(b"/edits"):
        return [whole({"created": 1, "data": [{"b64_json": "aGVsbG8="}], "pictures": body.count(b"filename=")})]
    if b'name="stream"\r\n\r\ntrue' in body:
        usage = {"type": "tokens", "input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
        events = [{"type": "transcript.text.delta", "delta": "Hello"}, {"type": "transcript.text.done", "text": "Hello", "usage": usage}]
        return [STREAM_HEAD, *map(part, events), END]
    if b'name="response_format"\r\n\r\ntext' in body:
        return [b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nHello"]
    return [whole({"text": "Hello", "usage": {"type": "duration", "seconds": 1}})]


def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
    packed = base64.b64encode(struct.pack(f"<{len(VECTOR)}f", *VECTOR)).decode()
    count = len(body["input"]) if isinstance(body["input"], list) and isinstance(body["input"][0], list | str) else 1
    vector = packed if body.get("encoding_format") == "base64" else VECTOR
    data = [{"object": "embedding", "index": number, "embedding": vector} for number in range(count)]
    return {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 4, "total_tokens": 4}}


def _chat(body: dict[str, Any], is_slow: bool) -> Script:
    if body.get("tools"):
        if not body.get("stream"):
            message = {"role": "assistant", "content": None, "tool_calls": [_CALL]}
            return [whole(completion(choices=[{"index": 0, "message": message, "finish_reason": "tool_calls"}]))]
        first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "toll", "arguments": ""}}
        pieces = [{"index": 0, "function": {"arguments": piece}} for piece in ('{"road"', ':"A1"}')]
        deltas = [{"role": "assistant", "content": None, "tool_calls": [first]}, *({"tool_calls": [piece]} for piece in pieces)]
        events = [chunk() | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        return [STREAM_HEAD, *map(part, events), part(chunk(finish="tool_calls")), part(usage_chunk(5, 9)), part(DONE), END]
    text = '{"road":"A1","cents":250}' if body.get("response_format") else "Hello"
    if not body.get("stream"):
        return [whole(completion(text))]
    steps: list[Step] = [STREAM_HEAD, part(chunk("", role="assistant"))]
    if is_slow:
        return [*steps, part(chunk("a")), part(chunk("b")), Do.HOLD]
    steps += [part(chunk(piece)) for piece in (text[:3], text[3:])]
    return [*steps, part(chunk(finish="stop")), part(usage_chunk(5, 2)), part(DONE), END]


def _messages(body: dict[str, Any]) -> Script:
    if body.get("tools"):
        content: dict[str, Any] = {"type": "tool_use", "id": "toolu_1", "name": "toll", "input": {"road": "A1"}}
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ('{"road"', ':"A1"}')]
    else:
        content = {"type": "text", "text": "Hello"}
        deltas = [{"type": "text_delta", "text": piece} for piece in ("Hel", "lo")]
    if not body.get("stream"):
        return [whole(_message(content) | {"stop_sequence": None, "usage": {"input_tokens": 5, "output_tokens": 2}})]
    return stream_message(content, deltas)


def _message(content: dict[str, Any]) -> dict[str, Any]:
    reason = "tool_use" if content["type"] == "tool_use" else "end_turn"
    return {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [content], "stop_reason": reason}


def stream_message(content: dict[str, Any], deltas: list[dict[str, Any]]) -> Script:
    """Return the stream of a message that holds one block, which `deltas` make."""
    message = _message(content)
    empty = content | ({"input": {}} if content["type"] == "tool_use" else {"text": ""})
    begun = message | {"content": [], "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 5, "output_tokens": 0}}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": empty},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": message["stop_reason"], "stop_sequence": None}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]
    framed = [b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event)) for event in events]
    return [STREAM_HEAD, *(part(event) for event in framed), END]


def _responses(body: dict[str, Any], said: str | None = None, call: tuple[str, str] = ("toll", '{"road":"A1"}')) -> Script:
    """Return a response: `said`, or where tools are offered a call of one, by its name and arguments."""
    if body.get("tools") and said is None:
        item: dict[str, Any] = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": call[0], "arguments": call[1]}
        begun: dict[str, Any] = item | {"arguments": "", "status": "in_progress"}
        inner = [{"type": "response.function_call_arguments.delta", "delta": piece} for piece in (call[1][:7], call[1][7:])]
        inner.append({"type": "response.function_call_arguments.done", "arguments": call[1], "name": call[0]})
        place: dict[str, Any] = {"item_id": "fc_1", "output_index": 0}
    else:
        is_json = (body.get("text") or {}).get("format", {}).get("type") == "json_schema"
        text = said or ('{"road":"A1","cents":250}' if is_json else "Hello")
        part_of = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        item = {"type": "message", "id": "msg_1", "role": "assistant", "content": [part_of]}
        begun = item | {"content": [], "status": "in_progress"}
        inner = [
            {"type": "response.content_part.added", "part": part_of | {"text": ""}},
            *({"type": "response.output_text.delta", "delta": piece, "logprobs": []} for piece in (text[:3], text[3:])),
            {"type": "response.output_text.done", "text": text, "logprobs": []},
            {"type": "response.content_part.done", "part": part_of},
        ]
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    item["status"] = "completed"
    response = {
        "id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": "completed", "error": None, "metadata": {},
        "incomplete_details": None, "instructions": body.get("instructions"), "output": [item], "parallel_tool_calls": True,
        "tool_choice": "auto", "tools": body.get("tools", []), "temperature": 1.0, "top_p": 1.0, "text": {"format": {"type": "text"}},
        "usage": {
            "input_tokens": 5, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 2,
            "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 7,
        },
    }  # fmt: skip
    if not body.get("stream"):
        return [whole(response)]
    empty = response | {"status": "in_progress", "output": [], "usage": None}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": empty},
        {"type": "response.in_progress", "response": empty},
        {"type": "response.output_item.added", "output_index": 0, "item": begun},
        *(event | place for event in inner),
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": response},
    ]
    numbered = [event | {"sequence_number": number} for number, event in enumerate(events)]
    framed = [b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event)) for event in numbered]
    return [STREAM_HEAD, *(part(event) for event in framed), END]
