"""`tollway gateway`: one process of the data plane."""

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from tollway.cli.processes import (
    Config,
    DataDir,
    Descriptor,
    DrainSeconds,
    Internal,
    Listen,
    find_limits_store,
    find_telemetry,
    inherit_or_open,
    read_settings,
)
from tollway.gateway.batches.worker import BatchBounds
from tollway.gateway.buffers import BufferBounds
from tollway.gateway.edge.cors import parse_origins
from tollway.gateway.edge.edge import EdgeBounds
from tollway.gateway.edge.edge_policy import EdgePolicy, parse_hosts, parse_networks
from tollway.gateway.edge.server import DrainBounds
from tollway.gateway.guardrails import GuardrailBounds
from tollway.gateway.media.bounds import MediaBounds
from tollway.gateway.open_inference.bounds import GrpcBounds
from tollway.gateway.realtime_sessions import RealtimeBounds
from tollway.gateway.relay import RelayBounds
from tollway.gateway.response_cache import CacheBounds
from tollway.gateway.shedding import SheddingBounds
from tollway.gateway.waiting import QueueBounds
from tollway.link.epochs import SpoolDamaged
from tollway.link.spool import SpoolOptions
from tollway.serve import data_directory
from tollway.serve.gateway import GatewayOptions, run_gateway
from tollway.serve.limit_counters import LimitsOptions
from tollway.serve.sockets import parse_address
from tollway.serve.tls import find_expiry, server_context
from tollway.settings import GatewaySection, LimitsSection, OperatorError
from tollway.storage.answer_files import AnswerBounds
from tollway.storage.tenant_files import FileBounds
from tollway.wire.http import HttpBounds

BOUNDS: Final[Mapping[str, type]] = {
    "spool": SpoolOptions,
    "edge": EdgeBounds,
    "http": HttpBounds,
    "relay": RelayBounds,
    "media": MediaBounds,
    "buffers": BufferBounds,
    "queue": QueueBounds,
    "shedding": SheddingBounds,
    "idempotency": AnswerBounds,
    "files": FileBounds,
    "batches": BatchBounds,
    "response_cache": CacheBounds,
    "guardrail": GuardrailBounds,
    "realtime": RealtimeBounds,
    "grpc": GrpcBounds,
}
"""Sections of the gateway's settings, and the bounds that each becomes."""


