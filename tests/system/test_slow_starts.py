"""Starts that cannot succeed yet, or at all: within seconds the operator reads what is wrong, where, and what to do."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reliability.processes import ENVIRONMENT, WAIT_SECONDS, Start
from tollway.serve import data_directory
from tollway.settings import OperatorError

pytestmark = pytest.mark.system


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A file system in memory of this size. Skips the test where none can be mounted."""
    place.mkdir()
    if (
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=False, capture_output=True).returncode
        != 0
    ):
        pytest.skip("no file system can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=False)


def test_demo_on_a_small_disk_says_what_it_waits_for(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "60m") as small:
        said = tmp_path / "said"
        arguments = ("demo", "--data-dir", str(small / "data"), "--port", "0", "--control-port", "0", "--engine", "sim")
        with said.open("wb") as out:
            process = subprocess.Popen([sys.executable, "-m", "tollway", *arguments], stdout=out, stderr=out, env=ENVIRONMENT)
        try:
            deadline = time.monotonic() + WAIT_SECONDS
            while "space for the spool" not in said.read_text():
                assert process.poll() is None and time.monotonic() < deadline, said.read_text()
                time.sleep(0.05)
            assert f"{small}/data/gateway/spool: it needs 73 MiB" in said.read_text()
            assert "choose another --data-dir" in said.read_text()
        finally:
            process.terminate()
            process.wait(WAIT_SECONDS)


def test_start_on_a_full_disk_names_the_path_and_the_remedy(tmp_path: Path) -> None:
    with small_disk(tmp_path / "full", "1m") as full:
        (full / "filler").write_bytes(bytes((1 << 20) - 8192))
        with (full / "filler").open("ab", buffering=0) as filler, pytest.raises(OSError, match="No space"):
            while True:
                filler.write(bytes(4096))
        ended = subprocess.run(
            [sys.executable, "-m", "tollway", "serve", "--data-dir", str(full / "data"), "--listen", "127.0.0.1:0"],
            capture_output=True, text=True, env=ENVIRONMENT, timeout=WAIT_SECONDS, check=False,
        )  # fmt: skip
        assert ended.returncode == 1 and "no space left" in ended.stderr and str(full) in ended.stderr
        assert "free space there, or choose another --data-dir" in ended.stderr and "Traceback" not in ended.stderr


def test_first_start_logs_no_error(start: Start) -> None:
    running = start(
        "serve", "--listen", "127.0.0.1:0", "--internal", "127.0.0.1:0", "--control-listen", "127.0.0.1:0", "--link", "127.0.0.1:0"
    )
    running.wait_for_file("addresses.json")
    lines = [line for path in (running.directory / "logs").iterdir() for line in path.read_bytes().splitlines()]
    assert [line for line in lines if b'"level":"error"' in line] == []
    assert running.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
class TestFilesOfAnotherUser:
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Iterator[Path]:
        for each in (tmp_path, *tmp_path.parents[:3]):
            each.chmod(0o755)
        directory = tmp_path / "data"
        data_directory.prepare(directory)
        data_directory.make_secrets(directory)
        directory.chmod(0o755)
        os.seteuid(65534)
        try:
            yield directory
        finally:
            os.seteuid(0)

    @pytest.mark.parametrize("what", ["prepare", "secrets", "lock", "marker"])
    def test_error_is_one_line_and_names_the_owner(self, directory: Path, what: str) -> None:
        with pytest.raises(OperatorError) as refused:
            if what == "prepare":
                data_directory.prepare(directory / "inner")
            elif what == "secrets":
                data_directory.read_secrets(directory, {})
            elif what == "lock":
                with data_directory.locked(directory, "serve"):
                    pass
            else:
                os.seteuid(0)
                (directory / "tollway.json").chmod(0o600)
                os.seteuid(65534)
                data_directory.check_format(directory)
        assert "it belongs to root" in refused.value.message and "\n" not in refused.value.message
        assert refused.value.hint is not None and refused.value.hint.startswith("run Tollway as root")
