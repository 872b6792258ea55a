"""The whole data plane against the simulated engine, one fault at a time: what the client is told, what is tried elsewhere, what is
recorded, and what the engine's own truth log says of it."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes import Upstream
from tests.gateway.harness import Answer, Gateway, Served, chat, completion, connect, gateway, healthy, message, post, streamed, whole
from tests.gateway.test_streams import error_code
from tests.simulator.running import Running, simulator
from tollway.domain.usage import Anomaly, Final, Outcome, UsageSource
from tollway.gateway.relay import RelayBounds

HARMLESS = [
    "comments", "crlf", "drip", "drip+crlf+comments", "batch@3", "role-null", "finish-separate", "no-type", "junk", "reasoning@3",
    "usage:finish", "usage:each", "usage:negative", "usage:shrinking", "usage:inflated", "usage:missing",
]  # fmt: skip
"""Faults that no client may notice."""

EARLY = [
    "error@0", "error@0:503", "error@0:429", "status@500", "status@500:flat", "status@503:string", "status@503", "status@429:retry-after=1",
    "status@404", "status@401", "status@500:html", "status@500:empty", "status@200:html", "status@302", "drop", "drop:fin", "hang",
    "stall@0", "huge-header",
]  # fmt: skip
"""Faults before the first event: another engine is asked."""

LATE = {
    "error@3": ("upstream_error", Outcome.UPSTREAM_ERROR),
    "error@3:503": ("upstream_error", Outcome.UPSTREAM_ERROR),
    "cut@3": ("upstream_cut", Outcome.UPSTREAM_ERROR),
    "cut@3:fin": ("upstream_cut", Outcome.UPSTREAM_ERROR),
    "cut-bytes@700": ("upstream_cut", Outcome.UPSTREAM_ERROR),
    "cut-bytes@700:fin": ("upstream_cut", Outcome.UPSTREAM_ERROR),
    "stall@3": ("upstream_timeout", Outcome.TIMEOUT),
    "abort@3": ("upstream_error", Outcome.UPSTREAM_ERROR),
    "no-done": ("upstream_cut", Outcome.UPSTREAM_ERROR),
    "json@3": ("upstream_invalid", Outcome.UPSTREAM_ERROR),
    "utf8@3": ("upstream_invalid", Outcome.UPSTREAM_ERROR),
    "huge-line@1100": ("answer_too_large", Outcome.UPSTREAM_ERROR),
}
"""Faults in mid-stream: told, never retried. Tokens come 25 ms apart, so that the first event is committed to before the fault."""
PACE = "+itl@25"

TOKENS = 8
BOUNDS = RelayBounds(
    first_token_seconds=2.0, idle_seconds=2.0, event_bytes_max=1024 * 1024
)  # far above what a busy machine adds to a healthy answer


@dataclass(frozen=True)
class Scene:
    """A gateway before a simulated engine. A model's name is the fault that its engine has; `!alone` after it: no second engine."""

    gateway: Gateway
    sim: Running
    second: Upstream

    async def ask(self, fault: str, *, alone: bool, stream: bool = True) -> tuple[Answer, Final]:
        before = len(self.gateway.sink.finals)
        model = fault + "!alone" if alone else fault
        body = streamed(model, max_tokens=TOKENS) if stream else chat(model, max_tokens=TOKENS)
        answer = await post(self.gateway.port, body | {"ignore_eos": True})
        return answer, await self.gateway.sink.settled(before + 1)


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    log: Path = tmp_path_factory.mktemp("simulator") / "truth.jsonl"
    with simulator(log) as running:
        yield running


@pytest.fixture
async def scene(sim: Running) -> AsyncIterator[Scene]:
    second = Upstream(healthy("second"))
    async with second.listening():
        models = {}
        for fault in [*HARMLESS, *EARLY, *(late + PACE for late in LATE), "status@400", "stale", "length:long", "length:short", "itl@0"]:
            models[fault] = Served([sim.url, second.url], upstream_model="sim-small!" + fault)
            models[fault + "!alone"] = Served([sim.url], upstream_model="sim-small!" + fault)
        async with gateway(models, bounds=BOUNDS) as running:
            yield Scene(running, sim, second)


@pytest.mark.parametrize("fault", HARMLESS)
async def test_what_no_client_may_notice(fault: str, scene: Scene) -> None:
    healthy_answer, _ = await scene.ask("itl@0", alone=True)
    answer, final = await scene.ask(fault, alone=True)
    assert answer.status == 200 and answer.events()[-1] == "[DONE]"
    if "reasoning" not in fault:
        assert answer.text == healthy_answer.text
    assert not any("usage" in event for event in answer.events()[:-1])
    truth = await scene.sim.record(answer.headers["x-request-id"])
    assert (truth.ended, truth.completion_tokens, truth.terminator_sent) == ("completed", TOKENS, True)
    assert final.outcome is Outcome.COMPLETED
    used = final.used
    if fault != "usage:shrinking":
        assert used.output + used.reasoning == TOKENS
    if fault == "usage:missing":
        assert final.source is UsageSource.ESTIMATED and used.input <= truth.prompt_tokens
    elif fault == "usage:negative":
        assert final.source in (UsageSource.COUNTED, UsageSource.ESTIMATED)
    elif fault != "usage:shrinking":
        assert (used.input, used.cached_input) == (truth.prompt_tokens - truth.cached_tokens, truth.cached_tokens)


NONSENSE = {
    "usage:missing": Anomaly.MISSING,
    "usage:negative": Anomaly.INVALID,
    "usage:shrinking": Anomaly.SHRINKING,
    "usage:inflated": Anomaly.INFLATED,
}


