"""The type of an engine's description."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from tollway.domain.catalog import Endpoint, Engine
from tollway.domain.reconciliation import PromptCount
from tollway.domain.usage import ServiceTier

SAMPLING_FIELDS = frozenset({"top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos", "min_tokens", "skip_special_tokens"})
"""Request fields of sampling that most engines have beyond OpenAI's."""


class CounterNames(msgspec.Struct, frozen=True):
    """The place where an engine publishes its own token counters, in the Prometheus text format.

    `path`: of the page, below the deployment's base URL. `prefix`: what the names of all of the engine's metrics begin with. `prompt`,
    `output`: names of the totals of prompt and output tokens. `counts_cached`: whether the prompt total includes tokens that came from
    the prefix cache. `prompt_count`: how often it has the prompt of a request for several choices.
    """

    path: str
    prefix: str
    prompt: str
    output: str
    counts_cached: bool = True
    prompt_count: PromptCount = PromptCount.ONCE


class ReadinessProbe(msgspec.Struct, frozen=True):
    """The place where an engine says whether it takes requests: status 200 means that it does, one of `refusal_statuses` that it does
    not (it starts or drains).

    `path`: below the deployment's base URL; `{model}` stands for the upstream's name of the model. `seconds`: most time for the answer.
    """

    path: str
    seconds: float = 1.0
    refusal_statuses: tuple[int, ...] = (503,)


class LoadSource(msgspec.Struct, frozen=True):
    """The place where an engine says how much work waits at it.

    `path`: below the deployment's base URL. `name`: of the gauge on a page in the Prometheus text format, whose series are summed; or of
    the field in the elements of `list` in a JSON object. `labels`: a label that the series counted have, as the page writes it; empty for
    all series. `in_tokens`: it counts prompt tokens that are still to be computed; otherwise
    requests that wait. `seconds`: most time for the answer.
    """

    path: str
    name: str
    list: str = ""
    in_tokens: bool = False
    seconds: float = 1.0
    labels: str = ""


class CacheEventAddress(NamedTuple):
    """Ports of an engine, at the host of its deployment, where it publishes events about its prefix cache (`wire.cache_events`): as they
    happen, those whose name begins with `topic`; and those of a while ago, None if it repeats none."""

    port: int
    replay_port: int | None
    topic: bytes


class CacheEventSource(msgspec.Struct, frozen=True):
    """The place where an engine says where it publishes events about its prefix cache.

    `path`: below the deployment's base URL. `read`: returns what the page there says, None if it publishes none; raises ValueError for one
    that cannot be understood. `tag_header`, `tag_field`: the header or the body's field of a request for the session that its events
    repeat; the field at the endpoints of `tag_endpoints`. `seconds`: most time for the answer.
    """

    path: str
    read: Callable[[bytes], CacheEventAddress | None]
    tag_header: bytes = b""
    tag_field: str = ""
    tag_endpoints: frozenset[Endpoint] = frozenset()
    seconds: float = 1.0


def read_zmq_port(address: object) -> int:
    """Return the port of an address such as `tcp://*:5557`. Raises ValueError for another text or none."""
    scheme, _, rest = address.partition("://") if isinstance(address, str) else ("", "", "")
    port = rest.rpartition(":")[2]
    if scheme != "tcp" or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ValueError("no address of a TCP socket")
    return int(port)


class EngineProfile(msgspec.Struct, frozen=True, kw_only=True):
    """Capabilities of an engine, and how it differs from others.

    `reports_one_sequence`: a usage report is that of one sequence, where several choices or prompts were asked for: in a stream there is
    one for each, in a whole answer only the first one's. `continuous_usage`: reports running usage on every chunk when asked, so that a cut
    stream is billed to the token. `translated_endpoints`: those that no version of it has, which the gateway translates to chat
    completions. `endpoints`: those that it has itself, None where that differs by version. `credential_header`: the header of a request
    that carries the credential. `headers`: those of `Dialect.forwarded_headers` that it wants where a client sends none.
    `counting_endpoints`: those of `COUNTED_ENDPOINTS` that it has, unless a deployment has the API translated whose tokens they count;
    `tokenizes_messages`: its tokenize applies the chat template to a conversation. `salted_endpoints`: those at which it separates the
    prefix cache by a salt in the body (`cache_salt`). `paths`: those of its endpoints that are not `/v1/` and the endpoint, below the
    deployment's base URL. `fields`: request fields beyond the API's own that a client may send. `context_words`: parts of an error's text,
    type or code by which the engine says that the request is longer than the model's context. `request_words`: those by which it rejects a
    request in an error that it calls its own (status 500 and above). `drain_messages`: whole texts of errors (status 500 and above) by
    which it says that it shuts down and has not begun the request. `counters`: where it publishes its token counters; None if it does not.
    `readiness`: where it says whether it takes requests; None if it does not. `load`: where it says how much waits there; None if it does
    not. `priorities`: the value of the request field `priority` for each service tier, where it schedules by priority; empty if it takes
    none. `cache_events`: where it says where it publishes events about its prefix cache; None if it does not, or names no session in them.
    `serves_grpc`: it speaks the Open Inference Protocol, by gRPC on the port after that of its base URL unless its deployment names one.
    """

    engine: Engine
    continuous_usage: bool = False
    endpoints: frozenset[Endpoint] | None = None
    credential_header: str = "authorization: Bearer {credential}"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    translated_endpoints: frozenset[Endpoint] = frozenset()
    counting_endpoints: frozenset[Endpoint] = frozenset({Endpoint.COUNT_TOKENS})
    tokenizes_messages: bool = False
    reports_one_sequence: bool = False
    salted_endpoints: frozenset[Endpoint] = frozenset()
    paths: Mapping[Endpoint, str] = msgspec.field(default_factory=dict)
    fields: frozenset[str] = frozenset()
    context_words: tuple[str, ...] = ()
    request_words: tuple[str, ...] = ()
    drain_messages: frozenset[str] = frozenset()
    counters: CounterNames | None = None
    readiness: ReadinessProbe | None = None
    load: LoadSource | None = None
    cache_events: CacheEventSource | None = None
    serves_grpc: bool = False
    priorities: Mapping[ServiceTier, int] = msgspec.field(default_factory=dict)
