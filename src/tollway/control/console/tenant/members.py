"""People of an organization, their invitations, groups and roles."""

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.identity import groups, invites, roles, users
from tollway.control.api.identity.people_schemas import GroupUserCreate, GroupWrite, InviteCreate, RoleOut, UserUpdate
from tollway.control.api.identity.users import UserQuery
from tollway.control.api.schemas import PageQuery
from tollway.control.console.forms import Form, form, make_body, require_typed
from tollway.control.console.routing import Page, TenantPage
from tollway.control.console.routing import router as new_router
from tollway.domain.faults import Fault

router = new_router()

ROOT = "/console/organizations/{organization_id}"
MEMBERS, MEMBER = ROOT + "/members", ROOT + "/members/{user_id}"
INVITES = ROOT + "/invites"
GROUPS, GROUP = ROOT + "/groups", ROOT + "/groups/{group_id}"

Listing = Annotated[PageQuery, Query()]

HUNDRED = PageQuery(limit=100)


# ---- People -------------------------------------------------------------------------------------------------------------


@router.get(MEMBERS, include_in_schema=False)
def show_members(page: TenantPage, query: Listing) -> Response:
    """People, and whoever was invited."""
    return _show_members(page, query)


def _show_members(page: Page, query: PageQuery, fault: Fault | None = None) -> Response:
    return page.show(
        "tenant/members.html",
        fault=fault,
        users=page.call(users.list_users, query=UserQuery(after=query.after, limit=query.limit, emails=[])),
        invites=[
            each for each in page.call(invites.list_invites, query=PageQuery(limit=100, order="desc")).data if each.accepted_at is None
        ],
        roles=list_organization_roles(page),
        may_write=page.allows(invites.create_invite),
    )


def list_organization_roles(page: Page) -> list[RoleOut]:
    """Return the roles that can be held in the organization; none to whoever may not see them."""
    if not page.allows(roles.list_roles):
        return []
    return [each for each in page.call(roles.list_roles, query=HUNDRED).data if each.resource_type == "api.organization"]


@router.post(INVITES, include_in_schema=False)
def invite(page: TenantPage, fields: Annotated[Form, form(invites.create_invite, "email", "role")]) -> Response:
    """Invite a person by mail."""
    try:
        made = page.call(invites.create_invite, body=make_body(InviteCreate, fields))
    except Fault as fault:
        return _show_members(page, PageQuery(), fault)
    return page.lead("/members", "invited" if made.mail_sent else "invited_without_mail")


@router.post(INVITES + "/{invite_id}/delete", include_in_schema=False)
def withdraw_invite(page: TenantPage, invite_id: str, _fields: Annotated[Form, form(invites.delete_invite)]) -> Response:
    """Withdraw an invitation."""
    try:
        page.call(invites.delete_invite, invite_id=invite_id)
    except Fault as fault:
        return _show_members(page, PageQuery(), fault)
    return page.lead("/members", "deleted")


@router.get(MEMBER, include_in_schema=False)
def show_member(page: TenantPage, user_id: str) -> Response:
    """One person."""
    return _show_member(page, user_id)


def _show_member(page: Page, user_id: str, fault: Fault | None = None) -> Response:
    return page.show(
        "tenant/member.html",
        fault=fault,
        user=page.call(users.retrieve_user, user_id=user_id),
        roles=list_organization_roles(page),
        may_write=page.allows(users.update_user),
    )


@router.post(MEMBER + "/role", include_in_schema=False)
def change_role(page: TenantPage, user_id: str, fields: Annotated[Form, form(users.update_user, "role_id")]) -> Response:
    """Give a person another role."""
    try:
        page.call(users.update_user, user_id=user_id, body=make_body(UserUpdate, fields))
    except Fault as fault:
        return _show_member(page, user_id, fault)
    return page.lead(f"/members/{user_id}", "saved")


