"""Targets of the measurement: the gateway with everything switched on, nginx, the least relay in Python, other routers, and the
mock without anything in between.

Every `start_*` takes a directory of its own and the upstream's URL, starts one worker on the target's CPU and returns
a `Target`; whoever calls stops it by its pid. nginx is the yardstick: it checks a key and relays without buffering,
and does nothing else, so its figure is about what the kernel asks of any proxy.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec

import tollway
from bench.machine import Unavailable, find_free_port, get_tool, start
from tollway.domain.billing_classes import UnitPrices
from tollway.domain.catalog import Deployment, Endpoint, Engine
from tollway.domain.keys import RANDOM_BYTES, KeyType, digest, new_key
from tollway.domain.limits import REQUESTS_PER_MINUTE_MAX, TOKENS_PER_MINUTE_MAX, UNLIMITED, Limits
from tollway.domain.prices import PriceTerms, PriceVersion
from tollway.domain.snapshot import (
    DeploymentEntry,
    Entry,
    KeyEntry,
    ModelEntry,
    OrganizationEntry,
    ProjectEntry,
)
from tollway.domain.tenants import Status
from tollway.link.snapshot_copies import write_copy

API_KEY = new_key(KeyType.LIVE, bytes(RANDOM_BYTES)).secret  # worth nothing outside a benchmark's own gateway
MODEL = "m1"
PRICE_LIST = f"book_{1:032x}"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tollway-bench"

# Exact versions: a comparison with whatever is newest today could not be repeated.
VLLM_ROUTER_VERSION = "0.1.17"
SGLANG_ROUTER_VERSION = "0.3.2"
LITELLM_VERSION = "1.106.2"


@dataclass(frozen=True, slots=True)
class Target:
    """A server under load on 127.0.0.1. `pid` is the root of its process tree, None for the mock itself, which is not
    measured.
    """

    name: str
    port: int
    pid: int | None
    api_key: str = API_KEY
    model: str = MODEL
    version: str = ""
    command: str = ""
    metrics_url: str | None = None


Starter = Callable[[Path, str], Target]


def start_nginx(directory: Path, upstream_url: str) -> Target:
    """Target nginx: bearer key checked against a map, keep-alive upstream, `proxy_buffering off`. Raises `Unavailable`."""
    program = get_tool("nginx", "nginx-light")
    port = find_free_port()
    config = directory / "nginx.conf"
    temp_paths = " ".join(f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    # Pool and request limits are out of the way: reconnecting would be charged to nginx. The body buffer holds the
    # largest prompt, else nginx would write it to a file first.
    config.write_text(f"""\
daemon off; worker_processes 1; worker_rlimit_nofile 20000;
{"user root;" if os.geteuid() == 0 else ""}
pid {directory}/nginx.pid; error_log {directory}/error.log warn;
events {{ worker_connections 19990; }}
http {{
  access_log off; keepalive_requests 100000000; client_max_body_size 8m; client_body_buffer_size 1m; {temp_paths}
  upstream engine {{ server {upstream_url.removeprefix("http://")}; keepalive 2048; keepalive_requests 100000000; }}
  map_hash_bucket_size 256;
  map $http_authorization $known {{ default 0; "Bearer {API_KEY}" 1; }}
  server {{
    listen 127.0.0.1:{port} backlog=16384;
    location / {{
      if ($known = 0) {{ return 401; }}
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 600s;
    }}
  }}
}}
""")
    pid = start([program, "-c", str(config)], port=port, log=directory / "nginx.log")
    version = subprocess.run([program, "-v"], capture_output=True, text=True, timeout=10).stderr
    version = version.strip().removeprefix("nginx version: nginx/")
    return Target("nginx", port, pid, version=version, command="nginx, 1 worker, bearer key map, proxy_buffering off")


def start_bare(directory: Path, upstream_url: str) -> Target:
    """The least relay in Python on the gateway's transports (`bench.bare`): what the language costs before any feature."""
    port = find_free_port()
    root = str(Path(__file__).parent.parent)
    command = [sys.executable, "-m", "bench.bare", str(port), upstream_url.rpartition(":")[2], API_KEY]
    pid = start(command, port=port, log=directory / "bare.log", env={"PYTHONPATH": root})
    return Target("bare", port, pid, version=f"Python {sys.version.split()[0]}", command="bench/bare.py: uvloop, llhttp, a dict of keys")


