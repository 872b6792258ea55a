"""The image of the `Dockerfile`, built and run by podman: it answers the README's first request, as nobody, with a read-only root.

`make test-container` runs this; `make test` does not, because the first build takes minutes. The base is `TOLLWAY_TEST_BASE`, or a Debian
that mmdebstrap makes here and podman imports, so that no registry is needed. The containers have no network: a request is sent from a
shell in the network namespace of its container."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.container

ROOT = Path(__file__).parents[1]
IMAGE = "localhost/tollway-test"
LOCAL_BASE = "localhost/tollway-test-base:bookworm"
SUITE = "bookworm"
BUILD_SECONDS = 3600.0
WAIT_SECONDS = 180.0
RUN = ("podman", "--runtime", shutil.which("runc") or "/usr/sbin/runc", "run", "--pull=never", "--network", "none")
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096")
"""Bounds that every machine allows: podman's own are higher than some allow."""


def run(*command: str | Path, seconds: float = WAIT_SECONDS) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end, whatever its exit code."""
    return subprocess.run([*map(str, command)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds)


def must(*command: str | Path, seconds: float = WAIT_SECONDS) -> str:
    """Run a program that must succeed; return its output."""
    done = run(*command, seconds=seconds)
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout.strip()


def find_base() -> str | None:
    """Return the image to build from; None for the one that the Dockerfile names. Skips where there can be none."""
    given = os.environ.get("TOLLWAY_TEST_BASE")
    if given is not None:
        return given or None
    if run("podman", "image", "exists", LOCAL_BASE).returncode == 0:
        return LOCAL_BASE
    if shutil.which("mmdebstrap") is None:
        pytest.skip("no base image: name one in TOLLWAY_TEST_BASE (empty: the Dockerfile's), or install mmdebstrap")
    with tempfile.TemporaryDirectory(prefix="tollway-base-") as scratch:
        archive = Path(scratch) / "root.tar"
        made = run("mmdebstrap", "--variant=minbase", "--include=ca-certificates", SUITE, archive, seconds=BUILD_SECONDS)
        if made.returncode != 0:
            pytest.skip(f"no base image: mmdebstrap: {made.stderr[-300:]}")
        must("podman", "import", archive, LOCAL_BASE, seconds=BUILD_SECONDS)
    return LOCAL_BASE


@pytest.fixture(scope="module")
def image() -> str:
    """The image, built. The authorities and the package index of this machine are mounted while it is built, and are not in it."""
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed (Debian's packages podman and runc)")
    if run("podman", "info").returncode != 0:
        pytest.skip("podman does not run here")
    base = find_base()
    arguments = () if base is None else ("--build-arg", f"BASE={base}", "--pull=never")
    mounted = [place for place in ("/etc/ssl/certs", "/etc/pip.conf") if Path(place).exists()]
    volumes = [word for place in mounted for word in ("--volume", f"{place}:{place}:ro")]
    build = ("podman", "build", "--isolation", "chroot", "--network", "host", "--format", "docker", *volumes, *arguments)
    form = ("--build-arg", f"NATIVE_CODE={os.environ.get('NATIVE_CODE', '1')}")
    must(*build, *form, "--tag", IMAGE, ROOT, seconds=BUILD_SECONDS)
    return IMAGE


@contextmanager
def container(image: str, *command: str, volume: str) -> Iterator[str]:
    """Run a container as docs/deployment.md says; yield its id."""
    confined = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", *LIMITS)
    data = ("--volume", f"{volume}:/data", "--tmpfs", "/tmp")
    started = must(*RUN, "--detach", *confined, *data, image, *command)
    name = started.splitlines()[-1]
    try:
        yield name
    finally:
        run("podman", "rm", "--force", "--time", "5", name)
        run("podman", "volume", "rm", "--force", volume)


def inside(name: str, *command: str) -> "subprocess.CompletedProcess[str]":
    """Run a program in a container, as its user."""
    return run("podman", "exec", name, *command)


def read_log(name: str) -> str:
    """Return the end of what a container has written."""
    done = run("podman", "logs", name)
    return (done.stdout + done.stderr)[-4000:]


def wait_for(name: str, *command: str) -> str:
    """Run a program in a container until it succeeds; return its output."""
    deadline = time.monotonic() + WAIT_SECONDS
    while (done := inside(name, *command)).returncode != 0:
        assert time.monotonic() < deadline, (done.stderr, read_log(name))
        time.sleep(0.5)
    return done.stdout


def test_image_has_a_user_a_health_check_and_no_compiler(image: str) -> None:
    (described,) = json.loads(must("podman", "image", "inspect", image))
    assert described["Config"]["User"] == "65532:65532"
    assert "livez" in " ".join(described["Healthcheck"]["Test"])
    entry = (
        "podman",
        "--runtime",
        str(shutil.which("runc") or "/usr/sbin/runc"),
        "run",
        "--rm",
        "--pull=never",
        "--network",
        "none",
        *LIMITS,
    )
    unwanted = "gcc cc c++ g++ make ld as cpp pip pip3 perl5 git curl wget"
    look = f"for each in {unwanted}; do command -v $each; done; ls /usr/lib/gcc /usr/include/python3.11 /source /build; id -u"
    assert run(*entry, "--entrypoint", "/bin/sh", image, "-c", look).stdout == "65532\n"
    assert must(*entry, image, "version", "-v").startswith("tollway ")
    secrets = must(*entry, image, "secrets", "new")
    assert {line.partition("=")[0] for line in secrets.splitlines()} >= {"TOLLWAY_PEPPER", "TOLLWAY_VAULT_KEY", "TOLLWAY_PLATFORM_KEY"}


def test_container_answers_the_first_request_of_the_readme(image: str, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    first = re.findall(r"^```sh\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)[0]
    with container(image, "demo", "--engine", "sim", "--data-dir", "/data", volume="tollway-test-demo") as name:
        (tmp_path / "tollway-data").mkdir()
        (tmp_path / "tollway-data" / "demo.env").write_text(wait_for(name, "cat", "/data/demo.env"))
        pid = must("podman", "inspect", "--format", "{{.State.Pid}}", name)
        answered = run("nsenter", "--target", pid, "--net", "env", "-C", str(tmp_path), "bash", "-euo", "pipefail", "-c", first)
        assert answered.returncode == 0 and "data: [DONE]" in answered.stdout, (answered.stdout, answered.stderr)
        assert "sim-echo" in wait_for(name, "/bin/sh", "-c", "tollway usage --data-dir /data | grep sim-echo")
        assert inside(name, "id", "-u").stdout.strip() == "65532"
        for place in ("/", "/opt/tollway", "/etc", "/usr/bin"):
            assert inside(name, "touch", f"{place}/file").returncode != 0, place
        assert must("podman", "stop", "--time", "120", name)
        assert must("podman", "inspect", "--format", "{{.State.ExitCode}}", name) == "0", read_log(name)


def test_container_serves_and_is_healthy_with_the_command_of_the_image(image: str) -> None:
    with container(image, volume="tollway-test-serve") as name:
        wait_for(name, "test", "-e", "/data/addresses.json")
        deadline = time.monotonic() + WAIT_SECONDS
        while run("podman", "healthcheck", "run", name).returncode != 0:
            assert time.monotonic() < deadline, read_log(name)
            time.sleep(0.5)
        assert "data" in inside(name, "tollway", "doctor", "--data-dir", "/data").stdout
        assert must("podman", "stop", "--time", "120", name)
        assert must("podman", "inspect", "--format", "{{.State.ExitCode}}", name) == "0", read_log(name)
