"""The parts that all routes share: access declarations, strict reading of bodies, and the `ControlPlane` of the process.

Theory of operation. A route declares its access as a dependency: `may(Permission...)`, `Node`, `Joiner`, `Invitee` or `public`.
`ApiRoute`, the route class of all routers, finds that declaration when the route is first used (a route without one answers nobody) and
enforces it before a byte of the body is read, and again behind a body that took long. Access hangs on the route object, never on a path
compared as text.

Bodies are parsed strictly: JSON in UTF-8, no duplicate keys at any depth, no NaN, bounded in size and depth; then by a pydantic
model that refuses unknown fields. Query parameters that the route does not declare are refused too, unless it depends on
`ignore_unknown_parameters`; `name[]=` is read as `name=`, as OpenAI's clients write arrays.

A POST of an admin or an operator may carry an `Idempotency-Key`: `ApiRoute` answers it from the store if it was carried out before, and
otherwise gives its endpoint a database that stores the key in the transaction of the change (`control.idempotency`). In the same way
the database that an endpoint is given records each change in the audit trail (`control.auditing.audit`); a sensitive read is recorded
before its endpoint is called.

An endpoint is a plain function in a worker thread. It opens the transaction it needs
(`plane.database.tenant(caller.organization_id)`) and shapes the answer after the commit.
"""

import functools
import re
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import compile_path, get_name

from tollway.control import idempotency
from tollway.control.api.errors import SCIM_PATH, name_of
from tollway.control.api.places import Place
from tollway.control.auditing import audit, audited_operations
from tollway.control.auditing.audit import AuditedOperation
from tollway.control.idempotency import KeptAnswer
from tollway.control.identity import access
from tollway.control.identity.access import ActiveKey, Tenant
from tollway.control.identity.access import Invitee as InvitedCaller
from tollway.control.identity.access import Joiner as JoiningCaller
from tollway.control.identity.access import Node as NodeCaller
from tollway.control.identity.sessions import LiveSession
from tollway.control.plane import ControlPlane
from tollway.domain import ids, keys
from tollway.domain.audit import HIDDEN, Actor, ActorKind, Target
from tollway.domain.faults import (
    CONTENT_CODING_UNSUPPORTED,
    KEY_INVALID,
    MEDIA_TYPE_UNSUPPORTED,
    PARAMETER_INVALID,
    PARAMETER_UNKNOWN,
    RESOURCE_UNKNOWN,
    SCOPE_INSUFFICIENT,
    Fault,
)
from tollway.domain.keys import Operator
from tollway.domain.roles import Permission
from tollway.wire import bodies
from tollway.wire.credentials import find_secret
from tollway.wire.media_types import is_json


def plane_of(request: Request) -> ControlPlane:
    """Return the control plane that `app.create_apps` was given, with the database of this request where it has one of its own."""
    plane: ControlPlane = getattr(request.state, "plane", None) or request.app.state.plane
    return plane


async def _find_plane(request: Request) -> ControlPlane:
    return plane_of(request)  # a coroutine, because the framework gives each dependency that is none to a worker thread


Plane = Annotated[ControlPlane, Depends(_find_plane)]

# ---- Access -----------------------------------------------------------------------------------------------------------


Caller = Tenant | Operator | NodeCaller | JoiningCaller | InvitedCaller
"""Someone who may use a route."""


@dataclass(frozen=True, slots=True)
class Access:
    """A rule of who may call a route. As a dependency it yields the caller. `check` runs in a thread and raises a Fault to refuse.
    `permission`: the one that admins and operators need; None for other callers. `read_credential`: the bytes by which a request says who
    sends it."""

    name: str
    check: Callable[[ControlPlane, Request], Caller | None]
    permission: Permission | None = None
    read_credential: Callable[[ControlPlane, Request], bytes] = lambda _plane, request: _credential(request)

    async def __call__(self, request: Request) -> Any:
        """The caller, as `check` returned it before the body was read. A coroutine, so that health needs no worker thread."""
        return request.state.caller


def _presented(request: Request) -> bytes:
    """Return the one credential of a request. Raises ambiguous_credentials, or invalid_api_key if there is none."""
    authorization, key = ([value.encode("latin-1") for value in request.headers.getlist(name)] for name in ("authorization", "x-api-key"))
    secret = find_secret(authorization, key)
    if secret is None or not secret.isascii():
        raise Fault(KEY_INVALID)
    return secret


def _credential(request: Request) -> bytes:
    """Return the bytes by which a request says who sends it."""
    return b"\0".join(value for name, value in request.headers.raw if name in (b"authorization", b"x-api-key"))


def _identify(plane: ControlPlane, request: Request) -> ActiveKey:
    if _find_person(plane, request) is not None:
        raise Fault(SCOPE_INSUFFICIENT)
    return access.identify(plane.database, plane.peppers, plane.pepper_version, _presented(request), plane.now())


