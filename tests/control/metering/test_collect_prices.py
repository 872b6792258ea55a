"""Prices that a record may name: of its model and tier, on a list by which the organization was ever to pay. Verification finds
versions that do not follow from a publication."""

import msgspec
import pytest
import sqlalchemy as sa

from tests.control.metering.test_collect import NOW, count, take
from tests.link.samples import EPOCH, ORGANIZATION, PRICE, admit, final, frames, request_id
from tests.storage.databases import add_price, become_owner, prove_prices
from tollway.control.catalog import prices
from tollway.control.metering import usage
from tollway.control.metering.collect import Ingested
from tollway.control.metering.rating import PRICE_LAG_US, BillingAccount, find_proven_price
from tollway.control.metering.usage import Receipt
from tollway.control.verification.verify import verify
from tollway.domain.billing_classes import BillingClass, OtherClasses, Quantities, UnitPrices, with_default_prices
from tollway.domain.periods import INSTANT_MAX
from tollway.domain.prices import Offer, PriceTerms
from tollway.domain.proofs import hash_price
from tollway.domain.usage import ServiceTier
from tollway.storage import prices as stored
from tollway.storage import schema_money as money
from tollway.storage import schema_prices
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive
from tollway.storage.rollups import iterate_rollups

FLEX = msgspec.structs.replace(
    PRICE, id="price_" + "f" * 32, tier=ServiceTier.FLEX, unit_prices=msgspec.structs.replace(PRICE.unit_prices, input=135_000)
)
ELSEWHERE = msgspec.structs.replace(PRICE, id="price_" + "e" * 32, list="book_" + "e" * 32)


@pytest.fixture
def database(database: Database) -> Database:
    with database.platform() as tx:
        for price in (FLEX, ELSEWHERE):
            add_price(tx, price)
    return database


def used(database: Database, archive: Archive, price_id: str, tier: ServiceTier = ServiceTier.STANDARD) -> Ingested:
    with database.platform(write=False) as tx:
        prove_prices(tx)
    of = admit(1, price_version=price_id, service_tier=tier)
    return take(database, archive, frames([of, final(of, used=Quantities(1_000))]))


def test_a_tiers_price_bills_that_tier(database: Database, archive: Archive) -> None:
    assert used(database, archive, FLEX.id, ServiceTier.FLEX).events == 1
    with database.platform(write=False) as tx:
        row = tx.connection.execute(sa.select(money.usage_events)).one()
    assert (row.service_tier, row.input_pico, row.price_version) == ("flex", 135_000_000, FLEX.id)
    assert verify(database, archive).differences == []


def test_classes_that_few_requests_use_are_billed_at_their_prices_and_at_their_defaults(database: Database, archive: Archive) -> None:
    stated = {BillingClass.INPUT: 270_000, BillingClass.OUTPUT: 1_100_000, BillingClass.AUDIO_INPUT: 9, BillingClass.IMAGES: 40_000}
    priority = msgspec.structs.replace(PRICE, id="price_" + "a" * 32, tier=ServiceTier.PRIORITY, unit_prices=with_default_prices(stated))
    with database.platform() as tx:
        add_price(tx, priority)
        assert stored.find_price(tx, priority.id) == priority
        row = tx.connection.execute(sa.select(schema_prices.compiled_prices).where(schema_prices.compiled_prices.c.id == priority.id)).one()
    assert (row.audio_input_pico, row.images_pico, row.cache_write_pico, row.seconds_pico) == (9, 40_000, None, None)
    with database.platform(write=False) as tx:
        prove_prices(tx)
    of = admit(1, price_version=priority.id, service_tier=ServiceTier.PRIORITY)
    other = OtherClasses(cache_write=10, audio_input=20, audio_output=3, seconds=7, images=2)
    assert take(database, archive, frames([of, final(of, used=Quantities(100, other=other))])).events == 1
    amounts = (100 * 270_000, 10 * 270_000, 20 * 9, 3 * 1_100_000, 2 * 40_000)
    receipt = receipt_of(database)
    assert tuple(line.amount_pico for line in receipt.lines if line.amount_pico) == amounts
    assert receipt.event.final.used.other == other
    with database.platform(write=False) as tx:
        sums = [each for key, each in iterate_rollups(tx) if key.width_seconds == 60]
    assert [(each.billed.other, each.amounts.total) for each in sums] == [(other, sum(amounts))]
    assert verify(database, archive).differences == []


