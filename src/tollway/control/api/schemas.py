"""Request and response schemas, as pydantic models: OpenAI's shapes where it has them, ours beside.

Requests refuse unknown fields and convert nothing: "5" is not 5. Answers show instants in whole seconds, as OpenAI does, and money
as exact strings. The functions `..._out` turn what we hold into what we show.
"""

import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, create_model

from tollway.control.identity.keys import Grantor, KeyChanges, ShownKey
from tollway.control.identity.rotation import WantedRotation
from tollway.domain import money
from tollway.domain.catalog import MODEL_NAME, REGION, Endpoint, UnknownParameters
from tollway.domain.currencies import get_currency
from tollway.domain.keys import USES_MAX, Key, SecretUse
from tollway.domain.leaked_keys import LeakPolicy
from tollway.domain.limits import (
    DIMENSIONS,
    IMAGES_PER_MINUTE_MAX,
    MINUTE_NS,
    MINUTES_PER_DAY,
    REQUESTS_PER_MINUTE_MAX,
    TOKENS_PER_MINUTE_MAX,
    Dimension,
    Limits,
    Quantity,
)
from tollway.domain.networks import parse_network
from tollway.domain.pages import Page, PageWindow
from tollway.domain.periods import find_zone
from tollway.domain.rotation_schedules import GRACE_SECONDS_DEFAULT, GRACE_SECONDS_MAX, RotationSchedule
from tollway.domain.tenants import QUEUE_WEIGHT_MAX, RESPONSE_RETENTION_SECONDS_MAX, Organization, ServiceAccount

SECONDS_MAX = 253_402_300_799
"""The last second of the year 9999: later instants are typing errors (milliseconds, usually)."""

ADDRESSES_MAX = 100
"""Ranges of one key: those of the offices and the clusters of a company. Each costs a comparison for the first request of a connection."""

TAGS_MAX = 16

LIFETIME_SECONDS_MAX = 100 * 366 * 86_400


def seconds(at: int) -> int:
    """An instant (microseconds) in the whole seconds that the API shows."""
    return at // 1_000_000


