"""Peppers, for operators: which are live, and which keys still need each."""

from typing import Annotated, Literal

from fastapi import Depends

from tollway.control.api import routes
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Out
from tollway.control.secrets import peppers
from tollway.control.secrets.peppers import PepperState
from tollway.domain.keys import Operator
from tollway.domain.roles import Permission

router = routes.router(tags=["peppers"])

Reader = Annotated[Operator, Depends(may(Permission.PLATFORM_KEYS_READ))]


class PepperOut(Out):
    """The state of one pepper."""

    version: int
    is_known: bool
    is_current: bool
    keys: int
    join_tokens: int
    invites: int
    key_ids: list[str]


class PeppersOut(Out):
    """All peppers that are known or needed."""

    object: Literal["list"] = "list"
    data: list[PepperOut]


@router.get("/v1/platform/peppers")
def list_peppers(_caller: Reader, plane: Plane) -> PeppersOut:
    """The peppers that this process knows or that a live key needs, the latest first, with the keys that need each."""
    with plane.database.platform(write=False) as tx:
        states = peppers.list_uses(tx, plane.peppers, plane.pepper_version, plane.now())
    return PeppersOut(data=[_pepper_out(state) for state in states])


def _pepper_out(state: PepperState) -> PepperOut:
    return PepperOut(
        version=state.version,
        is_known=state.is_known,
        is_current=state.is_current,
        keys=state.keys,
        join_tokens=state.tokens,
        invites=state.invites,
        key_ids=list(state.key_ids),
    )
