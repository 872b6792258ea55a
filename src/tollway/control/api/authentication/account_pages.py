"""Pages of a person's own account: their sessions, password and authenticator app.

Whoever changes how they sign in proves anew who they are: with the password, or by a sign-in of the last minutes. A session gets another
secret then, and the other ones end.
"""

from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from tollway.control.api.authentication import pages
from tollway.control.api.authentication.pages import (
    Person,
    SomebodySignedIn,
    find_visitor,
    get_live,
    keep_session,
    make_form_token,
    read_form,
    redirect,
    render,
)
from tollway.control.api.routes import Plane
from tollway.control.authentication import sign_in as flows
from tollway.control.identity import credentials, operators, sessions
from tollway.control.identity.access import Tenant
from tollway.control.identity.credentials import Account
from tollway.control.languages.texts import mark
from tollway.control.plane import ControlPlane
from tollway.domain import one_time_codes, passwords
from tollway.domain.faults import PARAMETER_INVALID, SIGN_IN_REFUSED, STATE_CONFLICT, Fault
from tollway.domain.keys import RANDOM_BYTES, Operator
from tollway.domain.sessions import OperatorSession, Session, SessionKind, SignInMethod

router = pages.router()

PATH = "/account"
ISSUER = "Tollway"
"""Name of the account in an authenticator app."""

_KINDS = {SessionKind.BROWSER: mark("browser"), SessionKind.COMMAND_LINE: mark("command line")}
_WRONG_PASSWORD = mark("The current password is not right.")
_WRONG_CODE = mark("The code is not right.")

_SECRET = "authenticator_secret"
_PROVEN = (SignInMethod.LINK, SignInMethod.INVITE, SignInMethod.PROVIDER)
"""Sign-ins in whose first minutes a password can be set without the one before."""

_SIGN_IN_AGAIN = mark("Sign in again, and change this within 15 minutes.")


@dataclass(frozen=True, slots=True)
class ShownSession:
    """A session as the page shows it. Instants in Unix seconds. `agent`: empty where the program did not say its name."""

    id: str
    agent: str
    address: str
    kind: str
    began_at: int
    used_at: int
    is_own: bool


@router.get(PATH, include_in_schema=False)
def show_account(caller: SomebodySignedIn, plane: Plane, request: Request) -> Response:
    """The person, their roles, how they sign in, and where they are signed in."""
    return _show_operator(plane, request, caller) if isinstance(caller, Operator) else _show(plane, request, caller)


def _show_operator(plane: ControlPlane, request: Request, caller: Operator) -> Response:
    assert caller.live is not None, "only `somebody` lets callers in here"
    with plane.database.platform(write=False) as tx:
        listed = operators.list_sessions(tx, caller.key_id, plane.now())
    return render(
        request,
        "operator.html",
        token_of_form=make_form_token(plane, request),
        operator=caller.live,
        role=caller.role.name,
        sessions=[_show_session(each, caller.live.id) for each in listed],
    )


def _show(plane: ControlPlane, request: Request, caller: Tenant, error: str = "", status: int = 200) -> Response:
    live = get_live(caller)
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        held = credentials.find_credentials(tx, live.user.id)
        listed = sessions.list_sessions(tx, live.user.id, plane.now())
    return render(
        request,
        "account.html",
        status=status,
        token_of_form=make_form_token(plane, request),
        user=live.user,
        organization_id=caller.organization_id,
        grants=live.grants,
        sessions=[_show_session(each, live.session.id) for each in listed],
        has_password=held.password_hash is not None,
        needs_password=not _may_set_password(live.session, plane.now()),
        has_app=held.code_secret is not None,
        recovery_codes=len(held.recovery_digests),
        error=error,
    )


def _show_session(session: Session | OperatorSession, own_id: str) -> ShownSession:
    return ShownSession(
        id=session.id,
        agent=session.agent,
        address=session.address,
        kind=_KINDS[session.kind],
        began_at=session.created_at // 1_000_000,
        used_at=session.last_used_at // 1_000_000,
        is_own=session.id == own_id,
    )


@router.post(f"{PATH}/sessions/{{session_id}}/end", include_in_schema=False)
async def end_session(caller: SomebodySignedIn, plane: Plane, request: Request, session_id: str) -> Response:
    """End a session of one's own."""
    await read_form(plane, request, ())

    def end() -> None:
        if isinstance(caller, Operator):
            with plane.database.platform() as platform:
                operators.end_session(platform, caller.key_id, session_id)
            return
        with plane.database.tenant(caller.organization_id) as tx:
            sessions.end_session(tx, get_live(caller).user.id, session_id, own=None)

    await run_in_threadpool(end)
    return redirect(PATH)


# ---- Password -----------------------------------------------------------------------------------------------------------


def _may_set_password(session: Session, now: int) -> bool:
    return session.method in _PROVEN and session.is_recent(now)


