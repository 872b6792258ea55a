"""Files of tenants: OpenAI's client stores, lists, reads and deletes them, and nobody sees those of another project."""

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import openai
import pytest

from tests.fakes import until
from tests.gateway.harness import KEY, NOWHERE, ORGANIZATION, OTHER_KEY, Answer, Gateway, Served, connect, gateway, message, post
from tests.gateway.test_bounded_keys import bound
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.domain.files import FileOwner, FilePurpose, StoredFile
from tollway.domain.limits import Limits
from tollway.gateway.edge.clock import Clock as EdgeClock
from tollway.gateway.file_operations import ORGANIZATION_OPERATIONS_MAX
from tollway.gateway.files import Page, list_page, read_page
from tollway.gateway.ports import FileStore
from tollway.storage.tenant_files import FileBounds, FileDirectory
from tollway.storage.vault import LocalVault

FILES = "/v1/files"
FORM = {"content_type": "multipart/form-data; boundary=b"}
MODELS = {"m": Served([NOWHERE])}
EXPIRY = '--b\r\ncontent-disposition: form-data; name="expires_after[seconds]"\r\n\r\n1\r\n'
VAULT = LocalVault(bytes(range(32)))
OWNER = FileOwner("org_a", "proj_a")


class Clock:
    """An instant that a test moves, in microseconds."""

    def __init__(self) -> None:
        self.now = 1_800_000_000_000_000

    def __call__(self) -> int:
        return self.now


def store(made: Gateway, directory: Path, **bounds: Any) -> FileDirectory:
    files = FileDirectory(directory, VAULT, FileBounds(free_bytes_min=0, **bounds), made.plane.now_us)
    made.plane.file_store, made.plane.file_lifetime_seconds = files, 86_400
    return files


def form(content: bytes = b"x", purpose: str = "batch", name: str = "a.jsonl", more: str = "") -> bytes:
    head = f'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n{more}'
    return f'{head}--b\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode() + content + b"\r\n--b--\r\n"


async def ask(made: Gateway, method: str, path: str = FILES, key: str = KEY) -> Answer:
    async with connect(made.port) as client:
        client.send(message(b"", path, key=key).replace(b"POST", method.encode(), 1))
        return await client.answer()


async def test_official_client_stores_lists_reads_and_deletes_files(tmp_path: Path) -> None:
    async with gateway(MODELS) as made:
        store(made, tmp_path)
        async with openai.AsyncOpenAI(base_url=made.url + "/v1", api_key=KEY, max_retries=0) as client:
            first = await client.files.create(file=("a.jsonl", b'{"a":1}\n'), purpose="batch")
            large = b"line\n" * 100_000
            second = await client.files.create(
                file=("b.txt", large), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
            )
            assert (first.bytes, first.filename, first.purpose, first.status) == (8, "a.jsonl", "batch", "processed")
            assert first.expires_at == first.created_at + 86_400 and second.expires_at == second.created_at + 3600
            in_order = sorted([first.id, second.id])
            assert [file.id async for file in client.files.list(order="asc")] == in_order
            assert [file.id async for file in client.files.list(limit=1)] == in_order[::-1]
            assert [file.id async for file in client.files.list(purpose="batch")] == [first.id]
            assert await client.files.retrieve(second.id) == second
            assert (await client.files.content(second.id)).content == large
            assert (await client.files.delete(first.id)).deleted
            with pytest.raises(openai.NotFoundError):
                await client.files.retrieve(first.id)
        stored = b"".join(path.read_bytes() for path in tmp_path.rglob("file_*"))
        assert b"line" not in stored and b"b.txt" not in stored


@pytest.mark.parametrize(("method", "rest"), [("GET", ""), ("GET", "/content"), ("DELETE", "")])
async def test_124_file_of_another_project_does_not_exist(tmp_path: Path, method: str, rest: str) -> None:
    async with gateway(MODELS) as made:
        files = store(made, tmp_path)
        files.add(OWNER, described("a"), (b"secret",))
        id = described("a").id
        async with connect(made.port) as client:
            client.send(message(b"", f"{FILES}/{id}{rest}").replace(b"POST", method.encode(), 1))
            got = await client.answer()
            client.send(message(b"", FILES).replace(b"POST", b"GET", 1))
            listed = await client.answer()
        assert files.find(OWNER, id) is not None
    assert (got.status, got.error["code"]) == (404, "not_found") and listed.json()["data"] == []


