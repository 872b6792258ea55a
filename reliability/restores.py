"""R14: a database is lost and comes back from a backup; the records that are kept elsewhere bring it up to date.

Two ways, both tried each time, by `tollway backup create` and `restore`. From the archive: it has outlived the database, so the restore
ingests again what was archived since the backup, and no gateway is needed. From the spools: archive and database are both as old as the
backup, and the gateway hands in again what it keeps. After either, the state must be that of before the loss: every event, every rollup,
every balance."""

import asyncio
import hashlib
import json
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from pysqlite3 import dbapi2

from reliability import load
from reliability.bill_checks import Heard, find_wrong, read_bills, read_truth, wait_until_idle
from reliability.load import Ask
from reliability.platforms import PRICES, Platform, list_models, reserved_ports, supervised
from reliability.processes import WAIT_SECONDS, tollway
from reliability.records import Line, record
from scripts import postgres

PER_SECOND = 60.0
REQUESTS = 300
"""Before the backup, and as many between it and the loss."""

STATE = {
    "usage_events": "event_id",
    "usage_rollups": "organization_id, width_seconds, start_at, project_id, key_id, model, endpoint",
    "project_rollups": "organization_id, width_seconds, start_at, project_id, model, endpoint",
    "organization_rollups": "organization_id, width_seconds, start_at, model, endpoint",
    "balances": "account_id",
}
"""Rows that must come back, and their order. Transactions are not in it: a replay may batch otherwise, and books the same sums."""

UNSTABLE = frozenset({"version", "changed_at"})
"""Columns that count how often and when, not what."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a run. `restored_s`: seconds from the loss to the state of before it, by way."""

    wrong: list[str]
    requests: int
    replayed: int
    restored_s: dict[str, float]


def measure(times: int, database: str, seed: int) -> list[Line]:
    """Take the figure and keep it; what went wrong is printed."""
    began = time.time()
    outcomes = []
    for number in range(times):
        with tempfile.TemporaryDirectory(prefix="tollway-restores-") as scratch:
            outcomes.append(run(Path(scratch), database, seed + number))
    wrong = [each for outcome in outcomes for each in outcome.wrong]
    print("\n".join(wrong[:20]), flush=True)
    return [
        record(
            "R14",
            case=database,
            of="restores",
            n=2 * times,
            failures=len(wrong),
            also={"requests": sum(outcome.requests for outcome in outcomes)},
            seed=seed,
            began=began,
            detail={
                "events_younger_than_the_backup": sum(outcome.replayed for outcome in outcomes),
                "restored_in_s": {way: max(outcome.restored_s[way] for outcome in outcomes) for way in outcomes[0].restored_s},
            },
        )
    ]


def run(scratch: Path, database: str, seed: int) -> Outcome:
    """One loss, and both ways back, in the directory `scratch`, which must be empty."""
    wrong: list[str] = []
    restored_s: dict[str, float] = {}
    with ExitStack() as held:
        environment = {}
        if database == "postgres":
            (port,) = held.enter_context(reserved_ports(1))
            environment = postgres.application_environment(held.enter_context(postgres.cluster(port)).url)
        platform, serving = held.enter_context(supervised(scratch / "life", environment=environment))
        asks = load.make_asks(2 * REQUESTS, seed)
        heard = _send(platform, asks[:REQUESTS])
        wait_until_idle(platform.truth_log)
        platform.wait_until_billed(len(read_truth(platform.truth_log)))
        backup = scratch / "backup"
        _back_up(platform, backup)
        secret = _make_key(platform)  # younger than the backup: gateways know more than it does
        heard += _send(platform, asks[REQUESTS:])
        wait_until_idle(platform.truth_log)
        attempts = read_truth(platform.truth_log)
        platform.wait_until_billed(len(attempts))
        serving.end(signal.SIGTERM)
        right = _digest(platform)

        began = time.monotonic()
        _lose_database(platform)
        replayed = _restore(platform, backup, wrong)
        restored_s["from the archive"] = round(time.monotonic() - began, 1)
        wrong += _compare(platform, right, "from the archive")

        shutil.rmtree(platform.directory / "control" / "archive")
        began = time.monotonic()
        _lose_database(platform)
        _restore(platform, backup, wrong)
        serving.start()
        platform.wait_until_billed(len(attempts))
        restored_s["from the spools"] = round(time.monotonic() - began, 1)
        forgotten_by = time.monotonic() + WAIT_SECONDS  # the gateway begins with its copy, and reads a whole snapshot once it is connected
        while (status := list_models(platform.gateway_url, secret)) != 401 and time.monotonic() < forgotten_by:
            time.sleep(0.1)
        if status != 401:
            wrong.append("the gateway knows a key that the restored database does not")
        if list_models(platform.gateway_url, platform.tenant.api_key) != 200:
            wrong.append("the gateway has forgotten a key that the restored database has")
        serving.end(signal.SIGTERM)
        platform.check_all_is_shipped()
        wrong += _compare(platform, right, "from the spools")
        faults, _ = find_wrong(attempts, read_bills(platform.database_url), heard, PRICES)
        wrong += faults
    if not replayed:
        wrong.append("the backup had everything: nothing was proved")
    return Outcome(wrong, len(heard), replayed, restored_s)


