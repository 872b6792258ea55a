"""Options and messages of the commands that rotate keys."""

import sys
from collections.abc import Mapping
from datetime import tzinfo
from typing import Annotated, Any

import typer

from tollway.cli.times import show_instant
from tollway.settings import OperatorError

GraceSeconds = Annotated[int, typer.Option("--grace-seconds", help="Time for which the old secret stays valid.")]


RotateEveryDays = Annotated[
    float | None,
    typer.Option("--rotate-every-days", metavar="DAYS", help="Rotate it by a schedule: `tollway keys collect` shows the new secret."),
]

RotationGraceSeconds = Annotated[
    int, typer.Option("--rotation-grace-seconds", help="Time for which the old secret stays valid after a scheduled rotation.")
]


def make_schedule(every_days: float, grace_seconds: int) -> dict[str, int]:
    """Return a schedule of rotation as the API takes it."""
    return {"interval_seconds": int(every_days * 86_400), "grace_seconds": grace_seconds}


def report_rotation(made: Mapping[str, Any], zone: tzinfo, group: str) -> None:
    """Print on standard error what follows a rotation. `group`: the group of commands that retires the old secret."""
    previous = made["rotation"]["previous"]
    if previous is None:
        print(f"{made['id']}; the new secret is shown this once. The old one is not valid any more.", file=sys.stderr)
    else:
        until = show_instant(previous["expires_at"], zone)
        print(f"{made['id']}; the new secret is shown this once. The old one is valid until {until},", file=sys.stderr)
        print(f"or until `tollway {group} retire {made['id']}`.", file=sys.stderr)
    if made.get("pending_nodes"):
        print(f"not taken yet by: {', '.join(made['pending_nodes'])}", file=sys.stderr)


def require_unused(found: Mapping[str, Any], zone: tzinfo) -> None:
    """Raise OperatorError where the old secret of a key seems to be in use still."""
    previous = (found["rotation"] or {}).get("previous")
    if previous is None or previous["safe_to_retire"]:
        return
    if previous["last_used_at"] is not None:
        said = f"it was last used at {show_instant(previous['last_used_at'], zone)}"
    else:
        said = "the new one is not an hour old, or was not used yet"
    raise OperatorError(f"the old secret may be in use: {said}", hint="`--force` retires it all the same")
