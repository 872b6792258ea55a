"""`python -m reliability R1 --kills 20`: takes one figure, keeps its line, renders docs/reliability.md."""

import argparse
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from reliability import (
    amplification,
    attacks,
    batches,
    budgets,
    chaos,
    crashes,
    faults,
    fleet_faults,
    hammer,
    hostile_soak,
    limit_races,
    neighbours,
    outages,
    overloads,
    page,
    proxied_rollouts,
    proxies,
    records,
    restores,
    revocations,
    rollouts,
    soaks,
    timings,
    upgrades,
    years,
)
from reliability.records import Line
from tests.simulation.run import simulate

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


Add = Callable[[argparse.ArgumentParser], None]
Take = Callable[[argparse.Namespace], Sequence[Line]]


def _option(name: str, default: float, text: str, *, database: bool = False) -> Add:
    """One number, of the type of its default, and perhaps the database."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(name, type=type(default), default=default, help=f"{text} (default {default})")
        if database:
            parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")

    return add


def _lines_and_kills(parser: argparse.ArgumentParser) -> None:
    _option("--lines", 100_000, "how many lines, in batches of 50,000 at most", database=True)(parser)
    _option("--kills", 50, "how often a process is killed at most, every 3 to 8 s")(parser)
    parser.add_argument("--bucket", action="store_true", help="keep the files in a bucket of a server that speaks S3")


def _choose_attacks(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which attacks, and whether waits are compared."""
    parser.add_argument("--only", default="", metavar="TEXT", help='only attacks whose names contain TEXT, such as "control: "')
    parser.add_argument(
        "--quiet", action="store_true", help="nothing else works on the machine: check how much longer calls to control take"
    )


def _choose_rows(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which faults of a cluster, and whether the result of a part is kept."""
    parser.add_argument("--only", default="", metavar="TEXT", help='only rows whose text contains TEXT, such as "network: "')
    parser.add_argument("--record", action="store_true", help="keep the result of a part, too")


def _choose_version(parser: argparse.ArgumentParser) -> None:
    """Add the option that says from which version is upgraded."""
    parser.add_argument("--before", default=upgrades.PREVIOUS, metavar="COMMIT", help=f"the version before (default {upgrades.PREVIOUS})")


def _choose_proxy(parser: argparse.ArgumentParser) -> None:
    """Add the options that say behind which proxy, and how often both gateways are replaced."""
    parser.add_argument("--proxy", choices=sorted(proxies.PROXIES), default="nginx")
    _option("--rounds", 10, "how often both gateways are replaced, about 20 s each")(parser)


def _choose_soak(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how long, and under which load."""
    _option("--seconds", 600.0, "how long it is used")(parser)
    _option("--per-second", 20.0, "requests a second to each gateway")(parser)


def _choose_races(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how many races, of how many clients, and when no more of them begin."""
    _option("--races", 1, "how often gateways race for a budget and for credit with each server, about 30 s each")(parser)
    _option("--clients", budgets.CLIENTS, "how many clients ask at once")(parser)
    _option("--seconds", 86_400.0, "how long races of a kind may begin with one server")(parser)


def _choose_year(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how many customers, and how many months."""
    _option("--customers", 50, "how many organizations are billed", database=True)(parser)
    _option("--months", 12, "how many months, 2 to 12")(parser)


def _choose_part(parser: argparse.ArgumentParser) -> None:
    """Add the option that says which part of R9 is taken."""
    parser.add_argument("--part", choices=("tests", "amplification"), help="only the tests of bad input, or only what inputs cost")


def _try_bad_input(part: str | None) -> list[Line]:
    """Figure R9: the tests of bad input, at most half an hour, and the costs of bad inputs, about four minutes."""
    lines = [] if part == "amplification" else faults.measure_bad_input()
    return lines if part == "tests" else lines + amplification.measure()


def _nothing(parser: argparse.ArgumentParser) -> None:
    """No option of its own."""


def _simulate(first_seed: int, count: int) -> list[Line]:
    """Figure R2: as many histories, from that seed on."""
    began = time.time()
    report = simulate(range(first_seed, first_seed + count))
    also = {name.replace("_", " "): report[name] for name in ("kills", "power_cuts", "faults", "requests")}
    detail = {name: report[name] for name in ("virtual_hours", "failing_seeds")}
    return [
        records.record(
            "R2", n=report["n"], failures=report["failures"], of="histories", began=began, seed=first_seed, also=also, detail=detail
        )
    ]


FIGURES: dict[str, tuple[Add, Take]] = {
    "R1": (
        _option("--kills", 20, "how often something is killed, about 3 s each", database=True),
        lambda told: crashes.measure(told.kills, told.database, told.seed),
    ),
    "R2": (_option("--seeds", 2000, "how many histories, about 50 ms each"), lambda told: _simulate(told.seed, told.seeds)),
    "R4": (_option("--seconds", 20.0, "how long too much is offered"), lambda told: overloads.measure(told.seconds, told.seed)),
    "R5": (_option("--seconds", 20.0, "how long each half takes"), lambda told: neighbours.measure(told.seconds, told.seed)),
    "R6": (
        _option("--limit", 200, "what four gateways race for; three times as much is sent"),
        lambda told: limit_races.measure(told.limit, told.seed),
    ),
    "R7": (
        _choose_races,
        lambda told: budgets.measure(told.races, told.clients, told.seconds),
    ),
    "R8": (_nothing, lambda told: faults.measure_faults()),
    "R9": (_choose_part, lambda told: _try_bad_input(told.part)),
    "R10": (_option("--rollouts", 10, "how often the gateway is replaced"), lambda told: rollouts.measure(told.rollouts, told.seed)),
    "R11": (_option("--seconds", 60.0, "how long control is gone"), lambda told: outages.measure(told.seconds, told.seed)),
    "R12": (_choose_soak, lambda told: soaks.measure(told.seconds, told.per_second, told.seed)),
    "R14": (
        _option("--times", 1, "how often the database is lost, each time with two ways back", database=True),
        lambda told: restores.measure(told.times, told.database, told.seed),
    ),
    "R17": (_option("--rounds", 5000, "how often a key of each kind is refused"), lambda told: timings.measure(told.rounds, told.seed)),
    "R18": (_choose_attacks, lambda told: attacks.measure(told.only, is_quiet=told.quiet)),
    "R20": (
        _option("--seconds", 120.0, "how long each half takes"),
        lambda told: hostile_soak.measure(told.seconds, told.seed),
    ),
    "R21": (
        _option("--requests", 40, "how many requests under each fault"),
        lambda told: fleet_faults.measure(told.requests, told.seed),
    ),
    "R22": (
        _option("--revocations", 100, "how many keys are revoked in each case, up to 3 s each"),
        lambda told: revocations.measure(told.revocations, told.seed),
    ),
    "R23": (
        _lines_and_kills,
        lambda told: batches.measure(told.lines, told.kills, told.database, told.seed, has_bucket=told.bucket),
    ),
    "R24": (
        _choose_rows,
        lambda told: chaos.measure(told.only, told.seed, is_recorded=told.record or not told.only, arguments=sys.argv[1:]),
    ),
    "R26": (_choose_proxy, lambda told: proxied_rollouts.measure(told.proxy, told.rounds, told.seed)),
    "R25": (_choose_version, lambda told: upgrades.measure(told.before, told.seed)),
    "R27": (_choose_year, lambda told: years.measure(told.customers, told.months, told.database, told.seed)),
    "R19": (_option("--requests", 50_000, "how many requests, about 2 ms each"), lambda told: hammer.measure(told.requests, told.seed)),
}


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
