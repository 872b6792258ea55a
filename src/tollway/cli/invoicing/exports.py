"""`tollway invoices` for exports: the charges of a document in the form of FOCUS, and the books of a seller for its accountants."""

from pathlib import Path
from typing import Annotated

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, Organization, check_id, connect, connect_tenant
from tollway.cli.output import written_whole
from tollway.domain import ids

FileOption = Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="File to write, in place of standard output.")]


def export_focus(
    invoice: Annotated[str, typer.Argument(metavar="INVOICE", help="Its id (inv_...), as `tollway invoices list` shows it.")],
    is_monthly: Annotated[bool, typer.Option("--monthly", help="One charge for the whole period, in place of one a day.")] = False,
    file: FileOption = None,
    is_own: Annotated[bool, typer.Option("--own", help="As the organization, in place of the operator.")] = False,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Export the charges of an issued document as CSV (FOCUS 1.2), usage by project and day."""
    check_id(ids.INVOICE, invoice, "invoice", "see `tollway invoices list`")
    path = f"invoices/{invoice}/focus?granularity={'monthly' if is_monthly else 'daily'}"
    if is_own:
        with connect_tenant(control_url, key, data_dir, organization) as control, written_whole(file) as writer:
            control.download(f"/organization/{path}", writer)
        return
    with connect(control_url, key, data_dir) as control, written_whole(file) as writer:
        control.download(f"/platform/{path}", writer)


def export_books(
    seller: Annotated[str, typer.Argument(metavar="ENTITY", help="Its id (entity_...), as `tollway invoices sellers` shows it.")],
    month: Annotated[str, typer.Option("--month", metavar="YYYY-MM", help="Month of issue.")],
    file: FileOption = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Export what a seller issued in a month as a ZIP archive: documents, double entries, DATEV, and a manifest."""
    check_id(ids.LEGAL_ENTITY, seller, "seller", "see `tollway invoices sellers`")
    with connect(control_url, key, data_dir) as control, written_whole(file) as writer:
        control.download(f"/platform/legal_entities/{seller}/books?month={month}", writer)
