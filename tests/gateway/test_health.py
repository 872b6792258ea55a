"""Passive health: when an upstream is avoided, for how long, and whose faults count."""

import asyncio

import msgspec
import pytest

from tests.fakes import Do, Script, Upstream
from tests.gateway.harness import EMBEDDINGS, Served, chat, completion, gateway, healthy, post, streamed, whole
from tests.gateway.test_streams import error_code
from tollway.domain import faults
from tollway.domain.catalog import Endpoint, Engine
from tollway.domain.faults import Fault
from tollway.gateway.upstreams.health import (
    ALIVE_SECONDS,
    EJECTION_SECONDS,
    EJECTION_SECONDS_MAX,
    MISCONFIGURED_SECONDS,
    MISCONFIGURED_SECONDS_MAX,
    Health,
    Reliability,
)

CHAT, MESSAGES = Endpoint.CHAT_COMPLETIONS, Endpoint.MESSAGES
SECOND = healthy("second")


def fail(health: Health, kind: faults.FaultKind, now: float, organization: str = "a", *, has_begun: bool = False) -> bool:
    return health.fail(Fault(kind), CHAT, organization, now, has_begun=has_begun)


def ejected(kind: faults.FaultKind = faults.UPSTREAM_CONNECT) -> Health:
    health = Health()
    assert fail(health, kind, 0.0)
    return health


def test_third_failure_in_a_row_ejects_from_every_endpoint() -> None:
    health = Health()
    assert [fail(health, faults.UPSTREAM_FAILED, 0.0) for _ in range(3)] == [False, False, True]
    assert not health.allows(CHAT, 0.1) and not health.allows(MESSAGES, 0.1)
    assert health.allows(CHAT, EJECTION_SECONDS)


def test_success_between_failures_starts_the_count_again() -> None:
    health = Health()
    for _ in range(5):
        assert not fail(health, faults.UPSTREAM_FAILED, 10.0) and not fail(health, faults.UPSTREAM_CUT, 10.0)
        health.succeed(CHAT, 10.0)
    assert health.allows(CHAT, 10.0)


@pytest.mark.parametrize(
    "kind",
    [
        faults.UPSTREAM_STALE, faults.UPSTREAM_REFUSED, faults.UPSTREAM_RATE_LIMITED, faults.UPSTREAM_REQUEST_INVALID,
        faults.CONTEXT_EXCEEDED, faults.ANSWER_TOO_LARGE, faults.SPOOL_UNAVAILABLE,
    ],
    ids=lambda kind: kind.code,
)  # fmt: skip
def test_faults_of_others_eject_nothing(kind: faults.FaultKind) -> None:
    health = Health()
    assert not any(fail(health, kind, 0.0, str(number)) for number in range(20))
    assert health.allows(CHAT, 0.0)


def test_67_failures_of_one_organization_eject_nothing_while_others_are_answered() -> None:
    health = Health()
    health.begin_answer(CHAT, 0.0)
    assert not any(fail(health, faults.UPSTREAM_FAILED, ALIVE_SECONDS / 2) for _ in range(20))
    assert fail(health, faults.UPSTREAM_FAILED, ALIVE_SECONDS / 2, "b"), "two organizations cannot both be wrong"
    alone = Health()
    alone.begin_answer(CHAT, 0.0)
    assert not any(fail(alone, faults.UPSTREAM_FAILED, ALIVE_SECONDS / 2) for _ in range(20))
    assert fail(alone, faults.UPSTREAM_FAILED, ALIVE_SECONDS), "nobody was answered any more"
    cutting = Health()
    cutting.begin_answer(CHAT, 0.0)
    assert [fail(cutting, faults.UPSTREAM_CUT, 0.0, has_begun=True) for _ in range(3)] == [False, False, True]


def test_upstream_that_answers_nobody_is_avoided_once_others_answer_what_it_refused() -> None:
    health = Health()
    health.succeed(CHAT, 0.0)
    assert not any(health.refuse(faults.UPSTREAM_REFUSED, 0.1, 0.2) for _ in range(20)), "it may be full for a moment"
    health.begin_answer(CHAT, 0.3)
    assert not any(health.refuse(faults.UPSTREAM_REFUSED, 0.2, 9.0) for _ in range(20)), "it has answered since"
    assert [health.refuse(faults.UPSTREAM_REFUSED, 9.0, 9.0) for _ in range(3)] == [False, False, True]
    assert health.reliability(CHAT, 9.0) is Reliability.DOUBTFUL
    now = 9.0 + EJECTION_SECONDS
    health.begin_trial(CHAT, now)
    assert health.refuse(faults.UPSTREAM_REFUSED, now, now) and not health.allows(CHAT, now + 1.5 * EJECTION_SECONDS), (
        "the trial was refused, too"
    )
    health.begin_trial(CHAT, now + 2 * EJECTION_SECONDS)
    health.begin_answer(CHAT, 11.0)
    assert health.allows(CHAT, 11.0)