def _find_person(plane: ControlPlane, request: Request) -> Tenant | None:
    """Return the person who logged in with the command line, if their access token is presented."""
    secret = _presented(request).decode("ascii")
    if not keys.is_user_token(secret):
        return None
    return access.identify_by_token(plane.database, plane.peppers, secret, request.headers.get("openai-organization"), plane.now())


def _find_operator(plane: ControlPlane, request: Request) -> Operator | None:
    """Return the operator who logged in with the command line, if their access token is presented."""
    secret = _presented(request).decode("ascii")
    if not keys.is_operator_token(secret):
        return None
    return access.identify_operator_by_token(plane.database, plane.peppers, plane.operator_issuer, secret, plane.now())


def _identify_tenant(plane: ControlPlane, request: Request) -> Tenant:
    person = _find_person(plane, request)
    if person is not None:
        return person
    operator = _find_operator(plane, request)
    if operator is not None:
        return access.act_for(plane.database, operator, request.headers.get("openai-organization"))
    return access.require_tenant(plane.database, _identify(plane, request), request.headers.get("openai-organization"))


def _check_tenant(permission: Permission, plane: ControlPlane, request: Request) -> Tenant:
    tenant = _identify_tenant(plane, request)
    access.require_permission(tenant, permission, request.path_params.get("project_id"))
    return tenant


def _check_operator(permission: Permission, plane: ControlPlane, request: Request) -> Operator:
    signed_in = _find_operator(plane, request)
    if signed_in is None:
        return access.require_operator(_identify(plane, request), permission)
    access.require_platform_permission(signed_in, permission)
    return signed_in


def _check_node(plane: ControlPlane, request: Request) -> NodeCaller:
    return access.require_node(_identify(plane, request))


def _check_joiner(plane: ControlPlane, request: Request) -> JoiningCaller:
    return access.identify_joiner(plane.database, plane.peppers, _presented(request))


def _check_invitee(plane: ControlPlane, request: Request) -> InvitedCaller:
    return access.identify_invitee(plane.database, plane.peppers, _presented(request), plane.now())


@functools.cache
def may(permission: Permission) -> Access:
    """Return the access of a route that needs `permission`: of the platform, or in the organization, or in the project that the path names.

    The caller is an `Operator` for a permission of the platform, otherwise a `Tenant`."""
    if permission.is_of_platform:
        return Access("platform", functools.partial(_check_operator, permission), permission)
    return Access("organization", functools.partial(_check_tenant, permission), permission)


organization_caller = Access("organization", _identify_tenant)
"""Access for whoever may act in an organization, whatever their roles are: for what they may know of themselves."""

node = Access("node", _check_node)
joiner = Access("join token", _check_joiner)
invitee = Access("invitation", _check_invitee)
public = Access("public", lambda _plane, _request: None)

Node = Annotated[NodeCaller, Depends(node)]
Joiner = Annotated[JoiningCaller, Depends(joiner)]
Invitee = Annotated[InvitedCaller, Depends(invitee)]


async def ignore_unknown_parameters() -> None:
    """Dependency of a route whose address another program writes, which may add query parameters (RFC 6749, section 4.1.2)."""


def organization(organization_id: str) -> str:
    """An organization's id from a path, as an operator may name it. Raises RESOURCE_UNKNOWN for what cannot be one."""
    if not ids.is_id(ids.ORGANIZATION, organization_id):
        raise Fault(RESOURCE_UNKNOWN)
    return organization_id


def expiry(lifetime_seconds: int | None, now: int) -> int | None:
    """The instant (microseconds) at which something made `now` ends; None if it has no lifetime."""
    return None if lifetime_seconds is None else now + lifetime_seconds * 1_000_000


# ---- Routes -----------------------------------------------------------------------------------------------------------

CHECK_US = 1_000_000
"""Time (microseconds) for which the check of a caller holds. Whoever is still sending then is checked again before anything is done."""

TARGET_CHARACTERS_MAX = 64
"""Longest part of a path that the audit trail keeps as an id. Longer than any id, so what is cut names nothing."""

SCIM_JSON = re.compile(r"^\s*application/scim\+json", re.IGNORECASE)
SECRET = re.compile(r"tw_[a-z]+_[0-9A-Za-z]+")
"""Pattern of a text that begins like a secret of ours."""

BRACKETS = re.compile(r"(\[\]|%5B%5D)(?==|&|$)", re.IGNORECASE)


_COMPLETING = threading.RLock()
"""Held while a route is completed: others that need it wait, some milliseconds."""


class StrictRequest(Request):
    """A request whose JSON was parsed strictly before the framework sees it."""

    parsed: object = None

    async def json(self) -> Any:
        """The body as `read_json` parsed it."""
        return self.parsed


