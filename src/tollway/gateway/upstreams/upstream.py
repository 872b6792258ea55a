"""Upstreams: the connection pool of each deployment.

Idle connections are used last-in first-out and closed after IDLE_SECONDS, which must stay below the engines' own keep-alive (5 s in
vLLM, SGLang and TensorRT-LLM): otherwise an engine resets a connection just as it is used again. The number of connections is not
bounded here, because the limits bound concurrency; descriptors are (`open_connections`).

An engine that sends bytes on a connection on which nothing was asked disagrees with the gateway about where a message ends, and the next
request on that connection could be given another one's answer. Its connections are then used once each for POOLING_PAUSE_SECONDS. So that
such bytes are noticed before a request is sent behind them, connections of an engine that is not known yet rest for REST_SECONDS before
they are used again, until PROOFS have rested and said nothing. An engine that repeats the id of a request is held to it in every answer.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol
from urllib.parse import quote, urlsplit
from zlib import crc32

from tollway.domain import faults
from tollway.domain.addresses import is_metadata_peer
from tollway.domain.catalog import Deployment, Endpoint
from tollway.domain.faults import Fault
from tollway.domain.snapshot import DeploymentEntry
from tollway.engines.table import ENGINES
from tollway.gateway.buffers import Buffers
from tollway.gateway.dialects.dialect import Dialect
from tollway.gateway.dialects.table import DIALECTS
from tollway.gateway.latency_goals import FirstTokenTimes
from tollway.gateway.ports import Vault
from tollway.gateway.prefix_routing import CANDIDATE_KINDS, HeldPrefixes, Load, Selector
from tollway.gateway.request import Request
from tollway.gateway.request_traces import find_attempt_span
from tollway.gateway.upstreams.cache_events import CacheEventQuery
from tollway.gateway.upstreams.concurrency import ConcurrencyBounds, ConcurrencyLimit
from tollway.gateway.upstreams.connection import UpstreamConnection
from tollway.gateway.upstreams.health import Health
from tollway.gateway.upstreams.load_reports import LoadQuery
from tollway.gateway.upstreams.open_connections import OpenConnections, find_name_error, is_exhausted
from tollway.gateway.upstreams.probes import ProbeRequest
from tollway.telemetry import LogWriter, Metrics, UpstreamState, new_line

IDLE_SECONDS: Final = 3.0
IDLE_CONNECTIONS_MAX: Final = 1024
"""Idle connections kept for each upstream; a burst leaves no more sockets than this behind."""
POOLING_PAUSE_SECONDS = 300.0
"""Time for which connections of an upstream that spoke unasked are not kept. A repeated answer may be late; a new connection is cheap."""
REST_SECONDS = 0.25
"""Rest of a connection of an engine that is not known yet. An answer that is repeated comes within milliseconds, and later where processors
are short."""
PROOFS = 32
"""Connections that have to rest in silence. A busy engine has shown it within a second; until then it has some connections more."""
BYTES_PER_TOKEN_FIRST = 8
"""Bytes of a request for each token of its prompt, before any was learned: twice what plain text has, so an estimate is rather too low."""
BYTES_LEARNED_FIRST = 512
"""Weight of that first ratio. The requests that were reported soon outweigh it."""
BYTES_LEARNED_MAX: Final = 1 << 28
"""Bytes after which what was learned counts half, so that a ratio follows its model's traffic."""
SHORTAGE_SECONDS = 0.01
"""Pause before a connection is tried again for which there was no descriptor: those that were closed are free after a turn of the loop."""
OVERLOAD_KINDS = frozenset({faults.UPSTREAM_RATE_LIMITED, faults.UPSTREAM_REFUSED, faults.UPSTREAM_TIMEOUT_FIRST})
"""Faults with which an engine says that it has too much to do."""
DESCRIPTION_SECONDS = 2.0
"""Time for an engine's description of a model."""
_JSON = "content-type: application/json\r\n"
_ACCEPT = "accept: application/json, text/event-stream\r\n"
DRAIN_SECONDS = 5.0
"""Limits for a connection that has to end a message whose content is complete ([DONE] seen, last chunk not)."""


