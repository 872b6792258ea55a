"""Stored responses on their way between a gateway and control, which keeps them sealed.

They are sealed here, under a key of their organization, for their place: what was stored for one project opens for no other. Without
control, a new response is delivered and not stored, and a stored one cannot be read.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

import httpx2

from tollway.domain.content_logs import name_response
from tollway.domain.faults import RESPONSES_UNAVAILABLE, Fault
from tollway.link.authorities import trusted_authorities

PATH: Final = "/v1/link/stored_responses"

REQUEST_SECONDS_MAX: Final = 5.0
"""Deadline for one request: a client waits for it at the end of its answer."""

CONCURRENT_MAX: Final = 64
"""Requests at once. More are refused."""

ORGANIZATION_CONCURRENT_MAX: Final = 16
"""Requests at once of one organization, so that none keeps the others from their responses."""

CONNECTIONS_MAX: Final = 2
"""Connections to control; the other requests wait for one. They count against the share of this gateway at control, as those of
`link.token_requests` do."""

_RETRY_SECONDS: Final = 1


class Sealer(Protocol):
    """A vault with the key of one organization."""

    def seal_bytes(self, content: bytes, *, context: str) -> bytes:
        """Seal bytes for a context."""
        ...

    def unseal_bytes(self, sealed: bytes, *, context: str | None = None) -> bytes:
        """Return the bytes inside. Raises ValueError if they were altered, or sealed with another key or for another context."""
        ...


class ResponseStorage:
    """The store of the responses of a gateway's callers (`gateway.ports.ResponseStore`). Use it in one loop; then await `close()`."""

    def __init__(
        self,
        *,
        control_link_url: str,
        node_key: str,
        sealer_of: Callable[[str], Sealer],
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """`sealer_of`: the vault of an organization. `transport` carries the requests (None: TCP)."""
        self.failures = 0
        self._running: Counter[str] = Counter()
        self._sealer_of = sealer_of
        self._client = httpx2.AsyncClient(
            base_url=control_link_url,
            headers={"authorization": f"Bearer {node_key}"},
            timeout=httpx2.Timeout(REQUEST_SECONDS_MAX),
            limits=httpx2.Limits(max_connections=CONNECTIONS_MAX),
            trust_env=False,
            verify=trusted_authorities(),
            transport=transport,
        )

    async def keep(self, organization_id: str, project_id: str, id: str, content: bytes) -> bool:
        """Store a response; return False if it could not be stored."""
        sealed = self._sealer_of(organization_id).seal_bytes(content, context=name_response(organization_id, project_id, id))
        try:
            response = await self._ask("PUT", organization_id, project_id, id, sealed)
        except Fault:
            return False
        return response.status_code == 204

    async def find(self, organization_id: str, project_id: str, id: str) -> bytes | None:
        """Return a stored response; None if the project has none of this id. Raises Fault stored_responses_unavailable."""
        response = await self._ask("GET", organization_id, project_id, id)
        if response.status_code == 404:
            return None
        context = name_response(organization_id, project_id, id)
        try:
            if response.status_code == 200:
                return self._sealer_of(organization_id).unseal_bytes(response.content, context=context)
        except ValueError as error:
            self.failures += 1
            raise _unavailable(str(error)) from None
        raise self._fail(f"control answered {response.status_code}")

    async def delete(self, organization_id: str, project_id: str, id: str) -> bool:
        """Delete a stored response; return False if the project has none of this id. Raises as `find` does."""
        response = await self._ask("DELETE", organization_id, project_id, id)
        if response.status_code not in (204, 404):
            raise self._fail(f"control answered {response.status_code}")
        return response.status_code == 204

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _ask(self, method: str, organization_id: str, project_id: str, id: str, content: bytes | None = None) -> httpx2.Response:
        if self._running.total() >= CONCURRENT_MAX or self._running[organization_id] >= ORGANIZATION_CONCURRENT_MAX:
            raise self._fail("too many requests at once")
        place = {"organization_id": organization_id, "project_id": project_id, "id": id}
        self._running[organization_id] += 1
        try:
            async with asyncio.timeout(REQUEST_SECONDS_MAX):
                return await self._client.request(method, PATH, params=place, content=content)
        except (httpx2.HTTPError, httpx2.StreamError, TimeoutError) as error:
            raise self._fail(type(error).__name__) from None
        finally:
            self._running[organization_id] -= 1
            if not self._running[organization_id]:
                del self._running[organization_id]

    def _fail(self, detail: str) -> Fault:
        self.failures += 1
        return _unavailable(detail)


def _unavailable(detail: str) -> Fault:
    return Fault(RESPONSES_UNAVAILABLE, retry_after_seconds=_RETRY_SECONDS, detail=detail)