class ApiRoute(APIRoute):
    """A route that knows who may pass. It is completed, in whichever thread, when something is first asked of it that its path does not
    say: a process has hundreds of routes, whose schemas are a quarter of the work of its start, and uses few of them.

    A route without exactly one declared access raises TypeError then: it answers nobody."""

    access: Access

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """`options`: those of the framework."""
        self.path, self.endpoint = path, endpoint
        self.name = options.get("name") or get_name(endpoint)
        self.methods = {method.upper() for method in options.get("methods") or ("GET",)}
        self.path_regex, self.path_format, self.param_convertors = compile_path(path)
        self._options: dict[str, Any] | None = options

    def __getattr__(self, name: str) -> Any:
        """Return what was not there yet. Raises TypeError for a route whose access is not declared."""
        with _COMPLETING:
            options = self.__dict__.get("_options")
            if options is not None:
                self._options = None
                try:
                    super().__init__(self.path, self.endpoint, **options)
                except BaseException:
                    self._options = options
                    raise
        return object.__getattribute__(self, name)

    def find_event(self) -> str | None:
        """Return the event as which the audit trail records a request of this route; None for none. Raises TypeError if that is not
        declared."""
        return audited_operations.find_event(self.name, "GET" if self.methods == {"GET"} else "POST")

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The framework's handler behind our checks, in order: access, query parameters, body."""
        handle = super().get_route_handler()
        declared = {flat.call for flat in _flatten(self.dependant) if isinstance(flat.call, Access)}
        if len(declared) != 1:
            raise TypeError(f"{self.name} {self.path} must declare exactly one access, not {len(declared)}")
        self.access = required = declared.pop()
        event = self.find_event()
        queries = {name for flat in _flatten(self.dependant) for name in _query_names(flat)}
        is_open = any(flat.call is ignore_unknown_parameters for flat in _flatten(self.dependant))
        reads_json = self.body_field is not None

        async def answer(request: Request) -> Response:
            query = BRACKETS.sub("", request.scope["query_string"].decode("latin-1"))
            request.scope["query_string"] = query.encode("latin-1")
            strict = StrictRequest(request.scope, request.receive)
            place: Place = request.scope["tollway.place"]
            credential = required.read_credential(plane_of(strict), strict)
            if required is public:
                await place.admit_unauthenticated()
            else:
                await place.recognize(credential)
            checked_at = plane_of(strict).now()
            try:
                strict.state.caller = caller = (
                    None if required is public else await run_in_threadpool(required.check, plane_of(strict), strict)
                )
            except Fault as fault:
                if fault.kind.status == 401:
                    place.forget(credential)
                raise
            organization_id = caller.organization_id if isinstance(caller, Tenant) and not caller.is_operator else None
            if organization_id is not None:
                place.charge(organization_id, credential)
            elif caller is not None:
                place.end_turn()
                if isinstance(caller, Tenant | Operator | NodeCaller):
                    place.remember(credential)
            if caller is not None:
                place.count(organization_id or (caller.node_id if isinstance(caller, NodeCaller) else caller.key_id))
            for name, text in strict.query_params.multi_items():
                if name not in queries:
                    if is_open:
                        continue
                    raise Fault(PARAMETER_UNKNOWN, param=name_of(name))
                if "\0" in text:  # which PostgreSQL has no text with
                    raise Fault(PARAMETER_INVALID, param=name, message=f"Invalid value for {name}: it must be readable text.")
            body = b""
            if reads_json or required is node:
                body = await read_body(strict)
                if reads_json:
                    strict.parsed = read_json(body, strict.headers, is_scim=strict.url.path.startswith(SCIM_PATH))
            if organization_id is not None:
                await place.take_turn(organization_id)
            if caller is not None and plane_of(strict).now() - checked_at >= CHECK_US:  # a slow body must not outlast a revocation
                strict.state.caller = caller = await run_in_threadpool(required.check, plane_of(strict), strict)
            plane = plane_of(strict)
            if event is not None and caller is not None:
                operation = describe_operation(strict, caller, event, self.name, strict.path_params)
                if strict.method == "GET":
                    organization_id = caller.organization_id if isinstance(caller, Tenant) else None
                    await run_in_threadpool(
                        audit.record_read, plane.database, organization_id, operation, new_id=plane.new_id, now=plane.now()
                    )
                else:
                    recorder = audit.record_in(operation, new_id=plane.new_id, now=plane.now())
                    strict.state.plane = replace(plane, database=plane.database.recording(recorder))
            if isinstance(caller, Operator) or (isinstance(caller, Tenant) and caller.is_operator):
                place.prefer()
            key = strict.headers.get("idempotency-key") if strict.method == "POST" else None
            if key is None or not isinstance(caller, Tenant | Operator):
                response = await handle(strict)
            else:
                response = await _answer_once(plane, strict, caller, key, body, handle)
            place.end_preference()
            if response.background is not None:
                place.end_turn()  # what is done after the answer holds up no other request of the organization
            if isinstance(response, StreamingResponse) and organization_id is not None and not place.is_follower:
                place.end_turn()
                response.body_iterator = place.stream(response.body_iterator, organization_id)
            return response

        return answer


