"""Snapshot and changes, as a gateway receives them."""

import json
import math
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import msgspec
import pytest

from tests.control.catalog.test_catalog import price
from tests.control.harness import NODE_ID, Running, TenantSetup, answered, make_tenant, running, wait_until
from tests.control.test_routes import refused
from tests.threads import beside
from tollway.control import publish as publication
from tollway.domain.snapshot import Change, DeploymentEntry, Entry, KeyEntry, ModelEntry, SnapshotHead, kind_of

State = dict[tuple[str, str], Entry]


def read_snapshot(node: httpx2.Client) -> tuple[int, State]:
    """The snapshot as a gateway builds it: each entry after those that it refers to."""
    response = node.get("/v1/link/snapshot")
    assert response.status_code == 200
    first, *lines = response.content.splitlines()
    head = msgspec.json.decode(first, type=SnapshotHead)
    assert head.entries == len(lines)
    entries = [msgspec.json.decode(line, type=Entry) for line in lines]
    return head.version, {(kind_of(entry), entry.id): entry for entry in entries}


def read_changes(node: httpx2.Client, since: int) -> list[Change]:
    """All changes after `since`; what ends them is a heartbeat."""
    found: list[Change] = []
    while True:
        response = node.get("/v1/link/changes", params={"since": since})
        assert response.status_code == 200
        *lines, last = response.content.splitlines()
        assert set(json.loads(last)) == {"version"}
        if not lines:
            return found
        found += [msgspec.json.decode(line, type=Change) for line in lines]
        since = found[-1].version


def apply(state: State, changes: list[Change]) -> State:
    state = dict(state)
    for change in changes:
        if change.entry is None:
            state.pop((change.kind, change.id), None)
        else:
            assert kind_of(change.entry) == change.kind
            state[change.kind, change.id] = change.entry
    return state


@contextmanager
def following(node: httpx2.Client, since: int) -> Iterator[list[dict[str, Any]]]:
    """The lines of a followed stream as they arrive, until the end of the block."""
    lines: list[dict[str, Any]] = []
    with node.stream("GET", "/v1/link/changes", params={"since": since, "follow": "true"}) as response:

        def read() -> None:
            try:
                for line in response.iter_lines():
                    lines.append(json.loads(line))
            except (httpx2.HTTPError, httpx2.StreamError, OSError):
                pass  # the block ended and closed the stream

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        yield lines


