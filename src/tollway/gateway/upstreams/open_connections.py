"""Descriptors for connections to engines: how many are open, and what is closed when this process runs out of them.

A process without a free descriptor is at fault itself. No engine is blamed for it (`gateway.upstreams.health`), and the request is not
tried elsewhere, where it would fail in the same way.
"""

import errno
import os
from collections.abc import Callable
from socket import EAI_NONAME, gaierror

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def find_name_error(error: ValueError) -> OSError:
    """Return the error of a look-up, in place of the one that a host's name causes which no resolver or certificate can have."""
    return gaierror(EAI_NONAME, f"not a name of a host: {type(error).__name__}")


class OpenConnections:
    """Connections to all engines of this process.

    `most`: above it, idle connections are closed before another one is opened. `on_shortage`: called when descriptors run short; frees
    some by closing what nobody waits for.
    """

    __slots__ = ("count", "most", "on_shortage")

    def __init__(self, on_shortage: Callable[[], None] = lambda: None) -> None:
        self.count = 0
        self.most = 1 << 20
        self.on_shortage = on_shortage


def is_exhausted(error: OSError) -> bool:
    """Return whether `error` arose because this process or machine has no descriptor or memory for another socket. The resolver of host
    names reports that as a name that cannot be resolved, so a descriptor is tried as well."""
    if error.errno in _EXHAUSTED:
        return True
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as tried:
        return tried.errno in _EXHAUSTED
    return False
