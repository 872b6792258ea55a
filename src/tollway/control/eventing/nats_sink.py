"""A sink that is a stream of NATS JetStream."""

import asyncio
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tollway.control.eventing.sinks import SinkFailure
from tollway.domain.sinks import SinkMessage

ANSWER_SECONDS = 5.0
"""Time within which the server must answer: a connection, and each record."""

OWNERS_MAX = 64
"""Owners whose records are under way at a time; of each one it is one record, because what fails must not be overtaken."""


class NatsMissing(Exception):
    """The client is not installed."""


class NatsSink:
    """A subject for each stream and owner: `<prefix>.usage.<organization>`. The id of a record is its `Nats-Msg-Id`, by which the server
    leaves out what it has got within its time for duplicates. The operator makes the stream; without one nothing is stored, and the sink
    fails. `credentials`: a file of NATS with the user's token and key; None for what the URL has.

    Raises NatsMissing."""

    name = "nats"

    def __init__(self, servers: Sequence[str], prefix: str, credentials: Path | None) -> None:
        try:
            self._nats: Any = importlib.import_module("nats")
        except ImportError:
            raise NatsMissing("nats-py is not installed: pip install tollway[nats]") from None
        self._servers, self._prefix, self._credentials = list(servers), prefix, credentials
        self._client: Any = None

    async def send(self, messages: Sequence[SinkMessage]) -> None:
        """Return once all these are stored."""
        by_owner: dict[tuple[str, str], list[SinkMessage]] = {}
        for each in messages:
            by_owner.setdefault((each.stream, each.owner), []).append(each)
        places = asyncio.Semaphore(OWNERS_MAX)
        try:
            stream = await self._connect()
            outcomes = await asyncio.gather(*(self._publish(stream, own, places) for own in by_owner.values()), return_exceptions=True)
            for outcome in outcomes:
                if outcome is not None:
                    raise outcome
        except (self._nats.errors.Error, OSError, TimeoutError, ValueError) as error:
            raise SinkFailure(f"records were not stored: {type(error).__name__}") from None

    async def _publish(self, stream: Any, messages: Sequence[SinkMessage], places: asyncio.Semaphore) -> None:
        async with places:
            for each in messages:
                subject = f"{self._prefix}.{each.stream}.{each.owner}"
                await stream.publish(subject, each.body, timeout=ANSWER_SECONDS, headers={"Nats-Msg-Id": each.id})

    async def _connect(self) -> Any:
        if self._client is None or not self._client.is_connected:
            await self.close()
            credentials = {} if self._credentials is None else {"user_credentials": str(self._credentials)}
            self._client = await self._nats.connect(
                self._servers,
                name="tollway",
                connect_timeout=ANSWER_SECONDS,
                allow_reconnect=False,  # the next turn connects
                max_reconnect_attempts=1,  # to each server, before none is left
                reconnect_time_wait=0.1,
                error_cb=_say_nothing,
                **credentials,
            )
        return self._client.jetstream()

    async def close(self) -> None:
        """End the connection."""
        client, self._client = self._client, None
        if client is not None:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await client.close()
            except (self._nats.errors.Error, OSError, TimeoutError):
                pass  # it is of no use any more either way


async def _say_nothing(_error: Exception) -> None:
    """Leave out what the client would write to standard error: the attempt fails by itself."""
