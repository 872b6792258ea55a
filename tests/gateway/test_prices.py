"""Price at which a request is admitted: by the organization's terms, in the service tier that it asks for, at that instant."""

from typing import Any

import msgspec
import pytest

from tollway.domain import faults
from tollway.domain.billing_classes import UnitPrices
from tollway.domain.catalog import Endpoint, UnknownParameters
from tollway.domain.faults import Fault
from tollway.domain.keys import KeyType
from tollway.domain.prices import PriceTerms, PriceVersion
from tollway.domain.project_policies import ServiceTiers
from tollway.domain.snapshot import KeyEntry, ModelEntry, OrganizationEntry, ProjectEntry, change
from tollway.domain.usage import ServiceTier
from tollway.gateway.authorize import authorize
from tollway.gateway.directory import Directory
from tollway.gateway.media.bounds import MediaBounds
from tollway.gateway.model_listing import ModelListings
from tollway.gateway.request import Call, RequestHead, new_request

ORGANIZATION, PROJECT, DIGEST = "org_1", "proj_1", b"d" * 32
STANDARD, FLEX, PRIORITY = ServiceTier.STANDARD, ServiceTier.FLEX, ServiceTier.PRIORITY
ENDPOINTS = (Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS, Endpoint.MESSAGES)


def price(price_list: str, tier: ServiceTier, valid_from: int = 0) -> PriceVersion:
    return PriceVersion(
        id=f"{price_list} {tier} {valid_from}",
        list=price_list,
        model="m",
        tier=tier,
        currency="EUR",
        valid_from=valid_from,
        unit_prices=UnitPrices(input=1, cached_input=1, output=1, reasoning=1),
    )


def model(*prices: PriceVersion, unknown_parameters: UnknownParameters = UnknownParameters.REFUSE) -> ModelEntry:
    return ModelEntry(id="m", endpoints=ENDPOINTS, created_at=0, prices=prices, unknown_parameters=unknown_parameters)


def organization(*terms: PriceTerms) -> OrganizationEntry:
    return OrganizationEntry(id=ORGANIZATION, currency="EUR", terms=terms)


def directory(of: OrganizationEntry, entry: ModelEntry, **project: Any) -> Directory:
    made = Directory()
    made.begin_reset()
    for each in (
        of,
        ProjectEntry(id=PROJECT, organization_id=ORGANIZATION, **project),
        KeyEntry(id="key_1", digest=DIGEST, type=KeyType.LIVE, project_id=PROJECT),
        entry,
    ):
        made.add(each)
    made.finish_reset(1)
    return made


def ask(known: Directory, at: int = 50, endpoint: Endpoint = Endpoint.CHAT_COMPLETIONS, **fields: Any) -> Call:
    body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
    if endpoint is Endpoint.COMPLETIONS:
        body = {"model": "m", "prompt": "x"}
    elif endpoint is Endpoint.EMBEDDINGS:
        body = {"model": "m", "input": "x"}
    elif endpoint is Endpoint.COUNT_TOKENS:
        del body["max_tokens"]
    caller = known.find_caller(DIGEST, at)
    assert caller is not None
    request = new_request("req_1", RequestHead(endpoint, {}), msgspec.json.encode(body | fields), 0.0, at)
    return authorize(caller, request, known, MediaBounds())


def admitted_at(known: Directory, at: int = 50, **fields: Any) -> str:
    return ask(known, at, **fields).price.id


ALL = model(*(price("a", tier) for tier in (STANDARD, FLEX, PRIORITY)), price("b", STANDARD))


def test_the_list_is_that_of_the_terms_at_the_instant_of_admission() -> None:
    known = directory(organization(PriceTerms(0, "b"), PriceTerms(100, "a")), ALL)
    assert admitted_at(known, at=99) == "b standard 0"
    assert admitted_at(known, at=100) == "a standard 0"


def test_the_version_is_that_of_the_instant_of_admission() -> None:
    known = directory(organization(PriceTerms(0, "a")), model(price("a", STANDARD), price("b", STANDARD, 10), price("a", STANDARD, 100)))
    assert [admitted_at(known, at=at) for at in (99, 100)] == ["a standard 0", "a standard 100"]


WORDS = {None: STANDARD, "auto": STANDARD, "default": STANDARD, "flex": FLEX, "priority": PRIORITY}


@pytest.mark.parametrize(("word", "tier"), WORDS.items())
def test_the_tier_is_what_openais_word_means(word: str | None, tier: ServiceTier) -> None:
    call = ask(directory(organization(PriceTerms(0, "a")), ALL), service_tier=word)
    assert call.price.id == f"a {tier} 0"
    assert call.price.tier is tier
    assert ("service_tier" in call.dropped) is ("service_tier" in call.names)


def test_the_tier_is_standard_unless_it_is_asked_for() -> None:
    assert admitted_at(directory(organization(PriceTerms(0, "a")), ALL)) == "a standard 0"


def test_the_tier_of_a_message_is_the_standard_one() -> None:
    known = directory(organization(PriceTerms(0, "a")), ALL)
    for word in ("auto", "standard_only"):
        call = ask(known, endpoint=Endpoint.MESSAGES, service_tier=word)
        assert call.price.tier is STANDARD
        assert ("service_tier" in call.dropped) is ("service_tier" in call.names)
    for word in ("flex", "default", 1):
        with pytest.raises(Fault) as refused:
            ask(known, endpoint=Endpoint.MESSAGES, service_tier=word)
        assert (refused.value.kind, refused.value.param) == (faults.PARAMETER_INVALID, "service_tier")