def start_tollway(directory: Path, upstream_url: str, name: str = "tollway", source: Path | None = None) -> Target:
    """One `tollway gateway` without a control plane, as after a cold start from the snapshot on its disk, with a limit
    at every level, metering to a durable spool, metrics, and its log in a file. `source` holds the package to run, in any form: that of
    the bench's own process if None. Raises `Unavailable`.
    """
    port, internal_port = find_free_port(), find_free_port()
    pepper, node_key = os.urandom(32), new_key(KeyType.NODE, os.urandom(RANDOM_BYTES))
    entries = snapshot_entries(digest(pepper, API_KEY.encode()), upstream_url)
    write_copy(directory / "gateway" / "snapshot", 1, entries)
    env = {
        "PYTHONPATH": str(source or Path(tollway.__file__).parent.parent),
        "TOLLWAY_PEPPER": pepper.hex(),
        "TOLLWAY_VAULT_KEY": os.urandom(32).hex(),
        "TOLLWAY_NODE_ID": "node_" + os.urandom(16).hex(),
        "TOLLWAY_NODE_KEY": node_key.secret,
        "TOLLWAY__DATA_DIR": str(directory),
        "TOLLWAY__GATEWAY__LISTEN": f"127.0.0.1:{port}",
        "TOLLWAY__GATEWAY__INTERNAL": f"127.0.0.1:{internal_port}",
    }
    internal_url = f"http://127.0.0.1:{internal_port}"
    pid = start([sys.executable, "-m", "tollway", "gateway"], port=port, log=directory / "gateway.log", env=env)
    return Target(
        name,
        port,
        pid,
        version=tollway.__version__,
        command="tollway gateway, 1 process, all limits, durable spool, metrics, request log",
        metrics_url=f"{internal_url}/metrics",
    )


class Limited(StrEnum):
    """The limits that a benchmark's caller has."""

    NONE = "none"
    REQUESTS = "requests"  # requests per minute and concurrent requests, of key, project and organization
    TOKENS = "tokens"  # tokens per minute beside them, at six levels: those three, service account, project and organization on the model


def snapshot_entries(key_digest: bytes, upstream_url: str, limited: Limited = Limited.REQUESTS, deployments: int = 1) -> list[Entry]:
    """Return a platform with one caller, one model and its equal deployments, and limits that are checked and never reached."""
    limits = UNLIMITED
    if limited is not Limited.NONE:
        limits = Limits(requests_per_minute=REQUESTS_PER_MINUTE_MAX, concurrent_requests=REQUESTS_PER_MINUTE_MAX)
    by_model: dict[str, Limits] = {}
    if limited is Limited.TOKENS:
        limits = msgspec.structs.replace(limits, tokens_per_minute=TOKENS_PER_MINUTE_MAX)
        by_model = {MODEL: limits}
    price = PriceVersion(
        id=f"price_{1:032x}",
        list=PRICE_LIST,
        model=MODEL,
        currency="EUR",
        valid_from=0,
        unit_prices=UnitPrices(input=150_000, cached_input=75_000, output=600_000, reasoning=600_000),
    )
    deployment = Deployment(
        id="",
        model=MODEL,
        base_url=upstream_url,
        engine=Engine.VLLM,
        upstream_model=MODEL,
        tier=0,
        weight=1,
        region=None,
        status=Status.ACTIVE,
        created_at=0,
    )
    organization_id, project_id = f"org_{1:032x}", f"proj_{1:032x}"
    # One mock serves all; slashes at the end of an address mean nothing, and make it that of another engine for the gateway.
    equal = [
        msgspec.structs.replace(deployment, id=f"dep_{number:032x}", base_url=upstream_url + "/" * (number - 1))
        for number in range(1, deployments + 1)
    ]
    return [
        OrganizationEntry(id=organization_id, currency="EUR", terms=(PriceTerms(0, PRICE_LIST),), limits=limits, model_limits=by_model),
        ProjectEntry(id=project_id, organization_id=organization_id, limits=limits, model_limits=by_model),
        KeyEntry(
            id=f"key_{1:032x}",
            digest=key_digest,
            type=KeyType.LIVE,
            project_id=project_id,
            limits=limits,
            service_account_id=f"svc_{1:032x}",
            service_account_limits=limits if by_model else UNLIMITED,
        ),
        ModelEntry(id=MODEL, endpoints=(Endpoint.CHAT_COMPLETIONS,), created_at=0, prices=(price,)),
        *(DeploymentEntry(id=each.id, deployment=each) for each in equal),
    ]


