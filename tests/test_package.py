"""The wheel of a release: it has every file that the source has and nothing else, and the command runs from it."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import time
import zipfile
from email import message_from_bytes
from pathlib import Path

import httpx2
import pytest

import tollway

ROOT = Path(__file__).parents[1]
SECONDS_MAX = 300.0

WARNINGS = 3
"""Exit code of `tollway doctor` with warnings only, as a machine of tests has them."""


def run(*command: str | Path, codes: tuple[int, ...] = (0,)) -> str:
    """Run a program far from the source, which must end with one of these codes; return its output."""
    given = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TOLLWAY", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [*map(str, command)],
        cwd="/",
        env=given,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
    )
    assert done.returncode in codes, (command, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plain wheel, as a release publishes it."""
    directory = tmp_path_factory.mktemp("wheel")
    environment = {name: value for name, value in os.environ.items() if name != "TOLLWAY_NATIVE"}
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS_MAX)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = directory.glob("*.whl")
    return made


def test_wheel_has_the_files_of_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = ROOT / "src" / "tollway"
    ignored = {path for path in package.rglob("*") if "__pycache__" in path.parts or path.suffix == ".so"}
    source = {str(path.relative_to(ROOT / "src")) for path in package.rglob("*") if path.is_file() and path not in ignored}
    assert inside == source
    assert {Path(name).suffix for name in inside} >= {".py", ".html", ".css", ".js", ".po", ".typ"}, "pages, texts, documents"


def test_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(archive.read(name))
        assert archive.read(name.replace("METADATA", "entry_points.txt")).decode().split() == [
            *("[console_scripts]", "tollway", "=", "tollway.__main__:main")
        ]
        assert archive.read(name.replace("METADATA", "licenses/LICENSE")) == (ROOT / "LICENSE").read_bytes()
        assert b"Root-Is-Purelib: true" in archive.read(name.replace("METADATA", "WHEEL"))
    assert (metadata["Name"], metadata["Version"], metadata["License-Expression"]) == ("tollway", tollway.__version__, "Apache-2.0")
    assert metadata["Requires-Python"] == ">=3.11" and metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).strip().startswith("# Tollway")
    wanted = {re.split(r"[<>=!\[ ;]", each)[0] for each in metadata.get_all("Requires-Dist") or ()}
    assert wanted >= {"httpx2", "msgspec", "sqlalchemy"} and not wanted & {"pytest", "ruff", "mypy", "hatchling"}


@pytest.mark.system
def test_command_serves_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, to which the packages that Tollway needs are lent by this one: no index is asked."""
    place, data = tmp_path / "tool", tmp_path / "data"
    uv, python, program = Path(sys.executable).parent / "uv", place / "bin" / "python", place / "bin" / "tollway"
    run(uv, "venv", "--offline", "--python", sys.executable, place)
    run(uv, "pip", "install", "--offline", "--no-deps", "--python", python, wheel)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert run(python, "-c", "import tollway; print(tollway.__file__)").startswith(str(packages)), "not the source beside it"
    assert tollway.__version__ in run(program, "version", "-v")
    with Running(program, data) as serving:
        serving.wait_until_live()
        found = run(program, "doctor", "--data-dir", data, codes=(0, WARNINGS))
        assert "database" in found and "Traceback" not in found


class Running:
    """`tollway serve` by a program, on free ports of its own choice."""

    def __init__(self, program: Path, data: Path) -> None:
        free = [word for name in ("listen", "internal", "control-listen", "link") for word in (f"--{name}", "127.0.0.1:0")]
        self._addresses = data / "addresses.json"
        self._command = [str(program), "serve", "--data-dir", str(data), *free]

    def __enter__(self) -> "Running":
        self._process = subprocess.Popen(
            self._command, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        assert self._process.wait(SECONDS_MAX) == 0

    def wait_until_live(self) -> None:
        """Return once `/livez` answers."""
        deadline = time.monotonic() + SECONDS_MAX
        while True:
            assert self._process.poll() is None and time.monotonic() < deadline
            try:
                url = json.loads(self._addresses.read_bytes())["gateway_url"]
                assert httpx2.get(f"{url}/livez", timeout=10).status_code == 200
                return
            except (FileNotFoundError, httpx2.HTTPError):
                time.sleep(0.1)
