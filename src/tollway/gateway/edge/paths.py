"""The routes of both listeners: which path is answered by what, for which methods; and the rules for request targets and content types.

ROUTES is the table of the public listener, INTERNAL_ROUTES that of the internal one. Whatever needs to know a path reads it here: dispatch,
`allow`, preflights, and which paths are served under any host name.
"""

import re
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Protocol
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from tollway.domain import faults
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault, FaultKind
from tollway.gateway import files, model_descriptions, queries, response_queries
from tollway.gateway.batches import batch_requests, message_batches
from tollway.gateway.dialects import infer
from tollway.gateway.dialects.table import DIALECTS
from tollway.gateway.driver import CoroutineDriver
from tollway.gateway.plane import Plane
from tollway.gateway.ports import Client, TokenEndpoint
from tollway.gateway.realtime.ends import End
from tollway.gateway.realtime.session import Session
from tollway.gateway.request import Request, RequestHead
from tollway.gateway.route import explain
from tollway.gateway.uploads import Upload
from tollway.wire import web_sockets
from tollway.wire.forms import find_boundary
from tollway.wire.http import HttpRequest
from tollway.wire.media_types import is_json

_JSON = b"content-type: application/json\r\n"
_TEXT = b"content-type: text/plain\r\n"
_EXPOSITION = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"
_OPEN_METRICS = b"content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"


_FORMS = frozenset(endpoint for endpoint, dialect in DIALECTS.items() if dialect.form_kinds is not None)
"""Endpoints whose bodies are forms."""


class RoutedConnection(Client, Protocol):
    """A client connection as the handlers of routes use it."""

    @property
    def plane(self) -> Plane:
        """The state that the phases of a request share."""
        ...

    def new_request(self, http: HttpRequest, head: RequestHead, body: bytes) -> Request:
        """Return a request that is received now."""
        ...

    def take_upload(self) -> Upload | None:
        """Return what accounts for the large body of the request being answered, None for a small one. Whoever takes it releases it."""
        ...

    def attach(self, driver: CoroutineDriver) -> None:
        """Interrupt this coroutine, which answers the request, if the client leaves or the gateway drains."""
        ...

    def allows_origin(self, origin: bytes) -> bool:
        """Return whether scripts of this origin may connect."""
        ...

    def upgrade(self, headers: bytes, session: Session, end: End) -> Callable[[], None]:
        """Let `end` go on with the connection (`realtime.session.Upgradable`)."""
        ...

    def answer_fault(self, fault: Fault) -> None:
        """Answer a request that did not become one of the pipeline's with a fault."""
        ...

    def read_head(self, http: HttpRequest, endpoint: Endpoint) -> RequestHead:
        """Return what the head of a request says, with who sent it."""
        ...


