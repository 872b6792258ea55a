"""Streams of OpenAI's chat completions and completions.

A stream is relayed verbatim but for three things: usage that the client did not ask for is removed (the gateway always asks the engine
for it, because it bills), the upstream's name of the model becomes the public one, and an engine's error becomes a fault. Every event is
read, because engines report death and overload inside a 200 stream and still end it with [DONE].
"""

import re
from typing import Any, Final

import msgspec

from tollway.domain import faults
from tollway.domain.billing_classes import NOTHING, Quantities
from tollway.domain.faults import Fault
from tollway.domain.usage import TOKENS_MAX, Anomaly, UsageSource
from tollway.gateway.dialects.answers import AnswerContext, UsageReport
from tollway.gateway.dialects.engine_errors import is_error_event, is_named_error, read_fault
from tollway.gateway.dialects.engine_json import ABSENT, NULL, check_text, decode, is_absent
from tollway.gateway.dialects.engine_usage import cap_input, cap_output, merge_sequences
from tollway.gateway.dialects.openai_answers import list_choices, read_finish, read_usage
from tollway.gateway.dialects.openai_shapes import CountedChoice, CountedEvent, Delta, Event, RegularEvent
from tollway.native import EventTemplate
from tollway.wire import bodies, sse

DONE = b"data: [DONE]\n\n"

_USAGE_CHUNK = frozenset({"id", "object", "created", "model", "system_fingerprint"})
"""Members of a finish chunk that the usage chunk made from it keeps."""


_TEXT: Final = b'"content":"'
_USAGE: Final = b',"usage":{"prompt_tokens":'
_COUNTS = re.compile(rb'(,"usage":\{"prompt_tokens":\d+,"total_tokens":)\d+,"completion_tokens":\d+\}\}\n\n')
"""The end of a regular event, with its counts."""
SHAPES_MAX = 8
"""Events of a stream that are looked at for the shape; where eight do not have it, the engine writes another one."""

_OUTPUT_MEMBERS = tuple(Delta.__struct_fields__)
"""Members of a delta that carry output."""
_EMPTY = frozenset({b"null", b'""', b"[]", b"{}", b"0", b"false"})

_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_event: Final = msgspec.json.Decoder(Event)
_counted_event: Final = msgspec.json.Decoder(CountedEvent)
_regular = msgspec.json.Decoder(RegularEvent)


