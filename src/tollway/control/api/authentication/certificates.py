"""Client certificates, in the shape of OpenAI's `/v1/organization/certificates`, and their rules, which are ours.

Members of our own: `fingerprint` and `is_authority` of a certificate. A program presents its certificate in the handshake of TLS, and
names the organization by the header `openai-organization`.
"""

from typing import Annotated, Literal

from fastapi import Depends, Query
from pydantic import Field, StringConstraints

from tollway.control import publish
from tollway.control.api import routes
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Identified, In, ListOut, Name, Out, PageQuery, ProjectIdText, list_out, seconds
from tollway.control.authentication import certificates
from tollway.control.authentication.federation import KeyMaking
from tollway.control.identity.access import Tenant
from tollway.control.plane import ControlPlane
from tollway.domain import ids
from tollway.domain.certificates import CHANGED_MAX, MATCHERS_MAX, PEM_CHARACTERS_MAX, CertificateRule, ClientCertificate
from tollway.domain.pages import Page
from tollway.domain.roles import Permission

router = routes.router(tags=["certificates"])

Reader = Annotated[Tenant, Depends(may(Permission.FEDERATION_READ))]
Writer = Annotated[Tenant, Depends(may(Permission.FEDERATION_WRITE))]
ProjectReader = Annotated[Tenant, Depends(may(Permission.PROJECTS_READ))]
ProjectWriter = Annotated[Tenant, Depends(may(Permission.PROJECTS_WRITE))]

_PATH = "/v1/organization/certificates"
_PROJECT_PATH = "/v1/organization/projects/{project_id}/certificates"
_CERTIFICATE = "cert_0198c5f2a3b47c11a0b1c2d3e4f50617"
_RULE = "certrule_0198c5f2a3b47c11a0b1c2d3e4f50617"
_ACCOUNT = "sa_0198c5f2a3b47c11a0b1c2d3e4f50617"
_FINGERPRINT = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_PEM = "-----BEGIN CERTIFICATE-----\n..."

NameText = Annotated[Name, Field(description="A name for people, 1 to 256 characters.", examples=["Our authority"])]
Content = Annotated[
    str,
    StringConstraints(max_length=PEM_CHARACTERS_MAX),
    Field(description="The certificate as PEM: that of an authority, or of one program.", examples=[_PEM]),
]
Ids = Annotated[
    list[Annotated[str, StringConstraints(max_length=64)]],
    Field(min_length=1, max_length=CHANGED_MAX, description="Certificates, 1 to 10.", examples=[[_CERTIFICATE]]),
]
Kind = Literal["certificate", "organization.certificate", "organization.project.certificate"]


class CertificateCreate(In):
    """A certificate to upload."""

    certificate: Content
    name: NameText | None = None


class CertificateUpdate(In):
    """Another name of a certificate."""

    name: NameText | None = None


class CertificateIds(In):
    """Certificates to activate or deactivate: all of them or none."""

    certificate_ids: Ids


class CertificateDeactivate(CertificateIds):
    """Certificates to deactivate in the organization: all of them or none."""

    everywhere: Annotated[bool, Field(description="Whether to deactivate them in each project as well.", examples=[True])] = False


class CertificateDetails(Out):
    """Content of a certificate."""

    valid_at: Annotated[int, Field(description="From when on it is valid, in Unix seconds.", examples=[1790000000])]
    expires_at: Annotated[int, Field(description="When it expires, in Unix seconds.", examples=[1821536000])]
    content: Annotated[str | None, Field(description="The certificate as PEM, where it was asked for; null otherwise.", examples=[None])]


class CertificateOut(Identified):
    """A certificate."""

    object: Annotated[Kind, Field(description="Where `active` holds.", examples=["organization.certificate"])]
    id: Annotated[str, Field(description="Id of the certificate.", examples=[_CERTIFICATE])]
    name: NameText | None
    active: Annotated[bool | None, Field(description="Whether it is trusted there; null for a certificate alone.", examples=[True])]
    project_ids: Annotated[
        list[str] | None, Field(description="Projects that trust it by themselves; null in answers for a project.", examples=[[]])
    ]
    created_at: int
    certificate_details: Annotated[CertificateDetails, Field(description="What it says.")]
    fingerprint: Annotated[str, Field(description="Its SHA-256 in hexadecimal.", examples=[_FINGERPRINT])]
    is_authority: Annotated[bool, Field(description="Whether it issues other certificates.", examples=[True])]


class CertificateDeleted(Identified):
    """A certificate is gone."""

    object: Literal["certificate.deleted"] = "certificate.deleted"
    id: Annotated[str, Field(description="Id of the certificate.", examples=[_CERTIFICATE])]
    deleted: Literal[True] = True


