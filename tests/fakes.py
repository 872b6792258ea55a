"""Stand-ins for what lies outside the data plane: the clock, the spool, the engine, the client's socket. Real classes with the
contracts of `gateway/ports.py`, not mocks: each keeps its side of the contract and complains when the plane breaks its own."""

import array
import asyncio
import hashlib
import itertools
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum

from tests.patience import PATIENCE_SECONDS
from tollway.domain import faults
from tollway.domain.billing_classes import Quantities
from tollway.domain.faults import Fault
from tollway.domain.usage import Admit, Final, decode_admit, decode_final
from tollway.gateway.ports import Flow
from tollway.wire.progress_slots import SLOT_WORDS

_drawn = itertools.count(1)


class Clock:
    """UTC microseconds that move only when told to; and random bits that are never the same twice in a run of tests."""

    def __init__(self, now_us: int = 1_795_000_000_000_000) -> None:
        self._now_us = now_us

    def now_us(self) -> int:
        return self._now_us

    def advance(self, seconds: float) -> None:
        self._now_us += int(seconds * 1e6)

    def random_bits(self, count: int) -> int:
        return int.from_bytes(hashlib.shake_128(b"%d" % next(_drawn)).digest(count // 8 + 1), "big") & ((1 << count) - 1)


class UsageSink:
    """A spool in memory. Counts what is owed, and fails the test that gives a FINAL twice or for a slot that is not taken."""

    SLOTS = 4096

    def __init__(self) -> None:
        self.progress = memoryview(array.array("Q", bytes(8 * SLOT_WORDS * self.SLOTS)))
        self.admits: list[Admit] = []
        self.finals: list[Final] = []
        self.checkpoints: list[Quantities] = []
        self.is_full = False
        self.is_broken = False
        self.durable: asyncio.Event | None = None
        """Event that, where set, holds FINALs back: they become durable only once it is."""
        self._free = list(range(self.SLOTS))
        self._taken: dict[int, Admit] = {}

    def admit(self, payload: bytes) -> int:
        if self.is_full:
            raise Fault(faults.SPOOL_UNAVAILABLE, detail="full")
        admit = decode_admit(payload)
        slot = self._free.pop()
        self._taken[slot] = admit
        self.admits.append(admit)
        self.progress[slot * SLOT_WORDS : (slot + 1) * SLOT_WORDS] = memoryview(array.array("Q", [0] * SLOT_WORDS))
        return slot

    def checkpoint(self, request_id: str, used: Quantities, retries: int) -> None:
        assert request_id in {admit.request_id for admit in self._taken.values()}
        self.checkpoints.append(used)

    def final(self, slot: int, payload: bytes, done: Callable[[Fault | None], None]) -> None:
        final = decode_final(payload)
        assert self._taken.pop(slot) == final.admit, "a FINAL for a slot that this request does not hold"
        self._free.append(slot)
        self.finals.append(final)
        if self.durable is None:
            self._tell(done)
        else:
            self._waiting = asyncio.create_task(self._wait(self.durable, done))

    async def _wait(self, durable: asyncio.Event, done: Callable[[Fault | None], None]) -> None:
        await durable.wait()
        self._tell(done)

    def _tell(self, done: Callable[[Fault | None], None]) -> None:
        done(Fault(faults.SPOOL_UNAVAILABLE, detail="broken") if self.is_broken else None)

    def is_writable(self) -> bool:
        return not self.is_full

    @property
    def owed(self) -> int:
        """ADMITs that have no FINAL yet."""
        return len(self._taken)

    async def settled(self, count: int = 1) -> Final:
        """The last FINAL, once there are `count` of them and none is owed."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.finals) < count or self.owed:
                await asyncio.sleep(0.001)
        assert len(self.finals) == len(self.admits) == count
        return self.finals[-1]


class Vault:
    """Seals nothing."""

    def unseal(self, sealed: bytes) -> str:
        return sealed.decode()


class Do(Enum):
    """Actions of an upstream's script beside writing bytes."""

    FIN = "close the connection"
    RST = "reset the connection"
    HOLD = "be silent until the other side leaves"
    GATE = "wait for `Upstream.gate`"


Step = bytes | Do
Script = Sequence[Step]


@dataclass
class Asked:
    """One request as the upstream got it. `left`: set once the gateway broke the connection before the script was over."""

    head: bytes
    body: bytes
    left: asyncio.Event = field(default_factory=asyncio.Event)


class Upstream:
    """An engine on loopback that answers with bytes: the n-th request plays the n-th script, all later ones the last. A script may be
    chosen by what was asked."""

    def __init__(self, *scripts: "Script | Callable[[Asked], Script]") -> None:
        self.scripts = scripts
        self.asked: list[Asked] = []
        self.connections = 0
        self.written = 0
        self.gate = asyncio.Event()
        self.url = ""
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self, tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator["Upstream"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=1 << 24, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}" if tls is None else f"https://localhost:{port}"
        try:
            yield self
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                length = int(lengths[0][15:]) if lengths else 0
                asked = Asked(head, await reader.readexactly(length))
                self.asked.append(asked)
                script = self.scripts[min(len(self.asked), len(self.scripts)) - 1]
                if callable(script):
                    script = script(asked)
                try:
                    if not await self._play(script, reader, writer):
                        return
                except ConnectionError:
                    asked.left.set()
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _play(self, script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        for step in script:
            match step:
                case bytes():
                    writer.write(step)
                    await writer.drain()
                    self.written += len(step)
                case Do.FIN:
                    writer.close()
                    return False
                case Do.RST:
                    reset(writer)
                    return False
                case Do.HOLD:
                    await reader.read(1)
                    raise ConnectionResetError
                case Do.GATE:
                    await self.gate.wait()
        return True


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN, after what was written has left."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Recorder:
    """The client's end of one exchange, as `ports.Client`: keeps what it is told, and fails the test that tells it nonsense."""

    def __init__(self) -> None:
        self.committed = False
        self.chunked = True
        self.gone = False
        self.status: int | None = None
        self.body = b""
        self.ended = False
        self.is_slow = False
        """True if every byte it is sent is one too many."""
        self.flow: Flow | None = None

    def answer(self, status: int, headers: bytes, body: bytes) -> None:
        assert not self.committed and not self.ended, "a second answer"
        self.committed = self.ended = True
        self.status, self.body = status, body

    def begin_stream(self, headers: bytes) -> None:
        assert not self.committed, "a second status line"
        self.committed = True
        self.status = 200

    def send(self, data: bytes) -> None:
        assert self.committed and not self.ended and data, "bytes outside a stream, or none: an empty chunk would end it"
        self.body += data
        if self.is_slow and self.flow is not None:
            self.flow.pause()

    def send_chunks(self, data: bytes) -> None:
        while data:
            stated, _, rest = data.partition(b"\r\n")
            size = int(stated, 16)
            assert rest[size : size + 2] == b"\r\n", "a chunk without its end"
            self.send(rest[:size])
            data = rest[size + 2 :]

    def end_stream(self, data: bytes) -> None:
        self.send(data)
        self.ended = True

    def break_off(self) -> None:
        assert self.committed and not self.ended, "nothing to break off"
        self.ended = True

    def throttle(self, fault: Fault, headers: Mapping[bytes, bytes]) -> Fault:
        return fault

    def attend(self, flow: Flow | None) -> None:
        self.flow = flow


class Transport(asyncio.Transport):
    """A socket in memory: what was written, and how it was closed."""

    def __init__(self, protocol: asyncio.Protocol, peer: str = "192.0.2.1") -> None:
        super().__init__()
        self.written = b""
        self.unsent_bytes = 0
        self.protocol = protocol
        self._is_reading = True
        self.eof_written = False
        self.aborted = False
        self._closing = False
        self._peer = peer
        protocol.connection_made(self)

    def feed(self, data: bytes) -> None:
        """Bytes from the client; none arrive once the connection is closed."""
        if not self._closing:
            assert self._is_reading, "bytes were fed to a paused socket"
            self.protocol.data_received(data)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.eof_written, "bytes after the end of the connection"
        if not self._closing:
            self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof_written = True

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.aborted = True
        self.close()

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True

    def is_reading(self) -> bool:
        return self._is_reading

    def get_extra_info(self, name: str, default: object = None) -> object:
        return (self._peer, 4711) if name == "peername" else default

    @property
    def is_over(self) -> bool:
        """True if the client will hear nothing more."""
        return self._closing or self.eof_written


async def until(condition: Callable[[], bool]) -> None:
    """Returns once the condition holds; fails if it never does."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.001)
