"""A gateway process like `tollway gateway` in which each background task has a defect that shows once. Run as a script.

Its first argument names the defects to plant, separated by commas, or "none".
"""

import sys
from collections.abc import Callable
from typing import Any

from small_spool import main

from tollway.gateway.budgets import Budgets
from tollway.gateway.edge import clock, server
from tollway.gateway.edge.client_connection import ClientConnection
from tollway.gateway.open_inference.server import Listener
from tollway.gateway.plane import Plane
from tollway.gateway.response_cache import ResponseCache
from tollway.gateway.status import StatusSource
from tollway.gateway.upstreams import cache_events, load_reports, probes
from tollway.link.batch_ends import BatchEndReporter
from tollway.link.content_log import ContentSender
from tollway.link.limit_use_reports import LimitReporter
from tollway.link.shipper import Shipper
from tollway.link.snapshot_follower import Follower
from tollway.serve import gateway
from tollway.serve.telemetry_export import TelemetryExport, TelemetryOptions
from tollway.serve.telemetry_messages import OtlpOptions
from tollway.spans import TraceBounds
from tollway.storage.answer_files import AnswerFiles
from tollway.telemetry import LogWriter


def fail_once(owner: Any, name: str) -> None:
    """Make the first call of `owner.name` raise an error that nothing expects; later calls do what they always did."""
    real: Callable[..., Any] = getattr(owner, name)
    has_failed = False

    def failing(*arguments: Any, **named: Any) -> Any:
        nonlocal has_failed
        if has_failed:
            return real(*arguments, **named)
        has_failed = True
        raise AttributeError("planted: prompt text that must not be logged")

    setattr(owner, name, failing)


DEFECTS: dict[str, tuple[Any, str]] = {
    "follower": (Plane, "apply"),
    "acknowledger": (Follower, "_persist"),
    "shipper": (Shipper, "_ship_all"),
    "clock": (clock, "formatdate"),
    "answer files": (AnswerFiles, "remove_expired"),
    "cached responses": (ResponseCache, "remove_expired"),
    "upstream probes": (probes, "run"),
    "load reports": (load_reports, "run"),
    "cache events": (cache_events, "run"),
    "free memory": (gateway, "return_free_pages"),
    "content log": (ContentSender, "run"),
    "telemetry": (TelemetryExport, "run"),
    "snapshot age": (gateway.AgeWatch, "run"),
    "leases": (Budgets, "next_request"),
    "batch ends": (BatchEndReporter, "report"),
    "limit_reports": (LimitReporter, "_collect"),
    "status": (StatusSource, "collect"),
    "connection": (ClientConnection, "tick"),
    "log": (LogWriter, "_encode_batch"),
    "announce": (gateway, "url_of"),
    "grpc server": (Listener, "_add_services"),
    "server": (server, "Edge"),
    "drain": (server, "_drain"),
}

if __name__ == "__main__":
    for defect in sys.argv.pop(1).split(","):
        if defect != "none":
            fail_once(*DEFECTS[defect])
    sys.exit(main(TelemetryOptions(OtlpOptions(endpoint="http://127.0.0.1:9"), TraceBounds())))
