"""Add limits on images and seconds of sound to every level, and limits of end users on single models."""

import sqlalchemy as sa
from alembic import op

revision = "0072"
down_revision = "0102"
branch_labels = None
depends_on = None

NEW = {
    "images_per_minute": sa.Integer(),
    "audio_seconds_per_minute": sa.BigInteger(),
    "images_per_day": sa.BigInteger(),
    "audio_seconds_per_day": sa.BigInteger(),
}
LEVELS = ("plan_limits", "organizations", "limit_overrides", "projects", "service_accounts", "api_keys", "model_limits")
LEVEL_KNOWN = "ck_model_limits_level_known"
KNOWN = "level IN ('end_user', 'api_key', 'service_account', 'project', 'organization')"


def upgrade() -> None:
    """Add the columns, null as for no limit, and let model_limits have those of end users."""
    for table in LEVELS:
        for prefix in ("", "end_user_") if table == "projects" else ("",):
            for name, type in NEW.items():
                check = sa.CheckConstraint(f"{prefix}{name} > 0", name=op.f(f"ck_{table}_{prefix}{name}_positive"))
                op.add_column(table, sa.Column(prefix + name, type, check, nullable=True))
    with op.batch_alter_table("model_limits") as batch:
        batch.drop_constraint(op.f(LEVEL_KNOWN), type_="check")
        batch.create_check_constraint(op.f(LEVEL_KNOWN), KNOWN)
