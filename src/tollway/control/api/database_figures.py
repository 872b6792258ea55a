"""Metrics that are read from the database when they are asked for."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from tollway.control.authentication import certificates
from tollway.control.gateways import epochs
from tollway.control.metering import quarantine, usage
from tollway.control.money import automatic_closing
from tollway.control.plane import ControlPlane
from tollway.domain.faults import Fault
from tollway.metric_table import find_metric

ORGANIZATIONS_SECONDS = 60
"""Interval at which the usage of organizations is read, however often it is asked for."""


class DatabaseFigures(Collector):
    """Expiring certificates, lost epochs, overdue periods and quarantined records. While the database is away they are what they were."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._shown = CollectorRegistry()
        self._expiring = self._declare("tollway_control_client_certificates_expiring")
        self._requests = self._declare("tollway_control_organization_requests") if plane.metrics_organizations_max else None
        self._tokens = self._declare("tollway_control_organization_tokens") if plane.metrics_organizations_max else None
        self._organizations_at = 0
        self._lost = self._declare("tollway_control_epochs_lost")
        self._overdue = None if plane.close_after_days is None else self._declare("tollway_control_periods_overdue")
        self._quarantined = self._declare("tollway_control_records_quarantined")
        self._conflicts = self._declare("tollway_control_records_in_conflict")

    def collect(self) -> Iterator[Metric]:
        """Read the database and yield the figures. It waits for the database."""
        try:
            self._read()
        except Fault:
            pass  # a database that is away must not take the other figures with it
        yield from self._shown.collect()

    def _declare(self, name: str) -> Gauge:
        row = find_metric(name)
        return Gauge(row.name, row.text, row.labels, registry=self._shown)

    def _read(self) -> None:
        plane = self._plane
        with plane.database.platform(write=False) as tx:
            self._expiring.set(certificates.count_expiring(tx, plane.now()))
            self._lost.set(epochs.count_lost(tx))
            if self._overdue is not None and plane.close_after_days is not None:
                self._overdue.set(automatic_closing.count_overdue(tx, plane.close_after_days, plane.now()))
            self._conflicts.set(quarantine.count_conflicts(tx))
            waiting = quarantine.count_open(tx)
            now, top = plane.now(), None
            if plane.metrics_organizations_max and now >= self._organizations_at + ORGANIZATIONS_SECONDS * 1_000_000:
                top = usage.list_top(tx, plane.metrics_organizations_max, now)
        for reason in quarantine.OBSTACLES:
            self._quarantined.labels(reason).set(waiting.get(reason, 0))
        if top is not None and self._requests is not None and self._tokens is not None:
            self._organizations_at = now
            self._requests.clear()
            self._tokens.clear()
            for each in top:
                self._requests.labels(each.organization_id).set(each.requests)
                self._tokens.labels(each.organization_id).set(each.tokens)
