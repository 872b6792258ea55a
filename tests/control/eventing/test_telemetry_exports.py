"""Telemetry exports: a receiver gets the records of its organization and of no other, at least once, whatever fails in between."""

import asyncio
import ipaddress
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.collectors import Collected, http_collector, read_attributes
from tests.control.eventing.receivers import Receiver, receiving
from tests.control.eventing.test_sinks import Happening
from tests.control.harness import Running, TenantSetup, answered, running, wait_until
from tests.control.metering.test_collect import take
from tests.control.test_routes import refused
from tests.link.samples import KEY, ORGANIZATION, OTHER_NODE, OTHER_ORGANIZATION, OTHER_PRICE, PROJECT, exchanges, frames
from tests.patience import PATIENCE_SECONDS
from tests.storage.databases import SqliteTemplate
from tollway.cli.app import run
from tollway.control.auditing import audit
from tollway.control.auditing.audit import AuditedOperation
from tollway.control.eventing import export_delivery, otlp, telemetry_exports
from tollway.control.eventing.export_delivery import Exporter
from tollway.control.eventing.telemetry_exports import ExportChanges
from tollway.control.jobs import Turn
from tollway.domain import ids
from tollway.domain.audit import Actor, ActorKind
from tollway.domain.faults import Fault
from tollway.domain.networks import Network
from tollway.domain.pages import PageWindow
from tollway.domain.telemetry_exports import EXPORTS_MAX, ExportFormat, Signal, TelemetryExport, read_headers
from tollway.domain.webhooks import GIVEN_UP_SECONDS, DisabledReason
from tollway.storage import outbox, schema_events, usage_batches
from tollway.storage.database import Database
from tollway.storage.outbox import EventFilter
from tollway.storage.record_archive import Archive
from tollway.storage.vault import LocalVault

LOOPBACK: tuple[Network, ...] = (ipaddress.ip_network("127.0.0.0/8"),)
VAULT = LocalVault(bytes(range(32)))
TOKEN = {"Authorization": "Bearer not-in-any-row"}
SECOND = 1_000_000
ALL_OF = {ExportFormat.OTLP: (Signal.TRACES, Signal.METRICS), ExportFormat.JSON: (Signal.USAGE, Signal.AUDIT)}


@dataclass(slots=True)
class Exporting:
    """A database in which things happen, and exports of it by a process whose clock the test sets."""

    happening: Happening
    networks: tuple[Network, ...] = LOOPBACK

    def exporter(self) -> Exporter:
        happening = self.happening
        operation = AuditedOperation(event="telemetry_export.disabled", operation="test", actor=Actor(kind=ActorKind.JOB, id="test"))
        return Exporter(
            database=happening.database,
            recorded=happening.database.recording(audit.record_changes(operation, new_id=happening.new_id, now=lambda: happening.at)),
            open_vault=lambda _organization: VAULT,
            networks=self.networks,
            now=lambda: happening.at,
            random=lambda: 0.5,
            log=happening.lines.append,
        )

    def run(self) -> None:
        """Send until nothing is left, or what is left has failed."""
        asyncio.run(self.exporter().run(Turn(self.happening.at, lambda: False)))

    def add(self, url: str, format: ExportFormat, signals: Sequence[Signal] = (), organization_id: str = ORGANIZATION) -> str:
        """Create an export with a token; return its id."""
        id = self.happening.new_id(ids.TELEMETRY_EXPORT)
        headers = telemetry_exports.seal_headers(id, TOKEN, VAULT)
        made = TelemetryExport(
            id=id,
            organization_id=organization_id,
            name="test",
            url=url,
            format=format,
            signals=tuple(signals) or ALL_OF[format],
            header_names=headers.names,
            sealed=headers.sealed,
            created_at=self.happening.at,
            updated_at=self.happening.at,
        )
        with self.happening.database.tenant(organization_id) as tx:
            telemetry_exports.create_export(tx, made)
        return id

    def find(self, export_id: str, organization_id: str = ORGANIZATION) -> TelemetryExport:
        with self.happening.database.tenant(organization_id, write=False) as tx:
            return telemetry_exports.get_export(tx, export_id)

    def change(self, export_id: str, **changes: Any) -> TelemetryExport:
        with self.happening.database.tenant(ORGANIZATION) as tx:
            return telemetry_exports.update_export(tx, export_id, ExportChanges(**changes), self.happening.at)


