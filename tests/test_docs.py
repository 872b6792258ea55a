"""The documentation is complete: every page is in the navigation, and every operation in the reference of the REST API. Its blocks can be
used: every command is parsed as the commands are declared, and every document and program by its language."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from scripts import docs_site
from scripts.cli_page import list_commands
from scripts.rest_pages import make_example, read_description, render_pages
from tollway.cli.catalog import platform_file

ROOT = Path(__file__).parents[1]
RENDERED = {"docs/cli.md"}
"""Pages without blocks of their own."""
PAGES = [page for page in docs_site.list_pages() if "/decisions/" not in page and page not in RENDERED]
COMMANDS = dict(list_commands())

FENCED = re.compile(r"^```([a-z]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?<=\n\n)((?: {4}.*\n|\n(?= {4}))+)")
COMMAND = re.compile(r"(?:^|[;&|(])\s*(?:\.venv/bin/|docker run --rm )?tollway (.*)")
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
