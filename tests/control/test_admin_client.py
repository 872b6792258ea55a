"""Every method of the official SDK's admin client, one test each: the list in `admin_methods.tsv` is that of openai 3.57."""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from openai import OpenAI

from tests.control.harness import Running, TenantSetup, answered, find_token, make_tenant
from tests.gateway.authorities import issue
from tests.tokens import make_ed25519

METHODS = Path(__file__).parent / "admin_methods.tsv"


@dataclass(frozen=True, slots=True)
class Method:
    """A method of the SDK: where it hangs below `client.admin.organization`, its name, and the class of page that it returns."""

    resource: str
    name: str
    page: str

    @property
    def id(self) -> str:
        """The method's name with its place."""
        return f"{self.resource}.{self.name}"


def read_methods() -> list[Method]:
    with METHODS.open() as file:
        return [Method(row["resource"], row["method"], row["page_class"]) for row in csv.DictReader(file, delimiter="\t")]


class Setting:
    """An organization with a person, a group and roles, and the SDK's client for it."""

    def __init__(self, control: Running, client: OpenAI, tenant: TenantSetup) -> None:
        self.client, self.tenant, self.control = client.admin.organization, tenant, control
        self.project = tenant.project_id
        self.number = 0
        self.role = self.client.roles.create(role_name="keeper", permissions=["usage.read"]).id
        self.project_role = self.client.projects.roles.create(self.project, role_name="keeper", permissions=["limits.read"]).id

    def name(self) -> str:
        """Return a name that was not used before."""
        self.number += 1
        return f"name-{self.number}"

    def user(self) -> str:
        """Return the id of a new person."""
        address = f"{self.name()}@example.com"
        self.client.invites.create(email=address, role="reader")
        joined = self.control.client(find_token(self.control, address)).post("/v1/invites/accept", json={"name": "Ada"})
        user_id: str = answered(joined)["user"]["id"]
        return user_id

    def project_user(self) -> str:
        """Return the id of a new person in the project."""
        user_id = self.user()
        self.client.projects.users.create(self.project, role="member", user_id=user_id)
        return user_id

    def group(self) -> str:
        """Return the id of a new group."""
        return self.client.groups.create(name=self.name()).id

    def project_group(self) -> str:
        """Return the id of a new group in the project."""
        group = self.group()
        self.client.projects.groups.create(self.project, group_id=group, role="member")
        return group

    def key(self) -> str:
        """Return the id of a new key of the project."""
        path = f"/v1/organization/projects/{self.project}/api_keys"
        made: str = answered(self.control.client(self.tenant.admin_key).post(path, json={"name": "x"}))["id"]
        return made

    def account(self) -> str:
        """Return the id of a new service account of the project."""
        return self.client.projects.service_accounts.create(self.project, name="robot").id

    def provider(self) -> str:
        """Return the id of a new identity provider."""
        return _create_provider(self).id

    def alert(self) -> str:
        """Return the id of a new alert of the organization."""
        return self.client.spend_alerts.create(**SPENDING, notification_channel=NOBODY).id

    def project_alert(self) -> str:
        """Return the id of a new alert of the project."""
        return self.client.projects.spend_alerts.create(self.project, **SPENDING, notification_channel=NOBODY).id


ISSUER_KEYS: Any = {"keys": [msgspec.to_builtins(make_ed25519("issuer").jwk)]}


def _create_provider(s: Setting) -> Any:
    name = s.name()
    return s.client.workload_identity_providers.create(
        audience="https://gateway.example",
        issuer=f"https://{name}.example",
        name=name,
        type="oidc",
        verification={"type": "uploaded_jwks", "jwks": ISSUER_KEYS},
    )


def _create_rule(s: Setting, provider_id: str) -> Any:
    return s.client.workload_identity_providers.federation_rules.create(
        provider_id,
        attribute_matchers={"sub": "robot", "admin": False, "level": 3},
        project_id=s.project,
        service_account_id=s.account(),
        permissions={"type": "restricted", "scopes": ["chat/completions"]},
    )


SPENDING: Any = {"threshold_amount": 100, "currency": "USD", "interval": "month"}
NOBODY: Any = {"type": "email", "recipients": []}
START = 1_700_000_000


def _usage(name: str) -> Callable[[Setting], Any]:
    return lambda s: getattr(s.client.usage, name)(start_time=START)


def _with(made: str, call: Callable[[Setting, str], Any]) -> Callable[[Setting], Any]:
    """Return a call about something that `Setting.<made>` makes first."""
    return lambda s: call(s, getattr(s, made)())


