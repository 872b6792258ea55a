"""The token endpoint, and what publishes the keys that verify its tokens (RFC 6749, RFC 8414, RFC 7517)."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

from fastapi import Depends
from pydantic import Field, StringConstraints
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tollway.control.api import routes
from tollway.control.api.authentication import pages
from tollway.control.api.authentication.device_pages import DEVICE_PATH
from tollway.control.api.routes import Plane, public
from tollway.control.api.schemas import In, Out
from tollway.control.authentication import device_login, token_exchange
from tollway.control.authentication.oauth import ExchangeRefused
from tollway.control.plane import ControlPlane
from tollway.control.secrets import signing_keys
from tollway.domain.faults import BODY_TOO_LARGE, MEDIA_TYPE_UNSUPPORTED, RESOURCE_UNKNOWN, Fault
from tollway.wire import bodies
from tollway.wire.json_web_tokens import encode_part
from tollway.wire.media_types import is_json

router = routes.router(tags=["tokens"])

BODY_BYTES_MAX = 32_768
"""Longest body of the token endpoint: an assertion has 16 KiB at most."""

PARAMETERS_MAX = 32

TOKEN_PATH = "/v1/oauth/token"
DEVICE_AUTHORIZATION_PATH = "/v1/oauth/device_authorization"
REVOCATION_PATH = "/v1/oauth/revoke"
KEYS_PATH = "/.well-known/jwks.json"

_FORM = "application/x-www-form-urlencoded"


class TokenOut(Out):
    """An access token (RFC 6749, section 5.1)."""

    access_token: Annotated[str, Field(description="The token: a bearer credential for the endpoints of inference.", examples=["eyJ..."])]
    token_type: Annotated[Literal["Bearer"], Field(description="Always `Bearer`.", examples=["Bearer"])] = "Bearer"
    expires_in: Annotated[int, Field(description="Lifetime in seconds, 1 to 900.", examples=[900])]
    refresh_token: Annotated[
        str | None, Field(description="Token for the next access token of a person, once; null for a program.", examples=[None])
    ] = None
    issued_token_type: Annotated[
        str | None, Field(description="The kind of token (RFC 8693), where a token was exchanged; null otherwise.", examples=[None])
    ] = None


class TokenRefusedOut(Out):
    """A refusal of the token endpoint (RFC 6749, section 5.2)."""

    error: Annotated[str, Field(description="Code of the refusal.", examples=["invalid_grant"])]
    error_description: Annotated[str, Field(description="The reason, for developers.", examples=["The assertion has expired."])]


class PublicKeyOut(Out):
    """A public key that verifies access tokens (RFC 8037)."""

    kty: Annotated[Literal["OKP"], Field(description="Kind of key.", examples=["OKP"])] = "OKP"
    crv: Annotated[Literal["Ed25519"], Field(description="Curve of the key.", examples=["Ed25519"])] = "Ed25519"
    use: Annotated[Literal["sig"], Field(description="The key is for signatures.", examples=["sig"])] = "sig"
    alg: Annotated[Literal["EdDSA"], Field(description="Algorithm of the signatures.", examples=["EdDSA"])] = "EdDSA"
    kid: Annotated[str, Field(description="Key id, as headers of tokens name it.", examples=["sigkey_0198c5f2a3b47c11a0b1c2d3e4f50617"])]
    x: Annotated[str, Field(description="The key, in base64url.", examples=["11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"])]


class PublicKeysOut(Out):
    """The keys that verify access tokens (RFC 7517, section 5)."""

    keys: Annotated[list[PublicKeyOut], Field(description="Keys that may have signed a valid token, the latest first.")]


class ServerOut(Out):
    """Metadata of the authorization server (RFC 8414)."""

    issuer: Annotated[str, Field(description="The issuer of access tokens.", examples=["https://control.example.com"])]
    token_endpoint: Annotated[
        str, Field(description="Address of the token endpoint.", examples=["https://control.example.com/v1/oauth/token"])
    ]
    device_authorization_endpoint: Annotated[
        str,
        Field(
            description="Address at which a login on a device begins (RFC 8628).",
            examples=["https://control.example.com/v1/oauth/device_authorization"],
        ),
    ]
    revocation_endpoint: Annotated[
        str, Field(description="Address at which a login ends (RFC 7009).", examples=["https://control.example.com/v1/oauth/revoke"])
    ]
    jwks_uri: Annotated[str, Field(description="Address of the keys.", examples=["https://control.example.com/.well-known/jwks.json"])]
    grant_types_supported: Annotated[list[str], Field(description="Supported grant types.", examples=[["client_credentials"]])]
    response_types_supported: Annotated[list[str], Field(description="Always empty: there is no authorization endpoint.", examples=[[]])]
    token_endpoint_auth_methods_supported: Annotated[
        list[str], Field(description="How a client presents its secret.", examples=[["client_secret_basic"]])
    ]


class TokenRequestIn(In):
    """A request for a token that reached a gateway."""

    body: Annotated[
        str, StringConstraints(max_length=BODY_BYTES_MAX), Field(description="Its body, each byte as one character.", examples=["{}"])
    ]
    content_type: Annotated[str, StringConstraints(max_length=1024), Field(description="Its content type.", examples=["application/json"])]
    authorization: Annotated[
        str | None,
        StringConstraints(max_length=BODY_BYTES_MAX),
        Field(description="Its header `authorization`; null without one.", examples=[None]),
    ] = None


class TokenAnswerOut(Out):
    """The answer to a request for a token that reached a gateway."""

    status: Annotated[int, Field(description="Status for the client, 200 to 599.", examples=[200])]
    body: Annotated[str, Field(description="JSON for the client.", examples=["{}"])]


_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": TokenRefusedOut, "description": "The request or the grant is not valid."},
    401: {"model": TokenRefusedOut, "description": "The client is not known."},
    415: {"model": TokenRefusedOut, "description": "The body is neither a form nor a JSON object."},
}
_UNSET: dict[int | str, dict[str, Any]] = {
    404: {
        "description": "The address of the control plane is not set.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
}


@router.post(TOKEN_PATH, dependencies=[Depends(public)], response_model=TokenOut, responses=_REFUSALS)
async def create_token(plane: Plane, request: Request) -> Response:
    """Issue a short access token for a key (RFC 6749). Parameters are a form or a JSON object; a refusal has the shape of RFC 6749."""
    body = await routes.read_body(request)
    if len(body) > BODY_BYTES_MAX:
        raise Fault(BODY_TOO_LARGE)
    status, answer = await run_in_threadpool(
        answer_token_request, plane, body, request.headers.get("content-type", ""), request.headers.get("authorization")
    )
    headers = {"www-authenticate": "Basic"} if status == 401 else {}
    return JSONResponse(answer, status, headers)


class DeviceCodeOut(Out):
    """Codes of a login on a device (RFC 8628, section 3.2)."""

    device_code: Annotated[str, Field(description="Code with which the device asks for tokens.", examples=["tw_device_..."])]
    user_code: Annotated[str, Field(description="Code that the person enters on the page.", examples=["WDJB-MJHT"])]
    verification_uri: Annotated[str, Field(description="Address of the page.", examples=["https://control.example.com/device"])]
    verification_uri_complete: Annotated[
        str, Field(description="The same with the code in it.", examples=["https://control.example.com/device?user_code=WDJB-MJHT"])
    ]
    expires_in: Annotated[int, Field(description="Seconds in which the person can enter the code, 1 to 600.", examples=[600])]
    interval: Annotated[int, Field(description="Seconds to wait between two questions for tokens, 1 or more.", examples=[5])]


class RevokedOut(Out):
    """A token has ended, or was none."""


@router.post(DEVICE_AUTHORIZATION_PATH, dependencies=[Depends(public)], response_model=DeviceCodeOut, responses=_REFUSALS)
async def create_device_code(plane: Plane, request: Request) -> Response:
    """Begin a login on a device, such as `tollway login` (RFC 8628). The parameter `client_id` is `tollway-cli`."""
    origin = pages.get_origin(plane, request)
    address = "" if request.client is None else request.client.host
    agent = request.headers.get("user-agent", "")

    def begin(parameters: Mapping[str, str]) -> dict[str, object]:
        begun = device_login.begin(plane, parameters, address=address, agent=agent)
        page = f"{origin}{DEVICE_PATH}"
        return {
            "device_code": begun.device_code,
            "user_code": begun.user_code,
            "verification_uri": page,
            "verification_uri_complete": f"{page}?user_code={begun.user_code}",
            "expires_in": device_login.LIFETIME_SECONDS,
            "interval": device_login.INTERVAL_SECONDS,
        }

    return await _answer(plane, request, begin)


@router.post(REVOCATION_PATH, dependencies=[Depends(public)], response_model=RevokedOut, responses=_REFUSALS)
async def revoke_token(plane: Plane, request: Request) -> Response:
    """End the login of a person by its refresh token or access token (RFC 7009). Anything else changes nothing, and is answered alike."""
    address = "" if request.client is None else request.client.host
    request_id = request.scope["tollway.request_id"]

    def revoke(parameters: Mapping[str, str]) -> dict[str, object]:
        device_login.revoke(plane, parameters, address=address, request_id=request_id)
        return {}

    return await _answer(plane, request, revoke)


async def _answer(plane: ControlPlane, request: Request, carry_out: Callable[[Mapping[str, str]], dict[str, object]]) -> Response:
    """Return the answer to a request with parameters, or the refusal in the words of RFC 6749."""
    body = await routes.read_body(request)
    if len(body) > BODY_BYTES_MAX:
        raise Fault(BODY_TOO_LARGE)
    try:
        answer = await run_in_threadpool(carry_out, _read_parameters(body, request.headers.get("content-type", "")))
    except Fault as fault:
        if fault.kind.status >= 500:
            raise
        return JSONResponse(_show_fault(fault), fault.kind.status)
    except ExchangeRefused as refused:
        return JSONResponse({"error": refused.error, "error_description": refused.description}, refused.status)
    return JSONResponse(answer)


def answer_token_request(plane: ControlPlane, body: bytes, content_type: str, authorization: str | None) -> tuple[int, dict[str, object]]:
    """Return the status and the answer of the token endpoint."""
    try:
        issued = token_exchange.exchange(plane, _read_parameters(body, content_type), authorization)
    except Fault as fault:
        if fault.kind.status >= 500:
            raise
        return fault.kind.status, _show_fault(fault)
    except ExchangeRefused as refused:
        plane.log({"event": "token_refused", "error": refused.error, "detail": refused.detail or refused.description})
        return refused.status, {"error": refused.error, "error_description": refused.description}
    answer: dict[str, object] = {"access_token": issued.access_token, "token_type": "Bearer", "expires_in": issued.expires_in}
    if issued.issued_token_type is not None:
        answer["issued_token_type"] = issued.issued_token_type
    if issued.refresh_token is not None:
        answer["refresh_token"] = issued.refresh_token
    return 200, answer


def _show_fault(fault: Fault) -> dict[str, object]:
    """Return a fault of a request in the shape of RFC 6749, section 5.2."""
    return {"error": "invalid_request", "error_description": fault.message}


@router.get(KEYS_PATH, dependencies=[Depends(public)])
def list_token_keys(plane: Plane) -> PublicKeysOut:
    """The public keys that verify access tokens."""
    with plane.database.platform(write=False) as tx:
        keys = signing_keys.list_public_keys(tx)
    return PublicKeysOut(keys=[PublicKeyOut(kid=key.id, x=encode_part(key.public_key).decode()) for key in keys])


@router.get("/.well-known/oauth-authorization-server", dependencies=[Depends(public)], responses=_UNSET)
def retrieve_server(plane: Plane) -> ServerOut:
    """The metadata of the authorization server; 404 unless the settings say under which address it is reached (`control.public_url`)."""
    url = plane.public_url
    if url is None:
        raise Fault(RESOURCE_UNKNOWN, message="The address of the control plane is not set: control.public_url.")
    return ServerOut(
        issuer=url,
        token_endpoint=url + TOKEN_PATH,
        device_authorization_endpoint=url + DEVICE_AUTHORIZATION_PATH,
        revocation_endpoint=url + REVOCATION_PATH,
        jwks_uri=url + KEYS_PATH,
        grant_types_supported=list(token_exchange.GRANT_TYPES),
        response_types_supported=[],
        token_endpoint_auth_methods_supported=["client_secret_basic", "client_secret_post"],
    )


def _read_parameters(body: bytes, content_type: str) -> dict[str, str]:
    """Return the parameters of a request, each of which may stand once (RFC 6749, section 3.2). Raises ExchangeRefused, Fault."""
    if is_json(content_type.encode("latin-1")):
        members = bodies.parse(body)
        return {name: value for name, value in members.items() if isinstance(value, str) and value}
    if content_type.partition(";")[0].strip().lower() != _FORM:
        raise Fault(MEDIA_TYPE_UNSUPPORTED, message=f"The body must be a form ({_FORM}) or a JSON object.")
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=PARAMETERS_MAX)
    except ValueError:
        raise ExchangeRefused("invalid_request", "The body is not a form.") from None
    parameters = dict(pairs)
    if len(parameters) < len(pairs):
        raise ExchangeRefused("invalid_request", "A parameter stands more than once.")
    return {name: value for name, value in parameters.items() if value}
