"""A control process: the REST API and the link, two listeners in one event loop, over one database; and a third one for the pages for
people, where they have one.

Start: wait for the database if it is away, migrate (the embedded one by itself; PostgreSQL under an advisory lock, so
that any number may start at once), make the keys of the settings the platform's, listen, say "ready".
Stop (SIGTERM, SIGINT): refuse readiness, end the streams, finish what runs within STOP_SECONDS_MAX, close the
database. Gateways serve on meanwhile.
"""

import asyncio
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import uvicorn
import uvloop
from prometheus_client import CollectorRegistry, Gauge

from tollway.control import idempotency, publish
from tollway.control.api.app import create_apps
from tollway.control.auditing import audit, audit_chains
from tollway.control.auditing.audit import AuditedOperation
from tollway.control.authentication import federation, token_exchange
from tollway.control.console import routers as console_pages
from tollway.control.eventing import delivery, export_delivery, owner_mails, searches, sinks
from tollway.control.eventing.delivery import Sender
from tollway.control.eventing.export_delivery import Exporter
from tollway.control.eventing.sinks import Feed, Sink
from tollway.control.gateways import nodes
from tollway.control.identity import keys, leaked_keys, operators, scheduled_rotation, sessions
from tollway.control.identity.github_reports import GithubReports
from tollway.control.identity.mail import MailDirectory, MailServer
from tollway.control.identity.operators import OperatorSignIn
from tollway.control.identity.scheduled_rotation import Scheduled
from tollway.control.invoicing import automatic_issue, connectors, dunning, reminders, vies
from tollway.control.invoicing.connectors import Connectors
from tollway.control.invoicing.stripe import StripeConnector
from tollway.control.jobs import Job, JobRunner, Turn, in_thread
from tollway.control.metering import retention, usage_exports
from tollway.control.metering.quarantine import WaitingRecords
from tollway.control.money import contracts, credits, serving_costs
from tollway.control.money.automatic_closing import close_due
from tollway.control.plane import ControlPlane
from tollway.control.publish import Publications
from tollway.control.reconciliation import reconcile
from tollway.control.reconciliation.engine_answers import open_client
from tollway.control.reconciliation.reconcile import ReconcileOptions, Reconciliation
from tollway.control.secrets import peppers
from tollway.control.secrets.data_keys import DataKeys
from tollway.control.secrets.key_encryption import KeyRing, derive_key
from tollway.control.tenancy import content_logs, erasures, plans, stored_responses
from tollway.domain import ids
from tollway.domain.audit import Actor, ActorKind
from tollway.domain.connectors import Connector
from tollway.domain.faults import DATABASE_UNAVAILABLE, Fault
from tollway.domain.federation import IdentityProvider
from tollway.domain.inference_access import InferenceDecision, InferenceQuestion
from tollway.domain.keys import KeyOrigin
from tollway.domain.money import PICO
from tollway.domain.networks import Network
from tollway.domain.quotas import DEFAULT_SIZES, QuotaSizes
from tollway.domain.reconciliation import Tolerance
from tollway.domain.sinks import Stream
from tollway.domain.snapshot import Entry
from tollway.metric_table import find_metric
from tollway.serve import allocator, garbage
from tollway.serve.control_log import ControlLog
from tollway.serve.control_telemetry import ControlTelemetry
from tollway.serve.data_directory import NodeIdentity
from tollway.serve.descriptors import RESERVE, describe_shortage, raise_limit, share_out
from tollway.serve.http_protocol import QuietServer, StrictProtocol
from tollway.serve.sockets import url_of
from tollway.serve.telemetry_export import TelemetryOptions
from tollway.storage.database import Database
from tollway.storage.parquet_files import UsageFiles
from tollway.storage.shared_counters import StoreOptions
from tollway.storage.vault import LocalVault
from tollway.telemetry import LogWriter
from tollway.worker_threads import run_in_thread

DATABASE_WAIT_SECONDS = 30.0
"""At the start, for a database that cannot be reached: it restarts, or starts beside us. Whoever supervises gives up no gateway meanwhile,
and after a crash nobody's pauses between attempts add to the outage."""

DATABASE_PAUSE_SECONDS = 0.5
"""Pause between two attempts to reach it."""

MONTHS_SECONDS = 3_600.0
"""Interval of the job that makes and drops months of events. Months are made long ahead; a changed setting takes effect within the hour."""

IDEMPOTENCY_SECONDS = 3_600.0
"""Interval of the job that removes expired idempotency keys, which nobody can use any more."""

STORED_RESPONSES_SECONDS = 60.0
"""Interval of the job that removes responses whose time is over. Nobody can read them meanwhile."""

