"""Schemas of roles, people, groups and invitations, in the shapes of OpenAI's admin API.

OpenAI names an organization's role that only reads `reader`; that is the name of `viewer` wherever people are shown or named.
"""

import re
from collections.abc import Callable
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import AfterValidator, Field, StringConstraints

from tollway.control.api.schemas import AdminKeyCreated, Identified, In, Name, Out, ProjectIdText, RoleText, printable, seconds
from tollway.control.identity.explanations import Explanation, Reason, SubjectKind
from tollway.control.identity.people import Member
from tollway.domain.pages import Page
from tollway.domain.people import Assignment, User, UserGroup
from tollway.domain.roles import NO_ROLE, READER, VIEWER, Grant, Role, RoleScope

_USER = "user_0198c5f2a3b47c11a0b1c2d3e4f50617"
_GROUP = "group_0198c5f2a3b47c11a0b1c2d3e4f50617"
_INVITE = "invite_0198c5f2a3b47c11a0b1c2d3e4f50617"
_ROLE = "role_0198c5f2a3b47c11a0b1c2d3e4f50617"
_PROJECT = "proj_0198c5f2a3b47c11a0b1c2d3e4f50617"

S = TypeVar("S")
T = TypeVar("T", bound=Identified)


_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_ADDRESS = re.compile(rf"(?=[^@]{{1,64}}@){_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})+")
"""One address as RFC 5321 section 4.1.2 writes a mailbox, without quoted texts and literals. In a header nothing in it means a second
recipient, a comment or a group, and no two that look alike differ."""


def _email(text: str) -> str:
    if _ADDRESS.fullmatch(text) is None:
        raise ValueError("it must be one e-mail address of ASCII characters")
    return text.lower()


Email = Annotated[str, StringConstraints(min_length=3, max_length=254), AfterValidator(_email)]
PermissionNames = Annotated[list[Annotated[str, StringConstraints(max_length=64)]], Field(min_length=1, max_length=100)]
Description = Annotated[str, StringConstraints(max_length=1024), AfterValidator(lambda text: text and printable(text))]


class NextListOut(Out, Generic[T]):
    """A part of a list. `next` is the `after` of the next one; null at the end."""

    object: Literal["list"] = "list"
    data: list[T]
    has_more: bool
    next: Annotated[str | None, Field(description="The `after` of the next page; null at the end.", examples=[None])]


def next_list_out(page: Page[S], out: Callable[[S], T]) -> NextListOut[T]:
    """Return a page of what we hold as a list of what we show, with a cursor by the id of its last item."""
    data = [out(item) for item in page.items]
    return NextListOut(data=data, has_more=page.has_more, next=data[-1].id if page.has_more and data else None)


# ---- Roles --------------------------------------------------------------------------------------------------------------


class RoleCreate(In):
    """A role to create."""

    role_name: Annotated[Name, Field(description="A name for people, 1 to 256 printable characters.", examples=["key keeper"])]
    permissions: Annotated[
        PermissionNames, Field(description="Permissions, 1 to 100; docs/access.md lists them.", examples=[["api_keys.read"]])
    ]
    description: Annotated[Description | None, Field(description="What it is for, up to 1024 characters.", examples=["Reads keys."])] = None


class RoleUpdate(In):
    """Fields of a role to change; a field that is left out, or null, stays."""

    role_name: Annotated[Name | None, Field(description="A name for people, 1 to 256 printable characters.", examples=["key keeper"])] = (
        None
    )
    permissions: Annotated[PermissionNames | None, Field(description="All of its permissions, 1 to 100.", examples=[["api_keys.read"]])] = (
        None
    )
    description: Annotated[Description | None, Field(description="What it is for, up to 1024 characters.", examples=["Reads keys."])] = None


