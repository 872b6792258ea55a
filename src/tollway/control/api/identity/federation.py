"""Identity providers and their rules, in the shape of OpenAI's `/v1/organization/workload_identity_providers`.

Members of our own: `is_direct` and `is_single_use` of a provider, `api_key_id` of a rule.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
from fastapi import Depends, Query
from pydantic import AfterValidator, Field, StringConstraints

from tollway.control import publish
from tollway.control.api import routes
from tollway.control.api.identity.people_schemas import Description
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Identified, In, ListOut, Name, Out, PageQuery, ProjectIdText, list_out, printable, seconds
from tollway.control.authentication import federation
from tollway.control.authentication.federation import KeyMaking
from tollway.control.identity import issuer_keys
from tollway.control.identity.access import Tenant
from tollway.domain import ids
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.federation import IdentityProvider, ProviderRule
from tollway.domain.roles import Permission

router = routes.router(tags=["federation"])

Reader = Annotated[Tenant, Depends(may(Permission.FEDERATION_READ))]
Writer = Annotated[Tenant, Depends(may(Permission.FEDERATION_WRITE))]

_PROVIDERS = "/v1/organization/workload_identity_providers"
_PROVIDER = "idp_0198c5f2a3b47c11a0b1c2d3e4f50617"
_RULE = "fedrule_0198c5f2a3b47c11a0b1c2d3e4f50617"
_ACCOUNT = "sa_0198c5f2a3b47c11a0b1c2d3e4f50617"
_PROJECT = "proj_0198c5f2a3b47c11a0b1c2d3e4f50617"

Text = Annotated[str, StringConstraints(min_length=1, max_length=2048, pattern=r"^[\x21-\x7e]+$")]
ClaimValue = bool | int | Annotated[str, StringConstraints(min_length=1, max_length=512), AfterValidator(printable)]
Matchers = Annotated[
    dict[str, ClaimValue],
    Field(
        max_length=16,
        description="What claims of a token must be, by name. The value of `sub` may end in `*`, and is a prefix then.",
        examples=[{"sub": "repo:acme/*", "environment": "production"}],
    ),
]


class Discovery(In):
    """The keys are fetched from the issuer, and again every five minutes."""

    type: Annotated[Literal["discovery"], Field(description="Always `discovery`.", examples=["discovery"])]
    discovery_url: Annotated[
        Text | None, Field(description="Address of the issuer's metadata; null for the usual one.", examples=[None])
    ] = None


class UploadedJwks(In):
    """The keys are those of this set, until another one is uploaded."""

    type: Annotated[Literal["uploaded_jwks"], Field(description="Always `uploaded_jwks`.", examples=["uploaded_jwks"])]
    jwks: Annotated[dict[str, Any], Field(description="A JSON Web Key Set (RFC 7517) of public keys.", examples=[{"keys": []}])]


Verification = Annotated[
    Discovery | UploadedJwks,
    Field(discriminator="type", description="Where the issuer's keys come from.", examples=[{"type": "discovery"}]),
]
Transformations = Annotated[
    list[dict[str, str]], Field(max_length=0, description="Always empty: transformations are not supported.", examples=[[]])
]
IssuerText = Annotated[Text, Field(description="The exact `iss` of its tokens.", examples=["https://token.actions.githubusercontent.com"])]
AudienceText = Annotated[Text, Field(description="The `aud` that its tokens must have.", examples=["https://gateway.example.com"])]
Enabled = Annotated[bool, Field(description="Whether it is in force.", examples=[True])]
Direct = Annotated[
    bool,
    Field(
        description="Whether gateways accept its tokens without an exchange; the audience must contain your organization's id.",
        examples=[False],
    ),
]
SingleUse = Annotated[bool, Field(description="Whether an assertion with a `jti` can be exchanged once only.", examples=[True])]
Describes = Annotated[Description | None, Field(description="What it is for, up to 1024 characters.", examples=["Deployments."])]
NameText = Annotated[Name, Field(description="A name for people, 1 to 256 characters.", examples=["GitHub"])]


class ProviderCreate(In):
    """An identity provider to create."""

    type: Annotated[Literal["oidc"], Field(description="Always `oidc`.", examples=["oidc"])]
    name: NameText
    issuer: IssuerText
    audience: AudienceText
    description: Describes = None
    enabled: Enabled = True
    verification: Verification = Discovery(type="discovery")
    attribute_transformations: Transformations = Field(default_factory=list)
    is_direct: Direct = False
    is_single_use: SingleUse = True


class ProviderUpdate(In):
    """Fields of an identity provider to change; a field that is left out stays."""

    name: NameText | None = None
    issuer: IssuerText | None = None
    audience: AudienceText | None = None
    description: Describes = None
    enabled: Enabled | None = None
    verification: Verification | None = None
    attribute_transformations: Transformations = Field(default_factory=list)
    is_direct: Direct | None = None
    is_single_use: SingleUse | None = None


class VerificationOut(Out):
    """Source of the issuer's keys."""

    type: Annotated[Literal["discovery", "uploaded_jwks"], Field(description="Kind of source.", examples=["discovery"])]
    discovery_url: Annotated[str | None, Field(description="Address of the metadata; null for the usual one.", examples=[None])] = None
    jwks: Annotated[dict[str, Any] | None, Field(description="The uploaded keys; null otherwise.", examples=[None])] = None


