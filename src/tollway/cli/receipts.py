"""`tollway receipt`: what one request was billed."""

from typing import Annotated

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, Organization, check_id, connect_tenant
from tollway.cli.output import print_json
from tollway.domain import ids


def receipt(
    request: Annotated[str, typer.Argument(metavar="REQUEST", help="Id of the request (header x-request-id).")],
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Print the receipt of a request as JSON: what was counted, at which price, with every correction."""
    check_id(ids.REQUEST, request, "request", "every answer has it in x-request-id")
    with connect_tenant(control_url, key, data_dir, organization) as control:
        print_json(control.get(f"/organization/requests/{request}"))
