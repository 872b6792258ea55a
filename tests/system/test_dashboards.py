"""The dashboards of `deploy/dashboards`: every expression gives data at a real Prometheus that reads a running platform."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reliability.platforms import Platform, reserved_ports, serve
from reliability.processes import WAIT_SECONDS, Start
from scripts import dashboards
from tests.storage.counter_servers import counter_server, find_servers
from tollway.metric_table import CONTROL_METRICS, GATEWAY_METRICS, Kind

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "alerts.yaml"
EXPRESSIONS = sorted({query.expression for each in dashboards.DASHBOARDS for panel in each.panels for query in panel.queries})


def test_files_are_what_their_tables_render() -> None:
    files = {path.stem: path.read_text() for path in dashboards.DIRECTORY.glob("*.json")}
    assert files == {each.name: dashboards.render(each) for each in dashboards.DASHBOARDS}, "run make docs"


def test_expressions_name_metrics_and_labels_that_exist() -> None:
    labels: dict[str, set[str]] = {}
    for row in (*GATEWAY_METRICS, *CONTROL_METRICS):
        labels[row.exposed_name] = {*row.labels, "instance"}
        if row.kind is Kind.HISTOGRAM:
            labels[f"{row.name}_bucket"] = {*row.labels, "le", "instance"}
    for expression in EXPRESSIONS:
        named = re.findall(r"\b((?:tollway|gen_ai_server)_\w+)", expression)
        used = {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(", ")}
        used |= set(re.findall(r'[{,] ?(\w+)=?[=!~]+"', expression))
        assert named or "tollway:" in expression, expression
        assert named == [] or used <= set.union(*(labels[name] for name in named)), expression


@pytest.mark.system
def test_every_expression_gives_data_of_a_running_platform(start: Start, tmp_path: Path) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (Debian's package has its name)")
    with counter_server(next(iter(find_servers()))) as store:
        environment = {"TOLLWAY__GATEWAY__LIMITS__REDIS_URL": store.url, "TOLLWAY__CONTROL__PERIODS__CLOSE_AFTER_DAYS": "3"}
        with (
            serve(start, tmp_path, environment=environment) as (platform, running),
            prometheus(tmp_path / "prometheus", running.wait_for_file("addresses.json")) as client,
        ):
            missing = EXPRESSIONS
            deadline = time.monotonic() + WAIT_SECONDS
            while missing and time.monotonic() < deadline:
                send_requests(platform)
                missing = [expression for expression in missing if not query(client, expression)]
            assert not missing, "\n".join(missing)


def send_requests(platform: Platform) -> None:
    """Requests that end well, that fail, and one of control."""
    headers = {"authorization": f"Bearer {platform.tenant.api_key}"}
    with httpx2.Client(base_url=f"{platform.gateway_url}/v1", headers=headers, timeout=WAIT_SECONDS, trust_env=False) as client:
        for model in ("echo", "flaky", "unknown"):
            body = {"model": model, "messages": [{"role": "user", "content": "Count the coins."}], "stream": True}
            client.post("/chat/completions", json=body)
    with platform.admin() as http:
        assert http.get("/v1/organization/projects").status_code == 200


@contextmanager
def prometheus(scratch: Path, addresses: Mapping[str, str]) -> Iterator[httpx2.Client]:
    """A Prometheus that reads gateway and control once a second, with our rules; the client speaks to its API."""
    scratch.mkdir()
    (scratch / "rules.yaml").write_text(RULES.read_text())
    targets = ", ".join(addresses[name].partition("//")[2] for name in ("internal_url", "link_url"))
    (scratch / "prometheus.yaml").write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        "rule_files: [rules.yaml]\n"
        f"scrape_configs: [{{job_name: tollway, static_configs: [{{targets: [{targets}]}}]}}]\n"
    )
    with reserved_ports(1) as (port,), (scratch / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={scratch}/prometheus.yaml",
                f"--storage.tsdb.path={scratch}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_SECONDS, trust_env=False) as client:
                wait_until_ready(client, process, scratch / "log")
                yield client
        finally:
            process.terminate()
            process.wait(WAIT_SECONDS)


def wait_until_ready(client: httpx2.Client, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until it answers queries."""
    deadline = time.monotonic() + WAIT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if client.get("/-/ready").status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def query(client: httpx2.Client, expression: str) -> list[Any]:
    """The values of an expression now, with the variables of a dashboard filled in as Grafana fills them."""
    filled = re.sub(r"\$(model|deployment|gateway)\b", ".*", expression).replace("$__rate_interval", "1m")
    answer = client.get("/api/v1/query", params={"query": filled})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"]["result"])
