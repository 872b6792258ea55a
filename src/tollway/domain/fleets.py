"""Fleets: the deployments of a model as its sources report them, and what has to be added and archived.

A model whose sources are followed has the deployments that they report and no others. A report that cannot be true changes nothing: one
that is empty, that names an address which no engine has, or that mixes private and public addresses, as a resolver answers that somebody
else has a hand in.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from tollway.domain.addresses import Address, is_metadata
from tollway.domain.catalog import CacheIsolation, Engine

TARGETS_MAX = 1_000
"""Most deployments that one source may report."""

_TARGET = re.compile(r"(\[[0-9a-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?):([0-9]{1,5})")


class KubernetesService(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Service whose EndpointSlices are followed. `port`: the name of its port in them, empty for the only one. `api`: address of the API
    server; None for the one of the cluster that this process runs in."""

    namespace: str
    service: str
    port: str = ""
    api: str | None = None


class FleetSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A source of deployments, and the fields that each of them gets.

    Exactly one of `file` (path of a list of targets in the form of Prometheus's file_sd), `dns` (host:port, whose A and AAAA records are
    the engines), `srv` (name of SRV records) and `kubernetes`. `resolver`: host:port of the DNS server to ask; None for the system's.
    `credential`: ${VARIABLE} or file:PATH, never the secret itself.
    """

    engine: Engine
    upstream_model: str
    file: str | None = None
    dns: str | None = None
    srv: str | None = None
    kubernetes: KubernetesService | None = None
    resolver: str | None = None
    scheme: Literal["http", "https"] = "http"
    region: str | None = None
    tier: int = 0
    weight: int = 1
    credential: str | None = None
    cache_isolation: CacheIsolation = CacheIsolation.ENGINE
    test: bool = False
    priorities: bool = False
    relative_cost: int | None = None
    grpc_port: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError unless there is exactly one source that can be asked."""
        if sum(each is not None for each in (self.file, self.dns, self.srv, self.kubernetes)) != 1:
            raise ValueError("name one of file, dns, srv and kubernetes")
        for target in (self.dns, self.resolver):
            if target is not None:
                split_target(target)
        if self.dns is not None and self.scheme == "https":
            raise ValueError("addresses of dns have no name that a certificate could hold: use srv with https")


def split_target(text: str) -> tuple[str, int]:
    """Return host and port of `host:port`, an IPv6 address in brackets. Raises ValueError."""
    found = _TARGET.fullmatch(text)
    if found is None or not 0 < int(found[2]) < 65_536:
        raise ValueError(f"{text[:80]!r} is not host:port")
    return found[1].strip("[]"), int(found[2])


def format_base_url(scheme: str, host: str, port: int) -> str:
    """Return the address of a deployment."""
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class _TargetGroup(msgspec.Struct, frozen=True):
    targets: list[str]
    labels: dict[str, str] = {}


def read_targets(content: bytes, scheme: str) -> list[str]:
    """Return the addresses in a list of targets: JSON of groups with `targets`, as Prometheus's file_sd has them. Raises ValueError."""
    try:
        groups = msgspec.json.decode(content, type=list[_TargetGroup])
    except msgspec.DecodeError as error:
        raise ValueError(f"not a list of target groups: {error}") from None
    addresses: list[Address] = []
    urls: list[str] = []
    for target in (target for group in groups for target in group.targets):
        host, port = split_target(target)
        urls.append(format_base_url(scheme, host, port))
        try:
            addresses.append(ipaddress.ip_address(host))
        except ValueError:
            continue  # a name, whose address the gateway looks at when it connects
    check_addresses(addresses)
    return urls


def check_addresses(found: Iterable[Address]) -> None:
    """Raise ValueError if one of the addresses of a source is one that no engine has, or if they are private and public."""
    found = list(found)
    for address in found:
        if is_metadata(address):
            raise ValueError(f"{address} is an address that no engine has")
    if len({address.is_global for address in found}) > 1:
        raise ValueError("private and public addresses in one answer")


