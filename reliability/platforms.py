"""Platforms of real processes to be broken: an engine of their own, a catalog with a price for everything, a tenant.

`serve`: gateway and control under the supervisor, as `tollway serve` runs them. `supervised`: the same at addresses that stay, for
tests that kill the supervisor too. `apart`: each process by itself, for tests that decide when one of them lives. Every process is a
child of the test's and ends with the block that started it.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import sqlalchemy as sa

from reliability.bill_checks import lines_of_log
from reliability.processes import (
    ENVIRONMENT,
    MIGRATE_SECONDS,
    NO_TLS,
    WAIT_SECONDS,
    Running,
    Start,
    end_all,
    list_descendants,
    tollway,
)

MODELS = {
    "echo": ("sim-echo",),
    "thinker": ("sim-echo!reasoning@6",),
    "slow": ("sim-echo!itl@50",),
    "flaky": ("sim-echo!error@0:503", "sim-echo"),
}
"""Public names, and what the engine is asked for by the deployments of each tier: it reads its orders from behind the exclamation mark."""

PRICES = {
    "echo": {"input": "1.234567", "cached_input": "0.250001", "output": "2.000003", "reasoning": "3.141593", "request": "0.000000012345"},
    "thinker": {"input": "0.7", "cached_input": "0.000007", "output": "999.999999", "reasoning": "17", "request": "0"},
    "slow": {"input": "3", "cached_input": "1", "output": "7.5", "reasoning": "11", "request": "0.01"},
    "flaky": {"input": "5", "cached_input": "0.000001", "output": "13.333333", "reasoning": "19", "request": "0.000000000001"},
}
"""EUR per million tokens, and per request. No two alike, so that no class or model can pass for another."""

ENDPOINTS = ["chat/completions", "completions", "embeddings", "messages", "responses"]
"""Endpoints of every model."""

USAGE_KINDS = ("completions", "embeddings", "images", "audio_speeches", "audio_transcriptions")
"""Kinds in which the usage API counts requests."""

FREE = ("--listen", "127.0.0.1:0", "--internal", "127.0.0.1:0", "--control-listen", "127.0.0.1:0", "--link", "127.0.0.1:0")


@contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Free ports that stay ours while nobody listens: bound, so that the kernel gives them to no one else; with SO_REUSEADDR and not
    listening, so that a process of ours can listen there, end, and listen again."""
    with ExitStack() as held:
        holders = [held.enter_context(socket.socket()) for _ in range(count)]
        for holder in holders:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", 0))
        yield [holder.getsockname()[1] for holder in holders]


