"""Tables of request fields held against what exists: the types of the official SDKs, and the recorded fields of the engines.

A field of a new SDK is found by the first tests, with the lock's next update. The engines' fields are recorded in `engine_fields.json`, by
hand, with the version that they were read from.
"""

from pathlib import Path
from typing import Any, get_args, get_type_hints

import anthropic.types as anthropic_types
import msgspec
import openai.types as openai_types
import pytest
from anthropic.types import beta as anthropic_beta
from anthropic.types.beta.beta_content_block_param import BetaContentBlockParam
from anthropic.types.content_block_param import ContentBlockParam
from openai.types.audio import transcription_create_params as transcription_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.chat.chat_completion_content_part_param import ChatCompletionContentPartParam
from openai.types.responses import response_create_params as response_params
from openai.types.responses.response_input_item_param import ResponseInputItemParam

from tests.gateway.harness import NOWHERE, Served, chat
from tests.gateway.test_request_quantities import admit_of
from tollway.domain import faults
from tollway.domain.catalog import Endpoint, Engine, UnknownParameters
from tollway.domain.faults import Fault
from tollway.domain.usage import ServiceTier
from tollway.engines.table import ENGINES
from tollway.gateway.dialects.engine_fields import ENGINE_FIELDS, NOT_OFFERED
from tollway.gateway.dialects.fields import NEVER_FORWARDED
from tollway.gateway.dialects.openai_requests import SERVICE_TIERS
from tollway.gateway.dialects.table import DIALECTS
from tollway.gateway.media.admission import ITEM_MEMBERS, ITEM_TYPES, PART_TYPES
from tollway.wire import bodies

SDK_TYPES: dict[Endpoint, tuple[Any, ...]] = {
    Endpoint.CHAT_COMPLETIONS: (chat_params.CompletionCreateParamsNonStreaming, chat_params.CompletionCreateParamsStreaming),
    Endpoint.COMPLETIONS: (
        openai_types.completion_create_params.CompletionCreateParamsNonStreaming,
        openai_types.completion_create_params.CompletionCreateParamsStreaming,
    ),
    Endpoint.MODERATIONS: (openai_types.ModerationCreateParams,),
    Endpoint.EMBEDDINGS: (openai_types.EmbeddingCreateParams,),
    Endpoint.AUDIO_SPEECH: (openai_types.audio.SpeechCreateParams,),
    Endpoint.AUDIO_TRANSCRIPTIONS: (
        transcription_params.TranscriptionCreateParamsNonStreaming,
        transcription_params.TranscriptionCreateParamsStreaming,
    ),
    Endpoint.AUDIO_TRANSLATIONS: (openai_types.audio.TranslationCreateParams,),
    Endpoint.IMAGE_EDITS: (
        openai_types.image_edit_params.ImageEditParamsNonStreaming,
        openai_types.image_edit_params.ImageEditParamsStreaming,
    ),
    Endpoint.IMAGE_VARIATIONS: (openai_types.ImageCreateVariationParams,),
    Endpoint.IMAGE_GENERATIONS: (
        openai_types.image_generate_params.ImageGenerateParamsNonStreaming,
        openai_types.image_generate_params.ImageGenerateParamsStreaming,
    ),
    Endpoint.MESSAGES: (
        anthropic_types.message_create_params.MessageCreateParamsNonStreaming,
        anthropic_types.message_create_params.MessageCreateParamsStreaming,
    ),
    Endpoint.COUNT_TOKENS: (anthropic_types.MessageCountTokensParams,),
    Endpoint.COMPACT: (openai_types.responses.ResponseCompactParams,),
    Endpoint.INPUT_TOKENS: (openai_types.responses.InputTokenCountParams,),
    Endpoint.RESPONSES: (response_params.ResponseCreateParamsNonStreaming, response_params.ResponseCreateParamsStreaming),
}
HEADERS = {"betas", "user_profile_id", "workspace_id"}
"""Members of Anthropic's types that the SDK sends as headers."""
BETA_WITHOUT_CHECK = {"billing_policy", "compaction", "fallback_credit_token", "thread"}
"""Beta fields that go on as the API's contract asks of gateways, without a check of ours."""


