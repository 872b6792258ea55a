"""Phase 1: find the caller by one credential, one digest, one lookup in memory. Unknown, revoked and expired keys get the same answer."""

import hashlib
from collections.abc import Callable, Sequence

from tollway.domain import keys
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import ADDRESS_REFUSED, CERTIFICATE_INVALID, KEY_INVALID, SCOPE_INSUFFICIENT, TOKEN_INVALID, Fault
from tollway.domain.keys import KeyType
from tollway.domain.networks import contains
from tollway.domain.tokens import TokenInvalid
from tollway.gateway.certificates import digest_certificate
from tollway.gateway.directory import Directory
from tollway.gateway.request import Caller, RequestHead
from tollway.wire.client_certificates import CertificateInvalid
from tollway.wire.credentials import find_secret
from tollway.wire.json_web_tokens import looks_like_token

_KEY_BYTES_MAX = 128
"""Ours have 65 to 69 characters. Anything longer is an access token or nothing: a signed token has more than 128."""
Digester = Callable[[bytes], bytes]
"""`keys.digester` of one pepper; while peppers are changed there are two, the newer first."""
_OTHER_PLANES = tuple(f"tw_{type}_".encode() for type in (KeyType.ADMIN, KeyType.PLATFORM, KeyType.NODE))
"""Prefixes of keys of the control plane. Only for these is the checksum verified: for inference keys its time would reveal something."""


def authenticate(head: RequestHead, directory: Directory, digesters: Sequence[Digester], now_us: int) -> Caller:
    """Return the caller of a request with this head. `digesters`: one for each pepper in use, the newer first. `now_us`: UTC microseconds.

    Raises Fault:
    - invalid_api_key (401): no key, or one that is malformed, unknown, revoked or expired.
    - ambiguous_credentials (400): two credentials that differ.
    - invalid_token (401): an access token that is refused; the message gives the reason.
    - invalid_client_certificate (401): a client certificate that is refused; the message gives no reason.
    - insufficient_scope (403): a well-formed key of the control plane.
    - address_not_allowed (403): a key that may not be used from this address.

    The lookup is in memory, so a malformed key costs no more than any other.
    """
    if head.digest is not None:
        caller = directory.find_caller(head.digest, now_us)
        if caller is not None:
            if caller.networks is not None and head.admitted is not caller:
                require_address(caller, head)
            return caller
    headers = head.headers
    secret = find_secret(_values(headers, b"authorization"), _values(headers, b"x-api-key") + _values(headers, b"api-key"))
    if secret is None and head.certificate:
        return _authenticate_certificate(head, directory, now_us)
    if secret is None or len(secret) > _KEY_BYTES_MAX:
        if secret is not None and looks_like_token(secret):
            return _authenticate_token(secret, head, directory, now_us)
        raise Fault(KEY_INVALID, message=None if secret else "You didn't provide an API key.")
    for digester in digesters:
        digest = digester(secret)
        caller = directory.find_caller(digest, now_us)
        if caller is not None:
            head.digest = digest
            if caller.networks is not None:
                require_address(caller, head)
            return caller
    if secret.startswith(_OTHER_PLANES) and keys.find_type(secret.decode("latin-1")) is not None:
        raise Fault(SCOPE_INSUFFICIENT, message="This kind of key cannot be used for inference.")
    raise Fault(KEY_INVALID)


def _authenticate_token(token: bytes, head: RequestHead, directory: Directory, now_us: int) -> Caller:
    """Return the caller whose key an access token stands for. The token is found again by the digest of all of it."""
    digest = hashlib.sha256(token).digest()
    try:
        caller = directory.find_token_caller(digest, token, now_us)
    except TokenInvalid as invalid:
        raise Fault(TOKEN_INVALID, message=f"The access token is refused: {invalid}.") from None
    if caller is None:
        raise Fault(TOKEN_INVALID, message="The access token is refused: its key is not valid any more.")
    head.digest = digest
    if caller.networks is not None:
        require_address(caller, head)
    return caller


def _authenticate_certificate(head: RequestHead, directory: Directory, now_us: int) -> Caller:
    """Return the caller whose key the client's certificate stands for, in the organization that the request names."""
    organization_id = head.headers.get(b"openai-organization", b"")
    digest = digest_certificate(organization_id, head.certificate)
    try:
        caller = directory.find_certificate_caller(digest, organization_id.decode("latin-1"), head.certificate, now_us)
    except CertificateInvalid:
        caller = None
    if caller is None:
        raise Fault(CERTIFICATE_INVALID)
    head.digest = digest
    if caller.networks is not None:
        require_address(caller, head)
    return caller


def require_endpoint(caller: Caller, endpoint: Endpoint) -> None:
    """Raise Fault insufficient_scope (403) unless the caller may call the endpoint."""
    if caller.endpoints is not None and endpoint not in caller.endpoints:
        raise Fault(SCOPE_INSUFFICIENT, message="This key may not be used for this endpoint.")


def require_address(caller: Caller, head: RequestHead) -> None:
    """Raise Fault address_not_allowed unless the key may be used from the address of this head. An address that is not known is refused."""
    if caller.networks is None or not contains(caller.networks, head.address):
        raise Fault(ADDRESS_REFUSED)
    head.admitted = caller


def _values(headers: dict[bytes, bytes], name: bytes) -> list[bytes]:
    return [headers[name]] if name in headers else []
