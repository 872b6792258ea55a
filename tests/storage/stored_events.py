"""The usage events of a database, as tests look at them."""

import sqlalchemy as sa

from tollway.domain.usage import UsageEvent
from tollway.storage.database import PlatformTx
from tollway.storage.schema_money import usage_events
from tollway.storage.usage_events import read_event


def read_events(tx: PlatformTx) -> list[UsageEvent]:
    """Return every event, ordered by event id."""
    return [read_event(row) for row in tx.connection.execute(sa.select(usage_events).order_by(usage_events.c.event_id))]
