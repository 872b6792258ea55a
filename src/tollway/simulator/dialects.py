"""Bytes on the wire: vLLM 0.32's chunks, bodies and errors, byte by byte.

A dialect renders one answer. Everything is a function of the answer and the range of tokens, so an event can be
rendered when it is due, not before. Order of a stream: `opening` with the first token, `tokens` for each chunk,
`closing`, `terminator`. An event is its full SSE text, blank line included. JSON keys stand in vLLM's order, nulls
where vLLM has nulls.
"""

import base64
import hashlib
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

import msgspec

from tollway.simulator.faults import Plan, StatusBody, distorted_usage
from tollway.simulator.requests import Endpoint, Order
from tollway.simulator.tokens import Answer, Prompt

DONE = b"data: [DONE]\n\n"
JSON = b"application/json"
# vLLM names its own exceptions; every other status goes by its HTTP phrase.
_KINDS = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError"}
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}  # vLLM maps only these; "abort" becomes null
_FINGERPRINT = b'"vllm-0.32.0-sim"'


POOLING = frozenset({"embeddings", "rerank", "score"})
"""Endpoints that generate nothing."""


@dataclass(frozen=True, slots=True)
class Script:
    """All that a dialect needs to render one answer."""

    answer_id: str  # the X-Request-Id, or random
    created_at_seconds: int
    model: str  # echoed as it was asked for
    order: Order
    answer: Answer
    plan: Plan
    tokens_per_chunk: int
    dimensions: int  # of embeddings
    with_details: bool  # prompt_tokens_details
    with_reasoning: bool  # completion_tokens_details


class Whole(Protocol):
    """One API's rendering of one answer as JSON."""

    def body(self, cached_tokens: int, made_each: int, finish_reason: str | None) -> bytes:
        """The answer after `made_each` tokens of every sequence. A `finish_reason` given here replaces the answer's
        own.
        """


class Stream(Whole, Protocol):
    """One API's rendering of one answer as events."""

    def opening(self) -> list[bytes]:
        """The events before the first token."""

    def tokens(self, first: int, last: int) -> list[bytes]:
        """The events for tokens [first, last) of every sequence that is so long."""

    def closing(self, cached_tokens: int, made_each: int, finish_reason: str | None) -> list[bytes]:
        """The events after the last token, terminator not included. `finish_reason` is for sequences that were
        broken off.
        """

    def terminator(self) -> bytes:
        """Return what marks the stream as complete for the client."""

    def error(self, code: int, message: str) -> list[bytes]:
        """The events by which a stream fails, after which it ends. Where the API says [DONE] even now, it is the
        last one.
        """


def stream_of(script: Script) -> Stream:
    """The dialect of a request that asked for a stream; embeddings have none."""
    endpoint = script.order.endpoint
    if endpoint == "chat":
        return _Chat(script)
    if endpoint == "completions":
        return _Completions(script)
    if endpoint == "responses":
        return _Responses(script)
    return _Messages(script)


def whole_of(script: Script) -> Whole:
    """The dialect of a request that asked for JSON."""
    if script.order.endpoint not in POOLING:
        return stream_of(script)
    return _Embeddings(script) if script.order.endpoint == "embeddings" else _Scores(script)


# The two OpenAI dialects differ in a choice's inside and in which nulls they show


