"""NVIDIA Dynamo's frontend (checked with 1.6)."""

from tollway.domain.catalog import Engine
from tollway.engines.profile import SAMPLING_FIELDS, CounterNames, EngineProfile, LoadSource, ReadinessProbe

PROFILE = EngineProfile(
    engine=Engine.DYNAMO,
    continuous_usage=True,
    # lib/llm/src/protocols/openai/common_ext.rs, chat_completions.rs and validate.rs
    fields=SAMPLING_FIELDS
    | {
        "allowed_token_ids",
        "chat_template_args",
        "chat_template_kwargs",
        "guided_choice",
        "guided_decoding_backend",
        "guided_grammar",
        "guided_json",
        "guided_regex",
        "guided_whitespace_pattern",
        "include_stop_str_in_output",
        "return_tokens_as_token_ids",
        "thinking",
        "truncate_prompt_tokens",
    },
    # lib/llm/src/preprocessor.rs in OpenAI's words; an error of a worker is passed on in the words of its engine.
    context_words=(
        "maximum context length",
        "model's context length is only",
        "longer than the model's context length",
        "longer than the maximum model length",
        "exceeds the maximum allowed length",
        "`default_max_tokens`",
        "should not exceed max_num_tokens",
        "should not exceed max_seq_len",
    ),
    # lib/runtime/src/metrics/prometheus_names.rs. The input total is the sum of its histogram.
    counters=CounterNames(
        "/metrics", "dynamo_frontend_", "dynamo_frontend_input_sequence_tokens_sum", "dynamo_frontend_output_tokens_total"
    ),
    # /health is 200 also where no worker serves the model.
    readiness=ReadinessProbe("/v1/models/{model}/ready"),
    # Of all workers behind the frontend, where its router counts them (--router-mode kv).
    load=LoadSource("/metrics", "dynamo_frontend_worker_active_prefill_tokens", in_tokens=True),
)
