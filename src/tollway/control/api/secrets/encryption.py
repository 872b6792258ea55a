"""Keys that wrap the data keys of organizations, for operators."""

from typing import Annotated, Literal

from fastapi import Depends
from pydantic import Field

from tollway.control.api import routes
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import In, Out
from tollway.domain.keys import Operator
from tollway.domain.roles import Permission

router = routes.router(tags=["encryption"])

Reader = Annotated[Operator, Depends(may(Permission.PLATFORM_KEYS_READ))]
Writer = Annotated[Operator, Depends(may(Permission.PLATFORM_KEYS_WRITE))]


class WrappingKeyOut(Out):
    """A key that wraps data keys."""

    name: Annotated[str, Field(description="What distinguishes the key.", examples=["file:0123456789abcdef"])]
    organizations: Annotated[int, Field(description="Data keys that it has wrapped, 0 or more.", examples=[12])]
    is_current: Annotated[bool, Field(description="Whether it wraps new data keys.", examples=[True])]
    is_known: Annotated[bool, Field(description="Whether control can unwrap what it wrapped.", examples=[True])]


class WrappingKeysOut(Out):
    """The keys that have wrapped data keys, the current one first."""

    object: Literal["list"] = "list"
    data: list[WrappingKeyOut]


class Rewrap(In):
    """Wish for a step of wrapping data keys anew."""

    after: Annotated[
        str | None, Field(max_length=64, description="The `last_id` of the step before; null to begin.", examples=["org_0"])
    ] = None


class RewrappedOut(Out):
    """One step of wrapping all data keys anew."""

    object: Literal["platform.data_keys.rewrapped"] = "platform.data_keys.rewrapped"
    rewrapped: Annotated[int, Field(description="Data keys that this step wrapped anew, 0 to 50.", examples=[50])]
    last_id: Annotated[str | None, Field(description="Where the next step goes on; null at the end.", examples=["org_0"])]


@router.get("/v1/platform/data_keys")
def list_wrapping_keys(_caller: Reader, plane: Plane) -> WrappingKeysOut:
    """The keys that have wrapped data keys of organizations, the current one first."""
    uses = plane.data_keys.list_uses()
    return WrappingKeysOut(
        data=[
            WrappingKeyOut(name=use.name, organizations=use.organizations, is_current=use.is_current, is_known=use.is_known) for use in uses
        ]
    )


@router.post("/v1/platform/data_keys/rewrap")
def rewrap_data_keys(_caller: Writer, plane: Plane, body: Rewrap) -> RewrappedOut:
    """Wrap the data keys of the next 50 organizations under the current key and its newest version. What they sealed stays as it is."""
    done = plane.data_keys.rewrap(plane.database, body.after or "", plane.now())
    return RewrappedOut(rewrapped=done.count, last_id=done.last_id)
