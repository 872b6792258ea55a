"""Identifiers: UUIDv7 inside (RFC 9562 section 5.7), `prefix_` + 32 hex digits outside.

UUIDv7 begins with the time, so ids made later sort later and database indexes stay dense. The prefix says what a thing is, so an
id pasted into the wrong place is refused by its look.
"""

import hashlib
import re
from collections.abc import Callable
from typing import Final

ORGANIZATION = "org"
PROJECT = "proj"
KEY = "key"
SERVICE_ACCOUNT = "sa"
REQUEST: Final = "req"
DEPLOYMENT = "dep"
PRICE = "price"
PRICE_BOOK = "book"
PRICE_DRAFT = "draft"
NODE = "node"
JOIN_TOKEN = "join"
TRANSACTION = "tx"
PERIOD = "period"
ADJUSTMENT = "adj"
LOST_REQUEST = "lost"
USER = "user"
GROUP = "group"
ROLE = "role"
INVITE = "invite"
BUDGET = "bud"
BUDGET_RAISE = "raise"
CREDIT_GRANT = "grant"
CREDIT_TOPUP = "topup"
AUDIT_RECORD = "audit"
PLAN = "plan"
SIGNING_KEY = "sigkey"
TOKEN = "token"
IDENTITY_PROVIDER = "idp"
FEDERATION_RULE = "fedrule"
SESSION = "sess"
FILE = "file"
BATCH = "batch"
MESSAGE_BATCH = "msgbatch"
RESPONSE: Final = "resp"
SIGN_IN_CONNECTION = "conn"
LEAKED_KEY = "leak"
CERTIFICATE = "cert"
CERTIFICATE_RULE = "certrule"
ERASURE = "erase"
OPERATOR = "operator"
OPERATOR_SESSION = "opsess"
LEGAL_ENTITY = "entity"
INVOICE = "inv"
PAYMENT = "pay"
BANK_STATEMENT = "stmt"
EVENT = "evt"
WEBHOOK_ENDPOINT = "hook"
TELEMETRY_EXPORT = "telexp"
CONTRACT = "contract"
DIRECT_DEBIT_FILE = "ddfile"
COST = "cost"
CREDIT_TRANSFER_FILE = "ctfile"

RANDOM_BITS = 74
"""Random bits that one UUIDv7 takes: rand_a (12) and rand_b (62)."""

_ID = re.compile(r"[a-z]{2,8}_[0-9a-f]{32}")


def new_id(prefix: str, now_us: int, random_bits: int) -> str:
    """A new id of kind `prefix` for the instant `now_us` (UTC microseconds since 1970).

    `random_bits` must hold RANDOM_BITS (74) fresh random bits; two ids of the same millisecond differ by them alone.
    """
    milliseconds = now_us // 1000 & 0xFFFF_FFFF_FFFF
    rand_a = random_bits >> 62 & 0xFFF
    rand_b = random_bits & 0x3FFF_FFFF_FFFF_FFFF
    return f"{prefix}_{milliseconds << 80 | 0x7 << 76 | rand_a << 64 | 0x2 << 62 | rand_b:032x}"


def derive_id(prefix: str, at_us: int, cause: str) -> str:
    """Return the id of kind `prefix` of what a cause makes once: the millisecond of the instant `at_us`, so that ids sort by time, and 80
    bits of a SHA-256 over the cause."""
    return f"{prefix}_{at_us // 1000 & 0xFFFF_FFFF_FFFF:012x}{hashlib.sha256(cause.encode()).hexdigest()[:20]}"


class RequestIds:
    """Ids for requests, at half of `new_id`'s price: random digits are drawn for many of them at once, and the time is written once a
    millisecond. In place of 12 random bits stands the fraction of the millisecond (RFC 9562 section 6.2, method 3), and two more are
    left 0: two ids of one microsecond differ by 60."""

    _DIGITS = 15
    _BATCH = 128

    def __init__(self, random_bits: Callable[[int], int]) -> None:
        """`random_bits` gives as many fresh random bits as it is asked for."""
        self._random_bits = random_bits
        self._digits = ""
        self._at = 0
        self._millisecond = -1
        self._time = ""

    def new(self, now_us: int) -> str:
        """A new request id for the instant `now_us`."""
        millisecond = now_us // 1000
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            self._time = REQUEST + "_" + (millisecond & 0xFFFF_FFFF_FFFF).to_bytes(6, "big").hex()
        at, digits = self._at, self._digits
        if at == len(digits):
            count = self._DIGITS * self._BATCH
            digits = self._digits = f"{self._random_bits(4 * count):0{count}x}"
            at = 0
        self._at = end = at + self._DIGITS
        return f"{self._time}{_FRACTIONS[now_us % 1000]}{digits[at:end]}"


_FRACTIONS: Final = tuple(f"7{us * 4096 // 1000:03x}8" for us in range(1000))
"""The version, a fraction of a millisecond, and the variant, by microseconds."""


def first_id(prefix: str, at_us: int) -> str:
    """The least text that an id of kind `prefix` made at instant `at_us` (microseconds) or later can be; ids count milliseconds."""
    return f"{prefix}_{at_us // 1000 << 80:032x}"


def instant_of(prefix: str, id: str) -> int | None:
    """The instant (microseconds, to the millisecond) at which an id of kind `prefix` was made; None if it is no such id."""
    return (int(id[len(prefix) + 1 :], 16) >> 80) * 1000 if is_id(prefix, id) else None


def is_id(prefix: str, text: str) -> bool:
    """Return whether `text` has the form of an id of kind `prefix`. Says nothing about its existence."""
    return text.startswith(prefix + "_") and _ID.fullmatch(text) is not None
