"""Sessions of people who signed in, with a browser or with the command line, and how long each lasts."""

from dataclasses import dataclass
from enum import StrEnum


class SessionKind(StrEnum):
    """Program that has a session."""

    BROWSER = "browser"
    COMMAND_LINE = "command_line"


class SignInMethod(StrEnum):
    """Means by which a person proved who they are."""

    PASSWORD = "password"
    PASSWORD_AND_CODE = "password_and_code"
    LINK = "link"
    """A one-time link."""
    INVITE = "invite"
    """An invitation, which they accepted."""
    PROVIDER = "provider"
    """The identity provider of the organization."""
    KEY = "key"
    """A key of operators."""
    DEVICE = "device"
    """A session of a browser approved the command line (RFC 8628)."""


@dataclass(frozen=True, slots=True)
class SessionLifetime:
    """Seconds after which a session ends: without a request, and in any case."""

    idle_seconds: int
    seconds: int


LIFETIMES = {
    SessionKind.BROWSER: SessionLifetime(idle_seconds=3_600, seconds=12 * 3_600),
    SessionKind.COMMAND_LINE: SessionLifetime(idle_seconds=7 * 86_400, seconds=30 * 86_400),
}

USE_SECONDS = 60
"""Precision of the latest use of a session: it is noted at most so often."""

RECENT_SECONDS = 900
"""Time after a sign-in in which a person can set a password without the one before, if a link, an invitation or their provider proved who
they are."""

SESSIONS_MAX = 20
"""Live sessions of one person. The one that was used longest ago ends when another one begins."""

AGENT_CHARACTERS_MAX = 200
"""Longest description of the program that has a session, as it is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session of a person in an organization. `agent`: what the browser or command line says that it is. `address`: where the person
    signed in from. Instants are UTC microseconds; `expires_at` is exclusive, and the session ends earlier without a request."""

    id: str
    user_id: str
    kind: SessionKind
    method: SignInMethod
    address: str
    agent: str
    created_at: int
    last_used_at: int
    expires_at: int

    def ends_at(self) -> int:
        """Return the instant at which it ends without another request (exclusive)."""
        return min(self.expires_at, self.last_used_at + LIFETIMES[self.kind].idle_seconds * 1_000_000)

    def is_recent(self, now: int) -> bool:
        """Return whether the person signed in less than RECENT_SECONDS ago."""
        return now - self.created_at < RECENT_SECONDS * 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSession:
    """A session of an operator who signed in with the identity provider of the platform. `operator_id`, `email` and `name`: of the
    operator, as the provider said at the sign-in. The other fields are as in `Session`. It ends after as long without a request as one of
    a browser, and in any case with the sign-in of the browser that it began with."""

    id: str
    operator_id: str
    email: str
    name: str
    kind: SessionKind
    method: SignInMethod
    address: str
    agent: str
    created_at: int
    last_used_at: int
    expires_at: int

    def ends_at(self) -> int:
        """Return the instant at which it ends without another request (exclusive)."""
        return min(self.expires_at, self.last_used_at + LIFETIMES[SessionKind.BROWSER].idle_seconds * 1_000_000)
