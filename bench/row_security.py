"""The cost of row security: `python -m bench.row_security`.

A control plane on a PostgreSQL of its own answers typical calls of one organization among a hundred, in turns with row security and
without: between the turns the tables have it enabled or disabled, and everything else, the change of the role among it, stays. What is
printed is the median of each call over HTTP, and the share by which row security lengthens it."""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import sqlalchemy as sa

from scripts import postgres
from tests.control.harness import Running, TenantSetup, answered, make_tenant, running
from tollway.serve.control import migrate_database
from tollway.storage.database import Database

ORGANIZATIONS = 100
CALLS = 30
"""Calls of each kind in one turn."""


def list_calls(admin: httpx2.Client, tenant: TenantSetup) -> dict[str, Callable[[], Any]]:
    """Return typical calls by name."""
    keys = f"/v1/organization/projects/{tenant.project_id}/api_keys"
    return {
        "read a key": lambda: admin.get(f"{keys}/{tenant.key_id}"),
        "list projects": lambda: admin.get("/v1/organization/projects"),
        "read limits": lambda: admin.get("/v1/organization/limits"),
        "list the audit trail": lambda: admin.get("/v1/organization/audit_logs", params={"limit": "20"}),
        "create a key": lambda: admin.post(keys, json={"name": "k"}),
        "change a key": lambda: admin.post(f"{keys}/{tenant.key_id}", json={"name": "other"}),
    }


def switch(owner_url: str, *, is_on: bool) -> None:
    """Enable or disable row security of every table that has policies."""
    engine = sa.create_engine(owner_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        tables = connection.execute(sa.text("SELECT DISTINCT polrelid::regclass::text FROM pg_policy")).scalars().all()
        for table in tables:
            connection.execute(sa.text(f"ALTER TABLE {table} {'ENABLE' if is_on else 'DISABLE'} ROW LEVEL SECURITY"))


def measure(control: Running, owner_url: str, turns: int) -> dict[str, tuple[list[float], list[float]]]:
    """Return seconds of each call, with row security and without."""
    tenants = [make_tenant(control, f"organization {number}") for number in range(ORGANIZATIONS)]
    calls = list_calls(control.client(tenants[0].admin_key), tenants[0])
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in calls}
    for turn in range(2 * turns):
        switch(owner_url, is_on=turn % 2 == 0)
        for name, call in calls.items():
            answered(call())  # plans are made anew after the switch
            for _ in range(CALLS):
                began = time.perf_counter()
                answered(call())
                taken[name][turn % 2].append(time.perf_counter() - began)
    switch(owner_url, is_on=True)
    return taken


def describe(name: str, with_it: Sequence[float], without: Sequence[float]) -> str:
    """Return one line of the figures."""
    medians = [statistics.median(seconds) * 1000 for seconds in (with_it, without)]
    return f"{name}: {medians[0]:.2f} ms with, {medians[1]:.2f} ms without, {100 * (medians[0] / medians[1] - 1):+.0f} %"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.row_security", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=5, help="turns with row security, and as many without (default 5)")
    arguments = parser.parse_args()
    with postgres.running() as owner_url, tempfile.TemporaryDirectory() as scratch:
        url = postgres.application_environment(owner_url)["TOLLWAY_DATABASE_URL"]
        migrate_database(url, owner_url)
        with closing(Database.open(url)) as database:
            database.check_role()
        with running(url, Path(scratch) / "archive") as control:
            taken = measure(control, owner_url, arguments.turns)
    print(f"{ORGANIZATIONS} organizations, {arguments.turns} turns of {CALLS} calls, load of the machine {os.getloadavg()[0]:.1f}")
    for name, (with_it, without) in taken.items():
        print("  " + describe(name, with_it, without))


if __name__ == "__main__":
    main()
