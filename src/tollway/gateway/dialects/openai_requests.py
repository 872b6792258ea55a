"""Parts shared by the requests of OpenAI's APIs: fields, service tiers, what an engine must not get, and how usage is asked for."""

from tollway.domain.usage import ServiceTier
from tollway.gateway.dialects import fields
from tollway.gateway.dialects.fields import Check
from tollway.gateway.dialects.usage_options import UsageOptions

SERVICE_TIERS = {
    "auto": ServiceTier.STANDARD,
    "default": ServiceTier.STANDARD,
    "scale": ServiceTier.STANDARD,
    "flex": ServiceTier.FLEX,
    "priority": ServiceTier.PRIORITY,
    "fast": ServiceTier.PRIORITY,
}
"""OpenAI's words for urgency as it is priced. At OpenAI `auto` means the project's setting and `scale` capacity bought beforehand, beyond
which it means `default`; here both mean `default`. `fast` is OpenAI's newer word for `priority`."""

COMMON_FIELDS: dict[str, Check] = {
    "model": fields.text,
    "stream": fields.nullable(fields.boolean),
    "stream_options": fields.nullable(fields.mapping),
    "frequency_penalty": fields.nullable(fields.number(-2, 2)),
    "logit_bias": fields.nullable(fields.biases),
    "max_tokens": fields.output_tokens,
    "n": fields.nullable(fields.integer(1, 128)),
    "presence_penalty": fields.nullable(fields.number(-2, 2)),
    "seed": fields.nullable(fields.integer(-(2**63), 2**63 - 1)),
    "stop": fields.nullable(fields.stops),
    "temperature": fields.nullable(fields.number(0, 2)),
    "top_p": fields.nullable(fields.number(0, 1)),
    "user": fields.nullable(fields.text),
}
"""Fields of chat completions and completions alike."""

NOT_FORWARDED = frozenset(
    {
        "metadata", "moderation", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier", "service_tier",
        "store", "user",
    }
)  # fmt: skip
"""Fields that concern OpenAI's platform, not an engine. They are accepted because SDKs send them, and withheld from the engine, which may
reject them (Dynamo) or log them (`user` and `safety_identifier` identify people)."""

USAGE_OPTIONS = UsageOptions(
    field="stream_options",
    final=b'{"include_usage":true}',
    continuous=b'{"include_usage":true,"continuous_usage_stats":true}',
)
"""Values of `stream_options` that request usage: at the end, or (an extension of vLLM's) in every chunk."""
