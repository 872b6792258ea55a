"""`tollway doctor` and `tollway config`: each need that is not met is found, with a remedy, and nothing is left behind."""

import json
import os
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from time import time
from typing import Any

import pytest

from tests.gateway.authorities import DAY, issue
from tests.storage.counter_servers import counter_server, find_servers
from tollway.cli.app import run
from tollway.serve import data_directory
from tollway.serve.diagnosis import CheckResult, CheckState, diagnose
from tollway.settings import load, mask_password
from tollway.storage import jobs
from tollway.storage.database import Database


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the caller takes part."""
    for variable in [name for name in os.environ if name.startswith("TOLLWAY_") and not name.startswith("TOLLWAY_TEST")]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)


def examine(directory: Path, control_url: str | None = None, database_url: str | None = None, **options: Any) -> dict[str, CheckResult]:
    """Return the findings by check. All ports are free ones unless `options` say otherwise."""
    given: dict[str, Any] = {"data_dir": str(directory), "gateway.spool.segment_bytes": 1 << 20, "gateway.spool.slots_max": 16}
    given |= dict.fromkeys(("gateway.listen", "gateway.internal", "control.listen", "control.link"), "127.0.0.1:0")
    given |= {"gateway.edge.connections_max": 1} | {name.replace("__", "."): value for name, value in options.items()}
    return {each.check: each for each in diagnose(load(given, {}, None), {}, control_url, database_url)}


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A data directory as the first start makes it, with a migrated database."""
    directory = tmp_path / "data"
    data_directory.prepare(directory)
    data_directory.make_secrets(directory)
    (directory / "control").mkdir(mode=0o700)
    with closing(Database.open(data_directory.sqlite_url(directory))) as database:
        database.migrate()
    return directory


def test_a_new_machine_has_no_errors_and_nothing_is_made(tmp_path: Path) -> None:
    found = examine(tmp_path / "new" / "data")
    assert {each.state for each in found.values()} <= {CheckState.OK, CheckState.SKIPPED, CheckState.WARNING}, found
    assert list(tmp_path.iterdir()) == []


def test_a_prepared_directory_is_well_and_unchanged(prepared: Path) -> None:
    before = sorted(prepared.rglob("*"))
    found = examine(prepared)
    assert [found[name].state for name in ("data directory", "secrets", "disk space", "durable writes", "open files", "database")] == [
        "ok"
    ] * 6
    assert "SQLite" in found["database"].message and "node_" in found["secrets"].message
    assert [each for each in sorted(prepared.rglob("*")) if each.suffix not in {".db-shm", ".db-wal"}] == before


def test_secrets_that_others_can_read_are_an_error(prepared: Path) -> None:
    (prepared / "secrets.json").chmod(0o644)
    finding = examine(prepared)["secrets"]
    assert finding.state is CheckState.ERROR and finding.remedy == f"chmod 600 {prepared}/secrets.json"


def test_a_directory_that_everybody_may_enter_is_a_warning(prepared: Path) -> None:
    prepared.chmod(0o755)
    assert (finding := examine(prepared)["data directory"]).state is CheckState.WARNING
    assert finding.remedy == f"chmod o-rwx {prepared}"


def test_a_directory_of_a_newer_version_is_an_error(prepared: Path) -> None:
    (prepared / "tollway.json").write_text('{"format": 99}')
    assert (finding := examine(prepared)["data directory"]).state is CheckState.ERROR
    assert "newer Tollway" in finding.message


def test_too_little_space_for_the_spool_is_an_error(tmp_path: Path) -> None:
    finding = examine(tmp_path, gateway__spool__segment_bytes=1 << 40)["disk space"]
    assert shutil.disk_usage(tmp_path).free < 1 << 40
    assert finding.state is CheckState.ERROR and "1,048," in finding.message and "segment_bytes" in finding.remedy


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="there is no file system in memory")
def test_a_directory_in_memory_is_a_warning() -> None:
    assert examine(Path("/dev/shm/tollway-doctor-test"))["file system"].state is CheckState.WARNING


def test_more_connections_than_files_may_be_open_are_a_warning(tmp_path: Path) -> None:
    finding = examine(tmp_path, gateway__edge__connections_max=10_000_000)["open files"]
    assert finding.state is CheckState.WARNING and "gateway.edge.connections_max" in finding.remedy


def test_a_port_in_use_by_something_else_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken.settimeout(0.01)
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        thread = Thread(target=lambda: taken.accept()[0].close(), daemon=True)
        taken.settimeout(60)
        thread.start()
        finding = examine(tmp_path, control__link=address)["port of control.link"]
    assert finding.state is CheckState.ERROR and "in use" in finding.message
    assert examine(tmp_path, gateway__listen="nonsense")["port of gateway.listen"].state is CheckState.ERROR


