"""Secrets, prompts and completions appear in nothing where they should not be: log, error, metric, trace, table, page, webhook, sink.

Each is a text that occurs nowhere else, so that it can be searched for as bytes in everything that a platform writes, answers and sends.
"""

import base64
import json
import re
import secrets
import socketserver
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2
import msgspec
import pytest

from reliability.platforms import Platform, serve
from reliability.processes import WAIT_SECONDS, Running, Start
from tests.collectors import Collected, http_collector
from tests.control.eventing.receivers import Receiver, receiving
from tests.gateway.certificates import make_pem
from tests.tokens import make_p256
from tollway.control.api.app import PUBLIC_ROUTERS
from tollway.control.console.routers import ROUTERS as CONSOLE_ROUTERS
from tollway.domain.events import TENANT_TYPES, EventType

pytestmark = pytest.mark.system

PLACES = {"secrets.json": "the secrets of an embedded installation lie here, for its owner alone", "mail": "messages to people"}
"""Files and directories of a data directory that hold secrets on purpose."""

FAULTS = ("refuses", "fails", "nonsense", "cut", "streamed", "unknown")
"""Ways in which the engine of this test fails. Each says what it was sent, with the credential."""


ENDPOINTS = ("chat/completions", "completions", "responses", "messages", "embeddings")

PAGES_ELSEWHERE = (
    *("/console/assets/{name}", "/console/{path:path}", "/console/organizations/{organization_id}/requests/live"),
    *(f"/console/organizations/{{organization_id}}/projects/{{project_id}}/content{part}" for part in ("", "/{request_id}")),
)
"""Files, addresses that are none, an answer without an end whose rows are those of the list of requests, and the pages that show
the content of requests to those who may read it."""

OF_INVOICES = ("invoice_id", "format", "/proof", "debit_file_id", "transfer_file_id", "entity_id")
"""Parts of the paths of pages that need a seller or a closed month, which have amounts and no content."""

REQUESTS_SHOWN = 20
"""Latest requests whose pages are opened: those with planted headers and fields are among them."""