def describe_operation(request: Request, caller: Caller, event: str, name: str, named_by: dict[str, str]) -> AuditedOperation:
    """Return what the audit trail says of a request that carries out the operation `name`, beside its changes. `named_by`: the ids in the
    path of the operation, in its order."""
    match caller:
        case JoiningCaller():
            kind = ActorKind.JOIN_TOKEN
        case InvitedCaller():
            kind = ActorKind.INVITE
        case Tenant(live=LiveSession()):
            kind = ActorKind.USER
        case Tenant(is_operator=False):
            kind = ActorKind.ADMIN_KEY
        case _:
            kind = ActorKind.OPERATOR
    address = "" if request.client is None else request.client.host
    actor = Actor(kind=kind, id=caller.key_id, address=address, request_id=request.scope["tollway.request_id"])
    named = next(reversed(named_by.items()), None)
    if named is None:
        return AuditedOperation(event=event, operation=name, actor=actor)
    project_id = named_by.get("project_id", "")
    target = Target(kind=named[0].removesuffix("_id"), id=_show_target(named[1]), project_id=_show_target(project_id))
    return AuditedOperation(event=event, operation=name, actor=actor, target=target)


def _show_target(text: str) -> str:
    """Return a part of a path for the audit trail, without a secret that somebody took for an id."""
    return SECRET.sub(HIDDEN, text)[:TARGET_CHARACTERS_MAX]


async def _answer_once(
    plane: ControlPlane,
    request: Request,
    caller: Tenant | Operator,
    key: str,
    body: bytes,
    handle: Callable[[Request], Coroutine[Any, Any, Response]],
) -> Response:
    """Answer a request with an idempotency key: as before if it was carried out before, otherwise by `handle`."""
    sender = (caller.key_id, caller.organization_id if isinstance(caller, Tenant) else "")
    target = f"{request.url.path}?{request.url.query}"
    asked = idempotency.identify(sender, request.method, target, key, body)
    now = plane.now()
    open_vault = functools.partial(plane.open_vault, caller.organization_id if isinstance(caller, Tenant) else None)
    kept = await run_in_threadpool(idempotency.find_answer, plane.database, open_vault, asked, now)
    if kept is not None:
        request.scope["tollway.is_replay"] = True
        return Response(kept.body, kept.status, {"idempotent-replayed": "true"}, "application/json")
    database = plane_of(request).database.preparing(idempotency.claim_in(asked, now))
    request.state.plane = replace(plane, database=database)
    response = await handle(request)
    if not isinstance(response, StreamingResponse):
        answer = KeptAnswer(response.status_code, bytes(response.body))
        with suppress(Fault):  # the change was committed: its answer is for the client, whether it can be stored or not
            await run_in_threadpool(idempotency.keep_answer, plane.database, open_vault, asked, answer)
    return response


def router(*, tags: list[str]) -> APIRouter:
    """An empty router whose routes are of class `ApiRoute`. Paths are written in full at each route, so that they can be searched for."""
    return APIRouter(route_class=ApiRoute, tags=list(tags), redirect_slashes=False)


def _flatten(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for nested in dependant.dependencies:
        yield from _flatten(nested)


def _query_names(dependant: Dependant) -> Iterator[str]:
    for parameter in dependant.query_params:
        annotation = parameter.field_info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from (field.alias or name for name, field in annotation.model_fields.items())
        else:
            yield parameter.alias


# ---- Bodies -----------------------------------------------------------------------------------------------------------


async def read_body(request: Request) -> bytes:
    """The body of a request, which has neither place nor turn while the client is waited for. Raises OVERLOADED."""
    place: Place = request.scope["tollway.place"]
    turn = place.turn
    place.give_back()
    body = await request.body()
    place.take()
    if turn is not None:
        await place.take_turn(turn)
    return body


def read_json(body: bytes, headers: Mapping[str, str], *, is_scim: bool = False) -> object:
    """The value of a strict JSON body. Raises Faults for what is not JSON in UTF-8, or says one key twice. `is_scim`: it may be
    `application/scim+json` (RFC 7644, section 8.1)."""
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Fault(CONTENT_CODING_UNSUPPORTED)
    content_type = headers.get("content-type", "")
    if is_scim:
        content_type = SCIM_JSON.sub("application/json", content_type)
    if not is_json(content_type.encode("latin-1")):
        raise Fault(MEDIA_TYPE_UNSUPPORTED)
    return bodies.read_value(body)
