"""Quotas of an organization over the API: one more is refused, also among creations at once, and what has ended is not counted."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa
from msgspec.structs import fields

from tests.control.harness import Running, TenantSetup, answered, find_token, make_tenant, running
from tollway.control import publish
from tollway.control.bounds import quotas
from tollway.domain.quotas import DAY_US, DEFAULT_SIZES, QUOTAS, Quota
from tollway.settings import QuotasSection
from tollway.storage import quotas as storage
from tollway.storage import schema

SIZE = 2
"""Size of each quota but those of keys and of a day."""

SIZES = {**dict.fromkeys(Quota, SIZE), Quota.API_KEYS: SIZE + 1, Quota.CREATIONS_PER_DAY: 20}
MODELS = ("model-0", "model-1", "model-2", "model-3")
LIMITS = "/v1/organization/limits"

OTHER_TABLES = {
    "usage_events", "quarantined_records", "usage_rollups", "ledger_transactions", "usage_adjustments", "billing_periods",  # follow usage
    "project_rollups", "organization_rollups",
    "price_books", "price_terms", "limit_overrides", "credit_grants", "erasures",  # written by operators
    "credit_draws", "credit_topups", "credit_transactions", "credit_redraws", "credit_redraw_usage",  # follow usage and grants
    "serving_costs",  # one for each billing period that is closed
    "contracts", "contract_charges",  # written by operators, bounded by CONTRACTS_MAX, and by closes
    "billing_accounts", "invoices", "invoice_transactions",  # written by operators, and by jobs
    "payments", "settlements", "dunning_notices", "dunning_letters", "dunning_holds", "invoice_syncs",  # as are these, from banks too
    "open_items",  # and what follows from them
    "direct_debits", "credit_transfers",  # written by operators
    "credit_topup_rules", "data_keys",  # one for an organization
    "stored_responses", "stored_response_totals",  # bounded by RESPONSES_MAX and BYTES_MAX
    "content_logs", "content_log_totals", "content_deletions",  # bounded by BYTES_MAX
    "leaked_keys",  # one for a secret of a key, which is counted
    "identity_providers", "federation_rules",  # bounded by PROVIDERS_MAX and RULES_MAX; each rule has a key, which is counted
    "user_credentials", "user_sessions", "sign_in_links", "user_identities",  # one of each for a person, or SESSIONS_MAX
    "sign_in_connections",  # bounded by CONNECTIONS_MAX
    "client_certificates", "certificate_rules",  # bounded by CERTIFICATES_MAX and RULES_MAX; each rule has a key, which is counted
    "outbox_events", "webhook_deliveries",  # follow what happens, and kept for KEPT_SECONDS
    "webhook_endpoints",  # bounded by ENDPOINTS_MAX
    "telemetry_exports",  # bounded by EXPORTS_MAX
    "scim_users", "scim_groups",  # of people and groups, which are counted
    "group_members", "role_assignments",  # of people, groups and roles, which are counted
}  # fmt: skip
"""Tables with rows of an organization that no tenant creates by a request of administration."""


@pytest.fixture
def control(database_url: str, tmp_path: Path) -> Iterator[Running]:
    with running(database_url, tmp_path / "archive", SIZES) as started:
        with started.plane.database.platform() as tx:
            shown = {"status": "active", "published": True, "endpoints": "[]", "unknown_parameters": "refuse", "created_at": 0}
            tx.connection.execute(
                schema.models.insert(), [{"name": name, "retry_started": True, "share_cache": False, **shown} for name in MODELS]
            )
        yield started


@pytest.fixture
def tenant(control: Running) -> TenantSetup:
    """An organization with one project, one service account, two API keys and one admin key."""
    return make_tenant(control, "acme")


class Maker:
    """Creates and ends what each quota counts, through the API."""

    def __init__(self, control: Running, tenant: TenantSetup) -> None:
        self.control = control
        self.made = 0
        self.admin = control.client(tenant.admin_key)
        self.project = f"/v1/organization/projects/{tenant.project_id}"
        self.ends_at = control.plane.now() // 1_000_000 + 600
        self.budget = ""
        self.models = iter(MODELS)

    def create(self, quota: Quota) -> httpx2.Response:
        """Ask for one more."""
        match quota:
            case Quota.PROJECTS:
                return self.admin.post("/v1/organization/projects", json={"name": "p"})
            case Quota.SERVICE_ACCOUNTS:
                body = {"name": "s", "create_service_account_only": True}
                return self.admin.post(f"{self.project}/service_accounts", json=body)
            case Quota.API_KEYS:
                return self.admin.post(f"{self.project}/api_keys", json={"name": "k"})
            case Quota.ADMIN_KEYS:
                return self.admin.post("/v1/organization/admin_api_keys", json={"name": "a"})
            case Quota.BUDGETS:
                return self.admin.post("/v1/organization/budgets", json={"name": "b", "amount": "10", "window": "month"})
            case Quota.BUDGET_RAISES:
                if not self.budget:
                    self.budget = f"/v1/organization/budgets/{answered(self.create(Quota.BUDGETS))['id']}"
                return self.admin.post(f"{self.budget}/raises", json={"amount": "5", "ends_at": self.ends_at})
            case Quota.MODEL_LIMITS:
                model = next(self.models)
                return self.admin.put(f"{self.project}/limits", params={"model": model}, json={"tokens_per_day": 9})
            case Quota.ROLES:
                body = {"role_name": f"role {self.number()}", "permissions": ["usage.read"]}
                return self.admin.post("/v1/organization/roles", json=body)
            case Quota.GROUPS:
                return self.admin.post("/v1/organization/groups", json={"name": f"group {self.number()}"})
            case Quota.INVITES:
                body = {"email": f"person-{self.number()}@example.com", "role": "reader"}
                return self.admin.post("/v1/organization/invites", json=body)
            case Quota.USERS:
                address = f"user-{self.number()}@example.com"
                answered(self.admin.post("/v1/organization/invites", json={"email": address, "role": "reader"}))
                joined = self.control.client(find_token(self.control, address)).post("/v1/invites/accept", json={"name": "x"})
                if joined.status_code == 200:  # the key counts elsewhere
                    answered(self.admin.delete(f"/v1/organization/admin_api_keys/{joined.json()['admin_api_key']['id']}"))
                return joined
            case Quota.CREATIONS_PER_DAY:
                return self.create(Quota.API_KEYS)

    def number(self) -> int:
        """Return a number that this maker did not return before."""
        self.made += 1
        return self.made

    def end(self, quota: Quota, made: dict[str, Any]) -> None:
        """End what `create` made."""
        places = {
            Quota.SERVICE_ACCOUNTS: f"{self.project}/service_accounts",
            Quota.API_KEYS: f"{self.project}/api_keys",
            Quota.ADMIN_KEYS: "/v1/organization/admin_api_keys",
            Quota.ROLES: "/v1/organization/roles",
            Quota.GROUPS: "/v1/organization/groups",
            Quota.INVITES: "/v1/organization/invites",
        }
        match quota:
            case Quota.PROJECTS:
                answered(self.admin.post(f"/v1/organization/projects/{made['id']}/archive"))
            case Quota.BUDGETS:
                answered(self.admin.delete(f"/v1/organization/budgets/{made['id']}"))
            case Quota.BUDGET_RAISES:
                answered(self.admin.delete(self.budget))
                self.budget = ""
            case Quota.MODEL_LIMITS:
                answered(self.admin.put(f"{self.project}/limits", params={"model": MODELS[0]}, json={}))
            case Quota.USERS:
                answered(self.admin.delete(f"/v1/organization/users/{made['user']['id']}"))
            case _:
                answered(self.admin.delete(f"{places[quota]}/{made['id']}"))


def standings(client: httpx2.Client) -> dict[str, tuple[int, int]]:
    return {each["name"]: (each["used"], each["max"]) for each in answered(client.get(LIMITS))["quotas"]}


def refused(answer: httpx2.Response, quota: Quota) -> str:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (403, "quota_exceeded"), answer.text
    assert f"`{quota}`" in error["message"] and f"at most {SIZES[quota]} " in error["message"]
    assert QUOTAS[quota].remedy in error["message"] and f"`control.quotas.{quota}`" in error["message"]
    return str(error["message"])


@pytest.mark.parametrize("quota", [each for each in Quota if each is not Quota.CREATIONS_PER_DAY])
def test_87_creation_beyond_each_quota_is_refused_until_one_ends(control: Running, tenant: TenantSetup, quota: Quota) -> None:
    maker, other = Maker(control, tenant), Maker(control, make_tenant(control, "other"))
    before = standings(maker.admin)
    made = [answered(maker.create(quota)) for _ in range(SIZES[quota] - before[quota][0])]
    assert standings(maker.admin)[quota] == (SIZES[quota], SIZES[quota])
    refused(maker.create(quota), quota)
    assert standings(maker.admin)[quota] == (SIZES[quota], SIZES[quota]), "nothing of what was refused is kept"
    answered(other.create(quota))
    maker.end(quota, made[0])
    assert standings(maker.admin)[quota][0] < SIZES[quota]
    answered(maker.create(quota))


@pytest.mark.parametrize("quota", [Quota.API_KEYS, Quota.ADMIN_KEYS, Quota.MODEL_LIMITS])
def test_87_creations_at_once_do_not_pass_a_quota_together(control: Running, tenant: TenantSetup, quota: Quota) -> None:
    makers = [Maker(control, tenant) for _ in range(4)]
    for maker, model in zip(makers, MODELS, strict=True):
        maker.models = iter([model])
    left = SIZES[quota] - standings(makers[0].admin)[quota][0]
    assert 0 < left < len(makers)
    with ThreadPoolExecutor(len(makers)) as pool:
        answers = list(pool.map(lambda maker: maker.create(quota), makers))
    assert Counter(each.status_code for each in answers) == {200: left, 403: len(makers) - left}
    assert standings(makers[0].admin)[quota] == (SIZES[quota], SIZES[quota])


def test_87_what_was_created_and_ended_counts_for_a_day(control: Running, tenant: TenantSetup) -> None:
    maker = Maker(control, tenant)
    used, most = standings(maker.admin)[Quota.CREATIONS_PER_DAY]
    assert used == 5, "project, service account, two keys, admin key"
    for _ in range(most - used):
        made = answered(maker.create(Quota.API_KEYS))
        answered(maker.admin.delete(f"{maker.project}/api_keys/{made['id']}"))
    assert standings(maker.admin)[Quota.API_KEYS][0] < SIZES[Quota.API_KEYS]
    refused(maker.create(Quota.PROJECTS), Quota.CREATIONS_PER_DAY)
    answered(maker.create(Quota.MODEL_LIMITS))
    with control.clock.set_to(control.plane.now() + DAY_US + 1_000_000):
        assert standings(maker.admin)[Quota.CREATIONS_PER_DAY][0] == 0
        answered(maker.create(Quota.PROJECTS))


def test_87_service_account_beyond_the_quota_of_keys_is_not_kept_without_its_key(control: Running, tenant: TenantSetup) -> None:
    maker = Maker(control, tenant)
    answered(maker.create(Quota.API_KEYS))
    refused(maker.admin.post(f"{maker.project}/service_accounts", json={"name": "with a key"}), Quota.API_KEYS)
    assert standings(maker.admin)[Quota.SERVICE_ACCOUNTS][0] == 1


def test_87_operator_who_acts_for_an_organization_is_bound_too(control: Running, tenant: TenantSetup) -> None:
    maker = Maker(control, tenant)
    answered(maker.create(Quota.ADMIN_KEYS))
    operator = control.client(control.platform_key, **{"openai-organization": tenant.organization_id})
    refused(operator.post("/v1/organization/admin_api_keys", json={"name": "a"}), Quota.ADMIN_KEYS)


@pytest.mark.parametrize("end", ["key", "account", "project", "organization"])
def test_limits_on_single_models_end_with_their_subject(control: Running, tenant: TenantSetup, end: str) -> None:
    admin, operator, project = control.client(tenant.admin_key), control.operator(), f"/v1/organization/projects/{tenant.project_id}"
    subject = {
        "key": f"{project}/api_keys/{tenant.key_id}",
        "account": f"{project}/service_accounts/{tenant.service_account_id}",
        "project": project,
        "organization": f"/v1/platform/organizations/{tenant.organization_id}",
    }[end]
    place = f"{project}/service_accounts/{tenant.service_account_id}" if end in ("project", "organization") else subject
    client = operator if end == "organization" else admin
    answered(admin.put(f"{place}/limits", params={"model": MODELS[0]}, json={"tokens_per_day": 9}))
    answered(client.put(f"{subject}/limits", params={"model": MODELS[1]}, json={"tokens_per_day": 9}))
    ended: dict[str, Callable[[], httpx2.Response]] = {
        "key": lambda: admin.delete(subject),
        "account": lambda: admin.delete(subject),
        "project": lambda: admin.post(f"{subject}/archive"),
        "organization": lambda: operator.post(f"{subject}/archive"),
    }
    with control.plane.database.platform(write=False) as tx:
        assert tx.connection.execute(sa.select(sa.func.count()).select_from(schema.model_limits)).scalar_one() == 2
    answered(ended[end]())
    with control.plane.database.platform(write=False) as tx:
        assert tx.connection.execute(sa.select(sa.func.count()).select_from(schema.model_limits)).scalar_one() == 0


def test_service_accounts_of_archived_projects_and_raises_of_archived_budgets_are_not_counted(
    control: Running, tenant: TenantSetup
) -> None:
    maker = Maker(control, tenant)
    answered(maker.create(Quota.BUDGET_RAISES))
    answered(maker.admin.delete(maker.budget))
    answered(maker.admin.post(f"{maker.project}/archive"))
    found = standings(maker.admin)
    assert [found[quota][0] for quota in (Quota.SERVICE_ACCOUNTS, Quota.BUDGET_RAISES, Quota.BUDGETS, Quota.API_KEYS)] == [0, 0, 0, 0]


def test_count_outside_a_publishing_transaction_is_a_defect(control: Running, tenant: TenantSetup) -> None:
    with control.plane.database.tenant(tenant.organization_id) as tx:
        with pytest.raises(AssertionError):
            quotas.require(tx, DEFAULT_SIZES, Quota.PROJECTS, 0)
        publish.lock(tx)
        quotas.require(tx, DEFAULT_SIZES, Quota.PROJECTS, 0)


def test_every_table_of_what_tenants_create_is_counted() -> None:
    owned = {name for name, table in schema.metadata.tables.items() if "organization_id" in table.c}
    counted = {table.name for table in storage.COUNTED.values()}
    assert owned - counted == OTHER_TABLES


def test_every_quota_is_a_setting_with_its_default() -> None:
    assert {each.name: each.default for each in fields(QuotasSection)} == {str(quota): size for quota, size in DEFAULT_SIZES.items()}
