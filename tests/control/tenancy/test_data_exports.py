"""Exports of everything about an organization or a person: complete, without secrets, and of others nothing."""

import hashlib
import json
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

import httpx2
import msgspec
import pytest

from tests.control.browsing import Browser, find_user_id, join
from tests.control.harness import Running, TenantSetup, answered, make_tenant
from tests.control.test_routes import refused
from tollway.control.api.places import Place
from tollway.domain.content_logs import Content, name_content, name_response
from tollway.storage import data_exports
from tollway.storage.row_security import CONDITIONS
from tollway.storage.schema import metadata
from tollway.storage.schema_budgets import budget_windows

EXPORT = "/v1/organization/export"


@pytest.fixture(scope="module")
def tenant(control: Running) -> TenantSetup:
    return make_tenant(control, "exported")


@pytest.fixture(scope="module")
def person(control: Running, tenant: TenantSetup) -> Browser:
    return join(control, control.client(tenant.admin_key), "ada@example.com", "developer")


def read(answer: httpx2.Response) -> list[dict[str, Any]]:
    """The lines of a whole export."""
    assert answer.status_code == 200, answer.text
    lines = [json.loads(line) for line in answer.content.splitlines()]
    manifest = lines[-1]
    assert manifest["type"] == "manifest" and sum(manifest["lines"].values()) == len(lines) - 1
    assert manifest["sha256"] == hashlib.sha256(answer.content[: answer.content.rindex(b'{"type":"manifest"')]).hexdigest()
    return lines


def put_content(control: Running, tenant: TenantSetup) -> None:
    """Log content and store a response for the tenant, as a gateway seals them."""
    admin = control.client(tenant.admin_key)
    path = f"/v1/organization/projects/{tenant.project_id}/data_retention"
    answered(admin.post(path, json={"retention_type": "none", "content_retention_seconds": 3600}))
    answered(admin.post("/v1/organization", json={"response_retention_seconds": 3600}))
    vault, place = control.plane.vault.for_organization(tenant.organization_id), (tenant.organization_id, tenant.project_id)
    request, response = f"req_{1:032x}", f"resp_{1:032x}"
    content = msgspec.json.encode(Content(request=b"the prompt", is_request_cut=False, answer=b"the completion"))
    record = {
        **{"id": request, "organization_id": place[0], "project_id": place[1], "key_id": tenant.key_id},
        **{"endpoint": "chat/completions", "model": "m", "created_at": control.plane.now()},
    }
    sealed = vault.seal_bytes(content, context=name_content(*place, request))
    assert control.node().put("/v1/link/content", params=record, content=sealed).status_code == 204
    where = {"organization_id": place[0], "project_id": place[1], "id": response}
    sealed = vault.seal_bytes(b'{"response": "the answer"}', context=name_response(*place, response))
    assert control.node().put("/v1/link/stored_responses", params=where, content=sealed).status_code == 204