class RoleOut(Identified):
    """A role."""

    object: Literal["role"] = "role"
    id: Annotated[str, Field(description="Id of the role.", examples=["role_viewer"])]
    name: Annotated[str, Field(description="A name for people.", examples=["viewer"])]
    description: Annotated[str, Field(description="What it is for.", examples=["Reads everything in the organization."])]
    permissions: Annotated[list[str], Field(description="Its permissions.", examples=[["api_keys.read"]])]
    predefined_role: Annotated[bool, Field(description="Whether every installation has it and nobody can change it.", examples=[True])]
    resource_type: Annotated[
        Literal["api.organization", "api.project", "api.platform"],
        Field(description="Where it can be held.", examples=["api.organization"]),
    ]


_RESOURCE_TYPES: dict[RoleScope, Literal["api.organization", "api.project", "api.platform"]] = {
    RoleScope.ORGANIZATION: "api.organization",
    RoleScope.PROJECT: "api.project",
    RoleScope.PLATFORM: "api.platform",
}


def role_out(role: Role) -> RoleOut:
    return RoleOut(
        id=role.id,
        name=role.name,
        description=role.description,
        permissions=sorted(role.permissions),
        predefined_role=role.is_built_in,
        resource_type=_RESOURCE_TYPES[role.scope],
    )


class RoleDeleted(Out):
    """A role was deleted."""

    object: Literal["role.deleted"] = "role.deleted"
    id: Annotated[str, Field(description="Id of the role.", examples=[_ROLE])]
    deleted: Annotated[Literal[True], Field(description="Always true.", examples=[True])] = True


# ---- People -------------------------------------------------------------------------------------------------------------

ScimManaged = Annotated[bool, Field(description="Whether the directory of the organization manages it by SCIM.", examples=[False])]


def role_name(name: str) -> str:
    """Return our name of a role in the organization that a body names for a person."""
    return VIEWER.name if name == READER else name


def shown_role(role: Role | None) -> str:
    """Return the name of a role in the organization as people are shown with it."""
    if role is None:
        return NO_ROLE
    return READER if role == VIEWER else role.name


class UserUpdate(In):
    """`role` or `role_id`: another role in the organization. The others are stored nowhere and must be null."""

    role: Annotated[RoleText | None, Field(description="Name of a role.", examples=[READER])] = None
    role_id: Annotated[RoleText | None, Field(description="Id of a role.", examples=[_ROLE])] = None
    developer_persona: Annotated[None, Field(description="Not supported: null.", examples=[None])] = None
    technical_level: Annotated[None, Field(description="Not supported: null.", examples=[None])] = None


class UserOut(Identified):
    """A person in the organization."""

    object: Literal["organization.user"] = "organization.user"
    id: Annotated[str, Field(description="Id of the person.", examples=[_USER])]
    email: Annotated[str, Field(description="Address, in lower case.", examples=["ada@example.com"])]
    name: Annotated[str, Field(description="Name of the person.", examples=["Ada"])]
    role: Annotated[str, Field(description="Name of the role by which they belong to it.", examples=[READER])]
    added_at: Annotated[int, Field(description="When they were added, in Unix seconds.", examples=[1790000000])]
    is_scim_managed: ScimManaged = False
    is_service_account: Annotated[Literal[False], Field(description="Always false.", examples=[False])] = False


def user_out(member: Member) -> UserOut:
    user = member.user
    return UserOut(
        id=user.id,
        email=user.email,
        name=user.name,
        role=shown_role(member.role),
        added_at=seconds(member.added_at),
        is_scim_managed=user.is_scim_managed,
    )


class UserDeleted(Out):
    """A person was removed."""

    object: Annotated[str, Field(description="The type of the object.", examples=["organization.user.deleted"])]
    id: Annotated[str, Field(description="Id of the person.", examples=[_USER])]
    deleted: Annotated[Literal[True], Field(description="Always true.", examples=[True])] = True