class _OpenAI(ABC):
    id_prefix: str
    chunk_object: bytes
    spare_usage: bytes  # what a chunk has where it has no usage

    def __init__(self, script: Script) -> None:
        self._script = script
        self._answer = script.answer
        self._plan = script.plan
        head = b'{"id":%s,"object":%s,"created":%d,"model":%s,' % (
            _string(self.id_prefix + script.answer_id),
            self.chunk_object,
            script.created_at_seconds,
            _string(script.model),
        )
        self._head = b"data: " + head + b'"choices":['
        self._prompt_tokens = script.order.prompt_tokens
        usage = script.plan.usage
        self._usage_on_chunks = script.order.continuous_usage if not usage else usage in ("each", "shrinking")
        self._usage_at_end = script.order.include_usage and usage not in ("missing", "finish", "each")
        self._usage_on_finish = usage == "finish"

    def closing(self, cached_tokens: int, made_each: int, finish_reason: str | None) -> list[bytes]:
        events: list[bytes] = []
        if finish_reason is not None or self._plan.finish_separate:
            events += [
                self._chunk(choice, self.bare_finish(choice, finish_reason or reason), made_each, finishing=True)
                for choice, reason in enumerate(self._answer.finish_reasons)
                if self._plan.finish_separate or made_each < self._answer.lengths[choice]
            ]
        if self._usage_at_end:
            usage = self._usage(cached_tokens, made_each, nulls=False)
            events.append(self._head + b'],"system_fingerprint":' + _FINGERPRINT + b',"usage":' + usage + b"}\n\n")
        return events

    def terminator(self) -> bytes:
        return DONE

    def error(self, code: int, message: str) -> list[bytes]:
        return [b"data: " + nested_error(code, message) + b"\n\n", DONE]

    def _chunk(self, choice: int, inside: bytes, made_each: int, *, finishing: bool = False) -> bytes:
        usage = self.spare_usage
        if self._usage_on_chunks or (finishing and self._usage_on_finish):
            # Running usage is that of one sequence, also where there are several: vLLM counts the choice, not the
            # request.
            done = min(made_each, self._answer.lengths[choice])
            if self._plan.usage:
                done = distorted_usage(self._plan, done, final=False)
            prompt = self._prompt_tokens
            usage = b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}' % (prompt, prompt + done, done)
        return b"%s%s]%s}\n\n" % (self._head, inside, usage)

    def _usage(self, cached_tokens: int, made_each: int, *, nulls: bool) -> bytes:
        prompt = self._script.order.prompt_tokens
        done = distorted_usage(self._plan, self._answer.generated(made_each), final=True)
        details = b'{"cached_tokens":%d}' % cached_tokens if self._script.with_details else b"null"
        parts = [b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d' % (prompt, prompt + done, done)]
        if nulls or self._script.with_details:
            parts.append(b',"prompt_tokens_details":' + details)
        if self._script.with_reasoning:
            reasoned = self._answer.reasoned(made_each)
            parts.append(b',"completion_tokens_details":{"reasoning_tokens":%d}' % reasoned)
        parts.append(b"}")
        return b"".join(parts)

    def _usage_of_body(self, cached_tokens: int, made_each: int) -> bytes:
        return b"null" if self._plan.usage == "missing" else self._usage(cached_tokens, made_each, nulls=True)

    @abstractmethod
    def bare_finish(self, choice: int, finish_reason: str) -> bytes:
        """A choice with a finish reason and no content."""


class _Chat(_OpenAI):
    id_prefix = "chatcmpl-"
    chunk_object = b'"chat.completion.chunk"'
    spare_usage = b""

    def opening(self) -> list[bytes]:
        content = b"null" if self._plan.role_null else b'""'
        return [
            self._chunk(
                choice,
                b'{"index":%d,"delta":{"role":"assistant","content":%s},"logprobs":null,"finish_reason":null}' % (choice, content),
                0,
            )
            for choice in range(len(self._answer.lengths))
        ]

    def tokens(self, first: int, last: int) -> list[bytes]:
        answer = self._answer
        events: list[bytes] = []
        for choice, length in enumerate(answer.lengths):
            if first >= length:
                continue
            end = min(last, length)
            finishing = end == length and not self._plan.finish_separate
            finish = b'"%s","stop_reason":null' % answer.finish_reasons[choice].encode() if finishing else b"null"
            inside = b'{"index":%d,"delta":{%s},"logprobs":null,"finish_reason":%s,"token_ids":null}' % (
                choice,
                self._delta(choice, first, end),
                finish,
            )
            events.append(self._chunk(choice, inside, end, finishing=finishing))
        return events

    def bare_finish(self, choice: int, finish_reason: str) -> bytes:
        return b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":"%s","stop_reason":null,"token_ids":null}' % (
            choice,
            finish_reason.encode(),
        )

    def body(self, cached_tokens: int, made_each: int, finish_reason: str | None) -> bytes:
        script, answer = self._script, self._answer
        choices: list[bytes] = []
        for choice, length in enumerate(answer.lengths):
            end = min(length, made_each)
            reasoned = min(answer.reasoning_tokens, end)
            reasoning = b'"%s"' % answer.text(choice, 0, reasoned) if reasoned else b"null"
            choices.append(
                b'{"index":%d,"message":{"role":"assistant","content":"%s","refusal":null,"annotations":null,"audio":null,'
                b'"function_call":null,"tool_calls":[],"reasoning":%s},"logprobs":null,"finish_reason":"%s",'
                b'"stop_reason":null,"token_ids":null}'
                % (
                    choice,
                    answer.text(choice, reasoned, end),
                    reasoning,
                    (finish_reason or answer.finish_reasons[choice]).encode(),
                )
            )
        return (
            b'{"id":%s,"object":"chat.completion","created":%d,"model":%s,"choices":[%s],"service_tier":null,'
            b'"system_fingerprint":%s,"usage":%s,"prompt_logprobs":null,"prompt_token_ids":null,"kv_transfer_params":null}'
            % (
                _string(self.id_prefix + script.answer_id),
                script.created_at_seconds,
                _string(script.model),
                b",".join(choices),
                _FINGERPRINT,
                self._usage_of_body(cached_tokens, made_each),
            )
        )

    def _delta(self, choice: int, first: int, last: int) -> bytes:
        answer = self._answer
        if first >= answer.reasoning_tokens:
            return b'"content":"%s"' % answer.text(choice, first, last)
        if last <= answer.reasoning_tokens:
            return b'"reasoning":"%s"' % answer.text(choice, first, last)
        return b'"reasoning":"%s","content":"%s"' % (
            answer.text(choice, first, answer.reasoning_tokens),
            answer.text(choice, answer.reasoning_tokens, last),
        )


