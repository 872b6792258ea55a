"""SCIM 2.0 for the directory of an organization (RFC 7644), below `/scim/v2`. It describes itself at `/Schemas`, not in OpenAPI.

Queries may have parameters that nobody knows: Entra ID adds such to the address that it was given.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec
from fastapi import Body, Depends, Header, Query
from starlette.requests import Request
from starlette.responses import Response

from tollway.control import publish
from tollway.control.api import routes
from tollway.control.api.authentication import pages
from tollway.control.api.errors import SCIM_PATH
from tollway.control.api.routes import Plane, ignore_unknown_parameters, may
from tollway.control.authentication import scim
from tollway.control.authentication.scim import Change, Found
from tollway.control.identity.access import Tenant
from tollway.control.plane import ControlPlane
from tollway.domain import ids
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, Fault
from tollway.domain.roles import Permission
from tollway.domain.scim import (
    GROUP_ATTRIBUTES,
    GROUP_SCHEMA,
    PRECONDITION_FAILED,
    USER_ATTRIBUTES,
    USER_SCHEMA,
    Attribute,
    Resource,
    Selection,
    parse_filter,
    parse_selection,
)

router = routes.router(tags=["scim"])

Directory = Annotated[Tenant, Depends(may(Permission.SCIM_WRITE))]
Sent = Annotated[dict[str, Any], Body()]
IfMatch = Annotated[str | None, Header(max_length=1024)]
Names = Annotated[str | None, Query(max_length=4096)]
OPEN = [Depends(ignore_unknown_parameters)]

GROUP_ATTEMPTS = 5
"""To change a group that others change too. Each works the change out anew from what the group has become."""

_LIST = "urn:ietf:params:scim:api:messages:2.0:ListResponse"
_CONFIGURATION = "urn:ietf:params:scim:schemas:core:2.0:ServiceProviderConfig"
_TYPE = "urn:ietf:params:scim:schemas:core:2.0:ResourceType"
_SCHEMA = "urn:ietf:params:scim:schemas:core:2.0:Schema"
_MEDIA_TYPE = "application/scim+json"

Attributes = Names
Excluded = Annotated[str | None, Query(alias="excludedAttributes", max_length=4096)]


def _answer(resource: Any, status: int = 200) -> Response:
    headers = {"etag": resource["meta"]["version"]} if "version" in resource.get("meta", ()) else {}
    if status == 201:
        headers["location"] = resource["meta"]["location"]
    return Response(msgspec.json.encode(resource), status, headers, _MEDIA_TYPE)


def _answer_one(resource: Resource, selection: Selection, if_none_match: str | None = None) -> Response:
    if if_none_match is not None and scim.has_version(resource, if_none_match):
        return Response(None, 304, {"etag": resource["meta"]["version"]})
    return Response(msgspec.json.encode(selection.choose(resource)), 200, {"etag": resource["meta"]["version"]}, _MEDIA_TYPE)


def _answer_list(found: Found, start_index: int) -> Response:
    listed = {
        "schemas": [_LIST],
        "totalResults": found.total,
        "startIndex": start_index,
        "itemsPerPage": len(found.resources),
        "Resources": found.resources,
    }
    return Response(msgspec.json.encode(listed), 200, media_type=_MEDIA_TYPE)


def find_base(plane: ControlPlane, request: Request) -> str:
    """Return the address of this service, which is the REST API's; a path alone where that is not known."""
    return (plane.public_url or pages.find_loopback(request) or "") + SCIM_PATH


def _query(filter: str | None, start_index: int, count: int, selection: Selection) -> scim.Query:
    """Return a query. A first resource below 1 counts as 1, and a negative count as 0 (RFC 7644, section 3.4.2.4)."""
    wanted = None if filter is None else parse_filter(filter)
    return scim.Query(wanted, min(max(start_index, 1), 2**31), min(max(count, 0), scim.PAGE_MAX), selection)


def _read_query(
    filter: Names = None,
    start_index: Annotated[int, Query(alias="startIndex")] = 1,
    count: int = scim.PAGE_MAX,
    attributes: Attributes = None,
    excluded: Excluded = None,
) -> scim.Query:
    return _query(filter, start_index, count, parse_selection(attributes, excluded))


Asked = Annotated[scim.Query, Depends(_read_query)]
"""The query of a list, in the parameters of its address."""


