"""The rows of R24: faults of each part of a cluster as data, with the tools that inject them.

A strike is a generator: what comes before its `yield` injects the fault, what comes after it ends the fault. Where the fault is a process
that died, its end is the moment in which whoever supervises would start it again; nothing waits for it to be ready.
"""

import os
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from reliability.clusters import Cluster, execute
from reliability.fleet_faults import ORDERED
from reliability.platforms import Part
from reliability.processes import WAIT_SECONDS, list_descendants

Strike = Callable[[Cluster], Iterator[None]]

SLOW_PERIOD_SECONDS, SLOW_SHARE = 0.1, 0.8
"""A slow process is stopped for this share of each period."""

CLOCK = Path(__file__).with_name("stepped_clock.c")
"""A library that puts the clock of one process wrong."""

COLUMNS = ("PostgreSQL", "counters", "control", "gateway", "disk", "clock", "network", "engine")

REFUSED_BY_SPOOL = "503 metering_unavailable"
GONE = ("refused", "broken", "503 draining")
"""Ends of requests to a gateway whose process ends."""
CUT_OFF = ("200 upstream_*", "200 api_error", "50? upstream_*", "50? api_error")
"""Ends of requests that an engine had begun to answer, whole or as a stream, when it went."""
ENDED_BY_SPOOL = ("200 metering_unavailable", "200 overloaded_error")
"""Ends of streams whose record cannot be made durable, in OpenAI's words and in Anthropic's."""
NOT_STARTED = (*GONE, REFUSED_BY_SPOOL, "503 not_ready")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fault. `seconds`: how long it lasts. `answers`: ends of requests to the gateways in `struck` that are allowed beside success; all
    requests to the others succeed. `control`: statuses that operations at the REST API may be answered beside 200, 0 where the connection
    failed. `shows`: one of these that must occur, and `tells`: an end of a request that must, or the fault was none. `model`: the one that
    is asked for; None for the mix of all. `needs`: "isolation", "mounts" or a program without which the row cannot be tried.
    """

    part: str
    name: str
    strike: Strike
    seconds: float = 3.0
    struck: Sequence[int] = ()
    answers: Sequence[str] = ()
    control: Sequence[int] = ()
    shows: int | None = None
    tells: str | None = None
    model: str | None = None
    needs: Sequence[str] = ()


# ---- Processes --------------------------------------------------------------------------------------------------------


def _processes(part: Part) -> list[int]:
    assert part.process is not None
    return [part.process.pid, *list_descendants(part.process.pid)]


def _send(pids: Sequence[int], sign: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, sign)


def _frozen(find: Callable[[Cluster], Sequence[int]]) -> Strike:
    """Processes that are stopped: their sockets accept, and nothing comes back."""

    def strike(cluster: Cluster) -> Iterator[None]:
        pids = find(cluster)
        _send(pids, signal.SIGSTOP)
        yield
        _send(pids, signal.SIGCONT)

    return strike


def _slow(find: Callable[[Cluster], Sequence[int]]) -> Strike:
    """Processes that run for a fifth of the time."""

    def strike(cluster: Cluster) -> Iterator[None]:
        over = threading.Event()

        def alternate() -> None:
            while not over.wait(SLOW_PERIOD_SECONDS * (1 - SLOW_SHARE)):
                pids = find(cluster)
                _send(pids, signal.SIGSTOP)
                time.sleep(SLOW_PERIOD_SECONDS * SLOW_SHARE)
                _send(pids, signal.SIGCONT)

        alternating = threading.Thread(target=alternate, daemon=True)
        alternating.start()
        yield
        over.set()
        alternating.join(WAIT_SECONDS)
        _send(find(cluster), signal.SIGCONT)

    return strike


def _ended(find: Callable[[Cluster], Sequence[Part]], sign: signal.Signals) -> Strike:
    """Processes that end by a signal, and are started again at the end of the row."""

    def strike(cluster: Cluster) -> Iterator[None]:
        for part in find(cluster):
            assert part.process is not None
            part.process.send_signal(sign)
        yield
        for part in find(cluster):
            assert part.process is not None
            part.process.wait(WAIT_SECONDS)
            part.launch()

    return strike


def _ended_and_launched(find: Callable[[Cluster], Part]) -> Strike:
    """A process that is killed and started again at once, whether or not it can begin."""

    def strike(cluster: Cluster) -> Iterator[None]:
        part = find(cluster)
        part.end(signal.SIGKILL)
        part.launch()
        yield

    return strike


def _ended_again(find: Callable[[Cluster], Part], pauses: Sequence[float]) -> Strike:
    """A process that is killed, started, and killed in the middle of that, again and again."""

    def strike(cluster: Cluster) -> Iterator[None]:
        part = find(cluster)
        part.end(signal.SIGKILL)
        yield
        for pause in pauses:
            part.launch()
            time.sleep(pause)
            part.end(signal.SIGKILL)
        part.launch()

    return strike


def _in_turn(find: Callable[[Cluster], Sequence[Part]], sign: signal.Signals) -> Strike:
    """Processes that are replaced one after the other."""

    def strike(cluster: Cluster) -> Iterator[None]:
        for part in find(cluster):
            part.end(sign)
            part.start()
        yield

    return strike


def _both(first: Strike, second: Strike) -> Strike:
    """Two faults at once; the second one ends first."""

    def strike(cluster: Cluster) -> Iterator[None]:
        with contextmanager(first)(cluster), contextmanager(second)(cluster):
            yield

    return strike


def _again(action: Callable[[Cluster], None], pause_seconds: float) -> Strike:
    """An action that is repeated for as long as the row takes. What it cannot do is tried again."""

    def strike(cluster: Cluster) -> Iterator[None]:
        over = threading.Event()

        def repeat() -> None:
            while not over.is_set():
                with suppress(sa.exc.SQLAlchemyError, OSError):
                    action(cluster)
                over.wait(pause_seconds)

        repeating = threading.Thread(target=repeat, daemon=True)
        repeating.start()
        yield
        over.set()
        repeating.join(WAIT_SECONDS)

    return strike


# ---- PostgreSQL -------------------------------------------------------------------------------------------------------


def _start_database(cluster: Cluster) -> None:
    """Start it, as often as it takes: what is left of a killed server holds its shared memory for a moment."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            cluster.database.start()
            return
        except RuntimeError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def _kill_database(cluster: Cluster) -> Iterator[None]:
    cluster.database.kill()
    yield
    _start_database(cluster)