def test_export_of_an_organization_has_all_of_it_and_no_secret(
    control: Running, tenant: TenantSetup, person: Browser, bob: TenantSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_content(control, tenant)
    monkeypatch.setattr(data_exports, "PAGE_ROWS", 2)
    admin = control.client(tenant.admin_key)
    answer = admin.get(EXPORT)
    lines = read(answer)
    rows = [line for line in lines if line["type"] == "row"]
    tables = {"organizations", "projects", "api_keys", "users", "role_assignments", "audit_records", "user_sessions"}
    assert tables <= {row["table"] for row in rows}
    ids = [row["fields"]["id"] for row in rows if row["table"] == "api_keys"]
    assert {tenant.key_id, tenant.admin_key_id} <= set(ids) and len(ids) == len(set(ids))
    assert [(line["request"], line["answer"]) for line in lines if line["type"] == "content"] == [("the prompt", "the completion")]
    assert [json.loads(line["response"]) for line in lines if line["type"] == "response"] == [{"response": "the answer"}]
    for secret in (tenant.admin_key, tenant.secret, person.secret):
        assert secret not in answer.text
    assert not {"digest", "password_hash", "refresh_id", "wrapped"} & {name for row in rows for name in row["fields"]}
    assert bob.organization_id not in answer.text and bob.project_id not in answer.text
    events = answered(admin.get("/v1/organization/audit_logs", params={"event_types[]": "organization.exported"}))["data"]
    assert [each["record"]["operation"] for each in events] == ["export_data"]


def test_export_of_a_person_has_what_names_them_and_of_others_nothing(control: Running, tenant: TenantSetup, person: Browser) -> None:
    admin = control.client(tenant.admin_key)
    other = join(control, admin, "grace@example.com", "reader")
    user_id = find_user_id(admin, "ada@example.com")
    answer = admin.get(EXPORT, params={"user_id": user_id})
    rows = [line for line in read(answer) if line["type"] == "row"]
    assert {"users", "user_sessions", "role_assignments", "user_credentials"} <= {row["table"] for row in rows}
    assert "ada@example.com" in answer.text and "grace@example.com" not in answer.text
    assert person.secret not in answer.text and other.secret not in answer.text
    assert not {"content", "response"} & {line["type"] for line in read(answer)}


def test_export_holds_no_turn_of_its_organization_while_it_is_read(
    control: Running, tenant: TenantSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[str | None] = []
    stream = Place.stream

    async def watch(place: Place, chunks: AsyncIterable[Any], organization: str) -> AsyncIterator[Any]:
        async for chunk in stream(place, chunks, organization):
            turns.append(place.turn)
            yield chunk

    monkeypatch.setattr(Place, "stream", watch)
    read(control.client(tenant.admin_key).get(EXPORT))
    assert len(turns) > 1 and set(turns) == {None}


def test_export_has_rows_without_an_organization_that_name_one_of_its_own(
    control: Running, tenant: TenantSetup, bob: TenantSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    covered = {table.name for table in data_exports.list_tables()}
    covered |= {child.table.name for children in data_exports.CHILDREN.values() for child in children}
    assert set(CONDITIONS) - covered == {"compiled_prices", *data_exports.OF_OPERATORS}
    made = {}
    for each in (tenant, bob):
        body = {"name": "all", "amount": "1", "window": "month"}
        made[each.organization_id] = answered(control.client(each.admin_key).post("/v1/organization/budgets", json=body))["id"]
    with control.plane.database.platform() as tx:
        windows = [{"budget_id": id, "start_at": at, "end_at": at + 9, "spent_pico": 1} for id in made.values() for at in range(5)]
        tx.connection.execute(budget_windows.insert(), windows)
    monkeypatch.setattr(data_exports, "PAGE_ROWS", 2)
    rows = [line for line in read(control.client(tenant.admin_key).get(EXPORT)) if line["type"] == "row"]
    found = [(row["fields"]["budget_id"], row["fields"]["start_at"]) for row in rows if row["table"] == "budget_windows"]
    assert found == [(made[tenant.organization_id], at) for at in range(5)]


def test_person_who_was_removed_is_exported_without_their_address_and_name(control: Running, tenant: TenantSetup) -> None:
    admin = control.client(tenant.admin_key)
    join(control, admin, "gone@example.com", "reader")
    user_id = find_user_id(admin, "gone@example.com")
    answered(admin.delete(f"/v1/organization/users/{user_id}"))
    rows = [line for line in read(admin.get(EXPORT, params={"user_id": user_id})) if line["type"] == "row"]
    (user,) = (row["fields"] for row in rows if row["table"] == "users")
    assert (user["email"], user["name"]) == ("", "") and user["removed_at"] is not None


def test_events_are_read_by_an_index_that_has_the_organization() -> None:
    for name, columns in data_exports.ORDERS.items():
        table = metadata.tables[name]
        assert ["organization_id", *columns] in [[column.name for column in index.columns] for index in table.indexes]


def test_export_needs_a_permission_that_owners_alone_have(control: Running, tenant: TenantSetup) -> None:
    admin = control.client(tenant.admin_key)
    for role in ("admin", "viewer"):
        key = answered(admin.post("/v1/organization/admin_api_keys", json={"name": role, "role": role}))["value"]
        refused(control.client(key).get(EXPORT), 403, "insufficient_scope")


@pytest.mark.usefixtures("person")
def test_person_of_another_tenant_answers_as_one_that_never_was(control: Running, tenant: TenantSetup, alice: TenantSetup) -> None:
    user_id = find_user_id(control.client(tenant.admin_key), "ada@example.com")
    client = control.client(alice.admin_key)
    theirs, unknown = (client.get(EXPORT, params={"user_id": each}) for each in (user_id, "user_" + "0" * 32))
    assert theirs.status_code == unknown.status_code == 404 and theirs.json()["error"] == unknown.json()["error"]
    assert client.get(EXPORT, params={"user_id": "x"}).status_code == 400
