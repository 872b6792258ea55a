"""Keys of operators, one for each person, so that it is on record who did what. A key approves what a key of another origin asked for."""

from typing import Annotated, Literal

from fastapi import Depends, Query

from tollway.control.api import routes
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Deleted, Identified, In, ListOut, Name, PageQuery, list_out, seconds
from tollway.control.identity import keys
from tollway.domain import ids
from tollway.domain.keys import Key, Operator
from tollway.domain.roles import AUDITOR, OPERATOR, Permission

router = routes.router(tags=["operators"])

Reader = Annotated[Operator, Depends(may(Permission.PLATFORM_KEYS_READ))]
Writer = Annotated[Operator, Depends(may(Permission.PLATFORM_KEYS_WRITE))]


class OperatorKeyCreate(In):
    """`name`: whose it is. `role`: `auditor` only reads."""

    name: Name
    role: Literal["operator", "auditor"] = "operator"


class OperatorKeyOut(Identified):
    """A key of an operator. `created_by`: the key with which it was made, null for keys of the settings. `origin`: the key of the settings
    from which it descends; a key approves only what a key of another origin asked for."""

    object: Literal["platform.key"] = "platform.key"
    name: str
    redacted_value: str
    created_at: int
    created_by: str | None
    origin: str
    role: str


class OperatorKeyCreated(OperatorKeyOut):
    """With the secret, shown this once."""

    value: str


@router.get("/v1/platform/keys")
def list_operator_keys(_caller: Reader, plane: Plane, query: Annotated[PageQuery, Query()]) -> ListOut[OperatorKeyOut]:
    """The keys of operators."""
    with plane.database.platform(write=False) as tx:
        page = keys.list_operator_keys(tx, query.window())
    return list_out(page, _key_out)


@router.post("/v1/platform/keys")
def create_operator_key(caller: Writer, plane: Plane, body: OperatorKeyCreate) -> OperatorKeyCreated:
    """Create a key of an operator. Its secret is in this answer and nowhere else."""
    id, ingredients = plane.new_id(ids.KEY), plane.new_ingredients()
    role = OPERATOR if body.role == OPERATOR.name else AUDITOR
    with plane.database.platform() as tx:
        shown = keys.create_operator_key(tx, name=body.name, role=role, maker=caller, id=id, ingredients=ingredients, now=plane.now())
    return OperatorKeyCreated(**_key_out(shown.key).model_dump(), value=shown.secret)


@router.delete("/v1/platform/keys/{key_id}")
def delete_operator_key(_caller: Writer, plane: Plane, key_id: str) -> Deleted:
    """Revoke an operator's key permanently. Gateways never receive operator keys."""
    with plane.database.platform() as tx:
        keys.revoke_operator_key(tx, key_id, plane.now())
    return Deleted(object="platform.key.deleted", id=key_id, pending_nodes=[])


def _key_out(key: Key) -> OperatorKeyOut:
    assert key.origin is not None and key.grant is not None
    return OperatorKeyOut(
        id=key.id,
        name=key.name,
        redacted_value=key.redacted,
        created_at=seconds(key.created_at),
        created_by=key.created_by,
        origin=key.origin,
        role=key.grant.role.name,
    )
