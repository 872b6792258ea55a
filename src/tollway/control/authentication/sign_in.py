"""Signing in: from what a person presents to a session.

Refusals are the same whether an address is unknown, belongs to nobody with a password, or the password is wrong, and take as long: one
password is hashed in each case. Attempts are counted in the database before they are made, by account and by network address, so that
neither several processes nor requests at the same time allow more; by network address only those that fail stay counted. Links and returns
from identity providers are not counted: nobody guesses 256 random bits.
"""

import hashlib
import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec

from tollway.control.auditing import audit
from tollway.control.auditing.audit import AuditedOperation
from tollway.control.identity import credentials, invites, sessions
from tollway.control.identity.credentials import Account, FoundLink
from tollway.control.identity.sessions import Begun, LiveSession
from tollway.control.plane import ControlPlane
from tollway.domain import ids
from tollway.domain.audit import Actor, ActorKind, Target
from tollway.domain.faults import SIGN_IN_REFUSED, SIGN_INS_EXCEEDED, Fault
from tollway.domain.keys import RANDOM_BYTES, Operator
from tollway.domain.sessions import SignInMethod
from tollway.storage import operators as stored_operators
from tollway.storage import people as stored_people
from tollway.storage import sessions as stored_sessions
from tollway.storage import sign_in as storage
from tollway.storage.database import TenantTx
from tollway.storage.sessions import ProviderProof
from tollway.worker_threads import run_in_thread

ACCOUNT_ATTEMPTS_MAX = 10
"""Passwords that can be tried for one address of a person in a window: far above a person's slips."""

CODE_ATTEMPTS_MAX = 5
"""Codes that can be tried for one person in a window: with three valid ones of a million, an attacker who knows the password succeeds in a
year of trying with a probability of 0.4; each window is in the audit trail."""

ADDRESS_ATTEMPTS_MAX = 60
"""Passwords and codes that can fail from one network address in a window, and logins of the command line that can begin there: an office
behind one address has more than one person."""

WINDOW_US = 900 * 1_000_000
"""Window in which attempts are counted."""

STEP_SECONDS = 300
"""Time between the password and the code of an authenticator app."""

ACCOUNTS_MAX = 10
"""People with one address in different organizations that are looked at."""

_STEP = "sign_in_step"


@dataclass(frozen=True, slots=True)
class Visitor:
    """The one who presents something. `address`: of the peer. `agent`: what their browser says that it is. `before`, `operator_before`: the
    session that the browser has already, which ends with a new sign-in."""

    address: str
    agent: str
    request_id: str
    before: LiveSession | None = None
    operator_before: Operator | None = None


@dataclass(frozen=True, slots=True)
class CodeNeeded:
    """The password was right, and a code is asked for. `step`: what the next request presents, sealed."""

    step: str = field(repr=False)


class _Step(msgspec.Struct, frozen=True):
    """State between the two steps of a sign-in. `tried`: what the password was counted at, and `proven` the digest of its hash; empty after
    a link."""

    organization_id: str
    user_id: str
    method: str
    ends_at: int
    link: bytes | None = None
    tried: str = ""
    proven: bytes | None = None


async def sign_in_by_password(
    plane: ControlPlane, email: str, password: str, organization_id: str | None, visitor: Visitor
) -> Begun | CodeNeeded:
    """Sign a person in by address (lower case) and password, in the organization that they name or the only one that they are in. Raises
    SIGN_IN_REFUSED, SIGN_INS_EXCEEDED, OVERLOADED."""
    tried = _name_account(email, organization_id)
    await run_in_thread(_count, plane, visitor, tried, ACCOUNT_ATTEMPTS_MAX)
    account, stored = await run_in_thread(_find_account, plane, email, organization_id)
    is_right = await plane.passwords.verify(stored.password_hash, password)
    if account is None or not is_right:
        raise Refused(SignInMethod.PASSWORD, account)
    proven = _digest_password(stored.password_hash)
    await run_in_thread(take_back_address, plane, visitor.address)
    if stored.code_secret is not None:
        return CodeNeeded(_seal(plane, account, SignInMethod.PASSWORD_AND_CODE, tried=tried, proven=proven))
    return await run_in_thread(begin, plane, account, SignInMethod.PASSWORD, visitor, tried, proven=proven)


