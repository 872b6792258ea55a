"""A control process as it is started and stopped: real process, inherited sockets, signals."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from tests.control.harness import NO_TLS, NODE_ID, WAIT_SECONDS_MAX, answered, mint
from tests.control.metering.test_collect import take
from tests.control.money.test_periods import ended
from tests.control.test_routes import refused
from tests.link.samples import EPOCH, frames
from tests.storage.databases import SqliteTemplate, fill
from tollway.control.reconciliation.reconcile import ReconcileOptions
from tollway.domain.keys import KeyType
from tollway.domain.usage import Close
from tollway.serve.control import ControlSettings, run_control
from tollway.serve.data_directory import NodeIdentity
from tollway.storage.database import Database, DatabaseTooNew
from tollway.storage.record_archive import Archive

pytestmark = pytest.mark.system

PROGRAM = """
import json, os, socket, sys
from tests.control.test_process import settings_of
from tollway.control import jobs
from tollway.serve.control import run_control
told = json.loads(os.environ["TOLD"])
jobs.LEASE_SECONDS = told.get("lease_seconds", jobs.LEASE_SECONDS)
sys.exit(run_control(settings_of(told, [socket.socket(fileno=number) for number in told["sockets"]])))
"""


@pytest.fixture
def told(sqlite_template: SqliteTemplate, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Return the settings of a process, without its sockets."""
    with sqlite_template.copied(tmp_path) as url:
        yield {
            "database_url": url,
            "archive": str(tmp_path / "archive"),
            "pepper": secrets.token_hex(32),
            "vault_key": secrets.token_hex(32),
            "platform_key": mint(KeyType.PLATFORM),
            "node_id": NODE_ID,
            "node_key": mint(KeyType.NODE),
        }


@contextmanager
def started(told: dict[str, Any]) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """The process and its ready line; killed at the end of the block if it still runs."""
    with socket.create_server(("127.0.0.1", 0)) as public, socket.create_server(("127.0.0.1", 0)) as link:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={
                "PYTHONPATH": os.pathsep.join(sys.path),
                "TOLD": json.dumps(told | {"sockets": [public.fileno(), link.fileno()]}),
            },
            pass_fds=(public.fileno(), link.fileno()),
            stdout=subprocess.PIPE,
        )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["event"] == "ready"
        yield process, ready
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def operator(ready: dict[str, Any], key: str) -> httpx2.Client:
    return httpx2.Client(base_url=ready["url"], headers={"authorization": f"Bearer {key}"}, timeout=WAIT_SECONDS_MAX, verify=NO_TLS)


