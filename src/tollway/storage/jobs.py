"""Leases of periodic jobs, shared by all control processes of one database.

A job runs once in each of its periods. Whoever runs it holds its lease and renews it; a process that dies leaves the lease to run out, and
then another process takes it. Each function is one statement that changes at most one row, so that two processes cannot both succeed.
"""

from dataclasses import dataclass

import sqlalchemy as sa

from tollway.storage.database import PlatformTx
from tollway.storage.schema_jobs import job_leases

LEASE_US_MAX = 300_000_000
"""No process takes a lease, or postpones a job, for longer. A later end was written by a clock that was ahead and is ignored."""


@dataclass(frozen=True, slots=True)
class JobLease:
    """The row of a job. Instants are UTC microseconds. `until_at`: the lease is taken until then. `done_period_at`: the start of the latest
    period in which the job succeeded. `failures`: consecutive ones since the latest success."""

    holder: str
    until_at: int
    done_period_at: int | None
    succeeded_at: int | None
    failures: int


def find_lease(tx: PlatformTx, name: str) -> JobLease | None:
    """Return the row of the job `name`, or None if it never ran."""
    row = tx.connection.execute(sa.select(job_leases).where(job_leases.c.name == name)).one_or_none()
    return None if row is None else JobLease(row.holder, row.until_at, row.done_period_at, row.succeeded_at, row.failures)


def take_lease(tx: PlatformTx, name: str, holder: str, *, period_at: int, now: int, until_at: int) -> bool:
    """Take the lease of the job `name` until `until_at`, for the period that began at `period_at`. Returns False if another one holds it
    or the job is done for this period. What a process with a clock ahead of `now` has written does not count."""
    tx.connection.execute(tx.insert(job_leases).values(name=name, holder=holder, until_at=now, failures=0).on_conflict_do_nothing())
    lease = job_leases.c
    is_due = sa.or_(lease.done_period_at.is_(None), lease.done_period_at < period_at, lease.done_period_at > now)
    is_free = sa.or_(lease.until_at <= now, lease.until_at > now + LEASE_US_MAX)
    free = job_leases.update().where(lease.name == name, is_free, is_due)
    return tx.connection.execute(free.values(holder=holder, until_at=until_at)).rowcount == 1


def renew_lease(tx: PlatformTx, name: str, holder: str, *, now: int, until_at: int) -> bool:
    """Hold the lease longer. Returns False if it ran out, or another process has it."""
    lease = job_leases.c
    own = job_leases.update().where(lease.name == name, lease.holder == holder, lease.until_at > now)
    return tx.connection.execute(own.values(until_at=until_at)).rowcount == 1


def finish(tx: PlatformTx, name: str, holder: str, *, period_at: int, now: int) -> None:
    """Record that `holder` ran the job for the period, and release its lease. Does nothing if another process took the lease over."""
    lease = job_leases.c
    own = job_leases.update().where(lease.name == name, lease.holder == holder)
    tx.connection.execute(own.values(until_at=now, done_period_at=period_at, succeeded_at=now, failures=0))


def postpone(tx: PlatformTx, name: str, holder: str, *, retry_at: int, failures: int) -> None:
    """Record consecutive failures of the job; no process takes its lease before `retry_at`. Does nothing if another one took it over."""
    lease = job_leases.c
    own = job_leases.update().where(lease.name == name, lease.holder == holder)
    tx.connection.execute(own.values(until_at=retry_at, failures=failures))
