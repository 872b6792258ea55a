"""R25: a cluster of the version before is upgraded under load, taken back, and upgraded again (docs/upgrade.md)."""

import re
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from reliability.chaos import Operations, check_bills, end, traffic, wait_until_whole
from reliability.clusters import PRESENT, Cluster, Release, cluster, wait_until_ready
from reliability.load import Sent
from reliability.platforms import Part
from reliability.processes import WAIT_SECONDS
from reliability.records import Line, record
from reliability.strikes import AWAY

ROOT = Path(__file__).parents[1]
PREVIOUS = "02707e70"
"""Commit of the version before."""
PHASE_SECONDS = 3.0
INSTALL_SECONDS_MAX = 900.0
REFUSED = ("which this version of Tollway does not know", "over which this version of Tollway cannot run")
"""Words of a control process that may not run over the schema."""
MARGIN_SECONDS = 2.0
"""A request that a gateway refuses because it is being replaced may have begun so long before."""


class Span(NamedTuple):
    """Time in which a gateway was replaced, in monotonic seconds."""

    start: float
    end: float


def measure(commit: str, seed: int) -> list[Line]:
    """Take the figure and keep it. A clone without that commit takes none, and says so."""
    began = time.time()
    with (
        tempfile.TemporaryDirectory(prefix="tollway-before-") as sources,
        tempfile.TemporaryDirectory(prefix="tollway-upgrades-") as scratch,
    ):
        place = Path(sources) / "tollway"
        if not unpack(commit, place):
            print(f"left out: this clone does not have the commit {commit}", flush=True)
            return []
        before = install(place)
        wrong, sent, steps = run(Path(scratch), before, seed)
    print("\n".join(wrong[:20]), flush=True)
    heard = [each for part in sent for each in part.heard]
    return [
        record(
            "R25",
            of="steps",
            n=len(steps),
            failures=len(wrong),
            also={"requests": len(heard)},
            seed=seed,
            began=began,
            detail={"version_before": commit, "clients": dict(Counter(each.ended for each in heard)), "steps": steps},
        )
    ]


def unpack(commit: str, place: Path) -> bool:
    """Write the tree of a commit to `place`. Return False if this clone does not have it."""
    archived = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True)
    if archived.returncode != 0:
        return False
    place.mkdir(parents=True)
    subprocess.run(["tar", "-x", "-C", str(place)], input=archived.stdout, check=True)
    return True


def install(place: Path) -> Release:
    """Install what the lock of that version says into an environment of its own."""
    made = subprocess.run(["make", "-C", str(place), ".venv/.tollway"], capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX)
    assert made.returncode == 0, made.stdout + made.stderr
    return Release(str(place / ".venv" / "bin" / "python"), place / "src")


def run(scratch: Path, before: Release, seed: int) -> tuple[list[str], list[Sent], list[str]]:
    """Upgrade, take back, upgrade again, in the empty directory `scratch`. Return what is wrong, what clients heard, and the steps."""
    wrong: list[str] = []
    steps: list[str] = []
    operations = Operations()
    replaced: list[list[Span]] = []
    with cluster(scratch, release=before) as held:
        wait_until_whole(held)
        replaced = [[] for _ in held.gateways]
        with traffic(held, seed, operations) as sent:
            time.sleep(PHASE_SECONDS)
            PRESENT.migrate(held.platform.directory, held.platform.environment)
            steps.append("migrated; control of the version before goes on")
            time.sleep(PHASE_SECONDS)
            for number, control in enumerate(held.controls):
                _replace(held, control, PRESENT)
                steps.append(f"control {number + 1} of the new version")
            _replace_gateways(held, PRESENT, steps, replaced, "of the new version")
            _replace_gateways(held, before, steps, replaced, "of the version before, over control of the new one")
            wrong += _take_control_back(held, before, steps)
            _replace_gateways(held, PRESENT, steps, replaced, "of the new version again")
            time.sleep(PHASE_SECONDS)
        wait_until_whole(held)
        heard = [each for part in sent for each in part.heard]
        for each in heard:
            label = f"{each.status} {each.code}" if each.ended == "error" else each.ended
            if label not in ("complete", "left", "refused", "503 draining"):
                wrong.append(f"a request ended with {label}: {each}")
        wrong += [
            f"a request was refused by a gateway that was not replaced: {each}"
            for part, spans in zip(sent, replaced, strict=True)
            for each in part.heard
            if each.ended == "refused" and not any(span.start - MARGIN_SECONDS <= each.began <= span.end for span in spans)
        ]
        wrong += [text for part in sent for text in part.wrong]
        wrong += [
            f"{count} operations were answered {status}" for status, count in operations.statuses.items() if status not in (200, *AWAY)
        ]
        check_bills(held, heard, wrong)
        wrong += end(held, operations)
    return wrong, sent, steps


def _replace(held: Cluster, part: Part, release: Release) -> None:
    """Let a process end as an orchestrator does, and start it in another version."""
    part.end(signal.SIGTERM)
    release.take_over(part)
    part.start()
    wait_until_whole(held)


def _replace_gateways(held: Cluster, release: Release, steps: list[str], replaced: list[list[Span]], which: str) -> None:
    """Replace the gateways one after the other. `replaced`: when each was, by gateway."""
    for number, gateway in enumerate(held.gateways):
        start = time.monotonic()
        _replace(held, gateway.part, release)
        replaced[number].append(Span(start, time.monotonic()))
        steps.append(f"gateway {number + 1} {which}")
    time.sleep(PHASE_SECONDS)


def _take_control_back(held: Cluster, before: Release, steps: list[str]) -> list[str]:
    """Start control of the version before over the schema of the new one: it must run if the database says that it may, and say why not
    otherwise."""
    control = held.controls[1]
    control.end(signal.SIGTERM)
    before.take_over(control)
    if may_run(held, before):
        control.start()
        wait_until_ready(f"{held.control_urls[1]}/readyz")
        steps.append("control 2 of the version before runs over the schema of the new one")
        time.sleep(PHASE_SECONDS)
        _replace(held, control, PRESENT)
        return []
    code = control.launch().wait(WAIT_SECONDS)
    said = control.out.read_text()
    wrong = [] if code == 1 and any(words in said for words in REFUSED) else [f"control ended with {code}: {said[-500:]}"]
    steps.append("control 2 of the version before refuses the schema of the new one, and says why")
    PRESENT.take_over(control)
    control.start()
    wait_until_whole(held)
    return wrong


def may_run(held: Cluster, before: Release) -> bool:
    """Return whether the database names the newest migration of that version, which looks for it, as one whose code may run."""
    engine = sa.create_engine(held.database.url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        compatible: Sequence[str] = connection.scalars(sa.text("SELECT revision FROM compatible_revisions")).all()
    files = list((before.sources / "tollway" / "storage" / "migrations" / "versions").glob("0*.py"))
    followed = {found[1] for path in files if (found := re.search(r'^down_revision = "(\w+)"', path.read_text(), re.MULTILINE))}
    (head,) = {path.name.partition("_")[0] for path in files} - followed
    return any(path.name.startswith("0082_") for path in files) and head in compatible
