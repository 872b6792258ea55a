"""Debian's Chromium, driven by playwright, and pages in it of which nothing may be complained."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Page, Request, sync_playwright


@contextmanager
def launched() -> Iterator[Chromium]:
    """The browser. Skips the test where there is none."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no Chromium (Debian: apt-get install chromium)")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@contextmanager
def watched(chromium: Chromium, streamed: str | None = None, **options: Any) -> Iterator[Page]:
    """A page of a context of its own. Whatever the browser complains of fails the test: violations of the policy of a page, errors and
    warnings of its console, requests that failed or were refused. `streamed`: the end of the address of an answer that a script reads while
    it comes; Chromium calls it aborted at times although the script has read it to its end, which is for the test to see."""
    context = chromium.new_context(**options)
    page, complaints = context.new_page(), list[str]()
    page.set_default_timeout(60_000)
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))

    def note_failure(request: Request) -> None:
        if not (streamed and request.url.endswith(streamed) and request.failure == "net::ERR_ABORTED"):
            complaints.append(f"{request.url} failed: {request.failure}")

    page.on("requestfailed", note_failure)
    page.on("response", lambda answer: complaints.append(f"{answer.url}: {answer.status}") if answer.status >= 400 else None)
    yield page
    page.wait_for_load_state()  # a file that still comes while the page is closed would have failed
    context.close()
    assert not complaints, complaints
