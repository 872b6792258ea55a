"""Options that the commands which start processes share."""

import os
import socket
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
import typer

from tollway.serve.sockets import open_listener
from tollway.serve.telemetry_export import TelemetryOptions
from tollway.serve.telemetry_messages import OtlpOptions
from tollway.settings import LimitsSection, OperatorError, Settings, TelemetrySection, load
from tollway.spans import TraceBounds
from tollway.storage.shared_counters import StoreOptions, parse_url

Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings as YAML.")]
DataDir = Annotated[str | None, typer.Option("--data-dir", metavar="DIR", help="Where everything is kept.", show_default="./tollway-data")]
Listen = Annotated[
    str | None,
    typer.Option("--listen", metavar="HOST:PORT", help="The public address.", show_default="127.0.0.1:8080"),
]
Internal = Annotated[
    str | None,
    typer.Option("--internal", metavar="HOST:PORT", help="Health and metrics.", show_default="127.0.0.1:9090"),
]
Link = Annotated[str | None, typer.Option("--link", metavar="HOST:PORT", help="For gateways only.", show_default="127.0.0.1:8082")]
ConsoleListen = Annotated[
    str | None,
    typer.Option("--console-listen", metavar="HOST:PORT", help="The console and the sign-in, apart from the REST API."),
]
DrainSeconds = Annotated[
    float | None,
    typer.Option("--drain-seconds", help="For running requests to finish after SIGTERM.", show_default="110"),
]

Descriptor = Annotated[int | None, typer.Option("--fd", help="An inherited listening socket instead of --listen.")]


def inherit_or_open(descriptor: int | None, address: str, *, option: str) -> socket.socket:
    """The listening socket that a supervisor passed on, or else a new one."""
    if descriptor is None:
        return open_listener(address, option=option)
    try:
        return socket.socket(fileno=descriptor)
    except OSError as error:
        raise OperatorError(f"descriptor {descriptor} is not a socket: {error.strerror}", exit_code=2) from None


def read_settings(config: Path | None, **options: Any) -> Settings:
    """The settings of this process. `options` as given on the command line, by dotted name with `__` for the point."""
    return load({name.replace("__", "."): value for name, value in options.items()}, os.environ, config)


def find_telemetry(section: TelemetrySection) -> TelemetryOptions | None:
    """Return where telemetry is sent; None if nowhere. Raises OperatorError for an address that cannot be used."""
    if section.endpoint is None:
        return None
    url = urlsplit(section.endpoint)
    if url.scheme not in ("http", "https") or not url.hostname or url.username is not None or url.query or url.fragment:
        hint = "http://collector:4318, or http://collector:4317 with telemetry.protocol grpc; headers are in OTEL_EXPORTER_OTLP_HEADERS"
        raise OperatorError("telemetry.endpoint is not valid: it must be http(s)://host[:port][/path]", hint=hint, exit_code=2)
    if not section.traces and not section.metrics_seconds:
        hint = "set telemetry.traces or telemetry.metrics_seconds, or leave out the endpoint"
        raise OperatorError("telemetry.endpoint is set, and nothing is to be sent there", hint=hint, exit_code=2)
    return TelemetryOptions(
        msgspec.convert(section, OtlpOptions, from_attributes=True), msgspec.convert(section, TraceBounds, from_attributes=True)
    )


def find_limits_store(section: LimitsSection, password: str | None) -> StoreOptions | None:
    """Return the server in which gateways share the counters of limits; None if each counts in its own memory. Raises OperatorError for a
    URL that cannot be used."""
    if section.redis_url is None:
        return None
    try:
        parse_url(section.redis_url)
    except ValueError as error:
        hint = "redis://host:6379/0, with the password in TOLLWAY_LIMITS_REDIS_PASSWORD"
        raise OperatorError(f"gateway.limits.redis_url is not valid: {error}", hint=hint, exit_code=2) from None
    return StoreOptions(
        url=section.redis_url, password=password, decision_seconds=section.decision_seconds, lease_seconds=section.lease_seconds
    )
