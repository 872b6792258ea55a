"""Errors of engines: each engine's own words, statuses and hints, and the fault that each stands for."""

from typing import Any

import msgspec
import pytest

from tests.fakes import Upstream
from tests.gateway.harness import STREAM_HEAD, Served, chat, completion, gateway, part, post, whole
from tests.gateway.test_streams import error_code
from tollway.domain import faults
from tollway.domain.catalog import Endpoint, Engine
from tollway.domain.faults import FaultKind
from tollway.engines.table import ENGINES
from tollway.gateway.dialects.engine_errors import read_answer_fault, read_fault, read_retry_after

NOW_US = 1_795_305_600_000_000
"""Sun, 22 Nov 2026 00:00:00 UTC."""

VLLM_NEW = (
    "You passed 3001 input tokens and requested 100 output tokens. However, the model's context length is only 2048 tokens, resulting in a "
    "maximum input length of 1948 tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value=3001)"
)
VLLM_OLD = "This model's maximum context length is 2048 tokens. However, you requested 3101 tokens (3001 in the messages)."
SGLANG = "The input (3001 tokens) is longer than the model's context length (2048 tokens)."
SGLANG_QUEUE = "Input length (3001 tokens) exceeds the maximum allowed length (2042 tokens). Use a shorter input."
SGLANG_TOTAL = "Requested token count exceeds the model's maximum context length of 2048 tokens. You requested 3101."
DYNAMO = "This model's maximum context length is 2048 tokens. However, your messages resulted in 3001 tokens. Please reduce the length."
LLAMACPP = "request (3001 tokens) exceeds the available context size (2048 tokens), try increasing it"
TRTLLM = "The sum of prompt length (3001.0), query length (0) should not exceed max_num_tokens (2048)"
ANTHROPIC = "prompt is too long: 200086 tokens > 200000 maximum"
TRTLLM_DEFAULT = "`default_max_tokens` (-93) must be greater than 0, `default_max_tokens` (-93) = max_seq_len (16385) - ..."


def nested(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message} | more}


def flat(message: str, **more: Any) -> dict[str, Any]:
    return {"object": "error", "message": message} | more


OF_DECODER = "The decoder prompt (length 9) is longer than the maximum model length of 8."
FULL = "Context size has been exceeded."
CONTEXT: dict[str, tuple[Engine, int, Any, str]] = {
    "vllm": (Engine.VLLM, 400, nested(VLLM_NEW, type="BadRequestError", param="input_tokens", code=400), VLLM_NEW),
    "vllm-old": (Engine.VLLM, 400, flat(VLLM_OLD, type="BadRequestError", code=400), VLLM_OLD),
    "vllm-decoder": (Engine.VLLM, 500, nested(OF_DECODER), OF_DECODER),
    "sglang": (Engine.SGLANG, 400, flat(SGLANG, type="BadRequestError", param=None, code=400), SGLANG),
    "sglang-total": (Engine.SGLANG, 400, flat(SGLANG_TOTAL, type="BadRequestError", code=400), SGLANG_TOTAL),
    "sglang-queue": (Engine.SGLANG, 200, nested(SGLANG_QUEUE, type="BadRequest", code=400), SGLANG_QUEUE),
    "sglang-own": (Engine.SGLANG, 200, nested(SGLANG_QUEUE, type="InternalServerError", code=500), SGLANG_QUEUE),
    "dynamo": (Engine.DYNAMO, 400, {"message": DYNAMO, "type": "Bad Request", "code": 400}, DYNAMO),
    "dynamo-worker": (Engine.DYNAMO, 500, {"message": VLLM_NEW, "type": "Internal Server Error", "code": 500}, VLLM_NEW),
    "llamacpp": (Engine.LLAMACPP, 400, nested(LLAMACPP, code=400, type="exceed_context_size_error"), LLAMACPP),
    "llamacpp-event": (Engine.LLAMACPP, 200, nested(LLAMACPP, code=400, type="exceed_context_size_error"), LLAMACPP),
    "llamacpp-type": (Engine.LLAMACPP, 200, nested("Too many.", type="exceed_context_size_error"), "Too many."),
    "llamacpp-500": (Engine.LLAMACPP, 500, nested(FULL, code=500, type="server_error"), FULL),
    "trtllm": (Engine.TRTLLM, 400, {"error": TRTLLM}, TRTLLM),
    "trtllm-object": (Engine.TRTLLM, 500, flat(TRTLLM_DEFAULT, type="InternalServerError", code=500), TRTLLM_DEFAULT),
    "triton": (Engine.TRITON, 400, {"detail": TRTLLM}, TRTLLM),
    "triton-own": (Engine.TRITON, 500, {"detail": OF_DECODER}, OF_DECODER),
    "anthropic": (Engine.ANTHROPIC, 400, {"type": "error", "error": {"type": "invalid_request_error", "message": ANTHROPIC}}, ANTHROPIC),
    "openai": (Engine.OPENAI, 400, nested("Too long.", param="messages", code="context_length_exceeded"), "Too long."),
}


