"""The tables of payments, on the MetaData of `schema`: movements of money, what they settle, bank statements, dunning, direct
debits and credit transfers."""

import sqlalchemy as sa

from tollway.domain.billing_parties import DunningAction
from tollway.domain.connectors import Connector, SyncState
from tollway.domain.credit_transfers import TransferOutcome
from tollway.domain.direct_debits import DebitOutcome, SequenceType
from tollway.domain.payments import OpenKind, PaymentKind, PaymentOrigin
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
for _name in ("number", "source_id", "target_id"):
    sa.Index(None, settlements.c.organization_id, settlements.c[_name])

open_items = sa.Table(  # kept by triggers: see storage.open_items
    "open_items",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),  # an issued document, or a payment
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("legal_entity_id", sa.String(64), sa.ForeignKey("legal_entities.id")),  # of a document, who sells
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("due_on", sa.String(10)),  # of a document
    sa.Column("left_minor", sa.BigInteger, nullable=False),  # what settlements have not taken from it
    one_of("kind", OpenKind),
    sa.CheckConstraint("left_minor >= 0", name="left_not_below_zero"),
    sa.CheckConstraint("(kind = 'payment') = (due_on IS NULL)", name="due_if_a_document"),
    sa.CheckConstraint("(kind = 'payment') = (legal_entity_id IS NULL)", name="sold_if_a_document"),
)
_IS_LEFT = sa.text("left_minor > 0")
for _name, _columns in (
    ("of_organization", ("organization_id", "kind", "due_on", "id")),
    ("of_seller", ("legal_entity_id", "kind", "due_on", "id")),
    ("by_id", ("kind", "id")),
):
    sa.Index(f"ix_open_items_{_name}", *(open_items.c[each] for each in _columns), sqlite_where=_IS_LEFT, postgresql_where=_IS_LEFT)

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
    # What its rows in bank_entries and bank_returns come to; null: it was imported before all of them were stored.
    sa.Column("credits", sa.Integer),
    sa.Column("credits_minor", sa.BigInteger),
    sa.Column("returns", sa.Integer),
    # Booked balances; null where the bank does not state them.
    sa.Column("opening_minor", sa.BigInteger),
    sa.Column("closing_minor", sa.BigInteger),
    sa.Column("closing_on", sa.String(10)),
    sa.Column("others_minor", sa.BigInteger),  # sum of its booked entries beside these credits
    sa.Column("follows_id", sa.String(64)),  # the statement with whose closing balance it opens
    sa.UniqueConstraint("iban", "digest"),
)

bank_entries = sa.Table(  # credits of bank statements
    "bank_entries",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("statement_id", sa.String(64), sa.ForeignKey("bank_statements.id"), nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("value_on", sa.String(10), nullable=False),
    sa.Column("debtor", sa.String(256), nullable=False),  # the name of the sender
    sa.Column("text", sa.String(512), nullable=False),
    sa.Column("payment_id", sa.String(64), sa.ForeignKey("payments.id")),  # null until it is known whose it is
)
sa.Index(None, bank_entries.c.payment_id)

bank_returns = sa.Table(  # direct debits that came back, by bank statements
    "bank_returns",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("statement_id", sa.String(64), sa.ForeignKey("bank_statements.id"), nullable=False),
    sa.Column("amount_minor", sa.BigInteger),  # null where the bank does not separate it from charges
    sa.Column("value_on", sa.String(10), nullable=False),
    sa.Column("end_to_end_id", sa.String(512), nullable=False),
    sa.Column("reason", sa.String(512), nullable=False),
    sa.Column("payment_id", sa.String(64), sa.ForeignKey("payments.id")),  # the return of a payment; null until that payment has come
)
sa.Index(None, bank_returns.c.end_to_end_id)

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

direct_debit_files = sa.Table(  # for the bank of a seller (pain.008)
    "direct_debit_files",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("legal_entity_id", sa.String(64), sa.ForeignKey("legal_entities.id"), nullable=False),
    sa.Column("collect_on", sa.String(10), nullable=False),
    sa.Column("debits", sa.Integer, nullable=False),
    sa.Column("total_minor", sa.BigInteger, nullable=False),
    sa.Column("content", sa.Text, nullable=False),
    sa.Column("actor", sa.String(64), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

direct_debits = sa.Table(
    "direct_debits",
    metadata,
    sa.Column("file_id", sa.String(64), sa.ForeignKey("direct_debit_files.id"), primary_key=True),
    sa.Column("invoice_id", sa.String(64), sa.ForeignKey("invoices.id"), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("end_to_end_id", sa.String(35), nullable=False),  # the number of the invoice
    sa.Column("debtor", sa.String(256), nullable=False),
    sa.Column("sequence", sa.String(4), nullable=False),
    sa.Column("mandate_reference", sa.String(35), nullable=False),
    sa.Column("mandate", sa.Text, nullable=False),  # as it was then: domain.direct_debits.Mandate
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("payment_id", sa.String(64), sa.ForeignKey("payments.id")),
    sa.Column("reason", sa.String(512), nullable=False),
    one_of("sequence", SequenceType),
    one_of("outcome", DebitOutcome),
    sa.CheckConstraint("amount_minor > 0", name="amount_above_zero"),
)
sa.Index(None, direct_debits.c.organization_id)
sa.Index(None, direct_debits.c.end_to_end_id)
sa.Index(None, direct_debits.c.mandate_reference)
sa.Index(None, direct_debits.c.payment_id)
_IS_OPEN = sa.text("outcome = 'open'")
sa.Index("ix_direct_debits_open", direct_debits.c.invoice_id, unique=True, sqlite_where=_IS_OPEN, postgresql_where=_IS_OPEN)

credit_transfer_files = sa.Table(  # for the bank of a seller (pain.001)
    "credit_transfer_files",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("legal_entity_id", sa.String(64), sa.ForeignKey("legal_entities.id"), nullable=False),
    sa.Column("execute_on", sa.String(10), nullable=False),
    sa.Column("transfers", sa.Integer, nullable=False),
    sa.Column("total_minor", sa.BigInteger, nullable=False),
    sa.Column("content", sa.Text, nullable=False),
    sa.Column("actor", sa.String(64), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

credit_transfers = sa.Table(  # of refunds: the account of each, and what became of it
    "credit_transfers",
    metadata,
    sa.Column("payment_id", sa.String(64), sa.ForeignKey("payments.id"), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("legal_entity_id", sa.String(64), sa.ForeignKey("legal_entities.id"), nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("end_to_end_id", sa.String(35), nullable=False),
    sa.Column("iban", sa.String(34), nullable=False),
    sa.Column("bic", sa.String(11), nullable=False),
    sa.Column("holder", sa.String(256), nullable=False),
    sa.Column("text", sa.String(140), nullable=False),
    sa.Column("file_id", sa.String(64), sa.ForeignKey("credit_transfer_files.id")),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("reason", sa.String(512), nullable=False),
    one_of("outcome", TransferOutcome),
    sa.CheckConstraint("amount_minor > 0", name="amount_above_zero"),
)
sa.Index(None, credit_transfers.c.organization_id)
sa.Index(None, credit_transfers.c.legal_entity_id)
sa.Index(None, credit_transfers.c.end_to_end_id)
sa.Index(None, credit_transfers.c.file_id)