class SmallAnswer(msgspec.Struct, frozen=True):
    """A whole answer that needs no request: its status, its content-type as a header line, its body."""

    status: int
    headers: bytes
    body: bytes


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A route of the public listener. `methods`: those that it has, as `allow` lists them. It has either an `endpoint`, whose requests
    `pipeline.answer` answers, or a `handler`, which gets the connection, the request and its path. `any_host`: whether it is served
    under host names that are not ours, as health is, because probes know addresses and not names. `has_small_body`: its handler reads a
    body of at most LARGE_BYTES, whose length the request states. `takes_upload`: its handler reads a large body, which is admitted by its
    head as those of endpoints are. `names_model`: its path names the model, and the bodies of its endpoint do not."""

    methods: bytes
    endpoint: Endpoint | None = None
    handler: Callable[[RoutedConnection, HttpRequest, bytes], None] | None = None
    any_host: bool = False
    has_small_body: bool = False
    takes_upload: bool = False
    names_model: bool = False

    def has_method(self, method: bytes) -> bool:
        """Return whether the route has `method`."""
        return method in self.methods.split(b", ")


MODELS_TARGET = b"/v1/models"
_MODELS_PREFIX = MODELS_TARGET + b"/"
_READ = b"GET, HEAD"

QUOTE_TARGET = b"/v1/quote"
QUOTED: dict[bytes, Endpoint] = {
    QUOTE_TARGET: Endpoint.CHAT_COMPLETIONS,
    **{
        QUOTE_TARGET + dialect.target.removeprefix(b"/v1"): endpoint
        for endpoint, dialect in DIALECTS.items()
        if endpoint not in (Endpoint.REALTIME, Endpoint.INFER)
    },
}
"""Endpoints of the requests that are quoted, by path. The path without an endpoint is for chat completions."""


def _list_models(connection: RoutedConnection, http: HttpRequest, path: bytes) -> None:
    """Answer with the models that the caller may use, or with the one that the path names. A name may hold slashes, which SDKs escape."""
    path = path.replace(b"%2F", b"/").replace(b"%2f", b"/")
    head = connection.read_head(http, Endpoint.CHAT_COMPLETIONS)
    request = connection.new_request(http, head, unquote_to_bytes(path[len(_MODELS_PREFIX) :]))
    queries.list_models(request, connection, connection.plane)


def _list_limits(connection: RoutedConnection, http: HttpRequest, path: bytes) -> None:
    """Answer with the limits that bind the caller."""
    head = connection.read_head(http, Endpoint.CHAT_COMPLETIONS)
    queries.list_limits(connection.new_request(http, head, b""), connection, connection.plane)


def _quote(connection: RoutedConnection, http: HttpRequest, path: bytes) -> None:
    """Answer with what the request in the body would cost. The path below QUOTE_TARGET is that of the request below /v1."""
    endpoint = QUOTED[path]
    kind = faults.BODY_TOO_LARGE if http.pieces else find_body_fault(http.headers, endpoint)
    if kind is not None:
        connection.answer_fault(Fault(kind))
        return
    request = connection.new_request(http, connection.read_head(http, endpoint), http.body)
    CoroutineDriver(copy_context()).start(queries.quote(request, connection, connection.plane))


QUERY_CHARACTERS_MAX = 1024
"""Characters of a query that are read; what follows counts for nothing."""

TOKEN_BODY_BYTES_MAX = 32_768
"""Longest body of the token endpoint: an assertion has 16 KiB at most."""


def _ask_for_token(connection: RoutedConnection, http: HttpRequest, path: bytes) -> None:
    """Answer with an access token, as control issues it. SDKs look for the token endpoint where they send inference."""
    if len(http.body) > TOKEN_BODY_BYTES_MAX:
        connection.answer_fault(Fault(faults.BODY_TOO_LARGE))
        return
    ask = connection.plane.ask_for_token
    if ask is None:
        connection.answer_fault(Fault(faults.ROUTE_UNKNOWN))
        return
    driver = CoroutineDriver(copy_context())
    driver.start(_answer_with_token(connection, http, ask, driver))


async def _answer_with_token(connection: RoutedConnection, http: HttpRequest, ask: TokenEndpoint, driver: CoroutineDriver) -> None:
    headers = http.headers
    status, body = await driver.in_task(ask(http.body, headers.get(b"content-type", b""), headers.get(b"authorization")))
    if connection.gone:
        return
    if status in (400, 401):  # whoever guesses secrets or assertions is slowed down as whoever guesses keys
        fault = connection.throttle(Fault(faults.TOKEN_INVALID), headers)
        if fault.kind is not faults.TOKEN_INVALID:
            connection.answer_fault(fault)
            return
    connection.answer(status, _JSON + b"cache-control: no-store\r\n" + (b"www-authenticate: Basic\r\n" if status == 401 else b""), body)


def _answer_stored_response(connection: RoutedConnection, http: HttpRequest, path: bytes) -> None:
    """Answer a request about a stored response."""
    head = connection.read_head(http, Endpoint.RESPONSES)
    request = connection.new_request(http, head, path[len(response_queries.PREFIX) :])
    driver = CoroutineDriver(copy_context())
    query = dict(parse_qsl(http.target.partition(b"?")[2].decode("latin-1")[:QUERY_CHARACTERS_MAX]))
    driver.start(response_queries.answer(request, connection, connection.plane, driver, http.method, query))


def _answer_with(operate: files.Operate, endpoint: Endpoint) -> Callable[[RoutedConnection, HttpRequest, bytes], None]:
    """Return the handler of requests about stored things, which `operate` does. `endpoint`: in whose shape faults are rendered."""

    def handle(connection: RoutedConnection, http: HttpRequest, path: bytes) -> None:
        head = connection.read_head(http, endpoint)
        target = path + b"?" + http.target.partition(b"?")[2]
        request = connection.new_request(http, head, b"")
        driver = CoroutineDriver(copy_context())
        pieces, upload = http.pieces or (http.body,), connection.take_upload()
        driver.start(files.answer(operate, request, http.method, target, pieces, upload, connection, connection.plane, driver))

    return handle


_answer_about_files = _answer_with(files.operate, Endpoint.CHAT_COMPLETIONS)
_answer_about_batches = _answer_with(batch_requests.operate, Endpoint.CHAT_COMPLETIONS)
_answer_about_message_batches = _answer_with(message_batches.operate, Endpoint.MESSAGES)


_KEY_PROTOCOL = b"openai-insecure-api-key."
"""Beginning of the subprotocol in which a browser, which cannot set headers, sends its key."""
_PROTOCOL = b"realtime"


def _open_realtime(connection: RoutedConnection, http: HttpRequest, path: bytes) -> None:
    """Open a realtime session (RFC 6455)."""
    headers = http.headers
    accept, offered = web_sockets.find_accept(headers), web_sockets.list_protocols(headers)
    if not web_sockets.is_asked_for(headers) or accept is None or offered is None or headers.get(b"sec-websocket-version") != b"13":
        connection.answer_fault(Fault(faults.WEBSOCKET_EXPECTED, headers=b"upgrade: websocket\r\nsec-websocket-version: 13\r\n"))
        return
    origin = headers.get(b"origin")
    if origin is not None and not connection.allows_origin(origin):
        connection.answer_fault(Fault(faults.ORIGIN_REFUSED))
        return
    keys = {each[len(_KEY_PROTOCOL) :] for each in offered if each.startswith(_KEY_PROTOCOL)}
    known = headers.get(b"x-api-key") or headers.get(b"api-key")
    if len(keys) > 1 or (keys and known and known not in keys):
        connection.answer_fault(Fault(faults.CREDENTIALS_AMBIGUOUS))
        return
    model = dict(parse_qsl(http.target.partition(b"?")[2].decode("latin-1")[:QUERY_CHARACTERS_MAX])).get("model", "")
    if not model:
        connection.answer_fault(Fault(faults.PARAMETER_MISSING, param="model", message="Missing required parameter: 'model'."))
        return
    if keys:
        headers = {**headers, b"x-api-key": keys.pop()}
    plane = connection.plane
    head = connection.read_head(HttpRequest(headers, http.method, http.target), Endpoint.REALTIME)
    body = msgspec.json.encode({"model": model})
    request = connection.new_request(http, head, body)
    chosen = b"sec-websocket-protocol: %b\r\n" % _PROTOCOL if _PROTOCOL in offered else b""
    driver = CoroutineDriver(copy_context())
    connection.attach(driver)
    session = Session(plane, plane.realtime, driver, head, body, request.peer)
    driver.start(session.run(request, connection, b"sec-websocket-accept: %b\r\n%b" % (accept, chosen)))


def _answer_alive(connection: RoutedConnection, http: HttpRequest, path: bytes) -> None:
    connection.answer(200, _JSON, b'{"status":"alive"}')


def _answer_ready(connection: RoutedConnection, http: HttpRequest, path: bytes) -> None:
    ready = connection.plane.is_ready()
    connection.answer(200 if ready else 503, _JSON, b'{"ready":%b}' % (b"true" if ready else b"false"))


def _answer_live(connection: RoutedConnection, http: HttpRequest, path: bytes) -> None:
    connection.answer(200, _JSON, b'{"live":true}')


def _describe_server(connection: RoutedConnection, http: HttpRequest, path: bytes) -> None:
    connection.answer(200, _JSON, model_descriptions.SERVER_METADATA)


def _describe_tensor_model(connection: RoutedConnection, http: HttpRequest, path: bytes) -> None:
    """Answer with what a model of the Open Inference Protocol takes and gives, or whether it is ready."""
    found = infer.PATH.fullmatch(path.replace(b"%2F", b"/").replace(b"%2f", b"/"))
    name = b"" if found is None else unquote_to_bytes(found[1])
    request = connection.new_request(http, connection.read_head(http, Endpoint.INFER), name)
    is_readiness = found is not None and found[2] is not None
    driver = CoroutineDriver(copy_context())
    driver.start(model_descriptions.answer(request, connection, connection.plane, driver, is_readiness=is_readiness))


_MODELS = Route(methods=_READ, handler=_list_models)
_STORED_RESPONSE = Route(methods=b"GET, HEAD, DELETE", handler=_answer_stored_response)
_STORED_ITEMS = Route(methods=_READ, handler=_answer_stored_response)
_STORED_CANCEL = Route(methods=b"POST", handler=_answer_stored_response, has_small_body=True)
_FILES = Route(methods=b"GET, POST", handler=_answer_about_files, takes_upload=True)
_FILE = Route(methods=b"GET, DELETE", handler=_answer_about_files)
_BATCHES = Route(methods=b"GET, POST", handler=_answer_about_batches, has_small_body=True)
_BATCH = Route(methods=b"GET", handler=_answer_about_batches)
_BATCH_CANCEL = Route(methods=b"POST", handler=_answer_about_batches, has_small_body=True)
_MESSAGE_BATCHES = Route(methods=b"GET, POST", handler=_answer_about_message_batches, takes_upload=True)
_MESSAGE_BATCH = Route(methods=b"GET, DELETE", handler=_answer_about_message_batches)
_MESSAGE_BATCH_CANCEL = Route(methods=b"POST", handler=_answer_about_message_batches, has_small_body=True)
_MESSAGE_BATCH_RESULTS = Route(methods=b"GET", handler=_answer_about_message_batches)
_OF_BATCHES = (
    (batch_requests.PATH, {None: _BATCH, b"/cancel": _BATCH_CANCEL}),
    (message_batches.PATH, {None: _MESSAGE_BATCH, b"/cancel": _MESSAGE_BATCH_CANCEL, b"/results": _MESSAGE_BATCH_RESULTS}),
)
"""Patterns of the paths of one batch, and the routes by what follows its id."""
_OF_TENSORS: dict[bytes | None, Route] = {
    None: Route(methods=_READ, handler=_describe_tensor_model),
    b"/infer": Route(methods=b"POST", endpoint=Endpoint.INFER, names_model=True),
    b"/ready": Route(methods=_READ, handler=_describe_tensor_model),
}
"""Routes of one model of the Open Inference Protocol, by what follows its name."""
_ALIVE = Route(methods=_READ, handler=_answer_alive, any_host=True)

ROUTES: dict[bytes, Route] = {
    **{
        target: Route(methods=b"POST", endpoint=endpoint)
        for endpoint, dialect in DIALECTS.items()
        if not dialect.base
        for target in (dialect.target, *dialect.aliases)
    },
    DIALECTS[Endpoint.REALTIME].target: Route(methods=b"GET", handler=_open_realtime),
    MODELS_TARGET: _MODELS,
    files.TARGET: _FILES,
    batch_requests.TARGET: _BATCHES,
    message_batches.TARGET: _MESSAGE_BATCHES,
    b"/v1/limits": Route(methods=_READ, handler=_list_limits),
    **dict.fromkeys(QUOTED, Route(methods=b"POST", handler=_quote, has_small_body=True)),
    b"/v1/oauth/token": Route(methods=b"POST", handler=_ask_for_token, has_small_body=True),
    b"/livez": _ALIVE,
    b"/health": _ALIVE,
    b"/v1/health": _ALIVE,
    infer.BASE: Route(methods=_READ, handler=_describe_server),
    b"/v2/health/live": Route(methods=_READ, handler=_answer_live, any_host=True),
    b"/v2/health/ready": Route(methods=_READ, handler=_answer_ready, any_host=True),
    b"/readyz": Route(methods=_READ, handler=_answer_ready, any_host=True),
}
"""Routes of the public listener by path. Models have a path each below MODELS_TARGET and `infer.MODELS`: use `find_route`."""


_OF_STORED = (_STORED_RESPONSE, _STORED_ITEMS, _STORED_CANCEL)


def find_route(path: bytes) -> Route | None:
    """Return the public listener's route for a path, or None."""
    route = ROUTES.get(path)
    if route is None and path.startswith(response_queries.PREFIX):
        if path.endswith(response_queries.CANCEL):
            return _STORED_CANCEL
        return _STORED_ITEMS if path.endswith(response_queries.INPUT_ITEMS) else _STORED_RESPONSE
    if route is None and b"/batches/" in path:
        for pattern, routes in _OF_BATCHES:
            found = pattern.fullmatch(path)
            if found is not None:
                return routes[found[2]]
    if route is None and path.startswith(infer.MODELS):
        tensors = infer.PATH.fullmatch(path)
        return None if tensors is None else _OF_TENSORS[tensors[2]]
    if route is None:
        route = _MODELS if path.startswith(_MODELS_PREFIX) else _FILE if files.PATH.fullmatch(path) else None
    return route


