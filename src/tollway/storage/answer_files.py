"""Answers to requests of inference with an idempotency key, one sealed file each, in the data directory of a gateway.

A file is named by the digest of its request, in a directory of its organization. Whoever serves the request holds an exclusive lock
(`flock`) on it: the kernel releases the locks of a process that dies, so a claim never outlives its holder. An empty file, and one that
is shorter than its first 8 bytes say, is that of a request that was not answered; its modification time is when it was answered.
"""

import fcntl
import os
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from tollway.domain.answers import StoredAnswer
from tollway.domain.faults import (
    IDEMPOTENCY_ANSWERS_EXCEEDED,
    IDEMPOTENCY_IN_PROGRESS,
    IDEMPOTENCY_KEY_REUSED,
    IDEMPOTENCY_UNANSWERED,
    OVERLOADED,
    SPOOL_UNAVAILABLE,
    Fault,
)
from tollway.storage.tenant_files import remove_tree
from tollway.storage.vault import LocalVault

_LENGTH = struct.Struct(">Q")
_BLOCK_BYTES = 4096
"""Disk space that a file takes at least: the bounds count whole blocks, so they bound the number of files too."""
_ABANDONED_SECONDS = 60
"""Age from which an empty file is removed if nobody holds it."""
_RETRY_SECONDS = 1


class AnswerBounds(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the store. `lifetime_seconds`: for which an answer is stored; 0 stores none. `answer_bytes_max`: of one answer;
    `organization_bytes_max`, `total_bytes_max`: of all files of one organization, and of all."""

    lifetime_seconds: int = 24 * 3600
    answer_bytes_max: int = 1024 * 1024
    organization_bytes_max: int = 256 * 1024 * 1024
    total_bytes_max: int = 1024 * 1024 * 1024


class _Content(msgspec.Struct, frozen=True, array_like=True):
    body_digest: bytes
    answer: StoredAnswer | None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Content)


class AnswerFiles:
    """The store of one gateway. Its functions block; call them from worker threads, from several at once if need be."""

    def __init__(self, directory: Path, vault: LocalVault, bounds: AnswerBounds, now_us: Callable[[], int]) -> None:
        """Nothing is read or made before the first call, so that a disk that fails keeps no gateway from its start."""
        self.answer_bytes_max = bounds.answer_bytes_max
        self.executor = None
        self.decides_on_usage = False
        self._directory = directory
        self._vault = vault
        self._bounds = bounds
        self._now_us = now_us
        self._reservation = _count_blocks(bounds.answer_bytes_max + _BLOCK_BYTES)
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._counting = threading.Lock()
        self._is_counted = False
        self._stored: dict[str, int] = {}
        self._reserved: dict[str, int] = {}

    def claim(self, organization_id: str, digest: bytes, body_digest: bytes, request_id: str = "") -> "AnswerFile":
        """Return the file of a request, held by the caller until `AnswerFile.release`, with the answer that it holds.

        Raises Fault: idempotency_in_progress while another holds it; idempotency_key_reused if it holds the answer to another body;
        idempotency_unanswered if its answer was not stored; rate_limit_exceeded or overloaded if there is no space for another one;
        metering_unavailable if the disk fails.
        """
        path = self._directory / organization_id / digest.hex()
        try:
            if not self._is_counted:
                self._count_stored()
            with self._opening:
                descriptor = self._open_locked(path)
            try:
                return self._read(descriptor, path, organization_id, body_digest)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            raise Fault(SPOOL_UNAVAILABLE, detail=f"answer store: {error.strerror}") from None

    def _open_locked(self, path: Path) -> int:
        while True:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_nlink:
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                raise Fault(IDEMPOTENCY_IN_PROGRESS, retry_after_seconds=_RETRY_SECONDS) from None
            os.close(descriptor)  # it was removed between the two calls

    def _read(self, descriptor: int, path: Path, organization_id: str, body_digest: bytes) -> "AnswerFile":
        status = os.fstat(descriptor)
        content = os.pread(descriptor, status.st_size, 0)
        is_whole = len(content) > _LENGTH.size and len(content) == _LENGTH.unpack_from(content)[0]
        if not is_whole or self._is_expired(status):
            os.ftruncate(descriptor, 0)
            self._reserve(path, organization_id)
            return AnswerFile(self, descriptor, path, organization_id, body_digest, None)
        try:
            found = _decoder.decode(self._vault.unseal_bytes(content[_LENGTH.size :], context=_find_context(path)))
        except ValueError as error:
            raise _unanswered(str(error)) from None
        if found.body_digest != body_digest:
            raise Fault(IDEMPOTENCY_KEY_REUSED, headers=b"x-should-retry: false\r\n")
        if found.answer is None:
            raise _unanswered("too long to be stored")
        return AnswerFile(self, descriptor, path, organization_id, body_digest, found.answer)

    def _reserve(self, path: Path, organization_id: str) -> None:
        """Reserve space for another answer. Raises Fault, and removes the empty file, if there is none."""
        bounds, longest = self._bounds, self._reservation
        fault: Fault | None = None
        with self._lock:
            of_organization = self._stored.get(organization_id, 0) + self._reserved.get(organization_id, 0)
            if of_organization + longest > bounds.organization_bytes_max:
                fault = Fault(IDEMPOTENCY_ANSWERS_EXCEEDED, retry_after_seconds=bounds.lifetime_seconds / 24)
            elif sum(self._stored.values()) + sum(self._reserved.values()) + longest > bounds.total_bytes_max:
                fault = Fault(OVERLOADED, retry_after_seconds=_RETRY_SECONDS, detail="the answer store is full")
            else:
                self._reserved[organization_id] = self._reserved.get(organization_id, 0) + longest
        if fault is not None:
            path.unlink(missing_ok=True)
            raise fault

    def release(self, organization_id: str, stored_bytes: int) -> None:
        """End a reservation, of which so many bytes were stored."""
        with self._lock:
            self._reserved[organization_id] -= self._reservation
            if not self._reserved[organization_id]:
                del self._reserved[organization_id]
            if stored_bytes:
                self._stored[organization_id] = self._stored.get(organization_id, 0) + _count_blocks(stored_bytes)

    def write(self, file: "AnswerFile", answer: StoredAnswer | None) -> int:
        """Store an answer durably; None for one that is too long. Return its size in bytes. Raises OSError."""
        content = _encoder.encode(_Content(file.body_digest, answer))
        sealed = self._vault.seal_bytes(content, context=_find_context(file.path))
        data = _LENGTH.pack(_LENGTH.size + len(sealed)) + sealed
        written = 0
        while written < len(data):
            written += os.pwrite(file.descriptor, data[written:], written)
        seconds = self._now_us() // 1_000_000
        os.utime(file.descriptor, (seconds, seconds))
        os.fsync(file.descriptor)
        directory = os.open(file.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return len(data)

    def _count_stored(self) -> None:
        """Count what is stored, before the first answer is added to it."""
        with self._counting:
            if not self._is_counted:
                self.remove_expired()

    def remove_unanswered(self, path: Path) -> None:
        """Remove the file of a request that was not answered, unless somebody has claimed it again. A disk that removes nothing is left for
        `remove_expired`."""
        with self._opening:  # or a claim would find the lock taken and its request at work
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                return
            with suppress(OSError):  # of the lock, if it is claimed
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.fstat(descriptor).st_size:
                    path.unlink(missing_ok=True)
            os.close(descriptor)

    def remove_organization(self, organization_id: str) -> None:
        """Remove every answer of an organization. Raises OSError."""
        remove_tree(self._directory / organization_id)

    def remove_expired(self) -> None:
        """Remove files that have expired, and those that were left empty; count what the rest takes. Raises OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found: dict[str, int] = {}
        for of_organization in self._directory.iterdir():
            total = 0
            with os.scandir(of_organization) as entries:
                for entry in entries:
                    total += self._examine(Path(entry.path))
            if total:
                found[of_organization.name] = total
        with self._lock:
            self._stored = found
        self._is_counted = True

    def _examine(self, path: Path) -> int:
        """Return how many bytes a file takes; 0 if it was removed or is held."""
        try:
            status = os.stat(path)
            if not self._is_over(status):
                return _count_blocks(status.st_size)
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(descriptor)  # again: until it was locked, a request with its key may have been answered
            if not self._is_over(status):
                return _count_blocks(status.st_size)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)
        return 0

    def _is_over(self, status: os.stat_result) -> bool:
        """Return whether a file has expired, or was left empty by a process that died."""
        is_abandoned = not status.st_size and self._find_age_seconds(status) > _ABANDONED_SECONDS
        return is_abandoned or self._is_expired(status)

    def _is_expired(self, status: os.stat_result) -> bool:
        return self._find_age_seconds(status) >= self._bounds.lifetime_seconds

    def _find_age_seconds(self, status: os.stat_result) -> float:
        return self._now_us() / 1e6 - status.st_mtime


