"""`python -m reliability`: takes one figure, keeps its line, renders docs/reliability.md."""

import argparse
import random

from reliability import crashes


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability")
    parser.add_argument("figure", nargs="?")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--seed", type=int)
    a = parser.parse_args()
    for line in crashes.measure(a.kills, a.database, a.seed if a.seed is not None else random.SystemRandom().randrange(1 << 32)):
        print(line)
    return 0
