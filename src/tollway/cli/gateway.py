"""`tollway gateway`: one process of the data plane."""

import os
from pathlib import Path
from typing import Annotated

import typer

from tollway.cli.processes import (
    Config,
    DataDir,
    Descriptor,
    DrainSeconds,
    Internal,
    Listen,
    inherit_or_open,
    read_settings,
)
from tollway.gateway.server import DrainBounds
from tollway.serve import data_directory
from tollway.serve.gateway import GatewayOptions, run_gateway
from tollway.settings import OperatorError


def gateway(
    config: Config = None,
    data_dir: DataDir = None,
    listen: Listen = None,
    fd: Descriptor = None,
    internal: Internal = None,
    internal_fd: Annotated[int | None, typer.Option(help="Likewise, instead of --internal.")] = None,
    control_link_url: Annotated[
        str | None, typer.Option(metavar="URL", help="The control plane's link [TOLLWAY_CONTROL_LINK_URL].")
    ] = None,
    linger_seconds: Annotated[float | None, typer.Option(help="Take new requests for so long after SIGTERM.", show_default="0")] = None,
    drain_seconds: DrainSeconds = None,
) -> None:
    """Run one gateway process until SIGTERM. Without a control plane it serves from its copy of the snapshot.

    Secrets come from the data directory or from TOLLWAY_PEPPER, TOLLWAY_VAULT_KEY and TOLLWAY_NODE_KEY.
    """
    settings = read_settings(
        config,
        data_dir=data_dir,
        gateway__listen=listen,
        gateway__internal=internal,
        gateway__control_link_url=control_link_url,
        gateway__linger_seconds=linger_seconds,
        gateway__drain_seconds=drain_seconds,
    )
    directory = Path(settings.data_dir).absolute()
    data_directory.prepare(directory)
    secrets = data_directory.read_secrets(directory, os.environ)
    options = GatewayOptions(
        directory=directory / "gateway",
        control_link_url=settings.gateway.control_link_url,
        listener=inherit_or_open(fd, settings.gateway.listen, option="--listen"),
        internal=inherit_or_open(internal_fd, settings.gateway.internal, option="--internal"),
        peppers=[secrets.peppers[version] for version in sorted(secrets.peppers, reverse=True)],
        vault_key=secrets.vault_key,
        node_key=secrets.node_key,
        drain=DrainBounds(linger_seconds=settings.gateway.linger_seconds, grace_seconds=settings.gateway.drain_seconds),
    )
    try:
        code = run_gateway(options)
    except OSError as error:
        raise OperatorError(
            f"the spool in {options.directory} cannot be written: {error.strerror or error}",
            hint="without it no request can be metered, so none is served",
        ) from None
    raise typer.Exit(code)
