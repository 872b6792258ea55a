"""Profile of where the microseconds go: `python -m bench.profile TARGET SCENARIO`, for instance `tollway request` or `nginx
chunk`.
"""

from __future__ import annotations

import argparse

from bench.figures import SCENARIOS, count_per_unit, shares_under
from bench.machine import Unavailable
from bench.run import add_rig_arguments, prepared


def main() -> int:
    """Prints system calls per unit, shares of CPU time by binary, and the hottest functions of one target under one
    load. Exit status 2 where a tool cannot be had.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("target")
    parser.add_argument("scenario", choices=sorted(SCENARIOS))
    parser.add_argument("--system-calls", action="store_true", help="only those: exact, whatever else runs here")
    add_rig_arguments(parser)
    arguments = parser.parse_args()
    try:
        return _profile(arguments)
    except Unavailable as reason:
        print(reason)
        return 2


def _profile(arguments: argparse.Namespace) -> int:
    with prepared(arguments, record=lambda sample: None) as rig, rig.running([arguments.target]) as targets:
        if not targets:
            return 2
        for target in targets:
            print(f"\n{target.name}, per {arguments.scenario}: system calls")
            for name, calls in count_per_unit(rig, target, arguments.scenario).items():
                print(f"  {calls:9.3f}  {name}")
            if arguments.system_calls:
                continue
            values, functions = shares_under(rig, target, arguments.scenario)
            print(f"\nmicroseconds of CPU per {arguments.scenario}, by binary")
            for name, microseconds in values.items():
                print(f"  {microseconds:9.2f}  {name}")
            print(f"\nhottest functions\n{functions}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
