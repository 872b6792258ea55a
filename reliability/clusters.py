"""The cluster form as real processes, to be broken: PostgreSQL, a server of shared counters, two control processes behind HAProxy
(`deploy/proxies/haproxy-control.cfg`), two gateways and two engines, each with a truth log of its own.

PostgreSQL and the second gateway have a file system of their own where one can be mounted, so that it can fill up. All listen on loopback;
`isolate` gives a process and its children a loopback and mounts of their own, in which packets can be lost without harm to others.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import sqlalchemy as sa

from reliability.platforms import (
    MODELS,
    PRICES,
    Part,
    Platform,
    Tenant,
    engine,
    make_join_token,
    reserved_ports,
    seed,
    wait_until_served,
)
from reliability.processes import ENVIRONMENT, MIGRATE_SECONDS, NO_TLS, WAIT_SECONDS, list_descendants
from scripts import postgres
from tests.storage.counter_servers import CounterServer, counter_server

CONFIGURATION = Path(__file__).parents[1] / "deploy" / "proxies" / "haproxy-control.cfg"

CONTROLS, GATEWAYS, ENGINES = 2, 2, 2

FIRST_TOKEN_SECONDS = 5.0
"""Time after which a silent engine is given up."""

DISK_BYTES = 640 << 20
"""Size of the file system of PostgreSQL; the second gateway's spool has a quarter of it."""

GATEWAY_ENVIRONMENT = {
    "TOLLWAY__GATEWAY__LIMITS__DECISION_SECONDS": "0.25",  # the default of 5 ms would take a busy machine for a dead server
    "TOLLWAY__GATEWAY__RELAY__FIRST_TOKEN_SECONDS": str(FIRST_TOKEN_SECONDS),
    "TOLLWAY__GATEWAY__RELAY__IDLE_SECONDS": str(FIRST_TOKEN_SECONDS),
    "TOLLWAY__GATEWAY__RELAY__HEARTBEAT_SECONDS": "60",
    "TOLLWAY__GATEWAY__SPOOL__SEGMENT_BYTES": str(4 << 20),
    "TOLLWAY__GATEWAY__SPOOL__SLOTS_MAX": "1024",
}

LIMITS = {"requests_per_minute": 100_000, "output_tokens_per_minute": 100_000_000}
"""Limits of the tenant: no request is refused by them, and every request asks the server of counters."""


@dataclass(frozen=True, slots=True)
class Release:
    """A version of Tollway: its interpreter and its sources."""

    interpreter: str
    sources: Path

    def take_over(self, part: Part) -> None:
        """Let a process be of this version from its next start on."""
        part.interpreter = self.interpreter
        part.environment = {**part.environment, "PYTHONPATH": str(self.sources)}

    def migrate(self, data: Path, environment: Mapping[str, str]) -> None:
        """Run `tollway migrate` of this version. AssertionError: it failed."""
        command = [self.interpreter, "-m", "tollway", "migrate", "--data-dir", str(data)]
        variables = {**ENVIRONMENT, **environment, "PYTHONPATH": str(self.sources)}
        made = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=MIGRATE_SECONDS)
        assert made.returncode == 0, made.stderr


PRESENT = Release(sys.executable, Path(__file__).parents[1] / "src")
"""The version whose tests these are."""