class Refused(Fault):
    """A refused sign-in. `account`: whose it would have been, for the audit trail; None if there is none."""

    def __init__(self, method: SignInMethod, account: Account | None) -> None:
        super().__init__(SIGN_IN_REFUSED)
        self.method = method
        self.account = account


def sign_in_by_code(plane: ControlPlane, sealed: str, code: str, visitor: Visitor) -> Begun:
    """Sign in whoever presented a password or a link before, by the code of their authenticator app or a recovery code. Raises
    SIGN_IN_REFUSED, SIGN_INS_EXCEEDED."""
    step = _unseal(plane, sealed)
    if step is None or step.ends_at <= plane.now():
        raise Refused(SignInMethod.PASSWORD_AND_CODE, None)
    count_code(plane, visitor, step.user_id)
    vault = plane.open_sign_in_vault(step.organization_id)
    with plane.database.tenant(step.organization_id) as tx:
        user = stored_people.find_user(tx, step.user_id)
        is_right = user is not None and credentials.use_code(tx, vault, step.user_id, code, plane.now())
    if user is None:
        raise Refused(SignInMethod.PASSWORD_AND_CODE, None)
    account = Account(step.organization_id, user)
    if not is_right:
        raise Refused(SignInMethod.PASSWORD_AND_CODE, account)
    take_back_address(plane, visitor.address)
    tried = (f"code\0{user.id}", step.tried) if step.tried else (f"code\0{user.id}",)
    return begin(plane, account, SignInMethod(step.method), visitor, *tried, link=step.link, proven=step.proven)


def find_link(plane: ControlPlane, token: str) -> FoundLink:
    """Return the link of a token. Raises SIGN_IN_REFUSED."""
    with plane.database.platform(write=False) as tx:
        found = credentials.find_link(tx, plane.peppers, token, plane.now())
    if found is None:
        raise Refused(SignInMethod.LINK, None)
    return found


def sign_in_by_link(plane: ControlPlane, token: str, visitor: Visitor) -> Begun | CodeNeeded:
    """Sign in whoever presents the token of a one-time link; a code of their authenticator app is asked for all the same. Raises
    SIGN_IN_REFUSED."""
    found = find_link(plane, token)
    account = found.account
    with plane.database.tenant(account.organization_id, write=False) as tx:
        has_app = credentials.find_credentials(tx, account.user.id).code_secret is not None
    if has_app:
        return CodeNeeded(_seal(plane, account, SignInMethod.LINK, link=found.digest))
    return begin(plane, account, SignInMethod.LINK, visitor, link=found.digest)


def join_by_invite(
    plane: ControlPlane, organization_id: str, invite_id: str, name: str, password_hash: str | None, visitor: Visitor
) -> Begun:
    """Accept an invitation, with a password or without one, and begin a session. Raises as `invites.add_invited`."""
    now = plane.now()
    actor = Actor(kind=ActorKind.INVITE, id=invite_id, address=visitor.address, request_id=visitor.request_id)
    with _recorded(plane, "invite.accepted", actor, organization_id) as tx:
        member = invites.add_invited(tx, invite_id, name=name, user_id=plane.new_id(ids.USER), sizes=plane.quotas, now=now)
        if password_hash is not None:
            credentials.set_password(tx, member.user.id, password_hash, before=None, now=now)
    return begin(plane, Account(organization_id, member.user), SignInMethod.INVITE, visitor)


# ---- Steps --------------------------------------------------------------------------------------------------------------


def _find_account(plane: ControlPlane, email: str, organization_id: str | None) -> tuple[Account | None, credentials.Credentials]:
    """Return the only person with an address who has a password, with their credentials."""
    with plane.database.platform(write=False) as tx:
        accounts = storage.find_accounts(tx, email, organization_id, ACCOUNTS_MAX)
    with_password = []
    for account in accounts:
        with plane.database.tenant(account.organization_id, write=False) as tenant:
            found = credentials.find_credentials(tenant, account.user.id)
        if found.password_hash is not None:
            with_password.append((account, found))
    return with_password[0] if len(with_password) == 1 else (None, credentials.Credentials())


