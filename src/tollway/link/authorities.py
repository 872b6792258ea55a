"""The certificate authorities that a gateway's own connections, to control and to guardrails, are checked against: this machine's."""

import functools
import ssl

import httpx2


@functools.cache
def trusted_authorities() -> ssl.SSLContext:
    """Return the context of TLS connections, the same for all clients. To read the authorities takes 20 ms of CPU, and a gateway has about
    eight clients, most of which never speak TLS."""
    return httpx2.create_ssl_context(trust_env=False)
