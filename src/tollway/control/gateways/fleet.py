"""The fleet as it lives: deployments with the load that gateways report, what keeps requests from them, and what a drain of each does.

Gateways report every few seconds (`domain.gateway_statuses`). Loads of live gateways are added up; a report that is older than
STATUS_COUNTED_US counts no more. Nothing is decided by any of this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tollway.control.publish import NODE_COUNTED_US
from tollway.domain.catalog import Deployment
from tollway.domain.gateway_statuses import STATUS_COUNTED_US, DeploymentStatus, Ejection, GatewayStatus
from tollway.domain.pages import Page, PageWindow
from tollway.storage import catalog, gateway_statuses, nodes
from tollway.storage.database import PlatformTx
from tollway.storage.gateway_statuses import StoredDeployments
from tollway.storage.gateway_statuses import StoredStatus as StoredStatus  # of `find_statuses`, for the API

REPORTS_READ_MAX = 200
"""Gateways whose reports on deployments are added up for one answer: with DEPLOYMENTS_REPORTED_MAX in each, a tenth of a second of work."""


class ServingState(StrEnum):
    """State of a deployment, by what gateways report of it."""

    SERVING = "serving"
    IMPAIRED = "impaired"
    """Some gateways avoid it."""
    EJECTED = "ejected"
    """Every gateway that reports it avoids it, or its engine says that it takes no requests."""
    DRAINING = "draining"
    """Its weight is 0, and requests still run there or a gateway has not applied the change."""
    DRAINED = "drained"
    UNREPORTED = "unreported"
    """No gateway reports it."""


class DrainEffect(StrEnum):
    """Fate of new requests for its model when a deployment is drained."""

    MOVED = "moved"
    """Others have places for as many as run there now."""
    CROWDED = "crowded"
    """Others serve them, and have fewer free places than it uses: requests wait, and are refused if they wait for too long."""
    REFUSED = "refused"
    """There is no other deployment for them."""


@dataclass(frozen=True, slots=True)
class NodeEjection:
    """A deployment that a gateway avoids. Instants in UTC microseconds: since when, and from when on a request may try it."""

    node_id: str
    ejection: Ejection
    since_at: int
    retry_at: int


@dataclass(frozen=True, slots=True)
class DrainPreview:
    """Effect that a drain of a deployment would have, or has. `others`: deployments that serve its model instead; `others_in_region`: those
    of them in its region, which are all that serve projects that are bound to that region. `free_places`: at others that gateways do not
    avoid."""

    effect: DrainEffect
    others: int
    others_in_region: int
    free_places: int


@dataclass(frozen=True, slots=True)
class FleetDeployment:
    """A deployment and its load at all live gateways. `gateways`: those that report it; `current`: those of them that act by its present
    weight. `reported_at`: the oldest of their reports, UTC microseconds; None if there is none. `not_ready`: gateways to which its engine
    says that it takes no requests. `waiting`: for any deployment of its model."""

    deployment: Deployment
    state: ServingState
    gateways: int
    current: int
    reported_at: int | None
    running: int
    limit: int
    waiting: int
    requests_per_minute: int
    failures_per_minute: int
    not_ready: int
    ejections: tuple[NodeEjection, ...]
    drain: DrainPreview


def store_status(tx: PlatformTx, node_id: str, status: GatewayStatus, deployments: Sequence[DeploymentStatus], now: int) -> None:
    """Replace what a gateway reported of itself before."""
    gateway_statuses.put_status(tx, node_id, status, deployments, now)


def find_statuses(tx: PlatformTx, node_ids: Sequence[str]) -> dict[str, StoredStatus]:
    """Return what gateways last reported of themselves, however long ago, by node."""
    return gateway_statuses.find_statuses(tx, node_ids)


@dataclass(frozen=True, slots=True)
class _Seen:
    """Report of one gateway on one deployment."""

    node_id: str
    reported_at: int
    status: DeploymentStatus

    def avoids(self) -> bool:
        """Return whether the gateway sends nothing there while it has another one, whatever the endpoint."""
        return not self.status.is_ready or any(not each.endpoint for each in self.status.ejections)


def list_deployments(tx: PlatformTx, window: PageWindow, *, model: str | None, now: int) -> Page[FleetDeployment]:
    """Return active deployments, or those of one model, with their load."""
    page = catalog.list_deployments(tx, window, model=model, include_archived=False)
    siblings = catalog.find_deployments_of(tx, {each.model for each in page.items})
    alive = nodes.list_alive_nodes(tx, now - NODE_COUNTED_US)[:REPORTS_READ_MAX]
    seen = _collect(gateway_statuses.list_deployments(tx, alive, now - STATUS_COUNTED_US))
    free_places = {id: _count_free_places(of_deployment) for id, of_deployment in seen.items()}
    return Page([_describe(each, siblings, seen.get(each.id, []), free_places) for each in page.items], page.has_more)


def _count_free_places(seen: Sequence[_Seen]) -> int:
    return sum(max(0, each.status.limit - each.status.running) for each in seen if not each.avoids())


def _collect(reports: Sequence[StoredDeployments]) -> dict[str, list[_Seen]]:
    found: dict[str, list[_Seen]] = {}
    for report in reports:
        for status in report.deployments:
            found.setdefault(status.id, []).append(_Seen(report.node_id, report.reported_at, status))
    return found


def _describe(
    deployment: Deployment, siblings: Sequence[Deployment], seen: Sequence[_Seen], free_places_of: Mapping[str, int]
) -> FleetDeployment:
    statuses = [each.status for each in seen]
    running, current = sum(each.running for each in statuses), sum(each.weight == deployment.weight for each in statuses)
    others = [
        each
        for each in siblings
        if each.id != deployment.id and each.model == deployment.model and each.test is deployment.test and each.weight > 0
    ]
    free_places = sum(free_places_of.get(each.id, 0) for each in others)
    effect = DrainEffect.REFUSED if not others else DrainEffect.MOVED if free_places >= running else DrainEffect.CROWDED
    return FleetDeployment(
        deployment=deployment,
        state=_find_state(deployment, seen, running, current),
        gateways=len(seen),
        current=current,
        reported_at=min((each.reported_at for each in seen), default=None),
        running=running,
        limit=sum(each.limit for each in statuses),
        waiting=sum(each.waiting for each in statuses),
        requests_per_minute=sum(each.requests_per_minute for each in statuses),
        failures_per_minute=sum(each.failures_per_minute for each in statuses),
        not_ready=sum(not each.is_ready for each in statuses),
        ejections=tuple(_date(each, ejection) for each in seen for ejection in each.status.ejections),
        drain=DrainPreview(effect, len(others), sum(each.region == deployment.region for each in others), free_places),
    )


def _find_state(deployment: Deployment, seen: Sequence[_Seen], running: int, current: int) -> ServingState:
    if not seen:
        return ServingState.UNREPORTED
    if not deployment.weight:
        return ServingState.DRAINING if running or current < len(seen) else ServingState.DRAINED
    avoiding = sum(each.avoids() for each in seen)
    if avoiding == len(seen):
        return ServingState.EJECTED
    return ServingState.IMPAIRED if avoiding or any(each.status.ejections for each in seen) else ServingState.SERVING


def _date(seen: _Seen, ejection: Ejection) -> NodeEjection:
    at = seen.reported_at
    return NodeEjection(seen.node_id, ejection, at - ejection.since_ms * 1000, at + ejection.retry_ms * 1000)
