"""Bounds of keys over the API, the longest lifetime that an organization allows, and that no key outlives the key that made it."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.control.harness import Running, TenantSetup, answered, make_tenant
from tollway.control.identity.keys import Grantor, bound_expiry
from tollway.domain.faults import Fault
from tollway.domain.snapshot import KeyEntry

DAY = 86_400
ADMIN_KEYS = "/v1/organization/admin_api_keys"


@pytest.fixture
def tenant(fresh_control: Running) -> TenantSetup:
    return make_tenant(fresh_control, "acme")


def keys_of(tenant: TenantSetup) -> str:
    return f"/v1/organization/projects/{tenant.project_id}/api_keys"


def test_bounds_of_a_key_are_shown_and_reach_gateways(fresh_control: Running, tenant: TenantSetup) -> None:
    bounds: dict[str, Any] = {
        "endpoints": ["embeddings", "chat/completions"],
        "addresses": ["192.0.2.0/24", "2001:db8::1/128"],
        "output_tokens_max": 100,
        "tags": {"team": "search"},
    }
    admin = fresh_control.client(tenant.admin_key)
    mapped = {**bounds, "addresses": ["::ffff:192.0.2.0/120", "2001:db8::1"]}
    made = answered(admin.post(keys_of(tenant), json={"name": "a", **mapped}))
    assert {name: made[name] for name in bounds} == bounds
    lines = fresh_control.node().get("/v1/link/snapshot").text.splitlines()
    (entry,) = (msgspec.json.decode(line, type=KeyEntry) for line in lines if made["id"] in line)
    assert (list(entry.endpoints or ()), list(entry.addresses or ()), entry.output_tokens_max) == tuple(bounds.values())[:3]
    unbound = answered(admin.post(keys_of(tenant), json={"name": "b"}))
    assert [unbound[name] for name in bounds] == [None, None, None, {}]


@pytest.mark.parametrize(
    "bounds",
    [
        {"endpoints": []},
        {"endpoints": ["chat"]},
        {"addresses": []},
        {"addresses": ["192.0.2.1/24"]},
        {"addresses": ["example.com"]},
        {"output_tokens_max": 0},
        {"tags": {"a b": "c"}},
        {"tags": {str(number): "" for number in range(17)}},
    ],
)
def test_bounds_that_cannot_be_are_refused(fresh_control: Running, tenant: TenantSetup, bounds: dict[str, Any]) -> None:
    answer = fresh_control.client(tenant.admin_key).post(keys_of(tenant), json={"name": "a", **bounds})
    assert answer.status_code == 400


def test_longest_lifetime_of_an_organization_bounds_new_keys_and_rotations(fresh_control: Running, tenant: TenantSetup) -> None:
    admin, now = fresh_control.client(tenant.admin_key), fresh_control.plane.now() // 1_000_000
    before = answered(admin.post(keys_of(tenant), json={"name": "before"}))
    assert answered(admin.post("/v1/organization", json={"key_lifetime_seconds_max": DAY}))["key_lifetime_seconds_max"] == DAY
    made = answered(admin.post(keys_of(tenant), json={"name": "after"}))
    assert now + DAY <= made["expires_at"] <= now + DAY + 60
    for path, body in (
        (keys_of(tenant), {"name": "long", "expires_at": now + 2 * DAY}),
        (ADMIN_KEYS, {"name": "long", "expires_in_seconds": 2 * DAY}),
        (f"{keys_of(tenant)}/{made['id']}/rotate", {"expires_at": now + 2 * DAY}),
    ):
        answer = admin.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "expires_at"), path
    assert answered(admin.get(f"{keys_of(tenant)}/{before['id']}"))["expires_at"] is None, "keys that exist are left alone"
    assert answered(admin.post("/v1/organization", json={"key_lifetime_seconds_max": None}))["key_lifetime_seconds_max"] is None
    assert answered(admin.post(keys_of(tenant), json={"name": "free"}))["expires_at"] is None


def test_54_no_key_outlives_the_key_that_made_it(fresh_control: Running, tenant: TenantSetup) -> None:
    owner, now = fresh_control.client(tenant.admin_key), fresh_control.plane.now() // 1_000_000
    short = answered(owner.post(ADMIN_KEYS, json={"name": "short", "expires_in_seconds": DAY}))
    admin = fresh_control.client(short["value"])
    lasting = answered(owner.post(keys_of(tenant), json={"name": "lasting"}))
    accounts = f"/v1/organization/projects/{tenant.project_id}/service_accounts"
    for path, body in (
        (keys_of(tenant), {"name": "a", "expires_at": now + 2 * DAY}),
        (ADMIN_KEYS, {"name": "a", "expires_in_seconds": 2 * DAY}),
        (accounts, {"name": "a", "expires_in_seconds": 2 * DAY}),
        (f"{keys_of(tenant)}/{lasting['id']}/rotate", {"expires_at": now + 2 * DAY}),
    ):
        answer = admin.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "grant_exceeds_grantor"), path
    for path in (keys_of(tenant), ADMIN_KEYS):
        made = answered(admin.post(path, json={"name": "b"}))
        assert made["expires_at"] == short["expires_at"]


@settings(max_examples=200)
@given(st.lists(st.tuples(st.none() | st.integers(1, 100), st.none() | st.integers(1, 100)), max_size=6))
def test_54_chain_of_grants_never_grows(chain: list[tuple[int | None, int | None]]) -> None:
    """Each step: the wish of the next key, and the longest lifetime of the organization at that moment."""
    grantor, now = Grantor("key_0"), 0
    for wanted, lifetime in chain:
        lifetimes = [] if lifetime is None else [now + lifetime * 1_000_000]
        try:
            granted = bound_expiry(None if wanted is None else wanted * 1_000_000, grantor, lifetime, now)
        except Fault:
            bounds = [each for each in (grantor.expires_at, *lifetimes) if each is not None]
            assert wanted is not None and wanted * 1_000_000 > min(bounds), "a wish within its bounds was refused"
            continue
        for bound in (grantor.expires_at, *lifetimes):
            assert bound is None or (granted is not None and granted <= bound)
        grantor = Grantor("key_1", granted)


def test_use_of_an_admin_key_is_recorded_and_its_old_secret_becomes_safe_to_retire(fresh_control: Running, tenant: TenantSetup) -> None:
    now = fresh_control.plane.now() + 60_000_000

    def read_later(seconds: int, secret: str) -> Any:
        with fresh_control.clock.set_to(now + seconds * 1_000_000):
            return answered(fresh_control.client(secret).get(path))

    path = ADMIN_KEYS
    path = f"{ADMIN_KEYS}/{read_later(0, tenant.admin_key)['data'][0]['id']}"
    assert read_later(1, tenant.admin_key)["last_used_at"] == now // 1_000_000
    assert read_later(29, tenant.admin_key)["last_used_at"] == now // 1_000_000, "to half a minute"
    with fresh_control.clock.set_to(now + 40_000_000):
        rotated = answered(fresh_control.client(tenant.admin_key).post(f"{path}/rotate", json={}))
    assert read_later(50, rotated["value"])["rotation"]["previous"]["safe_to_retire"] is False
    assert read_later(3_700, rotated["value"])["rotation"]["previous"]["safe_to_retire"] is True
    previous = read_later(3_701, tenant.admin_key)["rotation"]["previous"]
    assert (previous["safe_to_retire"], previous["last_used_at"]) == (False, now // 1_000_000 + 3_701)
