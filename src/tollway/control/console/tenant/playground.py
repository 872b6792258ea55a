"""The playground: a person sends one request to a model, and sees the answer, what was counted and what it cost.

Control sends it to a gateway (`inference.py`) with a short access token for a key of the person, which is made for that and ends by itself;
nobody sees its secret. So it takes the permission to make keys in the project, and the limits, budgets and prices of the project hold. With
scripts the answer comes as lines of JSON while it is generated, without them as a page at its end. Neither prompt nor answer is stored.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated

import msgspec
from fastapi import Query
from pydantic import BaseModel, ConfigDict, StringConstraints
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from tollway.control.api.catalog import prices
from tollway.control.api.identity import api_keys
from tollway.control.api.metering import usage
from tollway.control.api.metering.usage import ReceiptOut
from tollway.control.api.places import Place
from tollway.control.api.schemas import KeyCreate, PageQuery
from tollway.control.console import inference, rendering
from tollway.control.console.forms import Form, form
from tollway.control.console.inference import OUTPUT_TOKENS_MAX, Outcome, Prompt
from tollway.control.console.routing import Page, TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.console.tenant.projects import offer_projects
from tollway.control.identity.access import Tenant
from tollway.control.identity.keys import find_lifetime_max
from tollway.control.languages.formats import format_money, format_number, read_amount
from tollway.control.languages.texts import get_texts
from tollway.domain.faults import STATE_CONFLICT, Fault

router = new_router()

PATH = "/console/organizations/{organization_id}/playground"
NDJSON = "application/x-ndjson"

KEY_NAME = "Playground"
KEY_SECONDS = 8 * 3_600
"""Lifetime of the key of a person in a project: a working day, so that their requests share one. It is shorter where the organization's
keys live shorter."""

KEY_SECONDS_LEFT = 900
"""Rest of its lifetime below which another one is made: a token ends with its key."""

KEYS_SEARCHED = 100
"""Latest keys of the project among which it is looked for: the most that the API lists at once."""

OUTPUT_TOKENS_DEFAULT = 256

RECEIPT_SECONDS = 5
"""Time for which a receipt is waited for; it appears about a second after the end of the request."""


class Chosen(BaseModel):
    """Values with which the form begins: the id of a project, the name of a model."""

    model_config = ConfigDict(extra="forbid")

    project: Annotated[str, StringConstraints(max_length=64)] = ""
    model: Annotated[str, StringConstraints(max_length=160)] = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """An answer that is at its end. `figures`: titles and values in the language of the viewer. `request_path`: of the page of the request
    below the root, or empty."""

    text: str
    outcome: Outcome
    figures: tuple[tuple[str, str], ...]
    request_path: str


@router.get(PATH, include_in_schema=False)
def show_playground(page: TenantPage, chosen: Annotated[Chosen, Query()]) -> Response:
    """The form."""
    return _show(page, {"project": chosen.project, "model": chosen.model})


def _show(page: Page, given: Form, *, shown: Shown | None = None, fault: Fault | None = None) -> Response:
    offered = offer_projects(page, given.get("project", ""))
    projects = {id: name for id, name in offered.items() if page.allows(api_keys.create_project_key, id)}
    models = page.call(prices.list_own_prices).data if page.allows(prices.list_own_prices) else []
    return page.show(
        "tenant/playground.html",
        fault=fault,
        projects=projects,
        models=list(dict.fromkeys(each.model for each in models)),
        is_reachable=page.plane.gateway_url is not None,
        given={name: given.get(name, "") for name in ("project", "model", "system", "user", "output_tokens")},
        output_tokens_default=OUTPUT_TOKENS_DEFAULT,
        output_tokens_max=OUTPUT_TOKENS_MAX,
        shown=shown,
    )


@router.post(PATH, include_in_schema=False)
async def send_request(
    page: TenantPage, fields: Annotated[Form, form(api_keys.create_project_key, "project", "model", "system", "user", "output_tokens")]
) -> Response:
    """Send a request. The answer is lines of JSON for a script that asks for them, and a page otherwise."""
    place: Place = page.request.scope["tollway.place"]
    is_streamed = page.request.headers.get("accept", "") == NDJSON
    try:
        gateway_url = page.plane.gateway_url
        if gateway_url is None:
            raise Fault(STATE_CONFLICT, message="The address of a gateway is not set: control.gateway_url.")
        prompt = inference.read_prompt(fields["model"], fields["system"], fields["user"], fields["output_tokens"])
        token = await run_in_threadpool(_open_token, page, fields["project"])
        place.follow()
    except Fault as fault:
        refused = fault
    else:
        if is_streamed:
            return StreamingResponse(_write_lines(page, gateway_url, token, prompt), headers=rendering.HEADERS, media_type=NDJSON)
        shown = await _read_whole(page, gateway_url, token, prompt)
        return await run_in_threadpool(_show, page, fields, shown=shown)
    return await run_in_threadpool(_show, page, fields, fault=refused)


def _open_token(page: Page, project_id: str) -> str:
    """Return a token for the viewer's key in a project, which is made if there is none. Raises SCOPE_INSUFFICIENT, RESOURCE_UNKNOWN."""
    caller = page.require(api_keys.create_project_key, project_id)
    now = page.plane.now() // 1_000_000
    found = ""
    if page.allows(api_keys.list_project_keys, project_id):
        latest = PageQuery(limit=KEYS_SEARCHED, order="desc")
        for each in page.call(api_keys.list_project_keys, project_id=project_id, query=latest).data:
            is_own = each.name == KEY_NAME and each.created_by == caller.key_id
            if is_own and each.expires_at is not None and each.expires_at >= now + KEY_SECONDS_LEFT:
                found = each.id
    if not found:
        with page.plane.database.tenant(page.organization_id, write=False) as tx:
            lifetime = find_lifetime_max(tx) or KEY_SECONDS
        body = KeyCreate(name=KEY_NAME, expires_at=now + min(lifetime, KEY_SECONDS))
        found = page.call(api_keys.create_project_key, project_id=project_id, body=body).id
    return inference.issue_token(page.plane, page.organization_id, found)


