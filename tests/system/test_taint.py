"""Secrets, prompts and completions appear in no log, error, metric, audit record or table where they should not be.

Each is a text that occurs nowhere else, so that it can be searched for as bytes in everything that a platform writes and answers.
"""

import base64
import json
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest

from reliability.platforms import Platform, serve
from reliability.processes import WAIT_SECONDS, Running, Start
from tollway.control.api.app import PUBLIC_ROUTERS

pytestmark = pytest.mark.system

PLACES = {"secrets.json": "the secrets of an embedded installation lie here, for its owner alone", "mail": "messages to people"}
"""Files and directories of a data directory that hold secrets on purpose."""

FAULTS = ("refuses", "fails", "nonsense", "cut", "streamed", "unknown")
"""Ways in which the engine of this test fails. Each says what it was sent, with the credential."""


ENDPOINTS = ("chat/completions", "completions", "responses", "messages", "embeddings")


def mark(name: str) -> str:
    """Return a text that occurs nowhere else, of characters that no encoding on the way changes."""
    return f"taint{name}{secrets.token_hex(12)}"


@dataclass(slots=True)
class Planted:
    """Texts that were planted, by name, and the answers that came back."""

    texts: dict[str, str] = field(default_factory=dict)
    answers: list[tuple[str, httpx2.Response]] = field(default_factory=list)

    def plant(self, name: str, text: str | None = None) -> str:
        """Return the text of this name, a new one unless it is given."""
        return self.texts.setdefault(name, text or mark(name))

    def find_in(self, content: bytes, but: Iterable[str] = ()) -> set[str]:
        """Return the names of what is in `content`, as it is, in hexadecimal or in base64."""
        return {name for name, text in self.texts.items() if name not in but and any(form in content for form in _list_forms(text))}


def _list_forms(text: str) -> list[bytes]:
    raw = text.encode()
    encoded = [base64.b64encode(raw[start:])[:24] for start in range(3)]  # wherever it begins within three bytes
    return [raw, raw.hex().encode(), *encoded]


class _Engine(BaseHTTPRequestHandler):
    """An engine that fails and repeats whatever it was sent, its credential too."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        said = f"{self.headers['authorization']} sent {body.decode('utf-8', 'replace')}"
        way = json.loads(body).get("model", "")
        error = json.dumps({"error": {"message": said, "type": said, "param": said, "code": said}}).encode()
        if way == "streamed":
            self._answer(200, "text/event-stream", b"data: " + error + b"\n\n")
        elif way == "cut":
            self._answer(200, "application/json", error[: len(error) // 2], length=len(error))
        else:
            status = {"refuses": 400, "fails": 500, "unknown": 404}.get(way, 200)
            self._answer(status, "application/json", said.encode() if way == "nonsense" else error)

    def do_GET(self) -> None:
        self._answer(404, "text/plain", f"{self.headers['authorization']}".encode())

    def _answer(self, status: int, media_type: str, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("content-type", media_type)
        self.send_header("content-length", str(len(body) if length is None else length))
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def failing_engine() -> Iterator[str]:
    """The address of an engine that repeats secrets."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Engine)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_121_secrets_prompts_and_completions_are_in_no_log_error_metric_or_table(start: Start, tmp_path: Path) -> None:
    planted = Planted()
    environment = {
        "TOLLWAY__CONTROL__MAIL__SERVER": "127.0.0.1:1",
        "TOLLWAY__CONTROL__MAIL__USERNAME": "tollway",
        "TOLLWAY_MAIL_PASSWORD": planted.plant("mail-password"),
        "TOLLWAY_STRIPE_KEY": planted.plant("stripe-key", "sk_test_" + secrets.token_hex(16)),
        "TOLLWAY_STRIPE_WEBHOOK_SECRET": planted.plant("stripe-webhook-secret", "whsec_" + secrets.token_hex(16)),
        "TOLLWAY__CONTROL__STRIPE__URL": "http://127.0.0.1:1",
        "TOLLWAY__CONTROL__OPERATOR_SIGN_IN__ISSUER": "https://login.example.com",
        "TOLLWAY__CONTROL__OPERATOR_SIGN_IN__CLIENT_ID": "tollway",
        "TOLLWAY__CONTROL__OPERATOR_SIGN_IN__OPERATOR_GROUPS": "operators",
        "TOLLWAY_OPERATOR_CLIENT_SECRET": planted.plant("operator-client-secret"),
        "TOLLWAY__GATEWAY__FILES__DIRECTORY": str(tmp_path / "data" / "files"),
    }
    with failing_engine() as failing_url, serve(start, tmp_path, environment=environment) as (platform, running):
        kept = json.loads((platform.directory / "secrets.json").read_bytes())
        for name in ("platform_key", "node_key", "vault_key", "audit_key"):
            planted.plant(name, kept[name])
        planted.plant("pepper", kept["peppers"]["1"])
        planted.plant("api_key", platform.tenant.api_key)
        planted.plant("admin_key", platform.tenant.admin_key)
        _administer(platform, planted, failing_url)
        _infer(platform, planted)
        _misuse(platform, planted)
        _read_everything(platform, planted, running)
        found = _list_leaks(planted, running)
        running.stop()
        found |= _list_leaks(planted, running)  # what was still in memory
    assert not found, json.dumps(sorted(map(list, found)), indent=1)


