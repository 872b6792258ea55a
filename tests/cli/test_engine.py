"""The small real engine: found without being imported, ready when it answers, gone when it is told."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

import tollway
from tollway.serve import engine

WAIT_SECONDS = 120.0
"""Only so that a failure does not hang."""


def test_without_its_packages_there_is_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ENGINE_PACKAGE", "tollway_no_such_package")
    assert engine.find_model() is None


@pytest.mark.engines
def test_the_model_is_found_without_importing_its_package() -> None:
    model = engine.find_model()
    assert model is not None and model.suffix == ".gguf"
    assert engine.MODEL_PACKAGE not in sys.modules


@pytest.mark.engines
def test_it_answers_once_it_is_ready_and_ends_on_sigterm() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tollway.serve.engine", "--alias", "small"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(tollway.__file__).parents[1])},
    )
    with process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            assert ready["event"] == "ready"
            body = {"model": "small", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
            answer = httpx2.post(f"{ready['url']}/v1/chat/completions", json=body, timeout=WAIT_SECONDS, trust_env=False)
            assert answer.json()["usage"]["completion_tokens"] > 0
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS) == 0
