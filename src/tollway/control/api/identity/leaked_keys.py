"""Reports of leaked secrets: by GitHub's secret scanning, by the organization itself, by operators."""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import BackgroundTasks, Depends, Query
from pydantic import Field, StringConstraints
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tollway.control import publish
from tollway.control.api import routes
from tollway.control.api.routes import Plane, may, public
from tollway.control.api.schemas import Identified, In, ListOut, Out, PageQuery, list_out, seconds
from tollway.control.auditing import audit
from tollway.control.auditing.audit import AuditedOperation
from tollway.control.identity import github_reports, leaked_keys
from tollway.control.identity.access import Tenant
from tollway.control.identity.github_reports import BODY_BYTES_MAX, SIGNATURE_INVALID, GithubMatch
from tollway.control.identity.leaked_keys import Database, Finding, Reported, Reporter
from tollway.control.plane import ControlPlane
from tollway.domain.audit import Actor, ActorKind, Target
from tollway.domain.faults import BODY_TOO_LARGE, RESOURCE_UNKNOWN, Fault
from tollway.domain.keys import Operator
from tollway.domain.leaked_keys import REPORTED_MAX, LeakedKey, LeakSource
from tollway.domain.roles import Permission

router = routes.router(tags=["leaked keys"])

Reader = Annotated[Tenant, Depends(may(Permission.API_KEYS_READ))]
Writer = Annotated[Tenant, Depends(may(Permission.API_KEYS_WRITE))]
OperatorWriter = Annotated[Operator, Depends(may(Permission.PLATFORM_KEYS_WRITE))]

GITHUB_PATH = "/v1/leaked_keys/github"
_NOTIFIERS = CapacityLimiter(2)
"""Threads that send mail at once: a mail server that hangs takes none of those that answer requests."""

_EVENT = "api_key.leak_reported"
_KEY = "key_0198c5f2a3b47c11a0b1c2d3e4f50617"

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    for status, text in (
        (401, "The report is not signed with a key of GitHub's."),
        (404, "Reports are not taken here."),
        (429, "Too many reports. Send them later."),
    )
}

SecretText = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class LeakReport(In):
    """Secrets that were found where others can read them."""

    secrets: Annotated[
        list[SecretText],
        Field(min_length=1, max_length=REPORTED_MAX, description="The secrets, 1 to 100; they are not stored.", examples=[["tw_live_..."]]),
    ]
    url: Annotated[
        str,
        StringConstraints(max_length=2048, pattern=r"^[\x20-\x7e]*$"),
        Field(description="Where they were found; empty if it is not known.", examples=["https://paste.example.com/1"]),
    ] = ""


class ReportedSecretOut(Out):
    """A secret that was reported, in the order of the report."""

    is_known: Annotated[
        bool,
        Field(
            description="Whether it is the secret of a key, valid or not, or the one before its latest rotation until that is retired.",
            examples=[True],
        ),
    ]
    key_id: Annotated[str | None, Field(description="Id of the key; null if it is not known.", examples=[_KEY])]
    organization_id: Annotated[
        str | None,
        Field(description="Organization of the key; null if it is not known.", examples=["org_0198c5f2a3b47c11a0b1c2d3e4f50617"]),
    ]
    action: Annotated[
        Literal["revoked", "retired", "none", "inactive"] | None,
        Field(
            description="What was done: the key was revoked; its secret before the rotation was ended; nothing, as the organization wants;"
            " or the secret was not valid any more. Null if it is not known.",
            examples=["revoked"],
        ),
    ]


class LeakReportedOut(Out):
    """The result of a report."""

    object: Annotated[Literal["leak_report"], Field(description="Always `leak_report`.", examples=["leak_report"])] = "leak_report"
    secrets: Annotated[list[ReportedSecretOut], Field(description="Of each secret, in the order of the report.")]
    pending_nodes: list[str]


