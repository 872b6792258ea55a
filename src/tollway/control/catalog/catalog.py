"""Models and deployments: drafts until published, published only with a price, archived permanently."""

import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from tollway.control import publish
from tollway.domain import addresses, ids
from tollway.domain.catalog import GROUP_PREFIX, MODEL_NAME, Deployment, Model
from tollway.domain.events import EventType, new_event
from tollway.domain.faults import (
    MODEL_UNKNOWN,
    NAME_TAKEN,
    PARAMETER_INVALID,
    PRICE_MISSING,
    RESOURCE_UNKNOWN,
    STATE_CONFLICT,
    Fault,
)
from tollway.domain.pages import Page, PageWindow
from tollway.domain.snapshot import DeploymentEntry, ModelEntry
from tollway.domain.tenants import Status
from tollway.engines.table import ENGINES, list_missing
from tollway.storage import catalog as storage
from tollway.storage import outbox
from tollway.storage import prices as stored_prices
from tollway.storage.database import PlatformTx

VERBS = frozenset({"publish", "archive"})
"""Last segments of paths below a model's own, so no model's name may end in one."""

# ---- Models -----------------------------------------------------------------------------------------------------------


def create_model(tx: PlatformTx, model: Model) -> Model:
    """Add a draft to the catalog. Raises NAME_TAKEN (archived names stay taken: usage names them), PARAMETER_INVALID."""
    publish.lock(tx)
    segments = model.name.split("/")
    if MODEL_NAME.fullmatch(model.name) is None or segments[-1] in VERBS or not {"", ".", ".."}.isdisjoint(segments):
        raise Fault(PARAMETER_INVALID, param="name", message="This cannot be the name of a model.")
    if model.name.startswith(GROUP_PREFIX):
        raise Fault(PARAMETER_INVALID, param="name", message=f"The name of a model cannot begin with '{GROUP_PREFIX}', as groups do.")
    if storage.find_model(tx, model.name) is not None:
        raise Fault(NAME_TAKEN, param="name")
    _check_fallbacks(tx, model)
    _check_hedging(model)
    storage.insert_model(tx, model)
    return model


def get_model(tx: PlatformTx, name: str) -> Model:
    """A model of the catalog, whatever its state. Raises MODEL_UNKNOWN."""
    model = storage.find_model(tx, name) if MODEL_NAME.fullmatch(name) else None
    if model is None:
        raise Fault(MODEL_UNKNOWN)
    return model


def list_models(tx: PlatformTx, window: PageWindow, *, include_archived: bool) -> Page[Model]:
    """The catalog, by name."""
    return storage.list_models(tx, window, include_archived=include_archived)


def update_model(tx: PlatformTx, name: str, changed: dict[str, object], now: int) -> Model:
    """Change fields of an active model; what is not named stays. Raises MODEL_UNKNOWN, STATE_CONFLICT."""
    publish.lock(tx)
    model = msgspec.structs.replace(_get_active_model(tx, name), **changed)
    if "fallbacks" in changed:
        _check_fallbacks(tx, model)
    if "endpoints" in changed:
        for deployment in storage.find_deployments(tx, name):
            _check_endpoints(model, deployment, "endpoints")
    _check_hedging(model)
    storage.put_model(tx, model)
    if model.published:
        publish.publish(tx, ModelEntry, [name], now)
    return model


def publish_model(tx: PlatformTx, name: str, now: int) -> Model:
    """Let gateways serve a model. Raises PRICE_MISSING unless some currency's price of it is valid now.

    The model reaches the organizations whose currency has a price; to the others it does not exist.
    """
    publish.lock(tx)
    model = _get_active_model(tx, name)
    if not stored_prices.has_price_at(tx, name, now):
        raise Fault(PRICE_MISSING)
    model = msgspec.structs.replace(model, published=True)
    storage.put_model(tx, model)
    publish.publish(tx, ModelEntry, [name], now)
    return model


