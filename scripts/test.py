"""Run the tests as CI does: `python scripts/test.py [pytest arguments]`.

Two passes, on three workers each: first the tests of one process, then those marked `system`, which start, kill and restart
real processes. A private PostgreSQL is there for both; without one the tests
marked `postgres` are skipped, and the closing lines say so. Without arguments a third pass follows: the hot modules are compiled, and
COMPILED_TESTS run on them (`make test-native` runs all of gateway and wire). The exit code is pytest's.
"""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from xml.etree import ElementTree

import postgres

NO_TESTS_COLLECTED = 5
"""Exit code of pytest for a pass without tests: an error only if both passes have none."""

PASSES = {
    # A worker without tests takes some of another's: the slowest files stand together, and one worker would be left with all of them. A
    # third of the time is spent waiting, for the database and for deadlines, so that three workers use two cores.
    "everything but system tests": ["-n", "3", "--dist", "worksteal", "-m", "not system and not engines and not container"],
    # The tests of a file share a running platform, so they stay with one worker. A worker waits for two fifths of its time, so that three
    # of them use two cores. Files begin in the order of tests/system/conftest.py; xdist would put those with few tests last.
    "system tests": ["-n", "3", "--dist", "loadfile", "--no-loadscope-reorder", "-m", "system and not engines"],
}

POSTGRES_SETTINGS = ("fsync=off",)
"""Settings of the PostgreSQL that tests share. Each test drops its database, and a drop syncs every file of all others: with two workers
that took longer than most tests. Only a crash of the machine shows the difference; servers that tests kill have the defaults."""

COMPILED_TESTS = [
    "tests/wire/test_event_template.py",
    "tests/wire/test_progress_slots.py",
    "tests/wire/test_requests.py",
    "tests/wire/test_segments.py",
    "tests/gateway/test_driver.py",
    "tests/gateway/test_isolation.py",
    "tests/gateway/test_limit_answers.py",
    "tests/gateway/test_plain.py",
    "tests/gateway/test_relay.py",
    "tests/gateway/test_streams.py",
]
"""Tests that run every compiled module: whole requests of each kind, and what mypyc has got wrong before (waits, exceptions, formats)."""


def main(arguments: list[str]) -> int:
    """Run the passes with `arguments` added; return the first failing exit code, or 0."""
    counts: Counter[str] = Counter()
    exits: list[int] = []
    missing = postgres.install_missing()
    reason = None
    with ExitStack() as services:
        environment = dict(os.environ)
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # hundreds of processes would compile every module again
        reports = Path(services.enter_context(tempfile.TemporaryDirectory(prefix="tollway-reports-")))
        try:
            environment["TOLLWAY_TEST_POSTGRES"] = services.enter_context(postgres.running(POSTGRES_SETTINGS))
        except RuntimeError as error:
            environment.pop("TOLLWAY_TEST_POSTGRES", None)
            reason = str(error)
        for number, (name, options) in enumerate(PASSES.items()):
            print(f"==> {name}", flush=True)
            report = reports / f"{number}.xml"
            command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *options, *arguments]
            exits.append(subprocess.run(command, env=environment, stdin=subprocess.DEVNULL).returncode)
            if report.exists():
                counts.update(read_counts(report))
        lacks_compiler = [package for package in missing if package in postgres.COMPILER_PACKAGES]
        if not arguments and not lacks_compiler:
            report = reports / "compiled.xml"
            exits.append(check_compiled_form(reports / "compiled", report, environment))
            if report.exists():
                counts.update(read_counts(report))
    if lacks_compiler and not arguments:
        print(f"==> no C compiler, so the compiled form was not tested: {' '.join(lacks_compiler)}")
    if reason:
        print(f"==> no PostgreSQL, so the tests marked `postgres` were skipped: {reason}")
    if missing:
        print(f"==> not installed: {' '.join(missing)} (apt-get install {' '.join(missing)})")
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped", flush=True)
    if all(code == NO_TESTS_COLLECTED for code in exits):
        return NO_TESTS_COLLECTED
    return next((code for code in exits if code not in (0, NO_TESTS_COLLECTED)), 0)


def check_compiled_form(directory: Path, report: Path, environment: dict[str, str]) -> int:
    """Build the package in `directory` with its hot modules compiled, and run COMPILED_TESTS on that. Return the exit code."""
    print("==> the compiled form (`make test-native` runs more)", flush=True)
    build = [sys.executable, "scripts/native.py", str(directory), "--unoptimized"]
    # Processes that the tests start run the compiled form as well.
    compiled = environment | {"PYTHONPATH": os.pathsep.join([str(directory), *filter(None, [environment.get("PYTHONPATH")])])}
    has_form = [sys.executable, "-c", "from tollway.native import FORM; raise SystemExit(FORM != 'compiled')"]
    for command in (build, has_form):
        code = subprocess.run(command, env=compiled, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode
        if code:
            print(f"==> failed: {shlex.join(command)}")
            return code
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", "-n", "2", "-o", f"pythonpath={directory} .", *COMPILED_TESTS]
    return subprocess.run(command, env=compiled, stdin=subprocess.DEVNULL).returncode


def read_counts(report: Path) -> dict[str, int]:
    """Tests passed, failed (errors included) and skipped, summed over a JUnit XML report."""
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    total: Counter[str] = Counter()
    for suite in suites:
        total.update({key: int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")})
    failed = total["failures"] + total["errors"]
    return {"passed": total["tests"] - failed - total["skipped"], "failed": failed, "skipped": total["skipped"]}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that the server is stopped on the way out
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