class OpenAIStream:
    """Reads one stream's events. `used` is the best knowledge of what was used so far, from `source`; `output` counts
    the tokens of output in it; `terminated` once [DONE] was seen.

    Nearly all events of a stream are alike, so there are two ways to read one. `read_regular` takes bytes that are exactly one event as
    engines write it in mid-stream, and knows in a microsecond that it is one; it says None to anything else. `read` takes any event.
    Both come to the same result; the tests hold them against each other.
    """

    __slots__ = (
        "_context",
        "_counted",
        "_doubted",
        "_doubted_bytes",
        "_events",
        "_finishes",
        "_hide_continuous",
        "_hide_usage",
        "_output_most",
        "_owed",
        "_parts",
        "_prompt_tokens",
        "_rename",
        "_reported",
        "_shapes_left",
        "_used",
        "anomaly",
        "output",
        "source",
        "template",
        "terminated",
        "terminator",
    )

    def __init__(self, context: AnswerContext) -> None:
        """Count events that carry output until the engine has reported running usage that can be believed."""
        self._context = context
        self._hide_usage = context.hide_usage
        self._hide_continuous = context.hide_continuous
        self._output_most = TOKENS_MAX if context.output_tokens_max is None else context.output_tokens_max
        self._owed: dict[str, Any] | None = None
        self._rename: tuple[bytes, bytes] | None = None
        if context.upstream_model != context.public_model:
            encode = msgspec.json.encode
            self._rename = (b'"model":' + encode(context.upstream_model), encode(context.public_model))
        self._events = 0
        self._counted = 0
        self._doubted = 0  # the largest running total that was not believed
        self._doubted_bytes = 0  # of the events whose reports were not believed, since the last one that was
        self.output = 0
        self._reported = False
        self._finishes = 0
        self._parts: list[UsageReport] | None = None  # of an engine that reports each sequence by itself
        self._prompt_tokens = -1  # of the last report that `read` believed; while negative, nothing is regular
        self.template: EventTemplate | None = None  # of the last regular event
        self._shapes_left = SHAPES_MAX
        self._used: Quantities | None = None
        self.source = UsageSource.NONE
        self.anomaly: Anomaly | None = None
        self.terminated = False
        self.terminator = DONE

    def read_regular(self, data: bytes, start: int, end: int) -> bytes | None:
        """Return what to relay of data[start:end] if it is one regular event, and update `output`; None if `read` must look at it.

        Regular: an event that only adds output to what `read` has believed before, of an engine that reports running usage as the last
        member.
        """
        if self._prompt_tokens < 0:
            return None
        if not data.startswith(b"data: {", start) or not data.endswith(b"}}\n\n", start, end):
            return None
        if data.count(b"\n", start, end) != 2 or data.find(b"\r", start, end) >= 0 or not data.isascii():
            return None
        try:
            event = _regular.decode(memoryview(data)[start + 6 : end])
        except (msgspec.DecodeError, RecursionError):
            return None
        usage = event.usage
        output = usage.completion_tokens
        self._catch_up()
        before = self.output
        if len(event.choices) != 1 or usage.prompt_tokens != self._prompt_tokens or not before <= output <= self._output_most:
            return None
        if output - before > end - start or self._doubted_bytes:
            return None
        template = self.template
        if template is not None:
            template.output = output
        elif self._shapes_left:
            self._shapes_left -= 1
            text_at = data.find(_TEXT, start, end) + len(_TEXT)
            text_end = data.find(b'"', text_at, end)
            usage_at = data.rfind(_USAGE, start, end)
            if start + len(_TEXT) < text_at <= text_end < usage_at and data.find(b"\\", start, end) < 0:  # so no quote is part of a text
                counts = _COUNTS.fullmatch(data, usage_at, end)
                if counts is not None:
                    most, hides, kept = self._output_most, self._hide_continuous, usage_at - text_end
                    self.template = EventTemplate(data[start:text_at], data[text_end:usage_at] + counts[1], kept, output, most, hides)
        if not self._hide_continuous:
            self.output = output
            self._counted += 1
            return data[start:end]
        at = data.rfind(b',"usage":{', start, end)
        tail = data[at : end - 2]
        opened = tail.rstrip(b"}")
        if at < 0 or opened.count(b"{") + 1 != len(tail) - len(opened):
            return None  # usage is not the last member: what follows it must not be lost
        self.output = output
        self._counted += 1
        return data[start:at] + b"}\n\n"

    def read(self, event: bytes) -> bytes | None:
        """Read one event (as `wire.sse.EventReader` gives it); returns what to relay, or None for nothing. Raises Fault.

        [DONE] is never returned: it is the last byte of a success, which leaves only after FINAL is durable.
        """
        self._catch_up()
        data = sse.find_data(event)
        if data is None or self.terminated:
            if not self.terminated and is_named_error(event):
                raise read_fault(b"", 200, self._context.engine, first=not self._events)
            return None
        if data == b"[DONE]":
            if not self._events:
                raise Fault(faults.UPSTREAM_INVALID, detail="a stream without events")
            self.terminated = True
            self._prompt_tokens = -1
            self._drop_template()
            return None if self._owed is None else b"data: " + bodies.join(self._owed) + b"\n\n"
        if b"\n" in data:
            data = data.replace(b"\n", b" ")  # of several data lines one is made; inside JSON a line end is nothing but space
        counting = not self._reported
        read = _decode(data, counting=counting)
        choices = read.choices
        if not is_absent(read.error) or (choices is None and is_error_event(event, data)):
            raise read_fault(data, 200, self._context.engine, first=not self._events)
        self._events += 1
        for choice in choices or ():
            reason = choice.finish_reason
            if reason is not None:
                self._finishes += 1
                self._prompt_tokens = -1
                self._drop_template()
                if reason == "abort":
                    raise Fault(faults.UPSTREAM_FAILED, detail="the engine aborted the request")
        if counting:
            if choices:
                self._count(choices)  # type: ignore[arg-type]
        elif choices and not self._finishes:
            self._counted += 1
        raw = read.usage
        if raw:
            last = not choices
            if raw != NULL:
                self._take_usage(raw, len(event) + 2, final=last or self._finishes >= self._context.sequences)
                if last:
                    self._owed = None
                    if self._hide_usage:
                        return None
                elif self._finishes and self._hide_continuous and not self._hide_usage:
                    # Some engines report on the finish chunk and never again. The client asked for a chunk of its own at the end.
                    self._owed = {name: value for name, value in bodies.members(self._renamed(data)).items() if name in _USAGE_CHUNK}
                    self._owed |= {"choices": b"[]", "usage": bytes(raw)}
            if self._hide_continuous and not (last and not self._hide_usage):
                tail = b',"usage":' + raw + b"}"
                if data.endswith(tail):
                    data = data[: -len(tail)] + b"}"
                else:
                    members = bodies.members(data)
                    del members["usage"]
                    data = bodies.join(members)
        if self._rename is not None:
            data = self._renamed(data)
        return b"data: " + data + b"\n\n"

    @property
    def used(self) -> Quantities | None:
        """The best knowledge of what was used so far; None while there is none."""
        self._catch_up()
        used = self._used
        if used is not None and used.output_tokens != self.output:
            used = self._used = _with_output_tokens(used, self.output)
        return used

    def bound_output(self, tokens: int) -> None:
        """Call no event regular any more that brings the output above `tokens`."""
        self._catch_up()
        most = self._context.output_tokens_max
        self._output_most = tokens if most is None else min(tokens, most)
        self._drop_template()
        self._shapes_left = SHAPES_MAX

    def end_early(self, relayed: bytes, used: Quantities) -> bytes:
        """Return what ends the stream as if its length were reached, in place of the events `relayed`. A choice that had ended before them
        does not end again."""
        chunks = [msgspec.json.decode(line[6:]) for line in relayed.split(b"\n") if line.startswith(b"data: {")]
        choices = [choice for chunk in chunks for choice in chunk.get("choices") or ()]
        made = {name: value for chunk in chunks[:1] for name, value in chunk.items() if name in _USAGE_CHUNK}
        ends = []
        if choices and (not self._finishes or any(choice.get("finish_reason") for choice in choices)):
            output: dict[str, object] = {"text": ""} if "text" in choices[0] else {"delta": {}}
            last = {"index": 0, "finish_reason": "length"} | output
            ends.append(made | {"choices": [last]})
        if chunks and not self._hide_usage:
            usage = {"prompt_tokens": used.input_tokens, "completion_tokens": used.output_tokens}
            ends.append(made | {"choices": [], "usage": usage | {"total_tokens": sum(usage.values())}})
        return b"".join(b"data: " + msgspec.json.encode(each) + b"\n\n" for each in ends) + DONE

    def _renamed(self, data: bytes) -> bytes:
        """The event under the model's public name; the engine's spelling is usually the compact one."""
        if self._rename is None:
            return data
        before, name = self._rename
        renamed = data.replace(before, b'"model":' + name, 1)
        if renamed == data and b'"model"' in data:
            members: dict[str, Any] = dict(bodies.members(data))
            if "model" in members:
                members["model"] = name
                return bodies.join(members)
        return renamed

    def _take_usage(self, raw: msgspec.Raw, event_bytes: int, *, final: bool) -> None:
        """Take a report over what is known, as far as it can be believed.

        A running total that rises by more than a token for each byte of its event is not believed; one that falls leaves the larger one
        standing, which was true when it was made. The final total decides: one absurd running total does not outlive it. It is only held to
        the number of events that carried output, for so many tokens were delivered.
        """
        report = read_usage(raw)
        if self._context.sequences > 1 and self._context.engine.reports_one_sequence:
            parts = self._parts = [*(self._parts or ()), report]
            if len(parts) > self._context.sequences:
                return
            report = merge_sequences(parts, self._context)
            final = report.has_output
        if report.anomaly is not None:
            self.anomaly = report.anomaly
        if not (report.has_input or report.has_output):
            return
        context, before, used = self._context, self.used or NOTHING, report.used
        has_output = report.has_output and (final or context.sequences == 1)
        known, reported = before.input_tokens, used.input_tokens
        if known and not 0 < reported <= context.input_tokens_max:
            if reported:
                self.anomaly = Anomaly.INFLATED
            used = used.with_input_of(before)
        if not has_output:
            used = before.with_input_of(used)
        total = used.output_tokens
        if not final and total - self.output > event_bytes + self._doubted_bytes:
            self._doubted = max(self._doubted, total)
            self._doubted_bytes += event_bytes
            self._drop_template()
            self.anomaly = self.anomaly or Anomaly.INFLATED
            return
        if final and 0 < self._doubted <= total and self.anomaly is Anomaly.INFLATED:
            self.anomaly = None  # the running totals were right, the events between them were hidden
        held = cap_output(cap_input(used, context.input_tokens_max), context.output_tokens_max)
        if held is not used:
            self.anomaly = Anomaly.INFLATED
        if self._reported and held.output_tokens < self.output:
            self.anomaly = Anomaly.SHRINKING
            if not final:
                return
            delivered = min(self._count_events(), self.output)
            if held.output_tokens < delivered:
                held = _with_output_tokens(held, delivered)
        self._used = held
        self.output = total = held.output_tokens
        self._doubted_bytes = 0
        regular = self._rename is None and not context.counting and held.output == total and not final and context.sequences == 1
        self._prompt_tokens = held.input_tokens if regular else -1
        self._drop_template()  # it holds the number of prompt tokens
        self._reported = self._reported or has_output
        if self._reported:
            self.source = UsageSource.ENGINE_FINAL if final and has_output else UsageSource.ENGINE_CONTINUOUS
        else:
            self.source = UsageSource.COUNTED

    def _count_events(self) -> int:
        """Return how many events carried output."""
        self._drop_template()
        return self._counted

    def _catch_up(self) -> None:
        """Take over the output of the events that the template has relayed."""
        if self.template is not None:
            self.output = self.template.output

    def _drop_template(self) -> None:
        """Forget the template, and keep how many events it took."""
        template = self.template
        if template is not None:
            self._counted += template.events
            self.template = None

    def _count(self, choices: list[CountedChoice]) -> None:
        for choice in choices:
            delta = choice.delta
            if choice.text or (
                delta is not None and (delta.content or delta.reasoning_content or delta.reasoning or delta.refusal or delta.tool_calls)
            ):
                self._counted += 1
        if self._counted:
            before = self._used or NOTHING
            self._used = before.with_plain_output(self._counted)
            self.output = self._counted
            self.source = UsageSource.COUNTED