def _read_search(body: Mapping[str, Any]) -> scim.Query:
    """Return the query of a search by POST (RFC 7644, section 3.4.3). Raises PARAMETER_INVALID."""
    wanted = {name.lower(): value for name, value in body.items()}
    names: dict[str, str | None] = {}
    for name in ("attributes", "excludedattributes"):
        listed = wanted.get(name)
        listed = ",".join(listed) if isinstance(listed, list) and all(isinstance(each, str) for each in listed) else listed
        names[name] = listed if isinstance(listed, str | None) else _refuse(name)
    filter, start_index, count = wanted.get("filter"), wanted.get("startindex", 1), wanted.get("count", scim.PAGE_MAX)
    if not isinstance(filter, str | None):
        _refuse("filter")
    if type(start_index) is not int or type(count) is not int:
        _refuse("startIndex")
    return _query(filter, start_index, count, parse_selection(names["attributes"], names["excludedattributes"]))


def _refuse(name: str) -> Any:
    raise Fault(PARAMETER_INVALID, param=name)


def _list(caller: Tenant, plane: ControlPlane, request: Request, query: scim.Query, listing: Callable[..., Found]) -> Response:
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return _answer_list(listing(tx, query, find_base(plane, request)), query.start_index)


# ---- People -------------------------------------------------------------------------------------------------------------


@router.get(f"{SCIM_PATH}/Users", dependencies=OPEN, include_in_schema=False)
def list_scim_users(caller: Directory, plane: Plane, request: Request, query: Asked) -> Response:
    """The people whom the directory can see."""
    return _list(caller, plane, request, query, scim.list_users)


@router.post(f"{SCIM_PATH}/Users/.search", dependencies=OPEN, include_in_schema=False)
def search_scim_users(caller: Directory, plane: Plane, request: Request, body: Sent) -> Response:
    """As `list_scim_users`, with the query in the body."""
    return _list(caller, plane, request, _read_search(body), scim.list_users)


@router.post(f"{SCIM_PATH}/Users", dependencies=OPEN, include_in_schema=False)
def create_scim_user(caller: Directory, plane: Plane, request: Request, body: Sent) -> Response:
    """Add a person."""
    id = plane.new_id(ids.USER)
    with plane.database.tenant(caller.organization_id) as tx:
        made = scim.create_user(tx, body, find_base(plane, request), id=id, sizes=plane.quotas, now=plane.now())
    return _answer(made, 201)


@router.get(f"{SCIM_PATH}/Users/{{user_id}}", dependencies=OPEN, include_in_schema=False)
def retrieve_scim_user(
    caller: Directory,
    plane: Plane,
    request: Request,
    user_id: str,
    attributes: Attributes = None,
    excluded: Excluded = None,
    if_none_match: IfMatch = None,
) -> Response:
    """One person."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        found = scim.get_user(tx, user_id, find_base(plane, request))
    return _answer_one(found, parse_selection(attributes, excluded), if_none_match)


@router.put(f"{SCIM_PATH}/Users/{{user_id}}", dependencies=OPEN, include_in_schema=False)
def replace_scim_user(caller: Directory, plane: Plane, request: Request, user_id: str, body: Sent, if_match: IfMatch = None) -> Response:
    """Put another person in place of this one. `active` false ends all that they can do."""
    return _change_user(caller, plane, request, user_id, Change(scim.replace_user(body), if_match), Selection())


@router.patch(f"{SCIM_PATH}/Users/{{user_id}}", dependencies=OPEN, include_in_schema=False)
def patch_scim_user(
    caller: Directory,
    plane: Plane,
    request: Request,
    user_id: str,
    body: Sent,
    if_match: IfMatch = None,
    attributes: Attributes = None,
    excluded: Excluded = None,
) -> Response:
    """Change a person. `active` false ends all that they can do."""
    change = Change(scim.patch_user(body), if_match)
    return _change_user(caller, plane, request, user_id, change, parse_selection(attributes, excluded))


def _change_user(caller: Tenant, plane: ControlPlane, request: Request, user_id: str, change: Change, selection: Selection) -> Response:
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        changed, version = scim.change_user(tx, user_id, change, find_base(plane, request), sizes=plane.quotas, now=now)
    publish.confirm(plane.database, plane.publications, version, now)
    return _answer_one(changed, selection)


@router.delete(f"{SCIM_PATH}/Users/{{user_id}}", dependencies=OPEN, include_in_schema=False)
def delete_scim_user(caller: Directory, plane: Plane, request: Request, user_id: str, if_match: IfMatch = None) -> Response:
    """Remove a person with all that they hold."""
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        version = scim.delete_user(tx, user_id, if_match, find_base(plane, request), now)
    publish.confirm(plane.database, plane.publications, version, now)
    return Response(None, 204)


# ---- Groups -------------------------------------------------------------------------------------------------------------


@router.get(f"{SCIM_PATH}/Groups", dependencies=OPEN, include_in_schema=False)
def list_scim_groups(caller: Directory, plane: Plane, request: Request, query: Asked) -> Response:
    """The groups of the organization."""
    return _list(caller, plane, request, query, scim.list_groups)


@router.post(f"{SCIM_PATH}/Groups/.search", dependencies=OPEN, include_in_schema=False)
def search_scim_groups(caller: Directory, plane: Plane, request: Request, body: Sent) -> Response:
    """As `list_scim_groups`, with the query in the body."""
    return _list(caller, plane, request, _read_search(body), scim.list_groups)


@router.post(f"{SCIM_PATH}/Groups", dependencies=OPEN, include_in_schema=False)
def create_scim_group(caller: Directory, plane: Plane, request: Request, body: Sent) -> Response:
    """Add a group."""
    id = plane.new_id(ids.GROUP)
    with plane.database.tenant(caller.organization_id) as tx:
        made = scim.create_group(tx, body, find_base(plane, request), id=id, sizes=plane.quotas, now=plane.now())
    return _answer(made, 201)


@router.get(f"{SCIM_PATH}/Groups/{{group_id}}", dependencies=OPEN, include_in_schema=False)
def retrieve_scim_group(
    caller: Directory,
    plane: Plane,
    request: Request,
    group_id: str,
    attributes: Attributes = None,
    excluded: Excluded = None,
    if_none_match: IfMatch = None,
) -> Response:
    """One group."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        found = scim.get_group(tx, group_id, find_base(plane, request))
    return _answer_one(found, parse_selection(attributes, excluded), if_none_match)


