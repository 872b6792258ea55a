"""Refusal of a part of new requests while the whole process is overloaded: its event loop lags, or its memory is nearly used up.

The lag counts only while it stands: the least of all samples of one period and of the last one before it, as CoDel measures queues
(RFC 8289, section 3.1). So a single pause refuses nobody, not even one that leaves its period no other sample. The part that is refused
grows by a step in each period that is overloaded, shrinks by a step in each that is well below the bounds, and stays as it is in between.
It is never all: what passes shows that the process has recovered, and memory that the allocator keeps would else refuse everybody
indefinitely.

A refusal is made before a key is checked or a body is read, so it costs little. Health, metrics and what is no inference are not refused.
"""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

STEPS = 8
SHED_STEPS_MAX = STEPS - 1
"""Largest part of new requests that is refused, in eighths. Within 4 s of overload the most is refused, within 4 s of calm nothing."""

RELIEF_PART = 2
"""Part of the bound on the lag, and RELIEF_MEMORY_PART the part of memory below its bound, from which on less is refused."""
RELIEF_MEMORY_PART = 16

CGROUP_NUMERATOR, CGROUP_DENOMINATOR = 9, 10
"""Part of the memory limit of the process's control group that is the bound where no bound is set."""

RETRY_SECONDS = 2.0
"""`retry-after` of a refused client: about half the time in which the part moves from one end to the other."""


class SheddingBounds(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds beyond which new requests are refused. `lag_seconds_max`: standing delay of the event loop; 0 refuses for no delay.
    `memory_bytes_max`: resident memory of the process; None: nine tenths of its control group's limit, if it has one."""

    lag_seconds_max: float = 0.5
    memory_bytes_max: int | None = None


class Shedder:
    """The part of new requests that one process refuses. `refused`: how many so far.

    `steps`: the part in eighths; 0 while all is well. The clock of the edge calls `note_lag` many times in each period and `check` once.
    """

    def __init__(self, bounds: SheddingBounds, memory: Callable[[], int], alarm: Callable[[str, dict[str, object]], None]) -> None:
        """`memory`: reads the resident memory in bytes. `alarm` is called when refusing begins, and when it ends."""
        self.steps = 0
        self.refused = 0
        self._bounds = bounds
        self._memory = memory
        self._alarm = alarm
        self._least_lag: float | None = None
        self._latest_lag = self._lag_before = 0.0
        self._owed = 0
        self._refused_before = 0

    def note_lag(self, seconds: float) -> None:
        """Take one sample of the event loop's delay."""
        self._latest_lag = seconds
        if self._least_lag is None or seconds < self._least_lag:
            self._least_lag = seconds

    def check(self) -> None:
        """End a period: move the part by at most one step."""
        lag, self._least_lag = self._least_lag, None
        lag_before, self._lag_before = self._lag_before, self._latest_lag
        if lag is None:
            return
        lag_max, memory_max = self._bounds.lag_seconds_max, self._bounds.memory_bytes_max
        memory = self._memory() if memory_max else 0
        is_late, is_large = 0 < lag_max < min(lag, lag_before), memory_max is not None and memory > memory_max
        before = self.steps
        if is_late or is_large:
            self.steps = min(before + 1, SHED_STEPS_MAX)
        else:
            is_punctual = not lag_max or lag * RELIEF_PART <= lag_max
            is_small = memory_max is None or memory <= memory_max - memory_max // RELIEF_MEMORY_PART
            if is_punctual and is_small:
                self.steps = max(before - 1, 0)
        if self.steps and not before:
            reason = "event_loop_lag" if is_late else "memory"
            self._alarm("shedding_began", {"reason": reason, "lag_seconds": round(lag, 3), "memory_bytes": memory})
        elif before and not self.steps:
            self._alarm("shedding_ended", {"refused": self.refused - self._refused_before})
            self._refused_before, self._owed = self.refused, 0

    def refuses(self) -> bool:
        """Return whether the next new request is refused: the part of all, evenly. Call it once for each, while `steps` is not 0."""
        self._owed += self.steps
        if self._owed < STEPS:
            return False
        self._owed -= STEPS
        self.refused += 1
        return True


def read_resident_bytes() -> int:
    """Return the resident memory of this process (proc(5), statm); 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, ValueError, IndexError):
        return 0


def find_memory_bound(root: Path = Path("/")) -> int | None:
    """Return the bound on memory that follows from the smallest limit of the process's control group and those above it (cgroup v2,
    `memory.max`); None if none has a limit. `root`: of the file system."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    path = next((line[3:].strip("/") for line in groups if line.startswith("0::")), "")
    top = root / "sys/fs/cgroup"
    limits: list[int] = []
    group = top / path
    while True:
        try:
            limits.append(int((group / "memory.max").read_text()))
        except (OSError, ValueError):
            pass  # without a file at the root, and "max" where there is no limit
        if group == top or top not in group.parents:
            break
        group = group.parent
    return min(limits) * CGROUP_NUMERATOR // CGROUP_DENOMINATOR if limits else None
