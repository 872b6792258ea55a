"""The part of R18 that attacks control: connections and places are taken, and an operator still reads, revokes and asks if it is alive.

Each attack is made at the size at which it once stopped the control plane. While it lasts, an operator's call, the revocation of a gateway
and `/livez` are asked again and again, each on a connection of its own, as people and probes do.
"""

import http.client
import itertools
import json
import multiprocessing
import resource
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2

from reliability import priorities
from reliability.platforms import Platform
from reliability.processes import WAIT_SECONDS, list_descendants
from reliability.records import Line, record

ANSWER_SECONDS_MAX = 5.0
"""Longest time that an operator's call may take under attack: within it a person does not give up, and a probe is not repeated thrice."""
WAIT_RATIO_MAX = 1.5
"""Times that the median of an operator's calls may take under attack of what it takes alone, in the same run. Checked on a quiet machine
only (`--quiet`): with others at work the two halves of a run are not alike."""
ATTACK_SECONDS = 8.0
SLOW_POSTS, FOLLOWED_STREAMS, IDLE_CONNECTIONS, BUSY_CONNECTIONS = 260, 258, 1_005, 120
CPU_SECONDS_MIN = 0.05
"""CPU of a process below which no ratio is stated: the kernel counts in hundredths of a second."""
UNAUTHENTICATED_BODIES = 4_200
"""More than the connections of one listener (`serve.control.CONNECTIONS_MAX`)."""


@dataclass(frozen=True, slots=True)
class Control:
    """A control plane under attack: its addresses, and the keys of an operator, of a tenant and of a gateway."""

    public_url: str
    link_url: str
    operator_key: str
    admin_key: str
    node_key: str
    project_id: str

    def connect(self, url: str) -> socket.socket:
        """Open a connection to one of its listeners."""
        address = urlsplit(url)
        return socket.create_connection((address.hostname or "", address.port or 0), timeout=WAIT_SECONDS)

    def head(self, method: str, path: str, key: str, length: int = 0) -> bytes:
        """The head of a request."""
        lines = f"{method} {path} HTTP/1.1\r\nhost: control\r\nauthorization: Bearer {key}\r\n"
        return f"{lines}content-type: application/json\r\ncontent-length: {length}\r\n\r\n".encode()


Attack = Callable[[Control, ExitStack, Counter[str]], None]
"""Begins to attack control, with what ends it, and counts the answers that it gets."""


def measure(platform: Platform, gateway_pid: int, only: str, *, is_quiet: bool) -> list[Line]:
    """Take the lines of control whose names contain `only`, and keep them. `is_quiet`: the ratio of waits is checked too."""
    control = _find(platform, gateway_pid)
    return [_measure(control, name, attack, is_quiet=is_quiet) for name, attack in ATTACKS.items() if only in f"control: {name}"]


def compare_cpu(platform: Platform, gateway_pid: int) -> dict[str, float | None]:
    """Return the CPU of control as a multiple of the attacker's by the name of the attack, None where it used too little to tell. Nobody
    else asks meanwhile."""
    control = _find(platform, gateway_pid)
    pid = _find_process(gateway_pid)
    times: dict[str, float | None] = {}
    for name, attack in ATTACKS.items():
        before = read_cpu_seconds(pid)
        with _attacking(control, attack) as reports:
            report = reports.recv()
            spent = read_cpu_seconds(pid) - before
        times[f"control: {name}"] = round(spent / report.cpu_s, 1) if spent >= CPU_SECONDS_MIN else None
    return times


def _find_process(gateway_pid: int) -> int:
    """Return the process of control that has the same supervisor as the gateway."""
    parent = int(Path(f"/proc/{gateway_pid}/stat").read_text().rpartition(")")[2].split()[1])
    return next(each for each in list_descendants(parent) if b"\0control\0" in Path(f"/proc/{each}/cmdline").read_bytes())