@router.put(f"{SCIM_PATH}/Groups/{{group_id}}", dependencies=OPEN, include_in_schema=False)
def replace_scim_group(caller: Directory, plane: Plane, request: Request, group_id: str, body: Sent, if_match: IfMatch = None) -> Response:
    """Put another group, with other members, in place of this one."""
    return _change_group(caller, plane, request, group_id, Change(scim.replace_group(body), if_match), Selection())


@router.patch(f"{SCIM_PATH}/Groups/{{group_id}}", dependencies=OPEN, include_in_schema=False)
def patch_scim_group(
    caller: Directory,
    plane: Plane,
    request: Request,
    group_id: str,
    body: Sent,
    if_match: IfMatch = None,
    attributes: Attributes = None,
    excluded: Excluded = None,
) -> Response:
    """Change a group, or who is in it."""
    change = Change(scim.patch_group(body), if_match)
    return _change_group(caller, plane, request, group_id, change, parse_selection(attributes, excluded))


def _change_group(caller: Tenant, plane: ControlPlane, request: Request, group_id: str, change: Change, selection: Selection) -> Response:
    base, attempts = find_base(plane, request), 0
    while True:
        attempts += 1
        with plane.database.tenant(caller.organization_id, write=False) as tx:
            planned = scim.plan_group_change(tx, group_id, change, base)
        try:
            with plane.database.tenant(caller.organization_id) as tx:
                changed = scim.change_group(tx, planned, base, plane.now())
            return _answer_one(changed, selection)
        except Fault as fault:
            if fault.kind is not PRECONDITION_FAILED or attempts == GROUP_ATTEMPTS:
                raise


@router.delete(f"{SCIM_PATH}/Groups/{{group_id}}", dependencies=OPEN, include_in_schema=False)
def delete_scim_group(caller: Directory, plane: Plane, request: Request, group_id: str, if_match: IfMatch = None) -> Response:
    """Delete a group; its members lose what it held."""
    with plane.database.tenant(caller.organization_id) as tx:
        scim.delete_group(tx, group_id, if_match, find_base(plane, request), plane.now())
    return Response(None, 204)


@router.post(f"{SCIM_PATH}/.search", dependencies=OPEN, include_in_schema=False)
def search_scim(caller: Directory, plane: Plane, request: Request, body: Sent) -> Response:
    """People and groups together, with the query in the body."""
    return _list(caller, plane, request, _read_search(body), scim.list_all)


# ---- The service itself -------------------------------------------------------------------------------------------------