class ProjectUserCreate(In):
    """A person of the organization to add to a project, by id or by address."""

    role: Annotated[RoleText, Field(description="Name or id of a role of the project.", examples=["member"])]
    user_id: Annotated[ProjectIdText | None, Field(description="The person.", examples=[_USER])] = None
    email: Annotated[Email | None, Field(description="Address of the person.", examples=["ada@example.com"])] = None


class ProjectUserUpdate(In):
    """Another role in a project."""

    role: Annotated[RoleText, Field(description="Name or id of a role of the project.", examples=["member"])]


class ProjectUserOut(Identified):
    """A person in a project."""

    object: Literal["organization.project.user"] = "organization.project.user"
    id: Annotated[str, Field(description="Id of the person.", examples=[_USER])]
    email: Annotated[str, Field(description="Address, in lower case.", examples=["ada@example.com"])]
    name: Annotated[str, Field(description="Name of the person.", examples=["Ada"])]
    role: Annotated[str, Field(description="Name of the role by which they belong to the project.", examples=["member"])]
    added_at: Annotated[int, Field(description="When they were added to it, in Unix seconds.", examples=[1790000000])]


def project_user_out(member: Member) -> ProjectUserOut:
    user, role = member.user, member.role
    name = NO_ROLE if role is None else role.name
    return ProjectUserOut(id=user.id, email=user.email, name=user.name, role=name, added_at=seconds(member.added_at))


# ---- Invitations --------------------------------------------------------------------------------------------------------


class InviteProject(In):
    """A project that is promised, with a role there."""

    id: Annotated[ProjectIdText, Field(description="The project.", examples=[_PROJECT])]
    role: Annotated[RoleText, Field(description="Name or id of a role of the project.", examples=["member"])]


class InviteCreate(In):
    """A person to invite."""

    email: Annotated[Email, Field(description="Address of the person.", examples=["ada@example.com"])]
    role: Annotated[RoleText, Field(description="Name or id of a role of the organization.", examples=[READER])]
    projects: Annotated[list[InviteProject] | None, Field(max_length=100, description="Projects to join, at most 100.", examples=[[]])] = (
        None
    )


class InviteProjectOut(Out):
    """A project that is promised."""

    id: Annotated[str, Field(description="The project.", examples=[_PROJECT])]
    role: Annotated[str, Field(description="Name of the role there.", examples=["member"])]


class InviteOut(Identified):
    """An invitation."""

    object: Literal["organization.invite"] = "organization.invite"
    id: Annotated[str, Field(description="Id of the invitation.", examples=[_INVITE])]
    email: Annotated[str, Field(description="Address, in lower case.", examples=["ada@example.com"])]
    role: Annotated[str, Field(description="Name of the role that is promised.", examples=[READER])]
    status: Annotated[Literal["pending", "accepted", "expired"], Field(description="Its state.", examples=["pending"])]
    projects: Annotated[list[InviteProjectOut], Field(description="Projects that are promised.", examples=[[]])]
    created_at: int
    expires_at: Annotated[int, Field(description="When it can no longer be accepted, in Unix seconds.", examples=[1790604800])]
    accepted_at: Annotated[
        int | None, Field(description="When it was accepted, in Unix seconds; null if it was not.", examples=[1790000000])
    ]


class InviteCreated(InviteOut):
    """An invitation whose mail was handed over, or was not."""

    mail_sent: Annotated[bool, Field(description="Whether the mail server took the message.", examples=[True])]


class InviteDeleted(Out):
    """An invitation was deleted."""

    object: Literal["organization.invite.deleted"] = "organization.invite.deleted"
    id: Annotated[str, Field(description="Id of the invitation.", examples=[_INVITE])]
    deleted: Annotated[Literal[True], Field(description="Always true.", examples=[True])] = True


class InviteAccept(In):
    """Acceptance of the invitation whose token is presented."""

    name: Name


