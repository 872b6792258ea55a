"""House rules as a test: the ones that ruff, mypy and import-linter cannot see. A rule that no tool checks decays.

Each rule is a pure function from the tree's text files to complaints that say what to do instead. It is run twice: on
this repository, where it must find nothing, and on a planted violation, where it must find that, and nothing in its
innocent twin.
"""

import ast
import json
import re
import runpy
import subprocess
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
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

MONEY_NAME = re.compile(r"(?<![a-z])(?:pico|money|amounts?|prices?|ledger|postings?)(?![a-z])")
"""Part of an identifier or of an imported module that has to do with amounts. A file of MONEY_PACKAGES that uses such a
name holds money."""

MONEY_PACKAGES = ("src/tollway/domain/", "src/tollway/control/", "src/tollway/storage/")
"""Packages that compute or store amounts; the others only display them."""

NOT_INTEGERS: dict[tuple[str, str], str] = {
    ("src/tollway/domain/reconciliation.py", ""): "shares of token counts in percent, not amounts",
    ("src/tollway/control/reconciliation/reconcile.py", ""): "seconds and shares of token counts, not amounts",
    ("src/tollway/control/api/metering/reconciliation.py", ""): "shares of token counts in percent, not amounts",
    ("src/tollway/control/api/app.py", ""): "timeouts and durations in seconds, not amounts",
    ("src/tollway/control/api/bounds/limit_schemas.py", "reset_seconds"): "seconds until a limit resets, not amounts",
    (
        "src/tollway/control/api/metering/usage.py",
        "float(decimal)",
    ): "OpenAI's costs API answers with JSON numbers, beside an exact decimal",
    ("src/tollway/control/eventing/otlp.py", "/ 1_000_000"): "microseconds become the seconds of OTLP: times, not amounts",
    ("src/tollway/control/api/metering/request_log.py", "_ms: float"): "milliseconds, not amounts",
    ("src/tollway/control/api/metering/request_log.py", "/ 1000"): "microseconds become milliseconds: times, not amounts",
    ("src/tollway/control/api/metering/usage.py", "_ms: float"): "milliseconds, not amounts",
    ("src/tollway/control/api/metering/usage.py", "/ 1000"): "microseconds become milliseconds: times, not amounts",
}
"""Lines of money files on which a float is correct, by path and a part of the line, with the reason."""

LINES_MAX = 900
"""Longer than anybody holds in mind; most files should stay below a third of it."""

TUPLE_VALUES_MAX = 3
"""Values of a tuple without names that a reader still has before the eyes."""

ROWS = {"tuple[object, ...]", "tuple[Any, ...]", "Units"}
"""Annotations of functions whose tuple is a row of a table, by its list of columns, or a vector, by its list of quantities."""

TUPLES_ALLOWED: dict[tuple[str, str], str] = {
    ("src/tollway/domain/addresses.py", "def is_metadata_peer"): "the address of an IPv6 peer, as the operating system gives it",
}
"""Lines that may have a longer one, by path and a part of the line, with the reason."""

HTTP_CLIENT = re.compile(r"httpx2\.(get|post|put|patch|delete|head|request|stream|Client|AsyncClient)")
"""Calls that make a client or a request."""

WAITS = {"wait_for": 2, "timeout": 1, "join": 1, "wait": 1}
"""Calls whose last argument is the longest wait in seconds, with the number of their arguments then."""

CODE_SUFFIXES = {".py", ".c", ".h", ".sh", ".html", ".css", ".js", ".md", ".toml"}

MIGRATIONS = "src/tollway/storage/migrations/versions/"
STORAGE = "src/tollway/storage/"

PROSE_AREAS = ("src/", "tests/", "bench/", "fuzz/", "reliability/", "scripts/", "docs/", "verifier/")
PROSE_SUFFIXES = {".py", ".md", ".sh", ".toml"}