CONTENT_SECONDS = 60.0
"""Interval of the job that removes logged content whose time is over. Nobody can read it meanwhile."""

FREE_MEMORY_SECONDS = 60.0
"""Interval of the job that returns free memory: a few milliseconds of one thread."""

LEAKED_KEY_MAILS_SECONDS = 60.0
"""Interval of the job that writes to the owners of leaked keys who could not be notified before."""

ERASURES_SECONDS = 60.0
"""Interval of the job that carries out erasures that a second person approved."""

SESSIONS_SECONDS = 3_600.0
"""Interval of the job that removes sessions and links that have ended, which nobody can use any more."""

ISSUER_KEYS_SECONDS = 15.0
"""Interval of the job that fetches keys of organizations' issuers that are due, which a token with an unknown key makes them."""

ISSUERS_MAX = 50
"""Issuers that one run of that job asks: within its deadline, if each of them takes as long as it may."""

ISSUERS_DEADLINE_SECONDS = 500.0
"""Deadline for one run of that job."""

SIGNING_KEYS_SECONDS = 3_600.0
"""Interval of the job that makes, replaces and withdraws the keys that sign access tokens."""

OVERRIDES_SECONDS = 10.0
"""Interval of the job that removes overrides of limits that have ended: that long they may hold beyond their end."""

REDRAWS_SECONDS = 10.0
"""Interval of the job that draws on credit anew after a close: that long less of it is usable than there is. It reads one row while there
is nothing to do."""

TOPUPS_SECONDS = 60.0
"""Interval of the job that asks for the credit of a new week or month. It reads one row of an index while none has begun."""

WAITING_SECONDS = 60.0
"""Interval of the job that rates records which waited for a price or an organization. It reads one number while nothing was published."""

EVENT_SEARCHES_SECONDS = 60.0
"""Interval of the job that writes events of keys that expire soon and of expired credit, and removes old events."""

CHECKPOINT_SECONDS = 3_600.0
"""Interval of the job that signs the ends of the audit trail's chains: what was recorded since could be removed from the end unnoticed."""

CLOSING_SECONDS = 300.0
"""Interval of the job that closes periods: it takes days until a period is due, and minutes until a gateway is back."""

CLOSING_DEADLINE_SECONDS = 3_600.0
"""Deadline for one run of the job that closes periods: a month of a hundred million events is hashed within it. The next run continues."""

THREAD_SECONDS_MAX = 60.0
"""Deadline for one run of a job of a few statements, which the database bounds at 30 s each."""

STOP_SECONDS_MAX = 8
"""For requests in progress once a stop was asked for: the longest honest one is a snapshot on its way."""

KEEP_ALIVE_SECONDS = 75
"""Longer than the 60 s after which common proxies give up an idle connection: whoever closes first must not be us."""

CONNECTIONS_MAX = 4_096
"""Open connections at each listener; a gateway keeps a few at the link. Idle ones make way for others."""


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """Options of the audit trail. `key`: signs its checkpoints (Ed25519, 32 bytes); None signs none, and removes nothing either.
    `retention_days`: how long records are kept at least; 0 keeps everything."""

    key: bytes | None = field(default=None, repr=False)
    retention_days: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSettings:
    """The settings of a control process, which owns the listening sockets from here on.

    `database_url`: sqlite+pysqlite:///path or postgresql+psycopg://...; `owner_database_url`: the same PostgreSQL by the role that owns the
    tables, if control is to migrate it; `archive_directory`: where collected usage records are kept.
    `peppers` by version (at most two, 32 bytes each), `vault_key` 32 bytes. `platform_key` becomes the only one of the settings, `node` is
    registered with its key; None leaves what the database has. `approval_above_pico`: corrections that move more need a second person.
    `reconcile`: how engines' counters are read; None reads none. `close_after_days`: when periods are closed without being asked; None
    never. `requests_per_minute`: of one organization's admin keys together. `quotas`: sizes of the quotas of each organization.
    `limits_store`: where gateways share the counters of limits. `mail`: the server that takes mail; None writes it as files beside the
    archive. `public_url`: the address under which clients reach the REST API; None if it is not known. `console`: the socket of the pages
    for people; None where the REST API has them. `console_url`: their address, where it is another. `private_issuers`: identity providers
    at addresses that are not public. `trusted_proxies`: proxies before the REST API, whose word on a client's address is taken.
    `webhook_networks`: private networks that webhooks may reach. `usage_files`: where hours of usage are written; None writes none.
    `sinks`: systems that are sent records of `sink_streams`. `metrics_organizations_max`: organizations that metrics name.
    `key_ring`: what wraps the data keys of organizations; None for a key that is derived from `vault_key`. `github_keys_url`: where the
    keys are published with which GitHub signs reports of leaked secrets; None takes no reports.
    `stripe`: the account that collects invoices; None without one. `vat_register`: VIES; None where it is not asked.
    `operator_sign_in`: the identity provider with which operators sign in; None without one. `telemetry`: None sends none."""

    database_url: str = field(repr=False)
    archive_directory: Path
    public: socket.socket
    link: socket.socket
    peppers: Mapping[int, bytes] = field(repr=False)
    pepper_version: int
    vault_key: bytes = field(repr=False)
    platform_key: str | None = field(repr=False)
    node: NodeIdentity | None
    second_platform_key: str | None = field(default=None, repr=False)
    reconcile: ReconcileOptions | None = None
    tolerance: Tolerance = field(default_factory=Tolerance)
    approval_above_pico: int = 100 * PICO
    retention_months: int = 0
    close_after_days: int | None = None
    requests_per_minute: int = 3000
    quotas: QuotaSizes = field(default_factory=lambda: DEFAULT_SIZES)
    limits_store: StoreOptions | None = None
    mail: MailServer | None = None
    stripe: StripeConnector | None = None
    vat_register: vies.Vies | None = None
    owner_database_url: str | None = field(default=None, repr=False)
    audit: AuditOptions = field(default_factory=AuditOptions)
    key_ring: KeyRing | None = None
    public_url: str | None = None
    gateway_url: str | None = None
    console: socket.socket | None = None
    console_url: str | None = None
    private_issuers: frozenset[str] = frozenset()
    trusted_proxies: tuple[Network, ...] = ()
    webhook_networks: tuple[Network, ...] = ()
    usage_files: UsageFiles | None = None
    sinks: tuple[Sink, ...] = ()
    sink_streams: tuple[Stream, ...] = ()
    metrics_organizations_max: int = 0
    github_keys_url: str | None = None
    operator_sign_in: OperatorSignIn | None = None
    telemetry: TelemetryOptions | None = None
    log_level: str = "info"