class LeakedKeyOut(Identified):
    """A secret of a key that was reported as leaked."""

    object: Annotated[Literal["organization.leaked_key"], Field(description="Always `organization.leaked_key`.")] = (
        "organization.leaked_key"
    )
    id: Annotated[str, Field(description="Id of the report.", examples=["leak_0198c5f2a3b47c11a0b1c2d3e4f50617"])]
    key_id: Annotated[str, Field(description="Id of the key.", examples=[_KEY])]
    redacted_value: str
    source: Annotated[Literal["github", "admin", "operator"], Field(description="Who reported it first.", examples=["github"])]
    url: Annotated[str, Field(description="Where it was found; empty if nobody said.", examples=["https://github.com/octocat/x/blob/1/a"])]
    action: Annotated[
        Literal["revoked", "retired", "none", "inactive"], Field(description="What was done with the secret.", examples=["revoked"])
    ]
    reported_at: Annotated[int, Field(description="When it was reported first, in Unix seconds (UTC).", examples=[1790000000])]

    @classmethod
    def of(cls, leak: LeakedKey) -> "LeakedKeyOut":
        """Return a report as the API shows it."""
        return cls(
            id=leak.id,
            key_id=leak.key_id,
            redacted_value=leak.redacted,
            source=leak.source.value,
            url=leak.url,
            action=leak.action.value,
            reported_at=seconds(leak.reported_at),
        )


class FeedbackOut(Out):
    """Feedback about a secret, in the shape that GitHub reads."""

    token_hash: Annotated[str, Field(description="SHA-256 of the secret, in hexadecimal.", examples=["9f86d081884c7d65"])]
    token_type: Annotated[str, Field(description="The kind of secret, as the report names it.", examples=["tollway_api_key"])]
    label: Annotated[
        Literal["true_positive", "false_positive"],
        Field(
            description="Whether it is the secret of a key of this installation, valid or not, or the one before its latest rotation"
            " until that is retired.",
            examples=["true_positive"],
        ),
    ]


