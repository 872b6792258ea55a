"""`tollway demo` and `tollway serve` as a newcomer meets them: real processes, real requests, nothing left behind."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import openai
import pytest

from reliability.processes import WAIT_SECONDS, Demo, Start, is_alive, read_demo, tollway

pytestmark = pytest.mark.system

SIM = ("--port", "0", "--control-port", "0", "--engine", "sim")
FREE = ("--listen", "127.0.0.1:0", "--internal", "127.0.0.1:0", "--control-listen", "127.0.0.1:0", "--link", "127.0.0.1:0")


def ask(demo: Demo, text: str = "What is a toll road?") -> str:
    """One streamed completion; returns its text."""
    with openai.OpenAI(base_url=f"{demo.gateway_url}/v1", api_key=demo.api_key, max_retries=0) as client:
        stream = client.chat.completions.create(model=demo.model, messages=[{"role": "user", "content": text}], stream=True, max_tokens=16)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def count_requests(demo: Demo) -> int:
    """Requests in `tollway usage` of this demo."""
    shown = tollway("usage", "--data-dir", str(demo.running.directory), "-o", "json")
    assert shown.returncode == 0, shown.stderr
    return sum(result["num_model_requests"] for each in json.loads(shown.stdout) for result in each["results"])


class TestOneDemo:
    """A demo that runs."""

    def test_answers_a_stream_and_counts_it(self, demo: Demo) -> None:
        before = count_requests(demo)
        assert ask(demo)
        demo.running.wait_until(lambda: count_requests(demo) == before + 1)
        shown = tollway("costs", "--data-dir", str(demo.running.directory))
        assert shown.returncode == 0, shown.stderr
        assert "EUR" in shown.stdout

    def test_82_every_file_that_it_leaves_is_for_its_owner_only(self, demo: Demo) -> None:
        before = count_requests(demo)
        assert ask(demo)
        demo.running.wait_until(lambda: count_requests(demo) == before + 1)
        directory = demo.running.directory
        found = [directory, *directory.rglob("*")]
        assert {path.name for path in found} >= {"tollway.db", "secrets.json", "spool", "snapshot", "gateway.log", "archive", "demo.json"}
        open_to_others = [str(path) for path in found if not path.is_symlink() and path.stat().st_mode & 0o077]
        assert open_to_others == []

    def test_says_how_to_use_it(self, demo: Demo) -> None:
        demo.running.wait_until(lambda: "Ctrl-C" in demo.running.stdout.read_text())
        said = demo.running.stdout.read_text()
        for expected in (f"{demo.gateway_url}/v1", demo.api_key, demo.model, "curl -sN", "from openai import OpenAI"):
            assert expected in said

    def test_the_printed_python_lines_work_as_they_stand(self, demo: Demo) -> None:
        demo.running.wait_until(lambda: "Ctrl-C" in demo.running.stdout.read_text())
        lines = demo.running.stdout.read_text().split("pip install openai):\n")[1].split("\nWhat was used")[0]
        code = "\n".join(line.removeprefix("  ") for line in lines.splitlines())
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_SECONDS)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.strip()

    def test_keys_are_readable_by_their_owner_only(self, demo: Demo) -> None:
        for name in ("demo.json", "demo.env", "demo-keys.json", "secrets.json"):
            assert stat.S_IMODE((demo.running.directory / name).stat().st_mode) == 0o600

    def test_no_key_is_in_any_log_or_on_any_command_line(self, demo: Demo) -> None:
        ask(demo)
        secrets = [demo.api_key, demo.admin_key, demo.platform_key]
        secrets += json.loads((demo.running.directory / "secrets.json").read_text())["peppers"].values()
        logs = b"".join(path.read_bytes() for path in (demo.running.directory / "logs").iterdir())
        lines = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in demo.running.list_descendants())
        for secret in secrets:
            assert secret.encode() not in logs
            assert secret.encode() not in lines

    def test_a_second_one_in_the_same_directory_is_refused(self, demo: Demo) -> None:
        again = tollway("demo", "--data-dir", str(demo.running.directory), *SIM)
        assert again.returncode == 1
        assert "is using" in again.stderr and "hint:" in again.stderr

    def test_a_port_in_use_is_one_clear_line(self, demo: Demo, tmp_path: Path) -> None:
        port = demo.gateway_url.rpartition(":")[2]
        refused = tollway("demo", "--data-dir", str(tmp_path), "--port", port, "--control-port", "0", "--engine", "sim")
        assert refused.returncode == 1
        assert refused.stderr.splitlines() == [
            f"tollway: port {port} on 127.0.0.1 is in use",
            "hint: choose another with --port; port 0 takes a free one",
        ]

    def test_a_killed_gateway_comes_back_and_no_request_is_refused_meanwhile(self, demo: Demo) -> None:
        assert ask(demo)
        (gateway,) = [pid for pid in demo.running.list_descendants() if b"gateway" in _command_line(pid).split(b"\0")]
        os.kill(gateway, signal.SIGKILL)
        assert ask(demo)


class TestLifeOfADemo:
    """Starts and stops."""

    def test_a_second_start_keeps_tenant_keys_and_usage(self, start: Start, tmp_path: Path) -> None:
        first = read_demo(start("demo", *SIM, directory=tmp_path))
        ask(first)
        first.running.wait_until(lambda: count_requests(first) == 1)
        assert first.running.stop(signal.SIGINT) == 0
        second = read_demo(start("demo", *SIM, directory=tmp_path))
        assert (second.api_key, second.admin_key) == (first.api_key, first.admin_key)
        assert count_requests(second) == 1
        ask(second)
        second.running.wait_until(lambda: count_requests(second) == 2)

    def test_ctrl_c_ends_every_process_and_exits_0(self, start: Start) -> None:
        demo = read_demo(start("demo", *SIM))
        pids = demo.running.list_descendants()
        assert len(pids) >= 3
        assert demo.running.stop(signal.SIGINT) == 0
        assert not [pid for pid in pids if is_alive(pid)]

    def test_ctrl_c_in_the_middle_of_the_start_leaves_nothing_and_the_next_start_works(self, start: Start) -> None:
        interrupted = start("demo", *SIM)
        interrupted.wait_until(lambda: len(interrupted.list_descendants()) >= 3)
        pids = interrupted.list_descendants()
        interrupted.stop(signal.SIGINT)
        assert not [pid for pid in pids if is_alive(pid)]
        ask(read_demo(start("demo", *SIM, directory=interrupted.directory)))

    def test_a_killed_supervisor_takes_its_children_along(self, start: Start) -> None:
        demo = read_demo(start("demo", *SIM))
        pids = demo.running.list_descendants()
        demo.running.process.kill()
        demo.running.process.wait(WAIT_SECONDS)
        _wait_for_the_end(pids)

    def test_a_newer_data_directory_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "tollway.json").write_text('{"format": 99}')
        refused = tollway("demo", "--data-dir", str(tmp_path), *SIM)
        assert refused.returncode == 1
        assert "newer Tollway (format 99" in refused.stderr


class TestServe:
    """The embedded default."""

    def test_hangup_replaces_the_gateway_without_refusing_a_connection(self, start: Start) -> None:
        serving = start("serve", *FREE)
        addresses = serving.wait_for_file("addresses.json")
        before = set(serving.list_descendants())
        serving.process.send_signal(signal.SIGHUP)
        with httpx2.Client(timeout=WAIT_SECONDS, trust_env=False) as http:

            def is_replaced() -> bool:
                answer = http.get(f"{addresses['gateway_url']}/v1/models", headers={"connection": "close"})
                assert answer.status_code in (401, 429)  # it answers; whoever asks so often without a key is told to wait
                return '"event": "replaced"' in serving.stdout.read_text()

            serving.wait_until(is_replaced)
        serving.wait_until(lambda: len(before - set(serving.list_descendants())) == 1)
        assert serving.stop() == 0

    def test_standard_output_is_one_json_object_a_line(self, start: Start) -> None:
        serving = start("serve", *FREE)
        serving.wait_for_file("addresses.json")
        assert serving.stop() == 0
        events = [json.loads(line) for line in serving.stdout.read_text().splitlines()]
        assert next(event for event in events if event["event"] == "ready")["gateway_url"]
        assert events[-1]["event"] == "stopped"

    def test_commands_find_it_by_its_data_directory(self, start: Start) -> None:
        serving = start("serve", *FREE)
        serving.wait_for_file("addresses.json")
        made = tollway("organizations", "create", "acme", "--data-dir", str(serving.directory))
        assert made.returncode == 0, made.stderr
        listed = tollway("organizations", "list", "--data-dir", str(serving.directory), "-o", "json")
        assert [each["name"] for each in json.loads(listed.stdout)] == ["acme"]


@pytest.mark.engines
def test_the_real_model_answers_and_is_counted(start: Start) -> None:
    demo = read_demo(start("demo", "--port", "0", "--control-port", "0"))
    assert demo.model == "smollm2-135m"
    assert ask(demo)
    demo.running.wait_until(lambda: count_requests(demo) == 1)


def _command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _wait_for_the_end(pids: list[int]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
