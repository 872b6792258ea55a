"""Quotes: what a request would cost and what would refuse it, with nothing counted, held or sent."""

from typing import Any

import msgspec
import pytest

from tests.fakes import Upstream
from tests.gateway.harness import PROJECT, connect, gateway, message
from tests.gateway.harness import chat as chat_body
from tests.gateway.test_budgets import BUDGET, INPUT_PRICE, OUTPUT_PRICE, bind, held, least, most
from tollway.domain.limits import Limits
from tollway.domain.money import format_amount

QUOTE = "/v1/quote/chat/completions"


async def ask(port: int, body: Any, path: str = QUOTE, **headers: str) -> tuple[int, dict[str, Any]]:
    async with connect(port) as client:
        client.send(message(body, path, **headers))
        answer = await client.answer()
        return answer.status, answer.json()


async def test_quote_of_a_request_says_what_it_costs_at_most_and_is_expected_to() -> None:
    body = chat_body(max_tokens=50)
    async with gateway({}) as running:
        status, quote = await ask(running.port, body)
        _, by_default = await ask(running.port, body, "/v1/quote")
    assert status == 200
    assert by_default["cost"] == quote["cost"]
    assert (quote["endpoint"], quote["model"], quote["currency"]) == ("chat/completions", "m", "eur")
    assert quote["output_tokens"] == {"expected": 50, "most": 50, "allowed": 50}
    assert quote["cost"]["most"] == format_amount(most(body, 50))
    expected = quote["input_tokens"]["expected"] * INPUT_PRICE + 50 * OUTPUT_PRICE
    assert quote["cost"]["expected"] == format_amount(expected)
    assert (quote["is_admitted"], quote["refusals"]) == (True, [])


async def test_quote_changes_nothing_and_reaches_no_engine() -> None:
    upstream = Upstream([])
    async with upstream.listening(), gateway({}, limits=Limits(requests_per_minute=1)) as running:
        bind(running, 10**9)
        for _ in range(3):
            _, quote = await ask(running.port, chat_body(max_tokens=50))
            assert quote["is_admitted"], "a quote uses up no limit"
        assert held(running.plane) == (0, 0)
    assert upstream.asked == []


async def test_quote_names_the_budget_that_would_refuse_the_request() -> None:
    body = chat_body(max_tokens=1000)
    async with gateway({}) as running:
        bind(running, least(body, 15))
        status, quote = await ask(running.port, body)
        assert held(running.plane) == (0, 0)
    assert (status, quote["is_admitted"], quote["output_tokens"]["allowed"]) == (200, False, None)
    (refusal,) = quote["refusals"]
    assert refusal["code"] == "insufficient_quota"
    assert BUDGET in refusal["message"] and PROJECT in refusal["message"]


async def test_quote_shows_the_output_to_which_a_budget_lowers_the_request() -> None:
    body = chat_body(max_tokens=1000)
    async with gateway({}) as running:
        bind(running, least(body, 100))
        _, quote = await ask(running.port, body)
    assert quote["output_tokens"] == {"expected": 512, "most": 1000, "allowed": 100}
    assert quote["is_admitted"] is True


async def test_quote_names_the_limit_that_would_refuse_the_request() -> None:
    async with gateway({}, limits=Limits(output_tokens_per_minute=40)) as running:
        _, quote = await ask(running.port, chat_body(max_tokens=50))
    (refusal,) = quote["refusals"]
    assert (refusal["dimension"], refusal["remaining"], refusal["needed"]) == ("output_tokens_per_minute", 40, 50)


async def test_quote_of_a_request_above_its_own_bound_on_the_cost_says_so() -> None:
    async with gateway({}) as running:
        status, quote = await ask(running.port, chat_body(max_tokens=50), x_max_cost="0.000000000001")
    assert (status, [each["code"] for each in quote["refusals"]]) == (200, ["max_cost_exceeded"])


@pytest.mark.parametrize(
    ("body", "path", "headers", "status"),
    [
        (chat_body("nothing"), QUOTE, {}, 404),
        (chat_body(max_tokens="many"), QUOTE, {}, 400),
        (chat_body(), "/v1/quote/models", {}, 404),
        (chat_body(user="x" * 70_000), QUOTE, {}, 413),
        (chat_body(), QUOTE, {"content_type": "text/plain"}, 415),
        (chat_body(), QUOTE, {"authorization": "Bearer wrong"}, 401),
        (chat_body(), QUOTE, {"x_max_cost": "-1"}, 400),
    ],
)
async def test_quote_of_a_request_that_would_be_refused_in_itself_answers_as_that_request(
    body: Any, path: str, headers: dict[str, str], status: int
) -> None:
    async with gateway({}) as running:
        found, answer = await ask(running.port, msgspec.json.encode(body), path, **headers)
    assert found == status, answer
