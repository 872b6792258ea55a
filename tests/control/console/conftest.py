"""An organization with requests of the last days, and people with different roles."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Browser as Chromium

from tests.control.browsing import Browser, join
from tests.control.console.chromium import launched
from tests.control.engine_stub import Stub, stub
from tests.control.harness import Running, TenantSetup, answered, make_tenant, running
from tests.gateway.certificates import make_pem
from tests.link.samples import EPOCH, NODE, admit, final, frames
from tests.storage.databases import SqliteTemplate
from tests.tokens import make_p256
from tollway.control.identity import operators
from tollway.control.identity.operators import OperatorSignIn, SignedInOperator
from tollway.domain import ids
from tollway.domain.content_logs import Content, name_content
from tollway.domain.keys import RANDOM_BYTES, KeyOrigin
from tollway.domain.roles import AUDITOR, OPERATOR, Role
from tollway.domain.usage import OUTCOME_POLICY_CURRENT, Outcome, Record

DAY_US = 86_400_000_000
REQUESTS = 24

PRICED_DAYS = 40
"""Days for which there has been a price: since before the month that a preview of prices takes ended."""

ISSUER = "https://login.example.com"

PROVIDER = OperatorSignIn(
    issuer=ISSUER,
    client_id="tollway",
    client_secret=None,
    groups_claim="groups",
    operator_groups=frozenset(),
    second_operator_groups=frozenset(),
    auditor_groups=frozenset(),
)
"""The identity provider of operators, who are signed in without asking it."""

HOSTILE = """<script>alert(1)</script>"'><img src=x onerror=alert(2)>{{ 7 * 7 }}[x](javascript:alert(3))"""
"""A name that would run if a page did not escape it (row 166 of the attacks)."""


@pytest.fixture(scope="module")
def gateway() -> Iterator[Stub]:
    """A server that stands for a gateway."""
    with stub() as made:
        yield made


@pytest.fixture(scope="module")
def control(sqlite_template: SqliteTemplate, tmp_path_factory: pytest.TempPathFactory, gateway: Stub) -> Iterator[Running]:
    """A control plane with an identity provider of operators, who are signed in without asking it."""
    directory = tmp_path_factory.mktemp("control")
    with (
        sqlite_template.copied(directory) as url,
        running(url, directory / "archive", operator_sign_in=PROVIDER, gateway_url=gateway.url) as started,
    ):
        yield started


def sign_in_operator(control: Running, role: Role = OPERATOR) -> Browser:
    """Return the browser of somebody with a role of the platform, who is signed in."""
    plane, subject = control.plane, role.name
    who = SignedInOperator(
        id=operators.make_operator_id(ISSUER, subject),
        issuer=ISSUER,
        subject=subject,
        email=f"{subject}@example.com",
        name=subject,
        role=role,
        origin=KeyOrigin.FIRST,
        signed_in_at=plane.now(),
    )
    with plane.database.platform() as tx:
        operators.note_sign_in(tx, who)
        begun = operators.begin_session(
            tx,
            who,
            id=plane.new_id(ids.OPERATOR_SESSION),
            address="",
            agent="",
            id_token=None,
            random_bytes=plane.random_bytes(RANDOM_BYTES),
            pepper=plane.pepper,
            now=plane.now(),
        )
    browser = Browser(control)
    browser.client.cookies.set("tollway_session", begun.secret)
    return browser


@pytest.fixture(scope="module")
def operator(control: Running) -> Browser:
    """Someone who may do everything at the platform."""
    return sign_in_operator(control)


@pytest.fixture(scope="module")
def auditor(control: Running) -> Browser:
    """Someone who may read everything at the platform, and change nothing."""
    return sign_in_operator(control, AUDITOR)


def make_seller(name: str) -> dict[str, Any]:
    """Return a seller as the REST API takes it."""
    return {
        "name": name,
        "address": {"street": "Rechenweg 1", "postal_code": "10115", "city": "Berlin", "country": "DE"},
        "vat_id": "DE136695976",
        "contact": {"name": "Accounts", "phone": "+49 30 123456", "email": "billing@seller.example"},
        "electronic_address": {"address": "billing@seller.example"},
        "bank_account": {"holder": name, "iban": "DE89370400440532013000"},
        "invoice_series": "A-2026",
        "credit_note_series": "B-2026",
        "grace_days": 5,
        "dunning": [{"after_days": 14, "action": "remind", "channel": "mail"}],
        "bookkeeping": {"consultant": 29098, "client": 55003, "debtor_account": 10000, "revenue_accounts": {"S": 8400, "AE": 8336}},
    }


