"""R8 and R9: figures that are counted by tests. R8 is a table of faults, each with the tests that inject it; R9 adds up what the tests
of bad input say that they tried. The tests are run, and what they report is read from pytest's own report."""

import ast
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from reliability.records import Line, record
from scripts import postgres

ROOT = Path(__file__).parent.parent
RUN_SECONDS_MAX = 1_800

STREAMS, CONTRACT = "gateway/test_streams.py::", "gateway/test_contract.py::"
EARLY = f"{STREAMS}test_a_fault_before_the_answer_is_asked_elsewhere_or_told"
BROKEN = f"{STREAMS}test_a_stream_broken_after_the_first_event_ends_with_an_error_event"
CONNECTIONS, OUTAGE = "gateway/test_connections.py::", "system/test_outage.py::"
SPOOL, RECOVERY, SNAPSHOTS = "link/test_spool.py::", "link/test_recovery.py::", "link/test_snapshots.py::"
DATABASE, SHARED = "storage/test_database.py::", "gateway/test_shared_counters.py::"

FAULTS: Mapping[str, Sequence[str]] = {
    # Engines
    "engine refuses connections": [f"{STREAMS}test_what_an_engine_may_have_begun_is_repeated_only_if_the_model_allows_it"],
    "engine resets before its answer": [f"{EARLY}[reset"],
    "engine closes before its answer": [f"{EARLY}[closed"],
    "engine resets in mid-stream": [f"{BROKEN}[cut-by-reset"],
    "engine closes in mid-stream": [f"{BROKEN}[cut-by-end-of-connection"],
    "engine killed under streams": ["system/test_crashes.py::test_an_engine_that_dies_costs_at_most_what_it_generated"],
    "engine dies at any byte (OpenAI's SDK)": ["gateway/test_sdk.py::test_an_engine_that_dies_at_any_byte_is_never_a_success"],
    "engine dies at any byte (Anthropic's SDK)": ["gateway/test_anthropic.py::test_an_engine_that_dies_at_any_byte_is_never_a_success"],
    "stream ends without its terminator": [f"{BROKEN}[clean-end-without-done"],
    "engine hangs before its answer": [f"{CONTRACT}test_what_another_engine_can_answer[hang"],
    "engine falls silent in mid-stream": [f"{STREAMS}test_an_engine_that_falls_silent"],
    "engine drips": [f"{CONTRACT}test_what_no_client_may_notice[drip"],
    "engine sends comments without end": [f"{STREAMS}test_65_comments_without_end_are_bounded_by_the_whole_deadline"],
    "stream without end": [f"{STREAMS}test_65_a_stream_without_end_is_cut_at_its_bound"],
    "answer without end": [f"{STREAMS}test_65_an_answer_without_end_is_cut_at_its_bound"],
    "engine answers 429": [f"{EARLY}[status-429"],
    "engine answers 500": [f"{EARLY}[status-500"],
    "engine answers 503": [f"{STREAMS}test_an_overload_says_when_to_come_back"],
    "engine refuses the platform's credential": [f"{EARLY}[status-401"],
    "error inside a 200 stream": [f"{BROKEN}[error-event"],
    "error inside a 200 body": [f"{EARLY}[error-in-a-200"],
    "event that is no JSON": [f"{BROKEN}[not-json"],
    "half an event": [f"{BROKEN}[half-an-event"],
    "event that is no UTF-8": [f"{BROKEN}[invalid-utf-8"],
    "line without end": [f"{BROKEN}[line-without-end"],
    "broken chunk framing": [f"{BROKEN}[bad-chunk"],
    "content-length too short": [f"{EARLY}[64-length-too-short"],
    "content-length too long": [f"{EARLY}[64-length-too-long"],
    "head without end": [f"{EARLY}[64-head-without-end"],
    "not HTTP": [f"{EARLY}[not-http"],
    "redirect": [f"{EARLY}[64-redirect"],
    "content coding that nobody asked for": [f"{EARLY}[64-gzip"],
    "another answer behind the answer": [f"{EARLY}[64-another-answer-behind", f"{STREAMS}test_65_junk_after_done_is_dropped"],
    "TLS to a server that speaks none": [f"{STREAMS}test_64_tls_to_a_server_that_speaks_none"],
    "certificate of another, expired or untrusted": [f"{STREAMS}test_64_an_upstream_must_be_who_its_address_says"],
    "usage that cannot be true": [f"{STREAMS}test_usage_is_believed_as_far_as_it_can_be_true"],
    "usage missing": [f"{STREAMS}test_events_are_counted_where_an_engine_says_nothing"],
    "kept connection gone stale": [f"{CONTRACT}test_connections_that_go_stale_cost_no_request"],
    # Clients
    "client leaves in mid-stream": [f"{CONNECTIONS}test_60_a_client_that_leaves_has_its_upstream_aborted"],
    "client stops reading": [f"{CONNECTIONS}test_13_a_reader_that_stops", f"{CONNECTIONS}test_13_a_reader_that_never_reads_on"],
    "slow head or body": [f"{CONNECTIONS}test_12_slow_heads_and_bodies"],
    "idle connections": [f"{CONNECTIONS}test_14_idle_connections"],
    "more connections than allowed": [f"{CONNECTIONS}test_14_connections_are_counted"],
    "flood of unknown keys": ["gateway/test_identity.py::test_37_a_flood_of_unknown_keys"],
    # Processes
    "any process killed under load": ["system/test_crashes.py::test_nothing_is_lost_or_billed_twice"],
    "gateway killed at any write": ["link/test_spool_kill.py::test_no_request_is_lost_or_doubled_by_kills"],
    "gateway killed while it recovers": [f"{RECOVERY}test_killed_at_any_operation_and_run_again_it_ends_the_same"],
    "supervisor killed": ["system/test_demo.py::test_a_killed_supervisor_takes_its_children_along"],
    "gateway replaced under load": ["system/test_rollout.py::test_a_gateway_is_replaced_under_load_and_nothing_fails"],
    "gateway drained under streams": ["system/test_rollout.py::test_a_drain_lets_streams_finish"],
    "request in the moment of a stop": [f"{CONNECTIONS}test_a_drain_waits_for_a_connection_that_came_in_the_same_moment"],
    # Control and database
    "control killed": [f"{OUTAGE}test_a_killed_control_plane_is_not_missed"],
    "control frozen": [f"{OUTAGE}test_a_frozen_control_plane_is_not_missed_either"],
    "gateway starts without control": [f"{OUTAGE}test_a_killed_control_plane_is_not_missed", f"{OUTAGE}test_a_gateway_that_never_knew"],
    "gateway frozen during a revocation": [f"{OUTAGE}test_a_revocation_that_a_gateway_missed"],
    "PostgreSQL killed, and away at the start": [f"{OUTAGE}test_without_its_database_it_serves_on_and_even_starts"],
    "PostgreSQL frozen": [f"{OUTAGE}test_a_frozen_database_is_not_missed"],
    "database connection cut": [f"{DATABASE}test_for_a_moment_costs_no_more_than_the_requests_of_that_moment"],
    "database unreachable": [f"{DATABASE}test_is_a_fault_that_passes"],
    "SQLite held by a writer": [f"{DATABASE}test_because_a_writer_holds_it"],
    "database lost and restored": ["system/test_restore.py::test_archive_or_spools", "control/metering/test_replay.py::test_"],
    "control that takes no records": ["link/test_shipper.py::test_over_a_control_that_fails_in_every_way"],
    "control that forgot": ["link/test_shipper.py::test_a_control_that_forgot", "link/test_shipper.py::test_a_control_that_was_restored"],
    "link cut": [f"{SNAPSHOTS}test_cut_lines_and_broken_snapshots_are_survived"],
    "link silent": [f"{SNAPSHOTS}test_silence_is_taken_for_a_dead_line"],
    "link held back by a proxy": [f"{SNAPSHOTS}test_where_streams_are_held_back_it_polls"],
    "copy of the snapshot damaged": [f"{SNAPSHOTS}test_a_damaged_copy_is_as_none"],
    # The server of shared limit counters
    "Redis killed and started empty": [f"{SHARED}test_62_decisions_go_on_by_shares_and_are_exact_again_afterwards[kill"],
    "Redis frozen": [
        f"{SHARED}test_62_decisions_go_on_by_shares_and_are_exact_again_afterwards[freeze",
        f"{SHARED}test_62_admission_that_comes_after_the_deadline_is_released",
    ],
    "Redis out of memory": [f"{SHARED}test_62_decisions_go_on_by_shares_and_are_exact_again_afterwards[full"],
    "Redis read-only after a failover": [f"{SHARED}test_62_decisions_go_on_by_shares_and_are_exact_again_afterwards[read"],
    "Redis flushed": [
        f"{SHARED}test_62_store_that_was_flushed_learns_again_what_is_held",
        f"{SHARED}test_62_scripts_that_the_server_forgot_are_loaded_again",
    ],
    "gateway dead that holds at Redis": [f"{SHARED}test_gateway_that_dies_frees_what_it_held_after_its_lease"],
    # Disks and clocks
    "disk of the spool full": [
        "system/test_bad_input.py::test_a_full_disk_refuses_new_requests",
        f"{SPOOL}test_whatever_the_order_no_final",
    ],
    "disk full at the start": ["system/test_bad_input.py::test_a_gateway_does_not_start_on_a_full_disk"],
    "EIO from the disk of the spool": [f"{SPOOL}test_everyone_is_told_and_nothing_is_tried_again"],
    "fdatasync fails on a real file system": ["system/test_bad_disks.py::test_a_sync_that_fails_ends_the_run"],
    "file system turns read-only": ["system/test_bad_disks.py::test_a_disk_that_turns_read_only"],
    "file system read-only at the start": ["system/test_bad_disks.py::test_a_gateway_that_finds_its_disk_read_only"],
    "spool torn at any byte": [f"{RECOVERY}test_cut_at_every_byte_nothing_before_the_cut_is_lost"],
    "bit flipped in the spool": [f"{RECOVERY}test_a_flipped_bit_never_changes_a_record_unseen"],
    "archive damaged": [
        "control/metering/test_collect.py::test_a_damaged_archive_is_named",
        "control/metering/test_replay.py::test_a_damaged_archive",
    ],
    "records twice, late, in any order": [
        "control/metering/test_collect.py::test_deliveries_in_any_order",
        "control/metering/test_collect.py::test_ten_times",
    ],
    "clock goes back": [f"{SPOOL}test_epochs_have_numbers_of_their_own_and_no_error_of_an_earlier_clock"],
}
"""Under tests/, the file and how the test's name begins, in whatever class; with a bracket, which of its cases."""