FORM = {"sec-fetch-site": "same-origin", "content-type": "application/x-www-form-urlencoded"}


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
    """An engine that fails and repeats whatever it was sent, its credential too; or that answers with the completion of its server."""

    protocol_version = "HTTP/1.1"
    server: "_EngineServer"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        said = f"{self.headers['authorization']} sent {body.decode('utf-8', 'replace')}"
        asked = json.loads(body)
        way = asked.get("model", "")
        error = json.dumps({"error": {"message": said, "type": said, "param": said, "code": said}}).encode()
        if way == "tells":
            kind, name = ("chat.completion.chunk", "delta") if asked.get("stream") else ("chat.completion", "message")
            choice = {"index": 0, name: {"role": "assistant", "content": self.server.completion}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
            told = json.dumps({"id": "x", "object": kind, "created": 1, "model": way, "choices": [choice], "usage": usage}).encode()
            if asked.get("stream"):
                self._answer(200, "text/event-stream", b"data: " + told + b"\n\ndata: [DONE]\n\n")
            else:
                self._answer(200, "application/json", told)
        elif way == "streamed":
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


class _EngineServer(ThreadingHTTPServer):
    """The server of an engine. `completion`: what it answers where it does not fail."""

    completion = ""


class _MailConversation(socketserver.StreamRequestHandler):
    """A conversation with a mail server (RFC 5321). It refuses mail to Ada and repeats all that it heard, the password too."""

    server: "_MailServer"

    def handle(self) -> None:
        heard = ""
        self._say("220 here")
        while line := self.rfile.readline().decode():
            heard += line.strip() + " "
            verb = line.split()[0].upper()
            if verb == "EHLO":
                self._say("250-here\r\n250 AUTH PLAIN")
            elif verb == "AUTH":
                heard += base64.b64decode(line.split()[2]).decode().replace("\0", " ")
                self._say("235 yes")
            elif verb == "RCPT" and "ada@" in line:
                self._say(f"550 no {heard}")
            elif verb == "DATA":
                self._say("354 go on")
                message = b""
                while not message.endswith(b"\r\n.\r\n"):
                    message += self.rfile.readline()
                self.server.messages.append(message.decode())
                self._say("250 taken")
            else:
                self._say("221 bye" if verb == "QUIT" else "250 yes")

    def _say(self, words: str) -> None:
        self.wfile.write(f"{words}\r\n".encode())


class _MailServer(socketserver.ThreadingTCPServer):
    """A mail server. `messages`: those that it took."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _MailConversation)
        self.messages: list[str] = []


@contextmanager
def listening(server: socketserver.BaseServer) -> Iterator[str]:
    """The address of a server on loopback that answers for the length of the block."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(slots=True, kw_only=True)
class _Outside:
    """Receivers of what the platform sends: telemetry, records for a sink, webhooks, mail, requests to an engine."""

    collected: Collected
    sink: Receiver
    hook: Receiver
    platform_hook: Receiver
    mail: _MailServer
    mail_address: str
    engine_url: str

    def list_records(self) -> list[dict[str, Any]]:
        """The records that reached the sink."""
        return [record for _, body in list(self.sink.sent) for record in json.loads(body)]


@contextmanager
def outside(planted: Planted) -> Iterator[_Outside]:
    """Everything that a platform sends to, on loopback."""
    engine, mail = _EngineServer(("127.0.0.1", 0), _Engine), _MailServer()
    engine.completion = planted.plant("completion")
    with ExitStack() as stack:
        yield _Outside(
            collected=stack.enter_context(http_collector()),
            sink=stack.enter_context(receiving()),
            hook=stack.enter_context(receiving()),
            platform_hook=stack.enter_context(receiving()),
            mail=mail,
            mail_address=stack.enter_context(listening(mail)),
            engine_url=f"http://{stack.enter_context(listening(engine))}",
        )


def test_121_secrets_prompts_and_completions_are_in_nothing_that_is_written_answered_or_sent(start: Start, tmp_path: Path) -> None:
    planted = Planted()
    with ExitStack() as stack:
        receivers = stack.enter_context(outside(planted))
        platform, running = stack.enter_context(serve(start, tmp_path, environment=_environment(planted, receivers, tmp_path)))
        kept = json.loads((platform.directory / "secrets.json").read_bytes())
        for name in ("platform_key", "node_key", "vault_key", "audit_key"):
            planted.plant(name, kept[name])
        planted.plant("pepper", kept["peppers"]["1"])
        planted.plant("api_key", platform.tenant.api_key)
        planted.plant("admin_key", platform.tenant.admin_key)
        _administer(platform, planted, receivers)
        _infer(platform, planted)
        _misuse(platform, planted)
        _read_everything(platform, planted, running)
        _wait_until_sent(running, receivers)
        _walk_the_console(platform, planted, receivers)
        found = _list_leaks(planted, running)
        running.stop()
        found |= _list_leaks(planted, running) | _list_leaks_outside(planted, receivers)  # what was still in memory
    assert not found, json.dumps(sorted(map(list, found)), indent=1)


def _environment(planted: Planted, receivers: _Outside, tmp_path: Path) -> dict[str, str]:
    """Return the settings of the platform, with planted secrets, so that it sends to everything outside."""
    sink_secret = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
    return {
        "TOLLWAY__CONTROL__MAIL__SERVER": receivers.mail_address,
        "TOLLWAY__CONTROL__MAIL__SECURITY": "none",
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
        "TOLLWAY__CONTROL__WEBHOOK_NETWORKS": "127.0.0.0/8",
        "TOLLWAY__CONTROL__SINKS__HTTP_URL": receivers.sink.url,
        "TOLLWAY_SINK_SECRET": planted.plant("sink-secret", sink_secret),
        "TOLLWAY__TELEMETRY__ENDPOINT": receivers.collected.url,
        "TOLLWAY__TELEMETRY__SAMPLE_RATIO": "1",
        "TOLLWAY__TELEMETRY__TRACES_PER_SECOND_MAX": "10000",
        "TOLLWAY__TELEMETRY__METRICS_SECONDS": "1",
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-collector-key={planted.plant('collector-key')}",
    }


def _administer(platform: Platform, planted: Planted, receivers: _Outside) -> None:
    """Plant secrets at the control plane, where they belong: sealed or as digests. Let webhooks tell of each change."""
    with _operator(platform) as operator, platform.admin() as admin:
        for http, path, types, receiver in (
            (admin, "/v1/webhook_endpoints", [*TENANT_TYPES], receivers.hook),
            (operator, "/v1/platform/webhook_endpoints", [*EventType], receivers.platform_hook),
        ):
            made = _post(http, path, {"name": "hook", "event_types": types, "url": receiver.url})
            planted.plant(f"secret of {path}", made["signing_secret"])
        simulated = operator.get("/v1/platform/deployments").json()["data"][0]["base_url"]
        engines = {way: (receivers.engine_url, "vllm", way) for way in (*FAULTS, "tells")} | {"talker": (simulated, "sim", "sim-echo")}
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
        budget = {"name": "b", "mode": "soft", "window": "month", "amount": "100", "currency": "EUR", "thresholds": [50]}
        _post(admin, "/v1/organization/budgets", budget)
        _post(admin, "/v1/organization/groups", {"name": "group"})
        account = _post(admin, f"/v1/organization/projects/{platform.tenant.project_id}/service_accounts", {"name": "account"})
        planted.plant("account-key", account["api_key"]["value"])
        keys = {"type": "uploaded_jwks", "jwks": {"keys": [msgspec.to_builtins(make_p256("k").jwk)]}}
        issuer = {"type": "oidc", "name": "programs", "issuer": "https://issuer.example", "audience": "a", "verification": keys}
        _post(admin, "/v1/organization/workload_identity_providers", issuer)
        _post(admin, "/v1/organization/certificates", {"name": "authority", "certificate": make_pem("authority")})
        planted.plant("second-admin-key", _post(admin, "/v1/organization/admin_api_keys", {"name": "second"})["value"])
        headers = {"x-export-key": planted.plant("export-header")}
        export = {"name": "export", "url": "http://127.0.0.1:1", "format": "otlp", "signals": ["traces"], "headers": headers}
        _post(admin, "/v1/organization/telemetry_exports", export)
        contract = {"name": "enterprise", "currency": "EUR", "discount_bp": 1_000}
        _post(operator, f"/v1/platform/organizations/{platform.tenant.organization_id}/contracts", contract)
        _post(operator, "/v1/platform/plans", {"name": "starter", "limits": {"requests_per_minute": 1_000_000}})
        (book, *_) = operator.get("/v1/platform/price_books").json()["data"]
        line = {"model": "echo", "input": "1.5", "output": "1"}
        _post(operator, "/v1/platform/price_drafts", {"book_id": book["id"], "lines": [line]})
        _post(admin, "/v1/organization/invites", {"email": "ada@example.com", "role": "reader"})  # which the mail server refuses


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
            failing = FAULTS if endpoint in ("chat/completions", "messages") else ()
            for model in ("talker", *failing, *(("tells",) if endpoint == "chat/completions" else ())):
                for stream in (False, True) if endpoint != "embeddings" else (False,):
                    answer = http.post(f"/v1/{endpoint}", json={"model": model, **body, **({"stream": True} if stream else {})})
                    planted.answers.append((f"{endpoint} of {model}", answer))
                    is_whole = model == "talker" and endpoint != "embeddings" and not stream  # a stream has it in pieces
                    assert prompt in answer.text or not is_whole, (endpoint, answer.text)
                    assert planted.texts["completion"] in answer.text or model != "tells", answer.text
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
    for http, name in ((_gateway(platform, None), "gateway"), (_browser(platform), "control")):
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
    with _browser(platform) as http:
        form = {"origin": platform.control_url, **FORM}
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
            planted.answers.append((f"GET {path}", httpx2.get(f"{address}{path}", trust_env=False, timeout=WAIT_SECONDS)))


def _wait_until_sent(running: Running, receivers: _Outside) -> None:
    """Wait until each of the receivers was sent something of everything that it gets."""

    def is_all_sent() -> bool:
        records = receivers.list_records()
        told = {event["type"] for receiver in (receivers.hook, receivers.platform_hook) for event in receiver.events}
        streams = {"event", "audit_record", "usage_event"}
        services = {"tollway-gateway", "tollway-control"}
        return (
            {EventType.API_KEY_CREATED, EventType.API_KEY_ROTATED, EventType.API_KEY_REVOKED, EventType.DEPLOYMENT_CREATED} <= told
            and streams <= {record["object"] for record in records}
            and services == {name for name, _ in receivers.collected.metrics}
            and {"chat talker", "chat tells", "chat fails", "POST /sign-in"} <= {span.name for _, span in receivers.collected.spans}
        )

    running.wait_until(is_all_sent)


def _walk_the_console(platform: Platform, planted: Planted, receivers: _Outside) -> None:
    """Open each page of the console, of an organization as its owner and as an operator, and of the platform as an operator."""
    routes = {route.path for router in CONSOLE_ROUTERS for route in router.routes if "GET" in getattr(route, "methods", ())}
    routes = {path for path in routes if path not in PAGES_ELSEWHERE and not any(part in path for part in OF_INVOICES)} | {"/account"}
    with _browser(platform) as owner, _browser(platform) as operator:
        invite = planted.plant("invite", _invite_owner(platform, receivers))
        joined = {"token": invite, "name": "Olga", "password": planted.plant("owner-password")}
        for viewer, entrance, fields in ((owner, "/join", joined), (operator, "/sign-in/operators/key", {"key": platform.platform_key})):
            answer = viewer.post(entrance, content=urlencode(fields), headers={"origin": platform.control_url, **FORM})
            assert answer.status_code == 303, answer.text
            planted.plant(f"session by {entrance}", viewer.cookies["tollway_session"])
        known, requests = _list_ids(platform)
        for name, viewer in (("owner", owner), ("operator", operator)):
            for path in sorted(each for each in routes if viewer is operator or not each.startswith("/console/platform")):
                for request_id in requests if "{request_id}" in path else requests[:1]:
                    answer = viewer.get(path.format(request_id=request_id, **known), follow_redirects=True)
                    assert answer.status_code == 200, (name, path, answer.text)
                    planted.answers.append((f"GET {path} as {name}", answer))


def _invite_owner(platform: Platform, receivers: _Outside) -> str:
    """Invite a person as an owner. Return the token of the mail."""
    with platform.admin() as admin:
        _post(admin, "/v1/organization/invites", {"email": "olga@example.com", "role": "owner"})
    (message,) = receivers.mail.messages
    token = re.search(r"tw_invite_\w+", message)
    assert token is not None, message
    return token[0]


def _list_ids(platform: Platform) -> tuple[dict[str, str], list[str]]:
    """Return ids of what there is, by their names in paths of pages, and those of the latest requests."""
    with _operator(platform) as operator, platform.admin() as admin:
        collections = {
            "budget_id": (admin, "/v1/organization/budgets"),
            "user_id": (admin, "/v1/organization/users"),
            "group_id": (admin, "/v1/organization/groups"),
            "connection_id": (admin, "/v1/organization/sign_in_connections"),
            "webhook_endpoint_id": (admin, "/v1/webhook_endpoints"),
            "admin_key_id": (admin, "/v1/organization/admin_api_keys"),
            "telemetry_export_id": (admin, "/v1/organization/telemetry_exports"),
            "service_account_id": (admin, f"/v1/organization/projects/{platform.tenant.project_id}/service_accounts"),
            "identity_provider_id": (admin, "/v1/organization/workload_identity_providers"),
            "certificate_id": (admin, "/v1/organization/certificates"),
            "contract_id": (admin, "/v1/organization/contracts"),
            "plan_id": (operator, "/v1/platform/plans"),
            "book_id": (operator, "/v1/platform/price_books"),
            "draft_id": (operator, "/v1/platform/price_drafts"),
            "period_id": (operator, f"/v1/platform/periods?organization_id={platform.tenant.organization_id}"),
        }
        known = {name: str(http.get(path).json()["data"][0]["id"]) for name, (http, path) in collections.items()}
        tenant = platform.tenant
        known |= {"organization_id": tenant.organization_id, "project_id": tenant.project_id, "key_id": tenant.api_key_id}
        listed = admin.get("/v1/organization/requests", params={"limit": REQUESTS_SHOWN}).json()["data"]
    return known, [str(each["id"]) for each in listed]


def _list_leaks_outside(planted: Planted, receivers: _Outside) -> set[tuple[str, str]]:
    """Return what the platform sent and should not have: where to, and the name of what it was."""
    sent = [("telemetry", content) for content in receivers.collected.requests]
    for name, receiver in (("sink", receivers.sink), ("webhook", receivers.hook), ("webhook of the platform", receivers.platform_hook)):
        sent += [(name, f"{headers}".encode() + body) for headers, body in receiver.sent]
    return {(place, name) for place, content in sent for name in planted.find_in(content)}


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
        repeated = {"prompt", "completion"} if is_own else {"password as address"} if place == "sign-in" else set()  # to whoever sent it
        found |= {(f"{answer.status_code} {place}", name) for name in planted.find_in(headers + answer.content, repeated)}
    return found


def _post(http: httpx2.Client, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, f"{path}: {answer.text}"
    return dict(answer.json())


def _operator(platform: Platform) -> httpx2.Client:
    headers = {"authorization": f"Bearer {platform.platform_key}", "openai-organization": platform.tenant.organization_id}
    return httpx2.Client(base_url=platform.control_url, headers=headers, timeout=WAIT_SECONDS, trust_env=False)


def _browser(platform: Platform) -> httpx2.Client:
    return httpx2.Client(base_url=platform.control_url, timeout=WAIT_SECONDS, trust_env=False)


def _gateway(platform: Platform, key: str | None) -> httpx2.Client:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx2.Client(base_url=platform.gateway_url, headers=headers, timeout=WAIT_SECONDS, trust_env=False)
