"""Requests with an idempotency key: served and billed once, answered alike whenever they are repeated."""

import asyncio
import errno
import fcntl
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fakes import PATIENCE_SECONDS, Do, Script, Step, Upstream, until
from tests.gateway.harness import (
    DONE,
    END,
    KEY,
    OTHER_KEY,
    STREAM_HEAD,
    Answer,
    Gateway,
    Served,
    chat,
    chunk,
    completion,
    connect,
    gateway,
    healthy,
    message,
    part,
    post,
    streamed,
    usage,
    whole,
)
from tollway.domain.billing_classes import Quantities
from tollway.domain.usage import Outcome
from tollway.gateway.buffers import BufferBounds
from tollway.gateway.relay import Exchange
from tollway.storage.answer_files import AnswerBounds, AnswerFiles
from tollway.storage.vault import LocalVault

VAULT = LocalVault(bytes(range(32)))


def open_store(directory: Path, running: Gateway, bounds: AnswerBounds | None = None) -> AnswerFiles:
    return AnswerFiles(directory, VAULT, bounds or AnswerBounds(), running.plane.now_us)


@asynccontextmanager
async def storing(directory: Path, *scripts: Script, bounds: AnswerBounds | None = None) -> AsyncIterator[tuple[Gateway, Upstream]]:
    """A gateway with a store of answers before an engine that plays `scripts`."""
    async with Upstream(*scripts).listening() as upstream, gateway({"m": Served([upstream.url])}) as running:
        running.plane.answer_store = open_store(directory, running, bounds)
        yield running, upstream


async def ask(running: Gateway, body: object, idempotency_key: str = "k", **headers: str) -> Answer:
    return await post(running.port, body, idempotency_key=idempotency_key, **headers)


async def test_repeated_request_is_answered_from_the_store_and_billed_once(tmp_path: Path) -> None:
    async with storing(tmp_path, [whole(completion("first"))], [whole(completion("second"))]) as (running, upstream):
        first = await ask(running, chat())
        again = await ask(running, chat())
        other = await ask(running, chat(), "other")
        await running.sink.settled(2)
        assert (running.plane.metrics.replays, len(upstream.asked)) == (1, 2)
    assert (again.status, again.body) == (200, first.body)
    assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert b"second" in other.body
    assert b'"replayed":true' in running.log.text


async def test_repeated_stream_is_given_whole(tmp_path: Path) -> None:
    async with storing(tmp_path, [*healthy("one", "two")]) as (running, upstream):
        first = await ask(running, streamed())
        again = await ask(running, streamed())
        await running.sink.settled(1)
        assert len(upstream.asked) == 1
    assert (again.body, again.headers["content-type"], again.ended) == (first.body, first.headers["content-type"], "complete")
    assert again.text == "onetwo"


async def test_88_key_with_another_body_is_refused(tmp_path: Path) -> None:
    async with storing(tmp_path, [whole(completion())]) as (running, _):
        await ask(running, chat())
        refused = await ask(running, chat(temperature=0.5))
        await running.sink.settled(1)
    assert (refused.status, refused.error["code"], refused.headers["x-should-retry"]) == (409, "idempotency_key_reused", "false")


async def test_88_same_key_of_another_api_key_is_another_request(tmp_path: Path) -> None:
    async with storing(tmp_path, [whole(completion("first"))], [whole(completion("second"))]) as (running, _):
        await ask(running, chat())
        other = await ask(running, chat(), key=OTHER_KEY)
        await running.sink.settled(2)
    assert b"second" in other.body


async def test_request_that_is_at_work_is_refused_until_it_is_answered(tmp_path: Path) -> None:
    async with storing(tmp_path, [Do.GATE, whole(completion("first"))]) as (running, upstream), connect(running.port) as client:
        client.send(message(chat(), idempotency_key="k"))
        while not upstream.asked:
            await asyncio.sleep(0.001)
        refused = await ask(running, chat())
        upstream.gate.set()
        first = await client.answer()
        again = await ask(running, chat())
        await running.sink.settled(1)
    assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (409, "idempotency_in_progress", "1")
    assert again.body == first.body


