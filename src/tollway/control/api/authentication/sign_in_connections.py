"""Identity providers with which the people of an organization sign in."""

from typing import Annotated, Any, Literal

from fastapi import Depends, Query
from pydantic import Field, StringConstraints
from starlette.requests import Request

from tollway.control.api import routes
from tollway.control.api.authentication import pages
from tollway.control.api.authentication.provider_pages import CALLBACK_PATH
from tollway.control.api.identity.people_schemas import role_name
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Identified, In, ListOut, Name, Out, PageQuery, list_out, seconds
from tollway.control.authentication import sign_in_connections as connections
from tollway.control.authentication.sign_in_connections import SignInConnection
from tollway.control.identity.access import Tenant
from tollway.control.plane import ControlPlane
from tollway.domain import ids
from tollway.domain.roles import Permission

router = routes.router(tags=["sign-in"])

Reader = Annotated[Tenant, Depends(may(Permission.FEDERATION_READ))]
Writer = Annotated[Tenant, Depends(may(Permission.FEDERATION_WRITE))]

_PATH = "/v1/organization/sign_in_connections"
_CONNECTION = "conn_0198c5f2a3b47c11a0b1c2d3e4f50617"
_GROUP = "group_0198c5f2a3b47c11a0b1c2d3e4f50617"

