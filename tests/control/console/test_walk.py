"""A real browser walks every page of the console as each role: nothing violates the policy of the pages, nothing is written to its console,
no request fails, and axe finds no serious barrier, in each theme and language."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import pytest
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Page

from tests.control.browsing import Browser
from tests.control.console.chromium import watched
from tests.control.console.pages import PLATFORM_PAGES, TENANT_PAGES, fill_in, fill_in_platform
from tests.control.harness import Running, TenantSetup

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text()

LOOKS = ("en.light", "de.dark")
"""Each language and each theme once; colours, of which alone a theme consists, are looked at in the other theme too."""

SERIOUS = """async rules => (await axe.run(document, {resultTypes: ["violations"], ...(rules && {runOnly: rules})})).violations
    .filter(each => ["serious", "critical"].includes(each.impact))
    .map(each => each.id + ": " + each.nodes.map(node => node.html).join(" "))"""

"""The serious findings of axe, by all of its rules or by those that are named."""

COLOURS = ["color-contrast", "link-in-text-block"]
"""Rules of axe that depend on colours."""

OTHER_THEME = """() => {
    const root = document.documentElement;
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
}"""


@contextmanager
def opened(chromium: Chromium, control: Running, viewer: Browser, look: str = LOOKS[0], **options: Any) -> Iterator[Page]:
    """A page of a browser that has the session of a viewer. Whatever it complains of fails the test."""
    with watched(chromium, **options) as page:
        cookies = {"tollway_session": viewer.secret, "tollway_look": look}
        page.context.add_cookies([{"name": name, "value": value, "url": control.url} for name, value in cookies.items()])
        yield page


FOREIGN = """() => [...document.querySelectorAll("main script, main img, main a[href]:not([href^='/'], [href^='#'])")]
    .map(each => each.outerHTML)"""
"""Elements that a name would have become if a page had not shown it as text."""

PHONE = {"width": 360, "height": 740}
"""The smallest screen that pages are made for."""

TOO_WIDE = "() => document.documentElement.scrollWidth > innerWidth"
"""Says whether a page scrolls sideways. A table that is wide scrolls in itself."""

TOO_SMALL = """() => [...document.querySelectorAll("a, button, input, select, summary, textarea")]
    .filter(each => each.type !== "hidden" && each.checkVisibility({ checkVisibilityCSS: true }))
    .filter(each => each.matches(":not(a), .button") || ["block", "inline-block", "flex"].includes(getComputedStyle(each).display))
    .map(each => [each, (each.closest("label") ?? each).getBoundingClientRect()])
    .filter(([, box]) => box.width > 0 && (box.width < 24 || box.height < 24))
    .map(([each]) => each.outerHTML)"""
"""Elements that are too small for a finger: under 24 pixels (WCAG 2.2, 2.5.8), but for links in text."""

REMOVE_SHELL = "() => { for (const each of document.querySelectorAll('.skip, header.top, nav.side')) each.remove(); }"
"""Take away what all pages of a viewer have around their content: each element that is looked at, and each press of a key, takes its
time."""

WATCH_FOCUS = """() => {
    for (const each of document.querySelectorAll("details")) each.open = true;
    const stops = "a[href], button, input, select, summary, textarea, [tabindex]";
    const wanted = [...document.querySelectorAll(stops)]
        .filter(each => each.tabIndex >= 0 && !each.disabled && each.type !== "hidden")
        .filter(each => each.checkVisibility({ checkVisibilityCSS: true }));
    window.wanted = wanted;
    window.reached = [];
    window.unmarked = [];
    document.addEventListener("focusin", ({ target }) => {
        reached.push(target);
        const style = getComputedStyle(target);
        if (style.outlineStyle === "none" || parseFloat(style.outlineWidth) < 2) unmarked.push(target.outerHTML);
    });
    const parts = wanted.filter(each => ["date", "datetime-local", "month"].includes(each.type)).length;
    return wanted.length + 7 * parts + 1;
}"""
"""Open all that can be opened, and note from now on what gets the focus. Returns how often Tab leads through the page and around at most:
a field of a date has a stop for each of its parts."""

MISSED = """() => {
    const seen = reached.slice(0, wanted.length);
    return [...wanted.filter((each, at) => seen[at] !== each).map(each => "not reached in its order: " + each.outerHTML.slice(0, 200)),
            ...unmarked.map(each => "focus cannot be seen: " + each)];
}"""

WATCH_FORMS = """() => {
    window.sent = [];
    addEventListener("submit", event => {
        sent.push(event.target);
        event.preventDefault();
        event.stopImmediatePropagation();
    }, { capture: true });
    for (const each of document.forms) each.noValidate = true;
    return document.forms.length;
}"""

FOCUS_FORM = """number => {
    const typed = "input:not([type=hidden], [type=checkbox], [type=radio], [type=date], [type=datetime-local], [type=month], [type=file])";
    const form = document.forms[number];
    (form.querySelector(typed) ?? form.querySelector("button")).focus();
}"""
"""Put the focus where Enter sends a form."""

UNSENT = "() => [...document.forms].filter((each, at) => sent[at] !== each).map(each => each.outerHTML.slice(0, 300))"


def check_on_a_phone(page: Page) -> None:
    """Fail unless the page fits a small screen, with everything opened, and fingers."""
    page.evaluate("() => { for (const each of document.querySelectorAll('details')) each.open = true; }")
    assert not page.evaluate(TOO_WIDE), page.url
    assert page.evaluate(TOO_SMALL) == [], page.url


def check_by_keyboard(page: Page) -> None:
    """Fail unless Tab leads to everything on the page in its order, with a mark that can be seen, and Enter sends each of its forms."""
    for _ in range(page.evaluate(WATCH_FOCUS)):
        page.keyboard.down("Tab")
    assert page.evaluate(MISSED) == [], page.url
    for number in range(page.evaluate(WATCH_FORMS)):
        page.evaluate(FOCUS_FORM, number)
        page.keyboard.press("Enter")
    assert page.evaluate(UNSENT) == [], page.url


KEYBOARD, PHONE_ONLY = "keyboard", "phone"


@pytest.mark.parametrize("way", (KEYBOARD, PHONE_ONLY))
@pytest.mark.parametrize("who", ("owner", "operator"))
def test_166_every_page_is_without_barriers_complaints_and_foreign_scripts_by_keyboard_alone_and_on_a_phone(
    chromium: Chromium, control: Running, owner: Browser, operator: Browser, used: TenantSetup, known: dict[str, str], who: str, way: str
) -> None:
    """By keyboard in English, on a phone in German, the colours of each in both themes. What all pages of a viewer have around their
    content is looked at on the first one alone."""
    operators_own = [fill_in(path, used, known) for path in ("/billing-account", "/credits", "/contracts", "/contracts/{contract_id}")]
    paths = {
        "owner": [*(fill_in(path, used, known) for path in TENANT_PAGES), "/account"],
        "operator": [*(fill_in_platform(path, control, used) for path in PLATFORM_PAGES), *operators_own, "/account"],
    }[who]
    look = LOOKS[way == PHONE_ONLY]
    options: dict[str, Any] = {"viewport": PHONE, "has_touch": True} if way == PHONE_ONLY else {}
    with opened(chromium, control, owner if who == "owner" else operator, look, **options) as page:
        page.context.add_init_script(AXE)
        for at, path in enumerate(paths):
            page.goto(control.url + path)
            if at:
                page.evaluate(REMOVE_SHELL)
            assert page.evaluate(SERIOUS, None) == [], (look, path)
            page.evaluate(OTHER_THEME)
            assert page.evaluate(SERIOUS, COLOURS) == [], (look, "the other theme", path)
            page.evaluate(OTHER_THEME)
            assert page.evaluate(FOREIGN) == [], path
            if way == KEYBOARD:
                check_by_keyboard(page)
            else:
                check_on_a_phone(page)


VIEWERS_OWN = re.compile(
    r'<nav class="side".*?</nav>|<details class="menu">.*?</details>|value="[0-9a-f]{64}"|(req|user|audit|sess)_[0-9a-f]{32}', re.DOTALL
)
"""Parts of a page that differ between viewers who are shown the same."""


def test_each_role_walks_what_it_is_offered_without_complaint_with_and_without_scripts(
    chromium: Chromium, control: Running, people: dict[str, Browser], operator: Browser, auditor: Browser, used: TenantSetup
) -> None:
    """A page that differs from another role's in nothing but its viewer is opened once. Those of owners and operators are opened with
    scripts by the walk above."""
    others = [viewer for role, viewer in people.items() if role != "owner"]
    seen = set[str]()
    for viewer, home in [
        *((viewer, fill_in("", used)) for viewer in (people["owner"], *others)),
        *((viewer, "/console/platform") for viewer in (operator, auditor)),
    ]:
        offered = re.findall(r'<li><a href="([^"]+)"', viewer.open(home).text.partition("</nav>")[0])
        new = [home]
        for path in offered:
            shown = VIEWERS_OWN.sub("", viewer.open(path).text)
            if shown not in seen and path != home:
                new.append(path)
            seen.add(shown)
        assert home in offered
        for has_scripts in (True, False) if viewer in (*others, auditor) else (False,):
            with opened(chromium, control, viewer, java_script_enabled=has_scripts) as page:
                for path in new:
                    page.goto(control.url + path)
                    assert page.locator("main h1").count() == 1, path


def test_keyboard_alone_fills_in_a_form_and_leaves_an_action(
    chromium: Chromium, control: Running, owner: Browser, used: TenantSetup
) -> None:
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
        page.wait_for_load_state()  # the script that hears Escape runs behind the page
        archive = page.locator("details.danger summary")
        archive.focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.locator("details.danger input[name=confirmation]:focus").wait_for()
        page.keyboard.press("Escape")
        page.locator("details.danger:not([open]) summary:focus").wait_for()
