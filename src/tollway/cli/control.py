"""`tollway control`: one process of the control plane."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from tollway.cli.processes import Config, DataDir, Link, inherit_or_open, read_settings
from tollway.domain.faults import Fault
from tollway.serve import data_directory
from tollway.serve.control import ControlSettings, run_control
from tollway.settings import OperatorError
from tollway.storage.database import DatabaseTooNew

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        metavar="URL",
        help="postgresql+psycopg://... [TOLLWAY_DATABASE_URL]; put a password into the variable, not here.",
        show_default="SQLite in the data directory",
    ),
]


def control(
    config: Config = None,
    data_dir: DataDir = None,
    listen: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="The REST API.", show_default="127.0.0.1:8081")] = None,
    fd: Annotated[int | None, typer.Option(help="An inherited listening socket instead of --listen.")] = None,
    link: Link = None,
    link_fd: Annotated[int | None, typer.Option(help="Likewise, instead of --link.")] = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Run one control process until SIGTERM. It migrates its database first.

    Secrets come from the data directory or from TOLLWAY_PEPPER, TOLLWAY_VAULT_KEY, TOLLWAY_NODE_KEY and
    TOLLWAY_PLATFORM_KEY.
    """
    settings = read_settings(
        config,
        data_dir=data_dir,
        control__listen=listen,
        control__link=link,
        control__database_url=database_url,
    )
    directory = Path(settings.data_dir).absolute()
    data_directory.prepare(directory)
    secrets = data_directory.read_secrets(directory, os.environ)
    with ExitStack() as held:
        if settings.control.database_url is None:
            held.enter_context(data_directory.locked(directory / "control", "control"))
        options = ControlSettings(
            database_url=settings.control.database_url or data_directory.sqlite_url(directory),
            archive_directory=directory / "control" / "archive",
            public=held.enter_context(inherit_or_open(fd, settings.control.listen, option="--listen")),
            link=held.enter_context(inherit_or_open(link_fd, settings.control.link, option="--link")),
            peppers=secrets.peppers,
            pepper_version=secrets.pepper_version,
            vault_key=secrets.vault_key,
            platform_key=secrets.platform_key,
            node_key=secrets.node_key,
        )
        try:
            code = run_control(options)
        except (DatabaseTooNew, ValueError) as error:
            raise OperatorError(str(error)) from None
        except Fault as fault:
            raise OperatorError(f"{fault.message} ({fault.detail})", hint="see TOLLWAY_DATABASE_URL") from None
    raise typer.Exit(code)