@pytest.mark.parametrize("case", CONTEXT)
def test_context_error_of_each_engine_becomes_context_length_exceeded(case: str) -> None:
    engine, status, body, text = CONTEXT[case]
    data = msgspec.json.encode(body)
    for first in (True, False):
        fault = read_fault(data, status, ENGINES[engine], first=first)
        assert fault.kind is faults.CONTEXT_EXCEEDED and fault.message == text
    assert read_answer_fault(status, data, ENGINES[engine], None, NOW_US).kind is faults.CONTEXT_EXCEEDED
    inner = body["error"] if isinstance(body.get("error"), dict) else body
    assert fault.param == inner.get("param")


@pytest.mark.parametrize("case", ["sglang-queue", "sglang-own", "llamacpp-event"])
async def test_context_error_inside_a_stream_is_told_with_its_text_and_asked_nowhere_else(case: str) -> None:
    engine, _, body, text = CONTEXT[case]
    upstream, second = Upstream([STREAM_HEAD + part(body)]), Upstream([whole({})])
    async with upstream.listening(), second.listening(), gateway({"m": Served([upstream.url, second.url], engine=engine)}) as running:
        answer = await post(running.port, chat(stream=True))
        await running.sink.settled()
        ejections = running.plane.metrics.ejections
    assert error_code(answer) == "context_length_exceeded" and text in answer.body.decode()
    assert ejections == {} and not second.asked


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("bad\n  temperature", "bad temperature"),
        ("bad file /srv/models/x", None),
        ("bad Bearer sk-1", None),
        ("b\x00d", None),
        ("x" * 501, None),
        ("", None),
    ],
)
def test_text_of_an_engine_is_shown_only_if_harmless(text: str, shown: str | None) -> None:
    for status in (400, 413, 422):
        fault = read_answer_fault(status, msgspec.json.encode({"message": text}), ENGINES[Engine.VLLM], None, NOW_US)
        assert fault.kind is faults.UPSTREAM_REQUEST_INVALID
        assert fault.message == (shown or faults.UPSTREAM_REQUEST_INVALID.message)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"error": {"message": "m", "param": "temperature"}}, "temperature"),
        ({"message": "m", "param": "messages[0].content"}, "messages[0].content"),
        ({"message": "m", "param": "a b\r\nc"}, None),
        ({"message": "m", "param": 7}, None),
        ({"detail": [{"loc": ["body", "messages", 0, "role"], "msg": "Field required", "type": "missing"}]}, "messages.0.role"),
        ({"detail": "Not so"}, None),
        ({"detail": [7]}, None),
    ],
)
def test_field_that_an_engine_names_is_kept(body: Any, param: str | None) -> None:
    assert read_answer_fault(422, msgspec.json.encode(body), ENGINES[Engine.VLLM], None, NOW_US).param == param


