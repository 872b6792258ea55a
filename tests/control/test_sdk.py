"""The official OpenAI client's admin resources, against our API: it is the SDK for tenants."""

import time
from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI

from tests.control.harness import Running, TenantSetup, make_tenant


@pytest.fixture(scope="module")
def tenant(control: Running) -> TenantSetup:
    return make_tenant(control, "official")


@pytest.fixture(scope="module")
def client(control: Running, tenant: TenantSetup) -> Iterator[OpenAI]:
    with OpenAI(api_key="unused", admin_api_key=tenant.admin_key, base_url=f"{control.url}/v1", max_retries=0) as client:
        yield client


class TestProjects:
    def test_are_created_renamed_read_and_archived(self, client: OpenAI) -> None:
        projects = client.admin.organization.projects
        created = projects.create(name="research")
        assert created.object == "organization.project"
        assert created.status == "active"
        assert abs(created.created_at - time.time()) < 600
        assert projects.update(created.id, name="science").name == "science"
        assert projects.retrieve(created.id).name == "science"
        archived = projects.archive(created.id)
        assert archived.status == "archived"
        assert archived.archived_at is not None
        assert created.id not in [project.id for project in projects.list()]
        assert created.id in [project.id for project in projects.list(include_archived=True)]

    def test_page_through_to_the_last_one(self, client: OpenAI) -> None:
        made = [client.admin.organization.projects.create(name=f"p{number}").id for number in range(7)]
        listed = [project.id for project in client.admin.organization.projects.list(limit=2)]
        assert listed == sorted(listed)
        assert set(made) <= set(listed)
        assert len(listed) == len(set(listed))

    def test_that_do_not_exist_are_not_found(self, client: OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as refused:
            client.admin.organization.projects.retrieve("proj_" + "0" * 32)
        assert refused.value.code == "not_found"


class TestProjectKeys:
    def test_are_listed_read_and_deleted(self, client: OpenAI, tenant: TenantSetup) -> None:
        keys = client.admin.organization.projects.api_keys
        listed = {key.id: key for key in keys.list(tenant.project_id)}
        assert tenant.key_id in listed
        key = keys.retrieve(tenant.key_id, project_id=tenant.project_id)
        assert key.object == "organization.project.api_key"
        assert key.owner_project_access == "active"
        assert tenant.secret.startswith(key.redacted_value.split("...")[0])
        assert tenant.secret not in key.model_dump_json()
        deleted = keys.delete(tenant.key_id, project_id=tenant.project_id)
        assert deleted.deleted
        assert deleted.object == "organization.project.api_key.deleted"
        with pytest.raises(openai.NotFoundError):
            keys.retrieve(tenant.key_id, project_id=tenant.project_id)
        assert [key.id for key in keys.list(tenant.project_id, owner_project_access="inactive")] == []


class TestServiceAccounts:
    def test_come_with_a_key_that_is_shown_once(self, client: OpenAI, tenant: TenantSetup) -> None:
        accounts = client.admin.organization.projects.service_accounts
        created = accounts.create(tenant.project_id, name="robot", expires_in_seconds=3600)
        assert created.role == "member"
        assert created.api_key is not None
        assert created.api_key.value.startswith("tw_live_")
        assert created.api_key.expires_at is not None
        again = accounts.retrieve(created.id, project_id=tenant.project_id)
        assert created.api_key.value not in again.model_dump_json()
        key = client.admin.organization.projects.api_keys.retrieve(created.api_key.id, project_id=tenant.project_id)
        assert key.owner.type == "service_account"
        assert key.owner.service_account is not None
        assert key.owner.service_account.id == created.id
        assert accounts.delete(created.id, project_id=tenant.project_id).deleted
        assert created.id not in [account.id for account in accounts.list(tenant.project_id)]
        with pytest.raises(openai.NotFoundError):
            client.admin.organization.projects.api_keys.retrieve(created.api_key.id, project_id=tenant.project_id)

    def test_can_be_made_without_a_key(self, client: OpenAI, tenant: TenantSetup) -> None:
        created = client.admin.organization.projects.service_accounts.create(
            tenant.project_id, name="keyless", create_service_account_only=True
        )
        assert created.api_key is None
        assert created.role == "none"


class TestAdminKeys:
    def test_are_created_used_listed_and_deleted(self, control: Running, client: OpenAI) -> None:
        keys = client.admin.organization.admin_api_keys
        created = keys.create(name="second", expires_in_seconds=3600)
        assert created.value.startswith("tw_admin_")
        assert created.expires_at is not None
        with OpenAI(api_key="unused", admin_api_key=created.value, base_url=f"{control.url}/v1", max_retries=0) as second:
            assert created.id in [key.id for key in second.admin.organization.admin_api_keys.list(limit=1, order="desc")]
            assert keys.retrieve(created.id).name == "second"
            assert keys.delete(created.id).object == "organization.admin_api_key.deleted"
            with pytest.raises(openai.AuthenticationError) as refused:
                second.admin.organization.projects.list()
        assert refused.value.code == "invalid_api_key"
        with pytest.raises(openai.NotFoundError):
            keys.retrieve(created.id)


class TestAuditLogs:
    def test_are_listed_by_type_actor_resource_project_and_time(self, client: OpenAI, tenant: TenantSetup) -> None:
        logs = client.admin.organization.audit_logs
        project = client.admin.organization.projects.create(name="audited")
        client.admin.organization.projects.update(project.id, name="renamed")
        newest, oldest = list(logs.list(resource_ids=[project.id]))
        assert (newest.type, oldest.type) == ("project.updated", "project.created")
        assert newest.actor is not None and newest.actor.api_key is not None and newest.actor.api_key.id == tenant.admin_key_id
        assert newest.project_updated is not None and newest.project_updated.id == project.id
        assert newest.project_updated.changes_requested is not None
        assert abs(newest.effective_at - time.time()) < 600
        listed = list(logs.list(event_types=["project.created"], actor_ids=[tenant.admin_key_id]))
        assert oldest.id in [event.id for event in listed] and {event.type for event in listed} == {"project.created"}
        assert [event.id for event in logs.list(project_ids=[project.id])] == [newest.id]
        assert list(logs.list(effective_at={"gt": newest.effective_at + 600})) == []
        assert list(logs.list(effective_at={"lt": oldest.effective_at, "gte": 0}, resource_ids=[project.id])) == []
        assert list(logs.list(actor_emails=["ada@example.com"])) == []

    def test_page_forwards_and_backwards_and_record_that_they_were_read(self, client: OpenAI) -> None:
        logs = client.admin.organization.audit_logs
        first = logs.list(limit=2)
        second = logs.list(limit=2, after=first.data[-1].id)
        assert [event.id for event in logs.list(limit=2, before=second.data[0].id).data] == [event.id for event in first.data]
        assert logs.list(limit=1).data[0].type == "audit_log.read"
