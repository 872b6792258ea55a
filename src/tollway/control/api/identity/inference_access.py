"""Explanations of access to inference: whether gateways let a request of a key pass, or refuse it, and by which rule."""

from typing import Annotated, Literal

from fastapi import Depends, Query
from pydantic import Field

from tollway.control.api import routes
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Out
from tollway.control.identity import inference_access
from tollway.control.identity.access import Tenant
from tollway.control.identity.inference_access import KeyDecision
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.inference_access import AccessRule, InferenceQuestion
from tollway.domain.networks import parse_address
from tollway.domain.roles import Permission

router = routes.router(tags=["keys"])

_KEY = "key_0198c5f2a3b47c11a0b1c2d3e4f50617"


class AccessCheckOut(Out):
    """A question that gateways ask of a request, and its answer."""

    rule: Annotated[
        AccessRule,
        Field(
            description="What is asked: whether the `key` is valid, and its project and organization are active; whether the key allows the"
            " address, the endpoint and the model (`addresses`, `endpoints`, `key_models`), and its project the model (`project_models`,"
            " `project_denied_models`); whether a model of this name has a price for the organization (`catalog`) and the endpoint"
            " (`model_endpoints`); whether it has a deployment in a region of the project (`residency`), and one that takes requests, for"
            " a test key one for tests (`deployments`).",
            examples=["key_models"],
        ),
    ]
    passes: Annotated[bool, Field(description="Whether the request passes.", examples=[False])]
    held: Annotated[
        list[str] | None,
        Field(description="What the key or the project is restricted to there; null where it is not.", examples=[["llama-70b"]]),
    ]


class InferenceDecisionOut(Out):
    """A decision of gateways on a request of one key, apart from limits and budgets."""

    api_key_id: Annotated[str, Field(description="The key.", examples=[_KEY])]
    allowed: Annotated[bool, Field(description="Whether the request passes.", examples=[False])]
    rule: Annotated[AccessRule, Field(description="The question that decides: the last of `checks`.", examples=["key_models"])]
    status: Annotated[int | None, Field(ge=400, le=599, description="The HTTP status of the refusal; null if it passes.", examples=[404])]
    code: Annotated[str | None, Field(description="The code of the refusal; null if it passes.", examples=["model_not_found"])]
    message: Annotated[
        str | None,
        Field(
            description="The text of the refusal; null if it passes.",
            examples=["The model does not exist or you do not have access to it."],
        ),
    ]
    checks: Annotated[list[AccessCheckOut], Field(description="The questions, in the order of gateways, up to the first that refuses.")]


class InferenceAccessOut(Out):
    """Decisions about a request of an API key, or of each key of a service account."""

    object: Literal["access.inference"] = "access.inference"
    subject_id: Annotated[str, Field(description="The API key or the service account.", examples=[_KEY])]
    endpoint: Annotated[Endpoint, Field(description="The endpoint of the request.", examples=["chat/completions"])]
    model: Annotated[str | None, Field(description="The model; null if none was named.", examples=["llama-70b"])]
    address: Annotated[str | None, Field(description="The address of the client; null if none was named.", examples=["192.0.2.1"])]
    decisions: Annotated[
        list[InferenceDecisionOut],
        Field(description="One for each key, of a service account the 100 oldest; none for an account without keys."),
    ]


@router.get("/v1/organization/inference_access")
def explain_inference_access(
    caller: Annotated[Tenant, Depends(may(Permission.API_KEYS_READ))],
    plane: Plane,
    subject_id: Annotated[str, Query(max_length=64, description="An API key or a service account.", examples=[_KEY])],
    endpoint: Annotated[Endpoint, Query(description="The endpoint of the request.", examples=["chat/completions"])],
    model: Annotated[str | None, Query(max_length=128, description="The model.", examples=["llama-70b"])] = None,
    address: Annotated[
        str | None, Query(max_length=64, description="The address from which the request comes.", examples=["192.0.2.1"])
    ] = None,
) -> InferenceAccessOut:
    """Explain which rule lets a request of an API key pass at gateways, or refuses it, and with which answer. What depends on the model or
    on the address is left out where that is not named. Limits, budgets and the health of deployments are not asked."""
    if address is not None and parse_address(address) is None:
        raise Fault(PARAMETER_INVALID, param="address", message="'address' must be an IP address.")
    question = InferenceQuestion(endpoint, model, address, plane.now())
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        decisions = inference_access.explain(tx, plane.explain_inference, subject_id, question)
    return InferenceAccessOut(
        subject_id=subject_id, endpoint=endpoint, model=model, address=address, decisions=list(map(_decision_out, decisions))
    )


def _decision_out(of_key: KeyDecision) -> InferenceDecisionOut:
    checks, fault = of_key.decision
    return InferenceDecisionOut(
        api_key_id=of_key.key_id,
        allowed=fault is None,
        rule=checks[-1].rule,
        status=None if fault is None else fault.kind.status,
        code=None if fault is None else fault.kind.code,
        message=None if fault is None else fault.message,
        checks=[AccessCheckOut(rule=each.rule, passes=each.passes, held=None if each.held is None else list(each.held)) for each in checks],
    )
