"""Health of one upstream: what its answers and faults, and its own word, say about sending it more requests.

An upstream is ejected after FAILURES_TO_EJECT failures without a success between them, or at once if it cannot be connected to. An ejected
upstream is used when no better one is left, because a doubtful engine is better than none. When its time is over, one request tries it: an
answer restores it, a failure doubles the time. An upstream that says that it takes no requests, or cannot be asked (`probes`), is avoided
until it says otherwise; then the next request tries it, whatever is left of an ejection, and its share grows over SLOW_START_SECONDS.

Failures alone leave a doubt (`Reliability.DOUBTFUL`): one busy moment can fail everywhere at once. Where most upstreams of a model are
avoided, the doubtful ones are used like any other (`gateway.route`), so that the rest does not get the load of all.

A refusal for the load of the moment is no failure: an engine that is full answers others. One that answers nobody any more, while other
upstreams begin to answer what it refused, is avoided like one that fails: retries, which are few, would be spent on it.

Two things keep a client from harming its neighbours. Failures of one organization alone eject nothing while the upstream answers others.
And a fault that the same request caused at two upstreams is not recorded at all (`gateway.relay`).

A fault of the deployment's own (a model that is not loaded, an endpoint that is missing, a credential that is refused) does not pass by
itself. It ejects the upstream from that endpoint at once, for longer.
"""

from enum import IntEnum
from typing import NamedTuple

from tollway.domain import faults
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Blame, Fault, FaultKind

FAILURES_TO_EJECT = 3
EJECTION_SECONDS = 0.5
EJECTION_SECONDS_MAX = 1.5
"""The first ejection and the longest. A trial costs one request a retry, so an engine that came back is noticed within two seconds."""
SILENCE_EJECTION_SECONDS_MAX = 8.0
"""The longest after an engine that fell silent: a trial of such a one costs a request all the time of its deadline."""
MISCONFIGURED_SECONDS = 15.0
MISCONFIGURED_SECONDS_MAX = 300.0
"""The same for a fault that lasts until an operator acts."""
ALIVE_SECONDS = 1.0
"""An upstream that has begun an answer within this time is alive, whatever becomes of one organization's requests."""

SLOW_START_SECONDS = 10.0
"""Time in which the share of an upstream that came back grows to its weight: its caches are empty."""
SHARE_FIRST = 0.1
"""Part of its weight with which it begins."""
SILENT_PROBES_MAX = 3
"""Probes without an answer in time, in a row, after which an upstream counts as not ready. A busy one may miss some."""

_SILENCES = frozenset({faults.UPSTREAM_TIMEOUT_FIRST, faults.UPSTREAM_TIMEOUT_IDLE, faults.UPSTREAM_TIMEOUT_TOTAL})
_NOT_FAILURES = frozenset({faults.UPSTREAM_STALE, faults.UPSTREAM_REFUSED, faults.UPSTREAM_RATE_LIMITED})
"""Faults of an idle connection or of the moment's load."""


class Reliability(IntEnum):
    """Grades of how far an upstream can be relied on, best first."""

    GOOD = 0
    DOUBTFUL = 1
    """Ejected because requests failed, or were refused and answered by others."""
    DOWN = 2
    """Cannot be connected to, says that it takes no requests, or cannot serve the endpoint."""


class EjectionState(NamedTuple):
    """An ejection as operators see it. `endpoint`: None for every endpoint. `reason`: code of the fault that began or prolonged it. `since`
    and `until`: seconds of the monotonic clock; once `until` has passed, the next request tries the upstream."""

    endpoint: Endpoint | None
    reason: str
    since: float
    until: float


class _Ejection:
    """Time in which an upstream is avoided. `since` and `until`: seconds of the monotonic clock; `until` is 0 once it was answered again.
    `seconds`: its length. `is_tried`: a request is on its way that decides. `reliability`: that of the upstream meanwhile. `reason`: the
    code of the fault."""

    __slots__ = ("is_tried", "reason", "reliability", "seconds", "since", "until")

    def __init__(self) -> None:
        self.reliability = Reliability.DOUBTFUL
        self.reason = ""
        self.since = 0.0
        self.until = 0.0
        self.seconds = 0.0
        self.is_tried = False


