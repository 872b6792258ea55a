"""Rules of every route: one shape of error, strict bodies, nothing repeated, no access by accident."""

import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter
from pydantic import BaseModel

from tests.control.harness import WAIT_SECONDS_MAX, Running, TenantSetup, answered, mint, wait_until
from tests.patience import CLIENT_SECONDS
from tollway.control.api import app, descriptions, places
from tollway.control.api.app import BODY_BYTES_MAX, create_apps, refuse_undeclared
from tollway.control.api.descriptions import describe
from tollway.control.api.routes import ApiRoute, router
from tollway.control.tenancy import tenants
from tollway.domain.keys import KeyType
from tollway.serve import http_protocol

PROJECTS = "/v1/organization/projects"


def refused(response: httpx2.Response, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    """Check the shape of a refusal: all four fields, our headers; returns the error."""
    assert response.status_code == status, response.text
    if response.request.url.path.startswith("/scim/v2/"):
        assert response.headers["content-type"] == "application/scim+json" and response.json()["status"] == str(status)
        return dict(response.json())
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-request-id"].startswith("req_")
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    return error


OWN_FIELDS = {"organization_id": {"create_erasure", "create_book"}, "id": {"create_node"}}
"""Fields that name whose something is, or which it is, and the operations of operators alone that take them."""


@pytest.mark.parametrize(
    "name",
    [
        *("organization_id", "organization", "tenant_id", "id", "key_id", "created_by", "origin", "is_admin", "is_operator"),
        *("user_role", "allowed_routes", "spend", "spent", "credits", "balance", "prepaid", "digest", "value", "secret"),
    ],
)
def test_53_no_body_takes_a_field_that_says_who_one_is_or_what_one_owns(name: str) -> None:
    """Bodies of SCIM are read by `domain.scim`, which keeps what it knows; all others refuse a field that they do not declare."""
    taking = set()
    for routes in app.PUBLIC_ROUTERS:
        for route in routes.routes:
            if not isinstance(route, ApiRoute) or route.body_field is None or route.path.startswith("/scim/"):
                continue
            model = route.body_field.field_info.annotation
            assert isinstance(model, type) and issubclass(model, BaseModel) and model.model_config.get("extra") == "forbid", route.name
            if name in {field.alias or declared for declared, field in model.model_fields.items()}:
                taking.add(route.name)
    assert taking == OWN_FIELDS.get(name, set())


OAUTH_PATHS = {
    "/v1/oauth/token",
    "/v1/oauth/device_authorization",
    "/v1/oauth/revoke",
    "/.well-known/jwks.json",
    "/.well-known/oauth-authorization-server",
}
"""Paths of OAuth, which programs without a key use to get a token."""

SIGN_IN_PATHS = {
    *("/sign-in", "/sign-in/code", "/sign-in/{connection_id}", "/sign-in/{connection_id}/callback"),
    *("/sign-in/operators/key", "/sign-in/operators/link", "/link", "/join", "/assets/pages.css", "/signed-out"),
}
"""Paths of pages on which people sign in, and to which their sign-out leads."""


class TestEveryRoute:
    def test_declares_who_may_pass(self, control: Running) -> None:
        for each in create_apps(control.plane):
            assert each.routes
            for route in each.routes:
                assert isinstance(route, ApiRoute)
                assert route.access.name in {"organization", "platform", "node", "join token", "invitation", "session", "public"}
                if route.access.name == "public":
                    health = {"/livez", "/readyz", "/metrics"}
                    described = {"/openapi.json", "/reference", "/v1/leaked_keys/github", "/v1/stripe/events"}
                    assert route.path in {*health, *described, *OAUTH_PATHS, *SIGN_IN_PATHS}

    def test_refuses_whoever_shows_no_key(self, control: Running) -> None:
        for each, url in zip(create_apps(control.plane), (control.url, control.link_url), strict=True):
            with httpx2.Client(base_url=url, timeout=CLIENT_SECONDS) as nobody:
                for method, path, name in walk(each.routes):
                    if name == "session":
                        leads = (303, "GET") if method == "GET" else (403, "POST")
                        assert (nobody.request(method, path).status_code, method) == leads
                    elif name != "public":
                        refused(nobody.request(method, path), 401, "invalid_api_key")

    def test_refuses_keys_that_are_not_for_it(self, control: Running, alice: TenantSetup) -> None:
        keys = {"inference": alice.secret, "admin": alice.admin_key, "platform": control.platform_key, "node": control.node_key}
        allowed = {"organization": {"admin", "platform"}, "platform": {"platform"}, "node": {"node"}}
        for each, url in zip(create_apps(control.plane), (control.url, control.link_url), strict=True):
            for owner, key in keys.items():
                with httpx2.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=CLIENT_SECONDS) as client:
                    for method, path, name in walk(each.routes):
                        if name in ("join token", "invitation"):
                            refused(client.request(method, path), 401, "invalid_api_key")
                        elif name == "session":
                            assert client.request(method, path).status_code in (303, 403)
                        elif name != "public" and owner not in allowed[name]:
                            refused(client.request(method, path), 403, "insufficient_scope")

    def test_without_a_declaration_stops_the_start(self) -> None:
        ordinary = APIRouter()
        ordinary.get("/v1/forgotten")(lambda: {})
        with pytest.raises(TypeError, match="/v1/forgotten"):
            refuse_undeclared(ordinary.routes)

    def test_without_one_declared_access_answers_nobody(self) -> None:
        undeclared = router(tags=[])
        undeclared.get("/v1/forgotten")(lambda: {})
        (route,) = undeclared.routes
        for _ in range(2):  # not at the second request either
            with pytest.raises(TypeError, match="exactly one access"):
                assert route.app, "by which the framework has it answer"  # type: ignore[attr-defined]


