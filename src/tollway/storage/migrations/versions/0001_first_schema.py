"""The first schema: tenants, keys, catalog, prices, publication, usage and ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

APPEND_ONLY = (
    "price_books",
    "price_lists",
    "book_prices",
    "compiled_prices",
    "price_terms",
    "usage_events",
    "removed_months",
    "event_conflicts",
    "quarantined_records",
    "ledger_transactions",
    "ledger_entries",
    "period_blocks",
    "lost_declarations",
    "usage_adjustments",
    "adjustment_approvals",
)
"""Tables whose rows, once written, stay as they are: the engine refuses, whoever asks."""


def name(length: int) -> sa.String:
    """Text in a key, ordered by bytes."""
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "changes",
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("entity_id", sa.String(length=128), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_changes")),
    )
    op.create_table(
        "epochs",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("next_seq", sa.BigInteger(), nullable=False),
        sa.Column("chain", sa.LargeBinary(length=16), nullable=False),
        sa.Column("archive_bytes", sa.BigInteger(), nullable=False),
        sa.Column("ticked_at", sa.BigInteger(), nullable=True),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.Column("first_seen_at", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("next_seq >= 1 AND archive_bytes >= 0", name=op.f("ck_epochs_watermark_in_range")),
        sa.PrimaryKeyConstraint("node_id", "epoch", name=op.f("pk_epochs")),
    )
    op.create_table(
        "removed_months",
        sa.Column("start_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("start_at", name=op.f("pk_removed_months")),
    )
    op.create_table(
        "event_conflicts",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", "epoch", "seq", name=op.f("pk_event_conflicts")),
    )
    op.create_table(
        "ledger_accounts",
        sa.Column("id", name(256), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=160), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_accounts")),
        sa.UniqueConstraint("owner", "kind", "currency", name=op.f("uq_ledger_accounts_owner_kind_currency")),
    )
    op.create_table(
        "models",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("published", sa.Boolean(), nullable=False),
        sa.Column("endpoints", sa.Text(), nullable=False),
        sa.Column("output_tokens_max", sa.Integer(), nullable=True),
        sa.Column("unknown_parameters", sa.String(length=16), nullable=False),
        sa.Column("retry_started", sa.Boolean(), nullable=False),
        sa.Column("share_cache", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("status IN ('active', 'archived')", name=op.f("ck_models_status_known")),
        sa.CheckConstraint("unknown_parameters IN ('refuse', 'drop', 'forward')", name=op.f("ck_models_unknown_parameters_known")),
        sa.CheckConstraint("output_tokens_max > 0", name=op.f("ck_models_output_tokens_max_positive")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_models")),
    )
    op.create_table(
        "nodes",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("acked_version", sa.BigInteger(), nullable=False),
        sa.Column("first_seen_at", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_nodes")),
    )
    op.create_table(
        "organizations",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("time_zone", sa.String(length=64), server_default="UTC", nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("archived_at", sa.BigInteger(), nullable=True),
        sa.Column("requests_per_minute", sa.Integer(), nullable=True),
        sa.Column("concurrent_requests", sa.Integer(), nullable=True),
        sa.CheckConstraint("status IN ('active', 'archived')", name=op.f("ck_organizations_status_known")),
        sa.CheckConstraint("concurrent_requests > 0", name=op.f("ck_organizations_concurrent_requests_positive")),
        sa.CheckConstraint("requests_per_minute > 0", name=op.f("ck_organizations_requests_per_minute_positive")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_organizations")),
    )
    op.create_table(
        "publish_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_publish_head_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_publish_head")),
    )
    op.create_table(
        "quarantined_records",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event_id", sa.String(length=64), nullable=True),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", "epoch", "seq", name=op.f("pk_quarantined_records")),
    )
    op.create_table(
        "usage_rollups",
        sa.Column("organization_id", name(64), nullable=False),
        sa.Column("width_seconds", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("start_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("project_id", name(64), nullable=False),
        sa.Column("key_id", name(64), nullable=False),
        sa.Column("model", name(128), nullable=False),
        sa.Column("endpoint", name(64), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("input", sa.BigInteger(), nullable=False),
        sa.Column("cached_input", sa.BigInteger(), nullable=False),
        sa.Column("output", sa.BigInteger(), nullable=False),
        sa.Column("reasoning", sa.BigInteger(), nullable=False),
        sa.Column("input_cost_units", sa.BigInteger(), nullable=False),
        sa.Column("input_cost_pico", sa.BigInteger(), nullable=False),
        sa.Column("cached_input_cost_units", sa.BigInteger(), nullable=False),
        sa.Column("cached_input_cost_pico", sa.BigInteger(), nullable=False),
        sa.Column("output_cost_units", sa.BigInteger(), nullable=False),
        sa.Column("output_cost_pico", sa.BigInteger(), nullable=False),
        sa.Column("reasoning_cost_units", sa.BigInteger(), nullable=False),
        sa.Column("reasoning_cost_pico", sa.BigInteger(), nullable=False),
        sa.Column("request_cost_units", sa.BigInteger(), nullable=False),
        sa.Column("request_cost_pico", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "organization_id", "width_seconds", "start_at", "project_id", "key_id", "model", "endpoint", name=op.f("pk_usage_rollups")
        ),
        postgresql_with={"fillfactor": 45},
    )
    op.create_table(
        "balances",
        sa.Column("account_id", name(256), nullable=False),
        sa.Column("posted_pico", sa.Numeric(38, 0).with_variant(sa.String(39), "sqlite"), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["ledger_accounts.id"], name=op.f("fk_balances_account_id_ledger_accounts")),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_balances")),
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "deployments",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("base_url", sa.String(length=2048), nullable=False),
        sa.Column("engine", sa.String(length=16), nullable=False),
        sa.Column("upstream_model", sa.String(length=256), nullable=False),
        sa.Column("tier", sa.Integer(), nullable=False),
        sa.Column("weight", sa.Integer(), nullable=False),
        sa.Column("region", sa.String(length=64), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("credential", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "engine IN ('vllm', 'sglang', 'dynamo', 'trtllm', 'llamacpp', 'openai', 'sim')", name=op.f("ck_deployments_engine_known")
        ),
        sa.CheckConstraint("status IN ('active', 'archived')", name=op.f("ck_deployments_status_known")),
        sa.CheckConstraint("tier >= 0 AND weight >= 0", name=op.f("ck_deployments_rank_not_negative")),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_deployments_model_models")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployments")),
    )
    op.create_index(op.f("ix_deployments_model"), "deployments", ["model"])

    create_periods()
    op.create_table(
        "ledger_transactions",
        sa.Column("id", name(64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("period_at", sa.BigInteger(), nullable=False),
        sa.Column("cause", sa.String(length=16), nullable=False),
        sa.Column("node_id", sa.String(length=64), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=True),
        sa.Column("first_seq", sa.BigInteger(), nullable=True),
        sa.Column("last_seq", sa.BigInteger(), nullable=True),
        sa.Column("events", sa.Integer(), nullable=False),
        sa.Column("adjustment_id", sa.String(length=64), nullable=True),
        sa.Column("booked_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "CASE cause WHEN 'usage' THEN adjustment_id IS NULL AND node_id IS NOT NULL AND epoch IS NOT NULL"
            " AND first_seq <= last_seq AND events > 0"
            " WHEN 'adjustment' THEN adjustment_id IS NOT NULL AND node_id IS NULL AND epoch IS NULL"
            " AND first_seq IS NULL AND last_seq IS NULL AND events = 0 ELSE 1 = 0 END",
            name=op.f("ck_ledger_transactions_one_cause"),
        ),
        sa.ForeignKeyConstraint(
            ["adjustment_id"], ["usage_adjustments.id"], name=op.f("fk_ledger_transactions_adjustment_id_usage_adjustments")
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "period_at"],
            ["billing_periods.organization_id", "billing_periods.start_at"],
            name=op.f("fk_ledger_transactions_organization_id_billing_periods"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_transactions")),
        sa.UniqueConstraint("adjustment_id", name=op.f("uq_ledger_transactions_adjustment_id")),
    )
    op.create_index(
        op.f("ix_ledger_transactions_organization_id_period_at_id"), "ledger_transactions", ["organization_id", "period_at", "id"]
    )
    op.create_table(
        "price_books",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=True),
        sa.Column("default_of", sa.String(length=3), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "default_of IS NULL OR (default_of = currency AND organization_id IS NULL)", name=op.f("ck_price_books_default_is_general")
        ),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_price_books_organization_id_organizations")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_price_books")),
        sa.UniqueConstraint("default_of", name=op.f("uq_price_books_default_of")),
        sa.UniqueConstraint("name", name=op.f("uq_price_books_name")),
    )
    op.create_table(
        "price_drafts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("book_id", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=True),
        sa.Column("lines", sa.LargeBinary(), nullable=False),
        sa.Column("findings", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("state IN ('open', 'published', 'discarded')", name=op.f("ck_price_drafts_state_known")),
        sa.ForeignKeyConstraint(["book_id"], ["price_books.id"], name=op.f("fk_price_drafts_book_id_price_books")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_price_drafts")),
    )
    op.create_table(
        "price_lists",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("book_id", sa.String(length=64), nullable=False),
        sa.Column("discount_bp", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("discount_bp BETWEEN 0 AND 10000", name=op.f("ck_price_lists_discount_in_range")),
        sa.ForeignKeyConstraint(["book_id"], ["price_books.id"], name=op.f("fk_price_lists_book_id_price_books")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_price_lists")),
        sa.UniqueConstraint("book_id", "discount_bp", name=op.f("uq_price_lists_book_id_discount_bp")),
    )
    op.create_table(
        "book_prices",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("book_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("tier", sa.String(length=16), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("input_pico", sa.BigInteger(), nullable=False),
        sa.Column("cached_input_pico", sa.BigInteger(), nullable=False),
        sa.Column("output_pico", sa.BigInteger(), nullable=False),
        sa.Column("reasoning_pico", sa.BigInteger(), nullable=False),
        sa.Column("request_pico", sa.BigInteger(), nullable=False),
        sa.Column("carried_from", sa.BigInteger(), nullable=False),
        sa.Column("draft_id", sa.String(length=64), nullable=True),
        sa.Column("published_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("tier IN ('standard', 'flex', 'priority', 'batch')", name=op.f("ck_book_prices_tier_known")),
        sa.CheckConstraint("carried_from <= valid_from", name=op.f("ck_book_prices_carried_from_not_later")),
        sa.CheckConstraint(
            "input_pico >= 0 AND cached_input_pico >= 0 AND output_pico >= 0 AND reasoning_pico >= 0 AND request_pico >= 0",
            name=op.f("ck_book_prices_not_negative"),
        ),
        sa.ForeignKeyConstraint(["book_id"], ["price_books.id"], name=op.f("fk_book_prices_book_id_price_books")),
        sa.ForeignKeyConstraint(["draft_id"], ["price_drafts.id"], name=op.f("fk_book_prices_draft_id_price_drafts")),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_book_prices_model_models")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_book_prices")),
        sa.UniqueConstraint("book_id", "model", "tier", "valid_from", name=op.f("uq_book_prices_book_id_model_tier_valid_from")),
    )
    op.create_table(
        "price_terms",
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("list_id", sa.String(length=64), nullable=False),
        sa.Column("carried_from", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("carried_from <= valid_from", name=op.f("ck_price_terms_carried_from_not_later")),
        sa.ForeignKeyConstraint(["list_id"], ["price_lists.id"], name=op.f("fk_price_terms_list_id_price_lists")),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_price_terms_organization_id_organizations")),
        sa.PrimaryKeyConstraint("organization_id", "valid_from", name=op.f("pk_price_terms")),
    )
    op.create_table(
        "compiled_prices",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("list_id", sa.String(length=64), nullable=False),
        sa.Column("source_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("tier", sa.String(length=16), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("input_pico", sa.BigInteger(), nullable=False),
        sa.Column("cached_input_pico", sa.BigInteger(), nullable=False),
        sa.Column("output_pico", sa.BigInteger(), nullable=False),
        sa.Column("reasoning_pico", sa.BigInteger(), nullable=False),
        sa.Column("request_pico", sa.BigInteger(), nullable=False),
        sa.Column("carried_from", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("tier IN ('standard', 'flex', 'priority', 'batch')", name=op.f("ck_compiled_prices_tier_known")),
        sa.CheckConstraint(
            "input_pico >= 0 AND cached_input_pico >= 0 AND output_pico >= 0 AND reasoning_pico >= 0 AND request_pico >= 0",
            name=op.f("ck_compiled_prices_not_negative"),
        ),
        sa.ForeignKeyConstraint(["list_id"], ["price_lists.id"], name=op.f("fk_compiled_prices_list_id_price_lists")),
        sa.ForeignKeyConstraint(["source_id"], ["book_prices.id"], name=op.f("fk_compiled_prices_source_id_book_prices")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_compiled_prices")),
        sa.UniqueConstraint("model", "list_id", "tier", "valid_from", name=op.f("uq_compiled_prices_model_list_id_tier_valid_from")),
    )
    op.create_table(
        "projects",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("archived_at", sa.BigInteger(), nullable=True),
        sa.Column("requests_per_minute", sa.Integer(), nullable=True),
        sa.Column("concurrent_requests", sa.Integer(), nullable=True),
        sa.CheckConstraint("status IN ('active', 'archived')", name=op.f("ck_projects_status_known")),
        sa.CheckConstraint("concurrent_requests > 0", name=op.f("ck_projects_concurrent_requests_positive")),
        sa.CheckConstraint("requests_per_minute > 0", name=op.f("ck_projects_requests_per_minute_positive")),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_projects_organization_id_organizations")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_projects")),
        sa.UniqueConstraint("organization_id", "id", name=op.f("uq_projects_organization_id_id")),
    )
    op.create_table(
        "ledger_entries",
        sa.Column("transaction_id", name(64), nullable=False),
        sa.Column("line", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("account_id", name(256), nullable=False),
        sa.Column("amount_pico", sa.Numeric(38, 0).with_variant(sa.String(39), "sqlite"), nullable=False),
        sa.PrimaryKeyConstraint("transaction_id", "line", name=op.f("pk_ledger_entries")),
    )
    op.create_table(
        "service_accounts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["organization_id", "project_id"],
            ["projects.organization_id", "projects.id"],
            name=op.f("fk_service_accounts_organization_id_projects"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_service_accounts")),
        sa.UniqueConstraint("organization_id", "project_id", "id", name=op.f("uq_service_accounts_organization_id_project_id_id")),
    )
    op.create_table(
        "usage_events",
        sa.Column("event_id", name(64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("endpoint", sa.String(length=64), nullable=False),
        sa.Column("stream", sa.Boolean(), nullable=False),
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("admitted_at", sa.BigInteger(), nullable=False),
        sa.Column("first_token_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=False),
        sa.Column("period_at", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("source", sa.String(length=32), nullable=False),
        sa.Column("input", sa.BigInteger(), nullable=False),
        sa.Column("cached_input", sa.BigInteger(), nullable=False),
        sa.Column("output", sa.BigInteger(), nullable=False),
        sa.Column("reasoning", sa.BigInteger(), nullable=False),
        sa.Column("price_version", sa.String(length=64), nullable=False),
        sa.Column("service_tier", sa.String(length=16), nullable=False),
        sa.Column("outcome_policy", sa.Integer(), nullable=False),
        sa.Column("deployment_id", sa.String(length=64), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("error", sa.String(length=64), nullable=True),
        sa.Column("anomaly", sa.String(length=16), nullable=True),
        sa.Column("input_pico", sa.BigInteger(), nullable=False),
        sa.Column("cached_input_pico", sa.BigInteger(), nullable=False),
        sa.Column("output_pico", sa.BigInteger(), nullable=False),
        sa.Column("reasoning_pico", sa.BigInteger(), nullable=False),
        sa.Column("request_pico", sa.BigInteger(), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(length=32), nullable=False),
        sa.CheckConstraint(
            "outcome IN ('completed', 'client_cancelled', 'upstream_error', 'timeout', 'budget_stopped', 'gateway_crash')",
            name=op.f("ck_usage_events_outcome_known"),
        ),
        sa.CheckConstraint(
            "source IN ('engine_final', 'engine_continuous', 'counted', 'recovered', 'none')", name=op.f("ck_usage_events_source_known")
        ),
        sa.CheckConstraint("service_tier IN ('standard', 'flex', 'priority', 'batch')", name=op.f("ck_usage_events_service_tier_known")),
        sa.CheckConstraint(
            "anomaly IN ('usage_missing', 'usage_invalid', 'usage_inflated', 'usage_shrinking')", name=op.f("ck_usage_events_anomaly_known")
        ),
        sa.CheckConstraint(
            "input >= 0 AND cached_input >= 0 AND output >= 0 AND reasoning >= 0", name=op.f("ck_usage_events_quantities_not_negative")
        ),
        sa.CheckConstraint(
            "input_pico >= 0 AND cached_input_pico >= 0 AND output_pico >= 0 AND reasoning_pico >= 0 AND request_pico >= 0",
            name=op.f("ck_usage_events_amounts_not_negative"),
        ),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_usage_events")),
        postgresql_partition_by="RANGE (event_id)",
    )
    op.create_index(
        op.f("ix_usage_events_organization_id_period_at_event_id"), "usage_events", ["organization_id", "period_at", "event_id"]
    )
    op.create_index(
        op.f("ix_usage_events_event_id"),
        "usage_events",
        ["event_id"],
        postgresql_where=sa.text("anomaly IS NOT NULL"),
        sqlite_where=sa.text("anomaly IS NOT NULL"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("type", sa.String(length=16), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=True),
        sa.Column("project_id", sa.String(length=64), nullable=True),
        sa.Column("service_account_id", sa.String(length=64), nullable=True),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("pepper_version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("redacted", sa.String(length=64), nullable=False),
        sa.Column("models", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("requests_per_minute", sa.Integer(), nullable=True),
        sa.Column("concurrent_requests", sa.Integer(), nullable=True),
        sa.CheckConstraint("(type IN ('live', 'test')) = (project_id IS NOT NULL)", name=op.f("ck_api_keys_project_if_inference")),
        sa.CheckConstraint(
            "(type IN ('platform', 'node')) = (organization_id IS NULL)", name=op.f("ck_api_keys_organization_unless_platform")
        ),
        sa.CheckConstraint("type IN ('live', 'test', 'admin', 'platform', 'node')", name=op.f("ck_api_keys_type_known")),
        sa.CheckConstraint("concurrent_requests > 0", name=op.f("ck_api_keys_concurrent_requests_positive")),
        sa.CheckConstraint("requests_per_minute > 0", name=op.f("ck_api_keys_requests_per_minute_positive")),
        sa.CheckConstraint("service_account_id IS NULL OR project_id IS NOT NULL", name=op.f("ck_api_keys_service_account_in_project")),
        sa.ForeignKeyConstraint(
            ["organization_id", "project_id", "service_account_id"],
            ["service_accounts.organization_id", "service_accounts.project_id", "service_accounts.id"],
            name=op.f("fk_api_keys_organization_id_service_accounts"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "project_id"],
            ["projects.organization_id", "projects.id"],
            name=op.f("fk_api_keys_organization_id_projects"),
        ),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_api_keys_organization_id_organizations")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("digest", name=op.f("uq_api_keys_digest")),
        sa.UniqueConstraint("organization_id", "id", name=op.f("uq_api_keys_organization_id_id")),
    )
    op.create_index(op.f("ix_api_keys_organization_id_project_id_id"), "api_keys", ["organization_id", "project_id", "id"])

    create_reconciliation()
    op.execute("INSERT INTO publish_head (id, version) VALUES (1, 0)")
    for table in APPEND_ONLY:
        guard(table)
    add_default_partition()
    guard_closed_drafts()
    guard_periods()


def create_reconciliation() -> None:
    """Create the tables of engine counters by hour, and of the usage of requests beside them."""
    op.create_table(
        "engine_readings",
        sa.Column("address", sa.String(length=2048), nullable=False),
        sa.Column("read_at", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("address", name=op.f("pk_engine_readings")),
    )
    op.create_table(
        "engine_hours",
        sa.Column("start_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("address", sa.String(length=2048), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("counts_cached", sa.Boolean(), nullable=False),
        sa.Column("covered_us", sa.BigInteger(), nullable=False),
        sa.Column("is_estimated", sa.Boolean(), nullable=False),
        sa.Column("resets", sa.Integer(), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("warned_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "prompt_tokens >= 0 AND output_tokens >= 0 AND covered_us >= 0", name=op.f("ck_engine_hours_counts_not_negative")
        ),
        sa.PrimaryKeyConstraint("start_at", "address", name=op.f("pk_engine_hours")),
    )
    op.create_table(
        "engine_members",
        sa.Column("start_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("address", sa.String(length=2048), nullable=False),
        sa.Column("deployment_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.PrimaryKeyConstraint("start_at", "address", "deployment_id", name=op.f("pk_engine_members")),
    )
    op.create_table(
        "engine_usage",
        sa.Column("start_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("deployment_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("incomplete", sa.BigInteger(), nullable=False),
        sa.Column("retried", sa.BigInteger(), nullable=False),
        sa.Column("anomalous", sa.BigInteger(), nullable=False),
        sa.Column("input", sa.BigInteger(), nullable=False),
        sa.Column("cached_input", sa.BigInteger(), nullable=False),
        sa.Column("output", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("start_at", "deployment_id", "model", name=op.f("pk_engine_usage")),
    )
    op.create_table(
        "reconciliation_lease",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("until_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_reconciliation_lease_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reconciliation_lease")),
    )


def guard(table: str) -> None:
    """Make `table` refuse changes to what it holds."""
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_refuses_{verb.lower()} BEFORE {verb} ON {table}"
                f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
        return
    op.execute(
        "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    op.execute(f"CREATE TRIGGER {table}_refuses_change BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse_change()")
    op.execute(f"CREATE TRIGGER {table}_refuses_truncate BEFORE TRUNCATE ON {table} EXECUTE FUNCTION refuse_change()")


def add_default_partition() -> None:
    """Give PostgreSQL the partition of events that are in no month's. Triggers of rows are inherited, those of TRUNCATE are not."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("CREATE TABLE usage_events_default PARTITION OF usage_events DEFAULT")
        op.execute(
            "CREATE TRIGGER usage_events_default_refuses_truncate BEFORE TRUNCATE ON usage_events_default EXECUTE FUNCTION refuse_change()"
        )