@dataclass(slots=True)
class Part:
    """One process that can be killed and started again: `arguments` follow the interpreter; it says where it is when it is ready.
    `interpreter`: that of another version, whose sources `environment` names."""

    arguments: Sequence[str]
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None
    interpreter: str = sys.executable
    _said: int = 0

    @property
    def out(self) -> Path:
        """Return what it wrote to standard output and standard error, in all its lives."""
        return self.directory / "out"

    def launch(self) -> "subprocess.Popen[bytes]":
        """Start it; do not wait."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._said = self.out.stat().st_size if self.out.exists() else 0
        with self.out.open("ab") as out:
            self.process = subprocess.Popen(
                [self.interpreter, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**ENVIRONMENT, **self.environment},
                start_new_session=True,
            )
        return self.process

    def start(self) -> dict[str, Any]:
        """Start it and return its ready line."""
        process = self.launch()
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            ended = process.poll() is not None
            for line in self.out.read_bytes()[self._said :].splitlines(keepends=True):
                if line.startswith(b"{") and line.endswith(b"\n") and (event := json.loads(line)).get("event") == "ready":
                    return dict(event)
            if ended:
                break
            time.sleep(0.02)
        raise AssertionError(f"{' '.join(self.arguments)} did not start:\n{self.out.read_text()}")

    def end(self, sign: signal.Signals) -> int:
        """Send a signal, wait for the end; returns the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(sign)
        return self.process.wait(WAIT_SECONDS)

    def discard(self) -> None:
        """End it however it is."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(WAIT_SECONDS)


@contextmanager
def engine(directory: Path, *options: str) -> Iterator[tuple[Part, str]]:
    """A simulated engine with its truth log in `directory`, and its address, which it keeps when it is started again."""
    with reserved_ports(1) as (port,):
        arguments = ("-m", "tollway", "simulate", "--listen", f"127.0.0.1:{port}", "--model", "sim-echo")
        part = Part((*arguments, "--truth-log", str(directory / "truth.jsonl"), "--drain-seconds", "1", *options), directory)
        try:
            part.start()
            yield part, f"http://127.0.0.1:{port}"
        finally:
            part.discard()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """An organization with one project and one key of each kind."""

    organization_id: str
    project_id: str
    api_key: str
    api_key_id: str
    admin_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Running platform, with what a test needs to use and to check it."""

    directory: Path
    gateway_url: str
    control_url: str
    database_url: str
    platform_key: str
    tenant: Tenant
    engine: Part
    truth_log: Path
    environment: Mapping[str, str]

    def admin(self) -> httpx2.Client:
        """The REST API as the tenant's administrator. To be closed."""
        return httpx2.Client(
            base_url=self.control_url,
            headers={"authorization": f"Bearer {self.tenant.admin_key}"},
            timeout=WAIT_SECONDS,
            trust_env=False,
            verify=NO_TLS,
        )

    def count_billed_requests(self) -> int | None:
        """Requests in the usage that the tenant reads; None while control does not answer."""
        query = {"start_time": int(time.time()) - 86_400, "limit": 2}
        try:
            with self.admin() as http:
                pages = [http.get(f"/v1/organization/usage/{kind}", params=query) for kind in USAGE_KINDS]
        except httpx2.HTTPError:
            return None
        assert all(page.status_code == 200 for page in pages), [page.text for page in pages]
        buckets: list[dict[str, Any]] = [bucket for page in pages for bucket in page.json()["data"]]
        return sum(int(result["num_model_requests"]) for bucket in buckets for result in bucket["results"])

    def wait_until_billed(self, requests: int) -> None:
        """Wait until the tenant's usage has at least so many requests, and every epoch of a gateway but the present one is shipped."""
        deadline = time.monotonic() + WAIT_SECONDS
        while (counted := self.count_billed_requests()) is None or counted < requests or self._unshipped_epochs()[:-1]:
            assert time.monotonic() < deadline, f"{counted} of {requests} requests billed, not handed in: {self._unshipped_epochs()}"
            time.sleep(0.1)

    def check_all_is_shipped(self) -> None:
        """Assert, once the gateway has ended, that it and all before it handed in everything."""
        assert not self._unshipped_epochs()

    def _unshipped_epochs(self) -> list[str]:
        """Return the epochs of the gateway, oldest first, without the note that control has everything."""
        epochs = sorted((self.directory / "gateway" / "spool").glob("epoch-*"), key=lambda path: int(path.name.partition("-")[2]))
        return [epoch.name for epoch in epochs if not (epoch / "shipped").exists()]


@contextmanager
def serve(
    start: Start, scratch: Path, *, environment: Mapping[str, str] | None = None, engine_options: Sequence[str] = ()
) -> Iterator[tuple[Platform, Running]]:
    """`tollway serve` with an engine and a tenant. `environment` may name a database."""
    environment = dict(environment or {})
    with engine(scratch / "engine", *engine_options) as (part, engine_url):
        running = start("serve", *FREE, directory=scratch / "data", env=environment)
        try:
            urls = running.wait_for_file("addresses.json")
            yield _seeded(urls["gateway_url"], urls["control_url"], scratch, part, engine_url, environment), running
        finally:
            running.stop()


@contextmanager
def supervised(
    scratch: Path, *, environment: Mapping[str, str] | None = None, engine_options: Sequence[str] = (), truth: Path | None = None
) -> Iterator[tuple[Platform, Part]]:
    """`tollway serve` at addresses that it keeps, with an engine and a tenant. `truth`: a directory for the engine's truth log."""
    environment = dict(environment or {})
    with reserved_ports(4) as ports, engine(truth or scratch / "engine", *engine_options) as (part, engine_url):
        options = zip(("--listen", "--internal", "--control-listen", "--link"), ports, strict=True)
        where = (text for option, port in options for text in (option, f"127.0.0.1:{port}"))
        serving = Part(("-m", "tollway", "serve", "--data-dir", str(scratch / "data"), *where), scratch / "serve", environment)
        family: list[int] = []
        try:
            urls = serving.start()
            yield _seeded(urls["gateway_url"], urls["control_url"], scratch, part, engine_url, environment), serving
        finally:
            if serving.process is not None:
                family = list_descendants(serving.process.pid)
            serving.discard()
            end_all(family)


