"""Channels to the gRPC ports of engines, one for each, opened when it is first asked.

A channel has one connection, which the library opens again by itself. Names are resolved here, so that no address is asked that no engine
may have; a channel that could not connect is left, and the name is resolved again. One that is left is closed once its calls have ended,
each of which has a deadline. Engines with TLS are held to the certificates that this system trusts, as by HTTP.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import grpc

from tollway.domain import faults
from tollway.domain.addresses import is_metadata
from tollway.domain.faults import Fault
from tollway.gateway.upstreams.upstream import Upstream

SERVICE = "/inference.GRPCInferenceService/"
RECONNECT_MS = 200
ADDRESSES_MAX = 8


class Place(NamedTuple):
    """The place at which an engine serves gRPC: with TLS or without, at host:port."""

    is_secure: bool
    target: str


class _Line:
    """A channel, and how many calls it carries."""

    __slots__ = ("calls", "channel", "is_left")

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.calls = 0
        self.is_left = False


class Channels:
    """The channels of one gateway. `answer_bytes_max`: of one message of an engine; `connect_seconds`: to resolve a name."""

    def __init__(self, answer_bytes_max: int, connect_seconds: float) -> None:
        self._connect_seconds = connect_seconds
        self._lines: dict[Place, _Line] = {}
        self._left: set[_Line] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._options: tuple[tuple[str, int | str], ...] = (
            ("grpc.max_receive_message_length", answer_bytes_max),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),  # engines are asked at their addresses, whatever this process's environment says
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS),
            ("grpc.min_reconnect_backoff_ms", RECONNECT_MS),
            ("grpc.max_reconnect_backoff_ms", 5 * RECONNECT_MS),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        )

    async def ask(self, upstream: Upstream, method: str, message: bytes, metadata: tuple[tuple[str, str], ...], seconds: float) -> bytes:
        """Return the answer to a call with one message and one answer. Raises grpc.aio.AioRpcError, or Fault upstream_unreachable."""
        line = await self._find(upstream)
        line.calls += 1
        try:
            answer: bytes = await line.channel.unary_unary(SERVICE + method)(message, timeout=seconds, metadata=metadata)
        finally:
            self._end_call(line)
        return answer

    async def open_stream(
        self, upstream: Upstream, method: str, message: bytes, metadata: tuple[tuple[str, str], ...], seconds: float
    ) -> "grpc.aio.UnaryStreamCall[bytes, bytes]":
        """Return a call with one message and a stream of answers. Raises Fault upstream_unreachable."""
        line = await self._find(upstream)
        call = line.channel.unary_stream(SERVICE + method)(message, timeout=seconds, metadata=metadata)
        line.calls += 1
        call.add_done_callback(lambda _: self._end_call(line))
        return call

    def forget(self, upstream: Upstream) -> None:
        """Leave the channel of an engine that could not be reached."""
        self._leave(find_place(upstream))

    def keep_only(self, places: Collection[Place]) -> None:
        """Leave the channels of engines that there are no more."""
        for place in self._lines.keys() - places:
            self._leave(place)

    async def close(self) -> None:
        """Close all, whatever they carry."""
        lines, self._lines, self._left = [*self._lines.values(), *self._left], {}, set()
        for line in lines:
            await line.channel.close()
        await asyncio.gather(*self._closing)

    def _leave(self, place: Place) -> None:
        line = self._lines.pop(place, None)
        if line is not None:
            line.is_left = True
            self._left.add(line)
            self._close_if_unused(line)

    def _end_call(self, line: _Line) -> None:
        line.calls -= 1
        self._close_if_unused(line)

    def _close_if_unused(self, line: _Line) -> None:
        if line.is_left and not line.calls and line in self._left:
            self._left.discard(line)
            closing = asyncio.get_running_loop().create_task(line.channel.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _find(self, upstream: Upstream) -> _Line:
        place = find_place(upstream)
        line = self._lines.get(place)
        if line is None:
            target = place.target
            address = await self._resolve(target)
            roots = await asyncio.to_thread(read_roots) if place.is_secure else None
            options = (*self._options, ("grpc.default_authority", target))
            line = self._lines.get(place)
            if line is None:
                if place.is_secure:
                    options = (*options, ("grpc.ssl_target_name_override", target.rpartition(":")[0].strip("[]")))
                    channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(roots), options)
                else:
                    channel = grpc.aio.insecure_channel(address, options)
                line = self._lines[place] = _Line(channel)
        return line

    async def _resolve(self, target: str) -> str:
        """Return the addresses of an engine as gRPC names them. Raises Fault upstream_unreachable."""
        host, _, port = target.rpartition(":")
        try:
            async with asyncio.timeout(self._connect_seconds):
                loop = asyncio.get_running_loop()
                found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except (OSError, TimeoutError, UnicodeError) as error:
            raise Fault(faults.UPSTREAM_CONNECT, detail=type(error).__name__) from None
        addresses = {ipaddress.ip_address(str(each[4][0]).partition("%")[0]) for each in found}
        if not addresses or any(map(is_metadata, addresses)):
            raise Fault(faults.UPSTREAM_CONNECT, detail="the name resolved to an address that is not allowed")
        version = min(each.version for each in addresses)
        kept = sorted(str(each) for each in addresses if each.version == version)[:ADDRESSES_MAX]
        return ",".join(f"{each}:{port}" if version == 4 else f"[{each}]:{port}" for each in kept).join((f"ipv{version}:", ""))


def find_place(upstream: Upstream) -> Place:
    """Return where an upstream serves gRPC."""
    return Place(urlsplit(upstream.deployment.base_url).scheme == "https", upstream.grpc_target)


def read_roots() -> bytes | None:
    """Return the certificates of the authorities that this system trusts, as PEM: of OpenSSL's file (`SSL_CERT_FILE`) and directory
    (`SSL_CERT_DIR`). None where there are none: then the library has its own. It reads files."""
    paths = ssl.get_default_verify_paths()
    found = [Path(paths.cafile)] if paths.cafile else []
    if paths.capath:  # each lies there under the hash of its name, as OpenSSL looks for it: eight digits and a number
        found += sorted(Path(paths.capath).glob("[0-9a-f]" * 8 + ".[0-9]*"))
    return b"\n".join(each.read_bytes() for each in found) or None
