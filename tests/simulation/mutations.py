"""Bugs planted by hand, to see whether they are noticed: `make mutations`.

A check that has never failed proves nothing. Each mutation is one plausible mistake: the exact text of a source file, what
stands there instead, and what that breaks. The source is copied, changed in that one place, and the check is run on the copy;
a mutation that survives is a hole in the checks. The text must occur exactly once: a change of the source that moves it has to
bring its mutation along. Each check is a fork of one process that has imported everything but our own modules: imports took longer than
most checks.
"""

import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[2]

SEEDS_MAX = 500
"""Histories that a mutation may survive before it counts as a survivor."""

SECONDS_MAX = 600

OTHER_PACKAGE = 3
"""Exit code of a check that ran over another package than the mutated copy; an exception would exit with 1, as one that noticed does."""

SERVER = multiprocessing.get_context("forkserver")

PRELOADED = (
    "alembic.command",
    "cryptography.x509",
    "fastapi",
    "httpx2",
    "hypothesis",
    "prometheus_client",
    "pytest",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.dialects.sqlite",
    "uvicorn",
    "uvloop",
    "wsproto",
)
"""Packages that the checks import beside our own modules. A package that is missing here costs time and nothing else."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """`check` names tests for pytest; without it, histories are simulated until one fails, `seed` before all others: it is one that
    noticed it when the mutation was written, which saves time and nothing else."""

    name: str
    file: str
    old: str
    new: str
    breaks: str
    check: tuple[str, ...] = ()
    seed: int = 0


MUTATIONS = (
    # ---- Spool
    Mutation(
        "answer before the sync",
        "link/spool.py",
        "        self._waiting.append(done)\n        self._append(final)\n",
        "        self._append(final)\n        done(None)\n",
        "success is shown before FINAL is durable",
    ),
    Mutation(
        "sync only the newest segment",
        "link/spool.py",
        "            for fd in commit.fds:\n                self._disk.fdatasync(fd)\n",
        "            self._disk.fdatasync(commit.fds[-1])\n",
        "a FINAL at the end of a segment is reported durable with the beginning of the next",
        seed=928,
    ),
    Mutation(
        "take a failed sync for one",
        "link/spool.py",
        "        if error is not None or self._has_failed:\n",
        "        if self._has_failed:\n",
        "dirty pages that the kernel dropped are reported durable",
        seed=172,
    ),
    Mutation(
        "leave ADMIT in the buffer",
        "link/spool.py",
        "        seq = self._append(admit)\n        self._flush()\n",
        "        seq = self._append(admit)\n",
        "an engine hears of a request that a kill -9 forgets",
    ),
    Mutation(
        "reserve no space for what is owed",
        "link/spool.py",
        "        return self._space >= (self._open + 1) * OWED_BYTES + long_bytes * OWED_PER_LONG_BYTE + SLACK_BYTES\n",
        "        return self._space >= SLACK_BYTES\n",
        "on a full disk FINALs of admitted requests have no place",
        check=("tests/link/test_spool.py", "-k", "every_final_owed"),
    ),
    Mutation(
        "free the slot with FINAL in the buffer",
        "link/spool.py",
        "        self._freed.append(slot)\n",
        "        self._freed.append(slot)\n        self.progress[slot * SLOT_WORDS] = 0\n",
        "a kill before FINAL is written finds no counts",
        seed=343,
    ),
    Mutation(
        "hand on a slot with its counts",
        "link/spool.py",
        "        self._map_memory[at : at + _SLOT_BYTES] = _ZERO_SLOT\n",
        "",
        "one request is billed what another one used",
        seed=26,
    ),
    # ---- Recovery
    Mutation(
        "leave the torn tail",
        "link/recovery.py",
        "        if end.data_end > end.offset:\n",
        "        if end.data_end > end.offset + (1 << 30):\n",
        "what is appended is followed by bytes of another history",
        check=("tests/link/test_recovery.py", "-k", "Torn or SameBytes"),
    ),
    Mutation(
        "forget who was open when the segment began",
        "link/recovery.py",
        "_Requests({request.admit.request_id: request for request in start.open}, latest_at=start.at)",
        "_Requests({}, latest_at=start.at)",
        "requests admitted segments ago never end",
        seed=1,
    ),
    Mutation(
        "close without a sync",
        "link/recovery.py",
        "        appender.sync()\n        finish(",
        "        finish(",
        "an epoch is closed on disk whose records are in the page cache only",
        check=("tests/simulation/test_power.py",),
    ),
    Mutation(
        "trust the segment before the newest",
        "link/recovery.py",
        "    return read if read and read[1].seq < following.first_seq else None\n",
        "    return None\n",
        "recovery goes on behind a gap that a power cut left",
        check=("tests/simulation/test_power.py",),
    ),
    Mutation(
        "sync only the segment appended to",
        "link/recovery.py",
        "        elif number - SEGMENTS_IN_DOUBT < other < number:\n",
        "        elif other == -1:\n",
        "an epoch is closed while the end of an older segment is in the page cache only",
        check=("tests/simulation/test_power.py",),
    ),
    Mutation(
        "remove the progress table first",
        "link/recovery.py",
        "            slots = _read_slots(epoch)\n",
        '            slots = _read_slots(epoch)\n            epoch.disk.unlink(epoch.directory / "progress.map")\n',
        "a recovery killed in the middle bills less than was delivered",
        check=("tests/link/test_recovery.py", "-k", "SameBytes"),
    ),
    Mutation(
        "merge counts class by class",
        "link/recovery.py",
        "    return OpenRequest(request.seq, used, request.admit, retries)\n",
        "    used = Quantities.from_values(map(max, used.values(), request.used.values()))\n"
        "    return OpenRequest(request.seq, used, request.admit, retries)\n",
        "tokens that moved to another class are billed in both",
        check=("tests/link/test_recovery.py", "-k", "moved_to_another_class"),
    ),
    Mutation(
        "count more of the engine that was left",
        "link/recovery.py",
        "    if (request.retries, _total(request.used)) > (retries, _total(used)):\n",
        "    if _total(request.used) > _total(used):\n",
        "what an engine reported that was left for another one is billed, because it is more",
        check=("tests/link/test_recovery.py", "-k", "left"),
    ),
    Mutation(
        "end at the time of recovery",
        "link/recovery.py",
        "                    ended_at=requests.latest_at,\n",
        "                    ended_at=__import__('time').time_ns() // 1000,\n",
        "recovering again writes other bytes",
        check=("tests/link/test_recovery.py", "-k", "SameBytes"),
    ),
    Mutation(
        "close twice",
        "link/recovery.py",
        "        if not requests.is_closed:\n",
        "        if True:\n",
        "a recovery interrupted after CLOSE writes a second one",
        seed=1,
    ),
    # ---- Records on disk
    Mutation(
        "take every hole for damage",
        "wire/segments.py",
        "            return Tail.TORN if has_lost_sector(data, offset, following) else Tail.DAMAGED\n",
        "            return Tail.DAMAGED\n",
        "a power cut needs an operator",
        seed=18,
    ),
    Mutation(
        "take every wrong end for a torn one",
        "wire/segments.py",
        "        return Tail.TORN if end > written or has_lost_sector(data, offset, end) else Tail.DAMAGED\n",
        "        return Tail.TORN\n",
        "a flipped bit silently cuts a record that was reported durable",
        check=("tests/link/test_recovery.py", "-k", "Torn"),
    ),
    Mutation(
        "check no chain",
        "wire/segments.py",
        "            if seq != self.next_seq or chain != blake2b(self.chain + place + payload, digest_size=CHAIN_BYTES).digest():\n",
        "            if seq != self.next_seq:\n",
        "records of another history are ingested",
        ("tests/control/metering/test_collect.py", "-k", "sqlite and Refused"),
    ),
    # ---- Shipper
    Mutation(
        "drop what control refused with 503",
        "link/shipper.py",
        "        if answer.status_code not in (200, 409):\n"
        "            raise _ControlAway(describe_refusal(answer))\n"
        "        self.metrics.batches",
        "        if answer.status_code not in (200, 409):\n"
        "            cursor.position = position\n"
        "            return\n"
        "        self.metrics.batches",
        "a batch is lost whenever control is busy",
        seed=33,
    ),
    Mutation(
        "believe that a batch arrived",
        "link/shipper.py",
        "        if next_seq == position.seq:\n",
        "        if next_seq <= position.seq:\n",
        "a gap is never filled",
        check=("tests/link/test_shipper.py",),
    ),
    Mutation(
        "remove what control does not have",
        "link/shipper.py",
        "        return _read_shipped(epoch) >= end_seq or (cursor is not None",
        "        return True or (cursor is not None",
        "a full disk loses usage",
        check=("tests/link/test_shipper.py",),
    ),
    # ---- Collector
    Mutation(
        "take a known batch for a new one",
        "control/metering/rating.py",
        "            if other is not None:\n                if other != hashed:\n",
        "            if other is not None and other != hashed:\n                if other != hashed:\n",
        "an event that comes again in another epoch is counted twice",
        ("tests/control/metering/test_collect.py", "-k", "sqlite"),
    ),
    Mutation(
        "skip one record too many",
        "control/metering/collect.py",
        "    while seq < watermark.next_seq and offset < len(body):\n",
        "    while seq <= watermark.next_seq and offset < len(body):\n",
        "the first new record of an overlapping batch is lost",
        check=("tests/control/metering/test_collect.py", "-k", "sqlite and overlap"),
    ),
    Mutation(
        "archive at the wrong place",
        "control/metering/collect.py",
        "            archive_bytes=watermark.archive_bytes + len(body) - start,\n",
        "            archive_bytes=watermark.archive_bytes + len(body),\n",
        "the archive does not prove the books",
        check=("tests/control/metering/test_collect.py", "-k", "sqlite and overlap"),
    ),
    Mutation(
        "believe every clock",
        "control/metering/collect.py",
        "    reject_impossible_instants(batch, now)\n",
        "",
        "what a gateway served is billed in another month if its clock is wrong",
        seed=41,
    ),
    # ---- Rating
    Mutation(
        "bill cached input as input too",
        "domain/billing_classes.py",
        "            self.input * unit_prices.input,\n",
        "            (self.input + self.cached_input) * unit_prices.input,\n",
        "customers pay twice for what the cache saved",
        check=("tests/control/metering/test_collect.py", "-k", "sqlite and cost_is_exact"),
    ),
    Mutation(
        "bill what failed before its first token",
        "domain/usage.py",
        "(outcome in policy.bills_after_first_token and delivered)",
        "(outcome in policy.bills_after_first_token)",
        "an error of the platform costs the customer the prompt",
        check=("tests/control/metering/test_collect.py", "-k", "sqlite and costs_nothing"),
    ),
    Mutation(
        "forget the carry of a rollup",
        "storage/rollups.py",
        '        yield f"{name}_pico", f"{pico} % {PICO}"\n',
        '        yield f"{name}_pico", f"excluded.{name}_pico"\n',
        "the usage API shows less than the ledger",
        check=("tests/control/metering/test_collect.py", "-k", "sqlite and beyond_64_bits"),
    ),
    # ---- Meter
    Mutation(
        "forget the last chunks",
        "gateway/meter.py",
        "        self._output = output\n        self._progress[self._output_word] = output\n",
        "        self._output = output\n",
        "a crash bills less than was delivered",
        seed=19,
    ),
    # ---- Budgets
    Mutation(
        "relay tokens that are not reserved",
        "gateway/budgets.py",
        "        if covered < tokens:\n            return False\n",
        "        if covered < tokens:\n            return True\n",
        "streams overspend a hard budget",
        check=("tests/gateway/test_budgets.py", "-k", "without_more_money or before_they_are_relayed"),
    ),
    Mutation(
        "grant what was spent again",
        "control/money/budgets.py",
        "    free_pico = limit.pico - spent_pico - leased_pico",
        "    free_pico = limit.pico - leased_pico",
        "leases exceed what is left of a budget",
        seed=447,
    ),
    Mutation(
        "serve requests for leases that come late",
        "control/money/budgets.py",
        "    elif run.sequence <= own.sequence:\n        return None\n",
        "    elif run.sequence < 0:\n        return None\n",
        "what a gateway holds is granted to others, after a repeated message",
        check=("tests/control/money/test_budgets.py", "-k", "sqlite and repeated_and_overtaken"),
    ),
    # ---- Limits
    Mutation(
        "hold what was refused",
        "gateway/memory_counters.py",
        "                _unhold(rates, counter, units)\n                return hold\n",
        "                return hold\n",
        "a request that one level refuses stays held at the levels before it",
        seed=35,
    ),
    Mutation(
        "admit beside what is held",
        "gateway/memory_counters.py",
        "            left = counter.burst - held * cost\n",
        "            left = counter.burst - units[counter.quantity] * cost\n",
        "requests under way use more tokens together than their limit has",
        seed=21,
    ),
    Mutation(
        "charge no tokens at the end",
        "gateway/limit.py",
        "        self._hold.settle(_find_used(self), self._clock())\n",
        "        self._hold.settle(ONE_REQUEST, self._clock())\n",
        "tokens are free once their request has ended",
        seed=70,
    ),
    Mutation(
        "keep ended requests for the store",
        "gateway/shared_counters.py",
        "        self._live.pop(hold, None)\n        self._young.pop(hold, None)\n",
        "        self._young.pop(hold, None)\n",
        "a store that comes back is told of requests that have ended",
        seed=31,
    ),
    Mutation(
        "forget an admission that comes too late",
        "gateway/shared_counters.py",
        "        elif answer is not None and answer.is_admitted:\n            self.release()\n",
        "        elif answer is not None and answer.is_admitted:\n            pass\n",
        "the store holds a request for a gateway that has decided without it",
        seed=406,
    ),
    Mutation(
        "leave the previous owner's holds",
        "gateway/shared_counters.py",
        "            store.settle(bound.prepared, self._owner, moves, previous)\n",
        "            store.settle(bound.prepared, self._owner, moves)\n",
        "requests count twice in a store that has come back",
        seed=31,
    ),
    # ---- Credit
    Mutation(
        "forget what was drawn before",
        "control/money/credits.py",
        "            by_period[period_at] = by_period.get(period_at, 0) + pico\n",
        "            by_period[period_at] = pico\n",
        "credit that a batch has burned is usable again after the next",
        seed=25,
    ),
    Mutation(
        "lease credit before it begins",
        "domain/credits.py",
        "        elif at < grant.ends_at:\n            until_at = min(until_at, grant.ends_at)\n            if grant.is_scoped:\n",
        "        if at < grant.ends_at:\n            until_at = min(until_at, grant.ends_at)\n            if grant.is_scoped:\n",
        "requests are let in by a grant that can pay none of them",
        seed=40,
    ),
    Mutation(
        "lease credit twice",
        "control/money/budgets.py",
        "        usable = find_leasable(self.credit.grants, self.credit.left, self.leased, budget.place, at)\n",
        "        usable = find_leasable(self.credit.grants, self.credit.left, {}, budget.place, at)\n",
        "what a gateway has leased is leased to the next one as well",
        seed=40,
    ),
)


class NotApplicable(Exception):
    """The text of a mutation is not there, or not only once."""


def apply(mutation: Mutation, source: Path) -> None:
    """Plant it in the copy at `source`."""
    path = source / "tollway" / mutation.file
    text = path.read_text()
    if (count := text.count(mutation.old)) != 1:
        raise NotApplicable(f"{mutation.name}: its text occurs {count} times in {mutation.file}; bring it along")
    path.unlink()  # a link to the original, which must stay as it is
    path.write_text(text.replace(mutation.old, mutation.new))


@dataclass(frozen=True, slots=True)
class Result:
    """Return whether the check noticed, and the last that it said."""

    is_noticed: bool
    said: str


def run(mutation: Mutation) -> Result:
    """Run the check on a mutated copy. Raises NotApplicable."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="tollway-mutation-", dir=memory if memory.is_dir() else None) as name:
        source, output = Path(name), Path(name) / "output"
        # Links, bytecode included: only the mutated module is another one, and is compiled again.
        shutil.copytree(ROOT / "src" / "tollway", source / "tollway", copy_function=os.symlink)
        apply(mutation, source)
        output.touch()
        SERVER.set_forkserver_preload(list(PRELOADED))
        process = SERVER.Process(target=check, args=(mutation, source, output))
        process.start()
        process.join(SECONDS_MAX)
        if process.is_alive():
            process.kill()
            process.join()
        # 1 is what pytest and the simulation say of a failure; anything else is a mistake of this file.
        return Result(process.exitcode == 1, f"exit {process.exitcode}\n{output.read_text(errors='replace')[-2000:]}")