@pytest.mark.parametrize("bad", [[whole({"error": {"message": "x", "code": 400}}, 400)], [*healthy("one")[:-2], Do.RST]])
async def test_request_that_failed_is_a_new_one_when_it_is_repeated(tmp_path: Path, bad: list[Step]) -> None:
    body = streamed() if len(bad) > 1 else chat()
    good: list[Step] = [*healthy("good")] if len(bad) > 1 else [whole(completion("good"))]
    async with storing(tmp_path, bad, good) as (running, _):
        await ask(running, body)
        again = await ask(running, body)
        await running.sink.settled(2)
    assert again.status == 200 and b"good" in again.body
    assert "idempotent-replayed" not in again.headers


async def test_client_that_leaves_before_the_answer_repeats_a_new_request(tmp_path: Path) -> None:
    async with storing(tmp_path, [Do.HOLD], [whole(completion("second"))]) as (running, upstream):
        async with connect(running.port) as client:
            client.send(message(chat(), idempotency_key="k"))
            while not upstream.asked:
                await asyncio.sleep(0.001)
        final = await running.sink.settled(1)
        again = await ask(running, chat())
    assert final.outcome is Outcome.CLIENT_CANCELLED
    assert b"second" in again.body


async def test_88_client_that_leaves_while_its_answer_is_stored_is_billed_for_it(tmp_path: Path) -> None:
    async with storing(tmp_path, [whole(completion("first"))]) as (running, _):
        store, is_writing, may_write = running.plane.answer_store, threading.Event(), threading.Event()
        assert isinstance(store, AnswerFiles)
        write = store.write

        def write_late(*arguments: Any) -> int:
            is_writing.set()
            assert may_write.wait(PATIENCE_SECONDS)
            return write(*arguments)

        store.write = write_late  # type: ignore[method-assign,assignment]
        async with connect(running.port) as client:
            client.send(message(chat(), idempotency_key="k"))
            await asyncio.to_thread(is_writing.wait, PATIENCE_SECONDS)
        await asyncio.sleep(0.1)  # for the gateway to see that it left
        may_write.set()
        final = await running.sink.settled(1)
        again = await ask(running, chat())
    assert (final.outcome, final.used) == (Outcome.COMPLETED, Quantities(5, 0, 2))
    assert b"first" in again.body


async def test_official_sdk_repeats_a_request_that_is_at_work_until_it_is_answered(tmp_path: Path) -> None:
    asked: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "extra_headers": {"Idempotency-Key": "k"}}
    async with storing(tmp_path, [Do.GATE, whole(completion("once"))]) as (running, upstream):
        async with openai.AsyncOpenAI(base_url=running.url + "/v1", api_key=KEY, max_retries=9) as client:
            first = asyncio.ensure_future(client.chat.completions.create(**asked))
            while not upstream.asked:
                await asyncio.sleep(0.001)
            second = asyncio.ensure_future(client.chat.completions.create(**asked))
            while "idempotency_in_progress" not in running.plane.metrics.refusals:
                await asyncio.sleep(0.001)
            upstream.gate.set()
            assert (await second).choices == (await first).choices
        await running.sink.settled(1)


