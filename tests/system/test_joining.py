"""A gateway joins a platform by the commands that an operator runs: a join token, once, and the gateway registers itself."""

import json
import signal
from pathlib import Path

import pytest

from reliability.platforms import Part, apart, list_models, reserved_ports
from reliability.processes import tollway
from tests.control.harness import wait_until

pytestmark = pytest.mark.system


def test_gateway_joins_once_by_the_token_of_a_command_and_starts_again_without_it(tmp_path: Path) -> None:
    with apart(tmp_path) as (platform, parts), reserved_ports(2) as (public, internal):
        operator = {"TOLLWAY_CONTROL_URL": platform.control_url, "TOLLWAY_KEY": platform.platform_key}
        made = tollway("nodes", "token", "rack 7", env=operator)
        assert made.returncode == 0, made.stderr
        name, _, token = made.stdout.strip().partition("=")
        kept = json.loads((platform.directory / "secrets.json").read_bytes())
        secrets = {"TOLLWAY_PEPPER": kept["peppers"]["1"], "TOLLWAY_VAULT_KEY": kept["vault_key"]}
        secrets["TOLLWAY__GATEWAY__LIMITS__PER_GATEWAY"] = "true"
        link = parts.control.arguments[parts.control.arguments.index("--link") + 1]
        where = ("--listen", f"127.0.0.1:{public}", "--internal", f"127.0.0.1:{internal}", "--control-link-url", f"http://{link}")

        def gateway(directory: str, **environment: str) -> Part:
            arguments = ("-m", "tollway", "gateway", "--data-dir", str(tmp_path / directory), *where)
            return Part(arguments, tmp_path / f"{directory}-out", {**secrets, **environment})

        joined, again, other = gateway("joined", **{name: token}), gateway("joined"), gateway("other", **{name: token})
        try:
            joined.start()
            assert list_models(f"http://127.0.0.1:{public}", platform.tenant.api_key) == 200
            nodes = json.loads(tollway("nodes", "list", "--output", "json", env=operator).stdout)
            (node,) = (each for each in nodes if each["name"] == "rack 7")
            assert node["state"] == "active"
            assert json.loads(tollway("nodes", "tokens", "--output", "json", env=operator).stdout) == []
            assert joined.end(signal.SIGTERM) == 0
            again.start()
            assert again.end(signal.SIGTERM) == 0
            other.launch()
            wait_until(lambda: "join_refused" in other.out.read_text())  # a token that was used registers no second gateway
            assert len(json.loads(tollway("nodes", "list", "--output", "json", env=operator).stdout)) == len(nodes)
            assert token not in joined.out.read_text() + again.out.read_text() + other.out.read_text()
        finally:
            for part in (joined, again, other):
                part.discard()
