"""Logged content of requests: through a gateway and a control plane over its database, sealed on the way and removed in time."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from tests.control.harness import Running as Control
from tests.control.harness import TenantSetup, answered, make_tenant, running, wait_until
from tests.control.test_routes import refused
from tests.gateway.harness import PEPPER, Gateway, Served, gateway
from tests.gateway.test_test_keys import change
from tests.patience import CLIENT_SECONDS
from tests.simulator.running import Running as Simulator
from tests.simulator.running import simulator
from tests.storage.databases import SqliteTemplate
from tollway.control.tenancy import content_logs
from tollway.domain import keys
from tollway.domain.catalog import Endpoint
from tollway.domain.content_logs import REQUEST_BYTES_MAX, Content, ContentRecord
from tollway.domain.keys import KeyType
from tollway.domain.prices import PriceTerms
from tollway.domain.snapshot import KeyEntry, OrganizationEntry, ProjectEntry
from tollway.link import content_log
from tollway.link.content_log import ContentSender
from tollway.storage import content_logs as stored_content_logs
from tollway.storage.schema_data_protection import content_log_totals
from tollway.storage.schema_data_protection import content_logs as table

CHAT = "/v1/chat/completions"
SECRET = "the quick brown prompt"
MESSAGES = [{"role": "user", "content": SECRET}]
DAY = 86_400


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with simulator(tmp_path_factory.mktemp("simulator") / "truth.jsonl") as made:
        yield made


@pytest.fixture(scope="module")
def control(sqlite_template: SqliteTemplate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    directory = tmp_path_factory.mktemp("control")
    with sqlite_template.copied(directory) as url, running(url, directory / "archive") as started:
        yield started


@pytest.fixture
def tenant(control: Control, request: pytest.FixtureRequest) -> TenantSetup:
    return make_tenant(control, request.node.name[:100])


def retention_path(tenant: TenantSetup) -> str:
    return f"/v1/organization/projects/{tenant.project_id}/data_retention"


def content_path(tenant: TenantSetup) -> str:
    return f"/v1/organization/projects/{tenant.project_id}/content"


def log_for(control: Control, tenant: TenantSetup, seconds: int | None = 30 * DAY) -> None:
    body = {"retention_type": "none", "content_retention_seconds": seconds}
    answered(control.client(tenant.admin_key).post(retention_path(tenant), json=body))


@asynccontextmanager
async def serve(
    control: Control, served: Served, tenant: TenantSetup, *, logs: bool = True
) -> AsyncIterator[tuple[Gateway, ContentSender]]:
    """A gateway that knows the tenant, and the log of its content."""
    async with gateway({"m": served}) as made:
        log = ContentSender(control_link_url=control.link_url, node_key=control.node_key, sealer_of=control.plane.vault.for_organization)
        made.plane.content_log = log
        change(
            made,
            OrganizationEntry(id=tenant.organization_id, currency="EUR", terms=(PriceTerms(0, "book_1"),)),
            ProjectEntry(id=tenant.project_id, organization_id=tenant.organization_id, logs_content=logs),
            KeyEntry(id=tenant.key_id, digest=keys.digest(PEPPER, tenant.secret.encode()), type=KeyType.LIVE, project_id=tenant.project_id),
        )
        sending = asyncio.create_task(log.run())
        try:
            yield made, log
        finally:
            sending.cancel()
            await log.close()


async def list_logged(control: Control, tenant: TenantSetup, count: int) -> list[dict[str, Any]]:
    admin = control.client(tenant.admin_key)

    def read() -> list[dict[str, Any]]:
        return list(answered(admin.get(content_path(tenant), params={"order": "asc"}))["data"])

    await asyncio.to_thread(wait_until, lambda: len(read()) >= count)
    return await asyncio.to_thread(read)


async def ask(made: Gateway, tenant: TenantSetup, body: dict[str, Any]) -> httpx2.Response:
    async with httpx2.AsyncClient(
        base_url=made.url, headers={"authorization": f"Bearer {tenant.secret}"}, trust_env=False, timeout=CLIENT_SECONDS
    ) as http:
        return await http.post(CHAT, json={"model": "m", **body}, timeout=CLIENT_SECONDS)


async def test_content_of_whole_and_streamed_requests_is_logged_sealed_and_read_by_those_who_may(
    control: Control, engine: Simulator, tenant: TenantSetup
) -> None:
    log_for(control, tenant)
    async with serve(control, Served([engine.url], upstream_model="sim-echo"), tenant) as (made, _):
        answers = [await ask(made, tenant, {"messages": MESSAGES}), await ask(made, tenant, {"messages": MESSAGES, "stream": True})]
        records = await list_logged(control, tenant, 2)
    admin = control.client(tenant.admin_key)
    found = [answered(admin.get(f"{content_path(tenant)}/{each['id']}")) for each in records]
    assert [json.loads(each["request"])["messages"] for each in found] == [MESSAGES, MESSAGES]
    assert {each["answer"] for each in found} == {answer.text for answer in answers}
    assert [each["request_truncated"] for each in found] == [False, False]
    with control.plane.database.platform(write=False) as tx:
        stored = [bytes(content) for content in tx.connection.execute(sa.select(table.c.content)).scalars()]
    assert stored and not any(b"quick" in content for content in stored)
    events = answered(admin.get("/v1/organization/audit_logs", params={"event_types[]": "content_log.read"}))["data"]
    assert {each["record"]["operation"] for each in events} == {"list_content", "retrieve_content"}
    assert SECRET not in json.dumps([events, control.lines], default=str)


@pytest.mark.parametrize("role", ["admin", "viewer", "developer"])
def test_content_needs_a_permission_of_its_own(control: Control, tenant: TenantSetup, role: str) -> None:
    admin = control.client(tenant.admin_key)
    key = answered(admin.post("/v1/organization/admin_api_keys", json={"name": role, "role": role}))["value"]
    refused(control.client(key).get(content_path(tenant)), 403, "insufficient_scope")
    refused(control.client(key).get(f"{content_path(tenant)}/req_{'0' * 32}"), 403, "insufficient_scope")


async def test_nothing_is_logged_of_projects_that_say_nothing(control: Control, engine: Simulator, tenant: TenantSetup) -> None:
    async with serve(control, Served([engine.url], upstream_model="sim-echo"), tenant, logs=False) as (made, log):
        assert (await ask(made, tenant, {"messages": MESSAGES})).status_code == 200
        assert not log._waiting and log.dropped == 0
    assert not answered(control.client(tenant.admin_key).get(content_path(tenant)))["data"]


async def test_gateway_with_an_older_snapshot_logs_nothing_of_a_project_that_has_stopped(
    control: Control, engine: Simulator, tenant: TenantSetup
) -> None:
    async with serve(control, Served([engine.url], upstream_model="sim-echo"), tenant) as (made, log):
        assert (await ask(made, tenant, {"messages": MESSAGES})).status_code == 200
        await asyncio.to_thread(wait_until, lambda: log.dropped == 1)
    assert not answered(control.client(tenant.admin_key).get(content_path(tenant)))["data"]


async def test_request_that_fails_is_logged_without_an_answer(control: Control, engine: Simulator, tenant: TenantSetup) -> None:
    log_for(control, tenant)
    async with serve(control, Served([engine.url], upstream_model="sim-echo!error@0:500"), tenant) as (made, _):
        assert (await ask(made, tenant, {"messages": MESSAGES})).status_code >= 500
        (record,) = await list_logged(control, tenant, 1)
    found = answered(control.client(tenant.admin_key).get(f"{content_path(tenant)}/{record['id']}"))
    assert found["answer"] is None and SECRET in found["request"]


async def test_long_body_is_logged_as_far_as_it_may_be(control: Control, engine: Simulator, tenant: TenantSetup) -> None:
    log_for(control, tenant)
    async with serve(control, Served([engine.url], upstream_model="sim-echo"), tenant) as (made, _):
        long = [{"role": "user", "content": "x" * REQUEST_BYTES_MAX}]
        await ask(made, tenant, {"messages": long})  # more than the context of the model, which refuses it
        (record,) = await list_logged(control, tenant, 1)
    found = answered(control.client(tenant.admin_key).get(f"{content_path(tenant)}/{record['id']}"))
    assert found["request_truncated"] and len(found["request"]) == REQUEST_BYTES_MAX


async def test_control_that_is_away_costs_content_and_no_request(
    control: Control, engine: Simulator, tenant: TenantSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content_log, "KEPT_SECONDS_MAX", 0.0)
    async with serve(control, Served([engine.url], upstream_model="sim-echo"), tenant) as (made, log):
        log._client = httpx2.AsyncClient(transport=httpx2.MockTransport(_fail), base_url="http://away")
        assert (await ask(made, tenant, {"messages": MESSAGES})).status_code == 200
        await asyncio.to_thread(wait_until, lambda: log.dropped == 1)


def _fail(_request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("away")


async def test_what_waits_is_bounded_in_number_and_bytes(monkeypatch: pytest.MonkeyPatch, control: Control) -> None:
    log = ContentSender(control_link_url="http://127.0.0.1:1", node_key="x", sealer_of=control.plane.vault.for_organization)
    record = ContentRecord(
        id="req_1", organization_id="org_1", project_id="proj_1", key_id="key_1", endpoint=Endpoint.COMPLETIONS, model="m", created_at=0
    )
    monkeypatch.setattr(content_log, "WAITING_MAX", 2)
    for _ in range(3):
        log.add(record, Content(request=b"x", is_request_cut=False, answer=None))
    assert log.dropped == 1
    monkeypatch.setattr(content_log, "WAITING_MAX", 10)
    monkeypatch.setattr(content_log, "WAITING_BYTES_MAX", 1_000)
    log.add(record, Content(request=b"x" * 2_000, is_request_cut=False, answer=None))
    assert log.dropped == 2
    await log.close()
    assert log.dropped == 4


# ---- Retention ----------------------------------------------------------------------------------------------------------


def put(control: Control, tenant: TenantSetup, number: int, content: bytes = b"sealed") -> int:
    record = {
        "id": f"req_{number:032x}",
        "organization_id": tenant.organization_id,
        "project_id": tenant.project_id,
        "key_id": tenant.key_id,
        "endpoint": "chat/completions",
        "model": "m",
        "created_at": control.plane.now(),
    }
    return control.node().put("/v1/link/content", params=record, content=content).status_code


def count(control: Control, tenant: TenantSetup) -> int:
    with control.plane.database.platform(write=False) as tx:
        own = sa.select(sa.func.count()).select_from(table).where(table.c.organization_id == tenant.organization_id)
        return int(tx.connection.execute(own).scalar_one())


def total(control: Control, tenant: TenantSetup) -> int:
    with control.plane.database.platform(write=False) as tx:
        own = sa.select(content_log_totals.c.bytes).where(content_log_totals.c.organization_id == tenant.organization_id)
        return int(tx.connection.execute(own).scalar_one_or_none() or 0)


def test_content_whose_time_is_over_is_not_read_and_its_bytes_leave_the_database(sqlite_template: SqliteTemplate, tmp_path: Path) -> None:
    with sqlite_template.copied(tmp_path) as url, running(url, tmp_path / "archive") as control:
        tenant = make_tenant(control, "forgetful")
        log_for(control, tenant, DAY)
        assert put(control, tenant, 1) == 204
        with control.plane.database.platform(write=False) as tx:
            sealed = bytes(tx.connection.execute(sa.select(table.c.content)).scalar_one())
        assert _is_in_files(tmp_path, sealed)
        with control.clock.set_to(control.plane.now() + DAY * 1_000_000 + 1):
            assert not answered(control.client(tenant.admin_key).get(content_path(tenant)))["data"]
            refused(control.client(tenant.admin_key).get(f"{content_path(tenant)}/req_{1:032x}"), 404, "not_found")
            assert list(content_logs.remove_expired(control.plane.database, control.plane.now())) == [1]
        assert (count(control, tenant), total(control, tenant)) == (0, 0)
    assert not _is_in_files(tmp_path, sealed), "the bytes are still in a file of the database"


def _is_in_files(directory: Path, sealed: bytes) -> bool:
    return any(sealed in path.read_bytes() for path in directory.rglob("*") if path.is_file())


def test_shorter_retention_holds_for_what_is_logged_and_none_deletes_it(control: Control, tenant: TenantSetup) -> None:
    log_for(control, tenant, 30 * DAY)
    assert put(control, tenant, 1) == 204 and put(control, tenant, 1) == 204 and count(control, tenant) == 1
    log_for(control, tenant, DAY)
    with control.clock.set_to(control.plane.now() + 2 * DAY * 1_000_000):
        assert not answered(control.client(tenant.admin_key).get(content_path(tenant)))["data"]
    log_for(control, tenant, None)
    assert (count(control, tenant), total(control, tenant)) == (0, 0)
    assert put(control, tenant, 2) == 409


def test_log_of_many_requests_is_not_read_from_its_end_on_and_deleted_in_parts(
    control: Control, tenant: TenantSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = control.client(tenant.admin_key)
    monkeypatch.setattr(stored_content_logs, "REMOVED_MAX", 2)
    log_for(control, tenant)
    for number in range(5):
        assert put(control, tenant, number) == 204
    log_for(control, tenant, None)
    assert count(control, tenant) == 3
    refused(admin.get(f"{content_path(tenant)}/req_{4:032x}"), 404, "not_found")
    assert not answered(admin.get(content_path(tenant)))["data"]
    assert b'"type":"content"' not in admin.get("/v1/organization/export").content
    body = {"retention_type": "none", "content_retention_seconds": DAY}
    refused(admin.post(retention_path(tenant), json=body), 409, "conflict")
    assert list(content_logs.remove_expired(control.plane.database, control.plane.now())) == [0, 2, 1]
    assert (count(control, tenant), total(control, tenant)) == (0, 0)
    log_for(control, tenant)
    assert put(control, tenant, 9) == 204


def test_zero_retention_of_the_organization_ends_logging_and_storing(control: Control, tenant: TenantSetup) -> None:
    admin = control.client(tenant.admin_key)
    log_for(control, tenant)
    answered(admin.post("/v1/organization", json={"response_retention_seconds": DAY}))
    assert put(control, tenant, 1) == 204
    answered(admin.post("/v1/organization/data_retention", json={"retention_type": "zero_data_retention"}))
    assert (count(control, tenant), put(control, tenant, 2)) == (0, 409)
    assert answered(admin.get(retention_path(tenant)))["content_retention_seconds"] is None
    assert answered(admin.get("/v1/organization"))["response_retention_seconds"] is None
    body = {"retention_type": "none", "content_retention_seconds": DAY}
    refused(admin.post(retention_path(tenant), json=body), 409, "conflict")
    refused(admin.post("/v1/organization", json={"response_retention_seconds": DAY}), 409, "conflict")


@pytest.mark.parametrize(
    "body",
    [
        {"retention_type": "zero_data_retention", "content_retention_seconds": 1},
        {"retention_type": "none", "content_retention_seconds": 0},
        {"retention_type": "none", "content_retention_seconds": 367 * DAY},
        {"retention_type": "forever"},
        {},
    ],
    ids=str,
)
def test_bad_retention_is_refused(control: Control, tenant: TenantSetup, body: dict[str, Any]) -> None:
    assert control.client(tenant.admin_key).post(retention_path(tenant), json=body).status_code == 400


def test_content_of_another_tenant_answers_as_one_that_never_was(control: Control, tenant: TenantSetup) -> None:
    log_for(control, tenant)
    assert put(control, tenant, 7) == 204
    other = make_tenant(control, f"other than {tenant.organization_id}")
    client = control.client(other.admin_key)
    path = f"/v1/organization/projects/{other.project_id}/content"
    theirs, unknown = client.get(f"{path}/req_{7:032x}"), client.get(f"{path}/req_{8:032x}")
    assert theirs.status_code == 404 and theirs.json()["error"] == unknown.json()["error"]
    refused(client.get(content_path(tenant)), 404, "not_found")


def test_organization_stores_no_more_than_it_may(control: Control, tenant: TenantSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    log_for(control, tenant)
    assert put(control, tenant, 1) == 204
    monkeypatch.setattr(content_logs, "BYTES_MAX", total(control, tenant) + 10)
    assert put(control, tenant, 2) == 403
    assert count(control, tenant) == 1
