"""The way to the identity provider of an organization and back (OpenID Connect)."""

from typing import Annotated

from fastapi import Depends, Query
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from tollway.control.api.authentication import pages
from tollway.control.api.authentication.pages import choose_path, find_visitor, get_origin, keep_session, redirect, render
from tollway.control.api.places import Place
from tollway.control.api.routes import Plane, ignore_unknown_parameters, public
from tollway.control.authentication import provider_sign_in as flows
from tollway.control.authentication import sign_in
from tollway.control.authentication.provider_sign_in import Returned
from tollway.control.authentication.sign_in import Refused

router = pages.router()

START_PATH = "/sign-in/{connection_id}"
CALLBACK_PATH = f"{START_PATH}/callback"

Text = Annotated[str | None, Query(max_length=4096)]


@router.get(START_PATH, dependencies=[Depends(public)], include_in_schema=False)
async def start_provider_sign_in(plane: Plane, request: Request, connection_id: str, next: Text = None) -> Response:
    """Lead to the identity provider."""
    connection = await run_in_threadpool(flows.find_connection, plane, connection_id)
    origin = get_origin(plane, request)
    place: Place = request.scope["tollway.place"]
    place.give_back()  # while the provider is waited for
    begun = await flows.begin(plane, connection, _callback(origin, connection_id), choose_path(next or ""))
    place.take()
    answer = Response(status_code=303, headers={**pages.HEADERS, "location": begun.url})
    return pages.keep_flow(plane, request, answer, begun.sealed)


@router.get(CALLBACK_PATH, dependencies=[Depends(public), Depends(ignore_unknown_parameters)], include_in_schema=False)
async def finish_provider_sign_in(
    plane: Plane,
    request: Request,
    connection_id: str,
    code: Text = None,
    state: Text = None,
    iss: Text = None,
    error: Text = None,
) -> Response:
    """Come back from the identity provider, which may add parameters of its own."""
    connection = await run_in_threadpool(flows.find_connection, plane, connection_id)
    visitor = await run_in_threadpool(find_visitor, plane, request)
    returned = Returned(code, state, iss, error, pages.find_flow(plane, request))
    origin = get_origin(plane, request)
    try:
        place: Place = request.scope["tollway.place"]
        place.give_back()  # while the provider is waited for
        proven = await flows.redeem(plane, connection, returned, _callback(origin, connection_id))
        place.take()
        begun = await run_in_threadpool(flows.enter, plane, connection, proven, visitor)
    except Refused as refused:
        recording = BackgroundTask(run_in_threadpool, sign_in.record_refusal, plane, refused, visitor)
        text = "Your organization's identity provider did not sign you in. Begin again, or ask your administrator."
        return render("message.html", status=refused.kind.status, background=recording, title="That did not work", text=text)
    return keep_session(plane, request, redirect(proven.path), begun.secret)


def _callback(origin: str, connection_id: str) -> str:
    """Return the exact address that is registered at the provider, another one for each connection."""
    return origin + CALLBACK_PATH.format(connection_id=connection_id)
