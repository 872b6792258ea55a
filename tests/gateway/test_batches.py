"""Batches: official clients submit them, lines are served as requests of their key, once each, whatever ends in between."""

import asyncio
import fcntl
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import openai
import pytest

from tests.fakes import Asked, Do, Script, Upstream, until
from tests.gateway.harness import (
    KEY,
    NOWHERE,
    ORGANIZATION,
    OTHER_KEY,
    PROJECT,
    Answer,
    Gateway,
    Memory,
    Served,
    completion,
    connect,
    gateway,
    message,
    plane,
    post,
    split_answers,
    whole,
)
from tests.gateway.test_bounded_keys import bound
from tests.gateway.test_files import FORM, form
from tests.patience import PATIENCE_SECONDS
from tollway.domain.batches import SHOWN_SECONDS, Batch, BatchStatus, LineResult
from tollway.domain.billing_classes import NOTHING
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import INTERNAL, OVERLOADED, UPLOADS_EXCEEDED, Fault, FaultKind
from tollway.domain.files import FileOwner
from tollway.domain.limits import UNLIMITED, Limits
from tollway.domain.snapshot import Change
from tollway.domain.usage import Outcome, ServiceTier
from tollway.gateway import pipeline
from tollway.gateway.batches import worker as worker_module
from tollway.gateway.batches.lines import check_lines
from tollway.gateway.batches.pace import Pace
from tollway.gateway.batches.worker import BatchBounds, BatchWorker
from tollway.gateway.ports import FileStore
from tollway.gateway.request import RequestHead
from tollway.storage.batch_directory import ActiveBatch, BatchDirectory
from tollway.storage.tenant_files import FileBounds, FileDirectory
from tollway.storage.vault import LocalVault

VAULT = LocalVault(bytes(range(32)))
OWNER = FileOwner(ORGANIZATION, PROJECT)
CHAT_PATH = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def quick_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEARCH_SECONDS", "CHECK_SECONDS", "BUSY_SECONDS", "PAUSE_SECONDS_FIRST"):
        monkeypatch.setattr(worker_module, name, 0.01)


class Site(msgspec.Struct):
    """A gateway with a store of batches."""

    running: Gateway
    store: BatchDirectory
    files: FileStore
    upstream: Upstream
    alarms: list[tuple[str, dict[str, object]]] = []