def names(types: tuple[Any, ...]) -> set[str]:
    return {name for each in types for name in get_type_hints(each)} - HEADERS


@pytest.mark.parametrize("endpoint", SDK_TYPES)
def test_every_field_of_the_official_sdk_is_in_the_table(endpoint: Endpoint) -> None:
    assert names(SDK_TYPES[endpoint]) <= DIALECTS[endpoint].fields.keys()


def test_every_beta_field_of_anthropic_is_in_the_table_refused_or_forwarded_by_rule() -> None:
    beta = anthropic_beta.message_create_params
    types = (beta.MessageCreateParamsNonStreaming, beta.MessageCreateParamsStreaming, anthropic_beta.MessageCountTokensParams)
    known = DIALECTS[Endpoint.MESSAGES].fields.keys() | NEVER_FORWARDED | BETA_WITHOUT_CHECK
    assert names(types) <= known


def test_every_service_tier_of_the_official_sdk_has_a_price_tier() -> None:
    hints = get_type_hints(chat_params.CompletionCreateParamsNonStreaming)
    tiers = {tier for part in hints["service_tier"].__args__ for tier in getattr(part, "__args__", ())}
    assert tiers == SERVICE_TIERS.keys()


def list_part_types(union: Any) -> set[str]:
    """Return the values of `type` in a union of the SDKs' types, however it is nested."""
    found: set[str] = set()
    for part in get_args(union):
        if isinstance(part, type) and "type" in getattr(part, "__annotations__", {}):
            hint = part.__annotations__["type"] if hasattr(part, "model_fields") else get_type_hints(part)["type"]
            found.update(get_args(hint))
        else:
            found.update(list_part_types(part))
    return found


@pytest.mark.parametrize("union", [ChatCompletionContentPartParam, ContentBlockParam, BetaContentBlockParam])
def test_every_part_type_of_the_official_sdks_is_known(union: Any) -> None:
    types = list_part_types(union)
    assert len(types) >= 4 and types <= PART_TYPES


def list_item_members(union: Any) -> set[str]:
    """Return the members of the items in a union of the SDK's types that are accepted."""
    found: set[str] = set()
    for part in get_args(union):
        if not isinstance(part, type):
            found |= list_item_members(part)
            continue
        members = get_type_hints(part)
        if "type" not in members or ITEM_TYPES.intersection(map(str, get_args(members["type"]))):
            found |= members.keys()
    return found


def test_every_member_of_an_accepted_item_of_the_official_sdk_is_known() -> None:
    members = list_item_members(ResponseInputItemParam)
    assert len(members) >= 10 and members <= ITEM_MEMBERS


RECORDED: dict[Engine, dict[str, Any]] = {
    Engine(engine): entry for engine, entry in msgspec.json.decode(Path(__file__).with_name("engine_fields.json").read_bytes()).items()
}
OWN = {field for dialect in DIALECTS.values() for field in dialect.fields}
"""Fields of the APIs themselves."""


@pytest.mark.parametrize("engine", RECORDED)
def test_every_recorded_field_of_an_engine_is_offered_or_refused_on_purpose(engine: Engine) -> None:
    fields = set(RECORDED[engine]["fields"])
    assert fields <= OWN | ENGINES[engine].fields | NEVER_FORWARDED | NOT_OFFERED.keys()
    assert not (OWN | ENGINES[engine].fields) & NOT_OFFERED.keys()
    assert not ENGINES[engine].fields & NEVER_FORWARDED


def test_every_field_that_an_engine_offers_has_a_check() -> None:
    for profile in ENGINES.values():
        assert profile.fields <= ENGINE_FIELDS.keys() | OWN, profile.engine
    assert not ENGINE_FIELDS.keys() & NEVER_FORWARDED


def ask(body: dict[str, Any], endpoint: Endpoint = Endpoint.CHAT_COMPLETIONS, **served: Any) -> Any:
    """Return the call that a body is admitted as at a model served as told."""
    return admit_of({"m": Served([NOWHERE], **served)}, endpoint, body)


