"""Logins of this machine: the tokens of `tollway login`, by the address of the control plane, in a file that only its owner can read.

An access token lives for ten minutes. Whoever finds it about to end replaces it, under a lock, because a refresh token counts once: of two
commands at the same time one refreshes, and the other one reads what it stored.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from tollway.settings import OperatorError

REFRESH_BEFORE_SECONDS = 60.0
"""Rest of the lifetime at which an access token is replaced: longer than nearly every command."""

TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Login:
    """The tokens of one login. `expires_at`: of the access token, in Unix seconds."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_at: float


def find_login_url() -> str | None:
    """Return the control plane at which this machine is logged in, if there is exactly one."""
    urls = list(_read(_path()))
    return urls[0] if len(urls) == 1 else None


def find_access_token(url: str) -> str | None:
    """Return an access token for the control plane at `url`, a new one where the stored one is about to end; None without a login there.

    Raises OperatorError where the login has ended, which is then forgotten, and where the control plane does not renew it now."""
    if url not in _read(_path()):
        return None
    with _locked() as path:
        stored = _read(path).get(url)
        if stored is None:
            return None
        login = Login(**stored)
        if login.expires_at - time.time() >= REFRESH_BEFORE_SECONDS:
            return login.access_token
        parameters = {"grant_type": "refresh_token", "refresh_token": login.refresh_token}
        answer = post_form(f"{url}/v1/oauth/token", parameters)
        tokens = read_answer(answer, url)
        if tokens.get("error") == "invalid_grant":  # RFC 6749, section 5.2; the login is still valid after any other refusal
            _write(path, {each: value for each, value in _read(path).items() if each != url})
            raise OperatorError(f"the login at {url} has ended", hint="run `tollway login` again")
        if answer.status_code != 200:
            raise OperatorError(f"{url} did not renew the login: {describe_refusal(tokens)}", hint="try again later")
        renewed = read_login(tokens)
        _write(path, {**_read(path), url: asdict(renewed)})
        return renewed.access_token


def store_login(url: str, login: Login) -> None:
    """Store a login in place of the one at the same address."""
    with _locked() as path:
        _write(path, {**_read(path), url: asdict(login)})


def remove_login(url: str) -> Login | None:
    """Remove the login at an address. Return it; None if there was none."""
    with _locked() as path:
        logins = _read(path)
        removed = logins.pop(url, None)
        if removed is None:
            return None
        _write(path, logins)
        return Login(**removed)


def read_login(answer: dict[str, Any]) -> Login:
    """Return the login of an answer of the token endpoint."""
    return Login(answer["access_token"], answer["refresh_token"], time.time() + answer["expires_in"])


def post_form(url: str, parameters: dict[str, str]) -> httpx2.Response:
    """Send a form. Raises OperatorError if nothing answers."""
    try:
        with httpx2.Client(timeout=TIMEOUT_SECONDS, trust_env=False, headers={"user-agent": "tollway"}) as http:
            return http.post(url, data=parameters)
    except httpx2.HTTPError as error:
        raise OperatorError(f"cannot talk to {url}: {error}", hint="is control running? see --control-url") from None


def read_answer(answer: httpx2.Response, url: str) -> dict[str, Any]:
    """Return the JSON object of an answer of the token endpoint. Raises OperatorError if it is none."""
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise OperatorError(f"{url} answered {answer.status_code}, not as a control plane for people does", hint="see --control-url")
    return found


def describe_refusal(answer: dict[str, Any]) -> str:
    """Return why the token endpoint refused, in its words."""
    error = answer.get("error")
    if isinstance(error, dict):  # the shape of all other refusals
        error = error.get("message")
    return str(answer.get("error_description") or error or "the login was refused")


def _path() -> Path:
    directory = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(directory) / "tollway" / "logins.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, logins: dict[str, Any]) -> None:
    whole = path.with_suffix(".new")
    descriptor = os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)
        json.dump(logins, file)
    whole.replace(path)


@contextmanager
def _locked() -> Iterator[Path]:
    """Let the commands of this user take turns. Raises OperatorError where the directory cannot be written to."""
    path = _path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise OperatorError(f"cannot write to {path.parent}: {error.strerror}", hint="set XDG_CONFIG_HOME, or use TOLLWAY_KEY") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # for as long as one request takes at most
        yield path
    finally:
        os.close(descriptor)
