"""Access to the pages of the console, and the `Page` that each endpoint is given: its viewer, the operations they may call, its answer.

A person sees their own organization. Another one's address answers exactly as one that does not exist. An operator sees each
organization, as who acts for it, and the pages of the platform. Which parts of a page they see, the permission of each operation decides.
"""

import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

import msgspec
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from tollway.control.api.app import PUBLIC_ROUTERS
from tollway.control.api.authentication import pages
from tollway.control.api.authentication.pages import PageRoute
from tollway.control.api.routes import Access, ApiRoute, Plane, describe_operation
from tollway.control.auditing import audit
from tollway.control.console import navigation, rendering
from tollway.control.console.rendering import Look
from tollway.control.identity import access
from tollway.control.identity.access import Tenant
from tollway.control.plane import ControlPlane
from tollway.domain.faults import RESOURCE_UNKNOWN, SCOPE_INSUFFICIENT, Fault
from tollway.domain.keys import Operator
from tollway.domain.roles import find_grant

P = ParamSpec("P")
T = TypeVar("T")
Q = TypeVar("Q")

Operation = Callable[..., Any]
"""The function behind a route of the REST API."""

_ROUTES: Mapping[Operation, ApiRoute] = {
    route.endpoint: route for each in PUBLIC_ROUTERS for route in each.routes if isinstance(route, ApiRoute)
}

_EMPTY = re.compile(rb"(?:^|&)[^&=]*=(?=&|$)")