async def test_answer_is_stored_before_its_record_is_written(tmp_path: Path) -> None:
    async with storing(tmp_path, [whole(completion())]) as (running, _):
        stored: list[int] = []
        write = running.sink.final

        def final(*arguments: object) -> None:
            stored.extend(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
            write(*arguments)  # type: ignore[arg-type]

        running.sink.final = final  # type: ignore[method-assign,assignment]
        await ask(running, chat())
    assert len(stored) == 1 and stored[0] > 100


async def test_answer_of_a_process_that_died_is_known_to_the_next(tmp_path: Path) -> None:
    async with storing(tmp_path, [whole(completion("first"))]) as (running, _):
        first = await ask(running, chat())
    async with storing(tmp_path, [whole(completion("second"))]) as (running, upstream):
        assert (await ask(running, chat())).body == first.body
        assert not upstream.asked


async def test_file_that_was_not_written_whole_is_as_if_there_were_none(tmp_path: Path) -> None:
    async with storing(tmp_path, [whole(completion("first"))], [whole(completion("second"))]) as (running, _):
        await ask(running, chat())
        (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
        os.truncate(path, path.stat().st_size - 1)
        assert b"second" in (await ask(running, chat())).body
        await running.sink.settled(2)


async def test_88_file_that_was_altered_is_refused_and_not_asked_again(tmp_path: Path) -> None:
    async with storing(tmp_path, [whole(completion())]) as (running, _):
        await ask(running, chat())
        (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
        content = path.read_bytes()
        assert b"Hello" not in content
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(path, (running.plane.now_us() / 1e6,) * 2)
        assert (await ask(running, chat())).error["code"] == "idempotency_unanswered"
        await running.sink.settled(1)


@pytest.mark.parametrize("body", [chat(), streamed()])
async def test_answer_that_is_too_long_is_not_billed_again(tmp_path: Path, body: dict[str, object]) -> None:
    script: list[Step] = [*healthy("word " * 400)] if "stream" in body else [whole(completion("word " * 400))]
    async with storing(tmp_path, script, bounds=AnswerBounds(answer_bytes_max=1024)) as (running, _):
        assert (await ask(running, body)).status == 200
        assert (await ask(running, body)).error["code"] == "idempotency_unanswered"
        await running.sink.settled(1)


async def test_answer_expires(tmp_path: Path) -> None:
    async with storing(tmp_path, [whole(completion("first"))], [whole(completion("second"))]) as (running, _):
        await ask(running, chat())
        (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
        kept_at = running.plane.now_us() / 1e6 - AnswerBounds().lifetime_seconds
        os.utime(path, (kept_at, kept_at))
        assert b"second" in (await ask(running, chat())).body
        await running.sink.settled(2)
        os.utime(path, (kept_at, kept_at))
        await asyncio.to_thread(open_store(tmp_path, running).remove_expired)
        assert not path.exists()


async def test_88_organization_that_stored_its_share_is_refused_before_an_engine_is_asked(tmp_path: Path) -> None:
    bounds = AnswerBounds(answer_bytes_max=4096, organization_bytes_max=3 * 4096)
    async with storing(tmp_path, [whole(completion())], bounds=bounds) as (running, upstream):
        statuses = [(await ask(running, chat(), f"k{number}")).status for number in range(4)]
        assert (await ask(running, chat(), "k0")).headers["idempotent-replayed"] == "true"
        assert len(upstream.asked) == 2
        await running.sink.settled(2)
    assert statuses == [200, 200, 429, 429]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2


@pytest.mark.parametrize("key", ["", "a b", "k" * 256, "\xe9"])
async def test_key_that_is_none_is_refused(tmp_path: Path, key: str) -> None:
    async with storing(tmp_path, [whole(completion())]) as (running, _):
        refused = await ask(running, chat(), key)
    assert (refused.status, refused.error["param"]) == (400, "idempotency-key")


async def test_disk_that_fails_ends_the_request_without_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    async with storing(tmp_path, [whole(completion())]) as (running, _):
        monkeypatch.setattr("tollway.storage.answer_files.os.fsync", fail)
        answer = await ask(running, chat())
        final = await running.sink.settled(1)
    assert (answer.status, answer.error["code"]) == (503, "metering_unavailable")
    assert final.used.total == 0


async def test_answer_that_is_stored_while_its_file_is_looked_at_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with storing(tmp_path, [whole(completion("first"))], [whole(completion("second"))]) as (running, upstream):
        await ask(running, chat())
        (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
        kept_at = running.plane.now_us() / 1e6 - AnswerBounds().lifetime_seconds
        os.utime(path, (kept_at, kept_at))
        flock = fcntl.flock

        def answer_before(descriptor: int, operation: int) -> None:
            monkeypatch.setattr("tollway.storage.answer_files.fcntl.flock", flock)
            os.utime(path)  # as a request with this key does that is answered in between
            flock(descriptor, operation)

        monkeypatch.setattr("tollway.storage.answer_files.fcntl.flock", answer_before)
        await asyncio.to_thread(open_store(tmp_path, running).remove_expired)
        assert (await ask(running, chat())).headers["idempotent-replayed"] == "true"
        await running.sink.settled(1)
        assert len(upstream.asked) == 1


async def test_disk_that_removes_nothing_ends_the_claim_of_a_request_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, missing_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system")

    async with storing(tmp_path, [whole(b"", 500)], [whole(completion("second"))]) as (running, _):
        monkeypatch.setattr(Path, "unlink", fail)
        first = await ask(running, chat())
        again = await ask(running, chat())
        await running.sink.settled(2)
    assert (first.status, again.status) == (502, 200)


async def test_file_of_an_unanswered_request_is_removed_by_a_worker_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed_by: list[threading.Thread] = []
    unlink = Path.unlink

    def note(path: Path, missing_ok: bool = False) -> None:
        removed_by.append(threading.current_thread())
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", note)
    async with storing(tmp_path, [Do.RST]) as (running, _):
        assert (await ask(running, chat())).status == 502
        while not removed_by:
            await asyncio.sleep(0.001)
    assert threading.main_thread() not in removed_by
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_file_that_is_claimed_again_is_not_removed(tmp_path: Path) -> None:
    async with storing(tmp_path, [whole(completion())]) as (running, _):
        store = running.plane.answer_store
        assert isinstance(store, AnswerFiles)
        first = store.claim("org", b"request", b"body")
        first.release()
        second = store.claim("org", b"request", b"body")
        first.clean_up()
        assert second.path.exists()
        second.release()
        second.clean_up()
        assert not second.path.exists()


async def test_74_recorded_stream_counts_for_its_key(tmp_path: Path) -> None:
    words = [chunk("words " * 5_000) for _ in range(20)]
    script = [STREAM_HEAD, *map(part, words), Do.GATE, *map(part, [chunk(finish="stop"), usage(5, 2), DONE]), END]
    async with storing(tmp_path, script) as (running, upstream):
        buffers = running.plane.buffers
        stream = asyncio.ensure_future(ask(running, streamed()))
        while buffers.total < 500_000:
            await asyncio.sleep(0.001)
        upstream.gate.set()
        assert (await stream).events()[-1] == "[DONE]"
        await running.sink.settled(1)
        assert buffers.total == 0


async def test_74_stream_that_the_budget_does_not_suffice_for_is_relayed_and_not_stored(tmp_path: Path) -> None:
    script = [STREAM_HEAD, *[part(chunk("words " * 5_000)) for _ in range(20)], *map(part, [chunk(finish="stop"), usage(5, 2), DONE]), END]
    async with storing(tmp_path, script) as (running, _):
        running.plane.buffers.bounds = BufferBounds(key_bytes_max=200_000)
        assert (await ask(running, streamed())).events()[-1] == "[DONE]"
        again = await ask(running, streamed())
        assert (again.status, again.error["code"]) == (409, "idempotency_unanswered")
        assert running.plane.buffers.total == 0


async def test_74_stream_that_is_not_stored_holds_nothing_more(tmp_path: Path) -> None:
    words = [part(chunk("words " * 5_000)) for _ in range(10)]
    script = [STREAM_HEAD, *words, Do.GATE, *words, Do.GATE, *map(part, [chunk(finish="stop"), usage(5, 2), DONE]), END]
    async with storing(tmp_path, script) as (running, upstream):
        plane = running.plane
        plane.buffers.bounds = BufferBounds(total_bytes_max=200_000)
        stream = asyncio.ensure_future(ask(running, streamed()))

        def has_relayed(size: int) -> bool:
            return any(isinstance(each, Exchange) and each.stream_bytes > size for each in plane.active.exchanges)

        await until(lambda: has_relayed(290_000))
        plane.buffers.bounds = BufferBounds()
        upstream.gate.set()
        upstream.gate.clear()
        await until(lambda: has_relayed(590_000))
        assert plane.buffers.total == 0
        upstream.gate.set()
        assert (await stream).events()[-1] == "[DONE]"


async def test_store_on_a_disk_that_fails_at_the_start_is_used_once_it_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with storing(tmp_path / "answers", [whole(completion())]) as (running, upstream):

        def fail(*_: object, **__: object) -> None:
            raise OSError(errno.EROFS, "read-only")

        monkeypatch.setattr(Path, "mkdir", fail)
        refused = await ask(running, chat())
        assert (refused.status, refused.error["code"]) == (503, "metering_unavailable")
        assert (await post(running.port, chat())).status == 200, "requests without a key are served"
        monkeypatch.undo()
        assert (await ask(running, chat())).status == 200
        assert len(upstream.asked) == 2
