"""The follower: in order, without gaps, on disk before it is acknowledged, and never back."""

import asyncio
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.link.link_server import Answer, LinkServer, Publisher, Request, until
from tests.link.spools import Alarms, no_alarm
from tests.patience import PATIENCE_SECONDS
from tollway.domain.limits import UNLIMITED, Limits
from tollway.domain.prices import PriceTerms
from tollway.domain.snapshot import (
    BudgetEntry,
    CertificateEntry,
    Change,
    DeploymentEntry,
    Entry,
    IssuerEntry,
    KeyEntry,
    ModelEntry,
    OrganizationEntry,
    ProjectEntry,
    SigningKeyEntry,
    change,
    kind_of,
)
from tollway.gateway.directory import Directory
from tollway.link import snapshot_copies, snapshot_follower
from tollway.link.recovery import Alarm
from tollway.link.snapshot_copies import ChangeLog, CopyDamaged, SnapshotDraft, find_confirmation, load_copy, write_copy
from tollway.link.snapshot_follower import Follower


def organization(number: int, currency: str = "EUR") -> OrganizationEntry:
    return OrganizationEntry(id=f"org_{number:032x}", currency=currency)


@dataclass
class Mirror:
    """A target that keeps what it is told, and how."""

    version: int = 0
    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    building: dict[tuple[str, str], Entry] = field(default_factory=dict)
    applied: list[int] = field(default_factory=list)
    resets: int = 0

    def begin_reset(self) -> None:
        self.building = {}

    def add(self, entry: Entry) -> None:
        self.building[kind_of(entry), entry.id] = entry

    def release_part(self) -> bool:
        return False

    def finish_reset(self, version: int) -> None:
        self.entries, self.version = self.building, version
        self.resets += 1

    def apply(self, change: Change) -> None:
        self.applied.append(change.version)
        if change.entry is None:
            self.entries.pop((change.kind, change.id), None)
        else:
            self.entries[change.kind, change.id] = change.entry
        self.version = change.version


def follower(
    mirror: Mirror, directory: Path, url: str, alarm: Alarm = no_alarm, clock: Callable[[], int] = lambda: time.time_ns() // 1000
) -> Follower:
    return Follower(mirror, directory, control_link_url=url, node_key="tw_node_x", node_id="node_x", alarm=alarm, clock=clock)


@asynccontextmanager
async def running(each: Follower) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(run()) for run in (each.run, each.acknowledge)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        await each.close()
        assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends


def on_disk(directory: Path) -> tuple[int, dict[tuple[str, str], Entry]]:
    copy = load_copy(directory)
    assert copy is not None
    return copy.version, {(kind_of(entry), entry.id): entry for entry in copy.entries()}


def test_the_directory_of_the_gateway_is_a_target() -> None:
    target: snapshot_follower.Target = Directory()
    assert target.version == 0


