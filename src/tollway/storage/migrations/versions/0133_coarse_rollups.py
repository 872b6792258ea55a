"""Keep rollups by project and by organization, filled with the sums of those by key."""

import sqlalchemy as sa
from alembic import op

revision = "0133"
down_revision = "0120"
branch_labels = None
depends_on = None

breaks_earlier = True
"""The version before would add usage to the rollups by key alone."""

KEY = ("organization_id", "width_seconds", "start_at", "project_id", "model", "endpoint")
TABLES = {"project_rollups": KEY, "organization_rollups": tuple(name for name in KEY if name != "project_id")}
LENGTHS = {"organization_id": 64, "project_id": 64, "model": 128, "endpoint": 64}

FIRST = ("input", "cached_input", "output", "reasoning")
"""Classes that have always been: their columns have no default."""

LATER = ("cache_write", "audio_input", "image_input", "audio_output", "image_output", "seconds", "characters", "images")
QUANTITIES = (*FIRST, *LATER)
COSTS = (*QUANTITIES, "request")
PICO = 10**12


def upgrade() -> None:
    """Create the tables and fill them. Whoever adds usage meanwhile waits: what is filled in is of one instant."""
    for table, key in TABLES.items():
        op.create_table(
            table,
            *(key_column(name) for name in key),
            *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("total_units", "total_pico", "requests")),
            *(sum_column(name, name) for name in QUANTITIES),
            *(sum_column(f"{name}_cost_{part}", name) for name in COSTS for part in ("units", "pico")),
            sa.PrimaryKeyConstraint(*key, name=op.f(f"pk_{table}")),
            postgresql_with={"fillfactor": 45},
            sqlite_with_rowid=False,
        )
    if op.get_bind().dialect.name == "postgresql":
        op.execute("LOCK TABLE usage_rollups IN SHARE ROW EXCLUSIVE MODE")
    fill("project_rollups", "usage_rollups")
    fill("organization_rollups", "project_rollups")


def key_column(name: str) -> sa.Column[object]:
    """Return a column of the key."""
    if name in LENGTHS:
        length = LENGTHS[name]
        return sa.Column(name, sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql"), nullable=False)
    return sa.Column(name, sa.Integer() if name == "width_seconds" else sa.BigInteger(), autoincrement=False, nullable=False)


def sum_column(name: str, billing_class: str) -> sa.Column[object]:
    """Return a column of sums of a class."""
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default="0" if billing_class in LATER else None)


def fill(table: str, source: str) -> None:
    """Fill a table with the sums of hours and days of another one; pico beyond a whole unit are carried over."""
    key = ", ".join(TABLES[table])
    counts = ("requests", *QUANTITIES)
    parts = [f"{name}_cost_{part}" for name in COSTS for part in ("units", "pico")]
    summed = ", ".join(f"CAST(sum({name}) AS BIGINT) AS {name}" for name in (*counts, *parts))
    carried = {f"{name}_cost_units": f"{name}_cost_units + {name}_cost_pico / {PICO}" for name in COSTS}
    carried |= {f"{name}_cost_pico": f"{name}_cost_pico % {PICO}" for name in COSTS}
    pico = " + ".join(carried[f"{name}_cost_pico"] for name in COSTS)
    carried["total_units"] = " + ".join(carried[f"{name}_cost_units"] for name in COSTS) + f" + ({pico}) / {PICO}"
    carried["total_pico"] = f"({pico}) % {PICO}"
    columns = ("total_units", "total_pico", *counts, *parts)
    op.execute(
        f"INSERT INTO {table} ({key}, {', '.join(columns)})"
        f" SELECT {key}, {', '.join(carried.get(name, name) for name in columns)}"
        f" FROM (SELECT {key}, {summed} FROM {source} WHERE width_seconds IN (3600, 86400) GROUP BY {key}) AS sums"
    )
