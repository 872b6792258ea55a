"""The evaluation of `deploy/compose`: its parts run here as processes, with the same commands and variables, and serve a request."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from reliability.platforms import fresh_postgres, reserved_ports
from reliability.processes import ENVIRONMENT, WAIT_SECONDS, tollway
from scripts import postgres
from tests.storage.counter_servers import counter_server, find_servers

DIRECTORY = Path(__file__).parents[2] / "deploy" / "compose"
COMPOSE: dict[str, Any] = yaml.safe_load((DIRECTORY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"] == "tollway"]
LISTENERS = {"engine": (8000,), "control": (8081, 8082), "gateway-1": (8080, 9090), "gateway-2": (8080, 9090)}
"""Ports of our services inside their containers."""


def test_every_listener_and_target_is_one_that_a_service_has() -> None:
    assert set(LISTENERS) == set(OURS) - {"setup"}
    for name in OURS:
        listening = {int(port) for port in re.findall(r"0\.0\.0\.0:(\d+)", " ".join(SERVICES[name]["command"]))}
        assert listening == set(LISTENERS.get(name, ())), name
    scraped = yaml.safe_load((DIRECTORY / "prometheus.yaml").read_text())["scrape_configs"][0]["static_configs"][0]["targets"]
    assert {(host, int(port)) for host, _, port in (target.partition(":") for target in scraped)} == {
        ("gateway-1", 9090),
        ("gateway-2", 9090),
        ("control", 8082),
    }


def test_containers_may_write_their_volumes_and_nothing_else() -> None:
    for name in OURS:
        service = SERVICES[name]
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
    volumes = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    assert {volume for volume in volumes if not volume.startswith(".")} == set(COMPOSE["volumes"])
    assert all((DIRECTORY / volume).exists() for volume in volumes if volume.startswith("."))


@pytest.mark.system
@pytest.mark.postgres
def test_parts_start_and_both_gateways_serve_one_tenant(tmp_path: Path) -> None:
    with started(tmp_path) as (addresses, run_setup):
        key = (tmp_path / "shared" / "api_key").read_text().strip()
        for name in ("gateway-1", "gateway-2"):
            answer = httpx2.post(
                f"http://{addresses[name, 8080]}/v1/chat/completions",
                headers={"authorization": f"Bearer {key}"},
                json={"model": "sim-echo", "messages": [{"role": "user", "content": "Count the coins."}]},
                timeout=WAIT_SECONDS,
                trust_env=False,
            )
            assert answer.status_code == 200, answer.text
        before = {path.name: path.read_bytes() for path in (tmp_path / "shared").iterdir()}
        run_setup()
        assert {path.name: path.read_bytes() for path in (tmp_path / "shared").iterdir()} == before, "setup made something twice"


@contextmanager
def started(scratch: Path) -> Iterator[tuple[Mapping[tuple[str, int], str], Any]]:
    """Run the services in the order that they wait for each other. Yields the addresses of listeners, and what runs `setup` again."""
    secrets = dict(line.split("=", 1) for line in tollway("secrets", "new").stdout.split())
    with ExitStack() as held:
        ports = iter(held.enter_context(reserved_ports(sum(map(len, LISTENERS.values())))))
        addresses = {(name, port): f"127.0.0.1:{next(ports)}" for name, inside in LISTENERS.items() for port in inside}
        store = held.enter_context(counter_server(next(iter(find_servers()))))
        places = {"redis://valkey:6379/0": store.url, "/platform.yaml": str(scratch / "platform.yaml")}
        databases = postgres.application_environment(held.enter_context(fresh_postgres()))
        places |= {SERVICES["control"]["environment"][variable]: url for variable, url in databases.items()}
        places |= {f"{name}:{port}": address for (name, port), address in addresses.items()}
        (scratch / "platform.yaml").write_text(fit((DIRECTORY / "platform.yaml").read_text(), places))

        def launch(name: str) -> "subprocess.Popen[bytes]":
            service = SERVICES[name]
            own = {f"0.0.0.0:{port}": addresses[name, port] for port in LISTENERS.get(name, ())}
            for volume in service.get("volumes", ()):
                source, _, target = volume.partition(":")
                if not source.startswith("."):
                    (scratch / source).mkdir(exist_ok=True)
                    own[target.removesuffix(":ro")] = str(scratch / source)
            words = [*service.get("entrypoint", ["tollway"]), *service["command"]]
            variables = {variable: fill(fit(value, places), secrets) for variable, value in service.get("environment", {}).items()}
            with (scratch / f"{name}.log").open("ab") as log:
                return subprocess.Popen(
                    [fit(word, places | own).replace("$$", "$") for word in words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**ENVIRONMENT, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", **variables},
                    cwd=scratch,
                )

        def run_setup() -> None:
            assert launch("setup").wait(WAIT_SECONDS) == 0, (scratch / "setup.log").read_text()

        def run(name: str, health: str) -> None:
            process = launch(name)
            held.callback(process.wait, WAIT_SECONDS)
            held.callback(process.kill)
            wait_until_healthy(process, health, scratch / f"{name}.log")

        run("engine", f"http://{addresses['engine', 8000]}/v1/models")
        run("control", f"http://{addresses['control', 8081]}/readyz")
        run_setup()
        for name in ("gateway-1", "gateway-2"):
            run(name, f"http://{addresses[name, 9090]}/readyz")
        yield addresses, run_setup


def fit(text: str, places: Mapping[str, str]) -> str:
    """The text with the addresses and paths of this test in place of those of containers; longer ones first."""
    for inside in sorted(places, key=len, reverse=True):
        text = text.replace(inside, places[inside])
    return text


def fill(text: str, secrets: Mapping[str, str]) -> str:
    """The text with the variables that Compose reads from `.env`; one that is missing is an error, as it is there."""
    return re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: secrets[found[1]], text)


def wait_until_healthy(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    """Wait until the address answers 200."""
    deadline = time.monotonic() + WAIT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx2.get(url, timeout=WAIT_SECONDS, trust_env=False).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.05)
    raise AssertionError(log.read_text())
