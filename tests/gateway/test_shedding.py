"""Overload of the whole process: how large a part of new requests is refused, when it ends, and what is never refused."""

import asyncio
import json
import time
from pathlib import Path

import pytest

from tests.fakes import PATIENCE_SECONDS, Upstream, until
from tests.gateway.harness import KEY, Gateway, Served, chat, completion, connect, gateway, post, whole
from tollway.gateway.edge.clock import Clock
from tollway.gateway.shedding import SHED_STEPS_MAX, STEPS, Shedder, SheddingBounds, find_memory_bound, read_resident_bytes

MIB = 1 << 20


class Process:
    """A process whose lag and memory are what a test says."""

    def __init__(self, bounds: SheddingBounds) -> None:
        self.memory = 0
        self.alarms: list[tuple[str, dict[str, object]]] = []
        self.shedder = Shedder(bounds, lambda: self.memory, lambda event, fields: self.alarms.append((event, fields)))

    def pass_period(self, *lags: float) -> int:
        for lag in lags:
            self.shedder.note_lag(lag)
        self.shedder.check()
        return self.shedder.steps


def test_95_standing_lag_refuses_more_in_each_period_and_never_all() -> None:
    process = Process(SheddingBounds(lag_seconds_max=0.2))
    assert [process.pass_period(0.3, 0.21) for _ in range(STEPS + 2)] == [0, 1, 2, 3, 4, 5, 6, 7, 7, 7]
    assert [process.shedder.refuses() for _ in range(STEPS)].count(False) == STEPS - SHED_STEPS_MAX
    assert process.alarms == [("shedding_began", {"reason": "event_loop_lag", "lag_seconds": 0.21, "memory_bytes": 0})]


def test_single_pause_refuses_nobody_and_a_period_without_samples_changes_nothing() -> None:
    process = Process(SheddingBounds(lag_seconds_max=0.2))
    assert process.pass_period(0.0, 5.0, 0.01) == 0
    assert process.pass_period(5.0) == 0
    assert process.pass_period(0.01) == 0
    assert process.pass_period(0.3) == 0
    assert process.pass_period(0.3) == 1
    assert process.pass_period() == 1


def test_lag_between_relief_and_bound_changes_nothing_and_calm_ends_the_refusals() -> None:
    process = Process(SheddingBounds(lag_seconds_max=0.2))
    for _ in range(4):
        process.pass_period(1.0)
    assert [process.pass_period(lag) for lag in (0.15, 0.2, 0.1, 0.15, 0.0, 0.0, 0.0)] == [3, 3, 2, 2, 1, 0, 0]
    assert [event for event, _ in process.alarms] == ["shedding_began", "shedding_ended"]


@pytest.mark.parametrize("steps", range(1, SHED_STEPS_MAX + 1))
def test_refused_part_is_spread_evenly(steps: int) -> None:
    process = Process(SheddingBounds(lag_seconds_max=0.2))
    for _ in range(steps + 1):
        process.pass_period(1.0)
    refused = [process.shedder.refuses() for _ in range(10 * STEPS)]
    for start in range(9 * STEPS):
        assert abs(sum(refused[start : start + STEPS]) - steps) <= 1
    assert process.shedder.refused == sum(refused) == 10 * steps


def test_95_memory_above_its_bound_refuses_until_it_is_well_below() -> None:
    process = Process(SheddingBounds(lag_seconds_max=0.0, memory_bytes_max=160 * MIB))
    found = []
    for memory in (160, 161, 161, 160, 151, 150, 149, 149):
        process.memory = memory * MIB
        found.append(process.pass_period(9.0))
    assert found == [0, 1, 2, 2, 2, 1, 0, 0]
    assert process.alarms[0][1]["reason"] == "memory"
    assert process.alarms[1] == ("shedding_ended", {"refused": 0})


def test_bound_on_memory_follows_the_smallest_limit_of_the_control_groups(tmp_path: Path) -> None:
    groups = tmp_path / "sys/fs/cgroup"
    (groups / "pod/container").mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    assert find_memory_bound(tmp_path) is None
    (tmp_path / "proc/self/cgroup").write_text("0::/pod/container\n")
    assert find_memory_bound(tmp_path) is None
    (groups / "pod/container/memory.max").write_text("max\n")
    (groups / "pod/memory.max").write_text("1000\n")
    assert find_memory_bound(tmp_path) == 900
    assert read_resident_bytes() > MIB


async def test_clock_of_a_gateway_measures_the_lag_of_its_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clock, "PERIOD_SECONDS", 0.01)
    monkeypatch.setattr(Clock, "LAG_PERIOD_SECONDS", 0.001)
    async with gateway({}) as running:
        shedder = running.plane.shedder
        shedder._bounds = SheddingBounds(lag_seconds_max=0.005)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while shedder.steps < SHED_STEPS_MAX:
                time.sleep(0.02)  # the lag: nothing else runs in this loop meanwhile
                await asyncio.sleep(0)
        shedder._bounds = SheddingBounds(lag_seconds_max=3600.0)
        await until(lambda: not shedder.steps)


async def test_95_gateway_whose_loop_lags_refuses_inference_with_503_and_answers_health_and_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clock, "PERIOD_SECONDS", 3600.0)
    upstream = Upstream([whole(completion())])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, shedding=SheddingBounds()) as running:
        _measure(running, 10.0)
        answers = [await post(running.port, chat()) for _ in range(STEPS)]
        statuses = [answer.status for answer in answers]
        assert (statuses.count(503), statuses.count(200)) == (SHED_STEPS_MAX, 1)
        refused = next(answer for answer in answers if answer.status == 503)
        assert refused.error["code"] == "overloaded" and refused.headers["retry-after"] == "2"
        assert len(upstream.asked) == 1, "no engine hears of a refused request"
        large = chat(messages=[{"role": "user", "content": "word " * 40_000}])
        assert [(await post(running.port, large)).status for _ in range(3)] == [200, 503, 503], "a large body is counted once"
        for path in ("/livez", "/v1/models"):
            async with connect(running.port) as client:
                client.send(f"GET {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {KEY}\r\n\r\n".encode())
                assert (await client.answer()).status == 200
        assert running.plane.metrics.read("tollway_shedding_refused") == SHED_STEPS_MAX + 2
        _measure(running, 0.0)
        assert running.plane.shedder.steps == 0
        assert (await post(running.port, chat())).status == 200
    lines = [json.loads(line) for line in running.log.text.splitlines() if b"shedding" in line]
    assert [(line["level"], line["event"]) for line in lines] == [("warning", "shedding_began"), ("warning", "shedding_ended")]
    assert (lines[0]["reason"], lines[1]["refused"]) == ("event_loop_lag", SHED_STEPS_MAX + 2)


def _measure(running: Gateway, lag_seconds: float) -> None:
    """Let the gateway measure this lag for as many periods as it takes from one end to the other."""
    running.plane.shedder.check()  # ends the period that has samples of the loop itself
    for _ in range(SHED_STEPS_MAX + 1):  # the first one has a punctual sample before it
        running.plane.shedder.note_lag(lag_seconds)
        running.plane.shedder.check()