async def _write_lines(page: Page, gateway_url: str, token: str, prompt: Prompt) -> AsyncIterator[bytes]:
    """Yield the pieces of an answer as they come, and its end: a line each."""
    async with aclosing(inference.ask(gateway_url, token, prompt)) as pieces:
        async for each in pieces:
            if isinstance(each, str):
                yield msgspec.json.encode({"text": each}) + b"\n"
            else:
                shown = await _describe(page, "", each)
                end = {
                    "refusal": shown.outcome.refusal,
                    "figures": shown.figures,
                    "path": page.root + shown.request_path if shown.request_path else "",
                }
                yield msgspec.json.encode(end) + b"\n"


async def _read_whole(page: Page, gateway_url: str, token: str, prompt: Prompt) -> Shown:
    texts, outcome = list[str](), Outcome(0)
    async with aclosing(inference.ask(gateway_url, token, prompt)) as pieces:
        async for each in pieces:
            if isinstance(each, str):
                texts.append(each)
            else:
                outcome = each
    return await _describe(page, "".join(texts), outcome)


async def _describe(page: Page, text: str, outcome: Outcome) -> Shown:
    """Return what is shown of an answer at its end: with its cost, if the viewer may see it and it is booked in time."""
    language = page.look.language
    gettext = get_texts(language).gettext
    figures = [(gettext("Status"), str(outcome.status) if outcome.status else gettext("none"))]
    if outcome.input_tokens is not None:
        figures.append((gettext("Input"), format_number(language, outcome.input_tokens)))
        figures.append((gettext("Output"), format_number(language, outcome.output_tokens)))
    path = ""
    if outcome.status == 200 and outcome.request_id and page.allows(usage.retrieve_receipt):
        receipt = await _find_receipt(page, outcome.request_id)
        cost = gettext("some seconds later, on the page of the request")
        if receipt is not None:
            cost = format_money(language, read_amount(receipt.net_cost["value_decimal"]), receipt.net_cost["currency"])
        figures.append((gettext("Cost"), cost))
        path = f"/requests/{outcome.request_id}"
    if outcome.request_id:
        figures.append((gettext("Request"), outcome.request_id))
    return Shown(text, outcome, tuple(figures), path)


async def _find_receipt(page: Page, request_id: str) -> ReceiptOut | None:
    """Return the receipt of a request, if it is booked within RECEIPT_SECONDS."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + RECEIPT_SECONDS
    while True:
        receipt = await run_in_threadpool(_read_receipt, page, request_id)
        if receipt is not None or loop.time() >= ends:
            return receipt
        await asyncio.sleep(inference.RETRY_SECONDS)


def _read_receipt(page: Page, request_id: str) -> ReceiptOut | None:
    """Return a receipt, and have that recorded, if it is booked; None otherwise."""
    caller = page.require(usage.retrieve_receipt)
    assert isinstance(caller, Tenant), "receipts are an organization's"
    try:
        usage.retrieve_receipt(caller, page.plane, request_id)
        return page.call(usage.retrieve_receipt, request_id=request_id)
    except Fault:
        return None
