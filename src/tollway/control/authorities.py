"""The certificate authorities that this machine trusts, for requests of the control plane to addresses outside."""

import functools
import os
import ssl

import httpx2


def read_authorities() -> ssl.SSLContext:
    """Return what verifies servers by the authorities of this machine, as they are on disk now. Variables of the environment do not count.

    They are read again when they change, and not for each client: it takes 30 ms of the event loop, and jobs have a client every few
    seconds."""
    paths = ssl.get_default_verify_paths()
    return _read(tuple(_find_change(path) for path in (paths.openssl_cafile, paths.openssl_capath)))


def _find_change(path: str) -> int | None:
    """Return when a file or directory was last changed; None if it is not there."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


@functools.lru_cache(maxsize=1)
def _read(_changed: tuple[int | None, ...]) -> ssl.SSLContext:
    return httpx2.create_ssl_context(trust_env=False)
