"""Bodies of the fleet: reports of gateways, and deployments with their load."""

from typing import Annotated, Literal

import msgspec
from pydantic import Field, StringConstraints

from tollway.control.api.schemas import Identified, In, Out, find_seconds, seconds
from tollway.control.gateways.fleet import DrainEffect, FleetDeployment, NodeEjection, ServingState, StoredStatus
from tollway.domain.catalog import Endpoint
from tollway.domain.gateway_statuses import DEPLOYMENTS_REPORTED_MAX, DeploymentStatus, GatewayStatus

Count = Annotated[int, Field(ge=0, le=2**53)]
Code = Annotated[str, StringConstraints(max_length=64, pattern=r"^[a-z0-9_]*$")]


class EjectionIn(In):
    """A deployment that the calling gateway avoids."""

    endpoint: Annotated[
        str,
        StringConstraints(max_length=64, pattern=r"^[a-z0-9_/]*$"),
        Field(description="The endpoint for which it is avoided; empty: for every endpoint.", examples=["chat/completions"]),
    ]
    reason: Annotated[Code, Field(description="Code of the fault.", examples=["upstream_unreachable"])]
    since_ms: Annotated[Count, Field(description="Milliseconds since it began.", examples=[4000])]
    retry_ms: Annotated[Count, Field(description="Milliseconds until a request may try it; 0: the next one does.", examples=[500])]


class DeploymentStatusIn(In):
    """A deployment as the calling gateway sees it."""

    id: Annotated[
        str, StringConstraints(max_length=64), Field(description="The deployment.", examples=["dep_0198c5f2a3b47c11a0b1c2d3e4f50617"])
    ]
    weight: Annotated[Count, Field(description="The weight by which it is chosen.", examples=[1])]
    running: Annotated[Count, Field(description="Requests that run there.", examples=[12])]
    limit: Annotated[Count, Field(description="Requests that are sent there at a time, at most.", examples=[64])]
    waiting: Annotated[Count, Field(description="Requests that wait for any deployment of its model.", examples=[0])]
    requests_per_minute: Annotated[Count, Field(description="Requests that ended there within a minute.", examples=[340])]
    failures_per_minute: Annotated[Count, Field(description="Those of them that ended in a fault.", examples=[0])]
    is_ready: Annotated[bool, Field(description="Whether its engine takes requests, or is not asked.", examples=[True])]
    ejections: Annotated[
        list[EjectionIn],
        Field(max_length=len(Endpoint) + 1, description="For which endpoints it is avoided, and why.", examples=[[]]),
    ]


class GatewayStatusIn(In):
    """The calling gateway as it sees itself."""

    version: Annotated[
        str,
        StringConstraints(max_length=64, pattern=r"^[\x21-\x7e]+$"),
        Field(description="Version of Tollway that it runs.", examples=["1.4.0"]),
    ]
    uptime_seconds: Annotated[Count, Field(description="Seconds since its process began.", examples=[86400])]
    is_ready: Annotated[bool, Field(description="Whether it serves new requests.", examples=[True])]
    is_draining: Annotated[bool, Field(description="Whether it ends, once its requests have.", examples=[False])]
    connections: Annotated[Count, Field(description="Connections of clients.", examples=[120])]
    running: Annotated[Count, Field(description="Requests that run.", examples=[48])]
    waiting: Annotated[Count, Field(description="Requests that wait.", examples=[0])]
    loop_lag_ms: Annotated[
        Count, Field(description="Longest delay of its event loop since the report before, in milliseconds.", examples=[2])
    ]
    snapshot_age_ms: Annotated[
        Count | None, Field(description="Milliseconds since control last confirmed its configuration; null: never.", examples=[800])
    ]
    records_unshipped: Annotated[Count, Field(description="Usage records of this run that control does not have yet.", examples=[0])]
    epochs_unshipped: Annotated[Count, Field(description="Earlier runs of which control does not have every record yet.", examples=[0])]
    deployments_left_out: Annotated[Count, Field(description="Deployments beyond those of the report.", examples=[0])]


