"""Usage records for tests: plausible, deterministic, small."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from tollway.domain.billing_classes import Quantities, UnitPrices
from tollway.domain.faults import Fault
from tollway.domain.prices import PriceVersion
from tollway.domain.proofs import hash_price
from tollway.domain.usage import Admit, Final, Outcome, Record, UsageSource, encode
from tollway.link.spool import Spool
from tollway.wire.segments import extend, first_chain

NODE = "node_" + "0" * 32
OTHER_NODE = "node_" + "1" * 32
EPOCH = 1_790_000_000_000_000
ORGANIZATION = "org_" + "1" * 32
OTHER_ORGANIZATION = "org_" + "2" * 32
PROJECT = "proj_" + "1" * 32
KEY = "key_" + "1" * 32
DEPLOYMENT = "dep_" + "1" * 32

PRICE = PriceVersion(
    id="price_" + "1" * 32,
    list="book_" + "1" * 32,
    model="echo",
    currency="EUR",
    valid_from=0,
    unit_prices=UnitPrices(input=270_000, cached_input=27_000, output=1_100_000, reasoning=1_100_000, request=5),
)
OTHER_PRICE = msgspec.structs.replace(
    PRICE,
    id="price_" + "2" * 32,
    list="book_" + "2" * 32,
    currency="USD",
    unit_prices=msgspec.structs.replace(PRICE.unit_prices, input=1, output=3, request=0),
)


PRICE_HASHES: dict[str | tuple[str, str], str] = {}
"""The hash that records carry, by price, or by organization and price where an organization has terms of its own."""


def prove(price: PriceVersion, terms_valid_from: int = 0, organization_id: str | None = None) -> None:
    """Let the samples admit under a price, by terms that begin at an instant."""
    place = price.id if organization_id is None else (organization_id, price.id)
    PRICE_HASHES[place] = hash_price(price, terms_valid_from)


for _price in (PRICE, OTHER_PRICE):
    prove(_price)


def request_id(number: int) -> str:
    """The id of sample request `number`."""
    return f"req_{number:032x}"


def admit(number: int, **changes: Any) -> Admit:
    """Sample request `number`, admitted a millisecond after the one before it."""
    sample = Admit(
        request_id=request_id(number),
        admitted_at=EPOCH + number * 1000,
        organization_id=ORGANIZATION,
        project_id=PROJECT,
        key_id=KEY,
        model="echo",
        endpoint="chat/completions",
        stream=True,
        price_version=PRICE.id,
        price_hash="",
        outcome_policy=1,
    )
    changed = msgspec.structs.replace(sample, **changes)
    if changed.price_hash:
        return changed
    place = (changed.organization_id, changed.price_version)
    return msgspec.structs.replace(changed, price_hash=PRICE_HASHES.get(place) or PRICE_HASHES.get(changed.price_version) or "0" * 64)


def final(of: Admit, **changes: Any) -> Final:
    """The end of a request that completed normally."""
    sample = Final(
        admit=of,
        outcome=Outcome.COMPLETED,
        used=Quantities(100, 20, 30, 4),
        source=UsageSource.ENGINE_FINAL,
        ended_at=of.admitted_at + 250_000,
        deployment_id=DEPLOYMENT,
        attempts=1,
        first_token_at=of.admitted_at + 40_000,
    )
    return msgspec.structs.replace(sample, **changes)


def frames(records: Iterable[Record | bytes], node_id: str = NODE, epoch: int = EPOCH) -> list[bytes]:
    """Records (or payloads that are none) as the frames of an epoch, from its first one on."""
    chain, framed = first_chain(node_id, epoch), []
    for seq, record in enumerate(records, 1):
        chain, data = extend(chain, seq, record if isinstance(record, bytes) else encode(record))
        framed.append(data)
    return framed


def exchanges(numbers: Sequence[int], **changes: Any) -> list[Record]:
    """ADMIT and FINAL of each of these requests."""
    records: list[Record] = []
    for number in numbers:
        of = admit(number, **changes)
        records += [of, final(of)]
    return records


def ended(spool: Spool, slot: int, record: Final) -> asyncio.Future[None]:
    """Hand in a FINAL; the future is done when it is durable, and raises the Fault if it cannot be."""
    durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(fault: Fault | None) -> None:
        if durable.cancelled():
            return
        if fault is None:
            durable.set_result(None)
        else:
            durable.set_exception(fault)

    spool.final(slot, encode(record), done)
    return durable
