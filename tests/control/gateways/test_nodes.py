"""Nodes: each gateway speaks under its own name only, and nothing waits for a node that does not exist."""

import asyncio
import json
import os
from itertools import islice

import httpx2
import pytest
import sqlalchemy as sa

from tests.control.harness import NODE_ID, PEPPER, Running, TenantSetup, answered, mint, wait_until
from tests.control.test_routes import refused
from tests.link.samples import EPOCH, exchanges, frames
from tests.patience import PATIENCE_SECONDS
from tollway.control.api.gateways.link import HEARTBEAT_SECONDS
from tollway.control.gateways import nodes, refused_epochs
from tollway.control.gateways.epochs import list_blockers
from tollway.control.identity import keys
from tollway.domain import keys as domain_keys
from tollway.domain.epochs import CLOCKS_APART_US
from tollway.domain.keys import KeyType
from tollway.domain.usage import Close, Tick
from tollway.link.joining import join
from tollway.storage.schema import api_keys
from tollway.storage.schema import nodes as node_table
from tollway.storage.schema_money import epochs

OTHER = "node_" + "0" * 31 + "6"
NODES, TOKENS = "/v1/platform/nodes", "/v1/platform/node_join_tokens"


def records(node_id: str, epoch: int = EPOCH) -> str:
    return f"/v1/link/records/{node_id}/{epoch}"


def list_epochs(control: Running) -> list[tuple[str, int]]:
    with control.plane.database.platform(write=False) as tx:
        return [(row.node_id, row.epoch) for row in tx.connection.execute(sa.select(epochs))]


def refusals(control: Running, code: str) -> float:
    lines = control.link(None).get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("tollway_control_refusals_total") and f'code="{code}"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in found)


class TestANodeIsItselfOnly:
    @pytest.mark.parametrize("what", ["watermark", "records", "acknowledgement"])
    def test_80_message_in_the_name_of_another_node_is_refused_with_an_alarm(self, fresh_control: Running, what: str) -> None:
        fresh_control.node(OTHER)
        node = fresh_control.node()
        answer = {
            "watermark": lambda: node.get(records(OTHER)),
            "records": lambda: node.put(f"{records(OTHER)}/1", content=b"".join(frames(exchanges([1]), node_id=OTHER))),
            "acknowledgement": lambda: node.post("/v1/link/ack", json={"node_id": OTHER, "version": 0}),
        }[what]()
        refused(answer, 403, "node_mismatch")
        wait_until(lambda: any(line["event"] == "node_mismatch" for line in fresh_control.lines))  # it is written after the answer
        (alarm,) = (line for line in fresh_control.lines if line["event"] == "node_mismatch")
        assert NODE_ID in str(alarm["detail"]) and OTHER in str(alarm["detail"])
        assert refusals(fresh_control, "node_mismatch") == 1
        assert list_epochs(fresh_control) == []
        (seen,) = (one for one in answered(fresh_control.operator().get(NODES))["data"] if one["id"] == OTHER)
        assert seen["seen_at"] is None

    def test_80_acknowledgement_of_a_node_that_does_not_exist_leaves_nothing_to_wait_for(
        self, control: Running, alice: TenantSetup
    ) -> None:
        for number in range(20):
            ghost = f"node_{number:032x}"[:37]
            if ghost != NODE_ID:
                refused(control.node().post("/v1/link/ack", json={"node_id": ghost, "version": 0}), 403, "node_mismatch")
        path = f"/v1/organization/projects/{alice.project_id}/api_keys"
        made = answered(control.client(alice.admin_key).post(path, json={"name": "leaked"}))
        gone = answered(control.client(alice.admin_key).delete(f"{path}/{made['id']}"))
        assert set(gone["pending_nodes"]) <= {NODE_ID}

    def test_80_name_that_is_not_an_id_is_not_repeated_in_the_log(self, fresh_control: Running) -> None:
        refused(fresh_control.node().put("/v1/link/records/seen-by-nobody/1/1", content=b""), 403, "node_mismatch")
        assert "seen-by-nobody" not in json.dumps(fresh_control.lines, default=str)

    def test_80_request_without_records_leaves_no_epoch(self, fresh_control: Running) -> None:
        node = fresh_control.node()
        assert answered(node.put(f"{records(NODE_ID)}/1", content=b"")) == {"next_seq": 1}
        assert answered(node.put(f"{records(NODE_ID)}/7", content=b"")) == {"next_seq": 1}
        refused(node.put(f"{records(NODE_ID)}/1", content=b"\0" * 8), 400, "records_refused")
        assert node.put(f"{records(NODE_ID)}/2", content=frames(exchanges([1]))[0]).status_code == 409
        assert list_epochs(fresh_control) == []
        assert answered(node.put(f"{records(NODE_ID)}/1", content=b"".join(frames([Tick(at=EPOCH)])))) == {"next_seq": 2}
        assert list_epochs(fresh_control) == [(NODE_ID, EPOCH)]

    def test_operator_key_is_no_key_of_a_node(self, control: Running) -> None:
        refused(control.link(control.platform_key).get(records(NODE_ID)), 403, "insufficient_scope")
        refused(control.client(control.node_key).get(NODES), 403, "insufficient_scope")


