"""Refusals and answers of the token endpoint (RFC 6749, section 5)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

Parameters = Mapping[str, str]


class ExchangeRefused(Exception):
    """The refusal of a token. `error`: a code of RFC 6749, section 5.2. `description`: for the client's developer. `detail`: for the
    log."""

    def __init__(self, error: str, description: str, *, status: int = 400, detail: str = "") -> None:
        super().__init__(error)
        self.error = error
        self.description = description
        self.status = status
        self.detail = detail


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A new access token. `issued_token_type`: of RFC 8693, section 2.2.1; None for other grants. `refresh_token`: for the next one, of a
    person; None for a program."""

    access_token: str = field(repr=False)
    expires_in: int
    issued_token_type: str | None = None
    refresh_token: str | None = field(default=None, repr=False)
