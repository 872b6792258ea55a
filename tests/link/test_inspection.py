"""Inspection: whatever a disk did to an epoch, it is never a crash of the tool, always a named place, and what is readable is read."""

import asyncio
import os
from pathlib import Path

import pytest

from tests.link.samples import admit, ended, final
from tests.link.spools import no_alarm, read_epoch
from tollway.domain.usage import encode
from tollway.link.epochs import EpochFiles, list_epochs
from tollway.link.inspection import FoundRecord, Inspection, inspect, read_records
from tollway.link.spool import Spool, SpoolOptions

SMALL = SpoolOptions(segment_bytes=16_384, slots_max=16, tick_seconds=3600)


async def closed(directory: Path, requests: int) -> EpochFiles:
    """A closed epoch with so many requests, the last of them cut short by the stop."""
    spool = Spool.open(directory, alarm=no_alarm, options=SMALL)
    for number in range(requests - 1):
        while not spool.is_writable():
            await asyncio.sleep(0.005)
        await ended(spool, spool.admit(encode(admit(number))), final(admit(number)))
    spool.admit(encode(admit(requests)))
    await spool.close()
    (epoch,) = list_epochs(directory)
    return epoch


def read(epoch: EpochFiles) -> tuple[Inspection, list[FoundRecord]]:
    found = Inspection()
    return found, list(read_records(epoch, found))


async def test_what_is_whole_is_read_as_the_strict_reader_does(tmp_path: Path) -> None:
    epoch = await closed(tmp_path, 60)
    assert len(epoch.list_segments()) > 2
    found, records = read(epoch)
    assert [each.record for each in records] == read_epoch(epoch)
    assert [each.seq for each in records] == list(range(1, len(records) + 1))
    assert all(each.is_verified for each in records)
    assert (found.problems, found.unverified, found.open, found.next_seq) == ([], 0, {}, len(records) + 1)


async def test_a_flip_of_any_byte_is_named_and_costs_no_record_but_its_own(tmp_path: Path) -> None:
    epoch = await closed(tmp_path, 2)
    path = epoch.segment_path(1)
    data = path.read_bytes()
    whole = [encode(each.record) for each in read(epoch)[1]]
    assert len(data) < 4096 and len(whole) == 5
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        found, records = read(epoch)
        assert found.problems, f"byte {at} of {len(data)}: nobody noticed"
        problem = found.problems[0]
        assert problem.segment == 1 and 0 <= problem.offset <= at, f"byte {at}: {problem}"
        payloads = [encode(each.record) for each in records]
        assert len(payloads) >= len(whole) - 1 and set(payloads) <= set(whole), f"byte {at}: {len(payloads)} records are left"
        before = [each for each in records if each.is_verified]
        assert [each.seq for each in before] == list(range(1, len(before) + 1)), "verified means that nothing is missing before it"
        assert all(each.offset < problem.offset for each in before)


async def test_a_flip_of_any_byte_of_a_living_epoch_is_named_or_a_torn_tail(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, alarm=no_alarm, options=SMALL)
    slot = spool.admit(encode(admit(1)))
    await ended(spool, slot, final(admit(1)))
    spool.admit(encode(admit(2)))
    path = spool.epoch.segment_path(1)
    data = path.read_bytes()
    end = len(data.rstrip(b"\0"))
    for at in range(end + 64):
        fd = os.open(path, os.O_RDWR)
        os.pwrite(fd, bytes([data[at] ^ 1 << at % 8]), at)
        found = inspect(spool.epoch)
        assert found.problems or found.torn_bytes, f"byte {at} of {end}: nobody noticed"
        os.pwrite(fd, data[at : at + 1], at)
        os.close(fd)
    found = inspect(spool.epoch)
    assert (found.problems, found.torn_bytes, list(found.open)) == ([], 0, [admit(2).request_id])
    await spool.close()


@pytest.mark.parametrize("lost", ["first", "middle", "last", "cut", "swapped", "noise"])
async def test_a_segment_that_is_gone_or_wrong_is_named(tmp_path: Path, lost: str) -> None:
    epoch = await closed(tmp_path, 60)
    numbers = epoch.list_segments()
    whole = len(read(epoch)[1])
    first, middle, last = (epoch.segment_path(number) for number in (numbers[0], numbers[1], numbers[-1]))
    match lost:
        case "first":
            first.unlink()
        case "middle":
            middle.unlink()
        case "last":
            last.unlink()
        case "cut":
            os.truncate(middle, 5000)
        case "swapped":
            other = middle.read_bytes()
            middle.write_bytes(last.read_bytes())
            last.write_bytes(other)
        case "noise":
            middle.write_bytes(os.urandom(16_384))
    found, records = read(epoch)
    assert len(records) <= whole
    if lost == "first":
        assert not found.problems and len(records) < whole, "control has the oldest ones: they may be gone"
    else:
        assert found.problems, lost
    if lost == "middle":
        assert "are missing" in str(found.problems[0])
        assert found.unverified


async def test_notes_that_are_damaged_hide_nothing(tmp_path: Path) -> None:
    epoch = await closed(tmp_path, 2)
    for name, content in (("closed", b"\xff"), ("shipped", b"{}"), ("damaged", b"")):
        (epoch.directory / name).write_bytes(content)
    assert inspect(epoch).problems == []
    (epoch.directory / "closed").write_bytes(b'{"next_seq":99}')
    assert "closed before record 99" in str(inspect(epoch).problems[0])