@pytest.mark.parametrize(
    ("body", "headers", "status", "code", "param"),
    [
        (b"{}", {}, 415, "unsupported_media_type", None),
        (b"--b", FORM, 400, "invalid_form", None),
        (form().replace(b"purpose", b"sense"), FORM, 400, "missing_required_parameter", "purpose"),
        (form(purpose="fine-tune"), FORM, 400, "invalid_value", "purpose"),
        (form(content=b""), FORM, 400, "invalid_value", "file"),
        (form(name=""), FORM, 400, "invalid_value", "file"),
        (form(name="x" * 256), FORM, 400, "invalid_value", "file"),
        (form(more='--b\r\ncontent-disposition: form-data; name="x"\r\n\r\n1\r\n'), FORM, 400, "unknown_parameter", "x"),
        (
            form(more=EXPIRY),
            FORM,
            400,
            "invalid_value",
            "expires_after",
        ),
        (form(), FORM | {"authorization": "Bearer sk-x"}, 401, "invalid_api_key", None),
    ],
)
async def test_bad_upload_is_refused_and_stores_nothing(
    tmp_path: Path, body: bytes, headers: dict[str, str], status: int, code: str, param: str | None
) -> None:
    async with gateway(MODELS) as made:
        store(made, tmp_path)
        got = await post(made.port, body, FILES, **headers)
    assert (got.status, got.error["code"], got.error["param"]) == (status, code, param)
    assert not list(tmp_path.rglob("file_*"))


async def test_there_are_no_files_where_no_directory_is_named() -> None:
    async with gateway(MODELS) as made:
        assert (await post(made.port, form(), FILES, **FORM)).status == 404


async def test_upload_without_a_key_is_refused_by_its_head(tmp_path: Path) -> None:
    async with gateway(MODELS) as made:
        store(made, tmp_path)
        async with connect(made.port) as client:
            client.send(
                b"POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-type: multipart/form-data; boundary=b\r\ncontent-length: 9000000\r\n\r\n"
            )
            assert (await client.answer()).status == 401


@pytest.mark.parametrize("size", [1, 100_000])
async def test_upload_counts_as_one_request_until_it_is_answered(tmp_path: Path, size: int) -> None:
    async with gateway(MODELS, limits=Limits(concurrent_requests=1, requests_per_day=3)) as made:
        store(made, tmp_path)
        got = [(await post(made.port, form(b"x" * size), FILES, **FORM)).status for _ in range(3)]
        assert (got, (await ask(made, "GET")).status) == ([200, 200, 200], 429)
        assert made.plane.buffers.total == 0


async def test_large_upload_that_is_refused_holds_nothing() -> None:
    async with gateway(MODELS, limits=Limits(concurrent_requests=1)) as made:
        assert [(await post(made.port, form(b"x" * 100_000), FILES, **FORM)).status for _ in range(2)] == [404, 404]
        assert made.plane.buffers.total == 0


async def test_key_for_some_endpoints_may_do_nothing_with_files(tmp_path: Path) -> None:
    async with gateway(MODELS) as made:
        files = store(made, tmp_path)
        bound(made, endpoints=(Endpoint.EMBEDDINGS,))
        id = (await post(made.port, form(), FILES, **FORM)).json()["id"]
        asked = [("GET", FILES), ("GET", f"{FILES}/{id}"), ("GET", f"{FILES}/{id}/content"), ("DELETE", f"{FILES}/{id}")]
        got = [await ask(made, method, path, OTHER_KEY) for method, path in asked]
        got += [await post(made.port, form(b"x" * size), FILES, key=OTHER_KEY, **FORM) for size in (1, 100_000)]
        assert {(each.status, each.error["code"]) for each in got} == {(403, "insufficient_scope")}
        (left,) = [path.name for path in tmp_path.rglob("file_*")]
        assert left == id and files


async def test_upload_is_refused_under_memory_pressure_and_a_list_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EdgeClock, "PERIOD_SECONDS", 3600.0)
    async with gateway(MODELS) as made:
        store(made, tmp_path)
        made.plane.shedder.steps = 8
        got = [await post(made.port, form(b"x" * size), FILES, **FORM) for size in (1, 100_000)]
        assert {(each.status, each.error["code"]) for each in got} == {(503, "overloaded")}
        assert (await ask(made, "GET")).status == 200


class Blocking:
    """A store whose disk hangs until `lasts` is set, and then has no file."""

    def __init__(self) -> None:
        self.lasts = threading.Event()
        self.entered: list[str] = []

    def list_files(self, owner: FileOwner) -> list[StoredFile]:
        self.entered.append(threading.current_thread().name)
        self.lasts.wait()
        return []


