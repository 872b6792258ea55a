"""Proofs: the Merkle tree of RFC 6962 (section 2.1, unchanged in RFC 9162) over the events of a billing period.

The leaves are the period's events in order of their ids, each in the one canonical encoding `encode_leaf`: what the receipt says. A
closed period stores the root. Whoever holds a receipt and an inclusion proof can compute that root from them and compare it with the
one that was published, without seeing any other event; whoever holds all events can compute it from nothing else.

    hash of a leaf   SHA-256(0x00 || leaf)
    hash of a node   SHA-256(0x01 || left || right)
    hash of nothing  SHA-256()

A tree of n > 1 leaves splits at the largest power of two below n. Hence the leaves of an aligned block of a power of two are one
subtree, and the root over the blocks' roots is the root over all leaves: a large period is hashed in blocks of BLOCK_LEAVES, kept with
it, so that a proof reads one block and not the whole month.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from tollway.domain.billing_classes import UnitPrices, stated_prices
from tollway.domain.prices import PriceVersion, RatedLine
from tollway.domain.usage import UsageEvent

BLOCK_LEAVES: Final = 1024
"""Leaves of a block; a power of two. A proof costs one block to hash, a period of ten million events ten thousand rows."""

EMPTY: Final = hashlib.sha256().digest()
"""The root of a tree without leaves."""


def hash_statement(statement: Mapping[str, Any]) -> bytes:
    """Return the one hash of a closed period: SHA-256 over its statement as JSON, names in order, without spaces, all text ASCII."""
    return hashlib.sha256(json.dumps(statement, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()).digest()


def describe_price(price: PriceVersion) -> Mapping[str, Any]:
    """Return all that a price version says, as exports show it: what one token of each class costs, or one request."""
    return {
        "id": price.id,
        "list": price.list,
        "model": price.model,
        "service_tier": str(price.tier),
        "currency": price.currency,
        "valid_from": price.valid_from,
        "unit_price_pico": name_classes(price.unit_prices),
    }


def name_classes(units: UnitPrices) -> Mapping[str, str]:
    """Return unit prices by billing class, as exports show them: a class that is not among them has the default of its row."""
    return {str(name): str(pico) for name, pico in stated_prices(units).items()}


@lru_cache(maxsize=4096)
def hash_price(price: PriceVersion, terms_valid_from: int) -> str:
    """Return the hash of a price and of the terms by which an organization pays it, in hexadecimal: made as that of a statement.

    `terms_valid_from`: the instant from which the organization pays by the price's list. A record carries this hash from its admission on,
    so that neither the price nor the terms can be another one later.
    """
    return hash_statement({**describe_price(price), "terms_valid_from": terms_valid_from}).hex()


class LeafLine(msgspec.Struct, frozen=True, kw_only=True):
    """One class: quantity x unit_price_pico = amount_pico."""

    billing_class: str
    quantity: int
    unit_price_pico: str
    amount_pico: str


class Leaf(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of one event to which the root of its period commits. Instants in UTC microseconds, amounts as integer strings of pico.

    `content_hash` is the SHA-256 (hex) of the record as the gateway wrote it.
    """

    event_id: str
    content_hash: str
    organization_id: str
    project_id: str
    key_id: str
    model: str
    service_tier: str
    admitted_at: int
    ended_at: int
    outcome: str
    outcome_policy: int
    price_version: str
    currency: str
    lines: tuple[LeafLine, ...]
    amount_pico: str


_encoder = msgspec.json.Encoder()


def leaf_of(event: UsageEvent, lines: Iterable[RatedLine], currency: str) -> Leaf:
    """The leaf of an event with its rated lines."""
    final, admit = event.final, event.final.admit
    shown = tuple(
        LeafLine(
            billing_class=line.billing_class,
            quantity=line.quantity,
            unit_price_pico=str(line.unit_pico),
            amount_pico=str(line.amount_pico),
        )
        for line in lines
    )
    return Leaf(
        event_id=admit.request_id,
        content_hash=event.content_hash.hex(),
        organization_id=admit.organization_id,
        project_id=admit.project_id,
        key_id=admit.key_id,
        model=admit.model,
        service_tier=admit.service_tier,
        admitted_at=admit.admitted_at,
        ended_at=final.ended_at,
        outcome=final.outcome,
        outcome_policy=admit.outcome_policy,
        price_version=admit.price_version,
        currency=currency,
        lines=shown,
        amount_pico=str(sum(int(line.amount_pico) for line in shown)),
    )


def encode_leaf(leaf: Leaf) -> bytes:
    """The one encoding of a leaf: JSON without spaces, fields in declared order, all text ASCII."""
    return _encoder.encode(leaf)


def hash_leaf(leaf: bytes) -> bytes:
    """The hash of an encoded leaf."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def hash_node(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def find_root(hashes: Sequence[bytes]) -> bytes:
    """The root over leaves' hashes, or over the roots of full, aligned blocks (the last one may be smaller)."""
    if not hashes:
        return EMPTY
    level = list(hashes)
    while len(level) > 1:
        # Pairing from the left and passing the odd one up gives the split at the largest power of two, level by level.
        paired = [hash_node(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
        level = paired + level[len(paired) * 2 :]
    return level[0]


def find_path(index: int, hashes: Sequence[bytes]) -> list[bytes]:
    """The siblings on the way from `hashes[index]` to the root over all of them, from below."""
    path, level = [], list(hashes)
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        paired = [hash_node(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
        level = paired + level[len(paired) * 2 :]
        index //= 2
    return path
