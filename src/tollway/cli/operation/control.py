"""`tollway control`: one process of the control plane."""

import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tollway.cli.databases import DatabaseUrl, chosen, find_owner_url, parse_database_url
from tollway.cli.processes import Config, ConsoleListen, DataDir, Link, find_limits_store, find_telemetry, inherit_or_open, read_settings
from tollway.control.eventing.http_sink import HttpSink
from tollway.control.eventing.kafka_sink import KafkaMissing, KafkaSink
from tollway.control.eventing.nats_sink import NatsMissing, NatsSink
from tollway.control.eventing.sinks import Sink
from tollway.control.identity.mail import MailServer
from tollway.control.identity.operators import OperatorSignIn
from tollway.control.invoicing.stripe import StripeConnector
from tollway.control.invoicing.vies import Vies
from tollway.control.reconciliation.reconcile import ReconcileOptions
from tollway.domain.money import parse_sum
from tollway.domain.networks import Network, parse_network
from tollway.domain.quotas import Quota
from tollway.domain.reconciliation import Tolerance
from tollway.domain.sinks import Stream
from tollway.serve import data_directory
from tollway.serve.control import AuditOptions, ControlSettings, now, run_control
from tollway.serve.key_ring import make_key_ring
from tollway.serve.sockets import parse_address, url_of
from tollway.settings import (
    ControlSection,
    LeakedKeysSection,
    MailSection,
    OperatorError,
    OperatorSignInSection,
    ReconcileSection,
    SinksSection,
    StripeSection,
)
from tollway.storage.parquet_files import ParquetMissing, UsageFiles

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def control(
    config: Config = None,
    data_dir: DataDir = None,
    listen: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="The REST API.", show_default="127.0.0.1:8081")] = None,
    fd: Annotated[int | None, typer.Option(help="An inherited listening socket instead of --listen.")] = None,
    link: Link = None,
    link_fd: Annotated[int | None, typer.Option(help="An inherited listening socket instead of --link.")] = None,
    console_listen: ConsoleListen = None,
    console_fd: Annotated[int | None, typer.Option(help="An inherited listening socket instead of --console-listen.")] = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Run one control process until SIGTERM. It migrates its database first, if it may.

    Secrets come from the data directory or from TOLLWAY_PEPPER, TOLLWAY_VAULT_KEY, TOLLWAY_PLATFORM_KEY and
    TOLLWAY_SECOND_PLATFORM_KEY; TOLLWAY_AUDIT_KEY signs the audit trail.
    """
    settings = read_settings(
        config,
        data_dir=data_dir,
        control__listen=listen,
        control__link=link,
        control__console_listen=console_listen,
        control__database_url=database_url,
    )
    directory = Path(settings.data_dir).absolute()
    data_directory.prepare(directory)
    secrets = data_directory.read_secrets(directory, os.environ)
    with (
        chosen(settings, directory) as url,
        inherit_or_open(fd, settings.control.listen, option="--listen") as public,
        inherit_or_open(link_fd, settings.control.link, option="--link") as link_listener,
        _open_console(console_fd, settings.control) as console,
    ):
        options = ControlSettings(
            database_url=url,
            owner_database_url=find_owner_url(settings),
            archive_directory=directory / "control" / "archive",
            public=public,
            link=link_listener,
            console=console,
            console_url=find_console_url(settings.control) or (None if console is None else url_of(console)),
            peppers=secrets.peppers,
            pepper_version=secrets.pepper_version,
            vault_key=secrets.vault_key,
            platform_key=secrets.platform_key,
            second_platform_key=secrets.second_platform_key,
            audit=AuditOptions(secrets.audit_key, settings.control.audit.retention_days),
            key_ring=make_key_ring(settings.control.key_encryption, secrets.vault_key, os.environ, now),
            node=data_directory.find_node(directory, os.environ),
            reconcile=_reconcile_options(settings.control.reconcile),
            tolerance=Tolerance(settings.control.reconcile.drift_percent_max, settings.control.reconcile.drift_tokens_max),
            approval_above_pico=_approval_above(settings.control.corrections.approval_above),
            retention_months=settings.control.retention_months,
            close_after_days=settings.control.periods.close_after_days,
            requests_per_minute=settings.control.administration.requests_per_minute,
            quotas={quota: getattr(settings.control.quotas, quota) for quota in Quota},
            limits_store=find_limits_store(settings.gateway.limits, os.environ.get("TOLLWAY_LIMITS_REDIS_PASSWORD")),
            telemetry=find_telemetry(settings.telemetry),
            log_level=settings.log.level,
            public_url=_base_url("control.public_url", settings.control.public_url),
            gateway_url=_base_url("control.gateway_url", settings.control.gateway_url),
            private_issuers=frozenset(settings.control.private_issuers.split()),
            trusted_proxies=_networks("trusted_proxies", settings.control.trusted_proxies),
            usage_files=_usage_files(directory, settings.control),
            webhook_networks=_networks("webhook_networks", settings.control.webhook_networks),
            sinks=tuple(_sinks(settings.control.sinks, os.environ)),
            metrics_organizations_max=settings.control.metrics_organizations_max,
            sink_streams=_sink_streams(settings.control.sinks),
            github_keys_url=_github_keys_url(settings.control.leaked_keys),
            operator_sign_in=_operator_sign_in(settings.control.operator_sign_in, os.environ.get("TOLLWAY_OPERATOR_CLIENT_SECRET")),
            mail=_mail_server(settings.control.mail, os.environ.get("TOLLWAY_MAIL_PASSWORD", "")),
            stripe=_stripe(settings.control.stripe, os.environ),
            vat_register=_vies(settings.control.vies_url),
        )
        raise typer.Exit(run_control(options))


@contextmanager
def _open_console(descriptor: int | None, section: ControlSection) -> Iterator[socket.socket | None]:
    """The listening socket of the console; None where the REST API has its pages."""
    if section.console_listen is None:
        yield None
        return
    with inherit_or_open(descriptor, section.console_listen, option="--console-listen") as listener:
        yield listener


def find_console_url(section: ControlSection) -> str | None:
    """Return the address of the console; None if it is that of the REST API, or that of its own listener on loopback. Raises OperatorError
    for one that is not valid, or is missing: people at a listener of its own would be led to the REST API."""
    url = _base_url("control.console_url", section.console_url)
    if url is None and section.console_listen is not None:
        host, _ = parse_address(section.console_listen, option="control.console_listen")
        if host not in LOOPBACK:
            raise OperatorError(
                f"control.console_listen {section.console_listen} needs control.console_url: the address at which people reach it",
                hint="for example https://console.example.com",
            )
    return url


def _base_url(setting: str, text: str | None) -> str | None:
    """Return the address of a setting. Raises OperatorError for one that is not scheme and host alone."""
    if text is not None and re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]{1,255}", text) is None:
        raise OperatorError(f"{setting} must be https://HOST or https://HOST:PORT, without a path")
    return text


def _github_keys_url(section: LeakedKeysSection) -> str | None:
    """Return the address of the keys with which GitHub signs reports; None if no reports are taken. Raises OperatorError for one that is
    not https, but on this host."""
    if re.fullmatch(r"https://[!-~]{1,2048}|http://(127\.0\.0\.1|localhost|\[::1\])[:/][!-~]{1,2048}", section.github_keys_url) is None:
        raise OperatorError("control.leaked_keys.github_keys_url must be an https URL")
    return section.github_keys_url if section.github else None


def _stripe(section: StripeSection, environment: Mapping[str, str]) -> StripeConnector | None:
    """Return the Stripe account that collects invoices; None without a key. Raises OperatorError for an address that is not https, but on
    this host, and for keys and secrets that cannot be."""
    if re.fullmatch(r"https://[A-Za-z0-9.:-]{1,255}|http://(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", section.url) is None:
        raise OperatorError("control.stripe.url must be https://HOST, without a path")
    key, given = environment.get("TOLLWAY_STRIPE_KEY", ""), environment.get("TOLLWAY_STRIPE_WEBHOOK_SECRET", "")
    secrets = tuple(each for each in given.split(",") if each)
    if key and re.fullmatch(r"(sk|rk)_[0-9A-Za-z_]{8,255}", key) is None:
        raise OperatorError("TOLLWAY_STRIPE_KEY must be a secret or restricted key of Stripe: sk_... or rk_...")
    if len(secrets) > 2 or any(re.fullmatch(r"whsec_[!-~]{8,255}", each) is None for each in secrets):
        raise OperatorError("TOLLWAY_STRIPE_WEBHOOK_SECRET must be one or two secrets of Stripe, with a comma: whsec_...")
    return StripeConnector(section.url, key, secrets) if key else None


def _vies(url: str | None) -> Vies | None:
    """Return the register of VAT ids; None where it is not asked. Raises OperatorError for an address that is not https, but on this
    host."""
    if url is None:
        return None
    host = r"https://[A-Za-z0-9.:-]{1,255}|http://(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?"
    if re.fullmatch(rf"({host})(/[A-Za-z0-9._/-]{{0,255}})?", url) is None:
        raise OperatorError("control.vies_url must be https://HOST/PATH")
    return Vies(url.rstrip("/"))


def _usage_files(directory: Path, section: ControlSection) -> UsageFiles | None:
    """Return where hours of usage are written. Raises OperatorError if what writes them is not installed."""
    if not section.usage_parquet:
        return None
    try:
        return UsageFiles(directory / "control" / "usage")
    except ParquetMissing as missing:
        raise OperatorError(f"control.usage_parquet: {missing}") from None


def _sink_streams(section: SinksSection) -> tuple[Stream, ...]:
    """Return the streams of these settings, each once. Raises OperatorError for what is none."""
    unknown = set(section.streams) - set(Stream)
    if unknown or not section.streams:
        raise OperatorError(f"control.sinks.streams must be of {', '.join(Stream)}", hint=", ".join(sorted(unknown)))
    return tuple(stream for stream in Stream if stream in section.streams)


def _sinks(section: SinksSection, environment: Mapping[str, str]) -> Iterator[Sink]:
    """Yield the sinks of these settings. Raises OperatorError for what cannot be one, and for a client that is not installed."""
    if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", section.prefix) is None:
        raise OperatorError("control.sinks.prefix must be 1 to 64 letters, digits, - and _")
    try:
        if section.kafka_servers:
            for each in section.kafka_servers:
                parse_address(each, option="control.sinks.kafka_servers")
            yield KafkaSink(section.kafka_servers, section.prefix, _read_properties(section.kafka_properties_file))
        if section.nats_servers:
            if any(re.fullmatch(r"(nats|tls|wss?)://[!-~]{1,2048}", each) is None for each in section.nats_servers):
                raise OperatorError("control.sinks.nats_servers must be URLs such as nats://host:4222")
            credentials = None if section.nats_credentials_file is None else Path(section.nats_credentials_file)
            if credentials is not None and not os.access(credentials, os.R_OK):
                raise OperatorError(f"control.sinks.nats_credentials_file: {credentials} cannot be read")
            yield NatsSink(section.nats_servers, section.prefix, credentials)
    except (KafkaMissing, NatsMissing) as missing:
        raise OperatorError(f"control.sinks: {missing}") from None
    except ValueError as error:
        raise OperatorError(f"control.sinks.kafka_properties_file: {error}") from None
    if section.http_url is not None:
        secret = environment.get("TOLLWAY_SINK_SECRET", "")
        if re.fullmatch(r"https?://[!-~]{1,2048}", section.http_url) is None:
            raise OperatorError("control.sinks.http_url must be a URL of http or https")
        if re.fullmatch(r"whsec_[A-Za-z0-9+/]{32,88}={0,2}", secret) is None or len(secret.removeprefix("whsec_")) % 4:
            raise OperatorError(
                "TOLLWAY_SINK_SECRET must be whsec_ and base64 of 24 to 64 bytes: it signs records for control.sinks.http_url"
            )
        yield HttpSink(section.http_url, secret, now)


def _read_properties(file: str | None) -> dict[str, str]:
    """Return the properties of a file, name=value a line; lines that begin with # are comments. Raises OperatorError."""
    if file is None:
        return {}
    try:
        lines = Path(file).read_text().splitlines()
    except (OSError, UnicodeError):
        raise OperatorError(f"control.sinks.kafka_properties_file: {file} cannot be read") from None
    pairs = [line.partition("=") for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if any(not equals for _, equals, _ in pairs):
        raise OperatorError(f"control.sinks.kafka_properties_file: a line of {file} is not name=value")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _networks(setting: str, texts: Sequence[str]) -> tuple[Network, ...]:
    """Return the networks of a setting. Raises OperatorError for what is not one."""
    try:
        return tuple(map(parse_network, texts))
    except ValueError as error:
        raise OperatorError(f"control.{setting}: {error}") from None


def _mail_server(section: MailSection, password: str) -> MailServer | None:
    """Return the server of these settings. Raises OperatorError for an address that is none."""
    if section.server is None:
        return None
    host, port = parse_address(section.server, option="control.mail.server")
    return MailServer(host=host, port=port, sender=section.sender, security=section.security, username=section.username, password=password)


def _operator_sign_in(section: OperatorSignInSection, client_secret: str | None) -> OperatorSignIn | None:
    """Return the identity provider of the platform; None without an issuer. Raises OperatorError for one that lacks what it needs."""
    if section.issuer is None:
        return None
    if section.client_id is None:
        raise OperatorError("control.operator_sign_in.client_id is missing: the id of this platform at the provider")
    groups = (section.operator_groups, section.second_operator_groups, section.auditor_groups)
    if not any(groups):
        raise OperatorError("control.operator_sign_in names no groups, so that nobody could sign in", hint="set operator_groups")
    return OperatorSignIn(
        issuer=section.issuer,
        client_id=section.client_id,
        client_secret=client_secret or None,
        groups_claim=section.groups_claim,
        operator_groups=frozenset(section.operator_groups),
        second_operator_groups=frozenset(section.second_operator_groups),
        auditor_groups=frozenset(section.auditor_groups),
    )


def find_control_problems(section: ControlSection) -> Iterator[OperatorError]:
    """Yield what would keep a control process with these settings from starting: addresses, the database's URL, amounts of money."""
    checks: list[Callable[[], object]] = [
        partial(parse_address, section.listen, option="control.listen"),
        partial(parse_address, section.link, option="control.link"),
        partial(_mail_server, section.mail, ""),
        partial(_operator_sign_in, section.operator_sign_in, None),
        partial(_approval_above, section.corrections.approval_above),
        partial(_base_url, "control.public_url", section.public_url),
        partial(_base_url, "control.gateway_url", section.gateway_url),
        partial(find_console_url, section),
        partial(_github_keys_url, section.leaked_keys),
        partial(_stripe, section.stripe, {}),
        partial(_vies, section.vies_url),
        partial(_sink_streams, section.sinks),
        lambda: list(_sinks(section.sinks, os.environ)),
        partial(_networks, "trusted_proxies", section.trusted_proxies),
        partial(_networks, "webhook_networks", section.webhook_networks),
    ]
    checks += [partial(parse_database_url, url) for url in (section.database_url, section.owner_database_url) if url is not None]
    for check in checks:
        try:
            check()
        except OperatorError as error:
            yield error


def _reconcile_options(section: ReconcileSection) -> ReconcileOptions | None:
    if not section.enabled:
        return None
    return ReconcileOptions(interval_seconds=section.interval_seconds, timeout_seconds=section.timeout_seconds)


def _approval_above(text: str) -> int:
    try:
        return parse_sum(text)
    except ValueError as error:
        raise OperatorError(f"control.corrections.approval_above is no amount of money: {error}", hint="for example 100 or 0.5") from None
