"""Pages on which people sign in and out: by password, by a code of their authenticator app, by a one-time link, by an invitation."""

from importlib.resources import files
from typing import Annotated

from fastapi import Depends, Query
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from tollway.control.api.authentication import pages
from tollway.control.api.authentication.operator_links import PATH as OPERATOR_LINK_PATH
from tollway.control.api.authentication.pages import choose_path, find_visitor, keep_session, read_form, redirect, render
from tollway.control.api.identity.invites import JOIN_PATH
from tollway.control.api.routes import Plane, public
from tollway.control.authentication import operator_sign_in
from tollway.control.authentication import sign_in as flows
from tollway.control.authentication.sign_in import CodeNeeded, Refused, Visitor
from tollway.control.identity import access, credentials
from tollway.control.identity.sessions import Begun
from tollway.control.languages.texts import mark
from tollway.control.plane import ControlPlane
from tollway.domain import ids
from tollway.domain.faults import KEY_INVALID, PARAMETER_INVALID, SIGN_IN_REFUSED, Fault

router = pages.router()

LINK_PATH = "/link"
"""Path of the page of one-time links."""

OPERATOR_KEY_PATH = "/sign-in/operators/key"

DEAD_OPERATOR_LINK = mark("This link was used, or it has expired. Make another one with `tollway operators link`.")
DEAD_LINK = mark("This link was used, or it has expired. Ask for another one.")
DEAD_INVITATION = mark("This invitation was accepted or deleted, or it has expired. Ask for another one.")
WRONG_CODE = mark("The code is not right, or it was used before. If it took long, begin again.")
WRONG_KEY = mark("This is not a key of operators that may sign in.")
WRONG_NAME = mark("The name must have 1 to 256 characters.")

NAME_CHARACTERS_MAX = 256

Text = Annotated[str, Query(max_length=2048)]


STYLES = files("tollway.control.api").joinpath("page_templates/pages.css").read_bytes()


@router.get("/assets/pages.css", dependencies=[Depends(public)], include_in_schema=False)
async def show_styles() -> Response:
    """The style sheet of the pages."""
    return Response(STYLES, media_type="text/css")


@router.get("/sign-in", dependencies=[Depends(public)], include_in_schema=False)
def show_sign_in(request: Request, organization: Text = "", next: Text = "") -> Response:
    """The form for address and password."""
    known = organization if ids.is_id(ids.ORGANIZATION, organization) else ""
    return render(request, "sign_in.html", organization=known, next=choose_path(next), email="")


@router.post("/sign-in", dependencies=[Depends(public)], include_in_schema=False)
async def sign_in(plane: Plane, request: Request) -> Response:
    """Sign in by address and password."""
    form = await read_form(plane, request, ("email", "password", "organization", "next"), has_session=False)
    visitor = await run_in_threadpool(find_visitor, plane, request)
    path = choose_path(form["next"])
    organization = form["organization"].strip()
    try:
        result = await flows.sign_in_by_password(plane, form["email"].strip().lower(), form["password"], organization or None, visitor)
    except Refused as refused:
        shown = {"organization": organization[:64], "next": path, "email": form["email"][:320], "error": SIGN_IN_REFUSED.message}
        return render(request, "sign_in.html", status=401, background=_recording(plane, refused, visitor), **shown)
    return _continue(plane, request, result, path)


@router.get(OPERATOR_KEY_PATH, dependencies=[Depends(public)], include_in_schema=False)
def show_operator_key(plane: Plane, request: Request) -> Response:
    """The form for a key of operators."""
    return _show_operator_key(plane, request)


def _show_operator_key(
    plane: ControlPlane, request: Request, error: str = "", status: int = 200, background: BackgroundTask | None = None
) -> Response:
    has_provider = plane.operator_sign_in is not None
    return render(request, "operator_key.html", status=status, background=background, error=error, has_provider=has_provider)


@router.post(OPERATOR_KEY_PATH, dependencies=[Depends(public)], include_in_schema=False)
async def sign_in_with_operator_key(plane: Plane, request: Request) -> Response:
    """Sign in as an operator, by a key of operators."""
    form = await read_form(plane, request, ("key",), has_session=False)
    visitor = await run_in_threadpool(find_visitor, plane, request)
    try:
        begun = await run_in_threadpool(operator_sign_in.enter_with_key, plane, form["key"].strip(), visitor)
    except Refused as refused:
        return _show_operator_key(plane, request, WRONG_KEY, 401, _recording(plane, refused, visitor))
    return keep_session(plane, request, redirect("/console/platform"), begun.secret)


@router.get(OPERATOR_LINK_PATH, dependencies=[Depends(public)], include_in_schema=False)
def show_operator_link(plane: Plane, request: Request, token: Text = "") -> Response:
    """Say that a one-time link signs an operator in. Looking at it does not use it up."""
    try:
        operator_sign_in.find_link(plane, token)
    except Refused:
        return _show_dead(request, DEAD_OPERATOR_LINK)
    return render(request, "operator_link.html", token=token)