def begin(
    plane: ControlPlane,
    account: Account,
    method: SignInMethod,
    visitor: Visitor,
    *counted: str,
    link: bytes | None = None,
    proven: bytes | None = None,
    session_id: str | None = None,
    proof: ProviderProof | None = None,
) -> Begun:
    """Begin a session, use up the link of the sign-in, end the session that the browser had, and forget the attempts before.
    `proven`: digest of the password hash that was verified. `session_id`: id of the new session, if it was drawn before. `proof`: of a
    sign-in with an identity provider. Raises SIGN_IN_REFUSED if the link was used, or the password was changed or
    reset, meanwhile."""
    now, user = plane.now(), account.user
    actor = Actor(kind=ActorKind.USER, id=user.id, address=visitor.address, request_id=visitor.request_id)
    with _recorded(plane, "login.succeeded", actor, account.organization_id) as tx:
        if link is not None and not credentials.use_link(tx, link, now):
            raise Refused(SignInMethod.LINK, account)
        if proven is not None and _digest_password(credentials.lock_credentials(tx, user.id).password_hash) != proven:
            raise Refused(method, account)
        begun = sessions.begin_session(
            tx,
            user.id,
            id=session_id or plane.new_id(ids.SESSION),
            method=method,
            address=visitor.address,
            agent=visitor.agent,
            proof=proof,
            random_bytes=plane.random_bytes(RANDOM_BYTES),
            pepper=plane.pepper,
            now=now,
        )
        for each in counted:
            storage.forget_attempts(tx, _digest(each))
    end_session_before(plane, visitor)
    plane.sign_ins.count(method, "succeeded")
    return begun


def end_session_before(plane: ControlPlane, visitor: Visitor) -> None:
    """End the session that a browser had before a new sign-in."""
    if visitor.before is not None:
        end_own_session(plane, visitor.before)
    if visitor.operator_before is not None and visitor.operator_before.live is not None:
        with plane.database.platform() as tx:
            stored_operators.delete_session(tx, visitor.operator_before.key_id, visitor.operator_before.live.id)


def end_own_session(plane: ControlPlane, live: LiveSession) -> ProviderProof | None:
    """End a session because its person signs out, or in again. Return what it kept of the sign-in with an identity provider."""
    with plane.database.tenant(live.organization_id) as tx:
        proof = stored_sessions.find_proof(tx, live.session.id)
        stored_sessions.delete_session(tx, live.user.id, live.session.id)
    return proof


def record_refusal(plane: ControlPlane, refused: Refused, visitor: Visitor) -> None:
    """Record a refused sign-in in the log, in the metrics and, where it concerns somebody, in the audit trail of their organization. Call
    it after the answer, whose time would show whether somebody has the address."""
    plane.sign_ins.count(refused.method, "refused")
    account = refused.account
    plane.log(
        {
            "event": "sign_in_refused",
            "request_id": visitor.request_id,
            "method": refused.method,
            "address": visitor.address,
            "organization_id": None if account is None else account.organization_id,
            "user_id": None if account is None else account.user.id,
        }
    )
    if account is not None:
        actor = Actor(kind=ActorKind.USER, id=account.user.id, address=visitor.address, request_id=visitor.request_id)
        operation = AuditedOperation(event="login.failed", operation="sign_in", actor=actor, target=Target(kind="user", id=account.user.id))
        audit.record_read(plane.database, account.organization_id, operation, new_id=plane.new_id, now=plane.now())


@contextmanager
def _recorded(plane: ControlPlane, event: str, actor: Actor, organization_id: str) -> Iterator[TenantTx]:
    recorder = audit.record_in(AuditedOperation(event=event, operation="sign_in", actor=actor), new_id=plane.new_id, now=plane.now())
    with plane.database.recording(recorder).tenant(organization_id) as tx:
        yield tx