def archive_model(tx: PlatformTx, name: str, now: int) -> Model:
    """Archive a model and its deployments permanently. A second call changes nothing."""
    publish.lock(tx)
    model = msgspec.structs.replace(get_model(tx, name), status=Status.ARCHIVED, published=False)
    storage.put_model(tx, model)
    publish.publish(tx, ModelEntry, [name], now)
    archived = storage.archive_deployments(tx, name, now)
    publish.publish(tx, DeploymentEntry, archived, now)
    _tell(tx, EventType.DEPLOYMENT_ARCHIVED, archived, name, now)
    return model


def _check_fallbacks(tx: PlatformTx, model: Model) -> None:
    """Raise PARAMETER_INVALID unless the fallbacks of a model are different other models that are not archived.

    A fallback's own fallbacks do not count, so two models may name each other and no request goes round."""
    names = model.fallbacks
    if model.name in names or len(set(names)) < len(names):
        raise Fault(PARAMETER_INVALID, param="fallbacks", message="A model falls back to other models, and to each once.")
    known = {each.name for each in storage.find_models(tx, names) if each.status is Status.ACTIVE}
    for name in names:
        if name not in known:
            raise Fault(PARAMETER_INVALID, param="fallbacks", message=f"There is no model {name} that is not archived.")


def _check_hedging(model: Model) -> None:
    """Raise PARAMETER_INVALID if requests would be hedged that may be sent to one engine only."""
    if model.hedge_after_ms is not None and not model.retry_started:
        message = "A request that is hedged is sent to two engines, which `retry_started: false` forbids."
        raise Fault(PARAMETER_INVALID, param="hedge_after_ms", message=message)


def _get_active_model(tx: PlatformTx, name: str) -> Model:
    model = get_model(tx, name)
    if model.status is not Status.ACTIVE:
        raise Fault(STATE_CONFLICT, message="The model is archived.")
    return model


# ---- Deployments ------------------------------------------------------------------------------------------------------


def create_deployment(tx: PlatformTx, deployment: Deployment, now: int) -> Deployment:
    """Add an upstream to a model. Raises MODEL_UNKNOWN, STATE_CONFLICT (archived model), PARAMETER_INVALID (base_url)."""
    publish.lock(tx)
    model = storage.find_model(tx, deployment.model)
    if model is None:
        raise Fault(MODEL_UNKNOWN, param="model")
    _get_active_model(tx, model.name)
    check_base_url(deployment.base_url)
    _check_priorities(deployment)
    _check_endpoints(model, deployment, "engine")
    storage.insert_deployment(tx, deployment)
    publish.publish(tx, DeploymentEntry, [deployment.id], now)
    _tell(tx, EventType.DEPLOYMENT_CREATED, [deployment.id], deployment.model, now)
    return deployment


def get_deployment(tx: PlatformTx, deployment_id: str) -> Deployment:
    """A deployment. Raises RESOURCE_UNKNOWN."""
    deployment = storage.find_deployment(tx, deployment_id) if ids.is_id(ids.DEPLOYMENT, deployment_id) else None
    if deployment is None:
        raise Fault(RESOURCE_UNKNOWN)
    return deployment


def list_deployments(tx: PlatformTx, window: PageWindow, *, model: str | None, include_archived: bool) -> Page[Deployment]:
    """All deployments, or those of one model."""
    return storage.list_deployments(tx, window, model=model, include_archived=include_archived)


def update_deployment(tx: PlatformTx, deployment_id: str, changed: dict[str, object], now: int) -> Deployment:
    """Change fields of an active deployment; what is not named stays. Raises RESOURCE_UNKNOWN, STATE_CONFLICT, and PARAMETER_INVALID for a
    credential that would be sent to another host than the one that it was given for."""
    publish.lock(tx)
    before = get_deployment(tx, deployment_id)
    if before.status is not Status.ACTIVE:
        raise Fault(STATE_CONFLICT, message="The deployment is archived.")
    deployment = msgspec.structs.replace(before, **changed)
    check_base_url(deployment.base_url)
    if before.credential is not None and "credential" not in changed and _find_origin(before) != _find_origin(deployment):
        message = "The credential was given for another address: name the one for this address, or null for none."
        raise Fault(PARAMETER_INVALID, param="credential", message=message)
    _check_priorities(deployment)
    if "translated_endpoints" in changed:  # what an earlier version allowed can still be drained, or given another address
        _check_endpoints(get_model(tx, deployment.model), deployment, "translated_endpoints")
    storage.put_deployment(tx, deployment)
    publish.publish(tx, DeploymentEntry, [deployment_id], now)
    _tell(tx, EventType.DEPLOYMENT_UPDATED, [deployment_id], deployment.model, now)
    return deployment


