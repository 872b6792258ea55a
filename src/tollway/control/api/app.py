"""The applications of a control process: the public REST API, the internal link that gateways speak, and the pages for people, which are
part of the first unless they have a listener of their own.

Around every answer stands `Envelope`: the request id, `cache-control: no-store` unless the answer says otherwise (files of the console,
whose names follow from their content), the cap on bodies and the deadline for their arrival, the cap on concurrent requests, one line of
log, and the last resort that turns a defect into a 500 without a word about it.
"""

import asyncio
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
import prometheus_client
from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry, Counter
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tollway.control.api import descriptions, errors, reference, unsupported
from tollway.control.api.auditing import audit_logs
from tollway.control.api.authentication import (
    account_pages,
    certificates,
    device_pages,
    operator_links,
    provider_pages,
    scim,
    sessions,
    sign_in_connections,
    sign_in_pages,
    tokens,
)
from tollway.control.api.bounds import limits
from tollway.control.api.catalog import catalog, deployments, price_books, prices
from tollway.control.api.database_figures import DatabaseFigures
from tollway.control.api.eventing import batch_ends, events, telemetry_exports, webhooks
from tollway.control.api.gateways import fleet, link, losses, nodes
from tollway.control.api.identity import (
    api_keys,
    federation,
    groups,
    inference_access,
    invites,
    leaked_keys,
    operator_keys,
    operators,
    roles,
    service_accounts,
    users,
)
from tollway.control.api.invoicing import connectors, credit_transfers, direct_debits, invoices, payments
from tollway.control.api.invoicing import exports as invoice_exports
from tollway.control.api.metering import quarantined_records, reconciliation, records, request_log, usage
from tollway.control.api.money import budgets, contracts, corrections, credits, ledger, margins, periods, spend_limits
from tollway.control.api.places import CALLER_REQUESTS_MAX, NODE_REQUESTS_MAX, Place, Places
from tollway.control.api.routes import ApiRoute, Plane, public, router
from tollway.control.api.schemas import Out, find_seconds
from tollway.control.api.secrets import encryption, peppers
from tollway.control.api.tenancy import (
    data_exports,
    data_retention,
    erasures,
    organizations,
    plans,
    project_policies,
    projects,
    stored_responses,
)
from tollway.control.gateways.refused_epochs import EPOCH_REFUSED
from tollway.control.identity.access import NODE_MISMATCH
from tollway.control.jobs import JobState
from tollway.control.plane import ControlPlane
from tollway.control.tracing import TracedOperation
from tollway.domain import ids
from tollway.domain.faults import BODY_TOO_LARGE, INTERNAL, REQUEST_TIMEOUT, TARGET_INVALID, Fault
from tollway.domain.networks import Network, find_client
from tollway.metric_table import find_metric
from tollway.spans import SpanKind

BODY_BYTES_MAX = 1024 * 1024
"""Bound on a body of the public API. The largest honest one is a list of model names."""

LINK_BODY_BYTES_MAX = 4 * 1024 * 1024
"""Bound on a body of the link: the records that a gateway may send in one request."""

BODY_SECONDS_MAX = 30.0
"""For a body to arrive: the largest one at 1.2 Mbit/s. Slower is an attack or a broken line."""

HEALTH_PATHS = frozenset({"/livez", "/readyz"})
"""Paths that are answered at capacity too: a probe that fails makes a supervisor replace a process that is only busy."""

UNTRACED_PATHS = HEALTH_PATHS | {"/metrics"}
"""Paths that are asked every few seconds, and say nothing in a trace."""

ALARMED = (NODE_MISMATCH, EPOCH_REFUSED)
"""Faults that no correct gateway causes: each is an event of its own in the log, at level `error`."""

STATUS_CLIENT_LEFT = 499
"""In logs and metrics only, as nginx has it: the client left before its request was whole, and nobody is there to answer."""

