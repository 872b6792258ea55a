"""A client of the control plane's REST API, for the commands that administer a running installation.

Where and who: `--control-url` and `--key`, else TOLLWAY_CONTROL_URL and TOLLWAY_KEY, else the login of this machine (`tollway login`)
or what the demo or `tollway serve` left in its data directory. A key given as `-` is read from standard input, so that it stands in
no process list and no history."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated, Any
from urllib.parse import quote

import httpx2
import typer

from tollway.cli.logins import find_access_token, find_login_url
from tollway.cli.times import find_zone
from tollway.domain import ids
from tollway.settings import OperatorError

TIMEOUT_SECONDS = 30.0
"""For one answer; the slowest honest one sums a year of usage."""

INTERNAL_URL_DEFAULT = "http://127.0.0.1:9090"
"""A gateway that was started by itself with the default of `gateway.internal`."""

PAGE_ITEMS = 100
"""Items asked for at once: the most that the API gives."""


COMPLETION_SECONDS = 0.5
"""For one answer while a shell waits with a completion. Without one in time there is nothing to offer, and no word of it."""


def complete_organizations(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of organizations that begin so."""
    return _complete(context, incomplete, lambda control: control.list_all("/platform/organizations"), is_tenant=False)


def complete_projects(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of projects that begin so."""
    return _complete(context, incomplete, lambda control: control.list_all("/organization/projects"))


def complete_keys(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of API keys that begin so: of the project, if one is named already, or of all."""
    return _complete(context, incomplete, lambda control: control.list_keys(context.params.get("project")))


def complete_models(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of models that begin so."""
    return _complete(context, incomplete, lambda control: control.list_all("/platform/models"), is_tenant=False)


ControlUrl = Annotated[
    str | None, typer.Option("--control-url", metavar="URL", help="The control plane, without /v1 [TOLLWAY_CONTROL_URL].")
]
Key = Annotated[str | None, typer.Option("--key", metavar="KEY", help="An admin or platform key; - reads it from stdin [TOLLWAY_KEY].")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", metavar="DIR", help="Where to find both instead [./tollway-data].")]
Project = Annotated[
    str | None,
    typer.Option("--project", metavar="NAME|ID", help="The project; not needed if there is only one.", autocompletion=complete_projects),
]
Organization = Annotated[
    str | None,
    typer.Option(
        "--organization",
        metavar="NAME|ID",
        help="The organization to act for, with a platform key.",
        autocompletion=complete_organizations,
    ),
]


class Role(StrEnum):
    """Role that a command needs."""

    ADMIN = "admin_key"
    OPERATOR = "platform_key"


@dataclass(frozen=True, slots=True)
class ControlAddress:
    """Address of a control plane and the key to present."""

    url: str
    key: str = field(repr=False)


def find_address(control_url: str | None, key: str | None, data_dir: Path | None, role: Role) -> ControlAddress:
    """Return where to go and as whom. Raises OperatorError that says what to set if either cannot be found."""
    directory = _data_directory(data_dir)
    url = control_url or os.environ.get("TOLLWAY_CONTROL_URL") or None
    if key == "-":
        key = sys.stdin.readline().strip()
    key = key or os.environ.get("TOLLWAY_KEY") or None
    url = url or _read_addresses(directory).get("control_url") or find_login_url()
    if key is None and url is not None and role is Role.ADMIN:
        key = find_access_token(_without_version(url))
    if key is None:
        key = _read(directory / "demo.json").get(role) or _read(directory / "secrets.json").get(Role.OPERATOR)
    if key is None and url is not None and role is Role.OPERATOR:
        key = find_access_token(_without_version(url))
    if url is None or key is None:
        what = "control plane" if url is None else "key"
        option = "--control-url or TOLLWAY_CONTROL_URL" if url is None else "TOLLWAY_KEY or --key -"
        raise OperatorError(
            f"no {what} given, and none is running in {directory}", hint=f"set {option}, or name its --data-dir", exit_code=2
        )
    return ControlAddress(_without_version(url), key)


def find_control_url(control_url: str | None, data_dir: Path | None) -> str:
    """Return the address of the control plane: the one that is given, else that of the data directory, else the one at which this machine
    is logged in. Raises OperatorError if there is none."""
    url = control_url or os.environ.get("TOLLWAY_CONTROL_URL") or _read_addresses(_data_directory(data_dir)).get("control_url")
    url = url or find_login_url()
    if url is None:
        raise OperatorError("no control plane given", hint="set --control-url or TOLLWAY_CONTROL_URL", exit_code=2)
    return _without_version(url)


def _without_version(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


def find_internal_url(internal_url: str | None, data_dir: Path | None) -> str:
    """Return the internal address of a gateway: the one that is given, else that of the demo or of `tollway serve` in the data directory of
    this machine, else the default of the setting `gateway.internal`."""
    return internal_url or _read_addresses(_data_directory(data_dir)).get("internal_url") or INTERNAL_URL_DEFAULT


def _data_directory(data_dir: Path | None) -> Path:
    return data_dir or Path(os.environ.get("TOLLWAY__DATA_DIR", "tollway-data"))


def _read_addresses(directory: Path) -> dict[str, Any]:
    """Return the addresses that the demo or `tollway serve` wrote while it runs there; nothing if neither does."""
    return _read(directory / "demo.json") or _read(directory / "addresses.json")


def _read(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def segment(name: str) -> str:
    """`name` as part of a path. Models' names may hold slashes, which the API takes as they are."""
    return quote(name, safe="/:@")


def check_id(prefix: str, text: str, what: str, where: str) -> str:
    """`text`, if it has the form of an id of kind `prefix`; else an OperatorError that says of `what` it is none, and where to look."""
    if not ids.is_id(prefix, text):
        article = "an" if what[0] in "aeiou" else "a"
        raise OperatorError(
            f"{text!r} is no id of {article} {what}: those are {prefix}_ and 32 hexadecimal digits", hint=where, exit_code=2
        )
    return text


def choose_id(prefix: str, name_or_id: str, rows: Iterable[Mapping[str, Any]], what: str, where: str) -> str:
    """Return the id that a name stands for among `rows`, each with `id` and `name`. An id of kind `prefix` is returned as it is, and
    no row is read. Raises OperatorError if nothing has the name, which says `where` to look, or if several have, with their ids."""
    if ids.is_id(prefix, name_or_id):
        return name_or_id
    found = [str(each["id"]) for each in rows if each["name"] == name_or_id]
    if len(found) > 1:
        raise OperatorError(f"several {what}s are called {name_or_id}", hint=f"use an id, of: {', '.join(found)}", exit_code=2)
    if not found:
        raise OperatorError(f"no {what} is called {name_or_id}", hint=where, exit_code=2)
    return found[0]


class Control:
    """The REST API as functions of paths below /v1. Every failure is an OperatorError with the API's own words."""

    def __init__(self, http: httpx2.Client, address: ControlAddress) -> None:
        self._http = http
        self._address = address
        self._headers = {"authorization": f"Bearer {address.key}"}
        self._is_tenant = False

    def act_for(self, organization: str | None) -> None:
        """Act for the organization of this name or id on tenant routes. With a platform key one must be named, unless
        it is alone."""
        self._is_tenant = True
        if not self._address.key.startswith(("tw_platform_", "tw_operator_")):
            if organization is not None:
                raise OperatorError("--organization needs a platform key; an admin key has its own organization", exit_code=2)
            return
        self.act_for_id(self.get_organization(organization)["id"])

    def act_for_id(self, organization_id: str) -> None:
        """Act for this organization on tenant routes from here on."""
        self._headers["openai-organization"] = organization_id

    @property
    def organization_id(self) -> str | None:
        """The organization acted for; None if the key has its own."""
        return self._headers.get("openai-organization")

    def get_zone(self, name: str | None) -> tzinfo:
        """Return the time zone of this name; without one, that of the organization acted for, or UTC on the platform's routes.

        Raises OperatorError for a name that is unknown."""
        if name is not None:
            return find_zone(name)
        return find_zone(self.get("/organization")["time_zone"]) if self._is_tenant else UTC

    def get_organization(self, name_or_id: str | None) -> dict[str, Any]:
        """Return the organization of this name or id; without one, the only one there is. Raises OperatorError that lists the names."""
        organizations = list(self.list_all("/platform/organizations"))
        found = [each for each in organizations if name_or_id in (None, each["id"], each["name"])]
        if len(found) != 1:
            called = Counter(each["name"] for each in organizations)
            names = ", ".join(each["name"] if called[each["name"]] == 1 else each["id"] for each in organizations)
            several = f"several organizations are called {name_or_id}" if name_or_id else "which organization?"
            what = f"no organization is called {name_or_id}" if not found and name_or_id else several
            raise OperatorError(what, hint=f"--organization, of: {names or 'none: see `tollway organizations create`'}", exit_code=2)
        return found[0]

    def list_organizations(self) -> dict[str, dict[str, Any]]:
        """Return every organization by its id, archived ones too: tables of operators name what their rows belong to."""
        return {each["id"]: each for each in self.list_all("/platform/organizations", include_archived=True)}

    def get(self, path: str, /, **query: Any) -> Any:
        """GET; parameters that are None are left out."""
        return self._call("GET", path, query=query)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """POST."""
        return self._call("POST", path, body=body)

    def put(self, path: str, body: Mapping[str, Any], **query: Any) -> Any:
        """PUT; parameters that are None are left out."""
        return self._call("PUT", path, query=query, body=body)

    def delete(self, path: str) -> Any:
        """DELETE."""
        return self._call("DELETE", path)

    def download(self, path: str, file: IO[bytes], *, accept: str = "*/*", **query: Any) -> None:
        """GET into `file`, as it comes; however long it takes, as long as something comes. Parameters that are None are left out. `accept`:
        the type that is asked for."""
        params = {name: value for name, value in query.items() if value is not None}
        headers = {**self._headers, "accept": accept}
        try:
            with self._http.stream("GET", f"{self._address.url}/v1{path}", params=params or None, headers=headers) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    raise _refusal(answer)
                for chunk in answer.iter_bytes():
                    file.write(chunk)
        except httpx2.ConnectError:
            raise OperatorError(f"nothing answers at {self._address.url}", hint="is control running? see `tollway serve`") from None
        except httpx2.HTTPError as error:
            raise OperatorError(f"the answer of {self._address.url} broke off: {error}") from None

    def list_all(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Every item of a list, page after page, oldest first."""
        after = None
        while True:
            page = self.get(path, after=after, limit=PAGE_ITEMS, order="asc", **query)
            yield from page["data"]
            if not page["has_more"]:
                return
            after = page["last_id"] if "last_id" in page else page["next"]

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """POST, and the lines of the answer as they come. A line that is an error is raised as one."""
        with self._reported(), self._http.stream("POST", f"{self._address.url}/v1{path}", json=body, headers=self._headers) as answer:
            if answer.status_code >= 400:
                answer.read()
                raise _refusal(answer)
            for text in answer.iter_lines():
                line = json.loads(text)
                if "error" in line:
                    raise OperatorError(line["error"]["message"])
                yield line

    def get_project(self, name_or_id: str | None) -> dict[str, Any]:
        """The project of this name or id; without one, the only one there is. Raises OperatorError that lists the
        names."""
        projects = list(self.list_all("/organization/projects"))
        found = [each for each in projects if name_or_id in (None, each["id"], each["name"])]
        if len(found) != 1:
            names = ", ".join(each["name"] for each in projects) or "none: see `tollway projects create`"
            what = f"no project is called {name_or_id}" if not found and name_or_id else "which project?"
            raise OperatorError(what, hint=f"--project NAME, of: {names}", exit_code=2)
        return found[0]

    def list_keys(self, project: str | None) -> Iterator[dict[str, Any]]:
        """Return the API keys of the project of this name or id; without one, of all. Each has its `project_id`."""
        projects = list(self.list_all("/organization/projects")) if project is None else [self.get_project(project)]
        for each in projects:
            rows = self.list_all(f"/organization/projects/{each['id']}/api_keys")
            yield from ({**row, "project_id": each["id"]} for row in rows)

    def get_key_id(self, project_id: str, name_or_id: str) -> str:
        """Return the id of the API key of this name or id. Raises OperatorError if a project has none or several of the name."""
        rows = self.list_all(f"/organization/projects/{project_id}/api_keys")
        return choose_id(ids.KEY, name_or_id, rows, "key", "see `tollway keys list`")

    def get_account_id(self, project_id: str, name_or_id: str) -> str:
        """Return the id of the service account of this name or id. Raises OperatorError if a project has none or several of the name."""
        rows = self.list_all(f"/organization/projects/{project_id}/service_accounts")
        return choose_id(ids.SERVICE_ACCOUNT, name_or_id, rows, "service account", "see `tollway service-accounts list`")

    def get_node_id(self, name_or_id: str) -> str:
        """Return the id of the gateway of this name or id. Raises OperatorError if there is none or several of the name."""
        rows = () if ids.is_id(ids.NODE, name_or_id) else self.get("/platform/nodes")["data"]
        return choose_id(ids.NODE, name_or_id, rows, "gateway", "see `tollway nodes list`")

    def _call(self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Mapping[str, Any] | None = None) -> Any:
        params = {name: value for name, value in (query or {}).items() if value is not None}
        with self._reported():
            answer = self._http.request(method, f"{self._address.url}/v1{path}", params=params, json=body, headers=self._headers)
        if answer.status_code >= 400:
            raise _refusal(answer)
        return answer.json() if answer.content else None

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Yield what goes wrong on the way is an OperatorError that says where."""
        try:
            yield
        except httpx2.ConnectError:
            raise OperatorError(f"nothing answers at {self._address.url}", hint="is control running? see `tollway serve`") from None
        except httpx2.TimeoutException:
            raise OperatorError(f"{self._address.url} did not answer within {TIMEOUT_SECONDS:.0f} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise OperatorError(f"cannot talk to {self._address.url}: {error}", hint="see --control-url") from None


HINTS = {
    "invalid_api_key": "the key is unknown, revoked or expired; see TOLLWAY_KEY, --key, --data-dir or `tollway login`",
    "insufficient_scope": "tenants' commands need an admin key (tw_admin_), operators' a platform key (tw_platform_) or a login",
    "period_blocked": "see `tollway periods blockers`; if a disk is gone for good: `tollway nodes lost`, and a second person approves",
    "doubtful_price": "see them with `tollway prices check`; if they are meant, publish with --accept-warnings",
    "price_missing": "give it a price first: `tollway models price`",
}
"""Hints for an error code of the API, where there is more to say than its message."""


def _refusal(answer: httpx2.Response) -> OperatorError:
    try:
        error = answer.json()["error"]
        message, code, param = error["message"], error.get("code"), error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        return OperatorError(f"{answer.url} answered {answer.status_code}", hint="is this the control plane's address?")
    where = f" ({param})" if param else ""
    request_id = answer.headers.get("x-request-id", "")
    hint = HINTS.get(str(code), f"request {request_id} in the control plane's log" if answer.status_code >= 500 else "")
    return OperatorError(f"{message}{where}", hint=hint)


@contextmanager
def connect(control_url: str | None, key: str | None, data_dir: Path | None, role: Role = Role.OPERATOR) -> Iterator[Control]:
    """A client for one command."""
    address = find_address(control_url, key, data_dir, role)
    with httpx2.Client(timeout=TIMEOUT_SECONDS, trust_env=False) as http:
        yield Control(http, address)


@contextmanager
def connect_tenant(control_url: str | None, key: str | None, data_dir: Path | None, organization: str | None) -> Iterator[Control]:
    """A client for one command about one organization: with its admin key, or for `organization` with a platform
    key."""
    role = Role.ADMIN if organization is None else Role.OPERATOR
    with connect(control_url, key, data_dir, role) as control:
        control.act_for(organization)
        yield control


def _complete(
    context: typer.Context, incomplete: str, list_rows: Callable[[Control], Iterable[Mapping[str, Any]]], *, is_tenant: bool = True
) -> list[str]:
    """Return the names of the rows that begin with what was typed, as the options before it say whom to ask. Nothing if that fails."""
    given, names = context.params, list[str]()
    if given.get("key") == "-":
        return names  # standard input belongs to the shell
    with suppress(OperatorError):
        organization = given.get("organization") if is_tenant else None
        role = Role.ADMIN if is_tenant and organization is None else Role.OPERATOR
        address = find_address(given.get("control_url"), given.get("key"), given.get("data_dir"), role)
        with httpx2.Client(timeout=COMPLETION_SECONDS, trust_env=False) as http:
            control = Control(http, address)
            if is_tenant:
                control.act_for(organization)
            names += sorted({str(each["name"]) for each in list_rows(control) if str(each["name"]).startswith(incomplete)})
    return names
