"""Settings: what a process is told at its start, and from where.

Precedence, highest first: command line, environment, YAML file (`--config`), default. Every setting has one dotted
name: the option `--gateway-listen`, the variable `TOLLWAY__GATEWAY__LISTEN` and the YAML key `gateway: {listen: ...}`
are the same thing; sections may stand within sections, and a list is a YAML list or separated by commas. A few that
every cluster needs have a short variable too (SHORT_NAMES). A name that nobody knows is an error that says what was
probably meant: a misspelt limit that is silently ignored costs more than a process that does not start.

The string below a setting is its documentation: docs/settings.md is made from it. The bounds of the data plane stand
here a second time, because the rooms that keep them may not know the settings; a test holds the two in step.

Secrets are no settings: they live in the data directory or in the environment (`serve/data_directory.py`).
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

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


Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
SecondsOrZero = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
Count = Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
CountOrZero = Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]
Bytes = Annotated[int, msgspec.Meta(ge=1024, le=1 << 40)]
Pixels = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
Rate = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class HttpSection(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a client's request is read before it is refused."""

    head_bytes_max: Bytes = 32 * 1024
    """Request line and headers. SDKs send 1 KiB; OpenAI asks clients to stay below 64 KiB. More is answered 431."""
    headers_max: Count = 100
    """Lines of a head. More is answered 431."""
    target_bytes_max: Bytes = 4 * 1024
    """The request's target with its query; the longest of the API is below 100 bytes. More is answered 414."""
    body_bytes_max: Bytes = 32 * 1024 * 1024
    """A body: a long context with images fits. It is held in memory until an engine took it. More is answered 413."""
    pipelined_max: Count = 16
    """Requests that are read on a connection ahead of the one being answered."""


class EdgeSection(msgspec.Struct, frozen=True, kw_only=True):
    """What one client may take of the gateway's patience and room."""

    opening_seconds: Seconds = 10.0
    """For a PROXY header, and again for a TLS handshake, where the public address has them; then the connection is closed."""
    head_seconds: Seconds = 15.0
    """From the first byte of a request's head to its end; then 408. Keeps clients that trickle from holding connections."""
    body_grace_seconds: SecondsOrZero = 10.0
    """From the start of a request until `body_rate_min` counts: slow starts are normal."""
    body_rate_min: Rate = 1024.0
    """Bytes per second that a body must have arrived at, after the grace; then 408."""
    keep_alive_seconds: Seconds = 75.0
    """An idle connection is closed then. More than the 60 s of common load balancers, so that they close first and no
    request meets a closing socket."""
    write_stall_seconds: Seconds = 30.0
    """A client that does not read its answer is cut off then, and its engine is let go."""
    linger_seconds: Seconds = 2.0
    """How long a refused client is still read from, so that the reset of a closed socket does not destroy the refusal."""
    connections_max: Count = 20_000
    """Open connections in all; one more is answered 503. Each costs a descriptor and some 10 KiB."""
    connections_per_peer_max: CountOrZero = 0
    """Open connections per address; 0 for no bound, because behind a load balancer every client has the same address."""
    failed_authentications_per_minute: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 120
    """Requests per address (a /64 of IPv6) whose key was refused; more are answered 429 in place of 401. Good keys are served
    whatever else came from their address. 0 for no bound. Behind a proxy that is not listed as trusted all clients share it."""


class TlsSection(msgspec.Struct, frozen=True, kw_only=True):
    """TLS at the public address, 1.2 or later, for gateways without a proxy in front. Off unless both files are given. A
    new certificate is taken by a new process: SIGHUP to `tollway serve`."""

    certificate_file: str | None = None
    """The certificate chain as PEM, the server's own first."""
    key_file: str | None = None
    """Its key as PEM, without a passphrase."""


class ProxiesSection(msgspec.Struct, frozen=True, kw_only=True):
    """Load balancers and proxies in front of the public address: whose word on a client's address is taken. That address
    counts for `gateway.edge.connections_per_peer_max` and, if wanted, in the log."""

    trusted: tuple[str, ...] = ()
    """Their addresses or networks, such as 10.0.0.0/8. Everybody else's headers about addresses are ignored."""
    proxy_protocol: bool = False
    """Connections from them begin with a header of the PROXY protocol, version 2; without it they are closed."""
    forwarded_for: bool = False
    """The client is the right-most address in their x-forwarded-for that is not trusted itself. Connections of theirs are not
    bounded per address, because each carries the requests of many."""
    log_peers: bool = False
    """Every request's log line has the client's address as `peer`. Off, because it is personal data."""


