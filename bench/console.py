"""Pages of the console over a filled database: `python -m bench.console`.

A control plane of its own answers every page of the console that its tables (`tests/control/console/pages.py`) can name, over HTTP, to an
owner of the organization and to an operator. What is printed of each page: the 95th percentile of the time until the whole answer is
there, that of the CPU time which the process spent meanwhile (server and client together, so that it feels no neighbour), and the bytes of
the page. The database is SQLite; `--postgres` takes a PostgreSQL of its own. `--directory` keeps the SQLite database, and measures the one
that an earlier run has filled there: filling takes minutes. `--paint` opens each page in Chromium, too, and says when that painted
something first.
"""

import argparse
import math
import os
import random
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
from playwright.sync_api import Browser as Chromium

from scripts import postgres
from tests.control.browsing import Browser, join
from tests.control.console.chromium import launched
from tests.control.console.conftest import PROVIDER, set_up, sign_in_operator
from tests.control.console.pages import PLATFORM_PAGES, TENANT_PAGES, fill_in_platform, root_of
from tests.control.harness import PEPPER, Running, TenantSetup, answered, running
from tests.link.samples import NODE, admit, final, frames
from tollway.control import publish
from tollway.control.api.identity import api_keys
from tollway.control.api.schemas import KeyCreate
from tollway.control.api.tenancy import projects
from tollway.control.api.tenancy.project_schemas import ProjectCreate
from tollway.control.catalog import catalog
from tollway.control.gateways import fleet, nodes
from tollway.control.identity.access import Tenant
from tollway.control.metering import collect
from tollway.domain import ids
from tollway.domain.gateway_statuses import DEPLOYMENTS_REPORTED_MAX, DeploymentStatus, Ejection, GatewayStatus
from tollway.domain.pages import PageWindow
from tollway.domain.quotas import DEFAULT_SIZES, Quota
from tollway.domain.roles import OPERATOR, Grant
from tollway.domain.usage import OUTCOME_POLICY_CURRENT, Record
from tollway.serve.control import migrate_database

EVENTS_PER_EPOCH = 5_000
SPAN_US = 30 * 86_400_000_000
"""Time over which the requests are spread, until now."""

VIEWS = (
    "/usage?group=key",
    "/usage?group=model",
    "/usage?metric=requests&group=project&compare=1",
    "/usage?metric=requests&group=key&compare=1",
    "/usage?metric=requests&group=project&bucket=hour",
    "/usage?group=key&project={project_id}",
    "/requests?project={project_id}",
)
"""Views of pages that read most, below the root of an organization."""

DEPLOYMENT_STATUS = partial(
    DeploymentStatus,
    running=12,
    limit=64,
    waiting=0,
    requests_per_minute=300,
    failures_per_minute=2,
    is_ready=True,
    ejections=(Ejection("", "upstream_unreachable", 4_000, 500),),
)
GATEWAY_STATUS = GatewayStatus(
    version="1.0.0",
    uptime_seconds=86_400,
    is_ready=True,
    is_draining=False,
    connections=500,
    running=100,
    waiting=0,
    loop_lag_ms=3,
    snapshot_age_ms=800,
    records_unshipped=10,
    epochs_unshipped=0,
)
"""Reports of each gateway on itself, and on each deployment."""

QUOTAS = {**DEFAULT_SIZES, Quota.PROJECTS: 1_000_000, Quota.API_KEYS: 1_000_000, Quota.CREATIONS_PER_DAY: 1_000_000}
"""Enough for any number of projects and keys."""

FIRST_PAINT = """() => new Promise((done) => {
  new PerformanceObserver((list) => list.getEntriesByName("first-contentful-paint").forEach((entry) => done(entry.startTime)))
    .observe({type: "paint", buffered: true});
})"""
"""A script that returns the milliseconds until something of the page was painted."""

WARM_UP = 2
"""Calls of each page before those that count: plans and templates are made by the first."""


@dataclass(frozen=True, slots=True)
class PageFigures:
    """Figures of one page: milliseconds at the 95th percentile, and bytes; `bare`: those without the data of charts."""

    path: str
    wall_ms: float
    cpu_ms: float
    size: int
    bare: int


KEPT_NAME = "console.json"


class KeptDatabase(msgspec.Struct, frozen=True):
    """Facts that a later run needs of a database that was filled. `pepper`: of the digests of its keys, hexadecimal."""

    sizes: str
    pepper: str
    tenant: TenantSetup


def read_kept(directory: Path) -> KeptDatabase | None:
    """Return what an earlier run left in a directory; None if nothing."""
    path = directory / KEPT_NAME
    return msgspec.json.decode(path.read_bytes(), type=KeptDatabase) if path.exists() else None


CHART = re.compile(rb'<svg class="chart".*?</svg>|<details class="more">.*?</details>', re.DOTALL)
"""A chart, and the table of its data, on a page that has SVG."""

SVG = b'<svg class="chart"'


