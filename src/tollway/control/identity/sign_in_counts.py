"""Counts of sign-ins of one process, for metrics."""

from collections import Counter
from collections.abc import Iterator
from threading import Lock

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from tollway.metric_table import find_metric


class SignInCounts(Collector):
    """Sign-ins by method and result. `succeeded`, `refused`, or `throttled` because there were too many attempts."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = Lock()

    def count(self, method: str, result: str) -> None:
        """Count one. From any thread."""
        with self._lock:
            self._counts[method, result] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield the counts."""
        row = find_metric("tollway_control_sign_ins")
        family = CounterMetricFamily(row.name, row.text, labels=row.labels)
        with self._lock:
            for (method, result), count in self._counts.items():
                family.add_metric([method, result], count)
        yield family
