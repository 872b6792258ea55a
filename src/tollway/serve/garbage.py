"""Python's garbage collector in a process that is ready to serve."""

import gc

YOUNG_OBJECTS_MAX, YOUNG_PASSES, MIDDLE_PASSES = 50_000, 20, 50
"""Thresholds of `gc.set_threshold`. A batch of records makes tens of thousands of objects, which reference counting frees when the batch
is stored; to search them for cycles every 700 allocations, the default, costs a seventh of the collector's time
(`python -m bench --figures collector`). An operation that makes or revokes a key leaves about 300 objects in cycles, nearly all of
them parts of SQLAlchemy's statements, so that about 170 operations pass between two searches; 50,000 objects are some megabytes."""


def settle() -> None:
    """Exempt all present objects from garbage collection, and search new ones for cycles less often."""
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX, YOUNG_PASSES, MIDDLE_PASSES)
