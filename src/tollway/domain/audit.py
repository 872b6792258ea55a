"""Records of the audit trail: their form, the chain of their hashes, and the checkpoints that are signed.

Each organization has a chain, and the platform has one. The hash of a record covers every field of it and the hash of the record before, so
that a record that was changed, removed, inserted or moved breaks the chain at its place. A checkpoint is a sequence number with its hash,
signed with a key that is not in the database: it shows that records were not removed from the end, or the whole chain written anew.
"""

import hashlib
from collections.abc import Callable, Collection
from enum import StrEnum

import msgspec

from tollway.domain import ids

PLATFORM_CHAIN = "platform"
"""Name of the chain of operations that concern no single organization. The other chains have the ids of organizations as names."""

GENESIS = bytes(32)
"""The hash before the first record of a chain."""

RECORD_PREFIX = b"\0"
CHECKPOINT_PREFIX = b"tollway audit checkpoint 1\0"
"""First bytes of what is hashed and of what is signed, so that neither can be taken for the other (as RFC 6962 section 2.1 separates leaves
from nodes)."""


class ActorKind(StrEnum):
    """Kinds of actors."""

    OPERATOR = "operator"
    ADMIN_KEY = "admin_key"
    USER = "user"
    """A person with a session."""
    PROVIDER = "provider"
    """An identity provider with which a person signs in, by the id of its connection."""
    SCANNER = "scanner"
    """A service that reports leaked secrets, by its name."""
    CONNECTOR = "connector"
    """A payment service that reports payments, by its name."""
    JOIN_TOKEN = "join_token"
    INVITE = "invite"
    """The token of an invitation, which its person accepts."""
    JOB = "job"
    """A periodic job of the control plane, or its start."""
    COMMAND = "command"
    """A command that works on the database itself."""


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """Someone or something that acted. `kind`: an ActorKind. `id`: of the credential, or the name of the job or command. `address`: the
    peer's, empty for a job or a command. `request_id`: of the request to the REST API, empty for a job or a command."""

    kind: str
    id: str
    address: str = ""
    request_id: str = ""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The resource that an operation concerns: its kind, such as `api_key`, and its id; both empty where there is none. `project_id`: the
    project that it belongs to, empty for none."""

    kind: str = ""
    id: str = ""
    project_id: str = ""


class RowChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Change of one resource: the fields that changed, before and after. `before` is empty for a resource that was created. A secret
    that changed is shown as HIDDEN."""

    kind: str
    id: str
    before: dict[str, object] = {}
    after: dict[str, object] = {}


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One record. `sequence`: its place in the chain, 1 or more, without gaps. `recorded_at`: UTC microseconds. `event`: the kind of event,
    such as `api_key.created`. `operation`: the operation of the REST API, the job or the command. `changes`: JSON of `RowChange`
    objects. `omitted`: rows that changed and are not in it, because it would be too long. `hash`: 32 bytes, of the record as it was
    written. `salt`: random bytes under the hash; empty in records before they were introduced, and in those of which something was erased.
    `erasure_id`: the record of the erasure that states the hash of what is left of this one; None for a whole record."""

    chain: str
    sequence: int
    id: str
    recorded_at: int
    event: str
    operation: str
    actor: Actor
    target: Target
    changes: str
    omitted: int
    hash: bytes
    salt: bytes = b""
    erasure_id: str | None = None

    def compute_hash(self, previous: bytes) -> bytes:
        """Return the hash that the record must have after one with the hash `previous`; of one of which something was erased the hash that
        the erasure states."""
        covered = (
            self.chain, self.sequence, self.id, self.recorded_at, self.event, self.operation, self.actor, self.target, self.changes,
            self.omitted,
        )  # fmt: skip
        return hashlib.sha256(RECORD_PREFIX + previous + msgspec.json.encode(covered) + self.salt).digest()

    def erase(self, wanted: Callable[[RowChange], Collection[str]], erasure_id: str, *, hides_address: bool) -> "AuditRecord":
        """Return the record without the values of the fields that `wanted` names of each change, and without its salt. A subject in the id
        of a change of which something is wanted, and so in the target, is erased too. `hides_address`: without the address of its actor
        too. `erasure_id`: the record that will state its hash."""
        changes = msgspec.json.decode(self.changes, type=list[RowChange])
        kept = [_erase_fields(change, wanted(change)) for change in changes]
        renamed = {(change.kind, change.id): left.id for change, left in zip(changes, kept, strict=True)}
        target_id = renamed.get((self.target.kind, self.target.id), self.target.id)
        return msgspec.structs.replace(
            self,
            actor=msgspec.structs.replace(self.actor, address="") if hides_address else self.actor,
            target=msgspec.structs.replace(self.target, id=target_id),
            changes=msgspec.json.encode(kept).decode(),
            salt=b"",
            erasure_id=erasure_id,
        )


def _erase_fields(change: RowChange, names: Collection[str]) -> RowChange:
    before, after = (
        {name: ERASED if name in names else value for name, value in values.items()} for values in (change.before, change.after)
    )
    id = _erase_subject(change.id) if names and change.kind == IDENTITY_KIND else change.id
    return RowChange(kind=change.kind, id=id, before=before, after=after)


def _erase_subject(id: str) -> str:
    """Return the id of an identity without the subject at its end."""
    parts = id.split(":", 2)
    return id if len(parts) < 3 or ids.is_id(ids.USER, parts[2]) else ":".join([*parts[:2], ERASED])


IDENTITY_KIND = "user_identity"
"""Kind of the resource that says who a subject at an identity provider is. Its id ends with the id of the person; in older records it ended
with the subject."""


SALT_BYTES = 16
"""Length of a salt."""

ERASED = "[erased]"
"""Text in place of a value that was erased."""

HIDDEN = "[hidden]"
"""Text in place of a secret, a digest or another value of raw bytes."""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The statement that the record `sequence` of `chain` had `hash` at `signed_at` (UTC microseconds)."""

    chain: str
    sequence: int
    hash: bytes
    signed_at: int

    def signed_bytes(self) -> bytes:
        """Return the bytes that are signed."""
        return CHECKPOINT_PREFIX + msgspec.json.encode((self.chain, self.sequence, self.hash.hex(), self.signed_at))
