"""The choice between the native extension and its twins in Python, and the form of this installation.

The extension and the compiled modules are optional: without them the same source runs in the interpreter, with the same results.
"""

import tollway.wire.http

try:
    from tollway._native import EventTemplate, PlainReader

    _has_leaves = True
except ImportError:
    from tollway.wire.event_template import EventTemplate  # type: ignore[assignment]

    PlainReader = None  # type: ignore[assignment,misc]  # bodies are read by `wire.bodies` and checked by the dialects alone
    _has_leaves = False
try:
    from tollway._native import extend
except ImportError:  # of the whole extension, or of what this processor cannot do faster
    from tollway.wire.segments import extend

__all__ = ["FORM", "EventTemplate", "PlainReader", "extend"]

_is_compiled = not tollway.wire.http.__file__.endswith(".py")

FORM = ("compiled" if _is_compiled else "native") if _has_leaves else "pure"
"""`pure`: Python alone. `native`: Python with the native extension. `compiled`: hot modules compiled by mypyc as well."""
