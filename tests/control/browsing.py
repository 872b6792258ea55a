"""A person at the pages of the control plane, as a browser without scripts: it keeps cookies, and sends the forms that it was shown."""

import base64
import html
import re
from typing import Any
from urllib.parse import urlencode

import httpx2

from tests.control.harness import Running, answered, find_token
from tollway.domain import one_time_codes

PASSWORD = "correct horse battery staple"


class Browser:
    """One browser. `page`: the answer that it shows."""

    def __init__(self, control: Running) -> None:
        self.control = control
        self.client = control.client(None)
        self.page = httpx2.Response(204)

    def open(self, path: str) -> httpx2.Response:
        """Open an address, and follow where it leads within the site."""
        return self._show(self.client.get(path.removeprefix(self.control.url)))

    def send(self, action: str, status: int = 200, **fields: str) -> httpx2.Response:
        """Fill in and send the form with this action of the page that is shown. Fails the test if the answer has another status."""
        forms = re.findall(r'<form method="post" action="([^"]+)">(.*?)</form>', self.page.text, re.DOTALL)
        found = next((inner for path, inner in forms if path == action), None)
        assert found is not None, f"the page has no form {action}: {self.page.text}"
        inputs = [each for each in re.findall(r"<input[^>]*>", found) if 'type="checkbox"' not in each or " checked" in each]
        shown = dict(re.findall(r' name="(\w+)"[^>]* value="([^"]*)"', "".join(inputs)))
        known = set(re.findall(r' name="(\w+)"', found))
        assert set(fields) <= known, f"the form has the fields {known}"
        self.post(action, {name: html.unescape(value) for name, value in shown.items()} | fields)
        assert self.page.status_code == status, self.page.text
        return self.page

    def post(self, path: str, fields: dict[str, str], **headers: str) -> httpx2.Response:
        """Send a form to a path as a browser sends one of the same site, but for other headers."""
        own = {"origin": self.control.url, "sec-fetch-site": "same-origin", "content-type": "application/x-www-form-urlencoded"}
        other = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._show(self.client.post(path, content=urlencode(fields), headers=own | other))

    def _show(self, answer: httpx2.Response) -> httpx2.Response:
        while answer.status_code == 303:
            answer = self.client.get(answer.headers["location"])
        self.page = answer
        return answer

    @property
    def secret(self) -> str:
        """The secret of its session."""
        return self.client.cookies["tollway_session"]

    def sign_in(self, email: str, password: str = PASSWORD, *, status: int = 200, **fields: str) -> httpx2.Response:
        """Sign in on the page."""
        self.open("/sign-in")
        return self.send("/sign-in", status, email=email, password=password, **fields)

    def add_app(self) -> bytes:
        """Set up an authenticator app. Return its secret."""
        self.open("/account/authenticator")
        secret = read_secret(self.page.text)
        self.send("/account/authenticator", code=show_code(self.control, secret))
        return secret


def read_secret(page: str) -> bytes:
    """Return the secret that a page shows for an authenticator app."""
    found = re.search(r'<code id="secret">([A-Z2-7]+)</code>', page)
    assert found is not None, page
    return base64.b32decode(found.group(1))


def show_code(control: Running, secret: bytes, steps: int = 0) -> str:
    """Return what an authenticator app shows now, or so many steps later."""
    return one_time_codes.compute_code(secret, control.plane.now() // 30_000_000 + steps)


def join(control: Running, admin: httpx2.Client, email: str, role: str = "reader", **wanted: Any) -> Browser:
    """Invite a person, who joins with PASSWORD. Return their browser, which is signed in."""
    answered(admin.post("/v1/organization/invites", json={"email": email, "role": role, **wanted}))
    browser = Browser(control)
    browser.open(f"/join?token={find_token(control, email)}")
    browser.send("/join", name="Ada Lovelace", password=PASSWORD)
    assert "Ada Lovelace" in browser.page.text
    return browser


def find_user_id(admin: httpx2.Client, email: str) -> str:
    """Return the id of the person with an address."""
    (user,) = answered(admin.get("/v1/organization/users", params={"emails": [email]}))["data"]
    found: str = user["id"]
    return found