ACCEPTED: list[tuple[Endpoint, dict[str, Any]]] = [
    (Endpoint.CHAT_COMPLETIONS, {"prompt_cache_retention": "24h"}),
    (Endpoint.CHAT_COMPLETIONS, {"prompt_cache_options": {"mode": "explicit", "ttl": "30m"}}),
    (Endpoint.CHAT_COMPLETIONS, {"moderation": {"model": "omni-moderation-latest", "policy": {"input": {"mode": "score"}}}}),
    (Endpoint.CHAT_COMPLETIONS, {"service_tier": "scale"}),
    (Endpoint.COMPLETIONS, {"prompt": "a", "max_tokens": 0, "echo": True, "logprobs": 1}),
    (Endpoint.MESSAGES, {"max_tokens": 0, "cache_control": {"type": "ephemeral"}, "output_config": {"effort": "low"}, "speed": "standard"}),
]


@pytest.mark.parametrize(("endpoint", "more"), ACCEPTED)
def test_field_of_an_official_api_is_accepted(endpoint: Endpoint, more: dict[str, Any]) -> None:
    body = {"model": "m"} if endpoint is Endpoint.COMPLETIONS else chat()
    call = ask(body | more, endpoint)
    assert call.price.tier is ServiceTier.STANDARD
    if more.get("max_tokens") == 0:
        assert call.output_tokens_max == 0 and call.output_cap is None


def test_fields_of_a_platform_do_not_reach_an_engine() -> None:
    call = ask(chat(prompt_cache_retention="24h", prompt_cache_options={}, moderation={"model": "x"}, service_tier="scale"))
    assert set(call.dropped) == {"prompt_cache_retention", "prompt_cache_options", "moderation", "service_tier"}


BLOCKING = [{"model": "x", "policy": {"input": {"mode": "block"}}}, {"model": "x", "policy": {"output": {"mode": "block"}}}]


@pytest.mark.parametrize("moderation", BLOCKING)
def test_wish_to_block_by_moderation_is_refused_because_nothing_would_block(moderation: dict[str, Any]) -> None:
    with pytest.raises(Fault) as caught:
        ask(chat(moderation=moderation))
    assert (caught.value.kind, caught.value.param) == (faults.PARAMETER_INVALID, "moderation")


@pytest.mark.parametrize("engine", [Engine.DYNAMO, Engine.OPENAI, Engine.VLLM, Engine.SGLANG])
def test_sampling_fields_that_an_engine_serves_are_accepted(engine: Engine) -> None:
    ask(chat(top_k=20, min_p=0.1, repetition_penalty=1.1, chat_template_kwargs={"enable_thinking": False}), engine=engine)


OUTSIDE: list[tuple[str, Any]] = [
    ("stop", ["a"] * 65),
    ("stop", "a" * 1025),
    ("logit_bias", {str(token): 1 for token in range(1025)}),
    ("logit_bias", {"1": 101}),
    ("logit_bias", {"x": 1}),
    ("stop_token_ids", list(range(257))),
    ("stop_token_ids", [-1]),
    ("bad_words", ["a"] * 257),
    ("bad_words", [1]),
    ("prompt_logprobs", 21),
    ("prompt_logprobs", -1),
    ("allowed_token_ids", list(range(16_385))),
    ("tools", [{"type": "function"}] * 513),
    ("messages", [{"role": "user", "content": "a"}] * 10_001),
    ("chat_template_kwargs", {"chat_template": "{% for i in range(10**9) %}{% endfor %}"}),
    ("chat_template_kwargs", {"tokenize": False}),
    ("chat_template_kwargs", {"mm_processor_kwargs": {}}),
    ("guided_regex", "a" * 65_537),
]


@pytest.mark.parametrize("policy", [UnknownParameters.REFUSE, UnknownParameters.FORWARD])
@pytest.mark.parametrize(("field", "value"), OUTSIDE, ids=[f"{field}-{number}" for number, (field, _) in enumerate(OUTSIDE)])
def test_value_of_a_field_beyond_its_bound_is_refused(field: str, value: Any, policy: UnknownParameters) -> None:
    with pytest.raises(Fault) as caught:
        ask(chat() | {field: value}, unknown_parameters=policy)
    assert (caught.value.kind, caught.value.param) == (faults.PARAMETER_INVALID, field)


