"""Reports of gateways on themselves: one row for each gateway, replaced with every report."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import sqlalchemy as sa

from tollway.domain.gateway_statuses import DeploymentStatus, GatewayStatus
from tollway.storage.database import PlatformTx
from tollway.storage.schema import gateway_statuses


class StoredStatus(NamedTuple):
    """The report of one gateway on itself. `reported_at`: when control received it, in UTC microseconds."""

    reported_at: int
    status: GatewayStatus


class StoredDeployments(NamedTuple):
    """The report of one gateway on its deployments. `reported_at`: when control received it, in UTC microseconds."""

    node_id: str
    reported_at: int
    deployments: list[DeploymentStatus]


def put_status(tx: PlatformTx, node_id: str, status: GatewayStatus, deployments: Sequence[DeploymentStatus], now: int) -> None:
    """Replace what a registered node reported before."""
    encode = msgspec.json.encode
    values = {"reported_at": now, "gateway": encode(status).decode(), "deployments": encode(deployments).decode()}
    insert = tx.insert(gateway_statuses).values(node_id=node_id, **values)
    tx.connection.execute(insert.on_conflict_do_update(index_elements=["node_id"], set_=values))


def find_statuses(tx: PlatformTx, node_ids: Sequence[str]) -> dict[str, StoredStatus]:
    """Return the latest report of each of these nodes, by node; those that never reported are left out."""
    table = gateway_statuses.c
    query = sa.select(table.node_id, table.reported_at, table.gateway).where(table.node_id.in_(node_ids))
    return {row.node_id: StoredStatus(row.reported_at, _decode_status(row.gateway)) for row in tx.connection.execute(query)}


def list_deployments(tx: PlatformTx, node_ids: Sequence[str], since: int) -> list[StoredDeployments]:
    """Return what these nodes reported of their deployments at `since` or later (UTC microseconds)."""
    table = gateway_statuses.c
    query = sa.select(table.node_id, table.reported_at, table.deployments).where(table.node_id.in_(node_ids), table.reported_at >= since)
    rows = tx.connection.execute(query.order_by(table.node_id))
    return [StoredDeployments(row.node_id, row.reported_at, _decode_deployments(row.deployments)) for row in rows]


_decode_status = msgspec.json.Decoder(GatewayStatus).decode
_decode_deployments = msgspec.json.Decoder(list[DeploymentStatus]).decode
