"""Plain connections: all that wait are accepted in one turn of the loop.

The loop itself takes one connection in each turn (libuv since 1.45). When somebody opens thousands, those who come after them wait for as
many turns, and under load a turn lasts a millisecond or more: honest requests waited for a second in the kernel's queue while the gateway
answered each that it had read within 50 ms (`python -m reliability R20`: their 99th percentile was 795 ms, and is 120 ms). So whenever the
loop has taken one connection, the others that wait are taken too. That is dearer for each of them, which has a task of its own, and costs
a connection that comes alone one `accept` that finds nothing.
"""

import asyncio
import socket
from collections.abc import Callable

ACCEPTS_PER_TURN = 64
"""Connections taken before the loop does something else."""


class BatchAcceptor:
    """Makes the protocol of each connection that the loop takes from a listening socket, and takes more of those that wait there."""

    def __init__(self, listener: socket.socket, made: Callable[[], asyncio.Protocol]) -> None:
        """`listener`: does not block; the loop accepts from it too. `made` gives the protocol of a connection."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._made = made
        self._opening: set[asyncio.Task[None]] = set()

    def connect(self) -> asyncio.Protocol:
        """Return the protocol of a connection that the loop has taken, after taking those that wait behind it."""
        for _ in range(ACCEPTS_PER_TURN - 1):
            try:
                connection, _ = self._listener.accept()
            except OSError:  # none waits, or there are no descriptors, with which the loop deals itself
                break
            task = self._loop.create_task(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        return self._made()

    async def _open(self, connection: socket.socket) -> None:
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(self._made, connection)
        except OSError:  # the client has left
            connection.close()
