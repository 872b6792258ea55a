"""The delivery of events to webhook endpoints, at least once.

Theory of operation. Events without a number get one, and a row for each endpoint that asks for their type, in one transaction. A process
takes an endpoint for a time (`storage.webhooks`), and sends it what is due, one after the other in the order of the events; whatever it did
not get to, because it was killed, is due again after that time. Any number of control processes do this beside each other. A receiver tells
by `webhook-id` what it was sent before.

An endpoint that fails is paused, longer with each failure, and each of its deliveries is tried for three days. Endpoints wait for each
other in no case but one: an organization has ORGANIZATION_MAX at a time, and a process PROCESS_MAX. What goes wrong at one endpoint on our
side (a defect, the database) is logged, and ends nothing of the others.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2
import msgspec
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from tollway.control import foreign_hosts
from tollway.control.eventing.addresses import AddressRefused, find_peer
from tollway.control.eventing.endpoints import open_secrets
from tollway.control.eventing.receivers import serve_due
from tollway.control.foreign_hosts import AnswerInvalid, Host
from tollway.control.host_names import NamesBusy
from tollway.control.jobs import Turn, describe_failure
from tollway.domain.events import Event, EventType, encode, new_event
from tollway.domain.faults import Fault
from tollway.domain.networks import Network
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
from tollway.storage import outbox
from tollway.storage import webhooks as storage
from tollway.storage.database import Database
from tollway.storage.vault import LocalVault
from tollway.worker_threads import run_in_thread

SECONDS = 2.0
"""Interval of the job. While nothing is due it reads an index entry of the events without a number, and one of each enabled endpoint."""

RUN_SECONDS = 60.0
"""Time after which one run takes nothing more."""

DEADLINE_SECONDS = 600.0
"""Deadline for one run."""

ATTEMPT_SECONDS_MAX = 10.0
"""Deadline for one attempt: the name, the connection, the answer's status."""

TAKEN_MAX = 10
"""Deliveries of an endpoint that are sent before it is taken anew."""

TAKEN_SECONDS = TAKEN_MAX * ATTEMPT_SECONDS_MAX + 60
"""Time for which an endpoint is taken: after a kill its deliveries are due again then."""

BUSY_SECONDS = 5.0
"""Pause of an endpoint whose name could not be resolved because too many names are being resolved."""

ORGANIZATION_MAX = 4
"""Endpoints of one organization that a process sends to at a time; one that fails counts until its pause."""

PROCESS_MAX = 128
"""Endpoints that a process sends to at a time."""

NUMBERED_MAX = 500
"""Events that one transaction numbers."""

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


async def post(url: str, owner: str | None, networks: Sequence[Network], headers: Mapping[str, str], body: bytes) -> Outcome:
    """Send a body to the URL of an organization, or of the operators (None), and read of the answer the status alone. `headers`: in lower
    case. Raises NamesBusy."""
    try:
        async with asyncio.timeout(ATTEMPT_SECONDS_MAX):
            peer = await find_peer(url, networks, owner)
            sent = {"content-type": "application/json", **headers, "host": peer.authority, "user-agent": USER_AGENT}
            tls_name = peer.host if urlsplit(url).scheme == "https" else None
            answer = await foreign_hosts.exchange(Host(peer.address, peer.port, tls_name), "POST", url, sent, body)
            return Outcome(status=answer.status)
    except AddressRefused as refused:
        return Outcome(error=f"address refused: {refused}"[:64])
    except TimeoutError:
        return Outcome(error="timeout")
    except (AnswerInvalid, httpx2.InvalidURL, OSError, UnicodeError):
        return Outcome(error="connection failed")


