"""The delivery of events to webhook endpoints, at least once.

Theory of operation. Events without a number get one, and a row for each endpoint that asks for their type, in one transaction. A process
takes the deliveries of an endpoint that are due, for a time (`storage.webhooks`), and sends them one after the other in the order of their
events; whatever it did not get to, because it was killed, is due again after that time. Any number of control processes do this beside each
other. A receiver tells by `webhook-id` what it was sent before.

An endpoint that fails is paused, longer with each failure, and each of its deliveries is tried for three days. Endpoints wait for each
other in no case but one: an organization has ORGANIZATION_MAX at a time, and a process PROCESS_MAX.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2
import msgspec
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from tollway.control.eventing.addresses import AddressRefused, find_peer
from tollway.control.eventing.endpoints import open_secrets
from tollway.control.identity.mail import Mail, MailFailure, Message, MessageRefused
from tollway.control.jobs import Turn
from tollway.domain.events import Event, EventType, encode, new_event
from tollway.domain.faults import Fault
from tollway.domain.networks import Network
from tollway.domain.roles import OWNER
from tollway.domain.webhooks import (
    GIVEN_UP_SECONDS,
    Delivery,
    DeliveryState,
    DisabledReason,
    WebhookEndpoint,
    find_next_attempt,
    find_pause_end,
    sign,
)
from tollway.metric_table import find_metric
from tollway.storage import leaked_keys, outbox
from tollway.storage import webhooks as storage
from tollway.storage.database import Database
from tollway.storage.vault import LocalVault
from tollway.worker_threads import run_in_thread

SECONDS = 2.0
"""Interval of the job. While nothing is due it reads two index entries."""

RUN_SECONDS = 60.0
"""Time after which one run takes nothing more."""

DEADLINE_SECONDS = 600.0
"""Deadline for one run."""

ATTEMPT_SECONDS_MAX = 10.0
"""Deadline for one attempt: the name, the connection, the answer's status."""

TAKEN_MAX = 10
"""Deliveries of an endpoint that are taken at once."""

TAKEN_SECONDS = TAKEN_MAX * ATTEMPT_SECONDS_MAX + 60
"""Time for which they are taken: after a kill they are due again then."""

ORGANIZATION_MAX = 4
"""Endpoints of one organization that a process sends to at a time; one that fails counts until its pause."""

PROCESS_MAX = 128
"""Endpoints that a process sends to at a time."""

NUMBERED_MAX = 500
"""Events that one transaction numbers."""

TOLD_MAX = 20
"""Owners who are written to about one endpoint, and endpoints of one turn."""

USER_AGENT = "tollway-webhooks/1"


class Outcome(NamedTuple):
    """Outcome of an attempt: the status of the answer, or why there was none."""

    status: int | None = None
    error: str | None = None

    @property
    def is_success(self) -> bool:
        """Return whether the receiver has taken the event."""
        return self.status is not None and 200 <= self.status < 300


class WebhookCounts(Collector):
    """Attempts of one process, by result."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def count(self, result: str) -> None:
        """Count one, in the event loop."""
        self._counts[result] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield the counts."""
        row = find_metric("tollway_control_webhook_attempts")
        family = CounterMetricFamily(row.name, row.text, labels=row.labels)
        for result, count in dict(self._counts).items():
            family.add_metric([result], count)
        yield family


@asynccontextmanager
async def _open_client() -> AsyncIterator[httpx2.AsyncClient]:
    # A connection is kept for nobody: the pool knows it by its address alone, and another endpoint's certificate may be behind that.
    limits = httpx2.Limits(max_connections=PROCESS_MAX, max_keepalive_connections=0)
    async with httpx2.AsyncClient(limits=limits, follow_redirects=False, trust_env=False, timeout=ATTEMPT_SECONDS_MAX) as client:
        yield client


async def post(client: httpx2.AsyncClient, url: str, networks: Sequence[Network], headers: Mapping[str, str], body: bytes) -> Outcome:
    """Send a body, and read of the answer the status alone."""
    try:
        async with asyncio.timeout(ATTEMPT_SECONDS_MAX):
            peer = await find_peer(url, networks)
            parts = urlsplit(url)
            pinned = parts._replace(netloc=peer.address).geturl()
            sent = {**headers, "host": peer.authority, "content-type": "application/json", "user-agent": USER_AGENT}
            request = client.stream("POST", pinned, content=body, headers=sent, extensions={"sni_hostname": peer.host})
            async with request as answer:
                return Outcome(status=answer.status_code)
    except AddressRefused as refused:
        return Outcome(error=f"address refused: {refused}"[:64])
    except TimeoutError:
        return Outcome(error="timeout")
    except httpx2.TimeoutException:
        return Outcome(error="timeout")
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError, UnicodeError):
        return Outcome(error="connection failed")