@contextmanager
def open_database(scratch: Path, *, is_postgres: bool) -> Iterator[str]:
    """Yield the URL of an empty, migrated database."""
    if not is_postgres:
        url = f"sqlite:///{scratch}/control.db"
        if not (scratch / "control.db").exists():
            migrate_database(url)
        yield url
        return
    with postgres.running() as owner_url:
        url = postgres.application_environment(owner_url)["TOLLWAY_DATABASE_URL"]
        migrate_database(url, owner_url)
        yield url


def fill(control: Running, tenant: TenantSetup, *, events: int, project_count: int, key_count: int) -> None:
    """Add projects, keys and requests to an organization; the requests as gateways hand them in."""
    plane = control.plane
    caller = Tenant(tenant.admin_key_id, tenant.organization_id, is_operator=True, grants=(Grant(OPERATOR),))
    made = [projects.create_project(caller, plane, body=ProjectCreate(name=f"project {each}")).id for each in range(project_count)]
    places = [(tenant.project_id, tenant.key_id)]
    for number in range(key_count):
        project_id = made[number % len(made)] if made else tenant.project_id
        key = api_keys.create_project_key(caller, plane, project_id=project_id, body=KeyCreate(name=f"key {number}"))
        places.append((project_id, key.id))
    price_id = answered(control.operator().get("/v1/platform/prices"))["data"][0]["id"]
    chance, begin = random.Random(1), plane.now() - SPAN_US
    for first in range(0, events, EVENTS_PER_EPOCH):
        records: list[Record] = []
        for number in range(first, min(first + EVENTS_PER_EPOCH, events)):
            at = begin + number * SPAN_US // events
            project_id, key_id = chance.choice(places)
            of = admit(
                number,
                request_id=ids.new_id(ids.REQUEST, at, number),
                admitted_at=at,
                organization_id=tenant.organization_id,
                project_id=project_id,
                key_id=key_id,
                price_version=price_id,
                outcome_policy=OUTCOME_POLICY_CURRENT,
            )
            records.extend([of, final(of, ended_at=at + 500_000)])
        body = b"".join(frames(records, NODE, begin + first))
        collect.ingest(plane.database, plane.archive, node_id=NODE, epoch=begin + first, first_seq=1, body=body, now=plane.now())


def fill_platform(control: Running, tenant: TenantSetup, *, organizations: int, deployments: int, gateways: int) -> None:
    """Add organizations, deployments and gateways, which report all of them, to the platform."""
    client, plane = control.operator(), control.plane
    for number in range(organizations):
        answered(client.post("/v1/platform/organizations", json={"name": f"organization {number}", "currency": "EUR"}))
    made = list[str]()
    for number in range(deployments):
        body = {"model": "echo", "base_url": f"http://127.0.0.1:{9_000 + number}", "engine": "vllm", "upstream_model": "echo"}
        made.append(answered(client.post("/v1/platform/deployments", json=body))["id"])
    now = plane.now()
    for number in range(gateways):
        node_id = plane.new_id(ids.NODE)
        with plane.database.platform() as tx:
            nodes.create_node(
                tx, name=f"gateway {number}", node_id=node_id, key_id=plane.new_id(ids.KEY), ingredients=plane.new_ingredients(), now=now
            )


def report_statuses(control: Running) -> None:
    """Let every registered gateway report now: what the page of the fleet shows counts for some seconds."""
    plane = control.plane
    with plane.database.platform() as tx:
        deployments = catalog.list_deployments(tx, PageWindow(None, DEPLOYMENTS_REPORTED_MAX, False), model=None, include_archived=False)
        statuses = [DEPLOYMENT_STATUS(id=each.id, weight=each.weight) for each in deployments.items]
        for node in nodes.list_nodes(tx):
            publish.acknowledge(tx, node.id, 0, plane.now())
            fleet.store_status(tx, node.id, GATEWAY_STATUS, statuses, plane.now())


def list_paths(control: Running, tenant: TenantSetup) -> list[tuple[bool, str]]:
    """Return the paths of pages, and whether each is an operator's. Pages that need what nobody made are left out."""
    admin = control.client(tenant.admin_key)
    known = {
        "project_id": tenant.project_id,
        "key_id": tenant.key_id,
        "request_id": answered(admin.get("/v1/organization/requests"))["data"][0]["id"],
        "budget_id": answered(admin.get("/v1/organization/budgets"))["data"][0]["id"],
        "user_id": answered(admin.get("/v1/organization/users"))["data"][0]["id"],
    }
    own = [path for path in TENANT_PAGES if set(re.findall(r"{(\w+)}", path)) <= known.keys()]
    paths = [(False, root_of(tenant) + path.format(**known)) for path in (*own, *VIEWS)]
    for path in PLATFORM_PAGES:
        with suppress(LookupError):  # a database that an earlier version has filled lacks what newer pages show
            paths.append((True, fill_in_platform(path, control, tenant)))
    return paths


