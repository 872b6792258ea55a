"""Descriptions of models as `/v1/models` shows them: those that a caller may use, at its organization's prices and within its bounds.

Callers who pay by the same price list under the same bounds see a model alike, so its description is made once for each such view and
version of the snapshot, as JSON, when it is first asked for; a list is made by joining them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from tollway.domain.billing_classes import describe_unit_prices
from tollway.domain.catalog import Deployment, Endpoint, is_resident
from tollway.domain.prices import find_list, find_price
from tollway.domain.snapshot import ModelEntry
from tollway.domain.usage import ServiceTier
from tollway.gateway.directory import INSTANT_MAX, Directory, cap_output, find_service
from tollway.gateway.request import Caller

VIEWS_MAX = 64
"""Views whose descriptions are kept: one for each price list and each combination of a key's bounds that callers have just now. A thousand
models take about 0.7 MB a view."""


class _View(NamedTuple):
    """Everything that decides how a caller sees a model, beside the model itself."""

    price_list: str | None
    output_tokens_max: int | None
    endpoints: frozenset[Endpoint] | None
    is_test: bool
    residency: frozenset[str] | None


class _Description(NamedTuple):
    """A model as JSON, valid from an instant until (exclusive) another; empty if it has no price then."""

    text: bytes
    valid_from: int
    valid_until: int


class ModelListings:
    """The descriptions of the models of a directory."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._version = 0
        self._models: dict[str, ModelEntry] = {}
        self._deployments: dict[str, list[Deployment]] = {}
        self._views: dict[_View, dict[str, _Description]] = {}

    def list_all(self, caller: Caller, at: int) -> bytes:
        """Return the models that a caller may use at instant `at` (UTC microseconds), by name, as JSON in the shape of OpenAI's list."""
        return b'{"object":"list","data":[%b]}' % b",".join(self._describe_each(caller, at))

    def find(self, caller: Caller, name: str, at: int) -> bytes | None:
        """Return one model as JSON; None if there is none of this name that the caller may use."""
        self._follow_directory()
        if name not in self._models or not caller.principal.may_use(name):
            return None
        view = self._find_view(caller, at)
        return self._describe(name, view, self._views[view], at) or None

    def _describe_each(self, caller: Caller, at: int) -> Iterator[bytes]:
        self._follow_directory()
        view = self._find_view(caller, at)
        descriptions = self._views[view]
        for name in self._models:
            if caller.principal.may_use(name):
                text = self._describe(name, view, descriptions, at)
                if text:
                    yield text

    def _follow_directory(self) -> None:
        """Forget everything if the snapshot has changed."""
        directory = self._directory
        if self._version != directory.version:
            self._version = directory.version
            self._views.clear()
            self._models = {model.id: model for model in directory.list_models()}
            self._deployments = {}
            for entry in directory.list_deployments():
                self._deployments.setdefault(entry.deployment.model, []).append(entry.deployment)

    def _find_view(self, caller: Caller, at: int) -> _View:
        """Return the view of a caller, which has a place then; the oldest makes way for it."""
        price_list = find_list(caller.organization.terms, at)
        view = _View(price_list, caller.principal.output_tokens_max, caller.endpoints, caller.is_test, caller.residency)
        if view not in self._views:
            if len(self._views) >= VIEWS_MAX:
                del self._views[next(iter(self._views))]
            self._views[view] = {}
        return view

    def _describe(self, name: str, view: _View, descriptions: dict[str, _Description], at: int) -> bytes:
        found = descriptions.get(name)
        if found is None or not found.valid_from <= at < found.valid_until:
            model = self._models[name]
            turns = [price.valid_from for price in model.prices]
            found = descriptions[name] = _Description(
                self._compile(model, view, at),
                max((turn for turn in turns if turn <= at), default=0),
                min((turn for turn in turns if turn > at), default=INSTANT_MAX),
            )
        return found.text

    def _compile(self, model: ModelEntry, view: _View, at: int) -> bytes:
        prices = {tier: find_price(self._directory.list_prices(model, view.price_list, tier), at) for tier in ServiceTier}
        if prices[ServiceTier.STANDARD] is None:
            return b""
        capped = cap_output(model, view.output_tokens_max)
        deployments = [
            each for each in self._deployments.get(model.id, ()) if each.test is view.is_test and is_resident(each, view.residency)
        ]
        described: dict[str, object] = {
            "id": model.id,
            "object": "model",
            "created": model.created_at // 1_000_000,
            "owned_by": "tollway",
        }
        for name in ("context_length", "output_tokens_max"):
            bound = getattr(capped, name)
            if bound is not None:
                described[name] = bound
        described["endpoints"] = [
            endpoint
            for endpoint in Endpoint
            if (view.endpoints is None or endpoint in view.endpoints) and find_service(model, endpoint, deployments)[0]
        ]
        described["prices"] = [
            {
                "service_tier": tier,
                "price_version": price.id,
                "currency": price.currency.lower(),
                "unit_prices": describe_unit_prices(price.unit_prices),
            }
            for tier, price in prices.items()
            if price is not None
        ]
        return msgspec.json.encode(described)