def log_content(control: Running, tenant: TenantSetup, request_id: str) -> None:
    """Log the content of a request, as a gateway seals it."""
    policy = {"retention_type": "none", "content_retention_seconds": 86_400}
    path = f"/v1/organization/projects/{tenant.project_id}/data_retention"
    answered(control.client(tenant.admin_key).post(path, json=policy))
    place = (tenant.organization_id, tenant.project_id, request_id)
    content = msgspec.json.encode(Content(request=msgspec.json.encode({"prompt": HOSTILE}), is_request_cut=True, answer=HOSTILE.encode()))
    sealed = control.plane.vault.for_organization(tenant.organization_id).seal_bytes(content, context=name_content(*place))
    record = {
        **dict(zip(("organization_id", "project_id", "id"), place, strict=True)),
        **{"key_id": tenant.key_id, "endpoint": "chat/completions", "model": "echo", "created_at": control.plane.now()},
    }
    assert control.node().put("/v1/link/content", params=record, content=sealed).status_code == 204


def set_up(control: Running) -> TenantSetup:
    """Make an organization, a project and a key with hostile names, and requests of the last days."""
    operator, tenant = control.operator(), make_tenant(control, HOSTILE)
    now = control.plane.now()
    answered(operator.post("/v1/platform/models", json={"name": "echo", "endpoints": ["chat/completions"]}))
    with control.clock.set_to(now - PRICED_DAYS * DAY_US):
        price = answered(operator.post("/v1/platform/prices", json={"model": "echo", "currency": "EUR", "input": "1", "output": "2"}))
    control.prove_prices()
    records: list[Record] = []
    for number in range(REQUESTS):
        at = now - number * DAY_US // 6 - 60_000_000
        of = admit(
            number,
            request_id=ids.new_id(ids.REQUEST, at, number),
            admitted_at=at,
            organization_id=tenant.organization_id,
            project_id=tenant.project_id,
            key_id=tenant.key_id,
            price_version=price["id"],
            outcome_policy=OUTCOME_POLICY_CURRENT,
        )
        failed = number % 8 == 7
        end = {"outcome": Outcome.UPSTREAM_ERROR, "error": "upstream_cut"} if failed else {}
        records.extend([of, final(of, ended_at=at + 500_000, **end)])
    answered(control.node(NODE).put(f"/v1/link/records/{NODE}/{EPOCH}/1", content=b"".join(frames(records))))
    (book,) = answered(operator.get("/v1/platform/price_books"))["data"]
    line = {"model": "echo", "input": "1.5", "output": "1"}
    answered(operator.post("/v1/platform/price_drafts", json={"book_id": book["id"], "lines": [line]}))
    answered(operator.post("/v1/platform/plans", json={"name": HOSTILE, "limits": {"requests_per_minute": 10**6}}))
    deployment = {"model": "echo", "base_url": "http://127.0.0.1:9", "engine": "vllm", "upstream_model": "echo"}
    answered(operator.post("/v1/platform/deployments", json=deployment))
    admin = control.client(tenant.admin_key)
    answered(operator.post("/v1/platform/legal_entities", json=make_seller(HOSTILE)))
    budget = {"name": HOSTILE, "mode": "soft", "window": "month", "amount": "100", "currency": "EUR", "thresholds": [50]}
    answered(admin.post("/v1/organization/budgets", json=budget))
    return tenant


@pytest.fixture(scope="module")
def used(control: Running) -> TenantSetup:
    """The organization of `set_up`."""
    return set_up(control)


