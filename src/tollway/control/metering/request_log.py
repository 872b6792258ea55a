"""The requests of an organization as a list, the latest first: what a tenant looks at before a receipt.

It is read from the usage events, so it shows what was booked and never anything else; no content of a request is in it. A request appears
when its record has arrived, about a second after its end.
"""

from dataclasses import dataclass

from tollway.domain.request_filters import RequestFilter
from tollway.domain.usage import UsageEvent
from tollway.storage import periods as stored_periods
from tollway.storage import prices as stored_prices
from tollway.storage import usage_events as stored_events
from tollway.storage.database import TenantTx


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One request and the currency of what it cost."""

    event: UsageEvent
    currency: str


@dataclass(frozen=True, slots=True)
class RequestLogPage:
    """Requests, and the id behind which the list goes on; None at its end."""

    requests: list[LoggedRequest]
    next_after: str | None


def list_requests(tx: TenantTx, wanted: RequestFilter, *, after: str | None, limit: int) -> RequestLogPage:
    """Return the latest requests of the organization that meet the conditions, at most `limit`, older than the request `after`.

    A page searches a bounded number of requests, so it may hold fewer than `limit`, or none, and still say where to go on.
    """
    # What is late is booked in a later period than the one that it was served in, so the end of the span bounds nothing.
    starts = stored_periods.list_own_starts(tx, ended_after=wanted.since)
    page = stored_events.list_events(tx, starts, wanted, after=after, limit=limit)
    prices = stored_prices.find_prices(tx, {event.final.admit.price_version for event in page.events})
    found = [LoggedRequest(event, prices[event.final.admit.price_version].currency) for event in page.events]
    return RequestLogPage(found, page.next_after)
