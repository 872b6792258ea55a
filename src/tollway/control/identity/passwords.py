"""Passwords as Argon2id (RFC 9106), computed beside the event loop and few at once.

A hash takes 64 MiB and 50 to 100 ms of a core on purpose, so that a stolen one is expensive to guess. Computed without bound they would
take the memory and the cores of the process: a few are computed at once, some wait, and the rest is refused.
"""

import asyncio

import argon2
from argon2.exceptions import InvalidHashError, VerificationError

from tollway.domain.faults import OVERLOADED, Fault
from tollway.worker_threads import run_in_thread

MEMORY_KIB, ITERATIONS, LANES = 65_536, 3, 4
"""The second recommended option of RFC 9106, section 4."""

COMPUTED_MAX = 2
"""Hashes that are computed at once: 128 MiB."""

WAITING_MAX = 16
"""Sign-ins that wait for it: about a second."""

WAIT_SECONDS_MAX = 10.0
"""For one of them to wait."""


class Passwords:
    """Hashes and verifies passwords, from the event loop of one process."""

    def __init__(self, memory_kib: int = MEMORY_KIB) -> None:
        self._hasher = argon2.PasswordHasher(time_cost=ITERATIONS, memory_cost=memory_kib, parallelism=LANES)
        self._slots = asyncio.Semaphore(COMPUTED_MAX)
        self._waiting = 0
        self._absent: str | None = None

    async def hash(self, password: str) -> str:
        """Return what is stored of a password. Raises Fault OVERLOADED."""
        await self._take()
        try:
            return await run_in_thread(self._hasher.hash, password)
        finally:
            self._slots.release()

    async def verify(self, stored: str | None, password: str) -> bool:
        """Return whether a password is the one that was hashed. Takes as long where there is none (`stored` None), and returns False.
        Raises Fault OVERLOADED."""
        await self._take()
        try:
            return await run_in_thread(self._check, stored, password) and stored is not None
        finally:
            self._slots.release()

    def _check(self, stored: str | None, password: str) -> bool:
        if stored is None:
            self._absent = self._absent or self._hasher.hash("a password that nobody has")
        try:
            return self._hasher.verify(stored or self._absent or "", password)
        except (VerificationError, InvalidHashError):
            return False

    async def _take(self) -> None:
        if self._waiting >= WAITING_MAX:
            raise Fault(OVERLOADED, retry_after_seconds=1, message="Too many people sign in at the moment. Try again.")
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                await self._slots.acquire()
        except TimeoutError:
            raise Fault(OVERLOADED, retry_after_seconds=1, message="Too many people sign in at the moment. Try again.") from None
        finally:
            self._waiting -= 1