@router.get("/v1/organization/leaked_keys")
def list_leaked_keys(caller: Reader, plane: Plane, query: Annotated[PageQuery, Query()]) -> ListOut[LeakedKeyOut]:
    """Secrets of keys of the organization that were reported as leaked."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        page = leaked_keys.list_leaks(tx, query.window())
    return list_out(page, LeakedKeyOut.of)


@router.post("/v1/organization/leaked_keys")
def report_own_leaked_keys(caller: Writer, plane: Plane, body: LeakReport, background: BackgroundTasks) -> LeakReportedOut:
    """Report secrets of keys of the organization as leaked. What is done follows from its `leaked_key_policy`. Secrets of others are
    answered as ones that never were. Mail to the owners is sent after the answer. Answers when every gateway that is alive has confirmed,
    or names those that have not."""
    reported = [Reported(secret, body.url) for secret in body.secrets]
    reporter = _reporter(plane, LeakSource.OPERATOR if caller.is_operator else LeakSource.ADMIN)
    with plane.database.tenant(caller.organization_id) as tx:
        found = leaked_keys.report_own(tx, reported, reporter)
    leaked_keys.log_found(found, plane.log)
    background.add_task(_tell, plane, found)
    return LeakReportedOut(secrets=[_secret_out(each) for each in found], pending_nodes=_confirm(plane, found))


@router.post("/v1/platform/leaked_keys")
def report_leaked_keys(_caller: OperatorWriter, plane: Plane, body: LeakReport, background: BackgroundTasks) -> LeakReportedOut:
    """Report secrets as leaked, of whichever organization they are. What is done follows from the `leaked_key_policy` of each. A secret of
    the platform or of a gateway is an alarm in the log, and is not ended."""
    with plane.database.platform():
        pass  # the report is recorded for the platform too, whosever the keys are
    reported = [Reported(secret, body.url) for secret in body.secrets]
    reporter = _reporter(plane, LeakSource.OPERATOR)
    known, found = leaked_keys.report_any(plane.database, lambda _target: plane.database, reported, reporter, plane.log)
    leaked_keys.log_found(found, plane.log)
    background.add_task(_tell, plane, found)
    secrets = [_secret_out(each, is_known=is_known) for each, is_known in zip(found, known, strict=True)]
    return LeakReportedOut(secrets=secrets, pending_nodes=_confirm(plane, found))


@router.post(GITHUB_PATH, dependencies=[Depends(public)], response_model=list[FeedbackOut], responses=_REFUSALS)
async def report_leaked_keys_by_github(plane: Plane, request: Request) -> Response:
    """Take a report of GitHub's secret scanning: an array of objects with `token`, `type` and `url`, signed with a key of GitHub's that the
    headers `Github-Public-Key-Identifier` and `Github-Public-Key-Signature` name. 404 where no reports are taken."""
    if plane.github_reports is None:
        raise Fault(RESOURCE_UNKNOWN)
    body = await routes.read_body(request)
    if len(body) > BODY_BYTES_MAX:
        raise Fault(BODY_TOO_LARGE)
    headers = request.headers
    identifier, signature = headers.get("github-public-key-identifier", ""), headers.get("github-public-key-signature", "")
    if not identifier or not signature:
        raise Fault(SIGNATURE_INVALID)
    await plane.github_reports.verify(identifier, signature, body)
    matches = github_reports.read_matches(routes.read_json(body, headers))
    known, findings = await run_in_threadpool(_report_matches, plane, request, matches)
    feedback = [_feedback(match, is_known=is_known) for match, is_known in zip(matches, known, strict=True)]
    leaked_keys.log_found(findings, plane.log)
    return JSONResponse(feedback, background=BackgroundTask(_tell, plane, findings))


async def _tell(plane: ControlPlane, findings: Sequence[Finding | None]) -> None:
    if any(finding is not None and finding.recipients for finding in findings):
        await to_thread.run_sync(leaked_keys.notify_owners, plane.database, findings, plane.mail, plane.log, limiter=_NOTIFIERS)


def _report_matches(plane: ControlPlane, request: Request, matches: Sequence[GithubMatch]) -> tuple[list[bool], list[Finding | None]]:
    address = "" if request.client is None else request.client.host
    actor = Actor(kind=ActorKind.SCANNER, id="github", address=address, request_id=request.scope["tollway.request_id"])

    def audited(target: Target) -> Database:
        operation = AuditedOperation(event=_EVENT, operation="report_leaked_keys_by_github", actor=actor, target=target)
        return plane.database.recording(audit.record_in(operation, new_id=plane.new_id, now=plane.now()))

    reported = [Reported(match.token, match.url or "") for match in matches]
    return leaked_keys.report_any(plane.database, audited, reported, _reporter(plane, LeakSource.GITHUB), plane.log)


def _reporter(plane: ControlPlane, source: LeakSource) -> Reporter:
    return Reporter(source=source, peppers=plane.peppers, new_id=plane.new_id, now=plane.now())


def _secret_out(finding: Finding | None, *, is_known: bool = False) -> ReportedSecretOut:
    if finding is None:
        return ReportedSecretOut(is_known=is_known, key_id=None, organization_id=None, action=None)
    leak = finding.leak
    return ReportedSecretOut(is_known=True, key_id=leak.key_id, organization_id=leak.organization_id, action=leak.action.value)


def _confirm(plane: ControlPlane, findings: Sequence[Finding | None]) -> list[str]:
    versions = [each.version for each in findings if each is not None and each.version is not None]
    return publish.confirm(plane.database, plane.publications, max(versions, default=None), plane.now())


def _feedback(match: GithubMatch, *, is_known: bool) -> dict[str, str]:
    label = "true_positive" if is_known else "false_positive"
    return {"token_hash": hashlib.sha256(match.token.encode()).hexdigest(), "token_type": match.type, "label": label}