@asynccontextmanager
async def working(served: Site, bounds: BatchBounds | None = None) -> AsyncIterator[BatchWorker]:
    """A worker that runs in the block, and ends as that of a process that is stopped at once."""
    alarm = lambda event, fields: served.alarms.append((event, fields))  # noqa: E731
    worker = BatchWorker(served.running.plane, served.store, served.files, bounds or BatchBounds(), alarm)
    task = asyncio.get_running_loop().create_task(worker.run())
    try:
        yield worker
    finally:
        await worker.stop(0.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def serving(
    directory: Path, *scripts: Any, limits: Limits = UNLIMITED, organization_batches_max: int = 10, batch_price: int | None = 50
) -> AsyncIterator[Site]:
    async with Upstream(*scripts).listening() as upstream:
        models = {"m": Served([upstream.url], batch_price=batch_price)}
        async with gateway(models, limits=limits) as running:
            plane = running.plane
            files = FileDirectory(directory, VAULT, FileBounds(free_bytes_min=0), plane.now_us)
            store = BatchDirectory(directory, VAULT, plane.now_us, organization_batches_max=organization_batches_max, free_bytes_min=0)
            plane.file_store, plane.file_lifetime_seconds = files, 86_400
            plane.batch_store, plane.batch_lines_max = store, 1_000
            yield Site(running, store, files, upstream)


def line(number: int, **body: Any) -> dict[str, Any]:
    asked = {"model": "m", "messages": [{"role": "user", "content": f"line {number}"}]} | body
    return {"custom_id": f"c-{number}", "method": "POST", "url": CHAT_PATH, "body": asked}


def text(*lines: Any) -> bytes:
    return b"\n".join(each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines)


def echo(asked: Asked) -> Script:
    """An engine that repeats what it was asked."""
    return [whole(completion(json.loads(asked.body)["messages"][0]["content"]))]


async def submit(served: Site, content: bytes, endpoint: str = CHAT_PATH) -> dict[str, Any]:
    file = (await post(served.running.port, form(content), "/v1/files", **FORM)).json()["id"]
    asked = {"input_file_id": file, "endpoint": endpoint, "completion_window": "24h"}
    answer = await post(served.running.port, asked, "/v1/batches")
    assert answer.status == 200, answer.body
    return dict(answer.json())


async def get(served: Site, path: str, method: str = "GET", key: str = KEY) -> Answer:
    async with connect(served.running.port) as client:
        client.send(message(b"", path, key=key).replace(b"POST", method.encode(), 1))
        return await client.answer()


async def ended(served: Site, id: str, prefix: str = "/v1/batches") -> dict[str, Any]:
    """The batch once it has ended."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            batch = dict((await get(served, f"{prefix}/{id}")).json())
            if batch.get("status") in ("completed", "failed", "cancelled", "expired") or batch.get("processing_status") == "ended":
                return batch
            await asyncio.sleep(0.01)


async def read_lines(served: Site, file_id: str | None) -> dict[str, Any]:
    """The lines of an output file by their own ids."""
    content = b"" if file_id is None else (await get(served, f"/v1/files/{file_id}/content")).body
    found = [json.loads(each) for each in content.splitlines()]
    assert len({each["custom_id"] for each in found}) == len(found), "a line stands twice"
    return {each["custom_id"]: each for each in found}


async def test_official_client_submits_a_batch_and_reads_its_output_at_the_batch_price(tmp_path: Path) -> None:
    async with serving(tmp_path, echo) as served, working(served):
        async with openai.AsyncOpenAI(base_url=served.running.url + "/v1", api_key=KEY, max_retries=0) as client:
            file = await client.files.create(file=("a.jsonl", text(*map(line, range(20)))), purpose="batch")
            batch = await client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"job": "night"}
            )
            assert (batch.status, batch.metadata, batch.expires_at) == ("validating", {"job": "night"}, batch.created_at + 86_400)
            await client.files.delete(file.id)
            await ended(served, batch.id)
            batch = await client.batches.retrieve(batch.id)
            assert batch.status == "completed" and batch.request_counts is not None and batch.error_file_id is None
            assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (20, 20, 0)
            assert [each.id async for each in client.batches.list(limit=1)] == [batch.id]
            with pytest.raises(openai.ConflictError):
                await client.batches.cancel(batch.id)
        lines = await read_lines(served, batch.output_file_id)
        for number in range(20):
            response = lines[f"c-{number}"]["response"]
            assert response["status_code"] == 200
            assert response["body"]["choices"][0]["message"]["content"] == f"line {number}"
        await served.running.sink.settled(20)
        assert {admit.service_tier for admit in served.running.sink.admits} == {ServiceTier.BATCH}
        await until(lambda: not list(tmp_path.rglob("journal")))
        assert b"line 3" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert served.alarms == []


@pytest.mark.parametrize(
    ("bad", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        ({"custom_id": "x", "method": "POST", "url": CHAT_PATH}, "invalid_json_line", None),
        (line(0), "duplicate_custom_id", "custom_id"),
        (line(1) | {"method": "GET"}, "invalid_method", "method"),
        (line(1) | {"url": "/v1/embeddings"}, "mismatched_endpoint", "url"),
        (line(1) | {"body": []}, "invalid_body", "body"),
        (line(1, model="forbidden"), "model_not_found", "model"),
        (line(1, stream=True), "invalid_value", "stream"),
        (line(1, unheard=1), "unknown_parameter", "unheard"),
        (line(1, n="many"), "invalid_value", "n"),
    ],
)
async def test_136_batch_with_a_line_that_is_forbidden_or_malformed_fails_by_line_and_sends_nothing(
    tmp_path: Path, bad: Any, code: str, param: str | None
) -> None:
    async with serving(tmp_path, echo) as served, working(served):
        batch = await ended(served, (await submit(served, text(line(0), bad, line(2))))["id"])
        assert (batch["status"], batch["output_file_id"], batch["error_file_id"]) == ("failed", None, None)
        (error,) = batch["errors"]["data"]
        assert (error["code"], error["param"], error["line"]) == (code, param, 2)
        assert served.upstream.asked == [] and served.running.sink.admits == []


async def test_model_without_a_price_for_batches_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, echo, batch_price=None) as served, working(served):
        batch = await ended(served, (await submit(served, text(line(0))))["id"])
    assert batch["errors"]["data"][0]["message"] == "This model has no price for batches."


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"endpoint": "/v1/moderations"}, "invalid_value", "endpoint"),
        ({"endpoint": 7}, "invalid_value", "endpoint"),
        ({"completion_window": "1h"}, "invalid_value", "completion_window"),
        ({"input_file_id": "file_" + "0" * 32}, "invalid_value", "input_file_id"),
        ({"input_file_id": "../../x"}, "invalid_value", "input_file_id"),
        ({"metadata": {"a": 1}}, "invalid_value", "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "invalid_value", "output_expires_after"),
        ({"more": 1}, "unknown_parameter", "more"),
    ],
)
async def test_submission_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any], code: str, param: str) -> None:
    async with serving(tmp_path, echo) as served:
        file = (await post(served.running.port, form(b"{}"), "/v1/files", **FORM)).json()["id"]
        asked = {"input_file_id": file, "endpoint": CHAT_PATH, "completion_window": "24h"} | change
        refused = await post(served.running.port, asked, "/v1/batches")
        assert (refused.status, refused.error["code"], refused.error["param"]) == (400, code, param)
        assert (await get(served, "/v1/batches")).json()["data"] == []


async def test_there_are_no_batches_where_no_directory_is_named() -> None:
    async with gateway({}) as running:
        assert (await post(running.port, {}, "/v1/batches")).status == 404
        missing = await post(running.port, {}, "/v1/messages/batches")
        assert (missing.status, missing.json()["type"]) == (404, "error")


async def test_137_batch_of_another_project_does_not_exist_and_a_bounded_key_has_none(tmp_path: Path) -> None:
    async with serving(tmp_path, echo) as served:
        plane, other = served.running.plane, FileOwner("org_" + "1" * 32, PROJECT)
        batch = Batch(
            id="batch_" + "a" * 32, owner=other, key_id="key_1", address="", endpoint=Endpoint.CHAT_COMPLETIONS,
            created_at=plane.now_us() // 1_000_000, output_file_id="file_1", error_file_id="file_2", output_seconds=1, input_file_id="f",
        )  # fmt: skip
        served.store.create(batch, [text(line(0))], 1)
        for method, path in (("GET", ""), ("POST", "/cancel")):
            assert (await get(served, f"/v1/batches/{batch.id}{path}", method)).status == 404
        assert (await get(served, "/v1/batches")).json()["data"] == []
        assert served.store.find(other, batch.id) == batch
        moved = tmp_path / "batches" / ORGANIZATION / PROJECT
        moved.mkdir(parents=True)
        (tmp_path / "batches" / other.organization_id / PROJECT / batch.id).rename(moved / batch.id)
        assert (await get(served, f"/v1/batches/{batch.id}")).status == 503
        bound(served.running, endpoints=(Endpoint.CHAT_COMPLETIONS,))
        assert (await get(served, "/v1/batches", key=OTHER_KEY)).status == 403


async def test_quota_of_batches_that_have_not_ended_holds(tmp_path: Path) -> None:
    async with serving(tmp_path, echo, organization_batches_max=1) as served:
        await submit(served, text(line(0)))
        file = (await post(served.running.port, form(text(line(0))), "/v1/files", **FORM)).json()["id"]
        refused = await post(served.running.port, {"input_file_id": file, "endpoint": CHAT_PATH, "completion_window": "24h"}, "/v1/batches")
        assert (refused.status, refused.error["code"]) == (403, "quota_exceeded")


async def test_lines_that_fail_stand_in_the_error_file_and_those_refused_for_load_are_sent_again(tmp_path: Path) -> None:
    seen: dict[str, int] = {}

    def engine(asked: Asked) -> Script:
        content = json.loads(asked.body)["messages"][0]["content"]
        seen[content] = seen.get(content, 0) + 1
        if content == "line 0":
            return [whole({"error": {"message": "bad", "type": "invalid_request_error", "code": None, "param": None}}, 400)]
        if content == "line 1":
            return [whole({"error": {"message": "no"}}, 500)]
        if content == "line 2" and seen[content] < 3:
            return [whole({"error": {"message": "busy"}}, 503)]
        return [whole(completion(content))]

    async with serving(tmp_path, engine) as served, working(served):
        batch = await ended(served, (await submit(served, text(*map(line, range(4)))))["id"])
        done, failed = await read_lines(served, batch["output_file_id"]), await read_lines(served, batch["error_file_id"])
        assert batch["status"] == "completed" and batch["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
    assert set(done) == {"c-2", "c-3"} and {key: each["response"]["status_code"] for key, each in failed.items()} == {
        "c-0": 400,
        "c-1": 502,
    }
    assert failed["c-0"]["error"] is None and failed["c-0"]["response"]["body"]["error"]["type"] == "invalid_request_error"


async def test_line_that_was_cut_off_is_sent_again_and_one_that_was_answered_is_not(tmp_path: Path) -> None:
    held = {"line 5", "line 6"}

    def engine(asked: Asked) -> Script:
        content = json.loads(asked.body)["messages"][0]["content"]
        return [Do.GATE, whole(completion(content))] if content in held else [whole(completion(content))]

    async with serving(tmp_path, engine) as served:
        id = (await submit(served, text(*map(line, range(8)))))["id"]
        async with working(served):
            while (await get(served, f"/v1/batches/{id}")).json()["request_counts"]["completed"] < 6:
                await asyncio.sleep(0.01)
        held.clear()
        journal = next(tmp_path.rglob("journal"))
        with journal.open("ab") as file:
            file.write(b"\0\0\0\x07\0\0")  # as a process leaves it that dies while it writes
        async with working(served):
            batch = await ended(served, id)
        lines = await read_lines(served, batch["output_file_id"])
        asked = [json.loads(each.body)["messages"][0]["content"] for each in served.upstream.asked]
        assert sorted(asked) == sorted([f"line {number}" for number in range(8)] + ["line 5", "line 6"])
        outcomes = [final.outcome for final in served.running.sink.finals]
        assert outcomes.count(Outcome.COMPLETED) == 8 and len(outcomes) == 10
    assert len(lines) == 8 and batch["request_counts"] == {"total": 8, "completed": 8, "failed": 0}


async def test_batch_has_one_owner_and_another_goes_on_when_that_is_gone(tmp_path: Path) -> None:
    async with serving(tmp_path, echo) as served:
        await submit(served, text(line(0)))
        (name,) = served.store.list_active()
        first = served.store.claim(name)
        assert first is not None and served.store.claim(name) is None
        first.release()
        second = served.store.claim(name)
        assert second is not None
        second.release()


async def test_cancelled_batch_keeps_what_was_answered_and_names_what_was_not(tmp_path: Path) -> None:
    script = lambda asked: echo(asked) if b"line 0" in asked.body else [Do.GATE, *echo(asked)]  # noqa: E731
    async with serving(tmp_path, script) as served, working(served, BatchBounds(organization_concurrency=2)):
        id = (await submit(served, text(*map(line, range(6)))))["id"]
        while (await get(served, f"/v1/batches/{id}")).json()["request_counts"]["completed"] < 1:
            await asyncio.sleep(0.01)
        cancelling = (await get(served, f"/v1/batches/{id}/cancel", "POST")).json()
        assert cancelling["status"] == "cancelling" and cancelling["cancelling_at"]
        await asyncio.sleep(0.05)
        served.upstream.gate.set()
        batch = await ended(served, id)
        done, rest = await read_lines(served, batch["output_file_id"]), await read_lines(served, batch["error_file_id"])
        assert batch["status"] == "cancelled" and batch["cancelled_at"] and len(done) + len(rest) == 6
    assert "c-0" in done and {each["error"]["code"] for each in rest.values()} == {"batch_cancelled"}


async def test_batch_expires_with_the_lines_that_were_not_sent(tmp_path: Path) -> None:
    async with serving(tmp_path, echo) as served:
        id = (await submit(served, text(line(0), line(1))))["id"]
        stored = served.store.find(OWNER, id)
        assert stored is not None
        (name,) = served.store.list_active()
        active = served.store.claim(name)
        assert active is not None
        active.save(msgspec.structs.replace(stored, created_at=stored.created_at - 86_400))
        active.release()
        async with working(served):
            batch = await ended(served, id)
        assert batch["status"] == "expired" and batch["output_file_id"] is None and served.upstream.asked == []


async def test_138_revoked_key_ends_its_batches_and_no_further_line_is_sent(tmp_path: Path) -> None:
    script = lambda asked: echo(asked) if b"line 0" in asked.body else [Do.GATE, *echo(asked)]  # noqa: E731
    async with serving(tmp_path, script) as served, working(served, BatchBounds(organization_concurrency=2)):
        id = (await submit(served, text(*map(line, range(6)))))["id"]
        await until(lambda: len(served.upstream.asked) >= 3)
        plane = served.running.plane
        plane.apply(Change(version=plane.version + 1, kind="key", id=f"key_{0:032x}", entry=None))
        served.upstream.gate.set()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (stored := served.store.find(OWNER, id)) is None or not stored.has_ended:
                await asyncio.sleep(0.01)
        assert stored.status is BatchStatus.FAILED and [error.code for error in stored.errors] == ["invalid_api_key"]
        assert stored.counts.completed >= 1 and stored.counts.ended == 6
        assert len(served.upstream.asked) < 6


async def test_limits_of_the_key_hold_for_lines_and_they_wait(tmp_path: Path) -> None:
    async with serving(tmp_path, echo, limits=Limits(concurrent_requests=2)) as served, working(served):
        batch = await ended(served, (await submit(served, text(*map(line, range(6)))))["id"])
        assert batch["request_counts"] == {"total": 6, "completed": 6, "failed": 0}


async def test_large_line_is_served(tmp_path: Path) -> None:
    async with serving(tmp_path, [whole(completion("x" * 700_000))]) as served, working(served):
        body = {"messages": [{"role": "user", "content": "x" * 300_000}]}
        batch = await ended(served, (await submit(served, text(line(0, **body), line(1, **body))))["id"])
        assert batch["request_counts"]["completed"] == 2 and served.running.plane.buffers.total == 0
        lines = await read_lines(served, batch["output_file_id"])
        assert len(lines) == 2, "content of several pieces"


async def test_official_anthropic_client_submits_reads_lists_cancels_and_deletes_batches(tmp_path: Path) -> None:
    anthropic = pytest.importorskip("anthropic")
    answer = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 3, "output_tokens": 2},
    }  # fmt: skip
    async with serving(tmp_path, [whole(answer)]) as served, working(served):  # noqa: SIM117
        async with anthropic.AsyncAnthropic(base_url=served.running.url, api_key=KEY, max_retries=0) as client:
            params = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
            asked = [{"custom_id": "a", "params": params}, {"custom_id": "b", "params": params | {"model": "forbidden"}}]
            batch = await client.messages.batches.create(requests=asked)
            assert batch.processing_status == "in_progress" and batch.request_counts.processing == 2
            await ended(served, batch.id, "/v1/messages/batches")
            batch = await client.messages.batches.retrieve(batch.id)
            assert (batch.request_counts.succeeded, batch.request_counts.errored) == (1, 1)
            results = {each.custom_id: each.result async for each in await client.messages.batches.results(batch.id)}
            assert results["a"].message.content[0].text == "Hello"
            assert results["b"].type == "errored" and results["b"].error.error.type == "not_found_error"
            assert [each.id async for each in client.messages.batches.list()] == [batch.id]
            with pytest.raises(anthropic.ConflictError):
                await client.messages.batches.cancel(batch.id)
            assert (await client.messages.batches.delete(batch.id)).type == "message_batch_deleted"
            with pytest.raises(anthropic.NotFoundError):
                await client.messages.batches.results(batch.id)
            with pytest.raises(anthropic.BadRequestError):
                await client.messages.batches.create(requests=[asked[0], asked[0]])


def test_record_of_a_journal_that_was_altered_is_no_end_of_it(tmp_path: Path) -> None:
    now_us = lambda: 1_800_000_000_000_000  # noqa: E731
    store = BatchDirectory(tmp_path, VAULT, now_us, organization_batches_max=10, free_bytes_min=0)
    batch = Batch(
        id="batch_" + "a" * 32, owner=OWNER, key_id="key_1", address="", endpoint=Endpoint.CHAT_COMPLETIONS, created_at=1_800_000_000,
        output_file_id="file_1", error_file_id="file_2", output_seconds=1, input_file_id="f",
    )  # fmt: skip
    store.create(batch, [b"x"], 1)
    (name,) = store.list_active()
    active = store.claim(name)
    assert active is not None
    active.open_journal()
    for number in range(3):
        active.append(number, LineResult.COMPLETED, b"text %d" % number, durable=True)
    active.append(1, LineResult.ERRORED, b"again", durable=True)
    assert list(active.read_texts([LineResult.COMPLETED])) == [b"text 0", b"text 1", b"text 2"]
    active.release()
    path = next(tmp_path.rglob("journal"))
    data = path.read_bytes()
    path.write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
    again = store.claim(name)
    assert again is not None
    with pytest.raises(Fault):
        again.open_journal()
    again.release()


def test_lines_are_counted_without_empty_ones_and_are_at_most_as_many_as_a_batch_may_have() -> None:
    lines, errors = check_lines(b"\n" + text(line(0)) + b"\n\n" + text(line(1)), CHAT_PATH, 2)
    assert (len(lines), errors, lines.read(1).custom_id) == (2, [], "c-1")
    assert [error.code for error in check_lines(b"\n", CHAT_PATH, 2)[1]] == ["empty_file"]
    assert [error.code for error in check_lines(text(*map(line, range(3))), CHAT_PATH, 2)[1]] == ["too_many_lines"]


def test_pace_grows_with_success_and_is_halved_once_for_what_is_refused_together() -> None:
    pace = Pace(16)
    for _ in range(200):
        pace.succeed()
    pace.running = 15
    assert pace.may_send(0.0)
    pace.running = 16
    assert pace.is_full
    pace.refuse(10.0, 2.0)
    pace.refuse(10.1, 2.0)
    pace.running = 7
    assert not pace.may_send(11.0) and pace.may_send(12.5)
    pace.running = 8
    assert pace.is_full


async def test_128_lines_that_take_long_to_check_hold_up_nobody_together() -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    with plane({"m": Served([NOWHERE], batch_price=50)}) as (made, _, _):
        key = pipeline.identify_sender(RequestHead(Endpoint.CHAT_COMPLETIONS, {b"x-api-key": KEY.encode()}), made)
        ids = dict.fromkeys(("id", "input_file_id", "output_file_id", "error_file_id"), "batch_1")
        created_at = made.now_us() // 1_000_000
        batch = Batch(
            **ids,
            owner=OWNER,
            key_id=key.principal.id,
            address="",
            endpoint=Endpoint.CHAT_COMPLETIONS,
            created_at=created_at,
            output_seconds=1,
        )
        costly = {"model": "m", "messages": [{"role": "user", "content": "a"}], "metadata": {f"k{number}": 0 for number in range(5_000)}}
        content = b"\n".join(
            msgspec.json.encode({"custom_id": str(number), "method": "POST", "url": CHAT_PATH, "body": costly}) for number in range(16)
        )
        worker = BatchWorker(made, cast(Any, None), cast(Any, None), BatchBounds(), lambda *_: None)
        counting = asyncio.create_task(count_turns())
        lines, errors = await worker._validate(cast(Any, SimpleNamespace(batch=batch, is_cancelled=lambda: False)), content)
        counting.cancel()
    assert not errors, errors[0]
    assert len(lines) == 16
    assert turns >= 15, "each of these lines takes more than a millisecond"


NOW = 1_800_000_000
ANSWERED = [f"req_{number:032x}" for number in (1, 2)]


def open_store(directory: Path) -> BatchDirectory:
    return BatchDirectory(directory, VAULT, lambda: NOW * 1_000_000, organization_batches_max=10, free_bytes_min=0)


def make_batch(digit: str = "a", input_file_id: str = "f") -> Batch:
    return Batch(
        id="batch_" + digit * 32, owner=OWNER, key_id="key_1", address="", endpoint=Endpoint.CHAT_COMPLETIONS, created_at=NOW,
        output_file_id="file_1", error_file_id="file_2", output_seconds=1, input_file_id=input_file_id,
    )  # fmt: skip


def answer_lines(store: BatchDirectory, batch: Batch) -> ActiveBatch:
    """Submit a batch, and answer two of its three lines."""
    store.create(batch, [b"x"], 1)
    active = store.claim(store.list_active()[0])
    assert active is not None
    active.open_journal()
    active.append(0, LineResult.COMPLETED, b"text", ANSWERED[0], durable=True)
    active.append(1, LineResult.EXPIRED, b"text", durable=True)
    active.append(2, LineResult.COMPLETED, b"text", ANSWERED[1], durable=True)
    return active


def test_requests_that_answered_lines_are_known_while_the_batch_runs_and_after_its_end(tmp_path: Path) -> None:
    store, batch = open_store(tmp_path), make_batch()
    active = answer_lines(store, batch)
    assert store.list_answered(OWNER) == set(ANSWERED)
    active.finish(msgspec.structs.replace(batch, status=BatchStatus.COMPLETED))
    active.release()
    assert store.list_answered(OWNER) == set(ANSWERED) and store.list_active() == []
    assert not list(tmp_path.rglob("journal"))


def test_requests_that_answered_lines_are_known_whenever_the_end_of_the_batch_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, batch = open_store(tmp_path), make_batch()
    active = answer_lines(store, batch)
    known: list[set[str]] = []

    def look() -> None:
        known.append(store.list_answered(OWNER))

    for name in ("open", "fsync", "rename", "unlink"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *values, real=real, **named: (look(), real(*values, **named), look())[1])
    active.finish(msgspec.structs.replace(batch, status=BatchStatus.COMPLETED))
    active.release()
    assert len(known) > 10 and known == [set(ANSWERED)] * len(known)


def test_requests_that_answered_lines_are_known_after_the_tenant_deleted_the_batch(tmp_path: Path) -> None:
    store, batch = open_store(tmp_path), make_batch(input_file_id="")
    active = answer_lines(store, batch)
    active.finish(msgspec.structs.replace(batch, status=BatchStatus.COMPLETED))
    active.release()
    assert store.delete(OWNER, batch.id) and not store.delete(OWNER, batch.id)
    assert store.find(OWNER, batch.id) is None and store.list_page(OWNER, "batch", "", "", 10) == ([], False)
    assert store.list_answered(OWNER) == set(ANSWERED)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.parent.name == batch.id] == ["answered"]
    (place,) = tmp_path.rglob(batch.id)
    os.utime(place, (NOW - SHOWN_SECONDS - 1,) * 2)
    assert [path.parent.name for path in tmp_path.rglob(f"*{batch.id}*") if path.is_file()] == ["ended"], "no control plane was told"
    store.remove_expired()
    assert not place.exists() and not list(tmp_path.rglob(f"*{batch.id}*")), "what nobody is told of ends with the batch"


def test_page_says_that_there_are_more_only_where_one_is_shown(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for digit in "ab":
        store.create(make_batch(digit, input_file_id=""), [b"x"], 1)
        active = store.claim(store.list_active()[0])
        assert active is not None
        active.finish(msgspec.structs.replace(active.batch, status=BatchStatus.COMPLETED))
        active.release()
    assert store.list_page(OWNER, "batch", "", "", 1)[1]
    assert store.delete(OWNER, make_batch("a").id)
    assert [each.id for each in store.list_page(OWNER, "batch", "", "", 1)[0]] == [make_batch("b").id]
    assert not store.list_page(OWNER, "batch", "", "", 1)[1]


def test_batch_is_active_whoever_looks_for_one_while_it_is_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, batch = open_store(tmp_path), make_batch()
    real, claims = fcntl.flock, []

    def claim_first(descriptor: int, operation: int) -> None:
        """Another gateway finds the entry of the batch before its submission has locked it."""
        if operation == fcntl.LOCK_EX and store.list_active() and not claims:
            claims.append(store.list_active()[0])
            assert store.claim(claims[0]) is None
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", claim_first)
    store.create(batch, [b"x"], 1)
    assert claims == store.list_active()
    active = store.claim(claims[0])
    assert active is not None and active.batch == batch
    active.release()


async def test_batch_that_cannot_be_opened_holds_up_no_other(tmp_path: Path) -> None:
    async with serving(tmp_path, echo) as served:
        damaged = (await submit(served, text(line(0))))["id"]
        (state,) = tmp_path.rglob("state")
        state.write_bytes(b"damage")
        sound = (await submit(served, text(line(1))))["id"]
        names = sorted(served.store.list_active(), key=lambda name: damaged not in name)
        served.store.list_active = lambda: names  # type: ignore[method-assign]
        async with working(served):
            assert (await ended(served, sound))["status"] == "completed"
            await until(lambda: len(served.alarms) >= 2)
    assert {(event, fields["batch_id"]) for event, fields in served.alarms} == {("batch_failed", damaged)}
    assert served.alarms[1][1]["pause_seconds"] == 2 * cast(float, served.alarms[0][1]["pause_seconds"])


async def test_line_whose_answer_the_journal_did_not_take_is_not_billed_and_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, echo) as served:
        id = (await submit(served, text(*map(line, range(3)))))["id"]
        sync, failing = os.fdatasync, [5, 28]  # EIO, ENOSPC

        def fail_twice(descriptor: int) -> None:
            if failing and served.upstream.asked:
                raise OSError(failing.pop(), "fails")
            sync(descriptor)

        monkeypatch.setattr(os, "fdatasync", fail_twice)
        async with working(served):
            batch = await ended(served, id)
        lines = await read_lines(served, batch["output_file_id"])
        finals = served.running.sink.finals
    assert len(lines) == 3 and batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    failed = [final for final in finals if final.outcome is not Outcome.COMPLETED]
    assert len(finals) - len(failed) == 3 and failed, "each answer is billed once"
    assert {(final.outcome, final.error, final.used) for final in failed} == {(Outcome.UPSTREAM_ERROR, "files_unavailable", NOTHING)}
    assert [event for event, _ in served.alarms] == ["batch_failed"] * 2, "the journal is opened again"


@pytest.mark.parametrize("call", ["fdatasync", "write"])
def test_journal_that_failed_takes_nothing_more_and_has_nothing_that_was_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store = open_store(tmp_path)
    store.create(make_batch(), [b"x"], 1)
    active = store.claim(store.list_active()[0])
    assert active is not None
    active.open_journal()
    active.append(0, LineResult.COMPLETED, b"text", "req_" + "1" * 32, durable=True)
    active.append(1, LineResult.ERRORED, b"text", durable=False)
    with monkeypatch.context() as failing:

        def fail(*_: object) -> int:
            raise OSError(5, "fails")

        failing.setattr(os, call, fail)
        with pytest.raises(Fault):
            active.append(2, LineResult.COMPLETED, b"text", "req_" + "2" * 32, durable=True)
    for attempt in (lambda: active.append(3, LineResult.COMPLETED, b"text", "req_" + "3" * 32, durable=True), active.sync):
        with pytest.raises(Fault):
            attempt()
    assert store.list_answered(OWNER) == {"req_" + "1" * 32}
    active.release()


def test_without_the_directory_of_a_project_it_is_not_known_which_lines_were_answered(tmp_path: Path) -> None:
    store = BatchDirectory(tmp_path, VAULT, lambda: 1, organization_batches_max=10, free_bytes_min=0)
    with pytest.raises(OSError):
        store.list_answered(OWNER)


@pytest.mark.parametrize(
    ("kind", "failing", "fails"), [(OVERLOADED, 5, False), (UPLOADS_EXCEEDED, 5, False), (INTERNAL, 2, False), (INTERNAL, 99, True)]
)
async def test_line_that_cannot_be_checked_now_is_checked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: FaultKind, failing: int, fails: bool
) -> None:
    hold, refused = worker_module.hold_body, 0

    def refuse(*arguments: Any) -> Any:
        nonlocal refused
        refused += 1
        if refused <= failing:
            raise Fault(kind)
        return hold(*arguments)

    async with serving(tmp_path, echo) as served:
        id = (await submit(served, text(line(0))))["id"]
        monkeypatch.setattr(worker_module, "hold_body", refuse)
        async with working(served):
            batch = await ended(served, id)
    assert (batch["status"], len(served.upstream.asked)) == (("failed", 0) if fails else ("completed", 1))


async def test_messages_batch_that_is_cancelled_while_it_is_checked_has_a_result_for_each_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CHECK_SECONDS", "CHECK_TURN_SECONDS"):
        monkeypatch.setattr(worker_module, name, 0.0)
    async with serving(tmp_path, echo) as served:
        params = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
        asked = {"requests": [{"custom_id": f"c-{number}", "params": params} for number in range(3)]}
        id = (await post(served.running.port, asked, "/v1/messages/batches")).json()["id"]
        await get(served, f"/v1/messages/batches/{id}/cancel", "POST")
        async with working(served):
            batch = await ended(served, id, "/v1/messages/batches")
        results = [json.loads(each) for each in (await get(served, f"/v1/messages/batches/{id}/results")).body.splitlines()]
    assert batch["request_counts"] == {"processing": 0, "succeeded": 0, "errored": 0, "canceled": 3, "expired": 0}
    assert {each["custom_id"]: each["result"]["type"] for each in results} == dict.fromkeys(("c-0", "c-1", "c-2"), "canceled")
    assert served.upstream.asked == []


async def test_request_about_batches_whose_body_arrives_slowly_is_charged_like_every_other(tmp_path: Path) -> None:
    with plane(limits=Limits(requests_per_minute=1)) as (made, _, _):
        made.file_store = FileDirectory(tmp_path, VAULT, FileBounds(free_bytes_min=0), made.now_us)
        made.batch_store = BatchDirectory(tmp_path, VAULT, made.now_us, organization_batches_max=1, free_bytes_min=0)
        memory, answers = Memory(made), []
        for _ in range(2):
            connection = memory.connect()
            data = message({}, "/v1/batches")
            connection.feed(data[:-1])
            memory.tick(connection, 1.5)
            connection.feed(data[-1:])
            await memory.settle()
            answers += split_answers(connection.written)
        assert [each.status for each in answers] == [400, 429] and made.buffers.total == 0
