"""Catalog: a model is a public name; a deployment serves it from one upstream."""

import re
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from tollway.domain.tenants import Status

MODEL_NAME = re.compile(r"[A-Za-z0-9._:/@-]{1,128}")
"""Catalog names are plain ASCII and compared exactly: no folding, so no look-alikes."""

GROUP_PREFIX = "group:"
"""Beginning of what names a group of models where a model could be named. No model's name begins so."""

GROUP_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""Names of groups of models are plain ASCII, as those of models are."""

MODEL_GROUPS_MAX = 20
"""Groups that one model may be in."""


def find_group(scope: str) -> str | None:
    """Return the name of the group of models that `scope` stands for; None if it is a model's name, or empty for all models."""
    return scope.removeprefix(GROUP_PREFIX) if scope.startswith(GROUP_PREFIX) else None


def covers_model(scope: str, model: str, groups: Sequence[str]) -> bool:
    """Return whether a limit or a budget on `scope` (the name of a model, GROUP_PREFIX and the name of a group, or empty for all models)
    applies to `model`, which is in `groups`."""
    return not scope or scope == model or find_group(scope) in groups


RESPONSE_CACHE_SECONDS_MAX = 7 * 86_400
"""Longest time for which an answer can be given again from the cache of responses."""

REGION = re.compile(r"[a-z0-9-]{1,64}")
"""Names of regions, which are the operator's own and compared exactly."""

FALLBACKS_MAX = 4
"""Most fallbacks of a model: each costs a request the time in which it fails."""


class Engine(StrEnum):
    """Kind of model server behind a deployment; `tollway/engines` has a profile of each (usage, health, load, errors)."""

    __hash__ = str.__hash__  # the text's own: Enum's is a call into Python, and members are keys on the request path

    VLLM = "vllm"
    SGLANG = "sglang"
    DYNAMO = "dynamo"
    KSERVE = "kserve"
    TRTLLM = "trtllm"
    TRITON = "triton"
    LLAMACPP = "llamacpp"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    SIM = "sim"


class Endpoint(StrEnum):
    """Kind of inference request that a model serves; the value is the path below /v1, that of INFER the end of its path below /v2."""

    __hash__ = str.__hash__  # the text's own: Enum's is a call into Python, and members are keys on the request path

    AUDIO_SPEECH = "audio/speech"
    AUDIO_TRANSCRIPTIONS = "audio/transcriptions"
    AUDIO_TRANSLATIONS = "audio/translations"
    CHAT_COMPLETIONS = "chat/completions"
    CLASSIFY = "classify"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    IMAGE_EDITS = "images/edits"
    IMAGE_GENERATIONS = "images/generations"
    IMAGE_VARIATIONS = "images/variations"
    INFER = "infer"
    MESSAGES = "messages"
    MODERATIONS = "moderations"
    REALTIME = "realtime"
    RERANK = "rerank"
    RESPONSES = "responses"
    SCORE = "score"
    TOKENIZE = "tokenize"  # not billed
    DETOKENIZE = "detokenize"  # whoever may tokenize may do the reverse, which is not billed either
    COUNT_TOKENS = "messages/count_tokens"  # whoever may use messages may count, which is not billed
    COMPACT = "responses/compact"  # whoever may use responses may have a conversation summarized
    INPUT_TOKENS = "responses/input_tokens"  # whoever may use responses may count, which is not billed


NOT_GENERATING = frozenset(
    {
        Endpoint.AUDIO_SPEECH,
        Endpoint.AUDIO_TRANSCRIPTIONS,
        Endpoint.AUDIO_TRANSLATIONS,
        Endpoint.CLASSIFY,
        Endpoint.COUNT_TOKENS,
        Endpoint.DETOKENIZE,
        Endpoint.EMBEDDINGS,
        Endpoint.IMAGE_EDITS,
        Endpoint.IMAGE_GENERATIONS,
        Endpoint.IMAGE_VARIATIONS,
        Endpoint.INPUT_TOKENS,
        Endpoint.MODERATIONS,
        Endpoint.RERANK,
        Endpoint.SCORE,
        Endpoint.TOKENIZE,
    }
)
"""Endpoints that generate no text of a prompt: no engine caches prefixes for them, and all but those of IMAGES, SPEECH and TRANSCRIPTS are
counted with embeddings."""

IMAGES = frozenset({Endpoint.IMAGE_EDITS, Endpoint.IMAGE_GENERATIONS, Endpoint.IMAGE_VARIATIONS})
"""Endpoints that generate images."""

SPEECH = frozenset({Endpoint.AUDIO_SPEECH})
"""Endpoints that make speech of text."""

TRANSCRIPTS = frozenset({Endpoint.AUDIO_TRANSCRIPTIONS, Endpoint.AUDIO_TRANSLATIONS})
"""Endpoints that make text of speech."""

TRANSLATED_ENDPOINTS = frozenset({Endpoint.MESSAGES, Endpoint.RESPONSES})
"""Endpoints that a deployment without them can serve, because the gateway translates them to chat completions."""

COUNTED_ENDPOINTS = {Endpoint.COUNT_TOKENS: Endpoint.MESSAGES, Endpoint.INPUT_TOKENS: Endpoint.RESPONSES}
"""Endpoints that count the tokens of a request, and those that such a request would be sent to."""


