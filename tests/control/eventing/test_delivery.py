"""Events and their delivery: stored with the change or not at all, numbered without a gap, delivered at least once whatever fails."""

import asyncio
import ipaddress
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.control.eventing.receivers import receiving
from tests.control.harness import wait_until
from tests.link.samples import ORGANIZATION, OTHER_ORGANIZATION
from tests.patience import PATIENCE_SECONDS
from tollway.control import host_names
from tollway.control.auditing import audit
from tollway.control.auditing.audit import AuditedOperation
from tollway.control.eventing import delivery, endpoints, owner_mails, searches
from tollway.control.eventing.addresses import AddressRefused, check_url, find_peer
from tollway.control.eventing.delivery import Sender
from tollway.control.host_names import NamesBusy
from tollway.control.identity.mail import MailFailure, Message
from tollway.control.jobs import Turn
from tollway.domain import ids
from tollway.domain.audit import Actor, ActorKind
from tollway.domain.events import EXPIRING_SECONDS, KEPT_SECONDS, EventType, new_event
from tollway.domain.faults import Fault
from tollway.domain.networks import Network
from tollway.domain.pages import PageWindow
from tollway.domain.webhooks import (
    ENDPOINTS_MAX,
    GIVEN_UP_SECONDS,
    RETRY_SECONDS,
    Delivery,
    DeliveryState,
    DisabledReason,
    WebhookEndpoint,
    find_next_attempt,
    find_pause_end,
)
from tollway.storage import outbox
from tollway.storage import webhooks as storage
from tollway.storage.database import Database
from tollway.storage.outbox import Due, EventFilter
from tollway.storage.vault import LocalVault

NOW = 1_790_000_000_000_000
SECOND = 1_000_000
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
VAULT = LocalVault(bytes(range(32)))
TYPES = (EventType.API_KEY_REVOKED, EventType.WEBHOOK_ENDPOINT_DISABLED)
NEVER = Turn(NOW, lambda: False)


@dataclass(slots=True)
class Mailbox:
    """Mail that is kept. `is_away`: the server takes none."""

    messages: list[Message] = field(default_factory=list)
    is_away: bool = False

    def send(self, message: Message) -> None:
        if self.is_away:
            raise MailFailure("away")
        self.messages.append(message)


@dataclass(slots=True)
class Process:
    """A sender over a database, with a clock that the test sets."""

    database: Database
    at: int = NOW
    networks: tuple[Network, ...] = LOOPBACK
    lines: list[Mapping[str, object]] = field(default_factory=list)
    serial: Iterator[int] = field(default_factory=lambda: iter(range(1, 10_000)))

    def new_id(self, prefix: str) -> str:
        return ids.new_id(prefix, self.at, next(self.serial))

    def sender(self) -> Sender:
        operation = AuditedOperation(
            event="webhook_endpoint.disabled", operation="webhooks", actor=Actor(kind=ActorKind.JOB, id="webhooks")
        )
        return Sender(
            database=self.database,
            recorded=self.database.recording(audit.record_changes(operation, new_id=self.new_id, now=lambda: self.at)),
            open_vault=lambda _organization: VAULT,
            networks=self.networks,
            now=lambda: self.at,
            random=lambda: 0.5,
            log=self.lines.append,
        )

    def run(self) -> None:
        """Deliver until nothing is due."""
        asyncio.run(self.sender().run(NEVER))

    def add(self, url: str, organization_id: str | None = ORGANIZATION) -> WebhookEndpoint:
        """Create an endpoint."""
        id = self.new_id(ids.WEBHOOK_ENDPOINT)
        secret = endpoints.make_secret(id, bytes(range(32)), VAULT)
        made = WebhookEndpoint(
            id=id,
            organization_id=organization_id,
            name="test",
            url=url,
            event_types=TYPES,
            sealed=secret.sealed,
            secret_hint=secret.hint,
            created_at=0,
            updated_at=0,
        )
        with self.database.platform() as tx:
            endpoints.create_endpoint(tx, made)
        return made

    def happen(self, *names: str, organization_id: str | None = ORGANIZATION) -> list[str]:
        """Store events, a millisecond apart; return their ids."""
        events = [
            new_event(EventType.API_KEY_REVOKED, organization_id, at=self.at + 1_000 * at, data={"id": each})
            for at, each in enumerate(names)
        ]
        with self.database.platform() as tx:
            outbox.append(tx, events)
        return [each.id for each in events]

    def state(self, endpoint: WebhookEndpoint) -> WebhookEndpoint:
        """The endpoint as it is stored."""
        with self.database.platform(write=False) as tx:
            return endpoints.get_endpoint(tx, endpoint.organization_id, endpoint.id)

    def deliveries(self, endpoint: WebhookEndpoint) -> dict[str, tuple[DeliveryState, int, int | None, str | None]]:
        """State, attempts, status and error of each delivery to an endpoint, by event."""
        with self.database.platform(write=False) as tx:
            page = storage.list_deliveries(tx, endpoint.id, PageWindow(limit=100), None)
        return {each.event_id: (each.state, each.attempts, each.status, each.error) for each in page.items}


