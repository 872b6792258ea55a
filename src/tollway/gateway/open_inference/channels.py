"""Channels to the gRPC ports of engines, one for each, opened when it is first asked.

A channel has one connection, which the library opens again by itself. Names are resolved here, so that no address is asked that no engine
may have; a channel that could not connect is closed, and the name is resolved again.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

import grpc

from tollway.domain import faults
from tollway.domain.addresses import is_metadata
from tollway.domain.faults import Fault
from tollway.gateway.upstreams.upstream import Upstream

SERVICE = "/inference.GRPCInferenceService/"
RECONNECT_MS = 200
ADDRESSES_MAX = 8


class Channels:
    """The channels of one gateway. `answer_bytes_max`: of one message of an engine; `connect_seconds`: to resolve a name."""

    def __init__(self, answer_bytes_max: int, connect_seconds: float) -> None:
        self._connect_seconds = connect_seconds
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._options: tuple[tuple[str, int | str], ...] = (
            ("grpc.max_receive_message_length", answer_bytes_max),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_retries", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS),
            ("grpc.min_reconnect_backoff_ms", RECONNECT_MS),
            ("grpc.max_reconnect_backoff_ms", 5 * RECONNECT_MS),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        )

    async def ask(self, upstream: Upstream, method: str, message: bytes, metadata: tuple[tuple[str, str], ...], seconds: float) -> bytes:
        """Return the answer to a call with one message and one answer. Raises grpc.aio.AioRpcError, or Fault upstream_unreachable."""
        channel = await self._find(upstream)
        answer: bytes = await channel.unary_unary(SERVICE + method)(message, timeout=seconds, metadata=metadata)
        return answer

    async def open_stream(
        self, upstream: Upstream, method: str, message: bytes, metadata: tuple[tuple[str, str], ...], seconds: float
    ) -> "grpc.aio.UnaryStreamCall[bytes, bytes]":
        """Return a call with one message and a stream of answers. Raises Fault upstream_unreachable."""
        channel = await self._find(upstream)
        return channel.unary_stream(SERVICE + method)(message, timeout=seconds, metadata=metadata)

    def forget(self, upstream: Upstream) -> None:
        """Close the channel of an engine that could not be reached."""
        channel = self._channels.pop(upstream.grpc_target, None)
        if channel is not None:
            asyncio.get_running_loop().create_task(channel.close())

    def keep_only(self, targets: Collection[str]) -> None:
        """Close the channels of engines that there are no more, once their calls have ended."""
        for target in self._channels.keys() - targets:
            asyncio.get_running_loop().create_task(self._channels.pop(target).close(grace=None))

    async def close(self) -> None:
        """Close all."""
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()

    async def _find(self, upstream: Upstream) -> grpc.aio.Channel:
        target = upstream.grpc_target
        channel = self._channels.get(target)
        if channel is None:
            address = await self._resolve(target)
            is_secure = urlsplit(upstream.deployment.base_url).scheme == "https"
            options = (*self._options, ("grpc.default_authority", target))
            channel = self._channels.get(target)
            if channel is None:
                if is_secure:
                    options = (*options, ("grpc.ssl_target_name_override", target.rpartition(":")[0].strip("[]")))
                    channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(), options)
                else:
                    channel = grpc.aio.insecure_channel(address, options)
                self._channels[target] = channel
        return channel

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
