"""OpenTelemetry collectors on loopback that keep what they are sent: by HTTP and by gRPC, with the official messages of the protocol."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

from tests.fakes import PATIENCE_SECONDS


class Collected:
    """Everything that a collector was sent: spans and metrics, each with the name of its service; the requests, encoded; and the headers
    of the last one."""

    def __init__(self) -> None:
        self.url = ""
        self.spans: list[tuple[str, Any]] = []
        self.metrics: list[tuple[str, Any]] = []
        self.requests: list[bytes] = []
        self.headers: dict[str, str] = {}

    def take_traces(self, request: Any) -> None:
        self.requests.append(request.SerializeToString())
        for group in request.resource_spans:
            service = read_attributes(group.resource.attributes)["service.name"]
            self.spans += [(service, span) for scope in group.scope_spans for span in scope.spans]

    def take_metrics(self, request: Any) -> None:
        self.requests.append(request.SerializeToString())
        for group in request.resource_metrics:
            service = read_attributes(group.resource.attributes)["service.name"]
            self.metrics += [(service, metric) for scope in group.scope_metrics for metric in scope.metrics]

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition on what was collected holds."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, [(service, span.name) for service, span in self.spans]
            time.sleep(0.05)


def read_attributes(attributes: "list[KeyValue]") -> dict[str, Any]:
    """Return attributes of OTLP as values by name."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@contextmanager
def http_collector(port: int = 0) -> Iterator[Collected]:
    """A collector that speaks OTLP over HTTP."""
    collected = Collected()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collected.headers = dict(self.headers)
            if self.path == "/v1/traces":
                collected.take_traces(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
            else:
                assert self.path == "/v1/metrics"
                collected.take_metrics(metrics_service_pb2.ExportMetricsServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        collected.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield collected
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def grpc_collector() -> Iterator[Collected]:
    """A collector that speaks OTLP over gRPC."""
    collected = Collected()

    class Traces(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            collected.headers = {key: str(value) for key, value in context.invocation_metadata()}
            collected.take_traces(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            collected.take_metrics(request)
            return metrics_service_pb2.ExportMetricsServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)
    collected.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collected
    finally:
        server.stop(0).wait()


COLLECTORS = {"http/protobuf": http_collector, "grpc": grpc_collector}
"""Collectors by the protocol that they speak."""