@pytest.fixture
def process(database: Database) -> Process:
    return Process(database)


# ---- The outbox ---------------------------------------------------------------------------------------------------------


def test_an_event_is_stored_with_its_change_or_not_at_all_and_once(process: Process) -> None:
    with pytest.raises(ZeroDivisionError), process.database.platform() as tx:
        outbox.append(tx, [new_event(EventType.API_KEY_REVOKED, ORGANIZATION, at=NOW, data={"id": "key_1"})])
        1 / 0  # noqa: B018
    first = process.happen("key_2", "key_3")
    assert process.happen("key_2") == first[:1], "the same change is the same event"
    process.happen("key_4", organization_id=OTHER_ORGANIZATION)
    process.happen("dep_1", organization_id=None)
    process.run()
    process.happen("key_5")
    process.run()
    with process.database.tenant(ORGANIZATION, write=False) as tx:
        following = outbox.list_following(tx, 0, 100, ())
        later = outbox.list_following(tx, 2, 100, (EventType.API_KEY_REVOKED,))
        pages = [endpoints.follow_events(tx, 0, limit, ()) for limit in (2, 3)]
    assert [each.sequence for each in following] == [1, 2, 3], "numbers of its own, without a gap"
    assert [(len(each.items), each.has_more) for each in pages] == [(2, True), (3, False)]
    assert [each.data["id"] for each in later] == ["key_5"]
    with process.database.platform(write=False) as tx:
        assert len(outbox.list_events(tx, PageWindow(limit=100), EventFilter()).items) == 5


