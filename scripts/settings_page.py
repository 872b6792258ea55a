"""Renders docs/settings.md from the declarations in `tollway.settings`: `python scripts/settings_page.py`.

The text of a setting is the string that stands below it, so what is documented is what is declared; a test holds the page in step.
"""

import ast
import inspect
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from tollway.settings import SHORT_NAMES, Settings
from tollway.variables import OTHER_VARIABLES

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"

OPENING = """# Settings

Made by `make docs` from `src/tollway/settings.py`; change it there.

A setting has one dotted name. `gateway.edge.head_seconds` is the YAML `gateway: {edge: {head_seconds: 15}}` of the file that
`--config` names, and the variable `TOLLWAY__GATEWAY__EDGE__HEAD_SECONDS`. Those that people type often are options of the commands
too (`tollway serve --help`). Precedence, highest first: command line, environment, file, default. An unknown name, also of a
variable that begins with `TOLLWAY_`, or a value out of range ends the start with an error that names it and the nearest known name.
Lists are YAML lists, or separated by commas. Secrets are not settings: they live in the data directory or come by the variables at the
end of this page.

The file is YAML, read strictly: a key stands once, numbers are decimal (`010` is refused, `1:30` is text), booleans are `true` and
`false`. Anchors, aliases and merge keys (`<<`) are allowed; a key that is written out counts before one that is merged.
"""


OTHERS = """## Variables that are not settings

Secrets replace those of `secrets.json` in the data directory. `TOLLWAY_CREDENTIAL_...` is free for upstream credentials that a platform
file names. Variables that Kubernetes sets for a Service called `tollway` or `tollway-...` are ignored.
"""


def render() -> str:
    """The page."""
    parts = [OPENING]
    for prefix, section in _sections(Settings, ""):
        fields = [field for field in msgspec.structs.fields(section) if not _is_section(field.type)]
        parts.append(f"## {prefix.rstrip('.') or 'everywhere'}\n\n{_flow(section.__doc__)}\n")
        told = _texts(section)
        parts.append("".join(_entry(prefix + field.name, field, told[field.name]) for field in fields))
    others = "".join(f"- **`{name}`**: {text}\n" for name, text in OTHER_VARIABLES.items())
    return "\n".join([*parts, f"{OTHERS}\n{others}"])


def _sections(section: type[msgspec.Struct], prefix: str) -> Iterator[tuple[str, type[msgspec.Struct]]]:
    yield prefix, section
    for field in msgspec.structs.fields(section):
        if _is_section(field.type):
            yield from _sections(field.type, f"{prefix}{field.name}.")


def _is_section(type_: Any) -> bool:
    return isinstance(type_, type) and issubclass(type_, msgspec.Struct)


def _entry(name: str, field: msgspec.structs.FieldInfo, text: str) -> str:
    default = field.default
    if isinstance(default, tuple):
        default = ", ".join(default)
    if isinstance(default, bool):
        default = str(default).lower()
    shown = "none" if default is None or default == "" else f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
    short = [variable for variable, stands_for in SHORT_NAMES.items() if stands_for == name]
    also = f" Short variable: `{short[0]}`." if short else ""
    return f"- **`{name}`** ({_kind(field.type)}; default {shown}): {text}{also}\n"


def _kind(type_: Any) -> str:
    """A type in words, with its range."""
    if hasattr(type_, "__metadata__"):
        meta = type_.__metadata__[0]
        low = f"more than {meta.gt}" if meta.gt is not None else f"from {meta.ge}"
        return f"{_kind(type_.__origin__)} {low} to {meta.le:,.0f}"
    if get_origin(type_) in (Union, types.UnionType):
        return " or ".join(_kind(part) for part in get_args(type_) if part is not type(None))
    if get_origin(type_) is tuple:
        return "list"
    if get_origin(type_) is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in get_args(type_))
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}[type_]


def _texts(section: type[msgspec.Struct]) -> dict[str, str]:
    """The string below each field."""
    (declared,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(declared, ast.ClassDef)
    texts = {}
    for field, below in zip(declared.body, declared.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            texts[ast.unparse(field.target)] = _flow(below.value.value)
    return texts


def _flow(text: Any) -> str:
    return " ".join(str(text).split())


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
