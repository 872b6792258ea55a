"""Fallback models: another model serves while the one that was asked for cannot; billed once, by its own prices."""

import json
from pathlib import Path

import msgspec
import pytest

from tests.fakes import Do, Script, Upstream, until
from tests.gateway.harness import (
    NARROW_KEY,
    NOWHERE,
    ORGANIZATION,
    PROJECT,
    STREAM_HEAD,
    Served,
    chat,
    chunk,
    completion,
    connect,
    gateway,
    healthy,
    message,
    part,
    post,
    whole,
)
from tests.gateway.test_admin_listener import ask, request
from tests.gateway.test_idempotency import open_store
from tollway.domain.proofs import hash_price
from tollway.domain.snapshot import Change, ProjectEntry, change
from tollway.domain.usage import Outcome

BUSY: Script = [whole({"error": {"message": "busy", "code": 503}}, 503)]
BROKEN: Script = [Do.FIN]


@pytest.mark.parametrize("stream", [False, True])
async def test_fallback_serves_while_the_model_cannot_and_is_billed_once_by_its_own_prices(stream: bool) -> None:
    failing, serving = Upstream(BUSY), Upstream(healthy("b") if stream else [whole(completion("b", model="b"))])
    async with failing.listening(), serving.listening():
        models = {"m": Served([failing.url], fallbacks=("b",)), "b": Served([serving.url], input_price=7)}
        async with gateway(models) as running:
            answer = await post(running.port, chat(stream=stream, temperature=0.5))
            assert (answer.status, answer.headers["x-tollway-model"]) == (200, "b")
            assert stream or answer.json()["model"] == "b"
            asked = msgspec.json.decode(serving.asked[0].body)
            assert (asked["model"], asked["temperature"], asked["messages"]) == ("b", 0.5, chat()["messages"])
            failed, served = running.sink.finals
            assert (failed.admit.model, failed.outcome, failed.used.output) == ("m", Outcome.UPSTREAM_ERROR, 0)
            assert (served.admit.model, served.outcome) == ("b", Outcome.COMPLETED) and served.used.output > 0
            price = running.plane.directory.list_models()[0].prices[0]
            assert price.unit_prices.input == 7 and served.admit.price_hash == hash_price(price, 0) != failed.admit.price_hash
            assert answer.headers["x-request-id"] == served.admit.request_id != failed.admit.request_id
            assert running.plane.metrics.fallbacks == {"b": 1}
            log = running.log
    lines = [json.loads(line) for line in log.text.splitlines()]
    assert [(line["model"], line["status"]) for line in lines if line["event"] == "request"] == [("m", 503), ("b", 200)]
    assert len({line["trace_id"] for line in lines if line["event"] == "request"}) == 1


async def test_fallbacks_are_tried_in_their_order_and_those_of_a_fallback_are_not() -> None:
    failing, last = Upstream(BUSY), Upstream(healthy("last"))
    async with failing.listening(), last.listening():
        models = {
            "m": Served([failing.url], fallbacks=("a", "b")),
            "a": Served([failing.url], fallbacks=("c", "m")),
            "b": Served([last.url]),
            "c": Served([last.url]),
        }
        async with gateway(models) as running:
            answer = await post(running.port, chat(stream=True))
            assert (answer.text, answer.headers["x-tollway-model"]) == ("last", "b")
            assert [msgspec.json.decode(each.body)["model"] for each in failing.asked] == ["m", "a"]


async def test_client_is_told_the_fault_of_its_own_model_when_every_fallback_fails() -> None:
    refusing, broken = Upstream(BUSY), Upstream(BROKEN)
    async with refusing.listening(), broken.listening():
        models = {"m": Served([refusing.url], fallbacks=("b", "unknown")), "b": Served([broken.url])}
        async with gateway(models) as running:
            answer = await post(running.port, chat())
            assert (answer.status, answer.error["code"]) == (503, "upstream_error")
            assert [final.admit.model for final in running.sink.finals] == ["m", "b"]


async def test_fallback_whose_engine_began_a_request_that_must_not_be_repeated_is_the_last() -> None:
    refusing, broken, serving = Upstream(BUSY), Upstream(BROKEN), Upstream(healthy("c"))
    async with refusing.listening(), broken.listening(), serving.listening():
        models = {
            "m": Served([refusing.url], fallbacks=("b", "c")),
            "b": Served([broken.url], retry_started=False),
            "c": Served([serving.url]),
        }
        async with gateway(models) as running:
            answer = await post(running.port, chat())
            assert (answer.status, answer.error["code"]) == (503, "upstream_error")
            assert [final.admit.model for final in running.sink.finals] == ["m", "b"] and not serving.asked


