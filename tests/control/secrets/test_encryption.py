"""Envelope encryption: each organization's secrets under a data key of its own, which a file, Vault or KMS wraps."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.control.harness import Running, answered, make_tenant
from tests.control.secrets.wrapping_keys import (
    ACCESS_KEY_ID,
    REGION,
    SECRET_ACCESS_KEY,
    SESSION_TOKEN,
    TOKEN,
    KeyService,
    answer_kms,
    answer_transit,
    serving,
)
from tests.control.test_routes import refused
from tollway.control.secrets.aws_kms import AwsCredentials, sign
from tollway.control.secrets.data_keys import CACHE_SECONDS, RETRY_SECONDS, DataKeys
from tollway.control.secrets.key_encryption import FileKey, KeyRing, KeyUnavailable, KeyUnreachable, derive_key
from tollway.domain.faults import Fault
from tollway.serve.key_ring import make_key_ring
from tollway.settings import KeyEncryptionSection, OperatorError
from tollway.storage.schema import data_keys
from tollway.storage.schema_idempotency import idempotency_keys

ENVIRONMENT = {
    "TOLLWAY_VAULT_TOKEN": TOKEN,
    "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
    "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
    "AWS_SESSION_TOKEN": SESSION_TOKEN,
}
VAULT_KEY = bytes(range(32))


@contextmanager
def ring_of(provider: str, now: int, directory: Path) -> Iterator[tuple[KeyRing, KeyService | None]]:
    """The ring of a provider, with the fake behind it."""
    if provider == "file":
        path = directory / "kek"
        path.write_text(os.urandom(32).hex() + "\n")
        yield make_key_ring(KeyEncryptionSection(file=str(path)), VAULT_KEY, {}, lambda: now), None
        return
    with serving(answer_transit if provider == "vault" else answer_kms) as service:
        section = (
            KeyEncryptionSection(provider="vault", vault_url=service.url, vault_key="tollway")
            if provider == "vault"
            else KeyEncryptionSection(provider="aws", aws_key="alias/tollway", aws_region=REGION, aws_endpoint=service.url)
        )
        yield make_key_ring(section, VAULT_KEY, ENVIRONMENT, lambda: now), service


PROVIDERS = pytest.mark.parametrize("provider", ["file", "vault", "aws"])


@PROVIDERS
def test_every_provider_wraps_a_key_for_one_context_only(provider: str, tmp_path: Path) -> None:
    with ring_of(provider, 1_790_000_000_000_000, tmp_path) as (ring, _):
        key = os.urandom(32)
        wrapped = ring.current.wrap(key, "org_1")
        assert key not in wrapped and wrapped != ring.current.wrap(key, "org_1")
        assert ring.unwrap(ring.current.name, wrapped, "org_1") == key
        with pytest.raises(KeyUnavailable):
            ring.unwrap(ring.current.name, wrapped, "org_2")
        with pytest.raises(KeyUnavailable, match="not among the keys"):
            ring.unwrap("file:unknown", wrapped, "org_1")


@pytest.mark.parametrize("provider", ["vault", "aws"])
@pytest.mark.parametrize("status", [400, 403, 500, 503])
def test_service_that_refuses_or_is_away_is_reported_without_a_secret(provider: str, status: int, tmp_path: Path) -> None:
    with ring_of(provider, 1_790_000_000_000_000, tmp_path) as (ring, service):
        assert service is not None
        service.status = status
        with pytest.raises(KeyUnavailable) as refusal:
            ring.current.wrap(b"k" * 32, "org_1")
        assert f"it answered {status}" in str(refusal.value)
    with pytest.raises(KeyUnavailable, match="cannot be reached"):
        ring.current.wrap(b"k" * 32, "org_1")
    assert not any(secret in str(refusal.value) for secret in ENVIRONMENT.values())


def test_signature_is_that_of_the_test_suite_of_aws() -> None:
    """`post-vanilla` of the Signature Version 4 test suite."""
    credentials = AwsCredentials(ACCESS_KEY_ID, "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
    headers = sign("https://example.amazonaws.com/", {}, b"", credentials, region="us-east-1", service="service", now=1_440_938_160_000_000)
    assert headers["x-amz-date"] == "20150830T123600Z"
    assert headers["authorization"].endswith("Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b")


@PROVIDERS
def test_answers_of_an_organization_are_sealed_with_its_own_key(fresh_control: Running, provider: str, tmp_path: Path) -> None:
    plane = fresh_control.plane
    with ring_of(provider, plane.now(), tmp_path) as (ring, service):
        use_ring(fresh_control, ring)
        tenant, other = make_tenant(fresh_control, "acme"), make_tenant(fresh_control, "other")
        path = f"/v1/organization/projects/{tenant.project_id}/api_keys"
        admin = fresh_control.client(tenant.admin_key)
        made = answered(admin.post(path, json={"name": "a"}, headers={"idempotency-key": "once"}))
        again = admin.post(path, json={"name": "a"}, headers={"idempotency-key": "once"})
        assert answered(again) == made and again.headers["idempotent-replayed"] == "true"
        with plane.database.platform(write=False) as tx:
            (sealed,) = tx.connection.execute(sa.select(idempotency_keys.c.answer).where(idempotency_keys.c.answer.is_not(None))).scalars()
            (stored,) = tx.connection.execute(sa.select(data_keys)).all()
        assert stored.organization_id == tenant.organization_id and stored.kek == ring.current.name
        assert made["value"].encode() not in sealed
        with pytest.raises(ValueError, match="altered, or sealed under another key"):
            plane.data_keys.open(other.organization_id).unseal(sealed)
        assert made["value"] in plane.data_keys.open(tenant.organization_id).unseal(sealed)
        if service is not None:
            assert len(service.asked) == 4, "each organization's key was wrapped and unwrapped once"


def use_ring(control: Running, ring: KeyRing) -> None:
    """Let a control plane wrap data keys with another ring."""
    plane = control.plane
    plane.data_keys.__init__(plane.database, ring, os.urandom, control.clock)  # type: ignore[misc]


def test_outage_of_the_service_is_bridged_by_what_was_opened_and_refused_otherwise(fresh_control: Running, tmp_path: Path) -> None:
    now = fresh_control.clock()
    with ring_of("vault", now, tmp_path) as (ring, service):
        assert service is not None
        use_ring(fresh_control, ring)
        tenant, other = make_tenant(fresh_control, "acme"), make_tenant(fresh_control, "other")
        opened = fresh_control.plane.data_keys.open(tenant.organization_id)
        service.status = 503
        with fresh_control.clock.set_to(now + 2 * CACHE_SECONDS * 1_000_000):
            assert fresh_control.plane.data_keys.open(tenant.organization_id) is opened
            with pytest.raises(Fault) as refusal:
                fresh_control.plane.data_keys.open(other.organization_id)
            assert (refusal.value.kind.code, refusal.value.kind.status) == ("key_encryption_unavailable", 503)
            admin = fresh_control.client(other.admin_key)
            path = f"/v1/organization/projects/{other.project_id}/api_keys/{other.key_id}/collect"
            refused(admin.post(path, json={}), 503, "key_encryption_unavailable")
            made = admin.post("/v1/organization/projects", json={"name": "p"}, headers={"idempotency-key": "x"})
            assert made.status_code == 200, "what seals nothing needs no key; the answer is not stored"


class DeafKey:
    """A key whose service does not answer while it is deaf; it counts its calls."""

    name = "deaf"

    def __init__(self) -> None:
        self.is_deaf, self.calls = False, 0
        self.refused: str | None = None
        """The context whose key it answers with a refusal."""

    def wrap(self, key: bytes, context: str) -> bytes:
        return key

    def unwrap(self, wrapped: bytes, context: str) -> bytes:
        self.calls += 1
        if self.is_deaf:
            raise KeyUnreachable("it cannot be reached")
        if context == self.refused:
            raise KeyUnavailable("it refuses this key")
        return wrapped


def test_service_that_does_not_answer_is_asked_once_in_a_while_for_all_organizations(fresh_control: Running) -> None:
    key, keys = DeafKey(), fresh_control.plane.data_keys
    use_ring(fresh_control, KeyRing.of(key))
    opened, other = (make_tenant(fresh_control, name).organization_id for name in ("acme", "other"))
    vault = keys.open(opened)
    key.is_deaf, key.calls, later = True, 0, fresh_control.clock() + 2 * CACHE_SECONDS * 1_000_000
    with fresh_control.clock.set_to(later):
        for _ in range(3):
            assert keys.open(opened) is vault
            with pytest.raises(Fault):
                keys.open(other)
        assert key.calls == 1
    with fresh_control.clock.set_to(later + RETRY_SECONDS * 1_000_000):
        assert keys.open(opened) is vault and key.calls == 2
        key.is_deaf = False
        with pytest.raises(Fault):
            keys.open(other)
    with fresh_control.clock.set_to(later + 2 * RETRY_SECONDS * 1_000_000):
        assert keys.open(other) is not vault and keys.open(opened) is not vault


def test_service_that_answers_with_a_refusal_is_no_longer_away(fresh_control: Running) -> None:
    key, keys = DeafKey(), fresh_control.plane.data_keys
    use_ring(fresh_control, KeyRing.of(key))
    broken, other = (make_tenant(fresh_control, name).organization_id for name in ("acme", "other"))
    for organization_id in (broken, other):
        keys.open(organization_id)
    use_ring(fresh_control, KeyRing.of(key))
    keys = fresh_control.plane.data_keys
    key.is_deaf, later = True, fresh_control.clock() + 2 * CACHE_SECONDS * 1_000_000
    with fresh_control.clock.set_to(later), pytest.raises(Fault):
        keys.open(broken)
    key.is_deaf, key.refused = False, broken
    with fresh_control.clock.set_to(later + RETRY_SECONDS * 1_000_000):
        with pytest.raises(Fault):
            keys.open(broken)
        keys.open(other)


@PROVIDERS
def test_data_keys_move_to_another_key_and_open_what_they_sealed(fresh_control: Running, provider: str, tmp_path: Path) -> None:
    plane, operator = fresh_control.plane, fresh_control.operator()
    before, tenants = derive_key(VAULT_KEY), [make_tenant(fresh_control, name) for name in ("a", "b", "c")]
    use_ring(fresh_control, KeyRing.of(before))
    sealed = {each.organization_id: plane.data_keys.open(each.organization_id).seal("secret", context="x") for each in tenants}
    with ring_of(provider, plane.now(), tmp_path) as (ring, service):
        use_ring(fresh_control, ring)
        listed = answered(operator.get("/v1/platform/data_keys"))["data"]
        assert [(row["name"], row["organizations"], row["is_known"]) for row in listed] == [
            (ring.current.name, 0, True),
            (before.name, 3, True),
        ]
        done = answered(operator.post("/v1/platform/data_keys/rewrap", json={}))
        assert (done["rewrapped"], done["last_id"]) == (3, None)
        use_ring(fresh_control, replace(ring, known={ring.current.name: ring.current}))  # the key before is gone, and caches too
        for organization_id, secret in sealed.items():
            assert plane.data_keys.open(organization_id).unseal(secret, context="x") == "secret"
        assert [row["organizations"] for row in answered(operator.get("/v1/platform/data_keys"))["data"]] == [3]
        if service is not None:
            service.rotate()
            assert answered(operator.post("/v1/platform/data_keys/rewrap", json={}))["rewrapped"] == 3
            service.status = 500
            refused(operator.post("/v1/platform/data_keys/rewrap", json={}), 503, "key_encryption_unavailable")


def test_rewrapping_is_for_operators_and_recorded(fresh_control: Running) -> None:
    tenant = make_tenant(fresh_control, "acme")
    admin = fresh_control.client(tenant.admin_key)
    for answer in (admin.get("/v1/platform/data_keys"), admin.post("/v1/platform/data_keys/rewrap", json={})):
        refused(answer, 403, "insufficient_scope")
    operator = fresh_control.operator()
    fresh_control.plane.data_keys.open(tenant.organization_id)
    refused(operator.post("/v1/platform/data_keys/rewrap", json={"before": "x"}), 400, "unknown_parameter", "before")
    answered(operator.post("/v1/platform/data_keys/rewrap", json={}))
    rows = answered(operator.get("/v1/platform/audit_logs"))["data"]
    assert rows[0]["type"] == "data_keys.rewrapped" or "data_keys.rewrapped" in [row["type"] for row in rows]


def test_two_processes_that_need_the_first_key_at_once_agree_on_one(fresh_control: Running) -> None:
    plane, tenant = fresh_control.plane, make_tenant(fresh_control, "acme")
    ring = KeyRing.of(FileKey(os.urandom(32)))
    one, two = (DataKeys(plane.database, ring, os.urandom, plane.now) for _ in range(2))
    made_by_two = two._make(tenant.organization_id)
    assert one._make(tenant.organization_id) == made_by_two
    assert two.open(tenant.organization_id).unseal(one.open(tenant.organization_id).seal("s", context="x")) == "s"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (KeyEncryptionSection(provider="vault"), "vault_url is missing"),
        (KeyEncryptionSection(provider="vault", vault_url="http://v"), "vault_key is missing"),
        (KeyEncryptionSection(provider="vault", vault_url="http://v", vault_key="k"), "token of Vault"),
        (KeyEncryptionSection(provider="aws", aws_key="k"), "aws_region is missing"),
        (KeyEncryptionSection(provider="aws", aws_key="k", aws_region="r"), "credentials of AWS"),
        (KeyEncryptionSection(file="/nowhere"), "cannot be read"),
        (KeyEncryptionSection(file="/dev/null"), "64 hexadecimal digits"),
    ],
)
def test_settings_with_which_no_key_can_be_had_are_refused(section: KeyEncryptionSection, message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        make_key_ring(section, VAULT_KEY, {}, lambda: 0)
