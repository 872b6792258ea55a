"""Webhooks over the API: OpenAI's SDK manages them, two libraries verify what is delivered, and an organization sees its own alone."""

import ipaddress
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import openai
import pytest
from openai.types.webhooks import WebhookEndpoint
from standardwebhooks import Webhook

from tests.control.eventing.receivers import Receiver, receiving
from tests.control.harness import Running, TenantSetup, answered, running, wait_until
from tests.control.test_routes import refused
from tests.storage.databases import SqliteTemplate
from tollway.cli.app import run
from tollway.domain import events
from tollway.domain.events import TENANT_TYPES, EventType
from tollway.domain.webhooks import format_secret
from tollway.storage import schema_events
from tollway.storage.vault import LocalVault

ENDPOINTS = "/v1/webhook_endpoints"
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


@pytest.fixture(scope="module")
def control(sqlite_template: SqliteTemplate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A control plane whose webhooks may reach loopback."""
    directory = tmp_path_factory.mktemp("webhooks")
    with sqlite_template.copied(directory) as url, running(url, directory / "archive", webhook_networks=LOOPBACK) as started:
        yield started


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as started:
        yield started


def connect(control: Running, key: str) -> openai.OpenAI:
    """Return OpenAI's client with a key."""
    return openai.OpenAI(base_url=f"{control.url}/v1", api_key=key, max_retries=0)


def create(control: Running, key: str, url: str, *types: EventType, path: str = ENDPOINTS) -> dict[str, Any]:
    """Create an endpoint."""
    body = {"name": "test", "url": url, "event_types": [str(each) for each in types]}
    made: dict[str, Any] = answered(control.client(key).post(path, json=body))
    return made


def make_key(control: Running, tenant: TenantSetup) -> str:
    """Create an API key, of which there is an event; return its id."""
    path = f"/v1/organization/projects/{tenant.project_id}/api_keys"
    return str(answered(control.client(tenant.admin_key).post(path, json={"name": "k"}))["id"])


def test_openais_sdk_manages_endpoints_and_verifies_what_they_get(control: Running, alice: TenantSetup, receiver: Receiver) -> None:
    client = connect(control, alice.admin_key)
    made = client.webhooks.create(name="Ours", url=receiver.url, event_types=["api_key.created"])  # type: ignore[list-item]
    assert isinstance(client.webhooks.retrieve(made.id), WebhookEndpoint)
    assert [each.id for each in client.webhooks.list(limit=2)] == [made.id]
    assert client.webhooks.update(made.id, name="Theirs").name == "Theirs"
    assert set(client.webhooks.event_types.list().data) == {str(each) for each in TENANT_TYPES}
    sent = client.webhooks.test(made.id, event_type="api_key.created")  # type: ignore[arg-type]
    assert (sent.success, sent.status_code, sent.webhook_endpoint_id) == (True, 204, made.id)
    key_id = make_key(control, alice)
    wait_until(lambda: len(receiver.sent) == 2)
    for headers, body in receiver.sent:
        client.webhooks.verify_signature(body.decode(), headers, secret=made.signing_secret)
    receiver.verify(made.signing_secret)
    event = receiver.events[1]
    assert (event["type"], event["data"]) == ("api_key.created", {"id": key_id, "project_id": alice.project_id})
    assert event["id"] == receiver.sent[1][0]["webhook-id"] and event["organization_id"] == alice.organization_id
    rotated = client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    client.webhooks.test(made.id, event_type="api_key.created")  # type: ignore[arg-type]
    del receiver.sent[:2]
    receiver.verify(made.signing_secret)
    receiver.verify(rotated.signing_secret)
    assert client.webhooks.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.webhooks.retrieve(made.id)


def test_deliveries_are_listed_and_replayed_by_event_and_by_time(control: Running, alice: TenantSetup, receiver: Receiver) -> None:
    admin = control.client(alice.admin_key)
    path = f"{ENDPOINTS}/{create(control, alice.admin_key, receiver.url, EventType.API_KEY_CREATED)['id']}"
    since = control.plane.now() // 1_000_000
    made = [make_key(control, alice) for _ in range(3)]
    wait_until(lambda: len(receiver.sent) == 3)
    assert [each["data"]["id"] for each in receiver.events] == made, "in the order of their events"
    wait_until(lambda: len(answered(admin.get(f"{path}/deliveries?state=delivered"))["data"]) == 3)
    listed = answered(admin.get(f"{path}/deliveries"))["data"]
    assert [(each["attempts"], each["status_code"], each["error"]) for each in listed] == [(1, 204, None)] * 3
    assert listed[0]["id"] == receiver.events[2]["id"], "the newest first"
    assert answered(admin.post(f"{path}/replay", json={"event_id": listed[2]["id"]}))["deliveries"] == 1
    wait_until(lambda: len(receiver.sent) == 4)
    assert receiver.events[3] == receiver.events[0]
    assert answered(admin.post(f"{path}/replay", json={"since": since, "until": since + 60}))["deliveries"] == 3
    wait_until(lambda: len(receiver.sent) == 7)
    following = answered(admin.get(f"/v1/organization/events?after_sequence={receiver.events[0]['sequence']}"))["data"]
    assert [each["id"] for each in following][:2] == [each["id"] for each in receiver.events[1:3]]
    answered(admin.delete(path))


def test_an_organization_gets_its_own_events_and_the_operators_those_of_all(control: Running, alice: TenantSetup, bob: TenantSetup) -> None:
    with receiving() as hers, receiving() as his, receiving() as theirs:
        endpoint = create(control, alice.admin_key, hers.url, EventType.API_KEY_CREATED)
        other = create(control, bob.admin_key, his.url, EventType.API_KEY_CREATED)
        every = create(control, control.platform_key, theirs.url, EventType.API_KEY_CREATED, path="/v1/platform/webhook_endpoints")
        ids = {make_key(control, alice), make_key(control, bob)}
        wait_until(lambda: len(theirs.sent) == 2 and hers.sent and his.sent)
        assert {each["data"]["id"] for each in theirs.events} == ids
        assert {each["organization_id"] for each in hers.events} == {alice.organization_id}
        assert {each["organization_id"] for each in his.events} == {bob.organization_id}
        theirs.verify(every["signing_secret"])
        event = his.events[0]["id"]
        refused = control.client(alice.admin_key).post(f"{ENDPOINTS}/{endpoint['id']}/replay", json={"event_id": event})
        assert refused.status_code == 404, "another's event is as one that does not exist"
        assert control.client(alice.admin_key).get(f"{ENDPOINTS}/{other['id']}/deliveries").status_code == 404
        assert control.client(alice.admin_key).get(f"{ENDPOINTS}/{every['id']}").status_code == 404
        all_events = answered(control.operator().get("/v1/platform/events?limit=100&types=api_key.created"))["data"]
        assert {each["organization_id"] for each in all_events} >= {alice.organization_id, bob.organization_id}
        for key, made, path in ((alice.admin_key, endpoint, ENDPOINTS), (bob.admin_key, other, ENDPOINTS)):
            answered(control.client(key).delete(f"{path}/{made['id']}"))
        answered(control.operator().delete(f"/v1/platform/webhook_endpoints/{every['id']}"))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": "x", "url": "http://example.com/", "event_types": ["invoice.issued"]}, "url"),
        ({"name": "x", "url": "https://10.0.0.1/", "event_types": ["invoice.issued"]}, "url"),
        ({"name": "x", "url": "https://169.254.169.254/latest", "event_types": ["invoice.issued"]}, "url"),
        ({"name": "x", "url": "https://u:p@example.com/", "event_types": ["invoice.issued"]}, "url"),
        ({"name": "x", "url": "https://nowhere.invalid/", "event_types": ["invoice.issued"]}, "url"),
        ({"name": "x", "url": "http://127.0.0.1/", "event_types": []}, "event_types"),
        ({"name": "x", "url": "http://127.0.0.1/", "event_types": ["no.event"]}, "event_types.[0]"),
        ({"name": "x", "url": "http://127.0.0.1/", "event_types": ["deployment.created"]}, "event_types"),
        ({"name": "", "url": "http://127.0.0.1/", "event_types": ["invoice.issued"]}, "name"),
    ],
)
def test_162_endpoints_that_cannot_be_are_refused_with_the_field(
    control: Running, alice: TenantSetup, body: dict[str, Any], param: str
) -> None:
    answer = control.client(alice.admin_key).post(ENDPOINTS, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_requests_that_make_no_sense_are_refused(control: Running, alice: TenantSetup) -> None:
    admin = control.client(alice.admin_key)
    path = f"{ENDPOINTS}/{create(control, alice.admin_key, 'http://127.0.0.1:1/', EventType.INVOICE_ISSUED)['id']}"
    for body in ({}, {"event_id": "evt_1", "since": 1, "until": 2}, {"since": 1}):
        assert admin.post(f"{path}/replay", json=body).status_code == 400
    assert admin.post(f"{path}/replay", json={"event_id": "evt_1"}).status_code == 404
    unreachable = admin.post(f"{path}/test", json={"event_type": "invoice.issued"})
    assert (unreachable.status_code, unreachable.json()["error"]["code"]) == (502, "webhook_unreachable")
    assert admin.get("/v1/organization/events?after_sequence=1&after=evt_1").status_code == 400
    assert admin.get("/v1/webhook_event_types/deployment.created").status_code == 404
    answered(admin.delete(path))


def test_a_secret_whose_key_is_gone_is_a_refusal_until_it_is_rotated(control: Running, bob: TenantSetup, receiver: Receiver) -> None:
    admin = control.client(bob.admin_key)
    path = f"{ENDPOINTS}/{create(control, bob.admin_key, receiver.url, EventType.INVOICE_ISSUED)['id']}"
    with control.plane.database.platform() as tx:
        sealed = LocalVault(bytes(range(32))).seal("whsec_x", context="another's")
        owned = schema_events.webhook_endpoints.c.organization_id == bob.organization_id
        tx.connection.execute(schema_events.webhook_endpoints.update().where(owned).values(sealed=sealed))
    test = {"event_type": "invoice.issued"}
    error = refused(admin.post(f"{path}/test", json=test), 409, "conflict")
    assert "Rotate the secret" in error["message"]
    answered(admin.post(f"{path}/rotate_secret", json={"keep_old_secret_active_for_24_hours": False}))
    assert answered(admin.post(f"{path}/test", json=test))["status_code"] == 204
    answered(admin.delete(path))


def test_every_type_has_a_schema_that_its_example_satisfies(control: Running, alice: TenantSetup) -> None:
    kinds = {"string": str, "integer": int, "boolean": bool, "null": type(None)}
    schema = answered(control.client(alice.admin_key).get("/v1/webhook_event_types/invoice.issued"))
    assert schema == events.make_schema(EventType.INVOICE_ISSUED)
    for each in EventType:
        schema, data = events.make_schema(each), events.make_example(each)
        shown = events.shape(events.new_event(each, alice.organization_id, at=1, data=data))
        assert list(shown) == schema["required"] and set(schema["properties"]) == set(shown)
        fields = schema["properties"]["data"]["properties"]
        assert set(fields) == set(data)
        for name, value in data.items():
            allowed = fields[name]["type"] if isinstance(fields[name]["type"], list) else [fields[name]["type"]]
            assert type(value) in {kinds[kind] for kind in allowed}


def test_commands_create_replay_and_follow(
    control: Running, alice: TenantSetup, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(*arguments: str, code: int = 0) -> str:
        assert run([*arguments, "--control-url", control.url, "--key", alice.admin_key]) == code, capsys.readouterr().err
        return capsys.readouterr().out

    made = json.loads(printed("webhooks", "create", receiver.url, "--event-type", "api_key.created", "-o", "json"))
    assert printed("webhooks", "test", made["id"], "--event-type", "api_key.created") == "it answered 204\n"
    key_id = make_key(control, alice)
    wait_until(lambda: len(receiver.sent) == 2)
    wait_until(lambda: json.loads(printed("webhooks", "deliveries", made["id"], "--state", "delivered", "-o", "json")))
    assert printed("webhooks", "replay", made["id"], "--event", receiver.events[1]["id"]) == "1 events are delivered once more\n"
    assert "api_key.created" in printed("events", "list") and "invoice.issued" in json.dumps(json.loads(_types(capsys)))
    secret = format_secret(bytes(32))
    local = ("--forward-to", receiver.url, "--secret", secret)
    with ThreadPoolExecutor(1) as thread:
        wait_until(lambda: len(receiver.sent) == 3)
        following = thread.submit(run, ["events", "listen", "--count", "1", *local, "--control-url", control.url, "--key", alice.admin_key])
        printed("webhooks", "delete", made["id"])
        while not following.done():  # it follows what happens once it listens
            make_key(control, alice)
        assert following.result() == 0
    forwarded = [each for each in receiver.sent if each[0]["user-agent"] != "tollway-webhooks/1"]
    assert len(forwarded) == 1 and key_id != msgspec.json.decode(forwarded[0][1])["data"]["id"]
    Webhook(secret).verify(forwarded[0][1], forwarded[0][0])
    for wrong in (["webhooks", "create", receiver.url], ["webhooks", "show", "hook_1"], ["webhooks", "replay", made["id"]]):
        printed(*wrong, code=2)
    printed("events", "listen", "--secret", "no-secret", code=2)


def _types(capsys: pytest.CaptureFixture[str]) -> str:
    assert run(["events", "types", "-o", "json"]) == 0
    return capsys.readouterr().out


def test_each_change_is_told_of_once(control: Running, bob: TenantSetup) -> None:
    """Events of usage and money are in the tests of these."""
    admin, operator = control.client(bob.admin_key), control.operator()
    path = f"/v1/organization/projects/{bob.project_id}/api_keys"
    made = answered(admin.post(path, json={"name": "k"}))
    answered(admin.post(f"{path}/{made['id']}/rotate", json={}))
    answered(admin.post("/v1/organization/leaked_keys", json={"secrets": [made["value"]]}))
    answered(admin.delete(f"{path}/{made['id']}"))
    limits = f"/v1/organization/projects/{bob.project_id}/limits"
    for _ in range(2):
        answered(admin.put(limits, json={"requests_per_minute": 5}))
    answered(operator.post("/v1/platform/models", json={"name": "told", "endpoints": ["chat/completions"]}))
    deployment = {"model": "told", "base_url": "http://127.0.0.1:1", "upstream_model": "told", "engine": "vllm"}
    of = f"/v1/platform/deployments/{answered(operator.post('/v1/platform/deployments', json=deployment))['id']}"
    answered(operator.post(of, json={"weight": 2}))
    for _ in range(2):
        answered(operator.post(f"{of}/archive"))
    answered(operator.post(f"/v1/platform/organizations/{bob.organization_id}/credit_grants", json={"category": "paid", "amount": "5"}))
    wanted = ("&types=".join(each for each in TENANT_TYPES), bob.organization_id)
    own = answered(operator.get(f"/v1/platform/events?limit=100&order=asc&types={wanted[0]}&organization_id={wanted[1]}"))["data"]
    of_key = [each["type"] for each in own if made["id"] in (each["data"]["id"], each["data"].get("key_id"))]
    assert of_key == ["api_key.created", "api_key.rotated", "api_key.leaked", "api_key.revoked"]
    assert [each["type"] for each in own if each["type"].startswith(("limit", "credit"))] == ["limit.updated", "credit.granted"]
    types = "&types=".join(("deployment.created", "deployment.updated", "deployment.archived"))
    ours = answered(operator.get(f"/v1/platform/events?limit=100&order=desc&types={types}"))["data"]
    told = [each for each in reversed(ours) if each["data"]["id"] == of.rpartition("/")[2]]
    assert [each["type"] for each in told] == ["deployment.created", "deployment.updated", "deployment.archived"]
    assert {each["organization_id"] for each in told} == {None}