class _Completions(_OpenAI):
    id_prefix = "cmpl-"
    chunk_object = b'"text_completion"'
    spare_usage = b',"usage":null'

    def opening(self) -> list[bytes]:
        return []

    def tokens(self, first: int, last: int) -> list[bytes]:
        answer = self._answer
        events: list[bytes] = []
        for choice, length in enumerate(answer.lengths):
            if first >= length:
                continue
            end = min(last, length)
            finishing = end == length and not self._plan.finish_separate
            inside = self._choice(choice, answer.text(choice, first, end), answer.finish_reasons[choice] if finishing else "")
            events.append(self._chunk(choice, inside, end, finishing=finishing))
        return events

    def bare_finish(self, choice: int, finish_reason: str) -> bytes:
        return self._choice(choice, b"", finish_reason)

    def body(self, cached_tokens: int, made_each: int, finish_reason: str | None) -> bytes:
        script, answer = self._script, self._answer
        choices = [
            self._choice(choice, answer.text(choice, 0, min(length, made_each)), finish_reason or answer.finish_reasons[choice])
            for choice, length in enumerate(answer.lengths)
        ]
        return (
            b'{"id":%s,"object":"text_completion","created":%d,"model":%s,"choices":[%s],"service_tier":null,'
            b'"system_fingerprint":%s,"usage":%s,"kv_transfer_params":null}'
            % (
                _string(self.id_prefix + script.answer_id),
                script.created_at_seconds,
                _string(script.model),
                b",".join(choices),
                _FINGERPRINT,
                self._usage_of_body(cached_tokens, made_each),
            )
        )

    def _choice(self, choice: int, text: bytes, finish_reason: str) -> bytes:
        finish = b'"%s"' % finish_reason.encode() if finish_reason else b"null"
        return (
            b'{"index":%d,"text":"%s","logprobs":null,"finish_reason":%s,"stop_reason":null,"token_ids":null,'
            b'"prompt_logprobs":null,"prompt_token_ids":null}' % (choice, text, finish)
        )


