"""A sink that is a server of Kafka's protocol: Apache Kafka, Redpanda, WarpStream and others, by the client of librdkafka."""

import importlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from tollway.control.eventing.sinks import SEND_SECONDS_MAX, SinkFailure
from tollway.domain.sinks import SinkMessage
from tollway.worker_threads import run_in_thread

STORE_SECONDS = SEND_SECONDS_MAX - 10
"""Time within which the server must have stored a record."""

FIXED: Mapping[str, object] = {
    "enable.idempotence": True,  # in order and once for each attempt of ours, on all replicas in sync
    "acks": "all",
    "message.timeout.ms": int(STORE_SECONDS * 1000),
    "socket.timeout.ms": 10_000,
    "socket.connection.setup.timeout.ms": 5_000,
    "linger.ms": 5,
    "queue.buffering.max.messages": 100_000,
    "queue.buffering.max.kbytes": 64 * 1024,
    "client.id": "tollway",
}
"""Properties that an operator does not choose: the promises of a sink rest on them."""


class KafkaMissing(Exception):
    """The client is not installed."""


class KafkaSink:
    """A topic for each stream: `<prefix>.events`, `.audit` and `.usage`. The key of a record is its organization, so that a topic keeps
    the records of one in order; its id is in the header `id`. `properties`: of librdkafka, such as those of TLS and SASL.

    Raises KafkaMissing, and ValueError for properties that it does not know."""

    name = "kafka"

    def __init__(self, servers: Sequence[str], prefix: str, properties: Mapping[str, str]) -> None:
        try:
            self._kafka: Any = importlib.import_module("confluent_kafka")
        except ImportError:
            raise KafkaMissing("confluent-kafka is not installed: pip install tollway[kafka]") from None
        self._prefix = prefix
        self._options = {**properties, **FIXED, "bootstrap.servers": ",".join(servers)}
        self._log = logging.getLogger("tollway.kafka")  # what librdkafka says of connections: the failure of the job says the same
        self._log.disabled = True
        self._producer: Any = None
        try:
            self._kafka.Producer({**properties, "client.id": "tollway"}, logger=self._log)
        except self._kafka.KafkaException as error:
            raise ValueError(error.args[0].str()) from None

    async def send(self, messages: Sequence[SinkMessage]) -> None:
        """Return once all these are stored."""
        await run_in_thread(self._send, messages)

    async def close(self) -> None:
        """Keep the producer, whose connections last over many turns."""

    def _send(self, messages: Sequence[SinkMessage]) -> None:
        producer = self._producer or self._kafka.Producer(self._options, logger=self._log)
        self._producer = None  # one that has failed may still try to send: the next attempt has another
        failed: list[str] = []

        def note(error: Any, _message: object) -> None:
            if error is not None:
                failed.append(error.name())

        try:
            for each in messages:
                topic, headers = f"{self._prefix}.{each.stream}", {"id": each.id, "content-type": "application/json"}
                producer.produce(topic, each.body, each.owner, headers=headers, on_delivery=note)
                producer.poll(0)
            left = producer.flush(SEND_SECONDS_MAX)
        except (self._kafka.KafkaException, BufferError) as error:
            producer.purge()
            raise SinkFailure(f"records were not taken: {type(error).__name__}") from None
        if failed or left:
            producer.purge()
            raise SinkFailure(f"records were not stored: {failed[0] if failed else 'no answer in time'}")
        self._producer = producer
