"""Limits of a gateway process among others: the store of shared counters where one is configured, and the count of gateways.

Several gateways without a store would each apply every limit by itself, so that a tenant could use a multiple of it. Such a gateway ends,
with a text that says what to do, unless the operator has accepted limits per gateway. Control counts the gateways and says so with every
acknowledgement; while it is away, the last count holds.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from tollway.gateway.background import BackgroundTasks
from tollway.gateway.plane import Plane
from tollway.gateway.shared_counters import SharedCounters
from tollway.settings import OperatorError
from tollway.storage.shared_counters import RedisCounters, StoreOptions

Alarm = Callable[[str, dict[str, object]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsOptions:
    """Place where limits are counted: a store that all gateways share, or each gateway by itself (`store` None). `per_gateway`: the
    operator accepts that each of several gateways applies every limit by itself."""

    store: StoreOptions | None = None
    per_gateway: bool = False


class GatewayCount:
    """The number of gateways, as control counts them, and what follows from it. `stop` is called when this gateway must not go on."""

    def __init__(self, options: LimitsOptions, counters: SharedCounters | None, alarm: Alarm, stop: Callable[[], object]) -> None:
        self.gateways = 1
        self._options = options
        self._counters = counters
        self._alarm = alarm
        self._stop = stop
        self._is_first = True
        self._is_refused = False

    def note(self, gateways: int) -> None:
        """Take the count of live gateways, this one included."""
        was_first, self._is_first = self._is_first, False
        before, self.gateways = self.gateways, max(gateways, 1)
        if self._counters is not None:
            self._counters.gateways = self.gateways
        elif self.gateways > 1 and not self._options.per_gateway:
            if was_first:
                self._is_refused = True
                self._stop()
            elif before == 1:  # the other one started later, and is the one that ends
                self._alarm("several_gateways_without_store", {"gateways": self.gateways})

    def raise_if_refused(self) -> None:
        """Raise OperatorError if this gateway ended because there are others and no store."""
        if self._is_refused:
            others = "another gateway runs" if self.gateways == 2 else f"{self.gateways - 1} other gateways run"
            raise OperatorError(
                f"{others}, and no store for shared limit counters is configured",
                hint="set gateway.limits.redis_url to one Redis or Valkey for all gateways, or gateway.limits.per_gateway to true, so that "
                "each gateway applies every limit by itself",
            )


def start_counters(options: LimitsOptions, plane: Plane, node_id: str, alarm: Alarm, background: BackgroundTasks) -> SharedCounters | None:
    """Let the requests of `plane` be counted in the store that `options` name, and return these counters; None if there is none."""
    expose = plane.metrics.expose
    expose("tollway_limits_end_users_together", lambda: plane.limits.end_users_together)
    if options.store is None:
        return None
    counters = SharedCounters(f"{node_id}.{secrets.token_hex(4)}", time.monotonic_ns, plane.directory.end_user_key)
    store = RedisCounters(options.store, recover=counters.restore, alarm=alarm)
    counters.use(store)
    plane.limits = counters
    background.start("limits store", store.run)
    background.start("limits leases", counters.run)
    expose("tollway_limits_store_available", lambda: float(store.is_available))
    expose("tollway_limits_gateways", lambda: counters.gateways)
    expose("tollway_limits_decided_by_store", lambda: counters.by_store)
    expose("tollway_limits_decided_alone", lambda: counters.alone)
    expose("tollway_limits_store_losses", lambda: counters.losses)
    expose("tollway_limits_store_unanswered", lambda: store.metrics.unanswered)
    expose("tollway_limits_store_errors", lambda: store.metrics.failures)
    expose("tollway_limits_store_refused", lambda: store.metrics.refused)
    expose("tollway_limits_store_seconds_max", lambda: store.metrics.seconds_max)
    return counters
