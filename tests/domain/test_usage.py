"""Outcomes and what they bill; the one encoding of a record (P1, P12)."""

import random
import uuid

import pytest

from tollway.domain import ids
from tollway.domain.usage import (
    NOTHING,
    OUTCOME_POLICIES,
    Admit,
    Close,
    Final,
    Outcome,
    Progress,
    Quantities,
    Record,
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
    assert billed(final(outcome, used)) == (expected, requests)


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
