"""A sink that is an HTTP endpoint of the operator: each POST has a JSON array of records, signed as webhooks are."""

import hashlib
from collections.abc import Callable, Sequence

import httpx2

from tollway.control.authorities import read_authorities
from tollway.control.eventing.sinks import SinkFailure
from tollway.domain.sinks import SinkMessage, count_fitting
from tollway.domain.webhooks import sign

ANSWER_SECONDS = 20.0
"""Deadline of one POST."""

RECORDS_MAX = 1_000
"""Records of one POST."""

BYTES_MAX = 1 << 20
"""Bytes of one POST with more than one record. After an answer 413 a process sends half of what was refused."""

TOO_LARGE = 413
"""Status of a receiver that takes no body of this size."""


class HttpSink:
    """An endpoint that takes records. `secret`: whsec_..., by Standard Webhooks. `webhook-id` follows from the ids of the records: the
    same records have the same one."""

    name = "http"

    def __init__(self, url: str, secret: str, now: Callable[[], int]) -> None:
        self._url, self._secret, self._now = url, secret, now
        self._bytes_max = BYTES_MAX

    async def send(self, messages: Sequence[SinkMessage]) -> None:
        """Return once all these are taken: each POST is answered with a status from 200 to 299."""
        try:
            async with httpx2.AsyncClient(
                follow_redirects=False, trust_env=False, verify=read_authorities(), timeout=ANSWER_SECONDS
            ) as client:
                left = messages
                while left:
                    part = left[: count_fitting(left, RECORDS_MAX, self._bytes_max)]
                    status = await self._post(client, part)
                    if 200 <= status < 300:
                        left = left[len(part) :]
                    elif status == TOO_LARGE and len(part) > 1:
                        self._bytes_max = sum(len(each.body) for each in part) // 2
                    else:
                        raise SinkFailure(f"records were not taken: status {status}{' for one record' if status == TOO_LARGE else ''}")
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise SinkFailure(f"records were not taken: {type(error).__name__}") from None

    async def close(self) -> None:
        """Do nothing: each call has connections of its own."""

    async def _post(self, client: httpx2.AsyncClient, messages: Sequence[SinkMessage]) -> int:
        """Return the status of the answer."""
        body = b"[" + b",".join(each.body for each in messages) + b"]"
        id = "batch_" + hashlib.sha256("\0".join(each.id for each in messages).encode()).hexdigest()[:32]
        headers = {**sign([self._secret], id, self._now() // 1_000_000, body), "content-type": "application/json"}
        async with client.stream("POST", self._url, content=body, headers=headers) as answer:
            return answer.status_code
