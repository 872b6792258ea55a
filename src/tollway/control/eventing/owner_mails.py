"""Mails to the owners of organizations whose webhook endpoints were disabled."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from tollway.control.identity.mail import Mail, MailFailure, Message, MessageRefused
from tollway.domain.roles import OWNER
from tollway.domain.webhooks import DisabledReason, WebhookEndpoint
from tollway.storage import leaked_keys
from tollway.storage import webhooks as storage
from tollway.storage.database import Database

SECONDS = 60.0
"""Interval of the job."""

RECIPIENTS_MAX = 20
"""Owners who are written to about one endpoint."""

TOLD_MAX = 20
"""Endpoints of one turn."""


def tell_owners(
    database: Database, mail: Mail, log: Callable[[Mapping[str, object]], None], now: Callable[[], int], is_over: Callable[[], bool]
) -> None:
    """Write to the owners of endpoints that were disabled. Ends where the mail server takes nothing; the next turn goes on. Blocks for one
    message at a time, and asks `is_over` before each."""
    with database.platform(write=False) as tx:
        untold = storage.list_untold(tx, TOLD_MAX)
    for endpoint in untold:
        assert endpoint.organization_id is not None
        with database.tenant(endpoint.organization_id, write=False) as tenant:
            recipients = leaked_keys.list_recipients(tenant, OWNER.id, RECIPIENTS_MAX)
        for recipient in recipients:
            if is_over():
                return
            try:
                mail.send(Message(recipient.address, "A webhook endpoint of Tollway was disabled", _describe(endpoint)))
            except MailFailure as failure:
                log({"event": "mail_failed", "endpoint_id": endpoint.id, "detail": str(failure)})
                if not isinstance(failure, MessageRefused):
                    return
        with database.platform() as tx:
            storage.put_told(tx, endpoint.id, now())


def _describe(endpoint: WebhookEndpoint) -> str:
    why = "it answered 410 Gone" if endpoint.disabled_reason is DisabledReason.GONE else "no delivery has succeeded for three days"
    since = endpoint.failing_since  # None: a version before disabled it, which did not keep the instant in every case
    first = "" if since is None else f" The first failure was at {datetime.fromtimestamp(since // 1_000_000, UTC):%Y-%m-%dT%H:%M:%SZ}."
    return (
        f"The webhook endpoint {endpoint.id} was disabled, because {why}. It gets no more events.{first}\n\n"
        "Repair the receiver, enable the endpoint, and replay the events from a little before the first failure: see "
        "`tollway webhooks replay`. Events are kept for 30 days.\n"
    )
