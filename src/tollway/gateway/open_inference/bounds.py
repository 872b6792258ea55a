"""Bounds of the gRPC port."""

import msgspec


class GrpcBounds(msgspec.Struct, frozen=True, kw_only=True):
    """`listen`: address of the port, host:port; None for none. `message_bytes_max`: of one message of a client; those of engines have the
    relay's `answer_bytes_max`. `calls_max`: calls at once, streams included; `organization_calls_max`: of one organization.
    `connections_max`: of clients. `connection_calls_max`: calls at once of one connection. `metadata_bytes_max`: of one call.
    `idle_seconds`: a stream without a request, or a connection without a call. `age_seconds`: a connection, which is asked to come back
    then. `write_stall_seconds`: a client that does not read."""

    listen: str | None = None
    message_bytes_max: int = 8 * 1024 * 1024
    calls_max: int = 1_000
    organization_calls_max: int = 500
    connections_max: int = 1_000
    connection_calls_max: int = 100
    metadata_bytes_max: int = 16 * 1024
    idle_seconds: float = 300.0
    age_seconds: float = 3_600.0
    write_stall_seconds: float = 30.0