class _Messages:
    """Answers of vLLM's Anthropic route: its own chat stream, converted. No [DONE]; no cache tokens in the usage;
    `input_tokens` is the whole prompt, cached or not; type and role are missing in message_start, as vLLM leaves
    unset fields out."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._answer = script.answer
        self._plan = script.plan
        self._text_block = 1 if script.answer.reasoning_tokens else 0

    def opening(self) -> list[bytes]:
        script = self._script
        message = b'{"id":%s,"content":[],"model":%s,"stop_reason":null,"stop_sequence":null,"usage":%s}' % (
            _string("chatcmpl-" + script.answer_id),
            _string(script.model),
            b"null" if self._plan.usage == "missing" else self._usage(0),
        )
        return [_named(b"message_start", b'"message":' + message)]

    def tokens(self, first: int, last: int) -> list[bytes]:
        answer = self._answer
        end = min(last, answer.lengths[0])
        boundary = min(answer.reasoning_tokens, end)
        events: list[bytes] = []
        if first < boundary:
            if first == 0:
                events.append(_block_start(0, b'{"type":"thinking","thinking":""}'))
            events.append(_block_delta(0, b'{"type":"thinking_delta","thinking":"%s"}' % answer.text(0, first, boundary)))
        if end > boundary:
            if first <= boundary:
                events += self._thinking_end()
                events.append(_block_start(self._text_block, b'{"type":"text","text":""}'))
            text = answer.text(0, max(first, boundary), end)
            if text:  # vLLM drops a delta in which a character is not yet complete
                events.append(_block_delta(self._text_block, b'{"type":"text_delta","text":"%s"}' % text))
        return events

    def closing(self, cached_tokens: int, made_each: int, finish_reason: str | None) -> list[bytes]:
        del cached_tokens  # vLLM does not say it here
        reasoning = self._answer.reasoning_tokens
        events = [_block_stop(self._text_block)] if made_each > reasoning else self._thinking_end() if made_each else []
        stop = _STOP_REASONS.get(finish_reason or self._answer.finish_reasons[0])
        delta = b'"delta":{"stop_reason":%s}' % (b"null" if stop is None else _string(stop))
        if self._plan.usage != "missing":
            delta += b',"usage":' + self._usage(distorted_usage(self._plan, self._answer.generated(made_each), final=True))
        return [*events, _named(b"message_delta", delta)]

    def terminator(self) -> bytes:
        return b'event: message_stop\ndata: {"type":"message_stop"}\n\n'

    def error(self, code: int, message: str) -> list[bytes]:
        del code  # not in this dialect
        return [_named(b"error", b'"error":{"type":"internal_error","message":%s}' % _string(message))]

    def body(self, cached_tokens: int, made_each: int, finish_reason: str | None) -> bytes:
        del cached_tokens
        script, answer = self._script, self._answer
        end = min(made_each, answer.lengths[0])
        reasoned = min(answer.reasoning_tokens, end)
        blocks: list[bytes] = []
        if reasoned:
            text = answer.text(0, 0, reasoned)
            blocks.append(b'{"type":"thinking","thinking":"%s","signature":"%s"}' % (text, self._signature()))
        if end > reasoned:
            blocks.append(b'{"type":"text","text":"%s"}' % answer.text(0, reasoned, end))
        stop = _STOP_REASONS.get(finish_reason or answer.finish_reasons[0])
        stop_field = b"" if stop is None else b'"stop_reason":%s,' % _string(stop)  # exclude_none
        usage = b""
        if self._plan.usage != "missing":
            usage = b',"usage":' + self._usage(distorted_usage(self._plan, answer.generated(made_each), final=True))
        return b'{"id":%s,"type":"message","role":"assistant","content":[%s],%s"model":%s%s}' % (
            _string("chatcmpl-" + script.answer_id),
            b",".join(blocks),
            stop_field,
            _string(script.model),
            usage,
        )

    def _usage(self, output_tokens: int) -> bytes:
        return b'{"input_tokens":%d,"output_tokens":%d}' % (self._script.order.prompt_tokens, output_tokens)

    def _signature(self) -> bytes:
        return hashlib.blake2b(self._script.answer_id.encode(), digest_size=16).hexdigest().encode()

    def _thinking_end(self) -> list[bytes]:
        if not self._answer.reasoning_tokens:
            return []
        return [_block_delta(0, b'{"type":"signature_delta","signature":"%s"}' % self._signature()), _block_stop(0)]


_OPENING_EVENTS = 4
_SWITCH_EVENTS = 5
"""Events of a response before its first token, and between its reasoning and its text."""


class _Responses:
    """Answers of vLLM's responses route: one reasoning item if there is reasoning, one message. Usage stands in the last event alone,
    which is the terminator; there is no [DONE]."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._answer = script.answer
        self._plan = script.plan
        self._last = b""

    def opening(self) -> list[bytes]:
        response = self._response(b"in_progress", b"", b"null")
        events = [
            _numbered(number, name, b'"response":' + response) for number, name in enumerate((b"response.created", b"response.in_progress"))
        ]
        return events + self._begin_item(2, is_reasoning=self._answer.reasoning_tokens > 0)

    def tokens(self, first: int, last: int) -> list[bytes]:
        answer = self._answer
        end = min(last, answer.lengths[0])
        boundary = min(answer.reasoning_tokens, end)
        events: list[bytes] = []
        if first < boundary:
            events.append(self._delta(first, answer.text(0, first, boundary), is_reasoning=True))
        if end > boundary:
            if answer.reasoning_tokens and first <= boundary:
                number = self._number(boundary) - _SWITCH_EVENTS
                events += self._end_item(number, boundary, is_reasoning=True)
                events += self._begin_item(number + 3, is_reasoning=False)
            first = max(first, boundary)
            events.append(self._delta(first, answer.text(0, first, end), is_reasoning=False))
        return events

    def closing(self, cached_tokens: int, made_each: int, finish_reason: str | None) -> list[bytes]:
        reasoning = self._answer.reasoning_tokens
        number = self._number(made_each)
        name, response = self._finished(cached_tokens, made_each, finish_reason)
        self._last = _numbered(number + 3, name, b'"response":' + response)
        return self._end_item(number, made_each, is_reasoning=bool(reasoning) and made_each <= reasoning)

    def terminator(self) -> bytes:
        return self._last

    def error(self, code: int, message: str) -> list[bytes]:
        number = self._number(self._answer.lengths[0])
        return [_numbered(number, b"error", b'"code":"%d","message":%s,"param":null' % (code, _string(message)))]

    def body(self, cached_tokens: int, made_each: int, finish_reason: str | None) -> bytes:
        return self._finished(cached_tokens, made_each, finish_reason)[1]

    @property
    def _text_index(self) -> int:
        return 1 if self._answer.reasoning_tokens else 0

    def _number(self, token: int) -> int:
        """Return the sequence number of the event that begins with a token, as if each had an event of its own."""
        reasoning = self._answer.reasoning_tokens
        return _OPENING_EVENTS + token + (_SWITCH_EVENTS if reasoning and token >= reasoning else 0)

    def _finished(self, cached_tokens: int, made_each: int, finish_reason: str | None) -> tuple[bytes, bytes]:
        """Return the last event's name and the whole response."""
        answer = self._answer
        end = min(made_each, answer.lengths[0])
        reasoned = min(answer.reasoning_tokens, end)
        items = [self._item(0, reasoned, is_reasoning=True)] if reasoned else []
        if end > reasoned:
            items.append(self._item(reasoned, end, is_reasoning=False))
        usage = b"null"
        if self._plan.usage != "missing":
            prompt, done = self._script.order.prompt_tokens, distorted_usage(self._plan, answer.generated(made_each), final=True)
            usage = (
                b'{"input_tokens":%d,"input_tokens_details":{"cached_tokens":%d},"output_tokens":%d,'
                b'"output_tokens_details":{"reasoning_tokens":%d,"tool_output_tokens":0},"total_tokens":%d}'
                % (prompt, cached_tokens if self._script.with_details else 0, done, reasoned, prompt + done)
            )
        reason = finish_reason or answer.finish_reasons[0]
        if reason == "abort":
            return b"response.failed", self._response(b"failed", b",".join(items), usage)
        status = b"incomplete" if reason == "length" else b"completed"
        return b"response." + status, self._response(status, b",".join(items), usage)

    def _response(self, status: bytes, items: bytes, usage: bytes) -> bytes:
        script = self._script
        details = b'{"reason":"max_output_tokens"}' if status == b"incomplete" else b"null"
        return (
            b'{"id":%s,"created_at":%d,"incomplete_details":%s,"instructions":null,"metadata":null,"model":%s,"object":"response",'
            b'"output":[%s],"parallel_tool_calls":true,"temperature":1.0,"tool_choice":"auto","tools":[],"top_p":1.0,"background":false,'
            b'"max_output_tokens":%s,"previous_response_id":null,"reasoning":null,"service_tier":"auto","status":"%s","text":null,'
            b'"truncation":"disabled","usage":%s}'
            % (
                _string("resp_" + script.answer_id),
                script.created_at_seconds,
                details,
                _string(script.model),
                items,
                b"null" if script.order.tokens_max is None else b"%d" % script.order.tokens_max,
                status,
                usage,
            )
        )

    def _begin_item(self, number: int, *, is_reasoning: bool) -> list[bytes]:
        index = 0 if is_reasoning else self._text_index
        place = b'"item_id":"%s","output_index":%d,"content_index":0' % (self._item_id(is_reasoning=is_reasoning), index)
        part = self._part(b"", is_reasoning=is_reasoning)
        return [
            _numbered(
                number, b"response.output_item.added", b'"output_index":%d,"item":%s' % (index, self._item(0, 0, is_reasoning=is_reasoning))
            ),
            _numbered(number + 1, b"response.content_part.added", b'%s,"part":%s' % (place, part)),
        ]

    def _end_item(self, number: int, end: int, *, is_reasoning: bool) -> list[bytes]:
        answer = self._answer
        index = 0 if is_reasoning else self._text_index
        first = 0 if is_reasoning else answer.reasoning_tokens
        text = answer.text(0, first, max(first, end))
        place = b'"item_id":"%s","output_index":%d,"content_index":0' % (self._item_id(is_reasoning=is_reasoning), index)
        name = b"response.reasoning_text.done" if is_reasoning else b"response.output_text.done"
        item = self._item(first, max(first, end), is_reasoning=is_reasoning)
        return [
            _numbered(number, name, b'%s,"text":"%s","logprobs":[]' % (place, text)),
            _numbered(number + 1, b"response.content_part.done", b'%s,"part":%s' % (place, self._part(text, is_reasoning=is_reasoning))),
            _numbered(number + 2, b"response.output_item.done", b'"output_index":%d,"item":%s' % (index, item)),
        ]

    def _item(self, first: int, last: int, *, is_reasoning: bool) -> bytes:
        content = self._part(self._answer.text(0, first, last), is_reasoning=is_reasoning) if last > first else b""
        item_id = self._item_id(is_reasoning=is_reasoning)
        if is_reasoning:
            return b'{"id":"%s","summary":[],"type":"reasoning","content":[%s],"encrypted_content":null,"status":null}' % (item_id, content)
        status = b"completed" if last > first else b"in_progress"
        return b'{"id":"%s","content":[%s],"role":"assistant","status":"%s","type":"message"}' % (item_id, content, status)

    def _item_id(self, *, is_reasoning: bool) -> bytes:
        digest = hashlib.blake2b(self._script.answer_id.encode(), digest_size=16).hexdigest().encode()
        return (b"rs_" if is_reasoning else b"msg_") + digest

    def _part(self, text: bytes, *, is_reasoning: bool) -> bytes:
        if is_reasoning:
            return b'{"text":"%s","type":"reasoning_text"}' % text
        return b'{"annotations":[],"text":"%s","type":"output_text","logprobs":[]}' % text

    def _delta(self, token: int, text: bytes, *, is_reasoning: bool) -> bytes:
        name = b"response.reasoning_text.delta" if is_reasoning else b"response.output_text.delta"
        index = 0 if is_reasoning else self._text_index
        place = b'"item_id":"%s","output_index":%d,"content_index":0' % (self._item_id(is_reasoning=is_reasoning), index)
        return _numbered(self._number(token), name, b'%s,"delta":"%s","logprobs":[]' % (place, text))


