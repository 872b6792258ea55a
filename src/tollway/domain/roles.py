"""Roles: named sets of permissions, and the decision whether a caller may do something.

Default deny: nothing is allowed that no grant allows. A grant is a role in an organization or in one of its projects. Whoever gives a
role away must hold every permission in it, in the same place (`find_excess`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Permission(StrEnum):
    """The right to call the operations that name it: `resource.action`. Those of the platform begin with `platform.`."""

    ORGANIZATION_READ = "organization.read"
    ORGANIZATION_WRITE = "organization.write"
    PROJECTS_READ = "projects.read"
    PROJECTS_CREATE = "projects.create"
    PROJECTS_WRITE = "projects.write"
    API_KEYS_READ = "api_keys.read"
    API_KEYS_WRITE = "api_keys.write"
    SERVICE_ACCOUNTS_READ = "service_accounts.read"
    SERVICE_ACCOUNTS_WRITE = "service_accounts.write"
    ADMIN_KEYS_READ = "admin_keys.read"
    ADMIN_KEYS_WRITE = "admin_keys.write"
    LIMITS_READ = "limits.read"
    LIMITS_WRITE = "limits.write"
    BUDGETS_READ = "budgets.read"
    BUDGETS_WRITE = "budgets.write"
    USAGE_READ = "usage.read"
    COSTS_READ = "costs.read"
    INVOICES_READ = "invoices.read"
    ROLES_READ = "roles.read"
    ROLES_WRITE = "roles.write"
    USERS_READ = "users.read"
    USERS_WRITE = "users.write"
    GROUPS_READ = "groups.read"
    GROUPS_WRITE = "groups.write"
    FEDERATION_READ = "federation.read"
    FEDERATION_WRITE = "federation.write"
    SCIM_WRITE = "scim.write"
    PRICES_READ = "prices.read"
    AUDIT_READ = "audit.read"
    WEBHOOKS_READ = "webhooks.read"
    WEBHOOKS_WRITE = "webhooks.write"
    TELEMETRY_READ = "telemetry.read"
    TELEMETRY_WRITE = "telemetry.write"
    CONTENT_READ = "content.read"
    DATA_EXPORT = "data.export"

    PLATFORM_ORGANIZATIONS_READ = "platform.organizations.read"
    PLATFORM_ORGANIZATIONS_WRITE = "platform.organizations.write"
    PLATFORM_CATALOG_READ = "platform.catalog.read"
    PLATFORM_CATALOG_WRITE = "platform.catalog.write"
    PLATFORM_PRICES_READ = "platform.prices.read"
    PLATFORM_PRICES_WRITE = "platform.prices.write"
    PLATFORM_NODES_READ = "platform.nodes.read"
    PLATFORM_NODES_WRITE = "platform.nodes.write"
    PLATFORM_ACCOUNTS_READ = "platform.accounts.read"
    PLATFORM_ACCOUNTS_WRITE = "platform.accounts.write"
    PLATFORM_INVOICES_READ = "platform.invoices.read"
    PLATFORM_INVOICES_WRITE = "platform.invoices.write"
    PLATFORM_KEYS_READ = "platform.keys.read"
    PLATFORM_KEYS_WRITE = "platform.keys.write"
    PLATFORM_AUDIT_READ = "platform.audit.read"
    PLATFORM_WEBHOOKS_READ = "platform.webhooks.read"
    PLATFORM_WEBHOOKS_WRITE = "platform.webhooks.write"
    PLATFORM_ERASURES_READ = "platform.erasures.read"
    PLATFORM_ERASURES_WRITE = "platform.erasures.write"

    @property
    def is_of_platform(self) -> bool:
        """Return whether only operators can hold it."""
        return self.startswith("platform.")

    @property
    def is_read(self) -> bool:
        """Return whether it changes nothing."""
        return self.endswith(".read")


class RoleScope(StrEnum):
    """The place in which a role is held."""

    PLATFORM = "platform"
    ORGANIZATION = "organization"
    PROJECT = "project"


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A named set of permissions. `is_built_in`: it is one of BUILT_IN, which nobody can change. `project_id`: the project that made it, in
    which alone it can be held; None for built-in roles and those of an organization."""

    id: str
    name: str
    scope: RoleScope
    permissions: frozenset[Permission]
    description: str = ""
    is_built_in: bool = False
    project_id: str | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """A role that somebody holds: in the project `project_id`, or in the whole organization where that is None. `holder_id`: the user or
    the group that holds it; None for a key that holds it itself."""

    role: Role
    project_id: str | None = None
    holder_id: str | None = None

    def reaches(self, project_id: str | None) -> bool:
        """Return whether the grant is of that project, or of the whole organization."""
        return self.project_id is None or self.project_id == project_id

    def allows(self, permission: Permission, project_id: str | None) -> bool:
        """Return whether it gives `permission` in a project, or in the whole organization (None)."""
        return permission in self.role.permissions and self.reaches(project_id)


def find_grant(grants: Iterable[Grant], permission: Permission, project_id: str | None) -> Grant | None:
    """Return the first grant that gives `permission` in a project, or in the whole organization (None); None denies."""
    return next((grant for grant in grants if grant.allows(permission, project_id)), None)


def find_excess(holder: Sequence[Grant], given: Iterable[Grant]) -> Permission | None:
    """Return a permission of `given` that `holder` does not hold in the same place; None if there is none."""
    for grant in given:
        for permission in sorted(grant.role.permissions):
            if find_grant(holder, permission, grant.project_id) is None:
                return permission
    return None


