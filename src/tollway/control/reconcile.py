"""Reconciliation, run: engines are read once a minute, and hours that are over are compared with what was billed for them.

Theory of operation. Of all control processes one reads the engines: the holder of a lease. What it reads is compared with the latest
reading in the database, so neither a restart nor a change of holder loses or doubles anything. Readings are taken on the minute, hence
also on the hour. An hour is judged once it is over for SETTLE_SECONDS, when the records of its requests have arrived; one that drifts is
told of once, by whoever holds the lease. Every process keeps the last judged hour for its metrics.

An engine that cannot be read is *not observed*; it never counts as one that did nothing.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import httpx2
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tollway.control.engine_counters import Source, Unreadable, open_client, read_all
from tollway.domain.faults import Fault
from tollway.domain.pages import Page, Window
from tollway.domain.reconciliation import HOUR_US, Reading, Row, State, Tolerance, compare, hour_of, split
from tollway.domain.usage import Anomaly, UsageEvent
from tollway.engines.table import ENGINES
from tollway.storage import reconcile as storage
from tollway.storage import usage_events as stored_usage
from tollway.storage.database import Database, PlatformTx
from tollway.storage.reconcile import Observation
from tollway.storage.vault import LocalVault

SETTLE_SECONDS = 300
"""After an hour's end until it is judged: gateways hand in within a second, or once they can again."""

JUDGED_HOURS = 24
"""How far back a look for drift goes: records of a gateway that was cut off arrive late, and may make an hour right, or wrong."""

MISSED_READINGS = 3
"""After so many that failed, what the next one shows of two hours is an estimate for each."""

LEASE_INTERVALS = 2.5
"""How long a holder that died is waited for, in intervals."""

Log = Callable[[Mapping[str, object]], None]


@dataclass(frozen=True, slots=True)
class ReconcileOptions:
    """`interval_seconds`: between readings; a divisor of an hour, so that one falls on its edge. `timeout_seconds`: for one engine."""

    interval_seconds: int = 60
    timeout_seconds: float = 5.0


@dataclass(slots=True, eq=False)
class Reconciliation(Collector):
    """What a control process knows of drift: how much is tolerated, and the last hour that was judged, for its metrics."""

    tolerance: Tolerance = field(default_factory=Tolerance)
    judged: list[Row] = field(default_factory=list)

    def collect(self) -> Iterator[Metric]:
        """The last judged hour as gauges. Labels are names of models: bounded by the catalog."""
        text = "Models by what the last judged hour's comparison with their engines came to."
        states = GaugeMetricFamily("tollway_reconciliation_models", text, labels=["state"])
        for state in State:
            states.add_metric([state], sum(row.state is state for row in self.judged))
        yield states
        labels = ["model", "counter"]
        drift = GaugeMetricFamily(
            "tollway_reconciliation_drift_tokens", "What the engines counted more than the ledger, in the last judged hour.", labels=labels
        )
        ratio = GaugeMetricFamily("tollway_reconciliation_drift_ratio", "The same as a share of what the engines counted.", labels=labels)
        for row in self.judged:
            for name, comparison in (("prompt", row.prompt), ("output", row.output)):
                if comparison.drift is not None:
                    drift.add_metric([",".join(row.models), name], comparison.drift)
                if comparison.drift is not None and comparison.engine:
                    ratio.add_metric([",".join(row.models), name], comparison.drift / comparison.engine)
        yield drift
        yield ratio


def report(tx: PlatformTx, start_at: int, end_at: int, tolerance: Tolerance, now: int) -> list[Row]:
    """The comparison of every hour that begins from `start_at` to before `end_at`."""
    return compare(
        storage.list_hours(tx, start_at, end_at),
        storage.list_members(tx, start_at, end_at),
        storage.list_usage(tx, start_at, end_at),
        tolerance,
        settled_before=now - SETTLE_SECONDS * 1_000_000,
    )


