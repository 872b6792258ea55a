"""A real browser at the pages for people: nothing violates the policy of the pages, and nothing is written to its console."""

import secrets
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.control.browsing import PASSWORD, read_secret, show_code
from tests.control.harness import Running, answered, find_token, make_tenant

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium (Debian: apt-get install chromium)")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page of a browser without a past. Whatever it complains of fails the test."""
    context = chromium.new_context()
    page, complaints = context.new_page(), list[str]()
    page.set_default_timeout(60_000)
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert complaints == []


def test_person_joins_signs_in_with_an_app_and_approves_a_device(control: Running, page: Page) -> None:
    admin = control.client(make_tenant(control, "browser").admin_key)
    email = f"{secrets.token_hex(8)}@example.com"
    answered(admin.post("/v1/organization/invites", json={"email": email, "role": "reader"}))
    page.goto(f"{control.url}/join?token={find_token(control, email)}")
    page.get_by_label("Your name").fill("Ada Lovelace")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Join").click()
    page.get_by_text("Ada Lovelace").wait_for()
    page.get_by_role("link", name="Set up an authenticator app").click()
    page.locator("code#secret").wait_for()  # the click returns before the page that follows is there
    secret = read_secret(page.content())
    page.get_by_label("Code").fill(show_code(control, secret))
    page.get_by_role("button", name="Set up").click()
    page.get_by_role("heading", name="Recovery codes").wait_for()
    page.get_by_role("link", name="Your account").click()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="Signed out").wait_for()

    begun = answered(control.client(None).post("/v1/oauth/device_authorization", data={"client_id": "tollway-cli"}))
    page.goto(begun["verification_uri_complete"])
    page.get_by_label("Address").fill(email)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_label("Code of your authenticator app").fill(show_code(control, secret, steps=1))
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("button", name="Approve").click()
    page.get_by_role("heading", name="Approved").wait_for()
    grant = {"grant_type": "urn:ietf:params:oauth:grant-type:device_code", "device_code": begun["device_code"]}
    tokens = answered(control.client(None).post("/v1/oauth/token", data=grant))
    assert answered(control.client(tokens["access_token"]).get("/v1/me"))["user"]["email"] == email