def start_vllm_router(directory: Path, upstream_url: str) -> Target:
    """The Rust router of the vLLM project, one worker thread. It checks no key. Raises `Unavailable`."""
    # The package asks for an inference stack that its binary does not use; these are what its launcher imports.
    python = make_environment(
        f"vllm-router-{VLLM_ROUTER_VERSION}",
        ["--no-deps", f"vllm-router=={VLLM_ROUTER_VERSION}"],
        ["setproctitle", "fastapi", "uvicorn", "aiohttp", "orjson"],
    )
    port, metrics_port = find_free_port(), find_free_port()
    command = [str(python.parent / "vllm-router"), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", upstream_url, "--policy", "round_robin", "--log-level", "error"]
    command += ["--prometheus-port", str(metrics_port), "--max-concurrent-requests", "20000"]
    pid = start(command, port=port, log=directory / "router.log", env={"TOKIO_WORKER_THREADS": "1"})
    return Target("vllm-router", port, pid, version=VLLM_ROUTER_VERSION, command="TOKIO_WORKER_THREADS=1, no key")


def start_litellm(directory: Path, upstream_url: str) -> Target:
    """LiteLLM's proxy with a master key, one worker, no database. Raises `Unavailable`."""
    python = make_environment(f"litellm-{LITELLM_VERSION}", [f"litellm[proxy]=={LITELLM_VERSION}"])
    port, key = find_free_port(), "sk-benchmark"  # it takes no other form
    config = directory / "litellm.yaml"
    config.write_text(f"""\
model_list:
  - model_name: {MODEL}
    litellm_params: {{model: openai/{MODEL}, api_base: "{upstream_url}/v1", api_key: none}}
general_settings: {{master_key: {key}}}
litellm_settings: {{telemetry: false}}
""")
    command = [str(python.parent / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    env = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    pid = start([*command, "--num_workers", "1"], port=port, log=directory / "litellm.log", env=env)
    return Target("litellm", port, pid, key, version=LITELLM_VERSION, command="1 worker, master key, no database")


def external(name: str, command: str) -> Starter:
    """A starter for any other proxy; `{port}`, `{upstream}` (URL), `{upstream_port}`, `{key}` are filled in.

    For comparing another build of the gateway, or a proxy that this package does not know.
    """

    def start_external(directory: Path, upstream_url: str) -> Target:
        port = find_free_port()
        filled = command.format(port=port, upstream=upstream_url, upstream_port=upstream_url.rpartition(":")[2], key=API_KEY)
        pid = start(["env", *shlex.split(filled)], port=port, log=directory / "log.txt")
        return Target(name, port, pid, version="-", command=command)

    return start_external


def make_environment(name: str, *installs: Sequence[str]) -> Path:
    """The interpreter of an environment outside the repository, made on first use by these `pip install` arguments."""
    directory = CACHE / f"{name}-py{sys.version_info[0]}.{sys.version_info[1]}"
    python, complete = directory / "bin" / "python", directory / "complete"
    if not complete.exists():
        print(f"installing {name} into {directory}", flush=True)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(directory)],
            *([*pip, *rest] for rest in installs),
        ):
            done = subprocess.run(command, capture_output=True, text=True, timeout=900)
            if done.returncode:
                raise Unavailable(f"{shlex.join(command)} failed: {done.stderr[-300:]}")
        complete.touch()
    return python
