"""${message}"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}

breaks_earlier = False
"""Whether the version before it cannot run over the schema from here on: something that it reads or writes is gone, or something that it
does not know must be written. Such a migration comes a version after the code that no longer needs what it takes away."""


def upgrade() -> None:
    """Apply."""
    ${upgrades if upgrades else "pass"}