@pytest.fixture
def exporting(database: Database, archive: Archive) -> Exporting:
    return Exporting(Happening(database, archive))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture
def collector() -> Iterator[Collected]:
    with http_collector() as found:
        yield found


@pytest.fixture
def others_collector() -> Iterator[Collected]:
    with http_collector() as found:
        yield found


def ids_of(receiver: Receiver, kind: str, begin: int = 0) -> list[str]:
    """Ids of the records of one kind that a receiver of JSON was sent, from a POST on."""
    return [each["id"] for _, body in receiver.sent[begin:] for each in msgspec.json.decode(body) if each["object"] == kind]


def test_collector_gets_spans_and_sums_of_its_organization_and_nothing_of_others(
    exporting: Exporting, collector: Collected, others_collector: Collected
) -> None:
    happening = exporting.happening
    happening.use(2)
    exporting.add(collector.url, ExportFormat.OTLP)
    foreign = exporting.add(others_collector.url, ExportFormat.OTLP, organization_id=OTHER_ORGANIZATION)
    happening.at += SECOND
    exporting.run()
    assert collector.requests == [] == others_collector.requests, "it begins with what happens next"
    used = happening.use(5)
    others = frames(exchanges(range(2_001, 2_003), organization_id=OTHER_ORGANIZATION, price_version=OTHER_PRICE.id), OTHER_NODE)
    take(happening.database, happening.archive, others, first_seq=1, node_id=OTHER_NODE)
    happening.at += SECOND
    exporting.run()
    exporting.run()

    assert collector.headers["authorization"] == TOKEN["Authorization"] and len(collector.requests) == 2, "each record once"
    assert len(others_collector.spans) == 2 and exporting.find(foreign, OTHER_ORGANIZATION).succeeded_at == happening.at
    spans = [(span, read_attributes(span.attributes)) for service, span in collector.spans if service == "tollway"]
    assert [each["tollway.request.id"] for _, each in spans] == used
    span, seen = spans[0]
    assert span.name == "chat echo" and seen["gen_ai.operation.name"] == "chat" and seen["tollway.project.id"] == PROJECT
    assert (seen["gen_ai.usage.input_tokens"], seen["tollway.key.id"], seen["tollway.outcome"]) == (120, KEY, "completed")
    assert span.end_time_unix_nano > span.start_time_unix_nano and seen["tollway.cost_pico"] > 0 and len(span.trace_id) == 16
    sums = {metric.name: metric.sum for _, metric in collector.metrics}
    (point,) = sums["tollway.requests"].data_points
    assert point.as_int == 3 and sums["tollway.requests"].is_monotonic
    assert point.time_unix_nano == happening.at * 1000 and point.start_time_unix_nano == (happening.at - 2 * SECOND) * 1000
    costs = sum(each.as_int for each in sums["tollway.cost_pico"].data_points)
    assert costs == sum(each["tollway.cost_pico"] for _, each in spans)
    for request in collector.requests:
        assert b"http" not in request.replace(b"http.", b"") and OTHER_ORGANIZATION.encode() not in request


def test_a_cost_above_the_integers_of_a_message_is_sent_as_a_double() -> None:
    metric = otlp._make_sum("tollway.cost_pico", "p{currency}", {(("tollway.currency", "IDR"),): otlp.INTEGER_MAX + 1}, 0, 1)
    assert metric.sum.data_points[0].as_double == 2.0**63
    assert otlp._attribute("tollway.cost_pico", otlp.INTEGER_MAX + 1).value.double_value == 2.0**63
    assert otlp._attribute("tollway.cost_pico", otlp.INTEGER_MAX).value.int_value == 2**63 - 1


