"""Webhook endpoints in the shape of OpenAI's `/v1/webhook_endpoints`; those of operators have the same shape. Ours beside: `enabled`, the
deliveries of an endpoint, and their replay."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Literal

from fastapi import Depends, Query
from pydantic import BaseModel, Field, StringConstraints, model_validator
from starlette.concurrency import run_in_threadpool

from tollway.control.api import routes
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Identified, In, ListOut, Name, Out, Second, find_seconds, list_out, seconds
from tollway.control.eventing import delivery, endpoints
from tollway.control.eventing.addresses import AddressRefused, find_peer
from tollway.control.eventing.endpoints import EndpointChanges, Transaction
from tollway.control.host_names import NamesBusy
from tollway.control.identity.access import Tenant
from tollway.control.plane import ControlPlane
from tollway.domain import ids
from tollway.domain.events import CATALOG, TENANT_TYPES, EventType, make_example, make_schema, new_event
from tollway.domain.faults import NAMES_BUSY, PARAMETER_INVALID, RESOURCE_UNKNOWN, WEBHOOK_UNREACHABLE, Fault
from tollway.domain.keys import Operator
from tollway.domain.pages import PageWindow
from tollway.domain.roles import Permission
from tollway.domain.webhooks import SECRET_BYTES, Delivery, DeliveryState, WebhookEndpoint

router = routes.router(tags=["webhooks"])

Reader = Annotated[Tenant, Depends(may(Permission.WEBHOOKS_READ))]
Writer = Annotated[Tenant, Depends(may(Permission.WEBHOOKS_WRITE))]
OperatorReader = Annotated[Operator, Depends(may(Permission.PLATFORM_WEBHOOKS_READ))]
OperatorWriter = Annotated[Operator, Depends(may(Permission.PLATFORM_WEBHOOKS_WRITE))]

_PATH = "/v1/webhook_endpoints"
_PLATFORM_PATH = "/v1/platform/webhook_endpoints"
_ENDPOINT = "hook_0198c5f2a3b47c11a0b1c2d3e4f50617"
_EVENT = "evt_0198c5f2a3b47c11a0b1c2d3e4f50617"

EndpointName = Annotated[Name, Field(description="A name for people, 1 to 256 characters.", examples=["Billing events"])]
Url = Annotated[
    str,
    StringConstraints(min_length=1, max_length=2048),
    Field(description="Where events are sent: an https URL with a public address.", examples=["https://example.com/webhooks"]),
]
EventTypes = Annotated[
    list[Annotated[EventType, Field(strict=False)]],
    Field(min_length=1, max_length=len(EventType), description="Types of events to send.", examples=[["invoice.issued"]]),
]


class WebhookEndpointCreate(In):
    """An endpoint to create."""

    name: EndpointName
    url: Url
    event_types: EventTypes


class WebhookEndpointUpdate(In):
    """Changes of an endpoint; what is left out stays."""

    name: EndpointName | None = None
    url: Url | None = None
    event_types: EventTypes | None = None
    enabled: Annotated[
        Literal[True] | None, Field(description="True: send to an endpoint again that was disabled, from now on.", examples=[True])
    ] = None


class WebhookSecretRotate(In):
    """A rotation of the secret of an endpoint."""

    keep_old_secret_active_for_24_hours: Annotated[
        bool, Field(description="Whether to sign with the secret before too, for 24 hours.", examples=[True])
    ] = False


class WebhookTest(In):
    """A test of an endpoint."""

    event_type: Annotated[EventType, Field(strict=False, description="Type of the example event.", examples=["invoice.issued"])]


class WebhookReplay(In):
    """Events to deliver once more: one event, or the events of a time of the types that the endpoint asks for."""

    event_id: Annotated[str | None, Field(max_length=64, description="An event; null for a time.", examples=[_EVENT])] = None
    since: Annotated[Second | None, Field(description="Start of the time, in Unix seconds.", examples=[1790000000])] = None
    until: Annotated[Second | None, Field(description="End of the time, exclusive, in Unix seconds.", examples=[1790003600])] = None

    @model_validator(mode="after")
    def _is_one(self) -> "WebhookReplay":
        if (self.event_id is None) == (self.since is None) or (self.since is None) != (self.until is None):
            raise ValueError("it must have either event_id, or since and until")
        return self


class WebhookEndpointOut(Identified):
    """An endpoint."""

    object: Annotated[Literal["webhook_endpoint"], Field(description="Always `webhook_endpoint`.")] = "webhook_endpoint"
    id: Annotated[str, Field(description="Id of the endpoint.", examples=[_ENDPOINT])]
    name: EndpointName
    url: Url
    event_types: EventTypes
    created_at: int
    updated_at: Annotated[int, Field(description="When it or its secret was changed last, in Unix seconds (UTC).", examples=[1790000000])]
    signing_secret_hint: Annotated[str, Field(description="The end of its secret.", examples=["whsec_...x7Q="])]
    enabled: Annotated[bool, Field(description="Whether events are sent to it.", examples=[True])]
    disabled_at: Annotated[int | None, Field(description="When it was disabled, in Unix seconds (UTC).", examples=[None])]
    disabled_reason: Annotated[
        Literal["failing", "gone"] | None,
        Field(description="Why: no success for three days, or it answered 410.", examples=[None]),
    ]
    failing_since: Annotated[
        int | None, Field(description="The first failure since the last success, in Unix seconds (UTC); null if none.", examples=[None])
    ]


class WebhookEndpointWithSecretOut(WebhookEndpointOut):
    """An endpoint with its new secret, which is shown this once."""

    signing_secret: Annotated[str, Field(description="The secret that signs, of Standard Webhooks.", examples=["whsec_MfKQ9r8GKYqrTwjU"])]


class WebhookEndpointDeleted(Identified):
    """An endpoint is gone, with its deliveries."""

    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    id: Annotated[str, Field(description="Id of the endpoint.", examples=[_ENDPOINT])]
    deleted: Literal[True] = True


class WebhookTestOut(Out):
    """The result of a test."""

    object: Annotated[Literal["webhook_endpoint.test"], Field(description="Always `webhook_endpoint.test`.")] = "webhook_endpoint.test"
    webhook_endpoint_id: Annotated[str, Field(description="The endpoint.", examples=[_ENDPOINT])]
    event_type: Annotated[EventType, Field(description="Type of the example event.", examples=["invoice.issued"])]
    status_code: Annotated[int, Field(description="Status of the endpoint's answer, 100 to 599.", examples=[200])]
    success: Annotated[Literal[True], Field(description="Always true: the endpoint answered, whatever its status.")] = True


class WebhookReplayOut(Out):
    """The result of a replay."""

    object: Annotated[Literal["webhook_endpoint.replay"], Field(description="Always `webhook_endpoint.replay`.")] = (
        "webhook_endpoint.replay"
    )
    webhook_endpoint_id: Annotated[str, Field(description="The endpoint.", examples=[_ENDPOINT])]
    deliveries: Annotated[int, Field(description="Events that are delivered once more, 0 or more.", examples=[12])]


class WebhookDeliveryOut(Identified):
    """The delivery of an event to an endpoint, in its latest state."""

    object: Annotated[Literal["webhook_delivery"], Field(description="Always `webhook_delivery`.")] = "webhook_delivery"
    id: Annotated[str, Field(description="Id of the event.", examples=[_EVENT])]
    state: Annotated[Literal["pending", "delivered", "failed"], Field(description="Its state.", examples=["delivered"])]
    attempts: Annotated[int, Field(description="Attempts that were made, 0 or more.", examples=[1])]
    attempted_at: Annotated[int | None, Field(description="The latest attempt, in Unix seconds (UTC).", examples=[1790000000])]
    next_attempt_at: Annotated[int | None, Field(description="The next attempt, in Unix seconds (UTC); null if none.", examples=[None])]
    status_code: Annotated[
        int | None, Field(description="Status of the latest answer, 100 to 599; null if there was none.", examples=[200])
    ]
    error: Annotated[str | None, Field(description="Why there was no answer; null if there was one.", examples=[None])]

    @classmethod
    def of(cls, found: Delivery) -> "WebhookDeliveryOut":
        """Return a delivery as the API shows it."""
        return cls(
            id=found.event_id,
            state=found.state.value,
            attempts=found.attempts,
            attempted_at=find_seconds(found.attempted_at),
            next_attempt_at=seconds(found.next_at) if found.state is DeliveryState.PENDING else None,
            status_code=found.status,
            error=found.error,
        )


class EventTypeList(Out):
    """Types of events."""

    object: Literal["list"] = "list"
    data: Annotated[list[EventType], Field(description="Types that an endpoint of the organization can ask for.")]


class NewestFirst(BaseModel):
    """One page of a list, the newest first unless `order` says otherwise."""

    after: Annotated[str, StringConstraints(max_length=128, pattern=r"^[\x21-\x7e]+$")] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"

    def window(self) -> PageWindow:
        """The same, for storage."""
        return PageWindow(self.after, self.limit, self.order == "desc")


class DeliveryQuery(NewestFirst):
    """One page of deliveries, of one state or of all."""

    state: DeliveryState | None = None


Page = Annotated[NewestFirst, Query()]
DeliveryPage = Annotated[DeliveryQuery, Query()]


# ---- Of organizations ---------------------------------------------------------------------------------------------------


@router.get("/v1/webhook_event_types")
def list_event_types(_caller: Reader) -> EventTypeList:
    """The types of events that organizations receive."""
    return EventTypeList(data=[each for each in CATALOG if each in TENANT_TYPES])


@router.get("/v1/webhook_event_types/{event_type}", response_model=dict[str, object])
def retrieve_event_schema(_caller: Reader, event_type: str) -> dict[str, object]:
    """The JSON Schema of a type of events as it is sent."""
    if event_type not in TENANT_TYPES:
        raise Fault(RESOURCE_UNKNOWN)
    return make_schema(EventType(event_type))


@router.get(_PATH)
def list_webhook_endpoints(caller: Reader, plane: Plane, query: Page) -> ListOut[WebhookEndpointOut]:
    """The webhook endpoints of the organization, the newest first."""
    return _list(plane, caller.organization_id, query)


@router.post(_PATH)
async def create_webhook_endpoint(caller: Writer, plane: Plane, body: WebhookEndpointCreate) -> WebhookEndpointWithSecretOut:
    """Create a webhook endpoint. Its signing secret is shown this once."""
    return await _create(plane, caller.organization_id, body)


@router.get(_PATH + "/{webhook_endpoint_id}")
def retrieve_webhook_endpoint(caller: Reader, plane: Plane, webhook_endpoint_id: str) -> WebhookEndpointOut:
    """One webhook endpoint."""
    return _retrieve(plane, caller.organization_id, webhook_endpoint_id)


@router.post(_PATH + "/{webhook_endpoint_id}")
async def update_webhook_endpoint(
    caller: Writer, plane: Plane, webhook_endpoint_id: str, body: WebhookEndpointUpdate
) -> WebhookEndpointOut:
    """Change a webhook endpoint."""
    return await _update(plane, caller.organization_id, webhook_endpoint_id, body)


@router.delete(_PATH + "/{webhook_endpoint_id}")
def delete_webhook_endpoint(caller: Writer, plane: Plane, webhook_endpoint_id: str) -> WebhookEndpointDeleted:
    """Delete a webhook endpoint. What was not delivered to it is not tried any more."""
    return _delete(plane, caller.organization_id, webhook_endpoint_id)


@router.post(_PATH + "/{webhook_endpoint_id}/rotate_secret")
def rotate_webhook_secret(
    caller: Writer, plane: Plane, webhook_endpoint_id: str, body: WebhookSecretRotate
) -> WebhookEndpointWithSecretOut:
    """Give a webhook endpoint another signing secret, which is shown this once."""
    return _rotate(plane, caller.organization_id, webhook_endpoint_id, body)


@router.post(_PATH + "/{webhook_endpoint_id}/test")
async def test_webhook_endpoint(caller: Writer, plane: Plane, webhook_endpoint_id: str, body: WebhookTest) -> WebhookTestOut:
    """Send an example of an event to a webhook endpoint, once, and answer with the status of its answer."""
    return await _test(plane, caller.organization_id, webhook_endpoint_id, body)


@router.get(_PATH + "/{webhook_endpoint_id}/deliveries")
def list_webhook_deliveries(caller: Reader, plane: Plane, webhook_endpoint_id: str, query: DeliveryPage) -> ListOut[WebhookDeliveryOut]:
    """The deliveries to a webhook endpoint, the newest event first. They are kept for 30 days."""
    return _list_deliveries(plane, caller.organization_id, webhook_endpoint_id, query)


@router.post(_PATH + "/{webhook_endpoint_id}/replay")
def replay_webhook_deliveries(caller: Writer, plane: Plane, webhook_endpoint_id: str, body: WebhookReplay) -> WebhookReplayOut:
    """Deliver an event, or those of a time, to a webhook endpoint once more."""
    return _replay(plane, caller.organization_id, webhook_endpoint_id, body)


# ---- Of operators -------------------------------------------------------------------------------------------------------


@router.get(_PLATFORM_PATH)
def list_platform_webhook_endpoints(_caller: OperatorReader, plane: Plane, query: Page) -> ListOut[WebhookEndpointOut]:
    """The webhook endpoints of the operators, which receive events of all organizations, the newest first."""
    return _list(plane, None, query)


@router.post(_PLATFORM_PATH)
async def create_platform_webhook_endpoint(
    _caller: OperatorWriter, plane: Plane, body: WebhookEndpointCreate
) -> WebhookEndpointWithSecretOut:
    """Create a webhook endpoint of the operators. Its signing secret is shown this once."""
    return await _create(plane, None, body)


@router.get(_PLATFORM_PATH + "/{webhook_endpoint_id}")
def retrieve_platform_webhook_endpoint(_caller: OperatorReader, plane: Plane, webhook_endpoint_id: str) -> WebhookEndpointOut:
    """One webhook endpoint of the operators."""
    return _retrieve(plane, None, webhook_endpoint_id)


@router.post(_PLATFORM_PATH + "/{webhook_endpoint_id}")
async def update_platform_webhook_endpoint(
    _caller: OperatorWriter, plane: Plane, webhook_endpoint_id: str, body: WebhookEndpointUpdate
) -> WebhookEndpointOut:
    """Change a webhook endpoint of the operators."""
    return await _update(plane, None, webhook_endpoint_id, body)


@router.delete(_PLATFORM_PATH + "/{webhook_endpoint_id}")
def delete_platform_webhook_endpoint(_caller: OperatorWriter, plane: Plane, webhook_endpoint_id: str) -> WebhookEndpointDeleted:
    """Delete a webhook endpoint of the operators."""
    return _delete(plane, None, webhook_endpoint_id)


@router.post(_PLATFORM_PATH + "/{webhook_endpoint_id}/rotate_secret")
def rotate_platform_webhook_secret(
    _caller: OperatorWriter, plane: Plane, webhook_endpoint_id: str, body: WebhookSecretRotate
) -> WebhookEndpointWithSecretOut:
    """Give a webhook endpoint of the operators another signing secret, which is shown this once."""
    return _rotate(plane, None, webhook_endpoint_id, body)


@router.post(_PLATFORM_PATH + "/{webhook_endpoint_id}/test")
async def test_platform_webhook_endpoint(
    _caller: OperatorWriter, plane: Plane, webhook_endpoint_id: str, body: WebhookTest
) -> WebhookTestOut:
    """Send an example of an event to a webhook endpoint of the operators."""
    return await _test(plane, None, webhook_endpoint_id, body)


@router.get(_PLATFORM_PATH + "/{webhook_endpoint_id}/deliveries")
def list_platform_webhook_deliveries(
    _caller: OperatorReader, plane: Plane, webhook_endpoint_id: str, query: DeliveryPage
) -> ListOut[WebhookDeliveryOut]:
    """The deliveries to a webhook endpoint of the operators, the newest event first."""
    return _list_deliveries(plane, None, webhook_endpoint_id, query)


@router.post(_PLATFORM_PATH + "/{webhook_endpoint_id}/replay")
def replay_platform_webhook_deliveries(
    _caller: OperatorWriter, plane: Plane, webhook_endpoint_id: str, body: WebhookReplay
) -> WebhookReplayOut:
    """Deliver an event, or those of a time, to a webhook endpoint of the operators once more."""
    return _replay(plane, None, webhook_endpoint_id, body)


# ---- Both ---------------------------------------------------------------------------------------------------------------


@contextmanager
def _open(plane: ControlPlane, organization_id: str | None, *, write: bool) -> Iterator[Transaction]:
    database = plane.database
    with database.platform(write=write) if organization_id is None else database.tenant(organization_id, write=write) as tx:
        yield tx


def _list(plane: ControlPlane, organization_id: str | None, query: NewestFirst) -> ListOut[WebhookEndpointOut]:
    with _open(plane, organization_id, write=False) as tx:
        return list_out(endpoints.list_endpoints(tx, organization_id, query.window()), _endpoint_out)


async def _create(plane: ControlPlane, organization_id: str | None, body: WebhookEndpointCreate) -> WebhookEndpointWithSecretOut:
    types = endpoints.check_event_types(body.event_types, is_platform=organization_id is None)
    await _check_url(plane, organization_id, body.url)
    return await run_in_threadpool(_store_new, plane, organization_id, body, types)


def _store_new(
    plane: ControlPlane, organization_id: str | None, body: WebhookEndpointCreate, types: tuple[EventType, ...]
) -> WebhookEndpointWithSecretOut:
    now, id = plane.now(), plane.new_id(ids.WEBHOOK_ENDPOINT)
    secret = endpoints.make_secret(id, plane.random_bytes(SECRET_BYTES), plane.open_vault(organization_id))
    made = WebhookEndpoint(
        id=id,
        organization_id=organization_id,
        name=body.name,
        url=body.url,
        event_types=types,
        sealed=secret.sealed,
        secret_hint=secret.hint,
        created_at=now,
        updated_at=now,
    )
    with _open(plane, organization_id, write=True) as tx:
        endpoints.create_endpoint(tx, made)
    return _with_secret(made, secret.shown)


async def _check_url(plane: ControlPlane, organization_id: str | None, url: str) -> None:
    """Raise PARAMETER_INVALID unless webhooks may be sent to a URL as it resolves now, and NAMES_BUSY if that cannot be said now."""
    try:
        await find_peer(url, plane.webhook_networks, organization_id)
    except NamesBusy:
        raise Fault(NAMES_BUSY) from None
    except AddressRefused as refused:
        raise Fault(PARAMETER_INVALID, param="url", message=f"Invalid value for url: {refused}.") from None


def _retrieve(plane: ControlPlane, organization_id: str | None, endpoint_id: str) -> WebhookEndpointOut:
    with _open(plane, organization_id, write=False) as tx:
        return _endpoint_out(endpoints.get_endpoint(tx, organization_id, endpoint_id))


async def _update(plane: ControlPlane, organization_id: str | None, endpoint_id: str, body: WebhookEndpointUpdate) -> WebhookEndpointOut:
    types = None
    if body.event_types is not None:
        types = endpoints.check_event_types(body.event_types, is_platform=organization_id is None)
    if body.url is not None:
        await _check_url(plane, organization_id, body.url)
    changes = EndpointChanges(body.name, body.url, types, body.enabled)
    return await run_in_threadpool(_store_changes, plane, organization_id, endpoint_id, changes)


def _store_changes(plane: ControlPlane, organization_id: str | None, endpoint_id: str, changes: EndpointChanges) -> WebhookEndpointOut:
    with _open(plane, organization_id, write=True) as tx:
        return _endpoint_out(endpoints.update_endpoint(tx, organization_id, endpoint_id, changes, plane.now()))


def _delete(plane: ControlPlane, organization_id: str | None, endpoint_id: str) -> WebhookEndpointDeleted:
    with _open(plane, organization_id, write=True) as tx:
        endpoints.delete_endpoint(tx, organization_id, endpoint_id)
    return WebhookEndpointDeleted(id=endpoint_id)


def _rotate(plane: ControlPlane, organization_id: str | None, endpoint_id: str, body: WebhookSecretRotate) -> WebhookEndpointWithSecretOut:
    secret = endpoints.make_secret(endpoint_id, plane.random_bytes(SECRET_BYTES), plane.open_vault(organization_id))
    keep_old = body.keep_old_secret_active_for_24_hours
    with _open(plane, organization_id, write=True) as tx:
        rotated = endpoints.rotate_secret(tx, organization_id, endpoint_id, secret, keep_old=keep_old, now=plane.now())
    return _with_secret(rotated, secret.shown)


async def _test(plane: ControlPlane, organization_id: str | None, endpoint_id: str, body: WebhookTest) -> WebhookTestOut:
    endpoints.check_event_types([body.event_type], is_platform=organization_id is None)
    endpoint, secrets = await run_in_threadpool(_open_endpoint, plane, organization_id, endpoint_id)
    now = plane.now()
    event = new_event(body.event_type, organization_id, at=now, data=make_example(body.event_type), key=f"test {plane.random_bits()}")
    try:
        outcome = await delivery.send_test(endpoint, plane.webhook_networks, secrets, event, now)
    except NamesBusy:
        raise Fault(NAMES_BUSY) from None
    if outcome.status is None:
        raise Fault(WEBHOOK_UNREACHABLE, message=f"The endpoint did not answer: {outcome.error}.")
    return WebhookTestOut(webhook_endpoint_id=endpoint_id, event_type=body.event_type, status_code=outcome.status)


def _open_endpoint(plane: ControlPlane, organization_id: str | None, endpoint_id: str) -> tuple[WebhookEndpoint, list[str]]:
    with _open(plane, organization_id, write=False) as tx:
        endpoint = endpoints.get_endpoint(tx, organization_id, endpoint_id)
    return endpoint, endpoints.open_secrets(endpoint, plane.open_vault(organization_id), plane.now())


def _list_deliveries(
    plane: ControlPlane, organization_id: str | None, endpoint_id: str, query: DeliveryQuery
) -> ListOut[WebhookDeliveryOut]:
    with _open(plane, organization_id, write=False) as tx:
        page = endpoints.list_deliveries(tx, organization_id, endpoint_id, query.window(), query.state)
    return list_out(page, WebhookDeliveryOut.of)


def _replay(plane: ControlPlane, organization_id: str | None, endpoint_id: str, body: WebhookReplay) -> WebhookReplayOut:
    now = plane.now()
    if body.event_id is not None:
        with _open(plane, organization_id, write=True) as tx:
            count = endpoints.replay_event(tx, organization_id, endpoint_id, body.event_id, now)
    else:
        since, until = (body.since or 0) * 1_000_000, (body.until or 0) * 1_000_000
        open = partial(_open, plane, organization_id, write=True)
        count = endpoints.replay_range(open, organization_id, endpoint_id, since, until, now)
    return WebhookReplayOut(webhook_endpoint_id=endpoint_id, deliveries=count)


def _endpoint_out(endpoint: WebhookEndpoint) -> WebhookEndpointOut:
    return WebhookEndpointOut(
        id=endpoint.id,
        name=endpoint.name,
        url=endpoint.url,
        event_types=list(endpoint.event_types),
        created_at=seconds(endpoint.created_at),
        updated_at=seconds(endpoint.updated_at),
        signing_secret_hint=endpoint.secret_hint,
        enabled=endpoint.disabled_at is None,
        disabled_at=find_seconds(endpoint.disabled_at),
        disabled_reason=None if endpoint.disabled_reason is None else endpoint.disabled_reason.value,
        failing_since=find_seconds(endpoint.failing_since),
    )


def _with_secret(endpoint: WebhookEndpoint, secret: str) -> WebhookEndpointWithSecretOut:
    return WebhookEndpointWithSecretOut(**_endpoint_out(endpoint).model_dump(), signing_secret=secret)
