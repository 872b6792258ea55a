"""Erased organizations in the directories of a gateway: nothing of them is left, also where it was down meanwhile, and all of others."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from tests.link.samples import ORGANIZATION, OTHER_ORGANIZATION, PROJECT
from tests.patience import PATIENCE_SECONDS
from tollway.domain.answers import StoredAnswer
from tollway.domain.batches import Batch, LineResult
from tollway.domain.catalog import Endpoint
from tollway.domain.files import FileOwner, FilePurpose, StoredFile
from tollway.domain.snapshot import OrganizationEntry, change
from tollway.gateway.directory import Directory
from tollway.serve import gateway
from tollway.serve.gateway import ErasedOrganizations
from tollway.storage.answer_files import AnswerBounds, AnswerFiles
from tollway.storage.batch_directory import BatchDirectory
from tollway.storage.tenant_files import FileBounds, FileDirectory
from tollway.storage.vault import LocalVault

NOW_US = time.time_ns() // 1000  # times of files are compared with it
ANSWERED, LATER = f"req_{'1' * 32}", f"req_{'2' * 32}"


class Stores:
    """The directories of one gateway, with a file, an ended line of a batch and an answer of two organizations."""

    def __init__(self, root: Path) -> None:
        vault = LocalVault(bytes(range(32)))
        self.root = root
        self.answers = AnswerFiles(root / "answers", vault, AnswerBounds(), lambda: NOW_US)
        self.files = FileDirectory(root / "files", vault, FileBounds(free_bytes_min=0), lambda: NOW_US)
        self.batches = BatchDirectory(root / "files", vault, lambda: NOW_US, organization_batches_max=9, free_bytes_min=0)
        self.owners = [FileOwner(id, PROJECT) for id in (ORGANIZATION, OTHER_ORGANIZATION)]
        for owner in self.owners:
            self.put_file(owner, "a")
            self._put_batch(owner, "a", is_running=True)
            self._put_batch(owner, "b", is_running=False)
            answer = self.answers.claim(owner.organization_id, b"digest", b"body")
            answer.keep(StoredAnswer(b"", b"secret", False))
            answer.release()

    def put_file(self, owner: FileOwner, letter: str) -> None:
        file = StoredFile(f"file_{letter * 32}", "a.jsonl", FilePurpose.BATCH_OUTPUT, 6, NOW_US // 1_000_000, NOW_US // 1_000_000 + 3_600)
        self.files.add(owner, file, (b"secret",))

    def _put_batch(self, owner: FileOwner, letter: str, *, is_running: bool) -> None:
        batch = Batch(
            id=f"batch_{letter * 32}",
            owner=owner,
            key_id="key_1",
            address="",
            endpoint=Endpoint.CHAT_COMPLETIONS,
            created_at=NOW_US // 1_000_000,
            output_file_id="",
            error_file_id="",
            output_seconds=0,
        )
        self.batches.create(batch, (b"secret",), 6)
        if is_running:
            active = self.batches.claim(f"{owner.organization_id}.{owner.project_id}.{batch.id}")
            assert active is not None
            active.open_journal()
            active.append(0, LineResult.COMPLETED, b"secret", ANSWERED, durable=True)
            active.release()

    def list_left(self, owner: FileOwner) -> set[str]:
        """Return the names of the files of an organization."""
        id = owner.organization_id
        return {name for directory, _, names in os.walk(self.root) for name in names if id in f"{directory}/{name}"}


async def wait_for_removal(stores: Stores, directory: Directory) -> None:
    """Let both tasks of a gateway run until nothing of the erased organization is left."""
    answers = ErasedOrganizations(directory, stores.answers.remove_organization)
    files = ErasedOrganizations(directory, stores.batches.remove_organization, stores.files.remove_organization)
    tasks = [
        asyncio.ensure_future(gateway.remove_answers(stores.answers, answers)),
        asyncio.ensure_future(gateway.remove_files(stores.files, stores.batches, files)),
    ]
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while stores.list_left(stores.owners[0]) != {"answered"}:
                await asyncio.sleep(0.01)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("was_down", [True, False])
async def test_nothing_of_an_erased_organization_is_left_in_directories_of_a_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was_down: bool
) -> None:
    monkeypatch.setattr(gateway, "ERASED_SECONDS", 0.01)
    monkeypatch.setattr(gateway, "ANSWERS_SECONDS", 0.01)
    stores, directory = Stores(tmp_path), Directory()
    erased, other = stores.owners
    whole = stores.list_left(other)
    assert {"journal", "lines", "state"} < whole == {name.replace(ORGANIZATION, OTHER_ORGANIZATION) for name in stores.list_left(erased)}
    directory.begin_reset()
    if was_down:  # it learns it from the whole snapshot of its start
        directory.add(OrganizationEntry(id=ORGANIZATION, currency="EUR", is_erased=True))
    directory.finish_reset(1)
    if not was_down:
        directory.apply(change(2, OrganizationEntry(id=ORGANIZATION, currency="EUR", is_erased=True)))
    await wait_for_removal(stores, directory)
    stores.put_file(erased, "b")  # the output of a batch that ran meanwhile
    await wait_for_removal(stores, directory)
    assert stores.list_left(other) == whole
    assert stores.batches.list_answered(erased) == {ANSWERED}, "a gateway that died may still have to bill it"


def know_erased(*ids: str) -> Directory:
    directory = Directory()
    directory.begin_reset()
    for id in ids:
        directory.add(OrganizationEntry(id=id, currency="EUR", is_erased=True))
    directory.finish_reset(1)
    return directory


async def test_organization_that_cannot_be_removed_keeps_neither_others_nor_expired_files() -> None:
    removed: list[str] = []

    def remove(id: str) -> None:
        if id == ORGANIZATION:
            raise ValueError("damaged")
        removed.append(id)

    class Store:
        def remove_expired(self) -> None:
            removed.append("expired")

    store = cast("Any", Store())
    erased = ErasedOrganizations(know_erased(ORGANIZATION, OTHER_ORGANIZATION), remove, removed.append)
    with pytest.raises(ValueError, match="damaged"):
        await gateway.remove_files(store, store, erased)
    assert removed == [ORGANIZATION, OTHER_ORGANIZATION, OTHER_ORGANIZATION, "expired", "expired"]


async def test_erased_organizations_are_looked_at_ever_more_rarely() -> None:
    minutes, looks = [0], list[int]()
    erased = ErasedOrganizations(know_erased(ORGANIZATION), lambda _: looks.append(minutes[0]), clock=lambda: 1_000.0 + 60 * minutes[0])
    while minutes[0] < 10 * 24 * 60:
        assert await erased.remove() is None
        minutes[0] += 1
    assert looks[:4] == [0, 1, 3, 7]
    assert len(looks) < 25


def test_batch_that_a_gateway_runs_is_left_until_that_has_ended_it(tmp_path: Path) -> None:
    stores = Stores(tmp_path)
    erased = stores.owners[0]
    active = stores.batches.claim(f"{ORGANIZATION}.{PROJECT}.batch_{'a' * 32}")
    assert active is not None
    active.open_journal()
    stores.batches.remove_organization(ORGANIZATION)
    assert stores.batches.find(erased, f"batch_{'b' * 32}") is None
    active.append(1, LineResult.COMPLETED, b"secret", LATER, durable=True)
    active.release()
    stores.batches.remove_organization(ORGANIZATION)
    assert stores.batches.find(erased, active.batch.id) is None
    assert stores.batches.list_answered(erased) == {ANSWERED, LATER}
    assert [name for name in stores.batches.list_active() if name.startswith(ORGANIZATION)] == []


def test_process_that_dies_while_it_replaces_a_file_takes_nothing_from_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores, rename = Stores(tmp_path), os.rename
    active = stores.batches.claim(f"{ORGANIZATION}.{PROJECT}.batch_{'a' * 32}")
    assert active is not None

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    def rename_late(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            active.save(msgspec.structs.replace(active.batch, total=2))
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_late)
    active.save(msgspec.structs.replace(active.batch, total=1))
    active.release()
    found = stores.batches.find(stores.owners[0], active.batch.id)
    assert found is not None and found.total == 1
