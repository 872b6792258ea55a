"""Leases over the link: a gateway's client and a running control plane, which is unavailable at times."""

import asyncio
from collections.abc import Callable, Sequence

from tests.control.harness import NODE_ID, Running, TenantSetup, answered
from tests.patience import PATIENCE_SECONDS
from tollway.domain.budgets import LeaseGrant, LeaseRequest
from tollway.link.leases import LeaseClient


class Holder:
    """A gateway's account of leases that asks for whatever is put into `requests`."""

    def __init__(self) -> None:
        self.wake: Callable[[], None] = lambda: None
        self.is_linked = False
        self.requests: list[LeaseRequest] = []
        self.sequence = 0
        self.grants: list[LeaseGrant] = []
        self.failures = 0
        self.changed = asyncio.Event()

    def next_request(self) -> tuple[int, list[LeaseRequest]]:
        self.sequence += 1
        asked, self.requests = self.requests, []
        return self.sequence, asked

    def apply(self, sequence: int, grants: Sequence[LeaseGrant]) -> None:
        assert sequence == self.sequence
        self.is_linked = True
        self.grants += grants
        self.changed.set()

    def fail(self, sequence: int) -> None:
        self.is_linked = False
        self.failures += 1
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


async def test_client_brings_grants_and_finds_control_again_after_it_was_away(control: Running, alice: TenantSetup) -> None:
    body = {"name": "leased", "amount": "1", "window": "total"}
    budget_id = answered(control.client(alice.admin_key).post("/v1/organization/budgets", json=body))["id"]
    alarms: list[str] = []
    holder = Holder()
    client = LeaseClient(
        holder,
        control_link_url=control.link_url,
        node_key=control.node_key,
        node_id=NODE_ID,
        epoch=7,
        alarm=lambda event, _fields: alarms.append(event),
    )
    assert holder.is_linked, "control is asked before it is taken for unavailable"
    running = asyncio.get_running_loop().create_task(client.run())
    try:
        holder.requests.append(LeaseRequest(budget_id=budget_id, at=control.plane.now(), current_pico=0, need_pico=250_000_000_000))
        holder.wake()
        await holder.until(lambda: bool(holder.grants))
        granted = holder.grants[0]
        assert (granted.granted_pico, granted.limit_pico, granted.free_pico) == (250_000_000_000, 10**12, 750_000_000_000)
        holder.requests.append(LeaseRequest(budget_id=budget_id, at=-1, current_pico=0))  # what control refuses as a whole
        holder.wake()
        await holder.until(lambda: holder.failures > 0)
        assert alarms == ["leases_unavailable"]
        await holder.until(lambda: holder.is_linked)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await client.close()
