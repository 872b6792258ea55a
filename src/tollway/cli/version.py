"""`tollway version`."""

import tollway


def version() -> None:
    """Print the version."""
    print(tollway.__version__)
