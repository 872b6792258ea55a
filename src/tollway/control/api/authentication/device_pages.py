"""The page on which a person approves a login of the command line (RFC 8628, section 3.3)."""

import functools
from typing import Annotated

from fastapi import Query
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from tollway.control.api.authentication import pages
from tollway.control.api.authentication.pages import SomebodySignedIn, get_email, get_live, make_form_token, read_form, render
from tollway.control.api.routes import Plane
from tollway.control.authentication import device_login
from tollway.control.identity.access import Tenant
from tollway.control.languages.texts import mark
from tollway.control.plane import ControlPlane
from tollway.domain.faults import PARAMETER_INVALID
from tollway.domain.keys import Operator

router = pages.router()

DEVICE_PATH = "/device"

_UNKNOWN = mark("There is no login with this code. It has expired, or it is mistyped.")
_APPROVED = (mark("Approved"), mark("The command line is logged in as you. You can close this page."))
_DENIED = (mark("Denied"), mark("The login was denied."))

_COMMAND = Markup("<code>tollway login</code>")
"""The command that shows the code."""

Code = Annotated[str, Query(max_length=64)]


@router.get(DEVICE_PATH, include_in_schema=False)
def show_device(caller: SomebodySignedIn, plane: Plane, request: Request, user_code: Code = "") -> Response:
    """The form for the code. A code in the address only fills it in, so that no link approves anything."""
    return _ask(plane, request, caller, user_code)


@router.post(DEVICE_PATH, include_in_schema=False)
async def find_device(caller: SomebodySignedIn, plane: Plane, request: Request) -> Response:
    """Show what would log in by a code."""
    form = await read_form(plane, request, ("user_code",))
    address = "" if request.client is None else request.client.host
    found = await run_in_threadpool(device_login.find_pending, plane, caller.key_id, address, form["user_code"])
    if found is None:
        return _ask(plane, request, caller, form["user_code"][:64], error=_UNKNOWN, status=PARAMETER_INVALID.status)
    return render(
        request,
        "device_decision.html",
        token_of_form=make_form_token(plane, request),
        login=found,
        email=get_email(caller),
        is_operator=isinstance(caller, Operator),
        command=_COMMAND,
    )


def _ask(
    plane: ControlPlane, request: Request, caller: Tenant | Operator, user_code: str, *, error: str = "", status: int = 200
) -> Response:
    """Return the form for the code, with a code filled in."""
    token, email = make_form_token(plane, request), get_email(caller)
    return render(
        request, "device.html", status=status, error=error, token_of_form=token, user_code=user_code, email=email, command=_COMMAND
    )


@router.post(f"{DEVICE_PATH}/decision", include_in_schema=False)
async def decide_device(caller: SomebodySignedIn, plane: Plane, request: Request) -> Response:
    """Approve or deny the login."""
    form = await read_form(plane, request, ("user_code", "decision"))
    is_approved = form["decision"] == "approve"
    if isinstance(caller, Operator):
        decide = functools.partial(device_login.decide_as_operator, plane, caller)
    else:
        decide = functools.partial(device_login.decide, plane, get_live(caller))
    was_pending = await run_in_threadpool(decide, form["user_code"], is_approved=is_approved)
    if not was_pending:
        return render(request, "message.html", status=PARAMETER_INVALID.status, title=pages.REFUSED, text=_UNKNOWN)
    title, text = _APPROVED if is_approved else _DENIED
    return render(request, "message.html", title=title, text=text)
