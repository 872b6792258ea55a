"""Serving by another model what a spent budget would refuse, before the request is limited, routed and metered.

Only requests come here that a budget with a fallback model binds, and that have no idempotency key: a stored answer belongs to the body as
it came. Their budgets are reserved before their limits, so that a request counts
once, in the limits of the model that serves it. What falls back is a new call by the rules of any other: the model must be allowed to the
key and have a price, what binds the call must have enough left, and what is billed is its price.
"""

from tollway.domain.faults import Fault
from tollway.gateway.authorize import authorize, with_model
from tollway.gateway.budgets import BudgetHold, read_max_cost
from tollway.gateway.plane import Plane
from tollway.gateway.request import Call

FALLBACK_HEADER = b"x-tollway-budget-fallback-from: %b\r\n"
"""Line in the head of an answer that names the model that was asked for."""


async def reserve_or_fall_back(call: Call, plane: Plane) -> BudgetHold:
    """Return the reservation of a call, or of the one to which it falls back (`BudgetHold.call`). Await nothing more; end it by `settle`.

    Raises Fault: as the reservation of the call does where nothing can serve it in its place, as that of the other call does otherwise.
    """
    hold, fault = await _reserve(call, plane)
    if fault is None:
        return hold
    model = "" if hold.refused_by is None else hold.refused_by.fallback_model
    other = _find_call(call, model, plane) if model and model != call.model.id and call.request.upload is None else None
    if other is None:
        raise fault
    hold, fault = await _reserve(other, plane)
    if fault is not None:
        raise fault
    return hold


async def _reserve(call: Call, plane: Plane) -> tuple[BudgetHold, Fault | None]:
    """Reserve what a call may cost. Return the reservation, which has ended if there is a fault."""
    hold = plane.budgets.reserve(call, call.budgets, read_max_cost(call.request.head))
    fault: Fault | None = None
    try:
        await hold.waiter
    except Fault as caught:
        fault = caught
        plane.budgets.settle(hold, None)
    except BaseException:
        plane.budgets.settle(hold, None)
        raise
    return hold, fault


def _find_call(call: Call, model: str, plane: Plane) -> Call | None:
    """Return the same request for another model; None if its key cannot use that one for it. The body of the request is changed."""
    request, directory = call.request, plane.directory
    grant = directory.find_grant(call.caller, model, request.endpoint, request.received_at)
    if grant is None or call.price.tier not in grant.prices or not grant.is_served:
        return None
    before = request.body
    request.body = with_model(request, model)
    try:
        return authorize(call.caller, request, directory, plane.media_bounds)
    except Fault:
        request.body = before
        return None
