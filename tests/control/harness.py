"""A control process inside a test: the real applications on real sockets, in a thread, over a real database."""

import asyncio
import os
import re
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from fastapi.routing import APIRoute

from tests.patience import CLIENT_SECONDS, PATIENCE_SECONDS
from tests.storage.databases import prove_prices
from tollway.control.api.app import PUBLIC_ROUTERS
from tollway.control.auditing import audited_operations
from tollway.control.authentication.token_exchange import maintain_signing_keys
from tollway.control.gateways import nodes
from tollway.control.identity import keys
from tollway.control.identity.github_reports import GithubReports
from tollway.control.identity.mail import MailDirectory
from tollway.control.identity.operators import OperatorSignIn
from tollway.control.identity.passwords import Passwords
from tollway.control.plane import ControlPlane
from tollway.control.publish import Publications
from tollway.control.secrets.data_keys import DataKeys
from tollway.control.secrets.key_encryption import KeyRing, derive_key
from tollway.domain import ids
from tollway.domain import keys as domain_keys
from tollway.domain.keys import KeyOrigin, KeyType
from tollway.domain.networks import Network
from tollway.domain.quotas import DEFAULT_SIZES, QuotaSizes
from tollway.serve import control as serve_control
from tollway.serve.sockets import url_of
from tollway.storage import audit as storage
from tollway.storage.database import Database
from tollway.storage.vault import LocalVault

WAIT_SECONDS_MAX = PATIENCE_SECONDS

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Loading the authorities anew for each client costs more than most tests."""

NODE_ID = "node_" + "0" * 32
"""The node of the settings, whose key every `Running` has."""

PEPPER = secrets.token_bytes(32)

OPERATIONS = {
    (method, route.path): route.name
    for router in PUBLIC_ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute)
    for method in route.methods or ()
}
"""The operation of each method and path."""


def mint(type: KeyType) -> str:
    """A well-formed key that nobody knows."""
    return domain_keys.new_key(type, os.urandom(domain_keys.RANDOM_BYTES)).secret


@dataclass(slots=True)
class Running:
    """A control plane that answers. `lines`: what it logged."""

    plane: ControlPlane
    url: str
    link_url: str
    platform_key: str
    second_platform_key: str
    node_key: str
    lines: list[Mapping[str, object]]
    clock: "ControlClock"
    clients: list[httpx2.Client] = field(default_factory=list)
    node_keys: dict[str, str] = field(default_factory=dict)

    def client(self, key: str | None, **headers: str) -> httpx2.Client:
        """A client of the public API that presents `key`."""
        return self._open(self.url, key, headers)

    def node(self, node_id: str | None = None) -> httpx2.Client:
        """A client of the link that presents the key of NODE_ID, or of the node `node_id`, which is registered if it is new."""
        if node_id is None or node_id == NODE_ID:
            return self._open(self.link_url, self.node_key, {})
        if node_id not in self.node_keys:
            body = {"name": f"gateway {node_id[-4:]}", "id": node_id}
            self.node_keys[node_id] = answered(self.operator().post("/v1/platform/nodes", json=body))["key"]["value"]
        return self._open(self.link_url, self.node_keys[node_id], {})

    def link(self, key: str | None) -> httpx2.Client:
        """A client of the link that presents `key`."""
        return self._open(self.link_url, key, {})

    def prove_prices(self) -> None:
        """Let the samples be admitted under every price that there is, by the terms of each organization."""
        with self.plane.database.platform(write=False) as tx:
            prove_prices(tx)

    def operator(self) -> httpx2.Client:
        """A client of the public API that presents the platform's key."""
        return self.client(self.platform_key)

    def _open(self, url: str, key: str | None, headers: Mapping[str, str]) -> httpx2.Client:
        authorization = {} if key is None else {"authorization": f"Bearer {key}"}
        client = httpx2.Client(base_url=url, headers={**authorization, **headers}, timeout=CLIENT_SECONDS, verify=NO_TLS)
        self.clients.append(client)
        return client


class ControlClock:
    """The clock of a control plane: the real one, unless it was set."""

    def __init__(self) -> None:
        self._at: int | None = None

    def __call__(self) -> int:
        return serve_control.now() if self._at is None else self._at

    @contextmanager
    def set_to(self, at: int) -> Iterator[None]:
        """Let it stand still at an instant for the length of the block, unless `stop_at` names another one."""
        self._at = at
        yield
        self._at = None

    def stop_at(self, at: int) -> None:
        """Let it stand still at another instant until the end of the block."""
        self._at = at


@dataclass(frozen=True, slots=True)
class TenantSetup:
    """An organization with one of everything that a tenant can have."""

    organization_id: str
    admin_key: str
    admin_key_id: str
    project_id: str
    key_id: str
    secret: str
    service_account_id: str


def make_tenant(running: Running, name: str, currency: str = "EUR") -> TenantSetup:
    """An organization with a project, a key and a service account, made through the API."""
    made = answered(running.operator().post("/v1/platform/organizations", json={"name": name, "currency": currency}))
    admin = running.client(made["admin_api_key"]["value"])
    project = answered(admin.post("/v1/organization/projects", json={"name": f"{name} project"}))
    path = f"/v1/organization/projects/{project['id']}"
    key = answered(admin.post(f"{path}/api_keys", json={"name": f"{name} key"}))
    account = answered(admin.post(f"{path}/service_accounts", json={"name": f"{name} account"}))
    return TenantSetup(
        organization_id=made["id"],
        admin_key=made["admin_api_key"]["value"],
        admin_key_id=made["admin_api_key"]["id"],
        project_id=project["id"],
        key_id=key["id"],
        secret=key["value"],
        service_account_id=account["id"],
    )


