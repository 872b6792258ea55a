"""Threads beside a test: their failures are its own, at once."""

import threading

import pytest

from tests.patience import CLIENT_SECONDS
from tests.threads import beside


def test_error_beside_a_test_ends_its_wait_at_once() -> None:
    waits, never, ended = threading.Event(), threading.Event(), list[str]()

    def fail() -> None:
        waits.wait(CLIENT_SECONDS)
        raise LookupError("beside")

    with pytest.raises(LookupError, match="beside"), beside(fail):
        waits.set()
        never.wait(CLIENT_SECONDS)
        pytest.fail("the wait went on")
    with beside(lambda: ended.append("one"), lambda: ended.append("other")):
        pass
    assert sorted(ended) == ["one", "other"]


def test_error_after_the_block_fails_the_test() -> None:
    is_over = threading.Event()

    def fail_later() -> None:
        is_over.wait(CLIENT_SECONDS)
        raise LookupError("late")

    with pytest.raises(LookupError, match="late"), beside(fail_later):
        is_over.set()
