"""Disks that fail for real: a file system whose device takes no more bytes, one that turns read-only, one that is there only later.

The file system is ext4 on a loop device over a small file; where the place of that file is full, writes of the device fail, an fdatasync
says so once, and the next one says that all is well, which is why nothing may ever be synced twice in the hope of better news.
"""

import asyncio
import errno
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from reliability import load
from reliability.bill_checks import Heard, check_bills, lines_of_log, read_bills, read_truth, wait_until_idle
from reliability.load import Ask
from reliability.platforms import PRICES, Apart, Platform, apart, list_models
from reliability.processes import WAIT_SECONDS, tollway

pytestmark = pytest.mark.system

SMALL_SPOOL = (str(Path(__file__).with_name("small_spool.py")),)
RECOVERED_SECONDS_MAX = 5.0
"""Published. On top of it only what a busy machine takes to start a process."""


def call(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS)


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system at `place`, on a device over `image`, which lies where there is space only for so much."""

    place: Path
    image: Path
    at_errors: str

    def break_device(self) -> None:
        """From now on the device fails writes to blocks that it never wrote."""
        filler = self.image.with_name("filler")
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC

    def mend_device(self) -> None:
        """Let the device store again."""
        self.image.with_name("filler").unlink()

    def mount(self) -> None:
        mounted = call("mount", "-o", f"loop,errors={self.at_errors}", str(self.image), str(self.place))
        assert mounted.returncode == 0, mounted.stderr

    def unmount(self) -> None:
        """Take it away; what is only in memory is gone with it."""
        gone = call("umount", str(self.place))
        assert gone.returncode == 0, gone.stderr

    def remount(self, how: str) -> None:
        done = call("mount", "-o", f"remount,{how}", str(self.place))
        assert done.returncode == 0, done.stderr

    def turn_read_only(self) -> None:
        """As the kernel does to a file system that it no longer trusts, whoever has files open."""
        device = call("findmnt", "-n", "-o", "SOURCE", str(self.place)).stdout.strip().rpartition("/")[2]
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("1")


@contextmanager
def ext4(scratch: Path, at_errors: Literal["continue", "remount-ro"] = "remount-ro") -> Iterator[Disk]:
    """Skips the test where no such file system can be made. `at_errors`: what the kernel does when it fails to write its own tables."""
    backing, place = scratch / "backing", scratch / "disk"
    backing.mkdir()
    place.mkdir()
    image = backing / "image"
    if call("mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(backing)).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        with image.open("wb") as file:
            file.truncate(64 << 20)
        if call("mkfs.ext4", "-q", "-F", "-b", "4096", "-N", "512", "-O", "^has_journal", "-m", "0", str(image)).returncode != 0:
            pytest.skip("there is no mkfs.ext4 here")
        # The tables of the file system take their place now: an error while the kernel writes one would end all writing until the next
        # mount, which is another fault than the one of a file's data.
        with image.open("r+b") as file:
            tables = file.read(1 << 20)
            file.seek(0)
            file.write(tables)
        if call("mount", "-o", f"loop,errors={at_errors}", str(image), str(place)).returncode != 0:
            pytest.skip("there are no loop devices here")
        try:
            yield Disk(place, image, at_errors)
        finally:
            call("umount", "--lazy", str(place))
    finally:
        call("umount", "--lazy", str(backing))


def use(platform: Platform, count: int, *, stream: bool = True) -> list[Heard]:
    asks = [Ask("echo", "chat/completions", f"Coin {number} of silver", stream=stream) for number in range(count)]
    return asyncio.run(load.send_all(asks, platform.gateway_url, platform.tenant.api_key, per_second=60))


def strike(platform: Platform, parts: Apart, requests_max: int) -> list[Heard]:
    """Requests, a few at a time, until the gateway ends; what their clients heard, as far as they found anybody."""
    heard: list[Heard] = []

    async def send_some() -> list[Heard | BaseException]:
        asks = [Ask("echo", "chat/completions", f"Coin {number} of gold", stream=True) for number in range(10)]
        sending = [load.send(ask, platform.gateway_url, platform.tenant.api_key) for ask in asks]
        return await asyncio.gather(*sending, return_exceptions=True)

    assert parts.gateway.process is not None
    while parts.gateway.process.poll() is None:
        assert len(heard) < requests_max, "the disk never was missed"
        for each in asyncio.run(send_some()):
            if isinstance(each, Heard):
                heard.append(each)
            else:
                assert isinstance(each, ConnectionError), each
    return heard


def wait_until_refused(platform: Platform, parts: Apart) -> Heard:
    """The first answer of a gateway that has just been launched: a refusal, not silence."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        assert parts.gateway.process is not None and parts.gateway.process.poll() is None, parts.gateway.out.read_text()
        if list_models(platform.gateway_url, platform.tenant.api_key) == 200:
            (heard,) = use(platform, 1)
            return heard
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_until_served(platform: Platform) -> Heard:
    """The first request that is served again, within the time that is published."""
    began = time.monotonic()
    while True:
        (heard,) = use(platform, 1)
        if heard.ended == "complete":
            print(f"served again after {time.monotonic() - began:.1f} s")
            return heard
        assert (heard.status, heard.code) == (503, "metering_unavailable"), heard
        assert time.monotonic() - began < WAIT_SECONDS
        time.sleep(0.05)


