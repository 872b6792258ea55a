"""The keys with which control signs access tokens (Ed25519, RFC 8037): made, used, replaced and withdrawn.

A new key is published SIGNS_AFTER_US before it signs, so that every gateway can verify with it by then. A replaced one stays published
until the last token that it signed has ended. Private keys are sealed under the vault key in the database. Gateways hold the vault key too,
and have no access to the database.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tollway.control import publish
from tollway.domain import ids
from tollway.domain.snapshot import SigningKeyEntry
from tollway.domain.tokens import LIFETIME_SECONDS
from tollway.storage import tokens as storage
from tollway.storage.database import Database, PlatformTx
from tollway.storage.tokens import SigningKey
from tollway.storage.vault import LocalVault

ROTATION_US = 30 * 86_400 * 1_000_000
"""Time after which a signing key is replaced."""

SIGNS_AFTER_US = 300 * 1_000_000
"""Time between the publication of a key and its first use, unless there is no other: gateways learn of it within a second, and one that
cannot reach control meanwhile has this long."""

KEPT_US = 2 * LIFETIME_SECONDS * 1_000_000
"""Time for which a replaced key stays published after the next one began to sign."""


@dataclass(frozen=True, slots=True)
class Signer:
    """A key that signs now."""

    key_id: str
    sign: Callable[[bytes], bytes]


def maintain(tx: PlatformTx, vault: LocalVault, issuer: str, *, new_id: Callable[[str], str], random_bytes: bytes, now: int) -> int | None:
    """Make a key where none of this issuer is usable and young enough, and withdraw those that are not needed any more. Return the version
    of the snapshot that says so; None if nothing changed. `random_bytes`: 32."""
    publish.lock(tx)
    stored = storage.list_signing_keys(tx)
    changed = []
    newest = next((key for key in stored if _find_private(vault, key, issuer) is not None), None)
    if newest is None or now - newest.created_at >= ROTATION_US:
        made = _make(vault, issuer, new_id(ids.SIGNING_KEY), random_bytes, now)
        storage.insert_signing_key(tx, made)
        changed.append(made.id)
    for later, key in pairwise(stored):
        if now - later.created_at >= SIGNS_AFTER_US + KEPT_US:
            storage.delete_signing_key(tx, key.id)
            changed.append(key.id)
    return publish.publish(tx, SigningKeyEntry, changed, now) if changed else None


def find_signer(database: Database, vault: LocalVault, issuer: str, now: int) -> Signer | None:
    """Return the key that signs at `now`: the latest that has been published long enough, or the oldest if none has; None without any."""
    with database.platform(write=False) as tx:
        stored = storage.list_signing_keys(tx)
    usable = [(key, private) for key in stored if (private := _find_private(vault, key, issuer)) is not None]
    settled = [(key, private) for key, private in usable if now - key.created_at >= SIGNS_AFTER_US]
    key, private = settled[0] if settled else usable[-1] if usable else (None, None)
    return None if key is None or private is None else Signer(key.id, private.sign)


def list_public_keys(tx: PlatformTx) -> Sequence[SigningKey]:
    """Return the keys that may have signed a token that is valid, the latest first."""
    return storage.list_signing_keys(tx)


def _make(vault: LocalVault, issuer: str, id: str, random_bytes: bytes, now: int) -> SigningKey:
    private = Ed25519PrivateKey.from_private_bytes(random_bytes)
    sealed = vault.seal_bytes(random_bytes, context=id)
    return SigningKey(id, issuer, private.public_key().public_bytes_raw(), sealed, now)


def _find_private(vault: LocalVault, key: SigningKey, issuer: str) -> Ed25519PrivateKey | None:
    """Return the private key of a stored key of this issuer; None where it was sealed under another vault key, or for another issuer."""
    if key.issuer != issuer:
        return None
    try:
        return Ed25519PrivateKey.from_private_bytes(vault.unseal_bytes(key.private_key, context=key.id))
    except ValueError:
        return None
