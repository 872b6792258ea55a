"""Access: from a presented secret to someone who may act. Default deny: what is not allowed here is refused.

Every refusal of identity is the same (KEY_INVALID), whether the key is unknown, revoked, expired or its organization archived. The
secret goes no further than its digest: no query, log or error ever holds it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tollway.control.identity import operators, sessions
from tollway.control.identity.keys import Grantor
from tollway.control.identity.sessions import LiveSession
from tollway.control.secrets import peppers as stored_peppers
from tollway.domain import ids, keys, roles
from tollway.domain.faults import (
    DATABASE_UNAVAILABLE,
    KEY_INVALID,
    PARAMETER_MISSING,
    RESOURCE_UNKNOWN,
    SCOPE_INSUFFICIENT,
    SESSION_MISSING,
    Blame,
    Fault,
    FaultKind,
)
from tollway.domain.keys import KeyType, Operator
from tollway.domain.roles import Grant, Permission
from tollway.storage import keys as stored_keys
from tollway.storage import nodes as stored_nodes
from tollway.storage import people as stored_people
from tollway.storage import platform_queries
from tollway.storage.database import Database, PlatformTx
from tollway.storage.platform_queries import ActiveKey as ActiveKey  # of `identify`, for the API

NODE_MISMATCH = FaultKind(
    code="node_mismatch",
    status=403,
    blame=Blame.PLATFORM,
    message="This key may not act for that node.",
)


@dataclass(frozen=True, slots=True)
class Tenant:
    """Someone who may act in one organization: with a key of its own, or an operator on its behalf (`is_operator`). `expires_at`: of the
    key presented, None if it does not expire. `grants`: the roles that the key holds. `live`: the session of a person who signed in, whose
    id `key_id` is then: what they make does not end with their session, and is theirs, whichever session it was made in.
    `operator_session_id`: of an operator who signed in, whose id `key_id` is then."""

    key_id: str
    organization_id: str
    is_operator: bool = False
    expires_at: int | None = None
    grants: tuple[Grant, ...] = ()
    live: LiveSession | None = None
    operator_session_id: str | None = None

    @property
    def session_id(self) -> str | None:
        """The id of the session of a person, for the log; None for a key."""
        return self.operator_session_id if self.live is None else self.live.session.id

    @property
    def grantor(self) -> Grantor:
        """The key presented, as what makes other keys."""
        return Grantor(self.key_id, self.expires_at, self.grants)


@dataclass(frozen=True, slots=True)
class Node:
    """A gateway, which may follow the snapshot and hand in usage, under its own id only."""

    key_id: str
    node_id: str


@dataclass(frozen=True, slots=True)
class Joiner:
    """A gateway that presents a join token. `key_id`: the id of the token."""

    key_id: str


@dataclass(frozen=True, slots=True)
class Invitee:
    """A person who presents the token of an invitation. `key_id`: the id of the invitation. `email`: where it was sent."""

    key_id: str
    invited_to: str
    email: str


def identify(database: Database, peppers: Mapping[int, bytes], current: int, secret: bytes, now: int) -> ActiveKey:
    """Return whose key `secret` is at instant `now`. `current`: version of the pepper to which the digest of the secret is moved. Raises
    Fault KEY_INVALID. What is not even shaped like a key costs no query."""
    if keys.find_type(secret.decode("ascii", "replace")) is None:
        raise Fault(KEY_INVALID)
    digests = {version: keys.digest(pepper, secret) for version, pepper in peppers.items()}
    with database.platform(write=False) as tx:
        key = platform_queries.find_active_key(tx, list(digests.values()), now)
    if key is None:
        raise Fault(KEY_INVALID)
    if key.use is not None and key.type is not KeyType.NODE:  # nodes say themselves when they were alive
        use = key.use
        _write(database, lambda tx: stored_keys.note_uses(tx, [use]))
    if key.digest != digests[current]:
        _write(database, lambda tx: stored_peppers.move_secret(tx, secret, peppers, current))
    return key


def _write(database: Database, write: Callable[[PlatformTx], None]) -> None:
    """Store something of a secret, if the database can be written to: what is only read must be answered then as well."""
    try:
        with database.platform() as tx:
            write(tx)
    except Fault as fault:
        if fault.kind is not DATABASE_UNAVAILABLE:
            raise


def require_tenant(database: Database, key: ActiveKey, organization_id: str | None) -> Tenant:
    """Let in an organization's admin, or an operator who names the organization to act for (`organization_id`, a header).

    An admin who names another organization than its own gets the answer for one that does not exist.
    """
    if key.type is KeyType.ADMIN and key.organization_id is not None:
        if organization_id is not None and organization_id != key.organization_id:
            raise Fault(RESOURCE_UNKNOWN)
        return Tenant(key.id, key.organization_id, expires_at=key.expires_at, grants=key.grants)
    if key.type is not KeyType.PLATFORM:
        raise Fault(SCOPE_INSUFFICIENT)
    named = _require_organization(database, organization_id)
    return Tenant(key.id, named, is_operator=True, expires_at=key.expires_at, grants=key.grants)


def _require_organization(database: Database, organization_id: str | None) -> str:
    """Return the organization that an operator names to act for. Raises Fault PARAMETER_MISSING, RESOURCE_UNKNOWN."""
    if organization_id is None:
        raise Fault(
            PARAMETER_MISSING,
            param="OpenAI-Organization",
            message="An operator must name the organization to act for in the header OpenAI-Organization.",
        )
    with database.platform(write=False) as tx:
        if not ids.is_id(ids.ORGANIZATION, organization_id) or not platform_queries.has_organization(tx, organization_id):
            raise Fault(RESOURCE_UNKNOWN)
    return organization_id


def identify_person(database: Database, peppers: Mapping[int, bytes], secret: str | None, now: int) -> Tenant:
    """Return who has the session of a browser with this secret at `now`. Raises Fault SESSION_MISSING."""
    live = None if secret is None else sessions.find_session(database, peppers, secret, now)
    if live is None:
        raise Fault(SESSION_MISSING)
    return as_tenant(live)


def identify_by_token(database: Database, peppers: Mapping[int, bytes], secret: str, organization_id: str | None, now: int) -> Tenant:
    """Return who has this access token of a login with the command line at `now`. `organization_id`: the one that they name, if any. Raises
    Fault KEY_INVALID, RESOURCE_UNKNOWN."""
    live = sessions.find_by_secret(database, peppers, secret, now)
    if live is None:
        raise Fault(KEY_INVALID)
    if organization_id not in (None, live.organization_id):
        raise Fault(RESOURCE_UNKNOWN)
    return as_tenant(live)


def identify_operator_by_token(database: Database, peppers: Mapping[int, bytes], issuer: str | None, secret: str, now: int) -> Operator:
    """Return which operator has this access token of a login with the command line at `now`. `issuer`: of the identity provider of the
    platform; None without one. Raises Fault KEY_INVALID."""
    found = None if issuer is None else operators.find_by_secret(database, peppers, issuer, secret, now)
    if found is None:
        raise Fault(KEY_INVALID)
    return found


def act_for(database: Database, operator: Operator, organization_id: str | None) -> Tenant:
    """Return an operator who signed in as who acts for an organization (`organization_id`, a header). Raises Fault PARAMETER_MISSING,
    RESOURCE_UNKNOWN."""
    named = _require_organization(database, organization_id)
    return Tenant(operator.key_id, named, is_operator=True, grants=(Grant(operator.role),), operator_session_id=operator.session_id)


def as_tenant(live: LiveSession) -> Tenant:
    """Return the person of a session as someone who may act: what a key of theirs would be."""
    return Tenant(live.user.id, live.organization_id, grants=live.grants, live=live)


def require_operator(key: ActiveKey, permission: Permission) -> Operator:
    """Let in operators whose key has a role with `permission`."""
    if key.type is not KeyType.PLATFORM or key.origin is None or len(key.grants) != 1:
        raise Fault(SCOPE_INSUFFICIENT)
    (grant,) = key.grants
    operator = Operator(key.id, key.origin, grant.role)
    require_platform_permission(operator, permission)
    return operator


def require_platform_permission(operator: Operator, permission: Permission) -> None:
    """Raise SCOPE_INSUFFICIENT unless the role of an operator has `permission`."""
    if permission not in operator.role.permissions:
        raise lacking(permission)


def require_permission(tenant: Tenant, permission: Permission, project_id: str | None) -> None:
    """Raise SCOPE_INSUFFICIENT unless `tenant` holds `permission` in a project, or in the whole organization where `project_id` is None.

    A project in which the caller holds no role at all is answered as one that does not exist: RESOURCE_UNKNOWN."""
    if roles.find_grant(tenant.grants, permission, project_id) is not None:
        return
    if project_id is not None and tenant.grants and not any(grant.reaches(project_id) for grant in tenant.grants):
        raise Fault(RESOURCE_UNKNOWN)
    raise lacking(permission)


def lacking(permission: Permission) -> Fault:
    """Return the refusal of a caller without `permission`."""
    return Fault(SCOPE_INSUFFICIENT, message=f"This key does not have the permission {permission}.")


def require_node(key: ActiveKey) -> Node:
    """Let in gateways."""
    if key.type is not KeyType.NODE or key.node_id is None:
        raise Fault(SCOPE_INSUFFICIENT)
    return Node(key.id, key.node_id)


def require_own(node: Node, node_id: str) -> None:
    """Raise Fault NODE_MISMATCH unless `node_id` is the caller's own."""
    if node_id != node.node_id:
        raise Fault(NODE_MISMATCH, detail=f"the key of {node.node_id} was used for {_describe_id(node_id)}")