def test_ejection_is_listed_with_its_reason_from_its_begin_until_an_answer() -> None:
    health = ejected()
    assert health.list_ejections() == [(None, "upstream_unreachable", 0.0, EJECTION_SECONDS)]
    health.begin_trial(CHAT, EJECTION_SECONDS)
    assert fail(health, faults.UPSTREAM_CONNECT, 0.6)
    ((_, _, since, until),) = health.list_ejections()
    assert since == 0.0 and until > 0.6, "the trial failed: it has lasted all the time"
    health.begin_answer(CHAT, 2.0)
    assert health.list_ejections() == []
    assert fail(health, faults.UPSTREAM_MISCONFIGURED, 3.0)
    assert [each[:3] for each in health.list_ejections()] == [(CHAT, faults.UPSTREAM_MISCONFIGURED.code, 3.0)]


def test_one_request_tries_an_ejected_upstream_and_its_answer_restores_it() -> None:
    health = ejected()
    health.begin_trial(CHAT, EJECTION_SECONDS)
    assert not health.allows(CHAT, EJECTION_SECONDS + 0.1), "all others go elsewhere until the trial is decided"
    health.begin_answer(CHAT, EJECTION_SECONDS + 0.2)
    assert health.allows(CHAT, EJECTION_SECONDS + 0.2)
    health.succeed(CHAT, EJECTION_SECONDS + 1.0)
    assert fail(health, faults.UPSTREAM_CONNECT, 100.0) and health.allows(CHAT, 100.0 + EJECTION_SECONDS), "forgotten"


@pytest.mark.parametrize(
    ("kind", "longest"),
    [(faults.UPSTREAM_CONNECT, EJECTION_SECONDS_MAX), (faults.UPSTREAM_FAILED, EJECTION_SECONDS_MAX), (faults.UPSTREAM_TIMEOUT_FIRST, 8.0)],
)
def test_each_failed_trial_doubles_the_time_to_its_bound(kind: faults.FaultKind, longest: float) -> None:
    health, now, lengths = Health(), 0.0, []
    for _ in range(3):
        fail(health, kind, now)
    for _ in range(8):
        length = next(step * 0.25 for step in range(1, 100) if health.allows(CHAT, now + step * 0.25))
        lengths.append(length)
        now += length
        health.begin_trial(CHAT, now)
        fail(health, kind, now)
    assert lengths == [min(each, longest) for each in (0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0)]
    assert EJECTION_SECONDS_MAX < 2.0, "an engine that answers again is used within two seconds"


def test_requests_sent_before_an_ejection_do_not_prolong_it() -> None:
    health = ejected()
    assert not any(fail(health, faults.UPSTREAM_CONNECT, 0.1) for _ in range(50))
    assert health.allows(CHAT, EJECTION_SECONDS)


def test_trial_that_is_never_decided_is_followed_by_another() -> None:
    health = ejected()
    health.begin_trial(CHAT, EJECTION_SECONDS)
    assert health.allows(CHAT, 2 * EJECTION_SECONDS)


def test_misconfigured_endpoint_is_avoided_alone_and_for_long() -> None:
    health = ejected(faults.UPSTREAM_MISCONFIGURED)
    assert not health.allows(CHAT, MISCONFIGURED_SECONDS - 1) and health.allows(MESSAGES, 0.0)
    now = 0.0
    for _ in range(10):
        now += MISCONFIGURED_SECONDS_MAX
        health.begin_trial(CHAT, now)
        assert fail(health, faults.UPSTREAM_MISCONFIGURED, now)
    assert not health.allows(CHAT, now + MISCONFIGURED_SECONDS_MAX - 1) and health.allows(CHAT, now + MISCONFIGURED_SECONDS_MAX)
    health.succeed(MESSAGES, now)
    assert not health.allows(CHAT, now)
    health.succeed(CHAT, now)
    assert health.allows(CHAT, now)


# Through sockets


