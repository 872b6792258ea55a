"""Revisions of the schema, by Alembic: which there are, which the database has, and which it is brought to."""

from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory

from tollway.storage.schema_jobs import compatible_revisions


def make_config() -> Config:
    """Return the configuration of Alembic. `attributes["connection"]` of it is the connection over which its commands work."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def iterate_scripts() -> Iterator[Script]:
    """Yield the migrations of this version, the newest first."""
    return ScriptDirectory.from_config(make_config()).walk_revisions()


def list_known() -> set[str]:
    """Return the revisions that this version knows."""
    return {script.revision for script in iterate_scripts()}


def list_unknown(connection: sa.Connection) -> list[str]:
    """Return the revisions of the database that this version does not know, in order: those of a newer one."""
    return sorted(set(MigrationContext.configure(connection).get_current_heads()) - list_known())


def read_compatible(connection: sa.Connection) -> set[str]:
    """Return the revisions whose code may run over the schema, as whoever migrated it has stored them."""
    if not sa.inspect(connection).has_table(compatible_revisions.name):
        return set()
    return set(connection.scalars(sa.select(compatible_revisions.c.revision)))


def upgrade(connection: sa.Connection) -> None:
    """Bring the schema up to date, and store the revisions whose code may run over it: back to the one from which on a migration breaks
    earlier code."""
    config = make_config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    found = set()
    for script in iterate_scripts():
        found.add(script.revision)
        if getattr(script.module, "breaks_earlier", False):
            break
    if found != read_compatible(connection):
        connection.execute(sa.delete(compatible_revisions))
        connection.execute(sa.insert(compatible_revisions), [{"revision": revision} for revision in sorted(found)])
