"""`tollway demo`: everything on this machine, ready for the first request."""

from enum import StrEnum
from typing import Annotated

import typer

from tollway.cli.processes import Config, DataDir, read_settings
from tollway.serve import demo as serve_demo

DRAIN_SECONDS = 2.0
"""Whoever stops a demo does not want to wait for its streams."""


class DemoEngine(StrEnum):
    """Engine that serves the demo's models."""

    LLAMA = "llama"
    SIM = "sim"


def demo(
    config: Config = None,
    data_dir: DataDir = None,
    host: Annotated[str, typer.Option(help="Where gateway and control plane listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Of the gateway; 0 takes a free one.")] = 8080,
    control_port: Annotated[int, typer.Option(help="Of the control plane; 0 takes a free one.")] = 8081,
    engine: Annotated[DemoEngine, typer.Option(help="A real model with llama.cpp, or the simulator alone.")] = DemoEngine.LLAMA,
) -> None:
    """Run everything on this machine, with an engine, a model, a tenant and a key, and say how to use it.

    A second start keeps tenant, keys and usage. Ctrl-C stops all processes.
    """
    settings = read_settings(
        config,
        data_dir=data_dir,
        gateway__listen=f"{host}:{port}",
        gateway__internal="127.0.0.1:0",
        gateway__drain_seconds=DRAIN_SECONDS,
        control__listen=f"{host}:{control_port}",
        control__link="127.0.0.1:0",
    )
    raise typer.Exit(serve_demo.run(settings, engine=engine))
