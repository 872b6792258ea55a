"""Every parser of foreign bytes keeps its promises on the seeds, on all that once broke one, and on bent inputs by the thousand."""

import itertools
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from fuzz import costs, parsers, seeds

INPUTS = {"request-body": 100_000, "answer-head": 100_000, "openai-stream": 50_000, "anthropic-stream": 50_000, "events": 50_000}
"""Bent inputs on each run; fewer of the others, which are small or have floods of their own (tests/wire, tests/gateway)."""
INPUTS_ELSE = 10_000
HANG_CPU_SECONDS = 5.0
"""One input takes microseconds. CPU, not time: a busy machine hangs nothing."""


@pytest.fixture
def hang() -> Iterator[Callable[[], None]]:
    """To be called before each input: whatever takes HANG_CPU_SECONDS until the next call is ended with an error."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise AssertionError("an input hangs")

    before = signal.signal(signal.SIGVTALRM, give_up)
    yield lambda: signal.setitimer(signal.ITIMER_VIRTUAL, HANG_CPU_SECONDS) and None
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("parser", parsers.PARSERS)
def test_it_refuses_or_reads_as_it_should(parser: str, hang: Callable[[], None], tried: Callable[[str, int], None]) -> None:
    check = parsers.PARSERS[parser]
    count = 0
    for data in itertools.chain(seeds.seeds(parser), seeds.inputs(parser, 4, INPUTS.get(parser, INPUTS_ELSE))):
        hang()
        count += 1
        try:
            check(data)
        except Exception as error:
            raise AssertionError(f"{parser} breaks on {data!r}") from error
    tried(f"inputs to {parser}", count)


@pytest.mark.parametrize("parser", costs.worst_inputs())
def test_the_worst_inputs_known_take_less_than_a_hundred_times_their_memory(parser: str) -> None:
    read, inputs = costs.worst_inputs()[parser]
    assert max(costs.memory_times_input(read, data) for data in inputs) < costs.TIMES_MAX


def test_cost_that_nothing_bounds_is_not_explained() -> None:
    assert costs.explain("request-head", costs.TIMES_MAX) is None
    assert costs.explain("request-head", costs.TIMES_MAX + 1) is not None
    assert costs.explain("spool-segment", costs.TIMES_MAX + 1) is None


def test_a_check_that_never_fails_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Break a parser, and the search for what breaks it finds it."""
    monkeypatch.setattr("tollway.wire.sse.EventReader.feed", lambda self, data: [data] if data else [])
    with pytest.raises(AssertionError):
        for data in seeds.seeds("events"):
            parsers.events(data)