class ConsoleRoute(PageRoute):
    """A route of the console. The operations that its page calls leave their own records in the audit trail."""

    def find_event(self) -> str | None:
        """None: see the class."""
        return None

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of `PageRoute`, without query parameters that have no value: forms send the fields that were left empty."""
        show = super().get_route_handler()

        async def show_filtered(request: Request) -> Response:
            request.scope["query_string"] = _EMPTY.sub(b"", request.scope["query_string"]).lstrip(b"&")
            return await show(request)

        return show_filtered

    def show_fault(self, request: Request, fault: Fault) -> Response:
        """Return the page that a fault of `request` becomes, in the language and theme of the viewer."""
        return rendering.render_fault(rendering.read_look(request), fault)


def router() -> APIRouter:
    """An empty router whose routes are pages of the console."""
    return APIRouter(route_class=ConsoleRoute, redirect_slashes=False)


# ---- Viewers ------------------------------------------------------------------------------------------------------------


def _check_tenant(plane: ControlPlane, request: Request) -> Tenant:
    """Return who looks at the organization that the path names. Raises SESSION_MISSING, RESOURCE_UNKNOWN."""
    if request.method != "GET":
        pages.require_own_origin(plane, request)
    organization_id = request.path_params["organization_id"]
    operator = pages.find_operator(plane, request)
    if operator is not None:
        request.state.operator = operator
        return access.act_for(plane.database, operator, organization_id)
    person = access.identify_person(plane.database, plane.peppers, pages.find_secret(plane, request), plane.now())
    if person.organization_id != organization_id:
        raise Fault(RESOURCE_UNKNOWN)
    return person


def _check_platform(plane: ControlPlane, request: Request) -> Operator:
    """Return the operator who looks at the platform. Raises SESSION_MISSING; RESOURCE_UNKNOWN for people, for whom there is no such
    page."""
    if request.method != "GET":
        pages.require_own_origin(plane, request)
    operator = pages.find_operator(plane, request)
    if operator is None:
        access.identify_person(plane.database, plane.peppers, pages.find_secret(plane, request), plane.now())
        raise Fault(RESOURCE_UNKNOWN)
    request.state.operator = operator
    return operator


of_tenant = Access("session", _check_tenant, read_credential=pages.read_credential)
"""Access of a page of an organization, for its people and for operators."""

of_platform = Access("session", _check_platform, read_credential=pages.read_credential)
"""Access of a page of the platform, for operators."""


# ---- Pages --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page:
    """One request for a page. `tenant`: its viewer, as who acts in an organization; None on pages of the platform. `operator`: the viewer,
    if they are one."""

    request: Request
    plane: ControlPlane
    tenant: Tenant | None
    operator: Operator | None
    look: Look

    def allows(self, operation: Operation, project_id: str | None = None) -> bool:
        """Return whether the viewer may call an operation: of the platform, in the organization, or in one of its projects."""
        permission = _ROUTES[operation].access.permission
        if permission is None:
            return self.tenant is not None
        if permission.is_of_platform:
            return self.operator is not None and permission in self.operator.role.permissions
        return self.tenant is not None and find_grant(self.tenant.grants, permission, project_id) is not None

    def require(self, operation: Operation, project_id: str | None = None) -> Tenant | Operator:
        """Return the viewer as the caller of an operation. Raises as its route would: SCOPE_INSUFFICIENT, RESOURCE_UNKNOWN."""
        permission = _ROUTES[operation].access.permission
        if permission is not None and permission.is_of_platform:
            if self.operator is None:
                raise Fault(SCOPE_INSUFFICIENT)
            access.require_platform_permission(self.operator, permission)
            return self.operator
        if self.tenant is None:
            raise Fault(SCOPE_INSUFFICIENT)
        if permission is not None:
            access.require_permission(self.tenant, permission, project_id)
        return self.tenant

    def require_any(self, operations: Sequence[Operation], project_id: str | None) -> None:
        """Raise as the route of the last of `operations` would, unless the viewer may call one of them. `project_id`: that of a form, for
        those which are of a project."""
        projects = [project_id if "project_id" in _ROUTES[each].param_convertors else None for each in operations]
        if not any(map(self.allows, operations, projects)):
            self.require(operations[-1], projects[-1])

    def call(self, operation: Callable[Concatenate[Any, ControlPlane, P], T], *positional: P.args, **arguments: P.kwargs) -> T:
        """Carry out an operation of the REST API as the viewer: with the access that its route declares, and the record in the audit trail
        that a request for it would leave. Raises the Faults that the route would answer."""
        route = _ROUTES[operation]
        named_by = {name: str(arguments[name]) for name in route.param_convertors if name in arguments}
        caller = self.require(operation, named_by.get("project_id"))
        plane, event = self.plane, route.find_event()
        if event is not None:
            described = describe_operation(self.request, caller, event, route.name, named_by)
            if route.methods == {"GET"}:
                organization_id = caller.organization_id if isinstance(caller, Tenant) else None
                audit.record_read(plane.database, organization_id, described, new_id=plane.new_id, now=plane.now())
            else:
                recorder = audit.record_in(described, new_id=plane.new_id, now=plane.now())
                plane = replace(plane, database=plane.database.recording(recorder))
        return operation(caller, plane, *positional, **arguments)

    def read(self, operation: Callable[[Any, Request, Q], Response], parameters: Q) -> Any:
        """Carry out an operation that reads and answers JSON by itself (usage and costs), and return the value. Raises as `call`."""
        caller = self.require(operation)
        return msgspec.json.decode(bytes(operation(caller, self.request, parameters).body))

    def act_for(self, organization_id: str) -> "Page":
        """Return this page with its viewer, an operator, as who acts for an organization. Raises RESOURCE_UNKNOWN."""
        assert self.operator is not None, "only pages of the platform ask"
        return replace(self, tenant=access.act_for(self.plane.database, self.operator, organization_id))

    @property
    def organization_id(self) -> str:
        """The organization whose page it is."""
        assert self.tenant is not None, "only pages of an organization ask"
        return self.tenant.organization_id

    @property
    def root(self) -> str:
        """The path below which the pages of this organization, or of the platform, are."""
        return "/console/platform" if self.tenant is None else f"/console/organizations/{self.tenant.organization_id}"

    def show(self, template: str, *, status: int = 200, fault: Fault | None = None, **values: object) -> Response:
        """Return the page of a template. `fault`: what kept the form before from being carried out; it gives the status then."""
        if fault is not None:
            status = fault.kind.status
            self.request.scope["tollway.fault"] = fault
        return rendering.render(template, self.look, status=status, page=self, root=self.root, fault=fault, **values)

    def lead(self, path: str, notice: str = "") -> Response:
        """Return the answer to a form that was carried out: the browser goes to `path` below the root, where `notice` (a key of
        `rendering.NOTICES`) is shown."""
        return rendering.lead(pages.get_origin(self.plane, self.request), self.root + path, notice)

    def make_form_token(self) -> str:
        """Return the token that a form of this session must hold: computed once for all forms of a page."""
        scope = self.request.scope
        if "tollway.form_token" not in scope:
            scope["tollway.form_token"] = pages.make_form_token(self.plane, self.request)
        token: str = scope["tollway.form_token"]
        return token

    def list_sections(self) -> list[navigation.Section]:
        """Return the navigation that the viewer is offered."""
        return navigation.list_sections(navigation.PLATFORM if self.tenant is None else navigation.TENANT, self.allows)

    @property
    def viewer(self) -> str:
        """The address of the viewer."""
        caller = self.operator or self.tenant
        assert caller is not None, "a page has a viewer"
        return pages.get_email(caller)


def _keep(page: Page) -> Page:
    """Let the form of a request find its page (`page_of`)."""
    page.request.scope["tollway.page"] = page
    return page


def page_of(request: Request) -> Page:
    """Return the page that the endpoint of a request was given."""
    page: Page = request.scope["tollway.page"]
    return page


async def _open_tenant_page(caller: Annotated[Tenant, Depends(of_tenant)], plane: Plane, request: Request) -> Page:
    return _keep(Page(request, plane, caller, getattr(request.state, "operator", None), rendering.read_look(request)))


async def _open_platform_page(caller: Annotated[Operator, Depends(of_platform)], plane: Plane, request: Request) -> Page:
    return _keep(Page(request, plane, None, caller, rendering.read_look(request)))


TenantPage = Annotated[Page, Depends(_open_tenant_page)]
PlatformPage = Annotated[Page, Depends(_open_platform_page)]
