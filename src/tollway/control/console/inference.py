"""One request of a person to a gateway, for the playground: sent by control with a short access token, and read as a stream.

A gateway is a client's counterpart here as anywhere: limits, budgets and prices are those of the key for which the token stands. Neither
the prompt nor the answer is kept or logged. What is read is bounded in bytes and in time.
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import httpx2
import msgspec

from tollway.control.authentication import token_exchange
from tollway.control.authentication.oauth import ExchangeRefused
from tollway.control.authorities import read_authorities
from tollway.control.plane import ControlPlane
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, Fault
from tollway.wire.sse import EventReader, EventTooLong, find_data

PATH = "/v1/chat/completions"

ANSWER_SECONDS_MAX = 120.0
"""Deadline of a whole answer."""

ANSWER_BYTES_MAX = 4 << 20
"""Largest answer that is read: events of OUTPUT_TOKENS_MAX tokens, of some hundred bytes each."""

OUTPUT_TOKENS_MAX = 4_096
"""Most output tokens that a request asks for."""

ACCEPTED_SECONDS_MAX = 5.0
"""Time for which a gateway may not know a key that was just made, as that of a revocation without push."""

RETRY_SECONDS = 0.2
"""Pause before a gateway, or control for a receipt, is asked again."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request of a person. `system`: empty for none. `output_tokens_max`: 1 to OUTPUT_TOKENS_MAX."""

    model: str
    system: str
    user: str
    output_tokens_max: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of an answer. `status`: of the gateway's answer, 0 without one. `request_id`: empty where the gateway gave none. `refusal`:
    what the gateway or the engine said where the answer is not whole; empty otherwise. Counts of tokens are None where none were given."""

    status: int
    request_id: str = ""
    refusal: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Refused(msgspec.Struct):
    message: str = ""


class _Event(msgspec.Struct):
    """An event of a stream, or the body of a refusal, as far as it is shown."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Refused | None = None


def read_prompt(model: str, system: str, user: str, output_tokens: str) -> Prompt:
    """Return the prompt of a form. Raises PARAMETER_INVALID."""
    if not model or not user.strip():
        raise Fault(PARAMETER_INVALID, param="model" if not model else "user", message="A request needs a model and a text.")
    is_number = output_tokens.isascii() and output_tokens.isdigit() and len(output_tokens) <= 9
    if not is_number or not 1 <= int(output_tokens) <= OUTPUT_TOKENS_MAX:
        raise Fault(PARAMETER_INVALID, param="output_tokens", message=f"Output tokens are a number from 1 to {OUTPUT_TOKENS_MAX}.")
    return Prompt(model, system, user, int(output_tokens))


def issue_token(plane: ControlPlane, organization_id: str, key_id: str) -> str:
    """Return a token for one request with a key of the organization. Raises RESOURCE_UNKNOWN, DATABASE_UNAVAILABLE. Blocks."""
    try:
        return token_exchange.issue_for_key(plane, organization_id, key_id).access_token
    except ExchangeRefused:
        raise Fault(RESOURCE_UNKNOWN) from None


async def ask(gateway_url: str, token: str, prompt: Prompt) -> AsyncGenerator[str | Outcome, None]:
    """Yield the pieces of the answer to a prompt as they come, and its outcome at the end. It never raises for what the gateway does."""
    messages = [{"role": "system", "content": prompt.system}] if prompt.system.strip() else []
    messages.append({"role": "user", "content": prompt.user})
    body = {
        "model": prompt.model,
        "messages": messages,
        "max_tokens": prompt.output_tokens_max,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json", "accept-encoding": "identity"}
    ends = asyncio.get_running_loop().time() + ANSWER_SECONDS_MAX
    accepted_by = asyncio.get_running_loop().time() + ACCEPTED_SECONDS_MAX
    status, request_id = 0, ""
    try:
        async with httpx2.AsyncClient(
            timeout=ANSWER_SECONDS_MAX, follow_redirects=False, trust_env=False, verify=read_authorities()
        ) as client:
            while True:
                async with client.stream("POST", gateway_url + PATH, content=msgspec.json.encode(body), headers=headers) as answer:
                    status, request_id = answer.status_code, answer.headers.get("x-request-id", "")
                    if status != 401 or asyncio.get_running_loop().time() >= accepted_by:
                        async for piece in _read(answer, ends):
                            yield piece
                        return
                await asyncio.sleep(RETRY_SECONDS)
    except (httpx2.HTTPError, httpx2.StreamError, TimeoutError):
        yield Outcome(status, request_id, "The gateway did not answer, or not to the end.")
    except (msgspec.DecodeError, EventTooLong):
        yield Outcome(status, request_id, "The answer cannot be read.")


async def _read(answer: httpx2.Response, ends: float) -> AsyncGenerator[str | Outcome, None]:
    """Yield what `ask` says of one answer. Raises TimeoutError, msgspec.DecodeError, EventTooLong, httpx2.HTTPError."""
    status, request_id = answer.status_code, answer.headers.get("x-request-id", "")
    reader, size, body = EventReader(), 0, bytearray()
    usage, refusal = None, ""
    pieces = answer.aiter_raw()
    while True:
        async with asyncio.timeout_at(ends):
            data = await anext(pieces, None)
        if data is None:
            break
        size += len(data)
        if size > ANSWER_BYTES_MAX:
            raise EventTooLong
        if status != 200:
            body += data
            continue
        for event in reader.feed(data):
            read = find_data(event)
            if read is None or read == b"[DONE]":
                continue
            found = msgspec.json.decode(read, type=_Event)
            usage = found.usage or usage
            refusal = found.error.message if found.error is not None else refusal
            text = "".join(choice.delta.content or "" for choice in found.choices)
            if text:
                yield text
    if status != 200:
        refused = msgspec.json.decode(body, type=_Event).error
        refusal = refused.message if refused is not None else "The gateway refused the request."
    counts = (None, None) if usage is None else (usage.prompt_tokens, usage.completion_tokens)
    yield Outcome(status, request_id, refusal, *counts)