class ProviderOut(Identified):
    """An identity provider."""

    object: Literal["organization.workload_identity_provider"] = "organization.workload_identity_provider"
    id: Annotated[str, Field(description="Id of the identity provider.", examples=[_PROVIDER])]
    type: Annotated[Literal["oidc"], Field(description="Always `oidc`.", examples=["oidc"])] = "oidc"
    name: NameText
    issuer: IssuerText
    audience: AudienceText
    description: Describes
    enabled: Enabled
    verification: Annotated[VerificationOut, Field(description="Where the issuer's keys come from.")]
    attribute_transformations: Transformations = Field(default_factory=list)
    is_direct: Direct
    is_single_use: SingleUse
    created_at: int
    updated_at: Annotated[int, Field(description="When it was changed last, in Unix seconds.", examples=[1790000000])]


class ServiceAccountDefault(In):
    """Everything that a key of the service account may do."""

    type: Annotated[Literal["service_account_default"], Field(description="No further bound.", examples=["service_account_default"])]


class Restricted(In):
    """Only some endpoints."""

    type: Annotated[Literal["restricted"], Field(description="Bounded by scopes.", examples=["restricted"])]
    scopes: Annotated[
        list[Annotated[str, StringConstraints(max_length=64)]],
        Field(min_length=1, max_length=50, description="Endpoints that may be called.", examples=[["chat/completions"]]),
    ]


Permissions = Annotated[
    ServiceAccountDefault | Restricted,
    Field(discriminator="type", description="What tokens by this rule may do.", examples=[{"type": "service_account_default"}]),
]
AccountId = Annotated[
    str, StringConstraints(max_length=64), Field(description="The service account that tokens stand for.", examples=[_ACCOUNT])
]


class RuleCreate(In):
    """A rule to create."""

    project_id: ProjectIdText
    service_account_id: AccountId
    attribute_matchers: Matchers
    name: NameText | None = None
    description: Describes = None
    enabled: Enabled = True
    permissions: Permissions = ServiceAccountDefault(type="service_account_default")


class RuleUpdate(In):
    """Fields of a rule to change; a field that is left out stays."""

    attribute_matchers: Matchers | None = None
    name: NameText | None = None
    description: Describes = None
    enabled: Enabled | None = None
    permissions: Permissions | None = None


class PermissionsOut(Out):
    """Bounds of tokens by a rule."""

    type: Annotated[Literal["service_account_default", "restricted"], Field(description="Kind of bound.", examples=["restricted"])]
    scopes: Annotated[
        list[str] | None, Field(description="Endpoints that may be called; null for all.", examples=[["chat/completions"]])
    ] = None


class RuleOut(Identified):
    """A rule of an identity provider."""

    object: Literal["organization.workload_identity_federation_rule"] = "organization.workload_identity_federation_rule"
    id: Annotated[str, Field(description="Id of the rule.", examples=[_RULE])]
    workload_identity_provider_id: Annotated[str, Field(description="The identity provider.", examples=[_PROVIDER])]
    project_id: Annotated[str, Field(description="The project of the service account.", examples=[_PROJECT])]
    service_account_id: AccountId
    api_key_id: Annotated[
        str,
        Field(
            description="The key that tokens by this rule stand for: set limits on it.", examples=["key_0198c5f2a3b47c11a0b1c2d3e4f50617"]
        ),
    ]
    name: NameText | None
    description: Describes
    attribute_matchers: Matchers
    enabled: Enabled
    permissions: Annotated[PermissionsOut, Field(description="What tokens by this rule may do.")]
    created_at: int
    updated_at: Annotated[int, Field(description="When it was changed last, in Unix seconds.", examples=[1790000000])]


class ProviderDeleted(Identified):
    """An identity provider is gone."""

    object: Literal["organization.workload_identity_provider.deleted"] = "organization.workload_identity_provider.deleted"
    id: Annotated[str, Field(description="Id of the identity provider.", examples=[_PROVIDER])]
    deleted: Literal[True] = True
    pending_nodes: list[str]


class RuleDeleted(Identified):
    """A rule is gone, and its key with it."""

    object: Literal["organization.workload_identity_federation_rule.deleted"] = "organization.workload_identity_federation_rule.deleted"
    id: Annotated[str, Field(description="Id of the rule.", examples=[_RULE])]
    deleted: Literal[True] = True
    pending_nodes: list[str]


