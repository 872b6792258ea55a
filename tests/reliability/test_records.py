"""A line that was recorded is read back, says what it is a bound on, and nothing else passes for one."""

from pathlib import Path

import msgspec
import pytest

from reliability.records import bound95, read, record


def test_what_was_recorded_is_read_back_in_order_of_time(tmp_path: Path) -> None:
    late = record("R9", of="inputs", n=1000, failures=0, began=1_700_000_002.0, case="http", seed=7, results=tmp_path)
    early = record("R10", of="rollouts", n=3, failures=1, began=1_700_000_001.0, also={"requests": 9}, results=tmp_path)
    assert read(tmp_path) == [early, late]
    assert (late.bound95, early.bound95) == (0.003, None)
    assert late.commit != "unknown"


def test_the_bound_is_three_in_n_and_only_without_failures() -> None:
    assert [bound95(0, 0), bound95(2, 0), bound95(300, 0), bound95(300, 1)] == [None, 1.0, 0.01, None]


def test_a_torn_line_is_refused(tmp_path: Path) -> None:
    record("R9", of="inputs", n=1, failures=0, began=0.0, results=tmp_path)
    path = tmp_path / "R9.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(msgspec.DecodeError):
        read(tmp_path)
