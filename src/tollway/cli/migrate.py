"""`tollway migrate`: the database's schema, brought up to date before new processes start."""

from contextlib import ExitStack
from pathlib import Path

from tollway.cli.control import DatabaseUrl
from tollway.cli.processes import Config, DataDir, read_settings
from tollway.domain.faults import Fault
from tollway.serve import data_directory
from tollway.serve.control import open_database
from tollway.settings import OperatorError
from tollway.storage.database import DatabaseTooNew


def migrate(config: Config = None, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Make the data directory with its secrets if there is none, and bring the database to this version's schema.

    `tollway serve` and `tollway control` do it by themselves; with many control processes, do it once before.
    """
    settings = read_settings(config, data_dir=data_dir, control__database_url=database_url)
    directory = Path(settings.data_dir).absolute()
    data_directory.prepare(directory)
    data_directory.make_secrets(directory)
    with ExitStack() as held:
        if settings.control.database_url is None:
            held.enter_context(data_directory.locked(directory / "control", "control"))
        try:
            open_database(settings.control.database_url or data_directory.sqlite_url(directory)).close()
        except (DatabaseTooNew, ValueError) as error:
            raise OperatorError(str(error)) from None
        except Fault as fault:
            raise OperatorError(f"{fault.message} ({fault.detail})", hint="see TOLLWAY_DATABASE_URL") from None
    print("the database is up to date")