def settle(platform: Platform, parts: Apart, heard: list[Heard]) -> None:
    """Wait until everything is collected; verify and check it."""
    wait_until_idle(platform.truth_log)
    attempts = read_truth(platform.truth_log)
    platform.wait_until_billed(len(attempts))
    assert parts.gateway.end(signal.SIGTERM) == 0, parts.gateway.out.read_text()
    assert parts.control.end(signal.SIGTERM) == 0
    verified = tollway("verify", "--data-dir", str(platform.directory))
    assert verified.returncode == 0, verified.stdout + verified.stderr
    billed = check_bills(attempts, read_bills(platform.database_url), heard, PRICES)
    print(f"bills: {dict(billed)}")
    assert billed["completed"] >= sum(each.ended == "complete" for each in heard)


def test_a_sync_that_fails_ends_the_run_and_the_next_one_serves_once_the_disk_is_well(tmp_path: Path) -> None:
    with (
        ext4(tmp_path, "continue") as disk,  # a disk that can be well again without a new mount
        apart(tmp_path, gateway_arguments=SMALL_SPOOL, gateway_directory=disk.place) as (platform, parts),
    ):
        heard = use(platform, 10)
        assert {each.ended for each in heard} == {"complete"}
        parts.control.end(signal.SIGKILL)  # else what the disk never got would be with control before it is missed
        disk.break_device()
        heard += strike(platform, parts, 3000)
        assert parts.gateway.end(signal.SIGTERM) == 1, "a spool that failed ends the process"
        assert "spool_failed" in [line.get("event") for line in lines_of_log(parts.gateway.out)]
        parts.gateway.launch()
        refused = wait_until_refused(platform, parts)
        assert (refused.status, refused.code) == (503, "metering_unavailable")
        disk.mend_device()
        heard += [refused, wait_until_served(platform)]
        assert parts.gateway.end(signal.SIGTERM) == 0
        # What recovery calls closed must be on the disk, not only in the memory that a failed sync left behind.
        disk.unmount()
        disk.mount()
        inspected = tollway("spool", "inspect", "--spool", str(disk.place / "gateway" / "spool"))
        assert inspected.returncode == 0, inspected.stdout
        parts.control.start()
        parts.gateway.start()
        heard += use(platform, 5)
        settle(platform, parts, heard)


def test_a_disk_that_turns_read_only_ends_the_run_and_loses_no_record(tmp_path: Path) -> None:
    with (
        ext4(tmp_path) as disk,
        apart(tmp_path, gateway_arguments=SMALL_SPOOL, gateway_directory=disk.place) as (platform, parts),
    ):
        heard = use(platform, 10)
        disk.turn_read_only()
        struck = strike(platform, parts, 100)
        assert not any(each.ended == "complete" for each in struck)
        assert parts.gateway.end(signal.SIGTERM) == 1, "a spool that failed ends the process"
        parts.gateway.launch()
        refused = wait_until_refused(platform, parts)
        assert (refused.status, refused.code) == (503, "metering_unavailable")
        assert parts.gateway.end(signal.SIGTERM) == 0, "one that waits for its disk can be stopped"
        disk.unmount()
        disk.mount()
        parts.gateway.start()
        heard += [*struck, refused, *use(platform, 5)]
        settle(platform, parts, heard)


def test_a_gateway_that_finds_its_disk_read_only_refuses_until_it_can_write(tmp_path: Path) -> None:
    with (
        ext4(tmp_path) as disk,
        apart(tmp_path, gateway_arguments=SMALL_SPOOL, gateway_directory=disk.place) as (platform, parts),
    ):
        heard = use(platform, 5)
        assert parts.gateway.end(signal.SIGKILL) == -signal.SIGKILL
        disk.remount("ro")
        parts.gateway.launch()
        refused = wait_until_refused(platform, parts)
        assert (refused.status, refused.code) == (503, "metering_unavailable")
        disk.remount("rw")
        heard += [refused, wait_until_served(platform), *use(platform, 5)]
        events = [line.get("event") for line in lines_of_log(parts.gateway.out)]
        assert events.count("spool_waits") <= 2, "told once, not every second"
        settle(platform, parts, heard)