def identify_joiner(database: Database, peppers: Mapping[int, bytes], secret: bytes) -> Joiner:
    """Return who presents a join token. Raises Fault KEY_INVALID for one that does not exist; `nodes.join` checks whether it can be
    used."""
    token = None
    if keys.is_join_token(secret.decode("ascii", "replace")):
        with database.platform(write=False) as tx:
            token = stored_nodes.find_token(tx, [keys.digest(pepper, secret) for pepper in peppers.values()])
    if token is None:
        raise Fault(KEY_INVALID)
    return Joiner(token.id)


def identify_invitee(database: Database, peppers: Mapping[int, bytes], secret: bytes, now: int) -> Invitee:
    """Return who presents the token of a pending invitation. Raises Fault KEY_INVALID for one that does not exist, was accepted or deleted,
    or has expired."""
    found = None
    if keys.is_invite_token(secret.decode("ascii", "replace")):
        with database.platform(write=False) as tx:
            found = stored_people.find_invite_owner(tx, [keys.digest(pepper, secret) for pepper in peppers.values()], now)
    if found is None:
        raise Fault(KEY_INVALID)
    organization_id, invite_id, email = found
    return Invitee(invite_id, organization_id, email)


def is_node_valid(database: Database, node: Node, now: int) -> bool:
    """Return whether the key with which a node began a stream may still act at `now`."""
    with database.platform(write=False) as tx:
        return stored_nodes.is_key_valid(tx, node.key_id, now)


def _describe_id(node_id: str) -> str:
    """Return an id for the log; what does not look like one is not repeated there."""
    return node_id if ids.is_id(ids.NODE, node_id) else "something that is not the id of a node"