NO_AUDIT = AuditOptions()


def now() -> int:
    """The instant, in UTC microseconds since 1970."""
    return time.time_ns() // 1000


def new_id(prefix: str) -> str:
    """A fresh id of kind `prefix`."""
    return ids.new_id(prefix, now(), secrets.randbits(ids.RANDOM_BITS))


def migrate_database(url: str, owner_url: str | None = None) -> None:
    """Bring the schema of the database at `url` up to date, connecting by `owner_url` if there is one. The directory of an embedded one
    must exist. Raises DatabaseTooNew, RoleRefused, or Fault DATABASE_UNAVAILABLE."""
    with closing(Database.open(owner_url or url)) as database:
        database.migrate()


def open_database(url: str, owner_url: str | None = None) -> Database:
    """Open the database at `url`, and bring its schema up to date first where that can be done: it is SQLite, or there is the URL of the
    role that owns the tables.

    Raises DatabaseTooNew, DatabaseOutdated, RoleRefused, or Fault DATABASE_UNAVAILABLE.
    """
    database = Database.open(url)
    try:
        if database.is_sqlite:
            database.migrate()
        else:
            if owner_url is not None:
                migrate_database(url, owner_url)
            database.check_role()
            database.check_schema()
    except BaseException:
        database.close()
        raise
    return database


def await_database(settings: "ControlSettings", log: Callable[[Mapping[str, object]], None], *, seconds: float) -> Database:
    """As `open_database`, but try again for so long while the database cannot be reached, and say so at once."""
    deadline = time.monotonic() + seconds
    waiting = False
    while True:
        try:
            return open_database(settings.database_url, settings.owner_database_url)
        except Fault as fault:
            if fault.kind is not DATABASE_UNAVAILABLE or time.monotonic() >= deadline:
                raise
            if not waiting:
                waiting = True
                log({"event": "waiting_for_database", "seconds_max": seconds, "detail": fault.detail})
            time.sleep(DATABASE_PAUSE_SECONDS)


def seed_keys(database: Database, settings: ControlSettings, log: Callable[[Mapping[str, object]], None]) -> None:
    """Make the platform keys of the settings the only valid ones of theirs, and register the node of the settings. Raises ValueError for a
    platform key that cannot be valid. A node that was revoked stays so, with a line in the log."""
    pepper = keys.Pepper(settings.pepper_version, settings.peppers[settings.pepper_version])
    node, is_valid = settings.node, True
    actor = Actor(kind=ActorKind.JOB, id="start")
    operation = AuditedOperation(event="settings_keys.applied", operation="start", actor=actor)
    with database.recording(audit.record_changes(operation, new_id=new_id, now=now)).platform() as tx:
        for text in (settings.platform_key, settings.second_platform_key, None if node is None else node.key):
            if text is not None:
                peppers.move_secret(tx, text.encode(), settings.peppers, settings.pepper_version)
        for origin, secret in ((KeyOrigin.FIRST, settings.platform_key), (KeyOrigin.SECOND, settings.second_platform_key)):
            if secret is not None:
                keys.seed_platform_key(tx, origin, secret, id=new_id(ids.KEY), pepper=pepper, now=now())
        if settings.second_platform_key is None:
            keys.withdraw_second_key(tx, now())
        if node is not None:
            is_valid = nodes.seed_node(tx, node.node_id, node.key, key_id=new_id(ids.KEY), pepper=pepper, now=now())
    if node is not None and not is_valid:
        log({"event": "node_of_settings_revoked", "node_id": node.node_id})