class ConfirmationWait:
    """The time for which control waits until nodes have confirmed a change: none passes before `end`, however busy the machine is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._looks: int | None = None
        monkeypatch.setattr(publication, "time", SimpleNamespace(monotonic=self._look))

    def _look(self) -> float:
        if self._looks is None:
            return 0.0
        self._looks += 1
        return 0.0 if self._looks == 1 else math.inf  # control reads once more who has confirmed

    def end(self) -> None:
        """Let the time be over for whoever waits now."""
        self._looks = 0


class TestSnapshot:
    def test_holds_what_may_act_and_nothing_else(self, control: Running) -> None:
        tenant = make_tenant(control, "seen")
        _, state = read_snapshot(control.node())
        organization, project, key = (
            state[kind, id]
            for kind, id in (("organization", tenant.organization_id), ("project", tenant.project_id), ("key", tenant.key_id))
        )
        assert organization.id == tenant.organization_id
        assert project.id == tenant.project_id
        assert isinstance(key, KeyEntry)
        assert len(key.digest) == 32
        assert ("key", tenant.admin_key_id) not in state
        text = control.node().get("/v1/link/snapshot").text
        for hidden in ("seen", tenant.secret, tenant.admin_key, control.platform_key, control.node_key):
            assert hidden not in text

    def test_names_owners_before_what_they_own(self, control: Running) -> None:
        make_tenant(control, "ordered")
        kinds = [json.loads(line)["kind"] for line in control.node().get("/v1/link/snapshot").content.splitlines()[1:]]
        assert kinds == sorted(kinds, key=["organization", "project", "model", "deployment", "key", "signing_key"].index)


class TestChanges:
    def test_make_of_any_earlier_snapshot_the_present_one(self, fresh_control: Running) -> None:
        """A hundred random operations of every kind; from each snapshot on the way, the changes lead to the last one."""
        node, earlier = fresh_control.node(), []
        for operation in operate(fresh_control, random.Random(20261122), 100):
            if operation % 20 == 0:
                earlier.append(read_snapshot(node))
        final_version, final = read_snapshot(node)
        assert len({kind for kind, _ in final}) == 6
        assert final_version > 60
        for version, state in earlier:
            changes = read_changes(node, version)
            assert [change.version for change in changes] == list(range(version + 1, final_version + 1))
            assert apply(state, changes) == final
        assert apply({}, read_changes(node, 0)) == final

    def test_that_cannot_be_had_ask_for_a_snapshot(self, control: Running) -> None:
        node = control.node()
        version, _ = read_snapshot(node)
        refused(node.get("/v1/link/changes", params={"since": version + 1}), 410, "snapshot_needed")
        refused(node.get("/v1/link/changes", params={"since": -1}), 400, "invalid_value", "since")
        refused(node.get("/v1/link/changes"), 400, "missing_required_parameter", "since")

    def test_are_pushed_while_they_are_followed(self, control: Running, alice: TenantSetup) -> None:
        version, _ = read_snapshot(control.node())
        with following(control.node(), version) as lines:
            wait_until(lambda: lines)
            assert lines[0] == {"version": version}
            admin = control.client(alice.admin_key)
            path = f"/v1/organization/projects/{alice.project_id}/api_keys"
            made = answered(admin.post(path, json={"name": "pushed"}))
            wait_until(lambda: any(line.get("id") == made["id"] for line in lines))
            answered(admin.delete(f"{path}/{made['id']}"))
            wait_until(lambda: any(line.get("id") == made["id"] and line["entry"] is None for line in lines))
            beats = len(lines)
            wait_until(lambda: lines[-1] == {"version": version + 2} and len(lines) > beats)

    def test_that_changed_nothing_of_interest_are_not_sent(self, control: Running, alice: TenantSetup) -> None:
        version, _ = read_snapshot(control.node())
        admin = control.client(alice.admin_key)
        answered(admin.post(f"/v1/organization/projects/{alice.project_id}", json={"name": "renamed"}))
        answered(admin.post("/v1/organization/admin_api_keys", json={"name": "unseen"}))
        answered(control.operator().post("/v1/platform/models", json={"name": "draft", "endpoints": ["embeddings"]}))
        assert read_changes(control.node(), version) == []


def operate(control: Running, chance: random.Random, count: int) -> Iterator[int]:
    """`count` random operations through the API, some of which are refused; yields the number of each done."""
    operator = control.operator()
    tenants = [make_tenant(control, "first")]
    models: list[str] = []
    for number in range(count):
        tenant = chance.choice(tenants)
        admin = control.client(tenant.admin_key)
        path = f"/v1/organization/projects/{tenant.project_id}"
        model = chance.choice(models) if models else "none"
        keys = admin.get(f"{path}/api_keys").json().get("data") or [{"id": tenant.key_id}]
        key = chance.choice(keys)["id"]
        limits = {"requests_per_minute": chance.randint(1, 100)}
        match chance.randrange(16):
            case 0:
                tenants.append(make_tenant(control, f"tenant {number}", chance.choice(["EUR", "USD"])))
            case 1 | 2:
                admin.post(f"{path}/api_keys", json={"name": "k", "type": chance.choice(["live", "test"]), "models": [model]})
            case 3:
                admin.delete(f"{path}/api_keys/{key}")
            case 4:
                admin.put(f"{path}/api_keys/{key}/limits", json=limits)
            case 5:
                admin.put(f"{path}/limits", json=limits)
            case 6:
                operator.put(f"/v1/platform/organizations/{tenant.organization_id}/limits", json=limits)
            case 7 | 8:
                models.append(f"model-{number}")
                operator.post("/v1/platform/models", json={"name": models[-1], "endpoints": ["chat/completions"]})
                operator.post("/v1/platform/prices", json=price(models[-1]))
                operator.post(f"/v1/platform/models/{models[-1]}/publish")
                body = {"model": models[-1], "base_url": "http://e:1", "engine": "sim", "upstream_model": "m", "credential": "c" * 9}
                operator.post("/v1/platform/deployments", json=body)
            case 9:
                later = int(time.time()) + chance.randint(0, 1000)
                operator.post("/v1/platform/prices", json=price(model, currency=chance.choice(["EUR", "USD"]), valid_from=later))
            case 10:
                operator.post(f"/v1/platform/models/{model}", json={"share_cache": chance.choice([True, False])})
            case 11:
                deployments = answered(operator.get("/v1/platform/deployments"))["data"] or [{"id": "dep_" + "0" * 32}]
                target = f"/v1/platform/deployments/{chance.choice(deployments)['id']}"
                operator.post(*chance.choice([(target,), (f"{target}/archive",)]), json={"weight": chance.randint(0, 9)})
            case 12 if chance.random() < 0.3:
                operator.post(f"/v1/platform/models/{model}/archive")
            case 13 if chance.random() < 0.3:
                admin.post(f"{path}/archive")
            case 14:
                terms = {"discount_bp": chance.choice([0, 500, 1_500]), "valid_from": int(time.time()) + chance.randint(0, 100)}
                operator.post(f"/v1/platform/organizations/{tenant.organization_id}/price_terms", json=terms)
            case 15:
                body = price(model, currency=chance.choice(["EUR", "USD"]), tier=chance.choice(["flex", "batch", "priority"]))
                operator.post("/v1/platform/prices", json=body)
            case _:
                admin.delete(f"{path}/service_accounts/{tenant.service_account_id}")
        admin.close()
        yield number


class TestEntries:
    def test_of_a_model_carry_the_price_before_and_all_to_come(self, control: Running) -> None:
        operator, now = control.operator(), int(time.time())
        answered(operator.post("/v1/platform/models", json={"name": "carried", "endpoints": ["embeddings"]}))
        answered(operator.post("/v1/platform/prices", json=price("carried")))
        answered(operator.post("/v1/platform/models/carried/publish"))
        later = [answered(operator.post("/v1/platform/prices", json=price("carried", valid_from=now + 100 * n))) for n in (1, 2)]
        dollars = answered(operator.post("/v1/platform/prices", json=price("carried", currency="USD")))
        _, state = read_snapshot(control.node())
        model = state["model", "carried"]
        assert isinstance(model, ModelEntry)
        assert {one["id"] for one in [*later, dollars]} < {version.id for version in model.prices}
        assert len(model.prices) == 4
        assert [version.valid_from for version in model.prices] == sorted(version.valid_from for version in model.prices)

    def test_of_a_deployment_carry_its_credential_sealed(self, control: Running) -> None:
        operator = control.operator()
        answered(operator.post("/v1/platform/models", json={"name": "locked", "endpoints": ["embeddings"]}))
        body = {"model": "locked", "base_url": "http://e:1", "engine": "sim", "upstream_model": "m", "credential": "open-sesame-0123"}
        made = answered(operator.post("/v1/platform/deployments", json=body))
        _, state = read_snapshot(control.node())
        entry = state["deployment", made["id"]]
        assert isinstance(entry, DeploymentEntry)
        assert entry.deployment.credential is not None
        assert b"open-sesame" not in entry.deployment.credential
        assert control.plane.vault.unseal(entry.deployment.credential, context=made["id"]) == "open-sesame-0123"


class TestRevocation:
    def test_waits_for_the_nodes_that_are_alive(self, control: Running, alice: TenantSetup, monkeypatch: pytest.MonkeyPatch) -> None:
        admin, node, wait = control.client(alice.admin_key), control.node(), ConfirmationWait(monkeypatch)
        path = f"/v1/organization/projects/{alice.project_id}/api_keys"
        quick_id, stuck_id = NODE_ID, "node_" + "5" * 32
        stuck_node = control.node(stuck_id)
        made = answered(admin.post(path, json={"name": "short"}))
        version, _ = read_snapshot(node)

        def confirm() -> None:
            with following(control.node(), version) as lines:
                wait_until(lambda: any(line.get("id") == made["id"] for line in lines))
                node.post("/v1/link/ack", json={"node_id": quick_id, "version": version + 1}).raise_for_status()
                wait.end()

        with control.clock.set_to(control.plane.now()):  # nodes are alive for seconds
            for each, name in ((node, quick_id), (stuck_node, stuck_id)):
                each.post("/v1/link/ack", json={"node_id": name, "version": 0}).raise_for_status()
            with beside(confirm):
                deleted = answered(admin.delete(f"{path}/{made['id']}"))
        assert deleted["pending_nodes"] == [stuck_id]
        seen = {one["id"]: one for one in answered(control.operator().get("/v1/platform/nodes"))["data"]}
        assert seen[quick_id]["behind"] == 0
        assert seen[stuck_id]["behind"] == version + 1
        stuck_node.post("/v1/link/ack", json={"node_id": stuck_id, "version": version + 1}).raise_for_status()

    def test_of_a_key_twice_is_not_found(self, control: Running, alice: TenantSetup) -> None:
        admin = control.client(alice.admin_key)
        path = f"/v1/organization/projects/{alice.project_id}/api_keys"
        made = answered(admin.post(path, json={"name": "twice"}))
        answered(admin.delete(f"{path}/{made['id']}"))
        refused(admin.delete(f"{path}/{made['id']}"), 404, "not_found")

    def test_of_what_was_never_published_is_not_believed(self, control: Running) -> None:
        node = control.node()
        version, _ = read_snapshot(node)
        refused(node.post("/v1/link/ack", json={"node_id": NODE_ID, "version": version + 1}), 410, "snapshot_needed")


class TestSeveralControlProcesses:
    def test_publish_in_one_order_and_wake_each_others_followers(self, database_url: str, tmp_path: Path) -> None:
        with running(database_url, tmp_path) as one:
            tenant = make_tenant(one, "shared")
            with ExitStack() as stack:
                two = stack.enter_context(running(database_url, tmp_path))
                version, state = read_snapshot(two.node())
                lines = stack.enter_context(following(two.node(), version))
                # The second process replaced the node and platform keys by its own; tenants' keys are the database's.

                def create(control: Running) -> None:
                    client = control.client(tenant.admin_key)
                    for number in range(10):
                        path = f"/v1/organization/projects/{tenant.project_id}/api_keys"
                        answered(client.post(path, json={"name": f"key {number}"}))

                with beside(*(partial(create, control) for control in (one, two, one, two))):
                    pass
                final_version, final = read_snapshot(two.node())
                assert final_version == version + 40
                changes = read_changes(two.node(), version)
                assert [change.version for change in changes] == list(range(version + 1, version + 41))
                assert apply(state, changes) == final
                wait_until(lambda: sum("kind" in line for line in lines) == 40)
                assert [line["version"] for line in lines if "kind" in line] == list(range(version + 1, version + 41))