HEDGE_PERCENT_FIRST = 5
"""Share of the requests of a model that are hedged at most, unless it says otherwise: about those beyond the 95th percentile."""
HEDGE_PERCENT_MAX = 50
TIME_MS_MAX = 600_000
"""Longest time of hedging and of a latency goal: ten minutes."""
RELATIVE_COST_MAX = 1_000_000


class UnknownParameters(StrEnum):
    """Policy for request fields that neither the dialect nor the engine's table knows."""

    REFUSE = "refuse"
    DROP = "drop"
    FORWARD = "forward"


class CacheIsolation(StrEnum):
    """Separation of organizations in a deployment's prefix cache, whose hits can be measured by time and by `cached_tokens`."""

    ENGINE = "engine"  # by the engine's own salt, where it has one; nothing elsewhere
    PROMPT = "prompt"  # by a salt as the first bytes of the system prompt, which the model reads and the client pays
    DEDICATED = "dedicated"  # the deployment serves one organization
    ACCEPTED = "accepted"  # the operator accepts that organizations share the cache


class Guardrail(StrEnum):
    """Check of a model's requests and answers by the guardrail of its gateways (docs/guardrails.md), and what happens while that does
    not answer."""

    OFF = "off"  # nothing is checked
    OPEN = "open"  # what cannot be checked passes
    CLOSED = "closed"  # what cannot be checked is refused


class GuardrailStages(StrEnum):
    """Part of the traffic of a model that the guardrail checks."""

    REQUEST = "request"
    RESPONSE = "response"
    BOTH = "both"


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A public name in the catalog. Draft until published; only published models reach gateways.

    `output_tokens_max`: cap on what one request may ask for, None for the engine's own. `context_length`: most tokens that a prompt can
    have, None if nothing is stated; an engine's report of more is not believed. `retry_started`: whether a request that an engine may have
    begun can be sent again elsewhere (true for stateless inference). `share_cache`: True lets tenants share the engine's prefix cache,
    which is measurable across tenants, so the default isolates them by salt. `groups`: names of the groups of models that it
    is in, at most MODEL_GROUPS_MAX, ordered; limits and budgets can be set on a group. `fallbacks`:
    names of models that serve in its place while it cannot, in their order. `hedge_after_ms`: time after which a request whose answer has
    not begun is sent to a second deployment too, None for never; at most `hedge_percent` of the requests are. `latency_goal_ms`: time to
    the first token within which requests go to its cheapest deployments, None if costs do not count. `response_cache_seconds`: how long
    an answer can be given again to the same request that asks for it, 0 (never) to RESPONSE_CACHE_SECONDS_MAX. `guardrail`,
    `guardrail_stages`: whether the guardrail checks its traffic, and which part.
    """

    name: str
    status: Status
    published: bool
    endpoints: tuple[Endpoint, ...]
    created_at: int
    output_tokens_max: int | None = None
    context_length: int | None = None
    unknown_parameters: UnknownParameters = UnknownParameters.REFUSE
    retry_started: bool = True
    share_cache: bool = False
    groups: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()
    hedge_after_ms: int | None = None
    hedge_percent: int = HEDGE_PERCENT_FIRST
    latency_goal_ms: int | None = None
    response_cache_seconds: int = 0
    guardrail: Guardrail = Guardrail.OFF
    guardrail_stages: GuardrailStages = GuardrailStages.BOTH


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """A model served by one upstream. Lower tiers are tried first; within a tier, weight is the share (0 drains).

    `cache_isolation`: see `CacheIsolation`; without effect where the model shares its cache. `pooling`: whether connections are used again,
    which an upstream that confuses answers must not be trusted with. `translated_endpoints`: those that the upstream has not got, so that
    the gateway translates them to chat completions; beside those that no server of this kind has. `test`: it serves requests of test keys,
    and only these.
    `priorities`: the engine schedules by priority, so it is sent that of the service tier. `relative_cost`: of the same work at the
    deployments of its model, in the operator's own unit; None if it is not stated, which is the highest.
    `grpc_port`: at which an engine of the Open Inference Protocol serves gRPC; None for the one after that of `base_url`.
    `region`: where it is; None if that is not stated. `base_url`: http(s)://host[:port][/path], without the /v1. `credential`: sealed by
    the vault, None if the upstream asks for none.
    """

    id: str
    model: str
    base_url: str
    engine: Engine
    upstream_model: str
    tier: int
    weight: int
    region: str | None
    status: Status
    created_at: int
    credential: bytes | None = None
    cache_isolation: CacheIsolation = CacheIsolation.ENGINE
    pooling: bool = True
    translated_endpoints: tuple[Endpoint, ...] = ()
    test: bool = False
    priorities: bool = False
    relative_cost: int | None = None
    grpc_port: int | None = None


def is_resident(deployment: Deployment, residency: frozenset[str] | None) -> bool:
    """Return whether a deployment may serve a project that is restricted to these regions; None restricts nothing. A deployment whose
    region is not stated serves no restricted project."""
    return residency is None or deployment.region in residency
