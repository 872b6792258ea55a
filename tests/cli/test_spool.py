"""`tollway spool inspect`: what it counts is what was written, and damage is never called a crash."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.link.samples import ended
from tollway.cli.app import run
from tollway.domain.billing_classes import NOTHING
from tollway.domain.usage import Admit, Final, Outcome, UsageSource, encode
from tollway.link.spool import Spool, SpoolOptions

ADMIT = Admit(
    request_id="req_" + "0" * 31 + "1",
    admitted_at=1,
    organization_id="org_" + "0" * 32,
    project_id="proj_" + "0" * 32,
    key_id="key_" + "0" * 32,
    model="m",
    endpoint="chat/completions",
    stream=True,
    price_version="price_" + "0" * 32,
    price_hash="0" * 64,
    outcome_policy=1,
)


def inspect(directory: Path, capsys: pytest.CaptureFixture[str], *, code: int) -> dict[str, Any]:
    """The one epoch of the spool."""
    assert run(["spool", "inspect", "--spool", str(directory), "-o", "json"]) == code
    (epoch,) = json.loads(capsys.readouterr().out)
    found: dict[str, Any] = epoch
    return found


async def write(directory: Path) -> Path:
    """A spool with one request that has ended and one that is open, then closed cleanly. Returns its segment."""
    options = SpoolOptions(segment_bytes=65_536, slots_max=16)
    spool = Spool.open(directory, alarm=lambda *_: None, clock=lambda: 1_700_000_000_000_000, options=options)
    slot = spool.admit(encode(ADMIT))
    await ended(spool, slot, Final(admit=ADMIT, outcome=Outcome.COMPLETED, used=NOTHING, source=UsageSource.NONE, ended_at=2))
    await spool.close()
    (segment,) = directory.glob("epoch-*/0001.seg")
    return segment


async def test_counts_by_kind_what_a_clean_run_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await write(tmp_path)
    epoch = inspect(tmp_path, capsys, code=0)
    assert (epoch["state"], epoch["admit"], epoch["final"], epoch["close"], epoch["open"]) == ("closed", 1, 1, 1, 0)
    assert epoch["records"] == epoch["next_seq"] - 1


async def test_a_torn_tail_is_a_crash_and_the_request_is_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    segment = await write(tmp_path)
    (segment.parent / "closed").unlink()
    data = segment.read_bytes()
    cut = data.index(b'"final"')  # inside the FINAL: what follows was never written
    segment.write_bytes(data[:cut] + bytes(len(data) - cut))
    epoch = inspect(tmp_path, capsys, code=0)
    assert (epoch["state"], epoch["admit"], epoch["final"], epoch["open"], epoch["problem"]) == ("open", 1, 0, 1, None)


async def test_a_wrong_record_before_readable_ones_is_damage_and_they_can_be_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segment = await write(tmp_path)
    data = bytearray(segment.read_bytes())
    data[data.index(b'"final"')] ^= 1
    segment.write_bytes(data)
    epoch = inspect(tmp_path, capsys, code=1)
    assert (epoch["state"], epoch["records"], epoch["unverified"], epoch["open"]) == ("damaged", 1, 1, 1)
    assert epoch["problem"].startswith("0001.seg at ") and "record 2 is wrong; record 3 at" in epoch["problem"]
    number = segment.parent.name.partition("-")[2]
    assert run(["spool", "inspect", "--spool", str(tmp_path), "--epoch", number]) == 1
    page = capsys.readouterr().out
    assert ADMIT.request_id in page and "record 2 is wrong" in page
    assert run(["spool", "inspect", "--spool", str(tmp_path), "--epoch", number, "-o", "json"]) == 1
    details = json.loads(capsys.readouterr().out)
    assert [each["request_id"] for each in details["open_requests"]] == [ADMIT.request_id]
    assert details["problems"][0]["segment"] == 1


async def test_what_can_be_read_is_exported_line_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    segment = await write(tmp_path / "spool")
    number = segment.parent.name.partition("-")[2]
    out = tmp_path / "out.jsonl"

    def export(*options: str, code: int) -> list[dict[str, Any]]:
        out.unlink(missing_ok=True)
        arguments = ["--spool", str(tmp_path / "spool"), "--epoch", number, "--file", str(out)]
        assert run(["spool", "export", *arguments, *options]) == code
        return [json.loads(line) for line in out.read_bytes().splitlines()]

    lines = export(code=0)
    assert [(line["seq"], line["is_verified"], line["record"]["record"]) for line in lines] == [
        (1, True, "admit"),
        (2, True, "final"),
        (3, True, "close"),
    ]
    data = bytearray(segment.read_bytes())
    data[data.index(b'"final"')] ^= 1
    segment.write_bytes(data)
    assert [(line["seq"], line["is_verified"]) for line in export(code=1)] == [(1, True), (3, False)]
    assert [line["seq"] for line in export("--verified", code=1)] == [1]
    assert run(["spool", "export", "--spool", str(tmp_path / "spool"), "--epoch", number, "--file", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err, "what is there is not written over"
    assert run(["spool", "export", "--spool", str(tmp_path / "spool"), "--epoch", "7"]) == 1


def test_a_directory_without_a_spool_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["spool", "inspect", "--spool", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