async def test_operation_on_a_disk_that_hangs_is_answered_and_counts_until_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tollway.gateway.file_operations.OPERATION_SECONDS_MAX", 0.01)
    blocking = Blocking()
    async with gateway(MODELS, limits=Limits(concurrent_requests=50)) as made:
        made.plane.file_store = cast(FileStore, blocking)
        try:
            got = [await ask(made, "GET") for _ in range(ORGANIZATION_OPERATIONS_MAX)]
            assert {(each.status, each.error["code"]) for each in got} == {(503, "files_unavailable")}
            beyond = await ask(made, "GET")
            assert (beyond.status, beyond.error["code"]) == (429, "rate_limit_exceeded") and beyond.headers["retry-after"] == "1"
            made.plane.file_operations.require_place("org_" + "f" * 32)
            with pytest.raises(Fault):
                made.plane.file_operations.require_place(ORGANIZATION)
            assert all(name.startswith("files") for name in blocking.entered), "not in the threads that everything else shares"
        finally:
            blocking.lasts.set()

        def has_ended() -> bool:
            try:
                made.plane.file_operations.require_place(ORGANIZATION)
            except Fault:
                return False
            return True

        await until(has_ended)
        monkeypatch.setattr("tollway.gateway.file_operations.OPERATION_SECONDS_MAX", 60.0)
        assert (await ask(made, "GET")).json()["data"] == []


async def test_error_that_nobody_foresaw_is_answered_and_reported() -> None:
    reported: list[dict[str, Any]] = []
    async with gateway(MODELS) as made:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        made.plane.file_store = cast(FileStore, object())
        got = await ask(made, "GET")
    assert (got.status, got.error["code"]) == (500, "internal_error")
    assert [type(each["exception"]) for each in reported] == [AttributeError]


async def test_quota_of_an_organization_holds_for_files_and_bytes(tmp_path: Path) -> None:
    async with gateway(MODELS) as made:
        store(made, tmp_path, organization_files_max=2, organization_bytes_max=4_000)
        assert [(await post(made.port, form(), FILES, **FORM)).status for _ in range(3)] == [200, 200, 403]
        store(made, tmp_path, organization_bytes_max=4_000)
        refused = await post(made.port, form(b"x" * 5_000), FILES, **FORM)
    assert (refused.status, refused.error["code"]) == (403, "quota_exceeded")


@pytest.mark.parametrize("query", [b"limit=0", b"limit=x", b"order=up", b"x=1", b"limit", b"=&"])
def test_query_that_cannot_be_is_refused(query: bytes) -> None:
    with pytest.raises(Fault):
        read_page(query)


def described(letter: str, created_at: int = 1_800_000_000) -> StoredFile:
    return StoredFile(f"file_{letter * 32}", "x", FilePurpose.BATCH, 6, created_at, created_at + 3600)


def test_pages_follow_one_another_and_a_cursor_must_be_a_file() -> None:
    files = [described(letter) for letter in "abc"]
    page = list_page(files, read_page(b"limit=2&order=asc"))
    assert (page["last_id"], page["has_more"]) == (files[1].id, True)
    assert [file["id"] for file in list_page(files, Page(after=files[1].id, order="asc"))["data"]] == [files[2].id]
    with pytest.raises(Fault):
        list_page(files, Page(after="file_x"))


@contextmanager
def broken(path: Path, change: Any) -> Iterator[None]:
    held = path.read_bytes()
    path.write_bytes(change(held))
    try:
        yield
    finally:
        path.write_bytes(held)


