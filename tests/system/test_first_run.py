"""The first run in a browser: from an empty `tollway serve` to a request and its cost, by the pages of the console alone."""

import time
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Page

from reliability.platforms import FREE, engine
from reliability.processes import WAIT_SECONDS, Start
from tests.control.console.chromium import launched, watched
from tollway.serve import data_directory

pytestmark = pytest.mark.system


def fill_in(page: Page, action: str, **fields: str) -> None:
    """Fill in and send the form with an action, and wait for the page that answers."""
    form = page.locator(f"form[action$='{action}']")
    if not form.is_visible():
        page.locator(f"details:has(form[action$='{action}']) > summary").click()
    for name, value in fields.items():
        field = form.locator(f"[name={name}]")
        if field.evaluate("each => each.tagName") == "SELECT":
            field.select_option(value)
        else:
            field.fill(value)
    with page.expect_navigation():  # the next form is looked for on the page that answers, not on this one
        form.locator("button").click()


def test_operator_comes_from_an_empty_platform_to_the_cost_of_a_request(start: Start, tmp_path: Path) -> None:
    with engine(tmp_path / "engine") as (_, engine_url), launched() as chromium:
        running = start("serve", *FREE, "--console-listen", "127.0.0.1:0", directory=tmp_path / "data")
        urls = running.wait_for_file("addresses.json")
        key = data_directory.read_secrets(tmp_path / "data", {}).platform_key
        with watched(chromium, streamed="/playground") as page:
            began = time.monotonic()
            made = httpx2.post(
                f"{urls['control_url']}/v1/platform/operator_sign_in_links",
                headers={"authorization": f"Bearer {key}"},
                timeout=WAIT_SECONDS,
            )
            link = made.json()["url"]
            assert link.startswith(f"{urls['console_url']}/") and urls["console_url"] != urls["control_url"]
            page.goto(link)
            with page.expect_navigation():
                page.locator("button").click()
            page.get_by_role("heading", name="First steps").wait_for()
            fill_in(page, "/start/engine", base_url=engine_url, engine="sim")
            fill_in(page, "/start/deployment", upstream_model="sim-echo", model="first-model")
            fill_in(page, "/start/price", model="first-model", currency="EUR", input="1000", output="2000")
            fill_in(page, "/start/organization", name="Acme", currency="EUR", time_zone="UTC", project="first", key="first")
            with page.expect_navigation():  # with its script: a form that is sent before would leave the file of it aborted
                page.locator("main a[href*='/playground']").click()
            page.locator("[name=user]").fill("What is a toll road?")
            page.locator("[name=output_tokens]").fill("8")
            page.locator("form[action$='/playground'] button").click()
            page.locator("#result dt", has_text="Cost").wait_for()
            page.locator("form[action$='/playground'] button:enabled").wait_for()  # the figures come before the end of the answer
            took = time.monotonic() - began
            figures = page.locator("#result dl").inner_text()
            assert "EUR" in figures and page.locator("#result pre").inner_text() != ""
            page.locator("#result a").click()
            page.get_by_role("heading", name="Receipt").wait_for()
            assert "first-model" in page.locator("main").inner_text()
        print(f"from the sign-in to the cost of the first request: {took:.1f} s")  # `pytest -s` shows it
        logs = b"".join(each.read_bytes() for each in (tmp_path / "data" / "logs").glob("*.log"))
        assert b"What is a toll road?" not in logs and link.rpartition("=")[2].encode() not in logs