class TestKeys:
    def test_are_shown_once_and_stored_as_digests(self, fresh_control: Running) -> None:
        made = answered(fresh_control.operator().post(NODES, json={"name": "rack 7"}))
        assert (made["name"], made["state"], made["seen_at"]) == ("rack 7", "active", None)
        secret = made["key"]["value"]
        assert domain_keys.find_type(secret) is KeyType.NODE
        assert secret not in fresh_control.operator().get(NODES).text
        assert secret not in json.dumps(fresh_control.lines, default=str)
        with fresh_control.plane.database.platform(write=False) as tx:
            (row,) = tx.connection.execute(sa.select(api_keys).where(api_keys.c.node_id == made["id"])).all()
        assert row.digest == domain_keys.digest(PEPPER, secret.encode())
        assert answered(fresh_control.link(secret).get(records(made["id"]))) == {"next_seq": 1}

    def test_new_key_takes_the_place_of_the_one_before_at_once_or_after_a_grace(self, fresh_control: Running) -> None:
        operator = fresh_control.operator()
        made = answered(operator.post(NODES, json={"name": "rack 7"}))
        path, first = f"{NODES}/{made['id']}", made["key"]["value"]
        second = answered(operator.post(f"{path}/rotate", json={"grace_seconds": 3600}))["value"]
        for secret in (first, second):
            assert fresh_control.link(secret).get(records(made["id"])).status_code == 200
        third = answered(operator.post(f"{path}/rotate", json={"grace_seconds": 3600}))["value"]
        statuses = [fresh_control.link(secret).get(records(made["id"])).status_code for secret in (first, second, third)]
        assert statuses == [401, 200, 200], "two keys are valid at most"
        fourth = answered(operator.post(f"{path}/rotate", json={"grace_seconds": 0}))["value"]
        statuses = [fresh_control.link(secret).get(records(made["id"])).status_code for secret in (second, third, fourth)]
        assert statuses == [401, 401, 200]

    def test_node_of_the_settings_keeps_its_id_when_its_key_changes(self, fresh_control: Running) -> None:
        pepper, fresh = keys.Pepper(1, PEPPER), mint(KeyType.NODE)
        plane = fresh_control.plane
        for _ in range(2):
            with plane.database.platform() as tx:
                assert nodes.seed_node(tx, NODE_ID, fresh, key_id=plane.new_id("key"), pepper=pepper, now=plane.now())
        assert fresh_control.node().get(records(NODE_ID)).status_code == 401
        assert fresh_control.link(fresh).get(records(NODE_ID)).status_code == 200
        with plane.database.platform() as tx:
            again = nodes.seed_node(tx, NODE_ID, fresh_control.node_key, key_id=plane.new_id("key"), pepper=pepper, now=plane.now())
        assert not again, "nothing makes a revoked key valid again"
        assert fresh_control.node().get(records(NODE_ID)).status_code == 401

    def test_id_that_is_registered_or_malformed_is_refused(self, fresh_control: Running) -> None:
        operator = fresh_control.operator()
        refused(operator.post(NODES, json={"name": "copy", "id": NODE_ID}), 409, "conflict")
        refused(operator.post(NODES, json={"name": "copy", "id": "gw-1"}), 400, "invalid_value", "id")
        refused(operator.post(NODES, json={"name": nodes.SEEDED}), 400, "invalid_value", "name")
        refused(operator.post(f"{NODES}/{OTHER}/rotate", json={}), 404, "not_found")
        refused(operator.delete(f"{NODES}/{OTHER}"), 404, "not_found")