@pytest.mark.parametrize("status", [404, 401, 405, 501])
async def test_deployment_that_cannot_serve_fails_no_request_beside_a_good_one(status: int) -> None:
    broken: Script = [whole({"error": {"message": "The model `m` does not exist.", "code": status}}, status)]
    bad, good = Upstream(lambda asked: broken if b"chat" in asked.head else [whole(completion())]), Upstream([whole(completion("good"))])
    async with bad.listening(), good.listening(), gateway({"m": Served([bad.url, good.url])}) as running:
        for _ in range(100):
            assert (await post(running.port, chat())).status == 200
        assert len(bad.asked) == 1, "avoided from the first answer on"
        assert (await post(running.port, {"model": "m", "input": "x"}, EMBEDDINGS)).status == 200
        assert len(bad.asked) == 2, "its other endpoints are used"
        assert running.plane.metrics.ejections == {("dep-m-0", "misconfigured"): 1}
        assert b'tollway_upstream_ejections_total{deployment="dep-m-0",reason="misconfigured"} 1.0' in running.plane.metrics.render()
        log = running.log
    lines = [msgspec.json.decode(line) for line in log.text.splitlines()]
    (alarm,) = [line for line in lines if line["event"] == "upstream_misconfigured"]
    assert (alarm["level"], alarm["upstream"]) == ("error", "dep-m-0") and str(status) in alarm["detail"]


async def test_only_deployment_that_cannot_serve_gives_no_hint_to_come_back() -> None:
    upstream = Upstream([whole({"detail": "Not Found"}, 404)])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        for _ in range(3):
            answer = await post(running.port, chat())
            assert (answer.status, error_code(answer)) == (502, "upstream_error") and "retry-after" not in answer.headers
    assert len(upstream.asked) == 3


POISON: dict[str, Script] = {"500": [whole({"message": "decode failed"}, 500)], "death": [Do.RST], "nonsense": [whole(b"<html>")]}


@pytest.mark.parametrize("case", POISON)
async def test_67_fault_that_a_request_causes_everywhere_ejects_nobody(case: str) -> None:
    def script(name: str) -> "Upstream":
        return Upstream(lambda asked: POISON[case] if b"poison" in asked.body else [whole(completion(name))])

    first, second = script("first"), script("second")
    async with first.listening(), second.listening(), gateway({"m": Served([first.url, second.url])}) as running:
        for _ in range(8):
            assert (await post(running.port, chat(messages=[{"role": "user", "content": "poison"}]))).status == 502
        answers = [(await post(running.port, chat())).body for _ in range(8)]
        assert all(b"first" in answer for answer in answers), "no neighbour left the tier"
        assert running.plane.metrics.ejections == {}


async def test_67_pictures_to_a_model_without_eyes_leave_the_engine_in_place() -> None:
    body = {"error": {"code": 500, "message": "image input is not supported - hint: provide the mmproj", "type": "server_error"}}
    first = Upstream(lambda asked: [whole(body, 500)] if b"image_url" in asked.body else [whole(completion("first"))])
    second = Upstream([whole(completion("second"))])
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]}
    async with first.listening(), second.listening(), gateway({"m": Served([first.url, second.url], engine=Engine.LLAMACPP)}) as running:
        for _ in range(6):
            answer = await post(running.port, chat(messages=[picture]))
            assert answer.status == 400 and "image input is not supported" in answer.error["message"]
        assert b"first" in (await post(running.port, chat())).body
    assert not second.asked


async def test_engine_that_came_back_is_used_again_soon() -> None:
    second = Upstream(SECOND)
    first = Upstream(healthy("first"))
    async with first.listening():
        url = first.url
    async with second.listening(), gateway({"m": Served([url, second.url])}) as running:
        for _ in range(30):
            assert (await post(running.port, streamed())).text == "second"
        assert running.plane.metrics.ejections[("dep-m-0", "upstream_unreachable")] < 30
        back = Upstream(healthy("first"))
        server = await asyncio.start_server(back._serve, "127.0.0.1", int(url.rpartition(":")[2]))
        try:
            (upstream,) = [each for each in running.plane.upstreams.of("m") if each.deployment.tier == 0]
            ejection = upstream.health._ejections[None]
            ejection.until = 1e-9  # its time is over
            assert (await post(running.port, streamed())).text == "first"
            assert (await post(running.port, streamed())).text == "first"
        finally:
            server.close()
            for task in list(back._tasks):
                task.cancel()
            await asyncio.gather(*back._tasks, return_exceptions=True)
