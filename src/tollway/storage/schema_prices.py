"""The tables of price books, on the MetaData of `schema`.

Published prices stand in `book_prices`; `compiled_prices` holds what follows from them, one row for each price list of the book, and is
what rating and gateways read. Both can be compared at any time (see control.verification.verify). All but the drafts are append-only, and a
draft is once it was published or discarded (see the migrations).
"""

import sqlalchemy as sa
from sqlalchemy.schema import SchemaItem

from tollway.domain.billing_classes import OTHER_CLASSES, BillingClass
from tollway.domain.price_books import DISCOUNT_BP_MAX, DraftState
from tollway.domain.usage import ServiceTier
from tollway.storage.schema import metadata, one_of

UNIT_PRICES = tuple(f"{billing_class}_pico" for billing_class in BillingClass)
"""Columns of unit prices, in the order of the billing classes."""

OTHER_UNIT_PRICES = tuple(f"{billing_class}_pico" for billing_class in OTHER_CLASSES)
"""Those that are null where the price is the default of its class, as it is in rows from before the class existed."""


def _unit_columns() -> tuple[SchemaItem, ...]:
    """Unit prices (domain.prices.UnitPrices), none below zero."""
    return (
        *(sa.Column(name, sa.BigInteger, nullable=name in OTHER_UNIT_PRICES) for name in UNIT_PRICES),
        sa.CheckConstraint(" AND ".join(f"{name} >= 0" for name in UNIT_PRICES if name not in OTHER_UNIT_PRICES), name="not_negative"),
    )


price_books = sa.Table(  # append-only
    "price_books",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(256), nullable=False, unique=True),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id")),  # whose own it is; null if it is general
    sa.Column("default_of", sa.String(3), unique=True),  # the currency, in its default book; null in every other
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.CheckConstraint("default_of IS NULL OR (default_of = currency AND organization_id IS NULL)", name="default_is_general"),
)

price_lists = sa.Table(  # append-only; the lists in use: each price of the book is compiled for each of them
    "price_lists",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("book_id", sa.String(64), sa.ForeignKey("price_books.id"), nullable=False),
    sa.Column("discount_bp", sa.Integer, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("book_id", "discount_bp"),
    sa.CheckConstraint(f"discount_bp BETWEEN 0 AND {DISCOUNT_BP_MAX}", name="discount_in_range"),
)

price_drafts = sa.Table(
    "price_drafts",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("book_id", sa.String(64), sa.ForeignKey("price_books.id"), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("valid_from", sa.BigInteger),  # null: from the instant of publishing
    sa.Column("lines", sa.LargeBinary, nullable=False),  # JSON array of domain.price_books.DraftLine
    sa.Column("findings", sa.LargeBinary, nullable=False),  # JSON array of Finding: what was accepted at publishing
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("changed_at", sa.BigInteger, nullable=False),
    one_of("state", DraftState),
)

book_prices = sa.Table(  # append-only
    "book_prices",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("book_id", sa.String(64), sa.ForeignKey("price_books.id"), nullable=False),
    sa.Column("model", sa.String(128), sa.ForeignKey("models.name"), nullable=False),
    sa.Column("tier", sa.String(16), nullable=False),
    sa.Column("valid_from", sa.BigInteger, nullable=False),
    *_unit_columns(),
    # The oldest valid_from that gateways still need once this price is the last of its model and tier: decided when it was
    # written (see control.catalog.prices), so that what a gateway receives depends on rows alone and never on the time of asking.
    sa.Column("carried_from", sa.BigInteger, nullable=False),
    sa.Column("draft_id", sa.String(64), sa.ForeignKey("price_drafts.id")),
    sa.Column("published_at", sa.BigInteger, nullable=False),
    one_of("tier", ServiceTier),
    sa.CheckConstraint("carried_from <= valid_from", name="carried_from_not_later"),
    sa.UniqueConstraint("book_id", "model", "tier", "valid_from"),
)

compiled_prices = sa.Table(  # append-only
    "compiled_prices",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("list_id", sa.String(64), sa.ForeignKey("price_lists.id"), nullable=False),
    sa.Column("source_id", sa.String(64), sa.ForeignKey("book_prices.id"), nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("tier", sa.String(16), nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("valid_from", sa.BigInteger, nullable=False),
    *_unit_columns(),
    sa.Column("carried_from", sa.BigInteger, nullable=False),  # as of its source
    one_of("tier", ServiceTier),
    sa.UniqueConstraint("model", "list_id", "tier", "valid_from"),
)

price_terms = sa.Table(  # append-only
    "price_terms",
    metadata,
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), primary_key=True),
    sa.Column("valid_from", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("list_id", sa.String(64), sa.ForeignKey("price_lists.id"), nullable=False),
    sa.Column("carried_from", sa.BigInteger, nullable=False),  # as in book_prices, of the organization's terms
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.CheckConstraint("carried_from <= valid_from", name="carried_from_not_later"),
)

APPEND_ONLY = (price_books, price_lists, book_prices, compiled_prices, price_terms)
"""Tables whose rows, once written, stay as they are."""
