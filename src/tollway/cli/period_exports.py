"""`tollway periods export` and `proof`: what an auditor checks with `tollway_verifier.py`, without trusting us."""

import json
from pathlib import Path
from typing import Annotated

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, Organization, check_id, connect_tenant
from tollway.cli.output import print_json, written_whole
from tollway.domain import ids
from tollway.settings import OperatorError

LISTED = "see `tollway periods list`"

Period = Annotated[str, typer.Option("--period", metavar="PERIOD", help="Id of the period, as `tollway periods list` shows it.")]


def export(
    period: Period,
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="File to write, in place of standard output.")] = None,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Write all of a closed period as lines of JSON: records, prices, corrections, transactions."""
    check_id(ids.PERIOD, period, "billing period", LISTED)
    with connect_tenant(control_url, key, data_dir, organization) as control, written_whole(file) as writer:
        control.download(f"/organization/periods/{period}/export", writer)


def proof(
    period: Period,
    request: Annotated[str, typer.Argument(metavar="REQUEST", help="The id of the request (x-request-id).")],
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="File to write, in place of standard output.")] = None,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Write the proof that a request is in a closed period."""
    check_id(ids.PERIOD, period, "billing period", LISTED)
    check_id(ids.REQUEST, request, "request", "every answer has it in x-request-id")
    with connect_tenant(control_url, key, data_dir, organization) as control:
        proven = control.get(f"/organization/periods/{period}/proofs/{request}")
    if file is None:
        print_json(proven)
        return
    try:
        file.write_text(json.dumps(proven, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise OperatorError(f"cannot write {file}: {error.strerror}") from None