class EndpointSlices:
    """The EndpointSlices of one Service (Kubernetes API discovery.k8s.io/v1), kept by a list and the events of a watch."""

    def __init__(self) -> None:
        self._slices: dict[str, Mapping[str, Any]] = {}

    def replace_all(self, items: Iterable[Mapping[str, Any]]) -> None:
        """Take a whole list. Raises ValueError for one that is no list of slices."""
        self._slices = {_name_of(each): each for each in items}

    def apply(self, type: str, slice: Mapping[str, Any]) -> None:
        """Take one event of a watch. Raises ValueError for one that cannot be understood."""
        if type in ("ADDED", "MODIFIED"):
            self._slices[_name_of(slice)] = slice
        elif type == "DELETED":
            self._slices.pop(_name_of(slice), None)

    def list_base_urls(self, scheme: str, port: str) -> list[str]:
        """Return the addresses of the endpoints that are ready and do not terminate. Raises ValueError for slices without such a port."""
        urls: list[str] = []
        addresses: list[Address] = []
        for slice in self._slices.values():
            endpoints = slice.get("endpoints") or []
            ports = [each["port"] for each in slice.get("ports") or [] if not port or each.get("name") == port]
            if endpoints and len(ports) != 1:
                raise ValueError(f"no single port {port!r} in EndpointSlice {_name_of(slice)}")
            for endpoint in endpoints:
                conditions = endpoint.get("conditions") or {}
                if conditions.get("ready") is False or conditions.get("terminating") is True:
                    continue
                address = ipaddress.ip_address(endpoint["addresses"][0])
                addresses.append(address)
                urls.append(format_base_url(scheme, str(address), int(ports[0])))
        check_addresses(addresses)
        return urls


def _name_of(slice: Mapping[str, Any]) -> str:
    try:
        return str(slice["metadata"]["name"])
    except (KeyError, TypeError):
        raise ValueError("an EndpointSlice has no name") from None


class SourceState:
    """State of one source. `problem`: why its last report was not taken; empty if it was.

    An address that is missing from a report is kept for `grace_seconds`, because answers of DNS may be a part of many.
    """

    def __init__(self, source: FleetSource) -> None:
        self.source = source
        self.problem = "no report yet"
        self._grace_seconds = DNS_GRACE_SECONDS if source.dns is not None or source.srv is not None else 0.0
        self._seen_at: dict[str, float] = {}

    def report(self, base_urls: Iterable[str], now: float) -> None:
        """Take a report, at `now` seconds of a monotonic clock."""
        found = list(dict.fromkeys(base_urls))
        if not found:
            self.fail("the source reports no deployment at all")
        elif len(found) > TARGETS_MAX:
            self.fail(f"the source reports {len(found)} deployments, more than {TARGETS_MAX}")
        else:
            self.problem = ""
            self._seen_at |= dict.fromkeys(found, now)
            self._seen_at = {url: at for url, at in self._seen_at.items() if at == now or now - at < self._grace_seconds}

    def fail(self, problem: str) -> None:
        """Take that there is no report. What was reported before stays."""
        self.problem = problem

    def list_base_urls(self) -> list[str]:
        """Return the addresses that the source has now."""
        return list(self._seen_at)


DNS_GRACE_SECONDS = 30.0
"""Time for which an address stays that answers of DNS leave out."""


class FleetChange(msgspec.Struct, frozen=True):
    """Changes that make the deployments of a model those that its sources report: addresses to add, by their source, and ids to archive."""

    added: dict[str, FleetSource]
    archived: list[str]


def plan_fleet(states: Iterable[SourceState], deployed: Mapping[str, str]) -> FleetChange | None:
    """Return the change for a model with these sources. None while one of them has a problem: the last good fleet is kept then.

    `deployed`: ids of the model's deployments by their address. Fields of a deployment that is there are left as they are, so a weight of
    zero with which an operator drained one stays.
    """
    wanted: dict[str, FleetSource] = {}
    for state in states:
        if state.problem:
            return None
        for url in state.list_base_urls():
            wanted.setdefault(url, state.source)
    return FleetChange(
        {url: source for url, source in wanted.items() if url not in deployed}, [id for url, id in deployed.items() if url not in wanted]
    )