def _assignments(resource: str, holder: str, role: str, *, project: bool) -> dict[str, Callable[[Setting], Any]]:
    """Return the calls of a family of role assignments."""

    def place(s: Setting) -> Any:
        found: Any = s.client
        for part in resource.split("/"):
            found = getattr(found, part)
        return found

    def where(s: Setting) -> dict[str, str]:
        return {"project_id": s.project} if project else {}

    def given(s: Setting) -> str:
        holder_id: str = getattr(s, "user" if holder == "user_id" else "group")()
        place(s).create(holder_id, role_id=getattr(s, role), **where(s))
        return holder_id

    return {
        f"{resource}.create": lambda s: place(s).create(
            s.user() if holder == "user_id" else s.group(), role_id=getattr(s, role), **where(s)
        ),
        f"{resource}.retrieve": lambda s: place(s).retrieve(getattr(s, role), **{holder: given(s)}, **where(s)),
        f"{resource}.list": lambda s: place(s).list(given(s), **where(s)),
        f"{resource}.delete": lambda s: place(s).delete(getattr(s, role), **{holder: given(s)}, **where(s)),
    }


CALLS: dict[str, Callable[[Setting], Any]] = {
    "admin_api_keys.create": lambda s: s.client.admin_api_keys.create(name="x"),
    "admin_api_keys.retrieve": lambda s: s.client.admin_api_keys.retrieve(s.tenant.admin_key_id),
    "admin_api_keys.list": lambda s: s.client.admin_api_keys.list(),
    "admin_api_keys.delete": lambda s: s.client.admin_api_keys.delete(s.client.admin_api_keys.create(name="x").id),
    "invites.create": lambda s: s.client.invites.create(
        email=f"{s.name()}@example.com", role="reader", projects=[{"id": s.project, "role": "member"}]
    ),
    "invites.retrieve": lambda s: s.client.invites.retrieve(s.client.invites.create(email=f"{s.name()}@example.com", role="owner").id),
    "invites.list": lambda s: s.client.invites.list(),
    "invites.delete": lambda s: s.client.invites.delete(s.client.invites.create(email=f"{s.name()}@example.com", role="owner").id),
    "projects/model_permissions.retrieve": lambda s: s.client.projects.model_permissions.retrieve(s.project),
    "projects/model_permissions.update": lambda s: s.client.projects.model_permissions.update(s.project, mode="deny_list", model_ids=["m"]),
    "projects/model_permissions.delete": lambda s: s.client.projects.model_permissions.delete(s.project),
    "projects/service_tier_settings.retrieve": lambda s: s.client.projects.service_tier_settings.retrieve(s.project),
    "projects/service_tier_settings.update": lambda s: s.client.projects.service_tier_settings.update(
        s.project, default="fast", enabled_tiers=["flex", "fast"]
    ),
    "roles.create": lambda s: s.client.roles.create(role_name=s.name(), permissions=["usage.read"], description="Reads."),
    "roles.retrieve": lambda s: s.client.roles.retrieve(s.role),
    "roles.update": lambda s: s.client.roles.update(s.role, description="Reads usage."),
    "roles.list": lambda s: s.client.roles.list(limit=2),
    "roles.delete": lambda s: s.client.roles.delete(s.client.roles.create(role_name=s.name(), permissions=["usage.read"]).id),
    "spend_alerts.create": lambda s: s.client.spend_alerts.create(**SPENDING, notification_channel=NOBODY),
    "spend_alerts.retrieve": _with("alert", lambda s, it: s.client.spend_alerts.retrieve(it)),
    "spend_alerts.update": _with("alert", lambda s, it: s.client.spend_alerts.update(it, **SPENDING, notification_channel=NOBODY)),
    "spend_alerts.list": lambda s: s.client.spend_alerts.list(),
    "spend_alerts.delete": _with("alert", lambda s, it: s.client.spend_alerts.delete(it)),
    "spend_limit.retrieve": lambda s: (s.client.spend_limit.update(**SPENDING), s.client.spend_limit.retrieve())[1],
    "spend_limit.update": lambda s: s.client.spend_limit.update(**SPENDING),
    "spend_limit.delete": lambda s: (s.client.spend_limit.update(**SPENDING), s.client.spend_limit.delete())[1],
    **{
        f"usage.{name}": _usage(name)
        for name in (
            "audio_speeches",
            "audio_transcriptions",
            "code_interpreter_sessions",
            "completions",
            "costs",
            "decisions",
            "embeddings",
            "file_search_calls",
            "images",
            "moderations",
            "vector_stores",
            "web_search_calls",
        )
    },
    "projects/api_keys.retrieve": _with("key", lambda s, it: s.client.projects.api_keys.retrieve(it, project_id=s.project)),
    "projects/api_keys.update": _with(
        "key", lambda s, it: s.client.projects.api_keys.update(it, project_id=s.project, expires_in_seconds=3600, scopes=[])
    ),
    "projects/api_keys.list": lambda s: s.client.projects.api_keys.list(s.project, owner_project_access="active"),
    "projects/api_keys.delete": _with("key", lambda s, it: s.client.projects.api_keys.delete(it, project_id=s.project)),
    "projects/projects.create": lambda s: s.client.projects.create(name="x"),
    "projects/projects.retrieve": lambda s: s.client.projects.retrieve(s.project),
    "projects/projects.update": lambda s: s.client.projects.update(s.project, name="y"),
    "projects/projects.list": lambda s: s.client.projects.list(),
    "projects/projects.archive": lambda s: s.client.projects.archive(s.client.projects.create(name="x").id),
    "projects/rate_limits.list_rate_limits": lambda s: s.client.projects.rate_limits.list_rate_limits(s.project),
    "projects/roles.create": lambda s: s.client.projects.roles.create(s.project, role_name=s.name(), permissions=["limits.read"]),
    "projects/roles.retrieve": lambda s: s.client.projects.roles.retrieve(s.project_role, project_id=s.project),
    "projects/roles.update": lambda s: s.client.projects.roles.update(s.project_role, project_id=s.project, description="x"),
    "projects/roles.list": lambda s: s.client.projects.roles.list(s.project),
    "projects/roles.delete": lambda s: s.client.projects.roles.delete(
        s.client.projects.roles.create(s.project, role_name=s.name(), permissions=["limits.read"]).id, project_id=s.project
    ),
    "projects/spend_alerts.create": lambda s: s.client.projects.spend_alerts.create(s.project, **SPENDING, notification_channel=NOBODY),
    "projects/spend_alerts.retrieve": _with(
        "project_alert", lambda s, it: s.client.projects.spend_alerts.retrieve(it, project_id=s.project)
    ),
    "projects/spend_alerts.update": _with(
        "project_alert",
        lambda s, it: s.client.projects.spend_alerts.update(it, project_id=s.project, **SPENDING, notification_channel=NOBODY),
    ),
    "data_retention.retrieve": lambda s: s.client.data_retention.retrieve(),
    "data_retention.update": lambda s: s.client.data_retention.update(retention_type="modified_abuse_monitoring"),
    "projects/data_retention.retrieve": lambda s: s.client.projects.data_retention.retrieve(s.project),
    "projects/data_retention.update": lambda s: s.client.projects.data_retention.update(s.project, retention_type="none"),
    "projects/spend_alerts.list": lambda s: s.client.projects.spend_alerts.list(s.project),
    "projects/spend_alerts.delete": _with("project_alert", lambda s, it: s.client.projects.spend_alerts.delete(it, project_id=s.project)),
    "projects/spend_limit.retrieve": lambda s: (
        s.client.projects.spend_limit.update(s.project, **SPENDING),
        s.client.projects.spend_limit.retrieve(s.project),
    )[1],
    "projects/spend_limit.update": lambda s: s.client.projects.spend_limit.update(s.project, **SPENDING),
    "projects/spend_limit.delete": lambda s: (
        s.client.projects.spend_limit.update(s.project, **SPENDING),
        s.client.projects.spend_limit.delete(s.project),
    )[1],
    "projects/users/users.create": _with("user", lambda s, it: s.client.projects.users.create(s.project, role="member", user_id=it)),
    "projects/users/users.retrieve": _with("project_user", lambda s, it: s.client.projects.users.retrieve(it, project_id=s.project)),
    "projects/users/users.update": _with(
        "project_user", lambda s, it: s.client.projects.users.update(it, project_id=s.project, role="owner")
    ),
    "projects/users/users.list": _with("project_user", lambda s, _it: s.client.projects.users.list(s.project)),
    "projects/users/users.delete": _with("project_user", lambda s, it: s.client.projects.users.delete(it, project_id=s.project)),
    "projects/service_accounts/api_keys.create": _with(
        "account", lambda s, it: s.client.projects.service_accounts.api_keys.create(it, project_id=s.project, name="second")
    ),
    "projects/service_accounts/service_accounts.create": lambda s: s.client.projects.service_accounts.create(s.project, name="robot"),
    "projects/service_accounts/service_accounts.retrieve": _with(
        "account", lambda s, it: s.client.projects.service_accounts.retrieve(it, project_id=s.project)
    ),
    "projects/service_accounts/service_accounts.update": _with(
        "account", lambda s, it: s.client.projects.service_accounts.update(it, project_id=s.project, name="android", role="owner")
    ),
    "projects/service_accounts/service_accounts.list": lambda s: s.client.projects.service_accounts.list(s.project),
    "projects/service_accounts/service_accounts.delete": _with(
        "account", lambda s, it: s.client.projects.service_accounts.delete(it, project_id=s.project)
    ),
    "projects/groups/groups.create": _with("group", lambda s, it: s.client.projects.groups.create(s.project, group_id=it, role="member")),
    "projects/groups/groups.retrieve": _with("project_group", lambda s, it: s.client.projects.groups.retrieve(it, project_id=s.project)),
    "projects/groups/groups.list": _with("project_group", lambda s, _it: s.client.projects.groups.list(s.project)),
    "projects/groups/groups.delete": _with("project_group", lambda s, it: s.client.projects.groups.delete(it, project_id=s.project)),
    "users/users.retrieve": _with("user", lambda s, it: s.client.users.retrieve(it)),
    "users/users.update": _with("user", lambda s, it: s.client.users.update(it, role="owner")),
    "users/users.list": _with("user", lambda s, _it: s.client.users.list(emails=["nobody@example.com"])),
    "users/users.delete": _with("user", lambda s, it: s.client.users.delete(it)),
    "groups/groups.create": lambda s: s.client.groups.create(name=s.name()),
    "groups/groups.retrieve": _with("group", lambda s, it: s.client.groups.retrieve(it)),
    "groups/groups.update": _with("group", lambda s, it: s.client.groups.update(it, name=s.name())),
    "groups/groups.list": lambda s: s.client.groups.list(),
    "groups/groups.delete": _with("group", lambda s, it: s.client.groups.delete(it)),
    "groups/users.create": _with("group", lambda s, it: s.client.groups.users.create(it, user_id=s.user())),
    "groups/users.retrieve": _with("group", lambda s, it: _joined(s, it, lambda user: s.client.groups.users.retrieve(user, group_id=it))),
    "groups/users.list": _with("group", lambda s, it: _joined(s, it, lambda _user: s.client.groups.users.list(it))),
    "groups/users.delete": _with("group", lambda s, it: _joined(s, it, lambda user: s.client.groups.users.delete(user, group_id=it))),
    "certificates.create": lambda s: _upload(s),
    "certificates.retrieve": lambda s: s.client.certificates.retrieve(_upload(s).id, include=["content"]),
    "certificates.update": lambda s: s.client.certificates.update(_upload(s).id, name=s.name()),
    "certificates.list": lambda s: (_upload(s), s.client.certificates.list(limit=2))[1],
    "certificates.delete": lambda s: s.client.certificates.delete(_upload(s).id),
    "certificates.activate": lambda s: s.client.certificates.activate(certificate_ids=[_upload(s).id]),
    "certificates.deactivate": lambda s: s.client.certificates.deactivate(certificate_ids=[_upload(s).id]),
    "projects/certificates.list": lambda s: (_upload(s), s.client.projects.certificates.list(s.project, limit=2))[1],
    "projects/certificates.activate": lambda s: s.client.projects.certificates.activate(s.project, certificate_ids=[_upload(s).id]),
    "projects/certificates.deactivate": lambda s: s.client.projects.certificates.deactivate(s.project, certificate_ids=[_upload(s).id]),
    "workload_identity_providers/workload_identity_providers.create": lambda s: _create_provider(s),
    "workload_identity_providers/workload_identity_providers.retrieve": _with(
        "provider", lambda s, it: s.client.workload_identity_providers.retrieve(it)
    ),
    "workload_identity_providers/workload_identity_providers.update": _with(
        "provider", lambda s, it: s.client.workload_identity_providers.update(it, name=s.name(), description=None)
    ),
    "workload_identity_providers/workload_identity_providers.list": _with(
        "provider", lambda s, _it: s.client.workload_identity_providers.list(limit=2)
    ),
    "workload_identity_providers/workload_identity_providers.delete": _with(
        "provider", lambda s, it: s.client.workload_identity_providers.delete(it)
    ),
    "workload_identity_providers/federation_rules.create": _with("provider", lambda s, it: _create_rule(s, it)),
    "workload_identity_providers/federation_rules.retrieve": _with(
        "provider",
        lambda s, it: s.client.workload_identity_providers.federation_rules.retrieve(
            _create_rule(s, it).id, workload_identity_provider_id=it
        ),
    ),
    "workload_identity_providers/federation_rules.update": _with(
        "provider",
        lambda s, it: s.client.workload_identity_providers.federation_rules.update(
            _create_rule(s, it).id, workload_identity_provider_id=it, permissions={"type": "service_account_default"}, enabled=False
        ),
    ),
    "workload_identity_providers/federation_rules.list": _with(
        "provider",
        lambda s, it: (_create_rule(s, it), s.client.workload_identity_providers.federation_rules.list(it, limit=1))[1],
    ),
    "workload_identity_providers/federation_rules.delete": _with(
        "provider",
        lambda s, it: s.client.workload_identity_providers.federation_rules.delete(
            _create_rule(s, it).id, workload_identity_provider_id=it
        ),
    ),
    **_assignments("users/roles", "user_id", "role", project=False),
    **_assignments("groups/roles", "group_id", "role", project=False),
    **_assignments("projects/users/roles", "user_id", "project_role", project=True),
    **_assignments("projects/groups/roles", "group_id", "project_role", project=True),
}
"""The call of each method that is served."""


