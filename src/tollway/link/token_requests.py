"""Requests for access tokens that reach a gateway, handed on to control: SDKs look for the token endpoint where they send inference.

Only this needs control at the time of a request. While control is away the client gets a 503
(`temporarily_unavailable`); tokens that it has stay valid.
"""

from typing import Final

import httpx2
import msgspec

from tollway.link.authorities import trusted_authorities

REQUEST_SECONDS_MAX: Final = 10.0
"""Deadline for one request; clients of well-known SDKs wait for 30 seconds."""

CONCURRENT_MAX: Final = 16
"""Requests at once. More are refused: a fleet that starts together comes back, and control must not be flooded through gateways."""

CONNECTIONS_MAX: Final = 4
"""Connections to control; the other requests wait for one. They count against the share of this gateway at control, as its own calls do
(`control.api.places.NODE_REQUESTS_MAX`): whoever asks for tokens must not keep it from renewing leases and handing in usage."""

UNAVAILABLE: Final = (
    503,
    b'{"error":"temporarily_unavailable","error_description":"Tokens cannot be issued right now. Try again in a moment."}',
)


class _Answer(msgspec.Struct, frozen=True):
    """Control's answer: the status and the body for the client."""

    status: int
    body: str


class TokenRequests:
    """The way of requests for tokens to control. Use: `await ask(...)` as often as wanted, then `await close()`."""

    def __init__(self, *, control_link_url: str, node_key: str, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        """`transport` carries the requests (None: TCP)."""
        self._running = 0
        self._client = httpx2.AsyncClient(
            base_url=control_link_url,
            headers={"authorization": f"Bearer {node_key}"},
            timeout=httpx2.Timeout(REQUEST_SECONDS_MAX),
            limits=httpx2.Limits(max_connections=CONNECTIONS_MAX),
            trust_env=False,
            verify=trusted_authorities(),
            transport=transport,
        )

    async def ask(self, body: bytes, content_type: bytes, authorization: bytes | None) -> tuple[int, bytes]:
        """Return the status and the body with which to answer a client that sent this body and these headers."""
        if self._running >= CONCURRENT_MAX:
            return UNAVAILABLE
        message = {"body": body.decode("latin-1"), "content_type": content_type.decode("latin-1")}
        if authorization is not None:
            message["authorization"] = authorization.decode("latin-1")
        self._running += 1
        try:
            response = await self._client.post("/v1/link/oauth_token", json=message)
            if response.status_code == 200:
                answer = msgspec.json.decode(response.content, type=_Answer)
                return answer.status, answer.body.encode()
        except (httpx2.HTTPError, httpx2.StreamError, msgspec.DecodeError):
            pass  # the follower reports a control plane that is away
        finally:
            self._running -= 1
        return UNAVAILABLE

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