def walk(routes: Any) -> list[tuple[str, str, str]]:
    """(method, path with plausible ids, access) of every route."""
    found: list[tuple[str, str, str]] = []
    for route in routes:
        path = route.path.replace("{model:path}", "some/model")
        for name in ("project", "organization"):
            path = path.replace(f"{{{name}_id}}", f"{name[:4] if name == 'project' else 'org'}_" + "0" * 32)
        path = path.replace("{", "").replace("}", "")
        found.extend((method, path, route.access.name) for method in route.methods)
    return found


class TestCredentials:
    @pytest.mark.parametrize(
        "header",
        [
            "",
            "Bearer",
            "Basic dXNlcjpwYXNz",
            "Bearer ' OR 1=1 --",
            "Bearer tw_admin_" + "a" * 57,
            "Bearer " + "x" * 5000,
            "Bearer tw_admin_\tx",
        ],
    )
    def test_that_are_none_are_refused_alike(self, control: Running, header: str) -> None:
        error = refused(control.client(None, authorization=header).get(PROJECTS), 401, "invalid_api_key")
        assert error == refused(control.client(mint(KeyType.ADMIN)).get(PROJECTS), 401, "invalid_api_key")

    def test_that_are_revoked_or_expired_are_refused_alike(self, control: Running, alice: TenantSetup) -> None:
        admin = control.client(alice.admin_key)
        made = answered(admin.post("/v1/organization/admin_api_keys", json={"name": "short", "expires_in_seconds": 3600}))
        answered(control.client(made["value"]).get(PROJECTS))
        answered(admin.delete(f"/v1/organization/admin_api_keys/{made['id']}"))
        unknown = refused(control.client(mint(KeyType.ADMIN)).get(PROJECTS), 401, "invalid_api_key")
        assert refused(control.client(made["value"]).get(PROJECTS), 401, "invalid_api_key") == unknown

    def test_of_two_kinds_are_refused(self, control: Running, alice: TenantSetup) -> None:
        refused(control.client(alice.admin_key, **{"x-api-key": "another"}).get(PROJECTS), 400, "ambiguous_credentials")
        assert control.client(alice.admin_key, **{"x-api-key": alice.admin_key}).get(PROJECTS).status_code == 200

    def test_are_checked_before_the_body_is_read(self, control: Running) -> None:
        refused(control.client(None).post(PROJECTS, content=b"{not json"), 401, "invalid_api_key")

    def test_of_an_operator_need_an_organization_on_tenant_routes(self, control: Running, alice: TenantSetup) -> None:
        refused(control.operator().get(PROJECTS), 400, "missing_required_parameter", "OpenAI-Organization")
        acting = control.client(control.platform_key, **{"openai-organization": alice.organization_id})
        assert alice.project_id in [project["id"] for project in answered(acting.get(PROJECTS))["data"]]
        for unknown in ("org_" + "0" * 32, "org_", "x"):
            refused(control.client(control.platform_key, **{"openai-organization": unknown}).get(PROJECTS), 404, "not_found")