def count_password(plane: ControlPlane, visitor: Visitor, account: Account) -> None:
    """Count an attempt at the password of a person whose organization is known. Raises SIGN_INS_EXCEEDED."""
    _count(plane, visitor, _name_account(account.user.email, account.organization_id), ACCOUNT_ATTEMPTS_MAX)


def count_code(plane: ControlPlane, visitor: Visitor, user_id: str) -> None:
    """Count an attempt at a code of a person. Raises SIGN_INS_EXCEEDED."""
    _count(plane, visitor, f"code\0{user_id}", CODE_ATTEMPTS_MAX)


def count_device_code(plane: ControlPlane, user_id: str) -> None:
    """Count an attempt of a person at the code of a device. Raises SIGN_INS_EXCEEDED."""
    _count_one(plane, f"device\0{user_id}", CODE_ATTEMPTS_MAX)


def count_operator_key(plane: ControlPlane, address: str) -> None:
    """Count an attempt at a key of operators from a network address. Raises SIGN_INS_EXCEEDED."""
    _count_one(plane, _name_address(address), ADDRESS_ATTEMPTS_MAX)


def take_back_device_code(plane: ControlPlane, user_id: str) -> None:
    """Do not count the last attempt of a person, whose code was right. The wrong ones before it stay counted: whoever begins a login has a
    right code at hand."""
    with plane.database.platform() as tx:
        storage.take_back_attempt(tx, _digest(f"device\0{user_id}"))


def count_device(plane: ControlPlane, address: str) -> None:
    """Count a login of the command line that begins or is looked for, from a network address; attempts at passwords are not among them.
    Raises SIGN_INS_EXCEEDED."""
    _count_one(plane, f"devices\0{_network_of(address)}", ADDRESS_ATTEMPTS_MAX)


def take_back_address(plane: ControlPlane, address: str) -> None:
    """Take back one attempt from a network address, which was right. Only one: whoever has an account does not get others for it."""
    with plane.database.platform() as tx:
        storage.take_back_attempt(tx, _digest(_name_address(address)))


def _count(plane: ControlPlane, visitor: Visitor, counted: str, attempts_max: int) -> None:
    """Count an attempt by address and by what it is made at. Raises SIGN_INS_EXCEEDED."""
    _count_one(plane, _name_address(visitor.address), ADDRESS_ATTEMPTS_MAX)
    _count_one(plane, counted, attempts_max)


def _count_one(plane: ControlPlane, counted: str, attempts_max: int) -> None:
    with plane.database.platform() as tx:
        may_try = storage.count_attempt(tx, _digest(counted), attempts_max, now=plane.now(), window_us=WINDOW_US)
    if not may_try:
        plane.sign_ins.count(SignInMethod.PASSWORD, "throttled")
        raise Fault(SIGN_INS_EXCEEDED, retry_after_seconds=WINDOW_US / 1e6)


def _name_account(email: str, organization_id: str | None) -> str:
    """Return what attempts at a password are counted at. The organization that is named is part of it: people of another one with the same
    address must not make the attempts forgotten."""
    return f"account\0{organization_id or ''}\0{email}"


def _name_address(address: str) -> str:
    return f"address\0{_network_of(address)}"


def _network_of(address: str) -> str:
    """Return the address, or of an IPv6 address the network of 64 bits that one customer has."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def _digest(counted: str) -> bytes:
    return hashlib.sha256(counted.encode()).digest()


def _digest_password(password_hash: str | None) -> bytes | None:
    return None if password_hash is None else _digest(password_hash)


def _seal(
    plane: ControlPlane,
    account: Account,
    method: SignInMethod,
    *,
    link: bytes | None = None,
    tried: str = "",
    proven: bytes | None = None,
) -> str:
    ends_at = plane.now() + STEP_SECONDS * 1_000_000
    step = _Step(account.organization_id, account.user.id, method, ends_at, link, tried, proven)
    return plane.vault.seal_bytes(msgspec.json.encode(step), context=_STEP).hex()


def _unseal(plane: ControlPlane, sealed: str) -> _Step | None:
    try:
        return msgspec.json.decode(plane.vault.unseal_bytes(bytes.fromhex(sealed), context=_STEP), type=_Step)
    except ValueError:
        return None
