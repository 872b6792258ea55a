"""A key of AWS KMS (or a service that speaks its protocol) as a key that wraps data keys.

Operations Encrypt and Decrypt of the JSON 1.1 protocol (https://docs.aws.amazon.com/kms/latest/APIReference/), signed by Signature
Version 4 (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html). The context is the encryption
context, which is authenticated and written to CloudTrail: it is the id of an organization, and no secret. The signature is made here, in
thirty lines, because the SDK would bring ten packages for two operations.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import msgspec

from tollway.control.secrets.key_encryption import KeyUnavailable
from tollway.control.secrets.vault_transit import open_client, post

SERVICE = "kms"
CONTEXT_NAME = "tollway"


@dataclass(frozen=True, slots=True)
class AwsCredentials:
    """Credentials that requests are signed with. `session_token`: of temporary credentials."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


class KmsKey:
    """A symmetric key of KMS, by its id, alias or ARN."""

    def __init__(
        self,
        key_id: str,
        region: str,
        credentials: Callable[[], AwsCredentials],
        *,
        endpoint: str | None,
        now: Callable[[], int],
        timeout_seconds: float,
    ) -> None:
        """`now`: UTC microseconds. `endpoint`: the address of the service if it is not that of the region."""
        self._key_id, self._region, self._credentials, self._now = key_id, region, credentials, now
        self._url = (endpoint or f"https://{SERVICE}.{region}.amazonaws.com").rstrip("/") + "/"
        self._client = open_client(timeout_seconds)

    @property
    def name(self) -> str:
        """`aws:`, the region and the id of the key."""
        return f"aws:{self._region}:{self._key_id}"

    def wrap(self, key: bytes, context: str) -> bytes:
        """Encrypt a data key. Raises KeyUnavailable."""
        return self._ask("Encrypt", {"Plaintext": _encode(key), "EncryptionContext": {CONTEXT_NAME: context}}, "CiphertextBlob")

    def unwrap(self, wrapped: bytes, context: str) -> bytes:
        """Return the data key that was wrapped for `context`. Raises KeyUnavailable."""
        return self._ask("Decrypt", {"CiphertextBlob": _encode(wrapped), "EncryptionContext": {CONTEXT_NAME: context}}, "Plaintext")

    def _ask(self, operation: str, fields: Mapping[str, Any], answered: str) -> bytes:
        body = msgspec.json.encode({"KeyId": self._key_id, **fields})
        headers = {"content-type": "application/x-amz-json-1.1", "x-amz-target": f"TrentService.{operation}"}
        signed = sign(self._url, headers, body, self._credentials(), region=self._region, service=SERVICE, now=self._now())
        answer = post(self._client, self.name, self._url, signed, body)
        try:
            return base64.b64decode(str(answer.get(answered)), validate=True)
        except binascii.Error:
            raise KeyUnavailable(f"{self.name}: its answer has no {answered}") from None


def sign(
    url: str, headers: Mapping[str, str], body: bytes, credentials: AwsCredentials, *, region: str, service: str, now: int
) -> dict[str, str]:
    """Return the headers of a POST to `url` with its signature (AWS Signature Version 4). `now`: UTC microseconds."""
    at = datetime.fromtimestamp(now // 1_000_000, UTC)
    day, instant = f"{at:%Y%m%d}", f"{at:%Y%m%dT%H%M%SZ}"
    place = urlsplit(url)
    every = {**headers, "host": place.netloc, "x-amz-date": instant}
    if credentials.session_token is not None:
        every["x-amz-security-token"] = credentials.session_token
    names = sorted(every)
    lines = "".join(f"{name}:{every[name].strip()}\n" for name in names)
    request = "\n".join(["POST", place.path or "/", place.query, lines, ";".join(names), hashlib.sha256(body).hexdigest()])
    scope = f"{day}/{region}/{service}/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", instant, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{credentials.secret_access_key}".encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key_id}/{scope}, SignedHeaders={';'.join(names)}, Signature={signature}"
    )
    return {**every, "authorization": authorization}


def _encode(value: bytes) -> str:
    return base64.b64encode(value).decode()
