"""The link, downward: gateways fetch the snapshot, follow its changes, and say how far they have come."""

import time
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from fastapi import Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tollway.control import publish
from tollway.control.api import routes
from tollway.control.api.authentication.tokens import TokenAnswerOut, TokenRequestIn, answer_token_request
from tollway.control.api.places import Place
from tollway.control.api.routes import Joiner, Node, Plane
from tollway.control.api.schemas import AckIn, AckOut, JoinIn, JoinOut
from tollway.control.gateways import nodes
from tollway.control.identity import access, rotation
from tollway.control.identity.access import Node as NodeCaller
from tollway.control.plane import ControlPlane
from tollway.domain import ids
from tollway.domain.faults import DATABASE_UNAVAILABLE, Blame, Fault, FaultKind

router = routes.router(tags=["link"])

NDJSON = "application/x-ndjson"

HEARTBEAT_SECONDS = 1.0
"""A node takes three missed ones for a dead line."""

FOLLOW_SECONDS_MAX = 600.0
"""After this a stream ends and the node comes back: with its key checked again, and perhaps to another control process."""

CHANGES_MAX = 500
"""Changes read at a time: one answer's worth of memory, however far behind a node is."""

SNAPSHOT_NEEDED = FaultKind(
    code="snapshot_needed",
    status=410,
    blame=Blame.PLATFORM,
    message="These changes are not kept any more, or never were: fetch the snapshot.",
)


@router.get("/v1/link/snapshot")
def read_snapshot(_caller: Node, plane: Plane) -> Response:
    """All that a gateway must know, as lines: the head, then the entries; of one instant."""
    with plane.publications.snapshot_slot(), plane.database.platform(write=False) as tx:
        chunks = publish.read_snapshot(tx)
    return Response(b"".join(chunks), media_type=NDJSON)


@router.get("/v1/link/changes")
async def read_changes(
    caller: Node, request: Request, plane: Plane, since: Annotated[int, Query(ge=0, le=2**63 - 1)], follow: bool = False
) -> Response:
    """The changes after version `since`, as lines. With `follow`, each further one as it is committed, and heartbeats.

    A heartbeat also ends an answer that is not followed. 410 where only a full snapshot can help.
    """
    first = await run_in_threadpool(_read, plane, since)
    if first is None:
        raise Fault(SNAPSHOT_NEEDED)
    if follow:
        plane.publications.refuse_if_stopping()
        place: Place = request.scope["tollway.place"]
        place.follow()
        return StreamingResponse(_follow(plane, caller, since), media_type=NDJSON)
    lines, version = first
    return Response(lines + publish.heartbeat(version), media_type=NDJSON)


@router.post("/v1/link/ack")
def acknowledge(caller: Node, plane: Plane, body: AckIn) -> AckOut:
    """Report that the calling node is alive and has applied everything up to `version`, and when it last saw which secrets."""
    access.require_own(caller, body.node_id)
    with plane.database.platform() as tx:
        gateways = publish.acknowledge(tx, body.node_id, body.version, plane.now())
        if gateways is not None and body.secret_uses:
            rotation.note_uses(tx, [each.use() for each in body.secret_uses], plane.now())
    if gateways is None:
        raise Fault(SNAPSHOT_NEEDED)
    plane.publications.notice_ack()
    return AckOut(gateways=gateways)


@router.post("/v1/link/join")
def join(caller: Joiner, plane: Plane, body: JoinIn) -> JoinOut:
    """Register a gateway under the id and with the key that it made. Its credential is a join token, which is used up by this."""
    with plane.database.platform() as tx:
        node = nodes.join(
            tx,
            caller.key_id,
            node_id=body.node_id,
            secret=body.key,
            key_id=plane.new_id(ids.KEY),
            pepper_version=plane.pepper_version,
            peppers=plane.peppers,
            now=plane.now(),
        )
    plane.log({"event": "node_joined", "node_id": node.id, "token_id": caller.key_id})
    return JoinOut(node_id=node.id, name=node.name)


@router.post("/v1/link/oauth_token")
def forward_token_request(_caller: Node, plane: Plane, body: TokenRequestIn) -> TokenAnswerOut:
    """Answer a request for an access token that reached a gateway."""
    status, answer = answer_token_request(
        plane, body.body.encode("latin-1", "replace"), body.content_type.encode("latin-1", "replace").decode("latin-1"), body.authorization
    )
    return TokenAnswerOut(status=status, body=msgspec.json.encode(answer).decode())


def _read(plane: ControlPlane, since: int) -> tuple[bytes, int] | None:
    """The lines of the next changes after `since`, and the version they reach; None where a snapshot is needed."""
    with plane.database.platform(write=False) as tx:
        changes = publish.find_changes(tx, since, CHANGES_MAX)
    if changes is None:
        return None
    return b"".join(body + b"\n" for _, body in changes), changes[-1][0] if changes else since


def _read_as(plane: ControlPlane, caller: NodeCaller, since: int) -> tuple[bytes, int] | None:
    """As `_read`; None also once the key of `caller` may not act any more."""
    return _read(plane, since) if access.is_node_valid(plane.database, caller, plane.now()) else None


async def _follow(plane: ControlPlane, caller: NodeCaller, since: int) -> AsyncIterator[bytes]:
    """Yield lines until the process stops, the connection is cut, the key of the node is revoked, or FOLLOW_SECONDS_MAX. The stream ends
    early, too, if the changes after `since` are not kept any more, or if the database is unavailable: the status line has been sent, so
    the node learns the reason from its next request."""
    version, ends = since, time.monotonic() + FOLLOW_SECONDS_MAX
    with plane.publications.following() as advanced:
        while not plane.publications.stopping and time.monotonic() < ends:
            advanced.clear()  # before the look, so that what is committed during it is not slept through
            try:
                read = await run_in_threadpool(_read_as, plane, caller, version)
            except Fault as fault:
                if fault.kind is not DATABASE_UNAVAILABLE:
                    raise
                return
            if read is None:
                return
            lines, version = read
            if lines:
                yield lines
                continue
            yield publish.heartbeat(version)
            await publish.wait_for(advanced, HEARTBEAT_SECONDS)
