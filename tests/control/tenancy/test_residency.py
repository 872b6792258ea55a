"""Residency of projects at the REST API: what gateways are told, and what is refused."""

import httpx2
import pytest

from tests.control.harness import Running, TenantSetup, answered
from tollway.domain.snapshot import ProjectEntry
from tollway.storage import platform_queries

PROJECTS = "/v1/organization/projects"


def read_entry(control: Running, project_id: str) -> ProjectEntry:
    with control.plane.database.platform(write=False) as tx:
        entry = platform_queries.list_entries(tx, ProjectEntry, [project_id])[project_id]
    assert isinstance(entry, ProjectEntry)
    return entry


def test_residency_of_a_project_is_published_and_taken_away_and_a_new_name_keeps_it(control: Running, alice: TenantSetup) -> None:
    admin = control.client(alice.admin_key)
    made = answered(admin.post(PROJECTS, json={"name": "resident", "residency": ["eu-west-1", "eu-central-1", "eu-west-1"]}))
    assert made["residency"] == ["eu-central-1", "eu-west-1"]
    assert read_entry(control, made["id"]).residency == ("eu-central-1", "eu-west-1")
    path = f"{PROJECTS}/{made['id']}"
    renamed = answered(admin.post(path, json={"name": "called otherwise"}))
    assert (renamed["name"], renamed["residency"]) == ("called otherwise", ["eu-central-1", "eu-west-1"])
    assert answered(admin.post(path, json={"residency": ["us"]}))["name"] == "called otherwise"
    assert read_entry(control, made["id"]).residency == ("us",)
    assert answered(admin.post(path, json={"residency": None}))["residency"] is None
    assert read_entry(control, made["id"]).residency is None


@pytest.mark.parametrize("wrong", [[], ["EU"], ["a b"], [""], ["x" * 65], ["eu"] * 65, "eu", [1], ["eu\n"]])
def test_residency_that_names_no_region_is_refused_and_changes_nothing(control: Running, alice: TenantSetup, wrong: object) -> None:
    admin: httpx2.Client = control.client(alice.admin_key)
    path = f"{PROJECTS}/{alice.project_id}"
    before = answered(admin.get(path))
    refused = admin.post(path, json={"name": "other", "residency": wrong})
    assert refused.status_code == 400 and refused.json()["error"]["param"].startswith("residency")
    assert admin.post(path, json={"name": None}).json()["error"]["param"] == "name"
    assert answered(admin.get(path)) == before