def find_route_fault(path: bytes, route: Route | None) -> Fault | None:
    """Return the fault of a path: it has no route, or two parsers may read it differently."""
    if route is not None and route in _OF_STORED:
        return Fault(kind) if (kind := find_target_fault(path)) is not None else None
    if route is _MODELS or (route is not None and route in _OF_TENSORS.values()):
        path = path.replace(b"%2F", b"/").replace(b"%2f", b"/")
    elif route is not None:
        return None
    kind = find_target_fault(path) or (faults.ROUTE_UNKNOWN if route is None else None)
    return None if kind is None else Fault(kind)


def _explain_route(plane: Plane, request: HttpRequest) -> SmallAnswer:
    """Answer what decides between the deployments of a model: `gateway.route.explain`."""
    try:
        fields = dict(parse_qsl(request.target.partition(b"?")[2].decode("latin-1"), max_num_fields=5))
    except ValueError:
        return SmallAnswer(400, _TEXT, b"too many parameters\n")
    endpoint, tokens = fields.get("endpoint", Endpoint.CHAT_COMPLETIONS.value), fields.get("prompt_tokens", "1000")
    if endpoint not in set(Endpoint) or re.fullmatch("[0-9]{1,9}", tokens) is None:
        return SmallAnswer(400, _TEXT, b"endpoint or prompt_tokens is none\n")
    model, is_test = fields.get("model", ""), fields.get("test") == "true"
    residency = frozenset(fields["residency"].split(",")) if "residency" in fields else None
    try:
        rows = explain(model, Endpoint(endpoint), int(tokens), plane.upstreams, time.monotonic(), test=is_test, residency=residency)
    except Fault as fault:
        return SmallAnswer(404, _TEXT, f"{fault.kind.code}: {fault.kind.message}\n".encode())
    if not rows:
        return SmallAnswer(404, _TEXT, b"no deployment serves this model\n")
    answer: dict[str, object] = {"model": model, "gateways": plane.upstreams.gateways, "prompt_tokens": int(tokens), "deployments": rows}
    entry = plane.directory.find_model(model)
    answer["fallbacks"] = [] if entry is None else entry.fallbacks
    return SmallAnswer(200, _JSON, msgspec.json.encode(answer))