class TestFollowing:
    async def test_a_first_start_reads_everything_then_each_change(self, tmp_path: Path) -> None:
        control, mirror = Publisher(), Mirror()
        for number in range(450):
            control.publish("organization", organization(number).id, organization(number))
        async with LinkServer(control.answer) as server:
            each = follower(mirror, tmp_path, server.url)
            assert await each.start() is False
            async with running(each):
                await until(lambda: mirror.version == 450)
                for number in range(0, 450, 9):
                    control.publish("organization", organization(number).id, None)
                control.publish("organization", organization(1).id, organization(1, "USD"))
                await until(lambda: mirror.version == control.version and control.version in control.acks)
                assert mirror.entries == control.entries
                assert mirror.applied == list(range(451, control.version + 1))
                assert mirror.resets == 1
                assert on_disk(tmp_path) == (control.version, control.entries)
                assert each.snapshot_age_seconds is not None
            assert {request.authorization for request in server.requests} == {"Bearer tw_node_x"}

    async def test_what_is_acknowledged_is_on_disk(self, tmp_path: Path) -> None:
        control, mirror = Publisher(), Mirror()
        seen: list[tuple[int, int]] = []

        async def answer(request: Request) -> Answer:
            result = await control.answer(request)
            if request.path == "/v1/link/ack":
                seen.append((control.acks[-1], on_disk(tmp_path)[0]))
            return result

        async with LinkServer(answer) as server, running(follower(mirror, tmp_path, server.url)):
            for number in range(30):
                control.publish("organization", organization(number).id, organization(number))
                await asyncio.sleep(0.01)
            await until(lambda: control.version in control.acks)
        assert all(stored >= acked for acked, stored in seen)

    async def test_a_restart_goes_on_from_the_copy_without_control(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(snapshot_follower, "FIRST_CONTACT_SECONDS", 0.0)
        control, mirror = Publisher(), Mirror()
        control.publish("organization", organization(1).id, organization(1))
        async with LinkServer(control.answer) as server, running(follower(mirror, tmp_path, server.url)):
            await until(lambda: mirror.version == 1)
            control.publish("organization", organization(1).id, None)
            control.publish("organization", organization(2).id, organization(2))
            await until(lambda: 3 in control.acks)
        alarms, again = Alarms(), Mirror()
        each = follower(again, tmp_path, server.url, alarms)
        assert await each.start() is True
        assert (again.version, again.entries) == (3, control.entries)
        async with running(each):
            await until(lambda: "control_unreachable" in alarms.names())
            async with server:  # control is back, at the same address
                control.publish("organization", organization(3).id, organization(3))
                await until(lambda: again.version == 4)
        assert again.resets == 1, "only from disk: what was missed came as changes"

    async def test_a_version_that_is_missing_means_reading_everything(self, tmp_path: Path) -> None:
        control, mirror = Publisher(), Mirror()
        async with LinkServer(control.answer) as server, running(follower(mirror, tmp_path, server.url)):
            control.publish("organization", organization(1).id, organization(1))
            await until(lambda: mirror.version == 1)
            control.publish("organization", organization(2).id, organization(2))
            control.publish("organization", organization(3).id, organization(3))
            del control.changes[-2]
            await until(lambda: mirror.version == 3)
            assert mirror.entries == control.entries
            assert mirror.resets >= 2
            await until(lambda: 3 in control.acks)
            assert on_disk(tmp_path) == (3, control.entries)

    async def test_changes_that_are_kept_no_more_mean_reading_everything(self, tmp_path: Path) -> None:
        write_copy(tmp_path, 1, [organization(1)])
        control, mirror = Publisher(version=50, oldest=40), Mirror()
        control.entries["organization", organization(9).id] = organization(9)
        async with LinkServer(control.answer) as server:
            each = follower(mirror, tmp_path, server.url)
            await each.start()
            assert mirror.version == 1
            async with running(each):
                await until(lambda: mirror.version == 50)
        assert mirror.entries == control.entries

    async def test_follower_that_is_stopped_while_the_log_begins_anew_closes_the_new_log(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_copy(tmp_path, 1, [organization(1)])
        control, mirror, began, may_end = Publisher(version=50, oldest=40), Mirror(), threading.Event(), threading.Event()
        restart, descriptors = ChangeLog.restart, set(os.listdir("/proc/self/fd"))

        def slow_restart(log: ChangeLog, version: int) -> None:
            began.set()
            may_end.wait(PATIENCE_SECONDS)
            restart(log, version)

        monkeypatch.setattr(ChangeLog, "restart", slow_restart)
        async with LinkServer(control.answer) as server:
            each = follower(mirror, tmp_path, server.url)
            await each.start()
            task = asyncio.create_task(each.run())
            await asyncio.to_thread(began.wait, PATIENCE_SECONDS)
            task.cancel()
            await asyncio.wait({task}, timeout=0.05)
            may_end.set()
            await asyncio.wait({task})
            await each.close()
        assert set(os.listdir("/proc/self/fd")) <= descriptors
        assert on_disk(tmp_path)[0] == 50

    async def test_an_older_snapshot_never_takes_the_place_of_a_newer(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(snapshot_follower, "FIRST_CONTACT_SECONDS", 0.0)
        write_copy(tmp_path, 9, [organization(1)])
        control, mirror, alarms = Publisher(version=5), Mirror(), Alarms()
        async with LinkServer(control.answer) as server:
            each = follower(mirror, tmp_path, server.url, alarms)
            await each.start()
            async with running(each):
                await until(lambda: "control_unreachable" in alarms.names())
                assert "older" in str(alarms.events[-1])
                assert (mirror.version, len(mirror.entries)) == (9, 1)
        assert on_disk(tmp_path)[0] == 9

    async def test_where_streams_are_held_back_it_polls(self, tmp_path: Path) -> None:
        control, mirror = Publisher(streams=False), Mirror()
        async with LinkServer(control.answer) as server, running(follower(mirror, tmp_path, server.url, Alarms())):
            for number in range(1, 4):
                control.publish("organization", organization(number).id, organization(number))
                await until(lambda number=number: mirror.version == number)  # type: ignore[misc]
        assert any(request.query.get("follow") == "false" for request in server.requests)

    async def test_silence_is_taken_for_a_dead_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(snapshot_follower, "SILENCE_SECONDS_MAX", 0.1)
        control, mirror = Publisher(heartbeats=False), Mirror()
        async with LinkServer(control.answer) as server, running(follower(mirror, tmp_path, server.url, Alarms())):
            await until(lambda: sum(request.query.get("follow") == "true" for request in server.requests) >= 3)

    async def test_cut_lines_and_broken_snapshots_are_survived(self, tmp_path: Path) -> None:
        control, mirror, chance = Publisher(), Mirror(), random.Random(5)
        for number in range(300):
            control.publish("organization", organization(number).id, organization(number))

        async def answer(request: Request) -> Answer:
            status, body = await control.answer(request)
            if isinstance(body, bytes) and len(body) > 100 and chance.random() < 0.7:
                return status, body[: chance.randrange(len(body))]
            return status, body

        async with LinkServer(answer) as server, running(follower(mirror, tmp_path, server.url, Alarms())):
            await until(lambda: mirror.version == 300)
            assert mirror.entries == control.entries
            for number in range(300, 320):
                control.publish("organization", organization(number).id, organization(number))
                server.hang_up()
                await asyncio.sleep(0.02)
            await until(lambda: mirror.version == 320)
        assert mirror.entries == control.entries

    async def test_the_loop_goes_on_while_a_snapshot_is_read(self, tmp_path: Path) -> None:
        control, mirror = Publisher(version=1), Mirror()
        for number in range(5000):
            control.entries["organization", organization(number).id] = organization(number)
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while mirror.version == 0:
                turns += bool(mirror.building)
                await asyncio.sleep(0)

        async with LinkServer(control.answer) as server, running(follower(mirror, tmp_path, server.url)):
            await turn()
        assert turns >= 5000 / snapshot_copies.YIELD_ENTRIES

    async def test_a_damaged_copy_is_as_none(self, tmp_path: Path) -> None:
        write_copy(tmp_path, 3, [organization(1)])
        (file,) = tmp_path.glob("snapshot-*")
        file.write_bytes(file.read_bytes().replace(b"EUR", b"USD"))
        control, mirror, alarms = Publisher(version=2), Mirror(), Alarms()
        control.entries["organization", organization(2).id] = organization(2)
        async with LinkServer(control.answer) as server:
            each = follower(mirror, tmp_path, server.url, alarms)
            assert await each.start() is False
            assert alarms.names() == ["snapshot_copy_unusable"]
            async with running(each):
                await until(lambda: mirror.version == 2)


class TestCopies:
    def test_none_where_nothing_was_ever_written(self, tmp_path: Path) -> None:
        assert load_copy(tmp_path / "nowhere") is None
        assert load_copy(tmp_path) is None

    @given(data=st.data())
    def test_the_copy_is_what_was_written_whatever_happens_in_between(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        directory = tmp_path_factory.mktemp("copy")
        entries: dict[tuple[str, str], Entry] = {}
        version = data.draw(st.integers(0, 5))
        write_copy(directory, version, [])
        logs = [ChangeLog(directory, version)]
        steps = st.sampled_from(["change", "remove", "restart", "compact", "second", "reopen", "torn"])
        for step in data.draw(st.lists(steps, max_size=25)):
            number = data.draw(st.integers(0, 4))
            match step:
                case "change" | "remove":
                    version += 1
                    entry = None if step == "remove" else organization(number, data.draw(st.sampled_from(["EUR", "USD"])))
                    change = Change(version=version, kind="organization", id=organization(number).id, entry=entry)
                    for log in logs:  # every process that follows writes what it is told
                        log.append([(version, msgspec.json.encode(change))])
                    entries.pop(("organization", change.id), None)
                    if entry is not None:
                        entries["organization", entry.id] = entry
                case "restart":
                    logs[0].restart(version)
                case "compact":
                    logs[-1].compact(version)
                case "second" if len(logs) < 3:
                    logs.append(ChangeLog(directory, version))
                case "reopen":
                    logs.pop(0).close()
                    logs.append(ChangeLog(directory, version))
                case "torn":
                    log = logs.pop(0)
                    log.close()
                    newest = max(directory.glob("changes-*"), key=lambda path: path.stat().st_mtime_ns)
                    if len(logs) == 0:
                        with newest.open("ab") as file:
                            file.write(b"12345678 {tor")
                    logs.append(ChangeLog(directory, version))
            assert on_disk(directory) == (version, entries)
        for log in logs:
            log.close()

    def test_a_wrong_line_before_others_is_not_skipped(self, tmp_path: Path) -> None:
        write_copy(tmp_path, 0, [])
        log = ChangeLog(tmp_path, 0)
        for version in (1, 2, 3):
            change = Change(version=version, kind="organization", id=organization(version).id, entry=organization(version))
            log.append([(version, msgspec.json.encode(change))])
        log.close()
        (file,) = tmp_path.glob("changes-*")
        data = file.read_bytes()
        file.write_bytes(data[:20] + b"x" + data[21:])
        with pytest.raises(CopyDamaged):
            load_copy(tmp_path)

    def test_what_is_superseded_goes_and_what_is_held_stays(self, tmp_path: Path) -> None:
        write_copy(tmp_path, 1, [organization(1)])
        mine, others = ChangeLog(tmp_path, 1), ChangeLog(tmp_path, 1)
        change = Change(version=2, kind="organization", id=organization(2).id, entry=organization(2))
        for log in (mine, others):
            log.append([(2, msgspec.json.encode(change))])
        mine.compact(2)
        assert [path.name for path in tmp_path.glob("snapshot-*")] == [f"snapshot-{2:020d}.ndjson"]
        assert len(list(tmp_path.glob("changes-*"))) == 2, "mine, begun anew, and the one that is held"
        later = Change(version=3, kind="organization", id=organization(2).id, entry=None)
        others.append([(3, msgspec.json.encode(later))])
        assert on_disk(tmp_path)[0] == 3
        mine.close()
        others.close()


class TestAge:
    async def test_of_a_copy_counts_from_controls_last_confirmation(self, tmp_path: Path) -> None:
        control, hour_us = Publisher(), 3_600_000_000
        control.publish("organization", organization(0).id, organization(0))
        async with LinkServer(control.answer) as server, running(follower(Mirror(), tmp_path, server.url, clock=lambda: 9 * hour_us)):
            await until(lambda: (tmp_path / "confirmed").exists())
        confirmation = find_confirmation(tmp_path, 1)
        assert confirmation is not None and 8 * hour_us < confirmation.at <= 9 * hour_us
        each = follower(Mirror(), tmp_path, "http://127.0.0.1:1", clock=lambda: 12 * hour_us)
        assert await each.start() is True
        assert each.snapshot_age_seconds == (12 * hour_us - confirmation.at) / 1_000_000
        await each.close()

    @pytest.mark.parametrize("content", [None, b"", b"{", b'{"version":2,"at":5}'])
    async def test_of_a_copy_that_was_not_confirmed_is_unknown(self, tmp_path: Path, content: bytes | None) -> None:
        write_copy(tmp_path, 1, [organization(0)])
        if content is not None:
            (tmp_path / "confirmed").write_bytes(content)
        each = follower(Mirror(), tmp_path, "http://127.0.0.1:1")
        assert await each.start() is True
        assert each.snapshot_age_seconds is None
        await each.close()

    async def test_is_not_confirmed_for_what_is_not_on_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The gateway applied a revocation that its disk refuses: a copy without it may not count as current."""
        control, mirror, alarms = Publisher(), Mirror(), Alarms()
        control.publish("organization", organization(0).id, organization(0))
        monkeypatch.setattr(snapshot_follower, "CONFIRMATION_SECONDS", 0.0)
        monkeypatch.setattr(snapshot_follower, "ACK_SECONDS", 0.01)

        def refuse(*_: object) -> None:
            raise OSError("no space")

        async with LinkServer(control.answer) as server, running(follower(mirror, tmp_path, server.url, alarms)):
            await until(lambda: (tmp_path / "confirmed").exists())
            monkeypatch.setattr(ChangeLog, "append", refuse)
            control.publish("organization", organization(0).id, None)
            await until(lambda: alarms.names().count("snapshot_copy_failed") > 5)
            confirmed = (tmp_path / "confirmed").read_bytes()
            await until(lambda: alarms.names().count("snapshot_copy_failed") > 10)
            assert (tmp_path / "confirmed").read_bytes() == confirmed


class TestDefects:
    async def test_follower_that_failed_reads_everything_again_when_it_is_run_again(self, tmp_path: Path) -> None:
        control, mirror = Publisher(), Mirror()
        control.publish("organization", organization(0).id, organization(0))
        real = mirror.apply

        def failing(change: Change) -> None:
            mirror.apply = real  # type: ignore[method-assign]
            mirror.version = change.version  # half of it was done
            raise AttributeError

        async with LinkServer(control.answer) as server:
            each = follower(mirror, tmp_path, server.url)
            mirror.apply = failing  # type: ignore[method-assign]
            run = asyncio.create_task(each.run())
            await until(lambda: mirror.version == 1)
            control.publish("organization", organization(1).id, organization(1))
            await asyncio.wait({run})
            assert isinstance(run.exception(), AttributeError)
            async with running(each):
                await until(lambda: mirror.entries == control.entries)
                control.publish("organization", organization(2).id, organization(2))
                await until(lambda: mirror.version == 3 and 3 in control.acks)
            assert mirror.resets == 2 and mirror.entries == control.entries

    async def test_copy_that_cannot_be_applied_is_left_for_controls_snapshot(self, tmp_path: Path) -> None:
        alarms, mirror = Alarms(), Mirror()
        write_copy(tmp_path, 1, [organization(0)])
        mirror.finish_reset = lambda version: (_ for _ in ()).throw(KeyError("x"))  # type: ignore[assignment, method-assign]
        each = follower(mirror, tmp_path, "http://127.0.0.1:1", alarms)
        assert await each.start() is False
        assert alarms.names() == ["snapshot_copy_unusable"]
        await each.close()


class _OrganizationBefore(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="organization"):
    """The entry of an organization as gateways knew it before it said whether it was erased."""

    id: str
    currency: str
    terms: tuple[PriceTerms, ...] = ()
    limits: Limits = UNLIMITED
    model_limits: dict[str, Limits] = {}
    queue_weight: int = 1
    response_retention_seconds: int | None = None


_ENTRY_BEFORE = _OrganizationBefore | ProjectEntry | KeyEntry | ModelEntry | DeploymentEntry | BudgetEntry | SigningKeyEntry | IssuerEntry


class _LineBefore(msgspec.Struct, frozen=True):
    version: int
    kind: str | None = None
    id: str = ""
    entry: _ENTRY_BEFORE | CertificateEntry | None = None


ERASED = OrganizationEntry(id=organization(1).id, currency="EUR", is_erased=True)


class _Later(msgspec.Struct, frozen=True, tag_field="kind", tag="later"):
    """An entry of a kind that this version does not know."""

    id: str
    value: int = 1


class TestOtherVersions:
    def test_gateways_of_the_version_before_decode_an_erased_organization(self) -> None:
        line = msgspec.json.encode(Change(version=2, kind=kind_of(ERASED), id=ERASED.id, entry=ERASED))
        read = msgspec.json.decode(line, type=_LineBefore)
        assert read.entry == _OrganizationBefore(id=ERASED.id, currency="EUR"), "without terms every model is closed to it"

    async def test_kinds_of_later_versions_are_passed_over_and_kept(self, tmp_path: Path) -> None:
        control, mirror, later = Publisher(), Mirror(), cast("Any", _Later("x"))
        control.publish("later", "x", later)
        control.publish("organization", organization(1).id, organization(1))
        async with LinkServer(control.answer) as server:
            async with running(follower(mirror, tmp_path, server.url, Alarms())):
                await until(lambda: mirror.version == 2)
                control.publish("later", "y", later)
                control.publish("organization", organization(2).id, organization(2))
                await until(lambda: control.version in control.acks)
            assert mirror.resets == 1 and list(mirror.entries.values()) == [organization(1), organization(2)]
            copy = load_copy(tmp_path)
            assert copy is not None and list(copy.lines()).count(msgspec.json.encode(later)) == 2
            again = Mirror()
            each = follower(again, tmp_path, server.url)
            assert await each.start() is True
            assert again.entries == mirror.entries
            await each.close()

    @pytest.mark.parametrize("written", ["snapshot", "changes"])
    async def test_copy_that_an_earlier_version_wrote_is_read_anew_once(self, tmp_path: Path, written: str) -> None:
        """It passed over the fields that it did not know: the upgraded gateway would never hear of what they said."""
        with SnapshotDraft(tmp_path) as draft:
            draft.write([msgspec.json.encode(organization(1))])
            draft.publish(1, is_verbatim=written == "changes")
        control = Publisher(version=1, entries={("organization", ERASED.id): ERASED})
        if written == "changes":
            control.version = 2
            log = ChangeLog(tmp_path, 1)
            log.append([(2, msgspec.json.encode(change(2, organization(1))))])
            log.close()
            (path,) = tmp_path.glob("changes-*")
            path.rename(path.with_name(path.name.replace("-v.log", ".log")))
        async with LinkServer(control.answer) as server:
            for resyncs in (1, 0):
                mirror = Mirror()
                each = follower(mirror, tmp_path, server.url)
                assert await each.start() is True
                async with running(each):
                    await until(lambda mirror=mirror: mirror.entries == control.entries)  # type: ignore[misc]
                    await until(lambda: control.version in control.acks)
                    assert each.resyncs == resyncs
