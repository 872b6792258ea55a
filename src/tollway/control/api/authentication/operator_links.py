"""One-time links with which whoever has a key of operators signs in at the console."""

from typing import Annotated, Literal

from fastapi import Depends, Request
from pydantic import Field

from tollway.control.api import routes
from tollway.control.api.authentication import pages
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Out, seconds
from tollway.control.identity import operators
from tollway.domain.keys import RANDOM_BYTES, Operator
from tollway.domain.roles import Permission

router = routes.router(tags=["operators"])

PATH = "/sign-in/operators/link"
"""Path of the page of these links."""

Writer = Annotated[Operator, Depends(may(Permission.PLATFORM_KEYS_WRITE))]


class OperatorSignInLinkOut(Out):
    """A link that signs an operator in once."""

    object: Annotated[Literal["platform.operator.sign_in_link"], Field(description="Always `platform.operator.sign_in_link`.")] = (
        "platform.operator.sign_in_link"
    )
    url: Annotated[
        str,
        Field(
            description="The link. It is in this answer and nowhere else.",
            examples=["https://control.example.com/sign-in/operators/link?token=tw_link_..."],
        ),
    ]
    expires_at: Annotated[int, Field(description="Until when it can be used, in Unix seconds.", examples=[1790000900])]


@router.post("/v1/platform/operator_sign_in_links")
def create_operator_sign_in_link(caller: Writer, plane: Plane, request: Request) -> OperatorSignInLinkOut:
    """Create a link that signs whoever presents a key of operators in once, within 15 minutes, with the role of the key. The link before is
    not valid any more. The session ends with the key."""
    origin = pages.get_origin(plane, request)
    with plane.database.platform() as tx:
        link = operators.create_link(tx, caller, random_bytes=plane.random_bytes(RANDOM_BYTES), pepper=plane.pepper, now=plane.now())
    return OperatorSignInLinkOut(url=f"{origin}{PATH}?token={link.token}", expires_at=seconds(link.expires_at))
