"""Lines of the log: the line of a completed request says what any request's line says, under the same names; nothing is lost."""

import os
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import Upstream
from tests.gateway.harness import ORGANIZATION, PROJECT, Served, chat, completion, gateway, post, usage, whole
from tollway.log_lines import RequestLine, new_request_line
from tollway.telemetry import LogWriter, timestamp


@given(st.integers(0, 4_000_000_000_000_000))
def test_an_instant_is_told_to_the_millisecond(at_us: int) -> None:
    assert msgspec.json.decode(f'"{timestamp(at_us)}"', type=datetime).timestamp() == pytest.approx(at_us // 1000 / 1000)


def _completed(number: int) -> RequestLine:
    ids = ("org_1", "proj_1", "key_1", 'a"\\\n\u00e9', "dep_1")
    return new_request_line(
        "", "info", "request", "req_1", "f" * 32, 200, 1.5, "", *ids, number, "completed", 0.5, 1, 2, 3, 4, 2**70, True, ""
    )


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


async def test_line_of_an_answered_request_says_what_its_final_says() -> None:
    upstream = Upstream([whole(completion(prompt=7, completion=3) | {"usage": usage(7, 3, cached=2)})])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        assert (await post(running.port, chat())).status == 200
        final = await running.sink.settled()
        admit = final.admit
    (line,) = [msgspec.json.decode(line) for line in running.log.text.splitlines()]
    assert line.pop("ts") and line.pop("trace_id") and line.pop("duration_ms") and line.pop("ttft_ms") >= 0
    assert line == {
        "level": "info", "event": "request", "request_id": admit.request_id, "status": 200, "endpoint": "chat/completions",
        "organization_id": ORGANIZATION, "project_id": PROJECT, "key_id": admit.key_id, "model": "m", "upstream": "dep-m-0", "attempts": 1,
        "outcome": "completed", "input_tokens": 5, "cached_input_tokens": 2, "output_tokens": 3, "reasoning_tokens": 0,
        "cost_pico": 5 * 100 + 2 * 10 + 3 * 400, "stream": False, "usage_source": "engine_final",
    }  # fmt: skip


async def test_line_of_a_refusal_has_the_same_fields_and_those_of_the_fault() -> None:
    upstream = Upstream([whole(completion())])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        await post(running.port, chat(), x_client_request_id="mine-1")
        await post(running.port, chat("unknown"))
        await running.sink.settled()
    answered, refused = (msgspec.json.decode(line) for line in running.log.text.splitlines())
    assert answered.keys() - refused.keys() == {"client_request_id"} and answered["client_request_id"] == "mine-1"
    assert refused.keys() - answered.keys() == {"error_code"}
    assert (refused["level"], refused["status"], refused["error_code"], refused["cost_pico"]) == ("warning", 404, "model_not_found", 0)