def _restart_database(cluster: Cluster) -> Iterator[None]:
    cluster.database.stop()
    _start_database(cluster)
    yield


def _kill_backend(cluster: Cluster) -> None:
    """Kill one process of the server: it ends all connections and recovers."""
    _send(list_descendants(cluster.database.pid)[-1:], signal.SIGKILL)


OURS = "FROM pg_stat_activity WHERE application_name = 'tollway'"


def _on_database(*statements: str) -> Callable[[Cluster], None]:
    return lambda cluster: execute(cluster.database.url, *statements)


def _altered(before: Sequence[str], after: Sequence[str]) -> Strike:
    """A setting of the server that is changed, and connections that begin anew under it."""

    def strike(cluster: Cluster) -> Iterator[None]:
        execute(cluster.database.url, *before, "SELECT pg_reload_conf()", f"SELECT pg_terminate_backend(pid) {OURS}")
        yield
        execute(cluster.database.url, *after, "SELECT pg_reload_conf()", f"SELECT pg_terminate_backend(pid) {OURS}")

    return strike


def _locked(*tables: str) -> Strike:
    """Tables that a transaction of somebody else holds."""

    def strike(cluster: Cluster) -> Iterator[None]:
        engine = sa.create_engine(cluster.database.url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            connection.execute(sa.text(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE"))
            yield

    return strike


# ---- Disks ------------------------------------------------------------------------------------------------------------


def _filled(find: Callable[[Cluster], Path]) -> Strike:
    """A file system without space, and without any that is freed meanwhile."""

    def fill(cluster: Cluster) -> None:
        with (find(cluster) / "filler").open("ab", buffering=0) as file:
            for size in (1 << 20, 4096):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def strike(cluster: Cluster) -> Iterator[None]:
        fill(cluster)
        with contextmanager(_again(fill, 0.05))(cluster):
            yield
        (find(cluster) / "filler").unlink()

    return strike


def _read_only(find: Callable[[Cluster], Path]) -> Strike:
    """A directory that can only be read from now on."""

    def strike(cluster: Cluster) -> Iterator[None]:
        place = str(find(cluster))
        subprocess.run(["mount", "--bind", place, place], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
        yield
        subprocess.run(["umount", "--lazy", place], check=True)

    return strike


def _failing_calls(number: int, calls: str, error: str) -> Strike:
    """System calls of a gateway that fail. It ends then, and is started again."""

    def strike(cluster: Cluster) -> Iterator[None]:
        part = cluster.gateways[number].part
        assert part.process is not None
        command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={calls}:error={error}"]
        tracer = subprocess.Popen([*command, "-p", str(part.process.pid)], stderr=subprocess.DEVNULL, start_new_session=True)
        yield
        tracer.kill()
        tracer.wait(WAIT_SECONDS)
        with suppress(subprocess.TimeoutExpired):
            part.process.wait(1.0)
        if part.process.poll() is not None:
            part.launch()

    return strike


# ---- Clocks -----------------------------------------------------------------------------------------------------------


def _stepped(find: Callable[[Cluster], Part], *steps: int) -> Strike:
    """A process whose clock makes steps: it begins with the right time. `steps`: by how many seconds it is off, a second each. Ends with a
    process that has the machine's clock again."""

    def strike(cluster: Cluster) -> Iterator[None]:
        part = find(cluster)
        library, file = part.directory / "stepped_clock.so", part.directory / "clock"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(CLOCK)], check=True)
        file.write_bytes(struct.pack("l", 0))
        kept = part.environment
        part.end(signal.SIGTERM)
        part.environment = {**kept, "LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(file)}
        part.start()
        for step in steps:
            _set_clock(file, step)
            time.sleep(1.0)
        yield
        _set_clock(file, 0)
        part.end(signal.SIGTERM)
        part.environment = kept
        part.launch()

    return strike


def _set_clock(file: Path, offset: int) -> None:
    """Change the number in place: the process has the file in its memory."""
    with file.open("r+b", buffering=0) as clock:
        clock.write(struct.pack("l", offset))


# ---- The network ------------------------------------------------------------------------------------------------------


def _filtered(rule: str) -> Strike:
    """Packets of our loopback that `rule` (of nftables; {database}, {counters}, {link}, {engine}, {gateway} are ports) concerns."""

    def strike(cluster: Cluster) -> Iterator[None]:
        ports = {
            "database": cluster.database_port,
            "counters": cluster.counters.port,
            "link": cluster.link_port,
            "engine": cluster.engines[0][1].rpartition(":")[2],
            "gateway": cluster.gateways[1].url.rpartition(":")[2],
        }
        rules = rule.format(**ports).replace("; ", "\n")
        table = f"table inet faults {{\nchain packets {{\ntype filter hook input priority 0\n{rules}\n}}\n}}"
        subprocess.run(["nft", "-f", "-"], input=table, text=True, check=True)
        yield
        subprocess.run(["nft", "delete", "table", "inet", "faults"], check=True)

    return strike


def _cut(port: str) -> Strike:
    return _filtered(f"tcp dport {{{port}}} drop; tcp sport {{{port}}} drop")


def _reset(port: str) -> Strike:
    return _filtered(f"tcp dport {{{port}}} reject with tcp reset")


def _losing(port: str, percent: int) -> Strike:
    return _filtered(f"tcp dport {{{port}}} numgen random mod 100 < {percent} drop")


# ---- The matrix -------------------------------------------------------------------------------------------------------


def _control(number: int) -> Callable[[Cluster], Part]:
    return lambda cluster: cluster.controls[number]


def _controls(cluster: Cluster) -> Sequence[Part]:
    return cluster.controls


def _gateway(number: int) -> Callable[[Cluster], Part]:
    return lambda cluster: cluster.gateways[number].part


def _gateways(cluster: Cluster) -> Sequence[Part]:
    return [gateway.part for gateway in cluster.gateways]


def _one(find: Callable[[Cluster], Part]) -> Callable[[Cluster], Sequence[Part]]:
    return lambda cluster: [find(cluster)]


def _of(find: Callable[[Cluster], Part]) -> Callable[[Cluster], Sequence[int]]:
    return lambda cluster: _processes(find(cluster))


def _of_all(find: Callable[[Cluster], Sequence[Part]]) -> Callable[[Cluster], Sequence[int]]:
    return lambda cluster: [pid for part in find(cluster) for pid in _processes(part)]


def _engine(cluster: Cluster) -> Part:
    return cluster.engines[0][0]


def _store_processes(cluster: Cluster) -> Sequence[int]:
    return [cluster.counters.pid]


def _command_store(*words: str) -> Callable[[Cluster], None]:
    def send(cluster: Cluster) -> None:
        cluster.counters.command(*words)

    return send


def _commanded(before: Sequence[Sequence[str]], after: Sequence[Sequence[str]] = ()) -> Strike:
    """Commands to the server of counters."""

    def strike(cluster: Cluster) -> Iterator[None]:
        for words in before:
            cluster.counters.command(*words)
        yield
        for words in after:
            cluster.counters.command(*words)

    return strike


def _kill_store(cluster: Cluster) -> Iterator[None]:
    cluster.counters.kill()
    yield
    cluster.counters.start()


def _restart_store(cluster: Cluster) -> Iterator[None]:
    cluster.counters.kill()
    cluster.counters.start()
    yield


def _kill_balancer(cluster: Cluster) -> Iterator[None]:
    cluster.balancer.kill()
    yield
    cluster.balancer.start()


def _balancer_processes(cluster: Cluster) -> Sequence[int]:
    assert cluster.balancer.process is not None
    return [cluster.balancer.process.pid]


UNAVAILABLE = (503,)
AWAY = (0, 502, 503, 504)
"""Statuses of operations while no control process answers the balancer."""
KILL, STOP, TERM = signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM


def _nothing(cluster: Cluster) -> Iterator[None]:
    yield


def _row(part: str, name: str, strike: Strike, **more: object) -> Row:
    return Row(part=part, name=name, strike=strike, **more)  # type: ignore[arg-type]


def model_of(fault: str) -> str:
    """Return the name of the model whose first deployment has this fault of `fleet_faults.ORDERED`."""
    return "engine-" + fault.replace(" ", "-")


MATRIX: Sequence[Row] = (
    # PostgreSQL: nobody's request notices, the REST API says that it is away
    _row("PostgreSQL", "killed, back after 3 s", _kill_database, control=UNAVAILABLE, shows=503),
    _row("PostgreSQL", "restarted", _restart_database, control=UNAVAILABLE),
    _row("PostgreSQL", "one of its processes killed: it recovers", _again(_kill_backend, 1.0), control=UNAVAILABLE),
    _row("PostgreSQL", "frozen for 3 s", _frozen(Cluster.list_database_processes), control=UNAVAILABLE),
    _row("PostgreSQL", "frozen for 12 s", _frozen(Cluster.list_database_processes), seconds=12.0, control=UNAVAILABLE),
    _row("PostgreSQL", "slow: it runs for a fifth of the time", _slow(Cluster.list_database_processes), control=UNAVAILABLE),
    _row(
        "PostgreSQL",
        "every connection ended, twice a second",
        _again(_on_database(f"SELECT pg_terminate_backend(pid) {OURS}"), 0.5),
        control=UNAVAILABLE,
    ),
    _row(
        "PostgreSQL",
        "every statement cancelled, ten times a second",
        _again(_on_database(f"SELECT pg_cancel_backend(pid) {OURS}"), 0.1),
        control=UNAVAILABLE,
    ),
    _row(
        "PostgreSQL",
        "read-only, as a replica or after a failover",
        _altered(["ALTER SYSTEM SET default_transaction_read_only = on"], ["ALTER SYSTEM RESET default_transaction_read_only"]),
        control=UNAVAILABLE,
        shows=503,
    ),
    _row(
        "PostgreSQL",
        "no connection left",
        _altered(["ALTER ROLE tollway_application CONNECTION LIMIT 0"], ["ALTER ROLE tollway_application CONNECTION LIMIT -1"]),
        control=UNAVAILABLE,
        shows=503,
    ),
    _row(
        "PostgreSQL",
        "logins refused",
        _altered(["ALTER ROLE tollway_application NOLOGIN"], ["ALTER ROLE tollway_application LOGIN"]),
        control=UNAVAILABLE,
        shows=503,
    ),
    _row("PostgreSQL", "tables of usage locked for 8 s", _locked("epochs", "usage_events"), seconds=8.0, control=UNAVAILABLE),
    _row("PostgreSQL", "table of keys locked for 8 s", _locked("api_keys"), seconds=8.0, control=UNAVAILABLE, shows=503),
    # The server of counters: nobody notices; gateways decide by their shares
    _row("counters", "killed, back empty after 3 s", _kill_store),
    _row("counters", "restarted at once, empty", _restart_store),
    _row("counters", "frozen for 3 s", _frozen(_store_processes)),
    _row("counters", "slow: it runs for a fifth of the time", _slow(_store_processes)),
    _row("counters", "emptied, twice a second", _again(_command_store("FLUSHALL"), 0.5)),
    _row(
        "counters",
        "out of memory",
        _commanded([["CONFIG", "SET", "maxmemory", "1"]], [["CONFIG", "SET", "maxmemory", "0"]]),
    ),
    _row("counters", "read-only after a failover", _commanded([["REPLICAOF", "127.0.0.1", "1"]], [["REPLICAOF", "NO", "ONE"]])),
    _row("counters", "paused for 2 s", _commanded([["CLIENT", "PAUSE", "2000", "ALL"]])),
    _row(
        "counters",
        "every connection ended, twice a second",
        _again(_command_store("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"), 0.5),
    ),
    _row("counters", "scripts forgotten, twice a second", _again(_command_store("SCRIPT", "FLUSH"), 0.5)),
    # Control
    _row("control", "first killed", _ended(_one(_control(0)), KILL), control=AWAY),
    _row("control", "second killed", _ended(_one(_control(1)), KILL), control=AWAY),
    _row("control", "both killed", _ended(_controls, KILL), control=AWAY, shows=503),
    _row("control", "first frozen", _frozen(_of(_control(0))), seconds=5.0, control=AWAY),
    _row("control", "second frozen", _frozen(_of(_control(1))), seconds=5.0, control=AWAY),
    _row("control", "both frozen", _frozen(_of_all(_controls)), control=AWAY),
    _row("control", "first slow: it runs for a fifth of the time", _slow(_of(_control(0))), control=AWAY),
    _row("control", "both slow", _slow(_of_all(_controls)), control=AWAY),
    _row("control", "replaced, one after the other", _in_turn(_controls, TERM), control=AWAY),
    _row("control", "stopped, and started after 3 s", _ended(_controls, TERM), control=AWAY),
    _row(
        "control", "one killed while the other is frozen", _both(_ended(_one(_control(0)), KILL), _frozen(_of(_control(1)))), control=AWAY
    ),
    _row("control", "balancer killed", _kill_balancer, control=AWAY, shows=0),
    _row("control", "balancer frozen", _frozen(_balancer_processes), control=AWAY),
    _row("control", "one killed while PostgreSQL is away", _both(_kill_database, _ended(_one(_control(0)), KILL)), control=AWAY),
    # Gateways
    _row("gateway", "killed", _ended(_one(_gateway(1)), KILL), struck=(1,), answers=NOT_STARTED),
    _row("gateway", "killed in the middle of its starts", _ended_again(_gateway(1), (0.3, 0.8)), struck=(1,), answers=NOT_STARTED),
    _row("gateway", "both killed", _ended(_gateways, KILL), struck=(0, 1), answers=NOT_STARTED),
    _row("gateway", "frozen for 3 s", _frozen(_of(_gateway(1))), struck=(1,), answers=("503 model_overloaded",)),
    _row("gateway", "slow: it runs for a fifth of the time", _slow(_of(_gateway(1))), struck=(1,), answers=("503 model_overloaded",)),
    _row("gateway", "stopped, and started after 3 s", _ended(_one(_gateway(1)), TERM), struck=(1,), answers=NOT_STARTED),
    _row(
        "gateway",
        "killed and started while control is away",
        _both(_ended(_controls, KILL), _in_turn(_one(_gateway(1)), KILL)),
        struck=(1,),
        answers=NOT_STARTED,
        control=AWAY,
    ),
    _row(
        "gateway",
        "killed and started while PostgreSQL is away",
        _both(_kill_database, _in_turn(_one(_gateway(1)), KILL)),
        struck=(1,),
        answers=NOT_STARTED,
        control=UNAVAILABLE,
    ),
    _row(
        "gateway",
        "killed and started while the server of counters is away",
        _both(_kill_store, _in_turn(_one(_gateway(1)), KILL)),
        struck=(1,),
        answers=NOT_STARTED,
    ),
    # Disks
    _row("disk", "PostgreSQL's is full", _filled(lambda cluster: cluster.database_directory), control=UNAVAILABLE, needs=("mounts",)),
    _row(
        "disk",
        "a gateway's is full",
        _filled(lambda cluster: cluster.gateways[1].directory),
        struck=(1,),
        answers=(REFUSED_BY_SPOOL,),
        needs=("mounts",),
    ),
    _row(
        "disk",
        "a gateway's is full when it starts",
        _both(_filled(lambda cluster: cluster.gateways[1].directory), _ended_and_launched(_gateway(1))),
        seconds=5.0,
        struck=(1,),
        answers=NOT_STARTED,  # or none: the new run may have the space of the segments that recovery gives back
        needs=("mounts",),
    ),
    _row(
        "disk",
        "a gateway's spool cannot be synced (EIO)",
        _failing_calls(1, "io_submit,fdatasync", "EIO"),
        struck=(1,),
        answers=(*NOT_STARTED, *ENDED_BY_SPOOL),
        tells="broken",
        needs=("strace",),
    ),
    _row("disk", "the archive's is read-only", _read_only(lambda cluster: cluster.archive), needs=("isolation",)),
    # Clocks: steps within the fifteen minutes beyond which records are set aside for an operator
    _row(
        "clock",
        "of a gateway goes 10 minutes ahead, and back",
        _stepped(_gateway(1), 600),
        struck=(1,),
        answers=NOT_STARTED,
        needs=("gcc",),
    ),
    _row(
        "clock",
        "of a gateway goes 10 minutes back, and ahead",
        _stepped(_gateway(1), -600),
        struck=(1,),
        answers=(*NOT_STARTED, "404 model_not_found", "404 not_found_error"),  # a model younger than that has no price yet
        needs=("gcc",),
    ),
    _row(
        "clock",
        "of a gateway makes steps of a minute",
        _stepped(_gateway(1), 60, -60, 120, -120),
        struck=(1,),
        answers=NOT_STARTED,
        needs=("gcc",),
    ),
    _row(
        "clock",
        "of a control process goes 10 minutes ahead, and back",
        _stepped(_control(1), 600),
        control=AWAY,
        needs=("gcc",),
    ),
    _row(
        "clock",
        "of a control process goes 10 minutes back, and ahead",
        _stepped(_control(1), -600),
        control=AWAY,
        needs=("gcc",),
    ),
    # The network
    _row("network", "PostgreSQL cut off for 3 s", _cut("database"), control=UNAVAILABLE, needs=("isolation",)),
    _row("network", "PostgreSQL cut off for 12 s", _cut("database"), seconds=12.0, control=UNAVAILABLE, needs=("isolation",)),
    _row("network", "PostgreSQL's connections reset", _reset("database"), control=UNAVAILABLE, shows=503, needs=("isolation",)),
    _row("network", "30 % of the packets to PostgreSQL lost", _losing("database", 30), control=UNAVAILABLE, needs=("isolation",)),
    _row("network", "counters cut off for 3 s", _cut("counters"), needs=("isolation",)),
    _row("network", "connections to counters reset", _reset("counters"), needs=("isolation",)),
    _row("network", "30 % of the packets to counters lost", _losing("counters", 30), needs=("isolation",)),
    _row("network", "link cut off for 3 s", _cut("link"), needs=("isolation",)),
    _row("network", "link cut off for 10 s", _cut("link"), seconds=10.0, needs=("isolation",)),
    _row("network", "connections of the link reset", _reset("link"), needs=("isolation",)),
    _row("network", "5 % of the packets of the link lost", _losing("link", 5), needs=("isolation",)),
    _row("network", "30 % of the packets of the link lost", _losing("link", 30), needs=("isolation",)),
    _row("network", "one engine cut off", _cut("engine"), struck=(0, 1), answers=CUT_OFF, needs=("isolation",)),
    _row("network", "connections to one engine reset", _reset("engine"), struck=(0, 1), answers=CUT_OFF, needs=("isolation",)),
    _row("network", "5 % of the packets to one engine lost", _losing("engine", 5), needs=("isolation",)),
    _row("network", "5 % of the packets to a gateway lost", _losing("gateway", 5), needs=("isolation",)),
    # Engines
    *(_row("engine", fault, _nothing, model=model_of(fault)) for fault in ORDERED),
    _row("engine", "killed", _ended(_one(_engine), KILL), struck=(0, 1), answers=CUT_OFF),
    _row("engine", "frozen for 7 s", _frozen(_of(_engine)), seconds=7.0, struck=(0, 1), answers=CUT_OFF),
    _row("engine", "stopped, and started after 3 s", _ended(_one(_engine), TERM), struck=(0, 1), answers=CUT_OFF),
    _row("engine", "slow: it runs for a fifth of the time", _slow(_of(_engine))),
)