@pytest.mark.parametrize("bounded", [True, False], ids=["bounded", "unbounded"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("fault", NONSENSE)
async def test_a_report_that_is_nonsense_bills_no_more_than_was_done_and_can_be_found(
    fault: str, stream: bool, bounded: bool, sim: Running
) -> None:
    async with gateway({"m": Served([sim.url], upstream_model="sim-small!" + fault)}) as running:
        body = streamed() if stream else chat()
        answer = await post(running.port, body | ({"max_tokens": TOKENS, "ignore_eos": True} if bounded else {}))
        final = await running.sink.settled()
        anomalies = running.plane.metrics.anomalies
    assert answer.status == 200 and final.outcome is Outcome.COMPLETED
    truth = await sim.record(answer.headers["x-request-id"])
    used = final.used
    assert used.input + used.cached_input <= truth.prompt_tokens
    # This engine's shrinking reports begin far too high: that is noticed first, and of a whole answer there is but one report.
    assert final.anomaly is NONSENSE[fault] or (fault == "usage:shrinking" and final.anomaly is Anomaly.INFLATED)
    assert anomalies == {final.anomaly: 1}
    if bounded or fault in ("usage:missing", "usage:negative"):
        assert used.output + used.reasoning <= truth.completion_tokens
    else:
        assert used.output <= len(answer.body) + 400 * (truth.completion_tokens + 2), "no more than a token for each byte that came"


async def test_a_stream_that_is_cut_keeps_what_was_wrong_with_its_reports(sim: Running) -> None:
    async with gateway({"m": Served([sim.url], upstream_model="sim-small!usage:inflated+cut@3" + PACE)}) as running:
        await post(running.port, streamed(max_tokens=TOKENS) | {"ignore_eos": True})
        final = await running.sink.settled()
        assert running.plane.metrics.anomalies == ({} if final.anomaly is None else {final.anomaly: 1})
    assert final.outcome is Outcome.UPSTREAM_ERROR and final.used.output <= TOKENS


@pytest.mark.parametrize("fault", EARLY)
async def test_what_another_engine_can_answer(fault: str, scene: Scene) -> None:
    answer, final = await scene.ask(fault, alone=False)
    assert answer.text == "second" and answer.events()[-1] == "[DONE]"
    assert (final.outcome, final.attempts) == (Outcome.COMPLETED, 2)
    assert final.used.output == 1, "billed once, for the answer that was given"


@pytest.mark.parametrize("fault", ["error@0:503", "status@503:flat", "drop", "status@400", "hang"])
async def test_what_only_one_engine_can_answer_is_told(fault: str, sim: Running) -> None:
    async with gateway({"m": Served([sim.url], upstream_model="sim-small!" + fault)}, bounds=BOUNDS) as running:
        for body in (streamed(), chat()) if fault != "hang" else (streamed(),):
            answer = await post(running.port, body)
            assert answer.status == {"status@400": 400, "error@0:503": 503, "status@503:flat": 503, "drop": 502, "hang": 504}[fault]
            assert error_code(answer)


@pytest.mark.parametrize("fault", LATE)
async def test_what_breaks_in_mid_stream(fault: str, scene: Scene) -> None:
    code, outcome = LATE[fault]
    answer, final = await scene.ask(fault + PACE, alone=False)
    assert answer.status == 200 and error_code(answer) == code
    assert (final.outcome, final.error, final.attempts) == (outcome, code, 1)
    assert not scene.second.asked
    truth = await scene.sim.record(answer.headers["x-request-id"])
    delivered = [event for event in answer.events()[:-1] if event["choices"] and event["choices"][0]["delta"].get("content")]
    assert len(delivered) <= final.used.output <= truth.completion_tokens <= TOKENS
    if not fault.startswith("huge-line"):
        assert final.used.output > 0 and final.source in (UsageSource.ENGINE_CONTINUOUS, UsageSource.ENGINE_FINAL)
    if fault in ("json@3", "utf8@3", "huge-line@1100"):
        assert truth.ended == "aborted", "an engine whose answer is not believed is stopped"


@pytest.mark.parametrize("fault", ["length:long", "length:short", "status@200:html", "drop", "cut-bytes@30", "cut-bytes@30:fin", "json@1"])
async def test_whole_answers_that_are_broken_are_asked_elsewhere(fault: str, sim: Running) -> None:
    second = Upstream([whole(completion("second"))])
    async with second.listening():
        served = Served([sim.url, second.url], upstream_model="sim-small!" + fault)
        async with gateway({"m": served}) as running:
            answer = await post(running.port, chat())
            assert answer.json()["choices"][0]["message"]["content"] == "second"
            assert (await running.sink.settled()).attempts == 2


async def test_connections_that_go_stale_cost_no_request(scene: Scene) -> None:
    for _ in range(20):
        answer, final = await scene.ask("stale", alone=True)
        assert answer.events()[-1] == "[DONE]" and final.outcome is Outcome.COMPLETED


async def test_a_client_that_leaves_stops_the_engine(sim: Running) -> None:
    async with gateway({"m": Served([sim.url], upstream_model="sim-small!itl@20")}) as running:
        async with connect(running.port) as client:
            client.send(message(streamed(max_tokens=5000) | {"ignore_eos": True}))
            head = await client.reader.readuntil(b"\r\n\r\n")
            await client.reader.readuntil(b"content")
            client.vanish()
        final = await running.sink.settled()
        id = head.partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode()
        truth = await sim.record(id)
        assert truth.ended == "aborted" and truth.completion_tokens < 200
        assert final.outcome is Outcome.CLIENT_CANCELLED and final.used.output <= truth.completion_tokens
