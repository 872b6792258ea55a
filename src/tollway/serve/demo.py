"""The demo: the embedded installation, engines to serve, and a tenant to use it; ready for the first request.

Everything is done as an operator would do it: real processes under the supervisor, and tenant, key, models and prices
through the public REST API. Each step looks first and then adds what is missing, so a second start keeps tenant, keys
and usage, and a start that was interrupted anywhere is simply repeated. What may differ from start to start, the
engines' addresses, is corrected.

`demo.json` in the data directory is written last: whoever sees it can send requests.
"""

import asyncio
import json
import os
import re
import shlex
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tollway.serve import data_directory, embedded
from tollway.serve.embedded import Installation
from tollway.serve.engine import find_model
from tollway.serve.logs import LogFiles, encode_report
from tollway.serve.sockets import open_listener
from tollway.serve.supervisor import Event, Program, Supervisor, run_until_signal
from tollway.settings import OperatorError, Settings
from tollway.worker_threads import run_in_thread

ORGANIZATION, PROJECT, CURRENCY = "demo", "demo", "EUR"
PERSON = "demo@example.com"
REAL_MODEL, SIMULATED_MODEL = "smollm2-135m", "sim-echo"

LIMITS = {"requests_per_minute": 1_000_000, "concurrent_requests": 10_000}
"""Limits of the project: set, so that responses carry their headers, and high enough for any load test on one machine."""

OPTIONS = ("--port", "--config", "--control-port", "--config", "--config")
"""Options of `tollway demo` for the addresses of gateway, internal, control and link."""

HTTP_SECONDS = 30.0
"""Deadline of one answer of the control plane, on a machine that is starting five processes."""

SNAPSHOT_SECONDS = 30.0
"""Deadline of the gateway for learning the new key and models; it takes milliseconds unless something is wrong."""

VARIABLES = "demo.env"
"""File of the data directory that a shell sources: where the demo listens and with which keys, under the names that OpenAI's SDKs and
Tollway's commands read."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A model of the demo: who serves it, at what prices by service tier, and where (None: not on this machine)."""

    name: str
    engine: str
    endpoints: tuple[str, ...]
    prices: Mapping[str, Mapping[str, str]]
    base_url: str | None


def run(settings: Settings, *, engine: str) -> int:
    """`tollway demo`: run until SIGTERM or SIGINT; returns the exit code. `engine`: "llama" for a real model where it
    can be had, or "sim" for the simulator alone."""
    started_at = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started_at:5.1f} s] {text}", file=sys.stderr, flush=True)

    if engine == "llama" and find_model() is None:
        say("llama.cpp or its model is not installed here (requirements/engine.txt); the simulator serves alone")
        engine = "sim"
    with embedded.opened(settings, OPTIONS) as installation, open_listener("127.0.0.1:0", option="--port") as simulator:
        return asyncio.run(_run(installation, simulator, engine == "llama", say))