def measure(control: Running, viewer: Browser, path: str, calls: int) -> PageFigures:
    """Return the figures of one page. Raises AssertionError if it is not shown."""
    if path.endswith("/fleet"):
        report_statuses(control)
    walls, cpus, page = list[float](), list[float](), b""
    for call in range(WARM_UP + calls):
        wall, cpu = time.perf_counter(), time.process_time()
        answer = viewer.client.get(path)
        if call >= WARM_UP:
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
        assert answer.status_code == 200, (path, answer.status_code)
        page = answer.content
    return PageFigures(path, _find_p95(walls) * 1000, _find_p95(cpus) * 1000, len(page), len(CHART.sub(b"", page) if SVG in page else page))


def measure_paint(chromium: Chromium, viewer: Browser, path: str) -> float:
    """Return the milliseconds until Chromium painted something of a page first. Raises TimeoutError of playwright if it paints nothing."""
    context = chromium.new_context()
    context.add_cookies([{"name": "tollway_session", "value": viewer.secret, "url": viewer.control.url}])
    page = context.new_page()
    page.goto(viewer.control.url + path)
    found = float(page.evaluate(FIRST_PAINT))  # a function that playwright repeats would be evaluated as text, which the pages forbid
    context.close()
    return found


def _find_p95(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.console", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--events", type=int, default=100_000, help="requests in the database (default 100000)")
    parser.add_argument("--projects", type=int, default=100, help="projects of the organization (default 100)")
    parser.add_argument("--keys", type=int, default=1_000, help="keys of the organization (default 1000)")
    parser.add_argument("--organizations", type=int, default=100, help="organizations of the platform (default 100)")
    parser.add_argument("--deployments", type=int, default=100, help="deployments of the platform (default 100)")
    parser.add_argument("--gateways", type=int, default=10, help="gateways that report (default 10)")
    parser.add_argument("--only", default="", metavar="EXPRESSION", help="measure the pages alone whose path it matches")
    parser.add_argument("--directory", type=Path, metavar="PATH", help="keep the database there, and use the one that is there")
    parser.add_argument("--calls", type=int, default=40, help="calls of each page (default 40)")
    parser.add_argument("--paint", action="store_true", help="say also when Chromium painted something of each page first")
    parser.add_argument("--postgres", action="store_true", help="over a PostgreSQL of its own")
    arguments = parser.parse_args()
    if arguments.postgres and arguments.directory is not None:
        parser.error("--directory keeps a SQLite database: leave --postgres out")
    with ExitStack() as held:
        chromium = held.enter_context(launched()) if arguments.paint else None
        scratch = arguments.directory or Path(held.enter_context(tempfile.TemporaryDirectory()))
        scratch.mkdir(parents=True, exist_ok=True)
        url = held.enter_context(open_database(scratch, is_postgres=arguments.postgres))
        kept = read_kept(scratch)
        pepper = PEPPER if kept is None else bytes.fromhex(kept.pepper)
        control = held.enter_context(running(url, scratch / "archive", quotas=QUOTAS, operator_sign_in=PROVIDER, pepper=pepper))
        if kept is None:
            tenant = set_up(control)
            began = time.perf_counter()
            fill(control, tenant, events=arguments.events, project_count=arguments.projects, key_count=arguments.keys)
            fill_platform(
                control, tenant, organizations=arguments.organizations, deployments=arguments.deployments, gateways=arguments.gateways
            )
            sizes = (
                f"{arguments.events} requests, {arguments.keys} keys, {arguments.projects} projects,"
                f" {arguments.organizations} organizations, {arguments.deployments} deployments and {arguments.gateways} gateways"
            )
            kept = KeptDatabase(sizes, pepper.hex(), tenant)
            if arguments.directory is not None:
                (scratch / KEPT_NAME).write_bytes(msgspec.json.encode(kept))
            sizes += f" in {time.perf_counter() - began:.0f} s"
        else:
            tenant, sizes = kept.tenant, kept.sizes
        owner = join(control, control.client(tenant.admin_key), f"owner-{control.plane.now()}@example.com", "owner")
        operator = sign_in_operator(control)
        print(
            f"{sizes}; {'PostgreSQL' if arguments.postgres else 'SQLite'}; load of the machine {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        for is_operators, path in list_paths(control, tenant):
            if not re.search(arguments.only, path):
                continue
            viewer = operator if is_operators else owner
            found = measure(control, viewer, path, arguments.calls)
            paint = "" if chromium is None else f", first paint {measure_paint(chromium, viewer, path):.0f} ms"
            shown = re.sub(r"_[0-9a-f]{32}", "_…", found.path)
            sizes = f"{found.size / 1024:.1f} KiB" + (f" ({found.bare / 1024:.1f} without charts)" if found.bare < found.size else "")
            print(f"  {shown}: p95 {found.wall_ms:.1f} ms, CPU {found.cpu_ms:.1f} ms, {sizes}{paint}", flush=True)


if __name__ == "__main__":
    main()
