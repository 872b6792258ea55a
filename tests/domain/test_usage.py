"""Outcomes and what they bill; the one encoding of a record (P1, P12)."""

import random
import uuid

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.domain import ids
from tollway.domain.billing_classes import NOTHING, Quantities
from tollway.domain.catalog import Endpoint
from tollway.domain.request_records import add_budgets, add_choices, encode_admit, encode_terms
from tollway.domain.usage import (
    CHOICES_MAX,
    OUTCOME_POLICIES,
    Admit,
    Anomaly,
    Close,
    Ended,
    Final,
    Outcome,
    Progress,
    Record,
    ServiceTier,
    Tick,
    UsageSource,
    billed,
    content_hash,
    decode,
    encode,
)

ADMIT = Admit(
    request_id=ids.new_id(ids.REQUEST, 1_700_000_000_000_000, 7),
    admitted_at=1,
    organization_id="org_1",
    project_id="proj_1",
    key_id="key_1",
    model="m",
    endpoint="chat/completions",
    stream=True,
    price_version="price_1",
    price_hash="0" * 64,
    outcome_policy=1,
)
INPUT_ONLY = Quantities(input=5)
DELIVERED = Quantities(input=5, output=2)


def final(outcome: Outcome, used: Quantities) -> Final:
    return Final(admit=ADMIT, outcome=outcome, used=used, source=UsageSource.ENGINE_FINAL, ended_at=2)


@pytest.mark.parametrize(
    ("outcome", "used", "expected", "requests"),
    [
        (Outcome.COMPLETED, DELIVERED, DELIVERED, 1),
        (Outcome.CLIENT_CANCELLED, DELIVERED, DELIVERED, 0),
        (Outcome.CLIENT_CANCELLED, INPUT_ONLY, INPUT_ONLY, 0),
        (Outcome.UPSTREAM_ERROR, INPUT_ONLY, NOTHING, 0),
        (Outcome.UPSTREAM_ERROR, DELIVERED, DELIVERED, 0),
        (Outcome.TIMEOUT, INPUT_ONLY, NOTHING, 0),
        (Outcome.TIMEOUT, Quantities(input=5, reasoning=1), Quantities(input=5, reasoning=1), 0),
        (Outcome.BUDGET_STOPPED, DELIVERED, DELIVERED, 0),
        (Outcome.GATEWAY_CRASH, DELIVERED, DELIVERED, 0),
    ],
)
def test_each_outcome_bills_what_policy_1_says(outcome: Outcome, used: Quantities, expected: Quantities, requests: int) -> None:
    assert billed(final(outcome, used)) == expected + Quantities(request=requests)


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("used", [NOTHING, DELIVERED])
@pytest.mark.parametrize(
    ("endpoint", "since"), [(Endpoint.COUNT_TOKENS, 3), (Endpoint.TOKENIZE, 4), (Endpoint.DETOKENIZE, 4), (Endpoint.INPUT_TOKENS, 5)]
)
def test_endpoint_that_generates_nothing_bills_nothing_since_a_policy(
    endpoint: Endpoint, since: int, outcome: Outcome, used: Quantities
) -> None:
    ended = final(outcome, used)
    before, after = (
        msgspec.structs.replace(ended, admit=msgspec.structs.replace(ADMIT, endpoint=endpoint, outcome_policy=version))
        for version in (since - 1, since)
    )
    assert billed(after) == NOTHING
    assert billed(before) == billed(ended)
    other = msgspec.structs.replace(ended, admit=msgspec.structs.replace(ADMIT, outcome_policy=since))
    assert billed(other) == billed(ended)


def test_every_policy_speaks_of_every_outcome() -> None:
    for version, policy in OUTCOME_POLICIES.items():
        assert policy.version == version
        assert policy.bills | policy.bills_after_first_token == set(Outcome)
        assert not policy.bills & policy.bills_after_first_token


@pytest.mark.parametrize(
    "record",
    [ADMIT, final(Outcome.COMPLETED, DELIVERED), Progress(request_id="req_1", used=DELIVERED), Tick(at=3), Close(at=4)],
)
def test_a_record_survives_its_encoding_and_has_one(record: Record) -> None:
    assert decode(encode(record)) == record
    assert encode(decode(encode(record))) == encode(record)