def guard_closed_drafts() -> None:
    """Make a draft that was published or discarded refuse changes, and every draft its deletion."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            "CREATE TRIGGER price_drafts_refuses_update BEFORE UPDATE ON price_drafts WHEN OLD.state <> 'open'"
            " BEGIN SELECT RAISE(ABORT, 'the draft is closed'); END"
        )
        op.execute(
            "CREATE TRIGGER price_drafts_refuses_delete BEFORE DELETE ON price_drafts BEGIN SELECT RAISE(ABORT, 'drafts are kept'); END"
        )
        return
    op.execute(
        "CREATE TRIGGER price_drafts_refuses_update BEFORE UPDATE ON price_drafts FOR EACH ROW WHEN (OLD.state <> 'open')"
        " EXECUTE FUNCTION refuse_change()"
    )
    op.execute("CREATE TRIGGER price_drafts_refuses_delete BEFORE DELETE OR TRUNCATE ON price_drafts EXECUTE FUNCTION refuse_change()")


def create_periods() -> None:
    """The tables of billing periods, corrections and lost epochs."""
    op.create_table(
        "billing_periods",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("start_at", sa.BigInteger(), nullable=False),
        sa.Column("end_at", sa.BigInteger(), nullable=False),
        sa.Column("time_zone", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("frozen_at", sa.BigInteger(), nullable=True),
        sa.Column("closed_by", sa.String(length=64), nullable=True),
        sa.Column("watermark_digest", sa.LargeBinary(length=32), nullable=True),
        sa.Column("report", sa.Text(), nullable=True),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.Column("events", sa.BigInteger(), nullable=True),
        sa.Column("merkle_root", sa.LargeBinary(length=32), nullable=True),
        sa.Column("adjustments", sa.BigInteger(), nullable=True),
        sa.Column("adjustments_digest", sa.LargeBinary(length=32), nullable=True),
        sa.Column("amounts", sa.Text(), nullable=True),
        sa.CheckConstraint("state IN ('open', 'closing', 'closed')", name=op.f("ck_billing_periods_state_known")),
        sa.CheckConstraint("start_at < end_at", name=op.f("ck_billing_periods_not_empty")),
        sa.CheckConstraint(
            "(state = 'open') = (frozen_at IS NULL) AND (frozen_at IS NULL) = (watermark_digest IS NULL)"
            " AND (frozen_at IS NULL) = (report IS NULL) AND (frozen_at IS NULL) = (closed_by IS NULL)",
            name=op.f("ck_billing_periods_frozen_with_report"),
        ),
        sa.CheckConstraint(
            "(state = 'closed') = (closed_at IS NOT NULL) AND (closed_at IS NULL) = (merkle_root IS NULL)"
            " AND (closed_at IS NULL) = (events IS NULL) AND (closed_at IS NULL) = (adjustments IS NULL)"
            " AND (closed_at IS NULL) = (adjustments_digest IS NULL) AND (closed_at IS NULL) = (amounts IS NULL)",
            name=op.f("ck_billing_periods_closed_with_digests"),
        ),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_billing_periods_organization_id_organizations")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_billing_periods")),
        sa.UniqueConstraint("organization_id", "start_at", name=op.f("uq_billing_periods_organization_id_start_at")),
    )
    op.create_table(
        "period_blocks",
        sa.Column("period_id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("events", sa.Integer(), nullable=False),
        sa.Column("first_event_id", name(64), nullable=False),
        sa.Column("last_event_id", name(64), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("amounts", sa.Text(), nullable=False),
        sa.CheckConstraint("events > 0 AND number >= 0", name=op.f("ck_period_blocks_counts_in_range")),
        sa.ForeignKeyConstraint(["period_id"], ["billing_periods.id"], name=op.f("fk_period_blocks_period_id_billing_periods")),
        sa.PrimaryKeyConstraint("period_id", "number", name=op.f("pk_period_blocks")),
    )
    op.create_table(
        "lost_declarations",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("next_seq", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(length=1024), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("declared_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", "epoch", name=op.f("pk_lost_declarations")),
    )
    op.create_table(
        "usage_adjustments",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("amount_pico", sa.BigInteger(), nullable=False),
        sa.Column("replacement_input", sa.BigInteger(), nullable=True),
        sa.Column("replacement_cached_input", sa.BigInteger(), nullable=True),
        sa.Column("replacement_output", sa.BigInteger(), nullable=True),
        sa.Column("replacement_reasoning", sa.BigInteger(), nullable=True),
        sa.Column("replacement_requests", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.String(length=1024), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("needs_approval", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind IN ('void', 'replace', 'credit')", name=op.f("ck_usage_adjustments_kind_known")),
        sa.CheckConstraint(
            "(kind = 'replace') = (replacement_input IS NOT NULL)"
            " AND (replacement_input IS NULL) = (replacement_cached_input IS NULL)"
            " AND (replacement_input IS NULL) = (replacement_output IS NULL)"
            " AND (replacement_input IS NULL) = (replacement_reasoning IS NULL)"
            " AND (replacement_input IS NULL) = (replacement_requests IS NULL)",
            name=op.f("ck_usage_adjustments_replaced_by_all_classes"),
        ),
        sa.CheckConstraint("kind = 'replace' OR amount_pico < 0", name=op.f("ck_usage_adjustments_gives_back")),
        sa.CheckConstraint("replacement_requests IN (0, 1)", name=op.f("ck_usage_adjustments_one_request")),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_usage_adjustments_organization_id_organizations")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_adjustments")),
        sa.UniqueConstraint("id", "actor", name=op.f("uq_usage_adjustments_id_actor")),
    )
    op.create_index(op.f("ix_usage_adjustments_event_id"), "usage_adjustments", ["event_id"])
    op.create_index(op.f("ix_usage_adjustments_organization_id_id"), "usage_adjustments", ["organization_id", "id"])
    op.create_table(
        "adjustment_approvals",
        sa.Column("adjustment_id", sa.String(length=64), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("approver", sa.String(length=64), nullable=False),
        sa.Column("decision", sa.String(length=16), nullable=False),
        sa.Column("decided_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("decision IN ('approved', 'rejected')", name=op.f("ck_adjustment_approvals_decision_known")),
        sa.CheckConstraint("approver <> actor OR decision = 'rejected'", name=op.f("ck_adjustment_approvals_four_eyes")),
        sa.ForeignKeyConstraint(
            ["adjustment_id", "actor"],
            ["usage_adjustments.id", "usage_adjustments.actor"],
            name=op.f("fk_adjustment_approvals_adjustment_id_usage_adjustments"),
        ),
        sa.PrimaryKeyConstraint("adjustment_id", name=op.f("pk_adjustment_approvals")),
    )


PERIOD_KEPT = ("id", "organization_id", "start_at", "end_at", "time_zone", "created_at")
PERIOD_FROZEN = ("frozen_at", "closed_by", "watermark_digest", "report")
"""Columns of billing_periods that never change, and those that do not once closing has begun."""

RULES = {
    # What may not be, as a condition on the row NEW: (table, what is said, condition).
    "period_overlaps": (
        "billing_periods",
        "billing periods of one organization never overlap",
        "EXISTS (SELECT 1 FROM billing_periods AS other WHERE other.organization_id = NEW.organization_id AND other.id <> NEW.id"
        " AND other.start_at < NEW.end_at AND NEW.start_at < other.end_at)",
    ),
    "period_begins_open": ("billing_periods", "a billing period begins open", "NEW.state <> 'open'"),
    "transaction_in_open_period": (
        "ledger_transactions",
        "nothing is booked in a billing period that is not open",
        "EXISTS (SELECT 1 FROM billing_periods AS period WHERE period.organization_id = NEW.organization_id"
        " AND period.start_at = NEW.period_at AND period.state <> 'open')",
    ),
    "adjustment_is_alone": (
        "usage_adjustments",
        "an event is voided or replaced once",
        "NEW.kind <> 'credit' AND EXISTS (SELECT 1 FROM usage_adjustments AS other WHERE other.event_id = NEW.event_id"
        " AND other.kind <> 'credit' AND NOT EXISTS (SELECT 1 FROM adjustment_approvals AS decided"
        " WHERE decided.adjustment_id = other.id AND decided.decision = 'rejected'))",
    ),
}
"""Conditions on inserted rows. The inserting transaction holds the organization's lock, so that no other can make them untrue."""


