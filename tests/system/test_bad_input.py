"""Bad input of every kind, from bytes to disks: each is told clearly, and nothing is lost or served for nothing."""

import asyncio
import errno
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa
from pysqlite3 import dbapi2

from reliability import load
from reliability.bill_checks import Heard, check_bills, read_bills, read_truth, wait_until_idle
from reliability.load import Ask
from reliability.platforms import FREE, PRICES, Platform, apart, list_models, serve
from reliability.processes import WAIT_SECONDS, Start, tollway
from tollway.domain import keys

pytestmark = pytest.mark.system


# ---- Bytes and bodies --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def platform(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with serve(start, tmp_path_factory.mktemp("bad")) as (platform, _):
        yield platform


BROKEN_BODIES = [
    b"",
    b"{",
    b"nonsense",
    b"null",
    b"[]",
    b'{"model": "echo", "messages": [}',
    b'{"model": "echo", "model": "thinker", "messages": [{"role": "user", "content": "x"}]}',
    b'{"model": "echo", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
    b'\xef\xbb\xbf{"model": "echo", "messages": [{"role": "user", "content": "x"}]}',
    b'{"model": "echo", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    b'{"model": "echo", "messages": [{"role": "user", "content": "x"}]} trailing',
    b'{"a":' * 2000 + b"1" + b"}" * 2000,
]


class TestBodies:
    @pytest.mark.parametrize("body", BROKEN_BODIES, ids=lambda body: repr(body[:24]))
    def test_malformed_json_at_the_gateway_is_a_400_and_costs_nothing(self, platform: Platform, body: bytes) -> None:
        before = set(read_truth(platform.truth_log))
        headers = {"authorization": f"Bearer {platform.tenant.api_key}", "content-type": "application/json"}
        with httpx2.Client(base_url=platform.gateway_url, headers=headers, timeout=WAIT_SECONDS, trust_env=False) as http:
            refused = http.post("/v1/chat/completions", content=body)
            assert _error(refused, 400)["code"] in ("invalid_json", "duplicate_key", "invalid_value", "missing_required_parameter")
            good = {"model": "echo", "messages": [{"role": "user", "content": "Still there?"}]}
            assert http.post("/v1/chat/completions", json=good).status_code == 200
        assert len(set(read_truth(platform.truth_log)) - before) == 1, "a refused request reached the engine"

    @pytest.mark.parametrize("body", BROKEN_BODIES[1:], ids=lambda body: repr(body[:24]))
    def test_malformed_json_at_the_control_plane_is_a_400(self, platform: Platform, body: bytes) -> None:
        with platform.admin() as http:
            refused = http.post("/v1/organization/projects", content=body, headers={"content-type": "application/json"})
            _error(refused, 400)
            assert [each["name"] for each in http.get("/v1/organization/projects").json()["data"]] == ["bridge"]

    def test_53_unknown_fields_are_named_and_nothing_is_created(self, platform: Platform) -> None:
        organization = {"openai-organization": platform.tenant.organization_id}
        calls: list[tuple[str, dict[str, Any], str]] = [
            ("/v1/organization/projects", {"name": "x", "nmae": "y"}, "nmae"),
            (f"/v1/organization/projects/{platform.tenant.project_id}/api_keys", {"name": "x", "expires": 1}, "expires"),
            ("/v1/platform/models", {"name": "x", "endpoints": ["embeddings"], "max_output": 5}, "max_output"),
            ("/v1/platform/prices", {"model": "echo", "currency": "EUR", "input": "1", "output": "1", "cached": "0"}, "cached"),
            ("/v1/platform/organizations", {"name": "x", "currency": "EUR", "credit": "100"}, "credit"),
        ]
        with _operator(platform) as http:

            def list_ids() -> dict[str, list[str]]:  # ids alone: a key's time of last use changes by itself
                answers = {path: http.get(path, headers=organization).json()["data"] for path, _, _ in calls}
                return {path: [each["id"] for each in rows] for path, rows in answers.items()}

            before = list_ids()
            for path, body, field in calls:
                error = _error(http.post(path, json=body, headers=organization), 400)
                assert error["param"] == field or field in error["message"]
            assert list_ids() == before

    def test_a_model_without_a_price_is_not_published_and_not_served(self, platform: Platform) -> None:
        with _operator(platform) as http:
            made = http.post("/v1/platform/models", json={"name": "unpriced", "endpoints": ["chat/completions"]})
            assert made.status_code == 200
            assert _error(http.post("/v1/platform/models/unpriced/publish"), 400)["code"] == "price_missing"
            later = {"model": "unpriced", "currency": "EUR", "input": "1", "output": "1", "valid_from": int(time.time()) + 86_400}
            assert http.post("/v1/platform/prices", json=later).status_code == 200
            assert _error(http.post("/v1/platform/models/unpriced/publish"), 400)["code"] == "price_missing"
            assert http.get("/v1/platform/models/unpriced").json()["published"] is False
        unknown = asyncio.run(
            load.send(Ask("unpriced", "chat/completions", "x", stream=False), platform.gateway_url, platform.tenant.api_key)
        )
        assert (unknown.status, unknown.code) == (404, "model_not_found")


