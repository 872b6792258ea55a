"""Explanations of access to inference: which rule lets a request of an API key pass, or refuses it, in the words of the refusal.

The decisions are those of the phases `authenticate` and `authorize`, which are asked here one after the other, and of the choice of a
deployment. They are made over entries of a snapshot, so the control plane, which has them as gateways get them, can ask without a gateway
(`serve.control` hands `explain_inference` to it).
"""

from collections.abc import Callable, Iterable, Iterator

from tollway.domain.catalog import is_resident
from tollway.domain.faults import KEY_INVALID, REGION_UNSERVED, UPSTREAM_NONE, Fault
from tollway.domain.inference_access import AccessCheck, AccessRule, InferenceDecision, InferenceQuestion
from tollway.domain.snapshot import Entry, KeyEntry
from tollway.gateway.authenticate import require_address, require_endpoint
from tollway.gateway.authorize import refuse_model
from tollway.gateway.directory import Directory
from tollway.gateway.request import Caller, RequestHead


def explain_inference(entries: Iterable[Entry], key_id: str, question: InferenceQuestion) -> InferenceDecision:
    """Explain what a gateway that has these entries does with a request of a key: its present secret, a request of the default service
    tier, and deployments whether they are healthy or not."""
    directory, key = Directory(), None
    directory.begin_reset()
    for entry in entries:
        directory.add(entry)
        if isinstance(entry, KeyEntry) and entry.id == key_id:
            key = entry
    directory.finish_reset(1)
    caller = None if key is None else directory.find_caller(key.digest, question.at)
    if key is None or caller is None:
        return InferenceDecision((AccessCheck(AccessRule.KEY, False),), Fault(KEY_INVALID))
    checks = [AccessCheck(AccessRule.KEY, True)]
    for check, fault in _list_checks(directory, key, caller, question):
        checks.append(check._replace(passes=fault is None))
        if fault is not None:
            return InferenceDecision(tuple(checks), fault)
    return InferenceDecision(tuple(checks), None)


def _list_checks(
    directory: Directory, key: KeyEntry, caller: Caller, question: InferenceQuestion
) -> Iterator[tuple[AccessCheck, Fault | None]]:
    """Yield the questions of a gateway about a valid key, each with the fault if the answer is no."""
    if question.address is not None:
        head = RequestHead(question.endpoint, {}, address=question.address)
        fault = None if caller.networks is None else _find_fault(lambda: require_address(caller, head))
        yield AccessCheck(AccessRule.ADDRESSES, True, key.addresses), fault
    yield AccessCheck(AccessRule.ENDPOINTS, True, key.endpoints), _find_fault(lambda: require_endpoint(caller, question.endpoint))
    if question.model is not None:
        yield from _list_model_checks(directory, key, caller, question.model, question)


def _list_model_checks(
    directory: Directory, key: KeyEntry, caller: Caller, model: str, question: InferenceQuestion
) -> Iterator[tuple[AccessCheck, Fault | None]]:
    project = caller.project
    grant = directory.find_grant(caller, model, question.endpoint, question.at)
    unknown = None if grant is not None else refuse_model(grant)
    for rule, held, excludes in (
        (AccessRule.KEY_MODELS, key.models, key.models is not None and model not in key.models),
        (AccessRule.PROJECT_MODELS, project.models, project.models is not None and model not in project.models),
        (AccessRule.PROJECT_DENIED_MODELS, project.denied_models or None, model in project.denied_models),
    ):
        yield AccessCheck(rule, True, held), unknown if excludes else None
    price = None if grant is None else grant.default
    yield AccessCheck(AccessRule.CATALOG, True), None if grant is not None and price is not None else refuse_model(grant, price)
    is_served = grant is not None and grant.is_served
    yield AccessCheck(AccessRule.MODEL_ENDPOINTS, True), None if is_served else refuse_model(grant, price)
    known = [each.deployment for each in directory.list_deployments() if each.deployment.model == model]
    known = [deployment for deployment in known if deployment.test is caller.is_test]
    regions = caller.residency
    resident = known if regions is None else [deployment for deployment in known if is_resident(deployment, regions)]
    yield AccessCheck(AccessRule.RESIDENCY, True, project.residency), Fault(REGION_UNSERVED) if known and not resident else None
    serves = any(deployment.weight > 0 for deployment in resident)
    yield AccessCheck(AccessRule.DEPLOYMENTS, True), None if serves else Fault(UPSTREAM_NONE)


def _find_fault(check: Callable[[], None]) -> Fault | None:
    try:
        check()
    except Fault as fault:
        return fault
    return None
