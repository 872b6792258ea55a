"""Limits of several gateways with a real Redis: exact while it answers, by shares while it does not, and right again afterwards."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import copy_context
from dataclasses import dataclass, field

import pytest

from tests.patience import PATIENCE_SECONDS
from tests.storage.counter_servers import CounterServer, counter_server, find_servers
from tollway.domain.limits import MINUTE_NS, LevelLimits, LimitLevel, Limits, Standing
from tollway.gateway import shared_counters
from tollway.gateway.counters import EndUserLimits, Units
from tollway.gateway.driver import CoroutineDriver
from tollway.gateway.shared_counters import SharedBound, SharedCounters, SharedHold, divide
from tollway.storage.shared_counters import STRIKES_MAX, RedisCounters, StoreOptions, read_states

ONE: Units = (1, 0, 0, 0, 0, 0)

pytestmark = pytest.mark.skipif("redis" not in find_servers(), reason="redis-server is not installed")


@pytest.fixture(scope="module")
def running_server() -> Iterator[CounterServer]:
    with counter_server() as running:
        yield running


@pytest.fixture
def server(running_server: CounterServer) -> CounterServer:
    running_server.command("FLUSHALL")
    return running_server


@dataclass
class Gateway:
    """The counters of one gateway, with a clock that a test can move."""

    counters: SharedCounters
    store: RedisCounters
    alarms: list[str]
    ahead_ns: list[int] = field(default_factory=lambda: [0])

    def bind(self, organization_id: str = "org_1", **sizes: int) -> SharedBound:
        limits = [LevelLimits(LimitLevel.ORGANIZATION, organization_id, Limits(**sizes))]
        return self.counters.bind(organization_id, limits, self.now_ns())

    def now_ns(self) -> int:
        return time.monotonic_ns() + self.ahead_ns[0]

    def settle(self, hold: SharedHold, used: Units) -> None:
        hold.settle(used, self.now_ns())

    async def reserve(self, bound: SharedBound, units: Units = ONE) -> SharedHold:
        """Decide on a request, as a request does: in a driven coroutine."""
        loop = asyncio.get_running_loop()
        decided: asyncio.Future[SharedHold] = loop.create_future()

        async def decide() -> None:
            hold = self.counters.reserve(bound, units, self.now_ns())
            await hold.wait()
            decided.set_result(hold)

        loop.call_soon(CoroutineDriver(copy_context()).start, decide())
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await decided

    async def read(self, bound: SharedBound) -> dict[str, Standing]:
        read: asyncio.Future[list[Standing]] = asyncio.get_running_loop().create_future()
        self.counters.read_standings(bound.organization_id, bound.limits, self.now_ns(), read.set_result)
        async with asyncio.timeout(PATIENCE_SECONDS):
            return {standing.dimension.name: standing for standing in await read}


@contextlib.asynccontextmanager
async def gateway(server: CounterServer, name: str = "node_1.a", *, deadline_seconds: float = 5.0) -> AsyncIterator[Gateway]:
    alarms: list[str] = []
    ahead = [0]
    counters = SharedCounters(name, lambda: time.monotonic_ns() + ahead[0])
    options = StoreOptions(url=server.url, decision_seconds=deadline_seconds)
    store = RedisCounters(options, recover=counters.restore, alarm=lambda event, _: alarms.append(event))
    counters.use(store)
    tasks = [asyncio.create_task(store.run())]
    try:
        await until(lambda: store.is_available)
        yield Gateway(counters, store, alarms, ahead)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


async def test_two_gateways_admit_exactly_one_limit(server: CounterServer) -> None:
    async with gateway(server, "node_1.a") as one, gateway(server, "node_2.b") as two:
        bounds = [(each, each.bind(requests_per_day=10)) for each in (one, two)]
        holds = await asyncio.gather(*(each.reserve(bound) for each, bound in bounds for _ in range(20)))
        assert sum(hold.is_admitted for hold in holds) == 10
        assert one.counters.alone == two.counters.alone == 0


async def test_states_are_read_from_outside_of_gateways(server: CounterServer) -> None:
    async with gateway(server) as each:
        bound = each.bind(tokens_per_day=1000, concurrent_requests=3)
        assert (await each.reserve(bound, (1, 900, 0, 0, 0, 0))).is_admitted
        options = StoreOptions(url=server.url, decision_seconds=5.0)
        states = await asyncio.to_thread(read_states, options, "org_1", bound.limits)
        assert states is not None and [(state.units, state.held) for state in states] == [(0, 900), (0, 1)]
        server.signal(signal.SIGSTOP)
        try:
            assert await asyncio.to_thread(read_states, options, "org_1", bound.limits) is None
        finally:
            server.signal(signal.SIGCONT)


async def test_end_users_are_counted_by_all_gateways_together(server: CounterServer) -> None:
    each_end_user = EndUserLimits("org_1", "proj_1", (("", Limits(requests_per_day=5, concurrent_requests=3)),))
    async with gateway(server, "node_1.a") as one, gateway(server, "node_2.b") as two:
        bases = [(each, each.bind(requests_per_day=1000)) for each in (one, two)]

        async def ask(each: Gateway, base: SharedBound, name: str) -> bool:
            hold = await each.reserve(each.counters.bind_end_user(base, each_end_user, name, each.now_ns()))
            if hold.is_admitted:
                each.settle(hold, ONE)
            return hold.is_admitted

        for name in ("ann", "bob"):
            assert sum([await ask(each, base, name) for each, base in bases for _ in range(5)]) == 5


async def test_83_end_users_beyond_the_bound_share_a_counter_in_the_store(server: CounterServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_counters, "END_USERS_MAX", 3)
    each_end_user = EndUserLimits("org_1", "proj_1", (("", Limits(requests_per_minute=1)),))
    async with gateway(server) as each:
        base = each.bind()
        admitted = [
            (await each.reserve(each.counters.bind_end_user(base, each_end_user, f"user {n}", each.now_ns()))).is_admitted for n in range(6)
        ]
        assert admitted == [True, True, True, True, False, False] and each.counters.end_users_together == 3
        each.ahead_ns[0] = MINUTE_NS + 1
        assert (await each.reserve(each.counters.bind_end_user(base, each_end_user, "user 7", each.now_ns()))).is_admitted
        assert each.counters.end_users_together == 3, "one that was not seen for a minute gave way"


async def test_unused_tokens_return_to_every_gateway_when_a_request_ends(server: CounterServer) -> None:
    async with gateway(server, "node_1.a") as one, gateway(server, "node_2.b") as two:
        first, second = one.bind(tokens_per_day=1000, concurrent_requests=1), two.bind(tokens_per_day=1000, concurrent_requests=1)
        hold = await one.reserve(first, (1, 900, 0, 0, 0, 0))
        assert not (await two.reserve(second, (1, 200, 0, 0, 0, 0))).is_admitted
        one.settle(hold, (1, 100, 0, 0, 0, 0))
        await until_settled(one, first)
        assert (await two.reserve(second, (1, 900, 0, 0, 0, 0))).is_admitted
        standing = (await two.read(second))["tokens_per_day"]
        assert (standing.used, standing.held, standing.remaining) == (100, 900, 0)


async def until_settled(running: Gateway, bound: SharedBound) -> None:
    """A reading comes after everything that was sent before it."""
    await running.read(bound)


async def test_gateway_that_dies_frees_what_it_held_after_its_lease(server: CounterServer) -> None:
    async with gateway(server, "node_2.b") as two:
        bound = two.bind(concurrent_requests=1)
        async with gateway(server, "node_1.a") as one:
            assert (await one.reserve(one.bind(concurrent_requests=1))).is_admitted
            assert not (await two.reserve(bound)).is_admitted
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (await two.reserve(bound)).is_admitted:
                await asyncio.sleep(0.2)


async def test_gateway_that_lives_keeps_what_it_holds_by_renewing_its_lease(server: CounterServer) -> None:
    async with gateway(server) as one:
        bound = one.bind(concurrent_requests=1)
        await one.reserve(bound)
        key = bound.prepared.keys[0].decode()
        server.command("PEXPIRE", key, "2000")
        before = server.command("PTTL", key)
        one.counters.renew()
        await until_settled(one, bound)
        assert int(before[1:]) <= 2000
        server.command("DEL", key)
        one.counters.renew()  # the lease is unknown now, and what is held is reported again
        await until(lambda: one.counters.losses == 2)
        assert (await one.read(bound))["concurrent_requests"].held == 1


@pytest.mark.parametrize("fault", ["kill", "freeze", "full", "read only"])
async def test_62_decisions_go_on_by_shares_and_are_exact_again_afterwards(fault: str) -> None:
    with counter_server() as server:
        deadline_seconds = 0.05 if fault == "freeze" else 5.0
        async with gateway(server, deadline_seconds=deadline_seconds) as one:
            one.counters.gateways = 2
            bound = one.bind(requests_per_day=20, concurrent_requests=16, tokens_per_day=1000)
            first = await one.reserve(bound, (1, 100, 0, 0, 0, 0))
            assert first.numbers and first.is_admitted
            _break(server, fault)
            alone = []
            for _ in range(STRIKES_MAX + 12):
                alone.append(await one.reserve(bound, (1, 10, 0, 0, 0, 0)))
            admitted = [hold for hold in alone if hold.is_admitted]
            assert not any(hold.numbers for hold in alone)
            assert 6 <= len(admitted) <= 8, "half of 16 at a time, one of which runs already"
            await until(lambda: "limits_store_unavailable" in one.alarms)
            _mend(server, fault)
            await until(lambda: one.store.is_available)
            standings = await one.read(bound)
            assert standings["concurrent_requests"].held == 1 + len(admitted), "everything that runs is known again"
            assert standings["tokens_per_day"].held == 100 + 10 * len(admitted)
            assert standings["requests_per_day"].used >= len(admitted), "what was admitted alone is charged"
            for hold in (first, *admitted):
                one.settle(hold, (1, 5, 0, 0, 0, 0))
            standings = await one.read(bound)
            assert standings["concurrent_requests"].held == standings["tokens_per_day"].held == 0
            assert 5 * len(admitted) <= standings["tokens_per_day"].used <= 5 * (len(admitted) + 1) + 100
            assert one.alarms[-1] == "limits_store_available"


def _break(server: CounterServer, fault: str) -> None:
    match fault:
        case "kill":
            server.kill()
        case "freeze":
            server.signal(signal.SIGSTOP)
        case "full":
            server.command("CONFIG", "SET", "maxmemory", "1")
        case _:
            server.command("REPLICAOF", "127.0.0.1", "1")


def _mend(server: CounterServer, fault: str) -> None:
    match fault:
        case "kill":
            server.start()
        case "freeze":
            server.signal(signal.SIGCONT)
        case "full":
            server.command("CONFIG", "SET", "maxmemory", "0")
        case _:
            server.command("REPLICAOF", "NO", "ONE")


async def test_62_loss_of_the_store_admits_nothing_that_was_used_before() -> None:
    with counter_server() as server:
        async with gateway(server) as one:
            bound = one.bind(requests_per_day=10)
            for _ in range(10):
                assert (await one.reserve(bound)).is_admitted
            server.kill()
            hold = await one.reserve(bound)
            assert not hold.numbers and not hold.is_admitted


async def test_62_store_that_was_flushed_learns_again_what_is_held(server: CounterServer) -> None:
    async with gateway(server) as one:
        bound = one.bind(concurrent_requests=3, tokens_per_day=1000)
        held = [await one.reserve(bound, (1, 100, 0, 0, 0, 0)) for _ in range(2)]
        server.command("FLUSHALL")
        held.append(await one.reserve(bound, (1, 100, 0, 0, 0, 0)))
        standings = await one.read(bound)
        assert (standings["concurrent_requests"].held, standings["tokens_per_day"].held) == (3, 300)
        for hold in held:
            one.settle(hold, (1, 1, 0, 0, 0, 0))
        standings = await one.read(bound)
        assert (standings["concurrent_requests"].held, standings["tokens_per_day"].held) == (0, 0)


async def test_62_scripts_that_the_server_forgot_are_loaded_again(server: CounterServer) -> None:
    async with gateway(server) as one:
        bound = one.bind(requests_per_day=2)
        await one.reserve(bound)
        server.command("SCRIPT", "FLUSH")
        holds = await asyncio.gather(*(one.reserve(bound) for _ in range(4)))
        assert sum(hold.is_admitted for hold in holds) == 1
        assert one.counters.alone == 0


async def test_request_that_leaves_while_it_waits_holds_nothing(server: CounterServer) -> None:
    async with gateway(server) as one:
        bound = one.bind(concurrent_requests=1)
        left: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def wait() -> None:
            try:
                await one.counters.reserve(bound, ONE, one.now_ns()).wait()
            finally:
                left.set_result(None)

        driver = CoroutineDriver(copy_context())
        asyncio.get_running_loop().call_soon(driver.start, _ignore(wait()))
        asyncio.get_running_loop().call_soon(driver.interrupt, ConnectionResetError())
        await left
        await until_settled(one, bound)
        assert (await one.read(bound))["concurrent_requests"].held == 0


async def _ignore(coroutine: object) -> None:
    with contextlib.suppress(ConnectionResetError):
        await coroutine  # type: ignore[misc]


async def test_62_admission_that_comes_after_the_deadline_is_released(server: CounterServer) -> None:
    async with gateway(server, deadline_seconds=0.05) as one:
        bound = one.bind(concurrent_requests=5)
        server.signal(signal.SIGSTOP)
        try:
            hold = await one.reserve(bound)
        finally:
            server.signal(signal.SIGCONT)
        assert hold.is_admitted and not hold.numbers
        await until(lambda: one.store.is_available)
        one.settle(hold, ONE)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await one.read(bound))["concurrent_requests"].held:
                await asyncio.sleep(0.01)


async def test_hold_of_a_minute_is_charged_to_the_limits_per_minute(server: CounterServer) -> None:
    async with gateway(server) as one:
        bound = one.bind(tokens_per_minute=1000, tokens_per_day=5000)
        hold = await one.reserve(bound, (1, 400, 0, 0, 0, 0))
        one.ahead_ns[0] = MINUTE_NS
        one.counters.renew()
        standings = await one.read(bound)
        assert standings["tokens_per_minute"].held == 0 and standings["tokens_per_minute"].used > 300
        assert standings["tokens_per_day"].held == 400
        one.settle(hold, (1, 450, 0, 0, 0, 0))
        standings = await one.read(bound)
        assert standings["tokens_per_day"].held == 0 and 449 <= standings["tokens_per_day"].used <= 450


def test_share_of_a_limit_is_at_least_one_and_never_rounded_up() -> None:
    assert divide(Limits(requests_per_minute=10, concurrent_requests=2), 4) == Limits(requests_per_minute=2, concurrent_requests=1)


async def test_keys_of_tenants_stand_apart(server: CounterServer) -> None:
    async with gateway(server) as one:
        for organization_id in ("org_1", "org_2"):
            assert (await one.reserve(one.bind(organization_id, requests_per_day=1))).is_admitted
        assert not (await one.reserve(one.bind("org_1", requests_per_day=1))).is_admitted