def test_a_gateway_alone_needs_no_port_of_control(tmp_path: Path) -> None:
    assert "port of control.link" not in examine(tmp_path, gateway__control_link_url="http://control:8082")


def test_shared_counters_that_do_not_answer_are_an_error(tmp_path: Path) -> None:
    assert examine(tmp_path)["shared counters"].state is CheckState.OK
    finding = examine(tmp_path, gateway__limits__redis_url="redis://127.0.0.1:9/0")["shared counters"]
    assert finding.state is CheckState.ERROR and "TOLLWAY_LIMITS_REDIS_PASSWORD" in finding.remedy


@pytest.mark.parametrize("server", find_servers())
def test_shared_counters_that_answer_are_well(tmp_path: Path, server: str) -> None:
    with counter_server(server) as running:
        finding = examine(tmp_path, gateway__limits__redis_url=running.url, gateway__limits__decision_seconds=30.0)["shared counters"]
    assert finding.state is CheckState.OK, finding


class _Clock(BaseHTTPRequestHandler):
    """A server with the clock of another machine."""

    offset_seconds = 0.0

    def do_GET(self) -> None:
        self.send_response_only(200)
        self.send_header("date", formatdate(time() + self.offset_seconds, usegmt=True))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing: tests are quiet."""


@pytest.fixture
def clock() -> Iterator[str]:
    """The URL of a server with a clock that a test sets."""
    with HTTPServer(("127.0.0.1", 0), _Clock) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
    _Clock.offset_seconds = 0.0


@pytest.mark.parametrize(
    ("offset", "state", "words"), [(0, CheckState.OK, "within"), (3600, CheckState.ERROR, "behind"), (-3600, CheckState.ERROR, "ahead of")]
)
def test_a_clock_that_differs_from_that_of_control_is_an_error(
    tmp_path: Path, clock: str, offset: float, state: CheckState, words: str
) -> None:
    _Clock.offset_seconds = offset
    finding = examine(tmp_path, control_url=clock)["clock"]
    assert (finding.state, words in finding.message) == (state, True), finding


def test_a_clock_that_cannot_be_compared_is_skipped(tmp_path: Path) -> None:
    assert examine(tmp_path)["clock"].state is CheckState.SKIPPED
    assert examine(tmp_path, control_url="http://127.0.0.1:9")["clock"].state is CheckState.SKIPPED


def test_a_database_that_does_not_answer_is_an_error_without_its_password(tmp_path: Path) -> None:
    url = "postgresql+psycopg://tollway:hush@127.0.0.1:9/tollway?connect_timeout=2"
    finding = examine(tmp_path, database_url=url)["database"]
    assert finding.state is CheckState.ERROR and finding.remedy
    assert "hush" not in finding.message


def test_pending_migrations_are_a_warning_and_those_of_a_newer_version_an_error_unless_it_lets_this_one_run(prepared: Path) -> None:
    file = prepared / "control" / "tollway.db"
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '0001'")
    finding = examine(prepared)["database"]
    assert finding.state is CheckState.WARNING and "tollway migrate" in finding.remedy
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    assert examine(prepared)["database"].state is CheckState.OK
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("DELETE FROM compatible_revisions")
    assert examine(prepared)["database"].state is CheckState.ERROR


def test_doctor_exits_1_with_an_error_and_prints_each_remedy(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (prepared / "secrets.json").chmod(0o644)
    assert run(["doctor", "--data-dir", str(prepared)]) == 1
    assert f"secrets: chmod 600 {prepared}/secrets.json" in capsys.readouterr().out
    assert run(["doctor", "--data-dir", str(prepared), "-o", "json"]) == 1
    assert {"check", "state", "message", "remedy"} == json.loads(capsys.readouterr().out)[0].keys()


class TestConfig:
    """`tollway config`."""

    def test_check_lists_every_problem_of_file_and_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "t.yaml").write_text(
            "gateway: {lisen: 'x', drain_seconds: -1, proxies: {proxy_protocol: true}, spool: {slots_max: 1000000}, listen: nonsense}\n"
            "control: {corrections: {approval_above: 1/2}, database_url: 'mysql://here'}"
        )
        monkeypatch.setenv("TOLLWAY_DATABSE_URL", "x")
        assert run(["version"]) == 2  # a misspelt variable stops every command
        monkeypatch.delenv("TOLLWAY_DATABSE_URL")
        assert run(["config", "check", "--config", "t.yaml", "-o", "json"]) == 2
        found = [each["message"] for each in json.loads(capsys.readouterr().out)["problems"]]
        for words in (
            "'gateway.lisen'",
            "gateway.drain_seconds",
            "proxies.trusted",
            "gateway.spool",
            "nonsense",
            "approval_above",
            "database URL",
        ):
            assert any(words in each for each in found), (words, found)
        assert run(["config", "check"]) == 0

    def test_check_of_a_file_that_is_not_yaml_says_where(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "t.yaml").write_text("gateway: {\n")
        assert run(["config", "check", "--config", "t.yaml"]) == 2
        assert "t.yaml, line 2" in capsys.readouterr().out

    def test_print_shows_the_source_of_each_setting_and_no_secret(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "t.yaml").write_text("gateway: {listen: '0.0.0.0:80', drain_seconds: 5}")
        monkeypatch.setenv("TOLLWAY__GATEWAY__DRAIN_SECONDS", "7")
        monkeypatch.setenv("TOLLWAY_DATABASE_URL", "postgresql://tollway:hush@db/tollway")
        monkeypatch.setenv("TOLLWAY_PEPPER", "0123456789abcdef" * 4)
        monkeypatch.setenv("TOLLWAY__CONTROL__SINKS__NATS_SERVERS", "nats://a:4222,nats://tollway:hush@b:4222")
        assert run(["config", "print", "--config", "t.yaml", "-o", "json"]) == 0
        printed = capsys.readouterr().out
        rows = {each["name"]: (each["value"], each["source"]) for each in json.loads(printed)}
        assert rows == {
            "gateway.listen": ("0.0.0.0:80", "t.yaml"),
            "gateway.drain_seconds": (7, "TOLLWAY__GATEWAY__DRAIN_SECONDS"),
            "control.database_url": ("postgresql://tollway:***@db/tollway", "TOLLWAY_DATABASE_URL"),
            "control.sinks.nats_servers": (["nats://a:4222", "nats://tollway:***@b:4222"], "TOLLWAY__CONTROL__SINKS__NATS_SERVERS"),
            "TOLLWAY_PEPPER": ("(set)", "the environment"),
        }
        assert run(["config", "print", "--effective"]) == 0
        assert any(line.split() == ["gateway.internal", "default", "127.0.0.1:9090"] for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://user:hush@host/db", "postgresql://user:***@host/db"),
        ("postgresql://user:hu@sh@host/db", "postgresql://user:***@host/db"),
        ("postgresql://user@host/db?password=hush&sslmode=require", "postgresql://user@host/db?password=***&sslmode=require"),
        ("redis://:hush@host", "redis://:***@host"),
        ("http://host:8080/x", "http://host:8080/x"),
        ("tollway-data", "tollway-data"),
    ],
)
def test_passwords_of_urls_are_masked(text: str, masked: str) -> None:
    assert mask_password(text) == masked


def test_a_sink_that_gets_nothing_is_a_warning(prepared: Path) -> None:
    assert examine(prepared)["sinks"].message == "not used"
    used = {"control__sinks__http_url": "https://siem.example.com"}
    assert examine(prepared, **used)["sinks"].state is CheckState.OK
    with closing(Database.open(data_directory.sqlite_url(prepared))) as database, database.platform() as tx:
        jobs.take_lease(tx, "sink_http", "process", period_at=0, now=1, until_at=2)
        jobs.postpone(tx, "sink_http", "process", retry_at=3, failures=4)
    finding = examine(prepared, **used)["sinks"]
    assert finding.state is CheckState.WARNING and "http failed 4 times" in finding.message and "job_failed" in finding.remedy


def test_a_certificate_that_expires_is_told_of_in_time(tmp_path: Path) -> None:
    assert "without TLS" in examine(tmp_path / "data")["certificate"].message
    authority = issue("authority", is_authority=True, begins=-500 * DAY, ends=500 * DAY)
    for days, state in ((-3, CheckState.ERROR), (13.5, CheckState.WARNING), (40, CheckState.OK)):
        file = tmp_path / "chain.pem"
        file.write_text(issue("gateway", authority, begins=-400 * DAY, ends=days * DAY).pem + authority.pem)
        found = examine(tmp_path / "data", gateway__tls__certificate_file=str(file))["certificate"]
        assert found.state is state and bool(found.remedy) == (state is not CheckState.OK)
    file.write_text("none")
    assert examine(tmp_path / "data", gateway__tls__certificate_file=str(file))["certificate"].state is CheckState.ERROR
