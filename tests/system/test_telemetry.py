"""Telemetry of a running platform: traces and metrics at a collector, requests without one, and the lines of all logs."""

import json
import re
import signal
from contextlib import ExitStack
from pathlib import Path

import httpx2
import openai
import pytest

from reliability.platforms import serve
from reliability.processes import WAIT_SECONDS, Start
from tests.collectors import http_collector, read_attributes
from tollway.telemetry import LEVELS

pytestmark = pytest.mark.system

TRACE, PARENT = "0123456789abcdef0123456789abcdef", "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
CONTENT = "Count the golden coins."


def test_traces_and_metrics_of_both_processes_reach_a_collector_whose_loss_no_client_notices(start: Start, tmp_path: Path) -> None:
    with ExitStack() as stack, ExitStack() as of_collector:
        collected = of_collector.enter_context(http_collector())
        telemetry = {"ENDPOINT": collected.url, "METRICS_SECONDS": "1", "TIMEOUT_SECONDS": "1", "SAMPLE_RATIO": "0"}
        environment = {f"TOLLWAY__TELEMETRY__{name}": value for name, value in telemetry.items()}
        platform, running = stack.enter_context(serve(start, tmp_path, environment=environment))
        key = platform.tenant.api_key
        client = stack.enter_context(openai.OpenAI(api_key=key, base_url=f"{platform.gateway_url}/v1", max_retries=0))

        def ask() -> None:
            answer = client.chat.completions.create(
                model="echo", messages=[{"role": "user", "content": CONTENT}], stream=True, extra_headers=HEADERS
            )
            assert list(answer)

        ask()
        with platform.admin() as http:
            assert http.get("/v1/organization/projects", headers=HEADERS).status_code == 200
        services = {"tollway-gateway", "tollway-control"}
        collected.wait_until(lambda: {name for name, _ in collected.metrics} == services)
        collected.wait_until(lambda: {"chat echo", "GET /v1/organization/projects"} <= {span.name for _, span in collected.spans})
        spans = [span for _, span in collected.spans if span.trace_id.hex() == TRACE]
        request = next(span for span in spans if (span.name, span.kind) == ("chat echo", 2))
        attempt = next(span for span in spans if span.parent_span_id == request.span_id)
        operation = next(span for span in spans if span.name == "GET /v1/organization/projects")
        assert {request.parent_span_id.hex(), operation.parent_span_id.hex()} == {PARENT}
        assert read_attributes(attempt.attributes)["gen_ai.provider.name"] == "sim"
        assert read_attributes(request.attributes)["http.response.status_code"] == 200
        statements = [span for span in spans if span.parent_span_id == operation.span_id]
        assert "SELECT projects" in {span.name for span in statements}
        assert {read_attributes(span.attributes)["db.system.name"] for span in statements} == {"sqlite"}
        text = str(collected.spans)
        assert CONTENT not in text and key not in text and platform.tenant.admin_key not in text
        awaited = {"gen_ai.server.request.duration", "tollway_control_requests", "tollway_control_epochs_lost"}
        collected.wait_until(lambda: awaited <= {metric.name for _, metric in collected.metrics})

        of_collector.close()
        internal_url = running.wait_for_file("addresses.json")["internal_url"]

        def count_dropped() -> float:
            ask()
            page = httpx2.get(f"{internal_url}/metrics", timeout=WAIT_SECONDS, trust_env=False).text
            found = re.search(r"^tollway_telemetry_spans_dropped_total (\S+)$", page, re.MULTILINE)
            assert found is not None
            return float(found[1])

        running.wait_until(count_dropped)

        def read_lines(name: str) -> list[dict[str, object]]:
            return [json.loads(line) for line in (running.directory / "logs" / name).read_bytes().splitlines()]

        running.process.send_signal(signal.SIGUSR1)
        for name in ("gateway.log", "control.log"):
            running.wait_until(lambda name=name: "log_level_changed" in {line["event"] for line in read_lines(name)})  # type: ignore[misc]
        for name in ("serve.log", "gateway.log", "control.log"):
            for line in read_lines(name):
                assert TIMESTAMP.fullmatch(str(line["ts"])) and line["level"] in LEVELS and line["event"], line