@dataclass(slots=True)
class Balancer:
    """HAProxy in front of the control processes."""

    file: Path
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start it; do not wait."""
        with self.file.with_suffix(".log").open("ab") as log:
            command = ["haproxy", "-f", str(self.file)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def kill(self) -> None:
        """End it however it is."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(WAIT_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A gateway: its process, its two addresses and its data directory."""

    part: Part
    url: str
    internal_url: str
    directory: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The running cluster. `controls` are reached through the balancer at `platform.control_url`; `control_urls` are their own addresses,
    `control_link_urls` those for gateways, which reach the balancer at `link_port`. `mounts`: whether file systems were mounted."""

    platform: Platform
    database: postgres.Server
    database_directory: Path
    counters: CounterServer
    balancer: Balancer
    controls: Sequence[Part]
    control_urls: Sequence[str]
    control_link_urls: Sequence[str]
    link_port: int
    gateways: Sequence[Gateway]
    engines: Sequence[tuple[Part, str]]
    archive: Path
    mounts: bool
    isolated: bool

    @property
    def database_port(self) -> int:
        """The port of PostgreSQL."""
        return _port_of(self.database.url.rpartition("/")[0])

    @property
    def truth_logs(self) -> list[Path]:
        """The truth logs of the engines."""
        return [part.directory / "truth.jsonl" for part, _ in self.engines]

    def list_database_processes(self) -> list[int]:
        """Process ids of the postmaster and its children."""
        return [self.database.pid, *list_descendants(self.database.pid)]


def _port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


# ---- A loopback and mounts of our own ---------------------------------------------------------------------------------

ISOLATED = "RELIABILITY_ISOLATED"


def is_isolated() -> bool:
    """Return whether this process has a loopback and mounts of its own, by `isolate`."""
    return os.environ.get(ISOLATED) == str(os.getppid())


def isolate(arguments: Sequence[str]) -> int | None:
    """Run `python -m reliability ARGUMENTS` with a loopback and mounts of its own, and return its exit code; None where that cannot be
    done (it takes the rights of root and the programs unshare, ip and nft)."""
    if not all(shutil.which(program) for program in ("unshare", "ip", "nft")):
        return None
    if subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True).returncode != 0:
        return None
    script = f'ip link set lo up || exit 125; export {ISOLATED}=$$; "$@"; exit $?'
    command = ["unshare", "--net", "--mount", "--fork", "--kill-child", "sh", "-c", script, "sh", sys.executable, "-m", "reliability"]
    code = subprocess.run([*command, *arguments]).returncode
    return None if code == 125 else code


# ---- Assembly ---------------------------------------------------------------------------------------------------------


@contextmanager
def cluster(scratch: Path, *, release: Release = PRESENT) -> Iterator[Cluster]:
    """Run a cluster in the empty directory `scratch`. `release`: the version of control and gateways."""
    with ExitStack() as held:
        ports = iter(held.enter_context(reserved_ports(3 + 2 * CONTROLS + 2 * GATEWAYS)))
        mounts = is_isolated() and _mount(scratch / "database", DISK_BYTES) and _mount(scratch / "gateway-1", DISK_BYTES // 4)
        (scratch / "database").mkdir(exist_ok=True)
        (scratch / "database").chmod(0o755)
        scratch.chmod(0o755)  # the server's user must be able to pass through
        server = held.enter_context(_database(next(ports), scratch / "database"))
        store = held.enter_context(counter_server("redis"))
        urls = postgres.application_environment(server.url)
        rest, link = next(ports), next(ports)
        data = scratch / "data"
        environment = {**urls, "TOLLWAY__GATEWAY__LIMITS__REDIS_URL": store.url}
        release.migrate(data, environment)
        controls, control_urls, links = [], [], []
        for number in range(CONTROLS):
            public, own_link = next(ports), next(ports)
            where = ("--listen", f"127.0.0.1:{public}", "--link", f"127.0.0.1:{own_link}")
            arguments = ("-m", "tollway", "control", "--data-dir", str(data), *where)
            own = {name: value for name, value in environment.items() if name != "TOLLWAY_OWNER_DATABASE_URL"}
            controls.append(Part(arguments, scratch / f"control-{number}", own))
            release.take_over(controls[-1])
            held.callback(controls[-1].discard)
            control_urls.append(f"http://127.0.0.1:{public}")
            links.append(own_link)
        for control in controls:
            control.launch()
        balancer = Balancer(_write_configuration(scratch, rest, link, [_port_of(url) for url in control_urls], links))
        held.callback(balancer.kill)
        balancer.start()
        for url in control_urls:
            wait_until_ready(f"{url}/readyz")
        engines = [held.enter_context(engine(scratch / f"engine-{number}")) for number in range(ENGINES)]
        kept = json.loads((data / "secrets.json").read_bytes())
        control_url = f"http://127.0.0.1:{rest}"
        tenant = seed(control_url, kept["platform_key"], engines[0][1])
        platform = Platform(
            directory=data,
            gateway_url="",
            control_url=control_url,
            database_url=server.url,
            platform_key=kept["platform_key"],
            tenant=tenant,
            engine=engines[0][0],
            truth_log=engines[0][0].directory / "truth.jsonl",
            environment=environment,
        )
        _add_deployments(platform, engines[1][1])
        _set_limits(platform, tenant)
        gateways = []
        for number in range(GATEWAYS):
            public, internal = next(ports), next(ports)
            directory = scratch / f"gateway-{number}"
            where = ("--listen", f"127.0.0.1:{public}", "--internal", f"127.0.0.1:{internal}")
            arguments = ("-m", "tollway", "gateway", "--data-dir", str(directory / "data"), *where)
            own = {
                **GATEWAY_ENVIRONMENT,
                "TOLLWAY__GATEWAY__LIMITS__REDIS_URL": store.url,
                "TOLLWAY_PEPPER": kept["peppers"]["1"],
                "TOLLWAY_VAULT_KEY": kept["vault_key"],
                "TOLLWAY_CONTROL_LINK_URL": f"http://127.0.0.1:{link}",
                "TOLLWAY_JOIN_TOKEN": make_join_token(platform),
            }
            part = Part((*arguments,), scratch / f"out-{number}", own)
            release.take_over(part)
            held.callback(part.discard)
            urls_of = {"url": f"http://127.0.0.1:{public}", "internal_url": f"http://127.0.0.1:{internal}"}
            gateways.append(Gateway(part=part, directory=directory, **urls_of))
        for gateway in gateways:
            gateway.part.start()
        for gateway in gateways:
            wait_until_served(gateway.url, tenant.api_key)
        yield Cluster(
            platform=platform,
            database=server,
            database_directory=scratch / "database",
            counters=store,
            balancer=balancer,
            controls=controls,
            control_urls=control_urls,
            control_link_urls=[f"http://127.0.0.1:{port}" for port in links],
            link_port=link,
            gateways=gateways,
            engines=engines,
            archive=data / "control" / "archive",
            mounts=mounts,
            isolated=is_isolated(),
        )


def _mount(place: Path, size: int) -> bool:
    place.mkdir(parents=True)
    return subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(place)]).returncode == 0


@contextmanager
def _database(port: int, directory: Path) -> Iterator[postgres.Server]:
    """A PostgreSQL cluster below `directory`, with little space for its log of changes."""
    before, tempfile.tempdir = tempfile.tempdir, str(directory)
    try:
        with postgres.cluster(port) as server:
            tempfile.tempdir = before
            for setting in ("max_wal_size = '64MB'", "max_connections = 60"):
                execute(server.url, f"ALTER SYSTEM SET {setting}")
            server.stop()
            server.start()
            yield server
    finally:
        tempfile.tempdir = before


def execute(url: str, *statements: str) -> None:
    """Run each statement for itself, as a superuser of the database at `url`."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))