class Upstream:
    """One deployment: its address, its idle connections, its health and its load.

    `probe_at`: when it is asked next whether it takes requests, in seconds of the monotonic clock. `running`: requests that it has been
    sent and that have not ended, changed by whoever relays. `limit`: most of them, beyond which further ones wait (`gateway.waiting`).
    `load`: of its engine in prompt tokens, kept where there are several deployments to choose from. `chosen`: how often it was, by each of
    CANDIDATE_KINDS. `first_token_times`: learned where its model has a latency goal. `explanation`: header lines of an answer that say
    what served it. `description`: asks an engine of the Open Inference Protocol what its model takes and gives; None for others.
    """

    def __init__(
        self,
        deployment: Deployment,
        credential: str | None,
        metrics: Metrics,
        log: LogWriter,
        connections: OpenConnections,
        buffers: Buffers,
        concurrency: ConcurrencyBounds | None = None,
        on_place: Callable[["Upstream"], None] = lambda _: None,
        load: Load | None = None,
    ) -> None:
        """`connections`: those of all upstreams. `on_place`: called when there may be a place at it that somebody waits for. `load`: that
        of an engine at which other deployments are, too."""
        self.running = 0
        self.load = load or Load(deployment.base_url)
        self.chosen = [0] * len(CANDIDATE_KINDS)
        self.first_token_times = FirstTokenTimes()
        self._concurrency = ConcurrencyLimit(concurrency or ConcurrencyBounds())
        self.limit = self._concurrency.limit
        self._on_place = on_place
        self._connections = connections
        self.account = buffers.add_upstream()
        self._metrics = metrics
        self._log = log
        self.deployment = deployment
        self.health = Health()
        self._pools_from = 0.0
        self._unproven = PROOFS
        self.echoes_ids = False
        self._learned_bytes = BYTES_LEARNED_FIRST
        self._learned_tokens = BYTES_LEARNED_FIRST // BYTES_PER_TOKEN_FIRST
        self._idle: list[UpstreamConnection] = []
        self._draining: set[UpstreamConnection] = set()
        url = urlsplit(deployment.base_url)
        self._host = url.hostname or ""
        secure = url.scheme == "https"
        self._port = url.port or (443 if secure else 80)
        self._tls = ssl.create_default_context() if secure else None
        authority = f"[{self._host}]" if ":" in self._host else self._host
        profile = ENGINES[deployment.engine]
        authorization = profile.credential_header.format(credential=credential) + "\r\n" if credential else ""
        self._own_headers = dict(profile.headers)
        base, own_paths = url.path.rstrip("/"), profile.paths
        model_path = quote(deployment.upstream_model, safe="/")
        self._heads = {
            endpoint: (
                f"POST {base}{own_paths.get(endpoint) or dialect.engine_path.replace('{model}', model_path) or dialect.target.decode()}"
                f" HTTP/1.1\r\n"
                f"host: {authority}:{self._port}\r\n{authorization}"
                f"{_JSON if dialect.form_kinds is None else ''}{_ACCEPT if dialect.new_media is None else ''}accept-encoding: identity\r\n"
            ).encode()
            for endpoint, dialect in DIALECTS.items()
        }
        model = quote(deployment.upstream_model, safe="")
        self._socket_head = (
            f"GET {base}{own_paths.get(Endpoint.REALTIME) or '/v1/realtime'}?model={model} HTTP/1.1\r\n"
            f"host: {authority}:{self._port}\r\n{authorization}"
            "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
        ).encode()

        def ask(path: str, seconds: float) -> ProbeRequest:
            target = base + path.replace("{model}", model).replace("{path}", model_path)
            head = (
                f"GET {target} HTTP/1.1\r\nhost: {authority}:{self._port}\r\n{authorization}"
                "accept-encoding: identity\r\nconnection: close\r\n\r\n"
            )
            return ProbeRequest(self._host, self._port, self._tls, head.encode(), seconds)

        readiness, source = profile.readiness, profile.load
        self.probe = None
        if readiness is not None:
            self.probe = ask(readiness.path, readiness.seconds)._replace(
                refusals=tuple(b"%d" % status for status in readiness.refusal_statuses)
            )
        self.probe_at = 0.0
        self.description = ask("/v2/models/{path}", DESCRIPTION_SECONDS) if profile.serves_grpc else None
        self.load_query = None if source is None else LoadQuery(ask(source.path, source.seconds), source)
        self.load_at = 0.0
        events = profile.cache_events
        self.cache_event_query = None if events is None or secure else CacheEventQuery(ask(events.path, events.seconds), events)
        self._tag_header = b"" if events is None else events.tag_header
        self.explanation = f"x-tollway-model: {deployment.model}\r\nx-tollway-deployment: {deployment.id}\r\n".encode()
        self.credential = credential
        grpc_port = deployment.grpc_port or self._port + 1
        self.grpc_target = f"{authority}:{grpc_port}" if profile.serves_grpc and grpc_port < 65_536 else ""
        self.identity = (deployment.base_url, credential, deployment.engine, deployment.upstream_model, deployment.grpc_port)

    def head(self, request: Request, dialect: Dialect, attempt: int, body_bytes: int) -> bytes:
        """Return the head of a request as it goes out, in the API `dialect`, before a body of so many bytes. Of the client's head only the
        trace, the dialect's `forwarded_headers` and what is left of its timeout are passed on. The id is a new one for each attempt,
        because engines take a repeated one for the same request."""
        passed_on = b""
        for name in dialect.forwarded_headers:
            if name in request.headers:
                passed_on += b"%b: %b\r\n" % (name, request.headers[name])
            elif name in self._own_headers:
                passed_on += b"%b: %b\r\n" % (name, self._own_headers[name])
        head = request.head
        if head.bounds_whole_answer:
            left_ms = int(max(request.started + head.timeout_seconds - time.monotonic(), 0.001) * 1000)
            passed_on += b"x-request-timeout: %d.%03d\r\n" % (left_ms // 1000, left_ms % 1000)
        if request.cache_tag and self._tag_header:
            passed_on += b"%b: %b\r\n" % (self._tag_header, request.cache_tag)
        if head.tracestate:
            passed_on += b"tracestate: %b\r\n" % head.tracestate
        if dialect.form_kinds is not None:
            passed_on += b"content-type: multipart/form-data; boundary=%b\r\n" % request.find_form_boundary()
        id = request.id if attempt == 1 else find_attempt_id(request, attempt)
        parent = request.traceparent if request.trace is None else find_traceparent(request, attempt)
        ours = f"x-request-id: {id}\r\ntraceparent: {parent}\r\ncontent-length: {body_bytes}\r\n\r\n"
        return self._heads[dialect.endpoint] + passed_on + ours.encode()

    def take_idle(self, now: float) -> UpstreamConnection | None:
        """Remove and return the most recently used idle connection, or None if none is younger than IDLE_SECONDS."""
        idle = self._idle
        if self._unproven:
            return self._take_rested(now)
        while idle:
            connection = idle.pop()
            if now - connection.settled_at < IDLE_SECONDS:
                return connection
            connection.close()
        return None

    def _take_rested(self, now: float) -> UpstreamConnection | None:
        """Remove and return the idle connection that has rested longest, or None if none has for REST_SECONDS."""
        idle = self._idle
        while idle and now - idle[0].settled_at >= REST_SECONDS:
            connection = idle.pop(0)
            if now - connection.settled_at < IDLE_SECONDS:
                self._unproven -= 1
                return connection
            connection.close()
        return None

    async def connect(self, timeout_seconds: float) -> UpstreamConnection:
        """Open a new connection. Raises Fault upstream_unreachable or upstream_connect_timeout; overloaded if this process has no
        descriptor for it, even after idle connections were closed."""
        connections = self._connections
        if connections.count >= connections.most:
            connections.on_shortage()
        try:
            async with asyncio.timeout(timeout_seconds):
                try:
                    return await self._open()
                except OSError as error:
                    if not is_exhausted(error):
                        raise
                connections.on_shortage()
                await asyncio.sleep(SHORTAGE_SECONDS)
                return await self._open()
        except TimeoutError:
            raise Fault(faults.UPSTREAM_TIMEOUT_CONNECT) from None
        except OSError as error:  # a failed handshake or look-up is one too
            if is_exhausted(error):
                raise Fault(faults.OVERLOADED, retry_after_seconds=1, detail="no descriptor for a connection to an engine") from None
            raise Fault(faults.UPSTREAM_CONNECT, detail=type(error).__name__) from None

    async def _open(self) -> UpstreamConnection:
        """Open a connection. Raises as `_open_as` does."""
        connection = UpstreamConnection(self)
        await self._open_as(connection)
        return connection

    async def _open_as(self, protocol: asyncio.Protocol) -> None:
        """Open a connection for a protocol. Raises OSError, PermissionError among them for a name that resolved to an address that no
        engine may have: then nothing was sent there."""
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.create_connection(lambda: protocol, self._host, self._port, ssl=self._tls)
        except ValueError as error:
            raise find_name_error(error) from None
        if is_metadata_peer(transport.get_extra_info("peername")):
            transport.abort()
            raise PermissionError("the name resolved to an address that is not allowed")

    async def connect_socket(self, protocol: asyncio.Protocol, connect_seconds: float) -> None:
        """Open a connection that is no part of the pool, for a WebSocket. Raises Fault as `connect` does."""
        try:
            async with asyncio.timeout(connect_seconds):
                await self._open_as(protocol)
        except TimeoutError:
            raise Fault(faults.UPSTREAM_TIMEOUT_CONNECT) from None
        except OSError as error:
            raise Fault(faults.UPSTREAM_CONNECT, detail=type(error).__name__) from None

    def socket_head(self, request: Request, attempt: int, key: bytes) -> bytes:
        """Return the request for a WebSocket at this engine. `key`: of its handshake."""
        id, parent = find_attempt_id(request, attempt).encode(), find_traceparent(request, attempt).encode()
        return b"%bx-request-id: %b\r\ntraceparent: %b\r\nsec-websocket-key: %b\r\n\r\n" % (self._socket_head, id, parent, key)

    def count_open(self, change: int) -> None:
        """Count a connection that was opened (1) or lost (-1)."""
        self._connections.count += change

    def put_idle(self, connection: UpstreamConnection) -> bool:
        """Keep an idle connection for the next request. Return False if it must be closed: the pool is full, or pooling is off."""
        self._draining.discard(connection)
        if len(self._idle) >= IDLE_CONNECTIONS_MAX or connection.settled_at < self._pools_from or not self.deployment.pooling:
            return False
        self._idle.append(connection)
        return True

    def put_draining(self, connection: UpstreamConnection) -> None:
        """Close the connection unless the end of its message arrives within DRAIN_SECONDS."""
        self._draining.add(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """The connection was closed while it was idle or draining."""
        self._draining.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def close_idle(self, now: float, *, all: bool = False) -> None:
        """Close connections idle or draining for too long, or all of them."""
        for connection in [c for c in self._idle if all or now - c.settled_at >= IDLE_SECONDS]:
            connection.close()
        for connection in [c for c in self._draining if all or now - c.settled_at >= DRAIN_SECONDS]:
            connection.close()

    def count_unsolicited(self) -> None:
        """Bytes arrived that answer nothing that was asked: count and log it, and keep no connection for POOLING_PAUSE_SECONDS."""
        self._unproven = PROOFS
        self._metrics.count(self._metrics.unsolicited, self.deployment.id)
        now = time.monotonic()
        if now >= self._pools_from:
            self._alarm("upstream_unsolicited", f"connections are used once each for {POOLING_PAUSE_SECONDS:.0f} s")
        self._pools_from = now + POOLING_PAUSE_SECONDS
        self.close_idle(now, all=True)

    def fail(self, fault: Fault, endpoint: Endpoint, organization_id: str, now: float, *, has_begun: bool) -> None:
        """Record the fault with which a request ended, count an ejection that follows, and log one that an operator must end."""
        if fault.kind in OVERLOAD_KINDS:
            self._concurrency.refused(self.running, now)
            self.limit = self._concurrency.limit
        if self.health.fail(fault, endpoint, organization_id, now, has_begun=has_begun):
            if fault.kind is faults.UPSTREAM_CONNECT:
                self.probe_at = min(self.probe_at, now)
            is_permanent = fault.kind is faults.UPSTREAM_MISCONFIGURED
            reason = "misconfigured" if is_permanent else fault.kind.code
            self._metrics.count_ejection(self.deployment.id, reason)
            if is_permanent:
                self._alarm("upstream_misconfigured", f"{endpoint}: {fault.detail}")

    def refuse(self, fault: Fault, refused_at: float, now: float) -> None:
        """Another upstream has begun to answer a request that this one refused (`Health.refuse`): count an ejection that follows."""
        if self.health.refuse(fault.kind, refused_at, now):
            self._metrics.count_ejection(self.deployment.id, fault.kind.code)

    def observe_first_token(self, seconds: float, prompt_bytes: int, now: float) -> None:
        """A stream's first token came after so many seconds."""
        self._concurrency.observe_first_token(seconds, prompt_bytes, self.running, now)
        self.limit = self._concurrency.limit

    def leave_full(self, now: float, *, is_answered: bool) -> None:
        """A request ended, as it should or not, where no place was free: somebody may wait for it."""
        if is_answered:
            self._concurrency.answered(now)
            self.limit = self._concurrency.limit
        self._on_place(self)

    @property
    def is_doubted(self) -> bool:
        """True while the upstream is not usable, so that its return should be noticed soon."""
        return not self.health.is_ready

    def probed(self, is_ready: bool | None, now: float) -> None:
        """Take what a probe found (`Health.probed`), and log a change."""
        if not self.health.probed(is_ready, now):
            return
        if self.health.is_ready:
            self._write("info", "upstream_ready", "")
        else:
            self._metrics.count(self._metrics.not_ready, self.deployment.id)
            self._write("warning", "upstream_not_ready", "no answer in time" if is_ready is None else "")

    def report_load(self, waiting: float | None, gateways: int) -> None:
        """Take what the engine reports to wait there (`upstreams.load_reports`); so many `gateways` send to it."""
        query = self.load_query
        if waiting is None or query is None:
            self._metrics.count(self._metrics.load_reports_failed, self.deployment.id)
        elif query.source.in_tokens:
            self.load.report_tokens(waiting)
        else:
            self.load.report_requests(waiting, gateways)

    def count_cache_event_gap(self) -> None:
        """Events of the engine's cache were missed and could not be had again (`upstreams.cache_events`)."""
        self._metrics.count(self._metrics.cache_event_gaps, self.deployment.id)

    def fade_load(self, seconds: float) -> None:
        """Let the last report fade for so many seconds."""
        self.load.fade(seconds)

    def learn_input(self, prompt_bytes: int, tokens: int) -> None:
        """Learn how many tokens the engine counts in the bytes of a request."""
        self._learned_bytes += prompt_bytes
        self._learned_tokens += tokens
        if self._learned_bytes > BYTES_LEARNED_MAX:
            self._learned_bytes >>= 1
            self._learned_tokens >>= 1

    def estimate_input(self, prompt_bytes: int) -> int:
        """Return about how many tokens the engine counts in so many bytes of a request."""
        return prompt_bytes * self._learned_tokens // self._learned_bytes

    def _alarm(self, event: str, detail: str) -> None:
        self._write("error", event, detail)

    def _write(self, level: str, event: str, detail: str) -> None:
        at_us = time.time_ns() // 1000
        self._log.write(new_line(at_us, level, event, {"upstream": self.deployment.id, "detail": detail}))


def find_attempt_id(request: Request, attempt: int) -> str:
    """Return the id by which an attempt at a request is known to the engine."""
    return request.id if attempt == 1 else f"{request.id}-{attempt}"


def find_traceparent(request: Request, attempt: int) -> str:
    """Return the trace that an engine gets with an attempt: of a sampled request its span, otherwise what the client sent."""
    if request.trace is not None and request.trace.is_sampled:
        return f"00-{request.trace_id}-{find_attempt_span(request.id, attempt)}-01"
    return request.traceparent


class OnPlace(Protocol):
    """Told when a deployment of a model may have a free place."""

    def __call__(self, model: str, *, test: bool) -> None: ...


class Upstreams:
    """All upstreams by model, as the snapshot lists them. A deployment whose address and credential stay the same keeps its connections.

    `gateways`: how many send requests to them, this one included. `held`: prefixes that engines hold by their own word; None unless events
    of their caches are followed.
    """

    def __init__(
        self, vault: Vault, metrics: Metrics, log: LogWriter, buffers: Buffers, concurrency: ConcurrencyBounds | None = None
    ) -> None:
        self._concurrency = concurrency or ConcurrencyBounds()
        self.on_place: OnPlace | None = None
        self._buffers = buffers
        self._metrics = metrics
        self._log = log
        self._vault = vault
        self._by_id: dict[str, Upstream] = {}
        self._by_model: dict[str, list[Upstream]] = {}
        self._by_model_for_tests: dict[str, list[Upstream]] = {}
        self._selectors: dict[tuple[str, bool], Selector] = {}
        self.gateways = 1
        self.held: HeldPrefixes | None = None
        self.unsealable = 0
        self.connections = OpenConnections(self.close_all_idle)

    def of(self, model: str, *, test: bool = False) -> list[Upstream]:
        """Return the model's upstreams for requests of live keys, or of test keys, in no particular order."""
        return self._by_model_for_tests.get(model, []) if test else self._by_model.get(model, [])

    def find_selector(self, model: str, *, test: bool) -> Selector:
        """Return what is remembered of the prompts of a model."""
        selector = self._selectors.get((model, test))
        if selector is None:
            selector = self._selectors[model, test] = Selector(crc32(model.encode()), self.held)
        return selector

    def list_alternatives(self) -> list[Upstream]:
        """Return the upstreams of models that have several, so that their load decides something; of those at one engine one."""
        groups = (*self._by_model.values(), *self._by_model_for_tests.values())
        return list({upstream.load: upstream for group in groups if len(group) > 1 for upstream in group}.values())

    def all(self) -> Iterable[Upstream]:
        """Return every upstream."""
        return self._by_id.values()

    def list_states(self) -> list[UpstreamState]:
        """Return the state of each deployment, for metrics."""
        return [
            UpstreamState(
                id,
                upstream.deployment.model,
                upstream.deployment.engine,
                upstream.deployment.region or "",
                upstream.running,
                upstream.limit,
                upstream.load.queued_tokens,
                list(zip(CANDIDATE_KINDS, upstream.chosen, strict=True)),
            )
            for id, upstream in self._by_id.items()
        ]

    def close_all_idle(self) -> None:
        """Close every connection that carries no request."""
        for upstream in list(self._by_id.values()):
            upstream.close_idle(0.0, all=True)

    def put(self, entry: DeploymentEntry) -> None:
        """Add or update a deployment. One whose credential cannot be unsealed is left out and counted in `unsealable`."""
        deployment = entry.deployment
        try:
            credential = None if deployment.credential is None else self._vault.unseal(deployment.credential)
        except ValueError:
            self.unsealable += 1
            self.remove(entry.id)
            return
        before = self._by_id.get(entry.id)
        if (
            before is not None
            and before.identity == (deployment.base_url, credential, deployment.engine, deployment.upstream_model, deployment.grpc_port)
            and (before.deployment.model, before.deployment.test) == (deployment.model, deployment.test)
        ):
            before.deployment = deployment
            self._tell_of_place(before)
            return
        self.remove(entry.id)
        load = next(
            (each.load for each in self._by_id.values() if each.identity[:3] == (deployment.base_url, credential, deployment.engine)), None
        )
        upstream = self._by_id[entry.id] = Upstream(
            deployment, credential, self._metrics, self._log, self.connections, self._buffers, self._concurrency, self._tell_of_place, load
        )
        self._place_of(deployment).setdefault(deployment.model, []).append(upstream)
        self._tell_of_place(upstream)

    def _tell_of_place(self, upstream: Upstream) -> None:
        if self.on_place is not None:
            self.on_place(upstream.deployment.model, test=upstream.deployment.test)

    def remove(self, id: str) -> None:
        """Remove a deployment: requests that run on it finish, and no new ones go there."""
        upstream = self._by_id.pop(id, None)
        if upstream is not None:
            deployment = upstream.deployment
            left = self._place_of(deployment)[deployment.model]
            left.remove(upstream)
            if not left:
                self._selectors.pop((deployment.model, deployment.test), None)
            upstream.close_idle(0.0, all=True)

    def _place_of(self, deployment: Deployment) -> dict[str, list[Upstream]]:
        return self._by_model_for_tests if deployment.test else self._by_model

    def replace_all(self, entries: Iterable[DeploymentEntry]) -> None:
        """Replace the whole set, after a reset of the snapshot."""
        entries = list(entries)
        for id in self._by_id.keys() - {entry.id for entry in entries}:
            self.remove(id)
        for entry in entries:
            self.put(entry)
