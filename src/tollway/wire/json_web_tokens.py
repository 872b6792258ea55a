"""JSON Web Tokens (RFC 7519) in compact form, and JSON Web Keys (RFC 7517), read strictly and verified.

A header names the algorithm, and never the key material: `jwk`, `jku`, `x5u` and `x5c` are not read. Which algorithms a key may be used
with follows from the key alone, so that no token can choose a weaker one (RFC 8725, section 3.1). What this module raises says why a token
was refused, and holds no part of it.
"""

import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from tollway.domain.faults import Fault
from tollway.domain.tokens import Jwk, TokenInvalid
from tollway.wire import bodies

TOKEN_BYTES_MAX = 8192
"""Longest token. Those of Kubernetes, GitHub and GitLab have 1 to 2 KiB."""

RSA_BITS_MIN, RSA_BITS_MAX = 2048, 8192
"""Sizes of RSA keys (RFC 7518, section 3.3, asks for 2048 at least). A larger one would make each verification a burden."""

_PART = re.compile(rb"[A-Za-z0-9_-]+")
_ALGORITHMS_OF_RSA = ("RS256", "RS384", "RS512", "PS256")
_CURVES: Mapping[str, tuple[str, ec.EllipticCurve, int]] = {"P-256": ("ES256", ec.SECP256R1(), 32), "P-384": ("ES384", ec.SECP384R1(), 48)}
_HASHES: Mapping[str, hashes.HashAlgorithm] = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


class ReadToken(msgspec.Struct, frozen=True):
    """A token as it was read, before anything of it is known to be true. `key_id`: None if its header names none. `type`: in lower case,
    without `application/`; empty if its header has none. `signed`: the bytes that `signature` signs."""

    algorithm: str
    key_id: str | None
    type: str
    claims: dict[str, Any]
    signed: bytes
    signature: bytes


class VerificationKey(msgspec.Struct, frozen=True):
    """A public key that can verify. `algorithms`: those that it may be used with."""

    id: str
    algorithms: tuple[str, ...]
    check: Callable[[str, bytes, bytes], None]
    """Check(algorithm, signature, signed): raises InvalidSignature."""


def looks_like_token(secret: bytes) -> bool:
    """Return whether a credential has the form of a signed token: three parts. No key of ours has a dot in it."""
    return len(secret) <= TOKEN_BYTES_MAX and secret.count(b".") == 2


def read_token(token: bytes) -> ReadToken:
    """Return what a token says. Raises TokenInvalid for anything that is not a signed token in compact form."""
    parts = token.split(b".")
    if len(token) > TOKEN_BYTES_MAX or len(parts) != 3:
        raise TokenInvalid("it is not a signed token in compact form")
    header, claims = _read_object(parts[0]), _read_object(parts[1])
    algorithm, key_id, type_ = header.get("alg"), header.get("kid"), header.get("typ", "")
    if "crit" in header or "zip" in header or "b64" in header or "enc" in header:
        raise TokenInvalid("its header demands what is not supported")
    if not isinstance(algorithm, str) or not isinstance(type_, str) or not (key_id is None or isinstance(key_id, str)):
        raise TokenInvalid("its header is not valid")
    signed = token[: len(parts[0]) + 1 + len(parts[1])]
    return ReadToken(algorithm, key_id, type_.lower().removeprefix("application/"), claims, signed, _decode(parts[2]))


def verify(token: ReadToken, keys: Mapping[str, VerificationKey]) -> None:
    """Raise TokenInvalid unless one of an issuer's keys signed the token: the one that it names, or the only one where it names none."""
    key = keys.get(token.key_id) if token.key_id is not None else next(iter(keys.values())) if len(keys) == 1 else None
    if key is None:
        raise TokenInvalid("its issuer has no such key", is_key_unknown=True)
    if token.algorithm not in key.algorithms:
        raise TokenInvalid("its algorithm is not one of its key's")
    try:
        key.check(token.algorithm, token.signature, token.signed)
    except InvalidSignature:
        raise TokenInvalid("its signature does not match") from None


