"""The embedded default: one gateway and one control process on this machine, under one supervisor.

`tollway serve` is this and nothing more; `tollway demo` adds an engine and a tenant.
"""

import asyncio
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from tollway.serve import data_directory
from tollway.serve.descriptors import raise_limit
from tollway.serve.logs import Echo, LogFiles, encode_report
from tollway.serve.sockets import open_listener, parse_address, url_of
from tollway.serve.supervisor import Event, Program, Supervisor, run_until_signal
from tollway.settings import Settings, to_environment

CONTROL_STOP_SECONDS = 10.0
"""For requests in progress at the REST API and the records that gateways handed in last."""

GATEWAY_STOP_MARGIN_SECONDS = 5.0
"""On top of the drain: for the spool's last commit and its way to control."""

READY_SECONDS = 120.0
"""For control to migrate a large database, and for the gateway to recover a large spool."""


LINK_SECONDS_MAX = 5.0
"""For control to make a link with which the operator signs in."""

FILES = "files"
"""Directory of clients' files in the data directory, where `gateway.files.directory` names no other: one gateway needs none to share."""

OPTIONS = ("--listen", "--internal", "--control-listen", "--link", "--console-listen")
"""Options of `tollway serve` for its addresses: gateway, internal, control, link, console."""


@dataclass(frozen=True, slots=True)
class Installation:
    """A prepared, locked data directory and its listening sockets. `console`: None where control's listener has the pages for
    people."""

    directory: Path
    settings: Settings
    gateway: socket.socket
    internal: socket.socket
    control: socket.socket
    link: socket.socket
    console: socket.socket | None = None

    def addresses(self) -> dict[str, str]:
        """Return the URL of each listener as seen by a client on this machine, without /v1."""
        tls = self.settings.gateway.tls.certificate_file is not None
        return {
            "gateway_url": url_of(self.gateway, tls=tls),
            "control_url": url_of(self.control),
            "internal_url": url_of(self.internal),
            "link_url": url_of(self.link),
            "console_url": url_of(self.console or self.control),
        }


@contextmanager
def opened(settings: Settings, options: Sequence[str] = OPTIONS) -> Iterator[Installation]:
    """Prepare and lock the data directory, open the sockets. Raises OperatorError for whatever a person must put right.

    `options`: what the command at hand calls the five addresses.
    """
    gateway, control = settings.gateway, settings.control
    addresses = [gateway.listen, gateway.internal, control.listen, control.link]
    if control.console_listen is not None:
        addresses.append(control.console_listen)
    for address, option in zip(addresses, options, strict=False):
        parse_address(address, option=option)  # before anything is made
    raise_limit()  # for the supervisor's own pipes; its children raise theirs again
    directory = Path(settings.data_dir).absolute()
    data_directory.prepare(directory)
    with data_directory.locked(directory, "serve"):
        try:
            data_directory.make_secrets(directory)
            (directory / "logs").mkdir(mode=0o700, exist_ok=True)
            for stale in ("addresses.json", "demo.json"):  # they say that something answers, which nothing does yet
                (directory / stale).unlink(missing_ok=True)
        except OSError as error:
            raise data_directory.explain(error, directory) from None
        listeners: list[socket.socket] = []
        try:
            for address, option in zip(addresses, options, strict=False):
                listeners.append(open_listener(address, option=option))
            yield Installation(directory, settings, *listeners)
        finally:
            for listener in listeners:
                listener.close()


