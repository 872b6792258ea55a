"""The tables of invoices, on the MetaData of `schema`: who sells, who is billed, documents with their files, and their transactions.

An issued or void document and its files never change: triggers refuse it on both engines (see the migrations). The number of a document is
taken from `number_series` in the transaction that issues it, under the lock of the series' row, so numbers have no gaps.
"""

import sqlalchemy as sa

from tollway.domain.invoices import InvoiceKind, InvoiceState
from tollway.storage.schema import metadata, one_of

legal_entities = sa.Table(
    "legal_entities",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("details", sa.Text, nullable=False),  # JSON: domain.billing_parties.LegalEntity
    sa.Column("grace_days", sa.Integer),  # a copy, by which the job finds what to draft
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

billing_accounts = sa.Table(
    "billing_accounts",
    metadata,
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), primary_key=True),
    sa.Column("legal_entity_id", sa.String(64), sa.ForeignKey("legal_entities.id"), nullable=False),
    sa.Column("details", sa.Text, nullable=False),  # JSON: domain.billing_parties.BillingAccount
    sa.Column("changed_at", sa.BigInteger, nullable=False),
    sa.Column("mandate_reference", sa.String(35)),  # a copy: a mandate of a seller is of one organization
    sa.Index(None, "legal_entity_id", "mandate_reference", unique=True),
)

number_series = sa.Table(  # the last number that was given in each series
    "number_series",
    metadata,
    sa.Column("legal_entity_id", sa.String(64), sa.ForeignKey("legal_entities.id"), primary_key=True),
    sa.Column("series", sa.String(32), primary_key=True),
    sa.Column("last_number", sa.BigInteger, nullable=False),
)

invoices = sa.Table(
    "invoices",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("legal_entity_id", sa.String(64), sa.ForeignKey("legal_entities.id"), nullable=False),
    sa.Column("period_id", sa.String(64), sa.ForeignKey("billing_periods.id")),  # whose bookings it bills
    sa.Column("corrects_id", sa.String(64), sa.ForeignKey("invoices.id")),  # the document that it corrects
    sa.Column("cancels", sa.Boolean, nullable=False),  # it takes the whole of that document back
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("document", sa.Text, nullable=False),  # canonical JSON: domain.invoices.Document
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("issue_at", sa.BigInteger),  # when a draft is issued without an approval; null for never
    sa.Column("voided_at", sa.BigInteger),
    # From here on: written when it is issued.
    sa.Column("series", sa.String(32)),
    sa.Column("number", sa.BigInteger),
    sa.Column("digest", sa.String(64)),  # SHA-256 of the document
    sa.Column("issued_at", sa.BigInteger),
    sa.Column("issued_by", sa.String(64)),  # the operator's key, or "automatic"
    sa.Column("due_on", sa.String(10)),
    sa.UniqueConstraint("legal_entity_id", "series", "number"),
    one_of("kind", InvoiceKind),
    one_of("state", InvoiceState),
    sa.CheckConstraint(
        "(state = 'issued') = (number IS NOT NULL) AND (number IS NULL) = (series IS NULL) AND (number IS NULL) = (digest IS NULL)"
        " AND (number IS NULL) = (issued_at IS NULL) AND (number IS NULL) = (issued_by IS NULL) AND (number IS NULL) = (due_on IS NULL)",
        name="issued_with_number",
    ),
    sa.CheckConstraint("(state = 'void') = (voided_at IS NOT NULL)", name="void_with_instant"),
    sa.CheckConstraint("number IS NULL OR number > 0", name="number_above_zero"),
)
sa.Index(None, invoices.c.organization_id, invoices.c.id)
sa.Index(None, invoices.c.period_id)
sa.Index(None, invoices.c.corrects_id)

invoice_files = sa.Table(  # append-only; what was made of an issued document, as it was sent
    "invoice_files",
    metadata,
    sa.Column("invoice_id", sa.String(64), sa.ForeignKey("invoices.id"), primary_key=True),
    sa.Column("format", sa.String(16), primary_key=True),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),  # SHA-256 of the content
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

invoice_transactions = sa.Table(  # append-only; each with its entries in ledger_entries
    "invoice_transactions",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),  # derived from the document: it is booked once
    sa.Column("organization_id", sa.String(64), nullable=False),
    sa.Column("invoice_id", sa.String(64), sa.ForeignKey("invoices.id"), nullable=False, unique=True),
    sa.Column("booked_at", sa.BigInteger, nullable=False),
)
sa.Index(None, invoice_transactions.c.organization_id, invoice_transactions.c.id)
