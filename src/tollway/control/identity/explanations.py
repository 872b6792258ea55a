"""Explanations of access: the rule that decides about a permission, or about an operation of the REST API.

The decision is that of `access.require_permission`, of which nothing is repeated but the order of its questions. What is explained
depends on the subject, the operation and the project alone: an id of another organization in a path is explained as a random one is.
"""

from dataclasses import dataclass
from enum import StrEnum

from tollway.control.identity import roles
from tollway.domain import ids
from tollway.domain import roles as domain
from tollway.domain.roles import Grant, Permission
from tollway.storage import keys as stored_keys
from tollway.storage import tenants as stored_tenants
from tollway.storage.database import TenantTx


class SubjectKind(StrEnum):
    """Kinds of those who may act in an organization."""

    ADMIN_KEY = "admin_key"
    USER = "user"
    API_KEY = "api_key"
    SERVICE_ACCOUNT = "service_account"
    OPERATOR = "operator"


class Reason(StrEnum):
    """The rule that decides. The first three allow, the others deny; `PROJECT_UNSEEN` is answered by 404, the others by 403 or 401."""

    ROLE = "role"
    ANY_MEMBER = "any_member"
    PUBLIC = "public"
    KEY_KIND = "key_kind"
    ELSEWHERE = "role_elsewhere"
    PROJECT_UNSEEN = "project_unseen"
    NO_ROLE = "no_role"


ALLOWING = frozenset({Reason.ROLE, Reason.ANY_MEMBER, Reason.PUBLIC})


@dataclass(frozen=True, slots=True)
class Subject:
    """Somebody who may act in an organization, and the roles that they hold. Keys of projects and service accounts hold none: they are for
    requests at gateways."""

    id: str
    kind: SubjectKind
    grants: tuple[Grant, ...] = ()

    @property
    def may_hold_roles(self) -> bool:
        """Return whether the REST API lets it in at all."""
        return self.kind not in (SubjectKind.API_KEY, SubjectKind.SERVICE_ACCOUNT)


@dataclass(frozen=True, slots=True)
class Rule:
    """The demand of an operation of the REST API on its caller. `permission`: None where no role counts; `caller`: the kind of caller then,
    as the routes name it."""

    operation: str
    caller: str
    permission: Permission | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """The decision about a permission, or the operation of `rule`, in a project or (None) in the organization. `grant`: the role that
    allows it, None if none does; `considered`: all that is held."""

    subject: Subject
    permission: Permission | None
    rule: Rule | None
    project_id: str | None
    reason: Reason
    grant: Grant | None

    @property
    def is_allowed(self) -> bool:
        """Return whether it is allowed."""
        return self.reason in ALLOWING

    @property
    def considered(self) -> tuple[Grant, ...]:
        """Return every role that the subject holds."""
        return self.subject.grants


def explain(subject: Subject, permission: Permission, project_id: str | None, rule: Rule | None = None) -> Explanation:
    """Explain whether `subject` has `permission` in a project, or in the whole organization (None), as `rule` asks for it."""
    grants = subject.grants
    grant = domain.find_grant(grants, permission, project_id) if subject.may_hold_roles else None
    reason = Reason.NO_ROLE
    if grant is not None:
        reason = Reason.ROLE
    elif not subject.may_hold_roles or (permission.is_of_platform and subject.kind is not SubjectKind.OPERATOR):
        reason = Reason.KEY_KIND
    elif project_id is not None and grants and not any(each.reaches(project_id) for each in grants):
        reason = Reason.PROJECT_UNSEEN
    elif any(permission in each.role.permissions for each in grants):
        reason = Reason.ELSEWHERE
    return Explanation(subject, permission, rule, project_id, reason, grant)


def explain_operation(subject: Subject, rule: Rule, project_id: str | None) -> Explanation:
    """Explain whether `subject` may call the operation of `rule`, in the project that its path names."""
    if rule.permission is not None:
        return explain(subject, rule.permission, project_id, rule)
    reason = Reason.KEY_KIND
    if rule.caller == "public":
        reason = Reason.PUBLIC
    elif rule.caller == "organization" and subject.may_hold_roles:
        reason = Reason.ANY_MEMBER
    return Explanation(subject, None, rule, project_id, reason, None)


def get_subject(tx: TenantTx, subject_id: str) -> Subject:
    """Return an admin key, a person, a key of a project or a service account with what it holds, a person's groups too. Raises
    RESOURCE_UNKNOWN."""
    if ids.is_id(ids.SERVICE_ACCOUNT, subject_id) and stored_tenants.has_service_account(tx, subject_id):
        return Subject(subject_id, SubjectKind.SERVICE_ACCOUNT)
    if ids.is_id(ids.KEY, subject_id) and stored_keys.has_inference_key(tx, subject_id):
        return Subject(subject_id, SubjectKind.API_KEY)
    kind = SubjectKind.USER if ids.is_id(ids.USER, subject_id) else SubjectKind.ADMIN_KEY
    return Subject(subject_id, kind, tuple(roles.list_grants_of(tx, subject_id)))