class TestBodies:
    @pytest.mark.parametrize(
        ("body", "status", "code", "param"),
        [
            (b"", 400, "invalid_json", None),
            (b"{", 400, "invalid_json", None),
            (b"\xef\xbb\xbf{}", 400, "invalid_json", None),
            (b'{"name": "\xff"}', 400, "invalid_json", None),
            (b'{"name": "\\ud800"}', 400, "invalid_json", None),
            (b'{"name": NaN}', 400, "invalid_json", None),
            (b'{"name": 1e400}', 400, "invalid_value", "name"),
            (b'{"name": "a", "name": "b"}', 400, "duplicate_key", "name"),
            (b'{"name": "a", "x": {"y": 1, "\\u0079": 2}}', 400, "duplicate_key", "y"),
            (b"[" * 500 + b"]" * 500, 400, "invalid_json", None),
            (b"[]", 400, "invalid_value", None),
            (b'"text"', 400, "invalid_value", None),
            (b"null", 400, "invalid_value", None),
            (b"{}", 400, "missing_required_parameter", "name"),
            (b'{"name": null}', 400, "invalid_value", "name"),
            (b'{"name": 5}', 400, "invalid_value", "name"),
            (b'{"name": ""}', 400, "invalid_value", "name"),
            (b'{"name": "a\\u0000b"}', 400, "invalid_value", "name"),
            (b'{"name": "a", "organization_id": "org_1"}', 400, "unknown_parameter", "organization_id"),
            (b'{"name": "a", "<script>": 1}', 400, "unknown_parameter", None),
            (b'{"name": "' + b"n" * 257 + b'"}', 400, "invalid_value", "name"),
        ],
    )
    def test_are_parsed_strictly(
        self, control: Running, alice: TenantSetup, body: bytes, status: int, code: str, param: str | None
    ) -> None:
        client = control.client(alice.admin_key, **{"content-type": "application/json"})
        error = refused(client.post(PROJECTS, content=body), status, code, param)
        assert "script" not in json.dumps(error)

    def test_are_never_repeated(self, control: Running, alice: TenantSetup) -> None:
        client = control.client(alice.admin_key)
        secret = "sk-should-not-come-back"
        for body in ({"name": [secret]}, {"name": "a", secret * 9: 1}, {"name": {"deep": secret}}, [secret]):
            assert secret not in client.post(PROJECTS, json=body).text

    @pytest.mark.parametrize("media_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16"])
    def test_of_another_kind_are_refused(self, control: Running, alice: TenantSetup, media_type: str) -> None:
        client = control.client(alice.admin_key, **{"content-type": media_type})
        refused(client.post(PROJECTS, content=b'{"name": "a"}'), 415, "unsupported_media_type")

    def test_that_are_compressed_are_refused(self, control: Running, alice: TenantSetup) -> None:
        client = control.client(alice.admin_key, **{"content-type": "application/json", "content-encoding": "gzip"})
        refused(client.post(PROJECTS, content=b"\x1f\x8b"), 415, "unsupported_content_encoding")

    def test_are_bounded_whether_or_not_they_say_so(self, control: Running, alice: TenantSetup) -> None:
        client = control.client(alice.admin_key, **{"content-type": "application/json"})
        body = b'{"name": "' + b"n" * BODY_BYTES_MAX + b'"}'
        refused(client.post(PROJECTS, content=body), 413, "body_too_large")
        refused(client.post(PROJECTS, content=iter([body[:1000], body[1000:]])), 413, "body_too_large")

    def test_that_break_off_are_no_defect(self, control: Running, alice: TenantSetup) -> None:
        head = f"POST {PROJECTS} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {alice.admin_key}\r\nContent-Length: 100\r\n\r\n"
        with connect(control.url) as connection:
            connection.sendall(head.encode() + b"{")
        wait_until(lambda: any(line.get("status") == 499 for line in control.lines))
        assert not [line for line in control.lines if line["event"] == "defect"]


