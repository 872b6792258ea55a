"""Chains of the audit trail as a whole: signed checkpoints, verification, and the removal of what is older than its retention.

Theory of operation. A chain alone shows that no record was changed, removed from its middle or inserted. Whoever can write to the database
could still remove records from its end, or write the whole chain anew. A checkpoint prevents both: it is signed with an Ed25519 key (RFC
8032) that is not in the database, and is written to the log, which leaves the machine. Retention removes records only up to a checkpoint,
whose hash is then where the rest of the chain begins.

An erasure erases values in records and leaves their hashes, which the records after them cover. It appends a record with the hash of what
is left of each, so that this cannot be changed either.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tollway.domain.audit import GENESIS, AuditRecord, Checkpoint, RowChange
from tollway.storage import audit as storage
from tollway.storage.audit import ChainEnd, SignedCheckpoint
from tollway.storage.database import Database, PlatformTx

KEY_BYTES = 32
"""Length of the private and of the public key."""

DAY_US = 86_400 * 1_000_000

ERASURE_EVENT = "erasure.carried_out"
"""Event of the records that state what erasures left of others."""

ERASED_RECORDS = "records"
"""Field of such a record: by sequence number the hash, in hexadecimal, of what is left."""


def find_public_key(key: bytes) -> bytes:
    """Return the public key that belongs to a private one (KEY_BYTES each)."""
    return Ed25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()


def sign_checkpoints(database: Database, key: bytes, now: int) -> Iterator[Checkpoint]:
    """Sign the end of each chain that has grown since its latest checkpoint, and yield what was signed. `key`: private, KEY_BYTES."""
    signer = Ed25519PrivateKey.from_private_bytes(key)
    public_key = signer.public_key().public_bytes_raw()
    with database.platform(write=False) as tx:
        heads, latest = storage.list_heads(tx), storage.list_latest_checkpoints(tx)
    for chain, end in heads.items():
        if end.sequence <= latest.get(chain, 0):
            continue
        checkpoint = Checkpoint(chain=chain, sequence=end.sequence, hash=end.hash, signed_at=now)
        with database.platform() as tx:
            if storage.list_latest_checkpoints(tx).get(chain, 0) >= end.sequence:
                continue  # another process signed meanwhile
            storage.put_checkpoint(tx, SignedCheckpoint(checkpoint, public_key, signer.sign(checkpoint.signed_bytes())))
        yield checkpoint


def remove_old(database: Database, retention_days: int, now: int) -> Iterator[tuple[str, int]]:
    """Remove the records that are older than `retention_days` up to a checkpoint, in each chain; yield the chain and how many they were."""
    with database.platform(write=False) as tx:
        chains = list(storage.list_heads(tx))
    for chain in chains:
        with database.platform() as tx:
            end = storage.lock_chain(tx, chain)
            sequence = storage.find_cut_before(tx, chain, now - retention_days * DAY_US)
            if sequence is None or sequence > end.sequence:
                continue
            removed = storage.cut(tx, chain, sequence, now)
        yield chain, removed


@dataclass(frozen=True, slots=True)
class Finding:
    """A place where a chain is not as it was written. `sequence`: of the record."""

    chain: str
    sequence: int
    text: str


@dataclass(slots=True)
class ChainsReport:
    """The result of a verification. `removed`: records that retention removed. `erased`: records of which an erasure erased something.
    `unsigned`: records after the latest checkpoint of their chain. `keys`: public keys of the checkpoints, in hexadecimal."""

    chains: int = 0
    records: int = 0
    checkpoints: int = 0
    removed: int = 0
    erased: int = 0
    unsigned: int = 0
    keys: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)


def verify(tx: PlatformTx, trusted_keys: Sequence[bytes]) -> ChainsReport:
    """Verify every chain. `trusted_keys`: public keys that may have signed checkpoints; empty accepts any key, and then nothing shows that
    a chain was not written anew."""
    tx.lift_deadline()
    report = ChainsReport()
    heads = storage.list_heads(tx)
    for chain in storage.list_chains(tx):
        report.chains += 1
        report.findings += _verify_chain(tx, chain, heads.get(chain), trusted_keys, report)
    return report


def _verify_chain(
    tx: PlatformTx, chain: str, head: ChainEnd | None, trusted_keys: Sequence[bytes], report: ChainsReport
) -> Iterator[Finding]:
    signed = {each.checkpoint.sequence: each for each in storage.list_checkpoints(tx, chain)}
    report.checkpoints += len(signed)
    for sequence, each in signed.items():
        report.keys.add(each.public_key.hex())
        if trusted_keys and each.public_key not in trusted_keys:
            yield Finding(chain, sequence, "the checkpoint was signed with another key")
        elif not _is_signed(each):
            yield Finding(chain, sequence, "the signature of the checkpoint is not valid")
    cut = storage.find_cut(tx, chain)
    report.removed += cut
    start = signed.get(cut)
    end = ChainEnd(cut, GENESIS if start is None else start.checkpoint.hash)
    if cut and start is None:
        yield Finding(chain, cut, "the chain was cut where there is no checkpoint")
    elif storage.count_records(tx, chain, until=cut):
        yield Finding(chain, cut, "records are there that retention removed")
    left: dict[int, tuple[str, str]] = {}  # by number: the erasure that must state the hash of what is left of a record, and that hash
    for record in storage.iterate_records(tx, chain, cut):
        report.records += 1
        if record.sequence != end.sequence + 1:
            yield Finding(chain, end.sequence + 1, f"records {end.sequence + 1} to {record.sequence - 1} are missing")
        elif record.erasure_id is not None:
            report.erased += 1
            left[record.sequence] = (record.erasure_id, record.compute_hash(end.hash).hex())
        elif record.compute_hash(end.hash) != record.hash:
            yield Finding(chain, record.sequence, "the record was changed, or moved")
        elif record.event == ERASURE_EVENT:
            for sequence, said in read_erased(record).items():
                if left.get(sequence) == (record.id, said):
                    del left[sequence]
        known = signed.get(record.sequence)
        if known is not None and known.checkpoint.hash != record.hash:
            yield Finding(chain, record.sequence, "the record is not the one that was signed")
        end = ChainEnd(record.sequence, record.hash)
    for sequence in left:
        yield Finding(chain, sequence, "the record was changed, and no erasure says so")
    if head is None or head != end:
        yield Finding(chain, end.sequence, "the chain does not end where its head says")
    latest = max(signed, default=0)
    if latest > end.sequence:
        yield Finding(chain, end.sequence + 1, f"records {end.sequence + 1} to {latest} are missing, which were signed")
    report.unsigned += max(end.sequence - latest, 0)


def read_erased(record: AuditRecord) -> dict[int, str]:
    """Return the hash, in hexadecimal, of what an erasure left of each record, by the sequence numbers that its own record states."""
    try:
        changes = msgspec.json.decode(record.changes, type=list[RowChange])
        return {
            int(number): str(said) for change in changes for number, said in msgspec.convert(change.after[ERASED_RECORDS], dict).items()
        }
    except (ValueError, KeyError):
        return {}


def _is_signed(signed: SignedCheckpoint) -> bool:
    try:
        key = Ed25519PublicKey.from_public_bytes(signed.public_key)
        key.verify(signed.signature, signed.checkpoint.signed_bytes())
    except (InvalidSignature, ValueError):
        return False
    return True