class TestAControlProcess:
    def test_closes_periods_that_are_due_without_being_asked(self, told: dict[str, Any]) -> None:
        archive = Archive(Path(told["archive"]))
        database = Database.open(told["database_url"])
        fill(database)
        take(database, archive, frames([*ended(1, EPOCH), Close(at=EPOCH + 5)]))
        database.close()
        with started(told | {"close_after_days": 3}) as (process, ready):
            assert process.stdout is not None
            lines = iter(process.stdout.readline, b"")
            closed = next(line for line in map(json.loads, lines) if line["event"] == "period_closed")
            with operator(ready, told["platform_key"]) as client:
                (period,) = answered(client.get("/v1/platform/periods"))["data"]
            assert (period["id"], period["state"]) == (closed["period_id"], "closed")
            headers = {"authorization": f"Bearer {told['node_key']}"}
            with httpx2.Client(base_url=ready["link_url"], headers=headers, timeout=WAIT_SECONDS_MAX, verify=NO_TLS) as node:
                deadline = time.monotonic() + WAIT_SECONDS_MAX  # the look is over a moment after its last period
                while "tollway_control_periods_overdue 0.0" not in node.get("/metrics").text:
                    assert time.monotonic() < deadline
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_SECONDS_MAX) == 0

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_stops_when_asked_though_gateways_follow_it(self, told: dict[str, Any], number: signal.Signals) -> None:
        with started(told) as (process, ready):
            headers = {"authorization": f"Bearer {told['node_key']}"}
            with (
                httpx2.Client(base_url=ready["link_url"], headers=headers, timeout=WAIT_SECONDS_MAX, verify=NO_TLS) as node,
                node.stream("GET", "/v1/link/changes?since=0&follow=true") as response,
            ):
                lines = response.iter_lines()
                assert json.loads(next(lines))["version"] <= 1  # 1 where the first signing key is published already
                process.send_signal(number)
                assert all("version" in line for line in lines)  # the stream ends, it is not cut
            assert process.wait(WAIT_SECONDS_MAX) == 0
            assert process.stdout is not None
            *_, last = process.stdout.read().splitlines()
            assert json.loads(last)["event"] == "stopped"

    def test_keeps_everything_when_it_is_killed_and_started_again(self, told: dict[str, Any]) -> None:
        with started(told) as (process, ready), operator(ready, told["platform_key"]) as client:
            made = answered(client.post("/v1/platform/organizations", json={"name": "kept", "currency": "EUR"}))
            process.send_signal(signal.SIGKILL)
            process.wait(WAIT_SECONDS_MAX)
        with started(told) as (_, ready):
            with operator(ready, told["platform_key"]) as client:
                assert answered(client.get(f"/v1/platform/organizations/{made['id']}"))["name"] == "kept"
            with operator(ready, made["admin_api_key"]["value"]) as client:
                answered(client.get("/v1/organization/projects"))

    def test_knows_only_the_platform_key_of_its_settings(self, told: dict[str, Any]) -> None:
        replacement = told | {"platform_key": mint(KeyType.PLATFORM)}
        with started(told) as (_, ready), operator(ready, told["platform_key"]) as client:
            answered(client.get("/v1/platform/organizations"))
        with started(replacement) as (_, ready):
            with operator(ready, told["platform_key"]) as client:
                refused(client.get("/v1/platform/organizations"), 401, "invalid_api_key")
            with operator(ready, replacement["platform_key"]) as client:
                answered(client.get("/v1/platform/organizations"))

    def test_does_not_start_with_a_key_that_was_replaced_before(self, told: dict[str, Any], sockets: list[socket.socket]) -> None:
        for key in (told["platform_key"], mint(KeyType.PLATFORM)):
            with started(told | {"platform_key": key}):
                pass
        with pytest.raises(ValueError, match="was replaced by another before") as refusal:
            run_control(settings_of(told, sockets))
        assert told["platform_key"] not in str(refusal.value)

    def test_does_not_start_on_a_database_that_a_newer_version_broke_for_it(
        self, told: dict[str, Any], sockets: list[socket.socket]
    ) -> None:
        database = Database.open(told["database_url"])
        with database.platform() as tx:
            tx.connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
            tx.connection.execute(sa.text("DELETE FROM compatible_revisions"))
        database.close()
        with pytest.raises(DatabaseTooNew, match="newer version"):
            run_control(settings_of(told, sockets))

    def test_shows_no_secret_of_its_settings(self, told: dict[str, Any], sockets: list[socket.socket]) -> None:
        text = repr(settings_of(told, sockets))
        for secret in ("pepper", "vault_key", "platform_key", "node_key"):
            assert told[secret] not in text


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as public, socket.create_server(("127.0.0.1", 0)) as link:
        yield [public, link]


def settings_of(told: dict[str, Any], sockets: list[socket.socket]) -> ControlSettings:
    return ControlSettings(
        database_url=told["database_url"],
        archive_directory=Path(told["archive"]),
        public=sockets[0],
        link=sockets[1],
        peppers={1: bytes.fromhex(told["pepper"])},
        pepper_version=1,
        vault_key=bytes.fromhex(told["vault_key"]),
        platform_key=told["platform_key"],
        node=NodeIdentity(node_id=told["node_id"], key=told["node_key"]),
        close_after_days=told.get("close_after_days"),
        reconcile=ReconcileOptions(told["reconcile_seconds"]) if "reconcile_seconds" in told else None,
    )
