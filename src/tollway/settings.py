"""Settings: what a process is told at its start, and from where.

Precedence, highest first: command line, environment, YAML file (`--config`), default. Every setting has one dotted
name: the option `--gateway-listen`, the variable `TOLLWAY__GATEWAY__LISTEN` and the YAML key `gateway: {listen: ...}`
are the same thing. A few that every cluster needs have a short variable too (SHORT_NAMES). A name that nobody knows is
an error that says what was probably meant: a misspelt limit that is silently ignored costs more than a process that
does not start.

Secrets are no settings: they live in the data directory or in the environment (`serve/data_directory.py`).
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

ENV_PREFIX = "TOLLWAY__"

SHORT_NAMES = {"TOLLWAY_DATABASE_URL": "control.database_url", "TOLLWAY_CONTROL_LINK_URL": "gateway.control_link_url"}
"""Short variables and the setting that each stands for."""


class OperatorError(Exception):
    """Something that the person at the terminal must put right: one line that says what, one hint that says how.

    `exit_code`: 1 for a failure, 2 for a wrong use of the command line.
    """

    def __init__(self, message: str, *, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


class GatewaySection(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of `tollway gateway`. `listen` is public; `internal` serves health and metrics. Addresses are host:port;
    port 0 takes a free one. After SIGTERM new requests are taken for `linger_seconds` more (0 where a supervisor holds
    the socket; load balancers need time to look), and running ones may take `drain_seconds` in all to finish."""

    listen: str = "127.0.0.1:8080"
    internal: str = "127.0.0.1:9090"
    control_link_url: str | None = None
    linger_seconds: float = 0.0
    drain_seconds: float = 110.0


class ControlSection(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of `tollway control`. `listen` is the REST API; `link` is for gateways only. `database_url`: None for
    the SQLite file in the data directory."""

    listen: str = "127.0.0.1:8081"
    link: str = "127.0.0.1:8082"
    database_url: str | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of all processes; each takes its own section."""

    data_dir: str = "tollway-data"
    gateway: GatewaySection = GatewaySection()
    control: ControlSection = ControlSection()


def _list_names(section: type[msgspec.Struct], prefix: str = "") -> dict[str, Any]:
    names: dict[str, Any] = {}
    for field in msgspec.structs.fields(section):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            names |= _list_names(field.type, f"{prefix}{field.name}.")
        else:
            names[prefix + field.name] = field.type
    return names


NAMES = _list_names(Settings)
"""The dotted name of every setting, with its type."""


def load(options: Mapping[str, Any], environ: Mapping[str, str], config: Path | None) -> Settings:
    """The settings of this process. `options` are those given on the command line, by dotted name; None means not
    given.

    Raises OperatorError for a file that cannot be read, an unknown name, or a value of the wrong type; it names where
    it stood."""
    found: dict[str, tuple[Any, str]] = {}
    if config is not None:
        found |= _from_yaml(config)
    found |= _from_environment(environ)
    found |= {name: (value, "the command line") for name, value in options.items() if value is not None}
    tree: dict[str, Any] = {}
    for name, (value, source) in found.items():
        *sections, leaf = name.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        try:
            place[leaf] = msgspec.convert(value, NAMES[name], strict=False)
        except msgspec.ValidationError as error:
            raise OperatorError(f"{name} in {source} is not valid: {error}", exit_code=2) from None
    return msgspec.convert(tree, Settings)


def _from_yaml(path: Path) -> dict[str, tuple[Any, str]]:
    tree = read_yaml(path)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise OperatorError(f"{path} must hold a mapping of settings", hint="for example `gateway: {listen: 0.0.0.0:8080}`")
    found = {}
    for key, value in tree.items():
        leaves = {f"{key}.{leaf}": below for leaf, below in value.items()} if isinstance(value, dict) else {key: value}
        for name, leaf_value in leaves.items():
            if name not in NAMES:
                raise unknown_name(f"setting {name!r}", name, NAMES, source=str(path))
            found[name] = (leaf_value, str(path))
    return found


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    found = {name: (environ[short], short) for short, name in SHORT_NAMES.items() if environ.get(short)}
    for variable, value in environ.items():
        if not variable.startswith(ENV_PREFIX):
            continue
        name = variable.removeprefix(ENV_PREFIX).lower().replace("__", ".")
        if name not in NAMES:
            known = [ENV_PREFIX + known.upper().replace(".", "__") for known in NAMES]
            raise unknown_name(f"variable {variable}", variable, known, source="the environment")
        found[name] = (value, variable)
    return found


def to_environment(settings: Settings) -> dict[str, str]:
    """`settings` as variables, for a child process: they say the same as `load` read, whatever file or option it came
    from."""
    variables = {}
    for name in NAMES:
        value: Any = settings
        for part in name.split("."):
            value = getattr(value, part)
        if value is not None:
            variables[ENV_PREFIX + name.upper().replace(".", "__")] = str(value)
    return variables


def unknown_name(what: str, name: str, known: Iterable[str], *, source: str) -> OperatorError:
    """The error for a name that nobody knows, with the nearest known one as its hint."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
    return OperatorError(f"unknown {what} in {source}", hint=hint, exit_code=2)


# ---- YAML ------------------------------------------------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
    """YAML without its traps: a key that stands twice is an error (PyYAML keeps the last), and dates stay text, as do
    numbers with a point: a price must never have been a float."""


def _mapping_without_duplicates(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} must be text", key_node.start_mark)
        if key in keys:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
        keys.add(key)
    return loader.construct_mapping(node, deep=True)


def _as_written(loader: _StrictLoader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)
_StrictLoader.add_constructor("tag:yaml.org,2002:timestamp", _as_written)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _as_written)

YAML_BYTES_MAX = 16 * 1024 * 1024
"""A declarative file of 10,000 projects has about 2 MB; more than eight times that is a mistake."""


def read_yaml(path: Path) -> Any:
    """What a YAML file holds: strings, numbers, booleans, lists and mappings with unique text keys. Raises
    OperatorError."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise OperatorError(f"cannot read {path}: {error.strerror}") from None
    if len(text) > YAML_BYTES_MAX:
        raise OperatorError(f"{path} is larger than {YAML_BYTES_MAX // 2**20} MiB")
    try:
        return yaml.load(text, _StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise OperatorError(f"{path}{where} is not valid YAML: {getattr(error, 'problem', None) or error}") from None
