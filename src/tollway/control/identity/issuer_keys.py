"""Fetch the public keys of organizations' issuers (OpenID Connect Discovery 1.0, section 4; RFC 7517).

Tenants name the addresses, so every connection is examined: HTTPS, to a public address. It is checked before the connection, so that
nobody learns which ports of a private network are open, and made to the checked address, because a name may resolve to another one
later. No redirect is followed, and the size and the time of an answer are bounded. Keys that were fetched stay in force while their issuer
cannot be reached.
"""

import asyncio
import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx2
import msgspec

from tollway.control import foreign_hosts
from tollway.control.foreign_hosts import AnswerInvalid, Host, PeerRefused
from tollway.control.host_names import NamesBusy
from tollway.domain.addresses import is_public
from tollway.domain.faults import Fault
from tollway.domain.federation import KEY_BYTES_MAX, KEYS_MAX
from tollway.domain.tokens import Jwk
from tollway.wire import bodies
from tollway.wire.json_web_tokens import load_key

DOCUMENT_BYTES_MAX = 256 * 1024
"""Largest document that is read. Those of large providers have 2 to 20 KiB."""

FETCH_SECONDS_MAX = 8.0
"""Deadline for both documents of one issuer."""

USER_AGENT = "tollway-control/1"

METADATA_PATH = "/.well-known/openid-configuration"

_PRINTABLE = re.compile(r"[!-~]+")


class KeysUnavailable(Exception):
    """The keys of an issuer could not be had. The text says why, in words for the tenant, without anything of the answer."""


def is_url(text: str) -> bool:
    """Return whether a text is a URL of printable ASCII alone (RFC 3986), so that it can stand in a header as it is."""
    try:
        parts = urlsplit(text)
        return _PRINTABLE.fullmatch(text) is not None and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def find_address_error(url: str) -> str | None:
    """Return why a URL is not one that is fetched, in words that follow its name; None if it may be."""
    if not is_url(url):
        return "it is not a URL"
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "https" or parts.username is not None or parts.fragment:
        return "it must be an https URL without a user and a fragment"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "its host is not public" if "." not in host or host.endswith((".local", ".internal", ".localhost")) else None
    return None if is_public(address) else "its host is not public"


class AnswerRefused(KeysUnavailable):
    """An issuer answered with another status than 200. `status`: that one."""

    def __init__(self, status: int) -> None:
        super().__init__(f"it answered {status}")
        self.status = status


async def fetch(issuer: str, discovery_url: str | None, organization_id: str) -> tuple[Jwk, ...]:
    """Return the keys of an issuer that an organization named and that can verify. Raises KeysUnavailable."""
    try:
        async with asyncio.timeout(FETCH_SECONDS_MAX):
            metadata = await _read(discovery_url or issuer.rstrip("/") + METADATA_PATH, organization_id)
            if metadata.get("issuer") != issuer:
                raise KeysUnavailable("the metadata names another issuer")
            address = metadata.get("jwks_uri")
            if not isinstance(address, str) or find_address_error(address) is not None:
                raise KeysUnavailable("the metadata names no address of keys that is fetched")
            return read_keys(await _read(address, organization_id))
    except TimeoutError:
        raise KeysUnavailable("it did not answer in time") from None
    except ValueError as error:
        raise KeysUnavailable(str(error)) from None


def bounded() -> asyncio.Timeout:
    """Return the deadline for one document or answer of an issuer. It raises TimeoutError."""
    return asyncio.timeout(FETCH_SECONDS_MAX)


def read_keys(document: Mapping[str, Any]) -> tuple[Jwk, ...]:
    """Return the keys of a JSON Web Key Set that can verify; those of other kinds and uses, and those of more than KEY_BYTES_MAX, are left
    out. Raises ValueError if there are none, more than KEYS_MAX, or two with the same id, or if one is a private or a shared key."""
    keys = document.get("keys")
    if not isinstance(keys, list) or len(keys) > KEYS_MAX:
        raise ValueError(f"a key set has a member `keys` with at most {KEYS_MAX} keys")
    usable: dict[str, Jwk] = {}
    for each in keys:
        if isinstance(each, dict) and ("d" in each or "k" in each):
            raise ValueError("the key set holds a private key")
        try:
            key = msgspec.convert(each, Jwk)
            load_key(key)
        except ValueError:
            continue
        if len(msgspec.json.encode(key)) > KEY_BYTES_MAX:
            continue
        if key.kid in usable:
            raise ValueError("two keys of the set have the same id")
        usable[key.kid] = key
    if not usable:
        raise ValueError("the key set has no key that can verify")
    return tuple(usable.values())


async def _read(url: str, organization_id: str) -> dict[str, Any]:
    """Return the JSON object at a public address. Raises KeysUnavailable."""
    return await read_object(url, is_private_allowed=False, organization_id=organization_id)


async def read_object(
    url: str,
    *,
    is_private_allowed: bool,
    organization_id: str | None = None,
    form: Mapping[str, str] | None = None,
    authorization: str | None = None,
) -> dict[str, Any]:
    """Return the JSON object at an address, or the one that answers a form. `is_private_allowed`: the operator trusts the issuer, so that
    the address need not be public. `organization_id`: that named the issuer; None for operators. Raises KeysUnavailable."""
    parts = urlsplit(url)
    headers = {
        "host": parts.netloc.rpartition("@")[2],
        "accept": "application/json",
        "accept-encoding": "identity",
        "user-agent": USER_AGENT,
    }
    if authorization is not None:
        headers["authorization"] = authorization
    if form is not None:
        headers["content-type"] = "application/x-www-form-urlencoded"
    host = parts.hostname or ""
    try:
        answer = await foreign_hosts.exchange(
            Host(host, parts.port or (443 if parts.scheme == "https" else 80), host if parts.scheme == "https" else None),
            "GET" if form is None else "POST",
            url,
            headers,
            b"" if form is None else urlencode(form).encode(),
            body_bytes_max=DOCUMENT_BYTES_MAX,
            is_allowed=None if is_private_allowed else _is_public,
            organization_id=organization_id,
        )
        if answer.status != 200:
            raise AnswerRefused(answer.status)
        if len(answer.body) > DOCUMENT_BYTES_MAX:
            raise KeysUnavailable(f"its answer has more than {DOCUMENT_BYTES_MAX} bytes")
        return bodies.parse(answer.body)
    except Fault:
        raise KeysUnavailable("its answer is not a JSON object") from None
    except PeerRefused:
        raise KeysUnavailable("its address is not public") from None
    except NamesBusy:
        raise KeysUnavailable("other names of the organization are being resolved") from None
    except (AnswerInvalid, httpx2.InvalidURL, OSError, UnicodeError):  # the last: no name of a host
        raise KeysUnavailable("it cannot be reached") from None


def _is_public(address: str) -> bool:
    return is_public(ipaddress.ip_address(address))


def fetch_now(issuer: str, discovery_url: str | None, organization_id: str) -> Sequence[Jwk]:
    """Fetch the keys of an issuer from a worker thread. Raises KeysUnavailable."""

    async def run() -> Sequence[Jwk]:
        return await fetch(issuer, discovery_url, organization_id)

    return asyncio.run(run())