STATUSES: dict[int, FaultKind] = {
    **dict.fromkeys((400, 413, 422), faults.UPSTREAM_REQUEST_INVALID),
    **dict.fromkeys((408, 409, 425, 503, 529), faults.UPSTREAM_REFUSED),
    **dict.fromkeys((401, 402, 403, 404, 405, 406, 407, 410, 411, 412, 414, 415, 421, 426, 431, 451, 501), faults.UPSTREAM_MISCONFIGURED),
    **dict.fromkeys((499, 500, 502, 504, 507), faults.UPSTREAM_FAILED),
    429: faults.UPSTREAM_RATE_LIMITED,
    302: faults.UPSTREAM_INVALID,
}  # fmt: skip


@pytest.mark.parametrize("status", STATUSES)
def test_status_of_an_engine_says_who_must_act(status: int) -> None:
    for body in (b"", b"<html>", b"{}", b'{"error":"x"}', b'{"message":"m","code":"ERR"}'):
        assert read_answer_fault(status, body, ENGINES[Engine.VLLM], None, NOW_US).kind is STATUSES[status]


@pytest.mark.parametrize("status", STATUSES)
async def test_only_errors_of_the_request_become_400(status: int) -> None:
    upstream = Upstream([whole({"message": "m"}, status)])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        answer = await post(running.port, chat())
        await running.sink.settled()
    assert answer.status == (400 if status in (400, 413, 422) else STATUSES[status].status)
    assert ("retry-after" in answer.headers) is (answer.status == 503)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"7", 7.0),
        (b"0", 0.0),
        (b"0.25", 0.25),
        (b"1e9", 60.0),
        (b"999999999999", 60.0),
        (b"Sun, 22 Nov 2026 00:00:30 GMT", 30.0),
        (b"Sunday, 22-Nov-26 00:00:30 GMT", 30.0),
        (b"Sat, 21 Nov 2026 23:59:00 GMT", 0.0),
        (b"Mon, 23 Nov 2026 00:00:00 GMT", 60.0),
        (b"soon", None),
        (b"-1", None),
        (b"nan", None),
        (b"\xff", None),
        (b"", None),
        (b"9" * 5000, 60.0),
    ],
)
def test_retry_after_is_read_in_seconds_fractions_and_as_a_date(value: bytes, seconds: float | None) -> None:
    assert read_retry_after(value, NOW_US) == seconds


PICTURE = "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"


def test_error_that_llamacpp_calls_its_own_is_the_requests() -> None:
    body = msgspec.json.encode({"error": {"code": 500, "message": PICTURE, "type": "server_error"}})
    fault = read_answer_fault(500, body, ENGINES[Engine.LLAMACPP], None, NOW_US)
    assert (fault.kind, fault.message) == (faults.UPSTREAM_REQUEST_INVALID, PICTURE)
    assert read_answer_fault(500, body, ENGINES[Engine.VLLM], None, NOW_US).kind is faults.UPSTREAM_FAILED


DRAINING = "cannot schedule new futures after shutdown"


async def test_engine_that_drains_in_its_own_words_fails_no_request_and_is_avoided_at_once() -> None:
    refusal = whole(nested(DRAINING, type="InternalServerError", code=500), status=500)
    draining, other = Upstream([refusal]), Upstream([whole(completion())])
    async with draining.listening(), other.listening():
        served = Served([draining.url, other.url], engine=Engine.VLLM, retry_started=False)
        async with gateway({"m": served}) as running:
            assert (await post(running.port, chat())).status == 200
            (avoided,) = [each for each in running.plane.upstreams.of("m") if not each.health.allows(Endpoint.CHAT_COMPLETIONS, 0.0)]
            assert avoided.deployment.base_url == draining.url
    assert (len(draining.asked), len(other.asked)) == (1, 1)


def test_words_of_a_draining_engine_inside_another_text_are_not_its_own() -> None:
    error = msgspec.json.encode(nested(f"cannot read {DRAINING}", code=500))
    assert read_answer_fault(500, error, ENGINES[Engine.VLLM], None, NOW_US).kind is faults.UPSTREAM_FAILED
