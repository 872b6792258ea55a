"""Events: those of an organization, and for operators those of all."""

from typing import Annotated, Any, Literal

from fastapi import Depends, Query
from pydantic import Field

from tollway.control.api import routes
from tollway.control.api.eventing.webhooks import NewestFirst, Reader
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Identified, ListOut, list_out
from tollway.control.eventing import endpoints
from tollway.domain.events import Event, EventType, shape
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.keys import Operator
from tollway.domain.roles import Permission

router = routes.router(tags=["events"])

OperatorReader = Annotated[Operator, Depends(may(Permission.PLATFORM_WEBHOOKS_READ))]
Types = Annotated[list[EventType], Field(max_length=len(EventType), default_factory=list)]


class EventQuery(NewestFirst):
    """One page of events. `after_sequence`: events of the organization with greater numbers, in order, for whoever follows them: without
    `after`."""

    types: Types
    after_sequence: Annotated[int, Field(ge=0, le=2**62)] | None = None


class PlatformEventQuery(NewestFirst):
    """One page of events of all organizations and of the platform, or of one organization."""

    types: Types
    organization_id: Annotated[str, Field(max_length=64)] | None = None


class EventOut(Identified):
    """An event, as it is sent to webhooks."""

    object: Annotated[Literal["event"], Field(description="Always `event`.")] = "event"
    id: Annotated[str, Field(description="Id of the event.", examples=["evt_0198c5f2a3b47c11a0b1c2d3e4f50617"])]
    type: Annotated[EventType, Field(description="What happened.", examples=["invoice.issued"])]
    created_at: Annotated[int, Field(description="When it happened, in Unix seconds (UTC).", examples=[1790000000])]
    organization_id: Annotated[
        str | None,
        Field(description="Whose it is; null for the platform's own.", examples=["org_0198c5f2a3b47c11a0b1c2d3e4f50617"]),
    ]
    sequence: Annotated[
        int | None,
        Field(description="Its number among the events of the organization, from 1 without a gap; null for some seconds.", examples=[17]),
    ]
    data: Annotated[
        dict[str, Any],
        Field(description="What it concerns, as its type has it.", examples=[{"id": "inv_0198c5f2a3b47c11a0b1c2d3e4f50617"}]),
    ]

    @classmethod
    def of(cls, event: Event) -> "EventOut":
        """Return an event as the API shows it."""
        return cls(**shape(event))


@router.get("/v1/organization/events")
def list_events(caller: Reader, plane: Plane, query: Annotated[EventQuery, Query()]) -> ListOut[EventOut]:
    """The events of the organization, the newest first; with `after_sequence` by their numbers. They are kept for 30 days."""
    if query.after_sequence is not None and query.after is not None:
        raise Fault(PARAMETER_INVALID, param="after_sequence", message="after_sequence cannot be combined with after.")
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        if query.after_sequence is None:
            page = endpoints.list_own_events(tx, query.window(), query.types)
        else:
            page = endpoints.follow_events(tx, query.after_sequence, query.limit, query.types)
    return list_out(page, EventOut.of)


@router.get("/v1/platform/events")
def list_platform_events(_caller: OperatorReader, plane: Plane, query: Annotated[PlatformEventQuery, Query()]) -> ListOut[EventOut]:
    """The events of all organizations and of the platform, the newest first."""
    with plane.database.platform(write=False) as tx:
        page = endpoints.list_events(tx, query.window(), query.types, query.organization_id)
    return list_out(page, EventOut.of)
