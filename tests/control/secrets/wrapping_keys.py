"""Fakes of the services that wrap data keys, which check what goes over the wire: HashiCorp Vault's transit engine and AWS KMS."""

import base64
import hashlib
import hmac
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TOKEN = "hvs.token-of-the-test"
ACCESS_KEY_ID, SECRET_ACCESS_KEY, SESSION_TOKEN = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "session-of-the-test"
REGION = "eu-central-1"


class KeyService:
    """A fake service. `status`: what it answers from now on, in place of its work; `asked`: the operations that it was asked for."""

    def __init__(self) -> None:
        self.versions = [AESGCM(os.urandom(32))]
        self.status: int | None = None
        self.asked: list[str] = []
        self.url = ""

    def encrypt(self, plain: bytes, context: bytes) -> bytes:
        nonce = os.urandom(12)
        return bytes([len(self.versions)]) + nonce + self.versions[-1].encrypt(nonce, plain, context)

    def decrypt(self, sealed: bytes, context: bytes) -> bytes:
        return self.versions[sealed[0] - 1].decrypt(sealed[1:13], sealed[13:], context)

    def rotate(self) -> None:
        """Make another version of the key; what the versions before sealed can still be read."""
        self.versions.append(AESGCM(os.urandom(32)))


@contextmanager
def serving(answer: Any) -> Iterator[KeyService]:
    """Run a fake. `answer(service, path, headers, body)` returns status and body."""
    service = KeyService()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, said = (service.status, {"errors": ["no"]}) if service.status else answer(service, self.path, headers, body)
            content = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer_transit(service: KeyService, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any]:
    """Answer as the transit engine does for a key `tollway` of type aes256-gcm96 at the mount `transit`."""
    if headers.get("x-vault-token") != TOKEN or headers.get("x-vault-request") != "true":
        return 403, {"errors": ["permission denied"]}
    found = re.fullmatch(r"/v1/transit/(encrypt|decrypt)/tollway", path)
    if found is None:
        return 404, {"errors": []}
    service.asked.append(found[1])
    asked = json.loads(body)
    context = base64.b64decode(asked["associated_data"], validate=True)
    if found[1] == "encrypt":
        sealed = service.encrypt(base64.b64decode(asked["plaintext"], validate=True), context)
        return 200, {"data": {"ciphertext": f"vault:v{len(service.versions)}:{base64.b64encode(sealed).decode()}"}}
    version, _, sealed_text = asked["ciphertext"].removeprefix("vault:v").partition(":")
    assert int(version) <= len(service.versions)
    try:
        plain = service.decrypt(base64.b64decode(sealed_text), context)
    except InvalidTag:
        return 400, {"errors": ["cipher: message authentication failed"]}
    return 200, {"data": {"plaintext": base64.b64encode(plain).decode()}}


def answer_kms(service: KeyService, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any]:
    """Answer as KMS does, after the signature was checked."""
    if path != "/" or headers["content-type"] != "application/x-amz-json-1.1" or not _is_signed(headers, body):
        return 400, {"__type": "IncompleteSignatureException"}
    operation, asked = headers["x-amz-target"].removeprefix("TrentService."), json.loads(body)
    service.asked.append(operation)
    assert asked["KeyId"] == "alias/tollway" and list(asked["EncryptionContext"]) == ["tollway"]
    context = json.dumps(asked["EncryptionContext"], sort_keys=True).encode()
    if operation == "Encrypt":
        sealed = service.encrypt(base64.b64decode(asked["Plaintext"], validate=True), context)
        return 200, {"CiphertextBlob": base64.b64encode(sealed).decode(), "KeyId": "arn:aws:kms:x"}
    try:
        plain = service.decrypt(base64.b64decode(asked["CiphertextBlob"], validate=True), context)
    except InvalidTag:
        return 400, {"__type": "InvalidCiphertextException"}
    return 200, {"Plaintext": base64.b64encode(plain).decode(), "KeyId": "arn:aws:kms:x"}


def _is_signed(headers: Mapping[str, str], body: bytes) -> bool:
    """Compute Signature Version 4 as the service does, from what arrived."""
    pattern = r"AWS4-HMAC-SHA256 Credential=(\w+)/(\d{8})/([\w-]+)/kms/aws4_request, SignedHeaders=([\w;-]+), Signature=([0-9a-f]{64})"
    found = re.fullmatch(pattern, headers.get("authorization", ""))
    if found is None:
        return False
    access_key_id, day, region, names, signature = found.groups()
    signed = names.split(";")
    needed = {"host", "content-type", "x-amz-date", "x-amz-target", "x-amz-security-token"}
    if (access_key_id, region) != (ACCESS_KEY_ID, REGION) or set(signed) != needed or headers["x-amz-security-token"] != SESSION_TOKEN:
        return False
    canonical = "\n".join(["POST", "/", "", *(f"{name}:{headers[name]}" for name in signed), "", names, hashlib.sha256(body).hexdigest()])
    scope = f"{day}/{region}/kms/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{headers['x-amz-date']}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = b"AWS4" + SECRET_ACCESS_KEY.encode()
    for part in (day, region, "kms", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.compare_digest(hmac.new(key, text.encode(), hashlib.sha256).hexdigest(), signature)
