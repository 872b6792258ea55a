"""Batches that end at a gateway become events: from the directory of the batches, over the link, once for each end."""

from pathlib import Path

import httpx2
import msgspec
import pytest

from tests.control.harness import NODE_ID, Running, TenantSetup, answered
from tests.control.test_routes import refused
from tollway.domain.batches import Batch, BatchEnd, BatchStatus, LineCounts
from tollway.domain.catalog import Endpoint
from tollway.domain.files import FileOwner
from tollway.link.batch_ends import BatchEndReporter
from tollway.storage.batch_directory import ActiveBatch, BatchDirectory
from tollway.storage.vault import LocalVault

NOW = 1_790_000_000
PATH = f"/v1/link/batch_ends/{NODE_ID}"


def open_store(directory: Path) -> BatchDirectory:
    vault = LocalVault(bytes(range(32)))
    return BatchDirectory(directory, vault, lambda: NOW * 1_000_000, organization_batches_max=10, free_bytes_min=0)


def end_batch(store: BatchDirectory, owner: FileOwner, status: BatchStatus, digit: str, prefix: str = "batch") -> str:
    """Submit a batch that ends at once; return its id."""
    batch = Batch(
        id=f"{prefix}_" + digit * 32,
        owner=owner,
        key_id="key_1",
        address="",
        endpoint=Endpoint.CHAT_COMPLETIONS,
        created_at=NOW,
        output_file_id="file_1",
        error_file_id="file_2",
        output_seconds=1,
        input_file_id="f",
    )
    store.create(batch, [b"x"], 1)
    active = store.claim(store.list_active()[0])
    assert active is not None
    active.open_journal()
    active.finish(msgspec.structs.replace(batch, status=status, ended_at=NOW + 5, counts=LineCounts(3, 1, 0, 1)))
    active.release()
    return batch.id


def test_an_end_is_told_although_the_process_died_before_it_could_note_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def save_and_die(active: ActiveBatch, batch: Batch) -> None:
        save(active, batch)
        active.release()  # as the kernel does
        raise Killed

    save, owner = ActiveBatch.save, FileOwner("org_" + "1" * 32, "proj_" + "1" * 32)
    monkeypatch.setattr(ActiveBatch, "save", save_and_die)
    with pytest.raises(Killed):
        end_batch(open_store(tmp_path), owner, BatchStatus.COMPLETED, "1")
    monkeypatch.undo()
    store = open_store(tmp_path)
    assert [store.claim(name) for name in store.list_active()] == [None] and store.list_active() == []
    assert [each.id for each in store.list_ends(100)] == ["batch_" + "1" * 32]


def test_a_batch_that_cannot_be_opened_holds_up_no_other_end(tmp_path: Path) -> None:
    store, owner = open_store(tmp_path), FileOwner("org_" + "1" * 32, "proj_" + "1" * 32)
    damaged = end_batch(store, owner, BatchStatus.COMPLETED, "1")
    whole = end_batch(store, owner, BatchStatus.COMPLETED, "2")
    (tmp_path / "batches" / owner.organization_id / owner.project_id / damaged / "state").write_bytes(b"damaged")
    (tmp_path / "batches" / "ended" / ".nfs1").touch()
    assert [each.id for each in store.list_ends(1)] == [whole]


def list_batch_events(control: Running, tenant: TenantSetup) -> list[dict[str, object]]:
    found = answered(control.client(tenant.admin_key).get("/v1/organization/events?limit=100"))["data"]
    return [each for each in found if each["type"].startswith("batch.")]


async def test_ends_are_reported_once_control_is_there_and_become_one_event_each(
    control: Running, alice: TenantSetup, bob: TenantSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = FileOwner(alice.organization_id, alice.project_id)
    store = open_store(tmp_path)
    names = {
        end_batch(store, owner, BatchStatus.COMPLETED, "1"): "batch.completed",
        end_batch(store, owner, BatchStatus.FAILED, "2"): "batch.failed",
        end_batch(store, owner, BatchStatus.EXPIRED, "3"): "batch.expired",
        end_batch(store, owner, BatchStatus.CANCELLED, "4", "msgbatch"): "batch.cancelled",
    }
    end_batch(store, owner, BatchStatus.COMPLETED, "5", "resp")  # a response in the background is no batch
    end_batch(store, FileOwner("org_" + "9" * 32, alice.project_id), BatchStatus.COMPLETED, "6")  # of an organization that control lost
    away = BatchEndReporter(store, control_link_url="http://127.0.0.1:1", node_key=control.node_key, node_id=NODE_ID)
    assert not await away.report()
    await away.close()
    store = open_store(tmp_path)  # another process goes on
    assert len(store.list_ends(100)) == 5
    told = list[list[BatchEnd]]()
    monkeypatch.setattr(store, "forget_ends", lambda ends: told.append(list(ends)))
    reporter = BatchEndReporter(store, control_link_url=control.link_url, node_key=control.node_key, node_id=NODE_ID)
    await reporter.report()  # a process that dies before it has noted that control was told
    monkeypatch.undo()
    await reporter.report()
    await reporter.close()
    assert len(told[0]) == 5 and store.list_ends(100) == []
    events = list_batch_events(control, alice)
    assert {each["data"]["id"]: each["type"] for each in events} == names  # type: ignore[index]
    assert len(events) == 4 and events[0]["data"]["succeeded"] == 3 and events[0]["data"]["failed"] == 2  # type: ignore[index]
    assert all(each["created_at"] == NOW + 5 for each in events)
    assert list_batch_events(control, bob) == []


def test_report_of_another_gateway_or_of_what_no_batch_is_is_refused(control: Running, alice: TenantSetup) -> None:
    end = {
        "id": "batch_" + "7" * 32,
        "organization_id": alice.organization_id,
        "project_id": alice.project_id,
        "status": "completed",
        "ended_at": NOW,
        "succeeded": 1,
        "failed": 0,
    }
    node: httpx2.Client = control.node()
    assert node.post(PATH.replace("0" * 32, "5" * 32), json={"batches": [end]}).status_code in (403, 404)
    for name, wrong in (("id", "resp_" + "1" * 32), ("status", "in_progress"), ("ended_at", -1), ("failed", -1), ("organization_id", "x")):
        refused(node.post(PATH, json={"batches": [end | {name: wrong}]}), 400, "invalid_value", f"batches.[0].{name}")
    assert node.post(PATH, json={"batches": [end] * 101}).status_code == 400
    assert control.link(None).post(PATH, json={"batches": []}).status_code == 401