def _show_metrics(plane: Plane, request: HttpRequest) -> SmallAnswer:
    """Answer the metrics in the format of OpenMetrics to whoever accepts it, as Prometheus does, else in its older text format."""
    is_open_metrics = b"application/openmetrics-text" in request.headers.get(b"accept", b"")
    headers = _OPEN_METRICS if is_open_metrics else _EXPOSITION
    return SmallAnswer(200, headers, plane.metrics.render(is_open_metrics=is_open_metrics))


INTERNAL_ROUTES: dict[bytes, Callable[[Plane, HttpRequest], SmallAnswer]] = {
    b"/metrics": _show_metrics,
    b"/livez": lambda plane, request: SmallAnswer(200, _TEXT, b"ok\n"),
    b"/readyz": lambda plane, request: SmallAnswer(200, _TEXT, b"ok\n") if plane.is_ready() else SmallAnswer(503, _TEXT, b"not ready\n"),
    b"/route": _explain_route,
}
"""Routes of the internal listener by path, for GET and HEAD."""


def find_path(http: HttpRequest) -> bytes:
    """Return the path of a target in origin form (or absolute form naming this Host), without its query."""
    target = http.target
    if not target.startswith(b"/"):
        for scheme in (b"http://", b"https://"):
            if target[: len(scheme)].lower() == scheme:
                host, slash, rest = target[len(scheme) :].partition(b"/")
                if host.lower() == http.headers.get(b"host", b"").lower():
                    target = slash + rest or b"/"
    return target.partition(b"?")[0]


