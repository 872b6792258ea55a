"""Stored responses at control: what a change of the retention that comes in between leaves, and how much is stored; on each database."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import sqlalchemy as sa

from tests.control.harness import Running, TenantSetup, answered, make_tenant
from tollway.control.tenancy import content_logs, stored_responses, tenants
from tollway.domain.catalog import Endpoint
from tollway.domain.content_logs import ContentRecord
from tollway.domain.data_retention import ProjectRetention, RetentionType
from tollway.storage import stored_responses as storage
from tollway.storage.database import TenantTx
from tollway.storage.schema_data_protection import content_logs as logs
from tollway.storage.schema_responses import stored_response_totals
from tollway.storage.schema_responses import stored_responses as table
from tollway.storage.vault import LocalVault

DAY = 86_400
ID = "resp_" + "0" * 32


def make_storing(control: Running, name: str = "storing") -> TenantSetup:
    tenant = make_tenant(control, name)
    answered(control.client(tenant.admin_key).post("/v1/organization", json={"response_retention_seconds": DAY}))
    return tenant


def count(control: Running) -> int:
    with control.plane.database.platform(write=False) as tx:
        return int(tx.connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda tx, now: stored_responses.set_retention(tx, None, now), id="switched-off"),
        pytest.param(tenants.archive_organization, id="archived"),
    ],
)
def test_response_that_is_stored_while_the_retention_ends_is_deleted_with_the_others(
    fresh_control: Running, end: Callable[[TenantTx, int], object]
) -> None:
    tenant, plane = make_storing(fresh_control), fresh_control.plane

    def end_retention() -> None:
        with plane.database.tenant(tenant.organization_id) as tx:
            end(tx, plane.now())

    ending = threading.Thread(target=end_retention)
    with plane.database.tenant(tenant.organization_id) as tx:
        stored_responses.store(tx, project_id=tenant.project_id, id=ID, content=b"sealed", now=plane.now())
        ending.start()
        ending.join(0.5)  # without a lock it would be done now, and have deleted nothing
    ending.join()
    assert count(fresh_control) == 0


@dataclass(frozen=True, slots=True)
class Ending:
    """A way to store something of a project, and a change of the project after which none may be left."""

    store: Callable[[TenantTx, TenantSetup, LocalVault, int], None]
    end: Callable[[TenantTx, str, int], object]


def store_response(tx: TenantTx, tenant: TenantSetup, _vault: LocalVault, now: int) -> None:
    stored_responses.store(tx, project_id=tenant.project_id, id=ID, content=b"sealed", now=now)


def log_content(tx: TenantTx, tenant: TenantSetup, vault: LocalVault, now: int) -> None:
    record = ContentRecord(
        id="req_" + "0" * 32,
        organization_id=tenant.organization_id,
        project_id=tenant.project_id,
        key_id=tenant.key_id,
        endpoint=Endpoint.COMPLETIONS,
        model="m",
        created_at=now,
    )
    content_logs.store(tx, record, b"sealed", vault.for_organization(tenant.organization_id), now)


def keep_nothing(tx: TenantTx, project_id: str, now: int) -> object:
    retention = ProjectRetention(type=RetentionType.ZERO, content_retention_seconds=None)
    return content_logs.set_project_retention(tx, project_id, retention, now)


def test_what_is_stored_while_the_project_ends_its_retention_is_deleted_with_the_rest(fresh_control: Running) -> None:
    plane = fresh_control.plane
    endings = [Ending(store_response, keep_nothing), Ending(log_content, keep_nothing), Ending(log_content, tenants.archive_project)]
    for number, ending in enumerate(endings):
        tenant = make_storing(fresh_control, f"ending {number}")
        with plane.database.tenant(tenant.organization_id) as tx:
            logged = ProjectRetention(type=RetentionType.NONE, content_retention_seconds=DAY)
            content_logs.set_project_retention(tx, tenant.project_id, logged, plane.now())

        def end(tenant: TenantSetup = tenant, ending: Ending = ending) -> None:
            with plane.database.tenant(tenant.organization_id) as tx:
                ending.end(tx, tenant.project_id, plane.now())

        thread = threading.Thread(target=end)
        with plane.database.tenant(tenant.organization_id) as tx:
            ending.store(tx, tenant, plane.vault, plane.now())
            thread.start()
            thread.join(0.5)  # without a lock it would be done now, and have deleted nothing
        thread.join()
        with plane.database.platform(write=False) as tx:
            left = [tx.connection.execute(sa.select(sa.func.count()).select_from(each)).scalar_one() for each in (table, logs)]
        assert left == [0, 0], number


def total(control: Running) -> tuple[int, int]:
    with control.plane.database.platform(write=False) as tx:
        row = tx.connection.execute(sa.select(stored_response_totals.c.responses, stored_response_totals.c.bytes)).one_or_none()
    return (0, 0) if row is None else (row.responses, row.bytes)


def test_what_is_stored_is_bounded_in_bytes_too_and_whatever_is_deleted_frees_its_part(
    fresh_control: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant, node, now = make_storing(fresh_control), fresh_control.node(), fresh_control.plane.now()
    monkeypatch.setattr(stored_responses, "BYTES_MAX", 10)

    def put(number: int) -> int:
        place = {"organization_id": tenant.organization_id, "project_id": tenant.project_id, "id": f"resp_{number:032x}"}
        return node.put("/v1/link/stored_responses", params=place, content=b"x" * 5).status_code

    assert [put(1), put(1), put(2), put(3)] == [204, 204, 204, 403]
    assert (count(fresh_control), total(fresh_control)) == (2, (2, 10))
    place = {"organization_id": tenant.organization_id, "project_id": tenant.project_id, "id": f"resp_{1:032x}"}
    assert node.delete("/v1/link/stored_responses", params=place).status_code == 204
    assert total(fresh_control) == (1, 5) and put(3) == 204
    assert list(stored_responses.remove_expired(fresh_control.plane.database, now + 2 * DAY * 1_000_000)) == [2]
    assert total(fresh_control) == (0, 0) and put(4) == put(5) == 204
    monkeypatch.setattr(storage, "REMOVED_MAX", 1)
    with fresh_control.plane.database.tenant(tenant.organization_id) as tx:
        stored_responses.set_retention(tx, None, now)
        assert storage.find_response(tx, tenant.project_id, f"resp_{5:032x}", now) is None
    assert (count(fresh_control), total(fresh_control)) == (1, (1, 5))
    assert list(stored_responses.remove_expired(fresh_control.plane.database, now)) == [1, 0]
    assert (count(fresh_control), total(fresh_control)) == (0, (0, 0))
