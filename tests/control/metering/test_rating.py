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
from tollway.domain.usage import OUTCOME_POLICIES, Final, Outcome, billed, decode_final, encode
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


def test_records_in_another_form_come_to_the_same_as_those_that_gateways_write() -> None:
    """ADMITs are known by their bytes: what gateways would not write is read by itself, and the last of two fields counts."""
    forms = {
        "as written": lambda text: text,
        "with spaces": lambda text: text.replace('"admit":{', '"admit": { '),
        "other order": lambda text: text.replace('"stream":true,', "").replace('"model":', '"stream":true,"model":'),
        "id twice": lambda text: text.replace('"stream":true,', f'"stream":true,"request_id":"{admit(7).request_id}",'),
        "escaped id": lambda text: text.replace('"request_id":"r', '"request_id":"\\u0072'),
        "unknown field": lambda text: text.replace('"stream":true,', '"stream":true,"new":[{"a":1}],'),
        "instant below zero": lambda text: text.replace('"admitted_at":', '"admitted_at":-'),
        "broken": lambda text: text.replace('"stream":true,', '"stream":tru,'),
    }
    for order in (list(forms.items()), list(reversed(forms.items()))):
        batch = Batch(NODE, EPOCH)
        payloads = [form(encode(final(admit(number))).decode()).encode() for number, (_, form) in enumerate(order, 1)]
        batch.add([Frame(number, b"", payload, 0) for number, payload in enumerate(payloads, 1)])
        found = {each.seq: (each.event_id, each.admitted_at, each.group.admit.model, each.group.admit.price_hash) for each in batch.finals}
        for number, ((name, _), payload) in enumerate(zip(order, payloads, strict=True), 1):
            if name in ("instant below zero", "broken"):
                assert number not in found, name
                continue
            of = decode_final(payload).admit
            assert found[number] == (of.request_id, of.admitted_at, of.model, of.price_hash), name
        assert {each.reason for each in batch.unreadable} == {"invalid", "unreadable"} and len(batch.unreadable) == 2
        assert len(batch.groups) == 1


def test_a_record_that_states_a_billed_request_is_quarantined() -> None:
    """The outcome policy alone decides if the request is billed; no gateway writes it."""
    batch = Batch(NODE, EPOCH)
    batch.add(read([final(admit(1), used=Quantities(1, request=1))]))
    assert not batch.finals and [each.reason for each in batch.unreadable] == ["invalid"]