@router.post(f"{PATH}/password", include_in_schema=False)
async def change_password(caller: Person, plane: Plane, request: Request) -> Response:
    """Set a password. All other sessions end."""
    form = await read_form(plane, request, ("current", "password"))
    live = get_live(caller)

    def read() -> str | None:
        with plane.database.tenant(caller.organization_id, write=False) as tx:
            return credentials.find_credentials(tx, live.user.id).password_hash

    stored = await run_in_threadpool(read)
    if not _may_set_password(live.session, plane.now()):
        if stored is None:
            raise Fault(STATE_CONFLICT, message=_SIGN_IN_AGAIN)
        visitor = await run_in_threadpool(find_visitor, plane, request)
        await run_in_threadpool(flows.count_password, plane, visitor, Account(caller.organization_id, live.user))
        if not await plane.passwords.verify(stored, form["current"]):
            return await run_in_threadpool(_show, plane, request, caller, _WRONG_PASSWORD, SIGN_IN_REFUSED.status)
        await run_in_threadpool(flows.take_back_address, plane, visitor.address)
    try:
        credentials.require_password(form["password"], live.user.email)
    except Fault as fault:
        return await run_in_threadpool(_show, plane, request, caller, fault.message, fault.kind.status)
    password_hash = await plane.passwords.hash(form["password"])

    def change() -> str:
        now = plane.now()
        with plane.database.tenant(caller.organization_id) as tx:
            credentials.set_password(tx, live.user.id, password_hash, before=stored, now=now)
            sessions.end_sessions(tx, live.user.id, but=live.session.id)
            return sessions.renew_secret(tx, live.session, random_bytes=plane.random_bytes(RANDOM_BYTES), pepper=plane.pepper, now=now)

    secret = await run_in_threadpool(change)
    return keep_session(plane, request, redirect(PATH), secret)


# ---- Authenticator app --------------------------------------------------------------------------------------------------


@router.get(f"{PATH}/authenticator", include_in_schema=False)
def show_authenticator(caller: Person, plane: Plane, request: Request) -> Response:
    """A new secret for an authenticator app, and the form for its first code."""
    live = get_live(caller)
    if not live.session.is_recent(plane.now()):
        raise Fault(STATE_CONFLICT, message=_SIGN_IN_AGAIN)
    return _show_secret(plane, request, caller, plane.random_bytes(one_time_codes.SECRET_BYTES), "")


def _show_secret(plane: ControlPlane, request: Request, caller: Tenant, secret: bytes, error: str, status: int = 200) -> Response:
    user = get_live(caller).user
    return render(
        request,
        "authenticator.html",
        status=status,
        token_of_form=make_form_token(plane, request),
        secret=one_time_codes.encode_secret(secret),
        address=one_time_codes.make_address(secret, user.email, ISSUER),
        sealed=plane.vault.seal_bytes(secret, context=f"{_SECRET}:{user.id}").hex(),
        error=error,
    )


@router.post(f"{PATH}/authenticator", include_in_schema=False)
async def add_authenticator(caller: Person, plane: Plane, request: Request) -> Response:
    """Set up an authenticator app by its first code, and show the recovery codes. All other sessions end."""
    form = await read_form(plane, request, ("sealed", "code"))
    live = get_live(caller)
    if not live.session.is_recent(plane.now()):
        raise Fault(STATE_CONFLICT, message=_SIGN_IN_AGAIN)
    try:
        secret = plane.vault.unseal_bytes(bytes.fromhex(form["sealed"]), context=f"{_SECRET}:{live.user.id}")
    except ValueError:
        raise Fault(PARAMETER_INVALID, message=mark("Open the page again.")) from None
    code = form["code"].replace(" ", "")

    def add() -> tuple[list[str], str]:
        now = plane.now()
        random = [plane.random_bytes(passwords.RECOVERY_BYTES) for _ in range(passwords.RECOVERY_CODES)]
        vault = plane.open_sign_in_vault(caller.organization_id)
        with plane.database.tenant(caller.organization_id) as tx:
            recovery = credentials.add_code_secret(tx, vault, live.user.id, secret, code, random, now)
            sessions.end_sessions(tx, live.user.id, but=live.session.id)
            renewed = sessions.renew_secret(tx, live.session, random_bytes=plane.random_bytes(RANDOM_BYTES), pepper=plane.pepper, now=now)
        return recovery, renewed

    try:
        recovery, renewed = await run_in_threadpool(add)
    except Fault as fault:
        if fault.kind is not PARAMETER_INVALID:
            raise
        return _show_secret(plane, request, caller, secret, fault.message, fault.kind.status)
    return keep_session(plane, request, render(request, "recovery_codes.html", codes=recovery), renewed)


@router.post(f"{PATH}/authenticator/remove", include_in_schema=False)
async def remove_authenticator(caller: Person, plane: Plane, request: Request) -> Response:
    """Remove the authenticator app, by a code of it or a recovery code."""
    form = await read_form(plane, request, ("code",))
    live = get_live(caller)
    visitor = await run_in_threadpool(find_visitor, plane, request)

    def remove() -> str | None:
        now = plane.now()
        flows.count_code(plane, visitor, live.user.id)
        vault = plane.open_sign_in_vault(caller.organization_id)
        with plane.database.tenant(caller.organization_id) as tx:
            if not credentials.use_code(tx, vault, live.user.id, form["code"], now):
                return None
            credentials.remove_code_secret(tx, live.user.id)
            return sessions.renew_secret(tx, live.session, random_bytes=plane.random_bytes(RANDOM_BYTES), pepper=plane.pepper, now=now)

    renewed = await run_in_threadpool(remove)
    if renewed is None:
        return await run_in_threadpool(_show, plane, request, caller, _WRONG_CODE, SIGN_IN_REFUSED.status)
    await run_in_threadpool(flows.take_back_address, plane, visitor.address)
    return keep_session(plane, request, redirect(PATH), renewed)
