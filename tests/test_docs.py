"""The documentation is complete: every page is in the navigation, and every operation in the reference of the REST API. Its blocks can be
used: every command is parsed as the commands are declared, and every document and program by its language."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import yaml
from pydantic import BaseModel, ValidationError

from scripts import docs_site
from scripts.cli_page import list_commands
from scripts.rest_pages import make_example, read_description, render_pages
from tollway.cli.catalog import platform_file
from tollway.cli.catalog.deployments import read_fleet
from tollway.control.api.invoicing.party_schemas import BillingAccountWrite, LegalEntityWrite
from tollway.control.api.money.contracts import ContractFields
from tollway.settings import Settings, load

ROOT = Path(__file__).parents[1]
RENDERED = {"docs/cli.md"}
"""Pages without blocks of their own."""
PAGES = [page for page in docs_site.list_pages() if "/decisions/" not in page and page not in RENDERED]
COMMANDS = dict(list_commands())

FENCED = re.compile(r"^```([a-z]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?<=\n\n)((?: {4}.*\n|\n(?= {4}))+)")
COMMAND = re.compile(r"(?:^|[;&|(])\s*(?:\w+=\S+ )*(?:\.venv/bin/|docker run --rm )?tollway (.*)")
SHORTENED = re.compile(r"\.\.\.|…")
"""Marks of something that is left out of a block."""


class Block(NamedTuple):
    """A block of code of a page. `language`: of its fence; empty for an indented block and for a fence without one."""

    page: str
    language: str
    code: str


def list_blocks() -> Iterator[Block]:
    for page in PAGES:
        text = (ROOT / page).read_text("utf-8")
        for language, code in FENCED.findall(text):
            yield Block(page, language, code)
        for code in INDENTED.findall(FENCED.sub("", text)):
            yield Block(page, "", re.sub("^    ", "", code, flags=re.MULTILINE))


BLOCKS = list(list_blocks())


def list_called() -> Iterator[tuple[str, list[str]]]:
    """Yield the words of each call of tollway in a block, with its page. Substitutions of the shell are words, too."""
    for block in BLOCKS:
        if block.language not in ("", "sh"):
            continue
        for line in re.sub(r"\\\n\s*", " ", block.code).splitlines():
            found = COMMAND.search(line)
            if found is None:
                continue
            words = shlex.split(re.sub(r"\$\([^)]*\)", "VALUE", found[1]).replace("(", " ( ").replace(")", " ) "), comments=True)
            ends = [index for index, word in enumerate(words) if re.fullmatch(r"[>|;&()<]+|[12]?>.*", word)]
            yield block.page, words[: ends[0]] if ends else words


CALLED = list(list_called())


def test_commands_of_pages_exist_with_their_options() -> None:
    refused = []
    for page, words in CALLED:
        name = next((" ".join(words[:count]) for count in (3, 2, 1) if " ".join(words[:count]) in COMMANDS), "")
        try:
            COMMANDS[name].make_context(name, words[len(name.split()) :])
        except Exception as error:  # the classes of the library that parses are private
            refused.append(f"{page}: tollway {' '.join(words)}: {error}")
    assert not refused and len(CALLED) > 100, "\n".join(["", *refused])


def test_blocks_of_every_language_can_be_read() -> None:
    read = {"json": json.loads, "yaml": yaml.safe_load, "python": lambda code: compile(code, "block", "exec", dont_inherit=True)}
    for block in BLOCKS:
        if block.language in read and not (block.language == "json" and SHORTENED.search(block.code)):
            try:
                read[block.language](block.code)
            except (ValueError, SyntaxError, yaml.YAMLError) as error:
                pytest.fail(f"{block.page}: {error}: {block.code}")
        elif block.language == "sh":
            checked = subprocess.run(["bash", "-n"], input=block.code, capture_output=True, text=True)
            assert checked.returncode == 0, (block.page, checked.stderr)
    assert {block.language for block in BLOCKS} <= {"", "sh", "sql", "js", *read}


def test_platform_files_of_pages_are_valid(tmp_path: Path) -> None:
    texts = [block.code for block in BLOCKS if re.search(r"^models:", block.code, re.MULTILINE)]
    assert len(texts) >= 2
    for text in texts:
        path = tmp_path / "platform.yaml"
        path.write_text(re.sub(r".*<<'END'\n(.*?)^END.*", r"\1", text, flags=re.DOTALL | re.MULTILINE))
        assert platform_file.read(path).models


RUN_AS_PRINTED = {
    "README.md": "tests/system/test_readme.py",
    "docs/tutorial.md": "tests/system/test_tutorial.py",
    "docs/connecting-clients.md": "tests/sdks/test_lines.py",
}
"""Pages whose blocks in `sh`, `python` and `js` a test runs as they are printed."""

DRAWING = re.compile("[─▶│┘]")
"""Lines and arrows of a drawing, which is nothing to run."""

NOT_RUN = {
    ("ARCHITECTURE.md", "", " clients ─▶"): "a drawing",
    ("docs/apis.md", "", "cache-control:"): "a header of an answer",
    ("docs/batches.md", "", "file = client"): "a part of a program; tests/system/test_batches.py runs the same calls",
    ("docs/batches.md", "", '{"custom_id"'): "a line of a file; tests/system/test_batches.py sends such lines",
    ("docs/connecting-clients.md", "sh", "export ENABLE_OPENAI_API"): "variables of Open WebUI, which cannot be had here",
    ("docs/deployment.md", "sql", "CREATE ROLE"): "needs a superuser; scripts/postgres.py makes the same roles for every test",
    ("docs/deployment.md", "", "docker compose"): "needs Docker; tests/system/test_compose.py runs the parts as processes",
    ("docs/deployment.md", "", "kubectl exec"): "needs a cluster; tests/test_chart.py renders the chart",
    ("docs/grpc.md", "python", "import tritonclient"): "a part of a program; tests/sdks/triton.py is a whole one",
    ("docs/guardrails.md", "json", "{"): "answers of a guardrail; tests/gateway/test_guardrails.py sends them",
    ("docs/identity.md", "", "curl "): "needs a service account; tests/control/authentication has the request",
    ("docs/limits.md", "", "x-ratelimit-"): "headers of an answer; tests/gateway/test_limit_answers.py compares them",
    ("docs/money.md", "", '{"event_id"'): "the form of a leaf of a proof; tests/domain/test_proofs.py",
    ("docs/proxies.md", "", "nginx -t"): "reloads a server of the system; tests/system/test_proxies.py runs the file",
    ("docs/proxies.md", "", "proxy_set_header"): "lines of a configuration; tests/system/test_proxies.py runs the file",
    ("docs/proxies.md", "", "haproxy -c"): "reloads a server of the system; tests/system/test_proxies.py runs the file",
    ("docs/proxies.md", "", "envoy --mode"): "tests/system/test_proxies.py runs both commands on the file",
    ("docs/routing.md", "sh", "vllm serve"): "starts vLLM, which needs a GPU; tests/engines",
    ("docs/sinks.md", "", "# control.sinks.kafka"): "needs a server with SASL; tests/control/eventing/test_sinks.py gives properties",
    ("docs/sinks.md", "", "nats stream add"): "needs the command of NATS; tests/control/eventing/test_sinks.py makes the same stream",
    ("docs/sinks.md", "", "export TOLLWAY_SINK"): "a variable",
    ("docs/tls.md", "", "curl "): "needs a public name; tests/gateway/test_listener.py has TLS",
    ("docs/tls.md", "", "TOLLWAY_CONTROL_LINK_URL"): "a variable",
    ("docs/usage-files.md", "", "control/usage"): "names of files",
    ("docs/usage-files.md", "", "SET VARIABLE"): "run as printed by tests/control/metering/test_usage_exports.py",
    ("docs/usage-files.md", "sql", "CREATE TABLE"): "needs ClickHouse, which cannot be had here",
}
"""Blocks that are neither run nor read by the product, by page, language and beginning, with the reason or with what is tried instead."""


FIELDS: dict[str, type[BaseModel]] = {"contract": ContractFields, "seller": LegalEntityWrite, "account": BillingAccountWrite}
"""Request of the REST API that a file of this name holds, wherever a page shows one."""


def get_errors(model: type[BaseModel], content: Any) -> list[Any]:
    """Return what is wrong with the fields of a request."""
    try:
        model.model_validate(content)
    except ValidationError as error:
        return list(error.errors())
    return []


def read_fields(page: str, code: str, scratch: Path) -> bool:
    """Have the product read a block in YAML as it reads such a file. Return False where it is no file of the product."""
    named = re.split(r"^# (?:in )?(\w+)\.yaml\n", code, flags=re.MULTILINE)[1:]
    for name, text in zip(named[::2], named[1::2], strict=True):
        content = yaml.safe_load(text)
        wrong = get_errors(FIELDS[name], content)
        assert not [each for each in wrong if "name" in content or each["type"] != "missing"], (page, name, wrong)
    if named:
        return True
    try:
        content = yaml.safe_load(code)
    except yaml.YAMLError:
        return False
    if not isinstance(content, dict):
        return False
    path = scratch / "block.yaml"
    path.write_text(code)
    if set(content) <= {field.name for field in msgspec.structs.fields(Settings)}:
        load({}, {}, path)
    elif "models" in content:
        platform_file.read(path)
    elif set(content) <= set(BillingAccountWrite.model_fields):
        assert not [each for each in get_errors(BillingAccountWrite, content) if each["type"] != "missing"]
    elif page == "docs/prices.md":
        platform_file.read_prices(path)
    elif page == "docs/routing.md":
        read_fleet(path)
    else:
        return False
    return True


def test_every_block_is_run_or_read_by_the_product_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_KEY", "a key")  # a file of docs/routing.md names it
    unknown, used = [], set()
    for page, language, code in BLOCKS:
        reason = next((each for each in NOT_RUN if each[:2] == (page, language) and code.startswith(each[2])), None)
        if reason is not None:
            used.add(reason)
            continue
        if page in RUN_AS_PRINTED and language:
            assert page.rpartition("/")[2] in (ROOT / RUN_AS_PRINTED[page]).read_text()
            continue
        is_read = language in ("", "yaml") and read_fields(page, code, tmp_path)
        lines = code.splitlines() if language in ("", "sh") else []
        is_parsed = any(COMMAND.search(line) or line.lstrip().startswith("make ") for line in lines)
        if not is_read and not is_parsed and not DRAWING.search(code):
            unknown.append(f"{page}: {code[:60]!r}")
    assert unknown == [] and set(NOT_RUN) - used == set()
    cited = {path for reason in NOT_RUN.values() for path in re.findall(r"\b(?:tests|scripts)/[\w/.]*\w", reason)}
    assert [path for path in cited if not (ROOT / path).exists()] == []


def test_words_of_the_makefile_in_blocks_exist() -> None:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for block in BLOCKS for word in re.findall(r"^ *make ([a-z][a-z-]*)", block.code, re.MULTILINE)}
    assert named and named <= known


def test_every_page_is_in_one_part_of_the_navigation() -> None:
    parts = docs_site.read_navigation((ROOT / docs_site.START).read_text("utf-8"))
    assert list(parts) == ["Tutorial", "How-to guides", "Reference", "Explanation"]
    named = sorted(page for pages in parts.values() for page in pages)
    decisions = {page for page in docs_site.list_pages() if "/decisions/" in page and page != docs_site.DECISIONS}
    assert named == sorted({*docs_site.list_pages()} - decisions - {docs_site.START})


def test_reference_of_the_rest_api_has_every_operation_with_an_example() -> None:
    document = read_description()
    pages = render_pages(document)
    text = "".join(pages.values()).replace("\\", "")
    operations = [(method, path) for path, each in document["paths"].items() for method in each]
    assert len(operations) > 250 and len(pages) > 30
    assert [each for each in operations if f"\n## {each[0].upper()} {each[1]}\n" not in text] == []
    assert text.count("\ncurl ") == len(operations)


def test_example_of_a_schema_that_contains_itself_ends() -> None:
    schemas: dict[str, Any] = {"Tree": {"properties": {"name": {"examples": ["a"]}, "under": {"$ref": "#/components/schemas/Tree"}}}}
    example = make_example({"$ref": "#/components/schemas/Tree"}, schemas)
    assert example["name"] == example["under"]["name"] == "a"
    assert json.dumps(example).endswith("null" + "}" * json.dumps(example).count("{"))