class InviteAccepted(Out):
    """A person who joined, with a key of their own."""

    object: Literal["organization.invite.accepted"] = "organization.invite.accepted"
    organization_id: str
    user: Annotated[UserOut, Field(description="The person.")]
    admin_api_key: Annotated[AdminKeyCreated, Field(description="A key that has the roles of the person, shown this once.")]


# ---- Groups -------------------------------------------------------------------------------------------------------------


class GroupWrite(In):
    """To create a group, or to rename it."""

    name: Name


class GroupOut(Identified):
    """A group of people."""

    object: Literal["group"] = "group"
    id: Annotated[str, Field(description="Id of the group.", examples=[_GROUP])]
    name: str
    created_at: int
    group_type: Annotated[Literal["group"], Field(description="Always `group`.", examples=["group"])] = "group"
    is_scim_managed: ScimManaged = False


def group_out(group: UserGroup) -> GroupOut:
    return GroupOut(id=group.id, name=group.name, created_at=seconds(group.created_at), is_scim_managed=group.is_scim_managed)


class GroupDeleted(Out):
    """A group was deleted."""

    object: Literal["group.deleted"] = "group.deleted"
    id: Annotated[str, Field(description="Id of the group.", examples=[_GROUP])]
    deleted: Annotated[Literal[True], Field(description="Always true.", examples=[True])] = True


class GroupUserCreate(In):
    """A person to add to a group."""

    user_id: Annotated[ProjectIdText, Field(description="The person.", examples=[_USER])]


class GroupUserCreated(Out):
    """A person was added to a group."""

    object: Literal["group.user"] = "group.user"
    group_id: Annotated[str, Field(description="The group.", examples=[_GROUP])]
    user_id: Annotated[str, Field(description="The person.", examples=[_USER])]


class GroupUserOut(Identified):
    """A person in a group."""

    object: Literal["group.user"] = "group.user"
    id: Annotated[str, Field(description="Id of the person.", examples=[_USER])]
    email: Annotated[str, Field(description="Address, in lower case.", examples=["ada@example.com"])]
    name: Annotated[str, Field(description="Name of the person.", examples=["Ada"])]
    user_type: Annotated[Literal["user"], Field(description="Always `user`.", examples=["user"])] = "user"
    is_service_account: Annotated[Literal[False], Field(description="Always false.", examples=[False])] = False


def group_user_out(user: User) -> GroupUserOut:
    return GroupUserOut(id=user.id, email=user.email, name=user.name)


class Unassigned(Out):
    """Something that somebody had was taken away."""

    object: Annotated[str, Field(description="The type of the object.", examples=["user.role.deleted"])]
    deleted: Annotated[Literal[True], Field(description="Always true.", examples=[True])] = True


class ProjectGroupCreate(In):
    """A group to add to a project."""

    group_id: Annotated[ProjectIdText, Field(description="The group.", examples=[_GROUP])]
    role: Annotated[RoleText, Field(description="Name or id of a role of the project.", examples=["member"])]


class ProjectGroupOut(Identified):
    """A group in a project."""

    object: Literal["project.group"] = "project.group"
    id: Annotated[str, Field(description="Id of the group.", examples=[_GROUP])]
    group_id: Annotated[str, Field(description="Id of the group.", examples=[_GROUP])]
    group_name: Annotated[str, Field(description="Name of the group.", examples=["engineering"])]
    group_type: Annotated[Literal["group"], Field(description="Always `group`.", examples=["group"])] = "group"
    project_id: Annotated[str, Field(description="The project.", examples=[_PROJECT])]
    created_at: Annotated[int, Field(description="When the group was added to it, in Unix seconds.", examples=[1790000000])]


def project_group_out(group: UserGroup, membership: Assignment) -> ProjectGroupOut:
    return ProjectGroupOut(
        id=group.id,
        group_id=group.id,
        group_name=group.name,
        project_id=membership.project_id or "",
        created_at=seconds(membership.assigned_at),
    )