def guard_periods() -> None:
    """Periods move forward only, nothing is booked into one that is not open, no event is voided twice."""
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    differs = "{} IS NOT {}" if is_sqlite else "{} IS DISTINCT FROM {}"
    kept = " OR ".join(differs.format(f"NEW.{name}", f"OLD.{name}") for name in PERIOD_KEPT)
    frozen = " OR ".join(differs.format(f"NEW.{name}", f"OLD.{name}") for name in PERIOD_FROZEN)
    backwards = f"OLD.state = 'closed' OR {kept} OR (OLD.state = 'closing' AND (NEW.state = 'open' OR {frozen}))"
    for name, (table, said, condition) in RULES.items():
        refuse_when(name, "INSERT", table, said, condition)
    refuse_when("period_moves_forward", "UPDATE", "billing_periods", "a billing period only moves forward", backwards)
    refuse_when("period_stays", "DELETE", "billing_periods", "a billing period is never deleted", "1 = 1")
    said = "nothing is booked in a billing period that is not open"
    if is_sqlite:
        condition = RULES["transaction_in_open_period"][2]
        refuse_when("event_in_open_period", "INSERT", "usage_events", said, condition)
        return
    op.execute("CREATE TRIGGER billing_periods_refuses_truncate BEFORE TRUNCATE ON billing_periods EXECUTE FUNCTION refuse_change()")
    # Once for each statement, because a batch has thousands of events and hardly ever more than one period.
    op.execute(
        "CREATE FUNCTION event_in_open_period() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF EXISTS (SELECT 1 FROM (SELECT DISTINCT organization_id, period_at FROM added) AS booked"
        " JOIN billing_periods AS period ON period.organization_id = booked.organization_id AND period.start_at = booked.period_at"
        f" WHERE period.state <> 'open') THEN RAISE EXCEPTION '{said}'; END IF; RETURN NULL; END $$"
    )
    op.execute(
        "CREATE TRIGGER event_in_open_period AFTER INSERT ON usage_events REFERENCING NEW TABLE AS added"
        " FOR EACH STATEMENT EXECUTE FUNCTION event_in_open_period()"
    )


def refuse_when(name: str, verb: str, table: str, said: str, condition: str) -> None:
    """Make `table` refuse to `verb` a row for which `condition` holds."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"CREATE TRIGGER {name} BEFORE {verb} ON {table} WHEN {condition} BEGIN SELECT RAISE(ABORT, '{said}'); END")
        return
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF {condition} THEN RAISE EXCEPTION '{said}'; END IF; RETURN {'OLD' if verb == 'DELETE' else 'NEW'}; END $$"
    )
    op.execute(f"CREATE TRIGGER {name} BEFORE {verb} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()")
