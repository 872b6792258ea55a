"""Sign-in of the people of an organization, for those who administer it: links that sign a person in once, their sessions, and a reset."""

from typing import Annotated, Literal

from fastapi import Depends, Query
from pydantic import Field
from starlette.requests import Request

from tollway.control.api import routes
from tollway.control.api.authentication import pages
from tollway.control.api.authentication.sign_in_pages import LINK_PATH
from tollway.control.api.identity.people_schemas import UserDeleted
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Identified, ListOut, Out, PageQuery, seconds
from tollway.control.identity import credentials, sessions
from tollway.control.identity.access import Tenant
from tollway.domain.keys import RANDOM_BYTES
from tollway.domain.roles import Permission
from tollway.domain.sessions import Session, SessionKind, SignInMethod

router = routes.router(tags=["users"])

Anyone = Annotated[Tenant, Depends(routes.organization_caller)]

Reader = Annotated[Tenant, Depends(may(Permission.USERS_READ))]
Writer = Annotated[Tenant, Depends(may(Permission.USERS_WRITE))]

_SESSION = "sess_0198c5f2a3b47c11a0b1c2d3e4f50617"
_USER = "user_0198c5f2a3b47c11a0b1c2d3e4f50617"


class SignInLinkOut(Out):
    """A link that signs a person in once."""

    object: Annotated[Literal["organization.user.sign_in_link"], Field(description="Always `organization.user.sign_in_link`.")] = (
        "organization.user.sign_in_link"
    )
    url: Annotated[
        str, Field(description="Address of the page; shown this once.", examples=["https://control.example.com/link?token=tw_link_..."])
    ]
    expires_at: Annotated[int, Field(description="When it ends, unless it was used before, in Unix seconds.", examples=[1790000000])]


class SessionOut(Identified):
    """A session of a person who signed in."""

    object: Annotated[Literal["organization.user.session"], Field(description="Always `organization.user.session`.")] = (
        "organization.user.session"
    )
    id: Annotated[str, Field(description="Id of the session.", examples=[_SESSION])]
    user_id: Annotated[str, Field(description="The person.", examples=[_USER])]
    kind: Annotated[SessionKind, Field(description="The program that has it.", examples=[SessionKind.BROWSER])]
    method: Annotated[SignInMethod, Field(description="How the person proved who they are.", examples=[SignInMethod.PASSWORD])]
    address: Annotated[str, Field(description="Network address of the sign-in.", examples=["192.0.2.1"])]
    agent: Annotated[str, Field(description="What the program said that it is.", examples=["Mozilla/5.0"])]
    created_at: Annotated[int, Field(description="When it began, in Unix seconds.", examples=[1790000000])]
    last_used_at: Annotated[int, Field(description="When it was used last, to a minute, in Unix seconds.", examples=[1790000000])]
    expires_at: Annotated[int, Field(description="When it ends without another request, in Unix seconds.", examples=[1790003600])]


def _session_out(session: Session) -> SessionOut:
    return SessionOut(
        id=session.id,
        user_id=session.user_id,
        kind=session.kind,
        method=session.method,
        address=session.address,
        agent=session.agent,
        created_at=seconds(session.created_at),
        last_used_at=seconds(session.last_used_at),
        expires_at=seconds(session.ends_at()),
    )


class SessionDeleted(Out):
    """A session was ended."""

    object: Annotated[Literal["organization.user.session.deleted"], Field(description="The type of the object.")] = (
        "organization.user.session.deleted"
    )
    id: Annotated[str, Field(description="Id of the session.", examples=[_SESSION])]
    deleted: Annotated[Literal[True], Field(description="Always true.", examples=[True])] = True