def list_anomalies(tx: PlatformTx, window: Window, *, kind: Anomaly | None, deployment_id: str | None) -> Page[UsageEvent]:
    """The requests whose engine reported usage that was not believed."""
    return stored_usage.list_anomalies(tx, window, kind=kind, deployment_id=deployment_id)


# ---- Reading ----------------------------------------------------------------------------------------------------------


def list_sources(tx: PlatformTx, vault: LocalVault) -> list[Source]:
    """The engines that have counters, each once: deployments at one address are of one engine. A credential that cannot be opened is
    left out; the engine then says whether it minds."""
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
    """Keep what a round of readings showed."""
    before = storage.lock_readings(tx, [observation.address for observation in observations])
    readings = {observation.address: observation.reading for observation in observations if observation.reading is not None}
    increments = {address: split(before[address], reading, gap_us) for address, reading in readings.items() if address in before}
    storage.add_hours(tx, observations, increments)
    later = {address: reading for address, reading in readings.items() if address not in before or reading.at > before[address].at}
    storage.put_readings(tx, later)


async def observe(
    database: Database, vault: LocalVault, client: httpx2.AsyncClient, options: ReconcileOptions, now: Callable[[], int]
) -> dict[str, str]:
    """One round: read every engine and keep what they show. Returns why engines could not be read, by address."""
    looked_at = now()
    sources = await asyncio.to_thread(_list_sources, database, vault)
    results = await read_all(client, sources, options.timeout_seconds, now)
    observations = [
        Observation(source.address, source.counters.counts_cached, source.members, looked_at, _reading(result))
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


# ---- Judging ----------------------------------------------------------------------------------------------------------


def judge(database: Database, reconciliation: Reconciliation, now: int) -> list[Row]:
    """Judge the hours that are over; keep the last one for the metrics. Returns all rows that drift."""
    last = hour_of(now - SETTLE_SECONDS * 1_000_000)
    with database.platform(write=False) as tx:
        rows = report(tx, last - JUDGED_HOURS * HOUR_US, last, reconciliation.tolerance, now)
    reconciliation.judged = [row for row in rows if row.start_at == last - HOUR_US]
    return [row for row in rows if row.state is State.DRIFT]


def warn(database: Database, rows: Sequence[Row], log: Log, now: int) -> None:
    """Tell of each engine's hour that drifts, once."""
    for row in rows:
        drifting = [line for line in row.lines if line.state is State.DRIFT] or list(row.lines)
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


async def watch(
    database: Database,
    vault: LocalVault,
    reconciliation: Reconciliation,
    options: ReconcileOptions,
    *,
    holder: str,
    now: Callable[[], int],
    log: Log,
) -> None:
    """Read and judge until cancelled. `holder`: what this process is called when it takes the lease."""
    interval_us = options.interval_seconds * 1_000_000
    unreadable: dict[str, str] = {}
    is_down = False
    async with open_client() as client:
        while True:
            await asyncio.sleep((interval_us - now() % interval_us) / 1e6)
            try:
                at = now()
                if await asyncio.to_thread(_take_lease, database, holder, at, at + int(interval_us * LEASE_INTERVALS)):
                    failed = await observe(database, vault, client, options, now)
                    for address in failed.keys() - unreadable.keys():
                        log({"event": "engine_not_observed", "address": address, "reason": failed[address]})
                    unreadable = failed
                    await asyncio.to_thread(warn, database, await asyncio.to_thread(judge, database, reconciliation, at), log, at)
                else:
                    await asyncio.to_thread(judge, database, reconciliation, at)
                is_down = False
            except Fault as fault:  # the database is away: readings go on from the last one that was kept
                if not is_down:
                    log({"event": "reconciliation_waits", "error_code": fault.kind.code, "detail": fault.detail})
                is_down = True


def _take_lease(database: Database, holder: str, now: int, until_at: int) -> bool:
    with database.platform() as tx:
        return storage.take_lease(tx, holder, now, until_at)