@pytest.mark.parametrize(
    "value",
    [
        {"padding": "max_length"}, {"truncation": True}, {"return_tensors": "pt"}, {"return_dict": True}, {"add_generation_prompt": True},
        {"continue_final_message": True}, {"max_length": 10**9}, {"return_assistant_tokens_mask": True}, {"image_prompts": ["a"]},
    ],
)  # fmt: skip
def test_146_arguments_of_a_template_that_make_the_engine_pad_or_fail_are_refused(value: dict[str, Any]) -> None:
    for field in ("chat_template_kwargs", "chat_template_args"):
        with pytest.raises(Fault, match=faults.PARAMETER_INVALID.code):
            ask(chat() | {field: value}, unknown_parameters=UnknownParameters.FORWARD)


@pytest.mark.parametrize("value", [{"regex": "a" * 65_537}, {"choice": ["a"] * 1025}, {"choice": ["a" * 1025]}, {"grammar": "a" * 65_537}])
def test_146_structures_beyond_the_bounds_of_their_own_fields_are_refused(value: dict[str, Any]) -> None:
    with pytest.raises(Fault, match=faults.PARAMETER_INVALID.code):
        ask(chat() | {"structured_outputs": value}, unknown_parameters=UnknownParameters.FORWARD)


INSIDE: list[tuple[str, Any]] = [
    ("structured_outputs", {"choice": ["a", "b"]}),
    ("structured_outputs", {"json": {"type": "object"}, "whitespace_pattern": None}),
    ("stop", ["a"] * 64),
    ("logit_bias", {"50256": -100, "1": 0.5}),
    ("stop_token_ids", [0, 128_009]),
    ("bad_words", ["a"]),
    ("prompt_logprobs", 20),
    ("chat_template_kwargs", {"enable_thinking": True, "thinking_budget": 5}),
]


@pytest.mark.parametrize(("field", "value"), INSIDE)
def test_value_of_a_field_at_its_bound_is_accepted(field: str, value: Any) -> None:
    ask(chat() | {field: value})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ["a"] * 2049}, "prompt"),
        ({"prompt": [[1]] * 2049}, "prompt"),
        ({"prompt": [2**31]}, "prompt"),
        ({"prompt": ["a"] * 20, "n": 128}, "n"),
    ],
)
def test_more_prompts_or_outputs_than_a_request_may_have_are_refused(body: dict[str, Any], param: str) -> None:
    with pytest.raises(Fault) as caught:
        ask({"model": "m"} | body, Endpoint.COMPLETIONS)
    assert (caught.value.kind, caught.value.param) == (faults.PARAMETER_INVALID, param)


@pytest.mark.parametrize(
    "field", ["chat_template", "mm_processor_kwargs", "n", "best_of", "guided_json", "return_hidden_states", "grammar"]
)
def test_messages_do_not_carry_engine_fields_past_a_model_that_refuses_unknown_ones(field: str) -> None:
    served = {"unknown_parameters": UnknownParameters.REFUSE, "engine": Engine.OPENAI}
    body = chat(max_tokens=5)
    ask(body | {"field_of_a_newer_version_of_this_api": 1}, Endpoint.MESSAGES, **served)
    with pytest.raises(Fault) as caught:
        ask(body | {field: 1}, Endpoint.MESSAGES, **served)
    assert caught.value.param == field


def test_plain_bodies_are_bounded_too() -> None:
    """A body of simple values is checked by its shape alone, which must have the same bounds."""
    for field, value in OUTSIDE:
        dialect = DIALECTS[Endpoint.CHAT_COMPLETIONS]
        if field in dialect.fields:
            with pytest.raises(msgspec.ValidationError):
                msgspec.convert(bodies.read(msgspec.json.encode(chat() | {field: value})), dialect.plain)
