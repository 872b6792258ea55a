"""What the collector rates in one pass, group by group, is what the rules of prices and outcomes say of each event alone."""

from hypothesis import given
from hypothesis import strategies as st

from tests.link.samples import EPOCH, NODE, ORGANIZATION, PRICE, admit, final, frames
from tollway.control.judging import Batch, Payer, Tally
from tollway.domain.periods import Calendar
from tollway.domain.prices import amounts
from tollway.domain.usage import Final, Outcome, Quantities, billed
from tollway.storage.usage import Sums
from tollway.wire.segments import Frame, Reader, first_chain

counts = st.integers(0, 3) | st.integers(0, 2**20)
quantities = st.builds(Quantities, counts, counts, counts, counts)
PICOS = slice(9, 14)


def read(finals: list[Final]) -> list[Frame]:
    return list(Reader(1, first_chain(NODE, EPOCH)).read(b"".join(frames(finals))))


@given(st.lists(st.tuples(st.sampled_from(Outcome), quantities), min_size=1, max_size=12))
def test_events_rated_together_cost_what_each_costs_alone(ended: list[tuple[Outcome, Quantities]]) -> None:
    finals = [final(admit(number), outcome=outcome, used=used) for number, (outcome, used) in enumerate(ended, 1)]
    batch = Batch(NODE, EPOCH)
    batch.take(read(finals))
    payers, calendars = (
        {ORGANIZATION: Payer(PRICE.currency, frozenset({PRICE.list}))},
        {ORGANIZATION: Calendar(ORGANIZATION, "UTC", open=[])},
    )
    tally = Tally(payers, {PRICE.id: PRICE}, calendars, known={})
    rows = list(tally.rate(batch))
    expected = [amounts(*billed(each), PRICE) for each in finals]
    assert [row[PICOS] for row in rows] == [(e.input, e.cached_input, e.output, e.reasoning, e.request) for e in expected]
    together = Sums()
    for run in tally.runs:
        together.add(run.sums())
    picos = (together.input_pico, together.cached_input_pico, together.output_pico, together.reasoning_pico, together.request_pico)
    assert picos == tuple(map(sum, zip(*(row[PICOS] for row in rows), strict=True)))
    assert together.requests == len(rows) == len(finals)
