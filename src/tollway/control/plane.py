"""The parts that one control process is made of: its database, secrets, clock, randomness, log and state in memory.

`serve.control` makes it once. The routes of `api` and the periodic jobs receive it; the parts below them receive only what they need.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.registry import Collector

from tollway.control.eventing.delivery import WebhookCounts
from tollway.control.eventing.export_delivery import ExportCounts
from tollway.control.eventing.sinks import SinkCounts
from tollway.control.identity.github_reports import GithubReports
from tollway.control.identity.inference_access import ExplainsInference
from tollway.control.identity.keys import Ingredients, Pepper
from tollway.control.identity.mail import Mail
from tollway.control.identity.operators import OperatorSignIn
from tollway.control.identity.passwords import Passwords
from tollway.control.identity.provider_metadata import MetadataCache
from tollway.control.identity.sign_in_counts import SignInCounts
from tollway.control.invoicing.stripe import StripeConnector
from tollway.control.invoicing.stripe_events import EventCounts
from tollway.control.invoicing.vies import Vies
from tollway.control.jobs import JobStates
from tollway.control.publish import Publications
from tollway.control.reconciliation.reconcile import Reconciliation
from tollway.control.secrets.data_keys import DataKeys
from tollway.control.tracing import ControlTracer
from tollway.domain import ids
from tollway.domain.keys import RANDOM_BYTES
from tollway.domain.money import PICO
from tollway.domain.networks import Network
from tollway.domain.quotas import DEFAULT_SIZES, QuotaSizes
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive
from tollway.storage.shared_counters import StoreOptions
from tollway.storage.vault import LocalVault


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """The parts of one control process. `now`: UTC microseconds. `random_bytes(n)`: n unpredictable bytes.

    `peppers`: by version, at most two; new keys use the one of `pepper_version`. `log`: writes one line of structured log.
    `approval_above_pico`: corrections that move more need a second person. `close_after_days`: when periods are closed
    by the job that closes them; None if only operators do. `jobs`: the state of the periodic jobs, for metrics and the readiness page.
    `limits_store`: where gateways share the counters of limits; None: each counts in its own memory and reports.
    `requests_per_minute`: those that the keys of one organization may send together to the REST API. `quotas`: sizes of the quotas of each
    organization. `mail`: how people are written to. `public_url`: the address under which clients reach the REST API, without a path;
    None if it is not known. `console_url`: the address of the pages for people, where they have one of their own.
    `gateway_url`: the address under which this process reaches a gateway, without a path; None if it is not known.
    `private_issuers`: identity providers at addresses that are not public, which the operator trusts.
    `passwords`: hashes those of people. `sign_ins`: counts for metrics. `provider_metadata`: of identity providers, as fetched last.
    `trusted_proxies`: proxies before the REST API whose `x-forwarded-for` says where a request came from. `data_keys`: those with which
    secrets of organizations are sealed; `vault` seals those of the platform. `github_reports`: verifies reports of leaked secrets; None
    takes none. `operator_sign_in`: the identity provider with which operators sign in; None without one.
    `stripe`: collects invoices; None where it is not set up. `stripe_events`: counts its events for metrics.
    `vies`: the register of VAT ids; None where it is not asked.
    `webhook_networks`: private networks that webhooks may reach, which the operator trusts. `webhooks`, `sinks`, `exports`: counts for
    metrics.
    `explain_inference`: decides about requests as gateways do.
    `metrics_organizations_max`: organizations that metrics name.
    `tracer`: traces operations and jobs; `telemetry`: counts what was exported; None where telemetry is not exported.
    """

    database: Database
    peppers: Mapping[int, bytes]
    pepper_version: int
    vault: LocalVault
    archive_directory: Path
    publications: Publications
    now: Callable[[], int]
    random_bytes: Callable[[int], bytes]
    log: Callable[[Mapping[str, object]], None]
    mail: Mail
    data_keys: DataKeys
    explain_inference: ExplainsInference
    reconciliation: Reconciliation = field(default_factory=Reconciliation)
    approval_above_pico: int = 100 * PICO
    close_after_days: int | None = None
    jobs: JobStates = field(default_factory=JobStates)
    limits_store: StoreOptions | None = None
    requests_per_minute: int = 3000
    quotas: QuotaSizes = field(default_factory=lambda: DEFAULT_SIZES)
    public_url: str | None = None
    console_url: str | None = None
    gateway_url: str | None = None
    private_issuers: frozenset[str] = frozenset()
    passwords: Passwords = field(default_factory=Passwords)
    sign_ins: SignInCounts = field(default_factory=SignInCounts)
    provider_metadata: MetadataCache = field(default_factory=MetadataCache)
    trusted_proxies: tuple[Network, ...] = ()
    github_reports: GithubReports | None = None
    operator_sign_in: OperatorSignIn | None = None
    stripe: StripeConnector | None = None
    stripe_events: EventCounts = field(default_factory=EventCounts)
    vies: Vies | None = None
    webhook_networks: tuple[Network, ...] = ()
    webhooks: WebhookCounts = field(default_factory=WebhookCounts)
    metrics_organizations_max: int = 0
    sinks: SinkCounts = field(default_factory=SinkCounts)
    exports: ExportCounts = field(default_factory=ExportCounts)
    tracer: ControlTracer | None = None
    telemetry: Collector | None = None

    @property
    def pepper(self) -> Pepper:
        """The pepper of new digests."""
        return Pepper(self.pepper_version, self.peppers[self.pepper_version])

    @property
    def operator_issuer(self) -> str | None:
        """The issuer of the identity provider with which operators sign in; None without one."""
        return None if self.operator_sign_in is None else self.operator_sign_in.issuer

    @property
    def token_issuer(self) -> str:
        """The issuer (`iss`) of access tokens: the address of the control plane, or a name where that is not known."""
        return self.public_url or "tollway"

    @property
    def page_origin(self) -> str | None:
        """The address of the pages for people, without a path; None if it is not known."""
        return self.console_url or self.public_url

    @property
    def archive(self) -> Archive:
        """The archive of ingested records."""
        return Archive(self.archive_directory)

    def open_vault(self, organization_id: str | None) -> LocalVault:
        """Return what seals secrets of an organization, or of the platform (None). Call it outside of transactions. Raises as
        `DataKeys.open`."""
        return self.vault if organization_id is None else self.data_keys.open(organization_id)

    def open_sign_in_vault(self, organization_id: str) -> LocalVault:
        """Return what seals how people of an organization sign in: under its data key. It opens also what was sealed under the vault key,
        by versions before data keys. Call it outside of transactions. Raises as `DataKeys.open`."""
        return self.data_keys.open(organization_id).opening_also(self.vault)

    def new_id(self, prefix: str) -> str:
        """Return a new id with `prefix` (a constant of domain.ids)."""
        return ids.new_id(prefix, self.now(), self.random_bits())

    def random_bits(self) -> int:
        """Return 80 fresh random bits, as many as an id takes."""
        return int.from_bytes(self.random_bytes(10), "big")

    def new_ingredients(self) -> Ingredients:
        """Return what a new key is made of."""
        return Ingredients(self.random_bytes(RANDOM_BYTES), self.pepper)
