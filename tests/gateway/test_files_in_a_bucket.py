"""Files of tenants in a bucket, against a server that speaks S3: what holds for files in a directory holds here."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import obstore
import openai
import pytest
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

from tests.fakes import PATIENCE_SECONDS, until
from tests.gateway.harness import KEY, NOWHERE, gateway, post
from tests.gateway.test_batches import echo, ended, get, line, read_lines, serving, submit, text, working
from tests.gateway.test_files import FILES, FORM, MODELS, OWNER, VAULT, Clock, ask, described, form
from tollway.domain.faults import FILES_UNAVAILABLE, Fault
from tollway.domain.files import FileOwner, FilePurpose, StoredFile
from tollway.domain.usage import Outcome
from tollway.gateway.batches import worker
from tollway.storage.tenant_files import FileBounds
from tollway.storage.tenant_objects import PART_BYTES, FileBucket


class Bucket(NamedTuple):
    """A bucket of the server. `objects`: its store as anybody with the credentials sees it."""

    endpoint: str
    name: str
    objects: S3Store

    def open(self, now_us: Callable[[], int], **bounds: Any) -> FileBucket:
        named = {"bucket": self.name, "bucket_endpoint": self.endpoint, "bucket_prefix": "tollway/"}
        return FileBucket(VAULT, FileBounds(**(named | bounds)), now_us)

    def list_names(self) -> list[str]:
        return [each["path"] for page in obstore.list(self.objects) for each in page]

    def change(self, name: str, content: bytes) -> None:
        obstore.put(self.objects, name, content)

    def read(self, name: str) -> bytes:
        return obstore.get(self.objects, name).bytes().to_bytes()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of the server."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket of the test alone."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    name = f"b{abs(hash(request.node.name)):x}"
    httpx2.put(f"{endpoint}/{name}", timeout=10 * PATIENCE_SECONDS, trust_env=False).raise_for_status()
    return Bucket(
        endpoint, name, S3Store(name, endpoint=endpoint, region="us-east-1", client_options={"allow_http": True}, prefix="tollway")
    )


async def test_official_client_stores_lists_reads_and_deletes_files_in_a_bucket(bucket: Bucket) -> None:
    async with gateway(MODELS) as made:
        made.plane.file_store, made.plane.file_lifetime_seconds = bucket.open(made.plane.now_us), 86_400
        async with openai.AsyncOpenAI(base_url=made.url + "/v1", api_key=KEY, max_retries=0) as client:
            first = await client.files.create(file=("a.jsonl", b'{"a":1}\n'), purpose="batch")
            large = b"line\n" * 100_000
            second = await client.files.create(file=("b.txt", large), purpose="user_data")
            assert {file.id async for file in client.files.list()} == {first.id, second.id}
            assert await client.files.retrieve(second.id) == second
            assert (await client.files.content(second.id)).content == large
            held = [bucket.read(name) for name in bucket.list_names()]
            assert (await client.files.delete(first.id)).deleted
            with pytest.raises(openai.NotFoundError):
                await client.files.retrieve(first.id)
        assert len(held) == 2 and not any(b"line" in each or b"b.txt" in each for each in held)
        (left,) = bucket.list_names()
        assert left.endswith(f"/{second.id}") and left.startswith("org_")


def test_124_object_of_another_project_does_not_exist_and_one_that_was_altered_or_moved_is_never_given(bucket: Bucket) -> None:
    files, file = bucket.open(Clock()), described("a")
    files.add(OWNER, file, (b"sec", b"ret"))
    place = f"org_a/proj_a/{file.id}"
    assert b"".join(files.read_pieces(OWNER, file.id)) == b"secret" and files.list_files(OWNER) == [file]
    other = FileOwner("org_a", "proj_b")
    assert files.find(other, file.id) is None and files.list_files(other) == [] and not files.delete(other, file.id)
    held = bucket.read(place)
    for changed in (held[:-1], held[:9] + bytes([held[9] ^ 1]) + held[10:], held[:-1] + bytes([held[-1] ^ 1]), b""):
        bucket.change(place, changed)
        with pytest.raises(Fault) as caught:
            assert files.find(OWNER, file.id) is not None
            list(files.read_pieces(OWNER, file.id))
        assert caught.value.kind.code == "files_unavailable"
    bucket.change(f"org_a/proj_b/{file.id}", held)
    assert files.list_files(other) == []
    with pytest.raises(Fault):
        files.find(other, file.id)
    assert files.delete(other, file.id) and files.delete(OWNER, file.id) and not bucket.list_names()


def test_quota_holds_for_uploads_of_several_gateways_at_once(bucket: Bucket) -> None:
    stores = [bucket.open(Clock(), organization_files_max=2, organization_bytes_max=4_000) for _ in range(4)]
    starting = threading.Barrier(len(stores))

    def upload(number: int) -> bool:
        starting.wait()
        try:
            stores[number].add(OWNER, described("abcd"[number]), (b"secret",))
        except Fault as fault:
            assert fault.kind.code == "quota_exceeded"
            return False
        return True

    with ThreadPoolExecutor(len(stores)) as threads:
        stored = sum(threads.map(upload, range(len(stores))))
    assert stored == len(bucket.list_names()) <= 2
    with pytest.raises(Fault) as caught:
        stores[0].add(OWNER, StoredFile("file_" + "e" * 32, "x", FilePurpose.BATCH, 5_000, 0, 1 << 40), (b"x" * 5_000,))
    assert caught.value.kind.code == "quota_exceeded" and len(bucket.list_names()) == stored
    output = StoredFile("file_" + "f" * 32, "x", FilePurpose.BATCH_OUTPUT, 5_000, 0, 1 << 40)
    stores[0].add(OWNER, output, (b"x" * 5_000,))
    assert b"".join(stores[0].read_pieces(OWNER, output.id)) == b"x" * 5_000


def test_expired_object_is_not_found_and_then_removed_and_one_that_cannot_be_opened_with_its_age(bucket: Bucket) -> None:
    clock, now = Clock(), int(time.time())
    clock.now = now * 1_000_000
    files, file, other = bucket.open(clock), described("a", now), described("b", now)
    for each in (file, other):
        files.add(OWNER, each, (b"secret",))
    left = f"org_a/proj_a/{other.id}"
    bucket.change(left, b"\0")
    bucket.change("notes/of/somebody", b"x")
    assert files.list_files(OWNER) == [file]
    clock.now += 3_600_000_000
    assert files.find(OWNER, file.id) is None and files.list_files(OWNER) == [] and not files.delete(OWNER, file.id)
    files.remove_expired()
    assert set(bucket.list_names()) == {"notes/of/somebody", left}, "nobody knows when that one expires"
    clock.now += 30 * 86_400_000_000
    files.remove_expired()
    assert bucket.list_names() == ["notes/of/somebody"]


def test_files_of_an_erased_organization_are_removed_and_those_of_others_stay(bucket: Bucket) -> None:
    clock, now = Clock(), int(time.time())
    clock.now = now * 1_000_000
    files, left = bucket.open(clock), described("b", now)
    files.add(OWNER, described("a", now), (b"secret",))
    files.add(FileOwner("org_b", "proj_a"), left, (b"secret",))
    files.remove_organization(OWNER.organization_id)
    assert bucket.list_names() == [f"org_b/proj_a/{left.id}"]


def test_long_file_is_stored_in_parts_and_read_in_ranges_of_one_version(bucket: Bucket) -> None:
    files = bucket.open(Clock())
    size = PART_BYTES + 1_000_000
    file = StoredFile("file_" + "a" * 32, "x", FilePurpose.BATCH_OUTPUT, size, 1_800_000_000, 1 << 40)
    content = bytes(range(250)) * (size // 250)
    files.add(OWNER, file, (content[start : start + 100_000] for start in range(0, size, 100_000)))
    assert b"".join(files.read_pieces(OWNER, file.id)) == content
    reading = files.read_pieces(OWNER, file.id)
    next(reading)
    files.add(OWNER, file, (content,))
    with pytest.raises(Fault):
        list(reading)

    def broken() -> Iterator[bytes]:
        yield content
        raise Fault(FILES_UNAVAILABLE)

    other = StoredFile("file_" + "b" * 32, "x", FilePurpose.BATCH_OUTPUT, size, 1_800_000_000, 1 << 40)
    with pytest.raises(Fault):
        files.add(OWNER, other, broken())
    assert files.find(OWNER, other.id) is None, "of an upload that was broken off nothing is found"


@pytest.mark.parametrize("broken", ["down", "no bucket", "refused"])
async def test_store_that_does_not_serve_is_503_and_nothing_of_it_is_told(bucket: Bucket, broken: str) -> None:
    changed = {
        "down": {"bucket_endpoint": NOWHERE},
        "no bucket": {"bucket": "another-bucket"},
        "refused": {"bucket_endpoint": f"{bucket.endpoint}/moto-api/nothing"},
    }[broken]
    async with gateway(MODELS) as made:
        made.plane.file_store, made.plane.file_lifetime_seconds = bucket.open(made.plane.now_us, **changed), 86_400
        id = described("a").id
        got = [await post(made.port, form(), FILES, **FORM), await ask(made, "GET")]
        got += [await ask(made, method, f"{FILES}/{id}{rest}") for method, rest in (("GET", ""), ("GET", "/content"), ("DELETE", ""))]
    assert {(each.status, each.error["code"]) for each in got} == {(503, "files_unavailable")}
    assert not any(b"bucket" in each.body or b"127.0.0.1" in each.body for each in got)


async def test_output_of_a_batch_waits_for_the_bucket_and_no_line_is_sent_or_billed_twice(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SEARCH_SECONDS", "CHECK_SECONDS", "PAUSE_SECONDS_FIRST"):
        monkeypatch.setattr(worker, name, 0.01)
    async with serving(tmp_path, echo) as served:
        plane = served.running.plane
        plane.file_store = files = bucket.open(plane.now_us)
        served.files = bucket.open(plane.now_us, bucket_endpoint=NOWHERE)
        id = (await submit(served, text(*map(line, range(3)))))["id"]
        async with working(served):
            await until(lambda: bool(served.alarms))
        (name, told), *_ = served.alarms
        assert (name, told["batch_id"]) == ("batch_failed", id)
        assert (await get(served, f"/v1/batches/{id}")).json()["status"] == "finalizing"
        served.files = files
        async with working(served):
            batch = await ended(served, id)
        lines = await read_lines(served, batch["output_file_id"])
        assert (batch["status"], lines.keys(), len(served.upstream.asked)) == ("completed", {"c-0", "c-1", "c-2"}, 3)
        assert [final.outcome for final in served.running.sink.finals] == [Outcome.COMPLETED] * 3
        assert any(each.endswith(batch["output_file_id"]) for each in bucket.list_names())