@router.post("/v1/organization/users/{user_id}/sign_in_links")
def create_sign_in_link(caller: Writer, plane: Plane, request: Request, user_id: str) -> SignInLinkOut:
    """Create a link that signs a person in once, within a day: for the first password, or for one that was forgotten. An authenticator app
    is asked for all the same. The key presented holds every permission of the person."""
    origin = pages.get_origin(plane, request)
    with plane.database.tenant(caller.organization_id) as tx:
        link = credentials.create_link(
            tx,
            user_id,
            own=caller.grants,
            created_by=caller.key_id,
            random_bytes=plane.random_bytes(RANDOM_BYTES),
            pepper=plane.pepper,
            now=plane.now(),
        )
    return SignInLinkOut(url=f"{origin}{LINK_PATH}?token={link.token}", expires_at=seconds(link.expires_at))


@router.delete("/v1/organization/users/{user_id}/credentials")
def reset_credentials(caller: Writer, plane: Plane, user_id: str) -> UserDeleted:
    """Remove a person's password, authenticator app and recovery codes, and end their sessions. The key presented holds every permission of
    the person."""
    with plane.database.tenant(caller.organization_id) as tx:
        credentials.reset_credentials(tx, user_id, own=caller.grants)
    return UserDeleted(object="organization.user.credentials.deleted", id=user_id)


@router.get("/v1/organization/users/{user_id}/sessions")
def list_user_sessions(caller: Reader, plane: Plane, user_id: str, query: Annotated[PageQuery, Query()]) -> ListOut[SessionOut]:
    """The sessions of a person that have not ended, the one that was used last first. There are 20 at most, all in one page."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        found = sessions.list_sessions(tx, user_id, plane.now())
    rows = [_session_out(session) for session in found]
    return ListOut(data=rows, first_id=rows[0].id if rows else None, last_id=rows[-1].id if rows else None, has_more=False)


@router.delete("/v1/organization/users/{user_id}/sessions/{session_id}")
def delete_user_session(caller: Writer, plane: Plane, user_id: str, session_id: str) -> SessionDeleted:
    """End a session of a person from its next request on. The key presented holds every permission of the person."""
    with plane.database.tenant(caller.organization_id) as tx:
        sessions.end_session(tx, user_id, session_id, own=caller.grants)
    return SessionDeleted(id=session_id)


class SelfRoleOut(Out):
    """A role that the caller holds."""

    name: Annotated[str, Field(description="Name of the role.", examples=["owner"])]
    project_id: Annotated[str | None, Field(description="The project in which it is held; null for the organization.", examples=[None])]


class SelfUserOut(Out):
    """The person who calls."""

    id: Annotated[str, Field(description="Id of the person.", examples=[_USER])]
    email: Annotated[str, Field(description="Address of the person.", examples=["ada@example.com"])]
    name: Annotated[str, Field(description="Name of the person.", examples=["Ada"])]


class SelfOut(Out):
    """Whoever calls: a person who logged in (`user`), or an API key."""

    object: Annotated[Literal["caller"], Field(description="Always `caller`.")] = "caller"
    organization_id: Annotated[str, Field(description="The organization acted in.", examples=["org_0198c5f2a3b47c11a0b1c2d3e4f50617"])]
    api_key_id: Annotated[str | None, Field(description="The key presented; null for a person.", examples=[None])]
    operator_id: Annotated[str | None, Field(description="The operator who signed in; null for everybody else.", examples=[None])]
    user: Annotated[SelfUserOut | None, Field(description="The person; null for a key.", examples=[None])]
    session_id: Annotated[str | None, Field(description="The session of the person; null for a key.", examples=[_SESSION])]
    roles: Annotated[list[SelfRoleOut], Field(description="The roles held.")]


@router.get("/v1/me")
def retrieve_self(caller: Anyone) -> SelfOut:
    """The caller, and the roles that they hold."""
    user = None if caller.live is None else caller.live.user
    return SelfOut(
        organization_id=caller.organization_id,
        api_key_id=caller.key_id if user is None and caller.operator_session_id is None else None,
        operator_id=None if caller.operator_session_id is None else caller.key_id,
        user=None if user is None else SelfUserOut(id=user.id, email=user.email, name=user.name),
        session_id=caller.session_id,
        roles=[SelfRoleOut(name=grant.role.name, project_id=grant.project_id) for grant in caller.grants],
    )
