"""Scheduled rotation: keys get another secret at an interval, it is collected once, and each step is an event."""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.control.harness import Running, TenantSetup, answered, make_tenant
from tests.control.identity.test_key_rotation import HOUR, report
from tests.control.secrets.test_encryption import use_ring
from tests.control.test_routes import refused
from tollway.control.auditing.audit import AuditedOperation, record_changes
from tollway.control.identity import scheduled_rotation
from tollway.control.identity.scheduled_rotation import Scheduled
from tollway.control.secrets.key_encryption import KeyRing, derive_key
from tollway.domain.audit import Actor, ActorKind
from tollway.storage import schema
from tollway.storage.database import Database

DAY = 24 * HOUR
US = 1_000_000
WEEKLY = {"interval_seconds": 7 * DAY, "grace_seconds": DAY}


@pytest.fixture
def tenant(fresh_control: Running) -> TenantSetup:
    return make_tenant(fresh_control, "acme")


def keys_of(tenant: TenantSetup) -> str:
    return f"/v1/organization/projects/{tenant.project_id}/api_keys"


def run_turn(control: Running, now: int) -> list[Mapping[str, object]]:
    """Do what the job does at `now`, and return its lines."""
    plane = control.plane

    def record(event: str) -> Database:
        operation = AuditedOperation(
            event=event, operation="scheduled_rotations", actor=Actor(kind=ActorKind.JOB, id="scheduled_rotations")
        )
        return plane.database.recording(record_changes(operation, new_id=plane.new_id, now=lambda: now))

    parts = Scheduled(database=plane.database, recorded=record, data_keys=plane.data_keys, new_ingredients=plane.new_ingredients)
    return [*scheduled_rotation.rotate_due(parts, now), *scheduled_rotation.give_notices(parts, now)]


def events_of(control: Running, tenant: TenantSetup) -> list[str]:
    rows = answered(control.client(tenant.admin_key).get("/v1/organization/audit_logs"))["data"]
    return [row["type"] for row in rows]


def test_key_is_rotated_when_it_is_due_and_its_secret_is_collected_once(fresh_control: Running, tenant: TenantSetup) -> None:
    admin = fresh_control.client(tenant.admin_key)
    made = answered(admin.post(keys_of(tenant), json={"name": "weekly", "rotation_schedule": WEEKLY}))
    assert made["next_rotation_at"] == made["created_at"] + 7 * DAY and made["has_uncollected_secret"] is False
    path, due = f"{keys_of(tenant)}/{made['id']}", (made["created_at"] + 7 * DAY + 1) * US
    refused(admin.post(f"{path}/collect", json={}), 409, "conflict")
    assert run_turn(fresh_control, due - 10 * US) == []
    (line,) = run_turn(fresh_control, due)
    assert line["event"] == "key_rotated_by_schedule" and line["key_id"] == made["id"] and line["old_secret_until"] == due // US + DAY
    with fresh_control.clock.set_to(due):
        assert run_turn(fresh_control, due) == [], "a turn that is repeated rotates nothing"
        assert answered(admin.get(path))["has_uncollected_secret"] is True
        collected = answered(admin.post(f"{path}/collect", json={}))
        assert collected["value"] != made["value"] and collected["value"].startswith("tw_live_")
        assert collected["rotation"]["previous"]["redacted_value"] == made["redacted_value"]
        assert collected["redacted_value"][-4:] == collected["value"][-4:] and collected["has_uncollected_secret"] is False
        refused(admin.post(f"{path}/collect", json={}), 409, "conflict")
    assert {"api_key.rotated", "api_key.secret_collected"} <= set(events_of(fresh_control, tenant))
    assert collected["value"] not in answered(admin.get("/v1/organization/audit_logs")).__repr__()


