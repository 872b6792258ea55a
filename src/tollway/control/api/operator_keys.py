"""Keys of operators, one for each person: so that it is on record who did what, and one can approve what another asked for."""

from typing import Annotated, Literal

from fastapi import Query

from tollway.control import keys
from tollway.control.api import routes
from tollway.control.api.routes import Plane, PlatformOperator
from tollway.control.api.schemas import Deleted, Identified, In, ListOut, Name, PageQuery, list_out, seconds
from tollway.domain import ids
from tollway.domain.keys import Key

router = routes.router(tags=["operators"])


class OperatorKeyCreate(In):
    """`name`: whose it is."""

    name: Name


class OperatorKeyOut(Identified):
    object: Literal["platform.key"] = "platform.key"
    name: str
    redacted_value: str
    created_at: int


class OperatorKeyCreated(OperatorKeyOut):
    """With the secret, shown this once."""

    value: str


@router.get("/v1/platform/keys")
def list_operator_keys(_caller: PlatformOperator, plane: Plane, query: Annotated[PageQuery, Query()]) -> ListOut[OperatorKeyOut]:
    """The keys of operators."""
    with plane.database.platform(write=False) as tx:
        page = keys.list_operator_keys(tx, query.window())
    return list_out(page, _key_out)


@router.post("/v1/platform/keys")
def create_operator_key(_caller: PlatformOperator, plane: Plane, body: OperatorKeyCreate) -> OperatorKeyCreated:
    """Create a key of an operator. Its secret is in this answer and nowhere else."""
    with plane.database.platform() as tx:
        shown = keys.create_operator_key(tx, name=body.name, id=plane.new_id(ids.KEY), ingredients=plane.new_ingredients(), now=plane.now())
    return OperatorKeyCreated(**_key_out(shown.key).model_dump(), value=shown.secret)


@router.delete("/v1/platform/keys/{key_id}")
def delete_operator_key(_caller: PlatformOperator, plane: Plane, key_id: str) -> Deleted:
    """Revoke an operator's key permanently. Gateways never receive operator keys."""
    with plane.database.platform() as tx:
        keys.revoke_operator_key(tx, key_id, plane.now())
    return Deleted(object="platform.key.deleted", id=key_id, pending_nodes=[])


def _key_out(key: Key) -> OperatorKeyOut:
    return OperatorKeyOut(id=key.id, name=key.name, redacted_value=key.redacted, created_at=seconds(key.created_at))
