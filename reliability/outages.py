"""R11: control is gone for a while, and in the middle of it the gateway dies and starts from its copy of the snapshot. Known keys are
served through all of it, and every request is billed once when control is back."""

import asyncio
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from reliability import load
from reliability.bill_checks import Heard, find_wrong, read_bills, read_truth, wait_until_idle
from reliability.platforms import PRICES, Apart, apart
from reliability.processes import tollway
from reliability.records import Line, record

PER_SECOND = 60.0
AROUND_SECONDS = 3.0
"""Seconds of load before control goes and after it is back."""


@dataclass(slots=True)
class Course:
    """Times of the events of a run, in monotonic seconds. The gateway was away between `died_at` and `ready_at`."""

    gone_at: float = 0.0
    died_at: float = 0.0
    ready_at: float = 0.0
    back_at: float = 0.0
    billed_at: float = field(default=0.0)


def measure(seconds: float, seed: int) -> list[Line]:
    """Take the figure and keep it; what went wrong is printed."""
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="tollway-outages-") as scratch:
        wrong, heard, course, archived_bytes = run(Path(scratch), seconds, seed)
    print("\n".join(wrong[:20]), flush=True)
    without = [each for each in heard if course.gone_at <= each.began < course.back_at]
    return [
        record(
            "R11",
            of="requests without control",
            n=len(without),
            failures=len(wrong),
            also={"requests": len(heard)},
            seed=seed,
            began=began,
            detail={
                "control_gone_s": round(course.back_at - course.gone_at, 1),
                "gateway_started_alone_in_s": round(course.ready_at - course.died_at, 2),
                "all_billed_after_s": round(course.billed_at - course.back_at, 1),
                "clients": dict(Counter(each.ended for each in heard)),
                "record_bytes_per_1000_requests": archived_bytes * 1000 // len(heard),
            },
        )
    ]


def run(scratch: Path, seconds: float, seed: int) -> tuple[list[str], list[Heard], Course, int]:
    """One run: what is wrong, what the clients heard, the course of it, and how many bytes of records there were."""
    course = Course()
    with apart(scratch) as (platform, parts):

        async def use() -> load.Sent:
            breaking = asyncio.create_task(asyncio.to_thread(_break, parts, seconds, course))
            return await load.send_until(
                breaking, load.make_endless(seed), platform.gateway_url, platform.tenant.api_key, per_second=PER_SECOND
            )

        sent = asyncio.run(use())
        wait_until_idle(platform.truth_log)
        attempts = read_truth(platform.truth_log)
        platform.wait_until_billed(len(attempts))
        course.billed_at = time.monotonic()
        wrong = list(sent.wrong)
        for part, name in ((parts.gateway, "gateway"), (parts.control, "control")):
            if (code := part.end(signal.SIGTERM)) != 0:
                wrong.append(f"{name} ended with {code}: {part.out.read_text()}")
        platform.check_all_is_shipped()
        verified = tollway("verify", "--data-dir", str(platform.directory))
        if verified.returncode != 0:
            wrong.append(f"verify: {verified.stdout}{verified.stderr}")
        faults, _ = find_wrong(attempts, read_bills(platform.database_url), sent.heard, PRICES)
        wrong += faults
        wrong += [f"a request failed: {each}" for each in sent.heard if not _is_right(each, course)]
        archived = sum(path.stat().st_size for path in (platform.directory / "control" / "archive").rglob("*.seg"))
    return wrong, sent.heard, course, archived


def _break(parts: Apart, seconds: float, course: Course) -> None:
    time.sleep(AROUND_SECONDS)
    course.gone_at = time.monotonic()
    parts.control.end(signal.SIGKILL)
    time.sleep(seconds / 2)
    course.died_at = time.monotonic()
    parts.gateway.end(signal.SIGKILL)
    parts.gateway.start()
    course.ready_at = time.monotonic()
    time.sleep(seconds / 2)
    course.back_at = time.monotonic()
    parts.control.start()
    time.sleep(AROUND_SECONDS)


def _is_right(each: Heard, course: Course) -> bool:
    """Whole or left by its client; or struck by the death of the gateway."""
    if each.ended in ("complete", "left"):
        return True
    is_struck = each.began < course.ready_at and (each.ended == "broken" or each.began >= course.died_at)
    return is_struck and each.ended in ("broken", "refused")
