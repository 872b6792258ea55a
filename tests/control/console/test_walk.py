"""A real browser walks every page of the console as each role: nothing violates the policy of the pages, nothing is written to its console,
no request fails, and axe finds no serious barrier, in each theme and language."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Page

from tests.control.browsing import Browser
from tests.control.console.pages import PLATFORM_PAGES, TENANT_PAGES, fill_in, fill_in_platform
from tests.control.harness import Running, TenantSetup

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text()

LOOKS = ("en.light", "de.dark")
"""Each language and each theme once: colours do not depend on the language."""

SERIOUS = """async () => (await axe.run(document, {resultTypes: ["violations"]})).violations
    .filter(each => ["serious", "critical"].includes(each.impact))
    .map(each => each.id + ": " + each.nodes.map(node => node.html).join(" "))"""


@contextmanager
def opened(chromium: Chromium, control: Running, viewer: Browser, look: str = LOOKS[0], **options: Any) -> Iterator[Page]:
    """A page of a browser that has the session of a viewer. Whatever it complains of fails the test."""
    context = chromium.new_context(**options)
    cookies = {"tollway_session": viewer.secret, "tollway_look": look}
    context.add_cookies([{"name": name, "value": value, "url": control.url} for name, value in cookies.items()])
    page, complaints = context.new_page(), list[str]()
    page.set_default_timeout(60_000)
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"{request.url} failed"))
    page.on("response", lambda answer: complaints.append(f"{answer.url}: {answer.status}") if answer.status >= 400 else None)
    yield page
    context.close()
    assert complaints == []


def test_166_every_page_is_without_barriers_complaints_and_foreign_scripts(
    chromium: Chromium, control: Running, owner: Browser, operator: Browser, used: TenantSetup, known: dict[str, str]
) -> None:
    pages = [(owner, fill_in(path, used, known)) for path in TENANT_PAGES]
    pages += [(operator, fill_in_platform(path, control, used)) for path in PLATFORM_PAGES]
    for look in LOOKS:
        for viewer in (owner, operator):
            with opened(chromium, control, viewer, look) as page:
                for path in (path for who, path in pages if who is viewer):
                    page.goto(control.url + path)
                    page.evaluate(AXE)
                    assert page.evaluate(SERIOUS) == [], (look, path)
                    assert page.evaluate("document.querySelectorAll('main script, main img').length") == 0, path


def test_keyboard_alone_reaches_and_sends_a_form(chromium: Chromium, control: Running, owner: Browser, used: TenantSetup) -> None:
    with opened(chromium, control, owner) as page:
        page.goto(control.url + fill_in("/projects", used))
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.getAttribute('href')") == "#content"
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.name") == "name":
                break
        page.keyboard.type("by keyboard")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="by keyboard").wait_for()