class StatusIn(In):
    """A report of the calling gateway on itself and its deployments."""

    gateway: Annotated[GatewayStatusIn, Field(description="The gateway itself.")]
    deployments: Annotated[
        list[DeploymentStatusIn],
        Field(max_length=DEPLOYMENTS_REPORTED_MAX, description="Its deployments; of more than 500 those that matter most.", examples=[[]]),
    ]

    def to_status(self) -> tuple[GatewayStatus, list[DeploymentStatus]]:
        """Return the report as the domain has it."""
        deployments = msgspec.convert([each.model_dump() for each in self.deployments], list[DeploymentStatus])
        return msgspec.convert(self.gateway.model_dump(), GatewayStatus), deployments


class StatusOut(Out):
    """The number of deployments in a report that was stored."""

    received: Annotated[int, Field(ge=0, description="Deployments that were stored.", examples=[12])]


class NodeStatusOut(Out):
    """Latest report of a gateway on itself."""

    object: Literal["platform.node.status"] = "platform.node.status"
    reported_at: Annotated[int, Field(ge=0, description="When control received the report, in Unix seconds (UTC).", examples=[1790000000])]
    version: Annotated[str, Field(description="Version of Tollway that the gateway runs.", examples=["1.4.0"])]
    uptime_seconds: Annotated[int, Field(ge=0, description="Seconds since its process began.", examples=[86400])]
    ready: Annotated[bool, Field(description="Whether it serves new requests.", examples=[True])]
    draining: Annotated[bool, Field(description="Whether it ends, once its requests have.", examples=[False])]
    connections: Annotated[int, Field(ge=0, description="Connections of clients.", examples=[120])]
    running: Annotated[int, Field(ge=0, description="Requests that run.", examples=[48])]
    waiting: Annotated[int, Field(ge=0, description="Requests that wait for a place at a deployment.", examples=[0])]
    loop_lag_ms: Annotated[
        int, Field(ge=0, description="Longest delay of its event loop since the report before, in milliseconds.", examples=[2])
    ]
    snapshot_age_seconds: Annotated[
        int | None, Field(ge=0, description="Seconds since control last confirmed its configuration; null: never.", examples=[1])
    ]
    records_unshipped: Annotated[int, Field(ge=0, description="Usage records of this run that control does not have yet.", examples=[0])]
    epochs_unshipped: Annotated[int, Field(ge=0, description="Earlier runs of which control does not have every record yet.", examples=[0])]
    deployments_left_out: Annotated[int, Field(ge=0, description="Deployments beyond the 500 that a report holds.", examples=[0])]


def node_status_out(stored: StoredStatus) -> NodeStatusOut:
    """Return a report as the API shows it."""
    status = stored.status
    age = status.snapshot_age_ms
    return NodeStatusOut(
        reported_at=seconds(stored.reported_at),
        version=status.version,
        uptime_seconds=status.uptime_seconds,
        ready=status.is_ready,
        draining=status.is_draining,
        connections=status.connections,
        running=status.running,
        waiting=status.waiting,
        loop_lag_ms=status.loop_lag_ms,
        snapshot_age_seconds=None if age is None else age // 1000,
        records_unshipped=status.records_unshipped,
        epochs_unshipped=status.epochs_unshipped,
        deployments_left_out=status.deployments_left_out,
    )


class FleetEjectionOut(Out):
    """A deployment that a gateway avoids while it has another one."""

    node_id: Annotated[str, Field(description="The gateway.", examples=["node_0198c5f2a3b47c11a0b1c2d3e4f50617"])]
    endpoint: Annotated[
        str | None, Field(description="The endpoint for which it is avoided; null: for every endpoint.", examples=["chat/completions"])
    ]
    reason: Annotated[str, Field(description="Code of the fault that its requests ended with.", examples=["upstream_unreachable"])]
    since_at: Annotated[int, Field(ge=0, description="When it began, in Unix seconds (UTC).", examples=[1790000000])]
    retry_at: Annotated[
        int,
        Field(ge=0, description="When a request may try it, in Unix seconds (UTC); in the past: the next one does.", examples=[1790000002]),
    ]


