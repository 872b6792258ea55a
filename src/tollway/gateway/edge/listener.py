"""Connections that need something before their first request: a PROXY header, a TLS handshake, or both in this order.

The header is read from the bare socket, to the byte, before any transport exists: what follows belongs to TLS or to HTTP, whose
code knows nothing of it. Plain listeners do not come this way (`server.serve`), so it costs them nothing.

Bounds: `is_full` says whether there are too many connections, those in this state included; `opening_per_peer_max` of them per address
(0: no bound; trusted proxies have none); `opening_seconds` for the header, again for the handshake, and for TLS to close. What exceeds
them, or breaks them, is closed without an answer, because no protocol for one is agreed on yet.
"""

import asyncio
import errno
import socket
import ssl
from collections import Counter
from collections.abc import Callable

import msgspec

from tollway.gateway.edge import edge_policy
from tollway.gateway.edge.edge_policy import EdgePolicy
from tollway.wire import proxy

ACCEPTS_PER_TURN = 64
"""Connections taken before the loop does something else."""
PAUSE_SECONDS = 0.5
"""Without descriptors or memory the kernel would report the same connection over and over."""


class OpeningBounds(msgspec.Struct, frozen=True, kw_only=True):
    """See above."""

    opening_seconds: float
    opening_per_peer_max: int


class Listener:
    """Accepts from a listening socket, which other processes may hold too, until closed."""

    def __init__(
        self,
        listener: socket.socket,
        made: Callable[[str], asyncio.Protocol],
        refused: Callable[[], None],
        is_full: Callable[[int], bool],
        *,
        rules: EdgePolicy,
        tls: Callable[[], ssl.SSLContext] | None,
        bounds: OpeningBounds,
    ) -> None:
        """`made` gives the protocol of a connection from an address; `refused` is called for each that was closed unanswered. `is_full`
        returns whether one more is too many, given how many are opening. `tls` gives the context of a new connection."""
        self.opening: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._made = made
        self._refused = refused
        self._is_full = is_full
        self._rules = rules
        self._tls = tls
        self._bounds = bounds
        self._peers: Counter[str] = Counter()
        self._paused: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        self._resume()

    def close(self) -> None:
        """Accept nothing more and close this process's descriptor; the connections that are opening go on."""
        if self._paused is not None:
            self._paused.cancel()
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()

    def cancel(self) -> None:
        """Give up the connections that are still opening."""
        for task in self.opening:
            task.cancel()

    def _resume(self) -> None:
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                self._loop.remove_reader(self._listener.fileno())
                self._paused = self._loop.call_later(PAUSE_SECONDS, self._resume)
                return
            peer = address[0]
            most = self._bounds.opening_per_peer_max
            is_many = most and self._peers[peer] >= most and not edge_policy.is_trusted(self._rules, peer)
            if is_many or self._is_full(len(self.opening)):
                sock.close()
                self._refused()
                continue
            task = self._loop.create_task(self._open(sock, peer))
            self.opening.add(task)
            task.add_done_callback(self.opening.discard)

    async def _open(self, sock: socket.socket, address: str) -> None:
        self._peers[address] += 1
        seconds = self._bounds.opening_seconds
        tls_seconds = seconds if self._tls is not None else None
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer = address
            if self._rules.proxy_protocol and edge_policy.is_trusted(self._rules, address):
                async with asyncio.timeout(seconds):
                    peer = await self._read_source(sock) or address
            await self._loop.connect_accepted_socket(
                lambda: self._made(peer),
                sock,
                ssl=None if self._tls is None else self._tls(),
                ssl_handshake_timeout=tls_seconds,
                ssl_shutdown_timeout=tls_seconds,
            )
        except (OSError, TimeoutError, proxy.HeaderInvalid):  # a failed handshake is an OSError too
            sock.close()
            self._refused()
        except asyncio.CancelledError:
            sock.close()
            raise
        finally:
            self._peers[address] -= 1
            if not self._peers[address]:
                del self._peers[address]

    async def _read_source(self, sock: socket.socket) -> str | None:
        head = await self._read_exactly(sock, proxy.HEAD_BYTES)
        return proxy.find_source(head, await self._read_exactly(sock, proxy.read_rest_bytes(head)))

    async def _read_exactly(self, sock: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = await self._loop.sock_recv(sock, size - len(data))
            if not more:
                raise ConnectionError("closed inside the PROXY header")
            data += more
        return data
