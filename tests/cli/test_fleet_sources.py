"""Sources of a fleet over the wire: a file, a DNS server, and an API server of Kubernetes that speaks its lists and watches."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import dns.message
import dns.rdatatype
import dns.rrset
import msgspec
import pytest

from tests.domain.test_fleets import slice
from tests.fakes import PATIENCE_SECONDS, until
from tollway.cli.catalog import fleet_sources
from tollway.cli.catalog.fleet_sources import follow
from tollway.domain.catalog import Engine
from tollway.domain.fleets import FleetSource, KubernetesService, SourceState


@asynccontextmanager
async def following(**fields: Any) -> AsyncIterator[SourceState]:
    """The state of a source that is followed."""
    state = SourceState(FleetSource(engine=Engine.VLLM, upstream_model="m", **fields))
    task = asyncio.create_task(follow(state, lambda: None))
    try:
        yield state
        assert not task.done(), task
    finally:
        task.cancel()


def has(state: SourceState, *urls: str) -> Callable[[], bool]:
    return lambda: not state.problem and sorted(state.list_base_urls()) == sorted(urls)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FILE_SECONDS", "DNS_SECONDS", "PAUSE_SECONDS", "PAUSE_SECONDS_MAX"):
        monkeypatch.setattr(fleet_sources, name, 0.01)


async def test_file_is_followed_and_one_that_breaks_keeps_the_last_good_list(tmp_path: Path) -> None:
    path = tmp_path / "targets.json"
    path.write_text('[{"targets": ["10.0.0.1:80"]}]')
    async with following(file=str(path)) as state:
        await until(has(state, "http://10.0.0.1:80"))
        path.write_text('[{"targets": ["10.0.0.1:80", "169.254.169.254:80"]}]')
        await until(lambda: "no engine has" in state.problem)
        assert state.list_base_urls() == ["http://10.0.0.1:80"]
        path.unlink()
        await until(lambda: "No such file" in state.problem)
        path.write_text('[{"targets": ["10.0.0.2:80"]}]')
        await until(has(state, "http://10.0.0.2:80"))


class Resolver(asyncio.DatagramProtocol):
    """A DNS server on loopback with records by name and type."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.silent = False

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        self.transport = transport
        try:
            yield f"127.0.0.1:{transport.get_extra_info('sockname')[1]}"
        finally:
            transport.close()

    def datagram_received(self, data: bytes, peer: Any) -> None:
        if self.silent:
            return
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, type = question.name.to_text().rstrip("."), dns.rdatatype.to_text(question.rdtype)
        answer = dns.message.make_response(query)
        if not any(known == name for known, _ in self.records):
            answer.set_rcode(3)
        elif found := self.records.get((name, type)):
            answer.answer.append(dns.rrset.from_text(question.name, 5, "IN", type, *found))
        self.transport.sendto(answer.to_wire(), peer)


async def test_addresses_of_a_name_are_followed_and_a_mixture_of_private_and_public_ones_is_refused() -> None:
    resolver = Resolver()
    resolver.records["engines.test", "A"] = ["10.0.0.1", "10.0.0.2"]
    resolver.records["engines.test", "AAAA"] = ["fd00::1"]
    async with resolver.listening() as address, following(dns="engines.test:8000", resolver=address) as state:
        three = ("http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://[fd00::1]:8000")
        await until(has(state, *three))
        for wrong, reason in ((["10.0.0.1", "1.1.1.1"], "private and public"), (["169.254.169.254"], "no engine has")):
            resolver.records["engines.test", "A"] = wrong
            await until(lambda reason=reason: reason in state.problem)  # type: ignore[misc]
            assert sorted(state.list_base_urls()) == sorted(three)
        resolver.records.clear()
        await until(lambda: "does not exist" in state.problem)
        resolver.records["engines.test", "A"] = ["10.0.0.1"]
        await until(lambda: not state.problem)


async def test_services_of_a_name_are_followed_by_their_targets_and_ports() -> None:
    resolver = Resolver()
    resolver.records["_http._tcp.engines.test", "SRV"] = ["0 5 8001 b.test.", "0 5 8000 a.test."]
    resolver.records["a.test", "A"] = ["10.0.0.1"]
    resolver.records["b.test", "AAAA"] = ["fd00::2"]
    async with resolver.listening() as address, following(srv="_http._tcp.engines.test", resolver=address, scheme="https") as state:
        await until(has(state, "https://a.test:8000", "https://b.test:8001"))
        resolver.records["b.test", "AAAA"] = ["2606:4700:4700::1111"]
        await until(lambda: "private and public" in state.problem)
        assert len(state.list_base_urls()) == 2


