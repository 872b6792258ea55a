"""Explanations of access to inference say what a gateway answers, by the rule that decides."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from tests.fakes import Upstream
from tests.gateway.harness import PEPPER, Served, chat, completion, gateway, post, whole
from tollway.domain import keys
from tollway.domain.catalog import Endpoint
from tollway.domain.inference_access import AccessRule, InferenceQuestion
from tollway.domain.keys import KeyType
from tollway.domain.prices import PriceTerms
from tollway.domain.snapshot import Entry, KeyEntry, OrganizationEntry, ProjectEntry, change
from tollway.gateway.inference_access import explain_inference

HERE = "127.0.0.1"


class Case(NamedTuple):
    """A request of a key, and the rule that decides about it. `key`, `project`, `organization`: what their entries state."""

    rule: AccessRule
    key: Mapping[str, Any] = MappingProxyType({})
    project: Mapping[str, Any] = MappingProxyType({})
    organization: Mapping[str, Any] = MappingProxyType({})
    model: str = "m"


CASES = (
    Case(AccessRule.DEPLOYMENTS, key={"addresses": ("127.0.0.0/8",), "endpoints": (Endpoint.CHAT_COMPLETIONS,), "models": ("m",)}),
    Case(AccessRule.KEY, key={"expires_at": 1}),
    Case(AccessRule.ADDRESSES, key={"addresses": ("192.0.2.0/24",), "endpoints": (Endpoint.RERANK,)}),
    Case(AccessRule.ENDPOINTS, key={"endpoints": (Endpoint.RERANK,), "models": ("other",)}),
    Case(AccessRule.KEY_MODELS, key={"models": ("other",)}, project={"models": ("other",)}),
    Case(AccessRule.PROJECT_MODELS, key={"models": ("m",)}, project={"models": ("other",)}),
    Case(AccessRule.PROJECT_DENIED_MODELS, project={"denied_models": ("m",)}),
    Case(AccessRule.CATALOG, model="none"),
    Case(AccessRule.CATALOG, organization={"terms": ()}),
    Case(AccessRule.MODEL_ENDPOINTS, model="narrow"),
    Case(AccessRule.RESIDENCY, project={"residency": ("mars",)}),
    Case(AccessRule.DEPLOYMENTS, key={"type": KeyType.TEST}),
)


def make_entries(number: int, case: Case) -> tuple[str, list[Entry]]:
    """Return the secret of a new key and the entries of it, its project and its organization."""
    secret = keys.new_key(case.key.get("type", KeyType.LIVE), number.to_bytes(keys.RANDOM_BYTES, "big")).secret
    organization, project, key = (f"{prefix}_{number:032x}" for prefix in ("org", "proj", "key"))
    of_key = {"type": KeyType.LIVE, **case.key}
    return secret, [
        OrganizationEntry(id=organization, **{"currency": "EUR", "terms": (PriceTerms(0, "book_1"),), **case.organization}),
        ProjectEntry(id=project, organization_id=organization, **case.project),
        KeyEntry(id=key, digest=keys.digest(PEPPER, secret.encode()), project_id=project, **of_key),
    ]


async def test_explanation_of_a_request_is_what_the_gateway_answers_and_names_the_rule() -> None:
    upstream = Upstream(lambda asked: [whole(completion())])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        plane = running.plane
        model = plane.directory.find_model("m")
        assert model is not None
        plane.apply(change(plane.version + 1, msgspec.structs.replace(model, id="narrow", endpoints=(Endpoint.EMBEDDINGS,))))
        for number, case in enumerate(CASES, 1):
            secret, own = make_entries(number, case)
            for entry in own:
                plane.apply(change(plane.version + 1, entry))
            answer = await post(running.port, chat(model=case.model), key=secret)
            entries = [*own, *plane.directory.list_models(), *plane.directory.list_deployments()]
            question = InferenceQuestion(Endpoint.CHAT_COMPLETIONS, case.model, HERE, plane.now_us())
            checks, fault = explain_inference(entries, own[-1].id, question)
            assert checks[-1].rule is case.rule, (case, checks)
            assert [check.passes for check in checks] == [True] * (len(checks) - 1) + [fault is None], case
            if fault is None:
                assert answer.status == 200, (case, answer)
            else:
                assert (answer.status, answer.error["code"]) == (fault.kind.status, fault.kind.code), case
                assert str(answer.error["message"]).partition(" (request id: ")[0] == fault.message, case


def test_explanation_asks_about_neither_the_address_nor_the_model_that_is_not_named() -> None:
    _, entries = make_entries(1, Case(AccessRule.ENDPOINTS, key={"addresses": ("192.0.2.0/24",), "models": ("other",)}))
    checks, fault = explain_inference(entries, entries[-1].id, InferenceQuestion(Endpoint.RERANK, None, None, 1))
    assert ([check.rule for check in checks], fault) == ([AccessRule.KEY, AccessRule.ENDPOINTS], None)