async def _run(installation: Installation, simulator: socket.socket, real: bool, say: Say) -> int:
    files = LogFiles.of(installation.directory / "logs", installation.settings.log)
    log = files.open("demo.log")

    def report(event: Event) -> None:
        log.write(encode_report(event, time.time_ns() // 1000))
        say(" ".join(str(value) for value in event.values()))

    supervisor = Supervisor(files, report)

    async def begin() -> None:
        urls = await _start(supervisor, installation, simulator, real, say)
        demo = await _seed(installation, _models(urls), say)
        data_directory.write_text_atomically(installation.directory / VARIABLES, _shell_variables(demo), mode=0o600)
        data_directory.write_atomically(installation.directory / "demo.json", demo, mode=0o600)
        print(_welcome(demo, installation.directory), flush=True)

    try:
        await run_until_signal(supervisor, begin())
    finally:
        for name in ("demo.json", VARIABLES):  # a program that waits for the next start must not read the last one's
            (installation.directory / name).unlink(missing_ok=True)
        say("stopped")
        log.close()
    return 1 if supervisor.failed else 0


# ---- processes -------------------------------------------------------------------------------------------------------


async def _start(supervisor: Supervisor, installation: Installation, simulator: socket.socket, real: bool, say: Say) -> dict[str, str]:
    """Start all processes at once; returns the URL of each engine by name. A real engine that does not start is done
    without."""
    say("starting " + ("control, gateway, simulator and llama.cpp" if real else "control, gateway and simulator"))
    truth = installation.directory / "simulator" / "truth.jsonl"
    truth.parent.mkdir(exist_ok=True)
    programs = embedded.programs(installation)
    programs.append(
        Program(
            name="simulator",
            arguments=(
                *("-m", "tollway", "simulate", "--fd", str(simulator.fileno()), "--model", SIMULATED_MODEL),
                *("--truth-log", str(truth), "--drain-seconds", "1"),
            ),
            descriptors=(simulator.fileno(),),
        )
    )
    if real:
        # A port of its own, chosen now: an engine that crashed must come back where the catalog says it is.
        programs.append(
            Program(
                name="engine",
                arguments=("-m", "tollway.serve.engine", "--alias", REAL_MODEL, "--port", str(_find_free_port())),
            )
        )
    urls: dict[str, str] = {}

    async def start(program: Program) -> None:
        try:
            ready = await supervisor.start([program])
        except OperatorError as error:
            if program.name != "engine":
                raise
            say(f"{error.message}\n  the simulator serves alone")
            return
        urls[program.name] = ready[program.name]["url"]
        say(f"{program.name} is ready at {urls[program.name]}")

    async with asyncio.TaskGroup() as group:
        for program in programs:
            group.create_task(start(program))
    return urls


def _find_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def _models(urls: Mapping[str, str]) -> list[DemoModel]:
    return [
        DemoModel(
            name=REAL_MODEL,
            engine="llamacpp",
            endpoints=("chat/completions", "completions", "messages"),
            prices={
                "standard": {"input": "0.05", "cached_input": "0.01", "output": "0.20"},
                "batch": {"input": "0.025", "cached_input": "0.005", "output": "0.10"},
            },
            base_url=urls.get("engine"),
        ),
        DemoModel(
            name=SIMULATED_MODEL,
            engine="sim",
            endpoints=("chat/completions", "completions", "embeddings", "messages", "rerank", "responses", "score"),
            prices={
                "standard": {"input": "1", "cached_input": "0.25", "output": "2", "reasoning": "3"},
                "batch": {"input": "0.5", "cached_input": "0.125", "output": "1", "reasoning": "1.5"},
            },
            base_url=urls["simulator"],
        ),
    ]


# ---- tenant and catalog ----------------------------------------------------------------------------------------------


async def _seed(installation: Installation, models: list[DemoModel], say: Say) -> dict[str, Any]:
    """Make sure that tenant, key, models, prices and deployments are there and known to the gateway; returns
    demo.json."""
    addresses = installation.addresses()
    platform_key = data_directory.read_secrets(installation.directory, os.environ).platform_key
    if platform_key is None:
        raise OperatorError("there is no platform key", hint="set TOLLWAY_PLATFORM_KEY")
    async with _api(addresses["control_url"], platform_key) as api:
        for model in models:
            await _seed_model(api, model)
        keys = await _seed_tenant(api, installation.directory / "demo-keys.json")
        sign_in_url = await _seed_person(api, installation.directory / "control" / "mail")
    say("tenant, key, models and prices are in place")
    served = [model.name for model in models if model.base_url is not None]
    await _wait_for_models(addresses["gateway_url"], keys["api_key"], served)
    return {
        "gateway_url": addresses["gateway_url"],
        "control_url": addresses["control_url"],
        "internal_url": addresses["internal_url"],
        "api_key": keys["api_key"],
        "admin_key": keys["admin_key"],
        "platform_key": platform_key,
        "sign_in_url": sign_in_url,
        "model": served[0],
        "models": served,
    }


async def _seed_model(api: "_Api", model: DemoModel) -> None:
    path = f"/platform/models/{model.name}"
    found = await api.find(path)
    if found is None:
        if model.base_url is None:
            return
        found = await api.post("/platform/models", {"name": model.name, "endpoints": model.endpoints})
    priced = {each["tier"] for each in (await api.get("/platform/prices", model=model.name))["data"] if each["currency"] == CURRENCY}
    for tier, price in model.prices.items():
        if tier not in priced:
            await api.post("/platform/prices", {"model": model.name, "currency": CURRENCY, "tier": tier, **price})
    if not found["published"]:
        await api.post(f"{path}/publish", {})
    deployments = (await api.get("/platform/deployments", model=model.name, limit=100))["data"]
    mine = [each for each in deployments if each["engine"] == model.engine]
    if model.base_url is None:
        for each in mine:
            await api.post(f"/platform/deployments/{each['id']}/archive", {})
    elif not mine:
        deployment = {
            "model": model.name,
            "base_url": model.base_url,
            "engine": model.engine,
            "upstream_model": model.name,
        }
        await api.post("/platform/deployments", deployment)
    elif mine[0]["base_url"] != model.base_url:
        await api.post(f"/platform/deployments/{mine[0]['id']}", {"base_url": model.base_url})


async def _seed_tenant(api: "_Api", path: Path) -> dict[str, str]:
    """The organization, its project and their keys. Secrets are kept in `path`, so that a second start shows the same
    ones."""
    kept: dict[str, str] = json.loads(path.read_bytes()) if path.exists() else {}

    def keep(**more: str) -> None:
        kept.update(more)
        data_directory.write_atomically(path, kept, mode=0o600)

    organizations = (await api.get("/platform/organizations", limit=100))["data"]
    organization = next((each for each in organizations if each["name"] == ORGANIZATION), None)
    if organization is None:
        organization = await api.post("/platform/organizations", {"name": ORGANIZATION, "currency": CURRENCY})
        keep(admin_key=organization["admin_api_key"]["value"], admin_key_id=organization["admin_api_key"]["id"])
    api.act_for(organization["id"])
    if await api.find(f"/organization/admin_api_keys/{kept.get('admin_key_id', 'none')}") is None:
        made = await api.post("/organization/admin_api_keys", {"name": "demo"})
        keep(admin_key=made["value"], admin_key_id=made["id"])
    projects = (await api.get("/organization/projects", limit=100))["data"]
    project = next((each for each in projects if each["name"] == PROJECT), None)
    if project is None:
        project = await api.post("/organization/projects", {"name": PROJECT})
        await api.put(f"/organization/projects/{project['id']}/limits", LIMITS)
    keys = f"/organization/projects/{project['id']}/api_keys"
    if await api.find(f"{keys}/{kept.get('api_key_id', 'none')}") is None:
        made = await api.post(keys, {"name": "demo"})
        keep(api_key=made["value"], api_key_id=made["id"])
    return kept


async def _seed_person(api: "_Api", mail: Path) -> str | None:
    """The owner of the organization, who accepts an invitation as everybody does. Returns a link that signs them in once; None where a mail
    server has the invitation, or the address of control is not known to it."""
    found = (await api.get("/organization/users", emails=PERSON))["data"]
    if not found:
        for each in (await api.get("/organization/invites", limit=100))["data"]:
            if each["email"] == PERSON and each["status"] == "pending":
                await api.delete(f"/organization/invites/{each['id']}")
        await api.post("/organization/invites", {"email": PERSON, "role": "owner"})
        token = await run_in_thread(_find_invite_token, mail)
        if token is None:
            return None
        found = [(await api.post("/invites/accept", {"name": "Demo"}, key=token))["user"]]
    try:
        made = await api.post(f"/organization/users/{found[0]['id']}/sign_in_links", {})
    except OperatorError:
        return None
    url: str = made["url"]
    return url


def _find_invite_token(mail: Path) -> str | None:
    """Return the token of the latest invitation of the person of the demo, if it was written as a file."""
    for path in sorted(mail.glob("*.eml"), reverse=True):
        text = path.read_text()
        token = re.search(r"tw_invite_\w+", text)
        if f"To: {PERSON}\n" in text and token is not None:
            return token.group(0)
    return None


async def _wait_for_models(gateway_url: str, api_key: str, names: list[str]) -> None:
    """Wait until the gateway lists `names` for the key: it has the snapshot that holds both."""
    headers = {"authorization": f"Bearer {api_key}"}
    async with httpx2.AsyncClient(timeout=HTTP_SECONDS, trust_env=False) as http:
        try:
            async with asyncio.timeout(SNAPSHOT_SECONDS):
                while True:
                    try:
                        answer = await http.get(f"{gateway_url}/v1/models", headers=headers)
                        if answer.status_code == 200 and set(names) <= {each["id"] for each in answer.json()["data"]}:
                            return
                    except httpx2.HTTPError:
                        pass  # it may just be restarting
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise OperatorError("the gateway did not learn of the demo's models", hint="see logs/gateway.log") from None


class _Api:
    """The control plane's REST API below /v1, as the operator."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http

    def act_for(self, organization_id: str) -> None:
        self._http.headers["openai-organization"] = organization_id

    async def get(self, path: str, **query: Any) -> Any:
        return self._read(await self._http.get(path, params=query))

    async def find(self, path: str) -> Any:
        answer = await self._http.get(path)
        return None if answer.status_code == 404 else self._read(answer)

    async def post(self, path: str, body: Mapping[str, Any], key: str | None = None) -> Any:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return self._read(await self._http.post(path, json=body or None, headers=headers))

    async def delete(self, path: str) -> Any:
        return self._read(await self._http.delete(path))

    async def put(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._read(await self._http.put(path, json=body))

    def _read(self, answer: httpx2.Response) -> Any:
        if answer.status_code >= 400:
            request = answer.request
            raise OperatorError(f"{request.method} {request.url.path}: {answer.status_code} {answer.text[:300]}")
        return answer.json()


@asynccontextmanager
async def _api(control_url: str, key: str) -> AsyncIterator[_Api]:
    headers = {"authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(base_url=f"{control_url}/v1", headers=headers, timeout=HTTP_SECONDS, trust_env=False) as http:
        yield _Api(http)


# ---- welcome ---------------------------------------------------------------------------------------------------------


def _shell_variables(demo: Mapping[str, Any]) -> str:
    values = {
        "OPENAI_BASE_URL": f"{demo['gateway_url']}/v1",
        "OPENAI_API_KEY": demo["api_key"],
        "OPENAI_ADMIN_KEY": demo["admin_key"],
        "TOLLWAY_CONTROL_URL": demo["control_url"],
        "MODEL": demo["model"],
    }
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())


def _welcome(demo: Mapping[str, Any], directory: Path) -> str:
    url, key, model = f"{demo['gateway_url']}/v1", demo["api_key"], demo["model"]
    body = json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": "What is a toll road?"}]})
    tollway = _command()
    where = "" if directory == Path("tollway-data").absolute() else f" --data-dir {shlex.quote(str(directory))}"
    return f"""
Tollway is ready.

  inference       {url}
  administration  {demo["control_url"]}/v1
  console         {demo["control_url"]}/console
  API key         {key}
  admin key       {demo["admin_key"]}
  models          {", ".join(demo["models"])}
  sign in, once   {demo["sign_in_url"] or "`tollway users link` makes a link"}

All of this as variables of a shell:

  . {shlex.quote(str(directory / VARIABLES))}

Stream an answer:

  curl -sN {url}/chat/completions \\
    -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\
    -d '{body}'

The same with OpenAI's SDK for Python ({shlex.quote(sys.executable)} -m pip install openai):

  from openai import OpenAI
  client = OpenAI(base_url="{url}", api_key="{key}")
  for chunk in client.chat.completions.create(
      model="{model}", messages=[{{"role": "user", "content": "What is a toll road?"}}], stream=True
  ):
      print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)

What was used, and what it costs:

  {tollway} usage{where}
  {tollway} costs{where}

The data directory is {directory}. Ctrl-C stops all processes.
"""


def _command() -> str:
    """Return how this `tollway` is called from a shell."""
    script = Path(sys.executable).with_name("tollway")
    if shutil.which("tollway") == str(script):
        return "tollway"
    return str(script) if script.exists() else f"{sys.executable} -m tollway"
