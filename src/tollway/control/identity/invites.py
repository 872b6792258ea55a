"""Invitations: how people join an organization.

An invitation promises a role, and a role in some projects. Its secret goes by mail to the person alone; what is stored is its digest.
Whoever presents it becomes a person of the organization with what was promised, and gets a key of their own: once, and before it expires.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tollway.control import publish
from tollway.control.bounds import quotas
from tollway.control.identity import keys, people, roles
from tollway.control.identity.keys import Ingredients, ShownKey, WantedKey
from tollway.control.identity.mail import Message
from tollway.control.identity.people import Member
from tollway.domain import ids
from tollway.domain import keys as domain_keys
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.keys import KeyType
from tollway.domain.pages import Page, PageWindow
from tollway.domain.people import Invite, InviteState
from tollway.domain.quotas import Quota, QuotaSizes
from tollway.domain.roles import Grant, Role
from tollway.storage import people as storage
from tollway.storage import roles as stored_roles
from tollway.storage.database import TenantTx

LIFETIME_SECONDS = 7 * 86_400
"""Time in which an invitation can be accepted, as with OpenAI."""

PROJECTS_MAX = 100


@dataclass(frozen=True, slots=True)
class SentInvite:
    """An invitation with the role that it promises, and the message that is to be sent, which holds its secret."""

    invite: Invite
    message: Message


def create_invite(
    tx: TenantTx,
    *,
    id: str,
    email: str,
    role_id: str,
    project_roles: Mapping[str, str],
    own: Sequence[Grant],
    invited_by: str,
    ingredients: Ingredients,
    sizes: QuotaSizes,
    page_url: str | None,
    now: int,
) -> SentInvite:
    """Create an invitation for the address `email` (lower case). `page_url`: the page on which it can be accepted, if its address is known.
    Raises STATE_CONFLICT (a person has the address, a project is archived),
    PARAMETER_INVALID (a role), RESOURCE_UNKNOWN (a project), GRANT_EXCEEDS_GRANTOR, QUOTA_EXCEEDED."""
    publish.lock(tx)  # takes turns with other creations
    if storage.find_user_by_email(tx, email) is not None:
        raise Fault(STATE_CONFLICT, param="email", message="A person with this address is in the organization already.")
    role = roles.require_role(tx, role_id, None)
    promised = [Grant(role)]
    by_project = {}
    for project_id, name in project_roles.items():
        roles.require_place(tx, project_id)
        project_role = roles.require_role(tx, name, project_id)
        promised.append(Grant(project_role, project_id))
        by_project[project_id] = project_role.id
    roles.require_covered(own, promised)
    quotas.require_creation(tx, sizes, Quota.INVITES, now)
    invite = Invite(
        id=id,
        email=email,
        role_id=role.id,
        created_at=now,
        expires_at=now + LIFETIME_SECONDS * 1_000_000,
        project_roles=by_project,
    )
    made = domain_keys.new_invite_token(ingredients.random_bytes)
    storage.insert_invite(tx, invite, ingredients.pepper.digest(made.secret), invited_by)
    return SentInvite(invite, _compose(email, made.secret, page_url))


class PromisedRoles(NamedTuple):
    """The roles that an invitation promises; None for one that was removed since."""

    organization: Role | None
    by_project: Mapping[str, Role | None]


def find_promised_roles(tx: TenantTx, invites: Iterable[Invite]) -> dict[str, PromisedRoles]:
    """Return the roles that invitations promise, as they are now, by the id of the invitation."""
    listed = list(invites)
    made = stored_roles.find_roles(tx, {role for each in listed for role in (each.role_id, *each.project_roles.values())})
    return {
        each.id: PromisedRoles(
            roles.choose_role(made, each.role_id, None),
            {project: roles.choose_role(made, role, project) for project, role in each.project_roles.items()},
        )
        for each in listed
    }


def get_invite(tx: TenantTx, invite_id: str) -> Invite:
    """Return an invitation. Raises RESOURCE_UNKNOWN."""
    invite = storage.find_invite(tx, invite_id) if ids.is_id(ids.INVITE, invite_id) else None
    if invite is None:
        raise Fault(RESOURCE_UNKNOWN)
    return invite


def list_invites(tx: TenantTx, window: PageWindow) -> Page[Invite]:
    """Return the invitations of the organization, accepted and expired ones too."""
    return storage.list_invites(tx, window)


def delete_invite(tx: TenantTx, invite_id: str, now: int) -> None:
    """Delete an invitation that was not accepted. Raises RESOURCE_UNKNOWN, STATE_CONFLICT."""
    publish.lock(tx)
    if get_invite(tx, invite_id).state(now) is InviteState.ACCEPTED:
        raise Fault(STATE_CONFLICT, message="The invitation was accepted. Remove the person instead.")
    storage.delete_invite(tx, invite_id, now)


@dataclass(frozen=True, slots=True)
class Joined:
    """A person who accepted an invitation, and their key at the one moment when its secret is known."""

    member: Member
    key: ShownKey


def accept_invite(
    tx: TenantTx, invite_id: str, *, name: str, user_id: str, key_id: str, ingredients: Ingredients, sizes: QuotaSizes, now: int
) -> Joined:
    """Add the invited person as `add_invited` does, and make a key that has their roles."""
    member = add_invited(tx, invite_id, name=name, user_id=user_id, sizes=sizes, now=now)
    wanted = WantedKey(type=KeyType.ADMIN, name=f"First key of {member.user.email}", user_id=user_id)
    key = keys.create_admin_key(tx, wanted, id=key_id, ingredients=ingredients, sizes=sizes, now=now)
    return Joined(member, key)


def add_invited(tx: TenantTx, invite_id: str, *, name: str, user_id: str, sizes: QuotaSizes, now: int) -> Member:
    """Add the invited person with what was promised. A role or a project that is gone meanwhile is left out. Raises RESOURCE_UNKNOWN if the
    invitation cannot be accepted any more, or whoever sent it may not act any more; GRANT_EXCEEDS_GRANTOR if they could not promise as much
    now; STATE_CONFLICT, QUOTA_EXCEEDED."""
    publish.lock(tx)
    invite = storage.find_invite(tx, invite_id)
    if invite is None or not storage.accept_invite(tx, invite_id, user_id, now):
        raise Fault(RESOURCE_UNKNOWN)
    role = _require_promised(tx, invite)
    with tx.as_platform() as platform:  # the key can be an operator's
        own = storage.find_inviter_grants(platform, invite_id, now)
    if own is None:
        raise Fault(RESOURCE_UNKNOWN)
    in_projects = {project_id: roles.find_role(tx, name, project_id) for project_id, name in invite.project_roles.items()}
    given = [Grant(each, project_id) for project_id, each in in_projects.items() if each is not None]
    roles.require_covered(own, [Grant(role), *given])
    member = people.add_user(tx, id=user_id, email=invite.email, name=name, role=role, own=[Grant(role)], sizes=sizes, now=now)
    for project_id, project_role in in_projects.items():
        if project_role is not None and roles.is_active_project(tx, project_id):
            people.add_project_member(tx, project_id, user_id, project_role.id, own=[Grant(project_role, project_id)], now=now)
    return member


def _require_promised(tx: TenantTx, invite: Invite) -> Role:
    role = roles.find_role(tx, invite.role_id, None)
    if role is None:
        raise Fault(PARAMETER_INVALID, message="The role that the invitation promises does not exist any more.")
    return role


def _compose(email: str, secret: str, page_url: str | None) -> Message:
    page = ""
    if page_url is not None:
        page = f"To join with a password, open this page:\n\n    {page_url}?token={secret}\n\n"
    text = (
        f"You were invited to an organization of Tollway.\n\n{page}"
        "To join with a key, run this where the command `tollway` is installed, with the address of your control plane:\n\n"
        '    tollway invites accept "Your Name"\n\n'
        f"It asks for this token: {secret}\n\n"
        "The invitation can be accepted once, within seven days. The command prints a key that is yours alone.\n"
        "If you do not expect this message, ignore it.\n"
    )
    return Message(email, "Invitation to an organization of Tollway", text)
