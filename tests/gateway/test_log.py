"""Lines of the log: the line of a completed request says what any request's line says, under the same names; nothing is lost."""

import os
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.log_lines import CompletedLine, RequestLine
from tollway.telemetry import LogWriter, timestamp


def test_a_completed_request_s_line_has_the_fields_of_any_line() -> None:
    assert set(CompletedLine.__struct_fields__) < set(RequestLine.__struct_fields__)
    types = {field.name: field.type for field in msgspec.structs.fields(RequestLine)}
    for field in msgspec.structs.fields(CompletedLine):
        assert field.type == types[field.name]


@given(st.integers(0, 4_000_000_000_000_000))
def test_an_instant_is_told_to_the_millisecond(at_us: int) -> None:
    assert msgspec.json.decode(f'"{timestamp(at_us)}"', type=datetime).timestamp() == pytest.approx(at_us // 1000 / 1000)


def _completed(number: int) -> CompletedLine:
    texts = ("", "info", "request", "req_1", "f" * 32)
    return CompletedLine(*texts, 200, 1.5, "org_1", "", "", "", 'a"\\\n\u00e9', "", number, "completed", 0.5, 1, 2, 3, 4, 2**70, True, "")


def test_lines_of_every_kind_reach_the_descriptor_in_order_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    log = LogWriter(descriptor)
    count = 3 * LogWriter.BATCH_LINES_MAX + 1
    for number in range(count):
        if number % 3:
            log.take(_completed(number))
        else:
            log.write({"attempts": number, "model": 'a"\\\n\u00e9'})
    log.close()
    os.close(descriptor)
    lines = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    assert [(line["attempts"], line["model"]) for line in lines] == [(number, 'a"\\\n\u00e9') for number in range(count)]
    assert {line["cost_pico"] for line in lines if "cost_pico" in line} == {2**70}
    assert log.dropped == 0