PUBLIC_ROUTERS: Sequence[APIRouter] = (
    project_policies.router,
    projects.router,
    api_keys.router,
    inference_access.router,
    leaked_keys.router,
    data_retention.router,
    data_exports.router,
    erasures.router,
    service_accounts.router,
    limits.router,
    plans.router,
    budgets.router,
    spend_limits.router,
    request_log.router,
    usage.router,
    organizations.router,
    catalog.router,
    deployments.router,
    prices.router,
    price_books.router,
    nodes.router,
    fleet.router,
    losses.router,
    ledger.router,
    reconciliation.router,
    periods.router,
    corrections.router,
    credits.router,
    contracts.router,
    margins.router,
    invoices.router,
    payments.router,
    connectors.router,
    direct_debits.router,
    credit_transfers.router,
    invoice_exports.router,
    quarantined_records.router,
    operator_keys.router,
    operators.router,
    operator_links.router,
    audit_logs.router,
    peppers.router,
    encryption.router,
    users.router,
    sessions.router,
    sign_in_connections.router,
    invites.router,
    groups.router,
    roles.router,
    federation.router,
    certificates.router,
    tokens.router,
    scim.router,
    webhooks.router,
    telemetry_exports.router,
    events.router,
    unsupported.router,
)
PAGE_ROUTERS: Sequence[APIRouter] = (sign_in_pages.router, account_pages.router, device_pages.router, provider_pages.router)
LINK_ROUTERS: Sequence[APIRouter] = (
    link.router,
    records.router,
    budgets.link_router,
    limits.link_router,
    fleet.link_router,
    batch_ends.link_router,
    stored_responses.router,
    data_retention.link_router,
)


def create_apps(
    plane: ControlPlane, registry: CollectorRegistry | None = None, pages: Sequence[APIRouter] = (), *, has_own_console: bool = False
) -> list[FastAPI]:
    """The public application and that of the link, which also shows the metrics of all; with `has_own_console` a third one, the console and
    the sign-in, which the public application has beside the API otherwise. `registry`: takes these metrics. `pages`: those of the console.

    Raises TypeError if a route does not declare its access."""
    registry = registry or CollectorRegistry()
    registry.register(DatabaseFigures(plane))
    registry.register(plane.reconciliation)
    registry.register(plane.jobs)
    registry.register(plane.sign_ins)
    registry.register(plane.stripe_events)
    registry.register(plane.webhooks)
    registry.register(plane.sinks)
    registry.register(plane.exports)
    if plane.telemetry is not None:
        registry.register(plane.telemetry)
    counters = Counters(
        _declare("tollway_control_requests", registry),
        _declare("tollway_control_refusals", registry),
    )
    for_people = [*PAGE_ROUTERS, *pages]
    api = [*PUBLIC_ROUTERS, *([] if has_own_console else for_people), _health(), _description()]
    apps = [
        _create_app("api", plane, counters, api, BODY_BYTES_MAX),
        _create_app("link", plane, counters, [*LINK_ROUTERS, _health(), _metrics(registry)], LINK_BODY_BYTES_MAX),
    ]
    if has_own_console:
        apps.append(_create_app("console", plane, counters, [*for_people, _health()], BODY_BYTES_MAX))
    return apps


def _declare(name: str, registry: CollectorRegistry) -> Counter:
    row = find_metric(name)
    return Counter(row.name, row.text, row.labels, registry=registry)


@dataclass(frozen=True, slots=True)
class Counters:
    """The counters of all applications: requests answered and requests refused."""

    requests: Counter
    refusals: Counter