@router.post(MEMBER + "/remove", include_in_schema=False)
def remove_member(page: TenantPage, user_id: str, fields: Annotated[Form, form(users.delete_user, "confirmation")]) -> Response:
    """Remove a person, whose address was typed."""
    try:
        require_typed(fields["confirmation"], page.call(users.retrieve_user, user_id=user_id).email)
        page.call(users.delete_user, user_id=user_id)
    except Fault as fault:
        return _show_member(page, user_id, fault)
    return page.lead("/members", "deleted")


# ---- Groups -------------------------------------------------------------------------------------------------------------


@router.get(GROUPS, include_in_schema=False)
def show_groups(page: TenantPage, query: Listing) -> Response:
    """Groups of people."""
    return _show_groups(page, query)


def _show_groups(page: Page, query: PageQuery, fault: Fault | None = None) -> Response:
    found = page.call(groups.list_groups, query=query)
    return page.show("tenant/groups.html", fault=fault, groups=found, may_write=page.allows(groups.create_group))


@router.post(GROUPS, include_in_schema=False)
def add_group(page: TenantPage, fields: Annotated[Form, form(groups.create_group, "name")]) -> Response:
    """Create a group."""
    try:
        made = page.call(groups.create_group, body=make_body(GroupWrite, fields))
    except Fault as fault:
        return _show_groups(page, PageQuery(), fault)
    return page.lead(f"/groups/{made.id}", "created")


@router.get(GROUP, include_in_schema=False)
def show_group(page: TenantPage, group_id: str, query: Listing) -> Response:
    """One group and its people."""
    return _show_group(page, group_id, query)


def _show_group(page: Page, group_id: str, query: PageQuery, fault: Fault | None = None) -> Response:
    return page.show(
        "tenant/group.html",
        fault=fault,
        group=page.call(groups.retrieve_group, group_id=group_id),
        members=page.call(groups.list_group_users, group_id=group_id, query=query),
        people=page.call(users.list_users, query=UserQuery(limit=100, emails=[])).data if page.allows(users.list_users) else [],
        may_write=page.allows(groups.create_group_user),
    )


@router.post(GROUP + "/users", include_in_schema=False)
def add_to_group(page: TenantPage, group_id: str, fields: Annotated[Form, form(groups.create_group_user, "user_id")]) -> Response:
    """Add a person to a group."""
    try:
        page.call(groups.create_group_user, group_id=group_id, body=make_body(GroupUserCreate, fields))
    except Fault as fault:
        return _show_group(page, group_id, PageQuery(), fault)
    return page.lead(f"/groups/{group_id}", "saved")


@router.post(GROUP + "/users/{user_id}/remove", include_in_schema=False)
def take_from_group(page: TenantPage, group_id: str, user_id: str, _fields: Annotated[Form, form(groups.delete_group_user)]) -> Response:
    """Take a person out of a group."""
    try:
        page.call(groups.delete_group_user, group_id=group_id, user_id=user_id)
    except Fault as fault:
        return _show_group(page, group_id, PageQuery(), fault)
    return page.lead(f"/groups/{group_id}", "saved")


@router.post(GROUP + "/delete", include_in_schema=False)
def delete_group_by_name(page: TenantPage, group_id: str, fields: Annotated[Form, form(groups.delete_group, "confirmation")]) -> Response:
    """Delete a group, whose name was typed."""
    try:
        require_typed(fields["confirmation"], page.call(groups.retrieve_group, group_id=group_id).name)
        page.call(groups.delete_group, group_id=group_id)
    except Fault as fault:
        return _show_group(page, group_id, PageQuery(), fault)
    return page.lead("/groups", "deleted")


# ---- Roles --------------------------------------------------------------------------------------------------------------


@router.get(ROOT + "/roles", include_in_schema=False)
def show_roles(page: TenantPage) -> Response:
    """Roles, and what each allows."""
    return page.show("tenant/roles.html", roles=page.call(roles.list_roles, query=HUNDRED))