def _administer(platform: Platform, planted: Planted, failing_url: str) -> None:
    """Plant secrets at the control plane, where they belong: sealed or as digests."""
    with _operator(platform) as operator, platform.admin() as admin:
        simulated = operator.get("/v1/platform/deployments").json()["data"][0]["base_url"]
        engines = {way: (failing_url, "vllm", way) for way in FAULTS} | {"talker": (simulated, "sim", "sim-echo")}
        for model, (base_url, engine, upstream_model) in engines.items():
            _post(operator, "/v1/platform/models", {"name": model, "endpoints": [*ENDPOINTS]})
            _post(operator, "/v1/platform/prices", {"model": model, "currency": "EUR", "input": "1", "output": "1"})
            _post(operator, f"/v1/platform/models/{model}/publish", {})
            deployment = {"model": model, "base_url": base_url, "engine": engine, "upstream_model": upstream_model}
            _post(operator, "/v1/platform/deployments", {**deployment, "credential": planted.plant("upstream-credential")})
        connection = {"name": "login", "issuer": "https://login.example.com", "client_id": "tollway"}
        client_secret = planted.plant("client-secret")
        _post(admin, "/v1/organization/sign_in_connections", {**connection, "client_secret": client_secret})
        _post(admin, "/v1/organization", {"response_retention_seconds": 3600})
        path = f"/v1/organization/projects/{platform.tenant.project_id}/api_keys"
        revoked = _post(admin, path, {"name": "revoked"})
        planted.plant("revoked-key", revoked["value"])
        admin.delete(f"{path}/{revoked['id']}")
        rotated = _post(admin, path, {"name": "rotated"})
        planted.plant("rotated-key", rotated["value"])
        planted.plant("new-secret", _post(admin, f"{path}/{rotated['id']}/rotate", {"grace_seconds": 60})["value"])
        repeated = admin.post(path, json={"name": "repeated"}, headers={"idempotency-key": "once"}).json()
        planted.plant("repeated-key", repeated["value"])
        admin.post("/v1/organization/invites", json={"email": "ada@example.com", "role": "reader"})  # the mail server is away


