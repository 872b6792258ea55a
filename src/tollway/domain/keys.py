"""API keys: what one looks like and what of it is kept.

`tw_<type>_` + 8 base62 (public key id) + 43 base62 (256 random bits) + 6 base62 (CRC-32 of all before it). The checksum lets typos
and scanners be refused before any lookup; it is no proof of anything. What is stored is HMAC-SHA256 under a pepper that is not in
the database, so a copy of the database can neither be used nor even confirm a leaked key. A slow hash would defend guessable
secrets; 256 random bits are not, and 100 ms a check would be a lever for denial of service.
"""

import hashlib
import hmac
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from tollway.domain.catalog import Endpoint
from tollway.domain.limits import UNLIMITED, Limits
from tollway.domain.roles import OPERATOR, Grant, Role
from tollway.domain.rotation_schedules import RotationSchedule, choose_schedule
from tollway.domain.sessions import OperatorSession
from tollway.domain.tenants import ServiceAccount

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PUBLIC_CHARS, _SECRET_CHARS, _CHECK_CHARS = 8, 43, 6
_KEY = re.compile(r"tw_(live|test|admin|platform|node)_[0-9A-Za-z]{8}[0-9A-Za-z]{43}[0-9A-Za-z]{6}")
_JOIN = "join"
_INVITE = "invite"
_SESSION = "session"
_LINK = "link"
_USER = "user"
_REFRESH = "refresh"
_DEVICE = "device"
_OPERATOR_SESSION = "opsession"
_OPERATOR = "operator"
_TOKEN = re.compile(r"tw_(join|invite|session|link|user|refresh|device|opsession|operator)_[0-9A-Za-z]{8}[0-9A-Za-z]{43}[0-9A-Za-z]{6}")

RANDOM_BYTES = 40
"""Random bytes that one new key takes: 8 for the public part, 32 for the secret."""


class KeyType(StrEnum):
    """Purpose of a key: which API accepts it."""

    LIVE = "live"  # inference, billed
    TEST = "test"  # inference at deployments for tests, metered and not billed
    ADMIN = "admin"  # an organization's administration
    PLATFORM = "platform"  # the operator
    NODE = "node"  # a gateway towards control


class KeyOrigin(StrEnum):
    """The key of the settings from which an operator's key descends: made with it, or with a key that descends from it.

    Whoever holds a key can make more keys, so all keys of one origin count as one person's. Only the settings begin another origin.
    """

    FIRST = "first"  # the platform key
    SECOND = "second"  # the second platform key, which another person holds


@dataclass(frozen=True, slots=True)
class Operator:
    """Someone who may administer the platform, by the id and the origin of the key that they presented. `role`: of that key. `live`: the
    session of one who signed in; `key_id` is then the id of the operator."""

    key_id: str
    origin: KeyOrigin
    role: Role = OPERATOR
    live: OperatorSession | None = None

    @property
    def session_id(self) -> str | None:
        """The id of the session, for the log; None for a key."""
        return None if self.live is None else self.live.id


ROTATION_PAUSE_SECONDS = 10
"""Time after a rotation in which another one is refused: it is the same person's second click, or a second person at the same moment."""

UNUSED_SECONDS_MIN = 3600
"""Time without use after which the secret before can be retired safely."""

USES_MAX = 500
"""Uses of secrets in one report of a gateway."""

USE_SECONDS = 30
"""Precision of the latest use of a secret: a gateway notes the use of one at most so often."""


@dataclass(frozen=True, slots=True)
class PreviousSecret:
    """The secret of a key before its rotation, valid until `expires_at` (exclusive). `last_used_at`: None if it was never used."""

    redacted: str
    expires_at: int
    last_used_at: int | None


@dataclass(frozen=True, slots=True)
class Rotation:
    """The latest rotation of a key. `last_used_at`: of the secret that it made; None if that was not used yet. `previous`: None once it was
    retired. Instants are UTC microseconds."""

    rotated_at: int
    last_used_at: int | None
    previous: PreviousSecret | None

    def find_valid(self, now: int) -> PreviousSecret | None:
        """Return the secret before, if it is still valid at `now`."""
        return self.previous if self.previous is not None and self.previous.expires_at > now else None

    def is_safe_to_retire(self, now: int) -> bool:
        """Return whether nobody seems to need the secret before any more: the new one is in use, and that one was not for
        UNUSED_SECONDS_MIN."""
        previous = self.find_valid(now)
        if previous is None or self.last_used_at is None:
            return False
        unused_since = max(self.rotated_at, previous.last_used_at or 0)
        return now - unused_since >= UNUSED_SECONDS_MIN * 1_000_000


