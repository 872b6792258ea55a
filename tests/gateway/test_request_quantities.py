"""Quantities that a request bounds: how many outputs it asks for, and the most tokens of input and output that it can use."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from tests.fakes import Upstream
from tests.gateway.harness import COMPLETIONS, KEY, NOWHERE, Served, gateway, plane, post, usage, whole
from tollway.domain.billing_classes import Quantities
from tollway.domain.catalog import Endpoint, UnknownParameters
from tollway.domain.faults import PARAMETER_UNKNOWN, Fault
from tollway.domain.usage import Anomaly
from tollway.gateway import pipeline
from tollway.gateway.authorize import authorize
from tollway.gateway.dialects.dialect import PLAIN_PROMPT_TOKENS_ADDED, TEMPLATE_TOKENS_MAX
from tollway.gateway.request import Call, RequestHead, new_request

CAP = 100
MODELS = {
    "m": Served([NOWHERE]),
    "capped": Served([NOWHERE], output_tokens_max=CAP),
    "forwarding": Served([NOWHERE], unknown_parameters=UnknownParameters.FORWARD),
}
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="


def admit(endpoint: Endpoint, body: dict[str, Any]) -> Call:
    """Return the call that a body is admitted as."""
    return admit_of(MODELS, endpoint, body)


def admit_of(models: Mapping[str, Served], endpoint: Endpoint, body: dict[str, Any]) -> Call:
    """Return the call that a body is admitted as where these models are served."""
    with plane(models) as (made, _, _):
        caller = pipeline.identify_sender(RequestHead(endpoint, {b"x-api-key": KEY.encode()}), made)
        request = new_request("req_1", RequestHead(endpoint, {}), msgspec.json.encode(body), 0.0, made.now_us())
        return authorize(caller, request, made.directory, made.media_bounds)


def chat_of(content: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content}]} | more


COMPLETION = {"model": "m", "prompt": "a", "max_tokens": 16}
SEQUENCES: dict[str, tuple[Endpoint, dict[str, Any], int, int]] = {
    "one prompt": (Endpoint.COMPLETIONS, COMPLETION, 1, 1),
    "texts": (Endpoint.COMPLETIONS, COMPLETION | {"prompt": ["a", "b", "c"]}, 3, 3),
    "token ids of one prompt": (Endpoint.COMPLETIONS, COMPLETION | {"prompt": [1, 2, 3]}, 1, 1),
    "token ids of two prompts": (Endpoint.COMPLETIONS, COMPLETION | {"prompt": [[1, 2, 3], [4]]}, 2, 2),
    "choices": (Endpoint.COMPLETIONS, COMPLETION | {"n": 2}, 1, 2),
    "texts and choices": (Endpoint.COMPLETIONS, COMPLETION | {"prompt": ["a", "b"], "n": 3}, 2, 6),
    "candidates of which fewer are returned": (Endpoint.COMPLETIONS, COMPLETION | {"prompt": ["a", "b"], "n": 2, "best_of": 5}, 2, 10),
    "null": (Endpoint.COMPLETIONS, COMPLETION | {"n": None, "best_of": None}, 1, 1),
    "chat": (Endpoint.CHAT_COMPLETIONS, chat_of("a", max_tokens=16), 1, 1),
    "chat with choices": (Endpoint.CHAT_COMPLETIONS, chat_of("a", max_tokens=16, n=4), 1, 4),
    "messages": (Endpoint.MESSAGES, chat_of("a", max_tokens=16), 1, 1),
}


@pytest.mark.parametrize("case", SEQUENCES)
def test_sequences_are_prompts_times_candidates_and_multiply_the_output_bound(case: str) -> None:
    endpoint, body, prompts, sequences = SEQUENCES[case]
    call = admit(endpoint, body)
    assert (call.prompts, call.sequences, call.output_tokens_max) == (prompts, sequences, 16 * sequences)


@pytest.mark.parametrize(("more", "choices"), [({"prompt": ["a", "b"]}, 1), ({"n": 1}, 1), ({"prompt": ["a", "b"], "n": 3}, 3)])
async def test_record_says_how_many_choices_of_each_prompt_were_asked_for(more: dict[str, Any], choices: int) -> None:
    answer = {"id": "c", "object": "text_completion", "model": "m", "choices": [{"text": "t"}], "usage": usage(7, 9)}
    upstream = Upstream([whole(answer)])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        assert (await post(running.port, COMPLETION | more, COMPLETIONS)).status == 200
        final = await running.sink.settled()
    assert final.admit.choices == choices


def test_output_bound_without_a_maximum_is_the_model_cap_for_each_sequence() -> None:
    call = admit(Endpoint.COMPLETIONS, {"model": "capped", "prompt": ["a", "b"], "n": 2})
    assert (call.output_tokens_max, call.output_cap) == (4 * CAP, CAP)
    assert admit(Endpoint.COMPLETIONS, {"model": "m", "prompt": ["a", "b"]}).output_tokens_max is None


FOREIGN_MULTIPLIERS = [
    (Endpoint.CHAT_COMPLETIONS, "best_of"),
    (Endpoint.CHAT_COMPLETIONS, "n_predict"),
    (Endpoint.CHAT_COMPLETIONS, "n_cmpl"),
    (Endpoint.COMPLETIONS, "max_completion_tokens"),
    (Endpoint.MESSAGES, "n"),
    (Endpoint.MESSAGES, "best_of"),
    (Endpoint.MESSAGES, "max_new_tokens"),
    (Endpoint.COUNT_TOKENS, "n"),
]


@pytest.mark.parametrize(("endpoint", "field"), FOREIGN_MULTIPLIERS)
def test_field_that_multiplies_output_outside_its_api_is_refused_whatever_the_policy(endpoint: Endpoint, field: str) -> None:
    body = {"model": "forwarding", "prompt": "a"} if endpoint is Endpoint.COMPLETIONS else chat_of("a", model="forwarding")
    if endpoint is Endpoint.MESSAGES:
        body["max_tokens"] = 16
    admit(endpoint, body | {"whatever": 2})
    with pytest.raises(Fault) as caught:
        admit(endpoint, body | {field: 2})
    assert (caught.value.kind, caught.value.param) == (PARAMETER_UNKNOWN, field)


@pytest.mark.parametrize(("prompts", "reported", "billed"), [(3, 48, 48), (3, 49, 48), (40, 640, 640), (1, 48, 16)])
async def test_report_for_several_prompts_is_believed_up_to_the_maximum_of_each(prompts: int, reported: int, billed: int) -> None:
    choices = [{"index": number, "text": "t", "finish_reason": "length"} for number in range(prompts)]
    answer = {"id": "c", "object": "text_completion", "model": "m", "choices": choices, "usage": usage(7, reported)}
    upstream = Upstream([whole(answer)])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        sent = await post(running.port, {"model": "m", "prompt": ["a"] * prompts, "max_tokens": 16}, COMPLETIONS)
        final = await running.sink.settled()
    assert sent.status == 200
    assert final.used == Quantities(7, 0, billed)
    assert (final.anomaly is None) is (reported == billed)


@pytest.mark.parametrize("prompts", [1, 3])
async def test_input_above_the_context_length_of_each_prompt_is_not_billed_and_named(prompts: int) -> None:
    """Bytes alone would bound this input by 100 kB for each prompt."""
    choices = [{"index": number, "text": "t", "finish_reason": "length"} for number in range(prompts)]
    answer = {"id": "c", "object": "text_completion", "model": "m", "choices": choices, "usage": usage(2**31 - 1, 1)}
    upstream = Upstream([whole(answer)])
    async with upstream.listening(), gateway({"m": Served([upstream.url], context_length=1000)}) as running:
        body = {"model": "m", "prompt": ["a" * 20_000] * prompts, "max_tokens": 16}
        assert (await post(running.port, body, COMPLETIONS)).status == 200
        final = await running.sink.settled()
    assert final.used == Quantities(1000 * prompts, 0, 1) and final.anomaly is Anomaly.INFLATED


def test_context_length_bounds_the_input_of_media() -> None:
    image = {"type": "image_url", "image_url": {"url": PIXEL}}
    body = chat_of([{"type": "text", "text": "a"}, image])
    assert admit(Endpoint.CHAT_COMPLETIONS, body).input_tokens_max > 1000
    bounded = {"m": Served([NOWHERE], context_length=1000)}
    assert admit_of(bounded, Endpoint.CHAT_COMPLETIONS, body).input_tokens_max == 1000


@pytest.mark.parametrize("reported", [0, 1])
async def test_prompt_that_is_only_scored_has_no_output_whatever_the_engine_reports(reported: int) -> None:
    choices = [{"index": 0, "text": "a b", "finish_reason": "length", "logprobs": {"tokens": ["a", " b"]}}]
    upstream = Upstream([whole({"id": "c", "object": "text_completion", "model": "m", "choices": choices, "usage": usage(2, reported)})])
    async with upstream.listening(), gateway({"m": Served([upstream.url], output_tokens_max=CAP)}) as running:
        body = {"model": "m", "prompt": "a b", "max_tokens": 0, "echo": True, "logprobs": 1}
        assert (await post(running.port, body, COMPLETIONS)).status == 200
        final = await running.sink.settled()
    assert final.used == Quantities(2, 0, 0)
    assert msgspec.json.decode(upstream.asked[0].body)["max_tokens"] == 0, "the model's cap is not set over a client's zero"


BODIES = [
    (Endpoint.CHAT_COMPLETIONS, chat_of("a" * 100), 1, TEMPLATE_TOKENS_MAX),
    (Endpoint.MESSAGES, chat_of("é" * 100, max_tokens=1), 1, TEMPLATE_TOKENS_MAX),
    (Endpoint.COMPLETIONS, {"model": "m", "prompt": ["a" * 50, "b"]}, 2, PLAIN_PROMPT_TOKENS_ADDED),
    (Endpoint.EMBEDDINGS, {"model": "m", "input": [[1, 2, 3]] * 300}, 300, PLAIN_PROMPT_TOKENS_ADDED),
]


@pytest.mark.parametrize(("endpoint", "body", "prompts", "added"), BODIES)
def test_input_bound_is_the_bytes_of_the_body_and_what_the_engine_adds_to_each_prompt(
    endpoint: Endpoint, body: dict[str, Any], prompts: int, added: int
) -> None:
    assert admit(endpoint, body).input_tokens_max == len(msgspec.json.encode(body)) + prompts * added


def test_input_bound_counts_each_image_whatever_its_bytes_say() -> None:
    images: list[dict[str, Any]] = [{"url": PIXEL}, {"url": "https://example.com/large.png"}]
    body = chat_of([{"type": "image_url", "image_url": image} for image in images])
    more_than_text = admit(Endpoint.CHAT_COMPLETIONS, body).input_tokens_max - len(msgspec.json.encode(body)) - TEMPLATE_TOKENS_MAX
    assert more_than_text == 2 * 32_768