class CertificateQuery(Out):
    """Parts of a certificate to show beside the others."""

    include: Annotated[list[Literal["content"]], Field(max_length=1, default_factory=list)]


Matchers = Annotated[
    dict[str, str],
    Field(
        max_length=MATCHERS_MAX,
        description="What a certificate must say: `fingerprint`, `subject`, `common_name`, `dns`, `uri`, `email`. A `uri` may end in `/*`.",
        examples=[{"uri": "spiffe://example.com/ci/*"}],
    ),
]
AccountId = Annotated[
    str, StringConstraints(max_length=64), Field(description="The service account for which it stands.", examples=[_ACCOUNT])
]


class CertificateRuleCreate(In):
    """A rule to create."""

    project_id: ProjectIdText
    service_account_id: AccountId
    matchers: Matchers = Field(default_factory=dict)
    name: NameText | None = None


class CertificateRuleOut(Identified):
    """A rule: for which service account certificates stand."""

    object: Literal["organization.certificate.rule"] = "organization.certificate.rule"
    id: Annotated[str, Field(description="Id of the rule.", examples=[_RULE])]
    certificate_id: Annotated[str, Field(description="The trusted certificate.", examples=[_CERTIFICATE])]
    project_id: ProjectIdText
    service_account_id: AccountId
    api_key_id: Annotated[
        str,
        Field(description="The key for which a certificate stands: set limits on it.", examples=["key_0198c5f2a3b47c11a0b1c2d3e4f50617"]),
    ]
    name: NameText | None
    matchers: Matchers
    created_at: int


class CertificateRuleDeleted(Identified):
    """A rule is gone, and its key with it."""

    object: Literal["organization.certificate.rule.deleted"] = "organization.certificate.rule.deleted"
    id: Annotated[str, Field(description="Id of the rule.", examples=[_RULE])]
    deleted: Literal[True] = True
    pending_nodes: list[str]


def _out(certificate: ClientCertificate, kind: Kind, active: bool | None, *, has_content: bool = False) -> CertificateOut:
    return CertificateOut(
        object=kind,
        id=certificate.id,
        name=certificate.name,
        active=active,
        project_ids=None if kind == "organization.project.certificate" else sorted(certificate.project_ids),
        created_at=seconds(certificate.created_at),
        certificate_details=CertificateDetails(
            valid_at=seconds(certificate.valid_from),
            expires_at=seconds(certificate.expires_at),
            content=certificate.content if has_content else None,
        ),
        fingerprint=certificate.fingerprint,
        is_authority=certificate.is_authority,
    )


def _of_organization(certificate: ClientCertificate) -> CertificateOut:
    return _out(certificate, "organization.certificate", certificate.is_active)


# ---- Certificates -------------------------------------------------------------------------------------------------------


@router.get(_PATH)
def list_certificates(caller: Reader, plane: Plane, query: Annotated[PageQuery, Query()]) -> ListOut[CertificateOut]:
    """The certificates of the organization, each with whether it is trusted in all of it."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return list_out(certificates.list_certificates(tx, query.window()), _of_organization)


@router.post(_PATH)
def create_certificate(caller: Writer, plane: Plane, body: CertificateCreate) -> CertificateOut:
    """Upload a certificate. It is trusted where it is activated."""
    id = plane.new_id(ids.CERTIFICATE)
    with plane.database.tenant(caller.organization_id) as tx:
        made = certificates.upload_certificate(tx, body.certificate, id=id, name=body.name, now=plane.now())
    return _out(made, "certificate", None)


@router.post(_PATH + "/activate")
def activate_certificates(caller: Writer, plane: Plane, body: CertificateIds) -> ListOut[CertificateOut]:
    """Trust certificates in the whole organization."""
    return _set_active(caller, plane, body, None, is_active=True)


@router.post(_PATH + "/deactivate")
def deactivate_certificates(caller: Writer, plane: Plane, body: CertificateDeactivate) -> ListOut[CertificateOut]:
    """Trust certificates no more from the next request on, but in projects that trust them by themselves; with `everywhere` not there
    either, until a project activates them again."""
    return _set_active(caller, plane, body, None, is_active=False, everywhere=body.everywhere)


@router.get(_PATH + "/{certificate_id}")
def retrieve_certificate(caller: Reader, plane: Plane, certificate_id: str, query: Annotated[CertificateQuery, Query()]) -> CertificateOut:
    """One certificate."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        found = certificates.get_certificate(tx, certificate_id)
    return _out(found, "certificate", None, has_content="content" in query.include)