def _upload(s: Setting) -> Any:
    return s.client.certificates.create(certificate=issue(s.name(), is_authority=True).pem, name=s.name())


def _joined(s: Setting, group_id: str, call: Callable[[str], Any]) -> Any:
    user_id = s.user()
    s.client.groups.users.create(group_id, user_id=user_id)
    return call(user_id)


ELSEWHERE = {
    "audit_logs.list": "tests of the audit trail",
    "projects/rate_limits.update_rate_limit": "tests/control/bounds/test_limits.py: it needs a model",
}
"""Methods that another test calls."""

UNSUPPORTED = (
    "external_keys",
    "external_storage",
    "projects/hosted_tool_permissions",
)
"""Resources that are not supported: their lists are empty, and anything else is refused by the code `unsupported`."""


def is_unsupported(method: Method) -> bool:
    return method.resource in UNSUPPORTED


@pytest.fixture(scope="module")
def setting(control: Running) -> Iterator[Setting]:
    tenant = make_tenant(control, "the SDK", "USD")
    with OpenAI(api_key="unused", admin_api_key=tenant.admin_key, base_url=f"{control.url}/v1", max_retries=0) as client:
        yield Setting(control, client, tenant)


def test_every_method_is_served_tested_elsewhere_or_unsupported() -> None:
    methods = {method.id: method for method in read_methods()}
    assert len(methods) == 143
    served = {id for id, method in methods.items() if not is_unsupported(method)}
    assert CALLS.keys() | ELSEWHERE.keys() == served and not CALLS.keys() & ELSEWHERE.keys()