@dataclass(frozen=True, slots=True)
class Apart:
    """The two processes of a platform, each by itself, at addresses that they keep."""

    gateway: Part
    control: Part


@contextmanager
def apart(
    scratch: Path,
    *,
    gateway_arguments: Sequence[str] = ("-m", "tollway", "gateway"),
    gateway_directory: Path | None = None,
    gateway_environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[Platform, Apart]]:
    """`tollway control` and a gateway, with an engine and a tenant. `gateway_directory`: a data directory of the gateway's own."""
    data = scratch / "data"
    with reserved_ports(4) as ports, engine(scratch / "engine") as (part, engine_url):
        public, internal, control, link = (f"127.0.0.1:{port}" for port in ports)
        made = tollway("migrate", "--data-dir", str(data), wait_seconds=MIGRATE_SECONDS)
        assert made.returncode == 0, made.stderr
        own = dict(gateway_environment or {})
        if gateway_directory is not None:
            kept = json.loads((data / "secrets.json").read_bytes())
            own |= {"TOLLWAY_PEPPER": kept["peppers"]["1"], "TOLLWAY_VAULT_KEY": kept["vault_key"]}
            own |= {"TOLLWAY_NODE_ID": kept["node_id"], "TOLLWAY_NODE_KEY": kept["node_key"]}
        where = (
            "--data-dir",
            str(gateway_directory or data),
            "--listen",
            public,
            "--internal",
            internal,
            "--control-link-url",
            f"http://{link}",
        )
        parts = Apart(
            gateway=Part((*gateway_arguments, *where), scratch / "gateway", own),
            control=Part(("-m", "tollway", "control", "--data-dir", str(data), "--listen", control, "--link", link), scratch / "control"),
        )
        try:
            parts.control.start()
            parts.gateway.start()
            yield _seeded(f"http://{public}", f"http://{control}", scratch, part, engine_url, {}), parts
        finally:
            for each in (parts.gateway, parts.control):
                each.discard()


@contextmanager
def prepared_gateway(
    platform: Platform, parts: Apart, scratch: Path, number: int, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[Part, str]]:
    """A further gateway of a platform, a node of its own with a join token, and its address. It is not started yet."""
    link = parts.control.arguments[parts.control.arguments.index("--link") + 1]
    kept = json.loads((platform.directory / "secrets.json").read_bytes())
    own = {"TOLLWAY_PEPPER": kept["peppers"]["1"], "TOLLWAY_VAULT_KEY": kept["vault_key"], "TOLLWAY_JOIN_TOKEN": make_join_token(platform)}
    with reserved_ports(2) as (public, internal):
        where = ("--listen", f"127.0.0.1:{public}", "--internal", f"127.0.0.1:{internal}", "--control-link-url", f"http://{link}")
        directory = scratch / f"gateway-{number}"
        arguments = ("-m", "tollway", "gateway", "--data-dir", str(directory / "data"), *where)
        gateway = Part(arguments, directory, {**(environment or {}), **own})
        try:
            yield gateway, f"http://127.0.0.1:{public}"
        finally:
            gateway.discard()


