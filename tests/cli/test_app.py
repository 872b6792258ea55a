"""The command line as a person meets it: help without loading anything, errors in one line with a hint, stable exit
codes."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

import tollway
from tollway.cli.app import COMMANDS, run
from tollway.cli.client import Role, find_address
from tollway.settings import OperatorError


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the caller, and no data directory, takes part."""
    for variable in ("TOLLWAY_CONTROL_URL", "TOLLWAY_KEY", "TOLLWAY__DATA_DIR", "TOLLWAY_DATABASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)


def test_version_prints_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version"]) == 0
    assert capsys.readouterr().out == f"{tollway.__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    assert f"Usage: tollway {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["keyz"], "Did you mean 'keys'?"),
        (["keys", "creat"], "Did you mean 'create'?"),
        (["keys", "list", "--outptu", "json"], "--output"),
        (["serve", "--listen", "nonsense"], "hint: for example 127.0.0.1:8080"),
        (["usage", "--since", "30x", "--control-url", "http://127.0.0.1:9", "--key", "tw_admin_x"], "hint: write 2026-11-01, 2026-11"),
        (["costs", "--until", "soon"], "--until soon is not a time"),
        (["keys", "list", "--zone", "Europe/Pris"], "hint: use an IANA name"),
        (["simulate", "--fault", "nonsense=0.1"], "hint:"),
        (["migrate", "--database-url", "mysql://here"], "hint: set TOLLWAY_DATABASE_URL to postgresql://"),
        (["verify", "--database-url", "nonsense"], "hint: set TOLLWAY_DATABASE_URL to postgresql://"),
        (["keys", "list"], "hint: set --control-url or TOLLWAY_CONTROL_URL"),
    ],
)
def test_a_wrong_use_exits_2_and_says_what_was_meant(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def test_an_unknown_setting_in_the_file_stops_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.yaml").write_text("gateway: {lisen: 127.0.0.1:0}")
    assert run(["serve", "--config", "t.yaml"]) == 2
    assert capsys.readouterr().err == "tollway: unknown setting 'gateway.lisen' in t.yaml\nhint: did you mean gateway.listen?\n"
    assert not (tmp_path / "tollway-data").exists()


def test_nothing_answers_is_a_failure_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["organizations", "list", "--control-url", "http://127.0.0.1:9", "--key", "tw_platform_x"]) == 1
    assert capsys.readouterr().err.startswith("tollway: nothing answers at http://127.0.0.1:9\nhint: ")


class _OtherServer(BaseHTTPRequestHandler):
    """A web server other than a control plane."""

    def do_GET(self) -> None:
        self.send_response(502)
        self.end_headers()
        self.wfile.write(b"<html>Bad gateway</html>")

    def log_message(self, *_: object) -> None:
        """Nothing: tests are quiet."""


@pytest.fixture
def other_server() -> Iterator[str]:
    """The URL of a web server other than a control plane."""
    with HTTPServer(("127.0.0.1", 0), _OtherServer) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_answer_of_another_server_is_explained_without_a_stack_trace(other_server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["organizations", "list", "--control-url", other_server, "--key", "tw_platform_x"]) == 1
    said = capsys.readouterr().err
    assert "answered 502" in said and "hint: is this the control plane's address?" in said


class TestFindAddress:
    """Rules by which a command finds its control plane and key."""

    def write(self, directory: Path, name: str, **body: str) -> None:
        (directory / name).write_text(json.dumps(body))

    def test_a_demo_gives_the_key_that_the_command_needs(self, tmp_path: Path) -> None:
        self.write(tmp_path, "demo.json", control_url="http://demo", admin_key="tw_admin_d", platform_key="tw_platform_d")
        assert find_address(None, None, tmp_path, Role.ADMIN).key == "tw_admin_d"
        assert find_address(None, None, tmp_path, Role.OPERATOR).key == "tw_platform_d"

    def test_serve_gives_its_address_and_the_operators_key(self, tmp_path: Path) -> None:
        self.write(tmp_path, "addresses.json", control_url="http://serve")
        self.write(tmp_path, "secrets.json", platform_key="tw_platform_s")
        address = find_address(None, None, tmp_path, Role.ADMIN)
        assert (address.url, address.key) == ("http://serve", "tw_platform_s")

    def test_options_beat_variables_beat_the_data_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.write(tmp_path, "demo.json", control_url="http://demo", admin_key="tw_admin_d")
        monkeypatch.setenv("TOLLWAY_CONTROL_URL", "http://variable/v1/")
        monkeypatch.setenv("TOLLWAY_KEY", "tw_admin_v")
        address = find_address(None, None, tmp_path, Role.ADMIN)
        assert (address.url, address.key) == ("http://variable", "tw_admin_v")
        address = find_address("http://option", "tw_admin_o", tmp_path, Role.ADMIN)
        assert (address.url, address.key) == ("http://option", "tw_admin_o")

    def test_a_key_from_standard_input_stands_in_no_process_list(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("tw_admin_i\n"))
        assert find_address("http://x", "-", None, Role.ADMIN).key == "tw_admin_i"

    def test_no_secret_shows_when_an_address_is_printed(self) -> None:
        assert "tw_admin_o" not in repr(find_address("http://x", "tw_admin_o", None, Role.ADMIN))

    def test_neither_is_an_error_that_says_what_to_set(self, tmp_path: Path) -> None:
        with pytest.raises(OperatorError) as caught:
            find_address("http://x", None, tmp_path, Role.ADMIN)
        assert "TOLLWAY_KEY" in caught.value.hint


@pytest.mark.parametrize(
    ("command", "never"),
    [
        ("gateway", ("fastapi", "starlette", "sqlalchemy", "alembic", "tollway.control")),
        ("keys", ("fastapi", "sqlalchemy", "uvloop", "tollway.gateway", "tollway.control")),
        ("serve", ("fastapi", "sqlalchemy", "uvloop", "tollway.gateway", "tollway.control")),
        ("version", ("fastapi", "sqlalchemy", "uvloop", "httpx2")),
        ("control", ("alembic", "mako", "pygments", "httpcore2", "opentelemetry.sdk", "grpc", "google", "lxml", "obstore", "pyarrow")),
    ],
)
def test_a_command_loads_only_what_it_runs(command: str, never: tuple[str, ...]) -> None:
    code = f"import sys; from tollway.cli.app import run; run(['{command}', '--help']); print(*sys.modules, file=sys.stderr)"
    environment = {**os.environ, "PYTHONPATH": str(Path(tollway.__file__).parents[1])}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    loaded = {name for module in ran.stderr.split() for name in (module, ".".join(module.split(".")[:2]), module.split(".")[0])}
    assert ran.returncode == 0, ran.stderr
    assert not loaded & set(never)


def test_control_completes_no_route_before_it_is_used() -> None:
    """Schemas of hundreds of routes are most of what a start can do without."""
    code = (
        "from tollway.control.api import app; from tollway.control.console import routers as console\n"
        "routers = (*app.PUBLIC_ROUTERS, *app.LINK_ROUTERS, *app.PAGE_ROUTERS, *console.ROUTERS)\n"
        "routes = [route for router in routers for route in router.routes]\n"
        "print(len(routes), sum('dependant' in vars(route) for route in routes), routes[0].access.name)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(tollway.__file__).parents[1])}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    count, completed, access = ran.stdout.split()
    assert (int(count) > 400, completed, access) == (True, "0", "organization"), ran.stdout + ran.stderr
