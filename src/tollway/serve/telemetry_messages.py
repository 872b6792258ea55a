"""Messages between a process and its exporter (`telemetry_export`, `telemetry_exporter`): frames of MessagePack behind their length."""

import struct
from typing import Literal

import msgspec

from tollway.spans import Span

LENGTH = struct.Struct(">I")
FRAME_BYTES_MAX = 64 * 1024 * 1024
"""Bound on one frame; a page of metrics of many models has a few MB."""


class OtlpOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The collector that telemetry is sent to. `endpoint`: its base URL, http(s)://host:port, None for none. `protocol`: of OTLP.
    `traces`: whether traces are sent. `metrics_seconds`: interval of metrics, 0 for none. `timeout_seconds`: of one attempt to send, with
    its retries."""

    endpoint: str | None = None
    protocol: Literal["http/protobuf", "grpc"] = "http/protobuf"
    traces: bool = True
    metrics_seconds: float = 0.0
    timeout_seconds: float = 5.0


class Introduction(msgspec.Struct, tag=True, frozen=True):
    """The first message. `resource`: attributes of the process whose telemetry follows."""

    options: OtlpOptions
    resource: dict[str, str]


class Spans(msgspec.Struct, tag=True, frozen=True):
    """Spans to send."""

    spans: list[Span]


class Page(msgspec.Struct, tag=True, frozen=True):
    """A page of metrics in the text format of Prometheus, at the instant `at_us`; what it counts began at `since_us` (UTC microseconds)."""

    text: bytes
    at_us: int
    since_us: int


class Report(msgspec.Struct, tag=True, frozen=True):
    """The end of a message: how many spans, or pages, were sent or not. `error`: the type of an error, empty for none."""

    sent: int
    failed: int
    is_page: bool
    error: str = ""


Message = Introduction | Spans | Page
_encode = msgspec.msgpack.Encoder().encode
decode_message = msgspec.msgpack.Decoder(Message).decode
"""Return the message of a frame without its length. Raises msgspec.DecodeError."""
decode_report = msgspec.msgpack.Decoder(Report).decode
"""Return the report of a frame without its length. Raises msgspec.DecodeError."""


def encode_frame(message: Message | Report) -> bytes:
    """Return a message as a frame."""
    data = _encode(message)
    return LENGTH.pack(len(data)) + data
