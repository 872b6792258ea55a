"""House rules as a test: the ones that ruff, mypy and import-linter cannot see. A rule that no tool checks decays.

Each rule is a pure function from the tree's text files to complaints that say what to do instead. It is run twice: on
this repository, where it must find nothing, and on a planted violation, where it must find that, and nothing in its
innocent twin.
"""

import ast
import re
import runpy
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parent.parent

Tree = dict[str, str]
"""Text files by their path from the repository's root."""

Rule = Callable[[Tree], Iterator[str]]

ROLE_NAMES = {
    "base", "common", "core", "handler", "handlers", "helper", "helpers", "manager", "managers", "misc", "models",
    "service", "services", "util", "utils",
}  # fmt: skip
"""Names that tell a role, not a thing; `models` would be AI models here, and those live in catalog.py."""

MONEY_FILES = (
    "domain/money.py",
    "domain/prices.py",
    "domain/price_books.py",
    "domain/preview.py",
    "domain/ledger.py",
    "control/collect.py",
)

LINES_MAX = 900
"""Longer than anybody holds in mind; most files should stay below a third of it."""

CODE_SUFFIXES = {".py", ".c", ".h", ".sh", ".html", ".css", ".js", ".md", ".toml"}

MIGRATIONS = "src/tollway/storage/migrations/versions/"

DECISION = re.compile(r"docs/decisions/(\d{4})-[a-z0-9-]+\.md")
DECISION_PARTS = ("## Context", "## Decision", "## Consequences")

# Written in pieces, so that this file does not break its own rules.
LEFTOVER = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b")
PRIVATE = re.compile(
    r"(?<![\w.~-])/(?:wo"
    r"rk|ro"
    r"ot)/"  # paths of one machine
    r"|\bsha"
    r"red/[\w-]+\.(?:md|toml)"  # pages that are not in this repository
    r"|\b(?:py"
    r"pi|python"
    r"hosted|npm"
    r"js|deb\.deb"
    r"ian)\.(?:org|com|io)\b"  # registries: everybody has their own mirror
    r"|\biss"
    r"ue #?\d+\b"  # trackers move; say the reason itself
)