def seconds_after(at: int) -> int:
    """Return the first whole second at or after an instant (microseconds): what holds from the instant on holds from there on too."""
    return -(-at // 1_000_000)


def find_seconds(at: int | None) -> int | None:
    """As `seconds`; None stays None."""
    return None if at is None else seconds(at)


class In(BaseModel):
    """A request body."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Out(BaseModel):
    """An answer."""

    model_config = ConfigDict(frozen=True)


# ---- Fields -----------------------------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """Return a text that people can read. Raises ValueError for one with control characters, or with nothing to see."""
    if any(unicodedata.category(character) in {"Cc", "Cs", "Co", "Cn"} for character in text) or not text.strip():
        raise ValueError("it must be readable text")
    return text


def _model_name(text: str) -> str:
    if MODEL_NAME.fullmatch(text) is None:
        raise ValueError("it must be a model name: up to 128 of A-Z a-z 0-9 . _ : / @ -")
    return text


def _currency(text: str) -> str:
    return get_currency(text).code


def _price(text: str) -> str:
    money.parse_price_per_million(text)
    return text


def _amount(text: str) -> str:
    money.parse_amount(text)
    return text


def _sum(text: str) -> str:
    money.parse_sum(text)
    return text


def _address_range(text: str) -> str:
    return str(parse_network(text))


def _time_zone(text: str) -> str:
    if find_zone(text) is None:
        raise ValueError("it must be a time zone of the IANA database, such as Europe/Berlin")
    return text


Name = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(printable)]
ModelName = Annotated[str, StringConstraints(max_length=128), AfterValidator(_model_name)]
ModelNames = Annotated[list[ModelName], Field(max_length=1000)]
PricePerMillion = Annotated[str, StringConstraints(max_length=32), AfterValidator(_price)]
TimeZone = Annotated[str, StringConstraints(max_length=64), AfterValidator(_time_zone)]
Reason = Annotated[str, StringConstraints(min_length=1, max_length=1024), AfterValidator(printable)]
Sum = Annotated[str, StringConstraints(max_length=32), AfterValidator(_sum)]
Amount = Annotated[str, StringConstraints(max_length=32), AfterValidator(_amount)]
Currency = Annotated[str, StringConstraints(max_length=3), AfterValidator(_currency)]
Second = Annotated[int, Field(ge=0, le=SECONDS_MAX)]
LifetimeSeconds = Annotated[int, Field(ge=1, le=LIFETIME_SECONDS_MAX)]
AddressRanges = Annotated[
    list[Annotated[str, StringConstraints(max_length=64), AfterValidator(_address_range)]], Field(min_length=1, max_length=ADDRESSES_MAX)
]
TagName = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._/-]+$")]
TagText = Annotated[str, StringConstraints(max_length=256), AfterValidator(printable)]
# Enumerations come as text, which strict mode would refuse where an enumeration is declared.
Endpoints = Annotated[list[Annotated[Endpoint, Field(strict=False)]], Field(min_length=1, max_length=len(Endpoint))]
UnknownParametersPolicy = Annotated[UnknownParameters, Field(strict=False)]

# ---- Lists ------------------------------------------------------------------------------------------------------------


class Identified(Out):
    """An answer that names one thing."""

    id: str


S = TypeVar("S")
T = TypeVar("T", bound=Identified)


class PageQuery(BaseModel):
    """One page of a list: `after` an id, at most `limit`, by time of creation."""

    after: Annotated[str, StringConstraints(max_length=128, pattern=r"^[\x21-\x7e]+$")] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "asc"

    def window(self) -> PageWindow:
        """The same, for storage."""
        return PageWindow(self.after, self.limit, self.order == "desc")


class ListOut(Out, Generic[T]):
    """A part of a list. `last_id` is the `after` of the next one."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool


def list_out(page: Page[S], out: Callable[[S], T]) -> ListOut[T]:
    """A page of what we hold as a list of what we show. Every shown item has an id."""
    data = [out(item) for item in page.items]
    return ListOut(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=page.has_more,
    )


# ---- Tenants ----------------------------------------------------------------------------------------------------------


QueueWeight = Annotated[
    int,
    Field(
        ge=1,
        le=QUEUE_WEIGHT_MAX,
        description="Its share in the queue of a model whose deployments are full, beside those of other organizations, 1 to 1000.",
        examples=[1],
    ),
]


class OrganizationCreate(In):
    """`time_zone`: whose months are its billing periods."""

    name: Name
    currency: Currency
    time_zone: TimeZone = "UTC"
    queue_weight: QueueWeight = 1


def check_schedule(body: "RotationScheduleBody") -> "RotationScheduleBody":
    problem = body.schedule().find_problem()
    if problem is not None:
        raise ValueError(problem)
    return body


class RotationScheduleBody(In):
    """A rotation without being asked: every `interval_seconds`, with the secret before valid for `grace_seconds`."""

    interval_seconds: int
    grace_seconds: int = GRACE_SECONDS_DEFAULT

    def schedule(self) -> RotationSchedule:
        return RotationSchedule(self.interval_seconds, self.grace_seconds)


RotationScheduleText = Annotated[RotationScheduleBody, AfterValidator(check_schedule)]


def find_schedule(body: RotationScheduleBody | None) -> RotationSchedule | None:
    return None if body is None else body.schedule()


class RotationScheduleOut(Out):
    interval_seconds: int
    grace_seconds: int


def schedule_out(schedule: RotationSchedule | None) -> RotationScheduleOut | None:
    return None if schedule is None else RotationScheduleOut(**msgspec.structs.asdict(schedule))


class OrganizationUpdate(In):
    """Fields to change. `time_zone`: from the next new billing period on. `plan_id`: null for no plan."""

    time_zone: TimeZone | None = None
    key_lifetime_seconds_max: LifetimeSeconds | None = None
    rotation_schedule: RotationScheduleText | None = None
    plan_id: Annotated[
        str | None, StringConstraints(max_length=64), Field(description="The plan whose limits it has; null for none.", examples=["plan_0"])
    ] = None
    queue_weight: QueueWeight | None = None


RetentionSeconds = Annotated[int, Field(ge=1, le=RESPONSE_RETENTION_SECONDS_MAX)]


LeakPolicyName = Annotated[
    LeakPolicy,
    Field(
        strict=False,
        description="What is done with secrets that are reported as leaked: they end at once and the owners are told, the owners are told,"
        " or it is recorded.",
        examples=["revoke"],
    ),
]


class OrganizationPolicy(In):
    """Fields to change. `key_lifetime_seconds_max`: null for no bound. `rotation_schedule`: null for none. `response_retention_seconds`:
    null stores no responses."""

    key_lifetime_seconds_max: LifetimeSeconds | None = None
    rotation_schedule: RotationScheduleText | None = None
    response_retention_seconds: RetentionSeconds | None = None
    leaked_key_policy: LeakPolicyName | None = None


class OrganizationOut(Identified):
    object: Literal["platform.organization"] = "platform.organization"
    name: str
    currency: str
    time_zone: str
    status: str
    created_at: int
    key_lifetime_seconds_max: int | None
    rotation_schedule: RotationScheduleOut | None
    plan_id: Annotated[str | None, Field(description="The plan whose limits it has; null for none.", examples=["plan_0"])]
    queue_weight: QueueWeight
    response_retention_seconds: int | None
    leaked_key_policy: LeakPolicyName


class OrganizationArchived(OrganizationOut):
    """`pending_nodes`: gateways that were alive and have not confirmed within a second."""

    pending_nodes: list[str]


def organization_out(organization: Organization) -> OrganizationOut:
    return OrganizationOut(
        id=organization.id,
        name=organization.name,
        currency=organization.currency,
        time_zone=organization.time_zone,
        status=organization.status,
        created_at=seconds(organization.created_at),
        key_lifetime_seconds_max=organization.key_lifetime_seconds_max,
        rotation_schedule=schedule_out(organization.rotation_schedule),
        plan_id=organization.plan_id,
        queue_weight=organization.queue_weight,
        response_retention_seconds=organization.response_retention_seconds,
        leaked_key_policy=organization.leaked_key_policy,
    )


Region = Annotated[str, StringConstraints(pattern=rf"^{REGION.pattern}$")]


class ServiceAccountCreate(In):
    name: Name
    create_service_account_only: bool | None = None
    expires_in_seconds: LifetimeSeconds | None = None


class ServiceAccountUpdate(In):
    """Fields of a service account to change; a field that is left out, or null, stays."""

    name: Name | None = None
    role: Literal["member", "owner"] | None = None


class ServiceAccountKeyCreate(In):
    """One more key of a service account. `scopes`: an empty list or null; a key is bounded by its `endpoints`."""

    name: Name = "Secret Key"
    expires_in_seconds: LifetimeSeconds | None = None
    scopes: Annotated[list[str], Field(max_length=0)] | None = None


class ServiceAccountOut(Identified):
    object: Literal["organization.project.service_account"] = "organization.project.service_account"
    name: str
    role: str
    created_at: int


class ServiceAccountKeyOut(Out):
    object: Literal["organization.project.service_account.api_key"] = "organization.project.service_account.api_key"
    id: str
    name: str
    value: str
    created_at: int
    expires_at: int | None


class ServiceAccountCreated(ServiceAccountOut):
    """With its first key, shown this once."""

    api_key: ServiceAccountKeyOut | None


def service_account_out(account: ServiceAccount) -> ServiceAccountOut:
    return ServiceAccountOut(id=account.id, name=account.name, role=account.role, created_at=seconds(account.created_at))


def service_account_key_out(shown: ShownKey) -> ServiceAccountKeyOut:
    return ServiceAccountKeyOut(
        id=shown.key.id,
        name=shown.key.name,
        value=shown.secret,
        created_at=seconds(shown.key.created_at),
        expires_at=find_seconds(shown.key.expires_at),
    )


# ---- Limits -----------------------------------------------------------------------------------------------------------


_LIMIT_TEXT = {
    Quantity.REQUESTS: "Requests",
    Quantity.TOKENS: "Tokens, input and output together,",
    Quantity.INPUT_TOKENS: "Tokens of prompts, cached ones included,",
    Quantity.OUTPUT_TOKENS: "Tokens of answers, reasoning included,",
    Quantity.IMAGES: "Images that are made",
    Quantity.AUDIO_SECONDS: "Seconds of sound that is transcribed or translated",
}


def limit_description(dimension: Dimension) -> str:
    """Return what a limit counts, in a sentence."""
    if not dimension.window_ns:
        return "Requests that run at the same time, from admission to the last byte of the answer."
    window = "minute" if dimension.window_ns == MINUTE_NS else "day"
    return f"{_LIMIT_TEXT[dimension.quantity]} per {window}, in bursts of up to one {window}'s worth."


def _limit_fields(*, is_answer: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for dimension in DIMENSIONS:
        text = f"{limit_description(dimension)} 1 or more. Null: not limited at this level."
        if is_answer:
            fields[dimension.name] = (int | None, Field(description=text, examples=[600]))
        else:
            size = Annotated[int, Field(ge=1, le=dimension.size_max)]
            fields[dimension.name] = (size | None, Field(default=None, description=text, examples=[600]))
    return fields


if TYPE_CHECKING:

    class _LimitFieldsWrite(In):
        """The limits of a level, as they are written."""

    class _LimitFieldsOut(Out):
        """The limits of a level."""

else:
    _LimitFieldsWrite = create_model("_LimitFieldsWrite", __base__=In, **_limit_fields(is_answer=False))
    _LimitFieldsOut = create_model("_LimitFieldsOut", __base__=Out, **_limit_fields(is_answer=True))


class LimitsWrite(_LimitFieldsWrite):
    """All limits of a level at once; what is left out, or null, is not limited."""

    def limits(self) -> Limits:
        """Return the limits as the domain has them."""
        return Limits(**self.model_dump())


class LimitsOut(_LimitFieldsOut):
    """All limits of a level, on all models together or on one."""

    object: Literal["limits"] = "limits"


def limits_out(limits: Limits) -> LimitsOut:
    """Return the limits as the API shows them."""
    return LimitsOut.model_validate(limits.to_dict())


RATE_LIMIT_FIELDS = {
    "max_requests_per_1_minute": "requests_per_minute",
    "max_tokens_per_1_minute": "tokens_per_minute",
    "max_requests_per_1_day": "requests_per_day",
    "max_images_per_1_minute": "images_per_minute",
}
"""OpenAI's names of the limits of a project on one model, and ours."""


class RateLimitWrite(In):
    """Limits of a project on one model to change: what is left out stays, null takes a limit away."""

    max_requests_per_1_minute: Annotated[int, Field(ge=1, le=REQUESTS_PER_MINUTE_MAX)] | None = None
    max_tokens_per_1_minute: Annotated[int, Field(ge=1, le=TOKENS_PER_MINUTE_MAX)] | None = None
    max_requests_per_1_day: Annotated[int, Field(ge=1, le=REQUESTS_PER_MINUTE_MAX * MINUTES_PER_DAY)] | None = None
    max_images_per_1_minute: Annotated[int, Field(ge=1, le=IMAGES_PER_MINUTE_MAX)] | None = None

    def changes(self) -> dict[str, int | None]:
        """Return the fields that were sent, by our names."""
        return {ours: getattr(self, field) for field, ours in RATE_LIMIT_FIELDS.items() if field in self.model_fields_set}


class RateLimitOut(Identified):
    """The limits of a project on one model, in the shape of OpenAI's admin API. Null: not limited."""

    object: Literal["project.rate_limit"] = "project.rate_limit"
    model: str
    max_requests_per_1_minute: int | None
    max_tokens_per_1_minute: int | None
    max_requests_per_1_day: int | None
    max_images_per_1_minute: int | None


RATE_LIMIT_PREFIX = "rl-"


def rate_limit_out(model: str, limits: Limits) -> RateLimitOut:
    """Return the limits on a model in OpenAI's shape. Their id follows from the model's name."""
    shown = {field: getattr(limits, ours) for field, ours in RATE_LIMIT_FIELDS.items()}
    return RateLimitOut(id=RATE_LIMIT_PREFIX + model, model=model, **shown)


# ---- Keys -------------------------------------------------------------------------------------------------------------


class KeyCreate(In):
    """A project's key. `models`: null for all that the project may use. `expires_at` in seconds since 1970, exclusive; null for the latest
    that the organization and the key that makes it allow."""

    name: Name
    type: Literal["live", "test"] = "live"
    models: ModelNames | None = None
    expires_at: Second | None = None
    limits: LimitsWrite = LimitsWrite()
    endpoints: Endpoints | None = None
    addresses: AddressRanges | None = None
    output_tokens_max: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    tags: Annotated[dict[TagName, TagText], Field(max_length=TAGS_MAX)] = {}
    rotation_schedule: RotationScheduleText | None = None


class KeyUpdate(In):
    """Fields of a key to change; a field that is left out stays, null takes a bound away. `expires_in_seconds`: from now on. `scopes`: an
    empty list takes the bound on endpoints away, as with OpenAI; name `endpoints` to set it."""

    name: Name | None = None
    expires_in_seconds: LifetimeSeconds | None = None
    scopes: Annotated[list[str], Field(max_length=0)] | None = None
    models: ModelNames | None = None
    endpoints: Endpoints | None = None
    addresses: AddressRanges | None = None
    output_tokens_max: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    tags: Annotated[dict[TagName, TagText], Field(max_length=TAGS_MAX)] | None = None
    rotation_schedule: RotationScheduleText | None = None

    def changes(self, now: int) -> KeyChanges:
        """Return what was sent."""
        sent = self.model_fields_set
        bounds: dict[str, Any] = {}
        for name in ("models", "endpoints", "addresses"):
            if name in sent:
                value = getattr(self, name)
                bounds[name] = None if value is None else tuple(value)
        if "scopes" in sent:
            bounds["endpoints"] = None
        if "output_tokens_max" in sent:
            bounds["output_tokens_max"] = self.output_tokens_max
        if "tags" in sent:
            bounds["tags"] = self.tags or {}
        if self.name is not None:
            bounds["name"] = self.name
        if "rotation_schedule" in sent:
            bounds["schedule"] = find_schedule(self.rotation_schedule)
        expires_at = None if self.expires_in_seconds is None else now + self.expires_in_seconds * 1_000_000
        return KeyChanges(bounds, expires_at)


class KeyOwnerAccount(Out):
    id: str
    name: str
    role: str
    created_at: int


class KeyOwner(Out):
    type: Literal["service_account"] | None
    service_account: KeyOwnerAccount | None
    user: None = None


class PreviousSecretOut(Out):
    """The secret before the latest rotation, while it is valid."""

    redacted_value: str
    expires_at: int
    last_used_at: int | None
    safe_to_retire: bool


class RotationOut(Out):
    """The latest rotation of a key. `last_used_at` is of the secret that it made."""

    rotated_at: int
    last_used_at: int | None
    previous: PreviousSecretOut | None


def rotation_out(key: Key, now: int) -> RotationOut | None:
    if key.rotation is None:
        return None
    valid, previous = key.rotation.find_valid(now), None
    if valid is not None:
        previous = PreviousSecretOut(
            redacted_value=valid.redacted,
            expires_at=seconds(valid.expires_at),
            last_used_at=find_seconds(valid.last_used_at),
            safe_to_retire=key.rotation.is_safe_to_retire(now),
        )
    return RotationOut(rotated_at=seconds(key.rotation.rotated_at), last_used_at=find_seconds(key.rotation.last_used_at), previous=previous)


class KeyOut(Identified):
    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    name: str
    type: str
    redacted_value: str
    created_at: int
    created_by: str | None
    expires_at: int | None
    last_used_at: int | None
    rotation: RotationOut | None
    rotation_schedule: RotationScheduleOut | None
    next_rotation_at: int | None
    has_uncollected_secret: bool
    owner: KeyOwner
    owner_project_access: Literal["active"] = "active"
    models: list[str] | None
    limits: LimitsOut
    endpoints: list[str] | None
    addresses: list[str] | None
    output_tokens_max: int | None
    tags: dict[str, str]


class KeyRotate(In):
    """A wish for a rotation. `grace_seconds`: time for which the secret before stays valid. `expires_at`: another expiry of the key."""

    grace_seconds: Annotated[int, Field(ge=0, le=GRACE_SECONDS_MAX)] = GRACE_SECONDS_DEFAULT
    expires_at: Second | None = None

    def wanted(self, grantor: Grantor) -> WantedRotation:
        expires_at = None if self.expires_at is None else self.expires_at * 1_000_000
        return WantedRotation(grace_seconds=self.grace_seconds, expires_at=expires_at, grantor=grantor)


class KeyCreated(KeyOut):
    """With the secret, shown this once."""

    value: str


class KeyRotated(KeyCreated):
    """With the new secret, shown this once. `pending_nodes`: gateways that were alive and have not confirmed within a second."""

    pending_nodes: list[str]


class KeyUpdated(KeyOut):
    """`pending_nodes`: gateways that were alive and have not confirmed within a second."""

    pending_nodes: list[str]


class KeyRetired(KeyOut):
    """`pending_nodes`: gateways that were alive and have not confirmed within a second."""

    pending_nodes: list[str]


def key_out(key: Key, now: int) -> KeyOut:
    account = key.service_account
    owner = KeyOwner(type=None, service_account=None)
    if account is not None:
        shown = KeyOwnerAccount(id=account.id, name=account.name, role=account.role, created_at=seconds(account.created_at))
        owner = KeyOwner(type="service_account", service_account=shown)
    return KeyOut(
        id=key.id,
        name=key.name,
        type=key.type,
        redacted_value=key.redacted,
        created_at=seconds(key.created_at),
        created_by=key.created_by,
        expires_at=find_seconds(key.expires_at),
        last_used_at=find_seconds(key.last_used_at),
        rotation=rotation_out(key, now),
        rotation_schedule=schedule_out(key.schedule),
        next_rotation_at=find_seconds(key.find_next_rotation()),
        has_uncollected_secret=key.has_uncollected_secret,
        owner=owner,
        models=None if key.models is None else list(key.models),
        limits=limits_out(key.limits),
        endpoints=None if key.endpoints is None else list(key.endpoints),
        addresses=None if key.addresses is None else list(key.addresses),
        output_tokens_max=key.output_tokens_max,
        tags=dict(key.tags),
    )


RoleText = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(printable)]
ProjectIdText = Annotated[str, StringConstraints(max_length=64)]


class AdminKeyCreate(In):
    """`role`: name or id; null for that of the key with which it is made. `project_id`: where the role is held; null for everywhere.
    `user_id`: the person whose key it is, whose roles it has."""

    name: Name
    expires_in_seconds: LifetimeSeconds | None = None
    role: RoleText | None = None
    project_id: ProjectIdText | None = None
    user_id: ProjectIdText | None = None


class AdminKeyOwner(Out):
    """The owner: a person, or the organization (`id` null) in OpenAI's shape of a person."""

    type: Literal["user"] = "user"
    role: str
    object: Literal["organization.user"] = "organization.user"
    id: str | None = None
    name: None = None
    created_at: None = None


class AdminKeyOut(Identified):
    object: Literal["organization.admin_api_key"] = "organization.admin_api_key"
    name: str
    redacted_value: str
    created_at: int
    created_by: str | None
    expires_at: int | None
    last_used_at: int | None
    rotation: RotationOut | None
    owner: AdminKeyOwner
    role: str | None
    project_id: str | None


class AdminKeyCreated(AdminKeyOut):
    """With the secret, shown this once."""

    value: str


def admin_key_out(key: Key, now: int) -> AdminKeyOut:
    role = None if key.grant is None else key.grant.role.name
    return AdminKeyOut(
        id=key.id,
        name=key.name,
        redacted_value=key.redacted,
        created_at=seconds(key.created_at),
        created_by=key.created_by,
        expires_at=find_seconds(key.expires_at),
        last_used_at=find_seconds(key.last_used_at),
        rotation=rotation_out(key, now),
        owner=AdminKeyOwner(role=role or "user", id=key.user_id),
        role=role,
        project_id=None if key.grant is None else key.grant.project_id,
    )


def admin_key_created(shown: ShownKey, now: int) -> AdminKeyCreated:
    return AdminKeyCreated(**admin_key_out(shown.key, now).model_dump(), value=shown.secret)


class OrganizationCreated(OrganizationOut):
    """With the first admin key, shown this once."""

    admin_api_key: AdminKeyCreated


class Deleted(Out):
    """Something is gone. `pending_nodes`: gateways that were alive and have not confirmed within a second."""

    object: str
    id: str
    deleted: Literal[True] = True
    pending_nodes: list[str]


# ---- Nodes ------------------------------------------------------------------------------------------------------------


NodeIdText = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_\-]{1,64}$")]


class SecretUseIn(In):
    """The latest use of a secret: the key, the first bytes of the digest of the secret, and the instant in microseconds."""

    key_id: Annotated[str, Field(max_length=64)]
    digest: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    used_at: Annotated[int, Field(ge=0, le=2**63 - 1)]

    def use(self) -> SecretUse:
        return SecretUse(self.key_id, self.digest, self.used_at)


class AckIn(In):
    """A message of a gateway: it is alive and has applied `version`."""

    node_id: NodeIdText
    version: Annotated[int, Field(ge=0, le=2**63 - 1)]
    secret_uses: Annotated[list[SecretUseIn], Field(max_length=USES_MAX)] = []


class JoinIn(In):
    """The id and the key that a gateway made for itself."""

    node_id: NodeIdText
    key: Annotated[str, StringConstraints(max_length=128)]


class JoinOut(Out):
    """The node that was registered."""

    node_id: str
    name: str


class AckOut(Out):
    """Counts of gateways for one of them."""

    gateways: int
