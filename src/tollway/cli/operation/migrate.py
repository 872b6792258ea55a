"""`tollway migrate`: the database's schema, brought up to date before new processes start."""

from pathlib import Path

from tollway.cli.databases import DatabaseUrl, chosen, find_owner_url
from tollway.cli.processes import Config, DataDir, read_settings
from tollway.serve import data_directory
from tollway.serve.control import migrate_database


def migrate(config: Config = None, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Make the data directory with its secrets if there is none, and bring the database to this version's schema.

    `tollway serve` and `tollway control` do it by themselves on SQLite, and on PostgreSQL where TOLLWAY_OWNER_DATABASE_URL is set; with
    many control processes, do it once before.
    """
    settings = read_settings(config, data_dir=data_dir, control__database_url=database_url)
    directory = Path(settings.data_dir).absolute()
    data_directory.prepare(directory)
    data_directory.make_secrets(directory)
    with chosen(settings, directory) as url:
        migrate_database(url, find_owner_url(settings))
    print("the database is up to date")