def start_gateways(platform: Platform, gateways: Sequence[tuple[Part, str]]) -> None:
    """Start gateways that are prepared, and wait until each serves and all of the platform know how many they are."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda each: each[0].start(), gateways))
    for _, url in gateways:
        wait_until_served(url, platform.tenant.api_key)
    time.sleep(3 * 2.0)  # each has acknowledged since the last one began


def make_join_token(platform: Platform) -> str:
    """Return a token with which one gateway registers itself."""
    headers = {"authorization": f"Bearer {platform.platform_key}"}
    with httpx2.Client(base_url=platform.control_url, headers=headers, trust_env=False, verify=NO_TLS, timeout=WAIT_SECONDS) as http:
        answer = http.post("/v1/platform/node_join_tokens", json={"name": "gateway"})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["value"])


def _seeded(gateway_url: str, control_url: str, scratch: Path, engine: Part, engine_url: str, environment: Mapping[str, str]) -> Platform:
    data = scratch / "data"
    platform_key = json.loads((data / "secrets.json").read_bytes())["platform_key"]
    tenant = seed(control_url, platform_key, engine_url)
    wait_until_served(gateway_url, tenant.api_key)
    return Platform(
        directory=data,
        gateway_url=gateway_url,
        control_url=control_url,
        database_url=environment.get("TOLLWAY_DATABASE_URL", f"sqlite+pysqlite:///{data}/control/tollway.db"),
        platform_key=platform_key,
        tenant=tenant,
        engine=engine,
        truth_log=engine.directory / "truth.jsonl",
        environment=environment,
    )


def seed(control_url: str, platform_key: str, engine_url: str) -> Tenant:
    """Models, prices, deployments and a tenant, through the REST API."""
    headers = {"authorization": f"Bearer {platform_key}"}
    with httpx2.Client(base_url=f"{control_url}/v1", headers=headers, timeout=WAIT_SECONDS, trust_env=False, verify=NO_TLS) as http:

        def post(path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
            answer = http.post(path, json=body)
            assert answer.status_code == 200, f"{path}: {answer.text}"
            return dict(answer.json())

        for model, upstream_models in MODELS.items():
            post("/platform/models", {"name": model, "endpoints": ENDPOINTS})
            post("/platform/prices", {"model": model, "currency": "EUR", **PRICES[model]})
            post(f"/platform/models/{model}/publish")
            for tier, upstream_model in enumerate(upstream_models):
                deployment = {"model": model, "base_url": engine_url, "engine": "sim", "upstream_model": upstream_model, "tier": tier}
                post("/platform/deployments", deployment)
    return add_tenant(control_url, platform_key, "acme")


def add_tenant(control_url: str, platform_key: str, name: str) -> Tenant:
    """Add an organization with one project and keys, through the REST API."""
    headers = {"authorization": f"Bearer {platform_key}"}
    with httpx2.Client(base_url=f"{control_url}/v1", headers=headers, timeout=WAIT_SECONDS, trust_env=False, verify=NO_TLS) as http:

        def post(path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
            answer = http.post(path, json=body)
            assert answer.status_code == 200, f"{path}: {answer.text}"
            return dict(answer.json())

        organization = post("/platform/organizations", {"name": name, "currency": "EUR"})
        http.headers["openai-organization"] = organization["id"]
        project = post("/organization/projects", {"name": "bridge"})
        key = post(f"/organization/projects/{project['id']}/api_keys", {"name": "toll"})
    return Tenant(
        organization_id=organization["id"],
        project_id=project["id"],
        api_key=key["value"],
        api_key_id=key["id"],
        admin_key=organization["admin_api_key"]["value"],
    )


def list_models(gateway_url: str, api_key: str) -> int:
    """The status of GET /v1/models with this key; 0 if nobody answers."""
    try:
        headers = {"authorization": f"Bearer {api_key}", "connection": "close"}
        return httpx2.get(f"{gateway_url}/v1/models", headers=headers, timeout=WAIT_SECONDS, trust_env=False, verify=NO_TLS).status_code
    except httpx2.HTTPError:
        return 0


def wait_until_served(gateway_url: str, api_key: str) -> None:
    """Wait until the gateway knows the key and every model of ours."""
    headers = {"authorization": f"Bearer {api_key}", "connection": "close"}
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            answer = httpx2.get(f"{gateway_url}/v1/models", headers=headers, timeout=WAIT_SECONDS, trust_env=False, verify=NO_TLS)
            if answer.status_code == 200 and {each["id"] for each in answer.json()["data"]} >= set(MODELS):
                return
        except httpx2.HTTPError:
            pass  # it may only just be starting
        assert time.monotonic() < deadline, "the gateway never knew the key and the models"
        time.sleep(0.02)


def kill_child(parent: int, name: str, *, seconds: float = WAIT_SECONDS) -> bool:
    """SIGKILL to the gateway or the control process of the `tollway serve` with process id `parent`, once there is one. False if
    none came up in time."""
    wanted = b"\0".join((b"-m", b"tollway", name.encode(), b""))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for pid in list_descendants(parent):
            try:
                if wanted in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    return True
            except (FileNotFoundError, ProcessLookupError):
                continue
        time.sleep(0.02)
    return False


def list_crashes(running: Running) -> list[str]:
    """The names of the children whose death the supervisor noticed, in order."""
    return [line["name"] for line in lines_of_log(running.stdout) if line.get("event") == "crashed"]


@contextmanager
def fresh_postgres() -> Iterator[str]:
    """The URL of a new, empty database in the server that TOLLWAY_TEST_POSTGRES names; dropped afterwards."""
    server = sa.make_url(os.environ["TOLLWAY_TEST_POSTGRES"])
    name = f"tollway_system_{secrets.token_hex(4)}"
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
