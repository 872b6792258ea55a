"""`tollway serve`: the embedded default."""

from typing import Annotated

import typer

from tollway.cli.processes import Config, ConsoleListen, DataDir, DrainSeconds, Internal, Link, Listen, read_settings
from tollway.serve import embedded


def serve(
    config: Config = None,
    data_dir: DataDir = None,
    listen: Listen = None,
    internal: Internal = None,
    control_listen: Annotated[
        str | None,
        typer.Option("--control-listen", metavar="HOST:PORT", help="The REST API.", show_default="127.0.0.1:8081"),
    ] = None,
    link: Link = None,
    console_listen: ConsoleListen = None,
    drain_seconds: DrainSeconds = None,
) -> None:
    """Run a gateway and a control plane on this machine, and keep them running.

    SIGTERM drains and stops; SIGHUP replaces the gateway without losing a connection.
    """
    settings = read_settings(
        config,
        data_dir=data_dir,
        gateway__listen=listen,
        gateway__internal=internal,
        gateway__drain_seconds=drain_seconds,
        control__listen=control_listen,
        control__link=link,
        control__console_listen=console_listen,
    )
    raise typer.Exit(embedded.run(settings))
