"""Machine under the benchmark: tools, a place for each process, and CPU and memory accounts from /proc.

Why these accounts. Wall time on a shared machine measures the neighbours. The time that a process tree spent on a CPU
is counted by the scheduler in nanoseconds (/proc/PID/task/TID/schedstat) and moves far less. It includes the kernel's
work in the process' system calls, and on loopback also the delivery to the peer; it does not include kernel threads.

Why these places. The target has CPU 0 for itself. Mock and load share CPU 1 under SCHED_FIFO, because two ordinary
processes that wake each other there would preempt each other, which shows as milliseconds of latency that no proxy
caused. Where the machine refuses a privilege, the benchmark goes on without it and the run's header says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

NATIVE = Path(__file__).parent / "native"
START_SECONDS_MAX = 120.0  # LiteLLM imports for half a minute on a busy machine
STOP_SECONDS_MAX = 5.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h

_libc = ctypes.CDLL(None, use_errno=True)
_cpus = sorted(os.sched_getaffinity(0))
TARGET_CPU = _cpus[0]
LOAD_CPU = _cpus[1] if len(_cpus) > 1 else _cpus[0]


class Unavailable(Exception):
    """Something that a figure needs is not on this machine; the text says what, and how to get it."""


# ---- tools


def find_tool(name: str) -> str | None:
    """Path of a program, also in the sbin directories that an ordinary user's PATH leaves out."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def get_tool(name: str, package: str) -> str:
    """Path of a program, installed with apt when it is missing and we may. Raises `Unavailable`."""
    if path := find_tool(name):
        return path
    if os.geteuid() == 0 and find_tool("apt-get"):
        print(f"installing {package} (apt)", flush=True)
        # SYSTEMD_OFFLINE: the package must not start a service of its own on port 80.
        env = dict(os.environ, DEBIAN_FRONTEND="noninteractive", SYSTEMD_OFFLINE="1")
        for command in (["apt-get", "-q", "update"], ["apt-get", "-qy", "install", "--no-install-recommends", package]):
            subprocess.run(command, env=env, check=False, stdout=subprocess.DEVNULL, timeout=600)
        if path := find_tool(name):
            return path
    raise Unavailable(f"{name} is missing (Debian package {package})")


