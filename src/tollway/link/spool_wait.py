"""A gateway without a spool: no request can be metered, so none is served, until the disk can be written again.

A gateway whose spool failed ends, because nothing that it could still say about the disk would be true; the next one may find the same
disk. What passes (full, failing, read-only) is waited for by a process that answers 503 meanwhile: a refused connection tells a client
nothing, and restarts in a loop help nobody. What does not pass by itself (no permission, a path that is no directory), and a disk that was
never written by this node, end the start: a person has to look, and the alarm is raised at once.
"""

import array
import asyncio
from collections.abc import Callable
from errno import EDQUOT, EIO, ENOSPC, EROFS
from pathlib import Path
from typing import NoReturn

from tollway.domain.billing_classes import Quantities
from tollway.domain.faults import SPOOL_UNAVAILABLE, Fault
from tollway.link.disk import DISK, Disk
from tollway.link.epochs import find_node, write_file
from tollway.link.recovery import Alarm, CountsUsage, count_all, recover_dead
from tollway.link.spool import Spool

PASSING = frozenset({ENOSPC, EDQUOT, EIO, EROFS})
"""Errors of a disk that may be well again without anybody touching this machine's configuration."""

RETRY_SECONDS = 1.0
"""Interval at which the disk is tried: recovery must be seen within five seconds."""


class UnavailableSpool:
    """Stands where a spool will be; implements `gateway.ports.UsageSink`. Refuses every request."""

    def __init__(self) -> None:
        self.progress = memoryview(array.array("Q"))

    def admit(self, admit: bytes) -> NoReturn:
        """Raise Fault SPOOL_UNAVAILABLE."""
        raise Fault(SPOOL_UNAVAILABLE, detail="the disk of the spool cannot be written")

    def checkpoint(self, request_id: str, used: Quantities, retries: int) -> None:
        """Never asked for: nothing was admitted."""
        raise AssertionError("nothing was admitted")

    def final(self, slot: int, final: bytes, done: Callable[[Fault | None], None]) -> None:
        """Never asked for: nothing was admitted."""
        raise AssertionError("nothing was admitted")

    def is_writable(self) -> bool:
        """No."""
        return False


def find_waiting_node(directory: Path, error: OSError) -> str | None:
    """The node whose spool at `directory` is worth waiting for after `error`; None if waiting is not the answer."""
    if error.errno not in PASSING:
        return None
    try:
        return find_node(directory)
    except OSError:
        return None


async def open_when_available(
    directory: Path, open_spool: Callable[[Alarm], Spool], alarm: Alarm, disk: Disk = DISK, counts: CountsUsage = count_all
) -> Spool:
    """The spool at `directory`, once the disk lets it be opened. `counts`: as for `recover_dead`. Raises what does not pass.

    The disk is tried, and dead epochs are recovered, in a thread; only then is the spool opened in the event loop, which is quick on a
    disk that works.
    """
    told: set[str] = set()

    def alarm_once(event: str, fields: dict[str, object]) -> None:
        if (key := f"{event} {fields}") not in told:
            told.add(key)
            alarm(event, fields)

    while True:
        try:
            await asyncio.to_thread(_try_disk, directory, alarm_once, disk, counts)
            return open_spool(alarm_once)
        except OSError as error:
            if error.errno not in PASSING:
                raise
            alarm_once("spool_waits", {"error": str(error.strerror or error)})
        await asyncio.sleep(RETRY_SECONDS)


def _try_disk(directory: Path, alarm: Alarm, disk: Disk, counts: CountsUsage) -> None:
    """Write something and have it durable; then recover what dead processes left. Raises OSError."""
    write_file(directory / "probe", b"\n" * 4096, disk)
    disk.unlink(directory / "probe")
    recover_dead(directory, alarm=alarm, disk=disk, counts=counts)