class CorsSection(msgspec.Struct, frozen=True, kw_only=True):
    """Scripts of web pages (CORS). Off unless an origin is given. Cookies mean nothing here, so credentials are never allowed;
    a key that a page holds is known to everybody who sees the page."""

    origins: tuple[str, ...] = ()
    """Origins whose scripts may read answers, such as https://app.example.com; `*` alone for all."""
    preflight_seconds: CountOrZero = 600
    """How long a browser may remember what a preflight told."""


class RelaySection(msgspec.Struct, frozen=True, kw_only=True):
    """How long and how much an engine may take."""

    connect_seconds: Seconds = 2.0
    """Until an engine has accepted a connection; engines are near, and the next one may be free."""
    first_token_seconds: Seconds = 120.0
    """Until an engine's first event or whole answer: a long prompt behind a long queue."""
    idle_seconds: Seconds = 60.0
    """Between two events of a stream: an engine that drains badly keeps its socket open for ever."""
    total_seconds: Seconds = 900.0
    """One attempt at an engine in all, its answer included."""
    commit_after_seconds: Seconds = 10.0
    """After this long without an event the status line leaves: proxies on the way grow impatient. From then on nothing is
    retried and errors are events of the stream."""
    heartbeat_seconds: Seconds = 10.0
    """Between the comments that keep a waiting stream open; below the idle timeouts of proxies on the way."""
    answer_bytes_max: Bytes = 64 * 1024 * 1024
    """An answer that is no stream; it is held in memory until its usage is durable."""
    stream_bytes_max: Bytes = 64 * 1024 * 1024
    """All events of one stream."""
    event_bytes_max: Bytes = 16 * 1024 * 1024
    """One event of a stream, which is held in memory until it is whole: a tool call, or the ids of a long prompt's tokens."""


class MediaSection(msgspec.Struct, frozen=True, kw_only=True):
    """What the messages of one request may bring along, as links or as data: engines decode it, in memory that all tenants share."""

    parts_max: CountOrZero = 128
    """Images, sounds, films and files in all messages, links among them. More is answered 400. 0 takes none."""
    part_bytes_max: Bytes = 20 * 1024 * 1024
    """Decoded bytes of one data: URL, or of other data in base64. More is answered 413."""
    request_bytes_max: Bytes = 24 * 1024 * 1024
    """Of all of them together: what fits into `gateway.http.body_bytes_max` in base64."""
    frames_max: Count = 128
    """Pictures in a film that is given as a list (`data:video/jpeg;base64,...,...`); vLLM samples 32 of a film by default."""
    pixels_max: Pixels = 64_000_000
    """Of one picture or frame, as its first bytes tell: 8,000 × 8,000, which is 192 MB in an engine. More is answered 400. Read from
    PNG, JPEG, GIF and WebP; who adds another image type to `types` does without this bound for it."""
    request_pixels_max: Pixels = 512_000_000
    """Of all pictures and frames of a request: 1.5 GB in an engine."""
    types: tuple[str, ...] = (
        "image/png", "image/jpeg", "image/jpg", "image/gif", "image/webp",
        "video/jpeg", "video/mp4", "video/webm", "video/quicktime",
        "audio/wav", "audio/x-wav", "audio/mpeg", "audio/mp3", "audio/mp4", "audio/m4a",
        "audio/flac", "audio/ogg", "audio/opus", "audio/webm",
        "application/pdf", "text/plain",
    )  # fmt: skip
    """Media types that are taken, in small letters; `format` of `input_audio` counts as audio/FORMAT. Fewer of them is fewer decoders."""


class SpoolSection(msgspec.Struct, frozen=True, kw_only=True):
    """Where usage records wait until the control plane has them."""

    segment_bytes: Bytes = 64 << 20
    """One file of the spool, reserved on disk in advance: two are needed at least. At least 1,024 times `slots_max`."""
    slots_max: Count = 65_536
    """Requests under way at once; one more is answered 503. 64 bytes of shared memory each."""
    gather_seconds: SecondsOrZero = 0.0
    """How long a commit waits for company. 0 commits at once: records that arrive meanwhile share the next commit anyway."""
    tick_seconds: Seconds = 10.0
    """Between signs of life in the record; they also commit what no final record follows."""


