"""Take deployments of two more engines: Triton's OpenAI frontend, and servers of Anthropic's API."""

from alembic import op

revision = "0095"
down_revision = "0091"
branch_labels = None
depends_on = None

ENGINE_KNOWN = "ck_deployments_engine_known"


def upgrade() -> None:
    """Let the column take the two values."""
    with op.batch_alter_table("deployments") as batch:
        batch.drop_constraint(op.f(ENGINE_KNOWN), type_="check")
        batch.create_check_constraint(
            op.f(ENGINE_KNOWN), "engine IN ('vllm', 'sglang', 'dynamo', 'trtllm', 'triton', 'llamacpp', 'openai', 'anthropic', 'sim')"
        )
