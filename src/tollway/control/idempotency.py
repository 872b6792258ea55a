"""Requests with an `Idempotency-Key`: each is carried out once in 24 hours, and answered alike whenever it is sent again.

The key is stored in the transaction of the change itself, so that whatever was committed is known to be done. The answer is stored
afterwards: where a process dies in between, or the answer is too long, a request that is sent again is refused with 409 and changes
nothing. A request that was refused stores nothing, because it changed nothing.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tollway.domain.faults import IDEMPOTENCY_KEY_REUSED, IDEMPOTENCY_UNANSWERED, PARAMETER_INVALID, Fault
from tollway.storage import idempotency as storage
from tollway.storage.database import Database, Transaction
from tollway.storage.vault import LocalVault

LIFETIME_US = 24 * 3_600 * 1_000_000
"""Microseconds for which a key is known: as long as well-known APIs keep theirs, and longer than any client retries."""

ANSWER_BYTES_MAX = 65_536
"""Longest answer that is stored. That of a change is one resource, of a few KiB."""

REMOVED_MAX = 1_000
"""Expired keys that one transaction removes, so that it locks for milliseconds."""

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True, slots=True)
class IdempotentRequest:
    """A request with a key. `digest`: of sender, method, target and key; `body_digest`: of the bytes of its body."""

    digest: bytes
    body_digest: bytes


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """The answer that a request was given before: its status, and its body as JSON."""

    status: int
    body: bytes


def identify(sender: tuple[str, ...], method: str, target: str, key: str, body: bytes) -> IdempotentRequest:
    """Return what a request with a key is known by. `sender`: ids of the API key and of the organization that it acts for.

    Raises Fault invalid_value for a key that is empty, longer than 255 characters, or not of visible ASCII characters.
    """
    if _KEY.fullmatch(key) is None:
        message = "The header 'Idempotency-Key' must have 1 to 255 visible ASCII characters."
        raise Fault(PARAMETER_INVALID, param="idempotency-key", message=message)
    named = "\0".join((*sender, method, target, key))
    return IdempotentRequest(hashlib.sha256(named.encode()).digest(), hashlib.sha256(body).digest())


def find_answer(database: Database, open_vault: Callable[[], LocalVault], request: IdempotentRequest, now: int) -> KeptAnswer | None:
    """Return the answer that this request was given before; None if it was not carried out in the last 24 hours. `open_vault`: returns what
    sealed it, the vault of the organization or of the platform.

    Raises Fault idempotency_key_reused if the key came with another body, idempotency_unanswered if the answer is not stored.
    """
    with database.platform(write=False) as tx:
        kept = storage.find_request(tx, request.digest, now)
    if kept is None:
        return None
    if kept.body_digest != request.body_digest:
        raise Fault(IDEMPOTENCY_KEY_REUSED)
    if kept.status is None or kept.answer is None:
        raise Fault(IDEMPOTENCY_UNANSWERED)
    try:
        body = open_vault().unseal(kept.answer, context=_find_context(request))
    except ValueError as error:
        raise Fault(IDEMPOTENCY_UNANSWERED, detail=str(error)) from None
    return KeptAnswer(kept.status, body.encode())


def claim_in(request: IdempotentRequest, now: int) -> Callable[[Transaction], None]:
    """Return what stores a request in the transaction of its change. It raises Fault idempotency_unanswered if the same key was stored
    meanwhile, so that of requests that are sent at the same time one is carried out."""

    def claim(tx: Transaction) -> None:
        if not storage.claim(tx, request.digest, request.body_digest, now=now, expires_at=now + LIFETIME_US):
            raise Fault(IDEMPOTENCY_UNANSWERED)

    return claim


def keep_answer(database: Database, open_vault: Callable[[], LocalVault], request: IdempotentRequest, answer: KeptAnswer) -> None:
    """Store the answer of a request that was carried out, sealed. Does nothing for a longer one than ANSWER_BYTES_MAX."""
    if len(answer.body) > ANSWER_BYTES_MAX:
        return
    sealed = open_vault().seal(answer.body.decode(), context=_find_context(request))
    with database.platform() as tx:
        storage.keep_answer(tx, request.digest, answer.status, sealed)


def remove_expired(database: Database, now: int) -> Iterator[int]:
    """Remove the keys that have expired at `now`, in transactions of REMOVED_MAX each; yield how many after each."""
    removed = REMOVED_MAX
    while removed == REMOVED_MAX:
        with database.platform() as tx:
            removed = storage.remove_expired(tx, now, REMOVED_MAX)
        yield removed


def _find_context(request: IdempotentRequest) -> str:
    """Return what an answer is sealed for, so that it cannot be moved to another request."""
    return f"idempotency:{request.digest.hex()}"