class RuleQuery(PageQuery):
    """One page of rules: those of a service account, or all of them."""

    service_account_id: Annotated[str | None, Field(max_length=64)] = None


# ---- Providers ----------------------------------------------------------------------------------------------------------


@router.get(_PROVIDERS)
def list_providers(caller: Reader, plane: Plane, query: Annotated[PageQuery, Query()]) -> ListOut[ProviderOut]:
    """The identity providers of the organization."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return list_out(federation.list_providers(tx, query.window()), _provider_out)


@router.post(_PROVIDERS)
def create_provider(caller: Writer, plane: Plane, body: ProviderCreate) -> ProviderOut:
    """Register an identity provider. Its keys are fetched, or are those that are uploaded."""
    now = plane.now()
    provider = IdentityProvider(
        id=plane.new_id(ids.IDENTITY_PROVIDER),
        organization_id=caller.organization_id,
        name=body.name,
        description=body.description,
        issuer=body.issuer,
        audience=body.audience,
        discovery_url=None,
        is_uploaded=False,
        keys=(),
        fetched_at=None,
        is_enabled=body.enabled,
        is_direct=body.is_direct,
        is_single_use=body.is_single_use,
        created_at=now,
        updated_at=now,
    )
    provider = _with_keys(provider, body.verification, now)
    with plane.database.tenant(caller.organization_id) as tx:
        federation.put_provider(tx, provider, now, is_new=True)
    return _provider_out(provider)


@router.get(_PROVIDERS + "/{workload_identity_provider_id}")
def retrieve_provider(caller: Reader, plane: Plane, workload_identity_provider_id: str) -> ProviderOut:
    """One identity provider."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return _provider_out(federation.get_provider(tx, workload_identity_provider_id))


@router.post(_PROVIDERS + "/{workload_identity_provider_id}")
def update_provider(caller: Writer, plane: Plane, workload_identity_provider_id: str, body: ProviderUpdate) -> ProviderOut:
    """Change an identity provider. Another issuer or source of keys has the keys fetched anew."""
    now = plane.now()
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        before = federation.get_provider(tx, workload_identity_provider_id)
    changed = replace(
        before,
        name=body.name or before.name,
        description=body.description if "description" in body.model_fields_set else before.description,
        issuer=body.issuer or before.issuer,
        audience=body.audience or before.audience,
        is_enabled=before.is_enabled if body.enabled is None else body.enabled,
        is_direct=before.is_direct if body.is_direct is None else body.is_direct,
        is_single_use=before.is_single_use if body.is_single_use is None else body.is_single_use,
        updated_at=now,
    )
    verification = body.verification
    if verification is None and changed.issuer != before.issuer and not before.is_uploaded:
        verification = Discovery(type="discovery", discovery_url=before.discovery_url)
    changed = _with_keys(changed, verification, now)
    with plane.database.tenant(caller.organization_id) as tx:
        federation.change_provider(tx, before, changed, now)
    return _provider_out(changed)


@router.delete(_PROVIDERS + "/{workload_identity_provider_id}")
def delete_provider(caller: Writer, plane: Plane, workload_identity_provider_id: str) -> ProviderDeleted:
    """Delete an identity provider, after its rules."""
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        version = federation.delete_provider(tx, workload_identity_provider_id, now)
    pending = publish.confirm(plane.database, plane.publications, version, now)
    return ProviderDeleted(id=workload_identity_provider_id, pending_nodes=pending)


def _with_keys(provider: IdentityProvider, verification: Discovery | UploadedJwks | None, now: int) -> IdentityProvider:
    """Return a provider with the keys of this source; None keeps those that it has."""
    if isinstance(verification, UploadedJwks):
        provider = replace(provider, is_uploaded=True, discovery_url=None)
    elif verification is not None:
        provider = replace(provider, is_uploaded=False, discovery_url=verification.discovery_url)
    federation.check_provider(provider)
    if verification is None:
        return provider
    if isinstance(verification, UploadedJwks):
        try:
            return replace(provider, keys=issuer_keys.read_keys(verification.jwks), fetched_at=None)
        except ValueError as error:
            raise Fault(PARAMETER_INVALID, param="verification.jwks", message=f"Invalid value for verification.jwks: {error}.") from None
    return replace(provider, keys=federation.fetch_keys(provider), fetched_at=now)


