"""Several gateways as real processes: with a server of shared counters they hold one limit; without one the second ends at its start."""

import json
import signal
from pathlib import Path

import pytest

from reliability import limit_races, platforms
from reliability.platforms import Part, apart, reserved_ports
from reliability.processes import WAIT_SECONDS
from tests.storage.counter_servers import counter_server, find_servers

pytestmark = pytest.mark.system


@pytest.mark.skipif("redis" not in find_servers(), reason="redis-server is not installed")
def test_four_gateways_with_redis_hold_one_limit_and_its_loss_stays_below_the_bound(tmp_path: Path) -> None:
    with counter_server() as server:
        races = limit_races.run(tmp_path, server, 40, seed=1)
    assert [race.wrong for race in races] == [()] * 3, races
    assert races[0].admitted == 40


def test_second_gateway_without_a_server_ends_with_a_text_unless_limits_per_gateway_are_accepted(tmp_path: Path) -> None:
    with apart(tmp_path) as (platform, parts), reserved_ports(2) as (public, internal):
        link = parts.control.arguments[parts.control.arguments.index("--link") + 1]
        kept = json.loads((platform.directory / "secrets.json").read_bytes())
        own = {"TOLLWAY_PEPPER": kept["peppers"]["1"], "TOLLWAY_VAULT_KEY": kept["vault_key"]}
        own["TOLLWAY_JOIN_TOKEN"] = platforms.make_join_token(platform)
        where = ("--listen", f"127.0.0.1:{public}", "--internal", f"127.0.0.1:{internal}", "--control-link-url", f"http://{link}")
        second = Part(("-m", "tollway", "gateway", "--data-dir", str(tmp_path / "second"), *where), tmp_path / "out", own)
        try:
            assert second.launch().wait(WAIT_SECONDS) == 1
            said = second.out.read_text()
            assert "another gateway runs" in said and "gateway.limits.redis_url" in said and "gateway.limits.per_gateway" in said
            second.environment = {**own, "TOLLWAY__GATEWAY__LIMITS__PER_GATEWAY": "true"}
            second.start()
            assert second.end(signal.SIGTERM) == 0
        finally:
            second.discard()
        assert parts.gateway.process is not None and parts.gateway.process.poll() is None