def _configuration(base: str) -> Resource:
    off = {"supported": False}
    return {
        "schemas": [_CONFIGURATION],
        "documentationUri": "https://www.rfc-editor.org/rfc/rfc7644",
        "patch": {"supported": True},
        "bulk": {**off, "maxOperations": 0, "maxPayloadSize": 0},
        "filter": {"supported": True, "maxResults": scim.PAGE_MAX},
        "changePassword": off,
        "sort": off,
        "etag": {"supported": True},
        "authenticationSchemes": [
            {
                "type": "oauthbearertoken",
                "name": "Bearer token",
                "description": "An admin key of the organization with the role `directory`.",
                "specUri": "https://www.rfc-editor.org/rfc/rfc6750",
                "primary": True,
            }
        ],
        "meta": {"resourceType": "ServiceProviderConfig", "location": f"{base}/ServiceProviderConfig"},
    }


def _list_types(base: str) -> list[Resource]:
    return [
        {
            "schemas": [_TYPE],
            "id": name,
            "name": name,
            "endpoint": f"/{name}s",
            "description": description,
            "schema": schema,
            "meta": {"resourceType": "ResourceType", "location": f"{base}/ResourceTypes/{name}"},
        }
        for name, schema, description in (("User", USER_SCHEMA, "A person."), ("Group", GROUP_SCHEMA, "People who hold roles together."))
    ]


def _show_attribute(attribute: Attribute) -> Resource:
    shown: Resource = {
        "name": attribute.name,
        "type": attribute.type,
        "multiValued": attribute.is_multi_valued,
        "description": attribute.description,
        "required": attribute.required,
        "mutability": attribute.mutability,
        "returned": "default",
    }
    if attribute.type in ("string", "reference"):
        shown["caseExact"] = attribute.case_exact
        shown["uniqueness"] = attribute.uniqueness
    if attribute.reference_types:
        shown["referenceTypes"] = list(attribute.reference_types)
    if attribute.parts:
        shown["subAttributes"] = [_show_attribute(each) for each in attribute.parts]
    return shown


def _list_schemas(base: str) -> list[Resource]:
    return [
        {
            "schemas": [_SCHEMA],
            "id": id,
            "name": name,
            "description": description,
            "attributes": [_show_attribute(each) for each in attributes],
            "meta": {"resourceType": "Schema", "location": f"{base}/Schemas/{id}"},
        }
        for id, name, description, attributes in (
            (USER_SCHEMA, "User", "A person.", USER_ATTRIBUTES),
            (GROUP_SCHEMA, "Group", "People who hold roles together.", GROUP_ATTRIBUTES),
        )
    ]


def _choose(resources: list[Resource], id: str) -> Response:
    found = next((each for each in resources if each["id"] == id), None)
    if found is None:
        raise Fault(RESOURCE_UNKNOWN)
    return _answer(found)


@router.get(f"{SCIM_PATH}/ServiceProviderConfig", dependencies=OPEN, include_in_schema=False)
def retrieve_scim_configuration(_caller: Directory, plane: Plane, request: Request) -> Response:
    """The features of this service."""
    return _answer(_configuration(find_base(plane, request)))


@router.get(f"{SCIM_PATH}/ResourceTypes", dependencies=OPEN, include_in_schema=False)
def list_scim_types(_caller: Directory, plane: Plane, request: Request) -> Response:
    """The kinds of resources."""
    listed = _list_types(find_base(plane, request))
    return _answer_list(Found(len(listed), listed), 1)


@router.get(f"{SCIM_PATH}/ResourceTypes/{{name}}", dependencies=OPEN, include_in_schema=False)
def retrieve_scim_type(_caller: Directory, plane: Plane, request: Request, name: str) -> Response:
    """One kind of resource."""
    return _choose(_list_types(find_base(plane, request)), name)


@router.get(f"{SCIM_PATH}/Schemas", dependencies=OPEN, include_in_schema=False)
def list_scim_schemas(_caller: Directory, plane: Plane, request: Request) -> Response:
    """The attributes of the resources."""
    listed = _list_schemas(find_base(plane, request))
    return _answer_list(Found(len(listed), listed), 1)


@router.get(f"{SCIM_PATH}/Schemas/{{schema_id}}", dependencies=OPEN, include_in_schema=False)
def retrieve_scim_schema(_caller: Directory, plane: Plane, request: Request, schema_id: str) -> Response:
    """The attributes of one kind of resource."""
    return _choose(_list_schemas(find_base(plane, request)), schema_id)