@pytest.fixture(scope="module")
def known(control: Running, used: TenantSetup, owner: Browser) -> dict[str, str]:
    """Ids of what the organization has, by their names in paths."""
    admin = control.client(used.admin_key)
    hook = {"name": HOSTILE, "url": "https://1.1.1.1/hook", "event_types": ["budget.threshold_reached"]}
    provider = {"name": HOSTILE, "issuer": ISSUER, "client_id": "tollway"}
    export = {"name": HOSTILE, "url": "https://1.1.1.1/export", "format": "json", "signals": ["usage"], "headers": {"x-token": "s3cret"}}
    contract = {"name": HOSTILE, "currency": "EUR", "discount_bp": 1_000, "fees": [{"name": "Care", "amount": "5"}]}
    contracts, grants = (f"/v1/platform/organizations/{used.organization_id}/{each}" for each in ("contracts", "credit_grants"))
    accounts = f"/v1/organization/projects/{used.project_id}/service_accounts"
    account = answered(admin.post(accounts, json={"name": HOSTILE}))["id"]
    issuer: dict[str, Any] = {"type": "oidc", "name": HOSTILE, "issuer": ISSUER, "audience": "https://gateway.example"}
    issuer["verification"] = {"type": "uploaded_jwks", "jwks": {"keys": [msgspec.to_builtins(make_p256("k").jwk)]}}
    programs = answered(admin.post("/v1/organization/workload_identity_providers", json=issuer))["id"]
    rule = {"project_id": used.project_id, "service_account_id": account, "name": HOSTILE}
    claims = {**rule, "attribute_matchers": {"sub": HOSTILE}}
    federation_rules = f"/v1/organization/workload_identity_providers/{programs}/federation_rules"
    certificate = answered(admin.post("/v1/organization/certificates", json={"name": HOSTILE, "certificate": make_pem("authority")}))["id"]
    request_id = answered(admin.get("/v1/organization/requests"))["data"][0]["id"]
    log_content(control, used, request_id)
    certificate_rules = f"/v1/organization/certificates/{certificate}/rules"
    return {
        "service_account_id": account,
        "identity_provider_id": programs,
        "federation_rule_id": answered(admin.post(federation_rules, json=claims))["id"],
        "certificate_id": certificate,
        "certificate_rule_id": answered(admin.post(certificate_rules, json={**rule, "matchers": {"common_name": HOSTILE}}))["id"],
        "request_id": request_id,
        "budget_id": answered(admin.get("/v1/organization/budgets"))["data"][0]["id"],
        "user_id": answered(admin.get("/v1/organization/users"))["data"][0]["id"],
        "group_id": answered(admin.post("/v1/organization/groups", json={"name": HOSTILE}))["id"],
        "grant_id": answered(control.operator().post(grants, json={"category": "goodwill", "amount": "5", "reference": HOSTILE}))["id"],
        "period_id": answered(admin.get("/v1/organization/periods"))["data"][-1]["id"],
        "contract_id": answered(control.operator().post(contracts, json=contract))["id"],
        "admin_key_id": answered(admin.get("/v1/organization/admin_api_keys"))["data"][0]["id"],
        "telemetry_export_id": answered(admin.post("/v1/organization/telemetry_exports", json=export))["id"],
        "webhook_endpoint_id": answered(admin.post("/v1/webhook_endpoints", json=hook))["id"],
        "connection_id": answered(admin.post("/v1/organization/sign_in_connections", json=provider))["id"],
    }


@pytest.fixture(scope="module")
def owner(control: Running, used: TenantSetup) -> Browser:
    """A person who may do everything in the organization."""
    return join(control, control.client(used.admin_key), "owner@example.com", "owner")


@pytest.fixture(scope="module")
def member(control: Running, used: TenantSetup) -> Browser:
    """A person who has a role in the project alone."""
    wanted = {"projects": [{"id": used.project_id, "role": "member"}]}
    return join(control, control.client(used.admin_key), "member@example.com", "reader", **wanted)


@pytest.fixture(scope="module")
def people(control: Running, used: TenantSetup, owner: Browser, member: Browser) -> dict[str, Browser]:
    """Somebody of each role of the organization, by its name."""
    admin = control.client(used.admin_key)
    others = {role: join(control, admin, f"{role}@example.com", role) for role in ("admin", "billing", "developer", "reader")}
    return {"owner": owner, "member": member, **others}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    with launched() as browser:
        yield browser
