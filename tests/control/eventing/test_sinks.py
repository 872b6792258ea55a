"""Sinks: each record of the streams arrives at least once and in order, whatever is killed or away in between."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import confluent_kafka
import msgspec
import nats
import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from reliability.platforms import reserved_ports
from tests.control.eventing.brokers import Broker, running_kafka, running_nats
from tests.control.eventing.receivers import receiving
from tests.control.metering.test_collect import NOW as NOW_OF_RECORDS
from tests.control.metering.test_collect import take
from tests.link.samples import EPOCH, NODE, ORGANIZATION, OTHER_NODE, OTHER_ORGANIZATION, exchanges, frames, request_id
from tollway.cli.operation.control import find_control_problems
from tollway.control.auditing import audit
from tollway.control.auditing.audit import AuditedOperation
from tollway.control.eventing import kafka_sink, sinks
from tollway.control.eventing.http_sink import HttpSink
from tollway.control.eventing.kafka_sink import KafkaSink
from tollway.control.eventing.nats_sink import NatsSink
from tollway.control.eventing.sinks import Feed, Sink, SinkCounts, SinkFailure
from tollway.control.jobs import Turn
from tollway.domain import ids
from tollway.domain.audit import Actor, ActorKind
from tollway.domain.events import EventType, new_event
from tollway.domain.sinks import SinkMessage, Stream, count_fitting
from tollway.settings import ControlSection, SinksSection
from tollway.storage import outbox, sink_positions, usage_batches
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive

NOW = EPOCH + 3_600_000_000
NEVER = Turn(NOW, lambda: False)
SECRET = "whsec_" + "A" * 32
ALL = tuple(Stream)


@dataclass(slots=True)
class Kept:
    """A sink in memory. `is_away`: it fails after it has stored half of what it is handed."""

    name: str = "kept"
    stored: list[SinkMessage] = field(default_factory=list)
    is_away: bool = False

    async def send(self, messages: Sequence[SinkMessage]) -> None:
        if self.is_away:
            self.stored += messages[: len(messages) // 2]
            raise SinkFailure("away")
        self.stored += messages

    async def close(self) -> None: ...


@dataclass(slots=True)
class Happening:
    """A database in which things happen, and what a sink is fed from."""

    database: Database
    archive: Archive
    at: int = NOW
    lines: list[Any] = field(default_factory=list)
    serial: int = 0
    used: dict[str, int] = field(default_factory=dict)

    def feed(self, sink: Sink, streams: tuple[Stream, ...] = ALL) -> Feed:
        return Feed(database=self.database, sink=sink, streams=streams, now=lambda: self.at, log=self.lines.append)

    def run(self, feed: Feed) -> None:
        with self.database.platform() as tx:
            outbox.number(tx, 500)
        asyncio.run(feed.run(NEVER))

    def new_id(self, prefix: str) -> str:
        self.serial += 1
        return ids.new_id(prefix, self.at, self.serial)

    def event(self, name: str, organization_id: str | None = ORGANIZATION) -> str:
        """Let an event happen; return its id."""
        self.at += 1_000
        happened = new_event(EventType.API_KEY_REVOKED, organization_id, at=self.at, data={"id": name})
        with self.database.platform() as tx:
            outbox.append(tx, [happened])
        return happened.id

    def audit(self, organization_id: str | None = ORGANIZATION) -> None:
        """Let something be recorded."""
        operation = AuditedOperation(event="test.read", operation="test", actor=Actor(kind=ActorKind.COMMAND, id="test"))
        audit.record_read(self.database, organization_id, operation, new_id=self.new_id, now=self.at)

    def use(self, until: int, organization_id: str = ORGANIZATION, node_id: str = NODE) -> list[str]:
        """Let a gateway send what it has not sent of its requests up to a number. Return their ids."""
        first = self.used.get(node_id, 0) + 1
        body = frames(exchanges(range(1 + self.offset(node_id), until + 1 + self.offset(node_id))), node_id)
        take(self.database, self.archive, body[2 * (first - 1) :], first_seq=2 * first - 1, node_id=node_id)
        self.used[node_id] = until
        return [request_id(number + self.offset(node_id)) for number in range(first, until + 1)]

    def offset(self, node_id: str) -> int:
        """Number that is added to those of a gateway's requests."""
        return 0 if node_id == NODE else 1_000


@pytest.fixture
def happening(database: Database, archive: Archive) -> Happening:
    return Happening(database, archive)


def ids_of(stored: Sequence[SinkMessage], stream: Stream, owner: str | None = None) -> list[str]:
    return [each.id for each in stored if each.stream is stream and owner in (None, each.owner)]


