"""Request fields that engines have beyond the APIs: their checks, and those that are not offered.

Which engine understands a field stands in its profile (`engines/`); here stands which values of it may go on, whatever engine gets them, so
that neither a count nor a value of a client's makes an engine work beyond what a request is meant to cost.
"""

from collections.abc import Callable
from typing import Any

from tollway.domain.usage import TOKENS_MAX
from tollway.gateway.dialects import fields
from tollway.gateway.dialects.fields import NEVER_FORWARDED, Check

TEXT_MAX = 65_536
"""Characters of a grammar, an expression or a schema given as text: compiling one takes an engine time that grows with it."""
TOKEN_IDS_MAX = 16_384
"""Token ids in one list: above this an engine's mask of the vocabulary is cheaper than the list."""
WORDS_MAX = 256
WORD_CHARACTERS_MAX = 1024
"""Words or stop expressions in a list, and their length. Engines compare each of them with the text after every token."""

_TEMPLATE_ARGUMENTS_OWN = frozenset(
    {
        "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents", "image_prompts", "messages",
        "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize", "tokenizer_kwargs", "tools", "truncation",
    }
)  # fmt: skip
"""Arguments of the function that renders a chat template and makes tokens of it (`apply_chat_template` of transformers, to which SGLang 0.5
hands what a request names): a value here would replace the gateway's or the engine's own, pad a short prompt to the whole context, or
end in an error of the engine."""

CHOICES_MAX = 1024
"""Texts of which an answer must be one."""


def _is_template_arguments(value: Any) -> bool:
    return type(value) is dict and _TEMPLATE_ARGUMENTS_OWN.isdisjoint(value) and NEVER_FORWARDED.isdisjoint(value)


_choices = fields.list_of(CHOICES_MAX, fields.text_up_to(WORD_CHARACTERS_MAX))


def _is_structure(value: Any) -> bool:
    """Return whether a value is an object whose texts and choices keep the bounds of the fields for one kind of structure each."""
    return type(value) is dict and all(
        len(each) <= TEXT_MAX if type(each) is str else type(each) is not list or _choices.allows(each) for each in value.values()
    )


_flag = fields.nullable(fields.boolean)
_number = fields.nullable(fields.number(-1e9, 1e9))
_count = fields.nullable(fields.integer(-1, TOKENS_MAX))
_long_text = fields.nullable(fields.text_up_to(TEXT_MAX))
_object = fields.nullable(fields.mapping)
_token_ids = fields.nullable(fields.list_of(TOKEN_IDS_MAX, fields.integer(0, TOKENS_MAX)))
_words = fields.nullable(fields.list_of(WORDS_MAX, fields.text_up_to(WORD_CHARACTERS_MAX)))
_template_arguments = fields.nullable(Check(_is_template_arguments))


def _any_of(*checks: Check) -> Check:
    allows: list[Callable[[Any], bool]] = [check.allows for check in checks]
    return Check(lambda value: any(each(value) for each in allows))


