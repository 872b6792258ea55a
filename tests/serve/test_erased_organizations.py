"""Erased organizations in the directories of a gateway: nothing of them is left, also where it was down meanwhile, and all of others."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from tests.link.samples import ORGANIZATION, OTHER_ORGANIZATION, PROJECT
from tollway.domain.answers import StoredAnswer
from tollway.domain.batches import Batch, LineResult
from tollway.domain.catalog import Endpoint
from tollway.domain.files import FileOwner, FilePurpose, StoredFile
from tollway.domain.snapshot import ErasureEntry, change
from tollway.gateway.directory import Directory
from tollway.serve import gateway
from tollway.storage.answer_files import AnswerBounds, AnswerFiles
from tollway.storage.batch_directory import BatchDirectory
from tollway.storage.tenant_files import FileBounds, FileDirectory
from tollway.storage.vault import LocalVault

NOW_US = time.time_ns() // 1000  # times of files are compared with it
ANSWERED = f"req_{'1' * 32}"


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
    tasks = [
        asyncio.ensure_future(gateway.remove_answers(stores.answers, directory)),
        asyncio.ensure_future(gateway.remove_files(stores.files, stores.batches, directory)),
    ]
    try:
        async with asyncio.timeout(60):
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
        directory.add(ErasureEntry(id=ORGANIZATION))
    directory.finish_reset(1)
    if not was_down:
        directory.apply(change(2, ErasureEntry(id=ORGANIZATION)))
    await wait_for_removal(stores, directory)
    stores.put_file(erased, "b")  # the output of a batch that ran meanwhile
    await wait_for_removal(stores, directory)
    assert stores.list_left(other) == whole
    assert stores.batches.list_answered(erased) == {ANSWERED}, "a gateway that died may still have to bill it"