class _Embeddings:
    """Answers of vLLM's pooling route. It has one JSON body and never a stream."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def body(self, cached_tokens: int, made_each: int, finish_reason: str | None) -> bytes:
        del made_each, finish_reason  # nothing is generated
        script = self._script
        tokens = script.order.prompt_tokens
        details = b'{"cached_tokens":%d}' % cached_tokens if script.with_details else b"null"
        usage = b"null"
        if script.plan.usage != "missing":
            usage = b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":0,"prompt_tokens_details":%s}' % (
                distorted_usage(script.plan, tokens, final=True),
                tokens,
                details,
            )
        return b'{"id":%s,"object":"list","created":%d,"model":%s,"data":[%s],"usage":%s}' % (
            _string("embd-" + script.answer_id),
            script.created_at_seconds,
            _string(script.model),
            b",".join(
                b'{"index":%d,"object":"embedding","embedding":%s}' % (index, self._vector(prompt))
                for index, prompt in enumerate(script.order.prompts)
            ),
            usage,
        )

    def _vector(self, prompt: Prompt) -> bytes:
        dimensions = self._script.dimensions
        raw = hashlib.shake_128(prompt.data).digest(2 * dimensions)
        # Sixteenths between -1 and 1: exact in float32 and float64, so both encodings say the same number.
        values = [((raw[2 * i] % 33) - 16) / 16 for i in range(dimensions)]
        if self._script.order.base64_floats:
            return b'"%s"' % base64.b64encode(struct.pack(f"<{dimensions}f", *values))
        return msgspec.json.encode(values)


class _Scores:
    """Answers of vLLM's routes for reranking and scoring: a score for each document, which follows from its text."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def body(self, cached_tokens: int, made_each: int, finish_reason: str | None) -> bytes:
        del cached_tokens, made_each, finish_reason  # nothing is generated
        script = self._script
        tokens = script.order.prompt_tokens
        answer: dict[str, object] = {"id": f"{script.order.endpoint}-{script.answer_id}", "model": script.model}
        if script.plan.usage != "missing":
            answer["usage"] = {"prompt_tokens": distorted_usage(script.plan, tokens, final=True), "total_tokens": tokens}
        scores = [hashlib.blake2b(prompt.data).digest()[0] / 256 for prompt in script.order.prompts]
        if script.order.endpoint == "score":
            answer |= {"object": "list", "created": script.created_at_seconds}
            answer["data"] = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
        else:
            ranked = sorted(enumerate(scores), key=lambda each: (-each[1], each[0]))[: script.order.dimensions]
            answer["results"] = [{"index": index, "relevance_score": score} for index, score in ranked]
        return msgspec.json.encode(answer)


