"""Parts that the pages for people share: sessions in a cookie, forms, and how pages are rendered.

Pages are HTML without scripts. The cookie of a session is read here and nowhere else: the REST API never takes it. A form is accepted if
the browser says that it was sent from this very origin (`Sec-Fetch-Site`, `Origin`), and if it holds the token of the session, where there
is one. The address of this site is `control.console_url`, or else `control.public_url`; without both only loopback is known, so that no
`Host` header of a client's decides where a link leads.

A page is in the language and the theme that its viewer chose in the console, or in the language that their browser asks for. Its texts are
in the same catalogues as those of the console.
"""

import functools
import hmac
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote

import jinja2
from fastapi import APIRouter, Depends
from fastapi.exceptions import RequestValidationError
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response

from tollway.control.api.places import Place
from tollway.control.api.routes import Access, ApiRoute, read_body
from tollway.control.authentication.sign_in import Visitor
from tollway.control.identity import access, operators, sessions
from tollway.control.identity.access import Tenant
from tollway.control.identity.sessions import LiveSession
from tollway.control.languages import times
from tollway.control.languages.texts import choose_language, make_templates, mark
from tollway.control.plane import ControlPlane
from tollway.domain import keys
from tollway.domain.faults import (
    ADMINISTRATION_RATE_LIMITED,
    BODY_TOO_LARGE,
    DATABASE_UNAVAILABLE,
    FORM_REFUSED,
    GRANT_EXCEEDS_GRANTOR,
    INTERNAL,
    KEY_ENCRYPTION_UNAVAILABLE,
    MEDIA_TYPE_UNSUPPORTED,
    NAME_TAKEN,
    NAMES_BUSY,
    OVERLOADED,
    PARAMETER_INVALID,
    PARAMETER_MISSING,
    PROVIDER_UNAVAILABLE,
    QUOTA_EXCEEDED,
    RENDERING_BUSY,
    REQUEST_INVALID,
    RESOURCE_UNKNOWN,
    SCOPE_INSUFFICIENT,
    SESSION_MISSING,
    SIGN_IN_REFUSED,
    SIGN_INS_EXCEEDED,
    STATE_CONFLICT,
    WEBHOOK_UNREACHABLE,
    Fault,
    FaultKind,
)
from tollway.domain.keys import Operator
from tollway.domain.sessions import LIFETIMES, SessionKind
from tollway.wire.retry_after import retry_headers

HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "same-origin",  # `no-referrer` would make browsers send `Origin: null` with our own forms
}
"""Headers of every page: it loads our style sheet, sends forms to us, and runs nothing."""

FLOW_SECONDS = 600
"""Time for which a browser keeps what it must bring back from an identity provider."""

FORM_BYTES_MAX = 16_384
FIELDS_MAX = 32

_FORM = "application/x-www-form-urlencoded"
_BOUNDARY = re.compile(r'multipart/form-data;\s*boundary="?([0-9A-Za-z\'()+_,./:=?-]{1,70})"?', re.IGNORECASE)
_DISPOSITION = re.compile(rb'\r\nContent-Disposition: form-data; name="(\w{1,64})"', re.IGNORECASE)
_LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?")
_PATH = re.compile(r"/(?![/\\])[A-Za-z0-9/_.~%?&=-]{0,1024}")

LOOK_COOKIE = "tollway_look"
"""Cookie with the language and the theme that a viewer chose in the console."""

THEMES = ("system", "light", "dark")

REFUSED = mark("That did not work")
"""Title of the page that a fault becomes."""

REFUSALS: Sequence[FaultKind] = (
    ADMINISTRATION_RATE_LIMITED,
    BODY_TOO_LARGE,
    DATABASE_UNAVAILABLE,
    FORM_REFUSED,
    GRANT_EXCEEDS_GRANTOR,
    INTERNAL,
    KEY_ENCRYPTION_UNAVAILABLE,
    NAMES_BUSY,
    NAME_TAKEN,
    OVERLOADED,
    PARAMETER_INVALID,
    PARAMETER_MISSING,
    PROVIDER_UNAVAILABLE,
    QUOTA_EXCEEDED,
    RENDERING_BUSY,
    REQUEST_INVALID,
    RESOURCE_UNKNOWN,
    SCOPE_INSUFFICIENT,
    SESSION_MISSING,
    SIGN_INS_EXCEEDED,
    SIGN_IN_REFUSED,
    STATE_CONFLICT,
    WEBHOOK_UNREACHABLE,
)
"""Faults whose own texts are in the catalogues: those that pages meet. What a Fault says instead is English unless it is marked."""


