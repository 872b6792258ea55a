"""Faults of engines as they occur in the field, on command.

A fault spec is `name[@number][:word...]`, several joined by `+`. It comes with a request (header `x-sim-fault`, or
the part of the model name after `!`, since a gateway strips foreign headers) or by chance from
`SimulatorSettings.fault_rates`. `k` counts content chunks of a stream, the role chunk not included; where an answer
has fewer than k, the fault strikes after its last content chunk, so a fault that was asked for always happens. JSON
answers have the same faults at the same moments, where they make sense.

Spec                What happens                                           Contract case it stands for
------------------  -----------------------------------------------------  -------------------------------------------
Before the answer
status@CODE[:BODY]  that status. BODY: nested (default), flat, string,     nested, flat, string error bodies; 503
                    html, empty; then [:retry-after=SECONDS]               without, 429 with Retry-After; a captive
                                                                           portal is status@200:html
drop[:fin]          hangs up (RST; fin: FIN) without a byte                engine process gone
hang                takes the request, never sends a byte                  hang before headers
error@0[:CODE]      200 stream whose first event is an error, [DONE]       SGLang's full queue
huge-header[@KB]    an answer header of KB KiB (default 1024)              1 MB header
no-type             no content-type                                        a proxy's bad manners
length:long         content-length 4 too long, then FIN                    wrong content-length
length:short        content-length 4 too short                             the rest poisons the connection
In the middle
error@k[:CODE]      error event after k chunks, then [DONE]                error event on a 200 stream, [DONE] after
                                                                           it
cut@k[:fin]         RST (fin: FIN) after k chunks                          stream cut without [DONE]
cut-bytes@b[:fin]   the same after b bytes of body, at the latest before   cut inside an event or a JSON body
                    the terminator
stall@k             silent after k chunks (0: after the headers) until     silent hang after headers or mid-stream
                    the client leaves
abort@k             ends after k chunks, finish_reason "abort"             vLLM's shutdown: a failure in success'
                                                                           clothes
At the end
no-done             body ends cleanly without the terminator               clean end without [DONE]
junk                one more event after the terminator                    bytes after [DONE]
finish-separate     finish_reason on a chunk of its own, empty delta       finish chunk without content (SGLang,
                                                                           Dynamo)
stale[@ms]          closes the kept-alive connection ms (default 0) after  keep-alive closed: stale pooled connection
                    the answer, unannounced
Usage
usage:finish        on the finish chunk, choices not empty                 transformers serve, llm-katan
usage:each          on every chunk, asked for or not; none after           usage on every chunk
usage:missing       never                                                  usage missing
usage:negative      completion_tokens is -1 at the end                     nonsense from upstream
usage:shrinking     running usage falls from chunk to chunk                nonsense from upstream
usage:inflated      completion_tokens is 1000 times the truth              nonsense from upstream
Encoding
role-null           role chunk with content null                           llama.cpp
comments            an SSE comment before every event                      SSE comments (--sse-keep-alive-interval)
crlf                CRLF line ends                                         the SSE standard allows them
drip[@n]            body leaves n bytes (default 7) per write, a write     bytes split anywhere
                    per ms
batch@n             n chunks per write                                     several events per read
huge-line[@KB]      the first content event grows by KB KiB (1024)         a line longer than any buffer
utf8@k              chunk k (from 1) holds bytes that are not UTF-8        bad UTF-8
json@k              chunk k (from 1) is half an event                      bad JSON
Not faults, but settings for one request
ttft@ms             first token after ms                                   slow prefill
itl@ms              gap between tokens in ms                               slow decode
reasoning@n         the first n tokens are reasoning                       completion_tokens_details
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

HeadFault = Literal["", "drop", "hang"]
StatusBody = Literal["nested", "flat", "string", "html", "empty"]
UsageFault = Literal["", "finish", "each", "missing", "negative", "shrinking", "inflated"]
LengthFault = Literal["", "long", "short"]
Halt = Literal["error", "cut", "stall", "abort"]

_SPEC_PART = re.compile(r"([a-z0-9-]+)(?:@([0-9]{1,9}))?((?::[A-Za-z0-9=-]+)*)\Z")
_SPEC_CHARACTERS_MAX = 256  # longer ones are a mistake, and they travel in log lines of whoever tests
_DRIP_BYTES = 7  # odd on purpose: it never falls in step with lines or UTF-8 characters
_HUGE_KILOBYTES = 1024  # above the usual 64 KiB read buffers and every sane line limit


@dataclass(frozen=True, slots=True)
class Plan:
    """All faults of one request. The default is a healthy answer. Fields: see the table above."""

    head: HeadFault = ""
    status: int | None = None
    status_body: StatusBody = "nested"
    retry_after_seconds: str | None = None
    header_bytes: int = 0
    no_type: bool = False
    length: LengthFault = ""
    halt: Halt | None = None
    halt_at: int = 0
    error_code: int = 500
    cut_bytes: int | None = None
    cut_fin: bool = False
    no_done: bool = False
    junk: bool = False
    finish_separate: bool = False
    stale_seconds: float | None = None
    usage: UsageFault = ""
    role_null: bool = False
    comments: bool = False
    crlf: bool = False
    drip_bytes: int = 0
    batch: int = 1
    huge_bytes: int = 0
    utf8_at: int | None = None
    json_at: int | None = None
    ttft_seconds: float | None = None
    inter_token_seconds: float | None = None
    reasoning_tokens: int | None = None


HEALTHY = Plan()


def parse(spec: str) -> Plan:
    """The plan that a spec describes; "" is the healthy one. Where two parts say the same thing, the later one
    counts.

    Raises ValueError with a text that names the part at fault.
    """
    if not spec:
        return HEALTHY
    if len(spec) > _SPEC_CHARACTERS_MAX:
        raise ValueError(f"fault spec: longer than {_SPEC_CHARACTERS_MAX} characters")
    changes: dict[str, Any] = {}
    for part in spec.split("+"):
        match = _SPEC_PART.match(part.strip())
        rule = None if match is None else RULES.get(match[1])
        if match is None or rule is None:
            raise ValueError(f"fault spec: unknown fault {part!r}")
        number = None if match[2] is None else int(match[2])
        try:
            changes |= rule(number, match[3].split(":")[1:])
        except ValueError as error:
            raise ValueError(f"fault spec: {part!r}: {error}") from None
    return Plan(**changes)


# A rule turns `@number` and `:words` into the fields of `Plan` that they set.
Rule = Callable[[int | None, list[str]], dict[str, Any]]


def _at_least(number: int | None, minimum: int) -> int:
    if number is None or number < minimum:
        raise ValueError(f"needs @number of at least {minimum}")
    return number


def _word(words: list[str], *allowed: str) -> str | None:
    if len(words) > 1 or (words and words[0] not in allowed):
        raise ValueError(f"takes {'one of ' + ', '.join(allowed) if allowed else 'no words'}")
    return words[0] if words else None


def _flag(field: str, value: object = True) -> Rule:
    def rule(number: int | None, words: list[str]) -> dict[str, Any]:
        _word(words)
        if number is not None:
            raise ValueError("takes no number")
        return {field: value}

    return rule


def _numbered(field: str, default: int | None = None, *, minimum: int = 0, unit: float = 1) -> Rule:
    def rule(number: int | None, words: list[str]) -> dict[str, Any]:
        _word(words)
        return {field: _at_least(default if number is None else number, minimum) * unit}

    return rule


def _worded(field: str, *allowed: str) -> Rule:
    def rule(number: int | None, words: list[str]) -> dict[str, Any]:
        word = _word(words, *allowed)
        if number is not None or word is None:
            raise ValueError(f"takes one of {', '.join(allowed)}, and no number")
        return {field: word}

    return rule


def _halting(halt: Halt, minimum: int = 0) -> Rule:
    def rule(number: int | None, words: list[str]) -> dict[str, Any]:
        fin = _word(words, *(("fin",) if halt == "cut" else ())) == "fin"
        changes: dict[str, Any] = {"halt": halt, "halt_at": _at_least(number, minimum), "cut_fin": fin}
        return changes | {"finish_separate": True} if halt == "abort" else changes

    return rule


def _status(number: int | None, words: list[str]) -> dict[str, Any]:
    status = _at_least(number, 200)
    if status > 599:
        raise ValueError("status is at most 599")
    changes: dict[str, Any] = {"status": status}
    for word in words:
        if word.startswith("retry-after="):
            changes["retry_after_seconds"] = word.removeprefix("retry-after=")
        elif word in ("nested", "flat", "string", "html", "empty"):
            changes["status_body"] = word
        else:
            raise ValueError(f"unknown word {word!r}")
    return changes


def _drop(number: int | None, words: list[str]) -> dict[str, Any]:
    if number is not None:
        raise ValueError("takes no number")
    return {"head": "drop", "cut_fin": _word(words, "fin") == "fin"}


def _hang(number: int | None, words: list[str]) -> dict[str, Any]:
    return _flag("head", "hang")(number, words) | {"halt": "stall", "halt_at": 0}


def _error(number: int | None, words: list[str]) -> dict[str, Any]:
    if len(words) > 1 or (words and not words[0].isdigit()):
        raise ValueError("takes one code")
    return {"halt": "error", "halt_at": _at_least(number, 0), "error_code": int(words[0]) if words else 500}


def _cut_bytes(number: int | None, words: list[str]) -> dict[str, Any]:
    return {"cut_bytes": _at_least(number, 0), "cut_fin": _word(words, "fin") == "fin"}


RULES: dict[str, Rule] = {
    "status": _status,
    "drop": _drop,
    "hang": _hang,
    "huge-header": _numbered("header_bytes", _HUGE_KILOBYTES, minimum=1, unit=1024),
    "no-type": _flag("no_type"),
    "length": _worded("length", "long", "short"),
    "error": _error,
    "cut": _halting("cut"),
    "cut-bytes": _cut_bytes,
    "stall": _halting("stall"),
    "abort": _halting("abort", minimum=1),
    "no-done": _flag("no_done"),
    "junk": _flag("junk"),
    "finish-separate": _flag("finish_separate"),
    "stale": _numbered("stale_seconds", 0, unit=0.001),
    "usage": _worded("usage", "finish", "each", "missing", "negative", "shrinking", "inflated"),
    "role-null": _flag("role_null"),
    "comments": _flag("comments"),
    "crlf": _flag("crlf"),
    "drip": _numbered("drip_bytes", _DRIP_BYTES, minimum=1),
    "batch": _numbered("batch", minimum=2),
    "huge-line": _numbered("huge_bytes", _HUGE_KILOBYTES, minimum=1, unit=1024),
    "utf8": _numbered("utf8_at", minimum=1),
    "json": _numbered("json_at", minimum=1),
    "ttft": _numbered("ttft_seconds", unit=0.001),
    "itl": _numbered("inter_token_seconds", unit=0.001),
    "reasoning": _numbered("reasoning_tokens"),
}

# What the encoding faults do to one event, or to a JSON body


def spoil(event: bytes, plan: Plan, chunk: int) -> bytes:
    """The bytes of content chunk `chunk` (from 1) with its faults. A JSON body is chunk 1."""
    if plan.huge_bytes and chunk == 1:
        event = event.replace(b"{", b'{"sim_padding":"' + b"x" * plan.huge_bytes + b'",', 1)
    if plan.utf8_at == chunk:
        for key in (b'"content":"', b'"text":"', b'"reasoning":"', b'"thinking":"'):
            if key in event:
                event = event.replace(key, key + b"\xff\xfe", 1)
                break
    if plan.json_at == chunk:
        event = event[: len(event) // 2] + (b"\n\n" if event.endswith(b"\n\n") else b"")
    return event


def dress(event: bytes, plan: Plan) -> bytes:
    """An SSE event with the faults that every event of the stream has."""
    if plan.comments:
        event = b": keep-alive\n\n" + event
    return event.replace(b"\n", b"\r\n") if plan.crlf else event


def distorted_usage(plan: Plan, completion_tokens: int, *, final: bool) -> int:
    """Return what the usage says about `completion_tokens`. Whether it is said at all is the dialect's business."""
    if plan.usage == "negative" and final:
        return -1
    if plan.usage == "inflated":
        return completion_tokens * 1000
    if plan.usage == "shrinking":
        return max(0, 1000 - completion_tokens)
    return completion_tokens
