"""Leases of budgets: takes what this gateway run asks for to control, and brings back what it was granted.

One request is under way at a time. It is made when something should be asked (`Leaseholder.wake`), and every LEASE_SECONDS, so that what is
not needed any more is given back. An answer that does not arrive is as good as none: the next request states the lease's total anew.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Protocol

import httpx2
import msgspec

from tollway.domain.budgets import LeaseGrant, LeaseRequest
from tollway.link.authorities import trusted_authorities
from tollway.link.recovery import Alarm

LEASE_SECONDS = 0.5
"""Longest time after which something that is not needed is given back."""

PAUSE_SECONDS = 0.01
"""Least time between two requests: what arrives meanwhile is asked for together."""

REQUEST_SECONDS_MAX = 2.0
"""For one request: a transaction of control takes milliseconds. No request waits for a lease for longer."""

BACKOFF_SECONDS_MIN, BACKOFF_SECONDS_MAX = 0.1, 2.0
"""Pauses before the next attempt while control is away."""


class Leaseholder(Protocol):
    """The account of leases: the gateway's `budgets.Budgets`."""

    wake: Callable[[], None]
    is_linked: bool

    def next_request(self) -> tuple[int, list[LeaseRequest]]:
        """Return what to ask, with its number; an empty list for nothing."""
        ...

    def apply(self, sequence: int, grants: Sequence[LeaseGrant]) -> None:
        """Take over the answer to the latest request."""
        ...

    def fail(self, sequence: int) -> None:
        """The latest request was not answered."""
        ...


class _Grants(msgspec.Struct, frozen=True):
    leases: list[LeaseGrant]


class _Unusable(Exception):
    """Control gave no answer that can be used."""


class LeaseClient:
    """Keeps the leases of one gateway run. Use: `run()` as a task until it is cancelled, then `await close()`. `run` may be run again after
    it raised."""

    def __init__(
        self,
        holder: Leaseholder,
        *,
        control_link_url: str,
        node_key: str,
        node_id: str,
        epoch: int,
        alarm: Alarm,
        transport: httpx2.AsyncBaseTransport | None = None,
        chance: random.Random | None = None,
    ) -> None:
        """`transport` carries the requests (None: TCP). `chance` spreads the attempts of many gateways while control is away."""
        self._chance = chance or random.Random()
        self._holder = holder
        self._path = f"/v1/link/leases/{node_id}/{epoch}"
        self._alarm = alarm
        self._asked = asyncio.Event()
        self._is_away = False
        self._client = httpx2.AsyncClient(
            base_url=control_link_url,
            headers={"authorization": f"Bearer {node_key}"},
            timeout=httpx2.Timeout(REQUEST_SECONDS_MAX),
            limits=httpx2.Limits(max_connections=1),
            trust_env=False,
            verify=trusted_authorities(),
            transport=transport,
        )
        holder.wake = self._asked.set
        holder.is_linked = True
        self.attempts_failed = 0

    async def run(self) -> None:
        """Ask until cancelled."""
        pause_seconds = BACKOFF_SECONDS_MIN
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEASE_SECONDS):
                    await self._asked.wait()
            self._asked.clear()
            sequence, requests = self._holder.next_request()
            if not requests and self._holder.is_linked:
                continue
            try:
                grants = await self._ask(sequence, requests)
            except (httpx2.HTTPError, httpx2.StreamError, _Unusable, ValueError, TimeoutError) as error:
                self._note_failure(error)
                asyncio.get_running_loop().call_soon(self._holder.fail, sequence)
                await asyncio.sleep(pause_seconds * self._chance.uniform(0.5, 1.0))
                pause_seconds = min(2 * pause_seconds, BACKOFF_SECONDS_MAX)
                continue
            self._is_away = False
            pause_seconds = BACKOFF_SECONDS_MIN
            asyncio.get_running_loop().call_soon(self._holder.apply, sequence, grants)  # it resumes requests: never inside of a task
            await asyncio.sleep(PAUSE_SECONDS)

    async def _ask(self, sequence: int, requests: Sequence[LeaseRequest]) -> list[LeaseGrant]:
        body = msgspec.json.encode({"sequence": sequence, "leases": requests})
        async with asyncio.timeout(REQUEST_SECONDS_MAX):
            answer = await self._client.put(self._path, content=body, headers={"content-type": "application/json"})
        if answer.status_code != 200:
            raise _Unusable(f"status {answer.status_code}")
        return msgspec.json.decode(answer.content, type=_Grants).leases

    def _note_failure(self, error: Exception) -> None:
        """Raise an alarm when control goes away, not at each attempt."""
        self.attempts_failed += 1
        if not self._is_away:
            self._is_away = True
            self._alarm("leases_unavailable", {"error": f"{type(error).__name__}: {error}"})

    async def close(self) -> None:
        """Close the connection. Call it once `run` has ended."""
        await self._client.aclose()
