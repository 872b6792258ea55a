"""A results file gives back what was measured, and nothing else passes for one."""

from pathlib import Path

import pytest

from bench.records import Run, Sample, Subject, append, read

RUN = Run(started_at="2026-11-22T00:00:00Z", command="python -m bench", rounds=1, machine={"CPU": "two"})
SUBJECT = Subject(name="nginx", version="1.22.1", command="nginx")
SAMPLE = Sample(figure="request", scenario="saturated", target="nginx", round=0, values={"us_per_request": 11.5})


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "results" / "run.jsonl"
    for record in (RUN, SUBJECT, SAMPLE, SUBJECT):
        append(path, record)
    results = read(path)
    assert (results.run, results.subjects, results.samples) == (RUN, [SUBJECT], [SAMPLE])


@pytest.mark.parametrize("records", [[], [SAMPLE], [RUN, RUN], [SAMPLE, RUN]], ids=["empty", "no run", "two runs", "run last"])
def test_a_file_that_is_not_one_run_is_refused(tmp_path: Path, records: list[Run | Sample]) -> None:
    path = tmp_path / "run.jsonl"
    path.touch()
    for record in records:
        append(path, record)
    with pytest.raises(ValueError, match="not one run"):
        read(path)


def test_a_torn_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    append(path, RUN)
    append(path, SAMPLE)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError):
        read(path)
