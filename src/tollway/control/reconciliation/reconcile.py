"""Reconciliation: engines' counters are read once a minute, and hours that are over are compared with what was billed for them.

Theory of operation. Reading is a leased job (`control.jobs`): one control process at a time does it. A reading is compared with the latest
one in the database, so neither a restart nor a change of process loses or doubles anything. Readings are taken on the minute, hence also on
the hour. An hour is compared once it is over for SETTLE_SECONDS, when the records of its requests have arrived. Comparing takes no lease:
every process keeps the latest compared hour for its metrics. The database records which drifts have been logged, so each is logged once.

An engine that cannot be read is *not observed*; it never counts as one without requests.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import httpx2
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tollway.control.reconciliation.engine_answers import Unreadable
from tollway.control.reconciliation.engine_counters import Source, read_all
from tollway.domain.pages import Page, PageWindow
from tollway.domain.reconciliation import HOUR_US, HourState, Reading, Row, Tolerance, compare, hour_of, split
from tollway.domain.usage import Anomaly, UsageEvent
from tollway.engines.table import ENGINES
from tollway.storage import reconcile as storage
from tollway.storage import usage_events as stored_usage
from tollway.storage.database import Database, PlatformTx
from tollway.storage.reconcile import Observation
from tollway.storage.vault import LocalVault
from tollway.telemetry import new_family

SETTLE_SECONDS = 300
"""Time after the end of an hour until it is compared: gateways hand in within a second, or once they can again."""

COMPARED_HOURS = 24
"""Number of past hours that are compared each time: records of a gateway that was cut off arrive late and change the result of an hour."""

MISSED_READINGS = 3
"""After so many that failed, what the next one shows of two hours is an estimate for each."""

Log = Callable[[Mapping[str, object]], None]


@dataclass(frozen=True, slots=True)
class ReconcileOptions:
    """`interval_seconds`: between readings; a divisor of an hour, so that one falls on its edge. `timeout_seconds`: for one engine."""

    interval_seconds: int = 60
    timeout_seconds: float = 5.0


@dataclass(slots=True, eq=False)
class Reconciliation(Collector):
    """The state of reconciliation in one control process: the tolerated drift, the rows of the latest compared hour for its metrics, and
    why engines could not be read the last time, by address."""

    tolerance: Tolerance = field(default_factory=Tolerance)
    compared: list[Row] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    def collect(self) -> Iterator[Metric]:
        """Yield the latest compared hour as gauges. Labels are names of models: bounded by the catalog."""
        states = new_family(GaugeMetricFamily, "tollway_reconciliation_models")
        for state in HourState:
            states.add_metric([state], sum(row.state is state for row in self.compared))
        yield states
        drift = new_family(GaugeMetricFamily, "tollway_reconciliation_drift_tokens")
        ratio = new_family(GaugeMetricFamily, "tollway_reconciliation_drift_ratio")
        for row in self.compared:
            for name, comparison in (("prompt", row.prompt), ("output", row.output)):
                if comparison.drift is not None:
                    drift.add_metric([",".join(row.models), name], comparison.drift)
                if comparison.drift is not None and comparison.engine:
                    ratio.add_metric([",".join(row.models), name], comparison.drift / comparison.engine)
        yield drift
        yield ratio


def report(tx: PlatformTx, start_at: int, end_at: int, tolerance: Tolerance, now: int) -> list[Row]:
    """Return the comparison of every hour that begins from `start_at` to before `end_at`."""
    return compare(
        storage.list_hours(tx, start_at, end_at),
        storage.list_members(tx, start_at, end_at),
        storage.list_usage(tx, start_at, end_at),
        tolerance,
        settled_before=now - SETTLE_SECONDS * 1_000_000,
    )


def list_anomalies(tx: PlatformTx, window: PageWindow, *, kind: Anomaly | None, deployment_id: str | None) -> Page[UsageEvent]:
    """List the requests whose engine reported usage that was not believed."""
    return stored_usage.list_anomalies(tx, window, kind=kind, deployment_id=deployment_id)


# ---- Reading ----------------------------------------------------------------------------------------------------------


def list_sources(tx: PlatformTx, vault: LocalVault) -> list[Source]:
    """List the engines that have counters, each once: deployments at one address belong to one engine. A credential that cannot be unsealed
    is left out; the engine then refuses or serves the request."""
    found: dict[str, Source] = {}
    for deployment in storage.list_active_deployments(tx):
        counters = ENGINES[deployment.engine].counters
        if counters is None:
            continue
        known = found.get(deployment.base_url)
        credential = known.credential if known is not None else None
        if credential is None and deployment.credential is not None:
            try:
                credential = vault.unseal(deployment.credential, context=deployment.id)
            except ValueError:
                pass
        members = (*(known.members if known is not None else ()), (deployment.id, deployment.model))
        found[deployment.base_url] = Source(deployment.base_url, known.counters if known is not None else counters, credential, members)
    return list(found.values())


def note(tx: PlatformTx, observations: Sequence[Observation], gap_us: int) -> None:
    """Store one round of readings."""
    before = storage.lock_readings(tx, [observation.address for observation in observations])
    readings = {observation.address: observation.reading for observation in observations if observation.reading is not None}
    increments = {address: split(before[address], reading, gap_us) for address, reading in readings.items() if address in before}
    storage.add_hours(tx, observations, increments)
    later = {address: reading for address, reading in readings.items() if address not in before or reading.at > before[address].at}
    storage.put_readings(tx, later)


async def observe(
    database: Database, vault: LocalVault, client: httpx2.AsyncClient, options: ReconcileOptions, now: Callable[[], int]
) -> dict[str, str]:
    """Read every engine once and store the readings. Returns why engines could not be read, by address."""
    looked_at = now()
    sources = await asyncio.to_thread(_list_sources, database, vault)
    results = await read_all(client, sources, options.timeout_seconds, now)
    observations = [
        Observation(
            source.address, source.counters.counts_cached, source.counters.prompt_count, source.members, looked_at, _reading(result)
        )
        for source, result in zip(sources, results, strict=True)
    ]
    await asyncio.to_thread(_note, database, observations, MISSED_READINGS * options.interval_seconds * 1_000_000)
    return {source.address: str(result) for source, result in zip(sources, results, strict=True) if isinstance(result, Unreadable)}


def _reading(result: Reading | Unreadable) -> Reading | None:
    return result if isinstance(result, Reading) else None


def _list_sources(database: Database, vault: LocalVault) -> list[Source]:
    with database.platform(write=False) as tx:
        return list_sources(tx, vault)


def _note(database: Database, observations: Sequence[Observation], gap_us: int) -> None:
    if observations:
        with database.platform() as tx:
            note(tx, observations, gap_us)


# ---- Comparing --------------------------------------------------------------------------------------------------------


def compare_hours(database: Database, reconciliation: Reconciliation, now: int) -> list[Row]:
    """Compare the hours that are over, and keep the latest one for the metrics. Returns all rows that drift."""
    last = hour_of(now - SETTLE_SECONDS * 1_000_000)
    with database.platform(write=False) as tx:
        rows = report(tx, last - COMPARED_HOURS * HOUR_US, last, reconciliation.tolerance, now)
    reconciliation.compared = [row for row in rows if row.start_at == last - HOUR_US]
    return [row for row in rows if row.state is HourState.DRIFT]


def warn(database: Database, rows: Sequence[Row], log: Log, now: int) -> None:
    """Log each hour of an engine that drifts, once over all processes."""
    for row in rows:
        drifting = [line for line in row.lines if line.state is HourState.DRIFT] or list(row.lines)
        for line in drifting:
            with database.platform() as tx:
                news = [address for address in line.addresses if storage.note_warned(tx, line.start_at, address, now)]
            if news:
                log(
                    {
                        "event": "reconciliation_drift",
                        "hour": line.start_at // 1_000_000,
                        "models": list(line.models),
                        "addresses": list(line.addresses),
                        "deployments": list(line.deployment_ids),
                        "prompt_ledger": line.prompt.ledger,
                        "prompt_engine": line.prompt.engine,
                        "output_ledger": line.output.ledger,
                        "output_engine": line.output.engine,
                        "incomplete": line.usage.incomplete,
                        "retried": line.usage.retried,
                        "anomalous": line.usage.anomalous,
                    }
                )


# ---- Jobs -------------------------------------------------------------------------------------------------------------


async def read_engines(
    database: Database,
    vault: LocalVault,
    reconciliation: Reconciliation,
    client: httpx2.AsyncClient,
    options: ReconcileOptions,
    *,
    now: Callable[[], int],
    log: Log,
) -> None:
    """Read every engine once; log engines that can no longer be read. Raises Fault DATABASE_UNAVAILABLE: then readings go on from the
    latest one that was stored."""
    failed = await observe(database, vault, client, options, now)
    for address in failed.keys() - reconciliation.unreadable.keys():
        log({"event": "engine_not_observed", "address": address, "reason": failed[address]})
    reconciliation.unreadable = failed


def compare_and_warn(database: Database, reconciliation: Reconciliation, *, now: int, log: Log) -> None:
    """Compare the hours that are over and log the drifts that no process has logged before."""
    warn(database, compare_hours(database, reconciliation, now), log, now)