@pytest.mark.parametrize("method", [each for each in read_methods() if each.id in CALLS], ids=lambda method: method.id)
def test_method_is_answered_in_the_shape_of_the_sdk(setting: Setting, method: Method) -> None:
    answer = CALLS[method.id](setting)
    if method.page:
        assert type(answer).__name__.partition("[")[0] == method.page
        for item in answer:  # through all pages
            check(item)
    else:
        check(answer)


def check(answer: Any) -> None:
    """Check that an answer has every field that its class requires, of the declared type: the SDK itself checks nothing."""
    type(answer).model_validate(answer.model_dump(by_alias=True, warnings=False), strict=False)


def _call(setting: Setting, method: Method) -> Any:
    place: Any = setting.client
    parts = [part for number, part in enumerate(parts_of(method)) if number == 0 or part != parts_of(method)[number - 1]]
    for part in parts:
        place = getattr(place, part)
    with METHODS.open() as file:
        row = next(
            row for row in csv.DictReader(file, delimiter="\t") if (row["resource"], row["method"]) == (method.resource, method.name)
        )
    named = re_names(row["path"])
    required = {name: setting.project if name == "project_id" else "x" for name in named}
    return getattr(place, method.name)(**required, **BODIES.get(method.id, {}))


def parts_of(method: Method) -> list[str]:
    return method.resource.split("/")


def re_names(path: str) -> list[str]:
    return [part.strip("{}") for part in path.split("/") if part.startswith("{")]


BODIES: dict[str, dict[str, Any]] = {
    "external_keys.create": {"external_id": "x", "kms_arn": "x", "name": "x", "role_arn": "x", "type": "aws"},
    "external_storage.create": {"project_id": "x", "provider": {"type": "aws"}},
}


@pytest.mark.parametrize("method", [each for each in read_methods() if is_unsupported(each)], ids=lambda method: method.id)
def test_method_that_is_unsupported_lists_nothing_or_is_refused_by_name(setting: Setting, method: Method) -> None:
    if method.name == "list":
        assert list(_call(setting, method)) == []
        return
    with pytest.raises(openai.BadRequestError) as refused:
        _call(setting, method)
    assert refused.value.code == "unsupported"
