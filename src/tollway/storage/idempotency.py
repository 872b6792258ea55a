"""Idempotency keys of requests that were carried out, and their answers."""

from dataclasses import dataclass

import sqlalchemy as sa

from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.schema_idempotency import idempotency_keys


@dataclass(frozen=True, slots=True)
class KeptRequest:
    """A request that was carried out. `status`, `answer` (sealed): None if its answer was not stored."""

    body_digest: bytes
    status: int | None
    answer: bytes | None


def find_request(tx: PlatformTx, digest: bytes, now: int) -> KeptRequest | None:
    """Return the request whose key has this digest, unless it has expired at `now` (UTC microseconds)."""
    key = idempotency_keys.c
    query = sa.select(key.body_digest, key.status, key.answer).where(key.digest == digest, key.expires_at > now)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else KeptRequest(bytes(row.body_digest), row.status, None if row.answer is None else bytes(row.answer))


def claim(tx: Transaction, digest: bytes, body_digest: bytes, *, now: int, expires_at: int) -> bool:
    """Store that a request is carried out in this transaction. Return False if another one has the key; on PostgreSQL this waits for the
    end of a transaction that is about to store the same."""
    key = idempotency_keys.c
    tx.connection.execute(idempotency_keys.delete().where(key.digest == digest, key.expires_at <= now))
    values = {"digest": digest, "body_digest": body_digest, "expires_at": expires_at}
    insert = tx.insert(idempotency_keys).values(values).on_conflict_do_nothing().returning(key.digest)
    return tx.connection.execute(insert).one_or_none() is not None


def keep_answer(tx: PlatformTx, digest: bytes, status: int, answer: bytes) -> None:
    """Store the answer of a request that was carried out. Does nothing if there is none."""
    tx.connection.execute(idempotency_keys.update().where(idempotency_keys.c.digest == digest).values(status=status, answer=answer))


def remove_expired(tx: PlatformTx, now: int, count_max: int) -> int:
    """Remove at most `count_max` keys that have expired at `now`; return how many."""
    key = idempotency_keys.c
    expired = sa.select(key.digest).where(key.expires_at <= now).order_by(key.expires_at).limit(count_max)
    return tx.connection.execute(idempotency_keys.delete().where(key.digest.in_(expired))).rowcount
