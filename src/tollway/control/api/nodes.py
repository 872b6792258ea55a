"""Gateways as control knows them, for operators."""

from tollway.control import publish
from tollway.control.api import doors
from tollway.control.api.doors import Plane, PlatformOperator
from tollway.control.api.schemas import ListOut, NodeOut, node_out

router = doors.router(tags=["nodes"])


@router.get("/v1/platform/nodes")
def list_nodes(_caller: PlatformOperator, plane: Plane) -> ListOut[NodeOut]:
    """The gateways, the latest heard of first, and how far each has followed. At most a thousand."""
    with plane.database.platform(write=False) as tx:
        head, nodes = publish.find_head(tx), publish.list_nodes(tx)
    data = [node_out(node, head) for node in nodes]
    return ListOut(data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=False)
