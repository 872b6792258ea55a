"""Reports of a gateway on itself, and on the deployments that it sends requests to, for operators. Nothing is decided by them.

A report has spans in milliseconds instead of instants: control counts them from the instant at which it received the report, so the clock
of a gateway does not matter. It is bounded: DEPLOYMENTS_REPORTED_MAX deployments, and for each one ejection of every endpoint at most.
A field that is added has a default: reports of gateways and rows of the version before do not have it.
"""

import msgspec

STATUS_SECONDS = 5.0
"""Interval of reports, and so the age of what operators are shown."""

STATUS_COUNTED_US = 20_000_000
"""Age up to which a report counts among the present load: three were missed then."""

DEPLOYMENTS_REPORTED_MAX = 500
"""Deployments in one report. Where a gateway has more, those that it avoids and those with most requests."""


class Ejection(msgspec.Struct, frozen=True):
    """A deployment that a gateway avoids since `since_ms` milliseconds ago. `endpoint`: empty for every endpoint. `reason`: code of the
    fault. `retry_ms`: until a request may try it; 0: the next one does."""

    endpoint: str
    reason: str
    since_ms: int
    retry_ms: int


class DeploymentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment as one gateway sees it. `weight`: by which it is chosen there, which shows whether a change has arrived.

    `running`: requests that it was sent and that have not ended, of `limit` at most. `waiting`: requests that wait there for any deployment
    of its model. `requests_per_minute` and `failures_per_minute`: attempts that ended within the last minute, and those of them that ended
    in a fault. `is_ready`: its engine says that it takes requests, or is not asked.
    """

    id: str
    weight: int
    running: int
    limit: int
    waiting: int
    requests_per_minute: int
    failures_per_minute: int
    is_ready: bool
    ejections: tuple[Ejection, ...] = ()


class GatewayStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway as it sees itself. `version`: of the program. `uptime_seconds`: since its process began.

    `is_ready`: it serves new requests. `is_draining`: it ends. `connections`: of clients. `running` and `waiting`: requests. `loop_lag_ms`:
    the longest delay of its event loop since the report before. `snapshot_age_ms`: since control last confirmed its configuration, None:
    never. `records_unshipped`: usage records of this run that control does not have yet. `epochs_unshipped`: earlier runs of which control
    does not have everything. `deployments_left_out`: beyond those that are reported.
    """

    version: str
    uptime_seconds: int
    is_ready: bool
    is_draining: bool
    connections: int
    running: int
    waiting: int
    loop_lag_ms: int
    snapshot_age_ms: int | None
    records_unshipped: int
    epochs_unshipped: int
    deployments_left_out: int = 0