def load_key(jwk: Jwk) -> VerificationKey:
    """Return the key that a JSON Web Key describes. Raises ValueError for one that is not a public key of a supported kind and size."""
    if jwk.use not in ("", "sig"):
        raise ValueError("a key that is not for signatures")
    algorithms, check = _LOADERS.get(jwk.kty, _refuse_kind)(jwk)
    if jwk.alg:
        if jwk.alg not in algorithms:
            raise ValueError("the key's algorithm does not fit its kind")
        algorithms = (jwk.alg,)
    return VerificationKey(jwk.kid, algorithms, check)


def encode_part(content: bytes) -> bytes:
    """Return base64url without padding (RFC 7515, section 2)."""
    return binascii.b2a_base64(content, newline=False).rstrip(b"=").translate(_TO_URL)


def make_edwards_key(id: str, public_key: bytes) -> Jwk:
    """Return the JSON Web Key of an Ed25519 public key (RFC 8037)."""
    return Jwk(kty="OKP", kid=id, alg="EdDSA", use="sig", crv="Ed25519", x=encode_part(public_key).decode())


Check = Callable[[str, bytes, bytes], None]
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_", b"+/")


def _refuse_kind(_jwk: Jwk) -> tuple[tuple[str, ...], Check]:
    raise ValueError("a key of a kind that is not supported")


def _load_rsa(jwk: Jwk) -> tuple[tuple[str, ...], Check]:
    modulus, exponent = _decode_integer(jwk.n), _decode_integer(jwk.e)
    if not RSA_BITS_MIN <= modulus.bit_length() <= RSA_BITS_MAX:
        raise ValueError(f"an RSA key must have {RSA_BITS_MIN} to {RSA_BITS_MAX} bits")
    if not 3 <= exponent < 2**32:  # a huge exponent makes each verification slow
        raise ValueError("the exponent of an RSA key is out of range")
    key = rsa.RSAPublicNumbers(exponent, modulus).public_key()

    def check(algorithm: str, signature: bytes, signed: bytes) -> None:
        digest = _HASHES[algorithm[2:]]
        if algorithm.startswith("PS"):
            key.verify(signature, signed, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
        else:
            key.verify(signature, signed, padding.PKCS1v15(), digest)

    return _ALGORITHMS_OF_RSA, check


def _load_curve(jwk: Jwk) -> tuple[tuple[str, ...], Check]:
    if jwk.crv not in _CURVES:
        raise ValueError("a key on a curve that is not supported")
    algorithm, curve, size = _CURVES[jwk.crv]
    key = ec.EllipticCurvePublicNumbers(_decode_integer(jwk.x), _decode_integer(jwk.y), curve).public_key()

    def check(_algorithm: str, signature: bytes, signed: bytes) -> None:
        if len(signature) != 2 * size:  # RFC 7518, section 3.4: two integers of the curve's size, not DER
            raise InvalidSignature
        pair = encode_dss_signature(int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big"))
        key.verify(pair, signed, ec.ECDSA(_HASHES[algorithm[2:]]))

    return (algorithm,), check


def _load_edwards(jwk: Jwk) -> tuple[tuple[str, ...], Check]:
    if jwk.crv != "Ed25519":
        raise ValueError("a key on a curve that is not supported")
    key = Ed25519PublicKey.from_public_bytes(_decode(jwk.x.encode()))

    def check(_algorithm: str, signature: bytes, signed: bytes) -> None:
        key.verify(signature, signed)

    return ("EdDSA", "Ed25519"), check


_LOADERS: Mapping[str, Callable[[Jwk], tuple[tuple[str, ...], Check]]] = {"RSA": _load_rsa, "EC": _load_curve, "OKP": _load_edwards}


def _read_object(part: bytes) -> dict[str, Any]:
    try:
        return bodies.parse(_decode(part))
    except Fault:
        raise TokenInvalid("its parts are not JSON objects") from None


def _decode(part: bytes) -> bytes:
    """Decode base64url without padding. Raises TokenInvalid."""
    if _PART.fullmatch(part) is None or len(part) % 4 == 1:
        raise TokenInvalid("its parts are not base64url")
    return binascii.a2b_base64(part.translate(_FROM_URL) + b"=" * (-len(part) % 4))


def _decode_integer(text: str) -> int:
    return int.from_bytes(_decode(text.encode()), "big")