@pytest.mark.parametrize(
    ("price_id", "tier"), [(FLEX.id, ServiceTier.STANDARD), (PRICE.id, ServiceTier.FLEX), (FLEX.id, ServiceTier.BATCH)]
)
def test_a_price_of_another_tier_bills_nothing(database: Database, archive: Archive, price_id: str, tier: ServiceTier) -> None:
    assert used(database, archive, price_id, tier).quarantined == 1
    assert count(database, money.usage_events) == 0
    assert verify(database, archive).differences == []


def test_a_list_that_was_never_in_the_terms_bills_nothing(database: Database, archive: Archive) -> None:
    assert used(database, archive, ELSEWHERE.id).quarantined == 1
    assert count(database, money.usage_events) == 0
    assert verify(database, archive).differences == []


def test_a_list_that_is_in_the_terms_bills_at_its_discount(database: Database, archive: Archive) -> None:
    with database.tenant(ORGANIZATION) as tx:
        prices.set_terms(tx, book_id=ELSEWHERE.list, discount_bp=2_500, valid_from=None, now=EPOCH)
    assert used(database, archive, f"{ELSEWHERE.id}-2500").events == 1
    with database.platform(write=False) as tx:
        assert tx.connection.execute(sa.select(money.usage_events.c.input_pico)).scalar_one() == 202_500_000
    assert verify(database, archive).differences == []


def receipt_of(database: Database) -> Receipt:
    with database.tenant(ORGANIZATION, write=False) as tx:
        return usage.get_receipt(tx, request_id(1))


def test_a_receipt_says_when_its_price_holds_on_every_gateway_and_when_it_was_charged_last(database: Database, archive: Archive) -> None:
    used(database, archive, PRICE.id)
    day_us = 86_400_000_000
    found = receipt_of(database).validity
    assert (found.list, found.valid_from, found.followed_at, found.charged_until) == (PRICE.list, PRICE.valid_from, None, None)
    assert found.holds_by == PRICE.valid_from + day_us
    later = msgspec.structs.replace(PRICE, id="price_" + "d" * 32, valid_from=EPOCH + 5_000_000)
    with database.platform() as tx:
        add_price(tx, later)
    found = receipt_of(database).validity
    assert (found.followed_at, found.charged_until) == (later.valid_from, later.valid_from + day_us)
    with database.tenant(ORGANIZATION) as tx:
        prices.set_terms(tx, book_id=None, discount_bp=2_500, valid_from=None, now=EPOCH + 4_000_000)
    assert receipt_of(database).validity.followed_at == EPOCH + 4_000_000


def test_a_receipt_under_terms_is_valid_from_their_beginning(database: Database, archive: Archive) -> None:
    with database.tenant(ORGANIZATION) as tx:
        prices.set_terms(tx, book_id=ELSEWHERE.list, discount_bp=2_500, valid_from=None, now=EPOCH)
    used(database, archive, f"{ELSEWHERE.id}-2500")
    found = receipt_of(database).validity
    assert (found.list, found.valid_from) == (f"{ELSEWHERE.list}-2500", EPOCH)


def test_a_list_that_the_terms_have_left_still_bills(database: Database, archive: Archive) -> None:
    """A gateway that had not heard of new terms admitted by those before, which is what its client was told."""
    with database.tenant(ORGANIZATION) as tx:
        prices.set_terms(tx, book_id=ELSEWHERE.list, discount_bp=0, valid_from=None, now=EPOCH)
    assert used(database, archive, PRICE.id).events == 1