def _operator(platform: Platform) -> httpx2.Client:
    headers = {"authorization": f"Bearer {platform.platform_key}"}
    return httpx2.Client(base_url=platform.control_url, headers=headers, timeout=WAIT_SECONDS, trust_env=False)


def _error(answer: httpx2.Response, status: int) -> dict[str, Any]:
    """The error object of an answer, which must be in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() >= {"message", "type", "param", "code"}
    assert error["message"] and error["code"]
    return error


# ---- A full disk -------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(place: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of so many KiB at `place`. Skips the test where none may be mounted."""
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=WAIT_SECONDS)


def fill(place: Path) -> Path:
    """Take all the space that is left; returns the file that has it."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return filler


def test_a_full_disk_refuses_new_requests_loses_none_and_recovers_by_itself(tmp_path: Path) -> None:
    script = Path(__file__).with_name("small_spool.py")
    with (
        small_disk(tmp_path / "small", 2048) as disk,
        apart(tmp_path, gateway_arguments=(str(script),), gateway_directory=disk) as (platform, parts),
    ):
        url, key = platform.gateway_url, platform.tenant.api_key
        short = [Ask("echo", "chat/completions", f"Coin {number}", stream=number % 2 == 0) for number in range(40)]
        heard = asyncio.run(load.send_all(short, url, key, per_second=80))
        assert {each.ended for each in heard} == {"complete"}
        parts.control.end(signal.SIGKILL)  # what it has ingested could be removed here, and so make space
        filler = fill(disk)

        async def crowd_out() -> tuple[list[Heard], list[Heard]]:
            """Short requests until they are refused, while long ones run that were admitted before."""
            long = [Ask("slow", "chat/completions", load.PREFIX * 2 + str(number), stream=True) for number in range(8)]
            running = asyncio.create_task(load.send_all(long, url, key, per_second=80))
            await asyncio.sleep(0.5)
            crowd: list[Heard] = []
            while not any(each.code for each in crowd):
                assert len(crowd) < 1000, "the disk never was full"
                crowd += await load.send_all(short, url, key, per_second=120)
            return await running, crowd

        admitted, crowd = asyncio.run(crowd_out())
        assert {each.ended for each in admitted} == {"complete"}, "what had been admitted must end well"
        # The space kept back for the long ones is free again; when it is used up as well, nothing at all is let in.
        while {each.ended for each in crowd[-10:]} != {"error"}:
            assert len(crowd) < 1000, "the disk never was full"
            crowd += asyncio.run(load.send_all(short[:10], url, key, per_second=80))
        refused = [each for each in crowd if each.ended != "complete"]
        assert {(each.status, each.code) for each in refused} == {(503, "metering_unavailable")}
        assert list_models(url, key) == 200, "what costs nothing is still answered"
        filler.unlink()
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            (again,) = asyncio.run(load.send_all(short[:1], url, key, per_second=100))
            if again.ended == "complete":
                break
            refused.append(again)
            assert again.code == "metering_unavailable" and time.monotonic() < deadline
            time.sleep(0.1)
        parts.control.start()
        after = asyncio.run(load.send_all(short, url, key, per_second=80))
        assert {each.ended for each in after} == {"complete"}
        served = [*heard, *admitted, *(each for each in crowd if each.ended == "complete"), again, *after]
        wait_until_idle(platform.truth_log)
        attempts = read_truth(platform.truth_log)
        platform.wait_until_billed(len(served))
        assert parts.gateway.end(signal.SIGTERM) == 0, parts.gateway.out.read_text()
        assert parts.control.end(signal.SIGTERM) == 0
        verified = tollway("verify", "--data-dir", str(platform.directory))
        assert verified.returncode == 0, verified.stdout + verified.stderr
        bills = read_bills(platform.database_url)
        billed = check_bills(attempts, bills, [*served, *refused], PRICES)
        print(f"served {len(served)}, refused {len(refused)}, bills: {dict(billed)}")
        assert billed == {"completed": len(served)}
        assert not bills.keys() & {each.request_id for each in refused}


def test_a_gateway_does_not_start_on_a_full_disk_and_says_why(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 256) as disk:
        fill(disk)
        refused = tollway("gateway", "--data-dir", str(disk), "--listen", "127.0.0.1:0", "--internal", "127.0.0.1:0", env=_secrets())
        assert refused.returncode == 1
        said, hint = refused.stderr.splitlines()
        assert said == f"tollway: there is no space left to write {disk}"
        assert hint.startswith("hint: ")


# ---- What a person got wrong -------------------------------------------------------------------------------------------


def _secrets() -> dict[str, str]:
    """Secrets for a gateway without a data directory that has them. The key is well-formed and known to nobody."""
    node_key = keys.new_key(keys.KeyType.NODE, secrets.token_bytes(keys.RANDOM_BYTES)).secret
    node = {"TOLLWAY_NODE_ID": "node_" + secrets.token_hex(16), "TOLLWAY_NODE_KEY": node_key}
    return {"TOLLWAY_PEPPER": secrets.token_hex(32), "TOLLWAY_VAULT_KEY": secrets.token_hex(32), **node}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory as `tollway migrate` leaves it, to be copied."""
    directory = tmp_path_factory.mktemp("prepared") / "data"
    made = tollway("migrate", "--data-dir", str(directory))
    assert made.returncode == 0, made.stderr
    return directory


