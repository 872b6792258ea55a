"""Signers of JSON Web Tokens for tests, built on `cryptography` alone, so that a test can sign what no library would."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tollway.domain.tokens import Jwk


def encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def encode_integer(value: int, size: int | None = None) -> str:
    return encode(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


@dataclass(frozen=True)
class Signer:
    """A private key of an issuer. `jwk`: its public half."""

    jwk: Jwk
    algorithm: str
    sign: Callable[[bytes], bytes]

    def token(self, claims: Mapping[str, Any] | bytes, **header: Any) -> str:
        """Return a signed token. A member of `header` that is None is left out."""
        members = {"alg": self.algorithm, "kid": self.jwk.kid, "typ": "JWT"} | header
        head = msgspec.json.encode({name: value for name, value in members.items() if value is not None})
        body = claims if isinstance(claims, bytes) else msgspec.json.encode(claims)
        signed = f"{encode(head)}.{encode(body)}"
        return f"{signed}.{encode(self.sign(signed.encode()))}"


def make_ed25519(kid: str) -> Signer:
    key = Ed25519PrivateKey.generate()
    return Signer(Jwk(kty="OKP", kid=kid, crv="Ed25519", x=encode(key.public_key().public_bytes_raw())), "EdDSA", key.sign)


def make_p256(kid: str) -> Signer:
    key = ec.generate_private_key(ec.SECP256R1())
    numbers = key.public_key().public_numbers()

    def sign(data: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    jwk = Jwk(kty="EC", kid=kid, crv="P-256", x=encode_integer(numbers.x, 32), y=encode_integer(numbers.y, 32))
    return Signer(jwk, "ES256", sign)


def make_rsa(kid: str, algorithm: str = "RS256", bits: int = 2048) -> Signer:
    key = rsa.generate_private_key(65537, bits)
    numbers = key.public_key().public_numbers()

    def sign(data: bytes) -> bytes:
        scheme = padding.PSS(padding.MGF1(hashes.SHA256()), 32) if algorithm == "PS256" else padding.PKCS1v15()
        return key.sign(data, scheme, hashes.SHA256())

    return Signer(Jwk(kty="RSA", kid=kid, n=encode_integer(numbers.n), e=encode_integer(numbers.e)), algorithm, sign)
