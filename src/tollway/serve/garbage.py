"""Python's garbage collector in a process that is ready to serve."""

import gc

YOUNG_OBJECTS_MAX, YOUNG_PASSES, MIDDLE_PASSES = 50_000, 20, 50
"""When the collector looks for cycles, as `gc.set_threshold` takes it. A batch of records makes ten thousands of objects that all go when
it is stored, by their counts; looked through every 700 allocations, as by default, they cost a seventh of the collector's time
(`python -m bench --figures collector`). What has cycles here, tracebacks mostly, is little: 50,000 of them are some megabytes."""


def settle() -> None:
    """What was made until now is never garbage and need not be looked through again; the rest is looked through seldom."""
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX, YOUNG_PASSES, MIDDLE_PASSES)
