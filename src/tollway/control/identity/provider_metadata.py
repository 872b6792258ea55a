"""Metadata of identity providers, kept for a short time.

Whoever knows the address of a sign-in can ask for it without a credential, and its provider may be slow. So the metadata of a connection
are fetched by one request at a time, for all that ask meanwhile, and again only after a while.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

from tollway.domain.faults import Fault

KEPT_SECONDS = 60.0
"""Time for which metadata are used: an address at a provider changes hardly ever, and the old one works for a while."""

FAILED_SECONDS = 5.0
"""Time for which a provider that could not be reached is not asked again."""

KEPT_MAX = 1_000
"""Connections of which metadata are kept, of some kilobytes each; then those that were asked for first are forgotten."""


class ProviderMetadata(msgspec.Struct, frozen=True):
    """Metadata of a provider (OpenID Connect Discovery 1.0, section 3; RP-Initiated Logout 1.0, section 2.1), as far as they are used."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)
    scopes_supported: tuple[str, ...] = ()
    authorization_response_iss_parameter_supported: bool = False
    end_session_endpoint: str | None = None


@dataclass(slots=True)
class _Entry:
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    found: ProviderMetadata | Fault | None = None
    ends_at: float = 0.0


@dataclass(slots=True)
class MetadataCache:
    """The metadata that were fetched last for each connection. For one event loop. `clock`: seconds."""

    clock: Callable[[], float] = time.monotonic
    _entries: dict[str, _Entry] = field(default_factory=dict)

    async def find(self, connection_id: str, fetch: Callable[[], Awaitable[ProviderMetadata]]) -> ProviderMetadata:
        """Return the metadata of a connection, by `fetch` unless they are known. Raises the Fault of `fetch`, for FAILED_SECONDS."""
        entry = self._entries.get(connection_id)
        if entry is None:
            if len(self._entries) >= KEPT_MAX:
                del self._entries[next(iter(self._entries))]
            entry = self._entries[connection_id] = _Entry()
        async with entry.turn:
            if entry.found is None or entry.ends_at <= self.clock():
                try:
                    entry.found, seconds = await fetch(), KEPT_SECONDS
                except Fault as fault:
                    fault.forget_frames()
                    entry.found, seconds = fault, FAILED_SECONDS
                entry.ends_at = self.clock() + seconds
            found = entry.found
        if isinstance(found, Fault):
            raise Fault(found.kind, message=found.message, detail=found.detail)
        return found