@pytest.fixture
def directory(prepared: Path, tmp_path: Path) -> Path:
    """A copy of it, for one test."""
    return Path(shutil.copytree(prepared, tmp_path / "data"))


GATEWAY = ("--listen", "127.0.0.1:0", "--internal", "127.0.0.1:0")
CONTROL = ("--listen", "127.0.0.1:0", "--link", "127.0.0.1:0")


@pytest.mark.parametrize(
    ("command", "option", "others"),
    [
        ("serve", "--listen", FREE),
        ("serve", "--internal", FREE),
        ("serve", "--control-listen", FREE),
        ("serve", "--link", FREE),
        ("gateway", "--listen", GATEWAY),
        ("gateway", "--internal", GATEWAY),
        ("control", "--listen", CONTROL),
        ("control", "--link", CONTROL),
    ],
)
def test_a_port_in_use_is_named_with_the_option_to_change(directory: Path, command: str, option: str, others: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = tollway(command, "--data-dir", str(directory), *others, option, f"127.0.0.1:{port}")
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        f"tollway: port {port} on 127.0.0.1 is in use",
        f"hint: choose another with {option}; port 0 takes a free one",
    ]


@pytest.mark.parametrize("command", ["serve", "gateway", "control", "migrate", "verify"])
def test_a_newer_data_directory_is_left_alone(directory: Path, command: str) -> None:
    (directory / "tollway.json").write_text('{"format": 99}')
    before = _contents(directory)
    refused = tollway(command, "--data-dir", str(directory), *{"serve": FREE, "gateway": GATEWAY, "control": CONTROL}.get(command, ()))
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        f"tollway: {directory} was written by a newer Tollway (format 99; this one reads up to 1)",
        "hint: run the version that wrote it, or restore a backup made before the upgrade",
    ]
    assert _contents(directory) == before


@pytest.mark.parametrize("command", ["serve", "control", "migrate", "verify"])
def test_a_newer_database_is_left_alone(directory: Path, command: str) -> None:
    engine = sa.create_engine(f"sqlite+pysqlite:///{directory}/control/tollway.db", poolclass=sa.NullPool, module=dbapi2)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(sa.text("DELETE FROM compatible_revisions"))
    refused = tollway(command, "--data-dir", str(directory), *{"serve": FREE, "control": CONTROL}.get(command, ()))
    assert refused.returncode == 1
    assert "the database is at revision 9999, over which this version of Tollway cannot run" in refused.stderr
    assert "Traceback" not in refused.stderr
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() == "9999"


def _contents(directory: Path) -> dict[str, bytes]:
    """Every file of a directory but locks and logs, which anybody who looks may make."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.suffix != ".lock" and "logs" not in path.parts
    }
