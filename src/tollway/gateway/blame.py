"""Attribution of faults: which upstream counts a failure, and which request may be sent again elsewhere, and how many."""

import time
from typing import Final

from tollway.domain import faults
from tollway.domain.faults import Fault, Retry
from tollway.gateway.request import Call
from tollway.gateway.upstreams.upstream import Upstream

_monotonic: Final = time.monotonic

_OF_REQUEST_PERHAPS = frozenset(
    {faults.UPSTREAM_FAILED, faults.UPSTREAM_CUT, faults.UPSTREAM_INVALID, faults.UPSTREAM_TIMEOUT_FIRST, faults.UPSTREAM_TIMEOUT_TOTAL}
)
"""Faults that a request may cause at an engine that is well: by a picture that it cannot read, or a prompt that stops it."""
REFUSALS: Final = frozenset({faults.UPSTREAM_REFUSED, faults.UPSTREAM_RATE_LIMITED})
"""Faults with which an engine refuses a request for its load, so that it may be sent again later."""


class HeldFaults:
    """Faults of one request of which it is not known yet whether they are the upstreams' or its own.

    If another upstream answered it, the upstreams before are to blame. If two failed and none answered, the request is, and no upstream
    counts a failure: one tenant's request must not take an engine from its neighbours. An upstream that refused the request for its load
    is reported once another one has begun to answer it.
    """

    __slots__ = ("_call", "_held", "_refused")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._held: list[tuple[Upstream, Fault]] | None = None
        self._refused: list[tuple[Upstream, Fault, float]] | None = None

    def add(self, upstream: Upstream, fault: Fault, *, has_begun: bool) -> None:
        """Hold a fault that may be the request's; report any other to the upstream at once, and of one in mid-answer."""
        if not has_begun and fault.kind in _OF_REQUEST_PERHAPS:
            if self._held is None:
                self._held = []
            self._held.append((upstream, fault))
        else:
            self._blame(upstream, fault, has_begun=has_begun)
            if not has_begun and fault.kind in REFUSALS:
                if self._refused is None:
                    self._refused = []
                self._refused.append((upstream, fault, _monotonic()))

    def begin_answer(self) -> None:
        """An upstream has begun to answer the request: report the failure to those that refused it."""
        refused, self._refused = self._refused, None
        if refused is not None:
            now = _monotonic()
            for upstream, fault, refused_at in refused:
                upstream.refuse(fault, refused_at, now)

    def decide(self, *, is_answered: bool) -> None:
        """The request has ended: report the failure to the upstreams that are to blame."""
        if is_answered:
            self.begin_answer()
        held = self._held
        if held is not None and (is_answered or len(held) == 1):
            for upstream, fault in held:
                self._blame(upstream, fault, has_begun=False)

    def _blame(self, upstream: Upstream, fault: Fault, *, has_begun: bool) -> None:
        call = self._call
        upstream.fail(fault, call.request.endpoint, call.caller.organization.id, _monotonic(), has_begun=has_begun)


def may_retry(fault: Fault, call: Call) -> bool:
    """Return whether a request that failed with a fault, before anything was sent to the client, may be sent again elsewhere."""
    retry = fault.kind.retry
    return retry is Retry.SAFE or (retry is Retry.STARTED and call.model.retry_started)


class RetryBudget:
    """Retries over the whole process: at most a fifth of the requests, with a reserve of a few when there is little traffic.

    When every engine fails, unlimited retries would multiply the load on what is left. MOST is what can be saved up.
    """

    RATIO = 0.2
    RESERVE = 10.0
    MOST = 100.0

    def __init__(self) -> None:
        self._tokens = self.RESERVE

    def earn(self) -> None:
        """A request came in."""
        tokens = self._tokens + self.RATIO
        self._tokens = tokens if tokens < self.MOST else self.MOST

    def spend(self) -> bool:
        """Return whether one more retry may be made; takes it."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
