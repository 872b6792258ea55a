"""Leaked keys: what becomes of a key whose secret was found where others can read it."""

from enum import StrEnum

import msgspec


class LeakPolicy(StrEnum):
    """Wish of an organization for a secret that is reported as leaked."""

    REVOKE = "revoke"
    """The secret ends at once, and the owners are notified."""
    NOTIFY = "notify"
    """The owners are notified."""
    RECORD = "record"
    """The report is recorded."""


class LeakSource(StrEnum):
    """Reporter of a leaked secret."""

    GITHUB = "github"
    ADMIN = "admin"
    OPERATOR = "operator"


class LeakAction(StrEnum):
    """Outcome of a report for its secret."""

    REVOKED = "revoked"
    """The key was revoked."""
    RETIRED = "retired"
    """The secret before the latest rotation was ended, and the key goes on with its new one."""
    NONE = "none"
    """The secret stays valid: the policy of the organization wants so."""
    INACTIVE = "inactive"
    """The secret was not valid any more."""


REPORTED_MAX = 100
"""Secrets in one report."""

URL_CHARACTERS_MAX = 2_048
"""Longest address of a place that is stored; the rest is cut."""


class LeakedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A secret of a key of an organization that was reported as leaked. `redacted`: the part of it that may be shown, by which the two
    secrets of a key differ. `url`: where it was found, empty if nobody said. `reported_at`: of the first report, UTC microseconds."""

    id: str
    organization_id: str
    key_id: str
    redacted: str
    source: LeakSource
    url: str
    action: LeakAction
    reported_at: int