def test_receiver_of_json_gets_usage_and_audit_records_once_and_in_order_after_a_failure(exporting: Exporting, receiver: Receiver) -> None:
    happening = exporting.happening
    id = exporting.add(receiver.url, ExportFormat.JSON)
    used = happening.use(3)
    happening.audit()
    happening.audit(OTHER_ORGANIZATION)
    happening.audit(None)
    receiver.answer = lambda _records: 503
    exporting.run()
    failed = exporting.find(id)
    assert (failed.last_error, failed.failures, failed.succeeded_at) == ("status 503", 1, None)
    assert failed.failing_since == happening.at and failed.waiting_since is not None and failed.paused_until > happening.at
    exporting.run()
    assert len(receiver.sent) == 1, "it is paused"

    receiver.answer = lambda _records: 204
    happening.at += 60 * SECOND
    used += happening.use(4)
    exporting.run()  # another process, as the first one was killed
    assert ids_of(receiver, "usage_event", 1) == used and len(ids_of(receiver, "audit_record", 1)) == 1
    after = exporting.find(id)
    assert (after.last_error, after.failures, after.waiting_since, after.succeeded_at) == (None, 0, None, happening.at)
    first, second = receiver.sent[0][0], receiver.sent[1][0]
    assert first["authorization"] == TOKEN["Authorization"] and first["idempotency-key"] == second["idempotency-key"]
    with happening.database.platform() as tx:
        usage_batches.remove(tx, 0)
        assert usage_batches.find_next(tx, 0) is None, "what every follower has got is not kept"


def test_posts_are_bounded_and_a_receiver_that_takes_less_gets_less(
    exporting: Exporting, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_delivery, "POST_BYTES_MIN", 1)
    id = exporting.add(receiver.url, ExportFormat.JSON, [Signal.USAGE])
    used = exporting.happening.use(12)
    receiver.answer = lambda records: 413 if len(records) > 3 else 204
    exporting.run()
    sizes = [len(msgspec.json.decode(body)) for _, body in receiver.sent]
    taken = [size for size in sizes if size <= 3]
    assert sum(taken) == len(used) and sizes[0] == 12 and exporting.find(id).failures == 0


def test_receiver_that_fails_for_three_days_is_disabled_and_its_webhooks_are_told(exporting: Exporting, receiver: Receiver) -> None:
    happening = exporting.happening
    id = exporting.add(receiver.url, ExportFormat.JSON)
    receiver.answer = lambda _records: 500
    happening.use(1)
    exporting.run()
    happening.at += (GIVEN_UP_SECONDS + 1) * SECOND
    exporting.run()
    ended = exporting.find(id)
    assert (ended.disabled_reason, ended.usage_position, ended.audit_position) == (DisabledReason.FAILING, None, None)
    with happening.database.platform(write=False) as tx:
        assert not usage_batches.is_followed(tx), "nothing is kept for it any more"
        (told,) = outbox.list_events(tx, PageWindow(limit=9), EventFilter(()), organization_id=ORGANIZATION).items
        assert (told.type, told.data) == ("telemetry_export.disabled", {"id": id, "reason": "failing"})
    assert [line["event"] for line in happening.lines] == ["telemetry_export_disabled"]

    happening.use(2)
    begun = exporting.change(id, enabled=True)
    assert begun.disabled_at is None and begun.failing_since is None
    receiver.answer = lambda _records: 204
    used = happening.use(3)
    sent = len(receiver.sent)
    exporting.run()
    assert ids_of(receiver, "usage_event", sent) == used, "from now on"
    receiver.answer = lambda _records: 410
    happening.use(4)
    exporting.run()
    assert exporting.find(id).disabled_reason is DisabledReason.GONE