Text = Annotated[str, StringConstraints(min_length=1, max_length=2048, pattern=r"^[\x21-\x7e]+$")]
NameText = Annotated[Name, Field(description="A name for people, 1 to 256 characters.", examples=["Company login"])]
IssuerText = Annotated[Text, Field(description="The exact issuer of the provider.", examples=["https://login.example.com"])]
ClientText = Annotated[
    str,
    StringConstraints(min_length=1, max_length=512, pattern=r"^[\x21-\x7e]+$"),
    Field(description="The client id at the provider.", examples=["tollway"]),
]
SecretText = Annotated[
    str | None,
    StringConstraints(min_length=1, max_length=4096),
    Field(description="The client secret; never shown again. Null for a public client.", examples=["s3cret"]),
]
Domain = Annotated[str, StringConstraints(max_length=253, pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)+$")]
Domains = Annotated[
    list[Domain], Field(max_length=20, description="Domains of addresses whose owners join by signing in.", examples=[["example.com"]])
]
RoleText = Annotated[
    str | None,
    StringConstraints(max_length=256),
    Field(description="Name or id of the role with which they join; null: nobody joins so.", examples=["reader"]),
]
ClaimText = Annotated[
    str, StringConstraints(min_length=1, max_length=256), Field(description="The claim that lists a person's groups.", examples=["groups"])
]
Groups = Annotated[
    dict[Annotated[str, StringConstraints(min_length=1, max_length=256)], Annotated[str, StringConstraints(max_length=64)]],
    Field(max_length=100, description="Id of a group by the provider's name of one.", examples=[{"engineering": _GROUP}]),
]
Trusts = Annotated[
    bool, Field(description="Whether every address counts as verified where the provider says nothing of it.", examples=[False])
]
Enabled = Annotated[bool, Field(description="Whether people can sign in by it.", examples=[True])]


class ConnectionCreate(In):
    """An identity provider to sign in with."""

    name: NameText
    issuer: IssuerText
    client_id: ClientText
    client_secret: SecretText = None
    trusts_addresses: Trusts = False
    domains: Domains = Field(default_factory=list)
    role: RoleText = None
    groups_claim: ClaimText = "groups"
    groups: Groups = Field(default_factory=dict)
    enabled: Enabled = True


class ConnectionUpdate(In):
    """Fields of a connection to change; a field that is left out stays. The issuer of a connection does not change."""

    name: NameText | None = None
    client_id: ClientText | None = None
    client_secret: SecretText = None
    trusts_addresses: Trusts | None = None
    domains: Domains | None = None
    role: RoleText = None
    groups_claim: ClaimText | None = None
    groups: Groups | None = None
    enabled: Enabled | None = None


class ConnectionOut(Identified):
    """An identity provider to sign in with."""

    object: Annotated[Literal["organization.sign_in_connection"], Field(description="Always `organization.sign_in_connection`.")] = (
        "organization.sign_in_connection"
    )
    id: Annotated[str, Field(description="Id of the connection.", examples=[_CONNECTION])]
    name: NameText
    issuer: IssuerText
    client_id: ClientText
    has_client_secret: Annotated[bool, Field(description="Whether a client secret is stored.", examples=[True])]
    trusts_addresses: Trusts
    domains: Domains
    role_id: Annotated[str | None, Field(description="Role with which people join; null: nobody joins so.", examples=["role_viewer"])]
    groups_claim: ClaimText
    groups: Groups
    enabled: Enabled
    sign_in_url: Annotated[
        str | None,
        Field(
            description="Where people sign in; null while `control.public_url` is not set.",
            examples=[f"https://control.example.com/sign-in/{_CONNECTION}"],
        ),
    ]
    redirect_uri: Annotated[
        str | None,
        Field(description="Address to register at the provider.", examples=[f"https://control.example.com/sign-in/{_CONNECTION}/callback"]),
    ]
    created_at: Annotated[int, Field(description="When it was created, in Unix seconds.", examples=[1790000000])]


class ConnectionDeleted(Out):
    """A connection was deleted."""

    object: Annotated[Literal["organization.sign_in_connection.deleted"], Field(description="The type of the object.")] = (
        "organization.sign_in_connection.deleted"
    )
    id: Annotated[str, Field(description="Id of the connection.", examples=[_CONNECTION])]
    deleted: Annotated[Literal[True], Field(description="Always true.", examples=[True])] = True


def _out(plane: ControlPlane, request: Request, connection: SignInConnection) -> ConnectionOut:
    origin = pages.find_origin(plane, request)
    callback = None if origin is None else origin + CALLBACK_PATH.format(connection_id=connection.id)
    return ConnectionOut(
        id=connection.id,
        name=connection.name,
        issuer=connection.issuer,
        client_id=connection.client_id,
        has_client_secret=connection.client_secret is not None,
        trusts_addresses=connection.trusts_addresses,
        domains=list(connection.domains),
        role_id=connection.role_id,
        groups_claim=connection.groups_claim,
        groups=dict(connection.groups),
        enabled=connection.is_enabled,
        sign_in_url=None if callback is None else callback.removesuffix("/callback"),
        redirect_uri=callback,
        created_at=seconds(connection.created_at),
    )


def _seal(plane: ControlPlane, caller: Tenant, secret: str, connection_id: str) -> bytes:
    return plane.open_sign_in_vault(caller.organization_id).seal(secret, context=connection_id)


@router.get(_PATH)
def list_connections(caller: Reader, plane: Plane, request: Request, query: Annotated[PageQuery, Query()]) -> ListOut[ConnectionOut]:
    """The identity providers with which people sign in."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        page = connections.list_connections(tx, query.window())
    return list_out(page, lambda each: _out(plane, request, each))


@router.post(_PATH)
def create_connection(caller: Writer, plane: Plane, request: Request, body: ConnectionCreate) -> ConnectionOut:
    """Let people sign in with an identity provider. The key presented holds all that an owner does, as whom the provider could sign in."""
    id = plane.new_id(ids.SIGN_IN_CONNECTION)
    wanted = SignInConnection(
        id=id,
        organization_id=caller.organization_id,
        name=body.name,
        issuer=body.issuer,
        client_id=body.client_id,
        client_secret=None if body.client_secret is None else _seal(plane, caller, body.client_secret, id),
        trusts_addresses=body.trusts_addresses,
        domains=tuple(body.domains),
        role_id=None if body.role is None else role_name(body.role),
        groups_claim=body.groups_claim,
        groups=body.groups,
        is_enabled=body.enabled,
        created_at=plane.now(),
    )
    with plane.database.tenant(caller.organization_id) as tx:
        made = connections.create_connection(tx, wanted, own=caller.grants, private_issuers=plane.private_issuers)
    return _out(plane, request, made)


@router.get(f"{_PATH}/{{connection_id}}")
def retrieve_connection(caller: Reader, plane: Plane, request: Request, connection_id: str) -> ConnectionOut:
    """One identity provider."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return _out(plane, request, connections.get_connection(tx, connection_id))


@router.post(f"{_PATH}/{{connection_id}}")
def update_connection(caller: Writer, plane: Plane, request: Request, connection_id: str, body: ConnectionUpdate) -> ConnectionOut:
    """Change an identity provider. The key presented holds all that an owner does, unless it only disables it."""
    fields: dict[str, Any] = {name: getattr(body, name) for name in body.model_fields_set}
    changes = {name: value for name, value in fields.items() if value is not None or name in ("role", "client_secret")}
    if "role" in changes:
        role = changes.pop("role")
        changes["role_id"] = None if role is None else role_name(role)
    if changes.get("client_secret") is not None:
        changes["client_secret"] = _seal(plane, caller, changes["client_secret"], connection_id)
    if "domains" in changes:
        changes["domains"] = tuple(changes["domains"])
    if "enabled" in changes:
        changes["is_enabled"] = changes.pop("enabled")
    with plane.database.tenant(caller.organization_id) as tx:
        changed = connections.update_connection(tx, connection_id, changes, own=caller.grants)
    return _out(plane, request, changed)


@router.delete(f"{_PATH}/{{connection_id}}")
def delete_connection(caller: Writer, plane: Plane, connection_id: str) -> ConnectionDeleted:
    """Delete an identity provider; nobody signs in by it any more. Sessions that exist go on."""
    with plane.database.tenant(caller.organization_id) as tx:
        connections.delete_connection(tx, connection_id)
    return ConnectionDeleted(id=connection_id)
