"""The transit secrets engine of HashiCorp Vault (and OpenBao) as a key that wraps data keys.

`POST /v1/MOUNT/encrypt/NAME` and `POST /v1/MOUNT/decrypt/NAME` (https://developer.hashicorp.com/vault/api-docs/secret/transit). The context
is `associated_data`, which the key types `aes256-gcm96` (the default) and `chacha20-poly1305` authenticate.
"""

import base64
import binascii
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx2

from tollway.control.authorities import read_authorities
from tollway.control.secrets.key_encryption import KeyUnavailable, KeyUnreachable
from tollway.domain.faults import Fault
from tollway.wire import bodies

ANSWER_BYTES_MAX = 65_536


class TransitKey:
    """A key of the transit engine. Its token is asked for before each request, because an agent renews it in a file."""

    def __init__(self, url: str, mount: str, key: str, token: Callable[[], str], *, namespace: str | None, timeout_seconds: float) -> None:
        self._url, self._mount, self._key = url.rstrip("/"), mount, key
        self._token, self._namespace = token, namespace
        self._client = open_client(timeout_seconds)

    @property
    def name(self) -> str:
        """`vault:` and the place of the key. Its versions are the engine's own: what it wrapped names them."""
        return f"vault:{self._url}/{self._mount}/{self._key}"

    def wrap(self, key: bytes, context: str) -> bytes:
        """Encrypt a data key with the newest version of the engine's key. Raises KeyUnavailable."""
        wrapped = self._ask("encrypt", {"plaintext": _encode(key), "associated_data": _encode(context.encode())}, "ciphertext")
        return wrapped.encode()

    def unwrap(self, wrapped: bytes, context: str) -> bytes:
        """Return the data key that was wrapped for `context`. Raises KeyUnavailable."""
        body = {"ciphertext": wrapped.decode("ascii", "replace"), "associated_data": _encode(context.encode())}
        try:
            return base64.b64decode(self._ask("decrypt", body, "plaintext"), validate=True)
        except binascii.Error:
            raise KeyUnavailable(f"{self.name}: its answer is not Base64") from None

    def _ask(self, operation: str, body: dict[str, str], field: str) -> str:
        path = f"{self._url}/v1/{quote(self._mount)}/{operation}/{quote(self._key, safe='')}"
        headers = {"x-vault-token": self._token(), "x-vault-request": "true"}
        if self._namespace is not None:
            headers["x-vault-namespace"] = self._namespace
        answer = post(self._client, self.name, path, headers, body)
        data = answer.get("data")
        value = data.get(field) if isinstance(data, dict) else None
        if not isinstance(value, str):
            raise KeyUnavailable(f"{self.name}: its answer has no {field}")
        return value


def open_client(timeout_seconds: float) -> httpx2.Client:
    """Return a client of a service of keys. It keeps no connection open, because requests are minutes apart."""
    limits = httpx2.Limits(max_keepalive_connections=0)
    return httpx2.Client(follow_redirects=False, trust_env=False, verify=read_authorities(), timeout=timeout_seconds, limits=limits)


def post(client: httpx2.Client, name: str, url: str, headers: dict[str, str], body: dict[str, Any] | bytes) -> dict[str, Any]:
    """Send a request to a service of keys, and return the JSON object of its answer. `name`: of the key, for errors, which hold nothing of
    the answer but its status. Raises KeyUnavailable."""
    content = {"content": body} if isinstance(body, bytes) else {"json": body}
    try:
        answer = client.post(url, headers=headers, **content)
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, OSError) as error:
        raise KeyUnreachable(f"{name}: it cannot be reached ({type(error).__name__})") from None
    if answer.status_code != 200:
        raise KeyUnavailable(f"{name}: it answered {answer.status_code}")
    if len(answer.content) > ANSWER_BYTES_MAX:
        raise KeyUnavailable(f"{name}: its answer has more than {ANSWER_BYTES_MAX} bytes")
    try:
        return bodies.parse(answer.content)
    except Fault:
        raise KeyUnavailable(f"{name}: its answer is not a JSON object") from None


def _encode(value: bytes) -> str:
    return base64.b64encode(value).decode()
