"""The vault: upstream credentials and stored answers at rest, sealed with AES-256-GCM (NIST SP 800-38D) under a key that is stored with
neither.

A sealed secret is version (1 byte) + nonce (12) + length of context (2) + context + ciphertext with tag. The context says what the
secret is for (a deployment's id) and is authenticated with it, so that a sealed secret that was moved to another place is seen to
be.
"""

import copy
import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VERSION = 1
KEY_BYTES = 32
NONCE_BYTES = 12
"""Random, as GCM wants it: with 2**32 secrets under one key two nonces meet with a probability of 2**-33."""

_HEAD_BYTES = 1 + NONCE_BYTES + 2


def derive_end_user_key(vault_key: bytes) -> bytes:
    """Return the key with which the names of end users are hashed. All gateways and control derive the same one, and a rotation of the
    pepper keeps it, so that what end users have used of their limits and budgets is not forgotten. HMAC-SHA-256 over a name of its own
    reveals nothing of the vault key."""
    return hmac.digest(vault_key, b"tollway names of end users", "sha256")


class LocalVault:
    """A vault with its key in the memory of this process. Shows neither key nor secrets. `end_user_key`: `derive_end_user_key` of it."""

    def __init__(self, key: bytes) -> None:
        """`key`: KEY_BYTES (32) secret random bytes. Raises ValueError for any other length or an obviously empty key."""
        if len(key) != KEY_BYTES or len(set(key)) < 8:
            raise ValueError("the vault key must be 32 random bytes")
        self._cipher = AESGCM(key)
        self._earlier: LocalVault | None = None
        self.end_user_key = derive_end_user_key(key)
        self._organizations = hmac.new(key, b"tollway organization ", "sha256")

    def for_organization(self, organization_id: str) -> "LocalVault":
        """Return a vault with a key of the organization's own, derived from this one (HMAC-SHA256, RFC 2104): what is sealed under it
        opens for no other organization, whatever its context says."""
        derived = self._organizations.copy()
        derived.update(organization_id.encode())
        return LocalVault(derived.digest())

    def opening_also(self, earlier: "LocalVault") -> "LocalVault":
        """Return this vault as one that also opens what another one has sealed, for secrets from before it was there."""
        both = copy.copy(self)
        both._earlier = earlier
        return both

    def seal(self, secret: str, *, context: str) -> bytes:
        """Seal `secret` for `context`. Twice the same secret gives different bytes."""
        return self.seal_bytes(secret.encode(), context=context)

    def seal_bytes(self, content: bytes, *, context: str) -> bytes:
        """Seal bytes as `seal` does a text."""
        place = context.encode()
        nonce = os.urandom(NONCE_BYTES)
        head = bytes([VERSION]) + nonce + len(place).to_bytes(2, "big") + place
        return head + self._cipher.encrypt(nonce, content, head)

    def unseal(self, sealed: bytes, *, context: str | None = None) -> str:
        """The secret inside. Raises ValueError if it was altered, sealed under another key or, where `context` is given, for another."""
        return self.unseal_bytes(sealed, context=context).decode()

    def unseal_bytes(self, sealed: bytes, *, context: str | None = None) -> bytes:
        """The bytes inside what `seal_bytes` returned. Raises as `unseal` does."""
        place_end = _HEAD_BYTES + int.from_bytes(sealed[_HEAD_BYTES - 2 : _HEAD_BYTES], "big")
        if len(sealed) < _HEAD_BYTES or sealed[0] != VERSION or len(sealed) < place_end:
            raise ValueError("not a sealed secret")
        head = sealed[:place_end]
        if context is not None and head[_HEAD_BYTES:] != context.encode():
            raise ValueError("a secret that was sealed for something else")
        try:
            return self._cipher.decrypt(head[1 : 1 + NONCE_BYTES], sealed[place_end:], head)
        except InvalidTag:
            if self._earlier is not None:
                return self._earlier.unseal_bytes(sealed, context=context)
            raise ValueError("a sealed secret that was altered, or sealed under another key") from None