class GatewaySection(msgspec.Struct, frozen=True, kw_only=True):
    """`tollway gateway`, the data plane."""

    listen: str = "127.0.0.1:8080"
    """The public address, host:port. Port 0 takes a free one."""
    internal: str = "127.0.0.1:9090"
    """Health and metrics, for operators and probes only."""
    control_link_url: str | None = None
    """The control plane's link. None serves from the copy of the snapshot alone; `tollway serve` sets it."""
    linger_seconds: SecondsOrZero = 0.0
    """After SIGTERM new requests are still taken for so long: load balancers need time to look. 0 where a supervisor holds
    the socket."""
    drain_seconds: SecondsOrZero = 110.0
    """After SIGTERM running requests may take so long in all; then they are told with an error and closed. Below the 120 s
    that orchestrators should be told to wait."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that requests must be addressed to in Host, with a port or for every port; others are answered 421. None allows any.
    Health is told under any name, because probes know addresses only."""
    tls: TlsSection = TlsSection()
    proxies: ProxiesSection = ProxiesSection()
    cors: CorsSection = CorsSection()
    http: HttpSection = HttpSection()
    edge: EdgeSection = EdgeSection()
    relay: RelaySection = RelaySection()
    media: MediaSection = MediaSection()
    spool: SpoolSection = SpoolSection()


class ReconcileSection(msgspec.Struct, frozen=True, kw_only=True):
    """What engines counted themselves, against what was billed, by model and hour (docs/reconciliation.md)."""

    enabled: bool = True
    """Whether engines' metrics are read. They must be within reach of the control plane; those that are not show as not observed."""
    interval_seconds: Annotated[int, msgspec.Meta(ge=1, le=900)] = 60
    """Between readings; counted from the full hour."""
    timeout_seconds: Seconds = 5.0
    """For one engine's metrics to arrive."""
    drift_percent_max: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.1
    """How much of what an engine counted may be missing in the ledger, or be too much there, in one hour; more is drift."""
    drift_tokens_max: CountOrZero = 1_000
    """So many tokens are never drift: requests that run across the edge of an hour, or are cut short, make small differences."""


class CorrectionsSection(msgspec.Struct, frozen=True, kw_only=True):
    """Corrections of what was billed."""

    approval_above: str = "100"
    """Corrections of one request that together move more than this, in units of its currency (a decimal number), wait until another
    operator's key has approved. 0 lets everything wait."""


class PeriodsSection(msgspec.Struct, frozen=True, kw_only=True):
    """Billing periods (docs/money.md)."""

    close_after_days: Annotated[int, msgspec.Meta(ge=0, le=366)] | None = None
    """So many days after its end a period is closed without being asked, if it can be. While records are missing it stays open, with a
    warning an hour and the metric `tollway_control_periods_overdue`; nothing is ever declared lost by itself. None leaves closing to
    operators."""


class ControlSection(msgspec.Struct, frozen=True, kw_only=True):
    """`tollway control`, the control plane."""

    listen: str = "127.0.0.1:8081"
    """The REST API, host:port."""
    link: str = "127.0.0.1:8082"
    """For gateways only: snapshots go down, usage records come up."""
    database_url: str | None = None
    """PostgreSQL as postgresql+psycopg://...; None for the SQLite file in the data directory."""
    retention_months: Annotated[int, msgspec.Meta(ge=0, le=1_200)] = 0
    """On PostgreSQL, the events of a month (UTC) are removed once it has been over for so many whole months and all periods in which
    they are booked are closed. Rollups, ledger and archive stay. 0 keeps everything; SQLite always does."""
    reconcile: ReconcileSection = ReconcileSection()
    corrections: CorrectionsSection = CorrectionsSection()
    periods: PeriodsSection = PeriodsSection()


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of all processes; each takes its own section."""

    data_dir: str = "tollway-data"
    """Where everything is kept: secrets, spool, snapshots, logs, the SQLite file."""
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
            place[leaf] = msgspec.convert(_as_list(value, NAMES[name]), NAMES[name], strict=False)
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
    for name, value in _list_leaves(tree):
        if name not in NAMES:
            raise unknown_name(f"setting {name!r}", name, NAMES, source=str(path))
        found[name] = (value, str(path))
    return found


def _list_leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _list_leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _as_list(value: Any, type: Any) -> Any:
    """Variables and options hold lists as text."""
    if type != tuple[str, ...] or not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


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
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            variables[ENV_PREFIX + name.upper().replace(".", "__")] = text
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
    """Return what a YAML file holds: strings, numbers, booleans, lists and mappings with unique text keys. Raises
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
