"""Take deployments of the Open Inference Protocol, and the port at which they serve gRPC."""

import sqlalchemy as sa
from alembic import op

revision = "0081"
down_revision = "0069"
branch_labels = None
depends_on = None

ENGINE_KNOWN = "ck_deployments_engine_known"


def upgrade() -> None:
    """Let the column of the engine take one more value, and add the port."""
    with op.batch_alter_table("deployments") as batch:
        batch.add_column(sa.Column("grpc_port", sa.Integer))
        batch.drop_constraint(op.f(ENGINE_KNOWN), type_="check")
        batch.create_check_constraint(
            op.f(ENGINE_KNOWN),
            "engine IN ('vllm', 'sglang', 'dynamo', 'kserve', 'trtllm', 'triton', 'llamacpp', 'openai', 'anthropic', 'sim')",
        )