MISSING: Mapping[str, str] = {
    "engine's name does not resolve": "no test",
    "PostgreSQL read-only, out of connections, deadlocked, its disk full": "no test",
    "clock an hour off under load": "no test under load",
    "file descriptors, CPU or memory short": "no test",
    "packets lost, a slow line, a partition": "not possible between processes of one machine without network namespaces; no test",
}

BAD_INPUT = ("gateway/test_flood.py", "wire/test_requests.py", "fuzz")
"""The tests that say how many bad inputs they tried (fixture `tried`)."""


@dataclass(slots=True)
class Report:
    """Report of pytest: outcomes by "file::name[case]" without classes, and what was `tried`, how often."""

    outcomes: dict[str, str] = field(default_factory=dict)
    tried: list[tuple[str, int]] = field(default_factory=list)
    seconds: float = 0.0

    def of(self, spec: str) -> list[str]:
        """The outcomes of the tests that `spec` means."""
        return [outcome for name, outcome in self.outcomes.items() if name.startswith(spec)]


def measure_faults() -> list[Line]:
    """R8: run every test of FAULTS; a fault is survived if all its tests passed."""
    began = time.time()
    specs = [spec for specs in FAULTS.values() for spec in specs]
    report = run_tests(sorted({node for spec in specs for node in find_nodes(spec)}))
    survived = {name: _is_survived(report, specs) for name, specs in FAULTS.items()}
    failed = [name for name, is_survived in survived.items() if not is_survived]
    print("\n".join(f"not survived: {name}" for name in failed), flush=True)
    return [
        record(
            "R8",
            of="faults",
            n=len(FAULTS),
            failures=len(failed),
            also={"tests": len(report.outcomes)},
            began=began,
            detail={
                "not survived": failed,
                "survived": [name for name, is_survived in survived.items() if is_survived],
                "not tried": [f"{name}: {why}" for name, why in MISSING.items()],
            },
        )
    ]


