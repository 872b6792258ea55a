"""Moves the clock of each Python process that has this directory on its path ahead, by CLOCK_AHEAD_SECONDS."""

import os
import time

_AHEAD_SECONDS = int(os.environ.get("CLOCK_AHEAD_SECONDS", "0"))
_time, _time_ns = time.time, time.time_ns

time.time = lambda: _time() + _AHEAD_SECONDS
time.time_ns = lambda: _time_ns() + _AHEAD_SECONDS * 1_000_000_000
