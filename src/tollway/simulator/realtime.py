"""Realtime sessions (OpenAI's events over a WebSocket), each response of which is a chat completion of the conversation so far.

A response is an exchange like any other: it queues, takes its time, fails by the same plans and stands in the truth log, under its id.
What the exchange writes as a stream of chat is rendered as events here. Sound is counted by its bytes and not understood.
"""

import base64
import binascii
import hashlib
import secrets
from collections.abc import Callable
from typing import Any, Final

import msgspec
from wsproto import events
from wsproto.connection import Connection as Frames
from wsproto.connection import ConnectionType

from tollway.simulator.answering import Exchange
from tollway.simulator.endpoints import Request, Simulator
from tollway.simulator.requests import Refused
from tollway.simulator.truth import Ended

PATH: Final = b"/v1/realtime"
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_SOUND_BYTES_PER_WORD: Final = 24_000
"""Bytes of sound that count as one word of the conversation: half a second at 24 kHz."""


def accept(headers: dict[bytes, bytes]) -> bytes:
    """Return the head with which a handshake is answered. Raises Refused for none."""
    key = headers.get(b"sec-websocket-key", b"")
    if headers.get(b"upgrade", b"").lower() != b"websocket" or not key:
        raise Refused(426, "Upgrade Required", "This path is for WebSocket connections.")
    digest = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    return b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: %b\r\n\r\n" % digest


class _Line:
    """The end of one exchange: takes a stream of chat and renders it as events."""

    paused = False
    chunked = False

    def __init__(self, session: "RealtimeSession", id: str) -> None:
        self._session = session
        self._id = id
        self._bytes = b""
        self._has_head = False
        self._usage: dict[str, Any] | None = None
        self._text = ""

    def write(self, data: bytes) -> None:
        """Take bytes of the answer."""
        self._bytes += data
        if not self._has_head:
            _, blank, rest = self._bytes.partition(b"\r\n\r\n")
            if not blank:
                return
            self._has_head, self._bytes = True, rest
        *whole, self._bytes = self._bytes.split(b"\n\n")
        for event in whole:
            if event.startswith(b"data: {"):
                self._take(msgspec.json.decode(event[6:]))

    def _take(self, chunk: dict[str, Any]) -> None:
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices", []):
            text = choice.get("delta", {}).get("content")
            if text:
                self._text += text
                self._session.say({"type": "response.output_text.delta", "response_id": self._id, "delta": text})

    def answered(self, stale_seconds: float | None, *, close: bool) -> None:
        """The exchange has ended as it should, or with an error of the engine."""
        self._session.finish(self._id, "completed" if self._usage is not None else "failed", self._usage, self._text)

    def hang_up(self, *, reset: bool) -> None:
        """The plan of the exchange breaks the connection."""
        self._session.break_off(reset)


