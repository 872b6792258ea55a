"""Signing in as an operator: with the identity provider of the platform, with a key of operators, or by a one-time
link that was made with one.

Of whom the provider proved (`provider_flow`) the groups decide what they may do. Whoever is in none of the groups of the settings is
refused, and loses the role that they had.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tollway.control.auditing import audit
from tollway.control.auditing.audit import AuditedOperation
from tollway.control.authentication import provider_flow, sign_in
from tollway.control.authentication.provider_flow import Proven, ProviderClient
from tollway.control.authentication.provider_sign_in import GROUPS_MAX, SUBJECT_CHARACTERS_MAX
from tollway.control.authentication.sign_in import Visitor
from tollway.control.identity import access, operators
from tollway.control.identity.operators import BegunSession, FoundLink, MappedRole, OperatorSignIn, SignedInOperator
from tollway.control.languages.texts import mark
from tollway.control.plane import ControlPlane
from tollway.domain import ids
from tollway.domain.audit import Actor, ActorKind, Target
from tollway.domain.faults import KEY_INVALID, SIGN_IN_REFUSED, Fault
from tollway.domain.keys import RANDOM_BYTES, KeyOrigin, KeyType, Operator
from tollway.domain.sessions import SignInMethod
from tollway.storage import operators as storage

CLIENT_ID = "operators"
"""Id of the client in addresses of this site: no connection of an organization has it, whose ids are longer."""


def require_sign_in(plane: ControlPlane) -> OperatorSignIn:
    """Return the identity provider of the platform. Raises SIGN_IN_REFUSED if the settings name none."""
    if plane.operator_sign_in is None:
        raise Fault(SIGN_IN_REFUSED, message=mark("There is no sign-in of operators: control.operator_sign_in is not set."))
    return plane.operator_sign_in


def make_client(plane: ControlPlane) -> ProviderClient:
    """Return this platform as a client of its identity provider. Raises SIGN_IN_REFUSED."""
    settings = require_sign_in(plane)
    return ProviderClient(CLIENT_ID, None, settings.issuer, settings.client_id, True, lambda: settings.client_secret)


def enter(plane: ControlPlane, proven: Proven, visitor: Visitor) -> BegunSession:
    """Begin a session of the operator whom the provider signed in. Raises SIGN_IN_REFUSED."""
    settings, now = require_sign_in(plane), plane.now()
    mapped = operators.map_groups(settings, _read_groups(settings, proven.claims))
    operator = _describe(plane, settings, proven.claims, mapped, now)
    actor = Actor(kind=ActorKind.OPERATOR, id=operator.id, address=visitor.address, request_id=visitor.request_id)
    target = Target(kind="operator", id=operator.id)
    event = "login.failed" if mapped is None else "login.succeeded"
    operation = AuditedOperation(event=event, operation="finish_provider_sign_in", actor=actor, target=target)
    session_id = plane.new_id(ids.OPERATOR_SESSION)
    id_token = provider_flow.seal_id_token(plane, proven.id_token, session_id)
    begun = None
    with plane.database.recording(audit.record_in(operation, new_id=plane.new_id, now=now)).platform() as tx:
        is_known = mapped is not None or storage.find_operator(tx, operator.id) is not None
        if is_known:  # of whoever was never an operator nothing is kept
            operators.note_sign_in(tx, operator)
        if mapped is not None:
            begun = operators.begin_session(
                tx,
                operator,
                id=session_id,
                address=visitor.address,
                agent=visitor.agent,
                id_token=id_token,
                random_bytes=plane.random_bytes(RANDOM_BYTES),
                pepper=plane.pepper,
                now=now,
            )
    if begun is None:
        raise provider_flow.refuse(plane, CLIENT_ID, "the person is in none of the groups of operators")
    sign_in.end_session_before(plane, visitor)
    plane.sign_ins.count(SignInMethod.PROVIDER, "succeeded")
    return begun


def enter_with_key(plane: ControlPlane, secret: str, visitor: Visitor) -> BegunSession:
    """Begin a session of whoever presents a key of operators, with its role and origin. It ends with the key. Raises SIGN_IN_REFUSED,
    SIGN_INS_EXCEEDED."""
    sign_in.count_operator_key(plane, visitor.address)
    now = plane.now()
    try:
        key = access.identify(plane.database, plane.peppers, plane.pepper_version, secret.encode("ascii", "replace"), now)
    except Fault as fault:
        if fault.kind is not KEY_INVALID:
            raise
        raise sign_in.Refused(SignInMethod.KEY, None) from None
    if key.type is not KeyType.PLATFORM or key.origin is None or len(key.grants) != 1:
        raise sign_in.Refused(SignInMethod.KEY, None)
    sign_in.take_back_address(plane, visitor.address)
    operator = operators.describe_key(key.id, key.origin, key.grants[0].role, now)
    return _begin_of_key(plane, operator, SignInMethod.KEY, visitor, now)


def find_link(plane: ControlPlane, token: str) -> FoundLink:
    """Return the link of a token. Raises SIGN_IN_REFUSED."""
    with plane.database.platform(write=False) as tx:
        found = operators.find_link(tx, plane.peppers, token, plane.now())
    if found is None:
        raise sign_in.Refused(SignInMethod.LINK, None)
    return found


def enter_with_link(plane: ControlPlane, token: str, visitor: Visitor) -> BegunSession:
    """Begin a session of whoever presents the token of a one-time link, with the role and origin of the key that made it. It ends with the
    key. Raises SIGN_IN_REFUSED."""
    found, now = find_link(plane, token), plane.now()
    return _begin_of_key(plane, replace(found.operator, signed_in_at=now), SignInMethod.LINK, visitor, now, link=found)


def _begin_of_key(
    plane: ControlPlane, operator: SignedInOperator, method: SignInMethod, visitor: Visitor, now: int, *, link: FoundLink | None = None
) -> BegunSession:
    """Begin a session of an operator who is known by a key. `link`: is used up; of two requests with it one is refused."""
    actor = Actor(kind=ActorKind.OPERATOR, id=operator.subject, address=visitor.address, request_id=visitor.request_id)
    target = Target(kind="operator", id=operator.id)
    name = "sign_in_with_operator_key" if link is None else "sign_in_with_operator_link"
    operation = AuditedOperation(event="login.succeeded", operation=name, actor=actor, target=target)
    with plane.database.recording(audit.record_in(operation, new_id=plane.new_id, now=now)).platform() as tx:
        if link is not None and not operators.use_link(tx, link, now):
            raise sign_in.Refused(SignInMethod.LINK, None)
        operators.note_sign_in(tx, operator)
        begun = operators.begin_session(
            tx,
            operator,
            id=plane.new_id(ids.OPERATOR_SESSION),
            address=visitor.address,
            agent=visitor.agent,
            id_token=None,
            method=method,
            random_bytes=plane.random_bytes(RANDOM_BYTES),
            pepper=plane.pepper,
            now=now,
        )
    sign_in.end_session_before(plane, visitor)
    plane.sign_ins.count(method, "succeeded")
    return begun


def end_own_session(plane: ControlPlane, operator: Operator) -> str | None:
    """End the session of an operator, who signs out or in again. Return the ID token of the sign-in, if it was kept."""
    assert operator.live is not None, "only operators who signed in get here"
    session = operator.live
    with plane.database.platform() as tx:
        sealed = storage.find_id_token(tx, session.id)
        storage.delete_session(tx, session.operator_id, session.id)
    return provider_flow.unseal_id_token(plane, sealed, session.id)


def _read_groups(settings: OperatorSignIn, claims: Mapping[str, Any]) -> list[str]:
    listed = claims.get(settings.groups_claim)
    return [each for each in listed[:GROUPS_MAX] if isinstance(each, str)] if isinstance(listed, list) else []


def _describe(
    plane: ControlPlane, settings: OperatorSignIn, claims: Mapping[str, Any], mapped: MappedRole | None, now: int
) -> SignedInOperator:
    subject = claims["sub"]
    if not 1 <= len(subject) <= SUBJECT_CHARACTERS_MAX or not subject.isprintable():
        raise provider_flow.refuse(plane, CLIENT_ID, "the subject is not one")
    email = _read_text(claims, "email", 320)
    return SignedInOperator(
        id=operators.make_operator_id(settings.issuer, subject),
        issuer=settings.issuer,
        subject=subject,
        email=email,
        name=_read_text(claims, "name", 256) or email or subject,
        role=None if mapped is None else mapped.role,
        origin=KeyOrigin.FIRST if mapped is None else mapped.origin,
        signed_in_at=now,
    )


def _read_text(claims: Mapping[str, Any], name: str, length_max: int) -> str:
    """Return a claim for people to read; empty if it is missing or cannot be shown."""
    text = claims.get(name)
    return text if isinstance(text, str) and len(text) <= length_max and text.isprintable() else ""
