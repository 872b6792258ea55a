"""Files of tenants in a bucket of an S3-compatible store: one sealed object each, `<organization>/<project>/<id>`, with the same bytes as a
file of the directory (`tenant_files`).

The store sees sealed bytes and these names alone. An object is there whole or not at all; of an upload that a process left unfinished the
store keeps parts that no list shows, which a rule of the bucket should remove.

There are no locks. So that the quota of an organization holds over all gateways, an upload is counted again once it is stored: the list of
an S3 store shows what was stored before, so of several uploads that exceed it together the last one sees all, and is taken back. A gateway
that dies between the two leaves one file that nobody knows of.

A list reads the begin of each object. What was read is kept in memory by the object's tag, so that it is read once.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from struct import error as StructError
from typing import TYPE_CHECKING, Final, NamedTuple

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from tollway.domain.faults import FILES_UNAVAILABLE, Fault
from tollway.domain.files import EXPIRY_SECONDS_MAX, FileOwner, FilePurpose, StoredFile
from tollway.domain.ids import ORGANIZATION
from tollway.storage.tenant_files import (
    DESCRIPTION_BYTES_MAX,
    FileBounds,
    open_content,
    open_description,
    quota_fault,
    seal_file,
)
from tollway.storage.vault import LocalVault

if TYPE_CHECKING:
    from obstore.store import S3Config

PART_BYTES: Final = 8 * 1024 * 1024
"""Bytes of a part of a long object that is stored, and of a piece of one that is read. S3 wants 5 MiB at least."""
PARTS_AT_ONCE: Final = 2
READERS: Final = 8
"""Objects whose begin is read at once for a list."""
KEPT_MAX: Final = 20_000
"""Descriptions that are kept in memory, of about 500 bytes each."""
CONNECT_SECONDS: Final = 2.0
READ_SECONDS: Final = 10.0
REQUEST_SECONDS: Final = 20.0
"""Longest time of one request to the store, and until the next bytes of its answer."""

_UNREADABLE = (ValueError, StructError)


class _Object(NamedTuple):
    """An object as a list shows it. `stored_at`: UTC in seconds."""

    owner: FileOwner
    id: str
    size: int
    stored_at: float
    tag: str | None


class FileBucket:
    """The store. Its functions block; call them from worker threads, from several at once if need be. All raise Fault files_unavailable
    where the store does not answer, or refuses."""

    def __init__(self, vault: LocalVault, bounds: FileBounds, now_us: Callable[[], int]) -> None:
        """Nothing is asked before the first call, so that a store that is down keeps no gateway from its start. Credentials are those that
        the environment or the machine gives."""
        assert bounds.bucket is not None
        config: S3Config = {"region": bounds.bucket_region}
        if bounds.bucket_endpoint is not None:
            config["endpoint"] = bounds.bucket_endpoint
        self._store = S3Store(
            bounds.bucket,
            prefix=bounds.bucket_prefix or None,
            config=config,
            client_options={
                "allow_http": True,
                "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
                "read_timeout": timedelta(seconds=READ_SECONDS),
                "timeout": timedelta(seconds=REQUEST_SECONDS),
            },
            retry_config={"max_retries": 1, "retry_timeout": timedelta(seconds=REQUEST_SECONDS)},
        )
        self._vault = vault
        self._bounds = bounds
        self._now_us = now_us
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="objects")  # makes its threads once they are needed
        self._kept: dict[tuple[str, str], StoredFile | None] = {}

    def add(self, owner: FileOwner, file: StoredFile, pieces: Iterable[bytes]) -> None:
        """Store a file durably, in place of one with its id. Raises Fault quota_exceeded. Output of a batch is bound by no quota: it was
        paid for."""
        bounds, has_quota = self._bounds, file.purpose is not FilePurpose.BATCH_OUTPUT
        name = _find_name(owner, file.id)
        with _failures_told():
            if has_quota:
                count, total = self._measure(owner.organization_id)
                if count >= bounds.organization_files_max or total + file.size > bounds.organization_bytes_max:
                    raise quota_fault(bounds)
            parts = seal_file(self._vault, owner, file, pieces)
            if file.size <= PART_BYTES:
                obstore.put(self._store, name, b"".join(parts), use_multipart=False)
            else:
                obstore.put(self._store, name, parts, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)
            if not has_quota:
                return
            try:
                count, total = self._measure(owner.organization_id)
                is_too_much = count > bounds.organization_files_max or total > bounds.organization_bytes_max
            except BaseException:  # nobody knows, and the client gets an error
                obstore.delete(self._store, name)
                raise
            if is_too_much:
                obstore.delete(self._store, name)
                raise quota_fault(bounds)

    def _measure(self, organization_id: str) -> tuple[int, int]:
        """Return how many files an organization has, and their bytes."""
        sizes = [each.size for each in self._list(organization_id)]
        return len(sizes), sum(sizes)

    def list_files(self, owner: FileOwner) -> list[StoredFile]:
        """Return the files of a project that can be opened, oldest first."""
        now = self._now_us() // 1_000_000
        with _failures_told():
            objects = list(self._list(f"{owner.organization_id}/{owner.project_id}"))
            described = list(self._readers.map(self._describe, objects))
        found = [file for file in described if file is not None and file.expires_at > now]
        return sorted(found, key=lambda file: (file.created_at, file.id))

    def find(self, owner: FileOwner, id: str) -> StoredFile | None:
        """Return a file, None if the project has none with this id."""
        with _failures_told():
            file = self._read_description(owner, id)
        return file if file is not None and file.expires_at > self._now_us() // 1_000_000 else None

    def read_pieces(self, owner: FileOwner, id: str) -> Iterator[bytes]:
        """Yield the content of a file. Raises Fault files_unavailable also for one that is gone or was altered."""
        with _failures_told():
            yield from open_content(self._vault, owner, id, _ObjectReader(self._store, _find_name(owner, id), PART_BYTES))

    def delete(self, owner: FileOwner, id: str) -> bool:
        """Delete a file, also one that cannot be opened. Return whether the project had it."""
        with _failures_told():
            with suppress(BaseError, *_UNREADABLE):
                file = self._read_description(owner, id)
                if file is None or file.expires_at <= self._now_us() // 1_000_000:
                    return False
            obstore.delete(self._store, _find_name(owner, id))
        return True

    def remove_organization(self, organization_id: str) -> None:
        """Remove every file of an organization. Raises OSError."""
        try:
            for each in self._list(organization_id):
                obstore.delete(self._store, _find_name(each.owner, each.id))
        except BaseError as error:
            raise OSError(f"the bucket of files: {type(error).__name__}") from None

    def remove_expired(self) -> None:
        """Remove files that have expired; those that cannot be opened when every file of their age has. Raises OSError where the store
        fails."""
        now = self._now_us() / 1_000_000
        try:
            for each in self._list(""):
                file = self._describe(each)
                if (each.stored_at + EXPIRY_SECONDS_MAX if file is None else file.expires_at) <= now:
                    obstore.delete(self._store, _find_name(each.owner, each.id))
        except BaseError as error:
            raise OSError(f"the bucket of files: {type(error).__name__}") from None

    def _list(self, prefix: str) -> Iterator[_Object]:
        """Yield the files whose names begin with these parts."""
        for page in obstore.list(self._store, prefix=prefix or None):
            for each in page:
                parts = each["path"].split("/")
                if len(parts) == 3 and parts[0].startswith(f"{ORGANIZATION}_"):
                    owner = FileOwner(parts[0], parts[1])
                    yield _Object(owner, parts[2], each["size"], each["last_modified"].timestamp(), each["e_tag"])

    def _describe(self, each: _Object) -> StoredFile | None:
        """Return what is known of a file; None if it cannot be opened, or was deleted meanwhile."""
        key = (_find_name(each.owner, each.id), each.tag or "")
        if each.tag is not None and key in self._kept:
            return self._kept[key]
        file = None
        if each.size:
            with suppress(*_UNREADABLE):
                file = self._read_description(each.owner, each.id)
        if each.tag is not None:
            if len(self._kept) >= KEPT_MAX:
                for oldest in list(self._kept)[: len(self._kept) + 1 - KEPT_MAX]:
                    self._kept.pop(oldest, None)
            self._kept[key] = file
        return file

    def _read_description(self, owner: FileOwner, id: str) -> StoredFile | None:
        """Return what the begin of an object says, None if there is none. Raises ValueError or struct.error if it cannot be opened."""
        try:
            reader = _ObjectReader(self._store, _find_name(owner, id), 4 + DESCRIPTION_BYTES_MAX)
            return open_description(self._vault, owner, id, reader)
        except FileNotFoundError as error:
            if "NoSuchKey" in str(error):
                return None
            raise  # there is no such bucket, or this is no such store


class _ObjectReader:
    """The bytes of an object, read in ranges of one version of it: if it is stored anew meanwhile, the next range fails. So no connection
    waits for a client that reads slowly."""

    def __init__(self, store: S3Store, name: str, range_bytes: int) -> None:
        self._store = store
        self._name = name
        self._range_bytes = range_bytes
        self._held = memoryview(b"")
        self._next = 0
        self._size: int | None = None
        self._tag: str | None = None

    def read(self, size: int) -> bytes:
        """Return the next bytes, so many unless the object ends before."""
        found = bytearray()
        while len(found) < size:
            if not len(self._held):
                if self._size is not None and self._next >= self._size:
                    break
                self._fetch()
            part = self._held[: size - len(found)]
            self._held = self._held[len(part) :]
            found += part
        return bytes(found)

    def _fetch(self) -> None:
        options: obstore.GetOptions = {"range": (self._next, self._next + self._range_bytes)}
        if self._tag is not None:
            options["if_match"] = self._tag
        answer = obstore.get(self._store, self._name, options=options)
        self._held = memoryview(answer.bytes().to_bytes())
        self._size, self._tag = answer.meta["size"], answer.meta["e_tag"]
        if not len(self._held):
            raise ValueError("an object that is not whole")
        self._next += len(self._held)


def _find_name(owner: FileOwner, id: str) -> str:
    return f"{owner.organization_id}/{owner.project_id}/{id}"


@contextmanager
def _failures_told() -> Iterator[None]:
    """Raise Fault files_unavailable for what the store, or a file that cannot be opened, raises. What the store says stays out: it has
    names and addresses."""
    try:
        yield
    except (BaseError, OSError) as error:
        raise Fault(FILES_UNAVAILABLE, retry_after_seconds=1, detail=f"file store: {type(error).__name__}") from None
    except _UNREADABLE as error:
        raise Fault(FILES_UNAVAILABLE, detail=f"file store: a file cannot be opened: {type(error).__name__}") from None
