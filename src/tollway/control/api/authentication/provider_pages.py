"""The way to an identity provider and back, and the sign-out (OpenID Connect): of people of organizations, and of operators."""

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Query
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from tollway.control.api.authentication import pages
from tollway.control.api.authentication.pages import (
    SomebodySignedIn,
    choose_path,
    find_visitor,
    get_live,
    get_origin,
    keep_session,
    read_form,
    redirect,
    render,
)
from tollway.control.api.places import Place
from tollway.control.api.routes import Plane, ignore_unknown_parameters, public
from tollway.control.authentication import operator_sign_in, provider_flow, provider_sign_in, sign_in
from tollway.control.authentication.provider_flow import ProviderClient, Returned
from tollway.control.authentication.sign_in import Refused
from tollway.control.identity.access import Tenant
from tollway.control.identity.operators import BegunSession
from tollway.control.identity.sessions import Begun
from tollway.control.languages.texts import mark
from tollway.control.plane import ControlPlane
from tollway.domain.faults import Fault
from tollway.domain.keys import Operator
from tollway.domain.sessions import SignInMethod

router = pages.router()

START_PATH = "/sign-in/{connection_id}"
CALLBACK_PATH = f"{START_PATH}/callback"
SIGNED_OUT_PATH = "/signed-out"
"""Path to which a provider leads back after the sign-out there."""

_NOT_SIGNED_IN = mark("The identity provider did not sign you in. Begin again, or ask your administrator.")

Text = Annotated[str | None, Query(max_length=4096)]


@router.get(START_PATH, dependencies=[Depends(public)], include_in_schema=False)
async def start_provider_sign_in(plane: Plane, request: Request, connection_id: str, next: Text = None) -> Response:
    """Lead to the identity provider."""
    client = await run_in_threadpool(_find_client, plane, connection_id)
    origin = get_origin(plane, request)
    place: Place = request.scope["tollway.place"]
    place.give_back()  # while the provider is waited for
    begun = await provider_flow.begin(plane, client, _callback(origin, connection_id), choose_path(next or ""))
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
    is_operator = connection_id == operator_sign_in.CLIENT_ID
    connection = None if is_operator else await run_in_threadpool(provider_sign_in.find_connection, plane, connection_id)
    client = operator_sign_in.make_client(plane) if connection is None else provider_sign_in.make_client(plane, connection)
    visitor = await run_in_threadpool(find_visitor, plane, request)
    returned = Returned(code, state, iss, error, pages.find_flow(plane, request))
    origin = get_origin(plane, request)
    try:
        place: Place = request.scope["tollway.place"]
        place.give_back()  # while the provider is waited for
        proven = await provider_flow.redeem(plane, client, returned, _callback(origin, connection_id))
        place.take()
        begun: Begun | BegunSession
        if connection is None:
            begun = await run_in_threadpool(operator_sign_in.enter, plane, proven, visitor)
        else:
            begun = await run_in_threadpool(provider_sign_in.enter, plane, connection, proven, visitor)
    except Refused as refused:
        recording = BackgroundTask(run_in_threadpool, sign_in.record_refusal, plane, refused, visitor)
        return render(request, "message.html", status=refused.kind.status, background=recording, title=pages.REFUSED, text=_NOT_SIGNED_IN)
    return keep_session(plane, request, redirect(proven.path), begun.secret)


def _find_client(plane: ControlPlane, connection_id: str) -> ProviderClient:
    """Return the client of an enabled connection, or that of operators. Raises SIGN_IN_REFUSED."""
    if connection_id == operator_sign_in.CLIENT_ID:
        return operator_sign_in.make_client(plane)
    return provider_sign_in.make_client(plane, provider_sign_in.find_connection(plane, connection_id))


def _callback(origin: str, connection_id: str) -> str:
    """Return the exact address that is registered at the provider, another one for each connection."""
    return origin + CALLBACK_PATH.format(connection_id=connection_id)


# ---- Sign-out -----------------------------------------------------------------------------------------------------------


@router.post("/sign-out", include_in_schema=False)
async def sign_out(caller: SomebodySignedIn, plane: Plane, request: Request) -> Response:
    """End the session here, and lead to the sign-out at the identity provider that began it, if there is one."""
    await read_form(plane, request, ())
    ended = await run_in_threadpool(_end_session, plane, caller)
    url = None
    if ended is not None:
        place: Place = request.scope["tollway.place"]
        place.give_back()  # while the provider is waited for
        url = await provider_flow.find_sign_out(plane, ended.client, ended.id_token, get_origin(plane, request) + SIGNED_OUT_PATH)
        place.take()
    return pages.forget_session(plane, request, render(request, "signed_out.html", provider_url=url))


@router.get(SIGNED_OUT_PATH, dependencies=[Depends(public), Depends(ignore_unknown_parameters)], include_in_schema=False)
async def show_signed_out(request: Request) -> Response:
    """The page to which a provider leads back after the sign-out there."""
    return render(request, "signed_out.html", provider_url=None)


@dataclass(frozen=True, slots=True)
class _Ended:
    """A session that ended: the provider that began it, and the ID token of that sign-in, if it was kept."""

    client: ProviderClient
    id_token: str | None = field(repr=False)


def _end_session(plane: ControlPlane, caller: Tenant | Operator) -> _Ended | None:
    """End the session of a caller. Return what the sign-out at the provider needs; None if no provider began it that can be asked."""
    if isinstance(caller, Operator):
        id_token = operator_sign_in.end_own_session(plane, caller)
        if caller.live is None or caller.live.method is SignInMethod.KEY:
            return None
        return _Ended(operator_sign_in.make_client(plane), id_token)
    live = get_live(caller)
    proof = sign_in.end_own_session(plane, live)
    if proof is None:
        return None
    try:
        client = _find_client(plane, proof.connection_id)
    except Fault:  # it was disabled or deleted since
        return None
    return _Ended(client, provider_flow.unseal_id_token(plane, proof.id_token, live.session.id))
