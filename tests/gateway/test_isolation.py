"""Requests that fail keep their exceptions to themselves, in every form of the gateway."""

import asyncio
import sys
from collections.abc import Callable

from tests.gateway.harness import Memory, chat, message, plane, split_answers
from tollway.domain.faults import Fault

REQUESTS = 3


async def test_requests_that_wait_while_they_fail_leave_no_exception_with_the_callback_that_resumes_them() -> None:
    """The engine cannot be reached, and the FINAL of each request becomes durable while its fault is on the way to the client."""
    waiting: list[Callable[[Fault | None], None]] = []
    seen: list[object] = []
    with plane() as (made, sink, _):
        sink.final = lambda slot, final, done: waiting.append(done)  # type: ignore[method-assign]
        memory = Memory(made)
        connections = [memory.connect() for _ in range(REQUESTS)]
        for connection in connections:
            connection.feed(message(chat()))
        await memory.settle()
        assert len(waiting) == REQUESTS

        def resume() -> None:
            seen.append(sys.exc_info()[1])
            for done in waiting:
                done(None)
                seen.append(sys.exc_info()[1])

        for callback in (resume, lambda: seen.append(sys.exc_info()[1])):
            asyncio.get_running_loop().call_soon(callback)
            await memory.settle()
        assert seen == [None] * (REQUESTS + 2)
        assert [split_answers(connection.written)[0].status for connection in connections] == [502] * REQUESTS
