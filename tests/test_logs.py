"""The log: every line begins alike, levels leave lines out, files are set aside, and the page names what is written."""

import json
import os
import re
from pathlib import Path

import msgspec
import pytest

from tollway.log_lines import RequestLine, new_request_line
from tollway.serve.control_log import ControlLog
from tollway.serve.logs import LogFiles, encode_report
from tollway.telemetry import LogWriter, new_line

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "logs.md").read_text()
AT_US = 1_764_504_000_123_456


def written(tmp_path: Path, write: object, level: str = "info") -> list[dict[str, object]]:
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    writer = LogWriter(descriptor, level)
    write(writer)  # type: ignore[operator]
    writer.close()
    os.close(descriptor)
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def request_line(level: str) -> RequestLine:
    return new_request_line("", level, "request", "req_1", "", 200, 1.5, "", "", "", "", "", "", 1, "", 0.5, 1, 2, 3, 4, 5, True, "")


def test_lines_of_gateway_control_and_supervisor_begin_alike(tmp_path: Path) -> None:
    def write(writer: LogWriter) -> None:
        writer.write(new_line(AT_US, "error", "spool_failed", {"detail": "x"}))
        ControlLog(writer, lambda: AT_US)({"event": "mail_failed", "detail": "x", "left_out": None})

    lines = [*written(tmp_path, write), json.loads(encode_report({"event": "crashed", "detail": "x"}, AT_US))]
    assert [line.pop("event") for line in lines] == ["spool_failed", "mail_failed", "crashed"]
    assert lines == [{"ts": "2025-11-30T12:00:00.123Z", "level": "error", "detail": "x"}] * 3


@pytest.mark.parametrize(("level", "shown"), [("info", 6), ("warning", 4), ("error", 2)])
def test_lines_below_the_level_are_left_out(tmp_path: Path, level: str, shown: int) -> None:
    def write(writer: LogWriter) -> None:
        for each in ("info", "warning", "error"):
            writer.write(new_line(AT_US, each, "x", {}))
            writer.take(request_line(each))

    assert len(written(tmp_path, write, level)) == shown


def test_level_changes_while_the_process_runs_and_says_so(tmp_path: Path) -> None:
    def write(writer: LogWriter) -> None:
        for _ in range(3):
            writer.step_level(AT_US)
            writer.write(new_line(AT_US, "info", "shown only in the end", {}))

    lines = written(tmp_path, write)
    assert [line.get("log_level") for line in lines] == ["warning", "error", "info", None]
    assert {line["event"] for line in lines[:3]} == {"log_level_changed"}


def test_files_are_set_aside_as_the_settings_say_or_not_written(tmp_path: Path) -> None:
    log = LogFiles(tmp_path, bytes_max=10, kept=2).open("a.log")
    for number in range(5):
        log.write(b"line %d\n" % number)
    log.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "a.log": b"line 4\n", "a.log.1": b"line 3\n", "a.log.2": b"line 2\n",
    }  # fmt: skip
    unwritten = LogFiles(tmp_path, is_kept=False).open("b.log")
    unwritten.write(b"line\n")
    unwritten.close()
    assert unwritten.tail == b"line\n" and not (tmp_path / "b.log").exists()


def test_page_names_every_field_of_a_request_and_every_event() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE))
    fields = {field.encode_name for field in msgspec.structs.fields(type(request_line("info")))}
    assert fields <= named
    events: set[str] = set()
    for path in (ROOT / "src" / "tollway").rglob("*.py"):
        source = path.read_text()
        if "simulator" in path.parts or path.name in ("engine.py", "simulate.py"):
            continue
        events |= set(re.findall(r'"event": "(\w+)"', source))
        events |= set(re.findall(r'\balarm\(\s*"(\w+)"', source)) | set(re.findall(r'_alarm\(\s*"(\w+)"', source))
        events |= set(re.findall(r'new_line\(\s*[\w().]+, "\w+", "(\w+)"', source))
    assert events - named == set()
