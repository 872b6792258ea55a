"""Logged content on its way from a gateway to control, which keeps it sealed.

It is sealed here, under a key of its organization, for its place, so that the link carries no conversation; control seals it once more
under the organization's data key. What waits is bounded, in number, bytes and time. Content that finds no space, or that control did not
accept in time, is lost and counted: no request waits for it, and none fails.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import httpx2
import msgspec

from tollway.domain.content_logs import Content, ContentRecord, name_content
from tollway.link.authorities import trusted_authorities
from tollway.link.response_store import Sealer

PATH: Final = "/v1/link/content"

WAITING_MAX: Final = 1_000
"""Contents that wait to be sent."""

WAITING_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bytes of them, before they are sealed."""

REQUEST_SECONDS_MAX: Final = 5.0
"""Deadline for one request."""

KEPT_SECONDS_MAX: Final = 60.0
"""Time after which content that control could not take is given up."""

PAUSE_SECONDS: Final = 1.0
"""Pause after a request that failed."""

CLOSE_SECONDS_MAX: Final = 3.0
"""Time for what waits when the process ends."""


class _Waiting(NamedTuple):
    record: ContentRecord
    content: bytes
    since: float


class ContentSender:
    """The log of content of one gateway (`gateway.ports.ContentLog`). Use it in one loop: `run()` as a task until it is cancelled, then
    `await close()`. `dropped`: contents that were lost."""

    def __init__(
        self,
        *,
        control_link_url: str,
        node_key: str,
        sealer_of: Callable[[str], Sealer],
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """`sealer_of`: the vault of an organization. `transport` carries the requests (None: TCP)."""
        self.dropped = 0
        self._sealer_of = sealer_of
        self._waiting: deque[_Waiting] = deque()
        self._bytes = 0
        self._added = asyncio.Event()
        self._client = httpx2.AsyncClient(
            base_url=control_link_url,
            headers={"authorization": f"Bearer {node_key}"},
            timeout=httpx2.Timeout(REQUEST_SECONDS_MAX),
            limits=httpx2.Limits(max_connections=1),
            trust_env=False,
            verify=trusted_authorities(),
            transport=transport,
        )

    def add(self, record: ContentRecord, content: Content) -> None:
        """Take content; lose it if too much waits."""
        encoded = msgspec.json.encode(content)
        if len(self._waiting) >= WAITING_MAX or self._bytes + len(encoded) > WAITING_BYTES_MAX:
            self.dropped += 1
            return
        self._waiting.append(_Waiting(record, encoded, asyncio.get_running_loop().time()))
        self._bytes += len(encoded)
        self._added.set()

    async def run(self) -> None:
        """Send until cancelled. It can be run again: what it was sending is sent again, which control notices."""
        while True:
            await self._added.wait()
            self._added.clear()
            while self._waiting:
                if not await self._send_next():
                    await asyncio.sleep(PAUSE_SECONDS)

    async def close(self) -> None:
        """Send what waits, as far as control takes it at once, and close the connection. Call it once `run` has ended."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                while self._waiting and await self._send_next():
                    pass
        except TimeoutError:
            pass
        self.dropped += len(self._waiting)
        self._waiting.clear()
        await self._client.aclose()

    async def _send_next(self) -> bool:
        """Send what has waited longest. Return False if control did not answer, or can take nothing at the moment."""
        waiting = self._waiting[0]
        record = waiting.record
        status = await self._put(record, waiting.content)
        is_late = asyncio.get_running_loop().time() - waiting.since >= KEPT_SECONDS_MAX
        if not is_late and (status in (0, 408, 429) or status >= 500):
            return False
        if status != 204:
            self.dropped += 1
        self._waiting.popleft()
        self._bytes -= len(waiting.content)
        return True

    async def _put(self, record: ContentRecord, content: bytes) -> int:
        """Return the status of control's answer; 0 if there was none."""
        context = name_content(record.organization_id, record.project_id, record.id)
        sealed = self._sealer_of(record.organization_id).seal_bytes(content, context=context)
        try:
            async with asyncio.timeout(REQUEST_SECONDS_MAX):
                return (await self._client.put(PATH, params=msgspec.to_builtins(record), content=sealed)).status_code
        except (httpx2.HTTPError, httpx2.StreamError, TimeoutError):
            return 0