# ---- Pages --------------------------------------------------------------------------------------------------------------


class PageRoute(ApiRoute):
    """A route whose refusals are pages, or lead to the page of the sign-in where a session is missing."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of `ApiRoute`, with faults as pages."""
        answer = super().get_route_handler()

        async def show(request: Request) -> Response:
            try:
                return await answer(request)
            except RequestValidationError:
                fault = Fault(REQUEST_INVALID)
            except Fault as raised:
                fault = raised
            place: Place = request.scope["tollway.place"]
            await place.wait_to_refuse(fault)
            if fault.kind is SESSION_MISSING and request.method == "GET":
                query = request.url.query
                return redirect(f"/sign-in?next={quote(request.url.path + (f'?{query}' if query else ''), safe='')}")
            request.scope["tollway.fault"] = fault
            return self.show_fault(request, fault)

        return show

    def show_fault(self, request: Request, fault: Fault) -> Response:
        """Return the page that a fault of `request` becomes."""
        return render_fault(request, fault)


def router() -> APIRouter:
    """An empty router whose routes are pages."""
    return APIRouter(route_class=PageRoute, redirect_slashes=False)


def choose_look(request: Request) -> tuple[str, str]:
    """Return the language and the theme of a page: those that its viewer chose, or else the language that the browser asks for."""
    language, _, theme = (find_cookie(request, LOOK_COOKIE) or "").partition(".")
    chosen = choose_language(language, request.headers.get("accept-language", ""))
    return chosen, theme if theme in THEMES else THEMES[0]


@functools.cache
def _get_templates(language: str) -> jinja2.Environment:
    """Return the templates as they are written in one language."""
    environment = make_templates("tollway.control.api", "page_templates", language)
    environment.filters["time"] = functools.partial(times.show_time, language)
    return environment


def render(
    request: Request, template: str, *, status: int = 200, background: BackgroundTask | None = None, error: str = "", **values: object
) -> Response:
    """Return a page. Every value is escaped. `error`: why a form was refused; it is shown in the language of the page if the catalogue has
    it."""
    language, theme = choose_look(request)
    text = _get_templates(language).get_template(template).render(language=language, theme=theme, error=error, **values)
    return Response(text, status, HEADERS, "text/html", background)


def render_fault(request: Request, fault: Fault) -> Response:
    """Return the page that a fault becomes."""
    page = render(request, "message.html", status=fault.kind.status, title=REFUSED, text=fault.message)
    page.headers.update(retry_headers(fault))
    return page


def redirect(path: str) -> Response:
    """Return the answer that leads to a path of this site."""
    return Response(status_code=303, headers={**HEADERS, "location": path})


def choose_path(text: str, default: str = "/account") -> str:
    """Return the path of this site that a person is led to after the sign-in: `text` if it is one, so that nobody is led to another site by
    a link to ours."""
    return text if _PATH.fullmatch(text) else default


# ---- Addresses and cookies ----------------------------------------------------------------------------------------------


def get_origin(plane: ControlPlane, request: Request) -> str:
    """Return the origin of this site: that of `control.console_url` or `control.public_url`, or loopback. Raises STATE_CONFLICT where it is
    not known."""
    origin = find_origin(plane, request)
    if origin is None:
        raise Fault(STATE_CONFLICT, message="The address of this site is not set: control.console_url or control.public_url.")
    return origin


def find_origin(plane: ControlPlane, request: Request) -> str | None:
    """As `get_origin`; None where it is not known. A listener on loopback is known under each name of loopback, by its port."""
    own, host = plane.page_origin, _LOOPBACK.fullmatch(request.headers.get("host", ""))
    if own is not None and host is not None:
        same = _LOOPBACK.fullmatch(own.removeprefix("http://"))
        return own if same is None or same[2] != host[2] else f"http://{host[0]}"
    return own or find_loopback(request)


def find_loopback(request: Request) -> str | None:
    """Return the origin that a client on this machine asks; None for any other `Host`."""
    host = _LOOPBACK.fullmatch(request.headers.get("host", ""))
    return None if host is None else f"http://{host[0]}"


