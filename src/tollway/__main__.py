"""`python -m tollway` and the `tollway` command."""

import sys

from tollway.cli.app import run


def main() -> int:
    """Run the command line of this process; returns the exit code: 0 done, 1 failure, 2 wrong usage (or a difference
    found)."""
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
