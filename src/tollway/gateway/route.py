"""Phase 4: choose the upstreams of a request, in the order in which they are tried: lower tiers first, by weight within a tier, and
those that are doubtful or down last (`upstreams.health`). Of equally good ones those that are full come last, whatever their tier: what
does not fit into a tier goes to the next before it waits.

Where fewer than half of a model's upstreams are good, doubt is ignored: if a busy moment failed at most of them, the others would get the
load of all, and fail next. Those that are down stay last.
"""

from collections.abc import Callable

from tollway.domain.faults import UPSTREAM_NONE, Fault
from tollway.gateway.request import Call
from tollway.gateway.upstreams.health import Reliability
from tollway.gateway.upstreams.upstream import Upstream, Upstreams

CANDIDATES_MAX = 4
"""Most upstreams tried for one request; more would only delay the error that the client gets in the end."""


def route(call: Call, upstreams: Upstreams, now: float, random: Callable[[], float]) -> list[Upstream]:
    """Return the upstreams to try for this call, best first; if the first one is full, nothing as good has a place.

    Raises Fault no_upstream if no deployment of the model takes requests.

    `random`: uniform in [0, 1). Within a tier the order is a weighted shuffle (Efraimidis and Spirakis 2006): the probability of being
    first is the share of the weight.
    """
    known = upstreams.of(call.model.id, test=call.caller.is_test)
    if len(known) == 1 and known[0].deployment.weight > 0:
        return [known[0]]
    open = [upstream for upstream in known if upstream.deployment.weight > 0]
    if not open:
        raise Fault(UPSTREAM_NONE, retry_after_seconds=5)
    endpoint = call.request.endpoint
    reliabilities = [upstream.health.reliability(endpoint, now) for upstream in open]
    if 2 * reliabilities.count(Reliability.GOOD) < len(open):
        reliabilities = [Reliability.GOOD if reliability is Reliability.DOUBTFUL else reliability for reliability in reliabilities]
    ranked = [
        (
            reliability,
            upstream.running >= upstream.limit,
            upstream.deployment.tier,
            -(random() ** (1.0 / (upstream.deployment.weight * upstream.health.share(now)))),
            number,
        )
        for number, (upstream, reliability) in enumerate(zip(open, reliabilities, strict=True))
    ]
    ranked.sort()
    candidates = [open[rank[-1]] for rank in ranked[:CANDIDATES_MAX]]
    if not ranked[0][1]:
        candidates[0].health.begin_trial(endpoint, now)
    return candidates