def _cookie_name(origin: str) -> str:
    """Return the name of the cookie. With `__Host-` browsers accept it over TLS and from this host alone (RFC 6265bis, section 4.1.3)."""
    return "__Host-tollway_session" if origin.startswith("https:") else "tollway_session"


def find_secret(plane: ControlPlane, request: Request) -> str | None:
    """Return the secret of the session that the browser presents; None without one, or with several, of which another site of the domain
    may have set one."""
    return find_cookie(request, _cookie_name(get_origin(plane, request)))


def find_cookie(request: Request, name: str) -> str | None:
    """Return the value of a cookie; None without it, or where there are several of that name."""
    pairs = (pair.strip().partition("=") for line in request.headers.getlist("cookie") for pair in line.split(";"))
    found = [value for each, _, value in pairs if each == name]
    return found[0] if len(found) == 1 else None


def keep_flow(plane: ControlPlane, request: Request, answer: Response, sealed: str) -> Response:
    """Let the browser keep what it must bring back from an identity provider."""
    origin = get_origin(plane, request)
    _set_cookie(answer, _flow_name(origin), origin, sealed, FLOW_SECONDS)
    return answer


def find_flow(plane: ControlPlane, request: Request) -> str | None:
    """Return what the browser kept while its person was at an identity provider."""
    return find_cookie(request, _flow_name(get_origin(plane, request)))


def _flow_name(origin: str) -> str:
    return _cookie_name(origin).replace("session", "flow")


def keep_session(plane: ControlPlane, request: Request, answer: Response, secret: str) -> Response:
    """Let the browser keep the secret of a session."""
    origin = get_origin(plane, request)
    if origin.startswith("http:") and _LOOPBACK.fullmatch(origin.removeprefix("http://")) is None:
        raise Fault(
            STATE_CONFLICT,
            message="People sign in over HTTPS only: control.console_url, or else control.public_url, must be an https address.",
        )
    _set_cookie(answer, _cookie_name(origin), origin, secret, LIFETIMES[SessionKind.BROWSER].seconds)
    return answer


def forget_session(plane: ControlPlane, request: Request, answer: Response) -> Response:
    """Let the browser forget the secret of a session."""
    origin = get_origin(plane, request)
    _set_cookie(answer, _cookie_name(origin), origin, "", 0)
    return answer


def _set_cookie(answer: Response, name: str, origin: str, value: str, seconds: int) -> None:
    secure = "; Secure" if origin.startswith("https:") else ""
    answer.headers["set-cookie"] = f"{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}"


# ---- Sessions and forms -------------------------------------------------------------------------------------------------


def _check_session(plane: ControlPlane, request: Request) -> Tenant:
    if request.method not in ("GET", "HEAD"):
        require_own_origin(plane, request)
    return access.identify_person(plane.database, plane.peppers, find_secret(plane, request), plane.now())


def read_credential(plane: ControlPlane, request: Request) -> bytes:
    """Return the bytes by which a request of a browser says who sends it."""
    return (find_secret(plane, request) or "").encode("latin-1")


def _check_somebody(plane: ControlPlane, request: Request) -> Tenant | Operator:
    if request.method not in ("GET", "HEAD"):
        require_own_origin(plane, request)
    operator = find_operator(plane, request)
    return operator or access.identify_person(plane.database, plane.peppers, find_secret(plane, request), plane.now())


def find_operator(plane: ControlPlane, request: Request) -> Operator | None:
    """Return the operator whose session the browser presents; None without one. Blocks."""
    secret = find_secret(plane, request)
    if secret is None or not keys.is_operator_session_secret(secret):
        return None
    return operators.find_by_secret(plane.database, plane.peppers, plane.operator_issuer, secret, plane.now())


session = Access("session", _check_session, read_credential=read_credential)
"""Access of a route for a person who signed in. The caller is a `Tenant`, as of a key of theirs, with its session in `live`."""

Person = Annotated[Tenant, Depends(session)]

somebody = Access("session", _check_somebody, read_credential=read_credential)
"""Access of a route for a person who signed in, or an operator who did. The caller is a `Tenant` or an `Operator`, with the session in
`live`."""

SomebodySignedIn = Annotated[Tenant | Operator, Depends(somebody)]