SWITCH_SECONDS = 0.001
"""Time for which a thread computes while others wait for the interpreter. At each of its steps the event loop waits so long for every
thread that computes, and five times as long at Python's own 5 ms."""


def run_control(settings: ControlSettings) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code. Call it from the main thread.

    Raises DatabaseTooNew, Fault (the database cannot be had) or ValueError (a secret that cannot be one) before
    anything is served."""
    allocator.return_large_blocks()
    allocator.use_one_heap()
    writer = LogWriter(sys.stdout.fileno(), settings.log_level)
    try:
        vault = LocalVault(settings.vault_key)
        log = ControlLog(writer, now)
        database = await_database(settings, log, seconds=DATABASE_WAIT_SECONDS)
        try:
            seed_keys(database, settings, log)
            telemetry = None if settings.telemetry is None else ControlTelemetry.of(settings.telemetry, log)
            if telemetry is not None and telemetry.tracer is not None:
                database.trace_statements()
            plane = ControlPlane(
                database=database,
                peppers=settings.peppers,
                pepper_version=settings.pepper_version,
                vault=vault,
                data_keys=DataKeys(database, settings.key_ring or KeyRing.of(derive_key(settings.vault_key)), os.urandom, now),
                archive_directory=settings.archive_directory,
                publications=Publications(),
                explain_inference=explain_inference,
                now=now,
                random_bytes=os.urandom,
                log=log,
                reconciliation=Reconciliation(settings.tolerance),
                approval_above_pico=settings.approval_above_pico,
                close_after_days=settings.close_after_days,
                requests_per_minute=settings.requests_per_minute,
                quotas=settings.quotas,
                limits_store=settings.limits_store,
                public_url=settings.public_url,
                gateway_url=settings.gateway_url,
                console_url=settings.console_url,
                private_issuers=settings.private_issuers,
                trusted_proxies=settings.trusted_proxies,
                webhook_networks=settings.webhook_networks,
                metrics_organizations_max=settings.metrics_organizations_max,
                github_reports=None if settings.github_keys_url is None else GithubReports(settings.github_keys_url, log),
                operator_sign_in=settings.operator_sign_in,
                stripe=settings.stripe,
                vies=settings.vat_register,
                tracer=None if telemetry is None else telemetry.tracer,
                telemetry=telemetry,
                mail=settings.mail or MailDirectory(settings.archive_directory.parent / "mail", lambda: new_id("mail")),
            )
            database.on_publish(plane.publications.advance)
            sys.setswitchinterval(SWITCH_SECONDS)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_serve_until_signal(plane, settings, telemetry, log))
        finally:
            database.close()
    finally:
        writer.close()
    return 0


def explain_inference(entries: Sequence[Entry], key_id: str, question: InferenceQuestion) -> InferenceDecision:
    """Explain what a gateway with these entries does with a request of a key: `gateway.inference_access`."""
    from tollway.gateway.inference_access import explain_inference as explain  # takes 0.4 s and memory, only where somebody asks

    return explain(entries, key_id, question)


async def _serve_until_signal(plane: ControlPlane, settings: ControlSettings, telemetry: ControlTelemetry | None, log: ControlLog) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, log.step_level)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(
        plane,
        settings.public,
        settings.link,
        stop,
        settings.reconcile,
        console=settings.console,
        retention_months=settings.retention_months,
        audit_options=settings.audit,
        feeds=[
            Feed(database=plane.database, sink=sink, streams=settings.sink_streams, now=plane.now, log=plane.log, counts=plane.sinks)
            for sink in settings.sinks
        ],
        usage_files=settings.usage_files,
        telemetry=telemetry,
    )


async def serve(
    plane: ControlPlane,
    public: socket.socket,
    link: socket.socket,
    stop: asyncio.Event,
    options: ReconcileOptions | None = None,
    *,
    console: socket.socket | None = None,
    retention_months: int = 0,
    audit_options: AuditOptions = NO_AUDIT,
    feeds: Sequence[Feed] = (),
    usage_files: UsageFiles | None = None,
    telemetry: ControlTelemetry | None = None,
) -> None:
    """Serve the applications on their listening sockets until `stop` is set; then finish what runs, within
    STOP_SECONDS_MAX. `options`: how engines' counters are read meanwhile; None reads none. `console`: the socket of the pages for people;
    None where the REST API has them. `audit_options`: of the audit trail.
    `feeds`: sinks that are fed meanwhile. `usage_files`: where hours of usage are written; None writes none."""
    limit = raise_limit()
    listeners = [public, link, *([] if console is None else [console])]
    share = share_out(limit, CONNECTIONS_MAX, for_each=len(listeners), reserve=RESERVE)
    if share.missing:
        warning = describe_shortage(limit, share, f"{CONNECTIONS_MAX} connections at each listener of control")
        plane.log({"event": "descriptors_low", "connections_max": share.connections, "detail": warning})
    protocol = StrictProtocol.bounded(share.connections)
    registry = CollectorRegistry()
    row, loop = find_metric("tollway_control_tasks"), asyncio.get_running_loop()
    Gauge(row.name, row.text, registry=registry).set_function(lambda: len(asyncio.all_tasks(loop)))
    apps = create_apps(plane, registry, console_pages.ROUTERS, has_own_console=console is not None)
    if telemetry is not None:
        telemetry.registry = registry
    exporting = None if telemetry is None else asyncio.create_task(telemetry.run(), name="telemetry")
    servers = {QuietServer(_configure(app, protocol)): listener for app, listener in zip(apps, listeners, strict=True)}
    urls = {"url": url_of(public), "link_url": url_of(link)} | ({} if console is None else {"console_url": url_of(console)})
    holder = plane.new_id("control")
    runner = JobRunner(plane.database, holder, plane.jobs, stop, plane.now, plane.log, plane.tracer)
    async with asyncio.TaskGroup() as tasks:
        jobs = _list_jobs(plane, holder, options, retention_months, audit_options, feeds)
        jobs += [
            Job(name=f"sink_{feed.sink.name}", work=feed.run, interval_seconds=sinks.SECONDS, deadline_seconds=sinks.DEADLINE_SECONDS)
            for feed in feeds
        ]
        if usage_files is not None:
            jobs.append(usage_exports.make_job(plane.database, usage_files, plane.log, CLOSING_DEADLINE_SECONDS))
        if plane.vies is not None:
            database = _audit_job(plane, "billing_account.updated", vies.JOB)
            jobs.append(vies.make_job(plane.vies, database, now=plane.now, log=plane.log))
        tasks.create_task(runner.run(jobs))
        for server, listener in servers.items():
            tasks.create_task(server.serve(sockets=[listener]))
        while not all(server.started for server in servers):
            await asyncio.sleep(0.01)  # uvicorn has no event for it
        garbage.settle()
        plane.log({"event": "ready", **urls, "control_id": holder})
        await stop.wait()
        plane.publications.stop()
        for server in servers:
            server.should_exit = True
    if exporting is not None:
        exporting.cancel()
        await asyncio.gather(exporting, return_exceptions=True)
    plane.log({"event": "stopped"})


def _list_jobs(
    plane: ControlPlane,
    holder: str,
    options: ReconcileOptions | None,
    retention_months: int,
    audit_options: AuditOptions,
    feeds: Sequence[Feed],
) -> list[Job]:
    """List the periodic jobs of a control process, but for those of its sinks (`feeds`). `holder`: its name in leases."""
    fed = {(feed.sink.name, stream) for feed in feeds for stream in feed.streams}

    def notice(_turn: Turn) -> None:
        publish.notice(plane.database, plane.publications)

    months = _audit_job(plane, "usage_events.removed", "event_months")

    def keep_months(turn: Turn) -> None:
        for line in retention.keep_months(months, now=turn.at, retention_months=retention_months):
            plane.log(line)
            if turn.is_over():
                return

    waiting = WaitingRecords()
    waiting_database = _audit_job(plane, "quarantined_record.rated", "waiting_records")

    def rate_waiting(turn: Turn) -> None:
        rated = waiting.rate(waiting_database, now=turn.at, is_stopping=turn.is_over)
        if rated:
            plane.log({"event": "waiting_records_rated", "records": rated})

    def remove_idempotency_keys(turn: Turn) -> None:
        for _ in idempotency.remove_expired(plane.database, turn.at):
            if turn.is_over():
                break

    def remove_content(turn: Turn) -> None:
        for removed in content_logs.remove_expired(plane.database, turn.at):
            if removed:
                plane.log({"event": "content_removed", "requests": removed})
            if turn.is_over():
                break

    def remove_stored_responses(turn: Turn) -> None:
        for removed in stored_responses.remove_expired(plane.database, turn.at):
            if removed:
                plane.log({"event": "stored_responses_removed", "responses": removed})
            if turn.is_over():
                break

    def tell_of_leaked_keys(turn: Turn) -> None:
        leaked_keys.notify_due_owners(plane.database, plane.mail, plane.log, turn.at, turn.is_over)

    def carry_out_erasures(turn: Turn) -> None:
        for erasure in erasures.carry_out(plane.database, plane.new_id, plane.now, turn.is_over):
            said = {"erasure_id": erasure.id, "organization_id": erasure.organization_id}
            plane.log({"event": "erasure_not_ready" if erasure.finished_at is None else "erasure_done", **said})

    def remove_ended_sessions(turn: Turn) -> None:
        while sessions.remove_ended(plane.database, turn.at) and not turn.is_over():
            pass
        while operators.remove_ended(plane.database, turn.at) and not turn.is_over():
            pass

    overrides = _audit_job(plane, "rate_limit.override_ended", "limit_overrides")

    def remove_ended_overrides(turn: Turn) -> None:
        concerned = plans.remove_ended(overrides, turn.at)
        if concerned:
            plane.log({"event": "limit_overrides_ended", "organizations": len(concerned)})

    drafting_database = _audit_job(plane, "invoice.drafted", "invoices")
    issuing_database = _audit_job(plane, "invoice.issued", "invoices")
    dunning_database = _audit_job(plane, "invoice.dunned", "invoices")

    def issue_invoices(turn: Turn) -> None:
        automatic_issue.run(
            drafting_database,
            issuing_database,
            dunning_database,
            new_id=lambda: plane.new_id(ids.INVOICE),
            now=plane.now,
            is_stopping=turn.is_over,
            log=plane.log,
        )
        dunning.run(
            dunning_database,
            new_id=lambda: plane.new_id(ids.BUDGET),
            now=plane.now,
            is_stopping=turn.is_over,
            log=plane.log,
        )
        reminders.send_due(plane.database, plane.mail, is_stopping=turn.is_over, log=plane.log)

    collecting_database = _audit_job(plane, "payment.recorded", "connectors")
    releasing_database = _audit_job(plane, "invoice.dunned", "connectors")
    linked: Connectors = {} if plane.stripe is None else {Connector.STRIPE: plane.stripe}

    def ask_connectors(turn: Turn) -> None:
        paid = connectors.run(
            collecting_database,
            linked,
            new_id=lambda: plane.new_id(ids.PAYMENT),
            now=plane.now,
            is_stopping=turn.is_over,
            log=plane.log,
        )
        dunning.release(releasing_database, paid, plane.now(), plane.log)

    signing_database = _audit_job(plane, "signing_key.updated", "signing_keys")

    def keep_signing_keys(_turn: Turn) -> None:
        token_exchange.maintain_signing_keys(replace(plane, database=signing_database))

    def ask_for_topups(turn: Turn) -> None:
        while credits.ask_for_due_topup(plane.database, turn.at) and not turn.is_over():
            pass

    def open_contract_periods(turn: Turn) -> None:
        contracts.open_due_periods(plane.database, turn.at, turn.is_over)

    def book_capacity(turn: Turn) -> None:
        serving_costs.book_due_capacity(plane.database, turn.at, turn.is_over)

    def redraw_credit(turn: Turn) -> None:
        while credits.redraw_one(plane.database, turn.is_over) and not turn.is_over():
            pass

    scheduled = Scheduled(
        database=plane.database,
        recorded=lambda event: _audit_job(plane, event, "scheduled_rotations"),
        data_keys=plane.data_keys,
        new_ingredients=plane.new_ingredients,
    )

    def search_events(turn: Turn) -> None:
        searches.tell_of_what_is_due(plane.database, turn.at)
        searches.remove_old(plane.database, turn.at, turn.is_over)
        for name in sinks.remove_old(plane.database, fed, turn.at):
            plane.log({"event": "sink_forgotten", "sink": name})

    sender = Sender(
        database=plane.database,
        recorded=_audit_job(plane, "webhook_endpoint.disabled", "webhooks"),
        open_vault=plane.open_vault,
        networks=plane.webhook_networks,
        now=plane.now,
        random=lambda: int.from_bytes(plane.random_bytes(4), "big") / 2**32,
        log=plane.log,
        counts=plane.webhooks,
    )

    exporter = Exporter(
        database=plane.database,
        recorded=_audit_job(plane, "telemetry_export.disabled", "telemetry_exports"),
        open_vault=plane.open_vault,
        networks=plane.webhook_networks,
        now=plane.now,
        random=sender.random,
        log=plane.log,
        counts=plane.exports,
    )

    def tell_owners_of_endpoints(turn: Turn) -> None:
        owner_mails.tell_owners(plane.database, plane.mail, plane.log, plane.now, turn.is_over)

    def rotate_keys(turn: Turn) -> None:
        for step in (scheduled_rotation.rotate_due, scheduled_rotation.give_notices):
            for line in step(scheduled, turn.at):
                plane.log(line)
                if turn.is_over():
                    return

    issuers_database = _audit_job(plane, "identity_provider.updated", "issuer_keys")

    async def fetch_issuer_keys(turn: Turn) -> None:
        def list_due() -> list[IdentityProvider]:
            with plane.database.platform(write=False) as tx:
                return federation.list_due(tx, turn.at, ISSUERS_MAX)

        due = await run_in_thread(list_due)
        for provider_id, reason in await federation.refresh_keys(plane.database, issuers_database, due, plane.now) if due else ():
            plane.log({"event": "issuer_keys_failed", "provider_id": provider_id, "detail": reason})

    jobs = [
        Job(
            name="issuer_keys",
            work=fetch_issuer_keys,
            interval_seconds=ISSUER_KEYS_SECONDS,
            deadline_seconds=ISSUERS_DEADLINE_SECONDS,
        ),
        Job(
            name="signing_keys",
            work=in_thread(keep_signing_keys),
            interval_seconds=SIGNING_KEYS_SECONDS,
            deadline_seconds=THREAD_SECONDS_MAX,
        ),
        Job(
            name="scheduled_rotations",
            work=in_thread(rotate_keys),
            interval_seconds=scheduled_rotation.ROTATE_SECONDS,
            deadline_seconds=THREAD_SECONDS_MAX,
        ),
        Job(
            name="limit_overrides",
            work=in_thread(remove_ended_overrides),
            interval_seconds=OVERRIDES_SECONDS,
            deadline_seconds=THREAD_SECONDS_MAX,
        ),
        Job(
            name="free_memory",
            work=in_thread(lambda _turn: allocator.trim()),
            interval_seconds=FREE_MEMORY_SECONDS,
            deadline_seconds=THREAD_SECONDS_MAX,
            is_leased=False,
        ),
        Job(
            name="idempotency_keys",
            work=in_thread(remove_idempotency_keys),
            interval_seconds=IDEMPOTENCY_SECONDS,
            deadline_seconds=THREAD_SECONDS_MAX,
        ),
        Job(
            name="stored_responses",
            work=in_thread(remove_stored_responses),
            interval_seconds=STORED_RESPONSES_SECONDS,
            deadline_seconds=THREAD_SECONDS_MAX,
        ),
        Job(
            name="content_logs",
            work=in_thread(remove_content),
            interval_seconds=CONTENT_SECONDS,
            deadline_seconds=THREAD_SECONDS_MAX,
        ),
        Job(
            name="leaked_key_mails",
            work=in_thread(tell_of_leaked_keys),
            interval_seconds=LEAKED_KEY_MAILS_SECONDS,
            deadline_seconds=THREAD_SECONDS_MAX,
        ),
        Job(
            name="erasures",
            work=in_thread(carry_out_erasures),
            interval_seconds=ERASURES_SECONDS,
            deadline_seconds=THREAD_SECONDS_MAX,
        ),
        Job(
            name="ended_sessions",
            work=in_thread(remove_ended_sessions),
            interval_seconds=SESSIONS_SECONDS,
            deadline_seconds=THREAD_SECONDS_MAX,
        ),
        Job(
            name="publication_watch",
            work=in_thread(notice),
            interval_seconds=publish.WATCH_SECONDS,
            deadline_seconds=THREAD_SECONDS_MAX,
            is_leased=False,
        ),
        Job(
            name="invoices",
            work=in_thread(issue_invoices),
            interval_seconds=automatic_issue.SECONDS,
            deadline_seconds=automatic_issue.SECONDS,
        ),
        Job(
            name="connectors",
            work=in_thread(ask_connectors),
            interval_seconds=connectors.SECONDS,
            deadline_seconds=automatic_issue.SECONDS,
        ),
        Job(
            name="event_searches",
            work=in_thread(search_events),
            interval_seconds=EVENT_SEARCHES_SECONDS,
            deadline_seconds=MONTHS_SECONDS,
        ),
        Job(
            name="webhooks",
            work=sender.run,
            interval_seconds=delivery.SECONDS,
            deadline_seconds=delivery.DEADLINE_SECONDS,
            is_leased=False,
        ),
        Job(
            name="telemetry_exports",
            work=exporter.run,
            interval_seconds=export_delivery.SECONDS,
            deadline_seconds=export_delivery.DEADLINE_SECONDS,
        ),
        Job(
            name="webhook_mails",
            work=in_thread(tell_owners_of_endpoints),
            interval_seconds=owner_mails.SECONDS,
            deadline_seconds=THREAD_SECONDS_MAX,
        ),
        Job(
            name="event_months",
            work=in_thread(keep_months),
            interval_seconds=MONTHS_SECONDS,
            deadline_seconds=MONTHS_SECONDS,
        ),
        Job(
            name="contract_periods",
            work=in_thread(open_contract_periods),
            interval_seconds=contracts.OPEN_SECONDS,
            deadline_seconds=contracts.OPEN_SECONDS,
        ),
        Job(
            name="capacity_costs",
            work=in_thread(book_capacity),
            interval_seconds=serving_costs.CAPACITY_SECONDS,
            deadline_seconds=serving_costs.CAPACITY_SECONDS,
        ),
        Job(
            name="credit_redraws",
            work=in_thread(redraw_credit),
            interval_seconds=REDRAWS_SECONDS,
            deadline_seconds=CLOSING_DEADLINE_SECONDS,
        ),
        Job(
            name="credit_topups",
            work=in_thread(ask_for_topups),
            interval_seconds=TOPUPS_SECONDS,
            deadline_seconds=MONTHS_SECONDS,
        ),
        Job(
            name="waiting_records",
            work=in_thread(rate_waiting),
            interval_seconds=WAITING_SECONDS,
            deadline_seconds=MONTHS_SECONDS,
        ),
    ]
    if audit_options.key is not None:
        jobs.append(_make_checkpoints_job(plane, audit_options.key, audit_options.retention_days))
    if plane.close_after_days is not None:
        after_days = plane.close_after_days

        closing_database = _audit_job(plane, "billing_period.closed", "period_closing")

        def close(turn: Turn) -> None:
            close_due(closing_database, after_days, holder=holder, now=plane.now, is_stopping=turn.is_over, log=plane.log)

        closing = Job(
            name="period_closing", work=in_thread(close), interval_seconds=CLOSING_SECONDS, deadline_seconds=CLOSING_DEADLINE_SECONDS
        )
        jobs.append(closing)
    if options is not None:
        read = options

        async def read_engines(_turn: Turn) -> None:
            async with open_client() as client:
                await reconcile.read_engines(plane.database, plane.vault, plane.reconciliation, client, read, now=plane.now, log=plane.log)

        def compare(turn: Turn) -> None:
            reconcile.compare_and_warn(plane.database, plane.reconciliation, now=turn.at, log=plane.log)

        seconds = options.interval_seconds
        jobs += [
            Job(
                name="engine_readings",
                work=read_engines,
                interval_seconds=seconds,
                deadline_seconds=max(seconds, THREAD_SECONDS_MAX),
                waits_for_period=True,
            ),
            Job(
                name="reconciliation",
                work=in_thread(compare),
                interval_seconds=seconds,
                deadline_seconds=max(seconds, THREAD_SECONDS_MAX),
                is_leased=False,
                waits_for_period=True,
            ),
        ]
    return jobs


def _configure(app: object, protocol: type[StrictProtocol]) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=protocol,
        ws="none",
        lifespan="off",
        loop="none",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the application looks at what trusted proxies say
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS_MAX,
    )


def _audit_job(plane: ControlPlane, event: str, name: str) -> Database:
    """Return the database as a job uses it: each of its transactions that changes a resource is recorded in the audit trail as `event`."""
    operation = AuditedOperation(event=event, operation=name, actor=Actor(kind=ActorKind.JOB, id=name))
    return plane.database.recording(audit.record_changes(operation, new_id=plane.new_id, now=plane.now))


def _make_checkpoints_job(plane: ControlPlane, key: bytes, retention_days: int) -> Job:
    """Return the job that signs checkpoints of the audit trail, writes them to the log, and removes what is older than its retention."""

    def sign(turn: Turn) -> None:
        for checkpoint in audit_chains.sign_checkpoints(plane.database, key, turn.at):
            line = {"chain": checkpoint.chain, "sequence": checkpoint.sequence, "hash": checkpoint.hash.hex()}
            plane.log({"event": "audit_checkpoint", **line})
            if turn.is_over():
                return
        if retention_days:
            for chain, removed in audit_chains.remove_old(plane.database, retention_days, turn.at):
                plane.log({"event": "audit_records_removed", "chain": chain, "records": removed})
                if turn.is_over():
                    return

    return Job(
        name="audit_checkpoints", work=in_thread(sign), interval_seconds=CHECKPOINT_SECONDS, deadline_seconds=CLOSING_DEADLINE_SECONDS
    )
