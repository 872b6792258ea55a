"""Operators who sign in with the identity provider of the platform, and their sessions."""

from typing import Annotated, Literal

from fastapi import Depends, Query
from pydantic import Field

from tollway.control.api import routes
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Identified, ListOut, Out, PageQuery, list_out, seconds
from tollway.control.identity import operators
from tollway.control.identity.operators import SignedInOperator
from tollway.domain.keys import KeyOrigin, Operator
from tollway.domain.roles import Permission
from tollway.domain.sessions import OperatorSession, SessionKind, SignInMethod

router = routes.router(tags=["operators"])

Reader = Annotated[Operator, Depends(may(Permission.PLATFORM_KEYS_READ))]
Writer = Annotated[Operator, Depends(may(Permission.PLATFORM_KEYS_WRITE))]

_OPERATOR = "operator_0198c5f2a3b47c11a0b1c2d3e4f50617"
_SESSION = "opsess_0198c5f2a3b47c11a0b1c2d3e4f50617"


class OperatorOut(Identified):
    """An operator who signed in."""

    object: Annotated[Literal["platform.operator"], Field(description="Always `platform.operator`.")] = "platform.operator"
    id: Annotated[str, Field(description="Id of the operator, the same at each sign-in.", examples=[_OPERATOR])]
    email: Annotated[str, Field(description="Address as the provider said; empty if it said none.", examples=["ada@example.com"])]
    name: Annotated[str, Field(description="Name as the provider said.", examples=["Ada"])]
    role: Annotated[
        Literal["operator", "auditor"] | None, Field(description="Role by the latest sign-in; null for none.", examples=["operator"])
    ]
    origin: Annotated[
        KeyOrigin, Field(description="Whose requests they cannot approve: those of the same origin.", examples=[KeyOrigin.FIRST])
    ]
    signed_in_at: Annotated[int, Field(description="When they signed in last, in Unix seconds.", examples=[1790000000])]


class OperatorDeleted(Out):
    """The role of an operator was taken away."""

    object: Annotated[Literal["platform.operator.deleted"], Field(description="The type of the object.")] = "platform.operator.deleted"
    id: Annotated[str, Field(description="Id of the operator.", examples=[_OPERATOR])]
    deleted: Annotated[Literal[True], Field(description="Always true.", examples=[True])] = True


class OperatorSessionOut(Identified):
    """A session of an operator who signed in."""

    object: Annotated[Literal["platform.operator.session"], Field(description="Always `platform.operator.session`.")] = (
        "platform.operator.session"
    )
    id: Annotated[str, Field(description="Id of the session.", examples=[_SESSION])]
    operator_id: Annotated[str, Field(description="The operator.", examples=[_OPERATOR])]
    kind: Annotated[SessionKind, Field(description="The program that has it.", examples=[SessionKind.BROWSER])]
    method: Annotated[SignInMethod, Field(description="How the operator proved who they are.", examples=[SignInMethod.PROVIDER])]
    address: Annotated[str, Field(description="Network address of the sign-in.", examples=["192.0.2.1"])]
    agent: Annotated[str, Field(description="What the program said that it is.", examples=["Mozilla/5.0"])]
    created_at: Annotated[int, Field(description="When it began, in Unix seconds.", examples=[1790000000])]
    last_used_at: Annotated[int, Field(description="When it was used last, to a minute, in Unix seconds.", examples=[1790000000])]
    expires_at: Annotated[int, Field(description="When it ends without another request, in Unix seconds.", examples=[1790003600])]


class OperatorSessionDeleted(Out):
    """A session of an operator was ended."""

    object: Annotated[Literal["platform.operator.session.deleted"], Field(description="The type of the object.")] = (
        "platform.operator.session.deleted"
    )
    id: Annotated[str, Field(description="Id of the session.", examples=[_SESSION])]
    deleted: Annotated[Literal[True], Field(description="Always true.", examples=[True])] = True


@router.get("/v1/platform/operators")
def list_operators(_caller: Reader, plane: Plane, query: Annotated[PageQuery, Query()]) -> ListOut[OperatorOut]:
    """The operators who signed in with the identity provider of the platform, those without a role among them. Keys of operators are listed
    by themselves."""
    with plane.database.platform(write=False) as tx:
        page = operators.list_operators(tx, query.window())
    return list_out(page, _operator_out)


@router.delete("/v1/platform/operators/{operator_id}")
def delete_operator(_caller: Writer, plane: Plane, operator_id: str) -> OperatorDeleted:
    """Take the role from an operator who signed in, and end their sessions. Whoever is still in a group at the provider can sign in
    again."""
    with plane.database.platform() as tx:
        operators.take_role(tx, operator_id)
    return OperatorDeleted(id=operator_id)


@router.get("/v1/platform/operators/{operator_id}/sessions")
def list_operator_sessions(
    _caller: Reader, plane: Plane, operator_id: str, query: Annotated[PageQuery, Query()]
) -> ListOut[OperatorSessionOut]:
    """The sessions of an operator that have not ended, the one that was used last first. There are 20 at most, all in one page."""
    with plane.database.platform(write=False) as tx:
        found = operators.list_sessions(tx, operator_id, plane.now())
    rows = [_session_out(session) for session in found]
    return ListOut(data=rows, first_id=rows[0].id if rows else None, last_id=rows[-1].id if rows else None, has_more=False)


@router.delete("/v1/platform/operators/{operator_id}/sessions/{session_id}")
def delete_operator_session(_caller: Writer, plane: Plane, operator_id: str, session_id: str) -> OperatorSessionDeleted:
    """End a session of an operator from its next request on."""
    with plane.database.platform() as tx:
        operators.end_session(tx, operator_id, session_id)
    return OperatorSessionDeleted(id=session_id)


def _operator_out(operator: SignedInOperator) -> OperatorOut:
    return OperatorOut(
        id=operator.id,
        email=operator.email,
        name=operator.name,
        role=None if operator.role is None else ("operator" if operator.role.name == "operator" else "auditor"),
        origin=operator.origin,
        signed_in_at=seconds(operator.signed_in_at),
    )


def _session_out(session: OperatorSession) -> OperatorSessionOut:
    return OperatorSessionOut(
        id=session.id,
        operator_id=session.operator_id,
        kind=session.kind,
        method=session.method,
        address=session.address,
        agent=session.agent,
        created_at=seconds(session.created_at),
        last_used_at=seconds(session.last_used_at),
        expires_at=seconds(session.ends_at()),
    )
