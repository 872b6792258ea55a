"""The log of a control process, for all its threads."""

import threading
from collections.abc import Callable, Mapping

from tollway.telemetry import LogWriter, new_line

LEVELS = {
    "defect": "error",
    "descriptors_low": "warning",
    "epoch_refused": "error",
    "engine_not_observed": "warning",
    "invoice_not_drafted": "warning",
    "invoice_not_issued": "warning",
    "issuer_keys_failed": "warning",
    "job_failed": "warning",
    "key_leaked": "warning",
    "key_rotation_failed": "warning",
    "key_secret_uncollected": "warning",
    "mail_failed": "error",
    "mail_given_up": "error",
    "node_clock_ahead": "error",
    "node_mismatch": "error",
    "node_of_settings_revoked": "warning",
    "periods_overdue": "warning",
    "platform_key_leaked": "error",
    "records_quarantined": "error",
    "reconciliation_drift": "warning",
    "reporter_keys_failed": "warning",
    "telemetry_not_sent": "warning",
    "telemetry_restarted": "error",
}
"""Log levels by event; any other event has the level `info`."""


class ControlLog:
    """A log of JSON lines with instant and level, for any thread (a LogWriter alone is for one). `now`: UTC microseconds."""

    def __init__(self, writer: LogWriter, now: Callable[[], int]) -> None:
        self._writer = writer
        self._now = now
        self._lock = threading.Lock()

    def __call__(self, line: Mapping[str, object]) -> None:
        """Write a line about `event`, with the other fields of `line` that have a value."""
        event = str(line["event"])
        fields = {name: value for name, value in line.items() if value is not None and name != "event"}
        with self._lock:
            self._writer.write(new_line(self._now(), LEVELS.get(event, "info"), event, fields))
            self._writer.flush()

    def step_level(self) -> None:
        """Leave out lines of one level more (`LogWriter.step_level`)."""
        with self._lock:
            self._writer.step_level(self._now())