def get_live(caller: Tenant) -> LiveSession:
    """Return the session of a caller of a page."""
    assert caller.live is not None, "only `session` lets callers in here"
    return caller.live


def get_email(caller: Tenant | Operator) -> str:
    """Return the address of a caller of a page; of an operator whose provider said none, the name."""
    if isinstance(caller, Operator):
        assert caller.live is not None, "only `somebody` lets callers in here"
        return caller.live.email or caller.live.name
    return get_live(caller).user.email


def find_visitor(plane: ControlPlane, request: Request) -> Visitor:
    """Return who sends a request, with the session that they have already. Blocks."""
    secret = find_secret(plane, request)
    before = None if secret is None else sessions.find_session(plane.database, plane.peppers, secret, plane.now())
    address = "" if request.client is None else request.client.host
    operator = find_operator(plane, request)
    return Visitor(address, request.headers.get("user-agent", ""), request.scope["tollway.request_id"], before, operator)


def make_form_token(plane: ControlPlane, request: Request) -> str:
    """Return the token that a form of this session must hold. It follows from the secret, so that only pages of the session know it."""
    secret = find_secret(plane, request) or ""
    return hmac.digest(secret.encode("latin-1"), b"tollway form", "sha256").hex()


async def read_form(plane: ControlPlane, request: Request, names: Iterable[str], *, has_session: bool = True) -> dict[str, str]:
    """Return the fields of a form, empty where they are missing. Raises FORM_REFUSED unless a page of this site, and of this session, sent
    it; MEDIA_TYPE_UNSUPPORTED, BODY_TOO_LARGE, REQUEST_INVALID."""
    require_own_origin(plane, request)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        raise Fault(MEDIA_TYPE_UNSUPPORTED, message=mark("The form must be sent as browsers send it."))
    body = await read_body(request)
    if len(body) > FORM_BYTES_MAX:
        raise Fault(BODY_TOO_LARGE)
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=FIELDS_MAX)
    except ValueError:
        raise Fault(REQUEST_INVALID) from None
    fields = dict(pairs)
    allowed = {*names, "form_token"}
    if len(fields) < len(pairs) or fields.keys() - allowed or any("\0" in value for value in fields.values()):
        raise Fault(REQUEST_INVALID)
    token = fields.pop("form_token", "")
    if has_session and not hmac.compare_digest(token.encode(), make_form_token(plane, request).encode()):
        raise Fault(FORM_REFUSED)
    return {name: fields.get(name, "") for name in names}


async def read_upload(plane: ControlPlane, request: Request, name: str) -> bytes:
    """Return the file in the field `name` of a form of this session that a browser sent as `multipart/form-data`; the form has no other
    field but its token. Raises as `read_form`; the size of a body is bounded for all routes."""
    require_own_origin(plane, request)
    boundary = _BOUNDARY.fullmatch(request.headers.get("content-type", ""))
    if boundary is None:
        raise Fault(MEDIA_TYPE_UNSUPPORTED, message=mark("The form must be sent as browsers send it."))
    fields = split_multipart(await read_body(request), boundary.group(1).encode())
    if fields.keys() - {name, "form_token"}:
        raise Fault(REQUEST_INVALID)
    if not hmac.compare_digest(fields.get("form_token", b""), make_form_token(plane, request).encode()):
        raise Fault(FORM_REFUSED)
    return fields.get(name, b"")


def split_multipart(body: bytes, boundary: bytes) -> dict[str, bytes]:
    """Return the fields of a body of `multipart/form-data` by name. Raises REQUEST_INVALID for one that no browser sends."""
    begin, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary, FIELDS_MAX + 1)
    if begin or not parts or parts.pop().rstrip(b"\r\n") != b"--":
        raise Fault(REQUEST_INVALID)
    fields: dict[str, bytes] = {}
    for part in parts:
        head, separator, content = part.partition(b"\r\n\r\n")
        named = _DISPOSITION.search(head)
        if not separator or named is None or named.group(1).decode() in fields:
            raise Fault(REQUEST_INVALID)
        fields[named.group(1).decode()] = content
    return fields


def require_own_origin(plane: ControlPlane, request: Request) -> None:
    """Raise FORM_REFUSED unless the browser says that a page of this site sends the request."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if (site is None and origin is None) or site not in (None, "same-origin") or origin not in (None, get_origin(plane, request)):
        raise Fault(FORM_REFUSED)
