"""The dialects, by endpoint. A new API is a file here that defines a `Dialect`, and a member of `domain.catalog.Endpoint` (and of
NOT_GENERATING there, if it generates nothing).

Everything else follows from these: the gateway's routes, the heads of requests to engines, and the shape of errors.
"""

import importlib
import pkgutil
import re

from tollway.domain.catalog import Endpoint
from tollway.gateway import dialects
from tollway.gateway.dialects.dialect import Dialect


def _find_dialects() -> dict[Endpoint, Dialect]:
    """Return the dialects that the files of this package define. Raises KeyError if an endpoint has none."""
    found: dict[Endpoint, Dialect] = {}
    for file in pkgutil.iter_modules(dialects.__path__, f"{dialects.__name__}."):
        if file.name != __name__:
            module = importlib.import_module(file.name)
            found.update({value.endpoint: value for value in vars(module).values() if isinstance(value, Dialect)})
    return {endpoint: found[endpoint] for endpoint in Endpoint}


DIALECTS: dict[Endpoint, Dialect] = _find_dialects()

_ORIGIN = re.compile(rb"\Ahttps?://[^/]*", re.IGNORECASE)
"""Scheme and authority of a target in absolute form. A request for another host is refused in the shape of its path as well."""


def find_error_dialect(target: bytes) -> Dialect:
    """Return the dialect in which every error of a request to `target` is written: that of the longest endpoint that it begins with, or
    OpenAI's. `target`: in origin or absolute form, as much of it as has arrived."""
    path = _ORIGIN.sub(b"", target, count=1).partition(b"?")[0]
    best = DIALECTS[Endpoint.CHAT_COMPLETIONS]
    length = 0
    for dialect in DIALECTS.values():
        if len(dialect.target) > length and path.startswith(dialect.target):
            best, length = dialect, len(dialect.target)
    return best
