"""Pages of the console over a filled database: `python -m bench.console`.

A control plane of its own answers every page of the console that its tables (`tests/control/console/pages.py`) can name, over HTTP, to an
owner of the organization and to an operator. What is printed of each page: the 95th percentile of the time until the whole answer is
there, that of the CPU time which the process spent meanwhile (server and client together, so that it feels no neighbour), and the bytes of
the page. The database is SQLite; `--postgres` takes a PostgreSQL of its own.
"""

import argparse
import math
import os
import random
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts import postgres
from tests.control.browsing import Browser, join
from tests.control.console.conftest import PROVIDER, set_up, sign_in_operator
from tests.control.console.pages import PLATFORM_PAGES, TENANT_PAGES, fill_in_platform, root_of
from tests.control.harness import Running, TenantSetup, answered, running
from tests.link.samples import NODE, admit, final, frames
from tollway.control.api.identity import api_keys
from tollway.control.api.schemas import KeyCreate
from tollway.control.api.tenancy import projects
from tollway.control.api.tenancy.project_schemas import ProjectCreate
from tollway.control.identity.access import Tenant
from tollway.control.metering import collect
from tollway.domain import ids
from tollway.domain.roles import OPERATOR, Grant
from tollway.domain.usage import OUTCOME_POLICY_CURRENT, Record
from tollway.serve.control import migrate_database

EVENTS_PER_EPOCH = 5_000
SPAN_US = 30 * 86_400_000_000
"""Time over which the requests are spread, until now."""

WARM_UP = 2
"""Calls of each page before those that count: plans and templates are made by the first."""


@dataclass(frozen=True, slots=True)
class PageFigures:
    """Figures of one page: milliseconds at the 95th percentile, and bytes."""

    path: str
    wall_ms: float
    cpu_ms: float
    size: int


@contextmanager
def open_database(scratch: Path, *, is_postgres: bool) -> Iterator[str]:
    """Yield the URL of an empty, migrated database."""
    if not is_postgres:
        url = f"sqlite:///{scratch}/control.db"
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
    return [(False, root_of(tenant) + path.format(**known)) for path in own] + [
        (True, fill_in_platform(path, control, tenant)) for path in PLATFORM_PAGES
    ]


def measure(viewer: Browser, path: str, calls: int) -> PageFigures:
    """Return the figures of one page. Raises AssertionError if it is not shown."""
    walls, cpus, size = list[float](), list[float](), 0
    for call in range(WARM_UP + calls):
        wall, cpu = time.perf_counter(), time.process_time()
        answer = viewer.client.get(path)
        if call >= WARM_UP:
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
        assert answer.status_code == 200, (path, answer.status_code)
        size = len(answer.content)
    return PageFigures(path, _find_p95(walls) * 1000, _find_p95(cpus) * 1000, size)


def _find_p95(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.console", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--events", type=int, default=100_000, help="requests in the database (default 100000)")
    parser.add_argument("--projects", type=int, default=100, help="projects of the organization (default 100)")
    parser.add_argument("--keys", type=int, default=1_000, help="keys of the organization (default 1000)")
    parser.add_argument("--calls", type=int, default=40, help="calls of each page (default 40)")
    parser.add_argument("--postgres", action="store_true", help="over a PostgreSQL of its own")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_database(Path(scratch), is_postgres=arguments.postgres) as url,
        running(url, Path(scratch) / "archive", operator_sign_in=PROVIDER) as control,
    ):
        tenant = set_up(control)
        owner = join(control, control.client(tenant.admin_key), "owner@example.com", "owner")
        operator = sign_in_operator(control)
        began = time.perf_counter()
        fill(control, tenant, events=arguments.events, project_count=arguments.projects, key_count=arguments.keys)
        print(
            f"{arguments.events} requests, {arguments.keys} keys and {arguments.projects} projects in {time.perf_counter() - began:.0f} s;"
            f" {'PostgreSQL' if arguments.postgres else 'SQLite'}; load of the machine {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        for is_operators, path in list_paths(control, tenant):
            found = measure(operator if is_operators else owner, path, arguments.calls)
            shown = re.sub(r"_[0-9a-f]{32}", "_…", found.path)
            print(f"  {shown}: p95 {found.wall_ms:.1f} ms, CPU {found.cpu_ms:.1f} ms, {found.size / 1024:.1f} KiB", flush=True)


if __name__ == "__main__":
    main()
