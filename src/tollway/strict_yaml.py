"""YAML as people write settings and platform files, read without its traps."""

import re
from typing import Any

import yaml

MERGE_TAG = "tag:yaml.org,2002:merge"
"""The type of a plain key `<<`, which YAML 1.1 defines and nearly every reader of 1.2 keeps."""


class _StrictLoader(yaml.SafeLoader):
    """YAML without its traps. Plain words are read by the core schema of YAML 1.2: `on` and `yes` are text, and so are 1:30, 0x1F and
    1_000, which YAML 1.1 reads as other numbers. Numbers with a point stay text, because a price must never have been a float; so do
    dates. A number with a leading zero is refused: octal in 1.1, decimal in 1.2. So is a key that stands twice in one mapping (PyYAML
    keeps the last); a merge key (`<<`) adds the keys of other mappings that are not written out."""


def _refuse(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _mapping_without_duplicates(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    found: dict[str, Any] = {}
    merged: list[yaml.MappingNode] = []
    for key_node, value_node in node.value:
        if key_node.tag == MERGE_TAG:
            if merged:
                raise _refuse(key_node, "the key '<<' stands twice: merge several mappings as one list, <<: [*first, *second]")
            merged = _list_merged(value_node)
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise _refuse(key_node, f"the key {key!r} must be text: put it into quotes")
        if key in found:
            raise _refuse(key_node, f"the key {key!r} stands twice")
        found[key] = loader.construct_object(value_node, deep=True)
    for other in merged:
        found = loader.construct_object(other, deep=True) | found
    return found


def _list_merged(node: yaml.Node) -> list[yaml.MappingNode]:
    """Return the mappings that a merge key names, the one whose keys count first: <https://yaml.org/type/merge.html>."""
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    for item in items:
        if not isinstance(item, yaml.MappingNode):
            raise _refuse(item, "a merge key (<<) takes a mapping or a list of mappings")
    return list(items)


def _as_written(loader: _StrictLoader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


def _plain_integer(loader: _StrictLoader, node: yaml.ScalarNode) -> int:
    text = _as_written(loader, node)
    if not re.fullmatch(r"[-+]?(?:0|[1-9][0-9]*)", text):
        raise _refuse(node, f"{text} is not a plain decimal number: leave out the leading zero, or put it into quotes")
    if len(text) > 20:
        raise _refuse(node, f"{text[:20]}... is too large a number")
    return int(text)


def _plain_boolean(loader: _StrictLoader, node: yaml.ScalarNode) -> bool:
    text = _as_written(loader, node).lower()
    if text not in ("true", "false"):
        raise _refuse(node, f"{text} is not a boolean: write true or false")
    return text == "true"


_PLAIN_WORDS = {
    # tag: (pattern, first characters)
    "bool": ("true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    "null": ("~|null|Null|NULL|", [*"~nN", ""]),
    "int": ("[-+]?[0-9]+", [*"-+0123456789"]),
    "float": (r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
    "merge": ("<<", ["<"]),
}
_StrictLoader.yaml_implicit_resolvers = {}  # none of YAML 1.1's
for _tag, (_pattern, _first) in _PLAIN_WORDS.items():
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)
for _tag, _constructor in (("timestamp", _as_written), ("float", _as_written), ("int", _plain_integer), ("bool", _plain_boolean)):
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", _constructor)


class YamlError(ValueError):
    """A text that is not valid, or not allowed, YAML. Its message names the line."""


def parse(text: bytes) -> Any:
    """Return what a YAML text holds: strings, numbers, booleans, lists and mappings with unique text keys. Raises YamlError."""
    try:
        return yaml.load(text, _StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise YamlError(f"{where} is not valid YAML: {getattr(error, 'problem', None) or error}") from None