def _infer(platform: Platform, planted: Planted) -> None:
    """Send prompts in every dialect, whole and streamed, good and bad, to engines that answer and that fail."""
    prompt, key = planted.plant("prompt"), platform.tenant.api_key
    words = f"Repeat {prompt} please."
    messages = [{"role": "user", "content": words}]
    good: list[tuple[str, dict[str, Any]]] = [
        ("chat/completions", {"messages": messages}),
        ("completions", {"prompt": words}),
        ("responses", {"input": words}),
        ("responses", {"input": words, "store": True}),
        ("messages", {"messages": messages, "max_tokens": 50}),
        ("embeddings", {"input": words}),
    ]
    bad: list[dict[str, Any]] = [
        {"messages": words},
        {"messages": [{"role": prompt, "content": words}]},
        {"messages": [{"role": "user", "content": [{"type": prompt, "text": words}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"http://127.0.0.1/{prompt}"}}]}]},
        {"messages": messages, "max_tokens": words},
        {"messages": messages, "temperature": words},
        {"messages": messages, "tools": words},
        {"messages": messages, "response_format": {"type": prompt}},
        {"messages": messages, "stream": words},
        {"messages": messages, "service_tier": prompt},
        {"messages": messages, "user": ["x", words]},
        {"messages": messages, "metadata": {"x": {"y": words}}},
        {"messages": messages, "api_key": planted.plant("api_key_field"), "base_url": words},
    ]
    with _gateway(platform, key) as http:
        for endpoint, body in good:
            for model in ("talker", *(FAULTS if endpoint in ("chat/completions", "messages") else ())):
                for stream in (False, True) if endpoint != "embeddings" else (False,):
                    answer = http.post(f"/v1/{endpoint}", json={"model": model, **body, **({"stream": True} if stream else {})})
                    planted.answers.append((f"{endpoint} of {model}", answer))
                    is_whole = model == "talker" and endpoint != "embeddings" and not stream  # a stream has it in pieces
                    assert prompt in answer.text or not is_whole, (endpoint, answer.text)
        for body in bad:
            planted.answers.append(("bad body", http.post("/v1/chat/completions", json={"model": "echo", **body})))
        for content in (f'{{"model": "echo", "messages": "{words}', f"[{words}]", f'{{"model":"echo","model":"{prompt}"}}'):
            headers = {"content-type": "application/json"}
            planted.answers.append(("no JSON", http.post("/v1/chat/completions", content=content.encode(), headers=headers)))
        files = {"file": (f"{prompt}.jsonl", words.encode()), "purpose": (None, "batch")}
        planted.answers.append(("file", http.post("/v1/files", files=files)))
        chat = {"model": "echo", "messages": messages}
        for headers in ({"idempotency-key": key}, {"x-client-request-id": key}, {"traceparent": key}, {"user-agent": key}):
            planted.answers.append((f"{next(iter(headers))}", http.post("/v1/chat/completions", json=chat, headers=headers)))
        planted.answers.append(("user", http.post("/v1/chat/completions", json={**chat, "user": key, "model": "echo"})))
        planted.answers.append(("model", http.post("/v1/chat/completions", json={**chat, "model": key})))
        try:
            with http.stream("POST", "/v1/chat/completions", json={**chat, "model": "slow", "stream": True}) as answer:
                next(answer.iter_raw())  # and leaves
        except httpx2.HTTPError:
            pass


def _misuse(platform: Platform, planted: Planted) -> None:
    """Present secrets where they do not belong: in addresses, other headers, wrong fields, forms."""
    password, secret = planted.plant("password"), planted.plant("api_key")
    admin_key, revoked = planted.plant("admin_key"), planted.plant("revoked-key")
    upstream = planted.plant("upstream-credential")
    for http, name in ((_gateway(platform, None), "gateway"), (httpx2.Client(base_url=platform.control_url, trust_env=False), "control")):
        with http:
            path = "/v1/models" if name == "gateway" else "/v1/organization/projects"
            for headers in (
                {"authorization": f"Bearer {revoked}"},
                {"authorization": f"Bearer {secret[:-1]}"},
                {"authorization": f"Basic {base64.b64encode(f'x:{password}'.encode()).decode()}"},
                {"authorization": f"Bearer {admin_key} {password}"},
                {"authorization": f"Bearer {admin_key}", "x-api-key": secret},
                {"authorization": f"Bearer {upstream}"},
                {"authorization": f"Bearer {secret if name == 'control' else admin_key}"},
                {"cookie": f"tollway_session={admin_key}"},
            ):
                planted.answers.append((f"{name} with another credential", http.get(path, headers=headers)))
            for query in (f"?api_key={secret}", f"?{secret}=1", f"/{secret}", f"?after={admin_key}"):
                planted.answers.append((f"{name} at {path}", http.get(f"{path}{query}", headers={"authorization": "Bearer x"})))
    with platform.admin() as admin, _operator(platform) as operator:
        requests = [
            ("GET", f"/v1/organization/requests/{secret}/receipt", None),
            ("GET", f"/v1/organization/projects/{secret}", None),
            ("POST", f"/v1/organization/projects/{secret}/archive", None),
            ("DELETE", f"/v1/organization/admin_api_keys/{admin_key}", None),
            ("GET", f"/v1/organization/audit_logs?after={secret}", None),
            ("GET", f"/v1/organization/audit_logs?resource_ids[]={secret}", None),
            ("GET", f"/v1/organization/audit_logs?{secret}=1", None),
            ("POST", "/v1/organization/sign_in_connections", {"name": "x", "client_secret": [planted.plant("client-secret")]}),
            ("POST", "/v1/organization/projects", {"name": {"x": secret}}),
            ("POST", "/v1/organization/projects", secret),
            ("POST", "/v1/organization/users", {"password": password}),
        ]
        for method, path, body in requests:
            planted.answers.append(
                (f"{method} {path[:40]}", admin.request(method, path, json=body) if body else admin.request(method, path))
            )
        wrong = {"model": "echo", "base_url": f"http://x:{password}@127.0.0.1:1", "engine": "sim", "upstream_model": "x"}
        for body in (wrong, {**wrong, "credential": {"x": upstream}}, {**wrong, "base_url": password, "credential": f"{upstream}\n"}):
            planted.answers.append(("deployment", operator.post("/v1/platform/deployments", json=body)))
    with httpx2.Client(base_url=platform.control_url, trust_env=False) as http:
        form = {"origin": platform.control_url, "sec-fetch-site": "same-origin", "content-type": "application/x-www-form-urlencoded"}
        for fields in ({"email": "ada@example.com", "password": password}, {"email": planted.plant("password as address"), "password": ""}):
            content = urlencode({**fields, "organization": "", "next": ""})
            planted.answers.append(("sign-in", http.post("/sign-in", content=content, headers=form)))
        for path in ("/join", "/link"):
            planted.answers.append((f"page {path}", http.get(path, params={"token": admin_key, "code": password})))
        exchange = {"grant_type": "client_credentials", "client_id": secret, "client_secret": planted.plant("client-secret")}
        planted.answers.append(("token", http.post("/v1/oauth/token", data=exchange)))
        planted.answers.append(("revocation", http.post("/v1/oauth/revoke", data={"token": admin_key})))