class TestSlowness:
    def test_of_a_body_has_an_end(self, control: Running, alice: TenantSetup, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(app, "BODY_SECONDS_MAX", 0.05)
        head = f"POST {PROJECTS} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {alice.admin_key}\r\nContent-Length: 100\r\n\r\n"
        status, body = raw(control.url, head.encode() + b"{")
        assert status == 408
        assert json.loads(body)["error"]["code"] == "request_timeout"

    @pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost:"])
    def test_of_a_head_has_an_end(self, control: Running, monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
        monkeypatch.setattr(http_protocol, "HEAD_SECONDS_MAX", 0.05)
        with connect(control.url) as connection:
            connection.sendall(begun)
            try:
                assert connection.recv(1) == b""
            except ConnectionResetError:
                pass  # aborted is ended, too

    def test_of_everybody_at_once_is_refused_politely(self, control: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(places, "REQUESTS_MAX", 0)
        response = control.operator().get("/v1/platform/organizations")
        refused(response, 503, "overloaded")
        assert int(response.headers["retry-after"]) >= 1


class TestDefects:
    def test_are_answered_without_a_word_about_them(self, control: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_arguments: object, **_named: object) -> None:
            raise RuntimeError("tw_admin_secret in a message")

        monkeypatch.setattr(tenants, "list_organizations", fail)
        response = control.operator().get("/v1/platform/organizations")
        assert "secret" not in json.dumps(refused(response, 500, "internal_error"))
        (line,) = (line for line in control.lines if line["event"] == "defect")
        assert line["request_id"] == response.headers["x-request-id"]
        assert line["error"] == "RuntimeError"
        assert "secret" not in json.dumps(line)


class TestUrls:
    def test_that_lead_nowhere_are_404_in_our_shape(self, control: Running, alice: TenantSetup) -> None:
        client = control.client(alice.admin_key)
        for path in ("/", "/v1", "/v1/organization/project", "/v1/organization/projects/", "/docs", "/redoc"):
            refused(client.get(path), 404, "not_found")

    def test_with_another_method_are_405(self, control: Running, alice: TenantSetup) -> None:
        response = control.client(alice.admin_key).delete(PROJECTS)
        refused(response, 405, "method_not_allowed")
        assert response.headers["allow"]

    @pytest.mark.parametrize("target", ["/v1/%2e%2e/x", "//v1", "/v1/%00", "/v1/%ff", "/v1/a%5cb", "/v1/./x"])
    def test_that_are_devious_are_refused(self, control: Running, target: str) -> None:
        status, body = raw(control.url, f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        assert status == 400
        assert json.loads(body)["error"]["code"] == "invalid_target"

    def test_query_parameters_that_are_unknown_or_wrong_are_refused(self, control: Running, alice: TenantSetup) -> None:
        client = control.client(alice.admin_key)
        refused(client.get(PROJECTS, params={"organization_id": "org_1"}), 400, "unknown_parameter", "organization_id")
        refused(client.get(PROJECTS, params={"limit": 0}), 400, "invalid_value", "limit")
        refused(client.get(PROJECTS, params={"limit": 101}), 400, "invalid_value", "limit")
        refused(client.get(PROJECTS, params={"limit": "many"}), 400, "invalid_value", "limit")
        refused(client.get(PROJECTS, params={"order": "sideways"}), 400, "invalid_value", "order")
        refused(client.get(PROJECTS, params={"after": "\0"}), 400, "invalid_value", "after")
        answered(client.get(f"{PROJECTS}?limit[]=5&order%5B%5D=desc"))


class TestBytes:
    @pytest.mark.parametrize(
        "head",
        [
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 101 + b"\r\n",
            b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
            b"\x00\x01\x02\r\n\r\n",
        ],
    )
    def test_that_are_no_request_are_400_in_our_shape(self, control: Running, head: bytes) -> None:
        status, body = raw(control.url, head)
        assert status == 400
        assert json.loads(body)["error"]["code"] == "malformed_http"

    def test_after_the_body_give_nobody_an_identity(self, control: Running, alice: TenantSetup) -> None:
        head = b"POST /v1/organization/projects HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        trailers = f"0\r\nAuthorization: Bearer {alice.admin_key}\r\n\r\n".encode()
        status, _ = raw(control.url, head + b"2\r\n{}\r\n" + trailers)
        assert status == 401


def connect(url: str) -> socket.socket:
    """A connection to the listener at `url`."""
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=WAIT_SECONDS_MAX)


def raw(url: str, request: bytes) -> tuple[int, bytes]:
    """The status and body of the answer to exact bytes."""
    with connect(url) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
            head, found, body = answer.partition(b"\r\n\r\n")
            if found and len(body) >= int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
                break
    return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]


class TestSecrets:
    def test_are_in_no_log_line(self, control: Running, alice: TenantSetup) -> None:
        answered(control.client(alice.admin_key).get(PROJECTS))
        control.client(alice.admin_key).post(PROJECTS, json={"name": "a", "x": alice.secret})
        text = json.dumps(control.lines)
        assert alice.organization_id in text
        for secret in (alice.admin_key, alice.secret, control.platform_key, control.node_key):
            assert secret not in text
            assert secret[12:-10] not in text

    def test_a_request_is_one_line(self, control: Running, alice: TenantSetup) -> None:
        response = control.client(alice.admin_key).get(f"{PROJECTS}/{alice.project_id}")
        request_id = response.headers["x-request-id"]
        wait_until(lambda: any(line.get("request_id") == request_id for line in control.lines))
        (line,) = (line for line in control.lines if line.get("request_id") == request_id)
        assert line["route"] == "/v1/organization/projects/{project_id}"
        assert line["status"] == 200
        assert line["organization_id"] == alice.organization_id


class TestHealth:
    def test_is_told_without_a_key(self, control: Running) -> None:
        for url in (control.url, control.link_url):
            for path in ("/livez", "/readyz"):
                assert answered(httpx2.get(url + path, timeout=CLIENT_SECONDS))["status"] == "ok"

    def test_metrics_are_on_the_link_alone_and_name_no_tenant(self, control: Running, alice: TenantSetup) -> None:
        refused(httpx2.get(f"{control.url}/metrics", timeout=CLIENT_SECONDS), 404, "not_found")
        control.client(alice.admin_key).get(f"{PROJECTS}/{alice.project_id}")
        text = httpx2.get(f"{control.link_url}/metrics", timeout=CLIENT_SECONDS).text
        assert "tollway_control_requests_total" in text
        assert alice.project_id not in text

    def test_the_description_is_openapi_3_1(self, control: Running) -> None:
        described = answered(control.client(None).get("/openapi.json"))
        assert described["openapi"].startswith("3.1")
        assert PROJECTS in described["paths"]

    def test_the_description_is_made_once_for_all_who_ask_meanwhile(self, fresh_control: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        made = []
        monkeypatch.setattr(descriptions, "describe", lambda app: made.append(app) or describe(app))
        with ThreadPoolExecutor(8) as pool:
            paths = ["/openapi.json", "/reference"] * 4
            answers = list(pool.map(lambda path: fresh_control.client(None).get(path), paths))
        assert [each.status_code for each in answers] == [200] * len(paths)
        assert len(made) == 1


class TestHead:
    def test_of_every_get_is_answered_as_the_get_without_its_body(self, control: Running, alice: TenantSetup) -> None:
        clients = {
            "organization": (control.client(alice.admin_key), control.client(alice.admin_key)),
            "platform": (control.operator(), control.operator()),
            "node": (control.node(), control.node()),
            "public": (control.client(None), control.node()),
            "session": (control.client(None), control.client(None)),
        }
        tried = 0
        for number, each in enumerate(create_apps(control.plane)):
            for method, path, name in walk(each.routes):
                if method == "GET" and "follow" not in path:
                    client = clients[name][number]
                    got, head = client.get(path), client.head(path)
                    assert head.status_code == got.status_code and head.content == b"", path
                    assert head.headers.get("content-type") == got.headers.get("content-type"), path
                    tried += 1
        assert tried > 30

    def test_of_a_stream_without_an_end_ends(self, control: Running) -> None:
        head = control.node().head("/v1/link/changes?since=0&follow=true")
        assert (head.status_code, head.content) == (200, b"")

    def test_of_a_route_without_get_is_405(self, control: Running, alice: TenantSetup) -> None:
        head = control.client(alice.admin_key).head("/v1/organization/projects/x/archive")
        assert head.status_code == 405 and head.content == b""


class TestAnAnsweredConnection:
    @pytest.mark.parametrize("later", [b"\n", b"\r\n", b"G", b"GET / HT"])
    @pytest.mark.parametrize("path", ["/livez", "/v1/organization/projects"])
    def test_70_bytes_that_begin_no_request_end_an_answered_connection(
        self, control: Running, monkeypatch: pytest.MonkeyPatch, later: bytes, path: str
    ) -> None:
        """A byte ends the timer of an idle connection; without another one it stayed open without an end, after a 401 too."""
        monkeypatch.setattr(http_protocol, "HEAD_SECONDS_MAX", 0.2)
        with connect(control.url) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nhost: control\r\n\r\n".encode())
            assert client.recv(65536).startswith(b"HTTP/1.1 ")
            client.sendall(later)
            while True:
                try:
                    if not client.recv(65536):
                        break
                except ConnectionResetError:
                    break

    @pytest.mark.parametrize("path", ["/v1/oauth/token", "/v1/organization/projects", "/nowhere"])
    def test_76_body_in_more_chunks_than_its_size_has_is_refused(self, control: Running, path: str) -> None:
        head = f"POST {path} HTTP/1.1\r\nhost: control\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        chunk, end = b"1\r\na\r\n", b"0\r\n\r\n"
        status, body = raw(control.url, head + chunk * (http_protocol.CHUNKS_MAX + 100) + end)
        assert (status, json.loads(body)["error"]["code"]) == (400, "malformed_http")
        assert b"malformed_http" not in raw(control.url, head + chunk * (http_protocol.CHUNKS_MAX - 1) + end)[1]

    def test_77_client_that_does_not_read_its_answers_is_disconnected(self, control: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(http_protocol, "WRITE_SECONDS_MAX", 0.3)
        request = b"GET /openapi.json HTTP/1.1\r\nhost: control\r\n\r\n"
        with connect(control.url) as client, pytest.raises(ConnectionError):
            while True:
                client.sendall(request * 100)

    def test_health_is_answered_at_capacity(self, control: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(places, "REQUESTS_MAX", 0)
        refused(control.operator().get("/v1/platform/organizations"), 503, "overloaded")
        for path in ("/livez", "/readyz"):
            assert control.operator().get(path).status_code == 200


class TestTheDescription:
    @pytest.fixture
    def documents(self, control: Running) -> list[dict[str, Any]]:
        return [describe(each) for each in create_apps(control.plane)]

    def test_explains_every_field_with_an_example(self, documents: list[dict[str, Any]]) -> None:
        missing, fields = [], 0
        for document in documents:
            for name, schema in document["components"]["schemas"].items():
                for field, described in schema.get("properties", {}).items():
                    fields += 1
                    refers = (
                        "$ref" in str(described) or "const" in described or described.get("type") == "null" or "properties" in described
                    )
                    if not described.get("description") or not (refers or described.get("examples")):
                        missing.append(f"{name}.{field}")
        assert missing == [] and fields > 600

    def test_states_the_range_of_every_number(self, documents: list[dict[str, Any]]) -> None:
        """As bounds of the schema or in words; an instant, or an amount with its sign, has its unit."""
        missing, numbers = [], 0
        for document in documents:
            for name, schema in document["components"]["schemas"].items():
                for field, described in schema.get("properties", {}).items():
                    kinds = [each for each in (described, *described.get("anyOf", ())) if each.get("type") in {"integer", "number"}]
                    text = described.get("description", "")
                    is_stated = re.search(r"[0-9]|any (whole )?number|Unix (micro)?seconds", text) or any(
                        "minimum" in each for each in kinds
                    )
                    numbers += bool(kinds)
                    if kinds and not is_stated:
                        missing.append(f"{name}.{field}: {text}")
        assert missing == [] and numbers > 100

    def test_explains_every_parameter(self, documents: list[dict[str, Any]]) -> None:
        parameters = [
            (path, each)
            for document in documents
            for path, operations in document["paths"].items()
            for operation in operations.values()
            for each in operation.get("parameters", ())
        ]
        assert len(parameters) > 100
        assert [(path, each["name"]) for path, each in parameters if not each.get("description")] == []

    def test_names_errors_and_security_of_every_operation(self, documents: list[dict[str, Any]]) -> None:
        for document in documents:
            schemes = document["components"]["securitySchemes"]
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    is_public = path in {"/livez", "/readyz", "/metrics", "/v1/leaked_keys/github", "/v1/stripe/events", *OAUTH_PATHS}
                    names = [name for requirement in operation["security"] for name in requirement]
                    assert bool(names) is not is_public and set(names) <= set(schemes), path
                    errors = {status for status in operation["responses"] if status >= "400"}
                    assert errors >= ({"400", "500", "503"} if is_public else {"400", "401", "403", "429", "500", "503"}), path
                    assert "422" not in errors
                    for status in {"429", "503"} & errors:
                        assert set(operation["responses"][status]["headers"]) == {"retry-after", "retry-after-ms"}, path

    def test_is_a_page_that_loads_nothing(self, control: Running) -> None:
        response = control.client(None).get("/reference")
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/html")
        assert response.headers["content-security-policy"].startswith("default-src 'none'")
        assert "/v1/organization/projects/{project_id}" in response.text and "operatorKey" in response.text
        assert "<script" not in response.text and "http-equiv" not in response.text and "src=" not in response.text


def slow_post(connection: socket.socket, key: str) -> None:
    """Begin a request whose body never comes."""
    head = f"POST {PROJECTS} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\nContent-Length: 100\r\n\r\n"
    connection.sendall(head.encode() + b"{")


class TestPlaces:
    def test_71_slow_bodies_of_one_key_take_its_share_and_nobody_elses_place(
        self, control: Running, alice: TenantSetup, bob: TenantSetup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with ExitStack() as stack:
            admin = control.client(alice.admin_key)

            def is_refused_after_one_more() -> bool:  # a request that is being answered may take the place of a slow one
                slow_post(stack.enter_context(connect(control.url)), alice.admin_key)
                return admin.get(PROJECTS).status_code == 429

            for _ in range(places.CALLER_REQUESTS_MAX):
                slow_post(stack.enter_context(connect(control.url)), alice.admin_key)
            wait_until(is_refused_after_one_more)
            monkeypatch.setattr(places, "REQUESTS_MAX", 4)
            wait_until(lambda: admin.get(PROJECTS).status_code == 429)  # once the slow ones have been looked up, they hold no place
            refused(admin.get(PROJECTS), 429, "rate_limit_exceeded")
            answered(control.client(bob.admin_key).get(PROJECTS))
            answered(control.operator().get("/v1/platform/organizations"))
            answered(control.client(None).get("/livez"))
        wait_until(lambda: admin.get(PROJECTS).status_code == 200)

    def test_71_slow_bodies_of_many_keys_of_an_organization_take_the_share_of_one(
        self, control: Running, alice: TenantSetup, bob: TenantSetup
    ) -> None:
        admin = control.client(alice.admin_key)
        names = [{"name": f"key {number}"} for number in range(4)]
        secrets = [answered(admin.post("/v1/organization/admin_api_keys", json=name))["value"] for name in names]
        with ExitStack() as stack:

            def is_refused_after_one_more() -> bool:
                slow_post(stack.enter_context(connect(control.url)), secrets[0])
                return admin.get(PROJECTS).status_code == 429

            for number in range(places.CALLER_REQUESTS_MAX):
                slow_post(stack.enter_context(connect(control.url)), secrets[number % 4])
            wait_until(is_refused_after_one_more)
            answered(control.client(bob.admin_key).get(PROJECTS))
        wait_until(lambda: admin.get(PROJECTS).status_code == 200)

    def test_71_followed_streams_take_no_place_and_are_bounded(self, control: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(places, "REQUESTS_MAX", 2)
        monkeypatch.setattr(places, "FOLLOWERS_MAX", 5)
        path = "/v1/link/changes?since=0&follow=true"
        with ExitStack() as stack:
            for _ in range(5):
                followed = stack.enter_context(control.node().stream("GET", path))
                assert followed.status_code == 200
            refused(control.node().get(path), 503, "overloaded")
            answered_now = control.node().get("/v1/link/changes?since=0")
            assert answered_now.status_code == 200

    def test_71_streams_of_one_gateway_take_its_share_and_no_other_gateway_s(self, control: Running) -> None:
        path, other = "/v1/link/changes?since=0&follow=true", control.node("node_" + "0" * 31 + "7")
        with ExitStack() as stack:
            for _ in range(places.NODE_REQUESTS_MAX):
                assert stack.enter_context(control.node().stream("GET", path)).status_code == 200
            refused(control.node().get(path), 429, "rate_limit_exceeded")
            refused(control.node().get("/v1/link/changes?since=0"), 429, "rate_limit_exceeded")
            assert other.get("/v1/link/changes?since=0").status_code == 200
            assert stack.enter_context(other.stream("GET", path)).status_code == 200

    def test_71_key_that_takes_its_whole_share_can_still_be_used_to_revoke(self, control: Running, alice: TenantSetup) -> None:
        admin, path = control.client(alice.admin_key), f"{PROJECTS}/{alice.project_id}/api_keys"
        made = answered(admin.post(path, json={"name": "leaked"}))
        with ExitStack() as stack:

            def is_refused_after_one_more() -> bool:  # a request that is being answered may take the place of a slow one
                slow_post(stack.enter_context(connect(control.url)), alice.admin_key)
                return admin.get(PROJECTS).status_code == 429

            for _ in range(places.CALLER_REQUESTS_MAX):
                slow_post(stack.enter_context(connect(control.url)), alice.admin_key)
            wait_until(is_refused_after_one_more)
            assert answered(admin.delete(f"{path}/{made['id']}"))["deleted"] is True

    def test_71_a_key_is_revoked_when_all_places_are_taken(
        self, control: Running, alice: TenantSetup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        admin, path = control.client(alice.admin_key), f"{PROJECTS}/{alice.project_id}/api_keys"
        made = answered(admin.post(path, json={"name": "leaked"}))
        monkeypatch.setattr(places, "REQUESTS_MAX", 0)
        refused(admin.get(PROJECTS), 503, "overloaded")
        assert answered(admin.delete(f"{path}/{made['id']}"))["deleted"] is True