def measure_bad_input() -> list[Line]:
    """R9: run the tests of bad input and add up what they tried."""
    began = time.time()
    report = run_tests(BAD_INPUT)
    failed = [name for name, outcome in report.outcomes.items() if outcome == "failed"]
    print("\n".join(failed), flush=True)
    return [
        record(
            "R9",
            of="inputs",
            n=sum(count for _, count in report.tried),
            failures=len(failed),
            began=began,
            detail={"tried": [f"{count:,} {what}" for what, count in sorted(report.tried)]},
        )
    ]


def _is_survived(report: Report, specs: Iterable[str]) -> bool:
    outcomes = [report.of(spec) for spec in specs]
    return all("passed" in each and "failed" not in each for each in outcomes)


def find_nodes(spec: str) -> list[str]:
    """Return what to ask pytest for: every function that `spec` means, with its class, all cases."""
    path, _, name = spec.partition("::")
    wanted, is_case, _ = name.partition("[")
    found = []
    tree = ast.parse((ROOT / "tests" / path).read_text())
    for parent, nodes in [("", tree.body), *((f"{each.name}::", each.body) for each in tree.body if isinstance(each, ast.ClassDef))]:
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
                node.name == wanted if is_case else node.name.startswith(wanted)
            ):
                found.append(f"tests/{path}::{parent}{node.name}")
    return found


