"""People of an organization, the groups they are in, and invitations by which they join."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A person in an organization. `email` is unique among those who were not removed. `added_at`: UTC microseconds.
    `is_scim_managed`: the organization's directory says who they are, and whether they may act."""

    id: str
    email: str
    name: str
    added_at: int
    is_scim_managed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UserGroup:
    """People who hold roles together. `created_at`: UTC microseconds. `is_scim_managed`: the organization's directory says who is in it."""

    id: str
    name: str
    created_at: int
    is_scim_managed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A role that a user or a group (`holder_id`) holds, in a project or (None) in the whole organization. `is_membership`: it is the one
    by which the holder belongs to the organization or the project; there is one at most. `assigned_at`: UTC microseconds."""

    holder_id: str
    role_id: str
    project_id: str | None
    is_membership: bool
    assigned_at: int


class InviteState(StrEnum):
    """State of an invitation: can somebody still join by it?"""

    PENDING = "pending"
    ACCEPTED = "accepted"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """An invitation to join an organization with a role, and projects with a role in each (by project id). Instants are UTC microseconds;
    `expires_at` is exclusive."""

    id: str
    email: str
    role_id: str
    created_at: int
    expires_at: int
    accepted_at: int | None = None
    project_roles: Mapping[str, str] = field(default_factory=dict)

    def state(self, now: int) -> InviteState:
        """Return its state at `now`."""
        if self.accepted_at is not None:
            return InviteState.ACCEPTED
        return InviteState.PENDING if now < self.expires_at else InviteState.EXPIRED
