"""Processes killed at work: nothing served is lost or billed twice, whoever dies (promises P1 and P2; figures R1 and R16)."""

import asyncio
import random
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from reliability import crashes, load
from reliability.bill_checks import check_bills, read_bills, read_truth
from reliability.load import Ask
from reliability.platforms import PRICES, fresh_postgres, serve
from reliability.processes import Start, tollway
from scripts import postgres

pytestmark = pytest.mark.system

KILLS = {"sqlite": 6, "postgres": 8}
"""Two of each victim. The figure takes a hundred."""

RUNS_MAX = 3
"""Runs until a kill strikes a request, which on a busy machine may be between two."""

DATABASES = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.mark.parametrize("database", DATABASES)
def test_nothing_is_lost_or_billed_twice(tmp_path: Path, database: str) -> None:
    for number in range(RUNS_MAX):
        seed = random.SystemRandom().randrange(1 << 32)
        print(f"seed {seed}")
        outcome = crashes.run(tmp_path / str(number), KILLS[database], database, seed)
        print(outcome.detail)
        assert not outcome.wrong, f"{len(outcome.wrong)} wrong, for example:\n" + "\n".join(outcome.wrong[:5])
        assert not outcome.differences
        assert set(outcome.detail["kills"].values()) == {2}
        assert outcome.counts["acknowledged changes"]
        if outcome.detail["bills"].get("gateway_crash"):
            return
    raise AssertionError("no kill struck a request: the test proved nothing")


@pytest.mark.parametrize("database", DATABASES)
def test_an_engine_that_dies_costs_at_most_what_it_generated(start: Start, tmp_path: Path, database: str) -> None:
    with ExitStack() as held:
        environment = postgres.application_environment(held.enter_context(fresh_postgres())) if database == "postgres" else {}
        platform, running = held.enter_context(serve(start, tmp_path, environment=environment))
        streams = [Ask("slow", "chat/completions", load.PREFIX * 3 + str(number), stream=True) for number in range(30)]
        whole = [Ask("slow", "chat/completions", load.PREFIX * 3 + str(number), stream=False) for number in range(10)]
        send = partial(load.send_all, url=platform.gateway_url, key=platform.tenant.api_key)

        def strike() -> None:
            platform.engine.discard()

        heard = asyncio.run(send([*streams, *whole], per_second=40, disturb=[(38, strike)]))
        broken = [each for each in heard if each.ended == "error"]
        assert len(broken) == len(heard), Counter(each.ended for each in heard)
        assert sum(each.tokens > 0 for each in broken) >= 20, "the engine died before it had said anything"
        assert {each.status for each in broken if each.tokens} == {200}
        assert {each.status for each in broken[len(streams) :]} == {502}
        platform.engine.start()
        after = asyncio.run(send([Ask("slow", "chat/completions", "Are you back?", stream=True) for _ in range(3)], per_second=10))
        assert [each.ended for each in after] == ["complete"] * 3
        attempts = read_truth(platform.truth_log)
        platform.wait_until_billed(len(attempts))
        assert running.stop() == 0
        verified = tollway("verify", "--data-dir", str(platform.directory), env=environment)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        bills = read_bills(platform.database_url)
        billed = check_bills(attempts, bills, [*heard, *after], PRICES)
        print(f"bills: {dict(billed)}")
        assert billed["upstream_error"] >= 20
        assert billed["completed"] == 3
        assert all(bills[each.request_id].generated >= each.tokens > 0 for each in broken if each.tokens and each.request_id)
