"""The choice between the native extension and its twins in Python, and the form of this installation.

The extension and the compiled modules are optional: without them the same source runs in the interpreter, with the same results.
"""

import tollway.wire.http

try:
    from tollway._native import EventTemplate

    _has_leaves = True
except ImportError:
    from tollway.wire.event_template import EventTemplate  # type: ignore[assignment]

    _has_leaves = False

__all__ = ["FORM", "EventTemplate"]

_is_compiled = not tollway.wire.http.__file__.endswith(".py")

FORM = ("compiled" if _is_compiled else "native") if _has_leaves else "pure"
"""`pure`: Python alone. `native`: Python with the native extension. `compiled`: hot modules compiled by mypyc as well."""
