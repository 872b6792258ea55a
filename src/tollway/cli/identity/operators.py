"""`tollway operators`: operators who sign in with the identity provider of the platform, and links for whoever has a key."""

from typing import Annotated

import typer

from tollway.cli.client import Control, ControlUrl, DataDir, Key, check_id, connect, segment
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.cli.times import Zone, with_times
from tollway.domain import ids
from tollway.settings import OperatorError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

WHERE = "see `tollway operators list`"
OperatorName = Annotated[str, typer.Argument(metavar="ADDRESS|ID", help="Address or id, as `tollway operators list` shows it.")]


@app.command("list")
def list_operators(
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the operators who signed in, with the roles of their latest sign-in."""
    with connect(control_url, key, data_dir) as control:
        rows = list(control.list_all("/platform/operators"))
        if output is Output.TABLE:
            rows = with_times(rows, control.get_zone(zone), signed_in="signed_in_at")
    print_rows(output, ["id", "email", "name", "role", "origin", "signed_in"], rows, none="nobody signed in yet")


@app.command()
def remove(
    operator: OperatorName,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Take the role from an operator, and end their sessions. Take them out of the group at the provider too, or they can sign in again."""
    with connect(control_url, key, data_dir) as control:
        operator_id = _get_id(control, operator)
        gone = control.delete(f"/platform/operators/{segment(operator_id)}")
    print_json(gone) if output is Output.JSON else print(f"removed {operator_id}")


@app.command()
def link(
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Print a link that signs you in at the console once, within 15 minutes, with the role of the key."""
    with connect(control_url, key, data_dir) as control:
        made = control.post("/platform/operator_sign_in_links")
    print_json(made) if output is Output.JSON else print(made["url"])


@app.command()
def sessions(
    operator: OperatorName,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the sessions of an operator."""
    with connect(control_url, key, data_dir) as control:
        rows = control.get(f"/platform/operators/{segment(_get_id(control, operator))}/sessions")["data"]
        if output is Output.TABLE:
            rows = with_times(rows, control.get_zone(zone), began="created_at", used="last_used_at")
    print_rows(output, ["id", "kind", "address", "agent", "began", "used"], rows, none="no sessions")


@app.command("end-session")
def end_session(
    operator: OperatorName,
    session: Annotated[str, typer.Argument(metavar="SESSION_ID", help="Id, as `tollway operators sessions` shows it.")],
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """End a session of an operator."""
    check_id(ids.OPERATOR_SESSION, session, "session", "see `tollway operators sessions`")
    with connect(control_url, key, data_dir) as control:
        gone = control.delete(f"/platform/operators/{segment(_get_id(control, operator))}/sessions/{session}")
    print_json(gone) if output is Output.JSON else print(f"ended {session}")


def _get_id(control: Control, address_or_id: str) -> str:
    """Return the id of the operator with this address or id. Raises OperatorError if there is none or several with the address."""
    if ids.is_id(ids.OPERATOR, address_or_id):
        return address_or_id
    found = [str(each["id"]) for each in control.list_all("/platform/operators") if each["email"] == address_or_id]
    if len(found) != 1:
        raise OperatorError(
            f"{'no operator has' if not found else 'several operators have'} the address {address_or_id}", hint=WHERE, exit_code=2
        )
    return found[0]