def programs(installation: Installation) -> list[Program]:
    """The gateway and the control process of `installation`."""
    settings = installation.settings
    own = None if settings.gateway.tls.certificate_file is not None else url_of(installation.gateway)
    gateway_url = settings.control.gateway_url or own
    environment = to_environment(settings) | {
        "TOLLWAY__DATA_DIR": str(installation.directory),
        "TOLLWAY__GATEWAY__CONTROL_LINK_URL": url_of(installation.link),
        "TOLLWAY__GATEWAY__FILES__DIRECTORY": settings.gateway.files.directory or str(installation.directory / FILES),
    }
    if gateway_url is not None:
        environment["TOLLWAY__CONTROL__GATEWAY_URL"] = gateway_url
    control = [installation.control.fileno(), installation.link.fileno()]
    console = () if installation.console is None else ("--console-fd", str(installation.console.fileno()))
    if installation.console is not None:
        control.append(installation.console.fileno())
    gateway = (installation.gateway.fileno(), installation.internal.fileno())
    return [
        Program(
            name="control",
            arguments=("-m", "tollway", "control", "--fd", str(control[0]), "--link-fd", str(control[1]), *console),
            descriptors=tuple(control),
            environment=environment,
            ready_seconds=READY_SECONDS,
            stop_seconds=CONTROL_STOP_SECONDS,
            steps_log_level=True,
        ),
        Program(
            name="gateway",
            arguments=("-m", "tollway", "gateway", "--fd", str(gateway[0]), "--internal-fd", str(gateway[1])),
            descriptors=gateway,
            environment=environment,
            ready_seconds=READY_SECONDS,
            stop_seconds=settings.gateway.drain_seconds + GATEWAY_STOP_MARGIN_SECONDS,
            stop_stage=0,
            replaced_on_hangup=True,
            steps_log_level=True,
        ),
    ]


def run(settings: Settings) -> int:
    """`tollway serve`: run until SIGTERM or SIGINT; returns the exit code. Standard output gets one JSON object a
    line."""
    with opened(settings) as installation:
        echo = Echo(sys.stdout.fileno())
        try:
            return asyncio.run(_serve(installation, echo))
        finally:
            echo.close(seconds=1.0)


async def _serve(installation: Installation, echo: Echo) -> int:
    files = LogFiles.of(installation.directory / "logs", installation.settings.log)
    log = files.open("serve.log")

    def report(event: Event) -> None:
        line = encode_report(event, time.time_ns() // 1000)
        log.write(line)
        echo.write(line)

    supervisor = Supervisor(files, report, echo=echo.write)

    async def begin() -> None:
        await supervisor.start(programs(installation))
        with_pid: Mapping[str, object] = {**installation.addresses(), "pid": os.getpid()}
        data_directory.write_atomically(installation.directory / "addresses.json", with_pid, mode=0o600)
        report({"event": "ready", **with_pid})
        if sys.stderr.isatty():
            print_addresses(installation, await _make_sign_in_link(installation))

    try:
        await run_until_signal(supervisor, begin())
    finally:
        (installation.directory / "addresses.json").unlink(missing_ok=True)
        report({"event": "stopped"})
        log.close()
    return 1 if supervisor.failed else 0


async def _make_sign_in_link(installation: Installation) -> str | None:
    """Return a link that signs the operator in once, which is for the terminal alone: no log has it. None where there is no key of
    operators, or the address of the console is not known."""
    key = data_directory.read_secrets(installation.directory, os.environ).platform_key
    if key is None:
        return None
    headers = {"authorization": f"Bearer {key}"}
    try:
        async with httpx2.AsyncClient(headers=headers, timeout=LINK_SECONDS_MAX, trust_env=False) as http:
            answer = await http.post(f"{installation.addresses()['control_url']}/v1/platform/operator_sign_in_links")
    except httpx2.HTTPError:
        return None
    url: str | None = answer.json()["url"] if answer.is_success else None
    return url


def print_addresses(installation: Installation, sign_in_link: str | None) -> None:
    """Print the addresses and the next steps for a person, on standard error. `sign_in_link`: signs the operator in once."""
    addresses = installation.addresses()
    by_key = f"{addresses['console_url']}/sign-in/operators/key, with the operator's key"
    print(
        f"inference      {addresses['gateway_url']}/v1\n"
        f"administration {addresses['control_url']}/v1\n"
        f"console        {by_key if sign_in_link is None else f'{sign_in_link} (once, within 15 minutes)'}\n"
        f"metrics        {addresses['internal_url']}/metrics (gateway), {addresses['link_url']}/metrics (control)\n"
        f"operator's key in {installation.directory}/secrets.json (platform_key)",
        file=sys.stderr,
    )
