"""kill -9 in the middle of the work: nothing served is lost or billed twice, whoever dies (promises P1 and P2; figure R1)."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from reliability import load
from reliability.judging import Heard, judge, read_bills, read_truth, wait_until_idle
from reliability.load import Ask
from reliability.platforms import PRICES, Platform, fresh_postgres, kill_child, list_crashes, serve
from reliability.running import Running, Start, tollway

pytestmark = pytest.mark.system

REQUESTS = 1000
REQUESTS_PER_SECOND = 120
KILLS = 3

DATABASES = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


def settle(platform: Platform, running: Running, heard: list[Heard]) -> Counter[str]:
    """Let everything be collected, stop the platform in order, verify its books, and judge its bills."""
    wait_until_idle(platform.truth_log)
    attempts = read_truth(platform.truth_log)
    platform.wait_until_billed(len(attempts))
    assert running.stop() == 0, running.stderr.read_text()
    platform.check_all_is_shipped()
    verified = tollway("verify", "--data-dir", str(platform.directory), env=dict(platform.environment))
    assert verified.returncode == 0, verified.stdout + verified.stderr
    return judge(attempts, read_bills(platform.database_url), heard, PRICES)


@pytest.mark.parametrize("victims", [("gateway",), ("control",), ("gateway", "control")], ids="+".join)
@pytest.mark.parametrize("database", DATABASES)
def test_nothing_is_lost_or_billed_twice(start: Start, tmp_path: Path, database: str, victims: tuple[str, ...]) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    moments = sorted(dice.randrange(100 + 300 * number, 300 + 300 * number) for number in range(KILLS))
    with ExitStack() as held:
        environment = {"TOLLWAY_DATABASE_URL": held.enter_context(fresh_postgres())} if database == "postgres" else {}
        platform, running = held.enter_context(serve(start, tmp_path, environment=environment))

        def strike() -> None:
            for victim in victims:
                assert kill_child(running.process.pid, victim), f"there is no {victim} to kill"

        disturb: list[tuple[int, Callable[[], None]]] = [(moment, strike) for moment in moments]
        asks = load.make_asks(REQUESTS, seed)
        sending = load.send_all(asks, platform.gateway_url, platform.tenant.api_key, per_second=REQUESTS_PER_SECOND, disturb=disturb)
        heard = asyncio.run(sending)
        billed = settle(platform, running, heard)
        ends = Counter(each.ended for each in heard)
        print(f"killed at {moments}; clients: {dict(ends)}; bills: {dict(billed)}")
        assert Counter(list_crashes(running)) == Counter(victims * KILLS)
        assert not ends["error"]
        if "gateway" in victims:
            assert any(each.ended == "broken" and each.tokens for each in heard), "no kill struck a stream: the test proved nothing"
            assert billed["gateway_crash"]
        else:
            assert not ends["broken"]
            assert ends["complete"] + ends["left"] == REQUESTS
        assert billed["client_cancelled"]
        assert billed.total() <= REQUESTS
        assert ends["complete"] <= billed["completed"] <= REQUESTS - billed["gateway_crash"] - billed["client_cancelled"]


@pytest.mark.parametrize("database", DATABASES)
def test_an_engine_that_dies_costs_at_most_what_it_generated(start: Start, tmp_path: Path, database: str) -> None:
    with ExitStack() as held:
        environment = {"TOLLWAY_DATABASE_URL": held.enter_context(fresh_postgres())} if database == "postgres" else {}
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
        billed = judge(attempts, bills, [*heard, *after], PRICES)
        print(f"bills: {dict(billed)}")
        assert billed["upstream_error"] >= 20
        assert billed["completed"] == 3
        assert all(bills[each.request_id].generated >= each.tokens > 0 for each in broken if each.tokens and each.request_id)
