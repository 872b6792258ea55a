"""Periodic jobs of the control plane: one runner, with a lease for each job that only one process may do at a time.

Theory of operation. Time is divided into the periods of a job, aligned to the clock: with an interval of a minute, on the full minute. A
leased job runs once in each period, in whichever control process takes its lease first (`storage.jobs`); the others see that the period is
done. The holder renews its lease while the job runs, so a process that is killed delays the job by LEASE_SECONDS at most, however
long the job may take. A process that was suspended may wake up without its lease: jobs are therefore written so that two of them at once
are safe, and stop when `Turn.is_over` says so. A job without a lease concerns the memory of each process and runs in all of them.

A job that fails is tried again after a pause that doubles; for a leased job the pause holds in every process. Each process keeps the state
of every job for its metrics and its readiness page. A job that fails does not end the process: requests do not depend on it.
"""

import asyncio
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tollway.control.tracing import ControlTracer
from tollway.domain.faults import Fault
from tollway.spans import SpanKind
from tollway.storage import jobs as storage
from tollway.storage.database import Database
from tollway.telemetry import new_family
from tollway.worker_threads import run_in_thread

LEASE_SECONDS = 30.0
"""Time for which a lease is taken or renewed: a job of a killed process is resumed after it."""

RENEWALS_PER_LEASE = 3
"""Renewals within LEASE_SECONDS, so that one that fails or is late does not lose the lease."""

RETRY_SECONDS_MIN = 1.0
"""Pause after the first failure; it doubles with each further one."""

RETRY_SECONDS_MAX = 60.0
"""Longest pause between attempts, and never longer than the job's interval."""

FAILURES_PER_LINE = 60
"""A job that keeps failing for the same reason is logged at its first failure and then once in this many: hourly at the longest pause."""

Log = Callable[[Mapping[str, object]], None]


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of a job. `at`: the instant at which it began, UTC microseconds. `is_over`: whether the run should end as soon as it can,
    because the process stops, the deadline has passed or the lease is lost; callable from any thread."""

    at: int
    is_over: Callable[[], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A piece of periodic work, which must be safe to repeat and to run twice at once.

    `interval_seconds`: length of its periods. `deadline_seconds`: for one run. `is_leased`: one process at a time runs it, and only once
    per period; otherwise every process does. `waits_for_period`: the first run waits for the start of the next period; otherwise it
    happens at once if the current period is not done."""

    name: str
    work: Callable[[Turn], Awaitable[None]]
    interval_seconds: float
    deadline_seconds: float
    is_leased: bool = True
    waits_for_period: bool = False


def in_thread(function: Callable[[Turn], None]) -> Callable[[Turn], Awaitable[None]]:
    """Make the work of a job from a function that blocks. It runs in a worker thread and asks `Turn.is_over` between its steps; when the
    job is cancelled the thread is waited for, so that it never runs twice in one process."""

    async def work(turn: Turn) -> None:
        await run_in_thread(function, turn)  # waits at most for a statement of the database, which has a deadline

    return work


@dataclass(slots=True)
class JobState:
    """The state of a job as one process knows it. `last_success_at`: by any process, UTC microseconds. `failures`: consecutive ones;
    `failures_total`: of this process since its start. `duration_seconds`: of the latest run here."""

    is_running: bool = False
    last_success_at: int | None = None
    failures: int = 0
    failures_total: int = 0
    duration_seconds: float | None = None
    last_detail: str | None = None


@dataclass(slots=True, eq=False)
class JobStates(Collector):
    """The state of every job of one process, by name: for metrics and the readiness page."""

    by_name: dict[str, JobState] = field(default_factory=dict)

    def collect(self) -> Iterator[Metric]:
        """Yield latest success, failures and latest duration of each job."""
        success = new_family(GaugeMetricFamily, "tollway_control_job_last_success_timestamp_seconds")
        failures = new_family(CounterMetricFamily, "tollway_control_job_failures")
        duration = new_family(GaugeMetricFamily, "tollway_control_job_duration_seconds")
        for name, state in self.by_name.items():
            failures.add_metric([name], state.failures_total)
            if state.last_success_at is not None:
                success.add_metric([name], state.last_success_at / 1e6)
            if state.duration_seconds is not None:
                duration.add_metric([name], state.duration_seconds)
        yield success
        yield failures
        yield duration


