"""`Idempotency-Key` at the REST API: what was carried out is answered alike and not carried out again, on both databases."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from tests.control.harness import Running, TenantSetup, answered, make_tenant
from tollway.control import idempotency
from tollway.storage.schema_idempotency import idempotency_keys

ADMIN_KEYS = "/v1/organization/admin_api_keys"
PROJECTS = "/v1/organization/projects"

Send = Callable[..., httpx2.Response]


@pytest.fixture
def tenant(fresh_control: Running) -> TenantSetup:
    return make_tenant(fresh_control, "acme")


@pytest.fixture
def send(fresh_control: Running, tenant: TenantSetup) -> Send:
    """Send a POST with a key as the tenant's admin."""
    admin = fresh_control.client(tenant.admin_key)

    def send(path: str, body: Any, key: str = "k1") -> httpx2.Response:
        return admin.post(path, json=body, headers={"idempotency-key": key})

    return send


def keys_of(tenant: TenantSetup) -> str:
    return f"{PROJECTS}/{tenant.project_id}/api_keys"


def list_names(control: Running, tenant: TenantSetup, path: str) -> list[str]:
    return [each["name"] for each in answered(control.client(tenant.admin_key).get(path))["data"]]


def list_rows(control: Running) -> list[sa.Row[Any]]:
    with control.plane.database.platform(write=False) as tx:
        return list(tx.connection.execute(sa.select(idempotency_keys)))


def code_of(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_key_created_twice_is_one_key_and_the_same_secret(fresh_control: Running, tenant: TenantSetup, send: Send) -> None:
    first, second = (send(keys_of(tenant), {"name": "a"}) for _ in range(2))
    assert answered(first) == answered(second) and "value" in first.json()
    assert [each.headers.get("idempotent-replayed") for each in (first, second)] == [None, "true"]
    assert second.headers["content-type"] == "application/json" and second.headers["cache-control"] == "no-store"
    assert list_names(fresh_control, tenant, keys_of(tenant)).count("a") == 1


def test_stored_answer_shows_no_secret_and_only_to_the_request_that_it_belongs_to(
    fresh_control: Running, tenant: TenantSetup, send: Send
) -> None:
    made = answered(send(keys_of(tenant), {"name": "a"}))
    send(keys_of(tenant), {"name": "b"}, "k2")
    answers = [row.answer for row in list_rows(fresh_control)]
    assert len(answers) == 2 and not any(made["value"].encode() in answer for answer in answers)
    moved = next(answer for answer in answers if fresh_control.plane.data_keys.open(tenant.organization_id).unseal(answer).find('"b"') >= 0)
    with fresh_control.plane.database.platform() as tx:
        tx.connection.execute(idempotency_keys.update().values(answer=moved))
    assert code_of(send(keys_of(tenant), {"name": "a"})) == (409, "idempotency_unanswered"), "its answer is that of another request"
    answered(send(keys_of(tenant), {"name": "b"}, "k2"))


def test_other_body_is_refused_and_other_key_path_or_sender_is_another_request(
    fresh_control: Running, tenant: TenantSetup, send: Send
) -> None:
    answered(send(PROJECTS, {"name": "a"}))
    assert code_of(send(PROJECTS, {"name": "b"})) == (409, "idempotency_key_reused")
    answered(send(PROJECTS, {"name": "c"}, "k2"))
    second_admin = answered(send(ADMIN_KEYS, {"name": "second"}))["value"]
    answered(fresh_control.client(second_admin).post(PROJECTS, json={"name": "d"}, headers={"idempotency-key": "k1"}))
    bob = make_tenant(fresh_control, "bob")
    operator = fresh_control.client(fresh_control.platform_key, **{"openai-organization": bob.organization_id})
    answered(operator.post(PROJECTS, json={"name": "e"}, headers={"idempotency-key": "k1"}))
    other = fresh_control.client(fresh_control.platform_key, **{"openai-organization": tenant.organization_id})
    answered(other.post(PROJECTS, json={"name": "f"}, headers={"idempotency-key": "k1"}))
    assert {"a", "c", "d", "f"} < set(list_names(fresh_control, tenant, PROJECTS))
    assert "b" not in list_names(fresh_control, tenant, PROJECTS)


def test_refused_request_stores_nothing_and_may_be_corrected(fresh_control: Running, tenant: TenantSetup, send: Send) -> None:
    assert send(PROJECTS, {"nome": "a"}).status_code == 400
    assert send(f"{PROJECTS}/proj_{'9' * 32}/archive", {}, "k2").status_code == 404
    assert list_rows(fresh_control) == []
    answered(send(PROJECTS, {"name": "a"}))
    assert len(list_rows(fresh_control)) == 1


def test_same_request_sent_many_times_at_once_is_carried_out_once(fresh_control: Running, tenant: TenantSetup) -> None:
    def create(_: int) -> httpx2.Response:
        client = fresh_control.client(tenant.admin_key)
        return client.post(keys_of(tenant), json={"name": "a"}, headers={"idempotency-key": "k1"})

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(create, range(6)))
    made = {answer.json()["id"] for answer in answers if answer.status_code == 200}
    assert len(made) == 1
    assert {code_of(answer) for answer in answers if answer.status_code != 200} <= {(409, "idempotency_unanswered")}
    assert list_names(fresh_control, tenant, keys_of(tenant)).count("a") == 1
    assert answered(create(6))["id"] in made


def test_request_whose_answer_was_lost_is_refused_and_not_carried_out_again(
    fresh_control: Running, tenant: TenantSetup, send: Send
) -> None:
    answered(send(PROJECTS, {"name": "a"}))
    with fresh_control.plane.database.platform() as tx:
        tx.connection.execute(idempotency_keys.update().values(answer=None, status=None))
    assert code_of(send(PROJECTS, {"name": "a"})) == (409, "idempotency_unanswered")
    assert list_names(fresh_control, tenant, PROJECTS).count("a") == 1


def test_key_is_known_for_a_day_and_removed_afterwards(fresh_control: Running, tenant: TenantSetup, send: Send) -> None:
    now = fresh_control.plane.now()
    with fresh_control.clock.set_to(now):
        first = answered(send(keys_of(tenant), {"name": "a"}))["id"]
    with fresh_control.clock.set_to(now + idempotency.LIFETIME_US - 1):
        assert answered(send(keys_of(tenant), {"name": "a"}))["id"] == first
        assert list(idempotency.remove_expired(fresh_control.plane.database, fresh_control.plane.now())) == [0]
    with fresh_control.clock.set_to(now + idempotency.LIFETIME_US):
        assert answered(send(keys_of(tenant), {"name": "a"}))["id"] != first
    later = now + 3 * idempotency.LIFETIME_US
    assert list(idempotency.remove_expired(fresh_control.plane.database, later)) == [1]
    assert list_rows(fresh_control) == []


@pytest.mark.parametrize("key", ["", "a b", "a\tb", "x" * 256])
def test_key_that_cannot_be_one_is_refused(send: Send, key: str) -> None:
    response = send(PROJECTS, {"name": "a"}, key)
    assert code_of(response) == (400, "invalid_value") and response.json()["error"]["param"] == "idempotency-key"


def test_revoked_sender_gets_no_stored_answer(fresh_control: Running, tenant: TenantSetup, send: Send) -> None:
    answered(send(keys_of(tenant), {"name": "a"}))
    answered(fresh_control.operator().post(f"/v1/platform/organizations/{tenant.organization_id}/archive"))
    assert send(keys_of(tenant), {"name": "a"}).status_code in (401, 404)
