"""Rotation of keys over the API: two secrets at most, a grace that ends, and the latest use of each."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.control.harness import NODE_ID, PEPPER, Running, TenantSetup, answered, make_tenant
from tests.control.test_routes import refused
from tollway.domain import keys as domain
from tollway.domain.keys import PreviousSecret, Rotation, shorten_digest
from tollway.domain.rotation_schedules import GRACE_SECONDS_DEFAULT

HOUR = 3600


class Rotating:
    """A fresh key of one kind, with the paths and the way to try its secrets that this kind has."""

    def __init__(self, control: Running, tenant: TenantSetup, *, admin: bool, expires_at: int | None = None) -> None:
        self.control, self.admin = control, control.client(tenant.admin_key)
        keys = "/v1/organization/admin_api_keys" if admin else f"/v1/organization/projects/{tenant.project_id}/api_keys"
        body = {"name": "rotating"} | ({} if expires_at is None else {"expires_at": expires_at})
        self.made = answered(self.admin.post(keys, json=body))
        self.path = f"{keys}/{self.made['id']}"

    def rotate(self, **body: int) -> Any:
        return answered(self.admin.post(f"{self.path}/rotate", json=body))

    def retire(self) -> Any:
        return answered(self.admin.post(f"{self.path}/retire"))

    def read(self) -> Any:
        return answered(self.admin.get(self.path))

    def works(self, secret: str) -> bool:
        """Return whether control takes an admin key; for others, whether its entry in the snapshot of gateways names the secret."""
        if "admin_api_keys" in self.path:
            return bool(self.control.client(secret).get("/v1/organization").status_code == 200)
        lines = self.control.node().get("/v1/link/snapshot").text.splitlines()
        digest = domain.digest(PEPPER, secret.encode())
        encoded = base64.b64encode(digest).decode()
        return any(self.made["id"] in line and encoded in line for line in lines)


@pytest.fixture
def tenant(fresh_control: Running) -> TenantSetup:
    return make_tenant(fresh_control, "acme")


@pytest.mark.parametrize("admin", [False, True], ids=["project", "admin"])
def test_rotated_key_keeps_its_id_and_both_secrets_work_until_the_old_one_is_retired(
    fresh_control: Running, tenant: TenantSetup, admin: bool
) -> None:
    key = Rotating(fresh_control, tenant, admin=admin)
    assert key.made["rotation"] is None and key.made["last_used_at"] is None
    rotated = key.rotate()
    assert rotated["id"] == key.made["id"] and rotated["value"] != key.made["value"]
    assert rotated["redacted_value"] == domain.redact(rotated["value"])
    previous = rotated["rotation"]["previous"]
    assert previous["redacted_value"] == key.made["redacted_value"]
    assert previous["expires_at"] == rotated["rotation"]["rotated_at"] + GRACE_SECONDS_DEFAULT
    assert previous["safe_to_retire"] is False
    assert key.works(key.made["value"]) and key.works(rotated["value"])
    assert key.retire()["rotation"]["previous"] is None
    assert not key.works(key.made["value"]) and key.works(rotated["value"])
    again = key.admin.post(f"{key.path}/retire")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "conflict")


def test_old_secret_of_an_admin_key_ends_with_its_grace(fresh_control: Running, tenant: TenantSetup) -> None:
    key = Rotating(fresh_control, tenant, admin=True)
    rotated = key.rotate(grace_seconds=HOUR)
    at = rotated["rotation"]["rotated_at"] * 1_000_000
    with fresh_control.clock.set_to(at + HOUR * 1_000_000 - 1_000_000):
        assert key.works(key.made["value"])
    with fresh_control.clock.set_to(at + (HOUR + 1) * 1_000_000):
        assert not key.works(key.made["value"]) and key.works(rotated["value"])
        assert answered(fresh_control.client(rotated["value"]).get(key.path))["rotation"]["previous"] is None


def test_42_grace_never_reaches_past_the_expiry_of_the_old_secret(fresh_control: Running, tenant: TenantSetup) -> None:
    soon = fresh_control.clock() // 1_000_000 + HOUR
    key = Rotating(fresh_control, tenant, admin=False, expires_at=soon)
    rotated = key.rotate(grace_seconds=10 * HOUR, expires_at=soon + 100 * HOUR)
    assert rotated["expires_at"] == soon + 100 * HOUR
    assert rotated["rotation"]["previous"]["expires_at"] == soon


def test_91_grace_ends_at_an_expiry_that_the_key_gets_meanwhile(fresh_control: Running, tenant: TenantSetup) -> None:
    key = Rotating(fresh_control, tenant, admin=False)
    rotated = key.rotate(grace_seconds=10 * HOUR)
    changed = answered(key.admin.post(key.path, json={"expires_in_seconds": HOUR}))
    assert changed["rotation"]["previous"]["expires_at"] == changed["expires_at"] < rotated["rotation"]["previous"]["expires_at"]
    lines = fresh_control.node().get("/v1/link/snapshot").text.splitlines()
    (entry,) = (json.loads(line) for line in lines if key.made["id"] in line)
    assert entry["previous_expires_at"] == entry["expires_at"]
    with fresh_control.clock.set_to((changed["expires_at"] + 1) * 1_000_000):
        refused(key.admin.post(key.path, json={"name": "x"}), 409, "conflict")


def test_42_two_rotations_at_once_give_one_success_and_one_conflict(fresh_control: Running, tenant: TenantSetup) -> None:
    for grace in (0, HOUR):
        for admin in (False, True):
            key = Rotating(fresh_control, tenant, admin=admin)
            clients = [fresh_control.client(tenant.admin_key) for _ in range(4)]

            def rotate(client: Any, path: str = key.path, grace: int = grace) -> Any:
                return client.post(f"{path}/rotate", json={"grace_seconds": grace})

            with ThreadPoolExecutor(len(clients)) as pool:
                answers = list(pool.map(rotate, clients))
            assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
            (made,) = [answer.json() for answer in answers if answer.status_code == 200]
            assert key.works(made["value"])


def test_key_cannot_be_rotated_while_the_old_secret_is_valid(fresh_control: Running, tenant: TenantSetup) -> None:
    key = Rotating(fresh_control, tenant, admin=False)
    first = key.rotate(grace_seconds=HOUR)
    with fresh_control.clock.set_to(first["rotation"]["rotated_at"] * 1_000_000 + 60_000_000):
        refused = key.admin.post(f"{key.path}/rotate", json={})
        assert refused.status_code == 409 and "still valid" in refused.json()["error"]["message"]
        key.retire()
        second = key.rotate()
    assert second["rotation"]["previous"]["redacted_value"] == first["redacted_value"]
    assert not key.works(key.made["value"])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"grace_seconds": -1}, "grace_seconds"),
        ({"grace_seconds": 10**9}, "grace_seconds"),
        ({"grace": 5}, "grace"),
        ({"expires_at": 5}, "expires_at"),
    ],
)
def test_bad_rotation_is_refused_and_changes_nothing(fresh_control: Running, tenant: TenantSetup, body: dict[str, int], param: str) -> None:
    key = Rotating(fresh_control, tenant, admin=False)
    refused = key.admin.post(f"{key.path}/rotate", json=body)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == param
    assert key.read()["rotation"] is None and key.works(key.made["value"])


def test_revoked_key_has_no_secret_that_works(fresh_control: Running, tenant: TenantSetup) -> None:
    key = Rotating(fresh_control, tenant, admin=True)
    rotated = key.rotate()
    answered(key.admin.delete(key.path))
    assert not key.works(key.made["value"]) and not key.works(rotated["value"])


def test_42_expired_key_is_not_rotated(fresh_control: Running, tenant: TenantSetup) -> None:
    soon = fresh_control.clock() // 1_000_000 + HOUR
    key = Rotating(fresh_control, tenant, admin=False, expires_at=soon)
    with fresh_control.clock.set_to((soon + 1) * 1_000_000):
        assert key.admin.post(f"{key.path}/rotate", json={}).status_code == 409


def report(control: Running, *uses: tuple[str, str, int]) -> None:
    """Say, as a gateway, when secrets of keys were used."""
    body = {
        "node_id": NODE_ID,
        "version": 0,
        "secret_uses": [
            {"key_id": id, "digest": shorten_digest(domain.digest(PEPPER, secret.encode())), "used_at": at} for id, secret, at in uses
        ],
    }
    answered(control.node().post("/v1/link/ack", json=body))


def test_use_of_each_secret_is_shown_and_says_when_the_old_one_can_go(fresh_control: Running, tenant: TenantSetup) -> None:
    key, now = Rotating(fresh_control, tenant, admin=False), fresh_control.clock()
    report(fresh_control, (key.made["id"], key.made["value"], now))
    assert key.read()["last_used_at"] == now // 1_000_000
    rotated = key.rotate(grace_seconds=10 * HOUR)
    assert rotated["rotation"]["last_used_at"] is None
    assert rotated["rotation"]["previous"]["last_used_at"] == now // 1_000_000
    later = now + 2 * HOUR * 1_000_000
    with fresh_control.clock.set_to(later):
        assert key.read()["rotation"]["previous"]["safe_to_retire"] is False, "the new secret was not used yet"
        report(fresh_control, (key.made["id"], rotated["value"], later - 5_000_000), ("key_unknown", rotated["value"], later))
        read = key.read()
        assert read["last_used_at"] == read["rotation"]["last_used_at"] == (later - 5_000_000) // 1_000_000
        assert read["rotation"]["previous"]["safe_to_retire"] is True
        report(fresh_control, (key.made["id"], key.made["value"], later + 10**12))
        read = key.read()
        assert read["rotation"]["previous"]["last_used_at"] == later // 1_000_000, "what is not over yet counts as now"
        assert read["rotation"]["previous"]["safe_to_retire"] is False
        report(fresh_control, (key.made["id"], rotated["value"], now))
        assert key.read()["rotation"]["last_used_at"] == (later - 5_000_000) // 1_000_000, "an older report changes nothing"


def test_rotation_is_safe_to_retire_an_hour_after_the_last_use() -> None:
    hour = HOUR * 1_000_000
    for used_at, now, is_safe in [(None, hour, True), (None, hour - 1, False), (10, hour, False), (10, hour + 10, True)]:
        rotation = Rotation(0, 5, PreviousSecret("tw_live_x...y", 10 * hour, used_at))
        assert rotation.is_safe_to_retire(now) is is_safe
    assert Rotation(0, 5, None).is_safe_to_retire(hour) is False
    assert Rotation(0, 5, PreviousSecret("tw_live_x...y", hour, None)).is_safe_to_retire(hour) is False, "it is over"
