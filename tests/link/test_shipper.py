"""The shipper: every record arrives, in order, whatever control does; and nothing leaves the disk that control does not have."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from errno import EIO, ENOENT, ENOSPC
from pathlib import Path

import pytest

from tests.control.harness import NODE_ID, Running
from tests.link.link_server import Answer, Collector, Hangup, LinkServer, Request, until
from tests.link.samples import EPOCH, ORGANIZATION, admit, ended, final
from tests.link.spools import Alarms, finals, no_alarm, read_epoch
from tests.storage.databases import fill
from tollway.control.verification.verify import verify
from tollway.domain.billing_classes import NOTHING, Quantities
from tollway.domain.usage import Admit, encode
from tollway.link import shipper
from tollway.link.disk import DISK
from tollway.link.epochs import list_epochs
from tollway.link.recovery import Alarm
from tollway.link.shipper import Shipper, ShipperOptions
from tollway.link.spool import Spool, SpoolOptions
from tollway.storage.record_archive import Archive
from tollway.wire.progress_slots import write_quantities
from tollway.wire.segments import Reader, first_chain

OPTIONS = SpoolOptions(segment_bytes=65_536, slots_max=32, tick_seconds=3600)


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses and small batches, so that a test sees many of both."""
    monkeypatch.setattr(shipper, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(shipper, "BACKOFF_SECONDS_MIN", 0.01)
    monkeypatch.setattr(shipper, "BACKOFF_SECONDS_MAX", 0.05)
    monkeypatch.setattr(shipper, "CARE_SECONDS", 0.05)
    monkeypatch.setattr(shipper, "BATCH_BYTES", 70_000)


def make(opened: Spool, directory: Path, url: str, alarm: Alarm = no_alarm, options: ShipperOptions | None = None) -> Shipper:
    return Shipper(opened, directory, control_link_url=url, node_key="tw_node_x", alarm=alarm, options=options)


@asynccontextmanager
async def running(each: Shipper) -> AsyncIterator[None]:
    task = asyncio.create_task(each.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def use(opened: Spool, numbers: range) -> None:
    """Some requests, from beginning to end."""
    for number in numbers:
        while not opened.is_writable():
            await asyncio.sleep(0.001)
        await ended(opened, opened.admit(encode(admit(number))), final(admit(number)))


def assert_arrived(collector: Collector, directory: Path) -> None:
    """Control has, for every epoch, exactly the records that lie here."""
    for epoch in list_epochs(directory):
        (place,) = [place for place in collector.taken if place[1] == epoch.number]
        reader = Reader(1, first_chain(*place))
        payloads = [frame.payload for frame in reader.read(collector.taken[place])]
        assert payloads == [encode(record) for record in read_epoch(epoch)]


class TestArrives:
    async def test_over_a_control_that_fails_in_every_way(self, tmp_path: Path) -> None:
        collector, chance = Collector(), random.Random(3)

        async def answer(request: Request) -> Answer:
            dice = chance.random()
            if dice < 0.15:
                raise Hangup
            if dice < 0.3:
                return 503, b"{}"
            if dice < 0.4:
                await collector.answer(request)
                raise Hangup  # done, but never said
            if dice < 0.45:
                return 200, b"not what was agreed"
            return await collector.answer(request)

        opened = Spool.open(tmp_path, alarm=no_alarm, options=OPTIONS)
        async with LinkServer(answer) as server:
            each = make(opened, tmp_path, server.url, Alarms())
            async with running(each):
                await use(opened, range(300))
                await until(lambda: opened.committed.seq in {reader.next_seq for reader in collector.readers.values()})
            await opened.close()
            assert await each.finish(30) is True
        assert_arrived(collector, tmp_path)
        assert (opened.epoch.directory / "shipped").exists()

    async def test_a_control_that_forgot_is_told_again(self, tmp_path: Path) -> None:
        collector = Collector()
        opened = Spool.open(tmp_path, alarm=no_alarm, options=OPTIONS)
        async with LinkServer(collector.answer) as server:
            each = make(opened, tmp_path, server.url)
            async with running(each):
                await use(opened, range(50))
                await until(lambda: bool(collector.taken))
                collector.taken.clear()
                collector.readers.clear()
                await use(opened, range(50, 100))
                await until(lambda: opened.committed.seq in {reader.next_seq for reader in collector.readers.values()})
            await opened.close()
            assert await each.finish(30) is True
        assert_arrived(collector, tmp_path)

    async def test_a_control_that_was_restored_is_told_again_of_former_lives(self, tmp_path: Path) -> None:
        before = Spool.open(tmp_path, alarm=no_alarm, options=OPTIONS)
        await use(before, range(30))
        await before.close()
        for _ in range(2):
            restored = Collector()  # knows nothing: its backup was older
            former = {epoch.number for epoch in list_epochs(tmp_path)}
            opened = Spool.open(tmp_path, alarm=no_alarm, options=OPTIONS)
            async with LinkServer(restored.answer) as server:
                each = make(opened, tmp_path, server.url)
                async with running(each):
                    await until(lambda former=former, taken=restored.taken: former <= {number for _, number in taken})  # type: ignore[misc]
                await opened.close()
                assert await each.finish(30) is True
            assert_arrived(restored, tmp_path)

    async def test_former_lives_and_dead_ones_go_too(self, tmp_path: Path) -> None:
        collector = Collector()
        for life in range(3):
            before = Spool.open(tmp_path, alarm=no_alarm, options=OPTIONS)
            await use(before, range(life * 10, life * 10 + 5))
            before.admit(encode(admit(life * 10 + 5)))
            await before.close()
        opened = Spool.open(tmp_path, alarm=no_alarm, options=OPTIONS)
        async with LinkServer(collector.answer) as server:
            each = make(opened, tmp_path, server.url)
            async with running(each):
                await until(lambda: sum((epoch.directory / "shipped").exists() for epoch in list_epochs(tmp_path)) == 3)
            await opened.close()
            assert await each.finish(30) is True
        assert_arrived(collector, tmp_path)
        puts = [request.path.split("/")[5] for request in server.requests if request.method == "PUT"]
        assert puts == sorted(puts), "oldest first"

    async def test_dead_one_waits_until_it_is_known_what_of_it_counts(self, tmp_path: Path) -> None:
        collector, alarms, is_known, asked = Collector(), Alarms(), False, 0

        def count_none(each: Admit) -> bool:
            nonlocal asked
            asked += 1
            if not is_known:
                raise FileNotFoundError(ENOENT, "the directory with the answers")
            return False

        before = Spool.open(tmp_path, alarm=no_alarm, options=OPTIONS, counts=lambda: count_none)
        write_quantities(before.progress, before.admit(encode(admit(1))), Quantities(90, 0, 11), NOTHING)
        with pytest.raises(FileNotFoundError):
            await before.close()
        opened = Spool.open(tmp_path, alarm=alarms, options=OPTIONS, counts=lambda: count_none)
        async with LinkServer(collector.answer) as server:
            each = make(opened, tmp_path, server.url, alarms)
            async with running(each):
                await until(lambda: asked >= 4)
                assert not before.epoch.is_closed() and set(alarms.names()) == {"spool_recovery_failed"}
                is_known = True
                await until(lambda: (before.epoch.directory / "shipped").exists())
            await opened.close()
            assert await each.finish(30) is True
        assert [final.used for final in finals(read_epoch(before.epoch))] == [NOTHING]
        assert_arrived(collector, tmp_path)

    async def test_without_control_the_stop_is_not_held_up_and_nothing_is_lost(self, tmp_path: Path) -> None:
        opened = Spool.open(tmp_path, alarm=no_alarm, options=OPTIONS)
        each = make(opened, tmp_path, "http://127.0.0.1:9", Alarms())
        await use(opened, range(3))
        await opened.close()
        assert await each.finish(0.05) is False
        assert len(read_epoch(list_epochs(tmp_path)[0])) == 7


class TestSickDisk:
    async def test_a_disk_that_takes_no_note_is_come_back_to_and_stops_nothing(self, tmp_path: Path) -> None:
        collector, alarms, is_full = Collector(), Alarms(), True

        def open_(path: Path, flags: int, mode: int) -> int:
            if is_full and "shipped" in path.name:
                raise OSError(ENOSPC, "injected")
            return os.open(path, flags, mode)

        before = Spool.open(tmp_path, alarm=no_alarm, options=OPTIONS)
        await use(before, range(5))
        await before.close()
        opened = Spool.open(tmp_path, alarm=no_alarm, options=OPTIONS, disk=replace(DISK, open=open_))
        async with LinkServer(collector.answer) as server:
            each = make(opened, tmp_path, server.url, alarms)
            async with running(each):
                await until(lambda: "spool_shipping_waits" in alarms.names())
                await use(opened, range(5, 10))
                await until(lambda: opened.committed.seq in {reader.next_seq for reader in collector.readers.values()})
                assert not (before.epoch.directory / "shipped").exists()
                is_full = False
                await until(lambda: (before.epoch.directory / "shipped").exists())
            await opened.close()
            assert await each.finish(30) is True
        assert alarms.names() == ["spool_shipping_waits"]
        assert_arrived(collector, tmp_path)

    async def test_what_control_has_makes_space_though_no_note_can_be_written(self, tmp_path: Path) -> None:
        def open_(path: Path, flags: int, mode: int) -> int:
            if "shipped" in path.name:
                raise OSError(ENOSPC, "injected")
            return os.open(path, flags, mode)

        collector = Collector()
        before = Spool.open(tmp_path, alarm=no_alarm, options=OPTIONS)
        await use(before, range(5))
        await before.close()
        opened = Spool.open(tmp_path, alarm=no_alarm, options=OPTIONS, disk=replace(DISK, open=open_))
        async with LinkServer(collector.answer) as server:
            each = make(opened, tmp_path, server.url, Alarms(), ShipperOptions(free_bytes_min=1 << 62))
            async with running(each):
                await until(lambda: not before.epoch.directory.exists())
            await opened.close()
            await each.finish(30)

    async def test_a_directory_that_cannot_be_read_for_a_while_does_not_end_it(self, tmp_path: Path) -> None:
        collector, alarms, is_down = Collector(), Alarms(), False

        def listdir(path: Path) -> list[str]:
            if is_down:
                raise OSError(EIO, "injected")
            return os.listdir(path)

        opened = Spool.open(tmp_path, alarm=no_alarm, options=OPTIONS, disk=replace(DISK, listdir=listdir))
        is_down = True
        async with LinkServer(collector.answer) as server:
            each = make(opened, tmp_path, server.url, alarms)
            async with running(each):
                await until(lambda: "spool_shipping_waits" in alarms.names())
                is_down = False
                await use(opened, range(5))
                await until(lambda: opened.committed.seq in {reader.next_seq for reader in collector.readers.values()})
            await opened.close()
            assert await each.finish(30) is True


class TestRefused:
    async def test_an_epoch_that_control_refuses_stops_with_an_alarm_and_the_others_go_on(self, tmp_path: Path) -> None:
        collector, alarms = Collector(), Alarms()
        before = Spool.open(tmp_path, alarm=no_alarm, options=OPTIONS)
        await use(before, range(5))
        await before.close()
        path = before.epoch.segment_path(1)
        data = path.read_bytes()
        path.write_bytes(data[:900] + bytes([data[900] ^ 1]) + data[901:])
        opened = Spool.open(tmp_path, alarm=no_alarm, options=OPTIONS)
        async with LinkServer(collector.answer) as server:
            each = make(opened, tmp_path, server.url, alarms)
            async with running(each):
                await use(opened, range(10, 15))
                await until(lambda: any(number == opened.epoch.number for _, number in collector.taken))
            assert alarms.names() == ["spool_shipping_stopped"]
            assert each.metrics.epochs_stopped == 1
            await opened.close()
            assert await each.finish(30) is True
        assert before.epoch.segment_path(1).exists()

    async def test_81_epoch_of_a_wrong_clock_waits_with_an_alarm_while_later_ones_are_shipped_and_is_offered_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shipper, "REFUSED_SECONDS", 0.05)
        collector, alarms, refused = Collector(), Alarms(), set[int]()

        async def answer(request: Request) -> Answer:
            if request.method == "PUT" and int(request.path.split("/")[5]) in refused:
                return 403, b'{"error":{"code":"epoch_refused"}}'
            return await collector.answer(request)

        ahead = Spool.open(tmp_path, alarm=no_alarm, options=OPTIONS, clock=lambda: EPOCH + 10**13)
        refused.add(ahead.epoch.number)
        await use(ahead, range(5))
        await ahead.close()
        opened = Spool.open(tmp_path, alarm=no_alarm, options=OPTIONS, clock=lambda: EPOCH + 10**7)
        async with LinkServer(answer) as server:
            each = make(opened, tmp_path, server.url, alarms)
            async with running(each):
                await use(opened, range(10, 15))
                await until(lambda: any(number == opened.epoch.number for _, number in collector.taken))
                await until(lambda: sum(f"/{ahead.epoch.number}/" in request.path for request in server.requests) > 3)
                assert each.metrics.epochs_refused == 1
                assert alarms.names() == ["epoch_refused"]
                refused.clear()
                await until(lambda: any(number == ahead.epoch.number for _, number in collector.taken))
                await until(lambda: each.metrics.epochs_refused == 0)
            await opened.close()
            assert await each.finish(30) is True
        assert alarms.names() == ["epoch_refused"]
        assert_arrived(collector, tmp_path)


class TestSpace:
    async def test_only_what_control_has_is_removed(self, tmp_path: Path) -> None:
        collector = Collector()
        before = Spool.open(tmp_path, alarm=no_alarm, options=OPTIONS)
        await use(before, range(5))
        await before.close()
        opened = Spool.open(tmp_path, alarm=no_alarm, options=OPTIONS)
        server = LinkServer(collector.answer)
        async with server:
            pass  # the address is known, nobody listens
        each = make(opened, tmp_path, server.url, Alarms(), ShipperOptions(free_bytes_min=1 << 60))
        async with running(each):
            await use(opened, range(10, 200))
            assert len(opened.epoch.list_segments()) > 3
            assert list_epochs(tmp_path)[0].number == before.epoch.number, "what is not shipped stays, however short space is"
            async with server:
                await until(lambda: not before.epoch.directory.exists())
                await until(lambda: opened.epoch.list_segments()[0] > 1)
                await until(lambda: opened.committed.seq in {reader.next_seq for reader in collector.readers.values()})
        await opened.close()
        assert await each.finish(0) is False
        assert len(collector.taken) == 2

    async def test_what_is_neither_old_nor_in_the_way_is_kept(self, tmp_path: Path) -> None:
        collector = Collector()
        lives = []
        for life in range(2):
            before = Spool.open(tmp_path, alarm=no_alarm, options=OPTIONS)
            await use(before, range(life * 5, life * 5 + 5))
            await before.close()
            lives.append(before.epoch)
        opened = Spool.open(tmp_path, alarm=no_alarm, options=OPTIONS)
        async with LinkServer(collector.answer) as server:
            each = make(opened, tmp_path, server.url, no_alarm, ShipperOptions(keep_days=7, free_bytes_min=0))
            async with running(each):
                await until(lambda: all((epoch.directory / "shipped").exists() for epoch in lives))
                os.utime(lives[0].directory / "shipped", (1, 1))
                await until(lambda: not lives[0].directory.exists())
            assert lives[1].directory.exists()
            await opened.close()
            assert await each.finish(30) is True


async def test_from_the_gateways_disk_to_the_ledger(tmp_path: Path, control: Running) -> None:
    fill(control.plane.database)
    # The run begins when the samples do: control quarantines records that lie before their run.
    opened = Spool.open(tmp_path / "spool", alarm=no_alarm, node_id=NODE_ID, clock=lambda: EPOCH, options=OPTIONS)
    each = Shipper(opened, tmp_path / "spool", control_link_url=control.link_url, node_key=control.node_key, alarm=no_alarm)
    async with running(each):
        await use(opened, range(120))
    opened.admit(encode(admit(999)))
    await opened.close()
    assert await each.finish(30) is True
    report = verify(control.plane.database, Archive(control.plane.archive_directory))
    assert (report.differences, report.events, report.epochs) == ([], 121, 1)
    balances = await asyncio.to_thread(
        lambda: control.operator().get("/v1/platform/ledger/balances", params={"owner": ORGANIZATION}).json()
    )
    cost = 100 * 270_000 + 20 * 27_000 + 34 * 1_100_000 + 5
    assert [item["amount_pico"] for item in balances["data"]] == [str(120 * cost)]