def test_what_happens_by_time_alone_is_told_once_and_old_events_end(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    end = NOW + (EXPIRING_SECONDS + 30) * SECOND
    keys = lambda _tx, since, until: [Due("key_1", ORGANIZATION, end, "proj_1")] if since <= end < until else []  # noqa: E731
    grants = lambda _tx, since, until: [Due("grant_1", ORGANIZATION, NOW + 90 * SECOND)] if since <= NOW + 90 * SECOND < until else []  # noqa: E731
    assert outbox.find_expiring_keys is not None
    with process.database.platform(write=False) as tx:
        assert outbox.find_expiring_keys(tx, 0, NOW) == [] and outbox.find_expired_grants(tx, 0, NOW) == []
    monkeypatch.setattr(outbox, "find_expiring_keys", keys)
    monkeypatch.setattr(outbox, "find_expired_grants", grants)
    told = [searches.tell_of_what_is_due(process.database, NOW + offset * SECOND) for offset in (0, 60, 61, 120, 180)]
    assert told == [0, 1, 0, 1, 0]
    assert searches.remove_old(process.database, NOW + (KEPT_SECONDS + 100) * SECOND, lambda: False) == 0, "not before they are numbered"
    process.run()
    assert searches.remove_old(process.database, NOW + (KEPT_SECONDS + 100) * SECOND, lambda: False) == 2


# ---- Delivery -----------------------------------------------------------------------------------------------------------


def test_a_delivery_is_tried_again_in_order_for_three_days_then_the_endpoint_is_disabled(process: Process) -> None:
    with receiving(lambda _event: 500) as failing, receiving() as other:
        endpoint, healthy = process.add(failing.url), process.add(other.url)
        first, second = process.happen("key_1", "key_2")
        process.run()
        assert process.deliveries(endpoint) == {
            first: (DeliveryState.PENDING, 1, 500, None),
            second: (DeliveryState.PENDING, 0, None, None),
        }, "the second waits for the first"
        assert [each["id"] for each in other.events] == [first, second], "another endpoint does not"
        process.run()
        assert len(failing.sent) == 1, "it is paused"
        failing.answer = lambda _event: 200
        process.at += 10 * SECOND
        process.run()
        assert [each["id"] for each in failing.events] == [first, first, second] and process.state(endpoint).failures == 0
        failing.answer = lambda _event: 503
        (third,) = process.happen("key_3")
        start = process.at
        while process.state(endpoint).disabled_at is None:
            assert process.at < start + 2 * GIVEN_UP_SECONDS * SECOND
            process.run()
            process.at += 6 * 3600 * SECOND
        disabled = process.state(endpoint)
        assert disabled.disabled_reason is DisabledReason.FAILING and process.deliveries(endpoint)[third][0] is DeliveryState.FAILED
        process.run()
        assert (other.events[-1]["type"], other.events[-1]["data"]["reason"]) == ("webhook_endpoint.disabled", "failing")
        assert process.state(healthy).disabled_at is None
        with process.database.tenant(ORGANIZATION, write=False) as tx:
            records = audit.list_records(tx, audit.AuditFilter(events=("webhook_endpoint.disabled",)))
        assert len(records.items) == 1
        count = len(failing.sent)
        process.happen("key_4")
        process.run()
        assert len(failing.sent) == count, "a disabled endpoint gets nothing"
        with process.database.platform() as tx:
            changed = endpoints.update_endpoint(tx, ORGANIZATION, endpoint.id, endpoints.EndpointChanges(enabled=True), process.at)
        since = start // SECOND * SECOND
        endpoints.replay_range(process.database.platform, ORGANIZATION, endpoint.id, since, process.at + 1, process.at)
        failing.answer = lambda _event: 200
        process.run()
        assert changed.disabled_at is None and process.deliveries(endpoint)[third][0] is DeliveryState.DELIVERED


def test_an_endpoint_that_is_gone_or_redirects(process: Process) -> None:
    with receiving(lambda _event: 410) as gone, receiving(lambda _event: 302) as moved:
        first, second = process.add(gone.url), process.add(moved.url)
        (event,) = process.happen("key_1")
        process.run()
        assert process.state(first).disabled_reason is DisabledReason.GONE
        assert process.deliveries(second)[event][:3] == (DeliveryState.PENDING, 1, 302), "a redirect is not followed"


def test_owners_are_written_to_once_the_mail_server_is_back(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    recipients = lambda _tx, _role, _count: [owner_mails.leaked_keys.Recipient("user_1", "owner@example.com")]  # noqa: E731
    monkeypatch.setattr(owner_mails.leaked_keys, "list_recipients", recipients)
    mail = Mailbox(is_away=True)

    def tell(*, is_over: bool = False) -> None:
        owner_mails.tell_owners(process.database, mail, process.lines.append, lambda: process.at, lambda: is_over)

    with receiving(lambda _event: 410) as gone:
        endpoint = process.add(gone.url)
        process.happen("key_1")
        process.run()
    tell()
    mail.is_away = False
    tell(is_over=True)
    assert mail.messages == [] and process.state(endpoint).told_at is None
    tell()
    tell()
    assert [each.recipient for each in mail.messages] == ["owner@example.com"] and process.state(endpoint).told_at == NOW
    assert process.state(endpoint).failing_since == NOW and "The first failure was at 2026-09-21T14:13:20Z." in mail.messages[0].text


def test_163_a_slow_endpoint_holds_up_nobody_else(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived, released = threading.Event(), threading.Event()

    def wait(_event: dict[str, Any]) -> int:
        arrived.wait(PATIENCE_SECONDS)
        released.set()
        return 200

    with receiving(wait) as slow, receiving() as fast:
        many = [process.add(slow.url) for _ in range(delivery.ORGANIZATION_MAX + 2)]
        process.add(fast.url, OTHER_ORGANIZATION)
        process.happen("key_1", organization_id=OTHER_ORGANIZATION)
        process.happen(*(f"key_{number}" for number in range(3)))
        fast.answer = lambda _event: arrived.set() or 204  # type: ignore[func-returns-value]
        process.run()
        assert released.is_set() and len(fast.sent) == 1
        assert all(len(process.deliveries(each)) == 3 for each in many) and len(slow.sent) == 3 * len(many)


def test_163_an_owner_of_many_endpoints_that_wait_longest_keeps_no_place_of_another(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "PROCESS_MAX", 5)
    monkeypatch.setattr(delivery, "ORGANIZATION_MAX", 2)
    sender = process.sender()
    many = [process.add("http://127.0.0.1:1/") for _ in range(6)]
    operators = [process.add("http://127.0.0.1:1/", None) for _ in range(3)]
    process.happen("key_1")
    assert sender._prepare([], ()) == [*many[:2], *operators[:2]]
    process.at += SECOND
    other = process.add("http://127.0.0.1:1/", OTHER_ORGANIZATION)
    process.happen("key_2", organization_id=OTHER_ORGANIZATION)
    assert sender._prepare([], ()) == [*many[:2], *operators[:2], other]
    assert sender._prepare([many[0], *operators[:2]], {many[1].id}) == [many[2], other]
    assert sender._prepare([*many[:2], *operators[:2], other], ()) == []


def test_what_fails_at_one_endpoint_on_our_side_ends_nothing_of_others(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as broken, receiving() as other, receiving() as later:
        first, second = process.add(broken.url), process.add(other.url)
        process.happen("key_1", "key_2")
        store, prepare, prepared = Sender._store, Sender._prepare, iter(range(1, 10_000))

        def fail(self: Sender, attempted: Delivery, outcome: delivery.Outcome) -> None:
            assert attempted.endpoint_id != first.id
            store(self, attempted, outcome)

        def prepare_once(self: Sender, *arguments: Any) -> list[WebhookEndpoint]:
            if next(prepared) > 1:
                raise ZeroDivisionError
            return prepare(self, *arguments)

        monkeypatch.setattr(Sender, "_store", fail)
        with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
            patched.setattr(Sender, "_prepare", prepare_once)
            process.run()
        assert len(other.sent) == 2, "it was served to the end"
        (line,) = process.lines
        assert (line["event"], line["endpoint_id"]) == ("webhook_deliveries_interrupted", first.id)
        assert str(line["detail"]).startswith("AssertionError test_delivery.py:")
        process.add(later.url, OTHER_ORGANIZATION)
        process.happen("key_3", organization_id=OTHER_ORGANIZATION)
        process.run()
        assert len(later.sent) == 1 and len(broken.sent) == 1, "it is paused"
        assert all(each[0] is DeliveryState.DELIVERED for each in process.deliveries(second).values())


def test_a_run_that_is_cancelled_releases_what_it_has_taken(process: Process) -> None:
    arrived, released = threading.Event(), threading.Event()

    async def run_and_cancel() -> None:
        running = asyncio.create_task(process.sender().run(NEVER))
        await asyncio.to_thread(arrived.wait, 20)
        running.cancel()
        await asyncio.wait([running])
        released.set()

    def wait_for_the_end(_event: dict[str, Any]) -> int:
        arrived.set()
        released.wait(PATIENCE_SECONDS)
        return 200

    with receiving(wait_for_the_end) as receiver:
        endpoint = process.add(receiver.url)
        process.happen("key_1", "key_2")
        asyncio.run(run_and_cancel())
        assert process.state(endpoint).paused_until == 0
        process.run()
        assert len(receiver.sent) == 3 and {each[0] for each in process.deliveries(endpoint).values()} == {DeliveryState.DELIVERED}


def test_of_two_processes_one_has_all_of_an_endpoint(process: Process) -> None:
    endpoint = process.add("http://127.0.0.1:1/")
    expected = process.happen(*(f"key_{number}" for number in range(12)))
    process.at += SECOND
    process.sender()._number()
    until = process.at + SECOND
    with process.database.platform() as tx:
        assert [each.event_id for each, _ in storage.take_deliveries(tx, endpoint.id, process.at, until, 10)] == expected[:10]
        assert storage.take_deliveries(tx, endpoint.id, process.at, until, 10) == [], "or the second would send some before the first has"
        storage.release_endpoint(tx, endpoint.id, until, 0)
        assert len(storage.take_deliveries(tx, endpoint.id, process.at, until, 100)) == 12


def test_the_failures_of_deliveries_that_were_given_up_count_no_more(process: Process) -> None:
    with receiving(lambda _event: 503) as receiver:
        endpoint = process.add(receiver.url)
        (event,) = process.happen("key_1")
        process.run()
        while process.deliveries(endpoint)[event][0] is DeliveryState.PENDING:
            assert process.at < NOW + 2 * GIVEN_UP_SECONDS * SECOND
            process.at += 7 * 3600 * SECOND
            process.run()
        process.at += GIVEN_UP_SECONDS * SECOND
        process.happen("key_2")
        process.run()
        state = process.state(endpoint)
        assert (state.disabled_at, state.failures, state.failing_since) == (None, 1, process.at)


def test_a_long_replay_is_made_in_parts_between_which_events_are_numbered(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "REPLAY_ROWS", 2)
    endpoint = process.add("http://127.0.0.1:1/")
    process.happen(*(f"key_{number}" for number in range(5)))
    process.sender()._number()
    numbered: list[int] = []

    @contextmanager
    def begin() -> Iterator[Any]:
        process.happen(f"key_between_{len(numbered)}", organization_id=OTHER_ORGANIZATION)
        numbered.append(process.sender()._number())
        with process.database.platform() as tx:
            yield tx

    assert endpoints.replay_range(begin, ORGANIZATION, endpoint.id, NOW, NOW + SECOND, NOW) == 5 and numbered == [1, 1, 1]


@pytest.mark.postgres
def test_events_are_numbered_while_a_replay_is_not_committed_and_not_while_an_endpoint_ends(process: Process) -> None:
    if process.database.is_sqlite:
        pytest.skip("it has one writer at a time")
    endpoint = process.add("http://127.0.0.1:1/")
    (event,) = process.happen("key_1")
    process.sender()._number()
    process.happen("key_2")
    with process.database.platform() as tx:
        endpoints.replay_event(tx, ORGANIZATION, endpoint.id, event, NOW)
        assert process.sender()._number() == 1
    process.happen("key_3")
    with ThreadPoolExecutor(1) as thread:
        with process.database.platform() as tx:
            endpoints.delete_endpoint(tx, ORGANIZATION, endpoint.id)
            numbering = thread.submit(process.sender()._number)
            assert not wait([numbering], 0.5).done
        assert numbering.result(20) == 1, "the endpoint is read when it is gone"


@pytest.mark.postgres
def test_two_who_create_the_last_endpoint_at_once_take_turns(process: Process) -> None:
    if process.database.is_sqlite:
        pytest.skip("it has one writer at a time")
    first, *_ = [process.add("http://127.0.0.1:1/") for _ in range(ENDPOINTS_MAX - 1)]
    last, one_more = (replace(first, id=process.new_id(ids.WEBHOOK_ENDPOINT)) for _ in range(2))

    def create_one_more() -> None:
        with process.database.tenant(ORGANIZATION) as tx:
            endpoints.create_endpoint(tx, one_more)

    with ThreadPoolExecutor(1) as thread:
        with process.database.tenant(ORGANIZATION) as tx:
            endpoints.create_endpoint(tx, last)
            creating = thread.submit(create_one_more)
            assert not wait([creating], 0.5).done
        with pytest.raises(Fault):
            creating.result(20)


def test_two_processes_share_the_deliveries(process: Process) -> None:
    async def run_both() -> None:
        await asyncio.gather(process.sender().run(NEVER), Process(process.database).sender().run(NEVER))

    with receiving() as receiver:
        process.add(receiver.url)
        expected = process.happen(*(f"key_{number}" for number in range(25)))
        asyncio.run(run_both())
        assert sorted(each["id"] for each in receiver.events) == sorted(expected), "each once, while nobody dies"


SENDING = """
import asyncio, sys
from tests.control.eventing.test_delivery import NEVER, Process
from tollway.storage.database import Database
process = Process(Database.open(sys.argv[1]), at=int(sys.argv[2]))
asyncio.run(process.sender().run(NEVER))
"""


def test_no_event_is_lost_when_processes_that_deliver_are_killed(process: Process, database_url: str) -> None:
    killing: list[subprocess.Popen[bytes]] = []

    def answer(_event: dict[str, Any]) -> int:
        for each in killing:
            each.send_signal(signal.SIGKILL)
        return 204

    with receiving(answer) as receiver:
        endpoint = process.add(receiver.url)
        expected = process.happen(*(f"key_{number}" for number in range(4)))
        killed = subprocess.Popen([sys.executable, "-c", SENDING, database_url, str(NOW)], cwd=Path(__file__).parents[3])
        killing.append(killed)
        killed.wait(PATIENCE_SECONDS)
        killing.clear()
        process.run()
        assert len(receiver.sent) == 1, "what the dead process took is not due yet"
        process.at += int(delivery.TAKEN_SECONDS * SECOND)
        process.run()
        assert [each["id"] for each in receiver.events] == [expected[0], *expected]
        assert {each[0] for each in process.deliveries(endpoint).values()} == {DeliveryState.DELIVERED}


# ---- Addresses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/", "http://example.com/", "https:///x", "https://user@example.com/", "https://example.com/#x", "https://localhost/",
        "https://intranet/", "https://db.internal/", "https://127.0.0.1/", "https://[::1]/", "https://10.1.2.3/", "https://169.254.169.254/",
        "https://[::ffff:10.0.0.1]/", "https://[64:ff9b::a00:1]/", "https://0.0.0.0/", "https://100.64.0.1/", "https://exämple.com/", "",
        "https://example.com/" + "x" * 2048,
    ],
)  # fmt: skip
def test_162_addresses_that_are_not_public_are_refused(url: str) -> None:
    with pytest.raises(AddressRefused):
        check_url(url, ())


@pytest.mark.parametrize(
    "resolved", [["10.0.0.1"], ["93.184.216.34", "127.0.0.1"], ["fd00::1"], ["::ffff:192.168.0.1"], ["169.254.169.254"]]
)
def test_162_names_that_resolve_to_private_addresses_are_refused(resolved: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_names, "_resolve", lambda _host, _port: resolved)
    with pytest.raises(AddressRefused):
        asyncio.run(find_peer("https://example.com/", (), ORGANIZATION))


def test_162_a_connection_is_made_to_the_address_that_was_checked(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as receiver:
        answers = iter([["127.0.0.1"], ["127.0.0.2"]])
        monkeypatch.setattr(host_names, "_resolve", lambda _host, _port: next(answers))
        endpoint = process.add(receiver.url.replace("127.0.0.1", "receiver.example"))
        process.networks = (ipaddress.ip_network("127.0.0.1/32"),)
        first, second = process.happen("key_1", "key_2")
        process.run()
        assert receiver.sent[0][0]["host"].startswith("receiver.example:")
        assert process.deliveries(endpoint)[first][0] is DeliveryState.DELIVERED
        assert process.deliveries(endpoint)[second][3] == "address refused: its host is not public", "it resolves to another one now"


def test_163_names_that_do_not_resolve_keep_threads_of_their_organization_alone(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def resolve(host: str, _port: int) -> list[str]:
        if host == "stuck.example":
            released.wait(PATIENCE_SECONDS)
        return ["127.0.0.1"]

    monkeypatch.setattr(host_names, "_resolve", resolve)
    monkeypatch.setattr(host_names, "RESOLVE_SECONDS_MAX", 0.01)
    for _ in range(host_names.OWNER_NAMES_MAX):
        with pytest.raises(AddressRefused):
            asyncio.run(find_peer("https://stuck.example/", LOOPBACK, ORGANIZATION))
    with pytest.raises(NamesBusy):
        asyncio.run(find_peer("https://example.com/", LOOPBACK, ORGANIZATION))
    monkeypatch.setattr(host_names, "RESOLVE_SECONDS_MAX", 20)
    assert asyncio.run(find_peer("https://example.com/", LOOPBACK, OTHER_ORGANIZATION)).host == "example.com"
    with receiving() as receiver:
        endpoint = process.add(receiver.url.replace("127.0.0.1", "receiver.example"))
        (event,) = process.happen("key_1")
        process.run()
        assert process.deliveries(endpoint)[event] == (DeliveryState.PENDING, 0, None, None) and process.state(endpoint).failures == 0
        released.set()
        wait_until(lambda: not host_names._resolving)
        process.at += int(delivery.BUSY_SECONDS * SECOND)
        process.run()
        assert len(receiver.sent) == 1


# ---- Schedules ----------------------------------------------------------------------------------------------------------


def test_pauses_grow_and_end_after_three_days() -> None:
    at, attempts, pauses = 0, 0, []
    while True:
        attempts += 1
        next_at = find_next_attempt(0, attempts, at, 0.5)
        if next_at is None:
            break
        pauses.append((next_at - at) // SECOND)
        at = next_at
    assert pauses[: len(RETRY_SECONDS)] == list(RETRY_SECONDS) and sum(pauses) <= GIVEN_UP_SECONDS < sum(pauses) + pauses[-1]
    spread: Callable[[float], int] = lambda random: find_pause_end(1, 0, random)  # noqa: E731
    assert spread(0.0) < spread(0.5) < spread(1.0) and find_pause_end(100, 0, 1.0) <= 4_320 * SECOND