def test_a_sink_gets_what_happens_after_it_has_begun_once_and_in_order(happening: Happening) -> None:
    happening.event("before")
    happening.audit()
    happening.use(2)
    kept = Kept()
    feed = happening.feed(kept)
    happening.run(feed)
    assert kept.stored == [], "it begins with what happens next"

    told = [happening.event("one"), happening.event("platform", None), happening.event("other", OTHER_ORGANIZATION), happening.event("two")]
    for owner in (ORGANIZATION, None, ORGANIZATION):
        happening.audit(owner)
    used = happening.use(4) + happening.use(2, node_id=OTHER_NODE) + happening.use(5)
    happening.run(feed)
    happening.run(feed)

    assert sorted(ids_of(kept.stored, Stream.EVENTS)) == sorted(told)
    assert ids_of(kept.stored, Stream.EVENTS, ORGANIZATION) == [told[0], told[3]] and ids_of(kept.stored, Stream.EVENTS, "platform") == [
        told[1]
    ]
    assert len(ids_of(kept.stored, Stream.AUDIT, ORGANIZATION)) == 2 and len(ids_of(kept.stored, Stream.AUDIT, "platform")) == 1
    usage = ids_of(kept.stored, Stream.USAGE)
    assert sorted(usage) == sorted(used)
    assert [each for each in usage if each in used[:2] + used[4:]] == used[:2] + used[4:], "in the order in which a gateway wrote them"
    shown = msgspec.json.decode(next(each.body for each in kept.stored if each.stream is Stream.USAGE))
    assert shown["object"] == "usage_event" and shown["input_pico"] == 100 * 270_000 and shown["currency"] == "EUR"
    record = msgspec.json.decode(next(each.body for each in kept.stored if each.stream is Stream.AUDIT and each.owner == ORGANIZATION))
    assert (record["object"], record["sequence"], record["actor"]["id"], record["changes"]) == ("audit_record", 2, "test", [])
    assert feed.counts.sent == {("kept", Stream.EVENTS): 4, ("kept", Stream.AUDIT): 3, ("kept", Stream.USAGE): 5}


def test_usage_is_noted_only_while_somebody_follows_it_and_for_a_bounded_time(happening: Happening) -> None:
    happening.use(1)
    with happening.database.platform(write=False) as tx:
        assert usage_batches.find_next(tx, -1) is None and not usage_batches.is_followed(tx)
    kept = Kept(is_away=True)
    feed = happening.feed(kept)
    happening.run(feed)
    happening.use(3)
    happening.audit()
    with pytest.raises(SinkFailure):
        happening.run(feed)
    assert feed.counts.waiting["kept", Stream.USAGE] == 1 and feed.counts.waiting["kept", Stream.AUDIT] == 1

    later = max(happening.at, NOW_OF_RECORDS) + (sinks.KEPT_SECONDS + 1) * 1_000_000
    assert sinks.remove_old(happening.database, (), happening.at + 1) == [], "kept for the sink that is away"
    happening.at = later
    happening.run(happening.feed(Kept("other")))
    with happening.database.platform() as tx:
        sink_positions.begin(tx, "kept", ALL, later)  # it is served, and away
    assert sinks.remove_old(happening.database, (), later) == []
    kept.is_away = False
    kept.stored.clear()
    used = happening.use(4)
    happening.run(feed)
    assert ids_of(kept.stored, Stream.USAGE) == used
    assert feed.counts.missed == {("kept", Stream.USAGE): 1}, "what was removed meanwhile is counted"
    assert [line["event"] for line in happening.lines] == ["sink_records_missed"]
    later += (sinks.KEPT_SECONDS + 1) * 1_000_000
    assert sinks.remove_old(happening.database, {("kept", stream) for stream in ALL}, later) == ["other"]
    assert sinks.remove_old(happening.database, (), later) == ["kept"], "no process has it in its settings"
    with happening.database.platform(write=False) as tx:
        assert not usage_batches.is_followed(tx), "nobody serves them any more"


def test_usage_goes_out_in_parts_of_bounded_size_and_a_part_that_is_noted_again_goes_out_again(
    happening: Happening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_batches, "EVENTS_MAX", 2)
    kept = Kept()
    feed = happening.feed(kept)
    happening.run(feed)
    used = happening.use(5)
    happening.run(feed)
    assert ids_of(kept.stored, Stream.USAGE) == used and feed.counts.missed == {}
    with happening.database.platform() as tx:
        assert usage_batches.find_last(tx) == 3
        found = usage_batches.find_next(tx, 2)
        assert found is not None
        usage_batches.append(tx, found[1], happening.at)  # as a record of it does that was quarantined until now
    happening.run(feed)
    assert ids_of(kept.stored, Stream.USAGE) == [*used, used[4]] and feed.counts.missed == {}


