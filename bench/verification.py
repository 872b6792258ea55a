"""The cost of `tollway verify`: `python -m bench.verification DIRECTORY [EVENTS]`.

The records of `bench.collector` are ingested into a SQLite database below DIRECTORY, unless it is there already, and verified
ROUNDS times. The least CPU time counts, because other work on the machine can only add to it. To compare two versions, let them take turns
with the same directory and PYTHONPATH set to the sources of each.
"""

import sys
import time
from pathlib import Path

from bench import collector
from tollway.control.verification.verify import verify
from tollway.serve import garbage
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive

ROUNDS = 5
EVENTS = 18_000


def main(directory: Path, events: int = EVENTS) -> None:
    """Print the CPU time that verification takes for an event. Raises AssertionError if it finds a difference."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"verification-{events}.db"
    is_new = not path.exists()
    database, archive = Database.open(f"sqlite+pysqlite:///{path}"), Archive(directory / f"archive-{events}")
    if is_new:
        database.migrate()
        collector.fill(database)
        engine = collector.Engine("SQLite", database, archive)
        for batch in collector.make_batches(events):
            engine.take(*batch)
    garbage.settle()  # as the command does
    least, verified = float("inf"), 0
    for _ in range(ROUNDS):
        began = time.process_time()
        report = verify(database, archive)
        least = min(least, time.process_time() - began)
        assert report.is_right, report.differences
        verified = report.events
    database.close()
    print(f"{verified} events: {least:.2f} s of CPU, {least / verified * 1e6:.0f} us for each")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