ADMITS = st.builds(
    Admit,
    request_id=st.integers(0, 2**74 - 1).map(lambda bits: ids.new_id(ids.REQUEST, 1, bits)),
    admitted_at=st.integers(0, 2**62),
    organization_id=st.text(max_size=8),
    project_id=st.text(max_size=8),
    key_id=st.text(max_size=8),
    model=st.text(max_size=8),
    endpoint=st.text(max_size=8),
    stream=st.booleans(),
    price_version=st.text(max_size=8),
    price_hash=st.text(max_size=8),
    outcome_policy=st.integers(1, 9),
    service_tier=st.sampled_from(ServiceTier),
)
COUNTS = st.integers(0, 3)
FINALS = st.builds(
    Final,
    admit=ADMITS,
    outcome=st.sampled_from(Outcome),
    used=st.builds(Quantities, COUNTS, COUNTS, COUNTS, COUNTS),
    source=st.sampled_from(UsageSource),
    ended_at=st.integers(0, 2**62),
    deployment_id=st.none() | st.text(max_size=8),
    attempts=COUNTS,
    first_token_at=st.none() | st.integers(0, 2**62),
    error=st.none() | st.text(max_size=8),
    anomaly=st.none() | st.sampled_from(Anomaly),
)


@given(FINALS, st.integers(2, CHOICES_MAX))
def test_choices_added_to_encoded_terms_are_the_record_encoded(record: Final, choices: int) -> None:
    of = msgspec.structs.replace(record.admit, choices=1)
    terms = add_choices(encode_terms(of), choices)
    assert encode_admit(of.request_id, of.admitted_at, terms) == encode(msgspec.structs.replace(of, choices=choices))


@given(FINALS, st.integers(2, CHOICES_MAX), st.lists(st.from_regex(r"bud_[0-9a-f]{32}", fullmatch=True), min_size=1, max_size=3))
def test_budgets_added_to_encoded_terms_are_the_record_encoded(record: Final, choices: int, budgets: list[str]) -> None:
    of = msgspec.structs.replace(record.admit, choices=1, budgets=())
    named = msgspec.structs.replace(of, budgets=tuple(budgets))
    assert encode_admit(of.request_id, of.admitted_at, add_budgets(encode_terms(of), budgets)) == encode(named)
    terms = add_budgets(add_choices(encode_terms(of), choices), budgets)
    assert encode_admit(of.request_id, of.admitted_at, terms) == encode(msgspec.structs.replace(named, choices=choices))


@given(FINALS)
def test_records_put_together_from_encoded_parts_are_the_records_encoded(record: Final) -> None:
    of = record.admit
    admit = encode_admit(of.request_id, of.admitted_at, encode_terms(of))
    assert admit == encode(of)
    fields = [getattr(record, name) for name in Final.__struct_fields__]
    assert encode(Ended(msgspec.Raw(admit), *fields[1:])) == encode(record)
    assert Ended.__struct_fields__ == Final.__struct_fields__


def test_the_content_hash_tells_records_apart() -> None:
    one, other = encode(final(Outcome.COMPLETED, DELIVERED)), encode(final(Outcome.COMPLETED, INPUT_ONLY))
    assert content_hash(one) != content_hash(other)


def test_ids_made_later_sort_later_and_keep_their_kind() -> None:
    early, late = ids.new_id(ids.REQUEST, 1_000_000, 2**74 - 1), ids.new_id(ids.REQUEST, 2_000_000, 0)
    assert early < late
    assert ids.is_id(ids.REQUEST, early)
    assert not ids.is_id(ids.KEY, early)
    assert not ids.is_id(ids.REQUEST, early + "0")


def test_ids_of_requests_are_ids_like_any_other_and_never_the_same() -> None:
    made = ids.RequestIds(random.Random(1).getrandbits)
    instants = [1_700_000_000_000_000 + step * 7 for step in range(1000)]
    requests = [made.new(at) for at in instants]
    assert requests == sorted(requests) and len({request[-15:] for request in requests}) == 1000
    for at, request in zip(instants, requests, strict=True):
        assert ids.instant_of(ids.REQUEST, request) == at // 1000 * 1000
        assert uuid.UUID(request[4:]).version == 7 and uuid.UUID(request[4:]).variant == uuid.RFC_4122