class SecretUse(msgspec.Struct, frozen=True):
    """The use of a secret of a key, as gateways report it: the key's id, the first bytes of the secret's digest in hexadecimal
    (`shorten_digest`), and the instant in UTC microseconds."""

    key_id: str
    digest: str
    used_at: int


def shorten_digest(digest: bytes) -> str:
    """Return what distinguishes the two secrets of a key: 8 bytes of the digest in hexadecimal."""
    return digest[:8].hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """An API key as administration shows it, without its secret.

    `project_id` is None for the admin keys of an organization and for keys of the platform. `models`: the names that the key may use; None
    for all models of its project. Instants are UTC microseconds; `expires_at` is exclusive, None for a key that does not expire.
    `created_by`: the id of the key with which it was made, None for keys of the settings. `origin`: of keys of operators only. `endpoints`:
    those that it may call, None for all; `addresses`: the ranges from which it may be used, None for any; `output_tokens_max`: most output
    tokens of one sequence, None for no bound of its own; `tags`: labels of its owner's, by name. `last_used_at`: the latest use of any
    secret of it, to USE_SECONDS; None if it was never used. `rotation`: None if it was never rotated. `grant`: the role of a key of an
    admin or an operator, None for other keys; `user_id`: the person whose admin key it is, and whose roles it has instead, None for an
    admin key of the organization. `schedule`: of its rotation; `inherited_schedule`: that of its organization. `has_uncollected_secret`:
    whether its present secret was made by its schedule and nobody has collected it yet."""

    id: str
    type: KeyType
    project_id: str | None
    name: str
    redacted: str
    created_at: int
    expires_at: int | None = None
    models: tuple[str, ...] | None = None
    limits: Limits = UNLIMITED
    service_account: ServiceAccount | None = None
    created_by: str | None = None
    origin: KeyOrigin | None = None
    last_used_at: int | None = None
    rotation: Rotation | None = None
    endpoints: tuple[Endpoint, ...] | None = None
    addresses: tuple[str, ...] | None = None
    output_tokens_max: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    grant: Grant | None = None
    user_id: str | None = None
    schedule: RotationSchedule | None = None
    inherited_schedule: RotationSchedule | None = None
    has_uncollected_secret: bool = False

    def find_next_rotation(self) -> int | None:
        """Return the instant from which the key is due for its scheduled rotation; None if it has no schedule."""
        schedule = choose_schedule(self.schedule, self.inherited_schedule)
        if schedule is None:
            return None
        since = self.created_at if self.rotation is None else self.rotation.rotated_at
        return since + schedule.interval_seconds * 1_000_000


class NewKey(msgspec.Struct, frozen=True):
    """A key at the one moment when its secret is known."""

    secret: str
    public_id: str
    redacted: str


def new_key(type: KeyType, random_bytes: bytes) -> NewKey:
    """A new key of `type` from RANDOM_BYTES (40) fresh random bytes."""
    return _make(type, random_bytes)


def new_join_token(random_bytes: bytes) -> NewKey:
    """A token with which one gateway registers itself, in the format of a key (`tw_join_`), from RANDOM_BYTES fresh random bytes."""
    return _make(_JOIN, random_bytes)


def new_invite_token(random_bytes: bytes) -> NewKey:
    """A token with which a person accepts an invitation, in the format of a key (`tw_invite_`), from RANDOM_BYTES fresh random bytes."""
    return _make(_INVITE, random_bytes)


def new_session_secret(random_bytes: bytes) -> NewKey:
    """The secret of a session of a browser, in the format of a key (`tw_session_`), from RANDOM_BYTES fresh random bytes."""
    return _make(_SESSION, random_bytes)


def new_link_token(random_bytes: bytes) -> NewKey:
    """The token of a link that signs a person in once, in the format of a key (`tw_link_`), from RANDOM_BYTES fresh random bytes."""
    return _make(_LINK, random_bytes)


def new_user_token(random_bytes: bytes) -> NewKey:
    """An access token of a person who logged in with the command line, in the format of a key (`tw_user_`), from RANDOM_BYTES fresh random
    bytes."""
    return _make(_USER, random_bytes)


def new_operator_session_secret(random_bytes: bytes) -> NewKey:
    """The secret of a session of an operator's browser, in the format of a key (`tw_opsession_`), from RANDOM_BYTES fresh random bytes."""
    return _make(_OPERATOR_SESSION, random_bytes)


def new_operator_token(random_bytes: bytes) -> NewKey:
    """An access token of an operator who logged in with the command line, in the format of a key (`tw_operator_`), from RANDOM_BYTES fresh
    random bytes."""
    return _make(_OPERATOR, random_bytes)


