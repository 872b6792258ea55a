"""Give each node keys of its own, and let nodes be registered before they count.

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply. Nodes and the key that they shared are not carried over: each node registers with a key of its own."""
    op.drop_table("nodes")
    op.create_table(
        "nodes",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("acked_version", sa.BigInteger(), nullable=False),
        sa.Column("first_seen_at", sa.BigInteger(), nullable=True),
        sa.Column("seen_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_nodes")),
    )
    op.create_table(
        "join_tokens",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("pepper_version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("redacted", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=True),
        sa.Column("node_id", sa.String(length=64), nullable=True),
        sa.CheckConstraint("(used_at IS NULL) = (node_id IS NULL)", name=op.f("ck_join_tokens_node_if_used")),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_join_tokens_node_id_nodes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_join_tokens")),
        sa.UniqueConstraint("digest", name=op.f("uq_join_tokens_digest")),
    )
    op.execute("DELETE FROM api_keys WHERE type = 'node'")
    # In words of SQL, because SQLite adds a column with its constraints but no constraint to a table.
    op.execute(
        "ALTER TABLE api_keys ADD COLUMN node_id VARCHAR(64)"
        " CONSTRAINT fk_api_keys_node_id_nodes REFERENCES nodes (id)"
        " CONSTRAINT ck_api_keys_node_if_of_node CHECK ((type = 'node') = (node_id IS NOT NULL))"
    )
    op.create_index(op.f("ix_api_keys_node_id"), "api_keys", ["node_id"])