def rooms_are_described_and_empty(tree: Tree) -> Iterator[str]:
    """A package's `__init__.py` is a docstring and nothing else; the top one also says `__version__`."""
    for path, text in _python(tree, "src/tollway/"):
        if PurePosixPath(path).name != "__init__.py":
            continue
        first, *rest = ast.parse(text).body or [ast.Pass()]
        if not (isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)):
            yield f"{path}: open with a docstring that says what this room owns, does not own, and may import"
        if path == "src/tollway/__init__.py":
            rest = [node for node in rest if not (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__")]
        if rest:
            yield f"{path}:{rest[0].lineno}: only the docstring belongs here; import from the defining module"


def files_are_named_for_things(tree: Tree) -> Iterator[str]:
    """No file or folder is named for a role."""
    for path, _ in _python(tree, ""):
        for part in PurePosixPath(path).with_suffix("").parts:
            if part in ROLE_NAMES or (part.rpartition("_")[2] in ROLE_NAMES and not part.startswith("test_")):
                yield f"{path}: {part!r} names a role; use a plural noun for things or a verb for a phase"


def migrations_form_one_line(tree: Tree) -> Iterator[str]:
    """Alembic's revisions are one chain: one root, one head, nothing missing."""
    parents: dict[str, str | None] = {}
    for path, text in _python(tree, MIGRATIONS):
        values = _constants(text)
        if "revision" not in values or "down_revision" not in values:
            yield f"{path}: a migration assigns the constants revision and down_revision"
            continue
        revision, parent = str(values["revision"]), values["down_revision"]
        if revision in parents:
            yield f"{path}: revision {revision} is taken; number it after the head (`make migration`)"
        parents[revision] = None if parent is None else str(parent)
    for revision, parent in parents.items():
        if parent is not None and parent not in parents:
            yield f"{MIGRATIONS}: {revision} follows {parent}, which is not here; point it at the revision before it"
    heads = sorted(set(parents) - set(parents.values()))
    roots = sorted(revision for revision, parent in parents.items() if parent is None)
    if parents and (len(heads) != 1 or len(roots) != 1):
        yield f"{MIGRATIONS}: heads {heads}, roots {roots}; rebase the newer migration on the other head"


def money_is_integer(tree: Tree) -> Iterator[str]:
    """No float enters the files that hold money: no literal, no annotation or call of `float`, no true division."""
    for name in MONEY_FILES:
        path = f"src/tollway/{name}"
        for node in ast.walk(ast.parse(tree.get(path, ""))):
            if isinstance(node, ast.Constant) and isinstance(node.value, float | complex):
                yield f"{path}:{node.lineno}: float literal {node.value!r}; money is integer pico-currency"
            elif isinstance(node, ast.Name) and node.id == "float":
                yield f"{path}:{node.lineno}: float; money is integer pico-currency, decimal strings at the edge"
            elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div):
                yield f"{path}:{node.lineno}: `/` makes a float of two integers; use // or the rounding in money.py"


def files_stay_readable(tree: Tree) -> Iterator[str]:
    """No hand-written file outgrows LINES_MAX."""
    for path, text in tree.items():
        lines = text.count("\n")
        if PurePosixPath(path).suffix in CODE_SUFFIXES and lines > LINES_MAX:
            yield f"{path}: {lines} lines; split it by subject (at most {LINES_MAX})"


def the_repository_stands_alone(tree: Tree) -> Iterator[str]:
    """Nothing points at one machine, at unpublished pages, at a registry's host or at a tracker's number."""
    for path, number, line in _lines(tree):
        if match := PRIVATE.search(line):
            yield f"{path}:{number}: {match.group()!r} means nothing to a reader elsewhere; say the thing itself"


def nothing_is_left_for_later(tree: Tree) -> Iterator[str]:
    """No reminders in the tree."""
    for path, number, line in _lines(tree):
        if match := LEFTOVER.search(line):
            yield f"{path}:{number}: {match.group()}; do it now, or write down where it is tracked without the marker"


def links_lead_somewhere(tree: Tree) -> Iterator[str]:
    """Relative links in Markdown point at a file or folder of the repository, and at a heading where they name one."""
    folders = {str(parent) for path in tree for parent in PurePosixPath(path).parents}
    for path, text in tree.items():
        if not path.endswith(".md"):
            continue
        prose = re.sub(r"^(```|~~~).*?^\1|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(\s*<?([^)\s>]+)", prose):
            if re.match(r"[a-z][a-z+.-]*:", target):
                continue
            place, _, anchor = target.partition("#")
            file = _resolve(path, place) if place else path
            if file not in tree and file not in folders:
                yield f"{path}: link to {target!r}: there is no {file}"
            elif anchor and file.endswith(".md") and anchor not in _anchors(tree[file]):
                yield f"{path}: link to {target!r}: {file} has no such heading"


def decisions_are_complete(tree: Tree) -> Iterator[str]:
    """Each decision record has its own number, a title and the three parts."""
    numbers: Counter[str] = Counter()
    for path, text in tree.items():
        if not (path.startswith("docs/decisions/") and path.endswith(".md")) or path.endswith("/README.md"):
            continue
        match = DECISION.fullmatch(path)
        if match is None:
            yield f"{path}: name it NNNN-what-was-decided.md"
            continue
        numbers[match[1]] += 1
        lines = text.splitlines() or [""]
        if not lines[0].startswith("# "):
            yield f"{path}: the first line is its title: '# The decision in a sentence'"
        for part in DECISION_PARTS:
            if part not in lines:
                yield f"{path}: needs a line {part!r} (see docs/decisions/0000-template.md)"
    for number, count in numbers.items():
        if count > 1:
            yield f"docs/decisions: {count} records are numbered {number}; take the next free number"


def _python(tree: Tree, under: str) -> Iterator[tuple[str, str]]:
    return ((path, text) for path, text in tree.items() if path.startswith(under) and path.endswith(".py"))


def _lines(tree: Tree) -> Iterator[tuple[str, int, str]]:
    return ((path, number, line) for path, text in tree.items() for number, line in enumerate(text.splitlines(), 1))


def _constants(text: str) -> dict[str, object]:
    """Top-level `name = constant` and `name: type = constant` of a module."""
    values: dict[str, object] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    values[target.id] = node.value.value
    return values


def _resolve(path: str, target: str) -> str:
    """`target`, as a link in the file `path` means it, as a path from the root."""
    parts: list[str] = []
    start = PurePosixPath(".") if target.startswith("/") else PurePosixPath(path).parent
    for part in (start / target.lstrip("/")).parts:
        if part == "..":
            parts = parts[:-1]
        else:
            parts.append(part)
    return "/".join(parts) or "."


def _anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a Markdown page."""
    prose = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#{1,6} +(.*?) *#*$", prose, flags=re.MULTILINE)
    seen: Counter[str] = Counter()
    anchors = set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    for heading in headings:
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return anchors


def read_tree() -> Tree:
    """Every UTF-8 file that git tracks or would track: a new file is held to the rules before its first commit."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    tree: Tree = {}
    for path in listing.stdout.decode().split("\0"):
        if path and (ROOT / path).is_file():
            try:
                tree[path] = (ROOT / path).read_text("utf-8")
            except UnicodeDecodeError:
                continue  # an image, an archive
    return tree


MIGRATION = "revision = {!r}\ndown_revision = {!r}\n"

PLANTED: dict[Rule, tuple[Tree, Tree]] = {
    rooms_are_described_and_empty: (
        {"src/tollway/wire/__init__.py": '"""Bytes."""\nfrom .sse import Event\n'},
        {"src/tollway/wire/__init__.py": '"""Bytes."""\n', "src/tollway/__init__.py": '"""It."""\n__version__ = "1"\n'},
    ),
    files_are_named_for_things: (
        {"src/tollway/gateway/http_utils.py": ""},
        {"src/tollway/control/service_accounts.py": "", "tests/control/test_models.py": ""},
    ),
    migrations_form_one_line: (
        {
            f"{MIGRATIONS}0001.py": MIGRATION.format("0001", None),
            f"{MIGRATIONS}0002.py": MIGRATION.format("0002", "0001"),
            f"{MIGRATIONS}0003.py": MIGRATION.format("0003", "0001"),
        },
        {
            f"{MIGRATIONS}0001.py": MIGRATION.format("0001", None),
            f"{MIGRATIONS}0002.py": MIGRATION.format("0002", "0001"),
        },
    ),
    money_is_integer: (
        {"src/tollway/domain/prices.py": "tax = amount / 100\n"},
        {"src/tollway/domain/prices.py": "tax = amount // 100\n", "src/tollway/gateway/route.py": "weight = 0.5\n"},
    ),
    files_stay_readable: (
        {"src/tollway/cli.py": "\n" * (LINES_MAX + 1)},
        {"src/tollway/cli.py": "\n" * LINES_MAX, "requirements/dev.txt": "\n" * 5000},
    ),
    the_repository_stands_alone: (
        {"docs/a.md": "Run it in /wo" + "rk/main."},
        {"docs/a.md": "The network/work/load of a shared/exclusive lock; an issue of 3 parts."},
    ),
    nothing_is_left_for_later: (
        {"src/tollway/cli.py": "x = 1  # TO" + "DO: two\n"},
        {"src/tollway/cli.py": "mkstemp('fileXXXXXX')\n"},
    ),
    links_lead_somewhere: (
        {"docs/a.md": "[there](b.md#how-to)", "docs/b.md": "# Why\n"},
        {"docs/a.md": "[there](b.md#how-to) [up](../docs) [web](https://example.com/x)", "docs/b.md": "## How to\n"},
    ),
    decisions_are_complete: (
        {"docs/decisions/0001-sqlite.md": "# We use SQLite\n\n## Context\n\n## Decision\n"},
        {"docs/decisions/0001-sqlite.md": "# We use SQLite\n\n## Context\n\n## Decision\n\n## Consequences\n"},
    ),
}


@pytest.fixture(scope="module")
def tree() -> Tree:
    return read_tree()


@pytest.mark.parametrize("rule", PLANTED, ids=lambda rule: rule.__name__)
def test_this_repository_keeps_the_rule(rule: Rule, tree: Tree) -> None:
    complaints = list(rule(tree))
    assert not complaints, "\n".join(["", *complaints])


@pytest.mark.parametrize("rule", PLANTED, ids=lambda rule: rule.__name__)
def test_the_rule_sees_a_violation_and_only_that(rule: Rule) -> None:
    guilty, innocent = PLANTED[rule]
    assert len(list(rule(guilty))) == 1
    assert not list(rule(innocent))


def test_the_tree_that_is_judged_is_this_one(tree: Tree) -> None:
    assert "tests/test_tidy.py" in tree
    assert "def read_tree" in tree["tests/test_tidy.py"]


def test_the_page_of_settings_is_in_step_with_their_declarations(tree: Tree) -> None:
    render = runpy.run_path(str(ROOT / "scripts" / "settings_page.py"))["render"]
    assert tree["docs/settings.md"] == render(), "run `make docs`"


def test_the_page_of_attacks_is_in_step_with_the_tests_that_try_them(tree: Tree) -> None:
    render = runpy.run_path(str(ROOT / "scripts" / "attacks_page.py"))["render"]
    assert tree["docs/attacks.md"] == render(), "run `make docs`"
