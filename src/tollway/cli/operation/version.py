"""`tollway version`."""

from typing import Annotated

import typer

import tollway

_FORMS = {
    "pure": "pure Python",
    "native": "with the native extension",
    "compiled": "compiled, with the native extension",
}


def version(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say in which form this installation runs.")] = False) -> None:
    """Print the version."""
    if not verbose:
        print(tollway.__version__)
        return
    from tollway.native import FORM

    print(f"tollway {tollway.__version__}, {_FORMS[FORM]}")