class TestRevocation:
    def test_revoked_node_is_refused_and_its_stream_ends(self, fresh_control: Running) -> None:
        client = fresh_control.node(OTHER)
        with client.stream("GET", "/v1/link/changes", params={"since": 0, "follow": "true"}) as response:
            lines = response.iter_lines()
            next(lines)
            answered(fresh_control.operator().delete(f"{NODES}/{OTHER}"))
            heartbeats = int(PATIENCE_SECONDS / HEARTBEAT_SECONDS)
            assert len(list(islice(lines, heartbeats))) < heartbeats, "the stream ends with its next heartbeat"
        refused(fresh_control.node(OTHER).get("/v1/link/changes?since=0"), 401, "invalid_api_key")
        refused(fresh_control.operator().delete(f"{NODES}/{OTHER}"), 409, "conflict")

    def test_revoked_node_is_not_waited_for(self, fresh_control: Running) -> None:
        operator = fresh_control.operator()
        stuck = {"node_" + str(number) * 32 for number in range(6, 9)}
        made = answered(operator.post("/v1/platform/organizations", json={"name": "alice", "currency": "EUR"}))
        admin = fresh_control.client(made["admin_api_key"]["value"])
        project = answered(admin.post("/v1/organization/projects", json={"name": "one"}))
        path = f"/v1/organization/projects/{project['id']}/api_keys"
        key_ids = [answered(admin.post(path, json={"name": str(number)}))["id"] for number in range(2)]
        with fresh_control.clock.set_to(fresh_control.plane.now()):  # nodes are alive for seconds
            for node_id in sorted(stuck):
                fresh_control.node(node_id).post("/v1/link/ack", json={"node_id": node_id, "version": 0}).raise_for_status()
            assert set(answered(admin.delete(f"{path}/{key_ids[0]}"))["pending_nodes"]) == stuck
            for node_id in sorted(stuck):
                answered(operator.delete(f"{NODES}/{node_id}"))
            assert answered(admin.delete(f"{path}/{key_ids[1]}"))["pending_nodes"] == []

    def test_unfinished_epochs_of_a_revoked_node_are_named_and_block_the_close(self, fresh_control: Running) -> None:
        operator, node = fresh_control.operator(), fresh_control.node(OTHER)
        body = frames([Tick(at=EPOCH), Tick(at=EPOCH + 1), Close(at=EPOCH + 2)], node_id=OTHER)
        answered(node.put(f"{records(OTHER)}/1", content=body[0]))
        gone = answered(operator.delete(f"{NODES}/{OTHER}"))
        assert gone["unfinished_epochs"] == [EPOCH]
        fresh = answered(operator.post(f"{NODES}/{OTHER}/rotate", json={}))["value"]
        (again,) = (one for one in answered(operator.get(NODES))["data"] if one["id"] == OTHER)
        assert again["state"] == "active"
        answered(fresh_control.link(fresh).put(f"{records(OTHER)}/2", content=b"".join(body[1:])))
        assert answered(operator.delete(f"{NODES}/{OTHER}"))["unfinished_epochs"] == []

    def test_run_that_never_reported_is_named_and_waits_for_two_persons_to_declare_it_lost(self, fresh_control: Running) -> None:
        fresh_control.node(OTHER).post("/v1/link/ack", json={"node_id": OTHER, "version": 0}).raise_for_status()
        operator = fresh_control.operator()
        (run,) = answered(operator.delete(f"{NODES}/{OTHER}"))["unfinished_epochs"]
        assert "tollway_control_epochs_lost 0.0" in fresh_control.link(None).get("/metrics").text
        (asked,) = answered(operator.post(f"{NODES}/{OTHER}/lost", json={"reason": "it never came up", "epoch": run}))["data"]
        person = fresh_control.client(fresh_control.second_platform_key)
        assert answered(person.post(f"/v1/platform/lost_requests/{asked['id']}/approve"))["state"] == "declared"
        assert "tollway_control_epochs_lost 1.0" in fresh_control.link(None).get("/metrics").text
        refused(operator.post(f"{NODES}/{OTHER}/lost", json={"reason": "r"}), 409, "conflict")