BANNED_WORDS = {
    r"doors?": "route or endpoint",
    r"rooms?": "package or module; space, if it is about capacity",
    r"judg(?:e|es|ed|ing|ements?|ments?)": "validate, classify, rate or throttle",
    r"strays?": "rejected record",
    r"payers?": "billing account",
    r"strangers?": "unauthenticated clients",
    r"habits?": "capabilities",
    r"entry ?rules": "EdgePolicy",
    r"(?:let|lets|letting) go of": "release",
    r"(?:take|takes|taken|took) in(?! (?:account|turn|place|parallel|advance|order))": "ingest",
    r"(?:put|puts|putting) aside": "quarantine",
    r"(?:tell|tells|told) apart": "distinguish, group by",
    r"who does": "name the actor",
    r"for ever": "indefinitely",
    r"of nobody": "without an owner",
    r"the same of": "repeat the noun",
    r"likewise": "also, or repeat the verb",
    r"sick": "unavailable, failing",
    r"(?:life|lives) of (?:a|the) gateway|gateway's (?:life|lives)": "run or epoch",
    r"way of a record": "metering pipeline",
    r"(?<!there )is no (?!longer|more|less|later)": "is not a",
    r"(?:six|the|every|are|is) (?:nouns?|verbs?)": "resources; phases or operations",
    r"two facts": "two data flows",
}
"""Private metaphors and turns of speech, as patterns between word boundaries, with what to write in their place. An
underscore counts as a space, so that names are checked too."""

WORD = re.compile("|".join(rf"(?<![A-Za-z])(?:{pattern})(?![a-z])" for pattern in BANNED_WORDS), re.IGNORECASE)

WORDS_ALLOWED: dict[tuple[str, str], str] = {
    ("tests/test_tidy.py", ""): "names the words that it bans",
    ("src/tollway/gateway/dialects/fields.py", '"bootstrap_room"'): "a request field of SGLang",
}
"""Lines that may use a banned word, by path and a part of the line ("" for the whole file), with the reason."""

FRAGMENT = re.compile(r"[a-z]|(?:Whether|What|Who|Whose|How|Where|When|Why|Which|Until|Between|That|So|Of|If|Because|Than|And|But|Or)\b")
"""The start of a docstring that cannot be understood alone."""

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


