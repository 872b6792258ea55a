"""The entrance of the console, the viewer's choice of language and theme, and the answer for addresses that are none."""

from typing import Annotated

from starlette.requests import Request
from starlette.responses import Response

from tollway.control.api.authentication.pages import THEMES, SomebodySignedIn, choose_path, get_origin, redirect
from tollway.control.api.routes import Plane
from tollway.control.console import rendering
from tollway.control.console.forms import Form, form
from tollway.control.console.routing import router as new_router
from tollway.control.languages.texts import LANGUAGES
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, Fault
from tollway.domain.keys import Operator

router = new_router()

PATH = "/console"


@router.get(PATH, include_in_schema=False)
async def enter_console(caller: SomebodySignedIn) -> Response:
    """Lead to the organization of a person, or an operator to the platform."""
    return redirect("/console/platform" if isinstance(caller, Operator) else f"/console/organizations/{caller.organization_id}")


@router.post(f"{PATH}/look", include_in_schema=False)
async def choose_look(
    _caller: SomebodySignedIn, plane: Plane, request: Request, fields: Annotated[Form, form(None, "language", "theme", "back")]
) -> Response:
    """Keep the language and the theme that the viewer chose, and go back to the page where they chose it."""
    if fields["language"] not in LANGUAGES or fields["theme"] not in THEMES:
        raise Fault(PARAMETER_INVALID)
    answer = redirect(choose_path(fields["back"], PATH))
    return rendering.keep_look(answer, get_origin(plane, request), fields["language"], fields["theme"])


@router.get(PATH + "/{path:path}", include_in_schema=False)
async def find_nothing(_caller: SomebodySignedIn) -> Response:
    """Answer for an address below `/console` that no page has."""
    raise Fault(RESOURCE_UNKNOWN)