def read_cpu_seconds(pid: int) -> float:
    """CPU that a process has used, with that of the children which it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / 100


def _find(platform: Platform, gateway_pid: int) -> Control:
    variables = dict(each.split(b"=", 1) for each in Path(f"/proc/{gateway_pid}/environ").read_bytes().split(b"\0") if b"=" in each)
    headers = {"authorization": f"Bearer {platform.platform_key}"}
    made = httpx2.post(
        f"{platform.control_url}/v1/platform/nodes", headers=headers, json={"name": "hostile"}, trust_env=False, timeout=WAIT_SECONDS
    )
    assert made.status_code == 200, made.text
    return Control(
        platform.control_url,
        variables[b"TOLLWAY__GATEWAY__CONTROL_LINK_URL"].decode(),
        platform.platform_key,
        platform.tenant.admin_key,
        made.json()["key"]["value"],
        platform.tenant.project_id,
    )


def _measure(control: Control, name: str, attack: Attack, *, is_quiet: bool) -> Line:
    began = time.time()
    with _asking(control) as alone:
        time.sleep(ATTACK_SECONDS / 4)
    with _attacking(control, attack) as reports, _asking(control) as waits:
        answers = reports.recv().answers
    slow = [f"{what} took {most:.1f} s" for what, most in _find_most(waits).items() if most > ANSWER_SECONDS_MAX]
    ratios = {
        what: round(statistics.median(waits[what]) / statistics.median(alone[what]), 2) for what in CALLS if waits[what] and alone[what]
    }
    if is_quiet:
        slow += [f"{what} took {ratio} times as long as alone" for what, ratio in ratios.items() if ratio > WAIT_RATIO_MAX]
    detail = {
        "answers": answers,
        "alone_ms": _describe(alone),
        "others_wait_ms": _describe(waits),
        "p50_times_alone": ratios,
        "wrong": slow + [f"no {what} was answered" for what, each in waits.items() if not each],
    }
    return record("R18", case=f"control: {name}", of="attacks", n=1, failures=int(bool(detail["wrong"])), began=began, detail=detail)


class Report(NamedTuple):
    """Result of an attack: its answers by status, and the seconds of CPU that it took."""

    answers: dict[str, int]
    cpu_s: float


@contextmanager
def _attacking(control: Control, attack: Attack) -> Iterator[Connection]:
    """Attack in a process of its own while the block runs, once the attack has begun. Its Report comes after ATTACK_SECONDS."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_attack, args=(control, attack, theirs), daemon=True)
    process.start()
    try:
        ours.recv()
        yield ours
    finally:
        process.kill()
        process.join()


def _attack(control: Control, attack: Attack, reports: Connection) -> None:
    """Attack for ATTACK_SECONDS, at low priority: report the begin, and at the end what it had."""
    priorities.lower()
    began = time.process_time()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    answers = Counter[str]()
    with ExitStack() as held:
        attack(control, held, answers)
        reports.send("begun")
        time.sleep(ATTACK_SECONDS)
    reports.send(Report(dict(answers), time.process_time() - began))
    time.sleep(WAIT_SECONDS)


# ---- The calls that must be answered ----------------------------------------------------------------------------------