def _read_everything(platform: Platform, planted: Planted, running: Running) -> None:
    """Read all that an operator and an admin can read without naming a thing, metrics and the internal listener."""
    platform.wait_until_billed(10)
    paths = {route.path for router in PUBLIC_ROUTERS for route in router.routes if "GET" in getattr(route, "methods", ())}
    now = int(time.time())
    for http in (_operator(platform), platform.admin()):
        with http:
            for path in sorted(each.replace("{project_id}", platform.tenant.project_id) for each in paths):
                if "{" not in path:
                    answer = http.get(path, params={"start_time": now - 3600} if "/usage/" in path or path.endswith("costs") else None)
                    planted.answers.append((f"GET {path}", answer))
    ready = [json.loads(line) for line in running.stdout.read_bytes().splitlines() if b'"ready"' in line]
    addresses = {line[name] for line in ready for name in ("internal_url", "link_url") if name in line}
    assert len(addresses) == 2, ready
    for address in addresses:
        for path in ("/metrics", "/livez", "/readyz", "/readyz?verbose"):
            planted.answers.append((f"GET {path}", httpx2.get(f"{address}{path}", trust_env=False)))


def _list_leaks(planted: Planted, running: Running) -> set[tuple[str, str]]:
    """Return where something is that should not be: the place, and the name of what is there."""
    found: set[tuple[str, str]] = set()
    for path in (running.stdout, running.stderr, *sorted(running.directory.rglob("*"))):
        if path.is_file() and not any(part in PLACES for part in path.parts):
            found |= {(str(path.name), name) for name in planted.find_in(path.read_bytes())}
    assert len(planted.answers) > 150
    for place, answer in planted.answers:
        headers = repr(answer.headers.raw).encode()
        is_export = place == "GET /v1/organization/export"  # which opens stored responses for the organization
        is_own = answer.status_code == 200 and (is_export or not place.startswith("GET "))
        repeated = {"prompt"} if is_own else {"password as address"} if place == "sign-in" else set()  # to whoever sent it
        found |= {(f"{answer.status_code} {place}", name) for name in planted.find_in(headers + answer.content, repeated)}
    return found


def _post(http: httpx2.Client, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, f"{path}: {answer.text}"
    return dict(answer.json())


def _operator(platform: Platform) -> httpx2.Client:
    headers = {"authorization": f"Bearer {platform.platform_key}", "openai-organization": platform.tenant.organization_id}
    return httpx2.Client(base_url=platform.control_url, headers=headers, timeout=WAIT_SECONDS, trust_env=False)


def _gateway(platform: Platform, key: str | None) -> httpx2.Client:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx2.Client(base_url=platform.gateway_url, headers=headers, timeout=WAIT_SECONDS, trust_env=False)