ENGINE_FIELDS: dict[str, Check] = {
    "add_generation_prompt": _flag,
    "add_special_tokens": _flag,
    "allowed_token_ids": _token_ids,
    "bad_words": _words,
    "cache_prompt": _flag,
    "chat_template_args": _template_arguments,
    "chat_template_kwargs": _template_arguments,
    "continue_final_message": _flag,
    "documents": fields.nullable(fields.list_of(1024, fields.mapping)),
    "dry_allowed_length": _count,
    "dry_base": _number,
    "dry_multiplier": _number,
    "dry_penalty_last_n": _count,
    "dry_sequence_breakers": _words,
    "dynatemp_exponent": _number,
    "dynatemp_range": _number,
    "early_stopping": _flag,
    "ebnf": _long_text,
    "echo": _flag,
    "grammar": _long_text,
    "guided_choice": fields.nullable(_choices),
    "guided_decoding_backend": _long_text,
    "guided_grammar": _long_text,
    "guided_json": _any_of(_object, _long_text),
    "guided_regex": _long_text,
    "guided_whitespace_pattern": _long_text,
    "ignore_eos": _flag,
    "include_reasoning": _flag,
    "include_stop_str_in_output": _flag,
    "json_schema": _any_of(_object, _long_text),
    "length_penalty": _number,
    "logprob_token_ids": fields.nullable(fields.list_of(20, fields.integer(0, TOKENS_MAX))),
    "min_keep": _count,
    "min_p": fields.nullable(fields.number(0, 1)),
    "min_tokens": fields.nullable(fields.integer(0, TOKENS_MAX)),
    "mirostat": fields.nullable(fields.integer(0, 2)),
    "mirostat_eta": _number,
    "mirostat_tau": _number,
    "n_probs": fields.nullable(fields.integer(0, 20)),
    "no_stop_trim": _flag,
    "parse_tool_calls": _flag,
    "post_sampling_probs": _flag,
    "prompt_logprobs": fields.nullable(fields.integer(0, 20)),
    "reasoning_format": fields.nullable(fields.text_up_to(64)),
    "regex": _long_text,
    "repeat_last_n": _count,
    "repeat_penalty": _number,
    "repetition_detection": _object,
    "repetition_penalty": _number,
    "return_cached_tokens_details": _flag,
    "return_progress": _flag,
    "return_prompt_token_ids": _flag,
    "return_token_ids": _flag,
    "return_token_offsets": _flag,
    "return_tokens": _flag,
    "return_tokens_as_token_ids": _flag,
    "samplers": _any_of(_words, _long_text),
    "separate_reasoning": _flag,
    "skip_special_tokens": _flag,
    "spaces_between_special_tokens": _flag,
    "stop_regex": _any_of(fields.nullable(fields.text_up_to(WORD_CHARACTERS_MAX)), _words),
    "stop_token_ids": fields.nullable(fields.list_of(WORDS_MAX, fields.integer(0, TOKENS_MAX))),
    "stream_reasoning": _flag,
    "structured_outputs": fields.nullable(Check(_is_structure)),
    "thinking": fields.nullable(_any_of(fields.boolean, fields.mapping)),
    "thinking_token_budget": _count,
    "timings_per_token": _flag,
    "top_k": _count,
    "top_n_sigma": _number,
    "top_p_min": fields.nullable(fields.number(0, 1)),
    "truncate_prompt_tokens": _count,
    "truncation_side": fields.nullable(fields.text_up_to(16)),
    "typical_p": _number,
    "use_beam_search": _flag,
    "xtc_probability": fields.nullable(fields.number(0, 1)),
    "xtc_threshold": fields.nullable(fields.number(0, 1)),
}
"""Fields of engines that are offered where all deployments of a model have them; checked wherever a model's policy lets them through."""

NOT_OFFERED: dict[str, str] = {
    "adaptive_decay": "experimental",
    "adaptive_target": "experimental",
    "backend_sampling": "chooses how the engine computes",
    "betas": "a header of the API, which goes on as a header",
    "chat_format": "set by the engine itself",
    "custom_labels": "labels of the engine's metrics",
    "enable_response_messages": "reveals the platform's template",
    "grammar_lazy": "set by the engine itself",
    "guided_backend": "chooses how the engine computes",
    "n_cache_reuse": "chooses how the engine uses its cache",
    "n_discard": "shifts the context, so that the input billed is not the input read",
    "n_indent": "experimental",
    "n_keep": "shifts the context, so that the input billed is not the input read",
    "response_fields": "removes the usage from answers",
    "return_assistant_tokens_mask": "for training",
    "return_flat_raw_output_top_logprobs": "for training",
    "return_flat_raw_top_logprobs_b64": "for training",
    "return_hidden_states": "reveals the model's states; megabytes for each token",
    "return_input_ids_in_sglext": "for training",
    "return_meta_info": "reveals the engine's internals",
    "return_output_ids_in_sglext": "for training",
    "return_prompt_text": "reveals the platform's template",
    "return_routed_experts": "for training",
    "return_sampling_mask": "for training",
    "return_spec_tokens_details": "reveals the engine's internals",
    "routed_experts_prompt_start": "for training",
    "routed_experts_start_len": "for training",
    "sampling_logprobs_mode": "for training",
    "sse_ping_interval": "the gateway sends comments itself",
    "stream_interval": "delays the running usage that a cut stream is billed by",
    "t_max_predict_ms": "ends an answer without saying so",
    "task": "selects another use of the model",
    "use_audio_in_video": "changes how media are read",
    "verbose": "reveals the platform's template and the engine's settings",
    "watermark": "of the platform",
    "watermarking": "of the platform",
}
"""Fields that engines have and clients are not offered, with the reason. A model's policy for unknown fields applies to them; the rule of
an API that gateways forward fields unknown to them does not, because they are not fields of that API."""
