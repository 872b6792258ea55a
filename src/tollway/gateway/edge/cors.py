"""Cross-origin requests of browsers (CORS): which origins may read answers, and the answers to preflights.

No origin may unless it is listed (`EdgePolicy.origins`).
"""

import re
from collections.abc import Iterable

from tollway.gateway.edge.edge_policy import EdgePolicy

_ORIGIN = re.compile(rb"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


def parse_origins(texts: Iterable[str]) -> frozenset[bytes]:
    """Return origins as browsers serialise them (RFC 6454 section 6.2), or `*` alone. Raises ValueError for anything else, also for `null`,
    which all sandboxed documents share."""
    origins = frozenset(text.encode() for text in texts)
    if origins == {b"*"}:
        return origins
    for origin in origins:
        if _ORIGIN.fullmatch(origin) is None:
            raise ValueError(f"{origin.decode()} is no origin; it has to look like https://app.example.com, in lower case")
    return origins


def allows_origin(rules: EdgePolicy, origin: bytes) -> bool:
    """Return whether scripts of this origin may read answers, and open connections that the browser does not ask about."""
    return b"*" in rules.origins or origin in rules.origins


def cors_headers(rules: EdgePolicy, origin: bytes | None) -> bytes:
    """Return the header lines of an answer to a script from `origin` (Fetch standard, section 3.2). Credentials are never
    allowed: keys travel in headers that the script sets, and no cookie means anything here, so `*` stands for all headers."""
    if not rules.origins:
        return b""
    if b"*" in rules.origins:
        return b"access-control-allow-origin: *\r\naccess-control-expose-headers: *\r\n"
    if origin not in rules.origins:
        return b"vary: origin\r\n"
    return b"access-control-allow-origin: %b\r\naccess-control-expose-headers: *\r\nvary: origin\r\n" % origin


def preflight_headers(rules: EdgePolicy, methods: bytes) -> bytes:
    """Return the header lines of the answer to a preflight, beside those of `cors_headers`. `authorization` must be named:
    `*` does not stand for it."""
    return b"access-control-allow-methods: %b\r\naccess-control-allow-headers: authorization, *\r\naccess-control-max-age: %d\r\n" % (
        methods,
        rules.preflight_seconds,
    )