class _DeadlinePassed(Exception):
    """The job did not end within its deadline."""


class _LeaseLost(Exception):
    """The lease ran out while the job ran, because it could not be renewed."""


@dataclass(frozen=True, slots=True)
class JobRunner:
    """The runner of one process. `holder`: its name in leases, new for each start of a process. `now`: UTC microseconds.

    `stop`: set when the process is to stop; runs that have begun are then cancelled."""

    database: Database
    holder: str
    states: JobStates
    stop: asyncio.Event
    now: Callable[[], int]
    log: Log
    tracer: ControlTracer | None = None

    async def run(self, jobs: Sequence[Job]) -> None:
        """Run all jobs until `stop` is set. Failures of jobs are logged and retried; only a defect of the runner itself is raised."""
        async with asyncio.TaskGroup() as tasks:
            for job in jobs:
                self.states.by_name[job.name] = JobState()
                tasks.create_task(self._repeat(job))

    async def _repeat(self, job: Job) -> None:
        state = self.states.by_name[job.name]
        next_at = self._next_period(job) if job.waits_for_period else self.now()
        while not self.stop.is_set():
            pause_seconds = (next_at - self.now()) / 1e6
            if pause_seconds > job.interval_seconds:  # the clock was set back
                next_at = self._next_period(job)
            elif pause_seconds > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.stop.wait(), pause_seconds)
            else:
                next_at = await self._attempt(job, state)

    def _next_period(self, job: Job) -> int:
        interval_us = int(job.interval_seconds * 1_000_000)
        at = self.now()
        return at - at % interval_us + interval_us

    async def _attempt(self, job: Job, state: JobState) -> int:
        """Run the job if it is due and its lease is free. Returns the instant of the next attempt."""
        at, next_period_at = self.now(), self._next_period(job)
        period_at = next_period_at - int(job.interval_seconds * 1_000_000)
        try:
            if job.is_leased:
                free_at = await asyncio.to_thread(self._take_lease, job, state, period_at, at)
                if free_at is not None:
                    return min(free_at, next_period_at)
            if not await self._run_once(job, state, at):
                await self._release(job, state)
                return next_period_at
            if job.is_leased:
                await asyncio.to_thread(self._finish, job, period_at)
        except Exception as error:  # whatever a job raises must end neither the process nor the other jobs
            return await self._fail(job, state, error)
        if state.failures:
            self.log({"event": "job_recovered", "job": job.name, "failures": state.failures})
        state.failures, state.last_detail = 0, None
        state.last_success_at = self.now()
        return next_period_at

    async def _run_once(self, job: Job, state: JobState, at: int) -> bool:
        """Run the work to its end, renewing the lease; cancel it at the deadline, at a stop, or without a lease. Returns False if a stop
        cancelled it.

        Raises what the work raises, _DeadlinePassed or _LeaseLost."""
        over = threading.Event()
        loop = asyncio.get_running_loop()
        started = loop.time()
        deadline, lease_until = started + job.deadline_seconds, started + LEASE_SECONDS
        renewal_seconds = LEASE_SECONDS / RENEWALS_PER_LEASE if job.is_leased else job.deadline_seconds
        work = asyncio.ensure_future(self._work(job, Turn(at, over.is_set)))
        stopping = asyncio.ensure_future(self.stop.wait())
        state.is_running = True
        try:
            while True:
                wait_seconds = max(0.0, min(renewal_seconds, deadline - loop.time()))
                await asyncio.wait({work, stopping}, timeout=wait_seconds, return_when=asyncio.FIRST_COMPLETED)
                if work.done() or stopping.done():
                    break
                if loop.time() >= deadline:
                    raise _DeadlinePassed(f"did not end within {job.deadline_seconds:g} s")
                if job.is_leased:
                    lease_until = await self._renew(job, lease_until)
        finally:
            over.set()
            stopping.cancel()
            if not work.done():
                work.cancel()
            await asyncio.wait({work, stopping})
            state.is_running = False
            state.duration_seconds = loop.time() - started
        if work.cancelled():
            return False
        work.result()
        return True

    async def _work(self, job: Job, turn: Turn) -> None:
        """Do the work, with a trace of its own where traces are exported. Raises what it raises."""
        if self.tracer is None:
            await job.work(turn)
            return
        with self.tracer.operation(f"job {job.name}", SpanKind.INTERNAL) as operation:
            operation.attributes = {"tollway.job": job.name}
            operation.is_long = True
            await job.work(turn)

    async def _renew(self, job: Job, lease_until: float) -> float:
        """Renew the lease. Returns until when it holds, in seconds of the loop's clock. Raises _LeaseLost."""
        loop = asyncio.get_running_loop()
        renewed_until = loop.time() + LEASE_SECONDS
        try:
            is_ours = await asyncio.to_thread(self._renew_lease, job)
        except Fault:
            is_ours, renewed_until = loop.time() < lease_until, lease_until  # the database is away: the lease holds for its time
        if not is_ours:
            raise _LeaseLost("lost its lease to another process")
        return renewed_until

    async def _release(self, job: Job, state: JobState) -> None:
        """Release the lease of a run that a stop has cancelled, so that another process need not wait for it."""
        if job.is_leased:
            with suppress(Fault):  # the lease then runs out by itself
                await asyncio.to_thread(self._postpone, job, self.now(), state.failures)

    async def _fail(self, job: Job, state: JobState, error: Exception) -> int:
        state.failures += 1
        state.failures_total += 1
        pause_seconds = min(RETRY_SECONDS_MIN * 2 ** min(state.failures - 1, 16), RETRY_SECONDS_MAX, job.interval_seconds)
        retry_at = self.now() + int(pause_seconds * 1_000_000)
        detail = describe_failure(error)
        if detail != state.last_detail or state.failures % FAILURES_PER_LINE == 0:
            is_expected = isinstance(error, Fault | _DeadlinePassed | _LeaseLost)
            line = {"event": "job_failed" if is_expected else "defect", "job": job.name, "failures": state.failures, "detail": detail}
            self.log(line)
        state.last_detail = detail
        if job.is_leased:
            with suppress(Fault):  # the same database that has just failed, perhaps
                await asyncio.to_thread(self._postpone, job, retry_at, state.failures)
        return retry_at

    # ---- In worker threads ------------------------------------------------------------------------------------------------

    def _take_lease(self, job: Job, state: JobState, period_at: int, at: int) -> int | None:
        """Take the lease. Returns None if it is ours, or else the instant of the next attempt."""
        never = period_at + int(job.interval_seconds * 1_000_000)
        with self.database.platform(write=False) as tx:
            lease = storage.find_lease(tx, job.name)
        if lease is not None:
            state.failures = lease.failures
            state.last_success_at = lease.succeeded_at
            if lease.done_period_at is not None and lease.done_period_at >= period_at:
                return never
            if lease.until_at > at:
                return lease.until_at
        with self.database.platform() as tx:
            is_taken = storage.take_lease(tx, job.name, self.holder, period_at=period_at, now=at, until_at=at + _us(LEASE_SECONDS))
        return None if is_taken else at + _us(RETRY_SECONDS_MIN)

    def _renew_lease(self, job: Job) -> bool:
        at = self.now()
        with self.database.platform() as tx:
            return storage.renew_lease(tx, job.name, self.holder, now=at, until_at=at + _us(LEASE_SECONDS))

    def _finish(self, job: Job, period_at: int) -> None:
        with self.database.platform() as tx:
            storage.finish(tx, job.name, self.holder, period_at=period_at, now=self.now())

    def _postpone(self, job: Job, retry_at: int, failures: int) -> None:
        with self.database.platform() as tx:
            storage.postpone(tx, job.name, self.holder, retry_at=retry_at, failures=failures)


def _us(seconds: float) -> int:
    return int(seconds * 1_000_000)


def describe_failure(error: BaseException) -> str:
    """Describe a failure for operators. The text of an unexpected exception is left out, because it may quote data of a client."""
    if isinstance(error, Fault):
        return f"{error.kind.code}: {error.detail}" if error.detail else error.kind.code
    if isinstance(error, _DeadlinePassed | _LeaseLost):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)[-1:]
    places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
    return " ".join([type(error).__name__, *places])
