"""What a request becomes on its way: Request > Caller > Call > Permit. Each phase needs the type that the one before made.

Values only. The two live ends of a request are elsewhere: the client's (`ports.Client`) and the engine's (`upstream.Connection`).
"""

from collections.abc import Callable, Sequence

import msgspec

from tollway.domain.catalog import Deployment, Endpoint
from tollway.domain.limits import rate
from tollway.domain.prices import PriceVersion
from tollway.domain.snapshot import KeyEntry, ModelEntry, OrganizationEntry, ProjectEntry
from tollway.gateway.dialects.table import DIALECTS, Dialect
from tollway.gateway.engines.habits import HABITS
from tollway.wire import bodies


class Request:
    """One request as it reached its route. Times: `started` is monotonic seconds, `received_at` UTC microseconds. `peer`: the client's
    address, for the log; empty unless that is wanted."""

    __slots__ = ("body", "endpoint", "headers", "id", "peer", "received_at", "started", "trace_id", "traceparent")

    def __init__(
        self,
        id: str,
        endpoint: Endpoint,
        headers: dict[bytes, bytes],
        body: bytes,
        started: float,
        received_at: int,
        trace_id: str,
        span_id: str,
        peer: str = "",
    ) -> None:
        self.id = id
        self.peer = peer
        self.endpoint = endpoint
        self.headers = headers
        self.body = body
        self.started = started
        self.received_at = received_at
        self.trace_id = trace_id
        self.traceparent = f"00-{trace_id}-{span_id}-00"


class Caller:
    """Who asks: key, project and organization as the snapshot knows them, with what follows from them compiled once.

    `models`: what both key and project allow, None for everything published. `per_minute` and `concurrent`: the limit of each
    level that has one. `terms`: what its ADMITs have in common, kept by `meter`. `cache_salt`: what keeps this organization's prefixes
    apart inside an engine.
    """

    __slots__ = ("cache_salt", "concurrent", "expires_at", "key", "models", "organization", "per_minute", "project", "terms")

    def __init__(self, key: KeyEntry, project: ProjectEntry, organization: OrganizationEntry, cache_salt: bytes) -> None:
        self.key = key
        self.project = project
        self.organization = organization
        self.cache_salt = cache_salt
        self.expires_at = key.expires_at
        self.terms: dict[tuple[str, Endpoint, bool], bytes] = {}
        allowed = [frozenset(entry.models) for entry in (key, project) if entry.models is not None]
        self.models: frozenset[str] | None = frozenset.intersection(*allowed) if allowed else None
        levels = [(entry.id, entry.limits) for entry in (key, project, organization)]
        self.per_minute = tuple(rate(id, limits.requests_per_minute) for id, limits in levels if limits.requests_per_minute is not None)
        self.concurrent = tuple((id, limits.concurrent_requests) for id, limits in levels if limits.concurrent_requests is not None)


class Call:
    """A permitted request: which model, at which price, and what the engine is to be asked.

    `names`: the body's top-level fields. `dropped`: those of them that do not go up. `output_cap`: the model's, to be set where the client
    named no maximum. `output_tokens_max`: most tokens that the answer can have, None if nothing says. `hide_usage`: the client did not ask
    for usage in its stream, so it is taken out again.
    """

    __slots__ = (
        "caller",
        "choices",
        "dropped",
        "hide_continuous",
        "hide_usage",
        "model",
        "names",
        "output_cap",
        "output_tokens_max",
        "price",
        "request",
        "stream",
    )

    def __init__(
        self,
        request: Request,
        caller: Caller,
        model: ModelEntry,
        price: PriceVersion,
        names: tuple[str, ...],
        dropped: Sequence[str],
        *,
        output_cap: int | None,
        output_tokens_max: int | None,
        stream: bool,
        choices: int,
        hide_usage: bool,
        hide_continuous: bool,
    ) -> None:
        self.request = request
        self.caller = caller
        self.model = model
        self.price = price
        self.names = names
        self.dropped = dropped
        self.output_cap = output_cap
        self.output_tokens_max = output_tokens_max
        self.stream = stream
        self.choices = choices
        self.hide_usage = hide_usage
        self.hide_continuous = hide_continuous

    @property
    def dialect(self) -> Dialect:
        """What the bodies of its endpoint mean."""
        return DIALECTS[self.request.endpoint]

    def wants_continuous(self, deployment: Deployment) -> bool:
        """Whether to ask for running usage. Not where several choices are generated: vLLM counts each of them by itself then."""
        return self.choices == 1 and HABITS[deployment.engine].continuous_usage

    def upstream_body(self, deployment: Deployment) -> bytes:
        """The body for one deployment: the client's values verbatim, with the fields set that are ours to set."""
        habits = HABITS[deployment.engine]
        ours: dict[str, bytes] = {}
        if self.output_cap is not None:
            ours["max_tokens"] = b"%d" % self.output_cap
        if deployment.upstream_model != self.model.id:
            ours["model"] = msgspec.json.encode(deployment.upstream_model)
        if self.stream and self.dialect.stream_options:
            ours["stream_options"] = _CONTINUOUS if self.wants_continuous(deployment) else _FINAL_USAGE
        if habits.cache_salt and not self.model.share_cache:
            ours["cache_salt"] = self.caller.cache_salt
        return bodies.edit(self.request.body, self.names, ours, self.dropped)


_CONTINUOUS = b'{"include_usage":true,"continuous_usage_stats":true}'
_FINAL_USAGE = b'{"include_usage":true}'


class Permit:
    """A call that passed its limits. Holds a place in each concurrency count until the block is left: `leave` gives it back. `headers`:
    x-ratelimit-* lines."""

    __slots__ = ("_leave", "call", "headers")

    def __init__(self, call: Call, headers: bytes, leave: Callable[[tuple[tuple[str, int], ...]], None]) -> None:
        self.call = call
        self.headers = headers
        self._leave = leave

    def __enter__(self) -> "Permit":
        return self

    def __exit__(self, *exc: object) -> None:
        concurrent = self.call.caller.concurrent
        if concurrent:
            self._leave(concurrent)


class ClientGone(Exception):
    """The client closed its connection before its answer was complete."""
