"""The hammer in short: every behaviour of the hostile engine a few times, over connections that tenants share."""

import asyncio
import random
from pathlib import Path

import pytest

from reliability import hammer
from reliability.hammer import Client, Order, Tally
from reliability.hostile_engine import BEHAVIOURS

pytestmark = pytest.mark.system

REQUESTS = 900


def test_requests_of_tenants_beside_a_hostile_engine_get_their_own_answers_only(tmp_path: Path) -> None:
    tally, counts = hammer.run(tmp_path, REQUESTS, seed=1)
    assert not tally.foreign and not tally.wrong
    assert len(BEHAVIOURS) >= 30
    assert sum(tally.answers.values()) + tally.left > REQUESTS / 2
    assert counts.reused.value > REQUESTS / 20, "the requests shared no connections"


def _order(marker: str) -> Order:
    return Order(marker, "answer", "rerank", "steady", is_stream=False, padding=0, leaves_after_bytes=None)


def test_client_that_is_given_the_marker_of_another_request_notes_it() -> None:
    async def use(body: bytes) -> Tally:
        reader, tally = asyncio.StreamReader(), Tally()
        reader.feed_data(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        async with asyncio.timeout(None) as silence:
            assert await Client("h", 1, "k", tally)._read(reader, _order("t01-000001"), silence)
        return tally

    own, foreign, missing = (asyncio.run(use(body)) for body in (b"[[t01-000001]]", b"[[t01-000001]] [[t02-000001]]", b"nothing"))
    assert not own.foreign and not own.wrong
    assert len(foreign.foreign) == 1 and not foreign.wrong
    assert not missing.foreign and len(missing.wrong) == 1


def test_orders_of_one_seed_are_the_same_and_have_markers_of_their_own() -> None:
    first, again = (hammer._orders(3, 2, 500, random.Random(7)) for _ in range(2))
    assert first == again
    assert len({order.marker for order in first}) == 500
