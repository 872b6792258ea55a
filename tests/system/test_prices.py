"""Prices from the operator's command to the tenant's receipt, with real processes and the official client."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx2
import openai
import pytest
from openai import OpenAI

from reliability.bill_checks import Bill
from reliability.platforms import PRICES, Platform, serve
from reliability.processes import WAIT_SECONDS, Running, Start, tollway
from tests.system.test_paid_request import QUESTION, wait_for_receipt

pytestmark = pytest.mark.system

STANDARD = {"input": "1.000003", "cached_input": "0.300001", "output": "3.333333", "reasoning": "3.333333", "request": "0.000000000007"}
FLEX = {"input": "0.500001", "cached_input": "0.1", "output": "1.666667", "reasoning": "1.666667", "request": "0"}
DISCOUNT = Decimal("0.125")

FILE = f"echo: {json.dumps({**STANDARD, 'tiers': {'flex': FLEX}})}"


@dataclass(frozen=True)
class Partner:
    """An organization that pays by a book of its own making at a discount of 12.5 %, while others pay by the default book."""

    platform: Platform
    running: Running
    admin_key: str
    client: OpenAI

    def receipt(self, request_id: str | None) -> Bill:
        return wait_for_receipt(self.platform.control_url, self.admin_key, request_id)

    def ask(self, **fields: Any) -> Bill:
        raw = self.client.chat.completions.with_raw_response.create(
            model="echo", messages=[{"role": "user", "content": QUESTION}], **fields
        )
        return self.receipt(raw.headers.get("x-request-id"))


def do(running: Running, *arguments: str, code: int = 0) -> str:
    ran = tollway(*arguments, "--data-dir", str(running.directory))
    assert ran.returncode == code, (ran.stdout, ran.stderr)
    return ran.stdout.strip()


@pytest.fixture(scope="module")
def partner(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Partner]:
    scratch = tmp_path_factory.mktemp("partner")
    with serve(start, scratch) as (platform, running):
        book = do(running, "prices", "create", "partners", "--currency", "EUR")
        made = json.loads(do(running, "organizations", "create", "partner", "--currency", "EUR", "-o", "json"))
        do(running, "prices", "terms", "partner", "--book", book, "--discount", "12.5%")
        do(running, "projects", "create", "bridge", "--organization", "partner")
        key = do(running, "keys", "create", "--organization", "partner")
        (scratch / "prices.yaml").write_text(FILE)
        draft = do(running, "prices", "draft", "partners", "-f", str(scratch / "prices.yaml"))
        do(running, "prices", "check", draft)
        assert do(running, "prices", "publish", draft).startswith("2 prices, valid from ")
        with OpenAI(base_url=f"{platform.gateway_url}/v1", api_key=key, max_retries=0) as client:
            running.wait_until(lambda: _models(client) == ["echo"])
            yield Partner(platform, running, made["admin_api_key"]["value"], client)


def _models(client: OpenAI) -> list[str]:
    try:
        return [model.id for model in client.models.list()]
    except openai.AuthenticationError:
        return []


def unit(price: str, decimals: int) -> int:
    """Pico per unit of a price per million tokens (6 decimals) or per request (12), at the discount: reckoned in decimals."""
    return int((Decimal(price).scaleb(decimals) * (1 - DISCOUNT)).quantize(Decimal(1), ROUND_HALF_EVEN))


def lines(bill: Bill, prices: Mapping[str, str]) -> dict[str, tuple[int, int, int]]:
    """Return what the receipt must say, line by line."""
    quantities = {**bill.used, "request": 1}
    units = {name: unit(price, 12 if name == "request" else 6) for name, price in prices.items()}
    return {name: (count, units[name], count * units[name]) for name, count in quantities.items() if count and units[name]}


class TestAnOrganizationOnADiscount:
    def test_is_billed_at_its_own_prices_exactly(self, partner: Partner) -> None:
        bill = partner.ask()
        assert bill.used["output"] > 0
        assert dict(bill.lines) == lines(bill, STANDARD)

    @pytest.mark.parametrize("stream", [False, True])
    def test_pays_for_flex_what_flex_costs(self, partner: Partner, stream: bool) -> None:
        messages: Any = [{"role": "user", "content": QUESTION}]
        raw = partner.client.chat.completions.with_raw_response.create(model="echo", messages=messages, stream=stream, service_tier="flex")
        if stream:
            assert len(list(raw.parse())) > 1
        bill = partner.receipt(raw.headers.get("x-request-id"))
        assert dict(bill.lines) == lines(bill, FLEX)

    def test_is_shown_what_it_pays_and_nothing_else(self, partner: Partner) -> None:
        with httpx2.Client(base_url=partner.platform.control_url, timeout=WAIT_SECONDS, trust_env=False) as http:
            answer = http.get("/v1/organization/prices", headers={"authorization": f"Bearer {partner.admin_key}"})
        found = {(each["model"], each["service_tier"]): each["input"] for each in answer.json()["data"]}
        assert found == {("echo", "standard"): "0.875003", ("echo", "flex"): "0.437501"}

    def test_finds_closed_what_its_list_has_no_price_for(self, partner: Partner) -> None:
        with pytest.raises(openai.NotFoundError) as closed:
            partner.client.chat.completions.create(model="thinker", messages=[{"role": "user", "content": "x"}])
        assert closed.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as refused:
            partner.ask(service_tier="priority")
        assert refused.value.param == "service_tier"


def test_an_organization_without_terms_pays_by_the_default_book(partner: Partner) -> None:
    platform = partner.platform
    with OpenAI(base_url=f"{platform.gateway_url}/v1", api_key=platform.tenant.api_key, max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(model="echo", messages=[{"role": "user", "content": QUESTION}])
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "x"}], service_tier="flex")
    bill = wait_for_receipt(platform.control_url, platform.tenant.admin_key, raw.headers.get("x-request-id"))
    assert bill.lines["output"][1] == int(Decimal(PRICES["echo"]["output"]).scaleb(6))
    assert refused.value.param == "service_tier"


def test_a_preview_shows_who_would_pay_more(partner: Partner, tmp_path: Path) -> None:
    billed = partner.ask()
    running = partner.running
    (tmp_path / "dearer.yaml").write_text("echo: {input: '2', output: '6.5'}")
    draft = do(running, "prices", "draft", "partners", "-f", str(tmp_path / "dearer.yaml"))
    span = ("--since", "2026-01-01", "--until", "4000000000")
    found = json.loads(do(running, "prices", "preview", draft, *span, "-o", "json", "--svg", str(tmp_path / "bills.svg")))
    (row,) = found["organizations"]
    assert (row["organization"], row["discount_bp"], row["unpriced_events"]) == ("partner", 1_250, 0)
    assert row["events"] > 1 and int(row["current_pico"]) > billed.amount_pico
    assert int(row["difference_pico"]) == int(row["draft_pico"]) - int(row["current_pico"]) > 0
    picture = ElementTree.parse(tmp_path / "bills.svg").getroot()
    assert picture.tag.endswith("svg") and "partner" in "".join(picture.itertext())
    table = do(running, "prices", "preview", draft, *span)
    (line,) = [line for line in table.splitlines() if line.startswith("partner")]
    assert line.endswith("|" + "+" * 20) and "\x1b" not in table
    everybody = json.loads(do(running, "prices", "preview", draft, *span, "--all-organizations", "-o", "json"))
    assert {each["organization"] for each in everybody["organizations"]} == {"partner", "acme"}
    do(running, "prices", "discard", draft)


def test_the_file_of_a_platform_holds_books_tiers_and_terms(partner: Partner, tmp_path: Path) -> None:
    running, path = partner.running, tmp_path / "platform.yaml"
    do(running, "models", "archive", "flaky")  # two deployments at one address, which a file cannot distinguish
    do(running, "export", "-f", str(path))
    assert do(running, "apply", "-f", str(path)) == "nothing to change"
    text = path.read_text()
    assert "discount: 12.5%" in text and "partners" in text
    path.write_text(
        "price_books:\n"
        "  partners:\n"
        "    currency: EUR\n"
        "    prices:\n"
        "      echo: {input: '1.000003', cached_input: '0.300001', output: '3.3', tiers: {batch: {input: '0.4', output: '1.5'}}}\n"
        "  theirs: {currency: EUR, organization: partner}\n"
        "organizations:\n"
        "  partner: {currency: EUR, terms: {book: partners, discount: 10%}}\n"
    )
    planned = do(running, "apply", "-f", str(path), "--dry-run", code=3).splitlines()
    assert [line for line in planned if not line.startswith(" ")] == [
        "~ book price partners / echo",
        "+ book price partners / echo / batch",
        "+ price book theirs",
        "~ terms partner",
        "4 changes (nothing was done)",
    ]
    do(running, "apply", "-f", str(path))
    assert do(running, "apply", "-f", str(path)) == "nothing to change"


def test_everything_can_be_proven_afterwards(partner: Partner) -> None:
    """Last: it stops the platform."""
    assert partner.running.stop() == 0
    assert do(partner.running, "verify").endswith("everything agrees")
