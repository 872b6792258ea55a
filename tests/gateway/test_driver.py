"""A wait ends with its news, whichever comes first: the news or the wait."""

import pytest

from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.gateway.driver import OVER, CoroutineDriver, Waiter


@pytest.mark.parametrize("is_early", [False, True])
@pytest.mark.parametrize("error", [None, Fault(faults.UPSTREAM_CUT)])
def test_a_wait_ends_with_the_first_news(*, is_early: bool, error: Fault | None) -> None:
    told: list[object] = []
    pause = Waiter()

    async def wait() -> None:
        try:
            await pause
        except Fault as caught:
            told.append(caught)
        else:
            told.append(None)
        await OVER

    if is_early:
        pause.resume(error)
    run = CoroutineDriver(wait())
    if not is_early:
        assert told == [] and pause.run is run
        pause.resume(error)
    assert told == [error]
    pause.resume(Fault(faults.INTERNAL))
    assert told == [error], "only the first news counts"


def test_news_may_be_awaited_deep_within_a_request() -> None:
    told: list[object] = []
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
            told.append(caught.kind)

    CoroutineDriver(outer())
    first.resume(Fault(faults.UPSTREAM_CUT))
    assert told == []
    second.resume()
    assert told == [faults.UPSTREAM_CUT]