def new_refresh_token(random_bytes: bytes, family: str | None = None) -> NewKey:
    """A token for the next access token, in the format of a key (`tw_refresh_`), from RANDOM_BYTES fresh random bytes. `family`: the public
    id of the token before, which all tokens of one login have in common; None for the first."""
    return _make(_REFRESH, random_bytes, family)


def new_device_code(random_bytes: bytes) -> NewKey:
    """The code with which a device asks for tokens, in the format of a key (`tw_device_`), from RANDOM_BYTES fresh random bytes."""
    return _make(_DEVICE, random_bytes)


def _make(type: str, random_bytes: bytes, public_id: str | None = None) -> NewKey:
    public_id = public_id or _base62(int.from_bytes(random_bytes[:8], "big"), _PUBLIC_CHARS)
    body = f"tw_{type}_{public_id}{_base62(int.from_bytes(random_bytes[8:40], 'big'), _SECRET_CHARS)}"
    secret = body + _base62(zlib.crc32(body.encode()), _CHECK_CHARS)
    return NewKey(secret, public_id, redact(secret))


def redact(secret: str) -> str:
    """The part of a well-formed key that may be shown: type, public id and the last four characters."""
    return f"{secret[: -(_SECRET_CHARS + _CHECK_CHARS)]}...{secret[-4:]}"


def find_type(secret: str) -> KeyType | None:
    """The type of a key that is well formed with a right checksum; None for anything else. No lookup, no trust."""
    match = _KEY.fullmatch(secret)
    return KeyType(match.group(1)) if match is not None and _has_right_checksum(secret) else None


def is_join_token(secret: str) -> bool:
    """Return whether `secret` is a well-formed join token with a right checksum."""
    return _is_token(_JOIN, secret)


def is_invite_token(secret: str) -> bool:
    """Return whether `secret` is a well-formed token of an invitation with a right checksum."""
    return _is_token(_INVITE, secret)


def is_session_secret(secret: str) -> bool:
    """Return whether `secret` is a well-formed secret of a session with a right checksum."""
    return _is_token(_SESSION, secret)


def is_link_token(secret: str) -> bool:
    """Return whether `secret` is a well-formed token of a one-time link with a right checksum."""
    return _is_token(_LINK, secret)


def is_user_token(secret: str) -> bool:
    """Return whether `secret` is a well-formed access token of a person with a right checksum."""
    return _is_token(_USER, secret)


def is_operator_session_secret(secret: str) -> bool:
    """Return whether `secret` is a well-formed secret of a session of an operator's browser with a right checksum."""
    return _is_token(_OPERATOR_SESSION, secret)


def is_operator_token(secret: str) -> bool:
    """Return whether `secret` is a well-formed access token of an operator with a right checksum."""
    return _is_token(_OPERATOR, secret)


def is_device_code(secret: str) -> bool:
    """Return whether `secret` is a well-formed code of a device with a right checksum."""
    return _is_token(_DEVICE, secret)


def find_family(secret: str) -> str | None:
    """Return the public id of a well-formed refresh token with a right checksum; None for anything else."""
    return secret[len("tw_refresh_") :][:_PUBLIC_CHARS] if _is_token(_REFRESH, secret) else None


def _is_token(type: str, secret: str) -> bool:
    match = _TOKEN.fullmatch(secret)
    return match is not None and match.group(1) == type and _has_right_checksum(secret)


def _has_right_checksum(secret: str) -> bool:
    return _base62(zlib.crc32(secret[:-_CHECK_CHARS].encode()), _CHECK_CHARS) == secret[-_CHECK_CHARS:]


def digest(pepper: bytes, secret: bytes) -> bytes:
    """Return what is stored and looked up in place of the key: HMAC-SHA256(pepper, "apikey" NUL key), 32 bytes."""
    return hmac.digest(pepper, b"apikey\0" + secret, "sha256")


def digester(pepper: bytes) -> Callable[[bytes], bytes]:
    """`digest` for one pepper, three times as fast: HMAC (RFC 2104) with both keyed states made once and copied for each secret."""
    block = pepper.ljust(64, b"\0") if len(pepper) <= 64 else hashlib.sha256(pepper).digest().ljust(64, b"\0")
    inner_keyed = hashlib.sha256(bytes(byte ^ 0x36 for byte in block) + b"apikey\0")
    outer_keyed = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def digest_secret(secret: bytes) -> bytes:
        inner, outer = inner_keyed.copy(), outer_keyed.copy()
        inner.update(secret)
        outer.update(inner.digest())
        return outer.digest()

    return digest_secret


def _base62(value: int, width: int) -> str:
    digits = []
    for _ in range(width):
        value, digit = divmod(value, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