class AnswerFile:
    """The file of one request, held until `release`. `answer`: the one that it holds; None for a request that is to be served."""

    def __init__(
        self, store: AnswerFiles, descriptor: int, path: Path, organization_id: str, body_digest: bytes, answer: StoredAnswer | None
    ) -> None:
        self.descriptor = descriptor
        self.path = path
        self.organization_id = organization_id
        self.body_digest = body_digest
        self.answer = answer
        self._store = store
        self._stored_bytes = 0

    def keep(self, answer: StoredAnswer | None) -> None:
        """Store the answer durably; None for one that is too long, of which only that is stored. Raises Fault metering_unavailable."""
        try:
            self._stored_bytes = self._store.write(self, answer)
        except OSError as error:
            raise Fault(SPOOL_UNAVAILABLE, detail=f"answer store: {error.strerror}") from None

    def release(self) -> None:
        """Let others claim the request; without an answer it is as if it had never been sent. Does not block. Call it once."""
        if self.answer is None:
            self._store.release(self.organization_id, self._stored_bytes)
        os.close(self.descriptor)

    def clean_up(self) -> None:
        """Remove what an unanswered request left on the disk. Blocks; call it after `release`."""
        if self.answer is None and not self._stored_bytes:
            self._store.remove_unanswered(self.path)


def _find_context(path: Path) -> str:
    """Return what an answer is sealed for, so that it cannot be moved to another request or organization."""
    return f"answer:{path.parent.name}:{path.name}"


def _count_blocks(size: int) -> int:
    return -(-size // _BLOCK_BYTES) * _BLOCK_BYTES


def _unanswered(detail: str) -> Fault:
    return Fault(
        IDEMPOTENCY_UNANSWERED,
        message="A request with this Idempotency-Key was answered, and the answer is not stored.",
        headers=b"x-should-retry: false\r\n",
        detail=detail,
    )
