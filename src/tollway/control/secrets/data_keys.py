"""Data keys: each organization has one, with which its secrets are sealed in the database, wrapped under a key that the database never has.

A data key is made when it is first needed. Unwrapped it is kept in memory for CACHE_SECONDS, and longer while the key that wrapped it is
away, so that an outage of Vault or KMS stops nothing that runs. While a service of keys does not answer, one call in RETRY_SECONDS waits
for it, and the others fail at once: they would fill the worker threads. Whoever destroys the wrapped key makes all that was sealed with it
unreadable, in every copy of the database that is made from then on.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tollway.control.secrets.key_encryption import KeyRing, KeyUnavailable, KeyUnreachable
from tollway.domain.faults import KEY_ENCRYPTION_UNAVAILABLE, STATE_CONFLICT, Fault
from tollway.storage import data_keys as storage
from tollway.storage.data_keys import StoredDataKey
from tollway.storage.database import Database
from tollway.storage.vault import KEY_BYTES, LocalVault

CACHE_SECONDS = 300
"""Time for which an unwrapped data key is used without asking again."""

RETRY_SECONDS = 10
"""Time after a call that the service of a key did not answer until the next one is made."""

CACHED_MAX = 10_000
"""Organizations whose data keys are kept in memory, about 1 KiB each."""

REWRAPPED_MAX = 50
"""Data keys that one request wraps anew: two calls of the service of keys for each."""


@dataclass(frozen=True, slots=True)
class KekUse:
    """Number of data keys that a key has wrapped. `is_known`: whether this process can unwrap them."""

    name: str
    organizations: int
    is_current: bool
    is_known: bool


@dataclass(frozen=True, slots=True)
class Rewrapped:
    """A step of wrapping all data keys anew. `last_id`: the organization to go on after; None at the end."""

    count: int
    last_id: str | None


class DataKeys:
    """The data keys of organizations, for any thread. Call `open` outside of transactions."""

    def __init__(self, database: Database, ring: KeyRing, random_bytes: Callable[[int], bytes], now: Callable[[], int]) -> None:
        """`now`: UTC microseconds."""
        self._database, self._ring, self._random_bytes, self._now = database, ring, random_bytes, now
        self._lock = threading.Lock()
        self._opened: OrderedDict[str, tuple[LocalVault, int]] = OrderedDict()
        self._unanswered: dict[str, int] = {}  # by name of a key of the ring: when its service was last asked in vain

    def open(self, organization_id: str) -> LocalVault:
        """Return what seals for an organization. Raises Fault KEY_ENCRYPTION_UNAVAILABLE; STATE_CONFLICT if the key was destroyed."""
        with self._lock:
            kept = self._opened.get(organization_id)
        if kept is not None and self._now() - kept[1] < CACHE_SECONDS * 1_000_000:
            return kept[0]
        stored = self._find(organization_id)
        if stored is not None and stored.wrapped is None:
            self._forget(organization_id)
            raise Fault(STATE_CONFLICT, message="The data of the organization was erased.")
        try:
            if stored is None:
                stored = self._make(organization_id)
            assert stored.wrapped is not None
            with self._asking(stored.kek):
                vault = LocalVault(self._ring.unwrap(stored.kek, stored.wrapped, organization_id))
        except KeyUnavailable as error:
            if kept is not None:
                return kept[0]
            raise Fault(KEY_ENCRYPTION_UNAVAILABLE, detail=str(error)) from None
        with self._lock:
            self._opened[organization_id] = (vault, self._now())
            self._opened.move_to_end(organization_id)
            while len(self._opened) > CACHED_MAX:
                self._opened.popitem(last=False)
        return vault

    def list_uses(self) -> list[KekUse]:
        """Return how many data keys each key has wrapped, the current one first."""
        with self._database.platform(write=False) as tx:
            counts = storage.count_by_kek(tx)
        current = self._ring.current.name
        names = [current, *sorted(name for name in counts if name != current)]
        return [KekUse(name, counts.get(name, 0), name == current, name in self._ring.known) for name in names]

    def rewrap(self, database: Database, after: str, now: int) -> Rewrapped:
        """Wrap the data keys of REWRAPPED_MAX organizations after `after` under the current key, its newest version included. What they
        sealed stays as it is. `database`: that of the request. Raises Fault KEY_ENCRYPTION_UNAVAILABLE, and then changes nothing."""
        with self._database.platform(write=False) as tx:
            found = storage.list_after(tx, after, REWRAPPED_MAX)
        try:
            wrapped = [(each, self._wrap_anew(each)) for each in found]
        except KeyUnavailable as error:
            raise Fault(KEY_ENCRYPTION_UNAVAILABLE, detail=str(error)) from None
        with database.platform() as tx:
            count = sum(storage.rewrap(tx, each, self._ring.current.name, anew, now) for each, anew in wrapped)
        return Rewrapped(count, found[-1].organization_id if len(found) == REWRAPPED_MAX else None)

    def _wrap_anew(self, stored: StoredDataKey) -> bytes:
        assert stored.wrapped is not None
        key = self._ring.unwrap(stored.kek, stored.wrapped, stored.organization_id)
        return self._ring.current.wrap(key, stored.organization_id)

    def _find(self, organization_id: str) -> StoredDataKey | None:
        with self._database.platform(write=False) as tx:
            return storage.find(tx, organization_id)

    def _make(self, organization_id: str) -> StoredDataKey:
        """Make the data key of an organization, and return the one that is stored: another process may have been earlier."""
        current = self._ring.current
        with self._asking(current.name):
            wrapped = current.wrap(self._random_bytes(KEY_BYTES), organization_id)
        with self._database.platform() as tx:
            storage.insert(tx, StoredDataKey(organization_id, current.name, wrapped), self._now())
        stored = self._find(organization_id)
        assert stored is not None
        return stored

    @contextmanager
    def _asking(self, kek: str) -> Iterator[None]:
        """Ask the service of a key in the block, unless it did not answer less than RETRY_SECONDS ago. Raises KeyUnreachable."""
        now = self._now()
        with self._lock:
            asked_at = self._unanswered.get(kek)
            if asked_at is not None:
                if 0 <= now - asked_at < RETRY_SECONDS * 1_000_000:
                    raise KeyUnreachable(f"{kek}: it did not answer a moment ago")
                self._unanswered[kek] = now  # the others do not wait beside this call
        try:
            yield
        except KeyUnreachable:
            with self._lock:
                self._unanswered[kek] = self._now()
            raise
        except KeyUnavailable:  # the service answered, with a refusal of this one key
            self._note_answer(kek)
            raise
        self._note_answer(kek)

    def _note_answer(self, kek: str) -> None:
        with self._lock:
            self._unanswered.pop(kek, None)

    def _forget(self, organization_id: str) -> None:
        with self._lock:
            self._opened.pop(organization_id, None)
