"""The driver: a request runs in its own context, hears interruptions at every wait that is not shielded, and never runs in a task."""

import asyncio
from contextvars import Context, ContextVar, copy_context

import pytest

from tests.patience import PATIENCE_SECONDS
from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.gateway.driver import OVER, CoroutineDriver, ShieldedWaiter, Waiter

CUT = Fault(faults.UPSTREAM_CUT)
DRAINING = Fault(faults.DRAINING)
NAME: ContextVar[str] = ContextVar("name", default="nobody's")


async def soon(*callbacks: object) -> None:
    """Run each callback as the loop does, outside of all tasks, and what they cause in the turns that follow."""
    for callback in callbacks:
        asyncio.get_running_loop().call_soon(callback)  # type: ignore[arg-type]
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.mark.parametrize("is_early", [False, True])
@pytest.mark.parametrize("error", [None, CUT])
def test_wait_ends_with_the_first_resume(*, is_early: bool, error: Fault | None) -> None:
    seen: list[object] = []
    waiter = Waiter()

    async def wait() -> None:
        try:
            await waiter
        except Fault as caught:
            seen.append(caught)
        else:
            seen.append(None)
        await OVER

    if is_early:
        waiter.resume(error)
    driver = CoroutineDriver(Context())
    driver.start(wait())
    if not is_early:
        assert seen == [] and waiter.driver is driver
        waiter.resume(error)
    assert seen == [error]
    waiter.resume(Fault(faults.INTERNAL))
    assert seen == [error], "only the first resume counts"


def test_waits_deep_within_a_request_are_resumed() -> None:
    seen: list[object] = []
    first, second = Waiter(), Waiter()

    async def inner() -> None:
        try:
            await first
        finally:
            await second

    async def outer() -> None:
        try:
            await inner()
        except Fault as caught:
            seen.append(caught.kind)

    CoroutineDriver(Context()).start(outer())
    first.resume(CUT)
    assert seen == []
    second.resume()
    assert seen == [faults.UPSTREAM_CUT]


async def test_context_variables_are_the_request_s_own_not_the_resumer_s() -> None:
    seen: list[str] = []
    waiter = Waiter()

    async def request() -> None:
        NAME.set("the request's")
        await waiter
        seen.append(NAME.get())

    CoroutineDriver(copy_context()).start(request())
    NAME.set("the resumer's")
    waiter.resume()
    assert seen == ["the request's"] and NAME.get() == "the resumer's"


async def test_interruption_is_raised_at_the_current_wait_and_a_later_resume_counts_for_nothing() -> None:
    seen: list[object] = []
    waiter, after = Waiter(), Waiter()

    async def request() -> None:
        try:
            await waiter
        except Fault as caught:
            seen.append(caught)
        await after
        seen.append("after")

    driver = CoroutineDriver(Context())
    driver.start(request())
    await soon(lambda: driver.interrupt(DRAINING), waiter.resume)
    assert seen == [DRAINING], "what was waited for no longer resumes the request"
    after.resume()
    assert seen == [DRAINING, "after"]


async def test_interruption_while_shielded_is_raised_at_the_next_unshielded_wait() -> None:
    seen: list[object] = []
    final, following = ShieldedWaiter(), Waiter()

    async def request() -> None:
        await final
        seen.append("durable")
        try:
            await following
        except Fault as caught:
            seen.append(caught)

    driver = CoroutineDriver(Context())
    driver.start(request())
    await soon(lambda: driver.interrupt(DRAINING), lambda: driver.interrupt(CUT))
    assert seen == []
    final.resume()
    assert seen == ["durable", DRAINING], "the first interruption counts"


async def test_interruption_before_the_first_wait_is_raised_there() -> None:
    seen: list[object] = []

    async def request() -> None:
        try:
            await Waiter()
        except Fault as caught:
            seen.append(caught)

    driver = CoroutineDriver(Context())
    await soon(lambda: driver.interrupt(DRAINING), lambda: driver.start(request()))
    assert seen == [DRAINING]


async def test_interruption_from_inside_a_task_runs_the_request_outside_of_it() -> None:
    seen: list[object] = []

    async def request() -> None:
        try:
            await Waiter()
        except Fault:
            seen.append(asyncio.current_task())

    driver = CoroutineDriver(Context())
    driver.start(request())
    driver.interrupt(DRAINING)
    assert seen == []
    await asyncio.sleep(0)
    assert seen == [None]


async def test_in_task_returns_the_result_raises_the_error_and_is_cancelled_by_an_interruption() -> None:
    seen: list[object] = []
    gate = asyncio.Event()

    async def foreign() -> str:
        seen.append(NAME.get())
        async with asyncio.timeout(PATIENCE_SECONDS):
            await gate.wait()
        return "result"

    async def failing() -> None:
        raise CUT

    async def request() -> None:
        NAME.set("the request's")
        try:
            seen.append(await driver.in_task(foreign()))
            await driver.in_task(failing())
        except Fault as caught:
            seen.append(caught)

    driver = CoroutineDriver(Context())
    await soon(lambda: driver.start(request()), gate.set)
    assert seen == ["the request's", "result", CUT]
    gate.clear()
    seen.clear()
    driver = CoroutineDriver(Context())
    before = asyncio.all_tasks()
    await soon(lambda: driver.start(request()), lambda: driver.interrupt(DRAINING))
    assert seen == ["the request's", DRAINING] and asyncio.all_tasks() == before


async def test_result_that_an_interruption_left_behind_is_released() -> None:
    released: list[str] = []
    gate = asyncio.Event()

    async def foreign() -> str:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            pass
        return "connection"

    async def request() -> None:
        with pytest.raises(Fault):
            await driver.in_task(foreign(), released.append)

    driver = CoroutineDriver(Context())
    await soon(lambda: driver.start(request()), lambda: driver.interrupt(DRAINING))
    assert released == ["connection"]


@pytest.mark.parametrize("foreign", [lambda: asyncio.sleep(0), lambda: asyncio.sleep(60), lambda: asyncio.Event().wait()])
async def test_foreign_awaitable_outside_of_in_task_fails(foreign: object) -> None:
    seen: list[object] = []

    async def request() -> None:
        with pytest.raises(RuntimeError, match="in_task"):
            await foreign()  # type: ignore[operator]
        seen.append("failed")

    CoroutineDriver(Context()).start(request())
    assert seen == ["failed"]