def run_tests(nodes: Sequence[str]) -> Report:
    """Run these tests one after the other, with a private PostgreSQL."""
    with ExitStack() as held:
        environment = dict(os.environ)
        try:
            environment["TOLLWAY_TEST_POSTGRES"] = held.enter_context(postgres.running())
        except RuntimeError as error:
            print(f"without PostgreSQL: {error}", flush=True)
        directory = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="tollway-reports-")))
        path = directory / "report.xml"
        places = [node if node.startswith("tests/") else f"tests/{node}" for node in nodes]
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={path}", *places],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            timeout=RUN_SECONDS_MAX,
        )
        return read_report(path.read_text())


def read_report(xml: str) -> Report:
    """Read a JUnit report. The class of a test is the last part of its `classname` that begins with a capital."""
    report = Report()
    for case in ElementTree.fromstring(xml).iter("testcase"):
        parts = case.get("classname", "").split(".")
        while parts and parts[-1][:1].isupper():
            parts.pop()
        name = f"{'/'.join(parts[1:])}.py::{case.get('name')}"
        bad = case.find("failure") is not None or case.find("error") is not None
        report.outcomes[name] = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        report.seconds += float(case.get("time", "0"))
        for told in case.iter("property"):
            found = re.fullmatch(r"\((['\"])(.*)\1, (\d+)\)", told.get("value", "")) if told.get("name") == "tried" else None
            if found:
                report.tried.append((found[2], int(found[3])))
    return report