def find_target_fault(path: bytes) -> FaultKind | None:
    """Return whether a path is one that two parsers may read differently: dot segments, encoded slashes, backslashes, NUL, bad UTF-8."""
    try:
        decoded = unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        return faults.TARGET_INVALID
    if not path.startswith(b"/") or b"%2f" in path.lower() or "\\" in decoded or "\0" in decoded:
        return faults.TARGET_INVALID
    return faults.TARGET_INVALID if {".", ".."} & set(decoded.split("/")) else None


def find_body_fault(headers: dict[bytes, bytes], endpoint: Endpoint) -> FaultKind | None:
    """Return the fault of a request whose body is not said to be what its endpoint takes, JSON in UTF-8 or a form, without a content
    coding."""
    content_type = headers.get(b"content-type", b"")
    if endpoint is Endpoint.INFER and (not content_type or b"inference-header-content-length" in headers):
        # Clients of the protocol send no type with JSON, and a header with binary data behind it.
        return faults.BINARY_TENSORS_UNSUPPORTED if b"inference-header-content-length" in headers else _find_coding_fault(headers)
    if endpoint in _FORMS:
        if find_boundary(content_type) is None:
            return faults.FORM_EXPECTED
    elif content_type != b"application/json" and not is_json(content_type):
        return faults.MEDIA_TYPE_UNSUPPORTED
    return _find_coding_fault(headers)


def _find_coding_fault(headers: dict[bytes, bytes]) -> FaultKind | None:
    return faults.CONTENT_CODING_UNSUPPORTED if headers.get(b"content-encoding", b"identity").lower() != b"identity" else None
