"""A key of a running platform is rotated under load: no request fails with either secret during the grace, none succeeds after it."""

import asyncio
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import pytest

from reliability import load
from reliability.load import Ask
from reliability.platforms import Platform, apart, wait_until_served
from reliability.processes import tollway

pytestmark = pytest.mark.system

REQUESTS = 60
ASK = Ask("echo", "chat/completions", "A coin of silver", stream=True)


def send(platform: Platform, *secrets: str, count: int = REQUESTS) -> list[object]:
    """Send requests with these secrets in turn; return how each ended, or its status where it was refused."""

    async def send_each() -> list[object]:
        places = zip(range(count), cycle(secrets), strict=False)
        heard = await asyncio.gather(*(load.send(ASK, platform.gateway_url, secret) for _, secret in places))
        return [each.ended if each.status == 200 else each.status for each in heard]

    return asyncio.run(send_each())


def run(platform: Platform, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return tollway(*arguments, "--control-url", platform.control_url, "--key", platform.tenant.admin_key)


def test_42_key_is_rotated_under_load_without_a_failed_request(tmp_path: Path) -> None:
    with apart(tmp_path) as (platform, _), ThreadPoolExecutor(1) as background:
        keys = f"/v1/organization/projects/{platform.tenant.project_id}/api_keys"
        with platform.admin() as http:
            made = http.post(keys, json={"name": "rotating"}).json()
        old = made["value"]
        wait_until_served(platform.gateway_url, old)
        during = background.submit(send, platform, old)
        rotated = run(platform, "keys", "rotate", made["id"])
        assert rotated.returncode == 0, rotated.stderr
        new = rotated.stdout.strip()
        assert during.result() == ["complete"] * REQUESTS
        assert send(platform, old, new) == ["complete"] * REQUESTS
        refused = run(platform, "keys", "retire", made["id"])
        assert refused.returncode == 1 and "--force" in refused.stderr, "the old secret was used a moment ago"
        retired = run(platform, "keys", "retire", made["id"], "--force")
        assert retired.returncode == 0 and "not confirmed" not in retired.stderr, retired.stderr
        assert send(platform, old, new, count=10) == [401, "complete"] * 5
        assert not any(secret in path.read_text(errors="replace") for path in tmp_path.rglob("*.log") for secret in (old, new))
