"""Keep what is left of each invoice, credit note and payment, so that what is open is found without reading what is settled."""

import sqlalchemy as sa
from alembic import op

revision = "0150"
down_revision = "0154"
branch_labels = None
depends_on = None

SOURCES = "('payment', 'write_off')"
"""Kinds of payments that settle others; a refund and a return are settled at once."""

ISSUED = "OLD.state = 'draft' AND NEW.state = 'issued'"
GROSS = {
    "sqlite": "json_extract({}.document, '$.totals.gross_minor')",
    "postgresql": "({}.document::json #>> '{{totals,gross_minor}}')::bigint",
}
COLUMNS = "(id, organization_id, legal_entity_id, kind, due_on, left_minor)"


def upgrade() -> None:
    """Create the table, have the database keep it, and fill it.

    Triggers keep it, not programs: control processes of earlier versions, which do not know the table, book payments while this one starts.
    They are made before the table is filled; nobody writes in between, because PostgreSQL locks the tables of a new trigger.
    """
    op.create_table(
        "open_items",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("legal_entity_id", sa.String(length=64), nullable=True),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("due_on", sa.String(length=10), nullable=True),
        sa.Column("left_minor", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind IN ('invoice', 'credit_note', 'payment')", name=op.f("ck_open_items_kind_known")),
        sa.CheckConstraint("left_minor >= 0", name=op.f("ck_open_items_left_not_below_zero")),
        sa.CheckConstraint("(kind = 'payment') = (due_on IS NULL)", name=op.f("ck_open_items_due_if_a_document")),
        sa.CheckConstraint("(kind = 'payment') = (legal_entity_id IS NULL)", name=op.f("ck_open_items_sold_if_a_document")),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_open_items_organization_id_organizations")),
        sa.ForeignKeyConstraint(["legal_entity_id"], ["legal_entities.id"], name=op.f("fk_open_items_legal_entity_id_legal_entities")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_open_items")),
    )
    is_left = sa.text("left_minor > 0")
    for name, columns in (
        ("of_organization", ["organization_id", "kind", "due_on", "id"]),
        ("of_seller", ["legal_entity_id", "kind", "due_on", "id"]),
        ("by_id", ["kind", "id"]),
    ):
        op.create_index(f"ix_open_items_{name}", "open_items", columns, sqlite_where=is_left, postgresql_where=is_left)
    for column in ("number", "source_id", "target_id"):
        op.create_index(op.f(f"ix_settlements_organization_id_{column}"), "settlements", ["organization_id", column])
    for column in ("organization_id", "target_id"):
        op.drop_index(op.f(f"ix_settlements_{column}"), "settlements")
    keep()
    fill()


def keep() -> None:
    """Insert an item when a document is issued or a payment is booked, and take from it, or give back, what settles it."""
    gross = GROSS[op.get_bind().dialect.name].format("NEW")
    of_document = (
        f"INSERT INTO open_items {COLUMNS} VALUES (NEW.id, NEW.organization_id, NEW.legal_entity_id, NEW.kind, NEW.due_on, {gross})"
    )
    of_payment = f"INSERT INTO open_items {COLUMNS} VALUES (NEW.id, NEW.organization_id, NULL, 'payment', NULL, NEW.amount_minor)"
    settle = "UPDATE open_items SET left_minor = left_minor - NEW.amount_minor WHERE id IN (NEW.source_id, NEW.target_id)"
    _run_after("issued_document_is_open", "UPDATE OF state", "invoices", ISSUED, of_document)
    _run_after("payment_is_open", "INSERT", "payments", f"NEW.kind IN {SOURCES}", of_payment)
    _run_after("settlement_moves_open_items", "INSERT", "settlements", "1 = 1", settle)


def _run_after(name: str, event: str, table: str, condition: str, statement: str) -> None:
    """Have the database execute a statement after each row of `table` with which `event` happened and for which `condition` holds."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"CREATE TRIGGER {name} AFTER {event} ON {table} WHEN {condition} BEGIN {statement}; END")
        return
    op.execute(f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {statement}; RETURN NULL; END $$")
    op.execute(f"CREATE TRIGGER {name} AFTER {event} ON {table} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION {name}()")


def fill() -> None:
    """Insert the items of documents and payments that are there."""
    gross = GROSS[op.get_bind().dialect.name].format("invoices")
    given = "SELECT source_id AS id, sum(amount_minor) AS minor FROM settlements GROUP BY source_id"
    taken = "SELECT target_id AS id, sum(amount_minor) AS minor FROM settlements GROUP BY target_id"
    op.execute(
        f"INSERT INTO open_items {COLUMNS}"
        " SELECT invoices.id, invoices.organization_id, legal_entity_id, kind, due_on, CAST("
        f"{gross} - CASE kind WHEN 'invoice' THEN coalesce(taken.minor, 0) ELSE coalesce(given.minor, 0) END AS BIGINT)"
        f" FROM invoices LEFT JOIN ({given}) AS given ON given.id = invoices.id LEFT JOIN ({taken}) AS taken ON taken.id = invoices.id"
        " WHERE state = 'issued'"
    )
    op.execute(
        f"INSERT INTO open_items {COLUMNS}"
        " SELECT payments.id, organization_id, NULL, 'payment', NULL, CAST(amount_minor - coalesce(given.minor, 0) AS BIGINT)"
        f" FROM payments LEFT JOIN ({given}) AS given ON given.id = payments.id WHERE kind IN {SOURCES}"
    )
