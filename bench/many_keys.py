"""Many active keys in one gateway: `python -m bench.many_keys --keys 1000000`.

A copy of a snapshot with so many keys is written to disk, as a gateway keeps it. A fresh process then starts from it by the follower's own
code, and measures: the time until the snapshot is in force, the memory of the process, the longest callback of its event loop (in
CPU time of its thread, which feels no neighbour), the time of looking up a key, that of a change of one key, and the longest callback of a
whole snapshot that replaces the one in force. Nothing is asked of control.
"""

import argparse
import asyncio
import gc
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.pauses import LoopTimer
from tollway.domain.keys import KeyType
from tollway.domain.snapshot import Change, Entry, KeyEntry, OrganizationEntry, ProjectEntry
from tollway.gateway.directory import Directory
from tollway.link.snapshot_copies import write_copy
from tollway.link.snapshot_follower import Follower
from tollway.serve import garbage

KEYS_PER_PROJECT = 1_000
LOOKUPS = 100_000
CHANGES = 200


def find_digest(number: int) -> bytes:
    """Return the digest of the key with this number."""
    return hashlib.sha256(number.to_bytes(8, "big")).digest()


def make_entries(keys: int) -> Iterator[Entry]:
    """Yield a snapshot with so many keys, in organizations of one project each."""
    for number in range(0, keys, KEYS_PER_PROJECT):
        place = f"{number:032x}"
        yield OrganizationEntry(id=f"org_{place}", currency="EUR")
        yield ProjectEntry(id=f"proj_{place}", organization_id=f"org_{place}")
    for number in range(keys):
        yield make_key(number)


def make_key(number: int) -> KeyEntry:
    """Return the entry of the key with this number."""
    project = f"proj_{number // KEYS_PER_PROJECT * KEYS_PER_PROJECT:032x}"
    return KeyEntry(id=f"key_{number:032x}", digest=find_digest(number), type=KeyType.LIVE, project_id=project)


def find_memory() -> int:
    """Return the memory of this process in bytes (RSS)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def start(directory: Path, keys: int) -> dict[str, float]:
    """Start as a gateway does, and return the figures."""
    timer, target = LoopTimer(), Directory()
    garbage.settle()
    before = find_memory()
    began, began_cpu = time.monotonic(), time.process_time()
    follower = Follower(
        target,
        directory,
        control_link_url="http://127.0.0.1:9",
        node_key="tw_node_x",
        node_id="node_x",
        alarm=lambda event, fields: print(event, fields, file=sys.stderr),
        clock=lambda: time.time_ns() // 1000,
    )
    timer.longest_seconds = 0.0
    assert await follower.start()
    started, started_cpu, start_pause = time.monotonic() - began, time.process_time() - began_cpu, timer.longest_seconds
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    gc.collect()
    after = find_memory()
    dice, now = random.Random(1), time.time_ns() // 1000
    digests = [find_digest(dice.randrange(keys)) for _ in range(LOOKUPS)]
    began = time.process_time()
    for digest in digests:
        assert target.find_caller(digest, now) is not None
    looked_up = (time.process_time() - began) / LOOKUPS
    await asyncio.sleep(0)  # the callback of the look-ups is over
    timer.longest_seconds = 0.0
    began = time.process_time()
    for number in range(CHANGES):
        await asyncio.sleep(0)
        target.apply(Change(version=target.version + 1, kind="key", id=f"key_{number:032x}", entry=None))
        while target.release_part():
            await asyncio.sleep(0)
    changed = (time.process_time() - began) / CHANGES
    change_pause = timer.longest_seconds
    assert target.find_caller(find_digest(0), now) is None
    timer.longest_seconds = 0.0
    assert await follower.start()  # again: the one in force is replaced
    await follower.close()
    return {
        "start_seconds": round(started, 2),
        "start_cpu_seconds": round(started_cpu, 2),
        "longest_callback_at_start_ms": round(start_pause * 1000, 2),
        "memory_before_mb": round(before / 1e6),
        "memory_mb": round(after / 1e6),
        "memory_peak_mb": round(peak / 1e6),
        "first_lookup_us": round(looked_up * 1e6, 2),
        "change_us": round(changed * 1e6, 1),
        "longest_callback_at_changes_ms": round(change_pause * 1000, 2),
        "longest_callback_at_a_replacement_ms": round(timer.longest_seconds * 1000, 2),
    }


def main() -> None:
    """Write the copy, start from it in a process of its own, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.many_keys", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keys", type=int, default=1_000_000, help="active keys (default 1,000,000)")
    parser.add_argument("--copy", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.copy is not None:
        print(json.dumps(asyncio.run(start(arguments.copy, arguments.keys))))
        return
    with tempfile.TemporaryDirectory(prefix="tollway-keys-") as name:
        write_copy(Path(name), 1, make_entries(arguments.keys))
        size = sum(path.stat().st_size for path in Path(name).iterdir())
        again = [sys.executable, "-m", "bench.many_keys", "--keys", str(arguments.keys), "--copy", name]
        done = subprocess.run(again, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
    print(f"{arguments.keys:,} keys, copy of {size / 1e6:,.0f} MB, load of the machine {os.getloadavg()[0]:.1f}")
    for field, value in json.loads(done.stdout).items():
        print(f"  {field.replace('_', ' ')}: {value:,}")


if __name__ == "__main__":
    main()
