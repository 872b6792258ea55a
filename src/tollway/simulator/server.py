"""The life of the simulator: `serve` is all of it in one coroutine, `run` is the same as a process of its own."""

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
import uvloop

from tollway.simulator.connection import Connection
from tollway.simulator.endpoints import Simulator
from tollway.simulator.settings import SimulatorSettings

_BACKLOG = 4096  # thousands of clients may connect in the same instant; the kernel caps it at somaxconn


def run(settings: SimulatorSettings) -> int:
    """Serves until SIGTERM or SIGINT, drains, returns the exit status.

    When it listens, it prints one line: `{"event":"ready","url":"http://..."}`.
    """

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        gc.freeze()  # what was imported is never garbage
        ports: list[int] = []
        await serve(settings, ready=lambda url: _announce(url, ports), stop=stop, grpc_ready=ports.append)

    uvloop.run(main())
    return 0


async def serve(
    settings: SimulatorSettings,
    *,
    ready: Callable[[str], object],
    stop: asyncio.Event | None = None,
    grpc_ready: Callable[[int], object] = lambda port: None,
) -> None:
    """Serves until `stop` is set, then drains as vLLM does and returns. Cancelled, it hangs up on everybody.

    `ready` is called once, with the URL, when connections are accepted; before it `grpc_ready`, with the port of gRPC, if there is one.
    Raises OSError if it cannot listen or cannot write its log.
    """
    loop = asyncio.get_running_loop()
    lost: asyncio.Future[None] = loop.create_future()
    simulator = Simulator(settings, loop, lost)

    def connect() -> Connection:
        return Connection(simulator)

    sock = socket.socket(fileno=settings.fd) if settings.fd is not None else None
    try:
        if sock is not None:
            server = await loop.create_server(connect, sock=sock, backlog=_BACKLOG)
        else:
            server = await loop.create_server(connect, settings.host, settings.port, backlog=_BACKLOG)
    except BaseException:
        simulator.close()
        raise
    stopped = asyncio.ensure_future((stop or asyncio.Event()).wait())
    end_grpc: Callable[[], Coroutine[Any, Any, None]] | None = None
    try:
        if settings.grpc_listen is not None:
            from tollway.simulator import open_inference_grpc  # its library is loaded where it is wanted

            grpc_port, end_grpc = await open_inference_grpc.Listener(simulator).start(settings.grpc_listen)
            grpc_ready(grpc_port)
        host, port = server.sockets[0].getsockname()[:2]
        ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
        await asyncio.wait((stopped, lost), return_when=asyncio.FIRST_COMPLETED)
        if not lost.done():
            await simulator.drain()
        if lost.done():
            lost.result()  # without its log a simulator is worse than none
    finally:
        stopped.cancel()
        server.close()
        if end_grpc is not None:
            await end_grpc()
        simulator.close()


def _announce(url: str, grpc_ports: Sequence[int]) -> None:
    line: dict[str, object] = {"event": "ready", "url": url}
    if grpc_ports:
        line["grpc_port"] = grpc_ports[0]
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()
