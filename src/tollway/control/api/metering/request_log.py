"""The requests of an organization, the latest first: outcome, times, quantities and cost of each. The receipt of one has the rest."""

from typing import Annotated, Any, Literal, Self

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from tollway.control.api import routes
from tollway.control.api.class_schemas import openai_tokens, other_quantities
from tollway.control.api.metering.usage import CostReader, Instant, Texts, amount_out
from tollway.control.api.routes import Plane
from tollway.control.api.schemas import Identified, ListOut, seconds
from tollway.control.metering import request_log
from tollway.control.metering.request_log import LoggedRequest
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.request_filters import RequestFilter
from tollway.domain.usage import Outcome

router = routes.router(tags=["usage"])

DEFAULT_SECONDS, SPAN_SECONDS_MAX = 86_400, 31 * 86_400
"""Length of the span that is listed by default, and at most."""

RequestId = Annotated[str, StringConstraints(pattern=r"^req_[0-9a-f]{32}$")]


class RequestLogQuery(BaseModel):
    """Conditions on the requests of a list, which must meet all. They were admitted from `start_time` (default: a day before `end_time`) to
    before `end_time` (default: now), in Unix seconds, at most 31 days apart."""

    model_config = ConfigDict(extra="forbid")

    after: RequestId | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    start_time: Instant | None = None
    end_time: Instant | None = None
    project_ids: Texts = []
    api_key_ids: Texts = []
    models: Texts = []
    request_endpoints: Annotated[list[Endpoint], Field(max_length=100)] = []
    outcomes: Annotated[list[Outcome], Field(max_length=100)] = []

    def filter(self, now: int) -> RequestFilter:
        """The same for storage. Raises PARAMETER_INVALID for a span that is empty or too long."""
        until = now + 1_000 if self.end_time is None else self.end_time * 1_000_000
        since = max(until - DEFAULT_SECONDS * 1_000_000, 0) if self.start_time is None else self.start_time * 1_000_000
        if not 0 < until - since <= SPAN_SECONDS_MAX * 1_000_000:
            text = "The span from start_time to end_time must be longer than nothing and at most 31 days."
            raise Fault(PARAMETER_INVALID, param="start_time" if self.start_time is not None else "end_time", message=text)
        return RequestFilter(
            since=since,
            until=until,
            project_ids=tuple(self.project_ids),
            key_ids=tuple(self.api_key_ids),
            models=tuple(self.models),
            endpoints=tuple(self.request_endpoints),
            outcomes=tuple(self.outcomes),
        )


class RequestOut(Identified):
    """One request. Times in Unix seconds, spans in milliseconds. `cost` is what was billed first: corrections are on the receipt."""

    object: Literal["organization.request.summary"] = "organization.request.summary"
    project_id: str
    api_key_id: str
    model: str
    endpoint: str
    stream: bool
    test: bool
    outcome: str
    error: str | None
    admitted_at: int
    duration_ms: float
    first_token_ms: float | None
    attempts: int
    deployment_id: str | None
    service_tier: str
    usage: dict[str, int]
    cost: dict[str, Any]

    @classmethod
    def of(cls, logged: LoggedRequest) -> Self:
        """Return a request as the list shows it."""
        final = logged.event.final
        admit = final.admit
        return cls(
            id=admit.request_id,
            project_id=admit.project_id,
            api_key_id=admit.key_id,
            model=admit.model,
            endpoint=admit.endpoint,
            stream=admit.stream,
            test=admit.test,
            outcome=final.outcome,
            error=final.error,
            admitted_at=seconds(admit.admitted_at),
            duration_ms=(final.ended_at - admit.admitted_at) / 1000,
            first_token_ms=None if final.first_token_at is None else (final.first_token_at - admit.admitted_at) / 1000,
            attempts=final.attempts,
            deployment_id=final.deployment_id,
            service_tier=admit.service_tier,
            usage={**openai_tokens(final.used), **other_quantities(final.used)},
            cost=amount_out(logged.event.amounts.total, logged.currency),
        )


@router.get("/v1/organization/requests")
def list_requests(caller: CostReader, plane: Plane, query: Annotated[RequestLogQuery, Query()]) -> ListOut[RequestOut]:
    """The organization's requests, the latest first. A page searches the 10,000 latest requests of the span that are behind `after`: it may
    hold fewer than `limit`, or none, while `has_more` is true and `last_id` says where to go on. Reading it is recorded."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        page = request_log.list_requests(tx, query.filter(plane.now()), after=query.after, limit=query.limit)
    data = [RequestOut.of(each) for each in page.requests]
    last_id = page.next_after or (data[-1].id if data else None)
    return ListOut(data=data, first_id=data[0].id if data else None, last_id=last_id, has_more=page.next_after is not None)