def _provider_out(provider: IdentityProvider) -> ProviderOut:
    keys = {"keys": [msgspec.to_builtins(key) for key in provider.keys]} if provider.is_uploaded else None
    source: Literal["discovery", "uploaded_jwks"] = "uploaded_jwks" if provider.is_uploaded else "discovery"
    return ProviderOut(
        id=provider.id,
        name=provider.name,
        issuer=provider.issuer,
        audience=provider.audience,
        description=provider.description,
        enabled=provider.is_enabled,
        verification=VerificationOut(type=source, discovery_url=provider.discovery_url, jwks=keys),
        is_direct=provider.is_direct,
        is_single_use=provider.is_single_use,
        created_at=seconds(provider.created_at),
        updated_at=seconds(provider.updated_at),
    )


# ---- Rules --------------------------------------------------------------------------------------------------------------

_RULES = _PROVIDERS + "/{workload_identity_provider_id}/federation_rules"


@router.get(_RULES)
def list_rules(caller: Reader, plane: Plane, workload_identity_provider_id: str, query: Annotated[RuleQuery, Query()]) -> ListOut[RuleOut]:
    """The rules of an identity provider."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return list_out(federation.list_rules(tx, workload_identity_provider_id, query.service_account_id, query.window()), _rule_out)


@router.post(_RULES)
def create_rule(caller: Writer, plane: Plane, workload_identity_provider_id: str, body: RuleCreate) -> RuleOut:
    """Create a rule with a key of its own, whose secret nobody knows."""
    now = plane.now()
    rule = ProviderRule(
        id=plane.new_id(ids.FEDERATION_RULE),
        provider_id=workload_identity_provider_id,
        project_id=body.project_id,
        service_account_id=body.service_account_id,
        key_id=plane.new_id(ids.KEY),
        name=body.name,
        description=body.description,
        matchers=body.attribute_matchers,
        endpoints=federation.parse_scopes(body.permissions.scopes) if isinstance(body.permissions, Restricted) else None,
        is_enabled=body.enabled,
        created_at=now,
        updated_at=now,
    )
    making = KeyMaking(ingredients=plane.new_ingredients(), grantor=caller.grantor, sizes=plane.quotas)
    with plane.database.tenant(caller.organization_id) as tx:
        return _rule_out(federation.create_rule(tx, rule, making, now))


@router.get(_RULES + "/{workload_identity_federation_rule_id}")
def retrieve_rule(caller: Reader, plane: Plane, workload_identity_provider_id: str, workload_identity_federation_rule_id: str) -> RuleOut:
    """One rule."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return _rule_out(federation.get_rule(tx, workload_identity_provider_id, workload_identity_federation_rule_id))


@router.post(_RULES + "/{workload_identity_federation_rule_id}")
def update_rule(
    caller: Writer, plane: Plane, workload_identity_provider_id: str, workload_identity_federation_rule_id: str, body: RuleUpdate
) -> RuleOut:
    """Change a rule. Tokens that were issued by it before stay valid until they end; delete the rule to end them at once."""
    with plane.database.tenant(caller.organization_id) as tx:
        publish.lock(tx)
        rule = federation.get_rule(tx, workload_identity_provider_id, workload_identity_federation_rule_id)
        endpoints = rule.endpoints
        if body.permissions is not None:
            endpoints = federation.parse_scopes(body.permissions.scopes) if isinstance(body.permissions, Restricted) else None
        changed = replace(
            rule,
            matchers=rule.matchers if body.attribute_matchers is None else body.attribute_matchers,
            name=body.name if "name" in body.model_fields_set else rule.name,
            description=body.description if "description" in body.model_fields_set else rule.description,
            is_enabled=rule.is_enabled if body.enabled is None else body.enabled,
            endpoints=endpoints,
            updated_at=plane.now(),
        )
        return _rule_out(federation.change_rule(tx, changed, plane.now()))


@router.delete(_RULES + "/{workload_identity_federation_rule_id}")
def delete_rule(caller: Writer, plane: Plane, workload_identity_provider_id: str, workload_identity_federation_rule_id: str) -> RuleDeleted:
    """Delete a rule and revoke its key: every token by it ends."""
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        version = federation.delete_rule(tx, workload_identity_provider_id, workload_identity_federation_rule_id, now)
    pending = publish.confirm(plane.database, plane.publications, version, now)
    return RuleDeleted(id=workload_identity_federation_rule_id, pending_nodes=pending)


def _rule_out(rule: ProviderRule) -> RuleOut:
    permissions = PermissionsOut(type="service_account_default")
    if rule.endpoints is not None:
        permissions = PermissionsOut(type="restricted", scopes=list(rule.endpoints))
    return RuleOut(
        id=rule.id,
        workload_identity_provider_id=rule.provider_id,
        project_id=rule.project_id,
        service_account_id=rule.service_account_id,
        api_key_id=rule.key_id,
        name=rule.name,
        description=rule.description,
        attribute_matchers=dict(rule.matchers),
        enabled=rule.is_enabled,
        permissions=permissions,
        created_at=seconds(rule.created_at),
        updated_at=seconds(rule.updated_at),
    )
