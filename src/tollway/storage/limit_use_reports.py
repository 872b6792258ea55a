"""Reports of gateways on what is used of limits: one row for each gateway, replaced with every report."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import sqlalchemy as sa

from tollway.domain.limits import LimitUse
from tollway.storage.database import PlatformTx
from tollway.storage.schema import limit_reports


class LimitReport(NamedTuple):
    """The report of one gateway. `reported_at`: when control received it, in UTC microseconds."""

    reported_at: int
    uses: list[LimitUse]


def put_report(tx: PlatformTx, node_id: str, uses: Sequence[LimitUse], now: int) -> None:
    """Replace what a registered node reported before."""
    values = {"reported_at": now, "uses": msgspec.json.encode(uses).decode()}
    own = limit_reports.update().where(limit_reports.c.node_id == node_id)
    if not tx.connection.execute(own.values(values)).rowcount:
        tx.connection.execute(limit_reports.insert().values(node_id=node_id, **values))


def list_reports(tx: PlatformTx, node_ids: Sequence[str]) -> list[LimitReport]:
    """Return the latest reports of these nodes."""
    query = sa.select(limit_reports).where(limit_reports.c.node_id.in_(node_ids)).order_by(limit_reports.c.node_id)
    return [LimitReport(row.reported_at, msgspec.json.decode(row.uses, type=list[LimitUse])) for row in tx.connection.execute(query)]
