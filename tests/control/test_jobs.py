"""Periodic jobs: each once in its period over all processes, resumed elsewhere after a kill, retried after failures.

The runner is tested over real databases with a clock of the test; the last test starts two real control processes on PostgreSQL.
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from scripts import postgres
from tests.control.harness import NO_TLS, NODE_ID, WAIT_SECONDS_MAX, Running, answered, mint, wait_until
from tests.control.test_process import operator, started
from tests.storage.databases import PostgresTemplate
from tollway.control import jobs
from tollway.control.jobs import Job, JobRunner, JobStates, Turn, in_thread
from tollway.control.tracing import ControlTracer
from tollway.domain.faults import DATABASE_UNAVAILABLE, Fault
from tollway.domain.keys import KeyType
from tollway.spans import Sampler, Span, SpanKind, TraceBounds
from tollway.storage import jobs as stored
from tollway.storage.database import Database

START = 1_790_000_000_000_000 // 60_000_000 * 60_000_000
"""A full minute."""


class Process:
    """A runner as one control process has it, with a clock that the test sets. `lines`: the lines that it logged."""

    def __init__(self, database: Database, holder: str, at: int = START) -> None:
        self.at = at
        self.lines: list[Mapping[str, object]] = []
        self.states = JobStates()
        self.stop = asyncio.Event()
        self.runner = JobRunner(database, holder, self.states, self.stop, lambda: self.at, self.lines.append)

    async def run(self, *wanted: Job, until: Callable[[], object]) -> None:
        """Run the jobs until the condition holds, then stop."""
        task = asyncio.create_task(self.runner.run(wanted))
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while not until():
            assert time.monotonic() < deadline and not task.done(), "it never came true"
            await asyncio.sleep(0.01)
        self.stop.set()
        await asyncio.wait_for(task, WAIT_SECONDS_MAX)

    def state(self, name: str) -> jobs.JobState:
        return self.states.by_name.get(name, jobs.JobState())

    @property
    def events(self) -> list[object]:
        return [line["event"] for line in self.lines]


def counted(runs: list[int], name: str = "count", **options: Any) -> Job:
    """A job that notes the instant of each run."""

    async def work(turn: Turn) -> None:
        runs.append(turn.at)

    return Job(name=name, work=work, **({"interval_seconds": 60, "deadline_seconds": 60} | options))


def lease_of(database: Database, name: str = "count") -> stored.JobLease | None:
    with database.platform(write=False) as tx:
        return stored.find_lease(tx, name)


async def settle() -> None:
    """Give the runners time for attempts that must not happen."""
    await asyncio.sleep(0.2)


def test_a_leased_job_runs_once_in_each_period_over_all_processes(database: Database) -> None:
    runs: list[int] = []

    async def main() -> None:
        first, second = Process(database, "first"), Process(database, "second")
        tasks = [asyncio.create_task(each.runner.run([counted(runs, interval_seconds=1)])) for each in (first, second)]
        for second_number in range(4):
            for each in (first, second):
                each.at = START + second_number * 1_000_000 + 10
            deadline = time.monotonic() + WAIT_SECONDS_MAX
            while len(runs) <= second_number:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            await settle()
        for each in (first, second):
            each.stop.set()
        await asyncio.gather(*tasks)
        for each in (first, second):
            assert each.lines == []

    asyncio.run(main())
    assert [at // 1_000_000 - START // 1_000_000 for at in runs] == [0, 1, 2, 3]
    lease = lease_of(database)
    assert lease is not None and lease.done_period_at == START + 3_000_000 and lease.failures == 0


def test_a_job_without_a_lease_runs_in_every_process_and_stores_nothing(database: Database) -> None:
    runs: list[int] = []
    job = counted(runs, is_leased=False)

    async def main() -> None:
        for holder in ("first", "second"):
            before = len(runs)
            await Process(database, holder).run(job, until=lambda before=before: len(runs) > before)

    asyncio.run(main())
    assert len(runs) == 2 and lease_of(database) is None


def test_a_run_of_a_job_is_a_trace_of_its_own_and_the_length_of_one_says_nothing(database: Database) -> None:
    runs: list[int] = []
    spans: list[Span] = []

    async def main(sample_ratio: float) -> None:
        before = len(runs)
        sampler = Sampler(TraceBounds(sample_ratio=sample_ratio, slow_seconds=1e-9))
        process = Process(database, "first")
        process.runner = replace(process.runner, tracer=ControlTracer(sampler, spans.extend, Random(1).getrandbits, lambda: process.at))
        await process.run(counted(runs, is_leased=False), until=lambda: len(runs) > before)

    asyncio.run(main(0.0))
    assert spans == []
    asyncio.run(main(1.0))
    (span,) = spans
    assert (span.name, span.kind, span.parent_id, span.error) == ("job count", SpanKind.INTERNAL, "", "")
    assert span.attributes == {"tollway.job": "count"}


def test_a_job_that_waits_for_its_period_begins_at_the_full_interval(database: Database) -> None:
    runs: list[int] = []

    async def main() -> None:
        process = Process(database, "first", START + 59_900_000)
        task = asyncio.create_task(process.runner.run([counted(runs, waits_for_period=True)]))
        await settle()
        assert runs == []
        process.at = START + 60_000_000
        while not runs:
            await asyncio.sleep(0.01)
        process.stop.set()
        await task

    asyncio.run(main())
    assert runs == [START + 60_000_000]


def test_a_done_period_is_not_repeated_by_a_process_that_starts_anew(database: Database) -> None:
    runs: list[int] = []

    async def main() -> None:
        await Process(database, "first").run(counted(runs), until=lambda: runs)
        again = Process(database, "again", START + 1_000_000)
        await again.run(counted(runs), until=lambda: again.state("count").last_success_at is not None)
        later = Process(database, "later", START + 60_000_000)
        await later.run(counted(runs), until=lambda: len(runs) > 1)

    asyncio.run(main())
    assert runs == [START, START + 60_000_000]


class TestLeases:
    def take(self, database: Database, holder: str, now: int, period_at: int = START) -> bool:
        with database.platform() as tx:
            return stored.take_lease(tx, "job", holder, period_at=period_at, now=now, until_at=now + 150)

    def test_are_taken_by_one_process_and_pass_to_another_when_they_run_out(self, database: Database) -> None:
        assert self.take(database, "first", START)
        assert not self.take(database, "second", START + 149)
        with database.platform() as tx:
            assert stored.renew_lease(tx, "job", "first", now=START + 149, until_at=START + 299)
        assert not self.take(database, "second", START + 150)
        assert self.take(database, "second", START + 299)
        with database.platform() as tx:
            assert not stored.renew_lease(tx, "job", "first", now=START + 300, until_at=START + 900)
            stored.finish(tx, "job", "first", period_at=START, now=START + 300)
            stored.postpone(tx, "job", "first", retry_at=START + 999, failures=9)
        lease = lease_of(database, "job")
        assert lease == stored.JobLease("second", START + 299 + 150, None, None, 0)

    def test_of_a_period_that_is_done_are_not_taken(self, database: Database) -> None:
        assert self.take(database, "first", START)
        with database.platform() as tx:
            stored.finish(tx, "job", "first", period_at=START, now=START + 1)
        assert not self.take(database, "second", START + 2)
        assert self.take(database, "second", START + 60, period_at=START + 60)

    def test_that_a_clock_ahead_has_written_do_not_stop_the_job(self, database: Database) -> None:
        ahead = START + 40 * 86_400_000_000
        assert self.take(database, "ahead", ahead, period_at=ahead)
        assert self.take(database, "second", START)
        with database.platform() as tx:
            stored.finish(tx, "job", "second", period_at=ahead, now=ahead)
        assert self.take(database, "third", START + 10)


class TestFailures:
    def test_are_retried_with_growing_pauses_logged_once_and_recovered_from(self, database: Database) -> None:
        attempts: list[int] = []
        process = Process(database, "first")

        async def fail(turn: Turn) -> None:
            attempts.append(turn.at)
            if len(attempts) < 4:
                raise Fault(DATABASE_UNAVAILABLE, detail="away")

        async def tick() -> None:
            while not process.stop.is_set():
                await asyncio.sleep(0.001)
                process.at += 100_000

        async def main() -> None:
            ticking = asyncio.create_task(tick())
            job = Job(name="count", work=fail, interval_seconds=3600, deadline_seconds=60)
            await process.run(job, until=lambda: "job_recovered" in process.events)
            await ticking

        asyncio.run(main())
        pauses = [(later - earlier) / 1e6 for earlier, later in pairwise(attempts)]
        assert pauses[0] >= 1 and pauses[1] >= 2 and pauses[2] >= 4
        assert process.events == ["job_failed", "job_recovered"]
        assert process.lines[0]["detail"] == "database_unavailable: away" and process.lines[1]["failures"] == 3
        samples = {(s.name, s.value) for metric in process.states.collect() for s in metric.samples if "duration" not in s.name}
        assert ("tollway_control_job_failures_total", 3.0) in samples

    def test_of_one_process_make_every_process_wait(self, database: Database) -> None:
        runs: list[int] = []

        async def broken(_turn: Turn) -> None:
            raise ZeroDivisionError("with a secret")

        async def main() -> None:
            first = Process(database, "first")
            job = Job(name="count", work=broken, interval_seconds=60, deadline_seconds=60)
            await first.run(job, until=lambda: first.lines)
            (line,) = first.lines
            assert line["event"] == "defect" and "secret" not in str(line) and "test_jobs.py" in str(line["detail"])
            second = Process(database, "second", START + 500_000)
            task = asyncio.create_task(second.runner.run([counted(runs)]))
            await settle()
            assert runs == [] and second.states.by_name["count"].failures == 1
            second.at = START + 1_000_000
            while not runs:
                await asyncio.sleep(0.01)
            second.stop.set()
            await task

        asyncio.run(main())
        assert runs == [START + 1_000_000]

    def test_to_end_in_time_cancel_the_run(self, database: Database) -> None:
        ends: list[str] = []

        async def hang(_turn: Turn) -> None:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise

        process = Process(database, "first")
        job = Job(name="count", work=hang, interval_seconds=60, deadline_seconds=0.05)
        asyncio.run(process.run(job, until=lambda: process.lines))
        assert ends == ["cancelled"]
        assert process.lines[0]["event"] == "job_failed" and "did not end within" in str(process.lines[0]["detail"])


class TestAStop:
    def test_ends_a_run_in_a_thread_and_releases_its_lease(self, database: Database) -> None:
        begun, ended = threading.Event(), threading.Event()

        def work(turn: Turn) -> None:
            begun.set()
            while not turn.is_over():
                time.sleep(0.001)
            ended.set()

        process = Process(database, "first")
        job = Job(name="count", work=in_thread(work), interval_seconds=60, deadline_seconds=60)
        asyncio.run(process.run(job, until=begun.is_set))
        assert ended.is_set() and process.lines == []
        lease = lease_of(database)
        assert lease is not None and lease.done_period_at is None and lease.until_at == START, "another process need not wait"


def test_a_lease_that_is_lost_ends_the_run(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LEASE_SECONDS", 0.3)
    over: list[bool] = []

    def steal(turn: Turn) -> None:
        with database.platform() as tx:
            assert stored.take_lease(tx, "count", "thief", period_at=START, now=START + 300_000_000, until_at=START + 600_000_000)
        while not turn.is_over():
            time.sleep(0.001)
        over.append(True)

    process = Process(database, "first")
    job = Job(name="count", work=in_thread(steal), interval_seconds=60, deadline_seconds=60)
    asyncio.run(process.run(job, until=lambda: process.lines))
    assert over == [True] and "lost its lease" in str(process.lines[0]["detail"])
    lease = lease_of(database)
    assert lease is not None and lease.holder == "thief"


class TestReadiness:
    def test_shows_the_state_of_every_job_on_both_listeners(self, control: Running) -> None:
        def jobs_of(client: httpx2.Client) -> dict[str, Any]:
            return {job["name"]: job for job in answered(client.get("/readyz"))["jobs"]}

        wait_until(lambda: all(job["last_success_at"] for job in jobs_of(control.operator()).values()))
        found = jobs_of(control.node())
        assert set(found) == {
            "free_memory",
            "idempotency_keys",
            "stored_responses",
            "content_logs",
            "contract_periods",
            "capacity_costs",
            "credit_redraws",
            "credit_topups",
            "publication_watch",
            "event_months",
            "connectors",
            "invoices",
            "waiting_records",
            "ended_sessions",
            "erasures",
            "leaked_key_mails",
            "limit_overrides",
            "event_searches",
            "webhooks",
            "webhook_mails",
            "telemetry_exports",
            "signing_keys",
            "issuer_keys",
            "scheduled_rotations",
        }
        assert all(job["failures"] == 0 for job in found.values())
        page = control.node().get("/metrics").text
        for name in ("last_success_timestamp_seconds", "failures_total", "duration_seconds"):
            assert f'tollway_control_job_{name}{{job="event_months"}}' in page


@pytest.fixture
def engine() -> Iterator[Any]:
    """An engine whose counters can be read, until a test makes it silent. `asked`: instants of readings."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked.append(time.time())
            server.speaks.wait(WAIT_SECONDS_MAX)
            page = b"vllm:prompt_tokens_total 1\nvllm:generation_tokens_total 1\n"
            self.send_response(200)
            self.send_header("content-length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        asked: list[float]
        speaks: threading.Event

    server = Server(("127.0.0.1", 0), Handler)
    server.asked, server.speaks = [], threading.Event()
    server.speaks.set()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.speaks.set()
    server.shutdown()
    server.server_close()


@pytest.mark.system
@pytest.mark.postgres
def test_of_two_processes_one_reads_engines_and_the_other_takes_over_from_a_killed_one(
    postgres_template: PostgresTemplate, engine: Any, tmp_path: Path
) -> None:
    """Two real control processes on one PostgreSQL read each period once; a kill delays the reading by the lease."""
    with postgres_template.copied(tmp_path) as url, ExitStack() as stack:
        told = {
            "database_url": postgres.application_environment(url)["TOLLWAY_DATABASE_URL"],
            "archive": str(tmp_path / "archive"),
            "pepper": "11" * 32,
            "vault_key": bytes(range(32)).hex(),
            "platform_key": mint(KeyType.PLATFORM),
            "node_id": NODE_ID,
            "node_key": mint(KeyType.NODE),
            "reconcile_seconds": 2,
            "lease_seconds": 3,
        }
        processes = [stack.enter_context(started(told)) for _ in range(2)]
        by_holder = {ready["control_id"]: (process, ready) for process, ready in processes}
        with operator(processes[0][1], told["platform_key"]) as client:
            answered(client.post("/v1/platform/models", json={"name": "m", "endpoints": ["chat/completions"]}))
            where = f"http://127.0.0.1:{engine.server_address[1]}"
            wanted = {"model": "m", "base_url": where, "engine": "vllm", "upstream_model": "m"}
            answered(client.post("/v1/platform/deployments", json=wanted))
        wait_until(lambda: len(engine.asked) >= 4)
        periods = [int(at) // 2 for at in engine.asked]
        assert sorted(set(periods)) == sorted(periods), "each period is read once"
        engine.speaks.clear()
        before = len(engine.asked)
        wait_until(lambda: len(engine.asked) > before)
        admin = sa.create_engine(url, poolclass=sa.NullPool)
        with admin.connect() as connection:
            holder = connection.execute(sa.text("SELECT holder FROM job_leases WHERE name = 'engine_readings'")).scalar_one()
        victim, _ = by_holder.pop(holder)
        victim.kill()
        victim.wait(WAIT_SECONDS_MAX)
        engine.speaks.set()
        killed = len(engine.asked)
        wait_until(lambda: len(engine.asked) > killed)
        ((survivor_id, (_, ready)),) = by_holder.items()

        def holder_is_survivor() -> bool:
            with admin.connect() as connection:
                row = connection.execute(sa.text("SELECT holder, done_period_at FROM job_leases WHERE name = 'engine_readings'")).one()
                return bool(row.holder == survivor_id and row.done_period_at is not None)

        wait_until(holder_is_survivor)
        admin.dispose()
        with httpx2.Client(base_url=ready["url"], timeout=WAIT_SECONDS_MAX, verify=NO_TLS) as client:
            names = {job["name"]: job["failures"] for job in json.loads(client.get("/readyz").text)["jobs"]}
        assert names["engine_readings"] == 0 and set(names) == {
            "free_memory",
            "idempotency_keys",
            "stored_responses",
            "content_logs",
            "contract_periods",
            "capacity_costs",
            "credit_redraws",
            "credit_topups",
            "publication_watch",
            "event_months",
            "connectors",
            "invoices",
            "waiting_records",
            "ended_sessions",
            "erasures",
            "leaked_key_mails",
            "limit_overrides",
            "event_searches",
            "webhooks",
            "webhook_mails",
            "telemetry_exports",
            "signing_keys",
            "issuer_keys",
            "scheduled_rotations",
            "engine_readings",
            "reconciliation",
        }
