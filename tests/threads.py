"""Threads beside a test whose failures are its own, at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tests.patience import CLIENT_SECONDS


@contextmanager
def beside(*works: Callable[[], object]) -> Iterator[None]:
    """Run each of `works` in a thread beside the block, and wait for their ends after it. An error of one is raised in the block at once,
    whatever it waits for then: by a signal, so a test calls this from the main thread."""
    lock, errors, is_over = threading.Lock(), list[BaseException](), False

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            with lock:
                errors.append(error)
                if not is_over and len(errors) == 1:
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def fail(_number: int, _frame: FrameType | None) -> None:
        raise errors[0]

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    before = signal.signal(signal.SIGUSR1, fail)
    try:
        for thread in threads:
            thread.start()
        yield
        for thread in threads:
            thread.join(CLIENT_SECONDS)
            assert not thread.is_alive(), "what ran beside the test did not end"
    finally:
        with lock:
            is_over = True
        signal.signal(signal.SIGUSR1, before)