def _with_output_tokens(used: Quantities, tokens: int) -> Quantities:
    """Return `used` with `tokens` of output in all: plain output makes up the difference."""
    return msgspec.structs.replace(used, output=tokens - (used.output_tokens - used.output))


def _decode(data: bytes, *, counting: bool) -> Event | CountedEvent:
    """Return an event of a stream. Only what is interpreted must have the type that the API gives it. Raises Fault upstream_invalid for
    anything but a JSON object in UTF-8."""
    try:
        read: Event | CountedEvent = _counted_event.decode(data) if counting else _event.decode(data)
        check_text(data)
    except (ValueError, RecursionError):
        members = decode(_object, data, "event")
        listed = members.get("choices", ABSENT)
        choices = None
        if bytes(listed).startswith(b"["):
            choices = [CountedChoice(read_finish(choice), "output" if _carries_output(choice) else None) for choice in list_choices(listed)]
        read = CountedEvent(choices, members.get("usage", ABSENT), members.get("error", ABSENT))
    return read


def _carries_output(choice: dict[str, msgspec.Raw]) -> bool:
    """Return whether a choice of any shape has text, or a delta with a member that carries output."""
    if bytes(choice.get("text", NULL)) not in _EMPTY:
        return True
    try:
        delta = _object.decode(choice.get("delta", NULL))
    except (msgspec.DecodeError, RecursionError):
        return False
    return any(bytes(delta.get(name, NULL)) not in _EMPTY for name in _OUTPUT_MEMBERS)