class RealtimeSession:
    """One session. `write` and `hang_up` are its connection's."""

    def __init__(
        self, simulator: Simulator, headers: dict[bytes, bytes], model: str, write: Callable[[bytes], None], hang_up: Callable[[bool], None]
    ) -> None:
        self._simulator = simulator
        self._headers = headers
        self._model = model
        self._write = write
        self._hang_up = hang_up
        self._frames = Frames(ConnectionType.SERVER)
        self._turns: list[dict[str, str]] = []
        self._running: dict[str, Exchange] = {}
        self._parts: list[str] = []
        self._sound_bytes = 0

    def begin(self) -> None:
        """Tell that the session is open."""
        self.say({"type": "session.created", "session": self._describe()})

    def _describe(self) -> dict[str, Any]:
        return {"object": "realtime.session", "type": "realtime", "id": "sess_sim", "model": self._model}

    def say(self, event: dict[str, Any]) -> None:
        """Send an event."""
        event["event_id"] = f"event_{secrets.token_hex(8)}"
        self._write(self._frames.send(events.TextMessage(msgspec.json.encode(event).decode())))

    def feed(self, data: bytes) -> None:
        """Take bytes of the client."""
        self._frames.receive_data(data)
        for event in self._frames.events():
            if isinstance(event, events.Ping):
                self._write(self._frames.send(event.response()))
            elif isinstance(event, events.CloseConnection):
                self.close("aborted")
                self._write(self._frames.send(event.response()))
                self._hang_up(False)
                return
            elif isinstance(event, events.TextMessage):
                self._parts.append(event.data)
                if event.message_finished:
                    text, self._parts = "".join(self._parts), []
                    self._hear(text)

    def _hear(self, text: str) -> None:
        try:
            asked = msgspec.json.decode(text, type=dict[str, Any])
        except msgspec.DecodeError:
            self._refuse("The message is not JSON.")
            return
        match asked.get("type"):
            case "session.update":
                self.say({"type": "session.updated", "session": self._describe()})
            case "conversation.item.create":
                item = asked.get("item", {})
                content = "".join(part.get("text") or part.get("transcript") or "" for part in item.get("content", []))
                self._turns.append({"role": item.get("role", "user"), "content": content})
                self.say({"type": "conversation.item.added", "previous_item_id": None, "item": {"id": f"item_{len(self._turns)}", **item}})
            case "input_audio_buffer.append":
                try:
                    self._sound_bytes += len(base64.b64decode(asked.get("audio", ""), validate=True))
                except (binascii.Error, ValueError, TypeError):
                    self._refuse("The audio is not base64.")
            case "input_audio_buffer.commit":
                self._turns.append({"role": "user", "content": "sound " * (1 + self._sound_bytes // _SOUND_BYTES_PER_WORD)})
                self._sound_bytes = 0
                self.say({"type": "input_audio_buffer.committed", "previous_item_id": None, "item_id": f"item_{len(self._turns)}"})
            case "response.create":
                self._respond(asked.get("response") or {})
            case "response.cancel":
                self.close("aborted", is_told=True)
            case _:
                self._refuse("The type of the message is not known.")

    def _refuse(self, message: str) -> None:
        self.say({"type": "error", "error": {"type": "invalid_request_error", "code": "invalid_value", "message": message, "param": None}})

    def _respond(self, wish: dict[str, Any]) -> None:
        id = f"resp_{secrets.token_hex(12)}"
        body: dict[str, Any] = {"model": self._model, "messages": self._turns or [{"role": "user", "content": ""}], "stream": True}
        body["stream_options"] = {"include_usage": True}
        if isinstance(wish.get("max_output_tokens"), int):
            body["max_tokens"] = wish["max_output_tokens"]
        headers = {**self._headers, b"x-request-id": id.encode()}
        request = Request(b"POST", b"/v1/chat/completions", headers, msgspec.json.encode(body), keep_alive=False, http_11=False)
        try:
            exchange = self._simulator.exchange(_Line(self, id), "chat", request)
        except Refused as refused:
            self._refuse(refused.message)
            return
        self.say({"type": "response.created", "response": _describe_response(id, "in_progress", None, "")})
        self._running[id] = exchange
        self._simulator.exchanges.add(exchange)
        if not exchange.begin():
            self.finish(id, "failed", None, "")

    def finish(self, id: str, status: str, usage: dict[str, Any] | None, text: str) -> None:
        """Tell the end of a response."""
        exchange = self._running.pop(id, None)
        if exchange is not None:
            self._simulator.over(exchange)
            self._turns.append({"role": "assistant", "content": text})
        self.say({"type": "response.done", "response": _describe_response(id, status, usage, text)})

    def break_off(self, reset: bool) -> None:
        """Break the connection under all responses."""
        self.close("cut")
        self._hang_up(reset)

    def close(self, ended: Ended, *, is_told: bool = False) -> None:
        """Stop what is being made. `is_told`: the client asked for it, and hears of each end."""
        running, self._running = self._running, {}
        for id, exchange in running.items():
            exchange.left(ended)
            self._simulator.over(exchange)
            if is_told:
                self.say({"type": "response.done", "response": _describe_response(id, "cancelled", None, "")})


def _describe_response(id: str, status: str, usage: dict[str, Any] | None, text: str) -> dict[str, Any]:
    shown = None
    if usage is not None:
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        shown = {
            "total_tokens": usage["total_tokens"],
            "input_tokens": usage["prompt_tokens"],
            "output_tokens": usage["completion_tokens"],
            "input_token_details": {"text_tokens": usage["prompt_tokens"], "audio_tokens": 0, "cached_tokens": cached},
            "output_token_details": {"text_tokens": usage["completion_tokens"], "audio_tokens": 0},
        }
    content = [{"type": "output_text", "text": text}] if text else []
    item = {"id": f"item_{id}", "object": "realtime.item", "type": "message", "role": "assistant", "status": status, "content": content}
    return {"object": "realtime.response", "id": id, "status": status, "output": [item], "usage": shown}