def _send(platform: Platform, asks: Sequence[Ask]) -> list[Heard]:
    return asyncio.run(load.send_all(asks, platform.gateway_url, platform.tenant.api_key, per_second=PER_SECOND))


def _make_key(platform: Platform) -> str:
    with platform.admin() as http:
        path = f"/v1/organization/projects/{platform.tenant.project_id}/api_keys"
        secret: str = http.post(path, json={"name": "young"}).raise_for_status().json()["value"]
    deadline = time.monotonic() + WAIT_SECONDS
    while list_models(platform.gateway_url, secret) != 200:
        assert time.monotonic() < deadline, "the gateway never knew the new key"
        time.sleep(0.02)
    return secret


def _restore(platform: Platform, backup: Path, wrong: list[str]) -> int:
    """`tollway backup restore`; returns how many events it ingested from the archive."""
    done = tollway(
        "backup", "restore", str(backup), "--data-dir", str(platform.directory), "--output", "json", env=dict(platform.environment)
    )
    if done.returncode != 0:
        wrong.append(f"backup restore: {done.stdout}{done.stderr}")
        return 0
    return int(json.loads(done.stdout)["replayed"]["events"])


def _compare(platform: Platform, right: str, way: str) -> list[str]:
    wrong = [] if _digest(platform) == right else [f"{way}: the state is not that of before the loss"]
    verified = tollway("verify", "--data-dir", str(platform.directory), env=dict(platform.environment))
    return wrong if verified.returncode == 0 else [*wrong, f"{way}: verify: {verified.stdout}{verified.stderr}"]


# ---- Databases ----------------------------------------------------------------------------------------------------------


def _back_up(platform: Platform, to: Path) -> None:
    """While it runs, as an operator would."""
    done = tollway("backup", "create", str(to), "--data-dir", str(platform.directory), env=dict(platform.environment))
    assert done.returncode == 0, done.stderr


def _lose_database(platform: Platform) -> None:
    if platform.database_url.startswith("sqlite"):
        for suffix in ("", "-wal", "-shm"):
            (platform.directory / "control" / f"tollway.db{suffix}").unlink(missing_ok=True)
    else:
        owner = sa.create_engine(platform.environment["TOLLWAY_OWNER_DATABASE_URL"], poolclass=sa.NullPool)
        with owner.begin() as connection:
            connection.execute(sa.text("DROP SCHEMA public CASCADE"))
            connection.execute(sa.text("CREATE SCHEMA public"))


@contextmanager
def _connected(platform: Platform) -> Iterator[sa.Connection]:
    options = {"module": dbapi2} if platform.database_url.startswith("sqlite") else {}
    engine = sa.create_engine(platform.database_url, poolclass=sa.NullPool, **options)
    with engine.connect() as connection:
        yield connection


def _digest(platform: Platform) -> str:
    """SHA-256 over every row of STATE, in order. The platform has ended."""
    digest = hashlib.sha256()
    with _connected(platform) as connection:
        for table, order in STATE.items():
            for row in connection.execute(sa.text(f"SELECT * FROM {table} ORDER BY {order}")).mappings():
                stable = sorted((name, str(value)) for name, value in row.items() if name not in UNSTABLE)
                digest.update(f"{table} {stable}\n".encode())
    return digest.hexdigest()