def _check_priorities(deployment: Deployment) -> None:
    """Raise PARAMETER_INVALID if an engine that takes no priorities would be sent some."""
    if deployment.priorities and not ENGINES[deployment.engine].priorities:
        message = f"Tollway knows of no priorities that the engine {deployment.engine} takes."
        raise Fault(PARAMETER_INVALID, param="priorities", message=message)


def _check_endpoints(model: Model, deployment: Deployment, param: str) -> None:
    """Raise PARAMETER_INVALID if a model offers an endpoint that the engine of a deployment is known to lack."""
    missing = list_missing(deployment.engine, model.endpoints, deployment.translated_endpoints)
    if missing:
        message = f"The engine {deployment.engine} cannot serve {', '.join(missing)}, which the model {model.name} offers."
        raise Fault(PARAMETER_INVALID, param=param, message=message)


def archive_deployment(tx: PlatformTx, deployment_id: str, now: int) -> Deployment:
    """Archive a deployment permanently and remove its credential. A second call changes nothing."""
    publish.lock(tx)
    found = get_deployment(tx, deployment_id)
    deployment = msgspec.structs.replace(found, status=Status.ARCHIVED, credential=None)
    storage.archive_deployment(tx, deployment_id, now)
    publish.publish(tx, DeploymentEntry, [deployment_id], now)
    if found.status is not Status.ARCHIVED:
        _tell(tx, EventType.DEPLOYMENT_ARCHIVED, [deployment_id], deployment.model, now)
    return deployment


def _tell(tx: PlatformTx, type: EventType, deployment_ids: Iterable[str], model: str, now: int) -> None:
    outbox.append(tx, [new_event(type, None, at=now, data={"id": each, "model": model}) for each in deployment_ids])


# ---- Upstream addresses -----------------------------------------------------------------------------------------------

_URL = re.compile(r"https?://[A-Za-z0-9.\-_\[\]:]+(/[A-Za-z0-9._~\-/]*)?")

_METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "instance-data"})


class _Origin(NamedTuple):
    """The origin to which the credential of a deployment is sent: by HTTP at `port`, by gRPC at `grpc_port`."""

    scheme: str
    host: str | None
    port: int
    grpc_port: int


def _find_origin(deployment: Deployment) -> _Origin:
    """Return the origin of a deployment whose address `check_base_url` accepts."""
    parts = urlsplit(deployment.base_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return _Origin(parts.scheme, parts.hostname, port, deployment.grpc_port or port + 1)


def check_base_url(text: str) -> None:
    """Raise PARAMETER_INVALID unless `text` is an address that an engine may have.

    Plain http(s)://host[:port][/path]. Private addresses are fine, engines live there; addresses where clouds keep the credentials of
    their machines are not, in any spelling that a resolver would take (a host that ends in a number must be a proper address).
    """

    def refuse(reason: str) -> Fault:
        return Fault(PARAMETER_INVALID, param="base_url", message=f"Invalid value for base_url: {reason}.")

    if not _URL.fullmatch(text):
        raise refuse("it must be http:// or https://, a host, optionally a port and a path, and nothing else")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")  # as resolvers do: a label is not empty, and has 63 characters at most
    except ValueError:
        raise refuse("the host or the port is not valid") from None
    if not host or port == 0:
        raise refuse("the host or the port is not valid")
    if parts.path.rstrip("/").endswith("/v1"):
        raise refuse("leave the /v1 away, it is added")
    bare = host.rstrip(".")
    if bare in _METADATA_NAMES:
        raise refuse("this address is not allowed")
    if ":" in host or re.fullmatch(r"(0x[0-9a-f]*|[0-9]+)", bare.rpartition(".")[2]):
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            raise refuse("the host is not a proper IP address") from None
        if addresses.is_metadata(address):
            raise refuse("this address is not allowed")