async def send_test(endpoint: WebhookEndpoint, networks: Sequence[Network], secrets: Sequence[str], event: Event, now: int) -> Outcome:
    """Send an event once, at once, and store nothing of it. Raises NamesBusy."""
    body = encode(event)
    headers = sign(secrets, event.id, now // 1_000_000, body)
    return await post(endpoint.url, endpoint.organization_id, networks, headers, body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """The parts of a process with which it delivers. `recorded`: the database whose changes the audit trail has as the end of an endpoint.
    `open_vault`: for secrets of an organization, or of the operators (None). `networks`: private ones that webhooks may reach. `random`:
    from 0 to 1."""

    database: Database
    recorded: Database
    open_vault: Callable[[str | None], LocalVault]
    networks: tuple[Network, ...]
    now: Callable[[], int]
    random: Callable[[], float]
    log: Callable[[Mapping[str, object]], None]
    counts: WebhookCounts = field(default_factory=WebhookCounts)

    async def run(self, turn: Turn) -> None:
        """Number new events and deliver what is due, until nothing is or RUN_SECONDS are over. Raises what kept it from finding out what is
        due, once the attempts that had begun are over."""
        failed: set[str] = set()

        def note_interrupted(endpoint: WebhookEndpoint, raised: BaseException) -> None:
            failed.add(endpoint.id)
            said = {"endpoint_id": endpoint.id, "organization_id": endpoint.organization_id}
            self.log({"event": "webhook_deliveries_interrupted", **said, "detail": describe_failure(raised)})

        await serve_due(turn, RUN_SECONDS, lambda working: self._prepare(working, failed), self._serve, note_interrupted)

    def _prepare(self, working: Sequence[WebhookEndpoint], failed: Collection[str]) -> list[WebhookEndpoint]:
        """Number new events, and return endpoints to be served now, without those that failed."""
        while self._number() == NUMBERED_MAX:
            pass
        space = PROCESS_MAX - len(working)
        if space <= 0:
            return []
        without, busy = {each.id for each in working} | set(failed), Counter(each.organization_id for each in working)
        with self.database.platform(write=False) as tx:
            return storage.list_due_endpoints(tx, self.now(), without, busy, ORGANIZATION_MAX, space)

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

    async def _serve(self, endpoint: WebhookEndpoint) -> None:
        """Send to an endpoint what is due, until one fails. After an error the endpoint stays taken, which is its pause."""
        now = self.now()
        until = now + int(TAKEN_SECONDS * 1_000_000)
        taken: list[tuple[Delivery, Event]] = []  # known here also where this is cancelled while a thread takes them
        try:
            await run_in_thread(lambda: taken.extend(self._take(endpoint.id, now, until)))
            for delivery, event in taken:
                outcome = await self._attempt(endpoint, event)
                self.counts.count("succeeded" if outcome.is_success else "failed")
                await run_in_thread(self._store, delivery, outcome)
                if not outcome.is_success:
                    return  # it is paused
        except NamesBusy:
            await run_in_thread(self._release, endpoint.id, until, self.now() + int(BUSY_SECONDS * 1_000_000))
        except asyncio.CancelledError:
            if taken:
                await run_in_thread(self._release, endpoint.id, until, 0)
            raise
        else:
            if taken:
                await run_in_thread(self._release, endpoint.id, until, 0)

    def _take(self, endpoint_id: str, now: int, until: int) -> list[tuple[Delivery, Event]]:
        with self.database.platform() as tx:
            return storage.take_deliveries(tx, endpoint_id, now, until, TAKEN_MAX)

    async def _attempt(self, endpoint: WebhookEndpoint, event: Event) -> Outcome:
        try:
            secrets = await run_in_thread(self._open_secrets, endpoint)
        except Fault:  # the key of the organization cannot be had now, or was destroyed
            return Outcome(error="signing secret unavailable")
        body = encode(event)
        headers = sign(secrets, event.id, self.now() // 1_000_000, body)
        return await post(endpoint.url, endpoint.organization_id, self.networks, headers, body)

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
                    storage.put_endpoint(tx, msgspec.structs.replace(endpoint, failures=0, failing_since=None))
                return
            failures, since = endpoint.failures + 1, endpoint.failing_since or now
            paused_until = find_pause_end(failures, now, self.random())
            is_failing = next_at is not None or storage.has_pending(tx, endpoint.id)
            endpoint = msgspec.structs.replace(
                endpoint,
                failures=failures if is_failing else 0,  # while nothing is left to deliver, nobody knows whether it would fail
                failing_since=since if is_failing else None,
                paused_until=paused_until,
            )
            storage.put_endpoint(tx, endpoint)
        if outcome.status == 410:
            self._disable(endpoint, DisabledReason.GONE, since)
        elif now - since >= GIVEN_UP_SECONDS * 1_000_000:
            self._disable(endpoint, DisabledReason.FAILING, since)

    def _disable(self, endpoint: WebhookEndpoint, reason: DisabledReason, since: int) -> None:
        """Let an endpoint, which has failed since an instant, get no more events, and tell the other endpoints."""
        now = self.now()
        owner = endpoint.organization_id
        with self.recorded.platform() if owner is None else self.recorded.tenant(owner) as tx:
            found = storage.find_endpoint(tx, owner, endpoint.id, lock=True)
            if found is None or found.disabled_at is not None:
                return
            ended = msgspec.structs.replace(found, disabled_at=now, disabled_reason=reason, failing_since=since, told_at=None)
            storage.put_endpoint(tx, ended)
            storage.fail_pending(tx, endpoint.id)
            said = {"id": endpoint.id, "reason": str(reason)}
            outbox.append(tx, [new_event(EventType.WEBHOOK_ENDPOINT_DISABLED, owner, at=now, data=said)])
        self.log({"event": "webhook_endpoint_disabled", "endpoint_id": endpoint.id, "organization_id": owner, "reason": str(reason)})

    def _release(self, endpoint_id: str, until: int, paused_until: int) -> None:
        with self.database.platform() as tx:
            storage.release_endpoint(tx, endpoint_id, until, paused_until)
