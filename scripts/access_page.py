"""Renders docs/access.md: which role may call which operation of the REST API: `python scripts/access_page.py`.

The page is made from the declarations of the routes and from the built-in roles; a test holds it in step with them, and another one sends
every operation with a key of every role and compares the answers with the page.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tollway.control.api.app import PUBLIC_ROUTERS
from tollway.control.api.routes import ApiRoute
from tollway.domain.roles import BUILT_IN, Grant, Permission, Role, RoleScope

PAGE = Path(__file__).parent.parent / "docs" / "access.md"

OPENING = """# Access

Made by `make docs` from the declarations of the routes and from `domain/roles.py`. [identity.md](identity.md#roles) explains roles.

"""

A_PROJECT = "proj_" + "0" * 32


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation of the REST API, and the permission that it needs."""

    name: str
    method: str
    path: str
    permission: Permission

    @property
    def names_project(self) -> bool:
        """Return whether the path names a project, so that roles in that project count."""
        return "{project_id}" in self.path

    def is_open_to(self, role: Role) -> bool:
        """Return whether someone with this role may call it: in their own project, where it is the role of a project."""
        grant = Grant(role, A_PROJECT if role.scope is RoleScope.PROJECT else None)
        return grant.allows(self.permission, A_PROJECT if self.names_project else None)


def list_operations() -> Iterator[Operation]:
    """Yield the operations that admins and operators call, in the order of the API."""
    for router in PUBLIC_ROUTERS:
        for route in router.routes:
            if isinstance(route, ApiRoute) and route.access.permission is not None:
                for method in sorted(route.methods or ()):
                    yield Operation(route.name, method, route.path, route.access.permission)


def title(role: Role) -> str:
    """Return the name of a role that no other one has."""
    return f"project {role.name}" if role.scope is RoleScope.PROJECT else role.name


def render() -> str:
    """Return the page."""
    lines = [OPENING, "## Roles\n\n| role | id | where | description |\n|---|---|---|---|\n"]
    lines.extend(f"| {title(role)} | `{role.id}` | {role.scope} | {role.description} |\n" for role in BUILT_IN)
    lines.append("\n## Operations\n\nRoles of a project count for operations whose path names that project.\n\n")
    lines.append("| operation | request | permission | " + " | ".join(map(title, BUILT_IN)) + " |\n")
    lines.append("|---|---|---|" + ":-:|" * len(BUILT_IN) + "\n")
    for each in list_operations():
        cells = ["yes" if each.is_open_to(role) else "–" for role in BUILT_IN]
        lines.append(f"| {each.name} | `{each.method} {each.path}` | `{each.permission}` | " + " | ".join(cells) + " |\n")
    return "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(render())
