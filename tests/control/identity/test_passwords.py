"""Passwords are hashed slowly, and few at once."""

import asyncio

import pytest

from tollway.control.identity import passwords
from tollway.control.identity.passwords import Passwords
from tollway.domain.faults import OVERLOADED, Fault


async def test_hash_takes_the_memory_that_rfc_9106_recommends_and_verifies() -> None:
    hashing = Passwords()
    stored = await hashing.hash("correct horse battery staple")
    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert await hashing.verify(stored, "correct horse battery staple")
    assert not await hashing.verify(stored, "correct horse battery stapler")
    assert not await hashing.verify(None, "a password that nobody has")
    assert not await hashing.verify("no hash", "correct horse battery staple")


async def test_sign_ins_beyond_the_waiting_list_are_refused() -> None:
    hashing = Passwords(memory_kib=64)
    tasks = [asyncio.ensure_future(hashing.hash("x")) for _ in range(passwords.COMPUTED_MAX + passwords.WAITING_MAX + 20)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [each for each in results if isinstance(each, Fault)]
    assert refused and all(fault.kind is OVERLOADED for fault in refused)
    assert sum(isinstance(each, str) for each in results) >= passwords.WAITING_MAX
    await hashing.hash("x")


@pytest.mark.parametrize("stored", ["", "$argon2id$"])
async def test_what_is_no_hash_verifies_nothing(stored: str) -> None:
    assert not await Passwords(memory_kib=64).verify(stored or "x", "x")
