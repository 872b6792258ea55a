"""R18: memory, CPU and time of others that unauthenticated clients or tenants take of a gateway with little effort.

A real gateway is attacked with raw sockets, one attack after the other. Each line has the CPU of the attacker and of the gateway, their
ratio, and the gateway's memory before, at its most, and after the attack has ended. An honest request is asked every tenth of a second
meanwhile, by a thread whose CPU does not count for the attacker.
"""

import multiprocessing
import socket
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from reliability import control_attacks, priorities
from reliability.control_attacks import CPU_SECONDS_MIN, read_cpu_seconds
from reliability.platforms import Platform, Tenant, supervised
from reliability.processes import WAIT_SECONDS, list_descendants
from reliability.records import Line, record

CPU_RATIO_MAX = 100.0
"""CPU of the gateway for each second of the attacker's: the line that Envoy draws for a defect of security."""
KEPT_MIB_MAX = 64.0
"""Memory that may stay with the gateway some seconds after an attack: the allocator keeps some of what was freed."""
SETTLE_SECONDS = 3.0
"""Time for connections to end after an attack, before the memory is read again."""

BODY_BYTES = 31_000_000
ANSWER_BYTES = 50_000_000


@dataclass(frozen=True, slots=True)
class Target:
    """A gateway under attack: its address, its process, and a key without limits and one of a request a minute. `engine_pid`: the process
    of the engine of endless answers, if there is one."""

    address: tuple[str, int]
    pid: int
    key: str
    poor_key: str
    engine_pid: int | None = None

    def connect(self) -> socket.socket:
        """Open a connection."""
        connection = socket.create_connection(self.address, timeout=WAIT_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def head(self, length: int | None, *, key: str | None = None, model_path: str = "chat/completions") -> bytes:
        """The head of a request; `length` None announces chunks."""
        framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
        lines = f"POST /v1/{model_path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key or self.key}\r\n"
        return f"{lines}content-type: application/json\r\n{framing}\r\n\r\n".encode()

    def read_cpu_seconds(self) -> float:
        """CPU that the gateway and its readers of large bodies have used."""
        return sum(read_cpu_seconds(pid) for pid in (self.pid, *list_descendants(self.pid)))

    def read_mib(self) -> float:
        """Resident memory of the gateway and its readers, in MiB."""
        pids = (self.pid, *list_descendants(self.pid))
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * 4096 / (1 << 20)


@dataclass(slots=True)
class Watch:
    """Observations during an attack: memory of the gateway, and how long honest requests took, in seconds."""

    mib_max: float = 0.0
    waits: list[float] = field(default_factory=list)
    failed: int = 0


@contextmanager
def watching(target: Target) -> Iterator[Watch]:
    """Ask an honest request every tenth of a second while the block runs, and note the memory."""
    watch, has_begun, is_over = Watch(), threading.Event(), threading.Event()

    def watch_it() -> None:
        with httpx2.Client(trust_env=False, timeout=WAIT_SECONDS) as http:
            while not is_over.wait(0.1):
                began = time.monotonic()
                try:
                    status = http.get(f"http://{target.address[0]}:{target.address[1]}/livez").status_code
                except httpx2.HTTPError:
                    status = 0
                watch.waits.append(time.monotonic() - began)
                watch.failed += status != 200
                has_begun.set()
                watch.mib_max = max(watch.mib_max, target.read_mib())

    thread = threading.Thread(target=watch_it)
    thread.start()
    has_begun.wait(WAIT_SECONDS)
    try:
        yield watch
    finally:
        is_over.set()
        thread.join()


Attack = Callable[[Target], Counter[str]]
"""Attacks a gateway; returns how often it got which answer."""


def send(connection: socket.socket, data: bytes, answers: Counter[str]) -> None:
    """Send as much of `data` as the gateway takes, then count its answer, if it has given one."""
    connection.settimeout(0.5)
    try:
        connection.sendall(data)
    except OSError:
        pass
    read_status(connection, answers)


def read_status(connection: socket.socket, answers: Counter[str]) -> None:
    """Count the status of the answer that the gateway has given, if any."""
    try:
        answers[connection.recv(65536)[9:12].decode() or "closed"] += 1
    except TimeoutError:
        answers["none"] += 1
    except OSError:
        answers["closed"] += 1


def hold_unfinished_bodies(target: Target) -> Counter[str]:
    """Hold 60 bodies of one key open that lack their last byte."""
    answers: Counter[str] = Counter()
    piece = bytes(1_000_000)
    with ExitStack() as opened:
        for _ in range(60):
            connection = opened.enter_context(target.connect())
            connection.sendall(target.head(BODY_BYTES + 1))
            connection.settimeout(5.0)
            try:
                for _ in range(BODY_BYTES // len(piece)):
                    connection.sendall(piece)
            except OSError:
                pass
            connection.settimeout(0.05)
            read_status(connection, answers)
    return answers


def abort_uploads(target: Target) -> Counter[str]:
    """Break 240 uploads off, each after 26 MB."""
    piece, answers = bytes(1_000_000), Counter[str]()
    for _ in range(240):
        with target.connect() as connection:
            connection.sendall(target.head(BODY_BYTES))
            try:
                for _ in range(26):
                    connection.sendall(piece)
            except OSError:
                answers["closed"] += 1
    return answers


def abandon_answers(target: Target) -> Counter[str]:
    """Ask for 60 answers of 50 MB, and leave before they are whole."""
    body = b'{"model":"large","messages":[{"role":"user","content":"a"}]}'
    with ExitStack() as opened:
        for _ in range(60):
            connection = opened.enter_context(target.connect())
            connection.sendall(target.head(len(body)) + body)
        time.sleep(2)
    return Counter()


def hold_small_bodies(target: Target) -> Counter[str]:
    """Hold 2,000 bodies of 64 KB open that lack their last byte, without a key."""
    answers: Counter[str] = Counter()
    message = target.head(65_000, key="nobody") + bytes(64_999)
    with ExitStack() as opened:
        connections = [opened.enter_context(target.connect()) for _ in range(2_000)]
        for connection in connections:
            connection.sendall(message)
        time.sleep(2)
        for connection in connections:
            connection.settimeout(0.001)
            read_status(connection, answers)
    return answers


PIPELINED = 16
"""Requests that a connection may have sent ahead (`gateway.http.pipelined_max`)."""


def pipeline(message: bytes) -> Attack:
    """Return an attack that sends a small request 10,000 times, as many at once as a connection may have sent ahead."""

    def attack(target: Target) -> Counter[str]:
        answers: Counter[str] = Counter()
        data = message.replace(b"KEY", target.key.encode()) * PIPELINED
        sent = 0
        while sent < 10_000:
            with target.connect() as connection, suppress(OSError):
                is_open = True
                while sent < 10_000 and is_open:
                    connection.sendall(data)
                    sent += PIPELINED
                    left = PIPELINED
                    while left > 0 and is_open:
                        received = connection.recv(1 << 16)
                        is_open = received != b""
                        left -= received.count(b"HTTP/1.1 ")
                answers["connections"] += 1
        answers["requests"] = sent
        return answers

    return attack


def repeat(count: int, body: bytes, *, poor: bool = False, path: str = "chat/completions") -> Attack:
    """Return an attack that sends a body so many times, each on a connection of its own."""

    def attack(target: Target) -> Counter[str]:
        answers: Counter[str] = Counter()
        message = target.head(len(body), key=target.poor_key if poor else None, model_path=path) + body
        for _ in range(count):
            with target.connect() as connection:
                connection.settimeout(10.0)
                try:
                    connection.sendall(message)
                except OSError:
                    pass
                read_status(connection, answers)
        return answers

    return attack


def send_chunks(chunk: bytes) -> Attack:
    """Return an attack that sends a megabyte of one kind of chunk, ten times."""

    def attack(target: Target) -> Counter[str]:
        answers: Counter[str] = Counter()
        message = target.head(None) + chunk * (1_000_000 // len(chunk))
        for _ in range(10):
            with target.connect() as connection:
                send(connection, message, answers)
        return answers

    return attack


def frame(opcode: int, content: bytes) -> bytes:
    """Return a frame of a WebSocket client (RFC 6455 section 5.2), masked with zeros. `opcode`: with the bit of a message's last frame."""
    return bytes((opcode, 0x80 | len(content))) + bytes(4) + content


def talk(first: bytes, more: bytes) -> Attack:
    """Return an attack that opens a realtime session and sends a frame, then a million times another one, for two seconds at most."""

    def attack(target: Target) -> Counter[str]:
        answers: Counter[str] = Counter()
        opening = (
            f"GET /v1/realtime?model=spoken HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {target.key}\r\nconnection: upgrade\r\n"
            "upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: a2tra2tra2tra2tra2traw==\r\n\r\n"
        )
        with target.connect() as connection, suppress(OSError):
            connection.sendall(opening.encode())
            read_status(connection, answers)
            connection.settimeout(2.0)
            connection.sendall(first + more * FRAMES)
        return answers

    return attack


FRAMES = 1_000_000
"""Frames that `talk` sends if the gateway reads them."""


def open_and_close(target: Target) -> Counter[str]:
    """Open 3,000 connections one after the other and close each at once."""
    for _ in range(3_000):
        target.connect().close()
    return Counter()


def guess_keys(target: Target) -> Counter[str]:
    """Send 3,000 requests with keys that do not exist, 16 at a time on kept connections."""
    answers: Counter[str] = Counter()
    body = b'{"model":"echo","messages":[]}'
    with ExitStack() as opened:
        connections = [opened.enter_context(target.connect()) for _ in range(16)]
        for number in range(3_000):
            connection = connections[number % 16]
            connection.sendall(target.head(len(body), key=f"tw_live_{number:040d}") + body)
            read_status(connection, answers)
    return answers


def _keys(count: int) -> bytes:
    return (
        b'{"model":"echo","messages":[{"role":"user","content":"a"}],"metadata":{' + b",".join(b'"k%d":1' % n for n in range(count)) + b"}}"
    )


ATTACKS: Mapping[str, Attack] = {
    "60 unfinished bodies of 31 MB": hold_unfinished_bodies,
    "240 aborted uploads of 26 MB": abort_uploads,
    "60 abandoned answers of 50 MB": abandon_answers,
    "490,000 keys, one request a minute": repeat(10, _keys(490_000), poor=True),
    "490,000 keys": repeat(10, _keys(490_000)),
    "23,900 keys": repeat(50, _keys(23_900)),
    "6,000 keys in less than 64 KiB": repeat(200, _keys(5_900)),
    "240,000 empty arrays": repeat(20, b'{"model":"echo","messages":[' + b"[]," * 240_000 + b"1]}"),
    "39,900 empty arrays": repeat(20, b'{"model":"echo","messages":[' + b"[]," * 39_900 + b"1]}"),
    "10,000 messages": repeat(50, b'{"model":"none","messages":[' + b",".join([b'{"role":"user","content":"a"}'] * 9_999) + b"]}"),
    "300,000 token ids": repeat(
        20, b'{"model":"none","input":[' + b",".join([b"[" + b",".join([b"7"] * 150) + b"]"] * 1_990) + b"]}", path="embeddings"
    ),
    "4 MB of text": repeat(20, b'{"model":"none","messages":[{"role":"user","content":"' + b"all the words, " * 270_000 + b'"}]}'),
    "chunks of one byte": send_chunks(b"1\r\n \r\n"),
    "chunks with extensions": send_chunks(b"1;" + b"e" * 4_000 + b"\r\n \r\n"),
    "3,000 connections": open_and_close,
    "2,000 unfinished bodies of 64 KB without a key": hold_small_bodies,
    "10,000 pipelined requests for nothing": pipeline(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n"),
    "10,000 pipelined requests without a key": pipeline(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    ),
    "10,000 pipelined requests that are refused": pipeline(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer KEY\r\n"
        b"content-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    ),
    "3,000 unknown keys": guess_keys,
    "realtime: a message in frames of one byte": talk(frame(0x01, b"a"), frame(0x00, b"a")),
    "realtime: pings": talk(b"", frame(0x89, b"")),
    "realtime: short messages": talk(b"", frame(0x81, b'{"type":"input_audio_buffer.clear"}')),
}


SENT_BY_ENGINES = frozenset({"60 abandoned answers of 50 MB"})
"""Attacks whose bytes an engine sends: its CPU counts with that of the client, whose request of 75 bytes makes it send them."""


def measure(only: str = "", *, is_quiet: bool = False) -> list[Line]:
    """Take the figure and keep it: a line for each attack whose name contains `only`. `is_quiet`: nothing else works on the machine, so
    waits under attack are compared with those alone."""
    with tempfile.TemporaryDirectory(prefix="tollway-attacks-") as scratch, attacked(Path(scratch)) as (platform, target):
        lines = [_measure(target, name) for name in ATTACKS if only in name]
        return lines + control_attacks.measure(platform, target.pid, only, is_quiet=is_quiet)


@dataclass(frozen=True, slots=True)
class Taken:
    """The costs of one attack. `cpu_times_client`: CPU of the gateway as a multiple of that of whoever sends, None where it used too little
    to tell."""

    client_cpu_s: float
    server_cpu_s: float
    cpu_times_client: float | None
    mib_before: float
    mib_after: float
    answers: Counter[str]
    watch: Watch


def take(target: Target, name: str) -> Taken:
    """Attack a gateway, and return what it cost."""
    before, server = target.read_mib(), target.read_cpu_seconds()
    engine_pid = target.engine_pid if name in SENT_BY_ENGINES else None
    engine = read_cpu_seconds(engine_pid) if engine_pid is not None else 0.0
    with watching(target) as watch:
        client = time.thread_time()
        answers = ATTACKS[name](target)
        client = time.thread_time() - client
        server = target.read_cpu_seconds() - server
        if engine_pid is not None:
            client += read_cpu_seconds(engine_pid) - engine
    time.sleep(SETTLE_SECONDS)
    ratio = round(server / client, 1) if server >= CPU_SECONDS_MIN else None
    return Taken(client, server, ratio, before, target.read_mib(), answers, watch)


def _measure(target: Target, name: str) -> Line:
    began, taken = time.time(), take(target, name)
    watch = taken.watch
    is_costly = (taken.cpu_times_client or 0.0) > CPU_RATIO_MAX
    is_wrong = is_costly or taken.mib_after - taken.mib_before > KEPT_MIB_MAX or watch.failed > 0
    detail = {
        "client_cpu_s": round(taken.client_cpu_s, 3),
        "server_cpu_s": round(taken.server_cpu_s, 2),
        "cpu_times_client": taken.cpu_times_client,
        "mib_before_most_after": [round(each) for each in (taken.mib_before, watch.mib_max, taken.mib_after)],
        "answers": dict(taken.answers),
        "others_wait_ms": {"p50": round(statistics.median(watch.waits) * 1000, 1), "most": round(max(watch.waits) * 1000, 1)},
    }
    return record("R18", case=name, of="attacks", n=1, failures=int(is_wrong), began=began, detail=detail)


@contextmanager
def attacked(scratch: Path) -> Iterator[tuple[Platform, Target]]:
    """A platform whose gateway is attacked, and the gateway, whose model `large` is served by an engine of endless answers."""
    with supervised(scratch) as (platform, serving), endless_engine() as (url, engine_pid):
        assert serving.process is not None
        target = replace(target_of(platform, platform.tenant, find_gateway(serving.process.pid)), engine_pid=engine_pid)
        serve_large(platform, url)
        serve_spoken(platform)
        while _ask(target, "large") == "404" or _ask(target, "echo", target.poor_key) == "401":
            time.sleep(0.1)
        yield platform, target


def find_gateway(pid: int) -> int:
    """Return the process id of the gateway among the descendants of `tollway serve`."""
    return next(each for each in list_descendants(pid) if b"\0gateway\0" in Path(f"/proc/{each}/cmdline").read_bytes())


def target_of(platform: Platform, tenant: Tenant, pid: int) -> Target:
    """Return the gateway as a tenant attacks it, who gets a second key of one request a minute."""
    address = urlsplit(platform.gateway_url)
    return Target((address.hostname or "", address.port or 0), pid, tenant.api_key, _make_poor_key(platform, tenant))


def _ask(target: Target, model: str, key: str | None = None) -> str:
    """Status of a request that is refused at once if the model and the key are known."""
    body = b'{"model":"%b","messages":[],"rank":1}' % model.encode()
    answers: Counter[str] = Counter()
    with target.connect() as connection:
        connection.sendall(target.head(len(body), key=key) + body)
        read_status(connection, answers)
    return next(iter(answers))


def _make_poor_key(platform: Platform, tenant: Tenant) -> str:
    path = f"/v1/organization/projects/{tenant.project_id}/api_keys"
    headers = {"authorization": f"Bearer {tenant.admin_key}"}
    with httpx2.Client(base_url=platform.control_url, headers=headers, timeout=WAIT_SECONDS, trust_env=False) as http:
        return str(http.post(path, json={"name": "poor", "limits": {"requests_per_minute": 1}}).json()["value"])


def serve_large(platform: Platform, url: str) -> None:
    """Serve the model `large` from the engine at `url`."""
    with _as_operator(platform) as http:
        _serve(http, "large", "chat/completions", url, "large")


def serve_spoken(platform: Platform) -> None:
    """Serve the model `spoken`, for realtime sessions, from the engine of the model `echo`."""
    with _as_operator(platform) as http:
        (echo,) = http.get("/deployments", params={"model": "echo"}).json()["data"]
        _serve(http, "spoken", "realtime", echo["base_url"], echo["upstream_model"])


def _as_operator(platform: Platform) -> httpx2.Client:
    headers = {"authorization": f"Bearer {platform.platform_key}"}
    return httpx2.Client(base_url=f"{platform.control_url}/v1/platform", headers=headers, timeout=WAIT_SECONDS, trust_env=False)


def _serve(http: httpx2.Client, model: str, endpoint: str, url: str, upstream_model: str) -> None:
    for path, body in (
        ("models", {"name": model, "endpoints": [endpoint]}),
        ("prices", {"model": model, "currency": "EUR", "input": "1", "output": "1"}),
        (f"models/{model}/publish", None),
        ("deployments", {"model": model, "base_url": url, "engine": "sim", "upstream_model": upstream_model}),
    ):
        answer = http.post(f"/{path}", json=body)
        assert answer.status_code == 200, answer.text


@contextmanager
def endless_engine() -> Iterator[tuple[str, int]]:
    """URL of an engine whose answers lack their last byte, and the id of its process."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        process = multiprocessing.get_context("fork").Process(target=_answer_endlessly, args=(listener,), daemon=True)
        process.start()
        assert process.pid is not None
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", process.pid
        finally:
            process.kill()
            process.join()


def _answer_endlessly(listener: socket.socket) -> None:
    priorities.lower()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % ANSWER_BYTES

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(65536)
                connection.sendall(head + bytes(ANSWER_BYTES - 1))
                connection.recv(1)
            except OSError:
                pass

    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