def gateway(
    config: Config = None,
    data_dir: DataDir = None,
    listen: Listen = None,
    fd: Descriptor = None,
    internal: Internal = None,
    internal_fd: Annotated[int | None, typer.Option(help="An inherited listening socket instead of --internal.")] = None,
    control_link_url: Annotated[
        str | None, typer.Option(metavar="URL", help="The control plane's link [TOLLWAY_CONTROL_LINK_URL].")
    ] = None,
    linger_seconds: Annotated[float | None, typer.Option(help="Take new requests for so long after SIGTERM.", show_default="0")] = None,
    drain_seconds: DrainSeconds = None,
) -> None:
    """Run one gateway process until SIGTERM. Without a control plane it serves from its copy of the snapshot.

    Secrets come from the data directory or from TOLLWAY_PEPPER and TOLLWAY_VAULT_KEY; who it is, from TOLLWAY_NODE_ID and
    TOLLWAY_NODE_KEY, or at its first start from TOLLWAY_JOIN_TOKEN.
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
    make_tls = partial(server_context, settings.gateway.tls.certificate_file, settings.gateway.tls.key_file)
    options = GatewayOptions(
        directory=directory / "gateway",
        control_link_url=settings.gateway.control_link_url,
        snapshot_age_seconds_max=settings.gateway.snapshot_age_seconds_max,
        listener=inherit_or_open(fd, settings.gateway.listen, option="--listen"),
        internal=inherit_or_open(internal_fd, settings.gateway.internal, option="--internal"),
        peppers=[secrets.peppers[version] for version in sorted(secrets.peppers, reverse=True)],
        vault_key=secrets.vault_key,
        node=data_directory.make_gateway_node(directory, os.environ),
        rules=_edge_policy(settings.gateway),
        tls=make_tls(),
        tls_expires_at=find_expiry(settings.gateway.tls.certificate_file),
        grpc_tls=_read_tls_files(settings.gateway),
        remake_tls=make_tls if settings.gateway.tls.client_certificates else None,
        limits=_limits(settings.gateway.limits, os.environ.get("TOLLWAY_LIMITS_REDIS_PASSWORD")),
        telemetry=find_telemetry(settings.telemetry),
        log_level=settings.log.level,
        guardrail_token=os.environ.get("TOLLWAY_GUARDRAIL_TOKEN"),
        **{name: _as_bounds(settings.gateway, name) for name in BOUNDS},
        drain=DrainBounds(linger_seconds=settings.gateway.linger_seconds, grace_seconds=settings.gateway.drain_seconds),
    )
    try:
        code = run_gateway(options)
    except OSError as error:
        raise data_directory.explain(error, options.directory / "spool") from None
    except (SpoolDamaged, ValueError) as error:
        raise OperatorError(f"the spool in {options.directory} cannot be used: {error}", hint="`tollway spool inspect` shows it") from None
    raise typer.Exit(code)


def _read_tls_files(section: GatewaySection) -> tuple[bytes, bytes] | None:
    """Return private key and certificate chain as PEM for the gRPC port, once they were found right; None where it has no TLS."""
    key, chain = section.tls.key_file, section.tls.certificate_file
    if section.grpc.listen is None or key is None or chain is None:
        return None
    return Path(key).read_bytes(), Path(chain).read_bytes()


def find_gateway_problems(section: GatewaySection) -> Iterator[OperatorError]:
    """Yield what would keep a gateway with these settings from starting: each section that cannot be used, and addresses."""
    checks: list[Callable[[], object]] = [partial(_as_bounds, section, name) for name in BOUNDS]
    checks += [
        partial(_edge_policy, section),
        partial(_limits, section.limits, None),
        partial(server_context, section.tls.certificate_file, section.tls.key_file),
        partial(parse_address, section.listen, option="gateway.listen"),
        partial(parse_address, section.internal, option="gateway.internal"),
    ]
    if section.grpc.listen is not None:
        checks.append(partial(parse_address, section.grpc.listen, option="gateway.grpc.listen"))
    for check in checks:
        try:
            check()
        except OperatorError as error:
            yield error


def _as_bounds(section: GatewaySection, name: str) -> Any:
    """Return a section of the settings as the bounds that it stands for (BOUNDS): both have the same fields, because the packages that use
    the bounds may not know the settings."""
    try:
        return msgspec.convert(getattr(section, name), BOUNDS[name], from_attributes=True)
    except msgspec.ValidationError as error:
        raise OperatorError(f"gateway.{name} is not valid: {error}", exit_code=2) from None


def _limits(section: LimitsSection, password: str | None) -> LimitsOptions:
    """Return where limits are counted. Raises OperatorError for a URL that cannot be used."""
    return LimitsOptions(store=find_limits_store(section, password), per_gateway=section.per_gateway)


def _edge_policy(settings: GatewaySection) -> EdgePolicy | None:
    """Return who may come in; None where nothing is asked, which costs nothing."""
    proxies, cors = settings.proxies, settings.cors
    try:
        rules = EdgePolicy(
            trusted=parse_networks(proxies.trusted),
            proxy_protocol=proxies.proxy_protocol,
            forwarded_for=proxies.forwarded_for,
            peers_logged=proxies.log_peers,
            origins=parse_origins(cors.origins),
            hosts=parse_hosts(settings.allowed_hosts),
            preflight_seconds=cors.preflight_seconds,
            client_certificates=settings.tls.client_certificates,
            certificate_header=proxies.client_certificate_header.encode(),
        )
    except ValueError as error:
        raise OperatorError(str(error), hint="see gateway.proxies, gateway.cors and gateway.allowed_hosts", exit_code=2) from None
    if (rules.proxy_protocol or rules.forwarded_for or rules.certificate_header) and not rules.trusted:
        raise OperatorError("gateway.proxies.trusted is empty", hint="without it nobody's word on clients is taken", exit_code=2)
    if rules.client_certificates and settings.tls.certificate_file is None:
        raise OperatorError("gateway.tls.client_certificates needs certificate_file and key_file", exit_code=2)
    is_asked = rules.client_certificates or rules.trusted or rules.peers_logged or rules.origins or rules.hosts
    return rules if is_asked else None