@router.post(_PATH + "/{certificate_id}")
def update_certificate(caller: Writer, plane: Plane, certificate_id: str, body: CertificateUpdate) -> CertificateOut:
    """Rename a certificate."""
    with plane.database.tenant(caller.organization_id) as tx:
        return _out(certificates.rename_certificate(tx, certificate_id, body.name), "certificate", None)


@router.delete(_PATH + "/{certificate_id}")
def delete_certificate(caller: Writer, plane: Plane, certificate_id: str) -> CertificateDeleted:
    """Delete a certificate that is active nowhere, after its rules."""
    with plane.database.tenant(caller.organization_id) as tx:
        certificates.delete_certificate(tx, certificate_id)
    return CertificateDeleted(id=certificate_id)


@router.get(_PROJECT_PATH)
def list_project_certificates(
    caller: ProjectReader, plane: Plane, project_id: str, query: Annotated[PageQuery, Query()]
) -> ListOut[CertificateOut]:
    """The certificates of the organization, each with whether this project trusts it by itself."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        page = certificates.list_project_certificates(tx, project_id, query.window())
    return list_out(page, lambda each: _of_project(each, project_id))


@router.post(_PROJECT_PATH + "/activate")
def activate_project_certificates(caller: ProjectWriter, plane: Plane, project_id: str, body: CertificateIds) -> ListOut[CertificateOut]:
    """Trust certificates in a project."""
    return _set_active(caller, plane, body, project_id, is_active=True)


@router.post(_PROJECT_PATH + "/deactivate")
def deactivate_project_certificates(caller: ProjectWriter, plane: Plane, project_id: str, body: CertificateIds) -> ListOut[CertificateOut]:
    """Trust certificates in a project no more, but where the organization does, from the next request on."""
    return _set_active(caller, plane, body, project_id, is_active=False)


def _of_project(certificate: ClientCertificate, project_id: str) -> CertificateOut:
    return _out(certificate, "organization.project.certificate", project_id in certificate.project_ids)


def _set_active(
    caller: Tenant, plane: ControlPlane, body: CertificateIds, project_id: str | None, *, is_active: bool, everywhere: bool = False
) -> ListOut[CertificateOut]:
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        changed, version = certificates.set_active(
            tx, body.certificate_ids, project_id, is_active=is_active, everywhere=everywhere, now=now
        )
    publish.confirm(plane.database, plane.publications, version, now)
    return list_out(Page(changed, False), lambda each: _of_organization(each) if project_id is None else _of_project(each, project_id))


# ---- Rules --------------------------------------------------------------------------------------------------------------

_RULES = _PATH + "/{certificate_id}/rules"


@router.get(_RULES)
def list_certificate_rules(
    caller: Reader, plane: Plane, certificate_id: str, query: Annotated[PageQuery, Query()]
) -> ListOut[CertificateRuleOut]:
    """The rules of a certificate, of which the first that matches counts."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return list_out(certificates.list_rules(tx, certificate_id, query.window()), _rule_out)


@router.post(_RULES)
def create_certificate_rule(caller: Writer, plane: Plane, certificate_id: str, body: CertificateRuleCreate) -> CertificateRuleOut:
    """Create a rule with a key of its own, whose secret nobody knows."""
    now = plane.now()
    rule = CertificateRule(
        id=plane.new_id(ids.CERTIFICATE_RULE),
        certificate_id=certificate_id,
        project_id=body.project_id,
        service_account_id=body.service_account_id,
        key_id=plane.new_id(ids.KEY),
        name=body.name,
        matchers=body.matchers,
        created_at=now,
    )
    making = KeyMaking(ingredients=plane.new_ingredients(), grantor=caller.grantor, sizes=plane.quotas)
    with plane.database.tenant(caller.organization_id) as tx:
        return _rule_out(certificates.create_rule(tx, rule, making, now))


@router.delete(_RULES + "/{certificate_rule_id}")
def delete_certificate_rule(caller: Writer, plane: Plane, certificate_id: str, certificate_rule_id: str) -> CertificateRuleDeleted:
    """Delete a rule and revoke its key: certificates stand for nobody by it any more."""
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        version = certificates.delete_rule(tx, certificate_id, certificate_rule_id, now)
    pending = publish.confirm(plane.database, plane.publications, version, now)
    return CertificateRuleDeleted(id=certificate_rule_id, pending_nodes=pending)


def _rule_out(rule: CertificateRule) -> CertificateRuleOut:
    return CertificateRuleOut(
        id=rule.id,
        certificate_id=rule.certificate_id,
        project_id=rule.project_id,
        service_account_id=rule.service_account_id,
        api_key_id=rule.key_id,
        name=rule.name,
        matchers=dict(rule.matchers),
        created_at=seconds(rule.created_at),
    )
