"""The child's side of supervision: end when the supervisor is gone, even if it was killed and could say nothing.

Two mechanisms, because each has a gap. The kernel's parent-death signal (Linux, prctl(2) PR_SET_PDEATHSIG) reaches a
child whatever it is doing, but only asks. The inherited pipe ends when its last writer, the supervisor, is gone; a
thread waits for that and then enforces the deadline. So a gateway gets time to finish its streams, and holds ports and
locks no longer than ORPHAN_SECONDS."""

import ctypes
import os
import signal
import sys
import threading
import time

PARENT_ENV = "TOLLWAY_PARENT"
"""Carries "<process id of the supervisor>:<inherited descriptor of its pipe>" to a child."""

ORPHAN_SECONDS = 10.0
"""Time for an orphan to drain: a new supervisor cannot bind the ports before it ends."""

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Arrange that this process gets SIGTERM when its supervisor ends, and SIGKILL ORPHAN_SECONDS later. Nothing
    without one.

    Call it from the main thread before anything long begins.
    """
    told = os.environ.pop(PARENT_ENV, None)
    if told is None:
        return
    parent, pipe = map(int, told.split(":"))
    os.set_inheritable(pipe, False)
    armed = sys.platform == "linux" and ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) == 0
    asked = armed and os.getppid() == parent  # else it died before the kernel was asked: nobody will ask us
    threading.Thread(target=_outlive_briefly, args=(pipe, asked), name="parent", daemon=True).start()


def _outlive_briefly(pipe: int, asked: bool) -> None:
    os.read(pipe, 1)  # nothing is ever written: returns at the end of file
    if not asked:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