def _create_app(name: str, plane: ControlPlane, counters: Counters, routers: Sequence[APIRouter], body_bytes_max: int) -> FastAPI:
    app = FastAPI(title="Tollway", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.plane = plane
    for each in routers:
        # The routes themselves, not `include_router`: each is complete, and a walk over `app.routes` sees every one.
        app.router.routes.extend(each.routes)
    refuse_undeclared(app.routes)
    errors.install(app)
    app.add_middleware(Envelope, name=name, plane=plane, counters=counters, body_bytes_max=body_bytes_max)
    return app


def refuse_undeclared(routes: Sequence[BaseRoute]) -> None:
    """Default deny: raise TypeError if any route is not a `ApiRoute`, which alone declares and enforces who may pass."""
    for route in routes:
        if not isinstance(route, ApiRoute):
            raise TypeError(f"route {getattr(route, 'path', route)!r} does not declare who may pass")


class JobOut(Out):
    """The state of a periodic job."""

    name: Annotated[str, Field(description="Name of the job.", examples=["period_closing"])]
    is_running: Annotated[bool, Field(description="Whether this process runs it at the moment.", examples=[False])]
    last_success_at: Annotated[
        int | None, Field(description="Latest success in any process, in Unix seconds; null if there is none.", examples=[1790000000])
    ]
    failures: Annotated[int, Field(description="Failures since the latest success, 0 or more.", examples=[0])]


class Readiness(Out):
    """The state of a control process that is ready."""

    status: Annotated[Literal["ok"], Field(description="Always `ok`.", examples=["ok"])]
    jobs: Annotated[list[JobOut], Field(description="The periodic jobs of this process.")]


def _job_out(name: str, state: JobState) -> JobOut:
    return JobOut(name=name, is_running=state.is_running, last_success_at=find_seconds(state.last_success_at), failures=state.failures)


def _health() -> APIRouter:
    health = router(tags=["health"])

    @health.get("/livez", dependencies=[Depends(public)])
    async def live() -> dict[str, str]:
        """The process answers. Says nothing about what it depends on."""
        return {"status": "ok"}

    @health.get("/readyz", dependencies=[Depends(public)])
    def ready(plane: Plane) -> Readiness:
        """Show that the database answers and that this process is not about to stop, with the state of each periodic job; 503 otherwise.

        A job that fails does not make the process unready, because requests do not depend on it: alert on its metrics."""
        plane.publications.refuse_if_stopping()
        plane.database.ping()
        return Readiness(status="ok", jobs=[_job_out(name, state) for name, state in plane.jobs.by_name.items()])

    return health


def _description() -> APIRouter:
    description = router(tags=["description"])

    @description.get("/openapi.json", dependencies=[Depends(public)], include_in_schema=False)
    async def describe(request: Request) -> Response:
        """Return the OpenAPI 3.1 description of this API."""
        return Response(await _describe_once(request.app), media_type="application/json")

    @description.get("/reference", dependencies=[Depends(public)], include_in_schema=False)
    async def show(request: Request) -> Response:
        """Return the description as a page for people."""
        described = await _describe_once(request.app)
        page = await _make_once(request.app, "reference", lambda: reference.render(msgspec.json.decode(described)).encode())
        return Response(page, media_type="text/html", headers={"content-security-policy": reference.CONTENT_SECURITY_POLICY})

    return description


async def _describe_once(app: FastAPI) -> bytes:
    return await _make_once(app, "description", lambda: msgspec.json.encode(descriptions.describe(app)))


async def _make_once(app: FastAPI, name: str, make: Callable[[], bytes]) -> bytes:
    """Return what `make` makes, which is kept with the application.

    The description takes two seconds of CPU, because it completes every route, and clients without a key may ask for it: whoever asks
    meanwhile waits for the same one, and holds no worker thread.
    """
    making: asyncio.Future[bytes] | None = getattr(app.state, name, None)
    if making is None or (making.done() and (making.cancelled() or making.exception() is not None)):
        making = asyncio.ensure_future(run_in_threadpool(make))
        setattr(app.state, name, making)
    return await asyncio.shield(making)


def _metrics(registry: CollectorRegistry) -> APIRouter:
    metrics = router(tags=["metrics"])

    @metrics.get("/metrics", dependencies=[Depends(public)])
    def render() -> Response:
        """Prometheus metrics of this process."""
        return Response(prometheus_client.generate_latest(registry), media_type=prometheus_client.CONTENT_TYPE_LATEST)

    return metrics


def _find_client(trusted: Sequence[Network], scope: Scope) -> tuple[str, int]:
    """Return the address and the port of the client, as trusted proxies state it."""
    peer, port = scope["client"] or ("", 0)
    forwarded = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
    return (find_client(trusted, peer, forwarded) if forwarded else peer, port)


class Envelope:
    """The outermost layer of one application, around every answer. It is ASGI, to hold where the framework fails too."""

    def __init__(self, app: ASGIApp, name: str, plane: ControlPlane, counters: Counters, body_bytes_max: int) -> None:
        self.app = app
        self.name = name
        self.plane = plane
        self.counters = counters
        self.body_bytes_max = body_bytes_max
        self.is_public = name != "link"
        caller_max = CALLER_REQUESTS_MAX if self.is_public else NODE_REQUESTS_MAX
        self.places = Places(caller_max, plane.requests_per_minute, shares_addresses=self.is_public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens inside."""
        if scope["type"] != "http":  # no lifespan; a WebSocket is refused by the server when nothing accepts it
            return
        tracer = self.plane.tracer
        if tracer is None or scope["path"] in UNTRACED_PATHS:
            await self._answer(scope, receive, send, None)
            return
        traceparent = next((value for name, value in scope["headers"] if name == b"traceparent"), b"")
        with tracer.operation("", SpanKind.SERVER, traceparent) as operation:
            await self._answer(scope, receive, send, operation)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, operation: TracedOperation | None) -> None:
        """Answer one HTTP request. `operation`: its trace, which records what it was; None for none."""
        request_id = self.plane.new_id(ids.REQUEST)
        started = time.monotonic()
        status = 0
        # A HEAD is answered as the GET, without its body (RFC 9110 section 9.3.2); the server withholds the body: `scope` is unchanged.
        is_head = scope["method"] == "HEAD"
        inner = {**scope, "method": "GET"} if is_head else scope
        head_sent = False

        async def send_stamped(message: Message) -> None:
            nonlocal status, head_sent
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers.setdefault("cache-control", "no-store")
                headers["x-content-type-options"] = "nosniff"
                await send(message)
                if is_head:
                    head_sent = True
                    await send({"type": "http.response.body"})
            elif not head_sent:
                await send(message)
            elif message.get("more_body"):
                raise OSError("a HEAD has no body")  # ends a stream, which may have no end of its own

        async def refuse(fault: Fault) -> None:
            inner["tollway.fault"] = fault
            if status == 0:
                await errors.response_of(fault, scope["path"])(inner, receive, send_stamped)

        if self.is_public and self.plane.trusted_proxies:
            inner["client"] = _find_client(self.plane.trusted_proxies, scope)
        inner["tollway.request_id"] = request_id
        address, _ = inner["client"] or ("", 0)
        is_health = scope["path"] in HEALTH_PATHS
        place = Place(self.places, is_revocation=scope["method"] == "DELETE", address=address, is_health=is_health)
        inner["tollway.place"] = place
        try:
            if not is_health:
                place.take()
            if _is_devious(scope):
                await refuse(Fault(TARGET_INVALID))
            else:
                await self.app(inner, self._bounded(scope, receive), send_stamped)
        except ClientDisconnect:
            status = status if head_sent else STATUS_CLIENT_LEFT
        except Fault as fault:
            await refuse(fault)
        except Exception as error:  # last resort: the caller gets a 500 in our shape, the operator the place
            self._log_defect(request_id, error)
            await refuse(Fault(INTERNAL))
        finally:
            place.release()
            self._log(inner, scope["method"], request_id, status, time.monotonic() - started)
            if operation is not None:
                self._describe(operation, inner, scope["method"], request_id, status)

    def _describe(self, operation: TracedOperation, scope: Scope, sent_method: str, request_id: str, status: int) -> None:
        """Name the span of a request by its route, and give it what a log line says."""
        route = scope.get("route")
        template = route.path if isinstance(route, APIRoute) else "none"
        method = sent_method if isinstance(route, APIRoute) else "none"
        fault: Fault | None = scope.get("tollway.fault")
        caller = scope.get("state", {}).get("caller")
        operation.name = f"{method} {template}"
        operation.is_long = self.name == "link" and method == "GET"  # changes are waited for
        operation.error = (fault.kind.code if fault is not None else "internal_error") if status >= 500 else ""
        known = {
            "http.request.method": method,
            "http.route": template,
            "http.response.status_code": status,
            "tollway.app": self.name,
            "tollway.request.id": request_id,
            "tollway.key.id": getattr(caller, "key_id", None),
            "tollway.organization.id": getattr(caller, "organization_id", None),
            "tollway.error_code": None if fault is None or status >= 500 else fault.kind.code,
        }
        operation.attributes = {name: value for name, value in known.items() if value is not None}

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        declared = Headers(scope=scope).get("content-length", "")
        received_bytes = 0
        complete = False
        deadline = time.monotonic() + BODY_SECONDS_MAX

        async def receive_bounded() -> Message:
            nonlocal received_bytes, complete
            if complete:
                return await receive()  # waits for the client to leave, as long as the answer takes
            if declared.isdecimal() and int(declared) > self.body_bytes_max:
                raise Fault(BODY_TOO_LARGE)
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise Fault(REQUEST_TIMEOUT) from None
            received_bytes += len(message.get("body", b""))
            if received_bytes > self.body_bytes_max:
                raise Fault(BODY_TOO_LARGE)
            complete = not message.get("more_body", False)
            return message

        return receive_bounded

    def _log(self, scope: Scope, sent_method: str, request_id: str, status: int, seconds: float) -> None:
        route = scope.get("route")
        template = route.path if isinstance(route, APIRoute) else "none"
        method = sent_method if isinstance(route, APIRoute) else "none"  # an unmatched method is any text the client likes
        self.counters.requests.labels(self.name, method, template, status).inc()
        fault: Fault | None = scope.get("tollway.fault")
        if fault is not None:
            self.counters.refusals.labels(self.name, fault.kind.code).inc()
            if fault.kind in ALARMED:
                self.plane.log({"event": fault.kind.code, "request_id": request_id, "route": template, "detail": fault.detail})
        if self.name == "link" and fault is None:
            return  # several a second per gateway, all alike
        caller = scope.get("state", {}).get("caller")
        self.plane.log(
            {
                "event": "request",
                "app": self.name,
                "request_id": request_id,
                "method": method,
                "route": template,
                "status": status,
                "duration_ms": round(seconds * 1000, 3),
                "key_id": getattr(caller, "key_id", None),
                "organization_id": getattr(caller, "organization_id", None),
                "session_id": getattr(caller, "session_id", None),
                "error_code": fault.kind.code if fault else None,
                "blame": fault.kind.blame if fault else None,
                "detail": fault.detail if fault and fault.detail else None,
                "is_replay": scope.get("tollway.is_replay"),
            }
        )

    def _log_defect(self, request_id: str, error: Exception) -> None:
        """Name the defect and the place. Not its message: that may quote what a client sent."""
        frames = traceback.extract_tb(error.__traceback__)[-8:]
        place = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
        self.plane.log({"event": "defect", "request_id": request_id, "error": type(error).__name__, "place": place})


def _is_devious(scope: Scope) -> bool:
    """Return whether the target says one thing to us and another to some proxy: dot segments, NUL, backslash, bytes that are no UTF-8."""
    path: str = scope["path"]
    return (
        not path.startswith("/")
        or "//" in path
        or any(character in path for character in ("\\", "\0", "\ufffd"))
        or any(segment in {".", ".."} for segment in path.split("/"))
    )