def packages_are_described_and_empty(tree: Tree) -> Iterator[str]:
    """A package's `__init__.py` is a docstring and nothing else; the top one also says `__version__`."""
    for path, text in _python(tree, "src/tollway/"):
        if PurePosixPath(path).name != "__init__.py":
            continue
        first, *rest = ast.parse(text).body or [ast.Pass()]
        if not (isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)):
            yield f"{path}: open with a docstring that says what this package owns, does not own, and may import"
        if path == "src/tollway/__init__.py":
            rest = [node for node in rest if not (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__")]
        if rest:
            yield f"{path}:{rest[0].lineno}: only the docstring belongs here; import from the defining module"


def lists_of_modules_are_whole(tree: Tree) -> Iterator[str]:
    """The docstring of a package that lists its "Modules by subject" names each of its modules and packages, and no others."""
    for path, text in _python(tree, "src/tollway/"):
        _, marker, listed = text.partition("Modules by subject")
        if PurePosixPath(path).name != "__init__.py" or not marker:
            continue
        package = path.removesuffix("__init__.py")
        inside = {other.removeprefix(package).partition("/")[0].removesuffix(".py") for other, _ in _python(tree, package)} - {"__init__"}
        named = set(re.findall(r"`(\w+)`", listed))
        for module in sorted(inside ^ named):
            yield f"{path}: {module!r} is {'not listed' if module in inside else 'listed, and not there'}"


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
    """No float enters a file that holds money: no literal, no annotation or call of `float`, no true division."""
    for path, text in (file for package in MONEY_PACKAGES for file in _python(tree, package)):
        module = ast.parse(text)
        if not any(MONEY_NAME.search(name) for name in _identifiers(module)):
            continue
        lines = text.splitlines()
        for node in ast.walk(module):
            if isinstance(node, ast.Constant) and isinstance(node.value, float | complex):
                complaint = f"float literal {node.value!r}; money is integer pico-currency"
            elif isinstance(node, ast.Name) and node.id == "float":
                complaint = "float; money is integer pico-currency, decimal strings at the edge"
            elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div) and not _is_path(node):
                complaint = "`/` makes a float of two integers; use // or the rounding in money.py"
            else:
                continue
            if not _is_allowed(path, lines[node.lineno - 1], NOT_INTEGERS):
                yield f"{path}:{node.lineno}: {complaint}"


def schemas_are_protected(tree: Tree) -> Iterator[str]:
    """Every module of table definitions is protected by the import contracts, so that only storage builds queries."""
    contracts = tomllib.loads(tree.get("pyproject.toml", "")).get("tool", {}).get("importlinter", {}).get("contracts", [])
    protected = {module for contract in contracts for module in contract.get("protected_modules", ())}
    for path, _ in _python(tree, STORAGE + "schema"):
        module = path.removeprefix("src/").removesuffix(".py").replace("/", ".")
        if module not in protected:
            yield f"pyproject.toml: add {module} to protected_modules"
    for module in sorted(protected):
        file = f"src/{module.replace('.', '/')}"
        if f"{file}.py" not in tree and f"{file}/__init__.py" not in tree:
            yield f"pyproject.toml: protected module {module} does not exist"


def words_are_terms_of_the_field(tree: Tree) -> Iterator[str]:
    """No name, comment, docstring, message or page uses a banned word."""
    for path, number, line in _lines(tree):
        if _is_prose(path) and (match := WORD.search(line.replace("_", " "))) and not _is_allowed(path, line, WORDS_ALLOWED):
            advice = next(write for pattern, write in BANNED_WORDS.items() if re.search(pattern, match.group() + " ", re.IGNORECASE))
            yield f"{path}:{number}: {match.group()!r}; write: {advice}"


def docstrings_stand_alone(tree: Tree) -> Iterator[str]:
    """A docstring opens with a verb or a noun phrase."""
    for path, text in _python(tree, ""):
        for node in ast.walk(ast.parse(text)) if _is_prose(path) else ():
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                opening = " ".join(node.value.value.split()[:4])
                if FRAGMENT.match(opening):
                    yield f"{path}:{node.lineno}: {opening!r}: open the docstring with a verb or a noun phrase"


def waits_are_patient(tree: Tree) -> Iterator[str]:
    """A client in a test says how long it waits, and no test waits only seconds for what must happen: a busy machine fails neither."""
    for path, text in _python(tree, "tests/"):
        for node in ast.walk(ast.parse(text)) if not path.startswith("tests/simulation/") else ():  # where time is simulated
            if not isinstance(node, ast.Call):
                continue
            called, named = ast.unparse(node.func), {each.arg for each in node.keywords}
            if HTTP_CLIENT.fullmatch(called) and not named & {"timeout", "transport", None}:
                yield f"{path}:{node.lineno}: {called} without a timeout gives up after 5 s; give it tests.patience.CLIENT_SECONDS"
            seconds = node.args[-1] if len(node.args) == WAITS.get(called.rpartition(".")[2], -1) else None
            if isinstance(seconds, ast.Constant) and isinstance(seconds.value, int | float) and 1 <= seconds.value < 20:
                yield f"{path}:{node.lineno}: {called} waits {seconds.value} s; give it tests.patience.PATIENCE_SECONDS"


def nothing_stands_unused(tree: Tree) -> Iterator[str]:
    """A function or class of the package is named a second time outside of the tests, unless a decorator registers it."""
    named = Counter(word for path, text in tree.items() if not path.startswith(("tests/", "docs/")) for word in re.findall(r"\w+", text))
    for path, text in _python(tree, "src/tollway/"):
        for node in ast.parse(text).body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.decorator_list:
                continue
            if named[node.name] == 1 and not node.name.startswith("__"):  # Python calls those, such as a module's __getattr__
                yield f"{path}:{node.lineno}: nothing but tests uses {node.name}; delete it"


def long_tuples_have_names(tree: Tree) -> Iterator[str]:
    """A tuple of more than three values is a NamedTuple or a dataclass: nobody should have to count what stands where. Rows of a table and
    vectors are not concerned: their functions return one of ROWS."""
    for path, text in _python(tree, "src/tollway/"):
        module = ast.parse(text)
        lines = text.splitlines()
        found: dict[int, ast.AST] = {}
        for node in ast.walk(module):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("tuple", "Tuple"):
                if isinstance(node.slice, ast.Tuple) and len(node.slice.elts) > TUPLE_VALUES_MAX:
                    found[node.lineno] = node
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _returns_row(node):
                for part in ast.walk(node):
                    value = part.value if isinstance(part, ast.Return | ast.Yield) else None
                    if isinstance(value, ast.Tuple) and len(value.elts) > TUPLE_VALUES_MAX:
                        found[value.lineno] = value
        for number in sorted(found):
            if not _is_allowed(path, lines[number - 1], TUPLES_ALLOWED):
                yield f"{path}:{number}: give the values of this tuple names (NamedTuple)"


def files_stay_readable(tree: Tree) -> Iterator[str]:
    """No hand-written file outgrows LINES_MAX."""
    for path, text in tree.items():
        lines = text.count("\n")
        if "\nMade by `make docs`" in text[:200]:
            continue
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


def _is_prose(path: str) -> bool:
    return (path.startswith(PROSE_AREAS) or "/" not in path) and (PurePosixPath(path).suffix in PROSE_SUFFIXES or path == "Makefile")


def _is_allowed(path: str, line: str, allowed: Iterable[tuple[str, str]]) -> bool:
    return any(path == allowed_path and part in line for allowed_path, part in allowed)


def _identifiers(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.alias):
            yield node.name
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def _returns_row(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return function.returns is not None and ast.unparse(function.returns) in ROWS


def _is_path(node: ast.BinOp | ast.AugAssign) -> bool:
    """True for `path / "name"`: a division with text on either side joins paths."""
    sides = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.value,)
    return any(isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str)) for side in sides)


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
    packages_are_described_and_empty: (
        {"src/tollway/wire/__init__.py": '"""Bytes."""\nfrom .sse import Event\n'},
        {"src/tollway/wire/__init__.py": '"""Bytes."""\n', "src/tollway/__init__.py": '"""It."""\n__version__ = "1"\n'},
    ),
    lists_of_modules_are_whole: (
        {
            "src/tollway/wire/__init__.py": '"""Bytes. Modules by subject: `sse`."""\n',
            "src/tollway/wire/sse.py": "",
            "src/tollway/wire/new.py": "",
        },
        {
            "src/tollway/wire/__init__.py": '"""Bytes, of `nothing`. Modules by subject: `sse`, `old`."""\n',
            "src/tollway/wire/sse.py": "",
            "src/tollway/wire/old/__init__.py": '"""Old bytes."""\n',
        },
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
        {"src/tollway/control/taxes.py": "tax = amount_pico / 100\n"},
        {"src/tollway/control/taxes.py": "tax = amount_pico // 100\n", "src/tollway/gateway/route.py": "weight = 0.5\n"},
    ),
    schemas_are_protected: (
        {STORAGE + "schema_new.py": "", "pyproject.toml": ""},
        {
            STORAGE + "schema_new.py": "",
            "pyproject.toml": '[[tool.importlinter.contracts]]\nprotected_modules = ["tollway.storage.schema_new"]\n',
        },
    ),
    words_are_terms_of_the_field: (
        {"planted.py": "kept_for_ever = True\n"},
        {"planted.md": "Outdoor headroom; there is no limit, and this is no longer new.\n"},
    ),
    docstrings_stand_alone: (
        {"planted.py": 'def f():\n    """Whether it holds."""\n'},
        {"planted.py": 'def f():\n    """Return True if it holds."""\n'},
    ),
    waits_are_patient: (
        {"tests/test_planted.py": "client = httpx2.Client(base_url=url)\nthread.join(PATIENCE_SECONDS)\nover.wait(0.05)\n"},
        {"tests/test_planted.py": "client = httpx2.Client(base_url=url, timeout=CLIENT_SECONDS)\nasyncio.wait_for(over, 0.05)\n"},
    ),
    nothing_stands_unused: (
        {"src/tollway/planted.py": "def unused(): ...\n", "tests/test_planted.py": "unused()\n"},
        {"src/tollway/planted.py": "def used(): ...\n\n\n@router.get\ndef route(): ...\n", "src/tollway/user.py": "used()\n"},
    ),
    long_tuples_have_names: (
        {"src/tollway/planted.py": "def f():\n    return a, b, c, d\n"},
        {"src/tollway/planted.py": "def f() -> tuple[Any, ...]:\n    return a, b, c, d\n\nx: tuple[int, int, int] = (1, 2, 3)\n"},
    ),
    files_stay_readable: (
        {"src/tollway/cli.py": "\n" * (LINES_MAX + 1)},
        {
            "src/tollway/cli.py": "\n" * LINES_MAX,
            "requirements/dev.txt": "\n" * 5000,
            "docs/cli.md": "# Commands\n\nMade by `make docs`." + "\n" * 5000,
        },
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


def test_paths_named_in_rules_exist(tree: Tree) -> None:
    named = [MIGRATIONS, STORAGE, *MONEY_PACKAGES, *PROSE_AREAS, "docs/decisions/"]
    missing = [path for path in named if not any(file.startswith(path) for file in tree)]
    assert not missing, f"rules name paths that do not exist: {missing}"
    exemptions = [*WORDS_ALLOWED, *NOT_INTEGERS, *TUPLES_ALLOWED]
    unused = [(path, part) for path, part in exemptions if not any(part in line for line in tree.get(path, "").splitlines())]
    assert not unused, f"exemptions that match no line: {unused}"


def test_money_is_found_where_it_is_known_to_be(tree: Tree) -> None:
    found = {path for path, text in _python(tree, "src/tollway/") if any(map(MONEY_NAME.search, _identifiers(ast.parse(text))))}
    assert {"src/tollway/domain/prices.py", "src/tollway/control/metering/collect.py"} <= found


def test_the_tree_that_is_checked_is_this_one(tree: Tree) -> None:
    assert "tests/test_tidy.py" in tree
    assert "def read_tree" in tree["tests/test_tidy.py"]


def test_the_page_of_settings_is_in_step_with_their_declarations(tree: Tree) -> None:
    render = runpy.run_path(str(ROOT / "scripts" / "settings_page.py"))["render"]
    assert tree["docs/settings.md"] == render(), "run `make docs`"


def test_the_page_of_metrics_is_in_step_with_their_table(tree: Tree) -> None:
    render = runpy.run_path(str(ROOT / "scripts" / "metrics_page.py"))["render"]
    assert tree["docs/metrics.md"] == render(), "run `make docs`"


def test_the_pages_of_events_are_in_step_with_their_catalogue(tree: Tree) -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "events_page.py"))
    assert tree["docs/event-types.md"] == page["render"](), "run `make docs`"
    assert (ROOT / "docs" / "events.schema.json").read_text("utf-8") == page["render_schema"](), "run `make docs`"


def test_the_page_of_attacks_is_in_step_with_the_tests_that_try_them(tree: Tree) -> None:
    render = runpy.run_path(str(ROOT / "scripts" / "attacks_page.py"))["render"]
    assert tree["docs/attacks.md"] == render(), "run `make docs`"


def test_the_page_of_clients_is_in_step_with_their_recorded_results(tree: Tree) -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "clients_page.py"))
    assert tree["docs/clients.md"] == page["render"](json.loads(tree["tests/sdks/results.json"])), "run `make docs`"


def test_every_error_code_has_a_meaning_and_a_remedy_on_its_page(tree: Tree) -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "errors_page.py"))
    assert page["find_differences"]() == ""
    assert tree["docs/errors.md"] == page["render"](), "run `make docs`"
