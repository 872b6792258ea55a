"""Phase 4: where to? Candidates in the order in which they are tried: lower tiers first, by weight within a tier, ejected ones last."""

from collections.abc import Callable

from tollway.domain.faults import UPSTREAM_NONE, Fault
from tollway.gateway.request import Call
from tollway.gateway.upstreams.upstream import Upstream, Upstreams

CANDIDATES_MAX = 4
"""Upstreams tried for one request; more only delays the answer that the client must get anyway."""


def route(call: Call, upstreams: Upstreams, now: float, random: Callable[[], float]) -> list[Upstream]:
    """The upstreams to try for this call, best first. Raises Fault no_upstream if the model has none that takes requests.

    `random`: uniform in [0, 1). Within a tier the order is a weighted shuffle (Efraimidis and Spirakis 2006): the chance to stand first is
    the share of the weight.
    """
    known = upstreams.of(call.model.id)
    if len(known) == 1 and known[0].deployment.weight > 0:
        return [known[0]]
    open = [upstream for upstream in known if upstream.deployment.weight > 0]
    if not open:
        raise Fault(UPSTREAM_NONE, retry_after_seconds=5)
    return sorted(
        open,
        key=lambda upstream: (
            upstream.ejected_until > now,
            upstream.deployment.tier,
            -(random() ** (1.0 / upstream.deployment.weight)),
        ),
    )[:CANDIDATES_MAX]
