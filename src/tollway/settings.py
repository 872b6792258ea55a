"""Settings of a process and their sources.

Precedence, highest first: command line, environment, YAML file (`--config`), default. Every setting has one dotted name: the option
`--gateway-listen`, the variable `TOLLWAY__GATEWAY__LISTEN` and the YAML key `gateway: {listen: ...}` are the same thing; sections may stand
within sections, and a list is a YAML list or separated by commas. A few that every cluster needs have a short variable too (SHORT_NAMES).
An unknown name, of a key in the file or of a TOLLWAY_ variable, is an error that names the nearest known one: a misspelt limit that is
silently ignored costs more than a process that does not start.

The string below a setting is its documentation: docs/settings.md is made from it. The bounds of the data plane are declared here a second
time, because the packages that use them may not import the settings; a test compares the two.

Secrets are not settings: they live in the data directory or in the environment (`serve/data_directory.py`).
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from tollway import strict_yaml
from tollway.domain.quotas import DEFAULT_SIZES, Quota
from tollway.domain.snapshot import SNAPSHOT_AGE_SECONDS_MAX
from tollway.variables import OTHER_VARIABLES, UNCHECKED_VARIABLES

ENV_PREFIX = "TOLLWAY__"

SHORT_NAMES = {
    "TOLLWAY_DATABASE_URL": "control.database_url",
    "TOLLWAY_OWNER_DATABASE_URL": "control.owner_database_url",
    "TOLLWAY_CONTROL_LINK_URL": "gateway.control_link_url",
}
"""Short variables and the setting that each stands for."""


class OperatorError(Exception):
    """A problem that the person at the terminal can correct: one line says what is wrong, one hint says what to do.

    `exit_code`: 1 for a failure, 2 for a wrong use of the command line or a wrong file.
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
SnapshotAge = Annotated[float, msgspec.Meta(ge=5, le=SNAPSHOT_AGE_SECONDS_MAX)]
"""At least a few of control's heartbeats."""
Readers = Annotated[int, msgspec.Meta(ge=0, le=32)]
QuotaSize = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Rate = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class HttpSection(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on a client's request, beyond which it is refused."""

    head_bytes_max: Bytes = 32 * 1024
    """Request line and headers. SDKs send 1 KiB; OpenAI asks clients to stay below 64 KiB. More is answered 431."""
    headers_max: Count = 100
    """Header lines of a request. More is answered 431."""
    target_bytes_max: Bytes = 4 * 1024
    """Request target with its query; the longest of the API is below 100 bytes. More is answered 414."""
    body_bytes_max: Bytes = 32 * 1024 * 1024
    """Body of a request: a long context with images fits. It is held in memory until an engine has received it. More is answered 413."""
    pipelined_max: Count = 16
    """Requests that are read from a connection ahead of the one being answered."""


class EdgeSection(msgspec.Struct, frozen=True, kw_only=True):
    """Per-client timeouts and connection limits."""

    opening_seconds: Seconds = 10.0
    """Deadline of a PROXY header, and again of a TLS handshake, where the public address uses them; then the connection is closed."""
    head_seconds: Seconds = 15.0
    """Deadline of a request's head from its first byte; then 408. Keeps clients that trickle from holding connections."""
    body_grace_seconds: SecondsOrZero = 10.0
    """Time from the start of a request until `body_rate_min` applies: slow starts are normal."""
    body_rate_min: Rate = 1024.0
    """Bytes per second at which a body must arrive on average, after the grace; else 408."""
    body_seconds: Seconds = 900.0
    """Deadline of a whole body, whose memory is held meanwhile; then 408. The largest arrives in time at 36 KB per second."""
    keep_alive_seconds: Seconds = 75.0
    """Time after which an idle connection is closed. More than the 60 s of common load balancers, so that they close first and no
    request meets a closing socket."""
    write_stall_seconds: Seconds = 30.0
    """Time after which a client that does not read its answer is disconnected, and its engine's request is cancelled. Of a whole answer
    it must read a tenth of what is left within this time."""
    linger_seconds: Seconds = 2.0
    """Time for which a refused client is still read from, so that the reset of a closed socket does not destroy the refusal."""
    connections_max: Count = 20_000
    """Open connections in all. One more closes those that have been idle longest, or is answered 503 if there are none. Each costs about
    10 KiB and two descriptors, one of them for an engine. Where the limit on open files allows fewer (the soft limit is raised to the hard
    one at the start), fewer are served, and the log says so (`descriptors_low`)."""
    connections_per_peer_max: CountOrZero = 0
    """Open connections per client address. 0 for no bound, the default: behind a load balancer every client has the same address."""
    internal_connections_max: Count = 64
    """Open connections at the internal address (metrics and health); one more is closed at once. Requests there have
    `head_seconds` to arrive, and answers `write_stall_seconds` to be read."""
    failed_authentications_per_minute: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 120
    """Requests per client address (a /64 of IPv6) whose key was refused; more are answered 429 in place of 401. Valid keys are always
    served. 0 for no bound. Behind a proxy that is not listed as trusted all clients share one count."""


class TlsSection(msgspec.Struct, frozen=True, kw_only=True):
    """TLS 1.2 or later at the public address, for gateways without a proxy in front. Off unless both files are given. A
    new certificate is read by a new process: send SIGHUP to `tollway serve`."""

    certificate_file: str | None = None
    """Certificate chain as PEM, the server's own certificate first."""
    key_file: str | None = None
    """Private key of the certificate as PEM, without a passphrase."""
    client_certificates: bool = False
    """Ask clients for certificates that organizations trust; a program with one needs no API key (docs/certificates.md). A client without
    one is served as before, one with a certificate that nobody trusts is refused by the handshake."""


class ProxiesSection(msgspec.Struct, frozen=True, kw_only=True):
    """Load balancers and proxies in front of the public address that are trusted to state a client's address. That address
    counts for `gateway.edge.connections_per_peer_max` and, with `log_peers`, is logged."""

    trusted: tuple[str, ...] = ()
    """Addresses or networks of the proxies, such as 10.0.0.0/8. Address headers from any other client are ignored."""
    proxy_protocol: bool = False
    """Connections from trusted proxies begin with a header of the PROXY protocol, version 2; without it they are closed."""
    forwarded_for: bool = False
    """The client is the right-most address in the proxies' x-forwarded-for that is not trusted itself. Connections of proxies are not
    bounded per address, because each carries the requests of many clients."""
    client_certificate_header: Literal["", "client-cert", "x-forwarded-client-cert"] = ""
    """Header in which trusted proxies that end TLS hand on the certificate of a client: that of RFC 9440 (`client-cert`), or Envoy's with
    `Cert`, in one element (`SANITIZE_SET`). A proxy must remove what clients send of it. Empty: none."""
    log_peers: bool = False
    """Log the client's address with every request, as `peer`. Off by default, because it is personal data."""


class CorsSection(msgspec.Struct, frozen=True, kw_only=True):
    """Access by scripts of web pages (CORS). Off unless an origin is given. The gateway reads no cookies, so credentials are never allowed;
    a key that a page holds is known to everybody who sees the page."""

    origins: tuple[str, ...] = ()
    """Origins whose scripts may read answers, such as https://app.example.com; `*` alone for all."""
    preflight_seconds: CountOrZero = 600
    """Preflight cache lifetime."""


class RelaySection(msgspec.Struct, frozen=True, kw_only=True):
    """Deadlines and bounds of an engine's answer."""

    connect_seconds: Seconds = 2.0
    """Deadline of a connection to an engine; engines are near, and the next one may be free."""
    first_token_seconds: Seconds = 120.0
    """Deadline of an engine's first event or whole answer: allows for a long prompt behind a long queue."""
    idle_seconds: Seconds = 60.0
    """Longest pause between two events of a stream: an engine that drains badly keeps its socket open without sending."""
    total_seconds: Seconds = 900.0
    """Deadline of one attempt at an engine, its whole answer included."""
    commit_after_seconds: Seconds = 10.0
    """Time without an event after which the status line is sent, because proxies in between have timeouts of their own. From then on
    nothing is retried and errors are events of the stream."""
    heartbeat_seconds: Seconds = 10.0
    """Interval of the comments that keep a waiting stream open; below the idle timeouts of proxies in between."""
    answer_bytes_max: Bytes = 64 * 1024 * 1024
    """An answer that is no stream; it is held in memory until its usage is durable."""
    stream_bytes_max: Bytes = 64 * 1024 * 1024
    """Size of all events of one stream together."""
    event_bytes_max: Bytes = 16 * 1024 * 1024
    """Size of one event of a stream, which is held in memory until it is whole: a tool call, or the ids of a long prompt's tokens."""
    probe_seconds: SecondsOrZero = 2.0
    """Interval at which each engine is asked whether it takes requests, at the path that its kind has for it; one that is not ready is
    asked every half second. 0: never."""
    load_seconds: SecondsOrZero = 0.25
    """Interval at which each engine of a model with several deployments is asked how much waits there; longer where more than 64 reports a
    second would be asked for. 0: never, and deployments are chosen by what this gateway sent."""
    cache_events: bool = False
    """Follow the events that vLLM and SGLang publish about their prefix caches (`--kv-events-config`), for models with several
    deployments: a prompt is then known to be held where the engine says so, whichever gateway sent it."""


class MediaSection(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on the media of one request's messages, as links or as data: engines decode it, in memory that all tenants share."""

    parts_max: CountOrZero = 128
    """Images, sounds, films and files in all messages, links included. More is answered 400. 0 allows none."""
    part_bytes_max: Bytes = 20 * 1024 * 1024
    """Decoded size of one data: URL, or of other data in base64. More is answered 413."""
    request_bytes_max: Bytes = 24 * 1024 * 1024
    """Decoded size of all of them together: what fits into `gateway.http.body_bytes_max` in base64."""
    frames_max: Count = 128
    """Pictures in a film that is given as a list (`data:video/jpeg;base64,...,...`); vLLM samples 32 of a film by default."""
    pixels_max: Pixels = 64_000_000
    """Pixels of one picture or frame, as its header states: 8,000 × 8,000, which is 192 MB in an engine. More is answered 400. Read from
    PNG, JPEG, GIF and WebP; an image type that is added to `types` does not have this bound."""
    request_pixels_max: Pixels = 512_000_000
    """Pixels of all pictures and frames of a request: 1.5 GB in an engine."""
    types: tuple[str, ...] = (
        "image/png", "image/jpeg", "image/jpg", "image/gif", "image/webp",
        "video/jpeg", "video/mp4", "video/webm", "video/quicktime",
        "audio/wav", "audio/x-wav", "audio/mpeg", "audio/mp3", "audio/mp4", "audio/m4a",
        "audio/flac", "audio/ogg", "audio/opus", "audio/webm",
        "application/pdf", "text/plain",
    )  # fmt: skip
    """Media types that are accepted, in lower case; `format` of `input_audio` counts as audio/FORMAT. Fewer types mean fewer decoders."""


class BuffersSection(msgspec.Struct, frozen=True, kw_only=True):
    """Budget for the memory that large request bodies and answers (64 KiB and more) take at once."""

    total_bytes_max: Bytes = 1024 * 1024 * 1024
    """Bytes of all of them together. A request that would exceed them is answered 503 before its body is read."""
    key_bytes_max: Bytes = 256 * 1024 * 1024
    """Bytes of the request bodies of one API key: eight of the largest. One more is answered 429 before it is read."""
    upstream_bytes_max: Bytes = 512 * 1024 * 1024
    """Bytes that are held for one deployment: requests that its engine has not answered and answers that are not whole yet. A request
    beyond them goes to another deployment, or is answered 503."""
    readers: Readers = 1
    """Processes that read the JSON of large request bodies, about 50 MiB each, started when the first such body comes. With 0 the gateway
    reads them itself, and other requests wait for up to 0.1 s meanwhile."""


class QueueSection(msgspec.Struct, frozen=True, kw_only=True):
    """Queue of each model in front of its deployments once all of them are full (docs/limits.md)."""

    waiting_max: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1_000
    """Requests that wait for one model, at each gateway. Up to twice as many while organizations that came first have more than their
    shares."""
    wait_seconds: Annotated[float, msgspec.Meta(gt=0, le=600)] = 2.0
    """Longest wait, to half a second; then 503. A request that would wait longer, as places became free lately, is refused at once."""
    concurrency_min: Count = 1
    """Least requests that a gateway sends one deployment at a time, however late or busy its engine is."""
    concurrency_max: Count = 10_000
    """Most requests that a gateway sends one deployment at a time; further ones wait. The number shrinks while the engine answers 429 or
    503 or its first tokens come late. Retries may exceed it."""


class SheddingSection(msgspec.Struct, frozen=True, kw_only=True):
    """Refusal of a part of new requests while the whole gateway process is overloaded (docs/limits.md)."""

    lag_seconds_max: SecondsOrZero = 0.5
    """Standing delay of the event loop, beyond which requests are refused with 503: an eighth more of them each half second, seven eighths
    at most. 0 refuses for no delay."""
    memory_bytes_max: Bytes | None = None
    """Resident memory of the process beyond which requests are refused in the same way. Without it, nine tenths of the limit of the
    process's control group, where it has one (cgroup v2)."""


class SpoolSection(msgspec.Struct, frozen=True, kw_only=True):
    """The spool, which keeps usage records until the control plane has them."""

    segment_bytes: Bytes = 64 << 20
    """One file of the spool, reserved on disk in advance: two are needed at least. At least 1,024 times `slots_max`."""
    slots_max: Count = 65_536
    """Requests in progress at once; one more is answered 503. 64 bytes of shared memory each."""
    gather_seconds: SecondsOrZero = 0.0
    """Time that a commit waits for further records. 0 commits at once: records that arrive meanwhile share the next commit anyway."""
    tick_seconds: Seconds = 10.0
    """Interval of the records that say that the gateway runs (TICK); they also commit what no final record follows."""


class LimitsSection(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of limits that several gateways share (docs/limits.md)."""

    redis_url: str | None = None
    """One Redis (7.0 or later) or Valkey server for all gateways: redis://host:port/database, or rediss:// for TLS, with a user name if the
    server wants one. The password is the variable TOLLWAY_LIMITS_REDIS_PASSWORD. Without a URL each gateway counts in its own memory.
    Control reads it too, to show tenants what is used."""
    decision_seconds: Annotated[float, msgspec.Meta(ge=0.002, le=60)] = 0.005
    """Deadline of the server's answer to one request; then the gateway decides alone, by its share of the limits."""
    lease_seconds: Annotated[float, msgspec.Meta(ge=5, le=3_600)] = 10.0
    """Time after which what a gateway holds at the server ends if it was not heard of. Gateways renew it every two seconds."""
    per_gateway: bool = False
    """Accept that each of several gateways applies every limit by itself. Without this and a server, a second gateway ends at its start."""


class IdempotencySection(msgspec.Struct, frozen=True, kw_only=True):
    """Store of answers to requests of inference with an `Idempotency-Key` (docs/apis.md), in the data directory."""

    lifetime_seconds: Annotated[int, msgspec.Meta(ge=0, le=7 * 86_400)] = 24 * 3600
    """Time for which an answer is given again. With 0 nothing is stored, and the header has no effect."""
    answer_bytes_max: Bytes = 1024 * 1024
    """Longest answer that is stored. A repeated request for a longer one is answered 409."""
    organization_bytes_max: Bytes = 256 * 1024 * 1024
    """Disk space for the answers of one organization; a request with a new key beyond it is answered 429."""
    total_bytes_max: Bytes = 1024 * 1024 * 1024
    """Disk space for all answers; a request with a new key beyond it is answered 503."""


class FilesSection(msgspec.Struct, frozen=True, kw_only=True):
    """Store of files that clients upload (`/v1/files`, docs/apis.md)."""

    directory: str | None = None
    """Directory of the store: `files` in the data directory for `tollway serve` and the demo. A gateway that runs apart has none unless
    it is named, and then nothing at `/v1/files`. Gateways that serve the same clients share one directory."""
    bucket: str | None = None
    """Bucket of an S3-compatible store that holds the files in place of the directory, where batches that run stay. Its credentials are
    those of the process: the variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the identity of the machine or the pod."""
    bucket_endpoint: str | None = None
    """Address of that store, http(s)://host[:port]. Without one it is Amazon's in `bucket_region`."""
    bucket_region: str = "us-east-1"
    """Region of the bucket."""
    bucket_prefix: str = ""
    """Text before the names of the objects, such as `tollway/`."""
    lifetime_seconds: Annotated[int, msgspec.Meta(ge=3_600, le=2_592_000)] = 30 * 86_400
    """Time for which a file is kept whose client asks for no other."""
    organization_files_max: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1_000
    """Files of one organization; one more is answered 403."""
    organization_bytes_max: Bytes = 1024 * 1024 * 1024
    """Space for the files of one organization; an upload beyond it is answered 403."""
    free_bytes_min: Bytes = 1024 * 1024 * 1024
    """Disk space that stays free; an upload to the directory that would leave less is answered 503."""


class BatchesSection(msgspec.Struct, frozen=True, kw_only=True):
    """Batches (`/v1/batches`, `/v1/messages/batches`, docs/batches.md). They exist where there is a store of files."""

    concurrency: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 64
    """Lines of batches that one gateway sends at a time, at most: while other traffic needs the capacity, they are fewer or none."""
    organization_concurrency: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 32
    """Lines of one organization that one gateway sends at a time."""
    organization_batches_max: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    """Batches of one organization that have not ended, and as many responses in the background; one more is answered 403."""
    lines_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 50_000
    """Lines of one batch."""


class ResponseCacheSection(msgspec.Struct, frozen=True, kw_only=True):
    """Cache of responses in the memory of a gateway, for models and requests that ask for it (docs/apis.md)."""

    total_bytes_max: Annotated[int, msgspec.Meta(ge=0, le=2**40)] = 64 * 1024 * 1024
    """Memory for all answers; those used longest ago give way. With 0 there is no cache."""
    organization_bytes_max: Bytes = 16 * 1024 * 1024
    """Memory for the answers of one organization."""
    answer_bytes_max: Bytes = 256 * 1024
    """Longest answer that is stored."""


class GuardrailSection(msgspec.Struct, frozen=True, kw_only=True):
    """The service that checks requests and answers of models with a guardrail (docs/guardrails.md)."""

    url: str | None = None
    """Its address, http(s)://host[:port][/path]. Without one nothing can be checked: models whose guardrail is `closed` answer 503. The
    bearer token that it is sent, if any, is the variable TOLLWAY_GUARDRAIL_TOKEN."""
    timeout_seconds: Seconds = 2.0
    """Deadline of one verdict."""
    document_bytes_max: Bytes = 4 * 1024 * 1024
    """Longest request or answer that is checked. A longer one cannot be checked."""
    window_bytes: Bytes = 8 * 1024
    """Events of a stream that are held back and checked together, in bytes as they are sent."""
    window_seconds: Seconds = 0.5
    """Time after which fewer events of a stream are checked."""


class RealtimeSection(msgspec.Struct, frozen=True, kw_only=True):
    """Realtime sessions (docs/apis.md)."""

    sessions_max: Count = 1_000
    """Sessions at once. One more is answered 503."""
    organization_sessions_max: Count = 100
    """Sessions of one organization at once, at each gateway. One more is answered 429."""
    message_bytes_max: Bytes = 1024 * 1024
    """Longest message, either way; a longer one ends the session with the code 1009."""
    idle_seconds: Seconds = 300.0
    """Time without a message of either end after which a session is closed."""
    age_seconds: Seconds = 3_600.0
    """Longest time of a session."""
    ping_seconds: Seconds = 20.0
    """Interval at which both ends are asked whether they are there. One of which nothing is heard for three times as long is gone."""
    write_stall_seconds: Seconds = 30.0
    """Time after which a client that does not read what it is sent is disconnected."""


class LogSection(msgspec.Struct, frozen=True, kw_only=True):
    """Log lines of gateways and control, and the files in which `tollway serve` and the demo keep them (docs/logs.md)."""

    level: Literal["info", "warning", "error"] = "info"
    """Least level of the lines that are written. SIGUSR1 changes it in a process that runs."""
    files: bool = True
    """Keep the lines in `logs` of the data directory, besides writing them to standard output."""
    file_bytes_max: Bytes = 64 * 1024 * 1024
    """Size of one file, beyond which it is set aside as `.1`, and the one before as `.2`."""
    files_kept: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    """Files that are kept beside each one that is written."""


class TelemetrySection(msgspec.Struct, frozen=True, kw_only=True):
    """Traces and metrics that gateways and control send to an OpenTelemetry collector (docs/observability.md). Headers, as for
    authentication, and certificates are named by OpenTelemetry's own variables, such as OTEL_EXPORTER_OTLP_HEADERS."""

    endpoint: str | None = None
    """Base URL of the collector, such as http://collector:4318, or :4317 for gRPC. Without one nothing is sent."""
    protocol: Literal["http/protobuf", "grpc"] = "http/protobuf"
    """Protocol of OTLP that the collector takes at this address."""
    traces: bool = True
    """Send traces."""
    sample_ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.01
    """Share of requests whose traces are sent, of those whose client sends no `traceparent`; with one, its sampled flag decides."""
    slow_seconds: Seconds = 30.0
    """Requests that take longer are sent in any case, as those are that end with a status of 500 or more."""
    traces_per_second_max: Count = 100
    """Most traces that one process sends each second; further ones are counted and left out."""
    metrics_seconds: SecondsOrZero = 0.0
    """Interval at which metrics are sent, besides being shown at `/metrics`. 0: never."""
    timeout_seconds: Seconds = 5.0
    """Deadline of one attempt to send, with its retries. What is not taken by then is dropped and counted."""


class GrpcSection(msgspec.Struct, frozen=True, kw_only=True):
    """The gRPC port: the Open Inference Protocol (docs/grpc.md)."""

    listen: str | None = None
    """Its address, host:port. Without one there is no such port. It has TLS where `gateway.tls` has certificates, and asks clients for
    none. A process that takes over listens beside the one that drains."""
    message_bytes_max: Bytes = 8 * 1024 * 1024
    """Longest message of a client; a longer one is answered RESOURCE_EXHAUSTED."""
    calls_max: Count = 1_000
    """Calls at once, streams included. One more is answered RESOURCE_EXHAUSTED. Calls without a key may take an eighth of them."""
    organization_calls_max: Count = 500
    """Calls at once of one organization, streams without a request included. One more is answered RESOURCE_EXHAUSTED."""
    connections_max: Count = 1_000
    """Open connections of clients; one more is closed."""
    connection_calls_max: Count = 100
    """Calls at once on one connection; further ones wait at the client."""
    metadata_bytes_max: Bytes = 16 * 1024
    """Metadata of one call. More is answered RESOURCE_EXHAUSTED."""
    idle_seconds: Seconds = 300.0
    """Time after which a stream without a request, or a connection without a call, is ended."""
    age_seconds: Seconds = 3_600.0
    """Age at which a connection is asked to come back; its calls go on."""
    write_stall_seconds: Seconds = 30.0
    """Time after which a client that does not read a stream is disconnected, and its engine's call is cancelled."""


class GatewaySection(msgspec.Struct, frozen=True, kw_only=True):
    """`tollway gateway`, the data plane."""

    listen: str = "127.0.0.1:8080"
    """Public address, host:port. Port 0 takes a free one."""
    internal: str = "127.0.0.1:9090"
    """Address of the health and metrics listener, for operators and probes only."""
    control_link_url: str | None = None
    """URL of the control plane's link. Without one the gateway serves from its copy of the snapshot alone; `tollway serve` sets it."""
    snapshot_age_seconds_max: SnapshotAge = SNAPSHOT_AGE_SECONDS_MAX
    """Longest time without a confirmation by the control plane that no change was missed. After it new requests are answered 503 and
    `/readyz` is red until control is reached, so that prices, keys and limits are never older than this. A gateway without
    `control_link_url` has no such bound."""
    linger_seconds: SecondsOrZero = 0.0
    """Time after SIGTERM in which new requests are still accepted, so that load balancers notice. 0 if a supervisor holds the socket."""
    drain_seconds: SecondsOrZero = 110.0
    """Time for running requests after SIGTERM; then they end with an error. Below the 120 s that orchestrators should wait."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that the Host header may have, with or without a port; others are answered 421. An empty list allows any.
    Health is answered under any name, because probes know addresses only."""
    tls: TlsSection = TlsSection()
    proxies: ProxiesSection = ProxiesSection()
    cors: CorsSection = CorsSection()
    http: HttpSection = HttpSection()
    edge: EdgeSection = EdgeSection()
    relay: RelaySection = RelaySection()
    media: MediaSection = MediaSection()
    buffers: BuffersSection = BuffersSection()
    queue: QueueSection = QueueSection()
    shedding: SheddingSection = SheddingSection()
    spool: SpoolSection = SpoolSection()
    idempotency: IdempotencySection = IdempotencySection()
    files: FilesSection = FilesSection()
    batches: BatchesSection = BatchesSection()
    response_cache: ResponseCacheSection = ResponseCacheSection()
    guardrail: GuardrailSection = GuardrailSection()
    realtime: RealtimeSection = RealtimeSection()
    grpc: GrpcSection = GrpcSection()
    limits: LimitsSection = LimitsSection()


class ReconcileSection(msgspec.Struct, frozen=True, kw_only=True):
    """Comparison of the engines' own token counters with what was billed, by model and hour (docs/reconciliation.md)."""

    enabled: bool = True
    """Read the engines' metrics. The control plane must be able to reach them; engines that it cannot reach are shown as not observed."""
    interval_seconds: Annotated[int, msgspec.Meta(ge=1, le=900)] = 60
    """Interval of the readings, counted from the full hour."""
    timeout_seconds: Seconds = 5.0
    """Deadline of one engine's metrics."""
    drift_percent_max: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.1
    """Difference between an engine's count and the ledger in one hour, in percent of the count, beyond which it is drift."""
    drift_tokens_max: CountOrZero = 1_000
    """Difference in tokens that is never drift: requests that run across the end of an hour, or are cut short, make small differences."""


class CorrectionsSection(msgspec.Struct, frozen=True, kw_only=True):
    """Corrections of what was billed."""

    approval_above: str = "100"
    """Amount in units of the currency (a decimal number). A correction waits until a second person has approved it if the corrections of
    its request together move more, or if everything does that operators of one origin ask for on a day (UTC). With 0 every correction
    waits."""


class PeriodsSection(msgspec.Struct, frozen=True, kw_only=True):
    """Billing periods (docs/money.md)."""

    close_after_days: Annotated[int, msgspec.Meta(ge=0, le=366)] | None = None
    """Days after its end when a period is closed automatically, if it can be. While records are missing it stays open, with a
    warning an hour and the metric `tollway_control_periods_overdue`; nothing is ever declared lost automatically. Without a number
    operators close periods."""


class AdministrationSection(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on what one organization may do at the REST API with its admin keys. Operators are not bound by them."""

    requests_per_minute: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 3000
    """Requests of all its keys together, each minute. One more is answered 429 with `retry-after`. Requests that delete or revoke are
    counted by themselves, up to the same number."""


class QuotasSection(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on how many of each thing every organization may have (docs/limits.md). What would be one more is answered 403
    `quota_exceeded`, to operators who act for the organization too. A smaller size ends nothing that exists."""

    projects: QuotaSize = DEFAULT_SIZES[Quota.PROJECTS]
    """Projects that are not archived."""
    service_accounts: QuotaSize = DEFAULT_SIZES[Quota.SERVICE_ACCOUNTS]
    """Service accounts in these projects that are not deleted."""
    api_keys: QuotaSize = DEFAULT_SIZES[Quota.API_KEYS]
    """Keys for inference in all projects that are not revoked, expired ones included. Each takes about 1 KiB of every gateway's memory."""
    admin_api_keys: QuotaSize = DEFAULT_SIZES[Quota.ADMIN_KEYS]
    """Admin keys that are not revoked, expired ones included."""
    budgets: QuotaSize = DEFAULT_SIZES[Quota.BUDGETS]
    """Budgets that are not archived, those of operators included."""
    budget_raises: QuotaSize = DEFAULT_SIZES[Quota.BUDGET_RAISES]
    """Raises of these budgets that have not ended."""
    model_limits: QuotaSize = DEFAULT_SIZES[Quota.MODEL_LIMITS]
    """Limits of a key, a service account, a project, its end users or the organization on a single model or group: all dimensions of one
    count as one."""
    roles: QuotaSize = DEFAULT_SIZES[Quota.ROLES]
    """Roles of its own, those of projects included, that are not deleted."""
    users: QuotaSize = DEFAULT_SIZES[Quota.USERS]
    """People who were not removed."""
    groups: QuotaSize = DEFAULT_SIZES[Quota.GROUPS]
    """Groups that are not deleted."""
    invites: QuotaSize = DEFAULT_SIZES[Quota.INVITES]
    """Invitations that were neither accepted nor deleted, expired ones included."""
    creations_per_day: QuotaSize = DEFAULT_SIZES[Quota.CREATIONS_PER_DAY]
    """Projects, service accounts, keys, budgets, raises, roles, people, groups and invitations created in 24 hours, ended ones too: their
    rows stay indefinitely, because usage and records of changes name them."""


class MailSection(msgspec.Struct, frozen=True, kw_only=True):
    """The server that takes mail, such as invitations. Without one, messages are files in `mail` of the data directory."""

    server: str | None = None
    """Address of the mail server, host:port."""
    security: Literal["starttls", "tls", "none"] = "starttls"
    """Encryption of the connection; the certificate of the server is checked. `none` is for a server on the same host."""
    sender: str = "tollway@localhost"
    """Address that messages come from."""
    username: str | None = None
    """Name to authenticate with; the password is in TOLLWAY_MAIL_PASSWORD. Without one, mail is sent without authentication."""


class AuditSection(msgspec.Struct, frozen=True, kw_only=True):
    """The audit trail (docs/audit.md)."""

    retention_days: Annotated[int, msgspec.Meta(ge=0, le=36_500)] = 0
    """Days for which records are kept at least; older ones are removed up to a signed checkpoint. 0 keeps everything."""


class KeyEncryptionSection(msgspec.Struct, frozen=True, kw_only=True):
    """The key that wraps the data keys of organizations (docs/encryption.md)."""

    provider: Literal["file", "vault", "aws"] = "file"
    """Place of the key: in a file, in the transit engine of HashiCorp Vault, or in AWS KMS."""
    file: str | None = None
    """File with the key as 64 hexadecimal digits. If left out, the key is derived from the vault key."""
    previous_file: str | None = None
    """File with the key that `file` had before, until `tollway encryption rewrap` has ended."""
    vault_url: str | None = None
    """Address of HashiCorp Vault, such as https://vault.example.com:8200."""
    vault_mount: str = "transit"
    """Path at which the transit engine is mounted."""
    vault_key: str | None = None
    """Name of the key in the transit engine, of type aes256-gcm96 or chacha20-poly1305."""
    vault_namespace: str | None = None
    """Namespace in Vault Enterprise."""
    vault_token_file: str | None = None
    """File with the token, read before each request, as Vault Agent renews it. If left out, TOLLWAY_VAULT_TOKEN holds it."""
    aws_key: str | None = None
    """Id, alias or ARN of a symmetric key of KMS. Its credentials are in AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN."""
    aws_region: str | None = None
    """Region of the key, such as eu-central-1."""
    aws_endpoint: str | None = None
    """Address of the service, if it is not that of the region."""
    timeout_seconds: Seconds = 2.0
    """Deadline of one request to Vault or KMS."""


class LeakedKeysSection(msgspec.Struct, frozen=True, kw_only=True):
    """Reports of leaked keys (docs/keys.md)."""

    github: bool = False
    """Take reports of GitHub's secret scanning at /v1/leaked_keys/github. Their signatures are verified with keys that are fetched."""
    github_keys_url: str = "https://api.github.com/meta/public_keys/secret_scanning"
    """Address at which GitHub publishes these keys, or a mirror of it."""


class SinksSection(msgspec.Struct, frozen=True, kw_only=True):
    """Systems of the operator that are sent every event, record of the audit trail and usage event (docs/sinks.md)."""

    streams: tuple[str, ...] = ("events", "audit", "usage")
    """Streams of records that sinks get, of `events`, `audit` and `usage`."""
    prefix: str = "tollway"
    """First part of the names of topics and subjects: 1 to 64 letters, digits, - and _."""
    kafka_servers: tuple[str, ...] = ()
    """Servers of Kafka's protocol, host:port, that a client begins with. Needs `pip install tollway[kafka]`."""
    kafka_properties_file: str | None = None
    """File with further properties of librdkafka, name=value a line, such as those of TLS and SASL."""
    nats_servers: tuple[str, ...] = ()
    """Servers of NATS with JetStream, nats://host:port or tls://host:port. Needs `pip install tollway[nats]`."""
    nats_credentials_file: str | None = None
    """File with the credentials of a user of NATS, as `nsc` writes it."""
    http_url: str | None = None
    """URL that records are posted to; TOLLWAY_SINK_SECRET signs them."""


class StripeSection(msgspec.Struct, frozen=True, kw_only=True):
    """The Stripe account that collects invoices, if there is a key (docs/payments.md)."""

    url: str = "https://api.stripe.com"
    """Address of the API, without a path."""


class OperatorSignInSection(msgspec.Struct, frozen=True, kw_only=True):
    """The identity provider with which operators sign in (docs/sign-in.md). Keys of operators work with and without it."""

    issuer: str | None = None
    """The exact issuer of the provider, such as https://login.example.com. Without one, operators have keys alone."""
    client_id: str | None = None
    """Client id at the provider; the secret is in TOLLWAY_OPERATOR_CLIENT_SECRET, unless it is a public client."""
    groups_claim: str = "groups"
    """Claim of the ID token that lists the groups of a person."""
    operator_groups: tuple[str, ...] = ()
    """Groups at the provider whose members are operators."""
    second_operator_groups: tuple[str, ...] = ()
    """Groups at the provider whose members are operators who approve what those of `operator_groups` ask for, and the other way round.
    Whoever is in groups of both counts as one of `operator_groups`."""
    auditor_groups: tuple[str, ...] = ()
    """Groups at the provider whose members read everything, and change nothing."""


class ControlSection(msgspec.Struct, frozen=True, kw_only=True):
    """`tollway control`, the control plane."""

    listen: str = "127.0.0.1:8081"
    """Address of the REST API, host:port."""
    link: str = "127.0.0.1:8082"
    """Address for gateways only, host:port: snapshots go down, usage records come up."""
    console_listen: str | None = None
    """Address of the console and the sign-in, host:port, apart from the REST API. If left out, they are at `control.listen`."""
    console_url: str | None = None
    """Address under which people reach the console and the sign-in, such as https://console.example.com, where it is not
    `control.public_url`. `control.console_listen` needs it, but for a listener on loopback."""
    public_url: str | None = None
    """Address under which clients reach the REST API, such as https://control.example.com: the issuer of access tokens. Changing it makes
    another signing key."""
    gateway_url: str | None = None
    """Address of a gateway for the playground of the console, such as http://gateway:8080. `tollway serve` takes its own, without TLS."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of the proxies in front of the REST API and its pages, such as 10.0.0.0/8. The client is then the right-most
    address in their x-forwarded-for that is not trusted itself: attempts to sign in are counted by it, and sessions and the audit trail
    name it. Without proxies it is the address that connects, and the header is ignored."""
    webhook_networks: tuple[str, ...] = ()
    """Private networks that webhooks of organizations may reach, by http too, such as 10.20.0.0/16. Others must have public addresses and
    HTTPS. Every organization can have requests sent to any address in them."""
    private_issuers: str = ""
    """Issuers of identity providers for the sign-in of people that are in a private network, separated by spaces, such as
    https://login.corp.internal. Others must have public addresses and HTTPS."""
    database_url: str | None = None
    """PostgreSQL as postgresql://user@host/name; the SQLite file in the data directory if left out."""
    owner_database_url: str | None = None
    """The same database by the role that owns its tables, for migrations and restores. If left out, control does not migrate PostgreSQL,
    and `tollway migrate` and `tollway backup restore` use `control.database_url`."""
    retention_months: Annotated[int, msgspec.Meta(ge=0, le=1_200)] = 0
    """Whole months after which the events of a month (UTC) are removed on PostgreSQL, once all periods in which they are booked are
    closed. Rollups, ledger and archive stay. 0 keeps everything; SQLite always keeps everything."""
    usage_parquet: bool = False
    """True writes each hour of usage as Parquet once it is closed, into `control/usage` of the data directory
    (docs/usage-files.md). Needs `pip install tollway[parquet]`."""
    metrics_organizations_max: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    """Organizations that metrics of control name, those with most tokens in the hour before; all others are one, `other`. 0 names none."""
    vies_url: str | None = None
    """Address of VIES, https://ec.europa.eu/taxation_customs/vies/rest-api, or of a mirror: control looks VAT ids up (docs/invoices.md)."""
    reconcile: ReconcileSection = ReconcileSection()
    corrections: CorrectionsSection = CorrectionsSection()
    periods: PeriodsSection = PeriodsSection()
    administration: AdministrationSection = AdministrationSection()
    quotas: QuotasSection = QuotasSection()
    audit: AuditSection = AuditSection()
    key_encryption: KeyEncryptionSection = KeyEncryptionSection()
    leaked_keys: LeakedKeysSection = LeakedKeysSection()
    stripe: StripeSection = StripeSection()
    sinks: SinksSection = SinksSection()
    mail: MailSection = MailSection()
    operator_sign_in: OperatorSignInSection = OperatorSignInSection()


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of all processes; each reads its own section."""

    data_dir: str = "tollway-data"
    """Data directory: secrets, spool, snapshots, logs, the SQLite file."""
    gateway: GatewaySection = GatewaySection()
    control: ControlSection = ControlSection()
    telemetry: TelemetrySection = TelemetrySection()
    log: LogSection = LogSection()


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


class LoadedSettings(NamedTuple):
    """Settings with what they come from. `sources`: the source of each setting that is not its default, by dotted name: a file, a
    variable, or the command line. `problems`: what is wrong with them; a setting with a problem has its default."""

    settings: "Settings"
    sources: Mapping[str, str]
    problems: list[OperatorError]


def load(options: Mapping[str, Any], environ: Mapping[str, str], config: Path | None) -> Settings:
    """Return the settings of this process. `options` are those of the command line, by dotted name; None means not given.

    Raises OperatorError for a file that cannot be read, an unknown name, or a value of the wrong type; it names the source."""
    loaded = load_with_sources(options, environ, config)
    if loaded.problems:
        raise loaded.problems[0]
    return loaded.settings


def load_with_sources(options: Mapping[str, Any], environ: Mapping[str, str], config: Path | None) -> LoadedSettings:
    """Return the settings as `load` does, with their sources and with every problem in place of the first one."""
    found: dict[str, tuple[Any, str]] = {}
    problems: list[OperatorError] = []
    if config is not None:
        found |= _from_yaml(config, problems)
    found |= _from_environment(environ, problems)
    found |= {name: (value, "the command line") for name, value in options.items() if value is not None}
    tree: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, (value, source) in found.items():
        *sections, leaf = name.split(".")
        try:
            converted = msgspec.convert(_as_list(value, NAMES[name]), NAMES[name], strict=False)
        except msgspec.ValidationError as error:
            problems.append(OperatorError(f"{name} in {source} is not valid: {error}", exit_code=2))
            continue
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = converted
        sources[name] = source
    return LoadedSettings(msgspec.convert(tree, Settings), sources, problems)


def get_setting(settings: Settings, name: str) -> Any:
    """Return the value of a setting by its dotted name."""
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _from_yaml(path: Path, problems: list[OperatorError]) -> dict[str, tuple[Any, str]]:
    try:
        tree = read_yaml(path)
    except OperatorError as error:
        problems.append(error)
        return {}
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        hint = "for example `gateway: {listen: 0.0.0.0:8080}`"
        problems.append(OperatorError(f"{path} must hold a mapping of settings", hint=hint, exit_code=2))
        return {}
    found = {}
    for name, value in _list_leaves(tree):
        if name in NAMES:
            found[name] = (value, str(path))
        else:
            problems.append(unknown_name(f"setting {name!r}", name, NAMES, source=str(path)))
    return found


def _list_leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _list_leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _as_list(value: Any, type: Any) -> Any:
    """Return a list from the text of a variable or an option."""
    if type != tuple[str, ...] or not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


def check_variables(environ: Mapping[str, str]) -> None:
    """Raise OperatorError if a variable under our prefix is none that a Tollway program reads: it is misspelt, or obsolete."""
    for problem in _find_unknown_variables(environ):
        raise problem


def _find_unknown_variables(environ: Mapping[str, str]) -> Iterator[OperatorError]:
    known = [*SHORT_NAMES, *OTHER_VARIABLES, *map(_variable_of, NAMES)]
    for variable in sorted(environ):
        if variable.startswith("TOLLWAY_") and variable not in known and not UNCHECKED_VARIABLES.fullmatch(variable):
            yield unknown_name(f"variable {variable}", variable, known, source="the environment")


def _variable_of(name: str) -> str:
    return ENV_PREFIX + name.upper().replace(".", "__")


def _from_environment(environ: Mapping[str, str], problems: list[OperatorError]) -> dict[str, tuple[Any, str]]:
    problems += _find_unknown_variables(environ)
    found = {name: (environ[short], short) for short, name in SHORT_NAMES.items() if environ.get(short)}
    return found | {name: (environ[variable], variable) for name in NAMES if (variable := _variable_of(name)) in environ}


_PASSWORD = re.compile(r"(?<=://)([^/@\s]*?):\S*@|((?:pass\w*|secret|token)=)[^&\s]+", re.IGNORECASE)


def mask_password(text: str) -> str:
    """Return a text with the passwords of the URLs in it replaced by ***: before the host, and in parameters such as `password=`."""
    return _PASSWORD.sub(lambda found: f"{found[2]}***" if found[2] else f"{found[1]}:***@", text)


def to_environment(settings: Settings) -> dict[str, str]:
    """Return `settings` as variables for a child process, from which `load` reads the same settings again."""
    variables = {}
    for name in NAMES:
        value = get_setting(settings, name)
        if value is not None:
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            variables[_variable_of(name)] = text
    return variables


def unknown_name(what: str, name: str, known: Iterable[str], *, source: str) -> OperatorError:
    """Return the error for an unknown name, with the nearest known one as its hint."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
    return OperatorError(f"unknown {what} in {source}", hint=hint, exit_code=2)


YAML_BYTES_MAX = 16 * 1024 * 1024
"""Largest file that is read. A platform file of 10,000 projects has about 2 MB; more than eight times that is a mistake."""


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds: strings, numbers, booleans, lists and mappings with unique text keys. Raises OperatorError."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise OperatorError(f"cannot read {path}: {error.strerror}", exit_code=2) from None
    if len(text) > YAML_BYTES_MAX:
        raise OperatorError(f"{path} is larger than {YAML_BYTES_MAX // 2**20} MiB", exit_code=2)
    try:
        return strict_yaml.parse(text)
    except strict_yaml.YamlError as error:
        raise OperatorError(f"{path}{error}", exit_code=2) from None
