"""`python -m reliability R1 --kills 20`: takes one figure, keeps its line, renders docs/reliability.md."""

import argparse
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from reliability import crashes, page, records
from reliability.records import Line

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"


def main() -> int:
    """Exit status 0 when the figure was taken and nothing failed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m reliability", description="What breaks when things break.")
    parser.add_argument("--render", action="store_true", help="try nothing; render the page from the kept results")
    figures = parser.add_subparsers(dest="figure", metavar="FIGURE")
    for name, (add_arguments, _) in FIGURES.items():
        figure = figures.add_parser(name, help=page.FIGURES[name].title)
        figure.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="replays the dice, not the machine")
        add_arguments(figure)
    arguments = parser.parse_args()
    if arguments.figure is None:
        if not arguments.render:
            parser.error("name a figure, or --render")
        render()
        return 0
    signal.signal(signal.SIGTERM, _interrupt)  # so that everything that was started is ended on the way out
    print(f"seed {arguments.seed}", flush=True)
    lines = FIGURES[arguments.figure][1](arguments)
    for line in lines:
        print(f"{line.figure} {line.case}: {line.failures} failures in {line.n} {line.of}, also {line.also}\n{line.detail}", flush=True)
    render()
    return 1 if any(line.failures for line in lines) else 0


def render() -> None:
    """Write docs/reliability.md."""
    PAGE.write_text(page.render(records.read()))


def _add_crashes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=20, help="about 3 s each (default 20)")
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--per-second", type=float, default=crashes.PER_SECOND, help="requests offered (default 100)")


def _take_crashes(arguments: argparse.Namespace) -> Sequence[Line]:
    return crashes.measure(arguments.kills, arguments.database, arguments.seed, per_second=arguments.per_second)


FIGURES: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], Sequence[Line]]]] = {
    "R1": (_add_crashes, _take_crashes),
}


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
