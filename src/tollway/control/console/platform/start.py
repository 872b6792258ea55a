"""The first steps of a platform: an engine, a price, an organization with a key, a request. Each step shows whether it is done."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tollway.control.api.catalog import catalog, deployments, prices
from tollway.control.api.catalog.deployment_schemas import DeploymentCreate, EngineCheck
from tollway.control.api.catalog.model_schemas import ModelCreate
from tollway.control.api.catalog.price_schemas import PriceCreate
from tollway.control.api.identity import api_keys
from tollway.control.api.money import periods
from tollway.control.api.schemas import KeyCreate, OrganizationCreate, PageQuery
from tollway.control.api.tenancy import organizations, projects
from tollway.control.api.tenancy.project_schemas import ProjectCreate
from tollway.control.console.forms import Form, form, make_body
from tollway.control.console.routing import Page, PlatformPage
from tollway.control.console.routing import router as new_router
from tollway.domain.catalog import Endpoint, Engine
from tollway.domain.faults import Fault

router = new_router()

PATH = "/console/platform/start"

ROWS_MAX = 100
"""Models and organizations that the steps look at: the most that the API lists at once. These steps are for a platform with few."""

ENDPOINTS = (Endpoint.CHAT_COMPLETIONS,)
"""Endpoints of the first model; `tollway models` and the REST API set others."""


@dataclass(frozen=True, slots=True)
class FirstKey:
    """Secrets of the organization that was just made, which are shown this once."""

    organization_id: str
    admin_secret: str
    secret: str
    model: str


@router.get(PATH, include_in_schema=False)
def show_first_steps(page: PlatformPage) -> Response:
    """The steps, and which are done."""
    return _show(page)


def _show(
    page: Page,
    *,
    fault: Fault | None = None,
    found: Sequence[str] | None = None,
    given: Form | None = None,
    first_key: FirstKey | None = None,
) -> Response:
    page.require(deployments.create_deployment)
    query = PageQuery(limit=ROWS_MAX)
    models = page.call(catalog.list_models, query=query).data
    return page.show(
        "platform/start.html",
        fault=fault,
        engines=list(Engine),
        found=found,
        given={name: (given or {}).get(name, "") for name in ("base_url", "engine", "model")},
        has_credential=bool(given and given.get("credential")),
        deployments=page.call(deployments.list_deployments, query=query).data,
        unpublished=[each.name for each in models if not each.published],
        published=[each.name for each in models if each.published],
        organizations=page.call(organizations.list_organizations, query=query).data,
        was_used=bool(page.call(periods.list_periods, query=PageQuery(limit=1)).data),
        first_key=first_key,
    )


@router.post(f"{PATH}/engine", include_in_schema=False)
async def test_engine(
    page: PlatformPage, fields: Annotated[Form, form(deployments.check_engine, "base_url", "engine", "credential")]
) -> Response:
    """Ask an engine for its models, and offer them."""
    found, refused = None, None
    try:
        found = (await page.call(deployments.check_engine, body=make_body(EngineCheck, fields))).models
    except Fault as fault:
        refused = fault
    return await run_in_threadpool(_show, page, fault=refused, found=found, given=fields)


@router.post(f"{PATH}/deployment", include_in_schema=False)
def connect_engine(
    page: PlatformPage,
    fields: Annotated[Form, form(deployments.create_deployment, "base_url", "engine", "upstream_model", "model", "credential")],
) -> Response:
    """Create a model, unless it is there, and connect the engine to it."""
    name = fields["model"] or fields["upstream_model"]
    try:
        deployment = make_body(DeploymentCreate, {**fields, "model": name})
        known = {each.name for each in page.call(catalog.list_models, query=PageQuery(limit=ROWS_MAX)).data}
        if name not in known:
            page.call(catalog.create_model, body=make_body(ModelCreate, {"name": name, "endpoints": list(ENDPOINTS)}))
        page.call(deployments.create_deployment, body=deployment)
    except Fault as fault:
        return _show(page, fault=fault, given=fields, found=[fields["upstream_model"]] if fields["upstream_model"] else [])
    return page.lead("/start", "created")


@router.post(f"{PATH}/price", include_in_schema=False)
def publish_with_price(
    page: PlatformPage, fields: Annotated[Form, form(prices.create_price, "model", "currency", "input", "output")]
) -> Response:
    """Publish a price, and the model with it."""
    try:
        page.call(prices.create_price, body=make_body(PriceCreate, fields))
        page.call(catalog.publish_model, model=fields["model"])
    except Fault as fault:
        return _show(page, fault=fault)
    return page.lead("/start", "created")


@router.post(f"{PATH}/organization", include_in_schema=False)
def add_organization_with_key(
    page: PlatformPage,
    fields: Annotated[Form, form(organizations.create_organization, "name", "currency", "time_zone", "project", "key", "model")],
) -> Response:
    """Create an organization with a project and a key, and show the secrets this once."""
    try:
        organization = make_body(OrganizationCreate, {name: fields[name] for name in ("name", "currency", "time_zone")})
        project, key = make_body(ProjectCreate, {"name": fields["project"]}), make_body(KeyCreate, {"name": fields["key"]})
        made = page.call(organizations.create_organization, body=organization)
        acting = page.act_for(made.id)
        project_id = acting.call(projects.create_project, body=project).id
        secret = acting.call(api_keys.create_project_key, project_id=project_id, body=key).value
    except Fault as fault:
        return _show(page, fault=fault)
    return _show(page, first_key=FirstKey(made.id, made.admin_api_key.value, secret, fields["model"]))