# Errors


def nested_error(code: int, message: str, kind: str | None = None, param: str | None = None) -> bytes:
    """Return the error body of vLLM and OpenAI, with the integer code that vLLM sends. `kind` defaults to the status'
    name.
    """
    fields = {"message": message, "type": kind or _phrase(code), "param": param, "code": code}
    return msgspec.json.encode({"error": fields})


def error_body(endpoint: Endpoint | None, style: StatusBody, code: int, message: str) -> tuple[bytes, bytes]:
    """An injected error: its body and content type. `nested` takes the shape of the API that was called."""
    if style == "empty":
        return b"", b""
    if style == "html":
        title = f"{code} {_phrase(code)}"
        page = f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"
        return page.encode(), b"text/html"
    if style == "string":
        return msgspec.json.encode({"error": message}), JSON
    if style == "flat":
        flat = {"object": "error", "message": message, "type": _phrase(code), "param": None, "code": code}
        return msgspec.json.encode(flat), JSON
    if endpoint == "messages":
        return anthropic_error(_phrase(code), message), JSON
    return nested_error(code, message), JSON


def anthropic_error(kind: str, message: str) -> bytes:
    """The error body of vLLM's Anthropic route, which carries vLLM's type names, not Anthropic's."""
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}})


def _phrase(code: int) -> str:
    try:
        return _KINDS.get(code) or HTTPStatus(code).phrase
    except ValueError:
        return "Error"


# Pieces


def _string(text: str) -> bytes:
    return msgspec.json.encode(text)


def _named(event: bytes, fields: bytes) -> bytes:
    return b'event: %s\ndata: {"type":"%s",%s}\n\n' % (event, event, fields)


def _numbered(number: int, event: bytes, fields: bytes) -> bytes:
    return _named(event, b'%s,"sequence_number":%d' % (fields, number))


def _block_start(index: int, block: bytes) -> bytes:
    return _named(b"content_block_start", b'"content_block":%s,"index":%d' % (block, index))


def _block_delta(index: int, delta: bytes) -> bytes:
    return _named(b"content_block_delta", b'"delta":%s,"index":%d' % (delta, index))


def _block_stop(index: int) -> bytes:
    return _named(b"content_block_stop", b'"index":%d' % index)
