"""The tables of payments, on the MetaData of `schema`: movements of money, what they settle, bank statements, and dunning."""

import sqlalchemy as sa

from tollway.domain.billing_parties import DunningAction
from tollway.domain.connectors import Connector, SyncState
from tollway.domain.payments import PaymentKind, PaymentOrigin
from tollway.storage.schema import metadata, one_of

payments = sa.Table(  # append-only; each is a transaction, with its entries in ledger_entries under its id
    "payments",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("value_on", sa.String(10), nullable=False),
    sa.Column("origin", sa.String(16), nullable=False),
    sa.Column("reference", sa.String(512), nullable=False),
    sa.Column("external_id", sa.String(128), unique=True),  # by which a bank names it; null for none
    sa.Column("returns_id", sa.String(64), sa.ForeignKey("payments.id"), unique=True),
    sa.Column("actor", sa.String(64), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    one_of("kind", PaymentKind),
    one_of("origin", PaymentOrigin),
    sa.CheckConstraint("amount_minor > 0", name="amount_above_zero"),
    sa.CheckConstraint("(kind = 'return') = (returns_id IS NOT NULL)", name="return_of_a_payment"),
)
sa.Index(None, payments.c.organization_id, payments.c.id)

settlements = sa.Table(  # append-only
    "settlements",
    metadata,
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),  # counts up in each organization
    sa.Column("source_id", sa.String(64), primary_key=True),  # a payment, or a credit note
    sa.Column("target_id", sa.String(64), primary_key=True),  # an invoice, a refund or a return
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("settled_at", sa.BigInteger, nullable=False),
    sa.CheckConstraint("amount_minor <> 0 AND number > 0", name="amount_not_zero"),
)
sa.Index(None, settlements.c.organization_id)
sa.Index(None, settlements.c.target_id)

bank_statements = sa.Table(  # append-only
    "bank_statements",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("iban", sa.String(34), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),  # as the bank calls it; some banks do again each year
    sa.Column("digest", sa.String(64), nullable=False),  # SHA-256 of its canonical XML
    sa.Column("entries", sa.Integer, nullable=False),
    sa.Column("actor", sa.String(64), nullable=False),
    sa.Column("imported_at", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("iban", "digest"),
)

bank_entries = sa.Table(  # credits of bank statements that no invoice was found for
    "bank_entries",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("statement_id", sa.String(64), sa.ForeignKey("bank_statements.id"), nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("value_on", sa.String(10), nullable=False),
    sa.Column("debtor", sa.String(256), nullable=False),  # the name of the sender
    sa.Column("text", sa.String(512), nullable=False),
    sa.Column("payment_id", sa.String(64), sa.ForeignKey("payments.id")),  # once a person said whose it is
)
sa.Index(None, bank_entries.c.payment_id)

dunning_notices = sa.Table(  # append-only
    "dunning_notices",
    metadata,
    sa.Column("invoice_id", sa.String(64), sa.ForeignKey("invoices.id"), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("noticed_at", sa.BigInteger, nullable=False),
    one_of("action", DunningAction),
)
sa.Index(None, dunning_notices.c.organization_id)

dunning_letters = sa.Table(  # still to be sent; removed then
    "dunning_letters",
    metadata,
    sa.Column("invoice_id", sa.String(64), sa.ForeignKey("invoices.id"), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    one_of("action", DunningAction),
)
sa.Index(None, dunning_letters.c.organization_id)

dunning_holds = sa.Table(  # invoices that are not dunned, such as while they are disputed
    "dunning_holds",
    metadata,
    sa.Column("invoice_id", sa.String(64), sa.ForeignKey("invoices.id"), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("reason", sa.String(512), nullable=False),
    sa.Column("held_at", sa.BigInteger, nullable=False),
)

invoice_syncs = sa.Table(  # invoices that a connector collects; drafts too
    "invoice_syncs",
    metadata,
    sa.Column("invoice_id", sa.String(64), sa.ForeignKey("invoices.id"), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("connector", sa.String(16), nullable=False),
    sa.Column("state", sa.String(32), nullable=False),
    sa.Column("external_id", sa.String(128), nullable=False),  # empty until the connector has given one
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_at", sa.BigInteger),  # null while nothing is to be asked
    sa.Column("problem", sa.String(512), nullable=False),
    sa.Column("changed_at", sa.BigInteger, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    one_of("connector", Connector),
    one_of("state", SyncState),
)
sa.Index(None, invoice_syncs.c.organization_id)
sa.Index(None, invoice_syncs.c.next_at)
sa.Index(None, invoice_syncs.c.external_id)
