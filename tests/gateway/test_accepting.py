"""Connections that wait in the kernel's queue are accepted together, so that nobody waits a turn of the loop for each who came before."""

import asyncio
import socket
from contextlib import ExitStack
from typing import cast

from tollway.gateway.edge.accepting import ACCEPTS_PER_TURN, BatchAcceptor

WAITING = 4 * ACCEPTS_PER_TURN


class Echo(asyncio.Protocol):
    made = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        Echo.made += 1
        self.write = cast("asyncio.Transport", transport).write

    def data_received(self, data: bytes) -> None:
        self.write(data)


async def test_192_connections_that_wait_are_accepted_in_few_turns_of_the_loop() -> None:
    Echo.made = 0
    with socket.create_server(("127.0.0.1", 0), backlog=2 * WAITING) as listener, ExitStack() as opened:
        listener.setblocking(False)
        connections = [opened.enter_context(socket.create_connection(listener.getsockname())) for _ in range(WAITING)]
        server = await asyncio.get_running_loop().create_server(BatchAcceptor(listener, Echo).connect, sock=listener, backlog=2 * WAITING)
        turns = 0
        while Echo.made < WAITING and turns < WAITING:
            await asyncio.sleep(0)
            turns += 1
        assert Echo.made == WAITING
        assert turns <= WAITING // 8

        for number, connection in enumerate(connections):
            connection.sendall(b"%d" % number)
        for number, connection in enumerate(connections):
            connection.setblocking(False)
            answer = await asyncio.get_running_loop().sock_recv(connection, 100)
            assert answer == b"%d" % number
        server.close()


async def test_a_client_that_has_left_before_its_connection_is_taken_disturbs_nobody() -> None:
    Echo.made = 0
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        listener.setblocking(False)
        for _ in range(20):
            left = socket.create_connection(listener.getsockname())
            left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # its close resets the connection
            left.close()
        server = await asyncio.get_running_loop().create_server(BatchAcceptor(listener, Echo).connect, sock=listener, backlog=100)
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"here")
        assert await reader.readexactly(4) == b"here"
        writer.close()
        server.close()