class TestJoining:
    def create(self, control: Running, **fields: object) -> dict[str, str]:
        made: dict[str, str] = answered(control.operator().post(TOKENS, json={"name": "rack 8", **fields}))
        return made

    def test_gateway_registers_its_own_key_once_and_may_repeat_itself(self, fresh_control: Running) -> None:
        token, secret = self.create(fresh_control), mint(KeyType.NODE)
        assert domain_keys.is_join_token(token["value"])
        client = fresh_control.link(token["value"])
        body = {"node_id": OTHER, "key": secret}
        for _ in range(2):
            assert answered(client.post("/v1/link/join", json=body)) == {"node_id": OTHER, "name": "rack 8"}
        assert answered(fresh_control.link(secret).get(records(OTHER))) == {"next_seq": 1}
        refused(client.post("/v1/link/join", json={**body, "key": mint(KeyType.NODE)}), 401, "invalid_api_key")
        refused(client.post("/v1/link/join", json={**body, "node_id": "node_" + "8" * 32}), 401, "invalid_api_key")
        assert [one["id"] for one in answered(fresh_control.operator().get(NODES))["data"]].count(OTHER) == 1
        assert answered(fresh_control.operator().get(TOKENS))["data"] == []

    def test_80_token_cannot_take_the_name_of_a_node_that_exists(self, fresh_control: Running) -> None:
        token = self.create(fresh_control)
        body = {"node_id": NODE_ID, "key": mint(KeyType.NODE)}
        refused(fresh_control.link(token["value"]).post("/v1/link/join", json=body), 403, "node_mismatch")
        wait_until(lambda: any(line["event"] == "node_mismatch" for line in fresh_control.lines))
        assert len(answered(fresh_control.operator().get(TOKENS))["data"]) == 1, "the token is not used up"

    def test_token_that_expired_was_removed_or_is_malformed_is_refused(self, fresh_control: Running) -> None:
        operator, body = fresh_control.operator(), {"node_id": OTHER, "key": mint(KeyType.NODE)}
        removed, expired, good = (self.create(fresh_control) for _ in range(3))
        answered(operator.delete(f"{TOKENS}/{removed['id']}"))
        refused(operator.delete(f"{TOKENS}/{removed['id']}"), 404, "not_found")
        with fresh_control.plane.database.platform() as tx:
            tx.connection.execute(sa.text("UPDATE join_tokens SET expires_at = created_at WHERE id = :id"), {"id": expired["id"]})
        made_up = domain_keys.new_join_token(os.urandom(domain_keys.RANDOM_BYTES)).secret
        mistyped = good["value"][:-1] + ("y" if good["value"].endswith("x") else "x")
        for secret in (removed["value"], expired["value"], made_up, mistyped, fresh_control.node_key):
            refused(fresh_control.link(secret).post("/v1/link/join", json=body), 401, "invalid_api_key")
        refused(fresh_control.link(good["value"]).get(records(OTHER)), 401, "invalid_api_key")
        client = fresh_control.link(good["value"])
        refused(client.post("/v1/link/join", json={**body, "node_id": "gw-1"}), 400, "invalid_value", "node_id")
        refused(client.post("/v1/link/join", json={**body, "key": mint(KeyType.ADMIN)}), 400, "invalid_value", "key")
        refused(client.post("/v1/link/join", json={**body, "key": fresh_control.node_key}), 400, "invalid_value", "key")
        with fresh_control.plane.database.platform(write=False) as tx:
            assert tx.connection.execute(sa.select(node_table.c.id)).scalars().all() == [NODE_ID]

    def test_gateway_joins_by_itself_once_control_answers(self, fresh_control: Running) -> None:
        token, secret, joined, alarms = self.create(fresh_control), mint(KeyType.NODE), [], []
        url = fresh_control.link_url

        async def run() -> None:
            await join(
                url,
                token=token["value"],
                node_id=OTHER,
                node_key=secret,
                alarm=lambda event, _: alarms.append(event),
                on_joined=lambda: joined.append(OTHER),
            )

        asyncio.run(run())
        assert joined == [OTHER]
        wait_until(lambda: fresh_control.link(secret).get(records(OTHER)).status_code == 200)
        assert alarms == []


