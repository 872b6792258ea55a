"""Invitations, in the shape of OpenAI's `/v1/organization/invites`, and how they are accepted."""

from typing import Annotated, Any

from fastapi import Depends, Query

from tollway.control.api import routes
from tollway.control.api.identity.people_schemas import (
    InviteAccept,
    InviteAccepted,
    InviteCreate,
    InviteCreated,
    InviteDeleted,
    InviteOut,
    InviteProjectOut,
    role_name,
    shown_role,
    user_out,
)
from tollway.control.api.routes import Invitee, Plane, may
from tollway.control.api.schemas import ListOut, PageQuery, admin_key_created, find_seconds, list_out, seconds
from tollway.control.identity import invites
from tollway.control.identity.access import Tenant
from tollway.control.identity.invites import PromisedRoles
from tollway.control.identity.mail import MailFailure
from tollway.domain import ids
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.people import Invite
from tollway.domain.roles import NO_ROLE, Permission

router = routes.router(tags=["invites"])

JOIN_PATH = "/join"
"""Path of the page on which an invitation is accepted (`sign_in_pages`)."""

Reader = Annotated[Tenant, Depends(may(Permission.USERS_READ))]
Writer = Annotated[Tenant, Depends(may(Permission.USERS_WRITE))]


@router.get("/v1/organization/invites")
def list_invites(caller: Reader, plane: Plane, query: Annotated[PageQuery, Query()]) -> ListOut[InviteOut]:
    """The invitations of the organization, accepted and expired ones too."""
    now = plane.now()
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        found = invites.list_invites(tx, query.window())
        promised = invites.find_promised_roles(tx, found.items)
    return list_out(found, lambda invite: InviteOut(**_fields(invite, promised[invite.id], now)))


@router.post("/v1/organization/invites")
def create_invite(caller: Writer, plane: Plane, body: InviteCreate) -> InviteCreated:
    """Invite a person by mail. The token is in the message and nowhere else."""
    projects = body.projects or []
    project_roles = {each.id: each.role for each in projects}
    if len(project_roles) < len(projects):
        raise Fault(PARAMETER_INVALID, param="projects", message="Each project can be named once.")
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        sent = invites.create_invite(
            tx,
            id=plane.new_id(ids.INVITE),
            email=body.email,
            role_id=role_name(body.role),
            project_roles=project_roles,
            own=caller.grants,
            invited_by=caller.key_id,
            ingredients=plane.new_ingredients(),
            sizes=plane.quotas,
            page_url=None if plane.page_origin is None else f"{plane.page_origin}{JOIN_PATH}",
            now=now,
        )
        fields = _fields(sent.invite, invites.find_promised_roles(tx, [sent.invite])[sent.invite.id], now)
    mail_sent = True
    try:
        plane.mail.send(sent.message)
    except MailFailure as failure:
        plane.log({"event": "mail_failed", "invite_id": sent.invite.id, "detail": str(failure)})
        mail_sent = False
    return InviteCreated(**fields, mail_sent=mail_sent)


@router.get("/v1/organization/invites/{invite_id}")
def retrieve_invite(caller: Reader, plane: Plane, invite_id: str) -> InviteOut:
    """One invitation."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        invite = invites.get_invite(tx, invite_id)
        return InviteOut(**_fields(invite, invites.find_promised_roles(tx, [invite])[invite.id], plane.now()))


@router.delete("/v1/organization/invites/{invite_id}")
def delete_invite(caller: Writer, plane: Plane, invite_id: str) -> InviteDeleted:
    """Delete an invitation that was not accepted."""
    with plane.database.tenant(caller.organization_id) as tx:
        invites.delete_invite(tx, invite_id, plane.now())
    return InviteDeleted(id=invite_id)


@router.post("/v1/invites/accept")
def accept_invite(caller: Invitee, plane: Plane, body: InviteAccept) -> InviteAccepted:
    """Accept the invitation whose token is presented as the key, once. The secret of the new key is in this answer and nowhere else."""
    now = plane.now()
    with plane.database.tenant(caller.invited_to) as tx:
        joined = invites.accept_invite(
            tx,
            caller.key_id,
            name=body.name,
            user_id=plane.new_id(ids.USER),
            key_id=plane.new_id(ids.KEY),
            ingredients=plane.new_ingredients(),
            sizes=plane.quotas,
            now=now,
        )
    return InviteAccepted(organization_id=caller.invited_to, user=user_out(joined.member), admin_api_key=admin_key_created(joined.key, now))


def _fields(invite: Invite, promised: PromisedRoles, now: int) -> dict[str, Any]:
    return {
        "id": invite.id,
        "email": invite.email,
        "role": shown_role(promised.organization),
        "status": invite.state(now).value,
        "projects": [InviteProjectOut(id=project, role=role.name if role else NO_ROLE) for project, role in promised.by_project.items()],
        "created_at": seconds(invite.created_at),
        "expires_at": seconds(invite.expires_at),
        "accepted_at": find_seconds(invite.accepted_at),
    }