def test_124_stored_file_that_was_altered_or_moved_is_never_given(tmp_path: Path) -> None:
    files = FileDirectory(tmp_path, VAULT, FileBounds(free_bytes_min=0), Clock())
    file = described("a")
    files.add(OWNER, file, (b"sec", b"ret"))
    place = tmp_path / "org_a" / "proj_a" / file.id
    assert files.read(OWNER, file.id) == b"secret" and files.list_files(OWNER) == [file]
    bent = (lambda data: data[:9] + bytes([data[9] ^ 1]) + data[10:], lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    for change in (lambda data: data[:-1], *bent, lambda data: b""):
        with broken(place, change), pytest.raises(Fault) as caught:
            assert files.find(OWNER, file.id) is not None
            files.read(OWNER, file.id)
        assert caught.value.kind.code == "files_unavailable"
    other = FileOwner("org_b", "proj_b")
    moved = tmp_path / "org_b" / "proj_b" / file.id
    moved.parent.mkdir(parents=True)
    moved.write_bytes(place.read_bytes())
    with pytest.raises(Fault):
        files.find(other, file.id)


def test_expired_file_is_not_found_and_then_removed_and_an_unfinished_one_as_well(tmp_path: Path) -> None:
    clock = Clock()
    files = FileDirectory(tmp_path, VAULT, FileBounds(free_bytes_min=0), clock)
    files.remove_expired()
    files.add(OWNER, described("a"), (b"secret",))
    unfinished = tmp_path / "org_a" / "proj_a" / ("file_" + "b" * 32 + ".new")
    unfinished.write_bytes(b"x")
    assert files.list_files(OWNER) == [described("a")]
    clock.now += 3_600_000_000
    assert files.find(OWNER, described("a").id) is None and files.list_files(OWNER) == [] and not files.delete(OWNER, described("a").id)
    clock.now = 4_000_000_000_000_000
    files.remove_expired()
    assert not list(tmp_path.rglob("file_*"))


def test_disk_that_is_full_or_fails_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    full = FileDirectory(tmp_path, VAULT, FileBounds(free_bytes_min=1 << 62), Clock())
    with pytest.raises(Fault) as caught:
        full.add(OWNER, described("a"), (b"x",))
    assert caught.value.kind.code == "files_unavailable" and not list(tmp_path.rglob("file_*"))
    (tmp_path / "file").write_bytes(b"")
    failing = FileDirectory(tmp_path / "file", VAULT, FileBounds(free_bytes_min=0), Clock())
    with pytest.raises(Fault):
        failing.add(OWNER, described("a"), (b"x",))


def test_file_that_cannot_be_opened_stands_in_no_list_and_can_be_deleted_and_goes_with_its_age(tmp_path: Path) -> None:
    clock = Clock()
    files = FileDirectory(tmp_path, VAULT, FileBounds(free_bytes_min=0), clock)
    for letter in "abcd":
        files.add(OWNER, described(letter), (b"secret",))
    altered, short, left = (tmp_path / "org_a" / "proj_a" / described(letter).id for letter in "abd")
    for path in (altered, left):
        path.write_bytes(path.read_bytes()[:20])
    short.write_bytes(b"\0")
    assert files.list_files(OWNER) == [described("c")]
    assert files.delete(OWNER, altered.name) and not altered.exists() and not files.delete(OWNER, altered.name)
    clock.now += 3_600_000_000
    for path in (short, left):
        os.utime(path, (clock.now // 1_000_000,) * 2)
    files.remove_expired()
    assert {path.name for path in tmp_path.rglob("file_*")} == {short.name, left.name}, "what follows a file of one byte is removed"
    clock.now += 30 * 86_400_000_000
    files.remove_expired()
    assert not list(tmp_path.rglob("file_*"))


def test_file_that_cannot_be_removed_keeps_no_other_and_is_told(tmp_path: Path) -> None:
    clock = Clock()
    files = FileDirectory(tmp_path, VAULT, FileBounds(free_bytes_min=0), clock)
    files.add(OWNER, described("a"), (b"secret",))
    places = {tmp_path / "org_a" / "proj_a" / described(letter).id for letter in "bcdef"}
    for place in places:
        place.mkdir()
    clock.now += 3_600_000_000
    with pytest.raises(OSError):
        files.remove_expired()
    assert set(tmp_path.rglob("file_*")) == places


def test_file_that_is_deleted_while_the_quota_is_counted_refuses_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = FileDirectory(tmp_path, VAULT, FileBounds(free_bytes_min=0), Clock())
    monkeypatch.setattr(files, "_list_paths", lambda directory: iter([directory / "proj_a" / "deleted"]))
    files.add(OWNER, described("a"), (b"secret",))
    assert files.read(OWNER, described("a").id) == b"secret"


def test_directories_of_a_file_are_on_the_disk_before_it_and_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("tollway.storage.tenant_files.sync_directory", synced.append)
    root = tmp_path / "files"
    FileDirectory(root, VAULT, FileBounds(free_bytes_min=0), Clock()).add(OWNER, described("a"), (b"secret",))
    of_organization = root / "org_a"
    of_project = of_organization / "proj_a"
    assert synced == [tmp_path, root, of_organization, of_project]
    assert {path.stat().st_mode & 0o777 for path in (root, of_organization, of_project)} == {0o700}