def _write_configuration(scratch: Path, rest: int, link: int, publics: Sequence[int], links: Sequence[int]) -> Path:
    """Return the file of `deploy/proxies` for these ports."""
    text = CONFIGURATION.read_text().replace("global\n", "global\n    noreuseport\n", 1)  # the ports are held beside
    text = text.replace("bind :8081", f"bind 127.0.0.1:{rest}").replace("bind :8082", f"bind 127.0.0.1:{link}")
    for number in range(CONTROLS):
        address = f"10.0.0.{number + 1}"
        text = text.replace(f"{address}:8081", f"127.0.0.1:{publics[number]}").replace(f"{address}:8082", f"127.0.0.1:{links[number]}")
    file = scratch / "haproxy.cfg"
    file.write_text(text)
    return file


def _add_deployments(platform: Platform, engine_url: str) -> None:
    """Add the second engine to every model."""
    for model, upstream_models in MODELS.items():
        for tier, upstream_model in enumerate(upstream_models):
            add_deployment(platform, model, engine_url, upstream_model, tier)


def add_deployment(platform: Platform, model: str, engine_url: str, upstream_model: str, tier: int = 0) -> None:
    """Add a deployment through the REST API."""
    body = {"model": model, "base_url": engine_url, "engine": "sim", "upstream_model": upstream_model, "tier": tier}
    post(platform, "deployments", body)


def add_model(platform: Platform, model: str, upstream_models: Sequence[tuple[str, str]], **more: object) -> None:
    """Add a model that costs what `echo` does, with a deployment for each of (engine's address, upstream model)."""
    post(platform, "models", {"name": model, "endpoints": ["chat/completions"], **more})
    post(platform, "prices", {"model": model, "currency": "EUR", **PRICES["echo"]})
    for url, upstream_model in upstream_models:
        add_deployment(platform, model, url, upstream_model)
    post(platform, f"models/{model}/publish", {})


def post(platform: Platform, path: str, body: object) -> dict[str, object]:
    """POST to the platform's API. AssertionError: it was refused."""
    headers = {"authorization": f"Bearer {platform.platform_key}"}
    url = f"{platform.control_url}/v1/platform/{path}"
    answer = httpx2.post(url, json=body, headers=headers, timeout=WAIT_SECONDS, trust_env=False, verify=NO_TLS)
    assert answer.status_code == 200, f"{path}: {answer.text}"
    return dict(answer.json())


def _set_limits(platform: Platform, tenant: Tenant) -> None:
    with platform.admin() as http:
        answer = http.put(f"/v1/organization/projects/{tenant.project_id}/limits", json=LIMITS)
    assert answer.status_code == 200, answer.text


def is_ready(url: str, seconds: float = 2.0) -> bool:
    """Return whether this address answers 200 within `seconds`."""
    try:
        return httpx2.get(url, timeout=seconds, trust_env=False, verify=NO_TLS).status_code == 200
    except httpx2.HTTPError:
        return False


def wait_until_ready(url: str) -> None:
    """Wait until this address answers 200."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_ready(url):
        assert time.monotonic() < deadline, f"{url} never answered 200"
        time.sleep(0.05)