def test_organization_whose_data_key_cannot_be_opened_keeps_no_other_from_its_rotations(
    fresh_control: Running, tenant: TenantSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_tenant(fresh_control, "other")
    made = {
        each.organization_id: answered(
            fresh_control.client(each.admin_key).post(keys_of(each), json={"name": "weekly", "rotation_schedule": WEEKLY})
        )
        for each in (tenant, other)
    }
    first = min(made, key=lambda organization_id: made[organization_id]["id"])
    fresh_control.plane.data_keys.open(first)
    with fresh_control.plane.database.platform() as tx:
        tx.connection.execute(schema.data_keys.update().where(schema.data_keys.c.organization_id == first).values(kek="file:gone"))
    use_ring(fresh_control, KeyRing.of(derive_key(bytes(range(32)))))
    monkeypatch.setattr(scheduled_rotation, "KEYS_MAX", 1)
    due = (max(each["created_at"] for each in made.values()) + 7 * DAY + 1) * US
    failed, rotated = run_turn(fresh_control, due)
    assert failed == {"event": "key_rotation_failed", "organization_id": first, "error": "key_encryption_unavailable"}
    assert rotated["event"] == "key_rotated_by_schedule" and rotated["organization_id"] != first


def test_grace_of_a_scheduled_rotation_never_reaches_past_the_old_expiry(fresh_control: Running, tenant: TenantSetup) -> None:
    admin, now = fresh_control.client(tenant.admin_key), fresh_control.clock() // US
    expires_at = now + 7 * DAY + HOUR
    body = {"name": "short", "expires_at": expires_at, "rotation_schedule": WEEKLY}
    made = answered(admin.post(keys_of(tenant), json=body))
    (line,) = run_turn(fresh_control, (made["created_at"] + 7 * DAY + 1) * US)
    assert line["old_secret_until"] == expires_at
    assert answered(admin.get(f"{keys_of(tenant)}/{made['id']}"))["expires_at"] == expires_at, "a schedule extends no key"


def test_notices_are_given_once_for_a_secret_not_collected_and_for_one_that_can_be_retired(
    fresh_control: Running, tenant: TenantSetup
) -> None:
    admin = fresh_control.client(tenant.admin_key)
    made = answered(admin.post(keys_of(tenant), json={"name": "weekly", "rotation_schedule": WEEKLY}))
    due = (made["created_at"] + 7 * DAY + 1) * US
    run_turn(fresh_control, due)
    assert run_turn(fresh_control, due + 11 * HOUR * US) == []
    assert [line["event"] for line in run_turn(fresh_control, due + 13 * HOUR * US)] == ["key_secret_uncollected"]
    assert run_turn(fresh_control, due + 14 * HOUR * US) == []
    later = due + 15 * HOUR * US
    with fresh_control.clock.set_to(later):
        collected = answered(admin.post(f"{keys_of(tenant)}/{made['id']}/collect", json={}))
        report(fresh_control, (made["id"], collected["value"], later))
    assert [line["event"] for line in run_turn(fresh_control, later + 60 * US)] == ["key_secret_safe_to_retire"]
    assert run_turn(fresh_control, later + 120 * US) == []
    assert {"api_key.secret_uncollected", "api_key.secret_safe_to_retire"} <= set(events_of(fresh_control, tenant))


def test_uncollected_secret_stops_the_schedule_and_is_kept_after_the_grace(fresh_control: Running, tenant: TenantSetup) -> None:
    admin = fresh_control.client(tenant.admin_key)
    made = answered(admin.post(keys_of(tenant), json={"name": "weekly", "rotation_schedule": WEEKLY}))
    due = (made["created_at"] + 7 * DAY + 1) * US
    assert len(run_turn(fresh_control, due)) == 1
    assert run_turn(fresh_control, due + 30 * DAY * US) == []
    with fresh_control.clock.set_to(due + 30 * DAY * US):
        collected = answered(admin.post(f"{keys_of(tenant)}/{made['id']}/collect", json={}))
        assert collected["rotation"]["previous"] is None
    assert len(run_turn(fresh_control, due + 30 * DAY * US)) == 1, "it is due again at once"


def test_schedule_of_an_organization_holds_for_its_keys_and_a_key_only_shortens_it(fresh_control: Running, tenant: TenantSetup) -> None:
    admin, other = fresh_control.client(tenant.admin_key), make_tenant(fresh_control, "other")
    changed = answered(admin.post("/v1/organization", json={"rotation_schedule": WEEKLY}))
    assert changed["rotation_schedule"] == WEEKLY and changed["key_lifetime_seconds_max"] is None
    daily = answered(admin.post(keys_of(tenant), json={"name": "d", "rotation_schedule": {"interval_seconds": DAY, "grace_seconds": HOUR}}))
    yearly = answered(admin.post(keys_of(tenant), json={"name": "y", "rotation_schedule": {"interval_seconds": 365 * DAY}}))
    assert daily["next_rotation_at"] == daily["created_at"] + DAY and yearly["next_rotation_at"] == yearly["created_at"] + 7 * DAY
    lines = run_turn(fresh_control, (yearly["created_at"] + 7 * DAY + 60) * US)
    assert {tenant.key_id, daily["id"], yearly["id"]} <= {line["key_id"] for line in lines}
    assert {line["organization_id"] for line in lines} == {tenant.organization_id}
    assert answered(fresh_control.client(other.admin_key).get("/v1/organization"))["rotation_schedule"] is None
    assert answered(admin.post("/v1/organization", json={"rotation_schedule": None}))["rotation_schedule"] is None


def test_revoked_and_foreign_keys_are_neither_rotated_nor_collected(fresh_control: Running, tenant: TenantSetup) -> None:
    admin, other = fresh_control.client(tenant.admin_key), make_tenant(fresh_control, "other")
    made = answered(admin.post(keys_of(tenant), json={"name": "weekly", "rotation_schedule": WEEKLY}))
    due = (made["created_at"] + 7 * DAY + 1) * US
    run_turn(fresh_control, due)
    foreign = fresh_control.client(other.admin_key).post(f"{keys_of(tenant)}/{made['id']}/collect", json={})
    refused(foreign, 404, "not_found")
    answered(admin.delete(f"{keys_of(tenant)}/{made['id']}"))
    refused(admin.post(f"{keys_of(tenant)}/{made['id']}/collect", json={}), 404, "not_found")
    assert run_turn(fresh_control, due + 30 * DAY * US) == []


@pytest.mark.parametrize(
    "schedule",
    [
        {"interval_seconds": 60},
        {"interval_seconds": 10**9},
        {"interval_seconds": DAY, "grace_seconds": DAY},
        {"interval_seconds": DAY, "grace_seconds": -1},
        {"grace_seconds": 5},
        {"interval_seconds": DAY, "grace": 5},
        DAY,
    ],
)
def test_bad_schedule_is_refused_and_changes_nothing(fresh_control: Running, tenant: TenantSetup, schedule: Any) -> None:
    admin, path = fresh_control.client(tenant.admin_key), f"{keys_of(tenant)}/{tenant.key_id}"
    for target in (path, keys_of(tenant), "/v1/organization"):
        answer = admin.post(target, json={"rotation_schedule": schedule} | ({"name": "x"} if target == keys_of(tenant) else {}))
        assert answer.status_code == 400 and answer.json()["error"]["param"].startswith("rotation_schedule"), answer.text
    assert answered(admin.get(path))["rotation_schedule"] is None
