"""Logins of the command line: the device authorization grant (RFC 8628) and the refresh of its tokens (RFC 6749, section 6).

A device shows a code, its person enters it on a page where they are signed in, and approves. The device then gets an access token of ten
minutes and a refresh token, which is replaced at each use. A refresh token that is presented again was copied, so the whole login ends,
whichever of the two was the thief (RFC 9700, section 4.14.2). All tokens of one login have an id in common, by which even an old one is
recognized. They are secrets that are looked up, and not signed, so that an ended login ends with the next request.
"""

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tollway.control.auditing import audit
from tollway.control.auditing.audit import AuditedOperation
from tollway.control.authentication import sign_in
from tollway.control.authentication.oauth import ExchangeRefused, IssuedToken, Parameters
from tollway.control.identity import operators, sessions
from tollway.control.identity.sessions import LiveSession
from tollway.control.plane import ControlPlane
from tollway.domain import ids, keys
from tollway.domain.audit import Actor, ActorKind
from tollway.domain.faults import SIGN_INS_EXCEEDED, Fault
from tollway.domain.keys import RANDOM_BYTES, NewKey, Operator
from tollway.domain.sessions import LIFETIMES, OperatorSession, SessionKind, SignInMethod
from tollway.storage import device_logins as storage
from tollway.storage import operators as stored_operators
from tollway.storage import sessions as stored_sessions
from tollway.storage.device_logins import DeviceLogin as DeviceLogin  # of `find_pending`, for the page
from tollway.storage.sessions import SessionTokens

CLIENT_ID = "tollway-cli"
"""The only client: a public one, which has no secret (RFC 8628, section 3.1)."""

LIFETIME_SECONDS = 600
"""Time in which a person can enter the code."""

INTERVAL_SECONDS, SLOWER_SECONDS = 5, 5
"""Time between two questions of a device, and what is added whenever it asks too early (RFC 8628, section 3.5)."""

TOKEN_SECONDS = 600
"""Lifetime of an access token."""

CODE_CHARACTERS = "BCDFGHJKLMNPQRSTVWXZ"
"""Characters of the code of a person: no vowels, so that it is no word (RFC 8628, section 6.1)."""

CODE_LENGTH = 8
"""Length of that code: 34 bits, with five wrong ones of a person in 15 minutes."""

_NO_LOGIN = "The code is unknown, has expired, or was used."


@dataclass(frozen=True, slots=True)
class BegunLogin:
    """The two codes of a login: the device's, and the one that the device shows to its person."""

    device_code: str = field(repr=False)
    user_code: str


