"""Keys that encrypt the data keys of organizations (KEK): the port, and the one whose key is a file of this process.

Theory of operation. What belongs to an organization and must not lie in the database in the clear is sealed with a data key of the
organization's own (`control.secrets.data_keys`). The data key lies in the database as well, wrapped under a key that never does: one in a
file, in the transit engine of HashiCorp Vault (`control.secrets.vault_transit`), or in AWS KMS (`control.secrets.aws_kms`). Wrapping binds
the data key to the organization's id, so that it cannot be moved to another one.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from tollway.storage.vault import LocalVault


class KeyUnavailable(Exception):
    """A key that wraps data keys cannot be used: it is away, refuses, or did not make what it was given. The message holds no secret."""


class KeyUnreachable(KeyUnavailable):
    """The service of a key did not answer in time, or not at all: whatever it is asked next would wait as long."""


class KeyEncryptionKey(Protocol):
    """A key that wraps data keys. Both calls may take seconds and raise KeyUnavailable; call them from a worker thread, outside of
    transactions."""

    @property
    def name(self) -> str:
        """The name that distinguishes it from other keys, and from an earlier one of the same kind; at most 512 characters."""

    def wrap(self, key: bytes, context: str) -> bytes:
        """Encrypt a data key for `context`, which is authenticated with it."""

    def unwrap(self, wrapped: bytes, context: str) -> bytes:
        """Return the data key that was wrapped for `context`."""


class FileKey:
    """A key in the memory of this process, read from a file: AES-256-GCM."""

    def __init__(self, key: bytes) -> None:
        """`key`: 32 secret random bytes. Raises ValueError for any other length or an obviously empty key."""
        self._vault = LocalVault(key)
        self._name = f"file:{hashlib.sha256(b'tollway key encryption' + key).hexdigest()[:16]}"

    @property
    def name(self) -> str:
        """`file:` and the first bytes of a digest of the key."""
        return self._name

    def wrap(self, key: bytes, context: str) -> bytes:
        """Encrypt a data key for `context`."""
        return self._vault.seal_bytes(key, context=context)

    def unwrap(self, wrapped: bytes, context: str) -> bytes:
        """Return the data key that was wrapped for `context`. Raises KeyUnavailable."""
        try:
            return self._vault.unseal_bytes(wrapped, context=context)
        except ValueError as error:
            raise KeyUnavailable(f"{self._name}: {error}") from None


def derive_key(vault_key: bytes) -> FileKey:
    """Return the key of an installation that has no other: derived one way from its vault key, which lies apart from the database."""
    return FileKey(hmac.digest(vault_key, b"tollway key encryption", "sha256"))


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys that can unwrap data keys, by name, and the one that wraps new ones."""

    current: KeyEncryptionKey
    known: Mapping[str, KeyEncryptionKey]

    @classmethod
    def of(cls, current: KeyEncryptionKey, others: Iterable[KeyEncryptionKey] = ()) -> "KeyRing":
        """Return the ring of `current` and the keys that were current before."""
        return cls(current, {each.name: each for each in (*others, current)})

    def unwrap(self, name: str, wrapped: bytes, context: str) -> bytes:
        """Return the data key that the key `name` wrapped. Raises KeyUnavailable."""
        key = self.known.get(name)
        if key is None:
            raise KeyUnavailable(f"{name} is not among the keys of this process")
        return key.unwrap(wrapped, context)