# ---- Assignments --------------------------------------------------------------------------------------------------------


class AssignmentCreate(In):
    """A role to give."""

    role_id: Annotated[RoleText, Field(description="Id of the role.", examples=["role_viewer"])]


class UserRoleOut(Out):
    """A person has a role."""

    object: Literal["user.role"] = "user.role"
    role: Annotated[RoleOut, Field(description="The role.")]
    user: Annotated[UserOut, Field(description="The person.")]


class GroupSummary(Out):
    """A group, as an assignment shows it."""

    object: Literal["group"] = "group"
    id: Annotated[str, Field(description="Id of the group.", examples=[_GROUP])]
    name: str
    created_at: int
    scim_managed: ScimManaged = False


class GroupRoleOut(Out):
    """A group has a role."""

    object: Literal["group.role"] = "group.role"
    role: Annotated[RoleOut, Field(description="The role.")]
    group: Annotated[GroupSummary, Field(description="The group.")]


def group_summary(group: UserGroup) -> GroupSummary:
    return GroupSummary(id=group.id, name=group.name, created_at=seconds(group.created_at), scim_managed=group.is_scim_managed)


# ---- Explanations -------------------------------------------------------------------------------------------------------


class GrantOut(Out):
    """A role that somebody holds."""

    role_id: Annotated[str, Field(description="Id of the role.", examples=["role_viewer"])]
    role: Annotated[str, Field(description="Name of the role.", examples=["viewer"])]
    project_id: Annotated[str | None, Field(description="Where it is held; null for everywhere.", examples=[_PROJECT])]
    holder_id: Annotated[str | None, Field(description="The user or group that holds it; null for the key itself.", examples=[_GROUP])]


class ExplanationOut(Out):
    """A decision about a permission or an operation, and the rule that makes it."""

    object: Literal["access.explanation"] = "access.explanation"
    subject_id: Annotated[str, Field(description="The key, the user or the service account that it is about.", examples=[_USER])]
    subject_kind: Annotated[
        SubjectKind, Field(description="What the subject is: keys of projects and service accounts hold no roles.", examples=["user"])
    ]
    operation: Annotated[
        str | None, Field(description="The operation that was asked about; null for a permission.", examples=["create_project_key"])
    ]
    permission: Annotated[
        str | None,
        Field(description="The permission; null for an operation that asks for none.", examples=["api_keys.write"]),
    ]
    project_id: Annotated[str | None, Field(description="The project; null for the organization.", examples=[_PROJECT])]
    allowed: Annotated[bool, Field(description="Whether it is allowed.", examples=[True])]
    reason: Annotated[
        Reason,
        Field(
            description="What decides: a `role`, membership alone (`any_member`), or nothing is asked (`public`); denied because"
            " the operation is for other keys (`key_kind`), the role is held in another place (`role_elsewhere`), no role is held in the"
            " project, which is answered as one that does not exist (`project_unseen`), or no role has the permission (`no_role`).",
            examples=["role"],
        ),
    ]
    rule: Annotated[GrantOut | None, Field(description="The role that allows it; null if none does.")]
    considered: Annotated[list[GrantOut], Field(description="Every role that the subject holds.")]


def _grant_out(grant: Grant) -> GrantOut:
    return GrantOut(role_id=grant.role.id, role=grant.role.name, project_id=grant.project_id, holder_id=grant.holder_id)


def explanation_out(explanation: Explanation) -> ExplanationOut:
    return ExplanationOut(
        subject_id=explanation.subject.id,
        subject_kind=explanation.subject.kind,
        operation=None if explanation.rule is None else explanation.rule.operation,
        permission=explanation.permission,
        project_id=explanation.project_id,
        allowed=explanation.is_allowed,
        reason=explanation.reason,
        rule=None if explanation.grant is None else _grant_out(explanation.grant),
        considered=[_grant_out(grant) for grant in explanation.considered],
    )
