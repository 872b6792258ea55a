"""Logged content of a project: which requests have it, and what one said and was answered, for whoever may read it."""

import json
from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.identity import api_keys
from tollway.control.api.metering import usage
from tollway.control.api.schemas import PageQuery
from tollway.control.api.tenancy import data_retention, projects
from tollway.control.console.routing import TenantPage
from tollway.control.console.routing import router as new_router

router = new_router()

PATH = "/console/organizations/{organization_id}/projects/{project_id}/content"
ONE = PATH + "/{request_id}"


@router.get(PATH, include_in_schema=False)
def show_contents(page: TenantPage, project_id: str, query: Annotated[PageQuery, Query()]) -> Response:
    """Requests of a project whose content is logged, without it."""
    found = page.call(data_retention.list_content, project_id=project_id, query=query)
    return page.show(
        "tenant/contents.html",
        contents=found,
        project=page.call(projects.retrieve_project, project_id=project_id),
        seconds=page.call(data_retention.retrieve_project_retention, project_id=project_id).content_retention_seconds,
        may_write=page.allows(data_retention.update_project_retention, project_id),
    )


@router.get(ONE, include_in_schema=False)
def show_content(page: TenantPage, project_id: str, request_id: str) -> Response:
    """The content of a request: what it said and was answered."""
    found = page.call(data_retention.retrieve_content, project_id=project_id, request_id=request_id)
    return page.show(
        "tenant/content.html",
        content=found,
        request_text=indent_json(found.request),
        answer_text=None if found.answer is None else indent_json(found.answer),
        project=page.call(projects.retrieve_project, project_id=project_id),
        may_see_request=page.allows(usage.retrieve_receipt),
        may_see_key=page.allows(api_keys.retrieve_project_key, project_id),
    )


def indent_json(text: str) -> str:
    """Return a text of JSON with a line for each value; every other text as it is."""
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text
