"""Access to inference: what a gateway asks, in its order, before it lets a request of an API key pass; limits and budgets come later."""

from enum import StrEnum
from typing import NamedTuple

from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault


class AccessRule(StrEnum):
    """A question that gateways ask of a request, in their order. `KEY`: whether the key is valid, and its project and organization are
    active. `ADDRESSES`, `ENDPOINTS`, `KEY_MODELS`: whether the key allows the address, the endpoint and the model. `PROJECT_MODELS`,
    `PROJECT_DENIED_MODELS`: whether its project does. `CATALOG`: whether there is a published model of this name with a price for the
    organization; no tenant may know which of both is missing. `MODEL_ENDPOINTS`: whether that is offered at the endpoint. `RESIDENCY`:
    whether it has a deployment in a region that the project allows. `DEPLOYMENTS`: whether any deployment takes requests; a test key
    reaches those for tests alone."""

    KEY = "key"
    ADDRESSES = "addresses"
    ENDPOINTS = "endpoints"
    KEY_MODELS = "key_models"
    PROJECT_MODELS = "project_models"
    PROJECT_DENIED_MODELS = "project_denied_models"
    CATALOG = "catalog"
    MODEL_ENDPOINTS = "model_endpoints"
    RESIDENCY = "residency"
    DEPLOYMENTS = "deployments"


class InferenceQuestion(NamedTuple):
    """A request that a key may or may not send at instant `at` (UTC microseconds). `model`, `address`: None to leave out what depends on
    them."""

    endpoint: Endpoint
    model: str | None
    address: str | None
    at: int


class AccessCheck(NamedTuple):
    """The answer to one question. `held`: what the key or the project has been given in its place; None where it is not restricted."""

    rule: AccessRule
    passes: bool
    held: tuple[str, ...] | None = None


class InferenceDecision(NamedTuple):
    """A decision on a request: the questions up to the first that is answered with no, and the fault with which it is refused; None if it
    passes."""

    checks: tuple[AccessCheck, ...]
    fault: Fault | None
