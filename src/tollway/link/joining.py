"""Joining: how a gateway that was handed a join token registers the id and the key that it made for itself.

The request can be repeated without effect, so an answer that was lost, or a process that died before it stored the answer, costs nothing.
"""

import asyncio
import random
from collections.abc import Callable

import httpx2

from tollway.link.authorities import trusted_authorities
from tollway.link.recovery import Alarm

BACKOFF_SECONDS_MIN, BACKOFF_SECONDS_MAX = 0.1, 5.0
"""Pauses before the next attempt while control is unavailable."""

REFUSED_SECONDS = 30.0
"""Pause after a refusal: only an operator can change it, by a new token and a restart, or by registering this node."""

REQUEST_SECONDS_MAX = 10.0
"""Deadline for one attempt."""


async def join(
    control_link_url: str,
    *,
    token: str,
    node_id: str,
    node_key: str,
    alarm: Alarm,
    on_joined: Callable[[], None],
    transport: httpx2.AsyncBaseTransport | None = None,
) -> None:
    """Register this node with `token`, and call `on_joined` once control has confirmed it. Tries until it succeeds; raises an alarm for
    each change of the reason why it does not. `transport` carries the requests (None: TCP)."""
    reported, pause_seconds = "", BACKOFF_SECONDS_MIN
    async with httpx2.AsyncClient(
        base_url=control_link_url,
        headers={"authorization": f"Bearer {token}"},
        timeout=REQUEST_SECONDS_MAX,
        trust_env=False,
        verify=trusted_authorities(),
        transport=transport,
    ) as client:
        while True:
            try:
                answer = await client.post("/v1/link/join", json={"node_id": node_id, "key": node_key})
            except (httpx2.HTTPError, httpx2.StreamError):
                # An unavailable control plane is reported by the follower.
                await asyncio.sleep(pause_seconds * random.uniform(0.5, 1.0))
                pause_seconds = min(pause_seconds * 2, BACKOFF_SECONDS_MAX)
                continue
            if answer.status_code == 200:
                on_joined()
                return
            reason = f"control answered {answer.status_code} to the join token"
            if reason != reported:
                reported = reason
                alarm("join_refused", {"node_id": node_id, "error": reason})
            await asyncio.sleep(REFUSED_SECONDS if answer.status_code < 500 else BACKOFF_SECONDS_MAX)