def build_native(directory: Path) -> tuple[Path, Path]:
    """Compiles the mock upstream and the load generator; their paths in that order. Raises `Unavailable`."""
    compiler = get_tool("gcc", "build-essential")
    built = []
    for name in ("mock", "lg"):
        built.append(directory / name)
        command = [compiler, "-O2", "-Wall", "-o", str(built[-1]), str(NATIVE / f"{name}.c")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise Unavailable(f"{' '.join(command)} failed:\n{done.stderr}")
    return built[0], built[1]


# ---- processes


def take_place(cpu: int, realtime_priority: int) -> None:
    """Moves the calling process to a CPU; with a priority > 0 also to SCHED_FIFO. Quietly less where not permitted."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {cpu})
    with contextlib.suppress(OSError):
        policy = os.SCHED_FIFO if realtime_priority else os.SCHED_OTHER
        os.sched_setscheduler(0, policy, os.sched_param(realtime_priority))


def launch(
    command: Sequence[str],
    *,
    cpu: int,
    realtime_priority: int = 0,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    directory: Path | None = None,
) -> subprocess.Popen[str]:
    """Starts a process in its own session on a CPU; stdout is a pipe unless there is a log. It dies with the
    benchmark.
    """

    def prepare() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        take_place(cpu, realtime_priority)

    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("ab")) if log else subprocess.PIPE
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT if log else None,
            env={**os.environ, **(env or {})},
            cwd=directory,
            start_new_session=True,
            preexec_fn=prepare,
            text=True,
        )
    if cpu == TARGET_CPU:
        # The session is also the scheduler's group: weigh it up against whatever else runs on this CPU.
        with contextlib.suppress(OSError):
            Path(f"/proc/{process.pid}/autogroup").write_text("-12")
    return process


def start(command: Sequence[str], *, port: int, log: Path, env: Mapping[str, str] | None = None) -> int:
    """Starts a server in its log's directory and waits until its port accepts. Its pid; raises `Unavailable` with the
    log's end.
    """
    process = launch(command, cpu=TARGET_CPU, env=env, log=log, directory=log.parent)
    deadline = time.monotonic() + START_SECONDS_MAX
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
            return process.pid
        time.sleep(0.05)
    stop(process.pid)
    last_lines = log.read_text(errors="replace").strip().splitlines()[-1:]
    raise Unavailable(f"{Path(command[0]).name} did not listen: {''.join(last_lines) or 'it said nothing'}")


def stop(pid: int) -> None:
    """Ends the session that `launch` made: SIGTERM, and SIGKILL for what is left. Returns when it is gone."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STOP_SECONDS_MAX
        try:
            os.killpg(pid, signal_number)
            while time.monotonic() < deadline:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
                os.killpg(pid, 0)
                time.sleep(0.02)
        except ProcessLookupError:
            return


def find_free_port() -> int:
    """A port that was free a moment ago, for programs that cannot be told to take one and say which."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- accounts


def list_tree(pid: int) -> list[int]:
    """The process and its descendants, parents first."""
    tree = [pid]
    for at in tree:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{at}/task").iterdir():
                tree += [int(child) for child in (task / "children").read_text().split()]
    return tree


def read_cpu_seconds(pid: int) -> float:
    """Time on a CPU of the process tree, all living threads."""
    total_ns = 0
    for at in list_tree(pid):
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{at}/task").iterdir():
                total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9


def read_rss_bytes(pid: int) -> int:
    """Resident memory of the process tree (proportional share, so that nginx's master and worker count once)."""
    total_kib = 0
    for at in list_tree(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{at}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total_kib += int(line.split()[1])
    return total_kib * 1024


def read_busy_seconds(cpu: int) -> float:
    """Time that a CPU was not idle since boot, what the hypervisor took away included."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{cpu}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = (int(tick) for tick in ticks[:8])
            return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return 0.0


def measure_fdatasync_us(directory: Path, count: int) -> list[float]:
    """Durations of `count` durable 300-byte appends to a preallocated file: what one record costs on this disk,
    alone.
    """
    path = directory / "fdatasync.probe"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    durations = []
    try:
        os.posix_fallocate(fd, 0, 4 << 20)
        os.fsync(fd)
        for _ in range(count):
            began = time.perf_counter()
            os.write(fd, b"x" * 300)
            os.fdatasync(fd)
            durations.append((time.perf_counter() - began) * 1e6)
    finally:
        os.close(fd)
        path.unlink()
    return durations


def _filesystem_of(directory: Path) -> str:
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _device, mount, kind, *_ = line.split()
        if str(directory.resolve()).startswith(mount) and len(mount) > len(best[0]):
            best = (mount, kind)
    return best[1]


def _may_realtime() -> bool:
    process = launch(["sleep", "10"], cpu=LOAD_CPU, realtime_priority=1)
    try:
        return os.sched_getscheduler(process.pid) == os.SCHED_FIFO
    finally:
        stop(process.pid)


def describe(directory: Path) -> dict[str, str]:
    """Return what a reader must know of this machine to assess the figures; `directory` is where the targets keep their
    files.
    """
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "CPU": f"{model}, {len(_cpus)} usable",
        "Virtual machine": "yes" if " hypervisor" in info else "no",
        "Memory": f"{pages * page / 2**30:.0f} GiB",
        "Kernel": platform.release(),
        "Filesystem of the spool": _filesystem_of(directory),
        "Placement": f"target on CPU {TARGET_CPU}, mock and load on CPU {LOAD_CPU}"
        + (" (SCHED_FIFO)" if _may_realtime() else " (no SCHED_FIFO: latencies are upper bounds)"),
    }