class ApiServer:
    """An API server of Kubernetes with the EndpointSlices of one Service: a list, and watches that tell what changes after it."""

    def __init__(self, *slices: dict[str, Any]) -> None:
        self.slices = list(slices)
        self.lists = self.watches = 0
        self.asked: list[str] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._connections: list[asyncio.StreamWriter] = []
        self.status = 200

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._connections.clear()
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            self.end_watches()
            for connection in self._connections:
                connection.close()
                await connection.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.append(writer)
        try:
            while True:
                target = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
                self.asked.append(target)
                if self.status != 200:
                    writer.write(b"HTTP/1.1 %d x\r\ncontent-length: 0\r\n\r\n" % self.status)
                elif "watch=1" in target:
                    self.watches += 1
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
                    self._writers.append(writer)
                else:
                    self.lists += 1
                    body = msgspec.json.encode({"items": self.slices, "metadata": {"resourceVersion": str(100 * self.lists)}})
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def tell(self, type: str, object: dict[str, Any]) -> None:
        """Send an event to whoever watches, in two pieces."""
        line = msgspec.json.encode({"type": type, "object": object}) + b"\n"
        for writer in self._writers:
            for piece in (line[:20], line[20:]):
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    def end_watches(self) -> None:
        """End the watches as their time does."""
        for writer in self._writers:
            writer.write(b"0\r\n\r\n")
        self._writers.clear()


def version(of: dict[str, Any], number: int) -> dict[str, Any]:
    return of | {"metadata": of["metadata"] | {"resourceVersion": str(number)}}


async def test_endpoint_slices_are_listed_and_watched_from_the_version_that_is_known() -> None:
    server = ApiServer(slice("a", "10.0.0.1"))
    async with server.listening() as url:
        service = KubernetesService(namespace="llm", service="vllm", port="http", api=url)
        async with following(kubernetes=service) as state:
            await until(has(state, "http://10.0.0.1:8000"))
            await until(lambda: server.watches == 1)
            server.tell("ADDED", version(slice("b", "10.0.0.2"), 101))
            await until(has(state, "http://10.0.0.1:8000", "http://10.0.0.2:8000"))
            server.tell("BOOKMARK", {"metadata": {"resourceVersion": "150"}})
            server.tell("DELETED", version(slice("a", "10.0.0.1"), 151))
            await until(has(state, "http://10.0.0.2:8000"))
            server.end_watches()
            await until(lambda: server.watches == 2)
            assert "resourceVersion=151" in server.asked[-1] and server.lists == 1
            assert "labelSelector=kubernetes.io%2Fservice-name%3Dvllm" in server.asked[0]
            assert server.asked[0].startswith("/apis/discovery.k8s.io/v1/namespaces/llm/endpointslices?")


async def test_list_is_read_again_when_the_watched_version_is_gone_and_a_refusal_keeps_the_fleet() -> None:
    server = ApiServer(slice("a", "10.0.0.1"))
    async with server.listening() as url, following(kubernetes=KubernetesService(namespace="llm", service="vllm", api=url)) as state:
        await until(lambda: server.watches == 1)
        server.slices = [slice("c", "10.0.0.3")]
        server.tell("ERROR", {"kind": "Status", "code": 410})
        await until(has(state, "http://10.0.0.3:8000"))
        await until(lambda: server.watches == 2)
        server.status = 403
        server.end_watches()
        await until(lambda: "403" in state.problem)
        assert state.list_base_urls() == ["http://10.0.0.3:8000"]
        server.status, server.slices = 200, []
        await until(lambda: "no deployment" in state.problem)
        assert state.list_base_urls() == ["http://10.0.0.3:8000"]


async def test_server_that_cannot_be_reached_is_a_problem_and_no_end() -> None:
    service = KubernetesService(namespace="llm", service="vllm", api="http://127.0.0.1:9")
    async with asyncio.timeout(PATIENCE_SECONDS), following(kubernetes=service) as state:
        await until(lambda: state.problem not in ("", "no report yet"))
    async with following(kubernetes=KubernetesService(namespace="llm", service="vllm")) as outside:
        await until(lambda: "no pod" in outside.problem)
