"""The audit trail: each change leaves a record in its own transaction, in a chain without gaps, on both databases."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.routing import APIRoute

from tests.control.harness import Running, TenantSetup, answered, make_tenant
from tollway.control.api.app import create_apps
from tollway.control.auditing import audit, audited_operations
from tollway.control.auditing.audit import AuditedOperation
from tollway.control.tenancy import tenants
from tollway.domain.audit import GENESIS, HIDDEN, PLATFORM_CHAIN, Actor, ActorKind, AuditRecord
from tollway.storage import audit as storage
from tollway.storage import row_changes, schema
from tollway.storage.schema_audit import audit_heads

PROJECTS = "/v1/organization/projects"

TABLES_WITHOUT_RESOURCES = {
    "audit_checkpoints", "audit_cuts", "audit_heads", "audit_records",  # the audit trail itself
    "balances", "ledger_accounts", "ledger_entries", "ledger_transactions",  # follow from events and corrections
    "budget_alerts", "budget_leases", "budget_windows",  # what gateways lease and spend
    "changes", "publish_head",  # what gateways are told
    "compatible_revisions",  # written by whoever migrates
    "compiled_prices", "price_lists",  # follow from prices and terms
    "credit_draws", "credit_topups", "credit_transactions",  # what is used of grants, and what rules asked for
    "credit_redraws", "credit_redraw_usage",  # which draws are made anew
    "engine_hours", "engine_members", "engine_readings", "engine_usage",  # what engines counted
    "epochs", "event_conflicts", "limit_reports", "gateway_statuses",  # what gateways say of themselves
    "quarantined_records", "usage_events", "usage_rollups",  # and send
    "project_rollups", "organization_rollups",  # and its sums
    "outbox_events", "event_counters", "event_searches", "webhook_deliveries",  # what is told to programs outside
    "sink_positions", "usage_batches",  # and how far
    "content_logs", "content_log_totals", "content_deletions",  # what requests said, where a project logs it
    "idempotency_keys", "job_leases", "stored_responses", "stored_response_totals", "used_assertions",  # of requests and processes
    "device_logins", "sign_in_attempts", "sign_in_links", "operator_sign_in_links",  # of people who are about to sign in
    "settlements", "open_items", "dunning_notices", "dunning_letters",  # follow from payments and due dates
    "invoice_files", "invoice_transactions", "number_series",  # follow from invoices that are issued
    "contract_charges", "serving_costs", "capacity_costs",  # follows from contracts and the events of a period
    "period_blocks",  # follows from the events of a period
}  # fmt: skip
"""Tables whose rows nobody administers. The rows of every other one are compared for the audit trail."""


@pytest.fixture
def tenant(fresh_control: Running) -> TenantSetup:
    return make_tenant(fresh_control, "acme")


def list_chain(control: Running, chain: str) -> list[AuditRecord]:
    """The records of a chain, whose hashes are checked."""
    with control.plane.database.platform(write=False) as tx:
        records = list(storage.iterate_records(tx, chain))
    previous = GENESIS
    for number, record in enumerate(records, 1):
        assert (record.sequence, record.hash) == (number, record.compute_hash(previous))
        previous = record.hash
    return records


def test_each_changing_operation_is_declared_and_no_declaration_is_unused(fresh_control: Running) -> None:
    routes = [route for app in create_apps(fresh_control.plane) for route in app.routes if isinstance(route, APIRoute)]
    changing = {route.name for route in routes if route.methods != {"GET"}}
    declared = {*audited_operations.EVENTS, *audited_operations.UNRECORDED}
    assert changing <= declared and declared <= {route.name for route in routes}
    assert not set(audited_operations.EVENTS) & set(audited_operations.UNRECORDED)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        with pytest.raises(TypeError, match="must be declared"):
            audited_operations.find_event("invent", method)


def test_each_table_is_compared_or_holds_no_resource() -> None:
    compared = {table.name for table in row_changes.AUDITED}
    assert compared | TABLES_WITHOUT_RESOURCES == set(schema.metadata.tables) and not compared & TABLES_WITHOUT_RESOURCES


def test_change_is_recorded_with_actor_target_and_fields_but_no_secret(fresh_control: Running, tenant: TenantSetup) -> None:
    admin = fresh_control.client(tenant.admin_key)
    answer = admin.post(f"{PROJECTS}/{tenant.project_id}", json={"name": "renamed"})
    answered(answer)
    made = answered(admin.post(f"{PROJECTS}/{tenant.project_id}/api_keys", json={"name": "k", "tags": {"team": "search"}}))
    rotated = answered(admin.post(f"{PROJECTS}/{tenant.project_id}/api_keys/{made['id']}/rotate", json={}))
    renamed, created, turned = list_chain(fresh_control, tenant.organization_id)[-3:]
    assert (renamed.event, renamed.operation) == ("project.updated", "update_project")
    assert (renamed.actor.kind, renamed.actor.id, renamed.actor.address) == ("admin_key", tenant.admin_key_id, "127.0.0.1")
    assert renamed.actor.request_id == answer.headers["x-request-id"]
    assert (renamed.target.kind, renamed.target.id, renamed.target.project_id) == ("project", tenant.project_id, tenant.project_id)
    assert json.loads(renamed.changes) == [
        {"kind": "project", "id": tenant.project_id, "before": {"name": "acme project"}, "after": {"name": "renamed"}}
    ]
    assert (created.event, created.target.kind, created.target.id) == ("api_key.created", "api_key", made["id"])
    (fields,) = json.loads(created.changes)
    assert "before" not in fields and fields["after"]["name"] == "k" and fields["after"]["digest"] == HIDDEN
    (fields,) = json.loads(turned.changes)
    assert (fields["before"]["digest"], fields["after"]["digest"]) == (HIDDEN, HIDDEN)
    everything = "".join(record.changes for record in list_chain(fresh_control, tenant.organization_id))
    assert made["value"] not in everything and rotated["value"] not in everything and tenant.secret not in everything


def test_change_behind_the_end_of_a_long_text_is_seen_in_the_record(fresh_control: Running, tenant: TenantSetup) -> None:
    admin = fresh_control.client(tenant.admin_key)
    addresses = [f"2001:db8:{number:x}::/48" for number in range(60)]
    path = f"{PROJECTS}/{tenant.project_id}/api_keys"
    made = answered(admin.post(path, json={"name": "k", "addresses": addresses}))
    answered(admin.post(f"{path}/{made['id']}", json={"addresses": [*addresses[:-1], "198.51.100.0/24"]}))
    (fields,) = json.loads(list_chain(fresh_control, tenant.organization_id)[-1].changes)
    before, after = fields["before"]["addresses"], fields["after"]["addresses"]
    assert before != after and before[: row_changes.TEXT_CHARACTERS_MAX] == after[: row_changes.TEXT_CHARACTERS_MAX]


def test_operator_for_an_organization_is_recorded_in_its_chain_and_otherwise_in_that_of_the_platform(
    fresh_control: Running, tenant: TenantSetup
) -> None:
    operator = fresh_control.client(fresh_control.platform_key, **{"openai-organization": tenant.organization_id})
    answered(operator.post(PROJECTS, json={"name": "by operator"}))
    answered(fresh_control.operator().post("/v1/platform/keys", json={"name": "second person"}))
    record = list_chain(fresh_control, tenant.organization_id)[-1]
    assert (record.event, record.actor.kind) == ("project.created", "operator")
    assert list_chain(fresh_control, tenant.organization_id)[0].event == "organization.created"
    assert [each.event for each in list_chain(fresh_control, PLATFORM_CHAIN)][-1:] == ["api_key.created"]


def test_refused_change_and_repeated_answer_leave_no_record(fresh_control: Running, tenant: TenantSetup) -> None:
    admin = fresh_control.client(tenant.admin_key)
    count = len(list_chain(fresh_control, tenant.organization_id))
    assert admin.post(f"{PROJECTS}/proj_{'9' * 32}", json={"name": "x"}).status_code == 404
    assert admin.post(PROJECTS, json={"nome": "x"}).status_code == 400
    for _ in range(2):
        answered(admin.post(PROJECTS, json={"name": "once"}, headers={"idempotency-key": "k"}))
    assert len(list_chain(fresh_control, tenant.organization_id)) == count + 1


def test_change_whose_record_cannot_be_written_does_not_happen(fresh_control: Running, tenant: TenantSetup) -> None:
    admin = fresh_control.client(tenant.admin_key)
    with fresh_control.plane.database.platform() as tx:
        tx.connection.execute(audit_heads.update().values(sequence=0))  # the next record collides with the first one
    assert admin.post(PROJECTS, json={"name": "unrecorded"}).status_code == 500
    names = [each["name"] for each in answered(admin.get(PROJECTS))["data"]]
    assert "unrecorded" not in names


def test_concurrent_changes_form_one_chain_without_gaps(fresh_control: Running, tenant: TenantSetup) -> None:
    before = len(list_chain(fresh_control, tenant.organization_id))

    def create(number: int) -> Any:
        return answered(fresh_control.client(tenant.admin_key).post(PROJECTS, json={"name": f"p{number}"}))["id"]

    with ThreadPoolExecutor(4) as threads:
        made = set(threads.map(create, range(12)))
    records = list_chain(fresh_control, tenant.organization_id)[before:]
    assert len(records) == 12 and {record.target.id for record in records} == made


def test_records_are_refused_to_be_changed_or_removed(fresh_control: Running, tenant: TenantSetup) -> None:
    for statement in ("UPDATE audit_records SET event = 'x'", "DELETE FROM audit_records"):
        with pytest.raises(sa.exc.DBAPIError), fresh_control.plane.database.platform() as tx:
            tx.connection.execute(sa.text(statement))


def test_job_is_recorded_once_for_each_transaction_that_changes_a_resource(fresh_control: Running, tenant: TenantSetup) -> None:
    plane = fresh_control.plane
    operation = AuditedOperation(event="project.updated", operation="renaming", actor=Actor(kind=ActorKind.JOB, id="renaming"))
    database = plane.database.recording(audit.record_changes(operation, new_id=plane.new_id, now=plane.now))
    before = len(list_chain(fresh_control, tenant.organization_id))
    for name in ("acme project", "by a job", "by a job", "again"):
        with database.tenant(tenant.organization_id) as tx:
            tenants.update_project(tx, tenant.project_id, {"name": name}, 0)
    records = list_chain(fresh_control, tenant.organization_id)[before:]
    assert [json.loads(record.changes)[0]["after"] for record in records] == [{"name": "by a job"}, {"name": "again"}]
    assert {(record.actor.kind, record.actor.id, record.target.id) for record in records} == {("job", "renaming", tenant.project_id)}


def test_archived_organization_is_recorded_with_its_keys_as_far_as_a_record_holds_them(fresh_control: Running, tenant: TenantSetup) -> None:
    admin = fresh_control.client(tenant.admin_key)
    for number in range(row_changes.ROWS_MAX):
        answered(admin.post(f"{PROJECTS}/{tenant.project_id}/api_keys", json={"name": f"k{number}"}))
    answered(fresh_control.operator().post(f"/v1/platform/organizations/{tenant.organization_id}/archive"))
    record = list_chain(fresh_control, tenant.organization_id)[-1]
    changes = json.loads(record.changes)
    assert record.event == "organization.archived" and len(changes) <= row_changes.ROWS_MAX and record.omitted > 0
    revoked = row_changes.ROWS_MAX + 3  # with those of the set-up: a key, that of the service account, the admin key
    assert len(changes) + record.omitted == revoked + 2, "and the organization, and the project"


@pytest.mark.parametrize("query", ["event_types=a%00b", "actor_ids=%0a", "effective_at%5Bgt%5D=-1", "limit=101", "resource_ids="])
def test_filter_that_cannot_match_is_refused(fresh_control: Running, tenant: TenantSetup, query: str) -> None:
    answer = fresh_control.client(tenant.admin_key).get(f"/v1/organization/audit_logs?{query}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")


def test_trail_is_copied_from_a_sequence_number_on_oldest_first(control: Running, alice: TenantSetup) -> None:
    admin = control.client(alice.admin_key)
    path = "/v1/organization/audit_logs"
    answered(admin.post("/v1/organization/projects", json={"name": "copied"}))
    copied, last = [], 0
    while True:
        page = answered(admin.get(path, params={"after_sequence": last, "limit": 2}))
        copied += [each["record"]["sequence"] for each in page["data"]]
        last = copied[-1]
        if not page["has_more"]:
            break
    assert copied == list(range(1, last + 1))
    assert admin.get(path, params={"after_sequence": 1, "after": "audit_1"}).status_code == 400
