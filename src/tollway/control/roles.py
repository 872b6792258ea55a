"""Roles as operations give them away."""

from collections.abc import Sequence

from tollway.domain import roles as domain
from tollway.domain.faults import PARAMETER_INVALID, PARAMETER_MISSING, Fault
from tollway.domain.roles import OWNER, Grant, Role, RoleScope


def choose_grant(role: str | None, project_id: str | None, own: Sequence[Grant]) -> Grant:
    """Return the grant of a new admin key from the name or id of a role, in the project `project_id` or (None) in the organization.

    Without a role it is that of the key which makes it, `own`; for an operator it is `owner`. Raises PARAMETER_INVALID for a role that
    does not exist there, PARAMETER_MISSING for a project without a role."""
    if role is not None:
        return Grant(_get_role(role, RoleScope.ORGANIZATION if project_id is None else RoleScope.PROJECT), project_id)
    if project_id is not None:
        raise Fault(PARAMETER_MISSING, param="role", message="A key of one project needs a role there.")
    if len(own) == 1 and own[0].role.scope is not RoleScope.PLATFORM:
        return own[0]
    return Grant(OWNER)


def _get_role(name: str, scope: RoleScope) -> Role:
    role = domain.find_named(scope, name) or domain.find_built_in(name)
    if role is None or role.scope is not scope:
        raise Fault(PARAMETER_INVALID, param="role", message=f"There is no such role of the scope {scope}.")
    return role