def test_the_applicable_price_follows_from_values_alone() -> None:
    accounts = {ORGANIZATION: BillingAccount("EUR", (PriceTerms(0, PRICE.list), PriceTerms(90, "book_0")))}
    offers = {PRICE.id: Offer(PRICE, INSTANT_MAX)}
    assert find_proven_price(admit(1), accounts, offers) == (PRICE, 0, 90 + PRICE_LAG_US)
    assert find_proven_price(admit(1), accounts, {PRICE.id: Offer(PRICE, 70)}) == (PRICE, 0, 70 + PRICE_LAG_US)
    assert find_proven_price(admit(1), {}, offers) == "organization_unknown"
    assert find_proven_price(admit(1), accounts, {}) == "price_unknown"
    assert find_proven_price(admit(1, price_hash=hash_price(PRICE, 1)), accounts, offers) == "price_unproven"
    for change in ({"valid_from": 1}, {"unit_prices": UnitPrices(input=1, output=1)}):
        changed = msgspec.structs.replace(PRICE, **change)
        assert find_proven_price(admit(1), accounts, {PRICE.id: Offer(changed, INSTANT_MAX)}) == "price_unproven"
    for change in ({"tier": ServiceTier.FLEX}, {"list": "book_9"}, {"currency": "USD"}, {"model": "other"}):
        other = msgspec.structs.replace(PRICE, **change)
        assert find_proven_price(admit(1), accounts, {PRICE.id: Offer(other, INSTANT_MAX)}) == "price_not_applicable"


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE compiled_prices SET input_pico = input_pico - 1 WHERE id = '{ELSEWHERE.id}-2500'",
        f"UPDATE compiled_prices SET valid_from = valid_from + 1 WHERE id = '{FLEX.id}'",
        f"UPDATE book_prices SET output_pico = 0 WHERE id = '{ELSEWHERE.id}'",
        f"DELETE FROM compiled_prices WHERE id = '{ELSEWHERE.id}-2500'",
        f"UPDATE compiled_prices SET list_id = '{PRICE.list}', valid_from = 7 WHERE id = '{ELSEWHERE.id}-2500'",
    ],
)
def test_a_version_that_does_not_follow_from_its_book_is_found_out(database: Database, archive: Archive, statement: str) -> None:
    with database.tenant(ORGANIZATION) as tx:
        prices.set_terms(tx, book_id=ELSEWHERE.list, discount_bp=2_500, valid_from=None, now=NOW)
    assert verify(database, archive).is_right
    with database.platform() as tx:
        for table in schema_prices.APPEND_ONLY:
            if database.is_sqlite:
                tx.connection.exec_driver_sql(f"DROP TRIGGER {table.name}_refuses_update")
                tx.connection.exec_driver_sql(f"DROP TRIGGER {table.name}_refuses_delete")
            else:
                become_owner(tx)
                tx.connection.exec_driver_sql(f"ALTER TABLE {table.name} DISABLE TRIGGER USER")
        tx.connection.execute(sa.text(statement))
    (difference,) = verify(database, archive).differences
    assert difference.table == "compiled_prices"


def test_prices_are_compiled_for_a_list_once_however_often_it_is_used(database: Database) -> None:
    with database.tenant(ORGANIZATION) as tx:
        prices.set_terms(tx, book_id=ELSEWHERE.list, discount_bp=100, valid_from=None, now=NOW)
        prices.set_terms(tx, book_id=None, discount_bp=0, valid_from=None, now=NOW + 1)
        prices.set_terms(tx, book_id=ELSEWHERE.list, discount_bp=100, valid_from=None, now=NOW + 2)
    with database.platform(write=False) as tx:
        assert [each.discount_bp for each in stored.list_lists(tx, ELSEWHERE.list)] == [0, 100]
        assert all(found == right for right, found in stored.iterate_compiled(tx))