def check(mutation: Mutation, source: Path, output: Path) -> None:
    """Run the check of a mutation over the package at `source`, in a process of its own that has not imported it yet. It says what it says
    in the file `output`, and exits with 1 if it fails."""
    with output.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = f"{source}{os.pathsep}{ROOT}"  # for processes that the check starts
    sys.path[:0] = [str(source), str(ROOT)]
    if mutation.check:
        import pytest

        # Some of the packages that are imported have plugins, whose asserts pytest would like to rewrite before.
        options = ["-q", "-x", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        failed = int(pytest.main([*options, "-o", f"pythonpath={source} {ROOT}", *mutation.check]))
    else:
        from tests.simulation.run import kept_seeds, simulate

        failed = int(bool(simulate(chain([mutation.seed], kept_seeds(), range(SEEDS_MAX)), failures_max=1)["failures"]))
    if not is_of_copy(sys.modules["tollway"].__file__, source):
        print("the check did not run over the mutated copy", flush=True)
        sys.exit(OTHER_PACKAGE)
    sys.exit(failed)


def is_of_copy(file: str | None, source: Path) -> bool:
    """Return whether a module is one of the copy at `source`."""
    return file is not None and Path(file).is_relative_to(source)


def main(names: Sequence[str]) -> int:
    """Plant all mutations, or those whose names contain one of the words given; the number that survived."""
    survivors = 0
    for mutation in MUTATIONS:
        if names and not any(word in mutation.name for word in names):
            continue
        began = time.perf_counter()
        result = run(mutation)
        survivors += not result.is_noticed
        seed = re.search(r"seed (\d+): (.*)", result.said)
        by = f"  [{seed[1]}: {seed[2][:60]}]" if seed and result.is_noticed else ""
        print(f"{'noticed ' if result.is_noticed else 'SURVIVED'} {time.perf_counter() - began:5.1f} s  {mutation.name}{by}", flush=True)
        if not result.is_noticed:
            print(result.said, file=sys.stderr)
    return survivors


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
