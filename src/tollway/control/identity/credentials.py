"""Credentials of people: passwords, authenticator apps with recovery codes, and links that sign a person in once.

Whoever makes a link for somebody else, or resets how they sign in, must hold each of their permissions: they could act as them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tollway.control.identity import people, roles
from tollway.control.identity.keys import Pepper
from tollway.control.languages.texts import mark
from tollway.domain import keys, one_time_codes, passwords
from tollway.domain.faults import PARAMETER_INVALID, STATE_CONFLICT, Fault
from tollway.domain.roles import Grant
from tollway.storage import roles as stored_roles
from tollway.storage import sessions as stored_sessions
from tollway.storage import sign_in as storage
from tollway.storage.database import PlatformTx, TenantTx
from tollway.storage.sign_in import Account as Account  # of `find_link`, for sign_in
from tollway.storage.sign_in import Credentials as Credentials
from tollway.storage.vault import LocalVault

LINK_SECONDS = 86_400
"""Time in which a link can be used: it is sent by whatever way people write to each other."""


@dataclass(frozen=True, slots=True)
class ShownLink:
    """The token of a link at the one moment when it is known. `expires_at`: UTC microseconds."""

    token: str = field(repr=False)
    expires_at: int


def create_link(
    tx: TenantTx, user_id: str, *, own: Sequence[Grant], created_by: str, random_bytes: bytes, pepper: Pepper, now: int
) -> ShownLink:
    """Create a link that signs a person in once. Raises RESOURCE_UNKNOWN, GRANT_EXCEEDS_GRANTOR."""
    people.get_user(tx, user_id)
    roles.require_covered(own, stored_roles.list_user_grants(tx, tx.organization_id, user_id))
    made = keys.new_link_token(random_bytes)
    expires_at = now + LINK_SECONDS * 1_000_000
    storage.insert_link(tx, pepper.digest(made.secret).value, user_id, created_by, expires_at)
    return ShownLink(made.secret, expires_at)


@dataclass(frozen=True, slots=True)
class FoundLink:
    """A link that can be used, and whom it signs in."""

    digest: bytes = field(repr=False)
    account: Account


def find_link(tx: PlatformTx, peppers: Mapping[int, bytes], token: str, now: int) -> FoundLink | None:
    """Return the link of a token; None if it does not exist, was used or has expired."""
    if keys.is_link_token(token):
        for pepper in peppers.values():
            digest = keys.digest(pepper, token.encode())
            account = storage.find_link(tx, digest, now)
            if account is not None:
                return FoundLink(digest, account)
    return None


def use_link(tx: TenantTx, digest: bytes, now: int) -> bool:
    """Use up a link. Return whether it could still be used."""
    return storage.use_link(tx, digest, now)


def find_credentials(tx: TenantTx, user_id: str) -> Credentials:
    """Return how a person signs in."""
    return storage.find_credentials(tx, user_id)


def lock_credentials(tx: TenantTx, user_id: str) -> Credentials:
    """As `find_credentials`; nobody else changes them before the transaction ends."""
    return storage.lock_credentials(tx, user_id)


def reset_credentials(tx: TenantTx, user_id: str, *, own: Sequence[Grant]) -> None:
    """Remove a person's password, authenticator app and recovery codes, and end their sessions. Raises RESOURCE_UNKNOWN,
    GRANT_EXCEEDS_GRANTOR."""
    people.get_user(tx, user_id)
    roles.require_covered(own, stored_roles.list_user_grants(tx, tx.organization_id, user_id))
    storage.lock_credentials(tx, user_id)  # takes turns with a sign-in that has verified the password
    storage.delete_credentials(tx, user_id)
    stored_sessions.delete_user_sessions(tx, user_id)


def require_password(password: str, email: str) -> None:
    """Raise PARAMETER_INVALID for a password that is not accepted."""
    error = passwords.find_password_error(password, email)
    if error is not None:
        raise Fault(PARAMETER_INVALID, param="password", message=error)


def set_password(tx: TenantTx, user_id: str, password_hash: str, *, before: str | None, now: int) -> None:
    """Store another password of a person. Raises STATE_CONFLICT if it is not `before` any more that is stored."""
    credentials = storage.lock_credentials(tx, user_id)
    if credentials.password_hash != before:
        raise Fault(STATE_CONFLICT, message=mark("The password was changed meanwhile."))
    storage.put_credentials(tx, user_id, replace(credentials, password_hash=password_hash, password_set_at=now))


# ---- Authenticator apps -------------------------------------------------------------------------------------------------


def add_code_secret(
    tx: TenantTx, vault: LocalVault, user_id: str, secret: bytes, code: str, random_bytes: Sequence[bytes], now: int
) -> list[str]:
    """Store the secret of a person's authenticator app, which has shown `code`, and return their recovery codes, each from RECOVERY_BYTES
    of `random_bytes`. Raises PARAMETER_INVALID for a wrong code, STATE_CONFLICT if they have an app already."""
    credentials = storage.lock_credentials(tx, user_id)
    if credentials.code_secret is not None:
        raise Fault(STATE_CONFLICT, message=mark("An authenticator app is set up already. Remove it first."))
    step = one_time_codes.find_step(secret, code, now, None)
    if step is None:
        raise Fault(PARAMETER_INVALID, param="code", message=mark("The code is not right. Check the clock of the device."))
    recovery = [passwords.make_recovery_code(each) for each in random_bytes]
    changed = replace(
        credentials,
        code_secret=vault.seal_bytes(secret, context=user_id),
        code_step=step,
        recovery_digests=tuple(map(_digest_recovery, recovery)),
    )
    storage.put_credentials(tx, user_id, changed)
    return recovery


def use_code(tx: TenantTx, vault: LocalVault, user_id: str, code: str, now: int) -> bool:
    """Return whether a person with an authenticator app presents its code or a recovery code, and use it up."""
    credentials = storage.lock_credentials(tx, user_id)
    if credentials.code_secret is None:
        return False
    compact = code.replace(" ", "").replace("-", "").lower()
    if len(compact) == one_time_codes.DIGITS:
        secret = vault.unseal_bytes(credentials.code_secret, context=user_id)
        step = one_time_codes.find_step(secret, compact, now, credentials.code_step)
        if step is None:
            return False
        storage.put_credentials(tx, user_id, replace(credentials, code_step=step))
        return True
    digest = _digest_recovery(compact)
    if digest not in credentials.recovery_digests:
        return False
    left = tuple(each for each in credentials.recovery_digests if each != digest)
    storage.put_credentials(tx, user_id, replace(credentials, recovery_digests=left))
    return True


def remove_code_secret(tx: TenantTx, user_id: str) -> None:
    """Remove a person's authenticator app and recovery codes."""
    credentials = storage.lock_credentials(tx, user_id)
    storage.put_credentials(tx, user_id, replace(credentials, code_secret=None, code_step=None, recovery_digests=()))


def _digest_recovery(code: str) -> str:
    return hashlib.sha256(b"recovery\0" + code.replace("-", "").encode()).hexdigest()