def test_one_receiver_holds_up_no_other_and_has_a_deadline(
    exporting: Exporting, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_has_got_it = threading.Event()
    receiver.answer = lambda _records: 500 if other_has_got_it.wait(PATIENCE_SECONDS) else 501

    def take(_records: object) -> int:
        other_has_got_it.set()
        return 204

    with receiving(take) as other:
        slow = exporting.add(receiver.url, ExportFormat.JSON, [Signal.USAGE])
        private = exporting.add("https://10.0.0.1/otlp", ExportFormat.OTLP)
        exporting.add(other.url, ExportFormat.JSON, [Signal.USAGE])
        exporting.happening.use(1)
        exporting.run()
    assert exporting.find(slow).last_error == "status 500", "it waited for the other one, not the reverse"
    assert (exporting.find(private).last_error or "").startswith("address refused: its host is not public")
    monkeypatch.setattr(export_delivery, "SEND_SECONDS_MAX", 0.0)
    exporting.happening.at += 60 * SECOND
    exporting.run()
    assert exporting.find(slow).last_error == "timeout"


def test_an_export_that_meets_a_defect_says_so_and_holds_up_no_other(
    exporting: Exporting, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise ValueError("planted")

    monkeypatch.setattr(export_delivery, "_encode_traces", fail)
    broken = exporting.add(receiver.url, ExportFormat.OTLP, [Signal.TRACES])
    exporting.add(receiver.url, ExportFormat.JSON, [Signal.USAGE])
    used = exporting.happening.use(1)
    exporting.run()
    assert ids_of(receiver, "usage_event", 0) == used
    found = exporting.find(broken)
    assert (found.last_error, found.failures) == ("not sent: a defect", 1) and found.waiting_since is not None
    assert [line["event"] for line in exporting.happening.lines] == ["telemetry_export_interrupted"]


def test_a_receiver_that_is_gone_does_not_end_an_export_that_was_sent_elsewhere_meanwhile(exporting: Exporting, receiver: Receiver) -> None:
    id = exporting.add(receiver.url, ExportFormat.JSON, [Signal.USAGE])

    def move_away(_records: object) -> int:
        exporting.change(id, url="https://elsewhere.example/events", headers=telemetry_exports.seal_headers(id, TOKEN, VAULT))
        return 410

    receiver.answer = move_away
    exporting.happening.use(1)
    exporting.run()
    assert exporting.find(id).disabled_at is None


def test_headers_are_sealed_and_do_not_follow_to_another_address(exporting: Exporting) -> None:
    id = exporting.add("https://example.com/a", ExportFormat.JSON)
    with pytest.raises(Fault) as raised:
        exporting.change(id, url="https://example.org/a")
    assert raised.value.param == "headers"
    moved = exporting.change(id, url="https://example.org/a", headers=telemetry_exports.seal_headers(id, {}, VAULT))
    assert moved.header_names == () and telemetry_exports.open_headers(moved, VAULT) == {}
    kept = exporting.change(id, name="another", headers=telemetry_exports.seal_headers(id, TOKEN, VAULT))
    assert kept.header_names == ("authorization",) and b"not-in-any-row" not in kept.sealed


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"Host": "example.com"}, "host cannot be set"),
        ({"a b": "c"}, "a name has characters"),
        ({"a": "b\r\nc: d"}, "the value of a must be"),
        ({"a": ""}, "the value of a must be"),
        ({"a": "x", "A": "y"}, "a is given twice"),
        ({f"a{number}": "b" for number in range(17)}, "at most 16"),
    ],
)
def test_headers_that_cannot_be_are_refused_without_their_values(headers: Mapping[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_headers(headers)


# ---- By the API and the command line ------------------------------------------------------------------------------------

PATH = "/v1/organization/telemetry_exports"


@pytest.fixture(scope="module")
def control(sqlite_template: SqliteTemplate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A control plane whose exports may reach loopback."""
    directory = tmp_path_factory.mktemp("exports")
    with sqlite_template.copied(directory) as url, running(url, directory / "archive", webhook_networks=LOOPBACK) as started:
        yield started


def test_tenant_has_its_audit_trail_sent_by_commands(
    control: Running, alice: TenantSetup, bob: TenantSetup, receiver: Receiver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--control-url", control.url, "--key", alice.admin_key, "-o", "json"]
    token = tmp_path / "token"
    token.write_text("Bearer not-in-any-row\n")
    options = ["--encoding", "json", "--signal", "audit", "--header", f"Authorization=@{token}"]

    def say(*arguments: str) -> dict[str, Any]:
        assert run(["telemetry", *arguments, *common]) == 0
        said: dict[str, Any] = json.loads(capsys.readouterr().out)
        return said

    made = say("create", receiver.url, *options)
    assert (made["header_names"], made["enabled"], made["last_success_at"]) == (["authorization"], True, None)
    assert say("test", made["id"])["status_code"] == 204
    answered(control.client(bob.admin_key).post("/v1/organization/projects", json={"name": "of bob"}))
    answered(control.client(alice.admin_key).post("/v1/organization/projects", json={"name": "of alice"}))
    wait_until(lambda: [each for _, body in receiver.sent for each in json.loads(body) if each.get("event") == "project.created"])
    records = [each for _, body in receiver.sent for each in json.loads(body)]
    assert {each["organization_id"] for each in records} == {alice.organization_id}
    assert {headers["authorization"] for headers, _ in receiver.sent} == {"Bearer not-in-any-row"}
    wait_until(lambda: say("show", made["id"])["last_success_at"] is not None)
    assert "not-in-any-row" not in json.dumps([say("show", made["id"]), records, control.lines], default=str)
    assert say("update", made["id"], "--name", "another")["name"] == "another"
    refused(control.client(bob.admin_key).get(f"{PATH}/{made['id']}"), 404, "not_found")
    assert say("delete", made["id"])["deleted"] is True


GOOD = {"name": "x", "url": "https://192.52.193.1", "format": "otlp", "signals": ["traces"]}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"signals": ["usage"]}, "signals"),
        ({"signals": []}, "signals"),
        ({"format": "xml"}, "format"),
        ({"url": "https://10.0.0.1"}, "url"),
        ({"url": "ftp://example.com"}, "url"),
        ({"url": "https://192.52.193.1/?token=x"}, "url"),
        ({"headers": {"host": "x"}}, "headers"),
        ({"headers": {"a": 1}}, "headers.a"),
        ({"enabled": True}, "enabled"),
    ],
)
def test_what_cannot_be_is_refused_by_field(control: Running, alice: TenantSetup, changes: dict[str, Any], param: str) -> None:
    error = control.client(alice.admin_key).post(PATH, json=GOOD | changes)
    assert error.status_code == 400 and error.json()["error"]["param"] == param, error.text


def test_an_organization_has_five_and_needs_the_right_to_read_what_is_sent(control: Running, bob: TenantSetup) -> None:
    admin = control.client(bob.admin_key)
    for _ in range(EXPORTS_MAX):
        answered(admin.post(PATH, json=GOOD))
    assert admin.post(PATH, json=GOOD).status_code == 409
    role = {"role_name": "exporter", "permissions": ["telemetry.read", "telemetry.write", "costs.read"]}
    role_id = answered(admin.post("/v1/organization/roles", json=role))["id"]
    key = answered(admin.post("/v1/organization/admin_api_keys", json={"name": "exporter", "role": role_id}))["value"]
    (last, *_) = answered(control.client(key).get(PATH))["data"]
    assert answered(control.client(key).delete(f"{PATH}/{last['id']}"))["deleted"]
    audited = {**GOOD, "format": "json", "signals": ["audit"]}
    assert refused(control.client(key).post(PATH, json=audited), 403, "insufficient_scope")
    answered(control.client(key).post(PATH, json=GOOD))


def test_headers_whose_key_is_gone_are_a_refusal_and_the_state_of_the_export(
    control: Running, alice: TenantSetup, receiver: Receiver
) -> None:
    admin = control.client(alice.admin_key)
    body = {"name": "x", "url": receiver.url, "format": "json", "signals": ["audit"], "headers": TOKEN}
    path = f"{PATH}/{answered(admin.post(PATH, json=body))['id']}"
    with control.plane.database.platform() as tx:
        owned = schema_events.telemetry_exports.c.organization_id == alice.organization_id
        tx.connection.execute(schema_events.telemetry_exports.update().where(owned).values(sealed=VAULT.seal("{}", context="another's")))
    error = refused(admin.post(f"{path}/test"), 409, "conflict")
    assert "Give them anew" in error["message"]
    wait_until(lambda: answered(admin.get(path))["last_error"] == "headers unavailable")
    answered(admin.post(path, json={"headers": TOKEN}))
    assert answered(admin.post(f"{path}/test"))["status_code"] == 204
    answered(admin.delete(path))
