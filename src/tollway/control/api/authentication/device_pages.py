"""The page on which a person approves a login of the command line (RFC 8628, section 3.3)."""

import functools
from typing import Annotated

from fastapi import Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from tollway.control.api.authentication import pages
from tollway.control.api.authentication.pages import SomebodySignedIn, get_email, get_live, make_form_token, read_form, render
from tollway.control.api.routes import Plane
from tollway.control.authentication import device_login
from tollway.domain.faults import PARAMETER_INVALID
from tollway.domain.keys import Operator

router = pages.router()

DEVICE_PATH = "/device"

_UNKNOWN = "There is no login with this code. It has expired, or it is mistyped."

Code = Annotated[str, Query(max_length=64)]


@router.get(DEVICE_PATH, include_in_schema=False)
def show_device(caller: SomebodySignedIn, plane: Plane, request: Request, user_code: Code = "") -> Response:
    """The form for the code. A code in the address only fills it in, so that no link approves anything."""
    return render("device.html", form_token=make_form_token(plane, request), user_code=user_code, email=get_email(caller), error="")


@router.post(DEVICE_PATH, include_in_schema=False)
async def find_device(caller: SomebodySignedIn, plane: Plane, request: Request) -> Response:
    """Show what would log in by a code."""
    form = await read_form(plane, request, ("user_code",))
    address = "" if request.client is None else request.client.host
    found = await run_in_threadpool(device_login.find_pending, plane, caller.key_id, address, form["user_code"])
    token = make_form_token(plane, request)
    if found is None:
        return render(
            "device.html",
            status=PARAMETER_INVALID.status,
            form_token=token,
            user_code=form["user_code"][:64],
            email=get_email(caller),
            error=_UNKNOWN,
        )
    return render(
        "device_decision.html",
        form_token=token,
        login=found,
        email=get_email(caller),
        duration="12 hours" if isinstance(caller, Operator) else "30 days",
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
        return render("message.html", status=PARAMETER_INVALID.status, title="That did not work", text=_UNKNOWN)
    text = "The command line is logged in as you. You can close this page." if is_approved else "The login was denied."
    return render("message.html", title="Approved" if is_approved else "Denied", text=text)