def _call(control: Control, url: str, method: str, path: str, body: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Make one call of an operator on a connection of its own; return the answer's body. Raises OSError for any status but 200."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=WAIT_SECONDS)
    headers = {"authorization": f"Bearer {control.operator_key}", "content-type": "application/json"}
    try:
        connection.request(method, path, json.dumps(body or {}) if method == "POST" else None, headers)
        answer = connection.getresponse()
        content = answer.read()
    except http.client.HTTPException as error:
        raise OSError(f"{method} {path}: {error!r}") from None
    finally:
        connection.close()
    if answer.status != 200:
        raise OSError(f"{method} {path}: {answer.status} {content[:200]!r}")
    return dict(json.loads(content)) if content.startswith(b"{") else {}


def _read_organizations(control: Control) -> None:
    _call(control, control.public_url, "GET", "/v1/platform/organizations")


def _revoke_node(control: Control) -> None:
    """Register a gateway and revoke it with its key."""
    made = _call(control, control.public_url, "POST", "/v1/platform/nodes", {"name": "n"})
    _call(control, control.public_url, "DELETE", f"/v1/platform/nodes/{made['id']}")


def _check_alive(control: Control) -> None:
    _call(control, control.link_url, "GET", "/livez")


CALLS: Mapping[str, Callable[[Control], None]] = {
    "operator's call": _read_organizations,
    "revocation": _revoke_node,
    "/livez": _check_alive,
}


@contextmanager
def _asking(control: Control) -> Iterator[dict[str, list[float]]]:
    """Make each call again and again while the block runs; seconds of each by its name, WAIT_SECONDS for one that failed."""
    waits: dict[str, list[float]] = {name: [] for name in CALLS}
    is_over = threading.Event()

    def ask(name: str, call: Callable[[Control], None]) -> None:
        while not is_over.wait(0.1):
            began = time.monotonic()
            try:
                call(control)
                waits[name].append(time.monotonic() - began)
            except OSError as error:
                print(f"{name}: {error}", flush=True)
                waits[name].append(WAIT_SECONDS)

    threads = [threading.Thread(target=ask, args=each) for each in CALLS.items()]
    for thread in threads:
        thread.start()
    try:
        yield waits
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def _find_most(waits: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: max(each, default=WAIT_SECONDS) for name, each in waits.items()}


def _describe(waits: Mapping[str, list[float]]) -> dict[str, str]:
    return {name: f"p50 {statistics.median(each) * 1000:.0f}, most {max(each) * 1000:.0f}" for name, each in waits.items() if each}


# ---- The attacks ------------------------------------------------------------------------------------------------------


def hold_slow_posts(control: Control, held: ExitStack, answers: Counter[str]) -> None:
    """Begin 260 POSTs of one admin key whose bodies never end."""
    for _ in range(SLOW_POSTS):
        connection = held.enter_context(control.connect(control.public_url))
        connection.sendall(control.head("POST", "/v1/organization/projects", control.admin_key, 1000) + b"{")
        _count(connection, answers)


def hold_followed_streams(control: Control, held: ExitStack, answers: Counter[str]) -> None:
    """Follow the changes 258 times with the key of one gateway."""
    for _ in range(FOLLOWED_STREAMS):
        connection = held.enter_context(control.connect(control.link_url))
        connection.sendall(control.head("GET", "/v1/link/changes?since=0&follow=true", control.node_key))
        _count(connection, answers)


def hold_idle_connections(control: Control, held: ExitStack, answers: Counter[str]) -> None:
    """Leave 1,005 connections open, each with one byte of a second request after the answer to its first."""
    for _ in range(IDLE_CONNECTIONS):
        connection = held.enter_context(control.connect(control.public_url))
        connection.sendall(control.head("GET", "/v1/organization/projects", "tw_admin_unknown"))
        _count(connection, answers, WAIT_SECONDS)
        with suppress(OSError):
            connection.sendall(b"G")


def hold_unauthenticated_bodies(control: Control, held: ExitStack, answers: Counter[str]) -> None:
    """Begin 4,200 requests for a token, without any credential, whose bodies never end."""
    for _ in range(UNAUTHENTICATED_BODIES):
        with suppress(OSError):
            connection = held.enter_context(control.connect(control.public_url))
            connection.sendall(control.head("POST", "/v1/oauth/token", "x", 1000) + b"{")
            _count(connection, answers, 0.001)


def keep_asking(control: Control, held: ExitStack, answers: Counter[str]) -> None:
    """Ask for the usage of one tenant without a pause on 120 connections."""
    query = f"/v1/organization/usage/completions?start_time={int(time.time()) - 86_400}"
    _ask_without_pause(control, held, answers, lambda _: control.head("GET", query, control.admin_key))


def keep_asking_unknown(control: Control, held: ExitStack, answers: Counter[str]) -> None:
    """Ask without a pause on 120 connections, as somebody without a key: for pages, for what is not there, with keys that do not exist."""
    paths = ("/openapi.json", "/sign-in", "/nowhere", "/v1/organization/projects", "/.well-known/jwks.json")
    _ask_without_pause(
        control, held, answers, lambda number: control.head("GET", paths[number % len(paths)], f"tw_admin_{number % 1_000:040d}")
    )


def _ask_without_pause(control: Control, held: ExitStack, answers: Counter[str], find_message: Callable[[int], bytes]) -> None:
    """Send one message after the other on 120 connections, until `held` ends. `find_message`: the message of a number."""
    is_over = threading.Event()
    numbers = itertools.count()

    def ask() -> None:
        while not is_over.is_set():
            with suppress(OSError), control.connect(control.public_url) as connection:
                while not is_over.is_set():
                    connection.sendall(find_message(next(numbers)))
                    status = _count(connection, answers, WAIT_SECONDS)
                    if status in ("closed", "none"):
                        break

    threads = [threading.Thread(target=ask) for _ in range(BUSY_CONNECTIONS)]
    for thread in threads:
        thread.start()
        held.callback(thread.join)
    held.callback(is_over.set)


def _count(connection: socket.socket, answers: Counter[str], seconds: float = 0.01) -> str:
    """Count the status of the answer that came within so many seconds, if one did. What is no begin of an answer counts as its rest."""
    connection.settimeout(seconds)
    try:
        data = connection.recv(65536)
        status = data[9:12].decode() if data.startswith(b"HTTP/") else "rest" if data else "closed"
    except TimeoutError:
        status = "none"
    except OSError:
        status = "closed"
    answers[status] += 1
    return status


ATTACKS: Mapping[str, Attack] = {
    "260 slow bodies of one admin key": hold_slow_posts,
    "258 followed streams of one gateway": hold_followed_streams,
    "1,005 connections with a byte after their answer": hold_idle_connections,
    "120 connections of one tenant": keep_asking,
    "120 connections without a key": keep_asking_unknown,
    "4,200 slow bodies without a key": hold_unauthenticated_bodies,
}