def find_token(running: Running, address: str) -> str:
    """Return the token of the latest invitation that was written to an address."""
    mail = running.plane.mail
    assert isinstance(mail, MailDirectory)
    texts = [path.read_text() for path in sorted(mail.directory.glob("*.eml"), reverse=True)]
    token = re.search(r"tw_invite_\w+", next(text for text in texts if f"To: {address}\n" in text))
    assert token is not None
    return token.group(0)


def answered(response: httpx2.Response) -> Any:
    """The body of a success; fails the test with the body of anything else."""
    assert response.status_code == 200, f"{response.request.method} {response.request.url}: {response.status_code} {response.text}"
    return response.json()


@contextmanager
def running(
    database_url: str,
    archive_directory: Path,
    quotas: QuotaSizes = DEFAULT_SIZES,
    public_url: str | None = None,
    issuers: frozenset[str] = frozenset(),
    github_keys_url: str | None = None,
    operator_sign_in: OperatorSignIn | None = None,
    webhook_networks: tuple[Network, ...] = (),
    gateway_url: str | None = None,
    pepper: bytes = PEPPER,
) -> Iterator[Running]:
    """A control plane over the migrated database at `database_url`, for the length of the block. `quotas`: their sizes. `public_url`: the
    address under which it says that it is reached. `issuers`: identity providers on loopback that it trusts. `github_keys_url`: where the
    keys are that sign reports of leaked secrets; None takes none. `operator_sign_in`: the provider with which operators sign in.
    `webhook_networks`: private networks that webhooks may reach. `gateway_url`: where it reaches a gateway. `pepper`: of the digests of
    keys, that of a database which has some already."""
    database, clock = Database.open(database_url), ControlClock()
    platform_key, second_platform_key, node_key = mint(KeyType.PLATFORM), mint(KeyType.PLATFORM), mint(KeyType.NODE)
    with database.platform() as tx:
        digests, now = keys.Pepper(1, pepper), serve_control.now()
        for origin, secret in zip(KeyOrigin, (platform_key, second_platform_key), strict=True):
            keys.seed_platform_key(tx, origin, secret, id=serve_control.new_id(ids.KEY), pepper=digests, now=now)
        assert nodes.seed_node(tx, NODE_ID, node_key, key_id=serve_control.new_id(ids.KEY), pepper=digests, now=now)
    lines: list[Mapping[str, object]] = []
    ready = threading.Event()

    def log(line: Mapping[str, object]) -> None:
        lines.append(line)
        if line["event"] == "ready":
            ready.set()

    vault_key = secrets.token_bytes(32)
    plane = ControlPlane(
        database=database,
        peppers={1: pepper},
        pepper_version=1,
        vault=LocalVault(vault_key),
        data_keys=DataKeys(database, KeyRing.of(derive_key(vault_key)), os.urandom, clock),
        archive_directory=archive_directory,
        publications=Publications(),
        explain_inference=serve_control.explain_inference,
        now=clock,
        random_bytes=os.urandom,
        log=log,
        mail=MailDirectory(archive_directory.parent / "mail", lambda: serve_control.new_id("mail")),
        quotas=quotas,
        public_url=public_url,
        private_issuers=issuers,
        github_reports=None if github_keys_url is None else GithubReports(github_keys_url, log),
        operator_sign_in=operator_sign_in,
        webhook_networks=webhook_networks,
        gateway_url=gateway_url,
        passwords=Passwords(memory_kib=256),  # what the product takes, each time, would be most of the time of a test
    )
    maintain_signing_keys(plane)  # a job would publish it a moment later: now the version of the snapshot changes only as a test wants
    database.on_publish(plane.publications.advance)
    public, link = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    control = Running(plane, url_of(public), url_of(link), platform_key, second_platform_key, node_key, lines, clock)
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve_control.serve(plane, public, link, stop),), daemon=True)
    thread.start()
    assert ready.wait(WAIT_SECONDS_MAX), "control did not become ready"
    try:
        yield control
    finally:
        for client in control.clients:
            client.close()
        loop.call_soon_threadsafe(stop.set)
        thread.join(WAIT_SECONDS_MAX)
        assert not thread.is_alive(), "control did not stop"
        loop.close()
        require_audit_records(control)
        database.close()


def require_audit_records(control: Running) -> None:
    """Fail unless each request that was carried out and is to be recorded has one record or more, and no other request has any."""
    wanted = set()
    for line in control.lines:
        if line["event"] == "request" and line["status"] == 200 and not line.get("is_replay") and line.get("key_id"):
            operation = OPERATIONS.get((str(line["method"]), str(line["route"])))
            if operation in audited_operations.EVENTS:
                wanted.add(line["request_id"])
    with control.plane.database.platform(write=False) as tx:
        chains = storage.list_chains(tx)
        recorded = {record.actor.request_id for chain in chains for record in storage.iterate_records(tx, chain)}
    assert wanted <= recorded, f"{len(wanted - recorded)} requests left no record in the audit trail"


def wait_until(condition: Callable[[], object], seconds: float = WAIT_SECONDS_MAX) -> None:
    """Wait until `condition()` holds; fails the test when it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)
