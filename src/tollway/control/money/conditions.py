"""The conditions of a closed period: outcome policies, prices and terms under which what is booked in it was admitted.

They follow from the events of the period and from the events that its corrections name. Exports carry them, and the hash of the period
covers them by their digest, so that no discount can be left out or changed afterwards. They never change once the period is frozen: what
followed a price or terms at or after the end of the period is not among them, because nothing in the period was admitted then.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tollway.domain.periods import Period
from tollway.domain.prices import Offer, PriceTerms
from tollway.domain.proofs import describe_price, hash_price, name_classes
from tollway.domain.usage import OUTCOME_POLICIES, OutcomePolicy
from tollway.storage import corrections as stored_corrections
from tollway.storage import prices as stored_prices
from tollway.storage import usage_events as stored_events
from tollway.storage.database import Transaction

ConditionRow = tuple[str, Mapping[str, Any]]
"""A line of an export: its type, and its other fields."""


def list_conditions(tx: Transaction, period: Period) -> list[ConditionRow]:
    """Return the conditions of a frozen period as lines of its export: outcome policies by version, prices by id, terms by
    their beginning."""
    corrected = {each.event_id for each in stored_corrections.iterate_booked(tx, period.organization_id, period.start_at)}
    found = stored_events.list_admissions(tx, period.organization_id, period.start_at, sorted(corrected))
    offers = stored_prices.find_offers(tx, {each.price_version for each in found})
    published = stored_prices.find_published_units(tx, offers)
    schedule = stored_prices.read_terms(tx, [period.organization_id])[period.organization_id].schedule
    hashes = {(each.price_version, each.price_hash) for each in found}
    used = [
        at
        for at, terms in enumerate(schedule)
        if any(price_id in offers and hash_price(offers[price_id].price, terms.valid_from) == hashed for price_id, hashed in hashes)
    ]
    versions = sorted({each.outcome_policy for each in found} & OUTCOME_POLICIES.keys())
    rows: list[ConditionRow] = [("outcome_policy", _policy_row(OUTCOME_POLICIES[version])) for version in versions]
    for price_id, offer in sorted(offers.items()):
        units = name_classes(published[price_id]) if price_id in published else None
        rows.append(("price", {**_price_row(offer, period.end_at), "published_unit_price_pico": units}))
    rows += [("terms", _terms_row(schedule, at, period.end_at)) for at in used]
    return rows


def digest_conditions(rows: Sequence[ConditionRow]) -> bytes:
    """Return the SHA-256 over conditions as they stand in an export, a newline after each."""
    digest = hashlib.sha256()
    for type, fields in rows:
        digest.update(msgspec.json.encode({"type": type, **fields}) + b"\n")
    return digest.digest()


def _policy_row(policy: OutcomePolicy) -> Mapping[str, Any]:
    """Return an outcome policy as a line: the outcomes that bill their tokens always, only after output, and their request; and the
    endpoints that bill nothing."""
    return {
        "version": policy.version,
        "bills": sorted(policy.bills),
        "bills_after_first_token": sorted(policy.bills_after_first_token),
        "bills_request": sorted(policy.bills_request),
        "unbilled_endpoints": sorted(policy.unbilled_endpoints),
    }


def _price_row(offer: Offer, end_at: int) -> Mapping[str, Any]:
    return {**describe_price(offer.price), "valid_until": offer.valid_until if offer.valid_until < end_at else None}


def _terms_row(schedule: Sequence[PriceTerms], at: int, end_at: int) -> Mapping[str, Any]:
    until = schedule[at + 1].valid_from if at + 1 < len(schedule) else end_at
    return {"list": schedule[at].list, "valid_from": schedule[at].valid_from, "valid_until": until if until < end_at else None}