def begin(plane: ControlPlane, parameters: Parameters, *, address: str, agent: str) -> BegunLogin:
    """Begin a login. `address`, `agent`: of the device. Raises ExchangeRefused."""
    if parameters.get("client_id") != CLIENT_ID:
        raise ExchangeRefused("invalid_client", f"The only client is {CLIENT_ID}.", status=401)
    try:
        sign_in.count_device(plane, address)
    except Fault as fault:
        raise ExchangeRefused("slow_down", fault.message, status=SIGN_INS_EXCEEDED.status) from None
    now = plane.now()
    made = keys.new_device_code(plane.random_bytes(RANDOM_BYTES))
    number = int.from_bytes(plane.random_bytes(16), "big")
    user_code = "".join(CODE_CHARACTERS[number // 20**place % 20] for place in range(CODE_LENGTH))
    login = DeviceLogin(
        digest=plane.pepper.digest(made.secret).value,
        user_code=user_code,
        address=address[:64],
        agent="".join(each if each.isprintable() else " " for each in agent[:200]),
        interval_seconds=INTERVAL_SECONDS,
        expires_at=now + LIFETIME_SECONDS * 1_000_000,
    )
    with plane.database.platform() as tx:
        storage.insert_device_login(tx, login, now)
    return BegunLogin(made.secret, f"{user_code[:4]}-{user_code[4:]}")


# ---- The person ---------------------------------------------------------------------------------------------------------


def find_pending(plane: ControlPlane, approver_id: str, address: str, text: str) -> DeviceLogin | None:
    """Return the login of the code that a person or an operator (`approver_id`) enters; None if there is none. Raises SIGN_INS_EXCEEDED
    after a few wrong ones."""
    sign_in.count_device(plane, address)
    sign_in.count_device_code(plane, approver_id)
    with plane.database.platform(write=False) as tx:
        found = storage.find_pending(tx, _normalize(text), plane.now())
    if found is not None:
        sign_in.take_back_device_code(plane, approver_id)
    return found


def decide(plane: ControlPlane, live: LiveSession, user_code: str, *, is_approved: bool) -> bool:
    """Approve or deny a login. Return False if it has expired, or somebody decided before. Raises SIGN_INS_EXCEEDED after a few wrong
    codes, as `find_pending` does: the page sends the code again, and anything can be sent in its place."""
    sign_in.count_device_code(plane, live.user.id)
    with plane.database.tenant(live.organization_id) as tx, tx.as_platform() as platform:
        was_pending = storage.decide(platform, _normalize(user_code), live.user.id, is_approved=is_approved, now=plane.now())
    if was_pending:
        sign_in.take_back_device_code(plane, live.user.id)
    return was_pending


def decide_as_operator(plane: ControlPlane, operator: Operator, user_code: str, *, is_approved: bool) -> bool:
    """As `decide`, for an operator who signed in. The session of their browser stands for them until the device asks."""
    assert operator.live is not None, "only operators who signed in get here"
    sign_in.count_device_code(plane, operator.key_id)
    with plane.database.platform() as tx:
        was_pending = storage.decide(tx, _normalize(user_code), operator.live.id, is_approved=is_approved, now=plane.now())
    if was_pending:
        sign_in.take_back_device_code(plane, operator.key_id)
    return was_pending


def _normalize(text: str) -> str:
    return "".join(each for each in text.upper() if each in CODE_CHARACTERS)[: CODE_LENGTH + 1]


# ---- The device ---------------------------------------------------------------------------------------------------------


def _redeem(plane: ControlPlane, parameters: Parameters) -> IssuedToken:
    """Return the tokens of a login that was approved. Raises ExchangeRefused with the codes of RFC 8628, section 3.5."""
    code = parameters.get("device_code", "")
    digests = [keys.digest(pepper, code.encode()) for pepper in plane.peppers.values()] if keys.is_device_code(code) else []
    now = plane.now()
    refusal: ExchangeRefused | None = None
    login = None
    with plane.database.platform() as tx:
        login = next((found for digest in digests if (found := storage.lock_device_login(tx, digest)) is not None), None)
        if login is None:
            refusal = ExchangeRefused("invalid_grant", _NO_LOGIN)
        elif login.expires_at <= now:
            storage.delete_device_login(tx, login.digest)
            refusal = ExchangeRefused("expired_token", "The code has expired. Begin again.")
        elif login.is_approved is None:
            is_early = login.polled_at is not None and now - login.polled_at < login.interval_seconds * 1_000_000
            interval = login.interval_seconds + SLOWER_SECONDS if is_early else login.interval_seconds
            storage.note_poll(tx, login.digest, interval, now)
            refusal = ExchangeRefused(
                "slow_down" if is_early else "authorization_pending", f"Wait {interval} seconds before you ask again."
            )
        else:
            storage.delete_device_login(tx, login.digest)
            if not login.is_approved:
                refusal = ExchangeRefused("access_denied", "The person denied the login.")
    if refusal is not None or login is None or login.user_id is None:
        raise refusal or ExchangeRefused("invalid_grant", _NO_LOGIN)
    if ids.is_id(ids.OPERATOR_SESSION, login.user_id):
        return _begin_operator_session(plane, login, login.user_id)
    with plane.database.platform(write=False) as tx:
        organization_id = storage.find_user_organization(tx, login.user_id)
    if organization_id is None:
        raise ExchangeRefused("access_denied", "The person was removed.")
    return _begin_session(plane, login, login.user_id, organization_id)


def _begin_session(plane: ControlPlane, login: DeviceLogin, user_id: str, organization_id: str) -> IssuedToken:
    now = plane.now()
    session = sessions.make_session(
        user_id,
        SessionKind.COMMAND_LINE,
        id=plane.new_id(ids.SESSION),
        method=SignInMethod.DEVICE,
        address=login.address,
        agent=login.agent,
        now=now,
    )
    issued, tokens = _make_tokens(plane, None)
    actor = Actor(kind=ActorKind.USER, id=user_id, address=login.address)
    recorder = audit.record_in(
        AuditedOperation(event="login.succeeded", operation="create_token", actor=actor), new_id=plane.new_id, now=now
    )
    with plane.database.recording(recorder).tenant(organization_id) as tenant:
        sessions.insert_session(tenant, session, tokens, now)
    plane.sign_ins.count(SignInMethod.DEVICE, "succeeded")
    return issued


def _begin_operator_session(plane: ControlPlane, login: DeviceLogin, browser_session_id: str) -> IssuedToken:
    """Begin a session that ends with the sign-in of the browser that approved it. Raises ExchangeRefused if that has ended."""
    now, issuer = plane.now(), plane.operator_issuer
    with plane.database.platform(write=False) as tx:
        operator = None if issuer is None else stored_operators.find_live_by_id(tx, issuer, browser_session_id, now)
    if operator is None or operator.live is None:
        raise ExchangeRefused("access_denied", "The session in which the login was approved has ended.")
    approved = operator.live
    session = OperatorSession(
        id=plane.new_id(ids.OPERATOR_SESSION),
        operator_id=approved.operator_id,
        email=approved.email,
        name=approved.name,
        kind=SessionKind.COMMAND_LINE,
        method=SignInMethod.DEVICE,
        address=login.address,
        agent=login.agent,
        created_at=now,
        last_used_at=now,
        expires_at=approved.created_at + LIFETIMES[SessionKind.BROWSER].seconds * 1_000_000,
    )
    issued, tokens = _make_tokens(plane, None, keys.new_operator_token)
    actor = Actor(kind=ActorKind.OPERATOR, id=approved.operator_id, address=login.address)
    operation = AuditedOperation(event="login.succeeded", operation="create_token", actor=actor)
    with plane.database.recording(audit.record_in(operation, new_id=plane.new_id, now=now)).platform() as tx:
        operators.insert_session(tx, session, tokens, None, now)
    plane.sign_ins.count(SignInMethod.DEVICE, "succeeded")
    return issued


def _refresh(plane: ControlPlane, parameters: Parameters) -> IssuedToken:
    """Return the next tokens of a login for its refresh token. Raises ExchangeRefused; the login ends if the token was used before."""
    token = parameters.get("refresh_token", "")
    found = _find_family(plane, token)
    if found is None:
        return _refresh_operator(plane, token)
    live, digest = found
    if any(hmac.compare_digest(digest, keys.digest(pepper, token.encode())) for pepper in plane.peppers.values()):
        issued, tokens = _make_tokens(plane, keys.find_family(token))
        with plane.database.tenant(live.organization_id) as tenant:
            is_first = stored_sessions.replace_tokens(tenant, live.session.id, tokens, digest, plane.now())
        if is_first:
            return issued
    _end(plane, live, "session.ended", address="", request_id="")
    plane.sign_ins.count(SignInMethod.DEVICE, "refused")
    plane.log({"event": "refresh_token_reused", "session_id": live.session.id, "organization_id": live.organization_id})
    raise ExchangeRefused("invalid_grant", "The refresh token was used before, so the login has ended. Log in again.")


def _refresh_operator(plane: ControlPlane, token: str) -> IssuedToken:
    """As `_refresh`, for a login of an operator."""
    found = _find_operator_family(plane, token)
    if found is None or found[0].live is None:
        raise ExchangeRefused("invalid_grant", "The login has ended. Log in again.")
    (operator, digest), session = found, found[0].live
    if any(hmac.compare_digest(digest, keys.digest(pepper, token.encode())) for pepper in plane.peppers.values()):
        issued, tokens = _make_tokens(plane, keys.find_family(token), keys.new_operator_token)
        with plane.database.platform() as tx:
            is_first = stored_operators.replace_tokens(tx, session.id, tokens, digest, plane.now())
        if is_first:
            return issued
    _end_operator(plane, operator, "session.ended", address="", request_id="")
    plane.sign_ins.count(SignInMethod.DEVICE, "refused")
    plane.log({"event": "refresh_token_reused", "session_id": session.id})
    raise ExchangeRefused("invalid_grant", "The refresh token was used before, so the login has ended. Log in again.")


def revoke(plane: ControlPlane, parameters: Parameters, *, address: str, request_id: str) -> None:
    """End the login of a refresh token or an access token. Does nothing for anything else (RFC 7009, section 2.2)."""
    token = parameters.get("token", "")
    live = None
    if keys.is_user_token(token):
        live = sessions.find_by_secret(plane.database, plane.peppers, token, plane.now())
    elif (found := _find_family(plane, token)) is not None:
        live = found[0]
    if live is not None:
        _end(plane, live, "logout.succeeded", address=address, request_id=request_id)
        return
    operator = None
    if keys.is_operator_token(token) and plane.operator_issuer is not None:
        operator = operators.find_by_secret(plane.database, plane.peppers, plane.operator_issuer, token, plane.now())
    elif (of_operator := _find_operator_family(plane, token)) is not None:
        operator = of_operator[0]
    if operator is not None:
        _end_operator(plane, operator, "logout.succeeded", address=address, request_id=request_id)


def _find_family(plane: ControlPlane, token: str) -> tuple[LiveSession, bytes] | None:
    family = keys.find_family(token)
    if family is None:
        return None
    with plane.database.platform(write=False) as tx:
        return stored_sessions.find_session_by_refresh_id(tx, family, plane.now())


def _find_operator_family(plane: ControlPlane, token: str) -> tuple[Operator, bytes] | None:
    family = keys.find_family(token)
    if family is None or plane.operator_issuer is None:
        return None
    with plane.database.platform(write=False) as tx:
        return stored_operators.find_by_refresh_id(tx, plane.operator_issuer, family, plane.now())


def _end_operator(plane: ControlPlane, operator: Operator, event: str, *, address: str, request_id: str) -> None:
    assert operator.live is not None, "only operators who signed in get here"
    actor = Actor(kind=ActorKind.OPERATOR, id=operator.key_id, address=address, request_id=request_id)
    operation = AuditedOperation(event=event, operation="revoke_token", actor=actor)
    recorder = audit.record_in(operation, new_id=plane.new_id, now=plane.now())
    with plane.database.recording(recorder).platform() as tx:
        stored_operators.delete_session(tx, operator.key_id, operator.live.id)


def _end(plane: ControlPlane, live: LiveSession, event: str, *, address: str, request_id: str) -> None:
    actor = Actor(kind=ActorKind.USER, id=live.user.id, address=address, request_id=request_id)
    operation = AuditedOperation(event=event, operation="revoke_token", actor=actor)
    recorder = audit.record_in(operation, new_id=plane.new_id, now=plane.now())
    with plane.database.recording(recorder).tenant(live.organization_id) as tenant:
        stored_sessions.delete_session(tenant, live.user.id, live.session.id)


def _make_tokens(
    plane: ControlPlane, family: str | None, new_access_token: Callable[[bytes], NewKey] = keys.new_user_token
) -> tuple[IssuedToken, SessionTokens]:
    access = new_access_token(plane.random_bytes(RANDOM_BYTES))
    refresh = keys.new_refresh_token(plane.random_bytes(RANDOM_BYTES), family)
    tokens = SessionTokens(
        digest=plane.pepper.digest(access.secret).value,
        token_expires_at=plane.now() + TOKEN_SECONDS * 1_000_000,
        refresh_id=refresh.public_id,
        refresh_digest=plane.pepper.digest(refresh.secret).value,
    )
    return IssuedToken(access.secret, TOKEN_SECONDS, refresh_token=refresh.secret), tokens


GRANTS: Mapping[str, Callable[[ControlPlane, Parameters], IssuedToken]] = {
    "urn:ietf:params:oauth:grant-type:device_code": _redeem,
    "refresh_token": _refresh,
}
"""Grant types of people, for the token endpoint."""
