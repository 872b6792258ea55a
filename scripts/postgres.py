"""A private PostgreSQL for one test run: its own cluster in a temporary directory, on a free port, gone afterwards.

Nothing of a PostgreSQL that the machine already runs is touched. The server is our child, in a process group of its own
(so that Ctrl-C reaches pytest alone) and with a parent-death signal (so that it stops even when this process is killed
with -9). Durability settings stay at their defaults unless the caller asks otherwise: what is seen is what production does.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from tollway.storage.database_dumps import find_program
from tollway.storage.row_security import PLATFORM_ROLE, TENANT_ROLE, make_roles

START_SECONDS_MAX = 60
"""Limit for `initdb` and the start, which take 1 s on two idle cores; the rest is for a busy CI machine."""

STOP_SECONDS_MAX = 30
"""A fast shutdown writes one checkpoint."""

INSTALL_SECONDS_MAX = 600
"""Limit for apt, with slow mirrors in mind."""

APPLICATION_ROLE = "tollway_application"
"""The role as which control processes connect; a cluster of `initdb --auth=trust` asks for no password."""

NOT_INSTALLED = "PostgreSQL is not installed (Debian: apt-get install postgresql)"

COMPILER_PACKAGES = {
    "gcc": "gcc",
    "libc6-dev": "/usr/include/stdio.h",
    "python3-dev": str(Path(sysconfig.get_path("include")) / "Python.h"),
}
"""Packages that the compiled form is built with. An interpreter that is not Debian's has its own headers or none."""

DEBIAN_PACKAGES = {
    "postgresql": "initdb",
    "redis-server": "redis-server",
    "prometheus": "promtool",
    "chromium": "chromium",  # in which the pages for people are tested
    "nginx": "nginx",
    "haproxy": "haproxy",
    **COMPILER_PACKAGES,
}
"""Packages of the operating system that the tests use, each with the program or file that shows that it is installed."""


def install_missing() -> list[str]:
    """Install the Debian packages that are missing, where we may; return those that are still missing."""
    missing = list_missing()
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"==> installing {' '.join(missing)}", flush=True)
        # RUNLEVEL=1 keeps Debian's own cluster and server from being started: the tests run private ones.
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        options = ["-y", "-qq", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Use-Pty=0"]
        try:
            for command in (["apt-get", "update", "-qq"], ["apt-get", "install", *options, *missing]):
                subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, timeout=INSTALL_SECONDS_MAX, check=True)
        except (subprocess.SubprocessError, OSError) as error:
            print(f"==> could not install: {error}", flush=True)
        missing = list_missing()
    return missing


def list_missing() -> list[str]:
    """Return the Debian packages of which nothing is found."""
    return [package for package, shown_by in DEBIAN_PACKAGES.items() if not Path(shown_by).is_file() and find_program(shown_by) is None]


class Server:
    """The server of a cluster, a child of ours: it can be killed and started again at the same address."""

    def __init__(self, home: Path, port: int, settings: Sequence[str] = ()) -> None:
        self.url = f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
        self._home = home
        self._port = port
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The postmaster's process id. Raises RuntimeError if it was never started."""
        if self._process is None:
            raise RuntimeError("the server was not started")
        return self._process.pid

    def start(self) -> None:
        """Start it, and return when it takes connections. Raises RuntimeError, with its own words, if it does not.

        It ends with the thread that calls this: that is whom the kernel means by a parent's death. After a `kill` it may have
        to be asked again: while a process of the former server still holds its shared memory, it refuses.
        """
        postgres, ready = find_program("postgres"), find_program("pg_isready")
        if postgres is None or ready is None:
            raise RuntimeError(NOT_INSTALLED)
        log = self._home / "log"
        settings = [f"port={self._port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={self._home}", *self._settings]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*_become_unprivileged(), "setpriv", "--pdeathsig", "INT", str(postgres), "-D", str(self._home / "cluster")]
                + [f"--{setting}" for setting in settings],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._home,
                start_new_session=True,
            )
        _wait_until_ready([str(ready), "-q", "-h", "127.0.0.1", "-p", str(self._port)], self._process, log)

    def kill(self) -> None:
        """SIGKILL to the postmaster: an outage without a warning. Its other processes notice and end by themselves."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """A fast shutdown, whatever is connected."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()


@contextmanager
def running(settings: Sequence[str] = ()) -> Iterator[str]:
    """A fresh cluster for the length of the block; yields its SQLAlchemy URL (user and database `postgres`). `settings`: of the server, as
    `fsync=off`.

    Raises RuntimeError, with the server's own words, if there is none or it does not start.
    """
    with cluster(settings=settings) as server:
        yield server.url


@contextmanager
def cluster(port: int | None = None, settings: Sequence[str] = ()) -> Iterator[Server]:
    """The same, as a server that can be killed. `port`: one that the caller keeps free for it."""
    initdb = find_program("initdb")
    if initdb is None:
        raise RuntimeError(NOT_INSTALLED)
    become = _become_unprivileged()
    with tempfile.TemporaryDirectory(prefix="tollway-postgres-", ignore_cleanup_errors=True) as directory:
        home = Path(directory)
        if become:
            home.chmod(0o755)  # the server's user must be able to pass through
            shutil.chown(home, "postgres", "postgres")
        # --no-sync concerns the empty cluster only: the server itself syncs as ever.
        options = ["-U", "postgres", "--auth=trust", "--locale=C.UTF-8", "--encoding=UTF8", "--no-sync"]
        made = subprocess.run(
            [*become, str(initdb), "-D", str(home / "cluster"), *options],
            capture_output=True,
            text=True,
            cwd=home,
            timeout=START_SECONDS_MAX,
        )
        if made.returncode != 0:
            raise RuntimeError(f"initdb failed: {made.stderr.strip()}")
        server = Server(home, port or _free_port(), settings)
        try:
            server.start()
            yield server
        finally:
            server.stop()


def application_environment(url: str) -> dict[str, str]:
    """Return the variables with which control uses the database at `url`, a superuser's: by a role of its own, which is made here, and by
    that one to migrate."""
    owner = sa.make_url(url)
    engine = sa.create_engine(owner, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        make_roles(connection)
        made = f"CREATE ROLE {APPLICATION_ROLE} LOGIN IN ROLE {PLATFORM_ROLE}, {TENANT_ROLE}"
        connection.execute(sa.text(f"DO $$ BEGIN {made}; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"))
    application = owner.set(username=APPLICATION_ROLE, password=None).render_as_string(hide_password=False)
    return {"TOLLWAY_DATABASE_URL": application, "TOLLWAY_OWNER_DATABASE_URL": url}


def _become_unprivileged() -> list[str]:
    """The prefix that runs a command as `postgres` when we are root, whom initdb and postgres refuse."""
    if os.geteuid() != 0:
        return []
    user = pwd.getpwnam("postgres")
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(probe: list[str], server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while subprocess.run(probe).returncode != 0:
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL did not start: {log.read_text(errors='replace')[-2000:].strip()}")
        time.sleep(0.05)
