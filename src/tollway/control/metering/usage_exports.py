"""Hours of closed usage as Parquet, for warehouses: derived from the database, never the source of truth.

An hour has the events that were admitted in it. It is written once it is over and no record of its time can be missing (as a billing
period is closed: `gateways.epochs`). An event that comes later, because its request ran long or its record waited, changes the count of
its hour: the hour is then written again as a whole, within the latest CHECKED_HOURS. Events never change, so the count tells.
"""

from collections.abc import Callable, Collection, Iterator, Mapping

from tollway.control.gateways import epochs
from tollway.control.jobs import Job, Turn, in_thread
from tollway.control.metering.period_exports import write_closed
from tollway.storage import usage_hours
from tollway.storage.database import Database
from tollway.storage.parquet_files import UsageFiles
from tollway.storage.usage_hours import HOUR_US

CHECKED_HOURS = 48
"""Hours before now whose counts are compared at each run."""

SECONDS = 300.0
"""Interval of the job."""

WRITTEN_MAX = 200
"""Hours that one run writes: what an outage left is caught up by the runs after it."""


def make_job(database: Database, files: UsageFiles, log: Callable[[Mapping[str, object]], None], deadline_seconds: float) -> Job:
    """Return the job that writes hours of usage once they are closed, as `write_due` does."""

    def write(turn: Turn) -> None:
        for line in write_due(database, files, turn.at, turn.is_over):
            log(line)
        for line in write_closed(database, files, turn.at, turn.is_over):
            log(line)

    return Job(name="usage_files", work=in_thread(write), interval_seconds=SECONDS, deadline_seconds=deadline_seconds)


def write_due(database: Database, files: UsageFiles, now: int, is_over: Callable[[], bool]) -> Iterator[Mapping[str, object]]:
    """Write the hours that are closed and not written as they are. The first run begins with the hour before now, which later runs know
    until it is written. Yield a line of the log for each."""
    current = now - now % HOUR_US
    written = set(files.list_hours())
    checked_from = current - CHECKED_HOURS * HOUR_US
    count = 0
    for hour_at in range(_find_start(files, written, current - HOUR_US), current, HOUR_US):
        if hour_at in written and hour_at < checked_from:
            continue
        if is_over() or count >= WRITTEN_MAX:
            return
        line = _write_hour(database, files, hour_at, now)
        if line is None:
            continue
        count += 1
        yield line


def _find_start(files: UsageFiles, written: Collection[int], latest: int) -> int:
    start_at = files.find_start()
    if start_at is None and not written:
        files.put_start(latest)
        return latest
    if start_at is not None and start_at in written:
        files.remove_start()  # or hours that somebody removes because they are old would be written again
    return min(written, default=latest) if start_at is None else min([start_at, *written])


def _write_hour(database: Database, files: UsageFiles, hour_at: int, now: int) -> Mapping[str, object] | None:
    """Write an hour if it is closed and its file has not all of it."""
    before = files.find_manifest(hour_at)
    with database.platform(write=False) as tx:
        if before is not None and before.rows == usage_hours.count_events(tx, hour_at):
            files.remove_others(hour_at, before)
            return None
        if before is None and epochs.list_blockers(tx, hour_at, hour_at + HOUR_US):
            return None
        manifest = files.write(hour_at, usage_hours.iterate_events(tx, hour_at), now)
    return {"event": "usage_hour_written", "hour": manifest.hour, "events": manifest.rows, "is_replaced": before is not None}
