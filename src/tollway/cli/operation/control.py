"""`tollway control`: one process of the control plane."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tollway.cli.databases import DatabaseUrl, chosen, find_owner_url, parse_database_url
from tollway.cli.processes import Config, DataDir, Link, find_limits_store, find_telemetry, inherit_or_open, read_settings
from tollway.control.identity.mail import MailServer
from tollway.control.identity.operators import OperatorSignIn
from tollway.control.invoicing.stripe import StripeConnector
from tollway.control.reconciliation.reconcile import ReconcileOptions
from tollway.domain.money import parse_sum
from tollway.domain.networks import Network, parse_network
from tollway.domain.quotas import Quota
from tollway.domain.reconciliation import Tolerance
from tollway.serve import data_directory
from tollway.serve.control import AuditOptions, ControlSettings, now, run_control
from tollway.serve.key_ring import make_key_ring
from tollway.serve.sockets import parse_address
from tollway.settings import (
    ControlSection,
    LeakedKeysSection,
    MailSection,
    OperatorError,
    OperatorSignInSection,
    ReconcileSection,
    StripeSection,
)
from tollway.storage.parquet_files import ParquetMissing, UsageFiles


def control(
    config: Config = None,
    data_dir: DataDir = None,
    listen: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="The REST API.", show_default="127.0.0.1:8081")] = None,
    fd: Annotated[int | None, typer.Option(help="An inherited listening socket instead of --listen.")] = None,
    link: Link = None,
    link_fd: Annotated[int | None, typer.Option(help="An inherited listening socket instead of --link.")] = None,
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
        control__database_url=database_url,
    )
    directory = Path(settings.data_dir).absolute()
    data_directory.prepare(directory)
    secrets = data_directory.read_secrets(directory, os.environ)
    with (
        chosen(settings, directory) as url,
        inherit_or_open(fd, settings.control.listen, option="--listen") as public,
        inherit_or_open(link_fd, settings.control.link, option="--link") as link_listener,
    ):
        options = ControlSettings(
            database_url=url,
            owner_database_url=find_owner_url(settings),
            archive_directory=directory / "control" / "archive",
            public=public,
            link=link_listener,
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
            public_url=_public_url(settings.control.public_url),
            private_issuers=frozenset(settings.control.private_issuers.split()),
            trusted_proxies=_networks("trusted_proxies", settings.control.trusted_proxies),
            usage_files=_usage_files(directory, settings.control),
            webhook_networks=_networks("webhook_networks", settings.control.webhook_networks),
            github_keys_url=_github_keys_url(settings.control.leaked_keys),
            operator_sign_in=_operator_sign_in(settings.control.operator_sign_in, os.environ.get("TOLLWAY_OPERATOR_CLIENT_SECRET")),
            mail=_mail_server(settings.control.mail, os.environ.get("TOLLWAY_MAIL_PASSWORD", "")),
            stripe=_stripe(settings.control.stripe, os.environ),
        )
        raise typer.Exit(run_control(options))


def _public_url(text: str | None) -> str | None:
    """Return the address under which clients reach the REST API. Raises OperatorError for one that is not scheme and host alone."""
    if text is not None and re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]{1,255}", text) is None:
        raise OperatorError("control.public_url must be https://HOST or https://HOST:PORT, without a path")
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


def _usage_files(directory: Path, section: ControlSection) -> UsageFiles | None:
    """Return where hours of usage are written. Raises OperatorError if what writes them is not installed."""
    if not section.usage_parquet:
        return None
    try:
        return UsageFiles(directory / "control" / "usage")
    except ParquetMissing as missing:
        raise OperatorError(f"control.usage_parquet: {missing}") from None


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
        partial(_public_url, section.public_url),
        partial(_github_keys_url, section.leaked_keys),
        partial(_stripe, section.stripe, {}),
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