class TestRecords:
    def test_81_epoch_from_the_future_or_before_its_node_is_refused_with_an_alarm(self, fresh_control: Running) -> None:
        now = fresh_control.plane.now()
        node_id, node = self.create(fresh_control)
        impossible = (1, EPOCH - 10**12, now + 2 * 3600 * 10**6, 2**62)
        for epoch in impossible:
            refused(self.put(node, node_id, epoch), 403, "epoch_refused")
        wait_until(lambda: sum(line["event"] == "epoch_refused" for line in fresh_control.lines) == 4)
        assert list_epochs(fresh_control) == []
        assert self.states(fresh_control) == dict.fromkeys(impossible, "refused")
        assert answered(self.put(node, node_id, now)) == {"next_seq": 2}

    def test_81_tick_from_the_future_is_ingested_with_an_alarm_beyond_what_clocks_may_be_apart(self, fresh_control: Running) -> None:
        node, days, now = fresh_control.node(OTHER), 40 * 86_400, fresh_control.plane.now()
        body = frames([Tick(at=now + CLOCKS_APART_US), Tick(at=now + days * 1_000_000)], node_id=OTHER, epoch=now)
        assert answered(node.put(f"{records(OTHER, now)}/1", content=body[0])) == {"next_seq": 2}
        assert not any(line["event"] == "node_clock_ahead" for line in fresh_control.lines), "clocks may be so far apart"
        assert answered(node.put(f"{records(OTHER, now)}/2", content=body[1])) == {"next_seq": 3}
        (alarm,) = (line for line in fresh_control.lines if line["event"] == "node_clock_ahead")
        assert (alarm["node_id"], alarm["epoch"]) == (OTHER, now)
        assert days - CLOCKS_APART_US // 1_000_000 <= int(str(alarm["seconds"])) <= days

    def test_81_refused_epoch_is_ingested_when_the_clocks_agree(self, fresh_control: Running) -> None:
        node_id, node = self.create(fresh_control)
        ahead = fresh_control.plane.now() + 86_400 * 10**6
        refused(self.put(node, node_id, ahead), 403, "epoch_refused")
        blocked = self.list_blockers(fresh_control)
        assert (node_id, ahead, "epoch_refused") in blocked
        with fresh_control.clock.set_to(ahead):
            assert answered(self.put(node, node_id, ahead)) == {"next_seq": 2}
        assert self.states(fresh_control) == {ahead: "open"}
        assert "epoch_refused" not in {kind for _, _, kind in self.list_blockers(fresh_control)}
        assert answered(self.put(node, node_id, ahead)) == {"next_seq": 2}, "an epoch that is known goes on, whatever the clock says now"

    def test_81_refused_epoch_is_ingested_when_an_operator_accepts_it(self, fresh_control: Running) -> None:
        node_id, node = self.create(fresh_control)
        epoch, operator = fresh_control.plane.now() + 10**14, fresh_control.operator()
        path = f"{NODES}/{node_id}/epochs/{epoch}/accept"
        refused(operator.post(path, json={"reason": "its clock was wrong"}), 404, "not_found")
        refused(self.put(node, node_id, epoch), 403, "epoch_refused")
        refused(operator.post(path, json={}), 400, "missing_required_parameter", "reason")
        accepted = answered(operator.post(path, json={"reason": "its clock was wrong"}))
        assert (accepted["state"], accepted["refused_because"]) == ("accepted", "future")
        assert answered(operator.post(path, json={"reason": "again"})) == accepted
        assert answered(self.put(node, node_id, epoch)) == {"next_seq": 2}
        assert self.states(fresh_control) == {epoch: "open"}

    def test_81_refused_epoch_can_be_declared_lost_by_two_persons(self, fresh_control: Running) -> None:
        node_id, node = self.create(fresh_control)
        epoch = fresh_control.plane.now() + 10**14
        refused(self.put(node, node_id, epoch), 403, "epoch_refused")
        body = {"reason": "its disk is gone", "epoch": epoch}
        (asked,) = answered(fresh_control.operator().post(f"{NODES}/{node_id}/lost", json=body))["data"]
        person = fresh_control.client(fresh_control.second_platform_key)
        assert answered(person.post(f"/v1/platform/lost_requests/{asked['id']}/approve"))["state"] == "declared"
        assert self.states(fresh_control) == {}
        assert "epoch_refused" not in {kind for _, _, kind in self.list_blockers(fresh_control)}
        refused(self.put(node, node_id, epoch), 403, "epoch_refused")

    def test_81_refused_epochs_of_a_node_are_stored_up_to_a_bound(self, fresh_control: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(refused_epochs, "REFUSED_PER_NODE_MAX", 2)
        node_id, node = self.create(fresh_control)
        ahead = fresh_control.plane.now() + 10**14
        for epoch in (ahead, ahead + 1, ahead + 2):
            refused(self.put(node, node_id, epoch), 403, "epoch_refused")
        assert list(self.states(fresh_control)) == [ahead, ahead + 1]
        with fresh_control.clock.set_to(ahead):
            assert answered(self.put(node, node_id, ahead)) == {"next_seq": 2}
        refused(self.put(node, node_id, ahead + 2), 403, "epoch_refused")
        assert self.states(fresh_control) == {ahead + 1: "refused", ahead + 2: "refused", ahead: "open"}

    def test_refused_epoch_that_is_declared_lost_leaves_its_place_to_another(
        self, fresh_control: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(refused_epochs, "REFUSED_PER_NODE_MAX", 1)
        node_id, node = self.create(fresh_control)
        ahead = fresh_control.plane.now() + 10**14
        refused(self.put(node, node_id, ahead), 403, "epoch_refused")
        (asked,) = answered(fresh_control.operator().post(f"{NODES}/{node_id}/lost", json={"reason": "gone", "epoch": ahead}))["data"]
        answered(fresh_control.client(fresh_control.second_platform_key).post(f"/v1/platform/lost_requests/{asked['id']}/approve"))
        refused(self.put(node, node_id, ahead + 1), 403, "epoch_refused")
        assert self.states(fresh_control) == {ahead + 1: "refused"}
        assert (node_id, ahead + 1, "epoch_refused") in self.list_blockers(fresh_control)

    @staticmethod
    def create(control: Running) -> tuple[str, httpx2.Client]:
        made = answered(control.operator().post(NODES, json={"name": "rack 7"}))
        return made["id"], control.link(made["key"]["value"])

    @staticmethod
    def put(node: httpx2.Client, node_id: str, epoch: int) -> httpx2.Response:
        body = frames([Tick(at=epoch)], node_id=node_id, epoch=epoch)
        return node.put(f"{records(node_id, epoch)}/1", content=b"".join(body))

    @staticmethod
    def states(control: Running) -> dict[int, str]:
        return {each["epoch"]: each["state"] for each in answered(control.operator().get("/v1/platform/epochs"))["data"]}

    @staticmethod
    def list_blockers(control: Running) -> list[tuple[str, int | None, str]]:
        with control.plane.database.platform(write=False) as tx:
            return [(each.node_id, each.epoch, str(each.kind)) for each in list_blockers(tx, 0, EPOCH)]
