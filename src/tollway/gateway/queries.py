"""Answers of the gateway itself: the models and limits of a key, and what a request would cost. No engine is asked, and nothing is
metered."""

import time
from functools import partial

import msgspec

from tollway.domain import faults
from tollway.domain.budgets import BudgetMode
from tollway.domain.faults import Fault
from tollway.domain.limits import Standing
from tollway.gateway.authenticate import authenticate, require_endpoint
from tollway.gateway.authorize import authorize
from tollway.gateway.budget_listing import describe_budgets
from tollway.gateway.budgets import BudgetHold, read_max_cost
from tollway.gateway.dialects.table import DIALECTS
from tollway.gateway.driver import Waiter
from tollway.gateway.limit import describe_limits
from tollway.gateway.plane import Plane
from tollway.gateway.ports import Client
from tollway.gateway.quote import Quote
from tollway.gateway.refusals import refuse
from tollway.gateway.request import Call, Caller, Request

_JSON = b"content-type: application/json\r\n"
_NOT_STORED = _JSON + b"cache-control: no-store\r\n"


def list_models(request: Request, client: Client, plane: Plane) -> None:
    """GET /v1/models and /v1/models/{model}: what this key may use, at which prices and within which bounds.
    `request.body` holds the model's name, or nothing for all."""
    caller = _identify(request, client, plane)
    if caller is None:
        return
    listings, at = plane.model_listings, request.received_at
    name = request.body.decode("latin-1")
    body = listings.find(caller, name, at) if name else listings.list_all(caller, at)
    if body is None:
        _refuse(request, client, plane, Fault(faults.MODEL_UNKNOWN, param="model"))
    else:
        client.answer(200, _JSON + DIALECTS[request.endpoint].identify(request.id), body)


def list_limits(request: Request, client: Client, plane: Plane) -> None:
    """GET /v1/limits: every limit that binds this key, how it stands on this gateway, and which level binds first."""
    caller = _identify(request, client, plane)
    if caller is None:
        return
    headers = _NOT_STORED + DIALECTS[request.endpoint].identify(request.id)
    budgets = describe_budgets([each for each in caller.budgets if each.mode is not BudgetMode.ALERT], plane.budgets)

    def answer_with(standings: list[Standing]) -> None:
        if not client.gone:
            body = {"object": "list", "data": describe_limits(standings), "budgets": budgets}
            client.answer(200, headers, msgspec.json.encode(body))

    plane.limits.read_standings(caller.organization.id, caller.principal.limits, time.monotonic_ns(), answer_with)


async def quote(request: Request, client: Client, plane: Plane) -> None:
    """POST /v1/quote/...: what the request in the body would cost, and what would refuse it now. Nothing is counted, spent or sent."""
    caller = _identify(request, client, plane)
    if caller is None:
        return
    try:
        require_endpoint(caller, request.endpoint)
        call = authorize(caller, request, plane.directory, plane.media_bounds)
        quoted = Quote(call)
        standings = await _read_standings(caller, plane)
        refusal = await _find_cost_refusal(call, plane)
    except Fault as caught:
        caught.forget_frames()
        _refuse(request, client, plane, caught)
        return
    if not client.gone:
        headers = _NOT_STORED + call.dialect.identify(request.id)
        client.answer(200, headers, msgspec.json.encode(quoted.describe(standings, refusal)))


def _identify(request: Request, client: Client, plane: Plane) -> Caller | None:
    """Return who asks; None if that is not known or nothing can be answered yet: then the client has its answer."""
    try:
        if plane.directory.obstacle is not None:
            raise Fault(plane.directory.obstacle, retry_after_seconds=1)
        return authenticate(request.head, plane.directory, plane.digesters, request.received_at)
    except Fault as caught:
        caught.forget_frames()
        _refuse(request, client, plane, client.throttle(caught, request.headers))
        return None


def _refuse(request: Request, client: Client, plane: Plane, fault: Fault) -> None:
    refuse(request, client, fault)
    plane.metrics.count(plane.metrics.refusals, fault.kind.code)


async def _read_standings(caller: Caller, plane: Plane) -> list[Standing]:
    """Return how the limits of a caller stand, from the store where gateways share them."""
    standings: list[Standing] = []
    read = Waiter()
    receive = partial(_take_standings, standings, read)
    plane.limits.read_standings(caller.organization.id, caller.principal.limits, time.monotonic_ns(), receive)
    await read
    return standings


def _take_standings(standings: list[Standing], read: Waiter, found: list[Standing]) -> None:
    standings.extend(found)
    read.resume()


async def _find_cost_refusal(call: Call, plane: Plane) -> Fault | None:
    """Return the fault by which a budget or the client's own bound on the cost would refuse a call now, by reserving and ending the
    reservation at once. The call's output is lowered to what would be allowed."""
    max_cost = read_max_cost(call.request.head)
    hold: BudgetHold | None = None
    refusal: Fault | None = None
    try:
        hold = plane.budgets.reserve(call, call.budgets, max_cost)
        await hold.waiter
    except Fault as caught:
        caught.forget_frames()
        refusal = caught
    finally:
        if hold is not None:
            plane.budgets.settle(hold, None)
    return refusal