class Health:
    """Failures and ejections of one upstream. All times are seconds of the monotonic clock.

    `steady_at`: from when on it is `Reliability.GOOD` for every endpoint and counts in full, infinite while something must happen first.
    """

    __slots__ = (
        "_answered_at",
        "_ejections",
        "_failures",
        "_organizations",
        "_refusals",
        "_refused_at",
        "_returned_at",
        "_silent_probes",
        "is_ready",
        "steady_at",
    )

    def __init__(self) -> None:
        self.is_ready = True
        self._silent_probes = 0
        self._returned_at = float("-inf")
        self._failures = 0
        self._organizations: set[str] = set()  # whose requests failed since the last success; two are enough to know
        self._answered_at = float("-inf")
        self._refusals = 0  # since the last answer
        self._refused_at = float("-inf")
        self._ejections: dict[Endpoint | None, _Ejection] = {}  # None: from every endpoint
        self.steady_at = float("-inf")

    def allows(self, endpoint: Endpoint, now: float) -> bool:
        """Return whether requests for `endpoint` may go to this upstream while others are left."""
        return self.reliability(endpoint, now) is Reliability.GOOD

    def reliability(self, endpoint: Endpoint, now: float) -> Reliability:
        """Return how far this upstream can be relied on for `endpoint`."""
        if not self.is_ready:
            return Reliability.DOWN
        ejections = self._ejections
        if not ejections:
            return Reliability.GOOD
        return max(
            (ejections[key].reliability for key in (None, endpoint) if key in ejections and now < ejections[key].until),
            default=Reliability.GOOD,
        )

    def share(self, now: float) -> float:
        """Return the part of its weight that counts: 1, or less for an upstream that came back lately."""
        share = (now - self._returned_at) / SLOW_START_SECONDS
        if share >= 1.0:
            return 1.0
        return max(SHARE_FIRST, share)

    def probed(self, is_ready: bool | None, now: float) -> bool:
        """Take what a probe found: the upstream's word, or None if it did not answer in time. Return whether `is_ready` changed.

        An upstream that became ready is tried by the next request; one that was ready all along is not tried earlier for it, because some
        engines say so while each of their answers fails.
        """
        if is_ready is None:
            self._silent_probes += 1
            is_ready = self.is_ready and (self._silent_probes < SILENT_PROBES_MAX or now - self._answered_at < ALIVE_SECONDS)
        else:
            self._silent_probes = 0
        if is_ready is self.is_ready:
            return False
        self.is_ready = is_ready
        if is_ready:
            self._returned_at = now
            ejection = self._ejections.get(None)
            if ejection is not None:
                ejection.until = min(ejection.until, now)
        self._settle()
        return True

    def begin_trial(self, endpoint: Endpoint, now: float) -> None:
        """A request for `endpoint` is sent to this upstream first. If an ejection is over, that request is its trial, and all others go
        elsewhere until it is decided or as much time has passed again."""
        for key in (None, endpoint):
            ejection = self._ejections.get(key)
            if ejection is not None and 0.0 < ejection.until <= now:
                ejection.until = now + ejection.seconds
                ejection.is_tried = True

    def begin_answer(self, endpoint: Endpoint, now: float) -> None:
        """The upstream began to answer a request: it is used again. Its failures are forgotten when it has ended an answer."""
        self._answered_at = now
        if self._ejections:
            for key in (None, endpoint):
                ejection = self._ejections.get(key)
                if ejection is not None:
                    ejection.until = 0.0
                    ejection.is_tried = False

    def succeed(self, endpoint: Endpoint, now: float) -> None:
        """The upstream ended an answer as it should."""
        self._answered_at = now
        if self._failures:
            self._failures = 0
            self._organizations.clear()
        if self._ejections:
            ejection = self._ejections.pop(None, None)
            if ejection is not None and ejection.reliability is Reliability.DOWN and self._returned_at < now - SLOW_START_SECONDS:
                self._returned_at = now
            self._ejections.pop(endpoint, None)
            self._settle()

    def fail(self, fault: Fault, endpoint: Endpoint, organization_id: str, now: float, *, has_begun: bool) -> bool:
        """Record the fault with which a request for `endpoint` ended. `has_begun`: a part of the answer was sent to the client.

        Return whether this begins or prolongs an ejection. Faults of the request, of the gateway, and of the moment's load are no failures.
        """
        kind = fault.kind
        if kind is faults.UPSTREAM_MISCONFIGURED:
            return self._eject(endpoint, now, MISCONFIGURED_SECONDS, MISCONFIGURED_SECONDS_MAX, Reliability.DOWN, kind.code)
        if kind.blame is not Blame.UPSTREAM or kind in _NOT_FAILURES:
            return False
        self._failures += 1
        if len(self._organizations) < 2:
            self._organizations.add(organization_id)
        if kind is faults.UPSTREAM_CONNECT:
            return self._eject(None, now, EJECTION_SECONDS, EJECTION_SECONDS_MAX, Reliability.DOWN, kind.code)
        if self._failures < FAILURES_TO_EJECT:
            return False
        if has_begun or len(self._organizations) > 1 or now - self._answered_at >= ALIVE_SECONDS:
            longest = SILENCE_EJECTION_SECONDS_MAX if kind in _SILENCES else EJECTION_SECONDS_MAX
            return self._eject(None, now, EJECTION_SECONDS, longest, Reliability.DOUBTFUL, kind.code)
        return False

    def refuse(self, kind: FaultKind, refused_at: float, now: float) -> bool:
        """Record that a request which this upstream refused for its load, with a fault of `kind`, has begun to be answered by another one.
        `refused_at`: when that was. Return whether this begins or prolongs an ejection."""
        if refused_at <= self._answered_at:
            return False
        if self._refused_at <= self._answered_at:
            self._refusals = 0
        self._refused_at = refused_at
        self._refusals += 1
        if self._refusals < FAILURES_TO_EJECT or now - self._answered_at < ALIVE_SECONDS:
            return False
        return self._eject(None, now, EJECTION_SECONDS, EJECTION_SECONDS_MAX, Reliability.DOUBTFUL, kind.code)

    def list_ejections(self) -> list[EjectionState]:
        """Return the ejections that no answer has ended yet, those whose time has passed as well."""
        return [EjectionState(key, each.reason, each.since, each.until) for key, each in self._ejections.items() if each.until > 0.0]

    def _eject(
        self, key: Endpoint | None, now: float, first_seconds: float, seconds_max: float, reliability: Reliability, reason: str
    ) -> bool:
        ejection = self._ejections.get(key)
        if ejection is None:
            ejection = self._ejections[key] = _Ejection()
        elif now < ejection.until and not ejection.is_tried:
            return False  # a request that was sent before the ejection began
        if ejection.until <= 0.0:
            ejection.since = now
        ejection.reason = reason
        ejection.seconds = min(max(2 * ejection.seconds, first_seconds), seconds_max)
        ejection.until = now + ejection.seconds
        ejection.is_tried = False
        ejection.reliability = reliability
        self._settle()
        return True

    def _settle(self) -> None:
        """Set `steady_at` after a change."""
        self.steady_at = self._returned_at + SLOW_START_SECONDS if self.is_ready and not self._ejections else float("inf")