def test_a_stream_that_is_added_later_begins_then_and_usage_is_not_noted_for_sinks_without_it(happening: Happening) -> None:
    kept = Kept()
    happening.run(happening.feed(kept, (Stream.EVENTS,)))
    happening.audit()
    happening.use(1)
    told = [happening.event("one")]
    with happening.database.platform(write=False) as tx:
        assert not usage_batches.is_followed(tx)
    feed = happening.feed(kept)
    happening.run(feed)
    happening.audit()
    used = happening.use(2)
    happening.run(feed)
    assert ids_of(kept.stored, Stream.EVENTS) == told and ids_of(kept.stored, Stream.USAGE) == used
    assert len(ids_of(kept.stored, Stream.AUDIT)) == 1


def test_after_a_failure_the_same_records_are_sent_again_with_the_same_ids(happening: Happening) -> None:
    kept = Kept()
    feed = happening.feed(kept)
    happening.run(feed)
    told = [happening.event(f"e{number}") for number in range(7)]
    kept.is_away = True
    for _ in range(2):
        with pytest.raises(SinkFailure):
            happening.run(feed)
    kept.is_away = False
    happening.run(happening.feed(kept))  # another process
    assert ids_of(kept.stored, Stream.EVENTS) == told[:3] + told[:3] + told


