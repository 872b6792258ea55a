"""Answers about models of the Open Inference Protocol: what a model takes and gives, as one of its engines says, and whether one is ready.

The description is asked of an engine for each request: it is rare (clients read it once), and counts as a request in the limits of its key.
Nothing is metered.
"""

import time
from typing import Any, Final

import msgspec

from tollway.domain import faults
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.gateway import pipeline
from tollway.gateway.authenticate import authenticate, require_endpoint
from tollway.gateway.dialects import infer
from tollway.gateway.driver import CoroutineDriver
from tollway.gateway.plane import Plane
from tollway.gateway.ports import Client
from tollway.gateway.refusals import refuse
from tollway.gateway.request import Caller, Request
from tollway.gateway.route import list_resident
from tollway.gateway.upstreams.health import Reliability
from tollway.gateway.upstreams.load_reports import read_page
from tollway.gateway.upstreams.upstream import Upstream

SERVER_METADATA: Final = b'{"name":"tollway","version":"2","extensions":[]}'
_JSON: Final = b"content-type: application/json\r\n"
_ENGINES_ASKED_MAX: Final = 2
_FIELDS: Final = frozenset({"versions", "platform", "inputs", "outputs"})
"""Members of a description that are passed on beside the name."""


def find_model(caller: Caller, name: str, plane: Plane) -> str:
    """Return the id of a model that the caller may use by this protocol. Raises Fault."""
    require_endpoint(caller, Endpoint.INFER)
    grant = plane.directory.find_grant(caller, name, Endpoint.INFER, plane.now_us())
    if grant is None:
        raise Fault(faults.MODEL_UNKNOWN, param="model")
    if not grant.is_served:
        raise Fault(faults.ENDPOINT_UNSUPPORTED, param="model")
    return grant.model.id


def list_ready(caller: Caller, model: str, plane: Plane, now: float) -> list[Upstream]:
    """Return the deployments of a model that take requests of the caller. Raises Fault region_not_served."""
    known = plane.upstreams.of(model, test=caller.is_test)
    if caller.residency is not None:
        known = list_resident(known, caller.residency)
    return [each for each in known if each.deployment.weight > 0 and each.health.reliability(Endpoint.INFER, now) is not Reliability.DOWN]


async def answer(request: Request, client: Client, plane: Plane, driver: CoroutineDriver, *, is_readiness: bool) -> None:
    """Answer a request about the model that `request.body` names. `driver` runs this coroutine."""
    caller: Caller | None = None
    try:
        if plane.directory.obstacle is not None:
            raise Fault(plane.directory.obstacle, retry_after_seconds=1)
        caller = authenticate(request.head, plane.directory, plane.digesters, request.received_at)
        name = request.body.decode("utf-8", "replace")
        model = find_model(caller, name, plane)
        ready = list_ready(caller, model, plane, time.monotonic())
        if is_readiness:
            body = msgspec.json.encode({"name": model, "ready": bool(ready)})
            status = 200 if ready else 503
        else:
            pipeline.admit_upload(caller, 0, plane).release(time.monotonic_ns())
            body, status = await _describe(model, ready, driver), 200
    except Fault as caught:
        caught.forget_frames()
        fault = caught if caller is not None else client.throttle(caught, request.headers)
        refuse(request, client, fault)
        plane.metrics.count(plane.metrics.refusals, fault.kind.code)
        return
    if not client.gone:
        client.answer(status, _JSON + infer.DIALECT.identify(request.id), body)


async def _describe(model: str, ready: list[Upstream], driver: CoroutineDriver) -> bytes:
    """Return the description of a model by the first of its engines that has one, under the public name. Raises Fault."""
    for upstream in ready[:_ENGINES_ASKED_MAX]:
        if upstream.description is None:
            continue
        try:
            page = await driver.in_task(read_page(upstream.description))
            found: Any = None if page is None else msgspec.json.decode(page)
        except (OSError, msgspec.DecodeError):
            continue
        if isinstance(found, dict):
            return msgspec.json.encode({"name": model, **{name: value for name, value in found.items() if name in _FIELDS}})
    raise Fault(faults.UPSTREAM_NONE, retry_after_seconds=5)