# ---- Roles that every installation has ----------------------------------------------------------------------------------


def _built_in(scope: RoleScope, name: str, description: str, permissions: Iterable[Permission]) -> Role:
    place = "" if scope is not RoleScope.PROJECT else "project_"
    return Role(
        id=f"role_{place}{name}",
        name=name,
        scope=scope,
        permissions=frozenset(permissions),
        description=description,
        is_built_in=True,
    )


TENANT_PERMISSIONS = frozenset(each for each in Permission if not each.is_of_platform)
"""Permissions that a role of an organization can contain."""

_P = Permission
_READS = frozenset(each for each in TENANT_PERMISSIONS if each.is_read) - {_P.CONTENT_READ}
_MONEY = {_P.BUDGETS_READ, _P.BUDGETS_WRITE, _P.USAGE_READ, _P.COSTS_READ, _P.INVOICES_READ, _P.PRICES_READ}
_DEVELOPMENT = {
    _P.PROJECTS_READ,
    _P.API_KEYS_READ,
    _P.API_KEYS_WRITE,
    _P.SERVICE_ACCOUNTS_READ,
    _P.SERVICE_ACCOUNTS_WRITE,
    _P.LIMITS_READ,
    _P.USAGE_READ,
    _P.PRICES_READ,
}
PROJECT_PERMISSIONS = frozenset(
    {
        _P.PROJECTS_READ,
        _P.PROJECTS_WRITE,
        _P.API_KEYS_READ,
        _P.API_KEYS_WRITE,
        _P.SERVICE_ACCOUNTS_READ,
        _P.SERVICE_ACCOUNTS_WRITE,
        _P.LIMITS_READ,
        _P.LIMITS_WRITE,
        _P.BUDGETS_READ,
        _P.BUDGETS_WRITE,
        _P.ROLES_READ,
        _P.ROLES_WRITE,
        _P.USERS_READ,
        _P.USERS_WRITE,
        _P.CONTENT_READ,
    }
)
"""Permissions that a role of a project can contain: those of operations whose path names a project."""

_PROJECT_READS = frozenset(each for each in PROJECT_PERMISSIONS if each.is_read) - {_P.CONTENT_READ}

OPERATOR = _built_in(RoleScope.PLATFORM, "operator", "Everything, on the platform and in every organization.", Permission)
AUDITOR = _built_in(
    RoleScope.PLATFORM,
    "auditor",
    "Reads everything but logged content, on the platform and in every organization.",
    [each for each in Permission if each.is_read and each is not Permission.CONTENT_READ],
)
OWNER = _built_in(RoleScope.ORGANIZATION, "owner", "Everything in the organization.", TENANT_PERMISSIONS)
ADMIN = _built_in(
    RoleScope.ORGANIZATION,
    "admin",
    "Everything in the organization but its admin keys, its directory, logged content and exports of everything.",
    TENANT_PERMISSIONS - {_P.ADMIN_KEYS_WRITE, _P.SCIM_WRITE, _P.CONTENT_READ, _P.DATA_EXPORT},
)
DIRECTORY = _built_in(RoleScope.ORGANIZATION, "directory", "Provisions people and groups by SCIM, and nothing else.", {_P.SCIM_WRITE})
BILLING = _built_in(
    RoleScope.ORGANIZATION,
    "billing",
    "Reads usage, costs, invoices and prices, and sets budgets.",
    {_P.ORGANIZATION_READ, _P.PROJECTS_READ, *_MONEY},
)
DEVELOPER = _built_in(
    RoleScope.ORGANIZATION, "developer", "Makes keys and service accounts in every project.", {_P.ORGANIZATION_READ, *_DEVELOPMENT}
)
VIEWER = _built_in(RoleScope.ORGANIZATION, "viewer", "Reads everything in the organization but logged content.", _READS)
PROJECT_OWNER = _built_in(RoleScope.PROJECT, "owner", "Everything in one project.", PROJECT_PERMISSIONS)
PROJECT_MEMBER = _built_in(
    RoleScope.PROJECT, "member", "Makes keys and service accounts in one project.", PROJECT_PERMISSIONS & _DEVELOPMENT
)
PROJECT_VIEWER = _built_in(RoleScope.PROJECT, "viewer", "Reads everything in one project but logged content.", _PROJECT_READS)

BUILT_IN: tuple[Role, ...] = (
    OPERATOR,
    AUDITOR,
    OWNER,
    ADMIN,
    BILLING,
    DEVELOPER,
    VIEWER,
    DIRECTORY,
    PROJECT_OWNER,
    PROJECT_MEMBER,
    PROJECT_VIEWER,
)
"""The roles that exist without being made, the widest of each scope first."""

READER, NO_ROLE = "reader", "none"
"""Words in place of a name where people are shown: `viewer` in an organization, as OpenAI calls it, and no role at all. No role that is
made can have one of them, or somebody who may do much would be shown as somebody who may not."""

_BY_ID = {role.id: role for role in BUILT_IN}
_BY_NAME = {(role.scope, role.name): role for role in BUILT_IN}


def find_built_in(role_id: str) -> Role | None:
    """Return the built-in role with that id."""
    return _BY_ID.get(role_id)


def find_named(scope: RoleScope, name: str) -> Role | None:
    """Return the built-in role of that scope with that name."""
    return _BY_NAME.get((scope, name))