class DrainPreviewOut(Out):
    """Effect that a drain of a deployment would have, or has."""

    effect: Annotated[
        DrainEffect,
        Field(
            description="What becomes of new requests for its model: `moved` to others, which have places for as many as run there;"
            " `crowded`: others have fewer free places, so some wait or are refused; `refused`: there is no other deployment.",
            examples=["moved"],
        ),
    ]
    others: Annotated[int, Field(ge=0, description="Deployments that serve its model instead.", examples=[2])]
    others_in_region: Annotated[
        int, Field(ge=0, description="Those of them in its region, which serve projects that are bound to it.", examples=[1])
    ]
    free_places: Annotated[int, Field(ge=0, description="Requests that gateways would still send to the others at a time.", examples=[40])]


class FleetDeploymentOut(Identified):
    """An active deployment, with the load that the live gateways report."""

    object: Literal["platform.fleet.deployment"] = "platform.fleet.deployment"
    model: str
    base_url: str
    engine: str
    upstream_model: str
    region: str | None
    tier: int
    weight: int
    test: bool
    state: Annotated[
        ServingState,
        Field(
            description="`serving`; `impaired`: some gateways avoid it; `ejected`: all of them do; `draining`: its weight is 0, and"
            " requests still run or a gateway has not applied it; `drained`; `unreported`: no live gateway reports it.",
            examples=["serving"],
        ),
    ]
    gateways: Annotated[int, Field(ge=0, description="Live gateways that report it.", examples=[3])]
    gateways_current: Annotated[int, Field(ge=0, description="Those of them that act by its present weight.", examples=[3])]
    gateways_not_ready: Annotated[int, Field(ge=0, description="Those to which its engine says that it takes no requests.", examples=[0])]
    reported_at: Annotated[
        int | None, Field(ge=0, description="When the oldest of their reports was received, in Unix seconds (UTC).", examples=[1790000000])
    ]
    running: Annotated[int, Field(ge=0, description="Requests that run there.", examples=[12])]
    limit: Annotated[int, Field(ge=0, description="Requests that gateways send there at a time, at most.", examples=[64])]
    waiting: Annotated[int, Field(ge=0, description="Requests that wait for any deployment of its model.", examples=[0])]
    requests_per_minute: Annotated[int, Field(ge=0, description="Requests that ended there within the last minute.", examples=[340])]
    failures_per_minute: Annotated[int, Field(ge=0, description="Those of them that ended in a fault.", examples=[0])]
    ejections: Annotated[list[FleetEjectionOut], Field(description="By which gateways it is avoided, and why.", examples=[[]])]
    drain: Annotated[DrainPreviewOut, Field(description="What a drain would do, or does.")]


def fleet_deployment_out(found: FleetDeployment) -> FleetDeploymentOut:
    """Return a deployment with its load as the API shows it."""
    deployment, drain = found.deployment, found.drain
    return FleetDeploymentOut(
        id=deployment.id,
        model=deployment.model,
        base_url=deployment.base_url,
        engine=deployment.engine,
        upstream_model=deployment.upstream_model,
        region=deployment.region,
        tier=deployment.tier,
        weight=deployment.weight,
        test=deployment.test,
        state=found.state,
        gateways=found.gateways,
        gateways_current=found.current,
        gateways_not_ready=found.not_ready,
        reported_at=find_seconds(found.reported_at),
        running=found.running,
        limit=found.limit,
        waiting=found.waiting,
        requests_per_minute=found.requests_per_minute,
        failures_per_minute=found.failures_per_minute,
        ejections=[_ejection_out(each) for each in found.ejections],
        drain=DrainPreviewOut(
            effect=drain.effect, others=drain.others, others_in_region=drain.others_in_region, free_places=drain.free_places
        ),
    )


def _ejection_out(found: NodeEjection) -> FleetEjectionOut:
    return FleetEjectionOut(
        node_id=found.node_id,
        endpoint=found.ejection.endpoint or None,
        reason=found.ejection.reason,
        since_at=seconds(found.since_at),
        retry_at=seconds(found.retry_at),
    )
