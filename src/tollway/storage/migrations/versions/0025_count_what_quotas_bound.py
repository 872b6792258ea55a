"""Count quickly what quotas bound, and drop the limits on single models of what can no longer act."""

from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

INDEXES = (
    ("projects", ("organization_id", "archived_at", "created_at")),
    ("service_accounts", ("organization_id", "deleted_at", "created_at")),
    ("api_keys", ("organization_id", "revoked_at", "created_at")),
    ("budgets", ("organization_id", "archived_at", "created_at")),
    ("budget_raises", ("organization_id", "ends_at", "created_at")),
)

ENDED = (
    "SELECT id FROM api_keys WHERE revoked_at IS NOT NULL",
    "SELECT id FROM projects WHERE archived_at IS NOT NULL",
    "SELECT id FROM service_accounts WHERE deleted_at IS NOT NULL",
    "SELECT id FROM service_accounts WHERE project_id IN (SELECT id FROM projects WHERE archived_at IS NOT NULL)",
    "SELECT id FROM organizations WHERE archived_at IS NOT NULL",
)


def upgrade() -> None:
    """Add an index for each table that is counted. Ids say what they are ids of, so no level is needed to find the limits."""
    for table, columns in INDEXES:
        op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, list(columns))
    for ended in ENDED:
        op.execute(f"DELETE FROM model_limits WHERE subject_id IN ({ended})")
