"""Priority of the processes that attack: what they compute must not be measured as the CPU of what they attack."""

import os
from contextlib import suppress
from pathlib import Path

NICENESS = 15


def lower() -> None:
    """Give this process the CPU only when nobody else wants it.

    Linux shares the CPU between sessions first, and looks at niceness only within one (sched(7), "The autogroup feature"): the process
    gets a session of its own, and the session the same niceness.
    """
    os.setsid()
    os.nice(NICENESS)
    with suppress(FileNotFoundError):  # a kernel without autogroups
        Path("/proc/self/autogroup").write_text(str(NICENESS))