def test_an_endpoint_of_http_is_posted_signed_arrays(happening: Happening) -> None:
    statuses = iter([503, 204, 204])
    with receiving(lambda _records: next(statuses)) as receiver:
        feed = happening.feed(HttpSink(receiver.url, SECRET, lambda: time.time_ns() // 1000))
        happening.run(feed)
        told, used = [happening.event("one")], happening.use(2)
        with pytest.raises(SinkFailure, match="status 503"):
            happening.run(feed)
        happening.run(feed)
        receiver.verify(SECRET)
        first, second = receiver.sent
        assert first[0]["webhook-id"] == second[0]["webhook-id"] and first[1] == second[1]
        assert [each["id"] for each in msgspec.json.decode(second[1])] == told + used


def test_a_post_is_bounded_by_bytes_and_a_receiver_that_takes_less_gets_less() -> None:
    """A receiver of 2,000 bytes, and records of 300."""
    messages = [SinkMessage(Stream.USAGE, ORGANIZATION, f"req_{number}", b'{"a":"%s"}' % (b"x" * 292)) for number in range(40)]
    assert (count_fitting(messages, 1_000, 4_000), count_fitting(messages, 7, 1 << 20), count_fitting(messages, 9, 10)) == (13, 7, 1)
    with receiving(lambda records: 413 if len(records) > 6 else 204) as receiver:
        sink = HttpSink(receiver.url, SECRET, lambda: NOW)
        asyncio.run(sink.send(messages))
        counts = [len(msgspec.json.decode(body)) for _, body in receiver.sent]
        assert counts == [40, 19, 9, *[4] * 10], "it is not asked again for what it refused"
        receiver.answer = lambda _records: 413
        with pytest.raises(SinkFailure, match="status 413 for one record"):
            asyncio.run(sink.send(messages))


def test_a_process_that_serves_a_sink_no_more_says_no_more_what_waits_for_it() -> None:
    at = [0.0]
    counts = SinkCounts(clock=lambda: at[0])
    counts.put_waiting("kafka", {Stream.AUDIT: 3})

    def read() -> list[float]:
        return [sample.value for family in counts.collect() if family.name == "tollway_control_sink_waiting" for sample in family.samples]

    assert read() == [3]
    at[0] = sinks.WAITING_SECONDS_MAX + 1
    assert read() == []
    counts.put_waiting("kafka", {Stream.AUDIT: 0})
    assert read() == [0]


# ---- Real servers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[Broker]:
    with running_nats(tmp_path / "nats") as broker:
        yield broker


@pytest.fixture
def kafka_server() -> Iterator[Broker]:
    with running_kafka() as broker:
        yield broker


async def make_stream(server: Broker) -> None:
    client = await nats.connect(f"nats://{server.address}")
    await client.jetstream().add_stream(name="tollway", subjects=["tollway.>"])
    await client.close()


async def hand_over(sink: Sink, messages: Sequence[SinkMessage]) -> None:
    await sink.send(messages)
    await sink.close()


async def read_stream(server: Broker) -> list[tuple[str, str]]:
    """Subject and id of what a stream of NATS has."""
    client = await nats.connect(f"nats://{server.address}")
    stream = client.jetstream()
    count = (await stream.stream_info("tollway")).state.messages
    found = [await stream.get_msg("tollway", number) for number in range(1, count + 1)]
    await client.close()
    return [(each.subject or "", (each.headers or {})["Nats-Msg-Id"]) for each in found]


def test_nats_has_each_record_once_although_it_was_killed_in_between(happening: Happening, nats_server: Broker) -> None:
    feed = happening.feed(NatsSink([f"nats://{nats_server.address}"], "tollway", None))
    happening.run(feed)
    told = [happening.event("one")]
    with pytest.raises(SinkFailure, match="not stored"):
        happening.run(feed)  # nobody has made the stream
    asyncio.run(make_stream(nats_server))
    happening.run(feed)
    told += [happening.event(f"e{number}") for number in range(20)]
    used = happening.use(3)
    nats_server.kill()
    with pytest.raises(SinkFailure):
        happening.run(feed)
    nats_server.start()
    asyncio.run(hand_over(feed.sink, feed._read()[0].messages[:5]))  # stored there, and the process is killed before it notes that
    happening.run(happening.feed(NatsSink([f"nats://{nats_server.address}"], "tollway", None)))
    found = asyncio.run(read_stream(nats_server))
    assert [id for subject, id in found if subject == f"tollway.events.{ORGANIZATION}"] == told
    assert [id for subject, id in found if subject == f"tollway.usage.{ORGANIZATION}"] == used


def read_topics(server: Broker, topics: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Key and id of what each topic has, which each have one partition."""
    options = {"bootstrap.servers": server.address, "group.id": "test", "auto.offset.reset": "earliest", "enable.partition.eof": True}
    consumer = confluent_kafka.Consumer(options)
    consumer.assign([confluent_kafka.TopicPartition(topic, 0, 0) for topic in topics])
    found: dict[str, list[tuple[str, str]]] = {topic: [] for topic in topics}
    ended: set[str] = set()
    while len(ended) < len(topics):
        message = consumer.poll(10)
        assert message is not None
        if message.error():
            assert message.error().code() == confluent_kafka.KafkaError._PARTITION_EOF, message.error()
            ended.add(message.topic())
        else:
            found[message.topic()].append((message.key().decode(), dict(message.headers())["id"].decode()))
    consumer.close()
    return found


def test_kafka_has_each_record_in_order_and_a_server_that_was_away_gets_the_rest(happening: Happening, kafka_server: Broker) -> None:
    topics = [f"tollway.{stream}" for stream in Stream]

    def make_topics() -> None:
        admin = AdminClient({"bootstrap.servers": kafka_server.address})
        for made in admin.create_topics([NewTopic(topic, 1, 1) for topic in topics]).values():
            made.result(30)

    make_topics()
    feed = happening.feed(KafkaSink([kafka_server.address], "tollway", {"socket.connection.setup.timeout.ms": "1000"}))
    happening.run(feed)
    told = [happening.event("one"), happening.event("two")]
    happening.audit(None)
    used = happening.use(3)
    happening.run(feed)
    found = read_topics(kafka_server, topics)
    assert found["tollway.events"] == [(ORGANIZATION, id) for id in told] and found["tollway.usage"] == [(ORGANIZATION, id) for id in used]
    assert [key for key, _ in found["tollway.audit"]] == ["platform"]

    kafka_server.kill()
    told = [happening.event(f"e{number}") for number in range(5)]
    kafka_server.start()  # it has lost its topics, as this one keeps them in memory
    make_topics()
    happening.run(happening.feed(KafkaSink([kafka_server.address], "tollway", {})))
    assert read_topics(kafka_server, ["tollway.events"])["tollway.events"] == [(ORGANIZATION, id) for id in told]


def test_a_server_of_kafka_that_is_away_fails_the_turn_and_properties_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_sink, "FIXED", {**kafka_sink.FIXED, "message.timeout.ms": 300, "socket.connection.setup.timeout.ms": 1000})
    with reserved_ports(1) as (port,), pytest.raises(SinkFailure, match="MSG_TIMED_OUT"):
        sink = KafkaSink([f"127.0.0.1:{port}"], "tollway", {})
        asyncio.run(sink.send([SinkMessage(Stream.EVENTS, None, "event_1", b"{}")]))
    with pytest.raises(ValueError, match="No such configuration property"):
        KafkaSink(["127.0.0.1:9092"], "tollway", {"no.such.property": "1"})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kafka_servers": ("kafka",)}, "control.sinks.kafka_servers"),
        ({"kafka_servers": ("kafka:9092",), "kafka_properties_file": "/nowhere"}, "/nowhere cannot be read"),
        ({"nats_servers": ("http://nats",)}, "control.sinks.nats_servers"),
        ({"nats_servers": ("nats://nats:4222",), "nats_credentials_file": "/nowhere"}, "/nowhere cannot be read"),
        ({"streams": ("prompts",)}, "control.sinks.streams"),
        ({"prefix": "a.b"}, "control.sinks.prefix"),
        ({"http_url": "ftp://siem"}, "control.sinks.http_url"),
        ({"http_url": "https://siem"}, "TOLLWAY_SINK_SECRET"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_the_start(settings: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLWAY_SINK_SECRET", "whsec_" + "A" * 33)  # no base64
    section = ControlSection(sinks=SinksSection(**settings))
    assert [problem for problem in find_control_problems(section) if said in problem.message]
