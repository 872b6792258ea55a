"""Asynchronous fdatasync by the kernel: it says when it is done, says when it cannot be had, and the spool works either way."""

import asyncio
import os
import platform
from pathlib import Path

import pytest

from tests.patience import PATIENCE_SECONDS
from tollway.link.syncing import KernelSync


@pytest.fixture
async def kernel() -> KernelSync:
    opened = KernelSync.open(asyncio.get_running_loop())
    if opened is None:
        pytest.skip("this system has no asynchronous fdatasync; the spool's thread does it")
    return opened


async def test_it_tells_of_each_sync_once(kernel: KernelSync, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        for count in range(50):
            os.pwrite(fd, b"x" * 4096, count * 4096)
            done: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
            assert kernel.start(fd, done.set_result), "a regular file can be synced"
            assert await asyncio.wait_for(done, PATIENCE_SECONDS) is None
    finally:
        kernel.close()
        os.close(fd)


async def test_what_cannot_be_synced_is_left_to_the_caller(kernel: KernelSync) -> None:
    told: list[OSError | None] = []
    reading, writing = os.pipe()
    try:
        taken = kernel.start(writing, told.append)
        await asyncio.sleep(0.05)
        assert not taken or (told and told[0] is not None), "a pipe has nothing to sync, and must not pass for synced"
    finally:
        kernel.close()
        os.close(reading)
        os.close(writing)
    assert kernel.start(10**6, told.append) is False


async def test_an_unknown_machine_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    assert KernelSync.open(asyncio.get_running_loop()) is None