@router.post(OPERATOR_LINK_PATH, dependencies=[Depends(public)], include_in_schema=False)
async def sign_in_with_operator_link(plane: Plane, request: Request) -> Response:
    """Sign in as an operator, by a one-time link."""
    form = await read_form(plane, request, ("token",), has_session=False)
    visitor = await run_in_threadpool(find_visitor, plane, request)
    try:
        begun = await run_in_threadpool(operator_sign_in.enter_with_link, plane, form["token"], visitor)
    except Refused as refused:
        page = _show_dead(request, DEAD_OPERATOR_LINK)
        page.background = _recording(plane, refused, visitor)
        return page
    return keep_session(plane, request, redirect("/console"), begun.secret)


@router.post("/sign-in/code", dependencies=[Depends(public)], include_in_schema=False)
async def sign_in_with_code(plane: Plane, request: Request) -> Response:
    """Sign in by the code of an authenticator app, after the password or the link."""
    form = await read_form(plane, request, ("step", "code", "next"), has_session=False)
    visitor = await run_in_threadpool(find_visitor, plane, request)
    path = choose_path(form["next"])
    try:
        begun = await run_in_threadpool(flows.sign_in_by_code, plane, form["step"], form["code"], visitor)
    except Refused as refused:
        recording = _recording(plane, refused, visitor)
        return render(request, "code.html", status=401, background=recording, step=form["step"], next=path, error=WRONG_CODE)
    return _continue(plane, request, begun, path)


@router.get(LINK_PATH, dependencies=[Depends(public)], include_in_schema=False)
def show_link(plane: Plane, request: Request, token: Text = "") -> Response:
    """Whom a one-time link signs in. Looking at it does not use it up, because programs that read mail look at every link."""
    try:
        found = flows.find_link(plane, token)
    except Refused:
        return _show_dead(request, DEAD_LINK)
    return render(request, "link.html", token=token, email=found.account.user.email)


@router.post(LINK_PATH, dependencies=[Depends(public)], include_in_schema=False)
async def sign_in_with_link(plane: Plane, request: Request) -> Response:
    """Sign in by a one-time link."""
    form = await read_form(plane, request, ("token",), has_session=False)
    visitor = await run_in_threadpool(find_visitor, plane, request)
    try:
        result = await run_in_threadpool(flows.sign_in_by_link, plane, form["token"], visitor)
    except Refused as refused:
        page = _show_dead(request, DEAD_LINK)
        page.background = _recording(plane, refused, visitor)
        return page
    return _continue(plane, request, result, "/account")


@router.get(JOIN_PATH, dependencies=[Depends(public)], include_in_schema=False)
def show_invitation(plane: Plane, request: Request, token: Text = "") -> Response:
    """The form by which an invited person joins."""
    try:
        access.identify_invitee(plane.database, plane.peppers, token.encode("ascii", "replace"), plane.now())
    except Fault as fault:
        if fault.kind is not KEY_INVALID:
            raise
        return _show_dead(request, DEAD_INVITATION)
    return render(request, "join.html", token=token, name="")


@router.post(JOIN_PATH, dependencies=[Depends(public)], include_in_schema=False)
async def join_organization(plane: Plane, request: Request) -> Response:
    """Accept an invitation, with a name and a password."""
    form = await read_form(plane, request, ("token", "name", "password"), has_session=False)
    visitor = await run_in_threadpool(find_visitor, plane, request)
    secret = form["token"].encode("ascii", "replace")
    try:
        invitee = await run_in_threadpool(access.identify_invitee, plane.database, plane.peppers, secret, plane.now())
    except Fault as fault:
        if fault.kind is not KEY_INVALID:
            raise
        return _show_dead(request, DEAD_INVITATION)
    name = " ".join(form["name"].split())
    try:
        if not 1 <= len(name) <= NAME_CHARACTERS_MAX or not name.isprintable():
            raise Fault(PARAMETER_INVALID, message=WRONG_NAME)
        credentials.require_password(form["password"], invitee.email)
    except Fault as fault:
        return render(request, "join.html", status=400, token=form["token"], name=form["name"][:NAME_CHARACTERS_MAX], error=fault.message)
    password_hash = await plane.passwords.hash(form["password"])
    begun = await run_in_threadpool(flows.join_by_invite, plane, invitee.invited_to, invitee.key_id, name, password_hash, visitor)
    return _continue(plane, request, begun, "/account")


def _continue(plane: ControlPlane, request: Request, result: Begun | CodeNeeded, path: str) -> Response:
    """Return what follows a proof: the form for the code, or the page that was wanted, with the new session."""
    if isinstance(result, CodeNeeded):
        return render(request, "code.html", step=result.step, next=path)
    return keep_session(plane, request, redirect(path), result.secret)


def _recording(plane: ControlPlane, refused: Refused, visitor: Visitor) -> BackgroundTask:
    return BackgroundTask(run_in_threadpool, flows.record_refusal, plane, refused, visitor)


def _show_dead(request: Request, text: str) -> Response:
    return render(request, "message.html", status=SIGN_IN_REFUSED.status, title=pages.REFUSED, text=text)
