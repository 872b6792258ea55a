"""Responses that an organization stores: through the official SDK, a gateway and a control plane over its database."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx2
import msgspec
import openai
import pytest
import sqlalchemy as sa

from tests.control.harness import Running as Control
from tests.control.harness import TenantSetup, answered, make_tenant, running
from tests.fakes import Do, Upstream, until
from tests.gateway.harness import PEPPER, Gateway, Served, gateway, post, whole
from tests.gateway.test_test_keys import change
from tests.patience import CLIENT_SECONDS, PATIENCE_SECONDS
from tests.simulator.running import Running as Simulator
from tests.simulator.running import simulator
from tests.storage.databases import SqliteTemplate
from tollway.control.tenancy import stored_responses
from tollway.domain import faults, keys
from tollway.domain.batches import Batch
from tollway.domain.catalog import TRANSLATED_ENDPOINTS, Endpoint
from tollway.domain.faults import Fault, FaultKind
from tollway.domain.files import FileOwner
from tollway.domain.keys import KeyType
from tollway.domain.limits import Limits
from tollway.domain.prices import PriceTerms
from tollway.domain.snapshot import KeyEntry, OrganizationEntry, ProjectEntry
from tollway.domain.usage import Outcome, ServiceTier
from tollway.gateway import conversations
from tollway.gateway.batches import worker as batch_worker
from tollway.gateway.batches.worker import BatchBounds, BatchWorker
from tollway.gateway.body_reader_pool import BodyReaders
from tollway.gateway.buffers import BufferHold
from tollway.gateway.continuation import CONVERSATION_BYTES_MAX
from tollway.gateway.dialects import compactions
from tollway.gateway.request import RequestHead, new_request
from tollway.gateway.response_queries import _Page
from tollway.gateway.uploads import Upload
from tollway.link.response_store import ORGANIZATION_CONCURRENT_MAX, ResponseStorage
from tollway.native import FORM
from tollway.serve.gateway import _count_lines
from tollway.storage.batch_directory import ActiveBatch, BatchDirectory
from tollway.storage.tenant_files import FileBounds, FileDirectory
from tollway.storage.vault import LocalVault
from tollway.wire import bodies

PATH = "/v1/responses"
INPUT = "one two three four five six seven eight"
DAY = 86_400
VAULT = LocalVault(bytes(range(32)))
UNKNOWN = "resp_" + "0" * 32


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with simulator(tmp_path_factory.mktemp("simulator") / "truth.jsonl") as made:
        yield made


@pytest.fixture(scope="module")
def control(sqlite_template: SqliteTemplate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    directory = tmp_path_factory.mktemp("control")
    with sqlite_template.copied(directory) as url, running(url, directory / "archive") as started:
        yield started


@pytest.fixture(scope="module")
def alice(control: Control) -> TenantSetup:
    return store_for(control, make_tenant(control, "alice"), 30 * DAY)


@pytest.fixture(scope="module")
def bob(control: Control) -> TenantSetup:
    return store_for(control, make_tenant(control, "bob"), 30 * DAY)


def store_for(control: Control, tenant: TenantSetup, seconds: int | None) -> TenantSetup:
    answered(control.client(tenant.admin_key).post("/v1/organization", json={"response_retention_seconds": seconds}))
    return tenant


@asynccontextmanager
async def serve(control: Control, models: dict[str, Served], *tenants: TenantSetup, limits: Limits | None = None) -> AsyncIterator[Gateway]:
    """A gateway that knows these tenants as control publishes them."""
    async with gateway(models) as made:
        storage = ResponseStorage(control_link_url=control.link_url, node_key=control.node_key, sealer_of=VAULT.for_organization)
        made.plane.response_store = storage
        for tenant in tenants:
            organization = answered(control.client(tenant.admin_key).get("/v1/organization"))
            digest = keys.digest(PEPPER, tenant.secret.encode())
            change(
                made,
                OrganizationEntry(
                    id=tenant.organization_id,
                    currency="EUR",
                    terms=(PriceTerms(0, "book_1"),),
                    response_retention_seconds=organization["response_retention_seconds"],
                    limits=limits or Limits(),
                ),
                ProjectEntry(id=tenant.project_id, organization_id=tenant.organization_id),
                KeyEntry(id=tenant.key_id, digest=digest, type=KeyType.LIVE, project_id=tenant.project_id),
            )
        try:
            yield made
        finally:
            await storage.close()


def sdk(made: Gateway, tenant: TenantSetup) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{made.url}/v1", api_key=tenant.secret, max_retries=0, timeout=CLIENT_SECONDS)


@pytest.fixture
async def made(control: Control, engine: Simulator, alice: TenantSetup, bob: TenantSetup) -> AsyncIterator[Gateway]:
    models = {
        "native": Served([engine.url], upstream_model="sim-echo"),
        "translated": Served([engine.url], upstream_model="sim-echo", translated_endpoints=tuple(TRANSLATED_ENDPOINTS)),
    }
    async with serve(control, models, alice, bob) as started:
        yield started


MODELS = ("native", "translated")


@pytest.mark.parametrize("model", MODELS)
async def test_response_is_stored_retrieved_continued_and_deleted_with_the_official_sdk(
    model: str, made: Gateway, alice: TenantSetup
) -> None:
    async with sdk(made, alice) as client:
        first = await client.responses.create(model=model, input=INPUT, store=True, max_output_tokens=40)
        assert first.store is True and len(first.id) == 37 and first.previous_response_id is None
        assert (await client.responses.retrieve(first.id)).model_dump() == first.model_dump()
        counted = await client.responses.input_tokens.count(model=model, input="nine", previous_response_id=first.id)
        second = await client.responses.create(model=model, input="nine", previous_response_id=first.id, store=True)
        assert second.previous_response_id == first.id and second.id != first.id
        assert second.usage is not None and first.usage is not None
        assert second.usage.input_tokens == counted.input_tokens > first.usage.input_tokens, "the whole conversation is billed"
        third = await client.responses.create(model=model, input="ten", previous_response_id=second.id)
        assert third.model_dump().get("store") is not True and third.previous_response_id == second.id
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(third.id)
        items: list[Any] = [item async for item in client.responses.input_items.list(second.id, order="asc", limit=2)]
        assert [item.role for item in items] == ["user", "assistant", "user"] and items[0].content[0].text == INPUT
        assert len({item.id for item in items}) == 3
        await client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)
        assert (await client.responses.retrieve(second.id)).id == second.id, "what followed stays"
    await made.sink.settled(4)
    assert [final.used.input_tokens for final in made.sink.finals if final.admit.endpoint == "responses"][1] == second.usage.input_tokens


@pytest.mark.parametrize("model", MODELS)
async def test_streamed_response_has_the_same_id_in_each_event_and_is_stored(model: str, made: Gateway, alice: TenantSetup) -> None:
    async with sdk(made, alice) as client:
        async with client.responses.stream(model=model, input=INPUT, store=True) as stream:
            events = [event async for event in stream]
            last = await stream.get_final_response()
        shown = {event.response.id for event in events if hasattr(event, "response")}
        assert shown == {last.id} and last.store is True
        assert (await client.responses.retrieve(last.id)).output_text == last.output_text


async def test_126_response_of_another_tenant_answers_byte_for_byte_as_one_that_never_was(
    made: Gateway, alice: TenantSetup, bob: TenantSetup
) -> None:
    async with sdk(made, alice) as client:
        theirs = (await client.responses.create(model="native", input=INPUT, store=True)).id
    async with httpx2.AsyncClient(base_url=made.url, headers={"authorization": f"Bearer {bob.secret}"}, timeout=CLIENT_SECONDS) as client:
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
            bodies = []
            for id in (theirs, UNKNOWN):
                answer = await client.request(method, f"{PATH}/{id}{path}")
                assert answer.status_code == 404
                bodies.append(answer.text.replace(answer.headers["x-request-id"], "").replace(id, ""))
            assert bodies[0] == bodies[1]
        continued = []
        for id in (theirs, UNKNOWN, "resp_x"):
            answer = await client.post(PATH, json={"model": "native", "input": "x", "previous_response_id": id})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "previous_response_id")
            continued.append(answer.text.replace(answer.headers["x-request-id"], ""))
        assert len(set(continued)) == 1
    async with sdk(made, alice) as own:
        assert (await own.responses.retrieve(theirs)).id == theirs


async def test_requests_about_a_stored_response_are_checked(made: Gateway, alice: TenantSetup) -> None:
    async with sdk(made, alice) as client:
        id = (await client.responses.create(model="native", input=INPUT, store=True)).id
    async with httpx2.AsyncClient(base_url=made.url, headers={"authorization": f"Bearer {alice.secret}"}, timeout=CLIENT_SECONDS) as client:
        cancelled = await client.post(f"{PATH}/{id}/cancel")
        assert (cancelled.status_code, cancelled.json()["error"]["code"]) == (400, "response_not_cancellable")
        for query in ("limit=0", "limit=101", "order=up", "after=x", "stream=true"):
            param = query.partition("=")[0]
            answer = await client.get(f"{PATH}/{id}/input_items?{query}")
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), query
        assert (await client.post(f"{PATH}/{id}")).status_code == 405
        assert (await client.get(f"{PATH}/{id}/%2e%2e")).status_code == 400
        assert (await client.get(f"{PATH}/{id}", headers={"authorization": "Bearer x"})).status_code == 401
        refusals: tuple[dict[str, Any], ...] = (
            {"background": True}, {"background_options": {}}, {"conversation": "conv_1"}, {"store": "yes"}, {"previous_response_id": 1},
        )  # fmt: skip
        for body in refusals:
            answer = await client.post(PATH, json={"model": "native", "input": "x", **body})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(body)))
        doubled = b'{"model":"native","input":"x","store":true,"store":false}'
        answer = await client.post(PATH, content=doubled, headers={"content-type": "application/json"})
        assert answer.json()["error"]["code"] == "duplicate_key"
        long = "x" * CONVERSATION_BYTES_MAX
        answer = await client.post(PATH, json={"model": "native", "input": long, "store": True})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "store")
        answer = await client.post(PATH, json={"model": "native", "input": long, "previous_response_id": id})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "previous_response_id")
        answer = await client.post(PATH, json={"model": "native", "input": long, "store": False})
        assert answer.json()["error"]["code"] == "context_length_exceeded", "as its engine says, which has it"


async def test_organization_that_stores_nothing_refuses_by_name(control: Control, engine: Simulator) -> None:
    tenant = make_tenant(control, "forgetful")
    async with serve(control, {"native": Served([engine.url], upstream_model="sim-echo")}, tenant) as made:
        for body in ({"store": True}, {"previous_response_id": UNKNOWN}):
            answer = await post(made.port, {"model": "native", "input": INPUT, **body}, PATH, key=tenant.secret)
            assert (answer.status, answer.error["param"]) == (400, next(iter(body)))
        assert (await post(made.port, {"model": "native", "input": INPUT, "store": False}, PATH, key=tenant.secret)).status == 200


async def test_conversation_is_sealed_in_the_database_for_its_organization(
    made: Gateway, control: Control, alice: TenantSetup, bob: TenantSetup
) -> None:
    async with sdk(made, alice) as client:
        id = (await client.responses.create(model="native", input=f"secret word {INPUT}", store=True)).id
    with control.plane.database.platform(write=False) as tx:
        content = bytes(tx.connection.execute(sa.text("SELECT content FROM stored_responses WHERE id = :id"), {"id": id}).scalar_one())
    assert b"secret word" not in content
    context = f"response:{alice.organization_id}:{alice.project_id}:{id}"
    assert b"secret word" in VAULT.for_organization(alice.organization_id).unseal_bytes(content, context=context)
    for vault in (VAULT, VAULT.for_organization(bob.organization_id)):
        with pytest.raises(ValueError, match="altered"):
            vault.unseal_bytes(content, context=context)


def count(control: Control, tenant: TenantSetup) -> int:
    with control.plane.database.platform(write=False) as tx:
        query = sa.text("SELECT count(*) FROM stored_responses WHERE organization_id = :id")
        return int(tx.connection.execute(query, {"id": tenant.organization_id}).scalar_one())


def put(control: Control, tenant: TenantSetup, id: str) -> httpx2.Response:
    place = {"organization_id": tenant.organization_id, "project_id": tenant.project_id, "id": id}
    return control.node().put("/v1/link/stored_responses", params=place, content=b"sealed")


def test_stored_responses_are_removed_on_time_and_read_by_nobody_afterwards(control: Control) -> None:
    tenant = store_for(control, make_tenant(control, "timely"), DAY)
    place = {"organization_id": tenant.organization_id, "project_id": tenant.project_id, "id": UNKNOWN}
    assert put(control, tenant, UNKNOWN).status_code == 204
    now, node = control.plane.now(), control.node()
    assert node.get("/v1/link/stored_responses", params=place).content == b"sealed"
    with control.clock.set_to(now + (DAY + 60) * 1_000_000):
        assert node.get("/v1/link/stored_responses", params=place).status_code == 404, "before it is removed"
        assert node.delete("/v1/link/stored_responses", params=place).status_code == 404
    assert put(control, tenant, UNKNOWN).status_code == 204
    assert list(stored_responses.remove_expired(control.plane.database, now)) == [0] and count(control, tenant) == 1
    assert list(stored_responses.remove_expired(control.plane.database, now + 2 * DAY * 1_000_000))[-1] >= 1
    assert count(control, tenant) == 0


def test_shorter_retention_holds_for_what_is_stored_and_none_deletes_it_at_once(control: Control) -> None:
    tenant = store_for(control, make_tenant(control, "changing"), 30 * DAY)
    ids = [f"resp_{number:032x}" for number in range(2)]
    assert [put(control, tenant, id).status_code for id in ids] == [204, 204]
    store_for(control, tenant, DAY)
    assert list(stored_responses.remove_expired(control.plane.database, control.plane.now() + 2 * DAY * 1_000_000))[-1] >= 2
    assert put(control, tenant, ids[0]).status_code == 204
    store_for(control, tenant, None)
    assert count(control, tenant) == 0
    assert put(control, tenant, ids[0]).status_code == 409, "switched off, whatever a gateway still believes"
    admin = control.client(tenant.admin_key)
    for wrong in (0, -1, 367 * DAY, "x"):
        answer = admin.post("/v1/organization", json={"response_retention_seconds": wrong})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_retention_seconds")


def test_archived_organization_and_foreign_project_store_nothing(control: Control, bob: TenantSetup) -> None:
    tenant = store_for(control, make_tenant(control, "leaving"), DAY)
    assert put(control, tenant, UNKNOWN).status_code == 204
    answered(control.operator().post(f"/v1/platform/organizations/{tenant.organization_id}/archive"))
    assert count(control, tenant) == 0 and put(control, tenant, UNKNOWN).status_code == 409
    place = {"organization_id": bob.organization_id, "project_id": tenant.project_id, "id": UNKNOWN}
    assert control.node().put("/v1/link/stored_responses", params=place, content=b"x").status_code == 409
    assert control.link(bob.secret).get("/v1/link/stored_responses", params=place).status_code in (401, 403)


def test_organization_stores_a_bounded_number(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = store_for(control, make_tenant(control, "collector"), DAY)
    monkeypatch.setattr(stored_responses, "RESPONSES_MAX", 1)
    assert put(control, tenant, UNKNOWN).status_code == 204
    assert put(control, tenant, "resp_" + "1" * 32).status_code == 403


@pytest.mark.parametrize("stream", [False, True])
async def test_without_control_a_response_says_that_it_is_not_stored_and_a_stored_one_cannot_be_read(
    control: Control, alice: TenantSetup, engine: Simulator, stream: bool
) -> None:
    async with serve(control, {"native": Served([engine.url], upstream_model="sim-echo")}, alice) as made:
        storage = ResponseStorage(control_link_url="http://127.0.0.1:9", node_key="tw_node_x", sealer_of=VAULT.for_organization)
        made.plane.response_store = storage
        asked = {"model": "native", "input": INPUT, "store": True, "stream": stream}
        answer = await post(made.port, asked, PATH, key=alice.secret)
        body = msgspec.json.decode(answer.body.rstrip().rpartition(b"data: ")[2])["response"] if stream else answer.json()
        assert answer.status == 200 and body["store"] is False
        await made.sink.settled(1)
        continued = await post(made.port, {"model": "native", "input": "x", "previous_response_id": UNKNOWN}, PATH, key=alice.secret)
        assert (continued.status, continued.error["code"]) == (503, "stored_responses_unavailable")
        assert storage.failures == 2
        await storage.close()


async def test_engine_never_hears_of_what_is_stored(control: Control, alice: TenantSetup) -> None:
    body = {"object": "response", "id": "resp_engine", "model": "m", "status": "completed", "output": [], "usage": None}
    async with Upstream([whole(body)]).listening() as upstream, serve(control, {"m": Served([upstream.url])}, alice) as made:
        answer = await post(made.port, {"model": "m", "input": "x", "store": True, "metadata": {}}, PATH, key=alice.secret)
        assert answer.json()["id"] != "resp_engine" and answer.json()["store"] is True
    sent = msgspec.json.decode(upstream.asked[0].body)
    assert sent["store"] is False and "previous_response_id" not in sent
    assert sent["input"] == [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}]


async def test_reading_counts_as_a_request_in_the_limits_of_the_key(control: Control, alice: TenantSetup) -> None:
    async with (
        serve(control, {"m": Served(["http://127.0.0.1:9"])}, alice, limits=Limits(requests_per_minute=1)) as made,
        httpx2.AsyncClient(base_url=made.url, headers={"authorization": f"Bearer {alice.secret}"}, timeout=CLIENT_SECONDS) as client,
    ):
        assert [(await client.get(f"{PATH}/{UNKNOWN}")).status_code for _ in range(2)] == [404, 429]


async def test_request_about_a_stored_response_runs_until_it_is_answered_alone(control: Control, alice: TenantSetup) -> None:
    async with (
        serve(control, {"m": Served(["http://127.0.0.1:9"])}, alice, limits=Limits(concurrent_requests=1)) as made,
        httpx2.AsyncClient(base_url=made.url, headers={"authorization": f"Bearer {alice.secret}"}, timeout=CLIENT_SECONDS) as client,
    ):
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("GET", "")):
            assert (await client.request(method, f"{PATH}/{UNKNOWN}{path}")).status_code == 404


class _Store:
    """A store of responses without any."""

    def __init__(self, error: Exception | None = None) -> None:
        self.finds = 0
        self._error = error

    async def find(self, organization_id: str, project_id: str, id: str) -> bytes | None:
        self.finds += 1
        if self._error is not None:
            raise self._error
        return None


async def test_request_about_a_stored_response_that_fails_here_is_answered(control: Control, alice: TenantSetup) -> None:
    async with (
        serve(control, {"m": Served(["http://127.0.0.1:9"])}, alice) as made,
        httpx2.AsyncClient(base_url=made.url, headers={"authorization": f"Bearer {alice.secret}"}, timeout=CLIENT_SECONDS) as client,
    ):
        made.plane.response_store = cast(Any, _Store(RuntimeError("broken")))
        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        answer = await client.get(f"{PATH}/{UNKNOWN}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        assert len(reported) == 1


async def test_continued_response_is_charged_before_control_is_asked(control: Control, alice: TenantSetup) -> None:
    async with serve(control, {"m": Served(["http://127.0.0.1:9"])}, alice, limits=Limits(requests_per_minute=1)) as made:
        store = _Store()
        made.plane.response_store = cast(Any, store)
        asked = {"model": "m", "input": "x", "previous_response_id": UNKNOWN}
        assert [(await post(made.port, asked, PATH, key=alice.secret)).status for _ in range(3)] == [400, 429, 429]
        assert store.finds == 1


async def test_continued_response_counts_as_one_request(control: Control, engine: Simulator, alice: TenantSetup) -> None:
    limits = Limits(requests_per_minute=2, concurrent_requests=1)
    async with (
        serve(control, {"native": Served([engine.url], upstream_model="sim-echo")}, alice, limits=limits) as made,
        sdk(made, alice) as client,
    ):
        first = await client.responses.create(model="native", input=INPUT, store=True)
        await client.responses.create(model="native", input="x", previous_response_id=first.id)
        with pytest.raises(openai.RateLimitError):
            await client.responses.create(model="native", input="x", previous_response_id=first.id)


async def test_field_that_two_pieces_of_a_body_share_is_found() -> None:
    request = new_request("req_" + "0" * 32, RequestHead(Endpoint.RESPONSES, {}), b"", 0.0, 0)
    upload = Upload(cast(Any, None), None)
    request.take_upload(upload, (b'{"model":"m","input":"x","st', b'ore":true}'))
    organization = SimpleNamespace(response_retention_seconds=DAY)
    plane = SimpleNamespace(response_store=_Store(), body_readers=None)
    await conversations.prepare(cast(Any, SimpleNamespace(organization=organization)), request, cast(Any, plane), cast(Any, None))
    assert request.conversation is not None and b"store" not in request.body


@pytest.fixture
async def readers(made: Gateway) -> AsyncIterator[BodyReaders]:
    """Processes for large bodies of the gateway `made`."""
    made.plane.body_readers = started = BodyReaders(1, lambda _, fields: print(fields))
    try:
        yield started
    finally:
        await started.close()


@pytest.mark.parametrize("model", MODELS)
async def test_106_long_conversation_is_read_and_made_by_a_reader_and_counts_in_the_budget(
    model: str, made: Gateway, readers: BodyReaders, alice: TenantSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, grow, held = bodies.read, BufferHold.grow_to, list[int]()

    def read_short(body: bytes) -> dict[str, Any]:
        assert len(body) <= conversations.SHORT_BYTES_MAX, "a long body is read on the event loop"
        return read(body)

    def note_held(self: BufferHold, size: int) -> FaultKind | None:
        held.append(size)
        return grow(self, size)

    if FORM != "compiled":
        monkeypatch.setattr(bodies, "read", read_short)
        monkeypatch.setattr(BufferHold, "grow_to", note_held)
    long = "all the words, " * 6_000
    async with sdk(made, alice) as client:
        first = await client.responses.create(model=model, input=long, store=True, max_output_tokens=40)
        held.clear()
        second = await client.responses.create(model=model, input="nine", previous_response_id=first.id, store=True)
        assert second.usage is not None and first.usage is not None and second.usage.input_tokens > first.usage.input_tokens
        assert FORM == "compiled" or max(held) > 2 * len(long), "a short request that continues a long conversation holds it"
        items: list[Any] = [item async for item in client.responses.input_items.list(second.id, order="asc")]
        assert [item.role for item in items] == ["user", "assistant", "user"] and items[0].content[0].text == long
    doubled = b'{"model":"native","input":"%b","store":true,"store":false}' % long.encode()
    headers = {"authorization": f"Bearer {alice.secret}", "content-type": "application/json"}
    async with httpx2.AsyncClient(base_url=made.url, headers=headers, timeout=CLIENT_SECONDS) as plain:
        assert (await plain.post(PATH, content=doubled)).json()["error"]["code"] == "duplicate_key"
    await until(lambda: made.plane.buffers.total == 0)
    assert readers.failures == 0


def test_106_page_of_a_conversation_of_many_items_reads_those_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    read = list[bytes]()
    members = bodies.members
    items = (
        b"["
        + b",".join([b'{"role":"user","content":"a"}'] * 1_000 + [b'{"id":"mine_%d","role":"user","content":"b"}' % n for n in (1, 2)])
        + b"]"
    )
    monkeypatch.setattr(bodies, "members", lambda body: read.append(body) or members(body))
    page = msgspec.json.decode(_Page(2, is_ascending=True, after="").show("resp_1", items))
    assert [each["id"] for each in page["data"]] == ["item_1_0", "item_1_1"] and page["has_more"] is True
    page = msgspec.json.decode(_Page(2, is_ascending=True, after="item_1_999").show("resp_1", items))
    assert [each["id"] for each in page["data"]] == ["mine_1", "mine_2"] and page["has_more"] is False
    page = msgspec.json.decode(_Page(1, is_ascending=False, after="mine_2").show("resp_1", items))
    assert [each["id"] for each in page["data"]] == ["mine_1"] and page["data"][0]["type"] == "message"
    assert FORM == "compiled" or len(read) == 5


async def test_126_organization_that_floods_the_store_leaves_the_others_their_share() -> None:
    released = asyncio.Event()

    async def answer(request: httpx2.Request) -> httpx2.Response:
        await released.wait()
        return httpx2.Response(404)

    transport = httpx2.MockTransport(answer)
    storage = ResponseStorage(control_link_url="http://control", node_key="k", sealer_of=VAULT.for_organization, transport=transport)
    asked = [asyncio.create_task(storage.find("org_1", "proj_1", UNKNOWN)) for _ in range(ORGANIZATION_CONCURRENT_MAX)]
    await asyncio.sleep(0)
    with pytest.raises(Fault):
        await storage.find("org_1", "proj_1", UNKNOWN)
    others = asyncio.create_task(storage.find("org_2", "proj_2", UNKNOWN))
    await asyncio.sleep(0)
    released.set()
    assert await asyncio.gather(*asked, others) == [None] * (ORGANIZATION_CONCURRENT_MAX + 1)
    assert await storage.find("org_1", "proj_1", UNKNOWN) is None
    await storage.close()


# Compaction


@pytest.mark.parametrize("model", MODELS)
async def test_official_client_compacts_a_conversation_and_goes_on_with_what_it_got(
    model: str, made: Gateway, control: Control, engine: Simulator, alice: TenantSetup
) -> None:
    turns: list[Any] = [{"role": "user", "content": INPUT}, {"role": "assistant", "content": "nine"}]
    async with sdk(made, alice) as client:
        compacted = await client.responses.compact(model=model, input=turns, instructions="Be brief.")
        assert compacted.object == "response.compaction" and [item.type for item in compacted.output] == ["compaction"]
        assert compacted.usage.input_tokens > 0 < compacted.usage.output_tokens
        items: list[Any] = [item.model_dump(exclude_none=True) for item in compacted.output]
        following = await client.responses.create(model=model, input=items)
        assert following.output_text.startswith("This is a summary of the conversation until here:"), "the last message, as it is echoed"
        stored = await client.responses.create(model=model, input=[*items, {"role": "user", "content": "ten"}], store=True)
        again = await client.responses.compact(model=model, previous_response_id=stored.id)
        assert again.output[0].type == "compaction" and again.usage.input_tokens > following.usage.input_tokens  # type: ignore[union-attr]
        with pytest.raises(openai.BadRequestError, match="stream"):
            await client.responses.compact(model=model, input=turns, extra_body={"stream": True})
        with pytest.raises(openai.BadRequestError, match="No response with this id"):
            await client.responses.compact(model=model, input=turns, previous_response_id=UNKNOWN)
    await made.sink.settled(4)
    finals = [final for final in made.sink.finals if final.admit.endpoint == "responses/compact"]
    assert [final.outcome for final in finals] == [Outcome.COMPLETED] * 2
    assert finals[0].used.output_tokens == compacted.usage.output_tokens


async def test_compaction_is_read_without_a_store_and_one_of_another_maker_is_left_as_it_is(control: Control, engine: Simulator) -> None:
    tenant = make_tenant(control, "stateless")
    models = {"translated": Served([engine.url], upstream_model="sim-echo", translated_endpoints=tuple(TRANSLATED_ENDPOINTS))}
    async with serve(control, models, tenant) as made:
        ours = {"type": "compaction", "encrypted_content": compactions.encode_summary("é" * 20_000)}
        answer = await post(made.port, {"model": "translated", "input": [ours]}, PATH, key=tenant.secret)
        assert answer.status == 200 and "ééé" in answer.json()["output"][0]["content"][0]["text"]
        for content in ("gAAAA", "tw1_%%%", "tw1_gA==", 1, None):
            theirs = {"type": "compaction", "encrypted_content": content}
            refused = await post(made.port, {"model": "translated", "input": [theirs]}, PATH, key=tenant.secret)
            assert (refused.status, refused.error["param"]) == (400, "input[0].type"), content
        asked = {"model": "translated", "input": [ours], "store": True}
        refused = await post(made.port, asked, PATH, key=tenant.secret)
        assert (refused.status, refused.error["param"]) == (400, "store")


# Responses in the background


class Background(msgspec.Struct):
    """A gateway that offers responses in the background: an engine that answers, with a store of batches, and whoever asks."""

    made: Gateway
    upstream: Upstream
    batches: BatchDirectory
    client: httpx2.AsyncClient

    async def ask(self, **more: Any) -> dict[str, Any]:
        """Submit one, and return what is answered."""
        answer = await self.client.post(PATH, json={"model": "m", "input": "in the background", "background": True} | more)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def find_end(self, id: str) -> dict[str, Any]:
        """Return the response once it has ended."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (found := (await self.client.get(f"{PATH}/{id}")).json()).get("status") in ("queued", "in_progress"):
                await asyncio.sleep(0.01)
        return dict(found)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Run a worker in the block, which ends as that of a process that is stopped at once."""
        plane = self.made.plane
        assert plane.file_store is not None
        worker = BatchWorker(plane, self.batches, plane.file_store, BatchBounds(), lambda event, fields: None)
        task = asyncio.get_running_loop().create_task(worker.run())
        try:
            yield
        finally:
            await worker.stop(0.0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


ANSWERED = {
    "object": "response", "id": "resp_engine", "model": "m", "status": "completed", "created_at": 1,
    "output": [{"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": "Hello", "annotations": []}]}],
    "usage": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7},
}  # fmt: skip


@asynccontextmanager
async def offering(
    control: Control, directory: Path, *scripts: Any, tenants: tuple[TenantSetup, ...], active_max: int = 10, limits: Limits | None = None
) -> AsyncIterator[Background]:
    async with (
        Upstream(*scripts).listening() as upstream,
        serve(control, {"m": Served([upstream.url])}, *tenants, limits=limits) as made,
        httpx2.AsyncClient(base_url=made.url, headers={"authorization": f"Bearer {tenants[0].secret}"}, timeout=CLIENT_SECONDS) as client,
    ):
        plane = made.plane
        batches = BatchDirectory(directory, VAULT, plane.now_us, organization_batches_max=active_max, free_bytes_min=0)
        plane.file_store = FileDirectory(directory, VAULT, FileBounds(free_bytes_min=0), plane.now_us)
        plane.batch_store = batches
        yield Background(made, upstream, batches, client)


@pytest.fixture(autouse=True)
def quick_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEARCH_SECONDS", "CHECK_SECONDS", "BUSY_SECONDS", "PAUSE_SECONDS_FIRST"):
        monkeypatch.setattr(batch_worker, name, 0.01)


async def test_official_client_polls_a_response_in_the_background_and_continues_it(
    control: Control, tmp_path: Path, alice: TenantSetup
) -> None:
    async with offering(control, tmp_path, [whole(ANSWERED)], tenants=(alice,)) as site, sdk(site.made, alice) as client:
        asked = await client.responses.create(model="m", input="in the background", background=True, metadata={"a": "b"})
        assert (asked.status, asked.background, asked.output) == ("queued", True, [])
        async with site.working():
            await site.find_end(asked.id)
        found = await client.responses.retrieve(asked.id)
        assert (found.id, found.status, found.background, found.output_text) == (asked.id, "completed", True, "Hello")
        items: list[Any] = [item async for item in client.responses.input_items.list(asked.id)]
        assert items[0].content[0].text == "in the background"
        follower = await client.responses.create(model="m", input="next", previous_response_id=asked.id)
        assert follower.previous_response_id == asked.id
        assert (await client.responses.cancel(asked.id)).status == "completed", "it has ended"
        await client.responses.delete(asked.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(asked.id)
        finals = site.made.sink.finals
        assert [(final.outcome, final.used.output_tokens, final.admit.service_tier) for final in finals] == [
            (Outcome.COMPLETED, 2, ServiceTier.STANDARD)
        ] * 2
    lines = [msgspec.json.decode(line) for line in site.made.log.text.splitlines()]
    submitted = next(line for line in lines if line["event"] == "request")
    assert (submitted["level"], submitted["status"], submitted["model"]) == ("info", 200, "m"), "not that of a client that left"
    sent = msgspec.json.decode(site.upstream.asked[0].body)
    assert sent["store"] is False and "background" not in sent
    assert b"in the background" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


async def test_response_in_the_background_that_is_cancelled_leaves_its_engine_and_says_so(
    control: Control, tmp_path: Path, alice: TenantSetup
) -> None:
    async with offering(control, tmp_path, [Do.GATE, whole(ANSWERED)], tenants=(alice,)) as site, site.working():
        id = (await site.ask())["id"]
        await until(lambda: len(site.upstream.asked) == 1)
        assert (await site.client.get(f"{PATH}/{id}")).json()["status"] == "in_progress"
        early = {name: (await site.client.request(*request)).json()["error"]["code"] for name, request in {
            "delete": ("DELETE", f"{PATH}/{id}"), "items": ("GET", f"{PATH}/{id}/input_items"),
        }.items()}  # fmt: skip
        assert early == {"delete": "conflict", "items": "conflict"}
        for _ in range(2):
            cancelled = await site.client.post(f"{PATH}/{id}/cancel")
            assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
        assert [final.outcome for final in site.made.sink.finals] == [Outcome.CLIENT_CANCELLED]
        assert (await site.client.delete(f"{PATH}/{id}")).json()["deleted"] is True
        assert (await site.client.get(f"{PATH}/{id}")).status_code == 404
        site.upstream.gate.set()


async def test_response_in_the_background_fails_with_the_error_of_its_request(control: Control, tmp_path: Path, alice: TenantSetup) -> None:
    body = {"error": {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded", "param": None}}
    async with offering(control, tmp_path, [whole(body, 400)], tenants=(alice,)) as site, site.working():
        failed = await site.find_end((await site.ask())["id"])
        assert (failed["status"], failed["error"]["code"], failed["output"]) == ("failed", "context_length_exceeded", [])


async def test_response_in_the_background_goes_on_after_a_process_that_died_and_is_billed_once(
    control: Control, tmp_path: Path, alice: TenantSetup
) -> None:
    gated = {"held": True}
    script = lambda asked: [Do.GATE, whole(ANSWERED)] if gated["held"] else [whole(ANSWERED)]  # noqa: E731
    async with offering(control, tmp_path, script, tenants=(alice,)) as site:
        id = (await site.ask())["id"]
        async with site.working():
            await until(lambda: len(site.upstream.asked) == 1)
        gated["held"] = False
        store = site.made.plane.response_store
        site.made.plane.response_store = cast(Any, _Refusing(store))
        async with site.working():  # its answer is in the journal, and control does not take it
            await until(lambda: len(site.upstream.asked) == 2)
            await site.made.sink.settled(2)
        assert (await site.client.get(f"{PATH}/{id}")).json()["status"] == "in_progress"
        site.made.plane.response_store = store
        async with site.working():
            assert (await site.find_end(id))["status"] == "completed"
        finals = site.made.sink.finals
        assert [final.outcome for final in finals].count(Outcome.COMPLETED) == 1 and len(site.upstream.asked) == 2
        owner = FileOwner(alice.organization_id, alice.project_id)
        assert {final.admit.request_id for final in finals} == site.batches.list_attempts(owner)
        assert site.batches.list_answered(owner) == {final.admit.request_id for final in finals if final.outcome is Outcome.COMPLETED}
        counted = _count_lines(site.batches)
        assert [counted(final.admit) for final in finals] == [final.outcome is Outcome.COMPLETED for final in finals]


async def test_response_in_the_background_that_is_deleted_before_its_end_is_noted_does_not_come_back(
    control: Control, tmp_path: Path, alice: TenantSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: ActiveBatch, batch: Batch) -> None:
        raise Fault(faults.FILES_UNAVAILABLE, detail="planted")

    async with offering(control, tmp_path, [whole(ANSWERED)], tenants=(alice,)) as site:
        id = (await site.ask())["id"]
        with monkeypatch.context() as patched:
            patched.setattr(ActiveBatch, "finish", fail)  # as if the process died before
            async with site.working():
                assert (await site.find_end(id))["status"] == "completed"
        assert (await site.client.delete(f"{PATH}/{id}")).json()["deleted"] is True
        assert (await site.client.get(f"{PATH}/{id}")).status_code == 404
        async with site.working():
            await until(lambda: not site.batches.list_active())
        assert (await site.client.get(f"{PATH}/{id}")).status_code == 404
        assert (await site.client.delete(f"{PATH}/{id}")).status_code == 404 and len(site.upstream.asked) == 1


class _Refusing:
    """A store of responses that stores nothing."""

    def __init__(self, store: Any) -> None:
        self._store = store

    async def keep(self, *where: object) -> bool:
        return False

    async def find(self, *where: Any) -> bytes | None:
        return cast("bytes | None", await self._store.find(*where))


async def test_154_response_in_the_background_of_another_tenant_answers_as_one_that_never_was(
    control: Control, tmp_path: Path, alice: TenantSetup, bob: TenantSetup
) -> None:
    async with offering(control, tmp_path, [whole(ANSWERED)], tenants=(alice, bob)) as site:
        theirs = (await site.ask())["id"]
        headers = {"authorization": f"Bearer {bob.secret}"}
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
            texts = set()
            for id in (theirs, UNKNOWN):
                answer = await site.client.request(method, f"{PATH}/{id}{path}", headers=headers)
                assert answer.status_code == 404
                texts.add(answer.text.replace(answer.headers["x-request-id"], ""))
            assert len(texts) == 1
        assert (await site.client.get(f"{PATH}/{theirs}")).json()["status"] == "queued"
        for path in ("/v1/batches", "/v1/messages/batches"):
            assert (await site.client.get(path)).json()["data"] == []


async def test_submission_of_a_response_in_the_background_is_checked_and_bounded(
    control: Control, tmp_path: Path, alice: TenantSetup
) -> None:
    limits = Limits(concurrent_requests=1)
    async with offering(control, tmp_path, [whole(ANSWERED)], tenants=(alice,), active_max=1, limits=limits) as site:
        refusals: dict[str, dict[str, Any]] = {
            "store": {"store": False}, "stream": {"stream": True}, "model": {"model": "forbidden"},
            "tools": {"tools": [{"type": "web_search"}]}, "background": {"background": "yes"}, "temperature": {"temperature": 9},
        }  # fmt: skip
        for param, more in refusals.items():
            answer = await site.client.post(PATH, json={"model": "m", "input": "x", "background": True} | more)
            assert (answer.status_code in (400, 404), answer.json()["error"]["param"]) == (True, param), answer.text
        for header in ("idempotency-key", "x-max-cost"):
            answer = await site.client.post(PATH, json={"model": "m", "input": "x", "background": True}, headers={header: "1"})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, header)
        assert list(tmp_path.rglob("state")) == [], "what was refused is not stored"
        await site.ask()
        answer = await site.client.post(PATH, json={"model": "m", "input": "x", "background": True})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "quota_exceeded")
        site.made.plane.batch_store = None
        answer = await site.client.post(PATH, json={"model": "m", "input": "x", "background": True})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "background")
        assert site.upstream.asked == [] and site.made.sink.finals == []