async def test_fallback_whose_engine_refuses_the_request_is_passed_over() -> None:
    strict: Script = [whole({"error": {"message": "no", "code": 400}}, 400)]
    busy, refusing, serving = Upstream(BUSY), Upstream(strict), Upstream([whole(completion("c"))])
    async with busy.listening(), refusing.listening(), serving.listening():
        models = {"m": Served([busy.url], fallbacks=("b", "c")), "b": Served([refusing.url]), "c": Served([serving.url])}
        async with gateway(models) as running:
            assert (await post(running.port, chat())).headers["x-tollway-model"] == "c"


async def test_104_fallback_that_the_key_or_the_residency_does_not_allow_is_never_asked() -> None:
    failing, forbidden = Upstream(BUSY), Upstream(healthy("forbidden"))
    async with failing.listening(), forbidden.listening():
        models = {
            "other": Served([failing.url], fallbacks=("b",), regions=["eu"]),
            "b": Served([forbidden.url], regions=["us"]),
        }
        async with gateway(models) as running:
            refused = await post(running.port, chat("other"), authorization=f"Bearer {NARROW_KEY}")
            assert (refused.status, len(failing.asked)) == (503, 1)
            plane = running.plane
            plane.apply(change(plane.version + 1, ProjectEntry(id=PROJECT, organization_id=ORGANIZATION, residency=("eu",))))
            assert (await post(running.port, chat("other"))).status == 503
            assert len(failing.asked) == 2 and not forbidden.asked


async def test_41_key_that_is_revoked_before_the_fallback_is_not_served_by_it() -> None:
    held, serving = Upstream([Do.GATE, *BUSY]), Upstream(healthy("b"))
    async with held.listening(), serving.listening():
        models = {"m": Served([held.url], fallbacks=("b",)), "b": Served([serving.url])}
        async with gateway(models) as running:
            plane = running.plane
            async with connect(running.port) as client:
                client.send(message(chat()))
                await until(lambda: len(held.asked) == 1)
                plane.apply(Change(version=plane.version + 1, kind="key", id=f"key_{0:032x}", entry=None))
                held.gate.set()
                assert (await client.answer()).status >= 400
            assert not serving.asked


async def test_request_that_is_at_fault_itself_falls_back_to_nothing() -> None:
    strict: Script = [whole({"error": {"message": "no", "code": 400}}, 400)]
    refusing, serving = Upstream(strict), Upstream(healthy("b"))
    async with refusing.listening(), serving.listening():
        models = {"m": Served([refusing.url], fallbacks=("b",)), "b": Served([serving.url])}
        async with gateway(models) as running:
            assert (await post(running.port, chat())).status == 400
            assert (await post(running.port, chat(nonsense=1))).status == 400
            assert not serving.asked


async def test_stream_that_began_is_not_continued_by_a_fallback() -> None:
    cut: Script = [STREAM_HEAD, part(chunk("begun")), Do.FIN]
    breaking, serving = Upstream(cut), Upstream(healthy("b"))
    async with breaking.listening(), serving.listening():
        models = {"m": Served([breaking.url], fallbacks=("b",)), "b": Served([serving.url])}
        async with gateway(models) as running:
            answer = await post(running.port, chat(stream=True))
            assert b"begun" in answer.body and b"upstream_cut" in answer.body
            assert not serving.asked


async def test_repeated_request_with_an_idempotency_key_gets_the_answer_of_the_fallback_again(tmp_path: Path) -> None:
    failing, serving = Upstream(BUSY), Upstream([whole(completion("b"))])
    async with failing.listening(), serving.listening():
        models = {"m": Served([failing.url], fallbacks=("b",)), "b": Served([serving.url])}
        async with gateway(models) as running:
            running.plane.answer_store = open_store(tmp_path, running)
            first = await post(running.port, chat(), idempotency_key="k")
            again = await post(running.port, chat(), idempotency_key="k")
            assert first.status == again.status == 200 and first.body == again.body
            assert again.headers["idempotent-replayed"] == "true"
            assert len(serving.asked) == 1 and len(failing.asked) == 1


async def test_large_body_is_sent_to_the_fallback_whole_and_its_key_finds_the_answer_again(tmp_path: Path) -> None:
    failing, serving = Upstream(BUSY), Upstream([whole(completion("b"))])
    body = chat(messages=[{"role": "user", "content": "long " * 40_000}])
    async with failing.listening(), serving.listening():
        models = {"m": Served([failing.url], fallbacks=("b",)), "b": Served([serving.url])}
        async with gateway(models) as running:
            running.plane.answer_store = open_store(tmp_path, running)
            for _ in range(2):
                assert (await post(running.port, body, idempotency_key="k")).status == 200
            (asked,) = serving.asked
            sent = msgspec.json.decode(asked.body)
            assert (sent["model"], sent["messages"]) == ("b", body["messages"])


async def test_explanation_names_the_fallbacks_of_a_model() -> None:
    async with gateway({"m": Served([NOWHERE], fallbacks=("b", "c"))}) as running:
        _, _, body = await ask(running, request("GET", "/route?model=m"))
        assert msgspec.json.decode(body)["fallbacks"] == ["b", "c"]
