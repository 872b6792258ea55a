"""Sources of a fleet, followed: a watched file, DNS, and the EndpointSlices of Kubernetes.

Each source is asked indefinitely, by one coroutine that records in its state what it found. A source that fails is asked again after a
pause; what it said before stays until it says something else.
"""

import asyncio
import ipaddress
import os
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import dns.asyncresolver
import dns.exception
import dns.resolver
import httpx2
import msgspec

from tollway.domain.fleets import (
    EndpointSlices,
    FleetSource,
    KubernetesService,
    SourceState,
    check_addresses,
    format_base_url,
    read_targets,
    split_target,
)

FILE_SECONDS = 1.0
"""Interval between two looks at a file."""
FILE_BYTES_MAX = 1 << 20
DNS_SECONDS = 5.0
"""Interval between two questions to DNS, whatever the records say of their lifetime: engines come and go faster than most of those end."""
ANSWER_SECONDS = 5.0
WATCH_SECONDS = 60
"""Time after which the API server ends a watch, which is begun again then."""
WATCH_SILENCE_SECONDS = 90.0
EVENT_BYTES_MAX = 4 << 20
PAUSE_SECONDS = 1.0
PAUSE_SECONDS_MAX = 30.0
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Place where a pod finds the token and the certificate authority of its API server."""

Told = Callable[[], None]


async def follow(state: SourceState, told: Told) -> None:
    """Follow one source indefinitely. `told` is called after each report or failure."""
    source = state.source
    if source.file is not None:
        await _repeat(state, told, FILE_SECONDS, lambda: asyncio.to_thread(_read_file, source))
    elif source.kubernetes is not None:
        await _follow_kubernetes(state, source.kubernetes, told)
    else:
        await _repeat(state, told, DNS_SECONDS, lambda: _resolve(source))


async def _repeat(state: SourceState, told: Told, seconds: float, ask: Callable[[], Awaitable[list[str]]]) -> None:
    while True:
        try:
            state.report(await ask(), time.monotonic())
        except (OSError, ValueError, dns.exception.DNSException) as error:
            state.fail(str(error) or type(error).__name__)
        told()
        await asyncio.sleep(seconds)


def _read_file(source: FleetSource) -> list[str]:
    assert source.file is not None
    with open(source.file, "rb") as file:
        content = file.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        raise ValueError(f"{source.file} is longer than {FILE_BYTES_MAX} bytes")
    return read_targets(content, source.scheme)


async def _resolve(source: FleetSource) -> list[str]:
    """Return the addresses that DNS has. Raises ValueError, OSError or DNSException."""
    resolver = dns.asyncresolver.Resolver(configure=source.resolver is None)
    if source.resolver is not None:
        host, resolver.port = split_target(source.resolver)
        resolver.nameservers = [host]
    if source.dns is not None:
        host, port = split_target(source.dns)
        found = await _find_addresses(resolver, host)
        check_addresses(found)
        return [format_base_url(source.scheme, str(each), port) for each in found]
    assert source.srv is not None
    answer = await resolver.resolve(source.srv, "SRV", lifetime=ANSWER_SECONDS)
    targets = sorted((str(each.target).rstrip("."), int(each.port)) for each in answer)
    addresses = [each for host in {host for host, _ in targets} for each in await _find_addresses(resolver, host)]
    check_addresses(addresses)
    return [format_base_url(source.scheme, host, port) for host, port in targets]


async def _find_addresses(resolver: dns.asyncresolver.Resolver, host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Return all addresses of a name, in order. Raises DNSException if it has none."""
    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = []
    for type in ("A", "AAAA"):
        try:
            answer = await resolver.resolve(host, type, lifetime=ANSWER_SECONDS)
        except dns.resolver.NoAnswer:
            continue
        found += [ipaddress.ip_address(str(each.address)) for each in answer]
    if not found:
        raise ValueError(f"{host} has no address")
    return sorted(found, key=lambda each: (each.version, int(each)))


async def _follow_kubernetes(state: SourceState, service: KubernetesService, told: Told) -> None:
    pause = PAUSE_SECONDS
    while True:
        try:
            async for urls in _watch(service, state.source.scheme):
                state.report(urls, time.monotonic())
                told()
                pause = PAUSE_SECONDS
            await asyncio.sleep(PAUSE_SECONDS)
        except (OSError, ValueError, KeyError, TypeError, IndexError, httpx2.HTTPError, msgspec.MsgspecError) as error:
            state.fail(str(error) or type(error).__name__)
            told()
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS_MAX)


async def _watch(service: KubernetesService, scheme: str) -> Any:
    """Yield the addresses of a Service after the list of its slices and after each event, until a list has to be read again."""
    slices = EndpointSlices()
    path = f"/apis/discovery.k8s.io/v1/namespaces/{service.namespace}/endpointslices"
    selector = {"labelSelector": f"kubernetes.io/service-name={service.service}"}
    async with _open_api(service) as client:
        answer = await client.get(path, params=selector)
        answer.raise_for_status()
        listed = answer.json()
        slices.replace_all(listed["items"])
        version = str(listed["metadata"]["resourceVersion"])
        yield slices.list_base_urls(scheme, service.port)
        while True:
            query = {
                **selector,
                "watch": "1",
                "resourceVersion": version,
                "allowWatchBookmarks": "true",
                "timeoutSeconds": str(WATCH_SECONDS),
            }
            async with client.stream("GET", path, params=query) as stream:
                stream.raise_for_status()
                async for line in stream.aiter_lines():
                    if len(line) > EVENT_BYTES_MAX:
                        raise ValueError("an event of the watch is too long")
                    event = msgspec.json.decode(line)
                    type, slice = event["type"], event["object"]
                    if type == "ERROR":
                        return  # most often 410: the version is no longer kept, so the list is read again
                    version = str(slice["metadata"]["resourceVersion"])
                    if type != "BOOKMARK":
                        slices.apply(type, slice)
                        yield slices.list_base_urls(scheme, service.port)
            await asyncio.sleep(PAUSE_SECONDS)  # nothing is missed: the next watch begins at this version


def _open_api(service: KubernetesService) -> httpx2.AsyncClient:
    """Return a client of the API server. The token is read each time, because it is replaced while the pod runs."""
    headers: dict[str, str] = {}
    verify: ssl.SSLContext | bool = True
    if service.api is None:
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise ValueError("this is no pod of a cluster: name the API server by `api`")
        url = format_base_url("https", host, int(port))
        verify = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
        headers["authorization"] = f"Bearer {(ACCOUNT / 'token').read_text().strip()}"
    else:
        url = service.api
    timeout = httpx2.Timeout(ANSWER_SECONDS, read=WATCH_SILENCE_SECONDS)
    return httpx2.AsyncClient(base_url=url, headers=headers, verify=verify, timeout=timeout, trust_env=False)