async def send_test(url: str, networks: Sequence[Network], secrets: Sequence[str], event: Event, now: int) -> Outcome:
    """Send an event once, at once, and store nothing of it."""
    body = encode(event)
    async with _open_client() as client:
        return await post(client, url, networks, sign(secrets, event.id, now // 1_000_000, body), body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """The parts of a process with which it delivers. `recorded`: the database whose changes the audit trail has as the end of an endpoint.
    `open_vault`: for secrets of an organization, or of the operators (None). `networks`: private ones that webhooks may reach. `random`:
    from 0 to 1."""

    database: Database
    recorded: Database
    open_vault: Callable[[str | None], LocalVault]
    networks: tuple[Network, ...]
    mail: Mail
    now: Callable[[], int]
    random: Callable[[], float]
    log: Callable[[Mapping[str, object]], None]
    counts: WebhookCounts = field(default_factory=WebhookCounts)

    async def run(self, turn: Turn) -> None:
        """Number new events and deliver what is due, until nothing is or RUN_SECONDS are over."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + RUN_SECONDS
        await run_in_thread(self._tell_owners)
        working: dict[asyncio.Task[None], WebhookEndpoint] = {}
        async with _open_client() as client:
            try:
                while True:
                    if loop.time() < ends_at and not turn.is_over():
                        for endpoint in await run_in_thread(self._prepare, list(working.values())):
                            working[asyncio.create_task(self._serve(client, endpoint))] = endpoint
                    if not working:
                        return
                    done, _ = await asyncio.wait(working, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        del working[task]
                        task.result()
            finally:
                for task in working:
                    task.cancel()
                if working:
                    await asyncio.wait(working)

    def _prepare(self, working: Sequence[WebhookEndpoint]) -> list[WebhookEndpoint]:
        """Number new events, and return endpoints to be served now."""
        while self._number() == NUMBERED_MAX:
            pass
        with self.database.platform(write=False) as tx:
            due = storage.list_due_endpoints(tx, self.now(), {each.id for each in working}, PROCESS_MAX)
        chosen: list[WebhookEndpoint] = []
        busy = Counter(each.organization_id for each in working)
        for endpoint in due:
            if len(working) + len(chosen) < PROCESS_MAX and busy[endpoint.organization_id] < ORGANIZATION_MAX:
                busy[endpoint.organization_id] += 1
                chosen.append(endpoint)
        return chosen

    def _number(self) -> int:
        with self.database.platform(write=False) as tx:
            if not outbox.has_unnumbered(tx):
                return 0
        with self.database.platform() as tx:
            events = outbox.number(tx, NUMBERED_MAX)
            owners = {each.organization_id for each in events if each.organization_id is not None}
            receivers = storage.list_receivers(tx, owners)
            pairs = [
                (endpoint, event.id)
                for event in events
                for endpoint in receivers
                if event.type in endpoint.event_types
                and endpoint.organization_id in (None, event.organization_id)
                and endpoint.created_at <= event.created_at
            ]
            storage.insert_deliveries(tx, pairs, self.now())
        return len(events)

    async def _serve(self, client: httpx2.AsyncClient, endpoint: WebhookEndpoint) -> None:
        """Send to an endpoint what is due, until one fails."""
        taken = await run_in_thread(self._take, endpoint.id)
        for index, (delivery, event) in enumerate(taken):
            outcome = await self._attempt(client, endpoint, event)
            self.counts.count("succeeded" if outcome.is_success else "failed")
            await run_in_thread(self._store, delivery, outcome)
            if not outcome.is_success:
                rest = [each.id for _, each in taken[index + 1 :]]
                await run_in_thread(self._release, endpoint.id, rest)
                return

    def _take(self, endpoint_id: str) -> list[tuple[Delivery, Event]]:
        now = self.now()
        with self.database.platform() as tx:
            return storage.take_deliveries(tx, endpoint_id, now, now + int(TAKEN_SECONDS * 1_000_000), TAKEN_MAX)

    async def _attempt(self, client: httpx2.AsyncClient, endpoint: WebhookEndpoint, event: Event) -> Outcome:
        try:
            secrets = await run_in_thread(self._open_secrets, endpoint)
        except (Fault, ValueError):  # the key of the organization cannot be had now, or was destroyed
            return Outcome(error="signing secret unavailable")
        body = encode(event)
        return await post(client, endpoint.url, self.networks, sign(secrets, event.id, self.now() // 1_000_000, body), body)

    def _open_secrets(self, endpoint: WebhookEndpoint) -> list[str]:
        return open_secrets(endpoint, self.open_vault(endpoint.organization_id), self.now())

    def _store(self, delivery: Delivery, outcome: Outcome) -> None:
        """Store the outcome of an attempt, and what follows from it for the endpoint."""
        now, attempts = self.now(), delivery.attempts + 1
        next_at = None if outcome.is_success else find_next_attempt(delivery.since_at, attempts, now, self.random())
        ended = DeliveryState.DELIVERED if outcome.is_success else DeliveryState.FAILED
        after = msgspec.structs.replace(
            delivery,
            state=ended if next_at is None else DeliveryState.PENDING,
            attempts=attempts,
            next_at=next_at or now,
            attempted_at=now,
            status=outcome.status,
            error=outcome.error,
        )
        with self.database.platform() as tx:
            endpoint = storage.lock_endpoint(tx, delivery.endpoint_id)
            if endpoint is None:  # deleted meanwhile, with its deliveries
                return
            storage.put_delivery(tx, after)
            if outcome.is_success:
                if endpoint.failures:
                    storage.put_endpoint(tx, msgspec.structs.replace(endpoint, failures=0, failing_since=None, paused_until=0))
                return
            failures, since = endpoint.failures + 1, endpoint.failing_since or now
            paused_until = find_pause_end(failures, now, self.random())
            endpoint = msgspec.structs.replace(endpoint, failures=failures, failing_since=since, paused_until=paused_until)
            storage.put_endpoint(tx, endpoint)
        if outcome.status == 410:
            self._disable(endpoint, DisabledReason.GONE)
        elif now - since >= GIVEN_UP_SECONDS * 1_000_000:
            self._disable(endpoint, DisabledReason.FAILING)

    def _disable(self, endpoint: WebhookEndpoint, reason: DisabledReason) -> None:
        """Let an endpoint get no more events, and tell the other endpoints."""
        now = self.now()
        owner = endpoint.organization_id
        with self.recorded.platform() if owner is None else self.recorded.tenant(owner) as tx:
            found = storage.find_endpoint(tx, owner, endpoint.id, lock=True)
            if found is None or found.disabled_at is not None:
                return
            storage.put_endpoint(tx, msgspec.structs.replace(found, disabled_at=now, disabled_reason=reason))
            storage.fail_pending(tx, endpoint.id)
            said = {"id": endpoint.id, "reason": str(reason)}
            outbox.append(tx, [new_event(EventType.WEBHOOK_ENDPOINT_DISABLED, owner, at=now, data=said)])
        self.log({"event": "webhook_endpoint_disabled", "endpoint_id": endpoint.id, "organization_id": owner, "reason": str(reason)})

    def _release(self, endpoint_id: str, event_ids: Sequence[str]) -> None:
        if event_ids:
            with self.database.platform() as tx:
                storage.release_deliveries(tx, endpoint_id, event_ids, self.now())

    def _tell_owners(self) -> None:
        """Write to the owners of organizations whose endpoints were disabled. Ends where the mail server takes nothing; the next turn goes
        on."""
        with self.database.platform(write=False) as tx:
            untold = storage.list_untold(tx, TOLD_MAX)
        for endpoint in untold:
            assert endpoint.organization_id is not None
            with self.database.tenant(endpoint.organization_id, write=False) as tenant:
                recipients = leaked_keys.list_recipients(tenant, OWNER.id, TOLD_MAX)
            for recipient in recipients:
                try:
                    self.mail.send(Message(recipient.address, "A webhook endpoint of Tollway was disabled", _describe(endpoint)))
                except MailFailure as failure:
                    self.log({"event": "mail_failed", "endpoint_id": endpoint.id, "detail": str(failure)})
                    if not isinstance(failure, MessageRefused):
                        return
            with self.database.platform() as tx:
                storage.put_told(tx, endpoint.id, self.now())


def _describe(endpoint: WebhookEndpoint) -> str:
    why = "it answered 410 Gone" if endpoint.disabled_reason is DisabledReason.GONE else "no delivery has succeeded for three days"
    return (
        f"The webhook endpoint {endpoint.id} was disabled, because {why}. It gets no more events.\n\n"
        "Repair the receiver, enable the endpoint, and replay the events of the time between: see `tollway webhooks replay`. "
        "Events are kept for 30 days.\n"
    )