def test_a_project_without_a_tier_is_refused_it() -> None:
    known = directory(organization(PriceTerms(0, "a")), ALL, service_tiers=ServiceTiers(enabled=(FLEX,)))
    assert admitted_at(known, service_tier="flex") == "a flex 0"
    with pytest.raises(Fault) as refused:
        ask(known, service_tier="priority")
    assert (refused.value.kind, refused.value.param) == (faults.PARAMETER_INVALID, "service_tier")


def test_a_request_that_names_no_tier_has_the_default_one_of_its_project_where_the_model_is_offered_in_it() -> None:
    tiers = ServiceTiers(default=PRIORITY)
    known = directory(organization(PriceTerms(0, "a")), ALL, service_tiers=tiers)
    assert [admitted_at(known), admitted_at(known, service_tier="auto")] == ["a priority 0"] * 2
    assert admitted_at(known, service_tier="default") == "a standard 0"
    assert ask(known, endpoint=Endpoint.MESSAGES, service_tier="standard_only").price.tier is STANDARD
    known = directory(organization(PriceTerms(0, "b")), ALL, service_tiers=tiers)
    assert admitted_at(known) == "b standard 0", "the list has no price in the default tier"


@pytest.mark.parametrize(("said", "is_allowed"), [({"models": ("m",)}, True), ({"models": ()}, False), ({"denied_models": ("m",)}, False)])
def test_a_model_that_the_project_may_not_use_is_like_one_that_does_not_exist(said: dict[str, Any], is_allowed: bool) -> None:
    known = directory(organization(PriceTerms(0, "a")), ALL, **said)
    if is_allowed:
        assert admitted_at(known) == "a standard 0"
        return
    with pytest.raises(Fault) as refused:
        ask(known)
    assert refused.value.kind is faults.MODEL_UNKNOWN
    caller = known.find_caller(DIGEST, 50)
    assert caller is not None
    assert ModelListings(known).find(caller, "m", 50) is None


@pytest.mark.parametrize("word", ["batch", "standard", "fastest", "FLEX", "", 1, True, ["flex"], {"a": 1}])
def test_a_word_that_is_none_is_refused(word: object) -> None:
    with pytest.raises(Fault) as refused:
        ask(directory(organization(PriceTerms(0, "a")), ALL), service_tier=word)
    assert (refused.value.kind, refused.value.param) == (faults.PARAMETER_INVALID, "service_tier")


@pytest.mark.parametrize("policy", UnknownParameters)
@pytest.mark.parametrize("endpoint", [Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS, Endpoint.COUNT_TOKENS])
def test_where_the_api_has_no_tiers_the_field_is_refused_and_never_sent_on(endpoint: Endpoint, policy: UnknownParameters) -> None:
    known = directory(organization(PriceTerms(0, "a")), msgspec.structs.replace(ALL, unknown_parameters=policy))
    with pytest.raises(Fault) as refused:
        ask(known, endpoint=endpoint, service_tier="flex")
    assert (refused.value.kind, refused.value.param) == (faults.PARAMETER_UNKNOWN, "service_tier")


def test_a_tier_without_a_price_on_the_callers_list_is_the_parameters_fault() -> None:
    with pytest.raises(Fault) as refused:
        ask(directory(organization(PriceTerms(0, "b")), ALL), service_tier="flex")
    assert (refused.value.kind, refused.value.param) == (faults.PARAMETER_INVALID, "service_tier")
    assert "flex" in refused.value.message


@pytest.mark.parametrize(
    ("terms", "prices", "asked"),
    [
        ((), (price("a", STANDARD),), {}),
        ((PriceTerms(51, "a"),), (price("a", STANDARD),), {}),
        ((PriceTerms(0, "a"),), (price("b", STANDARD),), {}),
        ((PriceTerms(0, "a"),), (price("b", STANDARD), price("b", FLEX)), {"service_tier": "flex"}),
        ((PriceTerms(0, "a"),), (price("a", STANDARD, 51),), {}),
        ((PriceTerms(0, "a"),), (price("a", FLEX),), {}),
    ],
)
def test_a_model_without_a_price_is_closed(terms: tuple[PriceTerms, ...], prices: tuple[PriceVersion, ...], asked: dict[str, Any]) -> None:
    with pytest.raises(Fault) as refused:
        ask(directory(organization(*terms), model(*prices)), **asked)
    assert refused.value.kind is faults.MODEL_UNKNOWN


def test_changes_of_terms_and_prices_count_from_the_next_request_on() -> None:
    known = directory(organization(PriceTerms(0, "a")), model(price("a", STANDARD)))
    assert admitted_at(known) == "a standard 0"
    known.apply(change(2, organization(PriceTerms(0, "a"), PriceTerms(10, "b"))))
    with pytest.raises(Fault):
        ask(known)
    known.apply(change(3, model(price("a", STANDARD), price("b", STANDARD))))
    assert admitted_at(known) == "b standard 0"
