"""The habits of each engine, as one table. A new engine is a new row."""

import msgspec

from tollway.domain.catalog import Engine


class Habits(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway may ask of an engine and must expect from it.

    `continuous_usage`: reports running usage on every chunk when asked, so that a cut stream is billed to the token.
    `cache_salt`: separates the prefix cache by a salt in the body. `fields`: request fields beyond the dialect's own that a client
    may send.
    """

    continuous_usage: bool = False
    cache_salt: bool = False
    fields: frozenset[str] = frozenset()


_SAMPLING = frozenset({"top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos", "min_tokens", "skip_special_tokens"})
_VLLM = _SAMPLING | {
    "add_generation_prompt",
    "allowed_token_ids",
    "bad_words",
    "chat_template_kwargs",
    "continue_final_message",
    "documents",
    "echo",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "include_reasoning",
    "include_stop_str_in_output",
    "length_penalty",
    "prompt_logprobs",
    "return_token_ids",
    "spaces_between_special_tokens",
    "structured_outputs",
    "thinking_token_budget",
    "truncate_prompt_tokens",
    "use_beam_search",
}
_SGLANG = _SAMPLING | {
    "chat_template_kwargs",
    "continue_final_message",
    "ebnf",
    "no_stop_trim",
    "regex",
    "separate_reasoning",
    "stop_regex",
    "stream_reasoning",
}

HABITS: dict[Engine, Habits] = {
    Engine.VLLM: Habits(continuous_usage=True, cache_salt=True, fields=_VLLM),
    Engine.SIM: Habits(continuous_usage=True, cache_salt=True, fields=_VLLM),
    Engine.SGLANG: Habits(cache_salt=True, fields=_SGLANG),
    Engine.DYNAMO: Habits(),
    Engine.TRTLLM: Habits(fields=_SAMPLING),
    Engine.LLAMACPP: Habits(fields=_SAMPLING | {"grammar", "json_schema", "chat_template_kwargs", "typical_p", "mirostat"}),
    Engine.OPENAI: Habits(),
}
