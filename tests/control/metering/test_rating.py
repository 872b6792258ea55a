"""Rating in one pass, group by group, as the collector does it, gives what the rules of prices and outcomes give for each event alone."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tests.link.samples import EPOCH, NODE, ORGANIZATION, PRICE, admit, final, frames
from tollway.control.metering.batches import Batch
from tollway.control.metering.rating import BillingAccount, RatedBatch
from tollway.domain.billing_classes import NOTHING, Quantities
from tollway.domain.catalog import Endpoint
from tollway.domain.periods import INSTANT_MAX, Calendar
from tollway.domain.prices import Offer, PriceTerms, amounts
from tollway.domain.rollups import UsageSums
from tollway.domain.usage import OUTCOME_POLICIES, Final, Outcome, billed
from tollway.wire.segments import Frame, Reader, first_chain

counts = st.integers(0, 3) | st.integers(0, 2**20)
quantities = st.builds(Quantities, counts, counts, counts, counts)


def read(finals: list[Final]) -> list[Frame]:
    return list(Reader(1, first_chain(NODE, EPOCH)).read(b"".join(frames(finals))))


terms = st.fixed_dictionaries(
    {"endpoint": st.sampled_from(Endpoint), "outcome_policy": st.sampled_from(list(OUTCOME_POLICIES)), "test": st.booleans()}
)


@given(st.lists(st.tuples(terms, st.sampled_from(Outcome), quantities), min_size=1, max_size=12))
def test_events_rated_together_cost_what_each_costs_alone(ended: list[tuple[dict[str, Any], Outcome, Quantities]]) -> None:
    finals = [final(admit(number, **of), outcome=outcome, used=used) for number, (of, outcome, used) in enumerate(ended, 1)]
    batch = Batch(NODE, EPOCH)
    batch.add(read(finals))
    accounts = {ORGANIZATION: BillingAccount(PRICE.currency, (PriceTerms(0, PRICE.list),))}
    rated = RatedBatch(accounts, {PRICE.id: Offer(PRICE, INSTANT_MAX)}, {ORGANIZATION: Calendar(ORGANIZATION, "UTC", open=[])}, known={})
    rows = list(rated.rate(batch))
    assert [row.amounts for row in rows] == [amounts(billed(each), PRICE.unit_prices) for each in finals]
    together, tests = UsageSums(), UsageSums()
    for minute in rated.minutes:
        (tests if minute.group.admit.test else together).add(minute.sums())
    assert together.amounts == sum((row.amounts for row in rows), start=NOTHING)
    assert together.billed == sum((msgspec.structs.replace(billed(each), request=0) for each in finals), start=NOTHING)
    assert (tests.billed, tests.amounts) == (sum((each.used for each in finals if each.admit.test), start=NOTHING), NOTHING)
    assert together.requests + tests.requests == len(rows) == len(finals)


def test_a_record_that_states_a_billed_request_is_quarantined() -> None:
    """The outcome policy alone decides if the request is billed; no gateway writes it."""
    batch = Batch(NODE, EPOCH)
    batch.add(read([final(admit(1), used=Quantities(1, request=1))]))
    assert not batch.finals and [each.reason for each in batch.unreadable] == ["invalid"]
